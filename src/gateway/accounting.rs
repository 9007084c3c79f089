//! What every connection of the gateway holds, and which one gives way when there is too little for all.
//!
//! Three things are limited, each for a connection, for an origin (an IP address) and for the gateway:
//!
//! - *Connections.* One more takes the place of a connection that has not made a call yet, of one whose origin has
//!   many, or of an idle one.
//! - *Calls.* Every connection has a place for one call to the store, and one for a call to the services beside it
//!   (health, reflection). Of the shared places it gets one more while it has fewer than are left, so that nobody ever
//!   has them all.
//! - *Bytes* of requests that have come, and of answers that have not gone. Every connection has an allowance of its
//!   own; of the shared bytes it gets more while it, and its origin, would hold no more than are left.
//!
//! A call is either the gateway's turn, which has to answer, or the client's, which has to send the rest of its
//! request or to read its answer. A connection is idle when no call to the store is the gateway's turn and its client
//! has taken no part of an answer for a while. A call is stalled when it has been the client's turn for that long; its
//! connection gives way to whoever finds the places of calls, or the bytes, used up. So unread answers and unfinished
//! requests cost nobody anything as long as there is enough for all, and keep nobody out when there is not.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;

use crate::limits;
use crate::net::{ConnectionId, Crowd, origin_of};

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
            stalled_min: limits::GATEWAY_STALLED_MIN,
        }
    }
}

/// The services, by the places that their calls take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// The key-value store.
    Store,
    /// Health and reflection. Their calls may stay open for ever and oblige nobody to answer, so they take no place
    /// of a call to the store, and a load balancer hears the truth of a gateway that is full.
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

/// The account of one connection; among the extensions of its requests. Clones are the same account.
#[derive(Clone)]
pub(super) struct Account(Arc<AccountState>);

struct AccountState {
    id: ConnectionId,
    /// A request has come.
    has_called: AtomicBool,
    /// The connection is to make room.
    is_displaced: AtomicBool,
    /// Wakes the connection's task.
    waker: AtomicWaker,
    accounts: Accounts,
}

/// One call under way, until it is dropped.
pub(super) struct Call {
    account: Account,
    number: u64,
    /// What is charged for its request and for the servers' answer, as far as it can be released before the call ends.
    request_bytes: AtomicUsize,
}

struct Books {
    limits: AccountLimits,
    crowd: Crowd,
    entries: HashMap<ConnectionId, Entry>,
    /// Bytes that connections hold beyond their allowances, by origin; an origin with none is not in it.
    origins: HashMap<IpAddr, usize>,
    /// The sum of `origins`.
    bytes: usize,
    store_calls: usize,
    auxiliary_calls: usize,
    last_connection: u64,
    last_call: u64,
}

struct Entry {
    account: Weak<AccountState>,
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
    /// Since when; at the client's turn since it last took a part of the answer. Parts of a request do not count, or
    /// a request that never ends would never be stalled.
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

    /// The sum of `measure` over its stalled calls to the store.
    fn stalled(&self, now: Instant, min: Duration, measure: impl Fn(&CallEntry) -> usize) -> usize {
        let is_stalled = |call: &&CallEntry| {
            call.pool == Pool::Store
                && call.turn == Turn::Client
                && now.saturating_duration_since(call.since) >= min
        };
        self.calls.values().filter(is_stalled).map(measure).sum()
    }
}

/// Connections that have been made to give way. Their tasks are woken when the books are closed again: whoever lets go
/// of an account as the last one opens them.
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
            bytes: 0,
            store_calls: 0,
            auxiliary_calls: 0,
            last_connection: 0,
            last_call: 0,
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
            let has_room = books.entries.len() < books.limits.connections_max
                || books.make_room(ip, &mut displaced);
            has_room.then(|| books.open(self, ip))
        };
        displaced.wake();
        account
    }
}

