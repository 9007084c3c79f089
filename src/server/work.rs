//! What the event loop has its threads do, and what they tell it: the one vocabulary between them.
//!
//! Work is one type for each kind of thread, so that nobody can be handed what is another's to do:
//! the log writer, the applier and the thread for servers that lag do theirs in order, the workers
//! in any order. Whatever came of it is a [`Completion`], on the one channel from all threads to
//! the loop.
//!
//! Rules:
//!
//! - The loop never waits. The queues of the log writer and the applier are never full, since
//!   consensus bounds the bytes that are under way and [`LogWork::join`] and [`StoreWork::join`]
//!   make few pieces of them. The queues of the workers and of the thread for servers that lag may
//!   be full, and give work back.
//! - Completions are as many as pieces of work, and a few a second besides. What the loop is told
//!   it takes in the order in which it was said.

use std::net::SocketAddr;

use super::decoding::{DecodedFrame, Undecodable};
use super::get::{ReadRequest, StoreFault};
use crate::limits;
use crate::model::{
    AppliedPoint, AppliedWrite, DiskSpace, LeaseEvent, LogBatch, LogEntry, LogIndex,
    MachineSummary, NodeId,
};
use crate::net::ConnectionId;
use crate::node::{InstallRequest, RequestToken, compares_states};
use crate::storage::log::compaction::NeededByOthers;
use crate::storage::snapshot::{SnapshotChunk, SnapshotSource};

/// Work for one of the threads.
#[derive(Debug)]
pub enum Work {
    /// For the log writer, which does it in order.
    Log(LogWork),
    /// For the applier, which does it in order.
    Store(StoreWork),
    /// For the thread that reads for servers that lag.
    CatchUp(CatchUpWork),
}

/// Work for the log writer.
#[derive(Debug)]
pub enum LogWork {
    /// Make a batch durable, whose entries have this many bytes.
    Append(LogBatch, usize),
    /// Begin the log anew after a snapshot, and have the applier put that in the store's place,
    /// before anything that is committed after it is applied.
    Install(InstallRequest),
    /// Delete the log before what the store holds durably and no server needs.
    Compact {
        /// The index that the newest checkpoint covers.
        durable_index: LogIndex,
        /// What other servers still need of the log.
        needed: NeededByOthers,
    },
}

/// Work for the applier.
#[derive(Debug)]
pub enum StoreWork {
    /// Committed entries, to be applied in log order.
    Apply(EntriesPiece),
    /// A snapshot to be read from the store, or put in its place.
    Snapshot(SnapshotWork),
}

/// Work on snapshots for the applier.
#[derive(Debug)]
pub enum SnapshotWork {
    /// Pin a view of the store; answered by [`SnapshotReport::Pinned`].
    Pin {
        /// The server that is to get it.
        to: NodeId,
        /// The transfer's number, chosen at random by its sender.
        id: u64,
    },
    /// Make room for an arriving snapshot; answered by [`SnapshotReport::Begun`].
    Begin {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// The state that it holds.
        point: AppliedPoint,
    },
    /// Store a chunk; answered by [`SnapshotReport::Stored`], whatever becomes of it.
    Store {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// Rows of the snapshot, and its end.
        chunk: SnapshotChunk,
    },
    /// Check the whole and make it durable; answered by [`SnapshotReport::Staged`].
    Stage {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
    },
    /// Put the staged snapshot in the store's place, since the log begins after it; answered by
    /// [`Completion::Persisted`] for the log and [`SnapshotReport::Installed`]. One thread says
    /// both, so that they come in this order.
    Install {
        /// The number of the installation, shared with log batches.
        number: u64,
    },
    /// Throw away whatever has arrived.
    Discard,
}

/// Work for the thread that reads for servers that lag.
#[derive(Debug)]
pub enum CatchUpWork {
    /// Log entries for a server that lags, which are no longer in memory.
    Entries {
        /// The number of the core's request.
        fetch: u64,
        /// The first index wanted.
        low: LogIndex,
        /// The index after the last one wanted.
        high: LogIndex,
        /// Read about this many bytes at most, but at least one entry.
        bytes_max: u64,
    },
    /// The next chunk of a snapshot for server `to`.
    Chunk {
        /// The server that it is for.
        to: NodeId,
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// The view to read from.
        source: SnapshotSource,
        /// The most bytes that [`SnapshotSource::next_chunk`] is to give.
        bytes_max: usize,
    },
}

