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
//!   [`limits::REQUEST_AHEAD`], at least two chunks, so that it never waits for the next request.
//! - **The last chunks are asked of two.** When nothing is missing that is not asked for, a source with
//!   nothing to do is asked for the chunk that another one is expected to take longest over. Whoever is
//!   second is called off.
//! - **A source that is silent while it owes something is left** after
//!   [`limits::SOURCE_SILENCE_MAX`] when another can give what it owes, later when none can. So is one
//!   that takes far longer than others would. Its debts are asked of others at once; it is dialled again
//!   after a while, which doubles every time.
//! - **A source that lies is left for good**: bytes that do not match the content's hashes, or something
//!   that was not asked for. So is one whose file changed.
//!
//! Invariants: a chunk is missing, asked for (of one source, or two), arrived, or stored; it is missing
//! again when the last who owed it is gone, or when what arrived was bad. Only `Ready` sources owe.

mod picker;
mod source;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::limits;
use crate::share::chunks::ChunkSet;
use crate::share::content::{chunk_count, chunk_len};
use crate::wire::share::DenialCode;
use picker::Picker;
pub use source::Standing;
use source::{Asked, Have, Source};

/// Names a source of one swarm: the order of its addition, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub usize);

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
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
    /// It cannot give the content any more.
    #[error("{0}")]
    Refused(String),
}

/// What a swarm is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The content's length in bytes.
    pub size: u64,
    /// Where its random choices start from.
    pub seed: u64,
    /// Over which time the rate of a source is averaged.
    pub rate_constant: Duration,
    /// A source that gives fewer bytes a second than this is left even when there is no other.
    pub rate_min: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// Before [`Swarm::begin`].
    Unknown,
    Missing,
    Asked,
    Arrived,
    Stored,
}

/// The swarm of one download.
#[derive(Debug)]
pub struct Swarm {
    config: Config,
    chunks: Vec<Chunk>,
    picker: Picker,
    /// Who owes the chunks that are asked for.
    debtors: BTreeMap<u64, Vec<SourceId>>,
    sources: Vec<Source>,
    stored: u64,
    actions: VecDeque<Action>,
    /// When some bytes worth the name had last come from whom they were owed by.
    progress_at: Duration,
    /// Bytes since.
    progress_bytes: u64,
    /// Changes with every chunk that goes missing again.
    returns: u64,
}

impl Swarm {
    /// A swarm that finds its sources and asks for nothing yet.
    pub fn new(config: Config, now: Duration) -> Swarm {
        let count = chunk_count(config.size);
        Swarm {
            chunks: vec![Chunk::Unknown; count as usize],
            picker: Picker::new(count, config.seed),
            debtors: BTreeMap::new(),
            sources: Vec::new(),
            stored: 0,
            actions: VecDeque::new(),
            progress_at: now,
            progress_bytes: 0,
            returns: 0,
            config,
        }
    }

    /// These chunks are stored already; the others are wanted from now on. Once.
    pub fn begin(&mut self, stored: &ChunkSet, now: Duration) {
        for (index, chunk) in (0..).zip(&mut self.chunks) {
            if *chunk != Chunk::Unknown {
                continue;
            }
            if stored.contains(index) {
                *chunk = Chunk::Stored;
                self.stored += 1;
            } else {
                *chunk = Chunk::Missing;
                self.picker.put(index);
            }
        }
        self.returns += 1;
        self.progress_at = now;
    }

    /// The next thing to do. Ask until there is none, after every input.
    pub fn next_action(&mut self, now: Duration) -> Option<Action> {
        if self.actions.is_empty() {
            self.plan(now);
        }
        self.actions.pop_front()
    }

    /// Whether every chunk is stored.
    pub fn is_done(&self) -> bool {
        self.stored == self.chunks.len() as u64
    }

    /// When some bytes worth the name had last come from a source that owed them.
    pub fn progress_at(&self) -> Duration {
        self.progress_at
    }

    /// Whether no source will ever be there again.
    pub fn is_hopeless(&self) -> bool {
        self.sources.iter().all(|source| source.standing == Standing::Banned)
    }

    /// How a source stands.
    pub fn standing(&self, id: SourceId) -> Standing {
        self.sources.get(id.0).map_or(Standing::Banned, |source| source.standing)
    }

