//! Snapshots on their way: to servers that are too far behind for the log, and from the leader.
//!
//! The leader's applier pins a consistent view of the store; a worker reads it piece by piece while
//! writes go on; a few pieces are under way at once. The receiver stores them beside its own store.
//! When all are there and checked, the core decides whether the snapshot is still of use; then the log
//! begins anew after it, and it takes the store's place. A transfer that breaks is begun again from
//! the start when consensus asks for it; nothing of a broken one is kept.
//!
//! This part is bookkeeping without IO: what is to be done comes out as [`Step`]s.

use std::time::Instant;

use bytes::Bytes;

use crate::limits;
use crate::node::Input;
use crate::storage::snapshot::{SnapshotChunk, SnapshotSource};
use crate::types::{AppliedPoint, NodeId, SnapshotId, Term};
use crate::wire::message::{PeerMessage, SnapshotOutcome};

/// Something to be done.
pub(super) enum Step {
    /// Send to another server.
    Send { to: NodeId, message: PeerMessage },
    /// Work for the applier, which owns the store.
    Store(SnapshotWork),
    /// Read the next piece on a worker, then call [`Transfers::read`].
    Read { to: NodeId, id: u64, source: SnapshotSource },
    /// Tell the core.
    Tell(Input),
}

/// What the applier does about snapshots.
pub(super) enum SnapshotWork {
    /// Pin a view of the store; answered by [`Transfers::prepared`].
    Prepare { to: NodeId, id: u64 },
    /// Make room for an arriving snapshot.
    Begin { id: u64, point: AppliedPoint },
    /// Store a piece; answered by [`Transfers::stored`].
    Chunk { id: u64, chunk: SnapshotChunk },
    /// Check it and make it durable; answered by [`Transfers::staged`].
    Finish { id: u64 },
    /// Put it in the store's place.
    Install,
    /// Throw away whatever has arrived.
    Discard,
}

/// To another server.
struct Outgoing {
    id: u64,
    to: NodeId,
    leader_term: Term,
    /// The view, while no worker is reading from it.
    source: Option<SnapshotSource>,
    sent: u64,
    stored: u64,
    ended: bool,
    progress_at: Instant,
}

/// From another server.
struct Incoming {
    id: u64,
    from: NodeId,
    snapshot: SnapshotId,
    received: u64,
    /// Everything has arrived; it is the applier's and the core's turn.
    whole: bool,
    progress_at: Instant,
}

/// All transfers of a server.
#[derive(Default)]
pub(super) struct Transfers {
    outgoing: Vec<Outgoing>,
    incoming: Option<Incoming>,
    last_id: u64,
}

impl Transfers {
    /// `first_id` is random, so that what belongs to an earlier run is not taken for this one's.
    pub fn new(first_id: u64) -> Transfers {
        Transfers { last_id: first_id, ..Transfers::default() }
    }

    // ---- sending -----------------------------------------------------------------------------

    /// The core wants a snapshot sent.
    pub fn start(&mut self, now: Instant, to: NodeId, leader_term: Term) -> Vec<Step> {
        self.outgoing.retain(|out| out.to != to);
        self.last_id += 1;
        let id = self.last_id;
        self.outgoing.push(Outgoing {
            id,
            to,
            leader_term,
            source: None,
            sent: 0,
            stored: 0,
            ended: false,
            progress_at: now,
        });
        vec![Step::Store(SnapshotWork::Prepare { to, id })]
    }

    /// A view is pinned, or could not be. `term_at` gives the term of the entry it reaches to.
    pub fn prepared(
        &mut self,
        to: NodeId,
        id: u64,
        source: Option<SnapshotSource>,
        term_at: impl Fn(u64) -> Option<Term>,
    ) -> Vec<Step> {
        let Some(out) = self.outgoing.iter().find(|out| out.to == to && out.id == id) else {
            return Vec::new();
        };
        let point = source.as_ref().map(SnapshotSource::point).unwrap_or_default();
        let (Some(source), Some(term)) = (source, term_at(point.index)) else {
            return self.give_up(to);
        };
        let snapshot = SnapshotId { leader_term: out.leader_term, index: point.index, term };
        let AppliedPoint { timestamp, hash, .. } = point;
        log::info!(
            "server {to} is further behind than the log reaches: sending it a snapshot of everything to \
             log index {}",
            point.index
        );
        let message = PeerMessage::Snapshot { id, snapshot, timestamp, hash };
        vec![Step::Send { to, message }, Step::Read { to, id, source }]
    }

