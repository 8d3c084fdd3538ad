//! A trainer's directory of `dictionary_learning`: `ae.pt`, `config.json`.
//!
//! | class | tensors |
//! |---|---|
//! | `AutoEncoder` | `bias` `[d]`, `encoder.weight` `[L, d]`, `encoder.bias` `[L]`, `decoder.weight` `[d, L]` |
//! | `AutoEncoderNew` | `decoder.bias` `[d]` in place of `bias`; the input is taken as it is |
//! | `AutoEncoderTopK`, `BatchTopKSAE` | `b_dec` in place of `bias`; numbers `k`, `threshold` |
//! | `MatryoshkaBatchTopKSAE` | `W_enc` `[d, L]`, `b_enc`, `W_dec` `[L, d]`, `b_dec`, `k`, `threshold`, `group_sizes` |
//! | `JumpReluAutoEncoder` | the same matrices, `threshold` `[L]`; the input is taken as it is |
//! | `GatedAutoEncoder` | `decoder_bias`, `r_mag`, `gate_bias`, `mag_bias`, `encoder.weight`, `decoder.weight` |
//!
//! An `ae.pt` whose tensors do not tell its class needs the `config.json` beside it. BatchTopK and
//! Matryoshka have one threshold for all latents, as their `encode` uses it.

use std::{borrow::Cow, path::Path};

use serde_json::{Map, Value, json};

use super::{
    Format, Loaded, adapt,
    fields::Fields,
    saelens::About,
    tensors::Tensors,
    torch::{self, Data, Saved},
};
use crate::{
    sae::{Activation, Parameters, Sae, SaeError, parameters::transpose},
    stage::atomic,
};

/// The weights' file name.
pub const WEIGHTS: &str = "ae.pt";
/// The configuration's file name.
pub const CONFIG: &str = "config.json";

/// Classes of dictionaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    AutoEncoder,
    AutoEncoderNew,
    TopK,
    BatchTopK,
    Matryoshka,
    JumpRelu,
    Gated,
}

const CLASSES: [(&str, Class); 7] = [
    ("AutoEncoder", Class::AutoEncoder),
    ("AutoEncoderNew", Class::AutoEncoderNew),
    ("AutoEncoderTopK", Class::TopK),
    ("BatchTopKSAE", Class::BatchTopK),
    ("MatryoshkaBatchTopKSAE", Class::Matryoshka),
    ("JumpReluAutoEncoder", Class::JumpRelu),
    ("GatedAutoEncoder", Class::Gated),
];

impl Class {
    /// The one of an SAE.
    fn of(sae: &Sae) -> Self {
        match sae.activation {
            Activation::TopK { .. } => Self::TopK,
            Activation::JumpRelu => Self::JumpRelu,
            Activation::Relu if sae.subtract_b_dec => Self::AutoEncoder,
            Activation::Relu => Self::AutoEncoderNew,
            Activation::Gated => Self::Gated,
        }
    }

    fn name(self) -> &'static str {
        CLASSES.iter().find(|(_, class)| *class == self).map_or("", |(name, _)| name)
    }

    /// Whether `b_dec` is subtracted from the input.
    fn subtracts(self) -> bool {
        !matches!(self, Self::AutoEncoderNew | Self::JumpRelu)
    }

    /// Whether the matrices are `W_enc` `[d, L]` and `W_dec` `[L, d]`, not linear layers.
    fn has_matrices(self) -> bool {
        matches!(self, Self::Matryoshka | Self::JumpRelu)
    }

    /// The names of the biases of encoder and decoder.
    fn biases(self) -> (&'static str, &'static str) {
        match self {
            Self::AutoEncoder => ("encoder.bias", "bias"),
            Self::AutoEncoderNew => ("encoder.bias", "decoder.bias"),
            Self::TopK | Self::BatchTopK => ("encoder.bias", "b_dec"),
            Self::Matryoshka | Self::JumpRelu => ("b_enc", "b_dec"),
            Self::Gated => ("gate_bias", "decoder_bias"),
        }
    }
}

