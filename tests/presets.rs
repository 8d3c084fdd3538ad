//! The presets in configs/: each trains, on a small run, what its name says.

use std::path::PathBuf;

use super::workload::{SAVE, TRAIN, Workload};

/// A small run in place of the recipe's own size.
const SMALL: [(&str, &str); 6] = [
    ("D_SAE", "256"),
    ("TOKENS", "320"),
    ("BATCH_SIZE_TRAIN", "64"),
    ("VALIDATION", "0.1"),
    // The recipe's first step for it is behind the last of these.
    ("THRESHOLD_START", "1"),
    ("CHECKPOINT_EVERY", "100"),
];

/// What each preset trains, as SAELens calls it and as SAE_ARCH does.
const PRESETS: [(&str, &str, &str); 14] = [
    ("as-dictionary-learning-batchtopk", "jumprelu", "batchtopk"),
    ("as-dictionary-learning-gated", "gated", "gated"),
    ("as-dictionary-learning-jumprelu", "jumprelu", "jumprelu"),
    ("as-dictionary-learning-matryoshka", "jumprelu", "matryoshka"),
    ("as-dictionary-learning-panneal", "standard", "panneal"),
    ("as-dictionary-learning-standard", "standard", "standard"),
    ("as-dictionary-learning-topk", "topk", "topk"),
    ("as-gemma-scope", "jumprelu", "jumprelu"),
    ("as-jumprelu-notebook", "jumprelu", "jumprelu"),
    ("as-numbered-scripts", "topk", "topk"),
    ("as-openai", "topk", "topk"),
    ("as-saelens-topk", "topk", "topk"),
    ("as-saint", "topk", "topk"),
    ("as-sparsify", "topk", "topk"),
];

fn configs() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "configs"].iter().collect()
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

#[test]
fn presets_all_have_a_row_here() {
    let mut found: Vec<String> = fs_err::read_dir(configs())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    found.sort();
    assert_eq!(found, PRESETS.map(|(name, ..)| format!("{name}.yaml")));
}

#[test]
fn presets_train_what_their_names_say() {
    let work = Workload::new(30);
    work.succeed(SAVE, &[]);
    for (name, saelens, arch) in PRESETS {
        let config = configs().join(format!("{name}.yaml"));
        let mut stage = work.stage(TRAIN);
        // What the job sets otherwise is the preset's to say.
        for variable in ["TOP_K", "N_LATENTS_MULTIPLIER", "EPOCHS"] {
            stage.env_remove(variable);
        }
        stage.envs(SMALL).env("CONFIG", config).env("SAE_RUN_ID", name);
        super::workload::succeed(&mut stage);
        let cfg = json(work.run(name).join("cfg.json"));
        assert_eq!(cfg["architecture"], saelens, "{name}");
        assert_eq!(cfg["d_sae"], 256, "{name}");
        let meta = json(work.run(name).join("meta.json"));
        assert_eq!(meta["config"]["sae_arch"]["value"], arch, "{name}");
        assert_eq!(meta["steps"], 5, "{name}");
        assert!(meta["validation"]["fvu"].as_f64().unwrap().is_finite(), "{name}");
    }
}
