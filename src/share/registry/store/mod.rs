//! A directory in the replicated store: several registries serve one index, and none of them is a
//! single point of failure.
//!
//! `rows` has the layout, `peer_leases` the leases of a peer, `offers` writes what peers have,
//! `scan` is what a registry does by its own timer, and `local` has what this registry alone knows
//! and decides what follows from the rows.
//!
//! Invariants:
//!
//! 1. **All rows of a peer are put with its leases**, which the registry that it is connected to
//!    keeps alive for as long as it hears from the peer: silence is measured in memory, and a
//!    keep-alive of a peer costs the store nothing. A registry that dies, or is cut off, keeps
//!    nothing alive, and nobody has to find that out: the leases of its peers end. One that was
//!    stopped for so long is told by its next keep-alive, and its peers join again.
//! 2. **The version of a peer's row is the right to change what the peer offers**: every write of
//!    its rows is a transaction under the condition that its row has the version that the writer
//!    knows. A JOIN begins by writing the row. So of two registries that interfere over a peer one
//!    is told so at once, also one that was stopped in the middle of a write: it forgets the peer,
//!    which joins again.
//! 3. **Who writes a peer's row that is offered goes on with its leases; who removes it ends
//!    them.** Both do so under the row's version, so it is one or the other. A lease can be
//!    revoked by anybody, whoever keeps it alive; this rule is why a registry that was stopped does
//!    not revoke what another has taken over. A JOIN that finds no row that is offered has leases
//!    of its own, with which it puts all rows anew.
//! 4. A peer's row is written before any of its files, and is marked `offered` only when all its
//!    files are there. It is removed before them, or ends with them or before them
//!    (`peer_leases`). Peers without an offered row of their own are not found by searches, so
//!    nobody is shown a part of what a peer has. The removal of that row stores nothing, since
//!    it must be possible on a full disk; leases end once there is room.
//! 5. The three rows of a file are written in one write, with one lease, and removed in one write.
//! 6. No versions accumulate: a row that is overwritten is trimmed, and a file that has changed is
//!    removed and written. Keys that end with a lease keep their history, and a group that keeps
//!    all history would step over them for ever. So whoever revokes leases removes the past of
//!    their rows, and registries do so for peers that a scan finds gone. Removed rows leave the
//!    disk after [`limits::REMOVAL_GRACE`]. A JOIN that takes rows over writes the difference only.
//!
//! What that costs: a lease has 16,384 keys, so that a peer of the most files has 13 leases. The
//! most peers with 13 leases each have 106,496 of the group's 262,144. A revoke counts as a long
//! write, of which one is under way in a group at a time: 1,000 peers of ten files each that leave
//! at once are gone after 5 to 9 seconds, in which others' PUTs take 2 ms in the median and 10 ms
//! at the 99th percentile (three servers and the registry on a busy machine of two processors).
//!
//! [`IndexLimits`] apply to all registries together. Each registry counts what there was at its
//! last scan and what it has added since, so they may be exceeded by what others add in between.
//! The limits on memory do not apply, since the rows are on disk.
//!
//! Left out: an UPDATE of many files is several writes, and a search in between sees some of them.
//! If all registries end at once, nobody removes the past of what they had.

mod local;
mod offers;
mod peer_leases;
mod row_store;
mod rows;
mod scan;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;

use self::local::{LocalPeer, LocalPeers, Totals};
use self::offers::FilesChange;
use self::peer_leases::PeerLeases;
use self::row_store::{LeasedRow, Result, RowStore};
use self::rows::*;
use super::directory::{DirectoryError, PeerDirectory};
use crate::Client;
use crate::client::{Condition, ReadOptions};
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, LeaseId, PeerId, Row};
use crate::net::RunClock;
use crate::share::index::{
    IndexError, IndexLimits, Member, PeerEndpoint, most_offered_first, summaries, whole_first,
};
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// A registry on a store keeps the leases of its peers alive, and scans the store, this many times
/// within the silence timeout, so that a few that fail expire nobody.
const STORE_SCANS_PER_TIMEOUT: u32 = 4;

/// A JOIN tries so often to take its peer's row over. One attempt is in vain only if somebody else
/// has written the row since it was read, or its lease has ended.
const TAKE_OVER_ATTEMPTS_MAX: usize = 4;

