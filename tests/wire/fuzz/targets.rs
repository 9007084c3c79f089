//! What every parser of outside bytes must survive, one function a parser: whatever the bytes are,
//! it answers with a value or a typed error and never panics, and what it does accept is
//! consistent.
//!
//! Two drivers call these functions: the bounded runner beside this file, in the ordinary tests,
//! and the coverage-guided fuzzer in `fuzz/`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use acervo::limits::FRAME_HEADER_BYTES;
use acervo::model::{
    self as model, Action, AppliedPoint, ClientId, Command, ContentId, Del, DelRange, Facts,
    FileName, HardState, KeyState, LeaseId, LogBatch, LogEntry, LogIndex, NodeId, OpResult,
    OpShape, Operation, PageOf, PeerId, Put, PutAll, ReadView, RequestId, StateLimits, Timestamp,
    Trim, WriteFate, WriteOp,
};
use acervo::share::content::{Manifest, chunk_count};
use acervo::share::fetch::Trailer;
use acervo::share::folder::{FileIdentity, state};
use acervo::share::offer::FileStamp;
use acervo::storage::apply::StateMachine;
use acervo::storage::engine::{Engine, WriteBatch};
use acervo::storage::files::{Directory, DiskFile, Space};
use acervo::storage::log::{DiskLog, LogOptions};
use acervo::storage::memory::MemoryEngine;
use acervo::storage::reads::PageLimits;
use acervo::storage::snapshot::{MemoryStaging, SnapshotChunk, SnapshotSink};
use acervo::storage::tables::fuzzing as tables;
use acervo::wire::codec;
use acervo::wire::frame::{Deframer, FrameError};
use bytes::Bytes;

use self::plain_transactions::{State, TxnMaker, bits, carry_out};

/// Transactions, and what they come to.
#[path = "../../support/transactions.rs"]
mod plain_transactions;

/// A parser under test: its name, its function, and inputs to begin with.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub examples: fn() -> Vec<Vec<u8>>,
}

/// Every target there is.
pub const TARGETS: [Target; 9] = [
    Target { name: "frames", run: frames, examples: frame_examples },
    Target { name: "messages", run: messages, examples: message_examples },
    Target { name: "transactions", run: transactions, examples: transaction_examples },
    Target { name: "log", run: log, examples: log_examples },
    Target { name: "snapshot", run: snapshot, examples: snapshot_examples },
    Target { name: "part", run: part, examples: part_examples },
    Target { name: "rows", run: rows, examples: row_examples },
    Target { name: "share_state", run: share_state, examples: share_state_examples },
    Target { name: "tables", run: tables::decode, examples: tables::examples },
];

// ---- frames ---------------------------------------------------------------------------------

/// The first byte chooses the cap, the second how the rest is cut into pieces. However it is cut,
/// the deframer gives the frames that a look at the whole stream gives.
pub fn frames(data: &[u8]) {
    let [cap, step, stream @ ..] = data else { return };
    let cap = 1 + usize::from(*cap) * 5;
    let step = 1 + usize::from(*step);
    let (expected, expected_error) = whole_frames(stream, cap);

    let mut deframer = Deframer::new(cap);
    let mut found = Vec::new();
    let mut error = None;
    'pieces: for piece in stream.chunks(step) {
        deframer.push(piece);
        loop {
            match deframer.next_frame() {
                Ok(Some(frame)) => found.push(frame.to_vec()),
                Ok(None) => break,
                Err(violation) => {
                    error = Some(violation);
                    break 'pieces;
                }
            }
        }
        let held = deframer.memory_bytes();
        assert!(held <= 64 * 1024 + 2 * (cap + step), "{held} bytes held for frames of {cap}");
    }
    assert_eq!(found, expected);
    assert_eq!(error, expected_error);
}

