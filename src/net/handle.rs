//! What a service can ask of its event loop: the [`Net`] handle that it gets with every callback.
//!
//! Rule: no method blocks or calls back into the service; what a call brings about is reported
//! later, and what is sent is written at the end of the iteration. Limits on memory and places are
//! kept here, through `budget` and `crowd`.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::budget::{MemoryBudget, Victim};
use super::buffer::Buffer;
use super::config::LoopConfig;
use super::connection::{
    CloseReason, Connection, ConnectionKind, ConnectionPhase, RawIncoming, SendLimits,
};
use super::connections::{ConnectionId, Connections};
use super::crowd::Crowd;
use super::listener::Listener;
use super::local::LocalPort;
use super::send_queue::{SegmentPool, SendQueue, WriteProgress};
use super::socket::Socket;
use crate::limits::SEND_SEGMENT_BYTES;
use crate::wire::frame::Deframer;

/// Why [`Net::try_send`] queued nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The queue is at its limit, [`SendLimits::max_bytes`].
    #[error("too much is waiting to be sent on this connection")]
    Full,
    /// The connection is gone, or about to be.
    #[error("the connection is gone")]
    Gone,
}

/// Connections that wait for their turn, urgent ones apart.
#[derive(Default)]
pub(super) struct TurnQueue {
    pub(super) urgent: Vec<ConnectionId>,
    pub(super) others: Vec<ConnectionId>,
}

impl TurnQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.others.is_empty()
    }

    fn push(&mut self, id: ConnectionId, urgent: bool) {
        if urgent { self.urgent.push(id) } else { self.others.push(id) }
    }

    /// Takes all that wait, so that each gets one turn.
    pub(super) fn take_round(&mut self) -> TurnRound {
        let urgent = self.urgent.len();
        let mut all = std::mem::take(&mut self.others);
        all.splice(..0, self.urgent.drain(..));
        TurnRound { all, next: 0, urgent }
    }

    /// Puts those back that were not reached, before those that have come since.
    pub(super) fn give_back(&mut self, round: TurnRound) {
        let mut rest = round.all;
        rest.drain(..round.next);
        if self.others.is_empty() || !rest.is_empty() {
            rest.append(&mut self.others);
            self.others = rest;
        }
    }
}

/// Connections that get one turn each, urgent ones first.
pub(super) struct TurnRound {
    all: Vec<ConnectionId>,
    next: usize,
    urgent: usize,
}

impl TurnRound {
    /// The next connection. After `until` only urgent ones are given out.
    pub(super) fn next(&mut self, until: Option<Instant>) -> Option<ConnectionId> {
        let id = *self.all.get(self.next)?;
        let may_wait = self.next >= self.urgent;
        if may_wait && until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        self.next += 1;
        Some(id)
    }
}

/// An event that is reported to the service once its present callback has returned.
pub(super) enum LoopNotice {
    Closed(ConnectionId, CloseReason),
    DialFailed(ConnectionId, io::Error),
    RawSent(ConnectionId),
}

/// The sockets of an event loop, as its service sees them.
///
/// Every method that takes a [`ConnectionId`] does nothing when that connection is gone, and says
/// so where there is something to return.
pub struct Net {
    pub(super) config: LoopConfig,
    pub(super) registry: Registry,
    pub(super) listener: Option<Listener>,
    /// The port within the process on which the loop listens.
    pub(super) local: Option<LocalPort>,
    pub(super) connections: Connections,
    pub(super) now: Instant,
    /// Connections to give a turn.
    pub(super) ready: TurnQueue,
    /// Connections with something to write.
    pub(super) dirty: TurnQueue,
    /// The present tick is not the first of this iteration.
    pub(super) tick_is_late: bool,
    /// The service has asked for another `on_wake` before the loop sleeps.
    pub(super) wake_again: bool,
    pub(super) notices: Vec<LoopNotice>,
    /// The memory that accepted connections make this process hold.
    pub(super) budget: MemoryBudget,
    /// The accepted connections that may have to give way.
    pub(super) crowd: Crowd,
    /// Connections that are not read until the budget has room.
    pub(super) held_back: Vec<ConnectionId>,
    /// The time past which the loop does not sleep.
    pub(super) alarm: Option<Instant>,
    pub(super) pool: SegmentPool,
    pub(super) exiting: bool,
    /// The longest time between two waits for the sockets, sleep not counted.
    pub(super) longest_stall: Duration,
}

