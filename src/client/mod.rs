//! The client library: one [`Client`] for a group of servers.
//!
//! What it promises: no caller of one client ever gets a value older than one that client has seen
//! (SPEC A4), a write is applied once however often it had to be sent, and every call ends within its
//! time. What it needs: some of the servers' addresses; who leads is no business of a client.
//!
//! How it is cut: `transport` reads and writes messages, `connection` is one pipelined connection and
//! its reading thread, `pool` keeps one for each server, `health` knows which servers are worth asking,
//! `attempts` decides who is asked and how often, `call` does it, `seen` remembers timestamps, `sequence` numbers the writes; `writes`, `reads` and `rows` are the
//! operations, on them `submit` and [`repl`], the console.
//!
//! What it leaves out: async interfaces, finding servers by name, and encryption.
//!
//! The examples of this module run as tests, each against three servers that
//! [`LocalGroup`](crate::LocalGroup) starts in a temporary folder. Lines for that are hidden
//! where they are not the point.

mod attempts;
mod call;
mod cancel;
pub(crate) mod connection;
mod error;
mod health;
mod pool;
mod reads;
mod rows;
mod seen;
mod sequence;
mod submit;
pub(crate) mod sync;
pub(crate) mod transport;
mod writes;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::attempts::{Verdict, judge_error, judge_unexpected};
use self::call::{Retry, Target};
use self::health::Health;
use self::pool::Pool;
use self::seen::Seen;
use self::sequence::{Gate, Sequencer};
use self::sync::lock;
use crate::limits;
use crate::wire::message::{Reply, Request};

pub use self::error::{ClientError, ServerFailure};
pub use self::reads::ReadOptions;
pub use self::rows::{KeyRange, Rows};
pub use self::submit::{Ask, Event};
pub use self::writes::{Version, Written, WrittenMany};
pub use crate::model::{ClientId, ClusterId, Effect, History, NodeId, Row, Timestamp};
pub use crate::wire::message::{Role, ServerStatus};
pub use cancel::CancellationToken;

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
/// assert_eq!(read.value.as_deref(), Some(&b"Dom Casmurro"[..]));
/// assert!(read.timestamp >= written.timestamp);
/// assert_eq!(client.get("author")?.value, None, "nobody has written it");
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
}

struct Inner {
    servers: Arc<[SocketAddr]>,
    pool: Pool,
    /// All times that the health and the attempts are told are since then.
    started: Instant,
    health: Arc<Mutex<Health>>,
    timing: Timing,
    request_timeout: Duration,
    gate: Gate,
    submits: Arc<Gate>,
    sequencer: Sequencer,
    seen: Mutex<Seen>,
    random: Mutex<StdRng>,
    /// The place of a server among those known; of none when nobody is thought to lead.
    thought_leader: AtomicUsize,
}

/// How far the promise never to read backwards reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Causality {
    /// Over all keys: a server answers only when it has applied everything this client has seen.
    #[default]
    Session,
    /// Over each key by itself, as the console shows it.
    PerKey,
}

