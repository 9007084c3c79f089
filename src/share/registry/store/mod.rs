//! A directory in the replicated store, so that several registries serve one index and none of them is a
//! single point of failure. `rows` has the layout.
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
//! what it took itself since: they may be exceeded by what others took in between. The limit on the
//! bytes of names is not held: it is there for memory, and these are on a disk.
//!
//! An UPDATE of many files is several writes, and whoever asks in between sees a part of them.

mod rows;
mod silence;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;

use self::rows::*;
use self::silence::{Found, Watch};
use super::directory::{Directory, DirectoryError};
use crate::Client;
use crate::client::ReadOptions;
use crate::limits;
use crate::share::index::{IndexError, IndexLimits, Member, most_offered_first, summaries};
use crate::share::names::FileName;
use crate::share::types::{ContentId, FileEntry, PeerId};
use crate::wire::message::Row;
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// The directory. All registries of one store see the same.
pub struct StoreDirectory {
    client: Client,
    limits: IndexLimits,
    /// How long a peer, or this registry, may be silent.
    silence_timeout: Duration,
    id: RegistryId,
    state: Mutex<State>,
}

/// What this registry alone knows.
#[derive(Default)]
struct State {
    /// The peers connected to it. One is here before its row is in the store.
    mine: HashMap<PeerId, Mine>,
    watch: Watch,
    /// When the rows were looked through last, or tried to be.
    looked: Option<Instant>,
    /// Its own row has been written.
    is_known: bool,
    /// What there is in all, since somebody counted.
    totals: Option<Totals>,
    /// It has been said that the store does not answer.
    is_cut_off: bool,
}

