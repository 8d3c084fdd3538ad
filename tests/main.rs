//! The integration tests, one module per concern.

fn main() {}
