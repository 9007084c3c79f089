//! Writes and removes the rows of what peers have.
//!
//! Rule: every write is under a version that its writer knows, so that it is in vain if somebody
//! else has the peer by now: what a peer offers is written under the version of its row, and what a
//! peer has left is removed under the version of its cleanup row. Files are written and removed in
//! bounded pieces.
//!
//! A removal only removes, since it must be possible on a full disk.

use super::row_store::{Result, RowStore};
use super::rows::*;
use super::{FileRows, StoreDirectory, TakenOver, total_bytes};
use crate::client::{Condition, ReadOptions};
use crate::limits;
use crate::model::{ContentId, FileName, PeerId, Row, Timestamp, Version};

impl<S: RowStore> StoreDirectory<S> {
    /// Writes a peer's row, and its cleanup row if one is given. Returns `None` if the condition on
    /// the peer's row does not hold.
    pub(super) fn put_peer(
        &self,
        peer: PeerId,
        condition: Condition,
        row: PeerRow,
        cleanup: Option<CleanupRow>,
    ) -> Result<Option<StoredPeer>> {
        let key = peer_key(peer);
        let mut puts = vec![(key.clone(), encode(&row))];
        puts.extend(cleanup.map(|row| (cleanup_key(peer), encode(&row))));
        let written = self.store.write_if(&key, condition, puts, vec![])?;
        Ok(written.map(|version| StoredPeer { row, version }))
    }

    pub(super) fn files_of(&self, peer: PeerId) -> Result<FileRows> {
        let prefix = files_prefix(peer);
        let mut files = FileRows::new();
        for row in self.store.range(&prefix, &end(&prefix), ReadOptions::default())? {
            files.extend(file(&row?, &prefix));
        }
        Ok(files)
    }

