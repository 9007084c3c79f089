//! The books of a server's clients: what each has under way, and what its answers may take.
//!
//! Two limits are kept here. Requests under way, of one client and of all: a client that reaches its
//! own is not read until some are answered, and past the limit of all a request is refused. And
//! bytes: nobody knows how long a value is before it is read, and a client may ask for a thousand
//! long ones at once and read no answer. So every read is sent to the workers with a *grant*, the
//! length its value may have:
//!
//! - [`READ_SMALL_BYTES_MAX`] is always granted. That much for all that a client may have under way
//!   fits its send queue.
//! - The longest value there may be is granted as long as the client's queue and grants leave room,
//!   or when it has nothing else, and the process's budget allows it: the usual case.
//! - A worker that finds a longer value than was granted sends the read back with the length. It is
//!   *held* until that much can be granted.
//!
//! The workers are handed only so many reads at once. The others wait here, and each address's next one goes in its turn,
//! and of an address each client's: a client that asks for one thing waits for what is being read at that moment, and
//! not for the thousands of others.
//!
//! What requests themselves hold while they wait, in the core or for a worker, and what was granted, is
//! counted in the event loop's budget: a request for which there is no room there is refused.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::get::ReadRequest;
use super::work::{Job, ReadJob};
use crate::limits::{
    self, CLIENT_SEND_BYTES_PAUSE, READ_SMALL_BYTES_MAX, REQUEST_SMALL_BYTES_MAX,
    REQUESTS_PER_CONNECTION_MAX,
};
use crate::net::{ConnectionId, ConnectionMap, Net, origin_of};
use crate::node::RequestToken;

/// What the event loop knows about the memory of its connections.
pub(super) trait Room {
    /// Bytes that wait to be sent to a client.
    fn queued_bytes(&self, connection: ConnectionId) -> usize;
    /// Counts what is about to be held for a client, if it may be.
    fn try_hold(&mut self, connection: ConnectionId, bytes: usize) -> bool;
    /// It is held no more; the client may have gone.
    fn release(&mut self, connection: ConnectionId, bytes: usize);
}

impl Room for Net {
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

/// A value that is read is in memory twice for a moment: as it is, and in its frame.
fn read_bytes(granted: usize) -> usize {
    2 * granted
}

/// A read of a value longer than was granted.
#[derive(Debug)]
struct Held {
    read: ReadJob,
    bytes: usize,
}

/// Reads that wait for a worker.
#[derive(Debug, Default)]
struct Turns {
    origins: HashMap<IpAddr, OriginTurns>,
    /// Each of them once; the first is next.
    order: VecDeque<IpAddr>,
}

/// Those of one address.
#[derive(Debug, Default)]
struct OriginTurns {
    clients: HashMap<ConnectionId, VecDeque<ReadJob>>,
    /// Each of them once; the first is next.
    order: VecDeque<ConnectionId>,
}

impl Turns {
    fn push(&mut self, origin: IpAddr, connection: ConnectionId, read: ReadJob) {
        let turns = self.origins.entry(origin).or_insert_with(|| {
            self.order.push_back(origin);
            OriginTurns::default()
        });
        let reads = turns.clients.entry(connection).or_insert_with(|| {
            turns.order.push_back(connection);
            VecDeque::new()
        });
        reads.push_back(read);
    }

    fn pop(&mut self) -> Option<ReadJob> {
        while let Some(origin) = self.order.pop_front() {
            let Some(turns) = self.origins.get_mut(&origin) else { continue };
            let read = turns.pop();
            match turns.clients.is_empty() {
                true => drop(self.origins.remove(&origin)),
                false => self.order.push_back(origin),
            }
            if read.is_some() {
                return read;
            }
        }
        None
    }

