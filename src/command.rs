//! What a log entry says: the replicated commands and their encoding.
//!
//! Layout of an entry's data: the timestamp and the time of the log's clock as eight big-endian bytes each, then
//! the command as MessagePack. The timestamp stands apart so that a follower can learn the newest one in its
//! log without decoding the rest. Empty data is not a command but a new leader's no-op.

use bytes::{Bytes, BytesMut};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bounded;
use crate::limits;
use crate::types::{RequestId, Timestamp};

/// A write as the client asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteOp {
    /// Store a new newest version of a key.
    #[serde(rename = "PUT")]
    Put {
        /// The key: 1 byte to [`limits::KEY_BYTES_MAX`].
        key: Bytes,
        /// The value; may be empty.
        value: Bytes,
    },
    /// Store a new newest version of each key, all at one version. Of a key given twice the last value
    /// counts.
    #[serde(rename = "PUT_ALL")]
    PutAll {
        /// Keys and values: as many as [`limits::TRANSACTION_KEYS_MAX`](crate::limits) and
        /// [`limits::TRANSACTION_BYTES_MAX`](crate::limits) allow.
        #[serde(deserialize_with = "bounded::keys")]
        pairs: Vec<(Bytes, Bytes)>,
    },
    /// Remove every version of a key.
    #[serde(rename = "DEL")]
    Del {
        /// The key.
        key: Bytes,
    },
    /// Remove every version of each key.
    #[serde(rename = "DEL_ALL")]
    DelAll {
        /// The keys, limited as those of [`WriteOp::PutAll`].
        #[serde(deserialize_with = "bounded::keys")]
        keys: Vec<Bytes>,
    },
    /// Remove every version of every key of a range.
    #[serde(rename = "DEL_RANGE")]
    DelRange {
        /// The first key.
        from: Bytes,
        /// The last key.
        to: Bytes,
    },
    /// Remove every version of a key but the newest.
    #[serde(rename = "TRIM")]
    Trim {
        /// The key.
        key: Bytes,
    },
    /// Change nothing: only take a timestamp, after which no write can have an older one.
    #[serde(rename = "MARK")]
    Mark,
    /// Change what the group keeps of what newer versions have replaced.
    #[serde(rename = "SET_HISTORY")]
    SetHistory {
        /// What is kept from now on.
        history: History,
    },
}

impl WriteOp {
    /// The one key that the operation is about, if it is about one.
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            WriteOp::Put { key, .. } | WriteOp::Del { key } | WriteOp::Trim { key } => Some(key),
            WriteOp::PutAll { .. }
            | WriteOp::DelAll { .. }
            | WriteOp::DelRange { .. }
            | WriteOp::Mark
            | WriteOp::SetHistory { .. } => None,
        }
    }

    /// The keys it names and the values that go with them.
    pub fn pairs(&self) -> impl Iterator<Item = (&Bytes, Option<&Bytes>)> {
        let (one, pairs, keys, bounds) = match self {
            WriteOp::Put { key, value } => (Some((key, Some(value))), &[][..], &[][..], None),
            WriteOp::Del { key } | WriteOp::Trim { key } => {
                (Some((key, None)), &[][..], &[][..], None)
            }
            WriteOp::PutAll { pairs } => (None, &pairs[..], &[][..], None),
            WriteOp::DelAll { keys } => (None, &[][..], &keys[..], None),
            WriteOp::DelRange { from, to } => (None, &[][..], &[][..], Some([from, to])),
            WriteOp::Mark | WriteOp::SetHistory { .. } => (None, &[][..], &[][..], None),
        };
        let pairs = pairs.iter().map(|(key, value)| (key, Some(value)));
        let bounds = bounds.into_iter().flatten().map(|key| (key, None));
        one.into_iter().chain(pairs).chain(keys.iter().map(|key| (key, None))).chain(bounds)
    }

    /// Bytes of memory that it takes, about: a list of empty values is not as small as it looks.
    pub fn memory_bytes(&self) -> usize {
        let element = |bytes: &Bytes| bytes.len() + limits::ELEMENT_OVERHEAD_BYTES;
        self.pairs().map(|(key, value)| element(key) + value.map_or(0, element)).sum()
    }

    /// Bytes of all its keys and values.
    pub fn bytes(&self) -> usize {
        self.pairs().map(|(key, value)| key.len() + value.map_or(0, Bytes::len)).sum()
    }
}

