//! A directory in the replicated store, so that several registries serve one index and none of them is a
//! single point of failure.
//!
//! | key | value |
//! | --- | --- |
//! | `share/peer/ID` | where the peer serves, its session, how many files and bytes |
//! | `share/lease/ID` | the peer's session; the row's own version is when it was heard |
//! | `share/file/ID/NAME` | size and content |
//! | `share/name/NAME\0ID` | address, size and content |
//! | `share/content/HASH/ID/NAME` | address and size; NAME is empty while the peer is fetching it |
//!
//! Ids and hashes are in hexadecimal; no name has a control character, so `\0` ends one and sorts before
//! all that could follow. Every question is one range.
//!
//! Time is the store's: a lease is as old as its row's version, which the group's leader stamped, and now
//! is the newest version this registry has seen, plus what has passed since. The registries' own clocks
//! may differ as they like.
//!
//! A JOIN or UPDATE of many files is several writes. Whoever asks in between sees a part of them; a
//! registry that dies in between leaves that part until the peer joins anew, elsewhere, or its lease runs out.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::directory::{Directory, DirectoryError};
use crate::Client;
use crate::client::ReadOptions;
use crate::limits;
use crate::share::index::{IndexError, Member, most_offered_first};
use crate::share::names::FileName;
use crate::share::types::{ContentId, FileEntry, PeerId};
use crate::types::Timestamp;
use crate::wire::message::Row;
use crate::wire::share::{FileSummary, PeerSummary, Source};

#[derive(Serialize, Deserialize)]
struct PeerRow {
    address: SocketAddr,
    session: u64,
    files: u64,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct LeaseRow {
    session: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct FileRow {
    size: u64,
    content: ContentId,
}

#[derive(Serialize, Deserialize)]
struct NameRow {
    address: SocketAddr,
    size: u64,
    content: ContentId,
}

#[derive(Serialize, Deserialize)]
struct ContentRow {
    address: SocketAddr,
    size: u64,
}

/// The directory. All registries of one store see the same.
pub struct StoreDirectory {
    client: Client,
    /// The newest version seen, and when.
    seen: Mutex<(Timestamp, Instant)>,
    /// When silent peers were last looked for.
    looked: Mutex<Option<Instant>>,
}

type Result<T> = std::result::Result<T, DirectoryError>;

const PEERS: &str = "share/peer/";
const LEASES: &str = "share/lease/";
const NAMES: &str = "share/name/";

/// Where the keys with a prefix end: no UTF-8 has this byte.
fn end(prefix: &str) -> Vec<u8> {
    [prefix.as_bytes(), &[0xff]].concat()
}

fn peer_key(peer: PeerId) -> String {
    format!("{PEERS}{peer}")
}

fn lease_key(peer: PeerId) -> String {
    format!("{LEASES}{peer}")
}

fn file_key(peer: PeerId, name: &str) -> String {
    format!("share/file/{peer}/{name}")
}

fn name_key(name: &FileName, peer: PeerId) -> String {
    format!("{NAMES}{name}\0{peer}")
}

fn content_key(content: ContentId, peer: PeerId, name: &str) -> String {
    format!("share/content/{content}/{peer}/{name}")
}

/// The last part of a key, behind `prefix`; nothing for a key that is not ours.
fn rest<'a>(row: &'a Row, prefix: &str) -> Option<&'a str> {
    std::str::from_utf8(&row.key).ok()?.strip_prefix(prefix)
}

fn peer_of(hex: &str) -> Option<PeerId> {
    u64::from_str_radix(hex, 16).ok().map(PeerId)
}

/// A row's value; nothing for one that somebody else has written.
fn value<T: DeserializeOwned>(value: Option<&Bytes>) -> Option<T> {
    rmp_serde::from_slice(value?).ok()
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // Writing MessagePack into memory cannot fail for types without maps of unknown length.
    rmp_serde::to_vec(value).unwrap_or_default()
}

impl StoreDirectory {
    /// A directory in the store that `client` speaks to.
    pub fn new(client: Client) -> StoreDirectory {
        let seen = Mutex::new((Timestamp::ZERO, Instant::now()));
        StoreDirectory { client, seen, looked: Mutex::new(None) }
    }

