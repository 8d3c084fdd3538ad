//! The k largest elements of a row, or of many rows together.

use super::vector::{max, simd};

/// Elements looked at together: a chunk whose maximum is too small is skipped whole.
const CHUNK: usize = 64;

/// Groups of a row for each of its k largest elements.
const GROUPS: usize = 8;
/// Elements of the vectors that groups are made of.
const LANES: usize = 16;

/// Buffers of [`Candidates::top_k`], reused from row to row.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// The largest element of each group, and a copy to be reordered.
    maxima: [Vec<f32>; 2],
    found: Vec<(f32, u32)>,
}

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
        self.found.clear();
        if k == 0 {
            return 0;
        }
        simd(
            #[inline(always)]
            || self.scan(row, k, floor, 0.0),
        );
        self.give(k, &mut keep)
    }

    /// The elements that may be among the up to `k` largest and greater than `floor`, each known up to
    /// `slack`; all of them if that is not finite. Put exact values in their places, and
    /// [`Self::largest`] gives what [`Self::top_k`] would have given.
    #[inline(always)]
    pub fn near_top_k(
        &mut self,
        row: &[f32],
        k: usize,
        (floor, slack): (f32, f32),
    ) -> &mut [(f32, u32)] {
        self.found.clear();
        if k > 0 && slack.is_finite() {
            self.scan(row, k, floor, slack);
            if self.found.len() > k {
                let (_, (smallest, _), _) = self.found.select_nth_unstable_by(k - 1, larger);
                let least = *smallest - 2.0 * slack;
                self.found.retain(|(value, _)| *value >= least);
            }
        } else if k > 0 {
            self.found.extend(row.iter().copied().zip(0..));
        }
        &mut self.found
    }

    /// As [`Self::top_k`], of what [`Self::near_top_k`] has found.
    pub fn largest(
        &mut self,
        k: usize,
        floor: f32,
        mut keep: impl FnMut(usize, u32, f32),
    ) -> usize {
        self.found.retain(|(value, _)| *value > floor);
        self.give(k, &mut keep)
    }

    /// Gives the `k` largest of what is found.
    fn give(&mut self, k: usize, keep: &mut impl FnMut(usize, u32, f32)) -> usize {
        if self.found.len() > k {
            self.found.select_nth_unstable_by(k - 1, larger);
            self.found.truncate(k);
        }
        self.found.sort_unstable_by_key(|(_, index)| *index);
        for (slot, (value, index)) in self.found.iter().enumerate() {
            keep(slot, *index, *value);
        }
        self.found.len()
    }

    /// Collects what may be among the k largest, each known up to `slack`. The row falls into groups, the
    /// lanes of a few vectors each; the k-th largest of the groups' maxima is not above the k-th largest
    /// element, and nothing below it is collected.
    #[inline(always)]
    fn scan(&mut self, row: &[f32], k: usize, floor: f32, slack: f32) {
        let Self { maxima: [maxima, order], found } = self;
        let vectors = (row.len() / (GROUPS * k)).clamp(1, CHUNK);
        maxima.clear();
        for block in row.chunks_exact(vectors * LANES) {
            maxima.extend_from_slice(&lane_maxima(block));
        }
        let bound = kth_largest(maxima, order, k) - 2.0 * slack;
        let floor = floor - slack;
        let wanted = |value: f32| (value > floor) & (value >= bound);
        let (whole, rest) = row.as_chunks::<LANES>();
        for (n, vector) in whole.iter().enumerate() {
            // Without a branch for each element, most of which are not wanted.
            let bits = (0..LANES).map(|i| u32::from(wanted(vector[i])) << i);
            let mut left = bits.fold(0, |all, bit| all | bit);
            while left != 0 {
                let i = left.trailing_zeros() as usize;
                found.push((vector[i], (n * LANES + i) as u32));
                left &= left - 1;
            }
        }
        let begin = row.len() - rest.len();
        for (i, value) in rest.iter().enumerate().filter(|(_, value)| wanted(**value)) {
            found.push((*value, (begin + i) as u32));
        }
    }
}

/// Larger ones first; of equal ones the first.
fn larger(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The largest of every sixteenth element; NaN is never larger.
#[inline(always)]
fn lane_maxima(block: &[f32]) -> [f32; LANES] {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for vector in block.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            lanes[i] = if vector[i] > lanes[i] { vector[i] } else { lanes[i] };
        }
    }
    lanes
}

