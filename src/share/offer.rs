//! What a peer offers, as the interface between those that know the files and the one that serves
//! them.
//!
//! A [`Catalog`] names the offers: the shared folder is one, and [`Partials`], the downloads under
//! way, is another. The server (`share::serve`) reads the bytes of an [`Offer`]; a catalogue never
//! does.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::chunks::SharedChunks;
use super::content::Manifest;
use crate::model::{ContentId, FileEntry, FileName};

/// What a [`PeerServer`](super::serve::PeerServer) may serve. The server calls these methods on
/// its event loop, so implementations must answer from memory and must not block.
pub trait Catalog: Send + Sync {
    /// The file that is offered under a name.
    fn find(&self, name: &FileName) -> Option<FileEntry>;

    /// The whole or partial file that has a content.
    fn offer(&self, content: ContentId) -> Option<Offer>;

    /// Whether a file that had this content is waiting to be scanned or hashed again, so that the
    /// content may be offered again within seconds. The server then answers CHANGED, not NOT_FOUND.
    fn may_return(&self, _content: ContentId) -> bool {
        false
    }

    /// The server found that the file of `offer` is gone or has changed. The catalogue must not
    /// offer it again before it has looked at the file.
    fn changed(&self, offer: &Offer);

    /// The server found that the file of `offer` holds other bytes than were hashed although its
    /// stamp is unchanged. Looking at it does not help: it has to be hashed again.
    fn corrupted(&self, offer: &Offer) {
        self.changed(offer);
    }
}

/// A file that can be served. Cloning it copies a few pointers and a name.
#[derive(Clone, Debug)]
pub struct Offer {
    pub manifest: Arc<Manifest>,
    /// The folder that holds the file.
    pub folder: Arc<PathBuf>,
    /// The file's name in that folder, without any separator.
    pub file: String,
    /// An open descriptor to serve from. Without one, the file is opened by its name for each
    /// chunk.
    pub opened: Option<Arc<File>>,
    /// What the file looked like when it was hashed. `None` for a file that is being written: then
    /// each chunk is compared with its hash before it is sent.
    pub stamp: Option<FileStamp>,
    pub available: Available,
}

/// Which chunks of an offer can be served.
#[derive(Clone, Debug)]
pub enum Available {
    /// Every chunk of the content.
    Whole,
    /// The chunks that have been received and verified so far.
    Partial(Arc<SharedChunks>),
}

impl Available {
    /// Whether chunk `index` can be served. The content has to have such a chunk.
    pub fn contains(&self, index: u64) -> bool {
        match self {
            Available::Whole => true,
            Available::Partial(chunks) => chunks.contains(index),
        }
    }
}

/// Attributes that change when a file is changed, so that a change is noticed without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    pub size: u64,
    /// Last modification, if the file system records it.
    pub modified: Option<SystemTime>,
    /// Time of the last change of the file or its inode (ctime), in nanoseconds since the Unix
    /// epoch. Unlike the modification time, no program can set it back.
    pub changed_ns: i128,
}

impl FileStamp {
    pub fn of(metadata: &Metadata) -> FileStamp {
        let changed_ns =
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        FileStamp { size: metadata.len(), modified: metadata.modified().ok(), changed_ns }
    }
}

/// The contents that are being downloaded. They are served from the first verified chunk on, so
/// that peers that download the same content can pass it on to each other. They are never found by
/// name, because none of them is a file yet.
#[derive(Debug, Default)]
pub struct Partials {
    offers: Mutex<PartialOffers>,
}

#[derive(Debug, Default)]
struct PartialOffers {
    next_slot: u64,
    /// One content may have several downloads: into different folders, or a second one that ends
    /// at once because the first is under way.
    by_content: HashMap<ContentId, Vec<(u64, Offer)>>,
}

/// One download's own entry in [`Partials`]. It can replace and remove only what it has inserted
/// itself.
#[derive(Clone, Debug)]
pub struct PartialsSlot {
    partials: Arc<Partials>,
    slot: u64,
}

impl Partials {
    pub fn slot(self: &Arc<Partials>) -> PartialsSlot {
        let mut offers = self.lock();
        offers.next_slot += 1;
        PartialsSlot { partials: Arc::clone(self), slot: offers.next_slot }
    }

    fn lock(&self) -> MutexGuard<'_, PartialOffers> {
        // No method panics half-way through a change, so a poisoned map is still consistent.
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialsSlot {
    /// Offers a content in place of the one that this download has offered before.
    pub fn insert(&self, offer: Offer) {
        let content = offer.manifest.content();
        // Both steps under one lock, so that there is no moment without an offer.
        let mut offers = self.partials.lock();
        offers.remove(self.slot);
        offers.by_content.entry(content).or_default().push((self.slot, offer));
    }

    /// Withdraws the offer: the download has ended, or the folder's own catalogue has the file now.
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
            // A file that has got its final name meanwhile is another offer, and stays.
            offers.retain(|(_, now)| (&now.folder, &now.file) != (&offer.folder, &offer.file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::chunks::ChunkSet;

    /// A second download of a content that was under way ended at once, and took the first one's
    /// offer with it.
    #[test]
    fn a_download_removes_its_own_offer_and_no_other() {
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
        // A download into another folder ends sooner.
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
