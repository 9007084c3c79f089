//! Carries out what a download has decided: the service on its event loop.
//!
//! The driver owns what the state machine ([`Download`]) only names: the connections with sources,
//! the buffers, the worker threads, the partial file, and the limit on the rate. Each callback of
//! the loop becomes inputs of the state machine, whose actions are carried out before the callback
//! returns.
//!
//! Rule: the driver decides nothing about sources or chunks. It only waits: a connection whose next
//! chunk has no buffer, or that would exceed the rate, is not read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::api::{FetchError, FetchOptions, FetchOutcome, FetchPhase, KeptPart};
use super::disk::{self, DiskDone, DiskJob};
use super::download::{Download, DownloadAction, DownloadConfig, DownloadFailure};
use super::part::{Finish, Part};
use super::shared::{AddedSources, FetchShared};
use crate::limits;
use crate::net::{Buffer, BufferPool, CloseReason, ConnectionId, ConnectionMap, Net, Service};
use crate::share::content::ChunkHasher;
use crate::share::offer::{Available, FileStamp, Offer};
use crate::share::rate::{RateMeter, TokenBucket};
use crate::share::swarm::{SourceId, SwarmConfig};
use crate::wire::codec;
use crate::wire::message::Message;
use crate::workers::pool::{Pool, SubmitError};

/// Kept chunks that one job of a worker checks.
const CHECKS_PER_JOB_MAX: u64 = 64;
/// Threads that store the chunks of one download, and check those of an earlier one.
const DOWNLOAD_WORKERS: usize = 2;

/// Time constant of the averages of rates: long enough to smooth the bursts in which chunks come,
/// and short enough to notice within seconds that a source has become slower.
const RATE_CONSTANT: Duration = Duration::from_secs(1);

/// The bounds of a download's memory and threads. Tests make them small.
#[derive(Clone, Copy, Debug)]
pub(super) struct DownloadSizes {
    /// Sources in use at once, [`limits::SOURCES_MAX`] outside of tests.
    pub sources_max: usize,
    /// Chunks that wait to be stored, [`limits::DOWNLOAD_CHUNKS_MAX`] outside of tests.
    pub chunks_max: usize,
    /// Worker threads, [`DOWNLOAD_WORKERS`] outside of tests.
    pub workers: usize,
    /// Chunks that one job checks, [`CHECKS_PER_JOB_MAX`] outside of tests.
    pub checks_per_job: u64,
}

impl Default for DownloadSizes {
    fn default() -> DownloadSizes {
        DownloadSizes {
            sources_max: limits::SOURCES_MAX,
            chunks_max: limits::DOWNLOAD_CHUNKS_MAX,
            workers: DOWNLOAD_WORKERS,
            checks_per_job: CHECKS_PER_JOB_MAX,
        }
    }
}

impl DownloadSizes {
    /// Each source in use needs a buffer to receive into, and each chunk that has arrived keeps its
    /// own until it is stored.
    fn buffers(self) -> usize {
        self.sources_max + self.chunks_max
    }
}

/// A connection with a source, and the bytes that have been accounted for.
#[derive(Clone, Debug)]
struct SourceConnection {
    id: ConnectionId,
    received_bytes: u64,
    chunk_bytes: u64,
    /// Of the chunk that is being received.
    hasher: Option<Box<ChunkHasher>>,
}

pub(super) struct Driver {
    options: FetchOptions,
    shared: Arc<FetchShared>,
    part: Arc<Part>,
    started: Instant,
    download: Download,
    result: Option<Result<FetchOutcome, FetchError>>,
    /// By source id. `by_connection` is its inverse.
    connections: Vec<Option<SourceConnection>>,
    by_connection: ConnectionMap<SourceId>,
    buffers: BufferPool,
    workers: Pool<DiskJob, DiskDone>,
    bucket: Option<TokenBucket>,
    /// Whether the limit on the rate is reached, so that nothing is read.
    is_limited: bool,
    meter: RateMeter,
    received_bytes: u64,
    next_tick: Instant,
    next_ping: Instant,
}

