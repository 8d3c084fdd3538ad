//! SAE files on disk: one reader for all formats, and writers for three.
//!
//! | format | files | module |
//! |---|---|---|
//! | SAELens | `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors` | [`saelens`] |
//! | sparsify | `cfg.json`, `sae.safetensors` | [`sparsify`] |
//! | `dictionary_learning` | `ae.pt`, `config.json` | [`dictionary_learning`] |
//! | Gemma Scope | `params.npz` | [`gemma_scope`] |
//! | OpenAI | `.pt` | [`openai`] |
//! | SAINT | `.pt` | [`saint`] |
//!
//! [`read`] tells them apart. Containers are in `torch` (`.pt`, read by [`crate::torch`]) and `npz`;
//! `tensors` and `fields` check what is taken out of them.

pub(in crate::sae) mod adapt;
pub mod dictionary_learning;
mod fields;
pub mod gemma_scope;
mod npz;
pub mod openai;
pub mod saelens;
pub mod saint;
pub mod sparsify;
mod tensors;
#[cfg(test)]
mod tests;
mod torch;

use std::path::Path;

use clap::{Args, ValueEnum};

use self::saelens::About;
use super::{Sae, SaeError};
use crate::stage::Failure;

/// A format that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Format {
    /// A SAELens directory, of version 6 or before.
    #[value(name = "saelens")]
    SaeLens,
    /// A hook point's directory of a sparsify run.
    Sparsify,
    /// A trainer's directory of dictionary_learning, or its `ae.pt`.
    DictionaryLearning,
    /// Gemma Scope's `params.npz`, or its directory.
    GemmaScope,
    /// A `.pt` of OpenAI's sparse_autoencoder.
    #[value(name = "openai")]
    OpenAi,
    /// A `.pt` of SAINT.
    Saint,
}

/// A format that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Target {
    /// A SAELens 6 directory.
    #[value(name = "saelens")]
    SaeLens,
    /// A hook point's directory of sparsify.
    Sparsify,
    /// A trainer's directory of dictionary_learning.
    DictionaryLearning,
}

