//! What tokens cost, in US dollars.

use serde::{Deserialize, Serialize};

use super::{
    ledger::Usage,
    question::{Asking, Question},
};

/// List prices of models: dollars for a million tokens read and written, not in a batch. They change;
/// PRICE_INPUT and PRICE_OUTPUT go before them.
const LIST: [(&str, f64, f64); 19] = [
    ("claude-3-haiku", 0.25, 1.25),
    ("claude-3-5-haiku", 0.8, 4.0),
    ("claude-haiku-4-5", 1.0, 5.0),
    ("claude-3-7-sonnet", 3.0, 15.0),
    ("claude-sonnet-4", 3.0, 15.0),
    ("claude-sonnet-4-5", 3.0, 15.0),
    ("claude-opus-4", 15.0, 75.0),
    ("claude-opus-4-1", 15.0, 75.0),
    ("claude-opus-4-5", 5.0, 25.0),
    ("gpt-4o", 2.5, 10.0),
    ("gpt-4o-mini", 0.15, 0.6),
    ("gpt-4.1", 2.0, 8.0),
    ("gpt-4.1-mini", 0.4, 1.6),
    ("gpt-4.1-nano", 0.1, 0.4),
    ("gpt-5", 1.25, 10.0),
    ("gpt-5-mini", 0.25, 2.0),
    ("gpt-5-nano", 0.05, 0.4),
    ("o3", 2.0, 8.0),
    ("o4-mini", 1.1, 4.4),
];

/// Bytes of text that a token has, about, in European languages.
const BYTES_A_TOKEN: f64 = 4.0;
/// Bytes that a token has at least, on average over a request, whatever the language.
const FEWEST_BYTES_A_TOKEN: f64 = 1.5;
/// Tokens that the provider adds to a request: roles, the schema as a tool.
const FRAME: f64 = 400.0;
/// Tokens that an answer has, about.
const EXPECTED_ANSWER: f64 = 90.0;

/// Dollars for a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Price {
    pub input: f64,
    pub output: f64,
}

impl Price {
    /// The list price of a model, half of it in a batch.
    pub fn listed(model: &str, batch: bool) -> Option<Self> {
        let (_, input, output) = LIST.iter().find(|(name, ..)| is_version_of(model, name))?;
        let share = if batch { 0.5 } else { 1.0 };
        Some(Self { input: input * share, output: output * share })
    }

    /// Whether nothing costs anything.
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// What tokens cost.
    pub fn of(&self, usage: Usage) -> f64 {
        self.dollars(usage.input as f64, usage.output as f64)
    }

    /// What a question may cost: more tokens than its text can well have, and the longest answer.
    pub fn at_most(&self, question: &Question, asking: &Asking) -> f64 {
        let input = question.bytes() as f64 / FEWEST_BYTES_A_TOKEN + FRAME;
        self.dollars(input, asking.answer_tokens.into())
    }

    fn dollars(&self, input: f64, output: f64) -> f64 {
        (input * self.input + output * self.output) / 1e6
    }
}

/// Whether a model is the one of that name or a dated version of it, and not a sibling of another price.
fn is_version_of(model: &str, name: &str) -> bool {
    let Some(rest) = model.strip_prefix(name) else { return false };
    let date = |rest: &str| {
        let digits = rest.bytes().filter(u8::is_ascii_digit).count();
        digits == 8 && rest.bytes().all(|b| b.is_ascii_digit() || b == b'-')
    };
    rest.is_empty() || rest.strip_prefix('-').is_some_and(|rest| rest == "latest" || date(rest))
}

/// Tokens that a question and its answer have, about.
pub(super) fn expected(question: &Question, asking: &Asking) -> Usage {
    let output = EXPECTED_ANSWER.min(asking.answer_tokens.into());
    Usage { input: (question.bytes() as f64 / BYTES_A_TOKEN) as u64, output: output as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_without_its_date_decides_and_batches_cost_half() {
        let price = |model, batch| Price::listed(model, batch).map(|p| (p.input, p.output));
        assert_eq!(price("gpt-4o-mini-2024-07-18", false), Some((0.15, 0.6)));
        assert_eq!(price("gpt-4o-2024-08-06", true), Some((1.25, 5.0)));
        assert_eq!(price("claude-haiku-4-5-20251001", true), Some((0.5, 2.5)));
        assert_eq!(price("claude-3-5-haiku-latest", false), Some((0.8, 4.0)));
        for unknown in ["llama3.2:3b", "gpt-4o-audio-preview", "gpt-5-pro", "o3-pro", "o3x"] {
            assert_eq!(price(unknown, false), None, "{unknown}");
        }
        let usage = Usage { input: 2_000_000, output: 500_000 };
        assert_eq!(Price { input: 1.0, output: 4.0 }.of(usage), 4.0);
    }
}
