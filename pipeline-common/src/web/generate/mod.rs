//! Continuations of a text, steered and not, as they are written.
//!
//! The sentences of one cache are the baseline, the steered text, and the reference: the steered text
//! as the model reads it without steering, whose predictions the steered ones are measured against.

mod request;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{
    answer::{Answer, Refusal},
    browse::{Library, Opened},
    complete::pieces,
    engine::{self, CHUNK, Engine, LOGITS, Model, Passage, Step},
    steer::Steering,
    writing::Writing,
};
pub(super) use request::Request;

use crate::{
    model::{Hook, ModelError, Point, scores::Prediction},
    stage::StopFlag,
    text::Encoding,
};

/// How long a generation may take: others wait.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Where the lines go.
pub(super) struct Lines {
    pub sender: mpsc::Sender<Bytes>,
    pub stop: StopFlag,
}

impl Lines {
    fn send(&self, event: &Value) -> Answer<()> {
        self.wanted()?;
        self.sender.try_send(Bytes::from(format!("{event}\n"))).map_err(|_| Refusal::gone())
    }

    /// Fails once nobody waits for more.
    fn wanted(&self) -> Answer<()> {
        if self.stop.requested() {
            return Err(Refusal::stopped());
        }
        if self.sender.is_closed() { Err(Refusal::gone()) } else { Ok(()) }
    }
}

/// Writes the continuations; `ready` is told when the first line is about to be, or why none will.
pub(super) fn generate(
    (library, engine): (&Library, &Engine),
    request: &Request,
    lines: &Lines,
    ready: oneshot::Sender<Answer<()>>,
) {
    let mut ready = Some(ready);
    let outcome = prepared(library, engine, request, |job| {
        if let Some(ready) = ready.take() {
            ready.send(Ok(())).map_err(|_| Refusal::gone())?;
        }
        let began = Instant::now();
        job.write(lines)?;
        lines.send(&json!({"event": "done", "seconds": began.elapsed().as_secs_f64()}))
    });
    let Err(refusal) = outcome else { return };
    match ready.take() {
        // Whoever asked may have gone.
        Some(ready) => drop(ready.send(Err(refusal))),
        None => {
            let told = json!({"event": "error", "error": refusal.error, "hint": refusal.hint});
            drop(lines.sender.try_send(Bytes::from(format!("{told}\n"))));
        }
    }
}

/// Finds all that a request needs.
fn prepared(
    library: &Library,
    engine: &Engine,
    request: &Request,
    work: impl FnOnce(&mut Job<'_>) -> Answer<()>,
) -> Answer<()> {
    let mut names: Vec<&str> = request.interventions.iter().map(|i| i.sae.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let opened = names.iter().map(|sae| library.open(sae)).collect::<Answer<Vec<Opened>>>()?;
    let other = match (&opened[..], &request.sae) {
        ([_, ..], _) => None,
        ([], Some(sae)) => Some(library.open(sae)?),
        ([], None) => {
            let trainings = library.catalog.trainings()?;
            let newest = library.catalog.newest(&trainings);
            let none = || Refusal::missing("the store has no complete training any more");
            Some(library.open(&newest.ok_or_else(none)?)?)
        }
    };
    let all: Vec<&Opened> = opened.iter().chain(&other).collect();
    let capture = engine::capture_of(library, &all)?;
    engine.using(&capture, |model| {
        if model.info().site(Point::Logits).is_none() || !model.info().is_causal() {
            let what = format!("`{}` ({}) writes no text", model.id, model.info().architecture);
            return Err(Refusal::bad(what).hint("POST /api/complete reads with it"));
        }
        let encoding = model.encode(&request.text)?;
        let steering = Steering::new(library, model, &opened, &request.interventions)?;
        let until = Instant::now() + LONGEST;
        work(&mut Job { model, request, encoding: opening(encoding), steering, until })
    })
}

/// The prompt without the special tokens that the tokenizer adds behind a text.
fn opening(mut encoding: Encoding) -> Encoding {
    let added = |n: usize| encoding.special[n] && encoding.offsets[n].0 == encoding.offsets[n].1;
    let mut end = encoding.ids.len();
    while end > 1 && added(end - 1) {
        end -= 1;
    }
    encoding.ids.truncate(end);
    encoding.special.truncate(end);
    encoding.offsets.truncate(end);
    encoding
}

/// A generation with all that it needs.
struct Job<'a> {
    model: &'a Model,
    request: &'a Request,
    encoding: Encoding,
    steering: Steering,
    until: Instant,
}

/// One of the continuations.
struct Side<'a> {
    name: &'static str,
    /// Its sentence in the passage, and the one that its predictions are measured against.
    sentence: usize,
    reference: Option<usize>,
    writing: Writing<'a>,
    tokens: usize,
    divergence: f64,
    next: Option<u32>,
}

