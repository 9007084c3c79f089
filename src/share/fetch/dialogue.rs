//! A blocking connection to a peer, over which one question is asked at a time.
//!
//! Rule: nothing is waited for beyond the deadline, for longer than a peer may be silent, or when
//! nobody wants the answer any more.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::limits;
use crate::model::PeerId;
use crate::share::greeting;
use crate::text::sentence;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{PeerReply, PeerRequest};

/// Why a peer has not answered a question.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialogueError {
    #[error("it does not answer: {0}")]
    Lost(#[from] io::Error),
    #[error("it does not answer in time")]
    Late,
    #[error("{}", sentence(.0))]
    Denied(String),
    /// What it sends is false: it is not asked again.
    #[error("{0}")]
    Lie(String),
}

impl DialogueError {
    pub(super) fn lie(what: &str) -> DialogueError {
        DialogueError::Lie(what.to_owned())
    }
}

pub(super) struct PeerDialogue<'a> {
    stream: TcpStream,
    pub(super) deadline: Instant,
    silence_max: Duration,
    /// Whether nobody wants an answer any more.
    is_over: &'a dyn Fn() -> bool,
    last_id: u64,
}

impl PeerDialogue<'_> {
    /// Connects within `time`, which is also the time for all answers.
    pub(super) fn open(
        address: SocketAddr,
        time: Duration,
        silence_max: Duration,
        is_over: &dyn Fn() -> bool,
    ) -> Result<PeerDialogue<'_>, DialogueError> {
        let deadline = Instant::now() + time;
        let stream = TcpStream::connect_timeout(&address, time)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(time))?;
        Ok(PeerDialogue { stream, deadline, silence_max, is_over, last_id: 0 })
    }

    /// Exchanges HELLO and WELCOME, and returns the peer's id.
    pub(super) fn greet(&mut self) -> Result<PeerId, DialogueError> {
        self.send(&greeting::hello())?;
        match self.message()? {
            Message::ShareWelcome { peer, .. } => {
                greeting::peer_in_welcome(peer).map_err(DialogueError::Lie)
            }
            _ => Err(DialogueError::lie("it does not greet like a peer")),
        }
    }

    /// Sends a request and waits for its answer.
    pub(super) fn ask(&mut self, body: PeerRequest) -> Result<PeerReply, DialogueError> {
        self.last_id += 1;
        self.send(&Message::Share { id: self.last_id, body })?;
        match self.message()? {
            Message::ShareReply { id, body } if id == self.last_id => Ok(body),
            _ => Err(DialogueError::lie("it answers what it was not asked")),
        }
    }

    /// Receives exactly as many bytes as fit.
    pub(super) fn receive(&mut self, bytes: &mut [u8]) -> Result<(), DialogueError> {
        let (mut filled, mut silent_since) = (0, Instant::now());
        while filled < bytes.len() {
            let until = self.deadline.min(silent_since + self.silence_max);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || (self.is_over)() {
                return Err(DialogueError::Late);
            }
            self.stream.set_read_timeout(Some(left.min(limits::STOP_LOOK_INTERVAL)))?;
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(received) => (filled, silent_since) = (filled + received, Instant::now()),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut => {}
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    fn send(&mut self, message: &Message) -> Result<(), DialogueError> {
        let frame =
            greeting::frame(message).map_err(|error| DialogueError::Denied(error.to_string()))?;
        Ok(self.stream.write_all(&frame)?)
    }

    fn message(&mut self) -> Result<Message, DialogueError> {
        let no_peer = || DialogueError::lie("it does not answer like a peer");
        let mut header = [0; limits::FRAME_HEADER_BYTES];
        self.receive(&mut header)?;
        let length = u32::from_be_bytes(header) as usize;
        if length == 0 || length > limits::SHARE_FRAME_BYTES_MAX {
            return Err(no_peer());
        }
        let mut body = vec![0; length];
        self.receive(&mut body)?;
        match codec::decode(&body) {
            Ok(Message::Refused { reason }) => Err(DialogueError::Denied(reason)),
            Ok(message) => Ok(message),
            Err(_) => Err(no_peer()),
        }
    }
}
