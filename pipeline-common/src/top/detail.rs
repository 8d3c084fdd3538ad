//! The second read: tokens and activations of the sentences that were selected, and of no others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use serde::Serialize;

use super::{input::Input, tally::Tally};
use crate::{sae::encode::Encoder, shard::TokenFile, stage::Result};

/// A selected sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sentence {
    /// Index of its document in the dataset.
    pub document: u64,
    /// Its whole text.
    pub text: String,
    /// Its text cut into the pieces of its rows' tokens; what lies before a token and belongs to
    /// no row (a dropped special token) is part of the piece after it.
    pub tokens: Vec<String>,
}

/// A latent's activations on the tokens of a sentence, `[rows]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Activations(pub Vec<f32>);

/// What was read for some latents.
#[derive(Debug, Default)]
pub struct Details {
    /// By sentence number.
    pub sentences: HashMap<u64, Sentence>,
    /// By latent and sentence number.
    pub activations: HashMap<(u32, u64), Activations>,
}

/// Reads the best sentences of `latents`.
pub(super) fn read(input: &Input, tally: &Tally, latents: Range<usize>) -> Result<Details> {
    let mut wanted: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for latent in latents {
        for best in &tally.latents()[latent].best {
            for scored in best.entries() {
                wanted.entry(scored.sentence).or_default().insert(latent as u32);
            }
        }
    }
    let (mut details, mut encoder) = (Details::default(), input.sae.encoder());
    for shard in 0..input.set.shards() {
        let sentences = input.starts[shard]..input.starts[shard + 1];
        let in_shard: Vec<_> = wanted.range(sentences).collect();
        if !in_shard.is_empty() {
            read_shard((input, &mut encoder), shard, &in_shard, &mut details)?;
        }
    }
    Ok(details)
}

fn read_shard(
    (input, encoder): (&Input, &mut Encoder),
    shard: usize,
    wanted: &[(&u64, &BTreeSet<u32>)],
    details: &mut Details,
) -> Result<()> {
    let tokens = input.tokens(shard)?;
    let local = |sentence: u64| (sentence - input.starts[shard]) as usize;
    let mut rest = wanted;
    while !rest.is_empty() {
        let mut rows = 0;
        let fits = rest.iter().take_while(|(sentence, _)| {
            rows += tokens.sentence_rows(local(**sentence)).len();
            rows <= input.chunk_rows()
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        rest = later;
        let first = input.set.first_row(shard);
        let ranges: Vec<_> = now
            .iter()
            .map(|(sentence, _)| {
                let rows = tokens.sentence_rows(local(**sentence));
                first + rows.start..first + rows.end
            })
            .collect();
        let active = input.encode(encoder, &ranges);
        let mut row = 0;
        for ((sentence, latents), range) in now.iter().zip(&ranges) {
            for &latent in *latents {
                let at = |row| {
                    let (index, value) = active.row(row);
                    index.binary_search(&latent).map_or(0.0, |i| value[i])
                };
                let values = (row..row + range.len()).map(at).collect();
                details.activations.insert((latent, **sentence), Activations(values));
            }
            details.sentences.insert(**sentence, sentence_of(&tokens, local(**sentence)));
            row += range.len();
        }
    }
    Ok(())
}

fn sentence_of(tokens: &TokenFile, sentence: usize) -> Sentence {
    let text = tokens.text(sentence);
    let offsets: Vec<[u32; 2]> =
        tokens.sentence_rows(sentence).map(|row| tokens.token(row).offset).collect();
    Sentence {
        document: tokens.document(sentence),
        text: text.to_owned(),
        tokens: pieces(text, &offsets),
    }
}

/// Cuts a text behind each token; together the pieces are the text up to its last token.
///
/// Tokens that share a character (a byte-level tokenizer splits some) leave empty pieces behind
/// the one that shows it.
fn pieces(text: &str, offsets: &[[u32; 2]]) -> Vec<String> {
    let mut begin = 0;
    let mut out = Vec::with_capacity(offsets.len());
    for [_, end] in offsets {
        let end = text.floor_char_boundary(*end as usize).max(begin);
        out.push(text[begin..end].to_owned());
        begin = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_rebuild_the_text_whatever_the_offsets() {
        assert_eq!(pieces("a dog", &[[0, 1], [2, 5]]), ["a", " dog"]);
        assert_eq!(pieces("żó", &[[0, 1], [0, 2], [2, 4]]), ["", "ż", "ó"]);
        assert_eq!(pieces("ab", &[[0, 2], [0, 1], [5, 9]]), ["ab", "", ""]);
    }
}
