//! Reading the store, from any thread, while it is written.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::{ApplyError, Shared};
use super::engine::Direction;
use super::keys::{self, RowRange};
use super::rows::ViewRows;
use super::upkeep::Horizon;
pub use super::versions::PageLimits;
use super::versions::Reader;
use crate::model::{AppliedPoint, PageNext, PageOf, Row, Timestamp};

/// A reader's handle: cheap to clone, for any thread.
///
/// A read sees the state between two applied batches. To know which: load
/// [`applied`](Store::applied) *before* reading (the state read is at least that new), and
/// [`applying_timestamp`](Store::applying_timestamp) *after* (it is at most that new).
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// A piece of a longer read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The rows, in the order asked for.
    pub rows: Vec<Row>,
    /// Where the next one begins.
    pub next: Option<PageNext>,
}

/// Which state a page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// As of this version.
    pub at: Timestamp,
    /// With the removals up to here; not before `at`.
    pub seen: Timestamp,
    /// It goes on, or looks back: what it should show must still be there.
    pub strict: bool,
}

/// Why a page cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// What it should show has been removed for good.
    #[error("what was to be read has been removed for good meanwhile: begin the read again")]
    Expired,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] ApplyError),
}

impl Store {
    pub(super) fn new(shared: Arc<Shared>) -> Store {
        Store { shared }
    }

    /// The newest version of a key.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`] and [`ApplyError::Damaged`].
    #[cfg(any(test, feature = "internals"))]
    pub fn get(&self, key: &[u8]) -> Result<Option<(Timestamp, Bytes)>, ApplyError> {
        self.get_at(key, Timestamp(i64::MAX))
    }

    /// The newest version of a key that is not newer than `at`.
    ///
    /// # Errors
    ///
    /// As [`get`](Store::get).
    pub fn get_at(
        &self,
        key: &[u8],
        at: Timestamp,
    ) -> Result<Option<(Timestamp, Bytes)>, ApplyError> {
        let (view, pending) = self.shared.view()?;
        Reader::new(&ViewRows(&*view), at, Timestamp(i64::MAX), pending)?.get(key)
    }

    /// A page of a longer read.
    ///
    /// # Errors
    ///
    /// Any [`PageError`].
    pub fn page(&self, of: &PageOf, sight: Sight, most: PageLimits) -> Result<Page, PageError> {
        let (view, pending) = self.shared.view().map_err(ApplyError::from)?;
        let rows = ViewRows(&*view);
        let Sight { at, seen, strict } = sight;
        if strict {
            // Of a key's versions those swept are past the history kept, and not missing.
            let at = if matches!(of, PageOf::Versions { .. }) { seen } else { at };
            let far_back = self.shared.looks_far_back(at, seen);
            if Horizon::read(&rows)?.is_past(at, seen, far_back) {
                return Err(PageError::Expired);
            }
        }
        let reader = Reader::new(&rows, at, seen, pending)?
            .stepping(self.shared.limits().versions_stepped_max);
        match of {
            PageOf::Range { from, to } => {
                let found = reader.range(from, to, most)?;
                Ok(Page { rows: found.rows, next: found.next.map(PageNext::From) })
            }
            PageOf::RangeReverse { from, to } => {
                let found = reader.range_reverse(from, to, most)?;
                Ok(Page { rows: found.rows, next: found.next.map(PageNext::To) })
            }
            PageOf::Keys { keys } => Ok(keys_page(&reader, keys, most)?),
            PageOf::Versions { key } => {
                let (rows, next) = reader.versions(key, most)?;
                Ok(Page { rows, next: next.map(PageNext::At) })
            }
        }
    }

    /// Reads rows from `from` on, about `bytes_max` of them, so that every page they lie in is
    /// checked; where to go on.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`].
    pub fn scrub_rows(&self, from: &Bytes, bytes_max: usize) -> Result<Option<Bytes>, ApplyError> {
        let (view, _) = self.shared.view()?;
        let range = RowRange { start: from.clone(), end: keys::all().end };
        let (mut bytes, mut next) = (0, None);
        view.scan(&range, Direction::Forward, &mut |key, value| {
            if bytes >= bytes_max {
                next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            bytes += key.len() + value.len();
            ControlFlow::Continue(())
        })?;
        Ok(next)
    }

    /// Reads blocks of the engine's file again that were read or written before; where to go on.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`].
    pub fn scrub_blocks(&self, from: u64, blocks: u64) -> Result<Option<u64>, ApplyError> {
        Ok(self.shared.engine().scrub(from, blocks)?.next_block)
    }

    /// Rows of the store, each version of each key among them: an upper bound of the number of
    /// keys, known without looking for them.
    pub fn rows(&self) -> u64 {
        self.shared.engine().rows()
    }

    /// A lower bound of the state that any later read sees: set after a batch became visible.
    pub fn applied(&self) -> AppliedPoint {
        self.shared.applied()
    }

    /// An upper bound of the state that any earlier read saw: set before a batch becomes visible.
    pub fn applying_timestamp(&self) -> Timestamp {
        self.shared.applying_timestamp()
    }

    /// How many rows the state machine has dealt with since the process began: it rises while a
    /// long entry is applied.
    pub fn steps(&self) -> u64 {
        self.shared.steps()
    }
}

fn keys_page(reader: &Reader<'_>, keys: &[Bytes], limits: PageLimits) -> Result<Page, ApplyError> {
    let mut rows = Vec::new();
    let (mut bytes, mut scanned) = (0, 0);
    for key in keys {
        let is_enough = rows.len() >= limits.rows || scanned > limits.scan_bytes;
        let found = reader.get_with(key, |value| {
            scanned += value.len();
            Bytes::copy_from_slice(limits.shown(value))
        })?;
        let (timestamp, value) = match found {
            Some((timestamp, value)) => (timestamp, Some(value)),
            None => (Timestamp::ZERO, None),
        };
        bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        if !rows.is_empty() && (is_enough || bytes > limits.bytes) {
            // As many as there are rows, which a frame's worth of keys bounds.
            return Ok(Page { next: Some(PageNext::Skip(rows.len() as u32)), rows });
        }
        rows.push(Row { key: key.clone(), value, timestamp });
    }
    Ok(Page { rows, next: None })
}
