//! What an entry may cost, and what a reader pays for what others have removed.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::super::super::engine::{
    Direction, EngineView, RowValue, RowVisitor, Scrubbed, SkippingVisitor, WriteBatch,
};
use super::super::super::keys::RowRange;
use super::super::super::reads::PageLimits;
use super::*;
use crate::model::{PageOf, ReadView, Trim};

/// Called just before and just after a batch is written.
type AroundWrite = Box<dyn Fn() + Send>;

/// An engine that counts the rows and the long values that are read, and lets a test read while a
/// batch is written.
#[derive(Default)]
struct Watched {
    engine: MemoryEngine,
    rows: Arc<AtomicUsize>,
    long_values: Arc<AtomicUsize>,
    around_write: Mutex<Option<AroundWrite>>,
    /// Number of rows of each batch.
    batches: Mutex<Vec<usize>>,
}

impl Watched {
    /// The rows and the long values that were read since the last call.
    fn take_reads(&self) -> (usize, usize) {
        (self.rows.swap(0, Ordering::Relaxed), self.long_values.swap(0, Ordering::Relaxed))
    }

    fn around_write(&self) {
        if let Some(read) = &*self.around_write.lock().unwrap() {
            read();
        }
    }
}

impl Engine for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(key)
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        let (rows, long_values) = (self.rows.clone(), self.long_values.clone());
        Ok(Box::new(WatchedView { view: self.engine.view()?, rows, long_values }))
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.around_write();
        self.batches.lock().unwrap().push(batch.rows().count());
        self.engine.write(batch)?;
        self.around_write();
        Ok(())
    }

    fn seal(&self, batch: &WriteBatch, mark: u64) -> Result<(), EngineError> {
        self.engine.seal(batch, mark)
    }

    fn durable(&self) -> Option<u64> {
        self.engine.durable()
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.engine.flush()
    }

    fn rows(&self) -> u64 {
        self.engine.rows()
    }

    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError> {
        self.engine.scrub(from_block, blocks)
    }
}

struct WatchedView {
    view: Box<dyn EngineView>,
    rows: Arc<AtomicUsize>,
    long_values: Arc<AtomicUsize>,
}

impl EngineView for WatchedView {
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.view.scan_rows(range, direction, &mut |key, value| {
            self.rows.fetch_add(1, Ordering::Relaxed);
            let RowValue::OutOfLine { bytes, head, .. } = value else { return visit(key, value) };
            let read = || {
                self.long_values.fetch_add(1, Ordering::Relaxed);
                value.read().map(Cow::into_owned)
            };
            visit(key, RowValue::OutOfLine { bytes, head, read: &read })
        })
    }

    /// Rows that are skipped are not looked at.
    fn scan_skipping(
        &self,
        range: &RowRange,
        visit: &mut SkippingVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.view.scan_skipping(range, &mut |key, value, skip_to| {
            self.rows.fetch_add(1, Ordering::Relaxed);
            let RowValue::OutOfLine { bytes, head, .. } = value else {
                return visit(key, value, skip_to);
            };
            let read = || {
                self.long_values.fetch_add(1, Ordering::Relaxed);
                value.read().map(Cow::into_owned)
            };
            visit(key, RowValue::OutOfLine { bytes, head, read: &read }, skip_to)
        })
    }
}

/// A machine, and the log that it has applied.
struct Applying {
    engine: Arc<Watched>,
    machine: StateMachine,
    script: Script,
}

impl Applying {
    fn new(limits: StateLimits) -> Applying {
        let engine = Arc::new(Watched::default());
        let machine = StateMachine::open(engine.clone(), limits).unwrap();
        Applying { engine, machine, script: Script::default() }
    }

    /// Applies what was added to the log as one batch; the rows and long values read for it.
    fn apply(&mut self) -> (Applied, (usize, usize)) {
        self.engine.take_reads();
        let next = self.machine.applied().index as usize;
        let applied = self.machine.apply_answering(&self.script.entries[next..]).unwrap();
        (applied, self.engine.take_reads())
    }

    fn write(&mut self, op: impl Into<WriteOp>) -> (Applied, (usize, usize)) {
        self.script.write(op.into());
        self.apply()
    }

