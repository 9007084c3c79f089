//! The client library: one [`Client`] for a group of servers.
//!
//! What it promises: no caller of one client ever gets a value older than one that client has seen
//! (SPEC A4), a write is applied once however often it had to be sent, and every call, or next row
//! of a long read, ends within its time. What it needs: some of the servers' addresses; who leads
//! is no business of a client.
//!
//! What it leaves out: finding servers by name, and encryption.
//!
//! The examples of this module run as tests, each against three servers that
//! [`LocalGroup`](crate::LocalGroup) starts in a temporary folder. Lines for that are hidden
//! where they are not the point.

// How it is cut: `core` is a state machine that decides everything about calls and connections,
// `driver` is the thread that gives it an event loop, `call` stands between it and whoever waits.
// `seen` remembers timestamps; `writes`, `reads`, `rows` and `txn` are the operations, `locks` and
// `election` what is made of them and of `lease` by the recipe of `contender`; each is written
// once, as an `async` body, of which `faces` makes two: `Client` blocks, `AsyncClient`
// (`asynchronous`, feature `async`) needs an executor and no particular one. `submit` reports on
// the client's thread, for the console. `greeting` and `dial` are for others that speak to a
// server, or to a share, too.

#[cfg(feature = "async")]
mod asynchronous;
mod call;
#[cfg(not(feature = "internals"))]
pub(crate) mod contender;
#[cfg(feature = "internals")]
pub mod contender;
mod core;
pub(crate) mod dial;
mod driver;
mod election;
mod error;
mod faces;
pub(crate) mod greeting;
mod inbox;
pub(crate) mod latch;
mod lease;
mod locks;
mod reads;
mod rows;
mod seen;
#[cfg(test)]
mod simulation;
mod submit;
pub(crate) mod sync;
mod timing;
pub(crate) mod transport;
mod txn;
mod txn_builder;
mod watch;
mod writes;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::call::CallFuture;
use self::core::{CallSpec, CoreConfig, Retry, Target, Verdict, judge_error, judge_unexpected};
use self::driver::Driver;
use self::faces::calls;
use self::lease::LeaseKeeper;
use self::seen::Seen;
use self::submit::Gate;
use self::sync::lock;
use crate::limits;
use crate::model::{self, InvalidKey, RequestId};
use crate::net::LocalPort;
use crate::wire::message::{Reply, Request};

#[cfg(feature = "async")]
pub use self::asynchronous::AsyncClient;
#[cfg(feature = "grpc")]
pub(crate) use self::driver::DrivenClient;
#[cfg(feature = "async")]
pub use self::election::AsyncElection;
pub use self::election::{Election, Leader, Leaders};
pub use self::error::{ClientError, ServerFailure};
pub use self::lease::{Lease, LeaseGranted};
#[cfg(feature = "async")]
pub use self::locks::AsyncLock;
#[cfg(feature = "grpc")]
pub(crate) use self::locks::entered_with;
pub use self::locks::{Lock, LockOptions};
pub use self::reads::ReadOptions;
#[cfg(feature = "async")]
pub use self::rows::AsyncRows;
pub use self::rows::{KeyRange, Rows};
pub use self::seen::Causality;
pub use self::submit::{Ask, Event};
pub use self::timing::Timing;
pub use self::txn::{Incremented, PutSequentialOk, TxnDone, TxnOutput};
pub use self::txn_builder::{Compared, Operand};
pub use self::watch::{Watch, WatchEvent, WatchOptions, WatchProgress};
pub use self::writes::{ConditionalPut, Conflict, Written, WrittenMany};
pub use crate::model::{
    ClientId, ClusterId, Comparison, Condition, Effect, Facts, History, LeaseId, LeaseName,
    LeaseShown, NodeId, Relation, Row, Test, Timestamp, Txn, TxnKeys, TxnOp, Version,
};
pub use crate::wire::message::{Role, ServerStatus};

/// Keys whose timestamps a client remembers one by one; the oldest are merged into one timestamp.
const CLIENT_SEEN_KEYS_MAX: usize = 64 * 1024;

