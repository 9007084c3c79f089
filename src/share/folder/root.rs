//! The folder that was opened, whatever its path leads to later.
//!
//! Files are listed and hashed below a descriptor of the folder.
//!
//! Rule: if the path leads elsewhere (the folder was moved, its disk was taken out, a link or
//! another folder is in its place), the folder counts as away until the path leads to it again.
//! Otherwise everything behind a link to `/etc` would be published. A disk that comes back may have
//! another device number; then a folder with the same inode is accepted if the state saved in it
//! (`.acervo-share`) names the same peer.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

use super::identity::FolderError;
use super::state;
use crate::model::PeerId;

/// The opened folder and its path.
#[derive(Debug)]
pub(super) struct FolderRoot {
    path: Arc<PathBuf>,
    inode: u64,
    held: Mutex<OpenRoot>,
    is_away: AtomicBool,
}

#[derive(Debug)]
struct OpenRoot {
    /// A descriptor of the folder. The folder is locked as long as it is open.
    folder: Arc<File>,
    device: u64,
}

impl Drop for FolderRoot {
    fn drop(&mut self) {
        // Not only closed: a process that another thread is just starting has a copy of the
        // descriptor, and so the lock, until it runs its program.
        if let Err(error) = self.folder().unlock() {
            log::debug!("{} is unlocked when it is closed: {error}", self.path.display());
        }
    }
}

impl FolderRoot {
    pub fn open(path: &Path) -> Result<FolderRoot, FolderError> {
        let unreadable = |source| FolderError::Unreadable { path: path.to_owned(), source };
        // Absolute, so that it does not depend on the working directory.
        let path = path.canonicalize().map_err(unreadable)?;
        let folder = open(&path).map_err(unreadable)?;
        let metadata = folder.metadata().map_err(unreadable)?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse(path)),
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) => {
                log::warn!("cannot make sure that nobody else shares {}: {error}", path.display());
            }
        }
        let held = OpenRoot { folder: Arc::new(folder), device: metadata.dev() };
        Ok(FolderRoot {
            path: Arc::new(path),
            inode: metadata.ino(),
            held: Mutex::new(held),
            is_away: AtomicBool::new(false),
        })
    }

    pub fn path(&self) -> &Arc<PathBuf> {
        &self.path
    }

    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// A descriptor of the folder, even if it is away.
    pub fn folder(&self) -> Arc<File> {
        Arc::clone(&self.held().folder)
    }

    fn held(&self) -> MutexGuard<'_, OpenRoot> {
        // The two fields are only changed together.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor of the folder, if its path leads to it. `peer` is the peer that shares it.
    ///
    /// # Errors
    /// The path leads to nothing, or to something else.
    pub fn in_place(&self, peer: PeerId) -> io::Result<Arc<File>> {
        let found = open(&self.path)?;
        let metadata = found.metadata()?;
        let mut held = self.held();
        if (metadata.dev(), metadata.ino()) != (held.device, self.inode) {
            let is_it = metadata.ino() == self.inode
                && state::load(&self.path, self.inode).is_some_and(|state| state.peer == peer)
                && !matches!(found.try_lock(), Err(TryLockError::WouldBlock));
            if !is_it {
                return Err(io::Error::other("another folder is in its place"));
            }
            *held = OpenRoot { folder: Arc::new(found), device: metadata.dev() };
        }
        Ok(Arc::clone(&held.folder))
    }

    /// Logs when the folder goes away and when it comes back.
    pub fn report_scan(&self, found: Result<(), &io::Error>) {
        let was_away = self.is_away.swap(found.is_err(), Ordering::Relaxed);
        match found {
            Ok(()) if was_away => log::warn!("{} is there again", self.path.display()),
            Err(error) if !was_away => log::warn!(
                "{} is not the folder that is shared any more: {error}; nothing is offered until \
                 it is back",
                self.path.display()
            ),
            Ok(()) | Err(_) => {}
        }
    }
}

/// Opens a folder. A link is not followed, and a FIFO is not waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags =
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::folder::state::FolderState;

    #[test]
    fn a_disk_with_a_new_device_number_is_recognized_by_its_state_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = FolderRoot::open(dir.path()).unwrap();
        let returns = |state: Option<FolderState>| {
            if let Some(FolderState { peer, inode, .. }) = state {
                state::save(&root.folder(), peer, inode, std::iter::empty()).unwrap();
            }
            root.held().device += 1;
            // A disk that was taken out holds no lock on the one that comes.
            root.folder().unlock().unwrap();
            root.in_place(PeerId(7)).is_ok()
        };
        assert!(!returns(None));
        assert!(!returns(Some(FolderState::new(PeerId(8), root.inode()))));
        assert!(!returns(Some(FolderState::new(PeerId(7), root.inode() + 1))));
        assert!(returns(Some(FolderState::new(PeerId(7), root.inode()))));
        assert!(root.in_place(PeerId(8)).is_ok(), "it is held under its new number");
    }
}
