//! Settings of stage 04.

use std::{fmt, str::FromStr, time::Duration};

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use serde::{Deserialize, Serialize};

use super::{http::Limits, price::Price, question::Kind};
use crate::{
    stage::{Failure, Result, config::List},
    top::TopData,
};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Ask for names of latents that have none
    Send,
    /// Fetch the results of batches
    Retrieve,
    /// Write the names that were answered
    Parse,
    /// Have names judged, and write how well they did
    Score,
    /// Write the names for Neuronpedia, and the latents for delphi
    Export,
    /// Say what was asked, answered and paid
    Status,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Anthropic's Message Batches
    Anthropic,
    /// OpenAI's Batch API
    Openai,
    /// Any OpenAI-compatible /chat/completions: vLLM, Ollama, llama.cpp, OpenRouter
    Chat,
}

impl Action {
    /// As it is given on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anthropic => "anthropic",
            Self::Openai => "openai",
            Self::Chat => "chat",
        })
    }
}

/// One item of LATENTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latents {
    /// Every one that is active anywhere.
    All,
    /// That many of the densest.
    Top(u32),
    /// From the first to the last, both included.
    Range(u32, u32),
}

impl FromStr for Latents {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let expected = || "expected `all`, `top:N`, a number, or a range such as 0-99".to_owned();
        let number = |part: &str| part.parse::<u32>().map_err(|_| expected());
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(count) = text.strip_prefix("top:") {
            return Ok(Self::Top(number(count)?));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(expected());
        }
        Ok(Self::Range(first, last))
    }
}

/// Which latents.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Latents")]
pub struct ChoiceArgs {
    /// Latents to name, separated by commas or blanks: numbers, ranges 0-99, top:N for the N densest,
    /// all for those that are active anywhere [default: all]
    #[arg(long, env, value_name = "N,..")]
    pub latents: Vec<List<Latents>>,
    /// What a name is judged by, separated by commas or blanks: detection, fuzzing, intruder
    /// [default: all three]
    #[arg(long, env, value_name = "NAME,..")]
    pub scores: Vec<List<Judgement>>,
}

/// One item of SCORES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement(Kind);

impl FromStr for Judgement {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let kind = Kind::JUDGEMENTS.into_iter().find(|kind| kind.name() == text);
        kind.map(Self).ok_or_else(|| "expected detection, fuzzing or intruder".to_owned())
    }
}

impl ChoiceArgs {
    /// The chosen latents that are active anywhere, ascending.
    ///
    /// # Errors
    /// A latent that the SAE does not have.
    pub(super) fn chosen(&self, data: &TopData) -> Result<Vec<u32>> {
        let (d_sae, fired) = (data.d_sae() as u32, &data.table().fired);
        let items: Vec<Latents> = self.latents.iter().flat_map(|list| list.0.clone()).collect();
        let mut chosen = Vec::new();
        for item in if items.is_empty() { &[Latents::All][..] } else { &items } {
            match *item {
                Latents::All => chosen.extend(0..d_sae),
                Latents::Top(count) => {
                    let mut densest: Vec<u32> = (0..d_sae).collect();
                    densest.sort_by_key(|l| std::cmp::Reverse(fired[*l as usize]));
                    chosen.extend(densest.into_iter().take(count as usize));
                }
                Latents::Range(_, last) if last >= d_sae => {
                    return Err(Failure::usage(format!(
                        "LATENTS has latent {last}, the SAE has {d_sae}"
                    )));
                }
                Latents::Range(first, last) => chosen.extend(first..=last),
            }
        }
        chosen.sort_unstable();
        chosen.dedup();
        let all = chosen.len();
        chosen.retain(|l| fired[*l as usize] > 0);
        if !items.is_empty() && chosen.len() < all {
            tracing::info!("{} of the chosen latents are never active", all - chosen.len());
        }
        Ok(chosen)
    }

    /// What names are judged by.
    pub(super) fn judgements(&self) -> Vec<Kind> {
        let given: Vec<Kind> =
            self.scores.iter().flat_map(|list| &list.0).map(|judgement| judgement.0).collect();
        let wanted = |kind: &Kind| given.is_empty() || given.contains(kind);
        Kind::JUDGEMENTS.into_iter().filter(wanted).collect()
    }
}

