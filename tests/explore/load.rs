//! Many browsers at once.

use std::{
    io::{BufReader, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Demo,
    client::{Server, read},
    plant::{self, Size},
};
use crate::workload::Random;

/// What is asked for, how often of a hundred, and how.
const REQUESTS: [(&str, usize); 8] = [
    ("table", 30),
    ("latent", 40),
    ("filter", 6),
    ("sae", 6),
    ("sentence", 6),
    ("search", 4),
    ("strength", 6),
    ("complete", 2),
];

/// Shows figures where `--no-capture` shows them.
fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// A browser's connection, kept open.
struct Browser<'a> {
    server: &'a Server,
    stream: BufReader<std::net::TcpStream>,
}

impl<'a> Browser<'a> {
    fn new(server: &'a Server) -> Self {
        Self { server, stream: BufReader::new(server.connect()) }
    }

    /// Asks for something drawn at random; what it was, how long it took, and the status.
    fn ask(&mut self, random: &mut Random, d_sae: usize) -> (usize, Duration, u16) {
        let mut drawn = random.below(100);
        let fits = |(_, share): &(&str, usize)| {
            let here = drawn < *share;
            drawn = drawn.saturating_sub(*share);
            here
        };
        let kind = REQUESTS.iter().position(fits).unwrap();
        let (latent, offset) = (random.below(d_sae), random.below(d_sae));
        let sort = ["density", "max", "score", "label"][random.below(4)];
        let table = format!("/api/saes/wide/latents?limit=100&offset={offset}&sort={sort}");
        let address = match REQUESTS[kind].0 {
            "table" => table,
            "latent" => format!("/api/saes/wide/latents/{latent}"),
            "filter" => format!("{table}&name=latent+{}&dead=no", latent % 100),
            "sae" => "/api/saes".to_owned(),
            "sentence" => format!("/api/saes/wide/sentences/{}", 2 * random.below(300)),
            "search" => format!("/api/search?sae=wide&q=word{}+word", random.below(997)),
            "strength" => format!("/api/saes/wide/latents/{latent}/strength"),
            _ => String::new(),
        };
        let request = if address.is_empty() {
            let body = json!({"text": "The old house by the sea", "saes": ["first"]}).to_string();
            let head = self.server.head("POST", "/api/complete");
            let length = body.len();
            format!(
                "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            )
        } else {
            self.server.head("GET", &address) + "\r\n"
        };
        let began = Instant::now();
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let status = read(&mut self.stream).status;
        (kind, began.elapsed(), status)
    }
}

/// Peak and present memory of a process in MiB.
fn memory(server: &Server, field: &str) -> u64 {
    let text = fs_err::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

/// Browsers for some time beside four generations; the times of each kind of request.
fn load(server: &Server, (browsers, seconds): (usize, u64), d_sae: usize) -> Vec<Vec<Duration>> {
    let over = AtomicBool::new(false);
    let mut times = vec![vec![]; REQUESTS.len()];
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|seed| {
                let over = &over;
                scope.spawn(move || {
                    let change =
                        json!({"sae": "first", "latent": seed, "op": "scale", "value": 2.0});
                    let mut written = 0;
                    while !over.load(Ordering::Relaxed) {
                        let events = server.events(&json!({
                            "text": "The old house by the sea", "max_tokens": 200, "temperature": 5,
                            "seed": seed, "interventions": [change],
                        }));
                        assert_eq!(events.last().unwrap()["event"], "done");
                        written += 1;
                    }
                    written
                })
            })
            .collect();
        let readers: Vec<_> = (0..browsers)
            .map(|n| {
                scope.spawn(move || {
                    let (mut browser, mut random) = (Browser::new(server), Random(n as u64));
                    let (until, mut mine) = (Instant::now() + Duration::from_secs(seconds), vec![]);
                    while Instant::now() < until {
                        mine.push(browser.ask(&mut random, d_sae));
                    }
                    mine
                })
            })
            .collect();
        for reader in readers {
            for (kind, took, status) in reader.join().unwrap() {
                assert_eq!(status, 200, "{}", REQUESTS[kind].0);
                times[kind].push(took);
            }
        }
        over.store(true, Ordering::Relaxed);
        let written: Vec<usize> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        assert!(written.iter().all(|n| *n > 0), "{written:?}");
    });
    times.iter_mut().for_each(|times| times.sort_unstable());
    times
}

