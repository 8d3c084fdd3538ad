//! Which sentences are near-duplicates of one another.
//!
//! A sentence is the set of its shingles, runs of five tokens. Its signature is the smallest of
//! their hashes: two sentences have the same one with the probability of their resemblance, the share of
//! shingles that they have in common (Broder 1997). Equality of signatures, unlike resemblance, falls
//! sentences into kinds, so that lists over parts of the sentences can be joined.

/// Tokens of a shingle.
const SHINGLE: usize = 5;
/// Sentences of which more than this resembles are near-duplicates.
const ALIKE: f64 = 0.7;

/// Mixes the bits of a number: the last step of SplitMix64 (Steele et al. 2014).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A hash of several numbers.
pub fn hash(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, |hash, number| mix(hash ^ number))
}

/// The hashes of a sentence's shingles; a short sentence is one shingle.
fn shingles(ids: &[u32]) -> impl Iterator<Item = u64> + '_ {
    ids.windows(SHINGLE.min(ids.len()).max(1)).map(|run| hash(run.iter().map(|id| u64::from(*id))))
}

/// The signature of a sentence of tokens `ids`.
pub fn signature(ids: &[u32]) -> u64 {
    shingles(ids).min().unwrap_or(0)
}

/// A sentence's shingles, to tell near-duplicates that have different signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shingles(Vec<u64>);

impl Shingles {
    /// Those of a sentence of tokens `ids`.
    pub fn of(ids: &[u32]) -> Self {
        let mut all: Vec<u64> = shingles(ids).collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    /// Whether two sentences have nearly the same tokens.
    pub fn resemble(&self, other: &Self) -> bool {
        let (mut a, mut b, mut common) = (&self.0[..], &other.0[..], 0);
        while let ([x, a_rest @ ..], [y, b_rest @ ..]) = (a, b) {
            common += usize::from(x == y);
            (a, b) = (if x <= y { a_rest } else { a }, if y <= x { b_rest } else { b });
        }
        let all = self.0.len() + other.0.len() - common;
        common as f64 > ALIKE * all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(seed: u64, n: usize) -> Vec<u32> {
        (0..n as u64).map(|i| hash([seed, i]) as u32 % 5000).collect()
    }

    #[test]
    fn equal_signatures_are_as_likely_as_the_resemblance() {
        let trials = 2000;
        let mut equal = 0;
        for seed in 0..trials {
            let a = sentence(seed, 44);
            let mut b = a.clone();
            // Five of forty shingles are others: resemblance 35 / 45.
            b[20] ^= 8192;
            equal += usize::from(signature(&a) == signature(&b));
        }
        let share = equal as f64 / trials as f64;
        assert!((share - 35.0 / 45.0).abs() < 0.03, "{share}");
        assert_ne!(signature(&sentence(1, 44)), signature(&sentence(2, 44)));
    }

    #[test]
    fn a_changed_word_resembles_and_a_common_opening_does_not() {
        let a = sentence(1, 60);
        let mut changed = a.clone();
        changed[30] ^= 8192;
        let mut opening = sentence(2, 60);
        opening[..20].copy_from_slice(&a[..20]);
        let of = Shingles::of;
        assert!(of(&a).resemble(&of(&a)) && of(&a).resemble(&of(&changed)));
        assert!(!of(&a).resemble(&of(&opening)));
        assert!(of(&[7]).resemble(&of(&[7])) && !of(&[7]).resemble(&of(&[8])));
    }
}
