//! The changes of entries that are being applied: a batch, the read view below it, and the hash of
//! the state, which is updated with each change.

use bytes::Bytes;

use super::engine::{EngineView, Steps, WriteBatch};
use super::hash::{StateHash, row_hash};
use super::rows::Overlay;

/// A batch under construction.
pub(super) struct Changes<'a> {
    view: &'a dyn EngineView,
    batch: WriteBatch,
    pub hash: StateHash,
    steps: Steps,
}

impl<'a> Changes<'a> {
    /// No changes yet, to the state of `view`, whose hash is `hash`. Each change counts as a step,
    /// and again when the engine takes it.
    pub fn new(view: &'a dyn EngineView, hash: StateHash, steps: Steps) -> Changes<'a> {
        Changes { view, batch: WriteBatch::counted(steps.clone()), hash, steps }
    }

    /// The rows as they would be with the changes so far.
    pub fn rows(&self) -> Overlay<'_> {
        Overlay { view: self.view, batch: &self.batch }
    }

    /// Adds a row, which must not exist.
    pub fn put(&mut self, row: Bytes, value: Bytes) {
        debug_assert!(
            !matches!(self.batch.get(&row), Some(Some(_))),
            "{row:?} is added twice: the state's hash would be wrong"
        );
        self.steps.step();
        self.hash.add(state_row_hash(&row, &value));
        self.batch.put(row, value);
    }

    /// Removes a row, which must exist with this value.
    pub fn delete(&mut self, row: Bytes, value: &[u8]) {
        let hash = state_row_hash(&row, value);
        self.delete_hashed(row, hash);
    }

    /// Removes a row, which must exist with this [`state_row_hash`].
    pub fn delete_hashed(&mut self, row: Bytes, hash: u64) {
        debug_assert!(
            !matches!(self.batch.get(&row), Some(None)),
            "{row:?} is removed twice: the state's hash would be wrong"
        );
        self.steps.step();
        self.hash.subtract(hash);
        self.batch.delete(row);
    }

    /// Sets a fact about the store. It is not part of the hash, because it follows from the history
    /// of the other rows.
    pub fn note(&mut self, row: Bytes, value: Bytes) {
        self.batch.put(row, value);
    }

    pub fn into_batch(self) -> WriteBatch {
        self.batch
    }
}

/// The hash that a row of a version or a removal contributes to the state hash. The encoding of a
/// key is self-delimiting, so key and value together are unambiguous.
pub(super) fn state_row_hash(row: &[u8], value: &[u8]) -> u64 {
    row_hash(b"row", &[row, value])
}
