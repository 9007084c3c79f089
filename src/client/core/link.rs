//! The connection to one server, as far as it takes no socket: who waits for which answer, and how
//! long silence is borne.
//!
//! A link is opened when first needed, kept, and opened again when lost. Requests leave when the
//! server has greeted, and not before: what was given up until then is never sent. While an answer
//! is owed and nothing comes, the server is asked with PING; after [`Timing::silence_timeout`]
//! without a byte, and as long as what was sent may be on the line, the link is given up. What has
//! been asked is owed until something comes, also when its caller has given up: else calls that are
//! shorter than that time would wait, one after the other, on a connection whose other end has gone
//! without a word. An answer may take as long as it likes as long as the server is heard; but a
//! server that has answered nothing for [`CLIENT_MUTE_TIMEOUT`] is told of, so that others are
//! asked first.
//!
//! What a server does not take waits in its connection's queue, also when its caller has given up.
//! A request for which there is no room there waits here ([`Early`]), where it can be given up.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::timing::Timing;
use super::CallId;
use super::call::line_time;
use crate::limits::{
    CLIENT_LINE_BYTES_PER_S_MIN, CLIENT_MUTE_TIMEOUT, CLIENT_PROVOKED_TIMEOUT,
    CLIENT_QUEUED_BYTES_PAUSE,
};

/// Whom an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// One attempt of a call.
    Call { call: CallId, attempt: u64 },
    /// The question whether an unhealthy server is back.
    Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    /// TCP is being established, until this time at most.
    Dialling(Duration),
    /// HELLO is sent, and the answer is to come until this time.
    Greeting(Duration),
    /// The greeting is late, and a line end has been sent: a web server, which waits for one,
    /// answers then, so that the error can name what is there.
    Provoked(Duration),
    Open,
}

/// What the time has come for on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// TCP was not established in time.
    NotDialled,
    /// Nobody has greeted in time: a line end makes a web server show itself.
    Provoke,
    /// The server did not greet in time.
    NotGreeted,
    /// Nothing came for the silence time-out while something was owed.
    Silent,
    /// To ask the server whether it is there.
    Ping,
    /// Requests have left, and nothing but PONG has come for the mute time-out.
    Mute,
}

/// A request that has not left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Early {
    pub(super) waiter: Waiter,
    pub(super) is_write: bool,
    /// About how many bytes it brings to the queue.
    pub(super) bytes: usize,
}

pub(super) struct Link {
    phase: Phase,
    /// Requests that have left, by their ids, and about how many bytes each has.
    waiting: BTreeMap<u64, (Waiter, usize)>,
    /// The sum of their bytes.
    waiting_bytes: usize,
    /// Requests that leave when the server has greeted and takes what is queued for it.
    early: VecDeque<Early>,
    /// Bytes that wait to be sent, as far as is known.
    queued_bytes: usize,
    next_id: u64,
    /// The first id of the present connection.
    first_id: u64,
    /// Since when something has been asked, or has waited to be, without a sign of life.
    unheard_since: Option<Duration>,
    /// About how many bytes may be on the line: those of requests that were not answered when
    /// something last came, and what has been sent since.
    unheard_bytes: usize,
    /// When the first request left after which no reply has come, to whichever request.
    unanswered_since: Option<Duration>,
    /// When something last came, the greeting included; `None` before that.
    heard: Option<Duration>,
    /// When this link, rather than one of its calls, last sent PING.
    pinged: Duration,
}

