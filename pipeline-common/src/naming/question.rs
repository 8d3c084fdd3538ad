//! What the language model is asked.
//!
//! | kind | shown | answer |
//! |---|---|---|
//! | explain | sentences, strong to weak, active tokens marked « », levels 0-10; negatives | label, description, certainty |
//! | detection | the description, unmarked sentences | 1 for each in which the latent is active, else 0 |
//! | fuzzing | the description, marked sentences | 1 for each whose marks are right, else 0 |
//! | intruder | five marked sentences, no description | the number of the one that does not belong |
//!
//! After Bills et al. 2023 (activations as integers 0-10) and Paulo et al. 2024, arXiv:2410.13928 (marks,
//! strata, detection, fuzzing, intruders). A question is identified by a hash of all that the model sees and
//! of the model: equal questions are paid once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::examples::{Example, Examples, mix};
use crate::names::NameRecord;

/// Sentences judged in one question.
const TOGETHER: usize = 10;
/// Sentences of an intruder question, the intruder counted.
pub(super) const GROUP: usize = 5;
/// Intruder questions for each latent.
const GROUPS: usize = 5;

const EXPLAIN: &str = "\
You study one latent of a sparse autoencoder that was trained on a language model's activations. You see \
excerpts of text, strongest first. Tokens at which the latent is active are marked «like this», and \
under each excerpt they are listed with their activation, an integer up to 10, the latent's largest. Then \
come excerpts in which it is silent although similar latents are active or the text is similar.
Find what the latent stands for: what the marked tokens, or the text before them, have in common that \
the silent excerpts lack. Be specific and concise; do not speak of tokens, latents or excerpts, \
and do not list examples. The label has at most eight words, the description at most two sentences; \
certainty is from 0 (a guess) to 1 (sure).";

const DETECTION: &str = "\
You see a description of a feature of text and a numbered list of excerpts. For each excerpt decide whether \
the feature occurs in it: 1 if it does, 0 if not. Any number of them may have it.";

const FUZZING: &str = "\
You see a description of a feature of text and a numbered list of excerpts in which some tokens are marked \
«like this». For each excerpt decide whether the marked tokens are the ones that the description is about: 1 \
if they are, 0 if the marks are wrong. Any number of them may be right.";

const INTRUDER: &str = "\
You see five numbered excerpts in which some tokens are marked «like this». In four of them the marked \
tokens, or what stands before them, have something in common; one excerpt was put among them by chance. \
Give its number.";

/// Kinds of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Explain,
    Detection,
    Fuzzing,
    Intruder,
}

impl Kind {
    pub const JUDGEMENTS: [Self; 3] = [Self::Detection, Self::Fuzzing, Self::Intruder];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Explain => "explain",
            Self::Detection => "detection",
            Self::Fuzzing => "fuzzing",
            Self::Intruder => "intruder",
        }
    }
}

/// One thing to judge: the right answer, and the document it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truth {
    pub document: u64,
    /// 1 or 0; of an intruder its number, from 1.
    pub answer: u64,
}

/// What a question is about and what it says.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub latent: u32,
    pub kind: Kind,
    /// Of several of one kind, from 0.
    pub part: u32,
    pub system: &'static str,
    pub user: String,
    pub truth: Vec<Truth>,
}

/// What all questions of a run have in common.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    pub model: String,
    /// Tokens that an answer may have.
    pub answer_tokens: u32,
}

impl Question {
    /// What tells this question from all others: model and prompt. `attempt` counts the times that an answer
    /// could not be read.
    pub fn id(&self, asking: &Asking, attempt: u32) -> String {
        let what = json!([
            self.kind,
            self.latent,
            self.part,
            attempt,
            asking.model,
            self.system,
            self.user,
        ]);
        blake3::hash(what.to_string().as_bytes()).to_hex()[..32].to_owned()
    }

