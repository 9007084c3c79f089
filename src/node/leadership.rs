//! Everything that a leader keeps for its term, and drops with its leadership.
//!
//! A [`Leadership`] is created when the node has become leader and dropped when it leads no more,
//! or leads in another term. So no state of one term is ever used in another.

use std::collections::BTreeSet;

use super::clock::micros;
use super::commit_notification::CommitNotifications;
use super::early_ack::KnownSequences;
use super::in_sync::{InSync, ServerProgress};
use super::server_levels::ServerLevels;
use super::{Notice, Now};
use crate::limits;
use crate::model::{LogIndex, NodeId, RequestId, StateLimits};

/// The state of one leader in one term.
#[derive(Debug)]
pub(super) struct Leadership {
    in_sync: InSync,
    /// The index of the term's first entry.
    first_index: LogIndex,
    /// At the founder of a group: no write is proposed before every server has taken part, or
    /// before this time.
    bootstrap_until_us: Option<u64>,
    known_sequences: KnownSequences,
    commit_notifications: CommitNotifications,
    server_levels: ServerLevels,
    /// This leader has proposed the rules of the group.
    rules_proposed: bool,
    /// The highest feature level that this leader has proposed.
    level_proposed: u32,
}

impl Leadership {
    /// The leadership of a term that begins with the entry at `first_index`; `limits` are those of
    /// the group's state machines, once they are known.
    pub fn new(
        node: NodeId,
        nodes: &[NodeId],
        first_index: LogIndex,
        in_sync_timeout_us: u64,
        limits: Option<StateLimits>,
        now: Now,
    ) -> Leadership {
        assert!(first_index > 0, "a term of {node} begins before the log");
        // The log of a group that was just bootstrapped holds its founder's first entry alone.
        let is_founder = first_index == 1;
        Leadership {
            in_sync: InSync::new(in_sync_timeout_us, node, nodes, first_index),
            first_index,
            bootstrap_until_us: is_founder
                .then(|| now.monotonic_us + micros(limits::BOOTSTRAP_TIMEOUT)),
            known_sequences: KnownSequences::new(limits),
            commit_notifications: CommitNotifications::default(),
            server_levels: ServerLevels::default(),
            rules_proposed: false,
            level_proposed: 0,
        }
    }

    /// Whether everything of earlier terms is applied where everything up to `applied` is.
    pub fn has_applied_earlier_terms(&self, applied: LogIndex) -> bool {
        applied >= self.first_index
    }

    /// Notes that a tick has passed, and the commit index then.
    pub fn tick(&mut self, commit: LogIndex) {
        self.in_sync.tick(commit);
    }

    /// Whether writes must wait for servers that have never taken part in the group. Such a server
    /// cannot help to elect a leader (see `consensus::voter_eligibility`), so a group that accepted
    /// writes without it would be unavailable if its first leader died. `all_took_part` says
    /// whether every server has stored an entry.
    pub fn is_bootstrapping(&mut self, all_took_part: impl FnOnce() -> bool, now: Now) -> bool {
        if let Some(until_us) = self.bootstrap_until_us
            && (now.monotonic_us >= until_us || all_took_part())
        {
            self.bootstrap_until_us = None;
        }
        self.bootstrap_until_us.is_some()
    }

    /// Whether this leader has proposed the rules of the group.
    pub fn are_rules_proposed(&self) -> bool {
        self.rules_proposed
    }

    /// Notes that this leader has proposed the rules of the group.
    pub fn rules_proposed(&mut self) {
        self.rules_proposed = true;
    }

    /// Other limits of the group's state machines are in force: no write is known to be new before
    /// its client's session is known again.
    pub fn set_limits(&mut self, limits: Option<StateLimits>) {
        self.known_sequences = KnownSequences::new(limits);
    }

    /// Notes the feature level that another server knows.
    pub fn level_heard(&mut self, server: NodeId, level: u32, now: Now) {
        self.server_levels.heard(server, level, now.monotonic_us);
    }

    /// The link to a server is down.
    pub fn link_down(&mut self, server: NodeId) {
        self.server_levels.lost(server);
    }

    /// The feature level to propose: the newest one that every server knows, if it is above
    /// `level`, the group's, and above what this leader has proposed. `own` is this server's.
    pub fn level_to_propose(
        &self,
        others: impl IntoIterator<Item = NodeId>,
        own: u32,
        level: u32,
        settled_us: u64,
        now: Now,
    ) -> Option<u32> {
        let current = level.max(self.level_proposed);
        if own <= current {
            return None;
        }
        let known = self.server_levels.known_to_all(others, own, now.monotonic_us, settled_us);
        known.filter(|known| *known > current)
    }

    /// Notes that this leader has proposed a feature level.
    pub fn level_proposed(&mut self, level: u32) {
        assert!(level > self.level_proposed, "{level} is proposed after {}", self.level_proposed);
        self.level_proposed = level;
    }

    /// Notes that a write was proposed, at an index greater than any before. Returns whether it is
    /// known to be new there.
    pub fn write_proposed(&mut self, request: &RequestId, index: LogIndex, clock_us: u64) -> bool {
        self.known_sequences.proposed(request, index, clock_us)
    }

    /// Notes the outcome of applying a write that was proposed in this term.
    pub fn write_applied(&mut self, request: &RequestId, index: LogIndex, newest_sequence: u64) {
        self.known_sequences.applied(request.client, index, newest_sequence);
    }

    /// Notes that a REPLICATION to `server` carries the commit index `commit`.
    pub fn commit_sent(&mut self, server: NodeId, commit: LogIndex) {
        self.commit_notifications.sent(server, commit);
    }

    /// Returns the servers that are to be notified of the commit index, and takes them as notified.
    pub fn take_commit_notifications(
        &mut self,
        links: &BTreeSet<NodeId>,
        commit: LogIndex,
    ) -> Vec<NodeId> {
        self.commit_notifications.take_due(links, commit)
    }

    /// Brings the in-sync set up to date. Returns the last index that every server in it has
    /// stored.
    pub fn update_in_sync(
        &mut self,
        last_index: LogIndex,
        progress: impl Fn(NodeId) -> ServerProgress,
        now: Now,
        notices: &mut Vec<Notice>,
    ) -> LogIndex {
        self.in_sync.proposed(last_index, now.monotonic_us);
        self.in_sync.update(now.monotonic_us, progress, notices);
        self.in_sync.stored_by_all()
    }

    /// The servers of the in-sync set.
    pub fn in_sync(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.in_sync.members()
    }
}
