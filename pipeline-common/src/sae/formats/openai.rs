//! A `.pt` of OpenAI's sparse_autoencoder: `pre_bias` `[d_in]`, `latent_bias` `[d_sae]`,
//! `encoder.weight` `[d_sae, d_in]`, `decoder.weight` `[d_in, d_sae]`, or with a tied decoder
//! `decoder.linear.weight` `[d_sae, d_in]`; the activation's name, and TopK's k.
//!
//! Those with TopK standardise each row, as that code's `from_state_dict` does; those with ReLU do
//! not.

use std::path::Path;

use super::{Format, Loaded, adapt, saelens::About, torch};
use crate::sae::{Activation, Parameters, RowNorm, Sae, SaeError};

/// Counts of the training.
const STATISTICS: [&str; 3] =
    ["stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"];

/// Reads a file.
///
/// # Errors
/// [`SaeError`] naming file, tensor or value.
pub fn read(path: &Path) -> Result<Loaded, SaeError> {
    let mut file = torch::open(path)?;
    let (d_sae, d_in) = file.matrix_shape("encoder.weight")?;
    let refuse = |field: &str, found: String, expected: &str| SaeError::Field {
        path: path.to_owned(),
        field: format!("`{field}`"),
        found: format!("`{found}`"),
        expected: expected.into(),
        hint: "latents would be negative, or something else",
    };
    let activation = match file.take_text("activation").as_deref() {
        None | Some("ReLU") => Activation::Relu,
        Some("TopK") => {
            let after = file.take_text("activation_state_dict.postact_fn");
            let after = after.unwrap_or_else(|| "missing".into());
            if after != "ReLU" {
                return Err(refuse("activation_state_dict.postact_fn", after, "`ReLU`"));
            }
            let k = file.take_number("activation_state_dict.k")?;
            Activation::TopK { k: adapt::whole_k(path, k, d_sae)? }
        }
        Some(other) => return Err(refuse("activation", other.into(), "`TopK` or `ReLU`")),
    };
    let params = Parameters {
        d_in,
        d_out: d_in,
        d_sae,
        w_enc: file.take("encoder.weight", &[d_sae, d_in])?,
        b_enc: file.take("latent_bias", &[d_sae])?,
        w_dec: if file.has("decoder.linear.weight") {
            file.take("decoder.linear.weight", &[d_sae, d_in])?
        } else {
            file.take_transposed("decoder.weight", [d_in, d_sae])?
        },
        b_dec: file.take("pre_bias", &[d_in])?,
        ..Parameters::default()
    };
    let row_norm = matches!(activation, Activation::TopK { .. }).then_some(RowNorm::LAYER_NORM);
    let mut notes = Vec::from_iter(file.finish(&STATISTICS)?);
    if row_norm.is_some() {
        notes.push("each row is standardised before encoding, as OpenAI's TopK SAEs do".into());
    }
    let sae = Sae { row_norm, ..Sae::new(params, activation) };
    Ok(Loaded { sae, about: About::default(), format: Format::OpenAi, notes })
}
