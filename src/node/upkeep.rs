//! When the leader has removed versions taken off the disk, and old ones removed.
//!
//! One piece is under way at a time, and at most one begins with every tick: it is background work,
//! and what is proposed at a leader that falls is simply proposed again by the next one. Only a
//! sweep that is late ([`limits::SWEEP_LATE`]) does not wait for ticks.

use super::core::micros;
use crate::limits;
use crate::model::{History, LogIndex, Upkeep, UpkeepState};

/// How a node is to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpkeepConfig {
    /// What is kept of what newer versions have replaced, in a group that has not settled on
    /// anything.
    pub history: History,
    /// How long what was removed stays readable for those who began before;
    /// [`limits::REMOVAL_GRACE`] except in simulations.
    pub removal_grace_us: u64,
    /// From the end of one sweep to the beginning of the next; [`limits::SWEEP_PAUSE`] except in
    /// simulations.
    pub sweep_pause_us: u64,
    /// For how long something is due when a sweep is late; [`limits::SWEEP_LATE`] except in
    /// simulations.
    pub sweep_late_us: u64,
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
            sweep_late_us: micros(limits::SWEEP_LATE),
            rows_max: limits::UPKEEP_ROWS_MAX as u32,
            bytes_max: limits::UPKEEP_BYTES_MAX,
        }
    }
}

/// What this node knows of what is to be done, and does of it when it leads.
#[derive(Debug)]
pub(super) struct Chores {
    config: UpkeepConfig,
    oldest_removal_us: Option<u64>,
    sweep_due_us: Option<u64>,
    /// The next sweep does not begin before, so that what is written again and again is swept once.
    sweep_rests_until_us: u64,
    /// Proposed here and not applied yet.
    under_way: Option<(LogIndex, Upkeep)>,
    /// A tick has passed since the last proposal, or the next one is not to wait for it.
    due: bool,
}

impl Chores {
    pub fn new(config: UpkeepConfig, state: UpkeepState) -> Chores {
        Chores {
            config,
            oldest_removal_us: state.oldest_removal_us,
            sweep_due_us: state.sweep_due_us,
            sweep_rests_until_us: 0,
            under_way: None,
            due: false,
        }
    }

    /// What the group goes by. What another history asks for begins at once.
    pub fn set_rules(&mut self, removal_grace_us: u64, history: History) {
        self.config.removal_grace_us = removal_grace_us;
        if std::mem::replace(&mut self.config.history, history) != history {
            self.sweep_rests_until_us = 0;
        }
    }

    pub fn tick(&mut self) {
        self.due = true;
    }

    /// The state machine stands at `index`.
    pub fn applied(&mut self, index: LogIndex, state: UpkeepState, now_us: u64) {
        self.oldest_removal_us = state.oldest_removal_us;
        self.sweep_due_us = state.sweep_due_us;
        let Some((_, upkeep)) = self.under_way.take_if(|(proposed, _)| *proposed <= index) else {
            return;
        };
        let Upkeep::Sweep { as_of_us, .. } = upkeep else { return };
        if !self.is_sweep_due(as_of_us) {
            self.sweep_rests_until_us = now_us + self.config.sweep_pause_us;
        }
        let late_us = as_of_us.checked_sub(self.config.sweep_late_us);
        self.due |= late_us.is_some_and(|late_us| self.is_sweep_due(late_us));
    }

