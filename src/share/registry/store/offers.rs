//! Writing what peers have, and taking it away.

use std::net::SocketAddr;
use std::time::Instant;

use super::rows::*;
use super::{FileRows, PeerRow, Result, StoreDirectory};
use crate::client::ReadOptions;
use crate::limits;
use crate::model::{FileName, PeerId};
use crate::share::index::{Member, PeerEndpoint};
use crate::wire::message::Row;

impl StoreDirectory {
    /// Writes a peer's row over the one it has, and says which that was.
    pub(super) fn put_peer(&self, peer: PeerId, row: &PeerRow) -> Result<Option<PeerRow>> {
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
    pub(super) fn files_of(&self, peer: PeerId) -> Result<FileRows> {
        let prefix = files_prefix(peer);
        let mut files = FileRows::new();
        for row in self.rows(&prefix, &end(&prefix), ReadOptions::default())? {
            files.extend(file(&row?, &prefix));
        }
        Ok(files)
    }

    /// What it offers of these names.
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

    /// Takes away what says that a peer serves parts of what it is fetching.
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

    /// Writes what a member offers. `false` when somebody else has written the peer's row meanwhile.
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
        self.with_local_peer(Member { peer, session }, |local| {
            (local.files, local.bytes) = (count, bytes);
            local.joined = Some(Instant::now());
        });
        Ok(previous.is_some_and(|previous| previous.session == session))
    }

    /// Makes a peer's files that were `before` those that are to be.
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

    /// Takes a peer away, if it still is the one that joined in this session, and says where it was.
    pub(super) fn remove_peer(&self, peer: PeerId, session: u64) -> Result<Option<SocketAddr>> {
        let row = self.peer(peer)?.filter(|row| row.session == session);
        let Some(row) = row else { return Ok(None) };
        // Nobody is sent to it any more, however long the rest takes.
        self.put_peer(peer, &PeerRow { offered: false, ..row })?;
        self.remove_parts(peer)?;
        self.write_difference(peer, &self.files_of(peer)?, &FileRows::new())?;
        let removed = self.client.del(peer_key(peer))?.previous;
        if removed.is_some() {
            self.recount(Some(row.files), None);
        }
        Ok(removed.map(|_| row.address))
    }
}

fn borrowed(files: &[(FileName, FileRow)]) -> Vec<(&FileName, FileRow)> {
    files.iter().map(|(name, file)| (name, *file)).collect()
}

/// A row of a peer's files.
fn file(row: &Row, prefix: &str) -> Option<(FileName, FileRow)> {
    let name = rest(row, prefix).and_then(|name| FileName::new(name).ok());
    name.zip(value(row.value.as_ref()))
}
