//! Downloads whose event loop is delayed in ways that an idle machine would not show.

use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::limits::CHUNK_BYTES;
use crate::model::{FileName, PeerId};
use crate::net::{Buffer, CloseReason, ConnectionId, Listener, Net, Service};
use crate::share::content::{chunk_count, chunk_offset};
use crate::share::offer::{Available, Catalog, Offer, Partials};
use crate::share::serve::{PeerServer, ServeOptions};

/// How many turns of the loop a completion waits to be collected.
const TURNS_LATE: u32 = 20;

/// A download whose loop collects completions late.
struct Late {
    driver: Driver,
    turns: u32,
    shared: Arc<FetchShared>,
    part: PathBuf,
    /// The number of chunks that another program overwrites, when as many are still to come.
    spoils: u64,
    to_come: u64,
    deadline: Instant,
}

impl Late {
    fn spoil(&mut self) {
        let part = std::fs::File::options().write(true).open(&self.part).unwrap();
        for index in 0..self.spoils {
            part.write_all_at(b"foreign", chunk_offset(index)).unwrap();
        }
    }
}

impl Service for Late {
    fn on_start(&mut self, net: &mut Net) {
        self.driver.on_start(net);
    }

    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, peer: SocketAddr) {
        self.driver.on_accepted(net, connection, peer);
    }

    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        self.driver.on_connected(net, connection);
    }

    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        self.driver.on_dial_failed(net, connection, error);
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        self.driver.on_frame(net, connection, frame);
    }

    fn on_raw(&mut self, net: &mut Net, connection: ConnectionId, buffer: Buffer) {
        self.driver.on_raw(net, connection, buffer);
        self.to_come = self.to_come.saturating_sub(1);
        if self.to_come == self.spoils && self.spoils > 0 {
            self.spoil();
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        self.driver.on_closed(net, connection, reason);
    }

    fn on_wake(&mut self, net: &mut Net) {
        if self.turns > 0 {
            self.turns -= 1;
            return net.wake_again();
        }
        self.turns = TURNS_LATE;
        self.driver.on_wake(net);
    }

    fn on_tick(&mut self, net: &mut Net) {
        let progress = || self.shared.progress().clone();
        assert!(net.now() < self.deadline, "the download stands still: {:?}", progress());
        self.driver.on_tick(net);
    }

    fn before_sleep(&mut self, net: &mut Net) {
        self.driver.before_sleep(net);
    }
}

/// Serves one file from three peers.
fn three_peers(folder: &std::path::Path, bytes: &[u8]) -> (Vec<PeerServer>, Manifest, Vec<Source>) {
    std::fs::write(folder.join("film.mkv"), bytes).unwrap();
    let manifest = Manifest::of_bytes(bytes).unwrap();
    let stamp = FileStamp::of(&std::fs::metadata(folder.join("film.mkv")).unwrap());
    let servers: Vec<PeerServer> = (0..3)
        .map(|_| {
            let shelf = Arc::new(Partials::default());
            shelf.slot().insert(Offer {
                manifest: Arc::new(manifest.clone()),
                folder: Arc::new(folder.to_owned()),
                file: "film.mkv".to_owned(),
                opened: None,
                stamp: Some(stamp),
                available: Available::Whole,
            });
            let catalogs: Vec<Arc<dyn Catalog>> = vec![shelf];
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let peer = Arc::new(u64::from(listener.address().port()).into());
            let options = ServeOptions { peer, catalogs, ..ServeOptions::default() };
            PeerServer::start(listener, options).unwrap()
        })
        .collect();
    let sources = servers
        .iter()
        .map(|server| Source {
            peer: PeerId(u64::from(server.address().port())),
            address: server.address(),
            size: manifest.size(),
            content: manifest.content(),
        })
        .collect();
    (servers, manifest, sources)
}

/// Downloads `manifest` with many combinations of small sizes and a loop that collects late, while
/// another program overwrites `spoils` chunks of each partial file.
fn download_late(manifest: &Manifest, sources: &[Source], bytes: &[u8], spoils: u64) {
    for seed in 0..12 {
        let to = tempfile::tempdir().unwrap();
        let sizes = DownloadSizes {
            sources_max: 3,
            chunks_max: 1 + seed as usize % 3,
            workers: 1 + seed as usize / 3 % 2,
            checks_per_job: 1,
        };
        let options = FetchOptions {
            content: manifest.content(),
            size: manifest.size(),
            name: FileName::new("film.mkv").unwrap(),
            to: to.path().to_owned(),
            sources: sources.to_owned(),
            limit_bytes_per_s: None,
            partials: None,
            congestion: None,
            more_may_come: false,
            patience: Duration::from_secs(60),
            gone_after: None,
            seed,
        };
        let part = Part::open(to.path(), &options.name, options.content, options.size);
        let event_loop = EventLoop::new(loop_config(&options), None).unwrap();
        let shared = Arc::new(FetchShared::new(&options, event_loop.wake_handle()));
        let part = part.unwrap().unwrap();
        let path = part.path().to_owned();
        let driver = Driver::new(options, Arc::clone(&shared), part, sizes).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let to_come = chunk_count(manifest.size());
        let mut late = Late { driver, turns: 0, shared, part: path, spoils, to_come, deadline };
        event_loop.run(&mut late).unwrap();
        let outcome = late.driver.into_result().unwrap();
        let outcome = outcome.unwrap_or_else(|error| panic!("{sizes:?}, seed {seed}: {error}"));
        assert!(std::fs::read(outcome.path).unwrap() == bytes, "{sizes:?}, seed {seed}");
    }
}

fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Once a worker gave its buffer back before the loop had collected its completion. A loop that
/// collected late received another chunk and had no place for its job: 2 of 40 downloads failed.
#[test]
fn downloads_end_well_however_few_the_buffers_and_however_late_the_loop_collects() {
    let shared = tempfile::tempdir().unwrap();
    let bytes = random_bytes(9 * CHUNK_BYTES + 4097);
    let (_servers, manifest, sources) = three_peers(shared.path(), &bytes);
    download_late(&manifest, &sources, &bytes, 0);
}

/// Once chunks that were fetched again took the places of checks. After the last check had been
/// collected nobody started the next one: "checking what is there already" for ever.
#[test]
fn a_check_of_the_whole_file_goes_on_while_chunks_are_fetched_again() {
    let shared = tempfile::tempdir().unwrap();
    let bytes = random_bytes(16 * CHUNK_BYTES + 4097);
    let (_servers, manifest, sources) = three_peers(shared.path(), &bytes);
    for spoils in [3, 5] {
        download_late(&manifest, &sources, &bytes, spoils);
    }
}
