//! Decides when the leader proposes a piece of garbage collection: deleting removed versions from
//! disk, and compacting, by the history and by what a `COMPACT` has ended the reads of.
//!
//! Rule: one piece is under way at a time, and at most one begins with every tick, because it is
//! background work. Only if compaction is late ([`limits::HISTORY_COMPACTION_LATE`]), the next
//! piece follows without waiting for a tick. The two kinds of compaction take turns, so that
//! neither waits for the other to come to an end. A piece that a leader has proposed and not
//! applied when it loses its leadership is simply proposed again by the next one.

use super::clock::micros;
use crate::limits;
use crate::model::{GarbageCollection, History, LogIndex, MachineSummary};

/// How a node collects garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GarbageCollectionConfig {
    /// The history that a leader proposes for a group whose rules are not in the log yet.
    pub history: History,
    /// How long removed versions stay readable for reads that began before the removal;
    /// [`limits::REMOVAL_GRACE`] except in simulations.
    pub removal_grace_us: u64,
    /// Time from the end of one compaction to the beginning of the next of its kind;
    /// [`limits::HISTORY_COMPACTION_PAUSE`] except in simulations.
    pub history_pause_us: u64,
    /// Compaction is late if a version has been due for this long;
    /// [`limits::HISTORY_COMPACTION_LATE`] except in simulations.
    pub history_late_us: u64,
    /// Rows in one piece; [`limits::COLLECTION_ROWS_MAX`] except in simulations.
    pub rows_max: u32,
    /// Bytes read in one piece; [`limits::COLLECTION_BYTES_MAX`] except in simulations.
    pub bytes_max: u64,
}

impl GarbageCollectionConfig {
    /// The configuration with the limits of this release.
    pub fn new(history: History) -> GarbageCollectionConfig {
        GarbageCollectionConfig {
            history,
            removal_grace_us: micros(limits::REMOVAL_GRACE),
            history_pause_us: micros(limits::HISTORY_COMPACTION_PAUSE),
            history_late_us: micros(limits::HISTORY_COMPACTION_LATE),
            rows_max: limits::COLLECTION_ROWS_MAX as u32,
            bytes_max: limits::COLLECTION_BYTES_MAX,
        }
    }
}

/// The garbage as of the last applied entry, and the piece that this node, as leader, has proposed.
#[derive(Debug)]
pub(super) struct GarbageCollector {
    config: GarbageCollectionConfig,
    oldest_removal_us: Option<u64>,
    history: Compaction,
    compacted: Compaction,
    /// The last piece of compaction was one of the history.
    was_of_history: bool,
    /// The piece that was proposed and is not applied yet, with its index.
    under_way: Option<(LogIndex, GarbageCollection)>,
    /// A tick has passed since the last proposal, or the next one is not to wait for one.
    due: bool,
}

/// When compaction of one kind goes on.
#[derive(Debug, Default)]
struct Compaction {
    /// The earliest time as of which it has something to do.
    due_us: Option<u64>,
    /// The next one does not begin before this time, so that keys that are written again and again
    /// are compacted once.
    rests_until_us: u64,
    /// Since when it has something to do, if that is not when changes came to be so old: a
    /// `COMPACT` has it judge what has long been.
    due_from_us: Option<u64>,
}

impl Compaction {
    fn is_due(&self, as_of_us: u64) -> bool {
        self.due_us.is_some_and(|due_us| due_us <= as_of_us)
    }

    /// Whether a piece is to be proposed that judges as of this time.
    fn goes_on(&self, as_of_us: u64, now_us: u64) -> bool {
        self.is_due(as_of_us) && now_us >= self.rests_until_us
    }

    /// A piece that judged as of a time has been applied. Returns whether the next is late.
    fn applied(
        &mut self,
        as_of_us: u64,
        now_us: u64,
        GarbageCollectionConfig { history_pause_us, history_late_us, .. }: GarbageCollectionConfig,
    ) -> bool {
        if !self.is_due(as_of_us) {
            self.rests_until_us = now_us + history_pause_us;
        }
        let is_old = as_of_us.checked_sub(history_late_us).is_some_and(|us| self.is_due(us));
        is_old && self.due_from_us.is_none_or(|from_us| now_us >= from_us + history_late_us)
    }
}

