//! Lengths in bins of a round width.

/// Bins at most.
const BINS: u64 = 24;

/// How many lengths fall where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Lengths a bin covers: bin `i` is `i * width + 1 ..= (i + 1) * width`.
    pub width: u64,
    /// Counts of the bins, from the shortest to the longest length there is.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Counts lengths; zero falls into the first bin.
    pub fn of(lengths: &[u64]) -> Self {
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let width = round_up(longest.div_ceil(BINS).max(1));
        let bin = |length: u64| (length.max(1) - 1) / width;
        let mut counts = vec![0; bin(longest) as usize + 1];
        for length in lengths {
            counts[bin(*length) as usize] += 1;
        }
        Self { width, counts }
    }

    /// The largest count.
    pub fn most(&self) -> u64 {
        self.counts.iter().max().copied().unwrap_or(0)
    }
}

/// The next of 1, 2, 5, 10, 20, 50, ...
fn round_up(n: u64) -> u64 {
    let mut power = 1;
    loop {
        for step in [1, 2, 5] {
            if step * power >= n {
                return step * power;
            }
        }
        power *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_in_its_bin() {
        let histogram = Histogram::of(&[0, 1, 5, 6, 100, 120]);
        assert_eq!(histogram.width, 5);
        assert_eq!(histogram.counts.len(), 24);
        assert_eq!(histogram.counts[..2], [3, 1]);
        assert_eq!((histogram.counts[19], histogram.counts[23]), (1, 1));
        assert_eq!(Histogram::of(&[]).counts, [0]);
        assert_eq!(Histogram::of(&[121]).width, 10);
    }
}
