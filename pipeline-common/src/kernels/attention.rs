//! Attention over packed sentences: each token sees its own sentence only.
//!
//! Queries [rows, heads · d], keys and values [rows, kv_heads · d]; head `h` reads key-value head
//! `h / (heads / kv_heads)` (grouped-query attention, arXiv:2305.13245). No padding exists; what a
//! query does not see is left out where whole tiles of it can be, and masked in the rest.
//!
//! Both products run on the tiles of [`super::panels`], one chain of fused multiply-adds per number
//! in the order of the keys. So a query's result is the same bits whether it is computed with its
//! whole sentence or alone against the keys of those before it.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use rayon::prelude::*;

use super::{
    elementary::{exp, sum},
    host::{self, Output, tensor, view},
    panels::tile::{COLUMNS, Kernel, ROWS, Tile},
    vector::{max, simd},
};

/// Queries of one task, which share the keys that are laid out for it.
const QUERIES: usize = 128;
/// Scores at a time on a GPU, all heads of all sentences: 256 MiB.
const SCORES: usize = 64 << 20;

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub d: usize,
}

/// Which of its sentence's keys a query sees, counted from its own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sees {
    /// Keys before it.
    pub back: usize,
    /// Keys after it.
    pub ahead: usize,
}

impl Sees {
    /// All keys.
    pub const ALL: Self = Self { back: usize::MAX, ahead: usize::MAX };
    /// Itself and all before it.
    pub const PAST: Self = Self { back: usize::MAX, ahead: 0 };

    /// Itself and those before it, `n` together.
    pub fn window(n: usize) -> Self {
        Self { back: n.saturating_sub(1), ahead: 0 }
    }

    /// The keys that a query of a sentence of `n` sees on average.
    pub fn mean(self, n: f64) -> f64 {
        let (back, ahead) = ((self.back as f64).min(n - 1.0), (self.ahead as f64).min(n - 1.0));
        // Queries nearer to an end than that miss half of it on average.
        let side = |reach: f64| reach - reach * (reach + 1.0) / (2.0 * n);
        1.0 + side(back) + side(ahead)
    }

    /// The keys that the query at `place` sees of `n`.
    fn keys(self, place: usize, n: usize) -> Range<usize> {
        place.saturating_sub(self.back)..n.min(place.saturating_add(self.ahead).saturating_add(1))
    }
}

/// How queries weigh the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Factor of the products, `1 / sqrt d` in most families.
    pub scale: f32,
    /// Bound `c` of soft-capped scores, `c · tanh(score / c)` (arXiv:2408.00118).
    pub cap: Option<f32>,
    /// The keys that take part.
    pub sees: Sees,
}

/// A sentence: its rows among the queries, and those among the keys, of which the last are its
/// queries' own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of queries.
    pub queries: Range<usize>,
    /// Rows of keys and values.
    pub keys: Range<usize>,
}

impl Span {
    /// Keys before the first query.
    pub fn offset(&self) -> usize {
        self.keys.len() - self.queries.len()
    }
}

/// Sentences whose keys are those of the queries: `i` is rows `starts[i]..starts[i + 1]`.
pub fn spans(starts: &[usize]) -> Vec<Span> {
    starts.windows(2).map(|w| Span { queries: w[0]..w[1], keys: w[0]..w[1] }).collect()
}

/// `softmax(score(q kᵀ)) v` within each sentence; returns [rows, heads · d].
///
/// # Errors
/// What the device reports, and shapes that do not fit `heads` and `spans`.
pub fn attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    spans: &[Span],
    heads: Heads,
    scoring: Scoring,
) -> Result<Tensor> {
    check((q, k, v), spans, heads)?;
    let (Some(qs), Some(ks), Some(vs)) = (view(q), view(k), view(v)) else {
        return portable((q, k, v), spans, heads, scoring);
    };
    let inputs = Inputs { q: &qs, k: &ks, v: &vs, heads, scoring };
    #[expect(unsafe_code, reason = "clearing what is written anyway takes time")]
    // SAFETY: `check` saw that the sentences cover the rows of queries, so the tasks cover every row
    // of every head.
    let out = unsafe { Output::written(qs.len(), |out| fast(&inputs, spans, out)) };
    tensor(out, q.shape())
}

