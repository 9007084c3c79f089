//! Reads the requested chunks, in turn, and sends them.
//!
//! A chunk goes through these steps: requested (`ServedPeer::wanted`), being read by a worker
//! (`reading`), read (`outgoing`), handed to the connection (`pieces`), taken. Whose turn it is,
//! and whether a peer gets a whole chunk or a slice, is decided by `places`.
//!
//! Rule: once the first byte of a chunk has been announced, either all of it is sent or the
//! connection is closed.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::jobs::{PieceDone, PieceJob, ReadFor};
use super::super::peers::{ChunkRequest, OutgoingChunk, SentPiece, ServedPeer, SlicedChunk};
use super::super::places::{BufferClaim, TakerSpeed, next_whole};
use super::super::read::ReadError;
use super::{ShareService, denied};
use crate::limits::{self, origin_of};
use crate::net::{Buffer, ConnectionId, Net};
use crate::share::content::{chunk_count, chunk_len};
use crate::share::greeting;
use crate::wire::message::Message;
use crate::wire::share::{DenialCode, PeerReply};
use crate::workers::pool::SubmitError;

impl ShareService {
    /// Has the next chunk that was reported as wrong read and compared. The report may be a lie.
    pub(super) fn read_doubted(&mut self) {
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
                PieceJob { reader, catalog, offer, index, offset: 0, is_checked: true, buffer };
            self.is_doubt_read = self.readers.submit(job).is_ok();
            if !self.is_doubt_read {
                log::error!("chunks have no thread to be read by");
            }
        }
    }

    /// Has chunks and slices read for the peers that have requested some, in turn, as far as there
    /// are buffers.
    pub(super) fn read_ahead(&mut self, net: &mut Net) {
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

    /// The peer that gets the next buffer for a whole chunk.
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

    /// A peer has its turn. Returns its IP address and the request.
    fn take_turn(&mut self, id: ConnectionId, now: Instant) -> Option<(IpAddr, ChunkRequest)> {
        let peer = self.peers.get_mut(&id)?;
        let wanted = peer.wanted.pop_front()?;
        peer.waiting_since = Some(now);
        self.turns += 1;
        peer.last_turn = self.turns;
        Some((origin_of(peer.address.ip()), wanted))
    }

    /// Has the first slice read for peers that are not being sent anything, those that have waited
    /// longest first.
    fn begin_slices(&mut self, net: &mut Net) {
        let now = net.now();
        let mut origins = self.slow_rates(net);
        let waiting = self.peers.iter().filter(|(_, peer)| peer.is_waiting());
        let mut line: Vec<(u64, ConnectionId)> =
            waiting.map(|(id, peer)| (peer.last_turn, *id)).collect();
        line.sort_unstable_by_key(|(last_turn, _)| *last_turn);
        for (_, id) in line {
            if self.slices.available() == 0 {
                // The buffer of a connection that was just closed will come back soon.
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

    /// The rates at which slow peers of each IP address are taking chunks.
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

    /// The peers that have waited for so long without being sent anything.
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

    /// Answers BUSY to peers that cannot be served soon, before they think that this side is
    /// silent.
    pub(super) fn refuse_waiting(&mut self, net: &mut Net) {
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
        self.submit(PieceJob { reader, catalog, offer, index, offset: 0, is_checked, buffer })
    }

    /// Starts to send a chunk slice by slice.
    fn begin_slice(&mut self, id: ConnectionId, wanted: ChunkRequest) -> Result<(), PeerReply> {
        let ChunkRequest { request, content, index } = wanted;
        let (catalog, offer) = self.offer(content).ok_or_else(|| self.not_here(content))?;
        let slices =
            SlicedChunk { wanted, length: chunk_len(index, offer.manifest.size()), read: 0 };
        let buffer = self.slices.take(slices.next_len()).ok_or_else(no_memory)?;
        let is_checked = self.checks.is_due(content, chunk_count(offer.manifest.size()), index);
        let reader = ReadFor::Peer { id, request, is_slice: true };
        self.submit(PieceJob { reader, catalog, offer, index, offset: 0, is_checked, buffer })?;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.slices = Some(slices);
        }
        Ok(())
    }

    /// Has the next slice read for peers that have taken the previous one.
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
                        // The buffer of a connection that was just closed will come back soon.
                        return;
                    };
                    let is_checked = false;
                    let job =
                        PieceJob { reader, catalog, offer, index, offset, is_checked, buffer };
                    self.submit(job).map_err(|_| "there is no thread to read it with")
                }
            };
            if let Err(why) = submitted {
                self.leave_within_chunk(net, id, why);
            }
        }
    }

    /// Closes a connection on which the rest of a chunk cannot be sent. The receiver expects the
    /// chunk's bytes, so no message can be sent either.
    fn leave_within_chunk(&mut self, net: &mut Net, id: ConnectionId, why: &str) {
        if let Some(peer) = self.peers.get(&id) {
            log::info!("{} does not get the rest of its chunk: {why}", peer.address);
        }
        net.close(id);
    }

    fn submit(&mut self, job: PieceJob) -> Result<(), PeerReply> {
        let reader = job.reader;
        self.readers.submit(job).map_err(|refused| match refused {
            SubmitError::Full(_) => {
                panic!("{} jobs are outstanding, one for each buffer", self.readers.outstanding())
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

    pub(super) fn on_read(&mut self, net: &mut Net, done: PieceDone) {
        let PieceDone { reader, catalog, offer, buffer, outcome } = done;
        match reader {
            ReadFor::Doubt => self.is_doubt_read = false,
            ReadFor::Peer { id, .. } => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    assert!(peer.reading > 0, "a read for {} has ended", peer.address);
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
            let slices = peer.slices.as_mut();
            let slices = slices.expect("a slice is read for a peer that is being sent slices");
            (is_first, length) = (slices.read == 0, slices.length);
            slices.read += buffer.length();
            ends_chunk = slices.read >= slices.length;
            if ends_chunk {
                peer.slices = None;
            }
        }
        let mut header = None;
        if is_first {
            // A chunk is at most 1 MiB long, which fits.
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

    /// Hands what was read to the connections, as far as the rate allows.
    pub(super) fn send_chunks(&mut self, net: &mut Net) {
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
            // It has been given all it requested, or more than goes at once, and does not take it.
            let has_all = peer.outgoing.is_empty() && !peer.pieces.is_empty();
            peer.wait_for(has_all || net.queued_bytes(*id) > 2 * rate_limit.piece_bytes, net.now());
        }
        let mut room = rate_limit.bucket.available(net.now());
        // In rounds of one piece each, so that no chunk takes the rate from the others. A tick
        // often has room for one piece, so the next tick goes on where this one has ended.
        let ready = self.peers.iter().filter(|(_, peer)| !peer.outgoing.is_empty());
        let mut line: Vec<(u64, ConnectionId)> =
            ready.map(|(id, peer)| (peer.last_piece, *id)).collect();
        line.sort_unstable_by_key(|(last_piece, _)| *last_piece);
        let mut line = VecDeque::from(line);
        while room > 0
            && let Some((_, id)) = line.pop_front()
        {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            // Bytes that the system has not accepted yet count as sent. More would only wait there.
            if net.queued_bytes(id) > 2 * rate_limit.piece_bytes {
                continue;
            }
            let Some(chunk) = peer.outgoing.pop_front() else { continue };
            let length = chunk.bytes.len().min(rate_limit.piece_bytes);
            send_piece(net, id, peer, chunk, length);
            rate_limit.bucket.take(length as u64);
            room = room.saturating_sub(length as u64);
            self.turns += 1;
            peer.last_piece = self.turns;
            line.push_back((self.turns, id));
        }
    }

    /// Closes connections over which almost nothing is sent.
    pub(super) fn close_stopped(&mut self, net: &mut Net) {
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

/// Hands the first `length` bytes of a chunk or slice to its connection. The rest waits.
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
        // The connection is closed, or is about to be, which `on_closed` will report.
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
