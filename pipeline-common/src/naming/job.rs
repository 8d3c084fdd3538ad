//! What there is to ask: questions of a run, and where each of them is.

use std::path::PathBuf;

use super::{
    answer,
    args::{BackendArgs, CostArgs},
    examples::{Purpose, Source},
    ledger::{Asked, Progress, Request},
    price::Price,
    question::{Asking, Kind, Question},
};
use crate::{
    names::NameRecord,
    slurm::Share,
    stage::{Context, Result},
    top::TopData,
};

/// Decides which documents explain and which judge, and every order and mark. It is no setting: names made
/// under one would be judged by their own documents under another.
const SEED: u64 = 0;
/// Times that an unreadable answer is asked for, the first counted.
const ATTEMPTS: u32 = 2;

/// What a worker asks about, whom, and for how much.
pub(super) struct Job<'a> {
    pub context: &'a Context,
    /// `names/` of the training run.
    pub dir: PathBuf,
    pub data: TopData,
    /// This worker's latents.
    pub latents: Vec<u32>,
    pub asking: Asking,
    pub price: Price,
    pub backend: &'a BackendArgs,
    pub cost: &'a CostArgs,
    /// Whether what was given up is open.
    pub retry_failed: bool,
}

/// Where a question is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Standing {
    /// To be sent, as the given attempt from 0.
    Open(u32),
    UnderWay,
    Answered {
        text: String,
    },
    /// Refused, unreadable again and again, or failed again and again.
    Vain,
}

impl Standing {
    /// Whether an answer may still come.
    pub fn is_to_come(&self) -> bool {
        matches!(self, Self::Open(_) | Self::UnderWay)
    }
}

impl Job<'_> {
    /// This worker's part of the chosen latents.
    pub fn own(latents: Vec<u32>, share: Share) -> Vec<u32> {
        let mine = |l: &u32| *l as usize % share.count == share.index;
        latents.into_iter().filter(mine).collect()
    }

    /// The question for a latent's name; none if no sentence may explain it.
    ///
    /// # Errors
    /// Damaged lines of stage 03.
    pub fn explain(&self, latent: u32) -> Result<Option<Question>> {
        let record = self.data.latent(latent as usize)?;
        let examples = self.source().examples(&record, Purpose::Explain)?;
        Ok((!examples.positive.is_empty()).then(|| Question::explain(latent, &examples)))
    }

    /// The questions that judge a name.
    ///
    /// # Errors
    /// Damaged lines of stage 03.
    pub fn judge(&self, name: &NameRecord, kinds: &[Kind]) -> Result<Vec<Question>> {
        let record = self.data.latent(name.latent as usize)?;
        let examples = self.source().examples(&record, Purpose::Judge)?;
        let questions = kinds.iter().flat_map(|kind| match kind {
            Kind::Detection => Question::detection(name, &examples, SEED),
            Kind::Fuzzing => Question::fuzzing(name, &examples, SEED),
            Kind::Intruder => Question::intruder(name.latent, &examples, SEED),
            Kind::Explain => Vec::new(),
        });
        Ok(questions.collect())
    }

    fn source(&self) -> Source<'_> {
        Source { data: &self.data, seed: SEED }
    }

    /// Where a question is, as `known` tells of its requests.
    pub fn standing<'r>(
        &self,
        question: &Question,
        known: impl Fn(&str) -> Option<&'r Request>,
    ) -> Standing {
        let mut unreadable = 0;
        for attempt in 0.. {
            let Some(request) = known(&question.id(&self.asking, attempt)) else {
                return Standing::Open(attempt);
            };
            match &request.progress {
                Progress::Open if request.is_given_up() && !self.retry_failed => {
                    return Standing::Vain;
                }
                Progress::Open => return Standing::Open(attempt),
                Progress::Held => return Standing::UnderWay,
                Progress::Refused { .. } => return Standing::Vain,
                Progress::Answered { text, .. } if answer::is_readable(question, text) => {
                    return Standing::Answered { text: text.clone() };
                }
                // One that had less room is asked once more.
                Progress::Answered { .. } => {
                    let same = request.asked.answer_tokens >= self.asking.answer_tokens;
                    unreadable += u32::from(same);
                }
            }
            if unreadable == ATTEMPTS {
                break;
            }
        }
        Standing::Vain
    }

    /// A question as the ledger knows it.
    pub fn asked(&self, question: &Question, attempt: u32) -> Asked {
        Asked {
            id: question.id(&self.asking, attempt),
            latent: question.latent,
            kind: question.kind,
            part: question.part,
            attempt,
            answer_tokens: self.asking.answer_tokens,
            at_most: self.price.at_most(question, &self.asking),
        }
    }
}
