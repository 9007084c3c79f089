//! The decisions of a download, in virtual time and without sockets, files or threads.

use super::*;
use crate::limits::CHUNK_BYTES;
use crate::model::{ContentId, PeerId};
use crate::share::fetch::part_check::PART_RECHECKS_MAX;
use crate::share::swarm::SwarmConfig;

const FIRST: SourceId = SourceId(0);
const SECOND: SourceId = SourceId(1);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How a download is set up; the default is a new download of three chunks.
struct Setup {
    chunks: u64,
    is_resumed: bool,
    more_may_come: bool,
    gone_after: Option<Duration>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { chunks: 3, is_resumed: false, more_may_come: false, gone_after: None }
    }
}

/// A download, the requests that it has sent, and its other actions.
struct Scene {
    download: Download,
    manifest: Manifest,
    now: Duration,
    requests: Vec<(SourceId, u64, PeerRequest)>,
    others: Vec<DownloadAction>,
}

impl Scene {
    fn new(setup: Setup) -> Scene {
        let hash = |index: u64| ChunkHash(*blake3::hash(&index.to_le_bytes()).as_bytes());
        let size = setup.chunks * CHUNK_BYTES as u64 - 7;
        let manifest = Manifest::new(size, (0..setup.chunks).map(hash).collect()).unwrap();
        let swarm = SwarmConfig {
            size,
            seed: 1,
            rate_constant: secs(1),
            rate_min: limits::SOURCE_RATE_MIN,
            sources_max: 4,
            known_max: 8,
            chunks_max: 2,
            unchecked_max: secs(100),
        };
        let download = Download::new(DownloadConfig {
            content: manifest.content(),
            size,
            is_resumed: setup.is_resumed,
            more_may_come: setup.more_may_come,
            patience: secs(30),
            gone_after: setup.gone_after,
            checks_per_job: 2,
            workers: 1,
            swarm,
        });
        let (requests, others) = (Vec::new(), Vec::new());
        Scene { download, manifest, now: Duration::ZERO, requests, others }
    }

    fn source(&self, id: SourceId) -> Source {
        Source {
            peer: PeerId(1 + id.0 as u64),
            address: SocketAddr::from(([10, 0, 0, 1 + id.0 as u8], 1000)),
            size: self.manifest.size(),
            content: self.manifest.content(),
        }
    }

    /// Plans, and sorts the actions into requests and others.
    fn act(&mut self) {
        self.download.plan(self.now);
        while let Some(action) = self.download.next_action() {
            match action {
                DownloadAction::Send(source, Message::Share { id, body }) => {
                    self.requests.push((source, id, body));
                }
                action => self.others.push(action),
            }
        }
    }

    /// Adds sources, connects and greets them, and has them announce all chunks.
    fn connect(&mut self, ids: &[SourceId]) {
        let sources = ids.iter().map(|id| self.source(*id)).collect();
        self.download.add_sources(sources, self.now);
        self.act();
        for id in ids {
            let address = self.source(*id).address;
            assert!(self.others.contains(&DownloadAction::Connect(*id, address)));
            self.download.connected(*id);
            self.message(*id, greeting::welcome(Some(PeerId(1 + id.0 as u64))));
            let runs = vec![(0, self.manifest.chunks().len() as u64)];
            self.answer(*id, "watch", PeerReply::Have { runs });
        }
    }

    fn message(&mut self, id: SourceId, message: Message) {
        self.download.message(id, message, self.now);
        self.act();
    }

    /// Takes the oldest unanswered request of a kind at a source.
    fn take_request(&mut self, source: SourceId, kind: &str) -> (u64, PeerRequest) {
        let is_it = |request: &PeerRequest| match request {
            PeerRequest::Watch { .. } => kind == "watch",
            PeerRequest::Hashes { .. } => kind == "hashes",
            PeerRequest::Chunk { .. } => kind == "chunk",
            PeerRequest::Doubt { .. } => kind == "doubt",
            _ => false,
        };
        let found = self.requests.iter().position(|(at, _, body)| *at == source && is_it(body));
        let at = found.unwrap_or_else(|| panic!("no {kind} of {source:?}: {:?}", self.requests));
        let (_, id, body) = self.requests.remove(at);
        (id, body)
    }

    fn answer(&mut self, source: SourceId, kind: &str, body: PeerReply) -> PeerRequest {
        let (id, request) = self.take_request(source, kind);
        self.message(source, Message::ShareReply { id, body });
        request
    }