/// The kernel writes where spans say: what it relies on is checked, always.
fn check((q, k, v): (&Tensor, &Tensor, &Tensor), spans: &[Span], heads: Heads) -> Result<()> {
    let (rows, keys) = (q.dim(0)?, k.dim(0)?);
    let mut covered = 0;
    let in_order = spans.iter().all(|s| {
        let next = s.queries.start == covered && s.queries.start <= s.queries.end;
        covered = s.queries.end;
        next && s.keys.end <= keys && s.keys.len() >= s.queries.len()
    });
    let fits = q.dims() == [rows, heads.heads * heads.d]
        && k.dims() == [keys, heads.kv_heads * heads.d]
        && v.dims() == k.dims()
        && heads.kv_heads > 0
        && heads.heads.is_multiple_of(heads.kv_heads)
        && in_order
        && covered == rows;
    if !fits {
        candle_core::bail!(
            "attention: q {:?}, k {:?}, v {:?} do not fit {heads:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    Ok(())
}

struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: Heads,
    scoring: Scoring,
}

/// A block of one sentence's queries in the heads that read one key-value head.
struct Task {
    /// Rows of queries.
    queries: Range<usize>,
    /// Place of the first among the sentence's keys.
    place: usize,
    /// Rows of the sentence's keys.
    keys: Range<usize>,
    kv_head: usize,
}

fn fast(inputs: &Inputs, spans: &[Span], out: &Output<'_>) {
    let blocks = spans.iter().flat_map(|span| {
        span.queries.clone().step_by(QUERIES).map(move |begin| {
            let end = span.queries.end.min(begin + QUERIES);
            (begin..end, span.offset() + begin - span.queries.start, span.keys.clone())
        })
    });
    let tasks: Vec<Task> = blocks
        .flat_map(|(queries, place, keys)| {
            (0..inputs.heads.kv_heads).map(move |kv_head| Task {
                queries: queries.clone(),
                place,
                keys: keys.clone(),
                kv_head,
            })
        })
        .collect();
    tasks.par_iter().for_each(|task| block(inputs, task, out));
}

/// The keys and values of a block in panels, and the scores of one tile of queries.
struct Scratch<'a> {
    /// [keys / COLUMNS rounded up, d, COLUMNS].
    k: &'a mut [f32],
    /// [d / COLUMNS rounded up, keys, COLUMNS].
    v: &'a mut [f32],
    /// [ROWS, keys rounded up].
    scores: &'a mut [f32],
}

