//! Every stored activation of the golden checkpoints, whichever way sentences are batched.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use pipeline_common::{
    model::{self, Hook, HookedModel, ModelInfo, Packed, Point},
    text::Tokenizer,
};
use serde_json::Value;

const MODELS: [&str; 3] = ["llama_tied_rope3", "qwen2", "bert"];

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// One of the reference's batches: live token ids, and activations over the live rows.
struct Case {
    sentences: Vec<Vec<u32>>,
    /// Name to rows of all sentences, back to back.
    activations: BTreeMap<String, Vec<Vec<f32>>>,
    /// Names whose values exist once per sentence.
    per_sentence: BTreeMap<String, Vec<Vec<f32>>>,
}

impl Case {
    fn load(model: &str, file: &str) -> Self {
        let path = golden(model).join(file);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let ids = tensors["input_ids"].to_vec2::<i64>().unwrap();
        let mask = tensors["attention_mask"].to_vec2::<i64>().unwrap();
        let lengths: Vec<usize> =
            mask.iter().map(|m| m.iter().filter(|v| **v == 1).count()).collect();
        let live = |(row, n): (&Vec<i64>, &usize)| row[..*n].iter().map(|i| *i as u32).collect();
        let sentences = ids.iter().zip(&lengths).map(live).collect();
        let mut case =
            Self { sentences, activations: BTreeMap::new(), per_sentence: BTreeMap::new() };
        for (name, tensor) in tensors.iter().filter(|(_, t)| t.dtype() == DType::F32) {
            case.add(name, tensor, &lengths);
        }
        for (alias, stored) in aliases(&path) {
            case.add(&alias, &tensors[&stored], &lengths);
        }
        case
    }

    fn add(&mut self, name: &str, tensor: &Tensor, lengths: &[usize]) {
        if tensor.rank() == 2 {
            self.per_sentence.insert(name.to_owned(), tensor.to_vec2().unwrap());
            return;
        }
        let values = tensor.to_vec3::<f32>().unwrap();
        // Position embeddings are stored once for all sentences.
        let rows = lengths.iter().enumerate().flat_map(|(i, n)| &values[i % values.len()][..*n]);
        self.activations.insert(name.to_owned(), rows.cloned().collect());
    }

    fn lengths(&self) -> Vec<usize> {
        self.sentences.iter().map(Vec::len).collect()
    }
}

fn aliases(path: &Path) -> HashMap<String, String> {
    let bytes = fs_err::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["aliases"]).unwrap()
}

fn load(dir: &Path, hooks: &[Hook]) -> Box<dyn HookedModel> {
    model::load(dir, hooks, &Device::Cpu, DType::F32).unwrap()
}

/// The rows of every hook, by index.
fn run(model: &dyn HookedModel, sentences: &[Vec<u32>], hooks: &[Hook]) -> Vec<Vec<Vec<f32>>> {
    let mut found = vec![Vec::new(); hooks.len()];
    let mut visit = |index: usize, tensor: Tensor| {
        assert!(found[index].is_empty(), "a hook came twice");
        found[index] = tensor.to_dtype(DType::F32)?.to_vec2()?;
        Ok(None)
    };
    model.forward(&Packed::new(sentences), hooks, &mut visit).unwrap();
    found
}

/// `|a - b| <= 1e-4 rms(b)` for every number.
fn assert_close(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(got.len(), expected.len(), "{what}: rows");
    let count = expected.iter().map(Vec::len).sum::<usize>() as f64;
    let squares: f64 = expected.iter().flatten().map(|v| f64::from(*v).powi(2)).sum();
    let tolerance = 1e-4 * (squares / count).sqrt();
    for (row, (a, b)) in got.iter().zip(expected).enumerate() {
        assert_eq!(a.len(), b.len(), "{what}: width");
        for (column, (a, b)) in a.iter().zip(b).enumerate() {
            let error = f64::from((a - b).abs());
            assert!(error <= tolerance, "{what} row {row} column {column}: {a}, reference {b}");
        }
    }
}

/// Names of the case with the hooks that they name.
fn named_hooks(case: &Case, info: &ModelInfo) -> (Vec<String>, Vec<Hook>) {
    let parsed = case.activations.keys().map(|n| (n.clone(), Hook::parse(n, info).unwrap()));
    parsed.unzip()
}

