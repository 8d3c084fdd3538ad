//! Chat templates: a conversation as the text a model was tuned on.
//!
//! A template is Jinja, made for Python: minijinja renders it with the methods, filters and
//! functions that `transformers` offers. `strftime_now` tells one fixed day, Llama's own fallback,
//! so that a run does not depend on when it is made.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::TextError;

const OWN_FILE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";
const NAME: &str = "chat";

/// What `strftime_now` knows of 26 July 2024, a Friday, at midnight.
const TODAY: &[(&str, &str)] = &[
    ("%d", "26"),
    ("%m", "07"),
    ("%Y", "2024"),
    ("%y", "24"),
    ("%b", "Jul"),
    ("%B", "July"),
    ("%a", "Fri"),
    ("%A", "Friday"),
    ("%H", "00"),
    ("%M", "00"),
    ("%S", "00"),
];

/// The chat template of a checkpoint.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and the like.
    tokens: BTreeMap<String, String>,
    file: PathBuf,
    source: String,
}

impl ChatTemplate {
    /// Reads the template of a checkpoint: `chat_template.jinja`, else what is in
    /// `tokenizer_config.json`, of several the one called `default`.
    ///
    /// # Errors
    /// [`TextError::NoTemplate`]; [`TextError::Template`] for one that cannot be understood.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let config = read_json(&dir.join(CONFIG))?.unwrap_or_default();
        let own = dir.join(OWN_FILE);
        let (file, source) = if own.is_file() {
            (own.clone(), fs_err::read_to_string(&own)?)
        } else {
            let source = configured(&config["chat_template"])
                .ok_or_else(|| TextError::NoTemplate { dir: dir.to_owned() })?;
            (dir.join(CONFIG), source.to_owned())
        };
        let map = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        let tokens = [&map, &config].into_iter().flat_map(special_tokens).collect();
        let environment = environment(&source)
            .map_err(|e| TextError::Template { file: file.clone(), why: e.to_string() })?;
        Ok(Self { environment, tokens, file, source })
    }

    /// The text of a conversation, given as JSON; an empty one is an empty document.
    ///
    /// # Errors
    /// [`TextError::Messages`] for JSON that is none; [`TextError::Render`] if the template fails.
    pub fn render(&self, document: u64, conversation: &str) -> Result<String, TextError> {
        if conversation.is_empty() {
            return Ok(String::new());
        }
        let messages =
            messages(conversation).map_err(|why| TextError::Messages { document, why })?;
        let values = context! {
            messages => messages,
            add_generation_prompt => false,
            ..Value::from(Serde(&self.tokens))
        };
        let rendered = self.environment.get_template(NAME).and_then(|t| t.render(values));
        rendered.map_err(|e| {
            let why = e.detail().map_or_else(|| e.to_string(), str::to_owned);
            TextError::Render { document, file: self.file.clone(), why }
        })
    }

    /// The file that holds the template.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// blake3 of the template, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        blake3::hash(self.source.as_bytes()).to_hex().to_string()
    }
}

fn read_json(path: &Path) -> Result<Option<serde_json::Value>, TextError> {
    let bytes = match fs_err::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|e| TextError::Template { file: path.into(), why: e.to_string() })
}

/// A template, or a list of named ones.
fn configured(value: &serde_json::Value) -> Option<&str> {
    value.as_str().or_else(|| {
        let default = value.as_array()?.iter().find(|t| t["name"] == "default")?;
        default["template"].as_str()
    })
}

/// Entries such as `"bos_token": "<s>"` or `"bos_token": {"content": "<s>"}`.
fn special_tokens(file: &serde_json::Value) -> Vec<(String, String)> {
    let entries = file.as_object().into_iter().flatten();
    let token = |(name, value): (&String, &serde_json::Value)| {
        let text = value.as_str().or_else(|| value["content"].as_str())?;
        name.ends_with("_token").then(|| (name.clone(), text.to_owned()))
    };
    entries.filter_map(token).collect()
}

fn messages(conversation: &str) -> Result<Value, String> {
    let list: Vec<serde_json::Value> =
        serde_json::from_str(conversation).map_err(|e| e.to_string())?;
    match list.iter().position(|message| !message["role"].is_string()) {
        Some(i) => Err(format!("message {i} has no `role`")),
        None => Ok(Value::from(Serde(&list))),
    }
}

fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> String {
    TODAY.iter().fold(format, |text, (code, value)| text.replace(code, value))
}

