//! How fast the planned training is.

use std::time::Duration;

use serde::Serialize;

use super::{PlanArgs, subject::Planned};
use crate::{
    kernels::product::product_rate,
    sae::train::{
        Budget,
        probe::{Pace, probe},
    },
    stage::{Context, Result, memory},
};

/// Share of the free memory that measuring may take.
const SHARE: f64 = 0.7;
/// One step's share of the time to measure, by its arithmetic at the rate of dense products.
const STEP: f64 = 0.2;
/// Latents that a measured SAE keeps.
const FEWEST: usize = 256;

/// Tokens a second and where the figure is from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Rate {
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// How it is known.
    pub source: Source,
}

/// How a rate is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// TOKENS_PER_SECOND.
    Given,
    /// Steps made here.
    Measured {
        /// Threads.
        threads: usize,
        /// Latents of the SAE that was measured: fewer than planned where that would not fit into
        /// memory or time; the figure is scaled by arithmetic and parameters.
        d_sae: usize,
    },
}

impl Rate {
    /// As given, or measured.
    ///
    /// # Errors
    /// As [`probe`].
    pub fn new(
        planning: &PlanArgs,
        planned: &Planned,
        budget: &Budget,
        context: &Context,
    ) -> Result<Self> {
        if let Some(rate) = planning.tokens_per_second {
            return Ok(Self { tokens_per_second: rate, source: Source::Given });
        }
        let limit = planning.probe_seconds;
        let (mut args, mut plan) = (planned.args.clone(), planned.plan.clone());
        let mut part = Budget::new(&args.train, &plan, None);
        let rate = product_rate();
        let sample = planned.sample();
        let rows = sample.rows(plan.shape.d_in) as f64;
        let fits = |part: &Budget| {
            let room = memory::available().map_or(f64::INFINITY, |free| SHARE * free as f64);
            let step = part.flop.total() * rows / rate;
            (part.memory.total() as f64) < room && step < STEP * limit
        };
        while !fits(&part) && plan.shape.d_sae > FEWEST {
            let Ok(half) = planned.narrower(plan.shape.d_sae.div_ceil(2)) else { break };
            (args, plan) = half;
            part = Budget::new(&args.train, &plan, None);
        }
        context.leave_if_asked("nothing was begun")?;
        let pace = probe(&args.train, &plan, &sample, Duration::from_secs_f64(limit))?;
        let scaled = Pace {
            row: pace.row * budget.flop.of_rows() / part.flop.of_rows(),
            step: pace.step * budget.parameters as f64 / part.parameters as f64,
        };
        Ok(Self {
            tokens_per_second: scaled.tokens_per_second(budget.step_rows),
            source: Source::Measured { threads: context.threads, d_sae: plan.shape.d_sae },
        })
    }

    /// Seconds of a training.
    pub fn seconds(&self, tokens: u64) -> f64 {
        tokens as f64 / self.tokens_per_second
    }
}