fn for_each_case(mut check: impl FnMut(&str, &ModelInfo, &Case)) {
    for name in MODELS {
        let info = ModelInfo::from_dir(&golden(name).join("model")).unwrap();
        for file in ["batch.safetensors", "long.safetensors"] {
            check(name, &info, &Case::load(name, file));
        }
    }
}

#[test]
fn packed_together_every_activation_and_alias() {
    for_each_case(|name, info, case| {
        let (names, hooks) = named_hooks(case, info);
        assert!(names.len() > 20, "{name} stores {} activations", names.len());
        let model = load(&golden(name).join("model"), &hooks);
        let got = run(&*model, &case.sentences, &hooks);
        for (activation, rows) in names.iter().zip(&got) {
            assert_close(&format!("{name} {activation}"), rows, &case.activations[activation]);
        }
    });
}

#[test]
fn each_sentence_alone() {
    for_each_case(|name, info, case| {
        let (names, hooks) = named_hooks(case, info);
        let model = load(&golden(name).join("model"), &hooks);
        let mut whole = vec![Vec::new(); hooks.len()];
        for sentence in &case.sentences {
            let part = run(&*model, std::slice::from_ref(sentence), &hooks);
            whole.iter_mut().zip(part).for_each(|(w, p)| w.extend(p));
        }
        // What shards hold does not depend on how documents fall into batches.
        assert!(whole == run(&*model, &case.sentences, &hooks), "{name}: not the same bits");
        for (activation, rows) in names.iter().zip(&whole) {
            assert_close(&format!("{name} {activation}"), rows, &case.activations[activation]);
        }
    });
}

#[test]
fn in_another_order_with_an_empty_sentence() {
    for_each_case(|name, info, case| {
        let (names, hooks) = named_hooks(case, info);
        let model = load(&golden(name).join("model"), &hooks);
        let mut turned: Vec<Vec<u32>> = case.sentences.iter().rev().cloned().collect();
        turned.insert(1, Vec::new());
        let got = run(&*model, &turned, &hooks);
        for (activation, rows) in names.iter().zip(&got) {
            let mut rest = case.activations[activation].as_slice();
            let mut sentences = Vec::new();
            for n in case.lengths() {
                let (one, others) = rest.split_at(n);
                sentences.push(one);
                rest = others;
            }
            sentences.reverse();
            assert_close(&format!("{name} {activation}"), rows, &sentences.concat());
        }
    });
}

#[test]
fn one_hook_at_a_time_gives_the_same_bits_as_all_in_one_pass() {
    for_each_case(|name, info, case| {
        let hooks = Hook::all(info);
        let model = load(&golden(name).join("model"), &hooks);
        let together = run(&*model, &case.sentences, &hooks);
        for (hook, rows) in hooks.iter().zip(&together) {
            let shallow = load(&golden(name).join("model"), &[*hook]);
            let alone = run(&*shallow, &case.sentences, &[*hook]);
            assert_eq!(&alone[0], rows, "{name} {}", hook.module_path(info));
            assert_eq!(rows[0].len(), hook.width(info), "{name} {}", hook.module_path(info));
        }
    });
}

/// Root of the mean square of the difference, relative to that of `expected`.
fn relative_error(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let squares = |rows: &mut dyn Iterator<Item = f64>| rows.map(|x| x * x).sum::<f64>();
    let pairs = got.iter().flatten().zip(expected.iter().flatten());
    let error = squares(&mut pairs.map(|(a, b)| f64::from(a - b)));
    (error / squares(&mut expected.iter().flatten().map(|x| f64::from(*x)))).sqrt()
}

#[test]
fn products_in_bf16_stay_within_two_percent_of_the_reference() {
    for_each_case(|name, info, case| {
        let (names, hooks) = named_hooks(case, info);
        let dir = golden(name).join("model");
        let model = model::load(&dir, &hooks, &Device::Cpu, DType::BF16).unwrap();
        let got = run(&*model, &case.sentences, &hooks);
        let errors: Vec<f64> = names
            .iter()
            .zip(&got)
            .map(|(activation, rows)| relative_error(rows, &case.activations[activation]))
            .collect();
        for (activation, error) in names.iter().zip(&errors) {
            assert!(*error < 0.02, "{name} {activation}: {error}");
        }
        // bf16 has 8 bits: errors as small as those of f32 would mean that nothing was rounded.
        assert!(errors.iter().any(|error| *error > 1e-4), "{name}: {errors:?}");
    });
}

