//! The registry's index in memory: which peer offers which file, by name and by content.
//!
//! Each peer has its files by name. Beside them `names` has (name, peer) and `contents` has
//! (content, peer), so that every question is one range of one map. A name is stored once, however
//! many peers offer it.
//!
//! Invariants:
//!
//! 1. (name, peer) is in `names` exactly if the peer has a file of that name.
//! 2. `contents` has (content, peer) exactly if the peer has a file of that content or is
//!    downloading it; its count is the number of such files.
//! 3. Nothing exceeds [`IndexLimits`]. A change that would is refused before anything is changed.
//!
//! The module is pure: `now` is a duration since any fixed start, and `seed` draws the sample of
//! sources if there are more than an answer may name.

mod sample;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

pub use self::sample::{most_offered_first, summaries, whole_first};
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::text::counted;
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// The part of the index's memory that peers of one IP address may take: a quarter, so that no
/// address alone takes a registry from all others.
const REGISTRY_INDEX_BYTES_PER_ORIGIN_MAX: usize = limits::REGISTRY_INDEX_BYTES_MAX / 4;
/// Contents that a peer may announce as being fetched at once. A further one is refused.
pub const FETCHING_PER_PEER_MAX: usize = 64;

/// Upper bounds of an index. [`Default`] takes them from [`limits`].
#[derive(Clone, Copy, Debug)]
pub struct IndexLimits {
    pub peers_max: usize,
    /// Files that one peer offers.
    pub files_per_peer_max: usize,
    /// Files of all peers.
    pub files_max: usize,
    /// Peers of one origin, that is, of one IP address as the network layer counts it.
    pub peers_per_origin_max: usize,
    /// Files of all peers of one origin.
    pub files_per_origin_max: usize,
    /// Bytes of memory for all files and their names.
    pub bytes_max: usize,
    /// Bytes of memory for the files of one origin's peers.
    pub bytes_per_origin_max: usize,
    /// Contents that one peer downloads at once.
    pub fetching_per_peer_max: usize,
}

impl Default for IndexLimits {
    fn default() -> IndexLimits {
        IndexLimits {
            peers_max: limits::REGISTRY_PEERS_MAX,
            files_per_peer_max: limits::FILES_PER_PEER_MAX,
            files_max: limits::REGISTRY_FILES_MAX,
            peers_per_origin_max: limits::REGISTRY_PEERS_PER_ORIGIN_MAX,
            files_per_origin_max: limits::REGISTRY_FILES_PER_ORIGIN_MAX,
            bytes_max: limits::REGISTRY_INDEX_BYTES_MAX,
            bytes_per_origin_max: REGISTRY_INDEX_BYTES_PER_ORIGIN_MAX,
            fetching_per_peer_max: FETCHING_PER_PEER_MAX,
        }
    }
}

/// Why a change was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// There are too many peers.
    #[error(
        "the registry knows {} and has no room for another: try again later",
        counted(*.0 as u64, "peer", "peers")
    )]
    Peers(usize),
    /// One peer has too many files.
    #[error("a peer offers at most {0} files: share fewer")]
    FilesOfPeer(usize),
    /// All peers together have too many files, or names that are too long.
    #[error("the registry has no room for so many files: try again later, or share fewer")]
    Files,
    /// There are too many peers of one IP address.
    #[error(
        "{} joined from this IP address, and no more may: stop some of them first",
        counted(*.0 as u64, "peer has", "peers have")
    )]
    PeersOfOrigin(usize),
    /// The peers of one IP address have too many files.
    #[error("the peers of one IP address offer at most {0} files together: share fewer")]
    FilesOfOrigin(usize),
    /// The peers of one IP address have files with names that are too long.
    #[error(
        "the peers of one IP address offer files with names too long for a registry: share fewer"
    )]
    BytesOfOrigin,
    /// One peer downloads too many contents at once.
    #[error("a peer fetches at most {0} contents at once")]
    Fetching(usize),
}