impl Driver {
    pub(super) fn new(
        options: FetchOptions,
        shared: Arc<FetchShared>,
        part: Part,
        sizes: DownloadSizes,
    ) -> io::Result<Driver> {
        let started = Instant::now();
        let woken = Arc::clone(&shared);
        // Each buffer may be in a job, and two kinds of jobs have none.
        let jobs_max = sizes.buffers() + 2;
        let (threads, wake) = (sizes.workers, move || woken.wake());
        let workers = Pool::start("share-store", threads, jobs_max, wake, |_| disk::work)?;
        let swarm = SwarmConfig {
            size: options.size,
            seed: options.seed,
            rate_constant: RATE_CONSTANT,
            rate_min: limits::SOURCE_RATE_MIN,
            sources_max: sizes.sources_max,
            known_max: limits::SOURCES_KNOWN_MAX,
            chunks_max: sizes.chunks_max,
            unchecked_max: options.patience.saturating_mul(limits::UNCHECKED_PATIENCE),
        };
        let config = DownloadConfig {
            content: options.content,
            size: options.size,
            is_resumed: part.is_resumed(),
            more_may_come: options.more_may_come,
            patience: options.patience,
            gone_after: options.gone_after,
            checks_per_job: sizes.checks_per_job,
            workers: sizes.workers,
            swarm,
        };
        let bucket = options.limit_bytes_per_s.map(|rate| {
            let burst = (rate / 20).max(limits::PACED_PIECE_BYTES_MIN as u64);
            TokenBucket::new(rate, burst, started)
        });
        Ok(Driver {
            shared,
            part: Arc::new(part),
            started,
            download: Download::new(config),
            result: None,
            connections: Vec::new(),
            by_connection: ConnectionMap::default(),
            buffers: BufferPool::new(limits::CHUNK_BYTES, sizes.buffers()),
            workers,
            bucket,
            is_limited: false,
            meter: RateMeter::new(RATE_CONSTANT),
            received_bytes: 0,
            next_tick: started,
            next_ping: started + limits::SHARE_PING_INTERVAL,
            options,
        })
    }

    /// The result, once the loop has ended. A failed download keeps its partial file if there is
    /// something in it.
    pub(super) fn into_result(self) -> Option<Result<FetchOutcome, FetchError>> {
        // The workers hold the part and its lock. They have to end before the result is told, since
        // whoever gets it may start the download again.
        let deadline = Instant::now() + limits::STOP_DISK_TIMEOUT;
        let rest = self.workers.shut_down(deadline).unwrap_or_else(|error| {
            log::error!("the workers of a download: {error}");
            Vec::new()
        });
        let stored = self.download.stored().chunks();
        for done in rest {
            if let DiskDone::Stored { index, outcome: Ok(()), .. } = done {
                stored.insert(index);
            }
        }
        let phase = self.download.phase();
        let was_checked = matches!(phase, FetchPhase::Fetching | FetchPhase::Finishing);
        let is_empty = stored.count() == 0 && (was_checked || !self.part.is_resumed());
        let result = self.result?;
        Some(result.map_err(|error| {
            if is_empty {
                self.part.remove();
            }
            error.keeping(!is_empty)
        }))
    }

    fn elapsed(&self, net: &Net) -> Duration {
        net.now().saturating_duration_since(self.started)
    }

    fn end(&mut self, net: &mut Net, result: Result<FetchOutcome, FetchError>) {
        if self.result.is_none() {
            self.result = Some(result);
        }
        // At once: nothing that a source may still send matters.
        for connection in self.connections.iter().flatten() {
            net.close(connection.id);
        }
        net.exit();
    }

    fn add_sources(&mut self, net: &mut Net) {
        let AddedSources { sources, searched } = {
            let mut added = self.shared.added();
            AddedSources { sources: std::mem::take(&mut added.sources), searched: added.searched }
        };
        self.download.searched(searched);
        self.download.add_sources(sources, self.elapsed(net));
        self.connections.resize(self.download.source_count(), None);
    }