    fn collect(&mut self, rows_max: u32) {
        let bytes_max = u64::MAX;
        let piece = GarbageCollection::Removed { before_us: u64::MAX, rows_max, bytes_max };
        self.script.act(Action::GarbageCollection(piece));
        self.apply();
    }
}

fn put_all(keys: impl IntoIterator<Item = Bytes>, value: &Bytes) -> PutAll {
    PutAll { pairs: keys.into_iter().map(|key| (key, value.clone())).collect() }
}

fn del_range(from: &'static str, to: &'static str) -> DelRange {
    DelRange { from: Bytes::from(from), to: Bytes::from(to), keeps_history: false }
}

/// Conditional writes and trims of one key of a megabyte, and removals of a few hundred such keys,
/// each a few bytes long in the log, kept the state machine reading whole values for so long that
/// the leader gave its leadership away as one whose disk hangs.
#[test]
fn what_needs_no_value_reads_none() {
    let mut applying = Applying::new(StateLimits::default());
    let long = Bytes::from(vec![b'v'; 20_000]);
    let key = Bytes::from("k");
    let keys = || (0..50).map(|number| Bytes::from(format!("r{number:02}")));
    for _ in 0..2 {
        applying.write(put_all(keys().chain([key.clone()]), &long));
    }
    let condition = Condition::Version(Timestamp(1));
    let ops: [WriteOp; 6] = [
        PutIf { key: key.clone(), value: Bytes::new(), condition }.into(),
        Trim { key: key.clone(), tells_previous: true }.into(),
        Put { key: key.clone(), value: long.clone(), tells_previous: true }.into(),
        Del { key: key.clone(), tells_previous: true, keeps_history: false }.into(),
        DelRange { from: Bytes::from("r"), to: Bytes::from("r24"), keeps_history: false }.into(),
        DelRange { from: Bytes::from("r"), to: Bytes::from("r24"), keeps_history: false }.into(),
    ];
    for op in ops {
        let (applied, (_, long_values)) = applying.write(op.clone());
        assert_eq!(long_values, 0, "{op:?}");
        let previous = &answer(&applied.writes[0]).previous;
        assert!(
            matches!(previous, None | Some(Previous::Value { value: None, .. })),
            "{previous:?} of {op:?}"
        );
    }
    let store = applying.machine.store();
    let view = ReadView::as_of(Timestamp(i64::MAX));
    let (from, to) = (Bytes::from("a"), Bytes::from("z"));
    let pages = [
        PageOf::Range { from: from.clone(), to: to.clone() },
        PageOf::RangeReverse { from, to },
        PageOf::Keys { keys: keys().skip(25).collect() },
        PageOf::Versions { key: Bytes::from("r30") },
    ];
    for (of, rows) in pages.into_iter().zip([25, 25, 25, 2]) {
        for keys_only in [true, false] {
            let most = PageLimits { keys_only, ..PageLimits::default() };
            applying.engine.take_reads();
            let page = store.first_page(&of, view, most).unwrap();
            assert_eq!(page.rows.len(), rows, "{of:?}");
            let read = if keys_only { 0 } else { rows };
            assert_eq!(applying.engine.take_reads().1, read, "{of:?}, keys only: {keys_only}");
        }
    }
    assert_eq!(store.get(b"r30").unwrap().unwrap().value, long);
}

/// Facts cost a PUT one row where its key is not known, and nothing where it is, however long the
/// value before is.
#[test]
fn a_put_of_a_known_key_does_not_touch_the_engine() {
    let mut applying = Applying::new(StateLimits::default());
    let put = |bytes: usize| {
        let (key, value) = (Bytes::from("k"), Bytes::from(vec![b'v'; bytes]));
        Put { key, value, tells_previous: false }
    };
    applying.write(put(20_000));
    for _ in 0..4 {
        assert_eq!(applying.write(put(100)).1, (0, 0), "its facts are, however long it was");
    }
    let found = applying.machine.store().get(b"k").unwrap().unwrap();
    let facts = Facts { created: Timestamp(10), count: 5, lease: None };
    assert_eq!((found.timestamp, found.facts), (Timestamp(50), Some(facts)));
}

