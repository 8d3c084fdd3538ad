//! Batches: made once, found again after a crash, fetched when they have ended.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    args::{Backend, BackendArgs},
    chat::{Questions, event, over_budget},
    http::CallError,
    job::{Job, Standing},
    ledger::{self, Asked, Event, Intent, Ledger, Progress},
    provider::{Found, Outgoing, Poll, Provider},
};
use crate::{
    slurm::Share,
    stage::{Context, Failure, Result},
};

/// Bytes of requests in a batch: both providers take more.
const LARGEST: usize = 64 << 20;
/// How often a batch that is not found is looked for.
const LOOK: Duration = Duration::from_secs(2);
/// The shortest and the longest pause between two looks at batches.
const POLL: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// Requests that are to become a batch.
#[derive(Default)]
struct Round {
    asked: Vec<Asked>,
    outgoing: Vec<Outgoing>,
    bytes: usize,
    at_most: f64,
}

/// Sends what is open of `questions` in batches; how many requests.
///
/// # Errors
/// An unavailable provider; a sum that would be exceeded, after what it allows was sent; a stop.
pub(super) fn send(
    job: &Job<'_>,
    provider: &Provider,
    ledger: &mut Ledger,
    questions: Questions<'_>,
) -> Result<u64> {
    settle_all(job.backend, provider, ledger)?;
    let mut round = Round::default();
    let mut sent = 0;
    for question in questions {
        let question = question?;
        let Standing::Open(attempt) = job.standing(&question, |id| ledger.request(id)) else {
            continue;
        };
        let asked = job.asked(&question, attempt);
        let left = job.cost.max_cost.map(|sum| ledger.left_of(sum) - round.at_most);
        if left.is_some_and(|left| left < asked.at_most) {
            sent += submit(job, provider, ledger, &mut round)?;
            return Err(over_budget(sent));
        }
        let body = provider.body(&question, &job.asking);
        let bytes = question.bytes() + 512;
        let full = round.asked.len() >= job.backend.requests_per_batch as usize
            || round.bytes + bytes > LARGEST;
        if full {
            sent += submit(job, provider, ledger, &mut round)?;
        }
        round.bytes += bytes;
        round.at_most += asked.at_most;
        round.outgoing.push(Outgoing { id: asked.id.clone(), body });
        round.asked.push(asked);
    }
    sent += submit(job, provider, ledger, &mut round)?;
    Ok(sent)
}

/// Makes a batch of a round, which is empty then; how many requests.
fn submit(
    job: &Job<'_>,
    provider: &Provider,
    ledger: &mut Ledger,
    round: &mut Round,
) -> Result<u64> {
    let round = std::mem::take(round);
    if round.asked.is_empty() {
        return Ok(0);
    }
    let mut tried = 0;
    loop {
        job.context.leave_if_asked("what was sent and answered is kept")?;
        let name = name(&round.asked);
        let prepared = provider.prepare(&name, &round.outgoing)?;
        ledger.write(vec![Event::Intent {
            intent: name.clone(),
            backend: provider.backend,
            price: job.price,
            newest: prepared.newest.clone(),
            requests: round.asked.clone(),
        }])?;
        match provider.create(&name, &prepared) {
            Ok(batch) => {
                tracing::info!("batch {batch} has {} requests", round.asked.len());
                ledger.write(vec![Event::Submitted { intent: name, batch }])?;
                return Ok(round.asked.len() as u64);
            }
            Err(error) if made_all_the_same(job, provider, ledger, (&name, &error))? => {
                return Ok(round.asked.len() as u64);
            }
            Err(error) => provider.http.pause("make a batch", &error, tried)?,
        }
        tried += 1;
    }
}

/// Whether a batch was made although its making failed; if not, the ledger says so.
fn made_all_the_same(
    job: &Job<'_>,
    provider: &Provider,
    ledger: &mut Ledger,
    (name, error): (&str, &CallError),
) -> Result<bool> {
    if !error.may_be_done() {
        ledger.write(vec![Event::Absent { intent: name.to_owned() }])?;
        return Ok(false);
    }
    tracing::warn!("whether the batch was made is not known ({}): looking for it", error.why);
    settle(job.backend, provider, ledger, name)?;
    Ok(ledger.state().intents.contains_key(name))
}

