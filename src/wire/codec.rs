//! Messages to frames and back.
//!
//! MessagePack as `docs/PROTOCOL.md` describes it. Decoding trusts nothing: nesting is limited
//! ([`MESSAGE_DEPTH_MAX`]), an announced array or string reserves no memory by itself (at most one
//! transient mebibyte of list elements, whatever the announcement), and a body must hold exactly
//! one message.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use rmp_serde::decode::Error as DecodeError;
use serde::Deserialize;

use super::message::Message;
use super::{get, replication};
use crate::limits::{FRAME_HEADER_BYTES, MESSAGE_DEPTH_MAX};
use crate::model::bounded;

/// What decodes bytes from where they lie.
pub(super) type SliceDeserializer<'de> =
    rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'de, [u8]>>;

/// Why a message could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The message does not fit the frame it is meant for.
    #[error("the message takes {bytes} bytes where a frame may have {cap}")]
    TooLong {
        /// The body's length in bytes.
        bytes: usize,
        /// The most a frame's body may have.
        cap: usize,
    },
    /// The message cannot be put into MessagePack.
    #[error("the message cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    /// A list in the message is longer than such lists may be, or transactions nest deeper than
    /// they may; nothing of it was read.
    #[error("{0}")]
    TooMany(String),
    /// The bytes are not a message.
    #[error("the frame does not hold a message: {0}")]
    Decode(#[source] DecodeError),
    /// A message, and then something else.
    #[error("the frame holds more than one message")]
    TrailingBytes,
}

/// Appends `message` to `out` as one whole frame, header included. `cap` is the most bytes its body
/// may have; on an error `out` is as it was.
pub fn encode(message: &Message, cap: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let frame_start = out.len();
    let result = encode_at(message, cap, out, frame_start);
    if result.is_err() {
        out.truncate(frame_start);
    }
    result
}

/// As [`encode`], with the long parts of the message left where they are: the frame is all of these
/// pieces in a row. The parts of one message to several servers are the same bytes for all of them.
pub fn encode_shared(message: &Message, cap: usize) -> Result<Vec<Bytes>, CodecError> {
    let mut frame = Pieces { shared: message.shared_parts().into(), ..Pieces::default() };
    frame.copied.resize(FRAME_HEADER_BYTES, 0);
    rmp_serde::encode::write(&mut frame, message)?;
    let bytes = frame.bytes;
    let cap = cap.min(u32::MAX as usize);
    if bytes > cap {
        return Err(CodecError::TooLong { bytes, cap });
    }
    frame.cut();
    let mut pieces = frame.pieces;
    // The first piece begins with the room for the length, and the check above keeps that within 32
    // bits.
    if let Some(first) = pieces.first_mut() {
        let mut with_length = first.to_vec();
        with_length[..FRAME_HEADER_BYTES].copy_from_slice(&(bytes as u32).to_be_bytes());
        *first = with_length.into();
    }
    Ok(pieces)
}

/// What is encoded into it, in pieces.
#[derive(Default)]
struct Pieces<'a> {
    /// Parts that are still to come and are not to be copied.
    shared: VecDeque<&'a Bytes>,
    pieces: Vec<Bytes>,
    copied: Vec<u8>,
    /// Of all pieces, without the header.
    bytes: usize,
}

impl Pieces<'_> {
    fn cut(&mut self) {
        if !self.copied.is_empty() {
            self.pieces.push(std::mem::take(&mut self.copied).into());
        }
    }
}

