//! Elementary functions of f32 in operations that vectorise; call them inside
//! [`super::vector::simd`].
//!
//! Nothing here is fused, so results do not depend on the processor.

/// Lanes of a partial sum: wide enough for two AVX-512 registers.
const LANES: usize = 32;

/// Sum of `f(x)` over a slice, in lanes, so that it vectorises and loses little precision.
#[inline(always)]
pub fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = xs.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    lanes.iter().sum()
}

/// The exponential to two units in the last place, in operations that vectorise.
///
/// Arguments are limited to the range of normal numbers, -87.3 to 88.3. Method: Cephes `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting it rounds to the nearest integer, left in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (p * r * r + r + 1.0) * power
}

/// The error function, within 3e-7, in operations that vectorise (Eigen's rational form).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    for c in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        p = p * s + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = q * s + c;
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}) is off by {error:e}");
        }
        assert!(exp(-1e30) < 2e-38 && exp(1e30).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_matches_the_series() {
        for i in -6000..6000 {
            let x = f64::from(i) * 1e-3;
            let exact = candle_core::cpu::erf::erf_f64(x);
            let error = (f64::from(erf(x as f32)) - exact).abs();
            assert!(error < 4e-7, "erf({x}) is off by {error:e}");
        }
    }

    #[test]
    fn sums_of_any_length() {
        for n in 0..100 {
            let xs: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            assert_eq!(sum(&xs, |x| x), xs.iter().sum::<f32>());
        }
    }
}
