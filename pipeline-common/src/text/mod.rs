//! Text: where it comes from and how workers share it.
//!
//! [`hub`] brings models and datasets into the local cache, [`dataset`] reads documents in a fixed
//! order with bounded memory, [`streams`] cuts them into one contiguous part per worker,
//! [`contexts`] renders conversations ([`chat`]) and splits sentences, [`tokenizer`] turns the
//! result into ids that lead back to the text, [`rows`] chooses which of them get rows.

pub mod args;
pub mod chat;
pub mod contexts;
pub mod dataset;
pub mod error;
pub mod hub;
pub mod rows;
pub mod streams;
pub mod tokenizer;

pub use args::{ContextArgs, DataArgs, HubArgs, ModelArgs};
pub use contexts::Contexts;
pub use dataset::{Dataset, DatasetRecord, DatasetSpec, Document};
pub use error::TextError;
pub use hub::{Hub, Snapshot};
pub use rows::RowArgs;
pub use streams::Streams;
pub use tokenizer::{Encoding, Tokenizer, TokenizerError, Uncut};
