//! Activations of chosen latents alone, the same bits as among all.

use bytemuck::{Pod, Zeroable};
use candle_core::DType;

use super::{Activation, Sae, encode::Magnitude};
use crate::kernels::{panels::Panels, product::Write};

/// Where a row's active latents end, known once all were looked at: by itself a latent cannot tell
/// whether it is among the k largest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Cut {
    /// The smallest activation of the row.
    value: f32,
    /// The last latent that has it.
    latent: u32,
}

impl Cut {
    /// A row in which no latent is crowded out.
    const NONE: Self = Self { value: f32::NEG_INFINITY, latent: u32::MAX };

    /// The cut of a row with these active latents, ascending, and their activations.
    pub fn of(activation: Activation, (latents, values): (&[u32], &[f32])) -> Self {
        match activation {
            Activation::TopK { k } if latents.len() >= k => {
                let all = latents.iter().zip(values);
                all.fold(Self { value: f32::INFINITY, latent: 0 }, |cut, (latent, value)| {
                    if *value <= cut.value { Self { value: *value, latent: *latent } } else { cut }
                })
            }
            _ => Self::NONE,
        }
    }

    fn admits(self, latent: u32, value: f32) -> bool {
        value > self.value || value == self.value && latent <= self.latent
    }
}

impl Sae {
    /// The activations of `latents` in `rows`, `[n, d_in]`, whose cuts are given: `[n, latents]`, 0 where
    /// a latent is not active.
    ///
    /// # Panics
    /// If there is not one cut a row.
    pub fn encode_chosen(&self, latents: &[u32], rows: &[f32], cuts: &[Cut]) -> Vec<f32> {
        let p = &self.params;
        assert_eq!(rows.len(), cuts.len() * p.d_in, "a cut for each row");
        let mut panels = Panels::empty(DType::F32);
        panels.fill(latents.len(), p.d_in, |i| &p.w_enc[latents[i] as usize * p.d_in..][..p.d_in]);
        let mut out = vec![0.0; cuts.len() * latents.len()];
        panels.product(&self.centred(rows), &mut out, Write::Replace);
        for (row, cut) in out.chunks_exact_mut(latents.len().max(1)).zip(cuts) {
            for (x, latent) in row.iter_mut().zip(latents) {
                let value = self.activation_of(*latent as usize, *x);
                *x = value.filter(|value| cut.admits(*latent, *value)).unwrap_or(0.0);
            }
        }
        out
    }

    /// A latent's activation by its product with a row, if no others crowd it out.
    fn activation_of(&self, latent: usize, product: f32) -> Option<f32> {
        let p = &self.params;
        let pre = product + p.b_enc[latent];
        let (value, floor) = match self.activation {
            Activation::TopK { .. } | Activation::Relu => (pre, 0.0),
            Activation::JumpRelu => (pre, p.threshold[latent]),
            Activation::Gated if pre > 0.0 => {
                (Magnitude { r_mag: &p.r_mag, b_mag: &p.b_mag }.of(latent, product), 0.0)
            }
            Activation::Gated => return None,
        };
        (value > floor).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::{
        random::{Normal, Purpose},
        weights::tests::random_sae,
    };

    #[test]
    fn chosen_latents_have_the_bits_that_they_have_among_all() {
        let (d_in, d_sae, rows) = (9, 130, 40);
        for activation in
            [Activation::TopK { k: 5 }, Activation::JumpRelu, Activation::Relu, Activation::Gated]
        {
            let mut sae = random_sae(d_in, d_sae, activation);
            // Two equal latents: of equal activations the first counts.
            let p = &mut sae.params;
            p.w_enc.copy_within(3 * d_in..4 * d_in, 90 * d_in);
            p.b_enc[90] = p.b_enc[3];
            let mut x = vec![0.0; rows * d_in];
            Normal::new(3, Purpose::Decoder).fill(&mut x);
            let all = sae.encode(&x);
            let cuts: Vec<Cut> = (0..rows).map(|row| Cut::of(activation, all.row(row))).collect();
            let latents: Vec<u32> = (0..d_sae as u32).filter(|l| l % 3 == 0).collect();
            let found = sae.encode_chosen(&latents, &x, &cuts);
            for (row, found) in found.chunks(latents.len()).enumerate() {
                let (index, value) = all.row(row);
                for (latent, found) in latents.iter().zip(found) {
                    let expected = index.binary_search(latent).map_or(0.0, |i| value[i]);
                    assert_eq!(*found, expected, "{activation:?}, row {row}, latent {latent}");
                }
            }
        }
    }
}
