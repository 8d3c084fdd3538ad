//! GB/s of shards written and read, beside a plain copy of memory and a plain write of bytes.
//!
//! `cargo bench -p pipeline-common --bench shards`; a byte is one of the stored f16 rows, on tmpfs
//! (`/dev/shm`) where there is one, so that the disk is not what is measured.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{hint::black_box, io::Write, path::Path};

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use pipeline_common::{
    sae::{
        rows::{Rows, Side},
        train::loader::Loader,
    },
    shard::{
        ActivationWriter, Committed, Dropped, HookFile, Order, ShardSet, Stats, Tokens, format,
        manifest, reader::MANIFEST, tokens::Token,
    },
};

/// SmolLM2-135M's width.
const D_IN: usize = 576;
/// Rows of a batch: 32 documents of 128 tokens.
const BATCH: usize = 4096;
/// Batches of a shard: 72 MiB.
const BATCHES: usize = 16;
const BYTES: u64 = (BATCH * BATCHES * D_IN * 2) as u64;

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(parent).unwrap()
}

fn batch() -> Vec<f32> {
    (0..BATCH * D_IN).map(|i| ((i * 7919) % 20_011) as f32 / 1000.0 - 10.0).collect()
}

fn write(dir: &Path) -> HookFile {
    let path = dir.join("h/shard-0-0.safetensors");
    let mut writer = ActivationWriter::create(&path, "h", D_IN, 1.0, vec![]).unwrap();
    let mut rows = batch();
    for _ in 0..BATCHES {
        writer.append(&mut rows).unwrap();
    }
    writer.finish(&path, dir).unwrap()
}

/// A complete run of one shard.
fn run(dir: &Path) {
    fs_err::create_dir_all(dir.join("h")).unwrap();
    fs_err::create_dir_all(dir.join("tokens")).unwrap();
    let hooks = vec![write(dir)];
    let mut tokens = Tokens::new();
    for document in 0..(BATCH * BATCHES / 128) as u64 {
        tokens.push(document, "", (0..128).map(|i| Token { id: i, position: i, offset: [0, 0] }));
    }
    let rows = tokens.rows() as u64;
    let committed = Committed {
        worker: 0,
        shard: 0,
        unfinished: false,
        recapture: false,
        first_document: 0,
        end_document: tokens.sentences() as u64,
        sentences: tokens.sentences() as u64,
        rows,
        tokens_seen: rows,
        dropped: Dropped::default(),
        tokens: tokens.write(&dir.join("tokens/shard-0-0.safetensors"), dir, &vec![]).unwrap(),
        hooks,
    };
    manifest::append(&dir.join(MANIFEST), &committed).unwrap();
}

/// What no shard can be faster than: bytes copied in memory, written to a file, digested.
fn plain(group: &mut BenchmarkGroup<'_, WallTime>, dir: &Path) {
    let bytes = vec![3_u8; BYTES as usize];
    let mut copy = vec![0_u8; BYTES as usize];
    group.bench_function("plain_memory_copy", |b| {
        b.iter(|| black_box(&mut copy).copy_from_slice(black_box(&bytes)));
    });
    group.bench_function("plain_write", |b| {
        b.iter(|| fs_err::File::create(dir.join("plain")).unwrap().write_all(&bytes).unwrap());
    });
    group.bench_function("blake3", |b| b.iter(|| format::digest_bytes(black_box(&bytes))));
    let (rows, mut stats) = (batch(), Stats::new(D_IN));
    group.bench_function("statistics", |b| {
        b.iter(|| (0..BATCHES).for_each(|_| stats.add(black_box(&rows))));
    });
}

fn shards(c: &mut Criterion) {
    let dir = folder();
    run(dir.path());
    let mut group = c.benchmark_group("shards");
    group.sample_size(10).throughput(Throughput::Bytes(BYTES));
    plain(&mut group, dir.path());
    group.bench_function("write", |b| b.iter(|| write(dir.path())));
    group.bench_function("open_verified", |b| {
        b.iter(|| ShardSet::open(dir.path(), "h").unwrap());
    });
    let set = ShardSet::open(dir.path(), "h").unwrap();
    let mut row = vec![0.0; D_IN];
    group.bench_function("read_sequential", |b| {
        b.iter(|| (0..set.rows()).for_each(|r| set.read_row(r, 1.0, black_box(&mut row))));
    });
    let mut permuted = vec![];
    let whole = 0..set.rows();
    Order::new(1, std::slice::from_ref(&whole), D_IN * 2).batch(0, set.rows(), &mut permuted);
    group.bench_function("read_permuted", |b| {
        b.iter(|| permuted.iter().for_each(|r| set.read_row(*r, 1.0, black_box(&mut row))));
    });
    group.finish();
    loader(c, set);
}

/// A training's batches, beside a copy: of each number the loader reads 2 bytes and writes 4, and a copy
/// reads and writes 4.
fn loader(c: &mut Criterion, set: ShardSet) {
    let numbers = (set.rows() * D_IN) as u64;
    let rows = Rows::new(Side { set, scale: 1.0 }, None, 0.0).unwrap();
    let mut group = c.benchmark_group("loader");
    group.sample_size(10).throughput(Throughput::Bytes(6 * numbers));
    group.bench_function("epoch", |b| {
        b.iter(|| {
            std::thread::scope(|scope| {
                let loader = Loader::start(scope, &rows, rows.order(1), 0..BATCHES as u64, BATCH);
                while let Some(batch) = loader.next() {
                    loader.reuse(black_box(batch));
                }
            });
        });
    });
    let (from, mut to) = (vec![1_f32; BATCH * D_IN], vec![0_f32; BATCH * D_IN]);
    group.throughput(Throughput::Bytes(8 * numbers)).bench_function("copy", |b| {
        b.iter(|| (0..BATCHES).for_each(|_| black_box(&mut to).copy_from_slice(black_box(&from))));
    });
}

criterion_group!(benches, shards);
criterion_main!(benches);
