//! sparse autoencoder -> top sentences per latent.

fn main() {}
