//! A [`StagingArea`] that keeps its stores in memory, for unit tests and the simulator.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::StagingArea;
use crate::storage::engine::{Engine, EngineError, StoreBuilder, WriteBatch};
use crate::storage::memory::MemoryEngine;

/// Staging in memory, for tests and simulations. Clones share their stores.
#[derive(Clone, Default)]
pub struct MemoryStaging {
    stores: Arc<Mutex<MemoryStores>>,
}

#[derive(Default)]
struct MemoryStores {
    partial: Option<Arc<MemoryEngine>>,
    staged: Option<Arc<MemoryEngine>>,
    promoted: Option<Arc<MemoryEngine>>,
}

impl MemoryStaging {
    /// Staging without any store.
    pub fn new() -> MemoryStaging {
        MemoryStaging::default()
    }

    /// The store that took the place of the one in use last.
    pub fn promoted(&self) -> Option<Arc<MemoryEngine>> {
        self.with(|stores| stores.promoted.clone())
    }

    /// The store that is complete and waits to take the place of the one in use.
    pub fn staged(&self) -> Option<Arc<MemoryEngine>> {
        self.with(|stores| stores.staged.clone())
    }

    /// Whether a store is under construction.
    pub fn is_building(&self) -> bool {
        self.with(|stores| stores.partial.is_some())
    }

    fn with<T>(&self, step: impl FnOnce(&mut MemoryStores) -> T) -> T {
        // Each step is an assignment or two.
        step(&mut self.stores.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct MemoryBuilder {
    engine: Arc<MemoryEngine>,
    rows: WriteBatch,
}

impl StoreBuilder for MemoryBuilder {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.rows.put(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        self.engine.fill(&self.rows);
        Ok(())
    }
}

impl StagingArea for MemoryStaging {
    fn begin(&self) -> Result<Box<dyn StoreBuilder>, EngineError> {
        let engine = Arc::new(MemoryEngine::new());
        self.with(|stores| stores.partial = Some(engine.clone()));
        Ok(Box::new(MemoryBuilder { engine, rows: WriteBatch::default() }))
    }

    fn complete(&self) -> Result<(), EngineError> {
        self.with(|stores| stores.staged = stores.partial.take());
        Ok(())
    }

    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let staged = self.with(|stores| {
            stores.promoted = stores.staged.take();
            stores.promoted.clone()
        });
        match staged {
            Some(engine) => Ok(engine),
            None => Err(EngineError::Read("no snapshot is staged".to_owned())),
        }
    }

    fn abandon(&self) {
        self.with(|stores| stores.partial = None);
    }

    fn discard(&self) {
        self.with(|stores| stores.staged = None);
    }
}
