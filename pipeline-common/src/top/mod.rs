//! Stage 03: the sentences that excite each latent most, and the report.
//!
//! One pass over the shards keeps, for every latent and each [`Aggregation`], the best N
//! sentences ([`tally`]); a second, targeted read fetches only those sentences for their tokens
//! and activations ([`detail`]). Every latent that is active anywhere in a sentence is a
//! candidate for it, not only the strongest one of a row.
//!
//! Outputs, in `<training run>/top_sentences/`, each atomic:
//!
//! * `top_sentences_{mean,max,last}.yaml`: latent to a list of value, sentence, document, text
//! * `latents.jsonl`: one line per latent with figures, tokens and activations
//! * `report.html`: one page that needs no network

pub mod best;
pub mod data;
pub mod detail;
mod input;
mod output;
pub mod record;
pub mod report;
mod stage;
pub mod tally;

pub use best::Best;
pub use data::TopData;
pub use stage::TopSentences;
pub use tally::{Aggregation, Tally};
