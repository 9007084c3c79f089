//! What survives when the power goes, a sync fails, the disk fills up or a bit flips.
//!
//! Seeds in: every random run prints its seed, and `ACERVO_SEED=n` replays that one alone.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use acervo::model::{
    ClientId, Command, Del, HardState, LogBatch, LogEntry, LogIndex, NodeId, Put, RequestId,
    StateLimits, Term, Timestamp, WriteOp,
};
use acervo::storage::apply::StateMachine;
use acervo::storage::engine::Engine;
use acervo::storage::files::Directory;
use acervo::storage::log::{DiskLog, LogError, LogOptions, RecoveredLog};
use acervo::storage::memory::MemoryEngine;
use acervo::storage::tables::TableEngine;
use acervo::storage::{Redundancy, StateSource, Storage, assemble};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::log_disk::{Faults, SimDisk};

fn seeds(range: Range<u64>) -> Vec<u64> {
    match std::env::var("ACERVO_SEED") {
        Ok(seed) => vec![seed.parse().expect("ACERVO_SEED is a number")],
        Err(_) => range.collect(),
    }
}

fn rng(seed: u64) -> StdRng {
    println!("replay with ACERVO_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn options() -> LogOptions {
    LogOptions { segment_bytes: 16 * 1024, zero_fill_bytes: 2048, ..LogOptions::default() }
}

fn open(disk: &SimDisk, options: &LogOptions) -> Result<(DiskLog, RecoveredLog), LogError> {
    DiskLog::open_on(Arc::new(disk.clone()), options.clone())
}

fn refused(disk: &SimDisk, options: &LogOptions) -> LogError {
    match open(disk, options) {
        Ok((_, recovered)) => panic!("opened a damaged log: {recovered:?}"),
        Err(error) => error,
    }
}

/// What a log should hold, if none of it were ever compacted away.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// The index and term after which the log starts, as of the last reset.
    base: (LogIndex, Term),
    entries: Vec<LogEntry>,
    hard_state: HardState,
    /// Entries before this one need not be kept and are never replaced.
    compacted: LogIndex,
}

impl Model {
    fn apply(&mut self, batch: &LogBatch) {
        if let Some(first) = batch.entries.first() {
            self.entries.truncate((first.index - 1 - self.base.0) as usize);
            self.entries.extend_from_slice(&batch.entries);
        }
        self.hard_state = batch.hard_state.unwrap_or(self.hard_state);
    }

    fn first_index(&self) -> LogIndex {
        self.base.0 + 1
    }

    fn last_index(&self) -> LogIndex {
        self.base.0 + self.entries.len() as u64
    }

    fn from(&self, index: LogIndex) -> &[LogEntry] {
        &self.entries[(index - self.first_index()) as usize..]
    }

    fn term_at(&self, index: LogIndex) -> Term {
        if index == self.base.0 { self.base.1 } else { self.from(index)[0].term }
    }

    fn term_runs(&self, first: LogIndex) -> Vec<(LogIndex, Term)> {
        let runs = self.from(first).chunk_by(|a, b| a.term == b.term);
        runs.map(|run| (run[0].index, run[0].term)).collect()
    }

    /// A random reset: to somewhere in the log, or past its end.
    fn next_reset(&self, rng: &mut StdRng) -> Model {
        let lowest = self.first_index().max(self.compacted);
        let index = rng.random_range(lowest..=self.last_index() + 20);
        let term = self.hard_state.term + 1;
        let hard_state = HardState { term, commit: index, ..self.hard_state };
        Model { base: (index, term), entries: Vec::new(), hard_state, compacted: 0 }
    }

