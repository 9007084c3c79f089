//! Telling the other servers what is committed.
//!
//! Every REPLICATION carries the leader's commit index, so under load a message of its own for each
//! commit is waste: to each follower one more message, and one more answer. So a leader sends one only
//! to a server that it has sent no REPLICATION for [`COMMIT_NEWS_DELAY`](limits::COMMIT_NEWS_DELAY),
//! or that it has just answered a forwarded write, whose client may read there at once.
//!
//! A message that is lost, or cannot be sent to a server that is behind, is not repeated: the next
//! heartbeat or REPLICATION brings the news.

use std::collections::{BTreeMap, BTreeSet};

use super::core::micros;
use crate::limits;
use crate::model::{LogIndex, NodeId};

/// What a leader has told whom, in one reign.
#[derive(Debug, Default)]
pub(super) struct CommitNews {
    /// The commit index in the last REPLICATION to a server, and when that was.
    told: BTreeMap<NodeId, (LogIndex, u64)>,
}

impl CommitNews {
    /// A REPLICATION to `peer` says that `commit` is committed.
    pub fn told(&mut self, peer: NodeId, commit: LogIndex, now_us: u64) {
        self.told.insert(peer, (commit, now_us));
    }

    /// When `peer`, if it does not know of `commit`, is to be told.
    fn due_us(&self, peer: NodeId, commit: LogIndex) -> Option<u64> {
        let (told, at_us) = self.told.get(&peer).copied().unwrap_or_default();
        (told < commit).then(|| at_us.saturating_add(micros(limits::COMMIT_NEWS_DELAY)))
    }

    /// Those of `peers` that are to be told now. `asking` are not kept waiting.
    pub fn take_due(
        &mut self,
        peers: &BTreeSet<NodeId>,
        asking: &BTreeSet<NodeId>,
        commit: LogIndex,
        now_us: u64,
    ) -> Vec<NodeId> {
        let is_due = |peer: &NodeId| {
            let due_us = self.due_us(*peer, commit);
            due_us.is_some_and(|due_us| due_us <= now_us || asking.contains(peer))
        };
        let due: Vec<NodeId> = peers.iter().copied().filter(is_due).collect();
        due.iter().for_each(|peer| self.told(*peer, commit, now_us));
        due
    }

    /// When the first of `peers` is to be told.
    pub fn next_us(&self, peers: &BTreeSet<NodeId>, commit: LogIndex) -> Option<u64> {
        peers.iter().filter_map(|peer| self.due_us(*peer, commit)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_by_replication_or_when_there_is_none_for_a_while() {
        let (a, b) = (NodeId(2), NodeId(3));
        let (both, none) = (BTreeSet::from([a, b]), BTreeSet::new());
        let delay_us = micros(limits::COMMIT_NEWS_DELAY);
        let mut news = CommitNews::default();
        news.told(a, 4, 100);
        news.told(b, 4, 200);
        assert_eq!(news.next_us(&both, 4), None);
        assert_eq!(news.next_us(&both, 5), Some(100 + delay_us));
        assert!(news.take_due(&both, &none, 5, 99 + delay_us).is_empty());
        assert_eq!(news.take_due(&both, &none, 5, 100 + delay_us), [a]);
        assert_eq!(news.next_us(&both, 5), Some(200 + delay_us), "once is enough for a");
        news.told(b, 5, 300);
        assert_eq!(news.next_us(&both, 5), None);
        assert_eq!(news.take_due(&both, &BTreeSet::from([b]), 6, 301), [b]);
        assert_eq!(news.next_us(&BTreeSet::new(), 7), None);
    }
}
