//! Which connection carries which watch of a client: a deterministic state machine without sockets,
//! clocks and threads, as `client::core` is for calls.
//!
//! Rule: each watch has its own credit, its own queue and its own position ([`Following`]), and
//! shares nothing with the others but the connection. So a reader who takes nothing stops its own
//! watch, what a server refuses one watch ends no other, and when a connection is lost each watch
//! goes on at the next server after what it has been told itself.
//!
//! - One connection carries all watches of a client, up to
//!   [`WATCHES_PER_CONNECTION_MAX`]; there is another one for those beyond, and for those
//!   that its server refuses. It is dialled when the first watch begins, and closed some seconds
//!   after the last has ended.
//! - Servers are asked one after the other, from a random one on, with pauses that grow while none
//!   is of use. A server that refuses a watch is left alone for a while, and the watch goes to
//!   another one; it gives up only what no server will ever do.
//! - What was read and not taken is bounded by the client's
//!   [`CLIENT_WATCH_BYTES_MAX`], however many watches there are: beyond, those are ended at the
//!   server that hold most, and their queues forgotten. They go on when their readers come back.
//! - A watch whose server has had no credit for it for [`STALL_TIMEOUT`] is ended there, too, and
//!   its queue kept, so that it has no place there that it does not use. Others do not wait for it:
//!   a server that tells how far the watches of a connection have come names those behind.
//! - A server that does not keep to the protocol (more than it has credit for, keys outside of the
//!   range, a watch that was not begun) loses the connection.
//!
//! What it leaves out: what is new in a frame (`following`), and what waits for a reader (`queue`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::following::Following;
use super::link::{LinkDue, LinkRequest, WatchLink};
use super::queue::{EventQueue, WatchTotals};
use super::{RETRY_MAX, WatchId};
use crate::client::core::Loss;
use crate::client::greeting::{self, NO_GREETING, TIMED_OUT};
use crate::client::{ClientError, Timing};
use crate::limits::{
    CLIENT_BACKOFF_MIN, CLIENT_WATCH_BYTES_MAX, CLIENT_WATCH_CONNECTIONS_MAX, CLIENT_WATCHES_MAX,
    SERVERS_MAX, WATCHES_PER_CONNECTION_MAX,
};
use crate::model::{KeyInterval, Timestamp};
use crate::net::backoff::Backoff;
use crate::text;
use crate::wire::codec;
use crate::wire::message::{
    ErrorCode, HelloRole, Message, Reply, Request, WatchFrame, WatchRequest,
};

/// Beyond a connection for each server there are as many as all watches of a client need.
const _: () = assert!(
    CLIENT_WATCH_CONNECTIONS_MAX
        >= SERVERS_MAX + CLIENT_WATCHES_MAX.div_ceil(WATCHES_PER_CONNECTION_MAX)
);
/// When too much was read and not taken, so much of it is kept: parking is to be rare.
const KEPT_BYTES: usize = CLIENT_WATCH_BYTES_MAX / 4 * 3;
/// A connection whose server refuses one more watch gets none for this long. It may have all that
/// it may have, of which nobody says when that changes.
const FULL_TIME: Duration = Duration::from_secs(10);
/// A reader that has taken less than a quarter of its watch's credit for this long is not waited
/// for: it misses nothing, and begins again a round trip after it has taken what it has.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The same within a reset, which begins anew then: whoever is slow is to come to its end, and who
/// stands still is not waited for. The state that it shows may be gone after a minute, too.
const RESET_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What is said of a server that lies.
const NOT_THE_PROTOCOL: &str = "it does not keep to the protocol";

/// The number of a connection within the client, which is not given twice.
pub(in crate::client) type LinkId = u64;

/// What is asked of a client's thread about its watches.
pub(in crate::client) enum WatchOrder {
    Begin(WatchId, Box<NewWatch>),
    /// Something was taken of what a watch was shown, or more is wanted.
    Look(WatchId),
    End(WatchId),
}

