//! What every connection holds, what is left for others, and which one gives way: the rules of
//! `accounting`, which lends them to the connections and their calls.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::TcpStream;

use super::super::turns::{self, Meter, Usage};
use crate::limits::{self, origin_of};
use crate::net::{ConnectionId, Crowd};

/// A connection that could have been read for so long and has not asked for anything gives way
/// before those that wait for the gateway: longer than the round trip after which many clients send
/// their first call.
const GATEWAY_SILENT_MIN: Duration = Duration::from_millis(250);
/// Where all connections there may be are in use it is looked at so often whether some of their
/// clients have left: some hundred microseconds each time.
const GATEWAY_LEFT_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Addresses of which a gateway knows how much work they have made lately, though they have no
/// connection at the moment: some hundred bytes each. When there are more, only those that have one
/// are known.
const GATEWAY_ORIGINS_REMEMBERED_MAX: usize = 4 * limits::GATEWAY_CONNECTIONS_MAX;
/// With nothing going on for this long a connection may have to make room for another whatever both
/// addresses have. After as long at its client's turn a call is stalled.
const GATEWAY_STALLED_MIN: Duration = Duration::from_secs(5);
/// Where calls or bytes are short, a call that has been at its client's turn for this long gives
/// way to a connection that holds less: longer than a request that is on its way takes on a network
/// of a site.
const GATEWAY_PRESSED_MIN: Duration = Duration::from_millis(250);
/// Where all connections there may be are in use, one in so many is kept for those that have not
/// asked for anything yet, so that a client has the time to ask however fast a flood dials.
const GATEWAY_NEWCOMERS_PART: usize = 8;

/// An origin with no more connections than this has as many as anybody: a program that uses a few
/// at once is not told from one that uses one.
const ORIGIN_CONNECTIONS_FEW: usize = 4;

/// The limits of a gateway; tests draw them small.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct AccountLimits {
    pub(in crate::gateway) connections_max: usize,
    /// Calls to the store beside one of each connection.
    pub(in crate::gateway) store_calls_max: usize,
    /// Calls to the other services likewise.
    pub(in crate::gateway) auxiliary_calls_max: usize,
    /// Streams without an end likewise.
    pub(in crate::gateway) streams_max: usize,
    /// Bytes of all connections beyond the allowance of each.
    pub(in crate::gateway) bytes_max: usize,
    /// The allowance of each connection.
    pub(in crate::gateway) own_bytes: usize,
    /// After this long without progress a connection is idle, and a call stalled.
    pub(in crate::gateway) stalled_min: Duration,
    /// After this long at its client's turn a call gives way to a connection that holds less.
    pub(in crate::gateway) pressed_min: Duration,
}

impl AccountLimits {
    /// Those of [`limits`], for a process that may have so many connections.
    pub(in crate::gateway) fn new(connections_max: usize) -> AccountLimits {
        AccountLimits {
            connections_max,
            store_calls_max: limits::GATEWAY_CALLS_MAX,
            auxiliary_calls_max: limits::GATEWAY_AUXILIARY_CALLS_MAX,
            streams_max: limits::GATEWAY_STREAMS_MAX,
            bytes_max: limits::GATEWAY_BYTES_MAX,
            own_bytes: limits::GATEWAY_CONNECTION_BYTES,
            stalled_min: GATEWAY_STALLED_MIN,
            pressed_min: GATEWAY_PRESSED_MIN,
        }
    }
}

/// The services, by the places that their calls take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Pool {
    Store,
    /// Health and reflection. Their calls may stay open for ever and oblige nobody to answer, so
    /// they take no place of a call to the store, and a load balancer hears the truth of a gateway
    /// that is full.
    Auxiliary,
    /// Watches and leases kept alive, which stay open for as long as their clients run, without a
    /// deadline. A connection that has nothing else going on counts as idle: the gateway owes it
    /// something only when something happens.
    Stream,
}

/// Who has to act next in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Turn {
    /// The gateway, or the servers behind it.
    Gateway,
    /// The client: to send the rest of its request, or to take the rest of its answer.
    Client,
}

/// Since when a connection could have been read and had sent nothing more.
#[derive(Default)]
pub(super) struct Silence(Mutex<Option<Instant>>);

