//! A training under way: steps, records, validations, checkpoints.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::loader::{Loaded, Loader};
use crate::{
    kernels::columns::row_variance,
    remote::mirror::Mirror,
    sae::{
        Sae, SaeError,
        checkpoint::Checkpoints,
        curves::Curves,
        evaluate::{Evaluation, evaluate},
        history::{Record, unexplained},
        rows::Rows,
        settings::{Plan, values::Every},
        trainer::{Rates, Trainer},
        variant::Losses,
    },
    stage::{Context, Failure, Reporter, Result},
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

/// A training under way.
pub struct Session<'a> {
    pub plan: &'a Plan,
    pub rows: &'a Rows,
    pub seed: u64,
    pub every: Intervals,
    pub checkpoints: Checkpoints,
    pub curves: Curves,
    pub trainer: Trainer,
    pub mirror: Option<Mirror>,
    /// Spent on steps, by this process.
    pub spent: Duration,
    /// Steps made by this process.
    pub steps: u64,
    /// Steps and time since the last record.
    pub lap: (u64, Instant),
    /// Figures on held-out rows after the last step, once it is made.
    pub evaluation: Option<Evaluation>,
}

impl Session<'_> {
    /// Makes the steps that are left.
    pub fn train(&mut self, context: &Context, reporter: &Reporter) -> Result<()> {
        let (plan, rows) = (self.plan, self.rows);
        let progress = context.progress("training", plan.schedule.steps, "steps");
        let mut progress = progress.reported_by(reporter);
        let step = self.trainer.state().step;
        progress.resume_at(step, step * plan.step_rows());
        let parts = u64::from(plan.accumulate);
        let batches = step * parts..plan.schedule.steps * parts;
        let (began, mut saved, mut note) = (Instant::now(), Instant::now(), String::new());
        self.lap = (0, began);
        std::thread::scope(|scope| {
            let order = rows.order(self.seed);
            let loader = Loader::start(scope, rows, order, batches, plan.batch);
            while self.trainer.state().step < plan.schedule.steps {
                let made = self.step(&loader).map_err(|error| self.stopped(error))?;
                self.steps += 1;
                self.lap.0 += 1;
                if let Some(made) = made {
                    note = format!("loss {:.4} FVU {:.4} L0 {:.1}", made.loss, made.fvu, made.l0);
                    let (steps, since) = mem::replace(&mut self.lap, (0, Instant::now()));
                    self.curves.push(made, steps * plan.step_rows(), since.elapsed())?;
                }
                self.spent = began.elapsed();
                progress.advance(1, plan.step_rows(), &note);
                let stopping = context.stop.requested();
                if stopping || self.is_due(saved) {
                    self.save()?;
                    saved = Instant::now();
                }
                if stopping {
                    let step = self.trainer.state().step;
                    let steps = plan.schedule.steps;
                    context.leave_if_asked(&format!("checkpoint at step {step} of {steps}"))?;
                }
            }
            progress.finish(&note);
            Ok(())
        })
    }

    /// One step; its record where there is to be one.
    ///
    /// # Errors
    /// [`SaeError::Diverged`], which leaves the state as it was.
    fn step(&mut self, loader: &Loader) -> Made<Option<Record>> {
        let (plan, step) = (self.plan, self.trainer.state().step);
        let last = step + 1 == plan.schedule.steps;
        let record = step.is_multiple_of(self.every.log) || last;
        let validate = self.every.validate.is_some_and(|n| (step + 1).is_multiple_of(n)) || last;
        let rates =
            Rates { lr: plan.lr * plan.schedule.lr(step), sparsity: plan.schedule.sparsity(step) };
        let (mut losses, mut variance) = (Losses::default(), 0.0);
        let share = 1.0 / f64::from(plan.accumulate);
        for _ in 0..plan.accumulate {
            let Some(mut batch) = loader.next() else { break };
            if record || validate {
                variance += share * self.variance(&batch);
            }
            let of_batch =
                self.trainer.accumulate(&mut batch.input, batch.target.as_deref(), rates);
            losses = losses.plus(&of_batch, share);
            loader.reuse(batch);
        }
        must_be_finite(step, &losses)?;
        let gradient_norm = self.trainer.apply(rates)?;
        if !record && !validate {
            return Ok(None);
        }
        let mut made = Record { gradient_norm, ..self.record(&losses, variance, rates) };
        if validate {
            let evaluation = self.evaluate();
            self.trainer.validated(evaluation.figures.fvu);
            made.validation = Some(evaluation.figures);
            self.evaluation = last.then_some(evaluation);
        }
        Ok(Some(made))
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

    fn variance(&self, batch: &Loaded) -> f64 {
        row_variance(batch.target.as_ref().unwrap_or(&batch.input), self.plan.shape.d_out)
    }

    fn is_due(&self, saved: Instant) -> bool {
        match self.every.checkpoint {
            Every::Steps(n) => self.trainer.state().step.is_multiple_of(n),
            Every::Minutes(n) => saved.elapsed() >= Duration::from_secs(60 * n),
        }
    }

    /// The SAE as it would be saved now, for scaled rows.
    pub fn sae(&self) -> Sae {
        let mut params = self.trainer.state().result().clone();
        if let Some(threshold) = self.trainer.inference_threshold() {
            params.threshold = vec![threshold; params.d_sae];
        }
        Sae { subtract_b_dec: self.plan.centred, ..Sae::new(params, self.plan.activation) }
    }

    /// Figures on held-out rows.
    pub fn evaluate(&self) -> Evaluation {
        evaluate(&self.sae(), self.rows, &self.rows.evaluation(self.seed))
    }

    /// The curve first: a resume cuts it back to the checkpoint's step.
    pub fn save(&mut self) -> Result<()> {
        let marks = self.curves.save()?;
        self.checkpoints.save(self.trainer.state(), marks).map_err(|error| self.stopped(error))?;
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
