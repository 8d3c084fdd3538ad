//! One file per hot operation: the fast CPU path, and in its tests the plain reference.
//!
//! Slices are row-major f32. Results do not depend on the number of threads: work is split by
//! output rows, and sums are taken in a fixed order.

pub mod adam;
pub mod columns;
pub mod product;
pub mod sparse;
pub mod topk;
pub mod vector;
