//! One connection to one server: requests out, replies back in any order.
//!
//! A thread per connection dials, greets, reads, hands each reply to whoever asked, and watches over
//! the connection's life: while an answer is owed and nothing comes, it asks with PING, and after
//! [`Timing::silence_timeout`](super::Timing::silence_timeout) without a byte it gives up.
//! An answer may take as long as it likes as long as the server is heard.
//!
//! Callers write their own requests: each puts its frame into the outbox and then takes its turn at
//! the socket with whatever has gathered there, so that requests of many threads leave in one write.
//! No caller is held up by a server that takes nothing: what cannot be written stays, and is written
//! by those who wait for its answer.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::Timing;
use super::sync::lock;
use super::transport::{self, MessageReader, TransportError};
use crate::limits::{CLIENT_PROVOKED_TIMEOUT, CLIENT_WRITE_SLICE, HELLO_FRAME_BYTES_MAX};
use crate::model::{ClusterId, Timestamp};
use crate::wire::frame::FrameError;
use crate::wire::message::{Hello, HelloRole, Message, PROTOCOL_VERSION, Reply, Request, Welcome};

/// Why a connection could not be made or is no more.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// For a person, in a few words.
    pub(crate) reason: String,
    /// When the server was last heard on this connection, if ever.
    pub(super) heard: Option<Instant>,
    /// The request that failed may have reached the server. None does before the server has greeted, nor once the
    /// connection has ended.
    pub(super) may_have_left: bool,
    /// The connection ended, as idle ones do, without any sign that the server is unwell.
    pub(super) ended: bool,
    /// The server is well, but another connection has taken the [`Claim`] to the request.
    pub(super) withheld: bool,
}

impl Failure {
    pub(crate) fn new(reason: impl Into<String>) -> Failure {
        let (heard, may_have_left, ended, withheld) = (None, false, false, false);
        Failure { reason: reason.into(), heard, may_have_left, ended, withheld }
    }

    fn withheld() -> Failure {
        Failure { withheld: true, ..Failure::new("another server has it") }
    }

    pub(crate) fn io(error: &io::Error) -> Failure {
        let ended =
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        Failure { ended, ..Failure::new(describe(error)) }
    }
}

/// The right to let a request leave, for one of several connections that would all take it once their servers have greeted.
/// Clones are the same claim. Whoever takes it first lets the request leave; the others withhold it.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim(Arc<AtomicBool>);

impl Claim {
    pub(super) fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the caller is the first to take it.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// A request made before the server has greeted.
struct Early {
    id: u64,
    request: Request,
    claim: Option<Claim>,
}

/// Is told what a request came to, on the connection's thread or the caller's.
pub(super) type OnReply = Box<dyn FnOnce(Result<Reply, Failure>) + Send>;

/// A connection, open or being opened. Dropping it closes it and ends its thread.
pub(super) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    /// Once the server has greeted.
    stream: OnceLock<TcpStream>,
    timing: Timing,
    met: Met,
    /// Frames to be written; bounded by the requests a client may have under way.
    outbox: Mutex<Vec<u8>>,
    /// What is being written. Held while writing to the socket.
    turn: Mutex<Unwritten>,
    /// The socket takes nothing, so that something is left in `turn`.
    is_stuck: AtomicBool,
    state: Mutex<State>,
}

/// When a client met its group: the timestamp of the last write that the first server that it reached had applied.
/// Shared by all its connections, since a write must be sent with the same time to whichever server.
#[derive(Clone, Default)]
pub(super) struct Met(Arc<OnceLock<Timestamp>>);

impl Met {
    /// A server of the group has greeted.
    pub(super) fn greeted(&self, welcome: &Welcome) {
        self.0.get_or_init(|| welcome.applied_timestamp);
    }

    /// Writes of the client's first identity may be made before any server was reached, so this is filled in when
    /// they leave. Later identities have begun with another time, which is not 0.
    fn complete(&self, request: &mut Request) {
        if let (Request::Write(write), Some(met)) = (request, self.0.get())
            && write.request.begun == Timestamp::ZERO
        {
            write.request.begun = *met;
        }
    }
}

#[derive(Default)]
struct Unwritten {
    bytes: Vec<u8>,
    /// How many of them are written.
    written: usize,
}

