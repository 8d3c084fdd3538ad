//! Sparse autoencoders: weights, objectives, training, files.
//!
//! `x̂ = f W_dec + b_dec`, `f = activation((x - b_dec) W_enc + b_enc)`.
//!
//! [`Sae`] is what later stages use (encode, decode); [`variant`] holds what only training needs,
//! one file per architecture with its loss and closed-form gradients. All weights and statistics
//! are f32; both matrices are stored with one row per latent, `[d_sae, d_in]`, so that a latent's
//! vectors are contiguous.

pub mod checkpoint;
pub mod chosen;
pub mod convert;
pub mod curves;
pub mod encode;
pub mod error;
pub mod evaluate;
pub mod evaluation;
pub mod formats;
pub mod gradients;
pub mod history;
pub mod init;
pub mod pairs;
pub mod parameters;
pub mod random;
#[cfg(test)]
mod recovery;
pub mod resample;
mod rough;
pub mod row_norm;
pub mod rows;
pub mod schedule;
pub mod settings;
pub mod train;
pub mod trainer;
#[cfg(test)]
mod traps;
pub mod variant;
pub mod weights;

pub use chosen::Cut;
pub use convert::ConvertSae;
pub use error::SaeError;
pub use evaluation::EvaluateSae;
pub use parameters::Parameters;
pub use row_norm::RowNorm;
pub use train::TrainSae;
pub use weights::{Activation, Sae};
