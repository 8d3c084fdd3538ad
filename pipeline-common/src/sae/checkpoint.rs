//! Checkpoints: the whole state of a training, so that it goes on bit-exactly.
//!
//! `checkpoints/step-<n>.safetensors` holds every tensor of [`State`]; `checkpoints/latest.json`
//! names the newest complete one with its digest and is replaced after it. The data position is
//! the step itself, since the order of rows is a function of it. A state that is not finite is never
//! saved, so the latest checkpoint is a good one.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{
    Parameters, SaeError,
    curves::Marks,
    parameters::NAMES,
    trainer::{Best, State},
};
use crate::{
    shard::format::{self, TensorSpec},
    stage::atomic,
};

/// The parts of a state that have the parameters' shape.
const PARTS: [&str; 4] = ["param", "first", "second", "ema"];
/// Elements that one task looks at.
const STRETCH: usize = 1 << 16;

#[derive(Debug, Serialize, Deserialize)]
struct Latest {
    file: String,
    step: u64,
    blake3: String,
    /// How long the curves' logs were.
    curves: Marks,
}

/// The checkpoints of one training.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Those in `<run_dir>/checkpoints`, of which the newest `keep` stay.
    pub fn new(run_dir: &Path, keep: usize) -> Self {
        Self { dir: run_dir.join("checkpoints"), keep }
    }

    /// Writes `state`, whose curves are as long as `curves` says, and makes it the latest.
    ///
    /// # Errors
    /// [`SaeError::Diverged`] for a state that is not finite, which leaves everything as it was; any
    /// I/O error, naming the path.
    pub fn save(&self, state: &State, curves: Marks) -> Result<(), SaeError> {
        must_be_finite(state)?;
        fs_err::create_dir_all(&self.dir)?;
        let path = self.path(state.step);
        let file = file_name(state.step);
        write(&path, state)?;
        let (blake3, _) = format::digest(&path)?;
        atomic::write_json(
            &self.dir.join("latest.json"),
            &Latest { file, step: state.step, blake3, curves },
        )?;
        self.remove_old(state.step)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.dir.join(file_name(step))
    }

    /// The latest state, verified, and the length of its curves; `None` where there is none. `state`
    /// is a state of the same shape.
    ///
    /// # Errors
    /// [`SaeError::Checkpoint`] if the file differs from what was committed; [`SaeError::Shape`] if
    /// it is not of `shape`.
    pub fn load(&self, mut state: State) -> Result<Option<(State, Marks)>, SaeError> {
        let Some(latest) = self.latest()? else { return Ok(None) };
        let path = self.dir.join(&latest.file);
        let map = verified(&path, &latest)?;
        let bad = |reason: String| SaeError::Format { path: path.clone(), reason };
        let file = SafeTensors::deserialize(&map).map_err(|e| bad(e.to_string()))?;
        let State { params, first, second, ema, .. } = &mut state;
        for (part, target) in
            PARTS.iter().zip([Some(params), Some(first), Some(second), ema.as_mut()])
        {
            let Some(target) = target else { continue };
            for (name, tensor) in NAMES.iter().zip(target.tensors_mut()) {
                if !tensor.is_empty() {
                    fill(&path, &file, &format!("{part}.{name}"), tensor)?;
                }
            }
        }
        fill(&path, &file, "since_fired", &mut state.firing.since)?;
        state.memory = numbers(&file, "memory");
        if let [step, fvu] = numbers(&file, "best")[..] {
            state.best = Some(Best { step: step as u64, fvu });
        }
        state.step = latest.step;
        Ok(Some((state, latest.curves)))
    }

    /// The latest checkpoint's file and step, as they were committed.
    ///
    /// # Errors
    /// [`SaeError::Format`] for a file that does not name one; I/O errors.
    pub fn newest(&self) -> Result<Option<(PathBuf, u64)>, SaeError> {
        Ok(self.latest()?.map(|latest| (self.dir.join(latest.file), latest.step)))
    }

    fn latest(&self) -> Result<Option<Latest>, SaeError> {
        let latest = self.dir.join("latest.json");
        let text = match fs_err::read(&latest) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let latest = serde_json::from_slice(&text)
            .map_err(|e| SaeError::Format { path: latest, reason: e.to_string() })?;
        Ok(Some(latest))
    }

    /// Removes all but the newest, and what a killed process left: half-written files, and
    /// checkpoints later than this one, which it did not live to commit.
    fn remove_old(&self, step: u64) -> Result<(), SaeError> {
        let mut files: Vec<PathBuf> = vec![];
        for entry in fs_err::read_dir(&self.dir)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("safetensors") if path > self.path(step) => fs_err::remove_file(path)?,
                Some("safetensors") => files.push(path),
                Some("partial") => fs_err::remove_file(path)?,
                _ => {}
            }
        }
        files.sort();
        for old in files.iter().rev().skip(self.keep.max(1)) {
            fs_err::remove_file(old)?;
        }
        Ok(())
    }
}

/// The file's bytes, which are those that were committed.
fn verified(path: &Path, latest: &Latest) -> Result<memmap2::Mmap, SaeError> {
    let map = format::map(path)?;
    let found = format::digest_bytes(&map);
    if found != latest.blake3 {
        let (path, expected) = (path.to_owned(), latest.blake3.clone());
        return Err(SaeError::Checkpoint { path, expected, found });
    }
    Ok(map)
}

/// The parts of a state that it has, with their names.
fn parts(state: &State) -> impl Iterator<Item = (&'static str, &Parameters)> {
    let parts = [Some(&state.params), Some(&state.first), Some(&state.second), state.ema.as_ref()];
    PARTS.into_iter().zip(parts).filter_map(|(name, part)| Some((name, part?)))
}

