use std::sync::Arc;

use ::parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

use super::*;
use crate::{
    stage::{Classify, Kind},
    text::HubArgs,
};

const SCHEMA: &str = "message m { required int64 id; optional binary text (UTF8); }";

/// Writes row groups of `group` records.
fn write_parquet(path: &Path, texts: &[Option<&[u8]>], group: usize) {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let compression = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let properties =
        Arc::new(compression.set_data_page_row_count_limit(3).set_write_batch_size(3).build());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for chunk in texts.chunks(group.max(1)) {
        let mut rows = writer.next_row_group().unwrap();
        let mut ids = rows.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..chunk.len() as i64).collect();
        ids.typed::<::parquet::data_type::Int64Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let levels: Vec<i16> = chunk.iter().map(|t| i16::from(t.is_some())).collect();
        let values: Vec<ByteArray> =
            chunk.iter().flatten().map(|t| ByteArray::from(t.to_vec())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

fn spec(source: &Path) -> DatasetSpec {
    let source = source.to_str().unwrap().to_owned();
    DatasetSpec {
        source,
        revision: "main".into(),
        split: "train".into(),
        text_field: "text".into(),
        messages: false,
        limit: None,
    }
}

fn open(spec: &DatasetSpec) -> Result<Dataset, TextError> {
    Dataset::open(spec, &Hub::new(&HubArgs { hf_hub_offline: true, ..HubArgs::default() }))
}

fn texts(dataset: &Dataset, range: Range<u64>) -> Vec<String> {
    dataset.documents(range).unwrap().map(|d| d.unwrap().text).collect()
}

fn jsonl(texts: &[String]) -> String {
    texts.iter().map(|t| format!("{}\n", serde_json::json!({"id": 1, "text": t}))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// All formats hold the same documents, and a range is a slice of all of them.
    #[test]
    fn formats_agree_and_ranges_are_slices(
        all in proptest::collection::vec("[^\\r\\n\u{feff}]{0,12}", 1..40),
        group in 1_usize..9,
        cut in (0_usize..45, 0_usize..45),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = all.split_at(all.len() / 2);
        let folder = |name: &str| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            folder
        };
        let (j, z, p) = (folder("j"), folder("z"), folder("p"));
        fs::write(j.join("0.jsonl"), jsonl(a)).unwrap();
        fs::write(j.join("1.jsonl"), jsonl(b)).unwrap();
        fs::write(z.join("0.jsonl.zst"), zstd::encode_all(jsonl(&all).as_bytes(), 1).unwrap()).unwrap();
        let bytes = |texts: &[String]| -> Vec<Option<Vec<u8>>> {
            texts.iter().map(|t| (!t.is_empty()).then(|| t.clone().into_bytes())).collect()
        };
        for (name, part) in [("0.parquet", a), ("1.parquet", b)] {
            let owned = bytes(part);
            let borrowed: Vec<Option<&[u8]>> = owned.iter().map(|t| t.as_deref()).collect();
            write_parquet(&p.join(name), &borrowed, group);
        }
        for folder in [j, z, p] {
            let dataset = open(&spec(&folder)).unwrap();
            prop_assert_eq!(dataset.len(), all.len() as u64);
            prop_assert_eq!(&texts(&dataset, 0..u64::MAX), &all);
            let (start, end) = (cut.0.min(cut.1).min(all.len()), cut.0.max(cut.1).min(all.len()));
            let part: Vec<Document> =
                dataset.documents(start as u64..end as u64).unwrap().map(Result::unwrap).collect();
            let expected: Vec<Document> = (start..end)
                .map(|i| Document { index: i as u64, text: all[i].clone() })
                .collect();
            prop_assert_eq!(part, expected);
        }
    }

    #[test]
    fn plain_text_round_trips(all in proptest::collection::vec("[a-zа-я]{1,9}( [a-z]{1,5})?", 1..30), cut in 0_usize..30) {
        let dir = tempfile::tempdir().unwrap();
        for (name, separator) in [("lines.txt", "\n"), ("paragraphs.txt", "\n \n\n")] {
            let path = dir.path().join(name);
            fs::write(&path, all.join(separator)).unwrap();
            let dataset = open(&spec(&path)).unwrap();
            let start = cut.min(all.len());
            prop_assert_eq!(texts(&dataset, start as u64..u64::MAX), &all[start..]);
        }
    }

    /// Whatever is flipped or cut off, reading ends with documents or an error.
    #[test]
    fn damaged_parquet_never_panics(at in 0_usize..700, bit in 0_u8..8, cut in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        let rows: Vec<Option<&[u8]>> = vec![Some(b"some text"), None, Some(b"more"), Some(b"")];
        write_parquet(&path, &rows, 2);
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&path, &bytes).unwrap();
        if let Err(e) = open(&spec(&path)).and_then(|d| d.documents(0..9)?.collect::<Result<Vec<_>, _>>()) {
            prop_assert!(matches!(e.kind(), Kind::Input | Kind::Usage), "{}", e);
            prop_assert!(e.to_string().contains("f.parquet"), "{}", e);
            prop_assert!(!cut || e.kind() == Kind::Input, "{}", e);
        } else {
            prop_assert!(!cut);
        }
    }
}

#[test]
fn the_limit_stops_counting_and_later_files_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.jsonl"), jsonl(&["x".into(), "y".into(), "z".into()])).unwrap();
    fs::write(dir.path().join("b.parquet"), "this is not parquet").unwrap();
    let limited = DatasetSpec { limit: Some(3), ..spec(dir.path()) };
    let dataset = open(&limited).unwrap();
    assert_eq!((dataset.len(), dataset.files().count()), (3, 1));
    assert_eq!(texts(&dataset, 2..9), ["z"]);
    let e = open(&spec(dir.path())).unwrap_err();
    assert_eq!(e.kind(), Kind::Input);
    assert!(e.to_string().contains("b.parquet"), "{e}");
}

