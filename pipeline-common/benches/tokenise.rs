//! Tokens a second of the tokenizer on the demonstration text.
//!
//! `cargo bench -p pipeline-common --bench tokenise`; one element is one token.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline_common::text::Tokenizer;

fn tokenise(c: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo");
    let tokenizer = Tokenizer::load(&root.join("model")).unwrap();
    let lines = fs_err::read_to_string(root.join("text/demo.jsonl")).unwrap();
    let text =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].clone();
    let texts: Vec<String> =
        lines.lines().take(1024).map(|l| text(l).as_str().unwrap().to_owned()).collect();
    let encode = |n: usize| {
        let batches = texts.chunks(n).map(|batch| tokenizer.encode_batch(batch, 128).unwrap());
        batches.flatten().map(|e| e.ids.len()).sum::<usize>()
    };
    let mut group = c.benchmark_group("tokenise");
    group.sample_size(20).throughput(Throughput::Elements(encode(32) as u64));
    // What a capture does, and whether larger batches would use the processors better.
    for batch in [32, 1024] {
        group.bench_function(format!("batches_of_{batch}"), |b| b.iter(|| encode(batch)));
    }
    group.finish();
}

criterion_group!(benches, tokenise);
criterion_main!(benches);
