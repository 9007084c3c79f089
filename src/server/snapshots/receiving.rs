//! The snapshot that this server takes in, from the leader.
//!
//! Only who can hear this server's answers can send it a snapshot. An offer changes nothing: it is
//! answered with the key that this process has drawn at random, on the connection that it has
//! dialled itself, and the transfer begins when the offer is repeated with the key. Whoever merely
//! speaks in a leader's name, on a connection of its own, never learns it; a forged snapshot would
//! replace the store and the log of this server, and then perhaps of the group.
//!
//! Its chunks are stored beside the store by the applier ([`Intake`](super::intake::Intake)). When
//! all are there, checked and durable, the core decides whether the snapshot is still of use; if
//! so, the log begins anew after it, and it takes the store's place. Only then is its sender told
//! that it is complete. One that breaks before the core has taken it over is thrown away, and
//! nothing of it is kept.

use std::cmp::Ordering;

use bytes::Bytes;

use super::step::{SnapshotOffer, TransferLimits, TransferStep};
use crate::model::{
    AppliedPoint, LeaseEvent, LogIndex, MachineSummary, NodeId, SnapshotId, Term, Timestamp,
};
use crate::node::{Input, InstallRequest};
use crate::server::work::{LogWork, SnapshotWork, StoreWork, Work};
use crate::storage::snapshot::SnapshotChunk;
use crate::wire::message::{ServerMessage, SnapshotOutcome};

/// How far the arriving snapshot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReceivingStage {
    /// Its chunks are arriving.
    Arriving,
    /// All are there, and the applier checks them and makes them durable.
    Staging,
    /// It is durable beside the store, and the core decides whether it is of use.
    Staged,
    /// The log begins anew after it, and it takes the store's place.
    Installing,
}

/// A transfer from another server.
#[derive(Clone, Copy, Debug)]
struct IncomingTransfer {
    id: u64,
    from: NodeId,
    snapshot: SnapshotId,
    /// The timestamp that it reaches to: as it was offered, until its rows have been checked.
    timestamp: Timestamp,
    stage: ReceivingStage,
    received: u64,
    stored: u64,
    progress_us: u64,
}

impl IncomingTransfer {
    /// Whether its sender may break it.
    fn is_arriving(&self) -> bool {
        self.stage == ReceivingStage::Arriving
    }

    fn is(&self, from: NodeId, id: u64) -> bool {
        self.from == from && self.id == id && self.is_arriving()
    }
}

/// What this server takes in, one snapshot at a time.
#[derive(Debug)]
pub(super) struct Receiving {
    limits: TransferLimits,
    /// What an offer must carry so that a transfer to this server begins.
    offer_key: u64,
    incoming: Option<IncomingTransfer>,
    /// The room for a snapshot is being made, which was offered last or given up since. No other
    /// offer is taken meanwhile: each would be more work in the applier's queue.
    begin_queued: bool,
    /// Chunks in the applier's queue, those of transfers that were given up included: they are
    /// memory.
    chunks_queued: u64,
}

impl Receiving {
    /// `offer_key` is random, so that nobody guesses it.
    pub fn new(offer_key: u64, limits: TransferLimits) -> Receiving {
        Receiving { limits, offer_key, incoming: None, begin_queued: false, chunks_queued: 0 }
    }

    /// Takes in an offer, which begins a transfer if it has this server's key. `is_wanted` says
    /// whether this server follows who offers it, and is behind it.
    pub fn offered(
        &mut self,
        now_us: u64,
        from: NodeId,
        key: Option<u64>,
        offer: SnapshotOffer,
        is_wanted: bool,
    ) -> Vec<TransferStep> {
        let SnapshotOffer { id, snapshot, timestamp, hash } = offer;
        let is_busy = self.incoming.is_some_and(|incoming| !incoming.is_arriving());
        // The library panics on others.
        let exists = (1..=snapshot.leader_term).contains(&snapshot.term)
            && snapshot.index <= LogIndex::MAX / 2;
        let is_queued = self.begin_queued || self.chunks_queued > 0;
        if !is_wanted || !exists || is_busy || is_queued {
            return vec![answer(from, id, 0, SnapshotOutcome::Failed)];
        }
        if key != Some(self.offer_key) {
            return vec![answer(from, id, 0, SnapshotOutcome::Key(self.offer_key))];
        }
        let point = AppliedPoint { index: snapshot.index, timestamp, hash };
        log::info!("taking in a snapshot from server {from} to log index {}", snapshot.index);
        let mut steps = Vec::new();
        if self.incoming.is_some() {
            steps.push(store(SnapshotWork::Discard));
        }
        self.incoming = Some(IncomingTransfer {
            id,
            from,
            snapshot,
            timestamp,
            stage: ReceivingStage::Arriving,
            received: 0,
            stored: 0,
            progress_us: now_us,
        });
        self.begin_queued = true;
        steps.push(store(SnapshotWork::Begin { id, point }));
        steps
    }

