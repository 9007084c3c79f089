//! Transfers between a real server, or a source that misbehaves, and a real download.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use acervo::limits::{self, CHUNK_BYTES, SHARE_FRAME_BYTES_MAX};
use acervo::model::{FileName, PeerId};
use acervo::share::chunks::{ChunkSet, SharedChunks};
use acervo::share::content::{Manifest, chunk_count};
use acervo::share::fetch::{
    self, Fetch, FetchError, FetchHandle, FetchOptions, FetchOutcome, FetchPhase, FindError,
    KeptPart, SourceState,
};
use acervo::share::greeting;
use acervo::share::offer::{Available, Catalog, FileStamp, Offer, Partials};
use acervo::share::serve::{PeerServer, ServeOptions};
use acervo::wire::codec;
use acervo::wire::frame::Deframer;
use acervo::wire::message::Message;
use acervo::wire::share::{DenialCode, PeerReply, PeerRequest, Source};
use rustix::fs::FallocateFlags;
use tempfile::TempDir;

use crate::share_support::shelf::{self, Shelf, local, serve_with};
use crate::share_support::{self, PATIENCE, bytes, options, source};

const MIB: usize = CHUNK_BYTES;

/// A file, a server that serves it, and a folder to download it to.
struct Scene {
    _shared: TempDir,
    to: TempDir,
    path: std::path::PathBuf,
    bytes: Vec<u8>,
    manifest: Arc<Manifest>,
    shelf: Arc<Shelf>,
    server: PeerServer,
}

fn serve(catalogs: Vec<Arc<dyn Catalog>>) -> PeerServer {
    serve_with(ServeOptions { catalogs, ..ServeOptions::default() })
}

impl Scene {
    fn new(length: usize) -> Scene {
        Scene::with(length, |_| {})
    }

    fn with(length: usize, change: impl FnOnce(&mut ServeOptions)) -> Scene {
        let shared = tempfile::tempdir().unwrap();
        let path = share_support::file(shared.path(), length, length as u64);
        let shelf = Arc::new(Shelf::default());
        let manifest = shelf.add(&path);
        let catalogs: Vec<Arc<dyn Catalog>> = vec![Arc::clone(&shelf) as Arc<dyn Catalog>];
        let mut options = ServeOptions { catalogs, ..ServeOptions::default() };
        change(&mut options);
        Scene {
            to: tempfile::tempdir().unwrap(),
            bytes: std::fs::read(&path).unwrap(),
            path,
            manifest,
            shelf,
            server: serve_with(options),
            _shared: shared,
        }
    }

    fn source(&self) -> Source {
        source(self.server.address(), &self.manifest)
    }

    fn options(&self, sources: Vec<Source>) -> FetchOptions {
        options(&self.manifest, self.to.path(), sources)
    }

    fn fake(&self, trick: Trick) -> Fake {
        Fake::start(self.bytes.clone(), trick)
    }

