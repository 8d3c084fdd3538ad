//! The logit lens (nostalgebraist 2020): what a direction of the residual stream does to the logits,
//! through the last norm's weight and the unembedding alone.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::{
    Hook, ModelError, ModelInfo, Point, family::Description, transformer::Transformer,
    weights::Weights,
};

/// A model's last norm and head.
pub struct Lens {
    info: ModelInfo,
    network: Transformer,
}

impl Lens {
    /// Loads the last norm and the head of a checkpoint, on the CPU in f32; `None` for a model that
    /// has no logits.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn load(dir: &Path) -> Result<Option<Self>, ModelError> {
        let info = ModelInfo::from_dir(dir)?;
        let logits = Hook { layer: None, point: Point::Logits };
        let Description::Transformer(config) = &info.network else { return Ok(None) };
        if config.head.is_none() {
            return Ok(None);
        }
        let weights = Weights::open(dir, &Device::Cpu, (DType::F32, info.scheme.clone()))?;
        let network = Transformer::load(&weights, config, &[logits], 0)?;
        Ok(Some(Self { info, network }))
    }

    /// The model's description.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What is added to the logits for each unit of the directions, `[n, d_model]` row-major: of each
    /// direction a number for each token.
    ///
    /// The norm divides by a number that depends on the whole stream and is left out, as is the bound
    /// of soft-capped logits; a layer norm's subtraction of the mean is linear and is kept.
    ///
    /// # Errors
    /// Directions of another width.
    pub fn logits(&self, directions: &[f32]) -> Result<Vec<Vec<f32>>, ModelError> {
        let width = self.info.d_model;
        let shape = (directions.len() / width, width);
        let directions = Tensor::from_slice(directions, shape, &Device::Cpu)?;
        Ok(self.network.lens(&directions)?.to_vec2()?)
    }
}
