//! A `.pt` of SAINT: `b_pre` `[d_in]`, `encoder.weight` `[d_sae, d_in]`, `encoder.bias` `[d_sae]`,
//! `decoder.weight` `[d_in, d_sae]`.
//!
//! TopK; the file does not hold k. Each row is standardised before encoding. Several
//! experts are several SAEs, which are refused.

use std::path::Path;

use super::{Format, Loaded, adapt, saelens::About, torch};
use crate::sae::{Activation, Parameters, RowNorm, Sae, SaeError};

/// Reads a file of an SAE with this k.
///
/// # Errors
/// [`SaeError`] naming file and tensor, or that k is not given.
pub fn read(path: &Path, k: Option<usize>) -> Result<Loaded, SaeError> {
    let mut file = torch::open(path)?;
    let field = |field: &str, found: &str, expected: &str, hint: &'static str| SaeError::Field {
        path: path.to_owned(),
        field: field.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
        hint,
    };
    if let Some(name) = file.names().find(|name| name.contains("expert")) {
        let hint = "save each expert's state_dict() as a file of its own";
        return Err(field(&format!("`{name}`"), "one of several experts", "one SAE", hint));
    }
    let (d_sae, d_in) = file.matrix_shape("encoder.weight")?;
    let Some(k) = k else {
        let hint = "set TOP_K to the k that the SAE was trained with";
        return Err(field("k", "not in the file", "TOP_K", hint));
    };
    let params = Parameters {
        d_in,
        d_out: d_in,
        d_sae,
        w_enc: file.take("encoder.weight", &[d_sae, d_in])?,
        b_enc: file.take("encoder.bias", &[d_sae])?,
        w_dec: file.take_transposed("decoder.weight", [d_in, d_sae])?,
        b_dec: file.take("b_pre", &[d_in])?,
        ..Parameters::default()
    };
    let mut notes = Vec::from_iter(file.finish(&[])?);
    notes.push("each row is standardised before encoding, as SAINT does".into());
    let activation = Activation::TopK { k: adapt::whole_k(path, k as f64, d_sae)? };
    let sae = Sae { row_norm: Some(RowNorm::SAINT), ..Sae::new(params, activation) };
    Ok(Loaded { sae, about: About::default(), format: Format::Saint, notes })
}
