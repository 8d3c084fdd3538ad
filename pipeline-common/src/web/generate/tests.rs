//! Generations over the demo model.

use super::*;
use crate::web::fixture::{Fixture, SAES};

fn request(interventions: Value) -> Request {
    let text = "The old house by the sea was empty, and nobody knew why. ".repeat(6);
    serde_json::from_value(json!({
        "text": text, "interventions": interventions, "temperature": 1.0, "seed": 5,
    }))
    .unwrap()
}

fn lines(request: &Request) -> (Lines, mpsc::Receiver<Bytes>) {
    let (sender, receiver) = mpsc::channel(request.lines());
    (Lines { sender, stop: StopFlag::default() }, receiver)
}

/// Bits of the scores behind the prompt and behind two more tokens, by sentence.
fn bits(fixture: &Fixture, request: &Request) -> Vec<Vec<u32>> {
    let (lines, _receiver) = lines(request);
    let mut all: Vec<Vec<u32>> = vec![];
    let mut keep = |scores: Scores| {
        all.resize(scores.len(), vec![]);
        all.iter_mut().zip(scores).for_each(|(all, s)| all.extend(s.iter().map(|x| x.to_bits())));
    };
    prepared(&fixture.library, &fixture.engine, request, |job| {
        assert!(job.encoding.ids.len() > CHUNK, "more than a chunk");
        let (mut passage, mut special, scores) = job.read_prompt(&lines)?;
        keep(scores);
        for id in [300, 400] {
            special.iter_mut().for_each(|special| special.push(false));
            keep(job.advance(&mut passage, &vec![&[id][..]; special.len()], &special, true)?);
        }
        Ok(())
    })
    .unwrap();
    all
}

/// Interventions on every SAE, of which each reads, and one writes, somewhere else.
fn on_all(op: &str, value: f64) -> Value {
    let one =
        |sae: &str, latent: usize| json!({"sae": sae, "latent": latent, "op": op, "value": value});
    SAES.iter().flat_map(|(sae, _)| (0..8).map(move |latent| one(sae, latent))).collect()
}

#[test]
fn where_no_activation_changes_no_bit_of_the_scores_does() {
    let fixture = Fixture::new();
    let plain = bits(&fixture, &request(json!([])));
    for (op, value) in [("add", 0.0), ("scale", 1.0)] {
        let same = bits(&fixture, &request(on_all(op, value)));
        assert_eq!(same.len(), 3);
        for (sentence, bits) in same.iter().enumerate() {
            assert!(*bits == plain[0], "{op} {value}: other bits in sentence {sentence}");
        }
    }
    for (op, value) in [("add", 0.5), ("scale", 2.0), ("clamp", 3.0), ("ablate", 0.0)] {
        let steered = bits(&fixture, &request(on_all(op, value)));
        assert!(steered[1] != plain[0], "{op} changes nothing");
        assert!(
            steered[0] == plain[0] && steered[2][..3072] == plain[0][..3072],
            "{op} reaches others"
        );
    }
}

#[test]
fn what_is_steered_is_the_models_row_and_a_multiple_of_the_decoders() {
    let fixture = Fixture::new();
    for (sae, _) in SAES {
        let request = request(json!([{"sae": sae, "latent": 3, "op": "add", "value": 2.5}]));
        prepared(&fixture.library, &fixture.engine, &request, |job| {
            let weights = fixture.library.weights(&fixture.library.open(sae)?)?;
            let d_in = weights.sae.params.d_in;
            let x: Vec<f32> = (0..4 * d_in).map(|n| (n as f32 * 0.37).sin() * 3.0).collect();
            let tensor =
                candle_core::Tensor::from_vec(x.clone(), (4, d_in), &candle_core::Device::Cpu);
            let tensor = tensor.map_err(ModelError::from)?;
            let last = job.steering.hooks().len() - 1;
            let mut visit = |hook| job.steering.visit(hook, &tensor, &[1, 3]).unwrap();
            let (first, last) = (visit(0), visit(last));
            assert_eq!(first.is_some(), sae != "across", "a transcoder writes elsewhere");
            let changed: Vec<f32> = last.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let direction = &weights.sae.params.w_dec[3 * d_in..][..d_in];
            for (row, (x, changed)) in x.chunks(d_in).zip(changed.chunks(d_in)).enumerate() {
                let spread = weights.sae.row_norm.map_or(1.0, |norm| norm.spread(x));
                let push = if row % 2 == 1 { 2.5 * spread } else { 0.0 };
                for ((x, d), changed) in x.iter().zip(direction).zip(changed) {
                    assert_eq!(x + push * d, *changed, "{sae} row {row}");
                }
            }
            Ok(())
        })
        .unwrap();
    }
}

fn events(fixture: &Fixture, request: &Request) -> Vec<Value> {
    let (lines, mut receiver) = lines(request);
    let (ready, _told) = oneshot::channel();
    generate((&fixture.library, &fixture.engine), request, &lines, ready);
    let mut events = vec![];
    while let Ok(line) = receiver.try_recv() {
        events.push(serde_json::from_slice(&line).unwrap());
    }
    events
}

