//! Seeded random numbers, drawn on the CPU whatever the device.
//!
//! ChaCha8 with one stream per purpose: the seed decides everything, and adding a draw in one
//! place does not move another.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What numbers are drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The decoder's first directions.
    Decoder = 1,
    /// A transcoder's encoder's.
    Encoder = 2,
    /// Rows on which two SAEs are compared.
    Comparison = 3,
    /// Rows that dead latents take their directions from.
    Resampling = 4,
    /// Documents to evaluate on.
    Documents = 5,
    /// Documents of a bootstrap's resamples.
    Bootstrap = 6,
    /// Latents whose decoder rows are compared with all.
    Latents = 7,
    /// Rows in place of activations, where only time is measured.
    Probe = 8,
    /// Tokens of a continuation.
    Tokens = 32,
}

/// A stream of standard normal numbers (Box & Muller 1958).
#[derive(Clone, Debug)]
pub struct Normal(ChaCha8Rng);

impl Normal {
    /// The stream of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(purpose as u64);
        Self(rng)
    }

    /// The part of the stream that belongs to step `step`; 2^32 numbers lie between two.
    #[must_use]
    pub fn at(mut self, step: u64) -> Self {
        self.0.set_word_pos(u128::from(step) << 32);
        self
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            let radius = (-2.0 * self.uniform().ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
            for (x, wave) in pair.iter_mut().zip([cos, sin]) {
                *x = (radius * wave) as f32;
            }
        }
    }

    /// Uniform in (0, 1].
    pub fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number below `bound`, each as likely as the others.
    pub fn below(&mut self, bound: usize) -> usize {
        // The product's upper half; the bias is below bound / 2⁶⁴.
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// `count` different numbers below `bound`, in random order.
    pub fn choose(&mut self, bound: usize, count: usize) -> Vec<usize> {
        let (mut all, count): (Vec<usize>, _) = ((0..bound).collect(), count.min(bound));
        for place in 0..count {
            let other = place + self.below(bound - place);
            all.swap(place, other);
        }
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_a_normal_and_seeds_differ() {
        let draw = |seed| {
            let mut out = vec![0.0; 100_001];
            Normal::new(seed, Purpose::Decoder).fill(&mut out);
            out
        };
        let x = draw(1);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let variance = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert_eq!(x, draw(1));
        assert_ne!(x, draw(2));
    }

    #[test]
    fn whole_numbers_are_equally_likely_and_chosen_ones_differ() {
        let mut normal = Normal::new(1, Purpose::Documents);
        let mut counts = [0; 7];
        (0..70_000).for_each(|_| counts[normal.below(7)] += 1);
        assert!(counts.iter().all(|n| (9_600..10_400).contains(n)), "{counts:?}");
        let mut chosen = normal.choose(50, 50);
        assert_ne!(chosen, (0..50).collect::<Vec<_>>());
        chosen.sort_unstable();
        assert_eq!(chosen, (0..50).collect::<Vec<_>>());
        assert_eq!((normal.choose(50, 3).len(), normal.choose(2, 9).len()), (3, 2));
    }
}
