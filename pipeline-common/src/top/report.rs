//! `report.html`: the figures and sentences as one page that opens from disk without a network.
//!
//! The page is `templates/report.html` with the data as JSON in it; its script renders only what
//! is looked at. Activations are one character per token, 64 steps up to the latent's maximum:
//! more than an eye can tell apart, and small enough for ten thousand latents.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use askama::Template;
use serde::Serialize;

use super::{
    data::{REPORT, Table, TopData},
    input::Input,
    named,
    record::{Activations, LatentRecord, Ranked},
};
use crate::{
    sae::history::Record,
    stage::{Result, atomic, progress::thousands},
};

/// Latents shown at most, by weighted activation: a browser holds no more than this.
pub const MAX_LATENTS: usize = 16_384;

/// Steps of an activation, as characters that are plain in JSON and HTML.
const LEVELS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

/// Who made the report, from what.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Origin {
    /// Title of the page.
    pub title: String,
    /// Names and values, in the order shown: run, model, hook, dataset, version.
    pub facts: Vec<(&'static str, String)>,
    /// Names and values of the training curves: `[points][step, value]`.
    pub curves: Vec<(&'static str, Vec<(u64, f64)>)>,
}

impl Origin {
    /// The training, the capture that was read, and how the training went.
    pub(super) fn of(input: &Input) -> Self {
        let (training, capture) = (&input.training, &input.capture);
        let facts = vec![
            ("training run", training.run_id.clone()),
            ("capture run", capture.run_id.clone()),
            ("model", format!("{} ({})", capture.model.id, capture.model.revision)),
            ("hook", training.hook.clone()),
            ("dataset", capture.dataset.source.clone()),
            ("documents", thousands(capture.dataset.documents)),
            ("SAE", format!("{}, d_in {}", input.sae.activation, input.sae.params.d_in)),
            ("held-out FVU", format!("{:.4}", training.validation.fvu)),
            ("made by", concat!("slurm-sae-pipeline ", env!("CARGO_PKG_VERSION")).to_owned()),
        ];
        type Curve = (&'static str, fn(&Record) -> f64);
        let curves: [Curve; 6] = [
            ("MSE", |r| r.mse),
            ("FVU", |r| r.fvu),
            ("L0", |r| r.l0),
            ("auxiliary loss", |r| r.aux),
            ("learning rate", |r| r.lr),
            ("dead fraction", |r| r.dead_fraction),
        ];
        let points = |of: fn(&Record) -> f64| thinned(&input.history, of);
        Self {
            title: format!("Latents of {}", training.run_id),
            facts,
            curves: curves.map(|(name, of)| (name, points(of))).into(),
        }
    }
}

/// At most about a thousand points of a curve; a figure that is no number is left out.
fn thinned(history: &[Record], of: fn(&Record) -> f64) -> Vec<(u64, f64)> {
    let every = history.len().div_ceil(1000).max(1);
    let points = history.iter().step_by(every).map(|r| (r.step, of(r)));
    points.filter(|(_, value)| value.is_finite()).collect()
}

/// Writes the page of the results in a directory.
///
/// # Errors
/// Damaged results; a file that cannot be written.
pub(super) fn write(dir: &Path, origin: Origin, data: &TopData) -> Result<()> {
    let mut report = Report::new(origin, data.table());
    for latent in 0..data.d_sae() {
        if report.shows(data.table(), latent) {
            report.add(&data.latent(latent)?, data)?;
        }
    }
    let names = named::names(dir.parent().unwrap_or(dir))?;
    Ok(atomic::write(&dir.join(REPORT), report.render(&names)?.as_bytes())?)
}

/// The data of the page while latents are added.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    origin: Origin,
    rows: u64,
    sentence_count: u64,
    d_sae: usize,
    top_n: usize,
    /// log10 of every latent's density, in tenths, to the number of latents; dead ones apart.
    histogram: BTreeMap<i32, u64>,
    dead: u64,
    latents: Vec<Latent>,
    sentences: Vec<(u64, u64, Vec<String>)>,
    #[serde(skip)]
    numbers: HashMap<u64, usize>,
    #[serde(skip)]
    weight_floor: f64,
}

#[derive(Debug, Serialize)]
struct Latent {
    id: u32,
    density: f64,
    fired: u64,
    max: f32,
    weighted: f64,
    /// Per aggregation: values and places in `pairs`.
    best: [Vec<(f32, usize)>; 3],
    /// Place in `sentences`, and its levels.
    pairs: Vec<(usize, String)>,
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    title: &'a str,
    data: &'a str,
    names: &'a str,
}

impl Report {
    /// A page without latents.
    fn new(origin: Origin, table: &Table) -> Self {
        let rows = table.origin.rows.max(1) as f64;
        let mut histogram = BTreeMap::new();
        let mut weights = Vec::new();
        for (fired, weighted) in table.fired.iter().zip(&table.weighted).filter(|(n, _)| **n > 0) {
            let tenth = ((*fired as f64 / rows).log10() * 10.0).floor() as i32;
            *histogram.entry(tenth).or_default() += 1;
            weights.push(*weighted);
        }
        let dead = (table.fired.len() - weights.len()) as u64;
        weights.sort_by(|a, b| b.total_cmp(a));
        Self {
            origin,
            rows: table.origin.rows,
            sentence_count: table.origin.sentences,
            d_sae: table.fired.len(),
            top_n: table.origin.top_n,
            histogram,
            dead,
            latents: Vec::new(),
            sentences: Vec::new(),
            numbers: HashMap::new(),
            weight_floor: weights.get(MAX_LATENTS).copied().unwrap_or(f64::NEG_INFINITY),
        }
    }

    /// Whether a latent fired, and not too many are stronger.
    fn shows(&self, table: &Table, latent: usize) -> bool {
        table.fired[latent] > 0 && table.weighted[latent] > self.weight_floor
    }

    fn add(&mut self, record: &LatentRecord, data: &TopData) -> Result<()> {
        let (mut pairs, mut places) = (Vec::new(), HashMap::new());
        let mut place = |r: &Ranked| -> Result<(f32, usize)> {
            let place = match places.get(&r.sentence) {
                Some(place) => *place,
                None => {
                    let sentence = self.number(r.sentence, data)?;
                    let length = self.sentences[sentence].2.len();
                    let activations = record.activations.get(&r.sentence);
                    pairs.push((sentence, levels(activations, length, record.max)));
                    places.insert(r.sentence, pairs.len() - 1);
                    pairs.len() - 1
                }
            };
            Ok((r.value, place))
        };
        let top = &record.top;
        let mut list = |list: &[Ranked]| list.iter().map(&mut place).collect::<Result<Vec<_>>>();
        let best = [list(&top.mean)?, list(&top.max)?, list(&top.last)?];
        let LatentRecord { density, fired, max, weighted, .. } = *record;
        let id = record.latent;
        self.latents.push(Latent { id, density, fired, max, weighted, best, pairs });
        Ok(())
    }

    /// The place of a sentence on the page.
    fn number(&mut self, sentence: u64, data: &TopData) -> Result<usize> {
        if let Some(number) = self.numbers.get(&sentence) {
            return Ok(*number);
        }
        let found = data.named(sentence)?;
        self.sentences.push((sentence, found.document, found.tokens));
        self.numbers.insert(sentence, self.sentences.len() - 1);
        Ok(self.sentences.len() - 1)
    }

    /// The whole page.
    fn render(&self, names: &str) -> std::io::Result<String> {
        // No `<` survives, so nothing in the data can end the script element or open a comment.
        let data = serde_json::to_string(self)?.replace('<', "\\u003c");
        let page = Page { title: &self.origin.title, data: &data, names };
        page.render().map_err(std::io::Error::other)
    }
}

/// A character for each of a sentence's tokens.
fn levels(activations: Option<&Activations>, tokens: usize, max: f32) -> String {
    let mut levels = vec![LEVELS[0]; tokens];
    let top = (LEVELS.len() - 1) as f32;
    let all = activations.into_iter().flat_map(|a| a.at.iter().zip(&a.value));
    for (at, value) in all.filter(|(_, value)| **value > 0.0 && max > 0.0) {
        if let Some(level) = levels.get_mut(*at as usize) {
            *level = LEVELS[(value / max * top).round().clamp(1.0, top) as usize];
        }
    }
    levels.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::{
        data::tests::plant,
        record::{SentenceRecord, Top},
    };

    #[test]
    fn levels_show_every_activation_and_scale_to_the_maximum() {
        let some = Activations { at: vec![1, 2, 3, 9], value: vec![1e-6, 0.5, 1.0, 1.0] };
        assert_eq!(levels(Some(&some), 5, 1.0), "01W_0");
        assert_eq!(levels(Some(&some), 2, 0.0), "00");
        assert_eq!(levels(None, 1, 1.0), "0");
    }

    #[test]
    fn no_text_can_leave_the_data_element() {
        let text = "</script><!--<b>&amp;\u{2028}".to_owned();
        let best = vec![Ranked { value: 2.0, sentence: 7 }];
        let alive = LatentRecord {
            latent: 1,
            fired: 1,
            max: 2.0,
            top: Top { max: best.clone(), mean: best, last: vec![] },
            activations: BTreeMap::from([(7, Activations { at: vec![0], value: vec![2.0] })]),
            ..LatentRecord::default()
        };
        let sentence =
            SentenceRecord { sentence: 7, document: 3, ids: vec![1], tokens: vec![text.clone()] };
        let dir = tempfile::tempdir().unwrap();
        plant(dir.path(), &[LatentRecord::default(), alive], &[sentence], 10);
        let origin = Origin { title: "a < b".into(), ..Origin::default() };
        write(dir.path(), origin, &TopData::open(dir.path()).unwrap()).unwrap();
        let page = fs_err::read_to_string(dir.path().join(REPORT)).unwrap();
        let data = page.split_once("<script id=\"data\" type=\"application/json\">").unwrap().1;
        let data = data.split_once("</script>").unwrap().0;
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["sentences"], serde_json::json!([[7, 3, [text]]]));
        assert_eq!(data["latents"].as_array().unwrap().len(), 1);
        assert_eq!(data["dead"], 1);
        assert!(page.contains("<title>a &#60; b</title>"), "the title is escaped");
        assert!(page.contains("<script id=\"names\" type=\"application/json\">{}</script>"));
        assert!(!page.contains("http://") && !page.contains("https://"), "no network");
    }
    #[test]
    fn names_come_to_the_page_before_it_or_after() {
        let run = tempfile::tempdir().unwrap();
        named::refresh(run.path()).unwrap();
        let dir = run.path().join("top_sentences");
        plant(&dir, &[LatentRecord { fired: 1, ..LatentRecord::default() }], &[], 10);
        let data = TopData::open(&dir).unwrap();
        let names = run.path().join("names/names.jsonl");
        let name = |label: &str| {
            let scores = serde_json::json!({"detection": {"value": 0.9, "judgements": 1}});
            let line = serde_json::json!({"latent": 0, "label": label, "description": "d", "certainty": 1.0, "model": "m", "scores": scores});
            atomic::write(&names, format!("{line}\n").as_bytes()).unwrap();
        };
        let shown = || {
            let page = fs_err::read_to_string(dir.join(REPORT)).unwrap();
            let names = page.split("type=\"application/json\">").nth(2).unwrap();
            let names = names.split_once("</script>").unwrap().0;
            serde_json::from_str::<serde_json::Value>(names).unwrap()
        };
        name("</script>");
        write(&dir, Origin::default(), &data).unwrap();
        assert_eq!(shown(), serde_json::json!({"0": ["</script>", "d", 0.9]}));
        name("b");
        named::refresh(run.path()).unwrap();
        assert_eq!(shown(), serde_json::json!({"0": ["b", "d", 0.9]}));
        fs_err::remove_file(names).unwrap();
        write(&dir, Origin::default(), &data).unwrap();
        assert_eq!(shown(), serde_json::json!({}));
    }
}
