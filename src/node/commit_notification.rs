//! Notifies followers of the commit index.
//!
//! Every REPLICATION carries the leader's commit index, so under load a message of its own for each
//! commit would only add a message and an answer to each follower. Rule: a leader sends one only to
//! a server to which it has sent no REPLICATION for
//! [`COMMIT_NOTIFICATION_DELAY`], or one whose forwarded write
//! it has just answered, because the client may read at that server at once.
//!
//! A notification that is lost, or that cannot be sent to a server that is behind, is not repeated:
//! the next heartbeat or REPLICATION carries the commit index.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::clock::micros;
use crate::model::{LogIndex, NodeId};

/// How long a leader that has sent a follower no REPLICATION waits before it notifies that follower
/// of a commit. One millisecond: under load the next REPLICATION comes sooner, and an idle
/// follower's readers wait no longer.
const COMMIT_NOTIFICATION_DELAY: Duration = Duration::from_millis(1);

/// The commit indices that a leader has sent, in one term.
#[derive(Debug, Default)]
pub(super) struct CommitNotifications {
    /// By server: the commit index in the last REPLICATION to it, and when that was sent.
    sent: BTreeMap<NodeId, (LogIndex, u64)>,
}

impl CommitNotifications {
    /// Notes that a REPLICATION to `server` carries the commit index `commit`.
    pub fn sent(&mut self, server: NodeId, commit: LogIndex, now_us: u64) {
        self.sent.insert(server, (commit, now_us));
    }

    /// When `server` is to be notified of `commit`, unless it has been.
    fn due_us(&self, server: NodeId, commit: LogIndex) -> Option<u64> {
        let (sent, at_us) = self.sent.get(&server).copied().unwrap_or_default();
        (sent < commit).then(|| at_us.saturating_add(micros(COMMIT_NOTIFICATION_DELAY)))
    }

    /// Returns those of `servers` that are to be notified now, and takes them as notified. Those in
    /// `urgent` are not delayed.
    pub fn take_due(
        &mut self,
        servers: &BTreeSet<NodeId>,
        urgent: &BTreeSet<NodeId>,
        commit: LogIndex,
        now_us: u64,
    ) -> Vec<NodeId> {
        let is_due = |server: &NodeId| {
            let due_us = self.due_us(*server, commit);
            due_us.is_some_and(|due_us| due_us <= now_us || urgent.contains(server))
        };
        let due: Vec<NodeId> = servers.iter().copied().filter(is_due).collect();
        due.iter().for_each(|server| self.sent(*server, commit, now_us));
        due
    }

    /// When the first of `servers` is to be notified.
    pub fn next_us(&self, servers: &BTreeSet<NodeId>, commit: LogIndex) -> Option<u64> {
        servers.iter().filter_map(|server| self.due_us(*server, commit)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_notified_by_a_replication_or_when_there_is_none_for_a_while() {
        let (a, b) = (NodeId(2), NodeId(3));
        let (both, none) = (BTreeSet::from([a, b]), BTreeSet::new());
        let delay_us = micros(COMMIT_NOTIFICATION_DELAY);
        let mut notifications = CommitNotifications::default();
        notifications.sent(a, 4, 100);
        notifications.sent(b, 4, 200);
        assert_eq!(notifications.next_us(&both, 4), None);
        assert_eq!(notifications.next_us(&both, 5), Some(100 + delay_us));
        assert!(notifications.take_due(&both, &none, 5, 99 + delay_us).is_empty());
        assert_eq!(notifications.take_due(&both, &none, 5, 100 + delay_us), [a]);
        assert_eq!(notifications.next_us(&both, 5), Some(200 + delay_us), "once is enough for a");
        notifications.sent(b, 5, 300);
        assert_eq!(notifications.next_us(&both, 5), None);
        assert_eq!(notifications.take_due(&both, &BTreeSet::from([b]), 6, 301), [b]);
        assert_eq!(notifications.next_us(&BTreeSet::new(), 7), None);
    }
}
