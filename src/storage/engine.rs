//! The interface of an embedded engine: ordered rows of bytes, atomic batches, consistent scans.
//!
//! It is small on purpose, so that engines can be exchanged and compared: the one on disk is
//! [`tables`](super::tables), the one for tests [`memory`](super::memory).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::keys::RowRange;

/// The order in which a scan visits rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// In ascending order of keys.
    Forward,
    /// In descending order of keys.
    Reverse,
}

/// Counts the rows that have been looked at or changed, so that long work can be told from work
/// that is stuck. Clones share one count.
#[derive(Clone, Debug, Default)]
pub struct Steps(Arc<AtomicU64>);

impl Steps {
    /// Counts a row that was looked at, added to a batch, or taken from it by the engine.
    pub fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of rows counted so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Changes that become visible, and durable, together. The last change to a row counts. Ordered by
/// key, in which engines insert fastest.
///
/// Whoever knows whether a row exists says so, with [`insert`](WriteBatch::insert) and
/// [`remove`](WriteBatch::remove): an engine that counts its rows, and the bytes of long values,
/// would have to look for the row.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    rows: BTreeMap<Bytes, RowChange>,
    /// Changes of later rows, in order: those that were added behind all others.
    last: Vec<(Bytes, RowChange)>,
    steps: Steps,
}

#[derive(Clone, Debug)]
struct RowChange {
    /// `None`: the row is removed.
    value: Option<Bytes>,
    before: RowBefore,
}

/// The state of a row before a batch, as far as whoever has made the batch has said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowBefore {
    Unknown,
    Absent,
    Present { value_bytes: usize },
}

impl WriteBatch {
    /// An empty batch, whose rows are counted as they are taken from it.
    pub fn counted(steps: Steps) -> WriteBatch {
        WriteBatch { steps, ..WriteBatch::default() }
    }

    /// Sets a row, which may exist.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.change(key, Some(value), RowBefore::Unknown);
    }

    /// Removes a row, if it exists.
    pub fn delete(&mut self, key: Bytes) {
        self.change(key, None, RowBefore::Unknown);
    }

    /// Adds a row, which must not exist, with the changes of the batch so far.
    pub fn insert(&mut self, key: Bytes, value: Bytes) {
        self.change(key, Some(value), RowBefore::Absent);
    }

    /// The same of a row that is probably behind all rows of the batch: it is then added without a
    /// search.
    pub fn insert_last(&mut self, key: Bytes, value: Bytes) {
        let last = match self.last.last() {
            Some((last, _)) => Some(last),
            None => self.rows.last_key_value().map(|(last, _)| last),
        };
        match last.is_none_or(|last| *last < key) {
            true => {
                let value = Some(value);
                self.last.push((key, RowChange { value, before: RowBefore::Absent }));
            }
            false => self.insert(key, value),
        }
    }

    /// Removes a row, which must exist with a value of so many bytes, with the changes of the batch
    /// so far.
    pub fn remove(&mut self, key: Bytes, value_bytes: usize) {
        self.change(key, None, RowBefore::Present { value_bytes });
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>, before: RowBefore) {
        if self.is_among_last(&key) {
            match self.last.binary_search_by(|(other, _)| other.cmp(&key)) {
                Ok(at) => self.last[at].1.value = value,
                // Each is moved once: many in another order cost what they cost in the map.
                Err(_) => {
                    self.rows.extend(self.last.drain(..));
                    self.rows.insert(key, RowChange { value, before });
                }
            }
            return;
        }
        match self.rows.entry(key) {
            Entry::Vacant(entry) => _ = entry.insert(RowChange { value, before }),
            // The first change has said what was before the batch.
            Entry::Occupied(mut entry) => entry.get_mut().value = value,
        }
    }

    /// Whether a row is not before those that were added last.
    fn is_among_last(&self, key: &[u8]) -> bool {
        self.last.first().is_some_and(|(first, _)| first[..] <= *key)
    }

    /// The changes among the last rows that are not before this one.
    fn last_from(&self, key: &[u8]) -> &[(Bytes, RowChange)] {
        let from = match self.is_among_last(key) {
            true => self.last.partition_point(|(other, _)| other[..] < *key),
            false => 0,
        };
        &self.last[from..]
    }

    /// All changes in key order.
    fn all(&self) -> impl Iterator<Item = (&Bytes, &RowChange)> {
        self.rows.iter().chain(self.last.iter().map(|(key, change)| (key, change)))
    }

    /// Counts a step of the work that the engine does for this batch.
    pub fn step(&self) {
        self.steps.step();
    }

    /// The changes in key order: the new value, or `None` for a removed row.
    pub fn rows(&self) -> impl Iterator<Item = (&Bytes, Option<&Bytes>)> {
        let rows = self.all().inspect(|_| self.steps.step());
        rows.map(|(key, change)| (key, change.value.as_ref()))
    }

    /// Of each row in key order: its value after the batch, or `None` if it is removed, and what
    /// was there before.
    pub fn transitions(&self) -> impl Iterator<Item = (&Bytes, Option<&Bytes>, RowBefore)> {
        self.all().map(|(key, change)| (key, change.value.as_ref(), change.before))
    }

    /// The changes within a range, in key order.
    pub fn range(
        &self,
        range: &RowRange,
    ) -> impl DoubleEndedIterator<Item = (&Bytes, Option<&Bytes>)> {
        let bounds = (Bound::Included(&range.start), Bound::Excluded(&range.end));
        // The standard map panics if a range ends before it begins; here such a range is empty.
        let is_empty = range.start >= range.end;
        let rows = (!is_empty).then(|| self.rows.range::<Bytes, _>(bounds));
        let last = match !is_empty && self.is_among_last(&range.end) {
            true => {
                let from = self.last_from(&range.start);
                &from[..from.partition_point(|(key, _)| *key < range.end)]
            }
            false => &[],
        };
        let last = last.iter().map(|(key, change)| (key, change));
        let all = rows.into_iter().flatten().chain(last);
        all.map(|(key, change)| (key, change.value.as_ref()))
    }

    /// The first change that is not before a row.
    pub fn first_from(&self, row: &[u8]) -> Option<(&Bytes, Option<&Bytes>)> {
        let mut rows = self.rows.range::<[u8], _>((Bound::Included(row), Bound::Unbounded));
        let last = || self.last_from(row).first().map(|(key, change)| (key, change));
        rows.next().or_else(last).map(|(key, change)| (key, change.value.as_ref()))
    }

    /// The change of a row in the batch: `None` if there is none, `Some(None)` if the row is
    /// removed.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        let found = match self.is_among_last(key) {
            true => self.last_from(key).first().filter(|(found, _)| found[..] == *key),
            false => return self.rows.get(key).map(|change| change.value.as_ref()),
        };
        found.map(|(_, change)| change.value.as_ref())
    }
}

