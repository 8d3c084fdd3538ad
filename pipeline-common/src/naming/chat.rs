//! Single requests to a chat endpoint, several at a time.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Builder,
};

use super::{
    http::CallError,
    job::{Job, Standing},
    ledger::{Asked, Event, Ledger, Usage},
    price::Price,
    provider::{Outcome, Provider},
    question::Question,
};
use crate::stage::{Failure, Kind, Result};

/// Questions as they are made.
pub(super) type Questions<'a> = &'a mut (dyn Iterator<Item = Result<Question>> + Send);

/// Requests in vain in a row, beyond those that may be under way together, that end the stage: something is wrong
/// with the server and not with a request.
const IN_A_ROW: usize = 4;
/// Times that a request is repeated of which nobody knows whether it was answered.
const UNSURE: u32 = 2;
/// How often a worker that has no money left looks whether others' answers were cheaper than feared.
const TICK: std::time::Duration = std::time::Duration::from_millis(20);

/// What the threads share.
struct Shared<'a> {
    job: &'a Job<'a>,
    provider: &'a Provider,
    ledger: Mutex<&'a mut Ledger>,
    questions: Mutex<Questions<'a>>,
    under_way: AtomicUsize,
    /// Requests asked in vain since the last answer. Only an answer tells that the requests, not the server,
    /// are at fault.
    vain: Mutex<Vec<Event>>,
    sent: AtomicU64,
    /// Whether what is left of the sum does not suffice.
    short: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

/// Sends what is open of `questions` and records the answers; how many requests.
///
/// # Errors
/// An unavailable server; a sum that would be exceeded, after what it allows was sent; a stop.
pub(super) fn send(
    job: &Job<'_>,
    provider: &Provider,
    ledger: &mut Ledger,
    questions: Questions<'_>,
) -> Result<u64> {
    let shared = Shared {
        job,
        provider,
        ledger: Mutex::new(ledger),
        questions: Mutex::new(questions),
        under_way: AtomicUsize::new(0),
        vain: Mutex::default(),
        sent: AtomicU64::new(0),
        short: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        for _ in 0..job.backend.concurrency {
            if let Err(e) = Builder::new().spawn_scoped(scope, || shared.work()) {
                shared.fail(Failure::unavailable(format!("cannot start a thread: {e}")));
                return;
            }
        }
    });
    let Shared { sent, short, failure, vain, .. } = shared;
    let sent = sent.into_inner();
    if let Some(failure) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    let vain = vain.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !vain.is_empty() && !ledger.state().has_answers() {
        let what = format!("the server has answered none of {} requests", vain.len());
        return Err(
            Failure::unavailable(what).hint("check NAMING_MODEL, STRUCTURED and the server")
        );
    }
    ledger.write(vain)?;
    if short.into_inner() { Err(over_budget(ledger, sent)) } else { Ok(sent) }
}

/// Why a stage ends that has no money left; batches may still turn out cheaper than feared.
pub(super) fn over_budget(ledger: &Ledger, sent: u64) -> Failure {
    let what =
        format!("MAX_COST might be exceeded: {sent} requests were sent, the others were not");
    if ledger.state().intents.is_empty() {
        Failure::unavailable(what)
            .hint("raise MAX_COST; `status` says what is spent and what was asked in vain")
    } else {
        Failure::stopped(what).hint("`retrieve`, which says what batches cost, and `send` again")
    }
}

