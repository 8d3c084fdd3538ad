//! What a generation is asked for.

use serde::Deserialize;

use crate::web::{
    answer::{Answer, Refusal},
    sample::Sampler,
    steer::{self, Intervention},
};

/// Limits of a request.
const TOKENS: usize = 1024;
const STOPS: usize = 8;
const STOP_BYTES: usize = 64;
const HOTTEST: f64 = 10.0;
const SEEDS: u64 = 1 << 53;

/// What to write.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::web) struct Request {
    pub text: String,
    pub max_tokens: usize,
    pub temperature: f64,
    pub top_p: f64,
    pub seed: u64,
    pub stop: Vec<String>,
    pub interventions: Vec<Intervention>,
    pub baseline: bool,
    pub sae: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            text: String::new(),
            max_tokens: 64,
            temperature: 0.8,
            top_p: 0.95,
            seed: 0,
            stop: vec![],
            interventions: vec![],
            baseline: true,
            sae: None,
        }
    }
}

impl Request {
    /// Refuses what is out of range.
    pub fn check(&self) -> Answer<()> {
        let bad = |what: String| Err(Refusal::bad(what));
        if self.text.is_empty() {
            return bad("text is missing".into());
        }
        if !(1..=TOKENS).contains(&self.max_tokens) {
            return bad(format!("max_tokens is {}, not 1 to {TOKENS}", self.max_tokens));
        }
        if !(0.0..=HOTTEST).contains(&self.temperature) {
            return bad(format!("temperature is {}, not 0 to {HOTTEST}", self.temperature));
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return bad(format!("top_p is {}, not 0 to 1", self.top_p));
        }
        if self.seed >= SEEDS {
            return bad(format!("seed is {}, not below 2^53", self.seed));
        }
        let short = |stop: &String| (1..=STOP_BYTES).contains(&stop.len());
        if self.stop.len() > STOPS || !self.stop.iter().all(short) {
            return bad(format!(
                "more than {STOPS} stop strings, or not of 1 to {STOP_BYTES} bytes"
            ));
        }
        steer::check(&self.interventions)
    }

    /// Lines of the answer at most: a place for each, so that a slow receiver holds up nobody.
    pub fn lines(&self) -> usize {
        2 * self.max_tokens + 8
    }

    pub fn sampler(&self) -> Sampler {
        Sampler { temperature: self.temperature, top_p: self.top_p, seed: self.seed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_out_of_range_are_refused() {
        let good = Request { text: "a".into(), ..Request::default() };
        good.check().unwrap();
        for bad in [
            Request::default(),
            Request { max_tokens: 0, ..good.clone() },
            Request { max_tokens: 1025, ..good.clone() },
            Request { temperature: -0.1, ..good.clone() },
            Request { temperature: f64::NAN, ..good.clone() },
            Request { top_p: 1.5, ..good.clone() },
            Request { seed: 1 << 53, ..good.clone() },
            Request { stop: vec![String::new()], ..good.clone() },
            Request { stop: vec!["x".into(); 9], ..good.clone() },
        ] {
            assert_eq!(bad.check().unwrap_err().status.as_u16(), 400, "{bad:?}");
        }
    }
}
