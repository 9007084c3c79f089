//! Turns raft-rs's `Ready` into effects for the core, in the order that durability demands.
//!
//! raft-rs hands out numbered `Ready`s: entries to store, messages to send, and entries to apply.
//! The rules of its asynchronous interface:
//! - `Storage` holds the entries before `advance_append_async` is called;
//! - a leader's messages are sent at once, so that its disk and the followers' disks work in
//!   parallel;
//! - the messages of other servers wait until their `Ready`, and every one before it, is durable;
//! - `Ready`s become durable in order.
//!
//! Three additions:
//! - A message that depends on nothing durable does not wait ([`depends_on_durability`]). If a
//!   follower's answer to a heartbeat waited for its disk, slow disks at the followers would depose
//!   a healthy leader.
//! - The hard state is written with every batch that has to be written anyway, so a change of the
//!   commit index alone costs no write.
//! - A leader whose log was empty holds its first messages back like a follower. The bootstrap rule
//!   of [`super::voter_eligibility`] relies on that.

use std::collections::VecDeque;

use raft::eraftpb::{Message as RaftPb, MessageType};
use raft::{GetEntriesContext, RawNode};

use super::convert::{entry_from_raft, message_from_raft};
use super::log_store::LogStore;
use crate::model::{HardState, LogBatch, LogEntry, LogIndex, NodeId, SnapshotId, Term, Timestamp};
use crate::wire::message::RaftMessage;

/// What is to be done for consensus, in the order of the fields.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages to send now.
    pub messages: Vec<RaftMessage>,
    /// Batches to make durable, in order; each is reported to
    /// [`Consensus::persisted`](super::Consensus::persisted).
    pub batches: Vec<LogBatch>,
    /// Entries that are committed, and durable here, to apply in order.
    pub committed: Vec<LogEntry>,
    /// Read-index requests that are confirmed: the number of the request, and the index to have
    /// applied before reading.
    pub reads: Vec<(u64, LogIndex)>,
    /// Entries to read from disk for followers that are behind.
    pub fetches: Vec<FetchRequest>,
    /// Servers that the log does not reach back to: each is to get a snapshot, from the leader of
    /// this term.
    pub snapshots: Vec<(NodeId, Term)>,
    /// A snapshot that is to replace the log and the store.
    pub install: Option<InstallRequest>,
    /// This server has just become an eligible voter.
    pub became_eligible: bool,
}

/// A snapshot that consensus has accepted. It comes between the batches with lower and higher
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallRequest {
    /// Sequence number, shared with [`LogBatch::number`], so that completions are reported in one
    /// order.
    pub number: u64,
    /// The snapshot, by its index, its term and the term of its sender.
    pub snapshot: SnapshotId,
    /// The hard state to make durable together with the snapshot.
    pub hard_state: HardState,
}

/// A request to read entries from disk for a follower that is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// The number of the request, to be given to [`Consensus::fetched`](super::Consensus::fetched).
    pub id: u64,
    /// The first index wanted.
    pub low: LogIndex,
    /// The index after the last one wanted.
    pub high: LogIndex,
}

/// A `Ready` that is not durable yet.
struct UnpersistedReady {
    /// The number of the batch with which it becomes durable.
    batch: u64,
    /// raft-rs's number of the `Ready`.
    ready: u64,
    /// The messages that wait until it is durable.
    messages: Vec<RaftPb>,
}

/// The `Ready`s that are not durable yet, and the numbers of the batches that were handed out for
/// them.
pub(super) struct Pipeline {
    /// In the order of their numbers, the oldest first.
    unpersisted: VecDeque<UnpersistedReady>,
    last_batch: u64,
    last_durable_batch: u64,
    /// The term and the vote that were handed out last, and the batch that they came with.
    last_vote: (Term, Option<NodeId>),
    last_vote_batch: u64,
    first_entry: FirstEntry,
    /// A snapshot that the library has accepted and no `Ready` has carried yet, and the timestamp
    /// that it reaches to.
    expected: Option<(SnapshotId, Timestamp)>,
    /// The last index that was handed out for application, in an entry or a snapshot.
    last_handed_out: LogIndex,
    /// The index of a snapshot that was handed out and is not applied yet.
    installing: Option<LogIndex>,
}

/// Where the first entry of the log is. Until it is durable a leader holds its messages back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FirstEntry {
    None,
    In { batch: u64 },
    Durable,
}

impl Pipeline {
    /// Starts with what is durable; `log_is_empty` says whether any entry is.
    pub fn new(log_is_empty: bool, durable: HardState, applied: LogIndex) -> Pipeline {
        Pipeline {
            unpersisted: VecDeque::new(),
            last_batch: 0,
            last_durable_batch: 0,
            last_vote: (durable.term, durable.vote),
            last_vote_batch: 0,
            first_entry: if log_is_empty { FirstEntry::None } else { FirstEntry::Durable },
            expected: None,
            last_handed_out: applied,
            installing: None,
        }
    }

