//! What a peer has to give: the seam between who knows the files and who serves them.

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::chunks::SharedChunks;
use super::content::Manifest;
use super::names::FileName;
use super::types::{ContentId, FileEntry};

/// What a [`Server`](super::serve::Server) may give away. It asks on its event loop: answer from
/// memory, at once.
pub trait Catalog: Send + Sync {
    /// What is offered under a name.
    fn find(&self, name: &FileName) -> Option<FileEntry>;

    /// The file, or the part of one, that has a content.
    fn offer(&self, content: ContentId) -> Option<Offer>;

    /// Serving `offer` has shown that its file is gone, or not what was hashed any more: do not offer
    /// it again before looking at the file.
    fn changed(&self, offer: &Offer);
}

/// Something that can be served. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The content: its size and chunk hashes.
    pub manifest: Arc<Manifest>,
    /// The folder its file is in.
    pub folder: Arc<PathBuf>,
    /// The file's name in that folder, without any separator.
    pub file: String,
    /// What the file looked like when it was hashed. Absent for a file that is being written to:
    /// then each chunk is checked before it is sent.
    pub stamp: Option<FileStamp>,
    /// Which chunks there are.
    pub available: Available,
}

/// Which chunks of an offer there are.
#[derive(Clone, Debug)]
pub enum Available {
    /// All.
    Whole,
    /// Those that have arrived.
    Partial(Arc<SharedChunks>),
}

impl Available {
    /// Whether chunk `index`, which the content has, can be served.
    pub fn contains(&self, index: u64) -> bool {
        match self {
            Available::Whole => true,
            Available::Partial(chunks) => chunks.contains(index),
        }
    }
}

/// What tells, without reading it, that a file is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Length in bytes.
    pub size: u64,
    /// Last modification, where the system knows it.
    pub modified: Option<SystemTime>,
}

impl FileStamp {
    /// The stamp of an open file.
    pub fn of(metadata: &Metadata) -> FileStamp {
        FileStamp { size: metadata.len(), modified: metadata.modified().ok() }
    }
}

/// What is being downloaded: served from the first chunk on, so that peers who want the same can
/// pass it on to each other. It is never found by name: it is not a file yet.
#[derive(Debug, Default)]
pub struct Partials {
    offers: Mutex<HashMap<ContentId, Offer>>,
}

impl Partials {
    /// Offers a download's content, in place of what was offered of it before.
    pub fn insert(&self, offer: Offer) {
        self.lock().insert(offer.manifest.content(), offer);
    }

    /// Offers it no more: the download has ended, or the folder's own catalogue has the file.
    pub fn remove(&self, content: ContentId) {
        self.lock().remove(&content);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContentId, Offer>> {
        // The map is never left half changed.
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for Partials {
    fn find(&self, _name: &FileName) -> Option<FileEntry> {
        None
    }

    fn offer(&self, content: ContentId) -> Option<Offer> {
        self.lock().get(&content).cloned()
    }

    fn changed(&self, offer: &Offer) {
        let (content, mut offers) = (offer.manifest.content(), self.lock());
        // A part that has got its final name meanwhile is not gone.
        if offers.get(&content).is_some_and(|now| now.file == offer.file) {
            offers.remove(&content);
        }
    }
}