/// A client that wrote and removed one key all the time had each read of the key's past read all
/// removals of the last minute.
#[test]
fn a_read_of_the_past_reads_one_removal_of_a_key_however_many_there_are() {
    let mut applying = Applying::new(StateLimits::default());
    let key = Bytes::from("k");
    let put = || Put { key: key.clone(), value: Bytes::new(), tells_previous: false };
    applying.write(put());
    let first = applying.machine.applied().timestamp;
    for _ in 0..40 {
        applying.write(put());
        applying.write(Del { key: key.clone(), tells_previous: false, keeps_history: false });
    }
    let store = applying.machine.store();
    applying.engine.take_reads();
    assert_eq!(store.get_at(&key, first).unwrap(), None, "it was removed");
    let (rows, _) = applying.engine.take_reads();
    assert!(rows <= 4, "{rows} rows for one version and its removal");
}

/// A removal of a range scanned up to a thousand rows of any length, and more for the seeks.
#[test]
fn the_removal_of_a_range_scans_so_many_rows_and_so_many_bytes() {
    let rows_max = limits::REMOVAL_SCAN_ROWS_MAX;
    let mut applying = Applying::new(StateLimits::default());
    let short_keys = |numbers: Range<usize>| {
        let keys = numbers.map(|number| Bytes::from(format!("s{number:04}")));
        put_all(keys, &Bytes::from_static(b"v"))
    };
    applying.write(short_keys(0..900));
    let long_key = |number: usize| Bytes::from(format!("l{number:04}").repeat(500));
    applying.write(put_all((0..rows_max).map(long_key), &Bytes::from_static(b"v")));
    // Looked through and removed key by key, found removed, and too long to be looked through.
    for (round, rows_min) in [(0, 900), (1, 900), (2, rows_max)] {
        if round == 2 {
            applying.write(short_keys(900..1200));
        }
        let (_, (rows, _)) = applying.write(del_range("s", "t"));
        assert!((rows_min..rows_max + 10).contains(&rows), "round {round}: {rows} rows");
    }
    let (_, (rows, _)) = applying.write(del_range("l", "m"));
    assert!((50..150).contains(&rows), "{rows} rows of 2,500 bytes each");
    for key in [&b"s0000"[..], &long_key(0), &long_key(rows_max - 1)] {
        assert_eq!(applying.machine.store().get(key).unwrap(), None);
    }
}

/// As many removals of long ranges as there may be made every read and every conditional write of
/// everybody twenty-five times as dear, since each read all of them.
#[test]
fn removals_of_ranges_cost_other_reads_no_row() {
    let mut applying =
        Applying::new(StateLimits { removal_scan_rows_max: 0, ..Default::default() });
    // Each of them is to be read.
    applying.machine.set_newest_bytes_max(0);
    let value = Bytes::from_static(b"v");
    let keys = ["k", "r1", "r2"].map(Bytes::from);
    for _ in 0..limits::RANGE_REMOVALS_MAX {
        applying.script.write(put_all(keys.clone(), &value).into());
        applying.script.write(del_range("r", "s").into());
    }
    applying.apply();
    applying.write(put_all([Bytes::from("r2")], &value));
    assert_eq!(applying.machine.left.pending.ranges.len(), limits::RANGE_REMOVALS_MAX);
    let store = applying.machine.store();
    applying.engine.take_reads();
    for (key, is_there) in [("k", true), ("r1", false), ("r2", true)] {
        assert_eq!(store.get(key.as_bytes()).unwrap().is_some(), is_there, "{key}");
        assert_eq!(applying.engine.take_reads(), (1, 0), "{key}");
    }
    let condition = Condition::Version(Timestamp(1));
    let (_, reads) = applying.write(PutIf { key: Bytes::from("k"), value, condition });
    // The version, and what the history and the removals leave of the version before.
    assert!(reads.0 <= 4, "{reads:?}");
}

