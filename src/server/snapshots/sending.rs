//! The snapshots that this leader sends to servers that its log no longer reaches.
//!
//! The applier pins a view of the store, a worker reads it chunk by chunk while writes go on, and a
//! few chunks are under way at once. Rules:
//!
//! - **Nothing is tried again at once.** Consensus asks for another snapshot with every heartbeat
//!   that finds the receiver behind the log. Each attempt costs a checkpoint and a view, so
//!   attempts to one server are spaced: [`TransferLimits::retry_us_min`] after the first failure,
//!   twice as long after each further one.
//! - **A chunk that cannot be read just now is read later.** Busy workers delay a transfer and do
//!   not break it.

use std::collections::{BTreeMap, BTreeSet};

use super::log_claims::LogClaims;
use super::step::{SnapshotOffer, TransferLimits, TransferStep};
use crate::model::{AppliedPoint, LogIndex, NodeId, SnapshotId, Term};
use crate::node::Input;
use crate::server::work::{CatchUpWork, SnapshotWork, StoreWork, Work};
use crate::storage::snapshot::{SnapshotChunk, SnapshotSource};
use crate::wire::message::{ServerMessage, SnapshotOutcome};

/// A transfer to another server.
#[derive(Debug)]
struct OutgoingTransfer {
    id: u64,
    to: NodeId,
    leader_term: Term,
    stage: SendingStage,
    /// Time of its last progress.
    progress_us: u64,
}

#[derive(Debug)]
enum SendingStage {
    /// The attempt before failed a short time ago.
    Waiting { until_us: u64 },
    /// The applier is pinning a view.
    Pinning,
    /// Chunks are on their way.
    Sending {
        index: LogIndex,
        /// Until the receiver has given its key, without which it takes nothing in; and when it
        /// was offered last.
        offer: Option<(SnapshotOffer, u64)>,
        /// The view, while no worker is reading from it.
        source: Option<SnapshotSource>,
        sent: u64,
        stored: u64,
        ended: bool,
    },
}

/// Attempts that failed since the last one that succeeded.
#[derive(Clone, Copy, Debug)]
struct FailedAttempts {
    count: u32,
    last_us: u64,
}

/// What this server sends, at most one snapshot to each server.
#[derive(Debug)]
pub(super) struct Sending {
    limits: TransferLimits,
    outgoing: Vec<OutgoingTransfer>,
    failures: BTreeMap<NodeId, FailedAttempts>,
    /// Servers that can be sent to.
    linked: BTreeSet<NodeId>,
    claims: LogClaims,
    last_id: u64,
}

impl Sending {
    pub fn new(first_id: u64, limits: TransferLimits) -> Sending {
        Sending {
            limits,
            outgoing: Vec::new(),
            failures: BTreeMap::new(),
            linked: BTreeSet::new(),
            claims: LogClaims::new(limits.stall_timeout_us),
            last_id: first_id,
        }
    }

    /// What receivers still need of the log.
    pub fn claims_mut(&mut self) -> &mut LogClaims {
        &mut self.claims
    }

