//! The connection to one server, as far as it takes no socket: who waits for which answer, and how
//! long the server may be silent before the link is closed.
//!
//! A link is opened when first needed, kept, and opened again when lost. Requests leave when the
//! server has greeted, and not before: what was given up until then is never sent. While an answer
//! is owed and nothing comes, the server is asked with PING; after [`Timing::silence_timeout`]
//! without a byte, and as long as what was sent may be on the line ([`Line`]), the link is given
//! up. What has been asked is owed until something comes, also when its caller has given up: else
//! calls that are shorter than that time would wait, one after the other, on a connection whose
//! other end has gone without a word. An answer may take as long as it likes as long as the server
//! is heard; but a server that has answered nothing for [`CLIENT_MUTE_TIMEOUT`], and of which no
//! long reply is arriving, is reported, so that others are asked first.
//!
//! What a server does not take waits in its connection's queue, also when its caller has given up.
//! A request for which there is no room there waits here ([`Early`]), where it can be given up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::super::timing::Timing;
use super::CallId;
use super::attempts::Signs;
use super::call::line_time;
use super::line::Line;
use crate::limits::{
    CLIENT_LINE_BYTES_PER_S_MIN, CLIENT_MUTE_TIMEOUT, CLIENT_PROVOKED_TIMEOUT,
    CLIENT_QUEUED_BYTES_PAUSE,
};

/// A reply is arriving while at least so much of it has come since that was last noted: a segment
/// of any network, and more than a server that only wants to be waited for sends for nothing.
const CLIENT_REPLY_PROGRESS_BYTES: usize = 1024;
/// Of so many writes that nobody waits for any more it is known that their answers are late; of
/// those beyond, nothing is learnt.
const CLIENT_LATE_WRITES_MAX: usize = 1024;

/// Whom an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// One attempt of a call.
    Call { call: CallId, attempt: u64 },
    /// The question whether an unhealthy server is back.
    Probe,
}

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owed {
    To(Waiter),
    /// It answers a write for which nobody waits any more.
    LateWrite,
    ToNobody,
}

/// A reply of which a part has come.
struct Arriving {
    id: u64,
    /// As much of it as was there when that was last noted.
    bytes: usize,
    moved_at: Duration,
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

/// The timer of a link that is due.
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

/// A request that has not been sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Early {
    pub(super) waiter: Waiter,
    pub(super) is_write: bool,
    /// About how many bytes it brings to the queue.
    pub(super) bytes: usize,
}

pub(super) struct Link {
    phase: Phase,
    /// Requests that have left, by their ids.
    waiting: BTreeMap<u64, Waiter>,
    /// Writes that have left, and were given up.
    late_writes: BTreeSet<u64>,
    line: Line,
    arriving: Option<Arriving>,
    /// The long reply that moved last: the id of its request, and when.
    replies_moved: Option<(u64, Duration)>,
    /// Requests that leave when the server has greeted and takes what is queued for it.
    early: VecDeque<Early>,
    /// Bytes that wait to be sent, as far as is known.
    queued_bytes: usize,
    next_id: u64,
    /// The first id of the present connection.
    first_id: u64,
    /// Since when something has been asked, or has waited to be, without a sign of life.
    unheard_since: Option<Duration>,
    /// When the first request left after which nothing of a reply has come, to whichever request.
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
            late_writes: BTreeSet::new(),
            line: Line::default(),
            arriving: None,
            replies_moved: None,
            early: VecDeque::new(),
            queued_bytes: 0,
            next_id: 1,
            first_id: 1,
            unheard_since: None,
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

    /// What has come of the server that concerns the request with this id, if it has left.
    pub(super) fn signs(&self, request_id: Option<u64>) -> Signs {
        let unfinished = self.arriving.as_ref();
        let its_own = unfinished.filter(|arriving| Some(arriving.id) == request_id);
        Signs {
            heard: self.heard,
            unfinished: unfinished.map(|arriving| arriving.moved_at),
            arriving: its_own.map(|arriving| arriving.moved_at),
            // A reply to a later request shows that the server has passed this one over.
            line_busy: self
                .replies_moved
                .filter(|(id, _)| request_id.is_some_and(|own| *id < own))
                .map(|(_, at)| at),
        }
    }

