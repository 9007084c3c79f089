//! The file that arrives: `NAME.part` until it is whole, then `NAME`.
//!
//! A partial file is as long as the whole, rounded up to [`BLOCK_BYTES`], and one block more, the
//! *trailer*, which says what it is a part of. There must be room for all of it before the first byte
//! is fetched, so that a full disk is known at once; and it is allocated at once, so that it stays so. Which chunks are in it is written nowhere: whoever
//! resumes hashes what there is, at less than a millisecond a chunk, and so notices damage as well.
//!
//! ```text
//! | chunk 0 | chunk 1 | … | last chunk, padded | trailer: magic, size, content, hash of these |
//! ```
//!
//! The steps at the end, each of which may be the last before a crash: cut to the content's length
//! (whoever finds a partial file of just that length takes it for one without a trailer), make the
//! bytes durable, rename without replacing anything, make the rename durable.
//!
//! Chunks are written past the page cache where the system allows that: it costs a tenth of the
//! processor time, and there is nothing left to write when the file is to be durable.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::api::FetchError;
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

/// What there was of a file before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// A part of it.
    Part,
    /// Bytes of the right number, which may or may not be a part of it.
    Unmarked,
}

/// A partial file, locked against other downloads as long as this exists.
#[derive(Debug)]
pub(super) struct Part {
    folder: PathBuf,
    path: PathBuf,
    whole: PathBuf,
    /// Holds the lock.
    file: File,
    /// The same file, past the page cache.
    direct: Option<File>,
    direct_works: AtomicBool,
    content: ContentId,
    size: u64,
    before: Before,
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
        Ok(metadata) if metadata.is_file() && metadata.len() == size => {
            File::open(whole).map(Existing::Candidate).map_err(|_| in_the_way())
        }
        Ok(_) => Err(in_the_way()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Existing::Nothing),
        Err(source) => Err(FetchError::Folder { path: whole.to_owned(), source }),
    }
}

