//! Sentences to show of a latent: those that explain it and those that judge the explanation.
//!
//! A document belongs to one of the two by its hash, for all latents alike, so that no description is
//! judged by a document it was made from. Sentences come from stage 03: the strongest, ten groups by
//! strength (stratified, since the strongest alone make a description too narrow: Paulo et al. 2024,
//! arXiv:2410.13928), those in which a neighbour is active (hard negatives) and those in which the latent is
//! silent.

use std::collections::BTreeSet;

use crate::{
    stage::Result,
    top::{
        TopData,
        record::{LatentRecord, Ranked, SentenceRecord},
    },
};

/// Tokens of a sentence that are shown, around the strongest.
const SHOWN: usize = 64;
/// The activation that a latent's largest one is scaled to.
const STRONGEST: f32 = 10.0;
/// Of each to explain with.
const EXPLAIN: Counts = Counts { top: 10, per_decile: 2, negative: 5 };
/// Of each to judge with.
const JUDGE: Counts = Counts { top: 0, per_decile: 2, negative: 20 };

/// How many sentences are taken from where.
#[derive(Clone, Copy)]
struct Counts {
    top: usize,
    per_decile: usize,
    negative: usize,
}

/// What a document is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Explain,
    Judge,
}

impl Purpose {
    /// What a document is for under a seed.
    pub fn of(document: u64, seed: u64) -> Self {
        if mix(&[seed, document]).is_multiple_of(2) { Self::Explain } else { Self::Judge }
    }
}

/// Part of a sentence with the latent's activations from 0 to 10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Example {
    pub sentence: u64,
    pub document: u64,
    pub tokens: Vec<String>,
    /// As long as `tokens`; 0 where the latent is silent.
    pub levels: Vec<u8>,
    /// The tenth by strength it was drawn from; the last for the strongest sentences.
    pub decile: usize,
}

impl Example {
    /// Whether the latent is active in it.
    pub fn is_active(&self) -> bool {
        self.levels.iter().any(|level| *level > 0)
    }
}

/// A latent's sentences for one purpose.
#[derive(Clone, Debug, Default)]
pub(super) struct Examples {
    pub positive: Vec<Example>,
    pub negative: Vec<Example>,
}

/// A hash of numbers: places and orders that a seed decides.
pub(super) fn mix(parts: &[u64]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(&part.to_le_bytes());
    });
    let digest = *hasher.finalize().as_bytes();
    u64::from_le_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}

/// Where sentences come from.
pub(super) struct Source<'a> {
    pub data: &'a TopData,
    pub seed: u64,
}

impl Source<'_> {
    /// A latent's sentences for a purpose, strongest first.
    ///
    /// # Errors
    /// A damaged line; a sentence that is named and missing.
    pub fn examples(&self, record: &LatentRecord, purpose: Purpose) -> Result<Examples> {
        let counts = if purpose == Purpose::Explain { EXPLAIN } else { JUDGE };
        let mut taken = BTreeSet::new();
        let last = record.deciles.len().saturating_sub(1);
        let mut positive =
            self.take(record, purpose, &record.top.max, (counts.top, last), &mut taken)?;
        for (decile, sentences) in record.deciles.iter().enumerate().rev() {
            positive.extend(self.take(
                record,
                purpose,
                sentences,
                (counts.per_decile, decile),
                &mut taken,
            )?);
        }
        if positive.is_empty() {
            // Too rare for deciles, or none of theirs is of this purpose.
            let rest = [&record.top.max, &record.top.mean, &record.top.last, &record.importance];
            let rest: Vec<Ranked> = rest.into_iter().flatten().copied().collect();
            positive = self.take(record, purpose, &rest, (EXPLAIN.top, last), &mut taken)?;
        }
        let negative = self.negative(record, purpose, counts.negative, &mut taken)?;
        Ok(Examples { positive, negative })
    }

    /// First those in which a neighbour is active; to judge with, half and half.
    fn negative(
        &self,
        record: &LatentRecord,
        purpose: Purpose,
        count: usize,
        taken: &mut BTreeSet<u64>,
    ) -> Result<Vec<Example>> {
        let ranked = |sentence| Ranked { value: 0.0, sentence };
        let contrast: Vec<Ranked> = record.contrast.iter().map(|c| ranked(c.sentence)).collect();
        let silent: Vec<Ranked> = record.silent.iter().map(|s| ranked(*s)).collect();
        let hard = if purpose == Purpose::Explain { count } else { count / 2 };
        let mut found = self.take(record, purpose, &contrast, (hard, 0), taken)?;
        found.extend(self.take(record, purpose, &silent, (count - found.len(), 0), taken)?);
        found.extend(self.take(record, purpose, &contrast, (count - found.len(), 0), taken)?);
        // A sentence drawn as silent may be active after all where two runs were mixed.
        found.retain(|example| strongest(record, example.sentence).is_none());
        Ok(found)
    }

    /// The first `count` sentences of a list that are of a purpose and new.
    fn take(
        &self,
        record: &LatentRecord,
        purpose: Purpose,
        list: &[Ranked],
        (count, decile): (usize, usize),
        taken: &mut BTreeSet<u64>,
    ) -> Result<Vec<Example>> {
        let mut found = Vec::new();
        for ranked in list {
            if found.len() == count {
                break;
            }
            if taken.contains(&ranked.sentence) {
                continue;
            }
            let sentence = self.data.named(ranked.sentence)?;
            if Purpose::of(sentence.document, self.seed) == purpose {
                taken.insert(ranked.sentence);
                let middle = self.middle(record, &sentence)?;
                found.push(example(record, &sentence, middle, decile));
            }
        }
        Ok(found)
    }

    /// The token around which a sentence is shown: where the latent is strongest, or the neighbour for whose
    /// sake a silent sentence was chosen, or anywhere. Were silent ones shown from their beginnings, their
    /// place would tell them from the others.
    fn middle(&self, record: &LatentRecord, sentence: &SentenceRecord) -> Result<usize> {
        let (number, length) = (sentence.sentence, sentence.tokens.len());
        if length <= SHOWN {
            return Ok(0);
        }
        let neighbour = record.contrast.iter().find(|c| c.sentence == number).map(|c| c.latent);
        let neighbour = neighbour.filter(|latent| (*latent as usize) < self.data.d_sae());
        let found = match (strongest(record, number), neighbour) {
            (None, Some(latent)) => strongest(&self.data.latent(latent as usize)?, number),
            (own, _) => own,
        };
        let anywhere = mix(&[self.seed, record.latent.into(), number]) as usize % length;
        Ok(found.unwrap_or(anywhere))
    }
}

