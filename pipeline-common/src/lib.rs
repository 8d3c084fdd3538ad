//! The library behind the stages: text to named, steerable features of a language model.
//!
//! # Module map
//!
//! Data flows from top to bottom; a module uses those above it, never those below.
//!
//! | module | owns |
//! |---|---|
//! | [`slurm`] | the typed `SLURM_*` environment, a worker's share of the work, threads |
//! | [`stage`] | what every binary shares: configuration, errors and exit codes, logging, progress, signals, the store |
//! | [`torch`] | files of `torch.save`, read without running what they hold |
//! | [`text`] | hub, dataset readers, streams, tokenizer |
//! | [`kernels`] | one file per hot operation, reference beside fast path |
//! | [`model`] | the hooked transformer: families, blocks, hook names, weights |
//! | [`shard`] | activation shards on disk: format, writer, reader, order |
//! | [`remote`] | object storage: uploads, resume from there, staging |
//! | [`plot`] | line plots as SVG, for pages that open from disk |
//! | [`prepare`] | stage 00: model and text to the cache, documents to streams, the tokenisation report |
//! | [`capture`] | stage 01: documents to shards |
//! | [`sae`] | stage 02: sparse autoencoders, their training and their files; convert_sae |
//! | [`top`] | stage 03: top sentences per latent, and the report |
//! | [`naming`] | stage 04: names of latents from a language model, judged; the ledger of what was paid |
//! | [`web`] | stage 05: a page and an interface to browse latents, see them in a text, steer with them |
//! | [`verify`] | verify_shards: a capture run checked and repaired |
//! | [`status`] | pipeline_status: all workers of a run in one table |
//! | [`plan`] | discover_layers: a model's hooks and what reading them costs; plan_run: what a training costs and will come to |
//!
//! # Glossary
//!
//! * **run**: a directory under `runs/` of the store, made by one capture or one training.
//! * **stage**: one executable of the pipeline. **worker**: one process of a stage.
//! * **stream**: the contiguous part of the documents that one worker reads.
//! * **document**: one record of the dataset. **sentence**: one text context fed to the model.
//! * **row**: one token's activation, `d_in` numbers. **hook**: a named tensor inside the model.
//! * **shard**: a file of rows. **latent**: a unit of an SAE. **feature**: a latent with a name.
//! * **checkpoint**: the state from which a training goes on bit-exactly.
//! * **job** is SLURM's word only.

pub mod capture;
pub mod kernels;
pub mod model;
pub mod names;
pub mod naming;
pub mod plan;
pub mod plot;
pub mod prepare;
pub mod remote;
pub mod sae;
pub mod shard;
pub mod slurm;
pub mod stage;
pub mod status;
pub mod text;
pub mod top;
pub mod torch;
pub mod verify;
pub mod web;
