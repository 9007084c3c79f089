//! The interface behind which a registry keeps its index, and the implementation in memory.
//!
//! Rule: workers call a [`PeerDirectory`] and may wait for it; the event loop never does.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;

use crate::client::ClientError;
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::net::RunClock;
use crate::share::index::{Index, IndexError, IndexLimits, Member, PeerEndpoint};
use crate::wire::share::{FileSummary, PeerSummary, Source};

/// The retry hint of a registry that has no room for another peer, or for its files.
const REGISTRY_FULL_RETRY_AFTER_MS: u32 = 1000;

/// Why a directory has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// There is no room.
    #[error(transparent)]
    Full(#[from] IndexError),
    /// Another live registry of the same store has the peer's connection.
    #[error(
        "this peer has joined at another registry, which is alive: that connection has to end first"
    )]
    JoinedElsewhere,
    /// The group has as many leases as it may have.
    #[error("the store behind this registry has no room for another lease: try again later")]
    TooManyLeases,
    /// The store has not answered in time.
    #[error("the store behind this registry does not answer: {0}")]
    Store(#[from] ClientError),
}

impl DirectoryError {
    /// How long to wait before trying again; `None` if waiting does not help, and for what has an
    /// answer of its own.
    pub fn retry_after_ms(&self) -> Option<u32> {
        match self {
            DirectoryError::Full(
                IndexError::Peers(_) | IndexError::Files | IndexError::PeersOfOrigin(_),
            )
            | DirectoryError::TooManyLeases => Some(REGISTRY_FULL_RETRY_AFTER_MS),
            DirectoryError::Full(
                IndexError::FilesOfPeer(_)
                | IndexError::FilesOfOrigin(_)
                | IndexError::BytesOfOrigin
                | IndexError::Fetching(_),
            )
            | DirectoryError::JoinedElsewhere
            | DirectoryError::Store(_) => None,
        }
    }
}

/// What a registry knows. The methods and their rules are those of [`Index`]; each implementation
/// knows the time by itself.
pub trait PeerDirectory: Send + Sync {
    /// Makes these the files of a peer. The caller has checked that no other connection of this
    /// registry has the peer's id.
    ///
    /// # Errors
    /// There is no room, or another registry has the peer's connection.
    fn join(
        &self,
        member: Member,
        place: PeerEndpoint,
        files: Vec<FileEntry>,
    ) -> Result<(), DirectoryError>;

    /// Whether there are more than `files` files of a peer, all of which a JOIN would replace.
    ///
    /// # Errors
    /// The directory does not answer.
    fn has_more_files(&self, peer: PeerId, files: usize) -> Result<bool, DirectoryError>;

    /// Adds and removes files of a peer. Returns false if it has not joined.
    ///
    /// # Errors
    /// There is no room.
    fn update(
        &self,
        member: Member,
        added: Vec<FileEntry>,
        removed: &[FileName],
    ) -> Result<bool, DirectoryError>;

    /// Records that a peer is downloading a content. Returns false if it has not joined.
    ///
    /// # Errors
    /// There is no room.
    fn fetching(
        &self,
        member: Member,
        content: ContentId,
        size: u64,
    ) -> Result<bool, DirectoryError>;

    /// Records that a peer has ended a download. Returns false if it has not joined.
    ///
    /// # Errors
    /// The directory does not answer.
    fn fetched(&self, member: Member, content: ContentId) -> Result<bool, DirectoryError>;

    /// Records that a peer is alive. Returns false if it has not joined.
    ///
    /// # Errors
    /// The directory does not answer.
    fn heartbeat(&self, member: Member) -> Result<bool, DirectoryError>;

    /// Removes a peer that says that it leaves, with all that it offers. For one that is not here,
    /// or has joined again elsewhere, nothing is done.
    ///
    /// # Errors
    /// The directory does not answer.
    fn leave(&self, member: Member) -> Result<(), DirectoryError>;

    /// Finds the peers that have been silent for too long. Returns those whose removal may take
    /// long, each of which is to be removed with [`PeerDirectory::remove_silent`]. The directory
    /// itself logs a failure that lasts.
    ///
    /// # Errors
    /// The directory does not answer.
    fn expire(&self) -> Result<Vec<(PeerId, SocketAddr)>, DirectoryError>;

    /// Removes a peer that the last [`PeerDirectory::expire`] has returned, unless it has joined
    /// again.
    ///
    /// # Errors
    /// The directory does not answer.
    fn remove_silent(&self, peer: PeerId) -> Result<(), DirectoryError>;

    /// The sources of files of this name.
    ///
    /// # Errors
    /// The directory does not answer.
    fn search(&self, name: &FileName) -> Result<Vec<Source>, DirectoryError>;

    /// The sources that have a content, as a whole or in part.
    ///
    /// # Errors
    /// The directory does not answer.
    fn sources_of(&self, content: ContentId) -> Result<Vec<Source>, DirectoryError>;

    /// A page of peers, and whether more follow.
    ///
    /// # Errors
    /// The directory does not answer.
    fn peers(&self, after: Option<PeerId>) -> Result<(Vec<PeerSummary>, bool), DirectoryError>;

    /// A page of files, and whether more follow.
    ///
    /// # Errors
    /// The directory does not answer.
    fn files(&self, after: Option<&FileName>) -> Result<(Vec<FileSummary>, bool), DirectoryError>;
}

