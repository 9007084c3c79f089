//! From the library's `Ready` to ordered effects.
//!
//! The library hands out, in numbered steps, entries to store, messages to send and entries to
//! apply. The rules, from its asynchronous interface:
//! - `Storage` sees the entries before the step is acknowledged to the library;
//! - a leader's messages go at once, so that its own disk and the followers' work side by side;
//! - everybody else's messages wait until their step, and every step before it, is durable;
//! - steps become durable in order.
//!
//! Three additions. A message that promises nothing durable does not wait ([`promises`]): were a follower's answer to a
//! heartbeat to wait for its disk, slow disks at the followers would depose a leader that is well. The hard state travels with every batch that has to be written anyway, so a mere
//! change of the commit index never costs a write. And a leader whose log was empty keeps its first
//! messages back like anybody else: [`super::admission`] rests on that.

use std::collections::VecDeque;

use raft::eraftpb::{Message as RaftPb, MessageType};
use raft::{GetEntriesContext, RawNode};

use super::convert::{entry_from_raft, message_from_raft};
use super::log_store::LogStore;
use crate::types::{HardState, LogBatch, LogEntry, LogIndex, NodeId, SnapshotId, Term};
use crate::wire::message::RaftMessage;

/// What consensus wants done, in the order of the fields.
#[derive(Debug, Default)]
pub struct Effects {
    /// To send now.
    pub messages: Vec<RaftMessage>,
    /// To make durable, in order.
    pub batches: Vec<LogBatch>,
    /// Committed and durable here: to apply, in order.
    pub committed: Vec<LogEntry>,
    /// Read rounds that are confirmed: (round, index to have applied).
    pub reads: Vec<(u64, LogIndex)>,
    /// Entries wanted from disk.
    pub fetches: Vec<FetchRequest>,
    /// Servers that are too far behind for the log: each is to get a snapshot, from this term's
    /// leader.
    pub snapshots: Vec<(NodeId, Term)>,
    /// A snapshot that is to take the place of log and store.
    pub install: Option<InstallRequest>,
    /// This server is newly admitted to elections.
    pub admitted: bool,
}

/// A snapshot taken over by consensus. It stands between the batches numbered below and above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallRequest {
    /// Numbered like a batch, and reported durable like one.
    pub number: u64,
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// To be made durable with it.
    pub hard_state: HardState,
}

/// Entries wanted from disk for a follower that is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// Names the request.
    pub id: u64,
    /// First index.
    pub low: LogIndex,
    /// One past the last.
    pub high: LogIndex,
}

/// A step that is not durable yet.
struct Step {
    /// The batch with which it becomes durable.
    batch: u64,
    /// The library's number.
    ready: u64,
    messages: Vec<RaftPb>,
}

/// The steps under way, oldest first.
pub(super) struct Pipeline {
    steps: VecDeque<Step>,
    last_batch: u64,
    last_durable_batch: u64,
    /// The term and the vote that were handed out last, and the batch they came with.
    elected: (u64, u64),
    election_batch: u64,
    /// The batch with the log's first entry; everything it holds is durable once that is.
    first_entry: FirstEntry,
    /// Taken over by the library, not handed out yet.
    expected: Option<SnapshotId>,
    /// Handed out, not applied yet.
    installing: Option<LogIndex>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FirstEntry {
    None,
    In { batch: u64 },
    Durable,
}

impl Pipeline {
    /// Starts with what is durable; `log_is_empty` says whether any entry is.
    pub fn new(log_is_empty: bool, durable: HardState) -> Pipeline {
        Pipeline {
            steps: VecDeque::new(),
            last_batch: 0,
            last_durable_batch: 0,
            elected: (durable.term, durable.vote),
            election_batch: 0,
            first_entry: if log_is_empty { FirstEntry::None } else { FirstEntry::Durable },
            expected: None,
            installing: None,
        }
    }

    /// Whether a snapshot could be installed now: one at a time.
    pub fn can_install(&self) -> bool {
        self.expected.is_none() && self.installing.is_none()
    }

    /// The library has taken over this snapshot.
    pub fn expect_snapshot(&mut self, snapshot: SnapshotId) {
        self.expected = Some(snapshot);
    }

    /// Whether a snapshot has taken the place of entries and is not applied yet.
    pub fn is_installing(&self) -> bool {
        !self.can_install()
    }

    /// The state machine stands at `applied`.
    pub fn installed(&mut self, applied: LogIndex) {
        if self.installing.is_some_and(|index| index <= applied) {
            self.installing = None;
        }
    }

    /// Whether everything handed out so far is durable.
    pub fn is_idle(&self) -> bool {
        self.steps.is_empty() && self.last_durable_batch == self.last_batch
    }

    /// Whether a term or a vote waits for the disk. Until it is durable no further vote of this server leaves it.
    pub fn owes_a_vote(&self) -> bool {
        self.election_batch > self.last_durable_batch
    }

