//! From answers to names.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use super::{
    answer::{self, Explanation},
    job::GIVE_UP,
    ledger::{self, Progress, Request, State},
    names::{self, NameRecord, UnnamedRecord},
    question::Kind,
};
use crate::{
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
    pub open: usize,
}

/// Writes the names of all ledgers into `names/`; scores stay with names that have not changed.
///
/// # Errors
/// Damaged ledgers or names.
pub(super) fn parse(dir: &Path) -> Result<Parsed> {
    let _lock = lock(dir)?;
    let mut parsed = names_of(&ledger::all(dir)?);
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
/// Damaged names.
pub(super) fn change(
    dir: &Path,
    change: impl FnOnce(&mut BTreeMap<u32, NameRecord>),
) -> Result<()> {
    let _lock = lock(dir)?;
    let mut names = names::read(dir)?;
    change(&mut names);
    names::write_names(dir, &names, &names::read_unnamed(dir)?)?;
    named::refresh(dir.parent().unwrap_or(dir))
}

fn lock(dir: &Path) -> Result<Lock> {
    fs_err::create_dir_all(dir)?;
    Lock::wait(&dir.join(".lock-names"))
}

fn names_of(states: &[State]) -> Parsed {
    let mut by_latent: HashMap<u32, Vec<&Request>> = HashMap::new();
    let requests = states.iter().flat_map(|state| state.requests.values());
    for request in requests.filter(|r| r.asked.kind == Kind::Explain) {
        by_latent.entry(request.asked.latent).or_default().push(request);
    }
    let mut parsed = Parsed::default();
    for (latent, why) in states.iter().flat_map(|state| &state.unasked) {
        if !by_latent.contains_key(latent) {
            let said = why.clone();
            let record = UnnamedRecord { latent: *latent, reason: "no_sentences".into(), said };
            parsed.unnamed.insert(*latent, record);
        }
    }
    for (latent, requests) in by_latent {
        if let Some(name) = newest_name(latent, &requests) {
            parsed.names.insert(latent, name);
        } else if let Some(record) = in_vain(latent, &requests) {
            parsed.unnamed.insert(latent, record);
        } else {
            parsed.open += 1;
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

/// Why a latent has no name, once nothing more is done about it.
fn in_vain(latent: u32, requests: &[&Request]) -> Option<UnnamedRecord> {
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
        Progress::Open if request.failures >= GIVE_UP => Some(record("failed", &request.why)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        naming::{
            ledger::{Asked, Event, Ledger, Usage},
            names::{Score, Scores},
        },
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
        let dir = tempfile::tempdir().unwrap();
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
        ledger_of(dir.path(), events);
        let parsed = parse(dir.path()).unwrap();
        assert_eq!(parsed.names.keys().collect::<Vec<_>>(), [&0, &1]);
        assert_eq!(parsed.open, 1, "4 is asked again");
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
        let dir = tempfile::tempdir().unwrap();
        ledger_of(dir.path(), vec![answered("0-0", GOOD), answered("1-0", GOOD)]);
        parse(dir.path()).unwrap();
        let scores = Scores { fuzzing: Some(Score::default()), ..Scores::default() };
        change(dir.path(), |names| {
            names.values_mut().for_each(|name| name.scores = scores.clone());
        })
        .unwrap();
        let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
        ledger.write(vec![answered("1-1", &GOOD.replace("\"b\"", "\"c\""))]).unwrap();
        let parsed = parse(dir.path()).unwrap();
        assert_eq!(parsed.names[&0].scores, scores);
        assert_eq!(parsed.names[&1].description, "c");
        assert_eq!(parsed.names[&1].scores, Scores::default());
    }
}