fn must_be_finite(state: &State) -> Result<(), SaeError> {
    let odd = |data: &[f32]| data.iter().copied().find(|x| !x.is_finite());
    for (part, params) in parts(state) {
        for (name, tensor) in NAMES.iter().zip(params.tensors()) {
            if let Some(value) = tensor.par_chunks(STRETCH).find_map_first(odd) {
                let (step, value) = (state.step, f64::from(value));
                let quantity = format!("an element of `{part}.{name}`");
                return Err(SaeError::Diverged { step, quantity, value });
            }
        }
    }
    Ok(())
}

/// Names sort as steps do.
fn file_name(step: u64) -> String {
    format!("step-{step:012}.safetensors")
}

fn write(path: &Path, state: &State) -> Result<(), SaeError> {
    let since = TensorSpec {
        name: "since_fired",
        dtype: Dtype::U64,
        shape: vec![state.firing.since.len()],
    };
    let best = state.best.map(|best| [best.step as f64, best.fvu]);
    let f64s = [("memory", state.memory.as_slice()), ("best", best.as_ref().map_or(&[], |b| b))];
    let mut tensors: Vec<(TensorSpec<'_>, &[u8])> =
        vec![(since, bytemuck::cast_slice(&state.firing.since))];
    for (name, data) in f64s.into_iter().filter(|(_, data)| !data.is_empty()) {
        let spec = TensorSpec { name, dtype: Dtype::F64, shape: vec![data.len()] };
        tensors.push((spec, bytemuck::cast_slice(data)));
    }
    let names = PARTS.map(|part| NAMES.map(|name| format!("{part}.{name}")));
    for (names, (_, part)) in names.iter().zip(parts(state)) {
        for (name, data) in names.iter().zip(part.tensors()).filter(|(_, data)| !data.is_empty()) {
            let spec = TensorSpec { name, dtype: Dtype::F32, shape: vec![data.len()] };
            tensors.push((spec, bytemuck::cast_slice(data)));
        }
    }
    let metadata = vec![("step".to_owned(), state.step.to_string())];
    Ok(format::write_file(path, &tensors, &metadata)?)
}

/// The numbers of an optional tensor of f64.
fn numbers(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let data = file.tensor(name).map(|view| view.data()).unwrap_or_default();
    data.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect()
}

fn fill<T: bytemuck::AnyBitPattern>(
    path: &Path,
    file: &SafeTensors<'_>,
    name: &str,
    out: &mut [T],
) -> Result<(), SaeError> {
    let reason = |e: String| SaeError::Format {
        path: path.to_owned(),
        reason: format!("tensor `{name}`: {e}"),
    };
    let view = file.tensor(name).map_err(|e| reason(e.to_string()))?;
    if view.data().len() != size_of_val(out) {
        return Err(SaeError::Shape {
            path: path.to_owned(),
            tensor: name.to_owned(),
            expected: vec![out.len()],
            found: view.shape().to_vec(),
        });
    }
    let values = view.data().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned);
    out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::{Parameters, parameters::Shape};

    fn blank(d_sae: usize) -> State {
        State::new(Parameters::zeros(Shape::jumprelu(3, d_sae)), 10, true)
    }

    fn state(step: u64) -> State {
        let mut state = blank(5);
        state.memory = vec![step as f64, 0.5];
        state.best = Some(Best { step: 3, fvu: 0.25 });
        state.step = step;
        let State { params, first, second, ema: Some(ema), .. } = &mut state else { panic!() };
        for (i, part) in [params, first, second, ema].into_iter().enumerate() {
            for (j, t) in part.tensors_mut().into_iter().enumerate() {
                t.iter_mut()
                    .enumerate()
                    .for_each(|(n, x)| *x = (i * 100 + j * 10 + n) as f32 + step as f32);
            }
        }
        state.firing.since[2] = 77;
        state
    }

    #[test]
    fn the_latest_state_comes_back_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 2);
        assert_eq!(checkpoints.load(blank(5)).unwrap(), None);
        for step in [5, 10, 15] {
            checkpoints.save(&state(step), Marks { history: step, timing: 1 }).unwrap();
        }
        let marks = Marks { history: 15, timing: 1 };
        assert_eq!(checkpoints.load(blank(5)).unwrap(), Some((state(15), marks)));
        assert!(!dir.path().join("checkpoints/step-000000000005.safetensors").exists());
    }

    #[test]
    fn damage_and_another_shape_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 2);
        checkpoints.save(&state(5), Marks::default()).unwrap();
        assert!(matches!(checkpoints.load(blank(6)), Err(SaeError::Shape { .. })));
        let path = dir.path().join("checkpoints/step-000000000005.safetensors");
        let mut bytes = fs_err::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs_err::write(&path, bytes).unwrap();
        assert!(matches!(checkpoints.load(blank(5)), Err(SaeError::Checkpoint { .. })));
    }

    #[test]
    fn a_state_that_is_not_finite_never_takes_the_place_of_a_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 1);
        checkpoints.save(&state(5), Marks::default()).unwrap();
        let mut bad = state(6);
        bad.second.b_dec[1] = f32::NAN;
        let error = checkpoints.save(&bad, Marks::default()).unwrap_err().to_string();
        assert!(error.contains("step 6: an element of `second.b_dec` is NaN"), "{error}");
        assert_eq!(checkpoints.newest().unwrap().map(|(_, step)| step), Some(5));
        assert_eq!(checkpoints.load(blank(5)).unwrap(), Some((state(5), Marks::default())));
    }
}
