//! The facade of consensus: the only way for the node core to use Raft.
//!
//! [`Consensus`] wraps raft-rs's `RawNode`. The core calls the methods that say what has happened
//! (a tick, a message, a link that came up, a batch that is durable, entries that are applied) and
//! then [`Consensus::advance`], which returns in [`Effects`] what is to be done. No raft-rs type is
//! visible outside. Where the library has a trap or a fault, the code that avoids it names it.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message as RaftPb, MessageType};
use raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole};

use super::bootstrap::GreetedServers;
use super::config::{ConsensusConfig, ConsensusError, InitialLog, NoLeader, ProposeError};
use super::convert::message_to_raft;
use super::guard::{self, GuardVerdict, LocalState, RaftMessageFault};
use super::log_store::{LogStore, snapshot_at};
use super::logging;
use super::ready::{Effects, Fetches, Pipeline};
use super::voter_eligibility::VoterEligibility;
use crate::limits;
use crate::model::{
    AppliedPoint, Command, HardState, LogEntry, LogIndex, NodeId, SnapshotId, Term, Timestamp,
};
use crate::wire::message::{RaftBody, RaftMessage, Role};

/// By how much other servers may raise this server's term with each tick of its run, in all; what
/// is not used is kept. No election needs that many, and the 64-bit term lasts for a hundred years
/// of it. Every server can follow wherever another was led, since all are given the same.
const TERM_CREDIT_PER_TICK: u64 = 1 << 26;
/// By how much other servers may raise this server's term when it starts, so that one that was down
/// for long can follow at once.
const TERM_CREDIT_AT_START: u64 = 1 << 32;

/// The consensus of one server: raft-rs, and what this part adds to it.
pub struct Consensus {
    raw: RawNode<LogStore>,
    config: ConsensusConfig,
    pipeline: Pipeline,
    fetches: Fetches,
    voter_eligibility: VoterEligibility,
    /// This server became eligible, and that is not in a batch for the log yet.
    eligibility_unsaved: bool,
    applied: LogIndex,
    greeted: GreetedServers,
    /// By how much messages of other servers may raise the term now; see [`guard`].
    term_credit: u64,
    /// Set by `node::eligibility`: whether this server may campaign and accept a transfer.
    may_lead: bool,
    /// The store is lost and waits for a snapshot. The log, the term and the vote are sound.
    store_lost: bool,
    /// This server had data and has lost all of it.
    data_lost: bool,
}

impl Consensus {
    /// Starts on a recovered log, whose `entries` are all those after `applied.index`.
    ///
    /// # Errors
    /// The recovered state contradicts itself, or the library refuses its configuration.
    pub fn new(
        config: ConsensusConfig,
        hard_state: HardState,
        log: InitialLog,
        point: AppliedPoint,
    ) -> Result<Consensus, ConsensusError> {
        let applied = point.index;
        log.check(hard_state.commit, applied).map_err(ConsensusError::Inconsistent)?;
        let log_is_empty = log.last_index == 0;
        let library = Config {
            id: config.node.0,
            election_tick: limits::ELECTION_TICKS,
            heartbeat_tick: limits::HEARTBEAT_TICKS,
            min_election_tick: config.election_ticks.unwrap_or(0),
            max_election_tick: config.election_ticks.map_or(0, |ticks| ticks + 1),
            applied,
            max_size_per_msg: config.limits.append_bytes_max,
            max_inflight_msgs: config.limits.appends_in_flight_max,
            check_quorum: true,
            pre_vote: true,
            // In raft-rs 0.7.0 batching may append entries to an empty message that names another
            // predecessor. The core proposes in batches, so little is lost.
            batch_append: false,
            // The core decides when followers are notified of a commit: see `send_commit_index`.
            skip_bcast_commit: true,
            max_uncommitted_size: config.limits.uncommitted_bytes_max,
            max_committed_size_per_ready: config.limits.apply_bytes_max,
            ..Config::default()
        };
        let store = LogStore::new(&config.nodes, hard_state, log, point, config.limits);
        let raw = RawNode::new(&library, store, &logging::logger())?;
        let greeted = GreetedServers::new(config.node, &config.nodes);
        let voter_eligibility = VoterEligibility::new(hard_state.admitted, config.nodes.len());
        Ok(Consensus {
            raw,
            config,
            pipeline: Pipeline::new(log_is_empty, hard_state, applied),
            fetches: Fetches::default(),
            voter_eligibility,
            eligibility_unsaved: false,
            applied,
            greeted,
            term_credit: TERM_CREDIT_AT_START,
            may_lead: true,
            store_lost: false,
            data_lost: false,
        })
    }

