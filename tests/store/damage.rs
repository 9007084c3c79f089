//! Damage to the engine's files: whatever rots, every read is right or refused as damaged, and
//! nothing panics. `ACERVO_DAMAGE_SEEDS` runs more seeds than an ordinary test run does.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use acervo::storage::engine::{Direction, Engine, EngineError, WriteBatch};
use acervo::storage::files::RealDirectory;
use acervo::storage::keys::RowRange;
use acervo::storage::tables::{TableEngine, TablesOptions};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;

const SEEDS_DEFAULT: u64 = 6;
/// Each seed makes one store and damages so many copies of it.
const DAMAGES_PER_SEED: usize = 40;
/// A page of the disk.
const PAGE: u64 = 4096;

type Model = BTreeMap<Bytes, Bytes>;

fn seeds() -> u64 {
    let text = std::env::var("ACERVO_DAMAGE_SEEDS").ok();
    text.map_or(SEEDS_DEFAULT, |text| text.parse().expect("ACERVO_DAMAGE_SEEDS is a number"))
}

/// Tables of a few blocks, with a cache so small that most reads go to the files.
fn open(path: &Path) -> Result<TableEngine, EngineError> {
    let options = TablesOptions {
        block_bytes: 2_000,
        fan: 3,
        small_run_bytes: 100_000,
        table_bytes: 200_000,
        merge_step_rows: 50,
        cache_bytes: 64 * 1024,
        open_files_max: 2,
        ..TablesOptions::default()
    };
    TableEngine::open(Arc::new(RealDirectory::open(path).unwrap()), options)
}

fn files(store: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(store).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Some hundred rows, one of them larger than many pages, with steps of the background between.
fn fill(engine: &TableEngine, rng: &mut StdRng, model: &mut Model, rows: usize) {
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
        match rng.random_ratio(1, 4) {
            true => engine.write_durably(&batch).unwrap(),
            false => engine.write(&batch).unwrap(),
        }
        for _ in 0..rng.random_range(0..20) {
            engine.work().unwrap();
        }
    }
    engine.write_durably(&WriteBatch::default()).unwrap();
}

fn zero(file: &File, at: u64, len: u64) {
    file.write_all_at(&vec![0; len as usize], at).unwrap();
}

/// Damages a file of a store somewhere, some way; says how.
fn damage(store: &Path, rng: &mut StdRng) -> String {
    let files = files(store);
    // What matters to everything is damaged as often as all the rest.
    let path = match rng.random_ratio(1, 4) {
        true => store.join("MANIFEST"),
        false => files[rng.random_range(0..files.len())].clone(),
    };
    format!("{}: {}", path.display(), damage_file(&path, rng))
}

fn damage_file(path: &Path, rng: &mut StdRng) -> String {
    let file = &writable(path);
    let len = file.metadata().unwrap().len();
    let at = rng.random_range(0..len);
    let page = at / PAGE * PAGE;
    match rng.random_range(0..6) {
        0..=1 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            let bit = rng.random_range(0..8);
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            format!("bit {bit} of byte {at} flipped")
        }
        2 => {
            zero(file, page, PAGE.min(len - page));
            format!("page at {page} zeroed")
        }
        3 => {
            let sector = at / 512 * 512;
            zero(file, sector, 512.min(len - sector));
            format!("sector at {sector} zeroed")
        }
        4 => {
            let from = rng.random_range(0..=len / PAGE) * PAGE;
            let mut bytes = vec![0; PAGE.min(len - from).min(len - page) as usize];
            file.read_exact_at(&mut bytes, from).unwrap();
            file.write_all_at(&bytes, page).unwrap();
            format!("page at {from} written over that at {page}")
        }
        _ => {
            file.set_len(at).unwrap();
            format!("cut to {at} bytes")
        }
    }
}

fn accept(what: &str, error: EngineError) {
    assert!(matches!(error, EngineError::Damaged { .. }), "{what}: {error}");
}

/// Reads everything, one by one, in both orders, and writes; whether anything was refused.
fn check(what: &str, engine: &TableEngine, model: &Model) -> bool {
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
    for written in [engine.write(&batch), engine.write_durably(&batch)] {
        if let Err(error) = written {
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
        let engine = open(&path).unwrap();
        fill(&engine, &mut rng, &mut model, 600);
        drop(engine);
        for round in 0..DAMAGES_PER_SEED {
            let _ = std::fs::remove_dir_all(&copy);
            std::fs::create_dir(&copy).unwrap();
            for file in files(&path) {
                std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
            }
            let how = damage(&copy, &mut rng);
            let what = format!("seed {seed}, round {round}: {how}");
            match open(&copy) {
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
    // Otherwise this tests nothing.
    assert!(refused > 0 && at_open > 0 && opened > refused, "{opened} {refused} {at_open}");
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
            let engine = open(&path).unwrap();
            fill(&engine, &mut rng, &mut model, 300);
            engine.scrub(0, u64::MAX).unwrap();
            let how = damage(&path, &mut rng);
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
    let engine = TableEngine::open_at(&path).unwrap();
    let mut batch = WriteBatch::default();
    for number in 0..1_000 {
        batch.put(format!("key {number:04}").into(), vec![b'v'; 100].into());
    }
    engine.write_durably(&batch).unwrap();
    // Everything is in the cache from now on.
    check(
        "sound",
        &engine,
        &batch.rows().map(|(key, value)| (key.clone(), value.unwrap().clone())).collect(),
    );
    let table = files(&path).into_iter().find(|file| file.extension().is_some()).unwrap();
    writable(&table).write_all_at(b"V", 5_000).unwrap();
    assert!(engine.get(b"key 0040").unwrap().is_some(), "it is in memory");
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
    let is_named = |at: &str| at == table.display().to_string();
    assert!(matches!(&error, EngineError::Damaged { path, .. } if is_named(path)), "{error}");
}
