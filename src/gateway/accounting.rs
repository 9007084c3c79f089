//! What every connection of the gateway holds, and which one gives way when there is too little for
//! all.
//!
//! Three things are limited, each for a connection, for an origin (an IP address) and for the
//! gateway:
//!
//! - *Connections.* One more takes the place of a connection whose client has ended its half, which
//!   nobody has read yet; of one that has not made a call yet, if there are many of those; of one
//!   whose origin has many; of the one that has been idle for longest, of its own origin or of one
//!   that has more; or at last of one that is owed an answer, if its origin would keep as many as
//!   the other gets. Origins with a few have as many as anybody. So an origin makes room for others
//!   and for its own, whoever calls again and again keeps nobody out, and where each has a few
//!   nobody is cut off in a call while others are idle.
//! - *Calls.* Every connection has a place for one call to the store, and one for a call to the
//!   services beside it (health, reflection). Of the shared places it gets one more while it, and
//!   its origin, has fewer than are left, so that nobody ever has them all.
//! - *Bytes* of requests that have come, and of answers that have not gone. Every connection has an
//!   allowance of its own; of the shared bytes it gets more while it, and its origin, would hold no
//!   more than are left.
//!
//! A call is either the gateway's turn, which has to answer, or the client's, which has to send the
//! rest of its request or to read its answer. A connection is idle when no call to the store is the
//! gateway's turn and its client has taken no part of an answer for a while. A call is stalled when
//! it has been the client's turn for that long; its connection gives way to whoever finds the
//! places of calls, or the bytes, used up. To somebody who holds less a connection gives way much
//! sooner, if the gateway owes it nothing: whoever asks for least goes first. So unread answers and
//! unfinished requests cost nobody anything as long as there is enough for all, and keep nobody out
//! when there is not.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::TcpStream;

use super::turns::{self, Meter, Usage};
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
pub(super) struct AccountLimits {
    pub(super) connections_max: usize,
    /// Calls to the store beside one of each connection.
    pub(super) store_calls_max: usize,
    /// Calls to the other services likewise.
    pub(super) auxiliary_calls_max: usize,
    /// Bytes of all connections beyond the allowance of each.
    pub(super) bytes_max: usize,
    /// The allowance of each connection.
    pub(super) own_bytes: usize,
    /// After this long without progress a connection is idle, and a call stalled.
    pub(super) stalled_min: Duration,
    /// After this long at its client's turn a call gives way to a connection that holds less.
    pub(super) pressed_min: Duration,
}

impl AccountLimits {
    /// Those of [`limits`], for a process that may have so many connections.
    pub(super) fn new(connections_max: usize) -> AccountLimits {
        AccountLimits {
            connections_max,
            store_calls_max: limits::GATEWAY_CALLS_MAX,
            auxiliary_calls_max: limits::GATEWAY_AUXILIARY_CALLS_MAX,
            bytes_max: limits::GATEWAY_BYTES_MAX,
            own_bytes: limits::GATEWAY_CONNECTION_BYTES,
            stalled_min: GATEWAY_STALLED_MIN,
            pressed_min: GATEWAY_PRESSED_MIN,
        }
    }
}

/// The services, by the places that their calls take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Store,
    /// Health and reflection. Their calls may stay open for ever and oblige nobody to answer, so
    /// they take no place of a call to the store, and a load balancer hears the truth of a gateway
    /// that is full.
    Auxiliary,
}

/// Who has to act next in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The gateway, or the servers behind it.
    Gateway,
    /// The client: to send the rest of its request, or to take the rest of its answer.
    Client,
}

/// Every connection that is open, with what it holds. Clones share everything.
#[derive(Clone)]
pub(super) struct Accounts(Arc<Mutex<Books>>);

/// The account of one connection; among the extensions of its requests. Clones are the same
/// account.
#[derive(Clone)]
pub(super) struct Account(Arc<AccountState>);

struct AccountState {
    id: ConnectionId,
    /// A request has come.
    has_called: AtomicBool,
    /// The connection is to make room.
    is_displaced: AtomicBool,
    silence: Arc<Silence>,
    /// Wakes the connection's task.
    waker: AtomicWaker,
    usage: Usage,
    accounts: Accounts,
}

/// Since when a connection could have been read and had sent nothing more. Apart from its account:
/// whoever lets go of that as the last one opens the books.
#[derive(Default)]
struct Silence(Mutex<Option<Instant>>);

