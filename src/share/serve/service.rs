//! The service on a server's event loop: greetings and all requests but those for chunks, whose
//! bytes are the affair of `uploads`.
//!
//! Rule: nothing here waits. Whatever reads a file is a job for a worker thread.

mod uploads;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::interface::{ServeCounters, ServeOptions};
use super::jobs::{self, PieceDone, PieceJob, SpotChecks};
use super::peers::{ChunkRequest, ContentWatch, ServedPeer};
use super::places::PlaceRules;
use crate::limits;
use crate::model::{ContentId, FileName, PeerId};
use crate::net::{BufferPool, CloseReason, ConnectionId, ConnectionMap, Net, Service, WakeHandle};
use crate::share::chunks::ChunkSet;
use crate::share::content::chunk_count;
use crate::share::greeting;
use crate::share::offer::{Available, Catalog, Offer};
use crate::share::rate::TokenBucket;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{DenialCode, PeerReply, PeerRequest};
use crate::workers::pool::Pool;

/// A peer that takes nothing of what was sent for this long counts as having no chunk under way
/// when places are given out. It is long for a line that is only slow, and short beside the
/// patience of those who wait for the place.
const UPLOAD_IDLE_AFTER: Duration = Duration::from_secs(2);
/// Reported chunks that wait to be compared with their hash, one after the other. A further report
/// is dropped, because a corrupted file has more of them or is requested again.
const DOUBTED_CHUNKS_MAX: usize = 64;
/// Threads that read files for a peer that serves.
const UPLOAD_WORKERS: usize = 2;

/// The limit on the sending rate, and the size of the pieces into which it cuts chunks.
struct RateLimit {
    bucket: TokenBucket,
    piece_bytes: usize,
}

pub(super) struct ShareService {
    peer: Arc<AtomicU64>,
    catalogs: Vec<Arc<dyn Catalog>>,
    rate_limit: Option<RateLimit>,
    peers: ConnectionMap<ServedPeer>,
    rules: PlaceRules,
    /// Counts turns, pieces and connections. Its values order the peers by their last turn, and by
    /// their last piece.
    turns: u64,
    checks: SpotChecks,
    /// Chunks that peers have reported as wrong, each once. They are read one at a time, so that a
    /// peer which reports everything takes one buffer from the others.
    doubts: VecDeque<(ContentId, u64)>,
    is_doubt_read: bool,
    /// Buffers of a whole chunk, for fast takers.
    buffers: BufferPool,
    /// Buffers of a slice, one for each connection.
    slices: BufferPool,
    readers: Pool<PieceJob, PieceDone>,
    counters: Arc<ServeCounters>,
    next_watch: Option<Instant>,
}

impl ShareService {
    pub(super) fn new(
        options: ServeOptions,
        wake: &WakeHandle,
        counters: Arc<ServeCounters>,
    ) -> io::Result<ShareService> {
        let wake = wake.clone();
        let slices_max = options.connections_max.unwrap_or(limits::SHARE_CONNECTIONS_MAX);
        // Each job holds a buffer.
        let (threads, jobs_max) = (UPLOAD_WORKERS, limits::UPLOAD_CHUNKS_MAX + slices_max);
        let readers = Pool::start(
            "share-read",
            threads,
            jobs_max,
            move || wake.wake(),
            |_| {
                let mut whole = Vec::new();
                move |job| jobs::work(job, &mut whole)
            },
        )?;
        let rate_limit = options.limit_bytes_per_s.map(|rate| {
            let tick_bytes = rate / (1000 / limits::PACED_TICK.as_millis() as u64);
            let piece =
                tick_bytes.clamp(limits::PACED_PIECE_BYTES_MIN as u64, limits::CHUNK_BYTES as u64);
            // The burst is four pieces, which makes up for a few late ticks.
            let bucket = TokenBucket::new(rate, 4 * piece, Instant::now());
            RateLimit { bucket, piece_bytes: piece as usize }
        });
        Ok(ShareService {
            peer: options.peer,
            catalogs: options.catalogs,
            rate_limit,
            peers: ConnectionMap::default(),
            rules: PlaceRules::default(),
            turns: 0,
            checks: SpotChecks::default(),
            doubts: VecDeque::new(),
            is_doubt_read: false,
            buffers: BufferPool::new(limits::CHUNK_BYTES, limits::UPLOAD_CHUNKS_MAX),
            slices: BufferPool::new(limits::UPLOAD_SLICE_BYTES, slices_max),
            readers,
            counters,
            next_watch: None,
        })
    }

