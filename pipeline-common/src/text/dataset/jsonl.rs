//! JSON lines: one object per line; lines of white space are not records.
//!
//! Only the text field is kept of a record: a string, or where messages are wanted any value as
//! JSON. A `null` is an empty document, so that documents keep their numbers.

use std::{borrow::Cow, fmt, path::Path};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Field, format::Packing, lines::Lines};
use crate::text::error::TextError;

/// Counts records, reading no further than `at_most` of them.
pub(super) fn count(file: &Path, packing: Packing, at_most: u64) -> Result<u64, TextError> {
    let unread = Field { name: String::new(), json: false };
    let mut records = Jsonl::open(file, packing, &unread)?;
    let mut count = 0;
    while count < at_most && records.advance()? {
        count += 1;
    }
    Ok(count)
}

/// The texts of a file, in order.
pub(super) struct Jsonl {
    lines: Lines,
    field: Field,
}

impl Jsonl {
    pub fn open(file: &Path, packing: Packing, field: &Field) -> Result<Self, TextError> {
        Ok(Self { lines: Lines::open(file, packing)?, field: field.clone() })
    }

    /// Moves past `records` records without parsing them; stops at the end of the file.
    pub fn move_past(&mut self, records: u64) -> Result<(), TextError> {
        for _ in 0..records {
            if !self.advance()? {
                break;
            }
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<bool, TextError> {
        while self.lines.advance()? {
            if !self.lines.is_blank() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn text(&self) -> Result<String, TextError> {
        let line = self.lines.text()?;
        let mut json = serde_json::Deserializer::from_str(line);
        let found =
            TextField(&self.field).deserialize(&mut json).and_then(|f| json.end().map(|()| f));
        let at = || self.lines.place();
        match found {
            Ok(Found::Text(text)) => Ok(text),
            Ok(Found::Other(found)) => {
                let field = self.field.name.clone();
                Err(TextError::NotText { at: at(), field, found: found.into() })
            }
            Ok(Found::Missing(found)) => {
                Err(TextError::NoField { at: at(), field: self.field.name.clone(), found })
            }
            Err(e) => Err(TextError::Json { at: at(), why: e.to_string() }),
        }
    }
}

impl Iterator for Jsonl {
    type Item = Result<String, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(true) => Some(self.text()),
            Ok(false) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

/// What a record holds under the name of the text field.
enum Found {
    Text(String),
    Other(&'static str),
    /// The names that there are instead.
    Missing(Vec<String>),
}

/// Reads one object, keeping the text field and, until it is found, the names of the others.
struct TextField<'a>(&'a Field);

impl<'de> DeserializeSeed<'de> for TextField<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextField<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = None;
        let mut names = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            if name == self.0.name && self.0.json {
                found = Some(Found::Text(super::json_text(map.next_value()?)));
            } else if name == self.0.name {
                found = Some(map.next_value_seed(TextValue)?);
            } else {
                map.next_value::<IgnoredAny>()?;
                if found.is_none() {
                    names.push(name.into_owned());
                }
            }
        }
        Ok(found.unwrap_or(Found::Missing(names)))
    }
}

#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a value, keeping it if it is a string.
struct TextValue;

impl<'de> DeserializeSeed<'de> for TextValue {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextValue {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Found, E> {
        Ok(Found::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Text(String::new()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(Found::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(Found::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(Found::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Found::Other("a number"))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Found, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an object"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::stage::{Classify, Kind};

    fn read(bytes: &[u8], packing: Packing) -> Result<Vec<String>, TextError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.jsonl");
        fs_err::write(&path, bytes).unwrap();
        let field = Field { name: "text".into(), json: false };
        Jsonl::open(&path, packing, &field)?.collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    const TWO: &[u8] = b"{\"id\": 1, \"text\": \"a\\nb\"}\n\n{\"text\": null, \"x\": [{}, 1.5]}\n";

    #[test]
    fn plain_gzip_and_zstd_hold_the_same_records() {
        let expected = ["a\nb".to_owned(), String::new()];
        assert_eq!(read(TWO, Packing::None).unwrap(), expected);
        let members = [gzip(&TWO[..26]), gzip(&TWO[26..])].concat();
        assert_eq!(read(&members, Packing::Gzip).unwrap(), expected);
        let frames = zstd::encode_all(TWO, 3).unwrap();
        assert_eq!(read(&frames, Packing::Zstd).unwrap(), expected);
    }

    #[test]
    fn truncated_archives_are_corrupt_input() {
        let long: Vec<u8> =
            (0..2000).flat_map(|i| format!("{{\"text\":\"{i}\"}}\n").into_bytes()).collect();
        let gz = gzip(&long);
        let zst = zstd::encode_all(&long[..], 3).unwrap();
        let cut = |b: &[u8]| b[..b.len() / 2].to_vec();
        let garbage = b"not an archive at all".to_vec();
        for (bytes, packing) in [
            (cut(&gz), Packing::Gzip),
            (cut(&zst), Packing::Zstd),
            (garbage.clone(), Packing::Gzip),
            (garbage, Packing::Zstd),
        ] {
            let e = read(&bytes, packing).unwrap_err();
            assert!(matches!(e, TextError::Corrupt { .. }), "{e}");
            assert_eq!(e.kind(), Kind::Input);
            assert!(e.to_string().contains("f.jsonl"), "{e}");
        }
    }

    #[test]
    fn broken_records_name_file_and_line() {
        for (bytes, kind, said) in [
            (
                &b"{\"text\":\"a\"}\n{\"text\": \"b\n"[..],
                Kind::Input,
                "f.jsonl:2` is not a JSON object",
            ),
            (b"[1, 2]\n", Kind::Input, "f.jsonl:1` is not a JSON object"),
            (b"{\"text\":\"a\"} {}\n", Kind::Input, "f.jsonl:1` is not a JSON object"),
            (
                b"{\"text\":\"a\"}\n{\"txt\":1,\"id\":2}",
                Kind::Usage,
                "f.jsonl:2` has no field `text`; it has `txt`, `id`",
            ),
            (b"{\"text\": 7}", Kind::Usage, "f.jsonl:1`: field `text` is a number"),
            (b"{\"text\": {\"en\": \"x\"}}", Kind::Usage, "field `text` is an object"),
            (
                b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}",
                Kind::Input,
                "f.jsonl:2` is not UTF-8: byte 0xff at byte offset 22",
            ),
        ] {
            let e = read(bytes, Packing::None).unwrap_err();
            assert!(e.to_string().contains(said), "{e}\nexpected {said}");
            assert_eq!(e.kind(), kind, "{e}");
        }
    }

    #[test]
    fn messages_are_handed_over_as_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.jsonl");
        let list = r#"[{"role":"user","content":"a \"b\""}]"#;
        let text = serde_json::to_string(list).unwrap();
        fs_err::write(&path, format!("{{\"m\":{list}}}\n{{\"m\":{text}}}\n{{\"m\":null}}"))
            .unwrap();
        let field = Field { name: "m".into(), json: true };
        let found: Vec<String> =
            Jsonl::open(&path, Packing::None, &field).unwrap().map(Result::unwrap).collect();
        assert_eq!(found, [list, list, ""]);
    }

    #[test]
    fn counting_parses_nothing_and_stops_early() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.jsonl");
        fs_err::write(&path, b"{}\nbroken\n\n  \n{}\n").unwrap();
        assert_eq!(count(&path, Packing::None, u64::MAX).unwrap(), 3);
        assert_eq!(count(&path, Packing::None, 2).unwrap(), 2);
    }
}
