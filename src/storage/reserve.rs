//! Keeps a reserve of disk space, so that a full disk does not stop a server.
//!
//! A server without any room could not even log the removal that makes some. So a data directory
//! contains a *reserve*: a file of allocated bytes without content. Rule: a write that finds the
//! disk full frees a part of the reserve and is repeated. Long before, the server refuses writes
//! that add to the store, and warns ([`DiskSpace`]). If the reserve is used up a write waits for
//! room and does not fail: a failed write would end the server, which would not start again without
//! room either.
//!
//! Only writes are repeated, because they put the same bytes in the same place. A sync is not
//! repeated: after a failed one it is unknown what is on the disk, whatever the reason.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::files::{Directory, DiskFile, Space};
use crate::limits;
use crate::model::DiskSpace;

const RESERVE: &str = "RESERVE";
/// The number of parts in which the reserve is freed.
const PIECES: u64 = 16;
/// The interval at which a write is repeated when the reserve is used up.
const WAIT: Duration = Duration::from_millis(100);

/// The reserve of a data directory.
pub struct DiskReserve {
    /// The data directory and the log's directory, which may be on another file system.
    directories: [Arc<dyn Directory>; 2],
    file: Arc<dyn DiskFile>,
    /// The size of the complete reserve; also the free space below which the disk counts as full.
    whole_bytes: u64,
    state: Mutex<ReserveState>,
    /// Notified for writes that wait: the server stops.
    closing: Condvar,
    closed: AtomicBool,
}

struct ReserveState {
    /// The bytes of the reserve that are allocated now.
    held_bytes: u64,
    space: DiskSpace,
    /// It has been logged that a write waits.
    wait_logged: bool,
    /// The file system cannot allocate a reserve, for another reason than lack of room.
    refused: bool,
}