    fn assert_whole(&self, outcome: &FetchOutcome) {
        assert_eq!(outcome.path, self.to.path().join("film.mkv"));
        assert!(std::fs::read(&outcome.path).unwrap() == self.bytes, "other bytes arrived");
        assert_eq!(*outcome.manifest, *self.manifest);
        assert_eq!(outcome.stamp, FileStamp::of(&std::fs::metadata(&outcome.path).unwrap()));
        assert_eq!(names(self.to.path()), ["film.mkv"]);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn start(options: FetchOptions) -> FetchHandle {
    Fetch::start(options).unwrap()
}

fn run(options: FetchOptions) -> Result<FetchOutcome, FetchError> {
    start(options).wait_for(PATIENCE).expect("the download ends in time")
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// How a fake source misbehaves, from its `after`th chunk on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trick {
    Honest,
    WrongBytes {
        after: usize,
    },
    /// It announces fewer bytes than the chunk has.
    ShortChunk {
        after: usize,
    },
    /// It announces the right number of bytes and closes before the last ones.
    CutChunk {
        after: usize,
    },
    /// It sends a mebibyte more than it announced.
    LongChunk {
        after: usize,
    },
    Announces {
        length: u32,
    },
    Nothing {
        after: usize,
    },
    Trickle {
        after: usize,
    },
    /// It sends half a chunk, and then leaves the connection open and silent.
    Freeze {
        after: usize,
    },
    WrongHashes,
    TooManyHashes,
    Unasked,
    /// It sends PONGs to no PING, as long as it is read.
    Pongs,
    /// It sends REFUSED again and again and does not close.
    Refusals,
    /// It sends one hash at a time.
    Dribbles,
    Denies {
        code: DenialCode,
    },
    BusyAtFirst {
        times: usize,
    },
    Garbage,
}

/// A source that speaks the protocol, up to its trick.
struct Fake {
    address: SocketAddr,
    manifest: Manifest,
    asked: Arc<Mutex<HashMap<u64, usize>>>,
    connections: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Fake {
    fn start(bytes: Vec<u8>, trick: Trick) -> Fake {
        let listener = TcpListener::bind(local()).unwrap();
        let address = listener.local_addr().unwrap();
        let manifest = Manifest::of_bytes(&bytes).unwrap();
        let fake = Fake {
            address,
            manifest: manifest.clone(),
            asked: Arc::default(),
            connections: Arc::default(),
            stop: Arc::default(),
        };
        let (asked, connections, stop) =
            (Arc::clone(&fake.asked), Arc::clone(&fake.connections), Arc::clone(&fake.stop));
        let bytes = Arc::new(bytes);
        std::thread::spawn(move || {
            let served = Arc::new(AtomicU64::new(0));
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let mut talk = Talk {
                    stream: stream.unwrap(),
                    bytes: Arc::clone(&bytes),
                    manifest: manifest.clone(),
                    trick,
                    served: Arc::clone(&served),
                    asked: Arc::clone(&asked),
                    stop: Arc::clone(&stop),
                };
                // The other side may close the connection at any time.
                std::thread::spawn(move || drop(talk.run()));
            }
        });
        fake
    }

    fn source(&self) -> Source {
        source(self.address, &self.manifest)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

struct Talk {
    stream: TcpStream,
    bytes: Arc<Vec<u8>>,
    manifest: Manifest,
    trick: Trick,
    served: Arc<AtomicU64>,
    asked: Arc<Mutex<HashMap<u64, usize>>>,
    stop: Arc<AtomicBool>,
}

impl Talk {
    fn send(&mut self, message: &Message) -> std::io::Result<()> {
        self.stream.write_all(&greeting::frame(message).unwrap())
    }

    fn reply(&mut self, id: u64, body: PeerReply) -> std::io::Result<()> {
        self.send(&Message::ShareReply { id, body })
    }

    fn run(&mut self) -> std::io::Result<()> {
        let mut deframer = Deframer::new(SHARE_FRAME_BYTES_MAX);
        loop {
            while let Some(frame) = deframer.next_frame().unwrap() {
                match codec::decode(frame).unwrap() {
                    Message::Hello(_) if self.trick == Trick::Garbage => {
                        self.stream.write_all(&[0x15; 999])?;
                    }
                    Message::Hello(_) => {
                        let peer = PeerId(u64::from(self.stream.local_addr()?.port()));
                        self.send(&greeting::welcome(Some(peer)))?;
                    }
                    Message::Share { id, body } => self.answer(id, body)?,
                    _ => {}
                }
            }
            match self.stream.read(deframer.spare())? {
                0 => return Ok(()),
                received => deframer.commit(received),
            }
        }
    }

    fn answer(&mut self, id: u64, body: PeerRequest) -> std::io::Result<()> {
        match body {
            PeerRequest::Watch { .. } => {
                let runs = vec![(0, chunk_count(self.manifest.size()))];
                self.reply(id, PeerReply::Have { runs })?;
                match self.trick {
                    Trick::Unasked => self.reply(id + 100, PeerReply::Chunk { length: 5 }),
                    Trick::Pongs => self.send_for_ever(&Message::Pong { nonce: 0 }),
                    Trick::Refusals => {
                        self.send_for_ever(&Message::Refused { reason: "no".repeat(99) })
                    }
                    _ => Ok(()),
                }
            }
            PeerRequest::Hashes { first, .. } => {
                let mut hashes = self.manifest.chunks()[first as usize..].to_vec();
                match self.trick {
                    Trick::WrongHashes => hashes[0].0[3] ^= 4,
                    Trick::TooManyHashes => hashes.push(hashes[0]),
                    Trick::Dribbles => hashes.truncate(1),
                    _ => {}
                }
                self.reply(id, PeerReply::Hashes { hashes })
            }
            PeerRequest::Chunk { index, .. } => {
                *self.asked.lock().unwrap().entry(index).or_default() += 1;
                self.chunk(id, index)
            }
            _ => Ok(()),
        }
    }

    fn chunk(&mut self, id: u64, index: u64) -> std::io::Result<()> {
        let nth = self.served.fetch_add(1, Ordering::SeqCst) as usize;
        let at = index as usize * MIB;
        let mut chunk = self.bytes[at..self.bytes.len().min(at + MIB)].to_vec();
        let length = chunk.len();
        let mut announced = length as u32;
        match self.trick {
            Trick::WrongBytes { after } if nth >= after => chunk[length / 2] ^= 1,
            Trick::ShortChunk { after } if nth >= after => {
                chunk.truncate(length - 1);
                announced -= 1;
            }
            Trick::LongChunk { after } if nth >= after => chunk.extend(vec![0xee; MIB]),
            Trick::Announces { length } => announced = length,
            Trick::Nothing { after } if nth >= after => return Ok(()),
            Trick::Denies { code } => {
                let message = "not today\u{1b}[31m".to_owned();
                return self.reply(id, PeerReply::Denied { code, message });
            }
            Trick::BusyAtFirst { times } if nth < times => {
                let (code, message) = (DenialCode::Busy, String::new());
                return self.reply(id, PeerReply::Denied { code, message });
            }
            _ => {}
        }
        self.reply(id, PeerReply::Chunk { length: announced })?;
        match self.trick {
            Trick::CutChunk { after } if nth >= after => {
                self.stream.write_all(&chunk[..length - 1])?;
                self.stream.shutdown(Shutdown::Both)
            }
            Trick::Freeze { after } if nth >= after => {
                self.stream.write_all(&chunk[..length / 2])?;
                self.wait_for_the_end()
            }
            Trick::Trickle { after } if nth >= after => {
                // Ten bytes a second, until the other side gives it up.
                self.stream.set_read_timeout(Some(Duration::from_millis(100)))?;
                for byte in chunk {
                    self.stream.write_all(&[byte])?;
                    if matches!(self.stream.read(&mut [0; 1024]), Ok(0)) {
                        break;
                    }
                }
                Ok(())
            }
            _ => self.stream.write_all(&chunk),
        }
    }

    fn send_for_ever(&mut self, message: &Message) -> std::io::Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            self.send(message)?;
        }
        Ok(())
    }

    /// Reads what comes and answers nothing, until the other side closes.
    fn wait_for_the_end(&mut self) -> std::io::Result<()> {
        let mut nowhere = [0; 1024];
        while self.stream.read(&mut nowhere)? > 0 {}
        Ok(())
    }
}

#[test]
fn files_of_every_length_around_a_chunks_arrive() {
    for length in [0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 5 * MIB, 5 * MIB + 4097] {
        let scene = Scene::new(length);
        let outcome = run(scene.options(vec![scene.source()])).unwrap();
        scene.assert_whole(&outcome);
        assert_eq!((outcome.fetched_bytes, outcome.kept_bytes), (length as u64, 0));
        let again = run(scene.options(Vec::new())).unwrap();
        assert!(again.already_there);
        scene.assert_whole(&again);
    }
}

#[test]
fn a_swarm_shares_the_work_and_progress_tells_of_it() {
    let scene = Scene::new(64 * MIB + 99);
    // No two of them have all chunks.
    let meagre: Vec<Fake> = (0..3).map(|_| scene.fake(Trick::Nothing { after: 30 })).collect();
    let mut sources: Vec<Source> = meagre.iter().map(Fake::source).collect();
    sources.push(meagre[0].source());
    let handle = start(scene.options(sources));
    let outcome = handle.wait_for(PATIENCE).unwrap().unwrap();
    scene.assert_whole(&outcome);
    let progress = handle.progress();
    assert_eq!(
        (progress.phase, progress.done_bytes),
        (FetchPhase::Ended, scene.bytes.len() as u64)
    );
    assert_eq!(progress.sources.len(), 3, "the same source twice is one");
    let given: Vec<u64> = progress.sources.iter().map(|source| source.given_bytes).collect();
    assert_eq!(given.iter().sum::<u64>(), scene.bytes.len() as u64);
    assert!(given.iter().all(|given| *given > 0), "{given:?}");
}

/// Beside a good source, a trick costs its own chunks and no more.
#[test]
fn a_hostile_source_beside_a_good_one_does_no_harm() {
    let tricks = [
        Trick::WrongBytes { after: 0 },
        Trick::WrongBytes { after: 3 },
        Trick::ShortChunk { after: 2 },
        Trick::CutChunk { after: 1 },
        Trick::LongChunk { after: 1 },
        Trick::Announces { length: u32::MAX },
        Trick::Announces { length: 0 },
        Trick::Nothing { after: 1 },
        Trick::Trickle { after: 1 },
        Trick::Freeze { after: 1 },
        Trick::WrongHashes,
        Trick::TooManyHashes,
        Trick::Unasked,
        Trick::Pongs,
        Trick::Refusals,
        Trick::Dribbles,
        Trick::Garbage,
        Trick::Denies { code: DenialCode::Changed },
        Trick::Denies { code: DenialCode::NotFound },
        Trick::Denies { code: DenialCode::Busy },
    ];
    for trick in tricks {
        let scene = Scene::new(24 * MIB + 17);
        let fake = scene.fake(trick);
        let outcome = run(scene.options(vec![fake.source(), scene.source()]));
        let outcome = outcome.unwrap_or_else(|error| panic!("{trick:?}: {error}"));
        scene.assert_whole(&outcome);
        assert_eq!(outcome.fetched_bytes, scene.bytes.len() as u64);
        let wasted = outcome.received_bytes.saturating_sub(scene.bytes.len() as u64);
        assert!(wasted <= 8 * MIB as u64, "{trick:?}: {wasted} bytes came twice");
    }
}

#[test]
fn a_hostile_source_alone_gives_no_file_and_a_sentence() {
    let tricks = [
        (Trick::WrongBytes { after: 3 }, "wrong bytes"),
        (Trick::ShortChunk { after: 3 }, "wrong bytes"),
        (Trick::WrongHashes, "wrong bytes"),
        (Trick::TooManyHashes, "wrong bytes"),
        (Trick::Announces { length: u32::MAX }, "wrong bytes"),
        (Trick::Dribbles, "wrong bytes"),
        (Trick::Unasked, "not asked for"),
        (Trick::Pongs, "not asked for"),
        (Trick::Denies { code: DenialCode::Invalid }, "not today"),
    ];
    for (trick, why) in tricks {
        let scene = Scene::new(8 * MIB);
        let fake = scene.fake(trick);
        let error = run(scene.options(vec![fake.source()])).unwrap_err();
        assert!(matches!(error, FetchError::NoSource { .. }), "{trick:?}: {error:?}");
        let sentence = error.to_string();
        assert!(sentence.contains(why), "{trick:?}: {sentence}");
        assert!(!sentence.contains('\u{1b}'), "{trick:?}: {sentence:?}");
        // A partial file is kept, and reported, only if there is something in it.
        let is_kept = names(scene.to.path()) == ["film.mkv.part"];
        assert_eq!(sentence.contains("kept"), is_kept, "{trick:?}: {sentence}");
        let gave = matches!(trick, Trick::WrongBytes { .. } | Trick::ShortChunk { .. });
        assert!(is_kept || !gave, "{trick:?}: it had given chunks");
        assert_eq!(
            fake.connections.load(Ordering::SeqCst),
            1,
            "{trick:?}: a liar is left for good"
        );
    }
}

/// Once a download ended when its only source was banned, although it was to wait for others.
#[test]
fn a_download_for_which_somebody_looks_for_sources_outlasts_a_liar() {
    let scene = Scene::new(8 * MIB);
    let fake = scene.fake(Trick::WrongBytes { after: 3 });
    let options = FetchOptions { more_may_come: true, ..scene.options(vec![fake.source()]) };
    let handle = start(options);
    wait_until("the liar is left", || {
        let sources = handle.progress().sources;
        matches!(sources.first().map(|source| &source.state), Some(SourceState::Lost(_)))
    });
    handle.add_source(scene.source());
    scene.assert_whole(&handle.wait_for(PATIENCE).unwrap().unwrap());
}

#[test]
fn a_silent_source_alone_ends_the_download_when_patience_does() {
    let scene = Scene::new(8 * MIB);
    let fake = scene.fake(Trick::Nothing { after: 2 });
    let patience = Duration::from_millis(700);
    let error = run(FetchOptions { patience, ..scene.options(vec![fake.source()]) }).unwrap_err();
    assert!(matches!(error, FetchError::NoSource { .. }), "{error:?}");
    // There is no one at all.
    let port = TcpListener::bind(local()).unwrap().local_addr().unwrap();
    let options = scene.options(vec![source(port, &scene.manifest)]);
    let error = run(FetchOptions { patience, ..options }).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

/// That a source does not have the content any more is an answer. Once it was waited for like
/// silence.
#[test]
fn what_every_source_says_is_gone_ends_the_download_unless_it_is_to_wait() {
    let scene = Scene::new(4 * MIB);
    let gone = scene.fake(Trick::Denies { code: DenialCode::NotFound });
    let options = |fakes: &[&Fake]| FetchOptions {
        gone_after: Some(Duration::ZERO),
        ..scene.options(fakes.iter().map(|fake| fake.source()).collect())
    };
    let error = run(options(&[&gone])).unwrap_err();
    assert!(matches!(error, FetchError::Gone { .. }), "{error:?}");
    assert_eq!(error.to_string(), "no peer has film.mkv any more");
    // A liar does not count.
    let liar = scene.fake(Trick::WrongBytes { after: 0 });
    let error = run(options(&[&gone, &liar])).unwrap_err();
    assert!(matches!(error, FetchError::Gone { .. }), "{error:?}");
    // A source that is silent, or hashing its file, may have it.
    let patience = Duration::from_millis(700);
    let silent = scene.fake(Trick::Nothing { after: 0 });
    let looking = scene.fake(Trick::Denies { code: DenialCode::Changed });
    for other in [&silent, &looking] {
        let error = run(FetchOptions { patience, ..options(&[&gone, other]) }).unwrap_err();
        assert!(matches!(error, FetchError::NoSource { .. }), "{error:?}");
    }
    let waits = FetchOptions { patience, gone_after: None, ..options(&[&gone]) };
    let error = run(waits).unwrap_err();
    assert!(matches!(error, FetchError::NoSource { .. }), "{error:?}");

    // If someone searches for further sources, that search decides.
    for is_found in [true, false] {
        let handle = start(FetchOptions { more_may_come: true, ..options(&[&gone]) });
        // A search that began before it was requested does not count.
        handle.searched(handle.search_requested());
        wait_until("a look is wanted", || handle.search_requested() == 1);
        assert!(handle.wait_for(Duration::ZERO).is_none());
        if is_found {
            handle.add_source(scene.source());
        }
        handle.searched(1);
        let result = handle.wait_for(PATIENCE).unwrap();
        match is_found {
            true => {
                scene.assert_whole(&result.unwrap());
                std::fs::remove_file(scene.to.path().join("film.mkv")).unwrap();
            }
            false => assert!(matches!(result, Err(FetchError::Gone { .. })), "{result:?}"),
        }
    }
}

/// Once any bytes counted as progress, so that a single liar kept a download from ending.
#[test]
fn junk_is_no_progress() {
    let scene = Scene::new(8 * MIB);
    let patience = Duration::from_millis(700);
    for trick in [Trick::Refusals, Trick::Denies { code: DenialCode::Busy }] {
        let fake = scene.fake(trick);
        let options = FetchOptions { patience, ..scene.options(vec![fake.source()]) };
        let error = run(options).unwrap_err();
        assert!(matches!(error, FetchError::NoSource { .. }), "{trick:?}: {error:?}");
    }
}

/// A source whose file was touched offers the same content again after its next scan.
#[test]
fn a_source_whose_file_was_touched_is_asked_again() {
    let limit = 20 * MIB as u64;
    let scene = Scene::with(20 * MIB, |options| options.limit_bytes_per_s = Some(limit));
    let handle = start(scene.options(vec![scene.source()]));
    wait_until("a chunk has arrived", || handle.progress().done_bytes > 0);
    let file = std::fs::File::options().write(true).open(&scene.path).unwrap();
    file.set_modified(std::time::SystemTime::now() + Duration::from_secs(9)).unwrap();
    wait_until("it is left", || scene.shelf.changed.load(Ordering::SeqCst) > 0);
    scene.shelf.add(&scene.path);
    scene.assert_whole(&handle.wait_for(PATIENCE).unwrap().unwrap());
}

/// Once a download went on writing to its removed partial file, and then published the start of
/// another download.
#[test]
fn a_part_that_is_removed_under_way_is_not_published_by_whoever_lost_it() {
    let scene = Scene::new(4 * MIB);
    let silent = scene.fake(Trick::Nothing { after: 1 });
    let first = start(scene.options(vec![silent.source()]));
    wait_until("a chunk has arrived", || first.progress().done_bytes > 0);
    std::fs::remove_file(scene.to.path().join("film.mkv.part")).unwrap();
    let second = start(scene.options(vec![silent.source()]));
    wait_until("there is a part again", || scene.to.path().join("film.mkv.part").exists());
    first.add_source(scene.source());
    let error = first.wait_for(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, FetchError::PartGone(_)), "{error:?}");
    assert!(!scene.to.path().join("film.mkv").exists());
    second.add_source(scene.source());
    scene.assert_whole(&second.wait_for(PATIENCE).unwrap().unwrap());
}

/// Once a download published the bytes that another program had written.
#[test]
fn a_part_that_another_program_changes_is_not_published_with_its_bytes() {
    type Change = fn(&std::fs::File);
    let changes: [(&str, Change); 5] = [
        ("cut to nothing", |part| part.set_len(0).unwrap()),
        ("cut within", |part| part.set_len(17).unwrap()),
        ("made longer", |part| part.set_len(100 * MIB as u64).unwrap()),
        ("written to", |part| part.write_all_at(b"foreign", 5).unwrap()),
        ("punched", |part| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(part, flags, 0, 4096).unwrap();
        }),
    ];
    // A program that keeps the file open may write at any time, so the file is not published.
    let cases = changes.iter().map(|change| (*change, false)).chain([(changes[3], true)]);
    for ((what, change), stays_open) in cases {
        let scene = Scene::new(4 * MIB + 5);
        let silent = scene.fake(Trick::Nothing { after: 1 });
        let handle = start(scene.options(vec![silent.source()]));
        wait_until("a chunk has arrived", || handle.progress().done_bytes > 0);
        let path = scene.to.path().join("film.mkv.part");
        let part = std::fs::File::options().write(true).open(path).unwrap();
        change(&part);
        let open = stays_open.then_some(part);
        handle.add_source(scene.source());
        let outcome = handle.wait_for(PATIENCE).unwrap();
        if open.is_none() {
            scene.assert_whole(&outcome.unwrap_or_else(|error| panic!("{what}: {error}")));
            continue;
        }
        let error = outcome.unwrap_err();
        assert!(matches!(error, FetchError::Touched(_)), "{what}: {error}");
        assert_eq!(names(scene.to.path()), ["film.mkv.part"]);
        drop((open, handle));
        scene.assert_whole(&run(scene.options(vec![scene.source()])).unwrap());
    }
}

/// Once a partial file of a liar's content kept the right file out.
#[test]
fn a_part_in_which_nothing_was_verified_does_not_stay() {
    let scene = Scene::new(2 * MIB);
    for trick in [Trick::WrongBytes { after: 0 }, Trick::Nothing { after: 0 }] {
        let fake = scene.fake(trick);
        let mut options = scene.options(vec![fake.source()]);
        options.patience = Duration::from_millis(200);
        let error = run(options).unwrap_err();
        assert!(matches!(error, FetchError::NoSource { .. }), "{error:?}");
        assert!(!error.to_string().contains("kept"), "{error}");
        assert!(names(scene.to.path()).is_empty(), "{:?}", names(scene.to.path()));
    }
}

#[test]
fn sixty_four_dead_sources_do_not_hide_the_one_that_is_there() {
    let scene = Scene::new(2 * MIB);
    let nowhere: Vec<TcpListener> = (0..64).map(|_| TcpListener::bind(local()).unwrap()).collect();
    let mut sources: Vec<Source> =
        nowhere.iter().map(|dead| source(dead.local_addr().unwrap(), &scene.manifest)).collect();
    // Half of them refuse; the others accept the connection and send nothing.
    let silent = nowhere.into_iter().skip(32).collect::<Vec<_>>();
    sources.push(scene.source());
    scene.assert_whole(&run(scene.options(sources)).unwrap());
    drop(silent);
}

#[test]
fn a_busy_source_is_asked_again() {
    let scene = Scene::new(6 * MIB);
    let fake = scene.fake(Trick::BusyAtFirst { times: 3 });
    scene.assert_whole(&run(scene.options(vec![fake.source()])).unwrap());
}

/// Once a source that answered BUSY twice a second was called silent.
#[test]
fn a_source_that_is_busy_is_called_so() {
    let scene = Scene::new(6 * MIB);
    let fake = scene.fake(Trick::Denies { code: DenialCode::Busy });
    let mut options = scene.options(vec![fake.source()]);
    options.patience = Duration::from_secs(1);
    let handle = start(options);
    let mut was_put_off = false;
    wait_until("it gives up", || {
        was_put_off |= handle.progress().is_put_off();
        handle.progress().phase == FetchPhase::Ended
    });
    assert!(was_put_off, "{:?}", handle.progress());
    let error = handle.wait_for(PATIENCE).unwrap().unwrap_err().to_string();
    assert!(error.contains("not today") && !error.contains("silent"), "{error}");
}

/// Once a byte that two peers had sent was counted twice.
#[test]
fn a_chunk_that_several_give_counts_once() {
    for _ in 0..20 {
        let scene = Scene::new(1);
        let fakes: Vec<Fake> = (0..8).map(|_| scene.fake(Trick::Honest)).collect();
        let handle = start(scene.options(fakes.iter().map(Fake::source).collect()));
        let outcome = handle.wait_for(PATIENCE).unwrap().unwrap();
        scene.assert_whole(&outcome);
        assert_eq!((outcome.fetched_bytes, outcome.kept_bytes), (1, 0));
        assert!(outcome.received_bytes >= 1);
        let progress = handle.progress();
        let given: Vec<u64> = progress.sources.iter().map(|source| source.given_bytes).collect();
        assert_eq!((progress.fetched_bytes, given.iter().sum::<u64>()), (1, 1), "{given:?}");
    }
}

/// A download that loses its only source within a chunk leaves the good chunks to the next one,
/// which notices a bit that was flipped meanwhile.
#[test]
fn a_download_resumes_with_what_is_missing_or_damaged() {
    let scene = Scene::new(20 * MIB + 5);
    let dying = scene.fake(Trick::Freeze { after: 9 });
    let patience = Duration::from_millis(800);
    let options = FetchOptions { patience, ..scene.options(vec![dying.source()]) };
    let error = run(options).unwrap_err();
    assert!(matches!(error, FetchError::NoSource { .. }), "{error:?}");
    let part = scene.to.path().join("film.mkv.part");
    assert_eq!(names(scene.to.path()), ["film.mkv.part"]);

    let mut kept = std::fs::read(&part).unwrap();
    let whole_chunks: Vec<usize> = (0..20)
        .filter(|i| kept[i * MIB..(i + 1) * MIB] == scene.bytes[i * MIB..(i + 1) * MIB])
        .collect();
    assert_eq!(whole_chunks.len(), 9);
    kept[whole_chunks[4] * MIB + 12_345] ^= 0x40;
    std::fs::write(&part, kept).unwrap();

    let outcome = run(scene.options(vec![scene.source()])).unwrap();
    scene.assert_whole(&outcome);
    assert_eq!(outcome.kept_bytes, 8 * MIB as u64);
    assert_eq!(outcome.fetched_bytes, 12 * MIB as u64 + 5);
}

#[test]
fn a_source_killed_within_a_chunk_is_made_up_for_by_one_that_comes_later() {
    let scene = Scene::new(12 * MIB);
    let dying = scene.fake(Trick::CutChunk { after: 4 });
    let handle = start(scene.options(vec![dying.source()]));
    wait_until("the source is lost", || {
        matches!(handle.progress().sources.first().map(|s| &s.state), Some(SourceState::Lost(_)))
    });
    handle.add_source(scene.source());
    let outcome = handle.wait_for(PATIENCE).unwrap().unwrap();
    scene.assert_whole(&outcome);
}

#[test]
fn two_downloads_of_a_file_into_a_folder_are_one_too_many() {
    let scene = Scene::new(4 * MIB);
    let silent = scene.fake(Trick::Nothing { after: 1 });
    let first = start(scene.options(vec![silent.source()]));
    wait_until("a chunk has arrived", || first.progress().done_bytes > 0);
    let error = run(scene.options(vec![scene.source()])).unwrap_err();
    assert!(matches!(error, FetchError::UnderWay(_)), "{error:?}");
    first.add_source(scene.source());
    scene.assert_whole(&first.wait_for(PATIENCE).unwrap().unwrap());
}

#[test]
fn a_cancelled_download_keeps_its_part_and_a_dropped_one_lets_go_of_it() {
    let scene = Scene::new(4 * MIB);
    let silent = scene.fake(Trick::Nothing { after: 1 });
    let handle = start(scene.options(vec![silent.source()]));
    wait_until("a chunk has arrived", || handle.progress().done_bytes > 0);
    handle.cancel();
    let error = handle.wait_for(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, FetchError::Cancelled(KeptPart(true))), "{error:?}");
    drop(start(scene.options(vec![silent.source()])));
    let outcome = run(scene.options(vec![scene.source()])).unwrap();
    assert_eq!(outcome.kept_bytes, MIB as u64);
    scene.assert_whole(&outcome);
}

