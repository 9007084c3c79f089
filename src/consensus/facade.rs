//! The facade: everything the node core may know of consensus.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::{Entry, Message as RaftPb, MessageType};
use raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole};

use super::admission::Admission;
use super::convert::message_to_raft;
use super::guard::{self, Known, PeerFault, Verdict};
use super::log_store::{LogStore, snapshot_at};
use super::logging;
use super::ready::{Effects, Fetches, Pipeline};
use crate::limits::{self, NodeLimits};
use crate::types::{HardState, LogEntry, LogIndex, NodeId, SnapshotId, Term, Timestamp};
use crate::wire::message::{RaftBody, RaftMessage, Role};

/// How consensus is set up.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// This server.
    pub node: NodeId,
    /// The group, this server included.
    pub nodes: Vec<NodeId>,
    /// Who leads first when the group is blank.
    pub first_leader: NodeId,
    /// A fixed election time-out in ticks, for simulations; random when `None`.
    pub election_ticks: Option<usize>,
    /// Bounds of what is under way.
    pub limits: NodeLimits,
}

/// Why no leader can be elected although enough servers are up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLeader {
    /// The group has not begun, and who is to lead first has never been up.
    NotBegun {
        /// Who that is.
        first_leader: NodeId,
    },
    /// The group has not begun, no majority of its servers was told the same first leader, and not all are up.
    ToldDifferently {
        /// One of those named.
        one: NodeId,
        /// Another.
        another: NodeId,
        /// A server that is not up.
        missing: NodeId,
    },
    /// Too many data directories are blank, and what those held that were lost is not known.
    Blank {
        /// Servers that are up with a blank directory.
        blank: usize,
        /// Servers that are up with their own.
        full: usize,
        /// How many of the latter an election takes.
        needed: usize,
    },
}

impl NoLeader {
    /// What it means and what to do; `name` names a server.
    pub fn sentence(self, name: impl Fn(NodeId) -> String) -> String {
        match self {
            NoLeader::NotBegun { first_leader } => {
                let first = name(first_leader);
                format!(
                    "the group has not begun, because it begins with {first}, which has not been up: \
                     start that one, or start the others again with --leader naming one that is up"
                )
            }
            NoLeader::ToldDifferently { one, another, missing } => format!(
                "the group has not begun, because its servers were told different first leaders ({} \
                 and {}) and {} is not up: start every server, or start all again with the same --leader",
                name(one),
                name(another),
                name(missing)
            ),
            NoLeader::Blank { blank, full, needed } => format!(
                "no leader can be elected, because {blank} of the servers that are up have blank data \
                 directories, or lost what was in them, and {full} their own, of which {needed} are needed: \
                 start servers with the data directories that they had"
            ),
        }
    }
}

/// Why consensus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The recovered state contradicts itself.
    #[error("the recovered log is not consistent: {0}")]
    Inconsistent(String),
    /// The library refused its configuration.
    #[error("consensus cannot start: {0}")]
    Library(#[from] raft::Error),
}

/// What a log was found to hold.
#[derive(Clone, Debug, Default)]
pub struct RecoveredLog {
    /// The first index; 1 when the log reaches back to the beginning.
    pub first_index: LogIndex,
    /// The term of the entry just before the first one; 0 when there was none.
    pub previous_term: Term,
    /// Where each run of entries of one term begins: (index, term), in order, from the first index.
    pub term_runs: Vec<(LogIndex, Term)>,
    /// The last index; `first_index - 1` when there are no entries.
    pub last_index: LogIndex,
    /// Every entry that is not applied.
    pub entries: Vec<LogEntry>,
}

impl RecoveredLog {
    fn check(&self, commit: LogIndex, applied: LogIndex) -> Result<(), String> {
        let RecoveredLog { first_index, last_index, .. } = *self;
        if !(applied..=last_index).contains(&commit) {
            return Err(format!(
                "commit index {commit} is not between applied index {applied} and last index \
                 {last_index}"
            ));
        }
        if first_index == 0 || first_index > applied + 1 {
            return Err(format!("the log begins at {first_index}, {applied} is applied"));
        }
        let contiguous = self.entries.iter().zip(applied + 1..).all(|(e, index)| e.index == index);
        if !contiguous || applied + self.entries.len() as u64 != last_index {
            return Err(format!("entries {applied} to {last_index} are not all there"));
        }
        let runs_from = self.term_runs.first().map_or(last_index + 1, |(first, _)| *first);
        if runs_from != first_index {
            return Err(format!("terms are known from index {runs_from} on, not {first_index}"));
        }
        Ok(())
    }
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This server does not lead.
    #[error("this server does not lead")]
    NotLeader,
    /// The leadership is being handed over.
    #[error("the leadership is being handed over")]
    HandingOver,
    /// Too much is proposed and not committed.
    #[error("too many bytes are waiting to be committed")]
    Full,
}

