//! The SAE to evaluate and the documents to evaluate it on.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use super::EvaluateArgs;
use crate::{
    capture::{CaptureMeta, meta::HookRecord},
    remote::Reader,
    sae::{
        Sae,
        formats::{self, Expected, Format, Loaded},
        random::{Normal, Purpose},
        rows::{Rows, Side},
        train::TrainingMeta,
    },
    shard::ShardSet,
    stage::{Context, Failure, Result, store::Pointer},
};

/// The share of documents that 02 holds out unless told otherwise.
const SHARE: f64 = 0.01;

/// An SAE's files.
struct Source {
    /// What messages call it.
    name: String,
    loaded: Loaded,
    training: Option<Training>,
}

/// A training of this project.
pub struct Training {
    pub meta: TrainingMeta,
    pub dir: PathBuf,
}

/// All that the stage reads.
pub struct Input {
    /// What messages call the SAE.
    pub name: String,
    pub sae: Sae,
    pub format: Format,
    pub training: Option<Training>,
    pub capture: CaptureMeta,
    pub hook: String,
    pub target_hook: Option<String>,
    pub rows: Rows,
    pub chosen: Chosen,
    /// What a reader of the figures should know, a sentence each.
    pub notes: Vec<String>,
}

/// Whole documents' rows.
#[derive(Debug, Default, PartialEq)]
pub struct Chosen {
    /// Row numbers, ascending.
    pub rows: Vec<usize>,
    /// The document of each row, counted from 0.
    pub document_of: Vec<u32>,
    /// Number of documents.
    pub documents: usize,
}

impl Input {
    /// Opens SAE and rows.
    ///
    /// # Errors
    /// Usage failures for settings that do not fit each other or the widths; input failures for
    /// files that are damaged.
    pub fn open(
        context: &Context,
        reader: &Reader,
        run_id: Option<&str>,
        args: &EvaluateArgs,
    ) -> Result<Self> {
        let Source { name, loaded, training } = args.source(reader)?;
        let of_training = training.as_ref().map(|t| t.meta.capture_run_id.as_str());
        let (run_id, dir) = reader.find(run_id.or(of_training), Pointer::Capture)?;
        let capture = CaptureMeta::read_complete(&dir)?;
        let (hook, target) = hooks(args, training.as_ref(), &capture)?;
        if target.is_none() {
            must_have_target(&loaded, &name)?;
        }
        let open = |hook: &HookRecord, expected: usize| -> Result<Side> {
            let dir = reader.stage(context, &run_id, &dir, &hook.name)?;
            let set = ShardSet::open(&dir, &hook.name)?;
            must_fit(&hook.name, set.d_in(), expected, &name)?;
            Ok(Side { set, scale: 1.0 / capture.activation_scale })
        };
        let p = &loaded.sae.params;
        let input = open(&hook, p.d_in)?;
        let output = target.as_ref().map(|hook| open(hook, p.d_out)).transpose()?;
        let own = training.as_ref().filter(|t| t.meta.capture_run_id == capture.run_id);
        let held_out = own.and_then(|t| held_out_by(&t.meta));
        let share = args.validation.or(held_out).unwrap_or(SHARE);
        let (rows, mut notes) = (Rows::new(input, output, share)?, loaded.notes);
        let (rows, chosen) = choose(rows, args, &mut notes)?;
        let trained_on = held_out.is_some_and(|own| rows.held_out.is_empty() || share > own);
        notes.extend(trained_on.then(|| "the SAE was trained on some of these rows".to_owned()));
        Ok(Self {
            name,
            sae: loaded.sae,
            format: loaded.format,
            training,
            capture,
            hook: hook.name,
            target_hook: target.map(|hook| hook.name),
            rows,
            chosen,
            notes,
        })
    }
}

impl EvaluateArgs {
    fn source(&self, reader: &Reader) -> Result<Source> {
        if let Some(path) = &self.sae_path {
            if self.sae_run_id.is_some() {
                return Err(Failure::usage("SAE_PATH and SAE_RUN_ID are both set")
                    .hint("unset one of them: they name the SAE to evaluate"));
            }
            return self.foreign(path);
        }
        let (run_id, dir) = reader.find(self.sae_run_id.as_deref(), Pointer::Training)?;
        let meta = TrainingMeta::read_complete(&dir)?;
        let expected = Expected { sae_from_format: Some(Format::SaeLens), top_k: None };
        let loaded = formats::read(&dir, expected)?;
        let name = format!("training `{run_id}`");
        Ok(Source { name, loaded, training: Some(Training { meta, dir }) })
    }

    fn foreign(&self, path: &Path) -> Result<Source> {
        let loaded = self.expected.read_named("SAE_PATH", path)?;
        Ok(Source { name: format!("`{}`", path.display()), loaded, training: None })
    }
}

/// The input's hook and a transcoder's target: given, else the training's own.
fn hooks(
    args: &EvaluateArgs,
    training: Option<&Training>,
    capture: &CaptureMeta,
) -> Result<(HookRecord, Option<HookRecord>)> {
    let own = training.map(|t| &t.meta);
    let own_target = own.and_then(|meta| meta.target_hook.as_deref());
    let input = args.hook.as_deref().or(own.map(|meta| meta.hook.as_str()));
    let target = args.target_hook.as_deref().or(own_target);
    let target = target.map(|name| capture.hook(Some(name)).cloned()).transpose()?;
    Ok((capture.hook(input)?.clone(), target))
}