/// The frames of a stream that is here as a whole, and what is wrong with what follows them.
fn whole_frames(mut stream: &[u8], cap: usize) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let mut frames = Vec::new();
    while let Some((header, rest)) = stream.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let announced = u32::from_be_bytes(*header) as usize;
        if announced == 0 {
            return (frames, Some(FrameError::Empty));
        }
        if announced > cap {
            return (frames, Some(FrameError::TooLong { announced, cap }));
        }
        let Some((body, rest)) = rest.split_at_checked(announced) else { break };
        frames.push(body.to_vec());
        stream = rest;
    }
    (frames, None)
}

fn frame_examples() -> Vec<Vec<u8>> {
    let two = [&[9, 2], &[0, 0, 0, 3][..], b"abc", &[0, 0, 0, 1], b"d"].concat();
    let too_long = [&[0, 200], &[0, 0, 0, 9][..], b"123456789"].concat();
    vec![two, too_long, vec![255, 0, 0, 0, 0, 0]]
}

// ---- messages -------------------------------------------------------------------------------

/// A message, or a command of the log, that can be decoded is the same after it was encoded again.
pub fn messages(data: &[u8]) {
    if let Ok(message) = codec::decode(data) {
        let mut frame = Vec::new();
        codec::encode(&message, usize::MAX, &mut frame).expect("what was decoded can be encoded");
        let again =
            codec::decode(&frame[FRAME_HEADER_BYTES..]).expect("what was encoded can be decoded");
        assert_eq!(message, again);
    }
    if let Ok(Some(command)) = Command::decode(data) {
        let again = Command::decode(&command.encode()).expect("what was encoded can be decoded");
        assert_eq!(Some(command), again);
    }
}

/// The worked frames of the protocol's page: one of nearly every kind of message.
fn message_examples() -> Vec<Vec<u8>> {
    let page = include_str!("../../../docs/PROTOCOL.md");
    let mut examples: Vec<Vec<u8>> = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    for line in page.lines().chain([""]) {
        let digits = line.split('#').next().unwrap_or_default().split_whitespace();
        let row: Option<Vec<u8>> = digits
            .map(|word| (word.len() == 2).then(|| u8::from_str_radix(word, 16).ok()).flatten())
            .collect();
        match row {
            Some(row) if !row.is_empty() => bytes.extend(row),
            _ if bytes.len() > FRAME_HEADER_BYTES => {
                examples.push(bytes.split_off(FRAME_HEADER_BYTES));
                bytes.clear();
            }
            _ => bytes.clear(),
        }
    }
    examples.push(put(1, b"key", b"value").encode().to_vec());
    examples
}

// ---- transactions ---------------------------------------------------------------------------

/// An entry that holds a transaction, which is refused where servers check what others send, or
/// else applied to a store: it comes to what carrying it out plainly does, and so does a retry.
pub fn transactions(data: &[u8]) {
    let Ok(Some(Command { action: Action::Write { op: WriteOp::Txn(txn), .. }, .. })) =
        Command::decode(data)
    else {
        return;
    };
    let op = WriteOp::Txn(txn.clone());
    if OpShape::of(&op).check_keys().is_err() || op.check().is_err() {
        return;
    }
    let mut machine = machine();
    let mut state = State::new();
    for (key, created, count, value) in [("a", 1, 2, "new"), ("e", 7, 1, "again")] {
        let facts = Facts { created: Timestamp(created), count, lease: None };
        let version = Timestamp(created + count as i64 - 1);
        state.insert(key.into(), (KeyState { version, facts }, value.into()));
    }
    let before = state.clone();
    let (branches, expected) = carry_out(&txn, &mut state, Timestamp(10));
    // There is no lease.
    let names_lease = |(found, _): &(KeyState, Bytes)| {
        found.version == Timestamp(10) && found.facts.lease.is_some()
    };
    let is_refused = state.values().any(names_lease);
    let (result, expected) = match is_refused {
        true => (OpResult::NoLease, None),
        false => (OpResult::Txn { branches: bits(&branches) }, Some(expected)),
    };
    if is_refused {
        state = before;
    }
    for again in 0..2 {
        let mut command = write(10, op.clone());
        command.timestamp = Timestamp(10 + again);
        let next = machine.applied().index + 1;
        let applied = machine.apply_answering(&numbered(next, &[command]));
        let applied = applied.expect("what was checked is applied");
        let WriteFate::Answered(answer) = &applied.writes[0].fate else {
            panic!("{applied:?}");
        };
        assert_eq!(answer.result, result);
        assert_eq!(answer.timestamp, Timestamp(10));
        assert_eq!(answer.txn.as_deref(), expected.as_ref(), "told {again} times before");
    }
    for (key, (found, value)) in &state {
        let stored = machine.store().get(key).expect("memory").expect("it has a value");
        assert_eq!((stored.timestamp, &stored.value), (found.version, value), "{key:?}");
        assert_eq!(stored.facts, Some(found.facts), "{key:?}");
    }
}

