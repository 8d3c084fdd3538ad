//! Anthropic's Message Batches.
//!
//! A batch carries no mark of ours, so one whose making was interrupted is found by its size and, once it has
//! ended, by the ids of its results.

use serde_json::{Value, json};

use super::{Found, Outcome, Outgoing, Poll, Prepared, Results, lines, number, said, text, walk};
use crate::{
    naming::{
        http::Http,
        ledger::{Intent, Usage},
        question::{Asking, Question},
    },
    stage::Result,
};

pub(super) const BASE: &str = "https://api.anthropic.com";
pub(super) const BATCHES: &str = "/v1/messages/batches";
const VERSION: &str = "2023-06-01";
/// The tool through which structured answers come: models of all generations can be made to use one.
const TOOL: &str = "answer";
/// Errors that are the provider's own.
const TROUBLES: [&str; 4] = ["api_error", "overloaded_error", "rate_limit_error", "timeout_error"];

pub(super) fn headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    let version = [("anthropic-version", VERSION.to_owned())];
    let json = [("content-type", "application/json".to_owned())];
    let key = key.map(|key| ("x-api-key", key.to_owned()));
    version.into_iter().chain(json).chain(key).collect()
}

pub(super) fn body(question: &Question, asking: &Asking, structured: bool) -> Value {
    let mut body = json!({
        "model": asking.model,
        "max_tokens": asking.answer_tokens,
        "system": question.system,
        "messages": [{"role": "user", "content": question.user}],
    });
    if structured {
        body["tools"] = json!([{
            "name": TOOL,
            "description": "Gives the answer.",
            "input_schema": question.schema(),
        }]);
        body["tool_choice"] = json!({"type": "tool", "name": TOOL});
    }
    body
}

pub(super) fn prepare(http: &Http, requests: &[Outgoing]) -> Result<Prepared> {
    let list = http.json("list batches", || http.get(&format!("{BATCHES}?limit=1")))?;
    let newest = list.pointer("/data/0").and_then(|batch| text(batch, "id"));
    let request = |r: &Outgoing| json!({"custom_id": r.id, "params": r.body});
    let requests: Vec<Value> = requests.iter().map(request).collect();
    let body = json!({"requests": requests}).to_string().into_bytes();
    Ok(Prepared { body, newest })
}

pub(super) fn find(
    http: &Http,
    intent: &Intent,
    earliest: i64,
    known: &dyn Fn(&str) -> bool,
) -> Result<Found> {
    let mut undecided = false;
    let found = walk(http, (BATCHES, "after_id"), |batch| {
        let Some(id) = text(batch, "id") else { return Ok(None) };
        let made = batch.get("created_at").and_then(Value::as_str);
        let made = made.and_then(|at| at.parse::<jiff::Timestamp>().ok());
        let earlier = made.is_some_and(|made| made.as_second() < earliest);
        if intent.newest.as_ref() == Some(&id) || earlier {
            return Ok(Some(Found::Nothing));
        }
        if known(&id) || count(batch) != intent.ids.len() as u64 {
            return Ok(None);
        }
        if !ended(batch) {
            undecided = true;
            return Ok(None);
        }
        let Some(found) = results(http, &id)? else {
            undecided = true;
            return Ok(None);
        };
        let ours = found.by_id.iter().any(|(id, _)| intent.ids.contains(id));
        Ok(ours.then_some(Found::Batch(id)))
    })?;
    Ok(match found {
        Some(Found::Batch(id)) => Found::Batch(id),
        _ if undecided => Found::Undecided,
        _ => Found::Nothing,
    })
}

fn count(batch: &Value) -> u64 {
    let counts = batch.get("request_counts").and_then(Value::as_object);
    counts.into_iter().flat_map(|c| c.values()).filter_map(Value::as_u64).sum()
}

fn ended(batch: &Value) -> bool {
    batch.get("processing_status").and_then(Value::as_str) == Some("ended")
}

pub(super) fn poll(batch: &Value) -> Option<Poll> {
    batch.get("processing_status")?;
    let total = count(batch);
    let done = total - number(batch, "/request_counts/processing").min(total);
    Some(if ended(batch) { Poll::Ended } else { Poll::UnderWay { done, total } })
}

