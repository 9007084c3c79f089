//! The partial file: `NAME.part` until the download is complete, then `NAME`.
//!
//! A partial file is as long as the content, rounded up to [`BLOCK_BYTES`], and one block more: the
//! *trailer*, which says what it is a part of. There has to be space for all of it before the first
//! chunk is fetched, so that a full disk is noticed at once, and it is allocated at once, so that
//! this stays so. Which chunks it holds is recorded nowhere. A download that resumes hashes what is
//! there, at less than a millisecond for a chunk, and so notices damage as well.
//!
//! ```text
//! | chunk 0 | chunk 1 | … | last chunk, padded | trailer: magic, size, content, their hash |
//! ```
//!
//! Rules:
//!
//! - **A file that is not ours is never touched.** Browsers call their downloads `NAME.part`, too.
//!   Ours has the trailer. Any other file of that name ends the download, unread and unlocked. A
//!   new partial file is created without a name (or under a random one, where the file system
//!   cannot do that) and gets its name only when it has its trailer, its lock and its watch. So no
//!   crash leaves one without a trailer, and no other program has it open.
//! - **The open file gets the final name**, whose chunks were verified, and not whatever has the
//!   partial name by then: someone may have removed `NAME.part`, and another download may have
//!   created a new one.
//! - **No other program can write to the file when it gets its name, and all of it was checked if
//!   one may have written.** When all chunks are stored, our own writable descriptors are closed
//!   and a [`FileLease`] is taken, which exists only while nobody else has the file open for
//!   writing or mapped writable. If an earlier download left the file, or anybody has opened it
//!   since this one began ([`OpenWatch`]), all of it is checked under the lease, and what is wrong
//!   is fetched again. A program that does not stop writing is waited for a little, and then
//!   reported. Where the file system has no leases, the whole file is always checked, and checked
//!   again if its stamp has changed meanwhile.
//!
//! Publishing takes these steps, after each of which a crash may come: link the file as its
//! *claim*, which identifies it while it has no trailer; cut it to the content's length; make its
//! bytes durable; link it as the final name, replacing nothing; make that durable; remove the other
//! two names.
//!
//! Chunks are written past the page cache where the system allows it. That takes a tenth of the
//! processor time, and leaves nothing to be written when the file is made durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rand::Rng;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use self::file::Trailer;
use self::file::{BLOCK_BYTES, PartFile, disk, open_again, unlock};
use self::lease::{FileLease, NoLease};
pub(super) use self::names::{Existing, descriptor_path, existing, remove_leftovers};
use self::names::{first_name, link, open, part_name, remove_ours, remove_stale_claim};
use super::api::FetchError;
use super::watch::OpenWatch;
use crate::model::{ContentId, FileName};
use crate::net::Buffer;
use crate::share::content::{chunk_len, chunk_offset};
use crate::share::offer::FileStamp;

mod file;
mod lease;
mod names;
#[cfg(test)]
mod tests;

/// How often, before each check of a whole file but the first, it is looked whether a program that
/// has the file open for writing has closed it. With the pauses between the looks that is a second.
const PART_WRITER_LOOKS: u32 = 20;
/// The pause after each look whether the file is open for writing.
const PART_WRITER_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How often to look again at a partial file that was created or removed between two looks.
const OPEN_ATTEMPTS_MAX: usize = 5;
/// `EIO`, which the system returns when a write past the page cache meets pages that another
/// program has mapped and changed.
const STALE_PAGES: Option<i32> = Some(Errno::IO.raw_os_error());

/// A partial file. It is locked against other downloads as long as this exists.
#[derive(Debug)]
pub(super) struct Part {
    on_disk: PartFile,
    /// The descriptor from which it is served. It is opened before the watch starts: opening the
    /// file by its name later would make the file doubtful.
    served: Option<Arc<File>>,
    direct_works: AtomicBool,
    watch: OpenWatch,
    end: Mutex<FinishState>,
    is_resumed: bool,
}

/// The descriptors through which chunks are written.
#[derive(Debug)]
struct Writable {
    file: File,
    /// A second descriptor, which bypasses the page cache.
    direct: Option<File>,
}

/// The progress of publishing the file.
#[derive(Debug)]
struct FinishState {
    /// `None` from when all chunks are stored, unless some have to be fetched again.
    writable: Option<Arc<Writable>>,
    lease: Option<FileLease>,
    /// Whether another program may have written to it, so that it has to be checked as a whole.
    is_doubtful: bool,
    /// The stamp of the last check under the lease; without leases, the stamp before the check.
    checked: Option<FileStamp>,
    /// Whether it has been cut to the content's length and so has no trailer.
    is_cut: bool,
    is_published: bool,
}

