//! Stage 05: a page and an HTTP interface to browse latents, see them in a text, steer with them.
//!
//! Everything is read straight from the store; nothing is written. The interface is documented in
//! `assets/explore/openapi.json`, which the server hands out.
//!
//! `stage` opens the store and starts `server`, which accepts connections within limits; `guard`
//! lets requests in; `routes` maps them to handlers, `assets` has the page. Of the data, `catalog` knows the runs, `browse`
//! the latents of one SAE with `names`, `table` sorts and filters them, `index` and `search` find them by
//! text, `detail` answers about a single one, `compare` finds a latent in another SAE and `strength`
//! says how strongly to steer; `shelf` keeps what was read. Of the model, `engine`
//! holds it, `complete` reads a text, `steer` changes activations, `generate` writes with `sample` and
//! `writing`; `gate` bounds how many wait for it.
//!
//! Handlers that read or compute run on blocking threads, never on the executor.

mod answer;
mod assets;
mod browse;
mod catalog;
mod compare;
mod complete;
mod detail;
mod engine;
#[cfg(test)]
mod fixture;
mod gate;
mod generate;
mod guard;
mod index;
mod names;
mod routes;
mod sample;
mod search;
mod server;
mod shelf;
mod stage;
mod steer;
mod strength;
mod table;
#[cfg(test)]
mod tests;
mod writing;

pub use stage::Explore;
