//! What is known of a folder's files, kept in the folder so that they are hashed once.
//!
//! The file `.acervo-share`: eight bytes that say what it is, the BLAKE3 hash of the rest, and the rest
//! as MessagePack. It is replaced as a whole. One that is damaged, of another format, or that came with
//! a copy of another folder (it names the folder's inode) is ignored: the folder is hashed again and gets
//! another peer's id, for a peer is its id and two must not have the same.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Look;
use crate::limits::FOLDER_STATE_BYTES_MAX;
use crate::share::content::Manifest;
use crate::share::names::FileName;
use crate::share::offer::FileStamp;
use crate::share::types::{ChunkHash, PeerId};

/// The file's name in the folder.
pub const STATE_FILE: &str = ".acervo-share";
const NEW_STATE_FILE: &str = ".acervo-share.new";
const MAGIC: &[u8; 8] = b"acshare\x01";
const HASH_BYTES: usize = 32;

/// A file as it was hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its name.
    pub name: FileName,
    /// What it looked like.
    pub look: Look,
    /// What was in it.
    pub manifest: Manifest,
}

/// What is known of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Who shares it.
    pub peer: PeerId,
    /// The folder's inode.
    pub inode: u64,
    /// The files.
    pub files: Vec<Saved>,
}

impl State {
    /// Nothing is known yet.
    pub fn new(peer: PeerId, inode: u64) -> State {
        State { peer, inode, files: Vec::new() }
    }
}

/// How it is written.
#[derive(Serialize, Deserialize)]
struct Stored {
    peer: PeerId,
    inode: u64,
    files: Vec<StoredFile>,
}

#[derive(Serialize, Deserialize)]
struct StoredFile {
    name: FileName,
    size: u64,
    /// Nanoseconds since the Unix epoch.
    modified_ns: Option<i128>,
    inode: u64,
    /// The chunk hashes, one after the other.
    hashes: Bytes,
}

/// Reads what is known of the folder with this inode; `None` when that is nothing.
pub fn load(folder: &Path, inode: u64) -> Option<State> {
    let path = folder.join(STATE_FILE);
    let mut bytes = Vec::new();
    let file = File::open(&path).ok()?;
    if let Err(error) = file.take(FOLDER_STATE_BYTES_MAX + 1).read_to_end(&mut bytes) {
        log::warn!("{} cannot be read: {error}; every file is hashed again", path.display());
        return None;
    }
    let state = decode(&bytes);
    if state.is_none() {
        log::warn!(
            "{} is damaged or of another release; every file is hashed again",
            path.display()
        );
    }
    state.filter(|state| state.inode == inode)
}

/// Writes what is known.
///
/// # Errors
/// The folder cannot be written to.
pub fn save(
    folder: &Path,
    peer: PeerId,
    inode: u64,
    files: impl Iterator<Item = (FileName, Look, Arc<Manifest>)>,
) -> io::Result<()> {
    let files = files.map(|(name, look, manifest)| StoredFile {
        name,
        size: look.stamp.size,
        modified_ns: look.stamp.modified.map(nanoseconds),
        inode: look.inode,
        hashes: manifest.chunks().iter().flat_map(|hash| hash.0).collect(),
    });
    let stored = Stored { peer, inode, files: files.collect() };
    let body = rmp_serde::to_vec(&stored).map_err(io::Error::other)?;
    if (MAGIC.len() + HASH_BYTES + body.len()) as u64 > FOLDER_STATE_BYTES_MAX {
        return Err(io::Error::other("it knows too much to keep"));
    }
    let new = folder.join(NEW_STATE_FILE);
    let mut file = File::create(&new)?;
    file.write_all(MAGIC)?;
    file.write_all(blake3::hash(&body).as_bytes())?;
    file.write_all(&body)?;
    drop(file);
    // Not synced: after a power cut a damaged file costs another hashing and no more.
    fs::rename(&new, folder.join(STATE_FILE))
}

fn decode(bytes: &[u8]) -> Option<State> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (hash, body) = rest.split_first_chunk::<HASH_BYTES>()?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let Stored { peer, inode, files } = rmp_serde::from_slice(body).ok()?;
    let files = files.into_iter().map(saved).collect::<Option<Vec<_>>>()?;
    Some(State { peer, inode, files })
}

fn saved(file: StoredFile) -> Option<Saved> {
    let (hashes, rest) = file.hashes.as_chunks::<32>();
    if !rest.is_empty() {
        return None;
    }
    let manifest =
        Manifest::new(file.size, hashes.iter().copied().map(ChunkHash).collect()).ok()?;
    let modified = match file.modified_ns {
        Some(nanoseconds) => Some(time(nanoseconds)?),
        None => None,
    };
    let look = Look { stamp: FileStamp { size: file.size, modified }, inode: file.inode };
    Some(Saved { name: file.name, look, manifest })
}

fn nanoseconds(time: SystemTime) -> i128 {
    // A Duration's nanoseconds are far below the type's limit.
    let signed = |duration: Duration| duration.as_nanos() as i128;
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => signed(since),
        Err(before) => -signed(before.duration()),
    }
}

fn time(nanoseconds: i128) -> Option<SystemTime> {
    const SECOND: u128 = 1_000_000_000;
    let (seconds, rest) =
        (nanoseconds.unsigned_abs() / SECOND, nanoseconds.unsigned_abs() % SECOND);
    let distance = Duration::new(u64::try_from(seconds).ok()?, rest as u32);
    if nanoseconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    }
}
