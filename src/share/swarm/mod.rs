//! Who is asked for which chunk: the mind of a download, without sockets, files, clock or chance.
//!
//! Inputs are method calls: a source connected, has chunks, gave bytes, a whole chunk, a good or a bad
//! one, refused, went away; time passed. What is to be done comes out of [`Swarm::next_action`].
//! Times are durations since any one beginning; randomness grows from a seed.
//!
//! The rules:
//!
//! - **Rarest first** (`picker`): what few have is fetched while they are there.
//! - **Faster sources get more.** A source may owe what it gives in
//!   [`limits::REQUEST_AHEAD`], at least two chunks, so that it never waits for the next request; a slow one owes
//!   one, and is not asked for a chunk that it would take longer over than the others over all that is left.
//! - **Nobody waits for a slow source.** Each that is in use receives into a buffer of its own; what bounds memory beyond
//!   that is how many chunks have arrived and are not stored ([`Swarm::may_receive`]).
//! - **The last chunks are asked of two.** When nothing is missing that is not asked for, a source with
//!   nothing to do is asked for the chunk that another one is expected to take longest over; one that is far faster,
//!   also before it has nothing to do. Whoever is second is called off.
//! - **A chunk that is owed too long is asked of a second source** ([`limits::CHUNK_OVERDUE`]), however fast the first one
//!   seems: what it owes counts, and not what else it sends.
//! - **What lies is raced for** (`race`, [`limits::CHUNK_STALLED`]): in the end a chunk whose source has stopped giving it
//!   is asked of others while that one goes on, and of twice as many each time that those let it lie, too. Whoever has let
//!   fewer chunks lie comes first, then whoever is quicker; one that has let a chunk lie gets none that another one
//!   could have given soon, and makes room for whoever has not.
//! - **Places are for trying, too.** While sources are known that were not tried yet, a quarter of the places goes round: whoever
//!   owes a chunk for that long and is among the slowest makes room. Of several sources at one IP address no more
//!   are in use than of any other that has some, and of one address one at a time.
//! - **Progress is a chunk that was checked.** Bytes that were not are so only for a while: nobody who gives a little
//!   now and then, and nothing in the end, holds up a download that should end.
//! - **A source that is silent while it owes something is left** after
//!   [`limits::SOURCE_SILENCE_MAX`] when another can give what it owes, later when none can. So is one
//!   that takes far longer than others would. Its debts are asked of others at once; it is dialled again
//!   after a while, which doubles every time.
//! - **A source that lies is left for good**: bytes that do not match the content's hashes, or something
//!   that was not asked for. One that has the content no more, or just now not, is asked again soon.
//! - **Sources are a sample.** More may be known than are in use; which ones are is drawn at random, and
//!   whoever fails, or has nothing to give, makes room for one that was not tried yet: so no number of dead ones
//!   hides those who give.
//!
//! Invariants: a chunk is missing, asked for (of one source, or more), arrived, or stored; it is missing
//! again when the last who owed it is gone, or when what arrived was bad. Only `Ready` sources owe.

mod picker;
mod race;
mod source;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::limits::{self, CHUNK_BYTES};
use crate::net::origin_of;
use crate::share::chunks::ChunkSet;
use crate::share::content::{chunk_count, chunk_len};
use crate::wire::share::DenialCode;
use picker::Picker;
pub use source::SourceStatus;
use source::{Assignment, SourceChunks, SwarmSource};

/// Names a source of one swarm, from 0. The id of one that has failed may become another one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub usize);

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwarmAction {
    /// Dial a source (again).
    Connect(SourceId),
    /// Ask a source for a chunk.
    Request(SourceId, u64),
    /// Call that off.
    Cancel(SourceId, u64),
    /// Close the connection with a source, which has been told already as far as the swarm goes.
    Drop(SourceId, DropReason),
}

/// Why a source is left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DropReason {
    /// It owed something and gave nothing.
    #[error("it fell silent")]
    Silent,
    /// Others would have given it long ago.
    #[error("it is too slow")]
    Slow,
    /// What it gave is not the content.
    #[error("it sent wrong bytes")]
    WrongBytes,
    /// It does not keep to the protocol.
    #[error("it sent what was not asked for")]
    Protocol,
    /// It cannot give the content, or not now.
    #[error("{0}")]
    Refused(String),
    /// It had nothing that was wanted, and another one may have.
    #[error("it had nothing to give")]
    Useless,
}

