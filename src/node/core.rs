//! The core itself: its state, and what each input does to it.
//!
//! Inputs only change state; whatever follows from them is worked out in `flush`
//! (in `progress`), once for a whole bunch of inputs.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::certainty::Certainty;
use super::clock::{HybridClock, LogTime};
use super::clocks::PeerClocks;
use super::commit_news::CommitNews;
use super::disk_space::Disks;
use super::disputes::{Contradiction, StateHashes};
use super::eligibility::{Departure, Eligibility, Ineligible};
use super::in_sync::InSync;
use super::levels::PeerLevels;
use super::long_writes::LongWrites;
use super::reads::{Read, Reads};
use super::upkeep::{Chores, UpkeepConfig};
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

/// How far apart servers take their turns at campaigning when they come back into each other's reach: an election takes
/// two round trips and two syncs.
const CAMPAIGN_TURN_TICKS: u64 = 2;

/// When a write is acknowledged (SPEC A3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Durable on a majority and stored by every server in sync.
    All,
    /// Durable on a majority.
    Majority,
}

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node.
    pub node: NodeId,
    /// Every node of the group, this one included.
    pub nodes: Vec<NodeId>,
    /// What people call each of `nodes`, in the same order: its address. Where a name is missing a sentence tells the
    /// place instead.
    pub names: Vec<String>,
    /// Who leads first, when the group is blank.
    pub first_leader: NodeId,
    /// The acknowledgement rule.
    pub ack: AckPolicy,
    /// How long a REPLICATION_OK may be owed before its server drops out of the in-sync set.
    pub in_sync_timeout: Duration,
    /// Without a report from a log that owes one for this long, or from a state machine for twice as long, this node
    /// may not lead.
    pub stall_timeout: Duration,
    /// Fixes the election time-out (in ticks, ≥ [`limits::ELECTION_TICKS`](crate::limits)) so that
    /// a simulation is deterministic; give each node its own. `None` draws one at random.
    pub election_ticks: Option<usize>,
    /// The most bytes a value may have.
    pub value_bytes_max: usize,
    /// Take in replicated writes this much late (SPEC A7); zero normally.
    pub replication_delay: Duration,
    /// Whether anybody wants [`Output::Console`].
    pub console: bool,
    /// What is done in the background.
    pub upkeep: UpkeepConfig,
    /// Bounds of what is under way and kept in memory.
    pub limits: NodeLimits,
    /// Replicas compare states every so many entries; the same at all. [`limits::STATE_HASH_EVERY`](crate::limits)
    /// except in simulations.
    pub state_hash_every: LogIndex,
    /// What this node's release has compiled in.
    pub release: Release,
    /// How long every server is to have told that it knows a feature level before the group's rises to it;
    /// [`limits::LEVEL_SETTLED`](crate::limits) except in simulations.
    pub level_settled: Duration,
    /// Where the numbers of this run's questions to other servers start. Drawn at random at every
    /// start, so that an answer that an earlier run asked for is never taken for one to this run.
    pub first_question: u64,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its part.
    pub role: Role,
    /// The leader it knows of.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// The last index known committed.
    pub commit: LogIndex,
    /// Where its state machine stands.
    pub applied: AppliedPoint,
    /// The last index in its log, durable or not.
    pub last_index: LogIndex,
    /// At the leader: the servers confirmed to be in sync in its term. Empty elsewhere.
    pub in_sync: Vec<NodeId>,
    /// Servers whose full disks keep the group from taking what adds to the store; empty when it takes that.
    pub full_disks: Vec<NodeId>,
    /// Why this node may not lead; empty when it may.
    pub ineligible: Vec<Ineligible>,
    /// Why it serves no reads, if so.
    pub distrust: Option<Distrust>,
    /// Whom it was told leads first, as long as it has not taken part in the group or stored anything.
    pub first_leader: Option<NodeId>,
    /// Why no leader can be elected although enough servers are up, if that is so.
    pub no_leader: Option<NoLeader>,
    /// The group's feature level, as far as this node has applied the log.
    pub level: u32,
    /// What the group keeps of what newer versions have replaced, when it has settled on anything.
    pub history: Option<History>,
}

