//! The state of the node core, and what each input does to it.
//!
//! Inputs only change state; what follows from them is worked out in `flush` (in `progress`), once
//! for all inputs that have come together.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::clock::{HybridClock, LogTime};
use super::commit_notification::CommitNotifications;
use super::consistency_check::{Contradiction, StateHashes};
use super::disk_space::Disks;
use super::early_ack::KnownSequences;
use super::eligibility::{Eligibility, Ineligible, LeadershipAction};
use super::garbage_collection::{GarbageCollectionConfig, GarbageCollector};
use super::in_sync::InSync;
use super::long_writes::LongWrites;
use super::reads::{Read, Reads};
use super::server_clocks::ServerClocks;
use super::server_levels::ServerLevels;
use super::writes::{Origin, Pending, Stored, Writes};
use super::{Input, NoLeader, Notice, Now, Output, RequestToken, by_place};
use crate::consensus::{Consensus, ConsensusConfig, ConsensusError, Effects, RecoveredLog};
use crate::limits::{self, NodeLimits};
use crate::model::{
    AppliedPoint, AppliedWrite, Command, Effect, EncodedWrite, FeatureLevel, GroupRules, History,
    LogIndex, NodeId, OpKind, OpShape, Recovered, Release, SnapshotId, StateLimits, Term,
    Timestamp, WriteOutcome,
};
use crate::text::counted;
use crate::wire::message::{ErrorCode, ErrorReply, PeerMessage, RaftMessage, Reply, Role};

/// Ticks between the campaigns of two servers whose links come up at the same time: an election
/// takes two round trips and two syncs.
const CAMPAIGN_TURN_TICKS: u64 = 2;

/// The rule by which a write is acknowledged (SPEC A3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Durable on a majority and stored by every server in sync.
    All,
    /// Durable on a majority.
    Majority,
}

/// The configuration of a node, fixed for a run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The number of this node.
    pub node: NodeId,
    /// Every node of the group, this one included.
    pub nodes: Vec<NodeId>,
    /// The address of each of `nodes`, in the same order, for sentences that people read. Where one
    /// is missing the sentence names the place in the list instead.
    pub names: Vec<String>,
    /// The server that this one takes for the first leader of a blank group (`--leader`).
    pub first_leader: NodeId,
    /// When a write is acknowledged.
    pub ack: AckPolicy,
    /// How long a REPLICATION_OK may be owed before its server drops out of the in-sync set.
    pub in_sync_timeout: Duration,
    /// If work for the log is outstanding and nothing is reported for this long, or for twice as
    /// long from the state machine, this node may not lead.
    pub stall_timeout: Duration,
    /// Fixes the election time-out (in ticks, ≥ [`limits::ELECTION_TICKS`](crate::limits)) so that
    /// a simulation is deterministic; give each node its own. `None` draws one at random.
    pub election_ticks: Option<usize>,
    /// The most bytes a value may have.
    pub value_bytes_max: usize,
    /// Delay before replicated writes are handled (SPEC A7); zero normally.
    pub replication_delay: Duration,
    /// Whether the driver wants [`Output::Console`].
    pub console: bool,
    /// When garbage is collected, and how much of it at a time.
    pub garbage_collection: GarbageCollectionConfig,
    /// Bounds of memory and of work under way.
    pub limits: NodeLimits,
    /// Number of entries from one comparison of states to the next; the same at all replicas.
    /// [`limits::STATE_HASH_EVERY`](crate::limits) except in simulations.
    pub state_hash_every: LogIndex,
    /// The feature level and the limits that are compiled into this node's release.
    pub release: Release,
    /// How long every server must have named a feature level before the group's rises to it;
    /// [`limits::LEVEL_SETTLED`](crate::limits) except in simulations.
    pub level_settled: Duration,
    /// The first number of this run's requests to other servers. Drawn at random at every start, so
    /// that an answer to a request of an earlier run is never taken for one of this run.
    pub first_question: u64,
}

/// The state of a node as `acervo status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Whether it leads, follows or campaigns.
    pub role: Role,
    /// The leader of its term, as far as it knows.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: Term,
    /// The last index that it knows to be committed.
    pub commit: LogIndex,
    /// Where its state machine stands.
    pub applied: AppliedPoint,
    /// The last index in its log, durable or not.
    pub last_index: LogIndex,
    /// At the leader: the in-sync set. Empty elsewhere.
    pub in_sync: Vec<NodeId>,
    /// Servers whose full disks keep the group from accepting writes that add to the store; empty
    /// if it accepts them.
    pub full_disks: Vec<NodeId>,
    /// The reasons why this node may not lead; empty if it may.
    pub ineligible: Vec<Ineligible>,
    /// The reason why it serves no reads; `None` if it does.
    pub distrust: Option<Distrust>,
    /// The first leader that it has configured, as long as it has not taken part in the group or
    /// stored any entry.
    pub first_leader: Option<NodeId>,
    /// The reason why no leader can be elected although enough servers are up, if there is one.
    pub no_leader: Option<NoLeader>,
    /// The group's feature level, as of the entries that this node has applied.
    pub level: u32,
    /// The history that the group keeps; `None` before its rules are in the log.
    pub history: Option<History>,
}