struct Mine {
    session: u64,
    address: SocketAddr,
    heard: Instant,
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
type Files = BTreeMap<FileName, FileRow>;

/// What was acknowledged to anybody is not missed: a peer that joined at another registry is found here at once.
const NEWEST: ReadOptions = ReadOptions { at: None, linearizable: true };

impl StoreDirectory {
    /// A directory in the store that `client` speaks to. A peer, and a registry, may be silent for
    /// `silence_timeout`.
    pub fn new(client: Client, limits: IndexLimits, silence_timeout: Duration) -> StoreDirectory {
        let id = RegistryId(rand::rng().next_u64());
        StoreDirectory { client, limits, silence_timeout, id, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
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

    /// Writes a peer's row over the one it has, and says which that was.
    fn put_peer(&self, peer: PeerId, row: &PeerRow) -> Result<Option<PeerRow>> {
        let key = peer_key(peer);
        let previous = self.client.replace(&key, encode(row))?.previous;
        if previous.is_some() {
            self.client.trim(&key)?;
        }
        Ok(value(previous.as_ref().map(|version| &version.value)))
    }

    /// Writes the rows of files, or takes them away, a bounded number at once.
    fn write_files(
        &self,
        peer: PeerId,
        files: &[(&FileName, FileRow)],
        write: impl Fn(&[(&FileName, FileRow)]) -> Result<()>,
    ) -> Result<()> {
        for files in files.chunks(limits::STORE_FILES_PER_WRITE) {
            write(files)?;
            // The log takes writes faster than the servers apply them. A read waits until one has, so that
            // a long list does not fill the queues that others' writes have to go through.
            if let Some((name, _)) = files.first() {
                self.client.get(file_key(peer, name))?;
            }
        }
        Ok(())
    }

    fn put_files(&self, peer: PeerId, files: &[(&FileName, FileRow)]) -> Result<()> {
        self.write_files(peer, files, |files| {
            let rows = files.iter().flat_map(|(name, file)| rows_of_file(peer, name, *file));
            Ok(self.client.put_all(rows).map(drop)?)
        })
    }

    fn remove_files(&self, peer: PeerId, files: &[(&FileName, FileRow)]) -> Result<()> {
        self.write_files(peer, files, |files| {
            let keys = files.iter().flat_map(|(name, file)| keys_of_file(peer, name, file.content));
            Ok(self.client.del_all(keys).map(drop)?)
        })
    }

    /// What a peer offers.
    fn files_of(&self, peer: PeerId) -> Result<Files> {
        let prefix = files_prefix(peer);
        let mut files = Files::new();
        for row in self.rows(&prefix, &end(&prefix), ReadOptions::default())? {
            files.extend(file(&row?, &prefix));
        }
        Ok(files)
    }

    /// What it offers of these names.
    fn files_named<'a>(
        &self,
        peer: PeerId,
        names: impl Iterator<Item = &'a FileName>,
    ) -> Result<Files> {
        let (keys, prefix) = (names.map(|name| file_key(peer, name)), files_prefix(peer));
        let mut files = Files::new();
        for row in self.client.get_all(keys, ReadOptions::default())? {
            files.extend(file(&row?, &prefix));
        }
        Ok(files)
    }

    /// Takes away what says that a peer serves parts of what it is fetching.
    fn remove_parts(&self, peer: PeerId) -> Result<()> {
        let prefix = parts_prefix(peer);
        let mut keys = Vec::new();
        for row in self.rows(&prefix, &end(&prefix), ReadOptions::default())? {
            let row = row?;
            if let Some(content) = rest(&row, &prefix) {
                keys.push(format!("share/content/{content}/{peer}/"));
                keys.push(format!("{prefix}{content}"));
            }
        }
        if !keys.is_empty() {
            self.client.del_all(keys)?;
        }
        Ok(())
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

    /// Says in the store that this registry lives.
    fn live(&self) -> Result<()> {
        let key = registry_key(self.id);
        let silence_timeout_ms = self.silence_timeout.as_millis() as u64;
        self.client.put(&key, encode(&RegistryRow { silence_timeout_ms }))?;
        if std::mem::replace(&mut self.state().is_known, true) {
            self.client.trim(&key)?;
        }
        Ok(())
    }

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
    fn mine<T>(&self, member: Member, with: impl FnOnce(&mut Mine) -> T) -> Option<T> {
        let mut state = self.state();
        let mine = state.mine.get_mut(&member.peer)?;
        (mine.session == member.session).then(|| {
            mine.heard = Instant::now();
            with(mine)
        })
    }

    /// It is not a member of this registry any more. `false`: it was not.
    fn forget(&self, member: Member) -> bool {
        let mut state = self.state();
        let is_mine =
            state.mine.get(&member.peer).is_some_and(|mine| mine.session == member.session);
        is_mine && state.mine.remove(&member.peer).is_some()
    }

    /// Writes what a member offers. `false` when somebody else has written the peer's row meanwhile.
    fn write_join(
        &self,
        Member { peer, session }: Member,
        address: SocketAddr,
        known: Option<PeerRow>,
        files: &Files,
    ) -> Result<bool> {
        let fresh =
            PeerRow { address, session, registry: self.id, offered: false, files: 0, bytes: 0 };
        // One that comes back is offered all the while.
        let before = known.filter(|known| known.address == address);
        self.put_peer(
            peer,
            &before.map_or(fresh, |before| PeerRow {
                offered: before.offered,
                files: before.files,
                bytes: before.bytes,
                ..fresh
            }),
        )?;
        // What is read from here on is what there was then, at least: whoever takes this peer away has
        // either finished, or will take that row away, too.
        self.remove_parts(peer)?;
        self.write_difference(peer, &self.files_of(peer)?, files)?;
        let (count, bytes) = (files.len() as u64, files.values().map(|file| file.size));
        let bytes = bytes.fold(0, u64::saturating_add);
        let row = PeerRow { offered: true, files: count, bytes, ..fresh };
        let previous = self.put_peer(peer, &row)?;
        self.mine(Member { peer, session }, |mine| {
            (mine.files, mine.bytes) = (count, bytes);
            mine.joined = Some(Instant::now());
        });
        Ok(previous.is_some_and(|previous| previous.session == session))
    }

    /// Makes a peer's files that were `before` those that are to be.
    fn write_difference(&self, peer: PeerId, before: &Files, files: &Files) -> Result<()> {
        let differ = |a: &Files, b: &Files| -> Vec<(FileName, FileRow)> {
            let differs = |(name, file): &(&FileName, &FileRow)| b.get(*name) != Some(*file);
            a.iter().filter(differs).map(|(name, file)| (name.clone(), *file)).collect()
        };
        let (gone, new) = (differ(before, files), differ(files, before));
        self.remove_files(peer, &borrowed(&gone))?;
        self.put_files(peer, &borrowed(&new))
    }

    /// Takes a peer away, if it still is the one that joined in this session, and says where it was.
    fn remove_peer(&self, peer: PeerId, session: u64) -> Result<Option<SocketAddr>> {
        let row = self.peer(peer)?.filter(|row| row.session == session);
        let Some(row) = row else { return Ok(None) };
        // Nobody is sent to it any more, however long the rest takes.
        self.put_peer(peer, &PeerRow { offered: false, ..row })?;
        self.remove_parts(peer)?;
        self.write_difference(peer, &self.files_of(peer)?, &Files::new())?;
        let removed = self.client.del(peer_key(peer))?.previous;
        if removed.is_some() {
            self.recount(Some(row.files), None);
        }
        Ok(removed.map(|_| row.address))
    }

    // ---- looking through the rows --------------------------------------------------------------

    /// Says that this registry lives, and finds out which others do not, whose peers nobody has, and
    /// which of its own peers have fallen silent or been taken away by somebody.
    fn look(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        self.live()?;
        let began = Instant::now();
        // The peers before the registries: whoever is named here has its own row by then.
        let peers = self.peer_rows(PEERS, ReadOptions::default())?;
        let mut found = Vec::new();
        for row in self.rows(REGISTRIES, &end(REGISTRIES), ReadOptions::default())? {
            let row = row?;
            let registry = rest(&row, REGISTRIES).and_then(registry_of);
            let value: Option<RegistryRow> = value(row.value.as_ref());
            found.extend(registry.zip(value).map(|(registry, value)| Found {
                registry,
                version: row.timestamp,
                timeout: Duration::from_millis(value.silence_timeout_ms),
            }));
        }
        let (dead, nobodys) = self.judge(began, &peers, &found);
        for registry in dead {
            log::warn!("a registry that shares this store has fallen silent: its peers go");
            self.client.del(registry_key(registry))?;
        }
        let mut removed = Vec::new();
        for (peer, session) in nobodys {
            removed.extend(self.remove_peer(peer, session)?.map(|address| (peer, address)));
        }
        Ok(removed)
    }

    /// Which registries are dead, and whose rows are to go.
    fn judge(
        &self,
        began: Instant,
        peers: &[(PeerId, PeerRow)],
        found: &[Found],
    ) -> (Vec<RegistryId>, Vec<(PeerId, u64)>) {
        let now = Instant::now();
        let mut state = self.state();
        let State { mine, watch, totals, .. } = &mut *state;
        let mut dead = watch.look(found, self.silence_timeout / 2, now);
        dead.retain(|registry| *registry != self.id);
        let alive: HashSet<RegistryId> = found
            .iter()
            .map(|found| found.registry)
            .filter(|registry| !dead.contains(registry))
            .chain([self.id])
            .collect();
        *totals = Some(count(peers));
        let is_silent = |mine: &Mine| {
            mine.joined.is_some() && now.duration_since(mine.heard) > self.silence_timeout
        };
        mine.retain(|_, mine| !is_silent(mine));
        let nobodys = peers.iter().filter(|(peer, row)| {
            if row.registry == self.id {
                !mine.contains_key(peer)
            } else {
                !alive.contains(&row.registry)
            }
        });
        let nobodys = nobodys.map(|(peer, row)| (*peer, row.session)).collect();
        let rows: HashMap<PeerId, &PeerRow> =
            peers.iter().map(|(peer, row)| (*peer, row)).collect();
        mine.retain(|peer, mine| {
            let is_theirs = |row: &&PeerRow| (row.registry, row.session) == (self.id, mine.session);
            let is_due = mine.joined.is_some_and(|joined| joined < began);
            let stays = !is_due || rows.get(peer).is_some_and(is_theirs);
            if !stays {
                log::info!("peer {peer} was taken away by another registry: it is to join anew");
            }
            stays
        });
        (dead, nobodys)
    }
}

fn count(peers: &[(PeerId, PeerRow)]) -> Totals {
    Totals { peers: peers.len(), files: peers.iter().map(|(_, row)| row.files).sum() }
}

fn borrowed(files: &[(FileName, FileRow)]) -> Vec<(&FileName, FileRow)> {
    files.iter().map(|(name, file)| (name, *file)).collect()
}

/// A row of a peer's files.
fn file(row: &Row, prefix: &str) -> Option<(FileName, FileRow)> {
    let name = rest(row, prefix).and_then(|name| FileName::new(name).ok());
    name.zip(value(row.value.as_ref()))
}

impl Directory for StoreDirectory {
    fn join(&self, member: Member, address: SocketAddr, files: Vec<FileEntry>) -> Result<()> {
        let Member { peer, session } = member;
        let (given, files) = (files.len(), by_name(files));
        if !self.state().is_known {
            self.live()?;
        }
        let known = self.peer(peer)?;
        let before = known.map(|known| known.files);
        self.check_room(before, given as u64)?;
        self.state().mine.insert(
            peer,
            Mine {
                session,
                address,
                heard: Instant::now(),
                joined: None,
                files: 0,
                bytes: 0,
                fetching: HashSet::new(),
            },
        );
        match self.write_join(member, address, known, &files) {
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
        let known = self.mine(member, |mine| (mine.address, mine.files, mine.bytes));
        let Some((address, had_files, had_bytes)) = known else { return Ok(false) };
        let (given, added) = (added.len() as u64, by_name(added));
        let before = self.files_named(peer, added.keys().chain(removed))?;
        let stays = had_files.saturating_sub(before.len() as u64);
        self.check_room(Some(had_files), stays + given)?;
        if before == added {
            return Ok(true);
        }
        self.write_difference(peer, &before, &added)?;
        let sizes = |files: &Files| files.values().map(|f| f.size).fold(0, u64::saturating_add);
        let files = stays + added.len() as u64;
        let bytes = had_bytes.saturating_sub(sizes(&before)).saturating_add(sizes(&added));
        let Member { session, .. } = member;
        let row = PeerRow { address, session, registry: self.id, offered: true, files, bytes };
        let previous = self.put_peer(peer, &row)?;
        if previous.is_none_or(|previous| previous.session != session) {
            self.forget(member);
            return Ok(false);
        }
        self.recount(Some(had_files), Some(files));
        Ok(self.mine(member, |mine| (mine.files, mine.bytes) = (files, bytes)).is_some())
    }

    fn fetching(&self, member: Member, content: ContentId, size: u64) -> Result<bool> {
        let max = self.limits.fetching_per_peer_max;
        let room = self.mine(member, |mine| {
            let is_told = mine.fetching.contains(&content);
            (is_told, is_told || mine.fetching.len() < max)
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
        Ok(self.mine(member, |mine| mine.fetching.insert(content)).is_some())
    }

    fn fetched(&self, member: Member, content: ContentId) -> Result<bool> {
        let told = self.mine(member, |mine| mine.fetching.contains(&content));
        if told == Some(true) {
            let keys = [content_key(content, member.peer, None), part_key(member.peer, content)];
            self.client.del_all(keys)?;
            self.mine(member, |mine| mine.fetching.remove(&content));
        }
        Ok(told.is_some())
    }

    fn hear(&self, member: Member) -> Result<bool> {
        Ok(self.mine(member, |_| ()).is_some())
    }

    fn leave(&self, member: Member) -> Result<()> {
        if self.forget(member) {
            self.remove_peer(member.peer, member.session)?;
        }
        Ok(())
    }

    fn expire(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        {
            let mut state = self.state();
            let interval = self.silence_timeout / limits::STORE_LOOKS_PER_SILENCE;
            if state.looked.is_some_and(|at| at.elapsed() < interval) {
                return Ok(Vec::new());
            }
            state.looked = Some(Instant::now());
        }
        let looked = self.look();
        match (&looked, std::mem::replace(&mut self.state().is_cut_off, looked.is_err())) {
            (Err(error), false) => log::warn!("{error}; nothing is forgotten until it does"),
            (Ok(_), true) => log::info!("the store answers again"),
            _ => {}
        }
        looked
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
        Ok(most_offered_first(sources.collect()))
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
        let sources = whole.into_iter().chain(parts).filter_map(|(peer, (_, size))| {
            Some(Source { peer, address: offered.get(&peer)?.address, size, content })
        });
        Ok(sources.take(limits::SOURCES_PER_ANSWER_MAX).collect())
    }

    fn peers(&self, after: Option<PeerId>) -> Result<(Vec<PeerSummary>, bool)> {
        let from = after.map_or(PEERS.to_owned(), |peer| format!("{}\u{1}", peer_key(peer)));
        let mut rows = self.peer_rows(&from, NEWEST)?;
        rows.retain(|(_, row)| row.offered);
        let more = rows.len() > limits::LIST_ROWS_MAX;
        rows.truncate(limits::LIST_ROWS_MAX);
        let (state, now) = (self.state(), Instant::now());
        let page = rows.into_iter().map(|(peer, row)| {
            let mine = state.mine.get(&peer).filter(|mine| mine.session == row.session);
            // Of another registry's peer nothing is known but how its registry does.
            let silence = mine.map_or_else(
                || state.watch.silence(row.registry, now),
                |mine| now.saturating_duration_since(mine.heard),
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
        let mut holders: HashMap<(ContentId, u64), u32> = HashMap::new();
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
                    page.extend(summaries(&name, std::mem::take(&mut holders)));
                }
                if page.len() >= limits::LIST_ROWS_MAX || offers >= limits::PAGE_OFFERS_MAX {
                    return Ok((page, true));
                }
            }
            offers += 1;
            *holders.entry((content, size)).or_default() += 1;
        }
        page.extend(name.iter().flat_map(|name| summaries(name, std::mem::take(&mut holders))));
        Ok((page, false))
    }
}

/// Of two files of one name the last counts.
fn by_name(files: Vec<FileEntry>) -> Files {
    let row = |FileEntry { name, size, content }| (name, FileRow { size, content });
    files.into_iter().map(row).collect()
}
