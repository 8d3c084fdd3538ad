//! A text's tokens and the latents that are active at each.

use std::{cell::RefCell, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{
    answer::{Answer, Refusal},
    browse::{Library, Opened, Weights},
    engine::{self, CHUNK, Engine, Model, Passage},
};
use crate::{kernels::host, model::Hook, text::Encoding, top::detail};

/// Latents of a token at most.
const MOST: usize = 200;
/// SAEs of a request at most.
const SAES: usize = 16;
/// Active latents in an answer at most, of all tokens and SAEs together.
const ACTIVE: usize = 1 << 20;

/// What to read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    text: String,
    saes: Vec<String>,
    #[serde(default = "ten")]
    top: usize,
}

fn ten() -> usize {
    10
}

#[derive(Debug, Serialize)]
pub(super) struct Completed {
    model: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Serialize)]
struct Token {
    id: u32,
    text: String,
    piece: String,
    special: bool,
    latents: BTreeMap<String, Vec<Active>>,
}

#[derive(Clone, Debug, Serialize)]
struct Active {
    latent: u32,
    value: f32,
    label: Option<String>,
}

/// An SAE that reads along.
struct Along {
    opened: Opened,
    weights: std::sync::Arc<Weights>,
    hook: Hook,
    /// Of each token so far.
    active: Vec<Vec<Active>>,
}

impl Request {
    /// What can be said without the model.
    pub fn check(&self) -> Answer<()> {
        engine::check_text(&self.text)?;
        if !(1..=MOST).contains(&self.top) {
            return Err(Refusal::bad(format!("top is {}, not 1 to {MOST}", self.top)));
        }
        if self.saes.len() > SAES {
            return Err(Refusal::bad(format!("more than {SAES} SAEs")));
        }
        Ok(())
    }
}

/// Reads a text; `wanted` fails once nobody waits for the answer any more.
pub(super) fn complete(
    (library, engine): (&Library, &Engine),
    request: &Request,
    wanted: &dyn Fn() -> Answer<()>,
) -> Answer<Completed> {
    let mut names = request.saes.clone();
    names.sort_unstable();
    names.dedup();
    let opened = names.iter().map(|sae| library.open(sae)).collect::<Answer<Vec<Opened>>>()?;
    let capture = engine::capture_of(library, &opened.iter().collect::<Vec<_>>())?;
    engine.using(&capture, |model| {
        let encoding = model.encode(&request.text)?;
        let active = encoding.ids.len() * opened.len() * request.top;
        if active > ACTIVE {
            let what = format!("an answer of up to {active} latents, more than {ACTIVE}");
            return Err(Refusal::bad(what).hint("lower `top`, or send a shorter text"));
        }
        let along = |opened: Opened| {
            let (weights, hook) = (library.weights(&opened)?, model.hook(&opened.meta.hook)?);
            Ok(Along { opened, weights, hook, active: vec![] })
        };
        let mut along = opened.into_iter().map(along).collect::<Answer<Vec<Along>>>()?;
        read(model, &encoding.ids, (&mut along, request.top), wanted)?;
        Ok(Completed { model: model.id.clone(), tokens: tokens(model, request, &encoding, along) })
    })
}

fn read(
    model: &Model,
    ids: &[u32],
    (along, top): (&mut [Along], usize),
    wanted: &dyn Fn() -> Answer<()>,
) -> Answer<()> {
    let hooks: Vec<Hook> = along.iter().map(|sae| sae.hook).collect();
    let along = RefCell::new(along);
    let mut visit = |index: usize, tensor: candle_core::Tensor| {
        let x = host::gather(&tensor, 0..tensor.dim(0)?)?;
        along.borrow_mut()[index].encode(&x, top);
        Ok(None)
    };
    if !model.info().is_causal() {
        engine::read_whole(model, ids, &hooks, &mut visit)?;
        return Ok(());
    }
    let mut passage = Passage::new(model, 1);
    for chunk in ids.chunks(CHUNK) {
        wanted()?;
        let step = passage.step(&[chunk]);
        if step.first[0] == 0 {
            // From the start, perhaps again.
            along.borrow_mut().iter_mut().for_each(|sae| sae.active.clear());
        }
        passage.run(&step, &hooks, &mut visit)?;
    }
    Ok(())
}

impl Along {
    /// Adds the strongest latents of rows `[n, d_in]`.
    fn encode(&mut self, x: &[f32], top: usize) {
        let sae = &self.weights.sae;
        for x in x.chunks(CHUNK * sae.params.d_in) {
            let latents = sae.encode(x);
            for row in 0..latents.rows() {
                let (index, value) = latents.row(row);
                let mut all: Vec<(u32, f32)> =
                    index.iter().copied().zip(value.iter().copied()).collect();
                all.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                all.truncate(top);
                let label = |l: u32| self.opened.names().label(l as usize).map(str::to_owned);
                let active = all.into_iter().map(|(latent, value)| Active {
                    latent,
                    value,
                    label: label(latent),
                });
                self.active.push(active.collect());
            }
        }
    }
}

fn tokens(
    model: &Model,
    request: &Request,
    encoding: &Encoding,
    mut along: Vec<Along>,
) -> Vec<Token> {
    let pieces = pieces(&request.text, &encoding.offsets).into_iter();
    let of_token = |(n, text): (usize, String)| {
        let id = encoding.ids[n];
        let latents = along.iter_mut().map(|sae| {
            let active = sae.active.get_mut(n).map(std::mem::take).unwrap_or_default();
            (sae.opened.meta.run_id.clone(), active)
        });
        Token {
            id,
            text,
            piece: model.tokenizer.piece(id).unwrap_or_default(),
            special: encoding.special[n],
            latents: latents.collect(),
        }
    };
    pieces.enumerate().map(of_token).collect()
}

/// Cuts a text behind each token, the rest of it behind the last that has any.
pub(super) fn pieces(text: &str, offsets: &[(usize, usize)]) -> Vec<String> {
    let last = offsets.iter().rposition(|(begin, end)| begin < end);
    let end = |(n, (_, end)): (usize, &(usize, usize))| {
        if Some(n) == last { text.len() } else { *end }
    };
    detail::pieces(text, offsets.iter().enumerate().map(end))
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn pieces_make_the_text_again_and_added_tokens_have_none() {
        let offsets = [(0, 0), (0, 1), (2, 5), (5, 6), (0, 0)];
        assert_eq!(pieces("a dog. ", &offsets), ["", "a", " dog", ". ", ""]);
        assert_eq!(pieces("żó", &[(0, 1), (0, 2), (2, 4)]), ["", "ż", "ó"]);
        assert_eq!(pieces("", &[(0, 0)]), [""]);
    }
}
