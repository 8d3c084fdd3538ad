//! OpenAI's chat completions, and its Batch API, which runs files of them.
//!
//! A batch carries its intent's name in its metadata, so one whose making was interrupted is found by it.

use serde_json::{Value, json};

use super::{Found, Outcome, Outgoing, Poll, Prepared, Results, lines, number, said, text, walk};
use crate::{
    naming::{
        http::Http,
        ledger::Usage,
        question::{Asking, Question},
    },
    stage::{Failure, Result},
};

pub(super) const BASE: &str = "https://api.openai.com/v1";
pub(super) const BATCHES: &str = "/batches";
/// The key of a batch's metadata that holds its intent's name.
const INTENT: &str = "intent";
/// The key of the file of answers.
const OUTPUT: &str = "output_file_id";

pub(super) fn headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    let json = [("content-type", "application/json".to_owned())];
    let key = key.map(|key| ("authorization", format!("Bearer {key}")));
    json.into_iter().chain(key).collect()
}

/// `limit` is what the server calls the largest number of tokens.
pub(super) fn body(question: &Question, asking: &Asking, limit: &str, structured: bool) -> Value {
    let mut body = json!({
        "model": asking.model,
        "messages": [
            {"role": "system", "content": question.system},
            {"role": "user", "content": question.user},
        ],
    });
    body[limit] = asking.answer_tokens.into();
    if structured {
        body["response_format"] = json!({
            "type": "json_schema",
            "json_schema": {"name": question.kind.name(), "strict": true, "schema": question.schema()},
        });
    }
    body
}

pub(super) fn outcome(completion: &Value) -> Outcome {
    let usage = Usage {
        input: number(completion, "/usage/prompt_tokens"),
        output: number(completion, "/usage/completion_tokens"),
    };
    let Some(choice) = completion.pointer("/choices/0") else {
        return Outcome::Failed(said(completion.get("error").unwrap_or(completion)));
    };
    let message = |key: &str| choice.pointer(&format!("/message/{key}")).and_then(Value::as_str);
    let filtered = choice.get("finish_reason").and_then(Value::as_str) == Some("content_filter");
    match message("refusal").filter(|refusal| !refusal.is_empty()) {
        Some(refusal) => Outcome::Refused { said: refusal.to_owned(), usage },
        None if filtered => Outcome::Refused { said: "content filter".to_owned(), usage },
        None => Outcome::Answered {
            text: message("content").unwrap_or_default().to_owned(),
            model: text(completion, "model").unwrap_or_default(),
            usage,
        },
    }
}

pub(super) fn prepare(http: &Http, intent: &str, requests: &[Outgoing]) -> Result<Prepared> {
    let mut file = String::new();
    for request in requests {
        let line = json!({
            "custom_id": request.id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": request.body,
        });
        file += &format!("{line}\n");
    }
    let (kind, form) = form(intent, &file);
    let made = http.json("upload a file of requests", || {
        http.post("/files").header("content-type", kind.clone()).body(form.clone())
    })?;
    let file = text(&made, "id")
        .ok_or_else(|| Failure::unavailable("the provider's answer to an upload names no file"))?;
    let body = json!({
        "input_file_id": file,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {INTENT: intent},
    });
    Ok(Prepared { body: body.to_string().into_bytes(), newest: None })
}

/// A form with a file, and its content type.
fn form(name: &str, file: &str) -> (String, Vec<u8>) {
    let boundary = blake3::hash(file.as_bytes()).to_hex();
    let field = |disposition: &str, content: &str| {
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n"
        )
    };
    let mut form = field("name=\"purpose\"", "batch");
    form += &field(&format!("name=\"file\"; filename=\"{name}.jsonl\""), file);
    form += &format!("--{boundary}--\r\n");
    (format!("multipart/form-data; boundary={boundary}"), form.into_bytes())
}

pub(super) fn find(http: &Http, name: &str, earliest: i64) -> Result<Found> {
    let found = walk(http, (BATCHES, "after"), |batch| {
        let ours = batch.pointer(&format!("/metadata/{INTENT}")).and_then(Value::as_str);
        if let (true, Some(id)) = (ours == Some(name), text(batch, "id")) {
            return Ok(Some(Found::Batch(id)));
        }
        let earlier =
            batch.get("created_at").and_then(Value::as_i64).is_some_and(|at| at < earliest);
        Ok(earlier.then_some(Found::Nothing))
    })?;
    Ok(found.unwrap_or(Found::Nothing))
}