/// The reason why a node does not trust its own state, and so serves no reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Its store is lost, and it waits for a snapshot.
    StoreLost,
    /// Others hold another state, or contradict the log, and no majority has decided.
    Disputed,
    /// A majority holds another state: this one is about to be discarded.
    Refuted,
}

impl std::fmt::Display for Distrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Distrust::StoreLost => {
                "its store is lost or was damaged and is being rebuilt from the others: it serves \
                 no reads"
            }
            Distrust::Disputed => {
                "its state or its log contradicts another server's and no majority has decided: it \
                 serves no reads"
            }
            Distrust::Refuted => {
                "its data contradicts the majority's and is being thrown away: it serves no reads"
            }
        })
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration does not name this node or the first leader among the group's nodes.
    #[error("node {0} is not one of the group's nodes, or the first leader is not")]
    NotInGroup(NodeId),
    /// Consensus refuses the recovered state.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
}

/// The progress of a node that is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    No,
    /// Finishing the requests under way.
    Draining,
    /// Stopping without finishing any request.
    Leaving,
    /// Waiting until another server leads.
    HandingOver {
        until_us: u64,
    },
    Done,
}

/// The replication core of one server: a deterministic state machine.
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) consensus: Consensus,
    pub(super) effects: Effects,
    pub(super) clock: HybridClock,
    pub(super) log_time: LogTime,
    pub(super) server_clocks: ServerClocks,
    pub(super) writes: Writes,
    /// Waiting writes were left for the next flush only so that this one did not take too long.
    pub(super) propose_more: bool,
    pub(super) long_writes: LongWrites,
    /// The commit index at the end of the last flush.
    pub(super) flushed_commit: LogIndex,
    /// Of the current term, if this node leads.
    pub(super) known_sequences: KnownSequences,
    /// Of the current term, if this node leads.
    pub(super) commit_notifications: CommitNotifications,
    pub(super) reads: Reads,
    /// Peers this node can send to.
    pub(super) links: BTreeSet<NodeId>,
    /// Peers whose link to this node broke and from which nothing has come since: an answer of
    /// theirs would be lost.
    pub(super) unheard: BTreeSet<NodeId>,
    /// Ticks since the start.
    pub(super) ticks: u64,
    /// By server: the tick in which its last message came, or its link came up.
    pub(super) heard: BTreeMap<NodeId, u64>,
    /// If the links to a majority have come up: the tick in which to campaign, unless a leader is
    /// known by then.
    pub(super) campaign_at: Option<u64>,
    /// Of the current term, if this node leads.
    pub(super) in_sync: Option<InSync>,
    /// At the founder of a group: no write is proposed before every server has taken part, or
    /// before this time.
    pub(super) bootstrap_until_us: Option<u64>,
    pub(super) eligibility: Eligibility,
    pub(super) disks: Disks,
    pub(super) applied: AppliedPoint,
    pub(super) hashes: StateHashes,
    /// Indices that were handed out to be applied, and at which replicas compare their states.
    pub(super) compared_at: BTreeSet<LogIndex>,
    /// When this node, as leader, last appended an entry to make replicas compare their states.
    pub(super) compared_anew_us: u64,
    /// An entry that contradicts this node's log, while no majority has decided.
    pub(super) contradiction: Option<Contradiction>,
    /// A contradiction was reported; once in a run.
    pub(super) contradiction_reported: bool,
    /// When the others were last asked about a contradiction.
    pub(super) contradiction_asked_us: Option<u64>,
    /// The number of the next question about states or logs.
    pub(super) next_question: u64,
    /// Nothing is applied before a snapshot is installed.
    pub(super) store_lost: bool,
    /// A majority has refuted the state or the log.
    pub(super) refuted: bool,
    pub(super) garbage_collector: GarbageCollector,
    /// The rules of the group, once they are applied.
    pub(super) rules: Option<GroupRules>,
    /// This node has proposed the rules in this term.
    pub(super) rules_proposed: bool,
    /// The group's feature level.
    pub(super) level: u32,
    /// The highest level that this node has proposed in this term.
    pub(super) level_proposed: u32,
    /// Of the current term, if this node leads.
    pub(super) server_levels: ServerLevels,
    /// Role, leader and term at the beginning of the last flush.
    pub(super) leadership: (Role, Option<NodeId>, Term),
    pub(super) stopping: Stopping,
    /// Since when no leader can be elected although enough servers are up.
    no_leader_since_us: Option<u64>,
    /// The reason for that which was reported last.
    no_leader_reported: Option<NoLeader>,
    /// REPLICATIONs that `--replication-delay` holds back, in order: when each is due, the link
    /// that it came on, and the message.
    pub(super) delayed: VecDeque<(u64, NodeId, RaftMessage)>,
    /// The highest index whose replication the console has shown.
    pub(super) shown_index: LogIndex,
}

