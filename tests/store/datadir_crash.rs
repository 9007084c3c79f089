//! A server is killed, and its machine loses power, before every single thing that it does to its
//! disk: while its data directory is created, while it starts for the first time, and while it
//! takes in a snapshot. Each time it starts again with all that it had made durable, and goes on.
//! So also while what is damaged is set aside: then nothing of what was damaged is ever lost before
//! the server is whole again. And while what the group has refuted is: it is never trusted again.
//!
//! Every random run prints its seed, and `ACERVO_SEED=n` replays it.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;

use acervo::model::{
    AppliedPoint, ClientId, ClusterId, Command, Del, DiskSpace, HardState, LogBatch, LogEntry,
    LogIndex, NodeId, Put, RequestId, StateLimits, Timestamp, WriteOp,
};
use acervo::storage::apply::StateMachine;
use acervo::storage::datadir::{DataDir, Untrusted};
use acervo::storage::files::Directory;
use acervo::storage::log::LogOptions;
use acervo::storage::memory::MemoryEngine;
use acervo::storage::snapshot::{SnapshotChunk, SnapshotSink};
use acervo::storage::{self, Redundancy, Storage, StorageError};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::log_disk::{Faults, SimDisk};

const SNAPSHOT: LogIndex = 300;
const LAST: LogIndex = SNAPSHOT + 3;

fn put(index: LogIndex) -> LogEntry {
    let request = RequestId {
        client: ClientId(1),
        sequence: index,
        answered_below: index,
        begun: Timestamp::ZERO,
    };
    let key = Bytes::from(format!("key {}", index % 50));
    let op = WriteOp::Put(Put {
        key,
        value: Bytes::from(format!("value {index}")),
        tells_previous: false,
    });
    LogEntry { term: 1, index, data: Command::write(Timestamp(index as i64), request, op).encode() }
}

fn entries(first: LogIndex, last: LogIndex) -> LogBatch {
    LogBatch { entries: (first..=last).map(put).collect(), ..LogBatch::default() }
}

fn options() -> LogOptions {
    LogOptions { segment_bytes: 8 * 1024, zero_fill_bytes: 1024, ..LogOptions::default() }
}

fn data_dir(disk: &SimDisk) -> Result<DataDir, Box<dyn Error>> {
    Ok(DataDir::open_on(Arc::new(disk.clone()), ClusterId(1), NodeId(1), 7)?)
}

fn open(disk: &SimDisk) -> Result<Storage, Box<dyn Error>> {
    Ok(storage::open(&mut data_dir(disk)?, options(), Redundancy::Alone)?)
}

/// What the right states are, and one of them as a snapshot.
struct Expected {
    /// After each number of writes.
    points: Vec<AppliedPoint>,
    chunks: Vec<SnapshotChunk>,
}

impl Expected {
    fn new(snapshot: LogIndex) -> Expected {
        let mut machine =
            StateMachine::open(Arc::new(MemoryEngine::new()), StateLimits::default()).unwrap();
        let mut points = vec![machine.applied()];
        let mut chunks = Vec::new();
        for index in 1..=LAST + 8 {
            machine.apply(&[put(index)]).unwrap();
            points.push(machine.applied());
            if index == snapshot {
                let mut source = machine.begin_snapshot().unwrap();
                chunks = std::iter::from_fn(|| source.next_chunk(2000).unwrap()).collect();
            }
        }
        Expected { points, chunks }
    }

    fn point(&self, index: LogIndex) -> AppliedPoint {
        self.points[index as usize]
    }
}

/// How far a server has come when the snapshot comes.
#[derive(Clone, Copy)]
struct Plan {
    applied: LogIndex,
    /// What of it is durable.
    checkpoint: LogIndex,
}

/// What was durable when the server was stopped.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    last_index: LogIndex,
    checkpoint: LogIndex,
    /// The log begins after the snapshot.
    reset: bool,
}

