//! The sending end of a snapshot: rows of a read view of the store, chunk by chunk.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::SnapshotChunk;
use super::chunk::ChunkBuilder;
use crate::model::AppliedPoint;
use crate::storage::apply::ApplyError;
use crate::storage::engine::{Direction, EngineView};
use crate::storage::keys::{self, RowRange};

/// A snapshot that is being sent. May be used on any thread; the state machine goes on meanwhile.
pub struct SnapshotSource {
    view: Box<dyn EngineView>,
    point: AppliedPoint,
    /// The range of the rows that are not sent yet.
    left: RowRange,
    next_sequence: u64,
}

impl std::fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotSource")
            .field("point", &self.point)
            .field("next_sequence", &self.next_sequence)
            .finish_non_exhaustive()
    }
}

impl SnapshotSource {
    /// Begins at the first row of `view`, which is of the state at `point`, sessions included.
    pub(in crate::storage) fn new(view: Box<dyn EngineView>, point: AppliedPoint) -> Self {
        SnapshotSource { view, point, left: keys::all(), next_sequence: 0 }
    }

    /// The state that is being sent.
    pub fn point(&self) -> AppliedPoint {
        self.point
    }

    /// Returns the next chunk, of at most `bytes_max` bytes unless a single row is larger; `None`
    /// after the last. It reads from the disk, so it must not be called on the event loop.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`].
    pub fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<SnapshotChunk>, ApplyError> {
        let mut chunk = ChunkBuilder::default();
        self.view.scan(&self.left, Direction::Forward, &mut |key, value| {
            if !chunk.is_empty() && !chunk.has_room(key, value, bytes_max) {
                return ControlFlow::Break(());
            }
            chunk.put(key, value);
            ControlFlow::Continue(())
        })?;
        if chunk.is_empty() {
            return Ok(None);
        }
        // The least key after the last one sent.
        self.left.start = Bytes::from([chunk.last_key(), &[0]].concat());
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Ok(Some(SnapshotChunk { sequence, data: chunk.finish(sequence) }))
    }
}
