//! The event loop's iterations: waiting, accepting, reading, ticks, deadlines and writing.
//!
//! The module's header lists the stages of one iteration and the invariants. What a service may ask
//! for meanwhile is in `handle`; which calls to the system are worth making is decided by
//! `connection`.

use std::io::{self, Read};
use std::net::SocketAddr;
#[cfg(any(test, feature = "grpc"))]
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Events, Interest, Poll, Token};

use super::accept::{AcceptGate, AcceptStep};
use super::clock::RunClock;
use super::config::LoopConfig;
use super::connection::{CloseReason, ConnectionKind, ConnectionPhase};
use super::connections::ConnectionId;
use super::handle::{LoopNotice, Net, charge_received};
use super::listener::Listener;
use super::local::{LOCAL_PEER, LocalPort};
use super::service::Service;
use super::socket::Socket;
use super::wake::{WakeHandle, WakeSource};
use crate::limits;
use crate::wire::frame::Deframer;

/// Frames taken from one connection before the others get their turn: a read buffer full of small
/// ones.
const FRAMES_PER_TURN_MAX: usize = 256;
/// Connections accepted in one iteration, so that a flood of them does not keep established ones
/// waiting.
const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Ticks made up for at once after a stall of the loop; the rest are left out, since a late core
/// that is given many ticks would take the leader for silent.
const TICKS_CATCH_UP_MAX: u32 = 3;
/// Readiness events taken from the system at once; the others come in the next iteration.
const EVENTS_PER_POLL_MAX: usize = 1024;