/// What an outcome means for the ledger; an answer without a count of tokens costs what it may at most.
pub(super) fn event(asked: &Asked, outcome: Outcome, price: Price) -> Event {
    let cost = |usage: Usage| {
        if usage == Usage::default() { asked.at_most } else { price.of(usage) }
    };
    let id = asked.id.clone();
    match outcome {
        Outcome::Answered { text, model, usage } => {
            Event::Answered { id, text, model, usage, cost: cost(usage) }
        }
        Outcome::Refused { said, usage } => Event::Refused { id, said, usage, cost: cost(usage) },
        Outcome::Failed(why) => Event::Failed { id, why },
        Outcome::NotTaken(why) => Event::NotTaken { id, why },
        Outcome::Expired => Event::Expired { id },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared<'_> {
    fn work(&self) {
        while !self.short.load(Ordering::Relaxed) && lock(&self.failure).is_none() {
            let next = lock(&self.questions).next();
            let Some(question) = next else { return };
            let done = question.and_then(|question| self.settle(&question));
            if let Err(failure) = done {
                self.fail(failure);
            }
        }
    }

    fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
    }

    /// Asks a question until it is answered, or left to a later run.
    fn settle(&self, question: &Question) -> Result<()> {
        self.job.context.leave_if_asked("what was answered is kept")?;
        let mut last = None;
        loop {
            let ledger = lock(&self.ledger);
            let standing = self.job.standing(question, |id| ledger.request(id));
            drop(ledger);
            let Standing::Open(attempt) = standing else { return Ok(()) };
            // The same attempt again: it failed.
            if last == Some(attempt) || !self.ask(question, attempt)? {
                return Ok(());
            }
            last = Some(attempt);
        }
    }

    /// Sends a request until there is an outcome; whether it could be paid.
    fn ask(&self, question: &Question, attempt: u32) -> Result<bool> {
        let asked = self.job.asked(question, attempt);
        let body = self.provider.body(question, &self.job.asking).to_string();
        let mut tried = 0;
        while self.reserve(&asked)? {
            let answer = self.provider.ask(&asked.id, &body);
            let recorded = self.record(&asked, &answer);
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            recorded?;
            let Err(error) = answer else { return Ok(true) };
            // What was perhaps answered and charged is not asked for again and again, unless it is free.
            let unsure = error.status.is_none() && error.may_be_done();
            let tried_enough = unsure && !self.job.price.is_free() && tried >= UNSURE;
            let next = if tried_enough {
                Err(error.failure("ask the model"))
            } else {
                self.provider.http.pause("ask the model", &error, tried)
            };
            if let Err(failure) = next {
                self.give_up(&asked, &error, failure)?;
                return Ok(true);
            }
            tried += 1;
        }
        Ok(false)
    }

    /// Writes down that a request is sent, unless it might cost more than is left or others have failed.
    fn reserve(&self, asked: &Asked) -> Result<bool> {
        loop {
            self.provider.http.leave_alone()?;
            if lock(&self.failure).is_some() {
                return Ok(false);
            }
            let mut ledger = lock(&self.ledger);
            let left = self.job.cost.max_cost.map(|sum| ledger.left_of(sum));
            if left.is_none_or(|left| left >= asked.at_most) {
                ledger.write(vec![Event::Sent { request: asked.clone() }])?;
                self.under_way.fetch_add(1, Ordering::SeqCst);
                self.sent.fetch_add(1, Ordering::Relaxed);
                return Ok(true);
            }
            drop(ledger);
            if self.under_way.load(Ordering::SeqCst) == 0 {
                self.short.store(true, Ordering::Relaxed);
                return Ok(false);
            }
            std::thread::sleep(TICK);
        }
    }

    /// Writes down what came of a request, as far as it is known.
    fn record(
        &self,
        asked: &Asked,
        answer: &std::result::Result<Outcome, CallError>,
    ) -> Result<()> {
        let events = match answer {
            Ok(outcome) => {
                let answered = event(asked, outcome.clone(), self.job.price);
                std::mem::take(&mut *lock(&self.vain)).into_iter().chain([answered]).collect()
            }
            Err(error) if error.may_be_done() => return Ok(()),
            Err(error) => vec![Event::NotTaken { id: asked.id.clone(), why: error.why.clone() }],
        };
        lock(&self.ledger).write(events)
    }

    /// Leaves a request alone whose repeats are used up, unless that is no request's fault.
    fn give_up(&self, asked: &Asked, error: &CallError, failure: Failure) -> Result<()> {
        let perhaps_its_own = error.is_about_request() || error.may_be_done();
        if failure.kind == Kind::Stopped || !perhaps_its_own {
            return Err(failure);
        }
        let mut vain = lock(&self.vain);
        vain.push(Event::Lost { id: asked.id.clone(), why: error.why.clone() });
        if vain.len() >= IN_A_ROW + usize::from(self.job.backend.concurrency) {
            return Err(failure);
        }
        tracing::warn!("latent {} is left for later: {}", asked.latent, error.why);
        Ok(())
    }
}
