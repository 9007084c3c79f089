//! The changes of entries that are being applied: a batch, the read view below it, the hash of the
//! state, and the removals of ranges that are pending. Hash and removals are updated with each
//! change.
//!
//! Change rows are no part of the hash: they follow from the versions, one from each, and whoever
//! receives a snapshot compares the two (`snapshot::sink`).

use std::sync::Arc;

use bytes::Bytes;

use super::apply::ApplyError;
use super::engine::{EngineView, Steps, WriteBatch};
use super::hash::{StateHash, row_hash};
use super::keys;
use super::leases::{self, ChangedLeases};
use super::newest::NewestVersions;
use super::queue_front::QueueFront;
use super::removals::RangeRemoval;
use super::row_buffer::RowBuffer;
use super::rows::{Overlay, ViewRows};
use super::version_row::StoredVersion;
use super::versions::Reader;
use crate::model::{KeyState, Timestamp};

/// A row that is to be deleted, its [`state_row_hash`], and the length of its value, which is not
/// kept once it is hashed.
pub(super) struct HashedRow {
    pub row: Bytes,
    pub hash: u64,
    pub value_bytes: usize,
}

impl HashedRow {
    pub fn new(row: &[u8], value: &[u8]) -> HashedRow {
        let hash = state_row_hash(row, value);
        HashedRow { row: Bytes::copy_from_slice(row), hash, value_bytes: value.len() }
    }
}

/// A batch under construction.
pub(super) struct Changes<'a> {
    view: &'a dyn EngineView,
    batch: WriteBatch,
    pub hash: StateHash,
    ranges: Arc<Vec<RangeRemoval>>,
    /// Where the queued removals begin, with the changes so far.
    pub front: QueueFront,
    /// Leases, but for their keys, are changed here, and in their rows when the batch is whole.
    pub leases: ChangedLeases,
    /// The keys of versions and of their change rows are made here.
    buffer: &'a mut RowBuffer,
    steps: Steps,
}

