//! What makes activations sparse: one objective for each architecture.

use clap::{Args, ValueEnum, builder::BoolishValueParser};

use super::{
    architecture::Architecture,
    values::{below_one, fraction, not_negative, positive},
};
use crate::{
    sae::variant::{
        Objective,
        dense::Dense,
        gated::{Gated, GatedForm},
        jumprelu::{JumpRelu, Sparsity, Window},
        standard::{Anneal, Standard},
        threshold::Running,
        topk::{Among, Aux, AuxForm, Prefix, Selection, TopK},
    },
    stage::{Failure, Result},
};

/// What JumpReLU's penalty is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum L0Mode {
    /// Coefficient times L0.
    Step,
    /// Coefficient times the sum of tanh(TANH_SCALE · activation · decoder norm).
    Tanh,
    /// Coefficient times (L0/TARGET_L0 - 1) squared.
    Target,
}

/// Settings of the sparsity of each architecture.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sparsity")]
pub struct SparsityArgs {
    /// Active latents a row (topk), or on average (batchtopk, matryoshka)
    #[arg(long, env, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub top_k: u32,
    /// Steps over which the number of active latents falls from K_START to TOP_K
    #[arg(long, env, default_value_t = 0)]
    pub k_anneal: u64,
    /// Active latents a row at the first step of K_ANNEAL [default: d_in]
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    pub k_start: Option<u32>,
    /// Shares of the latents that reconstruct the input alone (matryoshka), ascending; the whole is
    /// added where it is missing
    #[arg(long, env, value_delimiter = ',', default_value = "0.0625,0.125,0.25,0.5,1",
          value_parser = fraction)]
    pub prefixes: Vec<f64>,
    /// Weight of the auxiliary loss that revives dead latents (topk and relatives)
    #[arg(long, env, default_value_t = 0.03125, value_parser = not_negative)]
    pub aux_coefficient: f64,
    /// Whose auxiliary loss: normalised (dictionary_learning, OpenAI), scaled (SAELens) or
    /// scaled-positive (sparsify)
    #[arg(long, env, value_enum, default_value_t = AuxForm::Normalised)]
    pub aux_form: AuxForm,
    /// Dead latents used a row by the auxiliary loss [default: d_in/2]
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    pub k_aux: Option<u32>,
    /// Choose latents by activation times decoder norm (topk and relatives, SAELens)
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub by_decoder_norm: bool,
    /// Step from which batchtopk's threshold for single rows is averaged [default: 1000, at most
    /// half of the steps]
    #[arg(long, env)]
    pub threshold_start: Option<u64>,
    /// Weight that each step leaves to the steps before in that mean
    /// [default: a mean over the last twentieth of the steps, 0.999 at most]
    #[arg(long, env, value_parser = below_one)]
    pub threshold_decay: Option<f64>,
    /// L1 coefficient (standard, gated, panneal)
    #[arg(long, env, default_value_t = 0.1, value_parser = not_negative)]
    pub l1_lambda: f64,
    /// Weigh the L1 penalty by decoder norms (standard)
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub l1_by_norm: bool,
    /// Exponent of the penalty at the end (panneal); it is 1 at the start
    #[arg(long, env, default_value_t = 0.2, value_parser = fraction)]
    pub p_end: f64,
    /// Steps before the exponent falls (panneal) [default: a fifth of the steps]
    #[arg(long, env)]
    pub p_start: Option<u64>,
    /// Whose losses (gated): detached (dictionary_learning) or joint (SAELens)
    #[arg(long, env, value_enum, default_value_t = GatedForm::Detached)]
    pub gated_form: GatedForm,
    /// L0 coefficient (jumprelu)
    #[arg(long, env, default_value_t = 4e-4, value_parser = not_negative)]
    pub l0_lambda: f64,
    /// What the L0 coefficient multiplies (jumprelu)
    #[arg(long, env, value_enum, default_value_t = L0Mode::Step)]
    pub l0_mode: L0Mode,
    /// Wanted active latents a row (jumprelu with L0_MODE=target)
    #[arg(long, env, default_value_t = 20.0, value_parser = positive)]
    pub target_l0: f64,
    /// Steepness of L0_MODE=tanh
    #[arg(long, env, default_value_t = 4.0, value_parser = positive)]
    pub tanh_scale: f64,
    /// Width of the straight-through window, in units of the scaled input (jumprelu)
    #[arg(long, env, default_value_t = 0.001, value_parser = positive)]
    pub bandwidth: f64,
    /// What the window of the L0 penalty looks at (jumprelu)
    #[arg(long, env, value_enum, default_value_t = Window::PreActivation)]
    pub window: Window,
    /// First threshold, in units of the scaled input (jumprelu)
    #[arg(long, env, default_value_t = 0.001, value_parser = not_negative)]
    pub init_threshold: f64,
    /// Steps over which the sparsity coefficient rises [default: 10000, at most a fifth of the steps]
    #[arg(long, env)]
    pub sparsity_warmup: Option<u64>,
}