    /// A random next batch: entries that follow or replace a suffix, a hard state, or both.
    fn next_batch(&self, rng: &mut StdRng, salt: &mut u64) -> LogBatch {
        let mut hard_state = self.hard_state;
        let mut entries = Vec::new();
        if rng.random_bool(0.8) {
            let last = self.last_index();
            let lowest = self.first_index().max(self.compacted);
            let replaces = rng.random_bool(0.3);
            let first = if replaces { rng.random_range(lowest..=last + 1) } else { last + 1 };
            hard_state.term += u64::from(first <= last || rng.random_bool(0.1));
            for index in first..first + rng.random_range(1..6) {
                *salt += 1;
                let data = vec![*salt as u8; rng.random_range(0..700)];
                entries.push(LogEntry { term: hard_state.term, index, data: data.into() });
            }
            let known = entries.last().map_or(0, |entry| entry.index);
            hard_state.commit = rng.random_range(self.base.0..=known);
        } else {
            hard_state.term += 1;
            hard_state.vote = NodeId::from_number(rng.random_range(0..4));
            hard_state.admitted |= rng.random_bool(0.5);
            hard_state.commit = hard_state.commit.min(self.last_index());
        }
        let changed = hard_state != self.hard_state;
        LogBatch { number: *salt, hard_state: changed.then_some(hard_state), entries }
    }
}

fn read_all(log: &DiskLog) -> Vec<LogEntry> {
    let reader = log.reader();
    let (first, last) = reader.bounds();
    let mut entries: Vec<LogEntry> = Vec::new();
    while first + entries.len() as u64 <= last {
        let next = first + entries.len() as u64;
        entries.extend(reader.read(next, last + 1, 1000).unwrap());
    }
    entries
}

/// Checks a reopened log against what was acknowledged and what was being appended; what it holds.
fn check_reopened(log: &DiskLog, found: &RecoveredLog, acked: &Model, after: &Model) -> Model {
    let hard_state = found.hard_state;
    // A reset raises the term, and is there whole or not at all.
    if after.base != acked.base && hard_state.term == after.hard_state.term {
        let (first_index, previous_term) = (after.base.0 + 1, after.base.1);
        let last_index = after.base.0;
        let term_runs = Vec::new();
        let expected =
            RecoveredLog { hard_state, term_runs, first_index, previous_term, last_index };
        assert_eq!((found, hard_state), (&expected, after.hard_state));
        return after.clone();
    }
    let first = found.first_index;
    let compacted = acked.compacted.max(after.compacted);
    let first_allowed = acked.first_index()..=compacted.max(acked.first_index());
    assert!(first_allowed.contains(&first), "starts at {first}, not in {first_allowed:?}");
    let gone = &acked.entries[..(first - acked.first_index()) as usize];
    let entries = [gone, &read_all(log)].concat();
    let model = Model { entries, hard_state, compacted, ..acked.clone() };
    assert_eq!(found.term_runs, model.term_runs(first));
    assert_eq!(found.previous_term, model.term_at(first - 1));
    assert_eq!(found.last_index, model.last_index());
    if after.base != acked.base {
        assert_eq!(model.entries, acked.entries, "neither the old log nor the new one");
        return model;
    }

    // The append that was cut short is there in whole frames, in order: nothing else is new, and
    // what it did not replace is untouched.
    let same = acked.entries.iter().zip(&after.entries).take_while(|(a, b)| a == b).count();
    let is_part_of_append = model.entries.len() > same && after.entries.starts_with(&model.entries);
    let is_shrunk_append = model.entries == after.entries;
    assert!(
        model.entries == acked.entries || is_part_of_append || is_shrunk_append,
        "neither acknowledged nor appended: {} entries, {} acknowledged, {} appended, {same} same",
        model.entries.len(),
        acked.entries.len(),
        after.entries.len(),
    );
    let vote = |state: &HardState| (state.term, state.vote, state.admitted);
    assert!([vote(&acked.hard_state), vote(&after.hard_state)].contains(&vote(&hard_state)));
    assert!(hard_state.commit <= found.last_index);
    model
}

