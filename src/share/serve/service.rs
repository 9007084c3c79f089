//! The service behind a server's event loop.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::peers::{ChunkRequest, ContentWatch, OutgoingChunk, SentPiece, ServedPeer, SlicedChunk};
use super::places::{BufferClaim, PlaceRules, TakerSpeed, next_whole};
use super::read::{self, ReadError};
use super::{ServeCounters, ServeOptions};
use crate::limits;
use crate::model::{ContentId, FileName, PeerId};
use crate::net::{
    Buffer, BufferPool, CloseReason, ConnectionId, ConnectionMap, Net, Service, WakeHandle,
    origin_of,
};
use crate::share::chunks::ChunkSet;
use crate::share::content::{chunk_count, chunk_len};
use crate::share::greeting;
use crate::share::offer::{Available, Catalog, Offer};
use crate::share::rate::TokenBucket;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{DenialCode, PeerReply, PeerRequest};
use crate::workers::pool::{Pool, SubmitError};

/// Who has a chunk read, or a slice of one.
#[derive(Clone, Copy)]
enum ReadFor {
    /// A peer that wants it, and what it called its request.
    Peer { id: ConnectionId, request: u64, is_slice: bool },
    /// This side, since somebody said that it was wrong.
    Doubt,
}

/// What to read: as many bytes of a chunk as the buffer is long.
struct ReadJob {
    reader: ReadFor,
    catalog: Arc<dyn Catalog>,
    offer: Offer,
    index: u64,
    /// From where on in the chunk.
    offset: usize,
    is_checked: bool,
    buffer: Buffer,
}

/// What came of it. The buffer comes back whatever it was: the buffers bound the jobs outstanding, so none may be
/// free any sooner than its job's place in the pool is.
struct ReadDone {
    reader: ReadFor,
    catalog: Arc<dyn Catalog>,
    offer: Offer,
    buffer: Buffer,
    outcome: Result<(), ReadError>,
}

fn work(mut job: ReadJob, whole: &mut Vec<u8>) -> ReadDone {
    let (index, offset) = (job.index, job.offset);
    let outcome = read::read(&job.offer, index, offset, job.is_checked, &mut job.buffer, whole);
    let ReadJob { reader, catalog, offer, buffer, .. } = job;
    ReadDone { reader, catalog, offer, buffer, outcome }
}

/// Which chunks are compared with their hashes before they are sent: those that are asked for a second time, since
/// whoever got wrong bytes may not have said so; and of all others one in
/// [`UPLOAD_CHECKED_EACH`](limits::UPLOAD_CHECKED_EACH), as a disk may rot at any time.
#[derive(Default)]
struct SpotChecks {
    reads: u64,
    /// Of each content what was sent, and what was checked.
    contents: HashMap<ContentId, (ChunkSet, ChunkSet)>,
}

impl SpotChecks {
    fn is_due(&mut self, content: ContentId, chunks: u64, index: u64) -> bool {
        if self.contents.len() >= limits::UPLOAD_CHECKED_CONTENTS_MAX
            && !self.contents.contains_key(&content)
        {
            // Everything is checked once more, the second time that it is asked for.
            self.contents.clear();
        }
        let begin = || (ChunkSet::empty(chunks), ChunkSet::empty(chunks));
        let (sent, checked) = self.contents.entry(content).or_insert_with(begin);
        self.reads += 1;
        let is_second = !sent.insert(index) && !checked.contains(index);
        let is_due = is_second || self.reads.is_multiple_of(limits::UPLOAD_CHECKED_EACH);
        if is_due {
            checked.insert(index);
        }
        is_due
    }
}

