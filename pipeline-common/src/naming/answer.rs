//! What the language model answers, read even where it is not quite JSON.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::question::{GROUP, Kind, Question};

/// Characters of a label or description that are kept.
const LONGEST: usize = 600;

/// The answer to an explain question.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Explanation {
    pub label: String,
    pub description: String,
    pub certainty: f64,
}

/// Whether a text answers a question.
pub(super) fn is_readable(question: &Question, text: &str) -> bool {
    match question.kind {
        Kind::Explain => explanation(text).is_some(),
        Kind::Detection | Kind::Fuzzing => judgements(text, question.truth.len()).is_some(),
        Kind::Intruder => intruder(text).is_some(),
    }
}

/// Reads the answer to an explain question; `None` if there is none in the text.
pub(super) fn explanation(text: &str) -> Option<Explanation> {
    let value: Value = lenient(text)?;
    let field = |name: &str| {
        let text = value.get(name)?.as_str()?.trim();
        let text: String = text.chars().take(LONGEST).collect();
        (!text.is_empty()).then_some(text)
    };
    // Percentages and numbers as text occur.
    let certainty = match value.get("certainty") {
        Some(Value::Number(n)) => n.as_f64(),
        Some(Value::String(s)) => s.trim().trim_end_matches('%').parse().ok(),
        _ => None,
    };
    let certainty = certainty.filter(|c| c.is_finite() && *c >= 0.0)?;
    let certainty = if certainty > 1.0 { certainty / 100.0 } else { certainty };
    Some(Explanation {
        label: field("label")?,
        description: field("description")?,
        certainty: certainty.min(1.0),
    })
}

/// Reads `count` answers of 0 or 1.
pub(super) fn judgements(text: &str, count: usize) -> Option<Vec<u64>> {
    let value: Value = lenient(text)?;
    let list = value.get("answers").unwrap_or(&value).as_array()?;
    let bit = |v: &Value| match v {
        Value::Bool(b) => Some(u64::from(*b)),
        Value::String(s) => s.trim().parse().ok(),
        v => v.as_u64(),
    };
    let bits: Option<Vec<u64>> = list.iter().map(bit).collect();
    bits.filter(|bits| bits.len() == count && bits.iter().all(|b| *b < 2))
}

/// Reads the number of an intruder.
pub(super) fn intruder(text: &str) -> Option<u64> {
    let value: Value = lenient(text)?;
    let number = match value.get("intruder").unwrap_or(&value) {
        Value::String(s) => s.trim().parse().ok(),
        v => v.as_u64(),
    };
    number.filter(|n| (1..=GROUP as u64).contains(n))
}

/// JSON that may stand between fences or words, and may have commas too many or an end too early.
fn lenient<T: DeserializeOwned>(text: &str) -> Option<T> {
    let text = text.trim();
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    // Reasoning models think aloud before they answer.
    let text = text.rsplit_once("</think>").map_or(text, |(_, after)| after);
    let begin = text.find(['{', '['])?;
    let repaired = repaired(&text[begin..]);
    serde_json::from_str(&repaired).ok()
}

/// The first value of a text that begins with one: trailing commas removed, line breaks in strings
/// escaped, what was left open closed.
fn repaired(text: &str) -> String {
    let mut out = String::new();
    let mut open = Vec::new();
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        if in_string {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => {}
                '\t' => out.push_str("\\t"),
                c => out.push(c),
            }
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '"' => in_string = true,
            '{' => open.push('}'),
            '[' => open.push(']'),
            '}' | ']' => {
                trim_comma(&mut out);
                if open.pop() != Some(c) {
                    break;
                }
            }
            _ => {}
        }
        out.push(c);
        if open.is_empty() {
            return out;
        }
    }
    // Cut off: a string that was cut is no answer, lists and objects that only lack their end are.
    if !in_string {
        trim_comma(&mut out);
        out.extend(open.into_iter().rev());
    }
    out
}

fn trim_comma(out: &mut String) {
    let end = out.trim_end().len();
    if out[..end].ends_with(',') {
        out.truncate(end - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"{"label": "a", "description": "b, c", "certainty": 0.5}"#;

    #[test]
    fn answers_in_every_disguise_are_read() {
        let expected = explanation(PLAIN).unwrap();
        assert_eq!(expected.label, "a");
        for text in [
            format!("```json\n{PLAIN}\n```"),
            format!("Here you are: {PLAIN} I hope it helps {{}}."),
            format!("<think>{{\"label\": 1}}</think>\n{PLAIN}"),
            PLAIN.replace("0.5}", "0.5,\n}"),
            PLAIN.replace('}', ""),
            PLAIN.replace("0.5", "\"50%\""),
            PLAIN.replace("0.5", "50"),
        ] {
            assert_eq!(explanation(&text).as_ref(), Some(&expected), "{text}");
        }
        let broken = PLAIN.replace("b, c", "b\nc \\\" d");
        assert_eq!(explanation(&broken).unwrap().description, "b\nc \" d");
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for text in [
            "",
            "I cannot say.",
            "{",
            "[1, 2}",
            r#"{"label": "a"}"#,
            r#"{"label": "", "description": "b", "certainty": 1}"#,
            r#"{"label": "a", "description": "b", "certainty": "very"}"#,
            r#"{"label": "a", "description": "cut of"#,
        ] {
            assert_eq!(explanation(text), None, "{text}");
        }
    }

    #[test]
    fn lists_must_have_their_length_and_numbers_their_range() {
        assert_eq!(judgements(r#"{"answers": [1, 0, true]}"#, 3), Some(vec![1, 0, 1]));
        assert_eq!(judgements("[1, 0,]", 2), Some(vec![1, 0]));
        for (text, count) in [("[1]", 2), ("[2]", 1), ("[-1]", 1), ("1", 1), ("{}", 0)] {
            assert_eq!(judgements(text, count), None, "{text}");
        }
        assert_eq!(intruder(r#"{"intruder": 5}"#), Some(5));
        assert_eq!(intruder(r#"{"intruder": 6}"#), None);
        assert_eq!(intruder(r#"{"intruder": 0}"#), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in r#"[\[\]{}",:\\ a1é\n]{0,40}"#) {
            explanation(&text);
            judgements(&text, 1);
            intruder(&text);
        }
    }
}
