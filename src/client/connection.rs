//! One connection to one server: requests out, replies back in any order.
//!
//! Callers write their own requests: each puts its frame into the outbox and then takes its turn at
//! the socket with whatever has gathered there, so that requests of many threads leave in one write.
//! A thread per connection reads, hands each reply to whoever waits for its id, and watches over
//! the connection's life: while an answer is owed and nothing comes, it asks with PING, and after
//! [`Timing::silence_timeout`](super::Timing::silence_timeout) without a byte it gives up.
//! An answer may take as long as it likes as long as the server is heard.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::Timing;
use super::sync::{Handover, lock};
use super::transport::{self, MessageReader};
use crate::limits::HELLO_FRAME_BYTES_MAX;
use crate::types::ClusterId;
use crate::wire::message::{Hello, HelloRole, Message, PROTOCOL_VERSION, Reply, Request, Welcome};

/// Why a connection could not be made or is no more.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// For a person, in a few words.
    pub(crate) reason: String,
    /// When the server was last heard on this connection, if ever.
    pub(super) heard: Option<Instant>,
    /// The connection ended, as idle ones do, without any sign that the server is unwell.
    pub(super) ended: bool,
}

impl Failure {
    pub(crate) fn new(reason: impl Into<String>) -> Failure {
        Failure { reason: reason.into(), heard: None, ended: false }
    }

    pub(crate) fn io(error: &io::Error) -> Failure {
        let ended =
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        Failure { ended, ..Failure::new(describe(error)) }
    }
}

/// Why a request on a connection has no reply.
#[derive(Clone, Debug)]
pub(super) enum CallError {
    /// The connection could not be made or broke.
    Broken(Failure),
    /// The caller's time passed; the connection is fine.
    DeadlinePassed,
}

/// What a request comes to, on its way to whoever made it.
type Answer = Handover<Result<Reply, Failure>>;

/// An open connection. Dropping it closes it and ends its thread.
pub(super) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    stream: TcpStream,
    timing: Timing,
    /// Frames to be written; bounded by the requests a client may have under way.
    outbox: Mutex<Vec<u8>>,
    /// Held while writing to the socket.
    turn: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    waiting: HashMap<u64, Arc<Answer>>,
    next_id: u64,
    /// Since when something has been owed without a pause.
    owed_since: Instant,
    heard: Instant,
    closed: Option<Failure>,
}

impl Connection {
    /// Dials, greets and starts the reading thread, all before `deadline`.
    pub(super) fn open(
        server: SocketAddr,
        timing: Timing,
        deadline: Instant,
    ) -> Result<(Connection, Welcome), Failure> {
        let deadline = deadline.min(Instant::now() + timing.connect_timeout);
        let io_failure = |error: io::Error| Failure::io(&error);
        let (stream, mut reader, welcome) = dial(server, HelloRole::Client, deadline)?;
        stream.set_write_timeout(Some(timing.silence_timeout)).map_err(io_failure)?;
        // How often the reading thread looks at the clock when nothing comes.
        let look = (timing.ping_interval / 4).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(look)).map_err(io_failure)?;
        reader.set_frame_bytes_max(transport::FRAME_BYTES_MAX);