    /// JSON schema of the answer; strict ones need every key and no others.
    pub fn schema(&self) -> Value {
        let properties = match self.kind {
            Kind::Explain => json!({
                "label": {"type": "string"},
                "description": {"type": "string"},
                "certainty": {"type": "number"},
            }),
            Kind::Detection | Kind::Fuzzing => {
                json!({"answers": {"type": "array", "items": {"type": "integer", "enum": [0, 1]}}})
            }
            Kind::Intruder => json!({"intruder": {"type": "integer"}}),
        };
        let keys: Vec<&String> =
            properties.as_object().into_iter().flat_map(|o| o.keys()).collect();
        json!({
            "type": "object",
            "properties": properties,
            "required": keys,
            "additionalProperties": false,
        })
    }

    /// Bytes that the model reads.
    pub fn bytes(&self) -> usize {
        self.system.len() + self.user.len() + self.schema().to_string().len()
    }

    /// Asks for a name.
    pub fn explain(latent: u32, examples: &Examples) -> Self {
        let mut user = String::from("Excerpts in which it is active:\n");
        let strength = |e: &Example| e.levels.iter().copied().max().unwrap_or(0);
        let mut positive: Vec<&Example> = examples.positive.iter().collect();
        positive.sort_by_key(|e| std::cmp::Reverse(strength(e)));
        for (n, example) in positive.into_iter().enumerate() {
            user += &format!("\n{}. {}\n   {}\n", n + 1, marked(example), activations(example));
        }
        if !examples.negative.is_empty() {
            user += "\nExcerpts in which it is silent:\n";
            for (n, example) in examples.negative.iter().enumerate() {
                user += &format!("\n{}. {}\n", n + 1, plain(&example.tokens.concat()));
            }
        }
        user += "\nAnswer with JSON: {\"label\": ..., \"description\": ..., \"certainty\": ...}";
        Self { latent, kind: Kind::Explain, part: 0, system: EXPLAIN, user, truth: vec![] }
    }

    /// Asks in which sentences a name's feature occurs.
    pub fn detection(name: &NameRecord, examples: &Examples, seed: u64) -> Vec<Self> {
        let all = examples.positive.iter().chain(&examples.negative);
        let shown = all.map(|e| (e, plain(&e.tokens.concat()), u64::from(e.is_active()))).collect();
        Self::judged(name, Kind::Detection, DETECTION, shown, seed)
    }

    /// Asks which sentences are marked rightly.
    pub fn fuzzing(name: &NameRecord, examples: &Examples, seed: u64) -> Vec<Self> {
        let mut shown = Vec::new();
        for (n, example) in examples.positive.iter().enumerate() {
            let wrong = (n % 2 == 1).then(|| mismarked(example, seed)).flatten();
            shown.push(match wrong {
                Some(wrong) => (example, marked(&wrong), 0),
                None => (example, marked(example), 1),
            });
        }
        Self::judged(name, Kind::Fuzzing, FUZZING, shown, seed)
    }

    /// Questions over sentences, mixed, with the right answers; none if one answer were right for all, since
    /// then nothing tells a good name from one that fits everything.
    fn judged(
        name: &NameRecord,
        kind: Kind,
        system: &'static str,
        mut shown: Vec<(&Example, String, u64)>,
        seed: u64,
    ) -> Vec<Self> {
        let right = |answer: u64| shown.iter().any(|(.., right)| *right == answer);
        if !(right(0) && right(1)) {
            return Vec::new();
        }
        let latent = u64::from(name.latent);
        shown.sort_by_key(|(e, _, _)| mix(&[seed, latent, kind as u64, e.sentence]));
        let description = format!("{}: {}", name.label, name.description);
        let question = |(part, chunk): (usize, &[(&Example, String, u64)])| {
            let mut user = format!("Description: {}\n", plain(&description));
            for (n, (_, text, _)) in chunk.iter().enumerate() {
                user += &format!("\n{}. {text}\n", n + 1);
            }
            let count = chunk.len();
            user += &format!(
                "\nAnswer with JSON: {{\"answers\": [...]}}, a list of {count} numbers, each 0 or 1."
            );
            let truth =
                chunk.iter().map(|(e, _, answer)| Truth { document: e.document, answer: *answer });
            Self {
                latent: name.latent,
                kind,
                part: part as u32,
                system,
                user,
                truth: truth.collect(),
            }
        };
        shown.chunks(TOGETHER).enumerate().map(question).collect()
    }

