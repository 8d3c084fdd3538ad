//! Places in the forward pass, and how a family describes them.

use serde::Serialize;

/// A place in the forward pass where a tensor can be read, in the order of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Token embeddings, where more is added to them.
    WordEmbed,
    /// Token-type embeddings of an encoder.
    TokenTypeEmbed,
    /// Learned position embeddings.
    PositionEmbed,
    /// Sum of an encoder's embeddings, before their norm.
    EmbedSum,
    /// What the embedding hands to the first block.
    Embed,
    /// Input of a block.
    ResidPre,
    /// Normalised copy that feeds the attention.
    AttnIn,
    /// Mix of values per head, before the output projection.
    Z,
    /// Output of the attention's last projection, where a norm follows before it is added.
    AttnProj,
    /// What the attention adds to the residual stream.
    AttnOut,
    /// Residual stream after the attention was added.
    ResidMid,
    /// Normalised copy that feeds the feed-forward block.
    MlpIn,
    /// Output of the activation function alone, where it multiplies another projection.
    MlpGate,
    /// Inner activation of the feed-forward block: input of its last projection.
    MlpAct,
    /// Output of the feed-forward block's last projection, where a norm follows before it is added.
    MlpProj,
    /// What the feed-forward block adds to the residual stream.
    MlpOut,
    /// Sum of feed-forward output and its input, before the norm that ends an encoder's block.
    ResidSum,
    /// Output of a block.
    ResidPost,
    /// Output of the last norm.
    FinalNorm,
    /// Scores of the next token.
    Logits,
    /// An encoder's pooler.
    Pooler,
}

impl Point {
    /// The points of layers that may be named without one, with their short names.
    pub const ALIASES: [(&'static str, Self); 8] = [
        ("resid_pre", Self::ResidPre),
        ("resid_mid", Self::ResidMid),
        ("resid_post", Self::ResidPost),
        ("attn_out", Self::AttnOut),
        ("mlp_out", Self::MlpOut),
        ("mlp_in", Self::MlpIn),
        ("mlp_act", Self::MlpAct),
        ("z", Self::Z),
    ];

    /// The point's short name, if it has one.
    pub fn alias(self) -> Option<&'static str> {
        Self::ALIASES.iter().find(|(_, p)| *p == self).map(|(name, _)| *name)
    }
}

/// How wide a hook's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The residual stream.
    Model,
    /// All heads side by side.
    Heads,
    /// The inner width of the feed-forward block.
    Mlp,
    /// The vocabulary.
    Vocab,
}

/// One hook point of a model.
///
/// In names `{}` stands for the layer, and a leading `@` for the prefix that the class puts before
/// its base model's modules (`model.`, `bert.`, or nothing).
#[derive(Clone, Debug)]
pub struct Site {
    /// The place.
    pub point: Point,
    /// Module path; its output, or its input if it ends in `#in`.
    pub path: String,
    /// Other module paths of the same tensor; one without `{}` means the last layer.
    pub also: Vec<String>,
    /// TransformerLens name.
    pub lens: String,
    /// Width of a row.
    pub width: Width,
    /// What it is, in a few words.
    pub what: &'static str,
}

impl Site {
    /// A point that is as wide as the residual stream.
    pub(super) fn new(
        point: Point,
        path: impl Into<String>,
        lens: impl Into<String>,
        what: &'static str,
    ) -> Self {
        let (path, lens) = (path.into(), lens.into());
        Self { point, path, also: vec![], lens, width: Width::Model, what }
    }

    /// The same tensor's other paths.
    pub(super) fn also<S: Into<String>>(mut self, paths: impl IntoIterator<Item = S>) -> Self {
        self.also.extend(paths.into_iter().map(Into::into));
        self
    }

    /// Another width.
    pub(super) fn wide(self, width: Width) -> Self {
        Self { width, ..self }
    }

    /// Whether the point exists once per layer.
    pub fn per_layer(&self) -> bool {
        self.path.contains("{}")
    }
}