/// Where a latent is strongest in a sentence; none if it is silent there.
fn strongest(record: &LatentRecord, sentence: u64) -> Option<usize> {
    let active = record.activations.get(&sentence)?;
    let values = active.at.iter().zip(&active.value);
    values.max_by(|a, b| a.1.total_cmp(b.1)).map(|(at, _)| *at as usize)
}

/// The part of a sentence around a token.
fn example(
    record: &LatentRecord,
    sentence: &SentenceRecord,
    middle: usize,
    decile: usize,
) -> Example {
    let mut levels = vec![0; sentence.tokens.len()];
    if let Some(active) = record.activations.get(&sentence.sentence) {
        for (at, value) in active.at.iter().zip(&active.value) {
            let at = *at as usize;
            let Some(level) = levels.get_mut(at) else { continue };
            // Rounded up, so that an active token is never shown as silent.
            *level = (STRONGEST * value / record.max).ceil().clamp(1.0, STRONGEST) as u8;
        }
    }
    let begin = middle.saturating_sub(SHOWN / 2).min(levels.len().saturating_sub(SHOWN));
    let end = (begin + SHOWN).min(levels.len());
    Example {
        sentence: sentence.sentence,
        document: sentence.document,
        tokens: sentence.tokens[begin..end].iter().map(|token| unmarked(token)).collect(),
        levels: levels[begin..end].to_vec(),
        decile,
    }
}