/// A client of a group of servers.
///
/// ```
/// use acervo::Client;
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let servers = group.servers();
/// // Some of the group's servers, or all: those that `acervo server --servers` names.
/// let client = Client::connect(servers)?;
/// let written = client.put("title", "Dom Casmurro")?;
///
/// let read = client.get("title")?;
/// assert_eq!(read.value(), Some(&b"Dom Casmurro"[..]));
/// assert!(read.timestamp() >= Some(written.timestamp));
/// assert_eq!(client.get("author")?.value(), None, "nobody has written it");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Threads
///
/// Any number of threads may call one client at once: by reference, or each a clone of its own.
/// Clones share everything: connections, timestamps, the count of writes. Requests of several
/// threads travel together, so a program needs one client and no pool of them.
///
/// ```
/// use std::thread;
/// # use acervo::client::{Client, ClientError};
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let client = Client::connect(group.servers())?;
/// thread::scope(|scope| {
///     let shelves: Vec<_> = (0..4)
///         .map(|shelf| {
///             let client = &client;
///             scope.spawn(move || client.put(format!("shelf/{shelf}"), "empty"))
///         })
///         .collect();
///     shelves.into_iter().try_for_each(|shelf| shelf.join().unwrap().map(drop))
/// })?;
/// // What one thread has written, or seen, no other reads an older state than.
/// assert_eq!(client.range("shelf/", "shelf/~", Default::default())?.count(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// Whatever another attempt or another server can cure has been tried when a call fails, within
/// [`ClientBuilder::request_timeout`]. The variants of [`ClientError`] tell what is left to do:
///
/// ```
/// use std::time::Duration;
/// use acervo::client::{Client, ClientError, Timing};
///
/// /// What a program may say to whoever uses it.
/// fn advice(error: &ClientError) -> &'static str {
///     match error {
///         ClientError::Unreachable { .. } => "no server is up: check the network",
///         ClientError::NoMajority { .. } => "too few servers are up: try later",
///         // Perhaps it was written. Writing the same once more does no harm here.
///         ClientError::TimedOut { .. } => "no answer in time: try again",
///         ClientError::ValueTooLong(_) | ClientError::Invalid { .. } => "that can never work",
///         _ => "see the message",
///     }
/// }
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let servers = group.servers();
/// let timing = Timing { reach_timeout: Duration::from_millis(200), ..Timing::default() };
/// let client = Client::builder(servers).timing(timing).build()?;
///
/// let nine_mib = vec![0; 9 << 20];
/// assert_eq!(advice(&client.put("scan", nine_mib).unwrap_err()), "that can never work");
///
/// group.stop()?;
/// let error = client.get("title").unwrap_err();
/// assert_eq!(advice(&error), "no server is up: check the network");
/// // Every error is a sentence, too.
/// assert!(error.to_string().starts_with("no server could be reached (127.0.0.1:"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// When its calls end at the latest, whatever their own time; on the driver's clock.
    until: Option<Duration>,
    /// Is asked before an answer is kept that somebody has read.
    room: Option<Room>,
}

/// Whether an answer of so many bytes may be kept.
type Room = Arc<dyn Fn(usize) -> bool + Send + Sync>;

struct Inner {
    servers: Arc<[SocketAddr]>,
    driver: Driver,
    request_timeout: Duration,
    submits: Arc<Gate>,
    seen: Arc<Mutex<Seen>>,
    leases: LeaseKeeper,
}

/// A server and what it says of itself, or why it does not; `None` when it has not answered in
/// time.
pub type StatusAnswer = (SocketAddr, Option<Result<ServerStatus, ClientError>>);

/// A write that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOk {
    /// The version it made.
    pub timestamp: Timestamp,
    /// The server that answered.
    pub server: SocketAddr,
}

/// A read that is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// The value with its version; `None` when the key does not exist.
    pub found: Option<Version>,
    /// The server that answered.
    pub server: SocketAddr,
}

impl Got {
    /// The value, if the key exists.
    pub fn value(&self) -> Option<&[u8]> {
        self.found.as_ref().map(|version| &version.value[..])
    }

    /// The version of the value, if the key exists.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.found.as_ref().map(|version| version.timestamp)
    }
}

