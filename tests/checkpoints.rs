//! Checkpoints as people have them: sharded, in 16 bits, shallow, damaged.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::{DType, Device, Tensor, safetensors as st};
use pipeline_common::{
    model::{self, Hook, ModelError, ModelInfo, Packed, Point},
    stage::{Classify, Kind},
};
use tempfile::TempDir;

use crate::golden::golden;

type Tensors = HashMap<String, Tensor>;

fn stored(name: &str) -> Tensors {
    st::load(golden(name).join("model/model.safetensors"), &Device::Cpu).unwrap()
}

/// A checkpoint of a golden configuration with other weights.
fn checkpoint(name: &str, tensors: &Tensors) -> TempDir {
    let dir = bare(name);
    st::save(tensors, dir.path().join("model.safetensors")).unwrap();
    dir
}

fn bare(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs_err::copy(golden(name).join("model/config.json"), dir.path().join("config.json")).unwrap();
    dir
}

fn write_shards(dir: &Path, tensors: &Tensors) {
    let mut weight_map = BTreeMap::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    for (name, tensor) in tensors {
        let which = name.len() % 2;
        shards[which].insert(name.clone(), tensor.clone());
        weight_map.insert(name.clone(), format!("model-{which}.safetensors"));
    }
    for (which, shard) in shards.iter().enumerate() {
        st::save(shard, dir.join(format!("model-{which}.safetensors"))).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
    fs_err::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn hook(layer: usize, point: Point) -> Hook {
    Hook { layer: Some(layer), point }
}

fn activation(dir: &Path, hook: Hook) -> Result<Vec<Vec<f32>>, ModelError> {
    let model = model::load(dir, &[hook], &Device::Cpu, DType::F32)?;
    let mut rows = Vec::new();
    let batch = Packed::new([vec![5u32, 6, 7, 8], vec![9, 10]]);
    model.forward(&batch, &[hook], &mut |_, t: Tensor| {
        rows = t.to_vec2()?;
        Ok(None)
    })?;
    Ok(rows)
}

fn error(dir: &Path) -> ModelError {
    activation(dir, hook(1, Point::ResidPost)).unwrap_err()
}

#[test]
fn layers_beyond_the_hook_are_never_loaded() {
    let deep = |name: &str| {
        name.contains("layers.1.") || name.contains("layers.2.") || name == "model.norm.weight"
    };
    let mut tensors = stored("llama_tied_rope3");
    tensors.retain(|name, _| !deep(name));
    let dir = checkpoint("llama_tied_rope3", &tensors);
    let whole = golden("llama_tied_rope3").join("model");
    for shallow in [hook(0, Point::ResidPost), hook(1, Point::ResidPre), hook(0, Point::Z)] {
        let rows = activation(dir.path(), shallow).unwrap();
        assert_eq!(rows, activation(&whole, shallow).unwrap());
    }
    let missing = activation(dir.path(), hook(1, Point::AttnIn)).unwrap_err();
    assert!(missing.to_string().contains("model.layers.1.input_layernorm.weight"), "{missing}");
}

#[test]
fn an_untied_head_is_its_own_tensor() {
    let dir = checkpoint("qwen2", &stored("qwen2"));
    let config = dir.path().join("config.json");
    let text = fs_err::read_to_string(&config).unwrap();
    let untied = text.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert_ne!(text, untied);
    fs_err::write(&config, untied).unwrap();
    let logits = Hook { layer: None, point: Point::Logits };
    let missing = activation(dir.path(), logits).unwrap_err();
    assert!(missing.to_string().contains("`lm_head.weight`"), "{missing}");
    let mut tensors = stored("qwen2");
    let doubled = (&tensors["model.embed_tokens.weight"] * 2.0).unwrap();
    tensors.insert("lm_head.weight".into(), doubled);
    st::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    let tied = activation(&golden("qwen2").join("model"), logits).unwrap();
    let twice: Vec<Vec<f32>> =
        tied.iter().map(|row| row.iter().map(|v| v * 2.0).collect()).collect();
    assert_eq!(activation(dir.path(), logits).unwrap(), twice);
}

#[test]
fn sharded_equals_single() {
    let dir = bare("qwen2");
    write_shards(dir.path(), &stored("qwen2"));
    let last = hook(1, Point::ResidPost);
    let single = activation(&golden("qwen2").join("model"), last).unwrap();
    assert_eq!(activation(dir.path(), last).unwrap(), single);
    let headers = model::headers(dir.path()).unwrap();
    assert_eq!(headers, model::headers(&golden("qwen2").join("model")).unwrap());
}

#[test]
fn names_with_and_without_the_base_prefix() {
    let renamed = |name: &str, change: fn(&str) -> String| {
        stored(name).into_iter().map(|(n, t)| (change(&n), t)).collect::<Tensors>()
    };
    let bert = checkpoint("bert", &renamed("bert", |n| format!("bert.{n}")));
    let llama = checkpoint(
        "llama_tied_rope3",
        &renamed("llama_tied_rope3", |n| n.trim_start_matches("model.").to_owned()),
    );
    for (name, dir) in [("bert", bert), ("llama_tied_rope3", llama)] {
        let last = hook(2, Point::ResidPost);
        let expected = activation(&golden(name).join("model"), last).unwrap();
        assert_eq!(activation(dir.path(), last).unwrap(), expected, "{name}");
    }
}

#[test]
fn sixteen_bit_weights_are_converted_exactly() {
    for dtype in [DType::F16, DType::BF16] {
        for name in ["llama_tied_rope3", "qwen2", "bert"] {
            let narrow: Tensors = stored(name)
                .into_iter()
                .map(|(n, t)| {
                    let t = if t.dtype() == DType::F32 { t.to_dtype(dtype).unwrap() } else { t };
                    (n, t)
                })
                .collect();
            let by_hand: Tensors = narrow
                .iter()
                .map(|(n, t)| {
                    let t = if t.dtype() == dtype {
                        t.to_dtype(DType::F32).unwrap()
                    } else {
                        t.clone()
                    };
                    (n.clone(), t)
                })
                .collect();
            let last = hook(1, Point::ResidPost);
            let got = activation(checkpoint(name, &narrow).path(), last).unwrap();
            let expected = activation(checkpoint(name, &by_hand).path(), last).unwrap();
            assert_eq!(got, expected, "{name} {dtype:?}");
            assert_ne!(got, activation(&golden(name).join("model"), last).unwrap());
        }
    }
}

#[test]
fn a_checkpoint_without_weights_or_configuration() {
    let empty = tempfile::tempdir().unwrap();
    let words = error(empty.path()).to_string();
    assert!(words.contains("no config.json") && words.contains(empty.path().to_str().unwrap()));
    let missing = error(bare("qwen2").path());
    assert_eq!(missing.kind(), Kind::Input);
    assert!(missing.to_string().contains("model.safetensors"), "{missing}");
    assert!(missing.hint().unwrap().contains("save_pretrained"));
}

#[test]
fn a_truncated_file_is_named() {
    let dir = bare("qwen2");
    let bytes = fs_err::read(golden("qwen2").join("model/model.safetensors")).unwrap();
    let file = dir.path().join("model.safetensors");
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs_err::write(&file, &bytes[..length]).unwrap();
        let truncated = error(dir.path());
        assert_eq!(truncated.kind(), Kind::Input, "{length}");
        assert!(truncated.to_string().contains(file.to_str().unwrap()), "{truncated}");
    }
    let mut hostile = bytes.clone();
    hostile[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs_err::write(&file, &hostile).unwrap();
    assert_eq!(error(dir.path()).kind(), Kind::Input);
}

#[test]
fn an_index_that_names_a_missing_shard() {
    let dir = bare("qwen2");
    write_shards(dir.path(), &stored("qwen2"));
    fs_err::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    let missing = error(dir.path());
    assert_eq!(missing.kind(), Kind::Input);
    let words = missing.to_string();
    assert!(words.contains("index.json") && words.contains("model-1.safetensors"), "{words}");
    let index = dir.path().join("model.safetensors.index.json");
    for bad in ["", "[]", "{}", r#"{"weight_map": {"a": "../../etc/passwd"}}"#] {
        fs_err::write(&index, bad).unwrap();
        assert!(error(dir.path()).to_string().contains("index.json"), "{bad}");
    }
}

#[test]
fn tensors_of_another_shape_or_format() {
    let key = "model.layers.1.mlp.up_proj.weight";
    let mut tensors = stored("qwen2");
    let weight = tensors[key].clone();
    tensors.insert(key.into(), weight.t().unwrap().contiguous().unwrap());
    let words = error(checkpoint("qwen2", &tensors).path()).to_string();
    assert!(words.contains(key) && words.contains("[56, 112], expected [112, 56]"), "{words}");
    tensors.insert(key.into(), weight.to_dtype(DType::F64).unwrap());
    let words = error(checkpoint("qwen2", &tensors).path()).to_string();
    assert!(words.contains(key) && words.contains("F64"), "{words}");
    tensors.remove(key);
    let words = error(checkpoint("qwen2", &tensors).path()).to_string();
    assert!(words.contains(key) && words.contains("model.safetensors"), "{words}");
}

#[test]
fn an_unknown_family_and_a_broken_configuration() {
    let dir = bare("qwen2");
    let config = dir.path().join("config.json");
    fs_err::write(&config, r#"{"model_type": "mamba"}"#).unwrap();
    let unknown = ModelInfo::from_dir(dir.path()).unwrap_err();
    assert_eq!(unknown.kind(), Kind::Input);
    let words = unknown.to_string();
    assert!(words.contains("`mamba` is not supported (supported: llama, mistral"), "{words}");
    for bad in ["", "{", "[]", "{}", r#"{"model_type": "llama"}"#, r#"{"model_type": 3}"#] {
        fs_err::write(&config, bad).unwrap();
        let words = ModelInfo::from_dir(dir.path()).unwrap_err().to_string();
        assert!(words.contains("config.json"), "{bad}: {words}");
    }
}
