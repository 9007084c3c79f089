//! The accounts of a server's clients: what each has under way, and the read budget of its answers.
//!
//! Two limits are kept here. The first is on requests under way: a client that reaches its own
//! limit is not read until some are answered, and past the limit of all a request is refused. The
//! second is on bytes: the length of a value is not known before it is read, and a client may ask
//! for a thousand long ones at once and read no answer. So every read is sent to the workers with a
//! *read budget*, the length that its value may have:
//!
//! - [`limits::READ_SMALL_BYTES_MAX`] is always allowed. That much for all that a client may have
//!   under way fits its send queue.
//! - The longest value there may be is allowed as long as the client's queue and the budgets of its
//!   other reads leave room, or when it has nothing else, and the process's budget has room: the
//!   usual case.
//! - A worker that finds a longer value sends the read back with the length. Such a read is
//!   *deferred* until it can be given that much.
//!
//! Only so many reads are at the workers at once. The others wait here, and origins take turns, and
//! within an origin its clients: a client that asks for one thing waits for what is being read at
//! that moment, and not for the thousands of others. A page may take as long as a thousand GETs: as
//! many are at the workers at once as there are workers, and GETs have turns of their own. While a
//! disk hangs, those that have waited for long are refused; a read that a worker has begun is
//! counted until it is done, however long that takes.
//!
//! What requests hold while they wait, in the core or for a worker, and the budgets of reads, are
//! charged to the event loop's budget (`net::budget`): a request for which that has no room is
//! refused.

mod request_ids;
mod turns;

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use self::request_ids::RequestIds;
use self::turns::ReadTurns;
use super::get::ReadRequest;
use super::work::{ReadCharge, ReadJob};
use crate::limits::{
    self, CLIENT_SEND_BYTES_PAUSE, REQUEST_SMALL_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX, origin_of,
};
use crate::net::{ConnectionId, ConnectionMap, Net};
use crate::node::RequestToken;

/// An address with no more clients than this has as many as anybody: a program that uses a few at
/// once is not told from one that uses one.
const CLIENTS_FEW: usize = 4;
/// Reads that all workers are handed at once; the others wait for their turns. Two batches, so that
/// a worker finds the next when it has done one, and no more than a tenth of a second's work when
/// all values are as long as they may be.
const READS_HANDED_MAX: usize = 2 * limits::READS_PER_BATCH_MAX;
/// How long a read waits for a worker while one of them gets on with nothing: as long as a request
/// waits for the group. Clients take a server for mute that says nothing for much longer.
const READ_WAIT_MAX: Duration = limits::COMMIT_TIMEOUT;

/// The event loop's accounting of what its connections make the process hold.
pub(super) trait ConnectionMemory {
    /// Bytes that wait to be sent to a client.
    fn queued_bytes(&self, connection: ConnectionId) -> usize;
    /// Charges bytes to a client's account, or answers `false` where the budget has no room for
    /// them.
    fn try_hold(&mut self, connection: ConnectionId, bytes: usize) -> bool;
    /// Takes back a charge, also when the client has gone meanwhile.
    fn release(&mut self, connection: ConnectionId, bytes: usize);
}

impl ConnectionMemory for Net {
    fn queued_bytes(&self, connection: ConnectionId) -> usize {
        Net::queued_bytes(self, connection)
    }

    fn try_hold(&mut self, connection: ConnectionId, bytes: usize) -> bool {
        Net::try_hold(self, connection, bytes)
    }

    fn release(&mut self, connection: ConnectionId, bytes: usize) {
        Net::release(self, connection, bytes);
    }
}

/// Bytes to charge for a read: a value is in memory twice for a moment, as it is and in its frame.
fn read_bytes(budget_bytes: usize) -> usize {
    2 * budget_bytes
}

/// A read of a value that was longer than its budget, with the length that it needs.
#[derive(Debug)]
struct DeferredRead {
    read: ReadJob,
    bytes: usize,
}

/// The account of one client: its requests under way, and its reads.
#[derive(Debug)]
struct ClientState {
    address: SocketAddr,
    /// The ids of its requests under way, about as many as [`REQUESTS_PER_CONNECTION_MAX`].
    under_way: RequestIds,
    /// [`Clients::arrivals`] when it last began a request or got an answer: the smallest is idle
    /// for longest.
    active_at: u64,
    /// It is not read until it has less under way.
    paused: bool,
    /// Reads that wait in the core, by request id.
    waiting: HashMap<u64, ReadRequest>,
    /// The sum of the budgets of its reads at the workers, small reads not counted.
    budget_bytes: usize,
    deferred: VecDeque<DeferredRead>,
    /// Its reads at the workers whose values may only be small.
    unbudgeted: usize,
    /// How many of these there may be while a read is deferred. Fewer each time that one of them
    /// finds a long value, and was in vain.
    unbudgeted_max: usize,
    /// It gives way, and its end has not been reported yet.
    is_displaced: bool,
    /// It has watches, and so is not idle though it may ask for nothing.
    is_watching: bool,
}

