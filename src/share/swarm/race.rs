//! Assigns chunks that are assigned already to one more source: because they are overdue, because a
//! source has stalled over them, or because nothing else is left (the endgame).
//!
//! A source has *stalled* over a chunk if it should have sent it long ago and has stopped sending
//! (`SwarmSource::is_stalled_over`). What counts is what a source does with its chunks, not how
//! fast it seems: a liar may be the fastest at everything but the chunk it withholds.

use std::time::Duration;

use super::source::Assignment;
use super::{SourceId, Swarm};
use crate::limits;

impl Swarm {
    /// Counts new stalls, each at its source and at its chunk.
    pub(super) fn note_stalls(&mut self, now: Duration) {
        for id in &self.in_use {
            let source = &mut self.sources[id.0];
            for at in 0..source.assignments.len() {
                let assignment = source.assignments[at];
                if !assignment.stalled && source.is_stalled_over(&assignment, now) {
                    source.assignments[at].stalled = true;
                    source.stalls = source.stalls.saturating_add(1);
                    self.chunks.add_stall(assignment.chunk);
                }
            }
        }
    }

    /// A source that disconnects counts as stalled over the chunk that it was to send next.
    pub(super) fn note_stall_of_oldest(&mut self, id: SourceId) {
        let source = &mut self.sources[id.0];
        let oldest = source.assignments.first_mut();
        if let Some(assignment) = oldest.filter(|assignment| !assignment.stalled) {
            assignment.stalled = true;
            source.stalls = source.stalls.saturating_add(1);
            self.chunks.add_stall(assignment.chunk);
        }
    }

    /// Picks an overdue chunk of another source, if this source should need at most half of the
    /// time for which it has been outstanding. The rate of the other source does not matter.
    pub(super) fn pick_overdue(&mut self, id: SourceId, now: Duration) -> Option<u64> {
        let (source, own_s) = (&self.sources[id.0], self.sources[id.0].expected_next_s());
        let at = self.overdue.iter().position(|chunk| {
            let [assignee] = self.chunks.assignees(*chunk) else { return false };
            let assignment = self.assignment(*assignee, *chunk);
            *assignee != id
                && source.has(*chunk)
                && outstanding_s(assignment, now) >= 2.0 * own_s
                && self.is_fit(id, *chunk, now)
        })?;
        Some(self.overdue.swap_remove(at))
    }

    /// Whether a source is the right one to be asked as well for an assigned chunk: no other source
    /// that has it has stalled less, or is expected to be far faster. The more sources have stalled
    /// over the chunk, the less an apparent speed counts.
    fn is_fit(&self, id: SourceId, chunk: u64, now: Duration) -> bool {
        let own = &self.sources[id.0];
        let assignees = self.chunks.assignees(chunk);
        let others = self.in_use.iter().filter(|other| **other != id && !assignees.contains(other));
        let mut others = others
            .map(|other| &self.sources[other.0])
            .filter(|other| other.is_ready() && other.has(chunk) && !other.is_busy(now));
        // A source that has sent nothing yet is only asked if none of the others has either.
        let own_s = if own.meter.rate() > 0.0 { own.expected_next_s() } else { f64::INFINITY };
        let factor = f64::from(2u32 << self.chunks.stalls(chunk).min(16));
        !others.any(|other| {
            let is_far_quicker =
                other.meter.rate() > 0.0 && factor * other.expected_next_s() < own_s;
            other.stalls < own.stalls && other.is_quick()
                || other.stalls <= own.stalls && is_far_quicker
        })
    }

    /// The request for a chunk at one of its assignees.
    fn assignment(&self, id: SourceId, chunk: u64) -> &Assignment {
        let mut assignments = self.sources[id.0].assignments.iter();
        let found = assignments.find(|assignment| assignment.chunk == chunk);
        // Chunks and sources are changed together in `ask`, `arrived`, `unassign` and `release`.
        found.unwrap_or_else(|| panic!("{id:?} is an assignee of chunk {chunk}"))
    }

    /// Whether a stalled chunk may be assigned to one more source, which would need `own_s` for it.
    /// As many may be asked at once as have stalled over it, so their number doubles with each
    /// round. Assignees that are slower than this source do not count.
    fn is_open_to_race(&self, chunk: u64, own_s: f64, now: Duration) -> bool {
        let assignees = self.chunks.assignees(chunk);
        let assignments = assignees.iter().map(|assignee| self.assignment(*assignee, chunk));
        // A source that has sent nothing yet is expected to need no time, which means nothing.
        let soon_s = own_s.max(2.0 * limits::CHUNK_STALLED.as_secs_f64());
        let awaited = assignments.filter(|assignment| {
            let rest = (assignment.at + assignment.due).saturating_sub(now);
            let is_new = now.saturating_sub(assignment.at) < limits::CHUNK_STALLED;
            !assignment.stalled && (is_new || rest.as_secs_f64() <= soon_s)
        });
        awaited.count() < self.chunks.stalls(chunk) as usize
    }

    /// Picks in the endgame an assigned chunk: one that is stalled, or one that another source is
    /// expected to need longer for than this one.
    pub(super) fn pick_last(&self, id: SourceId, now: Duration) -> Option<u64> {
        let source = &self.sources[id.0];
        if self.chunks.missing() > 0 {
            return None;
        }
        // An untried source is worth trying. A source with requests outstanding is asked only if it
        // is far faster.
        let own_s = source.expected_next_s();
        let least_s = if source.assignments.is_empty() { own_s } else { 4.0 * own_s };
        let mut slowest: Option<(f64, u64)> = None;
        for other_id in self.in_use.iter().filter(|other| **other != id) {
            let other = &self.sources[other_id.0];
            let is_idle = other.assignments.is_empty();
            assert!(other.is_ready() || is_idle, "{other_id:?} is {:?}", other.status);
            for (position, assignment) in other.assignments.iter().enumerate() {
                let assignees = self.chunks.assignees(assignment.chunk);
                if assignees.contains(&id) || !source.has(assignment.chunk) {
                    continue;
                }
                let mut other_s = other.expected_s(position);
                let outstanding_s = outstanding_s(assignment, now);
                let is_overdue = outstanding_s >= limits::CHUNK_OVERDUE.as_secs_f64();
                if assignment.stalled || is_overdue {
                    other_s = other_s.max(outstanding_s / 2.0);
                }
                let is_slower = assignees.len() == 1 && other_s >= least_s;
                if slowest.is_none_or(|(most_s, _)| other_s > most_s)
                    && (is_slower || self.is_open_to_race(assignment.chunk, own_s, now))
                    && self.is_fit(id, assignment.chunk, now)
                {
                    slowest = Some((other_s, assignment.chunk));
                }
            }
        }
        slowest.map(|(_, index)| index)
    }
}

/// How long a request has been outstanding, in seconds.
fn outstanding_s(assignment: &Assignment, now: Duration) -> f64 {
    now.saturating_sub(assignment.at).as_secs_f64()
}