    /// How many chunks a source owes.
    pub fn owed(&self, id: SourceId) -> usize {
        self.sources.get(id.0).map_or(0, |source| source.asked.len())
    }

    /// Bytes a second that a source gives of late.
    pub fn rate(&self, id: SourceId) -> f64 {
        self.sources.get(id.0).map_or(0.0, |source| source.meter.rate())
    }

    /// Bytes of good chunks that a source has given.
    pub fn given_bytes(&self, id: SourceId) -> u64 {
        self.sources.get(id.0).map_or(0, |source| source.given_bytes)
    }

    /// One more source, to be dialled.
    pub fn add_source(&mut self, now: Duration) -> SourceId {
        let id = SourceId(self.sources.len());
        self.sources.push(Source::new(&self.config, now));
        self.actions.push_back(Action::Connect(id));
        id
    }

    /// A source is there. What it has is told separately.
    pub fn connected(&mut self, id: SourceId, now: Duration) {
        if let Some(source) = self.sources.get_mut(id.0)
            && source.standing == Standing::Connecting
        {
            source.standing = Standing::Ready;
            source.heard = now;
            source.busy_until = None;
        }
    }

    /// The connection with a source is gone, or did not come about. `first_wait` is how long to leave it
    /// alone the first time.
    pub fn disconnected(&mut self, id: SourceId, first_wait: Duration, now: Duration) {
        let Some(source) = self.sources.get_mut(id.0) else {
            return;
        };
        if matches!(source.standing, Standing::Connecting | Standing::Ready) {
            let until = now + source.fail(first_wait);
            source.standing = Standing::Away { until };
            self.release(id);
        }
    }

    /// A source has these chunks: first, how many. One that tells of chunks that the content does not
    /// have, or that it has told of, is left.
    pub fn have(&mut self, id: SourceId, runs: &[(u64, u64)]) {
        let chunks = self.chunks.len() as u64;
        let Some(source) = self.sources.get_mut(id.0).filter(|source| source.is_ready()) else {
            return;
        };
        source.dry_at = None;
        let mut set = match std::mem::replace(&mut source.have, Have::Whole) {
            Have::Nothing if runs == [(0, chunks)] => return,
            Have::Whole if runs.is_empty() => return,
            Have::Whole => return self.ban(id, DropReason::Protocol),
            Have::Nothing => ChunkSet::empty(chunks),
            Have::Part(set) => set,
        };
        let mut is_news = true;
        for (first, count) in runs {
            is_news = set.insert_run(*first, *count);
            if !is_news {
                break;
            }
            (*first..first + count).for_each(|index| self.picker.more(index));
        }
        source.have = Have::Part(set);
        if !is_news {
            self.ban(id, DropReason::Protocol);
        }
    }

    /// `bytes` more have come from a source, of whatever kind; call it with 0 for every source now and
    /// then.
    pub fn received(&mut self, id: SourceId, bytes: u64, now: Duration) {
        if let Some(source) = self.sources.get_mut(id.0) {
            if bytes > 0 {
                source.heard = now;
            }
            // A source that is asked for nothing is not slow.
            if !source.asked.is_empty() {
                source.meter.add(bytes, now);
                self.progress_bytes += bytes;
            }
            if self.progress_bytes >= limits::PROGRESS_BYTES_MIN {
                self.progress_bytes = 0;
                self.progress_at = now;
            }
        }
    }

    /// This side does not listen to a source at present: its silence means nothing.
    pub fn held(&mut self, id: SourceId, now: Duration) {
        if let Some(source) = self.sources.get_mut(id.0) {
            source.heard = now;
            source.asked.iter_mut().for_each(|asked| asked.at = now);
            self.progress_at = now;
        }
    }

    /// All the bytes of a chunk that was asked of a source have come. Whether they are still wanted:
    /// then check and store them, and say how that went ([`Swarm::checked`]).
    pub fn arrived(&mut self, id: SourceId, index: u64) -> bool {
        let Some(source) = self.sources.get_mut(id.0) else {
            return false;
        };
        if !source.settle(index) {
            // It was called off when it was on its way already, or the source was given up.
            return false;
        }
        source.failures = 0;
        self.chunks[index as usize] = Chunk::Arrived;
        let others = self.debtors.remove(&index).unwrap_or_default();
        for other in others.into_iter().filter(|other| *other != id) {
            if let Some(source) = self.sources.get_mut(other.0) {
                source.settle(index);
                self.actions.push_back(Action::Cancel(other, index));
            }
        }
        true
    }