/// Whether a request is taken, and whether its client is read further.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestAdmission {
    /// The address from which the client has connected.
    pub client: SocketAddr,
    /// The client has as much under way as it may have: it is not to be read for now.
    pub pause: bool,
    /// Why this one is to be refused with `BUSY`, if it is: all clients together have too much
    /// under way, or it would take more memory than the budget has room for.
    pub busy: Option<&'static str>,
}

/// The accounts of all clients of a server.
///
/// Invariant: `under_way` is the sum over all clients, `origins` counts each client once, and a
/// request that is in `charged` is charged to the event loop's budget until it is answered or its
/// client is gone.
#[derive(Debug)]
pub(super) struct Clients {
    all: ConnectionMap<ClientState>,
    /// Number of clients of each origin.
    origins: HashMap<IpAddr, usize>,
    /// Requests under way of all clients.
    under_way: usize,
    /// Number of requests and clients that have come so far, which orders clients by their last
    /// activity.
    arrivals: u64,
    /// GETs that wait for a worker.
    turns: ReadTurns,
    /// Pages that wait for a worker.
    page_turns: ReadTurns,
    /// Number of reads at the workers.
    at_workers: usize,
    /// Number of pages among them.
    pages_at_workers: usize,
    /// The most pages at the workers: one for each.
    pages_at_workers_max: usize,
    /// The most reads at the workers.
    at_workers_max: usize,
    /// Whether deferred reads get the larger half of an odd number of places this time.
    deferred_first: bool,
    /// The longest value that this server stores.
    value_bytes_max: usize,
    /// Bytes charged for each request under way that holds more than [`REQUEST_SMALL_BYTES_MAX`].
    charged: HashMap<RequestToken, usize>,
    /// Clients with deferred reads, in turns.
    with_deferred: VecDeque<ConnectionId>,
    /// Ticks of the loop so far.
    ticks: u64,
    read_wait_max: Duration,
}

impl Clients {
    /// No clients yet, of a server that stores values up to this length and has so many workers.
    pub fn new(value_bytes_max: usize, workers: usize) -> Clients {
        Clients {
            all: ConnectionMap::default(),
            origins: HashMap::new(),
            under_way: 0,
            arrivals: 0,
            turns: ReadTurns::default(),
            page_turns: ReadTurns::default(),
            at_workers: 0,
            pages_at_workers: 0,
            pages_at_workers_max: workers.max(1),
            at_workers_max: READS_HANDED_MAX,
            deferred_first: false,
            value_bytes_max,
            charged: HashMap::new(),
            with_deferred: VecDeque::new(),
            ticks: 0,
            read_wait_max: READ_WAIT_MAX,
        }
    }

    /// A tick of the loop has passed.
    pub fn tick(&mut self) {
        self.ticks += 1;
    }

    /// How long a read waits for a worker while one of them gets on with nothing.
    pub fn read_wait_max(&self) -> Duration {
        self.read_wait_max
    }

    /// Reads that have waited for a worker since this tick have waited for too long.
    pub fn overdue_since(&self) -> Option<u64> {
        let ticks = self.read_wait_max.as_millis() / limits::TICK.as_millis();
        self.ticks.checked_sub(ticks as u64)
    }