impl<'a> Changes<'a> {
    /// No changes yet, to the state of `view`, whose hash is `hash` and which has the rows of
    /// `ranges`. Each change counts as a step, and again when the engine takes it; so does each row
    /// that is looked at.
    pub fn new(
        view: &'a dyn EngineView,
        hash: StateHash,
        ranges: Arc<Vec<RangeRemoval>>,
        front: QueueFront,
        buffer: &'a mut RowBuffer,
        steps: Steps,
    ) -> Changes<'a> {
        let batch = WriteBatch::counted(steps.clone());
        let leases = ChangedLeases::default();
        Changes { view, batch, hash, ranges, front, leases, buffer, steps }
    }

    /// The rows as they would be with the changes so far.
    pub fn rows(&self) -> Overlay<'_> {
        Overlay { view: self.view, batch: &self.batch, steps: &self.steps }
    }

    /// The removals of ranges as they would be with the changes so far.
    pub fn ranges(&self) -> &Arc<Vec<RangeRemoval>> {
        &self.ranges
    }

    /// The newest version of a key before the one of `row`, which is of the time of the changes
    /// that are being made. What the batch has not changed is `known` from before it, or else read.
    pub fn newest(
        &self,
        key: &[u8],
        row: &Bytes,
        known: &NewestVersions,
    ) -> Result<Option<KeyState>, ApplyError> {
        let is_of_key = |other: &[u8]| keys::version_prefix(other) == keys::version_prefix(row);
        let changed = self.batch.first_from(row).filter(|(changed, _)| is_of_key(changed));
        let newest = match changed {
            Some((row, Some(stored))) => {
                let damaged = |_| ApplyError::Damaged("a version");
                let version = keys::version_timestamp(row).map_err(damaged)?;
                match StoredVersion::decode(stored, version)? {
                    StoredVersion::Value { facts, .. } => Some(KeyState { version, facts }),
                    StoredVersion::Tombstone { .. } => None,
                }
            }
            // Garbage collection has deleted versions of it, and the newest may be in the view.
            Some((_, None)) => {
                return Reader::newest(&self.rows(), &self.ranges).state_from(key, row.clone());
            }
            None => match known.state(key) {
                Some(state) => Some(state),
                None => {
                    self.steps.step();
                    let view = ViewRows(self.view);
                    return Reader::newest(&view, &self.ranges).state_from(key, row.clone());
                }
            },
        };
        let mut ranges = self.ranges.iter();
        Ok(newest.filter(|state| !ranges.any(|r| state.version < r.at && r.covers(key))))
    }

    /// Adds the removal of a range, which must be later than all others.
    pub fn add_range(&mut self, range: RangeRemoval) {
        let last = self.ranges.last().map(|last| last.at);
        assert!(last < Some(range.at), "a range is removed at {} after {last:?}", range.at);
        self.put(keys::range(range.at), range.encode());
        Arc::make_mut(&mut self.ranges).push(range);
    }

    /// Replaces the removal of a range, which must exist, by that of what is left of the range, or
    /// by none.
    pub fn replace_range(&mut self, range: &RangeRemoval, rest: Option<RangeRemoval>) {
        let found = self.ranges.iter().position(|pending| pending == range);
        let Some(position) = found else { panic!("{range:?} is not pending") };
        self.delete(keys::range(range.at), &range.encode());
        let ranges = Arc::make_mut(&mut self.ranges);
        ranges.remove(position);
        if let Some(rest) = rest {
            assert!(rest.at == range.at, "{rest:?} is no part of {range:?}");
            ranges.insert(position, rest.clone());
            self.put(keys::range(rest.at), rest.encode());
        }
    }

    /// Adds the row by which a removal is found in order of time.
    pub fn put_queued(&mut self, at: Timestamp, key: &[u8]) {
        self.front.queued(at);
        self.put(keys::queued(at, key), Bytes::new());
    }

    /// The row of a version of a key.
    pub fn version_row(&mut self, at: Timestamp, key: &[u8]) -> Bytes {
        self.buffer.row(|out| keys::put_version(key, at, out))
    }

    /// Adds the row of a version of a key, or of its tombstone, and its change row.
    pub fn put_version(&mut self, at: Timestamp, key: &[u8], row: Bytes, stored: Bytes) {
        self.put(row, stored);
        self.steps.step();
        let row = self.buffer.row(|out| keys::put_change(at, key, out));
        self.batch.insert_last(row, Bytes::new());
    }

    /// Removes a version of a key, or its tombstone, and its change row.
    pub fn delete_version(&mut self, at: Timestamp, key: &[u8], hashed: HashedRow) {
        self.steps.step();
        self.batch.remove(keys::change(at, key), 0);
        self.delete_hashed(hashed);
    }

    /// Adds a row, which must not exist.
    pub fn put(&mut self, row: Bytes, value: Bytes) {
        debug_assert!(
            !matches!(self.batch.get(&row), Some(Some(_))),
            "{row:?} is added twice: the state's hash would be wrong"
        );
        self.steps.step();
        self.hash.add(state_row_hash(&row, &value));
        self.batch.insert(row, value);
    }

    /// Removes a row, which must exist with this value.
    pub fn delete(&mut self, row: Bytes, value: &[u8]) {
        let (hash, value_bytes) = (state_row_hash(&row, value), value.len());
        self.delete_hashed(HashedRow { row, hash, value_bytes });
    }

    /// Removes a row, which must exist as it was hashed.
    pub fn delete_hashed(&mut self, hashed: HashedRow) {
        let HashedRow { row, hash, value_bytes } = hashed;
        debug_assert!(
            !matches!(self.batch.get(&row), Some(None)),
            "{row:?} is removed twice: the state's hash would be wrong"
        );
        self.steps.step();
        self.hash.subtract(hash);
        self.batch.remove(row, value_bytes);
    }

    /// Sets a fact about the store. It is not part of the hash, because it follows from the history
    /// of the other rows.
    pub fn note(&mut self, row: Bytes, value: Bytes) {
        self.batch.put(row, value);
    }

    /// The whole batch, and the hash of the state with it.
    pub fn into_batch(mut self) -> (WriteBatch, StateHash) {
        leases::write_changed(&mut self);
        (self.batch, self.hash)
    }
}

/// The hash that a row of a version or a removal contributes to the state hash. The encoding of a
/// key is self-delimiting, so key and value together are unambiguous.
pub(super) fn state_row_hash(row: &[u8], value: &[u8]) -> u64 {
    row_hash(b"row", &[row, value])
}
