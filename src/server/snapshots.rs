//! Snapshot transfers: to servers that the log no longer reaches, and from the leader.
//!
//! The leader's applier pins a consistent view of the store; a worker reads it piece by piece while
//! writes go on; a few pieces are under way at once. The receiver stores them beside its own store
//! ([`Intake`](super::intake::Intake)). When all are there and checked, the core decides whether
//! the snapshot is still of use; then the log begins anew after it, and it takes the store's place.
//! Only then does the receiver call it complete.
//!
//! Rules:
//!
//! - **The log that a snapshot needs is kept.** From the moment its view is pinned the leader keeps
//!   its log from there on ([`Transfers::log_needed`]), until the receiver has stored everything
//!   that is committed. Otherwise a store that takes longer to send than the log takes to be cut is
//!   sent again and again. The log kept so is bounded in bytes by the log's owner, and in time: a
//!   receiver that gets no further for [`TransferLimits::stall_timeout_us`] loses its claim. And it
//!   is the first to go on a disk that is getting full ([`Transfers::disk_space`]): a receiver can
//!   have another snapshot later, a group that refuses writes cannot wait.
//! - **Nothing is tried again at once.** Consensus asks for another snapshot with every heartbeat
//!   that finds the receiver behind the log. Each attempt costs a checkpoint and a view, so
//!   attempts to one server are spaced: [`TransferLimits::retry_us_min`] after the first failure,
//!   twice as long after each further one.
//! - **A piece that cannot be read just now is read later.** Busy workers delay a transfer and do
//!   not break it.
//! - **Only who can hear this server's answers can send it a snapshot.** An offer changes nothing:
//!   it is answered with the key that this process has drawn at random, on the connection that it
//!   has dialled itself, and the transfer begins when the offer is repeated with the key. Whoever
//!   merely speaks in a leader's name, on a connection of its own, never learns it; a forged
//!   snapshot would replace the store and the log of this server, and then perhaps of the group.
//! - **A transfer belongs to a term.** It is dropped at both ends when another term begins, since
//!   the receiver could not use it.
//!
//! A transfer that breaks is begun again from the start when consensus asks for it; nothing of a
//! broken one is kept.
//!
//! This part is bookkeeping without IO, clock or randomness: what is to be done comes out as
//! [`TransferStep`]s, which the event loop and the simulator in `tests/simulation` carry out alike.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::limits;
use crate::model::{
    AppliedPoint, DiskSpace, HardState, LogIndex, MachineSummary, NodeId, SnapshotId, Term,
    Timestamp,
};
use crate::node::CheckedMessage;
use crate::node::Input;
use crate::node::config::{Distrust, NodeStatus};
use crate::storage::log::compaction::NeededByOthers;
use crate::storage::snapshot::{SnapshotChunk, SnapshotSource};
use crate::wire::message::{PeerMessage, Role, SnapshotOutcome};

/// Bytes of rows in a chunk, which a worker reads in some milliseconds; a larger row is sent alone.
const SNAPSHOT_CHUNK_BYTES: usize = 512 * 1024;
/// Chunks sent and not yet stored by the receiver: enough to keep both ends at work, and 2 MiB of
/// memory.
const SNAPSHOT_CHUNKS_IN_FLIGHT: u64 = 4;
/// A transfer that makes no progress for this long is given up, and may begin again.
const SNAPSHOT_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Bounds of transfers: those of [`limits`], except in simulations.
#[derive(Clone, Copy, Debug)]
pub struct TransferLimits {
    /// Bytes of rows in a chunk, by default [`SNAPSHOT_CHUNK_BYTES`].
    pub chunk_bytes_max: usize,
    /// Chunks sent and not acknowledged, by default [`SNAPSHOT_CHUNKS_IN_FLIGHT`].
    pub chunks_in_flight_max: u64,
    /// Time without progress after which a transfer ends, by default
    /// [`SNAPSHOT_STALL_TIMEOUT`].
    pub stall_timeout_us: u64,
    /// The wait after the first failed attempt, by default [`limits::SNAPSHOT_RETRY_MIN`].
    pub retry_us_min: u64,
    /// The longest wait after a failed attempt, by default [`limits::SNAPSHOT_RETRY_MAX`].
    pub retry_us_max: u64,
}

