//! The versions of keys: one row each, newest first.
//!
//! Changes go into the batch that is being built; reads for them see through it to the engine as of
//! before the batch.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::apply::ApplyError;
use super::engine::{Direction, Engine, EngineError, EngineView, WriteBatch};
use super::hash::{StateHash, row_hash};
use super::keys;
use crate::types::Timestamp;

/// The newest version of a key, in one seek.
pub(super) fn newest(
    engine: &dyn Engine,
    key: &[u8],
) -> Result<Option<(Timestamp, Bytes)>, ApplyError> {
    let mut found = None;
    engine.scan(&keys::versions(key), Direction::Forward, &mut |row, value| {
        found = Some(
            keys::version_timestamp(row)
                .map(|timestamp| (timestamp, Bytes::copy_from_slice(value))),
        );
        ControlFlow::Break(())
    })?;
    found.transpose().map_err(|_| ApplyError::Damaged("a version"))
}

/// Stores a new version.
pub(super) fn put(
    batch: &mut WriteBatch,
    hash: &mut StateHash,
    key: &[u8],
    timestamp: Timestamp,
    value: &Bytes,
) {
    let row = keys::version(key, timestamp);
    hash.add(version_hash(&row, value));
    batch.put(row, value.clone());
}

/// Removes every version; whether there was any.
pub(super) fn delete(
    view: &dyn EngineView,
    batch: &mut WriteBatch,
    hash: &mut StateHash,
    key: &[u8],
) -> Result<bool, EngineError> {
    let range = keys::versions(key);
    let mut removed = Vec::new();
    let stored = batch.range(&range).filter_map(|(row, value)| Some((row, value?)));
    for (row, value) in stored {
        hash.subtract(version_hash(row, value));
        removed.push(row.clone());
    }
    view.scan(&range, Direction::Forward, &mut |row, value| {
        if batch.get(row).is_none() {
            hash.subtract(version_hash(row, value));
            removed.push(Bytes::copy_from_slice(row));
        }
        ControlFlow::Continue(())
    })?;
    let existed = !removed.is_empty();
    for row in removed {
        batch.delete(row);
    }
    Ok(existed)
}

/// What a version adds to the state hash. A row's key ends where its encoding says, so key and value
/// together are unambiguous.
pub(super) fn version_hash(row: &[u8], value: &[u8]) -> u64 {
    row_hash(b"version", &[row, value])
}