/// Scores of the next token, by sentence.
type Scores = Vec<Vec<f32>>;

impl<'a> Job<'a> {
    fn steered(&self) -> bool {
        !self.request.interventions.is_empty()
    }

    fn write(&mut self, lines: &Lines) -> Answer<()> {
        let mut sides = self.sides();
        let names: Vec<&str> = sides.iter().map(|side| side.name).collect();
        lines.send(&self.start(&names))?;
        let (mut passage, mut special, mut scores) = self.read_prompt(lines)?;
        for place in 0..self.request.max_tokens {
            for side in sides.iter_mut().filter(|side| place == 0 || side.next.is_some()) {
                self.draw(side, &scores, place, lines)?;
            }
            if sides.iter().all(|side| side.next.is_none()) {
                break;
            }
            let mut next = vec![None; special.len()];
            for side in &sides {
                next[side.sentence] = side.next;
                if let Some(reference) = side.reference {
                    next[reference] = side.next;
                }
            }
            let ids: Vec<&[u32]> = next.iter().map(Option::as_slice).collect();
            special.iter_mut().zip(&next).for_each(|(special, id)| {
                special.extend(id.map(|id| self.model.tokenizer.is_special(id)));
            });
            lines.wanted()?;
            scores = self.advance(&mut passage, &ids, &special, true)?;
        }
        Ok(())
    }

