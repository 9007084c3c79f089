//! Watches: every change of a range of keys, in order, each once, for as long as somebody asks.
//!
//! A watch has a connection of its own and a thread that reads it, so that a reader who takes his
//! time holds up nothing else of the client. What was read and not taken is bounded by the credit
//! that the server is given ([`WATCH_CREDIT_BYTES_MAX`]), and credit is given as events are taken.
//! When the connection breaks, or nothing is heard on it, the thread dials the next server and goes
//! on after what it has (`following`). It gives up only what no server will ever do.

mod following;

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;

use self::following::Following;
pub use self::following::WatchEvent;
use super::faces::calls;
use super::rows::KeyRange;
use super::sync::lock;
use super::transport::{self, FRAME_BYTES_MAX, MessageReader};
use super::{Client, ClientError, Timing, dial};
use crate::limits::{self, WATCH_CREDIT_BYTES_MAX};
use crate::model::{KeyInterval, Timestamp};
use crate::net::backoff::Backoff;
use crate::wire::message::{
    ErrorCode, HelloRole, Message, Reply, Request, WatchFrame, WatchRequest,
};

/// The number of the one watch of a connection, and of the request that begins it.
const WATCH: u64 = 1;
/// The longest pause between two attempts to reach a server.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What a watch is to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// The version after which changes are told; `None` for those from now on.
    pub after: Option<Timestamp>,
    /// Each change tells what its key had before.
    pub previous: bool,
}

/// The changes of a range of keys, from one version on and for ever.
///
/// As an iterator it waits for the next event, and ends only after an error, which says that the
/// watch can never go on. Dropping it ends it.
///
/// ```
/// use acervo::client::{Client, KeyRange, WatchEvent, WatchOptions};
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// let client = Client::connect(group.servers())?;
/// let before = client.put("title", "Dom Casmurro")?.timestamp;
/// client.put("title", "Esaú e Jacó")?;
///
/// let options = WatchOptions { after: Some(before), ..WatchOptions::default() };
/// let mut watch = client.watch(KeyRange::between("title", "title")?, options)?;
/// let Some(Ok(WatchEvent::Changed { changes, .. })) = watch.next() else { panic!("no change") };
/// let written = changes[0].written.as_ref().expect("it was written");
/// assert_eq!(written.value, "Esaú e Jacó".as_bytes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Watch {
    shared: Arc<WatchShared>,
    client: Client,
}

/// What the reader of a watch and its thread share.
struct WatchShared {
    state: Mutex<WatchState>,
    /// There is an event, or an error.
    filled: Condvar,
}

#[derive(Default)]
struct WatchState {
    /// Events with the credit that the server gets back when they are taken.
    events: VecDeque<(WatchEvent, u32)>,
    queued_bytes: u32,
    /// Credit of events that were taken, which the server has not been given back.
    taken_bytes: u32,
    /// Credit that the server has left on this connection. It may exceed it by one frame.
    credit_left: i64,
    /// Why the server that was asked last has not begun the watch.
    last_failure: Option<String>,
    /// The connection in use.
    stream: Option<Arc<TcpStream>>,
    error: Option<ClientError>,
    /// Nobody wants any more events.
    is_over: bool,
    /// A server has said where the watch begins.
    has_begun: bool,
    waker: Option<Waker>,
}

calls! {
    /// Tells every change of some keys, in order, each once, over reconnections and changes of
    /// server and leader.
    ///
    /// A watch from now on has begun when this returns: it misses no write that begins then, and
    /// shows nothing that this client had seen before. One after a version is asked for later.
    ///
    /// # Errors
    /// [`ClientError::Thread`]; [`ClientError::TimedOut`] where no server begins a watch from now
    /// on. What a server refuses for ever is the watch's first event.
    fn watch(client, range: KeyRange, options: WatchOptions) -> Watch {
        let watch = client.follow(range, options)?;
        if options.after.is_none() {
            watch.wait_begun().await?;
        }
        Ok(watch)
    }
}