/// From no data directory to one that has taken in a snapshot, or to the first failure.
fn live(
    disk: &SimDisk,
    plan: Plan,
    expected: &Expected,
    promised: &mut Promised,
) -> Result<(), Box<dyn Error>> {
    let mut data_dir = data_dir(disk)?;
    let Storage { mut log, mut machine, .. } =
        storage::open(&mut data_dir, options(), Redundancy::Alone)?;
    log.append(&[entries(1, plan.applied)])?;
    promised.last_index = plan.applied;
    machine.apply(&entries(1, plan.checkpoint).entries)?;
    machine.checkpoint()?;
    promised.checkpoint = plan.checkpoint;
    machine.apply(&entries(plan.checkpoint + 1, plan.applied).entries)?;

    let mut sink = SnapshotSink::create(data_dir.staging(), expected.point(SNAPSHOT))?;
    for chunk in &expected.chunks {
        sink.push(chunk)?;
    }
    let staged = sink.finish()?;
    let hard_state = HardState { term: 2, vote: Some(NodeId(1)), commit: SNAPSHOT, admitted: true };
    log.reset(SNAPSHOT, 1, hard_state)?;
    *promised = Promised { last_index: SNAPSHOT, checkpoint: SNAPSHOT, reset: true };
    log.append(&[entries(SNAPSHOT + 1, LAST)])?;
    promised.last_index = LAST;
    machine.install(staged)?;
    machine.apply(&entries(SNAPSHOT + 1, LAST - 2).entries)?;
    machine.checkpoint()?;
    promised.checkpoint = LAST - 2;

    // A merge and a seal are under way together. A merge that fails is given up, and the disk that
    // has stopped is noticed by what is sealed next.
    let store = machine.store();
    while store.work().is_ok_and(|more| more) {}
    machine.apply(&entries(LAST - 1, LAST - 1).entries)?;
    machine.checkpoint()?;
    promised.checkpoint = LAST - 1;
    while store.work().is_ok_and(|more| more) {}
    machine.apply(&entries(LAST, LAST).entries)?;
    machine.checkpoint()?;
    promised.checkpoint = LAST;
    Ok(())
}

/// The server starts on what is left, has what it was promised, works, and starts once more.
fn check(disk: &SimDisk, plan: Plan, expected: &Expected, promised: Promised, moment: &str) {
    let storage = open(disk).unwrap_or_else(|error| panic!("{moment}: {error}"));
    let Storage { mut log, mut machine, recovered } = storage;
    let has_snapshot = recovered.first_index == SNAPSHOT + 1;
    assert!(has_snapshot || !promised.reset, "{moment}: the log is back again");
    assert!(recovered.last_index >= promised.last_index, "{moment}: {promised:?}");
    assert!(recovered.applied.index >= promised.checkpoint, "{moment}: {promised:?}");
    if has_snapshot {
        assert_eq!((recovered.previous_term, recovered.hard_state.term), (1, 2), "{moment}");
        assert!(recovered.applied.index >= SNAPSHOT, "{moment}");
    } else {
        assert_eq!(recovered.first_index, 1, "{moment}");
        assert!(recovered.last_index <= plan.applied, "{moment}");
    }
    assert_eq!(recovered.applied, expected.point(recovered.applied.index), "{moment}");
    let mut left = disk.list().unwrap();
    left.retain(|name| !["IDENTITY", "LOCK", "RESERVE", "log", "store"].contains(&name.as_str()));
    assert!(left.is_empty(), "{moment}: {left:?} are left");

    machine.apply(&recovered.entries).unwrap();
    let next = entries(recovered.last_index + 1, recovered.last_index + 4);
    log.append(std::slice::from_ref(&next)).unwrap();
    machine.apply(&next.entries).unwrap();
    assert_eq!(machine.applied(), expected.point(recovered.last_index + 4), "{moment}");
    drop((log, machine));
    let again = open(disk).unwrap().recovered;
    assert_eq!(again.applied, recovered.applied, "{moment}");
    assert_eq!(again.last_index, recovered.last_index + 4, "{moment}");
}

