//! Inner loops over contiguous f32, written so that the compiler vectorises them.
//!
//! Call [`simd`] around a row's worth of work (inside the parallel task, since the choice of
//! instructions ends at a function that is not inlined).

const LANES: usize = 16;

/// Runs `work` compiled for the widest vectors this processor has.
///
/// The closure must be `#[inline(always)]`: compiled on its own it would get the baseline's
/// instructions, and a library call for every fused multiply-add.
#[inline]
pub fn simd<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Σ aᵢbᵢ in 32 interleaved partial sums.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut low, mut high) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (a2, b2) = (a.chunks_exact(2 * LANES), b.chunks_exact(2 * LANES));
    let (a_rest, b_rest) = (a2.remainder(), b2.remainder());
    for (x, y) in a2.zip(b2) {
        for i in 0..LANES {
            low[i] = x[i].mul_add(y[i], low[i]);
            high[i] = x[LANES + i].mul_add(y[LANES + i], high[i]);
        }
    }
    for (i, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        low[i % LANES] = x.mul_add(*y, low[i % LANES]);
    }
    low.iter().zip(&high).map(|(x, y)| x + y).sum()
}

/// Σ xᵢrᵢ of each of C rows as one chain of fused multiply-adds, from 0 in order: the bits that a product has.
#[inline(always)]
pub fn chains<const C: usize>(x: &[f32], rows: [&[f32]; C]) -> [f32; C] {
    let mut sums = [0.0_f32; C];
    let (whole, rest) = x.as_chunks::<LANES>();
    let blocks = rows.map(|row| &row.as_chunks::<LANES>().0[..whole.len()]);
    for (b, x) in whole.iter().enumerate() {
        let rows = blocks.map(|blocks| &blocks[b]);
        for i in 0..LANES {
            for c in 0..C {
                sums[c] = x[i].mul_add(rows[c][i], sums[c]);
            }
        }
    }
    for (i, x) in (x.len() - rest.len()..).zip(rest) {
        for c in 0..C {
            sums[c] = x.mul_add(rows[c][i], sums[c]);
        }
    }
    sums
}

/// Σ aᵢ² in f64, in 16 interleaved partial sums.
#[inline(always)]
pub fn squared_norm(a: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            let x = f64::from(x[i]);
            sums[i] = x.mul_add(x, sums[i]);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum = f64::from(*x).mul_add(f64::from(*x), *sum);
    }
    sums.iter().sum()
}

/// y += αx.
#[inline(always)]
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = alpha.mul_add(*x, *y);
    }
}

/// The largest element; NaN is never larger.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    let larger = |a: f32, b: &f32| if *b > a { *b } else { a };
    rest.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, larger), larger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dot_and_max_equal_the_plain_loops(a in prop::collection::vec(-10.0_f32..10.0, 0..200)) {
            let b: Vec<f32> = a.iter().rev().copied().collect();
            let expected: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            prop_assert!((f64::from(simd(#[inline(always)] || dot(&a, &b))) - expected).abs() <= 1e-3);
            let expected: f64 = a.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            let found = simd(#[inline(always)] || squared_norm(&a));
            prop_assert!((found - expected).abs() <= 1e-12 * expected);
            prop_assert_eq!(simd(#[inline(always)] || max(&a)), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut y = b.clone();
            simd(#[inline(always)] || axpy(2.0, &a, &mut y));
            for i in 0..a.len() {
                prop_assert_eq!(y[i], 2.0_f32.mul_add(a[i], b[i]));
            }
        }
    }
}
