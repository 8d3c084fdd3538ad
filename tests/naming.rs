//! Stage 04 against language models on loopback, with faults: nothing is paid twice, no latent is lost.

mod plant;
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use pipeline_common::{
    names::{NameRecord, read_names},
    naming::UnnamedRecord,
};
use serde_json::Value;
use server::{Fault, Server, World, marked_number};

use super::workload::{NAME, succeed};

/// Latent `l` is active in the sentences whose number leaves the remainder `l`.
const LATENTS: u64 = 8;
/// The model refuses to name this one.
const REFUSED: u64 = 5;
/// The first answer about this one is no JSON.
const GARBLED_ONCE: u64 = 6;
/// No answer about this one is JSON.
const GARBLED: u64 = 7;
/// The first judgement of each kind of this one is no JSON.
const JUDGED_TWICE: u64 = 2;
const KEY: &str = "sk-NobodyMaySeeThis";
const BACKENDS: [&str; 3] = ["anthropic", "openai", "chat"];

/// A training with top sentences, and a server.
struct Place {
    dir: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new(world: World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        plant::plant(&dir.path().join("runs/sae/top_sentences"));
        fs_err::write(dir.path().join("sae_run_id.txt"), "sae\n").unwrap();
        let server = Server::start(World { key: KEY.into(), ..world });
        Self { dir, server }
    }

    fn names(&self) -> PathBuf {
        self.dir.path().join("runs/sae/names")
    }

    fn named(&self) -> BTreeMap<u32, NameRecord> {
        read_names(&self.dir.path().join("runs/sae")).unwrap()
    }

    fn command(&self, backend: &str, action: &str) -> Command {
        let mut command = Command::new(NAME);
        let base = &self.server.address;
        command.env_clear().current_dir(self.dir.path()).arg(action).envs([
            ("STORE_DIR", "."),
            ("BACKEND", backend),
            ("NAMING_MODEL", "claude-haiku-4-5"),
            ("ANTHROPIC_API_KEY", KEY),
            ("OPENAI_API_KEY", KEY),
            ("ANTHROPIC_BASE_URL", base),
            ("OPENAI_BASE_URL", &format!("{base}/v1")),
            ("WAIT_SECONDS", "20"),
            ("SETTLE_SECONDS", "1"),
            ("REQUEST_TIMEOUT", "1"),
            ("PRICE_INPUT", "1"),
            ("PRICE_OUTPUT", "10"),
            ("LOG_LEVEL", "trace"),
            ("LOG_JSON", "log.jsonl"),
        ]);
        command
    }

    fn run(&self, backend: &str, action: &str) -> (String, String) {
        let (out, err) = succeed(&mut self.command(backend, action));
        assert!(!out.contains(KEY) && !err.contains(KEY), "{out}{err}");
        (out, err)
    }

    /// All actions in the order of the submit script, from the beginning again when one says 75.
    fn run_all(&self, backend: &str) {
        let actions = ["retrieve", "send", "retrieve", "send", "retrieve", "parse", "score"];
        let ends = |action: &&str| {
            let output = self.command(backend, action).output().unwrap();
            if output.status.code() != Some(0) {
                failed(&output, 75);
            }
            output.status.success()
        };
        assert!((0..5).any(|_| actions.iter().all(ends)), "it never ends");
    }

    fn status(&self) -> String {
        self.run("chat", "status").0
    }

    /// Fails unless every question was paid once: one that was garbled once or again, twice.
    fn assert_paid_once(&self) {
        let world = self.server.world();
        let mut asked = BTreeMap::<&str, u32>::new();
        for (id, _) in world.batches.iter().flat_map(|b| &b.requests) {
            *asked.entry(id).or_default() += 1;
        }
        assert!(!world.paid.is_empty());
        for (text, times) in &world.paid {
            let garbled = marked_number(text)
                .is_some_and(|n| [GARBLED, GARBLED_ONCE].contains(&(n % LATENTS)));
            let name = garbled && text.contains("{\"label\"");
            let judgement = text.contains(&format!("remainder {JUDGED_TWICE}:"));
            assert_eq!(*times, 1 + u32::from(name || judgement), "{text}");
        }
    }

