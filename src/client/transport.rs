//! Frames on a blocking stream: a 4-byte big-endian length and that many bytes of MessagePack.

use std::io::{self, Read};

use crate::limits::FRAME_HEADER_BYTES;
use crate::wire::message::Message;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 64 * 1024;

/// Why a frame could not be read or made.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("a frame of {length} bytes is longer than the {max} allowed")]
    TooLong { length: usize, max: usize },
    #[error("a frame is not a message: {0}")]
    NotAMessage(#[from] rmp_serde::decode::Error),
    #[error("a frame holds {0} bytes behind its message")]
    Trailing(usize),
    #[error("a message could not be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

/// Appends `message` to `out` as one frame. On an error `out` is as it was.
pub(super) fn encode(message: &Message, out: &mut Vec<u8>) -> Result<(), TransportError> {
    let start = out.len();
    let result = encode_body(message, out, start);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_body(message: &Message, out: &mut Vec<u8>, start: usize) -> Result<(), TransportError> {
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    rmp_serde::encode::write(out, message)?;
    let length = out.len() - start - FRAME_HEADER_BYTES;
    let header = u32::try_from(length)
        .map_err(|_| TransportError::TooLong { length, max: u32::MAX as usize })?;
    out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header.to_be_bytes());
    Ok(())
}

/// Cuts frames out of a stream, whatever the pieces it arrives in.
///
/// Holds at most one frame of the allowed length and one read more: a length is checked as soon as
/// its four bytes are there, before anything is kept for the body.
pub(super) struct FrameReader {
    buffer: Vec<u8>,
    /// Everything before it has been handed out.
    start: usize,
    frame_bytes_max: usize,
}

impl FrameReader {
    pub(super) fn new(frame_bytes_max: usize) -> FrameReader {
        FrameReader { buffer: Vec::new(), start: 0, frame_bytes_max }
    }

    /// Allows frames of another length from now on.
    pub(super) fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Reads once. 0 is the end of the stream. Call only when [`FrameReader::next_message`] has
    /// nothing, else the buffer grows past its bound.
    pub(super) fn fill(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + READ_BYTES, 0);
        let result = stream.read(&mut self.buffer[held..]);
        let read = *result.as_ref().unwrap_or(&0);
        self.buffer.truncate(held + read);
        result
    }

    /// The next whole frame's message, if it has arrived.
    pub(super) fn next_message(&mut self) -> Result<Option<Message>, TransportError> {
        let rest = &self.buffer[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*header) as usize;
        if length > self.frame_bytes_max {
            return Err(TransportError::TooLong { length, max: self.frame_bytes_max });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let mut deserializer = rmp_serde::Deserializer::new(io::Cursor::new(body));
        let message = serde::Deserialize::deserialize(&mut deserializer)?;
        let trailing = length - deserializer.position() as usize;
        if trailing > 0 {
            return Err(TransportError::Trailing(trailing));
        }
        self.start += FRAME_HEADER_BYTES + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Reply, Request};
    use bytes::Bytes;

    fn frames() -> (Vec<Message>, Vec<u8>) {
        let value = Some(Bytes::from(vec![7; 300]));
        let zero = crate::types::Timestamp::ZERO;
        let messages = vec![
            Message::Request { id: 1, body: Request::Status },
            Message::Reply { id: 2, body: Reply::GetOk { value, timestamp: zero, as_of: zero } },
            Message::Ping { nonce: u64::MAX },
        ];
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| encode(message, &mut bytes).unwrap());
        (messages, bytes)
    }

    /// A stream that gives `step` bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(out.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn any_split_gives_the_same_messages() {
        let (messages, bytes) = frames();
        for step in 1..bytes.len() {
            let (mut drip, mut reader) = (Drip(&bytes, step), FrameReader::new(1024));
            let mut got = Vec::new();
            while reader.fill(&mut drip).unwrap() > 0 {
                while let Some(message) = reader.next_message().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, messages, "in steps of {step}");
        }
    }

    #[test]
    fn a_long_frame_is_refused_by_its_header_alone() {
        let mut reader = FrameReader::new(100);
        reader.fill(&mut &[0xff, 0xff, 0xff, 0xff][..]).unwrap();
        assert!(matches!(reader.next_message(), Err(TransportError::TooLong { max: 100, .. })));
    }

    #[test]
    fn garbage_and_trailing_bytes_are_refused() {
        let mut reader = FrameReader::new(100);
        reader.fill(&mut &[0, 0, 0, 1, 0xc1][..]).unwrap();
        assert!(matches!(reader.next_message(), Err(TransportError::NotAMessage(_))));

        let mut bytes = Vec::new();
        encode(&Message::Request { id: 1, body: Request::Status }, &mut bytes).unwrap();
        bytes[3] += 1;
        bytes.push(0);
        let mut reader = FrameReader::new(100);
        reader.fill(&mut &bytes[..]).unwrap();
        assert!(matches!(reader.next_message(), Err(TransportError::Trailing(1))));
    }
}
