//! The hooked transformer: built from a checkpoint's own `config.json`, run as deep as asked.
//!
//! Families are files (`llama`, `qwen2`, `bert`) over shared blocks. Hidden states are [rows,
//! d_model]: the tokens of all sentences of a batch back to back, without padding. Nothing here
//! knows about datasets, shards or SAEs.

mod bert;
mod block;
mod config_file;
mod decoder;
mod error;
mod flops;
mod hook;
mod info;
mod llama;
mod packed;
mod qwen2;
mod record;
pub mod scores;
mod site;
mod tape;
mod weights;

pub mod args;

use std::path::Path;

use candle_core::{DType, Device};

pub use args::HookArgs;
pub use error::ModelError;
pub use flops::flops_per_token;
pub use hook::Hook;
pub use info::{FAMILIES, ModelInfo};
pub use packed::Packed;
pub use record::ModelRecord;
pub use site::{Point, Site, Width};
pub use tape::Visit;
pub use weights::{Headers, headers};

use info::Family;
use tape::{Halt, Tape};
use weights::Weights;

/// A model that hands out tensors on its way.
pub trait HookedModel: Send {
    /// The model's description.
    fn info(&self) -> &ModelInfo;

    /// Runs a batch until the deepest of `hooks` and hands out each one's tensor.
    ///
    /// `visit` is given the index into `hooks` and the tensor [rows, width] in f32, in the order of
    /// computation, and may return another to go on with. Results are a function of the batch and of
    /// what was returned: the same batch gives the same bits, whichever hooks are asked for.
    ///
    /// # Errors
    /// A batch that does not suit the model, a hook deeper than what was loaded, what the device
    /// reports, and what `visit` returns.
    fn forward(
        &self,
        batch: &Packed,
        hooks: &[Hook],
        visit: &mut Visit<'_>,
    ) -> Result<(), ModelError>;
}

/// Loads a checkpoint as deep as `hooks` need: no layer beyond the deepest is read.
///
/// Weights are converted to `dtype`, in which the forward pass computes. On a CPU, bf16 rounds the
/// factors of the linear layers' products; their sums and all else are f32.
///
/// # Errors
/// Whatever is missing, damaged or not implemented, with file and tensor.
pub fn load(
    dir: &Path,
    hooks: &[Hook],
    device: &Device,
    dtype: DType,
) -> Result<Box<dyn HookedModel>, ModelError> {
    let info = ModelInfo::from_dir(dir)?;
    let weights = Weights::open(dir, device, dtype)?;
    let blocks = hooks.iter().map(|h| h.blocks(&info)).max().unwrap_or(0);
    let network = match &info.family {
        Family::Decoder(config) => {
            Network::Decoder(decoder::Decoder::load(&weights, config, hooks, blocks)?)
        }
        Family::Bert(config) => Network::Bert(bert::Bert::load(&weights, config, hooks, blocks)?),
    };
    Ok(Box::new(Loaded { info, network }))
}

/// The device that `DEVICE` names: `auto` is the first GPU if this build can use one, else the CPU.
///
/// # Errors
/// [`ModelError::UnknownDevice`] and [`ModelError::NoDevice`].
pub fn device(name: &str) -> Result<Device, ModelError> {
    let gpu = |ordinal| {
        Device::new_cuda(ordinal)
            .map_err(|e| ModelError::NoDevice { name: name.to_owned(), message: e.to_string() })
    };
    let unknown = || ModelError::UnknownDevice { name: name.to_owned() };
    match name {
        "auto" if cfg!(feature = "cuda") => Ok(gpu(0).unwrap_or(Device::Cpu)),
        "auto" | "cpu" => Ok(Device::Cpu),
        "cuda" => gpu(0),
        other => {
            let ordinal = other.strip_prefix("cuda:").ok_or_else(unknown)?;
            gpu(ordinal.parse().map_err(|_| unknown())?)
        }
    }
}

enum Network {
    Decoder(decoder::Decoder),
    Bert(bert::Bert),
}

struct Loaded {
    info: ModelInfo,
    network: Network,
}

impl HookedModel for Loaded {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn forward(
        &self,
        batch: &Packed,
        hooks: &[Hook],
        visit: &mut Visit<'_>,
    ) -> Result<(), ModelError> {
        batch.validate(self.info.vocab_size, self.info.context_length)?;
        if batch.rows() == 0 || hooks.is_empty() {
            return Ok(());
        }
        let mut seen = vec![false; hooks.len()];
        let mut visit = |index: usize, tensor| {
            seen[index] = true;
            visit(index, tensor)
        };
        let mut tape = Tape::new(hooks, &mut visit);
        let end = match &self.network {
            Network::Decoder(network) => network.forward(batch, &mut tape),
            Network::Bert(network) => network.forward(batch, &mut tape),
        };
        match end {
            Ok(()) => {
                let missed = hooks.iter().zip(seen).find(|(_, seen)| !seen).map(|(h, _)| h);
                let hook = missed.map(|h| h.module_path(&self.info)).unwrap_or_default();
                Err(ModelError::NotLoaded { hook })
            }
            Err(Halt::Done) => Ok(()),
            Err(Halt::Failed(error)) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Classify, Kind};

    #[test]
    fn devices_by_name() {
        assert!(device("cpu").unwrap().is_cpu());
        for bad in ["gpu", "cuda:x", "CPU", ""] {
            assert_eq!(device(bad).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
        if cfg!(not(feature = "cuda")) {
            assert!(device("auto").unwrap().is_cpu());
            assert_eq!(device("cuda:0").unwrap_err().kind(), Kind::Unavailable);
        }
    }
}