impl Books {
    fn open(&mut self, accounts: &Accounts, ip: IpAddr) -> Account {
        self.last_connection += 1;
        let id = ConnectionId::from_u64(self.last_connection);
        let account = Arc::new(AccountState {
            id,
            has_called: AtomicBool::new(false),
            is_displaced: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            accounts: accounts.clone(),
        });
        self.crowd.came(id, ip);
        let entry = Entry {
            account: Arc::downgrade(&account),
            origin: origin_of(ip),
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
        let is_long = |since: &Instant| now.saturating_duration_since(*since) >= min;
        let longest_idle = || {
            let idle = |(id, entry): (&ConnectionId, &Entry)| {
                entry.idle_since().filter(is_long).map(|since| (since, *id))
            };
            self.entries.iter().filter_map(idle).min().map(|(_, id)| id)
        };
        let of_many = || {
            let silent = |id: &ConnectionId| {
                let entry = self.entries.get(id);
                entry.map(|entry| (entry.idle_since().is_none(), entry.progressed_at))
            };
            self.crowd.settled_to_go(ip).min_by_key(silent)
        };
        let victim = self.crowd.newcomer_to_go().or_else(of_many).or_else(longest_idle);
        victim.is_some_and(|victim| {
            self.displace(victim, displaced);
            true
        })
    }

    /// Has a connection go. What it holds is free at once.
    fn displace(&mut self, victim: ConnectionId, displaced: &mut Displaced) {
        displaced.0.extend(self.forget(victim));
    }

    fn forget(&mut self, id: ConnectionId) -> Option<Weak<AccountState>> {
        self.crowd.forget(id);
        let entry = self.entries.remove(&id)?;
        for pool in [Pool::Store, Pool::Auxiliary] {
            let shared = entry.calls.values().filter(|call| call.is_shared && call.pool == pool);
            *self.shared_calls(pool).0 -= shared.count();
        }
        let shared_bytes = entry.bytes.saturating_sub(self.limits.own_bytes);
        self.give_back(entry.origin, shared_bytes);
        Some(entry.account)
    }

    /// How many shared places are taken, and how many there are.
    fn shared_calls(&mut self, pool: Pool) -> (&mut usize, usize) {
        match pool {
            Pool::Store => (&mut self.store_calls, self.limits.store_calls_max),
            Pool::Auxiliary => (&mut self.auxiliary_calls, self.limits.auxiliary_calls_max),
        }
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
        let others = self.entries.get(&id)?.calls_of(pool);
        let is_shared = others > 0;
        if is_shared {
            let has_place = |books: &mut Books| {
                let (taken, max) = books.shared_calls(pool);
                others < max - *taken
            };
            if !has_place(self) {
                if pool == Pool::Store
                    && let Some(victim) = self.most_stalled(id, |entry, now, min| {
                        entry.stalled(now, min, |call| usize::from(call.is_shared))
                    })
                {
                    self.displace(victim, displaced);
                }
                if !has_place(self) {
                    return None;
                }
            }
            *self.shared_calls(pool).0 += 1;
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
            *self.shared_calls(call.pool).0 -= 1;
        }
        self.release(id, None, call.bytes);
    }

    /// The connection, other than `but`, whose stalled calls `weigh` most; of the origin that holds the most bytes if
    /// that has one.
    fn most_stalled(
        &self,
        but: ConnectionId,
        weigh: impl Fn(&Entry, Instant, Duration) -> usize,
    ) -> Option<ConnectionId> {
        let (now, min) = (Instant::now(), self.limits.stalled_min);
        let largest = self.origins.iter().max_by_key(|(_, bytes)| **bytes).map(|(ip, _)| *ip);
        let candidates = self.entries.iter().filter(|(id, _)| **id != but);
        candidates
            .map(|(id, entry)| {
                let weight = weigh(entry, now, min);
                (weight > 0, largest == Some(entry.origin), weight, *id)
            })
            .filter(|(is_stalled, ..)| *is_stalled)
            .max()
            .map(|(.., id)| id)
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
            let victim = self.most_stalled(id, |entry, now, min| {
                entry.stalled(now, min, |call| call.bytes).min(entry.bytes.saturating_sub(own))
            });
            let Some(victim) = victim else { return false };
            self.displace(victim, displaced);
        }
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let Some(call) = entry.calls.get_mut(&number) else { return false };
        call.bytes += bytes;
        entry.bytes += bytes;
        if more > 0 {
            *self.origins.entry(origin).or_default() += more;
            self.bytes += more;
        }
        true
    }