/// Work for a worker: a GET or a page, to be answered from the store.
#[derive(Debug)]
pub struct ReadJob {
    /// The request that it is for.
    pub token: RequestToken,
    /// The client's own address.
    pub client: SocketAddr,
    /// What is to be read.
    pub request: ReadRequest,
    /// The read budget: how long the value may be, if that is more than a small one (see
    /// `clients`).
    pub budget_bytes: usize,
    /// When it began to wait for a worker, in ticks of the loop: one that has waited for too long
    /// is refused.
    pub waits_since: u64,
}

/// What a read at the workers is accounted by.
#[derive(Clone, Copy, Debug)]
pub struct ReadCharge {
    /// The request that it is for.
    pub token: RequestToken,
    /// The budget that it has.
    pub budget_bytes: usize,
    /// Whether it is a page, of which there are few at once.
    pub is_page: bool,
}

impl ReadJob {
    /// Whether it is a page of a longer read, or a transaction. Either may take as long as a
    /// thousand GETs.
    pub(super) fn is_page(&self) -> bool {
        matches!(self.request, ReadRequest::Page(_) | ReadRequest::Txn(_))
    }

    pub(super) fn charge(&self) -> ReadCharge {
        let is_page = self.is_page();
        ReadCharge { token: self.token, budget_bytes: self.budget_bytes, is_page }
    }

    /// The longest value that the read may give back.
    pub(super) fn value_bytes_max(&self) -> usize {
        self.budget_bytes.max(limits::READ_SMALL_BYTES_MAX)
    }
}

/// What came of a piece of work, or was found out by a thread that watches.
pub(super) enum Completion {
    /// The log batches up to `number` are durable.
    Persisted {
        /// The number of the batch, or of the installation of a snapshot.
        number: u64,
    },
    /// The log before this index has been deleted.
    Compacted {
        /// The first index that is left in it.
        first_index: LogIndex,
    },
    /// Committed entries are applied.
    Applied {
        /// The outcome of each client's write among them, in log order.
        outcomes: Vec<AppliedWrite>,
        /// The point up to which the state machine has applied now.
        point: AppliedPoint,
        /// What it has left to do in the background.
        summary: MachineSummary,
        /// What has changed about leases.
        leases: Vec<LeaseEvent>,
    },
    /// The store is durable up to this index, so that the log need not reach further back.
    Checkpointed(LogIndex),
    /// Progress of a snapshot at the applier, or at the thread that reads for servers that lag.
    Snapshot(SnapshotReport),
    /// A read is answered.
    Answered {
        /// The request that it is for, and what the read had.
        charge: ReadCharge,
        /// The answer as a whole frame.
        frame: Vec<u8>,
    },
    /// The value that was to be read has more bytes than the budget.
    TooLong {
        /// The read, which is to be tried again with a larger budget.
        read: ReadJob,
        /// The length of the value.
        bytes: usize,
    },
    /// Log entries for a server that lags were read.
    Entries {
        /// The number of the core's request.
        fetch: u64,
        /// The entries, or none if they could not be read.
        entries: Vec<LogEntry>,
    },
    /// A long frame was decoded, before which no other frame of its connection is taken in.
    Decoded {
        /// Whether it is another server's, which has threads of its own.
        of_server: bool,
        /// The connection that it came on.
        connection: ConnectionId,
        decoded: Result<DecodedFrame, Undecodable>,
        /// Bytes charged to the budget for it, to be released by whoever takes it.
        held: usize,
    },
    /// The last verdict about this server's data is durable, or cannot be made so, as this sentence
    /// says.
    VerdictSetDown(Result<(), String>),
    /// The room on the disk has changed to this.
    DiskSpace(DiskSpace),
    /// The store is damaged, as this sentence says. Nothing is applied any more.
    StoreDamaged(String),
    /// The log is damaged, as this sentence says.
    LogDamaged(String),
    /// The process has to end, as this sentence says.
    Failed(String),
}

/// Progress of a snapshot.
#[derive(Debug)]
pub enum SnapshotReport {
    /// A view of the store is pinned, and the store is durable up to it.
    Pinned {
        /// The server that is to get it, as in [`SnapshotWork::Pin`].
        to: NodeId,
        /// The transfer's number, as in [`SnapshotWork::Pin`].
        id: u64,
        /// The pinned view that the chunks are read from.
        source: SnapshotSource,
    },
    /// The next chunk was read; gives the view back.
    Read {
        /// The server that it is for, as in [`CatchUpWork::Chunk`].
        to: NodeId,
        /// The transfer's number, as in [`CatchUpWork::Chunk`].
        id: u64,
        /// The view, to read the next chunk from.
        source: SnapshotSource,
        /// The chunk, or `None` at the end; why it could not be read, in a clause.
        chunk: Result<Option<SnapshotChunk>, String>,
    },
    /// A [`SnapshotWork::Begin`] has left the applier's queue.
    Begun,
    /// A chunk of a snapshot has left the applier's queue.
    Stored {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// Chunks of it stored so far, this one included; `None` when the transfer is not the one
        /// being taken in any more.
        stored: Option<u64>,
    },
    /// An arriving snapshot is whole, checked, and durable beside the store.
    Staged {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
    },
    /// An arriving snapshot could not be stored. Follows the [`SnapshotReport::Begun`], or the
    /// [`SnapshotReport::Stored`] of the chunk, that failed.
    Failed {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// Why, in a clause.
        reason: String,
    },
    /// A snapshot has taken the store's place.
    Installed {
        /// The point up to which the state machine has applied now.
        point: AppliedPoint,
        /// What it has left to do in the background.
        summary: MachineSummary,
        /// The leases that there are now.
        leases: Vec<LeaseEvent>,
    },
}

