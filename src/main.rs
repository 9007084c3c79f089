//! The `acervo` command.

fn main() {}
