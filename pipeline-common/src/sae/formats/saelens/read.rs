//! Reading a SAELens directory of any version.

use std::path::Path;

use serde_json::{Map, Value};

use super::{About, CFG, LOG_FLOOR, SKIP, SPARSITY, TRANSCODER, WEIGHTS, name_of, shape_of};
use crate::sae::{
    Activation, Parameters, RowNorm, Sae, SaeError,
    formats::{Expected, Format, Loaded, adapt, fields::Fields, tensors::Tensors},
    parameters::{NAMES, Shape},
};

/// What versions before 6 keep beside the configuration of the SAE, and our names of it.
const FLAT: [(&str, &[&str]); 8] = [
    ("model_name", &["model_name"]),
    ("hook_name", &["hook_name", "hook_point"]),
    ("hook_layer", &["hook_layer", "hook_point_layer"]),
    ("hook_head_index", &["hook_head_index", "hook_point_head_index"]),
    ("context_size", &["context_size"]),
    ("prepend_bos", &["prepend_bos"]),
    ("dataset_path", &["dataset_path"]),
    ("sae_lens_training_version", &["sae_lens_training_version"]),
];

/// Reads an SAE alone.
///
/// # Errors
/// As [`read`].
pub fn load(dir: &Path) -> Result<Sae, SaeError> {
    let expected = Expected { sae_from_format: Some(Format::SaeLens), top_k: None };
    Ok(crate::sae::formats::read(dir, expected)?.sae)
}

/// Reads an SAE's directory.
///
/// # Errors
/// [`SaeError`] naming file, field or tensor, for anything that would change what it computes.
pub fn read(dir: &Path) -> Result<Loaded, SaeError> {
    let cfg = Fields::read(&dir.join(CFG))?;
    let mut notes = vec![];
    let row_norm = row_norm(&cfg, &mut notes)?;
    let architecture = architecture(&cfg)?;
    let (base, transcoder, skip) = kind(&architecture);
    let (d_in, d_sae) = (cfg.required("d_in")?, cfg.required("d_sae")?);
    let activation = activation(&cfg, base, d_sae)?;
    let d_out = if transcoder { cfg.optional("d_out")?.unwrap_or(d_in) } else { d_in };
    let shape = Shape {
        d_in,
        d_out,
        d_sae,
        threshold: activation == Activation::JumpRelu,
        gate: activation == Activation::Gated,
        skip,
    };
    let params = weights(&dir.join(WEIGHTS), shape, activation, &mut notes)?;
    let subtract = cfg.optional("apply_b_dec_to_input")?.unwrap_or(true) && !transcoder;
    if transcoder && row_norm.is_some() {
        let hint = "only autoencoders with it can be read";
        return Err(cfg.refuse("normalize_activations", "layer_norm", "`none`", hint));
    }
    let mut sae = Sae { params, activation, subtract_b_dec: subtract, row_norm };
    if base.contains("topk") && cfg.optional("rescale_acts_by_decoder_norm")?.unwrap_or(false) {
        adapt::fold_decoder_norm(&mut sae);
    }
    let mut about = about(dir, &cfg, d_sae)?;
    if transcoder && about.target.is_none() {
        about.target = Some("unknown".into());
    }
    Ok(Loaded { sae, about, format: Format::SaeLens, notes })
}

/// What happens to rows before encoding; refuses what cannot be done.
fn row_norm(cfg: &Fields, notes: &mut Vec<String>) -> Result<Option<RowNorm>, SaeError> {
    let hook: Option<String> = cfg.first(&["hook_name", "hook_point"])?;
    let heads = hook.is_some_and(|hook| hook.ends_with("hook_z"));
    let reshape = cfg.optional("reshape_activations")?;
    let reshape: String = reshape.unwrap_or(if heads { "hook_z" } else { "none" }.into());
    if reshape != "none" {
        let hint = "rows of attention heads would have to be joined first";
        return Err(cfg.refuse("reshape_activations", reshape, "`none`", hint));
    }
    if cfg.optional("finetuning_scaling_factor")?.unwrap_or(false) {
        let hint = "SAELens scales the latents of these; their factors are not read";
        return Err(cfg.refuse("finetuning_scaling_factor", "true", "false", hint));
    }
    let how = match cfg.optional::<Value>("normalize_activations")? {
        None | Some(Value::Bool(false)) => "none".to_owned(),
        Some(Value::Bool(true)) => "expected_average_only_in".to_owned(),
        Some(_) => cfg.required("normalize_activations")?,
    };
    match how.as_str() {
        "none" => Ok(None),
        "layer_norm" => Ok(Some(RowNorm::LAYER_NORM)),
        "expected_average_only_in" => {
            notes.push(
                "`normalize_activations` is `expected_average_only_in`: the scale is taken as \
                 folded into the weights, as SAELens itself does on encoding"
                    .into(),
            );
            Ok(None)
        }
        other => Err(cfg.refuse(
            "normalize_activations",
            other,
            "`none`, `layer_norm` or `expected_average_only_in`",
            "rows would have to be scaled one by one",
        )),
    }
}

