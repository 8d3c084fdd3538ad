//! The SAELens 6 inference directory: `cfg.json`, `sae_weights.safetensors`,
//! `sparsity.safetensors`.
//!
//! `W_enc` F32 `[d_in, d_sae]`, `b_enc` `[d_sae]`, `W_dec` `[d_sae, d_out]`, `b_dec` `[d_out]`;
//! `threshold` `[d_sae]` for jumprelu; `b_gate` in place of `b_enc`, `r_mag`, `b_mag` `[d_sae]` for
//! gated; `W_skip` `[d_out, d_in]` for skip transcoders; `sparsity` `[d_sae]` = log10 of the firing
//! frequency. SAELens knows transcoders with ReLU and JumpReLU; those with TopK and gates are
//! written the same way under names of their own.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    sae::{
        Activation, Parameters, Sae, SaeError,
        parameters::{NAMES, Shape, transpose},
    },
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
    d_out: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook_name_out: Option<String>,
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

/// What is written beside the weights.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Kept in `cfg.json`.
    pub metadata: Map<String, Value>,
    /// Of a transcoder, the hook whose rows it reconstructs.
    pub target: Option<String>,
    /// Each latent's share of rows in which it was active.
    pub frequency: Vec<f64>,
}

/// A suffix to the architecture of transcoders.
const TRANSCODER: &str = "transcoder";
const SKIP: &str = "skip_transcoder";

/// Writes an SAE's directory.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn save(dir: &Path, sae: &Sae, about: About) -> Result<(), SaeError> {
    let p = &sae.params;
    let k = if let Activation::TopK { k } = sae.activation { Some(k) } else { None };
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
    fs_err::create_dir_all(dir)?;
    format::write_file(&dir.join(WEIGHTS), &tensors, &vec![])?;
    let log: Vec<f32> = about.frequency.iter().map(|f| (f + LOG_FLOOR).log10() as f32).collect();
    let spec = TensorSpec { name: "sparsity", dtype: Dtype::F32, shape: vec![p.d_sae] };
    let sparsity = [(spec, bytemuck::cast_slice(&log))];
    format::write_file(&dir.join(SPARSITY), &sparsity, &vec![])?;
    let cfg = Cfg {
        architecture: architecture(sae, about.target.is_some()),
        d_in: p.d_in,
        d_sae: p.d_sae,
        dtype: float32(),
        device: cpu(),
        apply_b_dec_to_input: sae.subtract_b_dec,
        normalize_activations: none(),
        reshape_activations: none(),
        d_out: about.target.is_some().then_some(p.d_out),
        hook_name_out: about.target,
        k,
        // Rows all have one norm, and latents are stored as they are used.
        rescale_acts_by_decoder_norm: k.map(|_| false),
        metadata: about.metadata,
    };
    Ok(atomic::write_json(&dir.join(CFG), &cfg)?)
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

/// SAELens' name of one of our tensors.
fn name_of(tensor: &str, activation: Activation) -> &'static str {
    match tensor {
        "w_enc" => "W_enc",
        "b_enc" if activation == Activation::Gated => "b_gate",
        "b_enc" => "b_enc",
        "w_dec" => "W_dec",
        "b_dec" => "b_dec",
        "threshold" => "threshold",
        "r_mag" => "r_mag",
        "b_mag" => "b_mag",
        _ => "W_skip",
    }
}

/// A tensor's shape in the file.
fn shape_of(tensor: &str, shape: Shape) -> Vec<usize> {
    match tensor {
        "w_enc" => vec![shape.d_in, shape.d_sae],
        "w_dec" => vec![shape.d_sae, shape.d_out],
        "b_dec" => vec![shape.d_out],
        "w_skip" => vec![shape.d_out, shape.d_in],
        _ => vec![shape.d_sae],
    }
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
    let (base, transcoder, skip) = kind(&cfg.architecture);
    let activation = match base {
        "topk" => {
            let k = cfg.k.ok_or_else(|| bad("`k` is missing".into()))?;
            if !(1..=cfg.d_sae).contains(&k) {
                return Err(bad(format!("`k` is {k}, expected 1 to {} (`d_sae`)", cfg.d_sae)));
            }
            Activation::TopK { k }
        }
        "jumprelu" => Activation::JumpRelu,
        "standard" => Activation::Relu,
        "gated" => Activation::Gated,
        _ => {
            return Err(bad(format!(
                "`architecture` is `{}`, supported are topk, jumprelu, standard, gated and their \
                 transcoders",
                cfg.architecture
            )));
        }
    };
    let shape = Shape {
        d_in: cfg.d_in,
        d_out: if transcoder { cfg.d_out.unwrap_or(cfg.d_in) } else { cfg.d_in },
        d_sae: cfg.d_sae,
        threshold: activation == Activation::JumpRelu,
        gate: activation == Activation::Gated,
        skip,
    };
    let params = read_weights(&dir.join(WEIGHTS), shape, activation)?;
    let subtract_b_dec = cfg.apply_b_dec_to_input && !transcoder;
    let mut sae = Sae { params, activation, subtract_b_dec };
    // SAELens' default where the field is missing.
    if matches!(activation, Activation::TopK { .. })
        && cfg.rescale_acts_by_decoder_norm.unwrap_or(true)
    {
        fold_decoder_norm(&mut sae.params);
    }
    Ok(sae)
}

