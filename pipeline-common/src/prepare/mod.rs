//! Stage 00: model and text to the local cache, documents to streams, and a report on the tokens.
//!
//! `stage` resolves what to prepare, `survey` looks at every document once, `write` writes one
//! file per stream, `examine` tokenises a sample and `report` shows it as text and as a page.
//! `record` is what stage 01 takes up: it reads the streams and never the dataset.

mod examine;
mod histogram;
pub mod record;
mod report;
mod stage;
mod survey;
mod write;

pub use record::{Prepared, PreparedRun};
pub use stage::PrepareData;
