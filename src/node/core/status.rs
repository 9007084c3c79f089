//! What a driver may ask of a node: its status, whether its state may be read, and what it knows of
//! the log. Nothing here changes state.

use std::cmp::Ordering;

use bytes::Bytes;

use super::super::Now;
use super::super::by_place;
use super::super::config::{Distrust, NodeStatus};
use super::super::leadership::Leadership;
use super::super::replies::GroupState;
#[cfg(any(test, feature = "internals"))]
use super::super::writes::Forwarded;
use super::Node;
use crate::model::{AppliedPoint, Command, LogIndex, NodeId, SnapshotId, Term, Timestamp};
use crate::wire::message::Role;

impl Node {
    /// The term of the entry at an index; `None` beyond the log's end and where it is compacted.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.consensus.term_at(index)
    }

    /// At the leader: the last index that `server` is known to have stored durably; 0 for none.
    pub fn matched(&self, server: NodeId) -> LogIndex {
        self.consensus.matched(server)
    }

    /// The writes that are forwarded to the leader and not answered.
    #[cfg(any(test, feature = "internals"))]
    pub fn forwarded(&self) -> Forwarded {
        self.writes.forwarded()
    }

    /// The reason why this node's state must not be read; `None` if it may be.
    pub fn distrust(&self) -> Option<Distrust> {
        if self.consistency.is_refuted() {
            Some(Distrust::Refuted)
        } else if self.store_lost {
            Some(Distrust::StoreLost)
        } else if self.consistency.is_disputed() {
            Some(Distrust::Disputed)
        } else {
            None
        }
    }

    /// Whether a snapshot that `from` offers, which reaches to `timestamp`, is of use.
    pub fn wants_snapshot(
        &self,
        now: Now,
        from: NodeId,
        snapshot: SnapshotId,
        timestamp: Timestamp,
    ) -> bool {
        // The offer may come before the first message of a new leader, which is sent on another
        // connection. Whether this node follows its sender is checked again when the snapshot is to
        // be installed.
        let follows = match snapshot.leader_term.cmp(&self.consensus.term()) {
            Ordering::Less => false,
            Ordering::Equal => self.consensus.leader().is_none_or(|leader| leader == from),
            Ordering::Greater => true,
        };
        let times = self.applied.timestamp..=self.latest_timestamp(now);
        follows && times.contains(&timestamp) && self.consensus.needs_snapshot(snapshot.index)
    }

    /// The last index that the state machine has applied, with its timestamp and the hash of the
    /// state.
    pub fn applied_point(&self) -> AppliedPoint {
        self.applied
    }

    /// A timestamp not before the last one in this node's log: this node has no version that is
    /// newer.
    pub fn newest_timestamp(&self) -> Timestamp {
        self.clock.last()
    }

    /// Whether everything up to `timestamp` is in this node's log and not applied yet, so that it
    /// is worth a read's while to wait for it. What is not in the log may never come.
    pub fn reaches_soon(&self, timestamp: Timestamp) -> bool {
        self.applied.timestamp < timestamp && timestamp <= self.newest_timestamp()
    }

    /// Finds the value of `key` at exactly the version `timestamp` in an entry that is committed
    /// and not applied yet; returns the entry's index and the value.
    pub fn unapplied_put(&self, timestamp: Timestamp, key: &[u8]) -> Option<(LogIndex, Bytes)> {
        let (index, data) = self.consensus.find_unapplied(timestamp, Command::peek_timestamp)?;
        let (_, put, value) = Command::put_of(data)?;
        (put == key).then_some((index, value))
    }

    /// Whether the answer to some request waits until committed entries are applied.
    pub fn awaits_application(&self) -> bool {
        self.writes.awaits_application() || self.reads.awaits_application()
    }

    /// At a leader: how far the other servers' clocks are ahead of its own, if that is more than a
    /// warning takes.
    pub fn clock_apart_us(&self) -> Option<i64> {
        match self.consensus.role() {
            Role::Leader => self.server_clocks.apart_us(),
            Role::Follower | Role::Candidate => None,
        }
    }

    /// The state of the node as `acervo status` shows it.
    pub fn status(&self) -> NodeStatus {
        let in_sync = self.leadership.iter().flat_map(Leadership::in_sync).collect();
        NodeStatus {
            role: self.consensus.role(),
            leader: self.consensus.leader(),
            term: self.consensus.term(),
            commit: self.consensus.commit(),
            applied: self.applied,
            last_index: self.consensus.last_index(),
            in_sync,
            full_disks: self.full_disks().into_iter().collect(),
            first_leader: self.consensus.configured_first_leader(),
            no_leader: self.consensus.no_leader(),
            level: self.level,
            history: self.rules.map(|rules| rules.history),
            leases: self.leases.count(),
            ineligible: self.eligibility.reasons().iter().copied().collect(),
            distrust: self.distrust(),
        }
    }

    /// What is known of the group, for the reply to a request that was not confirmed in time.
    pub(super) fn group_state(&self) -> GroupState {
        let reason = self.consensus.no_leader();
        GroupState {
            answering: self.reachability.reached(self.leads()),
            servers: self.config.nodes.len(),
            no_leader: reason.map(|reason| reason.sentence(|node| self.name_of(node))),
        }
    }

    fn name_of(&self, node: NodeId) -> String {
        let place = self.config.nodes.iter().position(|of| *of == node);
        let name = place.and_then(|place| self.config.names.get(place)).cloned();
        name.unwrap_or_else(|| by_place(node))
    }
}