    /// Whether a snapshot may be accepted now: one at a time is installed.
    pub fn can_install(&self) -> bool {
        self.expected.is_none() && self.installing.is_none()
    }

    /// The library has accepted this snapshot, which reaches to `timestamp`.
    pub fn expect_snapshot(&mut self, snapshot: SnapshotId, timestamp: Timestamp) {
        assert!(self.can_install(), "two snapshots are accepted at once, the second {snapshot:?}");
        self.expected = Some((snapshot, timestamp));
    }

    /// The timestamp of a snapshot that is to replace the log with the next `Ready`.
    pub fn expected_timestamp(&self) -> Option<Timestamp> {
        self.expected.map(|(_, timestamp)| timestamp)
    }

    /// Whether a snapshot has replaced entries of the log and is not applied yet.
    pub fn is_installing(&self) -> bool {
        !self.can_install()
    }

    /// The state machine has applied up to `applied`.
    pub fn installed(&mut self, applied: LogIndex) {
        assert!(
            applied <= self.last_handed_out,
            "index {applied} is reported applied, and {} was the last handed out",
            self.last_handed_out
        );
        if self.installing.is_some_and(|index| index <= applied) {
            self.installing = None;
        }
    }

    /// Whether everything that this server has stored and voted is durable, what the library has
    /// not handed out yet included: several messages may be stepped before it is asked.
    pub fn is_all_durable(&self, raw: &RawNode<LogStore>) -> bool {
        let (log, state) = (&raw.raft.raft_log, raw.raft.hard_state());
        self.is_idle()
            && log.unstable.entries.is_empty()
            && log.unstable.snapshot.is_none()
            && self.last_vote == (state.term, NodeId::from_number(state.vote))
    }

    /// Whether everything handed out so far is durable.
    fn is_idle(&self) -> bool {
        self.unpersisted.is_empty() && self.last_durable_batch == self.last_batch
    }

    /// Whether a term or a vote is not durable yet. Until it is, this server sends no further vote.
    pub fn has_undurable_vote(&self) -> bool {
        self.last_vote_batch > self.last_durable_batch
    }

    /// Turns every `Ready` that the library has into effects. `eligible` is stored with the hard
    /// state, which the library does not know it of; `force_write` makes a batch even if the
    /// library needs none.
    pub fn run(
        &mut self,
        raw: &mut RawNode<LogStore>,
        eligible: bool,
        mut force_write: bool,
        out: &mut Effects,
    ) {
        while raw.has_ready() {
            let mut ready = raw.ready();
            out.reads.extend(ready.take_read_states().into_iter().filter_map(|state| {
                let request = <[u8; 8]>::try_from(state.request_ctx.as_slice()).ok()?;
                Some((u64::from_be_bytes(request), state.index))
            }));
            let committed = ready.take_committed_entries();
            if let (Some(first), Some(last)) = (committed.first(), committed.last()) {
                assert_eq!(
                    first.index,
                    self.last_handed_out + 1,
                    "entries {} to {} are handed out for application",
                    first.index,
                    last.index
                );
                self.last_handed_out = last.index;
            }
            out.committed.extend(committed.into_iter().map(entry_from_raft));

            let mut immediate = ready.take_messages();
            immediate.retain(|message| {
                let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
                if is_snapshot {
                    out.snapshots.push((NodeId(message.to), message.term));
                }
                !is_snapshot
            });
            let mut held = ready.take_persisted_messages();
            if self.first_entry != FirstEntry::Durable {
                held.append(&mut immediate);
            }
            let (held, independent): (Vec<_>, Vec<_>) =
                held.into_iter().partition(depends_on_durability);
            let at_once = immediate.into_iter().chain(independent);
            out.messages.extend(at_once.filter_map(message_from_raft));

            if !ready.snapshot().is_empty() {
                let index = ready.snapshot().get_metadata().index;
                let Some((snapshot, timestamp)) =
                    self.expected.take_if(|(expected, _)| expected.index == index)
                else {
                    panic!("a snapshot of index {index} was not accepted here");
                };
                raw.mut_store().restore(snapshot.index, snapshot.term, timestamp);
                self.installing = Some(snapshot.index);
                self.last_handed_out = snapshot.index;
                let (number, hard_state) = self.next_batch(raw, eligible);
                assert!(out.install.is_none(), "two snapshots are installed at once: {out:?}");
                out.install = Some(InstallRequest { number, snapshot, hard_state });
                self.first_entry = FirstEntry::Durable;
                force_write = false;
            }
            let entries = ready.take_entries();
            raw.mut_store().append(&entries);
            let number = ready.number();
            // An install request carries the hard state of its `Ready` itself.
            let must_write =
                ready.must_sync() && (ready.snapshot().is_empty() || !entries.is_empty());
            if must_write {
                out.batches.push(self.batch(raw, eligible, entries));
                force_write = false;
            }
            raw.advance_append_async(ready);

            if self.is_idle() {
                out.messages.extend(held.into_iter().filter_map(message_from_raft));
                raw.on_persist_ready(number);
            } else {
                self.unpersisted.push_back(UnpersistedReady {
                    batch: self.last_batch,
                    ready: number,
                    messages: held,
                });
            }
        }
        if force_write {
            out.batches.push(self.batch(raw, eligible, Vec::new()));
        }
    }

