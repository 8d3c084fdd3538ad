//! What a capture would cost: disk, arithmetic, hours.

use serde::Serialize;

use crate::{
    kernels::product::product_rate,
    model::{Hook, ModelInfo, flops_per_token},
};

/// Bytes of one number in a shard (f16).
pub(super) const NUMBER: u64 = 2;
/// Bytes that provenance takes per token: id, document, begin and end in the text.
const PROVENANCE: u64 = 24;
/// FLOP a second of one A100-class GPU in practice, about a third of what its tensor cores promise.
const GPU_RATE: f64 = 1e14;

/// Upper bounds: every document is taken to fill its context.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Estimate {
    /// Documents; absent where all of the dataset is read and its size is not known here.
    pub documents: Option<u64>,
    /// Tokens of each.
    pub max_length: u64,
    /// Tokens; of a dataset of unknown size, one million.
    pub tokens: u64,
    /// Bytes of activations a token, all hooks together.
    pub bytes_per_token: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// FLOP a token, up to the deepest hook.
    pub flop_per_token: f64,
    /// FLOP altogether.
    pub flop: f64,
    /// FLOP a second of this machine's products, just measured.
    pub cpu_flop_per_second: f64,
    /// Hours on this machine.
    pub cpu_hours: f64,
    /// Hours on one GPU of the A100 class.
    pub gpu_hours: f64,
}

impl Estimate {
    /// The cost of reading `hooks` from `limit` documents (0: all) of at most `max_length` tokens.
    pub fn new(info: &ModelInfo, hooks: &[Hook], limit: u64, max_length: u64) -> Self {
        let documents = (limit > 0).then_some(limit);
        let tokens = documents.map_or(1_000_000, |n| n.saturating_mul(max_length));
        let width: u64 = hooks.iter().map(|h| h.width(info) as u64).sum();
        let deepest = |h: &Hook| flops_per_token(info, h, max_length as f64);
        let flop_per_token = hooks.iter().map(deepest).fold(0.0, f64::max);
        let flop = flop_per_token * tokens as f64;
        let rate = product_rate();
        Self {
            documents,
            max_length,
            tokens,
            bytes_per_token: width * NUMBER,
            bytes: tokens.saturating_mul(width * NUMBER + PROVENANCE),
            flop_per_token,
            flop,
            cpu_flop_per_second: rate,
            cpu_hours: flop / rate / 3600.0,
            gpu_hours: flop / GPU_RATE / 3600.0,
        }
    }
}
