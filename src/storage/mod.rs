//! Everything durable: the Raft log, the store of versions, and the guard of the data directory.
//!
//! Two durable structures and one rule between them. The *log* ([`log::DiskLog`]) is synced once a
//! batch, before anything is acknowledged. The *store* ([`apply::StateMachine`] over an
//! [`engine::Engine`]) is the result of applying the log up to the applied index. Its batches are
//! not synced one by one: a crash takes it back to its last durable seal, with versions, sessions
//! and applied index together. Rule: the log is kept from the last durable seal on, so at start the
//! entries after it are applied again ([`open`]).
//!
//! Invariants:
//!
//! - Everything that was acknowledged is in the log. Everything in the store is in the log or was
//!   before the log's first entry.
//! - A failed write or sync is final: nothing is written after it, and it is not retried.
//! - Damage is found by checksums, named, and refused. Only a torn tail of the log, which was never
//!   acknowledged, is cut off. Where there are other servers, damaged data is set aside: without
//!   its store a server waits for a snapshot, without its log it starts as a blank one.
//!
//! A server that the other servers' logs do not reach back to receives a [`snapshot`], which
//! replaces log and store together; [`open`] completes or undoes an installation that a crash
//! interrupted.
//!
//! What it leaves out: when to write, sync, checkpoint and compact (the drivers decide), and the
//! transport of snapshots between servers.

pub mod apply;
mod changes;
pub mod datadir;
pub mod engine;
pub mod feed;
pub mod files;
#[cfg(test)]
mod formats;
mod garbage_collection;
mod hash;
pub mod keys;
mod leases;
pub mod log;
mod log_clock;
#[cfg(any(test, feature = "internals"))]
pub mod memory;
mod newest;
mod queue_front;
pub mod reads;
pub mod recent;
mod removals;
pub mod reserve;
mod row_buffer;
mod rows;
mod sessions;
mod set_aside;
pub mod snapshot;
pub mod tables;
mod txn_reads;
mod varint;
mod version_row;
mod versions;

use std::path::PathBuf;
use std::sync::Arc;

use crate::limits;
use crate::model::{AppliedPoint, LogEntry, LogIndex, Recovered, StateLimits};
use apply::{ApplyError, StateMachine};
use datadir::{DataDir, DataDirError, Untrusted};
use engine::Engine;
use log::{DiskLog, LogError, LogOptions, RecoveredLog};
use snapshot::{DiskStaging, StagingArea};
use tables::TableEngine;

/// Why a server's storage could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The log could not be opened or read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store could not be opened or read.
    #[error(transparent)]
    State(#[from] ApplyError),
    /// The damaged data could not be set aside.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store is ahead of the log: acknowledged entries are lost.
    #[error("the log ends at entry {last} and the store has applied {applied}: the log was lost")]
    LogLost {
        /// The log's last index.
        last: LogIndex,
        /// The store's applied index.
        applied: LogIndex,
    },
    /// The store does not reach up to the log's first entry: it was lost.
    #[error(
        "the log starts at entry {first} and the store has applied {applied}: the store was lost"
    )]
    StoreLost {
        /// The log's first index.
        first: LogIndex,
        /// The store's applied index.
        applied: LogIndex,
    },
    /// Log and store are blank in the data directory of a server that had both.
    #[error(
        "{} holds neither the log nor the store that this server had: both were lost",
        path.display()
    )]
    AllLost { path: PathBuf },
}

impl StorageError {
    fn is_lost_or_damaged_log(&self) -> bool {
        match self {
            StorageError::LogLost { .. } => true,
            StorageError::Log(error) => error.is_damage(),
            _ => false,
        }
    }

    fn is_damaged_store(&self) -> bool {
        matches!(self, StorageError::State(error) if error.is_damage())
    }
}

/// Whether lost data can be restored from other servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redundancy {
    /// This server is the whole group: damaged data is refused, and left as it is.
    Alone,
    /// Other servers hold the same data and can rebuild this one.
    Replicated,
}

/// The open storage of a server.
pub struct Storage {
    /// The writer of the log, for the log's thread; [`DiskLog::reader`] returns readers.
    pub log: DiskLog,
    /// The state machine, for the applier's thread; [`StateMachine::store`] returns readers.
    pub machine: StateMachine,
    /// The durable state that the core starts from.
    pub recovered: Recovered,
}

