//! The tokenisation report, as text and as one page that opens from disk without a network.

use askama::Template;

use super::examine::{Examination, ShownContext, ShownDocument};
use crate::stage::progress::thousands;

/// The reports' names in a run's directory.
pub const TEXT: &str = "tokenisation.txt";
/// See [`TEXT`].
pub const PAGE: &str = "tokenisation.html";

/// Drawing area of the histogram, in its own units.
const WIDE: f64 = 640.0;
const HIGH: f64 = 160.0;

/// Columns of the histogram's bars in text.
const BAR: u64 = 50;

/// Whether something is as it should be, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// False for a warning.
    pub ok: bool,
    /// What was found.
    pub said: String,
}

impl Check {
    /// A finding, which is a warning unless `ok`.
    pub fn new(ok: bool, said: impl Into<String>) -> Self {
        Self { ok, said: said.into() }
    }
}

/// Everything that the report says.
#[derive(Debug, Template)]
#[template(path = "tokenisation.html")]
pub struct Report {
    /// The run's name.
    pub title: String,
    /// Names and values: model, dataset, settings.
    pub facts: Vec<(&'static str, String)>,
    /// What was looked after.
    pub checks: Vec<Check>,
    /// What a context is called, in the plural: documents or sentences.
    pub unit: &'static str,
    /// MAX_LENGTH.
    pub max_length: u64,
    /// The sample.
    pub sample: Examination,
}

/// A bar of the histogram, in the drawing's units.
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    title: String,
}

impl Report {
    /// The report as plain text.
    pub fn text(&self) -> String {
        let mut out = format!("Tokenisation of run {}\n", self.title);
        out += &section("What was tokenised", &pairs(&self.facts));
        let check =
            |c: &Check| format!("{}  {}\n", if c.ok { "ok     " } else { "warning" }, c.said);
        out += &section("Checks", &self.checks.iter().map(check).collect::<String>());
        out += &section(
            &format!("Figures of {} sampled documents", thousands(self.sample.documents as u64)),
            &pairs(&self.figures()),
        );
        out += &section(&format!("Tokens in {}", self.unit), &self.text_histogram());
        for document in &self.sample.shown {
            out += &section(&self.heading(document), &text_document(document));
        }
        out
    }

    /// Names and values of the sample's figures.
    fn figures(&self) -> Vec<(&'static str, String)> {
        let s = &self.sample;
        let contexts = s.lengths.len() as u64;
        let tokens = s.tokens();
        let fed = tokens - s.cut_tokens;
        let of = |n: u64, all: u64| format!("{} ({})", thousands(n), percent(n, all));
        vec![
            ("with text", format!("{} {}", thousands(contexts), self.unit)),
            ("empty documents", of(s.empty as u64, s.documents as u64)),
            (
                "truncated",
                format!("{}, longer than {}", of(s.truncated as u64, contexts), self.max_length),
            ),
            ("tokens", thousands(tokens)),
            ("tokens cut off", of(s.cut_tokens, tokens)),
            ("tokens the model sees", thousands(fed)),
            ("special tokens", of(s.special_tokens, fed)),
            ("unknown tokens", of(s.unknown_tokens, tokens)),
            ("rows", of(s.rows, fed)),
            ("length", self.lengths()),
        ]
    }

    fn lengths(&self) -> String {
        let s = &self.sample;
        let mean = s.tokens() as f64 / s.lengths.len().max(1) as f64;
        let [shortest, median, most, longest] =
            [0.0, 0.5, 0.95, 1.0].map(|q| thousands(s.quantile(q)));
        format!(
            "{shortest} to {longest} tokens, mean {mean:.1}, median {median}, 95 % up to {most}"
        )
    }

    fn text_histogram(&self) -> String {
        let histogram = self.sample.histogram();
        let most = histogram.most().max(1);
        let line = |(i, n): (usize, &u64)| {
            let (from, to) = (i as u64 * histogram.width + 1, (i as u64 + 1) * histogram.width);
            let bar = "#".repeat((n * BAR).div_ceil(most) as usize);
            let limit = if (from..=to).contains(&self.max_length) { "  <- MAX_LENGTH" } else { "" };
            format!("{from:>6} - {to:<6} {n:>7}  {bar}{limit}\n")
        };
        histogram.counts.iter().enumerate().map(line).collect()
    }

    fn heading(&self, document: &ShownDocument) -> String {
        let n = document.contexts.len() + document.more_contexts;
        match self.unit {
            "documents" => format!("Document {}", document.index),
            _ if n == 1 => format!("Document {}: 1 sentence", document.index),
            unit => format!("Document {}: {n} {unit}", document.index),
        }
    }

    /// Lengths to the drawing's edge: the bins, and MAX_LENGTH if that is not far beyond them.
    fn edge(&self) -> f64 {
        let histogram = self.sample.histogram();
        let end = histogram.width * histogram.counts.len() as u64;
        if self.max_length <= 2 * end { end.max(self.max_length) as f64 } else { end as f64 }
    }

    fn x(&self, length: u64) -> f64 {
        length as f64 / self.edge() * WIDE
    }

