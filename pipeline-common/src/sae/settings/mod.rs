//! The settings of stage 02 and what they mean for a run of a given size.

pub mod architecture;
pub mod optimiser;
pub mod sparsity;
pub mod values;

use candle_core::DType;
use clap::{Args, ValueEnum, builder::BoolishValueParser};

pub use self::architecture::Architecture;
use self::{
    optimiser::OptimiserArgs,
    sparsity::SparsityArgs,
    values::{Every, share},
};
use super::{
    Activation, Parameters,
    init::{Start, initialise},
    parameters::Shape,
    schedule::Schedule,
    trainer::Optimiser,
    variant::Objective,
};
use crate::{
    shard::Stats,
    stage::{Failure, Result},
};

/// Tokens after which most projects call a latent dead.
const DEAD_AFTER: u64 = 10_000_000;

/// In what factors of products are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// Rounded to 16 bits; exact products, summed in f32.
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// What inputs are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InputNorm {
    /// The root of the mean squared norm (Gemma Scope): rows have mean square norm 1.
    Unit,
    /// The mean norm over the root of the width (SAELens' `expected_average_only_in`).
    Sqrt,
    /// Nothing.
    None,
}

impl InputNorm {
    /// What rows with these statistics are multiplied by.
    pub fn scale(self, stats: &Stats, width: usize) -> f32 {
        (match self {
            Self::Unit => 1.0 / stats.rms_norm(),
            Self::Sqrt => (width as f64).sqrt() / stats.mean_norm(),
            Self::None => 1.0,
        }) as f32
    }
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
    /// Number of latents, instead of N_LATENTS_MULTIPLIER
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    pub d_sae: Option<u32>,
    /// Passes over the training rows
    #[arg(long, env, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: u32,
    /// Rows to train on, instead of EPOCHS
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    pub tokens: Option<u64>,
    /// Rows a batch
    #[arg(long, env, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size_train: u32,
    #[command(flatten)]
    pub(in crate::sae) optimiser: OptimiserArgs,
    #[command(flatten)]
    pub(in crate::sae) sparsity: SparsityArgs,
    /// In what encoder products multiply; weights and sums are f32
    #[arg(long, env, value_enum, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// What inputs are divided by; it is folded into the saved weights
    #[arg(long, env, value_enum, default_value_t = InputNorm::Unit)]
    pub input_norm: InputNorm,
    /// Subtract b_dec from inputs before they are encoded; not for transcoders
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub subtract_b_dec: bool,
    /// Tokens without firing after which a latent is dead [default: 10 million, at most a tenth of the training]
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    pub dead_after: Option<u64>,
    /// Steps between resamplings of dead latents; 0 for none
    #[arg(long, env, default_value_t = 0)]
    pub resample_every: u64,
    /// Share of documents held out to validate on
    #[arg(long, env, default_value_t = 0.01, value_parser = share)]
    pub validation: f64,
    /// Steps between validations on held-out rows; 0 for one at the end
    #[arg(long, env, default_value_t = 0)]
    pub validate_every: u64,
    /// Decides all randomness
    #[arg(long, env, default_value_t = 0)]
    pub seed: u64,
    /// Decides the order of the rows [default: SEED]; SAEs of one SWEEP with equal values share a
    /// read of the rows
    #[arg(long, env)]
    pub data_seed: Option<u64>,
    /// Steps between records of the training curve
    #[arg(long, env, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: u64,
    /// Steps between checkpoints, or minutes as in 10m
    #[arg(long, env, default_value_t = Every::Steps(1000))]
    pub checkpoint_every: Every,
    /// Checkpoints that are kept
    #[arg(long, env, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_checkpoints: u32,
}

/// [`TrainArgs`] for inputs of a given width and number.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The tensors that are trained.
    pub shape: Shape,
    /// Rows a batch.
    pub batch: usize,
    /// Batches a step.
    pub accumulate: u32,
    /// Peak learning rate.
    pub lr: f64,
    /// Its course.
    pub schedule: Schedule,
    /// How gradients become updates.
    pub optimiser: Optimiser,
    /// Tokens without firing after which a latent is dead.
    pub dead_after: u64,
    /// Which pre-activations count, once trained.
    pub activation: Activation,
    /// Whether something else than the input is reconstructed.
    pub transcoder: bool,
    /// Whether b_dec is subtracted from inputs.
    pub centred: bool,
    /// Whether latents are chosen by activation times decoder norm.
    pub by_decoder_norm: bool,
    /// In what encoder products multiply.
    pub precision: DType,
}