/// The system's readiness notification (epoll) failed, without which there is no loop.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// It could not be set up.
    #[error("cannot set up the event loop: {0}; is the limit on open files too low?")]
    Setup(#[source] io::Error),
    /// It failed while the loop ran.
    #[error("the event loop cannot wait for its sockets: {0}")]
    Poll(#[source] io::Error),
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// The sockets of one thread. It is made before its service, so that worker threads can be given
/// its [`WakeHandle`], and then [runs](EventLoop::run) with it.
pub struct EventLoop {
    pub(super) sleeper: Sleeper,
    pub(super) turns: Turns,
}

/// What the loop sleeps with.
pub(super) struct Sleeper {
    poll: Poll,
    events: Events,
    pub(super) wake: WakeSource,
}

/// What the loop works with between two sleeps.
pub(super) struct Turns {
    gate: AcceptGate,
    /// The limit on accepted connections is reached, and the log has said so.
    full: bool,
    pub(super) net: Net,
    pub(super) clock: RunClock,
    next_tick: Instant,
    next_sweep: Instant,
}

impl EventLoop {
    /// Sets up a loop that accepts on `listener`, if there is one.
    pub fn new(config: LoopConfig, listener: Option<Listener>) -> Result<EventLoop, LoopError> {
        let poll = Poll::new().map_err(LoopError::Setup)?;
        let wake = WakeSource::new(poll.registry(), WAKER).map_err(LoopError::Setup)?;
        let mut event_loop = EventLoop::with(config, poll, wake)?;
        if let Some(mut listener) = listener {
            let registry = event_loop.sleeper.poll.registry();
            registry
                .register(&mut listener.inner, LISTENER, Interest::READABLE)
                .map_err(LoopError::Setup)?;
            event_loop.turns.net.listener = Some(listener);
        }
        Ok(event_loop)
    }

    /// Sets up a loop to which a task gives its turns ([`DrivenLoop`](super::DrivenLoop)), and
    /// which wakes that task and not a thread.
    #[cfg(any(test, feature = "grpc"))]
    pub(crate) fn driven(config: LoopConfig) -> Result<EventLoop, LoopError> {
        EventLoop::with(config, Poll::new().map_err(LoopError::Setup)?, WakeSource::of_task())
    }

    fn with(config: LoopConfig, poll: Poll, wake: WakeSource) -> Result<EventLoop, LoopError> {
        let registry = poll.registry().try_clone().map_err(LoopError::Setup)?;
        let net = Net::new(config, registry);
        let events = Events::with_capacity(EVENTS_PER_POLL_MAX);
        Ok(EventLoop {
            sleeper: Sleeper { poll, events, wake },
            turns: Turns {
                gate: AcceptGate::new(limits::ACCEPT_BACKOFF),
                full: false,
                clock: RunClock::new(net.config.turn_max, net.now),
                next_tick: net.now,
                next_sweep: net.now,
                net,
            },
        })
    }

    /// A handle by which other threads wake this loop.
    pub fn wake_handle(&self) -> WakeHandle {
        self.sleeper.wake.handle()
    }

    /// Takes in what other loops of this process dial on `port`, too.
    pub fn listen_local(&mut self, port: LocalPort) {
        port.listen(self.wake_handle());
        self.turns.net.local = Some(port);
    }

    /// Runs until the service calls [`Net::exit`].
    pub fn run<S: Service>(self, service: &mut S) -> Result<(), LoopError> {
        let EventLoop { mut sleeper, mut turns } = self;
        turns.start(service);
        loop {
            turns.finish(service);
            if turns.net.exiting {
                return turns.leave(&mut sleeper);
            }
            sleeper.sleep(turns.time_to_sleep())?;
            turns.work(service, &sleeper);
        }
    }
}

impl Sleeper {
    /// Takes what the system has to say, without sleeping; nothing if it is known to have nothing.
    #[cfg(any(test, feature = "grpc"))]
    pub(super) fn look(&mut self, has_news: bool) -> Result<(), LoopError> {
        match has_news {
            true => self.sleep(Some(Duration::ZERO)),
            false => {
                self.events.clear();
                Ok(())
            }
        }
    }

    /// A descriptor that is readable while a socket of the loop is ready.
    #[cfg(any(test, feature = "grpc"))]
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.poll.registry().as_fd().try_clone_to_owned()
    }

    /// Sleeps until a socket is ready or a wake handle is used.
    pub(super) fn sleep(&mut self, mut timeout: Option<Duration>) -> Result<(), LoopError> {
        if timeout != Some(Duration::ZERO) && !self.wake.may_sleep() {
            timeout = Some(Duration::ZERO);
        }
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(LoopError::Poll(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Turns {
    pub(super) fn start<S: Service>(&mut self, service: &mut S) {
        self.net.now = Instant::now();
        self.clock = RunClock::new(self.net.config.turn_max, self.net.now);
        self.next_tick = self.net.now + self.net.config.tick_interval.unwrap_or_default();
        self.next_sweep = self.net.now + self.net.config.sweep_interval;
        service.on_start(&mut self.net);
    }

    /// Does what has been gathered, before the loop sleeps.
    pub(super) fn finish<S: Service>(&mut self, service: &mut S) {
        self.tell_notices(service);
        service.before_sleep(&mut self.net);
        self.flush_dirty();
        self.net.evict_slow_readers();
        self.net.longest_stall = self.net.longest_stall.max(self.clock.seen().elapsed());
    }

    /// Does what the loop was woken for.
    pub(super) fn work<S: Service>(&mut self, service: &mut S, sleeper: &Sleeper) {
        let woken = self.note_events(sleeper);
        self.accept(service);
        self.give_turns(service);
        if sleeper.wake.take() || woken {
            self.accept_local(service);
            service.on_wake(&mut self.net);
        }
        self.tick(service);
        self.sweep(service);
    }

    /// Notes which sockets are ready. Returns whether a wake handle was used.
    fn note_events(&mut self, sleeper: &Sleeper) -> bool {
        self.net.now = self.clock.at(Instant::now());
        // Taken at once, so that further wakes of a busy loop cost no system call.
        let woken = sleeper.wake.take() | std::mem::take(&mut self.net.wake_again);
        for event in &sleeper.events {
            match event.token() {
                // The event has only ended the sleep; the wake source says whether there is
                // something to take.
                WAKER => {}
                LISTENER => self.gate.on_ready(),
                Token(slot) => note_readiness(&mut self.net, slot, event),
            }
        }
        woken
    }

    /// How long to sleep: zero when work is left over, `None` when only the system can bring any.
    pub(super) fn time_to_sleep(&self) -> Option<Duration> {
        let net = &self.net;
        let now = net.now;
        let can_accept = net.listener.is_some();
        if !net.ready.is_empty()
            || !net.dirty.is_empty()
            || !net.notices.is_empty()
            || net.wake_again
            || (can_accept && self.gate.is_open(now))
        {
            return Some(Duration::ZERO);
        }
        let tick = net.config.tick_interval.map(|_| self.next_tick);
        let sweep = (!net.connections.is_empty()).then_some(self.next_sweep);
        let accept = self.gate.retry_at().filter(|_| can_accept);
        let next = [tick, sweep, accept, net.alarm].into_iter().flatten().min();
        next.map(|at| at.saturating_duration_since(now))
    }

    fn accept<S: Service>(&mut self, service: &mut S) {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            if !self.gate.is_open(self.net.now) {
                return;
            }
            let Some(listener) = &self.net.listener else {
                return;
            };
            let accepted = listener.inner.accept().and_then(|(stream, peer)| {
                // A listener on `[::]` is told of IPv4 connections in IPv6's notation.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                self.take_in(Socket::Tcp(stream), peer)
            });
            match accepted {
                Ok(id) => self.welcome(service, id),
                Err(error) => match self.gate.on_error(error.kind(), self.net.now) {
                    AcceptStep::Drained => return,
                    AcceptStep::Next => {}
                    AcceptStep::BackOff { log } => {
                        if log {
                            log::error!("cannot accept connections for now: {error}");
                        }
                        return;
                    }
                },
            }
        }
    }

    /// Takes in what others of this process have connected.
    fn accept_local<S: Service>(&mut self, service: &mut S) {
        let waiting = self.net.local.as_ref().map(LocalPort::take).unwrap_or_default();
        for stream in waiting {
            match self.take_in(Socket::Local(stream), LOCAL_PEER) {
                Ok(id) => self.welcome(service, id),
                Err(error) => log::warn!("a connection within the process was lost: {error}"),
            }
        }
    }

    /// Takes in a connection that the other side has begun, if only to refuse it.
    fn take_in(&mut self, stream: Socket, peer: SocketAddr) -> io::Result<ConnectionId> {
        stream.disable_nagle();
        let net = &mut self.net;
        let was_full = net.connections.count(ConnectionKind::Accepted) >= net.config.accepted_max;
        if net.make_room(peer.ip()) {
            self.full &= was_full;
            return net.adopt(stream, peer, ConnectionKind::Accepted, ConnectionPhase::Open);
        }
        if !std::mem::replace(&mut self.full, true) {
            log::warn!(
                "no room for {peer} and others: all {} connections are in use",
                net.config.accepted_max
            );
        }
        if net.connections.count(ConnectionKind::Refused) >= net.config.refused_max {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        net.adopt(stream, peer, ConnectionKind::Refused, ConnectionPhase::Open)
    }

    fn welcome<S: Service>(&mut self, service: &mut S, id: ConnectionId) {
        let Some(connection) = self.net.connections.get(id) else {
            return;
        };
        let (kind, peer) = (connection.kind, connection.peer);
        if kind == ConnectionKind::Refused {
            self.net.send_owned(id, service.refusal(peer));
            self.net.close_after_flush(id);
        } else {
            service.on_accepted(&mut self.net, id, peer);
        }
        self.tell_notices(service);
    }

    /// Gives every scheduled connection one turn, as far as the time of this stage goes. Those it
    /// schedules again come in the next round, after those that were not reached.
    fn give_turns<S: Service>(&mut self, service: &mut S) {
        let until = Instant::now() + self.net.config.stage_time;
        let mut round = self.net.ready.take_round();
        while let Some(id) = round.next(Some(until)) {
            let Some(connection) = self.net.connections.get_mut(id) else {
                continue;
            };
            connection.scheduled = false;
            match connection.phase {
                ConnectionPhase::Connecting => self.finish_dial(service, id),
                ConnectionPhase::Open => self.read(service, id),
                ConnectionPhase::Flushing => {}
                ConnectionPhase::Lingering => self.discard(id),
            }
            self.tell_notices(service);
        }
        self.net.ready.give_back(round);
    }

    fn finish_dial<S: Service>(&mut self, service: &mut S, id: ConnectionId) {
        let Some(connection) = self.net.connections.get_mut(id) else {
            return;
        };
        let stream = &connection.stream;
        match stream.dialled() {
            Ok(()) => {
                stream.disable_nagle();
                connection.phase = ConnectionPhase::Open;
                connection.last_received = self.net.now;
                connection.last_write_progress = self.net.now;
                self.net.mark_dirty(id);
                service.on_connected(&mut self.net, id);
                // Whatever came with the news was noted when there was nothing to read it for.
                self.net.schedule(id);
            }
            // The event was not about this; another will come.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                connection.writable = false;
            }
            Err(error) => self.net.end(id, CloseReason::Io(error)),
        }
    }

    /// One turn of reading: frames that are buffered, then the socket, within the read budget.
    fn read<S: Service>(&mut self, service: &mut S, id: ConnectionId) {
        let Some(connection) = self.net.connections.get_mut(id) else {
            return;
        };
        connection.frames_left = false;
        // Taken out so that a frame can be lent to the service together with the rest of the loop.
        let mut deframer = std::mem::take(&mut connection.deframer);
        let ended = self.read_with(service, id, &mut deframer);
        if let Err(reason) = ended {
            if matches!(reason, CloseReason::Frame(_)) {
                self.end_with_farewell(service, id, reason);
            } else {
                self.net.end(id, reason);
            }
        } else if let Some(connection) = self.net.connections.get_mut(id)
            && connection.phase == ConnectionPhase::Open
        {
            connection.deframer = deframer;
            connection.note_partial_frame(self.net.now);
            if connection.wants_turn() {
                self.net.schedule(id);
            }
        }
    }

    fn read_with<S: Service>(
        &mut self,
        service: &mut S,
        id: ConnectionId,
        deframer: &mut Deframer,
    ) -> Result<(), CloseReason> {
        let mut budget = self.net.config.read_budget_bytes;
        let mut frames = 0;
        loop {
            loop {
                if frames == FRAMES_PER_TURN_MAX {
                    if let Some(connection) = self.net.connections.get_mut(id) {
                        connection.frames_left = true;
                    }
                    return Ok(());
                }
                match self.net.connections.get_mut(id) {
                    Some(connection) if connection.wants_read() => {
                        deframer.set_cap(connection.frame_cap);
                        if let Some(raw) = &mut connection.raw {
                            let taken = deframer.take_raw(raw.rest());
                            raw.filled += taken;
                            connection.raw_bytes += taken as u64;
                            if !raw.rest().is_empty() {
                                break;
                            }
                        }
                        if let Some(raw) = connection.raw.take() {
                            connection.frame_since = None;
                            service.on_raw(&mut self.net, id, raw.buffer);
                            continue;
                        }
                    }
                    _ => return Ok(()),
                }
                if let Some(pieces) = deframer.take_large()? {
                    frames += 1;
                    if let Some(connection) = self.net.connections.get_mut(id) {
                        connection.frame_since = None;
                        connection.received_since = Some(self.net.now);
                        let left = deframer.memory_bytes();
                        charge_received(&mut self.net.budget, id, connection, left);
                    }
                    service.on_large_frame(&mut self.net, id, pieces);
                    continue;
                }
                let Some(frame) = deframer.next_frame()? else { break };
                frames += 1;
                if let Some(connection) = self.net.connections.get_mut(id) {
                    connection.frame_since = None;
                    connection.received_since = Some(self.net.now);
                }
                service.on_frame(&mut self.net, id, frame);
            }
            let Some(connection) = self.net.connections.get_mut(id) else {
                return Ok(());
            };
            if !connection.readable || budget == 0 {
                return Ok(());
            }
            // The smallest buffer is not charged: small frames get through whatever others make
            // this process hold.
            if connection.raw.is_none()
                && deframer.memory_bytes() >= limits::FRAME_BUFFER_BYTES_MIN
                && !self.net.budget.may_grow(id)
            {
                self.net.hold_back(id);
                return Ok(());
            }
            if deframer.buffered_bytes() == 0 {
                connection.received_since = Some(self.net.now);
            }
            let spare = match &mut connection.raw {
                Some(raw) => raw.rest(),
                None => deframer.spare(),
            };
            let wanted = spare.len().min(budget);
            match connection.stream.read(&mut spare[..wanted]) {
                Ok(0) => return Err(CloseReason::Remote),
                Ok(received) => {
                    match &mut connection.raw {
                        Some(raw) => {
                            raw.filled += received;
                            connection.raw_bytes += received as u64;
                            if !raw.rest().is_empty() {
                                service.on_raw_part(id, &raw.buffer.as_ref()[..raw.filled]);
                            }
                        }
                        None => deframer.commit(received),
                    }
                    charge_received(&mut self.net.budget, id, connection, deframer.memory_bytes());
                    budget -= received;
                    connection.received_bytes += received as u64;
                    connection.last_received = self.net.now;
                    // Less than asked for means that the kernel's buffer is empty and that more
                    // will be announced, unless the end of the stream has been announced already.
                    connection.readable = received == wanted || connection.end_announced;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CloseReason::Io(error)),
            }
        }
    }

    /// Reads and throws away what a lingering connection still sends.
    fn discard(&mut self, id: ConnectionId) {
        let Some(connection) = self.net.connections.get_mut(id) else {
            return;
        };
        let mut nowhere = [0; 4096];
        let mut budget = self.net.config.read_budget_bytes;
        while connection.readable && budget > 0 {
            match connection.stream.read(&mut nowhere) {
                Ok(received) if received > 0 => budget = budget.saturating_sub(received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return self.net.end(id, CloseReason::Remote),
            }
        }
        if connection.wants_turn() {
            self.net.schedule(id);
        }
    }

    fn tell_notices<S: Service>(&mut self, service: &mut S) {
        if self.net.notices.is_empty() {
            return;
        }
        // Only the present ones: a service that dials again at once, and fails at once, must not
        // keep the loop here.
        for notice in std::mem::take(&mut self.net.notices) {
            match notice {
                LoopNotice::Closed(id, reason) => service.on_closed(&mut self.net, id, &reason),
                LoopNotice::DialFailed(id, error) => {
                    service.on_dial_failed(&mut self.net, id, &error)
                }
                LoopNotice::RawSent(id) => service.on_raw_sent(&mut self.net, id),
            }
        }
    }

    fn tick<S: Service>(&mut self, service: &mut S) {
        let Some(interval) = self.net.config.tick_interval else {
            return;
        };
        let now = self.net.now;
        for caught_up in 0..TICKS_CATCH_UP_MAX {
            if now < self.next_tick {
                return;
            }
            self.next_tick += interval;
            self.net.tick_is_late = caught_up > 0;
            service.on_tick(&mut self.net);
        }
        if now >= self.next_tick {
            self.next_tick = now + interval;
        }
    }

    /// Closes the connections whose time is over, and returns read buffers of those that are quiet.
    fn sweep<S: Service>(&mut self, service: &mut S) {
        let now = self.net.now;
        if now < self.next_sweep {
            return;
        }
        let (stall, quiet) = (self.net.config.write_stall_timeout, self.net.config.sweep_interval);
        let frame = self.net.config.frame_timeout;
        self.next_sweep = now + quiet;
        let mut expired = Vec::new();
        for (id, connection) in self.net.connections.iter_mut() {
            if let Some(reason) = connection.expired(now, stall, frame) {
                expired.push((id, reason));
            } else if now.saturating_duration_since(connection.last_received) >= quiet {
                connection.deframer.release_if_empty();
                let memory_bytes = connection.deframer.memory_bytes();
                charge_received(&mut self.net.budget, id, connection, memory_bytes);
            }
        }
        for (id, reason) in expired {
            if matches!(reason, CloseReason::Idle) && !service.on_idle(&mut self.net, id) {
                if let Some(connection) = self.net.connections.get_mut(id) {
                    connection.last_received = now;
                }
                continue;
            }
            let is_open =
                self.net.connections.get(id).is_some_and(|c| c.phase == ConnectionPhase::Open);
            if is_open && matches!(reason, CloseReason::Deadline | CloseReason::FrameSlow { .. }) {
                self.end_with_farewell(service, id, reason);
            } else {
                self.net.end(id, reason);
            }
        }
    }

    /// Ends a connection after the service's last word on it.
    fn end_with_farewell<S: Service>(
        &mut self,
        service: &mut S,
        id: ConnectionId,
        reason: CloseReason,
    ) {
        let farewell = service.farewell(id, &reason);
        self.net.send_owned(id, farewell);
        self.net.end_after_flush(id, reason);
    }

    fn flush_dirty(&mut self) {
        // When the budget is exceeded, write to every connection, however long that takes: one that
        // reads is to have its queue emptied before slow readers are chosen.
        let hurried = !self.net.budget.is_over();
        let until = hurried.then(|| Instant::now() + self.net.config.stage_time);
        let mut round = self.net.dirty.take_round();
        while let Some(id) = round.next(until) {
            self.net.flush(id);
        }
        self.net.dirty.give_back(round);
    }

    /// Writes what is queued and closes every connection, within [`LoopConfig::close_linger`].
    pub(super) fn leave(&mut self, sleeper: &mut Sleeper) -> Result<(), LoopError> {
        self.net.stop_accepting();
        let deadline = self.net.now + self.net.config.close_linger;
        let all: Vec<ConnectionId> = self.net.connections.iter_mut().map(|(id, _)| id).collect();
        for id in all {
            self.net.close_after_flush(id);
        }
        loop {
            self.flush_dirty();
            self.net.notices.clear();
            if self.net.connections.is_empty() || self.net.now >= deadline {
                return Ok(());
            }
            self.next_tick = deadline;
            self.next_sweep = deadline;
            sleeper.sleep(self.time_to_sleep())?;
            self.note_events(sleeper);
            let mut round = self.net.ready.take_round();
            while let Some(id) = round.next(None) {
                if let Some(connection) = self.net.connections.get_mut(id) {
                    connection.scheduled = false;
                    if connection.phase == ConnectionPhase::Lingering {
                        self.discard(id);
                    }
                }
            }
        }
    }
}

/// Notes what the system has reported about a connection and schedules what follows from it.
///
/// An event may be about an earlier connection of the same slot, closed while the event was under
/// way. That is harmless: readiness is a hint, which the next call on the socket corrects.
fn note_readiness(net: &mut Net, slot: usize, event: &Event) {
    let Some(id) = net.connections.id_in_slot(slot) else {
        return;
    };
    let Some(connection) = net.connections.get_mut(id) else {
        return;
    };
    connection.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
    connection.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    connection.end_announced |= event.is_read_closed() || event.is_error();
    // What came before the error is read first, since it may say why: a web server that was sent a
    // greeting answers, and closes. A connection that is not read, being paused, would not learn
    // from reading that it is broken.
    if event.is_error()
        && connection.phase != ConnectionPhase::Connecting
        && !connection.wants_turn()
        && let Ok(Some(error)) = connection.stream.take_error()
    {
        return net.end(id, CloseReason::Io(error));
    }
    let (wants_turn, wants_flush) =
        (connection.wants_turn(), connection.writable && connection.wants_write());
    if wants_turn {
        net.schedule(id);
    }
    if wants_flush {
        net.mark_dirty(id);
    }
}
