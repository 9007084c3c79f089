//! Chunks that are asked for already, and of somebody else too: since they take too long, or nothing else is left.

use std::time::Duration;

use super::source::Assignment;
use super::{SourceId, Swarm};
use crate::limits;

impl Swarm {
    /// Counts the chunks that are let lie, and by whom.
    pub(super) fn note_stalls(&mut self, now: Duration) {
        for id in &self.in_use {
            let source = &mut self.sources[id.0];
            for at in 0..source.assignments.len() {
                let assignment = source.assignments[at];
                if !assignment.stalled && source.is_stalled_over(&assignment, now) {
                    source.assignments[at].stalled = true;
                    source.stalls = source.stalls.saturating_add(1);
                    *self.stalls.entry(assignment.chunk).or_default() += 1;
                }
            }
        }
    }

    /// A source went away over the chunk that it owed first.
    pub(super) fn note_stall_of_oldest(&mut self, id: SourceId) {
        let Some(source) = self.sources.get_mut(id.0) else { return };
        if let Some(assignment) =
            source.assignments.first_mut().filter(|assignment| !assignment.stalled)
        {
            assignment.stalled = true;
            source.stalls = source.stalls.saturating_add(1);
            *self.stalls.entry(assignment.chunk).or_default() += 1;
        }
    }

    /// How many sources have let a chunk lie.
    fn stalls_of(&self, chunk: u64) -> u32 {
        self.stalls.get(&chunk).copied().unwrap_or_default()
    }

    /// A chunk that somebody else owes for too long, and that this source can be expected to have given in half the
    /// time that it has been owed for already. The rates of whoever owes it do not matter.
    pub(super) fn pick_overdue(&mut self, id: SourceId, now: Duration) -> Option<u64> {
        let (source, own_s) = (&self.sources[id.0], self.sources[id.0].expected_next_s());
        let at = self.overdue.iter().position(|chunk| {
            let assignees = self.assignees.get(chunk).map(Vec::as_slice);
            let [assignee] = assignees.unwrap_or_default() else { return false };
            let outstanding_s = self
                .assignment(*assignee, *chunk)
                .map_or(0.0, |assignment| outstanding_s(assignment, now));
            *assignee != id
                && source.has(*chunk)
                && outstanding_s >= 2.0 * own_s
                && self.is_fit(id, *chunk, now)
        })?;
        Some(self.overdue.swap_remove(at))
    }

    /// Whether a source is the one to be asked, too, for a chunk that others owe: no other one, that is there and has it,
    /// has let fewer chunks lie, or could be expected to be far quicker. The more have let this one lie, the less does
    /// it count who seems quick.
    fn is_fit(&self, id: SourceId, chunk: u64, now: Duration) -> bool {
        let own = &self.sources[id.0];
        let assignees = self.assignees.get(&chunk).map(Vec::as_slice).unwrap_or_default();
        let others = self.in_use.iter().filter(|other| **other != id && !assignees.contains(other));
        let mut others = others
            .map(|other| &self.sources[other.0])
            .filter(|other| other.is_ready() && other.has(chunk) && !other.is_busy(now));
        // One that has not shown anything yet is only tried where all others have neither.
        let own_s = if own.meter.rate() > 0.0 { own.expected_next_s() } else { f64::INFINITY };
        let factor = f64::from(2u32 << self.stalls_of(chunk).min(16));
        !others.any(|other| {
            let is_far_quicker =
                other.meter.rate() > 0.0 && factor * other.expected_next_s() < own_s;
            other.stalls < own.stalls && other.is_quick()
                || other.stalls <= own.stalls && is_far_quicker
        })
    }

    fn assignment(&self, id: SourceId, chunk: u64) -> Option<&Assignment> {
        self.sources[id.0].assignments.iter().find(|assignment| assignment.chunk == chunk)
    }

    /// Whether a chunk that was let lie may be asked of one more source, that would take `own_s` over it. As many may be
    /// asked at once as have let it lie: so their number doubles. Whoever is slower than that one does not count.
    fn is_open_to_race(&self, chunk: u64, own_s: f64, now: Duration) -> bool {
        let assignees = self.assignees.get(&chunk).map(Vec::as_slice).unwrap_or_default();
        let assignments = assignees.iter().filter_map(|assignee| self.assignment(*assignee, chunk));
        // One that has not shown anything yet is expected to take no time, which says nothing.
        let soon_s = own_s.max(2.0 * limits::CHUNK_STALLED.as_secs_f64());
        let awaited = assignments.filter(|assignment| {
            let rest = (assignment.at + assignment.due).saturating_sub(now);
            let is_new = now.saturating_sub(assignment.at) < limits::CHUNK_STALLED;
            !assignment.stalled && (is_new || rest.as_secs_f64() <= soon_s)
        });
        awaited.count() < self.stalls_of(chunk) as usize
    }

    /// In the end: a chunk that was let lie, or that somebody else is expected to take longer over than this source would.
    pub(super) fn pick_last(&self, id: SourceId, now: Duration) -> Option<u64> {
        let source = &self.sources[id.0];
        if self.picker.missing() > 0 {
            return None;
        }
        // One that has not been tried yet is worth trying. One that has something to do is only worth it where it is
        // far faster.
        let own_s = source.expected_next_s();
        let least_s = if source.assignments.is_empty() { own_s } else { 4.0 * own_s };
        let mut slowest: Option<(f64, u64)> = None;
        for other_id in self.in_use.iter().filter(|other| **other != id) {
            let other = &self.sources[other_id.0];
            debug_assert!(
                other.is_ready() || other.assignments.is_empty(),
                "{other_id:?} owes, and is gone"
            );
            for (position, assignment) in other.assignments.iter().enumerate() {
                let assignees =
                    self.assignees.get(&assignment.chunk).map(Vec::as_slice).unwrap_or_default();
                if assignees.contains(&id) || !source.has(assignment.chunk) {
                    continue;
                }
                let mut other_s = other.expected_s(position);
                let owed_s = outstanding_s(assignment, now);
                if assignment.stalled || owed_s >= limits::CHUNK_OVERDUE.as_secs_f64() {
                    other_s = other_s.max(owed_s / 2.0);
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

/// For how long a chunk has been owed.
fn outstanding_s(assignment: &Assignment, now: Duration) -> f64 {
    now.saturating_sub(assignment.at).as_secs_f64()
}