/// An index in this process's memory, lost when the process ends.
#[derive(Debug)]
pub struct MemoryDirectory {
    index: Mutex<Index>,
    started: Instant,
    /// Measures the time in which this process has run; [`PeerDirectory::expire`] advances it.
    clock: Mutex<RunClock>,
    silence_timeout: Duration,
}

impl MemoryDirectory {
    /// An empty index that removes a peer after this time of silence.
    pub fn new(index: IndexLimits, silence_timeout: Duration) -> MemoryDirectory {
        let (index, started) = (Mutex::new(Index::new(index)), Instant::now());
        let clock = Mutex::new(RunClock::new(Some(limits::SHARE_TURN_MAX), started));
        MemoryDirectory { index, started, clock, silence_timeout }
    }

    fn now(&self) -> Duration {
        self.time_at(Instant::now())
    }

    /// How long this registry has run by `now`, without the times in which it was stopped.
    fn time_at(&self, now: Instant) -> Duration {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.at(now).saturating_duration_since(self.started)
    }

    fn expire_at(&self, now: Instant) -> Vec<(PeerId, SocketAddr)> {
        self.index().expire(self.time_at(now), self.silence_timeout)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A worker that panics ends the process; in tests it fails the test.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forgotten(peers: &[(PeerId, SocketAddr)]) {
    for (peer, address) in peers {
        log::info!("peer {peer} at {address} makes room: its IP address takes most of the index");
    }
}

impl PeerDirectory for MemoryDirectory {
    fn join(
        &self,
        member: Member,
        place: PeerEndpoint,
        files: Vec<FileEntry>,
    ) -> Result<(), DirectoryError> {
        let (mut index, now) = (self.index(), self.now());
        if !index.has_room(member.peer, &files) {
            forgotten(&index.make_room(member.peer, place.origin, &files));
        }
        Ok(index.join(member, place, files, now)?)
    }

    fn has_more_files(&self, peer: PeerId, files: usize) -> Result<bool, DirectoryError> {
        Ok(self.index().files_of(peer) > files)
    }

    fn update(
        &self,
        member: Member,
        added: Vec<FileEntry>,
        removed: &[FileName],
    ) -> Result<bool, DirectoryError> {
        let (mut index, now) = (self.index(), self.now());
        if !index.has_room(member.peer, &added)
            && let Some(origin) = index.origin(member)
        {
            forgotten(&index.make_room(member.peer, origin, &added));
        }
        Ok(index.update(member, added, removed, now)?)
    }

    fn fetching(
        &self,
        member: Member,
        content: ContentId,
        size: u64,
    ) -> Result<bool, DirectoryError> {
        Ok(self.index().fetching(member, content, size, self.now())?)
    }

    fn fetched(&self, member: Member, content: ContentId) -> Result<bool, DirectoryError> {
        Ok(self.index().fetched(member, content, self.now()))
    }

    fn heartbeat(&self, member: Member) -> Result<bool, DirectoryError> {
        Ok(self.index().heartbeat(member, self.now()))
    }

    fn leave(&self, member: Member) -> Result<(), DirectoryError> {
        self.index().leave(member);
        Ok(())
    }

    fn expire(&self) -> Result<Vec<(PeerId, SocketAddr)>, DirectoryError> {
        for (peer, address) in self.expire_at(Instant::now()) {
            log::info!("peer {peer} at {address} has fallen silent");
        }
        Ok(Vec::new())
    }

    fn remove_silent(&self, _: PeerId) -> Result<(), DirectoryError> {
        // It was removed when it was found.
        Ok(())
    }

    fn search(&self, name: &FileName) -> Result<Vec<Source>, DirectoryError> {
        Ok(self.index().search(name, rand::rng().next_u64()))
    }

    fn sources_of(&self, content: ContentId) -> Result<Vec<Source>, DirectoryError> {
        Ok(self.index().sources_of(content, rand::rng().next_u64()))
    }

    fn peers(&self, after: Option<PeerId>) -> Result<(Vec<PeerSummary>, bool), DirectoryError> {
        Ok(self.index().peers(after, self.now()))
    }

    fn files(&self, after: Option<&FileName>) -> Result<(Vec<FileSummary>, bool), DirectoryError> {
        Ok(self.index().files(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once a registry that was stopped for longer than its silence time-out forgot every peer.
    #[test]
    fn time_in_which_the_registry_was_stopped_counts_as_no_peers_silence() {
        let (second, silence) = (Duration::from_secs(1), Duration::from_secs(30));
        let directory = MemoryDirectory::new(IndexLimits::default(), silence);
        let address: SocketAddr = "127.0.0.1:5001".parse().unwrap();
        let member = |peer| Member { peer: PeerId(peer), session: peer };
        for peer in [1, 2] {
            let place = PeerEndpoint { address, origin: address.ip(), key: peer };
            directory.join(member(peer), place, Vec::new()).unwrap();
        }
        let start = Instant::now();
        let stopped = start + 3600 * second;
        for tick in 0..50 {
            assert_eq!(directory.expire_at(stopped + tick * second / 2), [], "tick {tick}");
        }
        // One peer sends a heartbeat, the other does not.
        let told = stopped + 25 * second;
        let now = directory.time_at(told);
        assert!(directory.index().heartbeat(member(1), now));
        let gone = (1..=20).flat_map(|tick| directory.expire_at(told + tick * second / 2));
        assert_eq!(gone.collect::<Vec<_>>(), [(PeerId(2), address)]);
    }
}