/// The k-th largest of `values`, minus infinity if there are fewer.
fn kth_largest(values: &[f32], order: &mut Vec<f32>, k: usize) -> f32 {
    if values.len() < k {
        return f32::NEG_INFINITY;
    }
    order.clear();
    order.extend_from_slice(values);
    *order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// One element of many rows: its value, its row, its place in it.
type Entry = (f32, u32, u32);

/// Finds the k largest positive elements of many rows; of equal ones the first.
#[derive(Clone, Debug, Default)]
pub struct Largest {
    k: usize,
    /// What elements must exceed.
    floor: f32,
    kept: Vec<Entry>,
    guessed: f32,
}

impl Largest {
    /// Begins with elements above `guess`, which is not negative: see [`Self::is_sure`].
    pub fn begin(&mut self, k: usize, guess: f32) {
        self.k = k;
        self.floor = guess;
        self.guessed = guess;
        self.kept.clear();
    }

    /// What elements must exceed to be added.
    pub fn floor(&self) -> f32 {
        self.floor
    }

    /// The elements of row `number` above `floor`.
    pub fn above(row: &[f32], floor: f32, number: usize) -> Vec<Entry> {
        let mut found = vec![];
        simd(
            #[inline(always)]
            || {
                for (n, chunk) in row.chunks(CHUNK).enumerate() {
                    if max(chunk) > floor {
                        let entries = chunk.iter().enumerate().filter(|(_, v)| **v > floor);
                        let place = |i| (n * CHUNK + i) as u32;
                        found.extend(entries.map(|(i, v)| (*v, number as u32, place(i))));
                    }
                }
            },
        );
        found
    }

    /// Adds elements, which come behind all before in (row, place).
    pub fn add(&mut self, entries: &[Entry]) {
        self.kept.extend(entries.iter().filter(|e| e.0 > self.floor));
        if self.kept.len() >= 2 * self.k.max(CHUNK) {
            self.cut();
        }
    }

    /// Whether what is kept are the largest ones, although only those above a guess were seen.
    pub fn is_sure(&self) -> bool {
        self.guessed == 0.0 || self.kept.len() >= self.k
    }

    fn cut(&mut self) {
        if self.k == 0 {
            self.kept.clear();
        } else if self.kept.len() > self.k {
            let order =
                |a: &Entry, b: &Entry| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)));
            self.kept.select_nth_unstable_by(self.k - 1, order);
            self.kept.truncate(self.k);
            self.floor = self.kept[self.k - 1].0;
        }
    }

    /// Gives each of `rows` rows its elements, places ascending, and returns the smallest of all,
    /// 0 if there is none.
    pub fn rows(&mut self, rows: usize, mut give: impl FnMut(&[u32], &mut [f32])) -> f32 {
        self.cut();
        self.kept.sort_unstable_by_key(|(_, row, place)| (*row, *place));
        let smallest = self.kept.iter().map(|e| e.0).reduce(f32::min).unwrap_or(0.0);
        let (mut index, mut value) = (vec![], vec![]);
        let mut kept = self.kept.iter().peekable();
        for row in 0..rows as u32 {
            index.clear();
            value.clear();
            while let Some((v, _, place)) = kept.next_if(|e| e.1 == row) {
                index.push(*place);
                value.push(*v);
            }
            give(&index, &mut value);
        }
        smallest
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
        fn equals_sorting(row in prop::collection::vec((-40_i32..40).prop_map(|v| v as f32 / 4.0), 0..2000), k in 0_usize..80, positive: bool) {
            let floor = if positive { 0.0 } else { f32::NEG_INFINITY };
            let mut got = vec![];
            let n = Candidates::default().top_k(&row, k, floor, |_, i, v| got.push((i, v)));
            prop_assert_eq!(n, got.len());
            prop_assert_eq!(got, sorted(&row, k, floor));
        }
    }

    proptest! {
        #[test]
        fn the_largest_of_all_rows_whatever_the_guess(
            rows in prop::collection::vec(prop::collection::vec((-40_i32..40).prop_map(|v| v as f32 / 4.0), 130), 1..9),
            k in 0_usize..90,
            guess in 0_u32..12,
        ) {
            let find = |largest: &mut Largest, guess: f32| {
                largest.begin(k, guess);
                for (n, row) in rows.iter().enumerate() {
                    let found = Largest::above(row, largest.floor(), n);
                    largest.add(&found);
                }
            };
            let mut largest = Largest::default();
            find(&mut largest, guess as f32);
            if !largest.is_sure() {
                find(&mut largest, 0.0);
            }
            let mut got = vec![];
            let mut n = 0;
            largest.rows(rows.len(), |index, value| {
                got.extend(index.iter().zip(value.iter()).map(|(i, v)| (n * 130 + i, *v)));
                n += 1;
            });
            let all: Vec<f32> = rows.iter().flatten().copied().collect();
            prop_assert_eq!(got, sorted(&all, k, 0.0));
        }
    }

    #[test]
    fn a_row_of_nan_has_no_largest_element() {
        assert_eq!(Candidates::default().top_k(&[f32::NAN; 100], 3, 0.0, |_, _, _| ()), 0);
    }
}