/// Once a download that was killed after its last chunk, or could not get the name, waited each
/// time until its patience ended, although it had every chunk.
#[test]
fn a_part_that_is_whole_already_gets_its_name() {
    let scene = Scene::new(2 * MIB + 17);
    let size = scene.bytes.len() as u64;
    let mark = fetch::Trailer { size, content: scene.manifest.content() };
    let mut part = scene.bytes.clone();
    part.resize(scene.bytes.len().next_multiple_of(4096), 0);
    part.extend_from_slice(&mark.encode());
    std::fs::write(scene.to.path().join("film.mkv.part"), part).unwrap();
    let outcome = run(scene.options(vec![scene.source()])).unwrap();
    assert_eq!((outcome.fetched_bytes, outcome.kept_bytes), (0, size));
    scene.assert_whole(&outcome);
}

#[test]
fn another_file_of_the_name_is_not_touched_and_refused_before_anything_is_sent() {
    let scene = Scene::new(2 * MIB);
    let fake = scene.fake(Trick::Honest);
    let mine = scene.to.path().join("film.mkv");
    for other in [vec![1; 2 * MIB], b"short".to_vec()] {
        std::fs::write(&mine, &other).unwrap();
        let error = run(scene.options(vec![fake.source()])).unwrap_err();
        assert!(matches!(error, FetchError::Exists(_)), "{error:?}");
        assert!(std::fs::read(&mine).unwrap() == other);
        assert_eq!(names(scene.to.path()), ["film.mkv"]);
    }
    std::fs::remove_file(&mine).unwrap();
    std::os::unix::fs::symlink("/dev/null", &mine).unwrap();
    assert!(matches!(run(scene.options(vec![fake.source()])), Err(FetchError::Exists(_))));
    assert_eq!(fake.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn folders_that_take_no_file_are_named() {
    let scene = Scene::new(MIB);
    for folder in [scene.path.clone(), scene.to.path().join("not there"), "/proc".into()] {
        let error = run(options(&scene.manifest, &folder, vec![scene.source()])).unwrap_err();
        assert!(matches!(error, FetchError::Folder { .. }), "{error:?}");
        assert!(error.to_string().contains(folder.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_file_that_shrinks_or_changes_while_it_is_served_fails_cleanly() {
    let shrink = |path: &Path| {
        std::fs::File::options().write(true).open(path).unwrap().set_len(MIB as u64).unwrap();
    };
    let change = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.fill(3);
        std::fs::write(path, bytes).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(9);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
    };
    let go = |path: &Path| std::fs::remove_file(path).unwrap();
    for (act, why) in
        [(&shrink as &dyn Fn(&Path), "changed"), (&change, "changed"), (&go, "not in the shared")]
    {
        // Slow enough that the change comes during the transfer.
        let limit = 20 * MIB as u64;
        let scene = Scene::with(40 * MIB, |options| options.limit_bytes_per_s = Some(limit));
        let patience = Duration::from_secs(1);
        let handle = start(FetchOptions { patience, ..scene.options(vec![scene.source()]) });
        wait_until("a chunk has arrived", || handle.progress().done_bytes > 0);
        act(&scene.path);
        let error = handle.wait_for(PATIENCE).unwrap().unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.contains(why) || sentence.contains("not here"), "{sentence}");
        assert!(scene.shelf.changed.load(Ordering::SeqCst) > 0, "the catalogue was not told");
        assert_eq!(names(scene.to.path()), ["film.mkv.part"]);
    }
}

#[test]
fn what_is_being_downloaded_is_served_from_its_first_chunk_on() {
    let scene = Scene::new(32 * MIB + 1);
    // The first download gets half of the file, and waits.
    let half = scene.fake(Trick::Nothing { after: 16 });
    let partials = Arc::new(Partials::default());
    let first_options =
        FetchOptions { partials: Some(partials.slot()), ..scene.options(vec![half.source()]) };
    let first = start(first_options);
    let middle = serve(vec![partials]);
    wait_until("half has arrived", || first.progress().done_bytes == 16 * MIB as u64);

    // The second has only the first as a source.
    let other = tempfile::tempdir().unwrap();
    let via = source(middle.address(), &scene.manifest);
    let second = start(options(&scene.manifest, other.path(), vec![via]));
    wait_until("half was passed on", || second.progress().done_bytes == 16 * MIB as u64);
    assert_eq!(second.progress().sources[0].state, SourceState::Idle);

    // Chunks that arrive from now on are passed on.
    first.add_source(scene.source());
    scene.assert_whole(&first.wait_for(PATIENCE).unwrap().unwrap());
    let outcome = second.wait_for(PATIENCE).unwrap().unwrap();
    assert!(std::fs::read(outcome.path).unwrap() == scene.bytes);
    assert_eq!(outcome.fetched_bytes, scene.bytes.len() as u64);
}

#[test]
fn rates_are_kept_to_on_both_sides() {
    let mib = MIB as u64;
    let upload = Scene::with(6 * MIB, |options| options.limit_bytes_per_s = Some(12 * mib));
    let begun = Instant::now();
    upload.assert_whole(&run(upload.options(vec![upload.source()])).unwrap());
    // Only a lower bound of the time: an upper bound would depend on the machine.
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());

    let download = Scene::new(6 * MIB);
    let options = FetchOptions {
        limit_bytes_per_s: Some(12 * mib),
        ..download.options(vec![download.source()])
    };
    let begun = Instant::now();
    download.assert_whole(&run(options).unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}

/// How a [`Client`] connects.
struct Dial<'a> {
    ip: [u8; 4],
    /// How many bytes the system receives that the client has not read; `None` for its default.
    receive_buffer_bytes: Option<usize>,
    server: &'a PeerServer,
}

/// A connection to a server, over which a test speaks the protocol itself.
struct Client {
    stream: TcpStream,
    deframer: Deframer,
}

impl Client {
    fn connect(server: &PeerServer) -> Client {
        Client::from([127, 0, 0, 1], server)
    }

    /// Connects from an IP address of this machine, which the server takes for another host's.
    fn from(ip: [u8; 4], server: &PeerServer) -> Client {
        Client::dial(Dial { ip, receive_buffer_bytes: None, server })
    }

    fn dial(Dial { ip, receive_buffer_bytes, server }: Dial) -> Client {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        if let Some(bytes) = receive_buffer_bytes {
            sockopt::set_socket_recv_buffer_size(&socket, bytes).unwrap();
        }
        bind(&socket, &SocketAddr::from((ip, 0))).unwrap();
        connect(&socket, &server.address()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, deframer: Deframer::new(SHARE_FRAME_BYTES_MAX) }
    }

    fn greeted(server: &PeerServer) -> Client {
        Client::connect(server).greet()
    }

    fn greet(mut self) -> Client {
        let client = &mut self;
        client.send(&greeting::hello());
        assert!(matches!(client.receive(), Some(Message::ShareWelcome { .. })));
        self
    }

    fn send(&mut self, message: &Message) {
        self.stream.write_all(&greeting::frame(message).unwrap()).unwrap();
    }

    fn ask(&mut self, id: u64, body: PeerRequest) {
        self.send(&Message::Share { id, body });
    }

    fn receive(&mut self) -> Option<Message> {
        loop {
            if let Some(frame) = self.deframer.next_frame().unwrap() {
                return Some(codec::decode(frame).unwrap());
            }
            match self.stream.read(self.deframer.spare()) {
                Ok(received) if received > 0 => self.deframer.commit(received),
                _ => return None,
            }
        }
    }

    fn raw(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let taken = self.deframer.take_raw(&mut bytes);
        self.stream.read_exact(&mut bytes[taken..]).unwrap();
        bytes
    }

    fn denial(&mut self) -> (u64, DenialCode) {
        match self.receive() {
            Some(Message::ShareReply { id, body: PeerReply::Denied { code, .. } }) => (id, code),
            other => panic!("expected a denial, got {other:?}"),
        }
    }
}

/// As many connections as a server has places, each from an IP address of its own. None of them
/// takes a chunk.
#[test]
fn whoever_takes_no_chunk_gives_way_to_whoever_comes_for_one() {
    const PLACES: u8 = 4;
    let scene = Scene::with(3 * MIB, |options| options.connections_max = Some(PLACES.into()));
    let content = scene.manifest.content();
    let crowd = |act: &dyn Fn(&mut Client)| -> Vec<Client> {
        let one = |last| {
            let mut client = Client::from([127, 0, 1, last], &scene.server).greet();
            act(&mut client);
            client
        };
        (1..=PLACES).map(one).collect()
    };
    let half = greeting::frame(&Message::Ping { nonce: 1 }).unwrap();
    let kinds: [&dyn Fn(&mut Client); 5] = [
        &|_| {},
        // It has sent half a frame.
        &|client| client.stream.write_all(&half[..half.len() / 2]).unwrap(),
        &|client| client.send(&Message::Ping { nonce: 1 }),
        &|client| client.ask(1, PeerRequest::Watch { content }),
        // It is answered, and does not read the answer.
        &|client| {
            for id in 0..100 {
                client.ask(id, PeerRequest::Hashes { content, first: 0 });
            }
        },
    ];
    for (kind, act) in kinds.iter().enumerate() {
        let idle = crowd(act);
        let to = tempfile::tempdir().unwrap();
        let options =
            FetchOptions { to: to.path().to_owned(), ..scene.options(vec![scene.source()]) };
        run(options).unwrap_or_else(|error| panic!("beside a crowd of kind {kind}: {error}"));
        drop(idle);
    }
}

/// A connection keeps its place only for a while if it does not read its chunk, and as long as it
/// likes if it does.
#[test]
fn a_place_is_kept_by_who_takes_a_chunk_and_not_by_who_reads_none() {
    let scene = Scene::with(64 * MIB, |options| options.connections_max = Some(2));
    let content = scene.manifest.content();
    let asks = |last| {
        let mut client = Client::from([127, 0, 2, last], &scene.server).greet();
        for index in 0..64 {
            client.ask(index, PeerRequest::Chunk { content, index });
        }
        client
    };
    let mut reader = asks(1);
    let _deaf = asks(2);
    let mut chunk = 0;
    // The reader takes chunk after chunk until a new connection gets the place of the one that does
    // not read.
    wait_until("the one that reads nothing makes room", || {
        match reader.receive().expect("who takes chunks keeps its place") {
            Message::ShareReply { id, body: PeerReply::Chunk { length } } => {
                assert_eq!(length as usize, reader.raw(length as usize).len());
                chunk += 1;
                reader.ask(id + 64, PeerRequest::Chunk { content, index: id % 64 });
            }
            Message::ShareReply { id, body: PeerReply::Denied { .. } } => {
                reader.ask(id + 64, PeerRequest::Chunk { content, index: id % 64 });
            }
            other => panic!("{other:?}"),
        }
        let mut new = Client::from([127, 0, 2, 3], &scene.server);
        new.send(&greeting::hello());
        chunk > 0 && matches!(new.receive(), Some(Message::ShareWelcome { .. }))
    });
    assert!(reader.receive().is_some(), "and it keeps it");
}

/// Once a few JOINs under other ids, from an honest peer's own IP and with its address, kept
/// everybody from it: they were told that another peer answers there.
#[test]
fn whoever_answers_at_an_address_gives_whatever_it_was_announced_as() {
    let scene = Scene::new(2 * MIB);
    let announced = |peer| Source { peer: PeerId(peer), ..scene.source() };
    scene.assert_whole(&run(scene.options(vec![announced(99)])).unwrap());
    let many = (100..200).map(announced).chain([scene.source()]).collect();
    scene.assert_whole(&run(scene.options(many)).unwrap());
}

/// A peer whose disk has corrupted the file sends wrong bytes once, and is told.
#[test]
fn a_rotten_chunk_is_noticed_when_it_is_asked_for_again() {
    let scene = Scene::new(2 * MIB);
    let content = scene.manifest.content();
    std::fs::write(&scene.path, vec![7; 2 * MIB]).unwrap();
    let stamp = FileStamp::of(&std::fs::metadata(&scene.path).unwrap());
    let offer = scene.shelf.offer(content).unwrap();
    scene.shelf.insert(Offer { stamp: Some(stamp), ..offer });
    let mut client = Client::greeted(&scene.server);
    client.ask(1, PeerRequest::Chunk { content, index: 1 });
    assert!(matches!(client.receive(), Some(Message::ShareReply { id: 1, .. })));
    assert!(client.raw(MIB) == vec![7; MIB]);
    client.ask(2, PeerRequest::Chunk { content, index: 1 });
    assert_eq!(client.denial(), (2, DenialCode::Changed));
    assert_eq!(scene.shelf.changed.load(Ordering::SeqCst), 1);
}

/// Once a chunk that had been sent was never checked again: its source went on offering what it did
/// not have.
#[test]
fn a_rotten_chunk_is_noticed_when_its_taker_says_that_it_was_wrong() {
    // A good chunk stays offered whatever is reported of it. A report on a chunk that does not
    // exist is ignored.
    let good = Scene::new(2 * MIB);
    let content = good.manifest.content();
    let mut client = Client::greeted(&good.server);
    for (id, index) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, u64::MAX)] {
        client.ask(id, PeerRequest::Doubt { content, index });
    }
    client.ask(6, PeerRequest::Chunk { content, index: 1 });
    assert!(matches!(client.receive(), Some(Message::ShareReply { id: 6, .. })), "no other answer");
    assert!(client.raw(MIB) == good.bytes[MIB..]);
    assert_eq!(good.shelf.changed.load(Ordering::SeqCst), 0);

    // Another server, none of whose chunks is checked because it was requested before.
    let scene = Scene::new(2 * MIB);
    let content = scene.manifest.content();
    let changed = || scene.shelf.changed.load(Ordering::SeqCst);
    std::fs::write(&scene.path, vec![7; 2 * MIB]).unwrap();
    let stamp = FileStamp::of(&std::fs::metadata(&scene.path).unwrap());
    let offer = scene.shelf.offer(content).unwrap();
    scene.shelf.insert(Offer { stamp: Some(stamp), ..offer });
    let error = run(scene.options(vec![scene.source()])).unwrap_err();
    assert!(error.to_string().contains("wrong bytes"), "{error}");
    wait_until("its source looks at it", || changed() == 1);
    assert!(scene.shelf.offer(content).is_none());
}

#[test]
fn a_server_answers_every_request_once_and_what_is_called_off_too() {
    let scene = Scene::new(12 * MIB);
    let content = scene.manifest.content();
    let mut client = Client::greeted(&scene.server);
    client.ask(1, PeerRequest::Chunk { content, index: 12 });
    assert_eq!(client.denial(), (1, DenialCode::Invalid));
    client.ask(2, PeerRequest::Hashes { content, first: 12 });
    assert_eq!(client.denial(), (2, DenialCode::Invalid));
    let elsewhere = acervo::model::ContentId([9; 32]);
    for (id, body) in [
        (3, PeerRequest::Chunk { content: elsewhere, index: 0 }),
        (4, PeerRequest::Watch { content: elsewhere }),
        (5, PeerRequest::Find { name: FileName::new("nothing").unwrap() }),
    ] {
        client.ask(id, body);
        assert_eq!(client.denial(), (id, DenialCode::NotFound));
    }
    // All chunks are requested at once, and every one is cancelled at once.
    for index in 0..12 {
        client.ask(100 + index, PeerRequest::Chunk { content, index });
    }
    for index in 0..12 {
        client.ask(200 + index, PeerRequest::Cancel { request: 100 + index });
    }
    let mut answered = Vec::new();
    while answered.len() < 12 {
        match client.receive() {
            Some(Message::ShareReply { id, body: PeerReply::Chunk { length } }) => {
                let at = (id - 100) as usize * MIB;
                assert!(client.raw(length as usize) == scene.bytes[at..at + MIB]);
                answered.push(id);
            }
            Some(Message::ShareReply { id, body: PeerReply::Denied { code, .. } }) => {
                assert_eq!(code, DenialCode::Cancelled);
                answered.push(id);
            }
            other => panic!("{other:?}"),
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, (100..112).collect::<Vec<_>>());
    client.send(&Message::Ping { nonce: 5 });
    assert_eq!(client.receive(), Some(Message::Pong { nonce: 5 }));
}

#[test]
fn a_server_has_limits_for_what_one_peer_may_ask() {
    let limit = 64 * 1024;
    let scene = Scene::with(2 * MIB, |options| options.limit_bytes_per_s = Some(limit));
    let content = scene.manifest.content();
    let mut client = Client::greeted(&scene.server);
    let asked = 2 * limits::CHUNK_REQUESTS_PER_PEER_MAX as u64;
    for id in 0..asked {
        client.ask(id, PeerRequest::Chunk { content, index: 0 });
    }
    // At that rate none is served while this test runs; the others are refused in time.
    let first = match client.receive() {
        Some(Message::ShareReply { body: PeerReply::Chunk { length }, .. }) => length as usize,
        Some(Message::ShareReply { body: PeerReply::Denied { code, .. }, .. }) => {
            assert_eq!(code, DenialCode::Busy);
            return;
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(first, MIB);
    // Frames do not come between a chunk's pieces, however slowly it is sent.
    assert!(client.raw(100_000) == scene.bytes[..100_000]);
}

#[test]
fn a_server_closes_on_who_does_not_speak_its_language() {
    let scene = Scene::new(MIB);
    let refused = |bytes: &[u8]| {
        let mut client = Client::connect(&scene.server);
        client.stream.write_all(bytes).unwrap();
        let said = client.receive();
        assert!(matches!(said, Some(Message::Refused { .. })), "{said:?}");
        assert_eq!(client.receive(), None);
    };
    refused(&[0, 0, 0, 3, 1, 2, 3]);
    refused(&[0xff; 64]);
    refused(&greeting::frame(&Message::Ping { nonce: 1 }).unwrap());
    let mut talk = greeting::frame(&greeting::hello()).unwrap();
    let mut client = Client::greeted(&scene.server);
    client.send(&Message::Refused { reason: "no".to_owned() });
    assert!(matches!(client.receive(), Some(Message::Refused { .. })));
    talk.extend([0, 1, 0, 0]);
    let mut client = Client::connect(&scene.server);
    client.stream.write_all(&talk).unwrap();
    assert!(matches!(client.receive(), Some(Message::ShareWelcome { .. })));
    assert!(matches!(client.receive(), Some(Message::Refused { .. })));
}

/// Once 24 slow takers had every place, and later ones were refused until one of them was done.
#[test]
fn any_number_of_peers_that_take_nothing_keeps_nobody_waiting() {
    let scene = Scene::new(8 * MIB);
    let content = scene.manifest.content();
    // All of them request chunks, and take nothing.
    let mut clients: Vec<Client> = (0..60).map(|_| Client::greeted(&scene.server)).collect();
    for client in &mut clients {
        for id in 0..60 {
            client.ask(id, PeerRequest::Chunk { content, index: id % 8 });
        }
    }
    // Until none of them is given anything more.
    let chunks = || scene.server.status().chunks;
    wait_until("the buffers are taken", || chunks() >= limits::UPLOAD_CHUNKS_MAX as u64);
    for _ in 0..3 {
        let outcome = run(scene.options(vec![scene.source()])).unwrap();
        scene.assert_whole(&outcome);
        std::fs::remove_file(outcome.path).unwrap();
    }
}

/// Once a peer that had not taken one chunk in time was slow, and had to wait behind all other slow
/// ones: for minutes, and in vain.
#[test]
fn whoever_was_slow_once_is_served_beside_any_number_of_slow_takers() {
    let scene = Scene::new(24 * MIB);
    let content = scene.manifest.content();
    let asks = |ip: [u8; 4]| {
        let mut client = Client::from(ip, &scene.server).greet();
        for index in 0..24 {
            client.ask(index, PeerRequest::Chunk { content, index });
        }
        client
    };
    let crowd: Vec<Client> = (1..=100).map(|last| asks([127, 0, 4, last])).collect();
    let mut slow = asks([127, 0, 5, 1]);
    let begun = Instant::now();
    // Until it certainly counts as slow, and so do they.
    wait_until("it has kept the server waiting", || {
        begun.elapsed() > 2 * limits::UPLOAD_SLOW_AFTER
    });
    for index in 0..24 {
        let reply = PeerReply::Chunk { length: MIB as u32 };
        assert_eq!(slow.receive(), Some(Message::ShareReply { id: index, body: reply }));
        let at = index as usize * MIB;
        assert!(slow.raw(MIB) == scene.bytes[at..at + MIB]);
    }
    drop(crowd);
}

/// Once each tick began with the same taker, which was sent nearly everything: one of four fell
/// silent for its download.
#[test]
fn takers_get_equal_shares_of_a_limited_rate() {
    let scene = Scene::with(4 * MIB, |options| options.limit_bytes_per_s = Some(8 * MIB as u64));
    let content = scene.manifest.content();
    let taken: [AtomicU64; 4] = Default::default();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for taken in &taken {
            let (mut client, is_over) = (Client::greeted(&scene.server), &is_over);
            scope.spawn(move || {
                // Several at once, so that something is read ahead all the time.
                let ask = |client: &mut Client, request| {
                    client.ask(request, PeerRequest::Chunk { content, index: request % 4 });
                };
                (0..3).for_each(|request| ask(&mut client, request));
                for request in 3.. {
                    match client.receive() {
                        Some(Message::ShareReply { body: PeerReply::Chunk { .. }, .. }) => {}
                        Some(Message::ShareReply { body: PeerReply::Denied { .. }, .. }) => {
                            ask(&mut client, request);
                            continue;
                        }
                        other => panic!("{other:?}"),
                    }
                    for _ in 0..16 {
                        client.raw(MIB / 16);
                        if is_over.load(Ordering::Relaxed) {
                            return;
                        }
                        let bytes = taken.fetch_add(MIB as u64 / 16, Ordering::Relaxed);
                        is_over.fetch_or(bytes >= 2 * MIB as u64, Ordering::Relaxed);
                    }
                    ask(&mut client, request);
                }
            });
        }
    });
    let taken = taken.map(AtomicU64::into_inner);
    assert!(taken.iter().all(|bytes| *bytes >= MIB as u64), "{taken:?}");
}

/// Once each new taker was sent its first piece before anybody else, and a flood of them kept out
/// one that was being served.
#[test]
fn takers_that_come_all_the_time_do_not_keep_out_one_that_is_being_served() {
    // Twenty pieces, of which four go at once.
    let scene = Scene::with(400 * 1024, |options| options.limit_bytes_per_s = Some(2 * MIB as u64));
    let content = scene.manifest.content();
    let begun = || {
        let mut client = Client::greeted(&scene.server);
        client.ask(1, PeerRequest::Chunk { content, index: 0 });
        match client.receive() {
            Some(Message::ShareReply { body: PeerReply::Chunk { .. }, .. }) => Some(client),
            Some(Message::ShareReply { body: PeerReply::Denied { .. }, .. }) => None,
            other => panic!("{other:?}"),
        }
    };
    let mut served = begun().expect("nobody else is there");
    let served = std::thread::spawn(move || served.raw(400 * 1024));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // Each goes when it has been sent something, and comes back as a new one.
            scope.spawn(|| {
                while !served.is_finished() {
                    drop(begun());
                }
            });
        }
    });
    assert!(served.join().unwrap() == scene.bytes);
}

