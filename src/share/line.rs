//! One blocking connection to a registry: a question, then its answer.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::connection::{Failure, dial, left, next_message, refused};
use crate::client::transport::MessageReader;
use crate::limits;
use crate::text::escape;
use crate::wire::codec;
use crate::wire::message::{HelloRole, Message};
use crate::wire::share::{RegistryReply, RegistryRequest};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It cannot be reached, or the connection broke.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// Who.
        address: SocketAddr,
        /// Why, in a few words.
        reason: String,
    },
    /// It answers, and says no.
    #[error("{address} says: {message}")]
    Declined {
        /// Who.
        address: SocketAddr,
        /// Its sentence, escaped.
        message: String,
    },
    /// Somebody else has joined there under this peer's id, and is alive.
    #[error(
        "another connection has joined at {0} under this peer's id: if this folder is shared twice, stop one of them"
    )]
    IdTaken(SocketAddr),
    /// It answers something else than it was asked.
    #[error("the registry does not answer like one; check its address")]
    Unexpected,
    /// There is nobody to ask.
    #[error("no registry was named")]
    Nobody,
    /// The one who asks is stopping.
    #[error("this peer is stopping")]
    Stopping,
    /// The registry does not know this peer, or not any more.
    #[error("the registry {0} does not know this peer")]
    NotJoined(SocketAddr),
}

/// A connection with one question under way at most.
pub struct Line {
    address: SocketAddr,
    stream: TcpStream,
    reader: MessageReader,
    next_id: u64,
}

impl Line {
    /// Dials and greets before `deadline`.
    ///
    /// # Errors
    /// [`LineError::Unreachable`].
    pub fn open(address: SocketAddr, deadline: Instant) -> Result<Line, LineError> {
        let deadline = deadline.min(Instant::now() + limits::CLIENT_CONNECT_TIMEOUT);
        let dialled = dial(address, HelloRole::Share, deadline);
        let (stream, mut reader, _) = dialled.map_err(|failure| unreachable(address, failure))?;
        reader.set_frame_bytes_max(limits::REGISTRY_FRAME_BYTES_MAX);
        Ok(Line { address, stream, reader, next_id: 1 })
    }

    /// As [`Line::open`], to the first of several that can be reached.
    ///
    /// # Errors
    /// What was wrong with the last one.
    pub fn open_any(addresses: &[SocketAddr], deadline: Instant) -> Result<Line, LineError> {
        let mut last = None;
        for address in addresses {
            match Line::open(*address, deadline) {
                Ok(line) => return Ok(line),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(LineError::Nobody))
    }

    /// Who is at the other end.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks. What the registry has no room for at the moment is asked again, until `deadline`.
    ///
    /// # Errors
    /// See [`LineError`]. After [`LineError::Unreachable`] the connection is of no more use.
    pub fn ask(
        &mut self,
        body: &RegistryRequest,
        deadline: Instant,
    ) -> Result<RegistryReply, LineError> {
        let began = Instant::now();
        loop {
            let asked = self.exchange(body.clone(), deadline);
            let reply = asked.map_err(|failure| unreachable(self.address, failure))?;
            match reply {
                RegistryReply::NotJoined => return Err(LineError::NotJoined(self.address)),
                RegistryReply::IdTaken { retry_after_ms } => {
                    let pause = Duration::from_millis(u64::from(retry_after_ms));
                    if began.elapsed() + pause >= limits::ID_TAKEN_WAIT {
                        return Err(LineError::IdTaken(self.address));
                    }
                    thread::sleep(pause);
                }
                RegistryReply::Error { message, retry_after_ms } => {
                    let pause = Duration::from_millis(u64::from(retry_after_ms));
                    if pause.is_zero() || Instant::now() + pause >= deadline {
                        let message = escape(message.as_bytes()).to_string();
                        return Err(LineError::Declined { address: self.address, message });
                    }
                    thread::sleep(pause);
                }
                reply => return Ok(reply),
            }
        }
    }

    /// Whether the other side has closed the connection. Never waits.
    pub fn is_closed(&self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| {
            let looked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            looked
        });
        match looked {
            Ok(received) => received == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Sends a question and reads until its answer has come.
    fn exchange(
        &mut self,
        body: RegistryRequest,
        deadline: Instant,
    ) -> Result<RegistryReply, Failure> {
        let io_failure = |error: io::Error| Failure::io(&error);
        let id = self.next_id;
        self.next_id += 1;
        self.send(&Message::Registry { id, body }, deadline)?;
        loop {
            while let Some(message) = next_message(&mut self.reader)? {
                match message {
                    Message::RegistryReply { id: of, body } if of == id => return Ok(body),
                    Message::Ping { nonce } => self.send(&Message::Pong { nonce }, deadline)?,
                    Message::Pong { .. } => {}
                    Message::Refused { reason } => return Err(refused(&reason)),
                    _ => return Err(Failure::new("it does not answer like a registry")),
                }
            }
            let left = left(deadline).map_err(io_failure)?;
            self.stream.set_read_timeout(Some(left)).map_err(io_failure)?;
            match self.reader.fill(&mut &self.stream) {
                Ok(0) => return Err(Failure::new("it closed the connection")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_failure(error)),
            }
        }
    }

    fn send(&mut self, message: &Message, deadline: Instant) -> Result<(), Failure> {
        let mut frame = Vec::new();
        codec::encode(message, limits::REGISTRY_FRAME_BYTES_MAX, &mut frame)
            .map_err(|error| Failure::new(error.to_string()))?;
        let io_failure = |error: io::Error| Failure::io(&error);
        let left = left(deadline).map_err(io_failure)?;
        self.stream.set_write_timeout(Some(left)).map_err(io_failure)?;
        self.stream.write_all(&frame).map_err(io_failure)
    }
}

fn unreachable(address: SocketAddr, failure: Failure) -> LineError {
    LineError::Unreachable { address, reason: failure.reason }
}
