//! The content of a frame: it is decoded, a server's message is checked, and a client's write is
//! encoded for the log.
//!
//! All of this takes time in proportion to the length of the frame. Short frames are decoded on the
//! event loop, long ones by `threads::decoders`.

use crate::model::EncodedWrite;
use crate::node::CheckedMessage;
use crate::text::sentence;
use crate::wire::codec::{self, CodecError};
use crate::wire::message::{Message, Request, WriteRequest};

/// The content of a frame.
#[derive(Debug)]
pub(super) enum DecodedFrame {
    /// A client's write, encoded for the log.
    Write { id: u64, write: EncodedWrite },
    /// A message of another server, checked.
    Server(CheckedMessage),
    /// Any other message, as it was decoded.
    Message(Message),
}

/// Why a frame could not be decoded.
#[derive(Debug)]
pub(super) struct Undecodable {
    /// One sentence, no longer than a reason may be.
    pub reason: String,
    /// The request's id, where it is a request that breaks no rule but a limit, and so gets an
    /// answer.
    pub request: Option<u64>,
}

/// Decodes a frame's body, and does all that takes time in proportion to its length: checks a
/// server's message, and encodes a write for the log.
pub(super) fn decode(body: &[u8]) -> Result<DecodedFrame, Undecodable> {
    match codec::decode(body) {
        Ok(Message::Request { id, body: Request::Write(write) }) => {
            let WriteRequest { request, op } = write;
            Ok(DecodedFrame::Write { id, write: EncodedWrite::new(request, op) })
        }
        Ok(Message::Server(message)) => CheckedMessage::new(message)
            .map(DecodedFrame::Server)
            .map_err(|reason| Undecodable { reason, request: None }),
        Ok(message) => Ok(DecodedFrame::Message(message)),
        Err(error) => {
            let only_too_long = matches!(error, CodecError::TooMany(_));
            let request = if only_too_long { codec::request_id(body) } else { None };
            Err(Undecodable { reason: sentence(&error.to_string()), request })
        }
    }
}