    /// Remembers how late it is in the store.
    fn see(&self, timestamp: Timestamp) {
        let mut seen = lock(&self.seen);
        if timestamp > seen.0 {
            *seen = (timestamp, Instant::now());
        }
    }

    /// How long ago, in the store's time, this version was made.
    fn age(&self, version: Timestamp) -> Duration {
        let (newest, at) = *lock(&self.seen);
        let behind = newest.0.saturating_sub(version.0).max(0) as u64;
        Duration::from_micros(behind) + at.elapsed()
    }

    fn rows(&self, from: &str, to: &[u8]) -> Result<impl Iterator<Item = Result<Row>>> {
        let rows = self.client.range(from, to, ReadOptions::default())?;
        Ok(rows.map(|row| {
            let row = row?;
            self.see(row.timestamp);
            Ok(row)
        }))
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        Ok(value(self.client.get(key)?.value.as_ref()))
    }

    /// Where the member serves, if it is still one.
    fn member(&self, member: Member) -> Result<Option<PeerRow>> {
        let row: Option<PeerRow> = self.get(&peer_key(member.peer))?;
        Ok(row.filter(|row| row.session == member.session))
    }

    fn put_all(&self, mut rows: Vec<(String, Vec<u8>)>) -> Result<()> {
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(limits::STORE_ROWS_PER_WRITE));
            self.see(self.client.put_all(rows)?.timestamp);
            rows = rest;
        }
        Ok(())
    }

    fn del_all(&self, mut keys: Vec<String>) -> Result<()> {
        while !keys.is_empty() {
            let rest = keys.split_off(keys.len().min(limits::STORE_ROWS_PER_WRITE));
            self.see(self.client.del_all(keys)?.timestamp);
            keys = rest;
        }
        Ok(())
    }

    /// What a peer offers, by name.
    fn files_of(&self, peer: PeerId) -> Result<HashMap<String, FileRow>> {
        let prefix = file_key(peer, "");
        let mut files = HashMap::new();
        for row in self.rows(&prefix, &end(&prefix))? {
            let row = row?;
            if let (Some(name), Some(file)) = (rest(&row, &prefix), value(row.value.as_ref())) {
                files.insert(name.to_owned(), file);
            }
        }
        Ok(files)
    }

    /// Takes rows of files away, apart from those that are about to be written again.
    fn remove_files(
        &self,
        peer: PeerId,
        gone: &HashMap<String, FileRow>,
        stays: &HashMap<&str, ContentId>,
    ) -> Result<()> {
        let mut keys = Vec::new();
        for (name, file) in gone {
            let kept = stays.get(name.as_str());
            if kept != Some(&file.content) {
                keys.push(content_key(file.content, peer, name));
            }
            if kept.is_none()
                && let Ok(file_name) = FileName::new(name)
            {
                keys.push(file_key(peer, name));
                keys.push(name_key(&file_name, peer));
            }
        }
        self.del_all(keys)
    }

    fn put_files(&self, peer: PeerId, address: SocketAddr, files: &[FileEntry]) -> Result<()> {
        let mut rows = Vec::with_capacity(3 * files.len());
        for FileEntry { name, size, content } in files {
            let (size, content) = (*size, *content);
            rows.push((file_key(peer, name.as_str()), encode(&FileRow { size, content })));
            rows.push((name_key(name, peer), encode(&NameRow { address, size, content })));
            let row = encode(&ContentRow { address, size });
            rows.push((content_key(content, peer, name.as_str()), row));
        }
        self.put_all(rows)
    }

    fn put_peer(&self, peer: PeerId, row: &PeerRow) -> Result<()> {
        let lease = encode(&LeaseRow { session: row.session });
        self.put_all(vec![(peer_key(peer), encode(row)), (lease_key(peer), lease)])
    }

    fn remove_peer(&self, peer: PeerId) -> Result<()> {
        self.del_all(vec![peer_key(peer), lease_key(peer)])?;
        self.remove_files(peer, &self.files_of(peer)?, &HashMap::new())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn contents(files: &[FileEntry]) -> HashMap<&str, ContentId> {
    files.iter().map(|file| (file.name.as_str(), file.content)).collect()
}

impl Directory for StoreDirectory {
    fn join(&self, member: Member, address: SocketAddr, files: Vec<FileEntry>) -> Result<()> {
        let Member { peer, session } = member;
        self.remove_files(peer, &self.files_of(peer)?, &contents(&files))?;
        self.put_files(peer, address, &files)?;
        let bytes = files.iter().map(|file| file.size).sum();
        self.put_peer(peer, &PeerRow { address, session, files: files.len() as u64, bytes })
    }

    fn update(&self, member: Member, added: Vec<FileEntry>, removed: &[FileName]) -> Result<bool> {
        let Some(row) = self.member(member)? else { return Ok(false) };
        let mut files = self.files_of(member.peer)?;
        let fresh = contents(&added);
        let named = |name: &str| fresh.contains_key(name);
        let gone: HashMap<String, FileRow> = files
            .extract_if(|name, _| named(name) || removed.iter().any(|r| r.as_str() == name))
            .collect();
        let max = limits::FILES_PER_PEER_MAX;
        if files.len() + fresh.len() > max {
            return Err(IndexError::FilesOfPeer(max).into());
        }
        self.remove_files(member.peer, &gone, &fresh)?;
        self.put_files(member.peer, row.address, &added)?;
        let bytes = files.values().map(|file| file.size).chain(added.iter().map(|f| f.size)).sum();
        let count = (files.len() + fresh.len()) as u64;
        self.put_peer(member.peer, &PeerRow { files: count, bytes, ..row })?;
        Ok(true)
    }

    fn fetching(&self, member: Member, content: ContentId, size: u64) -> Result<bool> {
        let Some(PeerRow { address, .. }) = self.member(member)? else { return Ok(false) };
        let key = content_key(content, member.peer, "");
        self.put_all(vec![(key, encode(&ContentRow { address, size }))])?;
        Ok(true)
    }

    fn fetched(&self, member: Member, content: ContentId) -> Result<bool> {
        let known = self.member(member)?.is_some();
        if known {
            self.del_all(vec![content_key(content, member.peer, "")])?;
        }
        Ok(known)
    }

    fn hear(&self, member: Member) -> Result<bool> {
        if self.member(member)?.is_none() {
            return Ok(false);
        }
        let key = lease_key(member.peer);
        let lease = encode(&LeaseRow { session: member.session });
        let done = self.client.put(&key, lease)?;
        self.see(done.timestamp);
        // Nobody asks for a lease of the past.
        if done.timestamp.0 % i64::from(limits::LEASES_PER_TRIM) == 0 {
            self.client.trim(&key)?;
        }
        Ok(true)
    }

    fn leave(&self, member: Member) -> Result<()> {
        if self.member(member)?.is_some() {
            self.remove_peer(member.peer)?;
        }
        Ok(())
    }

    fn expire(&self, timeout: Duration) -> Result<Vec<(PeerId, SocketAddr)>> {
        let mut looked = lock(&self.looked);
        // Each look reads every lease.
        if looked.is_some_and(|at| at.elapsed() < timeout / 4) {
            return Ok(Vec::new());
        }
        *looked = Some(Instant::now());
        drop(looked);
        let mut silent = Vec::new();
        let leases: Vec<Row> = self.rows(LEASES, &end(LEASES))?.collect::<Result<_>>()?;
        for row in leases.iter().filter(|row| self.age(row.timestamp) > timeout) {
            if let Some(peer) = rest(row, LEASES).and_then(peer_of) {
                let known: Option<PeerRow> = self.get(&peer_key(peer))?;
                self.remove_peer(peer)?;
                silent.extend(known.map(|known| (peer, known.address)));
            }
        }
        Ok(silent)
    }

    fn search(&self, name: &FileName) -> Result<Vec<Source>> {
        let prefix = format!("{NAMES}{name}\0");
        let mut sources = Vec::new();
        for row in self.rows(&prefix, &end(&prefix))? {
            let row = row?;
            let peer = rest(&row, &prefix).and_then(peer_of);
            if let (Some(peer), Some(NameRow { address, size, content })) =
                (peer, value(row.value.as_ref()))
            {
                sources.push(Source { peer, address, size, content });
            }
        }
        Ok(most_offered_first(sources))
    }

    fn sources_of(&self, content: ContentId) -> Result<Vec<Source>> {
        let prefix = format!("share/content/{content}/");
        // By peer, whether it has it whole: a peer may have it under several names.
        let mut found: BTreeMap<PeerId, (bool, Source)> = BTreeMap::new();
        for row in self.rows(&prefix, &end(&prefix))? {
            let row = row?;
            let place = rest(&row, &prefix).and_then(|rest| rest.split_once('/'));
            let place = place.and_then(|(peer, name)| Some((peer_of(peer)?, !name.is_empty())));
            if let (Some((peer, whole)), Some(ContentRow { address, size })) =
                (place, value(row.value.as_ref()))
            {
                let source = Source { peer, address, size, content };
                let entry = found.entry(peer).or_insert((whole, source));
                entry.0 |= whole;
            }
        }
        let (whole, parts): (Vec<_>, Vec<_>) = found.into_values().partition(|(whole, _)| *whole);
        let sources = whole.into_iter().chain(parts).map(|(_, source)| source);
        Ok(sources.take(limits::SOURCES_PER_ANSWER_MAX).collect())
    }

    fn peers(&self, after: Option<PeerId>) -> Result<(Vec<PeerSummary>, bool)> {
        let from = after.map_or(PEERS.to_owned(), |peer| format!("{}\u{1}", peer_key(peer)));
        let mut page = Vec::new();
        for row in self.rows(&from, &end(PEERS))? {
            let row = row?;
            if page.len() >= limits::LIST_ROWS_MAX {
                return Ok((page, true));
            }
            let peer = rest(&row, PEERS).and_then(peer_of);
            if let (Some(peer), Some(PeerRow { address, files, bytes, .. })) =
                (peer, value(row.value.as_ref()))
            {
                let lease = self.client.get(lease_key(peer))?;
                self.see(lease.timestamp);
                let silent_ms = self.age(lease.timestamp).as_millis() as u64;
                page.push(PeerSummary { peer, address, files, bytes, silent_ms });
            }
        }
        Ok((page, false))
    }

    fn files(&self, after: Option<&FileName>) -> Result<(Vec<FileSummary>, bool)> {
        let from = after.map_or(NAMES.to_owned(), |name| format!("{NAMES}{name}\u{1}"));
        let mut page: Vec<FileSummary> = Vec::new();
        let mut name: Option<FileName> = None;
        let mut holders: BTreeMap<(ContentId, u64), u32> = BTreeMap::new();
        for row in self.rows(&from, &end(NAMES))? {
            let row = row?;
            let of = rest(&row, NAMES).and_then(|rest| rest.split_once('\0'));
            let of = of.and_then(|(name, _)| FileName::new(name).ok());
            let (Some(of), Some(NameRow { size, content, .. })) = (of, value(row.value.as_ref()))
            else {
                continue;
            };
            if name.as_ref() != Some(&of) {
                list(name.replace(of), std::mem::take(&mut holders), &mut page);
                if page.len() >= limits::LIST_ROWS_MAX {
                    return Ok((page, true));
                }
            }
            *holders.entry((content, size)).or_default() += 1;
        }
        list(name, holders, &mut page);
        Ok((page, false))
    }
}

/// The rows of one name, the most offered contents first.
fn list(
    name: Option<FileName>,
    holders: BTreeMap<(ContentId, u64), u32>,
    page: &mut Vec<FileSummary>,
) {
    let Some(name) = name else { return };
    let mut rows: Vec<_> = holders.into_iter().collect();
    rows.sort_by_key(|(_, peers)| std::cmp::Reverse(*peers));
    rows.truncate(limits::CONTENTS_PER_NAME_LISTED_MAX);
    page.extend(rows.into_iter().map(|((content, size), peers)| FileSummary {
        file: FileEntry { name: name.clone(), size, content },
        peers,
    }));
}
