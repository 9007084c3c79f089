//! A partial file on the disk: what says that it is ours, its lock, its room, and the steps that give it its name.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;

use crate::model::{
    ContentId, FileName, claim_name, descriptor_path, is_at, is_first_name, link, remove_ours,
};
use crate::net::BUFFER_ALIGNMENT;
use crate::share::fetch::api::{FetchError, Kept};

/// What direct IO goes in units of, and the trailer's length.
pub(super) const BLOCK_BYTES: usize = BUFFER_ALIGNMENT;
const MAGIC: &[u8; 16] = b"acervo part v1\r\n";
/// Allocated at once.
const ALLOCATE_BYTES: u64 = 64 << 20;

/// What a partial file says it is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The whole's length in bytes.
    pub size: u64,
    /// The whole's content.
    pub content: ContentId,
}

impl Trailer {
    /// The trailer that says so.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut fields = MAGIC.to_vec();
        fields.extend_from_slice(&self.size.to_le_bytes());
        fields.extend_from_slice(&self.content.0);
        fields.extend_from_slice(blake3::hash(&fields).as_bytes());
        block[..fields.len()].copy_from_slice(&fields);
        block
    }

    /// What a trailer says, if it is one: any byte that is not as [`Trailer::encode`] would have it makes it none.
    pub fn decode(bytes: &[u8]) -> Option<Trailer> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (size, rest) = rest.split_first_chunk()?;
        let (content, _) = rest.split_first_chunk()?;
        let trailer = Trailer { size: u64::from_le_bytes(*size), content: ContentId(*content) };
        (trailer.encode() == bytes).then_some(trailer)
    }
}

/// A file that is a part, or is to become one, and its names.
#[derive(Debug)]
pub(super) struct PartFile {
    pub folder: PathBuf,
    pub path: PathBuf,
    pub whole: PathBuf,
    pub claim: PathBuf,
    /// Holds the lock. Open for reading alone, unless that cannot be: so that it can be known whether anybody has the
    /// file open for writing.
    pub file: Arc<File>,
    pub may_write: bool,
    pub trailer: Trailer,
}

impl PartFile {
    /// # Errors
    /// The system allows no further descriptor.
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
            // This process has no way to its open files.
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

