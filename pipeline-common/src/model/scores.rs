//! What scores of the next token say.

/// What a model predicts at a row.
#[derive(Clone, Copy, Debug)]
pub struct Prediction<'a> {
    scores: &'a [f32],
    /// Logarithm of the sum of the scores' exponentials.
    log_sum: f64,
}

impl<'a> Prediction<'a> {
    /// From the scores of all tokens, `[vocabulary]`.
    pub fn new(scores: &'a [f32]) -> Self {
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = scores.iter().map(|s| f64::from(s - max).exp()).sum();
        Self { scores, log_sum: f64::from(max) + sum.ln() }
    }

    /// Cross-entropy of the token that came next, in nats.
    pub fn cross_entropy(self, next: u32) -> f64 {
        self.log_sum - f64::from(self.scores[next as usize])
    }

    /// Kullback-Leibler divergence of `other` from this, in nats: how much worse than this itself
    /// `other` foretells tokens drawn from this.
    pub fn divergence(self, other: Self) -> f64 {
        let term = |(p, q): (&f32, &f32)| {
            let log_p = f64::from(*p) - self.log_sum;
            match log_p.exp() {
                // The limit; a score of minus infinity would make it NaN.
                0.0 => 0.0,
                p => p * (log_p - (f64::from(*q) - other.log_sum)),
            }
        };
        self.scores.iter().zip(other.scores).map(term).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokens_by_hand() {
        // Probabilities 3/4 and 1/4; 1/2 and 1/2.
        let (p, q) = ([3.0_f32.ln() + 500.0, 500.0], [-7.0, -7.0]);
        let (p, q) = (Prediction::new(&p), Prediction::new(&q));
        assert!((p.cross_entropy(0) - (4.0_f64 / 3.0).ln()).abs() < 1e-4);
        assert!((q.cross_entropy(1) - 2.0_f64.ln()).abs() < 1e-12);
        let by_hand = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        assert!((p.divergence(q) - by_hand).abs() < 1e-4);
        assert_eq!(p.divergence(p), 0.0);
        let never = [0.0, f32::NEG_INFINITY];
        let never = Prediction::new(&never);
        assert!((never.divergence(q) - 2.0_f64.ln()).abs() < 1e-12);
        assert_eq!(q.divergence(never), f64::INFINITY);
    }
}
