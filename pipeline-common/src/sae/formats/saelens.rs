//! The SAELens 6 inference directory: `cfg.json`, `sae_weights.safetensors`,
//! `sparsity.safetensors`.
//!
//! `W_enc` F32 `[d_in, d_sae]`, `b_enc` `[d_sae]`, `W_dec` `[d_sae, d_in]`, `b_dec` `[d_in]`,
//! `threshold` `[d_sae]` for jumprelu; `sparsity` `[d_sae]` = log10 of the firing frequency.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{Activation, Parameters, Sae, SaeError, parameters::transpose};
use crate::{
    shard::format::{self, TensorSpec},
    stage::atomic,
};

/// The configuration's file name.
pub const CFG: &str = "cfg.json";
/// The weights' file name.
pub const WEIGHTS: &str = "sae_weights.safetensors";
/// The firing frequencies' file name.
pub const SPARSITY: &str = "sparsity.safetensors";

/// Added to a frequency before its logarithm, as SAELens does.
const LOG_FLOOR: f64 = 1e-10;

#[derive(Debug, Serialize, Deserialize)]
struct Cfg {
    architecture: String,
    d_in: usize,
    d_sae: usize,
    #[serde(default = "float32")]
    dtype: String,
    #[serde(default = "cpu")]
    device: String,
    #[serde(default = "yes")]
    apply_b_dec_to_input: bool,
    #[serde(default = "none")]
    normalize_activations: String,
    #[serde(default = "none")]
    reshape_activations: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rescale_acts_by_decoder_norm: Option<bool>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

fn float32() -> String {
    "float32".into()
}
fn cpu() -> String {
    "cpu".into()
}
fn none() -> String {
    "none".into()
}
fn yes() -> bool {
    true
}

/// Writes an SAE's directory; `metadata` is kept in `cfg.json`, `frequency` is each latent's
/// share of rows in which it was active.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn save(
    dir: &Path,
    sae: &Sae,
    metadata: Map<String, Value>,
    frequency: &[f64],
) -> Result<(), SaeError> {
    let p = &sae.params;
    let (d_in, d_sae) = (p.d_in, p.d_sae);
    let (architecture, k) = match sae.activation {
        Activation::TopK { k } => ("topk", Some(k)),
        Activation::JumpRelu => ("jumprelu", None),
        Activation::Relu => ("standard", None),
    };
    let w_enc = transpose(&p.w_enc, d_sae, d_in);
    let spec =
        |name, shape: &[usize]| TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() };
    let mut tensors: Vec<(TensorSpec, &[u8])> = vec![
        (spec("W_enc", &[d_in, d_sae]), bytemuck::cast_slice(&w_enc)),
        (spec("W_dec", &[d_sae, d_in]), bytemuck::cast_slice(&p.w_dec)),
        (spec("b_dec", &[d_in]), bytemuck::cast_slice(&p.b_dec)),
        (spec("b_enc", &[d_sae]), bytemuck::cast_slice(&p.b_enc)),
    ];
    if sae.activation == Activation::JumpRelu {
        tensors.push((spec("threshold", &[d_sae]), bytemuck::cast_slice(&p.threshold)));
    }
    fs_err::create_dir_all(dir)?;
    format::write_file(&dir.join(WEIGHTS), &tensors, &vec![])?;
    let log: Vec<f32> = frequency.iter().map(|f| (f + LOG_FLOOR).log10() as f32).collect();
    format::write_file(
        &dir.join(SPARSITY),
        &[(spec("sparsity", &[d_sae]), bytemuck::cast_slice(&log))],
        &vec![],
    )?;
    let cfg = Cfg {
        architecture: architecture.into(),
        d_in,
        d_sae,
        dtype: float32(),
        device: cpu(),
        apply_b_dec_to_input: sae.subtract_b_dec,
        normalize_activations: none(),
        reshape_activations: none(),
        k,
        // Rows all have one norm, and latents are stored as they are used.
        rescale_acts_by_decoder_norm: k.map(|_| false),
        metadata,
    };
    Ok(atomic::write_json(&dir.join(CFG), &cfg)?)
}

/// Reads an SAE's directory.
///
/// # Errors
/// [`SaeError`] naming file, field or tensor, for anything that would change what it computes.
pub fn load(dir: &Path) -> Result<Sae, SaeError> {
    let path = dir.join(CFG);
    let bad = |reason: String| SaeError::Format { path: path.clone(), reason };
    let cfg: Cfg = serde_json::from_slice(&fs_err::read(&path)?).map_err(|e| bad(e.to_string()))?;
    for (field, value) in [
        ("normalize_activations", &cfg.normalize_activations),
        ("reshape_activations", &cfg.reshape_activations),
    ] {
        if value != "none" {
            return Err(bad(format!("`{field}` is `{value}`, supported is `none`")));
        }
    }
    let activation = match cfg.architecture.as_str() {
        "topk" => {
            let k = cfg.k.ok_or_else(|| bad("`k` is missing".into()))?;
            if !(1..=cfg.d_sae).contains(&k) {
                return Err(bad(format!("`k` is {k}, expected 1 to {} (`d_sae`)", cfg.d_sae)));
            }
            Activation::TopK { k }
        }
        "jumprelu" => Activation::JumpRelu,
        "standard" => Activation::Relu,
        other => {
            return Err(bad(format!(
                "`architecture` is `{other}`, supported are topk, jumprelu, standard"
            )));
        }
    };
    let params = read_weights(&dir.join(WEIGHTS), &cfg, activation)?;
    let mut sae = Sae { params, activation, subtract_b_dec: cfg.apply_b_dec_to_input };
    // SAELens' default where the field is missing.
    if matches!(activation, Activation::TopK { .. })
        && cfg.rescale_acts_by_decoder_norm.unwrap_or(true)
    {
        fold_decoder_norm(&mut sae.params);
    }
    Ok(sae)
}