    /// A worker has read a piece (`Ok(None)`: there are no more), and gives the view back.
    pub fn read(
        &mut self,
        to: NodeId,
        id: u64,
        source: SnapshotSource,
        chunk: Result<Option<SnapshotChunk>, String>,
    ) -> Vec<Step> {
        let Some(out) = self.outgoing.iter_mut().find(|out| out.to == to && out.id == id) else {
            return Vec::new();
        };
        match chunk {
            Ok(Some(SnapshotChunk { sequence, data })) => {
                out.sent = sequence + 1;
                out.source = Some(source);
                let message = PeerMessage::SnapshotChunk { id, sequence, data };
                let mut steps = vec![Step::Send { to, message }];
                steps.extend(read_on(out));
                steps
            }
            Ok(None) => {
                out.ended = true;
                let message = PeerMessage::SnapshotEnd { id, chunks: out.sent };
                vec![Step::Send { to, message }]
            }
            Err(error) => {
                log::error!("cannot read the snapshot for server {to}: {error}");
                self.give_up(to)
            }
        }
    }

    /// The receiver tells how it is getting on.
    pub fn answered(
        &mut self,
        now: Instant,
        from: NodeId,
        id: u64,
        stored: u64,
        outcome: SnapshotOutcome,
    ) -> Vec<Step> {
        let Some(out) = self.outgoing.iter_mut().find(|out| out.to == from && out.id == id) else {
            return Vec::new();
        };
        match outcome {
            SnapshotOutcome::Receiving => {
                out.progress_at = now;
                out.stored = stored.clamp(out.stored, out.sent);
                read_on(out).into_iter().collect()
            }
            SnapshotOutcome::Complete => {
                log::info!(
                    "server {from} has the snapshot in place, and gets the log from here on"
                );
                self.outgoing.retain(|out| out.to != from);
                vec![Step::Tell(Input::SnapshotSent { to: from, complete: true })]
            }
            SnapshotOutcome::Failed => {
                log::info!(
                    "server {from} could not use the snapshot: it gets another if it still needs one"
                );
                self.give_up(from)
            }
        }
    }

    fn give_up(&mut self, to: NodeId) -> Vec<Step> {
        self.outgoing.retain(|out| out.to != to);
        vec![Step::Tell(Input::SnapshotSent { to, complete: false })]
    }

    // ---- receiving ---------------------------------------------------------------------------

    /// A snapshot is offered; `acceptable` says whether this server follows who offers it.
    pub fn offered(
        &mut self,
        now: Instant,
        from: NodeId,
        id: u64,
        snapshot: SnapshotId,
        point: AppliedPoint,
        acceptable: bool,
    ) -> Vec<Step> {
        let busy = self.incoming.as_ref().is_some_and(|incoming| incoming.whole);
        if !acceptable || busy {
            return vec![answer(from, id, 0, SnapshotOutcome::Failed)];
        }
        log::info!("taking in a snapshot from server {from} to log index {}", snapshot.index);
        let mut steps = Vec::new();
        if self.incoming.is_some() {
            steps.push(Step::Store(SnapshotWork::Discard));
        }
        self.incoming =
            Some(Incoming { id, from, snapshot, received: 0, whole: false, progress_at: now });
        steps.push(Step::Store(SnapshotWork::Begin { id, point }));
        steps
    }

    /// A piece arrives.
    pub fn chunk(
        &mut self,
        now: Instant,
        from: NodeId,
        id: u64,
        sequence: u64,
        data: Bytes,
    ) -> Vec<Step> {
        match &mut self.incoming {
            Some(incoming) if incoming.is(from, id) && incoming.received == sequence => {
                incoming.received += 1;
                incoming.progress_at = now;
                let chunk = SnapshotChunk { sequence, data };
                vec![Step::Store(SnapshotWork::Chunk { id, chunk })]
            }
            _ => Vec::new(),
        }
    }