    fn fits(&self, origin: IpAddr, held: usize, more: usize) -> bool {
        let left = self.limits.bytes_max.saturating_sub(self.bytes);
        let of_origin = self.origins.get(&origin).copied().unwrap_or_default();
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
        self.give_back(origin, less);
    }

    fn give_back(&mut self, origin: IpAddr, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(held) = self.origins.get_mut(&origin) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.origins.remove(&origin);
            }
        }
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

impl Account {
    /// Whether the connection is to end, to make room for others. Wakes its task when that becomes so.
    pub(super) fn is_displaced(&self, waker: &Waker) -> bool {
        self.0.waker.register(waker);
        self.0.is_displaced.load(Ordering::Acquire)
    }

    /// Whether a request has come.
    pub(super) fn has_called(&self) -> bool {
        self.0.has_called.load(Ordering::Acquire)
    }

    /// Begins a call at the client's turn, if there is a place for it.
    pub(super) fn begin(&self, pool: Pool) -> Option<Call> {
        let is_first = !self.0.has_called.swap(true, Ordering::AcqRel);
        let mut displaced = Displaced::default();
        let number = self.0.accounts.books().begin(self.0.id, pool, is_first, &mut displaced);
        displaced.wake();
        let (account, request_bytes) = (self.clone(), AtomicUsize::new(0));
        number.map(|number| Call { account, number, request_bytes })
    }
}

impl Call {
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

    /// Says whose turn it is from now on; also that a part of an answer was taken, when it is the client's again.
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
pub(super) mod tests {
    use super::*;

    /// Room for everything, but for what a test changes.
    pub(in crate::gateway) const AMPLE: AccountLimits = AccountLimits {
        connections_max: 100,
        store_calls_max: 100,
        auxiliary_calls_max: 100,
        bytes_max: 1 << 30,
        own_bytes: 0,
        stalled_min: Duration::MAX,
    };

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn is_displaced(account: &Account) -> bool {
        account.0.is_displaced.load(Ordering::Relaxed)
    }

    fn set_stalled_min(accounts: &Accounts, min: Duration) {
        accounts.books().limits.stalled_min = min;
    }

    fn owed(account: &Account) -> Call {
        let call = account.begin(Pool::Store).unwrap();
        call.turn(Turn::Gateway);
        call
    }

    #[test]
    fn newcomers_give_way_then_those_of_many_and_then_the_idle() {
        let accounts = Accounts::new(AccountLimits { connections_max: 4, ..AMPLE });
        let open = |ip| accounts.open(ip);
        let [silent, busy, idle, idler] = [0; 4].map(|_| open(HERE).unwrap());
        let _busy_calls = [owed(&busy), owed(&busy)];
        let idle_call = owed(&idle);
        let _idler_call = owed(&idler);
        // Who has not called gives way, also to one of the same address.
        let new = open(HERE).unwrap();
        assert!(is_displaced(&silent) && !is_displaced(&busy));
        drop(silent);
        assert_eq!(accounts.books().entries.len(), 4, "its place was free before it went");
        let _new_call = owed(&new);
        assert!(open(HERE).is_none(), "all have calls under way");
        // One of another address has a right to a place, as long as it has fewer.
        drop(idle_call);
        let other = open(THERE).unwrap();
        assert!(is_displaced(&idle), "it has no call under way");
        let _other_call = owed(&other);
        let second = open(THERE).unwrap();
        assert_eq!([&busy, &idler, &new].iter().filter(|one| is_displaced(one)).count(), 1);
        let second_call = owed(&second);
        assert!(open(THERE).is_none(), "each has two");
        // Who has been idle for long gives way to anybody.
        drop(second_call);
        assert!(open(HERE).is_none(), "it may be about to call again");
        set_stalled_min(&accounts, Duration::ZERO);
        assert!(open(HERE).is_some() && is_displaced(&second));
    }

