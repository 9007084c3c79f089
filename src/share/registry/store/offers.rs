//! Writes and removes the rows of what peers have.
//!
//! Rule: a peer's row is written before any of its files and removed after all of them, and files
//! are written in bounded pieces.

use std::net::SocketAddr;
use std::time::Instant;

use super::rows::*;
use super::{FileRows, PeerRow, Result, StoreDirectory};
use crate::client::ReadOptions;
use crate::limits;
use crate::model::{FileName, PeerId, Row};
use crate::share::index::{Member, PeerEndpoint};

impl StoreDirectory {
    /// Overwrites a peer's row, and returns the previous one.
    pub(super) fn put_peer(&self, peer: PeerId, row: &PeerRow) -> Result<Option<PeerRow>> {
        let key = peer_key(peer);
        let previous = self.client.replace(&key, encode(row))?.previous;
        if previous.is_some() {
            self.client.trim(&key)?;
        }
        Ok(value(previous.as_ref().map(|version| &version.value)))
    }

    /// Writes or removes the rows of files, a bounded number at once.
    fn write_files(
        &self,
        peer: PeerId,
        files: &[(&FileName, FileRow)],
        write: impl Fn(&[(&FileName, FileRow)]) -> Result<()>,
    ) -> Result<()> {
        for files in files.chunks(limits::STORE_FILES_PER_WRITE) {
            write(files)?;
            // The log accepts writes faster than the servers apply them. A read waits until this
            // write is applied, so that a long list does not fill the queues that the writes of
            // others go through.
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

    pub(super) fn files_of(&self, peer: PeerId) -> Result<FileRows> {
        let prefix = files_prefix(peer);
        let mut files = FileRows::new();
        for row in self.rows(&prefix, &end(&prefix), ReadOptions::default())? {
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
        let mut files = FileRows::new();
        for row in self.client.get_all(keys, ReadOptions::default())? {
            files.extend(file(&row?, &prefix));
        }
        Ok(files)
    }

    /// Removes the rows of the contents that a peer is downloading.
    pub(super) fn remove_parts(&self, peer: PeerId) -> Result<()> {
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

    /// Writes what a member offers. Returns false if somebody else has written the peer's row
    /// meanwhile.
    pub(super) fn write_join(
        &self,
        Member { peer, session }: Member,
        PeerEndpoint { address, key, .. }: PeerEndpoint,
        known: Option<PeerRow>,
        files: &FileRows,
    ) -> Result<bool> {
        let fresh = PeerRow {
            address,
            session,
            key,
            registry: self.id,
            offered: false,
            files: 0,
            bytes: 0,
        };
        // A peer that comes back to the same address stays offered during the JOIN.
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
        // Files that are read from now on include all that were written before. Whoever is removing
        // this peer has either finished, or will remove the row that was just written as well.
        self.remove_parts(peer)?;
        self.write_difference(peer, &self.files_of(peer)?, files)?;
        let (count, bytes) = (files.len() as u64, files.values().map(|file| file.size));
        let bytes = bytes.fold(0, u64::saturating_add);
        let row = PeerRow { offered: true, files: count, bytes, ..fresh };
        let previous = self.put_peer(peer, &row)?;
        let (joined, now) = (Instant::now(), self.now());
        self.state().end_join(Member { peer, session }, (count, bytes), joined, now);
        Ok(previous.is_some_and(|previous| previous.session == session))
    }

    /// Changes a peer's files from `before` to `files`.
    pub(super) fn write_difference(
        &self,
        peer: PeerId,
        before: &FileRows,
        files: &FileRows,
    ) -> Result<()> {
        let differ = |a: &FileRows, b: &FileRows| -> Vec<(FileName, FileRow)> {
            let differs = |(name, file): &(&FileName, &FileRow)| b.get(*name) != Some(*file);
            a.iter().filter(differs).map(|(name, file)| (name.clone(), *file)).collect()
        };
        let (gone, new) = (differ(before, files), differ(files, before));
        self.remove_files(peer, &borrowed(&gone))?;
        self.put_files(peer, &borrowed(&new))
    }

    /// Removes a peer, if it still has this session, and returns its address.
    pub(super) fn remove_peer(&self, peer: PeerId, session: u64) -> Result<Option<SocketAddr>> {
        let row = self.peer(peer)?.filter(|row| row.session == session);
        let Some(row) = row else { return Ok(None) };
        // First of all no one is sent to it any more, however long the rest takes.
        self.put_peer(peer, &PeerRow { offered: false, ..row })?;
        self.remove_parts(peer)?;
        self.write_difference(peer, &self.files_of(peer)?, &FileRows::new())?;
        let removed = self.client.del(peer_key(peer))?.previous;
        if removed.is_some() {
            self.state().recount(Some(row.files), None);
        }
        Ok(removed.map(|_| row.address))
    }
}

fn borrowed(files: &[(FileName, FileRow)]) -> Vec<(&FileName, FileRow)> {
    files.iter().map(|(name, file)| (name, *file)).collect()
}

fn file(row: &Row, prefix: &str) -> Option<(FileName, FileRow)> {
    let name = rest(row, prefix).and_then(|name| FileName::new(name).ok());
    name.zip(value(row.value.as_ref()))
}
