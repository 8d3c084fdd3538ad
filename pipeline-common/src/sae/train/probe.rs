//! How long steps of a training take here, by making some.

use std::time::{Duration, Instant};

use super::job::Job;
use crate::{
    sae::{
        SaeError,
        random::{Normal, Purpose},
        settings::{Plan, TrainArgs},
        trainer::{Rates, State, Trainer},
    },
    stage,
};

/// Rows to make steps on.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `[rows, d_in]`, scaled.
    pub input: Vec<f32>,
    /// A transcoder's target, `[rows, d_out]`.
    pub target: Option<Vec<f32>>,
}

impl Sample {
    /// The first rows of a training.
    pub fn stored(job: &Job, rows: usize) -> Self {
        let (mut numbers, mut input) = (vec![], vec![]);
        job.rows.order(job.data_seed()).batch(0, rows, &mut numbers);
        job.rows.input.gather(&numbers, &mut input);
        let target = job.rows.target.as_ref().map(|side| {
            let mut target = vec![];
            side.gather(&numbers, &mut target);
            target
        });
        Self { input, target }
    }

    /// Normal numbers, rows of mean square norm 1.
    pub fn random(seed: u64, rows: usize, d_in: usize) -> Self {
        let mut input = vec![0.0; rows * d_in];
        Normal::new(seed, Purpose::Probe).fill(&mut input);
        let scale = (d_in as f32).sqrt().recip();
        input.iter_mut().for_each(|x| *x *= scale);
        Self { input, target: None }
    }

    /// How many rows of this width.
    pub fn rows(&self, d_in: usize) -> usize {
        self.input.len() / d_in
    }
}

/// What a step takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Seconds for each row: losses and gradients.
    pub row: f64,
    /// Seconds for each step: the update of the parameters.
    pub step: f64,
}

impl Pace {
    /// Tokens a second with so many rows a step.
    pub fn tokens_per_second(&self, step_rows: u64) -> f64 {
        let rows = step_rows as f64;
        rows / (rows * self.row + self.step)
    }
}

/// Makes steps on `sample` for about `limit`, two at least: the first is not counted. The learning
/// rate is 0, so that none diverges.
///
/// # Errors
/// [`SaeError::Diverged`] for rows that are not finite; as [`TrainArgs::objective`].
pub fn probe(
    train: &TrainArgs,
    plan: &Plan,
    sample: &Sample,
    limit: Duration,
) -> stage::Result<Pace> {
    let Sample { input, target } = sample;
    let first = train.first_parameters(plan, target.as_ref().unwrap_or(input));
    let state = State::new(first, plan.dead_after, plan.optimiser.ema.is_some());
    let (objective, optimiser) = (train.objective(plan)?, plan.optimiser.clone());
    let mut trainer = Trainer::new(state, objective, optimiser, plan.centred, plan.precision);
    let rates = Rates { lr: 0.0, sparsity: 1.0 };
    let mut batch = vec![];
    let mut step = || -> Result<[f64; 2], SaeError> {
        batch.clone_from(input);
        let begin = Instant::now();
        trainer.accumulate(&mut batch, target.as_deref(), rates);
        let rows = begin.elapsed();
        trainer.apply(rates)?;
        Ok([rows, begin.elapsed() - rows].map(|time| time.as_secs_f64()))
    };
    let begin = Instant::now();
    step()?;
    let (mut steps, mut seconds) = (0.0, [0.0; 2]);
    while steps == 0.0 || begin.elapsed() < limit {
        let [rows, update] = step()?;
        seconds = [seconds[0] + rows, seconds[1] + update];
        steps += 1.0;
    }
    let rows = sample.rows(plan.shape.d_in) as f64;
    Ok(Pace { row: seconds[0] / steps / rows, step: seconds[1] / steps })
}
