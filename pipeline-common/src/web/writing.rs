//! A continuation's text, token by token.

use crate::{stage::Result, text::Tokenizer};

/// Tokens before the continuation, so that its first is spelt as within a text.
const BEFORE: usize = 6;

/// A continuation while it grows.
pub(super) struct Writing<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    /// The end of the prompt, then the continuation.
    ids: Vec<u32>,
    /// What is shown begins behind the tokens before `shown`; they are spelt from `from` on.
    from: usize,
    shown: usize,
    pub text: String,
}

impl<'a> Writing<'a> {
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stop: &'a [String]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        let shown = ids.len();
        Self { tokenizer, stop, ids, from: 0, shown, text: String::new() }
    }

    /// Adds a token: the text that it adds, and whether a stop string is complete with it.
    pub fn push(&mut self, id: u32) -> Result<(String, bool)> {
        self.ids.push(id);
        let text = self.new_text()?;
        // A character whose other bytes are to come.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok((String::new(), false));
        }
        Ok(self.show(&text))
    }

    /// The text of a character that stays incomplete.
    pub fn finish(&mut self) -> Result<()> {
        let text = self.new_text()?;
        self.show(&text);
        Ok(())
    }

    fn new_text(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.from..self.shown])?;
        let all = self.tokenizer.decode(&self.ids[self.from..])?;
        let same = before.chars().zip(all.chars()).take_while(|(a, b)| a == b);
        let begin: usize = same.map(|(c, _)| c.len_utf8()).sum();
        Ok(all[begin..].to_owned())
    }

    fn show(&mut self, text: &str) -> (String, bool) {
        (self.from, self.shown) = (self.shown, self.ids.len());
        let begin = self.text.len();
        self.text += text;
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let look = self.text.floor_char_boundary(begin.saturating_sub(longest));
        let found = self.stop.iter().filter_map(|stop| self.text[look..].find(stop.as_str())).min();
        if let Some(place) = found {
            self.text.truncate(look + place);
        }
        let added = self.text.get(begin..).unwrap_or_default().to_owned();
        (added, found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/demo/model");
        Tokenizer::load(Path::new(demo)).unwrap()
    }

    fn write(text: &str, stop: &[String]) -> (Vec<String>, String, bool) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode_uncut(text, usize::MAX).unwrap().encoding.ids;
        let mut writing = Writing::new(&tokenizer, &[], stop);
        let (mut parts, mut stopped) = (vec![], false);
        for id in ids.into_iter().filter(|id| !tokenizer.is_special(*id)) {
            let (part, stops) = writing.push(id).unwrap();
            parts.push(part);
            stopped = stops;
            if stopped {
                break;
            }
        }
        writing.finish().unwrap();
        (parts, writing.text.clone(), stopped)
    }

    #[test]
    fn parts_make_the_text_whatever_its_characters() {
        for text in ["The old house, by the sea.", "zażółć 🦀 gęślą", "a  b\n\nc"] {
            let (parts, whole, stopped) = write(text, &[]);
            assert_eq!(parts.concat(), whole);
            assert_eq!(whole.trim_start(), text);
            assert!(!stopped);
        }
    }

    #[test]
    fn a_stop_string_and_what_follows_is_cut_off() {
        let stop = ["use,".to_owned(), "nothing".to_owned()];
        let (parts, whole, stopped) = write("The old house, by the sea.", &stop);
        assert_eq!(whole.trim_start(), "The old ho");
        assert!(stopped && parts.len() < 12);
    }
}
