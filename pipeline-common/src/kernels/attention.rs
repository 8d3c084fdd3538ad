//! Attention over packed sentences: each token sees its own sentence only.
//!
//! Queries [rows, heads · d], keys and values [rows, kv_heads · d]; head `h` reads key-value head
//! `h / (heads / kv_heads)` (grouped-query attention, arXiv:2305.13245). No padding exists, so
//! nothing is masked but the future, and blocks that lie wholly in the future are not computed.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::{
    elementary::{exp, sum},
    host::{Output, tensor, view},
    vector::{max, simd},
};

/// Queries of one task: bounds the score matrix to `QUERIES` rows whatever the sentence's length.
const QUERIES: usize = 128;

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

/// The formula in candle's operations, a sentence at a time.
fn portable(q: &Tensor, k: &Tensor, v: &Tensor, starts: &[usize], heads: Heads) -> Result<Tensor> {
    let group = heads.heads / heads.kv_heads;
    let mut mixed = Vec::with_capacity(starts.len());
    for w in starts.windows(2).filter(|w| w[0] < w[1]) {
        let n = w[1] - w[0];
        let split = |x: &Tensor, count: usize| {
            x.narrow(0, w[0], n)?.reshape((n, count, heads.d))?.transpose(0, 1)?.contiguous()
        };
        let repeat = |x: Tensor| {
            let shape = (heads.kv_heads, group, n, heads.d);
            x.unsqueeze(1)?.broadcast_as(shape)?.reshape((heads.heads, n, heads.d))
        };
        let (q, k, v) = (
            split(q, heads.heads)?,
            repeat(split(k, heads.kv_heads)?)?,
            repeat(split(v, heads.kv_heads)?)?,
        );
        let scores = q.matmul(&k.t()?.contiguous()?)?.to_dtype(DType::F32)?;
        let mut scores = (scores / (heads.d as f64).sqrt())?;
        if heads.causal {
            scores = scores.broadcast_add(&future(n, scores.device())?)?;
        }
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
        mixed.push(weights.matmul(&v)?.transpose(0, 1)?.reshape((n, heads.heads * heads.d))?);
    }
    if mixed.is_empty() { q.zeros_like() } else { Tensor::cat(&mixed, 0) }
}

/// [n, n]: negative infinity where the key comes after the query.
fn future(n: usize, device: &candle_core::Device) -> Result<Tensor> {
    let mask = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
    Tensor::from_vec::<_, f32>(mask, (n, n), device)
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
