//! The stages of a download: the chunk hashes, what was kept of an earlier attempt, the file when it is
//! whole.

use std::sync::Arc;

use super::super::api::{FetchError, FetchOutcome, FetchPhase, Kept};
use super::super::disk::{DiskDone, DiskJob};
use super::super::hashes::{HashLists, PageOutcome};
use super::super::links::RequestKind;
use super::super::part::Finish;
use super::{Driver, Handled};
use crate::limits;
use crate::model::ChunkHash;
use crate::net::Net;
use crate::share::content::{Manifest, chunk_count, chunk_len};
use crate::share::offer::{Available, FileStamp, Offer};
use crate::share::swarm::{DropReason, SourceId, SourceStatus};
use crate::wire::share::PeerRequest;
use crate::workers::pool::SubmitError;

impl Driver {
    /// Asks somebody for the chunk hashes, or somebody else when that one takes too long.
    pub(super) fn ask_for_hashes(&mut self, net: &mut Net) {
        if self.phase != FetchPhase::Asking {
            return;
        }
        if let Some(manifest) = HashLists::without_asking(self.options.content, self.options.size) {
            return self.manifest_known(net, manifest);
        }
        let now = self.elapsed(net);
        for late in self.lists.late(now) {
            self.swarm.leave_silent(late, now);
        }
        // Whoever is left here is asked no more.
        self.act(net);
        let ids = (0..self.links.len()).map(SourceId);
        let ready: Vec<SourceId> =
            ids.filter(|id| self.swarm.status(*id) == SourceStatus::Ready).collect();
        while let Some(source) = self.lists.next(&ready, self.links.len(), now) {
            if let Some(slowest) = self.lists.take_replaced() {
                self.swarm.make_room(slowest, now);
            }
            let asked = &self.links[source.0].asked;
            // An answer that is still on its way will do.
            let is_asked = asked.values().any(|kind| *kind == RequestKind::Hashes(0));
            if !is_asked && asked.len() < limits::ANSWERS_OWED_MAX {
                self.ask_hashes_of(net, source, 0);
            }
        }
    }

    fn ask_hashes_of(&mut self, net: &mut Net, source: SourceId, first: u64) {
        let body = PeerRequest::Hashes { content: self.options.content, first };
        self.ask(net, source, RequestKind::Hashes(first), body);
    }

    pub(super) fn hashes(
        &mut self,
        net: &mut Net,
        source: SourceId,
        first: u64,
        hashes: &[ChunkHash],
    ) -> Handled {
        if self.phase != FetchPhase::Asking {
            // Somebody else was quicker.
            return Ok(());
        }
        let now = self.elapsed(net);
        match self.lists.take(source, first, hashes, now) {
            PageOutcome::More(first) => {
                // Progress is a page that nobody has given so far: any number of sources give the first one and leave.
                if first > self.hashes_known {
                    (self.hashes_at, self.hashes_known) = (now, first);
                }
                self.ask_hashes_of(net, source, first);
            }
            PageOutcome::Whole(manifest) => self.manifest_known(net, manifest),
            PageOutcome::Late => {}
            PageOutcome::Wrong => return Err(DropReason::WrongBytes),
        }
        Ok(())
    }

    /// The chunk hashes are known: on to what was kept.
    fn manifest_known(&mut self, net: &mut Net, manifest: Manifest) {
        let manifest = Arc::new(manifest);
        self.manifest = Some(Arc::clone(&manifest));
        if let Some(partials) = &self.options.partials {
            partials.insert(Offer {
                manifest,
                folder: Arc::new(self.options.to.clone()),
                file: self.part.file_name(),
                opened: self.part.served(),
                stamp: None,
                available: Available::Partial(Arc::clone(&self.stored)),
            });
        }
        if self.part.is_resumed() {
            self.phase = FetchPhase::Checking;
        } else {
            self.begin(net);
        }
    }

    /// While the file is checked, keeps the workers busy with that: before each sleep, since a completion of any kind may
    /// have made room for a check, and since nothing else would ask for the next one. Chunks that wait to be stored take
    /// nothing from the places that checks have, or they could keep them out for as long as they come.
    pub(super) fn check_more(&mut self, net: &mut Net) {
        let chunks = chunk_count(self.options.size);
        let Some(manifest) = self.manifest.clone() else {
            return;
        };
        while self.phase == FetchPhase::Checking
            && self.check_next < chunks
            && self.checks_under_way <= self.sizes.workers
        {
            let Some(buffer) = self.buffers.take(limits::CHUNK_BYTES) else {
                return;
            };
            let (first, part) = (self.check_next, Arc::clone(&self.part));
            let count = self.sizes.checks_per_job.min(chunks - first);
            self.check_next += count;
            self.checks_under_way += 1;
            let manifest = Arc::clone(&manifest);
            self.submit(net, DiskJob::Check { first, count, buffer, manifest, part });
        }
    }

