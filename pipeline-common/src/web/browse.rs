//! One SAE as the page lists it: metadata, columns, names, weights.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use serde_json::{Value, json};

use super::{
    answer::{Answer, Refusal},
    catalog::{self, Catalog, TOP, WEIGHTS},
    index::{Entry, Indexes},
    names::Names,
    shelf::{Shelf, Stamp},
    table::Orders,
};
use crate::{
    capture::CaptureMeta,
    names::FILE,
    sae::{Sae, formats::saelens, history::Record, train::TrainingMeta},
    stage::{Failure, Result},
    top::{
        TopData,
        data::{LATENTS, SENTENCES, TABLE},
    },
};

/// SAEs whose columns and names are kept.
const OPEN: usize = 64;
/// SAEs whose weights are kept.
const LOADED: usize = 4;
/// Points of a training curve.
const POINTS: usize = 1000;
/// Bins of a histogram of densities a decade.
const BINS: f64 = 4.0;

/// The SAEs of a store.
#[derive(Debug)]
pub(super) struct Library {
    pub catalog: Catalog,
    opened: Shelf<Browse>,
    named: Shelf<Names>,
    weights: Shelf<Weights>,
    indexes: Indexes,
}

/// What is known of an SAE's latents.
#[derive(Debug)]
pub(super) struct Browse {
    top: std::result::Result<TopData, Refusal>,
    pub names: Arc<Names>,
    pub orders: Orders,
}

/// A complete training.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub meta: TrainingMeta,
    dir: PathBuf,
    /// Of stage 03's files, before they were read.
    stamp: Stamp,
    browse: Arc<Browse>,
}

/// An SAE in memory.
#[derive(Debug)]
pub(super) struct Weights {
    pub sae: Sae,
    norms: OnceLock<Vec<f32>>,
}

impl Weights {
    /// Norms of its decoder rows.
    pub fn norms(&self) -> &[f32] {
        self.norms.get_or_init(|| self.sae.params.decoder_norms())
    }
}

impl Browse {
    /// What stage 03 wrote.
    pub fn top(&self) -> Answer<&TopData> {
        self.top.as_ref().map_err(Clone::clone)
    }
}

impl Opened {
    pub fn names(&self) -> &Names {
        &self.browse.names
    }

    pub fn browse(&self) -> &Arc<Browse> {
        &self.browse
    }

    /// What stage 03 wrote.
    pub fn top(&self) -> Answer<&TopData> {
        self.browse.top()
    }

    /// A latent's number, from an address.
    pub fn latent(&self, text: &str) -> Answer<usize> {
        let n = text.parse().ok().filter(|n| *n < self.meta.d_sae);
        n.ok_or_else(|| {
            Refusal::missing(format!(
                "`{}` has no latent `{}`; it has {}, from 0",
                self.meta.run_id,
                catalog::shown(text),
                self.meta.d_sae
            ))
        })
    }
}

impl Library {
    pub fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
            opened: Shelf::new(OPEN),
            named: Shelf::new(OPEN),
            weights: Shelf::new(LOADED),
            indexes: Indexes::default(),
        }
    }

    /// A complete training by its name.
    pub fn open(&self, sae: &str) -> Answer<Opened> {
        let (meta, dir) = self.catalog.training(sae)?;
        let named = Stamp::of(&dir, &[FILE]);
        let stamp = Stamp::of(&dir.join(TOP), &[TABLE, LATENTS, SENTENCES]);
        let names =
            self.named.get(&meta.run_id, named.clone(), || Names::read(&dir, meta.d_sae))?;
        let browse = self.opened.get(sae, stamp.clone().and(named), || {
            let top = top_data(&dir, &meta);
            Ok::<_, Refusal>(Browse { top, names, orders: Orders::default() })
        })?;
        Ok(Opened { meta, dir, stamp, browse })
    }

    /// An SAE's weights, read if need be.
    pub fn weights(&self, opened: &Opened) -> Result<Arc<Weights>> {
        let stamp = Stamp::of(&opened.dir, &["cfg.json", WEIGHTS]);
        self.weights.get(&opened.meta.run_id, stamp, || {
            let sae = saelens::load(&opened.dir)?;
            let (found, said) = (sae.params.d_sae, opened.meta.d_sae);
            if found != said {
                let dir = opened.dir.display();
                let what = format!("`{dir}` has weights of {found} latents, meta.json says {said}");
                return Err(Failure::input(what).hint("train it anew under another SAE_RUN_ID"));
            }
            Ok(Weights { sae, norms: OnceLock::new() })
        })
    }

    /// The index of an SAE's sentences, begun if need be.
    pub fn index(&self, opened: &Opened) -> Arc<Entry> {
        self.indexes.begun(&opened.meta.run_id, opened.stamp.clone(), opened.browse())
    }

    /// The index if somebody has needed it before.
    pub fn index_if_begun(&self, opened: &Opened) -> Option<Arc<Entry>> {
        self.indexes.known(&opened.meta.run_id, &opened.stamp)
    }

    /// Every capture and training.
    pub fn runs(&self) -> Answer<Value> {
        self.catalog.overview(|run| Ok(self.open(run)?.names().len()))
    }

    /// Every complete training.
    pub fn list(&self) -> Answer<Value> {
        let trainings = self.catalog.trainings()?;
        let newest = self.catalog.newest(&trainings);
        // What is wrong with the others is told with the runs.
        let opened = trainings.iter().filter_map(|meta| self.open(&meta.run_id).ok());
        let saes = opened.map(|opened| {
            let capture = self.catalog.capture(&opened.meta.capture_run_id).ok().flatten();
            summary(&opened, capture.as_ref())
        });
        Ok(json!({"saes": saes.collect::<Vec<Value>>(), "newest": newest}))
    }

    /// One with its curves and densities.
    pub fn detail(&self, opened: &Opened) -> Answer<Value> {
        let capture = self.catalog.capture(&opened.meta.capture_run_id).ok().flatten();
        let top = opened.top();
        let told = top.as_ref().err().map(|refusal| serde_json::to_value(refusal.told()));
        let top = top.ok();
        let dead = top.map(|top| top.table().fired.iter().filter(|n| **n == 0).count());
        Ok(json!({
            "sae": summary(opened, capture.as_ref()),
            "meta": catalog::raw_meta(&opened.dir)?,
            "capture": capture,
            "curves": curves(&opened.dir)?,
            "densities": top.map(densities),
            "dead": dead,
            "alive": top.zip(dead).map(|(top, dead)| top.d_sae() - dead),
            "rows": top.map(|top| top.table().origin.rows),
            "missing": told.transpose().map_err(std::io::Error::from)?,
            "index": Entry::progress(self.index_if_begun(opened).as_deref()),
        }))
    }
}

