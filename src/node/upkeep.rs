//! When the leader has removed versions taken off the disk, and old ones removed.
//!
//! One piece is under way at a time, and at most one begins with every tick: it is background work, and
//! what is proposed at a leader that falls is simply proposed again by the next one.

use super::UpkeepState;
use super::core::micros;
use crate::command::{History, SweepFrom, Upkeep};
use crate::limits;
use crate::types::LogIndex;

/// How a node is to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpkeepConfig {
    /// What is kept of what newer versions have replaced, in a group that has not settled on anything.
    pub history: History,
    /// How long what was removed stays readable for those who began before;
    /// [`limits::REMOVAL_GRACE`] except in simulations.
    pub removal_grace_us: u64,
    /// From the end of one sweep to the beginning of the next; [`limits::SWEEP_PAUSE`] except in
    /// simulations.
    pub sweep_pause_us: u64,
    /// Rows in one piece; [`limits::UPKEEP_ROWS_MAX`] except in simulations.
    pub rows_max: u32,
    /// Bytes read in one piece; [`limits::UPKEEP_BYTES_MAX`] except in simulations.
    pub bytes_max: u64,
}

impl UpkeepConfig {
    /// Keeps what `history` says.
    pub fn new(history: History) -> UpkeepConfig {
        UpkeepConfig {
            history,
            removal_grace_us: micros(limits::REMOVAL_GRACE),
            sweep_pause_us: micros(limits::SWEEP_PAUSE),
            rows_max: limits::UPKEEP_ROWS_MAX as u32,
            bytes_max: limits::UPKEEP_BYTES_MAX,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Sweep {
    /// Nothing is to be removed before the log's clock says `due_us`, or at all; and the next sweep does not
    /// begin before `until_us`.
    Resting { until_us: u64, due_us: Option<u64> },
    /// The next piece begins there. Of the pieces before, something will be due then.
    At { from: SweepFrom, due_us: Option<u64> },
}

/// What this node knows of what is to be done, and does of it when it leads.
#[derive(Debug)]
pub(super) struct Chores {
    config: UpkeepConfig,
    oldest_removal_us: Option<u64>,
    sweep: Sweep,
    /// Proposed here and not applied yet.
    under_way: Option<LogIndex>,
    /// A tick has passed since the last proposal.
    due: bool,
}

impl Chores {
    pub fn new(config: UpkeepConfig, state: UpkeepState) -> Chores {
        Chores {
            config,
            oldest_removal_us: state.oldest_removal_us,
            // What an earlier run knew is forgotten.
            sweep: Sweep::Resting { until_us: 0, due_us: Some(0) },
            under_way: None,
            due: false,
        }
    }

    /// What the group goes by. With another history there may be something to remove anywhere.
    pub fn set_rules(&mut self, removal_grace_us: u64, history: History) {
        self.config.removal_grace_us = removal_grace_us;
        if std::mem::replace(&mut self.config.history, history) != history {
            self.sweep = Sweep::Resting { until_us: 0, due_us: Some(0) };
        }
    }

    pub fn tick(&mut self) {
        self.due = true;
    }

    /// The state machine stands at `index`.
    pub fn applied(&mut self, index: LogIndex, state: UpkeepState, now_us: u64) {
        self.oldest_removal_us = state.oldest_removal_us;
        for swept in state.swept {
            let before = match &self.sweep {
                _ if swept.from.is_start() => None,
                Sweep::At { from, due_us } if *from == swept.from => *due_us,
                // Left over from another leader, and no part of what is going on.
                Sweep::At { .. } | Sweep::Resting { .. } => continue,
            };
            let due_us = before.into_iter().chain(swept.due_us).min();
            self.sweep = match swept.next {
                Some(from) => Sweep::At { from, due_us },
                None => Sweep::Resting { until_us: now_us + self.config.sweep_pause_us, due_us },
            };
        }
        // What is stored may replace something.
        if let Some(put_us) = state.put_us {
            let (Sweep::Resting { due_us, .. } | Sweep::At { due_us, .. }) = &mut self.sweep;
            *due_us = due_us.map_or(Some(put_us), |due_us| Some(due_us.min(put_us)));
        }
        if self.under_way.is_some_and(|proposed| proposed <= index) {
            self.under_way = None;
        }
    }

    /// This node does not lead (any more).
    pub fn lost_leadership(&mut self) {
        self.under_way = None;
    }

    /// What to propose now, if anything. `clock_us` is the time of the log's clock.
    pub fn next(&mut self, clock_us: u64, now_us: u64) -> Option<Upkeep> {
        if !std::mem::take(&mut self.due) || self.under_way.is_some() {
            return None;
        }
        let UpkeepConfig { history, rows_max, bytes_max, removal_grace_us, .. } = self.config;
        let before_us = clock_us.checked_sub(removal_grace_us)?;
        if self.oldest_removal_us.is_some_and(|oldest_us| oldest_us <= before_us) {
            return Some(Upkeep::Purge { before_us, rows_max, bytes_max });
        }
        let as_of_us = match history {
            History::All => return None,
            History::For { age_us } => clock_us.checked_sub(age_us.max(removal_grace_us))?,
            History::Versions { .. } => before_us,
        };
        let from = match &self.sweep {
            Sweep::Resting { until_us, due_us } => {
                let is_due = due_us.is_some_and(|due_us| due_us <= as_of_us);
                if !is_due || now_us < *until_us {
                    return None;
                }
                SweepFrom::default()
            }
            Sweep::At { from, .. } => from.clone(),
        };
        Some(Upkeep::Sweep { history, as_of_us, from, rows_max, bytes_max })
    }

    /// There was no room for it: it is to be proposed as soon as there is.
    pub fn refused(&mut self) {
        self.due = true;
    }

    /// It was proposed, as the entry at `index`.
    pub fn proposed(&mut self, index: LogIndex) {
        self.under_way = Some(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Swept;

    const GRACE: u64 = 60_000_000;

    fn purge(before_us: u64) -> Option<Upkeep> {
        let (rows_max, bytes_max) = (limits::UPKEEP_ROWS_MAX as u32, limits::UPKEEP_BYTES_MAX);
        Some(Upkeep::Purge { before_us, rows_max, bytes_max })
    }

    fn at(key: &'static str) -> SweepFrom {
        SweepFrom { key: key.into(), within: None }
    }

    fn sweep(history: History, from: &'static str, as_of_us: u64) -> Option<Upkeep> {
        let (rows_max, bytes_max) = (limits::UPKEEP_ROWS_MAX as u32, limits::UPKEEP_BYTES_MAX);
        Some(Upkeep::Sweep { history, as_of_us, from: at(from), rows_max, bytes_max })
    }

    fn chores(history: History, oldest_removal_us: Option<u64>) -> Chores {
        let state = UpkeepState { oldest_removal_us, ..UpkeepState::default() };
        let mut chores = Chores::new(UpkeepConfig::new(history), state);
        chores.tick();
        chores
    }

    #[test]
    fn what_was_removed_leaves_when_its_grace_is_over() {
        let mut chores = chores(History::All, Some(1_000));
        assert_eq!(chores.next(GRACE + 999, 0), None);
        chores.tick();
        assert_eq!(chores.next(GRACE + 1_000, 0), purge(1_000));
    }

    #[test]
    fn one_piece_is_under_way_and_one_begins_with_a_tick() {
        let mut chores = chores(History::All, Some(1));
        let now_us = 10 * GRACE;
        assert!(chores.next(now_us, 0).is_some());
        chores.proposed(7);
        assert_eq!(chores.next(now_us, 0), None);
        chores.tick();
        assert_eq!(chores.next(now_us, 0), None, "it is not applied yet");
        let left = UpkeepState { oldest_removal_us: Some(1), ..UpkeepState::default() };
        chores.applied(6, left.clone(), 0);
        chores.tick();
        assert_eq!(chores.next(now_us, 0), None);
        chores.applied(7, left, 0);
        chores.tick();
        assert!(chores.next(now_us, 0).is_some());
        chores.applied(8, UpkeepState::default(), 0);
        chores.tick();
        assert_eq!(chores.next(now_us, 0), None, "nothing is left");
    }

    #[test]
    fn what_finds_no_room_is_tried_again_at_once() {
        let mut chores = chores(History::All, Some(1));
        assert!(chores.next(2 * GRACE, 0).is_some());
        assert_eq!(chores.next(2 * GRACE, 0), None);
        chores.refused();
        assert!(chores.next(2 * GRACE, 0).is_some());
    }

    fn swept(from: &'static str, next: Option<&'static str>, due_us: Option<u64>) -> UpkeepState {
        let swept = vec![Swept { from: at(from), next: next.map(at), due_us }];
        UpkeepState { swept, ..UpkeepState::default() }
    }

    #[test]
    fn a_sweep_goes_through_the_store_and_rests_until_something_is_due() {
        let history = History::For { age_us: 2 * GRACE };
        let mut chores = chores(history, None);
        let sweep = |from, as_of_us| sweep(history, from, as_of_us);
        assert_eq!(chores.next(5 * GRACE, 0), sweep("", 3 * GRACE));
        chores.applied(1, swept("", Some("k"), Some(4 * GRACE)), 0);
        chores.applied(1, swept("x", Some("y"), Some(0)), 0);
        chores.tick();
        assert_eq!(chores.next(5 * GRACE, 0), sweep("k", 3 * GRACE));
        chores.applied(2, swept("k", None, Some(5 * GRACE)), 100);
        let pause_us = micros(limits::SWEEP_PAUSE);
        let cases = [
            (6 * GRACE - 1, 100 + pause_us, None),
            (6 * GRACE, 99 + pause_us, None),
            (6 * GRACE, 100 + pause_us, sweep("", 4 * GRACE)),
        ];
        for (clock_us, now_us, expected) in cases {
            chores.tick();
            assert_eq!(chores.next(clock_us, now_us), expected);
        }
    }

    #[test]
    fn another_history_is_looked_for_from_the_beginning() {
        let mut chores = chores(History::All, None);
        assert_eq!(chores.next(9 * GRACE, 0), None);
        let history = History::Versions { count: 3 };
        chores.set_rules(2 * GRACE, history);
        chores.tick();
        assert_eq!(chores.next(9 * GRACE, 0), sweep(history, "", 7 * GRACE));
        chores.applied(1, swept("", None, None), 0);
        chores.set_rules(2 * GRACE, history);
        chores.tick();
        assert_eq!(chores.next(9 * GRACE, u64::MAX), None, "it is the same");
    }

    #[test]
    fn where_nothing_is_due_nothing_is_written_until_something_is_stored() {
        let history = History::Versions { count: 3 };
        let mut chores = chores(history, None);
        assert!(chores.next(2 * GRACE, 0).is_some());
        chores.applied(1, swept("", None, None), 0);
        for round in 1..100 {
            chores.tick();
            assert_eq!(chores.next(round * 1_000 * GRACE, round * GRACE), None);
        }
        let put_us = Some(200_000 * GRACE);
        chores.applied(2, UpkeepState { put_us, ..UpkeepState::default() }, 0);
        chores.tick();
        assert_eq!(chores.next(200_001 * GRACE - 1, u64::MAX), None);
        chores.tick();
        let expected = sweep(history, "", 200_000 * GRACE);
        assert_eq!(chores.next(200_001 * GRACE, u64::MAX), expected);
    }
}
