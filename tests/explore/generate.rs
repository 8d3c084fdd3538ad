//! Continuations over HTTP: streaming, steering, queueing, cancelling.

use std::{
    io::{BufReader, Write},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Demo,
    client::{Server, read, read_chunk, read_head},
    plant,
};

/// Text of a side.
fn text(events: &[Value], side: &str) -> String {
    let end = events.iter().find(|e| e["event"] == "end" && e["side"] == side).unwrap();
    end["text"].as_str().unwrap().to_owned()
}

/// A generation that goes on until the model is full, if nobody stops it.
fn long(sae: &str) -> Value {
    let clamp = json!({"sae": sae, "latent": 1, "op": "scale", "value": 1.5});
    json!({
        "text": "x", "max_tokens": 1024, "temperature": 10, "top_p": 1, "interventions": [clamp],
    })
}

#[test]
fn steering_changes_a_continuation_and_nothing_changes_nothing() {
    let demo = Demo::new();
    let server = demo.serve(&[]);
    let text_of = "Once upon a time there was a dog who";
    let write = |interventions: Value| {
        server.events(&json!({
            "text": text_of, "max_tokens": 24, "temperature": 0, "interventions": interventions,
        }))
    };
    let on = |op: &str, value: f64| -> Value {
        let of = |sae: &'static str| {
            (0..16)
                .map(move |latent| json!({"sae": sae, "latent": latent, "op": op, "value": value}))
        };
        of("first").chain(of("second")).collect()
    };
    let none = write(json!([]));
    for (op, value) in [("add", 0.0), ("scale", 1.0)] {
        let same = write(on(op, value));
        assert_eq!(text(&same, "steered"), text(&none, "baseline"));
        let kl: Vec<&Value> =
            same.iter().filter(|e| e["side"] == "steered").map(|e| &e["kl"]).collect();
        assert!(kl[..kl.len() - 1].iter().all(|kl| **kl == json!(0.0)), "{kl:?}");
    }
    let strength = server.get("/api/saes/first/latents/5/strength").json();
    let far = strength["hook_rms_norm"].as_f64().unwrap() * 2.0;
    let steered = write(json!([{"sae": "first", "latent": 5, "op": "clamp", "value": far}]));
    assert_ne!(text(&steered, "steered"), text(&steered, "baseline"));
    assert_eq!(text(&steered, "baseline"), text(&none, "baseline"));
    let end = steered.iter().find(|e| e["event"] == "end" && e["side"] == "steered").unwrap();
    assert!(end["mean_kl"].as_f64().unwrap() > 0.1, "{end}");
}

#[test]
fn lines_come_as_they_are_written_and_a_closed_connection_ends_the_work() {
    let demo = Demo::new();
    plant::training(&demo.run("wide"), 65_536);
    let server = demo.serve(&[("EXPLORE_QUEUE", "0")]);
    // The model is loaded, and what follows measures its work alone.
    server.events(&json!({"text": "x", "max_tokens": 1, "sae": "wide"}));
    let began = Instant::now();
    let whole = server.events(&long("wide"));
    let took = began.elapsed();
    assert!(whole.len() > 100, "{} lines", whole.len());

    let mut stream = server.connect();
    let began = Instant::now();
    let request = server.request("/api/generate", &long("wide").to_string());
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(read_head(&mut reader).unwrap().0, 200);
    let first: Value = serde_json::from_slice(&read_chunk(&mut reader)).unwrap();
    assert_eq!(first["event"], "start");
    let second: Value = serde_json::from_slice(&read_chunk(&mut reader)).unwrap();
    assert_eq!(second["event"], "token");
    assert!(began.elapsed() < took / 3, "nothing was streamed: {:?} of {took:?}", began.elapsed());

    let refused = server.post("/api/generate", &json!({"text": "x"}));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert!(refused.json()["error"].as_str().unwrap().contains("waiting"));
    let complete = json!({"text": "x", "saes": ["first"]});
    assert_eq!(server.post("/api/complete", &complete).status, 429);

    let closed = Instant::now();
    drop(reader);
    while server.post("/api/generate", &json!({"text": "x", "max_tokens": 1})).status == 429 {
        assert!(closed.elapsed() < took / 3, "the work went on for nobody");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn requests_wait_for_their_turn_and_all_are_answered() {
    let demo = Demo::new();
    let server = demo.serve(&[("EXPLORE_QUEUE", "3")]);
    let request = json!({"text": "The old house", "max_tokens": 20, "seed": 3});
    let answers = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| server.events(&request));
        let all: Vec<_> = (0..4).map(|_| ask()).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    for events in &answers {
        assert_eq!(text(events, "baseline"), text(&answers[0], "baseline"));
    }
    let stopped = server.events(&json!({"text": "The old house", "temperature": 0, "stop": ["e"]}));
    assert!(!text(&stopped, "baseline").contains('e'));
}

#[test]
fn a_server_that_is_asked_to_stop_tells_who_waits() {
    let demo = Demo::new();
    plant::training(&demo.run("wide"), 65_536);
    let server = demo.serve(&[]);
    server.events(&json!({"text": "x", "max_tokens": 1, "sae": "wide"}));
    let mut stream = server.connect();
    let request = server.request("/api/generate", &long("wide").to_string());
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let waiting = std::thread::spawn(move || read(&mut reader).text());
    std::thread::sleep(Duration::from_millis(300));
    let (code, said) = Server::end(server);
    assert_eq!(code, Some(0), "{said}");
    let text = waiting.join().unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "error", "{text}");
}
