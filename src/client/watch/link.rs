//! One connection that carries watches: which of them, what was asked for them, and when it is
//! given up.
//!
//! The server knows a watch by a number that is never given twice on a connection. A watch that
//! ends leaves its number there until the server has said that nothing of it follows. At most
//! [`ASKS_MAX`] requests are under way, so that beginning ten thousand watches, after a server was
//! lost, takes no more memory than beginning one hundred, and no server is asked more than it
//! takes at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::WatchId;
use crate::client::Timing;
use crate::limits::{CLIENT_MUTE_TIMEOUT, CLIENT_PROVOKED_TIMEOUT, WATCHES_PER_CONNECTION_MAX};

/// Requests to begin or to end watches that are under way on a connection at once: several round
/// trips' worth of what a server begins in one.
pub(super) const ASKS_MAX: usize = 256;
/// A connection that carries nothing is closed after this long: a lock that passes from hand to
/// hand, or one watch after the other, has it ready.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkRequest {
    /// To begin the watch with this number.
    Begin(u64),
    /// To end the watch with this number.
    End(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkPhase {
    /// TCP is being established, until this time at most.
    Dialling(Duration),
    /// HELLO is sent, and the answer is to come until this time.
    Greeting(Duration),
    /// The greeting is late, and a line end has been sent, to which a web server answers.
    Provoked(Duration),
    Open,
}

/// The timer of a connection that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkDue {
    /// TCP was not established in time.
    NotDialled,
    /// Nobody has greeted in time: a line end makes a web server show itself.
    Provoke,
    /// The server did not greet in time.
    NotGreeted,
    /// To ask the server whether it is there.
    Ping,
    /// Nothing came for the silence time-out.
    Silent,
    /// A request was not answered, though the server is there.
    Mute,
    /// Nothing has been carried for a while.
    Idle,
}

pub(super) struct WatchLink {
    /// Its place in the client's list.
    pub(super) server: usize,
    phase: LinkPhase,
    opened: Duration,
    heard: Duration,
    pinged: Duration,
    idle_since: Duration,
    /// It has shown something.
    pub(super) was_shown: bool,
    /// The number of the next watch or request.
    next_number: u64,
    /// The watches that the server knows or is asked to begin, by their numbers; `None`: one that
    /// has ended here.
    pub(super) numbers: BTreeMap<u64, Option<WatchId>>,
    /// Watches that are to be begun.
    pub(super) queued: BTreeSet<WatchId>,
    /// Numbers of watches that the server is to be told to end.
    ends: VecDeque<u64>,
    /// Requests under way, in the order of their ids, and so of the times at which they left.
    asked: BTreeMap<u64, (LinkRequest, Duration)>,
    /// The server takes no requests before this time.
    asks_after: Duration,
    /// It has no room for another watch before this time.
    pub(super) full_until: Duration,
}