/// Does random things to the log until one fails or `count` are done, mostly appending groups; what
/// was acknowledged and what was tried last.
fn run(
    log: &mut DiskLog,
    start: Model,
    count: usize,
    rng: &mut StdRng,
    salt: &mut u64,
) -> (Model, Model) {
    let mut acked = start;
    for _ in 0..count {
        let mut after = acked.clone();
        let done = match rng.random_range(0..20) {
            0 if !acked.entries.is_empty() => {
                let lowest = acked.first_index().max(acked.compacted);
                after.compacted = rng.random_range(lowest..=acked.last_index() + 1);
                log.compact(after.compacted)
            }
            1 => {
                after = acked.next_reset(rng);
                log.reset(after.base.0, after.base.1, after.hard_state)
            }
            _ => {
                let mut group = Vec::new();
                for _ in 0..rng.random_range(1..4) {
                    let batch = after.next_batch(rng, salt);
                    after.apply(&batch);
                    group.push(batch);
                }
                log.append(&group)
            }
        };
        match done {
            Ok(()) => acked = after,
            Err(_) => return (acked, after),
        }
    }
    (acked.clone(), acked)
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_invented_wherever_the_power_goes() {
    for seed in seeds(0..150) {
        let mut rng = rng(seed);
        let group_bytes_max = if seed % 2 == 0 { 1000 } else { 1 << 20 };
        let options = LogOptions { salt: seed, group_bytes_max, ..options() };
        let disk = SimDisk::new();
        let mut model = Model::default();
        let mut salt = 0;
        for _ in 0..8 {
            let at = rng.random_range(1..25);
            disk.set_faults(Faults { power_loss_at_sync: Some(at), ..Faults::default() });
            let (mut acked, mut after) = (model.clone(), model.clone());
            // The power may go while the log is being opened, too.
            if let Ok((mut log, found)) = open(&disk, &options) {
                let start = check_reopened(&log, &found, &model, &model);
                (acked, after) = run(&mut log, start, 20, &mut rng, &mut salt);
            }
            disk.power_cycle(&mut rng);
            let (log, found) = open(&disk, &options).unwrap();
            model = check_reopened(&log, &found, &acked, &after);
            if group_bytes_max > 1000 {
                // One frame: all of the append or nothing of it.
                assert!(model.entries == acked.entries || model.entries == after.entries);
            }
        }
    }
}

#[test]
fn the_power_going_at_each_sync_in_turn_loses_nothing() {
    // The same run, again and again, with the power going one sync later each time.
    let seed = 7;
    let mut at = 1;
    loop {
        let mut rng = rng(seed);
        let disk = SimDisk::new();
        disk.set_faults(Faults { power_loss_at_sync: Some(at), ..Faults::default() });
        let (mut acked, mut after) = Default::default();
        if let Ok((mut log, _)) = open(&disk, &options()) {
            (acked, after) = run(&mut log, Model::default(), 60, &mut rng, &mut 0);
        }
        let finished = disk.syncs() < at;
        disk.power_cycle(&mut StdRng::seed_from_u64(at));
        let (log, found) = open(&disk, &options()).unwrap();
        check_reopened(&log, &found, &acked, &after);
        if finished {
            break;
        }
        at += 1;
    }
    assert!(at > 60, "the run went through {at} syncs");
}

#[test]
fn a_failed_sync_poisons_the_log_and_what_a_restart_reports_is_durable() {
    for seed in seeds(0..100) {
        let mut rng = rng(seed);
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, &options()).unwrap();
        let at = rng.random_range(1..25);
        disk.set_faults(Faults { fail_sync: Some(at), ..Faults::default() });
        let mut salt = 0;
        let (acked, after) = run(&mut log, Model::default(), 60, &mut rng, &mut salt);
        let error = log.append(&[LogBatch::default()]).unwrap_err();
        assert!(matches!(error, LogError::Poisoned { .. }), "{error}");
        drop(log);

        // The process starts again; the operating system shows it what it never wrote down.
        let (log, found) = open(&disk, &options()).unwrap();
        let reported = check_reopened(&log, &found, &acked, &after);
        drop(log);
        disk.power_cycle(&mut rng);
        let (log, found) = open(&disk, &options()).unwrap();
        assert_eq!(check_reopened(&log, &found, &reported, &reported), reported);
    }
}

#[test]
fn what_an_unsynced_run_left_is_durable_once_it_is_reported() {
    let mut rng = rng(3);
    let disk = SimDisk::new();
    let unsynced = LogOptions { sync: false, ..options() };
    let (mut log, _) = open(&disk, &unsynced).unwrap();
    let (acked, _) = run(&mut log, Model::default(), 60, &mut rng, &mut 0);
    assert_eq!(disk.syncs(), 0);
    drop(log);
    // The process was killed, not the machine; the next one runs with syncs.
    let (log, found) = open(&disk, &options()).unwrap();
    let reported = check_reopened(&log, &found, &acked, &acked);
    drop(log);
    disk.power_cycle(&mut rng);
    let (log, found) = open(&disk, &options()).unwrap();
    assert_eq!(check_reopened(&log, &found, &reported, &reported), reported);
}