    /// Fails unless each latent has its name, or the reason why it has none.
    fn assert_all_named(&self) {
        let names = self.named();
        let named: BTreeSet<u64> = names.keys().map(|l| u64::from(*l)).collect();
        let expected = (0..LATENTS).filter(|l| ![REFUSED, GARBLED].contains(l)).collect();
        assert_eq!(named, expected);
        for (latent, name) in &names {
            assert_eq!(name.label, format!("remainder {latent}"));
            assert_eq!((name.certainty, name.model.as_str()), (0.75, "fake-1"));
        }
        let unnamed = fs_err::read_to_string(self.names().join("unnamed.jsonl")).unwrap();
        let unnamed: Vec<UnnamedRecord> =
            unnamed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let reasons: Vec<(u64, &str)> =
            unnamed.iter().map(|u| (u.latent.into(), u.reason.as_str())).collect();
        assert_eq!(reasons, [(REFUSED, "refused"), (GARBLED, "malformed")]);
        let status = self.status();
        assert!(status.contains(&format!("latent {REFUSED}: refused")), "{status}");
        assert!(
            !status.contains("more under way or lost") && !status.contains("batch "),
            "{status}"
        );
    }

    /// Fails unless a perfect model's names have perfect scores.
    fn assert_scored(&self) {
        for (latent, name) in self.named() {
            for score in [&name.scores.detection, &name.scores.fuzzing, &name.scores.intruder] {
                let score = score.as_ref().unwrap_or_else(|| panic!("{latent}: {name:?}"));
                assert_eq!((score.value, score.interval), (1.0, Some([1.0, 1.0])), "{latent}");
                assert!(score.judgements > 0);
            }
        }
        let yaml = fs_err::read_to_string(self.names().join("names.yaml")).unwrap();
        let yaml: BTreeMap<u32, NameRecord> = serde_yaml::from_str(&yaml).unwrap();
        assert_eq!(yaml, self.named());
        let table = fs_err::read(self.names().join("scores.json")).unwrap();
        let table: Value = serde_json::from_slice(&table).unwrap();
        assert_eq!(table["all"]["detection"]["good"], 1.0);
    }

    fn assert_no_key_in_files(&self) {
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs_err::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = fs_err::read(&path).unwrap();
                let shown = bytes.windows(KEY.len()).any(|w| w == KEY.as_bytes());
                assert!(!shown, "{} holds the key", path.display());
            }
        }
    }
}