/// When a file changes while a chunk is sent in slices, the beginning has been sent: the rest would
/// be another file's.
#[test]
fn a_file_that_changes_within_a_chunk_ends_the_connection() {
    // At this rate a chunk takes four seconds. Otherwise the system's buffers would take it whole
    // before the change.
    let scene = Scene::with(2 * MIB, |options| options.limit_bytes_per_s = Some(256 * 1024));
    let content = scene.manifest.content();
    let mut client = Client::dial(Dial {
        ip: [127, 0, 6, 1],
        receive_buffer_bytes: Some(4096),
        server: &scene.server,
    })
    .greet();
    client.ask(1, PeerRequest::Chunk { content, index: 1 });
    let reply = PeerReply::Chunk { length: MIB as u32 };
    assert_eq!(client.receive(), Some(Message::ShareReply { id: 1, body: reply }));
    std::fs::write(&scene.path, vec![7; 2 * MIB]).unwrap();
    let mut got = vec![0; MIB];
    let taken = client.deframer.take_raw(&mut got);
    got.truncate(taken);
    client.stream.read_to_end(&mut got).unwrap();
    assert!(got.len() < MIB && got == scene.bytes[MIB..MIB + got.len()], "{} bytes", got.len());
    assert_eq!(scene.shelf.changed.load(Ordering::SeqCst), 1);
}