/// Who answers, and how long to wait for it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Language model")]
pub struct BackendArgs {
    /// Who answers
    #[arg(long, env, value_enum, default_value_t = Backend::Anthropic)]
    pub backend: Backend,
    /// The model that answers, as the back end calls it
    #[arg(long, env, value_name = "NAME")]
    pub naming_model: Option<String>,
    /// Key for Anthropic
    #[arg(long, env, value_name = "KEY", hide_env_values = true)]
    pub anthropic_api_key: Option<String>,
    /// Address of Anthropic or of a proxy [default: api.anthropic.com]
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    pub anthropic_base_url: Option<String>,
    /// Key for OpenAI; a chat endpoint may do without
    #[arg(long, env, value_name = "KEY", hide_env_values = true)]
    pub openai_api_key: Option<String>,
    /// Address of OpenAI or of whatever speaks its protocol, up to before /chat/completions
    /// [default: api.openai.com/v1]
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    pub openai_base_url: Option<String>,
    /// Tokens an answer may have; models that think need room for their thoughts
    #[arg(long, env, default_value_t = 500, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub answer_tokens: u32,
    /// Have the server keep answers to the JSON schema; 0 for servers that cannot
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub structured: bool,
    /// Requests under way at a time, for a chat endpoint
    #[arg(long, env, default_value_t = 8, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,
    /// Requests in a batch at most
    #[arg(long, env, default_value_t = 10_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub requests_per_batch: u32,
    /// Seconds to wait for an answer
    #[arg(long, env, default_value_t = 300.0, value_name = "SECONDS", value_parser = seconds)]
    pub request_timeout: f64,
    /// Times that a call is repeated when the server is busy, fails or is not there
    #[arg(long, env, default_value_t = 8, value_name = "N")]
    pub retries: u32,
    /// Ask again for what was given up because it failed three times
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub retry_failed: bool,
    /// Give up batches that the provider does not know any more; their requests are asked, and may be paid,
    /// again
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub forget_batches: bool,
    /// `retrieve` looks again for so many seconds while batches are under way
    #[arg(long, env, default_value_t = 0.0, value_name = "SECONDS", value_parser = seconds)]
    pub wait_seconds: f64,
    /// After so many seconds a batch that a killed process was making and that the provider does not
    /// know counts as never made
    #[arg(long, env, default_value_t = 120.0, value_name = "SECONDS", value_parser = seconds)]
    pub settle_seconds: f64,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    let fits = (0.0..=1e6).contains(&number);
    fits.then_some(number).ok_or_else(|| "expected a number of seconds".to_owned())
}

impl BackendArgs {
    pub(super) fn limits(&self) -> Limits {
        let timeout = Duration::from_secs_f64(self.request_timeout.max(0.01));
        Limits { timeout, repeats: self.retries }
    }

    pub(super) fn settle(&self) -> Duration {
        Duration::from_secs_f64(self.settle_seconds)
    }

    pub(super) fn wait(&self) -> Duration {
        Duration::from_secs_f64(self.wait_seconds)
    }

    /// The model that answers.
    ///
    /// # Errors
    /// A usage failure if none is named.
    pub(super) fn model(&self) -> Result<&str> {
        self.naming_model.as_deref().ok_or_else(|| {
            Failure::usage("NAMING_MODEL is not set")
                .hint("name the model that answers, as the back end calls it")
        })
    }
}

/// What it may cost.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cost")]
pub struct CostArgs {
    /// Print requests, tokens and price of what would be sent, and send nothing
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub dry_run: bool,
    /// US dollars for the names of this training, scores included: nothing is sent that might cost more
    #[arg(long, env, value_name = "USD", value_parser = dollars)]
    pub max_cost: Option<f64>,
    /// US dollars for a million tokens read [default: the list price of well-known models, half of it
    /// for batches]
    #[arg(long, env, value_name = "USD", value_parser = dollars)]
    pub price_input: Option<f64>,
    /// US dollars for a million tokens written [default: as PRICE_INPUT]
    #[arg(long, env, value_name = "USD", value_parser = dollars)]
    pub price_output: Option<f64>,
}

fn dollars(text: &str) -> std::result::Result<f64, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    let fits = number.is_finite() && number >= 0.0;
    fits.then_some(number).ok_or_else(|| "expected US dollars".to_owned())
}

impl CostArgs {
    /// What tokens of a model cost; `None` if that is not known.
    pub(super) fn price(&self, model: &str, backend: Backend) -> Option<Price> {
        let listed = Price::listed(model, backend != Backend::Chat);
        match (self.price_input, self.price_output) {
            (None, None) => listed,
            (input, output) => Some(Price {
                input: input.or(listed.map(|l| l.input))?,
                output: output.or(listed.map(|l| l.output))?,
            }),
        }
    }

    /// As [`Self::price`]; an unknown price is none, unless there is a limit to keep.
    ///
    /// # Errors
    /// A usage failure for a limit without a price.
    pub(super) fn price_or_free(&self, model: &str, backend: Backend) -> Result<Price> {
        match (self.price(model, backend), self.max_cost) {
            (Some(price), _) => Ok(price),
            (None, None) => {
                tracing::warn!(
                    "no price of `{model}` is known, so it counts as free; PRICE_INPUT and PRICE_OUTPUT \
                     set it"
                );
                Ok(Price::default())
            }
            (None, Some(_)) => Err(Failure::usage(format!(
                "MAX_COST is set, and no price of `{model}` is known"
            ))
            .hint(
                "set PRICE_INPUT and PRICE_OUTPUT to US dollars for a million tokens; 0 is free",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_are_numbers_ranges_the_densest_or_all() {
        let items: List<Latents> = "all, top:7 3 10-20".parse().unwrap();
        assert_eq!(
            items.0,
            [Latents::All, Latents::Top(7), Latents::Range(3, 3), Latents::Range(10, 20)]
        );
        for wrong in ["", "top", "top:", "9-3", "-1", "a", "1-"] {
            assert!(wrong.parse::<List<Latents>>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_limit_needs_a_price() {
        let mut args =
            CostArgs { dry_run: false, max_cost: None, price_input: None, price_output: None };
        assert_eq!(args.price_or_free("own", Backend::Chat).unwrap(), Price::default());
        args.max_cost = Some(1.0);
        assert!(args.price_or_free("own", Backend::Chat).is_err());
        args.price_input = Some(2.0);
        assert!(args.price_or_free("own", Backend::Chat).is_err(), "one of the two is missing");
        args.price_output = Some(3.0);
        let price = args.price_or_free("own", Backend::Chat).unwrap();
        assert_eq!(price, Price { input: 2.0, output: 3.0 });
    }
}