struct State {
    waiting: HashMap<u64, OnReply>,
    next_id: u64,
    /// Since when something has been owed without a pause.
    owed_since: Instant,
    /// When something last came, the greeting included. Until then nothing but the greeting has left.
    heard: Option<Instant>,
    /// Requests made before the server has greeted, so that one whose caller has given up does not leave after all.
    early: Vec<Early>,
    closed: Option<Failure>,
}

impl Connection {
    /// Begins to dial and greet on a thread of the connection's own. `admit` decides whether the
    /// server is one of this group.
    pub(super) fn open(
        server: SocketAddr,
        timing: Timing,
        met: Met,
        admit: impl FnOnce(&Welcome) -> Result<(), Failure> + Send + 'static,
    ) -> Result<Connection, Failure> {
        let state = State {
            waiting: HashMap::new(),
            next_id: 1,
            owed_since: Instant::now(),
            heard: None,
            early: Vec::new(),
            closed: None,
        };
        let shared = Arc::new(Shared {
            stream: OnceLock::new(),
            timing,
            met,
            outbox: Mutex::default(),
            turn: Mutex::default(),
            is_stuck: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        let running = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("acervo-client-{server}"))
            .spawn(move || running.run(server, admit))
            .map_err(|error| Failure::new(format!("no thread to read with: {error}")))?;
        Ok(Connection { shared })
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.shared.state).closed.is_some()
    }

    /// When the server was last heard; never as long as it has not greeted.
    pub(super) fn heard(&self) -> Option<Instant> {
        lock(&self.shared.state).heard
    }

    /// Sends a request, or as much of it as the server takes; see [`Connection::push`]. Returns the
    /// number by which it can be forgotten, unless the connection has ended already or the `claim` to the request is
    /// taken. `on_reply` is called once, unless it is forgotten before.
    pub(super) fn send(
        &self,
        mut body: Request,
        claim: Option<Claim>,
        on_reply: OnReply,
    ) -> Option<u64> {
        let id = {
            let mut state = lock(&self.shared.state);
            if let Some(failure) = state.closed.clone() {
                drop(state);
                on_reply(Err(Failure { may_have_left: false, ..failure }));
                return None;
            }
            if state.heard.is_some() && claim.as_ref().is_some_and(|claim| !claim.take()) {
                drop(state);
                on_reply(Err(Failure::withheld()));
                return None;
            }
            if state.waiting.is_empty() {
                state.owed_since = Instant::now();
            }
            let id = state.next_id;
            state.next_id += 1;
            state.waiting.insert(id, on_reply);
            if state.heard.is_none() {
                state.early.push(Early { id, request: body, claim });
                return Some(id);
            }
            id
        };
        self.shared.met.complete(&mut body);
        self.shared.send(&Message::Request { id, body });
        Some(id)
    }

    /// Nobody waits for this reply any more. Returns whether the request may have reached the server: what was
    /// not sent by now never is.
    pub(super) fn forget(&self, id: u64) -> bool {
        let mut state = lock(&self.shared.state);
        let forgotten = state.waiting.remove(&id);
        state.early.retain(|early| early.id != id);
        let may_have_left = state.heard.is_some();
        drop(state);
        drop(forgotten);
        may_have_left
    }

    /// Asks the server whether it is there, if there is a way to ask.
    pub(super) fn ping(&self) {
        if self.shared.stream.get().is_some() && !self.is_stuck() {
            self.shared.send_from_reader(&Message::Ping { nonce: 0 });
        }
    }

    /// Whether something waits to be written that the server does not take.
    pub(super) fn is_stuck(&self) -> bool {
        self.shared.is_stuck.load(Ordering::Relaxed)
    }

    /// Goes on writing what is left, for [`CLIENT_WRITE_SLICE`] or as long as the server takes it.
    pub(super) fn push(&self) {
        self.shared.write_unless_busy();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close(Failure::new("the client has closed the connection"));
    }
}

impl Shared {
    /// Queues a frame and sees to it that it is written, as far as the server takes it, by this
    /// thread or the one before.
    fn send(&self, message: &Message) {
        if !self.queue(message) {
            return;
        }
        let mut turn = lock(&self.turn);
        // Whoever found the socket stuck has waited for it long enough for all.
        if !self.is_stuck.load(Ordering::Relaxed) {
            self.write_outbox(&mut turn);
        }
        drop(turn);
        // The reading thread does not wait for its turn: what it queued meanwhile goes now. If
        // someone else has the turn already, that one took the outbox after it was queued.
        if !lock(&self.outbox).is_empty() && !self.is_stuck.load(Ordering::Relaxed) {
            self.write_unless_busy();
        }
    }

