//! A directory in the replicated store, so that several registries serve one index and none of them is a
//! single point of failure. `rows` has the layout, `offers` writes what peers have, `looks` finds out who lives.
//!
//! Invariants:
//!
//! 1. A peer's row names the registry that it is connected to. Only that one counts the peer's silence, in
//!    its own memory: a keep-alive costs the store nothing. What is written again and again is one row a
//!    registry, which says that the registry lives; `silence` tells who does not.
//! 2. The peer's row is the first to be written and the last to be taken away, and is marked `offered` only
//!    when all its files are there. So whatever is left half done, by whoever died over it, has a peer's row
//!    that says so, and peers that have no such row are not found.
//! 3. A file's three rows are written in one write, and removed in one write.
//! 4. Nothing keeps versions: a row that is written over is trimmed, and a file that has changed is
//!    removed and written. What was removed leaves the disk when [`limits::REMOVAL_GRACE`] has passed. A JOIN
//!    writes only what differs from what is there.
//!
//! The store has no compare-and-set, so two registries may get in each other's way over one peer: it joins
//! at one while the other still takes it for dead. Every such accident ends with a row that is not what the
//! peer's own registry wrote last. That one finds out when it looks through the rows ([`Directory::expire`]),
//! and forgets the peer, which is told so, joins anew, and so puts everything right.
//!
//! [`IndexLimits`] hold for all registries together. Each counts what there was when it looked last and
//! what it took itself since: they may be exceeded by what others took in between. The limit on
//! memory is not held: these are on a disk.
//!
//! An UPDATE of many files is several writes, and whoever asks in between sees a part of them.

mod offers;
mod rows;
mod scan;
mod silence;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;

use self::rows::*;
use self::silence::SilenceTracker;
use super::directory::{Directory, DirectoryError};
use crate::Client;
use crate::client::ReadOptions;
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId, Row};
use crate::net::RunClock;
use crate::share::index::{
    IndexError, IndexLimits, Member, PeerEndpoint, most_offered_first, summaries, whole_first,
};
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// The directory. All registries of one store see the same.
pub struct StoreDirectory {
    client: Client,
    limits: IndexLimits,
    /// How long a peer, or this registry, may be silent.
    silence_timeout: Duration,
    id: RegistryId,
    /// Silence is measured by it.
    clock: Mutex<RunClock>,
    state: Mutex<LocalState>,
}

/// What this registry alone knows.
#[derive(Default)]
struct LocalState {
    /// The peers connected to it. One is here before its row is in the store.
    local_peers: HashMap<PeerId, LocalPeer>,
    silence_tracker: SilenceTracker,
    /// When the rows were looked through last, or tried to be.
    scanned_at: Option<Instant>,
    /// Its own row has been written.
    has_heartbeat_row: bool,
    /// What there is in all, since somebody counted.
    totals: Option<Totals>,
    /// It has been said that the store does not answer.
    is_store_lost: bool,
}

struct LocalPeer {
    session: u64,
    address: SocketAddr,
    key: u64,
    origin: IpAddr,
    last_seen: Instant,
    /// Since when its row must be in the store; none while it is joining.
    joined: Option<Instant>,
    files: u64,
    bytes: u64,
    fetching: HashSet<ContentId>,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    peers: usize,
    files: u64,
}

type Result<T> = std::result::Result<T, DirectoryError>;
type FileRows = BTreeMap<FileName, FileRow>;

/// What was acknowledged to anybody is not missed: a peer that joined at another registry is found here at once.
const NEWEST: ReadOptions = ReadOptions { at: None, linearizable: true };

impl StoreDirectory {
    /// A directory in the store that `client` speaks to. A peer, and a registry, may be silent for
    /// `silence_timeout`.
    pub fn new(client: Client, index: IndexLimits, silence_timeout: Duration) -> StoreDirectory {
        let id = RegistryId(rand::rng().next_u64());
        let clock = Mutex::new(RunClock::new(Some(limits::SHARE_TURN_MAX), Instant::now()));
        StoreDirectory {
            client,
            limits: index,
            silence_timeout,
            id,
            clock,
            state: Mutex::default(),
        }
    }