/// The result of trying to publish a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// It has its final name and this stamp.
    Published(FileStamp),
    /// Another program may have changed it. It is still a partial file, and has to be checked as a
    /// whole before the next attempt.
    Doubtful,
}

/// What has the name of the partial file.
enum ExistingPart {
    Nothing,
    /// It has just been published or removed by another download.
    Finished,
    /// Our partial file, locked, and a writable descriptor of it.
    Ours(PartFile, File),
}

/// Whether another download holds the lock of the file. It looks through a read-only descriptor: a
/// writable one would break the other download's lease and make it check its whole file again.
fn is_locked_by_other(path: &Path, new: impl Fn(&File) -> io::Result<PartFile>) -> bool {
    let Ok(file) = open(path, OFlags::RDONLY) else { return false };
    if !is_regular(&file) {
        return false;
    }
    let ours = new(&file).is_ok_and(|part| part.is_ours().unwrap_or(false));
    if !ours {
        return false;
    }
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    if locked.is_ok() {
        unlock(&file);
    }
    locked == Err(Errno::WOULDBLOCK)
}

/// Anything but a regular file is nobody's partial file. It is not opened again, which would wait
/// for ever at a FIFO that nobody writes to.
fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// Opens the partial file under this path, if there is one and it is ours.
fn find(
    path: &Path,
    new: impl Fn(&File) -> io::Result<PartFile>,
) -> Result<ExistingPart, FetchError> {
    let foreign = || FetchError::ForeignPart(path.to_owned());
    if is_locked_by_other(path, &new) {
        return Err(FetchError::UnderWay(path.to_owned()));
    }
    let file = match open(path, OFlags::RDWR) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(ExistingPart::Nothing),
        // Someone holds a lease on it: another download that has just begun.
        Err(Errno::AGAIN) => return Err(FetchError::UnderWay(path.to_owned())),
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(foreign()),
        Err(error) => {
            return Err(FetchError::Folder { path: path.to_owned(), source: error.into() });
        }
    };
    if !is_regular(&file) {
        return Err(foreign());
    }
    let mut part = new(&file).map_err(|source| disk(path, source))?;
    if !part.is_ours()? {
        if part.is_blank() && part.lock(&file).is_ok() && part.is_blank() && part.is_at(path) {
            // The partial file of another content, whose download ended before any chunk was
            // stored.
            part.remove();
            return Ok(ExistingPart::Nothing);
        }
        // If it is there no more, the download that is just publishing it has cut off its trailer.
        return if part.is_at(path) { Err(foreign()) } else { Ok(ExistingPart::Finished) };
    }
    part.lock(&file)?;
    // The download that held the lock may have published the file before it let go.
    match existing(&part.whole, part.trailer.size) {
        Ok(Existing::Nothing) if part.is_at(path) => {}
        Ok(_) => return Ok(ExistingPart::Finished),
        Err(error) => return Err(error),
    }
    if !part.is_ours()? {
        return Err(foreign());
    }
    part.make_room(&file)?;
    remove_ours(&part.file, &part.claim);
    part.remove_first_name();
    Ok(ExistingPart::Ours(part, file))
}