    /// Notes that the applier has made room for a snapshot, or could not.
    pub fn begun(&mut self) {
        assert!(self.begin_queued, "the applier made room for what was not offered");
        self.begin_queued = false;
    }

    /// Takes in a chunk.
    pub fn chunk(
        &mut self,
        now_us: u64,
        (from, id): (NodeId, u64),
        sequence: u64,
        data: Bytes,
    ) -> Vec<TransferStep> {
        match &mut self.incoming {
            Some(incoming) if incoming.is(from, id) && incoming.received == sequence => {
                if self.chunks_queued >= self.limits.chunks_in_flight_max {
                    return self.refuse("its sender sends more at once than it may");
                }
                self.chunks_queued += 1;
                incoming.received += 1;
                incoming.progress_us = now_us;
                vec![store(SnapshotWork::Store { id, chunk: SnapshotChunk { sequence, data } })]
            }
            _ => Vec::new(),
        }
    }

    /// Takes in that all `chunks` were sent.
    pub fn ended(
        &mut self,
        now_us: u64,
        (from, id): (NodeId, u64),
        chunks: u64,
    ) -> Vec<TransferStep> {
        match &mut self.incoming {
            Some(incoming) if incoming.is(from, id) && incoming.received == chunks => {
                incoming.stage = ReceivingStage::Staging;
                incoming.progress_us = now_us;
                vec![store(SnapshotWork::Stage { id })]
            }
            Some(incoming) if incoming.is(from, id) => self.refuse("pieces are missing"),
            _ => Vec::new(),
        }
    }

    /// Notes that a chunk has left the applier's queue, and how many are stored if it was one of
    /// the arriving snapshot.
    pub fn stored(&mut self, id: u64, stored: Option<u64>) -> Vec<TransferStep> {
        assert!(self.chunks_queued > 0, "the applier took a chunk that it was not given");
        self.chunks_queued -= 1;
        match (stored, &mut self.incoming) {
            (Some(stored), Some(incoming)) if incoming.id == id => {
                incoming.stored = stored;
                vec![answer(incoming.from, id, stored, SnapshotOutcome::Receiving)]
            }
            _ => Vec::new(),
        }
    }

    /// Notes that a snapshot is durable beside the store: it is the core's turn.
    pub fn staged(&mut self, id: u64) -> Vec<TransferStep> {
        match &mut self.incoming {
            Some(incoming) if incoming.id == id => {
                assert_eq!(incoming.stage, ReceivingStage::Staging, "{incoming:?} is staged");
                incoming.stage = ReceivingStage::Staged;
                let IncomingTransfer { from, snapshot, timestamp, .. } = *incoming;
                let received = Input::SnapshotReceived { from, snapshot, timestamp };
                vec![TransferStep::Input(received)]
            }
            _ => vec![store(SnapshotWork::Discard)],
        }
    }

    /// Notes that a snapshot could not be stored.
    pub fn failed(&mut self, id: u64, reason: &str) -> Vec<TransferStep> {
        match self.incoming {
            Some(incoming) if incoming.id == id => self.refuse(reason),
            _ => Vec::new(),
        }
    }

    /// Installs the snapshot, which the core has taken over.
    pub fn install(&mut self, request: InstallRequest) -> TransferStep {
        let Some(incoming) = &mut self.incoming else { panic!("{request:?} was not received") };
        let IncomingTransfer { stage, snapshot, .. } = *incoming;
        let received = (stage, snapshot);
        let expected = (ReceivingStage::Staged, request.snapshot);
        assert_eq!(received, expected, "the core installs what was received");
        incoming.stage = ReceivingStage::Installing;
        TransferStep::Work(Work::Log(LogWork::Install(request)))
    }

