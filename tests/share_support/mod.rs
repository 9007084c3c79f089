//! Contents and options for the tests and the bench of transfers.
//!
//! Left out: processes, which `tests/support/share.rs` starts.

pub mod shelf;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use acervo::model::{FileName, PeerId};
use acervo::share::content::Manifest;
use acervo::share::fetch::FetchOptions;
use acervo::wire::share::Source;

/// Longer than anything here takes on a loaded machine. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

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
        more_may_come: false,
        patience: PATIENCE,
        gone_after: None,
        seed: 7,
    }
}

/// Bytes that do not repeat, so that chunks differ.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Writes a file of bytes that do not repeat.
pub fn file(folder: &Path, length: usize, seed: u64) -> PathBuf {
    let path = folder.join(format!("source-{seed}.bin"));
    std::fs::write(&path, bytes(length, seed)).unwrap();
    path
}
