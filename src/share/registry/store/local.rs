//! What one registry alone knows: its connected peers, the silence of other registries, and the
//! totals. It decides what follows from the rows that a scan has read.
//!
//! Rule: only rows are durable. This state is lost when the registry ends, after which its peers
//! are orphaned until they join again.
//!
//! The module is pure: the caller passes the time and the rows.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::rows::{PeerRow, RegistryId, StoredCleanup, StoredPeer};
use super::silence::{RegistryHeartbeat, SilenceTracker};
use crate::model::{ContentId, PeerId};
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
    pub fetching: HashSet<ContentId>,
}

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

/// The rows that a scan has read.
#[derive(Debug, Default)]
pub(super) struct ScannedRows {
    /// Read before `peers`: so that one whose peer is not among those is of a removed peer.
    pub cleanups: Vec<(PeerId, StoredCleanup)>,
    /// Read before `registries`, so that every live registry that a peer names is among those.
    pub peers: Vec<(PeerId, StoredPeer)>,
    pub registries: Vec<RegistryHeartbeat>,
}

/// What there is to be removed of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orphan {
    /// All of its rows.
    Peer(StoredPeer),
    /// What an unfinished removal has left.
    Rest(StoredCleanup),
}

impl Orphan {
    /// The address at which the peer has served.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Orphan::Peer(stored) => stored.row.address,
            Orphan::Rest(cleanup) => cleanup.row.address,
        }
    }

    fn registry(&self) -> RegistryId {
        match self {
            Orphan::Peer(stored) => stored.row.registry,
            Orphan::Rest(cleanup) => cleanup.row.registry,
        }
    }
}

/// What follows from a scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ScanVerdict {
    /// Registries whose rows are to be removed, unless they have written them again.
    pub dead: Vec<RegistryHeartbeat>,
    /// Peers to be removed, unless somebody has written their rows since: their registry is dead,
    /// or is this one and does not have their connection.
    pub orphaned: Vec<(PeerId, Orphan)>,
    /// Local peers whose rows another registry has taken over. They have been forgotten, and are to
    /// join again.
    pub taken_over: Vec<PeerId>,
}

/// The state of one registry.
#[derive(Debug)]
pub(super) struct LocalPeers {
    id: RegistryId,
    silence_timeout: Duration,
    /// A peer is here before its row is in the store.
    peers: HashMap<PeerId, LocalPeer>,
    silence_tracker: SilenceTracker,
    /// When the last scan began, whether it succeeded or not.
    scanned_at: Option<Instant>,
    has_heartbeat_row: bool,
    /// `None` until they have been counted.
    totals: Option<Totals>,
    /// The peers that the last scan has found to be removed, until their removal begins.
    orphans: HashMap<PeerId, Orphan>,
    /// The number of removals under way of each peer. There are two if it has joined and left again
    /// during the first: each removes what had the versions that it knows.
    removals: HashMap<PeerId, usize>,
    is_store_lost: bool,
}

impl LocalPeers {
    pub(super) fn new(id: RegistryId, silence_timeout: Duration) -> LocalPeers {
        LocalPeers {
            id,
            silence_timeout,
            peers: HashMap::new(),
            silence_tracker: SilenceTracker::default(),
            scanned_at: None,
            has_heartbeat_row: false,
            totals: None,
            orphans: HashMap::new(),
            removals: HashMap::new(),
            is_store_lost: false,
        }
    }

    // ---- this registry's peers --------------------------------------------------------------

