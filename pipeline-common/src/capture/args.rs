//! The options of a capture, beside those of model, text, hooks and rows.

use candle_core::DType;
use clap::{ValueEnum, builder::BoolishValueParser};

use crate::stage::time::TimeLimit;

/// How contexts become rows.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Capture")]
pub struct CaptureArgs {
    /// Documents a forward pass
    #[arg(long, env, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size_save: u32,
    /// What the model computes in
    #[arg(long, env, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Activations are multiplied by this before they are stored as f16
    #[arg(long, env, default_value_t = 1.0, value_parser = scale)]
    pub activation_scale: f32,
    /// Size of a shard in MiB
    #[arg(long, env, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub shard_mib: u32,
    /// This worker, from 0 [default: the job array's task, else 0]
    #[arg(long, env)]
    pub worker: Option<usize>,
    /// Workers that share the documents [default: the job array's size, else 1]
    #[arg(long, env)]
    pub workers: Option<usize>,
    /// First run the model on some documents: norms and non-finite numbers per layer, perplexity,
    /// continuations; refuses to capture what is not finite
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub verify_model: bool,
    /// Wall time of a worker's job, as sbatch --time takes it, for --check [default: this job's]
    #[arg(long, env, value_name = "TIME")]
    pub time_limit: Option<TimeLimit>,
}

/// Number formats of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32-bit.
    F32,
    /// 16-bit with f32's range; for GPUs.
    Bf16,
    /// 16-bit; for GPUs.
    F16,
}

impl Precision {
    /// The tensor library's name for it.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

fn scale(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("expected a number above 0".to_owned()),
    }
}
