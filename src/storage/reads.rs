//! Reads the store, from any thread, while it is written.

use std::sync::Arc;

use bytes::Bytes;

use super::apply::{ApplyError, Shared};
use super::feed::{ChangesError, ChangesLimits, ChangesPage, changes_page};
use super::garbage_collection::Horizon;
use super::leases;
use super::newest::Newest;
use super::recent::RecentPart;
use super::removals::PendingRemovals;
use super::rows::{Rows, RowsInMemory, ViewRows};
use super::txn_reads::TxnReader;
pub use super::versions::PageLimits;
use super::versions::{Reader, shown_version};
use crate::model::{
    AppliedPoint, FeedPosition, KeyInterval, LogIndex, PageNext, PageOf, ReadView, Row, Timestamp,
    Txn, TxnAnswer, TxnLimits, Version,
};

/// A handle that reads the store: cheap to clone, for any thread.
///
/// A read sees the state between two applied batches. To bound which one, load
/// [`applied`](Store::applied) *before* reading (the state is at least that new), and
/// [`applying_timestamp`](Store::applying_timestamp) *after* (it is at most that new).
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What memory alone tells of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InMemory {
    /// The version that a read finds.
    Found(Version),
    /// A read finds none.
    Absent,
    /// Only a read by a thread that may wait tells.
    Unknown,
}

/// Reads a page of a longer read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The rows, in the order requested.
    pub rows: Vec<Row>,
    /// The position at which the next page begins; `None` after the last.
    pub next: Option<PageNext>,
}

