//! Each kernel beside its plain reference and beside what the machine can do at most.
//!
//! `cargo bench -p pipeline-common --bench kernels`. Products count FLOP as elements (Gelem/s is GFLOP/s);
//! their bound is `roof/product`, the best rate of a dense product. Everything else counts the bytes that
//! must move at least; the bound is `roof/copy`, bytes read and written by all threads. What stays in a
//! cache goes beyond it.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use pipeline_common::{
    kernels::{
        activation::Activation,
        adam::AdamConfig,
        attention::{Heads, Scoring, Sees, attention, spans},
        columns::column_sums,
        norm::rms_norm,
        panels::Panels,
        product::{Matrix, Write, product},
        rope::rotate,
        sparse::{
            SparseRows,
            gradients::{RowSums, Tiles},
            reconstruct::{Decoder, decode_add, reconstruct},
        },
        topk::Candidates,
        vector::simd,
    },
    sae::random::{Normal, Purpose},
};
use rayon::prelude::*;

/// SmolLM2-135M's width, eight times as many latents, rows of a batch, active latents.
const D: usize = 576;
const LATENTS: usize = 4608;
const ROWS: usize = 4096;
const K: usize = 32;
/// Numbers of a large memory-bound pass: 64 MiB.
const LARGE: usize = 16 << 20;
/// Numbers that one task of a pass takes, as in training.
const TASK: usize = 1 << 16;

fn normal(n: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; n];
    Normal::new(1, Purpose::Probe).fill(&mut numbers);
    numbers
}

fn tensor(shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(normal(shape.0 * shape.1), shape, &Device::Cpu).unwrap()
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    group
}

fn bytes(numbers: usize) -> Throughput {
    Throughput::Bytes((numbers * size_of::<f32>()) as u64)
}

fn flop(products: usize) -> Throughput {
    Throughput::Elements(2 * products as u64)
}

/// Copy and product at the best rates; the product of a library beside.
fn roof(c: &mut Criterion) {
    let mut group = group(c, "roof");
    let (from, mut to) = (normal(LARGE), vec![0.0; LARGE]);
    group.throughput(bytes(2 * LARGE)).bench_function("copy", |b| {
        b.iter(|| {
            let parts = to.par_chunks_mut(TASK).zip(from.par_chunks(TASK));
            parts.for_each(|(to, from)| to.copy_from_slice(from));
        });
    });
    let (x, w) = (normal(ROWS * D), normal(LATENTS * D));
    let mut out = vec![0.0; ROWS * LATENTS];
    group.throughput(flop(ROWS * LATENTS * D));
    for (name, dtype) in [("product", DType::F32), ("product_bf16", DType::BF16)] {
        let panels = Panels::new(LATENTS, D, dtype, |row| &w[row * D..][..D]);
        group.bench_function(name, |b| b.iter(|| panels.product(&x, &mut out, Write::Replace)));
    }
    group.bench_function("product_of_gemm", |b| {
        let (x, w) = (Matrix::new(&x, ROWS, D), Matrix::new(&w, LATENTS, D).t());
        b.iter(|| product(x, w, &mut out, Write::Replace));
    });
}

/// Parameters, gradient and two moments read, all but the gradient written.
fn adam(c: &mut Criterion) {
    let mut group = group(c, "adam");
    let step = AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8 }.step(7, 1e-4, 0.5);
    let (mut w, grad) = (normal(LARGE), normal(LARGE));
    let (mut m, mut v) = (vec![0.1; LARGE], vec![0.1; LARGE]);
    group.throughput(bytes(7 * LARGE)).bench_function("kernel", |b| {
        b.iter(|| {
            let state = w.par_chunks_mut(TASK).zip(m.par_chunks_mut(TASK));
            let state = state.zip(v.par_chunks_mut(TASK)).zip(grad.par_chunks(TASK));
            state.for_each(|(((w, m), v), grad)| {
                simd(
                    #[inline(always)]
                    || step.update(w, Some(grad), m, v),
                );
            });
        });
    });
    group.bench_function("reference", |b| {
        b.iter(|| {
            for (((w, m), v), g) in w.iter_mut().zip(&mut m).zip(&mut v).zip(&grad) {
                let g = 0.5 * g;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                *w -= 1e-4 * *m / (v.sqrt() + 1e-8);
            }
        });
    });
}

/// Pre-activations read.
fn top_k(c: &mut Criterion) {
    let mut group = group(c, "top_k");
    let pre = normal(ROWS * LATENTS);
    group.throughput(bytes(ROWS * LATENTS)).bench_function("kernel", |b| {
        b.iter(|| {
            let rows = pre.par_chunks(LATENTS).map_init(Candidates::default, |candidates, row| {
                candidates.top_k(row, K, 0.0, |_, _, _| ())
            });
            rows.sum::<usize>()
        });
    });
    group.bench_function("reference", |b| {
        b.iter(|| {
            let largest = |row: &[f32]| {
                let mut order: Vec<u32> = (0..LATENTS as u32).collect();
                order.select_nth_unstable_by(K, |a, b| {
                    row[*b as usize].total_cmp(&row[*a as usize])
                });
                order[K]
            };
            pre.par_chunks(LATENTS).map(largest).max()
        });
    });
}

/// K latents of each row, other ones for each.
fn latents() -> SparseRows {
    let mut active = SparseRows::default();
    active.clear();
    for row in 0..ROWS {
        let mut index: Vec<u32> =
            (0..K).map(|i| ((row * 7919 + i * 104_729) % LATENTS) as u32).collect();
        index.sort_unstable();
        active.push(&index, &[0.5; K]);
    }
    active
}