    /// Takes every step the library has and turns it into effects. `hard_state` is amended with
    /// what the library does not know and stored with every batch; `force_write` makes a batch even
    /// if the library needs none.
    pub fn run(
        &mut self,
        raw: &mut RawNode<LogStore>,
        admitted: bool,
        mut force_write: bool,
        out: &mut Effects,
    ) {
        while raw.has_ready() {
            let mut ready = raw.ready();
            out.reads.extend(ready.take_read_states().into_iter().filter_map(|state| {
                let round = <[u8; 8]>::try_from(state.request_ctx.as_slice()).ok()?;
                Some((u64::from_be_bytes(round), state.index))
            }));
            out.committed.extend(ready.take_committed_entries().into_iter().map(entry_from_raft));

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
            let (held, promising_nothing): (Vec<_>, Vec<_>) = held.into_iter().partition(promises);
            let at_once = immediate.into_iter().chain(promising_nothing);
            out.messages.extend(at_once.filter_map(message_from_raft));

            if !ready.snapshot().is_empty()
                && let Some(snapshot) = self.expected.take()
            {
                raw.mut_store().restore(snapshot.index, snapshot.term);
                self.installing = Some(snapshot.index);
                let LogBatch { number, hard_state, .. } = self.batch(raw, admitted, Vec::new());
                let hard_state = hard_state.unwrap_or_default();
                out.install = Some(InstallRequest { number, snapshot, hard_state });
                self.first_entry = FirstEntry::Durable;
                force_write = false;
            }
            let entries = ready.take_entries();
            raw.mut_store().append(&entries);
            let number = ready.number();
            // What stands between two batches carries the hard state of its step itself.
            let must_write =
                ready.must_sync() && (ready.snapshot().is_empty() || !entries.is_empty());
            if must_write {
                out.batches.push(self.batch(raw, admitted, entries));
                force_write = false;
            }
            raw.advance_append_async(ready);

            if self.is_idle() {
                out.messages.extend(held.into_iter().filter_map(message_from_raft));
                raw.on_persist_ready(number);
            } else {
                self.steps.push_back(Step {
                    batch: self.last_batch,
                    ready: number,
                    messages: held,
                });
            }
        }
        if force_write {
            out.batches.push(self.batch(raw, admitted, Vec::new()));
        }
    }

    fn batch(
        &mut self,
        raw: &mut RawNode<LogStore>,
        admitted: bool,
        entries: Vec<raft::eraftpb::Entry>,
    ) -> LogBatch {
        let state = raw.raft.hard_state();
        let hard_state =
            HardState { term: state.term, vote: state.vote, commit: state.commit, admitted };
        raw.mut_store().set_hard_state(hard_state);
        self.last_batch += 1;
        if self.elected != (state.term, state.vote) {
            self.elected = (state.term, state.vote);
            self.election_batch = self.last_batch;
        }
        if self.first_entry == FirstEntry::None && !entries.is_empty() {
            self.first_entry = FirstEntry::In { batch: self.last_batch };
        }
        LogBatch {
            number: self.last_batch,
            hard_state: Some(hard_state),
            entries: entries.into_iter().map(entry_from_raft).collect(),
        }
    }

    /// Batches up to `number` are durable: what waited for them may go out.
    pub fn durable(&mut self, raw: &mut RawNode<LogStore>, number: u64, out: &mut Effects) {
        self.last_durable_batch = self.last_durable_batch.max(number.min(self.last_batch));
        if matches!(self.first_entry, FirstEntry::In { batch } if batch <= self.last_durable_batch)
        {
            self.first_entry = FirstEntry::Durable;
        }
        let mut last_ready = None;
        while let Some(step) = self.steps.pop_front_if(|s| s.batch <= self.last_durable_batch) {
            out.messages.extend(step.messages.into_iter().filter_map(message_from_raft));
            last_ready = Some(step.ready);
        }
        if let Some(ready) = last_ready {
            raw.on_persist_ready(ready);
        }
    }
}

/// Whether a message of a server that does not lead (or whose log is empty) promises what it must still know after a
/// crash. What every kind says:
///
/// - a vote that is granted, and the request for one, which is a vote for oneself: "I give this term's vote to nobody
///   else". A promise, and the request also names a log that the sender claims to have;
/// - a REPLICATION_OK: "I have stored the log up to this index". A promise, but for a refusal, which only helps the
///   leader to find where the logs part, and for index 0, which a server of a later term answers to a deposed leader;
/// - a vote that is refused, and everything about rehearsals of elections (pre-votes): nothing that binds anybody;
/// - an answer to a heartbeat: "at this moment I follow you". Linearizable reads count it, and rightly: a server that
///   had helped to elect a later leader *before* would know, because its vote was durable before it was sent; if it
///   forgets this term and helps to elect one *afterwards*, the read began before that. That its sender is there is
///   true as well, however slow its disk is;
/// - a heartbeat of the first leader of all, which keeps its entries back: nothing.
///
/// A kind that is not named waits.
fn promises(message: &RaftPb) -> bool {
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

/// Fetches under way: their ids, and how to wake the library when they are done.
#[derive(Default)]
pub(super) struct Fetches {
    next_id: u64,
    waiting: Vec<(u64, LogIndex, GetEntriesContext)>,
}

impl Fetches {
    /// Notes what the store could not answer.
    pub fn collect(&mut self, store: &mut LogStore, out: &mut Effects) {
        for wanted in store.take_wanted() {
            self.next_id += 1;
            self.waiting.push((self.next_id, wanted.low, wanted.context));
            out.fetches.push(FetchRequest { id: self.next_id, low: wanted.low, high: wanted.high });
        }
    }

    /// Takes a fetch off the list: where it began, and the library's context.
    pub fn take(&mut self, id: u64) -> Option<(LogIndex, GetEntriesContext)> {
        let at = self.waiting.iter().position(|(waiting, ..)| *waiting == id)?;
        let (_, low, context) = self.waiting.swap_remove(at);
        Some((low, context))
    }
}