/// A rate limit and the piece that goes at once under it.
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
    /// Turns and connections so far, by which they are put in order.
    turns: u64,
    checks: SpotChecks,
    /// Chunks that were said to be wrong, each once; one at a time is looked at, so that whoever doubts everything takes
    /// one buffer from those who want something.
    doubts: VecDeque<(ContentId, u64)>,
    is_doubt_read: bool,
    /// Buffers of a whole chunk each, for takers that are quick.
    buffers: BufferPool,
    /// For slices, one for each connection.
    slices: BufferPool,
    readers: Pool<ReadJob, ReadDone>,
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
        // Each job has a buffer.
        let (threads, jobs_max) = (limits::UPLOAD_WORKERS, limits::UPLOAD_CHUNKS_MAX + slices_max);
        let readers = Pool::start(
            "share-read",
            threads,
            jobs_max,
            move || wake.wake(),
            |_| {
                let mut whole = Vec::new();
                move |job| work(job, &mut whole)
            },
        )?;
        let rate_limit = options.limit_bytes_per_s.map(|rate| {
            let tick_bytes = rate / (1000 / limits::PACED_TICK.as_millis() as u64);
            let piece =
                tick_bytes.clamp(limits::PACED_PIECE_BYTES_MIN as u64, limits::CHUNK_BYTES as u64);
            // What a few late ticks leave behind is made up for.
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
        // Whoever greets and asks for no chunk still gives way to whoever comes for one.
        net.set_deadline(id, None);
        net.set_idle_timeout(id, Some(limits::SHARE_IDLE_TIMEOUT));
        net.set_frame_cap(id, limits::SHARE_REQUEST_BYTES_MAX);
        let peer = PeerId(self.peer.load(Ordering::Relaxed));
        self.send(net, id, &greeting::welcome(peer));
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
                if self.doubts.len() < limits::DOUBTED_CHUNKS_MAX && !self.doubts.contains(&doubt) {
                    self.doubts.push_back(doubt);
                }
                None
            }
        };
        if let Some(body) = answer {
            self.send(net, id, &Message::ShareReply { id: request, body });
        }
    }

    /// Whether a connection keeps its place: it waits for a chunk, or takes one. What was handed to the system and is not
    /// taken, as nobody reads it, does not count; nor do questions of other kinds, which are answered at once.
    fn keep_place(&mut self, net: &mut Net, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let keeps = peer.is_uploading() && net.write_stall(id) < limits::UPLOAD_IDLE_AFTER;
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
            // Not by way of a set: this is asked for in sixty bytes, and a set of the chunks of a large file takes long.
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
        // An answer is owed also when there is nothing to tell.
        let first = parts.next().unwrap_or_default();
        for part in std::iter::once(first).chain(parts) {
            let body = PeerReply::Have { runs: part.to_vec() };
            self.send(net, id, &Message::ShareReply { id: request, body });
        }
    }

    /// Tells watchers what is new.
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

    /// Whether there can be more to tell later.
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
        // What is taken back, as another program has changed it, comes back: it is told once.
        let new = now.without(&watch.told).runs();
        for (first, count) in &new {
            // They are new, and there are such chunks.
            watch.told.insert_run(*first, *count);
        }
        if !new.is_empty() {
            self.send_runs(net, id, watch.request, &new);
        }
        !watch.told.is_full()
    }

    /// Takes note of a wish for a chunk; or the answer to one that cannot be had.
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

    /// Has the next chunk that was said to be wrong read and compared. Whoever said so may be gone, or lie.
    fn read_doubted(&mut self) {
        while !self.is_doubt_read
            && let Some((content, index)) = self.doubts.pop_front()
        {
            let Some((catalog, offer)) = self.offer(content) else { continue };
            if index >= chunk_count(offer.manifest.size()) || !offer.available.contains(index) {
                continue;
            }
            let Some(buffer) = self.buffers.take(chunk_len(index, offer.manifest.size())) else {
                return self.doubts.push_front((content, index));
            };
            let reader = ReadFor::Doubt;
            let job =
                ReadJob { reader, catalog, offer, index, offset: 0, is_checked: true, buffer };
            self.is_doubt_read = self.readers.submit(job).is_ok();
            if !self.is_doubt_read {
                log::error!("chunks have no thread to be read by");
            }
        }
    }

    /// Has chunks and slices read for those who want some, in turn, as far as there are buffers.
    fn read_ahead(&mut self, net: &mut Net) {
        self.go_on_with_slices(net);
        if self.peers.values().all(|peer| peer.wanted.is_empty()) {
            return;
        }
        let now = net.now();
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        for peer in self.peers.values() {
            *origins.entry(origin_of(peer.address.ip())).or_default() += peer.holds();
        }
        for second_round in [false, true] {
            while let Some(id) = self.next_for_whole(&origins, now, second_round)
                && let Some((origin, wanted)) = self.take_turn(id, now)
            {
                *origins.entry(origin).or_default() += 1;
                if let Err(body) = self.read_whole(id, wanted) {
                    self.send(net, id, &Message::ShareReply { id: wanted.request, body });
                }
            }
        }
        self.begin_slices(net);
    }

    /// Whose turn it is to have a buffer for a whole chunk.
    fn next_for_whole(
        &self,
        origins: &HashMap<IpAddr, usize>,
        now: Instant,
        second_round: bool,
    ) -> Option<ConnectionId> {
        let free = self.buffers.available();
        let may_have = |peer: &ServedPeer| {
            let taker = peer.times(now).taker();
            peer.slices.is_none()
                && self.rules.may_have_whole(free, peer.holds(), taker, second_round)
        };
        let wanting = self.peers.iter().filter(|(_, peer)| !peer.wanted.is_empty());
        let (ids, claims): (Vec<ConnectionId>, Vec<BufferClaim>) = wanting
            .filter(|(_, peer)| may_have(peer))
            .map(|(id, peer)| {
                let origin_holds = origins.get(&origin_of(peer.address.ip())).copied();
                let origin_holds = origin_holds.unwrap_or_default();
                (*id, BufferClaim { origin_holds, last_turn: peer.last_turn })
            })
            .unzip();
        next_whole(&claims).map(|at| ids[at])
    }

    /// A peer has its turn: its origin, and what it wants.
    fn take_turn(&mut self, id: ConnectionId, now: Instant) -> Option<(IpAddr, ChunkRequest)> {
        let peer = self.peers.get_mut(&id)?;
        let wanted = peer.wanted.pop_front()?;
        peer.waiting_since = Some(now);
        self.turns += 1;
        peer.last_turn = self.turns;
        Some((origin_of(peer.address.ip()), wanted))
    }

    /// Has the first slice read for those to whom nothing is being sent, whoever has waited longest first.
    fn begin_slices(&mut self, net: &mut Net) {
        let now = net.now();
        let mut origins = self.slow_rates(net);
        let waiting = self.peers.iter().filter(|(_, peer)| peer.is_waiting());
        let mut line: Vec<(u64, ConnectionId)> =
            waiting.map(|(id, peer)| (peer.last_turn, *id)).collect();
        line.sort_unstable_by_key(|(last_turn, _)| *last_turn);
        for (_, id) in line {
            if self.slices.available() == 0 {
                // One of a connection that was closed comes back soon.
                return;
            }
            let Some(peer) = self.peers.get(&id) else { continue };
            let times = peer.times(now);
            let slow = origins.entry(origin_of(peer.address.ip())).or_default();
            if !self.rules.may_begin(times, slow) {
                continue;
            }
            if times.taker() == TakerSpeed::Slow {
                slow.push(times.shown_rate());
            }
            let Some((_, wanted)) = self.take_turn(id, now) else { continue };
            if let Err(body) = self.begin_slice(id, wanted) {
                self.send(net, id, &Message::ShareReply { id: wanted.request, body });
            }
        }
    }

    /// At which rates slow peers of each origin take the chunks that they are being sent.
    fn slow_rates(&self, net: &Net) -> HashMap<IpAddr, Vec<f64>> {
        let mut origins: HashMap<IpAddr, Vec<f64>> = HashMap::new();
        for (id, peer) in self.peers.iter().filter(|(_, peer)| peer.is_served()) {
            let times = peer.times(net.now());
            if times.taker() == TakerSpeed::Slow {
                let rate = times.rate(peer.taken_bytes(net.queued_bytes(*id)));
                origins.entry(origin_of(peer.address.ip())).or_default().push(rate);
            }
        }
        origins
    }

    /// Peers that want something, have nothing, and have waited for so long.
    fn waiting(
        &self,
        now: Instant,
        least: Duration,
    ) -> impl Iterator<Item = (ConnectionId, &ServedPeer)> {
        self.peers.iter().map(|(id, peer)| (*id, peer)).filter(move |(_, peer)| {
            let since = peer.waiting_since;
            peer.is_waiting()
                && since.is_some_and(|since| now.saturating_duration_since(since) >= least)
        })
    }

    /// Tells those that it cannot serve soon, before they take it for silent.
    fn refuse_waiting(&mut self, net: &mut Net) {
        let long: Vec<ConnectionId> =
            self.waiting(net.now(), limits::UPLOAD_WAIT_MAX).map(|(id, _)| id).collect();
        for id in long {
            let wanted = self.peers.get_mut(&id).map(|peer| std::mem::take(&mut peer.wanted));
            for ChunkRequest { request, .. } in wanted.unwrap_or_default() {
                let message = "others are being served; try again later".to_owned();
                let body = denied(DenialCode::Busy, message);
                self.send(net, id, &Message::ShareReply { id: request, body });
            }
        }
    }

    fn read_whole(&mut self, id: ConnectionId, wanted: ChunkRequest) -> Result<(), PeerReply> {
        let ChunkRequest { request, content, index } = wanted;
        let (catalog, offer) = self.offer(content).ok_or_else(|| self.not_here(content))?;
        let length = chunk_len(index, offer.manifest.size());
        let buffer = self.buffers.take(length).ok_or_else(no_memory)?;
        let is_checked = self.checks.is_due(content, chunk_count(offer.manifest.size()), index);
        let reader = ReadFor::Peer { id, request, is_slice: false };
        self.submit(ReadJob { reader, catalog, offer, index, offset: 0, is_checked, buffer })
    }

    /// Begins with a chunk that is read and sent slice by slice.
    fn begin_slice(&mut self, id: ConnectionId, wanted: ChunkRequest) -> Result<(), PeerReply> {
        let ChunkRequest { request, content, index } = wanted;
        let (catalog, offer) = self.offer(content).ok_or_else(|| self.not_here(content))?;
        let slices =
            SlicedChunk { wanted, length: chunk_len(index, offer.manifest.size()), read: 0 };
        let buffer = self.slices.take(slices.next_len()).ok_or_else(no_memory)?;
        let is_checked = self.checks.is_due(content, chunk_count(offer.manifest.size()), index);
        let reader = ReadFor::Peer { id, request, is_slice: true };
        self.submit(ReadJob { reader, catalog, offer, index, offset: 0, is_checked, buffer })?;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.slices = Some(slices);
        }
        Ok(())
    }

    /// Has the next slice read for those that have taken the one before.
    fn go_on_with_slices(&mut self, net: &mut Net) {
        let has_room = |peer: &&ServedPeer| peer.holds() == 0 && !peer.is_ending;
        let next: Vec<(ConnectionId, SlicedChunk)> = self
            .peers
            .iter()
            .filter(|(_, peer)| has_room(peer))
            .filter_map(|(id, peer)| Some((*id, peer.slices?)))
            .collect();
        for (id, slices) in next {
            let ChunkRequest { request, content, index } = slices.wanted;
            let reader = ReadFor::Peer { id, request, is_slice: true };
            let offset = slices.read;
            let submitted = match self.offer(content) {
                None => Err("its file is not offered any more"),
                Some((catalog, offer)) => {
                    let Some(buffer) = self.slices.take(slices.next_len()) else {
                        // One of a connection that was closed comes back soon.
                        return;
                    };
                    let is_checked = false;
                    let job = ReadJob { reader, catalog, offer, index, offset, is_checked, buffer };
                    self.submit(job).map_err(|_| "there is no thread to read it with")
                }
            };
            if let Err(why) = submitted {
                self.leave_within_chunk(net, id, why);
            }
        }
    }

    /// The rest of a chunk cannot be sent: nothing else can be said on its connection.
    fn leave_within_chunk(&mut self, net: &mut Net, id: ConnectionId, why: &str) {
        if let Some(peer) = self.peers.get(&id) {
            log::info!("{} does not get the rest of its chunk: {why}", peer.address);
        }
        net.close(id);
    }

    fn submit(&mut self, job: ReadJob) -> Result<(), PeerReply> {
        let reader = job.reader;
        self.readers.submit(job).map_err(|refused| match refused {
            SubmitError::Full(_) => {
                debug_assert!(false, "{} jobs hold a buffer each", self.readers.outstanding());
                no_memory()
            }
            SubmitError::Stopped(_) => {
                log::error!("chunks have no thread to be read by");
                let message = "this peer has no thread left to read with".to_owned();
                denied(DenialCode::Unreadable, message)
            }
        })?;
        if let ReadFor::Peer { id, .. } = reader
            && let Some(peer) = self.peers.get_mut(&id)
        {
            peer.reading += 1;
        }
        Ok(())
    }

    fn on_read(&mut self, net: &mut Net, done: ReadDone) {
        let ReadDone { reader, catalog, offer, buffer, outcome } = done;
        match reader {
            ReadFor::Doubt => self.is_doubt_read = false,
            ReadFor::Peer { id, .. } => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.reading -= 1;
                }
            }
        }
        match (outcome, reader) {
            (Ok(()), ReadFor::Doubt) => {}
            (Ok(()), ReadFor::Peer { id, request, is_slice }) => {
                self.sendable(id, request, is_slice, buffer);
            }
            (Err(error), reader) => {
                log::info!("a peer asked in vain: {error}");
                match error.code() {
                    _ if matches!(error, ReadError::Corrupted(_)) => catalog.corrupted(&offer),
                    DenialCode::NotFound | DenialCode::Changed => catalog.changed(&offer),
                    _ => {}
                }
                let ReadFor::Peer { id, request, .. } = reader else { return };
                let slices = self.peers.get_mut(&id).and_then(|peer| peer.slices.take());
                if slices.is_some_and(|slices| slices.read > 0) {
                    return self.leave_within_chunk(net, id, &error.to_string());
                }
                let body = denied(error.code(), error.to_string());
                self.send(net, id, &Message::ShareReply { id: request, body });
            }
        }
    }

    /// A whole chunk, or the next slice of one, has been read for a peer.
    fn sendable(&mut self, id: ConnectionId, request: u64, is_slice: bool, buffer: Buffer) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let (mut is_first, mut ends_chunk, mut length) = (true, true, buffer.length());
        if is_slice {
            let Some(slices) = &mut peer.slices else {
                debug_assert!(false, "a slice was read for {}, which gets none", peer.address);
                return;
            };
            (is_first, length) = (slices.read == 0, slices.length);
            slices.read += buffer.length();
            ends_chunk = slices.read >= slices.length;
            if ends_chunk {
                peer.slices = None;
            }
        }
        let mut header = None;
        if is_first {
            // A chunk's length always fits.
            let body = PeerReply::Chunk { length: length as u32 };
            header = match greeting::frame(&Message::ShareReply { id: request, body }) {
                Ok(header) => Some(header),
                Err(error) => return log::error!("a chunk cannot be announced: {error}"),
            };
            self.counters.chunks.fetch_add(1, Ordering::Relaxed);
        }
        self.counters.bytes.fetch_add(buffer.length() as u64, Ordering::Relaxed);
        let bytes = Bytes::from_owner(buffer);
        peer.outgoing.push_back(OutgoingChunk { header, bytes, ends_chunk });
    }

    /// Hands chunks that were read to their connections, as far as the rate allows.
    fn send_chunks(&mut self, net: &mut Net) {
        let Some(rate_limit) = &mut self.rate_limit else {
            for (id, peer) in &mut self.peers {
                while let Some(chunk) = peer.outgoing.pop_front() {
                    send_piece(net, *id, peer, chunk, usize::MAX);
                }
                if peer.waited_for.is_none() && !peer.pieces.is_empty() {
                    peer.wait_for(true, net.now());
                }
            }
            return;
        };
        for (id, peer) in &mut self.peers {
            // It has everything that it asked for, or more than goes at once, and does not take it.
            let has_all = peer.outgoing.is_empty() && !peer.pieces.is_empty();
            peer.wait_for(has_all || net.queued_bytes(*id) > 2 * rate_limit.piece_bytes, net.now());
        }
        let mut room = rate_limit.bucket.available(net.now());
        let mut someone = true;
        // Round after round of one piece each: no peer's chunk takes the rate from the others.
        while room > 0 && someone {
            someone = false;
            for (id, peer) in &mut self.peers {
                let Some(chunk) = peer.outgoing.pop_front() else {
                    continue;
                };
                // What the system has not taken yet counts as sent; more of it would only wait there.
                if room == 0 || net.queued_bytes(*id) > 2 * rate_limit.piece_bytes {
                    peer.outgoing.push_front(chunk);
                    continue;
                }
                let length = chunk.bytes.len().min(rate_limit.piece_bytes);
                send_piece(net, *id, peer, chunk, length);
                rate_limit.bucket.take(length as u64);
                room = room.saturating_sub(length as u64);
                someone = true;
            }
        }
    }

    /// Sends a message, behind the chunk that is being sent in pieces if there is one.
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

    /// Ends connections over which nearly nothing goes.
    fn close_stopped(&mut self, net: &mut Net) {
        let now = net.now();
        let has_stopped = |(id, peer): &(&ConnectionId, &ServedPeer)| {
            peer.is_served()
                && peer.times(now).has_stopped(peer.taken_bytes(net.queued_bytes(**id)))
        };
        let stopped: Vec<ConnectionId> =
            self.peers.iter().filter(has_stopped).map(|(id, _)| *id).collect();
        for id in stopped {
            if let Some(peer) = self.peers.get(&id) {
                log::info!("{} takes too long over a chunk", peer.address);
            }
            net.close(id);
        }
    }
}

