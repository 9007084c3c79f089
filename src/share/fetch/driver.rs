//! Carries out what the swarm decides: the service behind a download's event loop. What goes before and
//! after the chunks is in `stages`.

mod stages;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::api::{
    FetchError, FetchOptions, FetchOutcome, FetchPhase, Kept, SourceProgress, SourceState,
};
use super::disk::{self, DiskDone, DiskJob};
use super::hashes::HashLists;
use super::links::{IncomingChunk, RequestKind, SourceLink};
use super::part::Part;
use super::{AddedSources, FetchProgress, FetchShared};
use crate::limits;
use crate::net::{Buffer, BufferPool, CloseReason, ConnectionId, ConnectionMap, Net, Service};
use crate::share::chunks::{ChunkSet, SharedChunks};
use crate::share::content::{Manifest, chunk_count, chunk_len};
use crate::share::greeting;
use crate::share::rate::{RateMeter, TokenBucket};
use crate::share::swarm::{DropReason, SourceId, SourceStatus, Swarm, SwarmAction, SwarmConfig};
use crate::text;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{DenialCode, PeerReply, PeerRequest};
use crate::workers::pool::Pool;

/// Over which time rates are averaged.
const RATE_CONSTANT: Duration = Duration::from_secs(1);

/// What is to be done with a connection after something has come on it.
type Handled = Result<(), DropReason>;

/// What bounds a download's memory and threads; tests draw it small.
#[derive(Clone, Copy, Debug)]
pub(super) struct DownloadSizes {
    /// See [`limits::SOURCES_MAX`].
    pub sources_max: usize,
    /// See [`limits::DOWNLOAD_CHUNKS_MAX`].
    pub chunks_max: usize,
    /// See [`limits::DOWNLOAD_WORKERS`].
    pub workers: usize,
    /// See [`limits::CHECKS_PER_JOB_MAX`].
    pub checks_per_job: u64,
}

impl Default for DownloadSizes {
    fn default() -> DownloadSizes {
        DownloadSizes {
            sources_max: limits::SOURCES_MAX,
            chunks_max: limits::DOWNLOAD_CHUNKS_MAX,
            workers: limits::DOWNLOAD_WORKERS,
            checks_per_job: limits::CHECKS_PER_JOB_MAX,
        }
    }
}

impl DownloadSizes {
    /// Each source in use has a buffer to receive into, and each chunk that has arrived keeps its own.
    fn buffers(self) -> usize {
        self.sources_max + self.chunks_max
    }
}

pub(super) struct Driver {
    options: FetchOptions,
    shared: Arc<FetchShared>,
    part: Arc<Part>,
    started: Instant,
    phase: FetchPhase,
    result: Option<Result<FetchOutcome, FetchError>>,

    swarm: Swarm,
    /// By source id.
    links: Vec<SourceLink>,
    /// The addresses of those that are known, so that none is taken for two.
    known: HashSet<SocketAddr>,
    by_connection: ConnectionMap<SourceId>,
    next_request: u64,
    /// Of the source lost last: who, why.
    last_lost: Option<String>,
    /// Since when every source has answered that it has the content no more.
    gone_since: Option<Duration>,
    /// The look for further sources that is waited for while nobody whom it knows has the content any more.
    search: Option<u64>,
    /// The last look that has ended.
    searched: u64,

    lists: HashLists,
    /// When one of them last became longer.
    hashes_at: Duration,
    /// The chunk up to which some source has given hashes.
    hashes_known: u64,
    manifest: Option<Arc<Manifest>>,
    stored: Arc<SharedChunks>,
    /// While checking: the first chunk that no worker has been given.
    check_next: u64,
    /// And how many have been looked at.
    checked: u64,
    /// Checks that workers have been given, and whose completions have not been collected.
    checks_under_way: usize,
    /// How often the whole file had to be checked again.
    rechecks: u32,
    /// The disk has set aside what the file takes, or cannot.
    is_allocated: bool,

