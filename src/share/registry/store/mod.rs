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
//! 2. A peer's row is the first to be written and the last to be removed, and is marked `offered`
//!    only when all its files are there. So whatever a failure leaves half done belongs to a peer's
//!    row that says so, and peers without such a row are not found by searches.
//! 3. The three rows of a file are written in one write, and removed in one write.
//! 4. No versions accumulate: a row that is overwritten is trimmed, and a file that has changed is
//!    removed and written. Removed rows leave the disk after [`limits::REMOVAL_GRACE`]. A JOIN
//!    writes only the difference from what is there.
//!
//! The rows are not written with compare-and-set, so two registries may interfere over one peer
//! that joins at one while the other still believes it dead. Every such accident ends with a row
//! that differs from what the peer's own registry wrote last. That registry notices in its next
//! scan ([`PeerDirectory::expire`]) and forgets the peer, which is told so, joins again, and so
//! repairs everything.
//!
//! [`IndexLimits`] apply to all registries together. Each registry counts what there was at its
//! last scan and what it has added since, so they may be exceeded by what others add in between.
//! The limits on memory do not apply, since the rows are on disk.
//!
//! Left out: an UPDATE of many files is several writes, and a search in between sees some of them.

mod local;
mod offers;
mod rows;
mod scan;
mod silence;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;

use self::local::{LocalPeer, LocalPeers, Totals};
use self::rows::*;
use super::directory::{DirectoryError, PeerDirectory};
use crate::Client;
use crate::client::ReadOptions;
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId, Row};
use crate::net::RunClock;
use crate::share::index::{
    IndexError, IndexLimits, Member, PeerEndpoint, most_offered_first, summaries, whole_first,
};
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// A registry on a store scans the store, and refreshes its own heartbeat there, this many times
/// within the silence timeout, so that one failed scan expires nobody.
const STORE_SCANS_PER_TIMEOUT: u32 = 4;

/// The directory. All registries with the same store see the same index.
pub struct StoreDirectory {
    client: Client,
    limits: IndexLimits,
    /// The time without a sign of life after which a peer, or a registry, counts as dead.
    silence_timeout: Duration,
    id: RegistryId,
    /// Measures silence, without the times in which this process was stopped.
    clock: Mutex<RunClock>,
    state: Mutex<LocalPeers>,
}

type Result<T> = std::result::Result<T, DirectoryError>;
type FileRows = BTreeMap<FileName, FileRow>;

/// Reads everything that was acknowledged to anyone, so that a peer that has joined at another
/// registry is found here at once.
const NEWEST: ReadOptions = ReadOptions { at: None, linearizable: true };

