//! Gemma Scope's `params.npz`: `W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_in]`, `b_enc`, `threshold`
//! `[d_sae]`, `b_dec` `[d_in]`. JumpReLU; `b_dec` is not subtracted from the input.
//!
//! Its transcoders have the same arrays, and nothing in the file tells them apart.

use std::path::Path;

use super::{Format, Loaded, npz, saelens::About};
use crate::sae::{Activation, Parameters, Sae, SaeError};

/// The file's name.
pub const WEIGHTS: &str = "params.npz";

/// Reads a file, or the one in a directory.
///
/// # Errors
/// [`SaeError`] naming file and array.
pub fn read(path: &Path) -> Result<Loaded, SaeError> {
    let path = if path.is_dir() { &path.join(WEIGHTS) } else { path };
    let mut file = npz::open(path)?;
    let (d_in, d_sae) = file.matrix_shape("W_enc")?;
    let params = Parameters {
        d_in,
        d_out: d_in,
        d_sae,
        w_enc: file.take_transposed("W_enc", [d_in, d_sae])?,
        b_enc: file.take("b_enc", &[d_sae])?,
        w_dec: file.take("W_dec", &[d_sae, d_in])?,
        b_dec: file.take("b_dec", &[d_in])?,
        threshold: file.take("threshold", &[d_sae])?,
        ..Parameters::default()
    };
    let notes = file.finish(&[])?.into_iter().collect();
    let sae = Sae { subtract_b_dec: false, ..Sae::new(params, Activation::JumpRelu) };
    Ok(Loaded { sae, about: About::default(), format: Format::GemmaScope, notes })
}
