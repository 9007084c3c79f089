//! A server that takes in a snapshot is killed at every step of it: finish the staged store, reset the
//! log, install. Each time it comes up with what it had before, or with the snapshot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use acervo::command::{Command, WriteOp};
use acervo::storage::apply::StateMachine;
use acervo::storage::datadir::DataDir;
use acervo::storage::log::{DirFs, DiskLog, LogFile, LogFs, LogOptions};
use acervo::storage::memory::MemoryEngine;
use acervo::storage::snapshot::{SnapshotChunk, SnapshotSink};
use acervo::storage::{self, Storage, StorageError};
use acervo::types::{
    AppliedPoint, ClientId, ClusterId, HardState, LogBatch, LogEntry, LogIndex, NodeId, RequestId,
    Timestamp,
};
use bytes::Bytes;
use tempfile::TempDir;

/// What the server has applied, and what of it is durable, when the snapshot comes.
const APPLIED: LogIndex = 8;
const CHECKPOINT: LogIndex = 5;
const SNAPSHOT: LogIndex = 300;

fn put(index: LogIndex) -> LogEntry {
    let request = RequestId { client: ClientId(1), sequence: index, answered_below: index };
    let key = Bytes::from(format!("key {}", index % 50));
    let op = WriteOp::Put { key, value: Bytes::from(format!("value {index}")) };
    LogEntry { term: 1, index, data: Command::write(Timestamp(index as i64), request, op).encode() }
}

fn entries(first: LogIndex, last: LogIndex) -> LogBatch {
    LogBatch { entries: (first..=last).map(put).collect(), ..LogBatch::default() }
}

fn options() -> LogOptions {
    LogOptions { segment_bytes: 8 * 1024, zero_fill_bytes: 1024, ..LogOptions::default() }
}

fn data_dir(path: &Path) -> DataDir {
    DataDir::open(path, ClusterId(1), NodeId(1), 7).unwrap()
}

/// The state after the first `count` writes, and the same as a snapshot.
fn snapshot(count: LogIndex) -> (AppliedPoint, Vec<SnapshotChunk>) {
    let mut machine = StateMachine::open(Arc::new(MemoryEngine::new())).unwrap();
    machine.apply(&entries(1, count).entries).unwrap();
    let mut source = machine.begin_snapshot().unwrap();
    let chunks = std::iter::from_fn(|| source.next_chunk(2000).unwrap()).collect();
    (source.point(), chunks)
}