/// Opens `top_sentences/`, which must be of this SAE.
fn top_data(dir: &std::path::Path, meta: &TrainingMeta) -> Answer<TopData> {
    let path = dir.join(TOP);
    if !path.join(TABLE).is_file() {
        return Err(Refusal::missing(format!("`{}` has no top sentences", meta.run_id))
            .hint(format!("SAE_RUN_ID={} 03_top_sentences writes them", meta.run_id)));
    }
    let top = TopData::open(&path)?;
    if top.d_sae() != meta.d_sae {
        let found = top.d_sae();
        let what = format!("`{}` is of {found} latents, not {}", path.display(), meta.d_sae);
        return Err(Failure::input(what).hint("03_top_sentences writes it anew").into());
    }
    Ok(top)
}

fn summary(opened: &Opened, capture: Option<&CaptureMeta>) -> Value {
    let meta = &opened.meta;
    let memory = fs_err::metadata(opened.dir.join(WEIGHTS)).map_or(0, |file| file.len());
    json!({
        "sae": meta.run_id,
        "capture": meta.capture_run_id,
        "model": capture.map(|capture| &capture.model.id),
        "hook": meta.hook,
        "target_hook": meta.target_hook,
        "d_in": meta.d_in,
        "d_sae": meta.d_sae,
        "activation": activation(meta),
        "validation": meta.validation,
        "top_sentences": opened.top().is_ok(),
        "names": opened.names().len(),
        "memory": memory,
    })
}

/// How it was trained, in a word.
fn activation(meta: &TrainingMeta) -> String {
    let architecture = meta.config.value("sae_arch").unwrap_or("topk");
    match meta.config.value("top_k") {
        Some(k) if ["topk", "batchtopk", "matryoshka"].contains(&architecture) => {
            format!("{architecture}(k={k})")
        }
        _ => architecture.to_owned(),
    }
}

/// Columns of `history.json`, thinned.
fn curves(dir: &std::path::Path) -> Result<Value> {
    let path = dir.join("history.json");
    let records: Vec<Record> = match fs_err::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
        bytes => serde_json::from_slice(&bytes?)
            .map_err(|e| Failure::input(format!("`{}`: {e}", path.display())))?,
    };
    let step = records.len().div_ceil(POINTS).max(1);
    let last = records.len().saturating_sub(1);
    let kept: Vec<&Record> = (0..records.len())
        .filter(|n| (last - n).is_multiple_of(step))
        .map(|n| &records[n])
        .collect();
    let column = |of: fn(&Record) -> f64| kept.iter().map(|r| of(r)).collect::<Vec<f64>>();
    Ok(json!({
        "step": kept.iter().map(|r| r.step).collect::<Vec<u64>>(),
        "loss": column(|r| r.loss),
        "mse": column(|r| r.mse),
        "fvu": column(|r| r.fvu),
        "l0": column(|r| r.l0),
        "aux": column(|r| r.aux),
        "lr": column(|r| r.lr),
        "dead_fraction": column(|r| r.dead_fraction),
    }))
}

/// Latents by the decimal logarithm of their density.
fn densities(top: &TopData) -> Option<Value> {
    let alive = (0..top.d_sae()).filter(|latent| top.table().fired[*latent] > 0);
    let bins: Vec<i32> =
        alive.map(|latent| (top.density(latent).log10() * BINS).floor() as i32).collect();
    let (first, last) = (*bins.iter().min()?, *bins.iter().max()?);
    let mut counts = vec![0_u64; (last - first + 1) as usize];
    bins.iter().for_each(|bin| counts[(bin - first) as usize] += 1);
    Some(json!({"from": f64::from(first) / BINS, "step": 1.0 / BINS, "counts": counts}))
}
