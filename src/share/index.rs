//! What a registry knows: which peer offers which file, by name and by content.
//!
//! Each peer has its own files by name; beside them, `names` has (name, peer) and `contents` has
//! (content, peer), so that every question is a range of one map. Names are stored once, however many
//! peers offer them.
//!
//! Invariants:
//!
//! 1. (name, peer) is in `names` exactly when the peer has a file of that name.
//! 2. `contents` has (content, peer) exactly when the peer has a file of that content or is fetching
//!    it; its count is how many such files the peer has.
//! 3. Nothing exceeds [`IndexLimits`]; whatever would is refused before anything is changed.
//!
//! There is no clock, no chance and no IO here: `now` is a time since any one beginning that the caller chooses, and
//! `seed` draws the sample of sources where there are more than an answer may name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::net::origin_of;
use crate::text::counted;
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// How much an index may hold; [`Default`] takes it from [`limits`].
#[derive(Clone, Copy, Debug)]
pub struct IndexLimits {
    /// Peers.
    pub peers_max: usize,
    /// Files one peer offers.
    pub files_per_peer_max: usize,
    /// Files of all peers.
    pub files_max: usize,
    /// Peers of one origin: what the network layer counts as one IP.
    pub peers_per_origin_max: usize,
    /// Files of all of them.
    pub files_per_origin_max: usize,
    /// Bytes of memory that all files take, their names included.
    pub bytes_max: usize,
    /// Bytes of memory that the files of one origin's peers take.
    pub bytes_per_origin_max: usize,
    /// Contents one peer is fetching.
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
            bytes_per_origin_max: limits::REGISTRY_INDEX_BYTES_PER_ORIGIN_MAX,
            fetching_per_peer_max: limits::FETCHING_PER_PEER_MAX,
        }
    }
}

/// Why something was not taken; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Too many peers.
    #[error("the registry knows {} and has no room for another: try again later", counted(*.0 as u64, "peer", "peers"))]
    Peers(usize),
    /// Too many files of one peer.
    #[error("a peer offers at most {0} files: share fewer")]
    FilesOfPeer(usize),
    /// Too many files, or names too long, of all peers together.
    #[error("the registry has no room for so many files: try again later, or share fewer")]
    Files,
    /// Too many peers of one IP.
    #[error(
        "{} joined from this IP address, and no more may: stop some of them first",
        counted(*.0 as u64, "peer has", "peers have")
    )]
    PeersOfOrigin(usize),
    /// Too many files of all peers of one IP.
    #[error("the peers of one IP address offer at most {0} files together: share fewer")]
    FilesOfOrigin(usize),
    /// Too many files, or names too long, of all peers of one IP.
    #[error(
        "the peers of one IP address offer files with names too long for a registry: share fewer"
    )]
    BytesOfOrigin,
    /// A peer fetches too much at once.
    #[error("a peer fetches at most {0} contents at once")]
    Fetching(usize),
}

/// A peer as one connection joined it: when a peer joins anew, over another connection, what still
/// comes of the old one is not about it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub peer: PeerId,
    /// Unique to the connection.
    pub session: u64,
}

/// Where a peer serves, and where it was when it said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEndpoint {
    /// Where others reach it.
    pub address: SocketAddr,
    /// The IP that its connection comes from, as quotas count it.
    pub origin: IpAddr,
    /// A hash of the peer's secret: over another connection with the same it is the same peer.
    pub key: u64,
}

type Name = Arc<FileName>;

