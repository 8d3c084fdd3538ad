//! Rows a second of stage 03's pass: the encoder's product alone, active latents, and the tally of them.
//!
//! `cargo bench -p pipeline-common --bench top`; one element is one row (one token). Without a suffix: as the
//! stage does it, on some processors by a product in bf16 and exact sums of what may be active.

use candle_core::DType;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline_common::{
    kernels::{panels::Panels, product::Write},
    sae::{
        Activation, Sae,
        encode::Encoder,
        init::{Start, initialise},
        parameters::Shape,
        random::{Normal, Purpose},
    },
    top::tally::{Choice, Seen, Tally},
};

/// d_in, d_sae, k.
const SHAPES: [(usize, usize, usize); 2] = [(576, 4608, 32), (2048, 16384, 64)];
/// Rows of a chunk; sentences have 20 each.
const ROWS: usize = 2000;
const SENTENCE: usize = 20;

fn pass(c: &mut Criterion) {
    let mut group = c.benchmark_group("top");
    group.sample_size(10);
    group.throughput(Throughput::Elements(ROWS as u64));
    for (d_in, d_sae, k) in SHAPES {
        let mut x = vec![0.0; ROWS * d_in];
        Normal::new(1, Purpose::Decoder).fill(&mut x);
        let params = initialise(Shape::autoencoder(d_in, d_sae), &x, 0, Start::TIED);
        let name = |part: &str| format!("{d_in}x{d_sae}_k{k}/{part}");
        let mut out = vec![0.0; ROWS * d_sae];
        for (dtype, part) in [(DType::F32, "product_f32"), (DType::BF16, "product_bf16")] {
            let row = |l: usize| &params.w_enc[l * d_in..][..d_in];
            let panels = Panels::new(d_sae, d_in, dtype, row);
            group.bench_function(name(part), |b| {
                b.iter(|| panels.product(&x, &mut out, Write::Replace));
            });
        }
        let sae = Sae::new(params, Activation::TopK { k });
        let mut plain = Encoder::default();
        plain.load(&sae.params.w_enc, d_in, DType::F32);
        for (mut encoder, suffix) in [(plain, "_f32"), (sae.encoder(), "")] {
            let encode = name(&format!("encode{suffix}"));
            group.bench_function(encode, |b| b.iter(|| sae.encode_with(&mut encoder, &x)));
            let mut tally = Tally::new(d_sae, Choice { top_n: 10, seed: 0 });
            let mut first = 0;
            group.bench_function(name(&format!("encode_and_tally{suffix}")), |b| {
                b.iter(|| {
                    let active = sae.encode_with(&mut encoder, &x);
                    tally.add(&active, first, &sentences(first));
                    first += ROWS as u64;
                });
            });
        }
    }
    group.finish();
}

fn sentences(first: u64) -> Vec<Seen> {
    let seen = |n: usize| {
        let sentence = first / SENTENCE as u64 + n as u64;
        let signature = sentence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Seen { sentence, signature, rows: n * SENTENCE..(n + 1) * SENTENCE }
    };
    (0..ROWS / SENTENCE).map(seen).collect()
}

criterion_group!(benches, pass);
criterion_main!(benches);