fn check_every_moment(plan: Plan) {
    let seed = std::env::var("ACERVO_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("ACERVO_SEED is a number"));
    println!("replay with ACERVO_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let expected = Expected::new(SNAPSHOT);
    for operation in 1.. {
        let disk = SimDisk::new();
        disk.set_faults(Faults { stop_at_operation: Some(operation), ..Faults::default() });
        let mut promised = Promised::default();
        assert!(operation < 10_000, "it never gets through");
        if live(&disk, plan, &expected, &mut promised).is_ok() {
            assert!(promised.reset && operation > 60, "only {operation} moments");
            return;
        }
        let cut = disk.copy();
        cut.restart();
        check(&cut, plan, &expected, promised, &format!("killed before operation {operation}"));
        disk.power_cycle(&mut rng);
        check(&disk, plan, &expected, promised, &format!("no power at operation {operation}"));
    }
}

/// Entries with values of some length.
fn large(first: LogIndex, last: LogIndex) -> LogBatch {
    let put = |index: LogIndex| {
        let op = WriteOp::Put(Put {
            key: Bytes::from(format!("large {index}")),
            value: Bytes::from(vec![b'v'; 16 * 1024]),
            tells_previous: false,
        });
        command(index, op)
    };
    LogBatch { entries: (first..=last).map(put).collect(), ..LogBatch::default() }
}

fn command(index: LogIndex, op: WriteOp) -> LogEntry {
    let request = RequestId {
        client: ClientId(1),
        sequence: index,
        answered_below: index,
        begun: Timestamp::ZERO,
    };
    LogEntry { term: 1, index, data: Command::write(Timestamp(index as i64), request, op).encode() }
}

#[test]
fn a_full_disk_has_room_for_removals_and_for_a_start_and_then_waits_for_room() {
    const DISK_BYTES: usize = 8 * 1024 * 1024;
    let disk = SimDisk::new();
    let full_at = |bytes| Faults { disk_bytes_max: Some(bytes), ..Faults::default() };
    disk.set_faults(full_at(DISK_BYTES));
    let mut data_dir = self::data_dir(&disk).unwrap();
    let Storage { mut log, mut machine, .. } =
        storage::open(&mut data_dir, options(), Redundancy::Alone).unwrap();
    assert_eq!(data_dir.reserve().space(), DiskSpace::Ample);
    let mut last = 0;
    let mut seen = BTreeSet::new();
    while !data_dir.reserve().check().unwrap().is_full() {
        last += 1;
        log.append(&[large(last, last)]).unwrap();
        machine.apply(&large(last, last).entries).unwrap();
        machine.checkpoint().unwrap();
        log.compact(last).unwrap();
        seen.insert(data_dir.reserve().space());
        assert!(last < 1000, "never full");
    }
    assert!(seen.contains(&DiskSpace::Low), "no warning came: {seen:?}");

    // Others take what is left. Removing goes on, and so does a start.
    let used_bytes = DISK_BYTES - disk.space().unwrap().free_bytes as usize;
    disk.set_faults(full_at(used_bytes));
    for index in last + 1..=last + 5 {
        let op = WriteOp::Del(Del {
            key: Bytes::from(format!("large {}", index - last)),
            tells_previous: false,
            keeps_history: false,
        });
        let entry = command(index, op);
        log.append(&[LogBatch { entries: vec![entry.clone()], ..LogBatch::default() }]).unwrap();
        machine.apply(&[entry]).unwrap();
        machine.checkpoint().unwrap();
    }
    last += 5;
    assert!(data_dir.reserve().check().unwrap().is_full());
    drop((log, machine, data_dir));
    let mut data_dir = self::data_dir(&disk).unwrap();
    let Storage { mut log, mut machine, recovered } =
        storage::open(&mut data_dir, options(), Redundancy::Alone).unwrap();
    assert_eq!((recovered.last_index, recovered.applied.index), (last, last));
    assert!(data_dir.reserve().space().is_full());

    // With nothing left of the reserve a write waits; it goes on when there is room.
    let waiting = std::thread::spawn(move || {
        for index in last + 1..=last + 100 {
            log.append(&[large(index, index)]).unwrap();
            machine.apply(&large(index, index).entries).unwrap();
        }
        (log, machine)
    });
    while data_dir.reserve().space() != DiskSpace::Exhausted {
        std::thread::yield_now();
        data_dir.reserve().check().unwrap();
    }
    assert!(!waiting.is_finished());
    disk.set_faults(full_at(4 * DISK_BYTES));
    let (mut log, _machine) = waiting.join().unwrap();
    while data_dir.reserve().check().unwrap() > DiskSpace::Low {}

    // What would wait fails once the server stops.
    disk.set_faults(full_at(0));
    data_dir.reserve().close();
    let last = log.reader().bounds().1;
    let failed = (1..=100).find_map(|more| log.append(&[large(last + more, last + more)]).err());
    assert!(failed.is_some_and(|error| error.to_string().contains("no storage space")));
}

#[test]
fn a_lagging_server_stopped_at_any_moment_starts_again() {
    check_every_moment(Plan { applied: 8, checkpoint: 5 });
}

#[test]
fn a_blank_server_stopped_at_any_moment_starts_again() {
    check_every_moment(Plan { applied: 0, checkpoint: 0 });
}

/// What is found damaged, or gone, when a server of a group starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Store,
    Log,
    Both,
    /// The log's files are not there any more.
    LogLost,
}

/// Flips a bit of the store, always the same one.
fn flip_store(disk: &SimDisk) {
    disk.flip("store/MANIFEST", 17, 3);
}

/// A server that has taken in a snapshot, and what is damaged of it.
fn damaged(damage: Damage) -> SimDisk {
    let disk = SimDisk::new();
    let mut promised = Promised::default();
    live(&disk, Plan { applied: 8, checkpoint: 5 }, &Expected::new(SNAPSHOT), &mut promised)
        .unwrap();
    // A store that a clean end has left.
    drop(open(&disk).unwrap());
    if matches!(damage, Damage::Store | Damage::Both) {
        flip_store(&disk);
    }
    let names = disk.files().into_iter().map(|(name, _)| name);
    for name in names.filter(|name| name.starts_with("log/")) {
        match damage {
            Damage::Store => {}
            Damage::Log | Damage::Both => disk.flip(&name, 30, 3),
            Damage::LogLost => disk.remove(&name).unwrap(),
        }
    }
    disk.directory("log").unwrap().sync().unwrap();
    disk.sync().unwrap();
    disk
}

fn open_in_a_group(disk: &SimDisk) -> Result<Storage, Box<dyn Error>> {
    Ok(storage::open(&mut data_dir(disk)?, options(), Redundancy::Replicated)?)
}

/// Whether some file whose name begins so holds this text.
fn is_on(disk: &SimDisk, name: &str, text: &str) -> bool {
    let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    disk.files().iter().any(|(found, bytes)| found.starts_with(name) && holds(bytes))
}

fn check_rebuilding(disk: &SimDisk, damage: Damage, moment: &str) {
    for round in 0..3 {
        let storage = open_in_a_group(disk).unwrap_or_else(|error| panic!("{moment}: {error}"));
        let recovered = storage.recovered;
        let log_is_sound = damage == Damage::Store;
        assert_eq!(recovered.store_lost, log_is_sound, "{moment}");
        assert_eq!(recovered.data_lost, !log_is_sound, "{moment}: who founds a group?");
        assert_eq!(recovered.hard_state.admitted, log_is_sound, "{moment}");
        assert_eq!(recovered.last_index, if log_is_sound { LAST } else { 0 }, "{moment}");
        assert!(is_on(disk, "store", "value 290"), "{moment}, start {round}: the store is lost");
        assert!(
            damage == Damage::LogLost || is_on(disk, "log", "value 302"),
            "{moment}, start {round}: the log is lost"
        );
        drop((storage.log, storage.machine));
        // The disk fails on: the blank store is damaged, too.
        flip_store(disk);
    }
}

fn check_every_moment_of_rebuilding(damage: Damage) {
    let seed = std::env::var("ACERVO_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("ACERVO_SEED is a number"));
    println!("replay with ACERVO_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let damaged = damaged(damage);
    for operation in 1.. {
        let disk = damaged.copy();
        disk.set_faults(Faults { stop_at_operation: Some(operation), ..Faults::default() });
        if open_in_a_group(&disk).is_ok() {
            assert!(operation > 10, "{damage:?}: only {operation} moments");
            return check_rebuilding(&damaged, damage, &format!("{damage:?}"));
        }
        let cut = disk.copy();
        cut.restart();
        let moment = format!("{damage:?}, killed before operation {operation}");
        check_rebuilding(&cut, damage, &moment);
        disk.power_cycle(&mut rng);
        let moment = format!("{damage:?}, no power at operation {operation}");
        check_rebuilding(&disk, damage, &moment);
    }
}

#[test]
fn a_damaged_store_outlasts_every_moment_of_its_rebuilding() {
    check_every_moment_of_rebuilding(Damage::Store);
}

#[test]
fn a_damaged_log_and_its_store_outlast_every_moment_of_a_new_beginning() {
    check_every_moment_of_rebuilding(Damage::Log);
    check_every_moment_of_rebuilding(Damage::Both);
}

#[test]
fn the_store_of_a_lost_log_outlasts_every_moment_of_a_new_beginning() {
    check_every_moment_of_rebuilding(Damage::LogLost);
}

/// What the group has refuted looks sound. Only the verdict tells, so it has to outlast a kill at
/// any moment between it and the rebuilding.
fn check_every_moment_of_a_verdict(verdict: Untrusted) {
    let seed = std::env::var("ACERVO_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("ACERVO_SEED is a number"));
    println!("replay with ACERVO_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let sound = damaged(Damage::Store);
    flip_store(&sound);
    // The server runs, is judged, ends, sets aside, and starts again.
    let live = |disk: &SimDisk, set_down: &mut bool| -> Result<(), Box<dyn Error>> {
        let mut data_dir = data_dir(disk)?;
        let storage = storage::open(&mut data_dir, options(), Redundancy::Replicated)?;
        data_dir.verdicts().set_down(verdict)?;
        *set_down = true;
        drop(storage);
        data_dir.set_aside(verdict)?;
        storage::open(&mut data_dir, options(), Redundancy::Replicated)?;
        Ok(())
    };
    let mut kept = 0;
    for operation in 1.. {
        let disk = sound.copy();
        disk.set_faults(Faults { stop_at_operation: Some(operation), ..Faults::default() });
        let mut set_down = false;
        let through = live(&disk, &mut set_down).is_ok();
        let cut = disk.copy();
        cut.restart();
        disk.power_cycle(&mut rng);
        for (disk, how) in [(cut, "killed before"), (disk, "no power at")] {
            let moment = format!("{verdict:?}, {how} operation {operation}");
            for round in 0..2 {
                let storage = open_in_a_group(&disk).unwrap_or_else(|e| panic!("{moment}: {e}"));
                let recovered = storage.recovered;
                let is_blank = recovered.last_index == 0;
                // It may have become durable just before the kill.
                let trusted = !recovered.store_lost && !recovered.data_lost;
                assert!(!(set_down && trusted), "{moment}, start {round}: it is trusted again");
                if !trusted {
                    assert_eq!(is_blank, verdict == Untrusted::Everything, "{moment}");
                    assert_eq!(recovered.data_lost, is_blank, "{moment}: who founds a group?");
                    assert!(is_on(&disk, "store.damaged", "value 290"), "{moment}: it is kept");
                    assert!(!is_blank || is_on(&disk, "log.damaged", "value 302"), "{moment}");
                }
                kept += usize::from(trusted);
            }
        }
        if through {
            assert!(kept > 10 && operation > 10, "only {operation} moments");
            return;
        }
        assert!(operation < 1_000, "it never gets through");
    }
}

#[test]
fn a_verdict_outlasts_every_moment_from_when_it_is_durable_until_it_is_carried_out() {
    check_every_moment_of_a_verdict(Untrusted::Store);
    check_every_moment_of_a_verdict(Untrusted::State);
    check_every_moment_of_a_verdict(Untrusted::Everything);
}

#[test]
fn a_verdict_is_never_taken_back_by_a_lesser_one() {
    let disk = damaged(Damage::Store);
    flip_store(&disk);
    let verdicts = data_dir(&disk).unwrap().verdicts();
    for verdict in [Untrusted::Store, Untrusted::Everything, Untrusted::Store] {
        verdicts.set_down(verdict).unwrap();
    }
    let data_dir = data_dir(&disk).unwrap();
    assert_eq!(data_dir.untrusted(), Some(Untrusted::Everything));
    drop(data_dir);
    for _ in 0..2 {
        assert!(open_in_a_group(&disk).unwrap().recovered.data_lost);
        assert_eq!(self::data_dir(&disk).unwrap().untrusted(), None);
    }
}

/// A disk that damages whatever is put on it does not fill up, and nothing is thrown away for that.
#[test]
fn too_many_damaged_stores_are_refused() {
    let disk = damaged(Damage::Store);
    let refused = (0..20).find_map(|_| {
        let opened = open_in_a_group(&disk).map(drop);
        if opened.is_ok() {
            flip_store(&disk);
        }
        opened.err()
    });
    let error = refused.expect("there is a limit").to_string();
    assert!(error.contains("was found damaged 8 times"), "{error}");
    assert!(is_on(&disk, "store.damaged", "value 290"));
}

#[test]
fn what_was_set_aside_goes_when_the_server_is_whole_and_its_log_is_not_taken_for_anothers() {
    let disk = damaged(Damage::Log);
    {
        let Storage { mut log, recovered, .. } = open_in_a_group(&disk).unwrap();
        assert!(recovered.data_lost);
        let hard_state = HardState { term: 3, vote: Some(NodeId(1)), commit: 2, admitted: true };
        let batch = LogBatch { hard_state: Some(hard_state), ..entries(1, 2) };
        log.append(&[batch]).unwrap();
    }
    for _ in 0..2 {
        assert!(!open_in_a_group(&disk).unwrap().recovered.data_lost);
        assert!(!disk.list().unwrap().iter().any(|name| name.contains("damaged")));
    }
    // Nothing is left but the word that there was something.
    for name in disk.list().unwrap() {
        if ["log", "store"].contains(&name.as_str()) {
            let directory = disk.directory(&name).unwrap();
            directory.list().unwrap().iter().for_each(|name| directory.remove(name).unwrap());
        }
    }
    let alone = open(&disk).map(drop).unwrap_err().to_string();
    assert!(alone.contains("both were lost"), "{alone}");
    assert!(open_in_a_group(&disk).unwrap().recovered.data_lost);
}

/// A storage that cannot be read for a moment has not changed what is on it.
#[test]
fn a_read_that_fails_ends_the_start_and_sets_nothing_aside() {
    let whole = damaged(Damage::Store);
    flip_store(&whole);
    whole.set_faults(Faults::default());
    let recovered = open_in_a_group(&whole).unwrap().recovered;
    let reads = whole.reads();
    assert!(!recovered.store_lost && reads > 5, "{reads} reads");
    for read in 1..=reads {
        let disk = whole.copy();
        disk.set_faults(Faults { fail_read: Some(read), ..Faults::default() });
        if let Err(error) = open_in_a_group(&disk).map(drop) {
            let error = error.to_string();
            assert!(error.contains("the disk failed to read"), "read {read}: {error}");
        }
        let left = disk.list().unwrap();
        assert!(!left.iter().any(|name| name.contains("damaged")), "read {read}: {left:?}");
        disk.restart();
        let again = open_in_a_group(&disk).unwrap().recovered;
        assert_eq!(again.applied, recovered.applied, "read {read}");
        assert_eq!((again.store_lost, again.last_index), (false, LAST), "read {read}");
    }
}

#[test]
fn a_staged_snapshot_that_does_not_fit_the_log_is_not_adopted() {
    let disk = SimDisk::new();
    let mut data_dir = data_dir(&disk).unwrap();
    {
        let mut log = storage::open(&mut data_dir, options(), Redundancy::Alone).unwrap().log;
        log.reset(SNAPSHOT, 1, HardState::default()).unwrap();
    }
    let expected = Expected::new(SNAPSHOT - 1);
    let mut sink = SnapshotSink::create(data_dir.staging(), expected.point(SNAPSHOT - 1)).unwrap();
    expected.chunks.iter().for_each(|chunk| sink.push(chunk).unwrap());
    drop(sink.finish().unwrap());
    let Err(error) = storage::open(&mut data_dir, options(), Redundancy::Alone) else {
        panic!("opened without its store")
    };
    assert!(matches!(error, StorageError::StoreLost { first: 301, applied: 0 }), "{error}");
}
