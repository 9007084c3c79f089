//! Decides which source is asked for which chunk of one download.
//!
//! A deterministic state machine without sockets, files, clock or system randomness. Inputs are
//! method calls: a source connected, announced chunks, sent bytes or a whole chunk, refused, or
//! disconnected; a chunk was verified; time passed. Outputs come from [`Swarm::next_action`]. Times
//! are durations since any fixed start, and random choices come from a seed.
//!
//! Rules:
//!
//! - **Rarest first** (`picker`): a chunk that few sources have is fetched while they are
//!   connected.
//! - **Faster sources get more requests.** A source has as many requests outstanding as it serves
//!   in [`limits::REQUEST_AHEAD`], and at least two, so that it never waits a round trip between
//!   chunks. A slow source has one outstanding, and gets none for a chunk that would take it longer
//!   than the others need for everything that is left.
//! - **No source waits for a slow one.** Each source in use receives into a buffer of its own.
//!   Memory is bounded by the number of chunks that have arrived and are not stored
//!   ([`Swarm::may_receive`]).
//! - **Endgame.** When every chunk left is assigned, an idle source is asked for the chunk that
//!   another is expected to take longest for; a far faster source also when it is not idle. The
//!   request to the slower source is cancelled.
//! - **An overdue chunk is assigned to a second source** ([`limits::CHUNK_OVERDUE`]), however fast
//!   the first one seems: the age of the request counts, not what else the source sends.
//! - **A stalled chunk is raced for** (`race`, [`limits::CHUNK_STALLED`]): in the endgame a chunk
//!   whose source has stopped sending is assigned to others as well, and to twice as many each time
//!   these stall, too. Sources that stalled over fewer chunks come first, then faster ones. A
//!   source that has stalled gets no chunk that another could soon send, and makes room for one
//!   that has not.
//! - **Some places are for trying sources** (`rotation`): as long as there are untried sources, a
//!   quarter of the places rotates. No more sources of one IP address are in use than of any other
//!   that has some, and of one socket address only one at a time.
//! - **Progress is a verified chunk.** Unverified bytes count as progress only for a limited time,
//!   so sources that send a little now and then, and never a good chunk, cannot prolong a download.
//! - **A silent source with requests outstanding is dropped** after [`limits::SOURCE_SILENCE_MAX`]
//!   if another can serve its chunks, later if none can. So is one that is far slower than the
//!   others. Its chunks are assigned to others at once, and it is dialled again with growing waits.
//! - **A source that breaks the protocol or sends wrong bytes is banned.** One that does not have
//!   the content, or not at the moment, is dialled again soon.
//! - **The sources in use are a random sample.** More may be known than are in use. One that fails,
//!   or has nothing to send, makes room for an untried one, so that no number of dead sources hides
//!   those that serve.
//!
//! Invariants: those of [`ChunkTable`]; and only a `Ready` source has requests outstanding.

mod chunk_table;
mod interface;
mod picker;
mod race;
mod rotation;
mod source;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::limits::{self, CHUNK_BYTES};
use crate::share::chunks::ChunkSet;
use crate::share::content::{chunk_count, chunk_len};
use crate::wire::share::DenialCode;
use chunk_table::ChunkTable;
pub use interface::{DropReason, SourceId, SwarmAction, SwarmConfig};
pub use source::SourceStatus;
use source::{SourceChunks, SwarmSource};

/// A source that has the content no more, or whose file changed, is dialled again after this,
/// doubling each time.
const SOURCE_WITHDRAWN_MIN: Duration = Duration::from_secs(1);
/// The longest pause before such a source is dialled again: a file that was only touched or renamed
/// is offered again as soon as it has been hashed.
const SOURCE_WITHDRAWN_MAX: Duration = Duration::from_secs(2);

/// A download has made progress once this many bytes have arrived, and not with every byte.
const PROGRESS_BYTES_MIN: u64 = 16 * 1024;

