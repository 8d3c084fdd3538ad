//! The first pass: what every latent did, and its sentences.

use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

use super::{
    pool::{Entry, Pool},
    record::Histogram,
    signature::hash,
    sketch::{self, Place, Sketch},
};
use crate::kernels::sparse::SparseRows;

/// How the activations of a sentence's tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Over all rows of the sentence, inactive ones counted as 0.
    Mean,
    /// The strongest row.
    Max,
    /// The last row; sentences whose last row is inactive are not candidates.
    Last,
}

impl Aggregation {
    /// All of them, in the order of [`LatentTally::top`].
    pub const ALL: [Self; 3] = [Self::Mean, Self::Max, Self::Last];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Last => "last",
        }
    }
}

/// What decides which sentences are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Sentences of each aggregation in the end.
    pub top_n: usize,
    /// Decides all that is drawn.
    pub seed: u64,
}

impl Choice {
    /// Sentences drawn evenly for the deciles of a latent.
    pub const EVEN: usize = 50;
    /// Sentences drawn by their activation.
    pub const IMPORTANCE: usize = 20;
    /// Sentences of the run among which a latent's silent ones are.
    pub const SILENT: usize = 128;

    /// Sentences of each aggregation to keep, since some are near-duplicates with another signature.
    pub fn kept(&self) -> usize {
        self.top_n + self.top_n.div_ceil(2)
    }

    /// Bytes of a latent's lists at most.
    pub fn bytes(&self) -> usize {
        (3 * self.kept() + Self::EVEN + Self::IMPORTANCE) * size_of::<Entry>()
    }

    /// A number in (0, 1] that belongs to a sentence's signature, so that near-duplicates share it.
    fn draw(&self, purpose: u64, latent: u64, signature: u64) -> f64 {
        let bits = hash([self.seed, purpose, latent, signature]);
        ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// Fractions of a unit in which sums of activations are counted, so that their order does not matter.
const UNIT: f64 = (1_u64 << 40) as f64;

/// What a latent did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatentTally {
    /// Rows in which it was active.
    pub fired: u64,
    /// Sum of its activations in parts of 2^-40.
    pub sum: u128,
    /// Its largest activation; 0 if it never fired.
    pub max: f32,
    /// Its best sentences, by [`Aggregation::ALL`].
    pub top: [Pool; 3],
    /// Sentences drawn evenly from those in which it is active.
    pub even: Pool,
    /// Sentences drawn with a probability proportional to their largest activation (Efraimidis & Spirakis
    /// 2006).
    pub importance: Pool,
    /// How often which activation occurs.
    pub histogram: Histogram,
}

impl LatentTally {
    /// All lists, in one order.
    pub fn pools(&self) -> [&Pool; 5] {
        let [mean, max, last] = &self.top;
        [mean, max, last, &self.even, &self.importance]
    }

    /// Each list with the number of sentences that it holds.
    pub fn pools_mut(&mut self, choice: &Choice) -> [(&mut Pool, usize); 5] {
        let [mean, max, last] = &mut self.top;
        let kept = choice.kept();
        [
            (mean, kept),
            (max, kept),
            (last, kept),
            (&mut self.even, Choice::EVEN),
            (&mut self.importance, Choice::IMPORTANCE),
        ]
    }

    /// Adds a sentence in which the latent is active: its activations, and the one in the last row.
    fn add(
        &mut self,
        (latent, choice): (u64, &Choice),
        seen: &Seen,
        (values, last): (&[f32], Option<f32>),
    ) {
        let sum: f32 = values.iter().sum();
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.fired += values.len() as u64;
        self.sum += (f64::from(sum) * UNIT) as u128;
        self.max = self.max.max(max);
        values.iter().for_each(|value| self.histogram.count(*value));
        let draw = |purpose| choice.draw(purpose, latent, seen.signature);
        let ranks = [
            Some((-(sum / seen.rows.len() as f32), sum / seen.rows.len() as f32)),
            Some((-max, max)),
            last.map(|last| (-last, last)),
            Some((draw(0) as f32, max)),
            (max > 0.0).then(|| ((-ln(draw(1)) / f64::from(max)) as f32, max)),
        ];
        for ((pool, n), rank) in self.pools_mut(choice).into_iter().zip(ranks) {
            if let Some((rank, value)) = rank {
                let Seen { sentence, signature, .. } = *seen;
                pool.offer(Entry { sentence, signature, rank, value }, n);
            }
        }
    }