/// JSON as Python writes it: blanks behind commas and colons, nothing escaped for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let indent = options.get::<Option<usize>>("indent")?;
    let written = match indent {
        Some(indent) => {
            let blanks = " ".repeat(indent);
            let pretty = PrettyFormatter::with_indent(blanks.as_bytes());
            serde::Serialize::serialize(&value, &mut Serializer::with_formatter(&mut bytes, pretty))
        }
        None => {
            serde::Serialize::serialize(&value, &mut Serializer::with_formatter(&mut bytes, Python))
        }
    };
    let bad = |why: String| Error::new(ErrorKind::InvalidOperation, why);
    written.map_err(|e| bad(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| bad(e.to_string()))
}

/// The separators of Python's `json.dumps`.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Classify, Kind};

    const CONVERSATION: &str = r#"[{"role":"system","content":" Be <brief>. "},{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}]"#;

    fn template(config: &serde_json::Value) -> Result<ChatTemplate, TextError> {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join(CONFIG), config.to_string()).unwrap();
        ChatTemplate::load(dir.path())
    }

    fn rendered(source: &str) -> Result<String, TextError> {
        let config = serde_json::json!({
            "bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": source
        });
        template(&config)?.render(7, CONVERSATION)
    }

    /// ChatML as Qwen and Bielik have it: loops, whitespace control, string methods.
    #[test]
    fn chatml_is_rendered_as_transformers_does() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n' }}\n{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}{{ eos_token }}\n";
        // What Jinja 3 makes of it in Python.
        let expected = "<s><|im_start|>system\nBe <brief>.<|im_end|>\n\n<|im_start|>user\nHi<|im_end|>\n\n<|im_start|>assistant\nHello.<|im_end|>\n\n</s>";
        assert_eq!(rendered(source).unwrap(), expected);
    }

    #[test]
    fn pythons_helpers_are_there() {
        for (source, expected) in [
            ("{{ messages[1] | tojson }}", r#"{"role": "user", "content": "Hi"}"#),
            ("{{ [1, 'é<'] | tojson(indent=2) }}", "[\n  1,\n  \"é<\"\n]"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role[0] | upper }}{% endfor %}",
                "UA",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "{% macro say(m) %}{{ m.content | trim }}{% endmacro %}{{ say(messages[0]) }}",
                "Be <brief>.",
            ),
            ("{{ messages[0].get('name', 'none') }}{{ absent }}", "none"),
        ] {
            assert_eq!(rendered(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn what_a_template_refuses_names_the_document_and_its_own_words() {
        let refused = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}";
        let e = rendered(refused).unwrap_err();
        assert_eq!(e.kind(), Kind::Input);
        let said = e.to_string();
        assert!(said.contains("document 7") && said.ends_with("No system role"), "{said}");
        let broken = rendered("{% for %}").unwrap_err();
        assert!(matches!(broken, TextError::Template { .. }), "{broken}");
    }

    #[test]
    fn the_default_of_several_is_taken_and_none_is_a_usage_error() {
        let list = serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}
        ]});
        assert_eq!(template(&list).unwrap().render(0, CONVERSATION).unwrap(), "d");
        let e = template(&serde_json::json!({"bos_token": "<s>"})).unwrap_err();
        assert!(matches!(e, TextError::NoTemplate { .. }), "{e}");
        assert_eq!(e.kind(), Kind::Usage);
    }

    #[test]
    fn the_file_of_its_own_wins() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join(CONFIG), r#"{"chat_template": "config"}"#).unwrap();
        fs_err::write(dir.path().join(OWN_FILE), "own\n").unwrap();
        let template = ChatTemplate::load(dir.path()).unwrap();
        assert_eq!(template.render(0, CONVERSATION).unwrap(), "own");
        assert!(template.file().ends_with(OWN_FILE));
    }

    #[test]
    fn a_document_that_is_no_conversation_is_invalid_input() {
        let template = template(&serde_json::json!({"chat_template": "x"})).unwrap();
        assert_eq!(template.render(0, "").unwrap(), "");
        for (text, said) in [
            ("Hello", "expected value"),
            (r#"{"role": "user"}"#, "expected a sequence"),
            (r#"[{"role": "user"}, {"from": "gpt"}]"#, "message 1 has no `role`"),
        ] {
            let e = template.render(3, text).unwrap_err();
            assert!(e.to_string().contains(said) && e.to_string().contains("document 3"), "{e}");
            assert_eq!(e.kind(), Kind::Input);
        }
    }
}
