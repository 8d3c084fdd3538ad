//! SAE directories on disk.

pub mod saelens;