/// Copies of a data directory, as a process that was killed would leave it.
#[derive(Clone)]
struct Camera {
    dir: PathBuf,
    shots: Arc<Mutex<Vec<(&'static str, TempDir)>>>,
}

impl Camera {
    fn shoot(&self, moment: &'static str) {
        let shot = TempDir::new().unwrap();
        copy(&self.dir, shot.path()).unwrap();
        self.shots.lock().unwrap().push((moment, shot));
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The log's directory, photographed after everything that is done to it.
struct Watched {
    fs: DirFs,
    camera: Camera,
}

struct WatchedFile {
    file: Arc<dyn LogFile>,
    camera: Camera,
}

impl Watched {
    fn file(&self, file: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(WatchedFile { file, camera: self.camera.clone() })
    }
}

impl LogFs for Watched {
    fn list(&self) -> io::Result<Vec<String>> {
        self.fs.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let file = self.fs.create(name)?;
        self.camera.shoot("a segment created");
        Ok(self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        self.fs.open(name).map(|file| self.file(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.fs.remove(name)?;
        self.camera.shoot("a segment removed");
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.fs.sync_dir()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fs.path(name)
    }
}

impl LogFile for WatchedFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        self.camera.shoot("a segment written");
        Ok(())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Brings a server up to `applied` entries, then through a snapshot; a picture of every moment.
fn photographed(applied: LogIndex, checkpoint: LogIndex) -> Vec<(&'static str, TempDir)> {
    let dir = TempDir::new().unwrap();
    let data_dir = data_dir(dir.path());
    let mut machine = {
        let Storage { mut log, mut machine, .. } = storage::open(&data_dir, options()).unwrap();
        log.append(&[entries(1, applied)]).unwrap();
        machine.apply(&entries(1, checkpoint).entries).unwrap();
        machine.checkpoint().unwrap();
        machine.apply(&entries(checkpoint + 1, applied).entries).unwrap();
        machine
    };
    let camera = Camera { dir: dir.path().to_path_buf(), shots: Arc::default() };
    let fs = DirFs::open(&data_dir.log_dir()).unwrap();
    let fs = Arc::new(Watched { fs, camera: camera.clone() });
    let (mut log, _) = DiskLog::open_on(fs, options()).unwrap();
    camera.shots.lock().unwrap().clear();

    let (point, chunks) = snapshot(SNAPSHOT);
    camera.shoot("before");
    let mut sink = SnapshotSink::create(data_dir.staging(), point).unwrap();
    camera.shoot("begun");
    for chunk in &chunks {
        sink.push(chunk).unwrap();
        camera.shoot("a chunk taken in");
    }
    let staged = sink.finish().unwrap();
    camera.shoot("finished");
    let hard_state = HardState { term: 2, vote: 1, commit: SNAPSHOT, admitted: true };
    log.reset(SNAPSHOT, 1, hard_state).unwrap();
    camera.shoot("the log reset");
    log.append(&[entries(SNAPSHOT + 1, SNAPSHOT + 3)]).unwrap();
    camera.shoot("the log going on");
    machine.install(staged).unwrap();
    camera.shoot("installed");
    machine.apply(&entries(SNAPSHOT + 1, SNAPSHOT + 2).entries).unwrap();
    machine.checkpoint().unwrap();
    camera.shoot("going on");
    std::mem::take(&mut camera.shots.lock().unwrap())
}

fn check_every_moment(applied: LogIndex, checkpoint: LogIndex) {
    let steady = |count| snapshot(count).0;
    let shots = photographed(applied, checkpoint);
    let mut has_snapshot = false;
    let mut removals = 0;
    for (number, (moment, shot)) in shots.iter().enumerate() {
        let data_dir = data_dir(shot.path());
        let storage = storage::open(&data_dir, options());
        let Storage { mut log, mut machine, recovered } =
            storage.unwrap_or_else(|error| panic!("moment {number}, {moment}: {error}"));
        assert!(!has_snapshot || recovered.first_index == SNAPSHOT + 1, "{moment}: back again");
        has_snapshot = recovered.first_index == SNAPSHOT + 1;
        removals += usize::from(*moment == "a segment removed");
        if has_snapshot {
            assert_eq!((recovered.previous_term, recovered.hard_state.term), (1, 2), "{moment}");
            assert!(recovered.applied.index >= SNAPSHOT);
        } else {
            let bounds = (recovered.first_index, recovered.last_index);
            assert_eq!((bounds, recovered.applied.index), ((1, applied), checkpoint), "{moment}");
        }
        assert_eq!(recovered.applied, steady(recovered.applied.index), "{moment}");
        for file in ["snapshot.partial", "snapshot.redb"] {
            assert!(!shot.path().join(file).exists(), "{moment}: {file} is left");
        }
        // It works, and comes up with the same once more.
        machine.apply(&recovered.entries).unwrap();
        let next = entries(recovered.last_index + 1, recovered.last_index + 4);
        log.append(std::slice::from_ref(&next)).unwrap();
        machine.apply(&next.entries).unwrap();
        assert_eq!(machine.applied(), steady(recovered.last_index + 4), "{moment}");
        drop((log, machine));
        let again = storage::open(&data_dir, options()).unwrap().recovered;
        assert_eq!(again.applied, recovered.applied, "{moment}");
        assert_eq!(again.last_index, recovered.last_index + 4, "{moment}");
    }
    assert!(has_snapshot && removals > 0);
    let (last, _) = &shots[shots.len() - 1];
    assert_eq!(*last, "going on");
}

#[test]
fn a_lagging_server_killed_at_any_moment_of_a_snapshot_comes_up_right() {
    check_every_moment(APPLIED, CHECKPOINT);
}

#[test]
fn a_blank_server_killed_at_any_moment_of_a_snapshot_comes_up_right() {
    check_every_moment(0, 0);
}

#[test]
fn a_staged_snapshot_that_does_not_fit_the_log_is_not_adopted() {
    let dir = TempDir::new().unwrap();
    let data_dir = data_dir(dir.path());
    {
        let mut log = storage::open(&data_dir, options()).unwrap().log;
        log.reset(SNAPSHOT, 1, HardState::default()).unwrap();
    }
    let (point, chunks) = snapshot(SNAPSHOT - 1);
    let mut sink = SnapshotSink::create(data_dir.staging(), point).unwrap();
    chunks.iter().for_each(|chunk| sink.push(chunk).unwrap());
    drop(sink.finish().unwrap());
    let Err(error) = storage::open(&data_dir, options()) else {
        panic!("opened without its store")
    };
    assert!(matches!(error, StorageError::StoreLost { first: 301, applied: 0 }), "{error}");
}
