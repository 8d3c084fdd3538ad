//! Several trainings over one read of the rows.
//!
//! Trainings that see the same batches in the same order are a group: each batch is read once and
//! handed to all of them in turn. Nothing else connects them. Each has its checkpoints, its curves
//! and its end, and comes out as if it were alone; where a kill left them at different steps, those
//! that are ahead wait for the others.

use std::time::Instant;

use super::{TrainSae, job::Job, loader::Loader, session::Session};
use crate::{
    slurm::Share,
    stage::{Context, Failure, Kind, Progress, Reporter, Result, Stage, lock::Lock},
};

/// Runs and why they ended.
type Failures = Vec<(String, Failure)>;

/// Trains all jobs, those with the same batches in one read of the rows. One that fails does not
/// stop the others.
///
/// # Errors
/// A stop on request; else the first failure, once all others are done.
pub fn train(context: &Context, jobs: &[Job]) -> Result<()> {
    let groups = groups(jobs);
    if jobs.len() > 1 {
        tracing::info!("{} SAEs in {} reads of the rows", jobs.len(), groups.len());
    }
    let mut failures = vec![];
    for group in groups {
        let mut group = Group::start(&group, jobs.len() > 1);
        group.train(context)?;
        failures.append(&mut group.failures);
    }
    outcome(failures, jobs.len())?;
    // Of several, whichever was complete last: the same one after every interruption.
    match jobs {
        [_, .., last] => last.subject.publish(None),
        _ => Ok(()),
    }
}

/// The jobs with the same batches, in the order of the first of each.
fn groups(jobs: &[Job]) -> Vec<Vec<&Job>> {
    let mut groups: Vec<Vec<&Job>> = vec![];
    for job in jobs {
        match groups.iter_mut().find(|group| group[0].feed() == job.feed()) {
            Some(group) => group.push(job),
            None => groups.push(vec![job]),
        }
    }
    groups
}

/// The failure that decides the exit code: what only has to be tried again comes last.
fn outcome(mut failures: Failures, jobs: usize) -> Result<()> {
    failures.sort_by_key(|(_, failure)| failure.kind == Kind::Stopped);
    let failed = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some((_, failure)) if jobs == 1 => Err(failure),
        Some((run, failure)) => {
            Err(failure.context(format!("{failed} of {jobs} SAEs are not trained, `{run}` first")))
        }
    }
}

/// Trainings with the same batches.
struct Group<'a> {
    /// Those that are neither complete nor failed.
    members: Vec<Member<'a>>,
    failures: Failures,
    /// A batch that a member may overwrite.
    spare: Vec<f32>,
}