/// What a swarm is told once.
#[derive(Clone, Debug)]
pub struct SwarmConfig {
    /// The content's length in bytes.
    pub size: u64,
    /// Where its random choices start from.
    pub seed: u64,
    /// Over which time the rate of a source is averaged.
    pub rate_constant: Duration,
    /// A source that gives fewer bytes a second than this is left even when there is no other.
    pub rate_min: u64,
    /// Sources in use at once, see [`limits::SOURCES_MAX`].
    pub sources_max: usize,
    /// Sources known at once, see [`limits::SOURCES_KNOWN_MAX`].
    pub known_max: usize,
    /// Chunks that have arrived and are not stored, past which no further one is received, see
    /// [`limits::DOWNLOAD_CHUNKS_MAX`].
    pub chunks_max: usize,
    /// For how long after a chunk was found good bytes are progress that were not checked yet.
    pub unchecked_max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// Before [`Swarm::begin`].
    Unknown,
    Missing,
    Assigned,
    Arrived,
    Stored,
}

/// The swarm of one download.
#[derive(Debug)]
pub struct Swarm {
    config: SwarmConfig,
    chunks: Vec<ChunkState>,
    picker: Picker,
    /// Who owes the chunks that are asked for.
    assignees: BTreeMap<u64, Vec<SourceId>>,
    sources: Vec<SwarmSource>,
    /// Those that are being dialled or there.
    in_use: Vec<SourceId>,
    /// Somebody may have to be dialled.
    look_for_sources: bool,
    /// How many that were of use may make room for others now: a quarter of the places at once, and one more a tick.
    exchanges: usize,
    random: SmallRng,
    /// Chunks that are owed for too long by one source, to be asked of a second one.
    overdue: Vec<u64>,
    /// How many sources have let a chunk lie that has not arrived since.
    stalls: BTreeMap<u64, u32>,
    stored: u64,
    /// Arrived, and neither stored nor found bad.
    arrived: usize,
    actions: VecDeque<SwarmAction>,
    /// When a chunk was last found good, or some bytes worth the name came from whom they were owed by …
    progress_at: Duration,
    /// … which counts only for a while after the former.
    checked_at: Duration,
    /// Bytes since.
    progress_bytes: u64,
    /// Changes with every chunk that goes missing again.
    returns: u64,
}

impl Swarm {
    /// A swarm that finds its sources and asks for nothing yet.
    pub fn new(config: SwarmConfig, now: Duration) -> Swarm {
        let count = chunk_count(config.size);
        Swarm {
            chunks: vec![ChunkState::Unknown; count as usize],
            picker: Picker::new(count, config.seed),
            assignees: BTreeMap::new(),
            sources: Vec::new(),
            in_use: Vec::new(),
            look_for_sources: false,
            exchanges: 0,
            random: SmallRng::seed_from_u64(config.seed ^ 1),
            overdue: Vec::new(),
            stalls: BTreeMap::new(),
            stored: 0,
            arrived: 0,
            actions: VecDeque::new(),
            progress_at: now,
            checked_at: now,
            progress_bytes: 0,
            returns: 0,
            config,
        }
    }

    /// These chunks are stored already; the others are wanted from now on. Once.
    pub fn begin(&mut self, stored: &ChunkSet, now: Duration) {
        for (index, chunk) in (0..).zip(&mut self.chunks) {
            if *chunk != ChunkState::Unknown {
                continue;
            }
            if stored.contains(index) {
                *chunk = ChunkState::Stored;
                self.stored += 1;
            } else {
                *chunk = ChunkState::Missing;
                self.picker.put(index);
            }
        }
        self.returns += 1;
        (self.progress_at, self.checked_at) = (now, now);
    }

    /// The next thing to do. Ask until there is none, after every input.
    pub fn next_action(&mut self, now: Duration) -> Option<SwarmAction> {
        if self.actions.is_empty() {
            self.plan(now);
        }
        self.actions.pop_front()
    }

