//! From the tally of all rows to the files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Range,
};

use rayon::prelude::*;

use super::{
    data::{self, Origin, TABLE, Table, TopData},
    detail::{self, AllCuts, Details},
    input::Input,
    logits::Logits,
    neighbours::Neighbours,
    output::Files,
    pool::{Entry, Pool},
    record::{Contrast, LatentRecord, Ranked, Top},
    report,
    signature::{Shingles, hash},
    tally::Tally,
};
use crate::stage::{Context, Reporter, Result};

/// Latents whose sentences are in memory together.
pub(super) const LATENTS_AT_A_TIME: usize = 4096;
/// Groups that evenly drawn sentences fall into.
const DECILES: usize = 10;
/// Silent sentences of a latent.
const SILENT: usize = 20;
/// Neighbours that contrasting sentences are taken from, of each so many of the strongest, and how many
/// are kept.
const CONTRAST: (usize, usize, usize) = (5, 4, 10);
/// What a stop at this point costs.
const SAVED: &str = "what was found in the rows is kept";

/// A latent's sentences without near-duplicates.
struct Lists {
    top: [Vec<Entry>; 3],
    even: Vec<Entry>,
    importance: Vec<Entry>,
}

impl Lists {
    fn all(&self) -> impl Iterator<Item = u64> + '_ {
        let lists = self.top.iter().chain([&self.even, &self.importance]);
        lists.flatten().map(|entry| entry.sentence)
    }
}

/// Everything that the files are made from.
pub(super) struct Finish<'a> {
    pub input: &'a Input,
    pub tally: Tally,
    pub cuts: AllCuts,
    pub logits: Option<Logits>,
    pub digest: String,
}