/// A peer as joined over one connection. When it joins again over another connection, late messages
/// of the first one are not about it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub peer: PeerId,
    /// A number that no other connection has.
    pub session: u64,
}

/// The addresses and the key with which a peer joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEndpoint {
    /// The address at which other peers reach it.
    pub address: SocketAddr,
    /// The IP address its connection comes from, as quotas count it. Its `address` may be another.
    pub origin: IpAddr,
    /// A hash of the peer's secret, by which the registry recognizes it on another connection.
    pub key: u64,
}

type Name = Arc<FileName>;

#[derive(Clone, Debug)]
struct PeerRecord {
    session: u64,
    address: SocketAddr,
    /// The IP address its connection comes from, as quotas count it.
    origin: IpAddr,
    last_seen: Duration,
    files: BTreeMap<Name, IndexedFile>,
    bytes: u64,
    /// Memory that its files take.
    memory_bytes: usize,
    /// Contents it is downloading, with their sizes: a handful, so that a list is searched faster
    /// than a map.
    fetching: Vec<(ContentId, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct IndexedFile {
    content: ContentId,
    size: u64,
}

/// A content that a peer has or is downloading.
#[derive(Clone, Copy, Debug)]
struct Holding {
    /// The number of its files with this content; 0 if it is only downloading it.
    files: u32,
    size: u64,
}

/// The index. See the module for its invariants.
#[derive(Debug, Default)]
pub struct Index {
    limits: IndexLimits,
    peers: BTreeMap<PeerId, PeerRecord>,
    names: BTreeSet<(Name, PeerId)>,
    contents: BTreeMap<(ContentId, PeerId), Holding>,
    /// Memory that all files take.
    memory_bytes: usize,
}

const PEER_MIN: PeerId = PeerId(0);
const PEER_MAX: PeerId = PeerId(u64::MAX);

impl Index {
    pub fn new(limits: IndexLimits) -> Index {
        Index { limits, ..Index::default() }
    }

    #[cfg(any(test, feature = "internals"))]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The number of files, each counted once for every peer that offers it.
    #[cfg(any(test, feature = "internals"))]
    pub fn file_count(&self) -> usize {
        self.names.len()
    }

    /// Makes these the files of a peer, in place of any earlier ones. Of two of the same name the
    /// last counts.
    ///
    /// # Errors
    /// There is no room. The peer's earlier files stay.
    pub fn join(
        &mut self,
        Member { peer, session }: Member,
        PeerEndpoint { address, origin, .. }: PeerEndpoint,
        files: Vec<FileEntry>,
        now: Duration,
    ) -> Result<(), IndexError> {
        let others = self.peers.iter().filter(|(id, other)| **id != peer && other.origin == origin);
        let (others, others_files, others_bytes) =
            others.fold((0, 0, 0), |(peers, files, bytes), (_, other)| {
                (peers + 1, files + other.files.len(), bytes + other.memory_bytes)
            });
        if others >= self.limits.peers_per_origin_max {
            return Err(IndexError::PeersOfOrigin(others));
        }
        self.check_origin(others_files + files.len(), others_bytes + memory_of(&files))?;
        let known = self.peers.get(&peer);
        if known.is_none() && self.peers.len() >= self.limits.peers_max {
            return Err(IndexError::Peers(self.peers.len()));
        }
        let gone = known.map_or(0, |peer| peer.files.len());
        let gone_bytes = known.map_or(0, |peer| peer.memory_bytes);
        self.check_room(gone, gone, gone_bytes, &files)?;

        let fetching = self.remove(peer).map(|peer| peer.fetching).unwrap_or_default();
        let record = PeerRecord {
            session,
            address,
            origin,
            last_seen: now,
            files: BTreeMap::new(),
            bytes: 0,
            memory_bytes: 0,
            fetching: Vec::new(),
        };
        self.peers.insert(peer, record);
        for (content, size) in fetching {
            self.insert_fetching(peer, content, size);
        }
        files.into_iter().for_each(|file| self.insert_file(peer, file));
        Ok(())
    }

    /// Adds and removes files of a peer. `Ok(false)` if it has not joined.
    ///
    /// # Errors
    /// There is no room. Nothing is changed.
    pub fn update(
        &mut self,
        member: Member,
        added: Vec<FileEntry>,
        removed: &[FileName],
        now: Duration,
    ) -> Result<bool, IndexError> {
        let Some(known) = self.member(member) else { return Ok(false) };
        let peer = member.peer;
        // The names that go, because they are removed or replaced, each once.
        let gone: BTreeSet<&FileName> =
            removed.iter().chain(added.iter().map(|file| &file.name)).collect();
        let gone: Vec<Name> = gone
            .into_iter()
            .map(|name| Arc::new(name.clone()))
            .filter(|name| known.files.contains_key(name))
            .collect();
        let gone_bytes: usize = gone.iter().map(|name| memory_bytes(name)).sum();
        let alike = self.peers.values().filter(|other| other.origin == known.origin);
        let (alike_files, alike_bytes) = alike.fold((0, 0), |(files, bytes), other| {
            (files + other.files.len(), bytes + other.memory_bytes)
        });
        self.check_origin(
            alike_files - gone.len() + added.len(),
            alike_bytes - gone_bytes + memory_of(&added),
        )?;
        self.check_room(known.files.len(), gone.len(), gone_bytes, &added)?;

        gone.into_iter().for_each(|name| self.remove_file(peer, name));
        added.into_iter().for_each(|file| self.insert_file(peer, file));
        self.heartbeat(member, now);
        Ok(true)
    }

    /// The number of files of a peer; 0 if it has not joined.
    pub fn files_of(&self, peer: PeerId) -> usize {
        self.peers.get(&peer).map_or(0, |peer| peer.files.len())
    }

    /// Records that a peer is downloading a content and serves what it has of it. `Ok(false)` if
    /// the peer has not joined.
    ///
    /// # Errors
    /// It is downloading too many contents at once.
    pub fn fetching(
        &mut self,
        member: Member,
        content: ContentId,
        size: u64,
        now: Duration,
    ) -> Result<bool, IndexError> {
        let max = self.limits.fetching_per_peer_max;
        let Some(known) = self.member(member) else { return Ok(false) };
        let new = !known.fetching.iter().any(|(fetching, _)| *fetching == content);
        if new && known.fetching.len() >= max {
            return Err(IndexError::Fetching(max));
        }
        if new {
            self.insert_fetching(member.peer, content, size);
        }
        self.heartbeat(member, now);
        Ok(true)
    }

    /// Records that a peer has ended a download. Returns false if it has not joined.
    pub fn fetched(&mut self, member: Member, content: ContentId, now: Duration) -> bool {
        let Some(known) = self.member_mut(member) else { return false };
        known.fetching.retain(|(fetching, _)| *fetching != content);
        let peer = member.peer;
        if self.contents.get(&(content, peer)).is_some_and(|holding| holding.files == 0) {
            self.contents.remove(&(content, peer));
        }
        self.heartbeat(member, now)
    }

    /// Records that a peer is alive. Returns false if it has not joined.
    pub fn heartbeat(&mut self, member: Member, now: Duration) -> bool {
        let known = self.member_mut(member);
        known.map(|peer| peer.last_seen = peer.last_seen.max(now)).is_some()
    }

    /// Removes a peer. Returns false if it has not joined.
    pub fn leave(&mut self, member: Member) -> bool {
        self.member(member).is_some() && self.remove(member.peer).is_some()
    }

    /// Removes the peers that have been silent for longer than `timeout`, and returns them.
    pub fn expire(&mut self, now: Duration, timeout: Duration) -> Vec<(PeerId, SocketAddr)> {
        let silent = |peer: &PeerRecord| now.saturating_sub(peer.last_seen) > timeout;
        let expired: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| silent(peer))
            .map(|(id, peer)| (*id, peer.address))
            .collect();
        expired.iter().for_each(|(peer, _)| drop(self.remove(*peer)));
        expired
    }

    /// The sources of files with exactly this name, those of the most offered content first, then
    /// by peer id. At most [`SOURCES_PER_ANSWER_MAX`](limits::SOURCES_PER_ANSWER_MAX), a sample
    /// that `seed` draws.
    pub fn search(&self, name: &FileName, seed: u64) -> Vec<Source> {
        let name = Arc::new(name.clone());
        let range = (Arc::clone(&name), PEER_MIN)..=(Arc::clone(&name), PEER_MAX);
        let sources: Vec<Source> = self
            .names
            .range(range)
            .filter_map(|(name, peer)| {
                let known = self.peers.get(peer)?;
                let IndexedFile { content, size } = *known.files.get(name)?;
                Some(Source { peer: *peer, address: known.address, size, content })
            })
            .collect();
        most_offered_first(sources, seed)
    }

    /// The sources of a content in order of peer ids, those that have the whole content first. At
    /// most [`SOURCES_PER_ANSWER_MAX`](limits::SOURCES_PER_ANSWER_MAX), a sample that `seed` draws.
    pub fn sources_of(&self, content: ContentId, seed: u64) -> Vec<Source> {
        let holders = self.contents.range((content, PEER_MIN)..=(content, PEER_MAX));
        let (whole, parts): (Vec<_>, Vec<_>) = holders.partition(|(_, holding)| holding.files > 0);
        let source = |((content, peer), holding): &(&(ContentId, PeerId), &Holding)| {
            let address = self.peers.get(peer)?.address;
            Some(Source { peer: *peer, address, size: holding.size, content: *content })
        };
        let [whole, parts] = [whole, parts].map(|of| of.iter().filter_map(source).collect());
        whole_first(whole, parts, seed)
    }

    /// A page of peers in order of their ids, and whether more follow.
    pub fn peers(&self, after: Option<PeerId>, now: Duration) -> (Vec<PeerSummary>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = self.peers.range((from, Bound::Unbounded));
        let page = rows.by_ref().take(limits::LIST_ROWS_MAX).map(|(id, peer)| PeerSummary {
            peer: *id,
            address: peer.address,
            files: peer.files.len() as u64,
            bytes: peer.bytes,
            silent_ms: now.saturating_sub(peer.last_seen).as_millis() as u64,
        });
        let page = page.collect();
        (page, rows.next().is_some())
    }

    /// A page of files in order of their names, and whether more follow. Of one name the most
    /// offered contents come first, at most
    /// [`CONTENTS_PER_NAME_LISTED_MAX`](limits::CONTENTS_PER_NAME_LISTED_MAX) of them.
    pub fn files(&self, after: Option<&FileName>) -> (Vec<FileSummary>, bool) {
        let from = after.map(|name| (Arc::new(name.clone()), PEER_MAX));
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let mut offers = self.names.range((from, Bound::Unbounded)).peekable();
        let (mut page, mut seen) = (Vec::new(), 0);
        while let Some((name, _)) = offers.peek() {
            if page.len() >= limits::LIST_ROWS_MAX || seen >= limits::PAGE_OFFERS_MAX {
                return (page, true);
            }
            let mut holders: HashMap<(ContentId, u64), u32> = HashMap::new();
            while let Some((name, peer)) = offers.next_if(|(next, _)| next == name) {
                seen += 1;
                let file = self.peers.get(peer).and_then(|peer| peer.files.get(name));
                if let Some(file) = file {
                    *holders.entry((file.content, file.size)).or_default() += 1;
                }
            }
            page.extend(summaries(name, holders));
        }
        (page, false)
    }

    fn member(&self, member: Member) -> Option<&PeerRecord> {
        self.peers.get(&member.peer).filter(|peer| peer.session == member.session)
    }

    fn member_mut(&mut self, member: Member) -> Option<&mut PeerRecord> {
        self.peers.get_mut(&member.peer).filter(|peer| peer.session == member.session)
    }

    // ---- changing the three maps together ----------------------------------------------------

    /// Checks that `added` fits if `gone` of all files are removed and the peer has `has` files
    /// before that.
    fn check_room(
        &self,
        has: usize,
        gone: usize,
        gone_bytes: usize,
        added: &[FileEntry],
    ) -> Result<(), IndexError> {
        let max = self.limits.files_per_peer_max;
        if has.saturating_sub(gone) + added.len() > max {
            return Err(IndexError::FilesOfPeer(max));
        }
        let bytes = memory_of(added);
        let files = self.names.len().saturating_sub(gone) + added.len();
        let memory_bytes = self.memory_bytes.saturating_sub(gone_bytes) + bytes;
        if files > self.limits.files_max || memory_bytes > self.limits.bytes_max {
            return Err(IndexError::Files);
        }
        Ok(())
    }

    /// Checks that the peers of one IP address may have so many files and take so much memory.
    fn check_origin(&self, files: usize, bytes: usize) -> Result<(), IndexError> {
        let max = self.limits.files_per_origin_max;
        if files > max {
            return Err(IndexError::FilesOfOrigin(max));
        }
        if bytes > self.limits.bytes_per_origin_max {
            return Err(IndexError::BytesOfOrigin);
        }
        Ok(())
    }

    /// Whether there is room for these files of a peer without removing anything.
    pub fn has_room(&self, peer: PeerId, added: &[FileEntry]) -> bool {
        let peers = self.peers.len() + usize::from(!self.peers.contains_key(&peer));
        peers <= self.limits.peers_max
            && self.names.len() + added.len() <= self.limits.files_max
            && self.memory_bytes + memory_of(added) <= self.limits.bytes_max
    }

    /// The IP address a member's connection comes from.
    pub fn origin(&self, member: Member) -> Option<IpAddr> {
        self.member(member).map(|peer| peer.origin)
    }

    /// Removes peers until a JOIN or UPDATE of `peer` with these files has room, or none is left to
    /// remove; returns them. They come from the IP address that takes most memory, as long as that
    /// takes more than the requesting one would. So a few that fill the index keep no one out, and
    /// none is removed for the sake of one that takes more. To be called if there is no room.
    pub fn make_room(
        &mut self,
        peer: PeerId,
        origin: IpAddr,
        added: &[FileEntry],
    ) -> Vec<(PeerId, SocketAddr)> {
        let mut forgotten = Vec::new();
        // A peer counts like a file, so that peers without files cannot fill the index for free.
        let weight = |peer: &PeerRecord| peer.memory_bytes + limits::INDEX_FILE_BYTES;
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        for known in self.peers.values() {
            *origins.entry(known.origin).or_default() += weight(known);
        }
        let come = match self.peers.contains_key(&peer) {
            true => 0,
            false => limits::INDEX_FILE_BYTES,
        };
        let own = origins.remove(&origin).unwrap_or_default() + memory_of(added) + come;
        loop {
            let heaviest = origins.iter().max_by_key(|(_, weight)| **weight);
            let Some((heaviest, taken)) = heaviest.map(|(origin, taken)| (*origin, *taken)) else {
                return forgotten;
            };
            if self.has_room(peer, added) || taken <= own {
                return forgotten;
            }
            let alike = self.peers.iter().filter(|(_, known)| known.origin == heaviest);
            let Some((victim, address)) = alike
                .max_by_key(|(_, known)| known.memory_bytes)
                .map(|(id, known)| (*id, known.address))
            else {
                return forgotten;
            };
            if let Some(gone) = self.remove(victim) {
                let freed: usize = gone.memory_bytes;
                *origins.entry(heaviest).or_default() -= freed + limits::INDEX_FILE_BYTES;
                forgotten.push((victim, address));
            }
        }
    }

    /// The stored copy of a name, or the name itself if it is new.
    fn intern(&self, name: FileName) -> Name {
        let name = Arc::new(name);
        let next = self.names.range((Arc::clone(&name), PEER_MIN)..).next();
        next.map_or(
            Arc::clone(&name),
            |(found, _)| {
                if *found == name { Arc::clone(found) } else { name }
            },
        )
    }

    /// The record of a peer that has joined, which the callers have made sure of.
    fn record_mut(&mut self, peer: PeerId) -> &mut PeerRecord {
        self.peers.get_mut(&peer).unwrap_or_else(|| panic!("peer {peer} has joined"))
    }

    fn insert_file(&mut self, peer: PeerId, file: FileEntry) {
        let name = self.intern(file.name);
        self.remove_file(peer, Arc::clone(&name));
        let record = self.record_mut(peer);
        record
            .files
            .insert(Arc::clone(&name), IndexedFile { content: file.content, size: file.size });
        record.bytes = record.bytes.saturating_add(file.size);
        record.memory_bytes += memory_bytes(&name);
        self.memory_bytes += memory_bytes(&name);
        let holding = Holding { files: 0, size: file.size };
        let holding = self.contents.entry((file.content, peer)).or_insert(holding);
        holding.files += 1;
        holding.size = file.size;
        let is_new = self.names.insert((name, peer));
        assert!(is_new, "a name of peer {peer} is listed without its file");
    }

    /// Removes a file of a peer, if it has one of that name.
    fn remove_file(&mut self, peer: PeerId, name: Name) {
        let record = self.record_mut(peer);
        let Some(file) = record.files.remove(&name) else { return };
        record.memory_bytes -= memory_bytes(&name);
        record.bytes = record.bytes.saturating_sub(file.size);
        let is_fetching = record.fetching.iter().any(|(content, _)| *content == file.content);
        self.memory_bytes -= memory_bytes(&name);
        let was_listed = self.names.remove(&(Arc::clone(&name), peer));
        assert!(was_listed, "{name} of peer {peer} is not listed by name");
        let holding = self.contents.get_mut(&(file.content, peer));
        let holding = holding.unwrap_or_else(|| panic!("{name} of peer {peer} has no content"));
        assert!(holding.files > 0, "{name} of peer {peer} is not counted");
        holding.files -= 1;
        if holding.files == 0 && !is_fetching {
            self.contents.remove(&(file.content, peer));
        }
    }

    fn insert_fetching(&mut self, peer: PeerId, content: ContentId, size: u64) {
        self.record_mut(peer).fetching.push((content, size));
        self.contents.entry((content, peer)).or_insert(Holding { files: 0, size });
    }

    /// Removes a peer and its files. The result's `memory_bytes` is what the files took.
    fn remove(&mut self, peer: PeerId) -> Option<PeerRecord> {
        let known = self.peers.get(&peer)?;
        let taken = known.memory_bytes;
        let names: Vec<Name> = known.files.keys().map(Arc::clone).collect();
        names.into_iter().for_each(|name| self.remove_file(peer, name));
        let mut record = self.peers.remove(&peer)?;
        assert_eq!(record.memory_bytes, 0, "peer {peer} has no file any more");
        record.memory_bytes = taken;
        for (content, _) in &record.fetching {
            let holding = self.contents.remove(&(*content, peer));
            let files = holding.map(|holding| holding.files);
            assert_eq!(files, Some(0), "peer {peer} is downloading {content} and has no file");
        }
        Some(record)
    }
}

fn memory_of(files: &[FileEntry]) -> usize {
    files.iter().map(|file| memory_bytes(&file.name)).sum()
}

/// The memory that a file takes in the three maps, approximately.
fn memory_bytes(name: &FileName) -> usize {
    limits::INDEX_FILE_BYTES + name.as_str().len()
}

#[cfg(test)]
mod tests;
