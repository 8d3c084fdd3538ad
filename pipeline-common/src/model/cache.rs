//! Keys and values of what a model has read, so that only what follows need be computed.

use candle_core::{Result, Tensor};

use crate::kernels::attention::{Span, spans};

/// What a decoder remembers of some sentences.
///
/// Keys and values of all layers are kept, of those too that lie before a sliding window.
#[derive(Debug)]
pub struct Cache {
    /// Keys and values of each layer [tokens of all sentences, kv_heads · d].
    layers: Vec<(Tensor, Tensor)>,
    /// Tokens of each sentence.
    lengths: Vec<usize>,
}

impl Cache {
    /// An empty memory of a number of sentences.
    pub fn new(sentences: usize) -> Self {
        Self { layers: vec![], lengths: vec![0; sentences] }
    }

    /// What it remembers of some of its sentences, in the order given; one may be given twice, to be
    /// continued in two ways.
    ///
    /// # Errors
    /// What the device reports. A sentence that does not exist is the caller's mistake and panics.
    pub fn of(&self, sentences: &[usize]) -> Result<Self> {
        let begins: Vec<usize> =
            self.lengths.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n))).collect();
        let pick = |tensor: &Tensor| {
            let parts = sentences.iter().filter(|s| self.lengths[**s] > 0);
            let parts = parts.map(|s| tensor.narrow(0, begins[*s], self.lengths[*s]));
            Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
        };
        let lengths: Vec<usize> = sentences.iter().map(|s| self.lengths[*s]).collect();
        let layers = match lengths.iter().sum() {
            0 => vec![],
            _ => {
                self.layers.iter().map(|(k, v)| Ok((pick(k)?, pick(v)?))).collect::<Result<_>>()?
            }
        };
        Ok(Self { layers, lengths })
    }

    /// Tokens of each sentence that were read.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }
}

/// A cache while a pass runs: what it held, and what it will hold if the pass succeeds.
pub(super) struct Past<'a> {
    cache: Option<&'a mut Cache>,
    spans: &'a [Span],
    grown: Vec<(Tensor, Tensor)>,
}

/// The sentences of a pass over rows that begin at `starts`, behind what the cache holds of them.
pub(super) fn places(cache: Option<&Cache>, starts: &[usize]) -> Vec<Span> {
    let Some(cache) = cache else { return spans(starts) };
    let mut end = 0;
    let sentences = spans(starts).into_iter().zip(&cache.lengths);
    sentences
        .map(|(span, length)| {
            let begin = end;
            end += length + span.queries.len();
            Span { keys: begin..end, ..span }
        })
        .collect()
}

impl<'a> Past<'a> {
    pub fn new(cache: Option<&'a mut Cache>, spans: &'a [Span]) -> Self {
        Self { cache, spans, grown: vec![] }
    }

    /// The keys and values that the next layer's queries may see: of the cache and of this pass.
    pub fn extended(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let Some(cache) = &self.cache else { return Ok((k, v)) };
        let (k, v) = match cache.layers.get(self.grown.len()) {
            Some((old_k, old_v)) => (self.joined(old_k, &k)?, self.joined(old_v, &v)?),
            None => (k, v),
        };
        self.grown.push((k.clone(), v.clone()));
        Ok((k, v))
    }

    /// Each sentence's old rows, then its new ones.
    fn joined(&self, old: &Tensor, new: &Tensor) -> Result<Tensor> {
        let (mut parts, mut at) = (vec![], 0);
        for span in self.spans {
            parts.push(old.narrow(0, at, span.offset())?);
            parts.push(new.narrow(0, span.queries.start, span.queries.len())?);
            at += span.offset();
        }
        parts.retain(|part| part.elem_count() > 0);
        Tensor::cat(&parts, 0)
    }

    /// Keeps what the pass has added.
    pub fn commit(self) {
        if let Some(cache) = self.cache {
            cache.layers = self.grown;
            cache.lengths = self.spans.iter().map(|s| s.keys.len()).collect();
        }
    }
}
