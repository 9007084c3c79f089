//! The service behind a server's event loop.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::peers::{Outgoing, Peer, Wanted, Watch};
use super::places::{Claim, Holder, KnownSlow, Places, Taker, Waiting, to_close};
use super::source::{self, SourceError};
use super::{Counters, ServeOptions};
use crate::limits;
use crate::net::{
    Buffer, BufferPool, CloseReason, ConnectionId, ConnectionMap, Net, Service, WakeHandle,
    origin_of,
};
use crate::share::chunks::ChunkSet;
use crate::share::content::{chunk_count, chunk_len};
use crate::share::greeting;
use crate::share::names::FileName;
use crate::share::offer::{Available, Catalog, Offer};
use crate::share::rate::TokenBucket;
use crate::share::types::{ContentId, PeerId};
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{DenialCode, PeerReply, PeerRequest};
use crate::workers::pool::{Pool, SubmitError};

/// Who has a chunk read.
#[derive(Clone, Copy)]
enum Reader {
    /// A peer that wants it, and what it called its request.
    Peer(ConnectionId, u64),
    /// This side, since somebody said that it was wrong.
    Doubt,
}

/// A chunk to read.
struct Job {
    reader: Reader,
    catalog: Arc<dyn Catalog>,
    offer: Offer,
    index: u64,
    is_checked: bool,
    buffer: Buffer,
}

/// What came of it. The buffer comes back whatever it was: the buffers bound the jobs outstanding, so none may be
/// free any sooner than its job's place in the pool is.
struct Done {
    reader: Reader,
    catalog: Arc<dyn Catalog>,
    offer: Offer,
    buffer: Buffer,
    outcome: Result<(), SourceError>,
}

fn work(mut job: Job) -> Done {
    let outcome = source::read_chunk(&job.offer, job.index, job.is_checked, &mut job.buffer);
    let Job { reader, catalog, offer, buffer, .. } = job;
    Done { reader, catalog, offer, buffer, outcome }
}

/// Which chunks are compared with their hashes before they are sent: those that are asked for a second time, since
/// whoever got wrong bytes may not have said so; and of all others one in
/// [`UPLOAD_CHECKED_EACH`](limits::UPLOAD_CHECKED_EACH), as a disk may rot at any time.
#[derive(Default)]
struct Checks {
    reads: u64,
    /// Of each content what was sent, and what was checked.
    contents: HashMap<ContentId, (ChunkSet, ChunkSet)>,
}

