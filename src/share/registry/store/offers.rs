//! Writes and removes the rows of what peers have.
//!
//! Rule: every write is under the version that the peer's row has for whoever writes, so that it is
//! in vain if the row was changed meanwhile. A peer's row is written before any of its files and
//! removed with the last of them, and files are written in bounded pieces.

use super::row_store::{Result, RowStore};
use super::rows::*;
use super::{FileRows, StoreDirectory, total_bytes};
use crate::client::{Condition, ReadOptions};
use crate::limits;
use crate::model::{FileName, PeerId, Row, Timestamp};

impl<S: RowStore> StoreDirectory<S> {
    /// Writes a peer's row. Returns `None` if the condition on it does not hold.
    pub(super) fn put_peer(
        &self,
        peer: PeerId,
        condition: Condition,
        row: PeerRow,
    ) -> Result<Option<StoredPeer>> {
        let key = peer_key(peer);
        let puts = vec![(key.clone(), encode(&row))];
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

    /// The keys of the contents that a peer is downloading.
    fn part_keys(&self, peer: PeerId) -> Result<Vec<String>> {
        let prefix = parts_prefix(peer);
        let mut keys = Vec::new();
        for row in self.store.range(&prefix, &end(&prefix), ReadOptions::default())? {
            let row = row?;
            if let Some(content) = rest(&row, &prefix) {
                keys.push(format!("share/content/{content}/{peer}/"));
                keys.push(format!("{prefix}{content}"));
            }
        }
        Ok(keys)
    }

    /// Writes what a member offers, whose row was taken over as `taken`. Returns `None` if somebody
    /// else has taken it since.
    pub(super) fn write_join(
        &self,
        peer: PeerId,
        taken: StoredPeer,
        files: &FileRows,
    ) -> Result<Option<StoredPeer>> {
        let (count, bytes) = (files.len() as u64, total_bytes(files));
        let row = PeerRow { offered: true, files: count, bytes, ..taken.row };
        let (parts, before) = (self.part_keys(peer)?, self.files_of(peer)?);
        let stored = self.write_files(peer, taken.version, parts, &before, files, Some(row))?;
        if stored.is_some() {
            self.store.trim(&peer_key(peer))?;
        }
        Ok(stored.map(|version| StoredPeer { row, version }))
    }

    /// Removes `also`, changes a peer's files from `before` to `after`, and with the last of these
    /// writes its row to `row`, or removes it. Returns the last write's version, or `None` if the
    /// peer's row has another version than `version` before the last.
    pub(super) fn write_files(
        &self,
        peer: PeerId,
        version: Timestamp,
        mut also: Vec<String>,
        before: &FileRows,
        after: &FileRows,
        row: Option<PeerRow>,
    ) -> Result<Option<Timestamp>> {
        let (gone, new) = (differing(before, after), differing(after, before));
        // Removed before they are written: what is overwritten would keep its earlier version.
        let max = limits::STORE_FILES_PER_WRITE;
        let removals = gone.chunks(max).map(|files| (files, false));
        let mut pieces = removals.chain(new.chunks(max).map(|files| (files, true))).peekable();
        let key = peer_key(peer);
        loop {
            let (files, stored) = pieces.next().unwrap_or_default();
            let (mut puts, mut removes) = (Vec::new(), std::mem::take(&mut also));
            for (name, file) in files {
                match stored {
                    true => puts.extend(rows_of_file(peer, name, *file)),
                    false => removes.extend(keys_of_file(peer, name, file.content)),
                }
            }
            let is_last = pieces.peek().is_none();
            match row {
                _ if !is_last => {}
                Some(row) => puts.push((key.clone(), encode(&row))),
                None => removes.push(key.clone()),
            }
            let written = self.store.write_if(&key, Condition::Version(version), puts, removes)?;
            if is_last || written.is_none() {
                return Ok(written);
            }
        }
    }

    /// Removes a peer. Returns false if its row has another version than `stored`, or if another
    /// thread is removing it.
    pub(super) fn remove_peer(&self, peer: PeerId, stored: StoredPeer) -> Result<bool> {
        if !self.state().begin_removal(peer) {
            return Ok(false);
        }
        let removed = self.remove_rows(peer, stored);
        self.state().end_removal(peer);
        removed
    }

    fn remove_rows(&self, peer: PeerId, stored: StoredPeer) -> Result<bool> {
        // From here on no one is sent to it, and whoever had its row writes no file under it.
        let hidden = PeerRow { offered: false, ..stored.row };
        let Some(hidden) = self.put_peer(peer, Condition::Version(stored.version), hidden)? else {
            return Ok(false);
        };
        let (parts, files) = (self.part_keys(peer)?, self.files_of(peer)?);
        let none = FileRows::new();
        let removed = self.write_files(peer, hidden.version, parts, &files, &none, None)?;
        if removed.is_some() {
            self.state().recount(Some(stored.row.files), None);
        }
        Ok(removed.is_some())
    }
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