    fn offer(&self, content: ContentId) -> Option<(Arc<dyn Catalog>, Offer)> {
        self.catalogs
            .iter()
            .find_map(|catalog| Some((Arc::clone(catalog), catalog.offer(content)?)))
    }

    fn greet(&mut self, net: &mut Net, id: ConnectionId, message: &Message) {
        if let Err(reason) = greeting::check_hello(message) {
            net.send_owned(id, greeting::refusal(&reason));
            return net.close_after_flush(id);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.greeted = true;
        // A connection that is greeted and requests nothing still gives way to others.
        net.set_deadline(id, None);
        net.set_idle_timeout(id, Some(limits::SHARE_IDLE_TIMEOUT));
        net.set_frame_cap(id, limits::SHARE_REQUEST_BYTES_MAX);
        let peer = PeerId(self.peer.load(Ordering::Relaxed));
        self.send(net, id, &greeting::welcome(Some(peer)));
    }

    fn request(&mut self, net: &mut Net, id: ConnectionId, request: u64, body: PeerRequest) {
        let answer = match body {
            PeerRequest::Find { name } => Some(self.find(&name)),
            PeerRequest::Hashes { content, first } => Some(self.hashes(content, first)),
            PeerRequest::Watch { content } => self.watch(net, id, request, content).err(),
            PeerRequest::Chunk { content, index } => {
                let wanted = self.want(id, ChunkRequest { request, content, index }, net.now());
                self.keep_place(net, id);
                wanted.err()
            }
            PeerRequest::Cancel { request } => {
                self.cancel(net, id, request);
                None
            }
            PeerRequest::Doubt { content, index } => {
                let doubt = (content, index);
                if self.doubts.len() < DOUBTED_CHUNKS_MAX && !self.doubts.contains(&doubt) {
                    self.doubts.push_back(doubt);
                }
                None
            }
        };
        if let Some(body) = answer {
            self.send(net, id, &Message::ShareReply { id: request, body });
        }
    }

    /// Updates whether a connection keeps its place: it waits for a chunk, or takes one. Bytes that
    /// the system has accepted and the other side does not read do not count, nor do other
    /// requests, which are answered at once.
    fn keep_place(&mut self, net: &mut Net, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let keeps = peer.is_uploading() && net.write_stall(id) < UPLOAD_IDLE_AFTER;
        if std::mem::replace(&mut peer.keeps_place, keeps) != keeps {
            net.set_idle(id, !keeps);
        }
    }

    fn find(&self, name: &FileName) -> PeerReply {
        match self.catalogs.iter().find_map(|catalog| catalog.find(name)) {
            Some(entry) => PeerReply::Found(entry),
            None => denied(DenialCode::NotFound, format!("there is no file {name} here")),
        }
    }

    fn not_here(&self, content: ContentId) -> PeerReply {
        match self.catalogs.iter().any(|catalog| catalog.may_return(content)) {
            true => denied(DenialCode::Changed, format!("content {content} is being looked at")),
            false => {
                denied(DenialCode::NotFound, format!("content {content} is not here (any more)"))
            }
        }
    }

    fn hashes(&self, content: ContentId, first: u64) -> PeerReply {
        let Some((_, offer)) = self.offer(content) else {
            return self.not_here(content);
        };
        let rest = usize::try_from(first).ok().and_then(|i| offer.manifest.chunks().get(i..));
        match rest {
            Some(rest) if !rest.is_empty() => {
                let count = rest.len().min(limits::HASHES_PER_FRAME_MAX);
                PeerReply::Hashes { hashes: rest[..count].to_vec() }
            }
            _ => denied(DenialCode::Invalid, format!("there is no chunk {first} of {content}")),
        }
    }

    fn watch(
        &mut self,
        net: &mut Net,
        id: ConnectionId,
        request: u64,
        content: ContentId,
    ) -> Result<(), PeerReply> {
        let (_, offer) = self.offer(content).ok_or_else(|| self.not_here(content))?;
        let chunks = chunk_count(offer.manifest.size());
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        peer.watches.retain(|watch| watch.content != content);
        if peer.watches.len() >= limits::WATCHES_PER_PEER_MAX {
            return Err(denied(DenialCode::Busy, "too many contents are watched".to_owned()));
        }
        let runs = match &offer.available {
            // Without building a set, which takes long for a large file: the request is only 60
            // bytes.
            Available::Whole if chunks == 0 => Vec::new(),
            Available::Whole => vec![(0, chunks)],
            Available::Partial(chunks) => {
                let told = chunks.snapshot();
                let runs = told.runs();
                if !told.is_full() {
                    peer.watches.push(ContentWatch { request, content, told });
                }
                runs
            }
        };
        self.send_runs(net, id, request, &runs);
        Ok(())
    }

    fn send_runs(&mut self, net: &mut Net, id: ConnectionId, request: u64, runs: &[(u64, u64)]) {
        let mut parts = runs.chunks(limits::RUNS_PER_FRAME_MAX);
        // The request has to be answered even if there are no chunks yet.
        let first = parts.next().unwrap_or_default();
        for part in std::iter::once(first).chain(parts) {
            let body = PeerReply::Have { runs: part.to_vec() };
            self.send(net, id, &Message::ShareReply { id: request, body });
        }
    }

    /// Announces new chunks to the peers that watch a content.
    fn notify_watchers(&mut self, net: &mut Net) {
        let watchers: Vec<ConnectionId> =
            self.peers.iter().filter(|(_, p)| p.is_to_be_notified()).map(|(id, _)| *id).collect();
        for id in watchers {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            let mut watches = std::mem::take(&mut peer.watches);
            watches.retain_mut(|watch| self.notify_watcher(net, id, watch));
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.watches = watches;
            }
        }
    }