/// x / 2 + 0.3 sin(column + 1), as scripts/interventions.py changes tensors.
fn changed(x: &Tensor) -> candle_core::Result<Tensor> {
    let added: Vec<f32> = (0..x.dim(1)?).map(|c| 0.3 * (c as f32 + 1.0).sin()).collect();
    (x / 2.0)?.broadcast_add(&Tensor::new(added, x.device())?)
}

/// The rows a model ends with when `change` is what becomes of each of `hooks`.
fn end_with(
    model: &dyn HookedModel,
    ids: &[u32],
    hooks: &[Hook],
    mut change: impl FnMut(&Tensor) -> candle_core::Result<Option<Tensor>>,
) -> Vec<Vec<f32>> {
    let info = model.info();
    let last = Hook { layer: Some(info.n_layers - 1), point: Point::ResidPost };
    let logits = Hook { layer: None, point: Point::Logits };
    let end = if info.site(Point::Logits).is_some() { logits } else { last };
    // Behind the others, so that it sees what they leave of the same tensor.
    let all: Vec<Hook> = hooks.iter().copied().chain([end]).collect();
    let mut found = vec![];
    let mut visit = |index: usize, tensor: Tensor| {
        if index < hooks.len() {
            return change(&tensor);
        }
        found = tensor.to_vec2::<f32>()?;
        Ok(None)
    };
    model.forward(&Packed::new([ids]), &all, &mut visit).unwrap();
    found
}

/// Some rows of a tensor.
type Rows = Vec<Vec<f32>>;