/// A batch shows as a whole also to a reader who comes while it is written: with the removal of a
/// range go the writes before and after it.
#[test]
fn a_reader_sees_a_removal_of_a_range_together_with_its_batch() {
    let mut applying = Applying::new(StateLimits {
        removal_scan_rows_max: 0,
        removal_grace_us: 0,
        ..Default::default()
    });
    let store = applying.machine.store();
    let shown = move || {
        let view = ReadView::as_of(Timestamp(i64::MAX));
        let of = PageOf::Range { from: Bytes::from("a"), to: Bytes::from("z") };
        let page = store.first_page(&of, view, PageLimits::default()).unwrap();
        let keys = page.rows.into_iter().map(|row| String::from_utf8(row.key.to_vec()).unwrap());
        keys.collect::<Vec<_>>().join(" ")
    };
    let value = Bytes::from_static(b"v");
    let keys = |keys: &'static [&str]| put_all(keys.iter().map(|key| Bytes::from(*key)), &value);
    let batches: [&[WriteOp]; 5] = [
        &[keys(&["a", "b", "c", "d"]).into()],
        &[del_range("a", "c").into(), keys(&["b"]).into()],
        &[keys(&["c"]).into(), del_range("b", "d").into(), keys(&["c"]).into()],
        &[keys(&["e", "f"]).into(), del_range("a", "c").into(), del_range("e", "f").into()],
        &[
            keys(&["a", "b"]).into(),
            Del { key: Bytes::from("a"), tells_previous: false, keeps_history: false }.into(),
        ],
    ];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (reader, sees) = (shown.clone(), seen.clone());
    *applying.engine.around_write.lock().unwrap() =
        Some(Box::new(move || sees.lock().unwrap().push(reader())));
    for (ops, after) in batches.into_iter().zip(["a b c d", "b d", "c", "", "b"]) {
        let before = shown();
        ops.iter().for_each(|op| applying.script.write(op.clone()));
        applying.apply();
        assert_eq!(shown(), after, "{ops:?}");
        assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [before, after.to_owned()]);
    }
    assert_eq!(applying.machine.left.pending.ranges.len(), 4);
    let mut pieces = 0;
    while applying.machine.summary().oldest_removal_us.is_some() {
        applying.collect(1);
        assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), ["b", "b"]);
        pieces += 1;
        assert!(pieces < 100, "collecting comes to no end");
    }
    assert!(pieces > 4 && applying.machine.left.pending.ranges.is_empty(), "{pieces} pieces");
}

/// An applier that was busy with conditional writes that failed, and with trims that found nothing,
/// was taken for one whose disk hangs.
#[test]
fn whoever_watches_sees_that_looking_is_work() {
    let mut applying = Applying::new(StateLimits::default());
    let key = Bytes::from("k");
    let condition = Condition::Version(Timestamp(1));
    let ops: [WriteOp; 3] = [
        PutIf { key: key.clone(), value: Bytes::new(), condition }.into(),
        Trim { key: key.clone(), tells_previous: false }.into(),
        del_range("a", "z").into(),
    ];
    for op in ops {
        let before = applying.machine.store().steps();
        applying.write(op.clone());
        assert!(applying.machine.store().steps() > before, "{op:?}");
    }
}

/// A follower that lagged applied as many entries at once as their bytes allowed, and held the rows
/// of all of them in memory.
#[test]
fn entries_that_change_much_are_applied_in_several_batches() {
    let mut applying = Applying::new(StateLimits::default());
    let keys = || (0..500u16).map(|number| Bytes::copy_from_slice(&number.to_be_bytes()));
    for _ in 0..100 {
        applying.script.write(put_all(keys(), &Bytes::new()).into());
        let all =
            DelRange { from: Bytes::new(), to: Bytes::from_static(&[0xff]), keeps_history: false };
        applying.script.write(all.into());
    }
    let (applied, _) = applying.apply();
    assert_eq!(applied.writes.len(), 200);
    assert_eq!(applying.machine.applied().index, 200);
    let batches = std::mem::take(&mut *applying.engine.batches.lock().unwrap());
    let most = batches.iter().max().unwrap();
    assert!(batches.len() > 1 && *most as u64 <= BATCH_ROWS_MAX, "{batches:?}");
}