impl Default for TransferLimits {
    fn default() -> TransferLimits {
        TransferLimits {
            chunk_bytes_max: SNAPSHOT_CHUNK_BYTES,
            chunks_in_flight_max: SNAPSHOT_CHUNKS_IN_FLIGHT,
            stall_timeout_us: SNAPSHOT_STALL_TIMEOUT.as_micros() as u64,
            retry_us_min: limits::SNAPSHOT_RETRY_MIN.as_micros() as u64,
            retry_us_max: limits::SNAPSHOT_RETRY_MAX.as_micros() as u64,
        }
    }
}

/// An instruction for the driver; they are to be carried out in order.
#[derive(Debug)]
pub enum TransferStep {
    /// Send a message to another server, in order with the earlier ones; when it cannot be sent,
    /// close the link.
    Send {
        /// The server that the message goes to.
        to: NodeId,
        /// A message of a snapshot transfer.
        message: PeerMessage,
    },
    /// Hand work to the applier, which owns the store.
    Store(SnapshotWork),
    /// Have a worker read the next piece, then call [`Transfers::read`]; when no worker can take
    /// it, call [`Transfers::workers_busy`].
    Read {
        /// The server that it is for.
        to: NodeId,
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// The view to read from.
        source: SnapshotSource,
        /// The most bytes that [`SnapshotSource::next_chunk`] is to give.
        bytes_max: usize,
    },
    /// Have the log begun anew after a snapshot, then call [`Transfers::log_begun`].
    BeginLog {
        /// The number that stands for it among the log's batches.
        number: u64,
        /// Up to which entry it reaches, and in which term that is.
        snapshot: SnapshotId,
        /// To be made durable with it.
        hard_state: HardState,
    },
    /// Cut the log: the store is durable up to `durable_index`, and other servers need what is
    /// `needed`.
    Compact {
        /// The index that the newest checkpoint covers.
        durable_index: LogIndex,
        /// What receivers of snapshots need of the log, from [`Transfers::log_needed`].
        needed: NeededByOthers,
    },
    /// Hand an input to the core.
    Tell(Input),
}

/// Work on snapshots for the applier.
#[derive(Debug)]
pub enum SnapshotWork {
    /// Pin a view of the store; answered by [`SnapshotReport::Prepared`].
    Prepare {
        /// The server that is to get it.
        to: NodeId,
        /// The transfer's number, chosen at random by its sender.
        id: u64,
    },
    /// Make room for an arriving snapshot.
    Begin {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// The state that it holds.
        point: AppliedPoint,
    },
    /// Store a piece; answered by [`SnapshotReport::Piece`], whatever becomes of it.
    Chunk {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// Rows of the snapshot, and its end.
        chunk: SnapshotChunk,
    },
    /// Check the whole and make it durable; answered by [`SnapshotReport::Staged`].
    Finish {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
    },
    /// Put the staged snapshot in the store's place; answered by [`SnapshotReport::Installed`].
    Install,
    /// Throw away whatever has arrived.
    Discard,
}

/// A report of the applier about snapshots.
#[derive(Debug)]
pub enum SnapshotReport {
    /// A view of the store is pinned, and the store is durable up to it.
    Prepared {
        /// The server that is to get it, as in [`SnapshotWork::Prepare`].
        to: NodeId,
        /// The transfer's number, as in [`SnapshotWork::Prepare`].
        id: u64,
        /// The pinned view that the pieces are read from.
        source: SnapshotSource,
    },
    /// A piece of a snapshot has left the applier's queue.
    Piece {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
        /// Pieces of it stored so far, this one included; `None` when the transfer is not the one
        /// being taken in any more.
        stored: Option<u64>,
    },
    /// An arriving snapshot is whole, checked, and durable beside the store.
    Staged {
        /// The transfer's number, chosen at random by its sender.
        id: u64,
    },
    /// An arriving snapshot could not be stored. Follows the [`SnapshotReport::Piece`] of the piece
    /// that failed.
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
    },
}

/// A transfer to another server.
#[derive(Debug)]
struct OutgoingTransfer {
    id: u64,
    to: NodeId,
    leader_term: Term,
    stage: TransferStage,
    /// Time of its last progress.
    progress_us: u64,
}

#[derive(Debug)]
enum TransferStage {
    /// The attempt before failed a short time ago.
    Waiting { until_us: u64 },
    /// The applier is pinning a view.
    Preparing,
    /// Pieces are on their way.
    Sending {
        index: LogIndex,
        /// Until the receiver has given its key, without which it takes nothing in.
        offer: Option<SnapshotOffer>,
        /// The view, while no worker is reading from it.
        source: Option<SnapshotSource>,
        sent: u64,
        stored: u64,
        ended: bool,
    },
}