fn report(times: &[Vec<Duration>]) {
    for ((name, _), times) in REQUESTS.iter().zip(times).filter(|(_, times)| !times.is_empty()) {
        let [median, p99] = [0.5, 0.99].map(|q| quantile(times, q));
        say(&format!(
            "{name:10} {:6} requests, median {median:?}, p99 {p99:?}, longest {:?}",
            times.len(),
            times[times.len() - 1]
        ));
    }
}

#[test]
fn browsers_and_four_generations_are_served_for_a_minute_in_bounded_memory() {
    const D_SAE: usize = 4096;
    let demo = Demo::new();
    plant::training(&demo.run("wide"), D_SAE);
    plant::top_sentences(&demo.run("wide"), D_SAE, Size { sentences: 2000, ..Size::FULL });
    plant::names(&demo.run("wide"), D_SAE);
    let server = demo.serve(&[("EXPLORE_QUEUE", "100")]);
    server.indexed("wide");
    let times = load(&server, (64, 60), D_SAE);
    report(&times);
    let peak = memory(&server, "VmHWM");
    assert!(peak < 1024, "{peak} MiB");
    assert!(times.iter().map(Vec::len).sum::<usize>() > 5000);
}

/// The figures of the documentation: `cargo nextest run --release --run-ignored only explore::load
/// --no-capture`.
#[test]
#[ignore = "takes two minutes and gigabytes of disk"]
fn the_figures_of_65536_latents_and_64_browsers() {
    const D_SAE: usize = 65_536;
    let demo = Demo::new();
    plant::training(&demo.run("wide"), D_SAE);
    plant::top_sentences(&demo.run("wide"), D_SAE, Size::FULL);
    plant::names(&demo.run("wide"), D_SAE);
    let server = demo.serve(&[("EXPLORE_QUEUE", "100")]);
    let timed = |address: &str| {
        let began = Instant::now();
        let answer = server.get(address);
        assert_eq!(answer.status, 200, "{}", answer.text());
        (began.elapsed(), answer.text().len())
    };
    for (what, address) in [
        ("table, first time", "/api/saes/wide/latents?limit=500"),
        ("table, again", "/api/saes/wide/latents?limit=500"),
        ("table, by label", "/api/saes/wide/latents?limit=500&sort=label"),
        ("table, filtered", "/api/saes/wide/latents?limit=500&name=description+of+latent+77"),
    ] {
        let (took, length) = timed(address);
        say(&format!("{what:20} {took:?}, {length} bytes"));
        assert!(took < Duration::from_secs(1), "{what}: {took:?}");
    }
    let mut random = Random(1);
    let mut alone: Vec<(Duration, usize)> = (0..2000)
        .map(|_| timed(&format!("/api/saes/wide/latents/{}", random.below(D_SAE))))
        .collect();
    alone.sort_unstable();
    let bytes: usize = alone.iter().map(|(_, bytes)| bytes).sum::<usize>() / alone.len();
    let times: Vec<Duration> = alone.iter().map(|(time, _)| *time).collect();
    let [median, p99] = [0.5, 0.99].map(|q| quantile(&times, q));
    say(&format!("latent alone, {bytes} bytes: median {median:?}, p99 {p99:?}"));
    assert!(p99 < Duration::from_millis(50), "{p99:?}");
    let began = Instant::now();
    server.indexed("wide");
    say(&format!("index: {:?}, memory {} MiB", began.elapsed(), memory(&server, "VmRSS")));
    let times = load(&server, (64, 60), D_SAE);
    report(&times);
    say(&format!(
        "memory: {} MiB without files, {} MiB with those mapped, at most {} MiB",
        memory(&server, "RssAnon"),
        memory(&server, "VmRSS"),
        memory(&server, "VmHWM")
    ));
    assert!(memory(&server, "RssAnon") < 3000);
}
