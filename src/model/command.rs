//! What a log entry says: the replicated commands and their encoding.
//!
//! Layout of an entry's data: the timestamp and the time of the log's clock as eight big-endian
//! bytes each, then the command as MessagePack. The timestamp stands apart so that a follower can
//! learn the newest one in its log without decoding the rest. Empty data is not a command but a new
//! leader's no-op.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Condition, FeatureLevel, GarbageCollection, GroupRules, LeaseRecord, OpShape, RequestId,
    Timestamp, WriteOp, check_key,
};

/// What an entry asks the state machine to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// A client's write, attributed for exactly-once application.
    #[serde(rename = "WRITE")]
    Write {
        /// Who asked, and which of its writes this is.
        request: RequestId,
        /// The operation that is applied, once.
        op: WriteOp,
    },
    /// Work in the background, which the leader has proposed by itself.
    #[serde(rename = "UPKEEP")]
    GarbageCollection(GarbageCollection),
    /// The group goes by this from here on, unless it has rules already.
    #[serde(rename = "RULES")]
    Rules(GroupRules),
    /// The group is at this level from here on, unless it is further already. This action keeps its
    /// form in all releases, so that those that do not know the level can tell.
    #[serde(rename = "LEVEL")]
    Level(FeatureLevel),
    /// What the leader has found out about leases.
    #[serde(rename = "LEASES")]
    Leases(LeaseRecord),
}

/// An entry as the log keeps it: ordered and stamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Assigned by the leader; the version that this write makes.
    pub timestamp: Timestamp,
    /// The time of the log's own clock, in microseconds, by which things grow old.
    pub clock_us: u64,
    pub action: Action,
}

/// Why an entry could not be read as a command.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Fewer bytes than a timestamp and a time.
    #[error("log entry of {0} bytes is too short to be a command")]
    TooShort(usize),
    /// The MessagePack body is not a command.
    #[error("log entry does not hold a command: {0}")]
    Body(#[from] rmp_serde::decode::Error),
    /// Something follows the command.
    #[error("log entry of {0} bytes holds more than a command")]
    TooLong(usize),
}

pub(super) const TIME_BYTES: usize = 8;

/// What a lease takes in a [`LeaseRecord`]: three numbers and the heads of two lists.
const LEASE_BYTES_MAX: usize = 3 * 9 + 2;

impl Command {
    /// A client's write at the beginning of the log's clock, as tests make them.
    #[cfg(any(test, feature = "internals"))]
    pub fn write(timestamp: Timestamp, request: RequestId, op: WriteOp) -> Command {
        Command { timestamp, clock_us: 0, action: Action::Write { request, op } }
    }

    /// Encodes the command as a log entry's data.
    pub fn encode(&self) -> Bytes {
        let bytes = match &self.action {
            Action::Write { op, .. } => OpShape::of(op).bytes,
            Action::Leases(record) => (record.ends.len() + record.rests.len()) * LEASE_BYTES_MAX,
            Action::GarbageCollection(_) | Action::Rules(_) | Action::Level(_) => 0,
        };
        let mut data = Vec::with_capacity(96 + bytes);
        data.extend_from_slice(&self.timestamp.0.to_be_bytes());
        data.extend_from_slice(&self.clock_us.to_be_bytes());
        // Writing MessagePack into a growing vector cannot fail: the types hold no maps with
        // unknown length and no IO is involved.
        rmp_serde::encode::write(&mut data, &self.action).expect("encoding a command into memory");
        Bytes::from(data)
    }

    /// Decodes a log entry's data. `Ok(None)` is a no-op. What follows a command is refused:
    /// nothing that limits an operation counts these bytes, and an entry that is longer than a
    /// frame could never be sent to another server.
    pub fn decode(data: &[u8]) -> Result<Option<Command>, EntryError> {
        if data.is_empty() {
            return Ok(None);
        }
        let too_short = || EntryError::TooShort(data.len());
        let (head, rest) = data.split_first_chunk::<TIME_BYTES>().ok_or_else(too_short)?;
        let (clock, body) = rest.split_first_chunk::<TIME_BYTES>().ok_or_else(too_short)?;
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
        let action = Action::deserialize(&mut deserializer)?;
        if !is_at_end(&mut deserializer) {
            return Err(EntryError::TooLong(data.len()));
        }
        let timestamp = Timestamp(i64::from_be_bytes(*head));
        Ok(Some(Command { timestamp, clock_us: u64::from_be_bytes(*clock), action }))
    }

