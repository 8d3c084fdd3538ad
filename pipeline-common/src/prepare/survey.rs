//! The first look at the documents: what each weighs, and an even sample of them.
//!
//! Every document is rendered, so that a conversation that the template refuses is found before
//! anything is written. Takes 4 bytes of memory a document.

use crate::{
    stage::{Context, Failure, Result},
    text::{Contexts, Dataset, Document},
};

/// Documents between looks at the progress and at requests to stop.
pub const STEP: u64 = 256;

/// Bytes of text a token is taken to have, at most: what is beyond MAX_LENGTH of them costs nothing.
const BYTES_PER_TOKEN: usize = 4;

/// What is known of a dataset after one look.
#[derive(Debug, Default)]
pub struct Survey {
    /// Work a document makes, about in bytes.
    pub weights: Vec<u32>,
    /// Contexts of all documents.
    pub contexts: u64,
    /// Documents without text.
    pub empty: u64,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Documents spread evenly over the dataset, rendered.
    pub sample: Vec<Document>,
}

/// Reads every document once.
///
/// # Errors
/// Anything wrong with a document; most of the sample being empty; a request to stop.
pub fn survey(
    dataset: &Dataset,
    contexts: &Contexts,
    max_length: u32,
    sample: u64,
    context: &Context,
) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut progress = context.progress("looking at", dataset.len(), "documents").of_bytes();
    let mut read = 0;
    let mut wanted = Spread::new(dataset.len(), sample);
    for document in dataset.documents(0..dataset.len())? {
        let document = contexts.render(document?)?;
        survey.add(contexts, &document.text, max_length as usize);
        let seen = document.index + 1;
        if wanted.take(document.index) {
            survey.sample.push(document);
        }
        if seen.is_multiple_of(STEP) {
            progress.advance(STEP, survey.text_bytes - read, "");
            read = survey.text_bytes;
            context.leave_if_asked("nothing is written yet")?;
        }
    }
    progress.advance(dataset.len() % STEP, survey.text_bytes - read, "");
    progress.finish("");
    survey.refuse_empty()?;
    Ok(survey)
}

impl Survey {
    fn add(&mut self, contexts: &Contexts, text: &str, max_length: usize) {
        let contexts = contexts.split(text);
        let most = max_length.saturating_mul(BYTES_PER_TOKEN);
        let weight: usize = contexts.iter().map(|context| context.len().min(most)).sum();
        self.weights.push(u32::try_from(weight).unwrap_or(u32::MAX));
        self.contexts += contexts.len() as u64;
        self.empty += u64::from(is_empty(text));
        self.text_bytes += text.len() as u64;
    }

    fn refuse_empty(&self) -> Result<()> {
        let empty = self.sample.iter().filter(|d| is_empty(&d.text)).count();
        if 2 * empty <= self.sample.len() {
            return Ok(());
        }
        let what = format!("{empty} of {} sampled documents are empty", self.sample.len());
        Err(Failure::input(what).hint("check TEXT_FIELD, HF_DATASET and DATA_SPLIT"))
    }
}

fn is_empty(text: &str) -> bool {
    text.trim().is_empty()
}

/// Numbers spread evenly over `0..len`.
struct Spread {
    len: u64,
    wanted: u64,
    taken: u64,
}

impl Spread {
    fn new(len: u64, wanted: u64) -> Self {
        Self { len, wanted: wanted.min(len), taken: 0 }
    }

    /// Whether this number is one; numbers come in ascending order.
    fn take(&mut self, number: u64) -> bool {
        let next = u128::from(self.taken) * u128::from(self.len) / u128::from(self.wanted.max(1));
        let hit = self.taken < self.wanted && u128::from(number) == next;
        self.taken += u64::from(hit);
        hit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::args::Split;

    proptest! {
        #[test]
        fn a_sample_is_spread_evenly(len in 1_u64..600, wanted in 1_u64..300) {
            let mut spread = Spread::new(len, wanted);
            let taken: Vec<u64> = (0..len).filter(|i| spread.take(*i)).collect();
            prop_assert_eq!(taken.len() as u64, wanted.min(len));
            prop_assert_eq!(taken[0], 0);
            let gaps: Vec<u64> = taken.windows(2).map(|w| w[1] - w[0]).collect();
            let spread = gaps.iter().max().unwrap_or(&0) - gaps.iter().min().unwrap_or(&0);
            prop_assert!(spread <= 1);
        }
    }

    #[test]
    fn what_is_beyond_the_limit_weighs_nothing() {
        let mut survey = Survey::default();
        survey.add(&Contexts::of_rendered(Split::Document), &"x".repeat(100), 10);
        survey.add(
            &Contexts::of_rendered(Split::Sentence),
            "One two. Three four five six seven.",
            3,
        );
        survey.add(&Contexts::of_rendered(Split::Sentence), " \n ", 3);
        assert_eq!(survey.weights, [40, 20, 0]);
        assert_eq!((survey.contexts, survey.empty, survey.text_bytes), (3, 1, 138));
    }
}