impl Net {
    pub(super) fn new(config: LoopConfig, registry: Registry) -> Net {
        Net {
            budget: MemoryBudget::new(config.budget),
            crowd: Crowd::default(),
            held_back: Vec::new(),
            config,
            registry,
            listener: None,
            local: None,
            connections: Connections::default(),
            now: Instant::now(),
            ready: TurnQueue::default(),
            dirty: TurnQueue::default(),
            tick_is_late: false,
            wake_again: false,
            notices: Vec::new(),
            alarm: None,
            pool: SegmentPool::default(),
            exiting: false,
            longest_stall: Duration::ZERO,
        }
    }

    /// The monotonic time of this iteration, without that in which the process was stopped
    /// ([`LoopConfig::turn_max`]).
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Sets the time past which the loop is not to sleep, in place of the one set before, or none.
    /// The system rounds it up to a millisecond. What follows is an iteration like any other, with
    /// [`Service::before_sleep`](super::Service::before_sleep) at its end.
    pub fn set_alarm(&mut self, at: Option<Instant>) {
        self.alarm = at;
    }

    /// Queues what `write` appends, one or more whole frames, to be written at the end of this
    /// iteration. If more would wait than the connection's [`SendLimits`] allow, the connection is
    /// closed with [`CloseReason::QueueFull`] instead. On a connection that is still being dialled
    /// it waits. Returns whether it was queued.
    pub fn send(&mut self, id: ConnectionId, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let sent = self.queue(id, |queue, max, pool| queue.append(max, pool, write));
        self.close_if_full(id, sent)
    }

    /// As [`Net::send`], for bytes that exist already; a long run of them is not copied.
    pub fn send_owned(&mut self, id: ConnectionId, frames: Vec<u8>) -> bool {
        let sent = self.queue(id, |queue, max, pool| queue.append_owned(max, pool, frames));
        self.close_if_full(id, sent)
    }