    fn is_sweep_due(&self, as_of_us: u64) -> bool {
        self.sweep_due_us.is_some_and(|due_us| due_us <= as_of_us)
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
            History::For { age_us } => clock_us.checked_sub(age_us.max(removal_grace_us))?,
            // Where everything is kept, what an earlier history has left to do is only to be
            // forgotten.
            History::Versions { .. } | History::All => before_us,
        };
        if !self.is_sweep_due(as_of_us) || now_us < self.sweep_rests_until_us {
            return None;
        }
        Some(Upkeep::Sweep { history, as_of_us, rows_max, bytes_max })
    }

    /// There was no room for it: it is to be proposed as soon as there is.
    pub fn refused(&mut self) {
        self.due = true;
    }

    /// It was proposed, as the entry at `index`.
    pub fn proposed(&mut self, index: LogIndex, upkeep: Upkeep) {
        self.under_way = Some((index, upkeep));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 60_000_000;

    fn purge(before_us: u64) -> Option<Upkeep> {
        let (rows_max, bytes_max) = (limits::UPKEEP_ROWS_MAX as u32, limits::UPKEEP_BYTES_MAX);
        Some(Upkeep::Purge { before_us, rows_max, bytes_max })
    }

    fn sweep(history: History, as_of_us: u64) -> Option<Upkeep> {
        let (rows_max, bytes_max) = (limits::UPKEEP_ROWS_MAX as u32, limits::UPKEEP_BYTES_MAX);
        Some(Upkeep::Sweep { history, as_of_us, rows_max, bytes_max })
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
        let upkeep = chores.next(now_us, 0).unwrap();
        chores.proposed(7, upkeep);
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

    fn due(sweep_due_us: Option<u64>) -> UpkeepState {
        UpkeepState { sweep_due_us, ..UpkeepState::default() }
    }

    #[test]
    fn a_sweep_goes_on_until_nothing_is_due_and_then_rests() {
        let history = History::For { age_us: 2 * GRACE };
        let mut chores = chores(history, None);
        assert_eq!(chores.next(9 * GRACE, 0), None);
        chores.applied(1, due(Some(3 * GRACE)), 0);
        for (index, left_us) in [(2, Some(3 * GRACE)), (3, Some(3 * GRACE + 1))] {
            chores.tick();
            assert_eq!(chores.next(5 * GRACE, 0), sweep(history, 3 * GRACE));
            chores.proposed(index, sweep(history, 3 * GRACE).unwrap());
            chores.applied(index, due(left_us), 100);
        }
        let pause_us = micros(limits::SWEEP_PAUSE);
        let cases = [
            (5 * GRACE, u64::MAX, None),
            (6 * GRACE, 99 + pause_us, None),
            (6 * GRACE, 100 + pause_us, sweep(history, 4 * GRACE)),
        ];
        for (clock_us, now_us, expected) in cases {
            chores.tick();
            assert_eq!(chores.next(clock_us, now_us), expected);
        }
    }

    #[test]
    fn a_sweep_that_is_late_does_not_wait_for_ticks() {
        let history = History::Versions { count: 3 };
        let (now_us, late_us) = (9 * GRACE, micros(limits::SWEEP_LATE));
        for (left_us, follows) in [
            (Some(8 * GRACE - late_us), true),
            (Some(8 * GRACE - late_us + 1), false),
            (Some(8 * GRACE), false),
            (Some(8 * GRACE + 1), false),
            (None, false),
        ] {
            let mut chores = chores(history, None);
            chores.applied(1, due(Some(GRACE)), 0);
            let piece = chores.next(now_us, 0);
            assert_eq!(piece, sweep(history, 8 * GRACE));
            chores.proposed(2, piece.unwrap());
            chores.applied(1, due(Some(GRACE)), 0);
            assert_eq!(chores.next(now_us, 0), None, "one piece is under way at a time");
            chores.applied(2, due(left_us), 0);
            assert_eq!(chores.next(now_us, 0).is_some(), follows, "{left_us:?} is due");
        }
    }

    #[test]
    fn what_another_history_asks_for_begins_at_once() {
        let mut chores = chores(History::All, None);
        chores.applied(1, due(Some(0)), 0);
        chores.tick();
        let forgotten = chores.next(2 * GRACE, 0);
        assert_eq!(forgotten, sweep(History::All, GRACE));
        chores.proposed(2, forgotten.unwrap());
        chores.applied(2, due(None), 0);
        chores.tick();
        assert_eq!(chores.next(9 * GRACE, u64::MAX), None);
        let history = History::Versions { count: 3 };
        chores.applied(3, due(Some(0)), 0);
        chores.set_rules(2 * GRACE, history);
        chores.tick();
        assert_eq!(chores.next(9 * GRACE, 0), sweep(history, 7 * GRACE));
    }

    #[test]
    fn where_nothing_is_due_nothing_is_written() {
        let mut chores = chores(History::Versions { count: 3 }, None);
        for round in 1..100 {
            chores.tick();
            assert_eq!(chores.next(round * 1_000 * GRACE, round * GRACE), None);
        }
    }
}