    /// Takes out all that a client has waiting.
    fn remove(&mut self, origin: IpAddr, connection: ConnectionId) -> VecDeque<ReadJob> {
        let turns = self.origins.get_mut(&origin);
        turns.and_then(|turns| turns.clients.remove(&connection)).unwrap_or_default()
    }
}

impl OriginTurns {
    fn pop(&mut self) -> Option<ReadJob> {
        // Whoever is gone has nothing more.
        while let Some(connection) = self.order.pop_front() {
            let Some(reads) = self.clients.get_mut(&connection) else { continue };
            let read = reads.pop_front();
            match reads.is_empty() {
                true => drop(self.clients.remove(&connection)),
                false => self.order.push_back(connection),
            }
            if read.is_some() {
                return read;
            }
        }
        None
    }
}

/// What one client connection has under way, and how much of it.
#[derive(Debug)]
struct Client {
    address: SocketAddr,
    under_way: usize,
    /// The number of the request, of all clients', after which it last began or ended something.
    active_at: u64,
    /// It is not read, because it has too much under way.
    paused: bool,
    /// Linearizable reads that wait for the core, by request id.
    parked: HashMap<u64, ReadRequest>,
    /// Bytes granted to reads under way, beyond the small ones.
    granted: usize,
    held: VecDeque<Held>,
    /// Reads that the workers have without a grant, and how many there may be while something is held: fewer each time that
    /// one was in vain.
    tried: usize,
    tries_max: usize,
    /// It has been told to make room, and is as good as gone.
    leaves: bool,
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// The client's address.
    pub client: SocketAddr,
    /// The client has enough under way now: read no more from it.
    pub pause: bool,
    /// Why this one is to be refused with `BUSY`, if it is: all clients together have too much under way, or
    /// it would take more memory than there is room for.
    pub busy: Option<&'static str>,
}

/// All clients of a server.
#[derive(Debug)]
pub(super) struct Clients {
    all: ConnectionMap<Client>,
    /// How many there are of each address.
    origins: HashMap<IpAddr, usize>,
    /// Requests of all of them.
    under_way: usize,
    /// Requests and clients that have come so far.
    came: u64,
    /// Reads that no worker has yet.
    turns: Turns,
    /// Reads that the workers have, and how many there may be.
    handed: usize,
    handed_max: usize,
    /// Whether a held read had the last place of an odd number.
    held_first: bool,
    /// The longest value there may be.
    value_bytes_max: usize,
    /// What requests under way hold that is worth counting, those of gone clients included.
    heavy: HashMap<RequestToken, usize>,
    /// Clients with held reads.
    waiting: VecDeque<ConnectionId>,
}

impl Clients {
    pub fn new(value_bytes_max: usize) -> Clients {
        Clients {
            all: ConnectionMap::default(),
            origins: HashMap::new(),
            under_way: 0,
            came: 0,
            turns: Turns::default(),
            handed: 0,
            handed_max: limits::READS_HANDED_MAX,
            held_first: false,
            value_bytes_max,
            heavy: HashMap::new(),
            waiting: VecDeque::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn add(&mut self, connection: ConnectionId, address: SocketAddr) {
        self.came += 1;
        *self.origins.entry(origin_of(address.ip())).or_default() += 1;
        let client = Client {
            address,
            under_way: 0,
            active_at: self.came,
            paused: false,
            parked: HashMap::new(),
            granted: 0,
            held: VecDeque::new(),
            tried: 0,
            tries_max: limits::READS_PER_BATCH_MAX,
            leaves: false,
        };
        self.all.insert(connection, client);
    }

    /// Forgets a client that is gone, and what waited for it. What the core and the workers are
    /// doing for it comes back and finds nobody.
    pub fn remove(&mut self, room: &mut impl Room, connection: ConnectionId) -> Option<SocketAddr> {
        let client = self.all.remove(&connection)?;
        let origin = origin_of(client.address.ip());
        if let Some(count) = self.origins.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.origins.remove(&origin);
            }
        }
        // Reads that waited here are answered no more.
        let parked = client.parked.into_keys();
        let queued = self.turns.remove(origin, connection);
        let queued = queued.iter().map(|read| read.token.request);
        let held = client.held.iter().map(|held| held.read.token.request);
        for request in parked.chain(queued).chain(held) {
            self.forget(room, RequestToken { connection: connection.to_u64(), request });
        }
        self.under_way -= client.under_way;
        Some(client.address)
    }

