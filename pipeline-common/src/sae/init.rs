//! The first parameters: random unit decoder rows, W_enc = W_decᵀ, b_dec = geometric median.

use rayon::prelude::*;

use super::{
    Parameters,
    parameters::{Shape, norm},
    random::{Normal, Purpose},
};

/// Rows the geometric median is taken of, at least where there are as many.
pub const MEDIAN_ROWS: usize = 32_768;

/// Weiszfeld's steps; the change is far below f32 noise by then.
const MEDIAN_STEPS: usize = 30;

/// How parameters start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Start {
    /// The encoder as the decoder's transpose. A transcoder's has directions of its own, since the
    /// decoder's lie in another space.
    pub tied: bool,
    /// Thresholds, where there are any.
    pub threshold: f32,
}

impl Start {
    /// An autoencoder without thresholds.
    pub const TIED: Self = Self { tied: true, threshold: 0.0 };
}

/// Parameters before the first step; `sample` is the output's, `[n, d_out]`, scaled as in
/// training. The path around the latents starts at zero.
pub fn initialise(shape: Shape, sample: &[f32], seed: u64, start: Start) -> Parameters {
    let mut p = Parameters::zeros(shape);
    Normal::new(seed, Purpose::Decoder).fill(&mut p.w_dec);
    p.w_dec.par_chunks_mut(shape.d_out).for_each(normalise);
    if start.tied {
        p.w_enc.copy_from_slice(&p.w_dec);
    } else {
        Normal::new(seed, Purpose::Encoder).fill(&mut p.w_enc);
        p.w_enc.par_chunks_mut(shape.d_in).for_each(normalise);
    }
    p.b_dec = geometric_median(sample, shape.d_out);
    p.threshold.fill(start.threshold);
    p
}

/// Scales a row to norm 1; a zero row stays.
pub fn normalise(row: &mut [f32]) {
    let norm = norm(row);
    if norm > 0.0 {
        row.iter_mut().for_each(|x| *x /= norm);
    }
}

/// The point with the least summed distance to the rows (Weiszfeld 1937), in f64.
pub fn geometric_median(rows: &[f32], d_in: usize) -> Vec<f32> {
    let n = (rows.len() / d_in) as f64;
    let sums = crate::kernels::columns::column_sums(rows, d_in);
    let mut median: Vec<f64> = sums.iter().map(|s| s / n).collect();
    for _ in 0..MEDIAN_STEPS {
        median = weiszfeld(rows, &median);
    }
    median.iter().map(|x| *x as f32).collect()
}

fn weiszfeld(rows: &[f32], at: &[f64]) -> Vec<f64> {
    let d_in = at.len();
    // Blocks of a fixed size, added in order: the result does not depend on threads.
    let partial = |block: &[f32]| {
        let (mut sum, mut weights) = (vec![0.0_f64; d_in], 0.0);
        for row in block.chunks_exact(d_in) {
            let distance =
                row.iter().zip(at).map(|(x, m)| (f64::from(*x) - m).powi(2)).sum::<f64>().sqrt();
            let weight = 1.0 / distance.max(1e-12);
            weights += weight;
            sum.iter_mut().zip(row).for_each(|(s, x)| *s += weight * f64::from(*x));
        }
        (sum, weights)
    };
    let partials: Vec<_> = rows.par_chunks(1024 * d_in).map(partial).collect();
    let (mut total, mut weights) = (vec![0.0; d_in], 0.0);
    for (sum, weight) in partials {
        weights += weight;
        total.iter_mut().zip(sum).for_each(|(t, s)| *t += s);
    }
    total.iter().map(|t| t / weights).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_b_dec_as_the_mean_follows_an_outlier() {
        let mut rows = vec![];
        for i in 0..101 {
            let angle = f64::from(i) * std::f64::consts::TAU / 101.0;
            rows.extend([1.0 + angle.cos() as f32, 2.0 + angle.sin() as f32]);
        }
        rows.extend([1e6, 1e6]);
        let median = geometric_median(&rows, 2);
        assert!((median[0] - 1.0).abs() < 0.05 && (median[1] - 2.0).abs() < 0.05, "{median:?}");
    }

    #[test]
    fn decoder_rows_are_latents_and_have_norm_one() {
        let p = initialise(Shape::autoencoder(3, 7), &[0.0; 12], 1, Start::TIED);
        assert!(p.decoder_norms().iter().all(|n| (n - 1.0).abs() < 1e-6));
        assert_eq!(p.w_enc, p.w_dec);
    }
}
