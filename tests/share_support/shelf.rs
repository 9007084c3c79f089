//! Files that a test serves without a folder that is watched.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use acervo::limits::CHUNK_BYTES;
use acervo::model::{ContentId, FileEntry, FileName};
use acervo::net::Listener;
use acervo::share::content::{Manifest, chunk_count, chunk_len, chunk_offset, hash_chunk};
use acervo::share::offer::{Available, Catalog, FileStamp, Offer};
use acervo::share::serve::{PeerServer, ServeOptions};

/// Files that are offered as they were when they were added.
#[derive(Default)]
pub struct Shelf {
    offers: Mutex<HashMap<ContentId, Offer>>,
    /// How often the server found that a file has changed since it was hashed.
    pub changed: AtomicUsize,
}

impl Shelf {
    /// Hashes a file and offers it.
    pub fn add(&self, path: &Path) -> Arc<Manifest> {
        let manifest = Arc::new(manifest_of(path));
        self.insert(Offer {
            manifest: Arc::clone(&manifest),
            folder: Arc::new(path.parent().unwrap().to_owned()),
            file: path.file_name().unwrap().to_str().unwrap().to_owned(),
            opened: None,
            stamp: Some(FileStamp::of(&std::fs::metadata(path).unwrap())),
            available: Available::Whole,
        });
        manifest
    }

    pub fn insert(&self, offer: Offer) {
        self.offers.lock().unwrap().insert(offer.manifest.content(), offer);
    }
}

impl Catalog for Shelf {
    fn find(&self, name: &FileName) -> Option<FileEntry> {
        let offers = self.offers.lock().unwrap();
        let offer = offers.values().find(|offer| offer.file == name.as_str())?;
        let (size, content) = (offer.manifest.size(), offer.manifest.content());
        Some(FileEntry { name: name.clone(), size, content })
    }

    fn offer(&self, content: ContentId) -> Option<Offer> {
        self.offers.lock().unwrap().get(&content).cloned()
    }

    fn changed(&self, offer: &Offer) {
        self.offers.lock().unwrap().remove(&offer.manifest.content());
        self.changed.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn manifest_of(path: &Path) -> Manifest {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut buffer = vec![0; CHUNK_BYTES];
    let hashes = (0..chunk_count(size)).map(|index| {
        let bytes = &mut buffer[..chunk_len(index, size)];
        file.read_exact_at(bytes, chunk_offset(index)).unwrap();
        hash_chunk(index, size, bytes).unwrap()
    });
    Manifest::new(size, hashes.collect()).unwrap()
}

pub fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn serve_with(options: ServeOptions) -> PeerServer {
    let listener = Listener::bind(local()).unwrap();
    if options.peer.load(Ordering::Relaxed) == 0 {
        // The id that `share_support::source` gives to the peer of this address.
        options.peer.store(u64::from(listener.address().port()), Ordering::Relaxed);
    }
    PeerServer::start(listener, options).unwrap()
}