impl Silence {
    /// `None` while it waits for its turn to be read.
    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, is_silent: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = is_silent.then(|| since.unwrap_or_else(Instant::now));
    }
}

/// One call under way, until it is dropped.
pub(super) struct Call {
    account: Account,
    number: u64,
    /// What is charged for its request, as far as it can be released before the call ends.
    request_bytes: AtomicUsize,
    /// What is charged for an answer of the servers of which the call's own answer has not been
    /// made yet.
    held_bytes: AtomicUsize,
}

struct Books {
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
    meter: Arc<Meter>,
}

impl Shares {
    fn calls(&mut self, pool: Pool) -> &mut usize {
        match pool {
            Pool::Store => &mut self.store_calls,
            Pool::Auxiliary => &mut self.auxiliary_calls,
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
    account: Weak<AccountState>,
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

    /// The sum of `measure` over its calls to the store that have been at the client's turn for so
    /// long.
    fn left_lying(
        &self,
        now: Instant,
        min: Duration,
        measure: &impl Fn(&CallEntry) -> usize,
    ) -> usize {
        let lies = |call: &&CallEntry| {
            call.pool == Pool::Store
                && call.turn == Turn::Client
                && now.saturating_duration_since(call.since) >= min
        };
        self.calls.values().filter(lies).map(measure).sum()
    }
}

/// Connections that have been made to give way. Their tasks are woken when the books are closed
/// again: whoever lets go of an account as the last one opens them.
#[derive(Default)]
struct Displaced(Vec<Weak<AccountState>>);

impl Displaced {
    fn wake(self) {
        for account in self.0.iter().filter_map(Weak::upgrade) {
            account.is_displaced.store(true, Ordering::Release);
            account.waker.wake();
        }
    }
}

impl Accounts {
    pub(super) fn new(limits: AccountLimits) -> Accounts {
        Accounts(Arc::new(Mutex::new(Books {
            limits,
            crowd: Crowd::default(),
            entries: HashMap::new(),
            origins: HashMap::new(),
            total: Shares::default(),
            last_connection: 0,
            last_call: 0,
            looked_at: None,
        })))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Their methods leave them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an account for a connection from `ip`, if there is room or can be made.
    pub(super) fn open(&self, ip: IpAddr) -> Option<Account> {
        let mut displaced = Displaced::default();
        let account = {
            let mut books = self.books();
            let has_room = books.has_room()
                || books.displace_left(Instant::now(), &mut displaced)
                || books.make_room(ip, &mut displaced);
            has_room.then(|| books.open(self, ip))
        };
        displaced.wake();
        account
    }
}

impl Books {
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

    fn open(&mut self, accounts: &Accounts, ip: IpAddr) -> Account {
        self.last_connection += 1;
        let id = ConnectionId::from_u64(self.last_connection);
        let origin = origin_of(ip);
        let shares = self.origins.entry(origin).or_default();
        shares.connections += 1;
        self.total.connections += 1;
        let silence = Arc::<Silence>::default();
        silence.set(true);
        let usage = Usage::of(Arc::clone(&shares.meter));
        let account = Arc::new(AccountState {
            id,
            has_called: AtomicBool::new(false),
            is_displaced: AtomicBool::new(false),
            silence: Arc::clone(&silence),
            waker: AtomicWaker::new(),
            usage: usage.clone(),
            accounts: accounts.clone(),
        });
        self.crowd.came(id, ip);
        let entry = Entry {
            account: Arc::downgrade(&account),
            stream: Weak::new(),
            usage,
            silence,
            origin,
            calls: HashMap::new(),
            bytes: 0,
            progressed_at: Instant::now(),
        };
        self.entries.insert(id, entry);
        Account(account)
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

    fn forget(&mut self, id: ConnectionId) -> Option<Weak<AccountState>> {
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
        Some(entry.account)
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
        };
        let left = max.saturating_sub(*self.total.calls(pool));
        let of_origin = self.origins.get_mut(&origin).map_or(0, |shares| *shares.calls(pool));
        calls < left && of_origin < left
    }

    fn begin(
        &mut self,
        id: ConnectionId,
        pool: Pool,
        is_first: bool,
        displaced: &mut Displaced,
    ) -> Option<u64> {
        if is_first && self.entries.contains_key(&id) {
            self.crowd.settled(id);
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
                        |call| usize::from(call.is_shared),
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

    fn end(&mut self, id: ConnectionId, number: u64) {
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
    fn charge(
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
    fn release(&mut self, id: ConnectionId, number: Option<u64>, bytes: usize) {
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

    fn turn(&mut self, id: ConnectionId, number: u64, turn: Turn) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let now = Instant::now();
        if let Some(call) = entry.calls.get_mut(&number) {
            (call.turn, call.since) = (turn, now);
            entry.progressed_at = now;
        }
    }
}

impl Drop for AccountState {
    fn drop(&mut self) {
        self.accounts.books().forget(self.id);
    }
}

/// Those whose other side has ended its half, or is gone.
fn left(streams: &[(ConnectionId, Arc<TcpStream>)]) -> Vec<ConnectionId> {
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

impl Account {
    /// Tells which connection it is the account of.
    pub(super) fn is_of(&self, stream: &Arc<TcpStream>) {
        if let Some(entry) = self.0.accounts.books().entries.get_mut(&self.0.id) {
            entry.stream = Arc::downgrade(stream);
        }
    }

    /// Whether the connection is to end, to make room for others. Wakes its task when that becomes
    /// so.
    pub(super) fn is_displaced(&self, waker: &Waker) -> bool {
        self.0.waker.register(waker);
        self.0.is_displaced.load(Ordering::Acquire)
    }

    /// Tells whether the connection waits for its turn to be read.
    pub(super) fn waits_for_its_turn(&self, waits: bool) {
        self.0.silence.set(!waits);
    }

    /// How much work the connection has made.
    pub(super) fn usage(&self) -> &Usage {
        &self.0.usage
    }

    /// Whether a request has come.
    pub(super) fn has_called(&self) -> bool {
        self.0.has_called.load(Ordering::Acquire)
    }

    /// Begins a call at the client's turn, if there is a place for it.
    pub(super) fn begin(&self, pool: Pool) -> Option<Call> {
        let is_first = !self.0.has_called.swap(true, Ordering::AcqRel);
        self.usage().add(turns::GATEWAY_CALL_WORK_BYTES);
        let mut displaced = Displaced::default();
        let number = self.0.accounts.books().begin(self.0.id, pool, is_first, &mut displaced);
        displaced.wake();
        let (account, [request_bytes, held_bytes]) = (self.clone(), Default::default());
        number.map(|number| Call { account, number, request_bytes, held_bytes })
    }
}

impl Call {
    /// How much work the connection has made.
    pub(super) fn usage(&self) -> &Usage {
        self.account.usage()
    }

    fn books(&self) -> (MutexGuard<'_, Books>, ConnectionId) {
        (self.account.0.accounts.books(), self.account.0.id)
    }

    /// Counts bytes that the call makes the gateway hold; `false` when it must not.
    pub(super) fn charge(&self, bytes: usize) -> bool {
        let mut displaced = Displaced::default();
        let fits = {
            let (mut books, id) = self.books();
            books.charge(id, self.number, bytes, &mut displaced)
        };
        displaced.wake();
        fits
    }

    /// Bytes are gone that were charged; what is left of them goes with the call.
    pub(super) fn release(&self, bytes: usize) {
        let (mut books, id) = self.books();
        books.release(id, Some(self.number), bytes);
    }

    /// As [`Call::charge`], for bytes of the request.
    pub(super) fn charge_request(&self, bytes: usize) -> bool {
        let fits = self.charge(bytes);
        if fits {
            self.request_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// The request has been dealt with, and nothing of it is kept.
    pub(super) fn release_request(&self) {
        self.release(self.request_bytes.swap(0, Ordering::Relaxed));
    }

    /// As [`Call::charge`], for an answer of the servers. It stays charged until the call's own
    /// answer, which is made when its client has room for it, is charged in its stead.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        let fits = self.charge(bytes);
        if fits {
            self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// As [`Call::charge`], for a piece of the call's own answer: only what it has more than what
    /// was held for it.
    pub(super) fn charge_answer(&self, bytes: usize) -> bool {
        let held = self.held_bytes.swap(0, Ordering::Relaxed);
        if held > bytes {
            self.release(held - bytes);
        }
        self.charge(bytes.saturating_sub(held))
    }

    /// Says whose turn it is from now on; also that a part of an answer was taken, when it is the
    /// client's again.
    pub(super) fn turn(&self, turn: Turn) {
        let (mut books, id) = self.books();
        books.turn(id, self.number, turn);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let (mut books, id) = self.books();
        books.end(id, self.number);
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests;