/// Why a read is not answered.
#[derive(Debug, thiserror::Error)]
pub enum StoreReadError {
    /// Versions that it should show have been deleted.
    #[error("what was to be read has been removed for good meanwhile: begin the read again")]
    Expired,
    /// It is one as of an earlier version than the one from which on reads are answered.
    #[error(
        "what there was before version {version} has been compacted: read as of that version or a \
         later one"
    )]
    Compacted {
        /// The earliest version as of which reads go on.
        version: Timestamp,
    },
    /// The store could not be read.
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
    /// As [`get_at`](Store::get_at), but for [`StoreReadError::Compacted`].
    #[cfg(any(test, feature = "internals"))]
    pub fn get(&self, key: &[u8]) -> Result<Option<Version>, StoreReadError> {
        self.get_at(key, Timestamp(i64::MAX))
    }

    /// The newest version of a key that is not newer than `at`.
    ///
    /// # Errors
    ///
    /// [`StoreReadError::Compacted`] and [`StoreReadError::Store`].
    pub fn get_at(&self, key: &[u8], at: Timestamp) -> Result<Option<Version>, StoreReadError> {
        let permit = match self.known(key, at, usize::MAX) {
            Newest::Known(version) => return Ok(Some(version)),
            Newest::Unknown(permit) => permit,
        };
        let (view, pending) = self.shared.view().map_err(ApplyError::from)?;
        self.refuse_compacted(at)?;
        let read_view = ReadView { at, removals_up_to: Timestamp(i64::MAX) };
        let found = Reader::new(&ViewRows(&*view), read_view, pending).get(key)?;
        if let (Some(permit), Some(version)) = (permit, &found) {
            self.shared.newest.add(permit, key, version);
        }
        Ok(found)
    }

    /// Refuses a read as of a version that is compacted. To be asked when the view was taken.
    fn refuse_compacted(&self, at: Timestamp) -> Result<(), StoreReadError> {
        let version = self.shared.compacted();
        if at < version { Err(StoreReadError::Compacted { version }) } else { Ok(()) }
    }

    /// What is known without the engine, if the newest version is asked for.
    fn known(&self, key: &[u8], at: Timestamp, value_bytes_max: usize) -> Newest {
        match at {
            Timestamp(i64::MAX) => self.shared.newest.get(key, value_bytes_max),
            _ => Newest::Unknown(None),
        }
    }

    /// What [`get_at`](Store::get_at) would find, for threads that must not wait: if memory alone
    /// tells it, in the time of a look-up, and the value has no more than `value_bytes_max` bytes.
    pub fn try_get_in_memory(&self, key: &[u8], at: Timestamp, value_bytes_max: usize) -> InMemory {
        // An error is met again, and told, by whoever reads then.
        self.look_in_memory(key, at, value_bytes_max).unwrap_or(InMemory::Unknown)
    }

    fn look_in_memory(
        &self,
        key: &[u8],
        at: Timestamp,
        value_bytes_max: usize,
    ) -> Result<InMemory, StoreReadError> {
        let permit = match self.known(key, at, value_bytes_max) {
            Newest::Known(version) => return Ok(InMemory::Found(version)),
            Newest::Unknown(permit) => permit,
        };
        let (view, pending) = self.shared.view_in_memory().map_err(ApplyError::from)?;
        self.refuse_compacted(at)?;
        let read_view = ReadView { at, removals_up_to: Timestamp(i64::MAX) };
        let rows = RowsInMemory(&*view);
        let reader = Reader::new(&rows, read_view, pending);
        let found = reader.get_with(key, |value| value.read_short(value_bytes_max))?;
        Ok(match found {
            None => InMemory::Absent,
            Some((state, Some(value))) => {
                let version = shown_version(state, value);
                if let Some(permit) = permit {
                    self.shared.newest.add(permit, key, &version);
                }
                InMemory::Found(version)
            }
            Some((_, None)) => InMemory::Unknown,
        })
    }

    /// The first page of a longer read: what is in the store in this read view, of which nobody has
    /// been shown more.
    ///
    /// # Errors
    ///
    /// [`StoreReadError::Compacted`], but for a list of versions, which shows those that are left,
    /// and [`StoreReadError::Store`].
    pub fn first_page(
        &self,
        of: &PageOf,
        read_view: ReadView,
        most: PageLimits,
    ) -> Result<Page, StoreReadError> {
        let (view, pending) = self.shared.view().map_err(ApplyError::from)?;
        self.refuse_compacted_page(of, read_view)?;
        Ok(self.page_in(&ViewRows(&*view), pending, of, read_view, most)?)
    }

    /// The first page of a longer read of the newest state, which a moment ago was that as of `at`:
    /// nothing that was compacted since is missing yet.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`] and [`ApplyError::Damaged`].
    pub fn newest_page(
        &self,
        of: &PageOf,
        at: Timestamp,
        most: PageLimits,
    ) -> Result<Page, ApplyError> {
        let (view, pending) = self.shared.view()?;
        self.page_in(&ViewRows(&*view), pending, of, ReadView::as_of(at), most)
    }

    /// What a transaction that only reads tells of the state that holds every write up to `at`,
    /// which a moment ago was the newest. `None` if its comparisons look at too much.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`] and [`ApplyError::Damaged`].
    pub fn read_txn(
        &self,
        txn: &Txn,
        at: Timestamp,
        result_bytes_max: usize,
    ) -> Result<Option<TxnAnswer>, ApplyError> {
        let (view, pending) = self.shared.view()?;
        let limits = TxnLimits::of(&self.shared.limits());
        let result_bytes = limits.result_bytes.min(result_bytes_max);
        let rows = ViewRows(&*view);
        let reader = TxnReader::telling(Reader::new(&rows, ReadView::as_of(at), pending));
        txn.read(&reader, TxnLimits { result_bytes, ..limits })
    }

    /// A further page of a longer read, or one of the past. It is refused if it is one of a past
    /// that was compacted, or if versions that it should show have been deleted.
    ///
    /// # Errors
    ///
    /// Any [`StoreReadError`].
    pub fn page(
        &self,
        of: &PageOf,
        read_view: ReadView,
        most: PageLimits,
    ) -> Result<Page, StoreReadError> {
        self.page_if(of, read_view, most, || self.refuse_compacted_page(of, read_view))
    }

    /// A page of a range for a watch that is shown the state: refused only if versions that it
    /// should show have been deleted, so that compacting holds up no watch.
    ///
    /// # Errors
    ///
    /// [`StoreReadError::Expired`] and [`StoreReadError::Store`].
    pub fn page_for_watch(
        &self,
        of: &PageOf,
        read_view: ReadView,
        most: PageLimits,
    ) -> Result<Page, StoreReadError> {
        self.page_if(of, read_view, most, || Ok(()))
    }

    /// A view that shows what was the newest state is one of a read that has begun with that, or of
    /// what a write has just removed or replaced: neither has asked for the past, and the horizon
    /// says when it is gone.
    fn refuse_compacted_page(
        &self,
        of: &PageOf,
        read_view: ReadView,
    ) -> Result<(), StoreReadError> {
        if read_view.at == read_view.removals_up_to {
            return Ok(());
        }
        match of {
            // It shows the versions that are left.
            PageOf::Versions { .. } => Ok(()),
            PageOf::Range { .. }
            | PageOf::RangeReverse { .. }
            | PageOf::Keys { .. }
            | PageOf::Lease { .. } => self.refuse_compacted(read_view.at),
        }
    }

    /// A page of a view that was taken before `allowed` was asked.
    fn page_if(
        &self,
        of: &PageOf,
        read_view: ReadView,
        most: PageLimits,
        allowed: impl FnOnce() -> Result<(), StoreReadError>,
    ) -> Result<Page, StoreReadError> {
        let (view, pending) = self.shared.view().map_err(ApplyError::from)?;
        allowed()?;
        let rows = ViewRows(&*view);
        let shows = match of {
            // A list of a key's versions shows those that the history keeps, so compacted ones are
            // not missing.
            PageOf::Versions { .. } => ReadView::as_of(read_view.removals_up_to),
            PageOf::Range { .. }
            | PageOf::RangeReverse { .. }
            | PageOf::Keys { .. }
            | PageOf::Lease { .. } => read_view,
        };
        if Horizon::read(&rows)?.is_past(shows, self.shared.looks_far_back(shows)) {
            return Err(StoreReadError::Expired);
        }
        Ok(self.page_in(&rows, pending, of, read_view, most)?)
    }

    fn page_in(
        &self,
        rows: &dyn Rows,
        pending: PendingRemovals,
        of: &PageOf,
        read_view: ReadView,
        most: PageLimits,
    ) -> Result<Page, ApplyError> {
        let reader = Reader::new(rows, read_view, pending);
        match of {
            PageOf::Range { from, to } => {
                let found = reader.range(from, to, most)?;
                Ok(Page { rows: found.rows, next: found.next.map(PageNext::From) })
            }
            PageOf::RangeReverse { from, to } => {
                let found = reader.range_reverse(from, to, most)?;
                Ok(Page { rows: found.rows, next: found.next.map(PageNext::To) })
            }
            PageOf::Keys { keys } => keys_page(&reader, keys, most),
            PageOf::Versions { key } => {
                let (rows, next) = reader.versions(key, most)?;
                Ok(Page { rows, next: next.map(PageNext::At) })
            }
            PageOf::Lease { lease, from } => {
                let (rows, next) = leases::page(&reader, rows, *lease, from, most)?;
                Ok(Page { rows, next: next.map(PageNext::From) })
            }
        }
    }

    /// A page of the changes of a range after a position.
    ///
    /// # Errors
    ///
    /// Any [`ChangesError`].
    pub fn changes(
        &self,
        range: &KeyInterval,
        tells_previous: bool,
        after: &FeedPosition,
        most: ChangesLimits,
    ) -> Result<ChangesPage, ChangesError> {
        // Before the view is taken, so that it has everything up to there.
        let applied = self.applied().timestamp;
        let (view, pending) = self.shared.view().map_err(ApplyError::from)?;
        let of = (range, tells_previous);
        changes_page(&ViewRows(&*view), &pending, applied, of, after, most)
    }

    /// Has the latest changes kept in memory, or not any more.
    pub fn follow(&self, is_followed: bool) {
        match is_followed {
            true => self.shared.recent.follow(|| self.applied().timestamp),
            false => self.shared.recent.follow_no_more(),
        }
    }

    /// Whether the latest changes are kept in memory.
    pub fn is_followed(&self) -> bool {
        self.shared.recent.is_followed()
    }

    /// The time after which memory has all changes.
    pub fn recent_begins(&self) -> Timestamp {
        self.shared.recent.begins()
    }

    /// The changes after a time, as far as memory has them.
    pub fn recent_changes(&self, after: Timestamp) -> RecentPart {
        self.shared.recent.after(after)
    }

    /// Reads blocks of the engine's files from the disk and verifies them. Returns where to
    /// continue.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`].
    pub fn scrub_blocks(&self, from: u64, blocks: u64) -> Result<Option<u64>, ApplyError> {
        Ok(self.shared.engine().scrub(from, blocks)?.next_block)
    }

    /// Takes one bounded step of the work behind the engine's writes. Returns whether there is more
    /// to do at once.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`].
    pub fn work(&self) -> Result<bool, ApplyError> {
        Ok(self.shared.engine().work()?)
    }

    /// The applied index of the last durable seal: the log is to be kept from here on.
    pub fn durable_index(&self) -> LogIndex {
        self.shared.durable_index()
    }

    /// The number of rows of the store: an upper bound of the number of keys, known without
    /// reading.
    pub fn rows(&self) -> u64 {
        self.shared.engine().rows()
    }

    /// A lower bound of the state that any later read sees: set after a batch has become visible.
    pub fn applied(&self) -> AppliedPoint {
        self.shared.applied()
    }

    /// An upper bound of the state that any earlier read saw: set before a batch becomes visible.
    pub fn applying_timestamp(&self) -> Timestamp {
        self.shared.applying_timestamp()
    }

    /// The number of rows that the state machine has handled since the process began: it rises
    /// while a long entry is applied.
    pub fn steps(&self) -> u64 {
        self.shared.steps()
    }
}

fn keys_page(reader: &Reader<'_>, keys: &[Bytes], limits: PageLimits) -> Result<Page, ApplyError> {
    let mut rows = Vec::new();
    let (mut bytes, mut scanned) = (0, 0);
    for key in keys {
        let mut is_full = rows.len() >= limits.rows || scanned > limits.scan_bytes;
        bytes += key.len();
        let found = reader.get_with(key, |value| {
            bytes += limits.shown_bytes(value);
            is_full |= bytes > limits.bytes;
            if is_full && !rows.is_empty() {
                return Ok(Bytes::new());
            }
            scanned += limits.shown_bytes(value);
            limits.shown(value)
        })?;
        let found = found.map(|(state, value)| shown_version(state, value));
        if !rows.is_empty() && (is_full || bytes > limits.bytes) {
            // The number of rows is bounded by the keys in a frame, so the cast is exact.
            return Ok(Page { next: Some(PageNext::Skip(rows.len() as u32)), rows });
        }
        rows.push(Row { key: key.clone(), found });
    }
    Ok(Page { rows, next: None })
}