impl Link {
    pub(super) fn new() -> Link {
        Link {
            phase: Phase::Closed,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            early: VecDeque::new(),
            queued_bytes: 0,
            next_id: 1,
            first_id: 1,
            unheard_since: None,
            unheard_bytes: 0,
            unanswered_since: None,
            heard: None,
            pinged: Duration::ZERO,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub(super) fn is_dialling(&self) -> bool {
        matches!(self.phase, Phase::Dialling(_))
    }

    /// When the server was last heard; never as long as it has not greeted.
    pub(super) fn heard(&self) -> Option<Duration> {
        self.heard
    }

    pub(super) fn dial(&mut self, until: Duration) {
        assert_eq!(self.phase, Phase::Closed, "a server is dialled that has a connection");
        self.phase = Phase::Dialling(until);
        self.first_id = self.next_id;
    }

    /// TCP is established. `false`: nobody dials.
    pub(super) fn connected(&mut self) -> bool {
        let Phase::Dialling(until) = self.phase else { return false };
        self.phase = Phase::Greeting(until);
        true
    }

    /// The server has greeted.
    pub(super) fn open(&mut self, now: Duration) {
        (self.phase, self.heard, self.pinged) = (Phase::Open, Some(now), now);
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn set_queued_bytes(&mut self, bytes: usize) {
        self.queued_bytes = bytes;
    }

    /// Whether small messages may still be queued.
    pub(super) fn takes_small(&self) -> bool {
        self.queued_bytes < CLIENT_QUEUED_BYTES_PAUSE
    }

    /// Notes that a whole message came.
    pub(super) fn hear(&mut self, now: Duration) {
        self.moves(now);
        self.unheard_bytes = self.waiting_bytes;
    }

    /// Something came, or the server took more of what waits to be sent than it had taken before.
    pub(super) fn moves(&mut self, now: Duration) {
        if self.is_open() {
            self.heard = self.heard.max(Some(now));
            self.unheard_since = self.is_asked().then_some(now);
        }
    }

    /// Whether somebody waits for the server.
    fn is_asked(&self) -> bool {
        !self.waiting.is_empty() || !self.early.is_empty()
    }

    pub(super) fn hold(&mut self, now: Duration, early: Early) {
        self.early.push_back(early);
        if self.is_open() {
            self.unheard_since.get_or_insert(now);
        }
    }

    /// Whether a request that could leave but for the queue has not left.
    pub(super) fn is_holding(&self) -> bool {
        self.is_open() && !self.early.is_empty()
    }

    pub(super) fn holds_writes(&self) -> bool {
        self.early.iter().any(|early| early.is_write)
    }

    /// The first request for which there is room; no write passes another.
    pub(super) fn take_early(&mut self, has_room: impl Fn(usize) -> bool) -> Option<Waiter> {
        if !self.is_open() {
            return None;
        }
        let mut is_write_held = false;
        let at = self.early.iter().position(|early| {
            let leaves = has_room(early.bytes) && !(early.is_write && is_write_held);
            is_write_held |= early.is_write;
            leaves
        })?;
        self.early.remove(at).map(|early| early.waiter)
    }

    /// Whether the server owes the answer to a probe.
    pub(super) fn is_probed(&self) -> bool {
        self.waiting.values().any(|(waiter, _)| *waiter == Waiter::Probe)
    }

    /// The id of a request of about so many bytes that leaves now.
    pub(super) fn issue(&mut self, now: Duration, waiter: Waiter, bytes: usize) -> u64 {
        assert!(self.is_open(), "{waiter:?} leaves before the greeting");
        self.unheard_since.get_or_insert(now);
        self.unheard_bytes += bytes;
        self.waiting_bytes += bytes;
        self.unanswered_since.get_or_insert(now);
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.insert(id, (waiter, bytes));
        id
    }

    /// Who waits for this answer; `None` when nobody does any more.
    ///
    /// # Errors
    /// No request with this id has left on this connection.
    pub(super) fn answered(&mut self, id: u64) -> Result<Option<Waiter>, ()> {
        if !(self.first_id..self.next_id).contains(&id) {
            return Err(());
        }
        let waiter = self.take_waiting(id);
        self.unanswered_since = None;
        self.unheard_bytes = self.waiting_bytes;
        if !self.is_asked() {
            self.unheard_since = None;
        }
        Ok(waiter)
    }

    fn take_waiting(&mut self, id: u64) -> Option<Waiter> {
        let (waiter, bytes) = self.waiting.remove(&id)?;
        self.waiting_bytes -= bytes;
        Some(waiter)
    }

    /// Nobody waits for this answer any more.
    pub(super) fn forget(&mut self, id: u64) {
        self.take_waiting(id);
    }

    /// A request that has not left is not wanted any more.
    pub(super) fn forget_early(&mut self, waiter: Waiter) {
        self.early.retain(|early| early.waiter != waiter);
    }

    /// The connection is gone: those are returned that waited, and whether their requests had left.
    pub(super) fn close(&mut self) -> Vec<(Waiter, bool)> {
        (self.phase, self.heard, self.queued_bytes) = (Phase::Closed, None, 0);
        (self.unheard_since, self.unheard_bytes, self.unanswered_since) = (None, 0, None);
        self.waiting_bytes = 0;
        let left = std::mem::take(&mut self.waiting).into_values();
        let left = left.map(|(waiter, _)| (waiter, true));
        let early = std::mem::take(&mut self.early).into_iter().map(|early| (early.waiter, false));
        left.chain(early).collect()
    }

    /// How long what was sent since the server was last heard may be on the line.
    fn line_time(&self) -> Duration {
        line_time(self.unheard_bytes, CLIENT_LINE_BYTES_PER_S_MIN)
    }

    /// When the server counts as mute.
    fn mute_at(&self) -> Option<Duration> {
        self.unanswered_since.map(|since| since + CLIENT_MUTE_TIMEOUT + self.line_time())
    }

    /// What the time has come for, and with that it is done.
    pub(super) fn take_due(&mut self, now: Duration, timing: &Timing) -> Option<Due> {
        match self.phase {
            Phase::Dialling(until) => (until <= now).then_some(Due::NotDialled),
            Phase::Greeting(until) => (until <= now).then(|| {
                self.phase = Phase::Provoked(now + CLIENT_PROVOKED_TIMEOUT);
                Due::Provoke
            }),
            Phase::Provoked(until) => (until <= now).then_some(Due::NotGreeted),
            Phase::Closed | Phase::Open => {
                if self.mute_at().is_some_and(|at| at <= now) {
                    self.unanswered_since = None;
                    return Some(Due::Mute);
                }
                let silent_since = self.unheard_since?;
                if silent_since + timing.silence_timeout + self.line_time() <= now {
                    return Some(Due::Silent);
                }
                (silent_since.max(self.pinged) + timing.ping_interval <= now).then(|| {
                    self.pinged = now;
                    Due::Ping
                })
            }
        }
    }

    /// When [`Link::take_due`] next has something, if nothing happens before.
    pub(super) fn next_due(&self, timing: &Timing) -> Option<Duration> {
        match self.phase {
            Phase::Dialling(until) | Phase::Greeting(until) | Phase::Provoked(until) => Some(until),
            Phase::Closed | Phase::Open => {
                let silent_at = self.unheard_since.map(|silent_since| {
                    let ping_at = silent_since.max(self.pinged) + timing.ping_interval;
                    ping_at.min(silent_since + timing.silence_timeout + self.line_time())
                });
                silent_at.into_iter().chain(self.mute_at()).min()
            }
        }
    }

    /// How many attempts of calls wait on it.
    #[cfg(test)]
    pub(super) fn waiting_calls(&self) -> usize {
        let early = self.early.iter().map(|early| &early.waiter);
        let all = self.waiting.values().map(|(waiter, _)| waiter).chain(early);
        all.filter(|waiter| matches!(waiter, Waiter::Call { .. })).count()
    }
}