/// A watch that is to begin.
pub(in crate::client) struct NewWatch {
    pub(super) queue: FedQueue,
    pub(super) range: KeyInterval,
    pub(super) previous: bool,
    pub(super) following: Following,
    /// The newest version that the client had seen when it began to watch.
    pub(super) seen: Option<Timestamp>,
}

/// The thread's end of a queue. Dropped, it tells the reader that nothing comes any more.
pub(super) struct FedQueue(pub(super) Arc<EventQueue>);

impl Drop for FedQueue {
    fn drop(&mut self) {
        self.0.break_off(ClientError::Ended);
    }
}

/// What a driver is to do.
#[derive(Debug)]
pub(in crate::client) enum MultiplexerOutput {
    /// Connect to the server. What comes of it is to be told by [`Multiplexer::connected`] or
    /// [`Multiplexer::lost`].
    Dial { link: LinkId, server: usize },
    /// Send a message, which is short.
    Send { link: LinkId, message: Box<Message> },
    /// The server has greeted: frames may be long from now on.
    Greeted(LinkId),
    /// Send a line end, upon which a web server answers, where no greeting came.
    Provoke(LinkId),
    /// Close the connection, about which nothing more is to be told.
    Close(LinkId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WatchPlace {
    /// It waits for a connection.
    Unplaced,
    /// Its reader has to take something first.
    Parked,
    /// It waits for its turn on a connection.
    Queued(LinkId),
    /// The connection's server was asked to begin it.
    Asked { link: LinkId, number: u64 },
    /// The server has begun it.
    Begun { link: LinkId, number: u64 },
}

struct CarriedWatch {
    of: NewWatch,
    place: WatchPlace,
    /// Credit that the server has left. It may exceed it by one frame.
    credit_left: i64,
    /// How long that it has none is waited for.
    stalled_until: Option<Duration>,
}

impl CarriedWatch {
    /// Whether a frame keeps to the credit that the server has, and to what is watched. One may be
    /// begun with any credit that is left.
    fn may_be_shown(&self, frame: &WatchFrame) -> bool {
        let range = &self.of.range;
        let is_asked_for = match frame {
            WatchFrame::Events { changes, .. } => changes
                .iter()
                .all(|change| range.covers(&change.key) && change.at > Timestamp::ZERO),
            WatchFrame::Reset { rows, at, .. } => {
                *at >= Timestamp::ZERO && rows.iter().all(|row| range.covers(&row.key))
            }
        };
        is_asked_for && self.credit_left > 0
    }

    /// How long its reader is waited for while its server has no credit.
    fn stall_timeout(&self) -> Duration {
        match self.of.following.is_resetting() {
            true => RESET_STALL_TIMEOUT,
            false => STALL_TIMEOUT,
        }
    }
}

/// How long a server that has refused a watch is left alone.
struct Refusals {
    until: Duration,
    backoff: Backoff,
}

/// All watches of a client and their connections.
pub(in crate::client) struct Multiplexer {
    servers: Arc<[SocketAddr]>,
    timing: Timing,
    random: StdRng,
    totals: Arc<WatchTotals>,
    watches: HashMap<WatchId, CarriedWatch>,
    unplaced: BTreeSet<WatchId>,
    /// Those that are carried and whose servers have no credit, by how long that is waited for.
    stalled: BTreeSet<(Duration, WatchId)>,
    links: BTreeMap<LinkId, WatchLink>,
    links_made: u64,
    next_server: usize,
    /// Nothing is dialled before this time.
    dial_at: Duration,
    backoff: Backoff,
    refusals: Vec<Refusals>,
    /// The time of the last input: what was to be done by then is done.
    looked_at: Duration,
    outputs: VecDeque<MultiplexerOutput>,
}

impl Multiplexer {
    pub(in crate::client) fn new(
        servers: Arc<[SocketAddr]>,
        timing: Timing,
        seed: u64,
        totals: Arc<WatchTotals>,
    ) -> Multiplexer {
        let mut random = StdRng::seed_from_u64(seed);
        let backoff = || Backoff::new(CLIENT_BACKOFF_MIN, RETRY_MAX);
        let refusals =
            servers.iter().map(|_| Refusals { until: Duration::ZERO, backoff: backoff() });
        Multiplexer {
            next_server: random.random_range(0..servers.len()),
            timing,
            random,
            totals,
            watches: HashMap::new(),
            unplaced: BTreeSet::new(),
            stalled: BTreeSet::new(),
            links: BTreeMap::new(),
            links_made: 0,
            dial_at: Duration::ZERO,
            backoff: backoff(),
            refusals: refusals.collect(),
            looked_at: Duration::ZERO,
            outputs: VecDeque::new(),
            servers,
        }
    }

    /// Does what was asked for a watch.
    pub(in crate::client) fn order(&mut self, now: Duration, order: WatchOrder) {
        match order {
            WatchOrder::Begin(id, of) => {
                let place = WatchPlace::Unplaced;
                let watch = CarriedWatch { of: *of, place, credit_left: 0, stalled_until: None };
                let before = self.watches.insert(id, watch);
                assert!(before.is_none(), "two watches have the number {id}");
                self.unplaced.insert(id);
                self.go_on(now);
            }
            WatchOrder::Look(id) => self.look(now, id),
            WatchOrder::End(id) => {
                // It is gone if no server would ever have begun it.
                if let Some(watch) = self.watches.remove(&id) {
                    if let Some(until) = watch.stalled_until {
                        self.stalled.remove(&(until, id));
                    }
                    self.take_off(now, id, watch.place);
                    self.go_on(now);
                }
            }
        }
    }

    /// Drops all watches: nobody drives this any more.
    pub(in crate::client) fn abandon(&mut self) {
        self.watches.clear();
        self.unplaced.clear();
        self.stalled.clear();
        self.links.clear();
        self.outputs.clear();
    }

    /// What to do next, in this order.
    pub(in crate::client) fn take_output(&mut self) -> Option<MultiplexerOutput> {
        self.outputs.pop_front()
    }

    /// When [`Multiplexer::poll`] is to be called, if no input comes before.
    pub(in crate::client) fn next_at(&self) -> Option<Duration> {
        let links = self.links.values().map(|link| link.next_due(&self.timing));
        let waiting = (!self.unplaced.is_empty()).then(|| {
            let full = self.links.values().map(|link| link.full_until);
            let refused = self.refusals.iter().map(|refusals| refusals.until);
            full.chain(refused).chain([self.dial_at])
        });
        // Times that have passed stand in nobody's way; what else does ends by another input.
        let waiting = waiting.into_iter().flatten().filter(|at| *at > self.looked_at);
        let stalled = self.stalled.first().map(|(until, _)| *until);
        links.chain(waiting).chain(stalled).min()
    }

    /// Does what the time has come for.
    pub(in crate::client) fn poll(&mut self, now: Duration) {
        let all: Vec<LinkId> = self.links.keys().copied().collect();
        for id in all {
            while let Some(due) =
                self.links.get_mut(&id).and_then(|link| link.take_due(now, &self.timing))
            {
                let reason = match due {
                    LinkDue::Provoke => {
                        self.outputs.push_back(MultiplexerOutput::Provoke(id));
                        continue;
                    }
                    LinkDue::Ping => {
                        self.send(id, Message::Ping { nonce: id });
                        continue;
                    }
                    LinkDue::Idle => {
                        self.links.remove(&id);
                        self.outputs.push_back(MultiplexerOutput::Close(id));
                        continue;
                    }
                    LinkDue::NotDialled => TIMED_OUT.to_owned(),
                    LinkDue::NotGreeted => NO_GREETING.to_owned(),
                    LinkDue::Silent => {
                        format!("nothing heard for {:?}", self.timing.silence_timeout)
                    }
                    LinkDue::Mute => "it has not begun a watch in time".to_owned(),
                };
                self.give_up(now, id, &reason, false);
            }
        }
        while let Some((until, id)) = self.stalled.first().copied()
            && until <= now
        {
            self.carried(id).of.queue.0.stop();
            self.park(now, id);
        }
        self.go_on(now);
    }

    /// The connection is there, and is to be greeted on.
    pub(in crate::client) fn connected(&mut self, id: LinkId) {
        if self.links.get_mut(&id).is_some_and(WatchLink::connected) {
            self.send(id, greeting::hello(HelloRole::CLIENT));
        }
    }

    /// Something came on the connection, be it less than a frame.
    pub(in crate::client) fn heard(&mut self, now: Duration, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.hear(now);
        }
    }

    /// The connection is lost, or could not be made.
    pub(in crate::client) fn lost(&mut self, now: Duration, id: LinkId, loss: Loss) {
        let Some(link) = self.links.get(&id) else { return };
        let reason = match loss {
            Loss::Ended if !link.is_open() => greeting::not_greeted(HelloRole::CLIENT).reason,
            Loss::Frame(error) if !link.is_open() => {
                greeting::stranger(Some(&error), HelloRole::CLIENT).reason
            }
            Loss::Ended => "the connection has ended".to_owned(),
            Loss::Frame(error) => error.to_string(),
            Loss::Broken { reason, .. } => reason,
        };
        self.leave(now, id, &reason, true);
        self.go_on(now);
    }

    /// A whole frame came.
    pub(in crate::client) fn frame(&mut self, now: Duration, id: LinkId, body: &[u8]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.hear(now);
        match (codec::decode(body), link.is_open()) {
            (Ok(message), true) => self.message(now, id, message),
            (Ok(message), false) => match greeting::welcomed(message) {
                Ok(_) => {
                    link.open(now);
                    self.outputs.push_back(MultiplexerOutput::Greeted(id));
                }
                Err(failure) => self.give_up(now, id, &failure.reason, false),
            },
            (Err(_), false) => {
                let reason = greeting::stranger(None, HelloRole::CLIENT).reason;
                self.give_up(now, id, &reason, false);
            }
            (Err(error), true) => self.give_up(now, id, &error.to_string(), true),
        }
        self.go_on(now);
    }

    fn message(&mut self, now: Duration, id: LinkId, message: Message) {
        match message {
            Message::Watched { watch, body } => self.shown(now, id, watch, body),
            Message::WatchProgress { up_to, behind } => self.progress(id, up_to, behind),
            Message::Reply { id: request, body } => self.answered(now, id, request, body),
            Message::Ping { nonce } => self.send(id, Message::Pong { nonce }),
            Message::Pong { .. } => {}
            Message::Refused { reason } => self.give_up(now, id, &text::sentence(&reason), true),
            _ => self.give_up(now, id, NOT_THE_PROTOCOL, true),
        }
    }

    /// A server has answered a request.
    fn answered(&mut self, now: Duration, id: LinkId, request: u64, reply: Reply) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match (link.answered(request), reply) {
            (Some(LinkRequest::Begin(number)), Reply::WatchOk { after }) => {
                self.begun(now, id, number, after);
            }
            (Some(LinkRequest::Begin(number)), Reply::Error(error)) => {
                let watch = link.numbers.get(&number).copied().flatten();
                link.forget(now, number);
                let sentence = text::sentence(&error.message);
                match watch {
                    Some(watch) if error.code == ErrorCode::Invalid => {
                        self.break_off(id, watch, sentence);
                    }
                    Some(watch) => self.refused(now, id, watch, &sentence),
                    None => {}
                }
            }
            (Some(LinkRequest::End(number)), Reply::Error(error))
                if error.code != ErrorCode::Invalid =>
            {
                link.end_later(number, now + CLIENT_BACKOFF_MIN);
            }
            // It is invalid to end what the server has not begun.
            (Some(LinkRequest::End(number)), Reply::UnwatchOk {} | Reply::Error(_)) => {
                link.forget(now, number);
            }
            _ => self.give_up(now, id, NOT_THE_PROTOCOL, false),
        }
    }