fn transaction_examples() -> Vec<Vec<u8>> {
    let keys: Vec<_> = ["a", "b", "e", "f"].map(Bytes::from).into();
    let values: Vec<_> = ["", "new", "again"].map(Bytes::from).into();
    let versions: Vec<_> = [1, 2, 7].map(Timestamp).into();
    let example = |seed: u64| {
        let mut last = seed;
        let mut pick = |most: usize| {
            last = last.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((last >> 33) % most as u64) as usize
        };
        let mut value = || Bytes::from_static(b"value");
        let mut maker = TxnMaker {
            pick: &mut pick,
            keys: &keys,
            versions: &versions,
            value: &mut value,
            values: &values,
            keeps_history: true,
            leases: &[LeaseId(7)],
            only_reads: false,
        };
        write(10, WriteOp::Txn(maker.fit(3))).encode().to_vec()
    };
    (1..=64).map(example).collect()
}

// ---- the log --------------------------------------------------------------------------------

/// The bytes are changes to the files of a good log (or, by the first byte, all there is of one).
/// The log then opens or says what is wrong; what it says it holds can be read, is contiguous, and
/// can be appended to.
pub fn log(data: &[u8]) {
    let [mode, edits @ ..] = data else { return };
    let disk = if mode % 4 == 3 {
        let mut files = base_log().clone();
        let last = files.keys().next_back().cloned().unwrap_or_default();
        files.retain(|name, _| *name == last);
        files.insert(last, edits.to_vec());
        RamDisk::new(files)
    } else {
        let mut files = base_log().clone();
        edits.chunks_exact(5).for_each(|edit| change(&mut files, edit));
        if mode % 4 == 2 {
            files.values_mut().for_each(|bytes| mend_checksums(bytes));
        }
        RamDisk::new(files)
    };
    let Ok((mut log, found)) = DiskLog::open_on(Arc::new(disk), small_log()) else { return };
    assert!(found.hard_state.commit <= found.last_index, "{found:?}");
    let reader = log.reader();
    let (first, last) = reader.bounds();
    let mut next = first;
    while next <= last && last - first < 10_000 {
        let Ok(entries) = reader.read(next, last + 1, 4096) else { return };
        assert!(!entries.is_empty(), "nothing at {next} of {first} to {last}");
        for entry in entries {
            assert_eq!(entry.index, next);
            next += 1;
        }
    }
    let entry = LogEntry { term: u64::MAX, index: last.saturating_add(1), data: Bytes::new() };
    let _ = log.append(&[LogBatch { number: 1, hard_state: None, entries: vec![entry] }]);
}

