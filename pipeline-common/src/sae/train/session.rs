//! A training under way: batches, steps, records, validations, checkpoints.

use std::{
    convert::Infallible,
    mem,
    time::{Duration, Instant},
};

use rayon::prelude::*;

use crate::{
    kernels::columns::row_variance,
    remote::mirror::Mirror,
    sae::{
        Sae, SaeError,
        checkpoint::Checkpoints,
        curves::Curves,
        evaluate::{Evaluation, evaluate, reconstruct},
        formats::adapt::fold_decoder_norm,
        history::{Record, unexplained},
        parameters::squared,
        resample::Candidates,
        rows::Rows,
        settings::{Plan, values::Every},
        trainer::{Rates, Trainer, centre},
        variant::Losses,
    },
    stage::{Failure, Result},
};

/// The result of a step.
type Made<T> = std::result::Result<T, SaeError>;

/// When something is written.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Steps between records.
    pub log: u64,
    /// Steps between validations, or none but that at the end.
    pub validate: Option<u64>,
    /// Between checkpoints.
    pub checkpoint: Every,
}

/// When dead latents get new directions.
#[derive(Clone, Copy, Debug)]
pub struct Resampling {
    /// Steps between two times.
    pub every: u64,
    /// Thresholds of new latents.
    pub threshold: f32,
    /// Decides which rows they take their directions from.
    pub seed: u64,
}

/// Steps, and the time they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Steps made.
    pub steps: u64,
    /// Time, of which several trainings that share their batches share the waiting.
    pub time: Duration,
}

/// A training under way.
pub struct Session<'a> {
    pub plan: &'a Plan,
    pub rows: &'a Rows,
    pub data_seed: u64,
    pub every: Intervals,
    pub resampling: Option<Resampling>,
    pub checkpoints: Checkpoints,
    pub curves: Curves,
    pub trainer: Trainer,
    pub mirror: Option<Mirror>,
    /// By this process.
    pub spent: Spent,
    /// Since the last record.
    pub lap: Spent,
    /// When the last checkpoint was written, or the training went on.
    pub saved: Instant,
    /// Losses of the step under way, and the variance of its rows.
    pub sums: (Losses, f64),
    /// Figures on held-out rows after the last step, once it is made.
    pub evaluation: Option<Evaluation>,
}

