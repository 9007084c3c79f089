//! The seeds of the share's random tests.
//!
//! Rule: a test that fails prints the seed that repeats it, and one that passes prints nothing.
//! `ACERVO_SEED` runs a test with that seed alone.
//!
//! Left out: the integration tests' seeds, since this module is compiled for unit tests only.

use std::ops::Range;

/// Prints its seed when it is dropped by a test that fails.
pub struct Replay(pub u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with ACERVO_SEED={}", self.0);
        }
    }
}

/// The seed that `ACERVO_SEED` names.
fn given_seed() -> Option<u64> {
    let seed = std::env::var("ACERVO_SEED").ok()?;
    Some(seed.parse().expect("ACERVO_SEED is a number"))
}

/// A new seed for each run of a test, or the one that `ACERVO_SEED` names.
pub fn random_seed() -> u64 {
    given_seed().unwrap_or_else(rand::random)
}

/// The same seeds in each run of a test, or the one that `ACERVO_SEED` names.
pub fn seeds(all: Range<u64>) -> Range<u64> {
    given_seed().map_or(all, |seed| seed..seed + 1)
}
