//! The k largest elements of a row.

use super::vector::{max, simd};

/// Elements looked at together: a chunk whose maximum is too small is skipped whole.
const CHUNK: usize = 64;

/// Buffers of [`Candidates::top_k`], reused from row to row.
#[derive(Clone, Debug, Default)]
pub struct Candidates(Vec<(f32, u32)>);

impl Candidates {
    /// Finds the up to `k` largest elements of `row` that are greater than `floor`; of equal ones
    /// the first. Calls `keep(slot, index, value)` in ascending order of index and returns how
    /// many there are. NaN is never among them.
    pub fn top_k(
        &mut self,
        row: &[f32],
        k: usize,
        floor: f32,
        mut keep: impl FnMut(usize, u32, f32),
    ) -> usize {
        self.0.clear();
        if k == 0 {
            return 0;
        }
        simd(
            #[inline(always)]
            || self.scan(row, k, floor),
        );
        self.cut(k);
        self.0.sort_unstable_by_key(|(_, index)| *index);
        for (slot, (value, index)) in self.0.iter().enumerate() {
            keep(slot, *index, *value);
        }
        self.0.len()
    }

    #[inline(always)]
    fn scan(&mut self, row: &[f32], k: usize, floor: f32) {
        let room = (2 * k).max(CHUNK);
        let mut threshold = floor;
        for (n, chunk) in row.chunks(CHUNK).enumerate() {
            if max(chunk) <= threshold {
                continue;
            }
            for (i, value) in chunk.iter().enumerate() {
                if *value > threshold {
                    self.0.push((*value, (n * CHUNK + i) as u32));
                }
            }
            if self.0.len() >= room {
                threshold = self.cut(k).unwrap_or(threshold);
            }
        }
    }

    /// Keeps the k largest and returns the smallest of them.
    fn cut(&mut self, k: usize) -> Option<f32> {
        if self.0.len() > k {
            self.0.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            self.0.truncate(k);
            return self.0.last().map(|(value, _)| *value);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(row: &[f32], k: usize, floor: f32) -> Vec<(u32, f32)> {
        let mut all: Vec<(u32, f32)> = row
            .iter()
            .enumerate()
            .map(|(i, v)| (i as u32, *v))
            .filter(|(_, v)| *v > floor)
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all.sort_by_key(|(i, _)| *i);
        all
    }

    proptest! {
        #[test]
        fn equals_sorting(row in prop::collection::vec((-40_i32..40).prop_map(|v| v as f32 / 4.0), 0..700), k in 0_usize..80, positive: bool) {
            let floor = if positive { 0.0 } else { f32::NEG_INFINITY };
            let mut got = vec![];
            let n = Candidates::default().top_k(&row, k, floor, |_, i, v| got.push((i, v)));
            prop_assert_eq!(n, got.len());
            prop_assert_eq!(got, sorted(&row, k, floor));
        }
    }

    #[test]
    fn a_row_of_nan_has_no_largest_element() {
        assert_eq!(Candidates::default().top_k(&[f32::NAN; 100], 3, 0.0, |_, _, _| ()), 0);
    }
}