/// A decoder row of each active latent read, from a cache at best.
fn decoding(c: &mut Criterion) {
    let mut group = group(c, "decode");
    let (active, w) = (latents(), normal(LATENTS * D));
    let mut out = normal(ROWS * D);
    group.throughput(bytes(ROWS * K * D)).bench_function("kernel", |b| {
        b.iter(|| decode_add(&active, &w, D, &mut out));
    });
    group.bench_function("with_gradients", |b| {
        let decoder = Decoder { weights: &w, d_out: D, ends: &[], factors: &[1.0] };
        let (mut grads, mut entries) = (vec![], vec![]);
        b.iter(|| reconstruct(&active, &decoder, &mut out, &mut grads, &mut entries));
    });
    group.bench_function("reference", |b| {
        b.iter(|| {
            for row in 0..ROWS {
                let (index, value) = active.row(row);
                for (latent, value) in index.iter().zip(value) {
                    for i in 0..D {
                        out[row * D + i] += value * w[*latent as usize * D + i];
                    }
                }
            }
        });
    });
}

/// A row of the batch for each active latent read, from a cache at best.
fn row_sums(c: &mut Criterion) {
    let mut group = group(c, "row_sums");
    let (active, x) = (latents(), normal(ROWS * D));
    let (by_latent, mut out) = (active.by_latent(LATENTS), vec![0.0; LATENTS * D]);
    let factors = by_latent.gather(active.values());
    group.throughput(bytes(ROWS * K * D)).bench_function("kernel", |b| {
        let mut tiles = Tiles::default();
        b.iter(|| {
            tiles.load(&x, D);
            let sums =
                RowSums { by_latent: &by_latent, factors: &factors, matrix: &tiles, ends: &[] };
            for tile in 0..tiles.count() {
                let rows = out.par_chunks_mut(D).enumerate();
                rows.for_each(|(latent, out)| sums.add(latent, tile, out, Write::Add));
            }
        });
    });
    group.bench_function("reference", |b| {
        b.iter(|| {
            for (latent, out) in out.chunks_exact_mut(D).enumerate() {
                for (row, slot) in by_latent.of(latent) {
                    let factor = active.values()[*slot as usize];
                    out.iter_mut().zip(&x[*row as usize * D..]).for_each(|(o, x)| *o += factor * x);
                }
            }
        });
    });
}

/// Numbers read once.
fn columns(c: &mut Criterion) {
    let mut group = group(c, "column_sums");
    let x = normal(LARGE / D * D);
    group.throughput(bytes(x.len())).bench_function("kernel", |b| b.iter(|| column_sums(&x, D)));
    group.bench_function("reference", |b| {
        b.iter(|| {
            let mut sums = vec![0.0_f64; D];
            for row in x.chunks_exact(D) {
                sums.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
            }
            sums
        });
    });
}

/// A tensor read and one written, candle's operation beside.
fn elementwise(c: &mut Criterion) {
    let x = tensor((ROWS, D));
    let weight = Tensor::ones(D, DType::F32, &Device::Cpu).unwrap();
    let (cos, sin) = (tensor((ROWS, 32)), tensor((ROWS, 32)));
    let mut norm = group(c, "rms_norm");
    norm.throughput(bytes(2 * ROWS * D));
    norm.bench_function("kernel", |b| b.iter(|| rms_norm(black_box(&x), &weight, 1e-6).unwrap()));
    let plain = || candle_nn::ops::rms_norm(black_box(&x), &weight, 1e-6).unwrap();
    norm.bench_function("candle", |b| b.iter(plain));
    norm.finish();
    let mut rope = group(c, "rope");
    rope.throughput(bytes(2 * ROWS * D));
    rope.bench_function("kernel", |b| b.iter(|| rotate(black_box(&x), 64, &cos, &sin).unwrap()));
    let heads = x.reshape((1, ROWS, D / 64, 64)).unwrap();
    let plain = || candle_nn::rotary_emb::rope_thd(black_box(&heads), &cos, &sin).unwrap();
    rope.bench_function("candle", |b| b.iter(plain));
    rope.finish();
    let mut act = group(c, "activation");
    act.throughput(bytes(2 * ROWS * D));
    for (name, kind) in [("silu", Activation::Silu), ("gelu", Activation::Gelu)] {
        act.bench_function(name, |b| b.iter(|| kind.apply(black_box(&x)).unwrap()));
    }
    act.bench_function("candle_silu", |b| b.iter(|| black_box(&x).silu().unwrap()));
    act.bench_function("candle_gelu", |b| b.iter(|| black_box(&x).gelu_erf().unwrap()));
}

/// Scores and mixing of causal attention, half of each counted; sentences of 128 tokens.
fn attending(c: &mut Criterion) {
    let mut group = group(c, "attention");
    let heads = Heads { heads: 9, kv_heads: 3, d: 64 };
    let scoring = Scoring { scale: 0.125, cap: None, sees: Sees::PAST };
    let (q, k, v) = (tensor((ROWS, D)), tensor((ROWS, D / 3)), tensor((ROWS, D / 3)));
    let spans = spans(&(0..=ROWS).step_by(128).collect::<Vec<usize>>());
    group.throughput(flop(ROWS * 128 * D));
    group.bench_function("kernel", |b| {
        b.iter(|| attention((black_box(&q), &k, &v), &spans, heads, scoring).unwrap());
    });
    let bf16 = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let (q, k, v) = (bf16(&q), bf16(&k), bf16(&v));
    group.bench_function("candle_bf16", |b| {
        b.iter(|| attention((black_box(&q), &k, &v), &spans, heads, scoring).unwrap());
    });
}

criterion_group!(benches, roof, adam, top_k, decoding, row_sums, columns, elementwise, attending);
criterion_main!(benches);
