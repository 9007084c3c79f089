//! Damage to the engine's file: whatever rots, every read is right or refused as damaged, and
//! nothing panics. `ACERVO_DAMAGE_SEEDS` runs more seeds than an ordinary test run does.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use acervo::storage::disk::DiskEngine;
use acervo::storage::engine::{Direction, Durability, Engine, EngineError, WriteBatch};
use acervo::storage::keys::RowRange;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;

const SEEDS_DEFAULT: u64 = 6;
/// Each seed makes one store and damages so many copies of it.
const DAMAGES_PER_SEED: usize = 40;
/// So small that most reads go to the file.
const CACHE_BYTES: usize = 64 * 1024;
const BLOCK: u64 = 4096;

type Model = BTreeMap<Bytes, Bytes>;

fn seeds() -> u64 {
    let text = std::env::var("ACERVO_DAMAGE_SEEDS").ok();
    text.map_or(SEEDS_DEFAULT, |text| text.parse().expect("ACERVO_DAMAGE_SEEDS is a number"))
}

/// Some hundred rows, one of them larger than many pages, in durable and lazy batches.
fn fill(engine: &DiskEngine, rng: &mut StdRng, model: &mut Model, rows: usize) {
    for _ in 0..rows / 20 {
        let mut batch = WriteBatch::default();
        for _ in 0..20 {
            let key = Bytes::from(format!("key {:06}", rng.random_range(0..2_000)));
            if rng.random_ratio(1, 5) {
                model.remove(&key);
                batch.delete(key);
                continue;
            }
            let len = if rng.random_ratio(1, 60) { 200_000 } else { rng.random_range(0..2_000) };
            let mut value = vec![0; len];
            rng.fill_bytes(&mut value);
            model.insert(key.clone(), value.clone().into());
            batch.put(key, value.into());
        }
        let durability = match rng.random_ratio(1, 4) {
            true => Durability::Durable,
            false => Durability::Lazy,
        };
        engine.write(&batch, durability).unwrap();
    }
    engine.write(&WriteBatch::default(), Durability::Durable).unwrap();
}

fn zero(file: &File, at: u64, len: u64) {
    file.write_all_at(&vec![0; len as usize], at).unwrap();
}

/// Damages a file somewhere, some way; says how.
fn damage(file: &File, rng: &mut StdRng) -> String {
    let len = file.metadata().unwrap().len();
    let blocks = len / BLOCK;
    // The first blocks hold what matters to everything: checksums, header, the engine's own tables.
    let block =
        if rng.random_ratio(1, 4) { rng.random_range(0..6) } else { rng.random_range(0..blocks) };
    let at = block * BLOCK + rng.random_range(0..BLOCK);
    match rng.random_range(0..6) {
        0..=1 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            let bit = rng.random_range(0..8);
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            format!("bit {bit} of byte {at} flipped")
        }
        2 => {
            zero(file, block * BLOCK, BLOCK);
            format!("block {block} zeroed")
        }
        3 => {
            zero(file, at / 512 * 512, 512);
            format!("sector at {} zeroed", at / 512 * 512)
        }
        4 => {
            let from = rng.random_range(0..blocks);
            let mut bytes = vec![0; BLOCK as usize];
            file.read_exact_at(&mut bytes, from * BLOCK).unwrap();
            file.write_all_at(&bytes, block * BLOCK).unwrap();
            format!("block {from} written over block {block}")
        }
        _ => {
            // An empty file is a new store, which the log then contradicts.
            let to = if rng.random_bool(0.5) { at } else { block * BLOCK }.max(1);
            file.set_len(to).unwrap();
            format!("cut to {to} bytes")
        }
    }
}

fn accept(what: &str, error: EngineError) {
    assert!(matches!(error, EngineError::Damaged { .. }), "{what}: {error}");
}

