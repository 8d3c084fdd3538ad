//! Learning rate and sparsity over the steps of a training.

use clap::ValueEnum;

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Decay {
    /// Stays.
    Constant,
    /// Full until the last steps, then linearly to the end (`dictionary_learning`).
    Linear,
    /// Half a cosine from full to the end.
    Cosine,
}

/// The factors of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps of the whole training.
    pub steps: u64,
    /// Steps over which the learning rate rises linearly from `1/warmup`.
    pub warmup: u64,
    /// How it falls.
    pub decay: Decay,
    /// Share of the steps over which a linear decay falls.
    pub decay_share: f64,
    /// The factor it falls to.
    pub end: f64,
    /// Steps over which the sparsity coefficient rises linearly; 0 at the first step, as SAELens.
    pub sparsity_warmup: u64,
}

impl Schedule {
    /// Factor on the learning rate at `step`, from 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let left = |from: u64| (self.steps - step) as f64 / (self.steps - from).max(1) as f64;
        let fallen = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => {
                let length = (self.steps as f64 * self.decay_share).round() as u64;
                let from = (self.steps - length.min(self.steps)).max(self.warmup);
                if step < from { 1.0 } else { left(from) }
            }
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left(self.warmup))).cos()),
        };
        self.end + (1.0 - self.end) * fallen
    }

    /// Factor on the sparsity coefficient at `step`, from 0.
    pub fn sparsity(&self, step: u64) -> f64 {
        match step {
            0 if self.sparsity_warmup > 0 => 0.0,
            _ if step < self.sparsity_warmup => (step + 1) as f64 / self.sparsity_warmup as f64,
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { steps: 100, warmup: 10, decay, decay_share: 0.2, end: 0.0, sparsity_warmup: 4 }
    }

    #[test]
    fn warm_up_and_decay_meet_their_ends() {
        let linear = schedule(Decay::Linear);
        assert_eq!((linear.lr(0), linear.lr(9), linear.lr(79)), (0.1, 1.0, 1.0));
        assert_eq!((linear.lr(80), linear.lr(90), linear.lr(99)), (1.0, 0.5, 0.05));
        let cosine = schedule(Decay::Cosine);
        assert_eq!(cosine.lr(10), 1.0);
        assert!((cosine.lr(55) - 0.5).abs() < 1e-12);
        assert!(cosine.lr(99) < 0.001);
        assert_eq!(schedule(Decay::Constant).lr(99), 1.0);
        assert_eq!(Schedule { end: 0.5, ..linear }.lr(90), 0.75);
        assert_eq!(Schedule { decay_share: 1.0, ..linear }.lr(55), 0.5);
    }

    #[test]
    fn sparsity_is_absent_at_the_first_step() {
        let s = schedule(Decay::Constant);
        assert_eq!([0, 1, 2, 3, 4].map(|t| s.sparsity(t)), [0.0, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(Schedule { sparsity_warmup: 0, ..s }.sparsity(0), 1.0);
    }

    #[test]
    fn a_training_of_one_step_has_a_rate() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let s = Schedule { steps: 1, warmup: 0, sparsity_warmup: 0, ..schedule(decay) };
            assert_eq!(s.lr(0), 1.0);
        }
    }
}
