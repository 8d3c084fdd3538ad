//! The model that a capture was made with, found again.

use std::path::PathBuf;

use candle_core::DType;
use clap::{Args, ValueEnum};

use super::{CaptureMeta, Precision};
use crate::{
    model::ModelInfo,
    stage::{Failure, Result},
    text::{Hub, HubArgs, Tokenizer},
};

/// Where the model is, if not where the capture found it.
#[derive(Args, Clone, Debug)]
pub struct CapturedModelArgs {
    /// Hub id or folder of the model [default: the capture's]
    #[arg(long, env, value_name = "ID", help_heading = "With the model")]
    pub model_id: Option<String>,
    /// Branch, tag or commit of the model on the hub [default: the capture's commit]
    #[arg(long, env, help_heading = "With the model")]
    pub revision: Option<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// A capture's model on the local disk, with its tokenizer.
#[derive(Clone, Debug)]
pub struct CapturedModel {
    /// Hub id or folder.
    pub id: String,
    /// The folder with its files.
    pub dir: PathBuf,
    /// Its description.
    pub info: ModelInfo,
    /// Its tokenizer, which adds special tokens where the capture's did.
    pub tokenizer: Tokenizer,
    /// What the capture computed in.
    pub precision: DType,
}

impl CapturedModel {
    /// Finds the model, on the hub if need be; nothing but its tokenizer is loaded.
    ///
    /// # Errors
    /// A model that cannot be found or is not the capture's.
    pub fn find(capture: &CaptureMeta, args: &CapturedModelArgs) -> Result<Self> {
        let id = args.model_id.as_deref().unwrap_or(&capture.model.id);
        let revision = args.revision.as_deref().or(capture.model.commit()).unwrap_or("main");
        let dir = Hub::new(&args.hub).model_dir(id, revision, true)?.dir;
        let info = ModelInfo::from_dir(&dir)?;
        let setting = |key| capture.config.value(key);
        let chat = setting("prompt_template") == Some("chat");
        let tokenizer = Tokenizer::load(&dir)?.adding_special(!chat);
        must_be_the_captures(capture, id, &tokenizer)?;
        let precision = setting("dtype").and_then(|name| Precision::from_str(name, true).ok());
        let precision = precision.unwrap_or(Precision::F32).dtype();
        Ok(Self { id: id.to_owned(), dir, info, tokenizer, precision })
    }
}

/// Other tokens would be other rows.
fn must_be_the_captures(capture: &CaptureMeta, id: &str, tokenizer: &Tokenizer) -> Result<()> {
    if tokenizer.fingerprint() == capture.model.tokenizer {
        return Ok(());
    }
    let what = format!(
        "tokenizer.json of `{id}` is not that of `{}` (revision {}), with which run `{}` was captured",
        capture.model.id, capture.model.revision, capture.run_id
    );
    Err(Failure::input(what).hint("set MODEL_ID and REVISION to the capture's model"))
}
