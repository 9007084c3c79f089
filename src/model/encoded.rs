//! A client's write as a log entry's data, encoded once, where it was decoded: what passes it on,
//! orders it or lets it wait touches none of its keys and values, of which there may be a hundred
//! thousand.
//!
//! Between servers it travels as these bytes, whose timestamp then has no meaning.

use bytes::{Bytes, BytesMut};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::command::{PutOp, TIME_BYTES, lend_put};
use super::{Action, Command, LeaseChange, OpShape, Operation, Put, RequestId, Timestamp, WriteOp};
use crate::limits;

/// A write with what has to be known of it until it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedWrite {
    /// Who asks, and which of its writes this is.
    pub request: RequestId,
    /// What is known of the operation without its keys and values.
    pub shape: OpShape,
    /// Why the operation can never be carried out, a sentence.
    fault: Option<String>,
    /// Of few writes, and so in few words.
    lease_change: Option<Box<LeaseChange>>,
    data: Bytes,
}

impl EncodedWrite {
    /// Encodes a write. Takes as long as the write is.
    pub fn new(request: RequestId, op: WriteOp) -> EncodedWrite {
        let (shape, fault) = (OpShape::of(&op), op.check().err());
        let lease_change = LeaseChange::of(&op).map(Box::new);
        let action = Action::Write { request, op };
        let data = Command { timestamp: Timestamp::ZERO, clock_us: 0, action }.encode();
        EncodedWrite { request, shape, fault, lease_change, data }
    }

    /// Takes a client's PUT as it was encoded for the wire, which is how the log has it: it is
    /// copied as a whole, and nothing of it is encoded again. `None` for everything else, and for a
    /// PUT in another form than servers write.
    pub fn of_put(action: &[u8]) -> Option<EncodedWrite> {
        let (request, PutOp::Put(key, value, tells_previous)) = lend_put(action)? else {
            return None;
        };
        let (key_bytes, value_bytes) = (key.len(), value.len());
        let mut data = Vec::with_capacity(2 * TIME_BYTES + action.len());
        data.resize(2 * TIME_BYTES, 0);
        data.extend_from_slice(action);
        // The keys and values are not looked at to tell the rest.
        let (key, value) = (Bytes::new(), Bytes::new());
        let put = WriteOp::Put(Put { key, value, tells_previous });
        let (shape, fault) = (OpShape::of_put(&put, key_bytes, value_bytes), put.check().err());
        Some(EncodedWrite { request, shape, fault, lease_change: None, data: data.into() })
    }

    /// Takes what another server has encoded, if it is a write. Takes as long as the write is.
    ///
    /// # Errors
    /// Anything else; one sentence.
    pub fn from_data(data: Bytes) -> Result<EncodedWrite, String> {
        match Command::decode(&data) {
            Ok(Some(Command { action: Action::Write { request, op }, .. })) => {
                let (shape, fault) = (OpShape::of(&op), op.check().err());
                let lease_change = LeaseChange::of(&op).map(Box::new);
                Ok(EncodedWrite { request, shape, fault, lease_change, data })
            }
            Ok(_) => Err("a write is expected, and this is another command".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Refuses a write that breaks a rule or a limit. Values may have `value_bytes_max` bytes,
    /// which servers are told.
    ///
    /// # Errors
    /// What is wrong, and what to do instead: one sentence for a person.
    pub fn check(&self, value_bytes_max: usize) -> Result<(), String> {
        let OpShape { keys, bytes, value_bytes_max: longest, .. } = self.shape;
        self.shape.check_keys().map_err(|error| error.to_string())?;
        if longest > value_bytes_max {
            return Err(format!(
                "the value has {longest} bytes and at most {value_bytes_max} are allowed: \
                 split it, or start the servers with a greater --max-value"
            ));
        }
        if keys > limits::TRANSACTION_KEYS_MAX {
            return Err(format!(
                "the write names {keys} keys and at most {} can be written at once: make it \
                 several writes",
                limits::TRANSACTION_KEYS_MAX
            ));
        }
        if bytes > limits::TRANSACTION_BYTES_MAX {
            return Err(format!(
                "the write has {bytes} bytes and at most {} can be written at once: make it \
                 several writes",
                limits::TRANSACTION_BYTES_MAX
            ));
        }
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.request.sequence == 0 || self.request.answered_below > self.request.sequence {
            return Err("the request's sequence numbers break the protocol: count from 1".into());
        }
        Ok(())
    }

    /// Gives it its place in the order: the entry's data. The bytes are copied only when an earlier
    /// stamping is still in use.
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

    /// What it is to do to a lease, if that is what it is for.
    pub fn lease_change(&self) -> Option<&LeaseChange> {
        self.lease_change.as_deref()
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
    use crate::model::{ClientId, OpResult, PutAll};

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
        let op = WriteOp::PutAll(PutAll { pairs });
        let mut write = EncodedWrite::new(request, op.clone());
        assert_eq!((write.shape.keys, write.shape.values, write.shape.bytes), (2, 2, 14));
        assert_eq!((write.shape.key_bytes_min, write.shape.key_bytes_max), (Some(1), 3));
        assert_eq!(write.shape.value_bytes_max, 10);
        assert_eq!(write.shape.known_at_commit, Some(OpResult::Done));
        let stamped = write.stamp(Timestamp(5), 0);
        assert_eq!(stamped, Command::write(Timestamp(5), request, op).encode());
        let again = write.stamp(Timestamp(6), 0);
        assert_eq!(Command::peek_timestamp(&stamped), Some(Timestamp(5)), "it is in the log");
        assert_eq!(Command::peek_timestamp(&again), Some(Timestamp(6)));

        let travelled = rmp_serde::to_vec(&write).unwrap();
        assert_eq!(rmp_serde::from_slice::<EncodedWrite>(&travelled).unwrap(), write);
        let longer = [&write.data()[..], &[7]].concat().into();
        for other in [Bytes::new(), Bytes::from_static(b"12345678\xc1"), longer] {
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
        let op = WriteOp::Put(Put {
            key: Bytes::from_static(b"k"),
            value: vec![7; 1000].into(),
            tells_previous: false,
        });
        let mut write = EncodedWrite::new(request, op);
        let place = write.data().as_ptr();
        assert_eq!(write.stamp(Timestamp(5), 0).as_ptr(), place);
    }
}
