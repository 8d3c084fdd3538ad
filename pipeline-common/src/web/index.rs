//! Sentences and strongest tokens of an SAE in memory, to search in; built in the background.
//!
//! A sentence takes the bytes of its text and 8 more, a latent those of its token and 16 more, and
//! each of the sentences that its record has activations in 4 more (12 while the index is built).

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use memchr::memmem;
use rayon::prelude::*;
use serde::Serialize;

use super::{
    answer::{Answer, Refusal},
    browse::Browse,
    shelf::{Stamp, unpoisoned},
};
use crate::top::{
    TopData,
    record::{Activations, LatentRecord},
};

/// Lines that are in memory at a time.
const LINES: usize = 512;
/// Seconds after which a request that needs the index may try again.
const RETRY: u32 = 2;
/// SAEs whose indexes are kept.
pub(super) const KEPT: usize = 8;
/// What separates sentences; no query has it.
const BORDER: char = '\0';

/// What can be searched.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// All sentences in lower case, a border behind each.
    text: String,
    /// Where the sentences begin, and the end.
    starts: Vec<usize>,
    tokens: Vec<Option<Box<str>>>,
    /// Where each sentence's latents begin, and the end.
    firsts: Vec<usize>,
    latents: Vec<u32>,
}

/// How far an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Progress {
    state: &'static str,
    done: usize,
    total: usize,
}

/// An index that is there or will be.
#[derive(Debug)]
pub(super) struct Entry {
    stamp: Stamp,
    done: AtomicUsize,
    total: usize,
    built: OnceLock<Answer<Index>>,
}

/// The indexes of a store's SAEs, the most recently used first.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    entries: Mutex<Vec<(String, Arc<Entry>)>>,
    /// One at a time is built.
    building: Arc<Mutex<()>>,
}

impl Indexes {
    /// The index of an SAE, if it was begun.
    pub fn known(&self, sae: &str, stamp: &Stamp) -> Option<Arc<Entry>> {
        let mut entries = unpoisoned(&self.entries);
        let place = entries.iter().position(|(name, e)| name == sae && e.stamp == *stamp)?;
        entries[..=place].rotate_right(1);
        Some(entries[0].1.clone())
    }

    /// The index of an SAE; a thread builds it if there is none.
    pub fn begun(&self, sae: &str, stamp: Stamp, browse: &Arc<Browse>) -> Arc<Entry> {
        if let Some(entry) = self.known(sae, &stamp) {
            return entry;
        }
        let total = browse.top().map_or(0, TopData::d_sae);
        let entry = Entry { stamp, done: AtomicUsize::new(0), total, built: OnceLock::new() };
        let entry = Arc::new(entry);
        let mut entries = unpoisoned(&self.entries);
        entries.retain(|(name, _)| name != sae);
        entries.insert(0, (sae.to_owned(), entry.clone()));
        entries.truncate(KEPT);
        drop(entries);
        let (building, browse, work) = (self.building.clone(), browse.clone(), entry.clone());
        std::thread::spawn(move || {
            let _turn = unpoisoned(&building);
            // Nobody wants it any more if it was replaced meanwhile.
            if Arc::strong_count(&work) > 1 {
                work.built.get_or_init(|| Index::build(browse.top()?, &work.done));
            }
        });
        entry
    }
}

impl Entry {
    /// The index, or a refusal that says when to try again.
    pub fn ready(&self) -> Answer<&Index> {
        match self.built.get() {
            Some(built) => built.as_ref().map_err(Clone::clone),
            None => Err(Refusal::new(
                axum::http::StatusCode::SERVICE_UNAVAILABLE,
                "the sentences are still being indexed",
            )
            .retry(RETRY)),
        }
    }

    /// The index, if it is there; a refusal if it could not be built.
    pub fn if_ready(&self) -> Answer<Option<&Index>> {
        self.built.get().map(|built| built.as_ref().map_err(Clone::clone)).transpose()
    }

    /// How far it is.
    pub fn progress(entry: Option<&Self>) -> Progress {
        let Some(entry) = entry else { return Progress { state: "absent", done: 0, total: 0 } };
        let (done, total) = (entry.done.load(Ordering::Relaxed), entry.total);
        match entry.built.get() {
            Some(Ok(_)) => Progress { state: "ready", done: total, total },
            Some(Err(_)) => Progress { state: "failed", done, total },
            None => Progress { state: "building", done, total },
        }
    }
}

/// A sentence's place, the latent's number and its largest activation there.
type Pair = (u32, u32, f32);