    /// Carries out the actions of the state machine.
    fn act(&mut self, net: &mut Net) {
        while let Some(action) = self.download.next_action() {
            match action {
                DownloadAction::Connect(source, address) => {
                    self.close(net, source);
                    let id = net.dial(address);
                    let (received_bytes, chunk_bytes, hasher) = (0, 0, None);
                    let connection = SourceConnection { id, received_bytes, chunk_bytes, hasher };
                    self.connections[source.0] = Some(connection);
                    self.by_connection.insert(id, source);
                }
                DownloadAction::Send(source, message) => self.send(net, source, &message),
                DownloadAction::Greeted(source) => {
                    if let Some(connection) = &self.connections[source.0] {
                        net.greeted(connection.id);
                    }
                }
                DownloadAction::Close(source) => self.close(net, source),
                DownloadAction::CloseAfterFlush(source) => {
                    if let Some(connection) = self.connections[source.0].take() {
                        self.by_connection.remove(&connection.id);
                        net.close_after_flush(connection.id);
                    }
                }
                DownloadAction::OfferPart => self.offer_part(),
                DownloadAction::RequestSearch => {
                    let number = self.shared.request_search();
                    self.download.search_requested(number);
                }
                DownloadAction::Finish => {
                    let part = Arc::clone(&self.part);
                    self.submit(net, DiskJob::Finish { part });
                }
                DownloadAction::Fail(failure) => {
                    let error = self.error(failure);
                    self.end(net, Err(error));
                }
            }
        }
    }

    fn error(&self, failure: DownloadFailure) -> FetchError {
        let (name, kept) = (self.options.name.clone(), KeptPart(false));
        match failure {
            DownloadFailure::Gone => FetchError::Gone { name, kept },
            DownloadFailure::NoSource(last) => FetchError::NoSource { name, last, kept },
            DownloadFailure::Touched => FetchError::Touched(self.part.path().to_owned()),
        }
    }

    // ---- connections ------------------------------------------------------------------------

    fn send(&mut self, net: &mut Net, source: SourceId, message: &Message) {
        // Without a connection: it was closed for an error of its own.
        let Some(connection) = &self.connections[source.0] else { return };
        let mut encoded = Ok(());
        net.send(connection.id, |out| {
            encoded = codec::encode(message, limits::SHARE_REQUEST_BYTES_MAX, out);
        });
        if let Err(error) = encoded {
            log::error!("a request cannot be sent: {error}");
            net.close(connection.id);
        }
    }

    fn close(&mut self, net: &mut Net, source: SourceId) {
        if let Some(connection) = self.connections[source.0].take() {
            self.by_connection.remove(&connection.id);
            net.close(connection.id);
        }
    }

    /// The connection is gone, unless it was given up before.
    fn disconnected(&mut self, net: &mut Net, connection: ConnectionId, why: &str) {
        let Some(source) = self.by_connection.get(&connection).copied() else { return };
        self.download.disconnected(source, why, self.elapsed(net));
        self.act(net);
    }

    // ---- receiving --------------------------------------------------------------------------

    /// Gives buffers to connections whose next chunk waits for one.
    fn receive_waiting(&mut self, net: &mut Net) {
        let mut from = 0;
        while let Some((source, length)) = self.download.next_waiting(from) {
            from = source.0 + 1;
            let Some(connection) = &mut self.connections[source.0] else { continue };
            let Some(buffer) = self.buffers.take(length) else { return };
            if net.receive_raw(connection.id, buffer) {
                let index = self.download.receiving(source);
                let hasher = ChunkHasher::new(index, self.options.size);
                connection.hasher = Some(Box::new(hasher));
                self.pause_or_resume(net, source);
            }
        }
    }

    /// Whether a connection is to be read.
    fn is_read(&self, source: SourceId) -> bool {
        !self.is_limited && !self.download.is_waiting(source)
    }

    fn pause_or_resume(&mut self, net: &mut Net, source: SourceId) {
        let Some(connection) = &self.connections[source.0] else { return };
        if self.is_read(source) {
            net.resume_reading(connection.id);
        } else {
            net.pause_reading(connection.id);
        }
    }