/// What is said of a snapshot before its pieces are sent.
#[derive(Clone, Copy, Debug)]
struct SnapshotOffer {
    id: u64,
    snapshot: SnapshotId,
    timestamp: Timestamp,
    hash: u64,
}

impl SnapshotOffer {
    fn message(self, key: Option<u64>) -> PeerMessage {
        let SnapshotOffer { id, snapshot, timestamp, hash } = self;
        PeerMessage::Snapshot { id, key, snapshot, timestamp, hash }
    }
}

/// A claim on the leader's log: what a server that was sent a snapshot needs next.
#[derive(Debug)]
struct LogClaim {
    from: LogIndex,
    /// All pieces were sent, so that the receiver may have the snapshot even if nobody hears of it.
    whole: bool,
    progress_us: u64,
}

/// Attempts that failed since the last one that succeeded.
#[derive(Clone, Copy, Debug)]
struct FailedAttempts {
    count: u32,
    last_us: u64,
}

/// A transfer from another server.
#[derive(Debug)]
struct IncomingTransfer {
    id: u64,
    from: NodeId,
    snapshot: SnapshotId,
    received: u64,
    stored: u64,
    /// Everything has arrived; it is the applier's and the core's turn.
    whole: bool,
    progress_us: u64,
}

/// All transfers of a server.
#[derive(Debug)]
pub struct Transfers {
    limits: TransferLimits,
    outgoing: Vec<OutgoingTransfer>,
    claims: BTreeMap<NodeId, LogClaim>,
    failures: BTreeMap<NodeId, FailedAttempts>,
    incoming: Option<IncomingTransfer>,
    /// Pieces in the applier's queue, those of transfers that were given up included: they are
    /// memory.
    pieces_queued: u64,
    /// Servers that can be sent to.
    linked: BTreeSet<NodeId>,
    /// Servers hold different states and it is not known who is right.
    disputed: bool,
    /// The room on this server's disk.
    space: DiskSpace,
    /// The index that this server's newest checkpoint covers.
    durable_index: LogIndex,
    last_id: u64,
    /// What an offer must carry so that a transfer to this server begins.
    offer_key: u64,
}

impl Transfers {
    /// `first_id` is random, so that what belongs to an earlier run is not taken for this one's,
    /// and `offer_key`, so that nobody guesses it.
    pub fn new(first_id: u64, offer_key: u64, limits: TransferLimits) -> Transfers {
        Transfers {
            limits,
            outgoing: Vec::new(),
            claims: BTreeMap::new(),
            failures: BTreeMap::new(),
            incoming: None,
            pieces_queued: 0,
            linked: BTreeSet::new(),
            disputed: false,
            space: DiskSpace::Ample,
            durable_index: 0,
            last_id: first_id,
            offer_key,
        }
    }

    // ---- the log -----------------------------------------------------------------------------

    /// The part of the log that receivers of snapshots still need. While it is not known whose
    /// state is right, no snapshot is sent.
    pub fn log_needed(&self) -> NeededByOthers {
        if self.disputed {
            return NeededByOthers::All;
        }
        let oldest = self.claims.values().map(|claim| claim.from).min();
        oldest.map_or(NeededByOthers::Nothing, NeededByOthers::From)
    }

    /// How much room there is on this server's disk. Where it gets scarcer, what is kept for
    /// receivers goes at once.
    pub fn disk_space(&mut self, space: DiskSpace) -> Vec<TransferStep> {
        let before = std::mem::replace(&mut self.space, space);
        match space > before && !self.claims.is_empty() {
            true => vec![self.compact()],
            false => Vec::new(),
        }
    }

    /// The store is durable up to `index`, so that the log before it may go.
    pub fn checkpointed(&mut self, index: LogIndex) -> Vec<TransferStep> {
        self.durable_index = self.durable_index.max(index);
        vec![self.compact()]
    }