/// The client's time-outs below a whole request's. The defaults are those of
/// [`limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// To establish a connection, greeting included.
    pub connect_timeout: Duration,
    /// How long a server may say nothing, or owe the answer to a read, before another is asked, too. A write waits
    /// twice as long for a server to greet, and stays with one that has greeted as long as anything is heard of it,
    /// PINGs included, within six times as long.
    pub hedge_delay: Duration,
    /// How often a server that says nothing while it owes something is asked with PING.
    pub ping_interval: Duration,
    /// And before its connection is given up and the request tried elsewhere.
    pub silence_timeout: Duration,
    /// With no server heard for this long, requests fail.
    pub reach_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            connect_timeout: limits::CLIENT_CONNECT_TIMEOUT,
            hedge_delay: limits::CLIENT_HEDGE_DELAY,
            ping_interval: limits::CLIENT_PING_INTERVAL,
            silence_timeout: limits::CLIENT_SILENCE_TIMEOUT,
            reach_timeout: limits::CLIENT_REACH_TIMEOUT,
        }
    }
}

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
    /// The value; `None` when the key does not exist.
    pub value: Option<Bytes>,
    /// The value's version; zero when the key does not exist.
    pub timestamp: Timestamp,
    /// The server that answered.
    pub server: SocketAddr,
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

    /// Time-outs below a whole request's; each at most a day.
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

    /// Builds the client. Nothing is dialled before the first request.
    ///
    /// # Errors
    /// [`ClientError::BadServerList`] and [`ClientError::BadSessionToken`].
    pub fn build(self) -> Result<Client, ClientError> {
        let count = self.servers.len();
        let repeated = (1..count).any(|at| self.servers[..at].contains(&self.servers[at]));
        if count == 0 || count > limits::SERVERS_MAX || repeated {
            return Err(ClientError::BadServerList(count));
        }
        let session = self.session.as_deref().map_or(Ok(Timestamp::ZERO), parse_token)?;
        let mut random = match self.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => rand::make_rng(),
        };
        let client = self.client.unwrap_or_else(|| ClientId(random.random()));
        let inner = Inner {
            pool: Pool::new(&self.servers, self.timing),
            health: Arc::new(Mutex::new(Health::new(count))),
            servers: self.servers.into(),
            started: Instant::now(),
            timing: self.timing,
            request_timeout: self.request_timeout,
            gate: Gate::new(limits::CLIENT_REQUESTS_MAX),
            submits: Arc::new(Gate::new(limits::CLIENT_SUBMITS_MAX)),
            sequencer: Sequencer::new(client, limits::SESSION_REPLIES_MAX as u64),
            seen: Mutex::new(Seen::new(self.causality, limits::CLIENT_SEEN_KEYS_MAX, session)),
            random: Mutex::new(random),
            thought_leader: AtomicUsize::new(usize::MAX),
        };
        Ok(Client { inner: Arc::new(inner) })
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
        }
    }

    /// The servers this client knows.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.inner.servers.to_vec()
    }

    /// Asks one server to describe itself. No other server is asked instead.
    ///
    /// # Errors
    /// [`ClientError::UnknownServer`], [`ClientError::Unreachable`] with that server alone,
    /// [`ClientError::TimedOut`], [`ClientError::Unavailable`].
    pub fn status(&self, server: SocketAddr) -> Result<ServerStatus, ClientError> {
        let index = self.inner.index_of(server).ok_or(ClientError::UnknownServer(server))?;
        self.inner.status(Target::Server(index), Retry::EachServerOnce)
    }

    /// Asks any server to describe itself: healthy ones first, until one answers.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::TimedOut`].
    pub fn any_status(&self) -> Result<ServerStatus, ClientError> {
        self.inner.status(Target::AnyServer, Retry::UntilDeadline)
    }

    /// Says who leads, if anybody is known to: writes are sent there first, which saves them a hop. A hint and
    /// no more: when it is wrong, or the server is gone, writes go their usual way.
    pub fn hint_leader(&self, leader: Option<SocketAddr>) {
        let index = leader.and_then(|server| self.inner.index_of(server));
        self.inner.thought_leader.store(index.unwrap_or(usize::MAX), Ordering::Relaxed);
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
    ///     assert!(reader.get("order/1")?.timestamp >= written.timestamp);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn session_token(&self) -> String {
        format!("s1-{:016x}", lock(&self.inner.seen).session().0)
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

fn parse_token(token: &str) -> Result<Timestamp, ClientError> {
    let bad = || ClientError::BadSessionToken(crate::text::escape(token.as_bytes()).to_string());
    let digits = token.strip_prefix("s1-").ok_or_else(bad)?;
    if digits.len() != 16 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad());
    }
    i64::from_str_radix(digits, 16).map(Timestamp).map_err(|_| bad())
}

pub(crate) fn check_key(key: &[u8]) -> Result<Bytes, ClientError> {
    match key.len() {
        0 => Err(ClientError::KeyEmpty),
        length if length > limits::KEY_BYTES_MAX => Err(ClientError::KeyTooLong(length)),
        _ => Ok(Bytes::copy_from_slice(key)),
    }
}

fn check_keys<K: AsRef<[u8]>>(
    keys: impl IntoIterator<Item = K>,
) -> Result<Vec<Bytes>, ClientError> {
    keys.into_iter().map(|key| check_key(key.as_ref())).collect()
}

pub(crate) fn check_value(value: &[u8]) -> Result<Bytes, ClientError> {
    if value.len() > limits::VALUE_BYTES_MAX {
        return Err(ClientError::ValueTooLong(value.len()));
    }
    Ok(Bytes::copy_from_slice(value))
}

impl Inner {
    fn deadline(&self) -> Instant {
        // The builder keeps the time-out far from overflowing the clock.
        Instant::now() + self.request_timeout
    }

    fn index_of(&self, server: SocketAddr) -> Option<usize> {
        self.servers.iter().position(|known| *known == server)
    }

    fn status(&self, target: Target, retry: Retry<'_>) -> Result<ServerStatus, ClientError> {
        let build = || (Request::Status, ());
        self.request(target, self.deadline(), retry, build, |server, (), reply| match reply {
            Reply::StatusOk(status) => Verdict::Done(*status),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        })
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