impl Part {
    /// Opens, locks and prepares the partial file of a download, or creates it. Returns `None` if
    /// another download has published the file meanwhile.
    pub(super) fn open(
        folder: &Path,
        name: &FileName,
        content: ContentId,
        size: u64,
    ) -> Result<Option<Part>, FetchError> {
        let path = folder.join(part_name(name, content));
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let trailer = Trailer { size, content };
            let new = |file: &File| PartFile::new(file, folder, &path, name, trailer);
            let part = match find(&path, new)? {
                ExistingPart::Finished => return Ok(None),
                ExistingPart::Ours(on_disk, file) => Some(Part::begin(on_disk, file, true, true)),
                ExistingPart::Nothing => match existing(&folder.join(name.as_str()), size)? {
                    Existing::Nothing => {
                        remove_stale_claim(folder, name, content);
                        Part::create(folder, &path, new)?
                    }
                    Existing::Candidate(_) => return Ok(None),
                },
            };
            if let Some(part) = part {
                return Ok(Some(part));
            }
        }
        Err(FetchError::UnderWay(path))
    }

    /// Creates a partial file. Returns `None` if another has got its name meanwhile.
    fn create(
        folder: &Path,
        path: &Path,
        new: impl Fn(&File) -> io::Result<PartFile>,
    ) -> Result<Option<Part>, FetchError> {
        let failed = |source| FetchError::Folder { path: path.to_owned(), source };
        let prepare = |file: &File| {
            let mut on_disk = new(file).map_err(failed)?;
            on_disk.lock(file)?;
            on_disk.make_room(file)?;
            Ok(on_disk)
        };
        // A file without a name cannot be opened by others before it is watched.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) {
            let file = File::from(file);
            let part = Part::begin(prepare(&file)?, file, false, false);
            match link(&part.on_disk.file, path) {
                Ok(()) => return Ok(Some(part)),
                Err(Errno::EXIST) => return Ok(None),
                Err(error) => log::debug!("{} gets a name at first: {error}", path.display()),
            }
        }
        let temporary = path.with_file_name(first_name(rand::rng().next_u64()));
        let file = open(&temporary, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        let file = file.map_err(|error| failed(error.into()))?;
        let on_disk = prepare(&file).inspect_err(|_| remove_ours(&file, &temporary))?;
        let part = Part::begin(on_disk, file, false, true);
        let named = part.on_disk.give_name(&temporary, path);
        remove_ours(&part.on_disk.file, &temporary);
        match named {
            Ok(()) => Ok(Some(part)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// Opens it for writing and starts the watch. Another program may have it open if `is_known`,
    /// that is, if it had a name before.
    fn begin(on_disk: PartFile, file: File, is_resumed: bool, is_known: bool) -> Part {
        let direct = open_again(&file, OFlags::WRONLY | OFlags::DIRECT).ok();
        let served = open_again(&file, OFlags::RDONLY).ok().map(Arc::new);
        let watch = OpenWatch::start(&on_disk.file);
        let end = Mutex::new(FinishState {
            writable: Some(Arc::new(Writable { file, direct })),
            lease: None,
            is_doubtful: is_known,
            checked: None,
            is_cut: false,
            is_published: false,
        });
        let direct_works = AtomicBool::new(true);
        Part { on_disk, served, direct_works, watch, end, is_resumed }
    }

    fn end(&self) -> MutexGuard<'_, FinishState> {
        // If a worker panics, its download ends with an error, so the state is not used any more.
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an earlier download has left it.
    pub(super) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    pub(super) fn served(&self) -> Option<Arc<File>> {
        self.served.clone()
    }

    /// The file name of the partial file.
    pub(super) fn file_name(&self) -> String {
        let name = self.on_disk.path.file_name();
        name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(super) fn path(&self) -> &Path {
        &self.on_disk.path
    }

    pub(super) fn whole_path(&self) -> &Path {
        &self.on_disk.whole
    }

    /// Removes its name. To be called when no chunk of it is verified.
    pub(super) fn remove(&self) {
        self.on_disk.remove();
    }

    /// Reserves disk space for the whole file. Returns false if the file system does not support
    /// it. This takes a millisecond on most file systems, and 0.1 s for each GiB on tmpfs, so it is
    /// done while the first chunks are being received.
    pub(super) fn allocate(&self) -> io::Result<bool> {
        self.on_disk.set_aside(&self.writable()?.file)
    }

    /// Translates an error of writing, with `needed` bytes still to be written.
    pub(super) fn write_error(&self, error: io::Error, needed: u64) -> FetchError {
        self.on_disk.write_error(error, needed)
    }

    /// Reads chunk `index` into `buffer` and sets the buffer's length.
    pub(super) fn read_chunk(&self, index: u64, buffer: &mut Buffer) -> io::Result<()> {
        buffer.set_len(chunk_len(index, self.on_disk.trailer.size));
        self.on_disk.file.read_exact_at(buffer.as_mut(), chunk_offset(index))
    }

    /// Writes chunk `index`.
    ///
    /// # Errors
    /// The error of the system; `NotFound` if the file was removed, so that a download does not go
    /// on in vain.
    pub(super) fn write_chunk(&self, index: u64, buffer: &Buffer) -> io::Result<()> {
        self.on_disk.check_not_removed()?;
        let writable = self.writable()?;
        let (length, offset) = (buffer.length(), chunk_offset(index));
        if let Some(direct) = &writable.direct
            && self.direct_works.load(Ordering::Relaxed)
        {
            // Not padded to a whole block. On a file system without locks another download of the
            // same content may have cut and published this very file, which must not grow.
            let (blocks, rest) = buffer.as_ref().split_at(length - length % BLOCK_BYTES);
            match direct.write_all_at(blocks, offset) {
                Ok(()) => return writable.file.write_all_at(rest, offset + blocks.len() as u64),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct_works.store(false, Ordering::Relaxed);
                }
                Err(error) if error.raw_os_error() == STALE_PAGES => {}
                Err(error) => return Err(error),
            }
        }
        writable.file.write_all_at(buffer.as_ref(), offset)
    }

    /// The descriptors to write through. If they were closed for publishing, the file is opened
    /// again.
    fn writable(&self) -> io::Result<Arc<Writable>> {
        let mut end = self.end();
        if let Some(writable) = &end.writable {
            return Ok(Arc::clone(writable));
        }
        // Before opening the file for writing, which would wait for this very lease.
        (end.lease, end.checked, end.is_doubtful) = (None, None, true);
        // Through the page cache, so that a program that has the file mapped sees the same bytes.
        let file = open_again(&self.on_disk.file, OFlags::RDWR)?;
        let writable = Arc::new(Writable { file, direct: None });
        end.writable = Some(Arc::clone(&writable));
        Ok(writable)
    }

    /// Publishes the file durably, unless another program may have changed it since it was checked.
    pub(super) fn finish(&self) -> Result<Finish, FetchError> {
        let failed = |source| self.write_error(source, 0);
        if std::fs::symlink_metadata(&self.on_disk.whole).is_ok() {
            return Err(FetchError::Exists(self.on_disk.whole.clone()));
        }
        self.on_disk.check_not_removed().map_err(failed)?;
        let mut end = self.end();
        if let Some(writable) = end.writable.take() {
            self.close(&mut end, &writable.file).map_err(failed)?;
        }
        let look = || self.on_disk.file.metadata().map(|metadata| FileStamp::of(&metadata));
        let held = self.hold(&mut end);
        let verified = look().map_err(failed)?;
        // Whoever was there before the lease must have opened the file before it.
        end.is_doubtful |= self.watch.was_opened() && end.checked.is_none();
        let is_checked = match held {
            // Not every file system that grants leases also looks for mappings: overlayfs does not.
            // A store through a mapping after the pages were written back changes the stamp.
            Ok(()) => !end.is_doubtful || end.checked == Some(verified),
            Err(NoLease::Unsupported) => end.checked == Some(verified),
            Err(NoLease::Writers) => false,
        };
        if !is_checked || verified.size != self.on_disk.trailer.size {
            log::info!("{} may have been changed: it is checked", self.on_disk.path.display());
            end.is_doubtful = true;
            end.checked = (held != Err(NoLease::Writers)).then_some(verified);
            // After the stamp was taken: from now on any store through a mapping changes it.
            self.on_disk.file.sync_all().map_err(failed)?;
            return Ok(Finish::Doubtful);
        }
        self.on_disk.give_name(&self.on_disk.path, &self.on_disk.whole).map_err(
            |error| match error.kind() {
                io::ErrorKind::AlreadyExists => FetchError::Exists(self.on_disk.whole.clone()),
                _ => self.write_error(error, 0),
            },
        )?;
        (end.is_published, end.lease) = (true, None);
        self.on_disk.sync_folder()?;
        remove_ours(&self.on_disk.file, &self.on_disk.path);
        remove_ours(&self.on_disk.file, &self.on_disk.claim);
        self.on_disk.sync_folder()?;
        // Linking and unlinking change only ctime. If anything else has changed, the file keeps a
        // stamp that is not its own any more, and so is hashed again before it is shared.
        let named = look().map_err(failed)?;
        let is_same = (named.size, named.modified) == (verified.size, verified.modified);
        Ok(Finish::Published(if is_same { named } else { verified }))
    }

    /// Everything is written: cuts the file to its length and makes it durable.
    fn close(&self, end: &mut FinishState, writable: &File) -> io::Result<()> {
        // Another program may have truncated it by its path, without opening it.
        if !end.is_cut && !self.on_disk.is_ours().unwrap_or(false) {
            end.is_doubtful = true;
        }
        end.is_cut = true;
        match self.on_disk.cut(writable) {
            // EIO is reported once: for pages that another program has changed, or for a broken
            // disk, which will fail again.
            Err(error) if error.raw_os_error() == STALE_PAGES => {
                end.is_doubtful |= self.watch.was_opened();
                if end.is_doubtful { Ok(()) } else { Err(error) }
            }
            cut => cut,
        }
    }

    /// Takes the lease. Waits a little for a program that has the file open for writing.
    fn hold(&self, end: &mut FinishState) -> Result<(), NoLease> {
        if end.lease.as_ref().is_some_and(FileLease::is_whole) {
            return Ok(());
        }
        // Somebody waits for the earlier lease or was let in, so a check under it does not count.
        if end.lease.take().is_some() {
            (end.checked, end.is_doubtful) = (None, true);
        }
        if self.on_disk.may_write {
            return Err(NoLease::Unsupported);
        }
        let mut left = PART_WRITER_LOOKS;
        loop {
            match FileLease::take(&self.on_disk.file) {
                Ok(lease) => {
                    end.lease = Some(lease);
                    return Ok(());
                }
                // It may be a child process that was just forked and has not closed our descriptors
                // yet.
                Err(NoLease::Writers) if left > 0 => {
                    left -= 1;
                    thread::sleep(PART_WRITER_LOOK_INTERVAL);
                }
                Err(why) => return Err(why),
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let end = self.end();
        let is_left_cut = end.is_cut && !end.is_published;
        drop(end);
        if is_left_cut && let Ok(writable) = self.writable() {
            self.on_disk.uncut(&writable.file);
        }
    }
}