    /// As [`Shared::send`], but leaves the writing to whoever has the turn, so that the reading
    /// thread never stands behind a write that the server holds up.
    fn send_from_reader(&self, message: &Message) {
        if self.queue(message) {
            self.write_unless_busy();
        }
    }

    fn queue(&self, message: &Message) -> bool {
        let encoded = transport::encode(message, &mut lock(&self.outbox));
        let failed = encoded.map_err(|error| self.close(Failure::new(error.to_string())));
        failed.is_ok()
    }

    fn write_unless_busy(&self) {
        match self.turn.try_lock() {
            Ok(mut turn) => self.write_outbox(&mut turn),
            Err(TryLockError::Poisoned(turn)) => self.write_outbox(&mut turn.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// Only with the turn. Before the server has greeted there is nothing to write on.
    fn write_outbox(&self, unwritten: &mut Unwritten) {
        let Some(mut stream) = self.stream.get() else { return };
        loop {
            if unwritten.bytes.is_empty() {
                unwritten.bytes = std::mem::take(&mut *lock(&self.outbox));
            }
            let mut was_stuck = false;
            while unwritten.written < unwritten.bytes.len() {
                match stream.write(&unwritten.bytes[unwritten.written..]) {
                    Ok(0) => return self.close(Failure::new("the connection takes nothing more")),
                    Ok(count) => {
                        unwritten.written += count;
                        was_stuck |= self.is_stuck.swap(false, Ordering::Relaxed);
                    }
                    Err(error) if is_timeout(&error) => {
                        return self.is_stuck.store(true, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return self.close(Failure::io(&error)),
                }
            }
            *unwritten = Unwritten::default();
            if !was_stuck {
                return;
            }
            // There is room again, so the server has read. Those who found the socket stuck have left
            // their frames in the outbox.
            lock(&self.state).heard = Some(Instant::now());
        }
    }

    /// Gives up the connection: everyone who waits is told, once.
    fn close(&self, mut failure: Failure) {
        let mut state = lock(&self.state);
        // Looked at under the lock under which it is set, or one that is set meanwhile would stay open.
        if let Some(stream) = self.stream.get() {
            // An error means that it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        if state.closed.is_some() {
            return;
        }
        (failure.heard, failure.may_have_left) = (state.heard, state.heard.is_some());
        let waiting = std::mem::take(&mut state.waiting);
        state.early.clear();
        state.closed = Some(failure.clone());
        drop(state);
        waiting.into_values().for_each(|on_reply| on_reply(Err(failure.clone())));
    }

    /// The connection's whole life, on its own thread.
    fn run(&self, server: SocketAddr, admit: impl FnOnce(&Welcome) -> Result<(), Failure>) {
        match self.establish(server, admit) {
            Ok(reader) => self.read_until_closed(reader),
            Err(failure) => self.close(failure),
        }
    }

    fn establish(
        &self,
        server: SocketAddr,
        admit: impl FnOnce(&Welcome) -> Result<(), Failure>,
    ) -> Result<MessageReader, Failure> {
        let io_failure = |error: io::Error| Failure::io(&error);
        let deadline = Instant::now() + self.timing.connect_timeout;
        let (stream, mut reader, welcome) = dial(server, HelloRole::Client, deadline)?;
        admit(&welcome)?;
        stream.set_write_timeout(Some(CLIENT_WRITE_SLICE)).map_err(io_failure)?;
        // How often this thread looks at the clock when nothing comes.
        let look = (self.timing.ping_interval / 4).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(look)).map_err(io_failure)?;
        reader.set_frame_bytes_max(transport::FRAME_BYTES_MAX);
        let mut state = lock(&self.state);
        if let Some(failure) = &state.closed {
            return Err(failure.clone());
        }
        // All under one lock: a request has either left or can still be taken back.
        let mut withheld = Vec::new();
        for Early { id, request: mut body, claim } in std::mem::take(&mut state.early) {
            if claim.is_some_and(|claim| !claim.take()) {
                withheld.extend(state.waiting.remove(&id));
                continue;
            }
            self.met.complete(&mut body);
            transport::encode(&Message::Request { id, body }, &mut lock(&self.outbox))
                .map_err(|error| Failure::new(error.to_string()))?;
        }
        state.heard = Some(Instant::now());
        // Only this thread sets it.
        let _ = self.stream.set(stream);
        drop(state);
        withheld.into_iter().for_each(|on_reply| on_reply(Err(Failure::withheld())));
        self.write_unless_busy();
        Ok(reader)
    }

    fn read_until_closed(&self, mut reader: MessageReader) {
        let failure = self.read(&mut reader).err();
        self.close(failure.unwrap_or_else(|| Failure {
            ended: true,
            ..Failure::new("the server closed the connection")
        }));
    }

    /// Reads until the stream ends or fails.
    fn read(&self, reader: &mut MessageReader) -> Result<(), Failure> {
        let Some(mut stream) = self.stream.get() else { return Ok(()) };
        let mut asked = Instant::now();
        let mut nonce = 0;
        loop {
            // Replies may have come in one piece with the greeting.
            while let Some(message) = next_message(reader)? {
                self.dispatch(message)?;
            }
            match reader.fill(&mut stream) {
                Ok(0) => return Ok(()),
                Ok(_) => lock(&self.state).heard = Some(Instant::now()),
                Err(error) if is_timeout(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::io(&error)),
            }
            let now = Instant::now();
            let Some(silent_since) = self.silent_since() else { continue };
            if now.duration_since(silent_since) >= self.timing.silence_timeout {
                let silent = self.timing.silence_timeout;
                return Err(Failure::new(format!("nothing heard for {silent:?}")));
            }
            if now.duration_since(silent_since.max(asked)) >= self.timing.ping_interval {
                asked = now;
                nonce += 1;
                self.send_from_reader(&Message::Ping { nonce });
            }
        }
    }

    /// Since when the server has been owing without a sign of life; `None` when it owes nothing.
    fn silent_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        let heard = state.heard.unwrap_or(state.owed_since);
        (!state.waiting.is_empty()).then(|| heard.max(state.owed_since))
    }

    fn dispatch(&self, message: Message) -> Result<(), Failure> {
        match message {
            Message::Reply { id, body } => {
                let waiting = lock(&self.state).waiting.remove(&id);
                // Nobody's when its caller waits no more.
                if let Some(on_reply) = waiting {
                    on_reply(Ok(body));
                }
                Ok(())
            }
            Message::Ping { nonce } => {
                self.send_from_reader(&Message::Pong { nonce });
                Ok(())
            }
            Message::Pong { .. } => Ok(()),
            Message::Refused { reason } => Err(refused(&reason)),
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Request { .. }
            | Message::Peer(_)
            | Message::Registry { .. }
            | Message::RegistryReply { .. }
            | Message::Share { .. }
            | Message::ShareReply { .. } => {
                Err(Failure::new("the server sent a message that no client expects"))
            }
        }
    }
}

/// Connects to a server and greets it, all before `deadline`. Frames still have the cap of greetings.
pub(crate) fn dial(
    server: SocketAddr,
    role: HelloRole,
    deadline: Instant,
) -> Result<(TcpStream, MessageReader, Welcome), Failure> {
    let io_failure = |error: io::Error| Failure::io(&error);
    let timeout = left(deadline).map_err(io_failure)?;
    let stream = TcpStream::connect_timeout(&server, timeout).map_err(io_failure)?;
    stream.set_nodelay(true).map_err(io_failure)?;
    stream.set_write_timeout(Some(timeout)).map_err(io_failure)?;
    let mut reader = MessageReader::new(HELLO_FRAME_BYTES_MAX);
    let expected = match role {
        HelloRole::Share => "an acervo registry or peer",
        HelloRole::Client | HelloRole::Server { .. } => "a server of an acervo store",
    };
    let welcome = greet(&stream, &mut reader, role, expected, deadline)?;
    Ok((stream, reader, welcome))
}

/// Says HELLO and waits for the WELCOME.
fn greet(
    stream: &TcpStream,
    reader: &mut MessageReader,
    role: HelloRole,
    expected: &str,
    deadline: Instant,
) -> Result<Welcome, Failure> {
    let hello = Hello { protocol: PROTOCOL_VERSION, cluster: ClusterId(0), role };
    let mut frame = Vec::new();
    transport::encode(&Message::Hello(hello), &mut frame)
        .map_err(|error| Failure::new(error.to_string()))?;
    let mut exchange = || -> io::Result<Result<Welcome, Failure>> {
        let mut stream = stream;
        stream.write_all(&frame)?;
        loop {
            match reader.next_message() {
                Ok(Some(message)) => return Ok(welcomed(message)),
                Ok(None) => {}
                Err(error) => return Ok(Err(Failure::new(stranger(&error, expected)))),
            }
            stream.set_read_timeout(Some(left(deadline)?))?;
            match reader.fill(&mut stream) {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    exchange().unwrap_or_else(|error| {
        Err(Failure::new(match error.kind() {
            _ if is_timeout(&error) => {
                provoked(stream, expected).unwrap_or_else(|| NO_GREETING.to_owned())
            }
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                format!("{NOT_GREETED} {expected}?")
            }
            _ => describe(&error),
        }))
    })
}

/// Why a server that was dialled is of no use.
pub(crate) const NO_GREETING: &str = "connected, but the server did not greet in time";
/// Why a server that was reached is of no use: nothing came, or pieces of an answer without an end.
pub(crate) const NOT_IN_TIME: &str = "no whole answer came in time";
/// What [`describe`] makes of a time-out.
pub(crate) const TIMED_OUT: &str = "timed out";
/// Why a server that was dialled is of no use; what was expected follows.
pub(crate) const NOT_GREETED: &str = "the connection was closed without a greeting: is it";
/// The same; who was found follows.
pub(crate) const FOUND_THERE: &str = "found there: ";
/// The same; the server's own reason follows.
pub(crate) const REFUSED: &str = "refused: ";

/// Who has not answered a greeting in time, if that is a web server: those wait for the end of a line. Anybody else has been
/// given up by now.
fn provoked(mut stream: &TcpStream, expected: &str) -> Option<String> {
    stream.write_all(b"\r\n\r\n").ok()?;
    stream.set_read_timeout(Some(CLIENT_PROVOKED_TIMEOUT)).ok()?;
    let mut first = [0; 4];
    stream.read_exact(&mut first).ok()?;
    Some(found_there(first, expected))
}

/// Names what answered a greeting with something that is no message.
fn stranger(error: &TransportError, expected: &str) -> String {
    let first = match error {
        // What was taken for a length.
        TransportError::Frame(FrameError::TooLong { announced, .. }) => {
            u32::try_from(*announced).unwrap_or_default().to_be_bytes()
        }
        _ => [0; 4],
    };
    found_there(first, expected)
}

/// Names whoever begins with these bytes.
fn found_there(first: [u8; 4], expected: &str) -> String {
    let found = match &first {
        // Some send an error without a header to who has sent no header.
        b"HTTP" | b"<!DO" | b"<!do" | b"<htm" | b"<HTM" => "a web server",
        // HTTP/2 begins with the settings of the connection, whose length has three bytes.
        [0, _, _, 4] => "HTTP/2, as an acervo gateway speaks",
        b"SSH-" => "an SSH server",
        _ => "something that does not speak Acervo's protocol",
    };
    format!("{FOUND_THERE}{found}; expected: {expected}")
}

fn welcomed(message: Message) -> Result<Welcome, Failure> {
    match message {
        Message::Welcome(welcome) if welcome.protocol == PROTOCOL_VERSION => Ok(welcome),
        Message::Welcome(welcome) => Err(Failure::new(format!(
            "the server speaks protocol {}, this client {PROTOCOL_VERSION}",
            welcome.protocol
        ))),
        Message::Refused { reason } => Err(refused(&reason)),
        _ => Err(Failure::new("the server's first message is no greeting")),
    }
}

/// What a server says is shown to people, so it is cut and made fit for a terminal.
pub(crate) fn refused(reason: &str) -> Failure {
    Failure::new(format!("{REFUSED}{}", crate::text::sentence(reason)))
}

pub(crate) fn next_message(reader: &mut MessageReader) -> Result<Option<Message>, Failure> {
    reader.next_message().map_err(|error| Failure::new(error.to_string()))
}

/// The time until `deadline`, or the error a socket would give when it has passed.
pub(crate) fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The common errors in plain words, the same on every system; the rest in the system's.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the connection broke".to_owned()
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TIMED_OUT.to_owned(),
        _ => error.to_string(),
    }
}