/// Opens the log and the store of a data directory, and checks that they fit together. A staged
/// snapshot replaces the store if the log starts after the store's applied index, and is removed
/// otherwise.
///
/// In a group of more than one, a damaged store is set aside and the log stays
/// ([`Recovered::store_lost`], unless the log reaches back to the beginning). If the log is
/// damaged, or ends before the applied index, log and store are set aside and the server starts as
/// a blank one.
///
/// # Errors
///
/// The errors of log, store and data directory, and those of log and store that do not fit
/// together.
pub fn open(
    data_dir: &mut DataDir,
    options: LogOptions,
    redundancy: Redundancy,
) -> Result<Storage, StorageError> {
    if let Some(untrusted) = data_dir.untrusted() {
        ::log::error!(
            "{} when this server ended, and not yet set aside: that is done now, and the other \
             servers bring this one up to date",
            match untrusted {
                Untrusted::Store => "the store was found damaged",
                Untrusted::State => "the state was refuted",
                Untrusted::Everything => "log and store were refuted or found damaged",
            }
        );
        data_dir.set_aside(untrusted)?;
    }
    // The store and the log can each be set aside once, whichever is found damaged first.
    for _ in 0..2 {
        match open_once(data_dir, options.clone(), redundancy) {
            Err(error) if redundancy == Redundancy::Alone => return Err(error),
            Err(error) if error.is_damaged_store() => {
                ::log::error!(
                    "{error}; it is set aside, and rebuilt from the log or the other servers"
                );
                data_dir.set_store_aside()?;
            }
            Err(error) if error.is_lost_or_damaged_log() => {
                ::log::error!(
                    "{error}; log and store are set aside, and this server starts as a blank one, \
                     which the others bring up to date"
                );
                data_dir.begin_anew()?;
            }
            other => return other,
        }
    }
    open_once(data_dir, options, redundancy)
}

fn open_once(
    data_dir: &mut DataDir,
    options: LogOptions,
    redundancy: Redundancy,
) -> Result<Storage, StorageError> {
    let log_dir = data_dir
        .directory()
        .directory(data_dir.log_name())
        .map_err(|source| LogError::Io { action: "open", path: data_dir.log_dir(), source })?;
    let (log, found) = DiskLog::open_on(log_dir, options)?;
    let staging = data_dir.staging();
    let engine = staging.open_store().map_err(ApplyError::from)?;
    let engine = finish_installation(&staging, engine, &found)?;
    let source = match data_dir.rebuilds_state() {
        true => StateSource::Others,
        false => StateSource::Log,
    };
    let mut storage = assemble(log, found, engine, redundancy, source)?;
    let Recovered { store_lost, hard_state, data_lost, .. } = &mut storage.recovered;
    *data_lost = data_dir.was_admitted() && !hard_state.admitted;
    if *data_lost && redundancy == Redundancy::Alone {
        return Err(StorageError::AllLost { path: data_dir.path().to_path_buf() });
    }
    if !*store_lost && hard_state.admitted {
        data_dir.is_whole()?;
    }
    Ok(storage)
}

/// Completes or undoes the installation of a snapshot. The log shows how far it had come: it was
/// reset for the snapshot if and only if it starts after the store's applied index.
fn finish_installation(
    staging: &DiskStaging,
    store: TableEngine,
    found: &RecoveredLog,
) -> Result<Arc<dyn Engine>, ApplyError> {
    staging.remove_leftovers();
    let applied = apply::stored_point(&store)?.index;
    if applied + 1 < found.first_index
        && let Some((staged, staged_index)) = open_staged(staging)?
        && (found.first_index - 1..=found.last_index).contains(&staged_index)
    {
        ::log::warn!("finishing the installation of a snapshot of entry {staged_index}");
        drop((store, staged));
        let engine = staging.promote()?;
        staging.remove_leftovers();
        return Ok(engine);
    }
    staging.remove_staged()?;
    Ok(Arc::new(store))
}

/// The staged snapshot and its index; `None` also if it is found damaged, at whichever step.
fn open_staged(staging: &DiskStaging) -> Result<Option<(TableEngine, LogIndex)>, ApplyError> {
    let open = || -> Result<Option<(TableEngine, LogIndex)>, ApplyError> {
        let Some(staged) = staging.open_staged()? else { return Ok(None) };
        let index = apply::stored_point(&staged)?.index;
        Ok(Some((staged, index)))
    };
    match open() {
        Err(error) if error.is_damage() => {
            ::log::warn!("a snapshot that was to be installed is thrown away: {error}");
            Ok(None)
        }
        opened => opened,
    }
}

