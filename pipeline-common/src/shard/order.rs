//! The order in which training sees the rows: a pure function of (seed, epoch, step).
//!
//! Rows are cut into blocks that are contiguous on disk (1 MiB); each epoch visits the blocks in a
//! random order and shuffles the rows within windows of many blocks. So a disk or a parallel file
//! system reads 1 MiB at a time, nothing has to be saved to resume, and a batch mixes rows from all
//! over the run.
//!
//! What this costs against a shuffle of all rows: a window's mean differs a little from the run's, and
//! its batches share that. With documents of 128 tokens that make up half of the variance, and rows of
//! width 768, the mean of a batch of 1024 rows varies about 1.4 times as much (standard deviation 1.2
//! times) as that of rows drawn from anywhere; within a window nothing tells the two apart
//! (`batches_are_nearly_as_mixed_as_a_full_shuffle`).

use std::ops::Range;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Bytes of a block: what one read should fetch at least.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks shuffled together: 256 MiB of page cache, twice with the ones that are fetched ahead.
const WINDOW_BLOCKS: usize = 256;

/// The order of the rows of a set of ranges, epoch after epoch.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    blocks: Vec<Range<usize>>,
    rows: usize,
    window: Option<Window>,
    fetched: Option<Fetched>,
}

/// What [`Order::fetch`] handed out last.
#[derive(Clone, Debug)]
struct Fetched {
    epoch: u64,
    /// Number of the window.
    window: usize,
    /// Positions for which nothing more is needed: those of the window before it.
    until: usize,
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
        Self { seed, blocks, rows, window: None, fetched: None }
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

    /// Blocks to be fetched before the rows from `position` on are read: those of the window there and
    /// of the next one, so that its rows are there in time. None where they were handed out before.
    pub fn fetch(&mut self, position: u64) -> Vec<Range<usize>> {
        let (epoch, at) = (position / self.rows as u64, (position % self.rows as u64) as usize);
        let last = self.fetched.as_ref().filter(|last| last.epoch == epoch);
        if last.is_some_and(|last| at < last.until) {
            return vec![];
        }
        let known = last.map(|last| last.window);
        let order = self.block_order(epoch);
        let (n, positions) = self.window_at(&order, at);
        let new = (n..=n + 1).filter(|n| known.is_none_or(|known| known < *n));
        let groups = new.filter_map(|n| order.chunks(WINDOW_BLOCKS).nth(n));
        let blocks = groups.flatten().map(|block| self.blocks[*block].clone()).collect();
        self.fetched = Some(Fetched { epoch, window: n + 1, until: positions.end });
        blocks
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

    /// The order in which an epoch visits the blocks.
    fn block_order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.blocks.len()).collect();
        shuffle(&mut order, &mut stream(self.seed, epoch, 0));
        order
    }

    /// The window of a position below [`Self::rows`], and the positions it covers.
    fn window_at(&self, order: &[usize], at: usize) -> (usize, Range<usize>) {
        let mut begin = 0;
        for (n, group) in order.chunks(WINDOW_BLOCKS).enumerate() {
            let rows: usize = group.iter().map(|b| self.blocks[*b].len()).sum();
            if at < begin + rows {
                return (n, begin..begin + rows);
            }
            begin += rows;
        }
        unreachable!("position {at} of {}", self.rows)
    }

    fn make_window(&self, epoch: u64, at: usize) -> Window {
        let order = self.block_order(epoch);
        let (n, positions) = self.window_at(&order, at);
        let group = order.chunks(WINDOW_BLOCKS).nth(n).unwrap_or_default();
        let mut rows: Vec<usize> = group.iter().flat_map(|b| self.blocks[*b].clone()).collect();
        shuffle(&mut rows, &mut stream(self.seed, epoch, n as u64 + 1));
        Window { epoch, positions, rows }
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
    fn blocks_are_fetched_a_window_ahead_once_an_epoch_and_whole() {
        let row_bytes = 4096;
        let ranges = [0..100_000, 100_005..200_000];
        let mut order = Order::new(3, &ranges, row_bytes);
        let (mut fetched, mut out, mut calls) = (vec![], vec![], 0);
        let (all, batch) = (order.rows() as u64, 1000);
        let mut at = 0;
        while at < all {
            let blocks = order.fetch(at);
            calls += usize::from(!blocks.is_empty());
            fetched.extend(blocks);
            order.batch(at, batch.min(all - at) as usize, &mut out);
            for row in &out {
                assert!(fetched.iter().any(|block| block.contains(row)), "row {row} at {at}");
            }
            at += batch;
        }
        assert_eq!(calls, order.blocks.len().div_ceil(WINDOW_BLOCKS) - 1, "two at the first");
        let whole = |block: &Range<usize>| block.len() * row_bytes >= BLOCK_BYTES;
        assert_eq!(
            fetched.iter().filter(|block| !whole(block)).count(),
            2,
            "the end of each range"
        );
        fetched.sort_by_key(|block| block.start);
        assert_eq!(fetched, order.blocks);
        assert!(!order.fetch(all).is_empty(), "the next epoch begins anew");
    }

    /// Rows of documents that have something in common: half of the variance.
    #[test]
    fn batches_are_nearly_as_mixed_as_a_full_shuffle() {
        let (documents, length, batch) = (8192, 128, 1024);
        let rows = documents * length;
        let mut random = stream(1, 0, 0);
        let mut normal = || {
            // The sum of twelve uniform numbers less 6 has variance 1.
            (0..12).map(|_| random.next_u64() as f64 / u64::MAX as f64).sum::<f64>() - 6.0
        };
        let of_document: Vec<f64> = (0..documents).map(|_| normal()).collect();
        let value: Vec<f64> = (0..rows).map(|row| of_document[row / length] + normal()).collect();
        let variance = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64
        };
        let whole = 0..rows;
        let mut order = Order::new(2, std::slice::from_ref(&whole), 2 * 768);
        let (mut out, mut means, mut alike) = (vec![], vec![], 0);
        for step in 0..rows / batch {
            order.batch((step * batch) as u64, batch, &mut out);
            means.push(out.iter().map(|row| value[*row]).sum::<f64>() / batch as f64);
            let mut found: Vec<usize> = out.iter().map(|row| row / length).collect();
            found.sort_unstable();
            found.dedup();
            alike += batch - found.len();
        }
        // Rows drawn without replacement from all.
        let full = variance(&value) / batch as f64 * (1.0 - batch as f64 / rows as f64);
        let ratio = variance(&means) / full;
        assert!((1.2..1.6).contains(&ratio), "{ratio}: the module's words give 1.4");
        // Of 1024 rows about 62 are of a document that has another in the batch, here 330.
        let alike = alike as f64 / means.len() as f64;
        assert!(alike < 350.0, "{alike}");
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
