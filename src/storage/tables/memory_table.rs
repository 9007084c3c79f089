//! The rows of the newest batches, in memory and in order, with the number of the batch that has
//! set each.
//!
//! One thread writes, any number read. A batch takes the lock for writing once. Its number is
//! published afterwards, by the engine; a reader takes the published number first and asks for the
//! rows as of that batch. So it sees a batch as a whole or not at all, and may let go of the lock
//! in the middle of a scan: states of later batches that it meets are not shown to it.
//!
//! A row keeps all states that its batches gave it: readers may be at any of them. That costs
//! nothing for versions, whose rows are written once; rows that each batch sets anew, such as
//! sessions, count for each of their states against the bytes of the table.
//!
//! Nothing is copied: a value is a slice of the log entry that it came with, and a key is its own.
//! The bytes that a table is counted with include those of the map's nodes, which are more than a
//! small row's own.
//!
//! A row that a batch has inserted, and a later one of the same table has deleted, is not shown
//! even as a deleted one: nothing older has it. Without this, two markers for each version that is
//! garbage soon after it was written would be moved to the disk, and merged there.
//!
//! What it leaves out: when a table is full. It takes what it is given, because only a batch that
//! must be durable may end it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use bytes::Bytes;

use super::block::TableValue;
use super::sorted_rows::{ENTRY_BYTES, SortedRows};
use crate::storage::engine::{Direction, EngineError, RowBefore, WriteBatch};
use crate::storage::keys::{self, RowRange};

/// The bytes of a row besides its key and value: itself, an entry of the map, whose nodes are two
/// thirds full, and two allocations.
const ROW_OVERHEAD_BYTES: usize =
    size_of::<Bytes>() + size_of::<RowStates>() + ENTRY_BYTES * 3 / 2 + 32;
/// The bytes of a further state of a row besides its value.
const STATE_OVERHEAD_BYTES: usize = 2 * size_of::<RowState>();

/// Number of a batch. The first has number 1; as of 0 there are no rows.
pub(super) type BatchNumber = u64;

/// A row as it is shown: its value, or `None` if it is deleted.
pub(super) type MemoryRow = (Bytes, Option<Bytes>);

#[derive(Default)]
pub(super) struct MemoryTable {
    rows: RwLock<SortedRows<RowStates>>,
    bytes: AtomicUsize,
}

struct RowState {
    batch: BatchNumber,
    /// `None`: the row is deleted.
    value: Option<Bytes>,
}

struct RowStates {
    newest: RowState,
    /// In the order of their batches.
    older: Vec<RowState>,
    /// Nothing older than this table has the row, so that a marker would hide nothing.
    is_new: bool,
}

impl RowStates {
    /// The row as of a batch; `None` if the table has nothing to say of it: it had no state in it
    /// yet, or came and went within it.
    fn as_of(&self, batch: BatchNumber) -> Option<Option<&Bytes>> {
        let found = match self.newest.batch <= batch {
            true => Some(&self.newest),
            false => {
                let until = self.older.partition_point(|state| state.batch <= batch);
                self.older[..until].last()
            }
        };
        let value = found?.value.as_ref();
        (value.is_some() || !self.is_new).then_some(value)
    }

    /// Adds the newest state. A batch sets a row once, so its number is greater than all others.
    fn push(&mut self, state: RowState) {
        assert!(
            self.newest.batch < state.batch,
            "batch {} after {}",
            state.batch,
            self.newest.batch
        );
        self.older.push(std::mem::replace(&mut self.newest, state));
    }
}

/// More rows had to be passed than may be under one lock.
struct TooManyRows;

impl MemoryTable {
    /// Adds the rows of a batch, whose number is greater than those before it. Readers see nothing
    /// of it until its number is published.
    pub fn write(&self, number: BatchNumber, batch: &WriteBatch) {
        let mut added_bytes = 0;
        // A panic in here leaves a batch that was not published: no reader sees it, and the
        // state machine does not write any more.
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        for ((key, value), (_, _, before)) in batch.rows().zip(batch.transitions()) {
            let is_new = before == RowBefore::Absent;
            let state = RowState { batch: number, value: value.cloned() };
            added_bytes += value.map_or(0, Bytes::len);
            // One search of the map for each row: it is most of what applying a write costs.
            match rows.add(key, RowStates { newest: state, older: Vec::new(), is_new }) {
                Some((known, new)) => {
                    added_bytes += STATE_OVERHEAD_BYTES;
                    known.push(new.newest);
                }
                None => added_bytes += key.len() + ROW_OVERHEAD_BYTES,
            }
        }
        drop(rows);
        self.bytes.fetch_add(added_bytes, Ordering::Relaxed);
    }

