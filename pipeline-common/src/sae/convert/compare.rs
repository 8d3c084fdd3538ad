//! Two SAEs on the same rows: how far their latents and reconstructions are apart, and how much of
//! that is rounding.

use crate::sae::{
    Sae,
    parameters::norm,
    random::{Normal, Purpose},
};

/// Rows drawn where none are given.
const ROWS: usize = 512;
/// Rows encoded at a time.
const CHUNK: usize = 64;
/// f32 sums of some thousand terms are off by up to this share of the sum of their magnitudes.
const ROUNDING: f64 = 1e-5;
/// One active latent in so many may cross its threshold by rounding.
const CROSSING: usize = 10_000;

/// What [`compare`] finds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Rows compared.
    pub rows: usize,
    /// Active latents of the first SAE, of all rows.
    pub active: usize,
    /// Of latents that are active in both.
    pub latents: Difference,
    /// Of rows whose latents are the same.
    pub reconstructions: Difference,
    /// Rows whose active latents differ.
    pub differing_rows: usize,
    /// Latents that are active in one of the two alone.
    pub differing: usize,
}

/// How far apart numbers are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// The largest difference.
    pub max: f64,
    /// The largest magnitude.
    pub largest: f64,
    /// The largest difference as a share of what rounding explains.
    pub of_rounding: f64,
}

impl Difference {
    fn add(&mut self, a: f32, b: f32, rounding: f64) {
        let difference = (f64::from(a) - f64::from(b)).abs();
        // A NaN is no rounding.
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        self.max = self.max.max(difference);
        self.largest = self.largest.max(f64::from(a.abs()));
        if difference > 0.0 {
            self.of_rounding = self.of_rounding.max(difference / rounding);
        }
    }
}

impl Comparison {
    /// Whether rounding explains all differences.
    pub fn is_rounding(&self) -> bool {
        self.latents.of_rounding <= 1.0
            && self.reconstructions.of_rounding <= 1.0
            && self.differing <= 1 + self.active / CROSSING
    }
}

/// Rows around the SAE's own centre, in many sizes: whatever the scale of its thresholds, some make
/// latents active. `[n, d_in]`, the same each time.
pub fn drawn_rows(sae: &Sae) -> Vec<f32> {
    let p = &sae.params;
    let mut rows = vec![0.0; ROWS * p.d_in];
    Normal::new(0, Purpose::Comparison).fill(&mut rows);
    for (i, row) in rows.chunks_exact_mut(p.d_in).enumerate() {
        // Standardised rows have one size.
        let size = if sae.row_norm.is_some() { 1.0 } else { 2.0_f32.powi(i as i32 % 12 - 3) };
        let centre = p.b_dec.iter().copied().filter(|_| p.d_in == p.d_out);
        row.iter_mut()
            .zip(centre.chain(std::iter::repeat(0.0)))
            .for_each(|(x, b)| *x = *x * size + b);
    }
    rows
}

/// Compares what two SAEs of one shape make of `rows`, `[n, d_in]`.
pub fn compare(a: &Sae, b: &Sae, rows: &[f32]) -> Comparison {
    let scale = Scale::of(a);
    let (d_in, d_out) = (a.params.d_in, a.params.d_out);
    let mut found = Comparison::default();
    let mut encoders = [a.encoder(), b.encoder()];
    for chunk in rows.chunks(CHUNK * d_in) {
        let [first, second] = &mut encoders;
        let encoded = [a.encode_with(first, chunk), b.encode_with(second, chunk)];
        let decoded = [a.reconstruct(chunk, &encoded[0]), b.reconstruct(chunk, &encoded[1])];
        for (n, row) in chunk.chunks_exact(d_in).enumerate() {
            let outputs = [&decoded[0], &decoded[1]].map(|all| &all[n * d_out..(n + 1) * d_out]);
            found.add_row(&scale, row, [encoded[0].row(n), encoded[1].row(n)], outputs);
        }
    }
    found
}

type Active<'a> = (&'a [u32], &'a [f32]);

