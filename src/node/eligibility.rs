//! Decides whether this node may lead.
//!
//! A leader that cannot do its work keeps every other server from doing it: while its heartbeats
//! are sent, no other server campaigns. Rule: a node keeps a set of reasons why it may not lead.
//! While one of them holds, it neither campaigns nor accepts a leadership transfer. If it leads, it
//! transfers the leadership to a follower that has stored everything that is committed, or steps
//! down.
//!
//! The core detects a stalled disk by itself: it knows what it has handed out to be made durable or
//! to be applied, and what has been reported. A disk is stalled if work is outstanding and nothing
//! at all has been reported for the stall time-out. A disk that is merely slow, behind a long
//! queue, makes progress. (If it were judged by the age of its oldest outstanding work, an
//! overloaded group would pass the leadership from server to server.) The driver also reports
//! progress within one long entry ([`Input::ApplierWorks`](super::Input::ApplierWorks)). Time is
//! counted in ticks: a process that was suspended gets few of them, and the reports that came
//! meanwhile wait to be read.
//!
//! A stall alone does not leave the group without a leader, because the same disk may be under all
//! servers: at first the leader only looks for a follower that is better off, and it steps down
//! when it has stalled for twice as long.

use std::collections::BTreeSet;

use crate::model::{LogIndex, NodeId};

/// A reason why a node may not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ineligible {
    /// A batch for the log is outstanding, and nothing was reported durable for the stall time-out.
    LogStalled,
    /// Entries to apply are outstanding, and the state machine has made no progress for twice the
    /// stall time-out.
    ApplierStalled,
    /// The store is lost, or the driver has said with
    /// [`Input::Eligibility`](super::Input::Eligibility) that this server's data is not to be used.
    StoreDamaged,
}

impl std::fmt::Display for Ineligible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ineligible::LogStalled => {
                "the disk under its log does not answer: look for a failing, full or overloaded \
                 disk"
            }
            Ineligible::ApplierStalled => {
                "the disk under its store does not answer: look for a failing, full or overloaded \
                 disk"
            }
            Ineligible::StoreDamaged => "its data are lost or not to be trusted",
        })
    }
}

/// What this node is to do with a leadership that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeadershipAction {
    Keep,
    /// Transfer it to a follower that is better off; if there is none, keep it.
    TransferIfPossible,
    /// Transfer it if possible; if not, step down.
    TransferOrStepDown,
}

/// Work that was handed out under rising numbers and is reported in the same order.
#[derive(Debug, Default)]
struct OutstandingWork {
    /// The last number that was handed out.
    handed_out: u64,
    /// The last number that was reported done.
    done: u64,
    /// Ticks since the last report, or since work became outstanding.
    idle_ticks: u64,
}

impl OutstandingWork {
    fn hand_out(&mut self, number: u64) {
        if self.done >= self.handed_out {
            self.idle_ticks = 0;
        }
        self.handed_out = self.handed_out.max(number);
    }

    fn report(&mut self, number: u64) {
        assert!(
            number <= self.handed_out,
            "{number} is reported done, and {} was handed out last",
            self.handed_out
        );
        if number > self.done {
            self.done = number;
            self.idle_ticks = 0;
        }
    }

    fn tick(&mut self) {
        if self.done < self.handed_out {
            self.idle_ticks += 1;
        }
    }

    /// How many times the stall time-out of `limit_ticks` has passed without a report.
    fn stalled(&self, limit_ticks: u64) -> u64 {
        if self.done < self.handed_out { self.idle_ticks / limit_ticks } else { 0 }
    }
}

/// The reasons why this node may not lead, and the followers to which it has tried to transfer its
/// leadership.
#[derive(Debug)]
pub(super) struct Eligibility {
    log: OutstandingWork,
    applier: OutstandingWork,
    log_stall_ticks: u64,
    /// The driver says that the store is damaged.
    damaged: bool,
    /// The store is lost: nothing is applied before a snapshot is installed.
    lost: bool,
    /// The reasons that held at the last update.
    reasons: BTreeSet<Ineligible>,
    /// Followers that a transfer was tried to since this leader may not lead, or is stopping.
    pub tried: BTreeSet<NodeId>,
}

impl Eligibility {
    /// No reason holds; everything up to `applied` is applied, and the log stalls after
    /// `stall_ticks` ticks.
    pub fn new(stall_ticks: u64, applied: LogIndex) -> Eligibility {
        Eligibility {
            log: OutstandingWork::default(),
            applier: OutstandingWork { handed_out: applied, done: applied, idle_ticks: 0 },
            log_stall_ticks: stall_ticks.max(1),
            damaged: false,
            lost: false,
            reasons: BTreeSet::new(),
            tried: BTreeSet::new(),
        }
    }

    pub fn persist(&mut self, batch: u64) {
        self.log.hand_out(batch);
    }

    pub fn persisted(&mut self, batch: u64) {
        self.log.report(batch);
    }

    pub fn apply(&mut self, index: LogIndex) {
        self.applier.hand_out(index);
    }

    pub fn applied(&mut self, index: LogIndex) {
        self.applier.report(index);
    }

    /// The state machine has made progress within an entry.
    pub fn applier_works(&mut self) {
        self.applier.idle_ticks = 0;
    }