    /// About how many bytes of memory the table takes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// A row as of a batch: `None` if this table does not know of it, `Some(None)` if it is
    /// deleted.
    pub fn get(&self, key: &[u8], as_of: BatchNumber) -> Option<Option<Bytes>> {
        self.read().get(key)?.as_of(as_of).map(|value| value.cloned())
    }

    /// The first row of a range as of a batch, which may be a deleted one.
    pub fn first(self: &Arc<Self>, range: &RowRange, as_of: BatchNumber) -> Option<MemoryRow> {
        let found = MemoryTable::first_of(&self.read(), range, as_of);
        found.unwrap_or_else(|_| {
            // Many rows of the range are later than the batch: the lock is given back now and then.
            let cursor = MemoryCursor::new(self.clone(), range.clone(), Direction::Forward, as_of);
            cursor.group.into_iter().next()
        })
    }

    /// The same for threads that must not wait.
    ///
    /// # Errors
    ///
    /// [`EngineError::NotInMemory`] if a batch is being added, or too many rows would be passed.
    pub fn try_first(
        &self,
        range: &RowRange,
        as_of: BatchNumber,
    ) -> Result<Option<MemoryRow>, EngineError> {
        let rows = match self.rows.try_read() {
            Ok(rows) => rows,
            Err(TryLockError::Poisoned(rows)) => rows.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(EngineError::NotInMemory),
        };
        MemoryTable::first_of(&rows, range, as_of).map_err(|TooManyRows| EngineError::NotInMemory)
    }

    fn first_of(
        rows: &SortedRows<RowStates>,
        range: &RowRange,
        as_of: BatchNumber,
    ) -> Result<Option<MemoryRow>, TooManyRows> {
        let mut within = rows.from(&range.start).take_while(|(key, _)| **key < range.end);
        for _ in 0..GROUP_ROWS_MAX {
            let Some((key, states)) = within.next() else { return Ok(None) };
            if let Some(value) = states.as_of(as_of) {
                return Ok(Some((key.clone(), value.cloned())));
            }
        }
        Err(TooManyRows)
    }

    /// Appends the first rows of a range in a direction, as of a batch, to `out`, at most `count`
    /// of them, under the lock. Deleted ones are rows, too. Returns the rest of the range; `None`
    /// if nothing is left of it.
    ///
    /// Rows that are not shown count as well, so that the lock is held for a bounded time.
    pub fn rows(
        &self,
        mut range: RowRange,
        direction: Direction,
        as_of: BatchNumber,
        count: usize,
        out: &mut Vec<MemoryRow>,
    ) -> Option<RowRange> {
        if range.start >= range.end {
            return None;
        }
        let show = |(key, states): (&Bytes, &RowStates)| {
            if let Some(value) = states.as_of(as_of) {
                out.push((key.clone(), value.cloned()));
            }
        };
        let rows = self.read();
        let next = match direction {
            Direction::Forward => {
                let mut within = rows.from(&range.start).take_while(|(key, _)| **key < range.end);
                within.by_ref().take(count).for_each(show);
                within.next().map(|(key, _)| key)
            }
            Direction::Reverse => {
                let mut within =
                    rows.before(&range.end).take_while(|(key, _)| **key >= range.start);
                within.by_ref().take(count).for_each(show);
                within.next().map(|(key, _)| key)
            }
        }?;
        match direction {
            Direction::Forward => range.start = next.clone(),
            Direction::Reverse => range.end = keys::only(next).end,
        }
        Some(range)
    }