    /// The client that makes room for one from `ip`: of those that wait for no answer one of the address with the most of all
    /// clients, if that has many, and of these the one that has for longest. Whoever has many already is given the place
    /// of one of its own, or of an address that has more.
    pub fn idle_to_go(&mut self, room: &impl Room, ip: IpAddr) -> Option<ConnectionId> {
        let count_of = |origin: IpAddr| self.origins.get(&origin).copied().unwrap_or_default();
        let (asking, own) = (origin_of(ip), count_of(origin_of(ip)));
        let rank = |(id, client): (&ConnectionId, &Client)| {
            let origin = origin_of(client.address.ip());
            let count = count_of(origin);
            let is_idle = client.under_way == 0 && !client.leaves && room.queued_bytes(*id) == 0;
            let gives_way = own < limits::CLIENTS_FEW || origin == asking || count > own;
            let many = count.saturating_sub(limits::CLIENTS_FEW);
            (is_idle && gives_way).then_some((Reverse(many), client.active_at, *id))
        };
        let (.., id) = self.all.iter().filter_map(rank).min()?;
        if let Some(client) = self.all.get_mut(&id) {
            client.leaves = true;
        }
        Some(id)
    }

    /// Whether nobody waits for an answer.
    pub fn nothing_under_way(&self) -> bool {
        self.under_way == 0
    }

    /// Whether this client waits for one.
    pub fn waits(&self, connection: ConnectionId) -> bool {
        self.all.get(&connection).is_some_and(|client| client.under_way > 0)
    }

    /// Whether the client has a large request of this id under way: another would take its place in the books.
    pub fn is_in_use(&self, token: RequestToken) -> bool {
        self.heavy.contains_key(&token)
    }

    /// Books a request that holds so many bytes. Every one is booked out by [`Clients::answered`], refused
    /// ones included.
    pub fn begin(
        &mut self,
        room: &mut impl Room,
        token: RequestToken,
        bytes: usize,
    ) -> Option<Admission> {
        let connection = ConnectionId::from_u64(token.connection);
        let client = self.all.get_mut(&connection)?;
        self.came += 1;
        client.active_at = self.came;
        client.under_way += 1;
        let pause = client.under_way >= REQUESTS_PER_CONNECTION_MAX && !client.paused;
        client.paused |= pause;
        self.under_way += 1;
        let mut busy = None;
        if self.under_way > limits::REQUESTS_MAX && client.under_way > limits::REQUESTS_FEW {
            busy = Some("too many requests are under way");
        } else if bytes > REQUEST_SMALL_BYTES_MAX {
            if room.try_hold(connection, bytes) {
                self.heavy.insert(token, bytes);
            } else {
                busy = Some("requests under way hold all the memory that they may");
            }
        }
        Some(Admission { client: client.address, pause, busy })
    }

    /// Books an answer. Returns whether the client may be read again.
    pub fn answered(&mut self, room: &mut impl Room, token: RequestToken) -> bool {
        let connection = ConnectionId::from_u64(token.connection);
        self.forget(room, token);
        let Some(client) = self.all.get_mut(&connection) else { return false };
        client.active_at = self.came;
        if client.under_way > 0 {
            client.under_way -= 1;
            self.under_way -= 1;
        }
        let resume = client.paused && client.under_way <= REQUESTS_PER_CONNECTION_MAX / 2;
        client.paused &= !resume;
        resume
    }

    /// A request holds nothing any more.
    fn forget(&mut self, room: &mut impl Room, token: RequestToken) {
        if let Some(bytes) = self.heavy.remove(&token) {
            room.release(ConnectionId::from_u64(token.connection), bytes);
        }
    }

