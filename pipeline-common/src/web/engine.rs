//! The model: found and loaded when it is first needed, kept until another is, used by one at a time.

use std::{path::Path, sync::Mutex};

use candle_core::Tensor;
use serde_json::Value;

use super::{
    answer::{Answer, Refusal},
    browse::{Library, Opened},
    gate::Gate,
    shelf::unpoisoned,
};
use crate::{
    capture::{CaptureMeta, CapturedModel, CapturedModelArgs},
    kernels::host,
    model::{self, Cache, Hook, HookedModel, ModelError, ModelInfo, ModelRecord, Packed, Point},
    stage::{Failure, Result},
    text::{Encoding, Tokenizer},
};

/// Bytes of a text at most.
const TEXT: usize = 16_384;
/// Tokens of each sentence that are read at a time: so many that the arithmetic is not wasted, and so
/// few that one can stop between.
pub(super) const CHUNK: usize = 64;

/// The scores of the next token.
pub(super) const LOGITS: Hook = Hook { layer: None, point: Point::Logits };

/// Finds, loads and lends the model.
#[derive(Debug)]
pub(super) struct Engine {
    pub gate: Gate,
    args: CapturedModelArgs,
    device: String,
    loaded: Mutex<Option<(Wanted, Model)>>,
}

/// What decides whether a loaded model will do.
type Wanted = (ModelRecord, Option<String>, Option<String>);

/// A loaded model.
pub(super) struct Model {
    /// Hub id or folder.
    pub id: String,
    pub tokenizer: Tokenizer,
    /// Ids after which a text has ended.
    pub ends: Vec<u32>,
    hooked: Box<dyn HookedModel>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({})", self.id)
    }
}

impl Engine {
    pub fn new(args: CapturedModelArgs, device: String, waiting: usize) -> Self {
        let gate = Gate::new("completions and generations", waiting);
        Self { gate, args, device, loaded: Mutex::default() }
    }

    /// Lends a capture's model.
    pub fn using<T>(
        &self,
        capture: &CaptureMeta,
        work: impl FnOnce(&Model) -> Answer<T>,
    ) -> Answer<T> {
        let setting = |key| capture.config.value(key).map(str::to_owned);
        let wanted = (capture.model.clone(), setting("prompt_template"), setting("dtype"));
        let mut loaded = unpoisoned(&self.loaded);
        // The old one goes first: two may not fit.
        let (_, model) = match loaded.take().filter(|(known, _)| *known == wanted) {
            Some(same) => loaded.insert(same),
            None => {
                let found = CapturedModel::find(capture, &self.args)?;
                tracing::info!("loading `{}`", found.id);
                loaded.insert((wanted, Model::load(found, &self.device)?))
            }
        };
        work(model)
    }
}

/// The capture of some SAEs, all of the same model.
pub(super) fn capture_of(library: &Library, saes: &[&Opened]) -> Answer<CaptureMeta> {
    let mut captures = saes.iter().map(|opened| {
        let (run, sae) = (&opened.meta.capture_run_id, &opened.meta.run_id);
        library.catalog.capture(run)?.ok_or_else(|| {
            let what =
                format!("capture `{run}`, on which `{sae}` was trained, is not in this store");
            Refusal::missing(what).hint("its meta.json says which model to load")
        })
    });
    let first = captures.next().unwrap_or_else(|| Err(Refusal::bad("no SAE is given")))?;
    for other in captures {
        let other = other?;
        if other.model != first.model {
            let what = format!("SAEs of two models: `{}` and `{}`", first.model.id, other.model.id);
            return Err(Refusal::bad(what).hint("choose SAEs of one model"));
        }
    }
    Ok(first)
}

/// Refuses a text that is too long, whatever the model.
pub(super) fn check_text(text: &str) -> Answer<()> {
    match text.len() {
        n if n > TEXT => Err(Refusal::bad(format!("text has {n} bytes, more than {TEXT}"))),
        _ => Ok(()),
    }
}

impl Model {
    fn load(found: CapturedModel, device: &str) -> Result<Self> {
        let CapturedModel { id, dir, info, tokenizer, precision } = found;
        let deepest = match info.site(Point::Logits) {
            Some(_) => LOGITS,
            None => Hook { layer: info.n_layers.checked_sub(1), point: Point::ResidPost },
        };
        let hooked = model::load(&dir, &[deepest], &model::device(device)?, precision)?;
        let ends = end_tokens(&dir)?;
        Ok(Self { id, tokenizer, ends, hooked })
    }