/// The state machine of one download. See the module for its rules.
#[derive(Debug)]
pub struct Swarm {
    config: SwarmConfig,
    chunks: ChunkTable,
    sources: Vec<SwarmSource>,
    /// The sources that are `Connecting` or `Ready`.
    in_use: Vec<SourceId>,
    /// Whether a place may have become free, so that sources may have to be dialled.
    look_for_sources: bool,
    /// How many useful sources may be exchanged for untried ones now. One is added with each tick,
    /// up to a quarter of the places.
    exchanges: usize,
    random: SmallRng,
    /// Chunks that their only assignee has owed for too long.
    overdue: Vec<u64>,
    actions: VecDeque<SwarmAction>,
    /// When the download last made progress: a chunk was verified, or at least
    /// [`PROGRESS_BYTES_MIN`] were received from sources with outstanding requests.
    progress_at: Duration,
    /// When the last chunk was verified.
    checked_at: Duration,
    /// Unverified bytes received since `progress_at`.
    progress_bytes: u64,
}

impl Swarm {
    /// A swarm that connects to sources and requests no chunk before [`Swarm::begin`].
    pub fn new(config: SwarmConfig, now: Duration) -> Swarm {
        Swarm {
            chunks: ChunkTable::new(chunk_count(config.size), config.seed),
            sources: Vec::new(),
            in_use: Vec::new(),
            look_for_sources: false,
            exchanges: 0,
            random: SmallRng::seed_from_u64(config.seed ^ 1),
            overdue: Vec::new(),
            actions: VecDeque::new(),
            progress_at: now,
            checked_at: now,
            progress_bytes: 0,
            config,
        }
    }

    /// Starts to request every chunk that is not in `stored`. To be called once.
    pub fn begin(&mut self, stored: &ChunkSet, now: Duration) {
        self.chunks.begin(stored);
        self.restart_patience(now);
    }

    /// Counts the present as progress, since the download has been waiting for its own disk.
    pub fn restart_patience(&mut self, now: Duration) {
        (self.progress_at, self.checked_at) = (now, now);
    }

    /// The next thing to do. After every input it has to be called until it returns `None`.
    pub fn next_action(&mut self, now: Duration) -> Option<SwarmAction> {
        if self.actions.is_empty() {
            self.plan(now);
        }
        self.actions.pop_front()
    }

    /// Whether every chunk is stored.
    pub fn is_done(&self) -> bool {
        self.chunks.is_done()
    }

    /// When the download last made progress.
    pub fn progress_at(&self) -> Duration {
        self.progress_at
    }

    /// Whether the bytes of one more chunk may be received now.
    pub fn may_receive(&self) -> bool {
        self.chunks.arrived() < self.config.chunks_max
    }

    /// Whether every known source is banned.
    pub fn is_hopeless(&self) -> bool {
        self.sources.iter().all(|source| source.status == SourceStatus::Banned)
    }

    /// Whether a source is untried, in use, dropped for now, or banned.
    pub fn status(&self, id: SourceId) -> SourceStatus {
        self.source(id).status
    }

    /// The number of chunks that a source is asked for and has not sent.
    pub fn outstanding(&self, id: SourceId) -> usize {
        self.source(id).assignments.len()
    }

    /// Whether a source has answered BUSY and has sent nothing since.
    pub fn reports_busy(&self, id: SourceId) -> bool {
        let source = self.source(id);
        source.busy_times > 0 && source.begun_bytes == 0
    }

    /// A source's average rate in bytes a second.
    pub fn rate(&self, id: SourceId) -> f64 {
        self.source(id).meter.rate()
    }

    /// Bytes of verified chunks that a source has sent.
    pub fn given_bytes(&self, id: SourceId) -> u64 {
        self.source(id).given_bytes
    }

    fn source(&self, id: SourceId) -> &SwarmSource {
        // Ids are made by `add_source` only, and no message carries one.
        assert!(id.0 < self.sources.len(), "{id:?} of {} sources", self.sources.len());
        &self.sources[id.0]
    }

    fn source_mut(&mut self, id: SourceId) -> &mut SwarmSource {
        assert!(id.0 < self.sources.len(), "{id:?} of {} sources", self.sources.len());
        &mut self.sources[id.0]
    }

