//! Which tokens of a sentence get rows, as far as the tokens alone decide it.

use clap::{Args, builder::BoolishValueParser};

use super::Encoding;
use crate::stage::{Failure, Result};

/// Options that choose tokens.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Rows")]
pub struct RowArgs {
    /// Keep rows of BOS and other special tokens
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub keep_special: bool,
    /// Keep the row of BOS, the special token that the tokenizer puts first, even where others are dropped
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub keep_bos: bool,
    /// Drop the first positions of every sentence, as the model saw it: BOS counts
    #[arg(long, env, default_value_t = 0, value_name = "K")]
    pub drop_first: u32,
}

impl RowArgs {
    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// A usage failure naming both.
    pub fn check(&self) -> Result<()> {
        if self.drop_first > 0 && (self.keep_bos || self.keep_special) {
            let keep = if self.keep_bos { "KEEP_BOS" } else { "KEEP_SPECIAL" };
            return Err(Failure::usage(format!(
                "{keep}=1 keeps BOS, which DROP_FIRST={} drops",
                self.drop_first
            ))
            .hint("give one of the two"));
        }
        Ok(())
    }

    /// The choice that these options make.
    pub fn choice(&self) -> TokenRows {
        TokenRows {
            special: self.keep_special,
            bos: self.keep_special || self.keep_bos,
            first: self.drop_first as usize,
        }
    }
}

/// Chooses tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenRows {
    /// Whether special tokens have rows.
    pub special: bool,
    /// Whether BOS has one.
    pub bos: bool,
    /// Positions without rows at the beginning.
    pub first: usize,
}

/// What is chosen for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A row.
    Row,
    /// None, since it is special.
    Special,
    /// None, since it is among the first.
    First,
}

impl TokenRows {
    /// The choice for each token of a sentence.
    pub fn of_sentence(&self, sentence: &Encoding) -> Vec<Choice> {
        let choose = |(i, &special): (usize, &bool)| {
            // What the tokenizer added has no place in the text.
            let added = sentence.offsets[i].0 == sentence.offsets[i].1;
            let bos = i == 0 && special && added;
            match !special || self.special || (bos && self.bos) {
                false => Choice::Special,
                true if i < self.first => Choice::First,
                true => Choice::Row,
            }
        };
        sentence.special.iter().enumerate().map(choose).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_bos_and_first_positions() {
        let sentence = Encoding {
            ids: vec![1, 7, 8, 2, 9],
            special: vec![true, false, false, true, false],
            offsets: vec![(0, 0), (0, 1), (1, 2), (2, 5), (5, 6)],
        };
        let choose = |special, bos, first| {
            let letter = |choice: &Choice| match choice {
                Choice::Row => 'r',
                Choice::Special => 's',
                Choice::First => 'f',
            };
            let rows = TokenRows { special, bos, first };
            rows.of_sentence(&sentence).iter().map(letter).collect::<String>()
        };
        assert_eq!(choose(false, false, 0), "srrsr");
        assert_eq!(choose(false, true, 0), "rrrsr");
        assert_eq!(choose(true, true, 0), "rrrrr");
        assert_eq!(choose(false, false, 2), "sfrsr");
        assert_eq!(choose(false, false, 9), "sffsf");
    }
}