    /// Whether every chunk is stored.
    pub fn is_done(&self) -> bool {
        self.stored == self.chunks.len() as u64
    }

    /// When the download last came on: a chunk was good, or bytes came that may become one.
    pub fn progress_at(&self) -> Duration {
        self.progress_at
    }

    /// Whether the bytes of one more chunk may be received now.
    pub fn may_receive(&self) -> bool {
        self.arrived < self.config.chunks_max
    }

    /// Whether no source will ever be there again.
    pub fn is_hopeless(&self) -> bool {
        self.sources.iter().all(|source| source.status == SourceStatus::Banned)
    }

    /// How a source stands.
    pub fn status(&self, id: SourceId) -> SourceStatus {
        self.sources.get(id.0).map_or(SourceStatus::Banned, |source| source.status)
    }

    /// How many chunks a source owes.
    pub fn outstanding(&self, id: SourceId) -> usize {
        self.sources.get(id.0).map_or(0, |source| source.assignments.len())
    }

    /// Whether a source has said that it is busy, and given nothing since.
    pub fn reports_busy(&self, id: SourceId) -> bool {
        let says_busy = |source: &SwarmSource| source.busy_times > 0 && source.begun_bytes == 0;
        self.sources.get(id.0).is_some_and(says_busy)
    }

    /// Bytes a second that a source gives of late.
    pub fn rate(&self, id: SourceId) -> f64 {
        self.sources.get(id.0).map_or(0.0, |source| source.meter.rate())
    }

    /// Bytes of good chunks that a source has given.
    pub fn given_bytes(&self, id: SourceId) -> u64 {
        self.sources.get(id.0).map_or(0, |source| source.given_bytes)
    }

    /// One more source, to be dialled when there is room. When as many as may be are known, one that has failed is
    /// forgotten for it, whose id it gets. `None`: there is no such one.
    pub fn add_source(&mut self, address: SocketAddr, now: Duration) -> Option<SourceId> {
        self.look_for_sources = true;
        let source = SwarmSource::new(address, &self.config, now);
        if self.sources.len() < self.config.known_max {
            self.sources.push(source);
            return Some(SourceId(self.sources.len() - 1));
        }
        let is_gone = |source: &&SwarmSource| {
            let gone = matches!(source.status, SourceStatus::Away { .. } | SourceStatus::Banned);
            gone && source.unchecked == 0
        };
        // Whoever lied is remembered as long as there are others to forget.
        let rank = |source: &&SwarmSource| (source.status != SourceStatus::Banned, source.failures);
        let failed = self.sources.iter().filter(is_gone).max_by_key(rank)?;
        let at = self.sources.iter().position(|source| std::ptr::eq(source, failed))?;
        self.sources[at] = source;
        Some(SourceId(at))
    }

    /// A source is there. What it has is told separately.
    pub fn connected(&mut self, id: SourceId, now: Duration) {
        let is_full = self.ready() >= self.config.sources_max;
        if let Some(source) = self.sources.get_mut(id.0).filter(|_| is_full)
            && source.status == SourceStatus::Connecting
        {
            // More were dialled than there is room for.
            source.status = SourceStatus::Untried;
            self.release(id);
            return self.actions.push_back(SwarmAction::Drop(id, DropReason::Useless));
        }
        if let Some(source) = self.sources.get_mut(id.0)
            && source.status == SourceStatus::Connecting
        {
            source.status = SourceStatus::Ready;
            source.heard = now;
            source.used = now;
            source.since = now;
            source.busy_until = None;
        }
    }

    /// The connection with a source is gone, or did not come about.
    pub fn disconnected(&mut self, id: SourceId, now: Duration) {
        self.note_stall_of_oldest(id);
        self.put_away(id, (limits::SOURCE_AWAY_MIN, limits::SOURCE_AWAY_MAX), now);
    }