/// The architecture's name; versions before 6 say `standard` for TopK also.
fn architecture(cfg: &Fields) -> Result<String, SaeError> {
    let name = cfg.optional("architecture")?.unwrap_or_else(|| "standard".to_owned());
    match cfg.first::<String>(&["activation_fn_str", "activation_fn"])?.as_deref() {
        None | Some("relu") => Ok(name),
        Some("topk") if name == "standard" || name == "topk" => Ok("topk".into()),
        Some(other) => {
            let hint = "the activation differs from the architecture's own";
            Err(cfg.refuse("activation_fn", other, "`relu` or `topk`", hint))
        }
    }
}

fn activation(cfg: &Fields, base: &str, d_sae: usize) -> Result<Activation, SaeError> {
    match base {
        "topk" => {
            let k = cfg.section("activation_fn_kwargs")?.optional("k")?;
            let k = k.map_or_else(|| cfg.required("k"), Ok)?;
            Ok(Activation::TopK { k: cfg.checked_k(k, d_sae)? })
        }
        // Trained on whole batches; on rows alone their latents have one threshold.
        "jumprelu" | "batchtopk" | "matryoshka_batchtopk" => Ok(Activation::JumpRelu),
        "standard" => Ok(Activation::Relu),
        "gated" => Ok(Activation::Gated),
        other => {
            let expected = "topk, batchtopk, matryoshka_batchtopk, jumprelu, standard, gated or their transcoders";
            Err(cfg.refuse("architecture", other, expected, "it computes something else"))
        }
    }
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

fn weights(
    path: &Path,
    shape: Shape,
    activation: Activation,
    notes: &mut Vec<String>,
) -> Result<Parameters, SaeError> {
    let mut file = Tensors::safetensors(path)?;
    // The header bounds what is allocated, whatever the configuration says.
    if file.matrix_shape("W_enc")? != (shape.d_in, shape.d_sae) {
        file.take("W_enc", &shape_of("w_enc", shape))?;
    }
    let mut params = Parameters {
        d_in: shape.d_in,
        d_out: shape.d_out,
        d_sae: shape.d_sae,
        ..Parameters::default()
    };
    let wanted = [true, true, true, true, shape.threshold, shape.gate, shape.gate, shape.skip];
    for ((tensor, wanted), data) in NAMES.into_iter().zip(wanted).zip(params.tensors_mut()) {
        let (name, axes) = (name_of(tensor, activation), shape_of(tensor, shape));
        *data = match tensor {
            _ if !wanted => continue,
            "w_enc" => file.take_transposed(name, [shape.d_in, shape.d_sae])?,
            "threshold" if file.has("log_threshold") => {
                file.take("log_threshold", &axes)?.iter().map(|t| t.exp()).collect()
            }
            "threshold" if file.has("topk_threshold") => {
                vec![file.take_number("topk_threshold")? as f32; shape.d_sae]
            }
            _ => file.take(name, &axes)?,
        };
    }
    if file.has("scaling_factor") {
        let factors = file.take("scaling_factor", &[shape.d_sae])?;
        if factors.iter().any(|factor| *factor != 1.0) {
            return Err(file.bad("`scaling_factor` is not 1 everywhere, which is not read".into()));
        }
    }
    notes.extend(file.finish(&[])?);
    Ok(params)
}

/// What the files say besides.
fn about(dir: &Path, cfg: &Fields, d_sae: usize) -> Result<About, SaeError> {
    let mut metadata: Map<String, Value> = cfg.optional("metadata")?.unwrap_or_default();
    for (name, names) in FLAT {
        if let Some(value) = cfg.first(names)?
            && !metadata.contains_key(name)
        {
            metadata.insert(name.into(), value);
        }
    }
    let in_metadata = metadata.get("hook_name_out").and_then(Value::as_str).map(str::to_owned);
    let target = cfg.optional("hook_name_out")?.or(in_metadata);
    let path = dir.join(SPARSITY);
    let frequency = if path.is_file() {
        let log = Tensors::safetensors(&path)?.take("sparsity", &[d_sae])?;
        log.iter().map(|x| (10_f64.powf((*x).into()) - LOG_FLOOR).max(0.0)).collect()
    } else {
        vec![]
    };
    Ok(About { metadata, target, frequency })
}