    /// Notes that the snapshot is in place.
    pub fn installed(
        &mut self,
        point: AppliedPoint,
        summary: MachineSummary,
        leases: Vec<LeaseEvent>,
    ) -> Vec<TransferStep> {
        log::info!("the snapshot to log index {} is in place", point.index);
        let Some(incoming) = self.incoming.take() else { panic!("{point:?} was not received") };
        let IncomingTransfer { from, id, stored, stage, .. } = incoming;
        assert_eq!(stage, ReceivingStage::Installing, "{incoming:?} is installed");
        let applied = Input::Applied { outcomes: Vec::new(), point, summary, leases };
        vec![TransferStep::Input(applied), answer(from, id, stored, SnapshotOutcome::Complete)]
    }

    /// Throws the arriving snapshot away, if there is one.
    pub fn refuse(&mut self, reason: &str) -> Vec<TransferStep> {
        let Some(incoming) = self.incoming.take() else { return Vec::new() };
        let IncomingTransfer { from, id, stored, stage, .. } = incoming;
        assert_ne!(stage, ReceivingStage::Installing, "{incoming:?} is thrown away: {reason}");
        log::info!("the snapshot from server {from} is thrown away: {reason}");
        vec![store(SnapshotWork::Discard), answer(from, id, stored, SnapshotOutcome::Failed)]
    }

    /// Notes that what was under way on a link to or from `server` is lost.
    pub fn broken(&mut self, server: NodeId) -> Vec<TransferStep> {
        match self.incoming {
            Some(incoming) if incoming.from == server && incoming.is_arriving() => {
                self.refuse("its sender is gone")
            }
            _ => Vec::new(),
        }
    }

    /// Gives up what makes no progress or has lost its leader, in this `term` with this `leader`.
    pub fn tick(&mut self, now_us: u64, term: Term, leader: Option<NodeId>) -> Vec<TransferStep> {
        let Some(incoming) = self.incoming.filter(IncomingTransfer::is_arriving) else {
            return Vec::new();
        };
        // This server may not have heard of its sender's term yet, which is said on another
        // connection.
        let other_leads = match incoming.snapshot.leader_term.cmp(&term) {
            Ordering::Less => true,
            Ordering::Equal => leader.is_some_and(|leader| leader != incoming.from),
            Ordering::Greater => false,
        };
        if other_leads {
            self.refuse("its sender leads no more")
        } else if now_us.saturating_sub(incoming.progress_us) > self.limits.stall_timeout_us {
            self.refuse("nothing more comes")
        } else {
            Vec::new()
        }
    }
}

fn store(work: SnapshotWork) -> TransferStep {
    TransferStep::Work(Work::Store(StoreWork::Snapshot(work)))
}