impl WatchLink {
    /// One that is being dialled.
    pub(super) fn new(now: Duration, server: usize, timing: &Timing) -> WatchLink {
        WatchLink {
            server,
            phase: LinkPhase::Dialling(now + timing.connect_timeout),
            opened: now,
            heard: now,
            pinged: now,
            idle_since: now,
            was_shown: false,
            next_number: 1,
            numbers: BTreeMap::new(),
            queued: BTreeSet::new(),
            ends: VecDeque::new(),
            asked: BTreeMap::new(),
            asks_after: now,
            full_until: Duration::ZERO,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == LinkPhase::Open
    }

    /// Whether it may carry one more watch.
    pub(super) fn has_room(&self, now: Duration) -> bool {
        let carried = self.numbers.len() + self.queued.len();
        carried < WATCHES_PER_CONNECTION_MAX && self.full_until <= now
    }

    /// Whether it was of use for a while. One that ends as soon as it has begun is not: a server
    /// that is cut off, or has no room, may do that again and again.
    pub(super) fn was_of_use(&self, now: Duration, least: Duration) -> bool {
        self.was_shown || (self.is_open() && now >= self.opened + least)
    }

    /// TCP is established: the server has as long again to greet as it had.
    pub(super) fn connected(&mut self) -> bool {
        let LinkPhase::Dialling(until) = self.phase else { return false };
        self.phase = LinkPhase::Greeting(until);
        true
    }

    /// The server has greeted.
    pub(super) fn open(&mut self, now: Duration) {
        self.phase = LinkPhase::Open;
        (self.opened, self.heard, self.pinged, self.idle_since) = (now, now, now, now);
    }

    /// Notes that something came.
    pub(super) fn hear(&mut self, now: Duration) {
        self.heard = now;
    }

    /// A number for a watch or a request that is new.
    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Whether a request may leave now.
    pub(super) fn may_ask(&self, now: Duration) -> bool {
        self.is_open() && self.asked.len() < ASKS_MAX && self.asks_after <= now
    }

    /// The server is asked to begin a watch. Its number is the request's, too.
    pub(super) fn begins(&mut self, now: Duration, watch: WatchId) -> u64 {
        let number = self.number();
        self.numbers.insert(number, Some(watch));
        self.asked.insert(number, (LinkRequest::Begin(number), now));
        number
    }

    /// The next watch that the server is to be told to end, with the id of the request.
    pub(super) fn next_end(&mut self, now: Duration) -> Option<(u64, u64)> {
        let number = self.ends.pop_front()?;
        let id = self.number();
        self.asked.insert(id, (LinkRequest::End(number), now));
        Some((id, number))
    }

    /// A watch with this number ends here.
    pub(super) fn end(&mut self, number: u64) {
        let watch = self.numbers.get_mut(&number);
        *watch.unwrap_or_else(|| panic!("watch {number} ends, and is not carried")) = None;
        self.ends.push_back(number);
    }

    /// The server has answered a request; `None`: it was not asked.
    pub(super) fn answered(&mut self, id: u64) -> Option<LinkRequest> {
        self.asked.remove(&id).map(|(asked, _)| asked)
    }

    /// The server is too busy to end a watch now.
    pub(super) fn end_later(&mut self, number: u64, at: Duration) {
        self.ends.push_back(number);
        self.asks_after = at;
    }

    /// Nothing of this watch follows.
    pub(super) fn forget(&mut self, now: Duration, number: u64) {
        self.numbers.remove(&number);
        self.idles(now);
    }

    /// Something that it carried is gone: if that was all, it is idle from now on.
    pub(super) fn idles(&mut self, now: Duration) {
        self.idle_since = now;
    }

    fn is_idle(&self) -> bool {
        self.is_open() && self.numbers.is_empty() && self.queued.is_empty()
    }

    /// Takes the timer that is due, which does not fire again.
    pub(super) fn take_due(&mut self, now: Duration, timing: &Timing) -> Option<LinkDue> {
        match self.phase {
            LinkPhase::Dialling(until) => (until <= now).then_some(LinkDue::NotDialled),
            LinkPhase::Greeting(until) => (until <= now).then(|| {
                self.phase = LinkPhase::Provoked(now + CLIENT_PROVOKED_TIMEOUT);
                LinkDue::Provoke
            }),
            LinkPhase::Provoked(until) => (until <= now).then_some(LinkDue::NotGreeted),
            LinkPhase::Open => {
                if self.is_idle() && self.idle_since + IDLE_TIMEOUT <= now {
                    return Some(LinkDue::Idle);
                }
                if self.heard + timing.silence_timeout <= now {
                    return Some(LinkDue::Silent);
                }
                if self.mute_at().is_some_and(|at| at <= now) {
                    return Some(LinkDue::Mute);
                }
                (self.heard.max(self.pinged) + timing.ping_interval <= now).then(|| {
                    self.pinged = now;
                    LinkDue::Ping
                })
            }
        }
    }

    /// When the first request is late that is under way.
    fn mute_at(&self) -> Option<Duration> {
        let first = self.asked.first_key_value();
        first.map(|(_, (_, since))| *since + CLIENT_MUTE_TIMEOUT)
    }

    /// When something is to be done, if nothing happens before.
    pub(super) fn next_due(&self, timing: &Timing) -> Duration {
        match self.phase {
            LinkPhase::Dialling(until)
            | LinkPhase::Greeting(until)
            | LinkPhase::Provoked(until) => until,
            LinkPhase::Open => {
                let ping_at = self.heard.max(self.pinged) + timing.ping_interval;
                let silent_at = self.heard + timing.silence_timeout;
                let idle_at = self.is_idle().then_some(self.idle_since + IDLE_TIMEOUT);
                let waits = !self.queued.is_empty() || !self.ends.is_empty();
                let asks_at = Some(self.asks_after).filter(|_| waits && self.asked.is_empty());
                let due = [idle_at, asks_at, self.mute_at()].into_iter().flatten();
                due.fold(ping_at.min(silent_at), Duration::min)
            }
        }
    }
}