impl From<Target> for Format {
    fn from(target: Target) -> Self {
        match target {
            Target::SaeLens => Self::SaeLens,
            Target::Sparsify => Self::Sparsify,
            Target::DictionaryLearning => Self::DictionaryLearning,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// What a caller knows about a file.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Expected {
    /// Format of the SAE's files [default: what they are]
    #[arg(long, env, value_name = "FORMAT")]
    pub sae_from_format: Option<Format>,
    /// Active latents a row, for files that do not hold it (SAINT); others must agree
    #[arg(long, env, value_name = "K")]
    pub top_k: Option<usize>,
}

impl Expected {
    /// [`read`]s the file or directory that `variable` names.
    ///
    /// # Errors
    /// A path that does not exist; as [`read`].
    pub fn read_named(self, variable: &str, path: &Path) -> Result<Loaded, Failure> {
        if !path.exists() {
            let what = format!("{variable} names `{}`, which does not exist", path.display());
            return Err(Failure::usage(what).hint("name a directory or file that holds an SAE"));
        }
        Ok(read(path, self)?)
    }
}

/// An SAE and all that its files say.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Weights and activation.
    pub sae: Sae,
    /// What is beside the weights.
    pub about: About,
    /// The files' format.
    pub format: Format,
    /// What the reader of a conversion should know, a sentence each.
    pub notes: Vec<String>,
}

/// Reads an SAE of any format from its directory or file.
///
/// # Errors
/// [`SaeError`] naming file and field or tensor: what is missing, foreign, of a wrong shape or type,
/// or would change what the SAE computes and is not supported.
pub fn read(path: &Path, expected: Expected) -> Result<Loaded, SaeError> {
    let format = match expected.sae_from_format {
        Some(format) => format,
        None => detect(path)?,
    };
    let mut loaded = match format {
        Format::SaeLens => saelens::read(directory(path)),
        Format::Sparsify => sparsify::read(directory(path)),
        Format::DictionaryLearning => dictionary_learning::read(path),
        Format::GemmaScope => gemma_scope::read(path),
        Format::OpenAi => openai::read(path),
        Format::Saint => saint::read(path, expected.top_k),
    }?;
    if let (Some(wanted), super::Activation::TopK { k }) = (expected.top_k, loaded.sae.activation)
        && wanted != k
    {
        return Err(SaeError::Field {
            path: path.to_owned(),
            field: "`k`".into(),
            found: k.to_string(),
            expected: format!("{wanted}, which TOP_K says"),
            hint: "leave TOP_K unset where the file holds k",
        });
    }
    // Zero widths leave nothing to encode, and divisions by them panic.
    let p = &loaded.sae.params;
    if p.d_in == 0 || p.d_out == 0 || p.d_sae == 0 {
        let reason = format!("d_in is {}, d_out {}, d_sae {}", p.d_in, p.d_out, p.d_sae);
        return Err(SaeError::Format { path: path.to_owned(), reason });
    }
    adapt::clamp_thresholds(&mut loaded.sae);
    Ok(loaded)
}

/// Whether a format has a place for all that an SAE computes.
///
/// # Errors
/// [`SaeError::Inexpressible`] naming what it has no place for.
pub fn require(target: Target, sae: &Sae, about: &About) -> Result<(), SaeError> {
    match target {
        Target::SaeLens => saelens::require(sae, about),
        Target::Sparsify => sparsify::require(sae),
        Target::DictionaryLearning => dictionary_learning::require(sae, about),
    }
}

/// Writes an SAE into a directory; what a reader of it should know is returned.
///
/// # Errors
/// As [`require`]; any I/O error, naming the path.
pub fn write(
    dir: &Path,
    target: Target,
    sae: &Sae,
    about: &About,
) -> Result<Vec<String>, SaeError> {
    require(target, sae, about)?;
    match target {
        Target::SaeLens => saelens::write(dir, sae, about),
        Target::Sparsify => sparsify::write(dir, sae, about),
        Target::DictionaryLearning => dictionary_learning::write(dir, sae, about),
    }
}

/// The directory that a path leads to: itself, or that of a file.
fn directory(path: &Path) -> &Path {
    if path.is_file() { path.parent().unwrap_or(path) } else { path }
}

/// Which format a path's files have.
fn detect(path: &Path) -> Result<Format, SaeError> {
    let dir = directory(path);
    let is_dir = fs_err::metadata(path)?.is_dir();
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let is = |file: &str, extensions: &[&str]| {
        dir.join(file).is_file() && (is_dir || extensions.contains(&extension))
    };
    if is(saelens::WEIGHTS, &["json", "safetensors"]) {
        Ok(Format::SaeLens)
    } else if is(sparsify::WEIGHTS, &["json", "safetensors"]) {
        Ok(Format::Sparsify)
    } else if is_dir && dir.join(dictionary_learning::WEIGHTS).is_file() {
        Ok(Format::DictionaryLearning)
    } else if is_dir && dir.join(gemma_scope::WEIGHTS).is_file() || !is_dir && extension == "npz" {
        Ok(Format::GemmaScope)
    } else if !is_dir && extension == "pt" {
        let file = torch::open(path)?;
        Ok(match () {
            () if file.has("pre_bias") => Format::OpenAi,
            () if file.has("b_pre") => Format::Saint,
            () => Format::DictionaryLearning,
        })
    } else {
        Err(SaeError::Field {
            path: path.to_owned(),
            field: "the format".into(),
            found: "none that is known".into(),
            expected: "a directory of SAELens, sparsify or dictionary_learning, Gemma Scope's \
                       params.npz, or a .pt of OpenAI or SAINT"
                .into(),
            hint: "name the directory that holds the weights itself",
        })
    }
}