    /// What a batch holds while it is added.
    #[cfg(test)]
    pub fn lock_for_test(&self) -> impl Drop + '_ {
        self.rows.write().unwrap()
    }

    fn read(&self) -> RwLockReadGuard<'_, SortedRows<RowStates>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows are copied out in groups, the first of this size: most searches want one row.
const FIRST_GROUP_ROWS: usize = 2;
/// Each group is twice as large as the one before, up to this: a few microseconds under the lock.
const GROUP_ROWS_MAX: usize = 128;

/// A row of a table as of a batch, and the way from there to the others of a range.
pub(super) struct MemoryCursor {
    table: Arc<MemoryTable>,
    direction: Direction,
    as_of: BatchNumber,
    /// The range behind the group; `None` if nothing is left of it.
    left: Option<RowRange>,
    group: Vec<MemoryRow>,
    group_rows: usize,
    /// The row of the group that the cursor is at.
    at: usize,
}

impl MemoryCursor {
    pub fn new(
        table: Arc<MemoryTable>,
        range: RowRange,
        direction: Direction,
        as_of: BatchNumber,
    ) -> MemoryCursor {
        let (left, group, group_rows) = (Some(range), Vec::new(), FIRST_GROUP_ROWS);
        let mut cursor = MemoryCursor { table, direction, as_of, left, group, group_rows, at: 0 };
        cursor.fill();
        cursor
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.group.get(self.at).map(|(key, _)| &key[..])
    }

    /// The row that the cursor is at; `None` at the end of the range.
    pub fn row(&self) -> Option<(&[u8], TableValue<'_>)> {
        let (key, value) = self.group.get(self.at)?;
        Some((key, value.as_ref().map_or(TableValue::Deleted, |value| TableValue::Inline(value))))
    }

    pub fn advance(&mut self) {
        self.at += 1;
        if self.at >= self.group.len() {
            self.group.clear();
            self.at = 0;
            self.fill();
        }
    }

    /// Goes to the first row of the range that is not before a key, in ascending order.
    pub fn seek(&mut self, key: &[u8]) {
        assert_eq!(self.direction, Direction::Forward, "a cursor goes back to {key:?}");
        self.at += self.group[self.at..].partition_point(|(row, _)| **row < *key);
        if self.at < self.group.len() {
            return;
        }
        if let Some(range) = &mut self.left
            && *range.start < *key
        {
            range.start = Bytes::copy_from_slice(key);
        }
        self.group.clear();
        self.at = 0;
        self.fill();
    }

    fn fill(&mut self) {
        while self.group.is_empty()
            && let Some(range) = self.left.take()
        {
            let (count, out) = (self.group_rows, &mut self.group);
            self.left = self.table.rows(range, self.direction, self.as_of, count, out);
            self.group_rows = (2 * self.group_rows).min(GROUP_ROWS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(255), 97..100u8], 0..3)
    }

