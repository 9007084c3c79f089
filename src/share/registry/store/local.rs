//! What one registry alone knows: its connected peers with their leases, what its last scan has
//! found, and the totals. It decides what follows from the rows that a scan has read.
//!
//! Rule: only rows are durable. This state is lost when the registry ends, and then the leases of
//! its peers end, too, unless another registry takes the peers over.
//!
//! The module is pure: the caller passes the time and the rows.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::peer_leases::PeerLeases;
use super::rows::{PeerRow, RegistryId, StoredPeer};
use crate::limits;
use crate::model::{ContentId, LeaseId, PeerId, Timestamp};
use crate::share::index::{IndexError, IndexLimits, Member};

/// A peer that is connected to this registry.
#[derive(Debug)]
pub(super) struct LocalPeer {
    session: u64,
    last_seen: Instant,
    /// Since when it has joined; `None` while it is joining.
    joined: Option<Instant>,
    pub origin: IpAddr,
    /// Its row as this registry has written it last; `None` while it is joining.
    pub stored: Option<StoredPeer>,
    /// The leases of its rows, which are kept alive from their grant on.
    pub leases: PeerLeases,
    pub fetching: HashSet<ContentId>,
}

impl LocalPeer {
    fn is_silent(&self, silence_timeout: Duration, now: Instant) -> bool {
        self.joined.is_some() && now.saturating_duration_since(self.last_seen) > silence_timeout
    }
}

/// Peers that were found gone and whose past waits to be removed; of more than may join, what they
/// leave stays.
const GONE_PEERS_MAX: usize = limits::REGISTRY_PEERS_MAX;

/// The number of peers and files in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub peers: usize,
    pub files: u64,
}

impl Totals {
    pub(super) fn count(peers: &[(PeerId, StoredPeer)]) -> Totals {
        // Anybody who may write to the store can write any number into a row.
        let files = peers.iter().map(|(_, peer)| peer.row.files).fold(0, u64::saturating_add);
        Totals { peers: peers.len(), files }
    }

    /// Whether there is room for `files` files of a peer that had `before` files, or `None` if it
    /// is new.
    pub(super) fn check_room(
        self,
        limits: &IndexLimits,
        before: Option<u64>,
        files: u64,
    ) -> Result<(), IndexError> {
        if before.is_none() && self.peers >= limits.peers_max {
            return Err(IndexError::Peers(self.peers));
        }
        if files > limits.files_per_peer_max as u64 {
            return Err(IndexError::FilesOfPeer(limits.files_per_peer_max));
        }
        let others = self.files.saturating_sub(before.unwrap_or_default());
        if others.saturating_add(files) > limits.files_max as u64 {
            return Err(IndexError::Files);
        }
        Ok(())
    }
}

/// The peers that a scan has found, and the version of the state in which it did.
#[derive(Debug)]
pub(super) struct ScannedPeers {
    pub peers: Vec<(PeerId, StoredPeer)>,
    pub at: Timestamp,
}

/// What follows from a scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ScanVerdict {
    /// Local peers that have been silent for too long, and peers of any registry that were there at
    /// the last scan and have gone since: for each there is something to remove.
    pub removable: Vec<(PeerId, SocketAddr)>,
    /// Local peers whose rows are gone, or another registry's. They have been forgotten, and are to
    /// join again.
    pub lost: Vec<PeerId>,
}

/// The state of one registry.
#[derive(Debug)]
pub(super) struct LocalPeers {
    id: RegistryId,
    silence_timeout: Duration,
    /// A peer is here before its row is in the store.
    peers: HashMap<PeerId, LocalPeer>,
    /// When the last scan began, whether it succeeded or not.
    scanned_at: Option<Instant>,
    /// The peers that the last scan has found, and the version of their state.
    found: Option<(HashMap<PeerId, SocketAddr>, Timestamp)>,
    /// Peers that scans have found gone, until their past is removed: a version in which they were
    /// there.
    gone: HashMap<PeerId, (SocketAddr, Timestamp)>,
    /// `None` until they have been counted.
    totals: Option<Totals>,
    is_store_lost: bool,
}

impl LocalPeers {
    pub(super) fn new(id: RegistryId, silence_timeout: Duration) -> LocalPeers {
        LocalPeers {
            id,
            silence_timeout,
            peers: HashMap::new(),
            scanned_at: None,
            found: None,
            gone: HashMap::new(),
            totals: None,
            is_store_lost: false,
        }
    }

    // ---- this registry's peers --------------------------------------------------------------

    /// A peer has begun to join over a connection of this registry.
    pub(super) fn begin_join(
        &mut self,
        member: Member,
        origin: IpAddr,
        leases: PeerLeases,
        now: Instant,
    ) {
        let (session, fetching) = (member.session, HashSet::new());
        let (last_seen, joined, stored) = (now, None, None);
        let peer = LocalPeer { session, last_seen, joined, origin, stored, leases, fetching };
        self.peers.insert(member.peer, peer);
    }