/// Lends `task` room for `n` keys of width `d`.
fn with_scratch(n: usize, d: usize, task: impl FnOnce(Scratch<'_>)) {
    let wide = n.next_multiple_of(COLUMNS);
    let (k, v) = (wide * d, n * d.next_multiple_of(COLUMNS));
    host::with_scratch(k + v + ROWS * wide, |numbers| {
        let (k, rest) = numbers.split_at_mut(k);
        let (v, scores) = rest.split_at_mut(v);
        task(Scratch { k, v, scores });
    });
}

/// One task: its keys and values laid out once, then tile by tile.
fn block(inputs: &Inputs, task: &Task, out: &Output<'_>) {
    let Heads { heads, kv_heads, d } = inputs.heads;
    let (n, sees) = (task.keys.len(), inputs.scoring.sees);
    let last = task.place + task.queries.len() - 1;
    let seen = sees.keys(task.place, n).start..sees.keys(last, n).end;
    let stride = kv_heads * d;
    let at = (task.keys.start + seen.start) * stride + task.kv_head * d;
    let group = heads / kv_heads;
    with_scratch(seen.len(), d, |mut scratch| {
        keys_in_panels(&inputs.k[at..], (d, stride), scratch.k);
        values_in_panels(&inputs.v[at..], (seen.len(), d, stride), scratch.v);
        for head in task.kv_head * group..(task.kv_head + 1) * group {
            for begin in task.queries.clone().step_by(ROWS) {
                let rows = begin..task.queries.end.min(begin + ROWS);
                let place = task.place + begin - task.queries.start;
                tile(inputs, (rows, place, head), (n, &seen), &mut scratch, out);
            }
        }
    });
}

/// Scores, softmax and mix of values of a few queries of one head; `seen` are the keys laid out of
/// the sentence's `n`.
fn tile(
    inputs: &Inputs,
    (rows, place, head): (Range<usize>, usize, usize),
    (n, seen): (usize, &Range<usize>),
    scratch: &mut Scratch<'_>,
    out: &Output<'_>,
) {
    let (Heads { heads, d, .. }, scoring) = (inputs.heads, inputs.scoring);
    let Scratch { k, v, scores } = scratch;
    let (q_row, stride) = (heads * d, scores.len() / ROWS);
    let live = |i: usize| {
        let keys = scoring.sees.keys(place + i, n);
        keys.start - seen.start..keys.end - seen.start
    };
    let all = live(0).start..live(rows.len() - 1).end;
    let q = &inputs.q[rows.start * q_row + head * d..];
    let (kernel, mut sums): (Kernel, Tile) = (Kernel::best(), [[0.0; COLUMNS]; ROWS]);
    for panel in all.start / COLUMNS..all.end.div_ceil(COLUMNS) {
        let (columns, keys) = (all.end - panel * COLUMNS, &k[panel * d * COLUMNS..]);
        kernel.run_first(q, q_row, (rows.len(), columns), &keys[..d * COLUMNS], &mut sums);
        for (row, sums) in scores.chunks_exact_mut(stride).zip(&sums[..rows.len()]) {
            row.as_chunks_mut().0[panel] = *sums;
        }
    }
    for (i, row) in scores.chunks_exact_mut(stride).enumerate().take(rows.len()) {
        let live = live(i);
        row[all.start..live.start].fill(0.0);
        row[live.end..all.end].fill(0.0);
        weigh(&mut row[live], scoring);
    }
    for (panel, values) in v.chunks_exact(seen.len() * COLUMNS).enumerate() {
        let values = &values[all.start * COLUMNS..all.end * COLUMNS];
        let columns = panel * COLUMNS..d.min((panel + 1) * COLUMNS);
        let size = (rows.len(), columns.len());
        kernel.run_first(&scores[all.start..], stride, size, values, &mut sums);
        for (row, sums) in rows.clone().zip(&sums) {
            out.write(row * q_row + head * d + columns.start, &sums[..columns.len()]);
        }
    }
}

/// Scores to weights, in place.
fn weigh(scores: &mut [f32], scoring: Scoring) {
    if let Some(cap) = scoring.cap {
        simd(
            #[inline(always)]
            || soft_cap(scores, scoring.scale, cap),
        );
        return simd(
            #[inline(always)]
            || softmax(scores, 1.0),
        );
    }
    simd(
        #[inline(always)]
        || softmax(scores, scoring.scale),
    );
}

/// `cap · tanh(scale · x / cap)`, with tanh u = 1 - 2 / (1 + exp(2u)).
#[inline(always)]
fn soft_cap(row: &mut [f32], scale: f32, cap: f32) {
    for x in row {
        *x = cap * (1.0 - 2.0 / (1.0 + exp(2.0 * scale * *x / cap)));
    }
}

/// Softmax of `scale · x`.
#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) {
    for x in row.iter_mut() {
        *x *= scale;
    }
    let largest = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let scale = sum(row, |x| x).recip();
    for x in row.iter_mut() {
        *x *= scale;
    }
}

/// Keys [n, d], `stride` apart, as columns of panels; columns behind the last are never read.
fn keys_in_panels(k: &[f32], (d, stride): (usize, usize), out: &mut [f32]) {
    for (panel, keys) in out.chunks_exact_mut(d * COLUMNS).zip(k.chunks(COLUMNS * stride)) {
        let columns = keys.len().div_ceil(stride).min(COLUMNS);
        for (c, key) in keys.chunks(stride).enumerate().take(columns) {
            panel[c..].iter_mut().step_by(COLUMNS).zip(&key[..d]).for_each(|(p, k)| *p = *k);
        }
    }
}

/// Values [n, d], `stride` apart, as rows of panels.
fn values_in_panels(v: &[f32], (n, d, stride): (usize, usize, usize), out: &mut [f32]) {
    for (i, panel) in out.chunks_exact_mut(n * COLUMNS).enumerate() {
        let columns = i * COLUMNS..d.min((i + 1) * COLUMNS);
        for (row, value) in panel.chunks_exact_mut(COLUMNS).zip(v.chunks(stride)) {
            row[..columns.len()].copy_from_slice(&value[columns.clone()]);
        }
    }
}