    /// Keeps a linearizable read until the core has confirmed it. `false`: the client has one under
    /// this id already.
    pub fn park(&mut self, token: RequestToken, request: ReadRequest) -> bool {
        let connection = ConnectionId::from_u64(token.connection);
        let Some(client) = self.all.get_mut(&connection) else { return true };
        client.parked.insert(token.request, request).is_none()
    }

    /// Takes a parked read out, unless its client is gone.
    pub fn unpark(&mut self, token: RequestToken) -> Option<(SocketAddr, ReadRequest)> {
        let client = self.all.get_mut(&ConnectionId::from_u64(token.connection))?;
        client.parked.remove(&token.request).map(|request| (client.address, request))
    }

    /// A plain read for the workers.
    pub fn read(&mut self, token: RequestToken, client: SocketAddr, request: ReadRequest) {
        let connection = ConnectionId::from_u64(token.connection);
        let read = ReadJob { token, client, request, granted: 0 };
        self.turns.push(origin_of(client.ip()), connection, read);
    }

    /// A worker is done with a read, whatever came of it.
    pub fn read_done(&mut self, room: &mut impl Room, token: RequestToken, granted: usize) {
        let connection = ConnectionId::from_u64(token.connection);
        self.handed = self.handed.saturating_sub(1);
        room.release(connection, read_bytes(granted));
        if let Some(client) = self.all.get_mut(&connection) {
            client.granted = client.granted.saturating_sub(granted);
            if granted == 0 {
                client.tried = client.tried.saturating_sub(1);
                client.tries_max = (2 * client.tries_max).min(limits::READS_PER_BATCH_MAX);
            }
        }
    }

    /// A value is longer than was granted: its read waits until `bytes` can be.
    pub fn hold(&mut self, room: &mut impl Room, read: ReadJob, bytes: usize) {
        let connection = ConnectionId::from_u64(read.token.connection);
        match self.all.get_mut(&connection) {
            None => return self.forget(room, read.token),
            Some(client) => client.tries_max = (client.tries_max / 4).max(1),
        }
        self.put_by(connection, read, bytes);
    }

    fn put_by(&mut self, connection: ConnectionId, read: ReadJob, bytes: usize) {
        let Some(client) = self.all.get_mut(&connection) else { return };
        if client.held.is_empty() {
            self.waiting.push_back(connection);
        }
        client.held.push_back(Held { read, bytes });
    }

    /// Takes what the workers are to do now: held reads and others by halves, as far as there are both.
    pub fn take_reads(&mut self, room: &mut impl Room) -> Vec<Job> {
        let mut reads = Vec::new();
        let free = self.handed_max.saturating_sub(self.handed);
        // Of an odd number the one more goes to either in turn: places may become free one by one.
        self.held_first ^= free % 2 == 1;
        let half = free / 2 + usize::from(free % 2 == 1 && self.held_first);
        self.take_held(room, half, &mut reads);
        while self.handed < self.handed_max
            && let Some(mut read) = self.turns.pop()
        {
            let connection = ConnectionId::from_u64(read.token.connection);
            let is_spent =
                |client: &Client| !client.held.is_empty() && client.tried >= client.tries_max;
            if self.all.get(&connection).is_some_and(is_spent) {
                // Very likely it is long, too, and would be read in vain.
                self.put_by(connection, read, self.value_bytes_max);
                continue;
            }
            if self.try_grant(room, connection, self.value_bytes_max) {
                read.granted = self.value_bytes_max;
            } else if let Some(client) = self.all.get_mut(&connection) {
                client.tried += 1;
            }
            self.handed += 1;
            reads.push(Job::Read(read));
        }
        let rest = self.handed_max.saturating_sub(self.handed);
        self.take_held(room, rest, &mut reads);
        reads
    }