#[test]
fn a_watcher_is_told_of_each_new_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let path = share_support::file(folder.path(), 5 * MIB, 3);
    let manifest = Arc::new(shelf::manifest_of(&path));
    let chunks = Arc::new(SharedChunks::new(ChunkSet::empty(5)));
    chunks.insert(3);
    let shelf = Arc::new(Shelf::default());
    let offer = Offer {
        manifest: Arc::clone(&manifest),
        folder: Arc::new(folder.path().to_owned()),
        file: path.file_name().unwrap().to_str().unwrap().to_owned(),
        opened: None,
        stamp: None,
        available: Available::Partial(Arc::clone(&chunks)),
    };
    shelf.insert(offer);
    let server = serve(vec![shelf]);
    let content = manifest.content();
    let mut client = Client::greeted(&server);
    let expect = |client: &mut Client, expected: &[(u64, u64)]| match client.receive() {
        Some(Message::ShareReply { id: 9, body: PeerReply::Have { runs } }) => {
            assert_eq!(runs, expected);
        }
        other => panic!("{other:?}"),
    };
    client.ask(9, PeerRequest::Watch { content });
    expect(&mut client, &[(3, 1)]);
    chunks.insert(4);
    expect(&mut client, &[(4, 1)]);
    client.ask(10, PeerRequest::Chunk { content, index: 0 });
    assert_eq!(client.denial(), (10, DenialCode::Busy));
    chunks.insert(0);
    expect(&mut client, &[(0, 1)]);
    // Another program has changed one, which is fetched again. Once a watcher to whom it was
    // announced twice banned the source.
    chunks.remove(4);
    chunks.insert(1);
    expect(&mut client, &[(1, 1)]);
    chunks.insert(4);
    chunks.insert(2);
    expect(&mut client, &[(2, 1)]);
    client.ask(11, PeerRequest::Chunk { content, index: 0 });
    let reply = Message::ShareReply { id: 11, body: PeerReply::Chunk { length: MIB as u32 } };
    assert_eq!(client.receive(), Some(reply));
    assert!(client.raw(MIB) == bytes(5 * MIB, 3)[..MIB]);
}