    /// Announces new chunks of one content. Returns whether there may be more later.
    fn notify_watcher(
        &mut self,
        net: &mut Net,
        id: ConnectionId,
        watch: &mut ContentWatch,
    ) -> bool {
        let Some((_, offer)) = self.offer(watch.content) else {
            let body = self.not_here(watch.content);
            self.send(net, id, &Message::ShareReply { id: watch.request, body });
            return false;
        };
        let now = match &offer.available {
            Available::Whole => ChunkSet::full(watch.told.chunks()),
            Available::Partial(chunks) => chunks.snapshot(),
        };
        // A chunk that another program has changed is fetched again and not announced a second
        // time.
        let new = now.without(&watch.told).runs();
        for (first, count) in &new {
            // The runs are chunks of the content that are not in the set, so this cannot fail.
            watch.told.insert_run(*first, *count);
        }
        if !new.is_empty() {
            self.send_runs(net, id, watch.request, &new);
        }
        !watch.told.is_full()
    }

    /// Queues a request for a chunk, or returns the answer to one that cannot be served.
    fn want(
        &mut self,
        id: ConnectionId,
        wanted: ChunkRequest,
        now: Instant,
    ) -> Result<(), PeerReply> {
        let ChunkRequest { content, index, .. } = wanted;
        let (_, offer) = self.offer(content).ok_or_else(|| self.not_here(content))?;
        if index >= chunk_count(offer.manifest.size()) {
            let message = format!("there is no chunk {index} of {content}");
            return Err(denied(DenialCode::Invalid, message));
        }
        if !offer.available.contains(index) {
            let message = format!("chunk {index} of {content} has not arrived here yet");
            return Err(denied(DenialCode::Busy, message));
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        if peer.is_ending {
            return Ok(());
        }
        if peer.wanted.len() >= limits::CHUNK_REQUESTS_PER_PEER_MAX {
            let message = "too many chunks are asked for at once".to_owned();
            return Err(denied(DenialCode::Busy, message));
        }
        if peer.wanted.is_empty() {
            peer.waiting_since = Some(now);
        }
        peer.wanted.push_back(wanted);
        Ok(())
    }

    fn cancel(&mut self, net: &mut Net, id: ConnectionId, request: u64) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let waiting = peer.wanted.len();
        peer.wanted.retain(|wanted| wanted.request != request);
        if peer.wanted.len() < waiting {
            let body = denied(DenialCode::Cancelled, "it was called off".to_owned());
            self.send(net, id, &Message::ShareReply { id: request, body });
        }
    }

