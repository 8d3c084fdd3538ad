//! From answers to names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    answer::{self, Explanation},
    ledger::{self, Progress, Request, State},
    names::{self, UnnamedRecord},
    question::Kind,
};
use crate::{
    names::NameRecord,
    stage::{Result, lock::Lock},
    top::named,
};

/// Characters of a refusal or an unreadable answer that are kept.
const SAID: usize = 500;

/// What became of the latents that were asked about.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub names: BTreeMap<u32, NameRecord>,
    pub unnamed: BTreeMap<u32, UnnamedRecord>,
    /// Latents whose answers are still to come, or are to be asked for again.
    pub open: BTreeSet<u32>,
}

/// Writes the names of all ledgers into `names/`; scores stay with names that have not changed.
///
/// # Errors
/// Damaged ledgers or names.
pub(super) fn parse(dir: &Path) -> Result<Parsed> {
    let _lock = lock(dir)?;
    let mut parsed = names_of(ledger::all(dir)?);
    let before = names::read(dir)?;
    for (latent, name) in &mut parsed.names {
        if let Some(old) = before.get(latent).filter(|old| old.is_same_name(name)) {
            name.scores = old.scores.clone();
        }
    }
    names::write_names(dir, &parsed.names, &parsed.unnamed)?;
    named::refresh(dir.parent().unwrap_or(dir))?;
    Ok(parsed)
}

/// Changes names that are there, with no other process between reading and writing.
///
/// # Errors
/// Damaged names; those of `change`.
pub(super) fn change<T>(
    dir: &Path,
    change: impl FnOnce(&mut BTreeMap<u32, NameRecord>) -> Result<T>,
) -> Result<T> {
    let _lock = lock(dir)?;
    let mut names = names::read(dir)?;
    let found = change(&mut names)?;
    names::write_names(dir, &names, &names::read_unnamed(dir)?)?;
    named::refresh(dir.parent().unwrap_or(dir))?;
    Ok(found)
}

fn lock(dir: &Path) -> Result<Lock> {
    fs_err::create_dir_all(dir)?;
    Lock::wait(&dir.join(".lock-names"))
}

fn names_of(states: Vec<State>) -> Parsed {
    let (requests, unasked): (Vec<_>, Vec<_>) =
        states.into_iter().map(|state| (state.requests, state.unasked)).unzip();
    let requests = ledger::merged(requests);
    let mut by_latent: BTreeMap<u32, Vec<&Request>> = BTreeMap::new();
    for request in requests.values().filter(|r| r.asked.kind == Kind::Explain) {
        by_latent.entry(request.asked.latent).or_default().push(request);
    }
    let mut parsed = Parsed::default();
    for (latent, said) in unasked.into_iter().flatten() {
        if !by_latent.contains_key(&latent) {
            let record = UnnamedRecord { latent, reason: "no_sentences".into(), said };
            parsed.unnamed.insert(latent, record);
        }
    }
    for (latent, mut requests) in by_latent {
        requests.sort_by_key(|r| (r.asked.attempt, &r.asked.id));
        if let Some(name) = newest_name(latent, &requests) {
            parsed.names.insert(latent, name);
        } else if let Some(record) = in_vain(latent, &requests) {
            parsed.unnamed.insert(latent, record);
        } else {
            parsed.open.insert(latent);
        }
    }
    parsed
}

/// The newest answer that can be read.
fn newest_name(latent: u32, requests: &[&Request]) -> Option<NameRecord> {
    let readable = requests.iter().filter_map(|request| match &request.progress {
        Progress::Answered { text, model, at } => {
            let read = answer::explanation(text)?;
            Some((*at, read, model))
        }
        _ => None,
    });
    let (_, Explanation { label, description, certainty }, model) =
        readable.max_by_key(|(at, ..)| *at)?;
    let model = model.clone();
    Some(NameRecord { latent, label, description, certainty, model, ..NameRecord::default() })
}

