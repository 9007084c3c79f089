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
//! anything else under that name ends the download, unread and unlocked. A new partial file is made without a name, or
//! under a random one where that cannot be, and gets its own only when it has its trailer, its lock and its watch: so
//! no crash leaves one without, and nobody else has it open.
//!
//! **What gets the final name is the open file**, whose chunks were verified, and not whatever is under a path by then:
//! somebody may have removed `NAME.part` meanwhile, and another download have begun a new one.
//!
//! **Nobody writes to it when it gets that name, and all of it was checked if anybody may have.** When everything has
//! arrived our descriptors that can write are closed, and a [`Lease`] is taken, which there is only while nobody else has
//! the file open for writing or has a mapping that can. If it was left by an earlier download, or anybody has
//! opened it since this one began ([`OpenWatch`]), the whole of it is checked under the lease; what is not good is fetched again, and
//! then it begins anew. Somebody who does not end writing is waited for a little, and then told of. Where the file system knows no
//! leases the whole is always checked, and again if its length or time of change is not the same after that.
//!
//! The steps at the end, each of which may be the last before a crash: give the file the name of a *claim*, which says that
//! it is ours while it has no trailer; cut it to the content's length; make the bytes durable; give it the final
//! name, replacing nothing; make that durable; take the other two names away.
//!
//! Chunks are written past the page cache where the system allows that: it costs a tenth of the
//! processor time, and there is nothing left to write when the file is to be durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rand::Rng;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use self::file::Trailer;
use self::file::{BLOCK_BYTES, PartFile, disk, open_again};
use self::lease::{Lease, NoLease};
pub(super) use self::names::{Existing, descriptor_path, existing, remove_leftovers};
use self::names::{first_name, link, open, part_name, remove_ours};
use super::api::FetchError;
use super::watch::OpenWatch;
use crate::limits;
use crate::model::{ContentId, FileName};
use crate::net::Buffer;
use crate::share::content::{chunk_len, chunk_offset};
use crate::share::offer::FileStamp;

mod file;
mod lease;
mod names;
#[cfg(test)]
mod tests;

/// How often a partial file that came or went just when it was looked for is looked for again.
const OPEN_ATTEMPTS_MAX: usize = 5;
/// `EIO`. The system says it of a write past the page cache to what others have mapped and changed.
const STALE_PAGES: Option<i32> = Some(Errno::IO.raw_os_error());

/// A partial file, locked against other downloads as long as this exists.
#[derive(Debug)]
pub(super) struct Part {
    on_disk: PartFile,
    /// What is served of it: a descriptor of its own, since whoever opens it by its name is a doubt.
    served: Option<Arc<File>>,
    direct_works: AtomicBool,
    watch: OpenWatch,
    end: Mutex<FinishState>,
    is_resumed: bool,
}

/// What chunks are written through.
#[derive(Debug)]
struct Writable {
    file: File,
    /// The same file, past the page cache.
    direct: Option<File>,
}

