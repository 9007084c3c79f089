//! An engine in memory, for tests and simulations, with the effect that a crash has on one on disk,
//! and with values out of line where that has them.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::engine::{
    Direction, Engine, EngineError, EngineView, RowValue, RowVisitor, Scrubbed, ShowRow,
    WriteBatch, head_of,
};
use super::keys::RowRange;

/// Longer values are out of line, as they are in tables.
const LONG_VALUE_BYTES: usize = 4 * 1024;

type Rows = Arc<BTreeMap<Bytes, Bytes>>;

/// Rows in a sorted map. Readers take a reference to the whole map, which the next write then
/// copies: simple and consistent, for small states.
#[derive(Default)]
pub struct MemoryEngine {
    state: Mutex<MemoryState>,
}

#[derive(Default)]
struct MemoryState {
    visible: Rows,
    durable: Rows,
    durable_mark: Option<u64>,
}

impl MemoryEngine {
    /// An engine without rows.
    pub fn new() -> MemoryEngine {
        MemoryEngine::default()
    }

    /// Has this engine, without rows so far, hold these as if it had been opened with them.
    pub fn fill(&self, rows: &WriteBatch) {
        let mut state = self.state();
        let rows = rows.rows().filter_map(|(key, value)| Some((key.clone(), value?.clone())));
        state.durable = Arc::new(rows.collect());
        state.visible = state.durable.clone();
    }

    /// Has the effect of a power loss: everything since the last seal is lost.
    pub fn crash(&self) {
        let mut state = self.state();
        state.visible = state.durable.clone();
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        // No method leaves the state inconsistent where it can panic, so a poisoned lock is
        // ignored.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state().visible.get(key).cloned())
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        Ok(Box::new(MemoryView { rows: self.state().visible.clone() }))
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        let mut state = self.state();
        let rows = Arc::make_mut(&mut state.visible);
        for (key, value) in batch.rows() {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(())
    }

    fn seal(&self, batch: &WriteBatch, mark: u64) -> Result<(), EngineError> {
        self.write(batch)?;
        let mut state = self.state();
        state.durable = state.visible.clone();
        state.durable_mark = Some(mark);
        Ok(())
    }

    fn durable(&self) -> Option<u64> {
        self.state().durable_mark
    }

    fn flush(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn rows(&self) -> u64 {
        self.state().visible.len() as u64
    }

    fn scrub(&self, _from_block: u64, _blocks: u64) -> Result<Scrubbed, EngineError> {
        Ok(Scrubbed { next_block: None })
    }
}

struct MemoryView {
    rows: Rows,
}

impl EngineView for MemoryView {
    fn newest_in_memory(
        &self,
        range: &RowRange,
        show: &mut ShowRow<'_>,
    ) -> Result<(), EngineError> {
        // All of it is in memory, also what an engine on a disk would keep elsewhere.
        self.newest(range, &mut |key, value| match self.rows.get(key) {
            Some(value) => show(key, RowValue::Inline(value)),
            None => show(key, value),
        })
    }

    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        if range.start >= range.end {
            return Ok(());
        }
        let bounds = (Bound::Included(&range.start), Bound::Excluded(&range.end));
        let rows = self.rows.range::<Bytes, _>(bounds);
        let mut visit = |(key, value): (&Bytes, &Bytes)| {
            if value.len() <= LONG_VALUE_BYTES {
                return visit(key, RowValue::Inline(value));
            }
            let read = || Ok(value.to_vec());
            let (bytes, head) = (value.len(), head_of(value));
            visit(key, RowValue::OutOfLine { bytes, head, read: &read })
        };
        let _: ControlFlow<()> = match direction {
            Direction::Forward => rows.into_iter().try_for_each(&mut visit),
            Direction::Reverse => rows.rev().try_for_each(&mut visit),
        };
        Ok(())
    }
}