/// Segments small enough for a log of several.
fn small_log() -> LogOptions {
    LogOptions {
        sync: true,
        segment_bytes: 6 * 1024,
        zero_fill_bytes: 1024,
        group_bytes_max: 400,
        held_bytes_max: 64 * 1024,
        salt: 7,
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// A log of a few segments with entries, replaced entries and hard states.
fn base_log() -> &'static Files {
    static BASE: OnceLock<Files> = OnceLock::new();
    BASE.get_or_init(|| {
        let disk = RamDisk::new(Files::new());
        let (mut log, _) = DiskLog::open_on(Arc::new(disk.clone()), small_log()).unwrap();
        for number in 1..40u64 {
            let term = 1 + number / 10;
            let first = if number % 9 == 0 { number - 2 } else { number };
            let data = Bytes::from(vec![number as u8; 150]);
            let entries =
                (first..=number).map(|index| LogEntry { term, index, data: data.clone() });
            let hard_state = HardState {
                term,
                vote: Some(NodeId(2)),
                commit: number.saturating_sub(4),
                admitted: true,
            };
            let entries = entries.collect();
            log.append(&[LogBatch { number, hard_state: Some(hard_state), entries }]).unwrap();
        }
        disk.files.lock().unwrap().clone()
    })
}

/// One change to one of the files: a byte set, a bit flipped, an end cut off, a file gone, bytes
/// moved.
fn change(files: &mut Files, edit: &[u8]) {
    let [file, action, high, low, value] = *edit else { return };
    let names: Vec<String> = files.keys().cloned().collect();
    let Some(name) = names.get(usize::from(file) % names.len().max(1)) else { return };
    let Some(bytes) = files.get_mut(name) else { return };
    let position = usize::from(high) * 256 + usize::from(low);
    let position = position % bytes.len().max(1);
    match action % 8 {
        0 => {
            files.remove(name);
        }
        1 => bytes.truncate(position),
        2 => bytes.extend(std::iter::repeat_n(value, 8)),
        3 => {
            let end = (position + usize::from(value) + 1).min(bytes.len());
            bytes[position..end].fill(0);
        }
        4 if !bytes.is_empty() => bytes[position] = value,
        5 => {
            // A piece of the file again, elsewhere.
            let from = usize::from(value) * 16 % bytes.len().max(1);
            let taken = bytes[from..].iter().take(64).copied().collect::<Vec<u8>>();
            let end = (position + taken.len()).min(bytes.len());
            bytes[position..end].copy_from_slice(&taken[..end - position]);
        }
        _ if !bytes.is_empty() => bytes[position] ^= 1 << (value % 8),
        _ => {}
    }
}

/// Gives each frame of a segment a right checksum again, so that the code behind the checksums is
/// reached, too. The layout is `storage::log::format`'s.
fn mend_checksums(segment: &mut [u8]) {
    const HEADER: usize = 4096;
    const FIELDS: usize = 8 + 4 + 5 * 8 + 1 + 3 * 8 + 1;
    if segment.len() < HEADER {
        return;
    }
    let crc = crc32fast::hash(&segment[..FIELDS]);
    segment[FIELDS..FIELDS + 4].copy_from_slice(&crc.to_le_bytes());
    let mut at = HEADER;
    while let Some(header) = segment.get(at..at + 40) {
        let payload_bytes =
            u32::from_le_bytes([header[24], header[25], header[26], header[27]]) as usize;
        let Some(payload) = segment.get(at + 40..(at + 40).saturating_add(payload_bytes)) else {
            return;
        };
        let payload_crc = crc32fast::hash(payload).to_le_bytes();
        segment[at + 32..at + 36].copy_from_slice(&payload_crc);
        let crc = crc32fast::hash(&segment[at..at + 36]).to_le_bytes();
        segment[at + 36..at + 40].copy_from_slice(&crc);
        at = (at + 40 + payload_bytes).next_multiple_of(8);
    }
}

fn log_examples() -> Vec<Vec<u8>> {
    let last = base_log().values().next_back().cloned().unwrap_or_default();
    vec![
        vec![0, 0, 6, 16, 9, 3],
        vec![0, 1, 1, 18, 0, 0, 2, 0, 0, 0, 0],
        vec![2, 0, 4, 16, 26, 200, 1, 4, 16, 28, 1],
        [&[3], &last[..]].concat(),
    ]
}

/// A directory in memory.
#[derive(Clone)]
struct RamDisk {
    files: Arc<Mutex<Files>>,
}

struct RamFile {
    disk: RamDisk,
    name: String,
}

impl RamDisk {
    fn new(files: Files) -> RamDisk {
        RamDisk { files: Arc::new(Mutex::new(files)) }
    }

    fn with<T>(&self, step: impl FnOnce(&mut Files) -> T) -> T {
        step(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn file(&self, name: &str) -> Arc<dyn DiskFile> {
        Arc::new(RamFile { disk: self.clone(), name: name.to_owned() })
    }
}

impl Directory for RamDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.with(|files| files.keys().cloned().collect()))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.with(|files| files.insert(name.to_owned(), Vec::new()));
        Ok(self.file(name))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.with(|files| files.contains_key(name)) {
            true => Ok(self.file(name)),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|files| files.remove(name));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let renamed = self
            .with(|files| files.remove(from).map(|bytes| _ = files.insert(to.to_owned(), bytes)));
        renamed.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn remove_directory(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The log has none.
    fn directory(&self, _: &str) -> io::Result<Arc<dyn Directory>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { free_bytes: 1 << 40, total_bytes: 1 << 20 })
    }

    fn is_in_place(&self, _: &[&str]) -> io::Result<bool> {
        Ok(true)
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

impl RamFile {
    fn with<T>(&self, step: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        self.disk.with(|files| match files.get_mut(&self.name) {
            Some(bytes) => Ok(step(bytes)),
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }
}

impl DiskFile for RamFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.with(|bytes| bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|bytes| {
            let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
            let rest = rest.unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        })
    }

    fn write_all_at(&self, written: &[u8], offset: u64) -> io::Result<()> {
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(written.len()));
        let end = end.filter(|end| *end < 1 << 24).ok_or(io::ErrorKind::FileTooLarge)?;
        self.with(|bytes| {
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[end - written.len()..end].copy_from_slice(written);
        })
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let len = usize::try_from(len_bytes).ok().filter(|len| *len < 1 << 24);
        let len = len.ok_or(io::ErrorKind::FileTooLarge)?;
        self.with(|bytes| bytes.resize(len, 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.set_len(len_bytes)
    }

    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}

// ---- snapshots ------------------------------------------------------------------------------

/// The bytes are chunks, each with a right checksum: what is behind the checksum is reached. A
/// snapshot that the sink accepts can be put in the store's place and read.
pub fn snapshot(data: &[u8]) {
    let Some((point, mut left)) = take_point(data) else { return };
    let staging = MemoryStaging::new();
    let mut sink = SnapshotSink::create(staging.clone(), point).expect("memory can be staged in");
    let mut sequence = 0u64;
    while let [high, low, rest @ ..] = left {
        let length = (usize::from(*high) * 256 + usize::from(*low)).min(rest.len());
        let (rows, rest) = rest.split_at(length);
        left = rest;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&sequence.to_le_bytes());
        hasher.update(rows);
        let data = [rows, &hasher.finalize().to_le_bytes()].concat().into();
        if sink.push(&SnapshotChunk { sequence, data }).is_ok() {
            sequence += 1;
        }
    }
    if sink.finish().is_ok() {
        assert!(!staging.is_building());
    }
}

/// The point that a snapshot announces.
fn take_point(data: &[u8]) -> Option<(AppliedPoint, &[u8])> {
    let (fields, rest) = data.split_first_chunk::<24>()?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&fields[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let timestamp = Timestamp(number(8) as i64);
    Some((AppliedPoint { index: number(0), timestamp, hash: number(16) }, rest))
}

fn snapshot_examples() -> Vec<Vec<u8>> {
    let mut machine = machine();
    let mut source = machine.begin_snapshot().expect("a state in memory can be viewed");
    let point = source.point();
    let mut example = Vec::new();
    example.extend_from_slice(&point.index.to_be_bytes());
    example.extend_from_slice(&point.timestamp.0.to_be_bytes());
    example.extend_from_slice(&point.hash.to_be_bytes());
    while let Some(chunk) = source.next_chunk(300).expect("a state in memory can be read") {
        let rows = &chunk.data[..chunk.data.len() - 4];
        example.extend_from_slice(&(rows.len() as u16).to_be_bytes());
        example.extend_from_slice(rows);
    }
    vec![example]
}

// ---- the rows of the store ------------------------------------------------------------------

/// The bytes are rows that an engine holds. The state machine opens them or says what is wrong;
/// reads and commands then answer or say what is wrong.
pub fn rows(data: &[u8]) {
    let engine = Arc::new(MemoryEngine::new());
    let mut batch = WriteBatch::default();
    let mut left = data;
    while let [key_bytes, value_bytes, rest @ ..] = left {
        let (key, rest) = rest.split_at(usize::from(*key_bytes).min(rest.len()));
        let (value, rest) = rest.split_at(usize::from(*value_bytes).min(rest.len()));
        left = rest;
        batch.put(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    }
    engine.write_durably(&batch).expect("memory takes every row");
    let Ok(mut machine) = StateMachine::open(engine, StateLimits::default()) else { return };
    let store = machine.store();
    let end = Bytes::from_static(&[0xff; 8]);
    let (from, to) = (Bytes::from_static(b"\0"), end);
    let reverse = PageOf::RangeReverse { from: from.clone(), to: to.clone() };
    let range = PageOf::Range { from, to };
    let versions = PageOf::Versions { key: Bytes::from_static(b"a") };
    for of in [range, reverse, versions] {
        let most = PageLimits { rows: 10, bytes: 4096, ..PageLimits::default() };
        let newest = ReadView::as_of(Timestamp(i64::MAX));
        let _ = store.first_page(&of, newest, most);
        let _ = store.page(&of, ReadView { at: Timestamp(5), ..newest }, most);
    }
    let _ = store.get(b"a");
    let point = machine.applied();
    let Some(next) = point.index.checked_add(1) else { return };
    let entries = [put(point.timestamp.0.saturating_add(1), b"a", b"v")];
    let _ = machine.apply(&numbered(next, &entries));
    let _ = machine.checkpoint();
    if let Ok(mut source) = machine.begin_snapshot() {
        while let Ok(Some(_)) = source.next_chunk(512) {}
    }
}

fn row_examples() -> Vec<Vec<u8>> {
    let engine = machine_on(Arc::new(MemoryEngine::new()));
    let mut example = Vec::new();
    let all = acervo::storage::keys::all();
    let mut visit = |key: &[u8], value: &[u8]| {
        example.push(key.len() as u8);
        example.push(value.len() as u8);
        example.extend_from_slice(key);
        example.extend_from_slice(value);
        std::ops::ControlFlow::Continue(())
    };
    engine.scan(&all, acervo::storage::engine::Direction::Forward, &mut visit).expect("memory");
    vec![example]
}

/// A state with a bit of everything that a store can hold.
fn machine() -> StateMachine {
    StateMachine::open(machine_on(Arc::new(MemoryEngine::new())), StateLimits::default())
        .expect("what was just written")
}

fn machine_on(engine: Arc<MemoryEngine>) -> Arc<MemoryEngine> {
    let mut machine =
        StateMachine::open(engine.clone(), StateLimits::default()).expect("an empty engine opens");
    let bytes = Bytes::from_static;
    let pairs = vec![(bytes(b"b"), bytes(b"1")), (bytes(b"c\0d"), bytes(b""))];
    let commands = [
        put(1, b"a", b"old"),
        put(2, b"a", b"new"),
        write(3, WriteOp::PutAll(PutAll { pairs })),
        write(
            4,
            WriteOp::Del(Del { key: bytes(b"b"), tells_previous: false, keeps_history: false }),
        ),
        write(5, WriteOp::Trim(Trim { key: bytes(b"a"), tells_previous: false })),
        write(
            6,
            WriteOp::DelRange(DelRange {
                from: bytes(b"c"),
                to: bytes(b"z"),
                keeps_history: false,
            }),
        ),
        put(7, b"e", b"again"),
        put(8, b"f", b"past"),
        write(
            9,
            WriteOp::Del(Del { key: bytes(b"f"), tells_previous: false, keeps_history: true }),
        ),
    ];
    machine.apply(&numbered(1, &commands)).expect("good commands");
    machine.checkpoint().expect("memory");
    engine
}

fn put(timestamp: i64, key: &'static [u8], value: &'static [u8]) -> Command {
    write(
        timestamp,
        WriteOp::Put(Put { key: key.into(), value: value.into(), tells_previous: false }),
    )
}

fn write(timestamp: i64, op: WriteOp) -> Command {
    let sequence = u64::try_from(timestamp).unwrap_or(1).max(1);
    let request =
        RequestId { client: ClientId(9), sequence, answered_below: 1, begun: Timestamp::ZERO };
    Command::write(Timestamp(timestamp), request, op)
}

fn numbered(first: LogIndex, commands: &[Command]) -> Vec<LogEntry> {
    let entry = |(index, command): (u64, &Command)| LogEntry {
        term: 1,
        index: first.saturating_add(index),
        data: command.encode(),
    };
    (0..).zip(commands).map(entry).collect()
}

// ---- what is known of a shared folder ---------------------------------------------------------

/// Where the hash of a folder's state is, and where what it is of begins.
const STATE_HASH: std::ops::Range<usize> = 8..40;

/// The state of a shared folder, as it is and with a hash that fits: what can be decoded is the
/// same after it was encoded again.
pub fn share_state(data: &[u8]) {
    let check = |bytes: &[u8]| {
        let Some(known) = state::decode(bytes) else { return };
        let files = known.files.iter().map(|file| {
            let chunks = file.manifest.chunks().len() as u64;
            assert_eq!(chunks, chunk_count(file.manifest.size()), "{}", file.name);
            assert_eq!(file.identity.stamp.size, file.manifest.size(), "{}", file.name);
            (file.name.clone(), file.identity, Arc::new(file.manifest.clone()))
        });
        let again = state::encode(known.peer, known.inode, files).expect("what was decoded");
        assert_eq!(state::decode(&again), Some(known));
    };
    check(data);
    if data.len() > STATE_HASH.end {
        let mut sealed = data.to_vec();
        let hash = blake3::hash(&sealed[STATE_HASH.end..]);
        sealed[STATE_HASH].copy_from_slice(hash.as_bytes());
        check(&sealed);
    }
}

fn share_state_examples() -> Vec<Vec<u8>> {
    let file = |name: &str, bytes: &[u8], modified: Option<i64>| {
        let manifest = Manifest::of_bytes(bytes).expect("a small file");
        let modified = modified.map(|seconds| {
            let distance = Duration::new(seconds.unsigned_abs(), 123_456_789);
            let epoch = SystemTime::UNIX_EPOCH;
            if seconds < 0 { epoch - distance } else { epoch + distance }
        });
        let identity = FileIdentity {
            stamp: FileStamp {
                size: manifest.size(),
                modified,
                changed_ns: 1_795_219_200_123_456_789,
            },
            inode: 77,
        };
        (FileName::new(name).expect("a good name"), identity, Arc::new(manifest))
    };
    let files = vec![
        file("film.mkv", &[7; 3 * 1024 * 1024 + 5], Some(1_795_219_200)),
        file("coração.txt", b"x", Some(-5)),
        file("none", b"", None),
    ];
    let encode = |files: Vec<_>| {
        state::encode(PeerId(7), 42, files.into_iter()).expect("it fits into memory")
    };
    vec![encode(files.clone()), encode(files[1..].to_vec()), encode(Vec::new())]
}

// ---- partial files --------------------------------------------------------------------------

/// What the last block of a `NAME.part` says. Every byte of it counts: whatever is taken for a
/// trailer is the one that would be written.
pub fn part(data: &[u8]) {
    if let Some(mark) = Trailer::decode(data) {
        assert_eq!(mark.encode(), data);
    }
}

fn part_examples() -> Vec<Vec<u8>> {
    let mark =
        |size, content| Trailer { size, content: ContentId([content; 32]) }.encode().to_vec();
    let good = mark(1 << 30, 7);
    vec![mark(0, 0), good[..88].to_vec(), good[..4095].to_vec(), good]
}