/// What another server said of itself when the link to it came up.
#[derive(Clone, Copy, Debug)]
struct Greeting {
    /// Whom it was told leads first, if it was blank.
    told_first_leader: Option<NodeId>,
    /// Whether its log held no entry.
    log_is_empty: bool,
}

/// One server's consensus.
pub struct Consensus {
    raw: RawNode<LogStore>,
    config: ConsensusConfig,
    pipeline: Pipeline,
    fetches: Fetches,
    admission: Admission,
    /// The admission is to be made durable.
    admission_unsaved: bool,
    applied: LogIndex,
    /// The servers this one can send to, and what each said when its link came up.
    links: BTreeMap<NodeId, Greeting>,
    /// By how much others may raise this server's term now; see [`guard`].
    term_credit: u64,
    /// Whether this server may lead; see `node::eligibility`.
    may_lead: bool,
    /// The store is lost and waits for a snapshot. Log, term and vote are sound.
    store_lost: bool,
    /// This server had data and lost all of them.
    data_lost: bool,
}

impl Consensus {
    /// Starts on a recovered log, whose `entries` are all those after `applied`.
    pub fn new(
        config: ConsensusConfig,
        hard_state: HardState,
        log: RecoveredLog,
        applied: LogIndex,
    ) -> Result<Consensus, ConsensusError> {
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
            // The core says when: see `tell_commit`.
            skip_bcast_commit: true,
            max_uncommitted_size: config.limits.uncommitted_bytes_max,
            max_committed_size_per_ready: config.limits.apply_bytes_max,
            ..Config::default()
        };
        let store = LogStore::new(&config.nodes, hard_state, log, applied, config.limits);
        let raw = RawNode::new(&library, store, &logging::logger())?;
        let admission = Admission::new(hard_state.admitted, config.nodes.len());
        Ok(Consensus {
            raw,
            config,
            pipeline: Pipeline::new(log_is_empty, hard_state),
            fetches: Fetches::default(),
            admission,
            admission_unsaved: false,
            applied,
            links: BTreeMap::new(),
            term_credit: limits::TERM_CREDIT_AT_START,
            may_lead: true,
            store_lost: false,
            data_lost: false,
        })
    }

    /// One tick of the election clock.
    pub fn tick(&mut self) {
        self.term_credit = self.term_credit.saturating_add(limits::TERM_CREDIT_PER_TICK);
        let campaigns = self.may_campaign() && !self.vote_comes_late();
        if self.role() == Role::Leader || campaigns {
            self.raw.tick();
        } else {
            // Time passes all the same: as long as the library takes a leader for alive, by this count, it grants
            // nobody else a vote.
            self.raw.raft.election_elapsed += 1;
        }
        self.request_snapshot();
    }

    /// Says that this server is blank because it lost what it had: the group was born long ago.
    pub fn set_data_lost(&mut self) {
        self.data_lost = true;
    }

    /// Says whether this server's store is lost, so that it needs a snapshot though its log is whole.
    pub fn set_store_lost(&mut self, lost: bool) {
        self.store_lost = lost;
    }

    /// Asks the leader for a snapshot, if the store is lost and it has not been asked in this term. The
    /// library repeats the question with every answer to the leader, and stores and acknowledges nothing meanwhile. So
    /// the question waits until all that is stored here is committed: otherwise a leader that needs this server's
    /// acknowledgement to commit up to where the snapshot must reach could never send one.
    fn request_snapshot(&mut self) {
        let possible = self.is_log_long_enough()
            && self.raw.raft.pending_request_snapshot == raft::INVALID_INDEX
            && self.commit() == self.last_index();
        if possible {
            let _ = self.raw.request_snapshot();
        }
    }

    /// Whether the store is lost and the log reaches into the leader's term, which the library demands of a server that
    /// asks for a snapshot. No further entries are stored then, so that the commit index reaches the end of the log.
    fn is_log_long_enough(&self) -> bool {
        self.store_lost
            && !self.pipeline.is_installing()
            && self.leader().is_some()
            && self.role() == Role::Follower
            && self.term_at(self.last_index()) == Some(self.term())
    }

    /// Committed entries up to `index` were handed out and are not applied, because the store is lost and the snapshot
    /// that it waits for holds them.
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

    /// Whether this server may lead. One that may not neither campaigns nor takes a leadership over; one that leads
    /// goes on until it is told to hand over or to step down.
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

    /// Whether a transfer of the leadership is under way; the library gives it up after an election time-out.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// At the group's birth, the named leader asks for votes without waiting for a time-out.
    pub fn campaign_if_first(&mut self) {
        let newborn = !self.admission.is_admitted() && self.may_campaign();
        if newborn && self.role() == Role::Follower && self.leader().is_none() {
            self.campaign();
        }
    }

    /// A server that has campaigned in vain does it once more, without waiting for a time-out. False: it campaigns since
    /// less than `ticks`, so it may be about to win; in another term nobody would count the votes that are on their way.
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

    /// Admitted servers campaign; of the others only the named leader of a group that was never
    /// born, which it knows by its empty log.
    fn may_campaign(&self) -> bool {
        // The library looks at entries that are not applied, and panics where a snapshot has taken
        // their place and is not applied yet.
        if self.pipeline.is_installing() || !self.may_lead {
            return false;
        }
        self.admission.is_admitted()
            || (!self.data_lost
                && self.is_founder()
                && self.last_index() == 0
                && (self.admission.is_newborn(self.last_term_asked_for())
                    || self.nobody_has_entries()))
    }

    /// Whether every other server has said since this one started that its log is empty, and none has said a later
    /// term than this one's. Then no entry was ever acknowledged, or two directories have lost it; and a
    /// vote that this server may have forgotten was for no later term than those it asks for. A founder needs this when
    /// somebody that it had admitted with its question for votes has asked for votes itself, in a term that
    /// the founder then does not remember asking for: nobody else can be elected, since the blank ones vote for the
    /// founder alone.
    fn nobody_has_entries(&self) -> bool {
        self.links.len() + 1 == self.config.nodes.len()
            && self.links.values().all(|greeting| greeting.log_is_empty)
            && self.admission.is_newborn(self.term())
    }

    /// Whether a vote of this server would wait behind one that its disk has not taken in yet. At the group's birth
    /// that does not matter: all logs are alike, and the one that is to lead first asks until it does.
    fn vote_comes_late(&self) -> bool {
        self.last_index() > 0 && self.pipeline.owes_a_vote()
    }

    /// Who has asked for votes before was the founder then, and is for ever.
    fn is_founder(&self) -> bool {
        self.last_term_asked_for() > 0 || self.first_leader() == Some(self.config.node)
    }

    /// The term in which this server last asked for votes; 0 when it does not remember any.
    fn last_term_asked_for(&self) -> Term {
        if self.raw.raft.vote == self.config.node.0 { self.term() } else { 0 }
    }

    /// Who founds a group that is blank: the one that a majority of its servers was told; if there is none, and every
    /// server is up and blank, the lowest of those named. That is the same server whoever is up, so that nobody else
    /// ever has: see `admission`.
    fn first_leader(&self) -> Option<NodeId> {
        let names = self.names();
        let told_by = |name: NodeId| names.iter().filter(|told| **told == name).count();
        let agreed = names.iter().find(|name| told_by(**name) > self.config.nodes.len() / 2);
        let all_are_blank = names.len() == self.config.nodes.len();
        agreed.or(names.iter().min().filter(|_| all_are_blank)).copied()
    }

    /// Whom each of the servers that are up and blank was told, this one first.
    fn names(&self) -> Vec<NodeId> {
        let others = self.links.values().filter_map(|greeting| greeting.told_first_leader);
        self.told_first_leader().into_iter().chain(others).collect()
    }

    /// Whom this server was told leads first, as long as it has not taken part in the group or stored anything.
    pub fn told_first_leader(&self) -> Option<NodeId> {
        let is_blank = !self.admission.is_admitted() || self.last_index() == 0;
        is_blank.then_some(self.config.first_leader)
    }

    /// Why no leader can be elected although enough servers are up, if that is so.
    pub fn no_leader(&self) -> Option<NoLeader> {
        let needed = self.config.nodes.len() / 2 + 1;
        let up = self.links.len() + 1;
        if self.leader().is_some() || up < needed {
            return None;
        }
        let names = self.names();
        let is_up = |node: &NodeId| *node == self.config.node || self.links.contains_key(node);
        match (up - names.len(), self.first_leader()) {
            (full, _) if self.data_lost && full < needed => {
                Some(NoLeader::Blank { blank: names.len(), full, needed })
            }
            (0, Some(first)) if is_up(&first) => None,
            (0, Some(first_leader)) => Some(NoLeader::NotBegun { first_leader }),
            (0, None) => {
                let missing = self.config.nodes.iter().copied().find(|node| !is_up(node))?;
                match (names.iter().min(), names.iter().max()) {
                    (Some(&one), Some(&another)) if one != another => {
                        Some(NoLeader::ToldDifferently { one, another, missing })
                    }
                    _ => None,
                }
            }
            (full, _) if full < needed => {
                Some(NoLeader::Blank { blank: names.len(), full, needed })
            }
            _ => None,
        }
    }

    /// Whether a server that is not admitted may still grant this vote.
    fn is_birth(&self, message: &RaftMessage) -> bool {
        !self.data_lost
            && matches!(&message.body, RaftBody::Vote { last_index: 0, .. })
            // Links may not all be up yet, and who asks has seen to the rest.
            && (message.from == self.config.first_leader
                || self.first_leader() == Some(message.from))
            && self.last_index() == 0
    }

    /// Takes in a message that came on `link`'s connection.
    pub fn step(&mut self, link: NodeId, message: RaftMessage) -> Result<(), PeerFault> {
        let log = &self.raw.raft.raft_log;
        let known = Known {
            me: self.config.node,
            term: self.term(),
            term_credit: self.term_credit,
            role: self.role(),
            is_rehearsing: self.raw.raft.state == StateRole::PreCandidate,
            leader: self.leader(),
            commit: self.commit(),
            last_index: self.last_index(),
            term_at: &|index| log.term(index).ok().filter(|term| *term > 0),
            all_durable: self.pipeline.is_idle(),
        };
        let Verdict::Step(mut message) = guard::check(&known, link, message)? else {
            return Ok(());
        };
        // Rehearsals carry the term asked for, which their sender does not have.
        let rehearsal = matches!(
            message.body,
            RaftBody::Vote { pre: true, .. } | RaftBody::VoteReply { pre: true, .. }
        );
        // A rehearsal asks whether a vote would be granted, and one that waits for a slow disk comes too late, or never.
        // Granted all the same, it would let a server whose log is too old win one rehearsal after the other: each
        // raises the term, and keeps those that could win the election from asking.
        if matches!(message.body, RaftBody::Vote { pre: true, .. }) && self.vote_comes_late() {
            return Ok(());
        }
        if !rehearsal {
            self.admission.heard(link, message.term);
        }
        let is_vote = matches!(message.body, RaftBody::Vote { .. });
        if is_vote && !self.admission.is_admitted() && !self.is_birth(&message) {
            return Ok(());
        }
        let from_leader = matches!(
            message.body,
            RaftBody::Append { .. } | RaftBody::Heartbeat { .. } | RaftBody::TimeoutNow
        );
        if from_leader && !self.admission.may_follow(message.term) {
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
        if message.term > self.term() && !rehearsal {
            // The library would ask the next leader for a snapshot before it has stored anything of its term, which
            // that leader may need to commit up to there.
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
        // Errors only say that the message was of no use.
        let _ = self.raw.step(message_to_raft(message));
        // The guard has seen to it that the credit suffices.
        self.term_credit = self.term_credit.saturating_sub(self.term() - term_before);

        // raft-rs 0.7.0 may let a follower's next index fall to its match index (fixed upstream as
        // number 557), after which it would send what is there already, for ever.
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(link.0)
            && progress.next_idx <= progress.matched
        {
            progress.next_idx = progress.matched + 1;
        }
        let born = is_real_vote && self.raw.raft.vote == link.0 && self.admission.admit();
        let caught_up = followed.is_some_and(|(term, commit)| {
            term == self.raw.raft.term
                && self.admission.followed(term, commit, self.decided_in(term))
        });
        self.admission_unsaved |= born || caught_up;
        Ok(())
    }

    /// Whether entries are to be dropped, so that memory is bounded. What is committed goes away by itself. What is
    /// not may need more entries to be committed, so it is dropped only where no correct leader comes:
    /// each stops proposing when it holds [`limits::UNAPPLIED_BYTES_MAX`] itself.
    fn has_no_room(&mut self) -> bool {
        let max = self.config.limits.unapplied_bytes_max;
        let commit = self.commit();
        let store = self.raw.mut_store();
        store.committed_bytes(commit) > max
            || store.unapplied_bytes() > 2 * max + limits::PEER_FRAME_BYTES_MAX
    }

    /// The commit index, if the entry there is of this term.
    fn decided_in(&self, term: Term) -> Option<LogIndex> {
        let commit = self.commit();
        (self.term_at(commit) == Some(term)).then_some(commit)
    }

    /// At the leader: a server lacks what was acknowledged in its name. Answers of one server come in
    /// order, so somebody has lied, and what it has is found out anew; the library would take the
    /// refusal for an old one and never send what is missing.
    fn contradicts_acknowledgement(&mut self, message: &RaftMessage) -> bool {
        // Who asks for a snapshot has lost its store, not its log.
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

    /// The link to a peer is up; see [`Input::PeerUp`](crate::node::Input::PeerUp).
    pub fn peer_up(
        &mut self,
        peer: NodeId,
        last_index: LogIndex,
        term: Term,
        first_leader: Option<NodeId>,
    ) {
        let log_is_empty = last_index == 0;
        self.links.insert(peer, Greeting { told_first_leader: first_leader, log_is_empty });
        self.admission.heard(peer, term);
        if self.role() != Role::Leader {
            return;
        }
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer.0)
            && last_index < progress.matched
        {
            // It lost its data directory: what it acknowledged before counts no more.
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = last_index + 1;
        }
    }

    /// The link to a peer broke: what was sent last may be lost.
    pub fn peer_down(&mut self, peer: NodeId) {
        self.links.remove(&peer);
        if self.role() == Role::Leader {
            self.raw.report_unreachable(peer.0);
        }
    }

    /// Proposes entries, all or none. Returns the index of the first; the others follow it.
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
        // The library panics on an empty proposal; for us it is one that needs nothing.
        if proposal.entries.is_empty() {
            return Ok(first);
        }
        self.raw.step(proposal).map_err(|_| ProposeError::Full)?;
        Ok(first)
    }

    /// Batches up to `number` are durable.
    pub fn persisted(&mut self, number: u64, out: &mut Effects) {
        self.pipeline.durable(&mut self.raw, number, out);
    }

    /// The state machine has applied up to `index`, which was handed out before.
    pub fn applied(&mut self, index: LogIndex) {
        // A snapshot for a lost store may be of the very point that was applied before.
        self.pipeline.installed(index);
        self.advance_applied(index);
    }

    /// The log before `first_index` is gone.
    pub fn compacted(&mut self, first_index: LogIndex) {
        self.raw.mut_store().compact(first_index);
    }

    /// A snapshot asked for by [`Effects::snapshots`] is in place at `to`, whose log begins after the index it
    /// reaches to; or (`None`) will not be.
    pub fn snapshot_sent(&mut self, to: NodeId, reached: Option<LogIndex>) {
        let Some(reached) = reached else {
            return self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
        };
        self.raw.report_snapshot(to.0, SnapshotStatus::Finish);
        // The library goes on from the index it had asked a snapshot of. The one sent is of a later one, and the log
        // in between may be cut by now, for which the library would ask for another snapshot. A receiver
        // that has less after all rejects the next message, and says what it has.
        let last_index = self.last_index();
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(to.0)
            && progress.state == ProgressState::Probe
        {
            progress.next_idx = progress.next_idx.max(reached.min(last_index) + 1);
        }
    }

    /// Takes over a snapshot that `from` has sent. When it is of use, and this is its sender's term,
    /// [`Effects::install`] follows; otherwise the answer is `false`.
    pub fn restore(&mut self, from: NodeId, snapshot: SnapshotId) -> bool {
        let SnapshotId { leader_term, index, term } = snapshot;
        let of_use = leader_term == self.term()
            && self.leader().is_none_or(|leader| leader == from)
            && self.role() != Role::Leader
            && self.needs_snapshot(index)
            // What is stored here may have been acknowledged; the library would drop it.
            && (!self.store_lost || index >= self.last_index())
            && term <= leader_term
            && self.admission.may_follow(leader_term)
            && self.pipeline.can_install();
        if !of_use {
            return false;
        }
        let voters: Vec<u64> = self.config.nodes.iter().map(|node| node.0).collect();
        let mut message = RaftPb { from: from.0, term: leader_term, ..RaftPb::default() };
        message.to = self.config.node.0;
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot_at(&voters, index, term));
        // An error only says that the message was of no use.
        let _ = self.raw.step(message);
        let taken = self.raw.snap().is_some();
        if taken {
            self.pipeline.expect_snapshot(snapshot);
        }
        taken
    }

    /// Whether a snapshot that reaches to `index` is of use: it has more than is committed here, or as
    /// much while the store is lost.
    pub fn needs_snapshot(&self, index: LogIndex) -> bool {
        index > self.commit() || (index == self.commit() && self.store_lost)
    }

    /// Whether a snapshot has taken the log's place and not yet the store's.
    pub fn is_installing(&self) -> bool {
        self.pipeline.is_installing()
    }

    /// The term at an index, as far as it is known.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.raw.raft.raft_log.term(index).ok().filter(|term| *term > 0)
    }

    /// Entries asked for by a [`FetchRequest`](super::FetchRequest) have been read, or not (empty).
    pub fn fetched(&mut self, id: u64, entries: Vec<LogEntry>) {
        if let Some((low, context)) = self.fetches.take(id) {
            let failed = entries.is_empty();
            self.raw.mut_store().fetched(low, entries);
            // After a failure the follower's next heartbeat asks again; asking at once would spin.
            if !failed {
                self.raw.on_entries_fetched(context);
            }
        }
    }

    /// Asks for a read index under the name `round`; at the leader, once it can be given. Returns
    /// whether the question was taken.
    pub fn read_index(&mut self, round: u64) -> bool {
        let can = self.role() == Role::Leader && self.raw.raft.commit_to_current_term();
        if can {
            self.raw.read_index(round.to_be_bytes().to_vec());
        }
        can
    }

    /// At the leader: sends `to` a REPLICATION with the commit index, even if there is nothing else to
    /// send, unless it is known to be behind.
    pub fn tell_commit(&mut self, to: NodeId) {
        if self.role() == Role::Leader && self.raw.raft.prs().get(to.0).is_some() {
            self.raw.raft.send_append(to.0);
        }
    }

    /// Starts to hand the leadership over to `to`.
    pub fn transfer_leadership(&mut self, to: NodeId) {
        self.raw.transfer_leader(to.0);
    }

    /// Collects what is to be done after any of the calls above.
    pub fn advance(&mut self, out: &mut Effects) {
        if self.role() == Role::Leader && self.admission.admit() {
            self.admission_unsaved = true;
        }
        let unsaved = std::mem::take(&mut self.admission_unsaved);
        out.admitted |= unsaved;
        self.pipeline.run(&mut self.raw, self.admission.is_admitted(), unsaved, out);
        self.fetches.collect(self.raw.mut_store(), out);
    }

    /// This server's part.
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        }
    }

    /// The leader this server knows of.
    pub fn leader(&self) -> Option<NodeId> {
        match self.raw.raft.leader_id {
            raft::INVALID_ID => None,
            id => Some(NodeId(id)),
        }
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.raw.raft.term
    }

    /// The last index known committed.
    pub fn commit(&self) -> LogIndex {
        self.raw.raft.raft_log.committed
    }

    /// The data of the committed entry of `timestamp`, which is not applied yet; `timestamp_of` says what an entry's
    /// is. `None` also where it is not durable here, or not in memory.
    pub fn find_unapplied(
        &self,
        timestamp: Timestamp,
        timestamp_of: impl Fn(&[u8]) -> Option<Timestamp>,
    ) -> Option<(LogIndex, &Bytes)> {
        let log = &self.raw.raft.raft_log;
        // What the library holds itself may be about to replace what the store has.
        let sure = log.committed.min(log.unstable.offset.saturating_sub(1));
        self.raw.store().find_unapplied(sure, timestamp, timestamp_of)
    }

    /// Bytes of entries in memory: those that are not applied, and some that are.
    pub fn bytes_in_memory(&self) -> usize {
        self.raw.store().tail_bytes()
    }

    /// Bytes of entries that are not applied, committed or not.
    pub fn unapplied_bytes(&self) -> usize {
        self.raw.store().unapplied_bytes()
    }

    /// The last index of the log, durable or not.
    pub fn last_index(&self) -> LogIndex {
        self.raw.raft.raft_log.last_index()
    }

    /// At the leader: the last index that `peer` is known to have stored durably.
    pub fn matched(&self, peer: NodeId) -> LogIndex {
        self.raw.raft.prs().get(peer.0).map_or(0, |progress| progress.matched)
    }
}