/// Why a call of an engine has failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine's file could not be opened.
    #[error(
        "cannot open the store {path}: {detail}; see what the system says of the file, and start \
         the server again"
    )]
    Open { path: String, detail: String },
    /// The system refused another operation on the engine's file. Whether a batch that could not be
    /// written took effect is unknown.
    #[error(
        "cannot {action} {path}: {detail}; make room on the disk, or check it, and start the \
         server again"
    )]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The path of the file.
        path: String,
        detail: String,
    },
    /// The engine could not read. That need not be damage: the storage may have been unreachable.
    #[error("cannot read the store: {0}; check the disk, and start the server again")]
    Read(String),
    /// What was looked for cannot be told from memory alone. Only
    /// [`EngineView::newest_in_memory`] fails with it.
    #[error("what was looked for is not in memory")]
    NotInMemory,
    /// The bytes in the engine's file are not those that were written. Every call fails with this
    /// from now on.
    #[error("the store {path} is damaged: {detail}")]
    Damaged {
        path: String,
        /// The damage, with its position.
        detail: String,
    },
}

/// The progress of a check of the engine's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// The block to continue at, the same one if a write was under way; `None` at the end of the
    /// file.
    pub next_block: Option<u64>,
}

/// Bytes of the head of a value, which is at hand wherever the value lies. It has room for what the
/// row of a version says besides the user's value.
pub const VALUE_HEAD_BYTES: usize = 32;

/// The first bytes of a value, as many as a head has, or all.
pub fn head_of(value: &[u8]) -> &[u8] {
    &value[..value.len().min(VALUE_HEAD_BYTES)]
}

/// The value of a row that a scan has come to.
#[derive(Clone, Copy)]
pub enum RowValue<'a> {
    /// The value lies beside the row's key, and was read with it.
    Inline(&'a [u8]),
    /// The value is stored elsewhere: reading it costs as much as it is long.
    OutOfLine {
        /// The length of the value.
        bytes: usize,
        /// The first bytes of the value: [`head_of`] it.
        head: &'a [u8],
        read: &'a dyn Fn() -> Result<Vec<u8>, EngineError>,
    },
}

impl<'a> RowValue<'a> {
    /// The length of the value, known without reading it.
    pub fn bytes(&self) -> usize {
        match self {
            RowValue::Inline(value) => value.len(),
            RowValue::OutOfLine { bytes, .. } => *bytes,
        }
    }