    fn sides(&self) -> Vec<Side<'a>> {
        let steered = self.steered();
        let side = |name, sentence, reference| Side {
            name,
            sentence,
            reference,
            writing: Writing::new(&self.model.tokenizer, &self.encoding.ids, &self.request.stop),
            tokens: 0,
            divergence: 0.0,
            next: None,
        };
        let baseline = (self.request.baseline || !steered).then(|| side("baseline", 0, None));
        baseline.into_iter().chain(steered.then(|| side("steered", 1, Some(2)))).collect()
    }

    fn start(&self, sides: &[&str]) -> Value {
        let pieces = pieces(&self.request.text, &self.encoding.offsets);
        let prompt = self.encoding.ids.iter().zip(pieces);
        let prompt: Vec<Value> = prompt.map(|(id, text)| json!({"id": id, "text": text})).collect();
        json!({
            "event": "start", "model": self.model.id, "prompt": prompt, "seed": self.request.seed,
            "sides": sides, "context": self.model.info().context_length,
        })
    }

    /// Reads the prompt, steered and not, and then goes on with three sentences: the reference is
    /// what the baseline is so far.
    fn read_prompt(&mut self, lines: &Lines) -> Answer<(Passage<'a>, Vec<Vec<bool>>, Scores)> {
        let sentences = if self.steered() { 2 } else { 1 };
        let mut passage = Passage::new(self.model, sentences);
        let ids = self.encoding.ids.clone();
        let mut special = vec![self.encoding.special.clone(); sentences];
        let (last, before) = ids.split_last().ok_or_else(|| Refusal::bad("text has no token"))?;
        for chunk in before.chunks(CHUNK) {
            lines.wanted()?;
            self.advance(&mut passage, &vec![chunk; sentences], &special, false)?;
        }
        let last = std::slice::from_ref(last);
        let mut scores = self.advance(&mut passage, &vec![last; sentences], &special, true)?;
        if self.steered() {
            passage = passage.of(&[0, 1, 0])?;
            special.push(special[0].clone());
            scores.push(scores[0].clone());
        }
        Ok((passage, special, scores))
    }

    /// Reads on, the sentence of the steered side with the steering; the scores behind each sentence
    /// if they are wanted.
    fn advance(
        &mut self,
        passage: &mut Passage<'_>,
        next: &[&[u32]],
        special: &[Vec<bool>],
        scored: bool,
    ) -> Answer<Scores> {
        let step = passage.step(next);
        let rows = steered_rows(&step, special);
        let hooks: Vec<Hook> =
            self.steering.hooks().iter().copied().chain(scored.then_some(LOGITS)).collect();
        let (steering, steered) = (&mut self.steering, hooks.len() - usize::from(scored));
        let mut scores = vec![];
        passage
            .run(&step, &hooks, &mut |hook, tensor| {
                if hook < steered {
                    return steering.visit(hook, &tensor, &rows);
                }
                let last = |sentence| step.last(sentence).map(|row| engine::row(&tensor, row));
                let all = (0..next.len()).map(|sentence| last(sentence).unwrap_or(Ok(vec![])));
                scores = all.collect::<candle_core::Result<_>>()?;
                Ok(None)
            })
            .map_err(told)?;
        Ok(scores)
    }

    /// Draws a side's next token, tells it, and sees whether the side goes on.
    fn draw(
        &self,
        side: &mut Side<'_>,
        scores: &Scores,
        place: usize,
        lines: &Lines,
    ) -> Answer<()> {
        let mine = &scores[side.sentence];
        let id = self.request.sampler().draw(mine, place).ok_or_else(|| {
            Refusal::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "scores are not finite")
                .hint("steer with smaller values")
        })?;
        let prediction = Prediction::new(mine);
        let kl = side.reference.map(|reference| {
            let kl = prediction.divergence(Prediction::new(&scores[reference]));
            // Rounding may leave it a little below; what is not finite stays so.
            if kl < 0.0 { 0.0 } else { kl }
        });
        side.divergence += kl.unwrap_or(0.0);
        side.tokens += 1;
        let ends = self.model.ends.contains(&id);
        let (text, stops) = if ends { (String::new(), false) } else { side.writing.push(id)? };
        lines.send(&json!({
            "event": "token", "side": side.name, "index": place, "id": id, "text": text,
            "kl": kl, "logprob": -prediction.cross_entropy(id),
        }))?;
        let full = self.encoding.ids.len() + side.tokens > self.model.info().context_length;
        let reason = match () {
            () if ends => Some("end_of_text"),
            () if stops => Some("stop"),
            () if side.tokens == self.request.max_tokens => Some("length"),
            () if full => Some("context"),
            () if Instant::now() >= self.until => Some("time"),
            () => None,
        };
        side.next = reason.is_none().then_some(id);
        let Some(reason) = reason else { return Ok(()) };
        if !stops {
            side.writing.finish()?;
        }
        lines.send(&json!({
            "event": "end", "side": side.name, "reason": reason, "text": side.writing.text,
            "tokens": side.tokens, "mean_kl": kl.map(|_| side.divergence / side.tokens as f64),
        }))
    }
}

/// Rows of the steered sentence, the second, that are not of special tokens.
fn steered_rows(step: &Step, special: &[Vec<bool>]) -> Vec<usize> {
    let Some(special) = special.get(1) else { return vec![] };
    step.rows(1).filter(|(_, position)| !special[*position]).map(|(row, _)| row).collect()
}

/// A hook's receiver has no other way to say what is wrong with a request.
fn told(error: ModelError) -> Refusal {
    match error {
        ModelError::Tensor(candle_core::Error::Msg(what)) => Refusal::bad(what),
        other => other.into(),
    }
}