/// Sets up a [`Client`].
///
/// ```
/// use std::time::Duration;
/// use acervo::client::{Causality, Client};
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let servers = group.servers();
/// let client = Client::builder(servers)
///     .request_timeout(Duration::from_secs(5))
///     .causality(Causality::PerKey)
///     .build()?;
/// client.put("title", "Esaú e Jacó")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    servers: Vec<SocketAddr>,
    request_timeout: Duration,
    causality: Causality,
    timing: Timing,
    session: Option<String>,
    client: Option<ClientId>,
    seed: Option<u64>,
    local: Option<(SocketAddr, LocalPort)>,
}

impl ClientBuilder {
    /// The whole time of a request, retries included; 60 seconds unless set, at most a day.
    pub fn request_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.request_timeout = timeout.min(limits::CLIENT_REQUEST_TIMEOUT_MAX);
        self
    }

    /// How far the promise never to read backwards reaches; a session unless set.
    pub fn causality(mut self, causality: Causality) -> ClientBuilder {
        self.causality = causality;
        self
    }

    /// Time-outs below a whole request's, which watches have, too; each at most a day.
    pub fn timing(mut self, timing: Timing) -> ClientBuilder {
        let cap = |timeout: Duration| {
            timeout.clamp(Duration::from_millis(1), limits::CLIENT_REQUEST_TIMEOUT_MAX)
        };
        self.timing = Timing {
            connect_timeout: cap(timing.connect_timeout),
            hedge_delay: cap(timing.hedge_delay),
            ping_interval: cap(timing.ping_interval),
            silence_timeout: cap(timing.silence_timeout),
            reach_timeout: cap(timing.reach_timeout),
        };
        self
    }

    /// Continues the session of another client: its [`Client::session_token`].
    pub fn session(mut self, token: impl Into<String>) -> ClientBuilder {
        self.session = Some(token.into());
        self
    }

    /// The client's identity, by which servers recognise a write sent twice. Drawn at random unless
    /// set; two clients with the same one lose each other's writes.
    pub fn client_id(mut self, client: ClientId) -> ClientBuilder {
        self.client = Some(client);
        self
    }

    /// Makes every random choice (servers, pauses, identity) follow from a seed, for tests.
    pub fn seed(mut self, seed: u64) -> ClientBuilder {
        self.seed = Some(seed);
        self
    }

    /// One of the servers is in this process, and listens on this port within it, too.
    #[cfg(feature = "grpc")]
    pub(crate) fn local(mut self, server: SocketAddr, port: LocalPort) -> ClientBuilder {
        self.local = Some((server, port));
        self
    }

    /// Builds the client. Nothing is dialled before the first request.
    ///
    /// # Errors
    /// [`ClientError::BadServerList`] and [`ClientError::BadSessionToken`].
    pub fn build(self) -> Result<Client, ClientError> {
        let with_thread = |servers, config, local| Ok((Driver::new(servers, config, local), ()));
        self.build_with(with_thread).map(|(client, ())| client)
    }

    /// Builds a client without a thread, and what a task is to give turns to in its place.
    ///
    /// # Errors
    /// Those of [`ClientBuilder::build`]; the system refuses an event loop.
    #[cfg(feature = "grpc")]
    pub(crate) fn build_driven(self) -> Result<(Client, DrivenClient), ClientError> {
        self.build_with(Driver::driven)
    }

    fn build_with<T>(
        self,
        make: impl FnOnce(
            Arc<[SocketAddr]>,
            CoreConfig,
            Option<(SocketAddr, LocalPort)>,
        ) -> Result<(Driver, T), ClientError>,
    ) -> Result<(Client, T), ClientError> {
        let count = self.servers.len();
        let repeated = (1..count).any(|at| self.servers[..at].contains(&self.servers[at]));
        if count == 0 || count > limits::SERVERS_MAX || repeated {
            return Err(ClientError::BadServerList(count));
        }
        let session = self.session.as_deref().map_or(Ok(None), parse_token)?;
        let mut random = match self.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => rand::make_rng(),
        };
        let client = self.client.unwrap_or_else(|| ClientId(random.random()));
        let config = CoreConfig { timing: self.timing, client, seed: random.random() };
        let servers: Arc<[SocketAddr]> = self.servers.into();
        let seen = Seen::new(self.causality, CLIENT_SEEN_KEYS_MAX, session);
        let (driver, beside) = make(Arc::clone(&servers), config, self.local)?;
        let inner = Inner {
            driver,
            servers,
            request_timeout: self.request_timeout,
            submits: Arc::new(Gate::new(limits::CLIENT_SUBMITS_MAX)),
            seen: Arc::new(Mutex::new(seen)),
            leases: LeaseKeeper::default(),
        };
        Ok((Client { inner: Arc::new(inner), until: None, room: None }, beside))
    }
}

