//! When the leader has removed versions taken off the disk, and old ones removed.
//!
//! One piece is under way at a time, and at most one begins with every tick: it is background work, and
//! what is proposed at a leader that falls is simply proposed again by the next one.

use bytes::Bytes;

use super::UpkeepState;
use super::core::micros;
use crate::command::{History, Upkeep};
use crate::limits;
use crate::types::{LogIndex, Timestamp};

/// How a node is to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpkeepConfig {
    /// What is kept of what newer versions have replaced.
    pub history: History,
    /// How long what was removed stays readable for those who began before;
    /// [`limits::REMOVAL_GRACE`] except in simulations.
    pub removal_grace_us: u64,
    /// From the end of one sweep to the beginning of the next; [`limits::SWEEP_PAUSE`] except in
    /// simulations.
    pub sweep_pause_us: u64,
    /// Rows in one piece; [`limits::UPKEEP_ROWS_MAX`] except in simulations.
    pub rows_max: u32,
}

impl UpkeepConfig {
    /// Keeps what `history` says.
    pub fn new(history: History) -> UpkeepConfig {
        UpkeepConfig {
            history,
            removal_grace_us: micros(limits::REMOVAL_GRACE),
            sweep_pause_us: micros(limits::SWEEP_PAUSE),
            rows_max: limits::UPKEEP_ROWS_MAX as u32,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Sweep {
    /// The next one begins then.
    Pausing { until_us: u64 },
    /// The next piece begins there.
    At(Bytes),
}

/// What this node knows of what is to be done, and does of it when it leads.
#[derive(Debug)]
pub(super) struct Chores {
    config: UpkeepConfig,
    oldest_removal: Option<Timestamp>,
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
            oldest_removal: state.oldest_removal,
            sweep: Sweep::Pausing { until_us: 0 },
            under_way: None,
            due: false,
        }
    }

    pub fn tick(&mut self) {
        self.due = true;
    }

    /// The state machine stands at `index`.
    pub fn applied(&mut self, index: LogIndex, state: UpkeepState, now_us: u64) {
        self.oldest_removal = state.oldest_removal;
        if let Some(swept) = state.swept {
            self.sweep = match swept.next {
                Some(next) => Sweep::At(next),
                None => Sweep::Pausing { until_us: now_us + self.config.sweep_pause_us },
            };
        }
        if self.under_way.is_some_and(|proposed| proposed <= index) {
            self.under_way = None;
        }
    }

    /// This node does not lead (any more).
    pub fn lost_leadership(&mut self) {
        self.under_way = None;
    }

    /// What to propose now, if anything. `clock` is the time of the log.
    pub fn next(&mut self, clock: Timestamp, now_us: u64) -> Option<Upkeep> {
        if !std::mem::take(&mut self.due) || self.under_way.is_some() {
            return None;
        }
        let ago = |age_us: u64| {
            Timestamp(clock.0.saturating_sub_unsigned(age_us.max(self.config.removal_grace_us)))
        };
        let before = ago(0);
        if self.oldest_removal.is_some_and(|oldest| oldest <= before) {
            return Some(Upkeep::Purge { before, rows_max: self.config.rows_max });
        }
        let history = self.config.history;
        let as_of = match history {
            History::All => return None,
            History::For { age_us } => ago(age_us),
            History::Versions { .. } => before,
        };
        let from = match &self.sweep {
            Sweep::Pausing { until_us } if now_us < *until_us => return None,
            Sweep::Pausing { .. } => Bytes::new(),
            Sweep::At(from) => from.clone(),
        };
        Some(Upkeep::Sweep { history, as_of, from, rows_max: self.config.rows_max })
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
    const ROWS: u32 = limits::UPKEEP_ROWS_MAX as u32;

    fn chores(history: History, oldest_removal: Option<i64>) -> Chores {
        let oldest_removal = oldest_removal.map(Timestamp);
        let state = UpkeepState { oldest_removal, swept: None };
        let mut chores = Chores::new(UpkeepConfig::new(history), state);
        chores.tick();
        chores
    }

    fn at(us: u64) -> Timestamp {
        Timestamp(us as i64)
    }

    #[test]
    fn what_was_removed_leaves_when_its_grace_is_over() {
        let mut chores = chores(History::All, Some(1_000));
        assert_eq!(chores.next(at(GRACE + 999), 0), None);
        chores.tick();
        let purge = Upkeep::Purge { before: Timestamp(1_000), rows_max: ROWS };
        assert_eq!(chores.next(at(GRACE + 1_000), 0), Some(purge));
    }

    #[test]
    fn one_piece_is_under_way_and_one_begins_with_a_tick() {
        let mut chores = chores(History::All, Some(1));
        let now = at(10 * GRACE);
        assert!(chores.next(now, 0).is_some());
        chores.proposed(7);
        assert_eq!(chores.next(now, 0), None);
        chores.tick();
        assert_eq!(chores.next(now, 0), None, "it is not applied yet");
        let left = UpkeepState { oldest_removal: Some(Timestamp(1)), swept: None };
        chores.applied(6, left.clone(), 0);
        chores.tick();
        assert_eq!(chores.next(now, 0), None);
        chores.applied(7, left, 0);
        chores.tick();
        assert!(chores.next(now, 0).is_some());
        chores.applied(8, UpkeepState::default(), 0);
        chores.tick();
        assert_eq!(chores.next(now, 0), None, "nothing is left");
    }

    #[test]
    fn a_sweep_goes_through_the_store_and_pauses() {
        let mut chores = chores(History::For { age_us: 2 * GRACE }, None);
        let sweep = |from: &'static str| {
            let (history, as_of) = (History::For { age_us: 2 * GRACE }, at(3 * GRACE));
            Some(Upkeep::Sweep { history, as_of, from: Bytes::from(from), rows_max: ROWS })
        };
        assert_eq!(chores.next(at(5 * GRACE), 0), sweep(""));
        let swept = |next: Option<&'static str>| UpkeepState {
            oldest_removal: None,
            swept: Some(Swept { next: next.map(Bytes::from) }),
        };
        chores.applied(1, swept(Some("k")), 0);
        chores.tick();
        assert_eq!(chores.next(at(5 * GRACE), 0), sweep("k"));
        chores.applied(2, swept(None), 100);
        let pause_us = micros(limits::SWEEP_PAUSE);
        for (now_us, expected) in [(99 + pause_us, None), (100 + pause_us, sweep(""))] {
            chores.tick();
            assert_eq!(chores.next(at(5 * GRACE), now_us), expected);
        }
    }

    #[test]
    fn history_by_number_is_judged_past_the_grace() {
        let history = History::Versions { count: 3 };
        let mut chores = chores(history, None);
        let as_of = at(GRACE);
        let expected = Upkeep::Sweep { history, as_of, from: Bytes::new(), rows_max: ROWS };
        assert_eq!(chores.next(at(2 * GRACE), 0), Some(expected));
    }
}