    /// Takes out the reads that have waited here for too long.
    pub fn take_overdue(&mut self) -> Vec<ReadJob> {
        let Some(tick) = self.overdue_since() else { return Vec::new() };
        let mut overdue = self.turns.take_waiting_since(tick);
        overdue.extend(self.page_turns.take_waiting_since(tick));
        for client in self.all.values_mut() {
            let is_due = |deferred: &mut DeferredRead| deferred.read.waits_since <= tick;
            let due = std::iter::from_fn(|| client.deferred.pop_front_if(is_due));
            overdue.extend(due.map(|deferred| deferred.read));
        }
        let has_deferred = |client: &ClientState| !client.deferred.is_empty();
        self.with_deferred.retain(|id| self.all.get(id).is_some_and(has_deferred));
        overdue
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn add(&mut self, connection: ConnectionId, address: SocketAddr) {
        self.arrivals += 1;
        *self.origins.entry(origin_of(address.ip())).or_default() += 1;
        let client = ClientState {
            address,
            under_way: RequestIds::default(),
            active_at: self.arrivals,
            paused: false,
            waiting: HashMap::new(),
            budget_bytes: 0,
            deferred: VecDeque::new(),
            unbudgeted: 0,
            unbudgeted_max: limits::READS_PER_BATCH_MAX,
            is_displaced: false,
            is_watching: false,
        };
        self.all.insert(connection, client);
    }

    /// Notes whether a client has watches.
    pub fn set_watching(&mut self, connection: ConnectionId, is_watching: bool) {
        if let Some(client) = self.all.get_mut(&connection) {
            client.is_watching = is_watching;
        }
    }

    /// Whether a client has watches.
    pub fn is_watching(&self, connection: ConnectionId) -> bool {
        self.all.get(&connection).is_some_and(|client| client.is_watching)
    }

    /// Forgets a client that is gone, and what waited for it. What the core and the workers are
    /// doing for it comes back and finds nobody.
    pub fn remove(
        &mut self,
        memory: &mut impl ConnectionMemory,
        connection: ConnectionId,
    ) -> Option<SocketAddr> {
        let client = self.all.remove(&connection)?;
        let origin = origin_of(client.address.ip());
        if let Some(count) = self.origins.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.origins.remove(&origin);
            }
        }
        // Reads that waited here are answered no more.
        let waiting = client.waiting.into_keys();
        let mut queued = self.turns.remove(origin, connection);
        queued.extend(self.page_turns.remove(origin, connection));
        let queued = queued.iter().map(|read| read.token.request);
        let deferred = client.deferred.iter().map(|deferred| deferred.read.token.request);
        for request in waiting.chain(queued).chain(deferred) {
            self.forget(memory, RequestToken { connection: connection.to_u64(), request });
        }
        self.under_way -= client.under_way.len();
        Some(client.address)
    }

    /// The client that gives way to one from `ip`: of those that wait for nothing, one of the
    /// origin with the most clients, if that has many, and of these the one that has been idle for
    /// longest. An origin that has many itself gets the place of one of its own, or of an origin
    /// that has more.
    pub fn idle_to_displace(
        &mut self,
        memory: &impl ConnectionMemory,
        ip: IpAddr,
    ) -> Option<ConnectionId> {
        let count_of = |origin: IpAddr| self.origins.get(&origin).copied().unwrap_or_default();
        let (asking, own) = (origin_of(ip), count_of(origin_of(ip)));
        let rank = |(id, client): (&ConnectionId, &ClientState)| {
            let origin = origin_of(client.address.ip());
            let count = count_of(origin);
            let is_idle = client.under_way.is_empty()
                && !client.is_displaced
                && !client.is_watching
                && memory.queued_bytes(*id) == 0;
            let gives_way = own < CLIENTS_FEW || origin == asking || count > own;
            let many = count.saturating_sub(CLIENTS_FEW);
            (is_idle && gives_way).then_some((Reverse(many), client.active_at, *id))
        };
        let (.., id) = self.all.iter().filter_map(rank).min()?;
        if let Some(client) = self.all.get_mut(&id) {
            client.is_displaced = true;
        }
        Some(id)
    }

    /// Whether no request of any client is under way.
    pub fn nothing_under_way(&self) -> bool {
        self.under_way == 0
    }

    /// Whether a request of this client is under way.
    pub fn waits(&self, connection: ConnectionId) -> bool {
        self.all.get(&connection).is_some_and(|client| !client.under_way.is_empty())
    }

    /// Whether a request of this id is under way. A second one would not be told from it: the
    /// answer to either would end the other, and take back its charge.
    pub fn is_in_use(&self, token: RequestToken) -> bool {
        let client = self.all.get(&ConnectionId::from_u64(token.connection));
        client.is_some_and(|client| client.under_way.contains(token.request))
    }

    /// Counts a request that holds `bytes`, and decides whether it is taken. Every request is ended
    /// by [`Clients::answered`], refused ones included. `None` when its client is gone. Its id is
    /// not in use.
    pub fn begin(
        &mut self,
        memory: &mut impl ConnectionMemory,
        token: RequestToken,
        bytes: usize,
    ) -> Option<RequestAdmission> {
        let connection = ConnectionId::from_u64(token.connection);
        let client = self.all.get_mut(&connection)?;
        self.arrivals += 1;
        client.active_at = self.arrivals;
        let is_new = client.under_way.insert(token.request);
        assert!(is_new, "{token:?} is under way already");
        let pause = client.under_way.len() >= REQUESTS_PER_CONNECTION_MAX && !client.paused;
        client.paused |= pause;
        self.under_way += 1;
        let mut busy = None;
        if self.under_way > limits::REQUESTS_MAX && client.under_way.len() > limits::REQUESTS_FEW {
            busy = Some("too many requests are under way");
        } else if bytes > REQUEST_SMALL_BYTES_MAX {
            if memory.try_hold(connection, bytes) {
                self.charged.insert(token, bytes);
            } else {
                busy = Some("requests under way hold all the memory that they may");
            }
        }
        Some(RequestAdmission { client: client.address, pause, busy })
    }

    /// Ends a request. Returns whether its client, which was not read, is to be read again.
    pub fn answered(&mut self, memory: &mut impl ConnectionMemory, token: RequestToken) -> bool {
        let connection = ConnectionId::from_u64(token.connection);
        self.forget(memory, token);
        let Some(client) = self.all.get_mut(&connection) else { return false };
        client.active_at = self.arrivals;
        if client.under_way.remove(token.request) {
            self.under_way -= 1;
        }
        // Its core may have answered a read that waited.
        if !client.waiting.is_empty() {
            client.waiting.remove(&token.request);
        }
        let resume = client.paused && client.under_way.len() <= REQUESTS_PER_CONNECTION_MAX / 2;
        client.paused &= !resume;
        resume
    }

    /// Takes back the charge of a request, if it has one.
    fn forget(&mut self, memory: &mut impl ConnectionMemory, token: RequestToken) {
        // Most requests are small, and nothing is looked up for them.
        if !self.charged.is_empty()
            && let Some(bytes) = self.charged.remove(&token)
        {
            memory.release(ConnectionId::from_u64(token.connection), bytes);
        }
    }

    /// Keeps a read that waits in the core.
    pub fn keep_waiting(&mut self, token: RequestToken, request: ReadRequest) {
        let connection = ConnectionId::from_u64(token.connection);
        let Some(client) = self.all.get_mut(&connection) else { return };
        let before = client.waiting.insert(token.request, request);
        assert!(before.is_none(), "two reads wait as {token:?}");
    }

    /// Takes out a read that may be answered now; `None` when its client is gone.
    pub fn take_waiting(&mut self, token: RequestToken) -> Option<(SocketAddr, ReadRequest)> {
        let client = self.all.get_mut(&ConnectionId::from_u64(token.connection))?;
        client.waiting.remove(&token.request).map(|request| (client.address, request))
    }

    /// Takes in a read that may go to a worker when it is its turn.
    pub fn read(&mut self, token: RequestToken, client: SocketAddr, request: ReadRequest) {
        let connection = ConnectionId::from_u64(token.connection);
        let read = ReadJob { token, client, request, budget_bytes: 0, waits_since: self.ticks };
        let turns = if read.is_page() { &mut self.page_turns } else { &mut self.turns };
        turns.push(origin_of(client.ip()), connection, read);
    }

    /// Notes that a read is no longer at the workers, whatever came of it, and takes back the
    /// charge of its budget.
    pub fn read_done(&mut self, memory: &mut impl ConnectionMemory, charge: ReadCharge) {
        let ReadCharge { token, budget_bytes, is_page } = charge;
        let connection = ConnectionId::from_u64(token.connection);
        self.at_workers = self.at_workers.saturating_sub(1);
        self.pages_at_workers = self.pages_at_workers.saturating_sub(usize::from(is_page));
        memory.release(connection, read_bytes(budget_bytes));
        if let Some(client) = self.all.get_mut(&connection) {
            client.budget_bytes = client.budget_bytes.saturating_sub(budget_bytes);
            if budget_bytes == 0 {
                client.unbudgeted = client.unbudgeted.saturating_sub(1);
                client.unbudgeted_max =
                    (2 * client.unbudgeted_max).min(limits::READS_PER_BATCH_MAX);
            }
        }
    }

    /// Defers a read whose value is longer than its budget, until it can be given `bytes`.
    pub fn defer(&mut self, memory: &mut impl ConnectionMemory, mut read: ReadJob, bytes: usize) {
        read.waits_since = self.ticks;
        let connection = ConnectionId::from_u64(read.token.connection);
        match self.all.get_mut(&connection) {
            None => return self.forget(memory, read.token),
            Some(client) => client.unbudgeted_max = (client.unbudgeted_max / 4).max(1),
        }
        self.push_deferred(connection, read, bytes);
    }

    fn push_deferred(&mut self, connection: ConnectionId, read: ReadJob, bytes: usize) {
        let Some(client) = self.all.get_mut(&connection) else { return };
        if client.deferred.is_empty() {
            self.with_deferred.push_back(connection);
        }
        client.deferred.push_back(DeferredRead { read, bytes });
    }

    /// Takes the reads that go to the workers now: half of the places for deferred ones and half
    /// for others, as far as there are both.
    pub fn take_reads(&mut self, memory: &mut impl ConnectionMemory) -> Vec<ReadJob> {
        let mut reads = Vec::new();
        let free = self.at_workers_max.saturating_sub(self.at_workers);
        // Of an odd number the one more goes to either in turn: places may become free one by one.
        self.deferred_first ^= free % 2 == 1;
        let half = free / 2 + usize::from(free % 2 == 1 && self.deferred_first);
        self.take_deferred(memory, half, &mut reads);
        while self.at_workers < self.at_workers_max
            && let Some(mut read) = self.next_turn()
        {
            let connection = ConnectionId::from_u64(read.token.connection);
            let is_spent = |client: &ClientState| {
                !client.deferred.is_empty() && client.unbudgeted >= client.unbudgeted_max
            };
            if self.all.get(&connection).is_some_and(is_spent) {
                // Very likely its value is long, too, and would be read in vain.
                self.push_deferred(connection, read, self.value_bytes_max);
                continue;
            }
            if self.try_budget(memory, connection, self.value_bytes_max) {
                read.budget_bytes = self.value_bytes_max;
            } else if let Some(client) = self.all.get_mut(&connection) {
                client.unbudgeted += 1;
            }
            self.hand_over(read, &mut reads);
        }
        let rest = self.at_workers_max.saturating_sub(self.at_workers);
        self.take_deferred(memory, rest, &mut reads);
        reads
    }

    /// The read whose turn it is: a page, if there may be another one, or else a GET.
    fn next_turn(&mut self) -> Option<ReadJob> {
        let page = match self.may_hand_page() {
            true => self.page_turns.pop(),
            false => None,
        };
        page.or_else(|| self.turns.pop())
    }

    fn may_hand_page(&self) -> bool {
        self.pages_at_workers < self.pages_at_workers_max
    }

    fn hand_over(&mut self, read: ReadJob, reads: &mut Vec<ReadJob>) {
        self.at_workers += 1;
        self.pages_at_workers += usize::from(read.is_page());
        reads.push(read);
    }

    /// Takes up to `most` deferred reads that can be given the budget they need, of each client in
    /// its turn.
    fn take_deferred(
        &mut self,
        memory: &mut impl ConnectionMemory,
        mut most: usize,
        reads: &mut Vec<ReadJob>,
    ) {
        let mut refused = 0;
        while most > 0
            && refused < self.with_deferred.len()
            && let Some(connection) = self.with_deferred.pop_front()
        {
            let Some((bytes, is_page)) = self.next_deferred(connection) else { continue };
            let has_place = !is_page || self.may_hand_page();
            if has_place && self.try_budget(memory, connection, bytes) {
                let client = self.all.get_mut(&connection);
                if let Some(DeferredRead { mut read, .. }) =
                    client.and_then(|c| c.deferred.pop_front())
                {
                    read.budget_bytes = bytes;
                    // Until now it waited for its client to read what it was sent.
                    read.waits_since = self.ticks;
                    self.hand_over(read, reads);
                    most -= 1;
                }
                refused = 0;
            } else {
                refused += 1;
            }
            if self.next_deferred(connection).is_some() {
                self.with_deferred.push_back(connection);
            }
        }
    }

    /// The length that a client's next deferred read needs, and whether it is a page.
    fn next_deferred(&self, connection: ConnectionId) -> Option<(usize, bool)> {
        let next = self.all.get(&connection)?.deferred.front();
        next.map(|deferred| (deferred.bytes, deferred.read.is_page()))
    }

    fn try_budget(
        &mut self,
        memory: &mut impl ConnectionMemory,
        connection: ConnectionId,
        bytes: usize,
    ) -> bool {
        let queued = memory.queued_bytes(connection);
        let Some(client) = self.all.get_mut(&connection) else { return false };
        let has_nothing_else = client.budget_bytes == 0 && queued == 0;
        let leaves_room = queued + client.budget_bytes + bytes <= CLIENT_SEND_BYTES_PAUSE;
        if !(has_nothing_else || leaves_room) || !memory.try_hold(connection, read_bytes(bytes)) {
            return false;
        }
        client.budget_bytes += bytes;
        true
    }
}