impl Part {
    /// Opens, locks and allocates the partial file of a download, as it was left or anew. `None`: the
    /// file was finished by another download meanwhile.
    pub(super) fn open(
        folder: &Path,
        name: &FileName,
        content: ContentId,
        size: u64,
    ) -> Result<Option<Part>, FetchError> {
        let path = folder.join(part_name(name, content));
        let whole = folder.join(name.as_str());
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                return Err(FetchError::ForeignPart(path));
            }
            Err(error) => return Err(FetchError::Folder { path, source: error.into() }),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // A file system without locks: a second download of the file is then not noticed, and
            // both write the same bytes to the same places.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => {}
            Err(Errno::WOULDBLOCK) => return Err(FetchError::UnderWay(path)),
            Err(error) => return Err(FetchError::Folder { path, source: error.into() }),
        }
        let metadata = file.metadata().map_err(|source| disk(&path, source))?;
        if !metadata.is_file() {
            return Err(FetchError::ForeignPart(path));
        }
        // Whoever had the lock may have finished: then this file has its final name by now.
        let finished = match existing(&whole, size) {
            Ok(Existing::Nothing) if is_at(&metadata, &path) => None,
            Ok(_) => Some(Ok(None)),
            Err(error) => Some(Err(error)),
        };
        if let Some(result) = finished {
            if metadata.len() == 0 && is_at(&metadata, &path) {
                remove(&path);
            }
            return result;
        }
        let mut part = Part {
            folder: folder.to_owned(),
            path,
            whole,
            file,
            direct: None,
            direct_works: AtomicBool::new(true),
            content,
            size,
            before: Before::Nothing,
        };
        part.before = part.identify(&metadata)?;
        part.make_room()?;
        part.direct = part.open_direct();
        Ok(Some(part))
    }

    /// What there was of the file before.
    pub(super) fn before(&self) -> Before {
        self.before
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The name it has as long as it is a part.
    pub(super) fn file_name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(super) fn whole_path(&self) -> &Path {
        &self.whole
    }

    /// Where the trailer is.
    fn trailer_at(&self) -> u64 {
        self.size.next_multiple_of(BLOCK_BYTES as u64)
    }

    fn length(&self) -> u64 {
        self.trailer_at() + BLOCK_BYTES as u64
    }

    fn trailer(&self) -> [u8; BLOCK_BYTES] {
        let mut trailer = [0; BLOCK_BYTES];
        let mut marks = MAGIC.to_vec();
        marks.extend_from_slice(&self.size.to_le_bytes());
        marks.extend_from_slice(&self.content.0);
        marks.extend_from_slice(blake3::hash(&marks).as_bytes());
        trailer[..marks.len()].copy_from_slice(&marks);
        trailer
    }

    fn identify(&self, metadata: &Metadata) -> Result<Before, FetchError> {
        let foreign = || FetchError::ForeignPart(self.path.clone());
        match metadata.len() {
            0 => Ok(Before::Nothing),
            length if length == self.length() => {
                let mut trailer = [0; BLOCK_BYTES];
                let read = self.file.read_exact_at(&mut trailer, self.trailer_at());
                read.map_err(|source| disk(&self.path, source))?;
                if trailer == self.trailer() { Ok(Before::Part) } else { Err(foreign()) }
            }
            length if length == self.size => Ok(Before::Unmarked),
            _ => Err(foreign()),
        }
    }

    /// Makes sure that the disk has room for everything, and marks a new file as what it is.
    fn make_room(&self) -> Result<(), FetchError> {
        let allocated = self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        // What the file system says is free may not all be ours, and may not be all that is: in doubt
        // it has to prove it.
        let proved = if self.length().saturating_sub(allocated) > self.free() {
            match self.allocate() {
                Ok(false) => Err(io::ErrorKind::StorageFull.into()),
                other => other.map(|_| ()),
            }
        } else {
            Ok(())
        };
        let marked = || self.file.write_all_at(&self.trailer(), self.trailer_at());
        proved.and_then(|()| marked()).map_err(|error| {
            if self.before == Before::Nothing {
                remove(&self.path);
            }
            self.write_error(error, self.size)
        })
    }

    /// Has the file system set everything aside, so that nobody else can take it. `false`: it does not
    /// know how. That takes a millisecond on most, and a tenth of a second a gibibyte on one in memory:
    /// so it is done while the first chunks are on their way, when there seems to be room enough.
    pub(super) fn allocate(&self) -> io::Result<bool> {
        // A piece at a time: the file is locked meanwhile, and chunks want to be written.
        let mut at = 0;
        while at < self.length() {
            let piece = ALLOCATE_BYTES.min(self.length() - at);
            match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, at, piece) {
                Ok(()) => at += piece,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Bytes free for us on the file system.
    fn free(&self) -> u64 {
        rustix::fs::fstatvfs(&self.file)
            .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// What an error of writing means, with `needed` bytes still to come.
    pub(super) fn write_error(&self, error: io::Error, needed: u64) -> FetchError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                FetchError::NoRoom { path: self.path.clone(), needed, free: self.free() }
            }
            io::ErrorKind::FileTooLarge => {
                FetchError::NotSoLarge { path: self.path.clone(), size: self.size }
            }
            _ => disk(&self.path, error),
        }
    }

    /// Opens the file a second time, for writing past the page cache. Where that is refused the
    /// file is written like any other.
    fn open_direct(&self) -> Option<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = File::from(rustix::fs::open(&self.path, flags, Mode::empty()).ok()?);
        let (ours, other) = (self.file.metadata().ok()?, direct.metadata().ok()?);
        (ours.ino() == other.ino() && ours.dev() == other.dev()).then_some(direct)
    }

    /// Reads chunk `index` into `buffer`, which takes on its length.
    pub(super) fn read_chunk(&self, index: u64, buffer: &mut Buffer) -> io::Result<()> {
        buffer.set_len(chunk_len(index, self.size));
        self.file.read_exact_at(buffer.as_mut(), chunk_offset(index))
    }

    /// Writes chunk `index`. The buffer's length may be another one afterwards.
    pub(super) fn write_chunk(&self, index: u64, buffer: &mut Buffer) -> io::Result<()> {
        let (length, offset) = (buffer.len(), chunk_offset(index));
        if let Some(direct) = &self.direct
            && self.direct_works.load(Ordering::Relaxed)
        {
            // The last chunk's padding is before the trailer, and cut off in the end.
            buffer.set_len(length.next_multiple_of(BLOCK_BYTES));
            buffer.as_mut()[length..].fill(0);
            match direct.write_all_at(buffer.as_ref(), offset) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct_works.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
            buffer.set_len(length);
        }
        self.file.write_all_at(buffer.as_ref(), offset)
    }

    /// Makes the whole file durable and gives it its name.
    pub(super) fn finish(&self) -> Result<FileStamp, FetchError> {
        let failed = |source| self.write_error(source, 0);
        self.file.set_len(self.size).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        self.rename()?;
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| disk(&self.whole, source))?;
        self.file.metadata().map(|metadata| FileStamp::of(&metadata)).map_err(failed)
    }

    /// Gives the file its final name, which must be free.
    fn rename(&self) -> Result<(), FetchError> {
        let in_the_way = || FetchError::Exists(self.whole.clone());
        let renamed =
            rustix::fs::renameat_with(CWD, &self.path, CWD, &self.whole, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(in_the_way()),
            // The file system cannot promise that: a second name for the file can.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                match std::fs::hard_link(&self.path, &self.whole) {
                    Ok(()) => {
                        remove(&self.path);
                        Ok(())
                    }
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(in_the_way()),
                    Err(source) => Err(disk(&self.whole, source)),
                }
            }
            Err(error) => Err(disk(&self.whole, error.into())),
        }
    }
}

/// Whether the file is the one at `path`.
fn is_at(metadata: &Metadata, path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|there| there.ino() == metadata.ino() && there.dev() == metadata.dev())
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        log::warn!("{} is left behind: {error}", path.display());
    }
}

fn disk(path: &Path, source: io::Error) -> FetchError {
    FetchError::Disk { path: path.to_owned(), source }
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

    fn write(part: &Part, index: u64, byte: u8) {
        let mut buffer = BufferPool::new(CHUNK_BYTES, 1).take(chunk_len(index, part.size)).unwrap();
        buffer.as_mut().fill(byte);
        part.write_chunk(index, &mut buffer).unwrap();
    }

    #[test]
    fn a_part_is_written_left_resumed_and_finished() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        assert_eq!(part.before(), Before::Nothing);
        write(&part, 1, 7);
        drop(part);

        let part = open(folder.path(), SIZE).unwrap().unwrap();
        assert_eq!(part.before(), Before::Part);
        let mut buffer = BufferPool::new(CHUNK_BYTES, 1).take(0).unwrap();
        part.read_chunk(1, &mut buffer).unwrap();
        assert_eq!(buffer.as_ref(), [7; 4321]);
        write(&part, 0, 3);
        let stamp = part.finish().unwrap();
        assert_eq!(stamp.size, SIZE);
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
        drop(open(folder.path(), SIZE).unwrap().unwrap());
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
        // Cut to its length by the attempt, it is still taken for what it is.
        std::fs::remove_file(&whole).unwrap();
        let part = open(folder.path(), SIZE).unwrap().unwrap();
        assert_eq!(part.before(), Before::Unmarked);
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
