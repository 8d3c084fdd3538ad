//! How gradients become updates.

use clap::{Args, builder::BoolishValueParser};

use super::{
    architecture::Architecture,
    values::{LrFactor, below_one, fraction, not_negative, positive},
};
use crate::{
    kernels::adam::AdamConfig,
    sae::{
        parameters::NAMES,
        schedule::{Decay, Schedule},
        trainer::Optimiser,
    },
    stage::{Failure, Result},
};

/// A published default for learning rates refers to this width.
const REFERENCE_WIDTH: f64 = 16_384.0;

/// Learning rate, Adam and what happens around them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Optimisation")]
pub struct OptimiserArgs {
    /// Learning rate [default: topk and relatives 2e-4/sqrt(d_sae/16384), jumprelu 7e-5,
    /// gated 5e-5, standard and panneal 1e-3]
    #[arg(long, env, value_parser = positive)]
    pub lr: Option<f64>,
    /// What the learning rate does after the warm-up
    #[arg(long, env, value_enum, default_value_t = Decay::Linear)]
    pub lr_schedule: Decay,
    /// Share of the steps, the last ones, over which LR_SCHEDULE=linear falls
    #[arg(long, env, default_value_t = 0.2, value_parser = fraction)]
    pub lr_decay: f64,
    /// Where the learning rate ends, as a share of LR
    #[arg(long, env, default_value_t = 0.0, value_parser = fraction)]
    pub lr_end: f64,
    /// Factors on the learning rate by tensor: w_enc, b_enc, w_dec, b_dec, threshold, r_mag, b_mag,
    /// w_skip
    #[arg(long, env, value_name = "TENSOR=FACTOR", value_delimiter = ',')]
    pub lr_factors: Vec<LrFactor>,
    /// Steps of learning-rate warm-up [default: 1000, at most a tenth of the steps]
    #[arg(long, env)]
    pub warmup: Option<u64>,
    /// Decay of Adam's first moment [default: 0.9, jumprelu and gated 0]
    #[arg(long, env, value_parser = below_one)]
    pub adam_beta1: Option<f64>,
    /// Decay of Adam's second moment
    #[arg(long, env, default_value_t = 0.999, value_parser = below_one)]
    pub adam_beta2: f64,
    /// Added to the root of Adam's second moment
    #[arg(long, env, default_value_t = 1e-8, value_parser = positive)]
    pub adam_eps: f64,
    /// Largest global gradient norm; 0 for no limit
    #[arg(long, env, default_value_t = 1.0, value_parser = not_negative)]
    pub clip: f64,
    /// Batches whose gradients are averaged for one step
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub accumulate: u32,
    /// Decay of the running mean of the weights, which is what is saved; 0 for the weights themselves
    #[arg(long, env, default_value_t = 0.0, value_parser = below_one)]
    pub weight_ema: f64,
    /// Keep each latent's decoder row at norm 1
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub unit_decoder: bool,
}

impl OptimiserArgs {
    /// Peak learning rate.
    pub fn lr(&self, architecture: Architecture, d_sae: usize) -> f64 {
        self.lr.unwrap_or_else(|| default_lr(architecture, d_sae))
    }

    /// The learning rate's course over `steps`; the sparsity coefficient rises over
    /// `sparsity_warmup` of them.
    pub fn schedule(&self, steps: u64, sparsity_warmup: u64) -> Schedule {
        Schedule {
            steps,
            warmup: self.warmup.unwrap_or((steps / 10).min(1000)).min(steps),
            decay: self.lr_schedule,
            decay_share: self.lr_decay,
            end: self.lr_end,
            sparsity_warmup,
        }
    }

    /// The optimiser.
    ///
    /// # Errors
    /// A usage failure for a factor of a tensor that does not exist.
    pub fn optimiser(&self, architecture: Architecture) -> Result<Optimiser> {
        // The second moment alone where sparsity makes gradients erratic, as Gemma Scope.
        let erratic = matches!(architecture, Architecture::JumpRelu | Architecture::Gated);
        let beta1 = self.adam_beta1.unwrap_or(if erratic { 0.0 } else { 0.9 });
        let mut optimiser =
            Optimiser::adam(AdamConfig { beta1, beta2: self.adam_beta2, eps: self.adam_eps });
        optimiser.clip = if self.clip > 0.0 { self.clip } else { f64::INFINITY };
        optimiser.unit_decoder = self.unit_decoder;
        optimiser.ema = (self.weight_ema > 0.0).then_some(self.weight_ema);
        for LrFactor { tensor, factor } in &self.lr_factors {
            if !optimiser.set_lr(tensor, *factor) {
                let what = format!("LR_FACTORS names `{tensor}`, which is no tensor of an SAE");
                return Err(Failure::usage(what).hint(format!("known are {}", NAMES.join(", "))));
            }
        }
        Ok(optimiser)
    }
}

/// Peak learning rate where none is given.
pub fn default_lr(architecture: Architecture, d_sae: usize) -> f64 {
    match architecture {
        Architecture::TopK | Architecture::BatchTopK | Architecture::Matryoshka => {
            2e-4 / (d_sae as f64 / REFERENCE_WIDTH).sqrt()
        }
        Architecture::JumpRelu => 7e-5,
        Architecture::Gated => 5e-5,
        Architecture::Standard | Architecture::PAnneal => 1e-3,
    }
}