#[cfg(test)]
impl Clients {
    /// Replaces the time for which a read waits for a worker while one hangs.
    pub fn set_read_wait_max(&mut self, read_wait_max: Duration) {
        self.read_wait_max = read_wait_max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PageOf;
    use crate::wire::message::{GetRequest, PageRequest, PageView, ReadAt};
    use bytes::Bytes;

    const MIB: usize = 1024 * 1024;

    fn address() -> SocketAddr {
        "127.0.0.1:50000".parse().unwrap()
    }

    fn request() -> ReadRequest {
        let (key, read_at) = (Bytes::from_static(b"k"), ReadAt::Newest { seen: None });
        ReadRequest::Get(GetRequest {
            key,
            read_at,
            session: None,
            linearizable: false,
            facts: false,
        })
    }

    fn with_clients(count: u64) -> (Clients, Vec<ConnectionId>) {
        let mut clients = Clients::new(MIB, 2);
        let ids: Vec<_> = (0..count).map(ConnectionId::from_u64).collect();
        ids.iter().for_each(|id| clients.add(*id, address()));
        (clients, ids)
    }

    /// What a GET with this budget is accounted by.
    fn charge(token: RequestToken, budget_bytes: usize) -> ReadCharge {
        ReadCharge { token, budget_bytes, is_page: false }
    }

    fn token(connection: ConnectionId, request: u64) -> RequestToken {
        RequestToken { connection: connection.to_u64(), request }
    }

    /// Bytes that wait to be sent to every client, and bytes that are left to be charged in all.
    struct TestMemory {
        queued: usize,
        left: usize,
    }

    fn ample() -> TestMemory {
        TestMemory { queued: 0, left: usize::MAX / 2 }
    }

    impl ConnectionMemory for TestMemory {
        fn queued_bytes(&self, _: ConnectionId) -> usize {
            self.queued
        }

        fn try_hold(&mut self, _: ConnectionId, bytes: usize) -> bool {
            let fits = bytes <= self.left;
            self.left -= if fits { bytes } else { 0 };
            fits
        }

        fn release(&mut self, _: ConnectionId, bytes: usize) {
            self.left += bytes;
        }
    }

    fn queued(queued: usize) -> TestMemory {
        TestMemory { queued, ..ample() }
    }

    fn budgets(jobs: &[ReadJob]) -> Vec<usize> {
        jobs.iter().map(|read| read.budget_bytes).collect()
    }

    #[test]
    fn a_client_is_held_back_at_its_limit_and_goes_on_at_half_of_it() {
        let (mut clients, ids) = with_clients(1);
        for n in 1..=REQUESTS_PER_CONNECTION_MAX {
            let pause = n == REQUESTS_PER_CONNECTION_MAX;
            let admission = RequestAdmission { client: address(), pause, busy: None };
            let id = token(ids[0], n as u64);
            assert_eq!(clients.begin(&mut ample(), id, 0), Some(admission));
        }
        for n in (0..REQUESTS_PER_CONNECTION_MAX).rev() {
            let resume = clients.answered(&mut ample(), token(ids[0], n as u64 + 1));
            assert_eq!(resume, n == REQUESTS_PER_CONNECTION_MAX / 2, "{n}");
        }
        assert!(clients.nothing_under_way());
    }

    #[test]
    fn past_the_limit_of_all_requests_are_refused_until_some_clients_are_gone() {
        let each = REQUESTS_PER_CONNECTION_MAX;
        let (mut clients, ids) = with_clients((limits::REQUESTS_MAX / each) as u64 + 1);
        let (last, others) = ids.split_last().unwrap();
        for id in others {
            for n in 0..each as u64 {
                assert_eq!(clients.begin(&mut ample(), token(*id, n), 0).unwrap().busy, None);
            }
        }
        for n in 1..=limits::REQUESTS_FEW as u64 {
            let admission = clients.begin(&mut ample(), token(*last, n), 0).unwrap();
            assert_eq!(admission.busy, None, "there is room for a few of everybody's");
        }
        assert!(clients.begin(&mut ample(), token(*last, 0), 0).unwrap().busy.is_some());
        assert!(!clients.answered(&mut ample(), token(*last, 0)));
        clients.remove(&mut ample(), others[0]);
        assert_eq!(clients.begin(&mut ample(), token(*last, 9), 0).unwrap().busy, None);
        for id in &ids {
            clients.remove(&mut ample(), *id);
        }
        assert!(clients.nothing_under_way());
    }

    /// Four thousand clients of as many addresses that asked for nothing kept everybody else out.
    #[test]
    fn who_asks_for_nothing_makes_room_those_of_a_crowd_first() {
        let mut clients = Clients::new(MIB, 2);
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 50000));
        let id = ConnectionId::from_u64;
        // A crowd of one address, and two others.
        (0..10).for_each(|n| clients.add(id(n), address(1)));
        (10..12).for_each(|n| clients.add(id(n), address(n as u8)));
        let ask = |clients: &mut Clients, n| {
            clients.begin(&mut ample(), token(id(n), 1), 0);
        };
        ask(&mut clients, 0);
        ask(&mut clients, 1);
        clients.answered(&mut ample(), token(id(1), 1));
        let mut order = Vec::new();
        let new = IpAddr::from([10, 0, 0, 99]);
        assert_eq!(clients.idle_to_displace(&queued(1), new), None, "each is being sent an answer");
        while let Some(next) = clients.idle_to_displace(&ample(), new) {
            order.push(next.to_u64());
            clients.remove(&mut ample(), next);
        }
        // Of the crowd until it has as few as anybody; whoever waits for an answer stays.
        assert_eq!(order, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1]);
        assert_eq!(clients.len(), 1);
        // Whoever has many, all of which wait for answers, gets nobody else's place, and nobody's
        // is given twice.
        (20..30).for_each(|n| clients.add(id(n), address(1)));
        (20..30).for_each(|n| ask(&mut clients, n));
        clients.add(id(30), address(2));
        clients.set_watching(id(30), true);
        assert_eq!(clients.idle_to_displace(&ample(), new), None, "it waits for what changes");
        clients.set_watching(id(30), false);
        assert_eq!(clients.idle_to_displace(&ample(), address(1).ip()), None);
        assert_eq!(clients.idle_to_displace(&ample(), new), Some(id(30)));
        assert_eq!(clients.idle_to_displace(&ample(), new), None);
    }

    #[test]
    fn reads_that_wait_go_with_their_client() {
        let (mut clients, ids) = with_clients(1);
        clients.keep_waiting(token(ids[0], 1), request());
        clients.keep_waiting(token(ids[0], 2), request());
        assert_eq!(clients.take_waiting(token(ids[0], 1)), Some((address(), request())));
        assert_eq!(clients.take_waiting(token(ids[0], 1)), None);
        clients.remove(&mut ample(), ids[0]);
        assert_eq!(clients.take_waiting(token(ids[0], 2)), None);
    }

    #[test]
    fn long_values_are_read_as_far_as_the_send_queue_has_room() {
        let (mut clients, ids) = with_clients(1);
        (0..6).for_each(|n| clients.read(token(ids[0], n), address(), request()));
        let jobs = clients.take_reads(&mut ample());
        assert_eq!(budgets(&jobs), [MIB, MIB, MIB, MIB, 0, 0]);

        let mut jobs = jobs.into_iter();
        let mut next = || jobs.next().unwrap();
        // The first four are small after all; the last two have no budget and are long.
        for _ in 0..4 {
            let read = next();
            clients.read_done(&mut ample(), read.charge());
        }
        for _ in 0..2 {
            let read = next();
            clients.read_done(&mut ample(), read.charge());
            clients.defer(&mut ample(), read, 3 * MIB);
        }
        assert!(clients.take_reads(&mut queued(2 * MIB)).is_empty(), "too much waits to be sent");
        assert_eq!(budgets(&clients.take_reads(&mut queued(1))), [3 * MIB]);
        assert!(clients.take_reads(&mut ample()).is_empty(), "the first is being read");
        clients.read_done(&mut ample(), charge(token(ids[0], 4), 3 * MIB));
        assert_eq!(budgets(&clients.take_reads(&mut ample())), [3 * MIB]);
    }

    /// Whoever asked for one thing waited for the thousands of reads that others had asked for
    /// before.
    #[test]
    fn each_address_and_each_of_its_clients_has_its_turn() {
        let (mut clients, ids) = with_clients(3);
        clients.at_workers_max = 2;
        let other: SocketAddr = "127.0.0.2:50000".parse().unwrap();
        clients.add(ConnectionId::from_u64(9), other);
        (0..100).for_each(|n| clients.read(token(ids[0], n), address(), request()));
        (0..3).for_each(|n| clients.read(token(ids[1], n), address(), request()));
        clients.read(token(ids[2], 0), address(), request());
        clients.read(token(ConnectionId::from_u64(9), 0), other, request());
        clients.remove(&mut ample(), ids[2]);
        let mut order = Vec::new();
        for expected in [2, 2, 2, 2] {
            let jobs = clients.take_reads(&mut ample());
            assert_eq!(jobs.len(), expected);
            assert!(clients.take_reads(&mut ample()).is_empty(), "the workers have enough");
            for read in jobs {
                clients.read_done(&mut ample(), read.charge());
                order.push((read.token.connection, read.token.request));
            }
        }
        assert_eq!(order, [(0, 0), (9, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]);
        // What is deferred and what is new go by turns.
        let numbers = |jobs: Vec<ReadJob>| -> Vec<(u64, u64)> {
            jobs.iter().map(|read| (read.token.connection, read.token.request)).collect()
        };
        let deferred = |n: u64| {
            let (token, client, request) = (token(ids[0], 1000 + n), address(), request());
            ReadJob { token, client, request, budget_bytes: 0, waits_since: 0 }
        };
        (0..5).for_each(|n| clients.defer(&mut ample(), deferred(n), MIB));
        clients.read(token(ids[1], 3), address(), request());
        assert_eq!(numbers(clients.take_reads(&mut ample())), [(0, 1000), (0, 4)]);
        // One whose reads were in vain tries one at a time without a budget, until that is not in
        // vain.
        let mut full = queued(CLIENT_SEND_BYTES_PAUSE);
        clients.read_done(&mut full, charge(token(ids[0], 1000), MIB));
        clients.read_done(&mut full, charge(token(ids[0], 4), MIB));
        assert_eq!(numbers(clients.take_reads(&mut full)), [(1, 3), (0, 5)]);
        clients.read_done(&mut full, charge(token(ids[1], 3), 0));
        assert!(clients.take_reads(&mut full).is_empty());
        clients.read_done(&mut full, charge(token(ids[0], 5), 0));
        for n in [200, 201, 202] {
            clients.read(token(ids[0], n), address(), request());
        }
        assert_eq!(numbers(clients.take_reads(&mut full)), [(0, 200), (0, 201)]);
        for n in [200, 201] {
            clients.read_done(&mut full, charge(token(ids[0], n), 0));
        }
        // Where places become free one by one, each has its turn.
        clients.at_workers_max = 1;
        clients.read(token(ids[1], 10), address(), request());
        clients.read(token(ids[1], 11), address(), request());
        let mut order = Vec::new();
        for _ in 0..4 {
            let one = numbers(clients.take_reads(&mut ample()))[0];
            let token = RequestToken { connection: one.0, request: one.1 };
            clients.read_done(&mut ample(), charge(token, MIB));
            order.push(one);
        }
        let new = order.iter().filter(|(_, request)| *request < 1000).count();
        assert_eq!(new, 2, "deferred ones and new ones: {order:?}");
    }

    /// A hundred pages, each of which looks at 64 MiB, once were before everybody's next GET.
    #[test]
    fn there_is_one_page_at_once_for_each_worker_and_gets_go_beside_them() {
        let (mut clients, ids) = with_clients(2);
        let page = || {
            let of = PageOf::Keys { keys: vec![Bytes::from_static(b"k")] };
            let view = PageView::First { at: None, session: None, linearizable: false };
            ReadRequest::Page(PageRequest { of, view, rows_max: 1, keys_only: false })
        };
        (0..10).for_each(|n| clients.read(token(ids[0], n), address(), page()));
        clients.read(token(ids[1], 100), address(), request());
        let take = |clients: &mut Clients| -> Vec<ReadCharge> {
            clients.take_reads(&mut ample()).iter().map(ReadJob::charge).collect()
        };
        let taken = take(&mut clients);
        let numbers: Vec<u64> = taken.iter().map(|read| read.token.request).collect();
        assert_eq!(numbers, [0, 1, 100]);
        clients.read_done(&mut ample(), taken[2]);
        assert!(take(&mut clients).is_empty(), "two workers have a page each");
        clients.read_done(&mut ample(), taken[0]);
        assert_eq!(take(&mut clients)[0].token.request, 2);
    }

    #[test]
    fn reads_that_have_waited_for_too_long_are_taken_out_wherever_they_wait_here() {
        let (mut clients, ids) = with_clients(2);
        clients.set_read_wait_max(2 * limits::TICK);
        clients.at_workers_max = 1;
        clients.read(token(ids[0], 1), address(), request());
        let read = clients.take_reads(&mut ample()).remove(0);
        (2..4).for_each(|n| clients.read(token(ids[0], n), address(), request()));
        clients.tick();
        clients.read_done(&mut ample(), read.charge());
        clients.defer(&mut ample(), read, MIB);
        clients.read(token(ids[1], 4), address(), request());
        let mut overdue = |ticks| {
            (0..ticks).for_each(|_| clients.tick());
            let mut requests: Vec<u64> =
                clients.take_overdue().iter().map(|read| read.token.request).collect();
            requests.sort_unstable();
            requests
        };
        assert_eq!(overdue(0), [0; 0]);
        assert_eq!(overdue(1), [2, 3], "the others came a tick later");
        assert_eq!(overdue(1), [1, 4]);
        assert_eq!(overdue(9), [0; 0]);
        // Whoever has lost reads has its turns again.
        clients.read(token(ids[0], 5), address(), request());
        clients.read(token(ids[1], 6), address(), request());
        clients.at_workers_max = 2;
        let next: Vec<u64> =
            clients.take_reads(&mut ample()).iter().map(|read| read.token.request).collect();
        assert_eq!(next, [5, 6]);
    }

    #[test]
    fn a_value_longer_than_any_room_is_read_when_nothing_else_is() {
        let (mut clients, ids) = with_clients(1);
        clients.read(token(ids[0], 1), address(), request());
        let Some(read) = clients.take_reads(&mut ample()).pop() else { panic!("one read") };
        clients.read_done(&mut ample(), read.charge());
        clients.defer(&mut ample(), read, 2 * CLIENT_SEND_BYTES_PAUSE);
        assert!(clients.take_reads(&mut queued(1)).is_empty());
        assert_eq!(budgets(&clients.take_reads(&mut ample())), [2 * CLIENT_SEND_BYTES_PAUSE]);
    }

    #[test]
    fn the_bytes_of_all_clients_are_limited_and_come_back_from_gone_ones() {
        let count = 3;
        let mut memory = TestMemory { queued: 0, left: count * read_bytes(MIB) };
        let (mut clients, ids) = with_clients(count as u64 + 1);
        for id in &ids {
            clients.read(token(*id, 1), address(), request());
        }
        assert_eq!(budgets(&clients.take_reads(&mut memory)), [MIB, MIB, MIB, 0]);
        clients.remove(&mut memory, ids[0]);
        clients.read_done(&mut memory, charge(token(ids[0], 1), MIB));
        clients.read(token(ids[count], 2), address(), request());
        assert_eq!(budgets(&clients.take_reads(&mut memory)), [MIB]);
    }

    #[test]
    fn what_requests_hold_is_counted_until_they_are_answered() {
        let mut memory = TestMemory { queued: 0, left: 2 * MIB };
        let (mut clients, ids) = with_clients(2);
        let busy = |admission: Option<RequestAdmission>| admission.unwrap().busy.is_some();
        assert!(!busy(clients.begin(&mut memory, token(ids[0], 1), MIB)));
        assert!(!busy(clients.begin(&mut memory, token(ids[0], 2), REQUEST_SMALL_BYTES_MAX)));
        assert_eq!(memory.left, MIB, "what is small is bounded by its number");
        assert!(!busy(clients.begin(&mut memory, token(ids[1], 1), MIB)));
        assert!(busy(clients.begin(&mut memory, token(ids[1], 2), MIB)));
        clients.answered(&mut memory, token(ids[1], 2));
        clients.remove(&mut memory, ids[0]);
        assert_eq!(memory.left, 0, "it is with the core, whether its client is there or not");
        clients.answered(&mut memory, token(ids[0], 1));
        assert_eq!(memory.left, MIB);
    }
    /// A long request under the id of a short one that was under way lost its charge with the
    /// answer to that, and waited on.
    #[test]
    fn the_id_of_each_request_under_way_is_in_use_however_little_it_holds() {
        let (mut clients, ids) = with_clients(2);
        for bytes in [0, MIB] {
            assert!(!clients.is_in_use(token(ids[0], 7)));
            clients.begin(&mut ample(), token(ids[0], 7), bytes);
            assert!(clients.is_in_use(token(ids[0], 7)));
            assert!(!clients.is_in_use(token(ids[1], 7)), "another client's");
            clients.answered(&mut ample(), token(ids[0], 7));
        }
        clients.begin(&mut ample(), token(ids[0], 8), 0);
        clients.answered(&mut ample(), token(ids[0], 9));
        assert!(clients.waits(ids[0]), "nobody has asked for that");
    }

    #[test]
    fn what_reads_hold_that_waited_here_goes_with_their_client() {
        let mut memory = TestMemory { queued: 0, left: 9 * MIB };
        let (mut clients, ids) = with_clients(2);
        for (n, id) in (1..).zip([ids[0], ids[0], ids[1]]) {
            clients.begin(&mut memory, token(id, n), MIB);
        }
        clients.keep_waiting(token(ids[0], 1), request());
        let deferred = |n, id| {
            let (token, client, request) = (token(id, n), address(), request());
            ReadJob { token, client, request, budget_bytes: 0, waits_since: 0 }
        };
        clients.defer(&mut memory, deferred(2, ids[0]), MIB);
        assert_eq!(memory.left, 6 * MIB);
        clients.remove(&mut memory, ids[0]);
        assert_eq!(memory.left, 8 * MIB);
        // The worker comes back when nobody is there any more.
        clients.remove(&mut memory, ids[1]);
        clients.defer(&mut memory, deferred(3, ids[1]), MIB);
        assert_eq!(memory.left, 9 * MIB);
    }
}