    /// Takes up to so many held reads that can be granted what they need, of each client in its turn.
    fn take_held(&mut self, room: &mut impl Room, mut most: usize, reads: &mut Vec<Job>) {
        let mut refused = 0;
        while most > 0
            && refused < self.waiting.len()
            && let Some(connection) = self.waiting.pop_front()
        {
            let Some(bytes) = self.next_held_bytes(connection) else { continue };
            if self.try_grant(room, connection, bytes) {
                let client = self.all.get_mut(&connection);
                if let Some(Held { mut read, .. }) = client.and_then(|c| c.held.pop_front()) {
                    read.granted = bytes;
                    self.handed += 1;
                    most -= 1;
                    reads.push(Job::Read(read));
                }
                refused = 0;
            } else {
                refused += 1;
            }
            if self.next_held_bytes(connection).is_some() {
                self.waiting.push_back(connection);
            }
        }
    }

    fn next_held_bytes(&self, connection: ConnectionId) -> Option<usize> {
        self.all.get(&connection)?.held.front().map(|held| held.bytes)
    }

    fn try_grant(&mut self, room: &mut impl Room, connection: ConnectionId, bytes: usize) -> bool {
        let queued = room.queued_bytes(connection);
        let Some(client) = self.all.get_mut(&connection) else { return false };
        let has_nothing_else = client.granted == 0 && queued == 0;
        let leaves_room = queued + client.granted + bytes <= CLIENT_SEND_BYTES_PAUSE;
        if !(has_nothing_else || leaves_room) || !room.try_hold(connection, read_bytes(bytes)) {
            return false;
        }
        client.granted += bytes;
        true
    }
}

/// The longest value that a read with this grant may give back.
pub(super) fn value_bytes_granted(granted: usize) -> usize {
    granted.max(READ_SMALL_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::wire::message::GetRequest;
    use bytes::Bytes;

    const MIB: usize = 1024 * 1024;

    fn address() -> SocketAddr {
        "127.0.0.1:50000".parse().unwrap()
    }

    fn request() -> ReadRequest {
        let (key, none) = (Bytes::from_static(b"k"), Timestamp(0));
        let (timestamp, session, at) = (none, none, none);
        ReadRequest::Get(GetRequest { key, timestamp, session, linearizable: false, at })
    }

    fn with_clients(count: u64) -> (Clients, Vec<ConnectionId>) {
        let mut clients = Clients::new(MIB);
        let ids: Vec<_> = (0..count).map(ConnectionId::from_u64).collect();
        ids.iter().for_each(|id| clients.add(*id, address()));
        (clients, ids)
    }

    fn token(connection: ConnectionId, request: u64) -> RequestToken {
        RequestToken { connection: connection.to_u64(), request }
    }

    /// So many bytes wait for every client, and so much may be held for all.
    struct TestRoom {
        queued: usize,
        left: usize,
    }

    fn roomy() -> TestRoom {
        TestRoom { queued: 0, left: usize::MAX / 2 }
    }

    impl Room for TestRoom {
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

    fn queued(queued: usize) -> TestRoom {
        TestRoom { queued, ..roomy() }
    }

    fn grants(jobs: &[Job]) -> Vec<usize> {
        let grant = |job: &Job| match job {
            Job::Read(read) => read.granted,
            other => panic!("nobody asked for {other:?}"),
        };
        jobs.iter().map(grant).collect()
    }

    #[test]
    fn a_client_is_held_back_at_its_limit_and_goes_on_at_half_of_it() {
        let (mut clients, ids) = with_clients(1);
        for n in 1..=REQUESTS_PER_CONNECTION_MAX {
            let pause = n == REQUESTS_PER_CONNECTION_MAX;
            let admission = Admission { client: address(), pause, busy: None };
            assert_eq!(clients.begin(&mut roomy(), token(ids[0], 1), 0), Some(admission));
        }
        for n in (0..REQUESTS_PER_CONNECTION_MAX).rev() {
            let resume = clients.answered(&mut roomy(), token(ids[0], 1));
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
                assert_eq!(clients.begin(&mut roomy(), token(*id, n), 0).unwrap().busy, None);
            }
        }
        for n in 1..=limits::REQUESTS_FEW as u64 {
            let admission = clients.begin(&mut roomy(), token(*last, n), 0).unwrap();
            assert_eq!(admission.busy, None, "there is room for a few of everybody's");
        }
        assert!(clients.begin(&mut roomy(), token(*last, 0), 0).unwrap().busy.is_some());
        assert!(!clients.answered(&mut roomy(), token(*last, 0)));
        clients.remove(&mut roomy(), others[0]);
        assert_eq!(clients.begin(&mut roomy(), token(*last, 1), 0).unwrap().busy, None);
        for id in &ids {
            clients.remove(&mut roomy(), *id);
        }
        assert!(clients.nothing_under_way());
    }

    /// Four thousand clients of as many addresses that asked for nothing kept everybody else out.
    #[test]
    fn who_asks_for_nothing_makes_room_those_of_a_crowd_first() {
        let mut clients = Clients::new(MIB);
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 50000));
        let id = ConnectionId::from_u64;
        // A crowd of one address, and two others.
        (0..10).for_each(|n| clients.add(id(n), address(1)));
        (10..12).for_each(|n| clients.add(id(n), address(n as u8)));
        let ask = |clients: &mut Clients, n| {
            clients.begin(&mut roomy(), token(id(n), 1), 0);
        };
        ask(&mut clients, 0);
        ask(&mut clients, 1);
        clients.answered(&mut roomy(), token(id(1), 1));
        let mut order = Vec::new();
        let new = IpAddr::from([10, 0, 0, 99]);
        assert_eq!(clients.idle_to_go(&queued(1), new), None, "each is being sent an answer");
        while let Some(next) = clients.idle_to_go(&roomy(), new) {
            order.push(next.to_u64());
            clients.remove(&mut roomy(), next);
        }
        // Of the crowd until it has as few as anybody; whoever waits for an answer stays.
        assert_eq!(order, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1]);
        assert_eq!(clients.len(), 1);
        // Whoever has many, all of which wait for answers, gets nobody else's place, and nobody's is given twice.
        (20..30).for_each(|n| clients.add(id(n), address(1)));
        (20..30).for_each(|n| ask(&mut clients, n));
        clients.add(id(30), address(2));
        assert_eq!(clients.idle_to_go(&roomy(), address(1).ip()), None);
        assert_eq!(clients.idle_to_go(&roomy(), new), Some(id(30)));
        assert_eq!(clients.idle_to_go(&roomy(), new), None);
    }

    #[test]
    fn parked_reads_go_with_their_client() {
        let (mut clients, ids) = with_clients(1);
        assert!(clients.park(token(ids[0], 1), request()));
        assert!(!clients.park(token(ids[0], 1), request()), "the id is in use");
        assert!(clients.park(token(ids[0], 2), request()));
        assert_eq!(clients.unpark(token(ids[0], 1)), Some((address(), request())));
        assert_eq!(clients.unpark(token(ids[0], 1)), None);
        clients.remove(&mut roomy(), ids[0]);
        assert_eq!(clients.unpark(token(ids[0], 2)), None);
    }

    #[test]
    fn long_values_are_granted_as_far_as_the_send_queue_has_room() {
        let (mut clients, ids) = with_clients(1);
        (0..6).for_each(|n| clients.read(token(ids[0], n), address(), request()));
        let jobs = clients.take_reads(&mut roomy());
        assert_eq!(grants(&jobs), [MIB, MIB, MIB, MIB, 0, 0]);

        let mut jobs = jobs.into_iter();
        let mut next = || match jobs.next() {
            Some(Job::Read(read)) => read,
            other => panic!("{other:?}"),
        };
        // The first four are small after all; the last two were not granted and are long.
        for _ in 0..4 {
            let read = next();
            clients.read_done(&mut roomy(), read.token, read.granted);
        }
        for _ in 0..2 {
            let read = next();
            clients.read_done(&mut roomy(), read.token, read.granted);
            clients.hold(&mut roomy(), read, 3 * MIB);
        }
        assert!(clients.take_reads(&mut queued(2 * MIB)).is_empty(), "too much waits to be sent");
        assert_eq!(grants(&clients.take_reads(&mut queued(1))), [3 * MIB]);
        assert!(clients.take_reads(&mut roomy()).is_empty(), "the first is being read");
        clients.read_done(&mut roomy(), token(ids[0], 4), 3 * MIB);
        assert_eq!(grants(&clients.take_reads(&mut roomy())), [3 * MIB]);
    }

    /// Whoever asked for one thing waited for the thousands of reads that others had asked for before.
    #[test]
    fn each_address_and_each_of_its_clients_has_its_turn() {
        let (mut clients, ids) = with_clients(3);
        clients.handed_max = 2;
        let other: SocketAddr = "127.0.0.2:50000".parse().unwrap();
        clients.add(ConnectionId::from_u64(9), other);
        (0..100).for_each(|n| clients.read(token(ids[0], n), address(), request()));
        (0..3).for_each(|n| clients.read(token(ids[1], n), address(), request()));
        clients.read(token(ids[2], 0), address(), request());
        clients.read(token(ConnectionId::from_u64(9), 0), other, request());
        clients.remove(&mut roomy(), ids[2]);
        let mut order = Vec::new();
        for expected in [2, 2, 2, 2] {
            let jobs = clients.take_reads(&mut roomy());
            assert_eq!(jobs.len(), expected);
            assert!(clients.take_reads(&mut roomy()).is_empty(), "the workers have enough");
            for job in jobs {
                let Job::Read(read) = job else { panic!("a read") };
                clients.read_done(&mut roomy(), read.token, read.granted);
                order.push((read.token.connection, read.token.request));
            }
        }
        assert_eq!(order, [(0, 0), (9, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]);
        // What is held and what is new go by turns.
        let numbers = |jobs: Vec<Job>| -> Vec<(u64, u64)> {
            let number = |job: &Job| match job {
                Job::Read(read) => (read.token.connection, read.token.request),
                other => panic!("{other:?}"),
            };
            jobs.iter().map(number).collect()
        };
        let held = |n: u64| {
            let (token, client, request) = (token(ids[0], 1000 + n), address(), request());
            ReadJob { token, client, request, granted: 0 }
        };
        (0..5).for_each(|n| clients.hold(&mut roomy(), held(n), MIB));
        clients.read(token(ids[1], 3), address(), request());
        assert_eq!(numbers(clients.take_reads(&mut roomy())), [(0, 1000), (0, 4)]);
        // One whose reads were in vain tries one at a time without a grant, until that is not in vain.
        let mut full = queued(CLIENT_SEND_BYTES_PAUSE);
        clients.read_done(&mut full, token(ids[0], 1000), MIB);
        clients.read_done(&mut full, token(ids[0], 4), MIB);
        assert_eq!(numbers(clients.take_reads(&mut full)), [(1, 3), (0, 5)]);
        clients.read_done(&mut full, token(ids[1], 3), 0);
        assert!(clients.take_reads(&mut full).is_empty());
        clients.read_done(&mut full, token(ids[0], 5), 0);
        for n in [200, 201, 202] {
            clients.read(token(ids[0], n), address(), request());
        }
        assert_eq!(numbers(clients.take_reads(&mut full)), [(0, 200), (0, 201)]);
        for n in [200, 201] {
            clients.read_done(&mut full, token(ids[0], n), 0);
        }
        // Where places become free one by one, each has its turn.
        clients.handed_max = 1;
        clients.read(token(ids[1], 10), address(), request());
        clients.read(token(ids[1], 11), address(), request());
        let mut order = Vec::new();
        for _ in 0..4 {
            let one = numbers(clients.take_reads(&mut roomy()))[0];
            let token = RequestToken { connection: one.0, request: one.1 };
            clients.read_done(&mut roomy(), token, MIB);
            order.push(one);
        }
        let new = order.iter().filter(|(_, request)| *request < 1000).count();
        assert_eq!(new, 2, "held ones and new ones: {order:?}");
    }

    #[test]
    fn a_value_longer_than_any_room_is_read_when_nothing_else_is() {
        let (mut clients, ids) = with_clients(1);
        clients.read(token(ids[0], 1), address(), request());
        let Some(Job::Read(read)) = clients.take_reads(&mut roomy()).pop() else {
            panic!("one read")
        };
        clients.read_done(&mut roomy(), read.token, read.granted);
        clients.hold(&mut roomy(), read, 2 * CLIENT_SEND_BYTES_PAUSE);
        assert!(clients.take_reads(&mut queued(1)).is_empty());
        assert_eq!(grants(&clients.take_reads(&mut roomy())), [2 * CLIENT_SEND_BYTES_PAUSE]);
    }

    #[test]
    fn the_bytes_of_all_clients_are_limited_and_come_back_from_gone_ones() {
        let count = 3;
        let mut room = TestRoom { queued: 0, left: count * read_bytes(MIB) };
        let (mut clients, ids) = with_clients(count as u64 + 1);
        for id in &ids {
            clients.read(token(*id, 1), address(), request());
        }
        assert_eq!(grants(&clients.take_reads(&mut room)), [MIB, MIB, MIB, 0]);
        clients.remove(&mut room, ids[0]);
        clients.read_done(&mut room, token(ids[0], 1), MIB);
        clients.read(token(ids[count], 2), address(), request());
        assert_eq!(grants(&clients.take_reads(&mut room)), [MIB]);
    }

    #[test]
    fn what_requests_hold_is_counted_until_they_are_answered() {
        let mut room = TestRoom { queued: 0, left: 2 * MIB };
        let (mut clients, ids) = with_clients(2);
        let busy = |admission: Option<Admission>| admission.unwrap().busy.is_some();
        assert!(!busy(clients.begin(&mut room, token(ids[0], 1), MIB)));
        assert!(!busy(clients.begin(&mut room, token(ids[0], 2), REQUEST_SMALL_BYTES_MAX)));
        assert_eq!(room.left, MIB, "what is small is bounded by its number");
        assert!(clients.is_in_use(token(ids[0], 1)) && !clients.is_in_use(token(ids[0], 2)));
        assert!(!busy(clients.begin(&mut room, token(ids[1], 1), MIB)));
        assert!(busy(clients.begin(&mut room, token(ids[1], 2), MIB)));
        clients.answered(&mut room, token(ids[1], 2));
        clients.remove(&mut room, ids[0]);
        assert_eq!(room.left, 0, "it is with the core, whether its client is there or not");
        clients.answered(&mut room, token(ids[0], 1));
        assert_eq!(room.left, MIB);
    }
    #[test]
    fn what_reads_hold_that_waited_here_goes_with_their_client() {
        let mut room = TestRoom { queued: 0, left: 9 * MIB };
        let (mut clients, ids) = with_clients(2);
        for (n, id) in (1..).zip([ids[0], ids[0], ids[1]]) {
            clients.begin(&mut room, token(id, n), MIB);
        }
        assert!(clients.park(token(ids[0], 1), request()));
        let held = |n, id| {
            let (token, client, request) = (token(id, n), address(), request());
            ReadJob { token, client, request, granted: 0 }
        };
        clients.hold(&mut room, held(2, ids[0]), MIB);
        assert_eq!(room.left, 6 * MIB);
        clients.remove(&mut room, ids[0]);
        assert_eq!(room.left, 8 * MIB);
        // The worker comes back when nobody is there any more.
        clients.remove(&mut room, ids[1]);
        clients.hold(&mut room, held(3, ids[1]), MIB);
        assert_eq!(room.left, 9 * MIB);
    }
}
