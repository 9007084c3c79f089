//! What a read shows, and which rows it can ask for.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Timestamp, bounded};

/// A key at a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The key that was asked for, or found in a range.
    pub key: Bytes,
    /// Its value; nil when it has none.
    pub value: Option<Bytes>,
    /// The value's version; 0 when there is none.
    pub timestamp: Timestamp,
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
    /// The versions of a key up to `at`, newest first.
    #[serde(rename = "VERSIONS")]
    Versions {
        /// The key whose versions are shown.
        key: Bytes,
    },
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
    /// Of versions: the greatest that is still to be shown.
    #[serde(rename = "AT")]
    At(Timestamp),
}