impl Plan {
    /// Rows a step.
    pub fn step_rows(&self) -> u64 {
        self.batch as u64 * u64::from(self.accumulate)
    }
}

impl TrainArgs {
    /// Resolves the defaults that depend on the data; `d_out` is the width of a transcoder's
    /// target, which gets a path around the latents if `skip`.
    ///
    /// # Errors
    /// A usage failure for settings that do not fit the data.
    pub fn plan(
        &self,
        d_in: usize,
        d_out: Option<usize>,
        skip: bool,
        train_rows: usize,
    ) -> Result<Plan> {
        let d_sae = self.d_sae.map_or(d_in * self.n_latents_multiplier as usize, |n| n as usize);
        self.check_k(d_in, d_sae)?;
        let architecture = self.sae_arch;
        let tokens = self.tokens.unwrap_or_else(|| train_rows as u64 * u64::from(self.epochs));
        let (batch, accumulate) = (self.batch_size_train as usize, self.optimiser.accumulate);
        let steps = tokens / (batch as u64 * u64::from(accumulate));
        if steps == 0 {
            return Err(Failure::usage(format!(
                "BATCH_SIZE_TRAIN is {batch} and ACCUMULATE {accumulate}, but there are only \
                 {tokens} rows to train on"
            ))
            .hint("lower BATCH_SIZE_TRAIN, raise EPOCHS or TOKENS, or capture more documents"));
        }
        let warmup = self.sparsity.sparsity_warmup.unwrap_or((steps / 5).min(10_000));
        Ok(Plan {
            shape: architecture.shape(d_in, d_out.unwrap_or(d_in), d_sae, skip),
            batch,
            accumulate,
            lr: self.optimiser.lr(architecture, d_sae),
            schedule: self.optimiser.schedule(steps, warmup),
            optimiser: self.optimiser.optimiser(architecture)?,
            dead_after: self.dead_after.unwrap_or_else(|| DEAD_AFTER.min(tokens / 10).max(1)),
            activation: architecture.activation(self.sparsity.top_k as usize),
            transcoder: d_out.is_some(),
            centred: self.subtract_b_dec && d_out.is_none(),
            by_decoder_norm: architecture.is_top_k() && self.sparsity.by_decoder_norm,
            precision: self.precision.dtype(),
        })
    }

    fn check_k(&self, d_in: usize, d_sae: usize) -> Result<()> {
        if !self.sae_arch.is_top_k() {
            return Ok(());
        }
        let (batch, k) = (self.batch_size_train as usize, self.sparsity.largest_k(d_in));
        if k > d_sae {
            return Err(Failure::usage(format!(
                "TOP_K (or K_START) is {k}, but there are {d_sae} latents"
            ))
            .hint("lower it, or raise N_LATENTS_MULTIPLIER"));
        }
        if batch.saturating_mul(k.max(self.sparsity.k_aux(d_in))) > u32::MAX as usize {
            return Err(Failure::usage(format!(
                "BATCH_SIZE_TRAIN {batch} times TOP_K {k} or K_AUX is above {}",
                u32::MAX
            ))
            .hint("lower BATCH_SIZE_TRAIN"));
        }
        Ok(())
    }

    /// The parameters before the first step; `sample` is the output's, `[n, d_out]`, scaled.
    pub fn first_parameters(&self, plan: &Plan, sample: &[f32]) -> Parameters {
        let threshold = self.sparsity.init_threshold as f32;
        initialise(plan.shape, sample, self.seed, Start { tied: !plan.transcoder, threshold })
    }

    /// Whether dead latents have a loss of their own.
    pub fn has_auxiliary_loss(&self) -> bool {
        self.sae_arch.is_top_k() && self.sparsity.aux_coefficient > 0.0
    }

    /// The loss to train with.
    ///
    /// # Errors
    /// A usage failure for settings that contradict each other.
    pub fn objective(&self, plan: &Plan) -> Result<Box<dyn Objective>> {
        let widths = (plan.shape.d_in, plan.shape.d_sae);
        self.sparsity.objective(self.sae_arch, widths, plan.schedule.steps)
    }
}
