//! A partial file on the disk: its identification, its lock, its space, and the steps by which it
//! is published.
//!
//! Rule: each method is one step whose effect on the disk is complete when it returns. The order of
//! the steps is the affair of `Part`.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;

use super::names::{claim_name, descriptor_path, is_at, is_first_name, link, remove_ours};
use crate::model::{ContentId, FileName};
use crate::net::BUFFER_ALIGNMENT;
use crate::share::fetch::api::{FetchError, KeptPart};

/// The unit of direct I/O, and the length of the trailer.
pub(super) const BLOCK_BYTES: usize = BUFFER_ALIGNMENT;
const MAGIC: &[u8; 16] = b"acervo part v1\r\n";
/// The number of bytes that are allocated in one call, 64 MiB: while it runs the file is locked,
/// and chunks cannot be written.
const ALLOCATE_BYTES: u64 = 64 << 20;

/// The content that a partial file belongs to, stored in its last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The content's length in bytes.
    pub size: u64,
    pub content: ContentId,
}

impl Trailer {
    /// The bytes of the trailer.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut fields = MAGIC.to_vec();
        fields.extend_from_slice(&self.size.to_le_bytes());
        fields.extend_from_slice(&self.content.0);
        fields.extend_from_slice(blake3::hash(&fields).as_bytes());
        block[..fields.len()].copy_from_slice(&fields);
        block
    }

    /// Parses a trailer. `None` if any byte differs from what [`Trailer::encode`] would write.
    pub fn decode(bytes: &[u8]) -> Option<Trailer> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (size, rest) = rest.split_first_chunk()?;
        let (content, _) = rest.split_first_chunk()?;
        let trailer = Trailer { size: u64::from_le_bytes(*size), content: ContentId(*content) };
        (trailer.encode() == bytes).then_some(trailer)
    }
}

/// A partial file and its names.
#[derive(Debug)]
pub(super) struct PartFile {
    pub folder: PathBuf,
    pub path: PathBuf,
    pub whole: PathBuf,
    pub claim: PathBuf,
    /// The descriptor that holds the lock. It is read-only where possible, so that the system can
    /// tell whether anybody else has the file open for writing.
    pub file: Arc<File>,
    pub may_write: bool,
    pub trailer: Trailer,
}

/// The lock is given back, not only closed: a process that another thread is just starting has a
/// copy of every descriptor, and so of every lock, until it runs its program.
impl Drop for PartFile {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// Gives back the lock of the file, if it has one.
pub(super) fn unlock(file: &File) {
    if let Err(error) = rustix::fs::flock(file, FlockOperation::Unlock) {
        log::debug!("a partial file is unlocked when its descriptor is closed: {error}");
    }
}

impl PartFile {
    /// # Errors
    /// The system refuses another descriptor.
    pub fn new(
        writable: &File,
        folder: &Path,
        path: &Path,
        name: &FileName,
        trailer: Trailer,
    ) -> io::Result<PartFile> {
        let reading = open_again(writable, OFlags::RDONLY);
        let (file, may_write) = match reading {
            Ok(file) => (file, false),
            // This process cannot reach its open files under /proc.
            Err(_) => (writable.try_clone()?, true),
        };
        Ok(PartFile {
            folder: folder.to_owned(),
            path: path.to_owned(),
            whole: folder.join(name.as_str()),
            claim: folder.join(claim_name(name, trailer.content)),
            file: Arc::new(file),
            may_write,
            trailer,
        })
    }