#[test]
fn one_peer_can_be_asked_what_it_has() {
    let scene = Scene::new(3 * MIB);
    let file = scene.path.file_name().unwrap().to_str().unwrap();
    let name = FileName::new(file).unwrap();
    let (peer, entry) = fetch::find(scene.server.address(), &name, PATIENCE).unwrap();
    assert_eq!(peer, scene.source().peer);
    assert_eq!((entry.size, entry.content), (3 * MIB as u64, scene.manifest.content()));
    let other = FileName::new("other.bin").unwrap();
    let error = fetch::find(scene.server.address(), &other, PATIENCE).unwrap_err();
    assert!(matches!(error, FindError::Refused { .. }), "{error:?}");
    let nobody = TcpListener::bind(local()).unwrap().local_addr().unwrap();
    let error = fetch::find(nobody, &name, PATIENCE).unwrap_err();
    assert!(matches!(error, FindError::Unreachable { .. }), "{error:?}");
}

/// A file of so many mebibytes and a little more without any repetition, so that no chunk can stand
/// for another.
fn large_file(folder: &Path, mebibytes: usize) -> std::path::PathBuf {
    let path = folder.join("large.bin");
    let mut reader = blake3::Hasher::new().update(b"large").finalize_xof();
    let mut file = std::fs::File::create(&path).unwrap();
    let mut buffer = vec![0; MIB];
    for _ in 0..mebibytes {
        reader.fill(&mut buffer);
        file.write_all(&buffer).unwrap();
    }
    file.write_all(b"and a little more").unwrap();
    path
}

