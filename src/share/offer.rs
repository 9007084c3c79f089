//! What a peer has to give: the seam between who knows the files and who serves them.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::chunks::SharedChunks;
use super::content::Manifest;
use crate::model::{ContentId, FileEntry, FileName};

/// What a [`PeerServer`](super::serve::Server) may give away. It asks on its event loop: answer from
/// memory, at once.
pub trait Catalog: Send + Sync {
    /// What is offered under a name.
    fn find(&self, name: &FileName) -> Option<FileEntry>;

    /// The file, or the part of one, that has a content.
    fn offer(&self, content: ContentId) -> Option<Offer>;

    /// Whether a file that had this content is still to be looked at, or hashed anew: it may be offered again soon.
    fn may_return(&self, _content: ContentId) -> bool {
        false
    }

    /// Serving `offer` has shown that its file is gone, or not what was hashed any more: do not offer
    /// it again before looking at the file.
    fn changed(&self, offer: &Offer);

    /// Serving `offer` has shown that its file holds other bytes than were hashed, although it looks the same: looking at
    /// it does not help, and it has to be hashed anew.
    fn corrupted(&self, offer: &Offer) {
        self.changed(offer);
    }
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
    /// The file itself, where it is open for whoever serves it: else it is opened by its name.
    pub opened: Option<Arc<File>>,
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
    /// Last change of the file or of what the system knows of it (ctime), in nanoseconds since the Unix epoch: unlike the
    /// modification time, nobody can turn it back.
    pub changed_ns: i128,
}

impl FileStamp {
    /// The stamp of an open file.
    pub fn of(metadata: &Metadata) -> FileStamp {
        let changed_ns =
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        FileStamp { size: metadata.len(), modified: metadata.modified().ok(), changed_ns }
    }
}

/// What is being downloaded: served from the first chunk on, so that peers who want the same can
/// pass it on to each other. It is never found by name: it is not a file yet.
#[derive(Debug, Default)]
pub struct Partials {
    offers: Mutex<PartialOffers>,
}

#[derive(Debug, Default)]
struct PartialOffers {
    next_slot: u64,
    /// Of one content there may be several: downloads into different folders, or one that ends since another is at it.
    by_content: HashMap<ContentId, Vec<(u64, Offer)>>,
}

/// One download's own place among the [`Partials`]: what it takes back is what it has put there, and nobody else's.
#[derive(Clone, Debug)]
pub struct PartialsSlot {
    partials: Arc<Partials>,
    slot: u64,
}

impl Partials {
    /// A place for one more download.
    pub fn slot(self: &Arc<Partials>) -> PartialsSlot {
        let mut offers = self.lock();
        offers.next_slot += 1;
        PartialsSlot { partials: Arc::clone(self), slot: offers.next_slot }
    }

    fn lock(&self) -> MutexGuard<'_, PartialOffers> {
        // The map is never left half changed.
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialsSlot {
    /// Offers the download's content, in place of what it has offered before.
    pub fn insert(&self, offer: Offer) {
        let content = offer.manifest.content();
        // Under one lock: in between nobody would find it.
        let mut offers = self.partials.lock();
        offers.remove(self.slot);
        offers.by_content.entry(content).or_default().push((self.slot, offer));
    }

    /// Offers it no more: the download has ended, or the folder's own catalogue has the file.
    pub fn remove(&self) {
        self.partials.lock().remove(self.slot);
    }
}

impl PartialOffers {
    fn remove(&mut self, of: u64) {
        self.by_content.retain(|_, offers| {
            offers.retain(|(slot, _)| *slot != of);
            !offers.is_empty()
        });
    }
}

impl Catalog for Partials {
    fn find(&self, _name: &FileName) -> Option<FileEntry> {
        None
    }

    fn offer(&self, content: ContentId) -> Option<Offer> {
        let offers = self.lock();
        let offers = offers.by_content.get(&content)?;
        let is_whole = |(_, offer): &&(u64, Offer)| matches!(offer.available, Available::Whole);
        let (_, offer) = offers.iter().find(is_whole).or_else(|| offers.first())?;
        Some(offer.clone())
    }

    fn changed(&self, offer: &Offer) {
        let (content, mut offers) = (offer.manifest.content(), self.lock());
        if let Some(offers) = offers.by_content.get_mut(&content) {
            // A part that has got its final name meanwhile is not gone.
            offers.retain(|(_, now)| (&now.folder, &now.file) != (&offer.folder, &offer.file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::chunks::ChunkSet;

    /// A second download of a content that was under way ended at once, and took the first one's offer with it.
    #[test]
    fn a_download_takes_back_its_own_offer_and_no_other() {
        let manifest = Arc::new(Manifest::of_bytes(b"content").unwrap());
        let offer = |file: &str, available: Available| Offer {
            manifest: Arc::clone(&manifest),
            folder: Arc::new("/folder".into()),
            file: file.to_owned(),
            opened: None,
            stamp: None,
            available,
        };
        let part = || Available::Partial(Arc::new(SharedChunks::new(ChunkSet::empty(1))));
        let partials = Arc::new(Partials::default());
        let offered = || partials.offer(manifest.content()).map(|offer| offer.file);
        let [first, second] = [partials.slot(), partials.slot()];
        first.insert(offer("first.part", part()));
        second.remove();
        assert_eq!(offered().as_deref(), Some("first.part"));
        // Into another folder, where it is done sooner.
        second.insert(offer("second.part", part()));
        second.insert(offer("second", Available::Whole));
        assert_eq!(offered().as_deref(), Some("second"));
        partials.changed(&offer("second.part", part()));
        assert_eq!(offered().as_deref(), Some("second"));
        partials.changed(&offer("second", Available::Whole));
        assert_eq!(offered().as_deref(), Some("first.part"));
        first.remove();
        assert_eq!(offered(), None);
    }
}