/// A name that no other batch has.
fn name(asked: &[Asked]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(jiff::Timestamp::now().to_string().as_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    asked.iter().for_each(|a| {
        hasher.update(a.id.as_bytes());
    });
    format!("names-{}", &hasher.finalize().to_hex()[..24])
}

/// Looks for every batch of this back end that may have been made, until each is found, or shows only later,
/// or counts as never made.
fn settle_all(args: &BackendArgs, provider: &Provider, ledger: &mut Ledger) -> Result<()> {
    let lost = |i: &Intent| i.batch.is_none() && i.backend == provider.backend;
    let intents = ledger.state().intents.iter().filter(|(_, intent)| lost(intent));
    let names: Vec<String> = intents.map(|(name, _)| name.clone()).collect();
    for name in names {
        tracing::info!("looking for a batch that was being made when the program ended");
        settle(args, provider, ledger, &name)?;
    }
    Ok(())
}

fn settle(args: &BackendArgs, provider: &Provider, ledger: &mut Ledger, name: &str) -> Result<()> {
    while look(args, provider, ledger, name)? == Look::Again {
        provider.http.wait(LOOK.min(args.settle() / 4))?;
    }
    Ok(())
}

/// What to do about a batch that may have been made.
#[derive(PartialEq, Eq)]
enum Look {
    /// It is too early to say.
    Again,
    /// It is found, or shows once it has ended.
    There,
    Gone,
}

fn look(args: &BackendArgs, provider: &Provider, ledger: &mut Ledger, name: &str) -> Result<Look> {
    let Some(intent) = ledger.state().intents.get(name).cloned() else { return Ok(Look::Gone) };
    // Looked at before the provider is asked, so that a batch made meanwhile is not missed.
    let age = jiff::Timestamp::now().duration_since(intent.at);
    let old = Duration::try_from(age).is_ok_and(|age| age >= args.settle());
    let found = provider.find(name, &intent, &|batch| ledger.knows(batch))?;
    let intent = name.to_owned();
    match found {
        Found::Batch(batch) => {
            tracing::info!("found batch {batch}");
            ledger.write(vec![Event::Submitted { intent, batch }])?;
            Ok(Look::There)
        }
        Found::Undecided => {
            tracing::warn!(
                "a batch that may be ours is under way: its requests are held until it ends"
            );
            Ok(Look::There)
        }
        Found::Nothing if old => {
            tracing::info!("the provider has no such batch: its requests are sent again");
            ledger.write(vec![Event::Absent { intent }])?;
            Ok(Look::Gone)
        }
        Found::Nothing => Ok(Look::Again),
    }
}

/// Fetches what has ended, of this worker's ledger and, by the first worker, of arrays of other sizes.
///
/// # Errors
/// A stop while batches are under way, after the time to wait for them; an unavailable provider.
pub(super) fn retrieve(
    context: &Context,
    dir: &Path,
    args: &BackendArgs,
    share: Share,
) -> Result<()> {
    let end = Instant::now() + args.wait();
    let mut providers = BTreeMap::new();
    let mut pause = POLL[0];
    loop {
        let mut open = 0;
        for other in ledger::shares(dir)? {
            let strange = other.count != share.count && share.index == 0;
            if other == share || strange {
                let mut ledger = Ledger::open(dir, other)?;
                open += fetch(context, args, &mut providers, &mut ledger)?;
            }
        }
        if open == 0 {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::stopped(format!("{open} batches are under way"))
                .hint("look again later with `04_name_latents retrieve`"));
        }
        wait(context, pause.min(left))?;
        pause = (pause * 2).min(POLL[1]);
    }
}

fn wait(context: &Context, pause: Duration) -> Result<()> {
    let end = Instant::now() + pause;
    while Instant::now() < end {
        context.leave_if_asked("batches stay under way")?;
        std::thread::sleep(Duration::from_millis(50).min(pause));
    }
    Ok(())
}

/// Fetches what has ended of a ledger; the number of batches that have not.
fn fetch(
    context: &Context,
    args: &BackendArgs,
    providers: &mut BTreeMap<Backend, Provider>,
    ledger: &mut Ledger,
) -> Result<usize> {
    let mut open = 0;
    let names: Vec<(String, Backend)> =
        ledger.state().intents.iter().map(|(n, i)| (n.clone(), i.backend)).collect();
    for (name, backend) in names {
        context.leave_if_asked("batches stay under way")?;
        let provider = &*match providers.entry(backend) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Provider::new(context, args, backend)?),
        };
        let known = ledger.state().intents.get(&name).is_some_and(|i| i.batch.is_some());
        if !known && look(args, provider, ledger, &name)? != Look::There {
            open += usize::from(ledger.state().intents.contains_key(&name));
            continue;
        }
        let Some(batch) = ledger.state().intents.get(&name).and_then(|i| i.batch.clone()) else {
            open += 1;
            continue;
        };
        match provider.poll(&batch)? {
            Poll::Ended => collect(provider, ledger, &name, &batch)?,
            Poll::UnderWay { done, total } => {
                tracing::info!("batch {batch}: {done} of {total} requests done");
                open += 1;
            }
        }
    }
    Ok(open)
}

/// Records the results of a batch, all at once.
fn collect(provider: &Provider, ledger: &mut Ledger, name: &str, batch: &str) -> Result<()> {
    let results = provider.results(batch)?;
    let Some(intent) = ledger.state().intents.get(name).cloned() else { return Ok(()) };
    let mut by_id: HashMap<String, _> = results.by_id.into_iter().collect();
    let mut events = Vec::new();
    for id in &intent.ids {
        let request = ledger.state().requests.get(id);
        let Some(request) = request.filter(|r| r.progress == Progress::Held) else { continue };
        let outcome = by_id.remove(id).unwrap_or_else(|| results.rest.clone());
        events.push(event(&request.asked, outcome, intent.price));
    }
    let counted = |what: fn(&Event) -> bool| events.iter().filter(|e| what(e)).count();
    tracing::info!(
        "batch {batch} has ended: {} answered, {} refused, {} failed, {} expired",
        counted(|e| matches!(e, Event::Answered { .. })),
        counted(|e| matches!(e, Event::Refused { .. })),
        counted(|e| matches!(e, Event::Failed { .. })),
        counted(|e| matches!(e, Event::Expired { .. })),
    );
    if !by_id.is_empty() {
        tracing::warn!("batch {batch} has {} results that nobody asked for", by_id.len());
    }
    events.push(Event::Ended { intent: name.to_owned() });
    ledger.write(events)
}
