//! Where the rows begin that are ordered by time: queued removals, and superseding versions.
//!
//! New rows of both come at the end, and garbage collection takes them away at the front. An engine
//! that writes a marker for each row that is taken away keeps the markers until a merge drops them,
//! and a search for the oldest row from the beginning of time would step over all of them again and
//! again.
//!
//! Invariant: no row is older than its front. The fronts are in memory alone, and at a start they
//! are the beginning of time. A search finds the same whatever they are: replicas may differ in
//! them.

use super::keys::{self, RowRange};
use crate::model::Timestamp;

/// Times before which there are no rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFronts {
    removals: Timestamp,
    superseding: Timestamp,
}

impl QueueFronts {
    /// Those of rows of which nothing is known.
    pub const UNKNOWN: QueueFronts =
        QueueFronts { removals: Timestamp(i64::MIN), superseding: Timestamp(i64::MIN) };

    /// The rows of all queued removals, oldest first.
    pub fn queue(&self) -> RowRange {
        keys::queue_from(self.removals)
    }

    /// The superseding rows, oldest first.
    pub fn superseding(&self) -> RowRange {
        keys::superseding_from(self.superseding)
    }

    /// Has the queue begin with this removal; if there is none, with any after `now`.
    pub fn set_oldest_removal(&mut self, oldest: Option<Timestamp>, now: Timestamp) {
        self.removals = oldest.unwrap_or(now);
    }

    /// The same of superseding rows.
    pub fn set_oldest_superseding(&mut self, oldest: Option<Timestamp>, now: Timestamp) {
        self.superseding = oldest.unwrap_or(now);
    }

    /// A removal of this time is queued.
    pub fn queued(&mut self, at: Timestamp) {
        self.removals = self.removals.min(at);
    }

    /// There is a superseding row of this time.
    pub fn superseded(&mut self, at: Timestamp) {
        self.superseding = self.superseding.min(at);
    }
}