impl Node {
    /// Starts a node from its durable state.
    ///
    /// # Errors
    /// The configuration contradicts itself, or the recovered state does.
    pub fn new(config: NodeConfig, recovered: Recovered) -> Result<Node, NodeError> {
        if !config.nodes.contains(&config.node) || !config.nodes.contains(&config.first_leader) {
            return Err(NodeError::NotInGroup(config.node));
        }
        let Recovered { mut hard_state, last_index, applied, .. } = recovered;
        let entries = recovered.entries;
        // The commit index is written lazily; what is applied was committed.
        hard_state.commit = hard_state.commit.max(applied.index);
        let mut clock = HybridClock::default();
        clock.observe(applied.timestamp);
        for timestamp in entries.iter().filter_map(|e| Command::peek_timestamp(&e.data)) {
            clock.observe(timestamp);
        }
        let setup = ConsensusConfig {
            node: config.node,
            nodes: config.nodes.clone(),
            first_leader: config.first_leader,
            election_ticks: config.election_ticks,
            limits: config.limits,
        };
        let log = RecoveredLog {
            first_index: recovered.first_index.max(1),
            previous_term: recovered.previous_term,
            term_runs: recovered.term_runs,
            last_index,
            entries,
        };
        let mut consensus = Consensus::new(setup, hard_state, log, applied.index)?;
        let mut eligibility = Eligibility::new(ticks(config.stall_timeout), applied.index);
        if recovered.data_lost {
            consensus.set_data_lost();
        }
        if recovered.store_lost {
            eligibility.store_lost(true);
            consensus.set_may_lead(false);
            consensus.set_store_lost(true);
        }
        let writes = Writes::new(config.first_question, config.limits.short_write_keys_max);
        let reads = Reads::new(config.first_question);
        let leadership = (consensus.role(), consensus.leader(), consensus.term());
        let mut node = Node {
            consensus,
            effects: Effects::default(),
            clock,
            log_time: LogTime::new(recovered.summary.clock_us),
            server_clocks: ServerClocks::default(),
            writes,
            propose_more: false,
            long_writes: LongWrites::default(),
            flushed_commit: 0,
            known_sequences: KnownSequences::new(recovered.summary.rules.map(|rules| rules.limits)),
            commit_notifications: CommitNotifications::default(),
            reads,
            links: BTreeSet::new(),
            unheard: BTreeSet::new(),
            ticks: 0,
            heard: BTreeMap::new(),
            campaign_at: None,
            in_sync: None,
            bootstrap_until_us: None,
            disks: Disks::default(),
            eligibility,
            applied,
            hashes: StateHashes::new(config.nodes.len()),
            compared_at: BTreeSet::new(),
            compared_anew_us: 0,
            contradiction: None,
            contradiction_reported: false,
            contradiction_asked_us: None,
            next_question: config.first_question,
            store_lost: recovered.store_lost,
            refuted: false,
            rules: recovered.summary.rules,
            rules_proposed: false,
            level: recovered.summary.level.max(FeatureLevel::FIRST.level),
            level_proposed: 0,
            server_levels: ServerLevels::default(),
            garbage_collector: GarbageCollector::new(config.garbage_collection, recovered.summary),
            leadership,
            stopping: Stopping::No,
            no_leader_since_us: None,
            no_leader_reported: None,
            delayed: VecDeque::new(),
            shown_index: last_index,
            config,
        };
        node.set_collection_rules();
        Ok(node)
    }

    /// Handles one input. Cheap: what follows from it is worked out by [`Node::flush`].
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {
        self.log_time.advance(now.monotonic_us);
        match input {
            Input::Tick => self.tick(now, out),
            Input::LateTick => {
                if self.consensus.role() == Role::Leader {
                    self.consensus.tick();
                }
            }
            Input::LinkUp { server, last_index, term, first_leader } => {
                self.links.insert(server);
                self.heard.insert(server, self.ticks);
                self.send_disk_state_to(server, out);
                self.consensus.link_up(server, last_index, term, first_leader);
                self.campaign_if_first();
                self.campaign_soon();
            }
            Input::LinkDown { server } => {
                self.links.remove(&server);
                self.take_back_forwarded(server, now);
                self.server_clocks.lost(server);
                self.forget_disk_state_of(server);
                self.server_levels.lost(server);
                self.consensus.link_down(server);
                self.contradiction.take_if(|contradiction| contradiction.server == server);
            }
            Input::InboundDown { server } => {
                self.unheard.insert(server);
                self.take_back_forwarded(server, now);
            }
            Input::Message { from, message } => {
                self.heard.insert(from, self.ticks);
                self.unheard.remove(&from);
                if let Some(level) = message.level
                    && level.level > self.config.release.level.level
                {
                    // Not stored, or this release would not start again.
                    let reason = level.unknown_to(self.config.release.level);
                    out.push(Output::Disconnect { server: from, reason });
                } else {
                    self.server_message(now, from, message.into_inner(), out);
                }
            }
            Input::Write { token, client, write } => self.write(now, token, client, write, out),
            Input::Read { token } => self.read(now, token, out),
            Input::DiskSpace(space) => self.disk_space(space, out),
            Input::Persisted { number } => {
                self.eligibility.persisted(number);
                self.consensus.persisted(number, &mut self.effects);
            }
            Input::Applied { outcomes, point, summary } => {
                self.log_time.observe(summary.clock_us);
                let (level, rules) = (summary.level, summary.rules);
                self.garbage_collector.applied(point.index, summary, now.monotonic_us);
                // After the garbage collection among the applied entries, which was not by rules
                // that came later.
                self.take_rules(level, rules, out);
                self.applied(now, outcomes, point, out);
            }
            Input::Fetched { fetch, entries } => self.consensus.fetched(fetch, entries),
            Input::SnapshotSent { to, reached } => self.consensus.snapshot_sent(to, reached),
            Input::SnapshotReceived { from, snapshot } => {
                if !self.consensus.restore(from, snapshot) {
                    out.push(Output::DiscardSnapshot);
                }
            }
            Input::Compacted { first_index } => self.consensus.compacted(first_index),
            Input::ApplierWorks => self.eligibility.applier_works(),
            Input::Eligibility { reason, holds } => {
                self.eligibility.set(reason, holds);
                self.judge_eligibility(out);
            }
            Input::Stop => {
                if self.stopping == Stopping::No {
                    self.stopping = Stopping::Draining;
                }
            }
            Input::HandOver => {
                if matches!(self.stopping, Stopping::No | Stopping::Draining) {
                    self.stopping = Stopping::Leaving;
                }
            }
        }
    }

