//! The state of the node core, what each input does to it, and what follows from them.
//!
//! [`Node::handle`] only changes state. [`Node::flush`] works out what follows, once for all inputs
//! that have come together: a leader proposes the waiting writes, a follower forwards them;
//! read-index requests are made; consensus turns it all into messages, log batches and entries to
//! apply; the writes for which the acknowledgement rule is met are answered.
//!
//! The parts of the state keep their own invariants (`writes`, `reads`, `leadership`,
//! `reachability`, `consistency_check`, `disk_space`, `eligibility`). What takes several of them is
//! here, and below: `ordering` for writes, `leading` for who leads, `messages` for other servers,
//! `effects` for what consensus wants done, `status` for what a driver may ask.

mod effects;
mod leading;
mod leasing;
mod messages;
mod ordering;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::clock::{HybridClock, LogTime, micros};
use super::config::{NodeConfig, NodeError};
use super::consistency_check::ConsistencyCheck;
use super::disk_space::Disks;
use super::eligibility::Eligibility;
use super::garbage_collection::GarbageCollector;
use super::leadership::Leadership;
use super::lease_questions::LeaseQuestions;
use super::leases::Leases;
use super::long_writes::LongWrites;
use super::reachability::{CAMPAIGN_TURN_TICKS, Reachability};
use super::reads::{AwaitedBy, PendingRead, PendingReads, ReadOrigin};
use super::replies::{
    busy, error, not_to_be_read, result_in_doubt, shutting_down, unknown_session,
};
use super::server_clocks::ServerClocks;
use super::writes::Writes;
use super::{Input, NoLeader, Notice, Now, Output, ReadCondition, RequestToken};
use crate::consensus::{Consensus, ConsensusConfig, Effects, InitialLog};
use crate::limits;
use crate::model::{
    AppliedPoint, AppliedWrite, Command, Effect, FeatureLevel, GroupRules, LogIndex, NodeId,
    Recovered, StateLimits, Term, WriteFate,
};
use crate::wire::message::{ErrorCode, RaftMessage, Role, ServerMessage};

/// A read-index request is repeated if none was made for this long: longer than a round of
/// heartbeats on a loaded machine takes. An answer may take longer, and still counts.
const READ_INDEX_RETRY: Duration = Duration::from_millis(200);

