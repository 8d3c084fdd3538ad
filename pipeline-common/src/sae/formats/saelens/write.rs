//! Writing a SAELens 6 directory.

use std::path::Path;

use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{About, CFG, LOG_FLOOR, SKIP, SPARSITY, TRANSCODER, WEIGHTS, name_of, shape_of};
use crate::{
    sae::{
        Activation, RowNorm, Sae, SaeError,
        parameters::{NAMES, transpose},
    },
    shard::format::{self, TensorSpec},
    stage::atomic,
};

#[derive(Debug, Serialize)]
struct Cfg<'a> {
    architecture: String,
    d_in: usize,
    d_sae: usize,
    dtype: &'static str,
    device: &'static str,
    apply_b_dec_to_input: bool,
    normalize_activations: &'static str,
    reshape_activations: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    d_out: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook_name_out: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rescale_acts_by_decoder_norm: Option<bool>,
    metadata: &'a Map<String, Value>,
}

/// Writes an SAE that this project trained.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn save(dir: &Path, sae: &Sae, about: About) -> Result<(), SaeError> {
    write(dir, sae, &about).map(|_notes| ())
}

/// Refuses what this format has no place for.
///
/// # Errors
/// [`SaeError::Inexpressible`] for an autoencoder with a linear path around its latents or an output
/// of another width, and a transcoder that changes its input before encoding.
pub fn require(sae: &Sae, about: &About) -> Result<(), SaeError> {
    let (p, transcoder) = (&sae.params, about.target.is_some());
    let refuse = |what: &str| Err(SaeError::Inexpressible { target: "saelens", what: what.into() });
    if !transcoder && (!p.w_skip.is_empty() || p.d_in != p.d_out) {
        return refuse("an autoencoder with a linear path or an output of another width");
    }
    if transcoder && (sae.row_norm.is_some() || sae.subtract_b_dec) {
        return refuse("a transcoder that changes its input before encoding");
    }
    Ok(())
}

/// Writes an SAE's directory of what [`require`] lets pass; returns what differs where SAELens uses
/// it.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write(dir: &Path, sae: &Sae, about: &About) -> Result<Vec<String>, SaeError> {
    let p = &sae.params;
    fs_err::create_dir_all(dir)?;
    let w_enc = transpose(&p.w_enc, p.d_sae, p.d_in);
    let tensors: Vec<(TensorSpec<'_>, &[u8])> = NAMES
        .into_iter()
        .zip(p.tensors())
        .filter(|(_, data)| !data.is_empty())
        .map(|(tensor, data)| {
            let data = if tensor == "w_enc" { &w_enc } else { data };
            let (name, shape) = (name_of(tensor, sae.activation), shape_of(tensor, p.shape()));
            (TensorSpec { name, dtype: Dtype::F32, shape }, bytemuck::cast_slice(data))
        })
        .collect();
    format::write_file(&dir.join(WEIGHTS), &tensors, &vec![])?;
    if !about.frequency.is_empty() {
        write_sparsity(dir, &about.frequency)?;
    }
    atomic::write_json(&dir.join(CFG), &cfg(sae, about))?;
    let note = |norm: RowNorm| {
        format!(
            "SAELens adds {:e} to a row's standard deviation where the source adds {:e} before \
             dividing, and {:e} where it adds {:e} before multiplying",
            RowNorm::LAYER_NORM.eps,
            norm.eps,
            RowNorm::LAYER_NORM.restore_eps,
            norm.restore_eps
        )
    };
    Ok(sae.row_norm.filter(|norm| *norm != RowNorm::LAYER_NORM).map(note).into_iter().collect())
}

fn write_sparsity(dir: &Path, frequency: &[f64]) -> Result<(), SaeError> {
    let log: Vec<f32> = frequency.iter().map(|f| (f + LOG_FLOOR).log10() as f32).collect();
    let spec = TensorSpec { name: "sparsity", dtype: Dtype::F32, shape: vec![log.len()] };
    Ok(format::write_file(&dir.join(SPARSITY), &[(spec, bytemuck::cast_slice(&log))], &vec![])?)
}

fn cfg<'a>(sae: &Sae, about: &'a About) -> Cfg<'a> {
    let k = if let Activation::TopK { k } = sae.activation { Some(k) } else { None };
    Cfg {
        architecture: architecture(sae, about.target.is_some()),
        d_in: sae.params.d_in,
        d_sae: sae.params.d_sae,
        dtype: "float32",
        device: "cpu",
        apply_b_dec_to_input: sae.subtract_b_dec,
        normalize_activations: if sae.row_norm.is_some() { "layer_norm" } else { "none" },
        reshape_activations: "none",
        d_out: about.target.is_some().then_some(sae.params.d_out),
        hook_name_out: about.target.as_deref(),
        k,
        // Latents are stored as they are used.
        rescale_acts_by_decoder_norm: k.map(|_| false),
        metadata: &about.metadata,
    }
}

fn architecture(sae: &Sae, transcoder: bool) -> String {
    let base = match sae.activation {
        Activation::TopK { .. } => "topk",
        Activation::JumpRelu => "jumprelu",
        Activation::Relu => "standard",
        Activation::Gated => "gated",
    };
    let kind = if sae.params.w_skip.is_empty() { TRANSCODER } else { SKIP };
    match (transcoder, base) {
        (false, _) => base.into(),
        (true, "standard") => kind.into(),
        (true, _) => format!("{base}_{kind}"),
    }
}
