//! Stage 04: names for latents from a language model.
//!
//! `examples` chooses sentences of stage 03, `question` makes requests of them, `provider` puts them on
//! the wire over `http`, in batches (`batch`) or one by one (`chat`); `ledger` remembers what was asked,
//! answered and paid. `answer` reads what came back, `parse` makes names of it (`names`), `score` makes
//! figures of judgements.
//!
//! Outputs, in `<training run>/names/`:
//!
//! * `ledger-<worker>-of-<workers>.jsonl`: everything that was sent, answered and paid
//! * `names.jsonl`, `names.yaml`: a name for each latent, with its scores
//! * `unnamed.jsonl`: latents that were asked about in vain, and why
//! * `scores.json`: the shares of good names, by density
//! * `neuronpedia/`, `delphi/`: `export`s

mod answer;
mod args;
mod batch;
mod chat;
mod examples;
mod export;
mod http;
mod job;
mod ledger;
mod names;
mod parse;
mod price;
mod provider;
mod question;
mod score;
mod stage;
mod status;

pub use names::UnnamedRecord;
pub use stage::NameLatents;
