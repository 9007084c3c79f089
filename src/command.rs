//! What a log entry says: the replicated commands and their encoding.
//!
//! Layout of an entry's data: the timestamp as eight big-endian bytes, then the command as
//! MessagePack. The timestamp stands apart so that a follower can learn the newest one in its log
//! without decoding the rest. Empty data is not a command but a new leader's no-op.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{RequestId, Timestamp};

/// A write as the client asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteOp {
    /// Store a new newest version of a key.
    #[serde(rename = "PUT")]
    Put {
        /// The key: 1 byte to [`limits::KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX).
        key: Bytes,
        /// The value; may be empty.
        value: Bytes,
    },
    /// Remove every version of a key.
    #[serde(rename = "DEL")]
    Del {
        /// The key.
        key: Bytes,
    },
}

impl WriteOp {
    /// The key the operation touches.
    pub fn key(&self) -> &Bytes {
        match self {
            WriteOp::Put { key, .. } | WriteOp::Del { key } => key,
        }
    }
}

/// A write as the log keeps it: ordered, stamped, attributed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Assigned by the leader; the version this write makes.
    pub timestamp: Timestamp,
    /// Who asked, for exactly-once application.
    pub request: RequestId,
    /// What to do.
    pub op: WriteOp,
}

/// Why an entry could not be read as a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Fewer bytes than a timestamp.
    #[error("log entry of {0} bytes is too short to be a command")]
    TooShort(usize),
    /// The MessagePack body is not a command.
    #[error("log entry does not hold a command: {0}")]
    Body(#[from] rmp_serde::decode::Error),
}

const TIMESTAMP_BYTES: usize = 8;

impl Command {
    /// Encodes the command as a log entry's data.
    pub fn encode(&self) -> Bytes {
        let mut data = Vec::with_capacity(64 + self.op.key().len());
        data.extend_from_slice(&self.timestamp.0.to_be_bytes());
        // Writing MessagePack into a growing vector cannot fail: the types hold no maps with
        // unknown length and no IO is involved.
        rmp_serde::encode::write(&mut data, &(&self.request, &self.op))
            .expect("encoding a command into memory");
        Bytes::from(data)
    }

    /// Decodes a log entry's data. `Ok(None)` is a no-op.
    pub fn decode(data: &[u8]) -> Result<Option<Command>, CommandError> {
        if data.is_empty() {
            return Ok(None);
        }
        let Some((head, body)) = data.split_first_chunk::<TIMESTAMP_BYTES>() else {
            return Err(CommandError::TooShort(data.len()));
        };
        let (request, op) = rmp_serde::from_slice(body)?;
        Ok(Some(Command { timestamp: Timestamp(i64::from_be_bytes(*head)), request, op }))
    }

    /// The timestamp of an entry, without decoding the rest; `None` for a no-op or garbage.
    pub fn peek_timestamp(data: &[u8]) -> Option<Timestamp> {
        data.first_chunk::<TIMESTAMP_BYTES>().map(|head| Timestamp(i64::from_be_bytes(*head)))
    }
}

/// The result of applying a write, remembered in the client's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOutcome {
    /// The version the write made. A retry gets the first application's.
    pub timestamp: Timestamp,
    /// Of a deletion: whether there was anything to delete. A PUT does not look.
    pub existed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClientId;

    #[test]
    fn a_command_survives_encoding() {
        let command = Command {
            timestamp: Timestamp(1_700_000_000_000_000),
            request: RequestId { client: ClientId(u64::MAX), sequence: 7, answered_below: 3 },
            op: WriteOp::Put { key: Bytes::from_static(b"k\0\xff"), value: Bytes::new() },
        };
        let data = command.encode();
        assert_eq!(Command::peek_timestamp(&data), Some(command.timestamp));
        assert_eq!(Command::decode(&data).unwrap(), Some(command));
    }

    #[test]
    fn a_noop_is_no_command_and_garbage_is_an_error() {
        assert_eq!(Command::decode(b"").unwrap(), None);
        assert!(Command::decode(b"short").is_err());
        assert!(Command::decode(b"12345678\xc1").is_err());
        assert_eq!(Command::peek_timestamp(b"short"), None);
    }
}