#[test]
fn a_group_costs_one_sync_and_a_commit_index_alone_none() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, &options()).unwrap();
    let hard_state = HardState { term: 1, vote: Some(NodeId(1)), commit: 0, admitted: true };
    let entry = |index| LogEntry { term: 1, index, data: Bytes::from_static(b"data") };
    let batch = |hard_state, entries| LogBatch { number: 0, hard_state, entries };
    disk.set_faults(Faults::default());
    log.append(&[
        batch(Some(hard_state), vec![entry(1)]),
        batch(None, vec![entry(2), entry(3)]),
        batch(Some(HardState { commit: 1, ..hard_state }), vec![entry(4)]),
    ])
    .unwrap();
    assert_eq!(disk.syncs(), 1);
    log.append(&[batch(Some(HardState { commit: 3, ..hard_state }), vec![])]).unwrap();
    assert_eq!(disk.syncs(), 1);
    let (_, found) = open(&disk.copy(), &options()).unwrap();
    assert_eq!((found.hard_state.commit, found.last_index), (1, 4));
    log.append(&[batch(None, vec![entry(5)])]).unwrap();
    assert_eq!(disk.syncs(), 2);
    let (_, found) = open(&disk.copy(), &options()).unwrap();
    assert_eq!(found.hard_state, HardState { commit: 3, ..hard_state });
}

#[test]
fn a_full_disk_poisons_the_log_and_loses_nothing() {
    let mut rng = rng(1);
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, &options()).unwrap();
    disk.set_faults(Faults { file_bytes_max: Some(9_000), ..Faults::default() });
    let (acked, after) = run(&mut log, Model::default(), 60, &mut rng, &mut 0);
    assert_ne!(acked, after, "the disk never filled up");
    let error = log.append(&[LogBatch::default()]).unwrap_err();
    assert!(error.to_string().contains("stopped after a failure"), "{error}");
    drop(log);
    disk.set_faults(Faults::default());
    let (mut log, found) = open(&disk, &options()).unwrap();
    let model = check_reopened(&log, &found, &acked, &after);
    let (acked, after) = run(&mut log, model, 10, &mut rng, &mut 0);
    assert_eq!(acked, after, "with space again, appends succeed");
}

/// A log of single-entry batches over several segments, and where each entry's data is.
fn planted() -> (SimDisk, Vec<LogEntry>, Vec<(String, usize)>) {
    let disk = SimDisk::new();
    let options = LogOptions { segment_bytes: 6 * 1024, ..options() };
    let (mut log, _) = open(&disk, &options).unwrap();
    let entry = |index| {
        let data = Bytes::from(format!("the data of entry {index:04}"));
        LogEntry { term: 1, index, data }
    };
    let entries: Vec<LogEntry> = (1..=60).map(entry).collect();
    for entry in &entries {
        log.append(&[LogBatch { entries: vec![entry.clone()], ..LogBatch::default() }]).unwrap();
    }
    let files = disk.files();
    assert!(files.len() >= 3, "several segments");
    let find = |entry: &LogEntry| {
        let places = files.iter().filter_map(|(name, bytes)| {
            let at = bytes.windows(entry.data.len()).position(|window| window == entry.data)?;
            Some((name.clone(), at))
        });
        places.last().unwrap()
    };
    let places = entries.iter().map(find).collect();
    (disk, entries, places)
}

#[test]
fn a_bit_flipped_in_the_middle_is_refused_by_name_and_offset() {
    let (disk, entries, places) = planted();
    for (entry, (name, at)) in entries.iter().zip(&places).take(entries.len() - 1) {
        let damaged = disk.copy();
        damaged.flip(name, *at, 3);
        match refused(&damaged, &options()) {
            LogError::Corrupt { path, offset, .. } => {
                assert_eq!(path, PathBuf::from("/sim").join(name), "entry {}", entry.index);
                let distance = *at as u64 - offset;
                assert!((40..200).contains(&distance), "{distance} bytes into its batch");
            }
            error => panic!("entry {}: {error}", entry.index),
        }
    }
}