/// A token without the marks that stand for activity: the text's own become similar ones.
fn unmarked(token: &str) -> String {
    token.replace('«', "‹").replace('»', "›")
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::top::{
        data::tests::plant,
        record::{Activations, Contrast, Top},
    };

    /// Two latents over 120 sentences of 60 documents: each is active in every third, at token 1,
    /// the stronger the later.
    pub fn planted(dir: &std::path::Path) {
        let sentences: Vec<SentenceRecord> = (0..120)
            .map(|sentence| SentenceRecord {
                sentence,
                document: sentence / 2,
                ids: vec![1, 2, 3],
                tokens: vec!["A".into(), format!(" word{sentence}"), ".\n".into()],
            })
            .collect();
        let latents: Vec<LatentRecord> = (0..2).map(latent).collect();
        plant(dir, &latents, &sentences, 360);
    }

    fn latent(latent: u32) -> LatentRecord {
        let own: Vec<u64> = (0..120).filter(|s| s % 3 == u64::from(latent)).collect();
        let ranked: Vec<Ranked> =
            own.iter().map(|s| Ranked { value: value(*s), sentence: *s }).collect();
        let best: Vec<Ranked> = ranked.iter().rev().take(10).copied().collect();
        let activation = |s: &u64| (*s, Activations { at: vec![1], value: vec![value(*s)] });
        let other: Vec<u64> = (0..120).filter(|s| s % 3 == 2).collect();
        let contrast = (0..120).filter(|s| s % 3 == 1 - u64::from(latent));
        LatentRecord {
            latent,
            density: 40.0 / 360.0,
            fired: 40,
            max: value(own[39]),
            weighted: 0.5,
            top: Top { mean: best.clone(), max: best.clone(), last: best },
            deciles: ranked.chunks(4).map(<[Ranked]>::to_vec).collect(),
            importance: vec![],
            silent: other,
            contrast: contrast.map(|sentence| Contrast { latent: 1 - latent, sentence }).collect(),
            activations: own.iter().map(activation).collect::<BTreeMap<_, _>>(),
            ..LatentRecord::default()
        }
    }

    fn value(sentence: u64) -> f32 {
        (sentence + 1) as f32
    }

    #[test]
    fn no_document_explains_and_judges() {
        let dir = tempfile::tempdir().unwrap();
        planted(dir.path());
        let data = TopData::open(dir.path()).unwrap();
        for seed in 0..20 {
            let source = Source { data: &data, seed };
            for latent in 0..2 {
                let record = data.latent(latent).unwrap();
                let documents = |purpose| {
                    let examples = source.examples(&record, purpose).unwrap();
                    assert!(!examples.positive.is_empty() && !examples.negative.is_empty());
                    assert!(examples.positive.iter().all(Example::is_active));
                    assert!(!examples.negative.iter().any(Example::is_active));
                    let all = examples.positive.into_iter().chain(examples.negative);
                    all.map(|e| e.document).collect::<BTreeSet<_>>()
                };
                let (explain, judge) = (documents(Purpose::Explain), documents(Purpose::Judge));
                assert!(explain.is_disjoint(&judge), "{seed}: {explain:?} {judge:?}");
            }
        }
    }

    #[test]
    fn every_sentence_is_shown_once_and_all_strengths_occur() {
        let dir = tempfile::tempdir().unwrap();
        planted(dir.path());
        let data = TopData::open(dir.path()).unwrap();
        let source = Source { data: &data, seed: 0 };
        let examples = source.examples(&data.latent(0).unwrap(), Purpose::Explain).unwrap();
        let all = || examples.positive.iter().chain(&examples.negative).map(|e| e.sentence);
        assert_eq!(all().count(), all().collect::<BTreeSet<_>>().len());
        let deciles: BTreeSet<usize> = examples.positive.iter().map(|e| e.decile).collect();
        assert!(deciles.len() >= 8, "{deciles:?}");
    }

    #[test]
    fn the_part_around_the_strongest_token_is_shown_with_levels_of_the_maximum() {
        let tokens: Vec<String> = (0..200).map(|n| format!(" {n}")).collect();
        let sentence = SentenceRecord { sentence: 5, document: 1, ids: vec![0; 200], tokens };
        let active = Activations { at: vec![0, 99, 100], value: vec![0.001, 5.0, 10.0] };
        let record = LatentRecord {
            max: 10.0,
            activations: BTreeMap::from([(5, active)]),
            ..LatentRecord::default()
        };
        let shown = example(&record, &sentence, 100, 3);
        assert_eq!((shown.tokens.len(), shown.tokens[0].as_str()), (SHOWN, " 68"));
        assert_eq!(shown.levels[31..34], [5, 10, 0]);
        let record = LatentRecord { max: 10.0, ..LatentRecord::default() };
        let silent = example(&record, &sentence, 0, 0);
        assert!(!silent.is_active() && silent.tokens[0] == " 0");
    }

    #[test]
    fn silent_sentences_are_shown_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let sentence = |n: u64| {
            let tokens = (0..500).map(|t| format!(" {t}")).collect();
            SentenceRecord { sentence: n, document: n, ids: vec![0; 500], tokens }
        };
        let own = LatentRecord {
            contrast: vec![Contrast { latent: 1, sentence: 0 }],
            silent: (1..40).collect(),
            ..LatentRecord::default()
        };
        let near = Activations { at: vec![7, 300], value: vec![1.0, 2.0] };
        let neighbour = LatentRecord {
            latent: 1,
            activations: BTreeMap::from([(0, near)]),
            ..LatentRecord::default()
        };
        plant(dir.path(), &[own, neighbour], &(0..40).map(sentence).collect::<Vec<_>>(), 20_000);
        let data = TopData::open(dir.path()).unwrap();
        let source = Source { data: &data, seed: 0 };
        let record = data.latent(0).unwrap();
        let middle = |n| source.middle(&record, &data.named(n).unwrap()).unwrap();
        assert_eq!(middle(0), 300, "where the neighbour is strongest");
        let places: BTreeSet<usize> = (1..40).map(middle).collect();
        assert!(places.len() > 30 && places.iter().any(|at| *at > 400), "{places:?}");
    }

    #[test]
    fn marks_of_the_text_are_not_taken_for_ours() {
        let tokens = vec!["«Oui»".to_owned(), " dit".to_owned()];
        let sentence = SentenceRecord { sentence: 0, document: 0, ids: vec![1, 2], tokens };
        let shown = example(&LatentRecord::default(), &sentence, 0, 0);
        assert_eq!(shown.tokens, ["‹Oui›", " dit"]);
    }
}
