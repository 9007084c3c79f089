//! Messages on a blocking stream: `wire`'s frames with the caps that hold at a client.

use std::io::{self, Read};

use crate::limits::{VALUE_BYTES_MAX, client_frame_bytes_max};
use crate::wire::codec::{self, CodecError};
use crate::wire::frame::{Deframer, FrameError};
use crate::wire::message::Message;

/// The most bytes a frame's body may have once the greeting is done, either way: a client does not
/// know the servers' `--max-value`, so it allows what any of them may.
pub(super) const FRAME_BYTES_MAX: usize = client_frame_bytes_max(VALUE_BYTES_MAX);

/// Why what arrived is not a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Message(#[from] CodecError),
}

/// Appends `message` to `out` as one frame. On an error `out` is as it was.
pub(crate) fn encode(message: &Message, out: &mut Vec<u8>) -> Result<(), CodecError> {
    codec::encode(message, FRAME_BYTES_MAX, out)
}

/// Reads messages from a stream, whatever the pieces they arrive in.
pub(crate) struct MessageReader(Deframer);

impl MessageReader {
    /// Takes frames of up to `frame_bytes_max` bytes.
    pub(crate) fn new(frame_bytes_max: usize) -> MessageReader {
        MessageReader(Deframer::new(frame_bytes_max))
    }

    /// Allows frames of another length from now on.
    pub(crate) fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.0.set_cap(frame_bytes_max);
    }

    /// Reads once. 0 is the end of the stream. Call only when [`MessageReader::next_message`] has
    /// nothing, else the buffer grows past its bound.
    pub(crate) fn fill(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        let received = stream.read(self.0.spare())?;
        self.0.commit(received);
        Ok(received)
    }

    /// The next message, if all of it has arrived.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, TransportError> {
        match self.0.next_frame()? {
            Some(body) => Ok(Some(codec::decode(body)?)),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Request;

    /// A stream that gives one byte at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            (out[0], self.0) = (*first, rest);
            Ok(1)
        }
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        let messages = [
            Message::Request { id: 1, body: Request::Status },
            Message::Ping { nonce: u64::MAX },
            Message::Refused { reason: "r".repeat(300) },
        ];
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| encode(message, &mut bytes).unwrap());
        let (mut drip, mut reader) = (Drip(&bytes), MessageReader::new(1024));
        let mut got = Vec::new();
        while reader.fill(&mut drip).unwrap() > 0 {
            got.extend(reader.next_message().unwrap());
        }
        assert_eq!(got, messages);
    }

    #[test]
    fn what_is_no_frame_or_no_message_is_refused() {
        let mut reader = MessageReader::new(100);
        reader.fill(&mut &[0, 0, 0, 101][..]).unwrap();
        assert!(matches!(reader.next_message(), Err(TransportError::Frame(_))));
        let mut reader = MessageReader::new(100);
        reader.fill(&mut &[0, 0, 0, 1, 0xc1][..]).unwrap();
        assert!(matches!(reader.next_message(), Err(TransportError::Message(_))));
    }
}
