//! A client's write as a log entry's data, encoded once, where it was decoded: what passes it on, orders it or lets it
//! wait touches none of its keys and values, of which there may be a hundred thousand.

use bytes::{Bytes, BytesMut};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::command::TIME_BYTES;
use super::{Action, Command, OpShape, RequestId, Timestamp, WriteOp};
use crate::limits;

/// A client's write as a log entry's data, encoded once, where it was decoded: what passes it on, orders it or
/// lets it wait touches none of its keys and values, of which there may be a hundred thousand.
///
/// Between servers it travels as these bytes, whose timestamp then has no meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedWrite {
    /// Who asks, and which of its writes this is.
    pub request: RequestId,
    /// Whoever answers tells what the key had before.
    pub previous: bool,
    /// What it is.
    pub shape: OpShape,
    data: Bytes,
}

impl EncodedWrite {
    /// Encodes a write. Takes as long as the write is.
    pub fn new(request: RequestId, op: WriteOp, previous: bool) -> EncodedWrite {
        let shape = OpShape::of(&op);
        let action = Action::Write { request, op, previous };
        let data = Command { timestamp: Timestamp::ZERO, clock_us: 0, action }.encode();
        EncodedWrite { request, previous, shape, data }
    }

    /// Takes what another server has encoded, if it is a write. Takes as long as the write is.
    ///
    /// # Errors
    /// Anything else; one sentence.
    pub fn from_data(data: Bytes) -> Result<EncodedWrite, String> {
        match Command::decode(&data) {
            Ok(Some(Command { action: Action::Write { request, op, previous }, .. })) => {
                Ok(EncodedWrite { request, previous, shape: OpShape::of(&op), data })
            }
            Ok(_) => Err("a write is expected, and this is another command".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Gives it its place in the order: the entry's data. The bytes are copied only when an earlier stamping
    /// is still in use.
    pub fn stamp(&mut self, timestamp: Timestamp, clock_us: u64) -> Bytes {
        let data = std::mem::take(&mut self.data);
        let mut data = data.try_into_mut().unwrap_or_else(|in_use| BytesMut::from(&in_use[..]));
        // Nothing shorter was encoded, and nothing shorter is a command.
        let (head, rest) = data.split_at_mut(TIME_BYTES);
        head.copy_from_slice(&timestamp.0.to_be_bytes());
        rest[..TIME_BYTES].copy_from_slice(&clock_us.to_be_bytes());
        self.data = data.freeze();
        self.data.clone()
    }

    /// Bytes of memory that it takes, about.
    pub fn memory_bytes(&self) -> usize {
        self.data.len() + limits::ELEMENT_OVERHEAD_BYTES
    }

    /// Its bytes, for whoever sends it.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

impl Serialize for EncodedWrite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.data.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for EncodedWrite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EncodedWrite, D::Error> {
        EncodedWrite::from_data(Bytes::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClientId, OpKind};

    #[test]
    fn an_encoded_write_is_the_command_it_becomes() {
        let request = RequestId {
            client: ClientId(9),
            sequence: 2,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let pair = |key: &'static [u8], value: &'static [u8]| {
            (Bytes::from_static(key), Bytes::from_static(value))
        };
        let pairs = vec![pair(b"a", b"long value"), pair(b"key", b"")];
        let op = WriteOp::PutAll { pairs };
        let mut write = EncodedWrite::new(request, op.clone(), false);
        let shape = OpShape {
            kind: OpKind::PutAll,
            keys: 2,
            bytes: 14,
            key_bytes_min: 1,
            key_bytes_max: 3,
            value_bytes_max: 10,
        };
        assert_eq!(write.shape, shape);
        let stamped = write.stamp(Timestamp(5), 0);
        assert_eq!(stamped, Command::write(Timestamp(5), request, op).encode());
        let again = write.stamp(Timestamp(6), 0);
        assert_eq!(Command::peek_timestamp(&stamped), Some(Timestamp(5)), "it is in the log");
        assert_eq!(Command::peek_timestamp(&again), Some(Timestamp(6)));

        let travelled = rmp_serde::to_vec(&write).unwrap();
        assert_eq!(rmp_serde::from_slice::<EncodedWrite>(&travelled).unwrap(), write);
        for other in [Bytes::new(), Bytes::from_static(b"12345678\xc1")] {
            let travelled = rmp_serde::to_vec(&other).unwrap();
            assert!(rmp_serde::from_slice::<EncodedWrite>(&travelled).is_err());
        }
    }

    /// A leader stamps where the bytes lie: eight megabytes are not copied for a timestamp.
    #[test]
    fn the_first_stamp_copies_nothing() {
        let request = RequestId {
            client: ClientId(9),
            sequence: 2,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op = WriteOp::Put { key: Bytes::from_static(b"k"), value: vec![7; 1000].into() };
        let mut write = EncodedWrite::new(request, op, false);
        let place = write.data().as_ptr();
        assert_eq!(write.stamp(Timestamp(5), 0).as_ptr(), place);
    }
}
