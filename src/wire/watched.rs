//! What watches are shown, encoded once for all that are shown the same.
//!
//! The frames of two watches differ in the number of the watch alone, which stands before what is
//! shown. So a frame is put together from a beginning of its own and a rest that many share.

use bytes::Bytes;

use super::codec::{self, CodecError};
use super::message::{Message, WatchFrame};
use crate::limits::{FRAME_HEADER_BYTES, SERVER_FRAME_BYTES_MAX};

/// The beginning of a `WATCHED`: a map of one entry, the name, and a list of two, of which the
/// number of the watch is the first.
const WATCHED_HEAD: &[u8] = b"\x81\xa7WATCHED\x92";
/// Bytes of the number 0, with which a frame is encoded first, and of the longest number.
const NUMBER_BYTES: (usize, usize) = (1, 9);
/// A rest of so many bytes is not copied into each frame.
const SHARED_BYTES_MIN: usize = 4096;

/// A [`WatchFrame`] as it stands in the frames of any number of watches.
#[derive(Debug)]
pub struct EncodedWatchFrame {
    /// What comes after the number, with long values where they lie in memory.
    rest: Vec<Bytes>,
    bytes: usize,
    credit_bytes: u32,
}

impl EncodedWatchFrame {
    /// Encodes what is to be shown.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLong`], [`CodecError::Encode`].
    pub fn new(shown: WatchFrame) -> Result<EncodedWatchFrame, CodecError> {
        let credit_bytes = shown.credit_bytes();
        let message = Message::Watched { watch: 0, body: shown };
        let most = SERVER_FRAME_BYTES_MAX - (NUMBER_BYTES.1 - NUMBER_BYTES.0);
        let mut rest = match message.shared_parts().is_empty() {
            true => {
                let mut frame = Vec::new();
                codec::encode(&message, most, &mut frame)?;
                vec![Bytes::from(frame)]
            }
            false => codec::encode_shared(&message, most)?,
        };
        let before = FRAME_HEADER_BYTES + WATCHED_HEAD.len() + NUMBER_BYTES.0;
        let beginning = rest[0].split_to(before);
        assert!(
            beginning[FRAME_HEADER_BYTES..before - NUMBER_BYTES.0] == *WATCHED_HEAD,
            "a frame of a watch begins with {beginning:?}"
        );
        let bytes = rest.iter().map(Bytes::len).sum();
        Ok(EncodedWatchFrame { rest, bytes, credit_bytes })
    }

    /// What it takes of a watch's credit.
    pub fn credit_bytes(&self) -> u32 {
        self.credit_bytes
    }

    /// Appends the frame of a watch to `out`, but for what is returned, which comes behind it.
    pub fn put(&self, watch: u64, out: &mut Vec<u8>) -> Result<&[Bytes], CodecError> {
        let start = out.len();
        out.resize(start + FRAME_HEADER_BYTES, 0);
        out.extend_from_slice(WATCHED_HEAD);
        rmp_serde::encode::write(out, &watch)?;
        let body_bytes = out.len() - start - FRAME_HEADER_BYTES + self.bytes;
        // It is within the most bytes of a frame, which 32 bits have room for.
        let length = (body_bytes as u32).to_be_bytes();
        out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&length);
        match &self.rest[..] {
            [short] if short.len() < SHARED_BYTES_MIN => {
                out.extend_from_slice(short);
                Ok(&[])
            }
            rest => Ok(rest),
        }
    }
}
