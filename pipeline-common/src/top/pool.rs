//! The first N of a stream of ranked sentences, one of each kind.

use std::cmp::Ordering;

use bytemuck::{Pod, Zeroable};

/// A sentence and its place in a list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Entry {
    /// Number of the sentence in the run, from 0.
    pub sentence: u64,
    /// [What tells it](super::signature) from sentences that are not near-duplicates of it.
    pub signature: u64,
    /// What the list is ordered by, lowest first.
    pub rank: f32,
    /// The activation that is shown.
    pub value: f32,
}

impl Entry {
    /// A total order, so that a list does not depend on the order in which sentences are seen.
    fn order(&self, other: &Self) -> Ordering {
        self.rank.total_cmp(&other.rank).then(self.sentence.cmp(&other.sentence))
    }
}

/// Up to N sentences of different signatures, first one first; memory grows with what is kept, not with
/// N.
///
/// It holds the first N signatures by the first sentence of each. So lists over parts of the sentences,
/// offered to one another, give the list over all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool(Vec<Entry>);

impl Pool {
    /// Keeps `entry` if it is among the first `n` so far.
    pub fn offer(&mut self, entry: Entry, n: usize) {
        let full = self.0.len() >= n;
        if full && self.0.last().is_none_or(|last| entry.order(last).is_ge()) {
            return;
        }
        match self.0.iter().position(|kept| kept.signature == entry.signature) {
            Some(at) if entry.order(&self.0[at]).is_lt() => {
                self.0.remove(at);
            }
            Some(_) => return,
            None if full => {
                self.0.pop();
            }
            None => {}
        }
        let at = self.0.partition_point(|kept| kept.order(&entry).is_lt());
        self.0.insert(at, entry);
    }

    /// What is kept, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn sorted(mut all: Vec<Entry>, n: usize) -> Vec<Entry> {
        all.sort_by(Entry::order);
        let mut seen = BTreeSet::new();
        all.retain(|entry| seen.insert(entry.signature));
        all.truncate(n);
        all
    }

    proptest! {
        #[test]
        fn a_pool_is_the_head_of_the_sorted_list_however_it_is_put_together(
            ranks in proptest::collection::vec((0_u8..12, 0_u64..20), 0..80),
            n in 0_usize..12,
            seed in any::<u64>(),
        ) {
            let all: Vec<Entry> = (0..).zip(&ranks)
                .map(|(sentence, (rank, signature))| {
                    let rank = f32::from(*rank);
                    Entry { sentence, signature: *signature, rank, value: -rank }
                })
                .collect();
            let mut shuffled = all.clone();
            shuffled.sort_by_key(|e| e.sentence.wrapping_mul(seed | 1).rotate_left(17));
            let mut parts = [Pool::default(), Pool::default()];
            shuffled.into_iter().for_each(|e| parts[e.sentence as usize % 2].offer(e, n));
            let [mut pool, other] = parts;
            other.entries().iter().for_each(|e| pool.offer(*e, n));
            let expected = sorted(all, n);
            prop_assert_eq!(pool.entries(), &expected[..]);
        }
    }
}