    /// Adds a source. When as many are known as may be, one that has failed is forgotten for it,
    /// and its id is reused. Returns `None` if none has failed.
    pub fn add_source(&mut self, address: SocketAddr, now: Duration) -> Option<SourceId> {
        self.look_for_sources = true;
        let source = SwarmSource::new(address, &self.config, now);
        if self.sources.len() < self.config.known_max {
            self.sources.push(source);
            return Some(SourceId(self.sources.len() - 1));
        }
        // A source with chunks that are still being verified may yet turn out to have sent wrong
        // ones.
        let is_gone = |source: &SwarmSource| {
            let gone = matches!(source.status, SourceStatus::Away { .. } | SourceStatus::Banned);
            gone && source.unchecked == 0
        };
        // A banned source is remembered as long as there is another to forget.
        let rank = |source: &SwarmSource| (source.status != SourceStatus::Banned, source.failures);
        let failed = self.sources.iter().enumerate().filter(|(_, source)| is_gone(source));
        let (at, _) = failed.max_by_key(|(_, source)| rank(source))?;
        let assignments = self.sources[at].assignments.len();
        assert_eq!(assignments, 0, "a source that is not in use has no request outstanding");
        self.sources[at] = source;
        Some(SourceId(at))
    }

    /// The connection with a source is established. Its chunks are announced separately.
    pub fn connected(&mut self, id: SourceId, now: Duration) {
        // Anything else: the swarm has dropped it, and the driver has not closed it yet.
        if self.source(id).status != SourceStatus::Connecting {
            return;
        }
        if self.ready() >= self.config.sources_max {
            // More sources are dialled than there are places.
            self.source_mut(id).status = SourceStatus::Untried;
            self.release(id);
            return self.actions.push_back(SwarmAction::Drop(id, DropReason::Useless));
        }
        let source = self.source_mut(id);
        source.status = SourceStatus::Ready;
        source.heard = now;
        source.used = now;
        source.since = now;
        source.busy_until = None;
    }

    /// The connection with a source is closed, or could not be established.
    pub fn disconnected(&mut self, id: SourceId, now: Duration) {
        self.note_stall_of_oldest(id);
        self.put_away(id, (limits::SOURCE_AWAY_MIN, limits::SOURCE_AWAY_MAX), now);
    }