fn read_weights(path: &Path, cfg: &Cfg, activation: Activation) -> Result<Parameters, SaeError> {
    let map = format::map(path)?;
    let file = SafeTensors::deserialize(&map)
        .map_err(|e| SaeError::Format { path: path.to_owned(), reason: e.to_string() })?;
    let (d_in, d_sae) = (cfg.d_in, cfg.d_sae);
    let tensor = |name: &str, shape: &[usize]| read_f32(path, &file, name, shape);
    Ok(Parameters {
        d_in,
        d_sae,
        w_enc: transpose(&tensor("W_enc", &[d_in, d_sae])?, d_in, d_sae),
        b_enc: tensor("b_enc", &[d_sae])?,
        w_dec: tensor("W_dec", &[d_sae, d_in])?,
        b_dec: tensor("b_dec", &[d_in])?,
        threshold: if activation == Activation::JumpRelu {
            tensor("threshold", &[d_sae])?
        } else {
            vec![]
        },
    })
}

fn read_f32(
    path: &Path,
    file: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, SaeError> {
    let bad = |reason: String| SaeError::Format { path: path.to_owned(), reason };
    let view = file.tensor(name).map_err(|e| bad(format!("tensor `{name}`: {e}")))?;
    if view.shape() != shape {
        return Err(SaeError::Shape {
            path: path.to_owned(),
            tensor: name.to_owned(),
            expected: shape.to_vec(),
            found: view.shape().to_vec(),
        });
    }
    if view.dtype() != Dtype::F32 {
        return Err(bad(format!("tensor `{name}` is {:?}, expected F32", view.dtype())));
    }
    Ok(view.data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
}

/// SAELens chooses by activation times decoder norm and divides on decoding: the same as an SAE
/// whose encoder is multiplied and whose decoder is divided by the norm.
fn fold_decoder_norm(p: &mut Parameters) {
    let norms = p.decoder_norms();
    for (latent, norm) in norms.iter().enumerate().filter(|(_, n)| **n > 0.0) {
        let row = latent * p.d_in..(latent + 1) * p.d_in;
        p.w_enc[row.clone()].iter_mut().for_each(|w| *w *= norm);
        p.w_dec[row].iter_mut().for_each(|w| *w /= norm);
        p.b_enc[latent] *= norm;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::weights::tests::random_sae;

    #[test]
    fn every_architecture_comes_back() {
        for activation in [Activation::TopK { k: 3 }, Activation::JumpRelu, Activation::Relu] {
            let dir = tempfile::tempdir().unwrap();
            let sae = random_sae(5, 9, activation);
            save(dir.path(), &sae, Map::new(), &[0.5; 9]).unwrap();
            assert_eq!(load(dir.path()).unwrap(), sae);
        }
    }

    #[test]
    fn a_decoder_norm_in_the_configuration_is_folded() {
        let dir = tempfile::tempdir().unwrap();
        let mut sae = random_sae(5, 9, Activation::TopK { k: 9 });
        sae.params.w_dec.iter_mut().for_each(|w| *w *= 3.0);
        save(dir.path(), &sae, Map::new(), &[0.5; 9]).unwrap();
        let path = dir.path().join(CFG);
        let text = fs_err::read_to_string(&path).unwrap().replace(
            "\"rescale_acts_by_decoder_norm\": false",
            "\"rescale_acts_by_decoder_norm\": true",
        );
        fs_err::write(&path, text).unwrap();
        let folded = load(dir.path()).unwrap();
        let x = [0.3, -0.2, 1.0, 0.7, -0.4];
        let (a, b) = (sae.encode(&x, 1), folded.encode(&x, 1));
        assert_eq!(a.row(0).0, b.row(0).0);
        a.row(0).1.iter().zip(b.row(0).1).for_each(|(a, b)| assert!((a * 3.0 - b).abs() < 1e-4));
        sae.decode(&a)
            .iter()
            .zip(folded.decode(&b))
            .for_each(|(a, b)| assert!((a - b).abs() < 1e-4));
    }

    #[test]
    fn what_would_change_the_result_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &random_sae(5, 9, Activation::Relu), Map::new(), &[0.5; 9]).unwrap();
        let path = dir.path().join(CFG);
        let good = fs_err::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"standard\"", "\"gated\""),
            ("\"normalize_activations\": \"none\"", "\"normalize_activations\": \"layer_norm\""),
            ("\"d_sae\": 9", "\"d_sae\": 8"),
        ] {
            fs_err::write(&path, good.replace(from, to)).unwrap();
            assert!(load(dir.path()).is_err(), "{to}");
        }
    }
}
