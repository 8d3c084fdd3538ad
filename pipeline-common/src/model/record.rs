//! What a run says about the model it was made with.

use serde::{Deserialize, Serialize};

use super::ModelInfo;
use crate::text::{Snapshot, Tokenizer};

/// The revision of a folder.
const LOCAL: &str = "local";

/// A model, exactly enough to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// MODEL_ID as given.
    pub id: String,
    /// The commit it resolved to, or `local`.
    pub revision: String,
    /// `LlamaForCausalLM`, for instance.
    pub architecture: String,
    /// blake3 of tokenizer.json.
    pub tokenizer: String,
}

impl ModelRecord {
    /// The model called `id`, as it was found.
    pub fn new(id: &str, snapshot: &Snapshot, info: &ModelInfo, tokenizer: &Tokenizer) -> Self {
        Self {
            id: id.to_owned(),
            revision: snapshot.commit.clone().unwrap_or_else(|| LOCAL.into()),
            architecture: info.architecture.clone(),
            tokenizer: tokenizer.fingerprint(),
        }
    }

    /// The commit on the hub; none for a folder.
    pub fn commit(&self) -> Option<&str> {
        Some(self.revision.as_str()).filter(|revision| *revision != LOCAL)
    }
}
