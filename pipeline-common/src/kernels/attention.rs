//! Attention over packed sentences: each token sees its own sentence only.
//!
//! Queries [rows, heads · d], keys and values [rows, kv_heads · d]; head `h` reads key-value head
//! `h / (heads / kv_heads)` (grouped-query attention, arXiv:2305.13245). No padding exists, so
//! nothing is masked but the future, and blocks that lie wholly in the future are not computed.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::{
    elementary::{exp, sum},
    host::{Output, tensor, view},
    vector::{max, simd},
};

/// Queries of one task: bounds the score matrix to `QUERIES` rows whatever the sentence's length.
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
    /// Whether a token sees only itself and what is before it.
    pub causal: bool,
}

/// `softmax(q kᵀ / sqrt d) v` within each sentence; returns [rows, heads · d].
///
/// Sentence `i` is rows `starts[i]..starts[i + 1]`.
///
/// # Errors
/// What the device reports, and shapes that do not fit `heads` and `starts`.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    starts: &[usize],
    heads: Heads,
) -> Result<Tensor> {
    check(q, k, v, starts, heads)?;
    let (Some(qs), Some(ks), Some(vs)) = (view(q), view(k), view(v)) else {
        return portable(q, k, v, starts, heads);
    };
    let inputs = Inputs { q: &qs, k: &ks, v: &vs, heads };
    #[expect(unsafe_code, reason = "clearing what is written anyway takes time")]
    // SAFETY: `check` saw that sentences cover the rows, so the tasks cover every row of every head.
    let out = unsafe { Output::written(qs.len(), |out| fast(&inputs, starts, out)) };
    tensor(out, q.shape())
}

/// The kernel writes through pointers: what it relies on is checked, always.
fn check(q: &Tensor, k: &Tensor, v: &Tensor, starts: &[usize], heads: Heads) -> Result<()> {
    let rows = q.dim(0)?;
    let fits = q.dims() == [rows, heads.heads * heads.d]
        && k.dims() == [rows, heads.kv_heads * heads.d]
        && v.dims() == k.dims()
        && heads.kv_heads > 0
        && heads.heads.is_multiple_of(heads.kv_heads)
        && starts.first() == Some(&0)
        && starts.last() == Some(&rows)
        && starts.is_sorted();
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
}

/// A block of one sentence's queries in one head.
struct Task {
    sentence: Range<usize>,
    queries: Range<usize>,
    head: usize,
}

fn fast(inputs: &Inputs, starts: &[usize], out: &Output<'_>) {
    let tasks: Vec<Task> = starts
        .windows(2)
        .flat_map(|w| {
            let sentence = w[0]..w[1];
            let blocks = sentence.clone().step_by(QUERIES);
            blocks.flat_map(move |begin| {
                let (sentence, end) = (sentence.clone(), sentence.end.min(begin + QUERIES));
                (0..inputs.heads.heads).map(move |head| Task {
                    sentence: sentence.clone(),
                    queries: begin..end,
                    head,
                })
            })
        })
        .collect();
    tasks.par_iter().for_each_init(Vec::new, |scores, task| block(inputs, task, scores, out));
}

/// One task: scores, softmax, mix of values.
fn block(inputs: &Inputs, task: &Task, scores: &mut Vec<f32>, out: &Output<'_>) {
    let Heads { heads, kv_heads, d, causal } = inputs.heads;
    let begin = task.sentence.start;
    let keys = if causal { task.queries.end - begin } else { task.sentence.len() };
    let queries = task.queries.len();
    let (q_row, kv_row) = (heads * d, kv_heads * d);
    let q_at = task.queries.start * q_row + task.head * d;
    let kv_at = begin * kv_row + task.head / (heads / kv_heads) * d;
    scores.resize(queries * keys, 0.0);
    let q = Matrix::new(&inputs.q[q_at..], queries, d, q_row, 1);
    let k = Matrix::new(&inputs.k[kv_at..], d, keys, 1, kv_row);
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    // SAFETY: `scores` holds queries x keys numbers and nobody else sees it.
    unsafe {
        product(scores.as_mut_ptr(), keys, &q, &k, (d as f32).sqrt().recip());
    }
    for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
        let seen = if causal { task.queries.start - begin + i + 1 } else { keys };
        simd(
            #[inline(always)]
            || softmax(row, seen),
        );
    }
    let p = Matrix::new(scores, queries, keys, keys, 1);
    let v = Matrix::new(&inputs.v[kv_at..], keys, d, kv_row, 1);
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    // SAFETY: rows `queries`, columns `head * d..(head + 1) * d` of the output lie inside it, since
    // it is as long as `q` and `check` saw the shapes; they belong to this task alone.
    unsafe {
        product(out.at(q_at), q_row, &p, &v, 1.0);
    }
}