    fn deny(&mut self, source: SourceId, kind: &str, code: DenialCode) {
        self.answer(source, kind, PeerReply::Denied { code, message: "no".to_owned() });
    }

    fn answer_hashes(&mut self, source: SourceId) {
        let hashes = self.manifest.chunks().to_vec();
        self.answer(source, "hashes", PeerReply::Hashes { hashes });
    }

    /// Has a source send the chunk that it was asked for first. Returns the chunk, and whether it
    /// is to be stored.
    fn send_chunk(&mut self, source: SourceId) -> (u64, bool) {
        let (id, request) = self.take_request(source, "chunk");
        let PeerRequest::Chunk { index, .. } = request else { unreachable!() };
        let length = chunk_len(index, self.manifest.size());
        let body = PeerReply::Chunk { length: length as u32 };
        self.message(source, Message::ShareReply { id, body });
        assert_eq!(self.download.next_waiting(source.0), Some((source, length)));
        assert!(self.download.is_waiting(source));
        self.download.receiving(source);
        assert!(!self.download.is_waiting(source));
        let stored = self.download.chunk_received(source);
        if let Some((stored, _)) = &stored {
            assert_eq!(*stored, index);
        }
        (index, stored.is_some())
    }

    /// Has a source send all chunks that it is asked for, and has them stored.
    fn fetch_all(&mut self, source: SourceId) -> u64 {
        let mut count = 0;
        let wants = |(id, _, body): &(SourceId, u64, PeerRequest)| *id == source && is_chunk(body);
        while self.requests.iter().any(wants) {
            let (index, is_wanted) = self.send_chunk(source);
            assert!(is_wanted);
            self.download.checked_chunk(source, index, true, self.now);
            self.act();
            count += 1;
        }
        count
    }

    /// Lets time pass in ticks.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += limits::SHARE_TICK;
            self.download.tick(self.now);
            self.act();
        }
    }

    fn failure(&self) -> Option<&DownloadFailure> {
        self.others.iter().find_map(|action| match action {
            DownloadAction::Fail(failure) => Some(failure),
            _ => None,
        })
    }

    fn has(&self, action: &DownloadAction) -> bool {
        self.others.contains(action)
    }

    /// Runs every check that is due, and finds all chunks good but these.
    fn check_all(&mut self, bad: &[u64]) {
        while let Some(range) = self.download.next_check() {
            self.download.check_started(range);
            let good: Vec<u64> = range.chunks().filter(|index| !bad.contains(index)).collect();
            self.download.checked(range, &good, self.now);
            self.act();
        }
    }
}

fn is_chunk(request: &PeerRequest) -> bool {
    matches!(request, PeerRequest::Chunk { .. })
}

#[test]
fn a_file_is_published_when_all_chunks_are_stored_and_its_space_is_reserved() {
    let mut scene = Scene::new(Setup::default());
    scene.connect(&[FIRST]);
    assert!(!scene.requests.iter().any(|(_, _, body)| is_chunk(body)), "no hash is known yet");
    scene.answer_hashes(FIRST);
    assert!(scene.has(&DownloadAction::OfferPart));
    assert_eq!(scene.fetch_all(FIRST), 3);
    assert_eq!(scene.download.stored().bytes(), scene.manifest.size());
    assert!(!scene.has(&DownloadAction::Finish), "space that is reserved later would stay");
    scene.download.allocated();
    scene.act();
    assert!(scene.has(&DownloadAction::Finish));
    assert_eq!(scene.download.stored().fetched_bytes(), 3 * CHUNK_BYTES as u64 - 7);
}

#[test]
fn kept_chunks_are_checked_and_only_the_rest_is_fetched() {
    let mut scene = Scene::new(Setup { is_resumed: true, chunks: 5, ..Setup::default() });
    scene.download.allocated();
    scene.connect(&[FIRST]);
    scene.answer_hashes(FIRST);
    assert_eq!(scene.download.phase(), FetchPhase::Checking);
    scene.check_all(&[1, 4]);
    assert_eq!(scene.download.phase(), FetchPhase::Fetching);
    assert_eq!(scene.download.stored().kept_bytes(), 3 * CHUNK_BYTES as u64);
    assert_eq!(scene.fetch_all(FIRST), 2);
    assert!(scene.has(&DownloadAction::Finish));
}