    /// The first bytes of the value, known without reading it: [`head_of`] it, or more.
    pub fn head(&self) -> &'a [u8] {
        match self {
            RowValue::Inline(value) => value,
            RowValue::OutOfLine { head, .. } => head,
        }
    }

    /// The whole value. One that is out of line is put together from its pieces in memory, so that
    /// it costs as much as it is long, in time and bytes: whoever needs only the length asks
    /// `bytes`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    pub fn read(&self) -> Result<Cow<'a, [u8]>, EngineError> {
        match self {
            RowValue::Inline(value) => Ok(Cow::Borrowed(value)),
            RowValue::OutOfLine { read, .. } => read().map(Cow::Owned),
        }
    }
}

/// Called for each row with its key and its value, which it may leave unread, until it breaks.
pub type RowVisitor<'a> = dyn FnMut(&[u8], RowValue<'_>) -> ControlFlow<()> + 'a;

/// Called for each row with its key, its value, and an empty buffer, until it breaks. Rows before
/// the key that it leaves in the buffer are passed over.
pub type SkippingVisitor<'a> = dyn FnMut(&[u8], RowValue<'_>, &mut Vec<u8>) -> ControlFlow<()> + 'a;

/// Called with the key and the value of the row that was looked for.
pub type ShowRow<'a> = dyn FnMut(&[u8], RowValue<'_>) + 'a;