/// Waits until the server has seen what the test waits for.
fn wait_for(place: &Place, condition: impl Fn(&World) -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition(&place.server.world()) {
        assert!(Instant::now() < end, "it never happens");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn failed(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains(KEY), "{said}");
    said
}

/// Requests that a dry run would send.
fn requests(plan: &str) -> u64 {
    column(plan, 1)
}

/// A number of a dry run's last line, the sums of all kinds of requests.
fn column(plan: &str, i: usize) -> u64 {
    plan.lines().last().unwrap().split_whitespace().nth(i).unwrap().parse().unwrap()
}

#[test]
fn every_back_end_names_and_scores_all_latents() {
    for backend in BACKENDS {
        let place = Place::new(World { polls: 2, ..World::default() });
        let (before, _) = succeed(place.command(backend, "send").arg("--dry-run"));
        assert!(before.contains("explain") && before.contains("8 latents"), "{before}");
        assert!(place.server.world().calls.is_empty() && !place.names().exists());
        assert!(place.status().contains("cost      0.0000 USD\n"), "{}", place.status());
        place.run_all(backend);
        place.assert_all_named();
        place.assert_scored();
        place.assert_paid_once();
        place.assert_no_key_in_files();
        let calls = place.server.world().calls.len();
        place.run(backend, "send");
        place.run(backend, "score");
        let world = place.server.world();
        let new = &world.calls[calls..];
        assert!(!new.iter().any(|call| call.starts_with("POST")), "{backend}: {new:?}");
        drop(world);
        let (plan, _) = succeed(place.command(backend, "send").arg("--dry-run"));
        let asked = requests(&before) - requests(&plan);
        assert_eq!(column(&plan, 2), asked, "the judgements of two latents without a name: {plan}");
        assert!(requests(&plan) > 0 && asked > requests(&plan), "{plan}");
    }
}

/// Runs all actions against a server that is busy, broken, hangs or cuts its answers off at these calls.
fn with_faults(backend: &str, parts: &[&'static str]) {
    let faults = [
        Fault::Busy(2),
        Fault::Broken,
        Fault::Truncated,
        Fault::DoneThenBroken,
        Fault::Hang,
        Fault::DoneThenHang,
    ];
    let place = Place::new(World { polls: 1, ..World::default() });
    if backend == "chat" {
        place.server.world().faults.push_back((parts[0], Fault::ErrorWithin));
    }
    for part in parts {
        // What a GET does is done again by asking again.
        let some = faults.iter().filter(|f| **f != Fault::DoneThenHang || part.len() > 4);
        place.server.world().faults.extend(some.map(|fault| (*part, *fault)));
    }
    place.run_all(backend);
    place.run_all(backend);
    place.assert_paid_once();
    // Requests that are under way beside a refused one know nothing of it.
    assert!(backend == "chat" || place.server.world().hurried == 0);
    let left = place.server.world().faults.len();
    assert_eq!(left, 0, "{:?}", place.server.world().faults);
    place.assert_no_key_in_files();
    let names = place.named();
    assert_eq!(names.len(), 6);
    place.assert_scored();
}

#[test]
fn faults_of_anthropics_batches_cost_nothing_twice() {
    with_faults("anthropic", &["POST /deep/proxy/v1/messages/batches", "GET "]);
}

#[test]
fn faults_of_openais_batches_cost_nothing_twice() {
    with_faults("openai", &["POST /deep/proxy/v1/batches", "POST /deep/proxy/v1/files", "GET "]);
}

#[test]
fn faults_of_a_chat_endpoint_cost_nothing_twice() {
    with_faults("chat", &["POST /deep/proxy/v1/chat/completions"]);
}

#[test]
fn a_process_killed_between_send_and_record_pays_nothing_twice_and_loses_nothing() {
    for backend in ["anthropic", "openai"] {
        for fault in [Fault::Hang, Fault::DoneThenHang] {
            let place = Place::new(World { polls: 3, ..World::default() });
            let path = if backend == "anthropic" {
                "POST /deep/proxy/v1/messages/batches"
            } else {
                "POST /deep/proxy/v1/batches"
            };
            place.server.world().faults.push_back((path, fault));
            let mut command = place.command(backend, "send");
            command.env("REQUEST_TIMEOUT", "60");
            let child = start(command);
            let made = usize::from(fault == Fault::DoneThenHang);
            wait_for(&place, |world| world.faults.is_empty() && world.batches.len() == made);
            kill(child);
            let status = place.status();
            assert!(status.contains("not known yet"), "{status}");
            place.run_all(backend);
            place.assert_paid_once();
            place.assert_all_named();
            place.assert_scored();
        }
    }
}

#[test]
fn a_killed_chat_goes_on_with_what_is_not_answered() {
    let place = Place::new(World::default());
    let path = "POST /deep/proxy/v1/chat/completions";
    // Four are answered, four more are under way and paid when the process is killed.
    let mut command = place.command("chat", "send");
    command.envs([("REQUEST_TIMEOUT", "60"), ("CONCURRENCY", "4"), ("LATENTS", "0-3")]);
    succeed(&mut command);
    for _ in 0..4 {
        place.server.world().faults.push_back((path, Fault::DoneThenHang));
    }
    let mut command = place.command("chat", "send");
    command.envs([("REQUEST_TIMEOUT", "60"), ("CONCURRENCY", "4")]);
    let child = start(command);
    wait_for(&place, |world| world.faults.is_empty() && world.paid.len() == 8);
    kill(child);
    assert_eq!(place.server.world().most_at_once, 4);
    place.run_all("chat");
    place.assert_paid_once();
    let names = place.named();
    assert_eq!(names.len(), 6);
    let status = place.status();
    assert!(status.contains("more under way or lost"), "what was lost may have cost: {status}");
}

#[test]
fn a_batch_that_expires_half_done_is_completed() {
    for backend in ["anthropic", "openai"] {
        let place = Place::new(World { expire: 3, polls: 1, ..World::default() });
        place.run(backend, "send");
        let (_, said) = place.run(backend, "retrieve");
        assert!(said.contains("3 expired"), "{said}");
        place.run_all(backend);
        place.assert_paid_once();
        place.assert_all_named();
        assert_eq!(place.server.world().batches[1].requests.len(), 3 + 2, "and two garbled ones");
    }
}

#[test]
fn a_batch_that_is_not_taken_gives_no_latent_up() {
    let place = Place::new(World::default());
    for _ in 0..4 {
        place.server.world().reject = true;
        place.run("openai", "send");
        let output = place.command("openai", "retrieve").output().unwrap();
        let said = failed(&output, 69);
        assert!(said.contains("token_limit_exceeded") && !said.contains(KEY), "{said}");
    }
    place.run_all("openai");
    place.assert_all_named();
    place.assert_no_key_in_files();
}

#[test]
fn answers_that_show_after_the_end_of_their_batch_are_waited_for() {
    let place = Place::new(World { polls: 3, late: 2, ..World::default() });
    place.run_all("openai");
    place.assert_all_named();
    place.assert_paid_once();
}

#[test]
fn results_that_are_gone_are_asked_for_again() {
    for backend in ["anthropic", "openai"] {
        let place = Place::new(World::default());
        place.run(backend, "send");
        place.server.world().gone = true;
        let said = failed(&place.command(backend, "retrieve").output().unwrap(), 69);
        assert!(said.contains("are not there") && said.contains("FORGET_BATCHES=1"), "{said}");
        assert!(place.status().contains("batch batch0"), "a young batch is not given up");
        let (_, said) = succeed(place.command(backend, "retrieve").env("FORGET_BATCHES", "1"));
        assert!(said.contains("no longer kept"), "{said}");
        assert!(place.status().contains("more under way or lost"), "it may have been charged");
        place.server.world().gone = false;
        place.run_all(backend);
        assert_eq!(place.named().len(), 6, "{backend}");
    }
}

#[test]
fn a_batch_that_cannot_be_looked_at_keeps_no_other_back() {
    for backend in ["anthropic", "openai"] {
        let place = Place::new(World::default());
        succeed(place.command(backend, "send").env("REQUESTS_PER_BATCH", "3"));
        place.server.world().hidden = Some("batch0".into());
        failed(&place.command(backend, "retrieve").output().unwrap(), 69);
        let status = place.status();
        assert_eq!(status.matches("batch batch").count(), 1, "{status}");
        place.server.world().hidden = None;
        place.run_all(backend);
        place.assert_all_named();
        place.assert_paid_once();
    }
}

#[test]
fn an_answer_that_was_cut_off_is_asked_for_once_more_with_more_room() {
    let place = Place::new(World::default());
    place.run_all("chat");
    let paid = |place: &Place| place.server.world().paid.values().sum::<u32>();
    let before = paid(&place);
    place.run("chat", "send");
    assert_eq!(paid(&place), before);
    succeed(place.command("chat", "send").env("ANSWER_TOKENS", "2000"));
    assert_eq!(
        paid(&place),
        before + 2,
        "twice for the one that is garbled, nothing for the others"
    );
    succeed(place.command("chat", "send").env("ANSWER_TOKENS", "2000"));
    assert_eq!(paid(&place), before + 2);
}

#[test]
fn batches_of_another_server_are_left_alone() {
    let place = Place::new(World::default());
    place.run("openai", "send");
    let other = Server::start(World { key: KEY.into(), ..World::default() });
    let elsewhere = format!("{}/v1", other.address);
    let mut command = place.command("openai", "retrieve");
    let (_, said) = succeed(command.env("OPENAI_BASE_URL", elsewhere));
    assert!(said.contains("is at another server"), "{said}");
    assert!(other.world().calls.is_empty() && place.status().contains("batch batch0"));
    place.run_all("openai");
    place.assert_all_named();
    place.assert_paid_once();
}

#[test]
fn an_outage_gives_no_latent_up() {
    let place = Place::new(World::default());
    let path = "POST /deep/proxy/v1/chat/completions";
    // Each gives up after as many requests in a row as one thread and four more, two calls each.
    for _ in 0..4 {
        place.server.world().faults.extend([(path, Fault::Broken); 10]);
        let mut command = place.command("chat", "send");
        command.envs([("RETRIES", "1"), ("CONCURRENCY", "1")]);
        failed(&command.output().unwrap(), 69);
    }
    assert!(place.server.world().faults.is_empty());
    place.run_all("chat");
    place.assert_paid_once();
    assert_eq!(place.named().len(), 6);
}

#[test]
fn what_the_server_does_not_take_is_given_up_until_it_is_asked_for_again() {
    let place = Place::new(World::default());
    let path = "POST /deep/proxy/v1/chat/completions";
    let run = |action: &str, retry: &str| {
        let mut command = place.command("chat", action);
        succeed(command.envs([("LATENTS", "3"), ("RETRY_FAILED", retry)]))
    };
    place.server.world().faults.push_back((path, Fault::TooLong));
    let output = place.command("chat", "send").env("LATENTS", "3").output().unwrap();
    assert!(failed(&output, 69).contains("answered none"), "nothing says that it is this request");
    succeed(place.command("chat", "send").env("LATENTS", "0"));
    for _ in 0..3 {
        place.server.world().faults.push_back((path, Fault::TooLong));
        run("send", "0");
    }
    let calls = place.server.world().calls.len();
    run("send", "0");
    assert_eq!(place.server.world().calls.len(), calls, "it is given up");
    run("parse", "0");
    assert!(place.status().contains("latent 3: failed: HTTP 400"), "{}", place.status());
    run("send", "1");
    run("parse", "0");
    let named = place.named();
    assert_eq!(named.keys().collect::<Vec<_>>(), [&0, &3]);
}

#[test]
fn batches_are_as_large_as_allowed_and_waited_for_as_long_as_allowed() {
    let place = Place::new(World { polls: 1000, ..World::default() });
    succeed(place.command("openai", "send").env("REQUESTS_PER_BATCH", "3"));
    let sizes: Vec<usize> = place.server.world().batches.iter().map(|b| b.requests.len()).collect();
    assert_eq!(sizes, [3, 3, 2]);
    let output = place.command("openai", "retrieve").env("WAIT_SECONDS", "0").output().unwrap();
    let said = failed(&output, 75);
    assert!(said.contains("3 batches are under way"), "{said}");
    assert!(place.status().contains("under way"));
}

#[test]
fn the_sum_is_never_exceeded_and_raising_it_goes_on() {
    for backend in BACKENDS {
        let place = Place::new(World::default());
        let mut stopped = 0;
        for sum in ["0.0001", "0.012", "0.02", "0.03"] {
            let output = place.command(backend, "send").env("MAX_COST", sum).output().unwrap();
            if output.status.code() != Some(0) {
                // What is under way may leave more than was feared.
                let code = if place.status().contains("batch ") { 75 } else { 69 };
                assert!(failed(&output, code).contains("MAX_COST"));
                stopped += 1;
            }
            place.run(backend, "retrieve");
            let paid: u32 = place.server.world().paid.values().sum();
            // Each answer costs 1000 tokens at 1 USD and 100 at 10 USD a million.
            let spent = f64::from(paid) * 0.002;
            assert!(spent <= sum.parse().unwrap(), "{backend}: {spent} of {sum}");
            assert_eq!(paid == 0, sum == "0.0001", "{backend}: what the sum allows is sent");
        }
        assert!(stopped >= 2, "{backend}");
        succeed(place.command(backend, "send").env("MAX_COST", "5"));
        place.run_all(backend);
        place.assert_all_named();
        place.assert_paid_once();
    }
}

#[test]
fn elements_of_an_array_share_the_latents() {
    let place = Place::new(World::default());
    let element = |n: &str, action: &str| {
        succeed(place.command("chat", action).envs([
            ("SLURM_ARRAY_TASK_ID", n),
            ("SLURM_ARRAY_TASK_MIN", "0"),
            ("SLURM_ARRAY_TASK_MAX", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "3"),
        ]))
    };
    for action in ["send", "parse", "score"] {
        for n in ["0", "1", "2"] {
            element(n, action);
        }
    }
    place.assert_all_named();
    place.assert_scored();
    place.assert_paid_once();
    // Another number of workers knows what these have paid.
    place.run_all("chat");
    place.assert_paid_once();
}

#[test]
fn keys_are_never_shown_or_stored() {
    for backend in BACKENDS {
        let place = Place::new(World::default());
        place.server.world().key = "sk-another".into();
        for extra in [&["--print-config"][..], &["--help"], &[], &["--dry-run"]] {
            let output = place.command(backend, "send").args(extra).output().unwrap();
            for bytes in [&output.stdout, &output.stderr] {
                let said = String::from_utf8_lossy(bytes);
                assert!(!said.contains(KEY), "{extra:?}: {said}");
            }
        }
        let output = place.command(backend, "send").output().unwrap();
        let said = failed(&output, 69);
        assert!(said.contains("401") && said.contains("_API_KEY"), "{said}");
        place.assert_no_key_in_files();
    }
}

#[test]
fn mistakes_are_named() {
    let place = Place::new(World::default());
    for (name, value, code, words) in [
        ("NAMING_MODEL", "", 2, "NAMING_MODEL is not set"),
        ("LATENTS", "3-99", 2, "latent 99"),
        ("LATENTS", "some", 2, "expected `all`"),
        ("SCORES", "taste", 2, "expected detection"),
        ("ANTHROPIC_BASE_URL", "nowhere", 2, "is no URL"),
        ("ANTHROPIC_BASE_URL", "http://user:secret@host", 2, "holds a user or password"),
        ("STORE_DIR", "s3://bucket/store", 2, "must outlive the node"),
        ("SAE_RUN_ID", "gone", 2, "gone"),
    ] {
        let output = place.command("anthropic", "send").env(name, value).output().unwrap();
        let said = failed(&output, code);
        assert!(said.contains(words) && !said.contains("secret"), "{said}");
    }
    let mut command = place.command("chat", "send");
    let output =
        command.env("OPENAI_BASE_URL", "http://127.0.0.1:9/v1").env("RETRIES", "1").output();
    let said = failed(&output.unwrap(), 69);
    assert!(said.contains("run the same command again"), "{said}");
    let said = failed(&place.command("chat", "score").output().unwrap(), 65);
    assert!(said.contains("no names to judge"), "{said}");
    let said = failed(&place.command("chat", "parse").arg("--dry-run").output().unwrap(), 2);
    assert!(said.contains("`parse` knows no DRY_RUN"), "{said}");
    let mut command = place.command("chat", "send");
    command.env_remove("PRICE_INPUT").env_remove("PRICE_OUTPUT");
    let output = command.envs([("NAMING_MODEL", "own"), ("MAX_COST", "1")]).output().unwrap();
    assert!(failed(&output, 2).contains("no price of `own`"));
}
