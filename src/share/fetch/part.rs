//! The file that arrives: `NAME.part` until it is whole, then `NAME`.
//!
//! A partial file is as long as the whole, rounded up to [`BLOCK_BYTES`], and one block more, the
//! *trailer*, which says what it is a part of. There must be room for all of it before the first byte
//! is fetched, so that a full disk is known at once; and it is allocated at once, so that it stays so. Which chunks are in
//! it is written nowhere: whoever resumes hashes what there is, at less than a millisecond a chunk, and so notices damage
//! as well.
//!
//! ```text
//! | chunk 0 | chunk 1 | … | last chunk, zeros to a whole block | trailer: magic, size, content, hash of these |
//! ```
//!
//! **A file that is not ours is never touched.** Browsers call their downloads `NAME.part`, too. Ours is what has the trailer;
//! anything else under that name ends the download, unread and unlocked. A new partial file is made under a
//! random name and gets its own only when it has its trailer and its lock, so that no crash leaves one without.
//!
//! **What gets the final name is the open file**, whose chunks were verified, and not whatever is under a path by then:
//! somebody may have removed `NAME.part` meanwhile, and another download have begun a new one.
//!
//! The steps at the end, each of which may be the last before a crash: give the file the name of a *claim*, which says that
//! it is ours while it has no trailer; cut it to the content's length; make the bytes durable; give it the final
//! name, replacing nothing; make that durable; take the other two names away.
//!
//! Chunks are written past the page cache where the system allows that: it costs a tenth of the
//! processor time, and there is nothing left to write when the file is to be durable.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rand::Rng;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom,
};
use rustix::io::Errno;

use super::api::{FetchError, Kept};
use super::watch::Watch;
use crate::limits::FILE_NAME_BYTES_MAX;
use crate::net::{BUFFER_ALIGNMENT, Buffer};
use crate::share::content::{chunk_len, chunk_offset};
use crate::share::names::FileName;
use crate::share::offer::FileStamp;
use crate::share::types::ContentId;

/// What direct IO goes in units of, and the trailer's length.
const BLOCK_BYTES: usize = BUFFER_ALIGNMENT;
const MAGIC: &[u8; 16] = b"acervo part v1\r\n";
/// Allocated at once.
const ALLOCATE_BYTES: u64 = 64 << 20;
const SUFFIX: &str = ".part";
/// How often a partial file that came or went just when it was looked for is looked for again.
const OPEN_ATTEMPTS_MAX: usize = 5;

/// What a partial file says it is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The whole's length in bytes.
    pub size: u64,
    /// The whole's content.
    pub content: ContentId,
}

impl Mark {
    /// The trailer that says so.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut trailer = [0; BLOCK_BYTES];
        let mut marks = MAGIC.to_vec();
        marks.extend_from_slice(&self.size.to_le_bytes());
        marks.extend_from_slice(&self.content.0);
        marks.extend_from_slice(blake3::hash(&marks).as_bytes());
        trailer[..marks.len()].copy_from_slice(&marks);
        trailer
    }

    /// What a trailer says, if it is one: any byte that is not as [`Mark::encode`] would have it makes it none.
    pub fn decode(trailer: &[u8]) -> Option<Mark> {
        let rest = trailer.strip_prefix(MAGIC)?;
        let (size, rest) = rest.split_first_chunk()?;
        let (content, _) = rest.split_first_chunk()?;
        let mark = Mark { size: u64::from_le_bytes(*size), content: ContentId(*content) };
        (mark.encode() == trailer).then_some(mark)
    }
}

/// A partial file, locked against other downloads as long as this exists.
#[derive(Debug)]
pub(super) struct Part {
    folder: PathBuf,
    path: PathBuf,
    whole: PathBuf,
    claim: PathBuf,
    /// Holds the lock.
    file: File,
    /// The same file, past the page cache.
    direct: Option<File>,
    direct_works: AtomicBool,
    watch: Watch,
    mark: Mark,
    is_resumed: bool,
}

/// The name of the partial file for a file's name.
pub(super) fn part_name(name: &FileName, content: ContentId) -> String {
    let name = name.as_str();
    if name.len() + SUFFIX.len() <= FILE_NAME_BYTES_MAX {
        return format!("{name}{SUFFIX}");
    }
    // Too long for the suffix: a part of the name, and of the content's so that no two are the same.
    let content = &content.to_string()[..16];
    let room = FILE_NAME_BYTES_MAX - SUFFIX.len() - content.len() - 1;
    let kept = (0..=room).rev().find(|length| name.is_char_boundary(*length)).unwrap_or(0);
    format!("{}~{content}{SUFFIX}", &name[..kept])
}