impl Checks {
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
struct Pace {
    bucket: TokenBucket,
    piece_bytes: usize,
}

pub(super) struct ShareService {
    peer: Arc<AtomicU64>,
    catalogs: Vec<Arc<dyn Catalog>>,
    pace: Option<Pace>,
    peers: ConnectionMap<Peer>,
    /// Peers with chunks to read for, each once.
    turns: VecDeque<ConnectionId>,
    /// Turns of peers that had had none before.
    new_turns: u64,
    /// Turns and connections so far, by which they are put in order.
    marks: u64,
    /// Bytes that may be lost by closing connections within a chunk.
    early_bytes: u64,
    /// Of what was sent: the rest that did not make one more such byte.
    early_rest: u64,
    known_slow: KnownSlow,
    checks: Checks,
    /// Chunks that were said to be wrong, each once; one at a time is looked at, so that whoever doubts everything takes
    /// one buffer from those who want something.
    doubts: VecDeque<(ContentId, u64)>,
    is_doubt_read: bool,
    buffers: BufferPool,
    readers: Pool<Job, Done>,
    counters: Arc<Counters>,
    next_watch: Option<Instant>,
}

impl ShareService {
    pub(super) fn new(
        options: ServeOptions,
        wake: &WakeHandle,
        counters: Arc<Counters>,
    ) -> io::Result<ShareService> {
        let wake = wake.clone();
        let (threads, jobs_max) = (limits::UPLOAD_WORKERS, limits::UPLOAD_CHUNKS_MAX);
        let readers = Pool::start("share-read", threads, jobs_max, move || wake.wake(), |_| work)?;
        let pace = options.limit_bytes_per_s.map(|rate| {
            let tick_bytes = rate / (1000 / limits::PACED_TICK.as_millis() as u64);
            let piece =
                tick_bytes.clamp(limits::PACED_PIECE_BYTES_MIN as u64, limits::CHUNK_BYTES as u64);
            // What a few late ticks leave behind is made up for.
            let bucket = TokenBucket::new(rate, 4 * piece, Instant::now());
            Pace { bucket, piece_bytes: piece as usize }
        });
        Ok(ShareService {
            peer: options.peer,
            catalogs: options.catalogs,
            pace,
            peers: ConnectionMap::default(),
            turns: VecDeque::new(),
            new_turns: 0,
            marks: 0,
            early_bytes: limits::UPLOAD_EARLY_BYTES_MAX,
            early_rest: 0,
            known_slow: KnownSlow::default(),
            checks: Checks::default(),
            doubts: VecDeque::new(),
            is_doubt_read: false,
            buffers: BufferPool::new(limits::CHUNK_BYTES, jobs_max),
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
        self.say(net, id, &greeting::welcome(peer));
    }

    fn request(&mut self, net: &mut Net, id: ConnectionId, request: u64, body: PeerRequest) {
        let answer = match body {
            PeerRequest::Find { name } => Some(self.find(&name)),
            PeerRequest::Hashes { content, first } => Some(self.hashes(content, first)),
            PeerRequest::Watch { content } => self.watch(net, id, request, content).err(),
            PeerRequest::Chunk { content, index } => {
                let wanted = self.want(id, Wanted { request, content, index }, net.now());
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
            self.say(net, id, &Message::ShareReply { id: request, body });
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
                    peer.watches.push(Watch { request, content, told });
                }
                runs
            }
        };
        self.tell_runs(net, id, request, &runs);
        Ok(())
    }

    fn tell_runs(&mut self, net: &mut Net, id: ConnectionId, request: u64, runs: &[(u64, u64)]) {
        let mut parts = runs.chunks(limits::RUNS_PER_FRAME_MAX);
        // An answer is owed also when there is nothing to tell.
        let first = parts.next().unwrap_or_default();
        for part in std::iter::once(first).chain(parts) {
            let body = PeerReply::Have { runs: part.to_vec() };
            self.say(net, id, &Message::ShareReply { id: request, body });
        }
    }

    /// Tells watchers what is new.
    fn tell_watchers(&mut self, net: &mut Net) {
        let watchers: Vec<ConnectionId> =
            self.peers.iter().filter(|(_, p)| p.hears_of_chunks()).map(|(id, _)| *id).collect();
        for id in watchers {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            let mut watches = std::mem::take(&mut peer.watches);
            watches.retain_mut(|watch| self.tell_watcher(net, id, watch));
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.watches = watches;
            }
        }
    }

    /// Whether there can be more to tell later.
    fn tell_watcher(&mut self, net: &mut Net, id: ConnectionId, watch: &mut Watch) -> bool {
        let Some((_, offer)) = self.offer(watch.content) else {
            let body = self.not_here(watch.content);
            self.say(net, id, &Message::ShareReply { id: watch.request, body });
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
            self.tell_runs(net, id, watch.request, &new);
        }
        !watch.told.is_full()
    }