    /// The log before `first_index` is gone, whoever needed it: more was written than is kept, or
    /// there is no room.
    pub fn compacted(&mut self, now_us: u64, first_index: LogIndex) -> Vec<TransferStep> {
        let overrun = |(_, claim): &(&NodeId, &LogClaim)| claim.from < first_index;
        let late: Vec<NodeId> = self.claims.iter().filter(overrun).map(|(peer, _)| *peer).collect();
        let mut steps = Vec::new();
        for peer in late {
            let from = self.claims.get(&peer).map_or(0, |claim| claim.from);
            match self.space {
                DiskSpace::Ample => log::warn!(
                    "server {peer} takes in its snapshot so slowly that the log, which is kept for \
                     it from index {from} on, has grown too long and was cut: it needs another \
                     snapshot, best while less is written"
                ),
                DiskSpace::Low | DiskSpace::Full | DiskSpace::Exhausted => log::warn!(
                    "the disk is too full to keep all of the log for server {peer} from index \
                     {from} on, and it was cut: that server needs another snapshot, best when \
                     there is room again"
                ),
            }
            self.claims.remove(&peer);
            if self.outgoing.iter().any(|out| out.to == peer) {
                steps.extend(self.give_up(now_us, peer));
            }
        }
        steps
    }

    fn compact(&self) -> TransferStep {
        TransferStep::Compact { durable_index: self.durable_index, needed: self.log_needed() }
    }

    // ---- sending -----------------------------------------------------------------------------

    /// The core wants a snapshot sent.
    pub fn start(&mut self, now_us: u64, to: NodeId, leader_term: Term) -> Vec<TransferStep> {
        if self.outgoing.iter().any(|out| out.to == to && out.leader_term == leader_term) {
            // Asked for twice, as by a receiver whose answers were under way when the first was
            // begun.
            return Vec::new();
        }
        self.outgoing.retain(|out| out.to != to);
        if !self.linked.contains(&to) {
            return vec![sent(to, None)];
        }
        // One that was complete and did not help: the next attempt would hardly do better at once.
        if self.claims.get(&to).is_some_and(|claim| claim.whole) {
            self.note_failure(now_us, to);
        }
        let until_us = self.failures.get(&to).map_or(0, |failures| {
            let doublings = failures.count.saturating_sub(1).min(30);
            let wait_us = self.limits.retry_us_min.saturating_mul(1 << doublings);
            failures.last_us.saturating_add(wait_us.min(self.limits.retry_us_max))
        });
        self.last_id += 1;
        let stage = TransferStage::Waiting { until_us };
        let id = self.last_id;
        self.outgoing.push(OutgoingTransfer { id, to, leader_term, stage, progress_us: now_us });
        self.prepare_due(now_us)
    }

    fn prepare_due(&mut self, now_us: u64) -> Vec<TransferStep> {
        let mut steps = Vec::new();
        for out in &mut self.outgoing {
            if matches!(out.stage, TransferStage::Waiting { until_us } if until_us <= now_us) {
                out.stage = TransferStage::Preparing;
                out.progress_us = now_us;
                steps.push(TransferStep::Store(SnapshotWork::Prepare { to: out.to, id: out.id }));
            }
        }
        steps
    }

    fn prepared(
        &mut self,
        now_us: u64,
        to: NodeId,
        id: u64,
        source: SnapshotSource,
        term_at: impl Fn(LogIndex) -> Option<Term>,
    ) -> Vec<TransferStep> {
        let Some(out) = self.outgoing.iter_mut().find(|out| out.to == to && out.id == id) else {
            return Vec::new();
        };
        let AppliedPoint { index, timestamp, hash } = source.point();
        let Some(term) = term_at(index) else { return self.give_up(now_us, to) };
        let snapshot = SnapshotId { leader_term: out.leader_term, index, term };
        let offer = SnapshotOffer { id, snapshot, timestamp, hash };
        let message = offer.message(None);
        out.stage = TransferStage::Sending {
            index,
            offer: Some(offer),
            source: Some(source),
            sent: 0,
            stored: 0,
            ended: false,
        };
        out.progress_us = now_us;
        // One that may be in place already keeps its claim until this one is whole.
        let claim = LogClaim { from: index + 1, whole: false, progress_us: now_us };
        let kept = self.claims.entry(to).or_insert(claim);
        if !kept.whole {
            *kept = LogClaim { from: index + 1, whole: false, progress_us: now_us };
        }
        log::info!(
            "server {to} is further behind than the log reaches: sending it a snapshot of \
             everything to log index {index}"
        );
        vec![TransferStep::Send { to, message }]
    }

