//! text -> activation shards.

fn main() {}
