//! The hooked transformer: built from a checkpoint's own `config.json`, run as deep as asked.
//!
//! Families are files in `family`; each describes one of two networks, `transformer` and `encoder`,
//! which are put together from the parts in `block`. Hidden states are [rows, d_model]: the tokens
//! of all sentences of a batch back to back, without padding. Nothing here knows about datasets,
//! shards or SAEs.

mod block;
mod cache;
mod config_file;
mod encoder;
mod error;
mod family;
mod flops;
mod hook;
mod info;
mod lens;
mod packed;
mod record;
pub mod scores;
mod site;
mod tape;
mod transformer;
mod weights;

pub mod args;

use std::path::Path;

use candle_core::{DType, Device};

pub use args::HookArgs;
pub use cache::Cache;
pub use error::ModelError;
pub use flops::flops_per_token;
pub use hook::Hook;
pub use info::ModelInfo;
pub use lens::Lens;
pub use packed::Packed;
pub use record::ModelRecord;
pub use site::{Point, Site, Width};
pub use tape::Visit;
pub use weights::{Headers, headers};

use cache::Past;
use encoder::Encoder;
use family::{Description, Network};
use tape::{Halt, Tape};
use transformer::Transformer;
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

    /// Runs what follows the tokens that `cache` remembers, one sentence of `batch` (which may be empty)
    /// for each of its own, and remembers it too.
    ///
    /// As [`Self::forward`], but all blocks that were loaded are run. On a CPU rows are the same bits
    /// as those of a forward pass over the whole sentences. After an error the cache is as it was.
    ///
    /// # Errors
    /// As [`Self::forward`]; an encoder, whose tokens see what follows them; another number of
    /// sentences than the cache's; sentences that [outgrow](Self::outgrows) the cache.
    fn extend(
        &self,
        cache: &mut Cache,
        batch: &Packed,
        hooks: &[Hook],
        visit: &mut Visit<'_>,
    ) -> Result<(), ModelError>;

    /// Whether what follows would make sentences so long that their first tokens are read otherwise:
    /// then a new cache must read them from the start.
    ///
    /// So it is with rotary positions whose frequencies depend on a sentence's length (`dynamic` and
    /// `longrope`), beyond the context that they were first made for.
    fn outgrows(&self, cache: &Cache, batch: &Packed) -> bool;
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
    let weights = Weights::open(dir, device, (dtype, info.scheme.clone()))?;
    let blocks = hooks.iter().map(|h| h.blocks(&info)).max().unwrap_or(0);
    let network = match &info.network {
        Description::Transformer(config) => {
            Network::Transformer(Transformer::load(&weights, config, hooks, blocks)?)
        }
        Description::Encoder(config) => {
            Network::Encoder(Encoder::load(&weights, config, hooks, blocks)?)
        }
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
        if hooks.is_empty() {
            return batch.validate(self.info.vocab_size, self.info.context_length);
        }
        self.run(None, batch, hooks, visit)
    }

    fn extend(
        &self,
        cache: &mut Cache,
        batch: &Packed,
        hooks: &[Hook],
        visit: &mut Visit<'_>,
    ) -> Result<(), ModelError> {
        let message = if !self.info.is_causal() {
            format!("{} reads in both directions: what follows changes all", self.info.architecture)
        } else if cache.lengths().len() + 1 != batch.starts.len() {
            format!(
                "{} sentences do not fit the cache's {}",
                batch.starts.len().saturating_sub(1),
                cache.lengths().len()
            )
        } else if self.outgrows(cache, batch) {
            "positions of this length turn otherwise: a new cache must read the sentences whole"
                .into()
        } else {
            return self.run(Some(cache), batch, hooks, visit);
        };
        Err(ModelError::Batch { message })
    }

    fn outgrows(&self, cache: &Cache, batch: &Packed) -> bool {
        let Description::Transformer(config) = &self.info.network else { return false };
        let lengths = batch.starts.windows(2).map(|w| w[1] - w[0]).zip(cache.lengths());
        let grown = |(new, old): (usize, &usize)| (*old, old + new);
        lengths
            .map(grown)
            .filter(|(old, new)| *old > 0 && new > old)
            .any(|(old, new)| config.ropes.iter().any(|rope| !rope.alike(old, new)))
    }
}

impl Loaded {
    fn run(
        &self,
        cache: Option<&mut Cache>,
        batch: &Packed,
        hooks: &[Hook],
        visit: &mut Visit<'_>,
    ) -> Result<(), ModelError> {
        batch.validate(self.info.vocab_size, self.info.context_length)?;
        let spans = cache::places(cache.as_deref(), &batch.starts);
        let longest = spans.iter().map(|s| s.keys.len()).max().unwrap_or(0);
        if longest > self.info.context_length {
            let context = self.info.context_length;
            return Err(ModelError::TooLong { length: longest, context });
        }
        if batch.rows() == 0 {
            return Ok(());
        }
        let mut seen = vec![false; hooks.len()];
        let mut visit = |index: usize, tensor| {
            seen[index] = true;
            visit(index, tensor)
        };
        let mut tape = Tape::new(hooks, cache.is_none(), &mut visit);
        let mut past = Past::new(cache, &spans);
        let end = match &self.network {
            Network::Transformer(network) => {
                network.forward(&batch.ids, (&spans, &mut past), &mut tape)
            }
            Network::Encoder(network) => network.forward(batch, &spans, &mut tape),
        };
        if let Err(Halt::Failed(error)) = end {
            return Err(error.into());
        }
        if let Some((hook, _)) = hooks.iter().zip(seen).find(|(_, seen)| !seen) {
            return Err(ModelError::NotLoaded { hook: hook.module_path(&self.info) });
        }
        past.commit();
        Ok(())
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