/// The directory. All registries with the same store see the same index.
pub struct StoreDirectory<S = Client> {
    store: S,
    limits: IndexLimits,
    /// The time without a sign of life after which a peer counts as dead.
    silence_timeout: Duration,
    id: RegistryId,
    /// Measures silence, without the times in which this process was stopped.
    clock: Mutex<RunClock>,
    state: Mutex<LocalPeers>,
}

/// A peer's row that a JOIN has written.
struct TakenOver {
    /// How many files the peer had, if it was known.
    before: Option<u64>,
    stored: StoredPeer,
    /// The lease that it is put with.
    lease: LeaseId,
    /// Whether the peer goes on with this lease and with those of its files.
    keeps_leases: bool,
}

type FileRows = BTreeMap<FileName, FileRow>;
type FoundFiles = BTreeMap<FileName, FoundFile>;

/// Reads everything that was acknowledged to anyone, so that a peer that has joined at another
/// registry is found here at once.
const NEWEST: ReadOptions = ReadOptions { at: None, linearizable: true, facts: false };

impl<S: RowStore> StoreDirectory<S> {
    /// Peers may be silent for `silence_timeout`.
    pub fn new(store: S, index: IndexLimits, silence_timeout: Duration) -> StoreDirectory<S> {
        let id = RegistryId(rand::rng().next_u64());
        let clock = Mutex::new(RunClock::new(Some(limits::SHARE_TURN_MAX), Instant::now()));
        let state = Mutex::new(LocalPeers::new(id, silence_timeout));
        StoreDirectory { store, limits: index, silence_timeout, id, clock, state }
    }