impl From<StoreFault> for Completion {
    fn from(fault: StoreFault) -> Completion {
        match fault {
            StoreFault::Damage(found) => Completion::StoreDamaged(found),
            StoreFault::Failure(failure) => Completion::Failed(failure),
        }
    }
}

/// Committed entries that are applied together.
#[derive(Debug)]
pub struct EntriesPiece {
    entries: Vec<LogEntry>,
    bytes: usize,
    answering: bool,
}

impl EntriesPiece {
    /// The entries, and whether a client may wait for what their keys had before.
    pub(super) fn entries(&self) -> (&[LogEntry], bool) {
        (&self.entries, self.answering)
    }

    /// Whether more entries may be added. One batch of the engine is cheaper than many. But a piece
    /// ends where replicas compare states, since the hash is that of its end.
    pub(super) fn has_room(&self) -> bool {
        let compared =
            self.entries.last().is_some_and(|last| compares_states(last, limits::STATE_HASH_EVERY));
        self.is_short() && !compared
    }

    fn is_short(&self) -> bool {
        self.bytes < limits::APPLY_BYTES_MAX as usize
    }

    /// Adds the entries that follow.
    pub(super) fn extend(&mut self, more: EntriesPiece) {
        self.entries.extend(more.entries);
        self.bytes += more.bytes;
        self.answering |= more.answering;
    }
}

/// Work that may be done together with what was handed over before it.
pub(super) trait Join: Sized {
    /// Adds the next piece of work, or gives it back where the two cannot be done as one. When so
    /// much waits that the queue is `crowded`, only what must stay apart is given back.
    fn join(&mut self, next: Self, crowded: bool) -> Option<Self>;
}

impl LogWork {
    pub(super) fn append(batch: LogBatch) -> LogWork {
        let bytes = entries_bytes(&batch.entries);
        LogWork::Append(batch, bytes)
    }
}

impl Join for LogWork {
    /// Batches are joined as far as their entries follow one another, to no more than a group that
    /// is made durable at once.
    fn join(&mut self, next: LogWork, _crowded: bool) -> Option<LogWork> {
        match (self, next) {
            (LogWork::Append(batch, bytes), LogWork::Append(more, more_bytes)) => {
                let (last, first) = (batch.entries.last(), more.entries.first());
                let follows = match (last, first) {
                    (Some(last), Some(first)) => first.index == last.index + 1,
                    _ => true,
                };
                if !follows || *bytes + more_bytes > limits::LOG_GROUP_BYTES_MAX {
                    return Some(LogWork::Append(more, more_bytes));
                }
                let LogBatch { number, hard_state, entries } = more;
                batch.number = number;
                batch.hard_state = hard_state.or(batch.hard_state);
                batch.entries.extend(entries);
                *bytes += more_bytes;
                None
            }
            (_, next) => Some(next),
        }
    }
}

impl StoreWork {
    pub(super) fn apply(entries: Vec<LogEntry>, answering: bool) -> StoreWork {
        let bytes = entries_bytes(&entries);
        StoreWork::Apply(EntriesPiece { entries, bytes, answering })
    }
}

impl Join for StoreWork {
    /// A comparison more or less is no reason when much waits: entries without data, after each of
    /// which replicas compare, are so small that the bytes under way do not bound their number.
    fn join(&mut self, next: StoreWork, crowded: bool) -> Option<StoreWork> {
        match (self, next) {
            (StoreWork::Apply(piece), StoreWork::Apply(more))
                if piece.has_room() || (crowded && piece.is_short()) =>
            {
                piece.extend(more);
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// Bytes of memory that entries take, about.
fn entries_bytes(entries: &[LogEntry]) -> usize {
    entries.iter().map(|entry| entry.data.len() + 64).sum()
}
