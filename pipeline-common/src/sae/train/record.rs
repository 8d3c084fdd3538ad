//! What a training run says about itself: how it was begun, and what came of it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    sae::{SaeError, history::Validation},
    stage::{Context, Failure, ResolvedConfig, Result, atomic, meta},
};

/// Version of a training run's `meta.json`.
pub const SCHEMA: u32 = 1;
/// What a run was begun with.
const CLAIM: &str = "config.json";

/// What a training run says about itself, in `meta.json`; written last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainingMeta {
    /// Version of this file.
    pub schema: u32,
    /// The run's name.
    pub run_id: String,
    /// The capture it was trained on.
    pub capture_run_id: String,
    /// Hugging Face module path of the hook.
    pub hook: String,
    /// Of a transcoder, that of the hook whose rows it reconstructs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_hook: Option<String>,
    /// Width of the input.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Steps made.
    pub steps: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// Stored rows were multiplied by this in training; it is folded into the weights, and so is
    /// the capture's ACTIVATION_SCALE.
    pub input_scale: f32,
    /// Figures on held-out rows, in units of the scaled input.
    pub validation: Validation,
    /// Every setting that decides the result, with its origin.
    pub config: ResolvedConfig,
}

impl TrainingMeta {
    /// Reads a run's file; `None` where there is none, that is, before the training is complete.
    ///
    /// # Errors
    /// As [`meta::read`].
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        meta::read(run_dir, SCHEMA, "a training run")
    }

    /// Reads the file of a run that must be complete.
    ///
    /// # Errors
    /// An input failure if it is missing; as [`meta::read`].
    pub fn read_complete(run_dir: &Path) -> Result<Self> {
        Self::read(run_dir)?.ok_or_else(|| {
            Failure::input(format!("training run `{}` is not complete", run_dir.display()))
                .hint("run 02_train_sae again until it exits with 0, or set SAE_RUN_ID")
        })
    }
}

/// What a training run was begun with, in `config.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Claim {
    /// The capture.
    pub capture_run_id: String,
    /// blake3 of the capture's manifest, which has the digest of every row.
    pub capture_manifest: String,
    /// The hook.
    pub hook: String,
    /// A transcoder's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_hook: Option<String>,
    /// The settings.
    pub config: ResolvedConfig,
}

impl Claim {
    /// Reads a run's file; `None` where there is none.
    ///
    /// # Errors
    /// [`SaeError::Format`] for a file that is not one; I/O errors.
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        let path = run_dir.join(CLAIM);
        let bytes = match fs_err::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let claim = serde_json::from_slice(&bytes)
            .map_err(|e| SaeError::Format { path, reason: e.to_string() })?;
        Ok(Some(claim))
    }

    /// Records input and settings at the first start and compares them at every later one:
    /// without RUN_ID a newer capture may have taken the place of the first.
    ///
    /// # Errors
    /// A usage failure if anything differs; I/O errors.
    pub fn agree(&self, context: &Context, run_dir: &Path, run_id: &str) -> Result<()> {
        let Some(stored) = Self::read(run_dir)? else {
            return Ok(atomic::write_json(&run_dir.join(CLAIM), self)?);
        };
        if stored.subject() != self.subject() {
            let what = format!(
                "training run `{run_id}` was begun on {}, now it is {}",
                stored.subject(),
                self.subject()
            );
            return Err(Failure::usage(what).hint(format!(
                "set RUN_ID={}, or give SAE_RUN_ID a new name",
                stored.capture_run_id
            )));
        }
        if stored.capture_manifest != self.capture_manifest {
            let what = format!(
                "training run `{run_id}` was begun on other rows: capture `{}` was made anew since",
                stored.capture_run_id
            );
            return Err(Failure::usage(what).hint("give SAE_RUN_ID a new name"));
        }
        context.config.must_match(&stored.config, run_id, "SAE_RUN_ID")
    }

    fn subject(&self) -> String {
        let target = self.target_hook.as_ref().map_or(String::new(), |hook| format!(" to {hook}"));
        format!("hook {}{target} of capture `{}`", self.hook, self.capture_run_id)
    }
}