    /// The time of the log's clock in an entry, without decoding the rest; `None` for a no-op or
    /// garbage.
    pub fn peek_clock_us(data: &[u8]) -> Option<u64> {
        let clock = data.get(TIME_BYTES..)?.first_chunk::<TIME_BYTES>()?;
        Some(u64::from_be_bytes(*clock))
    }

    /// The timestamp of an entry, without decoding the rest; `None` for a no-op or garbage.
    pub fn peek_timestamp(data: &[u8]) -> Option<Timestamp> {
        data.first_chunk::<TIME_BYTES>().map(|head| Timestamp(i64::from_be_bytes(*head)))
    }
}

/// A PUT among the commands; keys and values are lent.
#[derive(Deserialize)]
enum PutCommand<'a> {
    #[serde(rename = "WRITE")]
    Write(RequestId, #[serde(borrow)] PutOp<'a>),
}

/// The kinds of operations may be encoded by their positions among those of [`WriteOp`], so those
/// before the last one here have their places.
#[derive(Deserialize)]
pub(super) enum PutOp<'a> {
    #[serde(rename = "PUT")]
    Put(&'a [u8], &'a [u8], bool),
    #[serde(rename = "PUT_ALL")]
    PutAll(NotPut),
    #[serde(rename = "PUT_IF")]
    PutIf(&'a [u8], &'a [u8], Condition),
}

/// An operation that is not lent: nothing decodes to it.
#[derive(Deserialize)]
pub(super) enum NotPut {}

/// How a client's write begins: a map of one entry, a text of five bytes, a list of two.
const WRITE_HEAD: &[u8] = b"\x81\xa5WRITE\x92";

/// Reads a PUT where it lies, if `action` is one and nothing else.
pub(super) fn lend_put(action: &[u8]) -> Option<(RequestId, PutOp<'_>)> {
    // Sooner than the decoder, which would write a sentence on anything else.
    if !action.starts_with(WRITE_HEAD) {
        return None;
    }
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(action);
    let PutCommand::Write(request, op) = PutCommand::deserialize(&mut deserializer).ok()?;
    is_at_end(&mut deserializer).then_some((request, op))
}

/// Whether everything was read: only at the end is there no marker byte to read.
fn is_at_end<'de>(
    deserializer: impl serde::Deserializer<'de, Error = rmp_serde::decode::Error>,
) -> bool {
    let rest = bool::deserialize(deserializer);
    matches!(rest, Err(rmp_serde::decode::Error::InvalidMarkerRead(_)))
}

impl Command {
    /// Of a PUT without a condition: its timestamp, key and value, which are parts of `data` and
    /// not copied. `None` for everything else, of which no more is read than what it is.
    pub fn put_of(data: &Bytes) -> Option<(Timestamp, Bytes, Bytes)> {
        match Command::put_op(data)? {
            PutOp::Put(key, value, _tells_previous) => Command::put_parts(data, key, value),
            PutOp::PutIf(..) => None,
            PutOp::PutAll(never) => match never {},
        }
    }

    /// The same of every PUT that consoles show, which may turn out to change nothing if it has a
    /// condition.
    pub fn shown_put_of(data: &Bytes) -> Option<(Timestamp, Bytes, Bytes)> {
        let (key, value) = match Command::put_op(data)? {
            PutOp::Put(key, value, _tells_previous) => (key, value),
            PutOp::PutIf(key, value, _condition) => (key, value),
            PutOp::PutAll(never) => match never {},
        };
        Command::put_parts(data, key, value)
    }

