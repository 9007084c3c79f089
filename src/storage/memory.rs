//! An engine in memory, for tests and simulations, with the effect that a crash has on one on disk,
//! and with values out of line where that has them.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::engine::{
    Direction, Durability, Engine, EngineError, EngineView, RowValue, RowVisitor, Scrubbed,
    WriteBatch,
};
use super::keys::RowRange;
use super::pieces;

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
}

impl MemoryEngine {
    /// An engine without rows.
    pub fn new() -> MemoryEngine {
        MemoryEngine::default()
    }

    /// Has the effect of a power loss: everything since the last durable batch is lost.
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

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        let mut state = self.state();
        let rows = Arc::make_mut(&mut state.visible);
        for (key, value) in batch.rows() {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        if durability == Durability::Durable {
            state.durable = state.visible.clone();
        }
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
            if !pieces::is_long(key.len(), value.len()) {
                return visit(key, RowValue::Inline(value));
            }
            let read = || Ok(value.to_vec());
            visit(key, RowValue::OutOfLine { bytes: value.len(), read: &read })
        };
        let _: ControlFlow<()> = match direction {
            Direction::Forward => rows.into_iter().try_for_each(&mut visit),
            Direction::Reverse => rows.rev().try_for_each(&mut visit),
        };
        Ok(())
    }
}
