//! The training that is planned: its settings, and rows to measure it with.

use super::PlanArgs;
use crate::{
    sae::{
        settings::Plan,
        train::{Job, Subject, SubjectArgs, probe::Sample},
    },
    stage::{CommonArgs, Context, Failure, Result},
};

/// Rows of a measured batch at most: what a larger one takes a row is the same.
const ROWS: usize = 4096;

/// The training that is planned.
pub(super) struct Planned {
    /// Its settings, with the hook.
    pub args: SubjectArgs,
    /// What they come to.
    pub plan: Plan,
    /// On what.
    pub input: Input,
}

/// Where rows come from.
pub(super) enum Input {
    /// A capture.
    Stored(Box<Job>),
    /// None yet: only the width is known, and how many rows would be trained on.
    Width(usize),
}

impl Planned {
    /// Finds the capture, unless D_IN stands for it.
    ///
    /// # Errors
    /// As 02_train_sae's for its settings; a usage failure for D_IN with settings that need a capture,
    /// or without TOKENS.
    pub fn new(
        common: &CommonArgs,
        planning: &PlanArgs,
        args: &SubjectArgs,
        context: &Context,
    ) -> Result<Self> {
        let args = args.clone();
        let Some(d_in) = planning.d_in.map(|width| width as usize) else {
            let job = Subject::new(common, args.clone(), context.clone(), None)?.open()?;
            return Ok(Self { args, plan: job.plan.clone(), input: Input::Stored(Box::new(job)) });
        };
        if args.target_hook.is_some() || common.run_id.is_some() {
            return Err(Failure::usage("D_IN is given along with RUN_ID or TARGET_HOOK")
                .hint("D_IN is for planning without a capture; leave it out to plan for one"));
        }
        let Some(tokens) = args.train.tokens else {
            return Err(Failure::usage("D_IN is given, but TOKENS is not")
                .hint("without a capture nothing else says how many rows there will be"));
        };
        let plan = args.train.plan(d_in, None, false, tokens as usize)?;
        args.train.objective(&plan)?;
        Ok(Self { args, plan, input: Input::Width(d_in) })
    }

    /// The same with fewer latents.
    ///
    /// # Errors
    /// As [`crate::sae::settings::TrainArgs::plan`].
    pub fn narrower(&self, d_sae: usize) -> Result<(SubjectArgs, Plan)> {
        let mut args = self.args.clone();
        args.train.d_sae = u32::try_from(d_sae).ok();
        let shape = self.plan.shape;
        let d_out = self.plan.transcoder.then_some(shape.d_out);
        let rows = match &self.input {
            Input::Stored(job) => job.rows.training(),
            Input::Width(_) => args.train.tokens.unwrap_or(0) as usize,
        };
        let plan = args.train.plan(shape.d_in, d_out, shape.skip, rows)?;
        Ok((args, plan))
    }

    /// The hook, and that of a transcoder's target, where there is a capture.
    pub fn hooks(&self) -> Option<String> {
        match &self.input {
            Input::Stored(job) => Some(job.subject.hooks()),
            Input::Width(_) => None,
        }
    }

    /// A batch to measure with.
    pub fn sample(&self) -> Sample {
        let rows = self.plan.batch.min(ROWS);
        match &self.input {
            Input::Stored(job) => Sample::stored(job, rows),
            Input::Width(d_in) => Sample::random(self.args.train.seed, rows, *d_in),
        }
    }
}