impl Client {
    /// Begins to follow. Nothing is dialled before this returns.
    pub(super) fn follow(
        &self,
        range: KeyRange,
        options: WatchOptions,
    ) -> Result<Watch, ClientError> {
        let shared = Arc::new(WatchShared { state: Mutex::default(), filled: Condvar::new() });
        let follower = Follower {
            shared: Arc::clone(&shared),
            servers: Arc::clone(&self.inner.servers),
            timing: self.inner.timing,
            range: KeyInterval { from: range.from, to: range.to },
            previous: options.previous,
            following: Following::new(options.after),
            seen: lock(&self.inner.seen).session(),
        };
        let thread = thread::Builder::new().name("acervo-follow".into());
        thread
            .spawn(move || follower.run())
            .map_err(|error| ClientError::Thread(error.to_string()))?;
        Ok(Watch { shared, client: self.clone() })
    }
}

impl Watch {
    /// The next event, if one has come within this time; `None` after an error, too.
    pub fn next_within(&mut self, time: Duration) -> Option<Result<WatchEvent, ClientError>> {
        self.wait(Instant::now().checked_add(time))
    }

    /// The next event, for whoever polls; `None` after an error.
    pub async fn next_event(&mut self) -> Option<Result<WatchEvent, ClientError>> {
        std::future::poll_fn(|context| {
            let mut state = lock(&self.shared.state);
            match self.take_event(&mut state) {
                Some(taken) => Poll::Ready(taken),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Waits until a server has begun the watch, or refuses it for ever.
    async fn wait_begun(&self) -> Result<(), ClientError> {
        let deadline = self.client.deadline();
        let mut time = pin!(self.client.time_is(deadline));
        std::future::poll_fn(|context| {
            let mut state = lock(&self.shared.state);
            if state.has_begun || state.error.is_some() {
                return Poll::Ready(Ok(()));
            }
            state.waker = Some(context.waker().clone());
            drop(state);
            time.as_mut().poll(context).map(|_| {
                let timeout = self.client.inner.request_timeout;
                let last = lock(&self.shared.state).last_failure.take();
                let last = last.unwrap_or_else(|| "no server has begun the watch".to_owned());
                Err(ClientError::TimedOut { timeout, last, effect: None })
            })
        })
        .await
    }

    fn wait(&self, until: Option<Instant>) -> Option<Result<WatchEvent, ClientError>> {
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(taken) = self.take_event(&mut state) {
                return taken;
            }
            state = match until {
                None => self.shared.filled.wait(state).unwrap_or_else(|e| e.into_inner()),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.shared.filled.wait_timeout(state, left);
                    waited.unwrap_or_else(|e| e.into_inner()).0
                }
            };
        }
    }

    /// What there is: an event, an error, or the end; `None` if something is to be waited for.
    fn take_event(
        &self,
        state: &mut WatchState,
    ) -> Option<Option<Result<WatchEvent, ClientError>>> {
        if let Some((event, credit_bytes)) = state.events.pop_front() {
            state.taken(credit_bytes);
            lock(&self.client.inner.seen).saw(event.version());
            return Some(Some(Ok(event)));
        }
        if let Some(error) = state.error.take() {
            state.is_over = true;
            return Some(Some(Err(error)));
        }
        state.is_over.then_some(None)
    }
}

impl Iterator for Watch {
    type Item = Result<WatchEvent, ClientError>;

    fn next(&mut self) -> Option<Result<WatchEvent, ClientError>> {
        self.wait(None)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.is_over = true;
        if let Some(stream) = state.stream.take() {
            // The thread finds the end of the stream.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl WatchState {
    /// Events were taken: the server gets its credit back when it is worth a frame.
    fn taken(&mut self, credit_bytes: u32) {
        self.queued_bytes -= credit_bytes;
        self.taken_bytes += credit_bytes;
        if self.taken_bytes < WATCH_CREDIT_BYTES_MAX / 4 {
            return;
        }
        let Some(stream) = &self.stream else { return };
        let credit = Message::WatchCredit { watch: WATCH, bytes: self.taken_bytes };
        self.credit_left += i64::from(self.taken_bytes);
        self.taken_bytes = 0;
        // Of a connection that is broken the thread learns by itself.
        let _ = send(stream, &credit);
    }
}

/// Sends a message, which is short.
fn send(mut stream: &TcpStream, message: &Message) -> io::Result<()> {
    let mut frame = Vec::new();
    transport::encode(message, &mut frame).map_err(io::Error::other)?;
    stream.write_all(&frame)
}

/// Why a connection is not read any more.
enum ConnectionEnd {
    /// Another server is asked, or the same one again.
    Retry,
    /// It was of use for a while, so that the next one is asked at once. One that ends as soon as
    /// it has begun is not: a server that is cut off, or has no room, may do that again and again.
    Broken,
    Over(ClientError),
    NobodyWaits,
}

/// The thread of a watch.
struct Follower {
    shared: Arc<WatchShared>,
    servers: Arc<[SocketAddr]>,
    timing: Timing,
    range: KeyInterval,
    previous: bool,
    following: Following,
    /// The newest version that the client had seen when it began to watch.
    seen: Option<Timestamp>,
}

impl Follower {
    fn run(mut self) {
        let mut random = rand::rng();
        let first: usize = random.random_range(0..self.servers.len());
        let mut backoff = Backoff::new(limits::CLIENT_BACKOFF_MIN, RETRY_MAX);
        for attempt in first.. {
            let server = self.servers[attempt % self.servers.len()];
            let end = self.connection(server);
            lock(&self.shared.state).stream = None;
            match end {
                ConnectionEnd::Broken => {
                    backoff = Backoff::new(limits::CLIENT_BACKOFF_MIN, RETRY_MAX);
                }
                ConnectionEnd::Retry => {}
                ConnectionEnd::Over(error) => {
                    let mut state = lock(&self.shared.state);
                    state.error = Some(error);
                    self.wake(state);
                    return;
                }
                ConnectionEnd::NobodyWaits => return,
            }
            thread::sleep(backoff.next_wait(random.random()));
            if lock(&self.shared.state).is_over {
                return;
            }
        }
    }

    fn wake(&self, mut state: std::sync::MutexGuard<'_, WatchState>) {
        let waker = state.waker.take();
        drop(state);
        self.shared.filled.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The server has not begun the watch, or goes on with it no more.
    fn failed(&self, server: SocketAddr, reason: &str) -> ConnectionEnd {
        lock(&self.shared.state).last_failure = Some(format!("{server}: {reason}"));
        ConnectionEnd::Retry
    }

    /// Follows at one server, as long as its connection lasts.
    fn connection(&mut self, server: SocketAddr) -> ConnectionEnd {
        {
            let state = lock(&self.shared.state);
            if state.is_over {
                return ConnectionEnd::NobodyWaits;
            }
            // A watch begins with some credit, and there is room for none until events are taken.
            if state.queued_bytes >= WATCH_CREDIT_BYTES_MAX {
                return ConnectionEnd::Retry;
            }
        }
        let deadline = Instant::now() + self.timing.connect_timeout;
        let dialled = dial::dial(server, HelloRole::CLIENT, deadline);
        let (stream, mut reader) = match dialled {
            Ok(dialled) => dialled,
            Err(failure) => return self.failed(server, &failure.reason),
        };
        reader.set_frame_bytes_max(FRAME_BYTES_MAX.max(limits::SERVER_FRAME_BYTES_MAX));
        let stream = Arc::new(stream);
        let credit_bytes = {
            let mut state = lock(&self.shared.state);
            if state.is_over {
                return ConnectionEnd::NobodyWaits;
            }
            let credit_bytes = WATCH_CREDIT_BYTES_MAX - state.queued_bytes;
            (state.taken_bytes, state.credit_left) = (0, credit_bytes.into());
            state.stream = Some(Arc::clone(&stream));
            credit_bytes
        };
        let request = WatchRequest {
            watch: WATCH,
            range: self.range.clone(),
            after: self.following.after(),
            tells_previous: self.previous,
            credit_bytes,
        };
        let body = Request::Watch(request);
        let asked = send(&stream, &Message::Request { id: WATCH, body });
        if asked.is_err() || stream.set_read_timeout(Some(self.timing.ping_interval)).is_err() {
            return self.failed(server, "the connection has ended");
        }
        self.listen(server, &stream, &mut reader)
    }

    fn listen(
        &mut self,
        server: SocketAddr,
        stream: &TcpStream,
        reader: &mut MessageReader,
    ) -> ConnectionEnd {
        let began = Instant::now();
        let (mut was_shown, mut heard) = (false, began);
        let end = |was_shown| match was_shown || began.elapsed() >= RETRY_MAX {
            true => ConnectionEnd::Broken,
            false => ConnectionEnd::Retry,
        };
        loop {
            loop {
                let message = match reader.next_message() {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(_) => return end(was_shown),
                };
                match message {
                    Message::Reply { body: Reply::WatchOk { after }, .. } => {
                        self.following.begun(after, self.seen);
                        let mut state = lock(&self.shared.state);
                        if !std::mem::replace(&mut state.has_begun, true) {
                            self.wake(state);
                        }
                    }
                    Message::Reply { body: Reply::Error(error), .. } => {
                        if error.code == ErrorCode::Invalid {
                            let message = crate::text::sentence(&error.message);
                            return ConnectionEnd::Over(ClientError::Invalid { server, message });
                        }
                        return self.failed(server, &crate::text::sentence(&error.message));
                    }
                    Message::Watched { watch: WATCH, body } => {
                        // More than was asked for, or something else.
                        if !self.may_be_shown(&body) {
                            return self.failed(server, "it does not keep to the protocol");
                        }
                        was_shown = true;
                        self.shown(body);
                    }
                    Message::Refused { reason, .. } => {
                        let ended = end(was_shown);
                        self.failed(server, &crate::text::sentence(&reason));
                        return ended;
                    }
                    Message::WatchProgress { up_to } => self.following.progress(up_to),
                    Message::Ping { nonce } => {
                        if send(stream, &Message::Pong { nonce }).is_err() {
                            return end(was_shown);
                        }
                    }
                    Message::Pong { .. } => {}
                    _ => return end(was_shown),
                }
            }
            let mut source = stream;
            match reader.fill(&mut source) {
                Ok(0) => break,
                Ok(_) => heard = Instant::now(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    let is_silent = heard.elapsed() >= self.timing.silence_timeout;
                    if is_silent || send(stream, &Message::Ping { nonce: WATCH }).is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        if lock(&self.shared.state).is_over {
            return ConnectionEnd::NobodyWaits;
        }
        end(was_shown)
    }

    /// Whether a frame keeps to the credit that the server has, and to what is watched. One may be
    /// begun with any credit that is left.
    fn may_be_shown(&self, frame: &WatchFrame) -> bool {
        let is_watched = |key: &[u8], at: Timestamp| self.range.covers(key) && at > Timestamp::ZERO;
        let is_asked_for = match frame {
            WatchFrame::Events { changes, .. } => {
                changes.iter().all(|change| is_watched(&change.key, change.at))
            }
            WatchFrame::Reset { rows, at, .. } => {
                *at >= Timestamp::ZERO && rows.iter().all(|row| self.range.covers(&row.key))
            }
        };
        is_asked_for && lock(&self.shared.state).credit_left > 0
    }

    /// Gives out what is new in a frame.
    fn shown(&mut self, frame: WatchFrame) {
        let credit_bytes = frame.credit_bytes();
        let events = self.following.take(frame);
        let count = events.len();
        let mut state = lock(&self.shared.state);
        state.queued_bytes += credit_bytes;
        state.credit_left -= i64::from(credit_bytes);
        if count == 0 {
            // All of it was known.
            state.taken(credit_bytes);
            return;
        }
        for (number, event) in events.into_iter().enumerate() {
            // The server gets its credit back with the last event of its frame.
            let credit_bytes = if number + 1 == count { credit_bytes } else { 0 };
            state.events.push_back((event, credit_bytes));
        }
        self.wake(state);
    }
}
