//! Tensors that a visitor puts in the place of a hook's.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use pipeline_common::model::{self, Hook, HookedModel, Packed, Point};

use super::{assert_close, for_each_case, golden, info, load, models};

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
    let outside = [Point::Logits, Point::FinalNorm];
    let end = outside.into_iter().find(|point| info.site(*point).is_some());
    let end = end.map_or(last, |point| Hook { layer: None, point });
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

/// The ids, the plain ending, and each name's; none where the model differs from another in its
/// positions alone.
fn interventions(model: &str) -> Option<(Vec<u32>, Rows, BTreeMap<String, Rows>)> {
    let path = golden(model).join("interventions.safetensors");
    if !path.is_file() {
        return None;
    }
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let ids = tensors.remove("input_ids").unwrap().to_vec2::<i64>().unwrap().concat();
    let mut rows: BTreeMap<String, Rows> =
        tensors.into_iter().map(|(name, t)| (name, t.to_vec2().unwrap())).collect();
    let plain = rows.remove("none").unwrap();
    Some((ids.into_iter().map(|i| i as u32).collect(), plain, rows))
}

/// Changes each hook in turn; what the model ends with against what PyTorch hooks made of it.
fn assert_interventions(name: &str, device: &Device) -> bool {
    let Some((ids, plain, endings)) = interventions(name) else { return false };
    let (dir, info) = (golden(name).join("model"), info(name));
    let mut hooks = Hook::all(&info);
    hooks.retain(|hook| hook.point != Point::Pooler);
    let model = model::load(&dir, &hooks, device, DType::F32).unwrap();
    let tail = |rows: &[Vec<f32>]| rows[rows.len() - plain.len()..].to_vec();
    assert_close(name, &tail(&end_with(&*model, &ids, &[], |_| Ok(None))), &plain);
    let mut left = hooks;
    for (path, expected) in endings {
        let hook = Hook::parse(&path, &info).unwrap();
        left.retain(|other| *other != hook);
        let got = end_with(&*model, &ids, &[hook], |x| changed(x).map(Some));
        assert_close(&format!("{name} {path}"), &tail(&got), &expected);
    }
    assert!(left.is_empty(), "{name} has no reference for {left:?}");
    true
}

#[test]
fn what_replaces_a_hook_reaches_the_end_as_in_the_reference() {
    let tested = models().iter().filter(|name| assert_interventions(name, &Device::Cpu)).count();
    assert!(tested >= 22, "{tested} models");
}

#[cfg(feature = "cuda")]
#[test]
fn on_a_gpu_every_intervention() {
    let device = model::device("cuda").unwrap();
    models().iter().for_each(|name| {
        assert_interventions(name, &device);
    });
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
    let hook = Hook::alias("resid_post", 0, &info("qwen2")).unwrap();
    let model = load(&dir, &[hook]);
    let narrow = |_, x: Tensor| Ok(Some(x.narrow(1, 0, 3)?));
    let error = model.forward(&Packed::new([[1u32, 2]]), &[hook], &mut { narrow }).unwrap_err();
    assert!(error.to_string().contains("in place of a hook's"), "{error}");
}
