//! Keeps the in-sync set: the servers that an acknowledgement waits for under `--ack all` (SPEC
//! A3).
//!
//! Rule: a server joins the set when it is *confirmed in this term*: the leader hears from it, and
//! it has stored the first entry of the term, and so everything before it, and everything that was
//! committed a tick ago. A new leader starts with itself alone, because a server that merely has a
//! link may be blank, frozen or behind.
//!
//! A server leaves the set at once when its link breaks, when nothing has come from it for an
//! election time-out, or when its log turns out shorter than it was (its data directory was lost).
//! It leaves, too, when it has owed a REPLICATION_OK for longer than the in-sync time-out. That
//! holds for the leader itself as well: if its own disk is late, what a majority has stored is
//! acknowledged all the same.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{LogIndex, NodeId};
use crate::node::Notice;

/// Proposals closer together than this share one element of `proposals`: with a time-out of seconds
/// it has some thousand elements, however many writes there are.
const PROPOSAL_GRAIN_US: u64 = 1_000;

/// The progress of a server, as of one update of the set.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerProgress {
    /// The last index that it has stored durably.
    pub stored: LogIndex,
    /// Its link is up, and a message from it came within an election time-out.
    pub heard: bool,
}

#[derive(Debug)]
struct InSyncServer {
    in_sync: bool,
    stored: LogIndex,
}

/// The in-sync set of one leader, in one term.
#[derive(Debug)]
pub(super) struct InSync {
    timeout_us: u64,
    /// Every server of the group, this one included.
    servers: BTreeMap<NodeId, InSyncServer>,
    /// Times of proposals: (last index, time of the first of them), both rising.
    proposals: VecDeque<(LogIndex, u64)>,
    /// A server that has stored this index has caught up: the first entry of the term, then the
    /// commit index as of the last tick. Under load a server that is always slightly behind would
    /// never reach the current commit index.
    caught_up_index: LogIndex,
}

impl InSync {
    /// The set of the new leader `me` alone, whose term begins with the entry at `first_index`.
    pub fn new(timeout_us: u64, me: NodeId, nodes: &[NodeId], first_index: LogIndex) -> InSync {
        assert!(nodes.contains(&me), "server {me} is none of the group's: {nodes:?}");
        let member = |id: &NodeId| (*id, InSyncServer { in_sync: *id == me, stored: 0 });
        InSync {
            timeout_us,
            servers: nodes.iter().map(member).collect(),
            proposals: VecDeque::new(),
            caught_up_index: first_index,
        }
    }

    /// Notes that a tick has passed, and the commit index then.
    pub fn tick(&mut self, commit: LogIndex) {
        self.caught_up_index = self.caught_up_index.max(commit);
    }

    /// Notes that everything up to `last_index` has been proposed by now.
    pub fn proposed(&mut self, last_index: LogIndex, now_us: u64) {
        match self.proposals.back_mut() {
            Some((last, _)) if *last >= last_index => {}
            Some((last, since)) if now_us.saturating_sub(*since) < PROPOSAL_GRAIN_US => {
                *last = last_index;
            }
            _ => self.proposals.push_back((last_index, now_us)),
        }
    }

    /// Brings the set up to date with the progress of each server; adds a notice for each that
    /// joins or leaves.
    pub fn update(
        &mut self,
        now_us: u64,
        progress: impl Fn(NodeId) -> ServerProgress,
        notices: &mut Vec<Notice>,
    ) {
        for (id, server) in &mut self.servers {
            let ServerProgress { stored, heard } = progress(*id);
            let shrunk = stored < server.stored;
            server.stored = stored;
            let first_owed = self.proposals.partition_point(|(last, _)| *last <= stored);
            let late = self
                .proposals
                .get(first_owed)
                .is_some_and(|(_, since)| now_us.saturating_sub(*since) > self.timeout_us);
            if server.in_sync && (!heard || shrunk || late) {
                server.in_sync = false;
                notices.push(Notice::OutOfSync { server: *id });
            } else if !server.in_sync && heard && !late && stored >= self.caught_up_index {
                server.in_sync = true;
                notices.push(Notice::InSync { server: *id });
            }
        }
        let settled = self.stored_by_all().min(self.proposals.back().map_or(0, |(last, _)| *last));
        while self.proposals.pop_front_if(|(last, _)| *last <= settled).is_some() {}
    }

    /// The last index that every server in the set has stored; `u64::MAX` if the set is empty.
    pub fn stored_by_all(&self) -> LogIndex {
        let in_sync = self.servers.values().filter(|server| server.in_sync);
        in_sync.map(|server| server.stored).min().unwrap_or(u64::MAX)
    }

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
        let progress = |n: NodeId| ServerProgress { stored: stored[n.0 as usize - 1], heard: true };
        set.update(now_us, progress, &mut notices);
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
        assert_eq!(update(&mut set, 1, [10, 0, 10]), [Notice::InSync { server: B }]);
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
        assert_eq!(update(&mut set, 2_000_001, [2, 2, 1]), [Notice::OutOfSync { server: B }]);
        assert_eq!(set.stored_by_all(), 2);
        set.proposed(5, 2_100_000);
        set.tick(5);
        update(&mut set, 2_200_000, [5, 5, 4]);
        assert_eq!(members(&set), [ME, A]);
        assert_eq!(update(&mut set, 2_300_000, [5; 3]), [Notice::InSync { server: B }]);
    }

    #[test]
    fn a_broken_link_or_silence_counts_at_once_and_so_does_a_log_that_has_shrunk() {
        let mut set = whole();
        let mut notices = Vec::new();
        set.update(1, |n| ServerProgress { stored: 1, heard: n != B }, &mut notices);
        assert_eq!(notices, [Notice::OutOfSync { server: B }]);
        set.update(2, |n| ServerProgress { stored: 1, heard: n != B }, &mut notices);
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
        assert_eq!(update(&mut set, 2_000_001, [1, 2, 2]), [Notice::OutOfSync { server: ME }]);
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
            assert!(set.proposals.len() <= 3, "settled proposals is forgotten");
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