impl Silence {
    /// `None` while it waits for its turn to be read.
    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, is_silent: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = is_silent.then(|| since.unwrap_or_else(Instant::now));
    }
}

/// Tells a connection's task that the connection is to make room.
#[derive(Default)]
pub(super) struct Eviction {
    is_displaced: AtomicBool,
    waker: AtomicWaker,
}

impl Eviction {
    /// Whether it is to make room. Wakes the task when that becomes so.
    pub(super) fn is_displaced(&self, waker: &Waker) -> bool {
        self.waker.register(waker);
        self.is_displaced.load(Ordering::Acquire)
    }
}

/// Connections that have been made to give way, whose tasks are to be woken when the books are
/// closed again.
#[derive(Default)]
pub(super) struct Displaced(Vec<Arc<Eviction>>);

impl Displaced {
    pub(super) fn wake(self) {
        for eviction in self.0 {
            eviction.is_displaced.store(true, Ordering::Release);
            eviction.waker.wake();
        }
    }
}

/// What an account has of its own of what the books know of its connection.
pub(super) struct Opened {
    pub(super) id: ConnectionId,
    pub(super) eviction: Arc<Eviction>,
    pub(super) silence: Arc<Silence>,
    pub(super) usage: Usage,
}

/// What all connections hold.
pub(super) struct Books {
    limits: AccountLimits,
    crowd: Crowd,
    entries: HashMap<ConnectionId, Entry>,
    /// Every origin that has a connection, and of those that had one some that have made work
    /// lately.
    origins: HashMap<IpAddr, Shares>,
    /// The sum of all origins'.
    total: Shares,
    last_connection: u64,
    last_call: u64,
    /// When it was last looked at whose clients have left.
    looked_at: Option<Instant>,
}

/// What connections have of that which is shared.
#[derive(Debug, Default)]
struct Shares {
    connections: usize,
    /// Beyond the allowances of the connections.
    bytes: usize,
    store_calls: usize,
    auxiliary_calls: usize,
    streams: usize,
    meter: Arc<Meter>,
}

impl Shares {
    fn calls(&mut self, pool: Pool) -> &mut usize {
        match pool {
            Pool::Store => &mut self.store_calls,
            Pool::Auxiliary => &mut self.auxiliary_calls,
            Pool::Stream => &mut self.streams,
        }
    }
}

/// What a connection that finds too little asks others to make room for.
struct Shortage {
    asking: ConnectionId,
    /// What it would hold then.
    would_hold: usize,
    /// What its origin would hold then.
    origin_would_hold: usize,
    /// Its origin has its half: what others hold would not help.
    is_own: bool,
}

struct Entry {
    eviction: Arc<Eviction>,
    /// The connection itself, once it is known.
    stream: Weak<TcpStream>,
    usage: Usage,
    silence: Arc<Silence>,
    origin: IpAddr,
    calls: HashMap<u64, CallEntry>,
    /// The sum of its calls' bytes.
    bytes: usize,
    /// When a call last began or ended, or a part of an answer was taken.
    progressed_at: Instant,
}

struct CallEntry {
    pool: Pool,
    /// It has one of the shared places.
    is_shared: bool,
    bytes: usize,
    turn: Turn,
    /// Since when; at the client's turn since it last took a part of the answer. Parts of a request
    /// do not count, or a request that never ends would never be stalled.
    since: Instant,
}

impl Entry {
    /// Since when nothing has been going on; `None` while the gateway owes an answer.
    fn idle_since(&self) -> Option<Instant> {
        let is_owed = |call: &CallEntry| call.pool == Pool::Store && call.turn == Turn::Gateway;
        (!self.calls.values().any(is_owed)).then_some(self.progressed_at)
    }

    fn calls_of(&self, pool: Pool) -> usize {
        self.calls.values().filter(|call| call.pool == pool).count()
    }

    /// The sum of `measure` over its calls to the store, streams included, that have been at the
    /// client's turn for so long.
    fn left_lying(
        &self,
        now: Instant,
        min: Duration,
        measure: &impl Fn(&CallEntry) -> usize,
    ) -> usize {
        let lies = |call: &&CallEntry| {
            call.pool != Pool::Auxiliary
                && call.turn == Turn::Client
                && now.saturating_duration_since(call.since) >= min
        };
        self.calls.values().filter(lies).map(measure).sum()
    }
}

