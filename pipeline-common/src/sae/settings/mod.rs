//! The settings of stage 02 and what they mean for a run of a given size.

use clap::{Args, ValueEnum};

use super::{
    Activation,
    schedule::{Decay, Schedule},
    variant::{
        Objective,
        dense::Dense,
        jumprelu::JumpRelu,
        standard::Standard,
        topk::{Aux, AuxForm, TopK},
    },
};
use crate::{
    kernels::adam::AdamConfig,
    stage::{Failure, Result},
};

/// A published default for dead latents and learning rates refers to this width.
const REFERENCE_WIDTH: f64 = 16_384.0;
/// Tokens after which most projects call a latent dead.
const DEAD_AFTER: u64 = 10_000_000;

/// Architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Architecture {
    /// The k largest activations of a row, with an auxiliary loss for dead latents.
    TopK,
    /// A trained threshold per latent and an L0 penalty.
    JumpRelu,
    /// ReLU with an L1 penalty.
    Standard,
}

/// What is trained, on what, for how long.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct TrainArgs {
    /// Architecture
    #[arg(long, env, value_enum, default_value_t = Architecture::TopK)]
    pub sae_arch: Architecture,
    /// Latents per input dimension: d_sae = multiplier x d_in
    #[arg(long, env, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub n_latents_multiplier: u32,
    /// Active latents a row (topk)
    #[arg(long, env, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub top_k: u32,
    /// Passes over the training rows
    #[arg(long, env, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: u32,
    /// Rows a step
    #[arg(long, env, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size_train: u32,
    /// Learning rate [default: topk 2e-4/sqrt(d_sae/16384), jumprelu 7e-5, standard 1e-3]
    #[arg(long, env, value_parser = positive)]
    pub lr: Option<f64>,
    /// What the learning rate does after the warm-up
    #[arg(long, env, value_enum, default_value_t = Decay::Linear)]
    pub lr_schedule: Decay,
    /// Steps of learning-rate warm-up [default: 1000, at most a tenth of the steps]
    #[arg(long, env)]
    pub warmup: Option<u64>,
    /// L1 coefficient (standard)
    #[arg(long, env, default_value_t = 0.1, value_parser = not_negative)]
    pub l1_lambda: f64,
    /// L0 coefficient (jumprelu)
    #[arg(long, env, default_value_t = 4e-4, value_parser = not_negative)]
    pub l0_lambda: f64,
    /// Steps over which the sparsity coefficient rises [default: 10000, at most a fifth of the steps]
    #[arg(long, env)]
    pub sparsity_warmup: Option<u64>,
    /// Width of the straight-through window, in units of the scaled input (jumprelu)
    #[arg(long, env, default_value_t = 0.001, value_parser = positive)]
    pub bandwidth: f64,
    /// First threshold, in units of the scaled input (jumprelu)
    #[arg(long, env, default_value_t = 0.001, value_parser = not_negative)]
    pub init_threshold: f64,
    /// Weight of the auxiliary loss that revives dead latents (topk)
    #[arg(long, env, default_value_t = 0.03125, value_parser = not_negative)]
    pub aux_coefficient: f64,
    /// Dead latents used a row by the auxiliary loss [default: d_in/2]
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    pub k_aux: Option<u32>,
    /// Tokens without firing after which a latent is dead [default: 10 million, at most a tenth of the training]
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    pub dead_after: Option<u64>,
    /// Share of documents held out to validate on
    #[arg(long, env, default_value_t = 0.01, value_parser = share)]
    pub validation: f64,
    /// Decides all randomness
    #[arg(long, env, default_value_t = 0)]
    pub seed: u64,
    /// Steps between records of the training curve
    #[arg(long, env, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: u64,
    /// Steps between checkpoints
    #[arg(long, env, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: u64,
}

fn number(
    text: &str,
    ok: impl Fn(f64) -> bool,
    expected: &str,
) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && ok(x) => Ok(x),
        _ => Err(format!("expected {expected}")),
    }
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn not_negative(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x >= 0.0, "a number from 0 on")
}

fn share(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| (0.0..0.9).contains(&x), "a share from 0 to below 0.9")
}

