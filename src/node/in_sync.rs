//! The in-sync set: which servers an acknowledgement waits for under `--ack all` (SPEC A3).
//!
//! A server is in the set when it has been *confirmed in this term*: it is heard, and has stored the first entry of the
//! term, and so everything before it, and what was committed a tick ago. A new leader starts with itself alone; a
//! server that it has merely a link to may be blank, frozen, or lagging.
//!
//! A server leaves the set at once when its link breaks, when nothing at all has come from it for an election time-out,
//! and when its log turns out shorter than it was (its data directory was lost). It leaves, too, when it has owed a
//! REPLICATION_OK for longer than the in-sync time-out. The last holds for the leader itself: when its own disk is the
//! one that is late, what a majority has stored is acknowledged all the same.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{LogIndex, NodeId};
use crate::node::Notice;

/// Proposals closer together than this share one entry of the history, so that its length is bound
/// by the time-out, not by the load.
const HISTORY_GRAIN_US: u64 = 1_000;

/// What is known of a server at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// How far its durable log reaches.
    pub stored: LogIndex,
    /// Its link is up and it has been heard lately.
    pub heard: bool,
}

#[derive(Debug)]
struct Member {
    in_sync: bool,
    stored: LogIndex,
}

/// The set, at a leader.
#[derive(Debug)]
pub(super) struct InSync {
    timeout_us: u64,
    /// Every server of the group, this one included.
    servers: BTreeMap<NodeId, Member>,
    /// When which indices were proposed: (last index, time of the first of them), rising.
    history: VecDeque<(LogIndex, u64)>,
    /// A server that has stored this much has caught up: the first entry of the term, then the commit index as of the
    /// last tick. Under load one that is always a moment behind the others would never have all that is committed.
    caught_up_index: LogIndex,
}

impl InSync {
    /// The set of the new leader `me`, whose term begins with the entry at `first_index`.
    pub fn new(timeout_us: u64, me: NodeId, nodes: &[NodeId], first_index: LogIndex) -> InSync {
        let member = |id: &NodeId| (*id, Member { in_sync: *id == me, stored: 0 });
        InSync {
            timeout_us,
            servers: nodes.iter().map(member).collect(),
            history: VecDeque::new(),
            caught_up_index: first_index,
        }
    }

    /// A tick has passed; `commit` is committed.
    pub fn tick(&mut self, commit: LogIndex) {
        self.caught_up_index = self.caught_up_index.max(commit);
    }

    /// Everything up to `last_index` has been proposed by now.
    pub fn proposed(&mut self, last_index: LogIndex, now_us: u64) {
        match self.history.back_mut() {
            Some((last, _)) if *last >= last_index => {}
            Some((last, since)) if now_us.saturating_sub(*since) < HISTORY_GRAIN_US => {
                *last = last_index;
            }
            _ => self.history.push_back((last_index, now_us)),
        }
    }

    /// Brings the set up to date.
    pub fn update(
        &mut self,
        now_us: u64,
        standing: impl Fn(NodeId) -> Standing,
        notices: &mut Vec<Notice>,
    ) {
        for (id, server) in &mut self.servers {
            let Standing { stored, heard } = standing(*id);
            let shrunk = stored < server.stored;
            server.stored = stored;
            let first_owed = self.history.partition_point(|(last, _)| *last <= stored);
            let late = self
                .history
                .get(first_owed)
                .is_some_and(|(_, since)| now_us.saturating_sub(*since) > self.timeout_us);
            if server.in_sync && (!heard || shrunk || late) {
                server.in_sync = false;
                notices.push(Notice::OutOfSync { peer: *id });
            } else if !server.in_sync && heard && !late && stored >= self.caught_up_index {
                server.in_sync = true;
                notices.push(Notice::InSync { peer: *id });
            }
        }
        let settled = self.stored_by_all().min(self.history.back().map_or(0, |(last, _)| *last));
        while self.history.pop_front_if(|(last, _)| *last <= settled).is_some() {}
    }

    /// The last index that every server in the set has stored; `u64::MAX` when none is in it.
    pub fn stored_by_all(&self) -> LogIndex {
        let in_sync = self.servers.values().filter(|server| server.in_sync);
        in_sync.map(|server| server.stored).min().unwrap_or(u64::MAX)
    }