    fn merge(&mut self, other: &Self, choice: &Choice) {
        self.fired += other.fired;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
        self.histogram.merge(&other.histogram);
        for ((pool, n), other) in self.pools_mut(choice).into_iter().zip(other.pools()) {
            other.entries().iter().for_each(|entry| pool.offer(*entry, n));
        }
    }
}

/// The natural logarithm of a number in (0, 1], the same bits on every machine.
///
/// `ln m + e ln 2` with m in [0.7, 1.4], and ln m = 2 artanh((m - 1) / (m + 1)) as a series.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if m > std::f64::consts::SQRT_2 {
        (m, exponent) = (m / 2.0, exponent + 1);
    }
    let s = (m - 1.0) / (m + 1.0);
    let series = (0..10).rev().fold(0.0, |sum, n| sum * s * s + 1.0 / f64::from(2 * n + 1));
    2.0 * s * series + f64::from(exponent) * std::f64::consts::LN_2
}

/// A sentence of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number in the run.
    pub sentence: u64,
    /// Its [signature](super::signature).
    pub signature: u64,
    /// Its rows within the chunk.
    pub rows: Range<usize>,
}

/// All latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// What decides which sentences are kept.
    pub choice: Choice,
    /// Every latent, `[d_sae]`.
    pub latents: Vec<LatentTally>,
    /// Which are active in the same rows.
    pub sketch: Sketch,
    /// Sentences drawn evenly from the run.
    pub drawn: Pool,
}

impl Tally {
    /// Nothing seen yet.
    pub fn new(d_sae: usize, choice: Choice) -> Self {
        let (latents, sketch) = (vec![LatentTally::default(); d_sae], Sketch::new(d_sae));
        Self { choice, latents, sketch, drawn: Pool::default() }
    }

    /// Adds sentences that follow one another from row `first_row` of the run on: the active latents of
    /// their rows.
    pub fn add(&mut self, active: &SparseRows, first_row: u64, sentences: &[Seen]) {
        let by_latent = active.by_latent(self.latents.len());
        let values = by_latent.gather(active.values());
        let of_row: Vec<u32> = (0..)
            .zip(sentences)
            .flat_map(|(i, seen)| std::iter::repeat_n(i, seen.rows.len()))
            .collect();
        let rows = first_row..first_row + of_row.len() as u64;
        let places: Vec<Place> = rows.map(|row| self.sketch.place(row)).collect();
        let Self { choice, latents, sketch, drawn } = self;
        let each = latents.par_iter_mut().zip(sketch.par_latents()).enumerate();
        each.with_min_len(64).for_each(|(latent, (tally, sketch))| {
            let of_pair = |pair: &(u32, u32)| of_row[pair.0 as usize];
            // All at once: the processor waits for their counters together.
            by_latent
                .of(latent)
                .iter()
                .for_each(|(row, _)| sketch::add(sketch, places[*row as usize]));
            let mut values = &values[by_latent.range(latent)];
            for run in by_latent.of(latent).chunk_by(|a, b| of_pair(a) == of_pair(b)) {
                let (now, later) = values.split_at(run.len());
                values = later;
                let seen = &sentences[of_pair(&run[0]) as usize];
                let ends = run[run.len() - 1].0 as usize + 1 == seen.rows.end;
                let last = now.last().copied().filter(|_| ends);
                tally.add((latent as u64, choice), seen, (now, last));
            }
        });
        for seen in sentences {
            let Seen { sentence, signature, .. } = *seen;
            let rank = choice.draw(2, 0, signature) as f32;
            drawn.offer(Entry { sentence, signature, rank, value: 0.0 }, Choice::SILENT);
        }
    }

    /// Adds what was made of other sentences.
    pub fn merge(&mut self, other: &Self) {
        let Self { choice, latents, sketch, drawn } = self;
        latents.par_iter_mut().zip(&other.latents).for_each(|(a, b)| a.merge(b, choice));
        sketch.merge(&other.sketch);
        other.drawn.entries().iter().for_each(|entry| drawn.offer(*entry, Choice::SILENT));
    }