impl Finish<'_> {
    /// Writes all files; the table, which says that all are there, comes before the report alone.
    ///
    /// # Errors
    /// Files that cannot be read or written; a stop.
    pub fn write(mut self, context: &Context, reporter: &Reporter) -> Result<()> {
        let neighbours = self.neighbours(context, reporter)?;
        let (dir, d_sae) = (self.input.dir(), self.tally.latents.len());
        let mut files = Files::create(&dir)?;
        let mut named = BTreeSet::new();
        reporter.begin("latents", 0, d_sae as u64);
        let progress = context.progress("latents", d_sae as u64, "latents");
        let mut progress = progress.reported_by(reporter);
        for begin in (0..d_sae).step_by(LATENTS_AT_A_TIME) {
            context.leave_if_asked(SAVED)?;
            let latents = begin..d_sae.min(begin + LATENTS_AT_A_TIME);
            let n = latents.len() as u64;
            self.block(latents, &neighbours, &mut files, &mut named)?;
            progress.advance(n, 0, "");
        }
        progress.finish("");
        detail::sentences(self.input, &named, |record| files.sentence(&record))?;
        data::withdraw(&dir)?;
        let (line, sentence_line) = files.commit()?;
        self.table(line, named.into_iter().collect(), sentence_line).write(&dir.join(TABLE))?;
        let origin = report::Origin::of(self.input);
        report::write(&dir, origin, &TopData::open(&dir)?)
    }

    fn neighbours(&self, context: &Context, reporter: &Reporter) -> Result<Neighbours> {
        let alive = self.tally.latents.iter().filter(|latent| latent.fired > 0).count();
        let total = (self.tally.latents.len() + alive) as u64;
        reporter.begin("comparisons", 0, total);
        let progress = context.progress("neighbours", total, "comparisons");
        let mut progress = progress.reported_by(reporter);
        let rows = self.input.set.rows() as u64;
        let found = Neighbours::find(&self.input.sae, (&self.tally, rows), |n| {
            progress.advance(n as u64, 0, "");
            context.leave_if_asked(SAVED)
        })?;
        progress.finish("");
        Ok(found)
    }

    /// Writes the records of some latents and adds the sentences that they name.
    fn block(
        &mut self,
        latents: Range<usize>,
        neighbours: &Neighbours,
        files: &mut Files,
        named: &mut BTreeSet<u64>,
    ) -> Result<()> {
        let lists = self.lists(latents.clone())?;
        let contrast: Vec<Vec<Contrast>> =
            latents.clone().map(|latent| self.contrast(latent, neighbours)).collect();
        let wanted = self.wanted(latents.clone(), &lists, &contrast);
        let texts: HashSet<u64> =
            lists.iter().flat_map(|l| l.top.iter().flatten()).map(|e| e.sentence).collect();
        let details = detail::read(self.input, &self.cuts, &wanted, &texts)?;
        let mut logits = match &mut self.logits {
            Some(logits) => logits.of(self.input, latents.clone())?.into_iter().map(Some).collect(),
            None => vec![None; latents.len()],
        };
        let this = &*self;
        let each = latents.clone().into_par_iter().zip(&lists).zip(&contrast);
        let mut records: Vec<LatentRecord> = each
            .map(|((latent, lists), contrast)| this.record(latent, lists, contrast, &details))
            .collect();
        for ((record, latent), logits) in records.iter_mut().zip(latents).zip(&mut logits) {
            record.logits = logits.take();
            record.neighbours.clone_from(&neighbours.decoder[latent]);
            record.coactive.clone_from(&neighbours.coactive[latent]);
            files.latent(record, |sentence| details.texts.get(&sentence))?;
            named.extend(sentences(record));
        }
        Ok(())
    }

    /// The lists of some latents; of sentences with nearly the same tokens the first is kept.
    fn lists(&self, latents: Range<usize>) -> Result<Vec<Lists>> {
        let pools = |latent: usize| self.tally.latents[latent].top.iter().flat_map(Pool::entries);
        let wanted = latents.clone().flat_map(pools).map(|entry| entry.sentence).collect();
        let shingles = detail::shingles(self.input, &wanted)?;
        let n = self.tally.choice.top_n;
        let lists = |latent: usize| {
            let tally = &self.tally.latents[latent];
            Lists {
                top: tally.top.each_ref().map(|pool| distinct(pool.entries(), n, &shingles)),
                even: tally.even.entries().to_vec(),
                importance: tally.importance.entries().to_vec(),
            }
        };
        Ok(latents.into_par_iter().map(lists).collect())
    }

    /// Strong sentences of the latents with the nearest decoder rows.
    fn contrast(&self, latent: usize, neighbours: &Neighbours) -> Vec<Contrast> {
        let (near, strongest, _) = CONTRAST;
        let of = |neighbour: u32| {
            let max = self.tally.latents[neighbour as usize].top[1].entries();
            let sentences = max.iter().take(strongest).map(|entry| entry.sentence);
            sentences.map(move |sentence| Contrast { latent: neighbour, sentence })
        };
        let mut seen = BTreeSet::new();
        let nearest = neighbours.decoder[latent].iter().take(near);
        nearest.flat_map(|n| of(n.latent)).filter(|c| seen.insert(c.sentence)).collect()
    }

    /// Which latents' activations are needed in which sentences: in those drawn from the run all.
    fn wanted(
        &self,
        latents: Range<usize>,
        lists: &[Lists],
        contrast: &[Vec<Contrast>],
    ) -> BTreeMap<u64, Vec<u32>> {
        let mut wanted: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let alive = |latent: &usize| self.tally.latents[*latent].fired > 0;
        for (i, latent) in latents.clone().enumerate().filter(|(_, latent)| alive(latent)) {
            let contrast = contrast[i].iter().map(|c| c.sentence);
            let sentences: BTreeSet<u64> = lists[i].all().chain(contrast).collect();
            for sentence in sentences {
                wanted.entry(sentence).or_default().push(latent as u32);
            }
        }
        let all: Vec<u32> = latents.filter(alive).map(|latent| latent as u32).collect();
        for entry in self.tally.drawn.entries() {
            wanted.insert(entry.sentence, all.clone());
        }
        wanted
    }

    fn record(
        &self,
        latent: usize,
        lists: &Lists,
        contrast: &[Contrast],
        details: &Details,
    ) -> LatentRecord {
        let (tally, rows) = (&self.tally.latents[latent], self.input.set.rows() as u64);
        let active = |sentence: u64| details.activations.get(&(latent as u32, sentence));
        let silent = |sentence: &u64| active(*sentence).is_none();
        let mut contrast: Vec<Contrast> =
            contrast.iter().filter(|c| silent(&c.sentence)).copied().collect();
        contrast.truncate(CONTRAST.2);
        let [mean, max, last] = lists.top.each_ref().map(|list| ranked(list));
        let activations = lists.all().filter_map(|s| Some((s, active(s)?.clone())));
        LatentRecord {
            latent: latent as u32,
            density: tally.fired as f64 / rows.max(1) as f64,
            fired: tally.fired,
            max: tally.max,
            weighted: self.tally.weighted(latent, rows),
            top: Top { mean, max, last },
            deciles: deciles(&lists.even),
            importance: ranked(&lists.importance),
            silent: self.silent(latent, silent),
            contrast,
            activations: activations.collect(),
            histogram: tally.histogram.clone(),
            ..LatentRecord::default()
        }
    }

    /// Some of the sentences drawn from the run in which a latent is silent, ascending; others for each.
    fn silent(&self, latent: usize, silent: impl Fn(&u64) -> bool) -> Vec<u64> {
        let drawn = self.tally.drawn.entries().iter().map(|entry| entry.sentence);
        let mut found: Vec<u64> = drawn.filter(silent).collect();
        found.sort_by_key(|s| (hash([self.tally.choice.seed, 3, latent as u64, *s]), *s));
        found.truncate(SILENT);
        found.sort_unstable();
        found
    }

    fn table(&self, line: Vec<u64>, sentence: Vec<u64>, sentence_line: Vec<u64>) -> Table {
        let (input, latents) = (self.input, &self.tally.latents);
        let rows = input.set.rows() as u64;
        Table {
            origin: Origin {
                schema: Origin::SCHEMA,
                training: input.training.run_id.clone(),
                capture: input.capture.run_id.clone(),
                rows,
                sentences: input.sentences(),
                top_n: self.tally.choice.top_n,
                digest: self.digest.clone(),
            },
            fired: latents.iter().map(|latent| latent.fired).collect(),
            weighted: (0..latents.len()).map(|l| self.tally.weighted(l, rows)).collect(),
            max: latents.iter().map(|latent| latent.max).collect(),
            line,
            sentence,
            sentence_line,
        }
    }
}