    /// Where MAX_LENGTH is, if it is in the drawing.
    fn limit(&self) -> Option<f64> {
        Some(self.x(self.max_length)).filter(|x| *x <= WIDE)
    }

    fn bars(&self) -> Vec<Bar> {
        let histogram = self.sample.histogram();
        let most = histogram.most().max(1) as f64;
        let bar = |(i, n): (usize, &u64)| {
            let (from, to) = (i as u64 * histogram.width, (i as u64 + 1) * histogram.width);
            let height = *n as f64 / most * HIGH;
            let title = format!("{} {} of {} to {to} tokens", thousands(*n), self.unit, from + 1);
            let (x, width) = (self.x(from) + 0.5, (self.x(to) - self.x(from) - 1.0).max(0.5));
            Bar { x, y: HIGH - height, width, height, title }
        };
        histogram.counts.iter().enumerate().map(bar).collect()
    }

    /// Places and labels of the horizontal axis.
    fn ticks(&self) -> Vec<(f64, String)> {
        let histogram = self.sample.histogram();
        let step = histogram.width * (histogram.counts.len() as u64).div_ceil(6).max(1);
        (0..)
            .map(|i| i * step)
            .take_while(|at| self.x(*at) <= WIDE)
            .map(|at| (self.x(at), thousands(at)))
            .collect()
    }
}

/// `n` of `all` in percent, as exact as is worth reading.
fn percent(n: u64, all: u64) -> String {
    let share = 100.0 * n as f64 / all.max(1) as f64;
    match share {
        0.0 => "0 %".into(),
        s if s < 0.1 => format!("{s:.3} %"),
        s => format!("{s:.1} %"),
    }
}

fn section(title: &str, body: &str) -> String {
    format!("\n{title}\n{}\n{body}", "-".repeat(title.chars().count()))
}

fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

fn text_document(document: &ShownDocument) -> String {
    let mut out: String = document.contexts.iter().map(text_context).collect();
    if document.more_contexts > 0 {
        out += &format!("... and {} more\n", document.more_contexts);
    }
    if out.is_empty() { "without text\n".into() } else { out }
}

/// The text in quotes, with line feeds and the like spelt out, and a line per token.
fn text_context(context: &ShownContext) -> String {
    let mut out = format!("text    {:?}\n", context.text);
    if context.more_text > 0 {
        out += &format!("        ... and {} more characters\n", context.more_text);
    }
    out += &format!("tokens  {}, of which {} get a row\n", context.length, context.rows);
    for (i, token) in context.tokens.iter().enumerate() {
        let unknown = if token.unknown { ", unknown" } else { "" };
        let piece = format!("{:?}", token.piece);
        out += &format!("{i:>6} {:>8}  {piece:<24} {}{unknown}\n", token.id, token.fate.name());
    }
    if context.more_tokens > 0 {
        out += &format!("        ... and {} more tokens\n", context.more_tokens);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::examine::{Fate, ShownToken};

    fn report() -> Report {
        let token =
            |id, piece: &str, fate| ShownToken { id, piece: piece.into(), fate, unknown: id == 9 };
        let context = ShownContext {
            text: "</pre><b>\n".into(),
            more_text: 4,
            tokens: vec![
                token(1, "<s>", Fate::Dropped),
                token(9, "</pre>", Fate::Kept),
                token(3, "x", Fate::Cut),
            ],
            more_tokens: 7,
            length: 10,
            rows: 1,
        };
        let shown = vec![ShownDocument { index: 5, contexts: vec![context], more_contexts: 2 }];
        let sample = Examination {
            documents: 3,
            empty: 1,
            lengths: vec![4, 10],
            truncated: 1,
            cut_tokens: 2,
            special_tokens: 3,
            unknown_tokens: 1,
            rows: 9,
            shown,
        };
        let checks = vec![Check::new(true, "fine"), Check::new(false, "a <doubt>")];
        let facts = vec![("model", "a<b".to_owned())];
        Report { title: "r".into(), facts, checks, unit: "sentences", max_length: 8, sample }
    }

    #[test]
    fn the_text_says_what_becomes_of_each_token() {
        let text = report().text();
        for words in [
            "warning  a <doubt>",
            "empty documents        1 (33.3 %)",
            "truncated              1 (50.0 %), longer than 8",
            "tokens cut off         2 (14.3 %)",
            "rows                   9 (75.0 %)",
            "Document 5: 3 sentences",
            r#"text    "</pre><b>\n""#,
            r#"     0        1  "<s>"                    special, no row"#,
            r#"     1        9  "</pre>"                 row, unknown"#,
            "cut off",
            "... and 7 more tokens",
            "<- MAX_LENGTH",
        ] {
            assert!(text.contains(words), "`{words}` is missing from\n{text}");
        }
    }

    #[test]
    fn no_text_can_leave_its_place_on_the_page() {
        let page = report().render().unwrap();
        assert!(!page.contains("</pre><b>") && !page.contains("a<b") && !page.contains("<doubt>"));
        assert!(!page.contains("http://") && !page.contains("https://"), "no network");
        assert_eq!(page.matches("class=\"bar\"").count(), 10);
        assert_eq!(page.matches("class=\"limit\"").count(), 1);
    }
}
