//! When a write took effect: the version that it made of every key it names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of the store: microseconds since the Unix epoch from the leader's hybrid logical
/// clock, strictly increasing in log order. Zero is "before every write".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Before every write: where clocks begin, and the state of a store in which nothing was ever
    /// written, which every server has reached.
    pub const ZERO: Timestamp = Timestamp(0);
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