    /// Accounts for the bytes received since the last call, and stops reading when they exceed the
    /// limit on the rate.
    fn account(&mut self, net: &mut Net) {
        let now = self.elapsed(net);
        let (mut bytes, mut chunk_bytes) = (0, 0);
        for source in (0..self.connections.len()).map(SourceId) {
            let is_read = self.is_read(source);
            let Some(connection) = &mut self.connections[source.0] else { continue };
            let received_bytes = net.received_bytes(connection.id);
            let new_bytes = received_bytes.saturating_sub(connection.received_bytes);
            connection.received_bytes = received_bytes;
            let of_chunks = net.raw_bytes(connection.id);
            let new_of_chunks = of_chunks.saturating_sub(connection.chunk_bytes);
            connection.chunk_bytes = of_chunks;
            self.download.received(source, new_bytes, new_of_chunks, is_read, now);
            bytes += new_bytes;
            chunk_bytes += new_of_chunks;
        }
        self.meter.add(chunk_bytes, now);
        let Some(bucket) = &mut self.bucket else { return };
        bucket.take(bytes);
        let is_limited = bucket.available(net.now()) == 0;
        if is_limited != self.is_limited {
            self.is_limited = is_limited;
            for source in (0..self.connections.len()).map(SourceId) {
                self.pause_or_resume(net, source);
            }
        }
    }

    // ---- the partial file -------------------------------------------------------------------

    fn submit(&mut self, net: &mut Net, job: DiskJob) {
        let reason = match self.workers.submit(job) {
            Ok(()) => return,
            Err(SubmitError::Stopped(_)) => "the threads that store chunks are gone".to_owned(),
            // Each job holds a buffer until it is collected, but for the two that have none.
            Err(SubmitError::Full(_)) => {
                panic!("{} jobs are outstanding, one for each buffer", self.workers.outstanding())
            }
        };
        let error =
            FetchError::Internal { name: self.options.name.clone(), reason, kept: KeptPart(false) };
        self.end(net, Err(error));
    }

    /// Keeps the workers busy with checks while the partial file is being checked. To be called
    /// before each sleep, because a completion of any kind may have made room for the next check.
    fn check_more(&mut self, net: &mut Net) {
        let Some(manifest) = self.download.manifest().cloned() else { return };
        while let Some(range) = self.download.next_check() {
            let Some(buffer) = self.buffers.take(limits::CHUNK_BYTES) else { return };
            self.download.check_started(range);
            let (manifest, part) = (Arc::clone(&manifest), Arc::clone(&self.part));
            self.submit(net, DiskJob::Check { range, buffer, manifest, part });
        }
    }

    fn done(&mut self, net: &mut Net, done: DiskDone) {
        let now = self.elapsed(net);
        match done {
            DiskDone::Checked { range, buffer, good } => {
                drop(buffer);
                self.download.checked(range, &good, now);
            }
            DiskDone::Stored { source, index, buffer, outcome: Ok(()) } => {
                drop(buffer);
                self.download.checked_chunk(source, index, true, now);
            }
            DiskDone::Allocated(Ok(_)) => self.download.allocated(),
            DiskDone::Stored { outcome: Err(error), .. } | DiskDone::Allocated(Err(error)) => {
                let needed = self.options.size.saturating_sub(self.download.stored().bytes());
                let error = self.part.write_error(error, needed);
                self.end(net, Err(error));
            }
            DiskDone::Finished(Ok(Finish::Published(stamp))) => self.finished(net, stamp),
            DiskDone::Finished(Ok(Finish::Doubtful)) => self.download.doubtful(),
            DiskDone::Finished(Err(error)) => self.end(net, Err(error)),
        }
        self.act(net);
    }

    fn offer_part(&self) {
        if let (Some(partials), Some(manifest)) = (&self.options.partials, self.download.manifest())
        {
            partials.insert(Offer {
                manifest: Arc::clone(manifest),
                folder: Arc::new(self.options.to.clone()),
                file: self.part.file_name(),
                opened: self.part.served(),
                stamp: None,
                available: Available::Partial(Arc::clone(self.download.stored().chunks())),
            });
        }
    }

