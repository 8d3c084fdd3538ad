//! Dense products of f32 matrices, through `gemm`, on slices in place.

use std::time::Instant;

use gemm::Parallelism;

/// A matrix over a slice: `rows` by `cols` with element strides.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: isize,
    col_stride: isize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix `[rows, cols]`.
    ///
    /// # Panics
    /// If the slice has another length.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "matrix [{rows}, {cols}]");
        Self { data, rows, cols, row_stride: cols as isize, col_stride: 1 }
    }

    /// The first `cols` columns of a row-major matrix.
    #[must_use]
    pub fn columns(self, cols: usize) -> Self {
        Self { cols: cols.min(self.cols), ..self }
    }

    /// The transpose, without a copy.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Whether a product replaces its destination or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `out = a b`.
    Replace,
    /// `out += a b`.
    Add,
}

/// `out = a b` or `out += a b`, row-major `[a.rows, b.cols]`, on all threads of the current pool.
///
/// # Panics
/// If the shapes do not fit.
pub fn product(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], write: Write) {
    assert_eq!(a.cols, b.rows, "inner dimensions");
    assert_eq!(out.len(), a.rows * b.cols, "output [{}, {}]", a.rows, b.cols);
    if out.is_empty() {
        return;
    }
    #[expect(unsafe_code, reason = "gemm takes pointers and strides")]
    // SAFETY: the shapes were checked against the slices when the matrices were made, so every
    // element that the strides reach lies inside its slice; `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.col_stride,
            a.row_stride,
            b.data.as_ptr(),
            b.col_stride,
            b.row_stride,
            1.0,
            1.0,
            false,
            false,
            false,
            // 0: as many as the pool has.
            Parallelism::Rayon(0),
        );
    }
}

/// FLOP a second of a product that takes some milliseconds; the best of three.
pub fn product_rate() -> f64 {
    const N: usize = 512;
    let (a, mut out) = (vec![1.0_f32; N * N], vec![0.0_f32; N * N]);
    let mut seconds = || {
        let began = Instant::now();
        let (a, b) = (Matrix::new(&a, N, N), Matrix::new(&a, N, N));
        product(a, b.t(), &mut out, Write::Replace);
        began.elapsed().as_secs_f64()
    };
    let best = (0..3).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    2.0 * (N as f64).powi(3) / best.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f64> {
        let at = |m: &Matrix<'_>, r: usize, c: usize| {
            f64::from(m.data[(r as isize * m.row_stride + c as isize * m.col_stride) as usize])
        };
        let mut out = vec![];
        for r in 0..a.rows {
            for c in 0..b.cols {
                out.push((0..a.cols).map(|i| at(&a, r, i) * at(&b, i, c)).sum());
            }
        }
        out
    }

    #[test]
    fn every_orientation_equals_the_plain_loop() {
        let (m, k, n) = (7, 13, 21);
        let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let (a, b) = (wave(m * k), wave(k * n));
        let cases = [
            (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
            (Matrix::new(&a, k, m).t(), Matrix::new(&b, k, n)),
            (Matrix::new(&a, m, k), Matrix::new(&b, n, k).t()),
            (Matrix::new(&a, k, m).t(), Matrix::new(&b, n, k).t()),
        ];
        for (x, y) in cases {
            let expected = plain(x, y);
            let mut out = vec![1.0; m * n];
            product(x, y, &mut out, Write::Add);
            for (o, e) in out.iter().zip(&expected) {
                assert!((f64::from(*o) - 1.0 - e).abs() < 1e-5);
            }
            product(x, y, &mut out, Write::Replace);
            for (o, e) in out.iter().zip(&expected) {
                assert!((f64::from(*o) - e).abs() < 1e-5);
            }
        }
    }
}