    /// The time in which this registry has run.
    fn now(&self) -> Instant {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).at(Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, LocalPeers> {
        // A worker that panics ends the process; in tests it fails the test.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- rows ----------------------------------------------------------------------------------

    /// The rows of those of these peers that are offered. A linearizable read is not needed: this
    /// client has seen the rows that name them, and reads nothing older.
    fn offered(&self, peers: &[PeerId]) -> Result<HashMap<PeerId, PeerRow>> {
        let mut offered = HashMap::new();
        let keys = peers.iter().map(|peer| peer_key(*peer));
        for (peer, row) in peers.iter().zip(self.store.get_all(keys)?) {
            let row: Option<PeerRow> = value(row.value());
            offered.extend(row.filter(|row| row.offered).map(|row| (*peer, row)));
        }
        Ok(offered)
    }

    // ---- limits and local peers ---------------------------------------------------------------

    /// Checks that a JOIN or UPDATE has room for `files` files of a peer that had `before` files,
    /// or `None` if it is new.
    fn check_room(&self, before: Option<u64>, files: u64) -> Result<()> {
        let fits = |totals: Totals| totals.check_room(&self.limits, before, files);
        let counted = self.state().totals();
        if counted.is_none_or(|totals| fits(totals).is_err()) {
            // Counted again, so that no peer is refused for files that are gone since.
            let totals = Totals::count(&self.scanned_peers(NEWEST)?.peers);
            self.state().counted(totals);
            fits(totals)?;
        }
        Ok(())
    }

    /// Changes a local peer, if `member` is one, and records a sign of life.
    fn with_local_peer<T>(
        &self,
        member: Member,
        with: impl FnOnce(&mut LocalPeer) -> T,
    ) -> Option<T> {
        let now = self.now();
        self.state().with_peer(member, now, with)
    }

    /// Takes over the row of a peer that joins with `files` files, from whichever registry has it,
    /// and makes the peer a local one.
    fn take_over(&self, member: Member, place: PeerEndpoint, files: u64) -> Result<TakenOver> {
        let (peer, PeerEndpoint { address, origin, key }) = (member.peer, place);
        let mut granted = None;
        for _ in 0..TAKE_OVER_ATTEMPTS_MAX {
            let found = self.store.get_all([peer_key(peer)].into_iter())?.pop();
            let found = found.and_then(|row| row.found);
            let known: Option<PeerRow> = found.as_ref().and_then(|found| value(Some(&found.value)));
            if let Some(row) = known
                && row.registry != self.id
                && row.key != key
            {
                return Err(DirectoryError::JoinedElsewhere);
            }
            let before = known.map(|row| row.files);
            self.state().check_origin(&self.limits, peer, origin, files)?;
            self.check_room(before, files)?;
            let offered = known.filter(|row| row.offered);
            let kept = offered.and(found.as_ref()).and_then(|found| found.facts?.lease);
            let lease = match kept.or(granted) {
                Some(lease) => lease,
                None => *granted.insert(self.grant_first()?),
            };
            let session = member.session;
            let new = |offered, files, bytes| PeerRow {
                address,
                session,
                key,
                registry: self.id,
                offered,
                files,
                bytes,
            };
            // A peer that comes back to the same address stays offered during the JOIN.
            let row = match offered.filter(|row| kept.is_some() && row.address == address) {
                Some(row) => new(true, row.files, row.bytes),
                None => new(false, 0, 0),
            };
            let now = self.now();
            self.state().begin_join(member, origin, PeerLeases::new(lease), now);
            let condition =
                found.map_or(Condition::Absent, |found| Condition::Version(found.timestamp));
            match self.put_peer(peer, condition, row, lease) {
                Ok(Some(stored)) => {
                    let keeps_leases = kept.is_some();
                    return Ok(TakenOver { before, stored, lease, keeps_leases });
                }
                Ok(None) => drop(self.state().forget(member)),
                Err(error) => {
                    self.state().forget(member);
                    return Err(error);
                }
            }
        }
        Err(DirectoryError::JoinedElsewhere)
    }

    /// Writes rows of a local peer other than its own. Returns false if that is another registry's
    /// by now, and forgets the peer.
    fn write_local(
        &self,
        member: Member,
        puts: Vec<LeasedRow>,
        removes: Vec<String>,
    ) -> Result<bool> {
        let stored = self.with_local_peer(member, |local| local.stored).flatten();
        let Some(StoredPeer { version, .. }) = stored else { return Ok(false) };
        let key = peer_key(member.peer);
        let written = self.store.write_if(&key, Condition::Version(version), puts, removes)?;
        if written.is_none() {
            self.state().forget(member);
        }
        Ok(written.is_some())
    }
}

impl<S: RowStore> PeerDirectory for StoreDirectory<S> {
    fn join(&self, member: Member, place: PeerEndpoint, files: Vec<FileEntry>) -> Result<()> {
        let (given, files) = (files.len() as u64, by_name(files));
        let taken = self.take_over(member, place, given)?;
        let joined = match self.write_join(member, &taken, &files) {
            Ok(stored) => stored.ok_or(DirectoryError::JoinedElsewhere),
            Err(error) => Err(error),
        };
        let now = self.now();
        let mut state = self.state();
        match joined {
            Ok(stored) => {
                state.end_join(member, stored, Instant::now(), now);
                state.recount(taken.before, Some(stored.row.files));
                Ok(())
            }
            Err(error) => {
                // If the row is still ours, it ends with its lease, which nobody keeps alive.
                state.forget(member);
                Err(error)
            }
        }
    }

    fn update(&self, member: Member, added: Vec<FileEntry>, removed: &[FileName]) -> Result<bool> {
        let peer = member.peer;
        let known = self.with_local_peer(member, |local| {
            local.stored.map(|stored| (stored, local.origin, local.leases.clone()))
        });
        let Some((stored, origin, mut leases)) = known.flatten() else { return Ok(false) };
        let (given, added) = (added.len() as u64, by_name(added));
        let before = self.files_named(peer, added.keys().chain(removed))?;
        let stays = stored.row.files.saturating_sub(before.len() as u64);
        self.state().check_origin(&self.limits, peer, origin, stays + given)?;
        self.check_room(Some(stored.row.files), stays + given)?;
        let change = FilesChange::between(&before, &added, &leases);
        if change.is_nothing() {
            return Ok(true);
        }
        let files = stays + added.len() as u64;
        let bytes = total_bytes(before.values().map(|found| &found.file));
        let bytes = stored.row.bytes.saturating_sub(bytes);
        let bytes = bytes.saturating_add(total_bytes(added.values()));
        let row = PeerRow { files, bytes, ..stored.row };
        let placed = self.place_files(member, &mut leases, &change)?;
        let written = self.write_files(peer, stored.version, &change, placed, row, leases.first());
        let Ok(Some(stored)) = written else {
            // It is another registry's by now, or nobody knows what its rows are: it joins again.
            self.state().forget(member);
            return written.map(|_| false);
        };
        let before = self.with_local_peer(member, |local| local.stored.replace(stored)).flatten();
        if let Some(before) = before {
            self.state().recount(Some(before.row.files), Some(files));
        }
        self.store.trim(&peer_key(peer))?;
        Ok(before.is_some())
    }

    fn fetching(&self, member: Member, content: ContentId, size: u64) -> Result<bool> {
        let max = self.limits.fetching_per_peer_max;
        let room = self.with_local_peer(member, |local| {
            let is_told = local.fetching.contains(&content);
            (is_told, is_told || local.fetching.len() < max)
        });
        match room {
            None => return Ok(false),
            Some((true, _)) => return Ok(true),
            Some((_, false)) => return Err(IndexError::Fetching(max).into()),
            Some((false, true)) => {}
        }
        let Some(lease) = self.with_local_peer(member, |local| local.leases.first()) else {
            return Ok(false);
        };
        let value = encode(&ContentRow { size });
        let row = |key| LeasedRow { key, value: value.clone(), lease };
        let puts = keys_of_part(member.peer, content).map(row);
        Ok(self.write_local(member, puts.into(), vec![])?
            && self.with_local_peer(member, |local| local.fetching.insert(content)).is_some())
    }

    fn fetched(&self, member: Member, content: ContentId) -> Result<bool> {
        let told = self.with_local_peer(member, |local| local.fetching.contains(&content));
        if told != Some(true) {
            return Ok(told.is_some());
        }
        let removes = keys_of_part(member.peer, content);
        Ok(self.write_local(member, vec![], removes.into())?
            && self.with_local_peer(member, |local| local.fetching.remove(&content)).is_some())
    }

    fn heartbeat(&self, member: Member) -> Result<bool> {
        Ok(self.with_local_peer(member, |_| ()).is_some())
    }

    fn leave(&self, member: Member) -> Result<()> {
        let known = self.state().forget(member);
        if let Some((stored, leases)) = known {
            self.remove_peer(member.peer, stored, &leases)?;
        }
        Ok(())
    }

    fn expire(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        // Advances the clock even if no scan is due.
        self.now();
        let interval = self.silence_timeout / STORE_SCANS_PER_TIMEOUT;
        if !self.state().begin_scan(interval, Instant::now()) {
            return Ok(Vec::new());
        }
        let scanned = self.scan();
        let is_news = self.state().store_answers(scanned.is_ok());
        match &scanned {
            Err(error) if is_news => log::warn!("{error}; nothing is forgotten until it does"),
            Ok(_) if is_news => log::info!("the store answers again"),
            _ => {}
        }
        scanned
    }

    fn remove_silent(&self, peer: PeerId) -> Result<()> {
        let now = self.now();
        let (silent, gone) = {
            let mut state = self.state();
            (state.forget_silent(peer, now), state.take_gone(peer))
        };
        if let Some((stored, leases)) = silent
            && self.remove_peer(peer, stored, &leases)?
        {
            log::info!("peer {peer} at {} has fallen silent", stored.row.address);
        }
        gone.map_or(Ok(()), |at| self.remove_past(peer, at))
    }

    fn has_more_files(&self, peer: PeerId, files: usize) -> Result<bool> {
        let prefix = files_prefix(peer);
        let end = end(&prefix);
        let mut rows = self.store.range(&prefix, &end, ReadOptions::default())?;
        Ok(rows.nth(files).transpose()?.is_some())
    }

    fn search(&self, name: &FileName) -> Result<Vec<Source>> {
        let prefix = name_prefix(name);
        let mut found: Vec<(PeerId, FileRow)> = Vec::new();
        for row in self.store.range(&prefix, &end(&prefix), NEWEST)? {
            let row = row?;
            let peer = rest(&row, &prefix).and_then(peer_of);
            found.extend(peer.zip(value(row.value())));
        }
        let peers: Vec<PeerId> = found.iter().map(|(peer, _)| *peer).collect();
        let offered = self.offered(&peers)?;
        let sources = found.into_iter().filter_map(|(peer, FileRow { size, content })| {
            Some(Source { peer, address: offered.get(&peer)?.address, size, content })
        });
        Ok(most_offered_first(sources.collect(), rand::rng().next_u64()))
    }

    fn sources_of(&self, content: ContentId) -> Result<Vec<Source>> {
        let prefix = content_prefix(content);
        // For each peer whether it has the whole content; it may have it under several names.
        let mut found: BTreeMap<PeerId, (bool, u64)> = BTreeMap::new();
        for row in self.store.range(&prefix, &end(&prefix), NEWEST)? {
            let row = row?;
            let place = rest(&row, &prefix).and_then(|rest| rest.split_once('/'));
            let place = place.and_then(|(peer, name)| Some((peer_of(peer)?, !name.is_empty())));
            let holding: Option<ContentRow> = value(row.value());
            if let Some(((peer, is_whole), ContentRow { size })) = place.zip(holding) {
                found.entry(peer).or_insert((is_whole, size)).0 |= is_whole;
            }
        }
        let peers: Vec<PeerId> = found.keys().copied().collect();
        let offered = self.offered(&peers)?;
        let (whole, parts): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(_, (is_whole, _))| *is_whole);
        let source = |(peer, (_, size)): (PeerId, (bool, u64))| {
            Some(Source { peer, address: offered.get(&peer)?.address, size, content })
        };
        let [whole, parts] = [whole, parts].map(|of| of.into_iter().filter_map(source).collect());
        Ok(whole_first(whole, parts, rand::rng().next_u64()))
    }

    fn peers(&self, after: Option<PeerId>) -> Result<(Vec<PeerSummary>, bool)> {
        let from = after.map_or(PEERS.to_owned(), |peer| format!("{}\u{1}", peer_key(peer)));
        let (rows, _) = self.store.rows(&from, &end(PEERS), NEWEST)?;
        let mut rows = stored_peers(&rows);
        rows.retain(|(_, stored)| stored.row.offered);
        let more = rows.len() > limits::LIST_ROWS_MAX;
        rows.truncate(limits::LIST_ROWS_MAX);
        let (now, state) = (self.now(), self.state());
        let page = rows.into_iter().map(|(peer, StoredPeer { row, .. })| {
            let silence = state.silence(peer, &row, now);
            let silent_ms = silence.as_millis() as u64;
            let PeerRow { address, files, bytes, .. } = row;
            PeerSummary { peer, address, files, bytes, silent_ms }
        });
        Ok((page.collect(), more))
    }

    fn files(&self, after: Option<&FileName>) -> Result<(Vec<FileSummary>, bool)> {
        let from = after.map_or(NAMES.to_owned(), |name| format!("{NAMES}{name}\u{1}"));
        let mut page: Vec<FileSummary> = Vec::new();
        let mut name: Option<FileName> = None;
        let mut id_holders: HashMap<(ContentId, u64), u32> = HashMap::new();
        let mut offers = 0;
        for row in self.store.range(&from, &end(NAMES), NEWEST)? {
            let row = row?;
            let of = rest(&row, NAMES).and_then(|rest| rest.split_once('\0'));
            let of = of.and_then(|(name, _)| FileName::new(name).ok());
            let Some((of, FileRow { size, content })) = of.zip(value(row.value())) else {
                continue;
            };
            if name.as_ref() != Some(&of) {
                if let Some(name) = name.replace(of) {
                    page.extend(summaries(&name, std::mem::take(&mut id_holders)));
                }
                if page.len() >= limits::LIST_ROWS_MAX || offers >= limits::PAGE_OFFERS_MAX {
                    return Ok((page, true));
                }
            }
            offers += 1;
            *id_holders.entry((content, size)).or_default() += 1;
        }
        page.extend(name.iter().flat_map(|name| summaries(name, std::mem::take(&mut id_holders))));
        Ok((page, false))
    }
}

fn total_bytes<'a>(files: impl Iterator<Item = &'a FileRow>) -> u64 {
    files.map(|file| file.size).fold(0, u64::saturating_add)
}

/// The peers that these rows are of.
fn stored_peers(rows: &[Row]) -> Vec<(PeerId, StoredPeer)> {
    let stored = |row: &Row| {
        let peer = rest(row, PEERS).and_then(peer_of)?;
        let (version, row) = row.timestamp().zip(value(row.value()))?;
        Some((peer, StoredPeer { row, version }))
    };
    rows.iter().filter_map(stored).collect()
}

/// Of two files of the same name the last counts.
fn by_name(files: Vec<FileEntry>) -> FileRows {
    let row = |FileEntry { name, size, content }| (name, FileRow { size, content });
    files.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests;
