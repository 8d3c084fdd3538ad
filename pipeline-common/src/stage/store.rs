//! The store: a directory of runs and the two files that point at the newest complete ones.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::{Failure, Result, atomic, lock::Lock};

/// This node's own disk: $SLURM_TMPDIR, else the temporary directory.
pub fn node_scratch() -> PathBuf {
    let given = std::env::var_os("SLURM_TMPDIR").filter(|dir| !dir.is_empty());
    given.map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Which kind of run a pointer file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// `run_id.txt`: the newest complete capture.
    Capture,
    /// `sae_run_id.txt`: the newest complete training.
    Training,
}

impl Pointer {
    /// The file's name in the store.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Capture => "run_id.txt",
            Self::Training => "sae_run_id.txt",
        }
    }

    const fn maker(self) -> &'static str {
        match self {
            Self::Capture => "01_save_activations",
            Self::Training => "02_train_sae",
        }
    }

    const fn variable(self) -> &'static str {
        match self {
            Self::Capture => "RUN_ID",
            Self::Training => "SAE_RUN_ID",
        }
    }
}

/// A run's name made from what it is of, a model for instance, and from all that decides its
/// result: the same work finds its run again.
pub fn derived_name(of: &str, settings: &str) -> String {
    let last = of.rsplit('/').find(|part| !part.is_empty()).unwrap_or("run");
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = last.chars().map(plain).collect();
    let digest = blake3::hash(settings.as_bytes()).to_hex();
    format!("{}-{}", name.trim_start_matches('.'), &digest[..8])
}

/// The store's root directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a run, whether or not it exists.
    ///
    /// # Errors
    /// A usage failure for a name that is not a plain file name.
    pub fn run_dir(&self, run_id: &str, kind: Pointer) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+=".contains(c);
        if run_id.is_empty() || run_id.starts_with('.') || !run_id.chars().all(plain) {
            let what = format!("{} `{run_id}` is not a name for a directory", kind.variable());
            return Err(Failure::usage(what).hint("use letters, digits, dot, dash and underscore"));
        }
        Ok(self.root.join("runs").join(run_id))
    }

    /// The directory of an existing run: `explicit` if given, else what the pointer file names.
    ///
    /// # Errors
    /// A usage failure if the named run is missing; an input failure if the pointer file names a
    /// run that is missing; both list the runs there are.
    pub fn find(&self, explicit: Option<&str>, pointer: Pointer) -> Result<(String, PathBuf)> {
        if let Some(id) = explicit {
            let dir = self.run_dir(id, pointer)?;
            return if dir.is_dir() {
                Ok((id.to_owned(), dir))
            } else {
                let what = format!(
                    "{} names run `{id}`, but `{}` does not exist",
                    pointer.variable(),
                    dir.display()
                );
                Err(Failure::usage(what).hint(self.list_hint()))
            };
        }
        let file = self.root.join(pointer.file());
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let what = format!(
                    "no {} given and `{}` does not exist",
                    pointer.variable(),
                    file.display()
                );
                return Err(Failure::input(what).hint(format!(
                    "run {} first, or point STORE_DIR at its store",
                    pointer.maker()
                )));
            }
            Err(e) => return Err(e.into()),
        };
        let id = text.trim().to_owned();
        let dir = self
            .run_dir(&id, pointer)
            .map_err(|f| f.context(format!("reading `{}`", file.display())))?;
        if !dir.is_dir() {
            let what = format!(
                "`{}` names run `{id}`, but `{}` does not exist",
                file.display(),
                dir.display()
            );
            return Err(Failure::input(what).hint(self.list_hint()));
        }
        Ok((id, dir))
    }

    /// Points the pointer file at a complete run.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn publish(&self, pointer: Pointer, run_id: &str) -> Result<()> {
        fs::create_dir_all(&self.root)?;
        let _lock = Lock::wait(&self.root.join(".lock"))?;
        atomic::sweep(&self.root)?;
        Ok(atomic::write(&self.root.join(pointer.file()), format!("{run_id}\n").as_bytes())?)
    }

    fn list_hint(&self) -> String {
        let mut names: Vec<String> = fs::read_dir(self.root.join("runs"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        if names.is_empty() {
            format!("`{}` holds no runs", self.root.display())
        } else {
            format!("runs in `{}`: {}", self.root.display(), names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Kind;

    #[test]
    fn an_explicit_run_wins_and_a_missing_one_lists_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        fs::create_dir_all(store.run_dir("a", Pointer::Capture).unwrap()).unwrap();
        fs::create_dir_all(store.run_dir("b", Pointer::Capture).unwrap()).unwrap();
        store.publish(Pointer::Capture, "a").unwrap();
        assert_eq!(store.find(None, Pointer::Capture).unwrap().0, "a");
        assert_eq!(store.find(Some("b"), Pointer::Capture).unwrap().0, "b");
        let failure = store.find(Some("c"), Pointer::Capture).unwrap_err();
        assert_eq!(failure.kind, Kind::Usage);
        assert!(failure.hint.unwrap().contains("a, b"));
    }

    #[test]
    fn a_pointer_to_a_missing_run_is_invalid_input() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert_eq!(store.find(None, Pointer::Training).unwrap_err().kind, Kind::Input);
        store.publish(Pointer::Training, "gone").unwrap();
        let failure = store.find(None, Pointer::Training).unwrap_err();
        assert_eq!(failure.kind, Kind::Input);
        assert!(failure.source.to_string().contains("sae_run_id.txt"));
    }

    #[test]
    fn names_that_leave_the_store_are_refused() {
        let store = Store::new("/s");
        for bad in ["", "..", "a/b", "/x", ".hidden", "a b"] {
            assert!(store.run_dir(bad, Pointer::Training).is_err(), "{bad}");
        }
    }
}