/// [`TrainArgs`] for inputs of a given width and number.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Width of the input.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Rows a step.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Adam's constants.
    pub adam: AdamConfig,
    /// Tokens without firing after which a latent is dead.
    pub dead_after: u64,
    /// Which pre-activations count.
    pub activation: Activation,
}

impl TrainArgs {
    /// Resolves the defaults that depend on the data.
    ///
    /// # Errors
    /// A usage failure for settings that do not fit the data.
    pub fn plan(&self, d_in: usize, train_rows: usize) -> Result<Plan> {
        let d_sae = d_in * self.n_latents_multiplier as usize;
        let (batch, k) = (self.batch_size_train as usize, self.top_k as usize);
        if self.sae_arch == Architecture::TopK && k > d_sae {
            return Err(Failure::usage(format!("TOP_K is {k}, but there are {d_sae} latents"))
                .hint("lower TOP_K, or raise N_LATENTS_MULTIPLIER"));
        }
        if batch.saturating_mul(k.max(self.k_aux(d_in))) > u32::MAX as usize {
            return Err(Failure::usage(format!(
                "BATCH_SIZE_TRAIN {batch} times TOP_K {k} or K_AUX is above {}",
                u32::MAX
            ))
            .hint("lower BATCH_SIZE_TRAIN"));
        }
        let tokens = train_rows as u64 * u64::from(self.epochs);
        let steps = tokens / batch as u64;
        if steps == 0 {
            return Err(Failure::usage(format!(
                "BATCH_SIZE_TRAIN is {batch}, but {} epochs of {train_rows} rows are only {tokens} rows",
                self.epochs
            ))
            .hint("lower BATCH_SIZE_TRAIN, raise EPOCHS, or capture more documents"));
        }
        Ok(Plan {
            d_in,
            d_sae,
            batch,
            lr: self.lr.unwrap_or_else(|| self.default_lr(d_sae)),
            schedule: Schedule {
                steps,
                warmup: self.warmup.unwrap_or((steps / 10).min(1000)).min(steps),
                decay: self.lr_schedule,
                sparsity_warmup: self.sparsity_warmup.unwrap_or((steps / 5).min(10_000)),
            },
            // The second moment alone where sparsity makes gradients erratic, as Gemma Scope.
            adam: match self.sae_arch {
                Architecture::JumpRelu => AdamConfig { beta1: 0.0, beta2: 0.999, eps: 1e-8 },
                _ => AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
            },
            dead_after: self.dead_after.unwrap_or_else(|| DEAD_AFTER.min(tokens / 10).max(1)),
            activation: match self.sae_arch {
                Architecture::TopK => Activation::TopK { k },
                Architecture::JumpRelu => Activation::JumpRelu,
                Architecture::Standard => Activation::Relu,
            },
        })
    }

    fn k_aux(&self, d_in: usize) -> usize {
        self.k_aux.map_or(d_in / 2, |k| k as usize).max(1)
    }

    fn default_lr(&self, d_sae: usize) -> f64 {
        match self.sae_arch {
            Architecture::TopK => 2e-4 / (d_sae as f64 / REFERENCE_WIDTH).sqrt(),
            Architecture::JumpRelu => 7e-5,
            Architecture::Standard => 1e-3,
        }
    }

    /// The loss to train with.
    pub fn objective(&self, d_in: usize) -> Box<dyn Objective> {
        match self.sae_arch {
            Architecture::TopK => {
                let aux = Aux {
                    coefficient: self.aux_coefficient,
                    k: self.k_aux(d_in),
                    form: AuxForm::Normalised,
                };
                Box::new(TopK::new(self.top_k as usize, aux, false))
            }
            Architecture::JumpRelu => {
                Box::new(Dense::new(JumpRelu { bandwidth: self.bandwidth as f32 }, self.l0_lambda))
            }
            Architecture::Standard => Box::new(Dense::new(Standard::default(), self.l1_lambda)),
        }
    }

    /// Where thresholds begin, for the architecture that has them.
    pub fn first_threshold(&self) -> Option<f32> {
        (self.sae_arch == Architecture::JumpRelu).then_some(self.init_threshold as f32)
    }
}