impl GarbageCollector {
    pub fn new(config: GarbageCollectionConfig, state: MachineSummary) -> GarbageCollector {
        GarbageCollector {
            config,
            oldest_removal_us: state.oldest_removal_us,
            history: Compaction { due_us: state.history_due_us, ..Compaction::default() },
            compacted: Compaction { due_us: state.compacted_due_us, ..Compaction::default() },
            was_of_history: false,
            under_way: None,
            due: false,
        }
    }

    /// Sets the rules of the group. Compaction for another history begins at once.
    pub fn set_rules(&mut self, removal_grace_us: u64, history: History) {
        self.config.removal_grace_us = removal_grace_us;
        if std::mem::replace(&mut self.config.history, history) != history {
            self.history.rests_until_us = 0;
        }
    }

    pub fn tick(&mut self) {
        self.due = true;
    }

    /// Notes the state machine's garbage as of `index`.
    pub fn applied(&mut self, index: LogIndex, state: MachineSummary, now_us: u64) {
        self.oldest_removal_us = state.oldest_removal_us;
        self.history.due_us = state.history_due_us;
        if self.compacted.due_us.is_none() {
            self.compacted.due_from_us = Some(now_us.max(self.compacted.rests_until_us));
        }
        self.compacted.due_us = state.compacted_due_us;
        let Some((_, piece)) = self.under_way.take_if(|(proposed, _)| *proposed <= index) else {
            return;
        };
        let is_late = match piece {
            GarbageCollection::Removed { .. } => false,
            GarbageCollection::History { as_of_us, .. } => {
                self.history.applied(as_of_us, now_us, self.config)
            }
            GarbageCollection::Compacted { as_of_us, .. } => {
                self.compacted.applied(as_of_us, now_us, self.config)
            }
        };
        self.due |= is_late;
    }

    /// Forgets the piece under way, because this node does not lead any more.
    pub fn lost_leadership(&mut self) {
        self.under_way = None;
    }

    /// Returns the piece to propose now, if one is due. `clock_us` is the time of the log's clock.
    pub fn next(&mut self, clock_us: u64, now_us: u64) -> Option<GarbageCollection> {
        if !std::mem::take(&mut self.due) || self.under_way.is_some() {
            return None;
        }
        let GarbageCollectionConfig { history, rows_max, bytes_max, removal_grace_us, .. } =
            self.config;
        let before_us = clock_us.checked_sub(removal_grace_us)?;
        if self.oldest_removal_us.is_some_and(|oldest_us| oldest_us <= before_us) {
            return Some(GarbageCollection::Removed { before_us, rows_max, bytes_max });
        }
        let as_of_us = match history {
            History::For { age_us } => clock_us.checked_sub(age_us.max(removal_grace_us)),
            // If everything is kept, the rows that an earlier history has left for compaction are
            // only deleted.
            History::Versions { .. } | History::All => Some(before_us),
        };
        let as_of_us = as_of_us.filter(|as_of_us| self.history.goes_on(*as_of_us, now_us));
        let of_history = as_of_us.map(|as_of_us| GarbageCollection::History {
            history,
            as_of_us,
            rows_max,
            bytes_max,
        });
        // What writes have replaced in the last minute can still be told, as of removals.
        let is_compacted = self.compacted.goes_on(before_us, now_us);
        let of_compacted = is_compacted.then_some(GarbageCollection::Compacted {
            as_of_us: before_us,
            rows_max,
            bytes_max,
        });
        let piece = match self.was_of_history {
            true => of_compacted.or(of_history),
            false => of_history.or(of_compacted),
        }?;
        self.was_of_history = matches!(piece, GarbageCollection::History { .. });
        Some(piece)
    }

    /// The proposal was refused for want of room; it is repeated as soon as there is some.
    pub fn refused(&mut self) {
        self.due = true;
    }

