//! What models write, token by token.

use candle_core::Tensor;
use pipeline_common::model::{Cache, Hook, HookedModel, Packed, Point};
use serde_json::Value;

use super::{golden, info, load, models};

const LOGITS: Hook = Hook { layer: None, point: Point::Logits };

/// The prompt and the tokens that follow it, of models that write.
fn written() -> Vec<(String, Vec<u32>, Vec<u32>)> {
    let mut all = vec![];
    for name in models() {
        let path = golden(&name).join("greedy.json");
        if let Ok(text) = fs_err::read_to_string(path) {
            let json: Value = serde_json::from_str(&text).unwrap();
            let ids = |key: &str| serde_json::from_value::<Vec<u32>>(json[key].clone()).unwrap();
            all.push((name, ids("prompt"), ids("tokens")));
        }
    }
    assert!(all.len() >= 21, "{} models write", all.len());
    all
}

fn likeliest(scores: &[f32]) -> u32 {
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    best.0 as u32
}

/// Rows of each hook for what follows in the cache, which is filled anew where the model asks for it.
fn read(
    model: &dyn HookedModel,
    cache: &mut Cache,
    (before, next): (&[u32], &[u32]),
    hooks: &[Hook],
) -> Vec<Vec<Vec<f32>>> {
    let mut batch = Packed::new([next]);
    if model.outgrows(cache, &batch) {
        *cache = Cache::new(1);
        batch = Packed::new([[before, next].concat()]);
    }
    let mut rows = vec![vec![]; hooks.len()];
    let mut visit = |index: usize, tensor: Tensor| {
        rows[index] = tensor.to_vec2::<f32>()?;
        Ok(None)
    };
    model.extend(cache, &batch, hooks, &mut visit).unwrap();
    let skipped = batch.rows() - next.len();
    rows.iter_mut().for_each(|rows| {
        rows.drain(..skipped);
    });
    rows
}

#[test]
fn with_a_cache_models_write_what_the_reference_writes() {
    for (name, prompt, tokens) in written() {
        let model = load(&golden(&name).join("model"), &[LOGITS]);
        let mut cache = Cache::new(1);
        let (mut before, mut next, mut found) = (vec![], prompt, vec![]);
        for _ in 0..tokens.len() {
            let rows = read(&*model, &mut cache, (&before, &next), &[LOGITS]);
            before.append(&mut next);
            next.push(likeliest(rows[0].last().unwrap()));
            found.push(next[0]);
            assert_eq!(cache.lengths(), [before.len()]);
        }
        assert_eq!(found, tokens, "{name}");
    }
}

#[test]
fn rows_with_a_cache_are_those_of_the_whole_sentence_bit_for_bit() {
    for (name, prompt, tokens) in written() {
        let all = [prompt, tokens].concat();
        let hooks = Hook::all(&info(&name));
        let model = load(&golden(&name).join("model"), &hooks);
        let mut cache = Cache::new(1);
        let mut read_to = 0;
        for n in [5, 1, 1, 20, 1, 30, 14] {
            let (before, rest) = all.split_at(read_to);
            let found = read(&*model, &mut cache, (before, &rest[..n]), &hooks);
            read_to += n;
            let whole = super::run(&*model, &[all[..read_to].to_vec()], &hooks);
            for (hook, (found, whole)) in hooks.iter().zip(found.iter().zip(&whole)) {
                assert!(*found == whole[read_to - n..], "{name} {hook:?} at {read_to}");
            }
        }
        assert_eq!(read_to, all.len());
    }
}

#[test]
fn sentences_side_by_side_remember_what_is_theirs() {
    let (_, prompt, tokens) = written().remove(0);
    let model = load(&golden("mistral").join("model"), &[LOGITS]);
    let sentences = [prompt.clone(), tokens[..20].to_vec(), tokens[30..31].to_vec()];
    let mut cache = Cache::new(3);
    let mut found = vec![vec![]; 3];
    // Parts of different lengths, some empty.
    for parts in [[3, 0, 1], [0, 11, 0], [5, 9, 0]] {
        let starts: Vec<usize> = cache.lengths().to_vec();
        let next = (0..3).map(|i| sentences[i][starts[i]..starts[i] + parts[i]].to_vec());
        let batch = Packed::new(next);
        let mut visit = |_, tensor: Tensor| {
            let mut rows = tensor.to_vec2::<f32>()?.into_iter();
            (0..3).for_each(|i| found[i].extend(rows.by_ref().take(parts[i])));
            Ok(None)
        };
        model.extend(&mut cache, &batch, &[LOGITS], &mut visit).unwrap();
    }
    let whole = super::run(&*model, &sentences, &[LOGITS]).remove(0);
    assert!(found.concat() == whole);
}

#[test]
fn an_error_leaves_the_cache_as_it_was() {
    let dir = golden("llama").join("model");
    let model = load(&dir, &[LOGITS]);
    let mut cache = Cache::new(1);
    let batch = Packed::new([[7u32, 8, 9]]);
    let none: [Hook; 0] = [];
    model.extend(&mut cache, &batch, &none, &mut |_, _| Ok(None)).unwrap();
    let fails = &mut |_: usize, _: Tensor| candle_core::bail!("no more");
    assert!(model.extend(&mut cache, &batch, &[LOGITS], fails).is_err());
    assert_eq!(cache.lengths(), [3]);
    let two = Packed::new([[1u32], [2]]);
    assert!(model.extend(&mut cache, &two, &[LOGITS], &mut |_, _| Ok(None)).is_err());
    let long = Packed::new([vec![1u32; 254]]);
    assert!(model.extend(&mut cache, &long, &[LOGITS], &mut |_, _| Ok(None)).is_err());
    let next = [11u32];
    let mut rows = vec![];
    let mut visit = |_: usize, tensor: Tensor| {
        rows = tensor.to_vec2::<f32>()?;
        Ok(None)
    };
    model.extend(&mut cache, &Packed::new([next]), &[LOGITS], &mut visit).unwrap();
    let whole = super::run(&*model, &[vec![7, 8, 9, 11]], &[LOGITS]).remove(0);
    assert!(rows == whole[3..]);
    let bert = load(&golden("bert").join("model"), &[]);
    let error = bert.extend(&mut Cache::new(1), &batch, &none, &mut |_, _| Ok(None)).unwrap_err();
    assert!(error.to_string().contains("both directions"), "{error}");
}
