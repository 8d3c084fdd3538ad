//! Every stored activation, whichever way sentences are batched.

use candle_core::{DType, Device};
use pipeline_common::model::{self, Hook, Packed};

use super::{Case, TOKENIZED, assert_close, for_each_case, golden, info, load, named_hooks, run};

#[test]
fn packed_together_every_activation_and_alias() {
    for_each_case(|name, info, case| {
        let (names, hooks) = named_hooks(case, info);
        let least = if TOKENIZED.contains(&name) { 20 } else { 4 };
        assert!(names.len() >= least, "{name} stores {} activations", names.len());
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
        // Where rounding sends a token to another expert, nothing bounds the difference.
        if info.model_type.contains("moe") || info.model_type == "mixtral" {
            return;
        }
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

#[test]
fn the_pooler_reads_the_first_row_of_each_sentence() {
    for file in ["batch.safetensors", "long.safetensors"] {
        let case = Case::load("bert", file);
        assert_eq!(case.per_sentence.len(), 2);
        let hook = Hook::parse("pooler.activation", &info("bert")).unwrap();
        let got =
            run(&*load(&golden("bert").join("model"), &[hook]), &case.sentences, &[hook]).remove(0);
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
    let info = info("llama_tied_rope3");
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

#[cfg(feature = "cuda")]
#[test]
fn on_a_gpu_every_activation() {
    let device = model::device("cuda").unwrap();
    for_each_case(|name, info, case| {
        let (names, hooks) = named_hooks(case, info);
        let dir = golden(name).join("model");
        let got = |dtype| {
            run(&*model::load(&dir, &hooks, &device, dtype).unwrap(), &case.sentences, &hooks)
        };
        let (exact, short) = (got(DType::F32), got(DType::BF16));
        for (activation, (exact, short)) in names.iter().zip(exact.iter().zip(&short)) {
            let expected = &case.activations[activation];
            assert_close(&format!("{name} {activation}"), exact, expected);
            let error = relative_error(short, expected);
            let sure = info.model_type != "mixtral" && !info.model_type.contains("moe");
            assert!(error < 0.05 || !sure, "{name} {activation} in bf16: {error}");
        }
    });
}