/// Why a node does not trust its own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// It has none: it waits for a snapshot.
    StoreLost,
    /// Others hold another one, or contradict the log, and it is not known who is right.
    Disputed,
    /// It is wrong, and is about to be thrown away.
    Refuted,
}

impl std::fmt::Display for Distrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Distrust::StoreLost => {
                "its store is lost or was damaged and is being rebuilt from the others: it serves no reads"
            }
            Distrust::Disputed => {
                "its state or its log contradicts another server's and no majority has decided: it serves no reads"
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
    /// The configuration names no group this node belongs to.
    #[error("node {0} is not one of the group's nodes, or the first leader is not")]
    NotInGroup(NodeId),
    /// Consensus refuses what was recovered.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
}

/// How far a stopping node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    No,
    /// Finishing what is under way.
    Draining,
    /// Finishing nothing.
    Leaving,
    /// Waiting for another server to lead.
    HandingOver {
        until_us: u64,
    },
    Done,
}

/// One server's mind.
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) consensus: Consensus,
    pub(super) effects: Effects,
    pub(super) clock: HybridClock,
    pub(super) log_time: LogTime,
    pub(super) peer_clocks: PeerClocks,
    pub(super) writes: Writes,
    /// Waiting writes were left for the next flush, only so that this one did not take too long.
    pub(super) propose_more: bool,
    pub(super) long_writes: LongWrites,
    /// The commit index as of the last flush.
    pub(super) flushed_commit: LogIndex,
    /// At a leader, for its reign.
    pub(super) certainty: Certainty,
    /// At a leader, for its reign.
    pub(super) commit_news: CommitNews,
    pub(super) reads: Reads,
    /// Peers this node can send to.
    pub(super) links: BTreeSet<NodeId>,
    /// Peers whose link to this node broke and from which nothing has come since: an answer of theirs would be lost.
    pub(super) unheard: BTreeSet<NodeId>,
    /// Ticks since the start.
    pub(super) ticks: u64,
    /// The tick in which something last came from a peer, or its link came up.
    pub(super) heard: BTreeMap<NodeId, u64>,
    /// Without a leader since longer than an election time-out, and with a majority newly in reach: the tick in which
    /// to ask for votes.
    pub(super) campaign_at: Option<u64>,
    /// At a leader.
    pub(super) in_sync: Option<InSync>,
    /// At the leader of a newborn group: no write is ordered before every server has taken part, or
    /// before this time.
    pub(super) birth_until_us: Option<u64>,
    pub(super) eligibility: Eligibility,
    pub(super) disks: Disks,
    pub(super) applied: AppliedPoint,
    pub(super) hashes: StateHashes,
    /// Indices that were handed out for application and at which replicas compare their states.
    pub(super) compared_at: BTreeSet<LogIndex>,
    /// At a leader: when it last appended an entry for which replicas compare their states.
    pub(super) compared_anew_us: u64,
    /// Entries that contradict this node's log, while it is not known who is right.
    pub(super) contradiction: Option<Contradiction>,
    /// It was said, once in this run.
    pub(super) contradiction_said: bool,
    /// When the others were last asked about any.
    pub(super) contradiction_asked_us: Option<u64>,
    /// The number of the next question about states and logs.
    pub(super) next_question: u64,
    /// Nothing is applied before a snapshot has been put in place.
    pub(super) store_lost: bool,
    /// The state or the log is known to be wrong; said once.
    pub(super) refuted: bool,
    pub(super) chores: Chores,
    /// What the group goes by.
    pub(super) rules: Option<GroupRules>,
    /// Rules were proposed in this term, by this node.
    pub(super) rules_proposed: bool,
    /// The group's feature level.
    pub(super) level: u32,
    /// The highest that was proposed in this term, by this node.
    pub(super) level_proposed: u32,
    /// At a leader, for its term.
    pub(super) peer_levels: PeerLevels,
    /// Role, leader and term as of the last flush.
    pub(super) standing: (Role, Option<NodeId>, Term),
    pub(super) stopping: Stopping,
    /// Since when no leader can be elected although enough servers are up …
    no_leader_since_us: Option<u64>,
    /// … and the reason that was said last.
    no_leader_said: Option<NoLeader>,
    /// Replication held back by `--replication-delay`: (due, link, message), in order.
    pub(super) delayed: VecDeque<(u64, NodeId, RaftMessage)>,
    /// The highest index whose replication the console has shown.
    pub(super) shown_index: LogIndex,
}