/// How long versions are kept that newer ones have replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum History {
    /// For ever.
    #[default]
    #[serde(rename = "ALL")]
    All,
    /// As long as a read as of this many microseconds ago may ask for them.
    #[serde(rename = "FOR")]
    For {
        /// Of the log's own time.
        age_us: u64,
    },
    /// This many newest versions of each key.
    #[serde(rename = "VERSIONS")]
    Versions {
        /// At least 1.
        count: u32,
    },
}

impl History {
    /// Whether there is such a history: something is kept of it, and a number that is not absurd.
    pub fn can_be_kept(self) -> bool {
        match self {
            History::All => true,
            History::For { age_us } => (1..=i64::MAX as u64).contains(&age_us),
            History::Versions { count } => (1..=limits::HISTORY_VERSIONS_MAX).contains(&count),
        }
    }
}

/// As the command line reads it: `all`, `24h`, `10`.
impl std::fmt::Display for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [(u64, &str); 5] = [
            (86_400_000_000, "d"),
            (3_600_000_000, "h"),
            (60_000_000, "m"),
            (1_000_000, "s"),
            (1_000, "ms"),
        ];
        match self {
            History::All => f.write_str("all"),
            History::For { age_us } => {
                let whole = |unit: &&(u64, &str)| *age_us > 0 && age_us.is_multiple_of(unit.0);
                let (unit_us, name) = UNITS.iter().find(whole).copied().unwrap_or((1, "us"));
                write!(f, "{}{name}", age_us / unit_us)
            }
            History::Versions { count } => write!(f, "{count}"),
        }
    }
}

/// The limits on which the result of applying an entry depends: replicas with different ones would diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateLimits {
    /// [`limits::REMOVAL_SCAN_ROWS_MAX`].
    pub removal_scan_rows_max: u32,
    /// [`limits::RANGE_REMOVALS_MAX`].
    pub range_removals_max: u32,
    /// [`limits::VERSIONS_STEPPED_MAX`].
    pub versions_stepped_max: u32,
    /// [`limits::REMOVAL_GRACE`].
    pub removal_grace_us: u64,
    /// [`limits::SESSION_EXPIRY`].
    pub session_expiry_us: u64,
    /// [`limits::SESSIONS_MAX`].
    pub sessions_max: u32,
    /// [`limits::SESSION_REPLIES_MAX`].
    pub session_replies_max: u32,
    /// [`limits::SESSION_REPLIES_TOTAL_MAX`].
    pub session_replies_total_max: u32,
}

impl Default for StateLimits {
    /// What this release proposes to a new group.
    fn default() -> StateLimits {
        StateLimits {
            removal_scan_rows_max: limits::REMOVAL_SCAN_ROWS_MAX as u32,
            range_removals_max: limits::RANGE_REMOVALS_MAX as u32,
            versions_stepped_max: limits::VERSIONS_STEPPED_MAX as u32,
            removal_grace_us: limits::REMOVAL_GRACE.as_micros() as u64,
            session_expiry_us: limits::SESSION_EXPIRY.as_micros() as u64,
            sessions_max: limits::SESSIONS_MAX as u32,
            session_replies_max: limits::SESSION_REPLIES_MAX as u32,
            session_replies_total_max: limits::SESSION_REPLIES_TOTAL_MAX as u32,
        }
    }
}

/// What a group goes by. It stands in the log before the first write, so that no replica applies an entry by what
/// its own release has compiled in: a release with other limits can take part in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRules {
    /// The limits; those of the release that founded the group.
    pub limits: StateLimits,
    /// What is kept of what newer versions have replaced.
    pub history: History,
}

