//! Feed-forward blocks of which each token runs through a few.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::{sigmoid, softmax_last_dim};

use super::{linear::Linear, mlp::Gated};

/// One block.
pub struct Expert {
    pub inner: Gated,
    pub down: Linear,
}

impl Expert {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.inner.joined(x)?)
    }
}

/// A router and its blocks (arXiv:2401.04088).
pub struct Experts {
    /// Scores each block for a token.
    pub router: Linear,
    pub experts: Vec<Expert>,
    /// Blocks of each token.
    pub chosen: usize,
    /// Whether the chosen ones' weights are made to sum to one.
    pub normalised: bool,
    /// The block that every token runs through, and its gate.
    pub shared: Option<(Expert, Linear)>,
}

impl Experts {
    /// [rows, d_model] to [rows, d_model]. Each row adds its blocks in their order, so that it does
    /// not depend on which other rows go through them.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut sum = x.zeros_like()?;
        for (expert, (rows, weights)) in self.experts.iter().zip(self.routes(x)?) {
            if rows.is_empty() {
                continue;
            }
            let weights = Tensor::new(weights, x.device())?.to_dtype(x.dtype())?.unsqueeze(1)?;
            let rows = Tensor::new(rows, x.device())?;
            let y = expert.forward(&x.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            sum = sum.index_add(&rows, &y, 0)?;
        }
        match &self.shared {
            Some((expert, gate)) => {
                sum + expert.forward(x)?.broadcast_mul(&sigmoid(&gate.forward(x)?)?)?
            }
            None => Ok(sum),
        }
    }

    /// For each block the rows that go through it, and their weights.
    fn routes(&self, x: &Tensor) -> Result<Vec<(Vec<u32>, Vec<f32>)>> {
        let scores = self.router.forward(x)?.to_dtype(DType::F32)?;
        let weights = softmax_last_dim(&scores.contiguous()?)?.to_vec2::<f32>()?;
        let mut routes = vec![(vec![], vec![]); self.experts.len()];
        for (row, weights) in weights.iter().enumerate() {
            let mut order: Vec<usize> = (0..weights.len()).collect();
            // Stable: of equal weights the first wins.
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
            let chosen = &order[..self.chosen];
            let total: f32 = chosen.iter().map(|e| weights[*e]).sum();
            let divisor = if self.normalised { total } else { 1.0 };
            for expert in chosen {
                routes[*expert].0.push(row as u32);
                routes[*expert].1.push(weights[*expert] / divisor);
            }
        }
        Ok(routes)
    }
}
