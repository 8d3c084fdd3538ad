//! activation shards -> sparse autoencoder.

fn main() {}