impl Index {
    fn build(top: &TopData, done: &AtomicUsize) -> Answer<Self> {
        let mut index = Self { starts: vec![0], ..Self::default() };
        index.read_sentences(top)?;
        let pairs = index.read_latents(top, done)?;
        index.firsts = vec![0; index.sentences() + 1];
        pairs.iter().for_each(|pair| index.firsts[pair.0 as usize + 1] += 1);
        (1..index.firsts.len()).for_each(|n| index.firsts[n] += index.firsts[n - 1]);
        index.latents = pairs.into_iter().map(|(_, latent, _)| latent).collect();
        Ok(index)
    }

    fn read_sentences(&mut self, top: &TopData) -> Answer<()> {
        let sentences = top.table().sentence.len();
        for begin in (0..sentences).step_by(LINES) {
            let places = begin..(begin + LINES).min(sentences);
            let lower = |place| Ok(top.sentence(place)?.tokens.concat().to_lowercase());
            for text in places.into_par_iter().map(lower).collect::<Answer<Vec<String>>>()? {
                self.text.extend(text.chars().filter(|c| *c != BORDER));
                self.text.push(BORDER);
                self.starts.push(self.text.len());
            }
        }
        self.text.shrink_to_fit();
        Ok(())
    }

    /// The strongest tokens are kept; the pairs are ordered by sentence, the strongest first.
    fn read_latents(&mut self, top: &TopData, done: &AtomicUsize) -> Answer<Vec<Pair>> {
        let mut pairs = vec![];
        for begin in (0..top.d_sae()).step_by(LINES) {
            let latents = begin..(begin + LINES).min(top.d_sae());
            let read = |latent| of_latent(top, latent);
            let found = latents.into_par_iter().map(read).collect::<Answer<Vec<_>>>()?;
            for (token, mut of_latent) in found {
                self.tokens.push(token.map(String::into_boxed_str));
                pairs.append(&mut of_latent);
            }
            done.store(self.tokens.len(), Ordering::Relaxed);
        }
        pairs.par_sort_unstable_by(|a: &Pair, b: &Pair| {
            a.0.cmp(&b.0).then(b.2.total_cmp(&a.2)).then(a.1.cmp(&b.1))
        });
        Ok(pairs)
    }

    fn sentences(&self) -> usize {
        self.starts.len() - 1
    }

    /// Places of the sentences that hold `wanted`, in lower case.
    pub fn sentences_with(&self, wanted: &str) -> impl Iterator<Item = usize> {
        let finder = memmem::Finder::new(wanted);
        let (mut at, nothing) = (0, wanted.is_empty() || wanted.contains(BORDER));
        std::iter::from_fn(move || {
            if nothing {
                return None;
            }
            let found = at + finder.find(&self.text.as_bytes()[at..])?;
            let place = self.starts.partition_point(|start| *start <= found) - 1;
            at = self.starts[place + 1];
            Some(place)
        })
    }

    /// Latents whose record has activations in the sentence at a place, the strongest first.
    pub fn latents_of(&self, place: usize) -> &[u32] {
        &self.latents[self.firsts[place]..self.firsts[place + 1]]
    }

    /// A latent's strongest token.
    pub fn token(&self, latent: usize) -> Option<&str> {
        self.tokens.get(latent)?.as_deref()
    }
}

fn of_latent(top: &TopData, latent: usize) -> Answer<(Option<String>, Vec<Pair>)> {
    let record = top.latent(latent)?;
    let pair = |(sentence, activations): (&u64, &Activations)| {
        let place = top.place(*sentence)?;
        let strongest = activations.value.iter().copied().fold(0.0, f32::max);
        Some((place as u32, latent as u32, strongest))
    };
    let pairs = record.activations.iter().filter_map(pair).collect();
    Ok((strongest_token(top, &record)?, pairs))
}

/// The token at which a latent is strongest, of those that its record shows.
pub(super) fn strongest_token(top: &TopData, record: &LatentRecord) -> Answer<Option<String>> {
    let Some(best) = record.top.max.first() else { return Ok(None) };
    let Some(activations) = record.activations.get(&best.sentence) else { return Ok(None) };
    let places = activations.at.iter().zip(&activations.value);
    let Some((at, _)) = places.max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(a.0))) else {
        return Ok(None);
    };
    let Some(place) = top.place(best.sentence) else { return Ok(None) };
    Ok(top.sentence(place)?.tokens.get(*at as usize).cloned())
}