/// How far the file is on its way to its name.
#[derive(Debug)]
struct FinishState {
    /// None from when everything has arrived, as long as nothing has to be fetched again.
    writable: Option<Arc<Writable>>,
    lease: Option<Lease>,
    /// Others may have written to it: it gets its name only after a check of the whole.
    is_doubtful: bool,
    /// It was checked, or is being checked, under the lease; or, where there are none, while it looked like this.
    checked: Option<FileStamp>,
    /// It has no trailer.
    is_cut: bool,
    is_published: bool,
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
enum ExistingPart {
    Nothing,
    /// It got its final name, or went, just now.
    Finished,
    /// It is locked; with a descriptor that can write.
    Ours(PartFile, File),
}

/// Whether another download has the lock of the partial file that is there. Looked at through a descriptor that reads
/// alone: one that may write would take its lease from the other one, which would then have to check everything again.
fn is_locked_by_other(path: &Path, new: impl Fn(&File) -> io::Result<PartFile>) -> bool {
    let Ok(file) = open(path, OFlags::RDONLY) else { return false };
    let ours = new(&file).is_ok_and(|part| part.is_ours().unwrap_or(false));
    let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    ours && lock() == Err(Errno::WOULDBLOCK)
}

/// Opens the partial file that is there, if it is ours.
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
        // Somebody holds a lease of it: a download that began just now.
        Err(Errno::AGAIN) => return Err(FetchError::UnderWay(path.to_owned())),
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(foreign()),
        Err(error) => {
            return Err(FetchError::Folder { path: path.to_owned(), source: error.into() });
        }
    };
    let mut part = new(&file).map_err(|source| disk(path, source))?;
    if !part.is_ours()? {
        if part.is_blank() && part.lock(&file).is_ok() && part.is_blank() && part.is_at(path) {
            // A download of another content, which was killed before anything of it was verified.
            part.remove();
            return Ok(ExistingPart::Nothing);
        }
        // Unless it has lost its trailer to the download that is just finishing it.
        return if part.is_at(path) { Err(foreign()) } else { Ok(ExistingPart::Finished) };
    }
    part.lock(&file)?;
    // Whoever had the lock may have finished: then this file has its final name by now.
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
            let trailer = Trailer { size, content };
            let new = |file: &File| PartFile::new(file, folder, &path, name, trailer);
            let part = match find(&path, new)? {
                ExistingPart::Finished => return Ok(None),
                ExistingPart::Ours(on_disk, file) => Some(Part::begin(on_disk, file, true, true)),
                ExistingPart::Nothing => match existing(&folder.join(name.as_str()), size)? {
                    Existing::Nothing => Part::create(folder, &path, new)?,
                    Existing::Candidate(_) => return Ok(None),
                },
            };
            if let Some(part) = part {
                return Ok(Some(part));
            }
        }
        Err(FetchError::UnderWay(path))
    }

    /// Makes a new partial file. `None`: somebody else's has come in between.
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
        // Without a name nobody else opens it before it is watched.
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

    /// Opens it for writing chunks, and watches it. Whoever opens it after this is somebody else, and so may somebody be
    /// who `is_known` has opened it before.
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
        // Where a worker panics its download ends.
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an earlier download has left something in it.
    pub(super) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// What it is served from.
    pub(super) fn served(&self) -> Option<Arc<File>> {
        self.served.clone()
    }

    /// The name it has as long as it is a part.
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

    /// Takes its name away: nothing of it was verified.
    pub(super) fn remove(&self) {
        self.on_disk.remove();
    }

    /// Has the file system set everything aside, so that nobody else can take it. `false`: it does not
    /// know how. That takes a millisecond on most, and a tenth of a second a gibibyte on one in memory:
    /// so it is done while the first chunks are on their way.
    pub(super) fn allocate(&self) -> io::Result<bool> {
        self.on_disk.set_aside(&self.writable()?.file)
    }

    /// What an error of writing means, with `needed` bytes still to come.
    pub(super) fn write_error(&self, error: io::Error, needed: u64) -> FetchError {
        self.on_disk.write_error(error, needed)
    }

    /// Reads chunk `index` into `buffer`, which takes on its length.
    pub(super) fn read_chunk(&self, index: u64, buffer: &mut Buffer) -> io::Result<()> {
        buffer.set_len(chunk_len(index, self.on_disk.trailer.size));
        self.on_disk.file.read_exact_at(buffer.as_mut(), chunk_offset(index))
    }

    /// Writes chunk `index`.
    ///
    /// # Errors
    /// What the system says; `NotFound` when the file has been removed, so that a download does not go on to its
    /// end in vain.
    pub(super) fn write_chunk(&self, index: u64, buffer: &Buffer) -> io::Result<()> {
        self.on_disk.check_not_removed()?;
        let writable = self.writable()?;
        let (length, offset) = (buffer.length(), chunk_offset(index));
        if let Some(direct) = &writable.direct
            && self.direct_works.load(Ordering::Relaxed)
        {
            // Not padded to a whole block: where a file system has no locks, another download of the same content
            // may have cut and published this very file, which must not grow.
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

    /// What chunks are written through. After everything had arrived it is opened anew: others may have come in between.
    fn writable(&self) -> io::Result<Arc<Writable>> {
        let mut end = self.end();
        if let Some(writable) = &end.writable {
            return Ok(Arc::clone(writable));
        }
        // Before it is opened, or that would wait for this very lease.
        (end.lease, end.checked, end.is_doubtful) = (None, None, true);
        // Through the page cache, where whoever has it mapped sees the same bytes.
        let file = open_again(&self.on_disk.file, OFlags::RDWR)?;
        let writable = Arc::new(Writable { file, direct: None });
        end.writable = Some(Arc::clone(&writable));
        Ok(writable)
    }

    /// Makes the whole file durable and gives it its name, if nobody else may have changed it since it was checked.
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
        // Whoever was there before the lease has opened it before.
        end.is_doubtful |= self.watch.was_opened() && end.checked.is_none();
        let is_checked = match held {
            // Not every file system that gives leases looks whether the file is mapped: overlayfs does not. What is
            // stored through a mapping after the pages were clean changes the stamp.
            Ok(()) => !end.is_doubtful || end.checked == Some(verified),
            Err(NoLease::Unsupported) => end.checked == Some(verified),
            Err(NoLease::Writers) => false,
        };
        if !is_checked || verified.size != self.on_disk.trailer.size {
            log::info!("{} may have been changed: it is checked", self.on_disk.path.display());
            end.is_doubtful = true;
            end.checked = (held != Err(NoLease::Writers)).then_some(verified);
            // After the stamp was taken: from here on whatever is stored through a mapping changes it.
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
        // Names given and taken change the time of the last change, and nothing else. A file that was written to since
        // keeps the stamp that it has no more, and so is hashed anew before it is shared.
        let named = look().map_err(failed)?;
        let is_same = (named.size, named.modified) == (verified.size, verified.modified);
        Ok(Finish::Published(if is_same { named } else { verified }))
    }

    /// Nothing more is to be written: it gets its length, and is made durable.
    fn close(&self, end: &mut FinishState, writable: &File) -> io::Result<()> {
        // Somebody may have cut it by its path, without opening it.
        if !end.is_cut && !self.on_disk.is_ours().unwrap_or(false) {
            end.is_doubtful = true;
        }
        end.is_cut = true;
        match self.on_disk.cut(writable) {
            // It is told once: of pages that others have changed, or of a disk that fails, which reading or writing tells.
            Err(error) if error.raw_os_error() == STALE_PAGES => {
                end.is_doubtful |= self.watch.was_opened();
                if end.is_doubtful { Ok(()) } else { Err(error) }
            }
            cut => cut,
        }
    }

    /// Makes sure that nobody else writes to it, waiting a little for who does.
    fn hold(&self, end: &mut FinishState) -> Result<(), NoLease> {
        if end.lease.as_ref().is_some_and(Lease::is_whole) {
            return Ok(());
        }
        // Somebody waits for the one that there was, or has it open by now: what was checked under it does not count.
        if end.lease.take().is_some() {
            (end.checked, end.is_doubtful) = (None, true);
        }
        if self.on_disk.may_write {
            return Err(NoLease::Unsupported);
        }
        let mut left = limits::PART_WRITER_LOOKS;
        loop {
            match Lease::take(&self.on_disk.file) {
                Ok(lease) => {
                    end.lease = Some(lease);
                    return Ok(());
                }
                // It may be a program that was started just now and has not let go of our own descriptors yet.
                Err(NoLease::Writers) if left > 0 => {
                    left -= 1;
                    thread::sleep(limits::PART_WRITER_LOOK_INTERVAL);
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
