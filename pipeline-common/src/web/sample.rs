//! Draws the next token.

use crate::sae::random::{Normal, Purpose};

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampler {
    /// 0 takes the likeliest.
    pub temperature: f64,
    /// Share of the probability that is drawn from.
    pub top_p: f64,
    pub seed: u64,
}

impl Sampler {
    /// The token at `place` of a continuation; `None` where scores are not finite. The same scores give
    /// the same token at the same place, and of likelier and likelier tokens the same number is drawn.
    pub fn draw(&self, scores: &[f32], place: usize) -> Option<u32> {
        let (mut best, mut most) = (None, f32::NEG_INFINITY);
        for (id, score) in scores.iter().enumerate() {
            if score.is_nan() || *score == f32::INFINITY {
                return None;
            }
            if *score > most {
                (best, most) = (Some(id as u32), *score);
            }
        }
        if self.temperature == 0.0 || best.is_none() {
            return best;
        }
        let weight = |score: f32| (f64::from(score - most) / self.temperature).exp();
        let mut weights: Vec<(f64, u32)> =
            scores.iter().enumerate().map(|(id, score)| (weight(*score), id as u32)).collect();
        weights.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let total: f64 = weights.iter().map(|(weight, _)| weight).sum();
        let (mut kept, mut sum) = (0, 0.0);
        for (weight, _) in &weights {
            kept += 1;
            sum += weight;
            if sum >= self.top_p * total {
                break;
            }
        }
        weights.truncate(kept);
        let uniform = Normal::new(self.seed, Purpose::Tokens).at(place as u64).uniform();
        let mut left = uniform * sum;
        let drawn = weights.iter().find(|(weight, _)| {
            left -= weight;
            left <= 0.0
        });
        drawn.or(weights.last()).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(sampler: Sampler, scores: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; scores.len()];
        (0..20_000).for_each(|n| counts[sampler.draw(scores, n).unwrap() as usize] += 1.0 / 2e4);
        counts
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let scores = [0.1_f32.ln() + 7.0, 0.6_f32.ln() + 7.0, 0.3_f32.ln() + 7.0];
        let sampler = Sampler { temperature: 1.0, top_p: 1.0, seed: 3 };
        for (share, expected) in shares(sampler, &scores).iter().zip([0.1, 0.6, 0.3]) {
            assert!((share - expected).abs() < 0.02, "{share} {expected}");
        }
        let within = Sampler { top_p: 0.8, ..sampler };
        for (share, expected) in shares(within, &scores).iter().zip([0.0, 2.0 / 3.0, 1.0 / 3.0]) {
            assert!((share - expected).abs() < 0.02, "{share} {expected}");
        }
        let cold = Sampler { temperature: 0.5, ..sampler };
        assert!((shares(cold, &scores)[1] - 0.36 / 0.46).abs() < 0.02);
        for likeliest in
            [Sampler { temperature: 0.0, ..sampler }, Sampler { top_p: 0.0, ..sampler }]
        {
            assert_eq!(shares(likeliest, &scores)[1].round(), 1.0);
        }
    }

    #[test]
    fn the_seed_and_the_place_decide() {
        let scores: Vec<f32> = (0..50).map(|n| (n as f32 * 0.7).sin()).collect();
        let draws = |seed| {
            let sampler = Sampler { temperature: 1.0, top_p: 0.95, seed };
            (0..30).map(|n| sampler.draw(&scores, n).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        let sampler = Sampler { temperature: 1.0, top_p: 1.0, seed: 0 };
        assert_eq!(sampler.draw(&[0.0, f32::NAN], 0), None);
        assert_eq!(sampler.draw(&[0.0, f32::INFINITY], 0), None);
        assert_eq!(sampler.draw(&[f32::NEG_INFINITY, 0.0], 0), Some(1));
        assert_eq!(sampler.draw(&[f32::NEG_INFINITY; 2], 0), None);
        assert_eq!(Sampler { temperature: 1e-300, ..sampler }.draw(&[0.0, 1.0], 0), Some(1));
    }
}