    /// As [`Net::send`], but a full queue only refuses: for links whose protocol resends. When the
    /// queue is at its limit already, `write` is not even called.
    pub fn try_send(
        &mut self,
        id: ConnectionId,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), SendError> {
        let sent = self.queue(id, |queue, max, pool| {
            let queued_bytes = queue.queued_bytes();
            if queued_bytes >= max { Err(queued_bytes) } else { queue.append(max, pool, write) }
        });
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(SendError::Full),
            None => Err(SendError::Gone),
        }
    }

    /// As [`Net::send`], for frames in pieces that stay where they are and are not copied.
    pub fn send_pieces(&mut self, id: ConnectionId, pieces: Vec<Bytes>) -> bool {
        let sent = self.queue(id, |queue, max, _| queue.append_pieces(max, pieces));
        self.close_if_full(id, sent)
    }

    /// As [`Net::send_pieces`], but a full queue only refuses.
    pub fn try_send_pieces(
        &mut self,
        id: ConnectionId,
        pieces: Vec<Bytes>,
    ) -> Result<(), SendError> {
        match self.queue(id, |queue, max, _| queue.append_pieces(max, pieces)) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(SendError::Full),
            None => Err(SendError::Gone),
        }
    }

    /// As [`Net::send`], for bytes that are not a frame but follow one that announces them. They
    /// are never copied, and dropped as soon as the system has them all, of which
    /// [`Service::on_raw_sent`](super::Service::on_raw_sent) tells.
    pub fn send_raw(&mut self, id: ConnectionId, bytes: Bytes) -> bool {
        let sent = self.queue(id, |queue, max, _| queue.append_lent(max, bytes));
        self.close_if_full(id, sent)
    }

    /// Takes the bytes that come next on the connection, after the frame that is being handled, as
    /// they are, until `buffer` is full. It comes back by
    /// [`Service::on_raw`](super::Service::on_raw) when it is, and is dropped when the connection
    /// ends before. While raw bytes are awaited, a second call does nothing. Returns whether the
    /// bytes will be taken.
    pub fn receive_raw(&mut self, id: ConnectionId, buffer: Buffer) -> bool {
        match self.connections.get_mut(id) {
            Some(connection)
                if connection.phase == ConnectionPhase::Open && connection.raw.is_none() =>
            {
                connection.raw = Some(RawIncoming { buffer, filled: 0 });
                self.schedule(id);
                true
            }
            _ => false,
        }
    }

    /// Bytes of every kind received on a connection so far; 0 when it is gone.
    pub fn received_bytes(&self, id: ConnectionId) -> u64 {
        self.connections.get(id).map_or(0, |connection| connection.received_bytes)
    }

    /// Those of them that were awaited as raw bytes: frames do not count.
    pub fn raw_bytes(&self, id: ConnectionId) -> u64 {
        self.connections.get(id).map_or(0, |connection| connection.raw_bytes)
    }

    /// The bytes of a frame that is not whole yet, its header included, as far as they have come.
    pub fn unfinished_frame(&self, id: ConnectionId) -> &[u8] {
        self.connections.get(id).map_or(&[], |connection| connection.deframer.unfinished())
    }

    /// Gives this connection's turns before those of others, and without regard to the time that
    /// theirs take: for the few that carry little and must not wait.
    pub fn set_urgent(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.urgent = true;
        }
    }

    /// In [`Service::on_tick`](super::Service::on_tick): whether this tick only makes up for a
    /// stall of the loop, and is not the first of this iteration.
    pub fn tick_is_late(&self) -> bool {
        self.tick_is_late
    }

    /// Has [`Service::on_wake`](super::Service::on_wake) called again in the next iteration,
    /// without a sleep before it: for a service that leaves completions for later so as not to
    /// stall the loop.
    pub fn wake_again(&mut self) {
        self.wake_again = true;
    }

    /// The longest time so far between two looks at the sockets, sleep not counted.
    pub fn longest_stall(&self) -> Duration {
        self.longest_stall
    }

    /// Closes a connection now; what is queued for it is lost.
    pub fn close(&mut self, id: ConnectionId) {
        self.end(id, CloseReason::Local);
    }

    /// Reads nothing more from a connection and closes it once what is queued has been written, or
    /// after [`LoopConfig::write_stall_timeout`].
    pub fn close_after_flush(&mut self, id: ConnectionId) {
        self.end_after_flush(id, CloseReason::Local);
    }

    /// Begins to connect to `address`. The outcome comes later, as
    /// [`Service::on_connected`](super::Service::on_connected) or
    /// [`Service::on_dial_failed`](super::Service::on_dial_failed), also when it is known at once.
    pub fn dial(&mut self, address: SocketAddr) -> ConnectionId {
        self.dial_with(address, || TcpStream::connect(address).map(Socket::Tcp))
    }

    /// The same within the process; `address` is where the other loop listens, too.
    pub fn dial_local(&mut self, port: &LocalPort, address: SocketAddr) -> ConnectionId {
        self.dial_with(address, || port.connect().map(Socket::Local))
    }

    fn dial_with(
        &mut self,
        address: SocketAddr,
        connect: impl FnOnce() -> io::Result<Socket>,
    ) -> ConnectionId {
        let attempt = if self.connections.count(ConnectionKind::Dialled) >= self.config.dialled_max
        {
            Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many connections dialled"))
        } else {
            connect()
        };
        let outcome = attempt.and_then(|stream| {
            self.adopt(stream, address, ConnectionKind::Dialled, ConnectionPhase::Connecting)
        });
        outcome.unwrap_or_else(|error| {
            let id = self.connections.fresh_id();
            self.notices.push(LoopNotice::DialFailed(id, error));
            id
        })
    }

    /// Changes the most bytes a frame's body may have, from the next frame on.
    pub fn set_frame_cap(&mut self, id: ConnectionId, body_bytes_max: usize) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.frame_cap = body_bytes_max;
        }
    }

    /// Bounds what the system buffers for sending to a connection, which it chooses by itself
    /// otherwise. A system that refuses leaves it at that.
    pub fn set_socket_send_buffer(&mut self, id: ConnectionId, bytes: usize) {
        if let Some(connection) = self.connections.get(id)
            && let Err(error) =
                rustix::net::sockopt::set_socket_send_buffer_size(&connection.stream, bytes)
        {
            log::debug!("bounding the buffer for sending to {}: {error}", connection.peer);
        }
    }

    /// Changes how much may wait to be written to a connection.
    pub fn set_send_limits(&mut self, id: ConnectionId, limits: SendLimits) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.send_limits = limits;
            self.schedule(id);
        }
    }

    /// Hands out no more frames of a connection and stops reading it, so that its sender is held
    /// back. Frames that were received already wait here.
    pub fn pause_reading(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.paused = true;
        }
    }

    /// As [`Net::pause_reading`], and independent of it: until the frame that was handed out last,
    /// which is worked on elsewhere, is done with.
    pub fn hold_frames(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.held = true;
        }
    }

    /// Hands out frames again after [`Net::hold_frames`].
    pub fn release_frames(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && std::mem::take(&mut connection.held)
        {
            connection.frames_left = true;
            self.schedule(id);
        }
    }

    /// Reads and hands out frames again after [`Net::pause_reading`].
    pub fn resume_reading(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.paused
        {
            connection.paused = false;
            connection.frames_left = true;
            self.schedule(id);
        }
    }

    /// Bytes waiting to be written to a connection; 0 when it is gone.
    pub fn queued_bytes(&self, id: ConnectionId) -> usize {
        self.connections.get(id).map_or(0, |connection| connection.queue.queued_bytes())
    }

    /// How long the other side has taken none of the bytes that wait for it; zero when none wait.
    pub fn write_stall(&self, id: ConnectionId) -> Duration {
        let waiting = self.connections.get(id).filter(|connection| !connection.queue.is_empty());
        waiting.map_or(Duration::ZERO, |connection| {
            self.now.saturating_duration_since(connection.last_write_progress)
        })
    }

    /// Closes the connection with [`CloseReason::Deadline`] at `deadline`, or never. A new
    /// connection has the hand-shake's deadline: replace it, or take it away when it has
    /// [greeted](Net::greeted).
    pub fn set_deadline(&mut self, id: ConnectionId, deadline: Option<Instant>) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.deadline = deadline;
        }
    }

    /// The greeting is done: the connection has no deadline any more, and does not give way to
    /// newcomers.
    pub fn greeted(&mut self, id: ConnectionId) {
        self.set_deadline(id, None);
        self.crowd.settled(id);
    }

    /// Whether nothing is under way on a connection that has greeted: such a one gives way to
    /// newcomers, as if it had not, and the one that has been idle for longest goes first.
    pub fn set_idle(&mut self, id: ConnectionId, is_idle: bool) {
        match is_idle {
            true => self.crowd.yields(id),
            false => self.crowd.settled(id),
        }
    }

    /// Exempts a connection from ever giving way: those between the group's own servers.
    pub fn protect(&mut self, id: ConnectionId) {
        self.crowd.forget(id);
    }

    /// Closes a connection that has greeted, in favour of one from `ip`: the one silent for
    /// longest, from the address that has the most. `false`: that one does not have more than `ip`
    /// would.
    pub fn displace(&mut self, ip: IpAddr) -> bool {
        let silent_since = |id: &ConnectionId| Some(self.connections.get(*id)?.last_received);
        let victim = self.crowd.settled_to_go(ip).min_by_key(silent_since);
        if let Some(victim) = victim {
            self.end(victim, CloseReason::Displaced);
        }
        victim.is_some()
    }

    /// Closes a connection in favour of another one that the service has chosen.
    pub fn give_way(&mut self, id: ConnectionId) {
        self.end(id, CloseReason::Displaced);
    }

    /// Makes room for a connection from `ip` that is to be accepted, if all places are taken.
    /// `false` when nobody gives way to it.
    pub(super) fn make_room(&mut self, ip: IpAddr) -> bool {
        if self.connections.count(ConnectionKind::Accepted) < self.config.accepted_max {
            return true;
        }
        match self.crowd.newcomer_to_go() {
            Some(newcomer) => self.end(newcomer, CloseReason::Displaced),
            None if !self.displace(ip) => return false,
            None => {}
        }
        true
    }

    /// Asks [`Service::on_idle`](super::Service::on_idle) about the connection when nothing has
    /// been received, and nothing has waited to be sent, for this long.
    pub fn set_idle_timeout(&mut self, id: ConnectionId, timeout: Option<Duration>) {
        let now = self.now;
        if let Some(connection) = self.connections.get_mut(id) {
            connection.idle_timeout = timeout;
            connection.last_received = now;
        }
    }

    /// The other side's address.
    pub fn peer_address(&self, id: ConnectionId) -> Option<SocketAddr> {
        self.connections.get(id).map(|connection| connection.peer)
    }

    /// Connections accepted and not yet gone.
    #[cfg(any(test, feature = "internals"))]
    pub fn accepted_connections(&self) -> usize {
        self.connections.count(ConnectionKind::Accepted)
    }

    /// Connections dialled, or being dialled, and not yet gone.
    #[cfg(any(test, feature = "internals"))]
    pub fn dialled_connections(&self) -> usize {
        self.connections.count(ConnectionKind::Dialled)
    }

    /// Closes the listener, and the port within the process; established connections stay.
    pub fn stop_accepting(&mut self) {
        if let Some(port) = self.local.take() {
            port.close();
        }
        if let Some(mut listener) = self.listener.take()
            && let Err(error) = self.registry.deregister(&mut listener.inner)
        {
            log::debug!("deregistering the listener: {error}");
        }
    }

    /// Ends the loop after this iteration. No more callbacks come; what is queued is still written,
    /// as far as that takes at most
    /// [`CLOSE_LINGER`](crate::limits::CLOSE_LINGER).
    pub fn exit(&mut self) {
        self.exiting = true;
    }

    /// Takes a socket into the slab, with `peer` as the address of its other end.
    pub(super) fn adopt(
        &mut self,
        mut stream: Socket,
        peer: SocketAddr,
        kind: ConnectionKind,
        phase: ConnectionPhase,
    ) -> io::Result<ConnectionId> {
        if let Some(congestion) = &self.config.congestion {
            stream.set_congestion(congestion);
        }
        self.registry.register(
            &mut stream,
            Token(self.connections.next_slot()),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        let mut deframer = Deframer::default();
        if let Some(large_from) = self.config.large_frame_bytes {
            deframer.set_large_from(large_from);
        }
        let id = self.connections.insert(Connection {
            stream,
            peer,
            kind,
            phase,
            announced: kind != ConnectionKind::Refused,
            close_reason: CloseReason::Local,
            readable: false,
            // A new connection has room in the system's buffer, or its first write shows that it
            // has not.
            writable: phase == ConnectionPhase::Open,
            end_announced: false,
            urgent: false,
            frames_left: false,
            paused: false,
            held_back: false,
            held: false,
            scheduled: false,
            dirty: false,
            deframer,
            frame_since: None,
            received_since: None,
            received_charged: 0,
            queued_charged: 0,
            queue_mark: None,
            raw: None,
            received_bytes: 0,
            raw_bytes: 0,
            frame_cap: self.config.first_frame_bytes_max,
            queue: SendQueue::default(),
            send_limits: self.config.send_limits,
            deadline: Some(self.now + self.config.handshake_timeout),
            idle_timeout: None,
            last_received: self.now,
            last_write_progress: self.now,
        });
        if kind == ConnectionKind::Accepted {
            self.budget.open(id, peer.ip());
            self.crowd.came(id, peer.ip());
        }
        Ok(id)
    }

    /// Gives the connection a turn in the next round.
    pub(super) fn schedule(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.scheduled
        {
            connection.scheduled = true;
            self.ready.push(id, connection.urgent);
        }
    }

    pub(super) fn mark_dirty(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(id, connection.urgent);
        }
    }

    /// Reads nothing more from a connection until [`Net::evict_slow_readers`] finds room in the
    /// budget for it.
    pub(super) fn hold_back(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.held_back
        {
            connection.held_back = true;
            self.held_back.push(id);
        }
    }

    /// Writes what the connection has queued, as far as its socket takes it.
    pub(super) fn flush(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.dirty = false;
        if connection.wants_write() && connection.writable {
            let wanted_read = connection.wants_read();
            let outcome = connection.queue.write_to(
                &mut connection.stream,
                self.config.write_budget_bytes,
                &mut self.pool,
            );
            let state = match outcome {
                Ok(flushed) => {
                    if flushed.bytes > 0 {
                        connection.last_write_progress = self.now;
                    }
                    let sent = std::iter::repeat_with(|| LoopNotice::RawSent(id));
                    self.notices.extend(sent.take(flushed.lent));
                    flushed.state
                }
                Err(error) => return self.end(id, CloseReason::Io(error)),
            };
            connection.writable = state != WriteProgress::Blocked;
            if !wanted_read && connection.wants_read() {
                self.schedule(id);
            }
            if state == WriteProgress::Budget {
                self.mark_dirty(id);
            }
        }
        if let Some(connection) = self.connections.get_mut(id) {
            charge_queued(&mut self.budget, id, connection, self.now);
        }
        self.linger_if_flushed(id);
    }

    /// Ends a connection: forgets it, closes its socket and, if the service knows it, has that
    /// reported.
    pub(super) fn end(&mut self, id: ConnectionId, reason: CloseReason) {
        let Some(mut connection) = self.connections.remove(id) else {
            return;
        };
        self.budget.close(id);
        self.crowd.forget(id);
        if let Err(error) = self.registry.deregister(&mut connection.stream) {
            log::debug!("deregistering the connection with {}: {error}", connection.peer);
        }
        if !connection.announced {
            return;
        }
        self.notices.push(match (connection.phase, reason) {
            (ConnectionPhase::Connecting, CloseReason::Io(error)) => {
                LoopNotice::DialFailed(id, error)
            }
            (ConnectionPhase::Connecting, CloseReason::Deadline) => {
                LoopNotice::DialFailed(id, io::ErrorKind::TimedOut.into())
            }
            (ConnectionPhase::Connecting, reason) => LoopNotice::DialFailed(
                id,
                io::Error::new(io::ErrorKind::ConnectionAborted, reason.to_string()),
            ),
            (_, reason) => LoopNotice::Closed(id, reason),
        });
    }

    /// Frees memory when accepted connections make this process hold more than the budget: first
    /// buffers that are empty, then the connections with the most byte-seconds. It is called when
    /// everything that sockets take has been written, so that a connection that is read by its
    /// other side has little waiting. Afterwards connections that were not read for want of room
    /// are read again, as far as there is some.
    pub(super) fn evict_slow_readers(&mut self) {
        if self.budget.is_over() {
            for (id, connection) in self.connections.iter_mut() {
                connection.deframer.release_if_empty();
                connection.received_charged = connection.deframer.memory_bytes();
                connection.queued_charged = connection.queue.held_bytes();
                let (received, queued) = (connection.received_charged, connection.queued_charged);
                // Ages are brought up to date only here, where they decide something.
                self.budget.set_received(id, received, connection.received_since);
                self.budget.set_queued(id, queued, connection.queued_since(self.now));
            }
            for Victim { id, bytes, max } in self.budget.victims(self.now) {
                self.end(id, CloseReason::Evicted { held_bytes: bytes, max });
            }
        }
        for at in (0..self.held_back.len()).rev() {
            let id = self.held_back[at];
            if self.budget.may_grow(id) {
                self.held_back.swap_remove(at);
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.held_back = false;
                    self.schedule(id);
                }
            }
        }
    }

    /// Charges the budget with what a request of this connection is about to hold. `false` when its
    /// connection, its origin or the process has no room for that: the request is to be refused
    /// with `BUSY`. What was charged is to be [released](Net::release), also when the connection
    /// has gone meanwhile.
    pub fn try_hold(&mut self, id: ConnectionId, bytes: usize) -> bool {
        self.budget.try_hold(id, bytes)
    }

    /// Takes back a charge of [`Net::try_hold`], when the request holds that no longer.
    pub fn release(&mut self, id: ConnectionId, bytes: usize) {
        self.budget.release(id, bytes);
    }

    /// Bytes that accepted connections make this process hold, as the budget counts them.
    #[cfg(any(test, feature = "internals"))]
    pub fn budget_bytes(&self) -> usize {
        self.budget.bytes()
    }

    /// As [`Net::end`], once what is queued has been written.
    pub(super) fn end_after_flush(&mut self, id: ConnectionId, reason: CloseReason) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        match connection.phase {
            ConnectionPhase::Connecting => self.end(id, reason),
            ConnectionPhase::Open => {
                connection.phase = ConnectionPhase::Flushing;
                connection.close_reason = reason;
                connection.deadline = Some(self.now + self.config.write_stall_timeout);
                connection.deframer = Deframer::default();
                connection.frame_since = None;
                connection.raw = None;
                charge_received(&mut self.budget, id, connection, 0);
                self.crowd.yields(id);
                self.mark_dirty(id);
            }
            ConnectionPhase::Flushing | ConnectionPhase::Lingering => {}
        }
    }

    /// Closes this side's half of a connection whose last bytes are written, and waits for the
    /// other side to close its half.
    fn linger_if_flushed(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if connection.phase != ConnectionPhase::Flushing || !connection.queue.is_empty() {
            return;
        }
        let reason = std::mem::replace(&mut connection.close_reason, CloseReason::Local);
        if std::mem::replace(&mut connection.announced, false) {
            self.notices.push(LoopNotice::Closed(id, reason));
        }
        if connection.stream.shutdown(Shutdown::Write).is_err() {
            return self.end(id, CloseReason::Local);
        }
        connection.phase = ConnectionPhase::Lingering;
        connection.deadline = Some(self.now + self.config.close_linger);
        self.schedule(id);
    }

    /// Runs `add` on the queue of a connection; `None` when nothing can be sent on it any more.
    fn queue(
        &mut self,
        id: ConnectionId,
        add: impl FnOnce(&mut SendQueue, usize, &mut SegmentPool) -> Result<(), usize>,
    ) -> Option<Result<(), usize>> {
        let connection = self.connections.get_mut(id)?;
        if !matches!(connection.phase, ConnectionPhase::Connecting | ConnectionPhase::Open) {
            return None;
        }
        if connection.queue.is_empty() {
            connection.last_write_progress = self.now;
        }
        let added = add(&mut connection.queue, connection.send_limits.max_bytes, &mut self.pool);
        // Most of what is queued is written before the loop sleeps, and counted only if it is not.
        if connection.queue.held_bytes() > connection.queued_charged + SEND_SEGMENT_BYTES {
            charge_queued(&mut self.budget, id, connection, self.now);
        }
        if connection.wants_write() {
            self.mark_dirty(id);
        }
        Some(added)
    }

    fn close_if_full(&mut self, id: ConnectionId, sent: Option<Result<(), usize>>) -> bool {
        match sent {
            Some(Ok(())) => true,
            Some(Err(queued_bytes)) => {
                let max = self
                    .connections
                    .get(id)
                    .map_or(0, |connection| connection.send_limits.max_bytes);
                self.end(id, CloseReason::QueueFull { queued_bytes, max });
                false
            }
            None => false,
        }
    }
}

/// Charges the budget with the memory that holds received bytes of a connection.
pub(super) fn charge_received(
    budget: &mut MemoryBudget,
    id: ConnectionId,
    connection: &mut Connection,
    bytes: usize,
) {
    if bytes != connection.received_charged {
        connection.received_charged = bytes;
        budget.set_received(id, bytes, connection.received_since);
    }
}

/// Charges the budget with the memory that holds queued bytes of a connection.
fn charge_queued(
    budget: &mut MemoryBudget,
    id: ConnectionId,
    connection: &mut Connection,
    now: Instant,
) {
    let bytes = connection.queue.held_bytes();
    if bytes > 0 || connection.queued_charged > 0 {
        connection.queued_charged = bytes;
        budget.set_queued(id, bytes, connection.queued_since(now));
    }
}