impl Client {
    /// A client with the defaults. Nothing is dialled before the first request.
    ///
    /// # Errors
    /// [`ClientError::BadServerList`].
    pub fn connect(servers: impl IntoIterator<Item = SocketAddr>) -> Result<Client, ClientError> {
        Client::builder(servers).build()
    }

    /// Sets up a client of these servers.
    pub fn builder(servers: impl IntoIterator<Item = SocketAddr>) -> ClientBuilder {
        ClientBuilder {
            servers: servers.into_iter().collect(),
            request_timeout: limits::CLIENT_REQUEST_TIMEOUT_DEFAULT,
            causality: Causality::default(),
            timing: Timing::default(),
            session: None,
            client: None,
            seed: None,
            local: None,
        }
    }

    /// The servers this client knows.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.inner.servers.to_vec()
    }

    /// Asks all servers at once to describe themselves, in the order of [`Client::servers`]. When
    /// one has answered, the others have `grace` left, so that nobody waits long for one that is
    /// frozen: of one that is late there is no answer.
    ///
    /// # Errors
    /// There is no thread. Of each server, those of [`Client::status`].
    pub fn status_of_each(&self, grace: Duration) -> Result<Vec<StatusAnswer>, ClientError> {
        if call::is_driver() {
            return Err(ClientError::WouldBlock);
        }
        let mut statuses: Vec<StatusAnswer> =
            self.inner.servers.iter().map(|server| (*server, None)).collect();
        let (answers, answered) = mpsc::channel();
        for index in 0..statuses.len() {
            let (client, answers) = (self.clone(), answers.clone());
            self.inner.driver.spawn(async move {
                let target = Target::Server(index);
                let status = client.status_by(target, Retry::EachServerOnce).await;
                // Nobody listens any more to one that is late.
                let _ = answers.send((index, status));
            })?;
        }
        drop(answers);
        let mut until: Option<Instant> = None;
        loop {
            let answer = match until {
                None => answered.recv().ok(),
                Some(until) => {
                    answered.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
                }
            };
            let Some((index, status)) = answer else { return Ok(statuses) };
            if status.is_ok() && until.is_none() {
                until = Instant::now().checked_add(grace);
            }
            statuses[index].1 = Some(status);
        }
    }

    /// Says who leads, if anybody is known to: writes are sent there first, which saves them a hop.
    /// A hint and no more: when it is wrong, or the server is gone, writes go their usual way.
    pub fn hint_leader(&self, leader: Option<SocketAddr>) {
        let index = leader.and_then(|server| self.index_of(server));
        self.inner.driver.hint_leader(index);
    }

    /// A clone whose calls end at `deadline` at the latest, also when a call's own time
    /// ([`ClientBuilder::request_timeout`]) would go on.
    pub fn until(&self, deadline: Instant) -> Client {
        let deadline = self.inner.driver.time(deadline);
        let until = Some(self.until.map_or(deadline, |until| until.min(deadline)));
        Client { until, ..self.clone() }
    }

    /// A clone whose reads ask `room`, when an answer has come, whether its keys and values may be
    /// kept, which are so many bytes; if not, they are dropped at once and the read ends with
    /// [`ClientError::NoRoom`]. For a process that many make read, and that must not hold whatever
    /// servers have for them.
    ///
    /// `room` is called on the client's own thread, which it must not block.
    ///
    /// ```
    /// use acervo::client::ClientError;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let client = acervo::Client::connect(group.servers())?;
    /// client.put("title", "Memorial de Aires")?;
    /// let small = client.with_room(|bytes| bytes <= 10);
    /// assert_eq!(small.get("title").unwrap_err(), ClientError::NoRoom(17));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_room(&self, room: impl Fn(usize) -> bool + Send + Sync + 'static) -> Client {
        Client { room: Some(Arc::new(room)), ..self.clone() }
    }

    /// What this client has seen, as text for another client, here or in another process: with it,
    /// that client reads nothing older. See [`ClientBuilder::session`].
    ///
    /// ```
    /// use acervo::Client;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let servers = group.servers();
    /// // One process writes, and passes its token on: in a message, a cookie, a variable.
    /// let writer = Client::connect(servers.clone())?;
    /// let written = writer.put("order/1", "paid")?;
    /// let token = writer.session_token();
    ///
    /// // Another one goes on from there, whichever servers it knows.
    /// for server in servers {
    ///     let reader = Client::builder([server]).session(&token).build()?;
    ///     assert!(reader.get("order/1")?.timestamp() >= Some(written.timestamp));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn session_token(&self) -> String {
        // Of a client that has seen nothing, the time before every write.
        format!("s1-{:016x}", lock(&self.inner.seen).session().unwrap_or(Timestamp::ZERO).0)
    }

    /// Takes over what the client that gave `token` has seen, in addition to what this one has.
    ///
    /// # Errors
    /// [`ClientError::BadSessionToken`].
    pub fn with_session(self, token: &str) -> Result<Client, ClientError> {
        lock(&self.inner.seen).raise_session(parse_token(token)?);
        Ok(self)
    }
}

