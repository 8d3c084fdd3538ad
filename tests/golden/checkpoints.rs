//! What checkpoints hold, and what models refuse.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, safetensors as st};
use pipeline_common::{
    model::{self, Hook, ModelInfo, Packed, Point},
    stage::Classify,
};
use serde_json::{Value, json};

use super::{Case, assert_close, golden, info, load, models, named_hooks, run};

#[test]
fn parameters_follow_from_the_configuration_alone() {
    // These hold tensors of heads or buffers that the model does not need, or lack a pooler.
    let others = ["gpt_neox", "gpt_neox_sequential", "modernbert", "roberta"];
    for name in models().iter().filter(|name| !others.contains(&name.as_str())) {
        let stored = model::headers(&golden(name).join("model")).unwrap().parameters;
        assert_eq!(info(name).parameters(), stored, "{name}");
    }
}

#[test]
fn a_sentence_longer_than_the_positions_is_refused() {
    let (dir, info) = (golden("bert").join("model"), info("bert"));
    let hook = Hook { layer: Some(0), point: Point::ResidPre };
    let model = load(&dir, &[hook]);
    let batch = |n: usize| Packed::new([vec![5u32; n]]);
    model.forward(&batch(96), &[hook], &mut |_, _| Ok(None)).unwrap();
    assert!(model.forward(&batch(97), &[hook], &mut |_, _| Ok(None)).is_err());
    assert!(model.forward(&Packed::new([[600u32]]), &[hook], &mut |_, _| Ok(None)).is_err());
    let deep = Hook { layer: Some(info.n_layers - 1), point: Point::ResidPost };
    assert!(model.forward(&batch(4), &[deep], &mut |_, _| Ok(None)).is_err());
}

/// Rows of every hook of a folder's model on a few sentences, without the pooler that some lack.
fn everything(dir: &Path) -> HashMap<Hook, Vec<Vec<f32>>> {
    let mut hooks = Hook::all(&ModelInfo::from_dir(dir).unwrap());
    hooks.retain(|hook| hook.point != Point::Pooler);
    let sentences: [Vec<u32>; 2] = [(6..40).collect(), vec![9, 7, 70]];
    let rows = run(&*load(dir, &hooks), &sentences, &hooks);
    hooks.into_iter().zip(rows).collect()
}

/// Folders of other forms of golden checkpoints.
fn forms() -> Vec<(String, PathBuf)> {
    let mut forms = vec![];
    for name in models() {
        for entry in fs_err::read_dir(golden(&name)).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with("model_") {
                forms.push((name.clone(), path));
            }
        }
    }
    assert!(forms.len() >= 6, "{forms:?}");
    forms
}

#[test]
fn other_forms_of_a_checkpoint_give_the_same_bits() {
    for (name, dir) in forms() {
        let (original, form) = (everything(&golden(&name).join("model")), everything(&dir));
        assert!(form.len() + 1 >= original.len(), "{}", dir.display());
        for (hook, rows) in form {
            assert!(rows == original[&hook], "{} {hook:?}", dir.display());
        }
    }
}

#[test]
fn quantised_weights_are_what_the_reference_reads() {
    let entries = fs_err::read_dir(golden("quantised")).unwrap();
    let names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(names.len() >= 12, "{names:?}");
    for dir in names {
        let name = format!("quantised/{}", dir.file_name().unwrap().to_str().unwrap());
        let (info, case) = (info(&name), Case::load(&name, "long.safetensors"));
        let (names, hooks) = named_hooks(&case, &info);
        let found = run(&*load(&dir.join("model"), &hooks), &case.sentences, &hooks);
        assert_eq!(names.len(), 3, "{name}");
        for (activation, rows) in names.iter().zip(&found) {
            assert_close(&format!("{name} {activation}"), rows, &case.activations[activation]);
        }
    }
}

#[test]
fn a_pickle_that_asks_for_more_than_tensors_is_refused() {
    let (form, dir) = (golden("llama/model_bin"), tempfile::tempdir().unwrap());
    fs_err::copy(form.join("config.json"), dir.path().join("config.json")).unwrap();
    let (path, whole) = (
        dir.path().join("pytorch_model.bin"),
        fs_err::read(form.join("pytorch_model.bin")).unwrap(),
    );
    let refused = |bytes: &[u8]| {
        fs_err::write(&path, bytes).unwrap();
        let error = model::headers(dir.path()).unwrap_err();
        assert_eq!(error.kind().exit_code(), 65);
        assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
        (error.to_string(), error.hint().unwrap())
    };
    assert!(refused(&whole[..whole.len() / 2]).0.contains("not a readable zip archive"));
    let (error, hint) = refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.");
    assert!(error.contains("before 1.6") && hint.contains("torch.save"), "{error}");
    let mut other = whole.clone();
    let name = b"_rebuild_tensor_v2";
    let at = other.windows(name.len()).position(|w| w == name).unwrap();
    other[at] = b'-';
    refused(&other);
}

/// The model of a folder with its tensors renamed and its configuration changed.
fn renamed(
    name: &str,
    rename: impl Fn(&str) -> String,
    config: impl Fn(Value) -> Value,
) -> tempfile::TempDir {
    let (from, dir) = (golden(name).join("model"), tempfile::tempdir().unwrap());
    let json = fs_err::read_to_string(from.join("config.json")).unwrap();
    let json = config(serde_json::from_str(&json).unwrap());
    fs_err::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let tensors = st::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> =
        tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    st::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    dir
}

#[test]
fn a_text_model_below_images_is_found_where_newer_classes_put_it() {
    let text = everything(&golden("gemma3_text").join("model"));
    let multimodal = |inner: Value| {
        json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": inner, "vision_config": {"hidden_size": 8},
        })
    };
    let rename = |name: &str| name.replacen("model.", "model.language_model.", 1);
    let dir = renamed("gemma3_text", rename, multimodal);
    assert!(everything(dir.path()) == text);
    let info = ModelInfo::from_dir(dir.path()).unwrap();
    let path = "model.language_model.layers.1.mlp";
    assert_eq!(Hook::parse(path, &info).unwrap().module_path(&info), path);
}

#[test]
fn tensors_with_and_without_the_class_s_prefix() {
    for (name, prefix) in [("gpt2", "transformer."), ("mistral", "model."), ("roberta", "roberta.")]
    {
        let bare = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
        let dir = renamed(name, bare, |config| config);
        assert!(everything(dir.path()) == everything(&golden(name).join("model")), "{name}");
    }
}