impl Session<'_> {
    /// Steps made.
    pub fn step(&self) -> u64 {
        self.trainer.state().step
    }

    /// Whether all steps are made.
    pub fn is_over(&self) -> bool {
        self.step() >= self.plan.schedule.steps
    }

    /// Takes a batch of the step under way, scaled, `[batch, d_in]` and `[batch, d_out]`; `input` is
    /// used as working space. `waited` was spent on it.
    pub fn accumulate(&mut self, input: &mut [f32], target: Option<&[f32]>, waited: Duration) {
        let begin = Instant::now();
        let share = 1.0 / f64::from(self.plan.accumulate);
        if self.is_recorded() {
            let output = target.unwrap_or(input);
            self.sums.1 += share * row_variance(output, self.plan.shape.d_out);
        }
        let losses = self.trainer.accumulate(input, target, self.rates());
        self.sums.0 = self.sums.0.plus(&losses, share);
        self.charge(waited + begin.elapsed());
    }

    /// Makes the step with what was accumulated, and whatever is due after it. Its record, where
    /// there is one.
    ///
    /// # Errors
    /// A failure with the last good checkpoint where the training diverged; I/O errors.
    pub fn advance(&mut self) -> Result<Option<Record>> {
        let begin = Instant::now();
        let made = self.make_step().map_err(|error| self.stopped(error))?;
        self.spent.steps += 1;
        self.lap.steps += 1;
        self.charge(begin.elapsed());
        if let Some(record) = &made {
            let lap = mem::take(&mut self.lap);
            self.curves.push(record.clone(), lap.steps * self.plan.step_rows(), lap.time)?;
        }
        if self.is_due() {
            let begin = Instant::now();
            self.save()?;
            self.charge(begin.elapsed());
        }
        Ok(made)
    }

    fn charge(&mut self, time: Duration) {
        self.spent.time += time;
        self.lap.time += time;
    }

    /// Makes the step; its record where there is to be one.
    ///
    /// # Errors
    /// [`SaeError::Diverged`], which leaves the parameters as they were.
    fn make_step(&mut self) -> Made<Option<Record>> {
        let (rates, recorded, validated) = (self.rates(), self.is_recorded(), self.is_validated());
        let (losses, variance) = mem::take(&mut self.sums);
        must_be_finite(self.step(), &losses)?;
        let gradient_norm = self.trainer.apply(rates)?;
        self.resample_if_due();
        if !recorded {
            return Ok(None);
        }
        let mut made = Record { gradient_norm, ..self.record(&losses, variance, rates) };
        if validated {
            let evaluation = self.evaluate();
            self.trainer.validated(evaluation.figures.fvu);
            made.validation = Some(evaluation.figures);
            self.evaluation = self.is_over().then_some(evaluation);
        }
        Ok(Some(made))
    }

    fn rates(&self) -> Rates {
        let (schedule, step) = (&self.plan.schedule, self.step());
        Rates { lr: self.plan.lr * schedule.lr(step), sparsity: schedule.sparsity(step) }
    }

    /// Whether there will be a record of the step under way.
    fn is_recorded(&self) -> bool {
        self.step().is_multiple_of(self.every.log) || self.is_validated()
    }

    /// Whether figures on held-out rows will follow the step under way.
    fn is_validated(&self) -> bool {
        let after = self.step() + 1;
        after == self.plan.schedule.steps
            || self.every.validate.is_some_and(|n| after.is_multiple_of(n))
    }

    fn is_due(&self) -> bool {
        match self.every.checkpoint {
            Every::Steps(n) => self.step().is_multiple_of(n),
            Every::Minutes(n) => self.saved.elapsed() >= Duration::from_secs(60 * n),
        }
    }

    /// Dead latents take their directions from the rows of the step just made.
    fn resample_if_due(&mut self) {
        let step = self.step();
        let Some(Resampling { every, threshold, seed }) = self.resampling else { return };
        let due = step.is_multiple_of(every) && !self.is_over();
        if !due || self.trainer.state().firing.dead().is_empty() {
            return;
        }
        let (mut numbers, mut input, mut target) = (vec![], vec![], vec![]);
        let position = (step - 1) * self.plan.step_rows();
        self.rows.order(self.data_seed).batch(position, self.plan.batch, &mut numbers);
        let (sae, mut losses) = (self.sae(), vec![]);
        let Ok(()) = reconstruct(&sae, self.rows, &numbers, |part| {
            losses.par_extend(part.difference.par_chunks(self.plan.shape.d_out).map(squared));
            Ok::<_, Infallible>(())
        });
        self.rows.input.gather(&numbers, &mut input);
        self.rows.output().gather(&numbers, &mut target);
        let b_dec = &sae.params.b_dec;
        centre(&mut target, b_dec);
        if sae.subtract_b_dec {
            centre(&mut input, b_dec);
        }
        let candidates = Candidates { input: &input, target: &target, losses: &losses };
        let count = self.trainer.resample(candidates, threshold, seed);
        tracing::info!("step {step}: {count} dead latents have new directions");
    }

    /// What to say of an error that ends the training; the page shows what led to a divergence.
    fn stopped(&self, error: SaeError) -> Failure {
        if !matches!(error, SaeError::Diverged { .. }) {
            return error.into();
        }
        if let Err(e) = self.curves.save() {
            tracing::warn!("the curves were not written: {e}");
        }
        let place = match self.checkpoints.newest() {
            Ok(Some((path, step))) => {
                format!("the last good checkpoint is `{}`, step {step}", path.display())
            }
            _ => "there is no checkpoint yet".to_owned(),
        };
        Failure::from(error).context(format!("training stopped; {place}"))
    }

    /// The SAE as it would be saved now, for scaled rows.
    pub fn sae(&self) -> Sae {
        let mut params = self.trainer.state().result().clone();
        if let Some(threshold) = self.trainer.inference_threshold() {
            params.threshold = vec![threshold; params.d_sae];
        }
        let plan = self.plan;
        let mut sae = Sae { subtract_b_dec: plan.centred, ..Sae::new(params, plan.activation) };
        if plan.by_decoder_norm {
            // An SAE chooses by activation alone.
            fold_decoder_norm(&mut sae);
        }
        sae
    }

    /// Figures on held-out rows.
    pub fn evaluate(&self) -> Evaluation {
        evaluate(&self.sae(), self.rows, &self.rows.evaluation(self.data_seed))
    }

    /// Writes a checkpoint; the curves first, since a resume cuts them back to it.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn save(&mut self) -> Result<()> {
        let marks = self.curves.save()?;
        self.checkpoints.save(self.trainer.state(), marks).map_err(|error| self.stopped(error))?;
        self.saved = Instant::now();
        Ok(self.mirror.as_mut().map_or(Ok(()), Mirror::push)?)
    }

    fn record(&self, losses: &Losses, variance: f64, rates: Rates) -> Record {
        let state = self.trainer.state();
        let fvu = unexplained(losses.mse, variance);
        Record {
            step: state.step,
            tokens: state.step * self.plan.step_rows(),
            loss: losses.total,
            mse: losses.mse,
            fvu,
            explained_variance: 1.0 - fvu,
            l0: losses.l0,
            l1: losses.l1,
            sparsity: losses.sparsity,
            sparsity_factor: rates.sparsity,
            aux: losses.aux,
            lr: rates.lr,
            dead_fraction: state.firing.dead_fraction(),
            ..Record::default()
        }
    }
}

fn must_be_finite(step: u64, losses: &Losses) -> Made<()> {
    let named = [
        ("the loss", losses.total),
        ("the squared error", losses.mse),
        ("the sparsity penalty", losses.sparsity),
        ("the auxiliary loss", losses.aux),
        ("the sum of activations", losses.l1),
    ];
    match named.into_iter().find(|(_, value)| !value.is_finite()) {
        Some((quantity, value)) => {
            Err(SaeError::Diverged { step, quantity: quantity.to_owned(), value })
        }
        None => Ok(()),
    }
}
