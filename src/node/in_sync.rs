//! The in-sync set: which servers an acknowledgement waits for under `--ack all` (SPEC A3).
//!
//! A server leaves the set when it has owed a REPLICATION_OK for longer than the time-out, and comes
//! back when it has stored everything that is committed. A new leader starts with the servers it has
//! a link to. The leader itself is always in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::node::Notice;
use crate::types::{LogIndex, NodeId};

/// Proposals closer together than this share one entry of the history, so that its length is bound
/// by the time-out, not by the load.
const HISTORY_GRAIN_US: u64 = 1_000;

#[derive(Debug)]
struct Peer {
    in_sync: bool,
    stored: LogIndex,
}

/// The set, at a leader.
#[derive(Debug)]
pub(super) struct InSync {
    timeout_us: u64,
    peers: BTreeMap<NodeId, Peer>,
    /// When which indices were proposed: (last index, time of the first of them), rising.
    history: VecDeque<(LogIndex, u64)>,
}

impl InSync {
    /// The set of a new leader; `linked` are the peers it has a link to.
    pub fn new(timeout_us: u64, peers: &[NodeId], linked: &BTreeSet<NodeId>) -> InSync {
        let peer = |id: &NodeId| (*id, Peer { in_sync: linked.contains(id), stored: 0 });
        InSync { timeout_us, peers: peers.iter().map(peer).collect(), history: VecDeque::new() }
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

    /// Brings the set up to date: `stored` tells how far a peer's durable log reaches, `commit` is
    /// the commit index.
    pub fn update(
        &mut self,
        now_us: u64,
        commit: LogIndex,
        stored: impl Fn(NodeId) -> LogIndex,
        notices: &mut Vec<Notice>,
    ) {
        for (id, peer) in &mut self.peers {
            peer.stored = stored(*id);
            if peer.in_sync {
                let first_owed = self.history.partition_point(|(last, _)| *last <= peer.stored);
                let owes = self.history.get(first_owed);
                if owes.is_some_and(|(_, since)| now_us.saturating_sub(*since) > self.timeout_us) {
                    peer.in_sync = false;
                    notices.push(Notice::OutOfSync { peer: *id });
                }
            } else if peer.stored >= commit && peer.stored > 0 {
                peer.in_sync = true;
                notices.push(Notice::InSync { peer: *id });
            }
        }
        let settled = self.stored_by_all().min(self.history.back().map_or(0, |(last, _)| *last));
        while self.history.pop_front_if(|(last, _)| *last <= settled).is_some() {}
    }

    /// The last index that every peer in the set has stored; `u64::MAX` when none is in it.
    pub fn stored_by_all(&self) -> LogIndex {
        let in_sync = self.peers.values().filter(|p| p.in_sync);
        in_sync.map(|p| p.stored).min().unwrap_or(u64::MAX)
    }

    /// The peers in the set.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.iter().filter(|(_, p)| p.in_sync).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    fn linked_to_both() -> InSync {
        InSync::new(2_000_000, &[A, B], &BTreeSet::from([A, B]))
    }

    #[test]
    fn a_debtor_drops_out_after_the_timeout_and_returns_when_it_has_caught_up() {
        let mut set = linked_to_both();
        let mut notices = Vec::new();
        set.proposed(1, 0);
        set.update(1_999_999, 1, |n| if n == A { 1 } else { 0 }, &mut notices);
        assert_eq!(set.stored_by_all(), 0, "B is still waited for");
        set.update(2_000_001, 1, |n| if n == A { 1 } else { 0 }, &mut notices);
        assert_eq!(set.stored_by_all(), 1);
        assert_eq!(notices, [Notice::OutOfSync { peer: B }]);
        set.proposed(5, 2_100_000);
        set.update(2_200_000, 5, |n| if n == A { 5 } else { 4 }, &mut notices);
        assert_eq!(set.members().collect::<Vec<_>>(), [A]);
        set.update(2_300_000, 5, |_| 5, &mut notices);
        assert_eq!(set.members().collect::<Vec<_>>(), [A, B]);
        assert_eq!(notices.last(), Some(&Notice::InSync { peer: B }));
    }

    #[test]
    fn a_server_that_keeps_answering_stays_in_however_long_the_load_lasts() {
        let mut set = linked_to_both();
        for step in 1..10_000u64 {
            set.proposed(step, step * 1_000);
            set.update(step * 1_000, step, |_| step - 1, &mut Vec::new());
            assert_eq!(set.members().count(), 2);
            assert!(set.history.len() <= 3, "settled history is forgotten");
        }
    }

    #[test]
    fn a_new_leader_does_not_wait_for_servers_it_cannot_reach() {
        let set = InSync::new(2_000_000, &[A, B], &BTreeSet::from([A]));
        assert_eq!(set.members().collect::<Vec<_>>(), [A]);
    }
}