    fn put_op(data: &Bytes) -> Option<PutOp<'_>> {
        let (_request, op) = lend_put(data.get(2 * TIME_BYTES..)?)?;
        Some(op)
    }

    /// Whether an entry's data is a PUT of a key that can exist, of which nothing is copied to
    /// tell.
    pub fn is_put(data: &[u8]) -> bool {
        let put = data.get(2 * TIME_BYTES..).and_then(lend_put);
        put.is_some_and(|(_, op)| match op {
            PutOp::Put(key, ..) | PutOp::PutIf(key, ..) => check_key(key).is_ok(),
            PutOp::PutAll(never) => match never {},
        })
    }

    fn put_parts(data: &Bytes, key: &[u8], value: &[u8]) -> Option<(Timestamp, Bytes, Bytes)> {
        let timestamp = Command::peek_timestamp(data)?;
        Some((timestamp, data.slice_ref(key), data.slice_ref(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Barrier, ClientId, Put, PutAll, PutIf};

    const REQUEST: RequestId =
        RequestId { client: ClientId(9), sequence: 2, answered_below: 1, begun: Timestamp::ZERO };

    #[test]
    fn a_command_survives_encoding() {
        let command = Command {
            timestamp: Timestamp(1_700_000_000_000_000),
            clock_us: u64::MAX - 5,
            action: Action::Write {
                request: RequestId {
                    client: ClientId(u64::MAX),
                    sequence: 7,
                    answered_below: 3,
                    begun: Timestamp::ZERO,
                },
                op: WriteOp::Put(Put {
                    key: Bytes::from_static(b"k\0\xff"),
                    value: Bytes::new(),
                    tells_previous: false,
                }),
            },
        };
        let data = command.encode();
        assert_eq!(Command::peek_timestamp(&data), Some(command.timestamp));
        assert_eq!(Command::decode(&data).unwrap(), Some(command));
    }

    #[test]
    fn a_put_is_shown_from_where_it_lies_and_nothing_else_is_a_put() {
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        let op =
            WriteOp::Put(Put { key: key.clone(), value: value.clone(), tells_previous: false });
        let data = Command::write(Timestamp(5), REQUEST, op).encode();
        let shown = Some((Timestamp(5), key.clone(), value.clone()));
        assert_eq!((Command::put_of(&data), Command::shown_put_of(&data)), (shown.clone(), shown));
        let (condition, shown) = (Condition::Version(Timestamp(4)), Command::put_of(&data));
        let put_if = PutIf { key: key.clone(), value: value.clone(), condition };
        let data = Command::write(Timestamp(5), REQUEST, put_if.into()).encode();
        assert_eq!((Command::put_of(&data), Command::shown_put_of(&data)), (None, shown));
        let others =
            [WriteOp::Barrier(Barrier {}), WriteOp::PutAll(PutAll { pairs: vec![(key, value)] })];
        for op in others {
            let data = Command::write(Timestamp(5), REQUEST, op).encode();
            assert_eq!((Command::put_of(&data), Command::shown_put_of(&data)), (None, None));
        }
        assert_eq!(Command::put_of(&Bytes::new()), None);
    }

    /// An entry that was taken for a PUT_IF could not be applied, and its server never started
    /// again.
    #[test]
    fn what_is_taken_for_a_put_can_be_applied_also_where_its_kind_is_a_number() {
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        let condition = Condition::Version(Timestamp(4));
        let put = Put { key: key.clone(), value: value.clone(), tells_previous: true };
        let puts = [
            (&b"\xa3PUT"[..], WriteOp::Put(put)),
            (b"\xa6PUT_IF", PutIf { key: key.clone(), value: value.clone(), condition }.into()),
            (b"\xa7PUT_ALL", WriteOp::PutAll(PutAll { pairs: vec![(key, value)] })),
        ];
        let mut taken = 0;
        for (name, op) in puts {
            let data = Command::write(Timestamp(5), REQUEST, op).encode();
            let at = data.windows(name.len()).position(|part| part == name).unwrap();
            for kind in 0..16 {
                let numbered = [&data[..at], &[kind], &data[at + name.len()..]].concat();
                if Command::is_put(&numbered) {
                    assert_eq!(
                        Command::decode(&numbered).unwrap(),
                        Command::decode(&data).unwrap()
                    );
                    taken += 1;
                }
            }
        }
        assert_eq!(taken, 2);
    }

    /// A write that was passed on with sixteen megabytes behind it was ordered, and then could not
    /// be sent to any server: the group took no other write until its leader was ended.
    #[test]
    fn nothing_follows_a_command() {
        let ops = [
            WriteOp::Barrier(Barrier {}),
            Put { key: Bytes::from_static(b"k"), value: Bytes::new(), tells_previous: false }
                .into(),
        ];
        for op in ops {
            let data = Command::write(Timestamp(5), REQUEST, op).encode();
            for more in [&b"\xc0"[..], b"\xc1", &[7; 1000]] {
                let longer = [&data[..], more].concat();
                assert!(matches!(Command::decode(&longer), Err(EntryError::TooLong(_))));
            }
        }
    }

    #[test]
    fn a_noop_is_no_command_and_garbage_is_an_error() {
        assert_eq!(Command::decode(b"").unwrap(), None);
        assert!(Command::decode(b"short").is_err());
        assert!(Command::decode(b"1234567812345678\xc1").is_err());
        assert_eq!(Command::peek_timestamp(b"short"), None);
    }
}