    /// All rows of a peer were written, its own the last. `joined` is a time as scans begin by, and
    /// `now` one by which silence is measured.
    pub(super) fn end_join(
        &mut self,
        member: Member,
        stored: StoredPeer,
        joined: Instant,
        now: Instant,
    ) {
        // A later JOIN over another connection may have replaced the peer.
        if let Some(peer) = self.get_mut(member) {
            peer.stored = Some(stored);
            (peer.joined, peer.last_seen) = (Some(joined), now);
        }
    }

    /// Changes a local peer, if `member` is one, and records a sign of life.
    pub(super) fn with_peer<T>(
        &mut self,
        member: Member,
        now: Instant,
        with: impl FnOnce(&mut LocalPeer) -> T,
    ) -> Option<T> {
        let peer = self.get_mut(member)?;
        peer.last_seen = now;
        Some(with(peer))
    }

    fn get_mut(&mut self, member: Member) -> Option<&mut LocalPeer> {
        self.peers.get_mut(&member.peer).filter(|peer| peer.session == member.session)
    }

    /// Removes a local peer, if `member` is one. Returns its row, if it has one, and its leases.
    pub(super) fn forget(&mut self, member: Member) -> Option<(StoredPeer, PeerLeases)> {
        self.get_mut(member)?;
        let LocalPeer { stored, leases, .. } = self.peers.remove(&member.peer)?;
        stored.zip(Some(leases))
    }

    /// Removes a local peer that has been silent for too long.
    pub(super) fn forget_silent(
        &mut self,
        peer: PeerId,
        now: Instant,
    ) -> Option<(StoredPeer, PeerLeases)> {
        let local = self.peers.get(&peer).filter(|of| of.is_silent(self.silence_timeout, now))?;
        self.forget(Member { peer, session: local.session })
    }

    /// A version in which a peer was there that is gone, unless it has joined here since.
    pub(super) fn take_gone(&mut self, peer: PeerId) -> Option<Timestamp> {
        let (_, at) = self.gone.remove(&peer).filter(|_| !self.peers.contains_key(&peer))?;
        Some(at)
    }

    /// The leases of the peers from which this registry hears.
    pub(super) fn leases(&self, now: Instant) -> Vec<(Member, Vec<LeaseId>)> {
        let heard = self.peers.iter().filter(|(_, of)| !of.is_silent(self.silence_timeout, now));
        heard
            .map(|(peer, local)| {
                let member = Member { peer: *peer, session: local.session };
                (member, local.leases.ids().collect())
            })
            .collect()
    }

    /// How long a peer with this row has been silent. Of another registry's peer nothing more is
    /// known than that its lease is alive, and so that it is not silent for too long.
    pub(super) fn silence(&self, peer: PeerId, row: &PeerRow, now: Instant) -> Duration {
        let local = self.peers.get(&peer).filter(|local| local.session == row.session);
        local.map_or(Duration::ZERO, |local| now.saturating_duration_since(local.last_seen))
    }

    /// Checks that a peer may have `files` files beside the other peers of its origin. Each
    /// registry counts the peers that are connected to it.
    pub(super) fn check_origin(
        &self,
        limits: &IndexLimits,
        peer: PeerId,
        origin: IpAddr,
        files: u64,
    ) -> Result<(), IndexError> {
        let others = self.peers.iter().filter(|(id, local)| **id != peer && local.origin == origin);
        let (peers, others) = others.fold((0, 0), |(peers, files), (_, local)| {
            let of_peer = local.stored.map_or(0, |stored| stored.row.files);
            (peers + 1, u64::saturating_add(files, of_peer))
        });
        let files_max = limits.files_per_origin_max;
        if peers >= limits.peers_per_origin_max {
            return Err(IndexError::PeersOfOrigin(peers));
        }
        if others.saturating_add(files) > files_max as u64 {
            return Err(IndexError::FilesOfOrigin(files_max));
        }
        Ok(())
    }

    // ---- totals -----------------------------------------------------------------------------

    pub(super) fn totals(&self) -> Option<Totals> {
        self.totals
    }

    /// The rows of all peers were counted.
    pub(super) fn counted(&mut self, totals: Totals) {
        self.totals = Some(totals);
    }

    /// Updates the totals for a peer that had `before` files and has `now`; `None` if it was or is
    /// not there. They are estimates, since other registries add and remove peers as well.
    pub(super) fn recount(&mut self, before: Option<u64>, now: Option<u64>) {
        if let Some(totals) = &mut self.totals {
            let (left, came) = (usize::from(before.is_some()), usize::from(now.is_some()));
            totals.peers = totals.peers.saturating_sub(left) + came;
            let files = totals.files.saturating_sub(before.unwrap_or_default());
            totals.files = files.saturating_add(now.unwrap_or_default());
        }
    }