/// It may have been acknowledged, and hold a vote: so it is no torn write, of which sectors are
/// missing.
#[test]
fn a_bit_flipped_in_the_last_batch_is_refused_also() {
    let (disk, entries, places) = planted();
    let (name, at) = places.last().unwrap();
    for byte in at - 60..at + entries[59].data.len() {
        let damaged = disk.copy();
        damaged.flip(name, byte, 6);
        let error = refused(&damaged, &options());
        assert!(matches!(error, LogError::Corrupt { .. }), "byte {byte}: {error}");
    }
}

/// Values that are zero for whole sectors look like sectors that were not written.
#[test]
fn a_bit_flipped_among_zeroes_is_refused_and_a_write_cut_short_among_zeroes_is_cut_off() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let options = LogOptions { zero_fill_bytes: 8192, segment_bytes: 1 << 20, ..options() };
    let whole = SimDisk::new();
    let (mut log, _) = open(&whole, &options).unwrap();
    let zeroes = |index, marked: bool| {
        let mut data = vec![0; 3000];
        data[1700] = u8::from(marked);
        let entry = LogEntry { term: 1, index, data: data.into() };
        LogBatch { entries: vec![entry], ..LogBatch::default() }
    };
    log.append(&[zeroes(1, true)]).unwrap();
    let name = whole.files()[0].0.clone();
    let before = whole.files()[0].1.clone();
    for marked in [true, false] {
        let disk = whole.copy();
        let (mut log, _) = open(&disk, &options).unwrap();
        log.append(&[zeroes(2, marked)]).unwrap();
        drop(log);
        let after = disk.files()[0].1.clone();
        let from = before.iter().rposition(|byte| *byte != 0).unwrap() / 8 * 8 + 8;
        let to = after.iter().rposition(|byte| *byte != 0).unwrap();
        assert!(to > from);
        for byte in from..to {
            let damaged = disk.copy();
            damaged.flip(&name, byte, 2);
            match open(&damaged, &options) {
                // Padding.
                Ok((log, _)) => assert_eq!(read_all(&log).len(), 2, "byte {byte}"),
                Err(error) => {
                    assert!(matches!(error, LogError::Corrupt { .. }), "byte {byte}: {error}");
                }
            }
        }
        for _ in 0..200 {
            let disk = whole.copy();
            let (mut log, _) = open(&disk, &options).unwrap();
            disk.set_faults(Faults { power_loss_at_sync: Some(1), ..Faults::default() });
            log.append(&[zeroes(2, marked)]).unwrap_err();
            drop(log);
            disk.power_cycle(&mut rng);
            let (log, found) = open(&disk, &options).unwrap();
            assert!((1..=2).contains(&found.last_index), "seed {seed}");
            assert_eq!(read_all(&log).len() as u64, found.last_index, "seed {seed}");
        }
    }
}

#[test]
fn no_flipped_bit_changes_what_a_log_says() {
    let (disk, entries, _) = planted();
    for (name, bytes) in &disk.files() {
        for byte in 0..bytes.len() {
            let damaged = disk.copy();
            damaged.flip(name, byte, (byte % 8) as u8);
            match open(&damaged, &options()) {
                // Padding. The last batch may have been acknowledged like every other one.
                Ok((log, found)) => {
                    assert!(read_all(&log) == entries, "byte {byte} of {name}");
                    assert_eq!(found.hard_state, HardState::default());
                }
                Err(LogError::Corrupt { path, offset, .. }) => {
                    assert!(path.ends_with(name), "byte {byte} of {name}: {}", path.display());
                    assert!(offset <= byte as u64);
                }
                Err(error) => panic!("byte {byte} of {name}: {error}"),
            }
        }
    }
}

#[test]
fn damage_that_appears_while_running_is_found_by_the_reader() {
    let (disk, entries, places) = planted();
    let (log, _) = open(&disk, &options()).unwrap();
    let (name, at) = &places[30];
    disk.flip(name, *at, 0);
    let reader = log.reader();
    assert_eq!(reader.read(1, 31, u64::MAX).unwrap(), entries[..30]);
    let error = reader.read(31, 32, u64::MAX).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
}