    /// A worker has read a piece (`Ok(None)`: there are no more), and gives the view back.
    pub fn read(
        &mut self,
        now_us: u64,
        to: NodeId,
        id: u64,
        view: SnapshotSource,
        chunk: Result<Option<SnapshotChunk>, String>,
    ) -> Vec<TransferStep> {
        let limits = self.limits;
        let Some(out) = self.outgoing.iter_mut().find(|out| out.to == to && out.id == id) else {
            return Vec::new();
        };
        let TransferStage::Sending { index, source, sent, ended, .. } = &mut out.stage else {
            return Vec::new();
        };
        match chunk {
            Ok(Some(SnapshotChunk { sequence, data })) => {
                assert_eq!(sequence, *sent, "pieces are read in order, each once");
                *sent += 1;
                *source = Some(view);
                let message = PeerMessage::SnapshotChunk { id, sequence, data };
                let mut steps = vec![TransferStep::Send { to, message }];
                steps.extend(read_on(out, &limits));
                steps
            }
            Ok(None) => {
                *ended = true;
                let message = PeerMessage::SnapshotEnd { id, chunks: *sent };
                let from = *index + 1;
                let claim = LogClaim { from, whole: true, progress_us: now_us };
                let claim = self.claims.entry(to).and_modify(|c| c.whole = true).or_insert(claim);
                claim.progress_us = now_us;
                vec![TransferStep::Send { to, message }]
            }
            Err(error) => {
                log::error!("cannot read the snapshot for server {to}: {error}");
                self.give_up(now_us, to)
            }
        }
    }

    /// No worker could take a [`TransferStep::Read`]: it is tried again with the next tick.
    pub fn workers_busy(&mut self, to: NodeId, id: u64, view: SnapshotSource) {
        let out = self.outgoing.iter_mut().find(|out| out.to == to && out.id == id);
        if let Some(OutgoingTransfer { stage: TransferStage::Sending { source, .. }, .. }) = out {
            *source = Some(view);
        }
    }

    fn answered(
        &mut self,
        now_us: u64,
        from: NodeId,
        id: u64,
        pieces: u64,
        outcome: SnapshotOutcome,
    ) -> Vec<TransferStep> {
        let limits = self.limits;
        let Some(out) = self.outgoing.iter_mut().find(|out| out.to == from && out.id == id) else {
            return Vec::new();
        };
        let TransferStage::Sending { index, offer, sent: sent_pieces, stored, ended, .. } =
            &mut out.stage
        else {
            return Vec::new();
        };
        match outcome {
            SnapshotOutcome::Key(key) => {
                // A second answer says nothing new.
                let Some(offer) = offer.take() else { return Vec::new() };
                out.progress_us = now_us;
                let message = offer.message(Some(key));
                let mut steps = vec![TransferStep::Send { to: from, message }];
                steps.extend(read_on(out, &limits));
                steps
            }
            SnapshotOutcome::Receiving => {
                out.progress_us = now_us;
                if let Some(claim) = self.claims.get_mut(&from) {
                    claim.progress_us = now_us;
                }
                *stored = pieces.clamp(*stored, *sent_pieces);
                read_on(out, &limits).into_iter().collect()
            }
            // Nobody has in place what was not sent whole.
            SnapshotOutcome::Complete if !*ended => self.give_up(now_us, from),
            SnapshotOutcome::Complete => {
                log::info!(
                    "server {from} has the snapshot in place, and gets the log from here on"
                );
                let index = *index;
                self.outgoing.retain(|out| out.to != from);
                if let Some(claim) = self.claims.get_mut(&from) {
                    claim.progress_us = now_us;
                }
                vec![sent(from, Some(index))]
            }
            SnapshotOutcome::Failed => {
                log::info!(
                    "server {from} could not use the snapshot: it gets another if it still needs \
                     one"
                );
                self.give_up(now_us, from)
            }
        }
    }

