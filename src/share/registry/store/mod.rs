//! A directory in the replicated store: several registries serve one index, and none of them is a
//! single point of failure.
//!
//! `rows` has the layout, `offers` writes what peers have, `scan` reads all rows now and then, and
//! `local` has what this registry alone knows and decides what follows from the rows.
//!
//! Invariants:
//!
//! 1. A peer's row names the registry that it is connected to. Only that registry measures the
//!    peer's silence, in its own memory, so that a keep-alive costs the store nothing. Written
//!    regularly is one row for each registry, its heartbeat; `silence` tells from these rows which
//!    registries are dead.
//! 2. The version of a peer's row is the right to change what the peer offers: every write of its
//!    rows is under the condition that its row still has the version that the writer knows
//!    (compare-and-set). A JOIN begins by writing the row and a removal by removing it, and both
//!    read the peer's files after that, when nobody who knew an earlier version can change them any
//!    more. So of two registries that interfere over a peer one is told so at once, also one that
//!    was stopped in the middle of a write: it forgets the peer, which joins again.
//! 3. A peer's row is written before any of its files, and is marked `offered` only when all its
//!    files are there. With it a second row is written, the cleanup row, which is removed with the
//!    last of the peer's rows: a removal takes the peer's row away first, so that no one is sent to
//!    the peer any more, and the rest under the version that the cleanup row had before. So
//!    whatever a failure leaves half done belongs to a row that says so, and peers without their
//!    own row are not found by searches. A removal stores nothing, since it must be possible on a
//!    full disk.
//! 4. The three rows of a file are written in one write, and removed in one write.
//! 5. No versions accumulate: a row that is overwritten is trimmed, and a file that has changed is
//!    removed and written. Removed rows leave the disk after [`limits::REMOVAL_GRACE`]. A JOIN
//!    writes only the difference from what is there.
//!
//! A peer that sends nothing but keep-alives writes nothing, so that a scan has to find that its
//! row is another registry's ([`PeerDirectory::expire`]).
//!
//! [`IndexLimits`] apply to all registries together. Each registry counts what there was at its
//! last scan and what it has added since, so they may be exceeded by what others add in between.
//! The limits on memory do not apply, since the rows are on disk.
//!
//! Left out: an UPDATE of many files is several writes, and a search in between sees some of them.

mod local;
mod offers;
mod row_store;
mod rows;
mod scan;
mod silence;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use serde::de::DeserializeOwned;

use self::local::{LocalPeer, LocalPeers, Orphan, Totals};
use self::offers::{FilesChange, Guard, as_found};
use self::row_store::{Result, RowStore};
use self::rows::*;
use super::directory::{DirectoryError, PeerDirectory};
use crate::Client;
use crate::client::{Condition, ReadOptions};
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId, Row, Timestamp};
use crate::net::RunClock;
use crate::share::index::{
    IndexError, IndexLimits, Member, PeerEndpoint, most_offered_first, summaries, whole_first,
};
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// A registry on a store scans the store, and refreshes its own heartbeat there, this many times
/// within the silence timeout, so that one failed scan expires nobody.
const STORE_SCANS_PER_TIMEOUT: u32 = 4;

/// A JOIN tries so often to take its peer's row over. One attempt is in vain only if somebody else
/// has written the row since it was read, and a removal writes it twice.
const TAKE_OVER_ATTEMPTS_MAX: usize = 4;

/// The directory. All registries with the same store see the same index.
pub struct StoreDirectory<S = Client> {
    store: S,
    limits: IndexLimits,
    /// The time without a sign of life after which a peer, or a registry, counts as dead.
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
    /// Whether its cleanup row has an earlier version now.
    is_cleanup_replaced: bool,
}

type FileRows = BTreeMap<FileName, FileRow>;

/// Reads everything that was acknowledged to anyone, so that a peer that has joined at another
/// registry is found here at once.
const NEWEST: ReadOptions = ReadOptions { at: None, linearizable: true, facts: false };

impl<S: RowStore> StoreDirectory<S> {
    /// Peers and registries may be silent for `silence_timeout`.
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

    fn peer_rows(&self, from: &str, options: ReadOptions) -> Result<Vec<(PeerId, StoredPeer)>> {
        let rows = self.rows_of_peers(from, PEERS, options)?;
        let stored = |(peer, row, version)| (peer, StoredPeer { row, version });
        Ok(rows.into_iter().map(stored).collect())
    }