/// The progress of a node that is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
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
    config: NodeConfig,
    consensus: Consensus,
    effects: Effects,
    clock: HybridClock,
    log_time: LogTime,
    server_clocks: ServerClocks,
    writes: Writes,
    /// Waiting writes were left for the next flush only so that this one did not take too long.
    propose_more: bool,
    long_writes: LongWrites,
    /// The commit index at the end of the last flush.
    flushed_commit: LogIndex,
    /// The state of the current term, if this node leads; as of the last flush.
    leadership: Option<Leadership>,
    reads: PendingReads,
    leases: Leases,
    lease_questions: LeaseQuestions,
    reachability: Reachability,
    eligibility: Eligibility,
    disks: Disks,
    applied: AppliedPoint,
    consistency: ConsistencyCheck,
    /// Nothing is applied before a snapshot is installed.
    store_lost: bool,
    garbage_collector: GarbageCollector,
    /// The rules of the group, once they are applied.
    rules: Option<GroupRules>,
    /// The group's feature level.
    level: u32,
    /// Role, leader and term at the beginning of the last flush.
    last_role: (Role, Option<NodeId>, Term),
    stopping: Stopping,
    /// Since when no leader can be elected although enough servers are up.
    no_leader_since_us: Option<u64>,
    /// The reason for that which was reported last.
    no_leader_reported: Option<NoLeader>,
    /// REPLICATIONs that `--replication-delay` holds back, in order: when each is due, the link
    /// that it came on, and the message.
    delayed: VecDeque<(u64, NodeId, RaftMessage)>,
    /// The highest index whose replication the console has shown.
    shown_index: LogIndex,
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
        let log = InitialLog {
            first_index: recovered.first_index.max(1),
            previous_term: recovered.previous_term,
            term_runs: recovered.term_runs,
            last_index,
            entries,
        };
        let mut consensus = Consensus::new(setup, hard_state, log, applied)?;
        let mut eligibility = Eligibility::new(ticks(config.stall_timeout), applied.index);
        if recovered.data_lost {
            consensus.set_data_lost();
        }
        if recovered.store_lost {
            eligibility.store_lost(true);
            consensus.set_may_lead(false);
            consensus.set_store_lost(true);
        }
        let writes = Writes::new(config.first_question, config.limits.short_write_rows_max);
        let reads = PendingReads::new(config.first_question);
        let lease_questions = LeaseQuestions::new(config.first_question);
        let last_role = (consensus.role(), consensus.leader(), consensus.term());
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
            leadership: None,
            reads,
            leases: Leases::new(&recovered.leases, config.lease_notes),
            lease_questions,
            reachability: Reachability::new(config.node, config.nodes.len()),
            disks: Disks::default(),
            eligibility,
            applied,
            consistency: ConsistencyCheck::new(config.nodes.len(), config.first_question),
            store_lost: recovered.store_lost,
            rules: recovered.summary.rules,
            level: recovered.summary.level.max(FeatureLevel::FIRST.level),
            garbage_collector: GarbageCollector::new(config.garbage_collection, recovered.summary),
            last_role,
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
        self.leases.advance(now.monotonic_us);
        match input {
            Input::Tick => self.tick(now, out),
            Input::LateTick => {
                if self.consensus.role() == Role::Leader {
                    self.consensus.tick();
                }
            }
            Input::LinkUp { server, last_index, term, first_leader } => {
                self.reachability.link_up(server);
                out.push(Output::Send { to: server, message: self.disks.message() });
                self.consensus.link_up(server, last_index, term, first_leader);
                self.campaign_if_founder();
                if self.reaches_majority() {
                    self.reachability.campaign_soon();
                }
            }
            Input::LinkDown { server } => {
                self.reachability.link_down(server);
                self.take_back_forwarded(server, now);
                self.ask_again_after_losing(server);
                self.server_clocks.lost(server);
                self.disks.forget(server);
                if let Some(leadership) = &mut self.leadership {
                    leadership.link_down(server);
                }
                self.consensus.link_down(server);
                self.consistency.link_down(server);
            }
            Input::InboundDown { server } => {
                self.reachability.inbound_down(server);
                self.take_back_forwarded(server, now);
                self.ask_again_after_losing(server);
            }
            Input::Message { from, message } => {
                self.reachability.heard(from);
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
            Input::Read { token, condition } => self.read(now, token, condition, out),
            Input::Leases { token, client, question } => {
                self.lease_question(now, (token, client), question, out);
            }
            Input::DiskSpace(space) => {
                if self.disks.set_own(space) {
                    self.announce_disk(out);
                }
            }
            Input::Persisted { number } => {
                self.eligibility.persisted(number);
                self.consensus.persisted(number, &mut self.effects);
            }
            Input::Applied { outcomes, point, summary, leases } => {
                self.log_time.observe(summary.clock_us);
                let (level, rules) = (summary.level, summary.rules);
                self.garbage_collector.applied(point.index, summary, now.monotonic_us);
                // After the garbage collection among the applied entries, which was not by rules
                // that came later.
                self.take_rules(level, rules, out);
                self.leases_applied(point.index, &leases, out);
                self.applied(now, outcomes, point, out);
            }
            Input::Fetched { fetch, entries } => self.consensus.fetched(fetch, entries),
            Input::SnapshotSent { to, reached } => self.consensus.snapshot_sent(to, reached),
            Input::SnapshotReceived { from, snapshot, timestamp } => {
                if !self.consensus.restore(from, snapshot, timestamp) {
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
            let limits = self.group_limits();
            if let Some(leadership) = &mut self.leadership {
                leadership.set_limits(limits);
            }
        }
        self.set_collection_rules();
    }

    fn set_collection_rules(&mut self) {
        if let Some(GroupRules { limits, history }) = self.rules {
            self.garbage_collector.set_rules(limits.removal_grace_us, history);
        }
    }

    /// The limits of the group's state machines, once they are known.
    fn group_limits(&self) -> Option<StateLimits> {
        self.rules.map(|rules| rules.limits)
    }

    /// The monotonic time, in microseconds, at which [`Node::flush`] is to be called even if there
    /// is no input.
    pub fn flush_due_us(&self) -> Option<u64> {
        if !self.leads() {
            return None;
        }
        // Won since the last flush.
        if self.leadership.is_none() {
            return Some(0);
        }
        // Without a majority nothing is proposed, however often this node is flushed.
        if self.propose_more && self.reaches_majority() {
            return Some(0);
        }
        self.long_writes.due_us()
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Output>) {
        let now_us = now.monotonic_us;
        self.reachability.tick();
        if let Some(leadership) = &mut self.leadership {
            leadership.tick(self.consensus.commit());
        }
        self.eligibility.tick();
        self.judge_eligibility(out);
        self.consensus.tick();
        self.garbage_collector.tick();
        self.compare_clocks(now, out);
        if self.disks.tick() {
            self.announce_disk(out);
        }
        self.campaign_if_founder();
        if self.reachability.is_campaign_due()
            && self.consensus.campaign_again(CAMPAIGN_TURN_TICKS as usize)
        {
            self.reachability.campaigned();
        }
        self.report_no_leader(now, out);
        let timeout_ticks = ticks(self.config.cut_off_timeout);
        if self.reachability.is_cut_off_due(self.consensus.leader(), timeout_ticks) {
            out.push(Output::CutOff);
        }
        self.release_delayed(now, out);
        self.settle_disputes(now, out);

        let mut expired = self.writes.take_expired(now_us);
        expired.extend(self.writes.take_unanswered(now_us));
        for key in expired {
            let pending = self.writes.remove(key);
            // There is a leader, so the write was not proposed because others came first.
            let led = match self.consensus.leader() {
                Some(leader) if leader == self.config.node => self.reaches_majority(),
                Some(leader) => self.reachability.links().contains(&leader),
                None => false,
            };
            let reply = if led && pending.effect == Effect::NotDone {
                busy("more is being written than the group can take")
            } else {
                self.group_state().not_confirmed(pending.effect)
            };
            self.finish(pending, reply, out);
        }
        self.reads.repeat_request(now_us.saturating_sub(micros(READ_INDEX_RETRY)));
        for (PendingRead { reader, .. }, awaited_by) in self.reads.take_expired(now_us) {
            // Those who ask about leases have deadlines of their own.
            let ReadOrigin::Client(token) = reader else { continue };
            let reply = match awaited_by {
                AwaitedBy::Plain => {
                    out.push(self.answer_read(token));
                    continue;
                }
                AwaitedBy::Confirmed => {
                    busy("what was written before is still being applied at this server")
                }
                AwaitedBy::Unconfirmed => self.group_state().no_majority(),
            };
            out.push(Output::Reply { token, reply });
        }
        self.expire_lease_questions(now_us, out);
    }

    /// Works out what follows from the inputs since the last call: proposes or forwards writes,
    /// runs consensus, answers. To be called when no input is at hand, before the driver waits for
    /// more.
    pub fn flush(&mut self, now: Now, out: &mut Vec<Output>) {
        self.handle_leadership_change(now, out);
        if self.consensus.role() == Role::Leader {
            // Also if nothing may be proposed now, or `flush_due_us` would stay in the past.
            self.long_writes.look();
            // Before the writes: they may use up the room for proposals each time that there is
            // some, and a full disk may make them wait for this. It is one piece at a time, so that
            // they do not wait long.
            self.collect_garbage(now);
            self.propose_lease_record(now);
            // Without a majority nothing is proposed, so that a write that expires is known not to
            // be done.
            if self.reaches_majority() {
                self.propose_waiting(now, out);
            }
        } else {
            self.forward_waiting(now, out);
        }
        self.ask_about_leases(now, out);
        self.answer_lease_questions(out);
        self.start_reads(now, out);
        self.run_consensus(out);
        // New commits have made room for proposals, which raft-rs counts only now.
        let commit = self.consensus.commit();
        self.propose_more |= commit > self.flushed_commit && self.writes.has_waiting();
        self.long_writes.committed(commit, now.monotonic_us);
        self.flushed_commit = commit;
        self.answer_stored(now, out);
        self.notify_commit(out);
        self.count_leases();
        for read in self.reads.take_ready(&self.applied) {
            match read.reader {
                ReadOrigin::Client(token) => out.push(self.answer_read(token)),
                ReadOrigin::Leases(batch) => self.lease_batch_confirmed(batch, out),
            }
        }
        self.stop_when_done(now, out);
        self.writes.check_places();
    }

    /// What this server has asked another one may have been lost with the connection.
    fn ask_again_after_losing(&mut self, server: NodeId) {
        self.lease_questions.take_back(|to| to == server);
        if self.consensus.leader() == Some(server) {
            self.reads.repeat_request(u64::MAX);
        }
    }

    fn start_reads(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.reads.is_request_due() {
            return;
        }
        if self.consensus.role() == Role::Leader {
            let request = self.reads.begin_request(now.monotonic_us);
            // A leader that has committed no entry of its term does not know the commit index yet.
            // The request is repeated.
            self.consensus.read_index(request);
        } else if let Some(leader) = self.consensus.leader()
            && self.reachability.links().contains(&leader)
        {
            let id = self.reads.begin_request(now.monotonic_us);
            let message = ServerMessage::ReadIndex { id };
            out.push(Output::Send { to: leader, message });
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

    /// Whether this node leads.
    fn leads(&self) -> bool {
        self.consensus.role() == Role::Leader
    }

    /// Whether the servers that this node reaches are a majority of the group.
    fn reaches_majority(&self) -> bool {
        self.reachability.reaches_majority(self.leads())
    }

    /// Sends a message to every server that this node has a link to.
    fn send_to_all(&self, message: &ServerMessage, out: &mut Vec<Output>) {
        let send = |to: &NodeId| Output::Send { to: *to, message: message.clone() };
        out.extend(self.reachability.links().iter().map(send));
    }

    /// Sends the state of this server's disk to the others.
    fn announce_disk(&mut self, out: &mut Vec<Output>) {
        let message = self.disks.announce();
        self.send_to_all(&message, out);
    }

    /// The servers whose full disks keep the group from accepting writes that add to the store.
    fn full_disks(&self) -> BTreeSet<NodeId> {
        let (node, servers) = (self.config.node, self.config.nodes.len());
        let links = self.reachability.links();
        self.disks.full_servers(node, servers, links, self.consensus.leader())
    }

    fn compare_clocks(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.server_clocks.is_due(now.monotonic_us) {
            let level = self.config.release.level.level;
            let message = ServerMessage::About { wall_us: now.wall_us, level };
            self.send_to_all(&message, out);
        }
        if self.consensus.role() == Role::Leader
            && let Some(ahead_us) = self.server_clocks.take_warning()
        {
            out.push(Output::Notice(Notice::ClockApart { ahead_us }));
        }
    }

    fn read(
        &mut self,
        now: Now,
        token: RequestToken,
        condition: ReadCondition,
        out: &mut Vec<Output>,
    ) {
        let is_full = self.reads.len() >= self.config.limits.pending_reads_max;
        if let ReadCondition::Applied(timestamp) = condition {
            match is_full || !self.reaches_soon(timestamp) {
                true => out.push(self.answer_read(token)),
                false => self.reads.add_plain(now.monotonic_us, token, timestamp),
            }
            return;
        }
        let refusal = if self.stopping != Stopping::No {
            shutting_down()
        } else if let Some(distrust) = self.distrust() {
            not_to_be_read(distrust)
        } else if is_full {
            busy("too many linearizable reads are under way at this server")
        } else {
            self.long_writes.something_else_is_asked();
            let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
            return self.reads.add(PendingRead { reader: ReadOrigin::Client(token), deadline_us });
        };
        out.push(Output::Reply { token, reply: refusal });
    }

    /// Has a read answered from this node's state, which may have been refuted since the read was
    /// accepted.
    fn answer_read(&self, token: RequestToken) -> Output {
        match self.distrust() {
            Some(distrust) => Output::Reply { token, reply: not_to_be_read(distrust) },
            None => Output::ReadReady { token },
        }
    }

    fn applied(
        &mut self,
        now: Now,
        outcomes: Vec<AppliedWrite>,
        point: AppliedPoint,
        out: &mut Vec<Output>,
    ) {
        assert!(
            point.index >= self.applied.index,
            "applied {} after {}",
            point.index,
            self.applied.index
        );
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
        let outcomes = if self.consistency.is_refuted() { Vec::new() } else { outcomes };
        for write in outcomes {
            let Some(key) = self.writes.take_proposed(write.term, write.index) else { continue };
            if let Some(leadership) = &mut self.leadership {
                let request = &self.writes.get(key).write.request;
                leadership.write_applied(request, write.index, write.newest_sequence);
            }
            match write.fate {
                WriteFate::Refused => {
                    let pending = self.writes.remove(key);
                    // The outcome is the same for all copies of the write.
                    let refusal = match self.distrust() {
                        None => busy("too many large ranges are being removed"),
                        Some(distrust) => result_in_doubt(distrust),
                    };
                    self.answer(&pending, refusal, out);
                }
                WriteFate::Answered(answer)
                    if answer.is_untold() || self.writes.tells_too_much(&answer) =>
                {
                    let mut pending = self.writes.remove(key);
                    pending.has_at_least(Effect::MayBeDone);
                    // It is done, so that asking again does nothing but tell.
                    let full = "too much waits that transactions tell";
                    self.finish(pending, busy(full), out);
                }
                WriteFate::Answered(answer) => {
                    self.writes.wait_for_stored(key, write.index, answer);
                }
                WriteFate::UnknownSession => {
                    let pending = self.writes.remove(key);
                    let reply = unknown_session(pending.resent, point.timestamp);
                    self.finish(pending, reply, out);
                }
                WriteFate::Forgotten => {
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
        if let Some(message) = self.consistency.applied(point) {
            self.ask_about_states(now, out);
            self.send_to_all(&message, out);
        }
    }
}

/// A duration in ticks of the election clock.
fn ticks(duration: Duration) -> u64 {
    micros(duration) / micros(limits::TICK)
}