impl io::Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len();
        // The encoder writes a byte string whole, from where it lies.
        let is_shared =
            |part: &&Bytes| part.as_ptr() == bytes.as_ptr() && part.len() == bytes.len();
        match self.shared.front().copied().filter(is_shared) {
            Some(part) => {
                self.shared.pop_front();
                self.cut();
                self.pieces.push(part.clone());
            }
            None => self.copied.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn encode_at(
    message: &Message,
    cap: usize,
    out: &mut Vec<u8>,
    frame_start: usize,
) -> Result<(), CodecError> {
    let body_start = frame_start + FRAME_HEADER_BYTES;
    out.resize(body_start, 0);
    rmp_serde::encode::write(out, message)?;
    let bytes = out.len() - body_start;
    let cap = cap.min(u32::MAX as usize);
    if bytes > cap {
        return Err(CodecError::TooLong { bytes, cap });
    }
    // The check above keeps the length within 32 bits.
    out[frame_start..body_start].copy_from_slice(&(bytes as u32).to_be_bytes());
    Ok(())
}

impl From<DecodeError> for CodecError {
    fn from(error: DecodeError) -> CodecError {
        match error {
            DecodeError::Syntax(message)
                if message.starts_with(bounded::TOO_MANY)
                    || message.starts_with(bounded::TOO_DEEP) =>
            {
                CodecError::TooMany(message)
            }
            error => CodecError::Decode(error),
        }
    }
}

/// The beginning of a `REQUEST`: a map of one entry, a text of seven bytes, a list of two, in the
/// shortest forms, which senders keep to.
const REQUEST_HEAD: &[u8] = b"\x81\xa7REQUEST\x92";

/// The id of a `REQUEST` of which perhaps nothing else can be decoded, so that its sender can be
/// told. `None` when the body does not begin like one.
pub fn request_id(body: &[u8]) -> Option<u64> {
    rmp_serde::from_read(body.strip_prefix(REQUEST_HEAD)?).ok()
}

/// The id of a `REQUEST` and the bytes of what is asked for, nothing of which is decoded. `None`
/// when the body does not begin like one, or its sender has not taken the shortest form.
pub fn split_request(body: &[u8]) -> Option<(u64, &[u8])> {
    short_number(body.strip_prefix(REQUEST_HEAD)?)
}

/// Decodes a frame's body.
pub fn decode(body: &[u8]) -> Result<Message, CodecError> {
    if let Some(message) = replication::decode(body).or_else(|| get::decode(body)) {
        return Ok(message);
    }
    decode_any(body)
}

/// Decodes a body in whatever form MessagePack allows.
pub(super) fn decode_any(body: &[u8]) -> Result<Message, CodecError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
    deserializer.set_max_depth(MESSAGE_DEPTH_MAX);
    let message = Message::deserialize(&mut deserializer)?;
    match is_at_end(&mut deserializer) {
        true => Ok(message),
        false => Err(CodecError::TrailingBytes),
    }
}

/// Whether nothing is left to decode. The deserializer does not tell how far it got. Reading one
/// more scalar does: only at the very end is there no marker byte to read.
pub(super) fn is_at_end<'de>(rest: &mut SliceDeserializer<'de>) -> bool {
    matches!(bool::deserialize(rest), Err(DecodeError::InvalidMarkerRead(_)))
}

/// The id of the reply that begins with these bytes, a frame's header first; `None` where too
/// little has come, it is something else, or its sender has not taken the shortest form.
pub fn reply_id(frame: &[u8]) -> Option<u64> {
    // A map of one entry, the name, and an array of two, of which the first is the id.
    let id = frame.get(FRAME_HEADER_BYTES..)?.strip_prefix(b"\x81\xa5REPLY\x92")?;
    short_number(id).map(|(id, _)| id)
}

/// A number and the bytes behind it; `None` where too little has come, or it is something else, or
/// not in the shortest form that its kind has.
pub(super) fn short_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (form, rest) = bytes.split_first()?;
    match form {
        0..=0x7f => Some((u64::from(*form), rest)),
        0xcc => {
            rest.split_first_chunk().map(|(id, rest)| (u64::from(u8::from_be_bytes(*id)), rest))
        }
        0xcd => rest.split_first_chunk().map(|(id, rest)| (u16::from_be_bytes(*id).into(), rest)),
        0xce => rest.split_first_chunk().map(|(id, rest)| (u32::from_be_bytes(*id).into(), rest)),
        0xcf => rest.split_first_chunk().map(|(id, rest)| (u64::from_be_bytes(*id), rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::wire::message::Reply;

    #[test]
    fn the_beginning_of_a_reply_tells_its_id() {
        for id in [0, 127, 128, 255, 256, 65_535, 65_536, 1 << 32, u64::MAX] {
            let body = Reply::GetOk { found: None, as_of: Timestamp(5) };
            let mut frame = Vec::new();
            encode(&Message::Reply { id, body }, 1024, &mut frame).unwrap();
            assert_eq!(reply_id(&frame), Some(id));
            let known = (0..=frame.len()).filter_map(|length| reply_id(&frame[..length]));
            assert!(known.into_iter().all(|known| known == id), "it is told once it is there");
            frame.clear();
            encode(&Message::Ping { nonce: id }, 1024, &mut frame).unwrap();
            assert_eq!(reply_id(&frame), None);
        }
    }
}