    #[test]
    fn who_waits_for_its_client_is_idle_and_so_is_who_only_watches() {
        let limits = AccountLimits { connections_max: 3, stalled_min: Duration::ZERO, ..AMPLE };
        let accounts = Accounts::new(limits);
        let [unread, watching, owing] = [0; 3].map(|_| accounts.open(HERE).unwrap());
        let answer = owed(&unread);
        answer.turn(Turn::Client);
        let watch = watching.begin(Pool::Auxiliary).unwrap();
        watch.turn(Turn::Gateway);
        let _owed = owed(&owing);
        let _new = [0; 2].map(|_| {
            let new = accounts.open(HERE).unwrap();
            let call = owed(&new);
            (new, call)
        });
        assert!(is_displaced(&unread) && is_displaced(&watching) && !is_displaced(&owing));
        assert!(accounts.open(HERE).is_none(), "the gateway owes each of them an answer");
    }

    #[test]
    fn each_connection_has_a_call_of_its_own_and_another_beside_the_store() {
        let limits = AccountLimits { store_calls_max: 0, auxiliary_calls_max: 0, ..AMPLE };
        let accounts = Accounts::new(limits);
        let account = accounts.open(HERE).unwrap();
        let _watch = account.begin(Pool::Auxiliary).unwrap();
        assert!(account.begin(Pool::Auxiliary).is_none());
        let call = account.begin(Pool::Store).unwrap();
        assert!(account.begin(Pool::Store).is_none());
        drop(call);
        assert!(account.begin(Pool::Store).is_some());
    }

    #[test]
    fn shared_places_are_never_one_connections_alone_and_stalled_calls_keep_none() {
        let accounts = Accounts::new(AccountLimits { store_calls_max: 8, ..AMPLE });
        let greedy: Vec<Account> = (0..3).map(|_| accounts.open(HERE).unwrap()).collect();
        let take_all = |account: &Account| {
            std::iter::from_fn(|| account.begin(Pool::Store)).collect::<Vec<Call>>()
        };
        let calls: Vec<Vec<Call>> = greedy.iter().map(take_all).collect();
        assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [5, 3, 2]);
        let late = accounts.open(HERE).unwrap();
        assert_eq!(take_all(&late).len(), 1);
        // Whoever lets its calls lie gives way.
        let own = owed(&late);
        set_stalled_min(&accounts, Duration::ZERO);
        let more: Vec<Call> = (0..3).map(|_| late.begin(Pool::Store).unwrap()).collect();
        more.iter().for_each(|call| call.turn(Turn::Gateway));
        assert!(is_displaced(&greedy[0]) && !is_displaced(&late));
        drop((own, more, calls));
        assert_eq!(accounts.books().store_calls, 0);
    }

    #[test]
    fn bytes_are_shared_by_connections_and_origins_and_stalled_calls_keep_none() {
        let limits = AccountLimits { bytes_max: 1000, own_bytes: 10, ..AMPLE };
        let accounts = Accounts::new(limits);
        let [one, two] = [0; 2].map(|_| accounts.open(HERE).unwrap());
        let [first, second] = [&one, &two].map(owed);
        assert!(first.charge(510), "half of all, and its own");
        assert!(!first.charge(1));
        assert!(second.charge(10), "every connection has its own");
        assert!(!second.charge(1), "its origin has half");
        let other = accounts.open(THERE).unwrap();
        let third = owed(&other);
        assert!(third.charge(260) && !third.charge(1), "another origin gets half of the rest");
        first.release(300);
        assert!(second.charge(50));
        drop(first);
        assert!(second.charge(300) && !third.charge(250), "only 400 are left");
        // What is not read, or does not come, gives way to who asks.
        second.turn(Turn::Client);
        set_stalled_min(&accounts, Duration::ZERO);
        assert!(third.charge(250) && is_displaced(&two) && !is_displaced(&other));
        assert!(!third.charge(1), "nobody has more than half");
        drop((second, third));
        let books = accounts.books();
        assert_eq!((books.bytes, books.origins.len()), (0, 0));
    }

    #[test]
    fn a_request_is_released_before_its_call_ends() {
        let accounts = Accounts::new(AccountLimits { bytes_max: 100, ..AMPLE });
        let account = accounts.open(HERE).unwrap();
        let call = owed(&account);
        assert!(call.charge_request(20) && call.charge_request(20) && call.charge(5));
        call.release_request();
        assert_eq!(accounts.books().bytes, 5);
        call.release_request();
        drop(call);
        assert_eq!(accounts.books().bytes, 0);
    }
}
