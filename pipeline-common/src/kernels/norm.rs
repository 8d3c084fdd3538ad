//! RMS norm and layer norm over the last dimension, statistics in f32.

use candle_core::{D, DType, Result, Tensor};

use super::{
    elementary::sum,
    host::{by_chunks, tensor, view},
    vector::simd,
};

/// Rows handled by one task.
const ROWS: usize = 16;

/// `x / sqrt(mean(x²) + eps) * weight` for each row of `x` [rows, d]; `weight` `[d]`.
///
/// # Errors
/// What the device reports.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (Some(xs), Some(w)) = (view(x), view(weight)) else {
        return candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32);
    };
    let chunk = ROWS * w.len();
    let out = by_chunks(xs.len(), chunk, |i, y| {
        simd(
            #[inline(always)]
            || rms_rows(&xs[i * chunk..], &w, eps as f32, y),
        )
    });
    tensor(out, x.shape())
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` for each row of `x` [rows, d]; `weight` and
/// `bias` `[d]`.
///
/// # Errors
/// What the device reports.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (Some(xs), Some(w), Some(b)) = (view(x), view(weight), view(bias)) else {
        return portable_layer(x, weight, bias, eps);
    };
    let chunk = ROWS * w.len();
    let out = by_chunks(xs.len(), chunk, |i, y| {
        simd(
            #[inline(always)]
            || layer_rows(&xs[i * chunk..], &w, &b, eps as f32, y),
        )
    });
    tensor(out, x.shape())
}

#[inline(always)]
fn rms_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let d = weight.len();
    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
        let scale = (sum(x, |v| v * v) / d as f32 + eps).sqrt().recip();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}

#[inline(always)]
fn layer_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let d = weight.len();
    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
        let mean = sum(x, |v| v) / d as f32;
        let variance = sum(x, |v| (v - mean) * (v - mean)) / d as f32;
        let scale = (variance + eps).sqrt().recip();
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * scale * w + b;
        }
    }
}

/// In candle's operations. Its own layer norm takes the mean's square from the mean of squares, which
/// loses the variance of rows whose mean is large.
fn portable_layer(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    centred.broadcast_mul(&scale)?.to_dtype(x.dtype())?.broadcast_mul(weight)?.broadcast_add(bias)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{assert_close, numbers},
        *,
    };

    #[test]
    fn fast_equals_reference() {
        for (rows, d) in [(1, 1), (3, 48), (37, 100), (65, 576)] {
            let x = numbers(1, (rows, d));
            let (w, b) = (numbers(2, d), numbers(3, d));
            assert_close(
                &rms_norm(&x, &w, 1e-6).unwrap(),
                &candle_nn::ops::rms_norm(&x, &w, 1e-6).unwrap(),
                1e-5,
            );
            assert_close(
                &layer_norm(&x, &w, &b, 1e-5).unwrap(),
                &portable_layer(&x, &w, &b, 1e-5).unwrap(),
                1e-5,
            );
        }
    }

    #[test]
    fn a_large_mean_does_not_drown_the_variance() {
        let x = (numbers(1, (4, 256)) + 3000.0).unwrap();
        let (one, zero) =
            (numbers(0, 256).ones_like().unwrap(), numbers(0, 256).zeros_like().unwrap());
        let y = layer_norm(&x, &one, &zero, 1e-12).unwrap();
        let variance = y.sqr().unwrap().mean_keepdim(1).unwrap();
        assert_close(&variance, &variance.ones_like().unwrap(), 1e-3);
    }
}