    /// The servers in the set.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.servers.iter().filter(|(_, server)| server.in_sync).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    fn new() -> InSync {
        InSync::new(2_000_000, ME, &[ME, A, B], 1)
    }

    /// Brings the set up to date with servers that are all heard, and says what is new.
    fn update(set: &mut InSync, now_us: u64, stored: [LogIndex; 3]) -> Vec<Notice> {
        let mut notices = Vec::new();
        let standing = |n: NodeId| Standing { stored: stored[n.0 as usize - 1], heard: true };
        set.update(now_us, standing, &mut notices);
        notices
    }

    fn members(set: &InSync) -> Vec<NodeId> {
        set.members().collect()
    }

    fn whole() -> InSync {
        let mut set = new();
        update(&mut set, 0, [1; 3]);
        assert_eq!(members(&set), [ME, A, B]);
        set
    }

    #[test]
    fn a_new_leader_waits_for_nobody_who_has_not_been_confirmed_in_its_term() {
        let mut set = InSync::new(2_000_000, ME, &[ME, A, B], 10);
        assert_eq!(members(&set), [ME]);
        // A blank one, and one that lags behind the term's first entry.
        update(&mut set, 0, [10, 0, 9]);
        assert_eq!(members(&set), [ME]);
        assert_eq!(update(&mut set, 1, [10, 0, 10]), [Notice::InSync { peer: B }]);
        set.tick(11);
        update(&mut set, 2, [12, 10, 12]);
        assert_eq!(members(&set), [ME, B], "11 was committed a tick ago");
    }

    #[test]
    fn a_debtor_drops_out_after_the_timeout_and_returns_when_it_has_caught_up() {
        let mut set = whole();
        set.proposed(2, 0);
        update(&mut set, 1_999_999, [2, 2, 1]);
        assert_eq!(set.stored_by_all(), 1, "B is still waited for");
        assert_eq!(update(&mut set, 2_000_001, [2, 2, 1]), [Notice::OutOfSync { peer: B }]);
        assert_eq!(set.stored_by_all(), 2);
        set.proposed(5, 2_100_000);
        set.tick(5);
        update(&mut set, 2_200_000, [5, 5, 4]);
        assert_eq!(members(&set), [ME, A]);
        assert_eq!(update(&mut set, 2_300_000, [5; 3]), [Notice::InSync { peer: B }]);
    }

    #[test]
    fn a_broken_link_or_silence_counts_at_once_and_so_does_a_log_that_has_shrunk() {
        let mut set = whole();
        let mut notices = Vec::new();
        set.update(1, |n| Standing { stored: 1, heard: n != B }, &mut notices);
        assert_eq!(notices, [Notice::OutOfSync { peer: B }]);
        set.update(2, |n| Standing { stored: 1, heard: n != B }, &mut notices);
        assert_eq!(members(&set), [ME, A], "what it stored before does not bring it back");
        update(&mut set, 3, [1, 0, 1]);
        assert_eq!(members(&set), [ME, B]);
    }

    #[test]
    fn the_leaders_own_disk_is_waited_for_no_longer_than_another() {
        let mut set = whole();
        set.proposed(2, 0);
        update(&mut set, 1, [1, 2, 2]);
        assert_eq!(set.stored_by_all(), 1);
        assert_eq!(update(&mut set, 2_000_001, [1, 2, 2]), [Notice::OutOfSync { peer: ME }]);
        assert_eq!(set.stored_by_all(), 2);
    }

    #[test]
    fn a_server_that_keeps_answering_stays_in_however_long_the_load_lasts() {
        let mut set = whole();
        for step in 2..10_000u64 {
            set.proposed(step, step * 1_000);
            set.tick(step);
            update(&mut set, step * 1_000, [step, step - 1, step - 1]);
            assert_eq!(set.members().count(), 3);
            assert!(set.history.len() <= 3, "settled history is forgotten");
        }
    }

    #[test]
    fn a_server_that_is_always_a_moment_behind_gets_in_all_the_same() {
        let mut set = new();
        for step in 1..100u64 {
            // Nine proposals a tick, of which it always lacks the last.
            let commit = step * 9;
            set.proposed(commit, step * 20_000);
            update(&mut set, step * 20_000, [commit, commit, commit - 1]);
            set.tick(commit);
        }
        assert_eq!(members(&set), [ME, A, B]);
    }
}