calls! {
    /// Asks one server to describe itself. No other server is asked instead.
    ///
    /// # Errors
    /// [`ClientError::UnknownServer`], [`ClientError::Unreachable`] with that server alone,
    /// [`ClientError::TimedOut`], [`ClientError::Unavailable`].
    fn status(client, server: SocketAddr) -> ServerStatus {
        let index = client.index_of(server).ok_or(ClientError::UnknownServer(server))?;
        client.status_by(Target::Server(index), Retry::EachServerOnce).await
    }

    /// Asks any server to describe itself: healthy ones first, until one answers.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::TimedOut`].
    fn any_status(client) -> ServerStatus {
        client.status_by(Target::AnyServer, Retry::UntilDeadline).await
    }
}

fn parse_token(token: &str) -> Result<Option<Timestamp>, ClientError> {
    let bad = || ClientError::BadSessionToken(crate::text::escape(token.as_bytes()).to_string());
    let digits = token.strip_prefix("s1-").ok_or_else(bad)?;
    if digits.len() != 16 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let seen = i64::from_str_radix(digits, 16).map(Timestamp).map_err(|_| bad())?;
    Ok((seen > Timestamp::ZERO).then_some(seen))
}

pub(crate) fn check_key(key: &[u8]) -> Result<Bytes, ClientError> {
    model::check_key(key)?;
    Ok(Bytes::copy_from_slice(key))
}

impl From<InvalidKey> for ClientError {
    fn from(invalid: InvalidKey) -> ClientError {
        match invalid {
            InvalidKey::Empty => ClientError::KeyEmpty,
            InvalidKey::TooLong(length) => ClientError::KeyTooLong(length),
        }
    }
}

