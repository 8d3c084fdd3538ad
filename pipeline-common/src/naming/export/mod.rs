//! Names and latents in the formats of other projects, in `names/`.
//!
//! * `neuronpedia/`: feature batches as SAEDashboard writes them, and explanations ([`neuronpedia`])
//! * `delphi/`: the cache of latents over part of the capture, and explanations ([`delphi`])

mod delphi;
mod neuronpedia;

use std::{collections::BTreeMap, path::PathBuf};

use super::names;
use crate::{
    capture::CaptureMeta,
    names::NameRecord,
    sae::{Sae, formats::saelens, train::TrainingMeta},
    shard::ShardSet,
    stage::{
        Context, Failure, Result,
        progress::thousands,
        store::{Pointer, Store},
    },
    top::TopData,
};

/// What is exported.
struct Export {
    /// `names/` of the training run.
    dir: PathBuf,
    training: TrainingMeta,
    capture: CaptureMeta,
    /// The capture's rows.
    set: ShardSet,
    sae: Sae,
    data: TopData,
    names: BTreeMap<u32, NameRecord>,
}

/// Writes all exports; `tokens` are cached for delphi.
///
/// # Errors
/// A run that is not complete or not here; damaged files.
pub(super) fn export(
    context: &Context,
    store: &Store,
    training: Option<&str>,
    tokens: u64,
) -> Result<()> {
    let export = Export::open(store, training)?;
    for old in [neuronpedia::DIRECTORY, delphi::DIRECTORY] {
        match fs_err::remove_dir_all(export.dir.join(old)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    let features = export.neuronpedia()?;
    context.leave_if_asked("the export for Neuronpedia is written")?;
    let cached = export.delphi(context, tokens)?;
    context.print(&format!(
        "{} features in {}\n{} tokens in {}\n",
        thousands(features),
        export.dir.join(neuronpedia::DIRECTORY).display(),
        thousands(cached),
        export.dir.join(delphi::DIRECTORY).display(),
    ));
    Ok(())
}

impl Export {
    fn open(store: &Store, training: Option<&str>) -> Result<Self> {
        let (_, run) = store.find(training, Pointer::Training)?;
        let training = TrainingMeta::read_complete(&run)?;
        let data = TopData::open(&run.join("top_sentences"))?;
        // The rows whose sentences were shown; stage 03 may have read another capture than 02.
        let (_, capture_run) = store.find(Some(&data.table().origin.capture), Pointer::Capture)?;
        let capture = CaptureMeta::read_complete(&capture_run)?;
        let hook = capture.hook(Some(&training.hook))?.name.clone();
        let set = ShardSet::open(&capture_run, &hook)?;
        let sae = saelens::load(&run)?;
        if set.d_in() != sae.params.d_in || data.d_sae() != sae.params.d_sae {
            return Err(Failure::input(format!(
                "the SAE of run `{}` is {} x {}, rows have {} and top_sentences/ {} latents",
                training.run_id,
                sae.params.d_in,
                sae.params.d_sae,
                set.d_in(),
                data.d_sae()
            )));
        }
        let dir = run.join(names::DIRECTORY);
        let names = names::read(&dir)?;
        Ok(Self { dir, training, capture, set, sae, data, names })
    }

    /// The model's name without its owner.
    fn model(&self) -> &str {
        let id = self.capture.model.id.trim_end_matches('/');
        id.rsplit('/').next().unwrap_or(id)
    }
}

/// What a name says, in one line.
fn explanation(name: &NameRecord) -> String {
    format!("{}: {}", name.label, name.description)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, io::Read, path::Path};

    use clap::Parser;
    use half::f16;
    use safetensors::SafeTensors;
    use serde_json::Value;

    use super::*;
    use crate::{
        slurm::SlurmEnv,
        stage::{ResolvedConfig, Stage, StopFlag},
        top::{TopSentences, plant},
    };

    /// A training of 12 latents with top sentences, exported.
    fn exported(dir: &Path) -> Export {
        plant(dir);
        let context = Context {
            stop: StopFlag::default(),
            config: ResolvedConfig::default(),
            slurm: SlurmEnv::default(),
            threads: 1,
        };
        let arguments = ["x", "--store-dir", dir.to_str().unwrap()];
        TopSentences::try_parse_from(arguments).unwrap().run(&context).unwrap();
        let store = Store::new(dir);
        let names = dir.join("runs/sae").join(names::DIRECTORY);
        let name = NameRecord {
            latent: 3,
            label: "żółw".into(),
            description: "a \"turtle\"".into(),
            model: "m".into(),
            ..NameRecord::default()
        };
        names::write_names(&names, &BTreeMap::from([(3, name)]), &BTreeMap::new()).unwrap();
        export(&context, &store, None, 1000).unwrap();
        Export::open(&store, None).unwrap()
    }

    #[test]
    fn delphi_finds_every_activation_of_the_sae_in_its_place() {
        let store = tempfile::tempdir().unwrap();
        let export = exported(store.path());
        let dir = export.dir.join("delphi/latents/h");
        let mut found = BTreeSet::new();
        for (first, last) in [(0, 1), (2, 3), (4, 6), (7, 8), (9, 11)] {
            let bytes = fs_err::read(dir.join(format!("{first}_{last}.safetensors"))).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(file.tensor("tokens").unwrap().shape(), [3, 4]);
            let locations = file.tensor("locations").unwrap();
            let locations: Vec<u64> = locations
                .data()
                .chunks(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]).into())
                .collect();
            let activations = file.tensor("activations").unwrap();
            let values = activations.data().chunks(2).map(|b| [b[0], b[1]]);
            for (place, value) in locations.chunks(3).zip(values.map(f16::from_le_bytes)) {
                found.insert((place[0], place[1], place[2] + first, value.to_bits()));
            }
        }
        let mut expected = BTreeSet::new();
        for (sentence, rows) in [0..4, 4..5, 5..8].into_iter().enumerate() {
            for row in rows.clone() {
                let mut input = vec![0.0; 6];
                export.set.read_row(row, 1.0, &mut input);
                let active = export.sae.encode(&input);
                let (latents, values) = active.row(0);
                for (latent, value) in latents.iter().zip(values).filter(|(_, v)| **v > 1e-5) {
                    let place = (row - rows.start) as u64;
                    let bits = f16::from_f32(*value).to_bits();
                    expected.insert((sentence as u64, place, u64::from(*latent), bits));
                }
            }
        }
        assert!(expected.len() >= 8);
        assert_eq!(found, expected);
        let config = fs_err::read(dir.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!((&config["cache_ctx_len"], &config["n_tokens"]), (&4.into(), &8.into()));
        let text = export.dir.join("delphi/explanations/h_latent3.txt");
        let text: String = serde_json::from_slice(&fs_err::read(text).unwrap()).unwrap();
        assert_eq!(text, "żółw: a \"turtle\"");
    }

    #[test]
    fn neuronpedia_has_a_feature_for_each_latent_that_fired() {
        let store = tempfile::tempdir().unwrap();
        let export = exported(store.path());
        let dir = export.dir.join("neuronpedia");
        let batch = fs_err::read(dir.join("features/batch-0.json")).unwrap();
        let batch: Value = serde_json::from_slice(&batch).unwrap();
        assert_eq!((&batch["model_id"], &batch["sae_set"]), (&"m".into(), &"sae".into()));
        let features = batch["features"].as_array().unwrap();
        let fired = export.data.table().fired.iter().filter(|n| **n > 0).count();
        assert_eq!(features.len(), fired);
        for feature in features {
            let latent = feature["feature_index"].as_u64().unwrap() as usize;
            assert_eq!(feature["frac_nonzero"], export.data.density(latent));
            assert_eq!(feature["vector"].as_array().unwrap().len(), 6);
            let first = &feature["activations"][0];
            assert_eq!(
                (&first["bin_min"], &first["bin_contains"]),
                (&(-1.0).into(), &(-1.0).into())
            );
            let values: Vec<f64> =
                first["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let best = first["qualifying_token_index"].as_u64().unwrap() as usize;
            assert_eq!(values.len(), first["tokens"].as_array().unwrap().len());
            assert!(values.iter().all(|v| *v <= values[best]) && values[best] > 0.0, "{values:?}");
        }
        let packed = fs_err::read(dir.join("explanations/batch-0.jsonl.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["index"], &line["layer"]), (&"3".into(), &"0-sae".into()));
    }
}