    fn take_rules(&mut self, level: u32, rules: Option<GroupRules>, out: &mut Vec<Output>) {
        if level > self.level {
            self.level = level;
            out.push(Output::Notice(Notice::LevelRaised { level }));
        }
        let Some(GroupRules { history, .. }) = rules else { return };
        let limits_before = self.group_limits();
        let before = std::mem::replace(&mut self.rules, rules);
        if before.is_none_or(|before| before.history != history) {
            out.push(Output::Notice(Notice::History { history }));
        }
        if self.group_limits() != limits_before {
            self.known_sequences = KnownSequences::new(self.group_limits());
        }
        self.set_collection_rules();
    }

    fn set_collection_rules(&mut self) {
        if let Some(GroupRules { limits, history }) = self.rules {
            self.garbage_collector.set_rules(limits.removal_grace_us, history);
        }
    }

    /// The limits of the group's state machines, once they are known.
    pub(super) fn group_limits(&self) -> Option<StateLimits> {
        self.rules.map(|rules| rules.limits)
    }

    /// The term of the entry at an index; `None` beyond the log's end and where it is compacted.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.consensus.term_at(index)
    }

    /// At the leader: the last index that `server` is known to have stored durably; 0 for none.
    pub fn matched(&self, server: NodeId) -> LogIndex {
        self.consensus.matched(server)
    }

    /// The monotonic time, in microseconds, at which [`Node::flush`] is to be called even if there
    /// is no input.
    pub fn flush_due_us(&self) -> Option<u64> {
        match self.consensus.role() {
            Role::Leader if self.propose_more => Some(0),
            Role::Leader => {
                let due_us =
                    self.commit_notifications.next_us(&self.links, self.consensus.commit());
                due_us.into_iter().chain(self.long_writes.due_us()).min()
            }
            Role::Follower | Role::Candidate => None,
        }
    }

    /// The writes that are forwarded to the leader and not answered: the number of long ones, the
    /// number of others, and the bytes of keys and values of the others.
    #[cfg(any(test, feature = "internals"))]
    pub fn forwarded(&self) -> (usize, usize, usize) {
        self.writes.forwarded()
    }

    /// The reason why this node's state must not be read; `None` if it may be.
    pub fn distrust(&self) -> Option<Distrust> {
        if self.refuted {
            Some(Distrust::Refuted)
        } else if self.store_lost {
            Some(Distrust::StoreLost)
        } else if self.hashes.is_disputed()
            || self.contradiction.as_ref().is_some_and(Contradiction::is_confirmed)
        {
            Some(Distrust::Disputed)
        } else {
            None
        }
    }

    /// Whether a snapshot that `from` offers is of use.
    pub fn wants_snapshot(&self, from: NodeId, snapshot: SnapshotId) -> bool {
        // The offer may come before the first message of a new leader, which is sent on another
        // connection. Whether this node follows its sender is checked again when the snapshot is to
        // be installed.
        let follows = match snapshot.leader_term.cmp(&self.consensus.term()) {
            Ordering::Less => false,
            Ordering::Equal => self.consensus.leader().is_none_or(|leader| leader == from),
            Ordering::Greater => true,
        };
        follows && self.consensus.needs_snapshot(snapshot.index)
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
        let in_sync = self.in_sync.iter().flat_map(InSync::members).collect();
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
            ineligible: self.eligibility.reasons().iter().copied().collect(),
            distrust: self.distrust(),
        }
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Output>) {
        let now_us = now.monotonic_us;
        self.ticks += 1;
        if let Some(in_sync) = &mut self.in_sync {
            in_sync.tick(self.consensus.commit());
        }
        self.eligibility.tick();
        self.judge_eligibility(out);
        self.consensus.tick();
        self.garbage_collector.tick();
        self.compare_clocks(now, out);
        self.repeat_disk_state(out);
        self.campaign_if_first();
        if self.campaign_at.is_some_and(|at| at <= self.ticks)
            && self.consensus.campaign_again(CAMPAIGN_TURN_TICKS as usize)
        {
            self.campaign_at = None;
        }
        self.report_no_leader(now, out);
        self.release_delayed(now, out);
        self.settle_disputes(now, out);

        let mut expired = self.writes.take_expired(now_us);
        expired.extend(self.writes.take_unanswered(now_us));
        for key in expired {
            let pending = self.writes.remove(key);
            // A leader is known, so the write was not proposed because others came first.
            let led = self.consensus.leader().is_some();
            let reply = if led && pending.effect == Effect::NotDone {
                busy("more is being written than the group can take")
            } else {
                self.not_confirmed(pending.effect)
            };
            self.finish(pending, reply, out);
        }
        self.reads.repeat_request(now_us.saturating_sub(micros(limits::READ_INDEX_RETRY)));
        for (read, confirmed) in self.reads.take_expired(now_us) {
            let reply = match confirmed {
                true => busy("what was written before is still being applied at this server"),
                false => self.no_majority(),
            };
            out.push(Output::Reply { token: read.token, reply });
        }
    }

    /// Reports once why no leader can be elected, when that has lasted for longer than elections
    /// take.
    fn report_no_leader(&mut self, now: Now, out: &mut Vec<Output>) {
        let reason = self.consensus.no_leader();
        match (reason, self.no_leader_since_us) {
            (None, _) => (self.no_leader_since_us, self.no_leader_reported) = (None, None),
            (Some(_), None) => self.no_leader_since_us = Some(now.monotonic_us),
            (Some(reason), Some(since_us)) => {
                let is_late = now.monotonic_us - since_us >= micros(limits::BOOTSTRAP_TIMEOUT);
                if is_late && self.no_leader_reported != Some(reason) {
                    self.no_leader_reported = Some(reason);
                    out.push(Output::Notice(Notice::NoLeader { reason }));
                }
            }
        }
    }

    /// Updates whether this node may lead; if it leads and may not, it transfers the leadership or
    /// steps down.
    fn judge_eligibility(&mut self, out: &mut Vec<Output>) {
        for (reason, holds) in self.eligibility.update() {
            let notice = match holds {
                true => Notice::MayNotLead { reason },
                false => Notice::MayLeadAgain { reason },
            };
            out.push(Output::Notice(notice));
        }
        let full = self.disks.own.is_full();
        let stops = matches!(self.stopping, Stopping::HandingOver { .. });
        // A server that did not accept a transfer because of this full disk may be able to later.
        if self.eligibility.reasons().is_empty()
            && !stops
            && (!full || self.ticks.is_multiple_of(limits::DISK_HANDOVER_AGAIN_TICKS))
        {
            self.eligibility.tried.clear();
        }
        // A group of one has no other server: this one leads as well as it can.
        let alone = self.config.nodes.len() == 1;
        self.consensus.set_may_lead(alone || self.eligibility.reasons().is_empty());
        let action = match self.eligibility.action() {
            LeadershipAction::Keep if full => LeadershipAction::TransferIfPossible,
            action => action,
        };
        if alone || self.consensus.role() != Role::Leader || action == LeadershipAction::Keep {
            return;
        }
        if self.consensus.is_handing_over() {
            return;
        }
        let only_with_room = self.eligibility.action() == LeadershipAction::Keep;
        if !self.transfer_to_next(only_with_room) && action == LeadershipAction::TransferOrStepDown
        {
            self.consensus.step_down();
        }
    }

    /// Begins a leadership transfer to a follower that was not tried yet: one that may not lead
    /// does not say so. Returns false if there is none.
    pub(super) fn transfer_to_next(&mut self, only_with_room: bool) -> bool {
        let Some(successor) = self.successor(only_with_room) else { return false };
        self.eligibility.tried.insert(successor);
        self.consensus.transfer_leadership(successor);
        true
    }

    /// The follower to transfer the leadership to, of those not tried yet. It has stored everything
    /// that is committed; and more than this node if this node's log is stalled, because its own
    /// may be stalled as well. A follower whose disk is full is the last choice, and no choice for
    /// a leader that leaves because its own disk is full.
    pub(super) fn successor(&self, only_with_room: bool) -> Option<NodeId> {
        let mut needed = self.consensus.commit();
        if self.eligibility.reasons().contains(&Ineligible::LogStalled) {
            let own = self.consensus.matched(self.config.node);
            needed = needed.max(self.consensus.last_index().min(own + 1));
        }
        let untried = self.links.iter().filter(|server| !self.eligibility.tried.contains(server));
        let able = untried.filter(|server| self.consensus.matched(**server) >= needed);
        able.filter(|server| !only_with_room || self.has_room(**server))
            .max_by_key(|server| (self.has_room(**server), self.consensus.matched(**server)))
            .copied()
    }

    /// Campaigns before the election time-out if a link has come up that completes a majority: no
    /// leader can be there that is merely late. Servers take turns by their numbers, so that the
    /// first has won before the next campaigns.
    fn campaign_soon(&mut self) {
        if self.reaches_majority() {
            let before = self.links.range(..self.config.node).count() as u64;
            self.campaign_at = Some(self.ticks + before * CAMPAIGN_TURN_TICKS);
        }
    }

    /// Whether the link to a server is up, and a message from it came within an election time-out.
    pub(super) fn is_heard(&self, server: NodeId) -> bool {
        let silent_ticks = self.ticks - self.heard.get(&server).copied().unwrap_or_default();
        self.links.contains(&server) && silent_ticks <= limits::ELECTION_TICKS as u64
    }

    /// The number of servers that this one reaches, itself included. Followers do not hear from
    /// each other regularly, so at a follower each server with a link counts.
    fn reachable(&self) -> usize {
        let leads = self.consensus.role() == Role::Leader;
        1 + self.links.iter().filter(|server| !leads || self.is_heard(**server)).count()
    }

    pub(super) fn reaches_majority(&self) -> bool {
        self.reachable() > self.config.nodes.len() / 2
    }

    fn compare_clocks(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.server_clocks.is_due(now.monotonic_us) {
            let level = self.config.release.level.level;
            let message = PeerMessage::About { wall_us: now.wall_us, level };
            let tell = |to: &NodeId| Output::Send { to: *to, message: message.clone() };
            out.extend(self.links.iter().map(tell));
        }
        if self.consensus.role() == Role::Leader
            && let Some(ahead_us) = self.server_clocks.take_warning()
        {
            out.push(Output::Notice(Notice::ClockApart { ahead_us }));
        }
    }

    fn campaign_if_first(&mut self) {
        if self.links.len() + 1 > self.config.nodes.len() / 2 {
            self.consensus.campaign_if_founder();
        }
    }

    fn write(
        &mut self,
        now: Now,
        token: RequestToken,
        client: SocketAddr,
        write: EncodedWrite,
        out: &mut Vec<Output>,
    ) {
        let reply = |reply| Output::Reply { token, reply };
        if self.stopping != Stopping::No {
            out.push(reply(shutting_down()));
        } else if let Err(refusal) = self.take_write(now, Origin::Client(token), client, write) {
            out.push(reply(refusal));
        }
    }

    /// Checks a write and adds it to those under way, or to the origins of its first copy.
    pub(super) fn take_write(
        &mut self,
        now: Now,
        origin: Origin,
        client: SocketAddr,
        write: EncodedWrite,
    ) -> Result<(), Reply> {
        check_write(&write, self.config.value_bytes_max)?;
        if self.writes.len() >= self.config.limits.pending_writes_max {
            return Err(busy("too many writes are under way at this server"));
        }
        // A copy of a write under way takes no memory.
        if self.writes.join(&write, origin) {
            return Ok(());
        }
        let limits = &self.config.limits;
        if self.writes.bytes() >= limits.pending_write_bytes_max {
            return Err(busy("too many bytes are being written at this server"));
        }
        // Long writes wait for their turn, and leave half of the memory to others meanwhile.
        let is_long = self.writes.is_long(write.shape.keys);
        if is_long && self.writes.long_bytes() >= limits.pending_write_bytes_max / 2 {
            return Err(busy("too many long writes wait for their turn at this server"));
        }
        if !is_long {
            self.long_writes.something_else_is_asked();
        }
        self.writes.add(Pending {
            origins: vec![origin],
            client,
            write,
            deadline_us: now.monotonic_us + micros(limits::COMMIT_TIMEOUT),
            give_up_us: now.monotonic_us
                + micros(self.config.in_sync_timeout)
                + 2 * micros(limits::COMMIT_TIMEOUT),
            effect: Effect::NotDone,
            resent: false,
            not_before_us: 0,
            shown_as_leader: false,
            shown_as_forwarder: false,
        });
        Ok(())
    }

    fn read(&mut self, now: Now, token: RequestToken, out: &mut Vec<Output>) {
        let refusal = if self.stopping != Stopping::No {
            shutting_down()
        } else if let Some(distrust) = self.distrust() {
            not_to_be_read(distrust)
        } else if self.reads.len() >= self.config.limits.pending_reads_max {
            busy("too many linearizable reads are under way at this server")
        } else {
            self.long_writes.something_else_is_asked();
            let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
            return self.reads.add(Read { token, deadline_us });
        };
        out.push(Output::Reply { token, reply: refusal });
    }

    fn applied(
        &mut self,
        now: Now,
        outcomes: Vec<AppliedWrite>,
        point: AppliedPoint,
        out: &mut Vec<Output>,
    ) {
        self.applied = point;
        self.eligibility.applied(point.index);
        self.long_writes.applied(point.index, now.monotonic_us);
        self.consensus.applied(point.index);
        if self.store_lost && !self.consensus.is_installing() {
            self.store_lost = false;
            self.consensus.set_store_lost(false);
            self.eligibility.store_lost(false);
            out.push(Output::Notice(Notice::StoreRebuilt));
        }
        self.clock.observe(point.timestamp);
        // The outcome of a write in a refuted state is not told to its client, because the state's
        // sessions may be wrong about it. Another server leads at once and answers.
        let outcomes = if self.refuted { Vec::new() } else { outcomes };
        for write in outcomes {
            let Some(key) = self.writes.take_proposed(write.term, write.index) else { continue };
            let client = self.writes.get_mut(key).write.request.client;
            self.known_sequences.applied(client, write.index, write.newest_sequence);
            match write.outcome {
                Some(outcome) if outcome.refused => {
                    let pending = self.writes.remove(key);
                    // The outcome is the same for all copies of the write.
                    let refusal = busy("too many large ranges are being removed");
                    self.answer(&pending, &refusal, out);
                }
                Some(WriteOutcome { timestamp, .. }) => {
                    let stored = Stored { timestamp, previous: write.previous };
                    self.writes.wait_for_stored(key, write.index, stored);
                }
                None if write.is_of_unknown_session() => {
                    let pending = self.writes.remove(key);
                    let reply = Node::unknown_session(pending.resent, point.timestamp);
                    self.finish(pending, reply, out);
                }
                None => {
                    let mut pending = self.writes.remove(key);
                    pending.has_at_least(Effect::MayBeDone);
                    let stale = error(
                        ErrorCode::StaleRequest,
                        "this write was answered before and its outcome is forgotten: \
                         it may have taken effect; read the key to see what it holds",
                    );
                    self.finish(pending, stale, out);
                }
            }
        }
        let is_compared = self.compared_at.contains(&point.index);
        self.compared_at = self.compared_at.split_off(&(point.index + 1));
        if is_compared {
            self.share_state_hash(now, point, out);
        }
    }

    /// The link to or from `server` broke: the writes forwarded to it, or its answers, may be lost,
    /// so they are forwarded again.
    fn take_back_forwarded(&mut self, server: NodeId, now: Now) {
        for key in self.writes.take_forwarded(|to| to == server) {
            self.wait_again(key, now);
        }
    }

    /// Puts a write back to wait for the next leader, which decides it.
    pub(super) fn wait_again(&mut self, key: usize, now: Now) {
        let pending = self.writes.get_mut(key);
        let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
        pending.deadline_us = deadline_us.min(pending.give_up_us);
        pending.resent = true;
        self.writes.wait(key);
    }

    /// The answer to a write that was refused because its session is not known. Only if it was
    /// never sent on before (`resent`) is it known that it was not applied. Its client then begins
    /// a new session at `applied`, the timestamp of the last write applied, which is not before the
    /// last write of any session that was dropped.
    pub(super) fn unknown_session(resent: bool, applied: Timestamp) -> Reply {
        let message = "what this client wrote before is forgotten, and so is whether this write \
                       was applied: read the key to see what it holds";
        let (code, effect, begin_anew_at) = match resent {
            true => (ErrorCode::StaleRequest, Effect::MayBeDone, Timestamp::ZERO),
            false => (ErrorCode::UnknownSession, Effect::NotDone, applied),
        };
        let message = message.to_owned();
        Reply::Error(ErrorReply { code, message, retry_after_ms: 0, effect, begin_anew_at })
    }

    /// Sends the reply to every origin of a write.
    pub(super) fn answer(&self, pending: &Pending, reply: &Reply, out: &mut Vec<Output>) {
        for origin in &pending.origins {
            let reply = reply.clone();
            match *origin {
                Origin::Client(token) => out.push(Output::Reply { token, reply }),
                Origin::Server { node, id } => self.answer_forward(node, id, Some(reply), out),
            }
        }
    }

    /// Answers a write, raising the effect in an error to what is known of the write: an earlier
    /// leader may have ordered it.
    pub(super) fn finish(&self, pending: Pending, mut reply: Reply, out: &mut Vec<Output>) {
        if let Reply::Error(error) = &mut reply {
            error.effect = error.effect.max(pending.effect);
        }
        self.answer(&pending, &reply, out);
    }

    /// The number of servers that answer, the size of the group, and the size of a majority.
    fn reach(&self) -> (usize, usize, usize) {
        (self.reachable(), self.config.nodes.len(), self.config.nodes.len() / 2 + 1)
    }

    fn name_of(&self, node: NodeId) -> String {
        let place = self.config.nodes.iter().position(|of| *of == node);
        let name = place.and_then(|place| self.config.names.get(place)).cloned();
        name.unwrap_or_else(|| by_place(node))
    }

    /// The reply to a read that was not confirmed in time.
    fn no_majority(&self) -> Reply {
        let (answering, all, needed) = self.reach();
        let answers = answers(answering, all);
        let message = if let Some(reason) = self.consensus.no_leader() {
            format!("no majority: {}", reason.sentence(|node| self.name_of(node)))
        } else if answering < needed {
            format!(
                "no majority: {answers} and {needed} are needed: \
                 start the others, then try again"
            )
        } else {
            format!("no majority agreed in time although {answers}: try again")
        };
        error(ErrorCode::NoMajority, &message)
    }

    /// The reply to a write that was not confirmed in time; it says what is known of its effect.
    fn not_confirmed(&self, effect: Effect) -> Reply {
        let (answering, all, needed) = self.reach();
        let answers = answers(answering, all);
        if let (Effect::NotDone, Some(reason)) = (effect, self.consensus.no_leader()) {
            let reason = reason.sentence(|node| self.name_of(node));
            let message = format!("nothing was done: {answers}, but {reason}");
            return Reply::Error(ErrorReply::not_done(ErrorCode::NoMajority, message));
        }
        let (code, message) = match effect {
            Effect::NotDone if answering < needed => (
                ErrorCode::NoMajority,
                format!(
                    "no majority: {answers} and {needed} are needed: nothing was done; \
                     start the others, then try again"
                ),
            ),
            Effect::NotDone => (
                ErrorCode::NoMajority,
                format!(
                    "no leader took the write in time although {answers}: \
                     nothing was done; try again"
                ),
            ),
            Effect::MayBeDone => (
                ErrorCode::Unconfirmed,
                format!(
                    "the write was not confirmed in time, {answers}: it may have taken \
                     effect, or may yet; read the key before you write it again"
                ),
            ),
            Effect::Done => (
                ErrorCode::Unconfirmed,
                format!(
                    "the write is done, a majority has stored it, but not every server in sync is \
                     known to have ({answers}): do not repeat it"
                ),
            ),
        };
        Reply::Error(ErrorReply { effect, ..ErrorReply::not_done(code, message) })
    }
}

