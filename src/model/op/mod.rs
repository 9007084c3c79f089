//! The operations that change the store.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{History, bounded};
use crate::limits;

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
    pub(super) fn of(op: &WriteOp) -> OpShape {
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
