//! Notifies followers of the commit index.
//!
//! Every REPLICATION carries the leader's commit index. Rule: when all entries of the log are
//! committed, a follower to which none has carried the newest index is sent a REPLICATION without
//! entries at the end of the flush. So there is at most one such message for each follower and
//! flush, and none under load, where the next entries carry the index; and a client that reads at a
//! follower what was just written waits no longer than the line takes.
//!
//! A notification that is lost, or that cannot be sent to a server that is behind, is not repeated:
//! the next heartbeat or REPLICATION carries the commit index.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{LogIndex, NodeId};

/// The commit indices that a leader has sent, in one term.
#[derive(Debug, Default)]
pub(super) struct CommitNotifications {
    /// By server: the commit index in the last REPLICATION to it.
    sent: BTreeMap<NodeId, LogIndex>,
}

impl CommitNotifications {
    /// Notes that a REPLICATION to `server` carries the commit index `commit`.
    pub fn sent(&mut self, server: NodeId, commit: LogIndex) {
        self.sent.insert(server, commit);
    }

    /// Returns those of `servers` that are to be notified of `commit`, and takes them as notified.
    pub fn take_due(&mut self, servers: &BTreeSet<NodeId>, commit: LogIndex) -> Vec<NodeId> {
        let is_due = |server: &NodeId| self.sent.get(server).is_none_or(|sent| *sent < commit);
        let due: Vec<NodeId> = servers.iter().copied().filter(is_due).collect();
        due.iter().for_each(|server| self.sent(*server, commit));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_notified_by_a_replication_or_once_where_there_is_none() {
        let (a, b) = (NodeId(2), NodeId(3));
        let both = BTreeSet::from([a, b]);
        let mut notifications = CommitNotifications::default();
        notifications.sent(a, 4);
        notifications.sent(b, 4);
        assert!(notifications.take_due(&both, 4).is_empty());
        notifications.sent(b, 5);
        assert_eq!(notifications.take_due(&both, 5), [a], "a REPLICATION has told b");
        assert!(notifications.take_due(&both, 5).is_empty(), "once is enough");
        assert_eq!(notifications.take_due(&BTreeSet::from([b]), 6), [b], "a has no link");
    }
}