    /// Sets a reason that only the driver can see.
    pub fn set(&mut self, reason: Ineligible, holds: bool) {
        match reason {
            Ineligible::StoreDamaged => self.damaged = holds,
            // The core sees stalls itself.
            Ineligible::LogStalled | Ineligible::ApplierStalled => {}
        }
    }

    /// Sets whether the store is lost. What the driver has said of the store stays.
    pub fn store_lost(&mut self, lost: bool) {
        self.lost = lost;
    }

    pub fn tick(&mut self) {
        self.log.tick();
        self.applier.tick();
    }

    // The last step of a large transaction, when all its rows are in the engine, may take a second.
    fn applier_stall_ticks(&self) -> u64 {
        2 * self.log_stall_ticks
    }

    /// Evaluates all reasons. Returns those that have changed since the last update: (reason,
    /// whether it holds now).
    pub fn update(&mut self) -> Vec<(Ineligible, bool)> {
        let now = [
            (Ineligible::LogStalled, self.log.stalled(self.log_stall_ticks) > 0),
            (Ineligible::ApplierStalled, self.applier.stalled(self.applier_stall_ticks()) > 0),
            (Ineligible::StoreDamaged, self.damaged || self.lost),
        ];
        let mut changes = Vec::new();
        for (reason, holds) in now {
            let changed = match holds {
                true => self.reasons.insert(reason),
                false => self.reasons.remove(&reason),
            };
            if changed {
                changes.push((reason, holds));
            }
        }
        changes
    }

    /// The reasons that held at the last update.
    pub fn reasons(&self) -> &BTreeSet<Ineligible> {
        &self.reasons
    }

    /// What this node is to do if it leads.
    pub fn action(&self) -> LeadershipAction {
        let stalled = self
            .log
            .stalled(self.log_stall_ticks)
            .max(self.applier.stalled(self.applier_stall_ticks()));
        match stalled {
            _ if self.damaged || self.lost => LeadershipAction::TransferOrStepDown,
            0 => LeadershipAction::Keep,
            1 => LeadershipAction::TransferIfPossible,
            _ => LeadershipAction::TransferOrStepDown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(eligibility: &mut Eligibility, count: usize) -> Vec<(Ineligible, bool)> {
        (0..count)
            .flat_map(|_| {
                eligibility.tick();
                eligibility.update()
            })
            .collect()
    }

    #[test]
    fn a_log_that_reports_nothing_is_stalled_until_it_reports_something() {
        let mut eligibility = Eligibility::new(10, 0);
        assert_eq!(ticks(&mut eligibility, 100), [], "nothing is owed");
        eligibility.persist(1);
        assert_eq!(ticks(&mut eligibility, 9), []);
        eligibility.persist(2);
        assert_eq!(ticks(&mut eligibility, 1), [(Ineligible::LogStalled, true)]);
        assert_eq!(eligibility.action(), LeadershipAction::TransferIfPossible);
        assert_eq!(ticks(&mut eligibility, 10), []);
        assert_eq!(eligibility.action(), LeadershipAction::TransferOrStepDown);
        eligibility.persisted(1);
        assert_eq!(ticks(&mut eligibility, 1), [(Ineligible::LogStalled, false)]);
        assert_eq!(eligibility.action(), LeadershipAction::Keep);
    }

    #[test]
    fn a_slow_disk_that_makes_progress_is_not_stalled_however_far_behind_it_is() {
        let mut eligibility = Eligibility::new(10, 0);
        for batch in 1..100 {
            eligibility.persist(batch);
            eligibility.apply(batch);
        }
        for done in 1..98 {
            assert_eq!(ticks(&mut eligibility, 9), []);
            eligibility.persisted(done);
            eligibility.applied(done);
        }
    }

    #[test]
    fn an_applier_that_makes_progress_within_a_long_entry_is_not_stalled() {
        let mut eligibility = Eligibility::new(10, 0);
        eligibility.apply(1);
        for _ in 0..100 {
            eligibility.applier_works();
            assert_eq!(ticks(&mut eligibility, 19), []);
        }
        assert_eq!(ticks(&mut eligibility, 1), [(Ineligible::ApplierStalled, true)]);
        eligibility.applier_works();
        assert_eq!(ticks(&mut eligibility, 1), [(Ineligible::ApplierStalled, false)]);
    }

    #[test]
    fn an_applier_has_twice_as_long_and_damage_counts_at_once() {
        let mut eligibility = Eligibility::new(10, 5);
        eligibility.apply(6);
        assert_eq!(ticks(&mut eligibility, 19), []);
        assert_eq!(ticks(&mut eligibility, 1), [(Ineligible::ApplierStalled, true)]);
        eligibility.applied(6);
        eligibility.set(Ineligible::StoreDamaged, true);
        let changes = eligibility.update();
        assert_eq!(
            changes,
            [(Ineligible::ApplierStalled, false), (Ineligible::StoreDamaged, true)]
        );
        assert_eq!(eligibility.action(), LeadershipAction::TransferOrStepDown);
        eligibility.set(Ineligible::StoreDamaged, false);
        assert_eq!(eligibility.update(), [(Ineligible::StoreDamaged, false)]);
        assert_eq!(eligibility.reasons(), &BTreeSet::new());
    }
}
