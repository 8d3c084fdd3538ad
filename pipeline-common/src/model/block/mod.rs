//! The parts that families are put together from.

pub(super) mod attention;
pub(super) mod exit;
pub(super) mod experts;
pub(super) mod linear;
pub(super) mod mlp;
pub(super) mod norm;
pub(super) mod rope;