impl Books {
    pub(super) fn new(limits: AccountLimits) -> Books {
        Books {
            limits,
            crowd: Crowd::default(),
            entries: HashMap::new(),
            origins: HashMap::new(),
            total: Shares::default(),
            last_connection: 0,
            last_call: 0,
            looked_at: None,
        }
    }

    fn has_room(&self) -> bool {
        self.entries.len() < self.limits.connections_max
    }

    /// Has connections go whose clients have ended their halves; whether there is room then. What
    /// such a client has sent before may wait long for its turn to be read, and the end behind it.
    fn displace_left(&mut self, now: Instant, displaced: &mut Displaced) -> bool {
        if self.looked_at.is_some_and(|at| now < at + GATEWAY_LEFT_LOOK_INTERVAL) {
            return false;
        }
        self.looked_at = Some(now);
        let stream = |(id, entry): (&ConnectionId, &Entry)| Some((*id, entry.stream.upgrade()?));
        let streams: Vec<(ConnectionId, Arc<TcpStream>)> =
            self.entries.iter().filter_map(stream).collect();
        for id in left(&streams) {
            self.displace(id, displaced);
        }
        self.has_room()
    }

    /// Opens an account for a connection from `ip`, if there is room or can be made.
    pub(super) fn open(&mut self, ip: IpAddr, displaced: &mut Displaced) -> Option<Opened> {
        let has_room = self.has_room()
            || self.displace_left(Instant::now(), displaced)
            || self.make_room(ip, displaced);
        has_room.then(|| self.enter(ip))
    }

    fn enter(&mut self, ip: IpAddr) -> Opened {
        self.last_connection += 1;
        let id = ConnectionId::from_u64(self.last_connection);
        let origin = origin_of(ip);
        let shares = self.origins.entry(origin).or_default();
        shares.connections += 1;
        self.total.connections += 1;
        let (eviction, silence) = (Arc::<Eviction>::default(), Arc::<Silence>::default());
        silence.set(true);
        let usage = Usage::of(Arc::clone(&shares.meter));
        self.crowd.came(id, ip);
        let entry = Entry {
            eviction: Arc::clone(&eviction),
            stream: Weak::new(),
            usage: usage.clone(),
            silence: Arc::clone(&silence),
            origin,
            calls: HashMap::new(),
            bytes: 0,
            progressed_at: Instant::now(),
        };
        self.entries.insert(id, entry);
        Opened { id, eviction, silence, usage }
    }