    pub(super) fn dial(&mut self, until: Duration) {
        assert_eq!(self.phase, Phase::Closed, "a server that is connected is dialled");
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
        self.arriving = None;
    }

    /// So many bytes have come of the reply to the request with this id, which is not whole.
    pub(super) fn arrives(&mut self, now: Duration, id: u64, bytes: usize) {
        let noted = match &self.arriving {
            Some(arriving) if arriving.id == id => arriving.bytes,
            _ => 0,
        };
        if bytes < noted + CLIENT_REPLY_PROGRESS_BYTES {
            return;
        }
        self.arriving = Some(Arriving { id, bytes, moved_at: now });
        self.replies_moved = Some((id, now));
        self.unanswered_since = self.unanswered_since.map(|_| now);
    }

    /// The nonce of a PING that is sent now.
    pub(super) fn nonce(&self) -> u64 {
        self.line.nonce()
    }

    pub(super) fn ponged(&mut self, nonce: u64) {
        self.line.ponged(nonce);
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
        self.waiting.values().any(|waiter| *waiter == Waiter::Probe)
    }

    /// The id of a request of about so many bytes that leaves now.
    pub(super) fn issue(&mut self, now: Duration, waiter: Waiter, bytes: usize) -> u64 {
        assert!(self.is_open(), "{waiter:?} leaves before the greeting");
        self.unheard_since.get_or_insert(now);
        self.unanswered_since.get_or_insert(now);
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.insert(id, waiter);
        self.line.sent(id, bytes);
        id
    }

    /// Who waits for this answer.
    ///
    /// # Errors
    /// No request with this id has left on this connection.
    pub(super) fn answered(&mut self, id: u64) -> Result<Owed, ()> {
        if !(self.first_id..self.next_id).contains(&id) {
            return Err(());
        }
        let owed = match self.waiting.remove(&id) {
            Some(waiter) => Owed::To(waiter),
            None if self.late_writes.remove(&id) => Owed::LateWrite,
            None => Owed::ToNobody,
        };
        self.unanswered_since = None;
        self.line.answered(id, id + 1 == self.next_id);
        if !self.is_asked() {
            self.unheard_since = None;
        }
        Ok(owed)
    }

    /// Nobody waits for this answer any more.
    pub(super) fn forget(&mut self, id: u64, is_write: bool) {
        if self.waiting.remove(&id).is_some()
            && is_write
            && self.late_writes.len() < CLIENT_LATE_WRITES_MAX
        {
            self.late_writes.insert(id);
        }
    }

    /// A request that has not left is not wanted any more.
    pub(super) fn forget_early(&mut self, waiter: Waiter) {
        self.early.retain(|early| early.waiter != waiter);
    }

    /// The connection is gone: those are returned that waited, and whether their requests had left.
    pub(super) fn close(&mut self) -> Vec<(Waiter, bool)> {
        (self.phase, self.heard, self.queued_bytes) = (Phase::Closed, None, 0);
        (self.unheard_since, self.unanswered_since) = (None, None);
        (self.arriving, self.replies_moved, self.line) = (None, None, Line::default());
        self.late_writes.clear();
        let left = std::mem::take(&mut self.waiting).into_values().map(|waiter| (waiter, true));
        let early = std::mem::take(&mut self.early).into_iter().map(|early| (early.waiter, false));
        left.chain(early).collect()
    }

    /// How long what was sent may still be on the line.
    fn line_time(&self) -> Duration {
        line_time(self.line.bytes(), CLIENT_LINE_BYTES_PER_S_MIN)
    }

    /// When the server counts as mute.
    fn mute_at(&self) -> Option<Duration> {
        self.unanswered_since.map(|since| since + CLIENT_MUTE_TIMEOUT + self.line_time())
    }

    /// Takes the timer that is due, which does not fire again.
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
        let all = self.waiting.values().chain(early);
        all.filter(|waiter| matches!(waiter, Waiter::Call { .. })).count()
    }
}