    /// A server has begun a watch after this version.
    fn begun(&mut self, now: Duration, id: LinkId, number: u64, after: Timestamp) {
        let Some(link) = self.links.get(&id) else { return };
        let refusals = &mut self.refusals[link.server];
        refusals.backoff.reset();
        let Some(Some(watch)) = link.numbers.get(&number).copied() else { return };
        let watch = self.carried(watch);
        watch.place = WatchPlace::Begun { link: id, number };
        watch.of.following.begun(after, watch.of.seen);
        watch.of.queue.0.begun(watch.of.following.up_to());
        self.give_credit(now, id, number);
    }

    fn carried(&mut self, id: WatchId) -> &mut CarriedWatch {
        let watch = self.watches.get_mut(&id);
        watch.unwrap_or_else(|| panic!("watch {id} is carried, and does not exist"))
    }

    /// No server will ever begin the watch.
    fn break_off(&mut self, id: LinkId, watch: WatchId, message: String) {
        let server = self.servers[self.links[&id].server];
        if let Some(watch) = self.watches.remove(&watch) {
            watch.of.queue.0.break_off(ClientError::Invalid { server, message });
        }
    }

    /// The server does not begin the watch now. Another one may.
    fn refused(&mut self, now: Duration, id: LinkId, watch: WatchId, reason: &str) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if !link.numbers.is_empty() {
            link.full_until = now + FULL_TIME;
        }
        let server = link.server;
        let returned = std::mem::take(&mut link.queued);
        let refusals = &mut self.refusals[server];
        if refusals.until <= now {
            refusals.until = now + refusals.backoff.next_wait(self.random.random());
        }
        let sentence = format!("{}: {reason}", self.servers[server]);
        for watch in returned.into_iter().chain([watch]) {
            self.unplace(watch, &sentence);
        }
    }

    fn unplace(&mut self, id: WatchId, failure: &str) {
        self.is_stalled(id, None);
        let watch = self.carried(id);
        watch.place = WatchPlace::Unplaced;
        watch.of.queue.0.failed(failure);
        self.unplaced.insert(id);
    }

    /// A server shows something of a watch.
    fn shown(&mut self, now: Duration, id: LinkId, number: u64, frame: WatchFrame) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let watch_id = match link.numbers.get(&number) {
            Some(Some(watch)) => *watch,
            // It has ended here, of which the server has not heard yet.
            Some(None) => return,
            None => return self.give_up(now, id, NOT_THE_PROTOCOL, false),
        };
        let watch = self.carried(watch_id);
        // More than was asked for, or something else.
        if !watch.may_be_shown(&frame) {
            return self.give_up(now, id, NOT_THE_PROTOCOL, false);
        }
        let credit_bytes = frame.credit_bytes();
        watch.credit_left -= i64::from(credit_bytes);
        let before = watch.of.following.clone();
        let events = watch.of.following.take(frame);
        let up_to = watch.of.following.up_to();
        watch.of.queue.0.show(events, credit_bytes, before, up_to);
        if let Some(link) = self.links.get_mut(&id) {
            link.was_shown = true;
        }
        let watch = self.carried(watch_id);
        if watch.credit_left <= 0 {
            let until = now + watch.stall_timeout();
            self.is_stalled(watch_id, Some(until));
        }
        self.give_credit(now, id, number);
        if self.totals.held_bytes() > CLIENT_WATCH_BYTES_MAX {
            self.park_longest(now);
        }
    }

    /// No watch that this connection's server has begun will be shown a change up to this version,
    /// but for those with the numbers of `behind`.
    fn progress(&mut self, id: LinkId, up_to: Timestamp, behind: Vec<u64>) {
        let Some(link) = self.links.get(&id) else { return };
        let behind: HashSet<u64> = behind.into_iter().collect();
        let others = link.numbers.iter().filter(|(number, _)| !behind.contains(number));
        for watch in others.filter_map(|(_, watch)| watch.as_ref()) {
            let watch = self.watches.get_mut(watch).expect("a watch that is carried exists");
            if matches!(watch.place, WatchPlace::Begun { .. }) {
                watch.of.following.progress(up_to);
                watch.of.queue.0.came_to(watch.of.following.up_to());
            }
        }
    }

    /// A reader has taken something of a watch, or wants more.
    fn look(&mut self, now: Duration, id: WatchId) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        let wants_more = watch.of.queue.0.look();
        match watch.place {
            WatchPlace::Parked if wants_more => {
                watch.place = WatchPlace::Unplaced;
                self.unplaced.insert(id);
                self.go_on(now);
            }
            WatchPlace::Begun { link, number } => self.give_credit(now, link, number),
            _ => {}
        }
    }

    /// Gives the server back the credit of what was taken, if that is worth a frame.
    fn give_credit(&mut self, now: Duration, id: LinkId, number: u64) {
        let Some(Some(watch)) = self.links.get(&id).and_then(|link| link.numbers.get(&number))
        else {
            return;
        };
        let watch_id = *watch;
        let watch = self.carried(watch_id);
        if matches!(watch.place, WatchPlace::Begun { .. })
            && let Some(bytes) = watch.of.queue.0.take_credit()
        {
            watch.credit_left += i64::from(bytes);
            if watch.credit_left > 0 {
                self.is_stalled(watch_id, None);
            } else if watch.of.following.is_resetting() {
                // Its reader has taken something, if less than it was shown beyond its credit.
                self.is_stalled(watch_id, Some(now + RESET_STALL_TIMEOUT));
            }
            self.send(id, Message::WatchCredit { watch: number, bytes });
        }
    }

    /// Parks the watches that hold most of what was read and not taken, until there is room again.
    fn park_longest(&mut self, now: Duration) {
        let mut longest: Vec<(u32, WatchId)> = self
            .watches
            .iter()
            .map(|(id, watch)| (watch.of.queue.0.bytes_to_park(), *id))
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        // A reset begins anew when it is broken off, so those come last.
        longest.sort_unstable_by_key(|(bytes, id)| {
            (!self.watches[id].of.following.is_resetting(), *bytes, *id)
        });
        while self.totals.held_bytes() > KEPT_BYTES
            && let Some((_, id)) = longest.pop()
        {
            let watch = self.carried(id);
            if let Some(following) = watch.of.queue.0.park() {
                watch.of.following = following;
            }
            self.park(now, id);
        }
    }

    /// The watch goes on when its reader has taken what it has.
    fn park(&mut self, now: Duration, id: WatchId) {
        self.is_stalled(id, None);
        let place = std::mem::replace(&mut self.carried(id).place, WatchPlace::Parked);
        self.take_off(now, id, place);
    }

    /// Notes how long it is waited for that a watch's server has no credit, if it has none.
    fn is_stalled(&mut self, id: WatchId, until: Option<Duration>) {
        let before = std::mem::replace(&mut self.carried(id).stalled_until, until);
        if let Some(before) = before {
            self.stalled.remove(&(before, id));
        }
        self.stalled.extend(until.map(|until| (until, id)));
    }

    /// The watch is not carried any more where it was.
    fn take_off(&mut self, now: Duration, id: WatchId, place: WatchPlace) {
        match place {
            WatchPlace::Unplaced => _ = self.unplaced.remove(&id),
            WatchPlace::Parked => {}
            WatchPlace::Queued(link) => {
                let link = self.links.get_mut(&link).expect("a watch is queued on a connection");
                link.queued.remove(&id);
                link.idles(now);
            }
            WatchPlace::Asked { link, number } | WatchPlace::Begun { link, number } => {
                let link = self.links.get_mut(&link).expect("a watch is carried by a connection");
                link.end(number);
            }
        }
    }

    /// Closes a connection. `reason` is for those who wait for their watch to begin.
    fn give_up(&mut self, now: Duration, id: LinkId, reason: &str, may_be_of_use: bool) {
        self.outputs.push_back(MultiplexerOutput::Close(id));
        self.leave(now, id, reason, may_be_of_use);
    }

    /// A connection is gone: what it carried goes to another one.
    fn leave(&mut self, now: Duration, id: LinkId, reason: &str, may_be_of_use: bool) {
        let Some(link) = self.links.remove(&id) else { return };
        if may_be_of_use && link.was_of_use(now, RETRY_MAX) {
            self.backoff.reset();
        }
        self.dial_at = now + self.backoff.next_wait(self.random.random());
        let sentence = format!("{}: {reason}", self.servers[link.server]);
        for watch in link.numbers.into_values().flatten().chain(link.queued) {
            self.unplace(watch, &sentence);
        }
    }

    fn send(&mut self, link: LinkId, message: Message) {
        let message = Box::new(message);
        self.outputs.push_back(MultiplexerOutput::Send { link, message });
    }

    /// Gives watches their connections, and asks for them what may be asked.
    fn go_on(&mut self, now: Duration) {
        self.looked_at = now;
        while let Some(watch) = self.unplaced.first().copied() {
            let Some(id) = self.link_with_room(now).or_else(|| self.dial(now)) else { break };
            self.unplaced.pop_first();
            self.carried(watch).place = WatchPlace::Queued(id);
            if let Some(link) = self.links.get_mut(&id) {
                link.queued.insert(watch);
            }
        }
        let open: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.may_ask(now)).map(|(id, _)| *id).collect();
        open.into_iter().for_each(|id| self.ask(now, id));
    }

    fn link_with_room(&self, now: Duration) -> Option<LinkId> {
        let takes =
            |link: &WatchLink| link.has_room(now) && self.refusals[link.server].until <= now;
        self.links.iter().find(|(_, link)| takes(link)).map(|(id, _)| *id)
    }

    /// Dials the next server, if it is time.
    fn dial(&mut self, now: Duration) -> Option<LinkId> {
        if self.dial_at > now || self.links.len() >= CLIENT_WATCH_CONNECTIONS_MAX {
            return None;
        }
        let count = self.servers.len();
        let in_turn = (0..count).map(|more| (self.next_server + more) % count);
        let server = in_turn.into_iter().find(|server| self.refusals[*server].until <= now)?;
        self.next_server = (server + 1) % count;
        self.links_made += 1;
        let link = self.links_made;
        self.links.insert(link, WatchLink::new(now, server, &self.timing));
        self.outputs.push_back(MultiplexerOutput::Dial { link, server });
        Some(link)
    }

    /// Sends what may be asked on a connection: first what ends, which makes room.
    fn ask(&mut self, now: Duration, id: LinkId) {
        while let Some(link) = self.links.get_mut(&id).filter(|link| link.may_ask(now)) {
            if let Some((request, watch)) = link.next_end(now) {
                let body = Request::Unwatch { watch };
                self.send(id, Message::Request { id: request, body });
                continue;
            }
            let Some(watch_id) = link.queued.pop_first() else { return };
            let watch = self.watches.get_mut(&watch_id).expect("a watch that is queued exists");
            // A watch begins with some credit.
            let Some(credit_bytes) = watch.of.queue.0.credit_to_begin() else {
                watch.place = WatchPlace::Parked;
                continue;
            };
            let number = link.begins(now, watch_id);
            watch.place = WatchPlace::Asked { link: id, number };
            watch.credit_left = credit_bytes.into();
            let request = WatchRequest {
                watch: number,
                range: watch.of.range.clone(),
                after: watch.of.following.after(),
                tells_previous: watch.of.previous,
                credit_bytes,
            };
            let body = Request::Watch(request);
            self.send(id, Message::Request { id: number, body });
        }
    }
}

#[cfg(test)]
mod tests;
