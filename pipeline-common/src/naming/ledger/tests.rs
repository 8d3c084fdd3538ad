use super::*;
use crate::{
    naming::{args::Backend, price::Price, question::Kind},
    stage,
};

fn asked(id: &str) -> Asked {
    Asked {
        id: id.into(),
        latent: 1,
        kind: Kind::Explain,
        part: 0,
        attempt: 0,
        answer_tokens: 9,
        at_most: 1.0,
    }
}

fn answered(id: &str) -> Event {
    Event::Answered {
        id: id.into(),
        text: "t".into(),
        model: "m".into(),
        usage: Usage::default(),
        cost: 0.25,
    }
}

fn intent(name: &str, ids: &[&str]) -> Event {
    Event::Intent {
        intent: name.into(),
        backend: Backend::Openai,
        server: "s".into(),
        price: Price::default(),
        newest: None,
        requests: ids.iter().map(|id| asked(id)).collect(),
    }
}

#[test]
fn a_ledger_says_the_same_when_it_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
    ledger.write(vec![intent("i", &["a", "b", "c"])]).unwrap();
    assert_eq!(ledger.state().committed(), 3.0);
    ledger.write(vec![Event::Submitted { intent: "i".into(), batch: "B".into() }]).unwrap();
    ledger.write(vec![answered("a"), Event::Expired { id: "b".into() }]).unwrap();
    assert_eq!(ledger.state().committed(), 1.25);
    let committed = |ledger: &Ledger| {
        let state = ledger.state();
        let progress = |id| ledger.request(id).unwrap().progress.clone();
        assert!(matches!(progress("a"), Progress::Answered { .. }));
        assert_eq!((progress("b"), progress("c")), (Progress::Open, Progress::Held));
        (state.committed(), state.intents["i"].batch.clone())
    };
    let before = committed(&ledger);
    drop(ledger);
    let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
    assert_eq!(committed(&ledger), before);
    ledger.write(vec![Event::Ended { intent: "i".into() }]).unwrap();
    assert_eq!(ledger.state().committed(), 0.25);
    assert_eq!(ledger.request("c").unwrap().progress, Progress::Open);
    assert!(ledger.state().intents.is_empty());
}

#[test]
fn what_was_sent_and_lost_counts_as_spent() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
    let sent = || vec![Event::Sent { request: asked("a") }];
    ledger.write(sent()).unwrap();
    ledger.write(sent()).unwrap();
    ledger.write(vec![answered("a")]).unwrap();
    assert_eq!(ledger.state().committed(), 1.25);
    ledger.write(vec![Event::Sent { request: asked("b") }]).unwrap();
    ledger.write(vec![Event::NotTaken { id: "b".into(), why: "429".into() }]).unwrap();
    assert_eq!(ledger.left_of(2.0), 0.75);
}

#[test]
fn half_a_line_is_dropped_and_a_damaged_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
    ledger.write(vec![intent("i", &["a"])]).unwrap();
    drop(ledger);
    let path = dir.path().join("ledger-0-of-1.jsonl");
    let whole = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, format!("{whole}{{\"event\": \"sub")).unwrap();
    drop(Ledger::open(dir.path(), Share::WHOLE).unwrap());
    assert_eq!(fs_err::read_to_string(&path).unwrap(), whole);
    fs_err::write(&path, format!("{{}}\n{whole}")).unwrap();
    let failure = Ledger::open(dir.path(), Share::WHOLE).unwrap_err();
    assert_eq!(failure.kind, stage::Kind::Input);
    assert!(failure.source.to_string().contains("line 1"));
}

#[test]
fn workers_see_each_others_answers_and_other_arrays_are_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let share = |index, count| Share { index, count };
    let mut first = Ledger::open(dir.path(), share(0, 2)).unwrap();
    first.write(vec![Event::Sent { request: asked("a") }, answered("a")]).unwrap();
    let second = Ledger::open(dir.path(), share(1, 2)).unwrap();
    assert!(matches!(second.request("a").unwrap().progress, Progress::Answered { .. }));
    assert_eq!(second.left_of(1.0), 0.5);
    for other in [share(0, 2), share(0, 1), share(2, 3)] {
        let failure = Ledger::open(dir.path(), other).unwrap_err();
        assert_eq!(failure.kind, stage::Kind::Stopped, "{other:?}");
    }
    drop((first, second));
    assert_eq!(Ledger::open(dir.path(), share(0, 1)).unwrap().left_of(1.0), 0.75);
}

#[test]
fn of_several_ledgers_the_one_that_says_most_counts() {
    let dir = tempfile::tempdir().unwrap();
    let share = |index, count| Share { index, count };
    let sent = |id: &str| Event::Sent { request: asked(id) };
    // Arrays of three sizes, one after the other; the last one was killed before its answers came.
    Ledger::open(dir.path(), share(0, 1))
        .unwrap()
        .write(vec![sent("a"), answered("a"), intent("i", &["b"]), sent("c")])
        .unwrap();
    let failed = Event::Failed { id: "c".into(), why: "long".into() };
    Ledger::open(dir.path(), share(0, 2)).unwrap().write(vec![sent("c"), failed]).unwrap();
    let events = vec![sent("a"), sent("b"), sent("c")];
    Ledger::open(dir.path(), share(0, 3)).unwrap().write(events).unwrap();
    let told = |request: &Request| (request.progress.clone(), request.failures);
    let check = |a: &Request, b: &Request, c: &Request| {
        assert!(matches!(a.progress, Progress::Answered { .. }));
        assert_eq!((told(b), told(c)), ((Progress::Held, 0), (Progress::Open, 1)));
    };
    let all = merged(all(dir.path()).unwrap().into_iter().map(|state| state.requests));
    check(&all["a"], &all["b"], &all["c"]);
    for own in [share(0, 1), share(0, 2), share(0, 3)] {
        let ledger = Ledger::open(dir.path(), own).unwrap();
        let request = |id| ledger.request(id).unwrap();
        check(request("a"), request("b"), request("c"));
    }
}

#[test]
fn the_highest_price_of_what_is_not_known_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
    let sent = |at_most| Event::Sent { request: Asked { at_most, ..asked("a") } };
    ledger.write(vec![sent(1.0), sent(3.0), sent(2.0)]).unwrap();
    assert_eq!(ledger.state().committed(), 9.0);
}

#[test]
fn a_ledger_that_cannot_be_written_to_lets_nothing_be_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
    let path = dir.path().join("ledger-0-of-1.jsonl");
    let event = || vec![Event::Sent { request: asked("a") }];
    ledger.write(event()).unwrap();
    fs_err::remove_file(&path).unwrap();
    fs_err::create_dir(&path).unwrap();
    ledger.write(event()).unwrap_err();
    fs_err::remove_dir(&path).unwrap();
    let failure = ledger.write(event()).unwrap_err();
    assert!(failure.source.to_string().contains("could not be written"), "{failure:?}");
    assert!(!path.exists());
}