#[test]
fn an_unfinished_segment_is_started_anew_and_a_lost_one_is_missed() {
    let (disk, entries, _) = planted();
    let names: Vec<String> = disk.files().into_iter().map(|(name, _)| name).collect();
    let unfinished = disk.copy();
    let next = format!("{:016}.log", names.len() + 1);
    unfinished.create(&next).unwrap().write_all_at(&[0; 5000], 0).unwrap();
    let (log, found) = open(&unfinished, &options()).unwrap();
    assert_eq!((found.last_index, read_all(&log).len()), (60, entries.len()));

    let lost = disk.copy();
    lost.remove(&names[1]).unwrap();
    let error = refused(&lost, &options());
    assert!(matches!(&error, LogError::MissingSegment { path } if path.ends_with(&names[1])));
}

/// A random write of one of few clients to one of few keys, often a retry.
fn random_command(rng: &mut StdRng, timestamp: i64) -> Command {
    let key = Bytes::from(vec![rng.random_range(0..6u8); 3]);
    let sequence = rng.random_range(1..40);
    let op = if rng.random_bool(0.7) {
        WriteOp::Put(Put {
            key,
            value: Bytes::from(format!("value {timestamp}")),
            tells_previous: false,
        })
    } else {
        WriteOp::Del(Del { key, tells_previous: false, keeps_history: false })
    };
    // Each client begins with its first write; without a session nothing else is applied.
    let first = (timestamp <= 3).then_some(timestamp as u64);
    let (client, sequence) = first.map_or((rng.random_range(1..4), sequence), |client| (client, 1));
    let request = RequestId {
        client: ClientId(client),
        sequence,
        answered_below: if rng.random_bool(0.1) { sequence / 2 } else { 0 },
        begun: Timestamp::ZERO,
    };
    Command::write(Timestamp(timestamp), request, op)
}

/// Runs a log and a state machine through crashes, beside a state machine that never crashes.
fn replay_agrees(seed: u64, rounds: usize, mut reopen: impl FnMut() -> Arc<dyn Engine>) {
    let mut rng = rng(seed);
    let disk = SimDisk::new();
    let mut steady =
        StateMachine::open(Arc::new(MemoryEngine::new()), StateLimits::default()).unwrap();
    let mut index = 0;
    for _ in 0..rounds {
        let (log, found) = open(&disk, &options()).unwrap();
        let Storage { mut log, mut machine, recovered } =
            assemble(log, found, reopen(), Redundancy::Alone, StateSource::Log).unwrap();
        assert_eq!(recovered.last_index, index);
        machine.apply(&recovered.entries).unwrap();
        assert_eq!(machine.applied(), steady.applied(), "replay gives the same state");
        for _ in 0..rng.random_range(1..8) {
            let mut entries = Vec::new();
            for _ in 0..rng.random_range(1..10) {
                index += 1;
                let is_noop = index > 3 && rng.random_bool(0.1);
                let command = random_command(&mut rng, index as i64);
                let data = if is_noop { Bytes::new() } else { command.encode() };
                entries.push(LogEntry { term: 1, index, data });
            }
            log.append(&[LogBatch { entries: entries.clone(), ..LogBatch::default() }]).unwrap();
            // The same answers, sessions included.
            assert_eq!(machine.apply(&entries).unwrap(), steady.apply(&entries).unwrap());
            assert_eq!(machine.applied(), steady.applied());
            if rng.random_bool(0.2) {
                machine.checkpoint().unwrap();
            }
        }
        drop((log, machine));
        disk.power_cycle(&mut rng);
    }
}

#[test]
fn a_crash_after_any_apply_and_a_replay_give_the_identical_state() {
    for seed in seeds(0..60) {
        let engine = Arc::new(MemoryEngine::new());
        replay_agrees(seed, 10, || {
            engine.crash();
            engine.clone()
        });
    }
}

#[test]
fn a_crash_and_a_replay_give_the_identical_state_on_disk() {
    for seed in seeds(0..4) {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("store");
        // Dropping the engine leaves what killing the process would.
        replay_agrees(seed, 6, || Arc::new(TableEngine::open_at(&path).unwrap()));
    }
}
