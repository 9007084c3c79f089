//! The log entries by which all replicas collect the same garbage at the same index.

use serde::{Deserialize, Serialize};

use super::History;

/// One piece of garbage collection. The leader proposes it as an entry like a write, so that all
/// replicas do it at the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GarbageCollection {
    /// Delete versions from disk that were removed.
    #[serde(rename = "PURGE")]
    Removed {
        /// Only removals up to this time of the log's clock are handled.
        before_us: u64,
        /// Rows that this piece may delete; at least one is deleted.
        rows_max: u32,
        /// Approximate number of bytes that this piece may read; values are read for the state's
        /// hash. One row may have more.
        bytes_max: u64,
    },
    /// Remove versions that the history does not keep. The progress of earlier pieces is in the
    /// store.
    #[serde(rename = "SWEEP")]
    History {
        /// The history to keep. The piece has no effect if the group's history is another one when
        /// it is applied.
        history: History,
        /// The time of the log's clock as of which versions are judged: one that the history keeps
        /// at this time or later stays.
        as_of_us: u64,
        /// Approximate number of rows that this piece may read; at least one is read.
        rows_max: u32,
        /// Approximate number of bytes that this piece may read; one row may have more.
        bytes_max: u64,
    },
    /// Remove versions that nobody can read any more since a `COMPACT`. The progress of earlier
    /// pieces is in the store, apart from that of the history.
    #[serde(rename = "COMPACT")]
    Compacted {
        /// The time of the log's clock as of which versions are judged, unless what was compacted
        /// ends earlier: one that a read as of this time or later shows stays.
        as_of_us: u64,
        /// Approximate number of rows that this piece may read; at least one is read.
        rows_max: u32,
        /// Approximate number of bytes that this piece may read; one row may have more.
        bytes_max: u64,
    },
}