/// What entries may be in the log, and how they are applied: a number that rises with every release that changes
/// that. A group uses what its own level holds and no more, and its level rises when every server knows the next
/// one. A release that does not know the group's level cannot take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureLevel {
    /// The number. Every group begins at [`FeatureLevel::FIRST`].
    pub level: u32,
    /// A release that knows it, for those that do not.
    pub release: Version,
}

/// A release's version: major, minor and patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version(pub u16, pub u16, pub u16);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FeatureLevel {
    /// The level that every release knows and at which every group begins.
    pub const FIRST: FeatureLevel = FeatureLevel { level: 1, release: Version(0, 1, 0) };

    /// The newest level that this release knows.
    pub const NEWEST: FeatureLevel = FeatureLevel {
        level: 1,
        release: Version(
            decimal(env!("CARGO_PKG_VERSION_MAJOR")),
            decimal(env!("CARGO_PKG_VERSION_MINOR")),
            decimal(env!("CARGO_PKG_VERSION_PATCH")),
        ),
    };

    /// What there is to say when this is the group's level and a release knows no more than `known`: the end
    /// of a sentence.
    pub fn unknown_to(self, known: FeatureLevel) -> String {
        format!(
            "the group is at feature level {}, and this release ({}) knows levels up to {}: \
             run release {} or a newer one",
            self.level, known.release, known.level, self.release
        )
    }
}

/// Reads a number of the build's own environment.
const fn decimal(digits: &str) -> u16 {
    let (digits, mut value, mut at) = (digits.as_bytes(), 0, 0);
    while at < digits.len() {
        value = value * 10 + (digits[at] - b'0') as u16;
        at += 1;
    }
    value
}

/// What a release has compiled in that replicas could differ by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The newest feature level that it knows.
    pub level: FeatureLevel,
    /// The limits that it gives a group that it founds.
    pub limits: StateLimits,
}

impl Default for Release {
    /// This release.
    fn default() -> Release {
        StateLimits::default().into()
    }
}

impl From<StateLimits> for Release {
    /// This release with other limits.
    fn from(limits: StateLimits) -> Release {
        Release { level: FeatureLevel::NEWEST, limits }
    }
}

/// What the leader has done in the background. It travels in the log like a write, so that all replicas
/// do it at the same point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upkeep {
    /// Take what was removed off the disk, a piece of it.
    #[serde(rename = "PURGE")]
    Purge {
        /// Of removals up to this time of the log's clock.
        before_us: u64,
        /// Rows taken off the disk in this piece, at least 1.
        rows_max: u32,
        /// Bytes read for it, about: values are, for the state's hash. One row may have more.
        bytes_max: u64,
    },
    /// Remove versions past the history that is kept, a piece of them. How far the pieces before have come stands in
    /// the store.
    #[serde(rename = "SWEEP")]
    Sweep {
        /// What is kept. A piece is left out when the group's history is another one by the time it is applied.
        history: History,
        /// As of which time of the log's clock: a version that the rule keeps at this time or later is not
        /// touched.
        as_of_us: u64,
        /// Rows looked at in this piece, about; at least one is.
        rows_max: u32,
        /// Bytes read in this piece, about; one row may have more.
        bytes_max: u64,
    },
}

/// What an entry asks the state machine to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// A client's write, attributed for exactly-once application.
    #[serde(rename = "WRITE")]
    Write {
        /// Who asked, and which of its writes this is.
        request: RequestId,
        /// What to do.
        op: WriteOp,
        /// Whoever answers tells what the key had before.
        previous: bool,
    },
    /// The leader's own.
    #[serde(rename = "UPKEEP")]
    Upkeep(Upkeep),
    /// The group goes by this from here on, unless it has rules already.
    #[serde(rename = "RULES")]
    Rules(GroupRules),
    /// The group is at this level from here on, unless it is further already. This action keeps its form in all
    /// releases, so that those that do not know the level can tell.
    #[serde(rename = "LEVEL")]
    Level(FeatureLevel),
}

