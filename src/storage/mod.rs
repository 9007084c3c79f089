//! Everything durable: the Raft log, the versions, the guard of the data directory.
//!
//! Two files of truth and one rule between them. The *log* ([`log::DiskLog`]) is synced once a
//! batch, before anything is acknowledged. The *store* ([`apply::StateMachine`] over an
//! [`engine::Engine`]) is what the log says up to the applied index; its batches are lazy, and a
//! crash takes it back to its last checkpoint, never further, versions and sessions and applied
//! index together. The rule: the log is kept from the last checkpoint on, so at start the rest is
//! applied again ([`open`]).
//!
//! Invariants:
//!
//! - What was acknowledged is in the log; what is in the store is in the log or before its start.
//! - A failed write or sync is final: nothing is written after it, nothing is retried.
//! - Damage is found by checksums, named, and refused; only a torn tail, which nobody was
//!   promised, is cut off.
//! - `redb` is named in [`disk`] and in the file below it, `checked_file`, and nowhere else.
//!
//! A server that is too far behind for the other servers' logs takes in a [`snapshot`], which replaces
//! log and store together; [`open`] finishes or undoes that when a crash cuts it short.
//!
//! What it leaves out: choosing when to write, sync, checkpoint and compact (the drivers do), carrying
//! snapshots between servers, and repair of damage.

pub mod apply;
mod changes;
mod checked_file;
pub mod datadir;
pub mod disk;
pub mod engine;
pub mod files;
mod hash;
pub mod keys;
pub mod log;
pub mod memory;
pub mod reads;
mod removals;
mod rows;
mod sessions;
pub mod snapshot;
mod upkeep;
mod versions;

use std::sync::Arc;

use crate::command::StateLimits;
use crate::limits;
use crate::node::core::Recovered;
use crate::types::{LogEntry, LogIndex};
use apply::{ApplyError, StateMachine};
use datadir::DataDir;
use disk::DiskEngine;
use engine::Engine;
use log::{DiskLog, LogError, LogOptions, RecoveredLog};
use snapshot::{DiskStaging, StagingArea};

/// Why a server's storage could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store.
    #[error(transparent)]
    State(#[from] ApplyError),
    /// The store is ahead of the log: entries that were acknowledged are gone.
    #[error(
        "the log ends at entry {last} and the store has applied {applied}: the log was lost; move \
         this server's data directory away and start it on an empty one, so that the group can \
         bring it up to date"
    )]
    LogLost {
        /// The log's last index.
        last: LogIndex,
        /// The store's applied index.
        applied: LogIndex,
    },
    /// The store is behind the log's first entry: it was lost.
    #[error(
        "the log starts at entry {first} and the store has applied {applied}: the store was lost; \
         move this server's data directory away and start it on an empty one, so that the group \
         can bring it up to date"
    )]
    StoreLost {
        /// The log's first index.
        first: LogIndex,
        /// The store's applied index.
        applied: LogIndex,
    },
}

/// A server's storage, open.
pub struct Storage {
    /// The log's writer, for the log thread; [`DiskLog::reader`] gives readers.
    pub log: DiskLog,
    /// The state machine, for the apply thread; [`StateMachine::store`] gives readers.
    pub machine: StateMachine,
    /// What the core starts from.
    pub recovered: Recovered,
}

/// Opens the log and the store of a data directory and brings them together. A staged snapshot takes
/// the store's place when the log starts after what the store holds, and is removed otherwise.
///
/// # Errors
///
/// Each part's own, and a [`StorageError`] when log and store do not meet.
pub fn open(data_dir: &DataDir, options: LogOptions) -> Result<Storage, StorageError> {
    let log_dir = data_dir
        .directory()
        .directory(data_dir.log_name())
        .map_err(|source| LogError::Io { action: "open", path: data_dir.log_dir(), source })?;
    let (log, found) = DiskLog::open_on(log_dir, options)?;
    let staging = data_dir.staging();
    let engine = staging.open_store().map_err(ApplyError::from)?;
    let engine = settle_snapshot(&staging, engine, &found)?;
    assemble(log, found, engine)
}