    sizes: DownloadSizes,
    buffers: BufferPool,
    workers: Pool<DiskJob, DiskDone>,
    bucket: Option<TokenBucket>,
    /// The rate limit is reached: nothing is read.
    is_limited: bool,
    meter: RateMeter,
    kept_bytes: u64,
    fetched_bytes: u64,
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
        let wake = shared.wake.clone();
        // Every buffer may be at a worker, and there are two jobs without one.
        let jobs_max = sizes.buffers() + 2;
        let (threads, wake) = (sizes.workers, move || wake.wake());
        let workers = Pool::start("share-store", threads, jobs_max, wake, |_| disk::work)?;
        let config = SwarmConfig {
            size: options.size,
            seed: options.seed,
            rate_constant: RATE_CONSTANT,
            rate_min: limits::SOURCE_RATE_MIN,
            sources_max: sizes.sources_max,
            known_max: limits::SOURCES_KNOWN_MAX,
            chunks_max: sizes.chunks_max,
            unchecked_max: options.patience.saturating_mul(limits::UNCHECKED_PATIENCE),
        };
        let bucket = options.limit_bytes_per_s.map(|rate| {
            let burst = (rate / 20).max(limits::PACED_PIECE_BYTES_MIN as u64);
            TokenBucket::new(rate, burst, started)
        });
        Ok(Driver {
            shared,
            part: Arc::new(part),
            started,
            phase: FetchPhase::Asking,
            result: None,
            swarm: Swarm::new(config, Duration::ZERO),
            links: Vec::new(),
            known: HashSet::new(),
            by_connection: ConnectionMap::default(),
            next_request: 1,
            last_lost: None,
            gone_since: None,
            search: None,
            searched: 0,
            lists: HashLists::new(options.content, options.size),
            hashes_at: Duration::ZERO,
            hashes_known: 0,
            manifest: None,
            stored: Arc::new(SharedChunks::new(ChunkSet::empty(chunk_count(options.size)))),
            check_next: 0,
            checked: 0,
            checks_under_way: 0,
            rechecks: 0,
            is_allocated: false,
            buffers: BufferPool::new(limits::CHUNK_BYTES, sizes.buffers()),
            sizes,
            workers,
            bucket,
            is_limited: false,
            meter: RateMeter::new(RATE_CONSTANT),
            kept_bytes: 0,
            fetched_bytes: 0,
            received_bytes: 0,
            next_tick: started,
            next_ping: started + limits::SHARE_PING_INTERVAL,
            options,
        })
    }

    /// How it ended. A part of it that failed stays when there is something in it.
    pub(super) fn into_result(self) -> Option<Result<FetchOutcome, FetchError>> {
        // The workers hold the part, and with it its lock: who is told of the end may begin anew.
        let deadline = Instant::now() + limits::STOP_DISK_TIMEOUT;
        let rest = self.workers.shut_down(deadline).unwrap_or_else(|error| {
            log::error!("the workers of a download: {error}");
            Vec::new()
        });
        for done in rest {
            if let DiskDone::Stored { index, outcome: Ok(true), .. } = done {
                self.stored.insert(index);
            }
        }
        let was_looked_at = matches!(self.phase, FetchPhase::Fetching | FetchPhase::Finishing);
        let is_empty = self.stored.count() == 0 && (was_looked_at || !self.part.is_resumed());
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
        // At once: nobody's last words are worth waiting for.
        for link in &self.links {
            if let Some(connection) = link.connection {
                net.close(connection);
            }
        }
        net.exit();
    }

    /// Takes in the sources that were added from outside.
    fn take_sources(&mut self, net: &mut Net) {
        let AddedSources { sources: added, searched } = {
            let mut added = self.shared.added();
            AddedSources { sources: std::mem::take(&mut added.sources), searched: added.searched }
        };
        self.searched = searched;
        if added.is_empty() {
            return;
        }
        // Whoever was left is closed before its id becomes another one's.
        self.act(net);
        for source in added {
            let fits = (source.content, source.size) == (self.options.content, self.options.size);
            if !fits || self.known.contains(&source.address) {
                continue;
            }
            // Without a place the next offer of it comes in question.
            let added = self.swarm.add_source(source.address, self.elapsed(net));
            let Some(id) = added else { continue };
            self.known.insert(source.address);
            match self.links.get_mut(id.0) {
                None => self.links.push(SourceLink::new(source)),
                Some(link) => {
                    let forgotten = std::mem::replace(link, SourceLink::new(source)).source;
                    self.known.remove(&forgotten.address);
                }
            }
        }
    }

    // ---- connections ----------------------------------------------------------------------

    fn send(&mut self, net: &mut Net, source: SourceId, message: &Message) {
        let Some(connection) = self.links[source.0].connection else {
            return;
        };
        let mut encoded = Ok(());
        net.send(connection, |out| {
            encoded = codec::encode(message, limits::SHARE_REQUEST_BYTES_MAX, out);
        });
        if let Err(error) = encoded {
            log::error!("a request cannot be sent: {error}");
            net.close(connection);
        }
    }

    fn ask(
        &mut self,
        net: &mut Net,
        source: SourceId,
        kind: RequestKind,
        body: PeerRequest,
    ) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        self.links[source.0].asked.insert(id, kind);
        self.send(net, source, &Message::Share { id, body });
        id
    }

    /// Closes the connection with a source; the swarm knows.
    fn close(&mut self, net: &mut Net, source: SourceId, why: &str) {
        let link = &mut self.links[source.0];
        why.clone_into(&mut link.lost);
        let lost = format!("{}: {why}", link.source.address);
        log::info!("source {lost}");
        self.last_lost = Some(lost);
        if let Some(connection) = link.connection {
            self.by_connection.remove(&connection);
            net.close(connection);
        }
        link.reset(None);
        self.lists.lost(source);
    }

    /// A connection ended, or did not come about.
    fn lost(&mut self, net: &mut Net, connection: ConnectionId, why: &str) {
        let Some(source) = self.by_connection.get(&connection).copied() else {
            return;
        };
        self.close(net, source, why);
        self.swarm.disconnected(source, self.elapsed(net));
    }

    fn message(&mut self, net: &mut Net, source: SourceId, message: Message) -> Handled {
        let link = &mut self.links[source.0];
        match message {
            Message::Welcome(welcome) if !link.greeted => {
                // Whoever it is: what it gives proves itself. Were it refused for having been announced under another id,
                // anybody could have peers at its own IP refused by announcing their addresses.
                link.source.peer =
                    greeting::peer_in_welcome(&welcome).map_err(DropReason::Refused)?;
                link.greeted = true;
                link.lost.clear();
                if let Some(connection) = link.connection {
                    net.greeted(connection);
                }
                self.swarm.connected(source, self.elapsed(net));
                let body = PeerRequest::Watch { content: self.options.content };
                self.ask(net, source, RequestKind::Watch, body);
                Ok(())
            }
            // Its last word: what may come after it is not waited for.
            Message::Refused { reason } => {
                let connection = link.connection;
                if let Some(connection) = connection {
                    self.lost(net, connection, &sanitize(&reason));
                }
                Ok(())
            }
            Message::Pong { .. } if link.pings > 0 => {
                link.pings -= 1;
                Ok(())
            }
            Message::ShareReply { id, body } if link.greeted => self.reply(net, source, id, body),
            _ => Err(DropReason::Protocol),
        }
    }

    fn reply(&mut self, net: &mut Net, source: SourceId, id: u64, body: PeerReply) -> Handled {
        let link = &mut self.links[source.0];
        let kind = link.asked.get(&id).copied().ok_or(DropReason::Protocol)?;
        if kind != RequestKind::Watch {
            link.asked.remove(&id);
        }
        match &body {
            PeerReply::Denied { code: DenialCode::Busy | DenialCode::Cancelled, .. } => {}
            PeerReply::Denied { code, .. } => link.is_gone = *code == DenialCode::NotFound,
            _ => link.is_gone = false,
        }
        match (kind, body) {
            (RequestKind::Watch, PeerReply::Have { runs }) => {
                self.swarm.have(source, &runs);
                Ok(())
            }
            (RequestKind::Hashes(first), PeerReply::Hashes { hashes }) => {
                self.hashes(net, source, first, &hashes)
            }
            (RequestKind::Chunk(index), PeerReply::Chunk { length }) => {
                if length as usize != chunk_len(index, self.options.size) {
                    return Err(DropReason::WrongBytes);
                }
                self.links[source.0].incoming = Some(IncomingChunk::Waiting(index));
                self.receive_waiting(net);
                self.pause_or_resume(net, source);
                Ok(())
            }
            (RequestKind::Chunk(index), PeerReply::Denied { code, message }) => {
                self.denied(net, source, index, code, &message);
                Ok(())
            }
            (_, PeerReply::Denied { code: DenialCode::Invalid, message }) => {
                Err(DropReason::Refused(sanitize(&message)))
            }
            // It has the content no more, or just now not.
            (_, PeerReply::Denied { message, .. }) => {
                self.swarm.withdrawn(source, &sanitize(&message), self.elapsed(net));
                Ok(())
            }
            _ => Err(DropReason::Protocol),
        }
    }

    fn denied(
        &mut self,
        net: &mut Net,
        source: SourceId,
        index: u64,
        code: DenialCode,
        message: &str,
    ) {
        let (now, message) = (self.elapsed(net), sanitize(message));
        self.swarm.denied(source, index, code, &message, now);
        if code != DenialCode::Cancelled {
            self.last_lost = Some(format!("{}: {message}", self.links[source.0].source.address));
        }
    }

    // ---- receiving ------------------------------------------------------------------------

    /// Gives buffers to connections whose next chunk waits for one, as far as chunks are stored as they arrive.
    fn receive_waiting(&mut self, net: &mut Net) {
        for source in (0..self.links.len()).map(SourceId) {
            if !self.swarm.may_receive() {
                return;
            }
            let link = &mut self.links[source.0];
            let (Some(IncomingChunk::Waiting(index)), Some(connection)) =
                (link.incoming, link.connection)
            else {
                continue;
            };
            let Some(buffer) = self.buffers.take(chunk_len(index, self.options.size)) else {
                return;
            };
            if net.receive_raw(connection, buffer) {
                link.incoming = Some(IncomingChunk::Receiving(index));
                self.pause_or_resume(net, source);
            }
        }
    }

    /// A connection is read unless the rate limit is reached or its next chunk waits for a buffer.
    fn pause_or_resume(&mut self, net: &mut Net, source: SourceId) {
        let link = &self.links[source.0];
        let Some(connection) = link.connection else {
            return;
        };
        if self.is_limited || matches!(link.incoming, Some(IncomingChunk::Waiting(_))) {
            net.pause_reading(connection);
        } else {
            net.resume_reading(connection);
        }
    }

    /// Takes account of the bytes that have come since it last did, and holds back when they are too
    /// many.
    fn account(&mut self, net: &mut Net) {
        let now = self.elapsed(net);
        let (mut bytes, mut chunk_bytes) = (0, 0);
        for (link, source) in self.links.iter_mut().zip((0..).map(SourceId)) {
            let Some(connection) = link.connection else {
                continue;
            };
            let received = net.received_bytes(connection);
            let new_bytes = received.saturating_sub(link.received_bytes);
            bytes += new_bytes;
            self.lists.received(source, new_bytes);
            link.received_bytes = received;
            // Nothing but what was asked for is progress, or a source's rate.
            let of_chunks = net.raw_bytes(connection);
            let new = of_chunks.saturating_sub(link.chunk_bytes);
            link.chunk_bytes = of_chunks;
            chunk_bytes += new;
            self.swarm.received(source, new, now);
            if self.is_limited || matches!(link.incoming, Some(IncomingChunk::Waiting(_))) {
                self.swarm.not_read(source, now);
            }
        }
        self.meter.add(chunk_bytes, now);
        let Some(bucket) = &mut self.bucket else {
            return;
        };
        bucket.take(bytes);
        let is_limited = bucket.available(net.now()) == 0;
        if is_limited != self.is_limited {
            self.is_limited = is_limited;
            for source in (0..self.links.len()).map(SourceId) {
                self.pause_or_resume(net, source);
            }
        }
    }

    /// Does what the swarm wants done.
    fn act(&mut self, net: &mut Net) {
        let now = self.elapsed(net);
        while let Some(action) = self.swarm.next_action(now) {
            match action {
                SwarmAction::Connect(source) => {
                    let address: SocketAddr = self.links[source.0].source.address;
                    let connection = net.dial(address);
                    self.links[source.0].reset(Some(connection));
                    self.links[source.0].lost.clear();
                    self.by_connection.insert(connection, source);
                }
                SwarmAction::Request(source, index) => {
                    // What was called off is answered too, sooner or later.
                    if self.links[source.0].asked.len() >= limits::ANSWERS_OWED_MAX {
                        self.swarm.ban(source, DropReason::Protocol);
                        continue;
                    }
                    let body = PeerRequest::Chunk { content: self.options.content, index };
                    self.ask(net, source, RequestKind::Chunk(index), body);
                }
                SwarmAction::Cancel(source, index) => self.cancel(net, source, index),
                SwarmAction::Drop(source, reason) => self.close(net, source, &reason.to_string()),
            }
        }
    }

    /// Tells a source that it has sent wrong bytes: one whose disk has spoilt its file looks at it, and offers what is
    /// there now.
    fn doubt(&mut self, net: &mut Net, source: SourceId, index: u64) {
        let (id, content) = (self.next_request, self.options.content);
        self.next_request += 1;
        let body = PeerRequest::Doubt { content, index };
        self.send(net, source, &Message::Share { id, body });
        // The swarm leaves it; what was said is to arrive before.
        if let Some(connection) = self.links[source.0].connection.take() {
            self.by_connection.remove(&connection);
            net.close_after_flush(connection);
        }
    }

    fn cancel(&mut self, net: &mut Net, source: SourceId, index: u64) {
        let asked = &self.links[source.0].asked;
        let request = asked.iter().find(|(_, kind)| **kind == RequestKind::Chunk(index));
        if let Some(request) = request.map(|(id, _)| *id) {
            let (id, body) = (self.next_request, PeerRequest::Cancel { request });
            self.next_request += 1;
            self.send(net, source, &Message::Share { id, body });
        }
    }

    // ---- now and then -----------------------------------------------------------------------

    fn publish(&self, net: &Net) {
        let all = self.links.iter().zip((0..).map(SourceId));
        let tried = all.filter(|(_, id)| self.swarm.status(*id) != SourceStatus::Untried);
        let sources = tried.map(|(link, id)| {
            let state = match self.swarm.status(id) {
                SourceStatus::Connecting => SourceState::Connecting,
                SourceStatus::Ready if self.swarm.reports_busy(id) => SourceState::Busy,
                SourceStatus::Ready if self.swarm.outstanding(id) > 0 => SourceState::Active,
                SourceStatus::Ready => SourceState::Idle,
                SourceStatus::Untried | SourceStatus::Away { .. } | SourceStatus::Banned => {
                    SourceState::Lost(link.lost.clone())
                }
            };
            SourceProgress {
                peer: link.source.peer,
                address: link.source.address,
                state,
                given_bytes: self.swarm.given_bytes(id),
                rate_bytes_per_s: self.swarm.rate(id),
            }
        });
        let checked_bytes = self.checked.saturating_mul(limits::CHUNK_BYTES as u64);
        let progress = FetchProgress {
            phase: self.phase,
            size: self.options.size,
            done_bytes: match self.phase {
                FetchPhase::Checking => checked_bytes.min(self.options.size),
                _ => self.stored_bytes(),
            },
            kept_bytes: self.kept_bytes,
            fetched_bytes: self.fetched_bytes,
            rate_bytes_per_s: self.meter.rate(),
            longest_stall: net.longest_stall(),
            sources: sources.collect(),
        };
        *self.shared.progress() = progress;
    }

    fn give_up_in_time(&mut self, net: &mut Net) {
        // Whoever was left just now is to be named.
        self.act(net);
        let waited = match self.phase {
            FetchPhase::Asking => self.elapsed(net).saturating_sub(self.hashes_at),
            FetchPhase::Fetching => self.elapsed(net).saturating_sub(self.swarm.progress_at()),
            _ => return,
        };
        // With sources that are gone for good, and nobody who looks for others, there is nothing to wait for.
        let hopeless =
            !self.options.more_may_come && !self.links.is_empty() && self.swarm.is_hopeless();
        let (name, kept) = (self.options.name.clone(), Kept(false));
        if self.is_gone(self.elapsed(net)) {
            self.end(net, Err(FetchError::Gone { name, kept }));
        } else if hopeless || waited >= self.options.patience {
            let last = self.why_no_source();
            self.end(net, Err(FetchError::NoSource { name, last, kept }));
        }
    }

    /// Whether nobody has the content any more and the download is to end with that: an answer of every source, but for
    /// those that lied, and of whoever looks for further ones. One that is silent, or looks at its file, may have it.
    fn is_gone(&mut self, now: Duration) -> bool {
        let is_out = |(link, id): (&SourceLink, SourceId)| {
            link.is_gone || self.swarm.status(id) == SourceStatus::Banned
        };
        let all_out = self.links.iter().zip((0..).map(SourceId)).all(is_out);
        let is_gone = all_out && self.links.iter().any(|link| link.is_gone);
        let Some(gone_after) = self.options.gone_after.filter(|_| is_gone) else {
            (self.gone_since, self.search) = (None, None);
            return false;
        };
        // Where nothing has come nothing is lost. Else it may only have another name, and is offered again soon.
        let gone_after = if self.fetched_bytes > 0 { gone_after } else { Duration::ZERO };
        if now.saturating_sub(*self.gone_since.get_or_insert(now)) < gone_after {
            return false;
        }
        let search = *self.search.get_or_insert_with(|| self.shared.request_search());
        !self.options.more_may_come || self.searched >= search
    }

    /// Why nobody gives anything: whoever is there and owes something comes first.
    fn why_no_source(&self) -> String {
        let with = |wanted: SourceStatus| {
            let mut ids = (0..self.links.len()).map(SourceId);
            // One that says that it is busy is not silent: its own words are known.
            let is_meant =
                |id: &SourceId| self.swarm.status(*id) == wanted && !self.swarm.reports_busy(*id);
            let id = ids.find(is_meant)?;
            Some(self.links[id.0].source.address)
        };
        let silent = || with(SourceStatus::Ready).map(|address| format!("{address}: it is silent"));
        let unreached = || {
            with(SourceStatus::Connecting).map(|address| format!("{address}: it does not answer"))
        };
        // Of one that refuses there is more to say than that it is silent since.
        let why = silent().or_else(|| self.last_lost.clone()).or_else(unreached);
        why.unwrap_or_else(|| "nobody has it".to_owned())
    }

    fn ping(&mut self, net: &mut Net) {
        if net.now() < self.next_ping {
            return;
        }
        self.next_ping = net.now() + limits::SHARE_PING_INTERVAL;
        for source in (0..self.links.len()).map(SourceId) {
            if self.links[source.0].ready().is_some() {
                self.links[source.0].pings += 1;
                self.send(net, source, &Message::Ping { nonce: 0 });
            }
        }
    }
}