fn check_keys(keys: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Vec<Bytes>, ClientError> {
    keys.into_iter().map(|key| check_key(key.as_ref())).collect()
}

pub(crate) fn check_value(value: &[u8]) -> Result<Bytes, ClientError> {
    if value.len() > limits::VALUE_BYTES_MAX {
        return Err(ClientError::ValueTooLong(value.len()));
    }
    Ok(Bytes::copy_from_slice(value))
}

/// Bytes of the keys and values that a read is answered with.
fn read_bytes(reply: &Reply) -> Option<usize> {
    let value = |found: &Option<Version>| found.as_ref().map_or(0, |found| found.value.len());
    match reply {
        Reply::GetOk { found, .. } => Some(value(found)),
        Reply::PageOk { rows, .. } => {
            Some(rows.iter().map(|row| row.key.len() + value(&row.found)).sum())
        }
        Reply::TxnOk { answer, .. } => Some(answer.bytes()),
        _ => None,
    }
}

impl Client {
    /// When a call that begins now ends at the latest, on the driver's clock.
    fn deadline(&self) -> Duration {
        let own = self.inner.driver.now() + self.inner.request_timeout;
        self.until.map_or(own, |until| until.min(own))
    }

    /// Is done when it is that time.
    async fn time_is(&self, time: Duration) -> Result<(), ClientError> {
        loop {
            let now = self.inner.driver.now();
            if now >= time {
                return Ok(());
            }
            // A pause ends after half of its time, or later.
            let left = (time - now).max(Duration::from_millis(1));
            self.inner.driver.pause(left, now + left).await?;
        }
    }

    fn index_of(&self, server: SocketAddr) -> Option<usize> {
        self.inner.servers.iter().position(|known| *known == server)
    }

    /// Sends what `build` makes until `judge` is content with a reply. `build` is called anew for
    /// every attempt, so that a retry asks with what is known by then; what it returns beside the
    /// request, of about so many bytes, is handed to `judge` with that attempt's reply. Both run on
    /// the client's thread, and must not block.
    fn request<T: Send + 'static, C: Send + 'static>(
        &self,
        target: Target,
        deadline: Duration,
        retry: Retry,
        request_bytes: usize,
        build: impl FnMut(Option<RequestId>) -> (Request, C) + Send + 'static,
        mut judge: impl FnMut(SocketAddr, C, Reply) -> Verdict<T> + Send + 'static,
    ) -> CallFuture<T> {
        let inner = &*self.inner;
        let timeout = match self.until {
            None => inner.request_timeout,
            Some(_) => {
                let left = deadline.saturating_sub(inner.driver.now());
                // It is shown to people.
                Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
            }
        };
        let room = self.room.clone();
        let judge = move |server, context, reply: Reply| match (&room, read_bytes(&reply)) {
            (Some(room), Some(bytes)) if !room(bytes) => Verdict::Fail(ClientError::NoRoom(bytes)),
            _ => judge(server, context, reply),
        };
        let is_write = target == Target::LeaderFirst;
        let spec = CallSpec { target, retry, is_write, request_bytes, deadline, timeout };
        inner.driver.call(spec, build, judge)
    }

    async fn status_by(&self, target: Target, retry: Retry) -> Result<ServerStatus, ClientError> {
        let build = |_| (Request::Status, ());
        let judge = |server, (), reply| match reply {
            Reply::StatusOk(status) => Verdict::Done(*status),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        };
        self.request(target, self.deadline(), retry, 0, build, judge).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        Client::connect(["127.0.0.1:1".parse().unwrap()]).unwrap()
    }

    #[test]
    fn a_session_token_carries_over_and_never_lowers() {
        let one = client().with_session("s1-000000000000002a").unwrap();
        assert_eq!(one.session_token(), "s1-000000000000002a");
        let one = one.with_session("s1-0000000000000001").unwrap();
        assert_eq!(one.session_token(), "s1-000000000000002a");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let long = "s1-00000000000000000";
        for token in ["", "s1-", "s2-000000000000002a", "s1-2a", "s1-ffffffffffffffff", long] {
            let error = client().with_session(token).err();
            assert_eq!(error, Some(ClientError::BadSessionToken(token.to_owned())));
        }
    }

    #[test]
    fn a_server_list_is_checked() {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let lists =
            [vec![], vec![address(1), address(2), address(1)], (1..=10).map(address).collect()];
        for list in lists {
            let count = list.len();
            assert_eq!(Client::connect(list).err(), Some(ClientError::BadServerList(count)));
        }
    }

    #[test]
    fn keys_and_values_that_no_server_takes_are_refused_here() {
        assert_eq!(client().get("").err(), Some(ClientError::KeyEmpty));
        let long = vec![0; limits::KEY_BYTES_MAX + 1];
        assert_eq!(client().del(&long).err(), Some(ClientError::KeyTooLong(long.len())));
        let long = vec![0; limits::VALUE_BYTES_MAX + 1];
        assert_eq!(client().put("k", &long).err(), Some(ClientError::ValueTooLong(long.len())));
    }
}