    /// Asks for the sentence that does not belong, from several tenths by strength.
    pub fn intruder(latent: u32, examples: &Examples, seed: u64) -> Vec<Self> {
        let mut by_decile: BTreeMap<usize, Vec<&Example>> = BTreeMap::new();
        for example in &examples.positive {
            by_decile.entry(example.decile).or_default().push(example);
        }
        // Neighbouring tenths together, so that the sentences of a group are of similar strength.
        let ordered: Vec<&Example> = by_decile.into_values().flatten().collect();
        let groups = ordered.chunks_exact(GROUP - 1).zip(&examples.negative).take(GROUPS);
        let question = |(part, (group, intruder)): (usize, (&[&Example], &Example))| {
            let place = mix(&[seed, u64::from(latent), intruder.sentence]) as usize % GROUP;
            let intruder =
                Example { levels: random_marks(intruder, group[0], seed), ..intruder.clone() };
            let mut shown: Vec<&Example> = group.to_vec();
            shown.insert(place, &intruder);
            let mut user = String::new();
            for (n, example) in shown.iter().enumerate() {
                user += &format!("{}. {}\n\n", n + 1, marked(example));
            }
            user += "Answer with JSON: {\"intruder\": ...}";
            let truth = vec![Truth { document: intruder.document, answer: place as u64 + 1 }];
            Self { latent, kind: Kind::Intruder, part: part as u32, system: INTRUDER, user, truth }
        };
        groups.enumerate().map(question).collect()
    }
}

/// Text on one line.
fn plain(text: &str) -> String {
    text.replace('\n', "\\n").trim().to_owned()
}

/// A sentence with each run of active tokens between « and ».
fn marked(example: &Example) -> String {
    let mut text = String::new();
    let mut inside = false;
    for (token, level) in example.tokens.iter().zip(&example.levels) {
        let active = *level > 0;
        if active != inside {
            text.push(if active { '«' } else { '»' });
            inside = active;
        }
        text += token;
    }
    if inside {
        text.push('»');
    }
    plain(&text)
}

fn activations(example: &Example) -> String {
    let pairs = example.tokens.iter().zip(&example.levels).filter(|(_, level)| **level > 0);
    let shown: Vec<String> =
        pairs.map(|(token, level)| format!("\"{}\" {level}", plain(token))).collect();
    shown.join(", ")
}

/// A sentence with as many marks at places where the latent is silent; none if there are too few.
fn mismarked(example: &Example, seed: u64) -> Option<Example> {
    let active = example.levels.iter().filter(|level| **level > 0).count();
    let mut silent: Vec<usize> =
        (0..example.levels.len()).filter(|i| example.levels[*i] == 0).collect();
    if silent.len() < active {
        return None;
    }
    silent.sort_by_key(|i| mix(&[seed, example.sentence, *i as u64]));
    let mut levels = vec![0; example.levels.len()];
    silent[..active].iter().for_each(|i| levels[*i] = 1);
    Some(Example { levels, ..example.clone() })
}

/// Marks for a silent sentence, as many as another one has.
fn random_marks(silent: &Example, like: &Example, seed: u64) -> Vec<u8> {
    let count = like.levels.iter().filter(|level| **level > 0).count();
    let mut places: Vec<usize> = (0..silent.tokens.len()).collect();
    places.sort_by_key(|i| mix(&[seed, silent.sentence, *i as u64]));
    let mut levels = vec![0; places.len()];
    places.iter().take(count).for_each(|i| levels[*i] = 1);
    levels
}

#[cfg(test)]
mod tests {
    use super::{
        super::examples::{Purpose, Source, tests::planted},
        *,
    };
    use crate::top::TopData;

    fn example(tokens: &[&str], levels: &[u8]) -> Example {
        let tokens = tokens.iter().map(|t| (*t).to_owned()).collect();
        Example { sentence: 1, document: 1, tokens, levels: levels.to_vec(), decile: 0 }
    }

    #[test]
    fn runs_of_active_tokens_are_marked_together() {
        let shown = example(&[" The", " red", " cat", "\n", "s"], &[0, 3, 10, 0, 1]);
        assert_eq!(marked(&shown), "The« red cat»\\n«s»");
        assert_eq!(activations(&shown), "\"red\" 3, \"cat\" 10, \"s\" 1");
    }