/// The share of documents that a training held out.
fn held_out_by(meta: &TrainingMeta) -> Option<f64> {
    meta.config.value("validation")?.parse().ok()
}

/// Not all formats say of a transcoder that it is one; those that do need a target.
fn must_have_target(loaded: &Loaded, name: &str) -> Result<()> {
    let p = &loaded.sae.params;
    if loaded.about.target.is_none() && p.w_skip.is_empty() && p.d_in == p.d_out {
        return Ok(());
    }
    Err(Failure::usage(format!("{name} is a transcoder"))
        .hint("set TARGET_HOOK to the hook whose rows it reconstructs"))
}

fn must_fit(hook: &str, found: usize, expected: usize, name: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let what = format!("{name} is for width {expected}, hook `{hook}` has {found}");
    Err(Failure::usage(what).hint("set RUN_ID and HOOK to the activations it was trained for"))
}

/// The held-out documents, or all where none are held out; at most about ROWS rows of them.
fn choose(rows: Rows, args: &EvaluateArgs, notes: &mut Vec<String>) -> Result<(Rows, Chosen)> {
    let everything = rows.held_out.is_empty();
    if everything {
        notes.push("no document is held out: the figures are of all".into());
    }
    let documents = documents(&rows, everything)?;
    let kept = sample(&documents, args.rows.unwrap_or(u64::MAX), args.seed);
    let chosen = Chosen::new(&documents, &kept);
    let (some, all) = (chosen.documents, documents.len());
    if some < all {
        notes.push(format!("{some} of {all} documents, drawn for ROWS"));
    }
    Ok((rows, chosen))
}

/// The rows of a document, sentence by sentence.
type Document = Vec<Range<usize>>;

/// The documents, held out ones or all.
fn documents(rows: &Rows, everything: bool) -> Result<Vec<Document>> {
    let (set, mut documents) = (&rows.input.set, vec![]);
    let mut known = HashMap::new();
    for shard in 0..set.shards() {
        let tokens = set.tokens(shard)?;
        let first = set.first_row(shard);
        let begin = if everything { first } else { rows.train[shard].end };
        for sentence in 0..tokens.sentences() {
            let range = tokens.sentence_rows(sentence);
            if first + range.start < begin {
                continue;
            }
            let next = documents.len();
            let place = *known.entry(tokens.document(sentence)).or_insert(next);
            if place == next {
                documents.push(vec![]);
            }
            documents[place].push(first + range.start..first + range.end);
        }
    }
    Ok(documents)
}

/// Documents in random order until the next would make them more than `limit` rows; one at least.
/// All where they are not more, ascending in any case.
fn sample(documents: &[Document], limit: u64, seed: u64) -> Vec<usize> {
    let mut order = Normal::new(seed, Purpose::Documents).choose(documents.len(), usize::MAX);
    let mut rows = 0;
    let fits = |document: &&usize| {
        rows += documents[**document].iter().map(|range| range.len() as u64).sum::<u64>();
        rows <= limit
    };
    let kept = order.iter().take_while(fits).count().max(1);
    order.truncate(kept);
    order.sort_unstable();
    order
}

impl Chosen {
    fn new(documents: &[Document], kept: &[usize]) -> Self {
        let numbered = kept.iter().enumerate();
        let mut sentences: Vec<(&Range<usize>, u32)> = numbered
            .flat_map(|(n, document)| documents[*document].iter().map(move |s| (s, n as u32)))
            .collect();
        // As they lie on the disk.
        sentences.sort_unstable_by_key(|(rows, _)| rows.start);
        let mut chosen = Self { documents: kept.len(), ..Self::default() };
        for (rows, document) in sentences {
            chosen.document_of.resize(chosen.rows.len() + rows.len(), document);
            chosen.rows.extend(rows.clone());
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_whole_documents() {
        let documents: Vec<Document> =
            (0..20).map(|d| vec![d * 5 + 3..d * 5 + 5, d * 5..d * 5 + 3]).collect();
        assert_eq!(sample(&documents, u64::MAX, 0), (0..20).collect::<Vec<_>>());
        for (limit, expected) in [(1, 1), (5, 1), (14, 2), (50, 10), (100, 20)] {
            let kept = sample(&documents, limit, 3);
            assert_eq!(kept.len(), expected, "{limit}");
            assert!(kept.is_sorted());
            let chosen = Chosen::new(&documents, &kept);
            assert_eq!((chosen.rows.len(), chosen.documents), (5 * expected, expected));
            assert!(chosen.rows.is_sorted_by(|a, b| a < b));
            for (row, document) in chosen.rows.iter().zip(&chosen.document_of) {
                assert_eq!(row / 5, kept[*document as usize]);
            }
        }
        assert_ne!(sample(&documents, 50, 1), sample(&documents, 50, 2));
    }
}