#[test]
fn both_sides_are_told_and_end_and_the_same_request_gives_the_same() {
    let fixture = Fixture::new();
    let request = Request { max_tokens: 12, ..request(on_all("add", 2.0)) };
    let told = events(&fixture, &request);
    assert_eq!(
        (&told[0]["event"], &told[0]["sides"]),
        (&json!("start"), &json!(["baseline", "steered"]))
    );
    assert_eq!(told.last().unwrap()["event"], "done", "{told:?}");
    for side in ["baseline", "steered"] {
        let mine = |event: &str| -> Vec<&Value> {
            told.iter().filter(|e| e["event"] == event && e["side"] == side).collect()
        };
        let (tokens, end) = (mine("token"), mine("end")[0]);
        let text: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
        assert_eq!(
            (json!(text), json!(tokens.len())),
            (end["text"].clone(), end["tokens"].clone())
        );
        let kl: Vec<Option<f64>> = tokens.iter().map(|t| t["kl"].as_f64()).collect();
        assert!(kl.iter().all(|kl| kl.is_some_and(|kl| kl > 0.0) == (side == "steered")), "{kl:?}");
    }
    let without_time = |mut events: Vec<Value>| {
        events.pop();
        events
    };
    let told = without_time(told);
    assert_eq!(told, without_time(events(&fixture, &request)));
    let alone = events(&fixture, &Request { baseline: false, ..request.clone() });
    let steered = |events: &[Value]| -> Vec<Value> {
        events.iter().filter(|e| e["side"] == "steered").cloned().collect()
    };
    assert_eq!(steered(&told), steered(&alone));
    assert_eq!(alone[0]["sides"], json!(["steered"]));
    let plain = events(&fixture, &Request { interventions: vec![], ..request });
    let baseline = |events: &[Value]| -> Vec<Value> {
        events.iter().filter(|e| e["side"] == "baseline").cloned().collect()
    };
    assert_eq!(baseline(&told), baseline(&plain));
}

#[test]
fn a_text_that_fills_the_model_ends_there() {
    let fixture = Fixture::new();
    let hot = Request { temperature: 10.0, top_p: 1.0, max_tokens: 1000, ..request(json!([])) };
    let told = events(&fixture, &Request { text: "x ".repeat(110), ..hot });
    let end = told.iter().find(|e| e["event"] == "end").unwrap();
    let prompt = told[0]["prompt"].as_array().unwrap().len() as u64;
    assert_eq!(end["reason"], "context", "{end}");
    assert_eq!(prompt + end["tokens"].as_u64().unwrap(), 257, "the last one is not read");
}

#[test]
fn nothing_is_written_for_nobody_and_a_stop_is_told() {
    let fixture = Fixture::new();
    let request = request(json!([]));
    let (lines, receiver) = lines(&request);
    drop(receiver);
    let (ready, told) = oneshot::channel();
    generate((&fixture.library, &fixture.engine), &request, &lines, ready);
    told.blocking_recv().unwrap().unwrap();
    let (lines, mut receiver) = self::lines(&request);
    let (ready, _told) = oneshot::channel();
    lines.stop.request();
    generate((&fixture.library, &fixture.engine), &request, &lines, ready);
    let event: Value = serde_json::from_slice(&receiver.try_recv().unwrap()).unwrap();
    assert_eq!(event["event"], "error");
    assert!(receiver.try_recv().is_err(), "it went on");
}

#[test]
fn what_is_wrong_is_said_before_the_first_line() {
    let fixture = Fixture::new();
    for (bad, status) in [
        (json!([{"sae": "gone", "latent": 0, "op": "add"}]), 404),
        (json!([{"sae": "topk", "latent": 48, "op": "add"}]), 400),
        (json!([{"sae": "topk", "latent": 0, "op": "add", "value": 1e300}]), 400),
    ] {
        let request = request(bad.clone());
        let (lines, mut receiver) = lines(&request);
        let (ready, told) = oneshot::channel();
        generate((&fixture.library, &fixture.engine), &request, &lines, ready);
        let refusal = told.blocking_recv().unwrap().unwrap_err();
        assert_eq!(refusal.status.as_u16(), status, "{bad}");
        assert!(receiver.try_recv().is_err(), "a line was told");
    }
}

#[test]
fn special_tokens_and_other_sentences_are_not_steered() {
    let step =
        Step { batch: crate::model::Packed::new([vec![1, 2], vec![3, 4, 5]]), first: vec![7, 1] };
    let special = [vec![false; 9], vec![true, false, true, false]];
    assert_eq!(steered_rows(&step, &special), [2, 4]);
    assert_eq!(steered_rows(&step, &special[..1]), [0; 0]);
}

#[test]
fn a_push_that_breaks_the_model_is_told() {
    let fixture = Fixture::new();
    let told = events(&fixture, &request(on_all("add", 1e38)));
    let last = told.last().unwrap();
    assert_eq!(last["event"], "error", "{last}");
    assert!(last["hint"].as_str().unwrap().contains("smaller"), "{last}");
}