/// Where a state comes from that is not in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateSource {
    /// From the log, if it reaches back far enough.
    Log,
    /// From the other servers: the one that was here before was refuted, and the log may be what
    /// made it wrong.
    Others,
}

/// Combines an open log and an engine: checks that they fit together, and reads the entries that
/// the store has not applied.
///
/// # Errors
///
/// As [`open`].
pub fn assemble(
    log: DiskLog,
    found: RecoveredLog,
    engine: Arc<dyn Engine>,
    redundancy: Redundancy,
    source: StateSource,
) -> Result<Storage, StorageError> {
    let machine = StateMachine::open(engine, StateLimits::default())?;
    let mut applied = machine.applied();
    if applied.index > found.last_index {
        return Err(StorageError::LogLost { last: found.last_index, applied: applied.index });
    }
    // A store that has applied something holds the snapshot that came from the others.
    let refuted = source == StateSource::Others && applied.index == 0;
    let store_lost = refuted || applied.index + 1 < found.first_index;
    if store_lost {
        if redundancy == Redundancy::Alone {
            let (first, applied) = (found.first_index, applied.index);
            return Err(StorageError::StoreLost { first, applied });
        }
        // The snapshot to come contains the entries up to here.
        let index = found.hard_state.commit.clamp(found.first_index - 1, found.last_index);
        applied = AppliedPoint { index, ..AppliedPoint::default() };
    }
    let entries = read_after(&log, applied.index, found.last_index)?;
    let mut hard_state = found.hard_state;
    // The commit index is written with a delay; applied entries were committed.
    hard_state.commit = hard_state.commit.max(applied.index);
    let recovered = Recovered {
        hard_state,
        first_index: found.first_index,
        previous_term: found.previous_term,
        term_runs: found.term_runs,
        last_index: found.last_index,
        entries,
        applied,
        summary: machine.summary(),
        leases: machine.leases()?,
        store_lost,
        // Filled in by the caller, from the data directory.
        data_lost: false,
    };
    Ok(Storage { log, machine, recovered })
}

