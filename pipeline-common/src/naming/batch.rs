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
    stage::{Context, Failure, Kind, Result},
};

/// Bytes of requests in a batch: both providers take more.
const LARGEST: usize = 64 << 20;
/// Results that are older may have been thrown away: both providers keep them for four weeks at least.
const RETENTION: Duration = Duration::from_secs(20 * 24 * 3600);
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
            return Err(over_budget(ledger, sent));
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
            server: provider.server.clone(),
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
    let lost = |i: &Intent| i.batch.is_none() && is_of(i, provider);
    let intents = ledger.state().intents.iter().filter(|(_, intent)| lost(intent));
    let names: Vec<String> = intents.map(|(name, _)| name.clone()).collect();
    for name in names {
        tracing::info!("looking for a batch that was being made when the program ended");
        settle(args, provider, ledger, &name)?;
    }
    Ok(())
}

/// Whether a batch is, or may be, at this server.
fn is_of(intent: &Intent, provider: &Provider) -> bool {
    (intent.backend, &intent.server) == (provider.backend, &provider.server)
}

fn settle(args: &BackendArgs, provider: &Provider, ledger: &mut Ledger, name: &str) -> Result<()> {
    while is_unsettled(args, provider, ledger, name)? {
        provider.http.wait(LOOK.min(args.settle() / 4))?;
    }
    Ok(())
}

/// Looks for a batch that may have been made; whether it is too early to say. One that is found, or that may
/// show once it has ended, stays in the ledger.
fn is_unsettled(
    args: &BackendArgs,
    provider: &Provider,
    ledger: &mut Ledger,
    name: &str,
) -> Result<bool> {
    let Some(intent) = ledger.state().intents.get(name).cloned() else { return Ok(false) };
    // Looked at before the provider is asked, so that a batch made meanwhile is not missed.
    // The call itself may have taken as long as calls may take.
    let old = intent.age() >= args.settle() + args.limits().timeout;
    let found = provider.find(name, &intent, &|batch| ledger.knows(batch))?;
    let intent = name.to_owned();
    match found {
        Found::Batch(batch) => {
            tracing::info!("found batch {batch}");
            ledger.write(vec![Event::Submitted { intent, batch }])?;
        }
        Found::Undecided => {
            tracing::warn!(
                "a batch that may be ours is under way: its requests are held until it ends"
            );
        }
        Found::Nothing if old => {
            tracing::info!("the provider has no such batch: its requests are sent again");
            ledger.write(vec![Event::Absent { intent }])?;
        }
        Found::Nothing => return Ok(true),
    }
    Ok(false)
}

/// Fetches what has ended, of this worker's ledger and, by the first worker, of arrays of other sizes.
///
/// # Errors
/// A stop while batches are under way, after the time to wait for them; an unavailable provider or a batch
/// that it did not take, once all others are fetched.
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
        let mut failure = None;
        for other in ledger::with_batches(dir)? {
            let strange = other.count != share.count && share.index == 0;
            if other == share || strange {
                let mut ledger = Ledger::open(dir, other)?;
                open += fetch((context, args), &mut providers, &mut ledger, &mut failure)?;
            }
        }
        if open == 0 {
            return failure.map_or(Ok(()), Err);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::stopped(format!("{open} batches are under way"))
                .hint("look again later with `04_name_latents retrieve`"));
        }
        context.stop.wait(pause.min(left));
        context.leave_if_asked("batches stay under way")?;
        pause = (pause * 2).min(POLL[1]);
    }
}

/// Fetches what has ended of a ledger; the number of batches that have not. What goes wrong with one batch
/// does not keep the others back; the first such failure is kept.
fn fetch(
    (context, args): (&Context, &BackendArgs),
    providers: &mut BTreeMap<Backend, Provider>,
    ledger: &mut Ledger,
    failure: &mut Option<Failure>,
) -> Result<usize> {
    let mut open = 0;
    let intents = ledger.state().intents.iter();
    let names: Vec<(String, Backend)> = intents.map(|(n, i)| (n.clone(), i.backend)).collect();
    for (name, backend) in names {
        context.leave_if_asked("batches stay under way")?;
        let provider = match providers.entry(backend) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => match Provider::new(context, args, backend) {
                Ok(provider) => place.insert(provider),
                Err(e) => {
                    failure.get_or_insert(e);
                    continue;
                }
            },
        };
        if !ledger.state().intents.get(&name).is_some_and(|intent| is_of(intent, provider)) {
            tracing::warn!("batch {name} is at another server than the base URL that is set now");
            continue;
        }
        match fetch_batch(args, provider, ledger, &name) {
            Err(e) if e.kind == Kind::Stopped => return Err(e),
            Err(e) => {
                tracing::warn!("{:#}", e.source);
                failure.get_or_insert(e);
            }
            Ok(()) => open += usize::from(ledger.state().intents.contains_key(&name)),
        }
    }
    Ok(open)
}

/// Fetches a batch if it has ended.
fn fetch_batch(
    args: &BackendArgs,
    provider: &Provider,
    ledger: &mut Ledger,
    name: &str,
) -> Result<()> {
    let batch = |ledger: &Ledger| ledger.state().intents.get(name).and_then(|i| i.batch.clone());
    if batch(ledger).is_none() {
        is_unsettled(args, provider, ledger, name)?;
    }
    let Some(batch) = batch(ledger) else { return Ok(()) };
    match provider.poll(&batch)? {
        Poll::Ended => collect(args, provider, ledger, (name, &batch)),
        Poll::Unknown if args.forget_batches => lose(ledger, name, &batch),
        Poll::Unknown => Err(Failure::unavailable(format!("the provider knows no batch {batch}"))
            .hint(
                "check key and base URL; FORGET_BATCHES=1 gives it up and asks again, at a price",
            )),
        Poll::UnderWay { done, total } => {
            tracing::info!("batch {batch}: {done} of {total} requests done");
            Ok(())
        }
    }
}

/// Records the results of a batch, all at once.
///
/// # Errors
/// A batch that the provider did not take, once that is recorded.
fn collect(
    args: &BackendArgs,
    provider: &Provider,
    ledger: &mut Ledger,
    (name, batch): (&str, &str),
) -> Result<()> {
    let Some(intent) = ledger.state().intents.get(name).cloned() else { return Ok(()) };
    let Some(results) = provider.results(batch)? else {
        if intent.age() > RETENTION || args.forget_batches {
            return lose(ledger, name, batch);
        }
        let what = format!("the results of batch {batch} are not there");
        return Err(Failure::unavailable(what)
            .hint("try again; FORGET_BATCHES=1 gives them up and asks again, at a price"));
    };
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
    ledger.write(events)?;
    results.trouble.map_or(Ok(()), |why| {
        Err(Failure::unavailable(format!("batch {batch} came to nothing: {why}"))
            .hint("what it left open can be sent again: mend the cause, then `send`"))
    })
}

/// Records that the results of a batch are gone, though they may have been charged.
fn lose(ledger: &mut Ledger, name: &str, batch: &str) -> Result<()> {
    let ids = ledger.state().intents.get(name).map(|i| i.ids.clone()).unwrap_or_default();
    tracing::warn!("the results of batch {batch} are no longer kept: its requests are open again");
    let held =
        |id: &String| ledger.state().requests.get(id).is_some_and(|r| r.progress == Progress::Held);
    let why = "the results are no longer kept";
    let lost = ids.into_iter().filter(held).map(|id| Event::Lost { id, why: why.to_owned() });
    let events = lost.chain([Event::Ended { intent: name.to_owned() }]).collect();
    ledger.write(events)
}