    fn finished(&mut self, net: &mut Net, stamp: FileStamp) {
        let manifest = self.download.manifest().cloned();
        let manifest = manifest.expect("a file is published when its chunk hashes are known");
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
        self.publish_progress(net);
        let outcome = FetchOutcome {
            path: self.part.whole_path().to_owned(),
            manifest,
            stamp,
            fetched_bytes: self.download.stored().fetched_bytes(),
            received_bytes: self.received_bytes,
            kept_bytes: self.download.stored().kept_bytes(),
            already_there: false,
        };
        self.end(net, Ok(outcome));
    }

    fn publish_progress(&self, net: &Net) {
        let progress = self.download.progress(self.meter.rate(), net.longest_stall());
        *self.shared.progress() = progress;
    }
}

impl Service for Driver {
    fn on_start(&mut self, net: &mut Net) {
        let part = Arc::clone(&self.part);
        self.submit(net, DiskJob::Allocate { part });
        self.add_sources(net);
        self.act(net);
    }

    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, _peer: SocketAddr) {
        // A download does not listen.
        net.close(connection);
    }

    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(source) = self.by_connection.get(&connection).copied() {
            self.download.connected(source);
            self.act(net);
        }
    }

    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        self.disconnected(net, connection, &error.to_string());
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        let Some(source) = self.by_connection.get(&connection).copied() else { return };
        match codec::decode(frame) {
            Ok(message) => self.download.message(source, message, self.elapsed(net)),
            Err(_) => self.download.undecodable(source),
        }
        self.act(net);
        // At once: what follows the frame that announces a chunk is no frame.
        if self.download.is_waiting(source) {
            self.receive_waiting(net);
            self.pause_or_resume(net, source);
        }
    }

    fn on_raw(&mut self, net: &mut Net, connection: ConnectionId, buffer: Buffer) {
        let Some(source) = self.by_connection.get(&connection).copied() else { return };
        self.received_bytes += buffer.length() as u64;
        let connection = self.connections[source.0].as_mut();
        let hasher = connection.and_then(|connection| connection.hasher.take());
        let hasher = hasher.expect("a chunk that is received is hashed");
        let Some((index, manifest)) = self.download.chunk_received(source) else { return };
        if manifest.has(index, hasher.finish(buffer.as_ref())) {
            let part = Arc::clone(&self.part);
            self.submit(net, DiskJob::Store { source, index, chunk: buffer, part });
        } else {
            drop(buffer);
            self.download.checked_chunk(source, index, false, self.elapsed(net));
            self.act(net);
        }
    }

    fn on_raw_part(&mut self, connection: ConnectionId, bytes: &[u8]) {
        if let Some(source) = self.by_connection.get(&connection)
            && let Some(connection) = &mut self.connections[source.0]
            && let Some(hasher) = &mut connection.hasher
        {
            hasher.advance(bytes);
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        self.disconnected(net, connection, &reason.to_string());
    }

    fn on_wake(&mut self, net: &mut Net) {
        while let Some(done) = self.workers.collect() {
            self.done(net, done);
        }
        self.add_sources(net);
        self.act(net);
        if self.shared.is_cancelled() {
            self.end(net, Err(FetchError::Cancelled(KeptPart(false))));
        }
    }

    fn on_tick(&mut self, net: &mut Net) {
        let now = net.now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + limits::SHARE_TICK;
        self.download.tick(self.elapsed(net));
        self.act(net);
        if self.result.is_some() {
            // The progress shown last would say that the download waits for a source.
            return;
        }
        if now >= self.next_ping {
            self.next_ping = now + limits::SHARE_PING_INTERVAL;
            self.download.ping();
            self.act(net);
        }
        self.publish_progress(net);
    }

    fn before_sleep(&mut self, net: &mut Net) {
        self.account(net);
        self.receive_waiting(net);
        self.download.plan(self.elapsed(net));
        self.act(net);
        self.check_more(net);
    }
}
