//! Names and latents in the formats of other projects, in `names/`.
//!
//! * `neuronpedia/`: feature batches as SAEDashboard writes them, and explanations ([`neuronpedia`])
//! * `delphi/`: the cache of latents over part of the capture, and explanations ([`delphi`])

mod delphi;
mod neuronpedia;

use std::{collections::BTreeMap, path::PathBuf};

use super::names::{self, NameRecord};
use crate::{
    capture::CaptureMeta,
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
