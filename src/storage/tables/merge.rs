//! A cursor over memory tables and runs together: of rows with equal keys the newest source counts.
//!
//! The sources stand in a binary heap by the key that each is at, and by age where keys are equal.
//! So a row that newer sources have, too, is met right behind the newest, and stepped over. Deleted
//! rows are shown as such: a merge needs them, and a view leaves them out.
//!
//! What it leaves out: which sources there are, and that older ones are not left out if newer ones
//! are in.

use std::cmp::Ordering;

use super::block::TableValue;
use super::memory_table::MemoryCursor;
use super::run::RunCursor;
use crate::storage::engine::{Direction, EngineError};

pub(super) enum MergeSource {
    Memory(MemoryCursor),
    Run(RunCursor),
}

impl MergeSource {
    fn key(&self) -> Option<&[u8]> {
        match self {
            MergeSource::Memory(cursor) => cursor.key(),
            MergeSource::Run(cursor) => cursor.key(),
        }
    }

    fn row(&self) -> Option<(&[u8], TableValue<'_>)> {
        match self {
            MergeSource::Memory(cursor) => cursor.row(),
            MergeSource::Run(cursor) => cursor.row(),
        }
    }

    fn advance(&mut self) -> Result<(), EngineError> {
        match self {
            MergeSource::Memory(cursor) => {
                cursor.advance();
                Ok(())
            }
            MergeSource::Run(cursor) => cursor.advance(),
        }
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), EngineError> {
        match self {
            MergeSource::Memory(cursor) => {
                cursor.seek(key);
                Ok(())
            }
            MergeSource::Run(cursor) => cursor.seek(key),
        }
    }
}

pub(super) struct MergeCursor {
    direction: Direction,
    /// In the order of time, the newest first.
    sources: Vec<MergeSource>,
    /// Sources that are at a row, by number: a heap with the next row at its top.
    heap: Vec<usize>,
}

impl MergeCursor {
    /// Puts sources together, the newest first, which are cursors over one range in one direction.
    pub fn new(sources: Vec<MergeSource>, direction: Direction) -> MergeCursor {
        let heap = (0..sources.len()).filter(|source| sources[*source].key().is_some()).collect();
        let mut cursor = MergeCursor { direction, sources, heap };
        cursor.order();
        cursor
    }

    /// Makes a heap of the sources in it.
    fn order(&mut self) {
        for position in (0..self.heap.len() / 2).rev() {
            self.sift_down(position);
        }
    }

    /// The row that the cursor is at, in its newest state; `None` at the end of the range.
    pub fn row(&self) -> Option<(&[u8], TableValue<'_>)> {
        self.heap.first().and_then(|source| self.sources[*source].row())
    }

    /// Goes to the next row. After an error the cursor is not used any more.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn advance(&mut self) -> Result<(), EngineError> {
        // Older states of the same row are at the second place of the heap, one after the other.
        while let Some(second) = self.second()
            && self.key(0) == self.key(second)
        {
            self.advance_at(second)?;
        }
        if self.heap.is_empty() { Ok(()) } else { self.advance_at(0) }
    }

    /// Goes to the first row that is not before a key, in ascending order. After an error the
    /// cursor is not used any more.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn seek(&mut self, key: &[u8]) -> Result<(), EngineError> {
        let MergeCursor { sources, heap, .. } = self;
        let mut failed = Ok(());
        heap.retain(|source| {
            let source = &mut sources[*source];
            if failed.is_ok() && source.key().is_some_and(|at| at < key) {
                failed = source.seek(key);
            }
            source.key().is_some()
        });
        failed?;
        self.order();
        Ok(())
    }

    /// The position of the source that comes after the one at the top.
    fn second(&self) -> Option<usize> {
        match self.heap.len() {
            0 | 1 => None,
            2 => Some(1),
            _ => Some(if self.comes_before(1, 2) { 1 } else { 2 }),
        }
    }

    fn advance_at(&mut self, position: usize) -> Result<(), EngineError> {
        let source = &mut self.sources[self.heap[position]];
        source.advance()?;
        if source.key().is_none() {
            // What comes here from the end is behind the parent of this place: that is the top.
            self.heap.swap_remove(position);
        }
        self.sift_down(position);
        Ok(())
    }

    fn sift_down(&mut self, mut position: usize) {
        loop {
            let mut first = position;
            for child in [2 * position + 1, 2 * position + 2] {
                if child < self.heap.len() && self.comes_before(child, first) {
                    first = child;
                }
            }
            if first == position {
                return;
            }
            self.heap.swap(position, first);
            position = first;
        }
    }

    fn key(&self, position: usize) -> &[u8] {
        self.sources[self.heap[position]].key().unwrap_or_default()
    }

    fn comes_before(&self, one: usize, other: usize) -> bool {
        let by_key = self.key(one).cmp(self.key(other));
        let by_key = match self.direction {
            Direction::Forward => by_key,
            Direction::Reverse => by_key.reverse(),
        };
        by_key.then_with(|| self.heap[one].cmp(&self.heap[other])) == Ordering::Less
    }
}

#[cfg(test)]
mod tests;