impl<'a> Group<'a> {
    fn start(jobs: &[&'a Job], several: bool) -> Self {
        let (mut members, mut failures) = (vec![], vec![]);
        for job in jobs {
            match Member::start(job, several) {
                Ok(member) => members.extend(member),
                Err(failure) => set_aside(job, failure, &mut failures),
            }
        }
        Self { members, failures, spare: vec![] }
    }

    /// Makes the steps that are left.
    fn train(&mut self, context: &Context) -> Result<()> {
        self.each(Member::end_if_over);
        let Some(first) = self.members.first().map(|member| member.job) else { return Ok(()) };
        let from = self.members.iter().map(|m| m.session.step()).min().unwrap_or(0);
        let to = self.members.iter().map(|m| m.job.plan.schedule.steps).max().unwrap_or(0);
        let parts = u64::from(first.plan.accumulate);
        std::thread::scope(|scope| {
            let order = first.rows.order(first.data_seed());
            let batches = from * parts..to * parts;
            let loader = Loader::start(scope, &first.rows, order, batches, first.plan.batch);
            for step in from..to {
                (0..parts).for_each(|_| self.feed(&loader, step));
                self.each(|member| member.advance(step));
                if self.members.is_empty() {
                    break;
                }
                if context.stop.requested() {
                    return self.stop(context);
                }
            }
            Ok(())
        })
    }

    /// Hands the next batch to all that are at `step`.
    fn feed(&mut self, loader: &Loader, step: u64) {
        let begin = Instant::now();
        let Some(mut batch) = loader.next() else { return };
        let target = batch.target.as_deref();
        let due = self.members.iter_mut().map(|member| &mut member.session);
        let mut due: Vec<&mut Session<'_>> = due.filter(|s| s.step() == step).collect();
        let waited = begin.elapsed() / due.len().max(1) as u32;
        if let Some((last, others)) = due.split_last_mut() {
            for session in others {
                self.spare.clone_from(&batch.input);
                session.accumulate(&mut self.spare, target, waited);
            }
            last.accumulate(&mut batch.input, target, waited);
        }
        loader.reuse(batch);
    }

    /// Does something with each member, which leaves the group where that says so or fails.
    fn each(&mut self, mut act: impl FnMut(&mut Member<'a>) -> Result<Stays>) {
        self.members.retain_mut(|member| match act(member) {
            Ok(stays) => stays == Stays::Yes,
            Err(failure) => {
                member.reporter.ended(Some(&failure));
                set_aside(member.job, failure, &mut self.failures);
                false
            }
        });
    }

    /// Saves all progress and leaves.
    fn stop(&mut self, context: &Context) -> Result<()> {
        self.each(|member| member.session.save().map(|()| Stays::Yes));
        let place = |m: &Member<'_>| {
            format!("checkpoint at step {} of {}", m.session.step(), m.job.plan.schedule.steps)
        };
        let places: Vec<String> = self.members.iter().map(place).collect();
        let left = context.leave_if_asked(&places.join(", "));
        self.members.iter().for_each(|member| member.reporter.ended(left.as_ref().err()));
        left
    }
}

/// Keeps a failure for the end.
fn set_aside(job: &Job, failure: Failure, failures: &mut Failures) {
    let run = job.subject.run_id.clone();
    tracing::debug!("`{run}` is set aside: {:#}", failure.source);
    failures.push((run, failure));
}

/// Whether a member stays in its group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stays {
    Yes,
    No,
}

/// One training of a group.
struct Member<'a> {
    job: &'a Job,
    session: Session<'a>,
    reporter: Reporter,
    progress: Progress,
    note: String,
    _lock: Lock,
}

impl<'a> Member<'a> {
    /// Takes the run's lock and goes on where it was; none for a run that is complete.
    fn start(job: &'a Job, several: bool) -> Result<Option<Self>> {
        let subject = &job.subject;
        let Some((lock, mirror)) = subject.begin()? else { return Ok(None) };
        let (context, steps) = (&subject.context, job.plan.schedule.steps);
        let reporter = Reporter::new(context, &subject.run_dir, TrainSae::SECTION, Share::WHOLE);
        reporter.begin("steps", 0, steps);
        let session = job.session(mirror).inspect_err(|failure| reporter.ended(Some(failure)))?;
        let progress = if several {
            context.progress_lines(&subject.run_id, steps, "steps")
        } else {
            context.progress("training", steps, "steps")
        };
        let mut progress = progress.reported_by(&reporter);
        progress.resume_at(session.step(), session.step() * job.plan.step_rows());
        Ok(Some(Self { job, session, reporter, progress, note: String::new(), _lock: lock }))
    }

    /// Makes `step`, for which it has its batches, unless it is ahead.
    fn advance(&mut self, step: u64) -> Result<Stays> {
        if self.session.step() != step {
            return Ok(Stays::Yes);
        }
        if let Some(made) = self.session.advance()? {
            self.note = format!("loss {:.4} FVU {:.4} L0 {:.1}", made.loss, made.fvu, made.l0);
        }
        self.progress.advance(1, self.job.plan.step_rows(), &self.note);
        self.end_if_over()
    }

    fn end_if_over(&mut self) -> Result<Stays> {
        if !self.session.is_over() {
            return Ok(Stays::Yes);
        }
        self.progress.finish(&self.note);
        self.job.finish(&mut self.session)?;
        self.reporter.ended(None);
        Ok(Stays::No)
    }
}