    /// The rows from a key on whose keys are peers below this prefix, and their versions.
    fn rows_of_peers<T: DeserializeOwned>(
        &self,
        from: &str,
        prefix: &str,
        options: ReadOptions,
    ) -> Result<Vec<(PeerId, T, Timestamp)>> {
        let mut rows = Vec::new();
        for row in self.store.range(from, &end(prefix), options)? {
            let row = row?;
            let peer = rest(&row, prefix).and_then(peer_of);
            let stored = row.timestamp().zip(value(row.value()));
            rows.extend(peer.zip(stored).map(|(peer, (version, row))| (peer, row, version)));
        }
        Ok(rows)
    }

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
            let totals = Totals::count(&self.peer_rows(PEERS, NEWEST)?);
            self.state().counted(totals);
            fits(totals)?;
        }
        Ok(())
    }

    /// Whether another registry still speaks for its peers.
    fn is_alive(&self, registry: RegistryId) -> Result<bool> {
        let now = self.now();
        let speaks = self.state().speaks(registry, now);
        match speaks {
            Some(speaks) => Ok(speaks),
            // No scan has seen it yet.
            None => Ok(self.store.get(&registry_key(registry))?.is_some()),
        }
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
        for _ in 0..TAKE_OVER_ATTEMPTS_MAX {
            let keys = [peer_key(peer), cleanup_key(peer)];
            let found = self.store.get_all(keys.into_iter())?;
            let [found, cleanup] = <[Row; 2]>::try_from(found)
                .unwrap_or_else(|rows| panic!("{} rows were read for 2 keys", rows.len()));
            let known: Option<PeerRow> = value(found.value());
            if let Some(row) = known
                && row.registry != self.id
                && row.key != key
                && self.is_alive(row.registry)?
            {
                return Err(DirectoryError::JoinedElsewhere);
            }
            let before = known.map(|row| row.files);
            self.state().check_origin(&self.limits, peer, origin, files)?;
            self.check_room(before, files)?;
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
            let row = match known.filter(|row| row.address == address) {
                Some(row) => new(row.offered, row.files, row.bytes),
                None => new(false, 0, 0),
            };
            // A cleanup row that names this registry is left as it is: as long as the peer has its
            // own row, nobody removes anything under the version of the other.
            let is_named = known.is_some_and(|row| row.registry == self.id);
            let has_cleanup = cleanup.found.is_some();
            let cleanup_row = CleanupRow { registry: self.id, address };
            let cleanup_row = (!(is_named && has_cleanup)).then_some(cleanup_row);
            let now = self.now();
            self.state().begin_join(member, origin, now);
            match self.put_peer(peer, as_found(found.found.as_ref()), row, cleanup_row) {
                Ok(Some(stored)) => {
                    let is_cleanup_replaced = has_cleanup && cleanup_row.is_some();
                    return Ok(TakenOver { before, stored, is_cleanup_replaced });
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
        puts: Vec<(String, Vec<u8>)>,
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
        if !self.state().has_heartbeat_row() {
            self.write_heartbeat()?;
        }
        let (given, files) = (files.len() as u64, by_name(files));
        let taken = self.take_over(member, place, given)?;
        let joined = match self.write_join(member.peer, &taken, &files) {
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
                // If the row is still ours it is orphaned, and the next scan removes the peer.
                state.forget(member);
                Err(error)
            }
        }
    }

    fn update(&self, member: Member, added: Vec<FileEntry>, removed: &[FileName]) -> Result<bool> {
        let peer = member.peer;
        let known = self.with_local_peer(member, |local| local.stored.zip(Some(local.origin)));
        let Some((stored, origin)) = known.flatten() else { return Ok(false) };
        let (given, added) = (added.len() as u64, by_name(added));
        let before = self.files_named(peer, added.keys().chain(removed))?;
        let stays = stored.row.files.saturating_sub(before.len() as u64);
        self.state().check_origin(&self.limits, peer, origin, stays + given)?;
        self.check_room(Some(stored.row.files), stays + given)?;
        if before == added {
            return Ok(true);
        }
        let files = stays + added.len() as u64;
        let bytes = stored.row.bytes.saturating_sub(total_bytes(&before));
        let bytes = bytes.saturating_add(total_bytes(&added));
        let row = PeerRow { files, bytes, ..stored.row };
        let guard = Guard { key: peer_key(peer), condition: Condition::Version(stored.version) };
        let change = FilesChange { parts: vec![], before: &before, after: &added };
        let written = self.write_files(peer, &guard, &change, Some(&row));
        let Ok(Some(version)) = written else {
            // It is another registry's by now, or nobody knows what its rows are: it joins again.
            self.state().forget(member);
            return written.map(|_| false);
        };
        let stored = StoredPeer { row, version };
        let is_local = self.with_local_peer(member, |local| local.stored = Some(stored)).is_some();
        self.state().recount(Some(stored.row.files), Some(files));
        self.store.trim(&guard.key)?;
        Ok(is_local)
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
        let row = encode(&ContentRow { size });
        let puts = keys_of_part(member.peer, content).map(|key| (key, row.clone()));
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
        let stored = self.state().forget(member);
        if let Some(stored) = stored {
            self.remove_peer(member.peer, stored)?;
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
        let orphan = self.state().take_orphan(peer);
        let silent = match orphan {
            None => None,
            Some(Orphan::Peer(stored)) => self.remove_peer(peer, stored)?.then_some(stored),
            Some(Orphan::Rest(cleanup)) => {
                self.clean_up(peer, cleanup)?;
                None
            }
        };
        if let Some(stored) = silent {
            log::info!("peer {peer} at {} has fallen silent", stored.row.address);
        }
        Ok(())
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
        let mut rows = self.peer_rows(&from, NEWEST)?;
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

fn total_bytes(files: &FileRows) -> u64 {
    files.values().map(|file| file.size).fold(0, u64::saturating_add)
}

/// Of two files of the same name the last counts.
fn by_name(files: Vec<FileEntry>) -> FileRows {
    let row = |FileEntry { name, size, content }| (name, FileRow { size, content });
    files.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests;
