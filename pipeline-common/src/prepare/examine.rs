//! A sample of documents as tokens: figures over all of it, and the first few documents in full.

use super::histogram::Histogram;
use crate::{
    stage::Result,
    text::{
        Contexts, Document, Tokenizer, Uncut,
        rows::{Choice, TokenRows},
    },
};

/// Documents that are shown.
const SHOWN: usize = 8;

/// Contexts of a document that are shown, tokens of a context, and characters of a text.
const SHOWN_CONTEXTS: usize = 8;
const SHOWN_TOKENS: usize = 200;
const SHOWN_CHARACTERS: usize = 2000;

/// What becomes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It gets a row.
    Kept,
    /// Special, and it gets a row.
    KeptSpecial,
    /// Special: the model sees it, and it gets no row.
    Dropped,
    /// Among the first positions: the model sees it, and it gets no row.
    First,
    /// Beyond MAX_LENGTH: the model does not see it.
    Cut,
}

impl Fate {
    /// As the reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "row",
            Self::KeptSpecial => "special, row",
            Self::Dropped => "special, no row",
            Self::First => "first, no row",
            Self::Cut => "cut off",
        }
    }

    /// As the page's styles call it.
    pub fn class(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::KeptSpecial => "kept special",
            Self::Dropped => "special",
            Self::First => "first",
            Self::Cut => "cut",
        }
    }
}

/// A token of a context that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownToken {
    /// Its id.
    pub id: u32,
    /// As the vocabulary spells it.
    pub piece: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Whether it stands for something that the vocabulary does not have.
    pub unknown: bool,
}

/// A context in full, but for what is too long to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownContext {
    /// Its text.
    pub text: String,
    /// Characters of it that are not shown.
    pub more_text: usize,
    /// Its tokens.
    pub tokens: Vec<ShownToken>,
    /// Tokens that are not shown.
    pub more_tokens: usize,
    /// Tokens, and those that get a row.
    pub length: usize,
    /// Tokens that get a row.
    pub rows: usize,
}

/// A document in full, but for what is too long to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownDocument {
    /// Its number in the dataset.
    pub index: u64,
    /// Its contexts.
    pub contexts: Vec<ShownContext>,
    /// Contexts that are not shown.
    pub more_contexts: usize,
}

/// What the sample tells.
#[derive(Clone, Debug, Default)]
pub struct Examination {
    /// Documents in the sample, and those without text.
    pub documents: usize,
    /// Documents without text.
    pub empty: usize,
    /// Tokens of each context that has text, special ones included, in ascending order.
    pub lengths: Vec<u64>,
    /// Contexts longer than MAX_LENGTH.
    pub truncated: usize,
    /// Tokens beyond it.
    pub cut_tokens: u64,
    /// Special tokens within it.
    pub special_tokens: u64,
    /// Tokens that stand for something unknown.
    pub unknown_tokens: u64,
    /// Tokens that get a row.
    pub rows: u64,
    /// The first documents of the sample.
    pub shown: Vec<ShownDocument>,
}

impl Examination {
    /// Tokenises a sample of rendered documents.
    ///
    /// # Errors
    /// A tokenizer that refuses a text, or MAX_LENGTH without room for any.
    pub fn of(
        sample: &[Document],
        contexts: &Contexts,
        tokenizer: &Tokenizer,
        max_length: u32,
        rows: TokenRows,
    ) -> Result<Self> {
        let mut this = Self::default();
        let eye =
            Eye { tokenizer, unknown: tokenizer.unknown(), max_length: max_length as usize, rows };
        for document in sample {
            let mut shown =
                ShownDocument { index: document.index, contexts: vec![], more_contexts: 0 };
            for text in contexts.split(&document.text) {
                let seen = eye.look(text)?;
                this.count(&seen);
                if shown.contexts.len() < SHOWN_CONTEXTS {
                    shown.contexts.push(eye.show(text, &seen));
                } else {
                    shown.more_contexts += 1;
                }
            }
            this.documents += 1;
            this.empty += usize::from(document.text.trim().is_empty());
            if this.shown.len() < SHOWN {
                this.shown.push(shown);
            }
        }
        this.lengths.sort_unstable();
        Ok(this)
    }

    fn count(&mut self, seen: &Seen) {
        let has = |fate| seen.fates.iter().filter(|f| **f == fate).count() as u64;
        // The capture leaves out what has no text.
        if !seen.uncut.encoding.special.contains(&false) {
            return;
        }
        let cut = has(Fate::Cut);
        self.lengths.push(seen.fates.len() as u64);
        self.truncated += usize::from(cut > 0);
        self.cut_tokens += cut;
        self.special_tokens += has(Fate::Dropped) + has(Fate::KeptSpecial);
        self.rows += has(Fate::Kept) + has(Fate::KeptSpecial);
        self.unknown_tokens += seen.unknown.iter().filter(|unknown| **unknown).count() as u64;
    }

    /// All tokens.
    pub fn tokens(&self) -> u64 {
        self.lengths.iter().sum()
    }

    /// The length below which this share of the contexts is; 0 if there is none.
    pub fn quantile(&self, share: f64) -> u64 {
        let last = self.lengths.len().saturating_sub(1) as f64;
        self.lengths.get((share * last).round() as usize).copied().unwrap_or(0)
    }

    /// The lengths in bins.
    pub fn histogram(&self) -> Histogram {
        Histogram::of(&self.lengths)
    }
}

/// A context as tokens.
struct Seen {
    uncut: Uncut,
    fates: Vec<Fate>,
    unknown: Vec<bool>,
}

struct Eye<'a> {
    tokenizer: &'a Tokenizer,
    unknown: Option<u32>,
    max_length: usize,
    rows: TokenRows,
}

impl Eye<'_> {
    fn look(&self, text: &str) -> Result<Seen> {
        let uncut = self.tokenizer.encode_uncut(text, self.max_length)?;
        let choices = self.rows.of_sentence(&uncut.encoding);
        let fate = |(i, choice): (usize, Choice)| match choice {
            _ if uncut.left_out.contains(&i) => Fate::Cut,
            Choice::Row if uncut.encoding.special[i] => Fate::KeptSpecial,
            Choice::Row => Fate::Kept,
            Choice::Special => Fate::Dropped,
            Choice::First => Fate::First,
        };
        let fates = choices.into_iter().enumerate().map(fate).collect();
        let unknown = uncut.encoding.ids.iter().map(|id| Some(*id) == self.unknown).collect();
        Ok(Seen { uncut, fates, unknown })
    }

    fn show(&self, text: &str, seen: &Seen) -> ShownContext {
        let length = seen.fates.len();
        let token = |i: usize| {
            let id = seen.uncut.encoding.ids[i];
            let piece = self.tokenizer.piece(id).unwrap_or_default();
            ShownToken { id, piece, fate: seen.fates[i], unknown: seen.unknown[i] }
        };
        let has_row = |fate: &&Fate| matches!(fate, Fate::Kept | Fate::KeptSpecial);
        ShownContext {
            text: text.chars().take(SHOWN_CHARACTERS).collect(),
            more_text: text.chars().count().saturating_sub(SHOWN_CHARACTERS),
            tokens: (0..length.min(SHOWN_TOKENS)).map(token).collect(),
            more_tokens: length.saturating_sub(SHOWN_TOKENS),
            length,
            rows: seen.fates.iter().filter(has_row).count(),
        }
    }
}