    // ---- scans --------------------------------------------------------------------------------

    /// Whether a scan is due. If so, it counts as begun.
    pub(super) fn begin_scan(&mut self, interval: Duration, now: Instant) -> bool {
        let is_due = self.scanned_at.is_none_or(|at| now.saturating_duration_since(at) >= interval);
        if is_due {
            self.scanned_at = Some(now);
        }
        is_due
    }

    /// A scan has succeeded, or the store did not answer. Returns whether that is news.
    pub(super) fn store_answers(&mut self, answers: bool) -> bool {
        std::mem::replace(&mut self.is_store_lost, !answers) == answers
    }

    /// Decides what follows from the rows that a scan has read since `began`, and forgets local
    /// peers that are lost.
    pub(super) fn scanned(
        &mut self,
        scanned: &ScannedPeers,
        began: Instant,
        now: Instant,
    ) -> ScanVerdict {
        let ScannedPeers { peers, at } = scanned;
        self.totals = Some(Totals::count(peers));
        let rows: HashMap<PeerId, &PeerRow> =
            peers.iter().map(|(peer, stored)| (*peer, &stored.row)).collect();
        let mut lost = Vec::new();
        let own = self.id;
        self.peers.retain(|peer, local| {
            // The row of one that has joined since the scan began may be newer than the scan.
            let is_due = local.joined.is_some_and(|joined| joined < began);
            let is_ours = |row: &&PeerRow| (row.registry, row.session) == (own, local.session);
            let stays = !is_due || rows.get(peer).is_some_and(is_ours);
            if !stays {
                lost.push(*peer);
            }
            stays
        });
        let found = peers.iter().map(|(peer, stored)| (*peer, stored.row.address)).collect();
        if let Some((before, before_at)) = self.found.replace((found, *at)) {
            let gone = before.into_iter().filter(|(peer, _)| !rows.contains_key(peer));
            let room = GONE_PEERS_MAX.saturating_sub(self.gone.len());
            self.gone.extend(gone.take(room).map(|(peer, address)| (peer, (address, before_at))));
        }
        self.gone.retain(|peer, _| !rows.contains_key(peer));
        let is_silent = |local: &LocalPeer| local.is_silent(self.silence_timeout, now);
        let silent = self.peers.iter().filter(|(_, local)| is_silent(local));
        let silent = silent.filter_map(|(peer, of)| Some((*peer, of.stored?.row.address)));
        let gone = self.gone.iter().filter(|(peer, _)| !self.peers.contains_key(peer));
        let gone = gone.map(|(peer, (address, _))| (*peer, *address));
        ScanVerdict { removable: silent.chain(gone).collect(), lost }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const OWN: RegistryId = RegistryId(1);
    const OTHER: RegistryId = RegistryId(2);
    const SILENCE: Duration = Duration::from_secs(10);

    fn member(peer: u64) -> Member {
        Member { peer: PeerId(peer), session: 100 + peer }
    }

    fn address(peer: u64) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, peer as u8], 1000))
    }

    fn leases(peer: u64) -> PeerLeases {
        PeerLeases::new(LeaseId(peer))
    }

    fn row(number: u64, registry: RegistryId) -> (PeerId, StoredPeer) {
        let Member { peer, session } = member(number);
        let (address, key) = (address(number), number);
        let row = PeerRow { address, session, key, registry, offered: true, files: 2, bytes: 9 };
        (peer, StoredPeer { row, version: Timestamp(5) })
    }

    fn scanned(peers: Vec<(PeerId, StoredPeer)>, at: i64) -> ScannedPeers {
        ScannedPeers { peers, at: Timestamp(at) }
    }

    /// A registry to which a peer is connected, and a clock in seconds.
    fn state_with_peer(peer: u64) -> (LocalPeers, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let at = move |second: u64| start + Duration::from_secs(second);
        let mut state = LocalPeers::new(OWN, SILENCE);
        state.begin_join(member(peer), address(peer).ip(), leases(peer), at(0));
        state.end_join(member(peer), row(peer, OWN).1, at(0), at(0));
        (state, at)
    }

    #[test]
    fn a_silent_peer_is_to_be_removed_unless_it_is_heard_from_first() {
        let (mut state, at) = state_with_peer(7);
        let rows = scanned(vec![row(7, OWN)], 1);
        assert_eq!(state.scanned(&rows, at(10), at(10)), ScanVerdict::default());
        assert_eq!(state.leases(at(10)), [(member(7), vec![LeaseId(7)])]);
        let silent = ScanVerdict { removable: vec![(PeerId(7), address(7))], lost: vec![] };
        assert_eq!(state.scanned(&rows, at(11), at(11)), silent);
        assert_eq!(state.leases(at(11)), [], "nothing keeps it alive");
        state.with_peer(member(7), at(12), |_| ());
        assert_eq!(state.forget_silent(PeerId(7), at(12)), None);
        assert_eq!(state.scanned(&rows, at(12), at(12)), ScanVerdict::default());
        assert_eq!(state.scanned(&rows, at(23), at(23)), silent);
        let removed = state.forget_silent(PeerId(7), at(23));
        assert_eq!(removed, Some((row(7, OWN).1, leases(7))));
        assert_eq!(state.with_peer(member(7), at(23), |_| ()), None);
    }

    #[test]
    fn a_peer_whose_row_is_gone_or_another_registrys_is_to_join_again() {
        for there in [Some(OTHER), None] {
            let (mut state, at) = state_with_peer(7);
            let peers: Vec<_> = there.map(|registry| row(7, registry)).into_iter().collect();
            // Its own row may be newer than what a scan has read that began before.
            let verdict = state.scanned(&scanned(peers.clone(), 1), at(0), at(1));
            assert_eq!(verdict, ScanVerdict::default(), "{there:?}");
            let verdict = state.scanned(&scanned(peers, 2), at(1), at(2));
            assert_eq!(verdict.lost, [PeerId(7)], "{there:?}");
            assert_eq!(state.with_peer(member(7), at(2), |_| ()), None);
        }
    }

    #[test]
    fn what_a_peer_of_any_registry_leaves_is_removed_when_a_scan_misses_it() {
        let (mut state, at) = state_with_peer(7);
        let both = vec![row(7, OWN), row(8, OTHER)];
        assert_eq!(state.scanned(&scanned(both, 3), at(1), at(1)), ScanVerdict::default());
        assert_eq!(state.totals(), Some(Totals { peers: 2, files: 4 }));
        let gone = ScanVerdict { removable: vec![(PeerId(8), address(8))], lost: vec![] };
        for version in 4..6 {
            let verdict = state.scanned(&scanned(vec![row(7, OWN)], version), at(1), at(1));
            assert_eq!(verdict, gone, "until it has been removed");
        }
        assert_eq!(state.take_gone(PeerId(8)), Some(Timestamp(3)), "it was there then");
        assert_eq!(state.take_gone(PeerId(8)), None);
        let verdict = state.scanned(&scanned(vec![row(7, OWN)], 6), at(1), at(1));
        assert_eq!(verdict, ScanVerdict::default());
    }

    #[test]
    fn a_peer_that_was_missed_and_is_back_is_left_alone() {
        let (mut state, at) = state_with_peer(7);
        let both = || vec![row(7, OWN), row(8, OTHER)];
        state.scanned(&scanned(both(), 3), at(1), at(1));
        state.scanned(&scanned(vec![row(7, OWN)], 4), at(1), at(1));
        assert_eq!(state.scanned(&scanned(both(), 5), at(1), at(1)), ScanVerdict::default());
        assert_eq!(state.take_gone(PeerId(8)), None);
        state.scanned(&scanned(vec![row(7, OWN)], 6), at(1), at(1));
        state.begin_join(member(8), address(8).ip(), leases(8), at(1));
        assert_eq!(state.take_gone(PeerId(8)), None, "it is joining here");
    }

    #[test]
    fn a_peer_that_is_joining_is_neither_silent_nor_lost_and_is_kept_alive() {
        let start = Instant::now();
        let mut state = LocalPeers::new(OWN, SILENCE);
        state.begin_join(member(7), address(7).ip(), leases(7), start);
        let later = start + 5 * SILENCE;
        let verdict = state.scanned(&scanned(vec![row(7, OTHER)], 1), later, later);
        assert_eq!(verdict, ScanVerdict::default());
        assert_eq!(state.leases(later), [(member(7), vec![LeaseId(7)])]);
        let (_, stored) = row(7, OWN);
        state.end_join(member(7), stored, later, later);
        assert_eq!(state.with_peer(member(7), later, |peer| peer.stored), Some(Some(stored)));
    }

    #[test]
    fn a_late_message_of_an_earlier_connection_is_not_about_the_peer() {
        let (mut state, at) = state_with_peer(7);
        let earlier = Member { session: 1, ..member(7) };
        assert_eq!(state.with_peer(earlier, at(1), |_| ()), None);
        assert_eq!(state.forget(earlier), None);
        assert_eq!(state.forget(member(7)), Some((row(7, OWN).1, leases(7))));
    }

    #[test]
    fn a_failure_of_the_store_is_news_once_and_so_is_its_end() {
        let mut state = LocalPeers::new(OWN, SILENCE);
        let news = [true, false, false, true, true].map(|answers| state.store_answers(answers));
        assert_eq!(news, [false, true, false, true, false]);
    }
}