impl Comparison {
    fn add_row(&mut self, scale: &Scale, row: &[f32], latents: [Active<'_>; 2], out: [&[f32]; 2]) {
        let [(index, value), (other_index, other_value)] = latents;
        self.rows += 1;
        self.active += index.len();
        let rounding = scale.latents(row);
        let mut common = 0;
        for (latent, value) in index.iter().zip(value) {
            if let Ok(at) = other_index.binary_search(latent) {
                common += 1;
                self.latents.add(*value, other_value[at], rounding);
            }
        }
        let differing = index.len() + other_index.len() - 2 * common;
        self.differing += differing;
        if differing > 0 {
            self.differing_rows += 1;
            return;
        }
        let rounding = scale.reconstruction(row, value, rounding);
        out[0].iter().zip(out[1]).for_each(|(a, b)| self.reconstructions.add(*a, *b, rounding));
    }
}

/// Sizes of an SAE's tensors, from which rounding follows.
struct Scale {
    encoder: f64,
    b_enc: f64,
    b_dec: f64,
    decoder: f64,
    skip: f64,
    /// What a gate's magnitude multiplies by.
    gain: f64,
    /// The norm of a standardised row.
    standard: Option<f64>,
}

impl Scale {
    fn of(sae: &Sae) -> Self {
        let p = &sae.params;
        let largest = |values: &mut dyn Iterator<Item = f32>| {
            f64::from(values.fold(0.0_f32, |a, b| a.max(b.abs())))
        };
        let biases = p.b_enc.iter().chain(&p.b_mag).copied();
        Self {
            encoder: largest(&mut p.w_enc.chunks_exact(p.d_in).map(norm)),
            b_enc: largest(&mut { biases }),
            b_dec: norm(&p.b_dec).into(),
            decoder: largest(&mut p.decoder_norms().into_iter()),
            skip: norm(&p.w_skip).into(),
            gain: f64::from(p.r_mag.iter().copied().fold(0.0, f32::max)).exp(),
            standard: sae.row_norm.map(|_| (p.d_in as f64).sqrt()),
        }
    }

    /// How far rounding may take a row's latents.
    fn latents(&self, row: &[f32]) -> f64 {
        let input = self.standard.unwrap_or_else(|| norm(row).into()) + self.b_dec;
        ROUNDING * (self.gain * input * self.encoder + self.b_enc) + f64::from(f32::MIN_POSITIVE)
    }

    /// How far rounding may take its reconstruction, where `latents` are off by `rounding` each.
    fn reconstruction(&self, row: &[f32], latents: &[f32], rounding: f64) -> f64 {
        let size = f64::from(norm(row));
        let sum: f64 = latents.iter().map(|f| f64::from(f.abs())).sum();
        let own = ROUNDING * (sum * self.decoder + self.b_dec + self.skip * size);
        let inherited = rounding * self.decoder * (latents.len() as f64).sqrt();
        // Put back to the row's own deviation.
        let stretch = self.standard.map_or(1.0, |standard| size / standard);
        (own + inherited) * stretch + ROUNDING * size
    }
}

#[cfg(test)]
pub(in crate::sae) mod tests {
    use super::*;
    use crate::sae::{Activation, RowNorm, weights::tests::random_sae};

    /// Whether rounding explains what is between two SAEs.
    pub(in crate::sae) fn same(a: &Sae, b: &Sae) -> bool {
        compare(a, b, &drawn_rows(a)).is_rounding()
    }

    const ACTIVATIONS: [Activation; 4] =
        [Activation::TopK { k: 5 }, Activation::JumpRelu, Activation::Relu, Activation::Gated];

    #[test]
    fn an_sae_equals_itself_and_is_active_at_any_scale() {
        for activation in ACTIVATIONS {
            for row_norm in [None, Some(RowNorm::LAYER_NORM)] {
                let mut sae = Sae { row_norm, ..random_sae(12, 40, activation) };
                if row_norm.is_none() {
                    sae.params.threshold.iter_mut().for_each(|t| *t *= 100.0);
                }
                let found = compare(&sae, &sae, &drawn_rows(&sae));
                assert_eq!((found.latents.max, found.reconstructions.max), (0.0, 0.0));
                assert_eq!((found.rows, found.differing), (ROWS, 0));
                assert!(found.active > ROWS / 10 && found.is_rounding(), "{found:?}");
            }
        }
    }

    /// Each tensor counts: what is more than rounding in one of them is found.
    #[test]
    fn a_change_of_one_tensor_is_found() {
        for activation in ACTIVATIONS {
            let sae = random_sae(12, 40, activation);
            let rows = drawn_rows(&sae);
            for tensor in 0..sae.params.tensors().len() {
                let mut other = sae.clone();
                let data = &mut other.params.tensors_mut()[tensor];
                data.iter_mut().for_each(|x| *x *= 1.01);
                let found = compare(&sae, &other, &rows);
                let expected = sae.params.tensors()[tensor].is_empty();
                assert_eq!(found.is_rounding(), expected, "{activation:?} {tensor} {found:?}");
            }
        }
    }

    #[test]
    fn nan_is_no_rounding() {
        let sae = random_sae(4, 6, Activation::Relu);
        let mut other = sae.clone();
        other.params.b_dec[0] = f32::NAN;
        assert!(!compare(&sae, &other, &drawn_rows(&sae)).is_rounding());
    }
}