#[derive(Clone, Debug)]
struct PeerRecord {
    session: u64,
    address: SocketAddr,
    /// The IP that its connection comes from, as quotas count it; its address may be another.
    origin: IpAddr,
    last_seen: Duration,
    files: BTreeMap<Name, IndexedFile>,
    bytes: u64,
    /// What the files take.
    memory_bytes: usize,
    /// Contents it serves parts of, with their sizes. A handful.
    fetching: Vec<(ContentId, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct IndexedFile {
    content: ContentId,
    size: u64,
}

/// A content at a peer.
#[derive(Clone, Copy, Debug)]
struct Holding {
    /// Under how many names; 0 when it is only fetching it.
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
    /// What all files take.
    memory_bytes: usize,
}

const PEER_MIN: PeerId = PeerId(0);
const PEER_MAX: PeerId = PeerId(u64::MAX);

impl Index {
    /// An empty index.
    pub fn new(limits: IndexLimits) -> Index {
        Index { limits, ..Index::default() }
    }

    /// How many peers there are.
    #[cfg(any(test, feature = "internals"))]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// How many files they offer, each counted as often as it is offered.
    #[cfg(any(test, feature = "internals"))]
    pub fn file_count(&self) -> usize {
        self.names.len()
    }

    /// A peer offers exactly these files from now on. Of two of one name the last counts.
    ///
    /// # Errors
    /// There is no room for them; what the peer offered before still stands.
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

    /// A peer has new or changed files, and others no more. `Ok(false)`: it is not known.
    ///
    /// # Errors
    /// There is no room for the new ones; nothing was changed.
    pub fn update(
        &mut self,
        member: Member,
        added: Vec<FileEntry>,
        removed: &[FileName],
        now: Duration,
    ) -> Result<bool, IndexError> {
        let Some(known) = self.member(member) else { return Ok(false) };
        let peer = member.peer;
        // What goes, by being taken away or replaced, each name once.
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

    /// A peer serves what it has of a content that it is fetching. `Ok(false)`: it is not known.
    ///
    /// # Errors
    /// It fetches too much at once.
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

    /// A peer fetches a content no more. `false`: the peer is not known.
    pub fn fetched(&mut self, member: Member, content: ContentId, now: Duration) -> bool {
        let Some(known) = self.member_mut(member) else { return false };
        known.fetching.retain(|(fetching, _)| *fetching != content);
        let peer = member.peer;
        if self.contents.get(&(content, peer)).is_some_and(|holding| holding.files == 0) {
            self.contents.remove(&(content, peer));
        }
        self.heartbeat(member, now)
    }

    /// A peer is alive. `false`: it is not known.
    pub fn heartbeat(&mut self, member: Member, now: Duration) -> bool {
        let known = self.member_mut(member);
        known.map(|peer| peer.last_seen = peer.last_seen.max(now)).is_some()
    }

    /// A peer goes. `false`: it was not known.
    pub fn leave(&mut self, member: Member) -> bool {
        self.member(member).is_some() && self.remove(member.peer).is_some()
    }

    /// Forgets the peers that have been silent for longer than `timeout`, and says which.
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

    /// Who has a file of exactly this name: by how many offer its content, then by peer. At most
    /// [`SOURCES_PER_ANSWER_MAX`](limits::SOURCES_PER_ANSWER_MAX), a sample that `seed` draws.
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

    /// Who has this content, whole or in part, in order of the peers' ids. At most
    /// [`SOURCES_PER_ANSWER_MAX`](limits::SOURCES_PER_ANSWER_MAX), a sample that `seed` draws, those who have it
    /// whole first.
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

    /// A page of peers, in order of id, and whether more follow.
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

    /// A page of files, in order of name, and whether more follow. Of one name the most offered
    /// contents come first, and only
    /// [`CONTENTS_PER_NAME_LISTED_MAX`](limits::CONTENTS_PER_NAME_LISTED_MAX) of them at all.
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

    /// Whether `added` fits when `gone` of all files go, and the peer has `has` (before that).
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

    /// Whether peers of one origin may offer so many files together, which take so much.
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

    /// Whether everybody together leaves room for these files of a peer, whatever they take the place of.
    pub fn has_room(&self, peer: PeerId, added: &[FileEntry]) -> bool {
        let peers = self.peers.len() + usize::from(!self.peers.contains_key(&peer));
        peers <= self.limits.peers_max
            && self.names.len() + added.len() <= self.limits.files_max
            && self.memory_bytes + memory_of(added) <= self.limits.bytes_max
    }

    /// Where a member's connection comes from.
    pub fn origin(&self, member: Member) -> Option<IpAddr> {
        self.member(member).map(|peer| peer.origin)
    }

    /// Forgets peers until a JOIN or an UPDATE of `peer`, from `origin`, that brings these files has room, or until
    /// nobody is left to forget; says whom. Who is forgotten comes from the origin that takes most, while that takes
    /// more than the one which asks would: so a few that fill an index keep nobody out, and none takes from one that
    /// has less. Call it when there was no room.
    pub fn make_room(
        &mut self,
        peer: PeerId,
        origin: IpAddr,
        added: &[FileEntry],
    ) -> Vec<(PeerId, SocketAddr)> {
        let mut forgotten = Vec::new();
        // A peer counts as a file, too, so that those without files cannot fill an index for nothing.
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

    /// The name as it is stored already, or new.
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

    fn insert_file(&mut self, peer: PeerId, file: FileEntry) {
        let name = self.intern(file.name);
        self.remove_file(peer, Arc::clone(&name));
        let Some(record) = self.peers.get_mut(&peer) else { return };
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
        self.names.insert((name, peer));
    }

    /// Nothing when the peer has no file of that name.
    fn remove_file(&mut self, peer: PeerId, name: Name) {
        let Some(record) = self.peers.get_mut(&peer) else { return };
        let Some(file) = record.files.remove(&name) else { return };
        record.memory_bytes -= memory_bytes(&name);
        self.memory_bytes -= memory_bytes(&name);
        self.names.remove(&(name, peer));
        record.bytes = record.bytes.saturating_sub(file.size);
        let is_fetching = record.fetching.iter().any(|(content, _)| *content == file.content);
        if let Some(holding) = self.contents.get_mut(&(file.content, peer)) {
            holding.files -= 1;
            if holding.files == 0 && !is_fetching {
                self.contents.remove(&(file.content, peer));
            }
        }
    }

    fn insert_fetching(&mut self, peer: PeerId, content: ContentId, size: u64) {
        let Some(record) = self.peers.get_mut(&peer) else { return };
        record.fetching.push((content, size));
        self.contents.entry((content, peer)).or_insert(Holding { files: 0, size });
    }

    /// What is returned has the files no more, and says what they took.
    fn remove(&mut self, peer: PeerId) -> Option<PeerRecord> {
        let known = self.peers.get(&peer)?;
        let taken = known.memory_bytes;
        let names: Vec<Name> = known.files.keys().map(Arc::clone).collect();
        names.into_iter().for_each(|name| self.remove_file(peer, name));
        let mut record = self.peers.remove(&peer)?;
        record.memory_bytes = taken;
        for (content, _) in &record.fetching {
            self.contents.remove(&(*content, peer));
        }
        Some(record)
    }
}

fn memory_of(files: &[FileEntry]) -> usize {
    files.iter().map(|file| memory_bytes(&file.name)).sum()
}

/// What a file takes in the three maps, about.
fn memory_bytes(name: &FileName) -> usize {
    limits::INDEX_FILE_BYTES + name.as_str().len()
}

/// What is listed of one name: the most offered contents first, and no more than are listed at all.
pub fn summaries(
    name: &FileName,
    holders: HashMap<(ContentId, u64), u32>,
) -> impl Iterator<Item = FileSummary> {
    let mut rows: Vec<_> = holders.into_iter().collect();
    rows.sort_unstable_by_key(|((content, size), peers)| {
        (std::cmp::Reverse(*peers), *content, *size)
    });
    rows.truncate(limits::CONTENTS_PER_NAME_LISTED_MAX);
    rows.into_iter().map(move |((content, size), peers)| {
        let name = name.clone();
        FileSummary { file: FileEntry { name, size, content }, peers }
    })
}

/// Sorts sources so that those of the most offered content come first, then by peer, and keeps no
/// more than an answer may have: of one content a sample, since peers choose their ids. The most offered one is that
/// which is at most origins, since who has one may call itself many; of equals the one that most peers have.
pub fn most_offered_first(sources: Vec<Source>, seed: u64) -> Vec<Source> {
    let mut sources = few_of_each_origin(sources, &mut SmallRng::seed_from_u64(seed));
    let mut offers: HashMap<ContentId, (HashSet<IpAddr>, usize)> = HashMap::new();
    for source in &sources {
        let (origins, peers) = offers.entry(source.content).or_default();
        origins.insert(origin_of(source.address.ip()));
        *peers += 1;
    }
    let by_content = |source: &Source| {
        let offers = offers.get(&source.content);
        let count = offers.map(|(origins, peers)| (origins.len(), *peers));
        (std::cmp::Reverse(count), source.content)
    };
    if sources.len() > limits::SOURCES_PER_ANSWER_MAX {
        // Of one content they stay shuffled.
        sources.sort_by_key(by_content);
        sources.truncate(limits::SOURCES_PER_ANSWER_MAX);
    }
    sources.sort_by_key(|source| (by_content(source), source.peer));
    sources
}

/// Those who have a content whole and then those who have parts of it, by peer, no more than an answer may have: a
/// sample, since peers choose their ids.
pub fn whole_first(whole: Vec<Source>, parts: Vec<Source>, seed: u64) -> Vec<Source> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut sample = |sources: Vec<Source>, room: usize| {
        let mut sources = few_of_each_origin(sources, &mut random);
        sources.truncate(room);
        sources.sort_by_key(|source| source.peer);
        sources
    };
    let mut sources = sample(whole, limits::SOURCES_PER_ANSWER_MAX);
    let room = limits::SOURCES_PER_ANSWER_MAX - sources.len();
    sources.extend(sample(parts, room));
    sources
}

/// The same in random order; of one content one at each address and a few at each IP, so that whoever calls itself many
/// does not hide the others.
fn few_of_each_origin(mut sources: Vec<Source>, random: &mut SmallRng) -> Vec<Source> {
    sources.shuffle(random);
    let mut addresses = HashSet::new();
    let mut origins: HashMap<(ContentId, IpAddr), usize> = HashMap::new();
    sources.retain(|source| {
        let origin = (source.content, origin_of(source.address.ip()));
        let of_origin = origins.entry(origin).or_default();
        let is_kept = *of_origin < limits::SOURCES_PER_ORIGIN_MAX
            && addresses.insert((source.content, source.address));
        *of_origin += usize::from(is_kept);
        is_kept
    });
    sources
}

#[cfg(test)]
mod tests;
