//! The changes that entries make: a batch, the view below it, and the state's hash, kept in step.

use bytes::Bytes;

use super::engine::{EngineView, Steps, WriteBatch};
use super::hash::{StateHash, row_hash};
use super::rows::Overlay;

/// A batch that is being built.
pub(super) struct Changes<'a> {
    view: &'a dyn EngineView,
    batch: WriteBatch,
    pub hash: StateHash,
    steps: Steps,
}

impl<'a> Changes<'a> {
    /// Nothing yet, on the state of `view`, whose hash is `hash`. Each change counts as a step, and once more when the
    /// engine takes it.
    pub fn new(view: &'a dyn EngineView, hash: StateHash, steps: Steps) -> Changes<'a> {
        Changes { view, batch: WriteBatch::counted(steps.clone()), hash, steps }
    }

    /// The rows as they would be with the changes so far.
    pub fn rows(&self) -> Overlay<'_> {
        Overlay { view: self.view, batch: &self.batch }
    }

    /// Sets a row that is not there.
    pub fn put(&mut self, row: Bytes, value: Bytes) {
        self.steps.step();
        self.hash.add(state_row_hash(&row, &value));
        self.batch.put(row, value);
    }

    /// Removes a row that is there, with this value.
    pub fn delete(&mut self, row: Bytes, value: &[u8]) {
        let hash = state_row_hash(&row, value);
        self.delete_hashed(row, hash);
    }

    /// Removes a row that is there, of which this is the [`state_row_hash`].
    pub fn delete_hashed(&mut self, row: Bytes, hash: u64) {
        self.steps.step();
        self.hash.subtract(hash);
        self.batch.delete(row);
    }

    /// Sets a fact about the store, which is no part of the hash: it follows from the other rows'
    /// history.
    pub fn note(&mut self, row: Bytes, value: Bytes) {
        self.batch.put(row, value);
    }

    pub fn into_batch(self) -> WriteBatch {
        self.batch
    }
}

/// What a row of a version or a removal adds to the state hash. A row's key ends where its encoding
/// says, so key and value together are unambiguous.
pub(super) fn state_row_hash(row: &[u8], value: &[u8]) -> u64 {
    row_hash(b"row", &[row, value])
}