/// The formula in candle's operations, for any device and format: sentences of like length are padded
/// and computed together, since a GPU waits for each operation as long as a small one takes.
fn portable(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    spans: &[Span],
    heads: Heads,
    scoring: Scoring,
) -> Result<Tensor> {
    let mut spans: Vec<&Span> = spans.iter().filter(|s| !s.queries.is_empty()).collect();
    spans.sort_by_key(|s| (s.keys.len(), s.queries.len()));
    let (mut mixed, mut padded) = (vec![], 0);
    // Of each row, its place among the padded ones.
    let mut places = vec![0_u32; q.dim(0)?];
    for group in groups(&spans, heads.heads) {
        let group = Padded::new(group, heads, scoring);
        for (i, span) in group.spans.iter().enumerate() {
            let first = padded + i * group.queries;
            places[span.queries.clone()].iter_mut().zip(first..).for_each(|(p, at)| *p = at as u32);
        }
        padded += group.spans.len() * group.queries;
        mixed.push(group.attention(q, k, v)?);
    }
    if mixed.is_empty() {
        return q.zeros_like();
    }
    Tensor::cat(&mixed, 0)?.index_select(&Tensor::new(places, q.device())?, 0)
}

/// Sentences that ascend in length, parted where padding would cost much or scores get too many.
fn groups<'a>(spans: &'a [&'a Span], heads: usize) -> Vec<&'a [&'a Span]> {
    let (mut groups, mut begin) = (vec![], 0);
    for (i, span) in spans.iter().enumerate() {
        let n = span.keys.len();
        let unlike = n.div_ceil(QUERIES) > spans[begin].keys.len().div_ceil(QUERIES);
        if i > begin && (unlike || (i + 1 - begin) * heads * n * n > SCORES) {
            groups.push(&spans[begin..i]);
            begin = i;
        }
    }
    if begin < spans.len() {
        groups.push(&spans[begin..]);
    }
    groups
}

/// Sentences padded to the longest, which repeat their last row.
struct Padded<'a> {
    spans: &'a [&'a Span],
    /// Queries of each.
    queries: usize,
    /// Keys of each.
    keys: usize,
    heads: Heads,
    scoring: Scoring,
}

