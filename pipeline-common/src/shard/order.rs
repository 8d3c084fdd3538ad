//! The order in which training sees the rows: a pure function of (seed, epoch, step).
//!
//! Rows are cut into blocks that are contiguous on disk (about 1 MiB); each epoch visits the
//! blocks in a random order and shuffles the rows within windows of many blocks. So reads are
//! sequential enough for a parallel file system, nothing has to be saved to resume, and a batch
//! mixes rows from all over the run.

use std::ops::Range;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Bytes of a block: what one read should fetch at least.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks shuffled together.
const WINDOW_BLOCKS: usize = 64;

/// The order of the rows of a set of ranges, epoch after epoch.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    blocks: Vec<Range<usize>>,
    rows: usize,
    window: Option<Window>,
}

/// The shuffled rows of one window of one epoch.
#[derive(Clone, Debug)]
struct Window {
    epoch: u64,
    /// Positions within the epoch that the window covers.
    positions: Range<usize>,
    rows: Vec<usize>,
}

impl Order {
    /// Orders the rows of `ranges`, each contiguous on disk, of `row_bytes` bytes a row.
    pub fn new(seed: u64, ranges: &[Range<usize>], row_bytes: usize) -> Self {
        let step = (BLOCK_BYTES / row_bytes.max(1)).max(1);
        let cut = |range: &Range<usize>| {
            let end = range.end;
            range.clone().step_by(step).map(move |begin| begin..(begin + step).min(end))
        };
        let blocks: Vec<_> = ranges.iter().flat_map(cut).collect();
        let rows = blocks.iter().map(ExactSizeIterator::len).sum();
        Self { seed, blocks, rows, window: None }
    }

    /// Rows of an epoch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The rows of `batch` consecutive positions from `position` on; positions count on through
    /// the epochs.
    pub fn batch(&mut self, position: u64, batch: usize, out: &mut Vec<usize>) {
        out.clear();
        for p in position..position + batch as u64 {
            let (epoch, at) = (p / self.rows as u64, (p % self.rows as u64) as usize);
            out.push(self.row(epoch, at));
        }
    }

    fn row(&mut self, epoch: u64, at: usize) -> usize {
        match &self.window {
            Some(w) if w.epoch == epoch && w.positions.contains(&at) => {
                w.rows[at - w.positions.start]
            }
            _ => {
                let window = self.make_window(epoch, at);
                let row = window.rows[at - window.positions.start];
                self.window = Some(window);
                row
            }
        }
    }

    fn make_window(&self, epoch: u64, at: usize) -> Window {
        let mut order: Vec<usize> = (0..self.blocks.len()).collect();
        shuffle(&mut order, &mut stream(self.seed, epoch, 0));
        let mut begin = 0;
        for (n, group) in order.chunks(WINDOW_BLOCKS).enumerate() {
            let rows: usize = group.iter().map(|b| self.blocks[*b].len()).sum();
            if at < begin + rows || n + 1 == order.len().div_ceil(WINDOW_BLOCKS) {
                let mut rows: Vec<usize> =
                    group.iter().flat_map(|b| self.blocks[*b].clone()).collect();
                shuffle(&mut rows, &mut stream(self.seed, epoch, n as u64 + 1));
                return Window { epoch, positions: begin..begin + rows.len(), rows };
            }
            begin += rows;
        }
        Window { epoch, positions: 0..0, rows: vec![] }
    }
}

/// An independent random stream for (seed, epoch, part).
fn stream(seed: u64, epoch: u64, part: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    rng.set_stream(part);
    rng
}

/// Fisher-Yates with 64-bit multiply-shift; the bias is below 2^-40 for any run.
fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        items.swap(i, j as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_visits_every_row_once(lengths in prop::collection::vec(1_usize..400, 1..6), seed: u64, batch in 1_usize..50) {
            let mut ranges = vec![];
            let mut next = 0;
            for n in lengths {
                ranges.push(next..next + n);
                next += n + 7;
            }
            let mut expected: Vec<usize> = ranges.iter().cloned().flatten().collect();
            // Blocks of 16 rows, so that there are several windows' worth of structure.
            let mut order = Order::new(seed, &ranges, BLOCK_BYTES / 16);
            let (mut seen, mut out) = (vec![], vec![]);
            let total = order.rows() as u64;
            let mut at = 0;
            while at < total {
                let n = batch.min((total - at) as usize);
                order.batch(at, n, &mut out);
                seen.extend_from_slice(&out);
                at += n as u64;
            }
            seen.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn a_batch_depends_on_its_position_only(seed: u64, at in 0_u64..5000, batch in 1_usize..64) {
            let ranges = [0..1500, 2000..3000];
            let mut fresh = Order::new(seed, &ranges, BLOCK_BYTES / 16);
            let mut used = fresh.clone();
            let (mut a, mut b) = (vec![], vec![]);
            used.batch(0, 777, &mut b);
            used.batch(at, batch, &mut b);
            fresh.batch(at, batch, &mut a);
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let whole = 0..1000;
        let take = |seed, from| {
            let mut out = vec![];
            Order::new(seed, std::slice::from_ref(&whole), 2048).batch(from, 1000, &mut out);
            out
        };
        assert_ne!(take(1, 0), take(1, 1000));
        assert_ne!(take(1, 0), take(2, 0));
        assert_eq!(take(1, 0), take(1, 0));
    }
}