    /// Advances the election clock by one tick.
    pub fn tick(&mut self) {
        self.term_credit = self.term_credit.saturating_add(TERM_CREDIT_PER_TICK);
        let campaigns = self.may_campaign() && !self.vote_would_be_late();
        if self.role() == Role::Leader || campaigns {
            self.raw.tick();
        } else {
            // The count of ticks since the leader was heard rises all the same: while it is below
            // the election time-out, the library grants no other server a vote.
            let raft = &mut self.raw.raft;
            raft.election_elapsed += 1;
            // A leader that is silent is forgotten, as by a server that campaigns: requests are
            // not left to one that is gone.
            let is_silent = raft.election_elapsed >= raft.randomized_election_timeout();
            if is_silent && raft.leader_id != raft::INVALID_ID {
                raft.become_follower(raft.term, raft::INVALID_ID);
            }
        }
        self.request_snapshot();
    }

    /// Tells consensus that this server is blank because it has lost its data: the group exists, so
    /// this server must not bootstrap it.
    pub fn set_data_lost(&mut self) {
        self.data_lost = true;
    }

    /// Tells consensus whether this server's store is lost, so that it needs a snapshot although
    /// its log is whole.
    pub fn set_store_lost(&mut self, lost: bool) {
        self.store_lost = lost;
    }

    /// Requests a snapshot from the leader if the store is lost and none was requested in this
    /// term. The library repeats the request with every answer to the leader, and stores and
    /// acknowledges nothing meanwhile. So the request waits until everything in this log is
    /// committed: otherwise a leader that needs this server's acknowledgement to commit up to where
    /// the snapshot must reach could never send one.
    fn request_snapshot(&mut self) {
        let possible = self.is_log_long_enough()
            && self.raw.raft.pending_request_snapshot == raft::INVALID_INDEX
            && self.commit() == self.last_index();
        if possible {
            let _ = self.raw.request_snapshot();
        }
    }

    /// Whether the store is lost and the log reaches into the leader's term, which the library
    /// demands of a server that requests a snapshot. From then on no further entries are stored, so
    /// that the commit index reaches the log's end.
    fn is_log_long_enough(&self) -> bool {
        self.store_lost
            && !self.pipeline.is_installing()
            && self.leader().is_some()
            && self.role() == Role::Follower
            && self.term_at(self.last_index()) == Some(self.term())
    }

    /// Committed entries up to `index` were handed out and are not applied, because the store is
    /// lost and the snapshot that it waits for holds them.
    pub fn skipped(&mut self, index: LogIndex) {
        self.advance_applied(index);
    }

    fn advance_applied(&mut self, index: LogIndex) {
        if index > self.applied {
            self.applied = index;
            self.raw.advance_apply_to(index);
            self.raw.mut_store().applied(index);
        }
    }

