//! Rotary position embedding: pairs (i, i + d/2) of each head turn by an angle of their position.

use candle_core::{D, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;

use super::{
    host::{by_chunks, tensor, view},
    vector::simd,
};

/// Rows handled by one task.
const ROWS: usize = 32;

/// Rotates `x` [rows, heads · d] by each row's `cos` and `sin` [rows, d/2].
///
/// # Errors
/// What the device reports.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (width, half) = (x.dim(D::Minus1)?, cos.dim(D::Minus1)?);
    let (Some(xs), Some(c), Some(s)) = (view(x), view(cos), view(sin)) else {
        return portable(x, cos, sin);
    };
    let out = by_chunks(xs.len(), ROWS * width, |i, y| {
        let rows = y.chunks_exact_mut(width).zip(xs[i * ROWS * width..].chunks_exact(width));
        let at = i * ROWS * half;
        let angles = c[at..].chunks_exact(half).zip(s[at..].chunks_exact(half));
        simd(
            #[inline(always)]
            || rows.zip(angles).for_each(|((y, x), (c, s))| rotate_row(x, c, s, y)),
        );
    });
    tensor(out, x.shape())
}

#[inline(always)]
fn rotate_row(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32]) {
    let half = cos.len();
    for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
        let (y1, y2) = y.split_at_mut(half);
        let (x1, x2) = x.split_at(half);
        for i in 0..half {
            y1[i] = x1[i] * cos[i] - x2[i] * sin[i];
            y2[i] = x2[i] * cos[i] + x1[i] * sin[i];
        }
    }
}

/// As candle has it, for any device and format.
fn portable(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let ((rows, width), half) = (x.dims2()?, cos.dim(D::Minus1)?);
    let heads = x.contiguous()?.reshape((1, rows, width / (2 * half), 2 * half))?;
    let (cos, sin) = (cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?);
    rope_thd(&heads, &cos, &sin)?.reshape((rows, width))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{assert_close, numbers},
        *,
    };

    #[test]
    fn fast_equals_reference() {
        for (rows, heads, half) in [(1, 1, 1), (5, 3, 8), (70, 2, 32)] {
            let x = numbers(1, (rows, heads * 2 * half));
            let (cos, sin) = (numbers(2, (rows, half)), numbers(3, (rows, half)));
            let expected = portable(&x, &cos, &sin).unwrap();
            assert_close(&rotate(&x, &cos, &sin).unwrap(), &expected, 1e-6);
        }
    }
}
