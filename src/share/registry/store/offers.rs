//! Writes and removes the rows of what peers have.
//!
//! Rule: every write is under a condition on the peer's own row, so that it is in vain if somebody
//! else has the peer by now. Files are written in bounded pieces, and removed in such pieces or
//! with their leases.
//!
//! The removal of that row stores nothing, since it must be possible on a full disk, where the
//! leases of the others end later.

use super::peer_leases::{LEASES_PER_PEER_MAX, PeerLeases, lease_ttls};
use super::row_store::{LeasedRow, Result, RowStore};
use super::rows::*;
use super::{FileRows, FoundFiles, StoreDirectory, TakenOver, total_bytes};
use crate::client::{Condition, ReadOptions};
use crate::limits;
use crate::model::{ContentId, FileName, LeaseId, PeerId, Row, Timestamp};
use crate::share::index::Member;

impl<S: RowStore> StoreDirectory<S> {
    /// Writes a peer's row. Returns `None` if the condition on it does not hold, or the lease has
    /// ended.
    pub(super) fn put_peer(
        &self,
        peer: PeerId,
        condition: Condition,
        row: PeerRow,
        lease: LeaseId,
    ) -> Result<Option<StoredPeer>> {
        let key = peer_key(peer);
        let puts = vec![LeasedRow { key: key.clone(), value: encode(&row), lease }];
        let written = self.store.write_if(&key, condition, puts, vec![])?;
        Ok(written.map(|version| StoredPeer { row, version }))
    }

    fn files_of(&self, peer: PeerId, options: ReadOptions) -> Result<FoundFiles> {
        let prefix = files_prefix(peer);
        let mut files = FoundFiles::new();
        for row in self.store.range(&prefix, &end(&prefix), options)? {
            files.extend(file(&row?, &prefix));
        }
        Ok(files)
    }