    /// Takes note of a wish for a chunk; or the answer to one that cannot be had.
    fn want(&mut self, id: ConnectionId, wanted: Wanted, now: Instant) -> Result<(), PeerReply> {
        let Wanted { content, index, .. } = wanted;
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
        if peer.wanted.len() >= limits::CHUNK_REQUESTS_PER_PEER_MAX {
            let message = "too many chunks are asked for at once".to_owned();
            return Err(denied(DenialCode::Busy, message));
        }
        if peer.wanted.is_empty() {
            peer.waiting_since = Some(now);
        }
        peer.wanted.push_back(wanted);
        // Once each: what was called off may have left its turn here.
        if !self.turns.contains(&id) {
            self.turns.push_back(id);
        }
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
            self.say(net, id, &Message::ShareReply { id: request, body });
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
            let reader = Reader::Doubt;
            let job = Job { reader, catalog, offer, index, is_checked: true, buffer };
            self.is_doubt_read = self.readers.submit(job).is_ok();
            if !self.is_doubt_read {
                log::error!("chunks have no thread to be read by");
            }
        }
    }

    /// Has chunks read for those who want some, in turn, as far as there are buffers.
    fn read_ahead(&mut self, net: &mut Net) {
        let peers = &self.peers;
        self.turns.retain(|id| peers.get(id).is_some_and(|peer| !peer.wanted.is_empty()));
        if self.turns.is_empty() {
            return;
        }
        let (now, taker) = (net.now(), self.takers());
        let mut places = self.places(&taker, now);
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        for peer in self.peers.values() {
            *origins.entry(origin_of(peer.address.ip())).or_default() += peer.holds();
        }
        for second_round in [false, true] {
            while places.free > 0
                && let Some((at, kind)) =
                    self.next_turn(&places, &origins, &taker, now, second_round)
                && let Some(id) = self.turns.remove(at)
                && let Some(peer) = self.peers.get_mut(&id)
                && let Some(wanted) = peer.wanted.pop_front()
            {
                places.taken(kind);
                self.new_turns += u64::from(kind == Taker::New);
                *origins.entry(origin_of(peer.address.ip())).or_default() += 1;
                peer.waiting_since = Some(now);
                self.marks += 1;
                peer.last_turn = self.marks;
                if !peer.wanted.is_empty() {
                    self.turns.push_back(id);
                }
                if let Err(body) = self.read(id, wanted) {
                    self.say(net, id, &Message::ShareReply { id: wanted.request, body });
                }
            }
        }
    }

    fn places(&self, taker: &impl Fn(&Peer, Instant) -> Taker, now: Instant) -> Places {
        let mut places = Places { free: self.buffers.available(), slow: 0, new: 0 };
        for peer in self.peers.values() {
            match taker(peer, now) {
                Taker::Slow => places.slow += peer.holds(),
                Taker::New => places.new += peer.holds(),
                Taker::Quick => {}
            }
        }
        places
    }

    /// Where in the line the one is that has the next turn, and what it is.
    fn next_turn(
        &self,
        places: &Places,
        origins: &HashMap<IpAddr, usize>,
        taker: &impl Fn(&Peer, Instant) -> Taker,
        now: Instant,
        second_round: bool,
    ) -> Option<(usize, Taker)> {
        let mut at = Vec::new();
        let mut claims = Vec::new();
        for (place, id) in self.turns.iter().enumerate() {
            let Some(peer) = self.peers.get(id) else { continue };
            let taker = taker(peer, now);
            if places.may_have_one(peer.holds(), taker, second_round) {
                let origin = origin_of(peer.address.ip());
                let origin_holds = origins.get(&origin).copied().unwrap_or_default();
                at.push(place);
                claims.push(Claim { origin_holds, taker, last_turn: peer.last_turn });
            }
        }
        let next = places.next(&claims, self.new_turns)?;
        Some((at[next], claims[next].taker))
    }

    /// Tells how a peer takes its chunks beside the others.
    fn takers(&self) -> impl Fn(&Peer, Instant) -> Taker + use<> {
        let uploading = self.peers.values().filter(|peer| peer.is_uploading());
        // Under a rate nobody who keeps up keeps this side waiting at all, and there is nothing to compare.
        let quickest = uploading.filter_map(|peer| peer.took).min();
        let quickest = quickest.filter(|_| self.pace.is_none());
        move |peer, now| peer.times(now).taker(quickest)
    }

