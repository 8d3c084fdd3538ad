//! `report.html`: the figures and sentences as one page that opens from disk without a network.
//!
//! The page is `templates/report.html` with the data as JSON in it; its script renders only what
//! is looked at. Activations are one character per token, 64 steps up to the latent's maximum:
//! more than an eye can tell apart, and small enough for ten thousand latents.

use std::collections::{BTreeMap, HashMap};

use askama::Template;
use serde::Serialize;

use super::{
    detail::{Activations, Details},
    tally::{Aggregation, Tally},
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

/// The data of the page while latents are added.
#[derive(Debug, Serialize)]
pub struct Report {
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
    id: usize,
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
}

impl Report {
    /// A page without latents.
    pub fn new(origin: Origin, tally: &Tally, top_n: usize) -> Self {
        let alive = (0..tally.latents().len()).filter(|l| tally.latents()[*l].fired > 0);
        let mut histogram = BTreeMap::new();
        let mut weights = Vec::new();
        for latent in alive {
            let tenth = (tally.density(latent).log10() * 10.0).floor() as i32;
            *histogram.entry(tenth).or_default() += 1;
            weights.push(tally.weighted(latent));
        }
        let dead = (tally.latents().len() - weights.len()) as u64;
        weights.sort_by(|a, b| b.total_cmp(a));
        Self {
            origin,
            rows: tally.rows(),
            sentence_count: tally.sentences(),
            d_sae: tally.latents().len(),
            top_n,
            histogram,
            dead,
            latents: Vec::new(),
            sentences: Vec::new(),
            numbers: HashMap::new(),
            weight_floor: weights.get(MAX_LATENTS).copied().unwrap_or(f64::NEG_INFINITY),
        }
    }

    /// Adds a latent that fired, unless too many are stronger.
    pub fn add(&mut self, id: usize, tally: &Tally, details: &Details) {
        let figures = &tally.latents()[id];
        if figures.fired == 0 || tally.weighted(id) <= self.weight_floor {
            return;
        }
        let (mut pairs, mut places) = (Vec::new(), HashMap::new());
        let best = Aggregation::ALL.map(|a| {
            let entries = figures.best[a as usize].entries().iter();
            entries
                .map(|scored| {
                    let place = *places.entry(scored.sentence).or_insert_with(|| {
                        let activations = &details.activations[&(id as u32, scored.sentence)];
                        pairs.push((
                            self.number(scored.sentence, details),
                            levels(activations, figures.max),
                        ));
                        pairs.len() - 1
                    });
                    (scored.value, place)
                })
                .collect()
        });
        let (density, weighted) = (tally.density(id), tally.weighted(id));
        let (fired, max) = (figures.fired, figures.max);
        self.latents.push(Latent { id, density, fired, max, weighted, best, pairs });
    }

    fn number(&mut self, sentence: u64, details: &Details) -> usize {
        *self.numbers.entry(sentence).or_insert_with(|| {
            let found = &details.sentences[&sentence];
            self.sentences.push((sentence, found.document, found.tokens.clone()));
            self.sentences.len() - 1
        })
    }

    /// The whole page.
    ///
    /// # Errors
    /// When a figure cannot be written as JSON, or the template not rendered.
    pub fn render(&self) -> std::io::Result<String> {
        // No `<` survives, so nothing in the data can end the script element or open a comment.
        let data = serde_json::to_string(self)?.replace('<', "\\u003c");
        let page = Page { title: &self.origin.title, data: &data };
        page.render().map_err(std::io::Error::other)
    }
}

fn levels(activations: &Activations, max: f32) -> String {
    let top = (LEVELS.len() - 1) as f32;
    let level = |a: &f32| match *a {
        a if a > 0.0 && max > 0.0 => (a / max * top).round().clamp(1.0, top) as usize,
        _ => 0,
    };
    activations.0.iter().map(|a| LEVELS[level(a)] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::detail::Sentence;

    #[test]
    fn levels_show_every_activation_and_scale_to_the_maximum() {
        assert_eq!(levels(&Activations(vec![0.0, 1e-6, 0.5, 1.0, -1.0]), 1.0), "01W_0");
        assert_eq!(levels(&Activations(vec![1.0]), 0.0), "0");
    }

    #[test]
    fn no_text_can_leave_the_data_element() {
        let mut tally = Tally::new(2, 3);
        tally.add(7, [(&[1_u32][..], &[2.0_f32][..])].into_iter());
        let text = "</script><!--<b>&amp;\u{2028}".to_owned();
        let sentence = Sentence { document: 3, text: text.clone(), tokens: vec![text.clone()] };
        let mut details = Details::default();
        details.sentences.insert(7, sentence);
        details.activations.insert((1, 7), Activations(vec![2.0]));
        let origin = Origin { title: "a < b".into(), ..Origin::default() };
        let mut report = Report::new(origin, &tally, 3);
        report.add(0, &tally, &details);
        report.add(1, &tally, &details);
        let page = report.render().unwrap();
        let data = page.split_once("<script id=\"data\" type=\"application/json\">").unwrap().1;
        let data = data.split_once("</script>").unwrap().0;
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["sentences"], serde_json::json!([[7, 3, [text]]]));
        assert_eq!(data["latents"].as_array().unwrap().len(), 1);
        assert_eq!(data["dead"], 1);
        assert!(page.contains("<title>a &#60; b</title>"), "the title is escaped");
        assert!(!page.contains("http://") && !page.contains("https://"), "no network");
    }
}