/// The ids, the plain ending, and each name's.
fn interventions(model: &str) -> (Vec<u32>, Rows, BTreeMap<String, Rows>) {
    let path = golden(model).join("interventions.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let ids = tensors.remove("input_ids").unwrap().to_vec2::<i64>().unwrap().concat();
    let mut rows: BTreeMap<String, Rows> =
        tensors.into_iter().map(|(name, t)| (name, t.to_vec2().unwrap())).collect();
    let plain = rows.remove("none").unwrap();
    (ids.into_iter().map(|i| i as u32).collect(), plain, rows)
}

/// Changes each hook in turn; what the model ends with against what PyTorch hooks made of it.
fn assert_interventions(name: &str, device: &Device) {
    let dir = golden(name).join("model");
    let info = ModelInfo::from_dir(&dir).unwrap();
    let model = model::load(&dir, &Hook::all(&info), device, DType::F32).unwrap();
    let (ids, plain, endings) = interventions(name);
    let tail = |rows: &[Vec<f32>]| rows[rows.len() - plain.len()..].to_vec();
    assert_close(name, &tail(&end_with(&*model, &ids, &[], |_| Ok(None))), &plain);
    let mut left: Vec<Hook> = Hook::all(&info);
    left.retain(|hook| hook.point != Point::Pooler);
    for (path, expected) in endings {
        let hook = Hook::parse(&path, &info).unwrap();
        left.retain(|other| *other != hook);
        let got = end_with(&*model, &ids, &[hook], |x| changed(x).map(Some));
        assert_close(&format!("{name} {path}"), &tail(&got), &expected);
    }
    assert!(left.is_empty(), "{name} has no reference for {left:?}");
}

#[test]
fn what_replaces_a_hook_reaches_the_end_as_in_the_reference() {
    MODELS.iter().for_each(|name| assert_interventions(name, &Device::Cpu));
}

#[cfg(feature = "cuda")]
#[test]
fn on_a_gpu_every_activation_and_every_intervention() {
    let device = model::device("cuda").unwrap();
    for_each_case(|name, info, case| {
        let (names, hooks) = named_hooks(case, info);
        let dir = golden(name).join("model");
        let exact =
            run(&*model::load(&dir, &hooks, &device, DType::F32).unwrap(), &case.sentences, &hooks);
        let short = run(
            &*model::load(&dir, &hooks, &device, DType::BF16).unwrap(),
            &case.sentences,
            &hooks,
        );
        for (activation, (exact, short)) in names.iter().zip(exact.iter().zip(&short)) {
            let expected = &case.activations[activation];
            assert_close(&format!("{name} {activation}"), exact, expected);
            let error = relative_error(short, expected);
            assert!(error < 0.05, "{name} {activation} in bf16: {error}");
        }
    });
    MODELS.iter().for_each(|name| assert_interventions(name, &device));
}

#[test]
fn what_is_handed_back_unchanged_leaves_every_bit() {
    for_each_case(|name, info, case| {
        let hooks = Hook::all(info);
        let model = load(&golden(name).join("model"), &hooks);
        let ids = &case.sentences[0];
        let plain = end_with(&*model, ids, &[], |_| Ok(None));
        assert_eq!(end_with(&*model, ids, &hooks, |x| Ok(Some(x.clone()))), plain, "{name}: all");
        for hook in hooks {
            let same = end_with(&*model, ids, &[hook], |x| Ok(Some((x + 0.0)?)));
            assert!(same == plain, "{name} {}", hook.module_path(info));
        }
    });
}

#[test]
fn a_replacement_of_another_shape_is_an_error() {
    let dir = golden("qwen2").join("model");
    let info = ModelInfo::from_dir(&dir).unwrap();
    let hook = Hook::alias("resid_post", 0, &info).unwrap();
    let model = load(&dir, &[hook]);
    let narrow = |_, x: Tensor| Ok(Some(x.narrow(1, 0, 3)?));
    let error = model.forward(&Packed::new([[1u32, 2]]), &[hook], &mut { narrow }).unwrap_err();
    assert!(error.to_string().contains("in place of a hook's"), "{error}");
}

#[test]
fn the_pooler_reads_the_first_row_of_each_sentence() {
    for file in ["batch.safetensors", "long.safetensors"] {
        let case = Case::load("bert", file);
        assert_eq!(case.per_sentence.len(), 2);
        let dir = golden("bert").join("model");
        let info = ModelInfo::from_dir(&dir).unwrap();
        let hook = Hook::parse("pooler.activation", &info).unwrap();
        let got = run(&*load(&dir, &[hook]), &case.sentences, &[hook]).remove(0);
        let starts = Packed::new(&case.sentences).starts;
        let first: Vec<Vec<f32>> =
            starts[..case.sentences.len()].iter().map(|s| got[*s].clone()).collect();
        for (name, expected) in &case.per_sentence {
            assert_close(name, &first, expected);
        }
    }
}

#[test]
fn aliases_are_the_tensors_they_promise() {
    let case = Case::load("llama_tied_rope3", "batch.safetensors");
    let dir = golden("llama_tied_rope3").join("model");
    let info = ModelInfo::from_dir(&dir).unwrap();
    for (alias, path) in [
        ("resid_pre", "model.layers.1#in"),
        ("resid_mid", "model.layers.1.post_attention_layernorm#in"),
        ("resid_post", "model.layers.1"),
        ("attn_out", "model.layers.1.self_attn"),
        ("mlp_in", "model.layers.1.post_attention_layernorm"),
        ("mlp_act", "model.layers.1.mlp.down_proj#in"),
        ("mlp_out", "model.layers.1.mlp"),
    ] {
        let hook = Hook::alias(alias, 1, &info).unwrap();
        let got = run(&*load(&dir, &[hook]), &case.sentences, &[hook]);
        assert_close(alias, &got[0], &case.activations[path]);
    }
}

#[test]
fn tokens_and_their_text() {
    for name in MODELS {
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
    for name in MODELS {
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

#[test]
fn parameters_follow_from_the_configuration_alone() {
    for name in MODELS {
        let dir = golden(name).join("model");
        let info = ModelInfo::from_dir(&dir).unwrap();
        assert_eq!(info.parameters(), model::headers(&dir).unwrap().parameters, "{name}");
    }
}

#[test]
fn a_sentence_longer_than_the_positions_is_refused() {
    let dir = golden("bert").join("model");
    let info = ModelInfo::from_dir(&dir).unwrap();
    let hook = Hook { layer: Some(0), point: Point::ResidPre };
    let model = load(&dir, &[hook]);
    let batch = |n: usize| Packed::new([vec![5u32; n]]);
    model.forward(&batch(96), &[hook], &mut |_, _| Ok(None)).unwrap();
    assert!(model.forward(&batch(97), &[hook], &mut |_, _| Ok(None)).is_err());
    assert!(model.forward(&Packed::new([[600u32]]), &[hook], &mut |_, _| Ok(None)).is_err());
    let deep = Hook { layer: Some(info.n_layers - 1), point: Point::ResidPost };
    assert!(model.forward(&batch(4), &[deep], &mut |_, _| Ok(None)).is_err());
}