    /// Peers that want something, have nothing, and have waited for so long.
    fn waiting(
        &self,
        now: Instant,
        least: Duration,
    ) -> impl Iterator<Item = (ConnectionId, &Peer)> {
        self.peers.iter().map(|(id, peer)| (*id, peer)).filter(move |(_, peer)| {
            let waits = !peer.wanted.is_empty() && peer.holds() == 0;
            let since = peer.waiting_since;
            waits && since.is_some_and(|since| now.saturating_duration_since(since) >= least)
        })
    }

    /// Tells those that it cannot serve soon, before they take it for silent.
    fn refuse_waiting(&mut self, net: &mut Net) {
        let long: Vec<ConnectionId> =
            self.waiting(net.now(), limits::UPLOAD_WAIT_MAX).map(|(id, _)| id).collect();
        for id in long {
            let wanted = self.peers.get_mut(&id).map(|peer| std::mem::take(&mut peer.wanted));
            for Wanted { request, .. } in wanted.unwrap_or_default() {
                let message = "others are being served; try again later".to_owned();
                let body = denied(DenialCode::Busy, message);
                self.say(net, id, &Message::ShareReply { id: request, body });
            }
        }
    }

    fn read(&mut self, id: ConnectionId, wanted: Wanted) -> Result<(), PeerReply> {
        let Wanted { request, content, index } = wanted;
        let (catalog, offer) = self.offer(content).ok_or_else(|| self.not_here(content))?;
        let busy = || denied(DenialCode::Busy, "no memory is free; try again later".to_owned());
        let length = chunk_len(index, offer.manifest.size());
        let buffer = self.buffers.take(length).ok_or_else(busy)?;
        let is_checked = self.checks.is_due(content, chunk_count(offer.manifest.size()), index);
        let reader = Reader::Peer(id, request);
        let job = Job { reader, catalog, offer, index, is_checked, buffer };
        self.readers.submit(job).map_err(|refused| match refused {
            SubmitError::Full(_) => {
                debug_assert!(false, "{} jobs hold a buffer each", self.readers.outstanding());
                busy()
            }
            SubmitError::Stopped(_) => {
                log::error!("chunks have no thread to be read by");
                let message = "this peer has no thread left to read with".to_owned();
                denied(DenialCode::Unreadable, message)
            }
        })?;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.reading += 1;
        }
        Ok(())
    }

    fn on_read(&mut self, net: &mut Net, done: Done) {
        let Done { reader, catalog, offer, buffer, outcome } = done;
        match reader {
            Reader::Doubt => self.is_doubt_read = false,
            Reader::Peer(id, _) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.reading -= 1;
                }
            }
        }
        match (outcome, reader) {
            (Ok(()), Reader::Doubt) => {}
            (Ok(()), Reader::Peer(id, request)) => {
                // A chunk's length always fits.
                let body = PeerReply::Chunk { length: buffer.len() as u32 };
                let header = match greeting::frame(&Message::ShareReply { id: request, body }) {
                    Ok(header) => Some(header),
                    Err(error) => return log::error!("a chunk cannot be announced: {error}"),
                };
                let Some(peer) = self.peers.get_mut(&id) else {
                    return;
                };
                self.counters.chunks.fetch_add(1, Ordering::Relaxed);
                self.counters.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                let bytes = Bytes::from_owner(buffer);
                peer.outgoing.push_back(Outgoing { header, bytes });
            }
            (Err(error), reader) => {
                log::info!("a peer asked in vain: {error}");
                match error.code() {
                    _ if matches!(error, SourceError::Rotten(_)) => catalog.rotten(&offer),
                    DenialCode::NotFound | DenialCode::Changed => catalog.changed(&offer),
                    _ => {}
                }
                if let Reader::Peer(id, request) = reader {
                    let body = denied(error.code(), error.to_string());
                    self.say(net, id, &Message::ShareReply { id: request, body });
                }
            }
        }
    }

    /// Hands chunks that were read to their connections, as far as the rate allows.
    fn send_chunks(&mut self, net: &mut Net) {
        let Some(pace) = &mut self.pace else {
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
            peer.wait_for(has_all || net.queued_bytes(*id) > 2 * pace.piece_bytes, net.now());
        }
        let mut room = pace.bucket.available(net.now());
        let mut someone = true;
        // Round after round of one piece each: no peer's chunk takes the rate from the others.
        while room > 0 && someone {
            someone = false;
            for (id, peer) in &mut self.peers {
                let Some(chunk) = peer.outgoing.pop_front() else {
                    continue;
                };
                // What the system has not taken yet counts as sent; more of it would only wait there.
                if room == 0 || net.queued_bytes(*id) > 2 * pace.piece_bytes {
                    peer.outgoing.push_front(chunk);
                    continue;
                }
                let length = chunk.bytes.len().min(pace.piece_bytes);
                send_piece(net, *id, peer, chunk, length);
                pace.bucket.take(length as u64);
                room = room.saturating_sub(length as u64);
                someone = true;
            }
        }
    }

    /// Sends a message, behind the chunk that is being sent in pieces if there is one.
    fn say(&mut self, net: &mut Net, id: ConnectionId, message: &Message) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let mut encoded = Ok(());
        if peer.is_within_chunk() {
            encoded = codec::encode(message, limits::SHARE_FRAME_BYTES_MAX, &mut peer.behind);
            if peer.is_crowded() {
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

    fn all_of(&mut self, origin: IpAddr) -> impl Iterator<Item = &mut Peer> {
        self.peers.values_mut().filter(move |peer| origin_of(peer.address.ip()) == origin)
    }

    /// Ends connections of those that are too slow, so that others have their turn.
    fn make_room(&mut self, net: &mut Net) {
        let (now, taker) = (net.now(), self.takers());
        let holding = self.peers.iter().filter(|(_, peer)| peer.holds() > 0);
        let (ids, holders): (Vec<ConnectionId>, Vec<Holder>) = holding
            .map(|(id, peer)| {
                let holder = Holder {
                    taker: taker(peer, now),
                    buffers: peer.holds(),
                    taking: peer.times(now).taking,
                    taken_bytes: peer.taken_bytes(net.queued_bytes(*id)),
                    stalled: net.write_stall(*id),
                };
                (*id, holder)
            })
            .unzip();
        let wait = |kind: Taker| {
            self.waiting(now, Duration::ZERO).filter(|(_, peer)| taker(peer, now) == kind).count()
        };
        let not_slow = self.places(&taker, now).lacking(wait(Taker::Quick), wait(Taker::New));
        let all = self.waiting(now, limits::SHARE_TICK).count();
        let quickest =
            self.waiting(now, limits::SHARE_TICK).filter_map(|(_, peer)| peer.took).min();
        let waiting = Waiting { all, not_slow, quickest };
        for at in to_close(&holders, waiting, &mut self.early_bytes) {
            if let Some(peer) = self.peers.get(&ids[at]) {
                log::info!("{} takes too long over a chunk", peer.address);
            }
            net.close(ids[at]);
        }
    }
}

/// Hands the first `length` bytes of a chunk, or all, to its connection; what is left waits.
fn send_piece(
    net: &mut Net,
    id: ConnectionId,
    peer: &mut Peer,
    mut chunk: Outgoing,
    length: usize,
) {
    let mut queued = true;
    if let Some(header) = chunk.header.take() {
        queued = net.send_owned(id, header);
    }
    let piece = chunk.bytes.split_to(length.min(chunk.bytes.len()));
    let (bytes, is_last) = (piece.len(), chunk.bytes.is_empty());
    if !queued || !net.send_raw(id, piece) {
        // The connection is gone, which will be told.
        return;
    }
    peer.pieces.push_back((bytes, is_last));
    if !is_last {
        peer.outgoing.push_front(chunk);
    } else if !peer.behind.is_empty() {
        net.send_owned(id, std::mem::take(&mut peer.behind));
        net.resume_reading(id);
    }
}

fn denied(code: DenialCode, message: String) -> PeerReply {
    PeerReply::Denied { code, message }
}

impl Service for ShareService {
    fn on_accepted(&mut self, _net: &mut Net, id: ConnectionId, address: SocketAddr) {
        self.marks += 1;
        let mut peer = Peer::new(address, self.marks);
        peer.known_slow_until = self.known_slow.until(origin_of(address.ip()));
        self.peers.insert(id, peer);
        self.counters.peers.fetch_add(1, Ordering::Relaxed);
    }

    fn on_frame(&mut self, net: &mut Net, id: ConnectionId, frame: &[u8]) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        match codec::decode(frame) {
            Ok(message) if !peer.greeted => self.greet(net, id, &message),
            Ok(Message::Share { id: request, body }) => self.request(net, id, request, body),
            Ok(Message::Ping { nonce }) => self.say(net, id, &Message::Pong { nonce }),
            Ok(_) | Err(_) => {
                net.send_owned(
                    id,
                    greeting::refusal(
                        "this is a peer of a share and no registry: check the address",
                    ),
                );
                net.close_after_flush(id);
            }
        }
    }

    fn on_raw_sent(&mut self, net: &mut Net, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let (bytes, is_last) =
            peer.pieces.front().map_or((0, false), |(b, last)| (*b as u64, *last));
        peer.piece_taken(net.now());
        let was_quick = is_last && peer.took.is_some_and(|took| took < limits::UPLOAD_SLOW_AFTER);
        let origin = origin_of(peer.address.ip());
        if was_quick && self.known_slow.was_quick(origin) {
            self.all_of(origin).for_each(|peer| peer.known_slow_until = None);
        }
        self.early_rest += bytes;
        let earned = self.early_rest / limits::UPLOAD_EARLY_SHARE;
        self.early_rest %= limits::UPLOAD_EARLY_SHARE;
        self.early_bytes = (self.early_bytes + earned).min(limits::UPLOAD_EARLY_BYTES_MAX);
    }

    fn on_closed(&mut self, net: &mut Net, id: ConnectionId, reason: &CloseReason) {
        if let Some(peer) = self.peers.remove(&id) {
            // Cut off, or gone by itself: whoever leaves shortly before it is found slow has had its try, too.
            let is_slow = peer.took.is_none_or(|took| took >= limits::UPLOAD_SLOW_AFTER)
                || peer.times(net.now()).taking >= limits::UPLOAD_SLOW_AFTER;
            if peer.holds() > 0 && is_slow {
                let origin = origin_of(peer.address.ip());
                let until = Some(self.known_slow.was_slow(origin, net.now()));
                self.all_of(origin).for_each(|peer| peer.known_slow_until = until);
            }
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
            self.tell_watchers(net);
            self.make_room(net);
            self.refuse_waiting(net);
            for id in self.peers.keys().copied().collect::<Vec<_>>() {
                self.keep_place(net, id);
            }
            if !self.peers.values().any(Peer::is_uploading) {
                self.buffers.release_memory();
            }
        }
    }

    fn on_idle(&mut self, _net: &mut Net, id: ConnectionId) -> bool {
        !self.peers.get(&id).is_some_and(Peer::is_uploading)
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
            Some(peer) if peer.is_within_chunk() => Vec::new(),
            _ => greeting::refusal(&reason.to_string()),
        }
    }

    fn refusal(&mut self, _peer: SocketAddr) -> Vec<u8> {
        greeting::refusal("this peer has all the connections it may have; try again later")
    }
}
