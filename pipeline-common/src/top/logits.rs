//! Which tokens a latent promotes and suppresses, if the model is on this machine.

use std::{collections::HashMap, ops::Range};

use rayon::prelude::*;

use super::{
    input::Input,
    record::{LogitLens, TokenLogit},
};
use crate::{
    model::Lens,
    stage::{Failure, Result},
    text::{Hub, HubArgs, Tokenizer},
};

/// Tokens of either kind.
const COUNT: usize = 10;
/// Directions at a time: 32 MiB of logits for a vocabulary of 128 thousand.
const TOGETHER: usize = 64;
/// Points whose rows are added to the residual stream or are it.
const STREAM: [&str; 5] = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"];

/// The logit lens of a training's model.
pub(super) struct Logits {
    lens: Lens,
    tokenizer: Tokenizer,
    /// Texts of ids that came up.
    texts: HashMap<u32, String>,
}

impl Logits {
    /// Finds the capture's model in the cache or on the disk, without a network, and says why there are
    /// no logits where there are none.
    pub fn find(input: &Input, hub: &HubArgs) -> Option<Self> {
        match Self::open(input, hub) {
            Ok(found) => Some(found),
            Err(failure) => {
                tracing::warn!("no logit lens: {:#}", failure.source);
                None
            }
        }
    }

    fn open(input: &Input, hub: &HubArgs) -> Result<Self> {
        let hook = input.training.target_hook.as_ref().unwrap_or(&input.training.hook);
        let alias = input.capture.hook(Some(hook))?.alias.as_deref();
        if !alias.is_some_and(|alias| STREAM.contains(&alias)) {
            return Err(Failure::input(format!("`{hook}` is not part of the residual stream")));
        }
        let model = &input.capture.model;
        let local = HubArgs { hf_hub_offline: true, ..hub.clone() };
        let revision = model.commit().unwrap_or("main");
        let dir = Hub::new(&local).model_dir(&model.id, revision, true)?.dir;
        let tokenizer = Tokenizer::load(&dir)?;
        if tokenizer.fingerprint() != model.tokenizer {
            return Err(Failure::input(format!("tokenizer.json of `{}` is another one", model.id)));
        }
        let lens = Lens::load(&dir)?;
        let lens = lens.ok_or_else(|| Failure::input(format!("`{}` has no logits", model.id)))?;
        let (d_model, d_out) = (lens.info().d_model, input.sae.params.d_out);
        if d_model != d_out {
            let what = format!("`{}` has width {d_model}, decoder rows have {d_out}", model.id);
            return Err(Failure::input(what));
        }
        Ok(Self { lens, tokenizer, texts: HashMap::new() })
    }

    /// What each of some latents does to the logits.
    ///
    /// # Errors
    /// A token that cannot be decoded.
    pub fn of(&mut self, input: &Input, latents: Range<usize>) -> Result<Vec<LogitLens>> {
        let d_out = input.sae.params.d_out;
        let mut found = vec![];
        for begin in latents.clone().step_by(TOGETHER) {
            let end = latents.end.min(begin + TOGETHER);
            let logits = self.lens.logits(&input.sae.params.w_dec[begin * d_out..end * d_out])?;
            let extremes: Vec<_> = logits.par_iter().map(|row| extremes(row)).collect();
            for [promoted, suppressed] in extremes {
                let (promoted, suppressed) = (self.named(promoted)?, self.named(suppressed)?);
                found.push(LogitLens { promoted, suppressed });
            }
        }
        Ok(found)
    }

    fn named(&mut self, tokens: Vec<(u32, f32)>) -> Result<Vec<TokenLogit>> {
        let named = |(id, logit)| {
            let token = match self.texts.get(&id) {
                Some(text) => text.clone(),
                None => {
                    let text = self.tokenizer.decode(&[id])?;
                    self.texts.insert(id, text.clone());
                    text
                }
            };
            Ok(TokenLogit { id, token, logit })
        };
        tokens.into_iter().map(named).collect()
    }
}

/// The largest logits, largest first, and the smallest, smallest first; of equal ones the first id.
fn extremes(logits: &[f32]) -> [Vec<(u32, f32)>; 2] {
    [1.0, -1.0].map(|sign| {
        let mut kept: Vec<(u32, f32)> = vec![];
        for (id, logit) in (0..).zip(logits) {
            let larger = |kept: &(u32, f32)| kept.1 * sign >= logit * sign;
            if kept.len() == COUNT && kept.last().is_some_and(larger) || logit.is_nan() {
                continue;
            }
            kept.truncate(COUNT - 1);
            kept.insert(kept.partition_point(larger), (id, *logit));
        }
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_the_ends_of_the_sorted_list() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 37 % 101) as f32) - 50.0).collect();
        let [largest, smallest] = extremes(&logits);
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        assert_eq!(largest, sorted[..COUNT]);
        sorted.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        assert_eq!(smallest, sorted[..COUNT]);
        assert_eq!(extremes(&[f32::NAN, 1.0])[0], [(1, 1.0)]);
    }
}