    /// The files of a peer with these names.
    pub(super) fn files_named<'a>(
        &self,
        peer: PeerId,
        names: impl Iterator<Item = &'a FileName>,
    ) -> Result<FileRows> {
        let (keys, prefix) = (names.map(|name| file_key(peer, name)), files_prefix(peer));
        Ok(self.store.get_all(keys)?.iter().filter_map(|row| file(row, &prefix)).collect())
    }

    /// The contents that a peer is downloading.
    fn parts_of(&self, peer: PeerId) -> Result<Vec<ContentId>> {
        let prefix = parts_prefix(peer);
        let mut parts = Vec::new();
        for row in self.store.range(&prefix, &end(&prefix), ReadOptions::default())? {
            parts.extend(rest(&row?, &prefix).and_then(content_of));
        }
        Ok(parts)
    }

    /// Writes what a member offers, whose row was taken over. Returns `None` if somebody else has
    /// taken it since.
    pub(super) fn write_join(
        &self,
        peer: PeerId,
        taken: &TakenOver,
        files: &FileRows,
    ) -> Result<Option<StoredPeer>> {
        let StoredPeer { row, version } = taken.stored;
        let (count, bytes) = (files.len() as u64, total_bytes(files));
        let row = PeerRow { offered: true, files: count, bytes, ..row };
        let guard = Guard { key: peer_key(peer), condition: Condition::Version(version) };
        let (parts, before) = (self.parts_of(peer)?, self.files_of(peer)?);
        let change = FilesChange { parts, before: &before, after: files };
        let stored = self.write_files(peer, &guard, &change, Some(&row))?;
        if stored.is_some() {
            self.store.trim(&guard.key)?;
            if taken.is_cleanup_replaced {
                self.store.trim(&cleanup_key(peer))?;
            }
        }
        Ok(stored.map(|version| StoredPeer { row, version }))
    }

    /// Changes what a peer has, and with the last of these writes stores `row` at the guard's key,
    /// or removes that key. Returns the last write's version, or `None` if the guard did not hold
    /// of one of them.
    pub(super) fn write_files(
        &self,
        peer: PeerId,
        guard: &Guard,
        change: &FilesChange<'_>,
        row: Option<&PeerRow>,
    ) -> Result<Option<Timestamp>> {
        let FilesChange { parts, before, after } = change;
        let (gone, new) = (differing(before, after), differing(after, before));
        let parts = parts.iter().map(|content| keys_of_part(peer, *content).to_vec());
        let files = gone.iter().map(|(name, file)| keys_of_file(peer, name, file.content).to_vec());
        // Removed before they are written: what is overwritten would keep its earlier version.
        let mut removals = parts.chain(files).peekable();
        let mut additions = new.iter().map(|(name, file)| rows_of_file(peer, name, *file));
        let max = limits::STORE_FILES_PER_WRITE;
        loop {
            let mut removes: Vec<String> = removals.by_ref().take(max).flatten().collect();
            let mut puts = Vec::new();
            if removes.is_empty() {
                puts.extend(additions.by_ref().take(max).flatten());
            }
            let is_last = removals.peek().is_none() && additions.len() == 0;
            match row {
                _ if !is_last => {}
                Some(row) => puts.push((guard.key.clone(), encode(row))),
                None => removes.push(guard.key.clone()),
            }
            let written = self.store.write_if(&guard.key, guard.condition, puts, removes)?;
            if is_last || written.is_none() {
                return Ok(written);
            }
        }
    }

    /// Removes a peer. Returns false if its row has another version than `stored`.
    pub(super) fn remove_peer(&self, peer: PeerId, stored: StoredPeer) -> Result<bool> {
        self.state().begin_removal(peer);
        let removed = self.remove_rows(peer, stored);
        self.state().end_removal(peer);
        removed
    }

    fn remove_rows(&self, peer: PeerId, stored: StoredPeer) -> Result<bool> {
        // Read before the peer's row is removed: a JOIN after that writes another version of it.
        let cleanup = self.store.get(&cleanup_key(peer))?;
        let key = peer_key(peer);
        let (condition, removes) = (Condition::Version(stored.version), vec![key.clone()]);
        // From here on no one is sent to it, and whoever had its row writes no file under it.
        if self.store.write_if(&key, condition, vec![], removes)?.is_none() {
            return Ok(false);
        }
        self.state().recount(Some(stored.row.files), None);
        self.remove_rest(peer, as_found(cleanup.as_ref()))?;
        Ok(true)
    }

    /// Removes what is left of a peer whose own row is removed, unless it has joined again since.
    pub(super) fn clean_up(&self, peer: PeerId, cleanup: StoredCleanup) -> Result<()> {
        self.state().begin_removal(peer);
        let removed = self.remove_rest(peer, Condition::Version(cleanup.version));
        self.state().end_removal(peer);
        removed
    }

    /// Removes the peer's rows as long as the condition holds of its cleanup row.
    fn remove_rest(&self, peer: PeerId, condition: Condition) -> Result<()> {
        let guard = Guard { key: cleanup_key(peer), condition };
        let (parts, before) = (self.parts_of(peer)?, self.files_of(peer)?);
        let change = FilesChange { parts, before: &before, after: &FileRows::new() };
        self.write_files(peer, &guard, &change, None).map(drop)
    }
}

/// What must hold of a row for a peer's other rows to be written.
pub(super) struct Guard {
    pub key: String,
    pub condition: Condition,
}

/// How the rows of a peer's files and downloads change.
pub(super) struct FilesChange<'a> {
    /// The downloads to remove.
    pub parts: Vec<ContentId>,
    pub before: &'a FileRows,
    pub after: &'a FileRows,
}

/// The condition that a row is as it was found.
pub(super) fn as_found(found: Option<&Version>) -> Condition {
    found.map_or(Condition::Absent, |found| Condition::Version(found.timestamp))
}

/// The files of `a` that `b` does not have alike.
fn differing<'a>(a: &'a FileRows, b: &FileRows) -> Vec<(&'a FileName, FileRow)> {
    let differs = |(name, file): &(&FileName, &FileRow)| b.get(*name) != Some(*file);
    a.iter().filter(differs).map(|(name, file)| (name, *file)).collect()
}

fn file(row: &Row, prefix: &str) -> Option<(FileName, FileRow)> {
    let name = rest(row, prefix).and_then(|name| FileName::new(name).ok());
    name.zip(value(row.value()))
}