impl SparsityArgs {
    /// The loss to train with, for inputs of width `d_in`, `d_sae` latents and so many steps.
    ///
    /// # Errors
    /// A usage failure for prefixes that do not ascend.
    pub fn objective(
        &self,
        architecture: Architecture,
        (d_in, d_sae): (usize, usize),
        steps: u64,
    ) -> Result<Box<dyn Objective>> {
        Ok(match architecture {
            Architecture::TopK => Box::new(self.top_k(Among::Row, d_in, steps)),
            Architecture::BatchTopK => Box::new(self.top_k(Among::Batch, d_in, steps)),
            Architecture::Matryoshka => {
                let nested = self.nested(d_sae)?;
                Box::new(self.top_k(Among::Batch, d_in, steps).matryoshka(nested))
            }
            Architecture::JumpRelu => Box::new(Dense::new(self.jumprelu(), self.l0_lambda)),
            Architecture::Gated => {
                Box::new(Dense::new(Gated::new(self.gated_form), self.l1_lambda))
            }
            Architecture::Standard => {
                Box::new(Dense::new(Standard::new(self.l1_by_norm), self.l1_lambda))
            }
            Architecture::PAnneal => {
                let start = self.p_start.unwrap_or(steps / 5);
                let anneal = Anneal { start, steps, end: self.p_end };
                Box::new(Dense::new(Standard::annealed(anneal), self.l1_lambda))
            }
        })
    }

    /// Mean of active latents a row over so many steps, where the settings decide it.
    pub fn active(&self, architecture: Architecture, d_in: usize, steps: u64) -> Option<f64> {
        let target = architecture == Architecture::JumpRelu && self.l0_mode == L0Mode::Target;
        if !architecture.is_top_k() {
            return target.then_some(self.target_l0);
        }
        let (k, falls) = (f64::from(self.top_k), self.k_anneal.min(steps) as f64);
        if self.k_anneal == 0 {
            return Some(k);
        }
        let fall = self.k_start(d_in) as f64 - k;
        // A straight line, of which a short training sees the first part alone.
        let mean = 1.0 - 0.5 * falls / self.k_anneal as f64;
        Some(k + fall * mean * falls / steps as f64)
    }

    /// Dead latents used a row by the auxiliary loss.
    pub fn k_aux(&self, d_in: usize) -> usize {
        self.k_aux.map_or(d_in / 2, |k| k as usize).max(1)
    }

    /// The largest number of active latents a row at any step.
    pub fn largest_k(&self, d_in: usize) -> usize {
        let start = if self.k_anneal > 0 { self.k_start(d_in) } else { 0 };
        (self.top_k as usize).max(start)
    }

    fn k_start(&self, d_in: usize) -> usize {
        self.k_start.map_or(d_in, |k| k as usize)
    }

    /// Reconstructions of nested parts of the latents; 1 for prefixes that no objective takes.
    pub fn groups(&self, architecture: Architecture, d_sae: usize) -> usize {
        match architecture {
            Architecture::Matryoshka => self.nested(d_sae).map_or(1, |prefixes| prefixes.len()),
            _ => 1,
        }
    }

    fn top_k(&self, among: Among, d_in: usize, steps: u64) -> TopK {
        let selection = Selection {
            k: self.top_k as usize,
            among,
            anneal: (self.k_anneal > 0).then(|| (self.k_start(d_in), self.k_anneal)),
            by_decoder_norm: self.by_decoder_norm,
        };
        let aux =
            Aux { coefficient: self.aux_coefficient, k: self.k_aux(d_in), form: self.aux_form };
        let start = self.threshold_start.unwrap_or((steps / 2).min(1000));
        // Longer, the mean would lag behind the last steps: too high a threshold, too low an L0.
        let memory = (steps / 20).clamp(1, 1000) as f64;
        let decay = self.threshold_decay.unwrap_or(1.0 - 1.0 / memory);
        TopK::new(selection, aux, Running { decay, ..Running::from_step(start) })
    }

    /// Each prefix' error counts as much as the whole's, as SAELens.
    fn nested(&self, d_sae: usize) -> Result<Vec<Prefix>> {
        let latents = |share: &f64| (share * d_sae as f64).round() as usize;
        let mut widths: Vec<usize> = self.prefixes.iter().map(latents).collect();
        if widths.last() != Some(&d_sae) {
            widths.push(d_sae);
        }
        if widths[0] == 0 || !widths.is_sorted_by(|a, b| a < b) {
            let what = format!("PREFIXES are {widths:?} of {d_sae} latents: they must ascend");
            return Err(Failure::usage(what).hint("give shares as in 0.25,0.5,1"));
        }
        Ok(widths.into_iter().map(|latents| Prefix { latents, weight: 1.0 }).collect())
    }

    fn jumprelu(&self) -> JumpRelu {
        let sparsity = match self.l0_mode {
            L0Mode::Step => Sparsity::Step,
            L0Mode::Tanh => Sparsity::Tanh { scale: self.tanh_scale as f32 },
            L0Mode::Target => Sparsity::Target { l0: self.target_l0 },
        };
        JumpRelu::new(self.bandwidth as f32).with(sparsity, self.window)
    }
}