    /// Takes away the random name that a partial file was made under, where its process was killed before it did.
    pub fn remove_first_name(&self) {
        if self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 1) {
            // What cannot be listed keeps one hidden name more, which costs nothing until the file is removed.
            for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
                if is_first_name(&entry.file_name()) {
                    remove_ours(&self.file, &entry.path());
                }
            }
        }
    }

    /// Locks it, through `writable` where only such a descriptor can have a lock.
    pub fn lock(&mut self, writable: &File) -> Result<(), FetchError> {
        let lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
        let mut locked = lock(&self.file);
        if locked == Err(Errno::BADF) {
            // A file system that is on another machine.
            let file = writable.try_clone().map_err(|source| disk(&self.path, source))?;
            locked = lock(&file);
            (self.file, self.may_write) = (Arc::new(file), true);
        }
        match locked {
            // A file system without locks: a second download of the file is then not noticed. Both write the same
            // verified bytes to the same places, and nothing beyond the content once there is a trailer.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(FetchError::UnderWay(self.path.clone())),
            Err(error) => Err(FetchError::Folder { path: self.path.clone(), source: error.into() }),
        }
    }

    /// Where the trailer is.
    pub fn trailer_at(&self) -> u64 {
        self.trailer.size.next_multiple_of(BLOCK_BYTES as u64)
    }

    pub fn length(&self) -> u64 {
        self.trailer_at() + BLOCK_BYTES as u64
    }

    /// Whether it is a partial file of this content, by its trailer or, when that has been cut off already, by its
    /// claim.
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

    /// Whether it is a partial file of ours, of whatever content, that nothing was ever written to but its trailer.
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
        // A file system that knows no holes says that there is data from the beginning on.
        Trailer::decode(&trailer).is_some_and(is_whole)
            && rustix::fs::seek(&self.file, SeekFrom::Data(0)) == Ok(at)
    }

    /// Takes its name away: nothing of it was verified.
    pub fn remove(&self) {
        remove_ours(&self.file, &self.path);
    }

    /// Whether the file has this name.
    pub fn is_at(&self, path: &Path) -> bool {
        self.file.metadata().is_ok_and(|metadata| is_at(&metadata, path))
    }

    /// Makes sure that the disk has room for everything, and marks the file as what it is.
    pub fn make_room(&self, writable: &File) -> Result<(), FetchError> {
        // Not by allocating: what does not fit would take all room there is from everybody else, for a moment.
        let made = self.fits().and_then(|fits| match fits {
            // It has its trailer.
            true if self.file.metadata()?.len() == self.length() => Ok(()),
            true => self.restore(writable),
            false => Err(io::ErrorKind::StorageFull.into()),
        });
        made.map_err(|error| self.write_error(error, self.trailer.size))
    }

    /// Whether the disk has room for what is not allocated yet.
    pub fn fits(&self) -> io::Result<bool> {
        let allocated = self.file.metadata()?.blocks().saturating_mul(512);
        Ok(self.length().saturating_sub(allocated) <= self.free())
    }

    pub fn set_aside(&self, writable: &File) -> io::Result<bool> {
        // Others may have written meanwhile: never so much that nothing is left to them.
        if !self.fits()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A piece at a time: the file is locked meanwhile, and chunks want to be written.
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

    /// Bytes free for us on the file system; as many as there may be where it does not say.
    pub fn free(&self) -> u64 {
        let Ok(stat) = rustix::fs::fstatvfs(&self.file) else { return u64::MAX };
        let blocks = match stat.f_blocks {
            0 => return u64::MAX,
            // What is set aside for the superuser.
            _ if rustix::process::geteuid().is_root() => stat.f_bfree,
            _ => stat.f_bavail,
        };
        blocks.saturating_mul(stat.f_frsize)
    }

    /// What an error of writing means, with `needed` bytes still to come.
    pub fn write_error(&self, error: io::Error, needed: u64) -> FetchError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FetchError::NoRoom {
                path: self.path.clone(),
                needed,
                free: self.free(),
                kept: Kept(false),
            },
            io::ErrorKind::FileTooLarge => FetchError::NotSoLarge {
                path: self.path.clone(),
                size: self.trailer.size,
                kept: Kept(false),
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

    /// Cuts the file to the content's length, and makes it durable. Its claim says meanwhile whose it is.
    pub fn cut(&self, writable: &File) -> io::Result<()> {
        // Where a file cannot have two names, a crash just now leaves a part that has to be removed by hand.
        let claimed = link(&self.file, &self.claim);
        if let Err(error) = claimed {
            log::debug!("{} is cut without a claim: {error}", self.path.display());
        }
        writable.set_len(self.trailer.size)?;
        writable.sync_all()
    }

    /// Makes it a part again, which cannot get its final name.
    pub fn uncut(&self, writable: &File) {
        if let Err(error) = self.restore(writable) {
            log::warn!("{} has no trailer: {error}", self.path.display());
        }
    }

    /// Gives it its trailer. Until that is durable the claim says whose it is.
    fn restore(&self, writable: &File) -> io::Result<()> {
        // The trailer first: with the right length and without one it would be nobody's.
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

    /// Gives the open file the name `to`, which must be free. It may keep its present name `from`, too.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken, `NotFound` when the file has been removed.
    pub fn give_name(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_not_removed()?;
        match link(&self.file, to) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => return Err(io::ErrorKind::AlreadyExists.into()),
            // The file system knows no second names, or this process has no way to its open files.
            Err(error) => log::debug!("{} is renamed: {error}", from.display()),
        }
        if !self.is_at(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?;
        if self.is_at(to) {
            return Ok(());
        }
        // Another file had come under the name at this very moment: it gets that back.
        rustix::fs::renameat_with(CWD, to, CWD, from, RenameFlags::NOREPLACE)?;
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Opens the file once more, whatever its names are.
pub(super) fn open_again(file: &File, access: OFlags) -> io::Result<File> {
    let opened = rustix::fs::open(descriptor_path(file), access | OFlags::CLOEXEC, Mode::empty());
    Ok(File::from(opened?))
}

pub(super) fn disk(path: &Path, source: io::Error) -> FetchError {
    FetchError::Disk { path: path.to_owned(), source, kept: Kept(false) }
}
