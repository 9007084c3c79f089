//! Chooses which of the known sources are in use: whom to dial, whom to drop, and who makes room.
//!
//! Rule: a source is dropped for what it fails to do (it is silent, slow or useless), or to give
//! its place to a source that has not been tried or has stalled less. At most a quarter of the
//! places is exchanged in this way at once, so that sources which are slow but honest finish their
//! chunks.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::seq::IndexedRandom;

use super::source::{Assignment, SourceStatus, SwarmSource};
use super::{DropReason, SourceId, Swarm, SwarmAction};
use crate::limits::{self, origin_of};

/// A source that owes a chunk and gives no byte for this long is left, when no other can take over.
const LONE_SOURCE_SILENCE_MAX: Duration = Duration::from_secs(15);
/// A source that has owed a chunk for this long is left when another is much faster and the chunk
/// would take it much longer.
const SOURCE_SLOW_AFTER: Duration = Duration::from_secs(5);
/// Another source is much faster by this factor.
const SOURCE_SLOWER_FACTOR: f64 = 20.0;
/// A chunk takes a slow source much longer if it needs this time for what is missing.
const SOURCE_SLOW_FOR: Duration = Duration::from_secs(30);

/// A source that was left because it was too slow is dialled again after this time, doubling up to
/// the same bound as for a lost one.
const SOURCE_SLOW_REDIAL_MIN: Duration = Duration::from_secs(20);
/// A source from which nothing is requested for this long, since it has nothing that is missing or
/// is slower than all others, makes room for one that was not tried yet.
const SOURCE_IDLE_MAX: Duration = Duration::from_secs(3);