pub(super) fn poll(batch: &Value) -> Option<Poll> {
    let [completed, failed, total] = ["completed", "failed", "total"]
        .map(|count| number(batch, &format!("/request_counts/{count}")));
    // A batch is over before its files show.
    let shown = completed == 0 || text(batch, OUTPUT).is_some();
    Some(match batch.get("status")?.as_str()? {
        "completed" | "failed" | "expired" | "cancelled" if shown => Poll::Ended,
        _ => Poll::UnderWay { done: completed + failed, total },
    })
}

pub(super) fn results(http: &Http, batch: &str) -> Result<Option<Results>> {
    let state = http.json("look at a batch", || http.get(&format!("{BATCHES}/{batch}")))?;
    let files = [(OUTPUT, number(&state, "/request_counts/completed")), ("error_file_id", 0)];
    let mut by_id = Vec::new();
    for (key, expected) in files {
        let Some(file) = text(&state, key) else { continue };
        let found = match lines(http, &format!("/files/{file}/content"), expected)? {
            Some(found) => found,
            None if key == OUTPUT => return Ok(None),
            None => Vec::new(),
        };
        by_id
            .extend(found.iter().filter_map(|line| Some((text(line, "custom_id")?, result(line)))));
    }
    let trouble = match state.get("status").and_then(Value::as_str) {
        Some("failed") => {
            Some(state.pointer("/errors/data/0").map_or_else(|| "it failed".into(), said))
        }
        Some("cancelled") => Some("it was cancelled".into()),
        _ => None,
    };
    let rest = trouble.clone().map_or(Outcome::Expired, Outcome::NotTaken);
    Ok(Some(Results { by_id, rest, trouble }))
}

fn result(line: &Value) -> Outcome {
    if let Some(error) = line.get("error").filter(|e| !e.is_null()) {
        return match error.get("code").and_then(Value::as_str) {
            Some("batch_expired") => Outcome::Expired,
            Some("batch_cancelled") => Outcome::NotTaken(said(error)),
            _ => Outcome::Failed(said(error)),
        };
    }
    let body = line.pointer("/response/body").unwrap_or(&Value::Null);
    match number(line, "/response/status_code") {
        200 => outcome(body),
        status => {
            let why = format!("HTTP {status}: {}", said(body.get("error").unwrap_or(body)));
            let own = matches!(status, 408 | 409 | 429) || status >= 500;
            if own { Outcome::NotTaken(why) } else { Outcome::Failed(why) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_over_once_its_answers_show() {
        let mut batch = json!({"status": "completed",
            "request_counts": {"completed": 2, "failed": 1, "total": 3}});
        assert_eq!(poll(&batch), Some(Poll::UnderWay { done: 3, total: 3 }));
        batch[OUTPUT] = "f".into();
        assert_eq!(poll(&batch), Some(Poll::Ended));
        assert_eq!(poll(&json!({"status": "failed"})), Some(Poll::Ended));
        assert_eq!(poll(&json!({})), None);
    }

    #[test]
    fn every_kind_of_result_is_understood() {
        let completion = |message: Value, finish: &str| {
            let body = json!({"model": "m", "usage": {"prompt_tokens": 7, "completion_tokens": 2},
                "choices": [{"message": message, "finish_reason": finish}]});
            json!({"response": {"status_code": 200, "body": body}, "error": null})
        };
        let usage = Usage { input: 7, output: 2 };
        let answered =
            |text: &str| Outcome::Answered { text: text.into(), model: "m".into(), usage };
        let refused = |said: &str| Outcome::Refused { said: said.into(), usage };
        assert_eq!(result(&completion(json!({"content": "a"}), "stop")), answered("a"));
        assert_eq!(result(&completion(json!({"content": null}), "length")), answered(""));
        let refusal = json!({"content": null, "refusal": "no"});
        assert_eq!(result(&completion(refusal, "stop")), refused("no"));
        let filtered = completion(json!({"content": ""}), "content_filter");
        assert_eq!(result(&filtered), refused("content filter"));
        let expired = json!({"response": null, "error": {"code": "batch_expired", "message": "x"}});
        assert_eq!(result(&expired), Outcome::Expired);
        let bad = json!({"response": {"status_code": 400, "body": {"error": {
            "type": "invalid_request_error", "message": "no"}}}, "error": null});
        assert_eq!(result(&bad), Outcome::Failed("HTTP 400: invalid_request_error: no".into()));
    }
}
