//! The N best of a stream of scored sentences.

use std::cmp::Ordering;

/// A sentence and how strongly it excites a latent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The aggregated activation.
    pub value: f32,
    /// Number of the sentence in the run, from 0.
    pub sentence: u64,
}

impl Scored {
    /// Higher values first, then lower sentence numbers: a total order, so that the best do not
    /// depend on the order in which sentences are seen.
    fn rank(&self, other: &Self) -> Ordering {
        other.value.total_cmp(&self.value).then(self.sentence.cmp(&other.sentence))
    }
}

/// Up to N sentences, best first; memory grows with what is kept, not with N.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Best(Vec<Scored>);

impl Best {
    /// Keeps `scored` if it is among the best `n` so far. Each sentence is offered once.
    pub fn offer(&mut self, scored: Scored, n: usize) {
        if self.0.len() == n {
            match self.0.last() {
                Some(worst) if scored.rank(worst).is_lt() => self.0.pop(),
                _ => return,
            };
        }
        let at = self.0.partition_point(|kept| kept.rank(&scored).is_lt());
        self.0.insert(at, scored);
    }

    /// The best, best first.
    pub fn entries(&self) -> &[Scored] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_best_are_the_head_of_the_sorted_list(
            values in proptest::collection::vec(0_u8..12, 0..80),
            n in 0_usize..12,
            seed in any::<u64>(),
        ) {
            let mut all: Vec<Scored> = (0..).zip(&values)
                .map(|(sentence, v)| Scored { value: f32::from(*v) / 4.0, sentence })
                .collect();
            let mut best = Best::default();
            let mut shuffled = all.clone();
            shuffled.sort_by_key(|s| s.sentence.wrapping_mul(seed | 1).rotate_left(17));
            shuffled.into_iter().for_each(|s| best.offer(s, n));
            all.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap().then(a.sentence.cmp(&b.sentence)));
            all.truncate(n);
            prop_assert_eq!(best.entries(), &all[..]);
        }
    }
}