    /// Tells which connection an account is of.
    pub(super) fn is_of(&mut self, id: ConnectionId, stream: &Arc<TcpStream>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stream = Arc::downgrade(stream);
        }
    }

    /// Has a connection make room for one from `ip`; whether one could.
    fn make_room(&mut self, ip: IpAddr, displaced: &mut Displaced) -> bool {
        let (now, min) = (Instant::now(), self.limits.stalled_min);
        let connections_of =
            |origin: &IpAddr| self.origins.get(origin).map_or(0, |shares| shares.connections);
        let (own, own_connections) = (origin_of(ip), connections_of(&origin_of(ip)));
        // Beyond the few that anybody may have.
        let many = |connections: usize| connections.saturating_sub(ORIGIN_CONNECTIONS_FEW);
        let longest_idle = || {
            let idle = |(id, entry): (&ConnectionId, &Entry)| {
                let since = entry.idle_since()?;
                let connections = connections_of(&entry.origin);
                let gives_way = entry.origin == own
                    || connections > own_connections
                    || now.saturating_duration_since(since) >= min;
                gives_way.then_some((Reverse(many(connections)), since, *id))
            };
            self.entries.iter().filter_map(idle).min().map(|(.., id)| id)
        };
        let of_more = || {
            let silent = |id: &ConnectionId| {
                let entry = self.entries.get(id);
                entry.map(|entry| (entry.idle_since().is_none(), entry.progressed_at))
            };
            self.crowd.settled_to_go(ip).min_by_key(silent)
        };
        let of_many = || {
            of_more().filter(|id| {
                self.entries.get(id).is_some_and(|entry| many(connections_of(&entry.origin)) > 0)
            })
        };
        let newcomer = || self.newcomer_to_go(own);
        let kept = (self.limits.connections_max / GATEWAY_NEWCOMERS_PART).max(1);
        let victim = match self.crowd.newcomers() >= kept {
            // Where it goes before none of them it is turned away, rather than somebody's call.
            true => newcomer().or_else(of_many),
            false => of_many().or_else(longest_idle).or_else(of_more).or_else(newcomer),
        };
        victim.is_some_and(|victim| {
            self.displace(victim, displaced);
            true
        })
    }

    /// The connection without a call that makes room for one of `origin`: of whoever has many of
    /// them; then the oldest that has long sent nothing more though it could have been read; and
    /// then, as the others may only wait for the gateway, or for its answer to their opening, one
    /// whose origin has made it work more lately than that of the one that comes, or as much, if it
    /// is silent at the moment.
    fn newcomer_to_go(&self, origin: IpAddr) -> Option<ConnectionId> {
        let lately = self.origins.get(&origin).map_or(0, |shares| shares.meter.lately());
        let (dials, now) = (turns::with_one_more(lately), Instant::now());
        let silent_for = |id: &ConnectionId| {
            let since = self.entries.get(id)?.silence.since()?;
            Some(now.saturating_duration_since(since))
        };
        let work = |id: &ConnectionId| Some(self.entries.get(id)?.usage.of_origin());
        let all = || self.crowd.all_newcomers();
        let silent =
            || all().find(|id| silent_for(id).is_some_and(|long| long >= GATEWAY_SILENT_MIN));
        let heaviest = || {
            let heaviest = all().filter_map(|id| Some((work(&id)?, id))).max()?;
            (heaviest.0 > dials).then_some(heaviest.1)
        };
        let as_heavy = |id: &ConnectionId| {
            let is_own = self.entries.get(id).is_some_and(|entry| entry.origin == origin);
            silent_for(id).is_some() && (is_own || work(id).is_some_and(|work| work >= dials))
        };
        let equal = || all().find(as_heavy);
        self.crowd.newcomer_of_many().or_else(silent).or_else(heaviest).or_else(equal)
    }

    /// Has a connection go. What it holds is free at once.
    fn displace(&mut self, victim: ConnectionId, displaced: &mut Displaced) {
        displaced.0.extend(self.forget(victim));
    }

    /// A connection is gone, or is to go.
    pub(super) fn forget(&mut self, id: ConnectionId) -> Option<Arc<Eviction>> {
        self.crowd.forget(id);
        let entry = self.entries.remove(&id)?;
        let own_bytes = self.limits.own_bytes;
        self.for_shares(entry.origin, |shares| {
            shares.connections -= 1;
            shares.bytes -= entry.bytes.saturating_sub(own_bytes);
            for call in entry.calls.values().filter(|call| call.is_shared) {
                *shares.calls(call.pool) -= 1;
            }
        });
        self.forget_origins();
        Some(entry.eviction)
    }

    /// Forgets origins that have no connection. Those that have made work lately are remembered as
    /// long as they are few: an address that closes each connection before it dials the next would
    /// otherwise always come for the first time.
    fn forget_origins(&mut self) {
        let few = GATEWAY_ORIGINS_REMEMBERED_MAX;
        if self.origins.len() > few {
            self.origins.retain(|_, shares| shares.connections > 0 || shares.meter.lately() > 0);
        }
        if self.origins.len() > few {
            self.origins.retain(|_, shares| shares.connections > 0);
        }
    }

    /// Changes what an origin has, and the sum.
    fn for_shares(&mut self, origin: IpAddr, change: impl Fn(&mut Shares)) {
        if let Some(shares) = self.origins.get_mut(&origin) {
            change(shares);
            change(&mut self.total);
        }
    }

    /// Whether a connection that has so many calls gets one of the shared places.
    fn has_place(&mut self, origin: IpAddr, pool: Pool, calls: usize) -> bool {
        let max = match pool {
            Pool::Store => self.limits.store_calls_max,
            Pool::Auxiliary => self.limits.auxiliary_calls_max,
            Pool::Stream => self.limits.streams_max,
        };
        let left = max.saturating_sub(*self.total.calls(pool));
        let of_origin = self.origins.get_mut(&origin).map_or(0, |shares| *shares.calls(pool));
        calls < left && of_origin < left
    }

    /// A connection has asked for something for the first time.
    pub(super) fn settle(&mut self, id: ConnectionId) {
        if self.entries.contains_key(&id) {
            self.crowd.settled(id);
        }
    }

    /// Begins a call at the client's turn, if there is a place for it; returns its number.
    pub(super) fn begin(
        &mut self,
        id: ConnectionId,
        pool: Pool,
        is_first: bool,
        displaced: &mut Displaced,
    ) -> Option<u64> {
        if is_first {
            self.settle(id);
        }
        let entry = self.entries.get(&id)?;
        let (origin, others) = (entry.origin, entry.calls_of(pool));
        let is_shared = others > 0;
        if is_shared {
            if !self.has_place(origin, pool, others) {
                let of_origin = self.origins.get(&origin).map_or(0, |shares| shares.store_calls);
                let (would_hold, origin_would_hold) = (others, of_origin + 1);
                let is_own = 2 * of_origin >= self.limits.store_calls_max;
                let shortage = Shortage { asking: id, would_hold, origin_would_hold, is_own };
                if pool == Pool::Store
                    && let Some(victim) = self.to_give_way(
                        &shortage,
                        |shares| shares.store_calls,
                        |call| usize::from(call.is_shared && call.pool == Pool::Store),
                        |_| usize::MAX,
                    )
                {
                    self.displace(victim, displaced);
                }
                if !self.has_place(origin, pool, others) {
                    return None;
                }
            }
            self.for_shares(origin, |shares| *shares.calls(pool) += 1);
        }
        self.last_call += 1;
        let number = self.last_call;
        let now = Instant::now();
        let entry = self.entries.get_mut(&id)?;
        entry.progressed_at = now;
        let call = CallEntry { pool, is_shared, bytes: 0, turn: Turn::Client, since: now };
        entry.calls.insert(number, call);
        Some(number)
    }

    /// A call is over, and what it was charged for is gone.
    pub(super) fn end(&mut self, id: ConnectionId, number: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(call) = entry.calls.remove(&number) else { return };
        entry.progressed_at = Instant::now();
        if call.is_shared {
            let origin = entry.origin;
            self.for_shares(origin, |shares| *shares.calls(call.pool) -= 1);
        }
        self.release(id, None, call.bytes);
    }

    /// The connection that gives way in a shortage: one of stalled calls, or one that holds more
    /// than the asking one would, whose client has let that lie and which is owed nothing. Of
    /// these, one of the origin that holds the most, and of its connections the one with the most
    /// to give.
    fn to_give_way(
        &self,
        shortage: &Shortage,
        of_origin: impl Fn(&Shares) -> usize,
        of_call: impl Fn(&CallEntry) -> usize,
        to_give_max: impl Fn(&Entry) -> usize,
    ) -> Option<ConnectionId> {
        let (now, limits) = (Instant::now(), &self.limits);
        let own_origin = self.entries.get(&shortage.asking)?.origin;
        let held_by = |origin: &IpAddr| self.origins.get(origin).map_or(0, &of_origin);
        let weighed = |(id, entry): (&ConnectionId, &Entry)| {
            let lying = |min| entry.left_lying(now, min, &of_call).min(to_give_max(entry));
            let stalled = lying(limits.stalled_min);
            let of_its_origin = held_by(&entry.origin);
            let is_heavier = || {
                let is_heavier_origin =
                    entry.origin == own_origin || of_its_origin > shortage.origin_would_hold;
                let pressed = lying(limits.pressed_min);
                let gives_way = entry.idle_since().is_some()
                    && is_heavier_origin
                    && pressed > shortage.would_hold;
                gives_way.then_some(pressed)
            };
            let weight = Some(stalled).filter(|stalled| *stalled > 0).or_else(is_heavier)?;
            Some((stalled > 0, of_its_origin, weight, *id))
        };
        let may_help = |entry: &Entry| !shortage.is_own || entry.origin == own_origin;
        let others = self.entries.iter();
        let others = others.filter(|(id, entry)| **id != shortage.asking && may_help(entry));
        others.filter_map(weighed).max().map(|(.., id)| id)
    }

    /// Counts bytes of a call, if they fit or room can be made.
    pub(super) fn charge(
        &mut self,
        id: ConnectionId,
        number: u64,
        bytes: usize,
        displaced: &mut Displaced,
    ) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        let own = self.limits.own_bytes;
        let (origin, held) = (entry.origin, entry.bytes.saturating_sub(own));
        let more = (entry.bytes + bytes).saturating_sub(own) - held;
        // Nobody has to go for what would not fit even then.
        if 2 * (held + more) > self.limits.bytes_max {
            return false;
        }
        while more > 0 && !self.fits(origin, held, more) {
            // Only bytes beyond a connection's own allowance are of use to others.
            let of_origin = self.origins.get(&origin).map_or(0, |shares| shares.bytes);
            let (would_hold, origin_would_hold) = (held + more, of_origin + more);
            let is_own = 2 * of_origin + more > self.limits.bytes_max;
            let shortage = Shortage { asking: id, would_hold, origin_would_hold, is_own };
            let victim = self.to_give_way(
                &shortage,
                |shares| shares.bytes,
                |call| call.bytes,
                |entry| entry.bytes.saturating_sub(own),
            );
            let Some(victim) = victim else { return false };
            self.displace(victim, displaced);
        }
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let Some(call) = entry.calls.get_mut(&number) else { return false };
        call.bytes += bytes;
        entry.bytes += bytes;
        self.for_shares(origin, |shares| shares.bytes += more);
        true
    }

    fn fits(&self, origin: IpAddr, held: usize, more: usize) -> bool {
        let left = self.limits.bytes_max.saturating_sub(self.total.bytes);
        let of_origin = self.origins.get(&origin).map_or(0, |shares| shares.bytes);
        held + more <= left && of_origin + more <= left
    }

    /// No longer counts bytes of a connection, and of one of its calls if that is still under way.
    pub(super) fn release(&mut self, id: ConnectionId, number: Option<u64>, bytes: usize) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(call) = number.and_then(|number| entry.calls.get_mut(&number)) {
            call.bytes = call.bytes.saturating_sub(bytes);
        }
        let own = self.limits.own_bytes;
        let before = entry.bytes.saturating_sub(own);
        entry.bytes = entry.bytes.saturating_sub(bytes);
        let (origin, less) = (entry.origin, before - entry.bytes.saturating_sub(own));
        self.for_shares(origin, |shares| shares.bytes -= less);
    }

    /// Notes whose turn a call is.
    pub(super) fn turn(&mut self, id: ConnectionId, number: u64, turn: Turn) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let now = Instant::now();
        if let Some(call) = entry.calls.get_mut(&number) {
            (call.turn, call.since) = (turn, now);
            entry.progressed_at = now;
        }
    }
}