/// The name that a partial file is made under.
fn first_name(random: u64) -> String {
    format!(".{random:016x}{SUFFIX}")
}

fn is_first_name(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(SUFFIX));
    number.is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The name that a partial file has as well while it has no trailer: hidden, and nobody else's.
fn claim_name(name: &FileName, content: ContentId) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&content.0).update(name.as_str().as_bytes());
    format!(".{}{SUFFIX}", &hasher.finalize().to_hex()[..32])
}

/// What is under the final name.
#[derive(Debug)]
pub(super) enum Existing {
    /// Nothing.
    Nothing,
    /// A file of the right length, perhaps the one to be fetched.
    Candidate(File),
}

/// Looks whether there is a file of the final name. Anything but a regular file of the right length
/// is in the way.
pub(super) fn existing(whole: &Path, size: u64) -> Result<Existing, FetchError> {
    let in_the_way = || FetchError::Exists(whole.to_owned());
    match std::fs::symlink_metadata(whole) {
        Ok(metadata) if metadata.is_file() && metadata.len() == size => {}
        Ok(_) => return Err(in_the_way()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Existing::Nothing),
        Err(source) => return Err(FetchError::Folder { path: whole.to_owned(), source }),
    }
    // It may have become a link or a pipe by now.
    let file = open(whole, OFlags::RDONLY).map_err(|_| in_the_way())?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() == size => {
            Ok(Existing::Candidate(file))
        }
        _ => Err(in_the_way()),
    }
}

/// Takes away the names of a partial file that has got its final one before a crash.
pub(super) fn remove_leftovers(folder: &Path, name: &FileName, content: ContentId, whole: &File) {
    for leftover in [part_name(name, content), claim_name(name, content)] {
        remove_ours(whole, &folder.join(leftover));
    }
}

/// Removes what a download has left of a content that turned out to have another size, if it is its partial file and
/// nobody's any more.
pub fn discard(folder: &Path, name: &FileName, content: ContentId, size: u64) {
    let path = folder.join(part_name(name, content));
    let new = |file| Part::new(file, folder, &path, name, Mark { size, content });
    if let Ok(Found::Ours(part)) = Part::find(&path, new) {
        remove_ours(&part.file, &path);
    }
}

/// Opens what is under a path if it is neither a link nor something whose opening would wait for somebody.
fn open(path: &Path, access: OFlags) -> Result<File, Errno> {
    let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, access | safe, Mode::from_raw_mode(0o666)).map(File::from)
}

/// Where an open file is found whatever its names are.
pub(super) fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// What came of finishing a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// It has its final name, and looks like this.
    Published(FileStamp),
    /// Another program may have changed it: it is a part still, and to be checked in whole before it is finished again.
    Doubtful,
}

/// What is under the name of a partial file.
enum Found {
    Nothing,
    /// It got its final name, or went, just now.
    Finished,
    Ours(Box<Part>),
}

impl Part {
    fn new(file: File, folder: &Path, path: &Path, name: &FileName, mark: Mark) -> Part {
        let watch = Watch::start(&file);
        Part {
            folder: folder.to_owned(),
            path: path.to_owned(),
            whole: folder.join(name.as_str()),
            claim: folder.join(claim_name(name, mark.content)),
            file,
            direct: None,
            direct_works: AtomicBool::new(true),
            watch,
            mark,
            is_resumed: false,
        }
    }