/// The architecture without what makes it a transcoder, whether it is one, and with a skip path.
fn kind(architecture: &str) -> (&str, bool, bool) {
    for (suffix, skip) in [(SKIP, true), (TRANSCODER, false)] {
        if architecture == suffix {
            return ("standard", true, skip);
        }
        if let Some(base) = architecture.strip_suffix(suffix).and_then(|s| s.strip_suffix('_')) {
            return (base, true, skip);
        }
    }
    (architecture, false, false)
}

fn read_weights(path: &Path, shape: Shape, activation: Activation) -> Result<Parameters, SaeError> {
    let map = format::map(path)?;
    let file = SafeTensors::deserialize(&map)
        .map_err(|e| SaeError::Format { path: path.to_owned(), reason: e.to_string() })?;
    let mut params = Parameters::zeros(shape);
    for (tensor, data) in NAMES.into_iter().zip(params.tensors_mut()) {
        if !data.is_empty() {
            *data = read_f32(path, &file, name_of(tensor, activation), &shape_of(tensor, shape))?;
        }
    }
    params.w_enc = transpose(&params.w_enc, shape.d_in, shape.d_sae);
    Ok(params)
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
        let row = |width: usize| latent * width..(latent + 1) * width;
        p.w_enc[row(p.d_in)].iter_mut().for_each(|w| *w *= norm);
        p.w_dec[row(p.d_out)].iter_mut().for_each(|w| *w /= norm);
        p.b_enc[latent] *= norm;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::{
        random::{Normal, Purpose},
        weights::tests::random_sae,
    };

    const ACTIVATIONS: [Activation; 4] =
        [Activation::TopK { k: 3 }, Activation::JumpRelu, Activation::Relu, Activation::Gated];

    fn about() -> About {
        About { frequency: vec![0.5; 9], ..About::default() }
    }

    #[test]
    fn every_architecture_comes_back() {
        for activation in ACTIVATIONS {
            let dir = tempfile::tempdir().unwrap();
            let sae = random_sae(5, 9, activation);
            save(dir.path(), &sae, about()).unwrap();
            assert_eq!(load(dir.path()).unwrap(), sae);
        }
    }

    #[test]
    fn transcoders_come_back() {
        for (activation, skip) in ACTIVATIONS.into_iter().flat_map(|a| [(a, false), (a, true)]) {
            let dir = tempfile::tempdir().unwrap();
            let shape = random_sae(5, 9, activation).params.shape();
            let params = Parameters::zeros(Shape { d_out: 7, skip, ..shape });
            let mut sae = Sae { params, activation, subtract_b_dec: false };
            let mut normal = Normal::new(3, Purpose::Decoder);
            sae.params.tensors_mut().into_iter().for_each(|t| normal.fill(t));
            let target = Some("blocks.0.hook_mlp_out".to_owned());
            save(dir.path(), &sae, About { target, ..about() }).unwrap();
            assert_eq!(load(dir.path()).unwrap(), sae);
        }
    }

    #[test]
    fn a_decoder_norm_in_the_configuration_is_folded() {
        let dir = tempfile::tempdir().unwrap();
        let mut sae = random_sae(5, 9, Activation::TopK { k: 9 });
        sae.params.w_dec.iter_mut().for_each(|w| *w *= 3.0);
        save(dir.path(), &sae, about()).unwrap();
        let path = dir.path().join(CFG);
        let text = fs_err::read_to_string(&path).unwrap().replace(
            "\"rescale_acts_by_decoder_norm\": false",
            "\"rescale_acts_by_decoder_norm\": true",
        );
        fs_err::write(&path, text).unwrap();
        let folded = load(dir.path()).unwrap();
        let x = [0.3, -0.2, 1.0, 0.7, -0.4];
        let (a, b) = (sae.encode(&x), folded.encode(&x));
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
        save(dir.path(), &random_sae(5, 9, Activation::Relu), about()).unwrap();
        let path = dir.path().join(CFG);
        let good = fs_err::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"standard\"", "\"lorsa\""),
            ("\"normalize_activations\": \"none\"", "\"normalize_activations\": \"layer_norm\""),
            ("\"d_sae\": 9", "\"d_sae\": 8"),
        ] {
            fs_err::write(&path, good.replace(from, to)).unwrap();
            assert!(load(dir.path()).is_err(), "{to}");
        }
    }
}