impl StoreDirectory {
    /// `client` is connected to the store. Peers and registries may be silent for
    /// `silence_timeout`.
    pub fn new(client: Client, index: IndexLimits, silence_timeout: Duration) -> StoreDirectory {
        let id = RegistryId(rand::rng().next_u64());
        let clock = Mutex::new(RunClock::new(Some(limits::SHARE_TURN_MAX), Instant::now()));
        let state = Mutex::new(LocalPeers::new(id, silence_timeout));
        StoreDirectory { client, limits: index, silence_timeout, id, clock, state }
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

    fn rows(
        &self,
        from: &str,
        to: &[u8],
        options: ReadOptions,
    ) -> Result<impl Iterator<Item = Result<Row>>> {
        Ok(self.client.range(from, to, options)?.map(|row| Ok(row?)))
    }

    fn peer(&self, peer: PeerId) -> Result<Option<PeerRow>> {
        Ok(value(self.client.get(peer_key(peer))?.value.as_ref()))
    }

    fn peer_rows(&self, from: &str, options: ReadOptions) -> Result<Vec<(PeerId, PeerRow)>> {
        let mut peers = Vec::new();
        for row in self.rows(from, &end(PEERS), options)? {
            let row = row?;
            let peer = rest(&row, PEERS).and_then(peer_of);
            peers.extend(peer.zip(value(row.value.as_ref())));
        }
        Ok(peers)
    }

    /// The rows of those of these peers that are offered. Reading them needs no newest read: this
    /// client has seen the rows that name them, and reads nothing older.
    fn offered(&self, peers: &[PeerId]) -> Result<HashMap<PeerId, PeerRow>> {
        let mut offered = HashMap::new();
        let keys = peers.iter().map(|peer| peer_key(*peer));
        for (peer, row) in peers.iter().zip(self.client.get_all(keys, ReadOptions::default())?) {
            let row: Option<PeerRow> = value(row?.value.as_ref());
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
            None => Ok(self.client.get(registry_key(registry))?.value.is_some()),
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
}

impl PeerDirectory for StoreDirectory {
    fn join(&self, member: Member, place: PeerEndpoint, files: Vec<FileEntry>) -> Result<()> {
        let (peer, PeerEndpoint { origin, key, .. }) = (member.peer, place);
        let (given, files) = (files.len(), by_name(files));
        if !self.state().has_heartbeat_row() {
            self.write_heartbeat()?;
        }
        let known = self.peer(peer)?;
        if let Some(row) = known
            && row.registry != self.id
            && row.key != key
            && self.is_alive(row.registry)?
        {
            return Err(DirectoryError::JoinedElsewhere);
        }
        let before = known.map(|known| known.files);
        self.state().check_origin(&self.limits, peer, origin, given as u64)?;
        self.check_room(before, given as u64)?;
        let now = self.now();
        self.state().begin_join(member, place, now);
        match self.write_join(member, place, known, &files) {
            Ok(true) => self.state().recount(before, Some(files.len() as u64)),
            // With its next request it will be told to join again.
            Ok(false) => drop(self.state().forget(member)),
            Err(error) => {
                // The rows that were written are orphaned, and the next scan removes them.
                self.state().forget(member);
                return Err(error);
            }
        }
        Ok(())
    }

    fn update(&self, member: Member, added: Vec<FileEntry>, removed: &[FileName]) -> Result<bool> {
        let peer = member.peer;
        let known = self.with_local_peer(member, |local| {
            (local.address, local.key, local.origin, local.files, local.bytes)
        });
        let Some((address, key, origin, had_files, had_bytes)) = known else { return Ok(false) };
        let (given, added) = (added.len() as u64, by_name(added));
        let before = self.files_named(peer, added.keys().chain(removed))?;
        let stays = had_files.saturating_sub(before.len() as u64);
        self.state().check_origin(&self.limits, peer, origin, stays + given)?;
        self.check_room(Some(had_files), stays + given)?;
        if before == added {
            return Ok(true);
        }
        self.write_difference(peer, &before, &added)?;
        let sizes = |files: &FileRows| files.values().map(|f| f.size).fold(0, u64::saturating_add);
        let files = stays + added.len() as u64;
        let bytes = had_bytes.saturating_sub(sizes(&before)).saturating_add(sizes(&added));
        let Member { session, .. } = member;
        let registry = self.id;
        let row = PeerRow { address, session, key, registry, offered: true, files, bytes };
        let previous = self.put_peer(peer, &row)?;
        if previous.is_none_or(|previous| previous.session != session) {
            self.state().forget(member);
            return Ok(false);
        }
        self.state().recount(Some(had_files), Some(files));
        Ok(self
            .with_local_peer(member, |local| (local.files, local.bytes) = (files, bytes))
            .is_some())
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
        let keys = [content_key(content, member.peer, None), part_key(member.peer, content)];
        self.client.put_all(keys.map(|key| (key, row.clone())))?;
        Ok(self.with_local_peer(member, |local| local.fetching.insert(content)).is_some())
    }

    fn fetched(&self, member: Member, content: ContentId) -> Result<bool> {
        let told = self.with_local_peer(member, |local| local.fetching.contains(&content));
        if told == Some(true) {
            let keys = [content_key(content, member.peer, None), part_key(member.peer, content)];
            self.client.del_all(keys)?;
            self.with_local_peer(member, |local| local.fetching.remove(&content));
        }
        Ok(told.is_some())
    }

    fn heartbeat(&self, member: Member) -> Result<bool> {
        Ok(self.with_local_peer(member, |_| ()).is_some())
    }

    fn leave(&self, member: Member) -> Result<()> {
        let was_local = self.state().forget(member);
        if was_local {
            self.remove_peer(member.peer, member.session)?;
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

    fn search(&self, name: &FileName) -> Result<Vec<Source>> {
        let prefix = name_prefix(name);
        let mut found: Vec<(PeerId, FileRow)> = Vec::new();
        for row in self.rows(&prefix, &end(&prefix), NEWEST)? {
            let row = row?;
            let peer = rest(&row, &prefix).and_then(peer_of);
            found.extend(peer.zip(value(row.value.as_ref())));
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
        for row in self.rows(&prefix, &end(&prefix), NEWEST)? {
            let row = row?;
            let place = rest(&row, &prefix).and_then(|rest| rest.split_once('/'));
            let place = place.and_then(|(peer, name)| Some((peer_of(peer)?, !name.is_empty())));
            let holding: Option<ContentRow> = value(row.value.as_ref());
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
        rows.retain(|(_, row)| row.offered);
        let more = rows.len() > limits::LIST_ROWS_MAX;
        rows.truncate(limits::LIST_ROWS_MAX);
        let (now, state) = (self.now(), self.state());
        let page = rows.into_iter().map(|(peer, row)| {
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
        for row in self.rows(&from, &end(NAMES), NEWEST)? {
            let row = row?;
            let of = rest(&row, NAMES).and_then(|rest| rest.split_once('\0'));
            let of = of.and_then(|(name, _)| FileName::new(name).ok());
            let Some((of, FileRow { size, content })) = of.zip(value(row.value.as_ref())) else {
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

/// Of two files of the same name the last counts.
fn by_name(files: Vec<FileEntry>) -> FileRows {
    let row = |FileEntry { name, size, content }| (name, FileRow { size, content });
    files.into_iter().map(row).collect()
}