        let now = Instant::now();
        let state = State {
            waiting: HashMap::new(),
            next_id: 1,
            owed_since: now,
            heard: now,
            closed: None,
        };
        let shared = Arc::new(Shared {
            stream,
            timing,
            outbox: Mutex::default(),
            turn: Mutex::default(),
            state: Mutex::new(state),
        });
        let reading = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("acervo-client-{server}"))
            .spawn(move || reading.read_until_closed(reader))
            .map_err(|error| Failure::new(format!("no thread to read with: {error}")))?;
        Ok((Connection { shared }, welcome))
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.shared.state).closed.is_some()
    }

    /// Sends a request and waits for its reply until `deadline`. The sending itself may take up to
    /// the silence time-out longer when the server does not read.
    pub(super) fn call(&self, body: Request, deadline: Instant) -> Result<Reply, CallError> {
        let (id, answer) = self.shared.register().map_err(CallError::Broken)?;
        if let Err(failure) = self.shared.send(&Message::Request { id, body }) {
            self.shared.close(failure);
        }
        match answer.take(deadline) {
            Some(result) => result.map_err(CallError::Broken),
            None => {
                lock(&self.shared.state).waiting.remove(&id);
                Err(CallError::DeadlinePassed)
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // An error means that it is closed already.
        let _ = self.shared.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn register(&self) -> Result<(u64, Arc<Answer>), Failure> {
        let mut state = lock(&self.state);
        if let Some(failure) = &state.closed {
            return Err(failure.clone());
        }
        if state.waiting.is_empty() {
            state.owed_since = Instant::now();
        }
        let id = state.next_id;
        state.next_id += 1;
        let answer = Arc::new(Answer::new());
        state.waiting.insert(id, Arc::clone(&answer));
        Ok((id, answer))
    }

    /// Queues a frame and sees to it that it is written, by this thread or the one before.
    fn send(&self, message: &Message) -> Result<(), Failure> {
        self.queue(message)?;
        let turn = lock(&self.turn);
        self.write_outbox()?;
        drop(turn);
        // The reading thread does not wait for its turn: what it queued meanwhile goes now. If
        // someone else has the turn already, that one took the outbox after it was queued.
        let stranded = !lock(&self.outbox).is_empty();
        if stranded { self.write_unless_busy() } else { Ok(()) }
    }

    /// As [`Shared::send`], but leaves the writing to whoever has the turn, so that the reading
    /// thread never stands behind a write that the server holds up.
    fn send_from_reader(&self, message: &Message) -> Result<(), Failure> {
        self.queue(message)?;
        self.write_unless_busy()
    }

    fn queue(&self, message: &Message) -> Result<(), Failure> {
        transport::encode(message, &mut lock(&self.outbox))
            .map_err(|error| Failure::new(error.to_string()))
    }

    fn write_unless_busy(&self) -> Result<(), Failure> {
        match self.turn.try_lock() {
            Ok(_turn) => self.write_outbox(),
            Err(TryLockError::Poisoned(_turn)) => self.write_outbox(),
            Err(TryLockError::WouldBlock) => Ok(()),
        }
    }

    /// Only with the turn.
    fn write_outbox(&self) -> Result<(), Failure> {
        let frames = std::mem::take(&mut *lock(&self.outbox));
        (&self.stream).write_all(&frames).map_err(|error| Failure::io(&error))
    }

    /// Gives up the connection: everyone who waits is told, once.
    fn close(&self, mut failure: Failure) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut state = lock(&self.state);
        if state.closed.is_some() {
            return;
        }
        failure.heard = Some(state.heard);
        for (_, waiting) in state.waiting.drain() {
            waiting.give(Err(failure.clone()));
        }
        state.closed = Some(failure);
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
        let mut asked = Instant::now();
        let mut nonce = 0;
        loop {
            // Replies may have come in one piece with the greeting.
            while let Some(message) = next_message(reader)? {
                self.dispatch(message)?;
            }
            match reader.fill(&mut &self.stream) {
                Ok(0) => return Ok(()),
                Ok(_) => lock(&self.state).heard = Instant::now(),
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
                self.send_from_reader(&Message::Ping { nonce })?;
            }
        }
    }

    /// Since when the server has been owing without a sign of life; `None` when it owes nothing.
    fn silent_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        (!state.waiting.is_empty()).then(|| state.heard.max(state.owed_since))
    }

    fn dispatch(&self, message: Message) -> Result<(), Failure> {
        match message {
            Message::Reply { id, body } => {
                // Unknown when its caller's time passed.
                if let Some(waiting) = lock(&self.state).waiting.remove(&id) {
                    waiting.give(Ok(body));
                }
                Ok(())
            }
            Message::Ping { nonce } => self.send_from_reader(&Message::Pong { nonce }),
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
    let welcome = greet(&stream, &mut reader, role, deadline)?;
    Ok((stream, reader, welcome))
}

/// Says HELLO and waits for the WELCOME.
fn greet(
    stream: &TcpStream,
    reader: &mut MessageReader,
    role: HelloRole,
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
            match next_message(reader) {
                Ok(Some(message)) => return Ok(welcomed(message)),
                Ok(None) => {}
                Err(failure) => return Ok(Err(failure)),
            }
            stream.set_read_timeout(Some(left(deadline)?))?;
            match reader.fill(&mut stream) {
                Ok(0) => return Ok(Err(Failure::new("the server closed the connection"))),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    exchange().unwrap_or_else(|error| {
        let silent = "connected, but the server did not greet in time".to_owned();
        Err(Failure::new(if is_timeout(&error) { silent } else { describe(&error) }))
    })
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

/// What a server says is shown to people, so it is made fit for a terminal.
pub(crate) fn refused(reason: &str) -> Failure {
    Failure::new(format!("refused: {}", crate::text::escape(reason.as_bytes())))
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
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".to_owned(),
        _ => error.to_string(),
    }
}
