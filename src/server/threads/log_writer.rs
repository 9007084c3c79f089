//! The log writer: everything that has queued up becomes durable with one write and one sync.
//!
//! A failure ends the process, because what a failed sync left on the disk is unknown.

use std::io;
use std::sync::Arc;

use super::super::work::{Completion, LogWork, SnapshotWork, StoreWork};
use super::completions::CompletionSender;
use super::writer::{WriterQueue, WriterThread};
use crate::limits;
use crate::model::{LogBatch, LogIndex};
use crate::node::InstallRequest;
use crate::storage::log::compaction::{self, NeededByOthers, RetentionReasons};
use crate::storage::log::{DiskLog, LogError};
use crate::storage::reserve::DiskReserve;
use crate::workers::queue::Receiver;

/// Starts the log writer, which has the applier install a snapshot once the log begins after it.
pub(super) fn start(
    log: DiskLog,
    reserve: Arc<DiskReserve>,
    applier: WriterQueue<StoreWork>,
    completions: CompletionSender,
) -> io::Result<WriterThread<LogWork>> {
    WriterThread::start("acervo-raftlog", move |work: Receiver<LogWork>| {
        let mut thread = LogThread { log, reserve, applier, completions, batches: Vec::new() };
        while let Ok(first) = work.recv() {
            let outcome = thread.group(first, &work);
            let failed = outcome.is_err();
            if let Err(error) = outcome {
                thread.completions.send(Completion::Failed(error.to_string()));
            }
            thread.completions.wake();
            if failed {
                return;
            }
        }
    })
}

struct LogThread {
    log: DiskLog,
    reserve: Arc<DiskReserve>,
    applier: WriterQueue<StoreWork>,
    completions: CompletionSender,
    batches: Vec<LogBatch>,
}

impl LogThread {
    /// Does `first` and what has queued up behind it.
    fn group(&mut self, first: LogWork, work: &Receiver<LogWork>) -> Result<(), LogError> {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(item) = next.take() {
            match item {
                LogWork::Append(batch, batch_bytes) => {
                    bytes += batch_bytes;
                    self.batches.push(batch);
                }
                LogWork::Install(InstallRequest { number, snapshot, hard_state }) => {
                    self.append()?;
                    self.log.reset(snapshot.index, snapshot.term, hard_state)?;
                    // Before the core learns of it, and so before it commits anything that comes
                    // after the snapshot. The applier tells that the log is durable, too: what two
                    // threads tell may come in either order, and the core would take what is
                    // applied for more than what is durable.
                    self.applier.push(StoreWork::Snapshot(SnapshotWork::Install { number }));
                }
                LogWork::Compact { durable_index, needed } => {
                    self.append()?;
                    self.compact(durable_index, needed)?;
                }
            }
            if bytes < limits::LOG_GROUP_BYTES_MAX {
                next = work.try_recv();
            }
        }
        self.append()
    }

    fn append(&mut self) -> Result<(), LogError> {
        let Some(number) = self.batches.last().map(|batch| batch.number) else { return Ok(()) };
        self.log.append(&self.batches)?;
        self.batches.clear();
        self.completions.send(Completion::Persisted { number });
        Ok(())
    }

    fn compact(&mut self, durable_index: LogIndex, needed: NeededByOthers) -> Result<(), LogError> {
        let (before, _) = self.log.reader().bounds();
        let first = compaction::first_kept(RetentionReasons {
            durable_index,
            recent_first_index: self.log.recent_first_index(),
            needed,
            longest_first_index: self.log.longest_first_index(),
            space: self.reserve.space(),
        });
        self.log.compact(first)?;
        let (first_index, _) = self.log.reader().bounds();
        if first_index > before {
            log::info!("the log now begins at index {first_index}");
            self.completions.send(Completion::Compacted { first_index });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use bytes::Bytes;

    use super::super::applier;
    use super::super::applier::ApplierParts;
    use super::super::background::Background;
    use super::super::watcher::WatchThread;
    use super::*;
    use crate::model::{ClusterId, HardState, LogEntry, NodeId, SnapshotId, StateLimits};
    use crate::net::{EventLoop, LoopConfig};
    use crate::server::work::SnapshotReport;
    use crate::storage::apply::StateMachine;
    use crate::storage::datadir::DataDir;
    use crate::storage::files::{Directory, DiskFile, RealDirectory, Space};
    use crate::storage::log::LogOptions;
    use crate::storage::memory::MemoryEngine;

    /// A directory on a disk that answers no sync any more once it hangs.
    #[derive(Clone)]
    struct Hanging {
        directory: Arc<dyn Directory>,
        /// Filled until it hangs; what waits for it then waits for ever.
        healthy: crossbeam_channel::Receiver<()>,
    }

    struct HangingFile {
        file: Arc<dyn DiskFile>,
        disk: Hanging,
    }

    impl Hanging {
        fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
            Arc::new(HangingFile { file, disk: self.clone() })
        }
    }

    impl Directory for Hanging {
        fn list(&self) -> io::Result<Vec<String>> {
            self.directory.list()
        }

        fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
            Ok(self.file(self.directory.create(name)?))
        }

        fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
            Ok(self.file(self.directory.open(name)?))
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.directory.remove(name)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.directory.rename(from, to)
        }

        fn sync(&self) -> io::Result<()> {
            self.directory.sync()
        }

        fn remove_directory(&self, name: &str) -> io::Result<()> {
            self.directory.remove_directory(name)
        }

        fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
            self.directory.directory(name)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path(name)
        }

        fn space(&self) -> io::Result<Space> {
            self.directory.space()
        }

        fn is_in_place(&self, names: &[&str]) -> io::Result<bool> {
            self.directory.is_in_place(names)
        }
    }

    impl DiskFile for HangingFile {
        fn len_bytes(&self) -> io::Result<u64> {
            self.file.len_bytes()
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.file.read_at(buffer, offset)
        }

        fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.file.write_all_at(bytes, offset)
        }

        fn set_len(&self, len_bytes: u64) -> io::Result<()> {
            self.file.set_len(len_bytes)
        }

        fn allocate(&self, len_bytes: u64) -> io::Result<()> {
            self.file.allocate(len_bytes)
        }

        fn sync_data(&self) -> io::Result<()> {
            let _ = self.disk.healthy.recv();
            self.file.sync_data()
        }

        fn try_lock(&self) -> io::Result<bool> {
            self.file.try_lock()
        }

        fn unlock(&self) -> io::Result<()> {
            self.file.unlock()
        }
    }

    /// The applier's report of a short installation came before the log writer's, and the server
    /// stopped: more was applied than was durable.
    #[test]
    fn the_applier_alone_reports_an_installation_and_first_that_the_log_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&dir.path().join("data"), ClusterId(1), NodeId(1), 7).unwrap();
        let event_loop = EventLoop::new(LoopConfig::default(), None).unwrap();
        let directory = Arc::new(RealDirectory::open(&dir.path().join("log")).unwrap());
        let (log, _) = DiskLog::open_on(directory, LogOptions::default()).unwrap();
        let (completions, completed) = CompletionSender::new(event_loop.wake_handle());
        let open = || StateMachine::open(Arc::new(MemoryEngine::new()), StateLimits::default());
        let (staging, reserve) = (data_dir.staging(), data_dir.reserve().clone());
        let machine = open().unwrap();
        let (sealed, background) = Background::start(machine.store(), completions.clone()).unwrap();
        let (outputs, _) = crossbeam_channel::unbounded();
        let watcher = WatchThread::start(machine.store(), 7, outputs, completions.clone()).unwrap();
        let parts = ApplierParts {
            staging,
            reserve: reserve.clone(),
            sealed,
            watches: watcher.queue(),
            completions: completions.clone(),
        };
        let applier = applier::start(machine, parts).unwrap();
        let writer = start(log, reserve, applier.queue(), completions).unwrap();

        let mut theirs = open().unwrap();
        theirs.apply(&[LogEntry { term: 1, index: 1, data: Bytes::new() }]).unwrap();
        let (id, point) = (1, theirs.applied());
        let mut source = theirs.begin_snapshot().unwrap();
        applier.push(StoreWork::Snapshot(SnapshotWork::Begin { id, point }));
        while let Some(chunk) = source.next_chunk(1 << 20).unwrap() {
            applier.push(StoreWork::Snapshot(SnapshotWork::Store { id, chunk }));
        }
        applier.push(StoreWork::Snapshot(SnapshotWork::Stage { id }));
        let snapshot = SnapshotId { leader_term: 1, index: 1, term: 1 };
        let hard_state = HardState { term: 1, ..HardState::default() };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match completed.recv_deadline(deadline).unwrap() {
                Completion::Snapshot(SnapshotReport::Staged { .. }) => break,
                Completion::Snapshot(SnapshotReport::Failed { reason, .. }) => panic!("{reason}"),
                _ => {}
            }
        }
        writer.push(LogWork::Install(InstallRequest { number: 7, snapshot, hard_state }));
        assert!(writer.finish(deadline));
        assert!(applier.finish(deadline) && background.finish(deadline));
        let told: Vec<&str> = completed
            .try_iter()
            .filter_map(|completion| match completion {
                Completion::Persisted { number: 7 } => Some("durable"),
                Completion::Snapshot(SnapshotReport::Installed { .. }) => Some("installed"),
                _ => None,
            })
            .collect();
        assert_eq!(told, ["durable", "installed"]);
    }

    #[test]
    fn a_writer_whose_disk_hangs_is_not_waited_for_and_one_that_is_well_is() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&dir.path().join("data"), ClusterId(1), NodeId(1), 7).unwrap();
        let event_loop = EventLoop::new(LoopConfig::default(), None).unwrap();
        let (health, healthy) = crossbeam_channel::unbounded();
        let directory = Arc::new(RealDirectory::open(&dir.path().join("log")).unwrap());
        (0..100).for_each(|_| health.send(()).unwrap());
        let disk = Arc::new(Hanging { directory, healthy: healthy.clone() });
        for hangs in [false, true] {
            let (log, _) = DiskLog::open_on(disk.clone(), LogOptions::default()).unwrap();
            let (completions, completed) = CompletionSender::new(event_loop.wake_handle());
            let reserve = data_dir.reserve().clone();
            let applier = WriterThread::start("test", |_| {}).unwrap();
            let writer = start(log, reserve, applier.queue(), completions).unwrap();
            if hangs {
                healthy.try_iter().for_each(drop);
            }
            let hard_state = Some(HardState { term: 1 + u64::from(hangs), ..HardState::default() });
            writer.push(LogWork::append(LogBatch { number: 1, hard_state, ..LogBatch::default() }));
            let patience = if hangs { Duration::from_millis(50) } else { Duration::from_secs(60) };
            assert_eq!(writer.finish(Instant::now() + patience), !hangs);
            assert_eq!(completed.try_iter().count(), usize::from(!hangs));
        }
        // Lets the thread that was given up end.
        drop(health);
    }
}
