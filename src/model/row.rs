//! What a read shows, and which rows it can ask for.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{LeaseId, Timestamp, bounded};

/// What a version says of its key, as of that version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The version with which the key came into being since it last did not exist.
    pub created: Timestamp,
    /// The number of writes since then, 1 for the one that created it; a trim takes none away.
    pub count: u64,
    /// The lease with which the key goes.
    pub lease: Option<LeaseId>,
}

impl Facts {
    /// Those of the version `at` of a key, whose newest version before it has the facts `before`;
    /// `None` where the key did not exist.
    pub fn following(before: Option<Facts>, at: Timestamp) -> Facts {
        match before {
            None => Facts { created: at, count: 1, lease: None },
            Some(before) => {
                let count = before.count.saturating_add(1);
                Facts { created: before.created, count, lease: None }
            }
        }
    }
}

/// The newest version of a key that exists, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// When that version was written.
    pub version: Timestamp,
    /// What it says of the key.
    pub facts: Facts,
}

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// When the value was written, in microseconds since the Unix epoch.
    pub timestamp: Timestamp,
    /// The value, whose bytes are the application's own.
    pub value: Bytes,
    /// What the version says of its key. `None` only in the answer to a read of one key that has
    /// not asked for it.
    pub facts: Option<Facts>,
}

/// A key, and what it has in the state that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The key that was asked for, or found in a range.
    pub key: Bytes,
    /// Its value with the version; `None` when it has none.
    pub found: Option<Version>,
}

impl Row {
    /// The value, if the key has one.
    pub fn value(&self) -> Option<&[u8]> {
        self.found.as_ref().map(|version| &version.value[..])
    }

    /// The version of the value, if the key has one.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.found.as_ref().map(|version| version.timestamp)
    }
}

/// What a page is a page of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageOf {
    /// Keys from `from` to `to`, both included, in order, that have a value.
    #[serde(rename = "RANGE")]
    Range {
        /// The first key; may be one byte longer than a key can be, as a beginning after one.
        from: Bytes,
        /// The greatest key that may be shown.
        to: Bytes,
    },
    /// The same keys as of a range, the last one first.
    #[serde(rename = "RANGE_REVERSE")]
    RangeReverse {
        /// The first key of the range, which comes last.
        from: Bytes,
        /// The last key of the range, which comes first.
        to: Bytes,
    },
    /// These keys, in this order, one row each whether they have a value or not.
    #[serde(rename = "KEYS")]
    Keys {
        /// Which: at most [`limits::TRANSACTION_KEYS_MAX`](crate::limits::TRANSACTION_KEYS_MAX).
        #[serde(deserialize_with = "bounded::keys")]
        keys: Vec<Bytes>,
    },
    /// The versions of a key up to that of the read view, newest first.
    #[serde(rename = "VERSIONS")]
    Versions {
        /// The key whose versions are shown.
        key: Bytes,
    },
    /// The keys that go with a lease now, in order, whose version in the read view names it, too.
    #[serde(rename = "LEASE")]
    Lease {
        /// The id of the lease; of one that there is not, no key is shown.
        lease: LeaseId,
        /// The first key; may be one byte longer than a key can be, as a beginning after one.
        from: Bytes,
    },
}

/// What a long read shows, whichever servers its pages come from: each key as of a version, without
/// what was removed up to a time. `storage::removals` has the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadView {
    /// The version as of which it shows each key.
    pub at: Timestamp,
    /// The time up to which removals count; not before `at`.
    pub removals_up_to: Timestamp,
}

impl ReadView {
    /// The state that holds every write up to `timestamp` and none after it.
    pub fn as_of(timestamp: Timestamp) -> ReadView {
        ReadView { at: timestamp, removals_up_to: timestamp }
    }

    /// The state just before the write that made `version`.
    pub fn before(version: Timestamp) -> ReadView {
        ReadView::as_of(Timestamp(version.0.saturating_sub(1)))
    }
}

/// Where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageNext {
    /// Of a range: `from`.
    #[serde(rename = "FROM")]
    From(Bytes),
    /// Of a range in reverse: `to`.
    #[serde(rename = "TO")]
    To(Bytes),
    /// Of keys: leave out so many.
    #[serde(rename = "SKIP")]
    Skip(u32),
    /// Of versions: the greatest that is still to be shown, which is the read view's `at` in the
    /// next page.
    #[serde(rename = "AT")]
    At(Timestamp),
}
