//! The place where a store is built beside the one in use, and the way in which it replaces that
//! one.

use std::io;
use std::sync::Arc;

use crate::limits;
use crate::storage::disk::{DiskEngine, Purpose};
use crate::storage::engine::{Engine, EngineError};
use crate::storage::files::Directory;
use crate::storage::set_aside;

/// A place for one store *under construction*, which becomes the *staged* one once it is complete,
/// and then the store in use.
pub trait StagingArea: Send {
    /// Creates an empty store under construction; an earlier one is removed.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`], [`EngineError::File`].
    fn begin(&self) -> Result<Arc<dyn Engine>, EngineError>;

    /// Makes the store under construction the staged one, durably. Its last batch was a durable
    /// one, and it is not open any more.
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

    /// Removes the store under construction. If that fails, the next start removes it.
    fn abandon(&self);

    /// Removes the staged store, which is not to replace the one in use. If that fails, the next
    /// start removes it.
    fn discard(&self);
}

/// Staging in a data directory: one file under construction, one staged, one in use, distinguished
/// by their names alone.
#[derive(Clone)]
pub struct DiskStaging {
    directory: Arc<dyn Directory>,
    partial: &'static str,
    staged: &'static str,
    store: &'static str,
}

impl DiskStaging {
    /// `names` are those of the file under construction, the staged one, and the one in use.
    pub(in crate::storage) fn new(
        directory: Arc<dyn Directory>,
        [partial, staged, store]: [&'static str; 3],
    ) -> DiskStaging {
        DiskStaging { directory, partial, staged, store }
    }

    /// Opens the store in use; a blank one is created if there is none.
    pub(in crate::storage) fn open_store(&self) -> Result<DiskEngine, EngineError> {
        let cache_bytes = limits::ENGINE_CACHE_BYTES;
        DiskEngine::open_on(self.directory.clone(), self.store, cache_bytes, Purpose::Use)
    }

    /// Opens the staged store, if there is one.
    pub(in crate::storage) fn open_staged(&self) -> Result<Option<DiskEngine>, EngineError> {
        match self.directory.open(self.staged) {
            Ok(_) => {
                let cache_bytes = limits::STAGING_CACHE_BYTES;
                let (directory, name) = (self.directory.clone(), self.staged);
                DiskEngine::open_on(directory, name, cache_bytes, Purpose::Staging).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("open", self.staged)(error)),
        }
    }

    /// Removes the staged store, if there is one.
    pub(in crate::storage) fn remove_staged(&self) -> Result<(), EngineError> {
        self.remove(self.staged)
    }

    /// Removes the store under construction, if there is one.
    pub(in crate::storage) fn remove_partial(&self) -> Result<(), EngineError> {
        self.remove(self.partial)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), EngineError> {
        self.directory
            .rename(from, to)
            .and_then(|()| self.directory.sync())
            .map_err(self.failed("rename", from))
    }

    /// Removes a store, and the files that an interrupted creation of it has left.
    fn remove(&self, name: &str) -> Result<(), EngineError> {
        DiskEngine::remove(&*self.directory, name).map_err(self.failed("remove", name))
    }

    fn failed(&self, action: &'static str, name: &str) -> impl FnOnce(io::Error) -> EngineError {
        let path = self.directory.path(name).display().to_string();
        move |error| EngineError::File { action, path, detail: error.to_string() }
    }
}

impl StagingArea for DiskStaging {
    fn begin(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.remove_partial()?;
        let cache_bytes = limits::STAGING_CACHE_BYTES;
        let (directory, name) = (self.directory.clone(), self.partial);
        Ok(Arc::new(DiskEngine::open_on(directory, name, cache_bytes, Purpose::Staging)?))
    }

    fn complete(&self) -> Result<(), EngineError> {
        self.rename(self.partial, self.staged)
    }

    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.rename(self.staged, self.store)?;
        let engine = self.open_store()?;
        if let Err(error) = set_aside::store_rebuilt(&*self.directory) {
            log::warn!("a damaged store is left until the next start: {error}");
        }
        Ok(Arc::new(engine))
    }

    fn abandon(&self) {
        if let Err(error) = self.remove_partial() {
            log::warn!("an unfinished snapshot is left until the next start: {error}");
        }
    }

    fn discard(&self) {
        if let Err(error) = self.remove_staged() {
            log::warn!("a snapshot of no use is left until the next start: {error}");
        }
    }
}
