//! Changes of keys, in the order in which they happened.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Previous, Timestamp, Version};

/// The keys from `from` to `to`, both included.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyInterval {
    /// The first key, and the first by which ranges are ordered.
    pub from: Bytes,
    pub to: Bytes,
}

impl KeyInterval {
    /// The range of one key.
    pub fn one_key(key: Bytes) -> KeyInterval {
        KeyInterval { from: key.clone(), to: key }
    }

    /// Whether it is the range of one key.
    pub fn is_one_key(&self) -> bool {
        self.from == self.to
    }

    /// Whether a key is in the range.
    pub fn covers(&self, key: &[u8]) -> bool {
        self.from[..] <= *key && *key <= self.to[..]
    }

    /// Whether the two have a key in common, of those that there can be.
    pub fn overlaps(&self, other: &KeyInterval) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// A change of one key: a new version of it, or its deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// The timestamp of the write that made it, the same for all that the write has changed.
    pub at: Timestamp,
    pub key: Bytes,
    /// The version that was written; `None` if the key was deleted.
    pub written: Option<Version>,
    /// What the key had just before; `None` where that was not asked for.
    pub previous: Option<Previous>,
}

/// How far the changes of a range have been shown, in their order: by time, and of one time by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedPosition {
    /// All changes up to this time were shown.
    pub up_to: Timestamp,
    /// Of the changes of this later time, those of the keys before this one were shown, too, and
    /// there were none in between.
    pub within: Option<(Timestamp, Bytes)>,
}

impl FeedPosition {
    /// All changes up to a time were shown, and none later.
    pub fn after(up_to: Timestamp) -> FeedPosition {
        FeedPosition { up_to, within: None }
    }

    /// Before the change of `key` at `at`, after all others before it.
    pub fn before(at: Timestamp, key: Bytes) -> FeedPosition {
        FeedPosition { up_to: Timestamp(at.0.saturating_sub(1)), within: Some((at, key)) }
    }

    /// Whether a change was not shown yet.
    pub fn is_before(&self, at: Timestamp, key: &[u8]) -> bool {
        match &self.within {
            Some((within, next)) => (*within, &next[..]) <= (at, key),
            None => self.up_to < at,
        }
    }
}