    /// A source does not have the content, or not at the moment. It is dropped and dialled again
    /// soon, because it may only be hashing a file that was touched or renamed.
    pub fn withdrawn(&mut self, id: SourceId, message: &str, now: Duration) {
        let waits = (SOURCE_WITHDRAWN_MIN, SOURCE_WITHDRAWN_MAX);
        if self.put_away(id, waits, now) {
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Refused(message.to_owned())));
        }
    }

    /// A source does not answer a request of another kind. It is dropped if there is another.
    pub fn leave_silent(&mut self, id: SourceId, now: Duration) {
        let others = self.in_use.len() > 1 || self.has_candidate(now);
        let waits = (limits::SOURCE_AWAY_MIN, limits::SOURCE_AWAY_MAX);
        if others && self.put_away(id, waits, now) {
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Silent));
        }
    }

    /// Stops using a source for a time that doubles with each failure, from `waits.0` up to
    /// `waits.1`. Returns false if it is not in use.
    fn put_away(&mut self, id: SourceId, waits: (Duration, Duration), now: Duration) -> bool {
        let source = self.source_mut(id);
        if !source.is_in_use() {
            return false;
        }
        let until = now + source.fail(waits.0, waits.1);
        source.status = SourceStatus::Away { until };
        self.release(id);
        true
    }

    /// A source announces runs of chunks: first chunk, number of chunks. It is banned if it
    /// announces a chunk twice, or one that the content does not have.
    pub fn have(&mut self, id: SourceId, runs: &[(u64, u64)]) {
        let chunks = self.chunks.len();
        let source = self.source_mut(id);
        if !source.is_ready() {
            return;
        }
        source.dry_at = None;
        // Only the first announcement may be empty.
        let (mut set, mut is_news) = match std::mem::replace(&mut source.have, SourceChunks::Whole)
        {
            SourceChunks::Nothing if runs == [(0, chunks)] => return,
            SourceChunks::Whole => return self.ban(id, DropReason::Protocol),
            SourceChunks::Nothing => (ChunkSet::empty(chunks), true),
            SourceChunks::Part(set) => (set, !runs.is_empty()),
        };
        for (first, count) in runs {
            is_news = *count > 0 && set.insert_run(*first, *count);
            if !is_news {
                break;
            }
            (*first..first + count).for_each(|index| self.chunks.more(index));
        }
        self.source_mut(id).have = SourceChunks::Part(set);
        if !is_news {
            self.ban(id, DropReason::Protocol);
        }
    }

    /// `bytes` more of requested chunks have been received from a source. To be called regularly
    /// for every source, with 0 as well, since its rate falls with time.
    pub fn received(&mut self, id: SourceId, bytes: u64, now: Duration) {
        let checked_at = self.checked_at;
        let source = self.source_mut(id);
        if bytes > 0 {
            source.heard = now;
        }
        // A source without requests outstanding is idle, not slow: its rate does not fall.
        if !source.assignments.is_empty() {
            source.begun_bytes += bytes;
            source.moved(bytes, now);
            source.meter.add(bytes, now);
            if now.saturating_sub(checked_at) < self.config.unchecked_max {
                self.progress_bytes += bytes;
            }
        }
        if self.progress_bytes >= PROGRESS_BYTES_MIN {
            self.progress_bytes = 0;
            self.progress_at = now;
        }
    }

    /// This side is not reading from a source at present, so its silence means nothing.
    pub fn not_read(&mut self, id: SourceId, now: Duration) {
        let source = self.source_mut(id);
        source.heard = now;
        source.moved_at = now;
        source.assignments.iter_mut().for_each(|assignment| assignment.at = now);
        self.restart_patience(now);
    }

    /// All bytes of a requested chunk have been received from a source. Returns whether the chunk
    /// is still wanted; then the caller verifies and stores it and reports to [`Swarm::checked`].
    pub fn arrived(&mut self, id: SourceId, index: u64) -> bool {
        let source = self.source_mut(id);
        source.begun_bytes = 0;
        let Some(assignment) = source.remove_assignment(index) else {
            // It was already being sent when it was cancelled, or when the source was dropped.
            return false;
        };
        if assignment.stalled {
            // It was late, but it came.
            source.stalls = source.stalls.saturating_sub(1);
        }
        source.failures = 0;
        source.busy_times = 0;
        source.unchecked += 1;
        for other in self.chunks.arrive(index, id) {
            let removed = self.source_mut(other).remove_assignment(index);
            assert!(removed.is_some(), "{other:?} is an assignee of chunk {index}");
            self.actions.push_back(SwarmAction::Cancel(other, index));
        }
        true
    }

    /// A chunk that has arrived is verified and stored; or it is wrong, and its source is banned.
    pub fn checked(&mut self, id: SourceId, index: u64, good: bool, now: Duration) {
        self.chunks.settle(index, good);
        let length = chunk_len(index, self.config.size) as u64;
        let source = self.source_mut(id);
        assert!(source.unchecked > 0, "{id:?} has sent chunk {index}");
        source.unchecked -= 1;
        if good {
            source.given_bytes += length;
            self.restart_patience(now);
        } else {
            self.ban(id, DropReason::WrongBytes);
        }
    }

    /// A stored chunk was found changed on the disk, and has to be fetched again.
    pub fn damaged(&mut self, index: u64, now: Duration) {
        self.chunks.damage(index);
        self.restart_patience(now);
    }

    /// A source refuses a chunk.
    pub fn denied(
        &mut self,
        id: SourceId,
        index: u64,
        code: DenialCode,
        message: &str,
        now: Duration,
    ) {
        let source = self.source_mut(id);
        if !source.has_assignment(index) {
            return;
        }
        match code {
            // The answer to a cancelled request whose assignment is removed already.
            DenialCode::Cancelled => return,
            // Counted once for all requests that were sent before the first refusal came.
            DenialCode::Busy if source.is_busy(now) => {}
            DenialCode::Busy => source.refuse_busy(now),
            DenialCode::NotFound | DenialCode::Changed | DenialCode::Unreadable => {
                return self.withdrawn(id, message, now);
            }
            DenialCode::Invalid => {
                return self.ban(id, DropReason::Refused(message.to_owned()));
            }
        }
        self.unassign(id, index);
    }

    /// Drops a source for good.
    pub fn ban(&mut self, id: SourceId, reason: DropReason) {
        let source = self.source_mut(id);
        if source.status != SourceStatus::Banned {
            source.status = SourceStatus::Banned;
            self.release(id);
            self.actions.push_back(SwarmAction::Drop(id, reason));
        }
    }

    /// Dials sources for the places that are free, and fills the request windows of all sources.
    fn plan(&mut self, now: Duration) {
        if std::mem::take(&mut self.look_for_sources) {
            self.dial(now);
        }
        // In rounds of one request for each source, so that the first does not get everything.
        let mut someone = true;
        while someone {
            someone = false;
            for id in self.in_use.clone() {
                someone |= self.ask(id, now);
            }
        }
    }

    /// Asks a source for one more chunk, if its window has room and it has one that is wanted.
    fn ask(&mut self, id: SourceId, now: Duration) -> bool {
        let source = self.source(id);
        if !source.is_ready() || source.assignments.len() >= source.window() || source.is_busy(now)
        {
            return false;
        }
        if matches!(source.have, SourceChunks::Nothing) {
            return false;
        }
        if source.assignments.is_empty() && self.is_exchanged(id) {
            let waits = (limits::SOURCE_AWAY_MIN, limits::SOURCE_AWAY_MAX);
            self.put_away(id, waits, now);
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Useless));
            return false;
        }
        let picked = self.pick_overdue(id, now).or_else(|| self.pick_missing(id, now));
        let Some(index) = picked.or_else(|| self.pick_last(id, now)) else {
            return false;
        };
        let source = self.source_mut(id);
        source.ask(index, now);
        self.chunks.assign(index, id);
        self.actions.push_back(SwarmAction::Request(id, index));
        true
    }

    /// Picks a missing chunk for a source.
    fn pick_missing(&mut self, id: SourceId, now: Duration) -> Option<u64> {
        if self.chunks.missing() == 0 || self.is_better_left_to_others(id, now) {
            return None;
        }
        let returns = self.chunks.returns();
        let source = &mut self.sources[id.0];
        let picked = match &source.have {
            SourceChunks::Nothing => return None,
            SourceChunks::Whole => self.chunks.pick(None, source.next),
            SourceChunks::Part(_) if source.dry_at == Some(returns) => None,
            SourceChunks::Part(set) => self.chunks.pick(Some(set), source.next),
        };
        if picked.is_none() {
            source.dry_at = Some(returns);
        }
        picked
    }

    /// Whether a source would take longer for one more chunk than the others for everything that is
    /// left. The chunk would then be fetched a second time in the endgame, and one of the two
    /// transfers would be wasted. The others take at least as long as the fastest of them takes for
    /// one chunk, so the fastest source of all leaves nothing to others.
    fn is_better_left_to_others(&self, id: SourceId, now: Duration) -> bool {
        let (own, own_s) = (&self.sources[id.0], self.sources[id.0].expected_next_s());
        let others = self.in_use.iter().filter(|other| **other != id);
        // Only those that have the whole content can send whatever this one would.
        let others = || {
            others.clone().map(|other| &self.sources[other.0]).filter(|other| {
                other.is_ready() && matches!(other.have, SourceChunks::Whole) && !other.is_busy(now)
            })
        };
        // Of two sources at most one leaves the chunk to the other: a quick source leaves nothing
        // to those that have stalled more often.
        if others().any(|other| other.stalls < own.stalls && other.is_quick()) {
            return true;
        }
        let others = others().filter(|other| {
            other.meter.rate() > 0.0 && !(own.is_quick() && own.stalls < other.stalls)
        });
        let (rate, quickest_s) = others.fold((0.0, f64::INFINITY), |(rate, quickest_s), other| {
            (rate + other.meter.rate(), f64::min(quickest_s, other.expected_next_s()))
        });
        let left = self.chunks.missing() + self.chunks.assigned();
        own_s > quickest_s && own_s * rate > left as f64 * CHUNK_BYTES as f64
    }

    /// Takes a request back from a source. Its chunk is missing again unless another source is
    /// asked for it.
    fn unassign(&mut self, id: SourceId, index: u64) {
        let removed = self.source_mut(id).remove_assignment(index);
        assert!(removed.is_some(), "{id:?} is asked for chunk {index}");
        self.chunks.unassign(index, id);
    }

    /// Takes everything back from a source that is not in use any more. The caller sets its status.
    fn release(&mut self, id: SourceId) {
        self.in_use.retain(|other| *other != id);
        self.look_for_sources = true;
        let source = &mut self.sources[id.0];
        assert!(!source.is_in_use(), "{id:?} is {:?}", source.status);
        source.begun_bytes = 0;
        for assignment in std::mem::take(&mut source.assignments) {
            self.chunks.unassign(assignment.chunk, id);
        }
        let have = std::mem::replace(&mut self.sources[id.0].have, SourceChunks::Nothing);
        if let SourceChunks::Part(set) = have {
            for (first, count) in set.runs() {
                (first..first + count).for_each(|index| self.chunks.fewer(index));
            }
        }
    }
}

#[cfg(test)]
mod tests;