fn check_write(write: &EncodedWrite, value_bytes_max: usize) -> Result<(), Reply> {
    let invalid = |message: &str| Err(error(ErrorCode::Invalid, message));
    let OpShape { kind, keys, bytes, key_bytes_min, key_bytes_max, value_bytes_max: longest } =
        write.shape;
    if keys > 0 && key_bytes_min == 0 {
        return invalid("the key is empty: give it at least one byte");
    }
    if key_bytes_max > limits::KEY_BYTES_MAX {
        return invalid(&format!(
            "the key has {key_bytes_max} bytes and at most {} are allowed: use a shorter one",
            limits::KEY_BYTES_MAX
        ));
    }
    if longest > value_bytes_max {
        return invalid(&format!(
            "the value has {longest} bytes and at most {value_bytes_max} are allowed: \
             split it, or start the servers with a greater --max-value"
        ));
    }
    if keys > limits::TRANSACTION_KEYS_MAX {
        return invalid(&format!(
            "the write names {keys} keys and at most {} can be written at once: make it several \
             writes",
            limits::TRANSACTION_KEYS_MAX
        ));
    }
    if bytes > limits::TRANSACTION_BYTES_MAX {
        return invalid(&format!(
            "the write has {bytes} bytes and at most {} can be written at once: make it several \
             writes",
            limits::TRANSACTION_BYTES_MAX
        ));
    }
    if let OpKind::SetHistory(history) = kind
        && !history.can_be_kept()
    {
        return invalid(&format!(
            "a history of {history} cannot be kept: keep all, a time that is not zero, or 1 to {} \
             versions of a key",
            limits::HISTORY_VERSIONS_MAX
        ));
    }
    if write.request.sequence == 0 || write.request.answered_below > write.request.sequence {
        return invalid("the request's sequence numbers break the protocol: count from 1");
    }
    Ok(())
}

/// A clause that says how many servers answer.
fn answers(answering: usize, all: usize) -> String {
    let verb = if all == 1 { "answers" } else { "answer" };
    format!("{answering} of {} {verb}", counted(all as u64, "server", "servers"))
}

pub(super) fn error(code: ErrorCode, message: &str) -> Reply {
    Reply::Error(ErrorReply::not_done(code, message.to_owned()))
}

pub(super) fn busy(message: &str) -> Reply {
    Reply::Error(ErrorReply {
        retry_after_ms: limits::BUSY_RETRY_AFTER_MS,
        ..ErrorReply::not_done(ErrorCode::Busy, format!("{message}: try again in a moment"))
    })
}

pub(super) fn shutting_down() -> Reply {
    error(ErrorCode::ShuttingDown, "this server is stopping: ask another one")
}

/// The reply that refuses a read because this server does not trust its state.
pub fn not_to_be_read(distrust: Distrust) -> Reply {
    error(ErrorCode::Internal, &format!("this server cannot be read ({distrust}): ask another one"))
}

/// A duration in microseconds, in which the core counts time.
pub(super) fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}

/// A duration in ticks of the election clock.
fn ticks(duration: Duration) -> u64 {
    micros(duration) / micros(limits::TICK)
}
