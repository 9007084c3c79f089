//! Whether this node may lead.
//!
//! A leader that cannot do its work keeps every other server from doing it: as long as its heartbeats go out, nobody
//! else campaigns. So a node knows of a set of reasons why it may not lead. While one of them holds it neither
//! campaigns nor takes over a leadership that is handed to it, and if it leads it hands over to a follower that has
//! stored what is committed, or steps down.
//!
//! The core sees a stalled disk by itself: it knows what it has handed out to be made durable or to be applied, and
//! what has been reported. A disk is stalled when something is owed and nothing at all has been reported for a while.
//! One that is merely slow, because it is behind a long queue, makes progress; were it judged by the age of its oldest
//! debt, an overloaded group would pass the leadership round. The driver also says when the state machine gets on within
//! one long entry ([`Input::ApplierWorks`](super::Input::ApplierWorks)). Time is counted in ticks, of which a process that was
//! frozen gets few: what was reported meanwhile is waiting to be read, and nobody's disk is to blame.
//!
//! A stall alone is no reason to leave the group without a leader, since the same disk may be under all servers: at
//! first the leader only looks for a follower that is better off, and steps down when it has stalled twice as long.

use std::collections::BTreeSet;

use crate::model::{LogIndex, NodeId};

/// A reason why a node may not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ineligible {
    /// The log has owed a sync for longer than the stall time-out.
    LogStalled,
    /// The state machine has owed the application of entries for longer than twice the stall time-out.
    ApplierStalled,
    /// The store is lost, or the driver says with [`Input::Eligibility`](super::Input::Eligibility) that what this
    /// server holds is not to be used.
    StoreDamaged,
}

impl std::fmt::Display for Ineligible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ineligible::LogStalled => {
                "the disk under its log does not answer: look for a failing, full or overloaded disk"
            }
            Ineligible::ApplierStalled => {
                "the disk under its store does not answer: look for a failing, full or overloaded disk"
            }
            Ineligible::StoreDamaged => "its data are lost or not to be trusted",
        })
    }
}

/// What a leader that may not lead is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// Lead on.
    Stay,
    /// Hand over to a follower that is better off; without one, lead on.
    IfSomebodyCan,
    /// Hand over if possible, and step down if not.
    Leave,
}

/// Work that was handed out in rising numbers and is reported in the same order.
#[derive(Debug, Default)]
struct Debt {
    handed: u64,
    done: u64,
    /// Ticks since the last report, or since something became owed.
    idle_ticks: u64,
}

impl Debt {
    fn hand_out(&mut self, number: u64) {
        if self.done >= self.handed {
            self.idle_ticks = 0;
        }
        self.handed = self.handed.max(number);
    }

    fn report(&mut self, number: u64) {
        if number > self.done {
            self.done = number;
            self.idle_ticks = 0;
        }
    }

    fn tick(&mut self) {
        if self.done < self.handed {
            self.idle_ticks += 1;
        }
    }

    /// How often the stall time-out of `limit_ticks` has passed without a report.
    fn stalled(&self, limit_ticks: u64) -> u64 {
        if self.done < self.handed { self.idle_ticks / limit_ticks } else { 0 }
    }
}

/// The reasons that hold at this node, and what has been done about them.
#[derive(Debug)]
pub(super) struct Eligibility {
    log: Debt,
    applier: Debt,
    log_stall_ticks: u64,
    /// As the driver says.
    damaged: bool,
    /// As the core knows: nothing is applied before a snapshot has been put in place.
    lost: bool,
    /// As of the last look.
    reasons: BTreeSet<Ineligible>,
    /// Followers that this leader has tried to hand over to since it may not lead, or since it stops.
    pub tried: BTreeSet<NodeId>,
}

impl Eligibility {
    /// Everything up to log index `applied` is applied; the log stalls after `stall_ticks` ticks.
    pub fn new(stall_ticks: u64, applied: LogIndex) -> Eligibility {
        Eligibility {
            log: Debt::default(),
            applier: Debt { handed: applied, done: applied, idle_ticks: 0 },
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

    /// The state machine has got on with what it owes.
    pub fn applier_works(&mut self) {
        self.applier.idle_ticks = 0;
    }

    /// The driver says that a reason which only it can see holds, or does not any more.
    pub fn set(&mut self, reason: Ineligible, holds: bool) {
        match reason {
            Ineligible::StoreDamaged => self.damaged = holds,
            // What the core sees itself is not for the driver to say.
            Ineligible::LogStalled | Ineligible::ApplierStalled => {}
        }
    }

    /// The store is lost, or has been rebuilt. That takes nothing back of what the driver has said.
    pub fn store_lost(&mut self, lost: bool) {
        self.lost = lost;
    }

    pub fn tick(&mut self) {
        self.log.tick();
        self.applier.tick();
    }

    // What a state machine does last, when all rows of a large transaction are in the engine, may well take a second.
    fn applier_stall_ticks(&self) -> u64 {
        2 * self.log_stall_ticks
    }

    /// Looks anew at what holds. Returns what was not so at the last look: (reason, whether it holds now).
    pub fn look(&mut self) -> Vec<(Ineligible, bool)> {
        let now = [
            (Ineligible::LogStalled, self.log.stalled(self.log_stall_ticks) > 0),
            (Ineligible::ApplierStalled, self.applier.stalled(self.applier_stall_ticks()) > 0),
            (Ineligible::StoreDamaged, self.damaged || self.lost),
        ];
        let mut news = Vec::new();
        for (reason, holds) in now {
            let changed = match holds {
                true => self.reasons.insert(reason),
                false => self.reasons.remove(&reason),
            };
            if changed {
                news.push((reason, holds));
            }
        }
        news
    }

    /// The reasons that held at the last look.
    pub fn reasons(&self) -> &BTreeSet<Ineligible> {
        &self.reasons
    }

    /// What this node is to do if it leads.
    pub fn departure(&self) -> Departure {
        let stalled = self
            .log
            .stalled(self.log_stall_ticks)
            .max(self.applier.stalled(self.applier_stall_ticks()));
        match stalled {
            _ if self.damaged || self.lost => Departure::Leave,
            0 => Departure::Stay,
            1 => Departure::IfSomebodyCan,
            _ => Departure::Leave,
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
                eligibility.look()
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
        assert_eq!(eligibility.departure(), Departure::IfSomebodyCan);
        assert_eq!(ticks(&mut eligibility, 10), []);
        assert_eq!(eligibility.departure(), Departure::Leave);
        eligibility.persisted(1);
        assert_eq!(ticks(&mut eligibility, 1), [(Ineligible::LogStalled, false)]);
        assert_eq!(eligibility.departure(), Departure::Stay);
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
    fn an_applier_that_gets_on_within_a_long_entry_is_not_stalled() {
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
        let news = eligibility.look();
        assert_eq!(news, [(Ineligible::ApplierStalled, false), (Ineligible::StoreDamaged, true)]);
        assert_eq!(eligibility.departure(), Departure::Leave);
        eligibility.set(Ineligible::StoreDamaged, false);
        assert_eq!(eligibility.look(), [(Ineligible::StoreDamaged, false)]);
        assert_eq!(eligibility.reasons(), &BTreeSet::new());
    }
}