    /// Sets whether this server may lead. If it may not, it neither campaigns nor accepts a
    /// leadership transfer; if it leads already, it goes on until
    /// [`Consensus::transfer_leadership`] or [`Consensus::step_down`] is called.
    pub fn set_may_lead(&mut self, may_lead: bool) {
        self.may_lead = may_lead;
        if !may_lead && self.role() == Role::Candidate {
            let term = self.term();
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// Stops leading without a successor, as a leader does that has lost its quorum.
    pub fn step_down(&mut self) {
        if self.role() == Role::Leader {
            let term = self.term();
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// Whether a leadership transfer is under way. The library gives it up after an election
    /// time-out.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Campaigns at once, without an election time-out, if this server is the founder of a blank
    /// group.
    pub fn campaign_if_founder(&mut self) {
        let bootstraps = !self.voter_eligibility.is_eligible() && self.may_campaign();
        if bootstraps && self.role() == Role::Follower && self.leader().is_none() {
            self.campaign();
        }
    }

    /// Campaigns once more if this server is a candidate, without waiting for an election time-out.
    /// Returns false if its campaign began less than `ticks` ago: it may be about to win, and a new
    /// term would void the votes that are on their way.
    pub fn campaign_again(&mut self, ticks: usize) -> bool {
        let campaigns = self.role() == Role::Candidate;
        if campaigns && self.raw.raft.election_elapsed < ticks {
            return false;
        }
        if campaigns && self.may_campaign() {
            self.campaign();
        }
        true
    }

    fn campaign(&mut self) {
        self.raw.raft.election_elapsed = 0;
        let mut hup = RaftPb { from: self.config.node.0, ..RaftPb::default() };
        hup.set_msg_type(MessageType::MsgHup);
        let _ = self.raw.raft.step(hup);
    }

    /// Eligible voters campaign; of the others only the founder of a group that was never
    /// bootstrapped, which it knows by its empty log.
    fn may_campaign(&self) -> bool {
        // The library looks at entries that are not applied, and panics where a snapshot has taken
        // their place and is not applied yet.
        if self.pipeline.is_installing() || !self.may_lead {
            return false;
        }
        self.voter_eligibility.is_eligible()
            || (!self.data_lost
                && self.is_founder()
                && self.last_index() == 0
                && (self.voter_eligibility.may_bootstrap(self.last_term_asked_for())
                    || self.no_server_has_entries()))
    }

    /// Whether every other server has said since this one started that its log is empty, and none
    /// has named a later term than this one's. Then no entry was ever acknowledged, or two data
    /// directories have lost it; and a vote that this server may have forgotten was for no later
    /// term than those it asks for. A founder needs this rule if a server that became eligible by
    /// voting for it has campaigned since, in a term in which the founder does not remember asking
    /// for votes: no other server can be elected, since blank ones vote for the founder alone.
    fn no_server_has_entries(&self) -> bool {
        self.greeted.are_all_logs_empty() && self.voter_eligibility.may_bootstrap(self.term())
    }

    /// Whether a vote of this server would wait behind one that is not durable yet. During
    /// bootstrap that does not matter: all logs are alike, and the founder campaigns until it
    /// leads.
    fn vote_would_be_late(&self) -> bool {
        self.last_index() > 0 && self.pipeline.has_undurable_vote()
    }

    /// A server that has asked for votes with an empty log was the founder then, and remains it.
    fn is_founder(&self) -> bool {
        self.last_term_asked_for() > 0 || self.founder() == Some(self.config.node)
    }

    /// The term in which this server last asked for votes, as far as its data directory remembers;
    /// 0 for none.
    fn last_term_asked_for(&self) -> Term {
        if self.raw.raft.vote == self.config.node.0 { self.term() } else { 0 }
    }

    /// The founder of a blank group, as far as it is known.
    fn founder(&self) -> Option<NodeId> {
        self.greeted.founder(self.configured_first_leader())
    }

    /// The first leader that this server has configured, as long as it has not taken part in the
    /// group or stored any entry.
    pub fn configured_first_leader(&self) -> Option<NodeId> {
        let is_blank = !self.voter_eligibility.is_eligible() || self.last_index() == 0;
        is_blank.then_some(self.config.first_leader)
    }

    /// Why no leader can be elected although enough servers are up, if that is so.
    pub fn no_leader(&self) -> Option<NoLeader> {
        match self.leader() {
            Some(_) => None,
            None => self.greeted.no_leader(self.configured_first_leader(), self.data_lost),
        }
    }

    /// Whether this is the founder's request for a vote, which a server that is not an eligible
    /// voter may grant.
    fn is_bootstrap_vote(&self, message: &RaftMessage) -> bool {
        !self.data_lost
            && matches!(&message.body, RaftBody::Vote { last_index: 0, .. })
            // Not all links may be up yet; the founder has checked the other conditions.
            && (message.from == self.config.first_leader
                || self.founder() == Some(message.from))
            && self.last_index() == 0
    }

    /// Handles a message that came on `link`'s connection, after checking it.
    ///
    /// # Errors
    /// No correct server would have sent the message: the link is to be closed.
    pub fn step(&mut self, link: NodeId, message: RaftMessage) -> Result<(), RaftMessageFault> {
        let log = &self.raw.raft.raft_log;
        let local = LocalState {
            me: self.config.node,
            term: self.term(),
            term_credit: self.term_credit,
            role: self.role(),
            is_pre_candidate: self.raw.raft.state == StateRole::PreCandidate,
            leader: self.leader(),
            commit: self.commit(),
            last_index: self.last_index(),
            term_at: &|index| log.term(index).ok().filter(|term| *term > 0),
            timestamp_up_to: &|index| self.timestamp_up_to(index),
            all_durable: self.pipeline.is_all_durable(&self.raw),
        };
        let GuardVerdict::Step(mut message) = guard::check(&local, link, message)? else {
            return Ok(());
        };
        let shows_entries = match message.body {
            RaftBody::Append { .. } => true,
            RaftBody::AppendReply { index, reject_hint: None, .. } => index > 0,
            RaftBody::Vote { last_index, .. } => last_index > 0,
            _ => false,
        };
        if shows_entries {
            self.greeted.has_entries(link);
        }
        // Pre-vote messages carry the term of the election asked about, which their sender is not
        // in.
        let is_pre_vote = matches!(
            message.body,
            RaftBody::Vote { pre: true, .. } | RaftBody::VoteReply { pre: true, .. }
        );
        // A pre-vote says that a vote would be granted, and a vote that waits for a slow disk comes
        // too late or never. If the pre-vote were granted all the same, a server whose log is too
        // old could win one pre-vote after the other. Each raises the term, and keeps the servers
        // that could win the election from campaigning.
        if matches!(message.body, RaftBody::Vote { pre: true, .. }) && self.vote_would_be_late() {
            return Ok(());
        }
        if !is_pre_vote {
            self.voter_eligibility.observe_term(link, message.term);
        }
        let is_vote = matches!(message.body, RaftBody::Vote { .. });
        if is_vote && !self.voter_eligibility.is_eligible() && !self.is_bootstrap_vote(&message) {
            return Ok(());
        }
        let from_leader = matches!(
            message.body,
            RaftBody::Append { .. } | RaftBody::Heartbeat { .. } | RaftBody::TimeoutNow
        );
        if from_leader && !self.voter_eligibility.may_follow(message.term) {
            return Ok(());
        }
        if matches!(message.body, RaftBody::TimeoutNow) && !self.may_campaign() {
            return Ok(());
        }
        if let RaftBody::Append { entries, .. } = &mut message.body {
            if message.term == self.term() && self.is_log_long_enough() {
                let last_index = self.last_index();
                entries.retain(|entry| entry.index <= last_index);
            }
            if !entries.is_empty() && self.has_no_room() {
                return Ok(());
            }
        }
        if message.term > self.term() && !is_pre_vote {
            // The library would request a snapshot from the next leader before this server has
            // stored an entry of its term, whose acknowledgement that leader may need to commit
            // that far.
            self.raw.raft.pending_request_snapshot = raft::INVALID_INDEX;
        }
        let is_real_vote = matches!(message.body, RaftBody::Vote { pre: false, .. });
        let followed = match &message.body {
            RaftBody::Append { commit, .. } => Some((message.term, *commit)),
            _ => None,
        };
        if self.contradicts_acknowledgement(&message) {
            return Ok(());
        }
        let term_before = self.term();
        // An error only means that the message had no effect.
        let _ = self.raw.step(message_to_raft(message));
        // The guard lets only messages through that the credit suffices for.
        self.term_credit = self.term_credit.saturating_sub(self.term() - term_before);

        // raft-rs 0.7.0 may let a follower's next index fall to its match index (fixed upstream as
        // number 557), after which it would send what is there already, for ever.
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(link.0)
            && progress.next_idx <= progress.matched
        {
            progress.next_idx = progress.matched + 1;
        }
        let voted = is_real_vote && self.raw.raft.vote == link.0 && self.voter_eligibility.grant();
        let caught_up = followed.is_some_and(|(term, commit)| {
            term == self.raw.raft.term
                && self.voter_eligibility.catch_up(term, commit, self.commit_in(term))
        });
        self.eligibility_unsaved |= voted || caught_up;
        Ok(())
    }

    /// The greatest timestamp in the log up to `index`, which is in the log and not below the
    /// commit index.
    fn timestamp_up_to(&self, index: LogIndex) -> Timestamp {
        // What the library holds itself is what came since this server last worked out what follows
        // from its messages.
        let unstable = &self.raw.raft.raft_log.unstable;
        let held = index.checked_sub(unstable.offset);
        let held = held.and_then(|last| unstable.entries.get(..=last as usize)).unwrap_or_default();
        let stamp = |entry: &Entry| Command::peek_timestamp(&entry.data);
        match (held.iter().rev().find_map(stamp), self.pipeline.expected_timestamp()) {
            (Some(timestamp), _) | (None, Some(timestamp)) => timestamp,
            (None, None) => {
                self.raw.store().timestamp_up_to(index.min(unstable.offset.saturating_sub(1)))
            }
        }
    }

    /// Whether new entries are to be dropped, so that memory is bounded. Committed entries leave
    /// memory once they are applied, so a low bound is safe for them. Entries that are not
    /// committed may need further ones to be committed, so their bound is one that no correct
    /// leader reaches: a leader stops proposing at [`limits::UNAPPLIED_BYTES_MAX`].
    fn has_no_room(&mut self) -> bool {
        let max = self.config.limits.unapplied_bytes_max;
        let commit = self.commit();
        let store = self.raw.mut_store();
        store.committed_bytes(commit) > max
            || store.unapplied_bytes() > 2 * max + limits::SERVER_FRAME_BYTES_MAX
    }

    /// The commit index, if the entry there is of this term.
    fn commit_in(&self, term: Term) -> Option<LogIndex> {
        let commit = self.commit();
        (self.term_at(commit) == Some(term)).then_some(commit)
    }

    /// At the leader: whether a follower rejects entries that were acknowledged in its name.
    /// Answers of one server come in order, so one of the two was forged, and the follower is
    /// probed anew. The library would take the rejection for an old one and never send what is
    /// missing.
    fn contradicts_acknowledgement(&mut self, message: &RaftMessage) -> bool {
        // A follower that requests a snapshot has lost its store, not its log.
        let RaftBody::AppendReply {
            index,
            reject_hint: Some((hint, _)),
            snapshot_wanted: None,
            ..
        } = message.body
        else {
            return false;
        };
        if self.role() != Role::Leader || message.term != self.term() {
            return false;
        }
        let Some(progress) = self.raw.raft.mut_prs().get_mut(message.from.0) else { return false };
        let lacks_it = index <= progress.matched && hint < progress.matched;
        if lacks_it {
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = hint + 1;
        }
        lacks_it
    }

    /// The link to another server is up; see [`Input::LinkUp`](crate::node::Input::LinkUp).
    pub fn link_up(
        &mut self,
        server: NodeId,
        last_index: LogIndex,
        term: Term,
        first_leader: Option<NodeId>,
    ) {
        self.greeted.link_up(server, last_index, first_leader);
        self.voter_eligibility.observe_term(server, term);
        if self.role() != Role::Leader {
            return;
        }
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(server.0)
            && last_index < progress.matched
        {
            // It has lost its data directory: its earlier acknowledgements do not count any more.
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = last_index + 1;
        }
    }

    /// Another server has applied entries: it is not blank.
    pub fn has_entries(&mut self, server: NodeId) {
        self.greeted.has_entries(server);
    }

    /// The link to another server broke: the messages sent last may be lost.
    pub fn link_down(&mut self, server: NodeId) {
        self.greeted.link_down(server);
        if self.role() == Role::Leader {
            self.raw.report_unreachable(server.0);
        }
    }

    /// Proposes entries, all or none. Returns the index of the first; the others follow it.
    ///
    /// # Errors
    /// This server does not lead, or hands over, or too much is proposed and not committed.
    pub fn propose(&mut self, data: Vec<Bytes>) -> Result<LogIndex, ProposeError> {
        if self.role() != Role::Leader {
            return Err(ProposeError::NotLeader);
        }
        if self.raw.raft.lead_transferee.is_some() {
            return Err(ProposeError::HandingOver);
        }
        let first = self.last_index() + 1;
        let to_entry = |data| Entry { data, ..Entry::default() };
        let mut proposal = RaftPb { from: self.config.node.0, ..RaftPb::default() };
        proposal.set_msg_type(MessageType::MsgPropose);
        proposal.set_entries(data.into_iter().map(to_entry).collect());
        let count = proposal.entries.len() as u64;
        // raft-rs panics on an empty proposal, without values.
        assert!(count > 0, "an empty proposal after index {}", self.last_index());
        self.raw.step(proposal).map_err(|_| ProposeError::Full)?;
        assert_eq!(self.last_index() + 1, first + count, "a proposal was appended in part");
        Ok(first)
    }

    /// The log batches up to `number` are durable.
    pub fn persisted(&mut self, number: u64, out: &mut Effects) {
        self.pipeline.durable(&mut self.raw, number, out);
    }

    /// The state machine has applied up to `index`, which [`Effects::committed`] or
    /// [`Effects::install`] has named.
    pub fn applied(&mut self, index: LogIndex) {
        // A snapshot for a lost store may reach to the same index that was applied before.
        self.pipeline.installed(index);
        self.advance_applied(index);
    }

    /// The log before `first_index` has been deleted from disk.
    pub fn compacted(&mut self, first_index: LogIndex) {
        self.raw.mut_store().compact(first_index);
    }

    /// A snapshot that [`Effects::snapshots`] requested is installed at `to`, whose log begins
    /// after the index `reached`; `None` if it failed.
    pub fn snapshot_sent(&mut self, to: NodeId, reached: Option<LogIndex>) {
        let Some(reached) = reached else {
            return self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
        };
        self.raw.report_snapshot(to.0, SnapshotStatus::Finish);
        // The library would go on from the index of which it had requested a snapshot. The one sent
        // reaches further, and the log in between may be compacted by now, so the library would
        // request another snapshot. A receiver that has less after all rejects the next message and
        // names its last index.
        let last_index = self.last_index();
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(to.0)
            && progress.state == ProgressState::Probe
        {
            progress.next_idx = progress.next_idx.max(reached.min(last_index) + 1);
        }
    }

    /// Takes over a snapshot that `from` has sent, which reaches to `timestamp`. If it is of use,
    /// and this is its sender's term, [`Effects::install`] follows; otherwise returns false.
    pub fn restore(&mut self, from: NodeId, snapshot: SnapshotId, timestamp: Timestamp) -> bool {
        let SnapshotId { leader_term, index, term } = snapshot;
        let of_use = leader_term == self.term()
            && self.leader().is_none_or(|leader| leader == from)
            && self.role() != Role::Leader
            && self.needs_snapshot(index)
            // The state machine may be further on than is known, but not beyond what is committed;
            // and it stops at a snapshot that is older than its state.
            && timestamp >= self.timestamp_up_to(self.commit())
            // The library would drop entries of this log that may have been acknowledged.
            && (!self.store_lost || index >= self.last_index())
            && term <= leader_term
            && self.voter_eligibility.may_follow(leader_term)
            && self.pipeline.can_install();
        if !of_use {
            return false;
        }
        let voters: Vec<u64> = self.config.nodes.iter().map(|node| node.0).collect();
        let mut message = RaftPb { from: from.0, term: leader_term, ..RaftPb::default() };
        message.to = self.config.node.0;
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot_at(&voters, index, term));
        // An error only means that the message had no effect.
        let _ = self.raw.step(message);
        let taken = self.raw.snap().is_some();
        if taken {
            self.pipeline.expect_snapshot(snapshot, timestamp);
        }
        taken
    }

    /// Whether a snapshot that reaches to `index` is of use: it reaches beyond the local commit
    /// index, or exactly to it while the store is lost.
    pub fn needs_snapshot(&self, index: LogIndex) -> bool {
        index > self.commit() || (index == self.commit() && self.store_lost)
    }

    /// Whether a snapshot has replaced the log and not yet the store.
    pub fn is_installing(&self) -> bool {
        self.pipeline.is_installing()
    }

    /// The term of the entry at an index; `None` beyond the log's end, and before the entry that
    /// precedes its first.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.raw.raft.raft_log.term(index).ok().filter(|term| *term > 0)
    }

    /// Entries that a [`FetchRequest`](super::FetchRequest) asked for have been read from disk;
    /// none if that failed.
    pub fn fetched(&mut self, id: u64, entries: Vec<LogEntry>) {
        if let Some((low, context)) = self.fetches.take(id) {
            let failed = entries.is_empty();
            self.raw.mut_store().fetched(low, entries);
            // After a failure the follower's next heartbeat answer asks again; asking at once would
            // spin.
            if !failed {
                self.raw.on_entries_fetched(context);
            }
        }
    }

    /// Requests a read index under the number `request`. Returns false, and does nothing, if this
    /// server does not lead or has not committed an entry of its term yet: raft-rs would drop the
    /// request silently.
    pub fn read_index(&mut self, request: u64) -> bool {
        let can = self.role() == Role::Leader && self.raw.raft.commit_to_current_term();
        if can {
            self.raw.read_index(request.to_be_bytes().to_vec());
        }
        can
    }

    /// At the leader: sends `to` a REPLICATION that carries the commit index, also if there is no
    /// entry to send, unless `to` is known to be behind.
    pub fn send_commit_index(&mut self, to: NodeId) {
        if self.role() == Role::Leader && self.raw.raft.prs().get(to.0).is_some() {
            self.raw.raft.send_append(to.0);
        }
    }

    /// Begins a leadership transfer to `to`.
    pub fn transfer_leadership(&mut self, to: NodeId) {
        self.raw.transfer_leader(to.0);
    }

    /// Collects into `out` what is to be done after any of the calls above.
    pub fn advance(&mut self, out: &mut Effects) {
        if self.role() == Role::Leader && self.voter_eligibility.grant() {
            self.eligibility_unsaved = true;
        }
        let unsaved = std::mem::take(&mut self.eligibility_unsaved);
        out.became_eligible |= unsaved;
        self.pipeline.run(&mut self.raw, self.voter_eligibility.is_eligible(), unsaved, out);
        self.fetches.collect(self.raw.mut_store(), out);
        let (applied, commit, last) = (self.applied, self.commit(), self.last_index());
        assert!(
            applied <= commit && commit <= last,
            "applied {applied}, committed {commit}, last index {last}"
        );
    }

    /// The role of this server; a pre-candidate counts as a candidate.
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        }
    }