#[test]
fn a_ping_is_answered_and_a_pong_that_nobody_asked_for_bans() {
    let mut scene = Scene::new(Setup::default());
    scene.connect(&[FIRST]);
    scene.message(FIRST, Message::Ping { nonce: 7 });
    assert!(scene.has(&DownloadAction::Send(FIRST, Message::Pong { nonce: 7 })));
    assert!(!scene.has(&DownloadAction::Close(FIRST)));
    scene.message(FIRST, Message::Pong { nonce: 7 });
    assert!(scene.has(&DownloadAction::Close(FIRST)));
}

/// A source that sends a wrong chunk and closes is dialled again before the chunk has been checked.
#[test]
fn nothing_is_said_over_a_new_connection_before_its_greeting() {
    let mut scene = Scene::new(Setup::default());
    scene.connect(&[FIRST]);
    scene.answer_hashes(FIRST);
    let (index, _) = scene.send_chunk(FIRST);
    scene.download.disconnected(FIRST, "it closed the connection", scene.now);
    scene.now += 2 * limits::SOURCE_AWAY_MIN;
    scene.download.tick(scene.now);
    scene.others.clear();
    scene.act();
    let address = scene.source(FIRST).address;
    assert!(scene.has(&DownloadAction::Connect(FIRST, address)));
    scene.download.checked_chunk(FIRST, index, false, scene.now);
    scene.act();
    assert!(scene.requests.iter().all(|(.., body)| !matches!(body, PeerRequest::Doubt { .. })));
    assert!(scene.has(&DownloadAction::Close(FIRST)));
}

#[test]
fn a_wrong_chunk_bans_its_source_with_a_doubt_and_is_fetched_elsewhere() {
    let mut scene = Scene::new(Setup::default());
    scene.download.allocated();
    scene.connect(&[FIRST]);
    scene.answer_hashes(FIRST);
    let (index, _) = scene.send_chunk(FIRST);
    scene.download.checked_chunk(FIRST, index, false, scene.now);
    scene.act();
    let (_, doubt) = scene.take_request(FIRST, "doubt");
    assert_eq!(doubt, PeerRequest::Doubt { content: scene.manifest.content(), index });
    let position = |action: &DownloadAction| scene.others.iter().position(|one| one == action);
    let (flush, close) = (DownloadAction::CloseAfterFlush(FIRST), DownloadAction::Close(FIRST));
    assert!(position(&flush).unwrap() < position(&close).unwrap());
    scene.connect(&[SECOND]);
    assert_eq!(scene.fetch_all(SECOND), 3);
    assert!(scene.has(&DownloadAction::Finish));
}

#[test]
fn a_source_that_sends_an_unrequested_reply_is_dropped() {
    type Trick = fn(&mut Scene);
    let tricks: [(&str, Trick); 7] = [
        ("an answer to no request", |scene| {
            let body = PeerReply::Have { runs: vec![] };
            scene.message(FIRST, Message::ShareReply { id: 77, body });
        }),
        ("an answer of another kind", |scene| {
            scene.answer(FIRST, "chunk", PeerReply::Hashes { hashes: vec![] });
        }),
        ("a chunk of another length", |scene| {
            scene.answer(FIRST, "chunk", PeerReply::Chunk { length: 5 });
        }),
        ("a second chunk before the first", |scene| {
            let length = CHUNK_BYTES as u32;
            let (first, _) = scene.take_request(FIRST, "chunk");
            let answer = |id| Message::ShareReply { id, body: PeerReply::Chunk { length } };
            scene.download.message(FIRST, answer(first), scene.now);
            scene.download.message(FIRST, answer(first), scene.now);
            scene.act();
        }),
        ("a second greeting", |scene| scene.message(FIRST, greeting::welcome(Some(PeerId(1))))),
        ("an answer to no ping", |scene| scene.message(FIRST, Message::Pong { nonce: 0 })),
        ("no message", |scene| {
            scene.download.undecodable(FIRST);
            scene.act();
        }),
    ];
    for (what, trick) in tricks {
        let mut scene = Scene::new(Setup::default());
        scene.connect(&[FIRST]);
        scene.answer_hashes(FIRST);
        trick(&mut scene);
        assert!(scene.has(&DownloadAction::Close(FIRST)), "{what}");
        scene.pass(limits::SHARE_TICK);
        let failure = scene.failure().unwrap_or_else(|| panic!("{what}: nobody is left"));
        assert!(matches!(failure, DownloadFailure::NoSource(_)), "{what}: {failure:?}");
    }
}

