//! Text: where it comes from and how workers share it.
//!
//! [`hub`] brings models and datasets into the local cache, [`dataset`] reads documents in a fixed
//! order with bounded memory, [`streams`] cuts them into one contiguous part per worker,
//! [`tokenizer`] turns them into ids that lead back to the text.

pub mod args;
pub mod dataset;
pub mod error;
pub mod hub;
pub mod streams;
pub mod tokenizer;

pub use args::{DataArgs, HubArgs, ModelArgs};
pub use dataset::{Dataset, DatasetSpec, Document};
pub use error::TextError;
pub use hub::{Hub, Snapshot};
pub use streams::Streams;
pub use tokenizer::{Encoding, Tokenizer, TokenizerError};