    pub fn info(&self) -> &ModelInfo {
        self.hooked.info()
    }

    /// A text's tokens, which must fit the model.
    pub fn encode(&self, text: &str) -> Answer<Encoding> {
        check_text(text)?;
        let context = self.info().context_length;
        let encoding = self.tokenizer.encode_uncut(text, usize::MAX)?.encoding;
        match encoding.ids.len() {
            0 => Err(Refusal::bad("text has no token")),
            n if n > context => {
                let what = format!("text has {n} tokens, the model reads {context} at most");
                Err(Refusal::bad(what))
            }
            _ => Ok(encoding),
        }
    }

    /// A hook by its name in a training.
    pub fn hook(&self, name: &str) -> Answer<Hook> {
        Ok(Hook::parse(name, self.info())?)
    }
}

/// Ids that end a text, from the checkpoint's own files.
fn end_tokens(dir: &Path) -> Result<Vec<u32>> {
    let mut ends = vec![];
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        let file: Value = serde_json::from_slice(&fs_err::read(&path)?)
            .map_err(|e| Failure::input(format!("`{}`: {e}", path.display())))?;
        let given = &file["eos_token_id"];
        let ids = given.as_array().map_or(std::slice::from_ref(given), Vec::as_slice);
        ends.extend(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// Sentences that a model reads piece by piece.
pub(super) struct Passage<'m> {
    model: &'m Model,
    cache: Cache,
    /// All that was read of each sentence.
    ids: Vec<Vec<u32>>,
}

/// What is read next.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub batch: Packed,
    /// Position of each sentence's first row.
    pub first: Vec<usize>,
}

impl Step {
    /// The rows of a sentence with their positions in it.
    pub fn rows(&self, sentence: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (begin, end) = (self.batch.starts[sentence], self.batch.starts[sentence + 1]);
        (begin..end).zip(self.first[sentence]..)
    }

    /// The last row of a sentence, if it has any.
    pub fn last(&self, sentence: usize) -> Option<usize> {
        let (begin, end) = (self.batch.starts[sentence], self.batch.starts[sentence + 1]);
        (end > begin).then(|| end - 1)
    }
}

impl<'m> Passage<'m> {
    /// Sentences of which nothing was read.
    pub fn new(model: &'m Model, sentences: usize) -> Self {
        Self { model, cache: Cache::new(sentences), ids: vec![vec![]; sentences] }
    }

    /// Goes on with some of the sentences; one may be given twice, to be continued in two ways.
    pub fn of(&self, sentences: &[usize]) -> Answer<Self> {
        let cache = self.cache.of(sentences).map_err(ModelError::from)?;
        let ids = sentences.iter().map(|s| self.ids[*s].clone()).collect();
        Ok(Self { model: self.model, cache, ids })
    }

    /// What to run to read on, `next` of each sentence: usually that alone, and all from the start
    /// where positions of the new length turn otherwise.
    pub fn step(&mut self, next: &[&[u32]]) -> Step {
        self.ids.iter_mut().zip(next).for_each(|(ids, next)| ids.extend_from_slice(next));
        let batch = Packed::new(next);
        if !self.model.hooked.outgrows(&self.cache, &batch) {
            return Step { batch, first: self.cache.lengths().to_vec() };
        }
        self.cache = Cache::new(self.ids.len());
        let whole = self.ids.iter().zip(next);
        let whole = whole.map(|(ids, next)| if next.is_empty() { &[][..] } else { ids });
        Step { batch: Packed::new(whole), first: vec![0; self.ids.len()] }
    }

    /// Reads it.
    pub fn run(
        &mut self,
        step: &Step,
        hooks: &[Hook],
        visit: &mut model::Visit<'_>,
    ) -> std::result::Result<(), ModelError> {
        self.model.hooked.extend(&mut self.cache, &step.batch, hooks, visit)
    }
}

/// Reads a whole text at once, for models whose tokens see what follows them.
pub(super) fn read_whole(
    model: &Model,
    ids: &[u32],
    hooks: &[Hook],
    visit: &mut model::Visit<'_>,
) -> std::result::Result<(), ModelError> {
    model.hooked.forward(&Packed::new([ids]), hooks, visit)
}

/// One row of a tensor `[rows, width]`.
pub(super) fn row(tensor: &Tensor, row: usize) -> candle_core::Result<Vec<f32>> {
    host::gather(tensor, std::iter::once(row))
}