    /// Begins a transfer that the core wants.
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
        if self.claims.was_sent_whole(to) {
            self.note_failure(now_us, to);
        }
        let until_us = self.failures.get(&to).map_or(0, |failures| {
            let doublings = failures.count.saturating_sub(1).min(30);
            let wait_us = self.limits.retry_us_min.saturating_mul(1 << doublings);
            failures.last_us.saturating_add(wait_us.min(self.limits.retry_us_max))
        });
        self.last_id += 1;
        let stage = SendingStage::Waiting { until_us };
        let id = self.last_id;
        self.outgoing.push(OutgoingTransfer { id, to, leader_term, stage, progress_us: now_us });
        self.pin_due(now_us)
    }

    fn pin_due(&mut self, now_us: u64) -> Vec<TransferStep> {
        let mut steps = Vec::new();
        for out in &mut self.outgoing {
            if matches!(out.stage, SendingStage::Waiting { until_us } if until_us <= now_us) {
                out.stage = SendingStage::Pinning;
                out.progress_us = now_us;
                let pin = SnapshotWork::Pin { to: out.to, id: out.id };
                steps.push(TransferStep::Work(Work::Store(StoreWork::Snapshot(pin))));
            }
        }
        steps
    }

    fn outgoing_mut(&mut self, to: NodeId, id: u64) -> Option<&mut OutgoingTransfer> {
        self.outgoing.iter_mut().find(|out| out.to == to && out.id == id)
    }

    /// Notes that a view is pinned. `term_at` gives the term of an entry of this server's log.
    pub fn pinned(
        &mut self,
        now_us: u64,
        (to, id): (NodeId, u64),
        source: SnapshotSource,
        term_at: impl Fn(LogIndex) -> Option<Term>,
    ) -> Vec<TransferStep> {
        let Some(out) = self.outgoing_mut(to, id) else { return Vec::new() };
        let AppliedPoint { index, timestamp, hash } = source.point();
        let Some(term) = term_at(index) else { return self.give_up(now_us, to) };
        let snapshot = SnapshotId { leader_term: out.leader_term, index, term };
        let offer = SnapshotOffer { id, snapshot, timestamp, hash };
        out.stage = SendingStage::Sending {
            index,
            offer: Some((offer, now_us)),
            source: Some(source),
            sent: 0,
            stored: 0,
            ended: false,
        };
        out.progress_us = now_us;
        self.claims.begin(now_us, to, index);
        log::info!(
            "server {to} is further behind than the log reaches: sending it a snapshot of \
             everything to log index {index}"
        );
        vec![TransferStep::Send { to, message: offer.message(None) }]
    }

    /// Notes that a worker has read a chunk (`Ok(None)`: there are no more), and gives the view
    /// back.
    pub fn read(
        &mut self,
        now_us: u64,
        (to, id): (NodeId, u64),
        view: SnapshotSource,
        chunk: Result<Option<SnapshotChunk>, String>,
    ) -> Vec<TransferStep> {
        let out = self.outgoing_mut(to, id).map(|out| &mut out.stage);
        let Some(SendingStage::Sending { index, source, sent, ended, .. }) = out else {
            return Vec::new();
        };
        match chunk {
            Ok(Some(SnapshotChunk { sequence, data })) => {
                assert_eq!(sequence, *sent, "chunks are read in order, each once");
                *sent += 1;
                *source = Some(view);
                let message = ServerMessage::SnapshotChunk { id, sequence, data };
                let chunk = TransferStep::Send { to, message };
                [chunk].into_iter().chain(self.read_on(to, id)).collect()
            }
            Ok(None) => {
                *ended = true;
                let message = ServerMessage::SnapshotEnd { id, chunks: *sent };
                let index = *index;
                self.claims.sent_whole(now_us, to, index);
                vec![TransferStep::Send { to, message }]
            }
            Err(error) => {
                log::error!("cannot read the snapshot for server {to}: {error}");
                self.give_up(now_us, to)
            }
        }
    }

    /// The next chunk is read when the receiver takes them in, the view is at hand and not too many
    /// are under way.
    fn read_on(&mut self, to: NodeId, id: u64) -> Option<TransferStep> {
        let TransferLimits { chunks_in_flight_max, chunk_bytes_max, .. } = self.limits;
        let stage = &mut self.outgoing_mut(to, id)?.stage;
        let SendingStage::Sending { offer, source, sent, stored, ended, .. } = stage else {
            return None;
        };
        if offer.is_some() || *ended || *sent - *stored >= chunks_in_flight_max {
            return None;
        }
        let source = source.take()?;
        let read = CatchUpWork::Chunk { to, id, source, bytes_max: chunk_bytes_max };
        Some(TransferStep::Work(Work::CatchUp(read)))
    }

    /// Notes that there was no place for a [`CatchUpWork::Chunk`]: it is tried again with the next
    /// tick.
    pub fn not_read(&mut self, (to, id): (NodeId, u64), view: SnapshotSource) {
        let out = self.outgoing_mut(to, id);
        if let Some(OutgoingTransfer { stage: SendingStage::Sending { source, .. }, .. }) = out {
            *source = Some(view);
        }
    }

    /// Takes in the receiver's answer, which has stored so many chunks.
    pub fn answered(
        &mut self,
        now_us: u64,
        (from, id): (NodeId, u64),
        chunks: u64,
        outcome: SnapshotOutcome,
    ) -> Vec<TransferStep> {
        let Some(out) = self.outgoing_mut(from, id) else { return Vec::new() };
        let SendingStage::Sending { index, offer, sent: sent_chunks, stored, ended, .. } =
            &mut out.stage
        else {
            return Vec::new();
        };
        match outcome {
            SnapshotOutcome::Key(key) => {
                // A second answer says nothing new.
                let Some((offer, _)) = offer.take() else { return Vec::new() };
                out.progress_us = now_us;
                let begin = TransferStep::Send { to: from, message: offer.message(Some(key)) };
                [begin].into_iter().chain(self.read_on(from, id)).collect()
            }
            SnapshotOutcome::Receiving => {
                *stored = chunks.clamp(*stored, *sent_chunks);
                out.progress_us = now_us;
                self.claims.progress(now_us, from);
                self.read_on(from, id).into_iter().collect()
            }
            // Nobody has in place what was not sent whole.
            SnapshotOutcome::Complete if !*ended => self.give_up(now_us, from),
            SnapshotOutcome::Complete => {
                log::info!(
                    "server {from} has the snapshot in place, and gets the log from here on"
                );
                let index = *index;
                self.outgoing.retain(|out| out.to != from);
                self.claims.progress(now_us, from);
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
        self.claims.broken(to);
        vec![sent(to, None)]
    }

    /// Notes that the log before `first_index` is gone: transfers whose receivers would need it
    /// then are given up.
    pub fn compacted(&mut self, now_us: u64, first_index: LogIndex) -> Vec<TransferStep> {
        let overrun = self.claims.compacted(first_index);
        overrun.into_iter().flat_map(|server| self.broken(now_us, server)).collect()
    }

    pub fn link_up(&mut self, server: NodeId) {
        self.linked.insert(server);
    }

    pub fn link_down(&mut self, server: NodeId) {
        self.linked.remove(&server);
    }

    /// Gives up the transfer to a server, if there is one.
    pub fn broken(&mut self, now_us: u64, server: NodeId) -> Vec<TransferStep> {
        match self.outgoing.iter().any(|out| out.to == server) {
            true => self.give_up(now_us, server),
            false => Vec::new(),
        }
    }

    /// Begins what is due, and gives up what makes no progress or belongs to another term than
    /// `led`, in which this server leads. `matched` is how far the leader knows a server's log to
    /// reach.
    ///
    /// An offer without an answer is repeated: the receiver may not have had a link yet on which to
    /// give its key.
    pub fn tick(
        &mut self,
        now_us: u64,
        led: Option<Term>,
        commit: LogIndex,
        matched: impl Fn(NodeId) -> LogIndex,
    ) -> Vec<TransferStep> {
        self.outgoing.retain(|out| led == Some(out.leader_term));
        let (met, compact) = self.claims.tick(now_us, led.is_some(), commit, matched);
        for server in met {
            // Only the first wait is left: an answer that was under way for long may still ask for
            // a snapshot, and must not have one prepared sooner after a failure than any other.
            if let Some(failures) = self.failures.get_mut(&server) {
                failures.count = 1;
            }
        }
        let mut steps: Vec<TransferStep> = compact.into_iter().collect();
        let late = |out: &&OutgoingTransfer| {
            let is_stalled = now_us.saturating_sub(out.progress_us) > self.limits.stall_timeout_us;
            !matches!(out.stage, SendingStage::Waiting { .. }) && is_stalled
        };
        let late: Vec<NodeId> = self.outgoing.iter().filter(late).map(|out| out.to).collect();
        for to in late {
            log::info!("server {to} takes in nothing more of its snapshot: giving it up");
            steps.extend(self.give_up(now_us, to));
        }
        steps.extend(self.pin_due(now_us));
        steps.extend(self.offer_again(now_us));
        let outgoing: Vec<_> = self.outgoing.iter().map(|out| (out.to, out.id)).collect();
        steps.extend(outgoing.into_iter().filter_map(|(to, id)| self.read_on(to, id)));
        steps
    }

    fn offer_again(&mut self, now_us: u64) -> Vec<TransferStep> {
        let interval_us = self.limits.retry_us_min;
        let again = |out: &mut OutgoingTransfer| {
            let SendingStage::Sending { offer: Some((offer, offered_us)), .. } = &mut out.stage
            else {
                return None;
            };
            let due = now_us.saturating_sub(*offered_us) >= interval_us;
            due.then(|| {
                *offered_us = now_us;
                TransferStep::Send { to: out.to, message: offer.message(None) }
            })
        };
        self.outgoing.iter_mut().filter_map(again).collect()
    }
}

fn sent(to: NodeId, reached: Option<LogIndex>) -> TransferStep {
    TransferStep::Input(Input::SnapshotSent { to, reached })
}
