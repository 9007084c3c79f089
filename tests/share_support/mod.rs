//! What the tests and benches of transfers share: a folder that is served, contents, options.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use acervo::limits::CHUNK_BYTES;
use acervo::net::Listener;
use acervo::share::content::{Manifest, chunk_count, chunk_len, chunk_offset, hash_chunk};
use acervo::share::fetch::FetchOptions;
use acervo::share::names::FileName;
use acervo::share::offer::{Available, Catalog, FileStamp, Offer};
use acervo::share::serve::{ServeOptions, Server};
use acervo::share::types::{ContentId, FileEntry, PeerId};
use acervo::wire::share::Source;

/// Longer than anything here takes on a loaded machine; only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Files of a folder, offered as they were when they were added.
#[derive(Default)]
pub struct Shelf {
    offers: Mutex<HashMap<ContentId, Offer>>,
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

pub fn serve(catalogs: Vec<Arc<dyn Catalog>>) -> Server {
    serve_with(ServeOptions { catalogs, ..ServeOptions::default() })
}

pub fn serve_with(options: ServeOptions) -> Server {
    Server::start(Listener::bind(local()).unwrap(), options).unwrap()
}

pub fn source(address: SocketAddr, manifest: &Manifest) -> Source {
    let peer = PeerId(u64::from(address.port()));
    Source { peer, address, size: manifest.size(), content: manifest.content() }
}

pub fn options(manifest: &Manifest, to: &Path, sources: Vec<Source>) -> FetchOptions {
    FetchOptions {
        content: manifest.content(),
        size: manifest.size(),
        name: FileName::new("film.mkv").unwrap(),
        to: to.to_owned(),
        sources,
        limit_bytes_per_s: None,
        partials: None,
        congestion: None,
        patience: PATIENCE,
        seed: 7,
    }
}

/// Bytes that do not repeat.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A file of such bytes.
pub fn file(folder: &Path, length: usize, seed: u64) -> PathBuf {
    let path = folder.join(format!("source-{seed}.bin"));
    std::fs::write(&path, bytes(length, seed)).unwrap();
    path
}