/// Called for each row with its key and its whole value, until it breaks.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Has `scan` visit rows, of each of which the whole value is read and shown to `visit`.
pub(super) fn with_values(
    visit: &mut Visitor<'_>,
    scan: impl FnOnce(&mut RowVisitor<'_>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut failed = None;
    scan(&mut |key, value| match value.read() {
        Ok(value) => visit(key, &value),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// Rows that are passed over in one scan before another one begins behind them.
const PASSED_ROWS_MAX: u32 = 8;

/// Has `scan`, which visits the rows of a range in ascending order, visit those that `visit` does
/// not skip.
pub(super) fn scan_skipping(
    range: &RowRange,
    visit: &mut SkippingVisitor<'_>,
    mut scan: impl FnMut(&RowRange, &mut RowVisitor<'_>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let (mut rest, mut skip_to) = (range.clone(), Vec::new());
    loop {
        let (mut passed, mut is_far) = (0, false);
        scan(&rest, &mut |key, value| {
            if *key < *skip_to {
                passed += 1;
                is_far = passed > PASSED_ROWS_MAX;
                return if is_far { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            }
            passed = 0;
            skip_to.clear();
            visit(key, value, &mut skip_to)
        })?;
        if !is_far {
            return Ok(());
        }
        rest.start = Bytes::copy_from_slice(&skip_to);
    }
}

/// An ordered key-value engine. Reads may come from any thread, at any time; each read sees the
/// state between two batches, never a part of a batch.
pub trait Engine: Send + Sync {
    /// The value of one row.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits the rows of a range, as of one state, until the visitor breaks. A range that ends
    /// before it begins is empty. Writes neither wait for a scan nor show in it.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.view()?.scan(range, direction, visit)
    }

    /// A read view of the current rows.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn view(&self) -> Result<Box<dyn EngineView>, EngineError>;

    /// Applies a batch, which is visible at once. It is lost, with everything since the last
    /// durable seal, if the engine is closed before the next one is durable. Batches come from one
    /// thread, and so do seals.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`]; after it the engine must not be written to any more.
    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError>;

    /// Applies a batch that ends what was written since the last *seal*. All of it becomes durable
    /// together, behind the back of the caller: [`durable`](Engine::durable) says how far that has
    /// come. `mark` is the caller's number of this seal, and not less than the last one's.
    ///
    /// It waits for the disk only if the engine has no room for what is not durable yet, and counts
    /// what it does meanwhile as steps of the batch.
    ///
    /// # Errors
    ///
    /// As [`write`](Engine::write).
    fn seal(&self, batch: &WriteBatch, mark: u64) -> Result<(), EngineError>;

    /// The mark of the newest durable seal, and `None` if there is none since the engine was
    /// opened.
    fn durable(&self) -> Option<u64>;

    /// Returns when every seal is durable.
    ///
    /// # Errors
    ///
    /// As [`write`](Engine::write).
    fn flush(&self) -> Result<(), EngineError>;

    /// A batch that is durable when this returns, with all that was written before it.
    ///
    /// # Errors
    ///
    /// As [`write`](Engine::write).
    #[cfg(any(test, feature = "internals"))]
    fn write_durably(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.seal(batch, self.durable().unwrap_or(0))?;
        self.flush()
    }

    /// Whether what was written since the last seal fills the memory that the engine has for it, so
    /// that a seal is due.
    fn is_full(&self) -> bool {
        false
    }

    /// Takes one bounded step of the work behind the writes, on any thread: makes a seal durable,
    /// or goes on with a merge. Returns whether there is more to do at once.
    ///
    /// # Errors
    ///
    /// Any [`EngineError`]: the engine must not be written to any more.
    fn work(&self) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// Another store has taken the place of this one, which is not written to any more: its files
    /// go with its last reader.
    fn retire(&self) {}

    /// The number of rows, with those that are not durable. Known without reading anything.
    fn rows(&self) -> u64;

    /// Reads the next blocks of the engine's files from the disk, past the engine's cache, and
    /// verifies them.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`].
    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError>;
}

/// A store that is built from all its rows, in the order of their keys.
pub trait StoreBuilder: Send {
    /// Adds a row, whose key is greater than all before it.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`]; the store cannot be finished any more.
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError>;

    /// Makes the store durable.
    ///
    /// # Errors
    ///
    /// [`EngineError`]; then it is not a store.
    fn finish(self: Box<Self>) -> Result<(), EngineError>;
}

/// A read view: the rows as of one state, whatever is written meanwhile. It keeps what it needs of
/// the engine, which may be dropped before it.
pub trait EngineView: Send {
    /// Visits the rows of a range until the visitor breaks, and reads of long values only those
    /// that the visitor reads. A range that ends before it begins is empty.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError>;

    /// Visits the rows of a range in ascending order, as [`scan_rows`](EngineView::scan_rows) does,
    /// but those that the visitor skips, which cost far less than rows that it is shown.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn scan_skipping(
        &self,
        range: &RowRange,
        visit: &mut SkippingVisitor<'_>,
    ) -> Result<(), EngineError> {
        let scan = |rest: &RowRange, visit: &mut RowVisitor<'_>| {
            self.scan_rows(rest, Direction::Forward, visit)
        };
        scan_skipping(range, visit, scan)
    }

    /// Shows the first row of a range *in which newer rows sort first*, unless it is empty: when a
    /// batch set a row of it, no other row that earlier batches had set there sorted before that
    /// one. Rows may have been deleted in any order. A single row is such a range, and so are the
    /// versions of a key up to a time.
    ///
    /// An engine that stores newer rows apart from older ones may stop at the first that it finds
    /// from the newest on. In a range of another kind it may show any of its rows, or none.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn newest(&self, range: &RowRange, show: &mut ShowRow<'_>) -> Result<(), EngineError> {
        self.scan_rows(range, Direction::Forward, &mut |key, value| {
            show(key, value);
            ControlFlow::Break(())
        })
    }

    /// Shows what [`newest`](EngineView::newest) would show, for threads that must not wait: it
    /// reads no disk, and waits for no lock that is held for longer than a look-up.
    ///
    /// # Errors
    ///
    /// [`EngineError::NotInMemory`] if memory alone does not tell.
    fn newest_in_memory(
        &self,
        range: &RowRange,
        show: &mut ShowRow<'_>,
    ) -> Result<(), EngineError> {
        let _ = (range, show);
        Err(EngineError::NotInMemory)
    }

    /// Visits the rows of a range like [`scan_rows`](EngineView::scan_rows), with their whole
    /// values.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`].
    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        with_values(visit, |visit| self.scan_rows(range, direction, visit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(0..4u8, 0..3).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn a_batch_has_its_last_changes_in_order_however_they_were_added(
            changes in prop::collection::vec((key(), any::<Option<u8>>(), 0..3u8), 0..40),
            (from, to) in (key(), key()),
        ) {
            let (mut batch, mut expected) = (WriteBatch::default(), BTreeMap::new());
            for (key, value, how) in changes {
                let value = value.map(|value| Bytes::from(vec![value]));
                match (&value, how) {
                    (None, 0) => batch.delete(key.clone()),
                    (None, _) => batch.remove(key.clone(), 7),
                    (Some(value), 0) => batch.put(key.clone(), value.clone()),
                    (Some(value), 1) => batch.insert(key.clone(), value.clone()),
                    (Some(value), _) => batch.insert_last(key.clone(), value.clone()),
                }
                expected.insert(key, value);
            }
            let all = || expected.iter().map(|(key, value)| (key, value.as_ref()));
            prop_assert!(batch.rows().eq(all()));
            let without = batch.transitions().map(|(key, value, _)| (key, value));
            prop_assert!(without.eq(all()));
            prop_assert_eq!(batch.get(&from), expected.get(&from).map(Option::as_ref));
            prop_assert_eq!(batch.first_from(&from), all().find(|(key, _)| **key >= from));
            let range = RowRange { start: from.clone(), end: to.clone() };
            let within = || all().filter(|(key, _)| **key >= from && **key < to);
            prop_assert!(batch.range(&range).eq(within()));
            let reversed: Vec<_> = within().collect();
            prop_assert!(batch.range(&range).rev().eq(reversed.into_iter().rev()));
        }
    }
}