    /// A latent's mean activation over `rows` rows.
    pub fn weighted(&self, latent: usize, rows: u64) -> f64 {
        self.latents[latent].sum as f64 / UNIT / rows.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// For each row the active latents, ascending, and their activations.
    type Rows = Vec<Vec<(u32, f32)>>;

    /// Adds sentences, all of different signatures, from the `first` of the run on.
    fn add(tally: &mut Tally, first: u64, sentences: &[Rows]) {
        let mut active = SparseRows::default();
        active.clear();
        let (mut seen, mut begin) = (vec![], 0);
        for (sentence, rows) in (first..).zip(sentences) {
            for row in rows {
                let (index, value): (Vec<u32>, Vec<f32>) = row.iter().copied().unzip();
                active.push(&index, &value);
            }
            let rows = begin..begin + rows.len();
            begin = rows.end;
            seen.push(Seen { sentence, signature: hash([sentence]), rows });
        }
        tally.add(&active, first * 100, &seen);
    }

    fn tally(n: usize) -> Tally {
        Tally::new(6, Choice { top_n: n, seed: 3 })
    }

    #[test]
    fn every_active_latent_is_credited() {
        let mut tally = tally(2);
        let first = vec![vec![(0, 9.0), (1, 0.5)], vec![(0, 1.0)]];
        let second = vec![vec![(1, 0.25)], vec![], vec![(1, 0.5)]];
        add(&mut tally, 0, &[first, second]);
        let found = |pool: &Pool| -> Vec<(f32, u64)> {
            pool.entries().iter().map(|e| (e.value, e.sentence)).collect()
        };
        let latent = &tally.latents[1];
        assert_eq!(found(&latent.top[0]), [(0.25, 0), (0.25, 1)]);
        assert_eq!(found(&latent.top[1]), [(0.5, 0), (0.5, 1)]);
        assert_eq!(found(&latent.top[2]), [(0.5, 1)]);
        assert_eq!((latent.fired, tally.latents[3].fired), (3, 0));
        assert_eq!((latent.even.entries().len(), latent.importance.entries().len()), (2, 2));
        assert_eq!(tally.weighted(0, 5), 2.0);
        assert_eq!(tally.drawn.entries().len(), 2);
    }

    #[test]
    fn strong_sentences_are_drawn_more_often_than_weak_ones() {
        let strong = (0..400_u64)
            .filter(|seed| {
                let mut tally = Tally::new(1, Choice { top_n: 1, seed: *seed });
                let sentences: Vec<Rows> =
                    [1.0, 3.0].iter().map(|value| vec![vec![(0, *value)]]).collect();
                add(&mut tally, 0, &sentences);
                tally.latents[0].importance.entries()[0].sentence == 1
            })
            .count();
        assert!((270..330).contains(&strong), "{strong} of 400, expected three in four");
    }

    #[test]
    fn the_logarithm_is_one() {
        for x in [1.0, 0.999, 0.75, 0.7, 0.5, 0.1, 1e-3, 1.1102230246251565e-16] {
            let expected: f64 = f64::ln(x);
            assert!((ln(x) - expected).abs() <= 1e-11 * expected.abs().max(1.0), "{x}");
        }
    }

    fn sentences() -> impl Strategy<Value = Vec<Rows>> {
        let row = proptest::collection::btree_map(0_u32..6, 1_u8..5, 0..4)
            .prop_map(|m| m.into_iter().map(|(l, v)| (l, f32::from(v))).collect::<Vec<_>>());
        proptest::collection::vec(proptest::collection::vec(row, 1..5), 0..12)
    }

    proptest! {
        #[test]
        fn the_tally_is_what_a_dense_matrix_says(sentences in sentences(), n in 1_usize..5) {
            let mut tally = tally(n);
            add(&mut tally, 0, &sentences);
            for latent in 0..6_u32 {
                let mut expected = [vec![], vec![], vec![]];
                let mut fired = 0;
                for (i, rows) in sentences.iter().enumerate() {
                    let dense: Vec<f32> = rows.iter()
                        .map(|r| r.iter().find(|(l, _)| *l == latent).map_or(0.0, |(_, v)| *v))
                        .collect();
                    fired += dense.iter().filter(|v| **v > 0.0).count() as u64;
                    let scores = [
                        dense.iter().sum::<f32>() / dense.len() as f32,
                        dense.iter().copied().fold(0.0, f32::max),
                        *dense.last().unwrap(),
                    ];
                    for (list, value) in expected.iter_mut().zip(scores) {
                        if value > 0.0 {
                            list.push((value, i as u64));
                        }
                    }
                }
                let found = &tally.latents[latent as usize];
                prop_assert_eq!(found.fired, fired);
                prop_assert_eq!(found.histogram.counts.iter().sum::<u64>(), fired);
                for (pool, list) in found.top.iter().zip(&mut expected) {
                    list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                    list.truncate(tally.choice.kept());
                    let found: Vec<_> =
                        pool.entries().iter().map(|e| (e.value, e.sentence)).collect();
                    prop_assert_eq!(found, list.clone());
                }
            }
        }

        #[test]
        fn parts_in_any_order_give_the_whole(
            sentences in sentences(),
            cut in 0_usize..12,
            n in 1_usize..4,
        ) {
            let cut = cut.min(sentences.len());
            let mut whole = tally(n);
            sentences.iter().enumerate().for_each(|(i, s)| {
                add(&mut whole, i as u64, std::slice::from_ref(s));
            });
            let [mut first, mut second] = [tally(n), tally(n)];
            let (a, b) = sentences.split_at(cut);
            (0..).zip(a).for_each(|(i, s)| add(&mut first, i, std::slice::from_ref(s)));
            (cut as u64..).zip(b).for_each(|(i, s)| add(&mut second, i, std::slice::from_ref(s)));
            second.merge(&first);
            prop_assert_eq!(second, whole);
        }
    }
}
