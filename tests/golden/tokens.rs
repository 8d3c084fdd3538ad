//! Ids, pieces and offsets of the tokenizers.

use pipeline_common::text::Tokenizer;
use serde_json::Value;

use super::{TOKENIZED, golden};

#[test]
fn tokens_and_their_text() {
    for name in TOKENIZED {
        let tokenizer = Tokenizer::load(&golden(name).join("model")).unwrap();
        let text = fs_err::read_to_string(golden(name).join("tokens.json")).unwrap();
        let prompts: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(prompts.len(), 5);
        for prompt in prompts {
            let text = prompt["text"].as_str().unwrap().to_owned();
            let encoding =
                tokenizer.encode_batch(std::slice::from_ref(&text), 10_000).unwrap().remove(0);
            assert_eq!(serde_json::json!(encoding.ids), prompt["ids"], "{name} {text}");
            let pieces: Vec<String> =
                encoding.ids.iter().map(|i| tokenizer.piece(*i).unwrap()).collect();
            assert_eq!(serde_json::json!(pieces), prompt["tokens"], "{name} {text}");
            let plain: Vec<u32> =
                serde_json::from_value(prompt["ids_without_special"].clone()).unwrap();
            assert_eq!(tokenizer.decode(&plain).unwrap(), prompt["decoded"], "{name} {text}");
            for (begin, end) in &encoding.offsets {
                assert!(text.get(*begin..*end).is_some(), "{name}: offsets cut a character");
            }
        }
    }
}

#[test]
fn long_texts_are_cut_between_their_special_tokens() {
    let text = "the delegates gathered at the gate and waited for the others".to_owned();
    for name in TOKENIZED {
        let tokenizer = Tokenizer::load(&golden(name).join("model")).unwrap();
        let encode = |n| tokenizer.encode_batch(std::slice::from_ref(&text), n);
        let whole = encode(1000).unwrap().remove(0);
        let cut = encode(8).unwrap().remove(0);
        assert_eq!((cut.ids.len(), cut.special.len(), cut.offsets.len()), (8, 8, 8));
        let tail = usize::from(name == "bert");
        assert_eq!(cut.ids[..8 - tail], whole.ids[..8 - tail]);
        assert_eq!(cut.ids[8 - tail..], whole.ids[whole.ids.len() - tail..]);
        let head = usize::from(name != "qwen2");
        let special: Vec<bool> = (0..8).map(|i| i < head || i >= 8 - tail).collect();
        assert_eq!(cut.special, special, "{name}");
        assert!(encode(head + tail).is_err(), "{name}");
    }
}

#[test]
fn special_tokens_written_in_the_text_are_special() {
    let tokenizer = Tokenizer::load(&golden("qwen2").join("model")).unwrap();
    let text = "a<|im_start|>b".to_owned();
    let encoding = tokenizer.encode_batch(&[text], 100).unwrap().remove(0);
    assert_eq!(encoding.special, [false, true, false]);
}