/// The log tells how far the installation of a snapshot had come: it was reset for one exactly when it
/// starts after what the store holds.
fn settle_snapshot(
    staging: &DiskStaging,
    store: DiskEngine,
    found: &RecoveredLog,
) -> Result<Arc<dyn Engine>, ApplyError> {
    staging.remove_partial()?;
    let applied = apply::stored_point(&store)?.index;
    if applied + 1 < found.first_index
        && let Some(staged) = staging.open_staged()?
        && let staged_index = apply::stored_point(&staged)?.index
        && (found.first_index - 1..=found.last_index).contains(&staged_index)
    {
        ::log::warn!("finishing the installation of a snapshot of entry {staged_index}");
        drop((store, staged));
        return Ok(staging.promote()?);
    }
    staging.remove_staged()?;
    Ok(Arc::new(store))
}

/// Brings an open log and an engine together: checks that they meet, and reads the entries that
/// the store has not applied.
///
/// # Errors
///
/// As [`open`].
pub fn assemble(
    log: DiskLog,
    found: RecoveredLog,
    engine: Arc<dyn Engine>,
) -> Result<Storage, StorageError> {
    let machine = StateMachine::open(engine, StateLimits::default())?;
    let applied = machine.applied();
    if applied.index > found.last_index {
        return Err(StorageError::LogLost { last: found.last_index, applied: applied.index });
    }
    if applied.index + 1 < found.first_index {
        return Err(StorageError::StoreLost { first: found.first_index, applied: applied.index });
    }
    let entries = read_after(&log, applied.index, found.last_index)?;
    let mut hard_state = found.hard_state;
    // The commit index is written lazily; what was applied was committed.
    hard_state.commit = hard_state.commit.max(applied.index);
    let recovered = Recovered {
        hard_state,
        first_index: found.first_index,
        previous_term: found.previous_term,
        term_runs: found.term_runs,
        last_index: found.last_index,
        entries,
        applied,
        upkeep: machine.upkeep(),
    };
    Ok(Storage { log, machine, recovered })
}

/// The entries after `applied`, all in memory: checkpoints keep them few.
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
    use crate::command::{Command, WriteOp};
    use crate::types::{ClientId, ClusterId, HardState, LogBatch, NodeId, RequestId, Timestamp};

    fn put(index: LogIndex) -> LogEntry {
        let request = RequestId { client: ClientId(1), sequence: index, answered_below: 1 };
        let op = WriteOp::Put { key: Bytes::from("k"), value: Bytes::from(index.to_string()) };
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
        let hard_state = HardState { term: 1, vote: 1, commit: 2, admitted: true };
        let before = {
            let data_dir = data_dir(&dir);
            let mut storage = open(&data_dir, options()).unwrap();
            assert_eq!(storage.recovered.last_index, 0);
            let batch =
                LogBatch { number: 1, hard_state: Some(hard_state), entries: entries.clone() };
            storage.log.append(&[batch]).unwrap();
            storage.machine.apply(&entries[..5]).unwrap();
            storage.machine.checkpoint().unwrap();
            storage.machine.apply(&entries[5..7]).unwrap();
            storage.machine.applied()
        };
        let data_dir = data_dir(&dir);
        let mut storage = open(&data_dir, options()).unwrap();
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
            let data_dir = data_dir(&dir);
            let mut storage = open(&data_dir, options()).unwrap();
            let entries = vec![put(1), put(2)];
            storage.machine.apply(&entries).unwrap();
            storage.machine.checkpoint().unwrap();
            storage.log.append(&[LogBatch { entries, ..LogBatch::default() }]).unwrap();
        }
        let data_dir = data_dir(&dir);
        std::fs::remove_dir_all(data_dir.log_dir()).unwrap();
        let error = match open(&data_dir, options()) {
            Ok(_) => panic!("opened without its log"),
            Err(error) => error,
        };
        assert!(matches!(error, StorageError::LogLost { last: 0, applied: 2 }), "{error}");
    }
}
