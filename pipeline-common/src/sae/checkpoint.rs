//! Checkpoints: the whole state of a training, so that it goes on bit-exactly.
//!
//! `checkpoints/step-<n>.safetensors` holds every tensor of [`State`]; `checkpoints/latest.json`
//! names the newest complete one with its digest and is replaced after it. The data position is
//! the step itself, since the order of rows is a function of it.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{Parameters, SaeError, parameters::NAMES, trainer::State, variant::Firing};
use crate::{
    shard::format::{self, TensorSpec},
    stage::atomic,
};

/// Checkpoints kept.
const KEEP: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
struct Latest {
    file: String,
    step: u64,
    blake3: String,
}

/// The checkpoints of one training.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Those in `<run_dir>/checkpoints`.
    pub fn new(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("checkpoints") }
    }

    /// Writes `state` and makes it the latest; older ones than the last two go.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn save(&self, state: &State) -> Result<(), SaeError> {
        fs_err::create_dir_all(&self.dir)?;
        let path = self.path(state.step);
        let file = file_name(state.step);
        write(&path, state)?;
        let (blake3, _) = format::digest(&path)?;
        atomic::write_json(
            &self.dir.join("latest.json"),
            &Latest { file, step: state.step, blake3 },
        )?;
        self.remove_old(state.step)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.dir.join(file_name(step))
    }

    /// The latest state, verified; `None` where there is none.
    ///
    /// # Errors
    /// [`SaeError::Checkpoint`] if the file differs from what was committed; [`SaeError::Shape`] if
    /// it is not of `shape`.
    pub fn load(&self, shape: &Parameters, dead_after: u64) -> Result<Option<State>, SaeError> {
        let latest = self.dir.join("latest.json");
        let text = match fs_err::read(&latest) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let bad = |path: &Path, reason: String| SaeError::Format { path: path.to_owned(), reason };
        let latest: Latest =
            serde_json::from_slice(&text).map_err(|e| bad(&latest, e.to_string()))?;
        let path = self.dir.join(&latest.file);
        let map = format::map(&path)?;
        let found = format::digest_bytes(&map);
        if found != latest.blake3 {
            return Err(SaeError::Checkpoint { path, expected: latest.blake3, found });
        }
        let file = SafeTensors::deserialize(&map).map_err(|e| bad(&path, e.to_string()))?;
        let mut state = State::new(shape.zeros_like(), dead_after);
        for (prefix, target) in [
            ("param", &mut state.params),
            ("first", &mut state.first),
            ("second", &mut state.second),
        ] {
            for (name, tensor) in NAMES.iter().zip(target.tensors_mut()) {
                fill(&path, &file, &format!("{prefix}.{name}"), tensor)?;
            }
        }
        let mut since = state.firing.since;
        fill(&path, &file, "since_fired", &mut since)?;
        state.firing = Firing { since, dead_after };
        state.step = latest.step;
        Ok(Some(state))
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
        for old in files.iter().rev().skip(KEEP) {
            fs_err::remove_file(old)?;
        }
        Ok(())
    }
}

/// Names sort as steps do.
fn file_name(step: u64) -> String {
    format!("step-{step:012}.safetensors")
}

fn write(path: &Path, state: &State) -> Result<(), SaeError> {
    const FIELDS: [[&str; 5]; 3] = [
        ["param.w_enc", "param.b_enc", "param.w_dec", "param.b_dec", "param.threshold"],
        ["first.w_enc", "first.b_enc", "first.w_dec", "first.b_dec", "first.threshold"],
        ["second.w_enc", "second.b_enc", "second.w_dec", "second.b_dec", "second.threshold"],
    ];
    let since = TensorSpec {
        name: "since_fired",
        dtype: Dtype::U64,
        shape: vec![state.firing.since.len()],
    };
    let mut tensors: Vec<(TensorSpec, &[u8])> =
        vec![(since, bytemuck::cast_slice(&state.firing.since))];
    for (names, part) in FIELDS.iter().zip([&state.params, &state.first, &state.second]) {
        for (name, data) in names.iter().zip(part.tensors()) {
            let spec = TensorSpec { name, dtype: Dtype::F32, shape: vec![data.len()] };
            tensors.push((spec, bytemuck::cast_slice(data)));
        }
    }
    let metadata = vec![("step".to_owned(), state.step.to_string())];
    Ok(format::write_file(path, &tensors, &metadata)?)
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

    fn state(step: u64) -> State {
        let mut state = State::new(Parameters::zeros(3, 5, true), 10);
        state.step = step;
        for (i, part) in
            [&mut state.params, &mut state.first, &mut state.second].into_iter().enumerate()
        {
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
        let checkpoints = Checkpoints::new(dir.path());
        let shape = Parameters::zeros(3, 5, true);
        assert_eq!(checkpoints.load(&shape, 10).unwrap(), None);
        for step in [5, 10, 15] {
            checkpoints.save(&state(step)).unwrap();
        }
        assert_eq!(checkpoints.load(&shape, 10).unwrap(), Some(state(15)));
        assert!(!dir.path().join("checkpoints/step-000000000005.safetensors").exists());
    }

    #[test]
    fn damage_and_another_shape_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path());
        checkpoints.save(&state(5)).unwrap();
        let other = Parameters::zeros(3, 6, true);
        assert!(matches!(checkpoints.load(&other, 10), Err(SaeError::Shape { .. })));
        let path = dir.path().join("checkpoints/step-000000000005.safetensors");
        let mut bytes = fs_err::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs_err::write(&path, bytes).unwrap();
        let shape = Parameters::zeros(3, 5, true);
        assert!(matches!(checkpoints.load(&shape, 10), Err(SaeError::Checkpoint { .. })));
    }
}