    /// Sends a message, after the chunk that is being sent if there is one.
    fn send(&mut self, net: &mut Net, id: ConnectionId, message: &Message) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let mut encoded = Ok(());
        if peer.is_within_chunk {
            encoded = codec::encode(message, limits::SHARE_FRAME_BYTES_MAX, &mut peer.deferred);
            if peer.is_backlogged() {
                net.pause_reading(id);
            }
        } else {
            net.send(id, |out| {
                encoded = codec::encode(message, limits::SHARE_FRAME_BYTES_MAX, out);
            });
        }
        if let Err(error) = encoded {
            log::error!("an answer to {} is not sent: {error}", peer.address);
            net.close(id);
        }
    }
}

fn denied(code: DenialCode, message: String) -> PeerReply {
    PeerReply::Denied { code, message }
}

impl Service for ShareService {
    fn on_accepted(&mut self, _net: &mut Net, id: ConnectionId, address: SocketAddr) {
        self.turns += 1;
        self.peers.insert(id, ServedPeer::new(address, self.turns));
        self.counters.peers.fetch_add(1, Ordering::Relaxed);
    }

    fn on_frame(&mut self, net: &mut Net, id: ConnectionId, frame: &[u8]) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        match codec::decode(frame) {
            Ok(message) if !peer.greeted => self.greet(net, id, &message),
            Ok(Message::Share { id: request, body }) => self.request(net, id, request, body),
            Ok(Message::Ping { nonce }) => self.send(net, id, &Message::Pong { nonce }),
            Ok(_) | Err(_) => {
                net.send_owned(
                    id,
                    greeting::refusal(
                        "this is a peer of a share and no registry: check the address",
                    ),
                );
                net.close_after_flush(id);
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.end();
                }
            }
        }
    }

    fn on_raw_sent(&mut self, net: &mut Net, id: ConnectionId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.piece_taken(net.now());
        }
    }

    fn on_closed(&mut self, _net: &mut Net, id: ConnectionId, reason: &CloseReason) {
        if let Some(peer) = self.peers.remove(&id) {
            self.counters.peers.fetch_sub(1, Ordering::Relaxed);
            log::debug!("the connection with {} ended: {reason}", peer.address);
        }
    }

    fn on_wake(&mut self, net: &mut Net) {
        while let Some(done) = self.readers.collect() {
            self.on_read(net, done);
        }
        if self.counters.stop.load(Ordering::Acquire) {
            net.exit();
        }
    }

    fn on_tick(&mut self, net: &mut Net) {
        let now = net.now();
        if self.next_watch.is_none_or(|at| now >= at) {
            self.next_watch = Some(now + limits::SHARE_TICK);
            self.notify_watchers(net);
            self.close_stopped(net);
            self.refuse_waiting(net);
            for id in self.peers.keys().copied().collect::<Vec<_>>() {
                self.keep_place(net, id);
            }
            if !self.peers.values().any(ServedPeer::is_uploading) {
                self.buffers.release_memory();
                self.slices.release_memory();
            }
        }
    }

    fn on_idle(&mut self, _net: &mut Net, id: ConnectionId) -> bool {
        !self.peers.get(&id).is_some_and(ServedPeer::is_uploading)
    }

    fn before_sleep(&mut self, net: &mut Net) {
        self.read_doubted();
        self.read_ahead(net);
        self.send_chunks(net);
        // A process does not live for 2⁶⁴ microseconds, so this cannot overflow.
        let longest_stall_us = net.longest_stall().as_micros() as u64;
        self.counters.longest_stall_us.store(longest_stall_us, Ordering::Relaxed);
    }

    fn farewell(&mut self, id: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        match self.peers.get(&id) {
            // The receiver expects the rest of a chunk, and would take a message for it.
            Some(peer) if peer.is_within_chunk => Vec::new(),
            _ => greeting::refusal(&reason.to_string()),
        }
    }

    fn refusal(&mut self, _peer: SocketAddr) -> Vec<u8> {
        greeting::refusal("this peer has all the connections it may have; try again later")
    }
}