#[test]
fn a_download_fails_when_every_source_and_a_search_say_that_the_content_is_gone() {
    let setup = || Setup { more_may_come: true, gone_after: Some(secs(5)), ..Setup::default() };
    let mut scene = Scene::new(setup());
    scene.connect(&[FIRST, SECOND]);
    scene.deny(FIRST, "hashes", DenialCode::NotFound);
    scene.pass(secs(1));
    assert!(!scene.has(&DownloadAction::RequestSearch), "the second may have it");
    scene.deny(SECOND, "hashes", DenialCode::NotFound);
    scene.pass(limits::SHARE_TICK);
    assert!(scene.has(&DownloadAction::RequestSearch), "nothing has come, so nothing is lost");
    scene.download.search_requested(1);
    scene.pass(limits::SHARE_TICK);
    assert_eq!(scene.failure(), None, "the search goes on");
    scene.download.searched(1);
    scene.pass(limits::SHARE_TICK);
    assert_eq!(scene.failure(), Some(&DownloadFailure::Gone));

    // With a chunk stored it waits: the file may only have been renamed.
    let mut scene = Scene::new(setup());
    scene.connect(&[FIRST]);
    scene.answer_hashes(FIRST);
    let (index, _) = scene.send_chunk(FIRST);
    scene.download.checked_chunk(FIRST, index, true, scene.now);
    scene.act();
    scene.deny(FIRST, "chunk", DenialCode::NotFound);
    scene.pass(secs(4));
    assert!(!scene.has(&DownloadAction::RequestSearch));
    scene.pass(secs(2));
    assert!(scene.has(&DownloadAction::RequestSearch));
}

#[test]
fn a_source_that_is_hashing_the_file_anew_has_not_withdrawn_it() {
    let mut scene = Scene::new(Setup { gone_after: Some(Duration::ZERO), ..Setup::default() });
    scene.connect(&[FIRST]);
    scene.deny(FIRST, "hashes", DenialCode::Changed);
    scene.pass(secs(20));
    assert_eq!(scene.failure(), None);
    scene.pass(secs(15));
    assert!(matches!(scene.failure(), Some(DownloadFailure::NoSource(_))));
}

#[test]
fn a_download_without_sources_waits_as_long_as_its_patience() {
    let mut scene = Scene::new(Setup { more_may_come: true, ..Setup::default() });
    scene.pass(secs(29));
    assert_eq!(scene.failure(), None);
    scene.pass(secs(2));
    let nobody = DownloadFailure::NoSource("nobody has it".to_owned());
    assert_eq!(scene.failure(), Some(&nobody));
}

#[test]
fn a_refusal_is_escaped_before_it_is_shown() {
    let mut scene = Scene::new(Setup::default());
    scene.connect(&[FIRST]);
    scene.message(FIRST, Message::Refused { reason: "no\x1b[2J".to_owned() });
    let progress = scene.download.progress(0.0, Duration::ZERO);
    assert_eq!(progress.sources[0].state, SourceState::Lost(r"no\x1b[2J".to_owned()));
}

#[test]
fn a_file_that_another_program_has_changed_is_checked_and_repaired_a_limited_number_of_times() {
    let mut scene = Scene::new(Setup::default());
    scene.download.allocated();
    scene.connect(&[FIRST]);
    scene.answer_hashes(FIRST);
    scene.fetch_all(FIRST);
    for round in 0..PART_RECHECKS_MAX {
        assert_eq!(scene.download.phase(), FetchPhase::Finishing, "round {round}");
        scene.download.doubtful();
        scene.act();
        assert_eq!(scene.download.phase(), FetchPhase::Checking);
        scene.check_all(&[1]);
        assert_eq!(scene.fetch_all(FIRST), 1, "round {round}");
    }
    assert_eq!(scene.failure(), None);
    scene.download.doubtful();
    scene.act();
    assert_eq!(scene.failure(), Some(&DownloadFailure::Touched));
}

#[test]
fn an_address_is_one_source_and_one_of_another_content_is_none() {
    let mut scene = Scene::new(Setup::default());
    let source = scene.source(FIRST);
    let other_id = Source { peer: PeerId(99), ..source.clone() };
    let other_content = Source { content: ContentId([9; 32]), ..scene.source(SECOND) };
    scene.download.add_sources(vec![source, other_id, other_content], scene.now);
    assert_eq!(scene.download.source_count(), 1);
}