/// An entry as the log keeps it: ordered and stamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Assigned by the leader; the version that this write makes.
    pub timestamp: Timestamp,
    /// The time of the log's own clock, in microseconds, by which things grow old.
    pub clock_us: u64,
    /// What to do.
    pub action: Action,
}

/// Why an entry could not be read as a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Fewer bytes than a timestamp and a time.
    #[error("log entry of {0} bytes is too short to be a command")]
    TooShort(usize),
    /// The MessagePack body is not a command.
    #[error("log entry does not hold a command: {0}")]
    Body(#[from] rmp_serde::decode::Error),
}

const TIME_BYTES: usize = 8;

impl Command {
    /// A client's write at the beginning of the log's clock, from which nobody wants to know what was before.
    pub fn write(timestamp: Timestamp, request: RequestId, op: WriteOp) -> Command {
        Command { timestamp, clock_us: 0, action: Action::Write { request, op, previous: false } }
    }

    /// Encodes the command as a log entry's data.
    pub fn encode(&self) -> Bytes {
        let bytes = match &self.action {
            Action::Write { op, .. } => op.bytes(),
            Action::Upkeep(_) | Action::Rules(_) | Action::Level(_) => 0,
        };
        let mut data = Vec::with_capacity(96 + bytes);
        data.extend_from_slice(&self.timestamp.0.to_be_bytes());
        data.extend_from_slice(&self.clock_us.to_be_bytes());
        // Writing MessagePack into a growing vector cannot fail: the types hold no maps with
        // unknown length and no IO is involved.
        rmp_serde::encode::write(&mut data, &self.action).expect("encoding a command into memory");
        Bytes::from(data)
    }

    /// Decodes a log entry's data. `Ok(None)` is a no-op.
    pub fn decode(data: &[u8]) -> Result<Option<Command>, CommandError> {
        if data.is_empty() {
            return Ok(None);
        }
        let too_short = || CommandError::TooShort(data.len());
        let (head, rest) = data.split_first_chunk::<TIME_BYTES>().ok_or_else(too_short)?;
        let (clock, body) = rest.split_first_chunk::<TIME_BYTES>().ok_or_else(too_short)?;
        let action = rmp_serde::from_slice(body)?;
        let timestamp = Timestamp(i64::from_be_bytes(*head));
        Ok(Some(Command { timestamp, clock_us: u64::from_be_bytes(*clock), action }))
    }

    /// The time of the log's clock in an entry, without decoding the rest; `None` for a no-op or garbage.
    pub fn peek_clock_us(data: &[u8]) -> Option<u64> {
        let clock = data.get(TIME_BYTES..)?.first_chunk::<TIME_BYTES>()?;
        Some(u64::from_be_bytes(*clock))
    }

    /// The timestamp of an entry, without decoding the rest; `None` for a no-op or garbage.
    pub fn peek_timestamp(data: &[u8]) -> Option<Timestamp> {
        data.first_chunk::<TIME_BYTES>().map(|head| Timestamp(i64::from_be_bytes(*head)))
    }
}

/// Which operation a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// [`WriteOp::Put`].
    Put,
    /// [`WriteOp::PutAll`].
    PutAll,
    /// [`WriteOp::Del`].
    Del,
    /// [`WriteOp::DelAll`].
    DelAll,
    /// [`WriteOp::DelRange`].
    DelRange,
    /// [`WriteOp::Trim`].
    Trim,
    /// [`WriteOp::Mark`].
    Mark,
    /// [`WriteOp::SetHistory`].
    SetHistory(History),
}

impl OpKind {
    /// Whether it puts values into the store, for which there must be room on the disks.
    pub fn adds_data(self) -> bool {
        matches!(self, OpKind::Put | OpKind::PutAll)
    }
}

/// What has to be known of an operation to judge it and to answer it, without its keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpShape {
    /// Which operation it is.
    pub kind: OpKind,
    /// Keys named.
    pub keys: usize,
    /// Bytes of all keys and values.
    pub bytes: usize,
    /// The length of the shortest key; 0 without keys.
    pub key_bytes_min: usize,
    /// The length of the longest key; 0 without keys.
    pub key_bytes_max: usize,
    /// The length of the longest value; 0 without values.
    pub value_bytes_max: usize,
}

