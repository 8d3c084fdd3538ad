//! A small job for tests that interrupt the stages: text, settings, and what the store holds.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use pipeline_common::{capture::CaptureMeta, shard::ShardSet};

/// What every stage of the job is given, besides `STORE_DIR`, `HF_DATASET` and the threads.
pub const SETTINGS: &[(&str, &str)] = &[
    ("RUN_ID", "capture"),
    ("SAE_RUN_ID", "training"),
    ("DEVICE", "cpu"),
    ("MODEL_ID", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama_tied_rope3/model")),
    ("LAYER_NUM", "1"),
    ("MAX_LENGTH", "64"),
    ("BATCH_SIZE_SAVE", "16"),
    ("SHARD_MIB", "1"),
    ("N_LATENTS_MULTIPLIER", "4"),
    ("TOP_K", "4"),
    ("BATCH_SIZE_TRAIN", "256"),
    ("EPOCHS", "2"),
    ("CHECKPOINT_EVERY", "25"),
    ("RAYON_NUM_THREADS", "2"),
];

pub const PREPARE: &str = env!("CARGO_BIN_EXE_00_prepare_data");
pub const SAVE: &str = env!("CARGO_BIN_EXE_01_save_activations");
pub const TRAIN: &str = env!("CARGO_BIN_EXE_02_train_sae");
pub const TOP: &str = env!("CARGO_BIN_EXE_03_top_sentences");
pub const NAME: &str = env!("CARGO_BIN_EXE_04_name_latents");
pub const EXPLORE: &str = env!("CARGO_BIN_EXE_05_explore");
pub const DISCOVER: &str = env!("CARGO_BIN_EXE_discover_layers");
pub const STATUS: &str = env!("CARGO_BIN_EXE_pipeline_status");
pub const VERIFY: &str = env!("CARGO_BIN_EXE_verify_shards");
pub const CONVERT: &str = env!("CARGO_BIN_EXE_convert_sae");
pub const EVALUATE: &str = env!("CARGO_BIN_EXE_evaluate_sae");
pub const PLAN: &str = env!("CARGO_BIN_EXE_plan_run");

/// The job in a directory of its own.
pub struct Workload {
    dir: tempfile::TempDir,
}

impl Workload {
    /// A job over `documents` documents of about a hundred tokens.
    pub fn new(documents: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(7);
        let mut lines = String::new();
        for document in 0..documents {
            let words: Vec<&str> = (0..40).map(|_| WORDS[random.below(WORDS.len())]).collect();
            writeln!(lines, r#"{{"text": "{document} {}"}}"#, words.join(" ")).unwrap();
        }
        fs_err::write(dir.path().join("text.jsonl"), lines).unwrap();
        Self { dir }
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// A file of the job's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A run's directory in the store.
    pub fn run(&self, name: &str) -> PathBuf {
        self.store().join("runs").join(name)
    }

    /// The variables of the job.
    pub fn settings(&self) -> Vec<(&'static str, PathBuf)> {
        let own = [("STORE_DIR", self.store()), ("HF_DATASET", self.path("text.jsonl"))];
        let common = SETTINGS.iter().map(|(name, value)| (*name, PathBuf::from(value)));
        own.into_iter().chain(common).collect()
    }

    /// One stage, with an environment that holds the job's settings and nothing else.
    pub fn stage(&self, binary: &str) -> Command {
        let mut command = Command::new(binary);
        command.env_clear().envs(self.settings()).current_dir(self.dir.path());
        command
    }

    /// Runs a stage, which must succeed; what it said on standard output and standard error.
    pub fn succeed(&self, binary: &str, variables: &[(&str, &str)]) -> (String, String) {
        succeed(self.stage(binary).envs(variables.iter().copied()))
    }

    /// Takes everything out of the store and returns it; logs are not part of it.
    pub fn take(&self) -> Contents {
        let contents = Contents::read(&self.store());
        fs_err::remove_dir_all(self.store()).unwrap();
        contents
    }
}

/// Runs a command, which must succeed; its standard output and standard error.
pub fn succeed(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{command:?}: {:?}\n{err}", output.status);
    (out, err)
}

/// Every file of a store but logs, what holds the clock, progress files and checkpoints, by relative
/// path. Which checkpoints are left depends on when a training was interrupted; what came of them
/// does not.
pub struct Contents(pub BTreeMap<PathBuf, Vec<u8>>);

impl Contents {
    pub fn read(store: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![store.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs_err::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(store).unwrap().to_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if !differs(&name) {
                    files.insert(name, fs_err::read(path).unwrap());
                }
            }
        }
        Self(files)
    }

    /// Leaves out what [`Self::read`] does.
    pub fn without_differing(mut self) -> Self {
        self.0.retain(|name, _| !differs(name));
        self
    }

    /// Leaves out files whose names end with one of `endings`.
    pub fn without(mut self, endings: &[&str]) -> Self {
        self.0.retain(|name, _| !endings.iter().any(|end| name.to_string_lossy().ends_with(end)));
        self
    }

    pub fn names(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Fails with the names of the files that are missing, foreign or different.
    pub fn assert_same(&self, expected: &Self, after: &str) {
        let all: std::collections::BTreeSet<_> = self.0.keys().chain(expected.0.keys()).collect();
        let wrong: Vec<String> = all
            .into_iter()
            .filter_map(|name| match (self.0.get(name), expected.0.get(name)) {
                (Some(a), Some(b)) if a == b => None,
                (Some(a), Some(b)) => {
                    let at = a.iter().zip(b).take_while(|(x, y)| x == y).count();
                    Some(format!("{} differs at byte {at}", name.display()))
                }
                (None, _) => Some(format!("{} is missing", name.display())),
                (_, None) => Some(format!("{} is foreign", name.display())),
            })
            .collect();
        assert!(wrong.is_empty(), "{after}: {wrong:#?}");
    }
}

/// Whether a file of a store, named relative to it, is another after every run.
fn differs(name: &Path) -> bool {
    const FOLDERS: [&str; 5] = ["logs", "checkpoints", "progress", "tensorboard", "sweeps"];
    const FILES: [&str; 3] = ["timing.json", "timing.jsonl", "training.html"];
    let is_one_of = |names: &[&str], part: &std::ffi::OsStr| names.iter().any(|n| part == *n);
    name.parent().is_some_and(|parent| parent.iter().any(|part| is_one_of(&FOLDERS, part)))
        || name.file_name().is_some_and(|file| is_one_of(&FILES, file))
}

/// A sentence of a run: document, text, tokens, and its rows' bits.
pub type Sentence = (u64, String, Vec<u32>, Vec<u16>);

/// Every sentence of a run in order.
pub fn sentences(run_dir: &Path) -> Vec<Sentence> {
    let meta = CaptureMeta::read_complete(run_dir).unwrap();
    let set = ShardSet::open(run_dir, &meta.hooks[0].name).unwrap();
    let mut all = vec![];
    for shard in 0..set.shards() {
        let tokens = set.tokens(shard).unwrap();
        for sentence in 0..tokens.sentences() {
            let rows = tokens.sentence_rows(sentence);
            let ids = rows.clone().map(|row| tokens.token(row).id).collect();
            let first = set.first_row(shard);
            let bits = rows.flat_map(|row| set.row(first + row)).map(|x| x.to_bits()).collect();
            all.push((tokens.document(sentence), tokens.text(sentence).to_owned(), ids, bits));
        }
    }
    all
}

/// SplitMix64: the tests draw the same numbers each time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A number from 0 to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

const WORDS: [&str; 24] = [
    "river", "stone", "the", "and", "house", "light", "walks", "under", "green", "song", "winter",
    "bread", "of", "slowly", "carries", "bridge", "over", "child", "red", "a", "train", "waits",
    "for", "morning",
];