    fn batches() -> impl Strategy<Value = Vec<Model>> {
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..4));
        prop::collection::vec(prop::collection::btree_map(key(), value, 0..6), 1..20)
    }

    fn batch(rows: &Model) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.put(key.clone().into(), value.clone().into()),
                None => batch.delete(key.clone().into()),
            }
        }
        batch
    }

    fn scan(
        table: &MemoryTable,
        range: &RowRange,
        direction: Direction,
        as_of: BatchNumber,
        count: usize,
    ) -> Vec<MemoryRow> {
        let (mut out, mut left) = (Vec::new(), Some(range.clone()));
        while let Some(range) = left {
            let before = out.len();
            left = table.rows(range, direction, as_of, count, &mut out);
            assert!(out.len() <= before + count);
        }
        out
    }

    /// The rows of a table after two batches, the second of which deletes what the first has
    /// written.
    fn written_and_deleted(write: impl FnOnce(&mut WriteBatch, Bytes)) -> (Vec<MemoryRow>, usize) {
        let (table, key) = (MemoryTable::default(), Bytes::from_static(b"key"));
        let (mut first, mut second) = (WriteBatch::default(), WriteBatch::default());
        write(&mut first, key.clone());
        second.remove(key, 0);
        table.write(1, &first);
        table.write(2, &second);
        let all = keys::every_row();
        let before = scan(&table, &all, Direction::Forward, 1, 10).len();
        (scan(&table, &all, Direction::Forward, 2, 10), before)
    }

    /// A row that was put may be in older tables, and would show again.
    #[test]
    fn only_a_row_that_was_inserted_goes_without_a_marker() {
        let inserted = written_and_deleted(|batch, key| batch.insert(key, Bytes::new()));
        assert_eq!(inserted, (Vec::new(), 1));
        let put = written_and_deleted(|batch, key| batch.put(key, Bytes::new()));
        assert_eq!(put, (vec![(Bytes::from_static(b"key"), None)], 1));
        let deleted_before = written_and_deleted(|batch, key| {
            batch.remove(key.clone(), 0);
            batch.insert(key, Bytes::new());
        });
        assert_eq!(deleted_before, (vec![(Bytes::from_static(b"key"), None)], 1));
    }

    proptest! {
        /// The state after each batch is asked for after the last one has been written.
        #[test]
        fn it_has_the_rows_of_a_plain_map_as_of_every_batch(
            batches in batches(),
            (start, end) in (key(), key()),
            count in 1..5usize,
        ) {
            let table = MemoryTable::default();
            let mut states = vec![Model::new()];
            for (number, rows) in (1..).zip(&batches) {
                table.write(number, &batch(rows));
                let mut state = states[states.len() - 1].clone();
                state.extend(rows.clone());
                states.push(state);
            }
            let range = RowRange { start: start.clone().into(), end: end.clone().into() };
            for (as_of, state) in (0..).zip(&states) {
                let mut expected: Vec<MemoryRow> = state
                    .iter()
                    .filter(|(key, _)| (&start..&end).contains(key))
                    .map(|(key, value)| (key.clone().into(), value.clone().map(Bytes::from)))
                    .collect();
                let found = scan(&table, &range, Direction::Forward, as_of, count);
                prop_assert_eq!(&found, &expected);
                expected.reverse();
                let found = scan(&table, &range, Direction::Reverse, as_of, count);
                prop_assert_eq!(found, expected);
                let found = table.get(&start, as_of);
                let expected = state.get(&start).map(|value| value.clone().map(Bytes::from));
                prop_assert_eq!(found, expected);
            }
        }
    }

    /// Lets the other threads end, also when the writer fails.
    struct SetOnDrop<'a>(&'a AtomicBool);

    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn a_reader_beside_the_writer_sees_whole_batches() {
        let (table, published, done) =
            (MemoryTable::default(), AtomicU64::new(0), AtomicBool::new(false));
        let keys = 0..40u8;
        std::thread::scope(|scope| {
            for direction in [Direction::Forward, Direction::Reverse] {
                let (table, published, done) = (&table, &published, &done);
                scope.spawn(move || {
                    let mut scans = 0;
                    while !done.load(Ordering::Acquire) || scans == 0 {
                        let as_of = published.load(Ordering::Acquire);
                        let all = RowRange { start: Bytes::new(), end: vec![255].into() };
                        let rows = scan(table, &all, direction, as_of, 3);
                        let expected = Some(Bytes::copy_from_slice(&as_of.to_le_bytes()));
                        assert_eq!(rows.len(), if as_of == 0 { 0 } else { 40 });
                        assert!(rows.iter().all(|(_, value)| *value == expected), "{as_of}");
                        scans += 1;
                    }
                });
            }
            let _done = SetOnDrop(&done);
            for number in 1..400u64 {
                let value = || Some(number.to_le_bytes().to_vec());
                table
                    .write(number, &batch(&keys.clone().map(|key| (vec![key], value())).collect()));
                published.store(number, Ordering::Release);
            }
        });
    }

    #[test]
    fn its_bytes_grow_with_every_state_of_a_row() {
        let table = MemoryTable::default();
        assert!(table.is_empty());
        let mut last = table.bytes();
        for number in 1..10 {
            let value = (number % 3 > 0).then(|| vec![0; 10]);
            table.write(number, &batch(&Model::from([(b"key".to_vec(), value)])));
            assert!(table.bytes() > last);
            last = table.bytes();
        }
        assert!(!table.is_empty());
    }
}
