//! Rows a second of training steps.
//!
//! `cargo bench -p pipeline-common --bench train`; one element is one row (one token).
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use candle_core::DType;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pipeline_common::{
    kernels::adam::AdamConfig,
    sae::{
        init::{Start, initialise},
        parameters::Shape,
        random::{Normal, Purpose},
        trainer::{Optimiser, Rates, State, Trainer},
        variant::{
            dense::Dense,
            jumprelu::JumpRelu,
            threshold::Running,
            topk::{Aux, AuxForm, Selection, TopK},
        },
    },
};

/// d_in, d_sae, k, rows a step.
const SHAPES: [(usize, usize, usize, usize); 5] = [
    (576, 4608, 32, 4096),
    (128, 1024, 8, 2048),
    (2048, 16384, 32, 1024),
    (2048, 16384, 64, 1024),
    (1536, 6144, 8, 32),
];

fn rows(n: usize, d_in: usize) -> Vec<f32> {
    let mut rows = vec![0.0; n * d_in];
    Normal::new(1, Purpose::Decoder).fill(&mut rows);
    let scale = 1.0 / (d_in as f32).sqrt();
    rows.iter_mut().for_each(|x| *x *= scale);
    rows
}

fn topk_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("topk_step");
    group.sample_size(10);
    let precisions = [(DType::F32, ""), (DType::BF16, "_bf16")];
    let cases = SHAPES.into_iter().flat_map(|shape| precisions.map(|p| (shape, p)));
    for ((d_in, d_sae, k, batch), (precision, suffix)) in cases {
        let x = rows(batch, d_in);
        let aux = Aux { coefficient: 1.0 / 32.0, k: d_in / 2, form: AuxForm::Normalised };
        let params = initialise(Shape::autoencoder(d_in, d_sae), &x, 0, Start::TIED);
        let state = State::new(params, u64::MAX, false);
        let optimiser = Optimiser::adam(AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8 });
        let objective =
            Box::new(TopK::new(Selection::of_rows(k), aux, Running::from_step(u64::MAX)));
        let mut trainer = Trainer::new(state, objective, optimiser, true, precision);
        let rates = Rates { lr: 1e-4, sparsity: 1.0 };
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("{d_in}x{d_sae}_k{k}_batch{batch}{suffix}"), |b| {
            let step = |mut x: Vec<f32>| trainer.step(&mut x, None, rates).unwrap();
            b.iter_batched(|| x.clone(), step, BatchSize::LargeInput);
        });
    }
}

/// JumpReLU with half of all latents active, as at the first steps, and with 4 %.
fn jumprelu_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("jumprelu_step");
    group.sample_size(10);
    let (d_in, d_sae, batch) = (2048, 16384, 1024);
    let x = rows(batch, d_in);
    // Pre-activations are normal, with a deviation of 1 / sqrt(d_in).
    let precisions = [(DType::F32, ""), (DType::BF16, "_bf16")];
    let cases =
        [("half", 0.0), ("sparse", 1.75)].into_iter().flat_map(|c| precisions.map(|p| (c, p)));
    for ((name, deviations), (precision, suffix)) in cases {
        let threshold = deviations / (d_in as f32).sqrt();
        let start = Start { threshold, ..Start::TIED };
        let params = initialise(Shape::jumprelu(d_in, d_sae), &x, 0, start);
        let state = State::new(params, u64::MAX, false);
        let optimiser = Optimiser::adam(AdamConfig { beta1: 0.0, beta2: 0.999, eps: 1e-8 });
        let objective = Box::new(Dense::new(JumpRelu::new(0.001), 1e-4));
        let mut trainer = Trainer::new(state, objective, optimiser, true, precision);
        let rates = Rates { lr: 1e-6, sparsity: 1.0 };
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("{d_in}x{d_sae}_{name}_batch{batch}{suffix}"), |b| {
            let step = |mut x: Vec<f32>| trainer.step(&mut x, None, rates).unwrap();
            b.iter_batched(|| x.clone(), step, BatchSize::LargeInput);
        });
    }
}

criterion_group!(benches, topk_step, jumprelu_step);
criterion_main!(benches);