impl Swarm {
    /// Time has passed: drops sources that are silent, slow or useless, and lets those that were
    /// dropped for a while be dialled again. To be called every
    /// [`SHARE_TICK`](limits::SHARE_TICK).
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
                let mut is_useless = idle_for >= SOURCE_IDLE_MAX && has_candidate;
                // A source that has been useful may be so again. It makes room all the same, so
                // that many of them do not hide a faster one, but only as far as exchanges are
                // allowed: each replacement is tried with a chunk.
                if is_useless && source.given_bytes > 0 {
                    is_useless = self.exchanges > 0;
                    self.exchanges = self.exchanges.saturating_sub(1);
                }
                // Before the chunk hashes are known, no source is asked for a chunk.
                (is_useless && self.chunks.missing() > 0)
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
            let late = source.assignments.iter().filter(is_late);
            self.overdue.extend(late.map(|assignment| assignment.chunk));
        }
        self.try_others(now);
    }

    /// Whether to drop a source with outstanding requests, and how long to leave it alone at first.
    fn verdict(&self, id: SourceId, now: Duration) -> Option<(DropReason, Duration)> {
        let source = &self.sources[id.0];
        let oldest = source.assignments.first()?;
        let outstanding_for = now.saturating_sub(oldest.at);
        let silent_for = now.saturating_sub(source.heard).min(outstanding_for);
        // The sources that could take over its oldest chunk and are not silent themselves.
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
        let silence_max = if alone { LONE_SOURCE_SILENCE_MAX } else { limits::SOURCE_SILENCE_MAX };
        if silent_for >= silence_max {
            return Some((DropReason::Silent, limits::SOURCE_AWAY_MIN));
        }
        // In the endgame a source that has not stalled would make better use of the place.
        let is_end = self.chunks.missing() == 0;
        if is_end && source.is_stuck(now) && self.is_anybody_better_hidden(now) {
            return Some((DropReason::Slow, limits::SOURCE_AWAY_MIN));
        }
        let rate = source.meter.rate();
        let best = others().map(|(_, other)| other.meter.rate()).fold(0.0, f64::max);
        // A source that will soon complete its chunk is kept. Dropping it would waste what it has
        // sent, and it delays nobody.
        let is_far = source.expected_s(0) >= SOURCE_SLOW_FOR.as_secs_f64();
        let is_slow = rate * SOURCE_SLOWER_FACTOR < best && is_far;
        if outstanding_for >= SOURCE_SLOW_AFTER && is_slow {
            return Some((DropReason::Slow, SOURCE_SLOW_REDIAL_MIN));
        }
        let is_too_slow = rate < self.config.rate_min as f64;
        if outstanding_for >= limits::LONE_SOURCE_SLOW_AFTER && is_too_slow {
            return Some((DropReason::Slow, SOURCE_SLOW_REDIAL_MIN));
        }
        None
    }

    /// Drops a source for an untried one, if all places are taken and there is an untried one.
    pub fn make_room(&mut self, id: SourceId, now: Duration) {
        let waits = (limits::SOURCE_AWAY_MIN, limits::SOURCE_AWAY_MAX);
        if self.is_anybody_hidden() && self.put_away(id, waits, now) {
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Useless));
        }
    }

    /// Whether an idle source that has sent a chunk makes room for an untried one: when all places
    /// are taken and it is slower than the average. Uses up one exchange.
    pub(super) fn is_exchanged(&mut self, id: SourceId) -> bool {
        let source = &self.sources[id.0];
        if source.given_bytes == 0 || self.exchanges == 0 {
            return false;
        }
        // In the endgame it may be the one that sends what the others stall over.
        if self.chunks.has_stalls() && self.chunks.missing() == 0 && source.stalls == 0 {
            return false;
        }
        let rates = self.in_use.iter().map(|id| self.sources[id.0].meter.rate());
        let measured = rates.filter(|rate| *rate > 0.0);
        let (count, sum) = measured.fold((0u32, 0.0), |(count, sum), rate| (count + 1, sum + rate));
        // Among sources of equal rate any may go. One that sends is kept while most others have not
        // sent anything yet.
        let are_many = 2 * count as usize >= self.config.sources_max;
        let is_slow = are_many && source.meter.rate() * f64::from(count) <= 1.1 * sum;
        if is_slow && self.is_anybody_hidden() {
            self.exchanges -= 1;
            return true;
        }
        false
    }

    /// Drops the slowest of the sources with overdue chunks, so that a quarter of the places is
    /// free for untried sources. The others go on, so that chunks are completed even if all are
    /// slow.
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
            let oldest = source.assignments.first();
            oldest.is_some_and(|oldest| now.saturating_sub(oldest.at) >= long)
                && source.expected_s(0) > long.as_secs_f64()
        };
        let mut slow: Vec<(f64, SourceId)> = in_use()
            .filter(|(_, source)| is_tried(source) && is_slow(source))
            .map(|(id, source)| (source.meter.rate(), id))
            .collect();
        slow.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        for (_, id) in slow.into_iter().take(room) {
            self.put_away(id, (SOURCE_SLOW_REDIAL_MIN, limits::SOURCE_AWAY_MAX), now);
            self.actions.push_back(SwarmAction::Drop(id, DropReason::Slow));
        }
    }

    /// Whether all places are taken while there is an untried source.
    fn is_anybody_hidden(&self) -> bool {
        let is_untried = |source: &SwarmSource| source.status == SourceStatus::Untried;
        self.ready() >= self.config.sources_max && self.sources.iter().any(is_untried)
    }

    /// Whether all places are taken while there is a source that has not stalled.
    fn is_anybody_better_hidden(&self, now: Duration) -> bool {
        let is_better = |source: &SwarmSource| is_candidate(source, now) && source.stalls == 0;
        self.ready() >= self.config.sources_max && self.sources.iter().any(is_better)
    }

    /// Whether there is a source that could be dialled now.
    pub(super) fn has_candidate(&self, now: Duration) -> bool {
        self.sources.iter().any(|source| is_candidate(source, now))
    }

    /// The number of sources with an established connection.
    pub(super) fn ready(&self) -> usize {
        self.in_use.iter().filter(|id| self.sources[id.0].is_ready()).count()
    }

    /// Dials twice as many sources as there are free places, since many may be gone. The order is:
    /// those first of whose IP address fewest are in use, because one host may announce many peers;
    /// then untried ones; then those that have stalled over fewest chunks; then at random.
    pub(super) fn dial(&mut self, now: Duration) {
        let ready = self.ready();
        let in_use_max = ready + 2 * self.config.sources_max.saturating_sub(ready);
        if self.in_use.len() >= in_use_max {
            return;
        }
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        for id in &self.in_use {
            *origins.entry(origin_of(self.sources[id.0].address.ip())).or_default() += 1;
        }
        // One address may be announced under many peer ids, by others than its owner. It is dialled
        // at most once in a while whatever its ids.
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
}

/// Whether a source is not in use and may be dialled now.
fn is_candidate(source: &SwarmSource, now: Duration) -> bool {
    match source.status {
        SourceStatus::Untried => true,
        SourceStatus::Away { until } => now >= until,
        SourceStatus::Connecting | SourceStatus::Ready | SourceStatus::Banned => false,
    }
}
