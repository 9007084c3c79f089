//! What the store needs of an embedded engine: ordered rows of bytes, atomic batches, consistent
//! scans. Small on purpose, so that engines can be exchanged and compared.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::keys::RowRange;
use crate::limits::ShrinkLimits;

/// When a batch must be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Some time later: visible at once, durable with the next [`Durable`](Durability::Durable)
    /// batch. Lost, with everything since that batch, when the engine closes before.
    Lazy,
    /// When [`Engine::write`] returns, and every batch before it as well.
    Durable,
}

/// In which order a scan visits rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Reverse,
}

/// How many rows have been dealt with, for whoever has to tell work that is long from work that is stuck. Clones count
/// together.
#[derive(Clone, Debug, Default)]
pub struct Steps(Arc<AtomicU64>);

impl Steps {
    /// Counts a row that has been made, or that the engine has taken.
    pub fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there have been.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Changes that become visible, and durable, together. The last change to a row counts. Kept in key
/// order, in which engines insert fastest.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    rows: BTreeMap<Bytes, Option<Bytes>>,
    steps: Steps,
}

impl WriteBatch {
    /// An empty one, whose rows are counted as they are taken from it.
    pub fn counted(steps: Steps) -> WriteBatch {
        WriteBatch { rows: BTreeMap::new(), steps }
    }

    /// Sets a row.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.rows.insert(key, Some(value));
    }

    /// Removes a row.
    pub fn delete(&mut self, key: Bytes) {
        self.rows.insert(key, None);
    }

    /// The changes in key order: the new value, or `None` for a removed row.
    pub fn rows(&self) -> impl Iterator<Item = (&Bytes, Option<&Bytes>)> {
        self.rows.iter().inspect(|_| self.steps.step()).map(|(key, value)| (key, value.as_ref()))
    }

    /// The changes within a range, in key order.
    pub fn range(
        &self,
        range: &RowRange,
    ) -> impl DoubleEndedIterator<Item = (&Bytes, Option<&Bytes>)> {
        let bounds = (Bound::Included(&range.start), Bound::Excluded(&range.end));
        // The standard map panics on a range the wrong way round; here it is empty.
        let rows = (range.start < range.end).then(|| self.rows.range::<Bytes, _>(bounds));
        rows.into_iter().flatten().map(|(key, value)| (key, value.as_ref()))
    }

    /// What the batch says of a row: nothing, a new value, or `Some(None)` for a removed row.
    #[cfg(any(test, feature = "internals"))]
    pub fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.rows.get(key).map(Option::as_ref)
    }
}

/// Why an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine's file could not be opened.
    #[error(
        "cannot open the store {path}: {detail}; see what the system says of the file, and start the \
         server again"
    )]
    Open {
        /// The file.
        path: String,
        /// Why.
        detail: String,
    },
    /// The operating system refused something else to do with the engine's file. Whether a batch that
    /// could not be written took effect is unknown.
    #[error(
        "cannot {action} {path}: {detail}; make room on the disk, or check it, and start the server \
         again"
    )]
    File {
        /// A verb.
        action: &'static str,
        /// To what.
        path: String,
        /// Why.
        detail: String,
    },
    /// The engine could not read. That need not be damage: the storage may have been away.
    #[error("cannot read the store: {0}; check the disk, and start the server again")]
    Read(String),
    /// What is in the engine's file is not what was written. Everything fails with this from now on.
    #[error("the store {path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: String,
        /// What, and where.
        detail: String,
    },
}

/// How far a check of the engine's file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where it goes on, at the same block while a write is under way; `None` at the end of the file.
    pub next_block: Option<u64>,
}

/// Called for each row with key and value, until it breaks.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An ordered key-value engine. Reads may come from any thread, at any time; each read sees the
/// state between two batches, never a part of one.
pub trait Engine: Send + Sync {
    /// One row's value.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits the rows of a range, all as of one moment, until the visitor breaks. A range whose
    /// ends are the wrong way round is empty. Writing meanwhile neither waits nor shows.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError>;

    /// The rows as they are at this moment.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn view(&self) -> Result<Box<dyn EngineView>, EngineError>;

    /// Applies a batch. Batches come from one thread.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`]; after it the engine should be written to no more.
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError>;

    /// The rows that it holds, pending lazy batches included. Known without reading anything.
    fn rows(&self) -> u64;

    /// Reads a piece of the engine's file again, past every cache of the engine, and checks what is known
    /// of it. What was neither read nor written through this engine is not known: a scan comes first.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`].
    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError>;

    /// Gives room back to the disk, a bounded step at a time, on the thread that writes; whether there is more
    /// to do. Reading and writing go on in between, and what the engine holds stays as it is. When there is no
    /// room on the disk for that, nothing is done.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`]; [`EngineError::File`] when it is not known what a crash would find.
    fn shrink(&self, limits: &ShrinkLimits) -> Result<bool, EngineError> {
        let _ = limits;
        Ok(false)
    }

    /// Gives up what [`shrink`](Engine::shrink) has begun: there is too much else to do.
    fn stop_shrinking(&self) {}

    /// About how much can be written before the engine's file takes more of the disk.
    fn reusable_bytes(&self) -> u64 {
        0
    }
}

/// The rows of one moment, however long it is kept and whatever is written meanwhile. It keeps what
/// it needs of the engine, which may be dropped before it.
pub trait EngineView: Send {
    /// Visits the rows of a range until the visitor breaks. A range whose ends are the wrong way
    /// round is empty.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError>;
}
