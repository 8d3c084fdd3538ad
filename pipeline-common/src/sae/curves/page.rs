//! `training.html`: the curves as one page that opens from disk without a network.

use std::time::Duration;

use askama::Template;

use super::{
    Pace,
    figures::{Group, groups},
    speed,
};
use crate::{
    plot::tidy,
    sae::history::Record,
    stage::{
        ResolvedConfig,
        progress::{clock, thousands},
    },
};

/// What a page says besides its curves.
#[derive(Clone, Debug)]
pub struct About {
    /// The run's name.
    pub title: String,
    /// Steps of the whole training.
    pub steps: u64,
    /// Names and values: capture, hook, SAE.
    pub facts: Vec<(&'static str, String)>,
    /// The settings that decide the result.
    pub settings: ResolvedConfig,
}

#[derive(Template)]
#[template(path = "training.html")]
struct Page<'a> {
    about: &'a About,
    facts: Vec<(&'static str, String)>,
    figures: Vec<Row>,
    groups: Vec<Group>,
}

impl Page<'_> {
    /// Names, values and origins of the settings that were given, or of the others.
    fn settings(&self, given: bool) -> Vec<(String, &str, &str)> {
        let settings = &self.about.settings;
        let wanted = settings.0.iter().filter(|(key, _)| settings.given(key) == given);
        wanted
            .map(|(key, s)| (key.to_uppercase(), s.value.as_deref().unwrap_or("unset"), &*s.origin))
            .collect()
    }
}

/// One figure as it was last: of the last batch, and of the held-out rows.
struct Row {
    name: &'static str,
    training: String,
    held_out: String,
}

/// The page.
pub fn render(
    about: &About,
    history: &[Record],
    timing: &[Pace],
) -> Result<String, std::io::Error> {
    let mut facts = about.facts.clone();
    facts.extend(progress(about, history, timing));
    let figures = last_figures(history);
    let page = Page { about, facts, figures, groups: groups(history, timing) };
    page.render().map_err(std::io::Error::other)
}

/// How far the training is and how long it took.
fn progress(about: &About, history: &[Record], timing: &[Pace]) -> Vec<(&'static str, String)> {
    let Some(last) = history.last() else { return vec![] };
    let (seconds, rate) = speed(timing).unwrap_or_default();
    let (made, all) = (thousands(last.step), thousands(about.steps));
    let steps = if last.step == about.steps { all } else { format!("{made} of {all}") };
    vec![
        ("steps", steps),
        ("tokens", thousands(last.tokens)),
        ("time", clock(Duration::from_secs_f64(seconds))),
        ("speed", format!("{} tokens a second", thousands(rate as u64))),
    ]
}

fn last_figures(history: &[Record]) -> Vec<Row> {
    let Some(last) = history.last() else { return vec![] };
    let held_out = history.iter().rev().find_map(|record| record.validation);
    let row = |name, training: f64, held_out: Option<f64>| Row {
        name,
        training: tidy(training),
        held_out: held_out.map_or(String::new(), tidy),
    };
    vec![
        row("loss", last.loss, None),
        row("squared error (MSE)", last.mse, held_out.map(|v| v.mse)),
        row("unexplained variance (FVU)", last.fvu, held_out.map(|v| v.fvu)),
        row("explained variance", last.explained_variance, held_out.map(|v| 1.0 - v.fvu)),
        row("active latents a row (L0)", last.l0, held_out.map(|v| v.l0)),
        row("sum of activations a row (L1)", last.l1, None),
        row("sparsity penalty", last.sparsity, None),
        row("auxiliary loss, unweighted", last.aux, None),
        row("share of latents that are dead", last.dead_fraction, None),
        row("gradient norm", last.gradient_norm, None),
        row("learning rate", last.lr, None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sae::history::Validation, stage::config::Setting};

    fn about() -> About {
        let setting = |value: &str, origin: &str| Setting {
            value: Some(value.into()),
            origin: origin.into(),
        };
        let settings =
            [("top_k", setting("8", "default")), ("hook", setting("</b>", "environment"))];
        let settings = ResolvedConfig(settings.map(|(k, v)| (k.to_owned(), v)).into());
        About { title: "a<b".into(), steps: 200, facts: vec![("hook", "h".into())], settings }
    }

    #[test]
    fn the_page_has_figures_facts_and_settings_and_needs_nothing_else() {
        let record = |step: u64| Record {
            step,
            tokens: step * 10,
            loss: 1.0 / step as f64,
            fvu: 0.5,
            sparsity: 0.1,
            validation: (step == 100).then_some(Validation {
                rows: 9,
                mse: 0.25,
                fvu: 0.5,
                l0: 4.0,
            }),
            ..Record::default()
        };
        let pace = |step| Pace { step, time: 1e9, seconds: 2.0, tokens_per_second: 5.0 };
        let history: Vec<Record> = (1..=100).map(record).collect();
        let timing: Vec<Pace> = (1..=100).map(pace).collect();
        let page = render(&about(), &history, &timing).unwrap();
        for words in [
            "100 of 200",
            "1,000",
            "0:03:20",
            "5 tokens a second",
            "TOP_K",
            "environment",
            "sparsity penalty",
            "Warm-up of the sparsity coefficient",
            "0.25",
        ] {
            assert!(page.contains(words), "`{words}` is missing from\n{page}");
        }
        assert!(!page.contains("a<b") && !page.contains("</b>\n</td"), "escaped");
        assert!(!page.contains("http://") && !page.contains("https://"), "no network");
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        render(&about(), &[], &[]).unwrap();
    }
}