    /// Removes the random name under which a partial file was created, if its process was killed
    /// before it could.
    pub fn remove_first_name(&self) {
        if self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 1) {
            // If the folder cannot be listed, a hidden name remains, which costs nothing.
            for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
                if is_first_name(&entry.file_name()) {
                    remove_ours(&self.file, &entry.path());
                }
            }
        }
    }

    /// Locks the file. On some file systems only a writable descriptor can have a lock; then the
    /// lock is taken through `writable`.
    pub fn lock(&mut self, writable: &File) -> Result<(), FetchError> {
        let lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
        let mut locked = lock(&self.file);
        if locked == Err(Errno::BADF) {
            // A file system on another machine.
            let file = writable.try_clone().map_err(|source| disk(&self.path, source))?;
            locked = lock(&file);
            (self.file, self.may_write) = (Arc::new(file), true);
        }
        match locked {
            // A file system without locks: a second download of the file is not noticed. Both write
            // the same verified bytes to the same places, and nothing beyond the content once it is
            // published.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(FetchError::UnderWay(self.path.clone())),
            Err(error) => Err(FetchError::Folder { path: self.path.clone(), source: error.into() }),
        }
    }

    /// The offset of the trailer.
    pub fn trailer_at(&self) -> u64 {
        self.trailer.size.next_multiple_of(BLOCK_BYTES as u64)
    }

    pub fn length(&self) -> u64 {
        self.trailer_at() + BLOCK_BYTES as u64
    }

    /// Whether it is a partial file of this content: by its trailer or, if that has been cut off,
    /// by its claim.
    pub fn is_ours(&self) -> Result<bool, FetchError> {
        let failed = |source| disk(&self.path, source);
        let metadata = self.file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Ok(false);
        }
        if metadata.len() != self.length() {
            return Ok(metadata.len() == self.trailer.size && self.is_at(&self.claim));
        }
        let mut trailer = [0; BLOCK_BYTES];
        self.file.read_exact_at(&mut trailer, self.trailer_at()).map_err(failed)?;
        Ok(Trailer::decode(&trailer) == Some(self.trailer))
    }

    /// Whether it is a partial file of ours, of any content, to which no chunk was ever written.
    pub fn is_blank(&self) -> bool {
        let Ok(metadata) = self.file.metadata() else { return false };
        let Some(at) = metadata.len().checked_sub(BLOCK_BYTES as u64) else { return false };
        let mut trailer = [0; BLOCK_BYTES];
        if !metadata.is_file() || self.file.read_exact_at(&mut trailer, at).is_err() {
            return false;
        }
        let is_whole = |trailer: Trailer| {
            trailer.size.checked_next_multiple_of(BLOCK_BYTES as u64) == Some(at)
        };
        // A file system without holes reports data from the start, and so no file of it is blank.
        Trailer::decode(&trailer).is_some_and(is_whole)
            && rustix::fs::seek(&self.file, SeekFrom::Data(0)) == Ok(at)
    }

    /// Removes its name. To be called when no chunk of it is verified.
    pub fn remove(&self) {
        remove_ours(&self.file, &self.path);
    }

    /// Whether this path leads to the file.
    pub fn is_at(&self, path: &Path) -> bool {
        self.file.metadata().is_ok_and(|metadata| is_at(&metadata, path))
    }

    /// Makes sure that the disk has space for everything, and writes the trailer.
    pub fn make_room(&self, writable: &File) -> Result<(), FetchError> {
        // Not by allocating: a file that does not fit would take all space from others for a
        // moment.
        let made = self.fits().and_then(|fits| match fits {
            // It has its length, and so its trailer.
            true if self.file.metadata()?.len() == self.length() => Ok(()),
            true => self.restore(writable),
            false => Err(io::ErrorKind::StorageFull.into()),
        });
        made.map_err(|error| self.write_error(error, self.trailer.size))
    }

    /// Whether the disk has space for what is not allocated yet.
    pub fn fits(&self) -> io::Result<bool> {
        let allocated = self.file.metadata()?.blocks().saturating_mul(512);
        Ok(self.length().saturating_sub(allocated) <= self.free())
    }

    pub fn set_aside(&self, writable: &File) -> io::Result<bool> {
        // Other programs may have written meanwhile. Never take so much that nothing is left for
        // them.
        if !self.fits()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // In pieces: the file is locked during each, and chunks are waiting to be written.
        let mut at = 0;
        while at < self.length() {
            let piece = ALLOCATE_BYTES.min(self.length() - at);
            match rustix::fs::fallocate(writable, FallocateFlags::KEEP_SIZE, at, piece) {
                Ok(()) => at += piece,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Free bytes on the file system; `u64::MAX` if it does not say.
    pub fn free(&self) -> u64 {
        let Ok(stat) = rustix::fs::fstatvfs(&self.file) else { return u64::MAX };
        let blocks = match stat.f_blocks {
            0 => return u64::MAX,
            // Including what is reserved for the superuser.
            _ if rustix::process::geteuid().is_root() => stat.f_bfree,
            _ => stat.f_bavail,
        };
        blocks.saturating_mul(stat.f_frsize)
    }

    /// Translates an error of writing, with `needed` bytes still to be written.
    pub fn write_error(&self, error: io::Error, needed: u64) -> FetchError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FetchError::NoRoom {
                path: self.path.clone(),
                needed,
                free: self.free(),
                kept: KeptPart(false),
            },
            io::ErrorKind::FileTooLarge => FetchError::NotSoLarge {
                path: self.path.clone(),
                size: self.trailer.size,
                kept: KeptPart(false),
            },
            io::ErrorKind::NotFound => FetchError::PartGone(self.path.clone()),
            _ => disk(&self.path, error),
        }
    }

    pub fn check_not_removed(&self) -> io::Result<()> {
        match self.file.metadata()?.nlink() {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(()),
        }
    }

    /// Cuts the file to the content's length and makes it durable. Its claim identifies it
    /// meanwhile.
    pub fn cut(&self, writable: &File) -> io::Result<()> {
        // On a file system without links, a crash at this moment leaves a partial file that has to
        // be removed by hand.
        let claimed = link(&self.file, &self.claim);
        if let Err(error) = claimed {
            log::debug!("{} is cut without a claim: {error}", self.path.display());
        }
        writable.set_len(self.trailer.size)?;
        writable.sync_all()
    }

    /// Gives a file that could not be published its trailer again.
    pub fn uncut(&self, writable: &File) {
        if let Err(error) = self.restore(writable) {
            log::warn!("{} has no trailer: {error}", self.path.display());
        }
    }

    /// Writes the trailer. The claim identifies the file until the trailer is durable.
    fn restore(&self, writable: &File) -> io::Result<()> {
        // The trailer first: a file of the right length without a trailer would not be recognized.
        writable.write_all_at(&self.trailer.encode(), self.trailer_at())?;
        if writable.metadata()?.len() > self.length() {
            writable.set_len(self.length())?;
        }
        if self.is_at(&self.claim) {
            writable.sync_all()?;
            remove_ours(&self.file, &self.claim);
        }
        Ok(())
    }

    pub fn sync_folder(&self) -> Result<(), FetchError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| disk(&self.whole, source))
    }

    /// Gives the open file the name `to`. It may keep its present name `from` as well.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken, `NotFound` if the file has been removed.
    pub fn give_name(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_not_removed()?;
        match link(&self.file, to) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => return Err(io::ErrorKind::AlreadyExists.into()),
            // No links on this file system, or this process cannot reach its open files under
            // /proc.
            Err(error) => log::debug!("{} is renamed: {error}", from.display()),
        }
        if !self.is_at(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?;
        if self.is_at(to) {
            return Ok(());
        }
        // Another file took the name at this very moment: it gets it back.
        rustix::fs::renameat_with(CWD, to, CWD, from, RenameFlags::NOREPLACE)?;
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Opens an open file once more, whatever its names are.
pub(super) fn open_again(file: &File, access: OFlags) -> io::Result<File> {
    let opened = rustix::fs::open(descriptor_path(file), access | OFlags::CLOEXEC, Mode::empty());
    Ok(File::from(opened?))
}

pub(super) fn disk(path: &Path, source: io::Error) -> FetchError {
    FetchError::Disk { path: path.to_owned(), source, kept: KeptPart(false) }
}