impl DiskReserve {
    /// Opens the reserve of a directory, or creates it. Lack of room for it is no error.
    ///
    /// # Errors
    ///
    /// What the operating system says of the reserve's file or of the disk.
    pub(super) fn open(
        directory: Arc<dyn Directory>,
        log: Arc<dyn Directory>,
    ) -> io::Result<DiskReserve> {
        let Space { total_bytes, .. } = directory.space()?;
        let file = match directory.create(RESERVE) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                directory.open(RESERVE)?
            }
            created => created?,
        };
        let whole_bytes = limits::DISK_RESERVE_BYTES_MAX.min(total_bytes / 8).max(1);
        let mut held_bytes = file.len_bytes()?;
        if held_bytes > whole_bytes {
            file.set_len(whole_bytes)?;
            held_bytes = whole_bytes;
        }
        let state = ReserveState {
            held_bytes,
            space: DiskSpace::Ample,
            wait_logged: false,
            refused: false,
        };
        let reserve = DiskReserve {
            directories: [directory, log],
            file,
            whole_bytes,
            state: Mutex::new(state),
            closing: Condvar::new(),
            closed: AtomicBool::new(false),
        };
        reserve.check()?;
        Ok(reserve)
    }

    /// The room on the disk as of the last check.
    pub fn space(&self) -> DiskSpace {
        self.state().space
    }

    /// Checks the room on the disk, and refills the reserve if there is room for it.
    ///
    /// # Errors
    ///
    /// What the operating system says of the reserve's file or of the disk.
    pub fn check(&self) -> io::Result<DiskSpace> {
        let mut free_bytes = u64::MAX;
        for directory in &self.directories {
            free_bytes = free_bytes.min(directory.space()?.free_bytes);
        }
        let mut state = self.state();
        let missing_bytes = self.whole_bytes - state.held_bytes;
        // The reserve is refilled first. Some space is left free, so that not every write uses the
        // reserve.
        let spare_bytes = free_bytes.saturating_sub(self.whole_bytes / 4).min(missing_bytes);
        if spare_bytes > 0 && !state.refused {
            match self.file.allocate(state.held_bytes + spare_bytes) {
                Ok(()) => {
                    state.held_bytes += spare_bytes;
                    free_bytes -= spare_bytes;
                }
                Err(error) if is_full(&error) => {}
                Err(error) => {
                    log::warn!("this server does without a reserve on its disk: {error}");
                    state.refused = true;
                }
            }
        }
        let mut held_bytes = state.held_bytes;
        if state.refused {
            // Free space counts as the reserve.
            held_bytes += free_bytes.min(self.whole_bytes - held_bytes);
            free_bytes -= held_bytes - state.held_bytes;
        }
        state.space = self.judge(held_bytes, free_bytes, state.space);
        state.wait_logged &= state.space == DiskSpace::Exhausted;
        Ok(state.space)
    }

    fn judge(&self, held_bytes: u64, free_bytes: u64, before: DiskSpace) -> DiskSpace {
        let whole_bytes = self.whole_bytes;
        // Hysteresis: a full disk counts as full until there is somewhat more room, so that single
        // writes do not change it.
        let margin_bytes = if before >= DiskSpace::Full { whole_bytes / 4 } else { 0 };
        // The room beside the reserve, also if that is not complete.
        let room_bytes = (held_bytes + free_bytes).saturating_sub(whole_bytes);
        if held_bytes <= whole_bytes / 2 {
            DiskSpace::Exhausted
        } else if !self.is_enough(held_bytes) || room_bytes < whole_bytes + margin_bytes {
            DiskSpace::Full
        } else if room_bytes < 4 * whole_bytes {
            DiskSpace::Low
        } else {
            DiskSpace::Ample
        }
    }

    fn is_enough(&self, held_bytes: u64) -> bool {
        held_bytes >= self.whole_bytes / 4 * 3
    }

    /// Makes room after a write that found the disk full. `Ok`: the write is to be repeated.
    fn make_room(&self, full: io::Error, path: &dyn Fn() -> PathBuf) -> io::Result<()> {
        let mut state = self.state();
        state.space = state.space.max(DiskSpace::Full);
        if state.held_bytes > 0 {
            let piece_bytes = (self.whole_bytes / PIECES).max(1);
            assert!(
                state.held_bytes <= self.whole_bytes,
                "{} bytes of a reserve of {}",
                state.held_bytes,
                self.whole_bytes
            );
            let left_bytes = state.held_bytes.saturating_sub(piece_bytes);
            self.file.set_len(left_bytes)?;
            state.held_bytes = left_bytes;
            return Ok(());
        }
        state.space = DiskSpace::Exhausted;
        if self.closed.load(Ordering::Acquire) {
            return Err(full);
        }
        if !std::mem::replace(&mut state.wait_logged, true) {
            log::error!("cannot write {}: {full}; waiting until there is room", path().display());
        }
        drop(self.closing.wait_timeout(state, WAIT));
        Ok(())
    }

    /// Fails if an expendable file is to be written while the room is needed for the reserve.
    fn check_enough(&self) -> io::Result<()> {
        let state = self.state();
        match state.refused || self.is_enough(state.held_bytes) {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    /// Makes writes that wait for room fail, and those to come.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.closing.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, ReserveState> {
        // No method leaves the state inconsistent where it can panic, so a poisoned lock is
        // ignored.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory whose writes use the reserve when the disk is full.
pub(super) struct ReservedDirectory {
    pub(super) inner: Arc<dyn Directory>,
    pub(super) reserve: Arc<DiskReserve>,
}

struct ReservedFile {
    inner: Arc<dyn DiskFile>,
    reserve: Arc<DiskReserve>,
    path: PathBuf,
    /// The file is expendable: its writes fail on a full disk, and do not use the reserve.
    expendable: bool,
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn with_room<T>(
    reserve: &DiskReserve,
    path: &dyn Fn() -> PathBuf,
    step: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match step() {
            Err(error) if is_full(&error) => reserve.make_room(error, path)?,
            done => return done,
        }
    }
}

impl ReservedFile {
    fn with_room<T>(&self, step: impl Fn() -> io::Result<T>) -> io::Result<T> {
        if self.expendable {
            self.reserve.check_enough()?;
            return step();
        }
        with_room(&self.reserve, &|| self.path.clone(), step)
    }
}

impl ReservedDirectory {
    fn file(&self, name: &str, inner: Arc<dyn DiskFile>, expendable: bool) -> Arc<dyn DiskFile> {
        let path = self.inner.path(name);
        Arc::new(ReservedFile { inner, reserve: self.reserve.clone(), path, expendable })
    }

    fn with_room<T>(&self, name: &str, step: impl Fn() -> io::Result<T>) -> io::Result<T> {
        with_room(&self.reserve, &|| self.inner.path(name), step)
    }
}

impl Directory for ReservedDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(name, self.with_room(name, || self.inner.create(name))?, false))
    }

    fn create_expendable(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.reserve.check_enough()?;
        Ok(self.file(name, self.inner.create(name)?, true))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(name, self.inner.open(name)?, false))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with_room(to, || self.inner.rename(from, to))
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.inner.remove_directory(name)
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        let inner = self.with_room(name, || self.inner.directory(name))?;
        Ok(Arc::new(ReservedDirectory { inner, reserve: self.reserve.clone() }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.path(name)
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }

    fn is_in_place(&self, names: &[&str]) -> io::Result<bool> {
        self.inner.is_in_place(names)
    }
}

impl DiskFile for ReservedFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with_room(|| self.inner.write_all_at(bytes, offset))
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.with_room(|| self.inner.set_len(len_bytes))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.inner.allocate(len_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.inner.try_lock()
    }

    fn unlock(&self) -> io::Result<()> {
        self.inner.unlock()
    }
}