/// Hands the first `length` bytes of a chunk or a slice, or all, to its connection; what is left waits.
fn send_piece(
    net: &mut Net,
    id: ConnectionId,
    peer: &mut ServedPeer,
    mut chunk: OutgoingChunk,
    length: usize,
) {
    let mut queued = true;
    if let Some(header) = chunk.header.take() {
        queued = net.send_owned(id, header);
        peer.is_within_chunk = true;
    }
    let bytes = chunk.bytes.split_to(length.min(chunk.bytes.len()));
    let ends_buffer = chunk.bytes.is_empty();
    let ends_chunk = ends_buffer && chunk.ends_chunk;
    let piece = SentPiece { bytes: bytes.len(), ends_buffer, ends_chunk };
    if !queued || !net.send_raw(id, bytes) {
        // The connection is gone, or is being closed, which will be told.
        return peer.end();
    }
    peer.pieces.push_back(piece);
    if !ends_buffer {
        peer.outgoing.push_front(chunk);
    }
    if ends_chunk {
        peer.is_within_chunk = false;
        if !peer.deferred.is_empty() {
            net.send_owned(id, std::mem::take(&mut peer.deferred));
            net.resume_reading(id);
        }
    }
}

fn no_memory() -> PeerReply {
    denied(DenialCode::Busy, "no memory is free; try again later".to_owned())
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
        // The loop is not away for longer than the process lives: far below 2⁶⁴ microseconds.
        let longest_stall_us = net.longest_stall().as_micros() as u64;
        self.counters.longest_stall_us.store(longest_stall_us, Ordering::Relaxed);
    }

    fn farewell(&mut self, id: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        match self.peers.get(&id) {
            // Within a chunk nothing can be said.
            Some(peer) if peer.is_within_chunk => Vec::new(),
            _ => greeting::refusal(&reason.to_string()),
        }
    }

    fn refusal(&mut self, _peer: SocketAddr) -> Vec<u8> {
        greeting::refusal("this peer has all the connections it may have; try again later")
    }
}
