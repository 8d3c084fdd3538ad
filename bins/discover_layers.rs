//! which hook to train on.

fn main() {}