/// Another one's words, fit for a line and not too many.
fn sanitize(words: &str) -> String {
    let short: String = words.chars().take(limits::REASON_BYTES_MAX / 4).collect();
    text::escape(short.as_bytes()).to_string()
}

impl Service for Driver {
    fn on_start(&mut self, net: &mut Net) {
        let part = Arc::clone(&self.part);
        self.submit(net, DiskJob::Allocate { part });
        self.take_sources(net);
    }

    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, _peer: SocketAddr) {
        // A download does not listen.
        net.close(connection);
    }

    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(source) = self.by_connection.get(&connection).copied() {
            self.send(net, source, &greeting::hello());
        }
    }

    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        self.lost(net, connection, &error.to_string());
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        let Some(source) = self.by_connection.get(&connection).copied() else {
            return;
        };
        let handled = match codec::decode(frame) {
            Ok(message) => self.message(net, source, message),
            Err(_) => Err(DropReason::Protocol),
        };
        if let Err(reason) = handled {
            self.swarm.ban(source, reason);
        }
    }

    fn on_raw(&mut self, net: &mut Net, connection: ConnectionId, buffer: Buffer) {
        let Some(source) = self.by_connection.get(&connection).copied() else {
            return;
        };
        let Some(IncomingChunk::Receiving(index)) = self.links[source.0].incoming.take() else {
            return;
        };
        self.received_bytes += buffer.length() as u64;
        if let Some(manifest) = self.manifest.clone()
            && self.swarm.arrived(source, index)
        {
            let part = Arc::clone(&self.part);
            self.submit(net, DiskJob::Store { source, index, buffer, manifest, part });
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        self.lost(net, connection, &reason.to_string());
    }

    fn on_wake(&mut self, net: &mut Net) {
        while let Some(done) = self.workers.collect() {
            self.done(net, done);
        }
        self.take_sources(net);
        if self.shared.is_cancelled() {
            self.end(net, Err(FetchError::Cancelled(Kept(false))));
        }
    }

    fn on_tick(&mut self, net: &mut Net) {
        let now = net.now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + limits::SHARE_TICK;
        self.swarm.tick(self.elapsed(net));
        self.give_up_in_time(net);
        if self.result.is_some() {
            // That it waits for a source is not so any more.
            return;
        }
        self.ping(net);
        self.publish(net);
    }

    fn before_sleep(&mut self, net: &mut Net) {
        self.account(net);
        self.receive_waiting(net);
        self.ask_for_hashes(net);
        self.check_more(net);
        self.act(net);
    }
}
