//! What models compute, against what `transformers` computes on the same checkpoints.

mod activations;
mod checkpoints;
mod generation;
mod interventions;
mod lens;
mod tokens;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use pipeline_common::model::{self, Hook, HookedModel, ModelInfo, Packed};

/// Checkpoints with a tokenizer.
const TOKENIZED: [&str; 3] = ["bert", "llama_tied_rope3", "qwen2"];

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// All golden checkpoints.
pub fn models() -> Vec<String> {
    let entries = fs_err::read_dir(golden("")).unwrap().map(|entry| entry.unwrap());
    let models = entries.filter(|entry| entry.path().join("model/config.json").is_file());
    let mut names: Vec<String> =
        models.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 27, "{names:?}");
    names
}

fn info(name: &str) -> ModelInfo {
    ModelInfo::from_dir(&golden(name).join("model")).unwrap()
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
    for name in models() {
        for file in ["batch.safetensors", "long.safetensors"] {
            check(&name, &info(&name), &Case::load(&name, file));
        }
    }
}