impl<'a> Padded<'a> {
    fn new(spans: &'a [&'a Span], heads: Heads, scoring: Scoring) -> Self {
        let longest = |n: fn(&Span) -> usize| spans.iter().map(|s| n(s)).max().unwrap_or(0);
        let (queries, keys) = (longest(|s| s.queries.len()), longest(|s| s.keys.len()));
        Self { spans, queries, keys, heads, scoring }
    }

    /// `x` [rows, heads · d] as [count, heads, n, d], whose rows are those of `range`.
    fn split(
        &self,
        x: &Tensor,
        heads: usize,
        (n, range): (usize, fn(&Span) -> &Range<usize>),
    ) -> Result<Tensor> {
        let row = |r: &Range<usize>, t: usize| (r.start + t.min(r.len() - 1)) as u32;
        let rows = self.spans.iter().flat_map(|s| (0..n).map(move |t| row(range(s), t)));
        let rows = Tensor::new(rows.collect::<Vec<u32>>(), x.device())?;
        let shape = (self.spans.len(), n, heads, self.heads.d);
        x.index_select(&rows, 0)?.reshape(shape)?.transpose(1, 2)?.contiguous()
    }

    /// `[count · queries, heads · d]`.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (count, Heads { heads, kv_heads, d }) = (self.spans.len(), self.heads);
        let q = self.split(q, heads, (self.queries, |s| &s.queries))?;
        let [k, v] = [k, v].map(|x| self.split(x, kv_heads, (self.keys, |s| &s.keys)));
        let (k, v) = (k?, v?);
        let mut block = (SCORES / (count * heads * self.keys)).clamp(1, self.queries);
        if self.scoring.sees.back < self.keys {
            block = block.min(QUERIES.max(self.scoring.sees.back));
        }
        let mut mixed = vec![];
        for begin in (0..self.queries).step_by(block) {
            let n = block.min(self.queries - begin);
            let seen = self.seen(&(begin..begin + n));
            // Query heads of one key-value head lie one after the other.
            let shape = (count, kv_heads, n * heads / kv_heads, d);
            let q = q.narrow(2, begin, n)?.reshape(shape)?;
            let [k, v] = [&k, &v].map(|x| x.narrow(2, seen.start, seen.len())?.contiguous());
            let (k, v) = (k?, v?);
            let scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?;
            let scores = scores.reshape((count, heads, n, seen.len()))?;
            let scores = self.score(&scores)?;
            let mask = self.mask(begin..begin + n, &seen, q.device())?;
            let weights = softmax_last_dim(&scores.broadcast_add(&mask)?)?.to_dtype(v.dtype())?;
            let weights = weights.reshape((count, kv_heads, shape.2, seen.len()))?;
            mixed.push(weights.matmul(&v)?.reshape((count, heads, n, d))?);
        }
        Tensor::cat(&mixed, 2)?.transpose(1, 2)?.reshape((count * self.queries, heads * d))
    }

    fn score(&self, products: &Tensor) -> Result<Tensor> {
        let scale = f64::from(self.scoring.scale);
        match self.scoring.cap.map(f64::from) {
            Some(cap) => (products * (scale / cap))?.tanh()? * cap,
            None => products * scale,
        }
    }

    /// The keys that any of the queries sees in its sentence.
    fn seen(&self, queries: &Range<usize>) -> Range<usize> {
        let sees = self.scoring.sees;
        let begin =
            self.spans.iter().map(|s| sees.keys(s.offset() + queries.start, self.keys).start);
        let end = self.spans.iter().map(|s| sees.keys(s.offset() + queries.end - 1, self.keys).end);
        begin.min().unwrap_or(0)..end.max().unwrap_or(0)
    }

    /// Negative infinity for keys that a query does not see, those behind a sentence's end included:
    /// [count, 1, queries, keys], with one sentence or one query where all are alike.
    fn mask(&self, queries: Range<usize>, keys: &Range<usize>, device: &Device) -> Result<Tensor> {
        let sees = self.scoring.sees;
        let offset = self.spans.first().map_or(0, |s| s.offset());
        // What is behind a sentence's end is ahead of its queries too.
        let alike = sees.ahead == 0 && self.spans.iter().all(|s| s.offset() == offset);
        let spans = if alike { &self.spans[self.spans.len() - 1..] } else { self.spans };
        let queries =
            if sees == Sees::ALL { queries.start..queries.start + 1 } else { queries.clone() };
        let mut mask = Vec::with_capacity(spans.len() * queries.len() * keys.len());
        for span in spans {
            for query in queries.clone() {
                let seen = sees.keys(span.offset() + query, span.keys.len());
                mask.extend(
                    keys.clone().map(
                        |key| {
                            if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY }
                        },
                    ),
                );
            }
        }
        Tensor::from_vec(mask, (spans.len(), 1, queries.len(), keys.len()), device)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::testing::{assert_close, numbers},
        *,
    };

    fn inputs(rows: usize, heads: Heads) -> (Tensor, Tensor, Tensor) {
        let kv = (rows, heads.kv_heads * heads.d);
        (numbers(1, (rows, heads.heads * heads.d)), numbers(2, kv), numbers(3, kv))
    }

    fn sees() -> impl Strategy<Value = Sees> {
        let window = (0usize..150, prop::sample::select(vec![0, 0, 1, 60]));
        prop_oneof![
            Just(Sees::PAST),
            Just(Sees::ALL),
            window.prop_map(|(back, ahead)| Sees { back, ahead }),
        ]
    }

    fn scoring(sees: Sees, cap: Option<f32>) -> Scoring {
        Scoring { scale: 0.37, cap, sees }
    }

    /// The definition, one query at a time, in f64.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, span: &Span, (h, s): (Heads, Scoring)) -> Tensor {
        let rows = |t: &Tensor| t.to_vec2::<f32>().unwrap();
        let (q, k, v) = (rows(q), rows(k), rows(v));
        let mut out = q.clone();
        for (i, row) in span.queries.clone().enumerate() {
            let place = (span.offset() + i) as i64;
            for head in 0..h.heads {
                let (at, kv) = (head * h.d, head / (h.heads / h.kv_heads) * h.d);
                let seen = |j: &i64| {
                    place - j <= s.sees.back.min(9999) as i64
                        && j - place <= s.sees.ahead.min(9999) as i64
                };
                let keys: Vec<usize> = (0..span.keys.len() as i64)
                    .filter(seen)
                    .map(|j| span.keys.start + j as usize)
                    .collect();
                let score = |key: &usize| {
                    let dot: f64 =
                        (0..h.d).map(|c| f64::from(q[row][at + c] * k[*key][kv + c])).sum();
                    let x = dot * f64::from(s.scale);
                    s.cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
                };
                let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for c in 0..h.d {
                    let mix: f64 = keys
                        .iter()
                        .zip(&weights)
                        .map(|(key, w)| w * f64::from(v[*key][kv + c]))
                        .sum();
                    out[row][at + c] = (mix / total) as f32;
                }
            }
        }
        Tensor::new(out, &Device::Cpu).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn fast_equals_reference(
            lengths in prop::collection::vec(0usize..40, 0..4),
            long in prop::sample::select(vec![0, 1, 127, 128, 129, 300]),
            kv_heads in 1usize..3, group in 1usize..3,
            half in prop::sample::select(vec![1usize, 4, 7, 25]),
            sees in sees(), cap in prop::option::of(0.5f32..5.0),
        ) {
            let heads = Heads { heads: kv_heads * group, kv_heads, d: 2 * half };
            let mut starts = vec![0];
            for n in lengths.into_iter().chain([long]) {
                starts.push(starts[starts.len() - 1] + n);
            }
            let (q, k, v) = inputs(starts[starts.len() - 1], heads);
            let (spans, scoring) = (spans(&starts), scoring(sees, cap));
            let got = attention((&q, &k, &v), &spans, heads, scoring).unwrap();
            assert_close(&got, &portable((&q, &k, &v), &spans, heads, scoring).unwrap(), 2e-5);
        }

        #[test]
        fn the_last_queries_alone_get_the_same_bits(
            long in prop::sample::select(vec![1usize, 47, 48, 49, 130, 300]),
            new in prop::sample::select(vec![1usize, 2, 9, 60]),
            sees in sees(), cap in prop::option::of(0.5f32..5.0),
        ) {
            let sees = Sees { ahead: 0, ..sees };
            let heads = Heads { heads: 4, kv_heads: 2, d: 20 };
            let (new, other) = (new.min(long), 33);
            let (q, k, v) = inputs(other + long, heads);
            let scoring = scoring(sees, cap);
            let whole = attention((&q, &k, &v), &spans(&[0, other, other + long]), heads, scoring);
            let whole = whole.unwrap().narrow(0, other + long - new, new).unwrap();
            let last = q.narrow(0, other + long - new, new).unwrap();
            let alone = [Span { queries: 0..new, keys: other..other + long }];
            let got = attention((&last, &k, &v), &alone, heads, scoring).unwrap();
            prop_assert_eq!(got.to_vec2::<f32>().unwrap(), whole.to_vec2::<f32>().unwrap());
            assert_close(&got, &portable((&last, &k, &v), &alone, heads, scoring).unwrap(), 2e-5);
        }
    }

    #[test]
    fn the_reference_is_the_definition() {
        let heads = Heads { heads: 2, kv_heads: 1, d: 6 };
        let (q, k, v) = inputs(40, heads);
        let span = Span { queries: 0..40, keys: 0..40 };
        for sees in [Sees::PAST, Sees::ALL, Sees::window(5), Sees { back: 3, ahead: 3 }] {
            for cap in [None, Some(1.5)] {
                let scoring = scoring(sees, cap);
                let got =
                    attention((&q, &k, &v), std::slice::from_ref(&span), heads, scoring).unwrap();
                assert_close(&got, &plain(&q, &k, &v, &span, (heads, scoring)), 1e-5);
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let heads = Heads { heads: 4, kv_heads: 2, d: 8 };
        let scoring = scoring(Sees::PAST, None);
        let (q, k, v) = inputs(5, heads);
        attention((&q, &k, &v), &spans(&[0, 2, 5]), heads, scoring).unwrap();
        for starts in [&[0, 4][..], &[0, 6], &[1, 5], &[]] {
            assert!(attention((&q, &k, &v), &spans(starts), heads, scoring).is_err(), "{starts:?}");
        }
        for span in [Span { queries: 0..5, keys: 1..5 }, Span { queries: 0..5, keys: 1..6 }] {
            assert!(attention((&q, &k, &v), &[span], heads, scoring).is_err());
        }
        assert!(attention((&q, &q, &v), &spans(&[0, 5]), heads, scoring).is_err());
        let odd = Heads { heads: 3, ..heads };
        assert!(attention((&q, &k, &v), &spans(&[0, 5]), odd, scoring).is_err());
    }
}