pub(super) fn results(http: &Http, batch: &str) -> Result<Option<Results>> {
    let path = format!("{BATCHES}/{batch}");
    let state = http.json("look at a batch", || http.get(&path))?;
    let Some(found) = lines(http, &format!("{path}/results"), count(&state))? else {
        return Ok(None);
    };
    let result = |line: &Value| Some((text(line, "custom_id")?, result(line.get("result")?)));
    let by_id = found.iter().filter_map(result).collect();
    let cancelled = found.iter().any(|l| l.pointer("/result/type") == Some(&"canceled".into()));
    let trouble = cancelled.then(|| "it was cancelled".to_owned());
    Ok(Some(Results { by_id, rest: Outcome::Expired, trouble }))
}

fn result(result: &Value) -> Outcome {
    match result.get("type").and_then(Value::as_str) {
        Some("succeeded") => outcome(result.get("message").unwrap_or(&Value::Null)),
        Some("expired") => Outcome::Expired,
        Some("canceled") => Outcome::NotTaken("the batch was cancelled".into()),
        _ => {
            // The error is within an answer of the type `error`.
            let error = result.pointer("/error/error").or(result.get("error")).unwrap_or(result);
            let kind = error.get("type").and_then(Value::as_str).unwrap_or_default();
            if TROUBLES.contains(&kind) {
                Outcome::NotTaken(said(error))
            } else {
                Outcome::Failed(said(error))
            }
        }
    }
}

fn outcome(message: &Value) -> Outcome {
    let usage = Usage {
        input: number(message, "/usage/input_tokens")
            + number(message, "/usage/cache_creation_input_tokens")
            + number(message, "/usage/cache_read_input_tokens"),
        output: number(message, "/usage/output_tokens"),
    };
    let blocks = message.get("content").and_then(Value::as_array);
    let Some(blocks) = blocks else { return Outcome::Failed("the message has no content".into()) };
    let tool = blocks.iter().find_map(|block| block.get("input")).map(Value::to_string);
    let words = || blocks.iter().filter_map(|b| b.get("text")?.as_str()).collect::<String>();
    if message.get("stop_reason").and_then(Value::as_str) == Some("refusal") {
        return Outcome::Refused { said: words(), usage };
    }
    let model = text(message, "model").unwrap_or_default();
    Outcome::Answered { text: tool.unwrap_or_else(words), model, usage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_result_is_understood() {
        let usage = json!({"input_tokens": 7, "output_tokens": 2});
        let message = |content: Value, stop: &str| {
            json!({"type": "succeeded", "message": {
                "model": "m", "content": content, "stop_reason": stop, "usage": usage}})
        };
        let tokens = Usage { input: 7, output: 2 };
        let answered =
            |text: &str| Outcome::Answered { text: text.into(), model: "m".into(), usage: tokens };
        let tool = json!([{"type": "tool_use", "name": TOOL, "input": {"a": 1}}]);
        assert_eq!(result(&message(tool, "tool_use")), answered("{\"a\":1}"));
        let words = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_eq!(result(&message(words.clone(), "end_turn")), answered("ab"));
        let refused = Outcome::Refused { said: "ab".into(), usage: tokens };
        assert_eq!(result(&message(words, "refusal")), refused);
        let error = json!({"type": "errored", "error": {"type": "error", "error": {
            "type": "overloaded_error", "message": "busy"}}});
        assert_eq!(result(&error), Outcome::NotTaken("overloaded_error: busy".into()));
        let error = json!({"type": "errored", "error": {"type": "error", "error": {
            "type": "invalid_request_error", "message": "too long"}}});
        assert_eq!(result(&error), Outcome::Failed("invalid_request_error: too long".into()));
        assert_eq!(result(&json!({"type": "expired"})), Outcome::Expired);
        let cancelled = result(&json!({"type": "canceled"}));
        assert!(matches!(cancelled, Outcome::NotTaken(_)), "{cancelled:?}");
    }
}