    /// Begins the next batch: its number, and the hard state to make durable with it.
    fn next_batch(&mut self, raw: &mut RawNode<LogStore>, eligible: bool) -> (u64, HardState) {
        let state = raw.raft.hard_state();
        let (term, vote) = self.last_vote;
        let new_vote = NodeId::from_number(state.vote);
        assert!(
            state.term > term || state.term == term && (new_vote == vote || vote.is_none()),
            "the hard state goes back: term {term} and vote {vote:?}, then {state:?}"
        );
        let hard_state = HardState {
            term: state.term,
            vote: new_vote,
            commit: state.commit,
            admitted: eligible,
        };
        raw.mut_store().set_hard_state(hard_state);
        self.last_batch += 1;
        if self.last_vote != (state.term, new_vote) {
            self.last_vote = (state.term, new_vote);
            self.last_vote_batch = self.last_batch;
        }
        (self.last_batch, hard_state)
    }

    fn batch(
        &mut self,
        raw: &mut RawNode<LogStore>,
        eligible: bool,
        entries: Vec<raft::eraftpb::Entry>,
    ) -> LogBatch {
        let (number, hard_state) = self.next_batch(raw, eligible);
        if self.first_entry == FirstEntry::None && !entries.is_empty() {
            self.first_entry = FirstEntry::In { batch: number };
        }
        LogBatch {
            number,
            hard_state: Some(hard_state),
            entries: entries.into_iter().map(entry_from_raft).collect(),
        }
    }

    /// The batches up to `number` are durable: the messages that waited for them are sent.
    pub fn durable(&mut self, raw: &mut RawNode<LogStore>, number: u64, out: &mut Effects) {
        assert!(
            number <= self.last_batch,
            "batch {number} is reported durable, and {} was the last one",
            self.last_batch
        );
        self.last_durable_batch = self.last_durable_batch.max(number);
        if matches!(self.first_entry, FirstEntry::In { batch } if batch <= self.last_durable_batch)
        {
            self.first_entry = FirstEntry::Durable;
        }
        let mut last_ready = None;
        while let Some(durable) =
            self.unpersisted.pop_front_if(|ready| ready.batch <= self.last_durable_batch)
        {
            out.messages.extend(durable.messages.into_iter().filter_map(message_from_raft));
            last_ready = Some(durable.ready);
        }
        if let Some(ready) = last_ready {
            raw.on_persist_ready(ready);
        }
    }
}

/// Whether a message of a server that does not lead (or whose log is empty) is a promise that must
/// survive a crash, so that it may be sent only when the state behind it is durable. By kind:
///
/// - a vote that is granted, and the request for one, which is a vote for oneself: "I give this
///   term's vote to no other server". A promise; the request also names a log that the sender
///   claims to have;
/// - a REPLICATION_OK: "I have stored the log up to this index". A promise, but for a refusal,
///   which only helps the leader to find where the logs part, and for index 0, which a server of a
///   later term answers to a deposed leader;
/// - a vote that is refused, and all messages of pre-votes: no promise;
/// - an answer to a heartbeat: "at this moment I follow you". Linearizable reads count it, and
///   rightly: a server that had helped to elect a later leader *before* would know, because its
///   vote was durable before it was sent; if it forgets this term and helps to elect one
///   *afterwards*, the read began before that. That its sender is there is true as well, however
///   slow its disk is;
/// - a heartbeat of the founder, which holds its entries back: no promise.
///
/// All other kinds wait.
fn depends_on_durability(message: &RaftPb) -> bool {
    match message.get_msg_type() {
        MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => false,
        MessageType::MsgRequestVoteResponse => !message.reject,
        MessageType::MsgAppendResponse => !message.reject && message.index > 0,
        _ => true,
    }
}

/// The fetches under way: their numbers, and the contexts by which the library learns that they are
/// done.
#[derive(Default)]
pub(super) struct Fetches {
    next_id: u64,
    waiting: Vec<(u64, LogIndex, GetEntriesContext)>,
}

impl Fetches {
    /// Turns the fetches that the log store has noted into requests.
    pub fn collect(&mut self, store: &mut LogStore, out: &mut Effects) {
        for wanted in store.take_wanted_fetches() {
            self.next_id += 1;
            self.waiting.push((self.next_id, wanted.low, wanted.context));
            out.fetches.push(FetchRequest { id: self.next_id, low: wanted.low, high: wanted.high });
        }
    }

    /// Removes a fetch that is done; returns its first index and the library's context.
    pub fn take(&mut self, id: u64) -> Option<(LogIndex, GetEntriesContext)> {
        let at = self.waiting.iter().position(|(waiting, ..)| *waiting == id)?;
        let (_, low, context) = self.waiting.swap_remove(at);
        Some((low, context))
    }
}