impl Node {
    /// Starts a node on what its disk holds.
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
        let standing = (consensus.role(), consensus.leader(), consensus.term());
        let mut node = Node {
            consensus,
            effects: Effects::default(),
            clock,
            log_time: LogTime::new(recovered.upkeep.clock_us),
            peer_clocks: PeerClocks::default(),
            writes,
            propose_more: false,
            long_writes: LongWrites::default(),
            flushed_commit: 0,
            certainty: Certainty::new(recovered.upkeep.rules.map(|rules| rules.limits)),
            commit_news: CommitNews::default(),
            reads,
            links: BTreeSet::new(),
            unheard: BTreeSet::new(),
            ticks: 0,
            heard: BTreeMap::new(),
            campaign_at: None,
            in_sync: None,
            birth_until_us: None,
            disks: Disks::default(),
            eligibility,
            applied,
            hashes: StateHashes::new(config.nodes.len()),
            compared_at: BTreeSet::new(),
            compared_anew_us: 0,
            contradiction: None,
            contradiction_said: false,
            contradiction_asked_us: None,
            next_question: config.first_question,
            store_lost: recovered.store_lost,
            refuted: false,
            rules: recovered.upkeep.rules,
            rules_proposed: false,
            level: recovered.upkeep.level.max(FeatureLevel::FIRST.level),
            level_proposed: 0,
            peer_levels: PeerLevels::default(),
            chores: Chores::new(config.upkeep, recovered.upkeep),
            standing,
            stopping: Stopping::No,
            no_leader_since_us: None,
            no_leader_said: None,
            delayed: VecDeque::new(),
            shown_index: last_index,
            config,
        };
        node.set_chores();
        Ok(node)
    }

    /// Takes one input. Cheap: what follows from it is worked out by [`Node::flush`].
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {
        self.log_time.pass(now.monotonic_us);
        match input {
            Input::Tick => self.tick(now, out),
            Input::LateTick => {
                if self.consensus.role() == Role::Leader {
                    self.consensus.tick();
                }
            }
            Input::PeerUp { peer, last_index, term, first_leader } => {
                self.links.insert(peer);
                self.heard.insert(peer, self.ticks);
                self.tell_disk_to(peer, out);
                self.consensus.link_up(peer, last_index, term, first_leader);
                self.campaign_if_first();
                self.campaign_soon();
            }
            Input::PeerDown { peer } => {
                self.links.remove(&peer);
                self.take_back_forwarded(peer, now);
                self.peer_clocks.lost(peer);
                self.forget_disk_of(peer);
                self.peer_levels.lost(peer);
                self.consensus.link_down(peer);
                self.contradiction.take_if(|contradiction| contradiction.peer == peer);
            }
            Input::InboundDown { peer } => {
                self.unheard.insert(peer);
                self.take_back_forwarded(peer, now);
            }
            Input::Peer { from, message } => {
                self.heard.insert(from, self.ticks);
                self.unheard.remove(&from);
                if let Some(level) = message.level
                    && level.level > self.config.release.level.level
                {
                    // Not stored, or this release would not start again.
                    let reason = level.unknown_to(self.config.release.level);
                    out.push(Output::Disconnect { peer: from, reason });
                } else {
                    self.peer_message(now, from, message.into_inner(), out);
                }
            }
            Input::Write { token, client, write } => self.write(now, token, client, write, out),
            Input::Read { token } => self.read(now, token, out),
            Input::DiskSpace(space) => self.disk_space(space, out),
            Input::Persisted { number } => {
                self.eligibility.persisted(number);
                self.consensus.persisted(number, &mut self.effects);
            }
            Input::Applied { outcomes, point, upkeep } => {
                self.log_time.observe(upkeep.clock_us);
                let (level, rules) = (upkeep.level, upkeep.rules);
                self.chores.applied(point.index, upkeep, now.monotonic_us);
                // After the sweeps among what was applied: they were not by rules that came later.
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
            self.certainty = Certainty::new(self.group_limits());
        }
        self.set_chores();
    }

    fn set_chores(&mut self) {
        if let Some(GroupRules { limits, history }) = self.rules {
            self.chores.set_rules(limits.removal_grace_us, history);
        }
    }

    /// The limits that the group's state machines go by, when they are known.
    pub(super) fn group_limits(&self) -> Option<StateLimits> {
        self.rules.map(|rules| rules.limits)
    }

    /// The term of an entry, of the last one compacted away, or of the index a snapshot reaches to.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.consensus.term_at(index)
    }

    /// At the leader: the last index that `peer` is known to have stored durably.
    pub fn matched(&self, peer: NodeId) -> LogIndex {
        self.consensus.matched(peer)
    }

    /// When [`Node::flush`] is to be called next even if there is no input: monotonic time, in
    /// microseconds.
    pub fn flush_due_us(&self) -> Option<u64> {
        match self.consensus.role() {
            Role::Leader if self.propose_more => Some(0),
            Role::Leader => {
                let news_us = self.commit_news.next_us(&self.links, self.consensus.commit());
                news_us.into_iter().chain(self.long_writes.due_us()).min()
            }
            Role::Follower | Role::Candidate => None,
        }
    }

    /// How many writes are in other servers' hands: long ones and others, and the bytes of keys and values of the others.
    #[cfg(any(test, feature = "internals"))]
    pub fn forwarded(&self) -> (usize, usize, usize) {
        self.writes.forwarded()
    }

    /// Why this node's state is not to be read, if so.
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
        // The offer may come before the first word of a new leader, which travels on another connection. Whether
        // this node follows its sender is asked again when the snapshot is to be put in place.
        let follows = match snapshot.leader_term.cmp(&self.consensus.term()) {
            Ordering::Less => false,
            Ordering::Equal => self.consensus.leader().is_none_or(|leader| leader == from),
            Ordering::Greater => true,
        };
        follows && self.consensus.needs_snapshot(snapshot.index)
    }

    /// Where the state machine stands.
    pub fn applied_point(&self) -> AppliedPoint {
        self.applied
    }

    /// The last timestamp in this node's log or later: what is newer has not come here.
    pub fn newest_timestamp(&self) -> Timestamp {
        self.clock.last()
    }

    /// The value that the version `timestamp` of `key` has, where it is committed and not applied yet; and the entry
    /// that holds it.
    pub fn unapplied_put(&self, timestamp: Timestamp, key: &[u8]) -> Option<(LogIndex, Bytes)> {
        let (index, data) = self.consensus.find_unapplied(timestamp, Command::peek_timestamp)?;
        let (_, put, value) = Command::put_of(data)?;
        (put == key).then_some((index, value))
    }

    /// Whether an answer waits for committed entries to be applied.
    pub fn awaits_application(&self) -> bool {
        self.writes.awaits_application() || self.reads.awaits_application()
    }

    /// At a leader, how far the other servers' clocks are ahead of its own, when that is far.
    pub fn clock_apart_us(&self) -> Option<i64> {
        match self.consensus.role() {
            Role::Leader => self.peer_clocks.apart_us(),
            Role::Follower | Role::Candidate => None,
        }
    }

    /// Describes the node.
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
        self.chores.tick();
        self.compare_clocks(now, out);
        self.repeat_disk(out);
        self.campaign_if_first();
        if self.campaign_at.is_some_and(|at| at <= self.ticks)
            && self.consensus.campaign_again(CAMPAIGN_TURN_TICKS as usize)
        {
            self.campaign_at = None;
        }
        self.say_why_nobody_leads(now, out);
        self.release_delayed(now, out);
        self.settle_disputes(now, out);

        let mut expired = self.writes.take_expired(now_us);
        expired.extend(self.writes.take_unanswered(now_us));
        for key in expired {
            let pending = self.writes.remove(key);
            // Nothing was done of a write whose turn did not come while others were being carried out.
            let led = self.consensus.leader().is_some();
            let reply = if led && pending.effect == Effect::NotDone {
                busy("more is being written than the group can take")
            } else {
                self.not_confirmed(pending.effect)
            };
            self.finish(pending, reply, out);
        }
        self.reads.ask_again(now_us.saturating_sub(micros(limits::READ_INDEX_RETRY)));
        for (read, confirmed) in self.reads.take_expired(now_us) {
            let reply = match confirmed {
                true => busy("what was written before is still being applied at this server"),
                false => self.no_majority(),
            };
            out.push(Output::Reply { token: read.token, reply });
        }
    }

    /// Once, when it has been so for longer than elections take.
    fn say_why_nobody_leads(&mut self, now: Now, out: &mut Vec<Output>) {
        let reason = self.consensus.no_leader();
        match (reason, self.no_leader_since_us) {
            (None, _) => (self.no_leader_since_us, self.no_leader_said) = (None, None),
            (Some(_), None) => self.no_leader_since_us = Some(now.monotonic_us),
            (Some(reason), Some(since_us)) => {
                let is_late = now.monotonic_us - since_us >= micros(limits::BIRTH_TIMEOUT);
                if is_late && self.no_leader_said != Some(reason) {
                    self.no_leader_said = Some(reason);
                    out.push(Output::Notice(Notice::NoLeader { reason }));
                }
            }
        }
    }

    /// Looks whether this node may lead; if it leads and may not, it hands over or steps down.
    fn judge_eligibility(&mut self, out: &mut Vec<Output>) {
        for (reason, holds) in self.eligibility.look() {
            let notice = match holds {
                true => Notice::MayNotLead { reason },
                false => Notice::MayLeadAgain { reason },
            };
            out.push(Output::Notice(notice));
        }
        let full = self.disks.own.is_full();
        let stops = matches!(self.stopping, Stopping::HandingOver { .. });
        // Who was asked to take over because this disk is full, and has not, may be able to later.
        if self.eligibility.reasons().is_empty()
            && !stops
            && (!full || self.ticks.is_multiple_of(limits::DISK_HANDOVER_AGAIN_TICKS))
        {
            self.eligibility.tried.clear();
        }
        // A group of one has nobody else: its server leads as well as it can.
        let alone = self.config.nodes.len() == 1;
        self.consensus.set_may_lead(alone || self.eligibility.reasons().is_empty());
        let departure = match self.eligibility.departure() {
            Departure::Stay if full => Departure::IfSomebodyCan,
            departure => departure,
        };
        if alone || self.consensus.role() != Role::Leader || departure == Departure::Stay {
            return;
        }
        if self.consensus.is_handing_over() {
            return;
        }
        let only_with_room = self.eligibility.departure() == Departure::Stay;
        if !self.hand_over_to_the_next(only_with_room) && departure == Departure::Leave {
            self.consensus.step_down();
        }
    }

    /// Begins to hand over to a follower that was not tried yet: one that may not lead does not say so. False when
    /// there is none.
    pub(super) fn hand_over_to_the_next(&mut self, only_with_room: bool) -> bool {
        let Some(successor) = self.successor(only_with_room) else { return false };
        self.eligibility.tried.insert(successor);
        self.consensus.transfer_leadership(successor);
        true
    }

    /// The follower to hand over to, of those not tried yet. It has stored what is committed; and more than this node
    /// has, if it is this node's log that is stalled, or its own may be stalled as well. One whose disk is full is
    /// the last choice, and none for a leader that leaves because its own is.
    pub(super) fn successor(&self, only_with_room: bool) -> Option<NodeId> {
        let mut needed = self.consensus.commit();
        if self.eligibility.reasons().contains(&Ineligible::LogStalled) {
            let own = self.consensus.matched(self.config.node);
            needed = needed.max(self.consensus.last_index().min(own + 1));
        }
        let untried = self.links.iter().filter(|peer| !self.eligibility.tried.contains(peer));
        let able = untried.filter(|peer| self.consensus.matched(**peer) >= needed);
        able.filter(|peer| !only_with_room || self.has_room(**peer))
            .max_by_key(|peer| (self.has_room(**peer), self.consensus.matched(**peer)))
            .copied()
    }

    /// When everybody was cut off from everybody, whoever comes back into reach is not waited for as long as for a
    /// leader that may only be late. Servers take turns by their numbers, so that the first has won before the next
    /// asks.
    fn campaign_soon(&mut self) {
        if self.has_majority_in_reach() {
            let before = self.links.range(..self.config.node).count() as u64;
            self.campaign_at = Some(self.ticks + before * CAMPAIGN_TURN_TICKS);
        }
    }

    /// Whether something has come from the peer lately, and its link is up.
    pub(super) fn is_heard(&self, peer: NodeId) -> bool {
        let silent_ticks = self.ticks - self.heard.get(&peer).copied().unwrap_or_default();
        self.links.contains(&peer) && silent_ticks <= limits::ELECTION_TICKS as u64
    }

    /// Servers that answer, this one included. Only a leader is spoken to by all of them all the time.
    fn in_reach(&self) -> usize {
        let leads = self.consensus.role() == Role::Leader;
        1 + self.links.iter().filter(|peer| !leads || self.is_heard(**peer)).count()
    }

    pub(super) fn has_majority_in_reach(&self) -> bool {
        self.in_reach() > self.config.nodes.len() / 2
    }

    fn compare_clocks(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.peer_clocks.is_due(now.monotonic_us) {
            let level = self.config.release.level.level;
            let message = PeerMessage::About { wall_us: now.wall_us, level };
            let tell = |to: &NodeId| Output::Send { to: *to, message: message.clone() };
            out.extend(self.links.iter().map(tell));
        }
        if self.consensus.role() == Role::Leader
            && let Some(ahead_us) = self.peer_clocks.news()
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

    /// Checks a write and puts it among those under way, or with its first copy.
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
        // A copy of what is under way takes no room.
        if self.writes.join(&write, origin) {
            return Ok(());
        }
        let limits = &self.config.limits;
        if self.writes.bytes() >= limits.pending_write_bytes_max {
            return Err(busy("too many bytes are being written at this server"));
        }
        // Long ones wait for their turn, and leave room for others meanwhile.
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
        // What a refuted state says of a write is not told, not even when it was done: of one that came before its sessions
        // may have it wrong. Another server leads at once, and says it.
        let outcomes = if self.refuted { Vec::new() } else { outcomes };
        for write in outcomes {
            let Some(key) = self.writes.take_proposed(write.term, write.index) else { continue };
            let client = self.writes.get_mut(key).write.request.client;
            self.certainty.applied(client, write.index, write.newest_sequence);
            match write.outcome {
                Some(outcome) if outcome.refused => {
                    let pending = self.writes.remove(key);
                    // Whichever copy came first, it was refused.
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

    /// The link to or from `peer` broke: writes that were passed on to it, or what it answered, may be lost, so they
    /// are passed on again.
    fn take_back_forwarded(&mut self, peer: NodeId, now: Now) {
        for key in self.writes.take_forwarded(|to| to == peer) {
            self.wait_again(key, now);
        }
    }

    /// A write that another leader must decide waits for one.
    pub(super) fn wait_again(&mut self, key: usize, now: Now) {
        let pending = self.writes.get_mut(key);
        let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
        pending.deadline_us = deadline_us.min(pending.give_up_us);
        pending.resent = true;
        self.writes.wait(key);
    }

    /// What a write is answered that came to nothing in a session that is not known. Only of one that was handed
    /// on once it is known that it was not applied before. Its client begins anew with `applied`, the timestamp of
    /// the last write applied: that is not before the last command of any session that was dropped.
    pub(super) fn unknown_session(resent: bool, applied: Timestamp) -> Reply {
        let message = "what this client wrote before is forgotten, and so is whether this write was applied: \
                       read the key to see what it holds";
        let (code, effect, begin_anew_at) = match resent {
            true => (ErrorCode::StaleRequest, Effect::MayBeDone, Timestamp::ZERO),
            false => (ErrorCode::UnknownSession, Effect::NotDone, applied),
        };
        let message = message.to_owned();
        Reply::Error(ErrorReply { code, message, retry_after_ms: 0, effect, begin_anew_at })
    }

    /// Tells everybody who has sent a write what it is answered.
    pub(super) fn answer(&self, pending: &Pending, reply: &Reply, out: &mut Vec<Output>) {
        for origin in &pending.origins {
            let reply = reply.clone();
            match *origin {
                Origin::Client(token) => out.push(Output::Reply { token, reply }),
                Origin::Server { node, id } => self.answer_forward(node, id, Some(reply), out),
            }
        }
    }

    /// Answers a write with what came of it, and an error with what is known of its effect besides: an earlier leader
    /// may have ordered it.
    pub(super) fn finish(&self, pending: Pending, mut reply: Reply, out: &mut Vec<Output>) {
        if let Reply::Error(error) = &mut reply {
            error.effect = error.effect.max(pending.effect);
        }
        self.answer(&pending, &reply, out);
    }

    /// How many servers answer, of how many, and how many are needed.
    fn reach(&self) -> (usize, usize, usize) {
        (self.in_reach(), self.config.nodes.len(), self.config.nodes.len() / 2 + 1)
    }

    fn name_of(&self, node: NodeId) -> String {
        let place = self.config.nodes.iter().position(|of| *of == node);
        let name = place.and_then(|place| self.config.names.get(place)).cloned();
        name.unwrap_or_else(|| by_place(node))
    }

    /// A read was not confirmed in time.
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

    /// A write was not confirmed in time. What is said of its effect is what is known.
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
                    "the write is done, a majority has stored it, but not every server in sync is known to have \
                     ({answers}): do not repeat it"
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
            "the write names {keys} keys and at most {} can be written at once: make it several writes",
            limits::TRANSACTION_KEYS_MAX
        ));
    }
    if bytes > limits::TRANSACTION_BYTES_MAX {
        return invalid(&format!(
            "the write has {bytes} bytes and at most {} can be written at once: make it several writes",
            limits::TRANSACTION_BYTES_MAX
        ));
    }
    if let OpKind::SetHistory(history) = kind
        && !history.can_be_kept()
    {
        return invalid(&format!(
            "a history of {history} cannot be kept: keep all, a time that is not zero, or 1 to {} versions of a key",
            limits::HISTORY_VERSIONS_MAX
        ));
    }
    if write.request.sequence == 0 || write.request.answered_below > write.request.sequence {
        return invalid("the request's sequence numbers break the protocol: count from 1");
    }
    Ok(())
}

/// How many servers answer, as a clause.
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

/// Refuses a read: another server answers it.
pub fn not_to_be_read(distrust: Distrust) -> Reply {
    error(ErrorCode::Internal, &format!("this server cannot be read ({distrust}): ask another one"))
}

/// A limit as the core counts time.
pub(super) fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}

/// A limit in ticks of the core's clock.
fn ticks(duration: Duration) -> u64 {
    micros(duration) / micros(limits::TICK)
}
