//! Where the rows of queued removals begin, which are ordered by time.
//!
//! New rows come at the end, and garbage collection takes them away at the front. An engine that
//! writes a marker for each row that is taken away keeps the markers until a merge drops them, and
//! a search for the oldest row from the beginning of time would step over all of them again and
//! again.
//!
//! Invariant: no row is older than the front. It is in memory alone, and at a start it is the
//! beginning of time. A search finds the same whatever it is: replicas may differ in it.

use super::keys::{self, RowRange};
use crate::model::Timestamp;

/// The time before which there are no queued removals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFront(Timestamp);

impl QueueFront {
    /// That of rows of which nothing is known.
    pub const UNKNOWN: QueueFront = QueueFront(Timestamp(i64::MIN));

    /// The rows of all queued removals, oldest first.
    pub fn queue(&self) -> RowRange {
        keys::queue_from(self.0)
    }

    /// Has the queue begin with this removal; if there is none, with any after `now`.
    pub fn set_oldest(&mut self, oldest: Option<Timestamp>, now: Timestamp) {
        self.0 = oldest.unwrap_or(now);
    }

    /// A removal of this time is queued.
    pub fn queued(&mut self, at: Timestamp) {
        self.0 = self.0.min(at);
    }
}
