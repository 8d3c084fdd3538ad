//! The second read: of the sentences that were chosen, and of no others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use rayon::prelude::*;

use super::{
    input::{Input, ids},
    part::Cuts,
    record::{Activations, SentenceRecord},
    signature::Shingles,
};
use crate::{shard::TokenFile, stage::Result};

/// What the YAML files say of a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    /// Index of its document in the dataset.
    pub document: u64,
    pub text: String,
}

/// What was read for some latents.
#[derive(Debug, Default)]
pub(super) struct Details {
    /// By sentence number.
    pub texts: HashMap<u64, Text>,
    /// By latent and sentence number, where the latent is active.
    pub activations: HashMap<(u32, u64), Activations>,
}

/// Where the active latents of all rows end, by the parts of the run.
pub(super) struct AllCuts(pub Vec<(usize, Cuts)>);

impl AllCuts {
    /// Those of rows of one shard.
    fn of(&self, rows: std::ops::Range<usize>) -> &[crate::sae::Cut] {
        let part = self.0.partition_point(|(first, _)| *first <= rows.start) - 1;
        let (first, cuts) = &self.0[part];
        &cuts.all()[rows.start - first..rows.end - first]
    }
}

/// The shingles of sentences.
pub(super) fn shingles(input: &Input, wanted: &BTreeSet<u64>) -> Result<HashMap<u64, Shingles>> {
    let mut found = HashMap::new();
    for shard in 0..input.set.shards() {
        let (first, end) = (input.starts[shard], input.starts[shard + 1]);
        let here: Vec<u64> = wanted.range(first..end).copied().collect();
        if !here.is_empty() {
            let tokens = input.tokens(shard)?;
            let of = |s: u64| (s, Shingles::of(&ids(&tokens, (s - first) as usize)));
            found.par_extend(here.into_par_iter().map(of));
        }
    }
    Ok(found)
}

/// The activations of latents, ascending, in sentences, and the texts of some of these.
pub(super) fn read(
    input: &Input,
    cuts: &AllCuts,
    wanted: &BTreeMap<u64, Vec<u32>>,
    texts: &HashSet<u64>,
) -> Result<Details> {
    let mut details = Details::default();
    for shard in 0..input.set.shards() {
        let (first, end) = (input.starts[shard], input.starts[shard + 1]);
        let here: Vec<_> = wanted.range(first..end).collect();
        if here.is_empty() {
            continue;
        }
        let tokens = input.tokens(shard)?;
        for (sentence, _) in here.iter().filter(|(sentence, _)| texts.contains(sentence)) {
            let local = (*sentence - first) as usize;
            let text = tokens.text(local).to_owned();
            details.texts.insert(**sentence, Text { document: tokens.document(local), text });
        }
        let found = here.into_par_iter().flat_map_iter(|(sentence, latents)| {
            let rows = tokens.sentence_rows((sentence - first) as usize);
            let base = input.set.first_row(shard);
            active_in(input, cuts, base + rows.start..base + rows.end, latents)
                .into_iter()
                .map(|(latent, activations)| ((latent, *sentence), activations))
        });
        details.activations.par_extend(found);
    }
    Ok(details)
}

/// Which of the latents are active in a sentence's rows, and how.
fn active_in(
    input: &Input,
    cuts: &AllCuts,
    rows: std::ops::Range<usize>,
    latents: &[u32],
) -> Vec<(u32, Activations)> {
    let dense = input.sae.encode_chosen(latents, &input.read(rows.clone()), cuts.of(rows));
    let mut found = vec![];
    for (i, latent) in latents.iter().enumerate() {
        let mut activations = Activations::default();
        for (at, value) in (0..).zip(dense.iter().skip(i).step_by(latents.len())) {
            if *value > 0.0 {
                activations.at.push(at);
                activations.value.push(*value);
            }
        }
        if !activations.at.is_empty() {
            found.push((*latent, activations));
        }
    }
    found
}

/// Hands on the records of sentences, ascending.
pub(super) fn sentences(
    input: &Input,
    wanted: &BTreeSet<u64>,
    mut write: impl FnMut(SentenceRecord) -> Result<()>,
) -> Result<()> {
    for shard in 0..input.set.shards() {
        let (first, end) = (input.starts[shard], input.starts[shard + 1]);
        let mut here = wanted.range(first..end).peekable();
        if here.peek().is_some() {
            let tokens = input.tokens(shard)?;
            for sentence in here {
                write(record(&tokens, *sentence, (sentence - first) as usize))?;
            }
        }
    }
    Ok(())
}

fn record(tokens: &TokenFile, sentence: u64, local: usize) -> SentenceRecord {
    let ends = tokens.sentence_rows(local).map(|row| tokens.token(row).offset[1] as usize);
    SentenceRecord {
        sentence,
        document: tokens.document(local),
        ids: ids(tokens, local),
        tokens: pieces(tokens.text(local), ends),
    }
}

/// Cuts a text behind each token; together the pieces are the text up to its last token.
///
/// Tokens that share a character (a byte-level tokenizer splits some) leave empty pieces behind
/// the one that shows it.
pub(crate) fn pieces(text: &str, ends: impl Iterator<Item = usize>) -> Vec<String> {
    let mut begin = 0;
    let piece = |end| {
        let end = text.floor_char_boundary(end).max(begin);
        text[std::mem::replace(&mut begin, end)..end].to_owned()
    };
    ends.map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_rebuild_the_text_whatever_the_offsets() {
        let pieces = |text: &str, ends: &[usize]| pieces(text, ends.iter().copied());
        assert_eq!(pieces("a dog", &[1, 5]), ["a", " dog"]);
        assert_eq!(pieces("żó", &[1, 2, 4]), ["", "ż", "ó"]);
        assert_eq!(pieces("ab", &[2, 1, 9]), ["ab", "", ""]);
    }
}