#[test]
fn every_wrong_source_has_its_own_message() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    write_parquet(&dir.path().join("bytes.parquet"), &[Some(b"ok"), Some(b"caf\xe9")], 9);
    let cases = [
        (dir.path().join("gone.jsonl"), Kind::Usage, "does not exist"),
        (dir.path().join("gone/*.jsonl"), Kind::Usage, "matches no file"),
        (dir.path().join("[.jsonl"), Kind::Usage, "which is not one"),
        (file("x.csv", "a,b"), Kind::Usage, "no known extension"),
        (
            file("docs/README.md", "hi").parent().unwrap().to_owned(),
            Kind::Usage,
            "holds no data files",
        ),
        (file("empty.jsonl", "\n \n"), Kind::Input, "is empty: no document in 1 file(s)"),
        (file("e/train.txt", "").parent().unwrap().to_owned(), Kind::Input, "is empty"),
        (file("v/test.txt", "t").parent().unwrap().to_owned(), Kind::Usage, "has no split `train`"),
        (file("nofield.jsonl", "{\"txt\":\"a\"}"), Kind::Usage, "it has `txt`"),
        (
            dir.path().join("bytes.parquet"),
            Kind::Input,
            "bytes.parquet record 1` is not UTF-8: byte 0xe9 at byte offset 3",
        ),
    ];
    for (source, kind, said) in cases {
        let e = open(&spec(&source))
            .and_then(|d| d.documents(0..9)?.collect::<Result<Vec<_>, _>>())
            .unwrap_err();
        assert!(e.to_string().contains(said), "{e}\nexpected: {said}");
        assert_eq!(e.kind(), kind, "{e}");
        assert!(kind == Kind::Input || e.hint().is_some(), "{e}");
    }
    let numbers =
        DatasetSpec { text_field: "id".into(), ..spec(&dir.path().join("bytes.parquet")) };
    let e = open(&numbers).unwrap_err();
    assert!(e.to_string().contains("field `id` is of type INT64"), "{e}");
    let missing = DatasetSpec { text_field: "Text".into(), ..numbers };
    let e = open(&missing).unwrap_err();
    assert!(e.to_string().contains("it has `id`, `text`"), "{e}");
    assert_eq!(e.hint().unwrap(), "set TEXT_FIELD=text");
}

#[test]
fn a_glob_takes_its_files_in_order_whatever_they_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["test-b.txt", "train-a.txt", "other.md"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let dataset = open(&spec(&dir.path().join("*.txt"))).unwrap();
    assert_eq!(texts(&dataset, 0..9), ["test-b.txt", "train-a.txt"]);
    assert_eq!(texts(&open(&spec(dir.path())).unwrap(), 0..9), ["train-a.txt"]);
}

#[test]
fn the_fingerprint_follows_the_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, jsonl(&["x".into(), "y".into()])).unwrap();
    let print = || open(&spec(&path)).unwrap().fingerprint().unwrap();
    let before = print();
    assert_eq!(before, print());
    fs::write(&path, jsonl(&["x".into(), "z".into()])).unwrap();
    assert_ne!(before, print());
}

#[test]
fn a_file_that_shrank_after_opening_is_an_error_and_ends_the_iteration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, jsonl(&["x".into(), "y".into(), "z".into()])).unwrap();
    let dataset = open(&spec(&path)).unwrap();
    fs::write(&path, jsonl(&["x".into()])).unwrap();
    let all: Vec<_> = dataset.documents(0..3).unwrap().collect();
    assert_eq!(all.len(), 2);
    let e = all[1].as_ref().unwrap_err();
    assert!(e.to_string().contains("expected 3 documents, found 1"), "{e}");
}

/// Conversations as `datasets` writes them, with a null list among them.
fn write_conversations(path: &Path, group: usize, conversations: &[Option<usize>]) {
    let schema = "message m { optional group messages (LIST) { repeated group list {
        optional group element { optional binary content (UTF8); optional binary role (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    for chunk in conversations.chunks(group) {
        let mut rows = writer.next_row_group().unwrap();
        while let Some(mut column) = rows.next_column().unwrap() {
            let (mut values, mut defined, mut repeated) = (vec![], vec![], vec![]);
            for turns in chunk {
                if turns.is_none() {
                    defined.push(0);
                    repeated.push(0);
                }
                for turn in 0..turns.unwrap_or(0) {
                    values.push(ByteArray::from(format!("value {turn}").as_str()));
                    defined.push(4);
                    repeated.push(i16::from(turn > 0));
                }
            }
            let typed = column.typed::<ByteArrayType>();
            typed.write_batch(&values, Some(&defined), Some(&repeated)).unwrap();
            column.close().unwrap();
        }
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn messages_in_parquet_are_handed_over_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.parquet");
    write_conversations(&path, 2, &[Some(1), None, Some(2), Some(1), Some(1)]);
    let messages = DatasetSpec { text_field: "messages".into(), messages: true, ..spec(&path) };
    let dataset = open(&messages).unwrap();
    let turn = |n: usize| format!(r#"{{"content":"value {n}","role":"value {n}"}}"#);
    let one = format!("[{}]", turn(0));
    let two = format!("[{},{}]", turn(0), turn(1));
    let all = [one.clone(), String::new(), two, one.clone(), one];
    assert_eq!(texts(&dataset, 0..u64::MAX), all);
    for start in 1..5 {
        assert_eq!(texts(&dataset, start..u64::MAX), all[start as usize..], "from {start}");
    }
    let as_text = DatasetSpec { messages: false, ..messages };
    assert!(open(&as_text).unwrap_err().to_string().contains("field `messages` is a group"));
}