/// The sentences that a record names.
fn sentences(record: &LatentRecord) -> impl Iterator<Item = u64> + '_ {
    let Top { mean, max, last } = &record.top;
    let ranked = [mean, max, last, &record.importance].into_iter().chain(&record.deciles);
    let contrast = record.contrast.iter().map(|c| c.sentence);
    ranked.flatten().map(|r| r.sentence).chain(record.silent.iter().copied()).chain(contrast)
}

fn ranked(entries: &[Entry]) -> Vec<Ranked> {
    entries.iter().map(|e| Ranked { value: e.value, sentence: e.sentence }).collect()
}

/// The first `n` entries that do not resemble one before them.
fn distinct(entries: &[Entry], n: usize, shingles: &HashMap<u64, Shingles>) -> Vec<Entry> {
    let mut kept: Vec<Entry> = vec![];
    for entry in entries {
        if kept.len() == n {
            break;
        }
        let new = shingles.get(&entry.sentence);
        let alike = |old: &Entry| {
            new.zip(shingles.get(&old.sentence)).is_some_and(|(new, old)| new.resemble(old))
        };
        if !kept.iter().any(alike) {
            kept.push(*entry);
        }
    }
    kept
}

/// Evenly drawn sentences in groups of equal size by their value, weakest first; none if they are fewer
/// than the groups.
fn deciles(drawn: &[Entry]) -> Vec<Vec<Ranked>> {
    let size = drawn.len() / DECILES;
    if size == 0 {
        return vec![];
    }
    let mut sorted = ranked(&drawn[..size * DECILES]);
    sorted.sort_by(|a, b| a.value.total_cmp(&b.value).then(a.sentence.cmp(&b.sentence)));
    sorted.chunks(size).map(<[Ranked]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(n: u64) -> Vec<Entry> {
        let value = |sentence: u64| (sentence * 7 % 23) as f32;
        (0..n).map(|s| Entry { sentence: s, signature: s, rank: 0.0, value: value(s) }).collect()
    }

    #[test]
    fn deciles_ascend_and_are_equal_in_size() {
        assert!(deciles(&entries(9)).is_empty());
        for n in [10, 29, 50] {
            let found = deciles(&entries(n));
            assert_eq!(found.len(), DECILES);
            assert!(found.iter().all(|group| group.len() == n as usize / DECILES));
            assert!(found.concat().is_sorted_by(|a, b| a.value <= b.value));
        }
    }

    #[test]
    fn of_near_duplicates_the_first_is_kept() {
        let ids = |s: u64| (0..40).map(|i| (s * 1000 + i) as u32).collect::<Vec<_>>();
        let mut copy = ids(1);
        copy[20] = 7;
        let shingles =
            [(0, ids(0)), (1, ids(1)), (2, copy), (3, ids(3))].map(|(s, i)| (s, Shingles::of(&i)));
        let kept = |n| {
            let found = distinct(&entries(4), n, &HashMap::from(shingles.clone()));
            found.iter().map(|e| e.sentence).collect::<Vec<_>>()
        };
        assert_eq!(kept(9), [0, 1, 3]);
        assert_eq!(kept(2), [0, 1]);
    }
}