fn answer(to: NodeId, id: u64, stored: u64, outcome: SnapshotOutcome) -> TransferStep {
    TransferStep::Send { to, message: ServerMessage::SnapshotAnswer { id, stored, outcome } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    const LEADER: NodeId = NodeId(1);

    fn snapshot(leader_term: Term) -> SnapshotId {
        SnapshotId { leader_term, index: 50, term: 1 }
    }

    const KEY: u64 = 77;

    fn offer_with(receiving: &mut Receiving, key: Option<u64>, id: u64) -> Vec<TransferStep> {
        let (snapshot, timestamp) = (snapshot(2), Timestamp(1));
        receiving.offered(0, LEADER, key, SnapshotOffer { id, snapshot, timestamp, hash: 0 }, true)
    }

    fn offer(receiving: &mut Receiving, id: u64) -> Vec<TransferStep> {
        offer_with(receiving, Some(KEY), id)
    }

    fn chunk(receiving: &mut Receiving, id: u64, sequence: u64) -> Vec<TransferStep> {
        receiving.chunk(0, (LEADER, id), sequence, Bytes::from_static(b"rows"))
    }

    /// How the sender is answered, if it is.
    fn outcome(steps: &[TransferStep]) -> Option<SnapshotOutcome> {
        steps.iter().find_map(|step| match step {
            TransferStep::Send {
                message: ServerMessage::SnapshotAnswer { outcome, .. }, ..
            } => Some(*outcome),
            _ => None,
        })
    }

    fn receiving() -> Receiving {
        Receiving::new(KEY, TransferLimits::default())
    }

    #[test]
    fn a_snapshot_is_installed_when_it_is_whole_and_the_core_wants_it() {
        let mut receiving = receiving();
        offer(&mut receiving, 7);
        receiving.begun();
        chunk(&mut receiving, 7, 0);
        let stored = receiving.stored(7, Some(1));
        assert_eq!(outcome(&stored), Some(SnapshotOutcome::Receiving));
        receiving.ended(0, (LEADER, 7), 1);
        let staged = receiving.staged(7);
        assert!(matches!(staged[..], [TransferStep::Input(Input::SnapshotReceived { .. })]));
        assert_eq!(outcome(&offer(&mut receiving, 8)), Some(SnapshotOutcome::Failed), "it is busy");
        assert!(receiving.broken(LEADER).is_empty(), "its sender is not needed any more");
        let request =
            InstallRequest { number: 3, snapshot: snapshot(2), hard_state: Default::default() };
        let install = receiving.install(request);
        let TransferStep::Work(Work::Log(LogWork::Install(installed))) = install else { panic!() };
        assert_eq!(installed, request);
        let (point, summary) = (AppliedPoint::default(), MachineSummary::default());
        let done = receiving.installed(point, summary, Vec::new());
        assert_eq!(outcome(&done), Some(SnapshotOutcome::Complete));
    }

    #[test]
    fn an_offer_without_the_key_begins_nothing_and_is_answered_with_it() {
        let mut receiving = receiving();
        for key in [None, Some(KEY + 1)] {
            let steps = offer_with(&mut receiving, key, 7);
            assert_eq!((steps.len(), outcome(&steps)), (1, Some(SnapshotOutcome::Key(KEY))));
            assert!(chunk(&mut receiving, 7, 0).is_empty(), "nothing is taken in");
        }
        assert!(outcome(&offer(&mut receiving, 7)).is_none());
        assert!(!chunk(&mut receiving, 7, 0).is_empty());
    }

    /// Each offer once was work for the applier, whose queue one server could fill.
    #[test]
    fn offers_are_refused_while_room_for_one_is_being_made() {
        let mut receiving = receiving();
        assert!(outcome(&offer(&mut receiving, 0)).is_none());
        for id in 1..1000 {
            let steps = offer(&mut receiving, id);
            assert_eq!((steps.len(), outcome(&steps)), (1, Some(SnapshotOutcome::Failed)));
        }
        receiving.begun();
        assert!(outcome(&offer(&mut receiving, 1000)).is_none());
    }

    #[test]
    fn a_sender_that_sends_more_at_once_than_it_may_is_refused() {
        let mut receiving = receiving();
        offer(&mut receiving, 7);
        let most = TransferLimits::default().chunks_in_flight_max;
        for sequence in 0..most {
            assert!(outcome(&chunk(&mut receiving, 7, sequence)).is_none());
        }
        let refused = chunk(&mut receiving, 7, most);
        assert_eq!(outcome(&refused), Some(SnapshotOutcome::Failed));
        // What is in the applier's queue counts on.
        receiving.begun();
        assert_eq!(outcome(&offer(&mut receiving, 8)), Some(SnapshotOutcome::Failed));
        (0..most).for_each(|_| drop(receiving.stored(7, None)));
        assert!(outcome(&offer(&mut receiving, 8)).is_none());
    }

    #[test]
    fn a_snapshot_of_a_leader_that_leads_no_more_is_thrown_away() {
        let refused = |term, leader| {
            let mut receiving = receiving();
            offer(&mut receiving, 7);
            outcome(&receiving.tick(1, term, leader)).is_some()
        };
        assert!(!refused(1, None), "its term was not heard of yet");
        assert!(!refused(2, Some(LEADER)));
        assert!(refused(2, Some(NodeId(3))) && refused(3, None));
    }
}
