//! What the leader has done in the background, as entries of the log.

use serde::{Deserialize, Serialize};

use super::History;

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