    /// The leader of the current term, as far as this server knows.
    pub fn leader(&self) -> Option<NodeId> {
        match self.raw.raft.leader_id {
            raft::INVALID_ID => None,
            id => Some(NodeId(id)),
        }
    }

    /// The current term: the greatest that this server has seen.
    pub fn term(&self) -> Term {
        self.raw.raft.term
    }

    /// The last index that is known to be committed.
    pub fn commit(&self) -> LogIndex {
        self.raw.raft.raft_log.committed
    }

    /// Finds the committed entry with this timestamp among those that are not applied, and returns
    /// its index and data. `timestamp_of` decodes an entry's timestamp. `None` also if the entry is
    /// not durable here, or not in memory.
    pub fn find_unapplied(
        &self,
        timestamp: Timestamp,
        timestamp_of: impl Fn(&[u8]) -> Option<Timestamp>,
    ) -> Option<(LogIndex, &Bytes)> {
        let log = &self.raw.raft.raft_log;
        // The entries that the library holds itself may be about to replace those of the store.
        let durable = log.committed.min(log.unstable.offset.saturating_sub(1));
        self.raw.store().find_unapplied(durable, timestamp, timestamp_of)
    }

    /// Bytes of the entries in memory: all that are not applied, and recent ones that are.
    pub fn bytes_in_memory(&self) -> usize {
        self.raw.store().tail_bytes()
    }

    /// Bytes of the entries that are not applied, committed or not.
    pub fn unapplied_bytes(&self) -> usize {
        self.raw.store().unapplied_bytes()
    }

    /// The last index of the log, whether or not it is durable.
    pub fn last_index(&self) -> LogIndex {
        self.raw.raft.raft_log.last_index()
    }

    /// At the leader: the last index that `server` is known to have stored durably; 0 for none.
    pub fn matched(&self, server: NodeId) -> LogIndex {
        self.raw.raft.prs().get(server.0).map_or(0, |progress| progress.matched)
    }
}
