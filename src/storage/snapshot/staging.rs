//! Where a store is built beside the one in use, and how it takes that one's place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits;
use crate::storage::disk::DiskEngine;
use crate::storage::engine::{Engine, EngineError};
use crate::storage::log::sync_dir;
use crate::storage::memory::MemoryEngine;

/// A place for one store *under construction*, which becomes the *staged* one once it is complete,
/// and then the store in use.
pub trait StagingArea: Send {
    /// An empty engine under construction; an earlier one is removed.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`], [`EngineError::File`].
    fn begin(&self) -> Result<Arc<dyn Engine>, EngineError>;

    /// What is under construction becomes the staged store, durably. Its last batch was a durable
    /// one, and nobody holds it any more.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    fn complete(&self) -> Result<(), EngineError>;

    /// The staged store takes the place of the one in use, durably, and is opened.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`], [`EngineError::File`].
    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError>;

    /// Removes what is under construction, if it can; the next start will if this cannot.
    fn abandon(&self);
}

/// Staging in a data directory: one file under construction, one staged, one in use. Only their
/// names tell them apart.
#[derive(Clone, Debug)]
pub struct DiskStaging {
    dir: PathBuf,
    partial: PathBuf,
    staged: PathBuf,
    store: PathBuf,
}

impl DiskStaging {
    /// `dir` holds all three files.
    pub(in crate::storage) fn new(
        dir: &Path,
        partial: &str,
        staged: &str,
        store: &str,
    ) -> DiskStaging {
        DiskStaging {
            dir: dir.to_path_buf(),
            partial: dir.join(partial),
            staged: dir.join(staged),
            store: dir.join(store),
        }
    }

    /// Opens the staged store, if there is one.
    pub(in crate::storage) fn open_staged(&self) -> Result<Option<DiskEngine>, EngineError> {
        match fs::exists(&self.staged) {
            Ok(true) => DiskEngine::open(&self.staged, limits::STAGING_CACHE_BYTES).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(failed("look for", &self.staged)(error)),
        }
    }

    /// Removes the staged store, if there is one.
    pub(in crate::storage) fn remove_staged(&self) -> Result<(), EngineError> {
        remove(&self.staged)
    }

    /// Removes the store under construction, if there is one.
    pub(in crate::storage) fn remove_partial(&self) -> Result<(), EngineError> {
        remove(&self.partial)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), EngineError> {
        fs::rename(from, to).and_then(|()| sync_dir(&self.dir)).map_err(failed("rename", from))
    }
}

impl StagingArea for DiskStaging {
    fn begin(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.remove_partial()?;
        Ok(Arc::new(DiskEngine::open(&self.partial, limits::STAGING_CACHE_BYTES)?))
    }

    fn complete(&self) -> Result<(), EngineError> {
        self.rename(&self.partial, &self.staged)
    }

    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.rename(&self.staged, &self.store)?;
        Ok(Arc::new(DiskEngine::open(&self.store, limits::ENGINE_CACHE_BYTES)?))
    }

    fn abandon(&self) {
        if let Err(error) = self.remove_partial() {
            log::warn!("an unfinished snapshot is left until the next start: {error}");
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.display().to_string();
    move |error| EngineError::File { action, path, detail: error.to_string() }
}

fn remove(path: &Path) -> Result<(), EngineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Staging in memory, for tests and simulations. Clones share their stores.
#[derive(Clone, Default)]
pub struct MemoryStaging {
    stores: Arc<Mutex<MemoryStores>>,
}

#[derive(Default)]
struct MemoryStores {
    partial: Option<Arc<MemoryEngine>>,
    staged: Option<Arc<MemoryEngine>>,
    promoted: Option<Arc<MemoryEngine>>,
}

impl MemoryStaging {
    /// Staging without any store.
    pub fn new() -> MemoryStaging {
        MemoryStaging::default()
    }

    /// The store that took the place of the one in use last.
    pub fn promoted(&self) -> Option<Arc<MemoryEngine>> {
        self.with(|stores| stores.promoted.clone())
    }

    /// Whether a store is under construction.
    pub fn is_building(&self) -> bool {
        self.with(|stores| stores.partial.is_some())
    }

    fn with<T>(&self, step: impl FnOnce(&mut MemoryStores) -> T) -> T {
        // Each step is an assignment or two.
        step(&mut self.stores.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl StagingArea for MemoryStaging {
    fn begin(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let engine = Arc::new(MemoryEngine::new());
        self.with(|stores| stores.partial = Some(engine.clone()));
        Ok(engine)
    }

    fn complete(&self) -> Result<(), EngineError> {
        self.with(|stores| stores.staged = stores.partial.take());
        Ok(())
    }

    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let staged = self.with(|stores| {
            stores.promoted = stores.staged.take();
            stores.promoted.clone()
        });
        match staged {
            Some(engine) => Ok(engine),
            None => Err(EngineError::Read("no snapshot is staged".to_owned())),
        }
    }

    fn abandon(&self) {
        self.with(|stores| stores.partial = None);
    }
}
