//! Rotary position embedding: pairs (i, i + r/2) of each head's first r numbers turn by an angle of
//! their position (arXiv:2104.09864); the others stay as they are.

use candle_core::{D, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;

use super::{
    host::{by_chunks, tensor, view},
    vector::simd,
};

/// Rows handled by one task.
const ROWS: usize = 32;

/// Rotates `x` [rows, heads · d] by each row's `cos` and `sin` [rows, r/2].
///
/// # Errors
/// What the device reports.
pub fn rotate(x: &Tensor, d: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (width, half) = (x.dim(D::Minus1)?, cos.dim(D::Minus1)?);
    let (Some(xs), Some(c), Some(s)) = (view(x), view(cos), view(sin)) else {
        return portable(x, d, cos, sin);
    };
    let out = by_chunks(xs.len(), ROWS * width, |i, y| {
        let rows = y.chunks_exact_mut(width).zip(xs[i * ROWS * width..].chunks_exact(width));
        let at = i * ROWS * half;
        let angles = c[at..].chunks_exact(half).zip(s[at..].chunks_exact(half));
        simd(
            #[inline(always)]
            || rows.zip(angles).for_each(|((y, x), (c, s))| rotate_row(x, (d, c, s), y)),
        );
    });
    tensor(out, x.shape())
}

#[inline(always)]
fn rotate_row(x: &[f32], (d, cos, sin): (usize, &[f32], &[f32]), y: &mut [f32]) {
    let half = cos.len();
    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
        let (y, y_rest) = y.split_at_mut(2 * half);
        let (x, x_rest) = x.split_at(2 * half);
        y_rest.copy_from_slice(x_rest);
        let (y1, y2) = y.split_at_mut(half);
        let (x1, x2) = x.split_at(half);
        for i in 0..half {
            y1[i] = x1[i] * cos[i] - x2[i] * sin[i];
            y2[i] = x2[i] * cos[i] + x1[i] * sin[i];
        }
    }
}

/// As candle has it, for any device and format.
fn portable(x: &Tensor, d: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let ((rows, width), turned) = (x.dims2()?, 2 * cos.dim(D::Minus1)?);
    let heads = x.contiguous()?.reshape((1, rows, width / d, d))?;
    let (cos, sin) = (cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?);
    if turned == d {
        return rope_thd(&heads, &cos, &sin)?.reshape((rows, width));
    }
    let first = rope_thd(&heads.narrow(3, 0, turned)?.contiguous()?, &cos, &sin)?;
    let rest = heads.narrow(3, turned, d - turned)?;
    Tensor::cat(&[&first, &rest], 3)?.reshape((rows, width))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{assert_close, numbers},
        *,
    };

    #[test]
    fn fast_equals_reference() {
        for (rows, heads, half, d) in [(1, 1, 1, 2), (5, 3, 8, 16), (70, 2, 32, 64), (9, 3, 2, 16)]
        {
            let x = numbers(1, (rows, heads * d));
            let (cos, sin) = (numbers(2, (rows, half)), numbers(3, (rows, half)));
            let expected = portable(&x, d, &cos, &sin).unwrap();
            assert_close(&rotate(&x, d, &cos, &sin).unwrap(), &expected, 1e-6);
        }
    }
}