    /// Opens, locks and allocates the partial file of a download, as it was left or anew. `None`: the
    /// file was finished by another download meanwhile.
    pub(super) fn open(
        folder: &Path,
        name: &FileName,
        content: ContentId,
        size: u64,
    ) -> Result<Option<Part>, FetchError> {
        let path = folder.join(part_name(name, content));
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let mark = Mark { size, content };
            let new = |file, path: &Path| Part::new(file, folder, path, name, mark);
            let part = match Part::find(&path, |file| new(file, &path))? {
                Found::Finished => return Ok(None),
                Found::Ours(part) => Some(*part),
                Found::Nothing => match existing(&folder.join(name.as_str()), size)? {
                    Existing::Nothing => Part::create(&path, new)?,
                    Existing::Candidate(_) => return Ok(None),
                },
            };
            if let Some(part) = part {
                return Ok(Some(part));
            }
        }
        Err(FetchError::UnderWay(path))
    }

    /// Opens the partial file that is there, if it is ours.
    fn find(path: &Path, new: impl FnOnce(File) -> Part) -> Result<Found, FetchError> {
        let foreign = || FetchError::ForeignPart(path.to_owned());
        let file = match open(path, OFlags::RDWR) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(foreign()),
            Err(error) => {
                return Err(FetchError::Folder { path: path.to_owned(), source: error.into() });
            }
        };
        let mut part = new(file);
        if !part.is_ours()? {
            if part.is_blank() && part.lock().is_ok() && part.is_blank() && part.is_at(path) {
                // A download of another content, which was killed before anything of it was verified.
                part.remove();
                return Ok(Found::Nothing);
            }
            // Unless it has lost its trailer to the download that is just finishing it.
            return if part.is_at(path) { Err(foreign()) } else { Ok(Found::Finished) };
        }
        part.lock()?;
        // Whoever had the lock may have finished: then this file has its final name by now.
        match existing(&part.whole, part.mark.size) {
            Ok(Existing::Nothing) if part.is_at(path) => {}
            Ok(_) => return Ok(Found::Finished),
            Err(error) => return Err(error),
        }
        if !part.is_ours()? {
            return Err(foreign());
        }
        part.is_resumed = true;
        part.make_room()?;
        remove_ours(&part.file, &part.claim);
        part.remove_first_name();
        part.begin();
        Ok(Found::Ours(Box::new(part)))
    }

    /// Opens it for writing chunks. Whoever opens it after this is somebody else.
    fn begin(&mut self) {
        self.direct = self.open_direct();
        self.watch = Watch::start(&self.file);
    }

    /// Makes a new partial file. `None`: somebody else's has come in between.
    fn create(
        path: &Path,
        new: impl FnOnce(File, &Path) -> Part,
    ) -> Result<Option<Part>, FetchError> {
        let temporary = path.with_file_name(first_name(rand::rng().next_u64()));
        let file = open(&temporary, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        let file = file
            .map_err(|error| FetchError::Folder { path: path.to_owned(), source: error.into() })?;
        let mut part = new(file, path);
        let made = part.lock().and_then(|()| part.make_room());
        // While nobody else knows its name.
        part.begin();
        let named = made.map(|()| {
            let named = part.watch.own(&part.file, || part.give_name(&temporary, path));
            part.watch.own(&part.file, || remove_ours(&part.file, &temporary));
            named
        });
        if named.is_err() {
            remove_ours(&part.file, &temporary);
        }
        match named? {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(source) => return Err(FetchError::Folder { path: path.to_owned(), source }),
        }
        part.is_resumed = false;
        Ok(Some(part))
    }

    /// Takes away the random name that a partial file was made under, where its process was killed before it did.
    fn remove_first_name(&self) {
        if self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 1) {
            // What cannot be listed keeps one hidden name more, which costs nothing until the file is removed.
            for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
                if is_first_name(&entry.file_name()) {
                    remove_ours(&self.file, &entry.path());
                }
            }
        }
    }

    fn lock(&self) -> Result<(), FetchError> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            // A file system without locks: a second download of the file is then not noticed. Both write the same
            // verified bytes to the same places, and nothing beyond the content once there is a trailer.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(FetchError::UnderWay(self.path.clone())),
            Err(error) => Err(FetchError::Folder { path: self.path.clone(), source: error.into() }),
        }
    }

    /// Whether an earlier download has left something in it.
    pub(super) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// The name it has as long as it is a part.
    pub(super) fn file_name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn whole_path(&self) -> &Path {
        &self.whole
    }

    /// Where the trailer is.
    fn trailer_at(&self) -> u64 {
        self.mark.size.next_multiple_of(BLOCK_BYTES as u64)
    }

    fn length(&self) -> u64 {
        self.trailer_at() + BLOCK_BYTES as u64
    }

    /// Whether it is a partial file of this content, by its trailer or, when that has been cut off already, by its
    /// claim.
    fn is_ours(&self) -> Result<bool, FetchError> {
        let failed = |source| disk(&self.path, source);
        let metadata = self.file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Ok(false);
        }
        if metadata.len() != self.length() {
            return Ok(metadata.len() == self.mark.size && self.is_at(&self.claim));
        }
        let mut trailer = [0; BLOCK_BYTES];
        self.file.read_exact_at(&mut trailer, self.trailer_at()).map_err(failed)?;
        Ok(Mark::decode(&trailer) == Some(self.mark))
    }

    /// Whether it is a partial file of ours, of whatever content, that nothing was ever written to but its trailer.
    fn is_blank(&self) -> bool {
        let Ok(metadata) = self.file.metadata() else { return false };
        let Some(at) = metadata.len().checked_sub(BLOCK_BYTES as u64) else { return false };
        let mut trailer = [0; BLOCK_BYTES];
        if !metadata.is_file() || self.file.read_exact_at(&mut trailer, at).is_err() {
            return false;
        }
        let is_whole =
            |mark: Mark| mark.size.checked_next_multiple_of(BLOCK_BYTES as u64) == Some(at);
        // A file system that knows no holes says that there is data from the beginning on.
        Mark::decode(&trailer).is_some_and(is_whole)
            && rustix::fs::seek(&self.file, SeekFrom::Data(0)) == Ok(at)
    }

    /// Takes its name away: nothing of it was verified.
    pub(super) fn remove(&self) {
        remove_ours(&self.file, &self.path);
    }

    /// Whether the file has this name.
    fn is_at(&self, path: &Path) -> bool {
        self.file.metadata().is_ok_and(|metadata| is_at(&metadata, path))
    }

    /// Makes sure that the disk has room for everything, and marks the file as what it is.
    fn make_room(&self) -> Result<(), FetchError> {
        // Not by allocating: what does not fit would take all room there is from everybody else, for a moment.
        let made = self.fits().and_then(|fits| match fits {
            // It has its trailer.
            true if self.file.metadata()?.len() == self.length() => Ok(()),
            true => self.file.write_all_at(&self.mark.encode(), self.trailer_at()),
            false => Err(io::ErrorKind::StorageFull.into()),
        });
        made.map_err(|error| self.write_error(error, self.mark.size))
    }

    /// Whether the disk has room for what is not allocated yet.
    fn fits(&self) -> io::Result<bool> {
        let allocated = self.file.metadata()?.blocks().saturating_mul(512);
        Ok(self.length().saturating_sub(allocated) <= self.free())
    }

    /// Has the file system set everything aside, so that nobody else can take it. `false`: it does not
    /// know how. That takes a millisecond on most, and a tenth of a second a gibibyte on one in memory:
    /// so it is done while the first chunks are on their way.
    pub(super) fn allocate(&self) -> io::Result<bool> {
        self.watch.own(&self.file, || self.set_aside())
    }

    fn set_aside(&self) -> io::Result<bool> {
        // Others may have written meanwhile: never so much that nothing is left to them.
        if !self.fits()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A piece at a time: the file is locked meanwhile, and chunks want to be written.
        let mut at = 0;
        while at < self.length() {
            let piece = ALLOCATE_BYTES.min(self.length() - at);
            match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, at, piece) {
                Ok(()) => at += piece,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Bytes free for us on the file system; as many as there may be where it does not say.
    fn free(&self) -> u64 {
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
    pub(super) fn write_error(&self, error: io::Error, needed: u64) -> FetchError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FetchError::NoRoom {
                path: self.path.clone(),
                needed,
                free: self.free(),
                kept: Kept(false),
            },
            io::ErrorKind::FileTooLarge => FetchError::NotSoLarge {
                path: self.path.clone(),
                size: self.mark.size,
                kept: Kept(false),
            },
            io::ErrorKind::NotFound => FetchError::PartGone(self.path.clone()),
            _ => disk(&self.path, error),
        }
    }

    /// Opens the file a second time, for writing past the page cache. Where that is refused the
    /// file is written like any other.
    fn open_direct(&self) -> Option<File> {
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        rustix::fs::open(descriptor_path(&self.file), flags, Mode::empty()).ok().map(File::from)
    }

    /// Reads chunk `index` into `buffer`, which takes on its length.
    pub(super) fn read_chunk(&self, index: u64, buffer: &mut Buffer) -> io::Result<()> {
        buffer.set_len(chunk_len(index, self.mark.size));
        self.file.read_exact_at(buffer.as_mut(), chunk_offset(index))
    }

    /// Writes chunk `index`.
    ///
    /// # Errors
    /// What the system says; `NotFound` when the file has been removed, so that a download does not go on to its
    /// end in vain.
    pub(super) fn write_chunk(&self, index: u64, buffer: &Buffer) -> io::Result<()> {
        self.check_not_removed()?;
        self.watch.own(&self.file, || self.write_at(index, buffer))
    }

    fn write_at(&self, index: u64, buffer: &Buffer) -> io::Result<()> {
        let (length, offset) = (buffer.len(), chunk_offset(index));
        if let Some(direct) = &self.direct
            && self.direct_works.load(Ordering::Relaxed)
        {
            // Not padded to a whole block: where a file system has no locks, another download of the same content
            // may have cut and published this very file, which must not grow.
            let (blocks, rest) = buffer.as_ref().split_at(length - length % BLOCK_BYTES);
            match direct.write_all_at(blocks, offset) {
                Ok(()) => return self.file.write_all_at(rest, offset + blocks.len() as u64),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct_works.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        self.file.write_all_at(buffer.as_ref(), offset)
    }

    fn check_not_removed(&self) -> io::Result<()> {
        match self.file.metadata()?.nlink() {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(()),
        }
    }

    /// Makes the whole file durable and gives it its name, unless another program may have changed it.
    pub(super) fn finish(&self) -> Result<Finish, FetchError> {
        let failed = |source| self.write_error(source, 0);
        if std::fs::symlink_metadata(&self.whole).is_ok() {
            return Err(FetchError::Exists(self.whole.clone()));
        }
        self.check_not_removed().map_err(failed)?;
        if self.watch.is_doubtful(&self.file) {
            return self.doubt();
        }
        self.watch.own(&self.file, || self.cut()).map_err(failed)?;
        // To make it durable may have taken long. What its stamp is from here on is what was verified.
        let look = || self.file.metadata().map(|metadata| FileStamp::of(&metadata));
        let verified = look().map_err(failed)?;
        if self.watch.is_doubtful(&self.file) || verified.size != self.mark.size {
            return self.doubt();
        }
        if let Err(error) = self.give_name(&self.path, &self.whole) {
            self.uncut();
            return Err(match error.kind() {
                io::ErrorKind::AlreadyExists => FetchError::Exists(self.whole.clone()),
                _ => self.write_error(error, 0),
            });
        }
        self.sync_folder()?;
        remove_ours(&self.file, &self.path);
        remove_ours(&self.file, &self.claim);
        self.sync_folder()?;
        // Names given and taken change the time of the last change, and nothing else. A file that was written to since
        // keeps the stamp that it has no more, and so is hashed anew before it is shared.
        let named = look().map_err(failed)?;
        let is_same = (named.size, named.modified) == (verified.size, verified.modified);
        Ok(Finish::Published(if is_same { named } else { verified }))
    }

    /// Makes it a part again, of which nothing is taken for verified.
    fn doubt(&self) -> Result<Finish, FetchError> {
        log::warn!("{} may have been changed: it is checked again", self.path.display());
        let restored = self.watch.own(&self.file, || {
            // Cut off here, or by others, or made longer by them.
            if self.file.metadata()?.len() != self.length() {
                self.file.set_len(self.length())?;
            }
            self.file.write_all_at(&self.mark.encode(), self.trailer_at())?;
            remove_ours(&self.file, &self.claim);
            Ok(())
        });
        restored.map_err(|error| self.write_error(error, self.mark.size))?;
        self.watch.forget(&self.file);
        Ok(Finish::Doubtful)
    }

    /// Cuts the file to the content's length, and makes it durable. Its claim says meanwhile whose it is.
    fn cut(&self) -> io::Result<()> {
        // Where a file cannot have two names, a crash just now leaves a part that has to be removed by hand.
        let claimed = link(&self.file, &self.claim);
        if let Err(error) = claimed {
            log::debug!("{} is cut without a claim: {error}", self.path.display());
        }
        self.file.set_len(self.mark.size)?;
        self.file.sync_all()
    }

    /// Makes it a part again, which cannot get its final name.
    fn uncut(&self) {
        match self.file.write_all_at(&self.mark.encode(), self.trailer_at()) {
            Ok(()) => remove_ours(&self.file, &self.claim),
            Err(error) => log::warn!("{} has no trailer: {error}", self.path.display()),
        }
    }

    fn sync_folder(&self) -> Result<(), FetchError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| disk(&self.whole, source))
    }

    /// Gives the open file the name `to`, which must be free. It may keep its present name `from`, too.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken, `NotFound` when the file has been removed.
    fn give_name(&self, from: &Path, to: &Path) -> io::Result<()> {
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

/// Gives an open file another name, which must be free.
fn link(file: &File, to: &Path) -> Result<(), Errno> {
    rustix::fs::linkat(CWD, descriptor_path(file), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

/// Whether the file is the one at `path`.
fn is_at(metadata: &Metadata, path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|there| there.ino() == metadata.ino() && there.dev() == metadata.dev())
}

/// Takes a name away from an open file, if it is the file's.
fn remove_ours(file: &File, path: &Path) {
    if file.metadata().is_ok_and(|metadata| is_at(&metadata, path))
        && let Err(error) = std::fs::remove_file(path)
    {
        log::warn!("{} is left behind: {error}", path.display());
    }
}

fn disk(path: &Path, source: io::Error) -> FetchError {
    FetchError::Disk { path: path.to_owned(), source, kept: Kept(false) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CHUNK_BYTES;
    use crate::net::BufferPool;

    const SIZE: u64 = CHUNK_BYTES as u64 + 4321;

    fn name(name: &str) -> FileName {
        FileName::new(name).unwrap()
    }

    fn content(bytes: &[u8]) -> ContentId {
        ContentId(*blake3::hash(bytes).as_bytes())
    }

    fn open(folder: &Path, size: u64) -> Result<Option<Part>, FetchError> {
        Part::open(folder, &name("film.mkv"), content(b"film"), size)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(part: &Part, index: u64, byte: u8) {
        let mut buffer =
            BufferPool::new(CHUNK_BYTES, 1).take(chunk_len(index, part.mark.size)).unwrap();
        buffer.as_mut().fill(byte);
        part.write_chunk(index, &buffer).unwrap();
    }

    #[test]
    fn a_part_is_written_left_resumed_and_finished() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        assert!(!part.is_resumed());
        write(&part, 1, 7);
        drop(part);

        let part = open(folder.path(), SIZE).unwrap().unwrap();
        assert!(part.is_resumed());
        let mut buffer = BufferPool::new(CHUNK_BYTES, 1).take(0).unwrap();
        part.read_chunk(1, &mut buffer).unwrap();
        assert_eq!(buffer.as_ref(), [7; 4321]);
        write(&part, 0, 3);
        assert!(matches!(part.finish().unwrap(), Finish::Published(stamp) if stamp.size == SIZE));
        let whole = std::fs::read(folder.path().join("film.mkv")).unwrap();
        assert!(whole[..CHUNK_BYTES].iter().all(|b| *b == 3));
        assert_eq!(whole[CHUNK_BYTES..], [7; 4321]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        // A late comer, who opened the part before it got its name.
        assert!(open(folder.path(), SIZE).unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_downloads_of_a_file_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let _part = open(folder.path(), SIZE).unwrap().unwrap();
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::UnderWay(_))));
    }

    #[test]
    fn parts_of_other_things_are_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        write(&part, 0, 3);
        drop(part);
        let path = folder.path().join("film.mkv.part");
        let before = std::fs::read(&path).unwrap();
        let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), SIZE);
        assert!(matches!(other, Err(FetchError::ForeignPart(_))));
        assert!(matches!(open(folder.path(), SIZE + 10_000), Err(FetchError::ForeignPart(_))));
        assert!(std::fs::read(&path).unwrap() == before);

        std::fs::write(&path, b"somebody's own").unwrap();
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's own");

        std::fs::remove_file(&path).unwrap();
        std::fs::write(folder.path().join("elsewhere"), b"").unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))));
    }

    /// A liar's content or size, or a download killed at once, left a part that kept the true file out.
    #[test]
    fn a_part_that_nothing_was_written_to_makes_room_for_another_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film.mkv.part");
        for size in [0, SIZE + 99, SIZE] {
            let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), size);
            let other = other.unwrap().unwrap();
            assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))), "in use");
            other.allocate().unwrap();
            drop(other);
            drop(open(folder.path(), SIZE).unwrap().expect("there is room"));
            std::fs::remove_file(&path).unwrap();
        }
        let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), SIZE);
        let other = other.unwrap().unwrap();
        write(&other, 1, 0);
        drop(other);
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))), "written to");
    }

    #[test]
    fn nothing_is_replaced_not_even_what_came_last_moment() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        let whole = folder.path().join("film.mkv");
        std::fs::write(&whole, b"mine").unwrap();
        assert!(matches!(part.finish(), Err(FetchError::Exists(_))));
        assert_eq!(std::fs::read(&whole).unwrap(), b"mine");
        drop(part);
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::Exists(_))));
        // What it has is not lost by the attempt.
        std::fs::remove_file(&whole).unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        assert!(part.is_resumed());
        // The same when the name is taken at the last moment, which only the attempt itself can notice.
        part.cut().unwrap();
        std::fs::write(&whole, b"mine").unwrap();
        let error = part.give_name(&part.path, &part.whole).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        part.uncut();
        drop(part);
        std::fs::remove_file(&whole).unwrap();
        assert!(open(folder.path(), SIZE).unwrap().unwrap().is_resumed());
        assert_eq!(names(folder.path()), ["film.mkv.part"]);
    }

    /// Browsers call their downloads so: of the right length, empty, or what there was a moment ago.
    #[test]
    fn somebodys_own_file_of_the_parts_name_is_neither_altered_nor_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film.mkv.part");
        for own in [
            vec![5; SIZE as usize],
            Vec::new(),
            vec![0; SIZE.next_multiple_of(4096) as usize + 4096],
        ] {
            std::fs::write(&path, &own).unwrap();
            let before = std::fs::metadata(&path).unwrap();
            assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))));
            let after = std::fs::metadata(&path).unwrap();
            assert!(std::fs::read(&path).unwrap() == own);
            assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()));
            assert_eq!(names(folder.path()), ["film.mkv.part"]);
        }
    }

    /// A download went on writing to its removed part, and then gave the final name to whatever was under the part's:
    /// the beginnings of another download, with bytes of its own or none.
    #[test]
    fn what_gets_the_final_name_is_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, whole) = (folder.path().join("film.mkv.part"), folder.path().join("film.mkv"));
        let first = open(folder.path(), SIZE).unwrap().unwrap();
        write(&first, 0, 3);
        std::fs::remove_file(&path).unwrap();
        let buffer = BufferPool::new(CHUNK_BYTES, 1).take(4321).unwrap();
        let error = first.write_chunk(1, &buffer).unwrap_err();
        assert!(matches!(first.write_error(error, 0), FetchError::PartGone(_)));
        let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), SIZE);
        let other = other.unwrap().unwrap();
        write(&other, 0, 9);
        assert!(matches!(first.finish(), Err(FetchError::PartGone(_))));
        assert!(!whole.exists());
        write(&other, 1, 9);
        assert!(matches!(other.finish(), Ok(Finish::Published(_))));
        assert!(std::fs::read(&whole).unwrap() == vec![9; SIZE as usize]);

        // Moved elsewhere, and somebody's own file in its place.
        std::fs::remove_file(&whole).unwrap();
        let moved = open(folder.path(), SIZE).unwrap().unwrap();
        write(&moved, 0, 3);
        write(&moved, 1, 3);
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        std::fs::write(&path, b"somebody's own").unwrap();
        // Its name was changed by somebody, who may have changed more.
        assert!(matches!(moved.finish(), Ok(Finish::Doubtful)));
        assert!(matches!(moved.finish(), Ok(Finish::Published(_))));
        assert!(std::fs::read(&whole).unwrap() == vec![3; SIZE as usize]);
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's own");
    }

    /// Every step of the end, as a crash would leave it.
    #[test]
    fn a_crash_in_the_end_loses_nothing_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("film.mkv");
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        write(&part, 0, 3);
        write(&part, 1, 3);
        part.cut().unwrap();
        drop(part);
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        assert!(part.is_resumed(), "cut, and claimed");
        assert_eq!(names(folder.path()), ["film.mkv.part"]);
        part.cut().unwrap();
        part.give_name(&part.path, &part.whole).unwrap();
        drop(part);
        assert!(open(folder.path(), SIZE).unwrap().is_none(), "named already");
        let Ok(Existing::Candidate(file)) = existing(&whole, SIZE) else { panic!("it is there") };
        remove_leftovers(folder.path(), &name("film.mkv"), content(b"film"), &file);
        assert_eq!(names(folder.path()), ["film.mkv"]);
    }

    #[test]
    fn only_the_part_that_is_meant_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        write(&part, 0, 3);
        let discard = |size| discard(folder.path(), &name("film.mkv"), content(b"film"), size);
        discard(SIZE);
        assert_eq!(names(folder.path()), ["film.mkv.part"], "it is in use");
        drop(part);
        discard(SIZE + 1);
        assert_eq!(names(folder.path()), ["film.mkv.part"], "it is of another size");
        discard(SIZE);
        assert!(names(folder.path()).is_empty());
    }

    /// A process was killed when the part had its name and kept the one that it was made under, which stayed a second
    /// name of the published file for ever.
    #[test]
    fn the_name_that_a_part_was_made_under_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        for own in [first_name(7), "mine.part".to_owned()] {
            link(&part.file, &folder.path().join(own)).unwrap();
        }
        std::fs::write(folder.path().join(first_name(8)), b"of another download").unwrap();
        drop(part);
        assert!(open(folder.path(), SIZE).unwrap().unwrap().is_resumed());
        assert_eq!(names(folder.path()), [&first_name(8), "film.mkv.part", "mine.part"]);
    }

    /// Where locks are missing two downloads may have one part: what one has published stays as it is.
    #[test]
    fn a_late_write_of_a_second_download_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), SIZE).unwrap().unwrap();
        let file = super::open(&first.path, OFlags::RDWR).unwrap();
        let mut second = Part::new(file, folder.path(), &first.path, &name("film.mkv"), first.mark);
        second.direct = second.open_direct();
        let before = second.file.metadata().unwrap();
        second.make_room().unwrap();
        assert_eq!(second.file.metadata().unwrap().modified().unwrap(), before.modified().unwrap());
        write(&first, 0, 3);
        write(&first, 1, 7);
        assert!(matches!(first.finish(), Ok(Finish::Doubtful)), "a second one has it open");
        assert!(matches!(first.finish(), Ok(Finish::Published(_))));
        write(&second, 1, 7);
        let whole = std::fs::read(&first.whole).unwrap();
        assert_eq!(whole.len() as u64, SIZE, "nothing is behind the content");
        assert_eq!(whole[CHUNK_BYTES..], [7; 4321]);
    }

    /// A download that did not fit took all room there was for a moment, and whoever wrote a file just then failed.
    #[test]
    fn what_does_not_fit_takes_no_room_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        let blocks = |part: &Part| part.file.metadata().unwrap().blocks();
        let before = blocks(&part);
        let too_large = Part { mark: Mark { size: 1 << 50, ..part.mark }, ..part };
        assert!(matches!(too_large.make_room(), Err(FetchError::NoRoom { .. })));
        assert_eq!(blocks(&too_large), before);
    }

    #[test]
    fn a_trailer_says_what_it_says_or_nothing() {
        let mark = Mark { size: SIZE, content: content(b"film") };
        let trailer = mark.encode();
        assert_eq!(Mark::decode(&trailer), Some(mark));
        for at in (0..88).chain([4095]) {
            let mut bad = trailer;
            bad[at] ^= 1;
            assert_eq!(Mark::decode(&bad), None, "byte {at}");
        }
        for length in [0, 15, 16, 23, 24, 55, 56, 88, 4095] {
            assert_eq!(Mark::decode(&trailer[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn long_names_have_parts_too() {
        let content = content(b"x");
        assert_eq!(part_name(&name("a.b"), content), "a.b.part");
        let longest = "ü".repeat(127) + "x";
        let part = part_name(&name(&longest), content);
        assert!(part.len() <= FILE_NAME_BYTES_MAX && part.ends_with(".part"), "{part}");
        let other = part_name(&name(&longest), ContentId([0; 32]));
        assert_ne!(part, other);
        let folder = tempfile::tempdir().unwrap();
        drop(Part::open(folder.path(), &name(&longest), content, 5).unwrap().unwrap());
        assert!(folder.path().join(part).exists());
    }

    #[test]
    fn a_file_larger_than_any_disk_is_refused_at_once_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // A sparse answer would not do: the room is asked of the file system.
        let error = open(folder.path(), 1 << 55).unwrap_err();
        assert!(
            matches!(error, FetchError::NoRoom { .. } | FetchError::NotSoLarge { .. }),
            "{error}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