impl OpShape {
    fn of(op: &WriteOp) -> OpShape {
        let kind = match op {
            WriteOp::Put { .. } => OpKind::Put,
            WriteOp::PutAll { .. } => OpKind::PutAll,
            WriteOp::Del { .. } => OpKind::Del,
            WriteOp::DelAll { .. } => OpKind::DelAll,
            WriteOp::DelRange { .. } => OpKind::DelRange,
            WriteOp::Trim { .. } => OpKind::Trim,
            WriteOp::Mark => OpKind::Mark,
            WriteOp::SetHistory { history } => OpKind::SetHistory(*history),
        };
        let key_bytes = || op.pairs().map(|(key, _)| key.len());
        OpShape {
            kind,
            keys: op.pairs().count(),
            bytes: op.bytes(),
            key_bytes_min: key_bytes().min().unwrap_or(0),
            key_bytes_max: key_bytes().max().unwrap_or(0),
            value_bytes_max: op
                .pairs()
                .filter_map(|(_, value)| value)
                .map(Bytes::len)
                .max()
                .unwrap_or(0),
        }
    }
}

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

/// A PUT among the commands, for consoles; keys and values are lent.
#[derive(Deserialize)]
enum PutCommand<'a> {
    #[serde(rename = "WRITE")]
    Write(RequestId, #[serde(borrow)] PutOp<'a>, bool),
}

#[derive(Deserialize)]
enum PutOp<'a> {
    #[serde(rename = "PUT")]
    Put(&'a [u8], &'a [u8]),
}

impl Command {
    /// Of a PUT: its timestamp, key and value, which are parts of `data` and not copied. `None` for everything
    /// else, of which no more is read than what it is.
    pub fn put_of(data: &Bytes) -> Option<(Timestamp, Bytes, Bytes)> {
        let timestamp = Command::peek_timestamp(data)?;
        let put: PutCommand<'_> = rmp_serde::from_slice(data.get(2 * TIME_BYTES..)?).ok()?;
        let PutCommand::Write(_request, PutOp::Put(key, value), _previous) = put;
        Some((timestamp, data.slice_ref(key), data.slice_ref(value)))
    }
}

/// The result of applying a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOutcome {
    /// The version the write made. A retry gets the first application's.
    pub timestamp: Timestamp,
    /// It was not carried out, because too many large removals are under way. Sessions do not remember
    /// that: the client asks again later, as the same request.
    pub refused: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClientId;

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
                op: WriteOp::Put { key: Bytes::from_static(b"k\0\xff"), value: Bytes::new() },
                previous: true,
            },
        };
        let data = command.encode();
        assert_eq!(Command::peek_timestamp(&data), Some(command.timestamp));
        assert_eq!(Command::decode(&data).unwrap(), Some(command));
    }

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

    #[test]
    fn a_put_is_shown_from_where_it_lies_and_nothing_else_is_a_put() {
        let request = RequestId {
            client: ClientId(9),
            sequence: 2,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        let op = WriteOp::Put { key: key.clone(), value: value.clone() };
        let data = Command::write(Timestamp(5), request, op).encode();
        assert_eq!(Command::put_of(&data), Some((Timestamp(5), key.clone(), value.clone())));
        let others = [WriteOp::Mark, WriteOp::PutAll { pairs: vec![(key, value)] }];
        for op in others {
            assert_eq!(Command::put_of(&Command::write(Timestamp(5), request, op).encode()), None);
        }
        assert_eq!(Command::put_of(&Bytes::new()), None);
    }

    #[test]
    fn a_noop_is_no_command_and_garbage_is_an_error() {
        assert_eq!(Command::decode(b"").unwrap(), None);
        assert!(Command::decode(b"short").is_err());
        assert!(Command::decode(b"1234567812345678\xc1").is_err());
        assert_eq!(Command::peek_timestamp(b"short"), None);
    }
}