/// Reads a trainer's directory or its `ae.pt`.
///
/// # Errors
/// [`SaeError`] naming file, field or tensor.
pub fn read(path: &Path) -> Result<Loaded, SaeError> {
    let path = if path.is_dir() { &path.join(WEIGHTS) } else { path };
    let beside = path.with_file_name(CONFIG);
    let config = beside.is_file().then(|| Fields::read(&beside)).transpose()?;
    let trainer = config.as_ref().map(|config| config.section("trainer")).transpose()?;
    let mut file = torch::open(path)?;
    let class = class(path, &file, trainer.as_ref())?;
    let mut params = matrices(&mut file, class)?;
    let d_sae = params.d_sae;
    if let Some(trainer) = &trainer {
        for (field, found) in [("activation_dim", params.d_in), ("dict_size", d_sae)] {
            let expected: Option<usize> = trainer.optional(field)?;
            if expected.is_some_and(|expected| expected != found) {
                let hint = "the configuration belongs to other weights";
                let expected_here = format!("{found}, as in `{}`", path.display());
                return Err(trainer.refuse(field, expected.unwrap_or(0), &expected_here, hint));
            }
        }
    }
    let mut notes = vec![];
    let activation = match class {
        Class::AutoEncoder | Class::AutoEncoderNew => Activation::Relu,
        Class::Gated => {
            params.r_mag = file.take("r_mag", &[d_sae])?;
            params.b_mag = file.take("mag_bias", &[d_sae])?;
            Activation::Gated
        }
        Class::TopK => {
            let k = match (&trainer, file.has("k")) {
                (Some(trainer), false) => trainer.required::<f64>("k")?,
                _ => file.take_number("k")?,
            };
            Activation::TopK { k: adapt::whole_k(path, k, d_sae)? }
        }
        Class::JumpRelu => {
            params.threshold = file.take("threshold", &[d_sae])?;
            Activation::JumpRelu
        }
        Class::BatchTopK | Class::Matryoshka => {
            params.threshold = vec![file.take_number("threshold")? as f32; d_sae];
            notes.push(one_threshold(params.threshold[0]));
            Activation::JumpRelu
        }
    };
    let ignored: &[&str] = match class {
        // Used only where a caller asks for it.
        Class::TopK => &["threshold"],
        Class::BatchTopK => &["k"],
        Class::Matryoshka => &["k", "group_sizes"],
        _ => &[],
    };
    notes.extend(file.finish(ignored)?);
    let sae = Sae { subtract_b_dec: class.subtracts(), ..Sae::new(params, activation) };
    let about = about(config.as_ref(), trainer.as_ref())?;
    Ok(Loaded { sae, about, format: Format::DictionaryLearning, notes })
}

fn one_threshold(threshold: f32) -> String {
    if threshold < 0.0 {
        "its threshold was never set: every positive latent is active".into()
    } else {
        format!("latents above the running threshold {threshold} are active, whatever their number")
    }
}

/// The class that the configuration names, or else the tensors tell.
fn class(path: &Path, file: &Tensors, trainer: Option<&Fields>) -> Result<Class, SaeError> {
    let named: Option<String> = trainer.map(|t| t.optional("dict_class")).transpose()?.flatten();
    if let (Some(trainer), Some(name)) = (trainer, &named) {
        let known = CLASSES.iter().find(|(known, _)| known == name);
        let names: Vec<&str> = CLASSES.iter().map(|(name, _)| *name).collect();
        let refuse =
            || trainer.refuse("dict_class", name, &names.join(", "), "it computes something else");
        return known.map(|(_, class)| *class).ok_or_else(refuse);
    }
    let telling = [
        ("r_mag", Class::Gated),
        ("group_sizes", Class::Matryoshka),
        ("W_enc", Class::JumpRelu),
        ("bias", Class::AutoEncoder),
        ("decoder.bias", Class::AutoEncoderNew),
    ];
    let told = telling.into_iter().find(|(name, _)| file.has(name));
    told.map(|(_, class)| class).ok_or_else(|| SaeError::Field {
        path: path.to_owned(),
        field: "the class".into(),
        found: "not told by the tensors".into(),
        expected: format!("`trainer.dict_class` in a {CONFIG} beside it"),
        hint: "AutoEncoderTopK and BatchTopKSAE have the same tensors; put the trainer's \
               config.json beside the file",
    })
}

fn matrices(file: &mut Tensors, class: Class) -> Result<Parameters, SaeError> {
    let (b_enc, b_dec) = class.biases();
    let (d_in, d_sae, w_enc, w_dec);
    if class.has_matrices() {
        (d_in, d_sae) = file.matrix_shape("W_enc")?;
        w_enc = file.take_transposed("W_enc", [d_in, d_sae])?;
        w_dec = file.take("W_dec", &[d_sae, d_in])?;
    } else {
        (d_sae, d_in) = file.matrix_shape("encoder.weight")?;
        w_enc = file.take("encoder.weight", &[d_sae, d_in])?;
        w_dec = file.take_transposed("decoder.weight", [d_in, d_sae])?;
    }
    Ok(Parameters {
        d_in,
        d_out: d_in,
        d_sae,
        w_enc,
        b_enc: file.take(b_enc, &[d_sae])?,
        w_dec,
        b_dec: file.take(b_dec, &[d_in])?,
        ..Parameters::default()
    })
}