    fn note_failure(&mut self, now_us: u64, to: NodeId) {
        let failures =
            self.failures.entry(to).or_insert(FailedAttempts { count: 0, last_us: now_us });
        // Failures of long ago say nothing about now.
        if now_us.saturating_sub(failures.last_us) > 2 * self.limits.retry_us_max {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last_us = now_us;
    }

    fn give_up(&mut self, now_us: u64, to: NodeId) -> Vec<TransferStep> {
        self.outgoing.retain(|out| out.to != to);
        self.note_failure(now_us, to);
        if self.claims.get(&to).is_some_and(|claim| !claim.whole) {
            self.claims.remove(&to);
        }
        vec![sent(to, None)]
    }

    // ---- receiving ---------------------------------------------------------------------------

    /// An offer, which begins a transfer if it has this server's key. `acceptable` says whether
    /// this server follows who offers it, and is behind it.
    fn offered(
        &mut self,
        now_us: u64,
        from: NodeId,
        key: Option<u64>,
        offer: SnapshotOffer,
        acceptable: bool,
    ) -> Vec<TransferStep> {
        let SnapshotOffer { id, snapshot, timestamp, hash } = offer;
        let installing = self.incoming.as_ref().is_some_and(|incoming| incoming.whole);
        // The library panics on others.
        let exists = (1..=snapshot.leader_term).contains(&snapshot.term)
            && snapshot.index <= LogIndex::MAX / 2;
        if !acceptable || !exists || installing || self.pieces_queued > 0 {
            return vec![answer(from, id, 0, SnapshotOutcome::Failed)];
        }
        if key != Some(self.offer_key) {
            return vec![answer(from, id, 0, SnapshotOutcome::Key(self.offer_key))];
        }
        let point = AppliedPoint { index: snapshot.index, timestamp, hash };
        log::info!("taking in a snapshot from server {from} to log index {}", snapshot.index);
        let mut steps = Vec::new();
        if self.incoming.is_some() {
            steps.push(TransferStep::Store(SnapshotWork::Discard));
        }
        self.incoming = Some(IncomingTransfer {
            id,
            from,
            snapshot,
            received: 0,
            stored: 0,
            whole: false,
            progress_us: now_us,
        });
        steps.push(TransferStep::Store(SnapshotWork::Begin { id, point }));
        steps
    }

    fn chunk(
        &mut self,
        now_us: u64,
        from: NodeId,
        id: u64,
        sequence: u64,
        data: Bytes,
    ) -> Vec<TransferStep> {
        let in_flight_max = self.limits.chunks_in_flight_max;
        match &mut self.incoming {
            Some(incoming) if incoming.is(from, id) && incoming.received == sequence => {
                if self.pieces_queued >= in_flight_max {
                    return self.refuse("its sender sends more at once than it may");
                }
                self.pieces_queued += 1;
                incoming.received += 1;
                incoming.progress_us = now_us;
                let chunk = SnapshotChunk { sequence, data };
                vec![TransferStep::Store(SnapshotWork::Chunk { id, chunk })]
            }
            _ => Vec::new(),
        }
    }

    fn ended(&mut self, now_us: u64, from: NodeId, id: u64, chunks: u64) -> Vec<TransferStep> {
        match &mut self.incoming {
            Some(incoming) if incoming.is(from, id) && incoming.received == chunks => {
                incoming.whole = true;
                incoming.progress_us = now_us;
                vec![TransferStep::Store(SnapshotWork::Finish { id })]
            }
            Some(incoming) if incoming.is(from, id) => self.refuse("pieces are missing"),
            _ => Vec::new(),
        }
    }

    /// The core takes the received snapshot over: the log is to begin anew after it.
    pub fn installing(
        &mut self,
        number: u64,
        snapshot: SnapshotId,
        hard_state: HardState,
    ) -> Vec<TransferStep> {
        let ours = self.incoming.as_ref().map(|incoming| (incoming.whole, incoming.snapshot));
        assert_eq!(ours, Some((true, snapshot)), "the core installs what was received");
        vec![TransferStep::BeginLog { number, snapshot, hard_state }]
    }

    /// The log has begun anew: the store follows, before anything that is committed after it is
    /// applied.
    pub fn log_begun(&mut self, number: u64) -> Vec<TransferStep> {
        vec![
            TransferStep::Store(SnapshotWork::Install),
            TransferStep::Tell(Input::Persisted { number }),
        ]
    }

    /// The core has no use for the received snapshot.
    pub fn discarded(&mut self) -> Vec<TransferStep> {
        self.refuse("it is not needed any more")
    }

    fn refuse(&mut self, reason: &str) -> Vec<TransferStep> {
        let Some(IncomingTransfer { from, id, stored, .. }) = self.incoming.take() else {
            return Vec::new();
        };
        log::info!("the snapshot from server {from} is thrown away: {reason}");
        vec![
            TransferStep::Store(SnapshotWork::Discard),
            answer(from, id, stored, SnapshotOutcome::Failed),
        ]
    }

    // ---- both --------------------------------------------------------------------------------

    /// Takes in a message about snapshots ([`CheckedMessage::is_about_a_snapshot`]); `wanted` says
    /// whether one that is offered is of use.
    pub fn message(
        &mut self,
        now_us: u64,
        from: NodeId,
        message: CheckedMessage,
        wanted: impl FnOnce(NodeId, SnapshotId) -> bool,
    ) -> Vec<TransferStep> {
        match message.into_inner() {
            PeerMessage::Snapshot { id, key, snapshot, timestamp, hash } => {
                let offer = SnapshotOffer { id, snapshot, timestamp, hash };
                self.offered(now_us, from, key, offer, wanted(from, snapshot))
            }
            PeerMessage::SnapshotChunk { id, sequence, data } => {
                self.chunk(now_us, from, id, sequence, data)
            }
            PeerMessage::SnapshotEnd { id, chunks } => self.ended(now_us, from, id, chunks),
            PeerMessage::SnapshotAnswer { id, stored, outcome } => {
                self.answered(now_us, from, id, stored, outcome)
            }
            other => unreachable!("{other:?} is about no snapshot"),
        }
    }

    /// Takes in what the applier reports. `term_at` gives the term of an entry of this server's
    /// log.
    pub fn report(
        &mut self,
        now_us: u64,
        report: SnapshotReport,
        term_at: impl Fn(LogIndex) -> Option<Term>,
    ) -> Vec<TransferStep> {
        if let SnapshotReport::Piece { .. } = report {
            assert!(self.pieces_queued > 0, "the applier took a piece that it was not given");
            self.pieces_queued -= 1;
        }
        match (report, &mut self.incoming) {
            (SnapshotReport::Prepared { to, id, source }, _) => {
                self.prepared(now_us, to, id, source, term_at)
            }
            (SnapshotReport::Piece { id, stored: Some(stored) }, Some(incoming))
                if incoming.id == id =>
            {
                incoming.stored = stored;
                vec![answer(incoming.from, id, stored, SnapshotOutcome::Receiving)]
            }
            (SnapshotReport::Staged { id }, Some(incoming)) if incoming.id == id => {
                let IncomingTransfer { from, snapshot, .. } = *incoming;
                vec![TransferStep::Tell(Input::SnapshotReceived { from, snapshot })]
            }
            (SnapshotReport::Failed { id, reason }, Some(incoming)) if incoming.id == id => {
                self.refuse(&reason)
            }
            (SnapshotReport::Installed { point, summary }, incoming) => {
                log::info!("the snapshot to log index {} is in place", point.index);
                let told = incoming.take().map(|IncomingTransfer { from, id, stored, .. }| {
                    answer(from, id, stored, SnapshotOutcome::Complete)
                });
                let applied = Input::Applied { outcomes: Vec::new(), point, summary };
                [TransferStep::Tell(applied)].into_iter().chain(told).collect()
            }
            (SnapshotReport::Staged { .. }, _) => vec![TransferStep::Store(SnapshotWork::Discard)],
            (SnapshotReport::Piece { .. } | SnapshotReport::Failed { .. }, _) => Vec::new(),
        }
    }

    /// The link on which this server sends to `peer` is up.
    pub fn link_up(&mut self, peer: NodeId) {
        self.linked.insert(peer);
    }

    /// The link on which this server sends to `peer` is gone.
    pub fn link_down(&mut self, now_us: u64, peer: NodeId) -> Vec<TransferStep> {
        self.linked.remove(&peer);
        self.broken(now_us, peer)
    }

    /// The link on which `peer` sends to this server is gone, or another has taken its place before
    /// that was noticed: what was said on it last is lost all the same.
    pub fn inbound_down(&mut self, now_us: u64, peer: NodeId) -> Vec<TransferStep> {
        self.broken(now_us, peer)
    }

    /// Notes that what was under way on a link to or from `peer` is lost.
    fn broken(&mut self, now_us: u64, peer: NodeId) -> Vec<TransferStep> {
        let mut steps = Vec::new();
        if self.outgoing.iter().any(|out| out.to == peer) {
            steps.extend(self.give_up(now_us, peer));
        }
        if self.incoming.as_ref().is_some_and(|i| i.from == peer && !i.whole) {
            steps.extend(self.refuse("its sender is gone"));
        }
        steps
    }

    /// Time passes: begins what is due, and gives up what makes no progress or has lost its leader.
    /// `matched` is how far the leader knows a server's log to reach.
    pub fn tick(
        &mut self,
        now_us: u64,
        status: &NodeStatus,
        matched: impl Fn(NodeId) -> LogIndex,
    ) -> Vec<TransferStep> {
        let limits = self.limits;
        let stalled = |since_us: u64| now_us.saturating_sub(since_us) > limits.stall_timeout_us;
        let leads = status.role == Role::Leader;
        self.disputed = status.distrust == Some(Distrust::Disputed);
        self.outgoing.retain(|out| leads && out.leader_term == status.term);
        let mut steps = self.keep_claims(now_us, leads, status.commit, matched);
        let late = |out: &&OutgoingTransfer| {
            !matches!(out.stage, TransferStage::Waiting { .. }) && stalled(out.progress_us)
        };
        let late: Vec<NodeId> = self.outgoing.iter().filter(late).map(|out| out.to).collect();
        for to in late {
            log::info!("server {to} takes in nothing more of its snapshot: giving it up");
            steps.extend(self.give_up(now_us, to));
        }
        steps.extend(self.prepare_due(now_us));
        steps.extend(self.outgoing.iter_mut().filter_map(|out| read_on(out, &limits)));
        if let Some(IncomingTransfer { from, snapshot, whole: false, progress_us, .. }) =
            self.incoming
        {
            // This server may not have heard of its sender's term yet, which is said on another
            // connection.
            let other_leads = match snapshot.leader_term.cmp(&status.term) {
                Ordering::Less => true,
                Ordering::Equal => status.leader.is_some_and(|leader| leader != from),
                Ordering::Greater => false,
            };
            if other_leads {
                steps.extend(self.refuse("its sender leads no more"));
            } else if stalled(progress_us) {
                steps.extend(self.refuse("nothing more comes"));
            }
        }
        steps
    }

    /// Moves the claims on the log along with their servers, and ends those that are met or in
    /// vain.
    fn keep_claims(
        &mut self,
        now_us: u64,
        leads: bool,
        commit: LogIndex,
        matched: impl Fn(NodeId) -> LogIndex,
    ) -> Vec<TransferStep> {
        let before = self.claims.len();
        let limits = self.limits;
        let mut met = Vec::new();
        self.claims.retain(|peer, claim| {
            let next = matched(*peer) + 1;
            if next > claim.from {
                claim.from = next;
                claim.progress_us = now_us;
            }
            let caught_up = claim.whole && next > commit;
            if caught_up {
                met.push(*peer);
            }
            let stalled = now_us.saturating_sub(claim.progress_us) > limits.stall_timeout_us;
            leads && !caught_up && !stalled
        });
        for peer in met {
            // Only the first wait is left: an answer that was under way for long may still ask for
            // a snapshot, and must not have one prepared sooner after a failure than any other.
            if let Some(failures) = self.failures.get_mut(&peer) {
                failures.count = 1;
            }
        }
        // Nothing else may come for long that would shorten the log.
        if self.claims.len() < before { vec![self.compact()] } else { Vec::new() }
    }
}

impl IncomingTransfer {
    fn is(&self, from: NodeId, id: u64) -> bool {
        self.from == from && self.id == id && !self.whole
    }
}

/// The next piece may be read when the view is at hand and not too many are under way.
fn read_on(out: &mut OutgoingTransfer, limits: &TransferLimits) -> Option<TransferStep> {
    let TransferStage::Sending { offer, source, sent, stored, ended, .. } = &mut out.stage else {
        return None;
    };
    if offer.is_some() || *ended || *sent - *stored >= limits.chunks_in_flight_max {
        return None;
    }
    let source = source.take()?;
    Some(TransferStep::Read { to: out.to, id: out.id, source, bytes_max: limits.chunk_bytes_max })
}

fn sent(to: NodeId, reached: Option<LogIndex>) -> TransferStep {
    TransferStep::Tell(Input::SnapshotSent { to, reached })
}

fn answer(to: NodeId, id: u64, stored: u64, outcome: SnapshotOutcome) -> TransferStep {
    TransferStep::Send { to, message: PeerMessage::SnapshotAnswer { id, stored, outcome } }
}