/// Reads everything, one by one, in both orders, and writes; whether anything was refused.
fn check(what: &str, engine: &DiskEngine, model: &Model) -> bool {
    let mut refused = false;
    let everything = RowRange { start: Bytes::new(), end: Bytes::from_static(b"l") };
    for (direction, expected) in [
        (Direction::Forward, model.iter().collect::<Vec<_>>()),
        (Direction::Reverse, model.iter().rev().collect()),
    ] {
        let mut next = expected.into_iter();
        let scanned = engine.scan(&everything, direction, &mut |key, value| {
            let (expected_key, expected_value) = next.next().expect("no more rows than there were");
            assert_eq!(key, expected_key, "{what}");
            assert!(value == expected_value, "{what}: another value of {expected_key:?}");
            ControlFlow::Continue(())
        });
        match scanned {
            Ok(()) => assert_eq!(next.count(), 0, "{what}: rows are missing"),
            Err(error) => {
                refused = true;
                accept(what, error);
            }
        }
    }
    for number in 0..2_000 {
        let key = Bytes::from(format!("key {number:06}"));
        match engine.get(&key) {
            Ok(found) => assert!(found.as_ref() == model.get(&key), "{what}: {key:?} is wrong"),
            Err(error) => {
                refused = true;
                accept(what, error);
            }
        }
    }
    let mut batch = WriteBatch::default();
    for number in (0..2_000).step_by(50) {
        batch.put(format!("key {number:06}").into(), "new".into());
        batch.delete(format!("key {:06}", number + 1).into());
    }
    for durability in [Durability::Lazy, Durability::Durable] {
        if let Err(error) = engine.write(&batch, durability) {
            refused = true;
            accept(what, error);
        }
    }
    refused
}

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn whatever_rots_in_a_store_at_rest_is_refused_or_does_not_matter() {
    let (mut opened, mut refused, mut at_open) = (0, 0, 0);
    for seed in 1..=seeds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = TempDir::new().unwrap();
        let (path, copy) = (dir.path().join("store"), dir.path().join("copy"));
        let mut model = Model::new();
        let engine = DiskEngine::open(&path, CACHE_BYTES).unwrap();
        fill(&engine, &mut rng, &mut model, 600);
        drop(engine);
        for round in 0..DAMAGES_PER_SEED {
            std::fs::copy(&path, &copy).unwrap();
            let how = damage(&writable(&copy), &mut rng);
            let what = format!("seed {seed}, round {round}: {how}");
            match DiskEngine::open(&copy, CACHE_BYTES) {
                Ok(engine) => {
                    opened += 1;
                    refused += usize::from(check(&what, &engine, &model));
                }
                Err(error) => {
                    at_open += 1;
                    accept(&what, error);
                }
            }
        }
    }
    // Otherwise this tests nothing. With debug assertions the engine reads all of its pages when it
    // opens, and so refuses at once what a release refuses when it is read.
    assert!(refused + at_open > 0 && opened > refused, "{opened} {refused} {at_open}");
}

#[test]
fn whatever_rots_under_an_open_store_is_refused_or_does_not_matter() {
    let (mut refused, mut scrubbed, mut rounds) = (0, 0, 0);
    for seed in 1..=seeds() {
        for round in 0..DAMAGES_PER_SEED / 4 {
            let mut rng = StdRng::seed_from_u64(seed << 8 | round as u64);
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("store");
            let mut model = Model::new();
            let engine = DiskEngine::open(&path, CACHE_BYTES).unwrap();
            fill(&engine, &mut rng, &mut model, 300);
            engine.scrub(0, u64::MAX).unwrap();
            let how = damage(&writable(&path), &mut rng);
            let what = format!("seed {seed}, round {round}: {how}");
            rounds += 1;
            if rng.random_bool(0.5) {
                refused += usize::from(check(&what, &engine, &model));
            } else if let Err(error) = engine.scrub(0, u64::MAX) {
                scrubbed += 1;
                accept(&what, error);
                // What was found is said of everything, also of what is in memory.
                accept(&what, engine.get(b"key 000000").unwrap_err());
            }
        }
    }
    assert!(refused > 0 && scrubbed > 0, "of {rounds} damages {refused} and {scrubbed} were found");
}

/// The engine's cache would hide it, until the next start.
#[test]
fn a_scrub_finds_what_rots_below_the_cache() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store");
    let engine = DiskEngine::open(&path, 64 << 20).unwrap();
    let mut batch = WriteBatch::default();
    batch.put("key".into(), vec![b'v'; 100_000].into());
    engine.write(&batch, Durability::Durable).unwrap();
    let contents = std::fs::read(&path).unwrap();
    let at = contents.windows(64).position(|window| window == [b'v'; 64]).unwrap() as u64;
    writable(&path).write_all_at(b"V", at + 5_000).unwrap();
    assert!(engine.get(b"key").unwrap().is_some(), "it is in memory");
    let mut from = Some(0);
    let mut found = Ok(());
    while let Some(block) = from {
        match engine.scrub(block, 16) {
            Ok(scrubbed) => from = scrubbed.next_block,
            Err(error) => {
                found = Err(error);
                break;
            }
        }
    }
    let error = found.unwrap_err();
    assert!(
        matches!(&error, EngineError::Damaged { path: at, .. } if at.ends_with("store")),
        "{error}"
    );
}