/// Reads the entries after `applied` into memory: checkpoints keep them few.
fn read_after(log: &DiskLog, applied: LogIndex, last: LogIndex) -> Result<Vec<LogEntry>, LogError> {
    let reader = log.reader();
    let mut entries = Vec::new();
    let mut next = applied + 1;
    while next <= last {
        let read = reader.read(next, last + 1, limits::APPLY_BYTES_MAX)?;
        next += read.len() as u64;
        entries.extend(read);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::model::{
        ClientId, ClusterId, Command, HardState, LogBatch, NodeId, Put, RequestId, Timestamp,
        WriteOp,
    };

    fn put(index: LogIndex) -> LogEntry {
        let request = RequestId {
            client: ClientId(1),
            sequence: index,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op = WriteOp::Put(Put {
            key: Bytes::from("k"),
            value: Bytes::from(index.to_string()),
            tells_previous: false,
        });
        let timestamp = Timestamp(index as i64);
        LogEntry { term: 1, index, data: Command::write(timestamp, request, op).encode() }
    }

    fn data_dir(dir: &TempDir) -> DataDir {
        DataDir::open(dir.path(), ClusterId(1), NodeId(1), 7).unwrap()
    }

    fn options() -> LogOptions {
        LogOptions { segment_bytes: 64 * 1024, zero_fill_bytes: 4096, ..LogOptions::default() }
    }

    #[test]
    fn a_server_finds_everything_again_and_replays_from_its_checkpoint() {
        let dir = TempDir::new().unwrap();
        let entries: Vec<LogEntry> = (1..=9).map(put).collect();
        let hard_state = HardState { term: 1, vote: Some(NodeId(1)), commit: 2, admitted: true };
        let before = {
            let mut data_dir = data_dir(&dir);
            let mut storage = open(&mut data_dir, options(), Redundancy::Alone).unwrap();
            assert_eq!(storage.recovered.last_index, 0);
            let batch =
                LogBatch { number: 1, hard_state: Some(hard_state), entries: entries.clone() };
            storage.log.append(&[batch]).unwrap();
            storage.machine.apply(&entries[..5]).unwrap();
            storage.machine.checkpoint().unwrap();
            storage.machine.apply(&entries[5..7]).unwrap();
            storage.machine.applied()
        };
        let mut data_dir = data_dir(&dir);
        let mut storage = open(&mut data_dir, options(), Redundancy::Alone).unwrap();
        assert_eq!(storage.recovered.applied.index, 5);
        assert_eq!(storage.recovered.entries, entries[5..]);
        assert_eq!(storage.recovered.hard_state, HardState { commit: 5, ..hard_state });
        storage.machine.apply(&storage.recovered.entries[..2]).unwrap();
        assert_eq!(storage.machine.applied(), before);
    }

    #[test]
    fn a_lost_log_is_refused() {
        let dir = TempDir::new().unwrap();
        {
            let mut data_dir = data_dir(&dir);
            let mut storage = open(&mut data_dir, options(), Redundancy::Alone).unwrap();
            let entries = vec![put(1), put(2)];
            storage.machine.apply(&entries).unwrap();
            storage.machine.checkpoint().unwrap();
            storage.log.append(&[LogBatch { entries, ..LogBatch::default() }]).unwrap();
        }
        let lost = self::data_dir(&dir);
        std::fs::remove_dir_all(lost.log_dir()).unwrap();
        drop(lost);
        let mut data_dir = self::data_dir(&dir);
        let error = match open(&mut data_dir, options(), Redundancy::Alone) {
            Ok(_) => panic!("opened without its log"),
            Err(error) => error,
        };
        assert!(matches!(error, StorageError::LogLost { last: 0, applied: 2 }), "{error}");
        let incarnation = data_dir.incarnation();
        let storage = open(&mut data_dir, options(), Redundancy::Replicated).unwrap();
        assert_eq!(storage.recovered.last_index, 0, "it begins anew");
        assert!(!storage.recovered.hard_state.admitted && !storage.recovered.store_lost);
        assert_ne!(
            data_dir.incarnation(),
            incarnation,
            "the others must tell it from the former one"
        );
    }

    /// Damages every table of a store.
    fn rot(store: &std::path::Path) {
        for file in std::fs::read_dir(store).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "table") {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes.iter_mut().for_each(|byte| *byte ^= 1);
                std::fs::write(&path, bytes).unwrap();
            }
        }
    }

    /// A server with nine entries of which the store has applied seven; the log begins with
    /// `first`.
    fn storage_from(dir: &TempDir, first: LogIndex) {
        let entries: Vec<LogEntry> = (1..=9).map(put).collect();
        let hard_state = HardState { term: 1, vote: Some(NodeId(1)), commit: 8, admitted: true };
        let mut data_dir = data_dir(dir);
        let mut storage = open(&mut data_dir, options(), Redundancy::Replicated).unwrap();
        storage.machine.apply(&entries[..7]).unwrap();
        storage.machine.checkpoint().unwrap();
        if first > 1 {
            storage.log.reset(first - 1, 1, hard_state).unwrap();
        }
        let entries = entries[first as usize - 1..].to_vec();
        let batch = LogBatch { number: 1, hard_state: Some(hard_state), entries };
        storage.log.append(&[batch]).unwrap();
    }

    #[test]
    fn a_damaged_store_comes_back_from_a_log_that_has_everything() {
        let dir = TempDir::new().unwrap();
        storage_from(&dir, 1);
        let mut data_dir = data_dir(&dir);
        rot(&data_dir.store_dir());
        let error = open(&mut data_dir, options(), Redundancy::Alone).map(drop).unwrap_err();
        assert!(error.is_damaged_store(), "{error}");
        let storage = open(&mut data_dir, options(), Redundancy::Replicated).unwrap();
        assert!(!storage.recovered.store_lost);
        assert_eq!((storage.recovered.applied.index, storage.recovered.entries.len()), (0, 9));
    }

    /// A server did not start any more, because a folder cannot be removed as a file is.
    #[test]
    fn a_folder_in_a_store_keeps_no_server_from_being_rebuilt() {
        let dir = TempDir::new().unwrap();
        storage_from(&dir, 1);
        let mut data_dir = data_dir(&dir);
        std::fs::create_dir(data_dir.store_dir().join("lost+found")).unwrap();
        rot(&data_dir.store_dir());
        for _ in 0..2 {
            let storage = open(&mut data_dir, options(), Redundancy::Replicated).unwrap();
            assert!(!storage.recovered.store_lost);
        }
        let aside = dir.path().join("store.damaged");
        let left = std::fs::read_dir(aside).unwrap().map(|file| file.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["lost+found"]);
    }

    /// The log may be what made it wrong: it once came back the same, and nobody was warned.
    #[test]
    fn a_refuted_state_does_not_come_back_from_the_log_that_made_it() {
        let dir = TempDir::new().unwrap();
        storage_from(&dir, 1);
        let mut data_dir = data_dir(&dir);
        data_dir.set_aside(Untrusted::State).unwrap();
        for _ in 0..2 {
            let Recovered { store_lost, hard_state, applied, last_index, .. } =
                open(&mut data_dir, options(), Redundancy::Replicated).unwrap().recovered;
            assert!(store_lost && hard_state.admitted);
            assert_eq!((hard_state.vote, applied.index, last_index), (Some(NodeId(1)), 8, 9));
        }
        // The snapshot has come: the log begins anew after it, and the store holds it.
        {
            let mut storage = open(&mut data_dir, options(), Redundancy::Replicated).unwrap();
            let hard_state =
                HardState { term: 1, vote: Some(NodeId(1)), commit: 9, admitted: true };
            storage.log.reset(9, 1, hard_state).unwrap();
            storage.machine.apply(&(1..=9).map(put).collect::<Vec<_>>()).unwrap();
            storage.machine.checkpoint().unwrap();
        }
        let storage = open(&mut data_dir, options(), Redundancy::Replicated).unwrap();
        assert!(!storage.recovered.store_lost);
        assert_eq!(storage.recovered.applied.index, 9);
        drop(storage);
        // From now on it is a store like any other.
        rot(&data_dir.store_dir());
        let storage = open(&mut data_dir, options(), Redundancy::Replicated).unwrap();
        assert!(storage.recovered.store_lost && !data_dir.rebuilds_state());
    }

    #[test]
    fn a_damaged_store_is_waited_for_and_log_term_and_vote_stay() {
        let dir = TempDir::new().unwrap();
        storage_from(&dir, 4);
        let mut data_dir = data_dir(&dir);
        rot(&data_dir.store_dir());
        let incarnation = data_dir.incarnation();
        for _ in 0..2 {
            let Recovered { store_lost, hard_state, applied, entries, last_index, .. } =
                open(&mut data_dir, options(), Redundancy::Replicated).unwrap().recovered;
            assert!(store_lost && hard_state.admitted);
            assert_eq!((hard_state.term, hard_state.vote, last_index), (1, Some(NodeId(1)), 9));
            assert_eq!((applied.index, entries.len()), (8, 1));
            assert!(dir.path().join("store.damaged").exists(), "kept until it is rebuilt");
        }
        assert_eq!(data_dir.incarnation(), incarnation);
        let error = open(&mut data_dir, options(), Redundancy::Alone).map(drop).unwrap_err();
        assert!(matches!(error, StorageError::StoreLost { first: 4, applied: 0 }), "{error}");
    }

    #[test]
    fn a_damaged_log_makes_a_blank_server() {
        let dir = TempDir::new().unwrap();
        storage_from(&dir, 4);
        let mut data_dir = data_dir(&dir);
        let segments = std::fs::read_dir(data_dir.log_dir()).unwrap();
        let segments: Vec<_> = segments.map(|entry| entry.unwrap().path()).collect();
        for segment in &segments {
            std::fs::write(segment, b"rotten".repeat(100)).unwrap();
        }
        assert!(open(&mut data_dir, options(), Redundancy::Alone).is_err());
        let Recovered { store_lost, hard_state, applied, last_index, .. } =
            open(&mut data_dir, options(), Redundancy::Replicated).unwrap().recovered;
        assert_eq!((store_lost, hard_state), (false, HardState::default()));
        assert_eq!((applied.index, last_index), (0, 0));
        assert!(
            dir.path().join("log.damaged").exists(),
            "kept until the others have brought it up"
        );
    }

    /// It opens, and only what is read in it shows that it is damaged; and so it was at every
    /// start.
    #[test]
    fn a_staged_snapshot_that_cannot_be_read_is_as_good_as_none() {
        let dir = TempDir::new().unwrap();
        storage_from(&dir, 4);
        let mut data_dir = data_dir(&dir);
        std::fs::remove_dir_all(data_dir.store_dir()).unwrap();
        let staged = dir.path().join("snapshot");
        {
            let engine = TableEngine::open_at(&staged).unwrap();
            let mut batch = engine::WriteBatch::default();
            batch.put(keys::meta("applied"), Bytes::from_static(b"rotten"));
            engine.write_durably(&batch).unwrap();
        }
        for _ in 0..2 {
            let recovered =
                open(&mut data_dir, options(), Redundancy::Replicated).unwrap().recovered;
            assert!(recovered.store_lost && recovered.hard_state.admitted);
            assert!(!staged.exists());
        }
    }
}