/// One download after the other from three peers. The ordinary suite runs a few small ones; a
/// campaign is
///
/// ```text
/// alias in_a_row='cargo test --release --test share in_a_row -- --nocapture'
/// ACERVO_DOWNLOADS=500 ACERVO_DOWNLOAD_MIB=64 in_a_row
/// ACERVO_DOWNLOADS=50 ACERVO_DOWNLOAD_MIB=2048 TMPDIR=/dev/shm in_a_row
/// ```
#[test]
fn downloads_in_a_row_from_three_peers_all_end_well() {
    let number = |name: &str, default: usize| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let (downloads, mebibytes) = (number("ACERVO_DOWNLOADS", 4), number("ACERVO_DOWNLOAD_MIB", 24));
    let folder = tempfile::tempdir().unwrap();
    let path = large_file(folder.path(), mebibytes);
    let shelf = Arc::new(Shelf::default());
    let manifest = shelf.add(&path);
    let servers: Vec<PeerServer> = (0..3).map(|_| serve(vec![Arc::clone(&shelf) as _])).collect();
    let sources: Vec<Source> =
        servers.iter().map(|server| source(server.address(), &manifest)).collect();
    let mut failures = Vec::new();
    for nth in 0..downloads {
        let to = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let options =
            FetchOptions { seed: nth as u64, ..options(&manifest, to.path(), sources.clone()) };
        match start(options).wait_for(Duration::from_secs(600)) {
            Some(Ok(outcome)) => {
                assert_eq!(shelf::manifest_of(&outcome.path), *manifest, "download {nth}");
                println!("download {nth}: {:.1} s", begun.elapsed().as_secs_f64());
            }
            Some(Err(error)) => failures.push(format!("download {nth}: {error}")),
            None => failures.push(format!("download {nth} did not end")),
        }
    }
    assert!(failures.is_empty(), "{} of {downloads} failed: {failures:#?}", failures.len());
}

/// Small enough to take a few seconds.
#[test]
fn a_file_of_more_than_a_gibibyte_arrives_byte_for_byte() {
    let shared = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let path = large_file(shared.path(), 1024);
    let mut buffer = vec![0; MIB];
    let shelf = Arc::new(Shelf::default());
    let manifest = shelf.add(&path);
    let server = serve(vec![shelf]);
    let outcome =
        run(options(&manifest, to.path(), vec![source(server.address(), &manifest)])).unwrap();
    assert_eq!(outcome.fetched_bytes, 1024 * MIB as u64 + 17);
    let mut arrived = std::fs::File::open(&outcome.path).unwrap();
    let mut original = std::fs::File::open(&path).unwrap();
    let mut other = vec![0; MIB];
    loop {
        let length = original.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        arrived.read_exact(&mut other[..length]).unwrap();
        assert!(buffer[..length] == other[..length], "the files differ");
    }
    assert_eq!(arrived.read(&mut other).unwrap(), 0);
}