/// Those whose other side has ended its half, or is gone.
pub(super) fn left(streams: &[(ConnectionId, Arc<TcpStream>)]) -> Vec<ConnectionId> {
    let watched = |(_, stream)| PollFd::new(stream, PollFlags::RDHUP);
    let mut watched: Vec<PollFd<'_>> =
        streams.iter().map(|(id, stream)| (id, &**stream)).map(watched).collect();
    if let Err(error) = poll(&mut watched, Some(&Timespec::default())) {
        log::warn!("it cannot be seen whose clients have left: {error}");
        return Vec::new();
    }
    let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let both = streams.iter().zip(&watched);
    both.filter(|(_, fd)| fd.revents().intersects(over)).map(|((id, _), _)| *id).collect()
}

#[cfg(test)]
impl Books {
    pub(super) fn set_stalled_min(&mut self, min: Duration) {
        self.limits.stalled_min = min;
    }

    pub(super) fn connections(&self) -> usize {
        self.entries.len()
    }

    /// Calls to the store, and bytes, that all connections have of what is shared.
    pub(super) fn shared(&self) -> (usize, usize) {
        (self.total.store_calls, self.total.bytes)
    }

    /// Whether nobody has a connection any more.
    pub(super) fn is_left(&self) -> bool {
        let mut all = self.origins.values().chain([&self.total]);
        all.all(|shares| shares.connections == 0)
    }
}
