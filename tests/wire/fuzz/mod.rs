//! Every parser of outside bytes against random changes to good inputs, so many runs a parser that
//! the ordinary tests stay quick. `ACERVO_FUZZ_RUNS=10000000 cargo test --release --test wire
//! fuzz::` runs as many as are wanted; `fuzz/` has the same targets for a fuzzer that is guided by
//! coverage.
//!
//! A failure prints the input and the seed; `ACERVO_SEED` replays it.

mod targets;

use std::hash::{BuildHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use targets::{TARGETS, Target};

const RUNS_DEFAULT: u64 = 20_000;
const INPUT_BYTES_MAX: usize = 16 * 1024;

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let runs = number("ACERVO_FUZZ_RUNS").unwrap_or(RUNS_DEFAULT);
    let drawn = || std::hash::RandomState::new().build_hasher().finish();
    let seed = number("ACERVO_SEED").unwrap_or_else(drawn);
    let mut rng = StdRng::seed_from_u64(seed);
    let examples = (target.examples)();
    assert!(!examples.is_empty(), "nothing to begin with for {name}");
    for example in &examples {
        check(target, example, seed);
    }
    for _ in 0..runs {
        let input = mutate(&mut rng, &examples);
        check(target, &input, seed);
    }
}

fn check(target: &Target, input: &[u8], seed: u64) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        panic!("{} fails on {input:02x?}\nreplay with ACERVO_SEED={seed}", target.name);
    }
}

/// A good input after a few changes, or now and then mere noise.
fn mutate(rng: &mut StdRng, examples: &[Vec<u8>]) -> Vec<u8> {
    let mut input = examples.choose(rng).cloned().unwrap_or_default();
    if rng.random_ratio(1, 20) {
        input = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
    }
    for _ in 0..rng.random_range(0..8) {
        let at = rng.random_range(0..=input.len());
        match rng.random_range(0..7) {
            0 => input.insert(at, rng.random()),
            1 => input.truncate(at),
            2 if at < input.len() => input[at] = rng.random(),
            3 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            4 if at < input.len() => {
                let odd = [0, 1, 0x7f, 0x80, 0xff, 0xc1, 0xdd, 0xdf];
                input[at] = *odd.choose(rng).unwrap_or(&0);
            }
            5 => {
                let end = (at + rng.random_range(0..16)).min(input.len());
                input.drain(at..end);
            }
            _ => {
                let other = examples.choose(rng).cloned().unwrap_or_default();
                let from = rng.random_range(0..=other.len());
                let piece = other[from..].iter().copied().take(rng.random_range(1..64));
                input.splice(at..at, piece.collect::<Vec<u8>>());
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

#[test]
fn any_bytes_are_frames_or_a_violation() {
    run("frames");
}

#[test]
fn any_bytes_are_a_message_or_an_error() {
    run("messages");
}

#[test]
fn any_entry_with_a_transaction_is_refused_or_carried_out() {
    run("transactions");
}

#[test]
fn any_files_are_a_log_or_an_error() {
    run("log");
}

#[test]
fn any_chunks_are_a_snapshot_or_an_error() {
    run("snapshot");
}

#[test]
fn any_rows_are_a_store_or_an_error() {
    run("rows");
}

#[test]
fn any_bytes_are_a_part_of_a_table_or_an_error() {
    run("tables");
}

#[test]
fn any_bytes_are_the_state_of_a_shared_folder_or_none() {
    run("share_state");
}

#[test]
fn any_block_is_the_trailer_of_a_part_or_none() {
    run("part");
}