    #[test]
    fn wrong_marks_are_as_many_and_elsewhere() {
        let right = example(&["a", "b", "c", "d"], &[0, 5, 0, 0]);
        let wrong = mismarked(&right, 1).unwrap();
        assert_eq!(wrong.levels.iter().filter(|l| **l > 0).count(), 1);
        assert_eq!(wrong.levels[1], 0);
        assert!(mismarked(&example(&["a"], &[5]), 1).is_none());
    }

    #[test]
    fn every_judgement_knows_its_right_answer() {
        let dir = tempfile::tempdir().unwrap();
        planted(dir.path());
        let data = TopData::open(dir.path()).unwrap();
        let source = Source { data: &data, seed: 3 };
        let examples = source.examples(&data.latent(0).unwrap(), Purpose::Judge).unwrap();
        let name = NameRecord { label: "l".into(), description: "d".into(), ..Default::default() };
        let detection = Question::detection(&name, &examples, 3);
        let judged: usize = detection.iter().map(|q| q.truth.len()).sum();
        assert_eq!(judged, examples.positive.len() + examples.negative.len());
        for question in &detection {
            let lines: Vec<&str> =
                question.user.lines().filter(|l| l.contains(". A word")).collect();
            assert_eq!(lines.len(), question.truth.len());
            for (line, truth) in lines.iter().zip(&question.truth) {
                let number: String = line
                    .split("word")
                    .nth(1)
                    .unwrap()
                    .chars()
                    .take_while(char::is_ascii_digit)
                    .collect();
                assert_eq!(truth.answer == 1, number.parse::<u64>().unwrap() % 3 == 0, "{line}");
            }
        }
        for question in Question::fuzzing(&name, &examples, 3) {
            for (line, truth) in
                question.user.lines().filter(|l| l.contains('«')).zip(&question.truth)
            {
                assert_eq!(truth.answer == 1, line.contains("« word"), "{line}");
            }
        }
        let intruder = Question::intruder(0, &examples, 3);
        assert_eq!(intruder.len(), GROUPS.min(examples.positive.len() / (GROUP - 1)));
        for question in intruder {
            let lines: Vec<&str> = question.user.lines().filter(|l| l.contains('«')).collect();
            let odd = lines[question.truth[0].answer as usize - 1].replace(['«', '»'], "");
            let number: String = odd
                .split("word")
                .nth(1)
                .unwrap()
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            assert_ne!(number.parse::<u64>().unwrap() % 3, 0, "{odd}");
        }
    }

    #[test]
    fn sentences_of_one_class_are_not_asked_about() {
        let name = NameRecord::default();
        let active = example(&["a", "b"], &[1, 0]);
        let silent = example(&["a", "b"], &[0, 0]);
        let all_active = example(&["a"], &[1]);
        let asked = |positive: &[&Example], negative: &[&Example]| {
            let owned = |list: &[&Example]| list.iter().map(|e| (*e).clone()).collect();
            let examples = Examples { positive: owned(positive), negative: owned(negative) };
            let counts = [Question::detection, Question::fuzzing];
            counts.map(|make| make(&name, &examples, 0).len())
        };
        assert_eq!(asked(&[&active, &active], &[&silent]), [1, 1]);
        assert_eq!(asked(&[&active], &[]), [0, 0]);
        assert_eq!(asked(&[], &[&silent]), [0, 0]);
        assert_eq!(asked(&[&all_active, &all_active], &[&silent]), [1, 0], "nowhere to mismark");
    }

    #[test]
    fn equal_questions_have_one_id_and_others_another() {
        let examples = Examples { positive: vec![example(&["a"], &[1])], negative: vec![] };
        let asking = Asking { model: "m".into(), answer_tokens: 10 };
        let question = Question::explain(1, &examples);
        let id = question.id(&asking, 0);
        assert_eq!(id, Question::explain(1, &examples).id(&asking, 0));
        assert!(id.len() <= 64 && id.chars().all(|c| c.is_ascii_alphanumeric()));
        let other = Asking { model: "n".into(), ..asking.clone() };
        let others = [
            question.id(&asking, 1),
            question.id(&other, 0),
            Question::explain(2, &examples).id(&asking, 0),
        ];
        assert!(!others.contains(&id));
    }
}
