//! The state of a folder, saved in it so that its files need not be hashed again.
//!
//! The file `.acervo-share` has eight magic bytes, the BLAKE3 hash of the rest, and the rest as
//! MessagePack. It is replaced as a whole, through a new file with a random name that no one can
//! have prepared.
//!
//! Rule: a link, a FIFO or anything else in its place is not read, written through, or replaced. A
//! state that is damaged, of another format, or of another folder (it names the folder's inode) is
//! ignored: then the folder is hashed again and gets a new peer id, since two peers must not have
//! the same.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand::Rng;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::identity::FileIdentity;
use crate::model::{ChunkHash, FileName, PeerId};
use crate::share::content::Manifest;
use crate::share::offer::FileStamp;

/// A larger state file of a folder is neither written nor read. This is enough for the most files
/// that one peer may offer, and for the chunk hashes of 3 TiB of content.
const FOLDER_STATE_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// The name of the state file.
pub const STATE_FILE: &str = ".acervo-share";
/// Prefix and suffix of the name of a new state file, with a random number between them.
const NEW_FILE: (&str, &str) = (".acervo-share.", ".new");
const MAGIC: &[u8; 8] = b"acshare\x02";
const HASH_BYTES: usize = 32;

/// A file and the manifest of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFile {
    pub name: FileName,
    /// The identity that it had when it was hashed.
    pub identity: FileIdentity,
    pub manifest: Manifest,
}

/// The saved state of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderState {
    /// The peer that shares the folder.
    pub peer: PeerId,
    pub inode: u64,
    pub files: Vec<SavedFile>,
}

impl FolderState {
    /// The state of a folder that has not been shared before.
    pub fn new(peer: PeerId, inode: u64) -> FolderState {
        FolderState { peer, inode, files: Vec::new() }
    }
}

/// The serialized form of [`FolderState`].
#[derive(Serialize, Deserialize)]
struct StoredState {
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
    changed_ns: i128,
    inode: u64,
    /// The concatenated chunk hashes.
    hashes: Bytes,
}

/// Whether an entry of the folder is one of this module's files.
pub(super) fn is_own(name: &OsStr) -> bool {
    name == STATE_FILE || is_new_file(name)
}

fn is_new_file(name: &OsStr) -> bool {
    let number =
        name.to_str().and_then(|name| name.strip_prefix(NEW_FILE.0)?.strip_suffix(NEW_FILE.1));
    number.is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Removes new state files that a killed process has left. Only for the holder of the folder's
/// lock.
pub(super) fn clean(folder: &Path) {
    // A file that cannot be removed does no harm.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_new_file(&entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Reads the state of the folder with this inode; `None` if there is none that can be used.
pub fn load(folder: &Path, inode: u64) -> Option<FolderState> {
    let path = folder.join(STATE_FILE);
    let bytes = match read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            log::warn!("{} cannot be read: {error}; every file is hashed again", path.display());
            return None;
        }
    };
    let state = decode(&bytes);
    if state.is_none() {
        log::warn!(
            "{} is damaged or of another release; every file is hashed again",
            path.display()
        );
    }
    state.filter(|state| state.inode == inode)
}

/// Reads the state file, unless it is longer than any that is ever written.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A link is not followed, and a FIFO is not waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => return Err(not_a_file()),
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(not_a_file());
    }
    let length = found.len();
    if length > FOLDER_STATE_BYTES_MAX {
        let message = format!(
            "it is {length} bytes long, and never needs more than {FOLDER_STATE_BYTES_MAX}"
        );
        return Err(io::Error::other(message));
    }
    // Only as much as it was long: one that grows meanwhile is damaged.
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn not_a_file() -> io::Error {
    io::Error::other(format!("{STATE_FILE} is not a regular file; remove it"))
}

/// Saves the state of a folder.
///
/// # Errors
/// The folder cannot be written to.
pub fn save(
    folder: &File,
    peer: PeerId,
    inode: u64,
    files: impl Iterator<Item = (FileName, FileIdentity, Arc<Manifest>)>,
) -> io::Result<()> {
    let bytes = encode(peer, inode, files)?;
    if bytes.len() as u64 > FOLDER_STATE_BYTES_MAX {
        return Err(io::Error::other("it knows too much to keep"));
    }
    match rustix::fs::statat(folder, STATE_FILE, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => {
            return Err(not_a_file());
        }
        Ok(_) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let new = format!("{}{:016x}{}", NEW_FILE.0, rand::rng().next_u64(), NEW_FILE.1);
    // EXCL: nothing that is there already is written through.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o666);
    let mut file = File::from(rustix::fs::openat(folder, &*new, flags, mode)?);
    // Not synced: if a power cut damages the file, the folder is hashed again and no more.
    let written = file
        .write_all(&bytes)
        .and_then(|()| Ok(rustix::fs::renameat(folder, &*new, folder, STATE_FILE)?));
    if written.is_err() {
        // If it cannot be removed, the next process will do so.
        let _ = rustix::fs::unlinkat(folder, &*new, AtFlags::empty());
    }
    written
}

/// Encodes a state file.
///
/// # Errors
/// The state cannot be serialized.
pub fn encode(
    peer: PeerId,
    inode: u64,
    files: impl Iterator<Item = (FileName, FileIdentity, Arc<Manifest>)>,
) -> io::Result<Vec<u8>> {
    let files = files.map(|(name, identity, manifest)| StoredFile {
        name,
        size: identity.stamp.size,
        modified_ns: identity.stamp.modified.map(nanoseconds),
        changed_ns: identity.stamp.changed_ns,
        inode: identity.inode,
        hashes: manifest.chunks().iter().flat_map(|hash| hash.0).collect(),
    });
    let stored = StoredState { peer, inode, files: files.collect() };
    let mut bytes = [&MAGIC[..], &[0; HASH_BYTES]].concat();
    rmp_serde::encode::write(&mut bytes, &stored).map_err(io::Error::other)?;
    let (head, body) = bytes.split_at_mut(MAGIC.len() + HASH_BYTES);
    head[MAGIC.len()..].copy_from_slice(blake3::hash(body).as_bytes());
    Ok(bytes)
}

/// Decodes a state file; `None` if it is damaged or of another release.
pub fn decode(bytes: &[u8]) -> Option<FolderState> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (hash, body) = rest.split_first_chunk::<HASH_BYTES>()?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let StoredState { peer, inode, files } = rmp_serde::from_slice(body).ok()?;
    let files = files.into_iter().map(saved).collect::<Option<Vec<_>>>()?;
    Some(FolderState { peer, inode, files })
}

fn saved(file: StoredFile) -> Option<SavedFile> {
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
    let stamp = FileStamp { size: file.size, modified, changed_ns: file.changed_ns };
    let identity = FileIdentity { stamp, inode: file.inode };
    Some(SavedFile { name: file.name, identity, manifest })
}

fn nanoseconds(time: SystemTime) -> i128 {
    // A duration has fewer than 2⁹⁵ nanoseconds.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Once a sparse file of 50 GB made `share` use 777 MiB of memory.
    #[test]
    fn a_state_file_above_the_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        let file = File::create(&path).unwrap();
        file.set_len(FOLDER_STATE_BYTES_MAX + 1).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("bytes long"), "{error}");
        assert_eq!(load(dir.path(), 1), None);
        file.set_len(1000).unwrap();
        assert_eq!(read(&path).unwrap(), [0; 1000]);
    }
}