/// Why a latent has no name, once nothing more is done about it. A request that is open beside one that was
/// answered in vain is of other settings, under which nobody may ask again.
fn in_vain(latent: u32, requests: &[&Request]) -> Option<UnnamedRecord> {
    if requests.iter().any(|request| request.progress == Progress::Held) {
        return None;
    }
    let record = |reason: &str, said: &str| UnnamedRecord {
        latent,
        reason: reason.to_owned(),
        said: said.chars().take(SAID).collect(),
    };
    requests.iter().find_map(|request| match &request.progress {
        Progress::Refused { said } => Some(record("refused", said)),
        Progress::Answered { text, .. } if request.asked.attempt > 0 => {
            Some(record("malformed", text))
        }
        Progress::Open if request.is_given_up() => Some(record("failed", &request.why)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        names::{Score, Scores},
        naming::ledger::{Asked, Event, GIVE_UP, Ledger, Usage},
        slurm::Share,
    };

    const GOOD: &str = r#"{"label": "a", "description": "b", "certainty": 0.5}"#;

    fn ledger_of(dir: &Path, events: Vec<Event>) {
        let mut ledger = Ledger::open(dir, Share::WHOLE).unwrap();
        for latent in 0..6 {
            for attempt in 0..2 {
                let request = Asked {
                    id: format!("{latent}-{attempt}"),
                    latent,
                    kind: Kind::Explain,
                    part: 0,
                    attempt,
                    answer_tokens: 9,
                    at_most: 0.0,
                };
                ledger.write(vec![Event::Sent { request }]).unwrap();
            }
        }
        ledger.write(events).unwrap();
    }

    fn answered(id: &str, text: &str) -> Event {
        let (id, text, model) = (id.to_owned(), text.to_owned(), "m".to_owned());
        Event::Answered { id, text, model, usage: Usage::default(), cost: 0.0 }
    }

    #[test]
    fn every_latent_has_a_name_or_a_reason_or_is_open() {
        let run = tempfile::tempdir().unwrap();
        let dir = &run.path().join(names::DIRECTORY);
        let usage = Usage::default();
        let mut events = vec![
            answered("0-0", GOOD),
            answered("1-0", "?"),
            answered("1-1", GOOD),
            answered("2-0", "?"),
            answered("2-1", "still ?"),
            Event::Refused { id: "3-0".into(), said: "no".into(), usage, cost: 0.0 },
            answered("4-0", "?"),
        ];
        let failed = || Event::Failed { id: "5-0".into(), why: "too long".into() };
        events.extend((0..GIVE_UP).map(|_| failed()));
        events.push(Event::Unasked { latent: 9, why: "none".into() });
        ledger_of(dir, events);
        let parsed = parse(dir).unwrap();
        assert_eq!(parsed.names.keys().collect::<Vec<_>>(), [&0, &1]);
        assert_eq!(parsed.open, BTreeSet::from([4]), "it is asked again");
        let reasons: Vec<(u32, &str, &str)> =
            parsed.unnamed.values().map(|u| (u.latent, &*u.reason, &*u.said)).collect();
        let expected = [
            (2, "malformed", "still ?"),
            (3, "refused", "no"),
            (5, "failed", "too long"),
            (9, "no_sentences", "none"),
        ];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn scores_stay_with_their_name_alone() {
        let run = tempfile::tempdir().unwrap();
        let dir = &run.path().join(names::DIRECTORY);
        ledger_of(dir, vec![answered("0-0", GOOD), answered("1-0", GOOD)]);
        parse(dir).unwrap();
        let scores = Scores { fuzzing: Some(Score::default()), ..Scores::default() };
        change(dir, |names| {
            names.values_mut().for_each(|name| name.scores = scores.clone());
            Ok(())
        })
        .unwrap();
        let mut ledger = Ledger::open(dir, Share::WHOLE).unwrap();
        ledger.write(vec![answered("1-1", &GOOD.replace("\"b\"", "\"c\""))]).unwrap();
        let parsed = parse(dir).unwrap();
        assert_eq!(parsed.names[&0].scores, scores);
        assert_eq!(parsed.names[&1].description, "c");
        assert_eq!(parsed.names[&1].scores, Scores::default());
    }
}
