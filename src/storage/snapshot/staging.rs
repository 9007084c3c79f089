//! The place where a store is built beside the one in use, and the way in which it replaces that
//! one.

use std::io;
use std::sync::Arc;

use crate::storage::engine::{Engine, EngineError, StoreBuilder};
use crate::storage::files::{self, Directory};
use crate::storage::set_aside;
use crate::storage::tables::{TableEngine, TableStoreBuilder, TablesOptions};

/// A place for one store *under construction*, which becomes the *staged* one once it is complete,
/// and then the store in use.
pub trait StagingArea: Send {
    /// Begins an empty store under construction; an earlier one is removed.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`], [`EngineError::File`].
    fn begin(&self) -> Result<Box<dyn StoreBuilder>, EngineError>;

    /// Makes the store under construction, which is finished, the staged one, durably.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    fn complete(&self) -> Result<(), EngineError>;

    /// Replaces the store in use by the staged one, durably, and opens it.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`], [`EngineError::File`].
    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError>;

    /// Removes what is left of stores that were replaced and that nobody reads any more; the next
    /// start removes the rest.
    fn tidy(&self) {}

    /// Removes the store under construction. If that fails, the next start removes it.
    fn abandon(&self);

    /// Removes the staged store, which is not to replace the one in use. If that fails, the next
    /// start removes it.
    fn discard(&self);
}

/// The names of the directories that a store can be in.
#[derive(Clone, Copy, Debug)]
pub(in crate::storage) struct StoreNames {
    pub partial: &'static str,
    pub staged: &'static str,
    pub in_use: &'static str,
    /// A former store in use, from the moment at which it makes way for the staged one until its
    /// last reader has gone; the second one is `store.replaced.2`, and so on.
    pub replaced: &'static str,
}

/// Staging in a data directory: directories of one store each, distinguished by their names alone.
///
/// A directory cannot be renamed over another one that has files, so the store in use makes way
/// first. A crash between the two renames leaves no store in use, and the log begins after the
/// snapshot by then: [`storage::open`](crate::storage::open) promotes the staged one again.
#[derive(Clone)]
pub struct DiskStaging {
    directory: Arc<dyn Directory>,
    names: StoreNames,
}

impl DiskStaging {
    pub(in crate::storage) fn new(directory: Arc<dyn Directory>, names: StoreNames) -> DiskStaging {
        DiskStaging { directory, names }
    }

    /// Opens the store in use; a blank one is created if there is none.
    pub(in crate::storage) fn open_store(&self) -> Result<TableEngine, EngineError> {
        TableEngine::open(self.directory(self.names.in_use)?, TablesOptions::default())
    }

    /// Opens the staged store, if there is one.
    pub(in crate::storage) fn open_staged(&self) -> Result<Option<TableEngine>, EngineError> {
        let staged = self.names.staged;
        let names = self.directory.list().map_err(self.failed("list", ""))?;
        if !names.iter().any(|name| name == staged) {
            return Ok(None);
        }
        TableEngine::open(self.directory(staged)?, TablesOptions::default()).map(Some)
    }

    /// Removes the staged store, if there is one.
    pub(in crate::storage) fn remove_staged(&self) -> Result<(), EngineError> {
        self.remove(self.names.staged)
    }

    /// Removes the store under construction and those that were replaced, if there are any. None
    /// of them is open, and nothing depends on it but room.
    pub(in crate::storage) fn remove_leftovers(&self) {
        let replaced = set_aside::numbered(self.names.replaced);
        for name in replaced.chain([self.names.partial.to_owned()]) {
            if let Err(error) = self.remove(&name) {
                log::warn!("a store of no use is left until the next start: {error}");
            }
        }
    }

    /// A name for a store that makes way.
    fn free_name(&self) -> Result<String, EngineError> {
        let replaced = self.names.replaced;
        let taken = self.directory.list().map_err(self.failed("list", ""))?;
        let free = set_aside::numbered(replaced).find(|name| !taken.contains(name));
        free.ok_or_else(|| {
            let many = io::Error::other("too many former stores are still being read");
            self.failed("name", replaced)(many)
        })
    }

    fn directory(&self, name: &str) -> Result<Arc<dyn Directory>, EngineError> {
        self.directory.directory(name).map_err(|error| EngineError::Open {
            path: self.directory.path(name).display().to_string(),
            detail: error.to_string(),
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), EngineError> {
        self.directory
            .rename(from, to)
            .and_then(|()| self.directory.sync())
            .map_err(self.failed("rename", from))
    }

    fn remove(&self, name: &str) -> Result<(), EngineError> {
        files::remove_directory_if_present(&*self.directory, name)
            .map_err(self.failed("remove", name))
    }

    fn failed(&self, action: &'static str, name: &str) -> impl FnOnce(io::Error) -> EngineError {
        let path = self.directory.path(name).display().to_string();
        move |error| EngineError::File { action, path, detail: error.to_string() }
    }
}

impl StagingArea for DiskStaging {
    fn begin(&self) -> Result<Box<dyn StoreBuilder>, EngineError> {
        self.remove(self.names.partial)?;
        let directory = self.directory(self.names.partial)?;
        Ok(Box::new(TableStoreBuilder::new(directory, TablesOptions::default())))
    }

    fn complete(&self) -> Result<(), EngineError> {
        // Its files are durable, and so is the staged store with the next rename.
        self.rename(self.names.partial, self.names.staged)
    }

    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let StoreNames { staged, in_use, .. } = self.names;
        let replaced = self.free_name()?;
        match self.directory.rename(in_use, &replaced) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(self.failed("rename", in_use))?,
        }
        self.rename(staged, in_use)?;
        let engine = self.open_store()?;
        if let Err(error) = set_aside::store_rebuilt(&*self.directory) {
            log::warn!("a damaged store is left until the next start: {error}");
        }
        Ok(Arc::new(engine))
    }

    fn tidy(&self) {
        for name in set_aside::numbered(self.names.replaced) {
            match self.directory.remove_directory(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Somebody reads it.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => {
                    log::warn!(
                        "{} is left until the next start: {error}",
                        self.directory.path(&name).display()
                    );
                }
                Ok(()) => {}
            }
        }
    }

    fn abandon(&self) {
        if let Err(error) = self.remove(self.names.partial) {
            log::warn!("an unfinished snapshot is left until the next start: {error}");
        }
    }

    fn discard(&self) {
        if let Err(error) = self.remove_staged() {
            log::warn!("a snapshot of no use is left until the next start: {error}");
        }
    }
}