    /// All pieces have been sent.
    pub fn ended(&mut self, now: Instant, from: NodeId, id: u64, chunks: u64) -> Vec<Step> {
        match &mut self.incoming {
            Some(incoming) if incoming.is(from, id) && incoming.received == chunks => {
                incoming.whole = true;
                incoming.progress_at = now;
                vec![Step::Store(SnapshotWork::Finish { id })]
            }
            Some(incoming) if incoming.is(from, id) => self.refuse("pieces are missing"),
            _ => Vec::new(),
        }
    }

    /// The applier has stored this many pieces.
    pub fn stored(&mut self, id: u64, stored: u64) -> Vec<Step> {
        match &self.incoming {
            Some(incoming) if incoming.id == id => {
                vec![answer(incoming.from, id, stored, SnapshotOutcome::Receiving)]
            }
            _ => Vec::new(),
        }
    }

    /// The applier has checked the whole and made it durable beside the store.
    pub fn staged(&mut self, id: u64) -> Vec<Step> {
        match &self.incoming {
            Some(Incoming { id: ours, from, snapshot, .. }) if *ours == id => {
                vec![Step::Tell(Input::SnapshotReceived { from: *from, snapshot: *snapshot })]
            }
            _ => vec![Step::Store(SnapshotWork::Discard)],
        }
    }

    /// The applier could not store it.
    pub fn failed(&mut self, id: u64, reason: &str) -> Vec<Step> {
        match &self.incoming {
            Some(incoming) if incoming.id == id => self.refuse(reason),
            _ => Vec::new(),
        }
    }

    /// The core takes it over: the log is to begin anew after it.
    pub fn installing(&mut self) -> Vec<Step> {
        let Some(Incoming { from, id, received, .. }) = self.incoming else { return Vec::new() };
        vec![answer(from, id, received, SnapshotOutcome::Complete)]
    }

    /// It has taken the store's place.
    pub fn installed(&mut self) {
        self.incoming = None;
    }

    /// The core has no use for it.
    pub fn discarded(&mut self) -> Vec<Step> {
        self.refuse("it is not needed any more")
    }

    fn refuse(&mut self, reason: &str) -> Vec<Step> {
        let Some(Incoming { from, id, received, .. }) = self.incoming.take() else {
            return Vec::new();
        };
        log::info!("the snapshot from server {from} is thrown away: {reason}");
        vec![
            Step::Store(SnapshotWork::Discard),
            answer(from, id, received, SnapshotOutcome::Failed),
        ]
    }

    // ---- both --------------------------------------------------------------------------------

    /// The link to a peer is gone, in either direction.
    pub fn lost(&mut self, peer: NodeId) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.outgoing.iter().any(|out| out.to == peer) {
            steps.extend(self.give_up(peer));
        }
        if self.incoming.as_ref().is_some_and(|i| i.from == peer && !i.whole) {
            steps.extend(self.refuse("its sender is gone"));
        }
        steps
    }

    /// Gives up what makes no progress.
    pub fn tick(&mut self, now: Instant) -> Vec<Step> {
        let stalled =
            |since: Instant| now.saturating_duration_since(since) > limits::SNAPSHOT_STALL_TIMEOUT;
        let late: Vec<NodeId> =
            self.outgoing.iter().filter(|out| stalled(out.progress_at)).map(|out| out.to).collect();
        let mut steps: Vec<Step> = late.into_iter().flat_map(|to| self.give_up(to)).collect();
        if self.incoming.as_ref().is_some_and(|i| !i.whole && stalled(i.progress_at)) {
            steps.extend(self.refuse("nothing more comes"));
        }
        steps
    }
}

impl Incoming {
    fn is(&self, from: NodeId, id: u64) -> bool {
        self.from == from && self.id == id && !self.whole
    }
}

/// The next piece may be read when the view is at hand and not too many are under way.
fn read_on(out: &mut Outgoing) -> Option<Step> {
    if out.ended || out.sent - out.stored >= limits::SNAPSHOT_CHUNKS_IN_FLIGHT {
        return None;
    }
    let source = out.source.take()?;
    Some(Step::Read { to: out.to, id: out.id, source })
}

fn answer(to: NodeId, id: u64, stored: u64, outcome: SnapshotOutcome) -> Step {
    Step::Send { to, message: PeerMessage::SnapshotAnswer { id, stored, outcome } }
}
