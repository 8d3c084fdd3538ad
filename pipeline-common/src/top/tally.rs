//! The first pass: what every latent did, and its best sentences.

use serde::Serialize;

use super::best::{Best, Scored};

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
    /// All of them, in the order of [`LatentTally::best`].
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

/// What a latent did over all rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatentTally {
    /// Rows in which it was active.
    pub fired: u64,
    /// Sum of its activations.
    pub sum: f64,
    /// Its largest activation; 0 if it never fired.
    pub max: f32,
    /// Its best sentences, by [`Aggregation::ALL`].
    pub best: [Best; 3],
}

/// A latent within the sentence being added.
#[derive(Clone, Copy, Debug, Default)]
struct Current {
    rows: u32,
    sum: f32,
    max: f32,
    last: Option<f32>,
}

/// All latents. Memory: `d_sae` latents of three times N sentences of 16 bytes.
#[derive(Clone, Debug)]
pub struct Tally {
    top_n: usize,
    rows: u64,
    sentences: u64,
    latents: Vec<LatentTally>,
    current: Vec<Current>,
    touched: Vec<u32>,
}

impl Tally {
    /// Nothing seen yet.
    pub fn new(d_sae: usize, top_n: usize) -> Self {
        Self {
            top_n,
            rows: 0,
            sentences: 0,
            latents: vec![LatentTally::default(); d_sae],
            current: vec![Current::default(); d_sae],
            touched: Vec::new(),
        }
    }

    /// Adds a sentence: for each of its rows the active latents and their activations.
    pub fn add<'a>(
        &mut self,
        sentence: u64,
        rows: impl ExactSizeIterator<Item = (&'a [u32], &'a [f32])>,
    ) {
        let length = rows.len();
        for (row, (latents, values)) in rows.enumerate() {
            for (&latent, &value) in latents.iter().zip(values) {
                let now = &mut self.current[latent as usize];
                if now.rows == 0 {
                    self.touched.push(latent);
                    now.max = value;
                }
                now.rows += 1;
                now.sum += value;
                now.max = now.max.max(value);
                now.last = (row + 1 == length).then_some(value);
            }
        }
        self.rows += length as u64;
        self.sentences += 1;
        for latent in self.touched.drain(..) {
            let now = std::mem::take(&mut self.current[latent as usize]);
            let tally = &mut self.latents[latent as usize];
            tally.fired += u64::from(now.rows);
            tally.sum += f64::from(now.sum);
            tally.max = tally.max.max(now.max);
            let [mean, max, last] = &mut tally.best;
            mean.offer(Scored { value: now.sum / length as f32, sentence }, self.top_n);
            max.offer(Scored { value: now.max, sentence }, self.top_n);
            if let Some(value) = now.last {
                last.offer(Scored { value, sentence }, self.top_n);
            }
        }
    }

    /// Rows of all sentences.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Sentences added.
    pub fn sentences(&self) -> u64 {
        self.sentences
    }

    /// Every latent, `[d_sae]`.
    pub fn latents(&self) -> &[LatentTally] {
        &self.latents
    }

    /// Fraction of rows in which a latent was active.
    pub fn density(&self, latent: usize) -> f64 {
        self.latents[latent].fired as f64 / self.rows.max(1) as f64
    }

    /// Mean activation over all rows: density times the mean activation where active.
    pub fn weighted(&self, latent: usize) -> f64 {
        self.latents[latent].sum / self.rows.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rows = Vec<Vec<(u32, f32)>>;

    fn add(tally: &mut Tally, sentence: u64, rows: &Rows) {
        let split: Vec<(Vec<u32>, Vec<f32>)> =
            rows.iter().map(|r| r.iter().copied().unzip()).collect();
        tally.add(sentence, split.iter().map(|(l, v)| (&l[..], &v[..])));
    }

    #[test]
    fn every_active_latent_is_credited() {
        let mut tally = Tally::new(4, 2);
        add(&mut tally, 0, &vec![vec![(0, 9.0), (1, 0.5)], vec![(0, 1.0)]]);
        add(&mut tally, 1, &vec![vec![(1, 0.25)], vec![], vec![(1, 0.5)]]);
        let [mean, max, last] = &tally.latents()[1].best;
        assert_eq!(
            mean.entries(),
            [Scored { value: 0.25, sentence: 0 }, Scored { value: 0.25, sentence: 1 }]
        );
        assert_eq!(max.entries()[0], Scored { value: 0.5, sentence: 0 });
        assert_eq!(last.entries(), [Scored { value: 0.5, sentence: 1 }]);
        assert_eq!((tally.rows(), tally.latents()[1].fired, tally.latents()[3].fired), (5, 3, 0));
        assert_eq!(tally.density(0), 0.4);
        assert_eq!(tally.weighted(0), 2.0);
    }

    fn sentences() -> impl Strategy<Value = Vec<Rows>> {
        let row = proptest::collection::btree_map(0_u32..6, 1_u8..5, 0..4)
            .prop_map(|m| m.into_iter().map(|(l, v)| (l, f32::from(v))).collect::<Vec<_>>());
        proptest::collection::vec(proptest::collection::vec(row, 1..5), 0..12)
    }

    proptest! {
        #[test]
        fn the_tally_is_what_a_dense_matrix_says(sentences in sentences(), n in 1_usize..5) {
            let mut tally = Tally::new(6, n);
            sentences.iter().enumerate().for_each(|(i, s)| add(&mut tally, i as u64, s));
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
                            list.push(Scored { value, sentence: i as u64 });
                        }
                    }
                }
                prop_assert_eq!(tally.latents()[latent as usize].fired, fired);
                for (best, list) in tally.latents()[latent as usize].best.iter().zip(&mut expected) {
                    list.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.sentence.cmp(&b.sentence)));
                    list.truncate(n);
                    prop_assert_eq!(best.entries(), &list[..]);
                }
            }
        }
    }
}