    /// The time, without that in which this registry was stopped.
    fn now(&self) -> Instant {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).at(Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, LocalState> {
        // A worker that panics ends the process, except in tests, which then fail for that.
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

    /// Which of these peers are offered. The rows that named them are known to this client, so theirs are
    /// at least as new.
    fn offered(&self, peers: &[PeerId]) -> Result<HashMap<PeerId, PeerRow>> {
        let mut offered = HashMap::new();
        let keys = peers.iter().map(|peer| peer_key(*peer));
        for (peer, row) in peers.iter().zip(self.client.get_all(keys, ReadOptions::default())?) {
            let row: Option<PeerRow> = value(row?.value.as_ref());
            offered.extend(row.filter(|row| row.offered).map(|row| (*peer, row)));
        }
        Ok(offered)
    }

    // ---- this registry's own peers -------------------------------------------------------------

    /// Whether a JOIN, or an UPDATE, has room for `files` files of a peer that had `before`, if it was known.
    fn check_room(&self, before: Option<u64>, files: u64) -> Result<()> {
        let max = self.limits.files_per_peer_max;
        let fits = |totals: Totals| {
            if before.is_none() && totals.peers >= self.limits.peers_max {
                return Err(IndexError::Peers(totals.peers));
            }
            if files > max as u64 {
                return Err(IndexError::FilesOfPeer(max));
            }
            let others = totals.files.saturating_sub(before.unwrap_or_default());
            if others + files > self.limits.files_max as u64 {
                return Err(IndexError::Files);
            }
            Ok(())
        };
        let counted = self.state().totals;
        if counted.is_none_or(|totals| fits(totals).is_err()) {
            // Nobody is refused for what may have gone since.
            let totals = count(&self.peer_rows(PEERS, NEWEST)?);
            self.state().totals = Some(totals);
            fits(totals)?;
        }
        Ok(())
    }

    /// Whether a peer may have `files` files beside the other peers of its origin. Each registry counts those
    /// that are connected to it.
    fn check_origin(&self, peer: PeerId, origin: IpAddr, files: u64) -> Result<()> {
        let state = self.state();
        let others =
            state.local_peers.iter().filter(|(id, local)| **id != peer && local.origin == origin);
        let (peers, others) =
            others.fold((0, 0), |(peers, files), (_, local)| (peers + 1, files + local.files));
        let files_max = self.limits.files_per_origin_max;
        if peers >= self.limits.peers_per_origin_max {
            return Err(IndexError::PeersOfOrigin(peers).into());
        }
        if others + files > files_max as u64 {
            return Err(IndexError::FilesOfOrigin(files_max).into());
        }
        Ok(())
    }

    /// Whether another registry still speaks for its peers. One whose row has not changed for half of the time
    /// after which it is taken for dead, and twice the time in which it should have, does not: its peers may
    /// join here before they are forgotten.
    fn is_alive(&self, registry: RegistryId) -> Result<bool> {
        let now = self.now();
        if let Some(silence) = self.state().silence_tracker.seen_silence(registry, now) {
            return Ok(silence < self.silence_timeout / 2);
        }
        // Not seen by a look so far.
        Ok(self.client.get(registry_key(registry))?.value.is_some())
    }

    /// Counts a peer that had `before` files, and has `now`; none when it is not there.
    fn recount(&self, before: Option<u64>, now: Option<u64>) {
        if let Some(totals) = &mut self.state().totals {
            let (left, came) = (usize::from(before.is_some()), usize::from(now.is_some()));
            totals.peers = totals.peers.saturating_sub(left) + came;
            let files = totals.files.saturating_sub(before.unwrap_or_default());
            totals.files = files + now.unwrap_or_default();
        }
    }

    /// Does something with a member, if it is one, and has heard it.
    fn with_local_peer<T>(
        &self,
        member: Member,
        with: impl FnOnce(&mut LocalPeer) -> T,
    ) -> Option<T> {
        let now = self.now();
        let mut state = self.state();
        let local = state.local_peers.get_mut(&member.peer)?;
        (local.session == member.session).then(|| {
            local.last_seen = now;
            with(local)
        })
    }

    /// It is not a member of this registry any more. `false`: it was not.
    fn forget(&self, member: Member) -> bool {
        let mut state = self.state();
        let is_local = state
            .local_peers
            .get(&member.peer)
            .is_some_and(|local| local.session == member.session);
        is_local && state.local_peers.remove(&member.peer).is_some()
    }
}

fn count(peers: &[(PeerId, PeerRow)]) -> Totals {
    Totals { peers: peers.len(), files: peers.iter().map(|(_, row)| row.files).sum() }
}

impl Directory for StoreDirectory {
    fn join(&self, member: Member, place: PeerEndpoint, files: Vec<FileEntry>) -> Result<()> {
        let (Member { peer, session }, PeerEndpoint { address, origin, key }) = (member, place);
        let (given, files) = (files.len(), by_name(files));
        if !self.state().has_heartbeat_row {
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
        self.check_origin(peer, origin, given as u64)?;
        self.check_room(before, given as u64)?;
        let last_seen = self.now();
        self.state().local.insert(
            peer,
            LocalPeer {
                session,
                address,
                key,
                origin,
                last_seen,
                joined: None,
                files: 0,
                bytes: 0,
                fetching: HashSet::new(),
            },
        );
        match self.write_join(member, place, known, &files) {
            Ok(true) => self.recount(before, Some(files.len() as u64)),
            // It will be told with its next word that it has to join anew.
            Ok(false) => drop(self.forget(member)),
            Err(error) => {
                // What was written is nobody's now, and goes with the next look.
                self.forget(member);
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
        self.check_origin(peer, origin, stays + given)?;
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
            self.forget(member);
            return Ok(false);
        }
        self.recount(Some(had_files), Some(files));
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
        if self.forget(member) {
            self.remove_peer(member.peer, member.session)?;
        }
        Ok(())
    }

    fn expire(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        // Time passes, also where nothing is due.
        self.now();
        {
            let mut state = self.state();
            let interval = self.silence_timeout / limits::STORE_LOOKS_PER_SILENCE;
            if state.scanned_at.is_some_and(|at| at.elapsed() < interval) {
                return Ok(Vec::new());
            }
            state.scanned_at = Some(Instant::now());
        }
        let scanned = self.scan();
        match (&scanned, std::mem::replace(&mut self.state().is_store_lost, scanned.is_err())) {
            (Err(error), false) => log::warn!("{error}; nothing is forgotten until it does"),
            (Ok(_), true) => log::info!("the store answers again"),
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
        // By peer, whether it has it whole: a peer may have it under several names.
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
            let local = state.local_peers.get(&peer).filter(|local| local.session == row.session);
            // Of another registry's peer nothing is known but how its registry does.
            let silence = local.map_or_else(
                || state.silence_tracker.silence(row.registry, now),
                |local| now.saturating_duration_since(local.last_seen),
            );
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

/// Of two files of one name the last counts.
fn by_name(files: Vec<FileEntry>) -> FileRows {
    let row = |FileEntry { name, size, content }| (name, FileRow { size, content });
    files.into_iter().map(row).collect()
}
