//! What scores of the next token say.

/// The logarithm of the sum of the scores' exponentials, in f64.
pub fn log_sum_exp(scores: &[f32]) -> f64 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|s| f64::from(s - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// Cross-entropy of the token that came next, in nats.
pub fn cross_entropy(scores: &[f32], next: u32) -> f64 {
    log_sum_exp(scores) - f64::from(scores[next as usize])
}

/// Kullback-Leibler divergence of what `q` predicts from what `p` does, in nats: how much worse
/// than `p` itself `q` foretells tokens drawn from `p`.
pub fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (of_p, of_q) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(p, q): (&f32, &f32)| {
        let log_p = f64::from(*p) - of_p;
        log_p.exp() * (log_p - (f64::from(*q) - of_q))
    };
    p.iter().zip(q).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokens_by_hand() {
        // Probabilities 3/4 and 1/4; 1/2 and 1/2.
        let (p, q) = ([3.0_f32.ln() + 500.0, 500.0], [-7.0, -7.0]);
        assert!((cross_entropy(&p, 0) - (4.0_f64 / 3.0).ln()).abs() < 1e-4);
        assert!((cross_entropy(&q, 1) - 2.0_f64.ln()).abs() < 1e-12);
        let by_hand = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        assert!((divergence(&p, &q) - by_hand).abs() < 1e-4);
        assert_eq!(divergence(&p, &p), 0.0);
    }
}