/// Names of model and module; our own metadata where we wrote it.
fn about(config: Option<&Fields>, trainer: Option<&Fields>) -> Result<About, SaeError> {
    let (Some(config), Some(trainer)) = (config, trainer) else { return Ok(About::default()) };
    let mut metadata: Map<String, Value> = config.optional("metadata")?.unwrap_or_default();
    for (ours, theirs) in [("model_name", "lm_name"), ("hook_name", "submodule_name")] {
        if let Some(value) = trainer.optional(theirs)?
            && !metadata.contains_key(ours)
        {
            metadata.insert(ours.into(), value);
        }
    }
    Ok(About { metadata, ..About::default() })
}

/// Refuses what this format has no place for.
///
/// # Errors
/// [`SaeError::Inexpressible`] for transcoders, standardised rows and outputs of another width.
pub fn require(sae: &Sae, about: &About) -> Result<(), SaeError> {
    adapt::require_plain("dictionary_learning", sae)?;
    if about.target.is_some() || !sae.params.w_skip.is_empty() {
        let what = "a transcoder or a linear path around the latents".into();
        return Err(SaeError::Inexpressible { target: "dictionary_learning", what });
    }
    Ok(())
}

/// Writes a trainer's directory of what [`require`] lets pass; returns what differs where
/// `dictionary_learning` uses it.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write(dir: &Path, sae: &Sae, about: &About) -> Result<Vec<String>, SaeError> {
    let class = Class::of(sae);
    let sae = adapt::subtracting(sae, class.subtracts());
    fs_err::create_dir_all(dir)?;
    torch::write(&dir.join(WEIGHTS), &tensors(&sae, class))?;
    let p = &sae.params;
    let k = if let Activation::TopK { k } = sae.activation { Some(k) } else { None };
    let text = |name: &str| about.metadata.get(name).cloned().unwrap_or_default();
    let config = json!({
        "trainer": {
            "dict_class": class.name(),
            "activation_dim": p.d_in,
            "dict_size": p.d_sae,
            "k": k,
            "layer": text("hook_layer"),
            "lm_name": text("model_name"),
            "submodule_name": text("hook_name"),
        },
        "buffer": { "d_submodule": p.d_in, "ctx_len": text("context_size") },
        "metadata": about.metadata,
    });
    atomic::write_json(&dir.join(CONFIG), &config)?;
    let mut notes = adapt::without_frequency(about);
    if class == Class::AutoEncoder && !adapt::has_unit_decoder(p) {
        notes.push(
            "decoder rows do not have norm 1: AutoEncoder.from_pretrained scales latents by their \
             norms unless normalize_decoder=False"
                .into(),
        );
    }
    Ok(notes)
}

fn tensors(sae: &Sae, class: Class) -> Vec<Saved<'_>> {
    let p = &sae.params;
    let (d, l) = (p.d_in, p.d_sae);
    let borrowed = |name, shape: &[usize], data| {
        let data = Data::F32(Cow::Borrowed(data));
        Saved { name, shape: shape.to_vec(), data }
    };
    let transposed = |name, shape: [usize; 2], data| {
        let data = Data::F32(Cow::Owned(transpose(data, shape[1], shape[0])));
        Saved { name, shape: shape.to_vec(), data }
    };
    let (b_enc, b_dec) = class.biases();
    let mut all = vec![borrowed(b_enc, &[l], &p.b_enc[..]), borrowed(b_dec, &[d], &p.b_dec[..])];
    if class.has_matrices() {
        all.push(transposed("W_enc", [d, l], &p.w_enc[..]));
        all.push(borrowed("W_dec", &[l, d], &p.w_dec));
    } else {
        all.push(borrowed("encoder.weight", &[l, d], &p.w_enc));
        all.push(transposed("decoder.weight", [d, l], &p.w_dec));
    }
    match sae.activation {
        Activation::TopK { k } => {
            let k = Data::I32(i32::try_from(k).unwrap_or(i32::MAX));
            all.push(Saved { name: "k", shape: vec![], data: k });
            // Their mark of a threshold that was never set.
            let unset = Data::F32(Cow::Owned(vec![-1.0]));
            all.push(Saved { name: "threshold", shape: vec![], data: unset });
        }
        Activation::JumpRelu => all.push(borrowed("threshold", &[l], &p.threshold)),
        Activation::Gated => {
            all.push(borrowed("r_mag", &[l], &p.r_mag));
            all.push(borrowed("mag_bias", &[l], &p.b_mag));
        }
        Activation::Relu => {}
    }
    all
}
