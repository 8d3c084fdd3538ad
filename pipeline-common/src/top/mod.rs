//! Stage 03: the sentences that excite each latent most, what else it does, and the report.
//!
//! One pass over the shards ([`tally`]) keeps for every latent its best sentences by each
//! [`Aggregation`], samples of the others, and counts. It runs in as many tasks as there are; each
//! leaves a part (`part`), and who finds all of them there joins them. A second, targeted read
//! (`detail`) fetches only the chosen sentences, with the activations of the latents that chose
//! them; `finish` makes the files of all that. Every latent that is active anywhere in a sentence is
//! a candidate for it, not only the strongest one of a row.
//!
//! Outputs, in `<training run>/top_sentences/`, each atomic:
//!
//! * `top_sentences_{mean,max,last}.yaml`: latent to a list of value, sentence, document, text
//! * `latents.jsonl`, `sentences.jsonl`: [`record`]s, which name sentences by their numbers
//! * `table.safetensors`: [`data`], what later stages read
//! * `report.html`: one page that needs no network

pub mod data;
pub(crate) mod detail;
mod finish;
mod input;
mod logits;
pub mod named;
mod neighbours;
mod output;
mod part;
pub mod pool;
pub mod record;
pub mod report;
pub mod signature;
pub mod sketch;
mod stage;
pub mod tally;

pub use data::TopData;
pub use stage::TopSentences;
pub use tally::{Aggregation, Tally};

#[cfg(test)]
pub(crate) use stage::tests::plant;