    /// An arrived chunk is good, and stored; or it is not what was asked for, and its source lies.
    pub fn checked(&mut self, id: SourceId, index: u64, good: bool) {
        let Some(chunk) = self.chunks.get_mut(index as usize) else {
            return;
        };
        if *chunk != Chunk::Arrived {
            return;
        }
        if good {
            *chunk = Chunk::Stored;
            self.stored += 1;
            if let Some(source) = self.sources.get_mut(id.0) {
                source.given_bytes += chunk_len(index, self.config.size) as u64;
            }
        } else {
            *chunk = Chunk::Missing;
            self.put_back(index);
            self.ban(id, DropReason::WrongBytes);
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
        let Some(source) = self.sources.get_mut(id.0).filter(|source| source.owes(index)) else {
            return;
        };
        match code {
            // The answer to calling it off, which has settled it.
            DenialCode::Cancelled => return,
            // Once for everything that was asked before the first refusal came.
            DenialCode::Busy if source.busy_until.is_some_and(|until| now < until) => {}
            DenialCode::Busy => {
                let wait = source.fail(limits::SOURCE_BUSY_MIN);
                source.busy_until = Some(now + wait);
            }
            DenialCode::NotFound => self.lost(id, index),
            DenialCode::Changed | DenialCode::Unreadable | DenialCode::Invalid => {
                return self.ban(id, DropReason::Refused(message.to_owned()));
            }
        }
        self.unask(id, index);
    }

    /// Leaves a source for good.
    pub fn ban(&mut self, id: SourceId, reason: DropReason) {
        if let Some(source) = self.sources.get_mut(id.0)
            && source.standing != Standing::Banned
        {
            source.standing = Standing::Banned;
            self.release(id);
            self.actions.push_back(Action::Drop(id, reason));
        }
    }

    /// Time passes: leaves who is silent or slow, and comes back to who was left for a while.
    pub fn tick(&mut self, now: Duration) {
        for id in (0..self.sources.len()).map(SourceId) {
            let source = &mut self.sources[id.0];
            match source.standing {
                Standing::Away { until } if now >= until => {
                    source.standing = Standing::Connecting;
                    self.actions.push_back(Action::Connect(id));
                }
                Standing::Ready if !source.asked.is_empty() => {
                    if let Some((reason, first_wait)) = self.verdict(id, now) {
                        let source = &mut self.sources[id.0];
                        let until = now + source.fail(first_wait);
                        source.standing = Standing::Away { until };
                        self.release(id);
                        self.actions.push_back(Action::Drop(id, reason));
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether to leave a source that owes something, and for how long at first.
    fn verdict(&self, id: SourceId, now: Duration) -> Option<(DropReason, Duration)> {
        let source = &self.sources[id.0];
        let oldest = source.asked.first()?;
        let owed_for = now.saturating_sub(oldest.at);
        let silent_for = now.saturating_sub(source.heard).min(owed_for);
        // Others who could take over, and are well.
        let others = || {
            self.sources.iter().enumerate().filter(|(other_id, other)| {
                *other_id != id.0
                    && other.is_ready()
                    && other.has(oldest.chunk)
                    && (other.asked.is_empty()
                        || now.saturating_sub(other.heard) < limits::SOURCE_SILENCE_MAX)
            })
        };
        let alone = others().next().is_none();
        let silence_max =
            if alone { limits::LONE_SOURCE_SILENCE_MAX } else { limits::SOURCE_SILENCE_MAX };
        if silent_for >= silence_max {
            return Some((DropReason::Silent, limits::SOURCE_AWAY_MIN));
        }
        let rate = source.meter.rate();
        let best = others().map(|(_, other)| other.meter.rate()).fold(0.0, f64::max);
        if owed_for >= limits::SOURCE_SLOW_AFTER && rate * limits::SOURCE_SLOWER_FACTOR < best {
            return Some((DropReason::Slow, limits::SOURCE_SLOW_AWAY));
        }
        if owed_for >= limits::LONE_SOURCE_SLOW_AFTER && rate < self.config.rate_min as f64 {
            return Some((DropReason::Slow, limits::SOURCE_SLOW_AWAY));
        }
        None
    }

    /// Fills the windows of all sources.
    fn plan(&mut self, now: Duration) {
        // Round after round of one request each, so that the first does not take all there is.
        let mut someone = true;
        while someone {
            someone = false;
            for id in (0..self.sources.len()).map(SourceId) {
                someone |= self.ask(id, now);
            }
        }
    }

    /// Asks a source for one more chunk, if it has room and something that is wanted.
    fn ask(&mut self, id: SourceId, now: Duration) -> bool {
        let source = &mut self.sources[id.0];
        if !source.is_ready()
            || source.asked.len() >= source.window()
            || source.busy_until.is_some_and(|until| now < until)
        {
            return false;
        }
        let picked = match &source.have {
            Have::Nothing => return false,
            Have::Whole => self.picker.pick(None, source.next),
            Have::Part(_) if source.dry_at == Some(self.returns) => None,
            Have::Part(set) => self.picker.pick(Some(set), source.next),
        };
        if picked.is_none() {
            source.dry_at = Some(self.returns);
        }
        let Some(index) = picked.or_else(|| self.pick_last(id)) else {
            return false;
        };
        let source = &mut self.sources[id.0];
        if source.asked.is_empty() {
            source.heard = now;
        }
        source.asked.push(Asked { chunk: index, at: now });
        source.next = index + 1;
        self.chunks[index as usize] = Chunk::Asked;
        self.debtors.entry(index).or_default().push(id);
        self.actions.push_back(Action::Request(id, index));
        true
    }

    /// In the end: a chunk that somebody else is expected to take longer over than this source would,
    /// for a source with nothing else to do.
    fn pick_last(&self, id: SourceId) -> Option<u64> {
        let source = &self.sources[id.0];
        if self.picker.missing() > 0 || !source.asked.is_empty() {
            return None;
        }
        // One that has not been tried yet is worth trying.
        let own_s = if source.meter.rate() > 0.0 { source.expected_s(0) } else { 0.0 };
        let mut slowest: Option<(f64, u64)> = None;
        for (other_id, other) in self.sources.iter().enumerate().filter(|(i, _)| *i != id.0) {
            debug_assert!(
                other.is_ready() || other.asked.is_empty(),
                "{other_id} owes, and is gone"
            );
            for (position, asked) in other.asked.iter().enumerate() {
                let alone = self.debtors.get(&asked.chunk).is_some_and(|of| of.len() == 1);
                let other_s = other.expected_s(position);
                let slower = slowest.is_none_or(|(most_s, _)| other_s > most_s);
                if alone && source.has(asked.chunk) && other_s >= own_s && slower {
                    slowest = Some((other_s, asked.chunk));
                }
            }
        }
        slowest.map(|(_, index)| index)
    }

    /// A source turns out not to have a chunk.
    fn lost(&mut self, id: SourceId, index: u64) {
        let source = &mut self.sources[id.0];
        match &mut source.have {
            Have::Nothing => {}
            Have::Part(set) => {
                if set.remove(index) {
                    self.picker.fewer(index);
                }
            }
            Have::Whole => {
                let mut set = ChunkSet::full(self.chunks.len() as u64);
                set.remove(index);
                each(&set, |index| self.picker.more(index));
                source.have = Have::Part(set);
            }
        }
    }

    /// A source owes a chunk no more. It is missing again unless another owes it.
    fn unask(&mut self, id: SourceId, index: u64) {
        self.sources[id.0].settle(index);
        let Some(debtors) = self.debtors.get_mut(&index) else {
            return;
        };
        debtors.retain(|debtor| *debtor != id);
        if debtors.is_empty() {
            self.debtors.remove(&index);
            if let Some(chunk @ Chunk::Asked) = self.chunks.get_mut(index as usize) {
                *chunk = Chunk::Missing;
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
        for asked in std::mem::take(&mut self.sources[id.0].asked) {
            self.unask(id, asked.chunk);
        }
        if let Have::Part(set) = std::mem::replace(&mut self.sources[id.0].have, Have::Nothing) {
            each(&set, |index| self.picker.fewer(index));
        }
    }
}

fn each(set: &ChunkSet, mut act: impl FnMut(u64)) {
    for (first, count) in set.runs() {
        (first..first + count).for_each(&mut act);
    }
}

#[cfg(test)]
mod tests;