    fn checked(&mut self, net: &mut Net, first: u64, count: u64, good: &[u64]) {
        self.checked += count;
        self.checks_under_way -= 1;
        let now = self.elapsed(net);
        for index in first..first + count {
            let is_good = good.contains(&index);
            match (is_good, self.stored.contains(index)) {
                (true, false) => {
                    self.stored.insert(index);
                    self.kept_bytes += chunk_len(index, self.options.size) as u64;
                }
                // Another program has changed it since.
                (false, true) => {
                    self.stored.remove(index);
                    self.swarm.damaged(index, now);
                }
                _ => {}
            }
        }
        if self.checked == chunk_count(self.options.size) {
            self.begin(net);
        }
    }

    fn begin(&mut self, net: &mut Net) {
        self.phase = FetchPhase::Fetching;
        let now = self.elapsed(net);
        self.swarm.begin(&self.stored.snapshot(), now);
        // An earlier download may have got everything, and not come to giving it its name.
        self.finish_when_whole(net);
    }

    fn finish_when_whole(&mut self, net: &mut Net) {
        // What is allocated after the file was cut would stay behind its end.
        if self.swarm.is_done() && self.phase == FetchPhase::Fetching && self.is_allocated {
            self.phase = FetchPhase::Finishing;
            let part = Arc::clone(&self.part);
            self.submit(net, DiskJob::Finish { part });
        }
    }

    // ---- chunks -----------------------------------------------------------------------------

    pub(super) fn submit(&mut self, net: &mut Net, job: DiskJob) {
        let reason = match self.workers.submit(job) {
            Ok(()) => return,
            Err(SubmitError::Stopped(_)) => "the threads that store chunks are gone".to_owned(),
            // Every job holds a buffer until it is collected, but the two that there are places for.
            Err(SubmitError::Full(_)) => {
                let outstanding = self.workers.outstanding();
                debug_assert!(false, "{outstanding} jobs outstanding, {:?}", self.sizes);
                format!("{outstanding} chunks wait to be stored, more than there are places for")
            }
        };
        let error =
            FetchError::Internal { name: self.options.name.clone(), reason, kept: Kept(false) };
        self.end(net, Err(error));
    }

    pub(super) fn done(&mut self, net: &mut Net, done: DiskDone) {
        match done {
            DiskDone::Checked { first, count, buffer, good } => {
                drop(buffer);
                self.checked(net, first, count, &good);
            }
            DiskDone::Stored { source, index, buffer, outcome: Ok(good) } => {
                drop(buffer);
                if good {
                    self.stored.insert(index);
                    self.fetched_bytes += chunk_len(index, self.options.size) as u64;
                }
                let now = self.elapsed(net);
                self.swarm.checked(source, index, good, now);
                if !good {
                    self.doubt(net, source, index);
                }
                self.finish_when_whole(net);
            }
            DiskDone::Allocated(Ok(_)) => {
                self.is_allocated = true;
                self.finish_when_whole(net);
            }
            DiskDone::Stored { outcome: Err(error), .. } | DiskDone::Allocated(Err(error)) => {
                let needed = self.options.size.saturating_sub(self.stored_bytes());
                let error = self.part.write_error(error, needed);
                self.end(net, Err(error));
            }
            DiskDone::Finished(Ok(Finish::Published(stamp))) => self.finished(net, stamp),
            DiskDone::Finished(Ok(Finish::Doubtful)) => self.recheck(net),
            DiskDone::Finished(Err(error)) => self.end(net, Err(error)),
        }
    }

    /// Checks the whole file, which another program may have changed. What is not good is fetched again.
    fn recheck(&mut self, net: &mut Net) {
        assert_eq!(self.checks_under_way, 0, "checks of {:?}", self.phase);
        if self.rechecks == limits::PART_RECHECKS_MAX {
            return self.end(net, Err(FetchError::Touched(self.part.path().to_owned())));
        }
        self.rechecks += 1;
        self.phase = FetchPhase::Checking;
        (self.check_next, self.checked) = (0, 0);
    }

    fn finished(&mut self, net: &mut Net, stamp: FileStamp) {
        let Some(manifest) = self.manifest.clone() else {
            return;
        };
        if let Some(partials) = &self.options.partials {
            partials.insert(Offer {
                manifest: Arc::clone(&manifest),
                folder: Arc::new(self.options.to.clone()),
                file: self.options.name.as_str().to_owned(),
                opened: None,
                stamp: Some(stamp),
                available: Available::Whole,
            });
        }
        self.publish(net);
        let outcome = FetchOutcome {
            path: self.part.whole_path().to_owned(),
            manifest,
            stamp,
            fetched_bytes: self.fetched_bytes,
            received_bytes: self.received_bytes,
            kept_bytes: self.kept_bytes,
            already_there: false,
        };
        self.end(net, Ok(outcome));
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        let chunks = self.stored.count();
        // All chunks are of one length but the last.
        let last = chunk_count(self.options.size).saturating_sub(1);
        let short = limits::CHUNK_BYTES - chunk_len(last, self.options.size);
        let missing = if self.stored.contains(last) { short as u64 } else { 0 };
        (chunks * limits::CHUNK_BYTES as u64).saturating_sub(missing)
    }
}
