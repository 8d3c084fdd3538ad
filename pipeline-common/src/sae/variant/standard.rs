//! ReLU with an L1 penalty (Bricken et al. 2023), weighted by decoder norms or not (Conerly et al.,
//! April 2024: `λ · mean Σ fᵢ‖W_dec,i‖`), or with an Lp penalty whose p falls (p-annealing,
//! Karvonen et al. 2024).

use std::collections::VecDeque;

use super::{
    dense::{Elementwise, Entry, EntryGrad},
    penalty::{Sums, add_norm_gradient},
};
use crate::sae::{Parameters, gradients::Gradients};

/// Batches whose penalties are compared when p changes.
const COMPARED: usize = 10;
/// Times that p changes.
const CHANGES: u64 = 10;

/// How p falls from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anneal {
    /// Steps before it begins.
    pub start: u64,
    /// Steps of the training.
    pub steps: u64,
    /// p at the end.
    pub end: f64,
}

impl Anneal {
    /// p after `changes` of [`CHANGES`].
    fn p(&self, changes: u64) -> f64 {
        1.0 + (self.end - 1.0) * changes as f64 / CHANGES as f64
    }

    /// How often p has changed before `step`.
    fn changes(&self, step: u64) -> u64 {
        let length = self.steps.saturating_sub(self.start).max(1);
        (step.saturating_sub(self.start) * CHANGES / length).min(CHANGES)
    }
}

/// The ReLU activation and its penalty.
#[derive(Clone, Debug)]
pub struct Standard {
    weighted: bool,
    anneal: Option<Anneal>,
    norms: Vec<f32>,
    changes: u64,
    /// Keeps the penalty comparable when p changes.
    factor: f64,
    /// Of the last batches: the mean penalty with this p and with the next.
    recent: VecDeque<[f64; 2]>,
}

impl Standard {
    /// L1, by decoder norms if `weighted`.
    pub fn new(weighted: bool) -> Self {
        Self {
            weighted,
            anneal: None,
            norms: vec![],
            changes: 0,
            factor: 1.0,
            recent: VecDeque::new(),
        }
    }

    /// Lp with a falling p; not weighted.
    pub fn annealed(anneal: Anneal) -> Self {
        Self { anneal: Some(anneal), ..Self::new(false) }
    }

    fn p(&self) -> f64 {
        self.anneal.map_or(1.0, |a| a.p(self.changes))
    }

    fn weight(&self, latent: usize) -> f32 {
        self.norms.get(latent).copied().unwrap_or(1.0)
    }

    /// Goes on to the next p once it is time: the coefficient is scaled by what the penalty would
    /// have been under it.
    fn change(&mut self, step: u64) {
        let due = self.anneal.map_or(0, |a| a.changes(step));
        while self.changes < due {
            let [now, next] = self.recent.iter().fold([0.0; 2], |s, r| [s[0] + r[0], s[1] + r[1]]);
            if next > 0.0 {
                self.factor *= now / next;
            }
            self.changes += 1;
            self.recent.clear();
        }
    }
}

impl Elementwise<1> for Standard {
    fn prepare(&mut self, params: &Parameters, step: u64) {
        if self.weighted {
            self.norms = params.decoder_norms();
        }
        self.change(step);
    }

    #[inline(always)]
    fn activate(&self, params: &Parameters, l: usize, a: f32) -> [f32; 1] {
        [(a + params.b_enc[l]).max(0.0)]
    }

    #[inline(always)]
    fn backward(&self, _params: &Parameters, e: Entry<1>, per_row: f32) -> EntryGrad {
        if e.f[0] <= 0.0 {
            return EntryGrad::default();
        }
        let slope = match self.anneal {
            None => self.weight(e.latent),
            Some(_) => {
                let p = self.p() as f32;
                self.factor as f32 * p * e.f[0].powf(p - 1.0)
            }
        };
        let pre = e.g[0] + per_row * slope;
        EntryGrad { pre, own: [pre, 0.0, 0.0, 0.0] }
    }

    /// Annealed: the second number is the penalty under the next p; it has no pull on decoders.
    fn penalty(&self, _params: &Parameters, l: usize, f: [f32; 1]) -> (f32, f32) {
        let Some(anneal) = self.anneal else {
            return (f[0] * self.weight(l), if self.weighted { f[0] } else { 0.0 });
        };
        let next = anneal.p(self.changes + 1) as f32;
        (f[0].powf(self.p() as f32), f[0].powf(next))
    }

    fn finish(
        &mut self,
        params: &Parameters,
        sums: &Sums,
        lambda: f64,
        grads: &mut Gradients,
    ) -> f64 {
        let penalty = sums.mean(|latent| latent.penalty);
        if self.anneal.is_none() {
            add_norm_gradient(params, sums, lambda / sums.rows as f64, grads);
            return lambda * penalty;
        }
        self.recent.push_back([penalty, sums.mean(|latent| latent.pull)]);
        if self.recent.len() > COMPARED {
            self.recent.pop_front();
        }
        lambda * self.factor * penalty
    }

    fn memory(&self) -> Vec<f64> {
        match self.anneal {
            None => vec![],
            Some(_) => {
                let recent = self.recent.iter().flatten().copied();
                [self.changes as f64, self.factor].into_iter().chain(recent).collect()
            }
        }
    }

    fn recall(&mut self, memory: &[f64]) {
        if let [changes, factor, recent @ ..] = memory {
            self.changes = *changes as u64;
            self.factor = *factor;
            self.recent = recent.as_chunks::<2>().0.iter().copied().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_another_p_changes_the_penalty_unless_rescaled() {
        let anneal = Anneal { start: 10, steps: 110, end: 0.5 };
        let mut standard = Standard::annealed(anneal);
        standard.change(19);
        assert_eq!(standard.p(), 1.0);
        standard.recent.push_back([4.0, 2.0]);
        standard.change(20);
        assert_eq!((standard.p(), standard.factor), (0.95, 2.0));
        standard.recent.push_back([3.0, 1.0]);
        let mut resumed = Standard::annealed(anneal);
        resumed.recall(&standard.memory());
        assert_eq!(resumed.memory(), standard.memory());
        resumed.change(1000);
        assert_eq!(resumed.p(), 0.5);
    }
}