    /// A peer has begun to join over a connection of this registry.
    pub(super) fn begin_join(&mut self, member: Member, origin: IpAddr, now: Instant) {
        let (session, fetching) = (member.session, HashSet::new());
        let peer =
            LocalPeer { session, last_seen: now, joined: None, origin, stored: None, fetching };
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

    /// Removes a local peer, if `member` is one, and returns its row if it has one.
    pub(super) fn forget(&mut self, member: Member) -> Option<StoredPeer> {
        self.get_mut(member)?;
        self.peers.remove(&member.peer)?.stored
    }

    /// A peer that the last scan has found to be removed, unless it has joined here since.
    pub(super) fn take_orphan(&mut self, peer: PeerId) -> Option<Orphan> {
        self.orphans.remove(&peer).filter(|_| !self.peers.contains_key(&peer))
    }

    /// A removal of a peer begins, which scans leave alone until it ends.
    pub(super) fn begin_removal(&mut self, peer: PeerId) {
        *self.removals.entry(peer).or_default() += 1;
    }

    pub(super) fn end_removal(&mut self, peer: PeerId) {
        let under_way = self.removals.get_mut(&peer);
        let under_way = under_way.unwrap_or_else(|| panic!("no removal of {peer} has begun"));
        *under_way -= 1;
        if *under_way == 0 {
            self.removals.remove(&peer);
        }
    }

    /// How long a peer with this row has been silent. Of another registry's peer only the silence
    /// of its registry is known.
    pub(super) fn silence(&self, peer: PeerId, row: &PeerRow, now: Instant) -> Duration {
        let local = self.peers.get(&peer).filter(|local| local.session == row.session);
        local.map_or_else(
            || self.silence_tracker.silence(row.registry, now),
            |local| now.saturating_duration_since(local.last_seen),
        )
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

    // ---- heartbeats and scans ---------------------------------------------------------------

    pub(super) fn has_heartbeat_row(&self) -> bool {
        self.has_heartbeat_row
    }

    /// The heartbeat was written. Returns whether it has overwritten an earlier one.
    pub(super) fn wrote_heartbeat(&mut self) -> bool {
        std::mem::replace(&mut self.has_heartbeat_row, true)
    }

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

    /// Whether another registry still speaks for its peers; `None` if no scan has seen it. It does
    /// not if its heartbeat has been missing for half of the silence time-out, which is twice its
    /// interval: then its peers may join here before they are removed.
    pub(super) fn speaks(&self, registry: RegistryId, now: Instant) -> Option<bool> {
        let silence = self.silence_tracker.seen_silence(registry, now)?;
        Some(silence < self.silence_timeout / 2)
    }

    /// Decides what follows from the rows that a scan has read since `began`, and forgets local
    /// peers that are silent or were taken over.
    pub(super) fn scanned(
        &mut self,
        rows: &ScannedRows,
        began: Instant,
        now: Instant,
    ) -> ScanVerdict {
        let own = self.id;
        self.totals = Some(Totals::count(&rows.peers));
        let gap_max = self.silence_timeout / 2;
        let mut dead = self.silence_tracker.update(&rows.registries, gap_max, now);
        // This registry runs, whatever has kept its heartbeat from the store.
        dead.retain(|heartbeat| heartbeat.registry != own);
        let alive: HashSet<RegistryId> = rows
            .registries
            .iter()
            .map(|heartbeat| heartbeat.registry)
            .filter(|registry| !dead.iter().any(|heartbeat| heartbeat.registry == *registry))
            .chain([own])
            .collect();
        let silence_timeout = self.silence_timeout;
        self.peers.retain(|_, local| {
            let silence = now.saturating_duration_since(local.last_seen);
            local.joined.is_none() || silence <= silence_timeout
        });
        let by_peer: HashMap<PeerId, &PeerRow> =
            rows.peers.iter().map(|(peer, stored)| (*peer, &stored.row)).collect();
        let left = rows.cleanups.iter().filter(|(peer, _)| !by_peer.contains_key(peer));
        let left = left.map(|(peer, cleanup)| (*peer, Orphan::Rest(*cleanup)));
        let peers = rows.peers.iter().map(|(peer, stored)| (*peer, Orphan::Peer(*stored)));
        let is_orphaned = |(peer, orphan): &(PeerId, Orphan)| match orphan.registry() == own {
            true => !self.peers.contains_key(peer),
            false => !alive.contains(&orphan.registry()),
        };
        let is_under_way = |(peer, _): &(PeerId, Orphan)| self.removals.contains_key(peer);
        let orphaned: Vec<_> = peers
            .chain(left)
            .filter(|orphan| is_orphaned(orphan) && !is_under_way(orphan))
            .collect();
        self.orphans = orphaned.iter().copied().collect();
        let mut taken_over = Vec::new();
        self.peers.retain(|peer, local| {
            // The row of one that has joined since the scan began may be newer than the scan.
            let is_due = local.joined.is_some_and(|joined| joined < began);
            let is_ours = |row: &&PeerRow| (row.registry, row.session) == (own, local.session);
            let stays = !is_due || by_peer.get(peer).is_some_and(is_ours);
            if !stays {
                taken_over.push(*peer);
            }
            stays
        });
        ScanVerdict { dead, orphaned, taken_over }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::rows::CleanupRow;
    use super::*;
    use crate::model::Timestamp;

    const OWN: RegistryId = RegistryId(1);
    const OTHER: RegistryId = RegistryId(2);
    const SILENCE: Duration = Duration::from_secs(10);

    fn member(peer: u64) -> Member {
        Member { peer: PeerId(peer), session: 100 + peer }
    }

    fn address(peer: u64) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, peer as u8], 1000))
    }

    fn row(number: u64, registry: RegistryId) -> (PeerId, StoredPeer) {
        let Member { peer, session } = member(number);
        let (address, key) = (address(number), number);
        let row = PeerRow { address, session, key, registry, offered: true, files: 2, bytes: 9 };
        (peer, StoredPeer { row, version: Timestamp(5) })
    }

    fn orphan(number: u64, registry: RegistryId) -> (PeerId, Orphan) {
        let (peer, stored) = row(number, registry);
        (peer, Orphan::Peer(stored))
    }

    fn cleanup(number: u64, registry: RegistryId) -> (PeerId, StoredCleanup) {
        let row = CleanupRow { registry, address: address(number) };
        (PeerId(number), StoredCleanup { row, version: Timestamp(5) })
    }

    fn heartbeat(registry: RegistryId, version: i64) -> RegistryHeartbeat {
        RegistryHeartbeat { registry, version: Timestamp(version), timeout: SILENCE }
    }

    /// A registry to which a peer is connected, and a clock in seconds.
    fn state_with_peer(peer: u64) -> (LocalPeers, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let at = move |second: u64| start + Duration::from_secs(second);
        let mut state = LocalPeers::new(OWN, SILENCE);
        state.begin_join(member(peer), address(peer).ip(), at(0));
        state.end_join(member(peer), row(peer, OWN).1, at(0), at(0));
        (state, at)
    }

    #[test]
    fn a_registry_whose_heartbeat_stops_is_dead_and_its_peers_are_orphaned() {
        let (mut state, at) = state_with_peer(7);
        let rows = |version| ScannedRows {
            peers: vec![row(7, OWN), row(8, OTHER)],
            registries: vec![heartbeat(OWN, version), heartbeat(OTHER, 1)],
            ..ScannedRows::default()
        };
        for second in 1..=11 {
            state.with_peer(member(7), at(second), |_| ());
            let verdict = state.scanned(&rows(second as i64), at(second), at(second));
            assert_eq!(verdict, ScanVerdict::default(), "second {second}");
            let speaks = state.speaks(OTHER, at(second));
            assert_eq!(speaks, Some(second < 6), "half of its time, from the first scan on");
        }
        let verdict = state.scanned(&rows(12), at(12), at(12));
        let (dead, orphaned) = (vec![heartbeat(OTHER, 1)], vec![orphan(8, OTHER)]);
        assert_eq!(verdict, ScanVerdict { dead, orphaned, taken_over: vec![] });
        assert_eq!(state.totals(), Some(Totals { peers: 2, files: 4 }));
    }

    #[test]
    fn a_row_of_a_registry_without_a_heartbeat_is_orphaned_at_once() {
        let (mut state, at) = state_with_peer(7);
        let peers = vec![row(7, OWN), row(8, OTHER)];
        let registries = vec![heartbeat(OWN, 1)];
        let rows = ScannedRows { peers, registries, ..ScannedRows::default() };
        let verdict = state.scanned(&rows, at(1), at(1));
        assert_eq!(verdict.orphaned, [orphan(8, OTHER)]);
    }

    #[test]
    fn a_silent_peer_is_forgotten_and_its_row_orphaned() {
        let (mut state, at) = state_with_peer(7);
        let rows = || ScannedRows { peers: vec![row(7, OWN)], ..ScannedRows::default() };
        assert_eq!(state.scanned(&rows(), at(10), at(10)), ScanVerdict::default());
        let verdict = state.scanned(&rows(), at(11), at(11));
        assert_eq!(verdict.orphaned, [orphan(7, OWN)]);
        assert_eq!(state.forget(member(7)), None, "it is forgotten already");
    }

    #[test]
    fn a_peer_whose_row_another_registry_has_written_is_to_join_again() {
        for there in [Some(OTHER), None] {
            let (mut state, at) = state_with_peer(7);
            let peers = there.map(|registry| row(7, registry)).into_iter().collect();
            let registries = vec![heartbeat(OTHER, 1)];
            let rows = ScannedRows { peers, registries, ..ScannedRows::default() };
            // Its own row may be newer than what a scan has read that began before.
            assert_eq!(state.scanned(&rows, at(0), at(1)), ScanVerdict::default(), "{there:?}");
            let verdict = state.scanned(&rows, at(1), at(2));
            assert_eq!(verdict.taken_over, [PeerId(7)], "{there:?}");
            assert_eq!(state.with_peer(member(7), at(2), |_| ()), None);
        }
    }

    /// Another registry that believed this one dead has begun to remove the peer, and got no
    /// further.
    #[test]
    fn a_peer_of_which_a_rest_is_left_is_to_join_again_and_the_rest_is_removed() {
        let (mut state, at) = state_with_peer(7);
        let rows = ScannedRows { cleanups: vec![cleanup(7, OWN)], ..ScannedRows::default() };
        let verdict = state.scanned(&rows, at(1), at(1));
        assert_eq!((verdict.taken_over, verdict.orphaned), (vec![PeerId(7)], vec![]));
        let (peer, rest) = cleanup(7, OWN);
        assert_eq!(state.scanned(&rows, at(2), at(2)).orphaned, [(peer, Orphan::Rest(rest))]);
    }

    /// Its registry is removing it at this moment.
    #[test]
    fn what_is_left_of_a_peer_is_its_registrys_to_remove_unless_that_is_dead() {
        let start = Instant::now();
        let mut state = LocalPeers::new(OWN, SILENCE);
        let cleanups = vec![cleanup(7, OTHER), cleanup(8, OTHER)];
        let peers = vec![row(8, OTHER)];
        let mut rows = ScannedRows { cleanups, peers, registries: vec![heartbeat(OTHER, 1)] };
        assert_eq!(state.scanned(&rows, start, start).orphaned, []);
        rows.registries.clear();
        let (whole, rest) = (Orphan::Peer(row(8, OTHER).1), Orphan::Rest(cleanup(7, OTHER).1));
        let orphaned = [(PeerId(8), whole), (PeerId(7), rest)];
        assert_eq!(state.scanned(&rows, start, start).orphaned, orphaned);
    }

    /// Once its removal was taken for that of the peer of the same id that had left before.
    #[test]
    fn scans_leave_a_peer_alone_until_all_its_removals_have_ended() {
        let start = Instant::now();
        let mut state = LocalPeers::new(OWN, SILENCE);
        let rows = ScannedRows { peers: vec![row(7, OWN)], ..ScannedRows::default() };
        let (first, second) = (PeerId(7), PeerId(7));
        state.begin_removal(first);
        state.begin_removal(second);
        assert_eq!(state.scanned(&rows, start, start).orphaned, []);
        state.end_removal(second);
        assert_eq!(state.scanned(&rows, start, start).orphaned, []);
        state.end_removal(first);
        assert_eq!(state.scanned(&rows, start, start).orphaned.len(), 1);
    }

    #[test]
    fn a_peer_that_is_joining_is_neither_silent_nor_taken_over() {
        let start = Instant::now();
        let mut state = LocalPeers::new(OWN, SILENCE);
        state.begin_join(member(7), address(7).ip(), start);
        let later = start + 5 * SILENCE;
        let rows = ScannedRows { peers: vec![row(7, OTHER)], ..ScannedRows::default() };
        let verdict = state.scanned(&rows, later, later);
        assert_eq!(verdict.taken_over, []);
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
        assert_eq!(state.forget(member(7)), Some(row(7, OWN).1));
    }

    #[test]
    fn a_failure_of_the_store_is_news_once_and_so_is_its_end() {
        let mut state = LocalPeers::new(OWN, SILENCE);
        let news = [true, false, false, true, true].map(|answers| state.store_answers(answers));
        assert_eq!(news, [false, true, false, true, false]);
    }
}