/// A matrix inside a slice, by its strides.
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Panics if the slice is too short, so that `product` may trust it.
    fn new(
        data: &'a [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        let last = rows.saturating_sub(1) * row_stride + columns.saturating_sub(1) * column_stride;
        assert!(last < data.len(), "matrix exceeds its slice");
        Self { data, rows, columns, row_stride, column_stride }
    }
}

/// `out = scale · a · b` on this thread.
///
/// # Safety
/// `out` points to `a.rows` rows of `b.columns` numbers, `row_stride` apart, that may be written.
#[expect(unsafe_code, reason = "gemm takes pointers")]
unsafe fn product(out: *mut f32, row_stride: usize, a: &Matrix, b: &Matrix, scale: f32) {
    // SAFETY: both matrices lie inside their slices (checked in `Matrix::new`), the caller vouches
    // for `out`, and `read_dst` is false, so nothing else is read.
    unsafe {
        gemm(
            a.rows,
            b.columns,
            a.columns,
            out,
            1,
            row_stride as isize,
            false,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Softmax of the first `seen` scores; the others become zero.
#[inline(always)]
fn softmax(row: &mut [f32], seen: usize) {
    let (live, future) = row.split_at_mut(seen);
    let largest = max(live);
    for x in live.iter_mut() {
        *x = exp(*x - largest);
    }
    let scale = sum(live, |x| x).recip();
    for x in live.iter_mut() {
        *x *= scale;
    }
    future.fill(0.0);
}

/// The formula in candle's operations, for any device and format: sentences of like length are padded
/// and computed together, since a GPU waits for each operation as long as a small one takes.
fn portable(q: &Tensor, k: &Tensor, v: &Tensor, starts: &[usize], heads: Heads) -> Result<Tensor> {
    let mut sentences: Vec<Range<usize>> =
        starts.windows(2).map(|w| w[0]..w[1]).filter(|s| !s.is_empty()).collect();
    sentences.sort_by_key(Range::len);
    let (mut mixed, mut padded) = (vec![], 0);
    // Of each row, its place among the padded ones.
    let mut places = vec![0_u32; q.dim(0)?];
    for group in groups(&sentences, heads.heads) {
        let longest = group.last().map_or(0, Range::len);
        for (i, sentence) in group.iter().enumerate() {
            let first = padded + i * longest;
            places[sentence.clone()].iter_mut().zip(first..).for_each(|(p, at)| *p = at as u32);
        }
        padded += group.len() * longest;
        mixed.push(Padded::new(group, q.device())?.attention(q, k, v, heads)?);
    }
    if mixed.is_empty() {
        return q.zeros_like();
    }
    Tensor::cat(&mixed, 0)?.index_select(&Tensor::new(places, q.device())?, 0)
}

/// Sentences that ascend in length, parted where padding would cost much or scores get too many.
fn groups(sentences: &[Range<usize>], heads: usize) -> Vec<&[Range<usize>]> {
    let (mut groups, mut begin) = (vec![], 0);
    for (i, sentence) in sentences.iter().enumerate() {
        let n = sentence.len();
        let unlike = n.div_ceil(QUERIES) > sentences[begin].len().div_ceil(QUERIES);
        if i > begin && (unlike || (i + 1 - begin) * heads * n * n > SCORES) {
            groups.push(&sentences[begin..i]);
            begin = i;
        }
    }
    if begin < sentences.len() {
        groups.push(&sentences[begin..]);
    }
    groups
}

/// Sentences padded to the longest, which repeat their last row.
struct Padded<'a> {
    sentences: &'a [Range<usize>],
    n: usize,
    /// Padded row to row, `[count · n]`.
    rows: Tensor,
}

impl<'a> Padded<'a> {
    fn new(sentences: &'a [Range<usize>], device: &Device) -> Result<Self> {
        let n = sentences.last().map_or(0, Range::len);
        let row = |s: &Range<usize>, t: usize| (s.start + t.min(s.len() - 1)) as u32;
        let rows: Vec<u32> =
            sentences.iter().flat_map(|s| (0..n).map(move |t| row(s, t))).collect();
        Ok(Self { sentences, n, rows: Tensor::new(rows, device)? })
    }

    /// `[count, 1, 1, n]`: negative infinity for keys behind a sentence's end.
    fn ends(&self, device: &Device) -> Result<Tensor> {
        let end = |s: &Range<usize>, t: usize| if t < s.len() { 0.0 } else { f32::NEG_INFINITY };
        let ends: Vec<f32> =
            self.sentences.iter().flat_map(|s| (0..self.n).map(move |t| end(s, t))).collect();
        Tensor::from_vec(ends, (self.sentences.len(), 1, 1, self.n), device)
    }

    /// `[count · n, heads · d]`.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
        let (count, n, d) = (self.sentences.len(), self.n, heads.d);
        let split = |x: &Tensor, heads: usize| {
            let x = x.index_select(&self.rows, 0)?.reshape((count, n, heads, d))?;
            x.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) =
            (split(q, heads.heads)?, split(k, heads.kv_heads)?, split(v, heads.kv_heads)?);
        let block = (SCORES / (count * heads.heads * n)).clamp(1, n);
        let mut mixed = vec![];
        for begin in (0..n).step_by(block) {
            let end = n.min(begin + block);
            let seen = if heads.causal { end } else { n };
            // Query heads of one key-value head lie one after the other.
            let shape = (count, heads.kv_heads, (end - begin) * heads.heads / heads.kv_heads, d);
            let q = q.narrow(2, begin, end - begin)?.reshape(shape)?;
            let (k, v) = (k.narrow(2, 0, seen)?, v.narrow(2, 0, seen)?);
            let scores = q.matmul(&k.contiguous()?.t()?)?.to_dtype(DType::F32)?;
            let scores = scores.reshape((count, heads.heads, end - begin, seen))?;
            let scores = (scores * (d as f64).sqrt().recip())?;
            // A sentence's own queries see none of the rows behind it if they see no later ones.
            let mask =
                if heads.causal { future(begin..end, q.device())? } else { self.ends(q.device())? };
            let weights = softmax_last_dim(&scores.broadcast_add(&mask)?)?.to_dtype(v.dtype())?;
            let weights = weights.reshape((count, heads.kv_heads, shape.2, seen))?;
            let part = weights.matmul(&v.contiguous()?)?;
            mixed.push(part.reshape((count, heads.heads, end - begin, d))?);
        }
        Tensor::cat(&mixed, 2)?.transpose(1, 2)?.reshape((count * n, heads.heads * d))
    }
}

/// `[queries, queries.end]`: negative infinity where the key comes after the query.
fn future(queries: Range<usize>, device: &Device) -> Result<Tensor> {
    let shape = (queries.len(), queries.end);
    let row = |i: usize| (0..shape.1).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
    Tensor::from_vec(queries.flat_map(row).collect::<Vec<f32>>(), shape, device)
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn fast_equals_reference(
            lengths in prop::collection::vec(0usize..40, 0..6),
            long in prop::sample::select(vec![0, 1, 127, 128, 129, 300]),
            kv_heads in 1usize..4, group in 1usize..4, half in 1usize..9, causal: bool,
        ) {
            let heads = Heads { heads: kv_heads * group, kv_heads, d: 2 * half, causal };
            let mut starts = vec![0];
            for n in lengths.into_iter().chain([long]) {
                starts.push(starts[starts.len() - 1] + n);
            }
            let (q, k, v) = inputs(starts[starts.len() - 1], heads);
            let got = attention(&q, &k, &v, &starts, heads).unwrap();
            assert_close(&got, &portable(&q, &k, &v, &starts, heads).unwrap(), 1e-5);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let heads = Heads { heads: 4, kv_heads: 2, d: 8, causal: true };
        let (q, k, v) = inputs(5, heads);
        attention(&q, &k, &v, &[0, 2, 5], heads).unwrap();
        for starts in [&[0, 4][..], &[0, 6], &[1, 5], &[0, 3, 2, 5], &[]] {
            assert!(attention(&q, &k, &v, starts, heads).is_err(), "{starts:?}");
        }
        assert!(attention(&q, &q, &v, &[0, 5], heads).is_err());
        assert!(attention(&q, &k, &v, &[0, 5], Heads { heads: 3, ..heads }).is_err());
    }
}