    /// A source has the content no more, or not now: it is left, and asked again soon, since it may have been
    /// busy with looking at a file that was touched or renamed.
    pub fn withdrawn(&mut self, id: SourceId, message: &str, now: Duration) {
        let waits = (limits::SOURCE_WITHDRAWN_MIN, limits::SOURCE_WITHDRAWN_MAX);
        if self.put_away(id, waits, now) {
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Refused(message.to_owned())));
        }
    }

    /// Leaves a source that does not answer for a while, if there are others.
    pub fn leave_silent(&mut self, id: SourceId, now: Duration) {
        let others = self.in_use.len() > 1 || self.has_candidate(now);
        let waits = (limits::SOURCE_AWAY_MIN, limits::SOURCE_AWAY_MAX);
        if others && self.put_away(id, waits, now) {
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Silent));
        }
    }

    /// Lets go of a source in use, to be dialled again after a wait: the first, the longest. `false` when it is
    /// not in use.
    fn put_away(&mut self, id: SourceId, waits: (Duration, Duration), now: Duration) -> bool {
        let Some(source) = self.sources.get_mut(id.0).filter(|source| source.is_in_use()) else {
            return false;
        };
        let until = now + source.fail(waits.0, waits.1);
        source.status = SourceStatus::Away { until };
        self.release(id);
        true
    }

    /// A source has these chunks: first, how many. One that tells of chunks that the content does not
    /// have, or that it has told of, is left.
    pub fn have(&mut self, id: SourceId, runs: &[(u64, u64)]) {
        let chunks = self.chunks.len() as u64;
        let Some(source) = self.sources.get_mut(id.0).filter(|source| source.is_ready()) else {
            return;
        };
        source.dry_at = None;
        // Only the first answer may say that there is nothing.
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
            (*first..first + count).for_each(|index| self.picker.more(index));
        }
        source.have = SourceChunks::Part(set);
        if !is_news {
            self.ban(id, DropReason::Protocol);
        }
    }

    /// `bytes` more have come from a source, of chunks that it was asked for and of nothing else; call it with 0 for
    /// every source now and then.
    pub fn received(&mut self, id: SourceId, bytes: u64, now: Duration) {
        if let Some(source) = self.sources.get_mut(id.0) {
            if bytes > 0 {
                source.heard = now;
            }
            // A source that is asked for nothing is not slow.
            if !source.assignments.is_empty() {
                source.begun_bytes += bytes;
                source.moved(bytes, now);
                source.meter.add(bytes, now);
                if now.saturating_sub(self.checked_at) < self.config.unchecked_max {
                    self.progress_bytes += bytes;
                }
            }
            if self.progress_bytes >= limits::PROGRESS_BYTES_MIN {
                self.progress_bytes = 0;
                self.progress_at = now;
            }
        }
    }

    /// This side does not listen to a source at present: its silence means nothing.
    pub fn not_read(&mut self, id: SourceId, now: Duration) {
        if let Some(source) = self.sources.get_mut(id.0) {
            source.heard = now;
            source.moved_at = now;
            source.assignments.iter_mut().for_each(|assignment| assignment.at = now);
            (self.progress_at, self.checked_at) = (now, now);
        }
    }

    /// All the bytes of a chunk that was asked of a source have come. Whether they are still wanted:
    /// then check and store them, and say how that went ([`Swarm::checked`]).
    pub fn arrived(&mut self, id: SourceId, index: u64) -> bool {
        let Some(source) = self.sources.get_mut(id.0) else {
            return false;
        };
        source.begun_bytes = 0;
        let Some(assignment) = source.remove_assignment(index) else {
            // It was called off when it was on its way already, or the source was given up.
            return false;
        };
        if assignment.stalled {
            // It was late, and has kept its word.
            source.stalls = source.stalls.saturating_sub(1);
        }
        source.failures = 0;
        source.busy_times = 0;
        source.unchecked += 1;
        self.chunks[index as usize] = ChunkState::Arrived;
        self.arrived += 1;
        self.stalls.remove(&index);
        let others = self.assignees.remove(&index).unwrap_or_default();
        for other in others.into_iter().filter(|other| *other != id) {
            if let Some(source) = self.sources.get_mut(other.0) {
                source.remove_assignment(index);
                self.actions.push_back(SwarmAction::Cancel(other, index));
            }
        }
        true
    }

    /// An arrived chunk is good, and stored; or it is not what was asked for, and its source lies.
    pub fn checked(&mut self, id: SourceId, index: u64, good: bool, now: Duration) {
        let Some(chunk) = self.chunks.get_mut(index as usize) else {
            return;
        };
        if *chunk != ChunkState::Arrived {
            return;
        }
        self.arrived -= 1;
        if let Some(source) = self.sources.get_mut(id.0) {
            source.unchecked -= 1;
        }
        if good {
            *chunk = ChunkState::Stored;
            self.stored += 1;
            (self.progress_at, self.checked_at) = (now, now);
            if let Some(source) = self.sources.get_mut(id.0) {
                source.given_bytes += chunk_len(index, self.config.size) as u64;
            }
        } else {
            *chunk = ChunkState::Missing;
            self.put_back(index);
            self.ban(id, DropReason::WrongBytes);
        }
    }

    /// A stored chunk is not good any more.
    pub fn damaged(&mut self, index: u64, now: Duration) {
        if let Some(chunk) = self.chunks.get_mut(index as usize)
            && *chunk == ChunkState::Stored
        {
            *chunk = ChunkState::Missing;
            self.stored -= 1;
            self.put_back(index);
            (self.progress_at, self.checked_at) = (now, now);
        }
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
        let Some(source) = self.sources.get_mut(id.0).filter(|source| source.has_assignment(index))
        else {
            return;
        };
        match code {
            // The answer to calling it off, which has settled it.
            DenialCode::Cancelled => return,
            // Once for everything that was asked before the first refusal came.
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

    /// Leaves a source for good.
    pub fn ban(&mut self, id: SourceId, reason: DropReason) {
        if let Some(source) = self.sources.get_mut(id.0)
            && source.status != SourceStatus::Banned
        {
            source.status = SourceStatus::Banned;
            self.release(id);
            self.actions.push_back(SwarmAction::Drop(id, reason));
        }
    }

    /// Time passes: leaves who is silent, slow or of no use, and comes back to who was left for a while.
    pub fn tick(&mut self, now: Duration) {
        self.look_for_sources = true;
        self.exchanges = (self.exchanges + 1).min(self.config.sources_max / 4);
        self.overdue.clear();
        self.note_stalls(now);
        let has_candidate = self.has_candidate(now);
        for id in self.in_use.clone() {
            let source = &mut self.sources[id.0];
            if !source.is_ready() {
                continue;
            }
            let left = if source.assignments.is_empty() {
                let idle_for = now.saturating_sub(source.used);
                let mut is_useless = idle_for >= limits::SOURCE_IDLE_MAX && has_candidate;
                // One that has given something may be of use again. It makes room all the same, lest many such hide one
                // that is faster; but one by one, since whoever comes instead is tried with a chunk.
                if is_useless && source.given_bytes > 0 {
                    is_useless = self.exchanges > 0;
                    self.exchanges = self.exchanges.saturating_sub(1);
                }
                // Before the chunk hashes are known nobody is asked for any.
                (is_useless && self.picker.missing() > 0)
                    .then_some((DropReason::Useless, limits::SOURCE_AWAY_MIN))
            } else {
                source.used = now;
                self.verdict(id, now)
            };
            if let Some((reason, first_wait)) = left {
                self.put_away(id, (first_wait, limits::SOURCE_AWAY_MAX), now);
                self.actions.push_back(SwarmAction::Drop(id, reason));
                continue;
            }
            let source = &self.sources[id.0];
            let is_late = |assignment: &&Assignment| {
                now.saturating_sub(assignment.at) >= limits::CHUNK_OVERDUE
            };
            let late = source.assignments.iter().filter(is_late).map(|assignment| assignment.chunk);
            self.overdue.extend(late);
        }
        self.try_others(now);
    }

    /// Makes room for a source that was not tried yet, if there is one and all places are taken.
    pub fn make_room(&mut self, id: SourceId, now: Duration) {
        let waits = (limits::SOURCE_AWAY_MIN, limits::SOURCE_AWAY_MAX);
        if self.is_anybody_hidden() && self.put_away(id, waits, now) {
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Useless));
        }
    }

    /// Whether all places are taken, and there is somebody who never had one.
    fn is_anybody_hidden(&self) -> bool {
        let is_untried = |source: &SwarmSource| source.status == SourceStatus::Untried;
        self.ready() >= self.config.sources_max && self.sources.iter().any(is_untried)
    }

    /// Whether all places are taken, and there is somebody who has let nothing lie.
    fn is_anybody_better_hidden(&self, now: Duration) -> bool {
        let is_better = |source: &SwarmSource| is_candidate(source, now) && source.stalls == 0;
        self.ready() >= self.config.sources_max && self.sources.iter().any(is_better)
    }

    /// Has the slowest of those that owe a chunk for long make room for sources that were not tried yet: so many that a
    /// quarter of the places is for those. The others go on, so that also where all are slow chunks come to their end.
    fn try_others(&mut self, now: Duration) {
        if !self.is_anybody_hidden() {
            return;
        }
        let long = limits::CHUNK_OVERDUE;
        let in_use = || self.in_use.iter().map(|id| (*id, &self.sources[id.0]));
        let is_tried = |source: &SwarmSource| now.saturating_sub(source.since) >= long;
        let on_trial = in_use().filter(|(_, source)| !is_tried(source)).count();
        let room = (self.config.sources_max / 4).max(1).saturating_sub(on_trial);
        let is_slow = |source: &SwarmSource| {
            let has_assignment = source.assignments.first();
            has_assignment.is_some_and(|oldest| now.saturating_sub(oldest.at) >= long)
                && source.expected_s(0) > long.as_secs_f64()
        };
        let mut slow: Vec<(f64, SourceId)> = in_use()
            .filter(|(_, source)| is_tried(source) && is_slow(source))
            .map(|(id, source)| (source.meter.rate(), id))
            .collect();
        slow.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        for (_, id) in slow.into_iter().take(room) {
            self.put_away(id, (limits::SOURCE_SLOW_AWAY, limits::SOURCE_AWAY_MAX), now);
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Slow));
        }
    }

    /// Whether there is a source that could be dialled and is not in use.
    fn has_candidate(&self, now: Duration) -> bool {
        self.sources.iter().any(|source| is_candidate(source, now))
    }

    fn ready(&self) -> usize {
        self.in_use.iter().filter(|id| self.sources[id.0].is_ready()).count()
    }

    /// Dials twice as many sources as there is room for, since many may be gone: those first of whose origin fewest are in
    /// use, since whoever is at one IP address may call itself many; then those that were not tried yet; then those that have
    /// let the fewest chunks lie.
    fn dial(&mut self, now: Duration) {
        let ready = self.ready();
        let in_use_max = ready + 2 * self.config.sources_max.saturating_sub(ready);
        if self.in_use.len() >= in_use_max {
            return;
        }
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        for id in &self.in_use {
            *origins.entry(origin_of(self.sources[id.0].address.ip())).or_default() += 1;
        }
        // Somebody may be there under any number of names, and be somebody else: it is left in peace for a moment.
        let is_taken = |source: &&SwarmSource| {
            let dialled = source.dialled.map(|at| now.saturating_sub(at));
            source.is_in_use() || dialled.is_some_and(|ago| ago < limits::SOURCE_REDIAL_MIN)
        };
        let taken = self.sources.iter().filter(is_taken).map(|source| source.address);
        let mut taken: HashSet<SocketAddr> = taken.collect();
        while self.in_use.len() < in_use_max {
            let rank = |source: &SwarmSource| {
                let origin = origins.get(&origin_of(source.address.ip()));
                let is_tried = source.status != SourceStatus::Untried;
                (origin.copied().unwrap_or_default(), is_tried, source.stalls)
            };
            let is_free = |source: &SwarmSource| {
                is_candidate(source, now) && !taken.contains(&source.address)
            };
            let mut best = None;
            let mut candidates = Vec::new();
            for (at, source) in self.sources.iter().enumerate().filter(|(_, one)| is_free(one)) {
                let rank = rank(source);
                if best.is_none_or(|best| rank < best) {
                    best = Some(rank);
                    candidates.clear();
                }
                if best == Some(rank) {
                    candidates.push(at);
                }
            }
            let Some(at) = candidates.choose(&mut self.random).copied() else { return };
            let source = &mut self.sources[at];
            source.status = SourceStatus::Connecting;
            source.dialled = Some(now);
            taken.insert(source.address);
            *origins.entry(origin_of(source.address.ip())).or_default() += 1;
            self.in_use.push(SourceId(at));
            self.actions.push_back(SwarmAction::Connect(SourceId(at)));
        }
    }

    /// Whether to leave a source that owes something, and for how long at first.
    fn verdict(&self, id: SourceId, now: Duration) -> Option<(DropReason, Duration)> {
        let source = &self.sources[id.0];
        let oldest = source.assignments.first()?;
        let owed_for = now.saturating_sub(oldest.at);
        let silent_for = now.saturating_sub(source.heard).min(owed_for);
        // Others who could take over, and are well.
        let others = || {
            let in_use = self.in_use.iter().map(|id| (*id, &self.sources[id.0]));
            in_use.filter(|(other_id, other)| {
                *other_id != id
                    && other.is_ready()
                    && other.has(oldest.chunk)
                    && (other.assignments.is_empty()
                        || now.saturating_sub(other.heard) < limits::SOURCE_SILENCE_MAX)
            })
        };
        let alone = others().next().is_none();
        let silence_max =
            if alone { limits::LONE_SOURCE_SILENCE_MAX } else { limits::SOURCE_SILENCE_MAX };
        if silent_for >= silence_max {
            return Some((DropReason::Silent, limits::SOURCE_AWAY_MIN));
        }
        // Somebody else may make more of its place.
        let is_end = self.picker.missing() == 0;
        if is_end && source.is_stuck(now) && self.is_anybody_better_hidden(now) {
            return Some((DropReason::Slow, limits::SOURCE_AWAY_MIN));
        }
        let rate = source.meter.rate();
        let best = others().map(|(_, other)| other.meter.rate()).fold(0.0, f64::max);
        // One that is not far from done is not stopped: what it has given would be lost, and it is in nobody's way.
        let is_far = source.expected_s(0) >= limits::SOURCE_SLOW_FOR.as_secs_f64();
        let is_slow = rate * limits::SOURCE_SLOWER_FACTOR < best && is_far;
        if owed_for >= limits::SOURCE_SLOW_AFTER && is_slow {
            return Some((DropReason::Slow, limits::SOURCE_SLOW_AWAY));
        }
        if owed_for >= limits::LONE_SOURCE_SLOW_AFTER && rate < self.config.rate_min as f64 {
            return Some((DropReason::Slow, limits::SOURCE_SLOW_AWAY));
        }
        None
    }

    /// Dials whom there is room for, and fills the windows of all sources.
    fn plan(&mut self, now: Duration) {
        if std::mem::take(&mut self.look_for_sources) {
            self.dial(now);
        }
        // Round after round of one request each, so that the first does not take all there is.
        let mut someone = true;
        while someone {
            someone = false;
            for id in self.in_use.clone() {
                someone |= self.ask(id, now);
            }
        }
    }

    /// Asks a source for one more chunk, if it has room and something that is wanted.
    fn ask(&mut self, id: SourceId, now: Duration) -> bool {
        let source = &self.sources[id.0];
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
        let source = &mut self.sources[id.0];
        source.ask(index, now);
        self.chunks[index as usize] = ChunkState::Assigned;
        self.assignees.entry(index).or_default().push(id);
        self.actions.push_back(SwarmAction::Request(id, index));
        true
    }

    /// Whether a source that has given its chunk makes room for one that was not tried yet: when all places are taken,
    /// and it is slower than most.
    fn is_exchanged(&mut self, id: SourceId) -> bool {
        let source = &self.sources[id.0];
        if source.given_bytes == 0 || self.exchanges == 0 {
            return false;
        }
        // It may be the one that gives what others let lie.
        if !self.stalls.is_empty() && self.picker.missing() == 0 && source.stalls == 0 {
            return false;
        }
        let rates = self.in_use.iter().map(|id| self.sources[id.0].meter.rate());
        let measured = rates.filter(|rate| *rate > 0.0);
        let (count, sum) = measured.fold((0u32, 0.0), |(count, sum), rate| (count + 1, sum + rate));
        // Among equals it is anybody; one that gives while most others have given nothing is kept.
        let are_many = 2 * count as usize >= self.config.sources_max;
        let is_slow = are_many && source.meter.rate() * f64::from(count) <= 1.1 * sum;
        if is_slow && self.is_anybody_hidden() {
            self.exchanges -= 1;
            return true;
        }
        false
    }

    /// A chunk that nobody is asked for.
    fn pick_missing(&mut self, id: SourceId, now: Duration) -> Option<u64> {
        if self.picker.missing() == 0 || self.is_better_left_to_others(id, now) {
            return None;
        }
        let source = &mut self.sources[id.0];
        let picked = match &source.have {
            SourceChunks::Nothing => return None,
            SourceChunks::Whole => self.picker.pick(None, source.next),
            SourceChunks::Part(_) if source.dry_at == Some(self.returns) => None,
            SourceChunks::Part(set) => self.picker.pick(Some(set), source.next),
        };
        if picked.is_none() {
            source.dry_at = Some(self.returns);
        }
        picked
    }

    /// Whether a source would take longer over one more chunk than others over all that is left: it would have to be
    /// fetched again in the end, and cost what both have carried of it. The others take as long as the quickest of them over
    /// one chunk, at least: so whoever is the quickest of all leaves nothing to others.
    fn is_better_left_to_others(&self, id: SourceId, now: Duration) -> bool {
        let (own, own_s) = (&self.sources[id.0], self.sources[id.0].expected_next_s());
        let others = self.in_use.iter().filter(|other| **other != id);
        // Who has everything can give whatever this one would.
        let others = || {
            others.clone().map(|other| &self.sources[other.0]).filter(|other| {
                other.is_ready() && matches!(other.have, SourceChunks::Whole) && !other.is_busy(now)
            })
        };
        // Of two one leaves it to the other at most: whoever is quick leaves nothing to those that have let more lie.
        if others().any(|other| other.stalls < own.stalls && other.is_quick()) {
            return true;
        }
        let others = others().filter(|other| {
            other.meter.rate() > 0.0 && !(own.is_quick() && own.stalls < other.stalls)
        });
        let (rate, quickest_s) = others.fold((0.0, f64::INFINITY), |(rate, quickest_s), other| {
            (rate + other.meter.rate(), f64::min(quickest_s, other.expected_next_s()))
        });
        let left = self.picker.missing() + self.assignees.len() as u64;
        own_s > quickest_s && own_s * rate > left as f64 * CHUNK_BYTES as f64
    }

    /// A source owes a chunk no more. It is missing again unless another owes it.
    fn unassign(&mut self, id: SourceId, index: u64) {
        self.sources[id.0].remove_assignment(index);
        let Some(assignees) = self.assignees.get_mut(&index) else {
            return;
        };
        assignees.retain(|assignee| *assignee != id);
        if assignees.is_empty() {
            self.assignees.remove(&index);
            if let Some(chunk @ ChunkState::Assigned) = self.chunks.get_mut(index as usize) {
                *chunk = ChunkState::Missing;
                self.put_back(index);
            }
        }
    }

    fn put_back(&mut self, index: u64) {
        self.returns += 1;
        self.picker.put(index);
    }

    /// A source is gone: what it owes and has counts no more.
    fn release(&mut self, id: SourceId) {
        self.sources[id.0].begun_bytes = 0;
        self.in_use.retain(|other| *other != id);
        self.look_for_sources = true;
        for assignment in std::mem::take(&mut self.sources[id.0].assignments) {
            self.unassign(id, assignment.chunk);
        }
        if let SourceChunks::Part(set) =
            std::mem::replace(&mut self.sources[id.0].have, SourceChunks::Nothing)
        {
            each(&set, |index| self.picker.fewer(index));
        }
    }
}

/// Whether a source could be dialled now.
fn is_candidate(source: &SwarmSource, now: Duration) -> bool {
    match source.status {
        SourceStatus::Untried => true,
        SourceStatus::Away { until } => now >= until,
        SourceStatus::Connecting | SourceStatus::Ready | SourceStatus::Banned => false,
    }
}

fn each(set: &ChunkSet, mut act: impl FnMut(u64)) {
    for (first, count) in set.runs() {
        (first..first + count).for_each(&mut act);
    }
}

#[cfg(test)]
mod tests;