    /// The files of a peer with these names.
    pub(super) fn files_named<'a>(
        &self,
        peer: PeerId,
        names: impl Iterator<Item = &'a FileName>,
    ) -> Result<FoundFiles> {
        let (keys, prefix) = (names.map(|name| file_key(peer, name)), files_prefix(peer));
        Ok(self.store.get_all(keys)?.iter().filter_map(|row| file(row, &prefix)).collect())
    }

    /// The contents that a peer is downloading.
    fn parts_of(&self, peer: PeerId, options: ReadOptions) -> Result<Vec<ContentId>> {
        let prefix = parts_prefix(peer);
        let mut parts = Vec::new();
        for row in self.store.range(&prefix, &end(&prefix), options)? {
            parts.extend(rest(&row?, &prefix).and_then(content_of));
        }
        Ok(parts)
    }

    /// Writes what a member offers, whose row was taken over. Returns `None` if somebody else has
    /// taken it since.
    pub(super) fn write_join(
        &self,
        member: Member,
        taken: &TakenOver,
        files: &FileRows,
    ) -> Result<Option<StoredPeer>> {
        let (peer, StoredPeer { row, version }) = (member.peer, taken.stored);
        let newest = ReadOptions::default();
        let (parts, before) = (self.parts_of(peer, newest)?, self.files_of(peer, newest)?);
        let Some(mut leases) = self.kept_leases(taken, &before)? else { return Ok(None) };
        let (count, bytes) = (files.len() as u64, total_bytes(files.values()));
        let row = PeerRow { offered: true, files: count, bytes, ..row };
        let mut change = FilesChange::between(&before, files, &leases);
        change.parts = parts;
        let placed = self.place_files(member, &mut leases, &change)?;
        let stored = self.write_files(peer, version, &change, placed, row, leases.first())?;
        if stored.is_some() {
            self.store.trim(&peer_key(peer))?;
        }
        Ok(stored)
    }

    /// The leases of a peer whose row was taken over, kept alive from now on. Returns `None` if the
    /// first has ended.
    fn kept_leases(&self, taken: &TakenOver, before: &FoundFiles) -> Result<Option<PeerLeases>> {
        let mut leases = PeerLeases::new(taken.lease);
        if !taken.keeps_leases {
            return Ok(Some(leases));
        }
        let mut known = vec![taken.lease];
        for lease in before.values().filter_map(|found| found.lease) {
            if !known.contains(&lease) && known.len() < LEASES_PER_PEER_MAX {
                known.push(lease);
            }
        }
        let alive = self.store.keep_alive(&known)?;
        if !alive.first().is_some_and(|is_alive| *is_alive) {
            return Ok(None);
        }
        let further = known.iter().zip(alive).skip(1).filter(|(_, is_alive)| *is_alive);
        further.for_each(|(lease, _)| leases.add(*lease));
        before.values().filter_map(|found| found.lease).for_each(|lease| leases.count_file(lease));
        Ok(Some(leases))
    }

    /// Finds a lease for each new file of a change, and grants those that are needed. From now on
    /// all of them are the member's.
    pub(super) fn place_files(
        &self,
        member: Member,
        leases: &mut PeerLeases,
        change: &FilesChange<'_>,
    ) -> Result<Vec<LeaseId>> {
        let left = change.gone.iter().filter_map(|(_, found)| found.lease);
        left.for_each(|lease| leases.remove_file(lease));
        let mut placed = Vec::with_capacity(change.new.len());
        while placed.len() < change.new.len() {
            match leases.put_file() {
                Some(lease) => placed.push(lease),
                None => {
                    let [_, ttl] = lease_ttls(self.silence_timeout);
                    leases.add(self.store.grant(ttl)?);
                }
            }
        }
        self.with_local_peer(member, |local| local.leases = leases.clone());
        Ok(placed)
    }

    /// Changes what a peer has, and with the last of these writes stores `row`. Returns `None` if
    /// the peer's row had another version than this at one of them.
    pub(super) fn write_files(
        &self,
        peer: PeerId,
        version: Timestamp,
        change: &FilesChange<'_>,
        placed: Vec<LeaseId>,
        row: PeerRow,
        lease: LeaseId,
    ) -> Result<Option<StoredPeer>> {
        let (key, condition) = (peer_key(peer), Condition::Version(version));
        // Removed before they are written: what is overwritten would keep its earlier version.
        let mut removals = change.removals(peer).peekable();
        let new = change.new.iter().zip(placed);
        let mut additions =
            new.map(|((name, file), lease)| rows_of_file(peer, name, **file, lease));
        let max = limits::STORE_FILES_PER_WRITE;
        loop {
            let removes: Vec<String> = removals.by_ref().take(max).flatten().collect();
            let mut puts = Vec::new();
            if removes.is_empty() {
                puts.extend(additions.by_ref().take(max).flatten());
            }
            let is_last = removals.peek().is_none() && additions.len() == 0;
            if is_last {
                puts.push(LeasedRow { key: key.clone(), value: encode(&row), lease });
            }
            let written = self.store.write_if(&key, condition, puts, removes)?;
            if is_last || written.is_none() {
                return Ok(written.map(|version| StoredPeer { row, version }));
            }
        }
    }

    /// Removes a peer. Returns false if its row has another version than `stored`.
    pub(super) fn remove_peer(
        &self,
        peer: PeerId,
        stored: StoredPeer,
        leases: &PeerLeases,
    ) -> Result<bool> {
        let key = peer_key(peer);
        let (condition, removes) = (Condition::Version(stored.version), vec![key.clone()]);
        // Nobody goes on with the leases of a row that is gone. Of one that is somebody else's by
        // now they are theirs.
        let Some(at) = self.store.write_if(&key, condition, vec![], removes)? else {
            return Ok(false);
        };
        self.state().recount(Some(stored.row.files), None);
        // On a full disk no lease ends. The peer is gone all the same, and its leases end once
        // there is room, since nobody keeps them alive.
        for lease in leases.ids() {
            if let Err(error) = self.store.revoke(lease) {
                log::debug!("the rows of peer {peer} stay until their lease ends: {error}");
                break;
            }
        }
        if let Err(error) = self.remove_past(peer, at) {
            // Nobody is shown it, and it may be gone already where the history is short.
            log::debug!("what peer {peer} had is removed, and its past is not: {error}");
        }
        Ok(true)
    }

    /// Removes the tombstones and the past of what a peer had as of a version, and which has gone
    /// with its leases, unless the peer has a row again.
    pub(super) fn remove_past(&self, peer: PeerId, at: Timestamp) -> Result<()> {
        let (key, then) = (peer_key(peer), ReadOptions::at(at));
        let (parts, before) = (self.parts_of(peer, then)?, self.files_of(peer, then)?);
        let (own, _) = self.store.rows(&key, key.as_bytes(), then)?;
        let change = FilesChange { parts, gone: before.iter().collect(), new: Vec::new() };
        let own = own.iter().map(|_| vec![key.clone()]);
        let mut removals = change.removals(peer).chain(own).peekable();
        while removals.peek().is_some() {
            let removes = removals.by_ref().take(limits::STORE_FILES_PER_WRITE).flatten().collect();
            if self.store.write_if(&key, Condition::Absent, vec![], removes)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Grants the first lease of a peer.
    pub(super) fn grant_first(&self) -> Result<LeaseId> {
        let [ttl, _] = lease_ttls(self.silence_timeout);
        self.store.grant(ttl)
    }
}

/// How the rows of a peer's files and downloads change.
pub(super) struct FilesChange<'a> {
    /// The downloads to remove.
    pub parts: Vec<ContentId>,
    /// The files to remove. One that has changed is among them, too.
    pub gone: Vec<(&'a FileName, &'a FoundFile)>,
    pub new: Vec<(&'a FileName, &'a FileRow)>,
}

impl<'a> FilesChange<'a> {
    /// From what was found to what is to be there. A file stays as it is that is put with one of
    /// the peer's leases.
    pub(super) fn between(
        before: &'a FoundFiles,
        after: &'a FileRows,
        leases: &PeerLeases,
    ) -> FilesChange<'a> {
        let stays = |found: &FoundFile, file: &FileRow| {
            found.file == *file && found.lease.is_some_and(|lease| leases.has(lease))
        };
        let is_gone = |(name, found): &(&FileName, &FoundFile)| {
            !after.get(*name).is_some_and(|file| stays(found, file))
        };
        let is_new = |(name, file): &(&FileName, &FileRow)| {
            !before.get(*name).is_some_and(|found| stays(found, file))
        };
        let gone = before.iter().filter(is_gone).collect();
        let new = after.iter().filter(is_new).collect();
        FilesChange { parts: Vec::new(), gone, new }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.parts.is_empty() && self.gone.is_empty() && self.new.is_empty()
    }

    /// The keys to remove, of one download or file each.
    fn removals(&self, peer: PeerId) -> impl Iterator<Item = Vec<String>> {
        let parts = self.parts.iter().map(move |content| keys_of_part(peer, *content).to_vec());
        let gone = self.gone.iter();
        let files =
            gone.map(move |(name, found)| keys_of_file(peer, name, found.file.content).to_vec());
        parts.chain(files)
    }
}

fn file(row: &Row, prefix: &str) -> Option<(FileName, FoundFile)> {
    let name = rest(row, prefix).and_then(|name| FileName::new(name).ok());
    let lease = row.found.as_ref().and_then(|found| found.facts?.lease);
    let found = value(row.value()).map(|file| FoundFile { file, lease });
    name.zip(found)
}
