//! A hook point's directory of sparsify: `cfg.json`, `sae.safetensors`.
//!
//! `encoder.weight` `[d_sae, d_in]`, `encoder.bias` `[d_sae]`, `W_dec` `[d_sae, d_in]` (a row per
//! latent, unlike a linear layer's), `b_dec` `[d_in]`, `W_skip` `[d_in, d_in]`. TopK alone;
//! autoencoders always subtract `b_dec` from their input, transcoders never; `num_latents` 0 means
//! `expansion_factor` times `d_in`.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{Format, Loaded, adapt, fields::Fields, saelens::About, tensors::Tensors};
use crate::{
    sae::{Activation, Parameters, Sae, SaeError},
    shard::format::{self, TensorSpec},
    stage::atomic,
};

/// The configuration's file name.
pub const CFG: &str = "cfg.json";
/// The weights' file name.
pub const WEIGHTS: &str = "sae.safetensors";

/// Reads a directory.
///
/// # Errors
/// [`SaeError`] naming file, field or tensor.
pub fn read(dir: &Path) -> Result<Loaded, SaeError> {
    let cfg = Fields::read(&dir.join(CFG))?;
    let kind = cfg.optional("activation")?.unwrap_or_else(|| "topk".to_owned());
    if kind != "topk" {
        let hint = "the k latents of groupmax are the largest of k groups";
        return Err(cfg.refuse("activation", kind, "`topk`", hint));
    }
    if cfg.optional("signed")?.unwrap_or(false) {
        return Err(cfg.refuse("signed", "true", "false", "latents would be negative"));
    }
    let d_in: usize = cfg.required("d_in")?;
    let d_sae = match cfg.optional("num_latents")?.unwrap_or(0) {
        0 => d_in.saturating_mul(cfg.required("expansion_factor")?),
        given => given,
    };
    let k = cfg.checked_k(cfg.required("k")?, d_sae)?;
    let transcoder: bool = cfg.optional("transcode")?.unwrap_or(false);
    let mut file = Tensors::safetensors(&dir.join(WEIGHTS))?;
    let params = Parameters {
        d_in,
        d_out: d_in,
        d_sae,
        w_enc: file.take("encoder.weight", &[d_sae, d_in])?,
        b_enc: file.take("encoder.bias", &[d_sae])?,
        w_dec: file.take("W_dec", &[d_sae, d_in])?,
        b_dec: file.take("b_dec", &[d_in])?,
        w_skip: match cfg.optional("skip_connection")?.unwrap_or(false) {
            true => file.take("W_skip", &[d_in, d_in])?,
            false => vec![],
        },
        ..Parameters::default()
    };
    let notes = file.finish(&[])?.into_iter().collect();
    let metadata: Map<String, Value> = cfg.optional("metadata")?.unwrap_or_default();
    let target = transcoder.then(|| {
        let named = metadata.get("hook_name_out").and_then(Value::as_str).map(str::to_owned);
        // Directories are named after the module whose input and output are meant.
        let folder = || dir.file_name().map(|name| name.to_string_lossy().into_owned());
        named.or_else(folder).unwrap_or_else(|| "unknown".into())
    });
    let sae = Sae { subtract_b_dec: !transcoder, ..Sae::new(params, Activation::TopK { k }) };
    let about = About { metadata, target, frequency: vec![] };
    Ok(Loaded { sae, about, format: Format::Sparsify, notes })
}

/// Refuses what this format has no place for.
///
/// # Errors
/// [`SaeError::Inexpressible`] for other activations than TopK, standardised rows and outputs of
/// another width.
pub fn require(sae: &Sae) -> Result<(), SaeError> {
    adapt::require_plain("sparsify", sae)?;
    match sae.activation {
        Activation::TopK { .. } => Ok(()),
        other => {
            let what = format!("the activation ({other}), TopK alone");
            Err(SaeError::Inexpressible { target: "sparsify", what })
        }
    }
}

/// Writes a directory of what [`require`] lets pass; returns what it has no place for.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write(dir: &Path, sae: &Sae, about: &About) -> Result<Vec<String>, SaeError> {
    let transcoder = about.target.is_some();
    let k = if let Activation::TopK { k } = sae.activation { Some(k) } else { None };
    let sae = adapt::subtracting(sae, !transcoder);
    let p = &sae.params;
    let all: [(&str, &[f32], Vec<usize>); 5] = [
        ("encoder.weight", &p.w_enc, vec![p.d_sae, p.d_in]),
        ("encoder.bias", &p.b_enc, vec![p.d_sae]),
        ("W_dec", &p.w_dec, vec![p.d_sae, p.d_in]),
        ("b_dec", &p.b_dec, vec![p.d_in]),
        ("W_skip", &p.w_skip, vec![p.d_in, p.d_in]),
    ];
    let tensors: Vec<(TensorSpec<'_>, &[u8])> = all
        .into_iter()
        .filter(|(_, data, _)| !data.is_empty())
        .map(|(name, data, shape)| {
            (TensorSpec { name, dtype: Dtype::F32, shape }, bytemuck::cast_slice(data))
        })
        .collect();
    fs_err::create_dir_all(dir)?;
    format::write_file(&dir.join(WEIGHTS), &tensors, &vec![])?;
    let mut metadata = about.metadata.clone();
    if let Some(target) = &about.target {
        metadata.insert("hook_name_out".into(), target.as_str().into());
    }
    let cfg = json!({
        "activation": "topk",
        "expansion_factor": p.d_sae.div_ceil(p.d_in),
        "normalize_decoder": adapt::has_unit_decoder(p),
        "num_latents": p.d_sae,
        "k": k,
        "multi_topk": false,
        "skip_connection": !p.w_skip.is_empty(),
        "transcode": transcoder,
        "d_in": p.d_in,
        "metadata": metadata,
    });
    atomic::write_json(&dir.join(CFG), &cfg)?;
    Ok(adapt::without_frequency(about))
}