    /// Notes that a piece was proposed, as the entry at `index`.
    pub fn proposed(&mut self, index: LogIndex, piece: GarbageCollection) {
        assert!(self.under_way.is_none(), "{piece:?} is proposed beside {:?}", self.under_way);
        self.under_way = Some((index, piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 60_000_000;

    fn removed(before_us: u64) -> Option<GarbageCollection> {
        let (rows_max, bytes_max) =
            (limits::COLLECTION_ROWS_MAX as u32, limits::COLLECTION_BYTES_MAX);
        Some(GarbageCollection::Removed { before_us, rows_max, bytes_max })
    }

    fn compaction(history: History, as_of_us: u64) -> Option<GarbageCollection> {
        let (rows_max, bytes_max) =
            (limits::COLLECTION_ROWS_MAX as u32, limits::COLLECTION_BYTES_MAX);
        Some(GarbageCollection::History { history, as_of_us, rows_max, bytes_max })
    }

    fn collector(history: History, oldest_removal_us: Option<u64>) -> GarbageCollector {
        let state = MachineSummary { oldest_removal_us, ..MachineSummary::default() };
        let mut collector = GarbageCollector::new(GarbageCollectionConfig::new(history), state);
        collector.tick();
        collector
    }

    #[test]
    fn removed_versions_are_deleted_when_their_grace_is_over() {
        let mut collector = collector(History::All, Some(1_000));
        assert_eq!(collector.next(GRACE + 999, 0), None);
        collector.tick();
        assert_eq!(collector.next(GRACE + 1_000, 0), removed(1_000));
    }

    #[test]
    fn one_piece_is_under_way_and_one_begins_with_a_tick() {
        let mut collector = collector(History::All, Some(1));
        let now_us = 10 * GRACE;
        let piece = collector.next(now_us, 0).unwrap();
        collector.proposed(7, piece);
        assert_eq!(collector.next(now_us, 0), None);
        collector.tick();
        assert_eq!(collector.next(now_us, 0), None, "it is not applied yet");
        let left = MachineSummary { oldest_removal_us: Some(1), ..MachineSummary::default() };
        collector.applied(6, left.clone(), 0);
        collector.tick();
        assert_eq!(collector.next(now_us, 0), None);
        collector.applied(7, left, 0);
        collector.tick();
        assert!(collector.next(now_us, 0).is_some());
        collector.applied(8, MachineSummary::default(), 0);
        collector.tick();
        assert_eq!(collector.next(now_us, 0), None, "nothing is left");
    }

    #[test]
    fn a_refused_piece_is_proposed_again_at_once() {
        let mut collector = collector(History::All, Some(1));
        assert!(collector.next(2 * GRACE, 0).is_some());
        assert_eq!(collector.next(2 * GRACE, 0), None);
        collector.refused();
        assert!(collector.next(2 * GRACE, 0).is_some());
    }

    fn due(history_due_us: Option<u64>) -> MachineSummary {
        MachineSummary { history_due_us, ..MachineSummary::default() }
    }

    #[test]
    fn compaction_goes_on_until_nothing_is_due_and_then_rests() {
        let history = History::For { age_us: 2 * GRACE };
        let mut collector = collector(history, None);
        assert_eq!(collector.next(9 * GRACE, 0), None);
        collector.applied(1, due(Some(3 * GRACE)), 0);
        for (index, left_us) in [(2, Some(3 * GRACE)), (3, Some(3 * GRACE + 1))] {
            collector.tick();
            assert_eq!(collector.next(5 * GRACE, 0), compaction(history, 3 * GRACE));
            collector.proposed(index, compaction(history, 3 * GRACE).unwrap());
            collector.applied(index, due(left_us), 100);
        }
        let pause_us = micros(limits::HISTORY_COMPACTION_PAUSE);
        let cases = [
            (5 * GRACE, u64::MAX, None),
            (6 * GRACE, 99 + pause_us, None),
            (6 * GRACE, 100 + pause_us, compaction(history, 4 * GRACE)),
        ];
        for (clock_us, now_us, expected) in cases {
            collector.tick();
            assert_eq!(collector.next(clock_us, now_us), expected);
        }
    }

    #[test]
    fn compaction_that_is_late_does_not_wait_for_ticks() {
        let history = History::Versions { count: 3 };
        let (now_us, late_us) = (9 * GRACE, micros(limits::HISTORY_COMPACTION_LATE));
        for (left_us, follows) in [
            (Some(8 * GRACE - late_us), true),
            (Some(8 * GRACE - late_us + 1), false),
            (Some(8 * GRACE), false),
            (Some(8 * GRACE + 1), false),
            (None, false),
        ] {
            let mut collector = collector(history, None);
            collector.applied(1, due(Some(GRACE)), 0);
            let piece = collector.next(now_us, 0);
            assert_eq!(piece, compaction(history, 8 * GRACE));
            collector.proposed(2, piece.unwrap());
            collector.applied(1, due(Some(GRACE)), 0);
            assert_eq!(collector.next(now_us, 0), None, "one piece is under way at a time");
            collector.applied(2, due(left_us), 0);
            assert_eq!(collector.next(now_us, 0).is_some(), follows, "{left_us:?} is due");
        }
    }

    #[test]
    fn compaction_for_another_history_begins_at_once() {
        let mut collector = collector(History::All, None);
        collector.applied(1, due(Some(0)), 0);
        collector.tick();
        let forgotten = collector.next(2 * GRACE, 0);
        assert_eq!(forgotten, compaction(History::All, GRACE));
        collector.proposed(2, forgotten.unwrap());
        collector.applied(2, due(None), 0);
        collector.tick();
        assert_eq!(collector.next(9 * GRACE, u64::MAX), None);
        let history = History::Versions { count: 3 };
        collector.applied(3, due(Some(0)), 0);
        collector.set_rules(2 * GRACE, history);
        collector.tick();
        assert_eq!(collector.next(9 * GRACE, 0), compaction(history, 7 * GRACE));
    }

    fn compacted(as_of_us: u64) -> Option<GarbageCollection> {
        let (rows_max, bytes_max) =
            (limits::COLLECTION_ROWS_MAX as u32, limits::COLLECTION_BYTES_MAX);
        Some(GarbageCollection::Compacted { as_of_us, rows_max, bytes_max })
    }

    #[test]
    fn the_kinds_of_compaction_take_turns_and_each_rests_by_itself() {
        let history = History::Versions { count: 3 };
        let mut collector = collector(history, None);
        let left = |history_due_us, compacted_due_us| MachineSummary {
            history_due_us,
            compacted_due_us,
            ..MachineSummary::default()
        };
        let pause_us = micros(limits::HISTORY_COMPACTION_PAUSE);
        collector.applied(1, left(Some(GRACE), Some(GRACE)), 0);
        assert_eq!(collector.next(2 * GRACE - 1, 0), None, "neither is a minute old");
        for (index, now_us, left, expected) in [
            (2, 0, left(Some(GRACE), Some(GRACE)), compaction(history, GRACE)),
            (3, 0, left(Some(GRACE), Some(GRACE)), compacted(GRACE)),
            (4, 0, left(Some(GRACE), None), compaction(history, GRACE)),
            (5, 0, left(None, Some(GRACE)), compaction(history, GRACE)),
            (6, 0, left(Some(GRACE), None), compacted(GRACE)),
            (7, pause_us, left(Some(GRACE), Some(GRACE)), compaction(history, GRACE)),
            (8, pause_us, left(None, None), compacted(GRACE)),
        ] {
            collector.tick();
            assert_eq!(collector.next(2 * GRACE, now_us), expected, "entry {index}");
            collector.proposed(index, expected.unwrap());
            collector.applied(index, left, now_us);
        }
        collector.tick();
        assert_eq!(collector.next(9 * GRACE, 9 * pause_us), None, "nothing is left");
    }

    /// Changes are old when a `COMPACT` ends the reads before them.
    #[test]
    fn compaction_of_what_was_compacted_is_late_when_it_has_been_due_for_long() {
        let late_us = micros(limits::HISTORY_COMPACTION_LATE);
        for (waited_us, follows) in [(0, false), (late_us - 1, false), (late_us, true)] {
            let mut collector = collector(History::All, None);
            let left = || MachineSummary { compacted_due_us: Some(1), ..MachineSummary::default() };
            collector.applied(1, left(), GRACE);
            let now_us = GRACE + waited_us;
            let piece = collector.next(9 * GRACE, now_us);
            assert_eq!(piece, compacted(8 * GRACE));
            collector.proposed(2, piece.unwrap());
            collector.applied(2, left(), now_us);
            assert_eq!(collector.next(9 * GRACE, now_us).is_some(), follows, "{waited_us} µs");
        }
    }

    #[test]
    fn what_was_compacted_goes_though_all_history_is_kept_or_is_younger_than_its_age() {
        for history in [History::All, History::For { age_us: 100 * GRACE }] {
            let mut collector = collector(history, None);
            let state = MachineSummary { compacted_due_us: Some(1), ..MachineSummary::default() };
            collector.applied(1, state, 0);
            assert_eq!(collector.next(2 * GRACE, 0), compacted(GRACE), "{history:?}");
        }
    }

    #[test]
    fn where_nothing_is_due_nothing_is_written() {
        let mut collector = collector(History::Versions { count: 3 }, None);
        for round in 1..100 {
            collector.tick();
            assert_eq!(collector.next(round * 1_000 * GRACE, round * GRACE), None);
        }
    }
}
