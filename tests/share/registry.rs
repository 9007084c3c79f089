//! The registry over its sockets, as a real process: what it answers to clients that keep to the
//! protocol, and to those that do not.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use acervo::limits;
use acervo::model::{ClusterId, ContentId, FileEntry, FileName, NodeId, PeerId};
use acervo::net::Listener;
use acervo::share::fetch::FetchError;
use acervo::share::greeting;
use acervo::share::member::{MemberOptions, Membership, MembershipNotice, OfferedFiles};
use acervo::share::peer::{DownloadRequest, Peer, PeerOptions};
use acervo::share::registry_client::{PageReader, RegistryCallError, RegistryClient};
use acervo::share::serve::{PeerServer, ServeOptions};
use acervo::wire::codec;
use acervo::wire::message::{Channel, Hello, HelloRole, Message, PROTOCOL_VERSION};
use acervo::wire::share::{
    FileSummary, PeerReply, PeerRequest, RegistryReply, RegistryRequest, Source,
};
use rustix::process::Signal;

use crate::support::share::{FetchCommand, Registry, noise, write};
use crate::support::{self, PATIENCE, eventually, exited_with, raw};

/// A connection over which a test sends and receives frames itself.
struct Raw {
    stream: TcpStream,
    next_id: u64,
}

/// The parameters of a JOIN.
struct Joiner {
    peer: u64,
    secret: u64,
    port: u16,
    files: Vec<FileEntry>,
}

impl Raw {
    fn dial(registry: &Registry) -> Raw {
        let stream = TcpStream::connect(registry.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw { stream, next_id: 0 }
    }

    fn greeted(registry: &Registry) -> Raw {
        Raw::dial(registry).greet()
    }

    fn greeted_from(ip: IpAddr, registry: &Registry) -> Raw {
        let IpAddr::V4(ip) = ip else { panic!("{ip}") };
        let stream = raw::Raw::dial_from(ip, registry.address).stream;
        Raw { stream, next_id: 0 }.greet()
    }

    fn greet(self) -> Raw {
        let mut raw = self;
        raw.send(&hello(HelloRole::Share));
        assert!(matches!(raw.receive(), Some(Message::ShareWelcome { .. })));
        raw
    }

    fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    fn send(&mut self, message: &Message) {
        self.stream.write_all(&frame(message)).unwrap();
    }

    /// The next message; `None` at the end of the stream.
    fn receive(&mut self) -> Option<Message> {
        let mut header = [0; 4];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            // A registry that was sent more than it reads resets the connection.
            Err(error) => match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => return None,
                _ => panic!("{error}"),
            },
        }
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        self.stream.read_exact(&mut body).unwrap();
        Some(codec::decode(&body).unwrap())
    }

    fn ask(&mut self, body: RegistryRequest) -> RegistryReply {
        self.next_id += 1;
        self.send(&Message::Registry { id: self.next_id, body });
        match self.receive() {
            Some(Message::RegistryReply { id, body }) if id == self.next_id => body,
            other => panic!("{other:?}"),
        }
    }

    /// Joins with a secret that no other connection has.
    fn join(&mut self, peer: u64, port: u16, files: Vec<FileEntry>) -> RegistryReply {
        let secret = u64::from(self.address().port());
        self.join_as(Joiner { peer, secret, port, files })
    }

    fn join_as(&mut self, joiner: Joiner) -> RegistryReply {
        let mut join = join(joiner.peer, joiner.port, joiner.files);
        if let RegistryRequest::Join { secret, .. } = &mut join {
            *secret = joiner.secret;
        }
        self.ask(join)
    }

    fn search(&mut self, wanted: &str) -> Vec<Source> {
        match self.ask(RegistryRequest::Search { name: name(wanted) }) {
            RegistryReply::Sources(sources) => sources,
            other => panic!("{other:?}"),
        }
    }

    fn who_has(&mut self, wanted: &str) -> Vec<u64> {
        self.search(wanted).into_iter().map(|source| source.peer.0).collect()
    }

    /// The sentence of the REFUSED that ends the connection.
    fn refusal(&mut self) -> String {
        let Some(Message::Refused { reason }) = self.receive() else { panic!("not refused") };
        assert!(self.receive().is_none());
        reason
    }
}

fn frame(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    codec::encode(message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
    frame
}

fn hello(role: HelloRole) -> Message {
    Message::Hello(Hello { protocol: PROTOCOL_VERSION, role })
}

fn name(name: &str) -> FileName {
    FileName::new(name).unwrap()
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn file(of: &str, what: u8) -> FileEntry {
    FileEntry { name: name(of), size: u64::from(what), content: ContentId([what; 32]) }
}

fn join(peer: u64, port: u16, files: Vec<FileEntry>) -> RegistryRequest {
    RegistryRequest::Join {
        peer: PeerId(peer),
        address: at(port),
        files,
        part: 0,
        last: true,
        secret: 1,
        shares: true,
    }
}

#[test]
fn join_search_update_and_leave() {
    let registry = Registry::start(&[]);
    let mut first = Raw::greeted(&registry);
    let mut second = Raw::greeted(&registry);
    assert_eq!(first.search("a.mp4"), []);
    let files = vec![file("a.mp4", 1), file("coração.txt", 2)];
    assert_eq!(first.join(1, 5001, files), RegistryReply::JoinOk);
    assert_eq!(second.join(2, 5002, vec![]), RegistryReply::JoinOk);
    let source = |peer: u64, what: u8| Source {
        peer: PeerId(peer),
        address: at(5000 + peer as u16),
        size: u64::from(what),
        content: ContentId([what; 32]),
    };
    assert_eq!(second.search("a.mp4"), [source(1, 1)]);
    assert_eq!(second.search("A.mp4"), [], "names are matched exactly");
    assert_eq!(second.search("a"), []);

    let update = RegistryRequest::Update { added: vec![file("a.mp4", 1)], removed: vec![] };
    assert_eq!(second.ask(update), RegistryReply::UpdateOk);
    assert_eq!(first.search("a.mp4"), [source(1, 1), source(2, 1)]);
    let gone = RegistryRequest::Update { added: vec![], removed: vec![name("a.mp4")] };
    assert_eq!(first.ask(gone), RegistryReply::UpdateOk);
    assert_eq!(first.search("a.mp4"), [source(2, 1)]);
    assert_eq!(second.ask(RegistryRequest::Leave), RegistryReply::LeaveOk);
    assert_eq!(first.search("a.mp4"), []);
    // A peer that has left can still ask, but is no source any more.
    assert_eq!(second.search("coração.txt"), [source(1, 2)]);

    let from = second.address();
    let lines = [
        format!("Peer {} solicitou arquivo a.mp4.", first.address()),
        "Peer 127.0.0.1:5001 adicionado com arquivos a.mp4 coração.txt.".to_owned(),
        "Peer 127.0.0.1:5002 adicionado com arquivos .".to_owned(),
        "Peer 127.0.0.1:5002 solicitou arquivo a.mp4.".to_owned(),
        "Peer 127.0.0.1:5002 solicitou arquivo A.mp4.".to_owned(),
        "Peer 127.0.0.1:5002 solicitou arquivo a.".to_owned(),
        "Peer 127.0.0.1:5001 solicitou arquivo a.mp4.".to_owned(),
        "Peer 127.0.0.1:5001 solicitou arquivo a.mp4.".to_owned(),
        "Peer 127.0.0.1:5001 solicitou arquivo a.mp4.".to_owned(),
        format!("Peer {from} solicitou arquivo coração.txt."),
    ];
    let shown = eventually("every line", || {
        let shown = registry.console();
        (shown.len() >= lines.len()).then_some(shown)
    });
    assert_eq!(shown, lines);
}

#[test]
fn a_long_list_comes_in_parts_and_counts_when_it_is_whole() {
    let registry = Registry::start(&["--console", "off"]);
    let (mut peer, mut other) = (Raw::greeted(&registry), Raw::greeted(&registry));
    let part = |part, last, files| RegistryRequest::Join {
        peer: PeerId(1),
        address: at(5001),
        files,
        part,
        last,
        secret: 1,
        shares: true,
    };
    peer.join(1, 5001, vec![file("old", 1)]);
    assert_eq!(peer.ask(part(0, false, vec![file("new-1", 1)])), RegistryReply::JoinOk);
    assert_eq!(peer.ask(part(1, false, vec![file("new-2", 1)])), RegistryReply::JoinOk);
    assert_eq!((other.who_has("old"), other.who_has("new-1")), (vec![1], vec![]));
    assert_eq!(peer.ask(part(2, true, vec![])), RegistryReply::JoinOk);
    assert_eq!((other.who_has("old"), other.who_has("new-1")), (vec![], vec![1]));
    assert_eq!(other.who_has("new-2"), [1]);

    // A part out of order discards that list, and nothing else.
    assert_eq!(peer.ask(part(0, false, vec![file("x", 1)])), RegistryReply::JoinOk);
    for wrong in [part(2, false, vec![]), part(1, true, vec![])] {
        let reply = peer.ask(wrong);
        assert!(
            matches!(&reply, RegistryReply::Error { message, retry_after_ms: None }
            if message.contains("does not follow")),
            "{reply:?}"
        );
    }
    assert_eq!((other.who_has("x"), other.who_has("new-1")), (vec![], vec![1]));
}

#[test]
fn a_peer_has_a_limit_on_files_and_what_it_had_still_stands() {
    let registry = Registry::start(&["--console", "off"]);
    let mut peer = Raw::greeted(&registry);
    peer.join(1, 5001, vec![file("kept", 1)]);
    let parts = limits::FILES_PER_PEER_MAX / limits::FILES_PER_FRAME;
    for part in 0..=parts {
        let number = if part == parts { 1 } else { limits::FILES_PER_FRAME };
        let files = (0..number).map(|n| file(&format!("{part}-{n}"), 1)).collect();
        let (part, last) = (part as u32, part == parts);
        let join = RegistryRequest::Join {
            peer: PeerId(1),
            address: at(5001),
            files,
            part,
            last,
            secret: 1,
            shares: true,
        };
        let reply = peer.ask(join);
        if last {
            assert!(
                matches!(&reply, RegistryReply::Error { message, .. }
                if message.contains("at most 65536 files")),
                "{reply:?}"
            );
        } else {
            assert_eq!(reply, RegistryReply::JoinOk);
        }
    }
    assert_eq!((peer.who_has("kept"), peer.who_has("0-0")), (vec![1], vec![]));
}

#[test]
fn who_falls_silent_is_forgotten_and_may_come_back() {
    let registry = Registry::start(&["--silence-timeout", "2s"]);
    let (mut silent, mut other) = (Raw::greeted(&registry), Raw::greeted(&registry));
    silent.join(1, 5001, vec![file("a", 1)]);
    other.join(2, 5002, vec![file("a", 1)]);
    eventually("the silent peer is forgotten", || {
        assert_eq!(other.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
        (other.who_has("a") == [2]).then_some(())
    });
    assert_eq!(silent.ask(RegistryRequest::KeepAlive), RegistryReply::NotJoined);
    let update = RegistryRequest::Update { added: vec![file("b", 1)], removed: vec![] };
    assert_eq!(silent.ask(update), RegistryReply::NotJoined);
    assert_eq!(silent.join(1, 5001, vec![file("a", 1)]), RegistryReply::JoinOk);
    assert_eq!(other.who_has("a"), [1, 2]);
}

/// Once a peer that was downloading, and so searched all the time and sent no KEEP_ALIVE, was
/// forgotten.
#[test]
fn who_asks_anything_at_all_is_alive() {
    let registry = Registry::start(&["--console", "off", "--silence-timeout", "2s"]);
    let (mut silent, mut asking) = (Raw::greeted(&registry), Raw::greeted(&registry));
    silent.join(1, 5001, vec![file("a", 1)]);
    asking.join(2, 5002, vec![]);
    let content = ContentId([1; 32]);
    let fetching = RegistryRequest::Fetching { content, size: 1 };
    assert_eq!(asking.ask(fetching), RegistryReply::UpdateOk);
    let mut questions = (0..).map(|turn| match turn % 3 {
        0 => RegistryRequest::Peers { after: None },
        1 => RegistryRequest::Files { after: None },
        _ => RegistryRequest::SearchContent { content },
    });
    eventually("the silent peer is forgotten", || {
        asking.ask(questions.next().unwrap());
        asking.who_has("a").is_empty().then_some(())
    });
    let sources = asking.ask(RegistryRequest::SearchContent { content });
    let RegistryReply::Sources(sources) = sources else { panic!("{sources:?}") };
    assert_eq!(sources.iter().map(|source| source.peer.0).collect::<Vec<_>>(), [2]);
    // A forgotten peer is told so whatever it asks, and after that it may ask like anyone.
    let search = || RegistryRequest::Search { name: name("a") };
    assert_eq!(silent.ask(search()), RegistryReply::NotJoined);
    assert_eq!(silent.ask(search()), RegistryReply::Sources(vec![]));
}

/// Once the second of two downloads of one content, which ended at once, withdrew what the first
/// one offered.
#[test]
fn a_second_download_of_a_content_leaves_the_first_ones_offer_alone() {
    let registry = Registry::start(&["--console", "off"]);
    let (shared, to) = (registry.folder("shared"), registry.folder("to"));
    write(&shared, "film.mkv", &noise(24 << 20, "film"));
    // Slow enough that the first download is still running in the end.
    let _sharing = registry.share(&shared, &["--limit", "1MiB/s"]);
    let mut raw = Raw::greeted(&registry);
    let sources = raw.search("film.mkv");
    let source = sources[0].clone();
    let listener = Listener::bind(at(0)).unwrap();
    let options = PeerOptions {
        peer: PeerId(9),
        folder: None,
        address: listener.address(),
        listener,
        registries: vec![registry.address],
        limit_bytes_per_s: None,
        congestion: None,
        stop: std::sync::Arc::default(),
        hashing: std::sync::Arc::new(|_| {}),
    };
    let peer = Peer::start(options, |_| {}).unwrap();
    let wanted = |folder: &std::path::Path| DownloadRequest {
        name: name("film.mkv"),
        content: source.content,
        size: source.size,
        to: folder.to_owned(),
        sources: sources.clone(),
        look_for_more: false,
        patience: PATIENCE,
        gone_after: None,
    };
    let first = peer.download(wanted(&to)).unwrap();
    eventually("a chunk", || (first.progress().done_bytes > 0).then_some(()));
    let mut second = peer.download(wanted(&to)).unwrap();
    let error = second.wait_for(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, FetchError::UnderWay(_)), "{error:?}");
    drop(second);
    // Answers come in order, so the registry knows everything that was announced before this one.
    assert_eq!(peer.search(&name("film.mkv")).unwrap(), sources);
    let content = source.content;
    let RegistryReply::Sources(sources) = raw.ask(RegistryRequest::SearchContent { content })
    else {
        panic!("no answer")
    };
    assert!(sources.iter().any(|source| source.peer == PeerId(9)), "{sources:?}");
    let mut client = Raw { stream: TcpStream::connect(peer.serving_at()).unwrap(), next_id: 0 };
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send(&hello(HelloRole::Share));
    client.send(&Message::Share { id: 1, body: PeerRequest::Watch { content } });
    assert!(matches!(client.receive(), Some(Message::ShareWelcome { .. })));
    match client.receive() {
        Some(Message::ShareReply { id: 1, body: PeerReply::Have { runs } }) => {
            assert!(!runs.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_has_joined_keeps_its_id_until_its_connection_ends() {
    let registry = Registry::start(&["--console", "off"]);
    let (mut old, mut new) = (Raw::greeted(&registry), Raw::greeted(&registry));
    let mut other = Raw::greeted(&registry);
    assert_eq!(old.join(1, 5001, vec![file("a", 1)]), RegistryReply::JoinOk);
    for _ in 0..2 {
        assert_eq!(new.join(1, 5009, vec![file("b", 1)]), old_id_is_alive());
        assert_eq!(old.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
        assert_eq!((other.search("a")[0].address, other.search("b")), (at(5001), vec![]));
    }
    // Over its own connection a peer may join again, also under another id. Then its first id is
    // free.
    assert_eq!(old.join(1, 5002, vec![file("a", 1)]), RegistryReply::JoinOk);
    assert_eq!(other.search("a")[0].address, at(5002));
    assert_eq!(old.join(2, 5002, vec![file("a", 1)]), RegistryReply::JoinOk);
    assert_eq!(new.join(1, 5009, vec![file("a", 1)]), RegistryReply::JoinOk);
    assert_eq!(other.join(2, 5003, vec![]), old_id_is_alive());
    drop(old);
    eventually("the id is free", || {
        (other.join(2, 5003, vec![]) == RegistryReply::JoinOk).then_some(())
    });
    // A connection that ends after another has taken its place does no harm.
    assert_eq!(new.ask(RegistryRequest::Leave), RegistryReply::LeaveOk);
    let mut third = Raw::greeted(&registry);
    assert_eq!(third.join(1, 5010, vec![file("a", 1)]), RegistryReply::JoinOk);
    drop(new);
    assert_eq!(third.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
    assert_eq!(other.search("a")[0].address, at(5010));
    drop(third);
    eventually("the peer is forgotten", || other.search("a").is_empty().then_some(()));
}

fn old_id_is_alive() -> RegistryReply {
    RegistryReply::IdTaken { retry_after_ms: limits::JOINED_ELSEWHERE_RETRY_AFTER_MS }
}

/// Everybody can list the ids. Once a connection that joined under an id while its owner was away
/// kept it for ever.
#[test]
fn who_loses_its_id_to_somebody_else_joins_under_another() {
    let registry = Registry::start(&["--console", "off"]);
    let mut squatter = Raw::greeted(&registry);
    assert_eq!(squatter.join(7, 5001, vec![]), RegistryReply::JoinOk);
    let member = |id_patience| {
        let (notices, told) = std::sync::mpsc::channel();
        let options = MemberOptions {
            registries: vec![registry.address],
            peer: PeerId(7),
            id: Arc::default(),
            address: at(5002),
            files: Arc::new(Offered),
            shares: true,
            id_patience,
            settled_after: limits::MEMBERSHIP_SETTLED_AFTER,
        };
        let member = Membership::start(options, move |notice| notices.send(notice).unwrap());
        (member.unwrap(), told)
    };
    let (owner, told) = member(Duration::ZERO);
    let taken = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(taken, MembershipNotice::Lost(RegistryCallError::IdTaken(registry.address)));
    let joined = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(joined, MembershipNotice::Joined { again: false, .. }), "{joined:?}");
    assert_ne!(owner.peer(), PeerId(7));
    let sources = Raw::greeted(&registry).search("a");
    assert_eq!(sources.iter().map(|source| source.peer).collect::<Vec<_>>(), [owner.peer()]);

    // Until its patience ends it tries to join under its own id.
    let (patient, told) = member(PATIENCE);
    told.recv_timeout(PATIENCE).unwrap();
    drop(squatter);
    let joined = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(joined, MembershipNotice::Joined { .. }), "{joined:?}");
    assert_eq!(patient.peer(), PeerId(7));
}

/// A registry that greets and answers each request with what `answer` returns.
fn liar(mut answer: impl FnMut(RegistryRequest) -> RegistryReply + Send + 'static) -> SocketAddr {
    scripted(move |id, body| Some(Message::RegistryReply { id, body: answer(body) }))
}

/// A registry that greets and sends for each request what `answer` returns. After `None` it sends
/// nothing more on that connection.
fn scripted(
    answer: impl FnMut(u64, RegistryRequest) -> Option<Message> + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(Mutex::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut raw = Raw { stream: stream.unwrap(), next_id: 0 };
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                raw.receive();
                raw.send(&greeting::welcome(None));
                while let Some(Message::Registry { id, body }) = raw.receive() {
                    let message = (*answer.lock().unwrap())(id, body);
                    let Some(message) = message else {
                        // Until the other side gives up.
                        while raw.receive().is_some() {}
                        return;
                    };
                    raw.send(&message);
                    if matches!(message, Message::Refused { .. }) {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A membership at these registries, and the channel of its notices.
fn member_of(
    registries: &[SocketAddr],
    settled_after: Duration,
) -> (Membership, std::sync::mpsc::Receiver<MembershipNotice>) {
    let (notices, told) = std::sync::mpsc::channel();
    let options = MemberOptions {
        registries: registries.to_vec(),
        peer: PeerId(7),
        id: Arc::default(),
        address: at(5002),
        files: Arc::new(Offered),
        shares: true,
        id_patience: PATIENCE,
        settled_after,
    };
    // The receiver may be gone.
    let member = Membership::start(options, move |notice| drop(notices.send(notice)));
    (member.unwrap(), told)
}

/// All pages of a registry's list of files, or the error that has ended it.
fn list(registry: SocketAddr, rows_max: usize) -> Result<usize, RegistryCallError> {
    let mut line = RegistryClient::open(registry, Instant::now() + PATIENCE)?;
    let mut listing = PageReader::new(rows_max);
    let mut rows = 0;
    loop {
        let page = listing.next_page(&mut line, |after| RegistryRequest::Files { after })?;
        let RegistryReply::Files { files, more } = page else { panic!("{page:?}") };
        rows += files.len();
        if !listing.has_next(&line, files.iter().map(|row| &row.file.name), more)? {
            return Ok(rows);
        }
    }
}

/// Once two peers that told of 1 TiB, or of no bytes at all, kept a download from the content
/// that the others have under that name.
#[test]
fn a_size_that_nobody_proves_keeps_no_download_from_the_next_content() {
    let registry = Registry::start(&["--console", "off"]);
    let folder = registry.folder("shared");
    write(&folder, "film.mkv", b"film");
    let _peer = registry.share(&folder, &[]);
    let ips = [2, 3].map(|last| IpAddr::from([127, 0, 0, last]));
    let mut liars = ips.map(|ip| (ip, Raw::greeted_from(ip, &registry)));
    for (round, size) in [limits::FILE_BYTES_MAX, 0].into_iter().enumerate() {
        for (number, (ip, liar)) in liars.iter_mut().enumerate() {
            let content = ContentId([9; 32]);
            let files = vec![FileEntry { name: name("film.mkv"), size, content }];
            let mut lie = join(100 + number as u64, 9, files);
            if let RegistryRequest::Join { address, .. } = &mut lie {
                address.set_ip(*ip);
            }
            assert_eq!(liar.ask(lie), RegistryReply::JoinOk);
        }
        let to = registry.folder(&format!("to-{round}"));
        let path = to.to_str().unwrap();
        let ran = registry.run(&["fetch", "film.mkv", "--to", path, "--patience", "2s"]);
        assert_eq!(ran.status, 0, "{size}: {}", ran.err);
        assert_eq!(std::fs::read(to.join("film.mkv")).unwrap(), b"film");
    }
}

/// Once the endless list of a lying registry filled the disk.
#[test]
fn a_list_ends_whatever_the_registry_says() {
    let page = |names: &[&str], more| {
        let row = |of: &&str| FileSummary { file: file(of, 1), peers: 1 };
        RegistryReply::Files { files: names.iter().map(row).collect(), more }
    };
    let wrong = |answer: RegistryReply, why: &str| {
        let registry = liar(move |_| answer.clone());
        let error = list(registry, 100).unwrap_err();
        let RegistryCallError::Wrong { address, reason } = &error else { panic!("{error}") };
        assert!(*address == registry && reason.contains(why), "{error}");
    };
    wrong(page(&["a", "b"], true), "does not go on where");
    wrong(page(&["b", "a"], false), "does not go on where");
    wrong(page(&[], true), "is empty");
    wrong(RegistryReply::LeaveOk, "another question");
    let mut number = 0;
    let growing = liar(move |_| {
        number += 1;
        page(&[&format!("{number:09}")], true)
    });
    let error = list(growing, 100).unwrap_err();
    assert!(error.to_string().contains("more than the 100 "), "{error}");
    // Several contents of the same name.
    assert_eq!(list(liar(move |_| page(&["a", "a", "b"], false)), 100), Ok(3));
    assert_eq!(list(liar(move |_| page(&[], false)), 100), Ok(0));
}

/// Once a refusal of 900 KB was shown as a whole, with its control characters.
#[test]
fn what_a_registry_says_is_cut_and_escaped() {
    let message = "\x1b[2J".repeat(225_000);
    let registry =
        liar(move |_| RegistryReply::Error { message: message.clone(), retry_after_ms: None });
    let error = list(registry, 100).unwrap_err();
    assert!(matches!(error, RegistryCallError::Declined { .. }), "{error}");
    let shown = error.to_string();
    assert!(shown.len() < 2 * limits::REASON_BYTES_MAX && !shown.contains('\x1b'), "{shown}");
}

/// Once a peer said nothing for 25 seconds about a registry that refused its JOIN, or asked it 770
/// times a second.
#[test]
fn a_join_that_makes_no_sense_or_is_put_off_for_ever_is_told_at_once_and_asked_rarely() {
    let first_notice = |answer: RegistryReply| {
        let (asked, joins) = std::sync::mpsc::channel();
        let registry = liar(move |_| {
            // The receiver may be gone.
            let _ = asked.send(Instant::now());
            answer.clone()
        });
        let (member, told) = member_of(&[registry], PATIENCE);
        (told.recv_timeout(PATIENCE).unwrap(), joins, member, told)
    };
    for answer in [RegistryReply::NotJoined, RegistryReply::LeaveOk] {
        let (notice, joins, ..) = first_notice(answer);
        assert!(
            matches!(notice, MembershipNotice::Lost(RegistryCallError::Wrong { .. })),
            "{notice:?}"
        );
        assert_eq!(joins.try_iter().count(), 1, "told after the first answer");
    }
    let message = "no room".to_owned();
    let (notice, joins, _member, told) =
        first_notice(RegistryReply::Error { message, retry_after_ms: Some(0) });
    assert!(
        matches!(notice, MembershipNotice::Lost(RegistryCallError::Declined { .. })),
        "{notice:?}"
    );
    let times: Vec<Instant> = joins.iter().take(5).collect();
    // At least half of each of four waits that double, however soon it may come again.
    let least = limits::REGISTRY_RETRY_MIN * (1 + 2 + 4 + 8) / 2;
    assert!(times[4] - times[0] >= least, "{:?}", times[4] - times[0]);
    assert!(told.try_recv().is_err(), "the same is told once");
}

/// The answers of a registry that accepts every JOIN, and knows the peer afterwards only if
/// `keeps`.
fn forgetful(request: &RegistryRequest, keeps: bool) -> RegistryReply {
    match request {
        RegistryRequest::Join { .. } => RegistryReply::JoinOk,
        _ if !keeps => RegistryReply::NotJoined,
        RegistryRequest::Update { .. } => RegistryReply::UpdateOk,
        _ => RegistryReply::AliveOk,
    }
}

/// Once "joined" was printed every five seconds, and the whole list of files sent as often.
#[test]
fn a_registry_that_takes_in_and_does_not_keep_is_told_of_once_and_joined_ever_later() {
    let (joins, keeps) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, kept) = (Arc::clone(&joins), Arc::clone(&keeps));
    let registry = liar(move |request| {
        let is_join = matches!(request, RegistryRequest::Join { .. });
        counted.fetch_add(usize::from(is_join), Ordering::Relaxed);
        forgetful(&request, kept.load(Ordering::Relaxed))
    });
    // Longer than any busy machine needs from a JOIN to the next request.
    let (member, told) = member_of(&[registry], Duration::from_secs(3));
    let joined = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(joined, MembershipNotice::Joined { again: false, .. }), "{joined:?}");
    let began = Instant::now();
    eventually("it has joined four times", || {
        // Asking does not make it join any sooner.
        let _ = member.ask(RegistryRequest::KeepAlive);
        (joins.load(Ordering::Relaxed) >= 4).then_some(())
    });
    // At least half of each of three waits that double.
    let least = limits::REJOIN_BACKOFF_MIN * (1 + 2 + 4) / 2;
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    assert_eq!(
        told.try_iter().collect::<Vec<_>>(),
        [MembershipNotice::Lost(RegistryCallError::Forgotten(registry))]
    );

    keeps.store(true, Ordering::Relaxed);
    let joined = eventually("it is known to be kept", || {
        let _ = member.ask(RegistryRequest::KeepAlive);
        told.try_recv().ok()
    });
    assert!(matches!(joined, MembershipNotice::Joined { again: true, .. }), "{joined:?}");
}

/// The same with a registry that closes the connection each time.
#[test]
fn a_registry_that_takes_in_and_refuses_is_told_of_once() {
    let joins = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&joins);
    let registry = scripted(move |id, request| match request {
        RegistryRequest::Join { .. } => {
            counted.fetch_add(1, Ordering::Relaxed);
            Some(Message::RegistryReply { id, body: RegistryReply::JoinOk })
        }
        _ => Some(Message::Refused { reason: "not \x1b[2Jtoday".to_owned() }),
    });
    let (member, told) = member_of(&[registry], PATIENCE);
    eventually("it has joined five times", || {
        let _ = member.ask(RegistryRequest::KeepAlive);
        (joins.load(Ordering::Relaxed) >= 5).then_some(())
    });
    let told: Vec<MembershipNotice> = told.try_iter().collect();
    let joined =
        told.iter().filter(|notice| matches!(notice, MembershipNotice::Joined { .. })).count();
    let refused = |notice: &&MembershipNotice| {
        matches!(notice, MembershipNotice::Lost(RegistryCallError::Refused { .. }))
    };
    assert!(joined <= 2 && told.iter().filter(refused).count() == told.len() - joined, "{told:?}");
    assert!(told.len() <= 4, "{told:?}");

    // Once it was reported as "cannot be reached".
    let mut line = RegistryClient::open(registry, Instant::now() + PATIENCE).unwrap();
    let error = line.ask(&RegistryRequest::KeepAlive, Instant::now() + PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), format!("{registry} refuses: not \\x1b[2Jtoday"));
    // The same for a registry that greets with a refusal, here because a request came first.
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = refusing.local_addr().unwrap();
    let refuse = std::thread::spawn(move || {
        let mut raw = Raw { stream: refusing.accept().unwrap().0, next_id: 0 };
        raw.send(&Message::Refused { reason: "full".to_owned() });
        raw.receive();
    });
    let error = RegistryClient::open(address, Instant::now() + PATIENCE).map(drop).unwrap_err();
    assert_eq!(error, RegistryCallError::Refused { address, reason: "full".to_owned() });
    refuse.join().unwrap();
}

/// Once a registry that greets, and sends its answer byte by byte without an end or breaks off, was
/// reported as one that cannot be reached.
#[test]
fn a_registry_that_was_reached_and_gives_no_whole_answer_is_told_as_that() {
    let dribbling = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = dribbling.local_addr().unwrap();
    let dribble = std::thread::spawn(move || {
        for is_slow in [true, false] {
            let mut raw = Raw { stream: dribbling.accept().unwrap().0, next_id: 0 };
            raw.receive();
            raw.send(&greeting::welcome(None));
            raw.receive();
            // The length of an answer, and then its bytes, one by one.
            raw.stream.write_all(&[0, 0, 0x10, 0]).unwrap();
            // Between two bytes it waits for the other side to give it up.
            raw.stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            while is_slow && raw.stream.write_all(b"x").is_ok() {
                if matches!(raw.stream.read(&mut [0; 64]), Ok(0)) {
                    break;
                }
            }
        }
    });
    let said = |patience| {
        let mut line = RegistryClient::open(address, Instant::now() + PATIENCE).unwrap();
        let asked = line.ask(&RegistryRequest::KeepAlive, Instant::now() + patience);
        asked.map(drop).unwrap_err().to_string()
    };
    let reached = format!("registry {address} was reached, but does not answer: ");
    let short = Duration::from_millis(200);
    assert_eq!(said(short), format!("{reached}no whole answer came in time"));
    assert_eq!(said(PATIENCE), format!("{reached}it closed the connection"));
    dribble.join().unwrap();
    // One that does not even greet.
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = frozen.local_addr().unwrap();
    let error = RegistryClient::open(address, Instant::now() + short).map(drop).unwrap_err();
    let reason = "no whole answer came in time".to_owned();
    assert_eq!(error, RegistryCallError::Unanswered { address, reason });
}

/// Once a registry that hung was waited for, for seconds, while another could have answered.
#[test]
fn who_asks_several_registries_waits_for_none_that_hangs() {
    // One greets and sends nothing more, the other does not even greet.
    let silent = scripted(|_, _| None);
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let frozen = frozen.local_addr().map(|address| (frozen, address)).unwrap();
    let sources = |_| RegistryReply::Sources(vec![]);
    let good = liar(sources);
    let search = RegistryRequest::Search { name: name("a") };
    let deadline = Instant::now() + PATIENCE;
    let (line, reply) =
        RegistryClient::ask_any(&[silent, frozen.1, good], &search, deadline).unwrap();
    assert_eq!((line.address(), reply), (good, RegistryReply::Sources(vec![])));
    // The error of a registry that was reached is preferred to that of one that was not.
    let full = RegistryReply::Error { message: "full".to_owned(), retry_after_ms: None };
    let declining = liar(move |_| full.clone());
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let asked = RegistryClient::ask_any(&[declining, gone], &search, deadline).map(drop);
    assert!(matches!(asked, Err(RegistryCallError::Declined { .. })), "{asked:?}");
    assert_eq!(
        RegistryClient::ask_any(&[], &search, deadline).map(drop),
        Err(RegistryCallError::Nobody)
    );
}

/// Once a peer whose registry had frozen searched for 15 seconds, until it had joined at the other.
#[test]
fn a_peer_whose_registry_has_frozen_asks_the_other_one_at_once() {
    let freezing = scripted(|id, request| {
        let is_join = matches!(request, RegistryRequest::Join { .. });
        is_join.then_some(Message::RegistryReply { id, body: RegistryReply::JoinOk })
    });
    let joins = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&joins);
    let good = liar(move |request| match request {
        RegistryRequest::Join { .. } => {
            counted.fetch_add(1, Ordering::Relaxed);
            RegistryReply::JoinOk
        }
        _ => RegistryReply::Sources(vec![]),
    });
    let (member, told) = member_of(&[freezing, good], PATIENCE);
    let joined = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(joined, MembershipNotice::Joined { registry, .. } if registry == freezing));
    let reply = member.ask(RegistryRequest::Search { name: name("a") });
    assert_eq!(reply, Ok(RegistryReply::Sources(vec![])));
    assert_eq!(joins.load(Ordering::Relaxed), 0, "it had not to join for that");
}

/// Once a single liar that announced another size of a content kept the file from everybody.
#[test]
fn a_false_size_of_a_content_hides_no_honest_source() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, to) = (registry.folder("films"), registry.folder("to"));
    let film = noise(1_500_000, "film");
    write(&folder, "film.bin", &film);
    let _honest = registry.share(&folder, &[]);
    let content = ContentId(*blake3::hash(&film).as_bytes());
    let mut liars = Vec::new();
    let lies = [0, 1_500_001, film.len() as u64 + 7 * 1024 * 1024, limits::FILE_BYTES_MAX];
    for (peer, size) in (1..).zip(lies) {
        // No one serves there.
        let port = support::free_addresses(1)[0].port();
        let mut liar = Raw::greeted(&registry);
        let lie = FileEntry { name: name("film.bin"), size, content };
        assert_eq!(liar.join(peer, port, vec![lie]), RegistryReply::JoinOk);
        liars.push(liar);
    }
    let mut liar = Raw::greeted(&registry);
    let lie = FileEntry { name: name("film.bin"), size: limits::FILE_BYTES_MAX + 1, content };
    assert!(matches!(
        liar.join(9, 5001, vec![lie]),
        RegistryReply::Error { retry_after_ms: None, .. }
    ));
    for wanted in [vec![], vec!["--content", &*content.to_string()]] {
        let to = to.to_str().unwrap();
        let base = ["fetch", "film.bin", "--to", to, "--quiet", "--patience", "4s"];
        let ran = registry.run(&[&base[..], &wanted].concat());
        assert_eq!(ran.status, 0, "{}", ran.err);
        let path = std::path::Path::new(to).join("film.bin");
        assert!(std::fs::read(&path).unwrap() == film);
        std::fs::remove_file(path).unwrap();
        assert_eq!(std::fs::read_dir(to).unwrap().count(), 0, "no parts of lies are left");
    }
}

/// Once twenty sizes, each announced by two peers that were dead or silent, kept the file from
/// everybody.
#[test]
fn many_false_sizes_of_a_content_hide_no_honest_source() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, to) = (registry.folder("films"), registry.folder("to"));
    let film = noise(2_500_000, "film");
    write(&folder, "film.bin", &film);
    let own = support::free_addresses(1)[0].to_string();
    let _honest = registry.share(&folder, &["--listen", &own]);
    let content = ContentId(*blake3::hash(&film).as_bytes());
    let (mut liars, mut silents) = (Vec::new(), Vec::new());
    for lie in 1..=20_u64 {
        let ip = support::free_addresses(1)[0].ip();
        let silent = TcpListener::bind((ip, 0)).unwrap();
        let dead = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
        for (nth, address) in [silent.local_addr().unwrap(), dead].into_iter().enumerate() {
            let mut liar = Raw::greeted_from(ip, &registry);
            let size = film.len() as u64 + lie;
            let files = vec![FileEntry { name: name("film.bin"), size, content }];
            let mut join = join(2 * lie + nth as u64, 0, files);
            if let RegistryRequest::Join { address: told, .. } = &mut join {
                *told = address;
            }
            assert_eq!(liar.ask(join), RegistryReply::JoinOk);
            liars.push(liar);
        }
        // No one accepts connections there.
        silents.push(silent);
    }
    let mut fetch =
        FetchCommand { registry: &registry, name: "film.bin", to: &to, flags: &[] }.start();
    assert!(fetch.wait().success(), "{}", fetch.err());
    let path = to.join("film.bin");
    assert!(std::fs::read(&path).unwrap() == film);
    // A file that exists already needs no proof.
    let again = registry.run(&["fetch", "film.bin", "--to", to.to_str().unwrap()]);
    assert_eq!(again.status, 0, "{}", again.err);
    assert!(again.err.contains("was there already"), "{}", again.err);
    write(&to, "film.bin", b"another");
    let other = registry.run(&["fetch", "film.bin", "--to", to.to_str().unwrap()]);
    assert!(other.err.contains("exists and is not the file to fetch"), "{}", other.err);
}

/// Once four peers at one IP address counted more than three at three, and sent nothing.
#[test]
fn another_content_that_one_address_announces_takes_a_name_from_nobody() {
    let registry = Registry::start(&["--console", "off"]);
    let to = registry.folder("to");
    let film = noise(1_500_000, "film");
    let mut liars = Vec::new();
    for peer in 1..=4 {
        let mut liar = Raw::greeted(&registry);
        let port = support::free_addresses(1)[0].port();
        assert_eq!(liar.join(peer, port, vec![file("film.bin", 5)]), RegistryReply::JoinOk);
        liars.push(liar);
    }
    let (to_text, path) = (to.to_str().unwrap(), to.join("film.bin"));
    let fetch = ["fetch", "film.bin", "--to", to_text, "--patience", "1s"];
    let mut honest = Vec::new();
    for at in 1..=2 {
        let folder = registry.folder(&at.to_string());
        write(&folder, "film.bin", &film);
        let own = support::free_addresses(1)[0].to_string();
        honest.push(registry.share(&folder, &["--listen", &own]));
        let ran = registry.run(&fetch);
        assert_eq!(ran.status, 0, "{}", ran.err);
        assert!(ran.err.contains("2 files are called"), "{}", ran.err);
        assert!(std::fs::read(&path).unwrap() == film);
        // If equally many IP addresses have each content, that of most peers comes first, and the
        // other is tried after it.
        let line = format!("nobody gives {}; fetching the file of ", ContentId([5; 32]));
        assert_eq!(ran.err.contains(&line), at == 1, "{}", ran.err);
        std::fs::remove_file(&path).unwrap();
    }
    // With a content named, that content or none is fetched.
    let content = ContentId([5; 32]).to_string();
    let ran = registry.run(&[&fetch[..], &["--content", &content]].concat());
    assert_eq!((ran.status, path.exists()), (3, false), "{}", ran.err);
}

/// A peer that knows that its connection is dead need not wait until its registry finds out.
#[test]
fn who_knows_the_secret_of_a_peer_takes_its_place_at_once() {
    let registry = Registry::start(&["--console", "off"]);
    let (mut old, mut new) = (Raw::greeted(&registry), Raw::greeted(&registry));
    let joiner = |secret, port| Joiner { peer: 1, secret, port, files: vec![file("a", 1)] };
    assert_eq!(old.join_as(joiner(5, 5001)), RegistryReply::JoinOk);
    assert_eq!(new.join_as(joiner(6, 5002)), old_id_is_alive());
    assert_eq!(new.join_as(joiner(5, 5002)), RegistryReply::JoinOk);
    assert_eq!(new.search("a")[0].address, at(5002));
    assert_eq!(old.ask(RegistryRequest::KeepAlive), RegistryReply::NotJoined);
    drop(old);
    assert_eq!(new.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
    assert_eq!(new.search("a")[0].address, at(5002));
}

struct Offered;

impl OfferedFiles for Offered {
    fn files(&self) -> Vec<FileEntry> {
        vec![file("a", 1)]
    }
}

#[test]
fn an_id_whose_connection_has_frozen_is_free_after_its_silence() {
    let registry = Registry::start(&["--console", "off", "--silence-timeout", "1s"]);
    let (mut frozen, mut new) = (Raw::greeted(&registry), Raw::greeted(&registry));
    frozen.join(1, 5001, vec![file("a", 1)]);
    eventually("the id is free", || {
        (new.join(1, 5009, vec![file("a", 1)]) == RegistryReply::JoinOk).then_some(())
    });
    assert_eq!(new.search("a")[0].address, at(5009));
    assert_eq!(frozen.ask(RegistryRequest::KeepAlive), RegistryReply::NotJoined);
    drop(frozen);
    assert_eq!(new.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
}

/// Once a registry that was stopped took every peer for silent when it continued.
#[test]
fn a_registry_that_was_stopped_forgets_nobody() {
    let mut registry = Registry::start(&["--console", "off", "--silence-timeout", "4s"]);
    let mut peer = Raw::greeted(&registry);
    assert_eq!(peer.join(1, 5001, vec![file("a", 1)]), RegistryReply::JoinOk);
    // A peer that says nothing to a registry with a longer time-out: when that has forgotten it,
    // the one that is stopped would have, too.
    let other = Registry::start(&["--console", "off", "--silence-timeout", "5s"]);
    let (mut silent, mut asking) = (Raw::greeted(&other), Raw::greeted(&other));
    registry.process().signal(Signal::STOP);
    assert_eq!(silent.join(1, 5001, vec![file("a", 1)]), RegistryReply::JoinOk);
    eventually("longer than the silence time-out passes", || {
        asking.search("a").is_empty().then_some(())
    });
    registry.process().signal(Signal::CONT);
    // By the time a new connection has been greeted it has looked for silent peers.
    assert_eq!(Raw::greeted(&registry).who_has("a"), [1]);
    assert_eq!(peer.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
}

#[test]
fn what_a_stopped_peer_has_announced_comes_back_when_it_goes_on() {
    // A peer sends a KEEP_ALIVE every five seconds.
    let registry = Registry::start(&["--console", "off", "--silence-timeout", "6s"]);
    let folder = registry.folder("shared");
    write(&folder, "a", b"1");
    let peer = registry.share(&folder, &[]);
    let mut asking = Raw::greeted(&registry);
    eventually("it is offered", || (asking.search("a").len() == 1).then_some(()));
    peer.signal(Signal::STOP);
    eventually("it is forgotten", || asking.search("a").is_empty().then_some(()));
    peer.signal(Signal::CONT);
    eventually("it is offered again", || (asking.search("a").len() == 1).then_some(()));
}

#[test]
fn an_address_is_the_peers_own_or_has_answered() {
    let registry = Registry::start(&["--console", "off"]);
    let mut peer = Raw::greeted(&registry);
    let mut join = |ip: &str, port| {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        let files = vec![file("a", 1)];
        let (part, last) = (0, true);
        let reply = peer.ask(RegistryRequest::Join {
            peer: PeerId(1),
            address,
            files,
            part,
            last,
            secret: 1,
            shares: true,
        });
        let sources = peer.search("a");
        (reply, sources.into_iter().map(|source| source.address).collect::<Vec<_>>())
    };
    let refused = |(reply, sources): (RegistryReply, Vec<SocketAddr>)| {
        assert_eq!(sources, []);
        match reply {
            RegistryReply::Error { message, retry_after_ms: None } => message,
            reply => panic!("{reply:?}"),
        }
    };
    // Nothing is there, something that sends nothing, or something else.
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: [Option<Vec<u8>>; 3] = [
        None,
        Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Some(frame(&Message::Pong { nonce: 1 })),
    ];
    let closed = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap().port();
    let sentence = refused(join("127.0.0.2", closed)).replace(&closed.to_string(), "PORT");
    assert!(sentence.contains("comes from 127.0.0.1"), "{sentence}");
    for answer in answers {
        std::thread::scope(|scope| {
            let answering = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                if let Some(answer) = answer {
                    stream.write_all(&answer).unwrap();
                }
                // The registry has sent HELLO like anyone who dials a peer, and goes away.
                let mut asked = Vec::new();
                match stream.read_to_end(&mut asked) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
                }
                assert!(asked.is_empty() || asked == frame(&hello(HelloRole::Share)), "{asked:?}");
            });
            // The same sentence whatever is there, or a registry could be used to look for open
            // ports.
            let refusal = refused(join("127.0.0.2", port));
            assert_eq!(refusal.replace(&port.to_string(), "PORT"), sentence);
            answering.join().unwrap();
        });
    }
    // A peer's own server.
    let serving = Listener::bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let address = serving.address();
    let options = ServeOptions::default();
    let id = Arc::clone(&options.peer);
    id.store(2, Ordering::SeqCst);
    let _server = PeerServer::start(serving, options).unwrap();
    let another = refused(join("127.0.0.2", address.port()));
    assert!(another.contains("no peer answers at"), "it is another peer: {another}");
    id.store(1, Ordering::SeqCst);
    assert_eq!(join("127.0.0.2", address.port()), (RegistryReply::JoinOk, vec![address]));
    // Its own address, in any notation.
    let own = |port| vec![SocketAddr::from(([127, 0, 0, 1], port))];
    assert_eq!(join("::ffff:127.0.0.1", 5002), (RegistryReply::JoinOk, own(5002)));
    assert_eq!(join("::", 5003), (RegistryReply::JoinOk, own(5003)));
    // The number of attempts is limited, too.
    let busy = (0..limits::ADDRESS_CHECKS_PER_ORIGIN_MAX).find_map(|_| {
        match join("127.0.0.2", closed).0 {
            RegistryReply::Error { retry_after_ms, .. } => retry_after_ms.map(drop),
            reply => panic!("{reply:?}"),
        }
    });
    assert!(busy.is_some(), "it dials without end");
}

#[test]
fn a_registry_on_every_address_shows_ipv4_as_ipv4() {
    let port = support::free_addresses(1)[0].port();
    let mut registry = Registry::start(&[]);
    registry.kill();
    let listen = format!("[::]:{port}");
    let mut command = std::process::Command::new(support::ACERVO);
    command.args(["registry", "--listen", &listen]);
    registry.address = SocketAddr::from(([127, 0, 0, 1], port));
    let process = support::share::Process::start(command, registry.dir.path(), "everywhere");
    eventually("it listens", || TcpStream::connect(registry.address).ok());
    let mut peer = Raw::greeted(&registry);
    let address = SocketAddr::from(([0, 0, 0, 0], 5001));
    let files = vec![file("a", 1)];
    let (part, last) = (0, true);
    peer.ask(RegistryRequest::Join {
        peer: PeerId(1),
        address,
        files,
        part,
        last,
        secret: 1,
        shares: true,
    });
    assert_eq!(peer.search("a")[0].address, at(5001));
    assert_eq!(Raw::greeted(&registry).search("b"), []);
    let lines = eventually("the lines", || {
        let out = process.out();
        (out.lines().count() == 3 && out.ends_with('\n')).then_some(out)
    });
    assert!(lines.starts_with("Peer 127.0.0.1:5001 adicionado com arquivos a.\n"), "{lines}");
    assert!(!lines.contains("ffff"), "{lines}");
}

#[test]
fn who_fetches_is_a_source_of_the_content_and_of_no_name() {
    let registry = Registry::start(&["--console", "off"]);
    let (mut whole, mut part) = (Raw::greeted(&registry), Raw::greeted(&registry));
    whole.join(2, 5002, vec![file("a", 1), file("same under another name", 1)]);
    part.join(1, 5001, vec![]);
    let content = ContentId([1; 32]);
    let fetching = RegistryRequest::Fetching { content, size: 1 };
    assert_eq!(part.ask(fetching), RegistryReply::UpdateOk);
    let sources = |raw: &mut Raw| match raw.ask(RegistryRequest::SearchContent { content }) {
        RegistryReply::Sources(sources) => {
            sources.into_iter().map(|source| source.peer.0).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(sources(&mut whole), [2, 1], "those who have it whole come first");
    assert_eq!(whole.who_has("a"), [2]);
    assert_eq!(part.ask(RegistryRequest::Fetched { content }), RegistryReply::UpdateOk);
    assert_eq!(sources(&mut whole), [2]);
}

#[test]
fn an_address_of_zeros_is_where_the_peer_comes_from() {
    let registry = Registry::start(&["--console", "off"]);
    let mut peer = Raw::greeted(&registry);
    let anywhere = SocketAddr::from(([0, 0, 0, 0], 5001));
    let files = vec![file("a", 1)];
    let join = |address| RegistryRequest::Join {
        peer: PeerId(1),
        address,
        files: files.clone(),
        part: 0,
        last: true,
        secret: 1,
        shares: true,
    };
    assert_eq!(peer.ask(join(anywhere)), RegistryReply::JoinOk);
    let expected = SocketAddr::new(peer.address().ip(), 5001);
    assert_eq!(peer.search("a")[0].address, expected);
    let reply = peer.ask(join(SocketAddr::from(([127, 0, 0, 1], 0))));
    assert!(matches!(reply, RegistryReply::Error { .. }), "{reply:?}");
}

#[test]
fn many_requests_at_once_are_answered_in_order() {
    let registry = Registry::start(&["--console", "off"]);
    let mut peer = Raw::greeted(&registry);
    let mut bytes = frame(&Message::Registry { id: 0, body: join(1, 5001, vec![]) });
    for id in 1..2000 {
        let body = match id % 2 {
            1 => RegistryRequest::Update { added: vec![file("a", id as u8)], removed: vec![] },
            _ => RegistryRequest::Search { name: name("a") },
        };
        bytes.extend(frame(&Message::Registry { id, body }));
    }
    let mut writing = peer.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || writing.write_all(&bytes).unwrap());
    for expected in 0..2000 {
        let Some(Message::RegistryReply { id, body }) = peer.receive() else { panic!("no reply") };
        assert_eq!(id, expected);
        if let RegistryReply::Sources(sources) = body {
            assert_eq!(sources[0].content, ContentId([(id - 1) as u8; 32]), "after its UPDATE");
        }
    }
    writer.join().unwrap();
}

/// A frame with a name that no [`FileName`] can be, made from one with a name of the same length.
fn with_name(name: &[u8], message: impl Fn(FileName) -> Message) -> Vec<u8> {
    let stand_in = "N".repeat(name.len());
    let mut bytes = frame(&message(FileName::new(&stand_in).unwrap()));
    let place = bytes.windows(name.len()).position(|w| w == stand_in.as_bytes()).unwrap();
    bytes[place..place + name.len()].copy_from_slice(name);
    bytes
}

#[test]
fn names_that_attack_are_refused_at_the_door() {
    let registry = Registry::start(&[]);
    let mut witness = Raw::greeted(&registry);
    witness.join(9, 5009, vec![file("good", 1)]);
    let join_with = |name| {
        let files = vec![FileEntry { name, size: 1, content: ContentId([1; 32]) }];
        Message::Registry { id: 1, body: join(1, 5001, files) }
    };
    let search_for = |name| Message::Registry { id: 1, body: RegistryRequest::Search { name } };
    let update_with = |name| Message::Registry {
        id: 1,
        body: RegistryRequest::Update { added: vec![], removed: vec![name] },
    };
    let attacks: [&[u8]; 13] = [
        b"../x",
        b"..",
        b".",
        b"/etc/passwd",
        b"C:\\x",
        b"a\\b",
        b"a/b",
        b"a\0b",
        b"a\nb",
        b"\x1b[2Jx",
        b"\xff\xfe",
        b"film.PART",
        b"a\x7fb",
    ];
    for attack in attacks {
        for bytes in [
            with_name(attack, join_with),
            with_name(attack, search_for),
            with_name(attack, update_with),
        ] {
            let mut raw = Raw::greeted(&registry);
            raw.stream.write_all(&bytes).unwrap();
            let reason = raw.refusal();
            assert!(!reason.chars().any(char::is_control), "{reason:?}");
        }
        assert_eq!(witness.who_has("good"), [9]);
    }
    let long = |length: usize| "n".repeat(length);
    let longest = long(limits::FILE_NAME_BYTES_MAX);
    let mut raw = Raw::greeted(&registry);
    assert_eq!(raw.join(1, 5001, vec![file(&longest, 1)]), RegistryReply::JoinOk);
    assert_eq!(witness.who_has(&longest), [1]);
    // One byte more. The length byte of the encoding has to change, so the frame is built anew.
    let mut bytes = frame(&search_for(name(&longest)));
    let place = bytes.windows(3).position(|w| w == [0xd9, 0xff, b'n']).unwrap();
    bytes.splice(place..place + 2, [0xda, 1, 0]);
    bytes.push(b'n');
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    raw.stream.write_all(&bytes).unwrap();
    assert!(raw.refusal().contains("at most 255 bytes, not 256"));
    assert!(registry.console().iter().all(|line| !line.chars().any(char::is_control)));
}

#[test]
fn whoever_breaks_the_protocol_loses_the_connection_and_nobody_else() {
    let registry = Registry::start(&["--console", "off"]);
    let mut witness = Raw::greeted(&registry);
    witness.join(9, 5009, vec![file("good", 1)]);
    let first_words: [(Vec<u8>, &str); 6] = [
        (frame(&Message::Ping { nonce: 1 }), "begins with HELLO"),
        (frame(&hello(HelloRole::CLIENT)), "not a store: ask an acervo server"),
        (
            frame(&hello(HelloRole::Server {
                cluster: ClusterId(1),
                node: NodeId(1),
                incarnation: 1,
                channel: Channel::Control,
            })),
            "not a store: ask an acervo server",
        ),
        (
            frame(&Message::Hello(Hello {
                protocol: PROTOCOL_VERSION + 1,
                role: HelloRole::Share,
            })),
            "protocol version",
        ),
        (vec![0, 0, 0, 0], "empty"),
        (vec![0, 0, 0, 1, 0xc1], "does not hold a message"),
    ];
    for (bytes, expected) in first_words {
        let mut raw = Raw::dial(&registry);
        raw.stream.write_all(&bytes).unwrap();
        let reason = raw.refusal();
        assert!(reason.contains(expected), "{reason}");
    }
    let later: [Vec<u8>; 4] = [
        frame(&hello(HelloRole::Share)),
        frame(&Message::RegistryReply { id: 1, body: RegistryReply::JoinOk }),
        (limits::REGISTRY_FRAME_BYTES_MAX as u32 + 1).to_be_bytes().to_vec(),
        vec![0, 0, 0, 3, 0xdd, 0xff, 0xff],
    ];
    for bytes in later {
        let mut raw = Raw::greeted(&registry);
        raw.stream.write_all(&bytes).unwrap();
        assert!(!raw.refusal().is_empty());
    }
    let mut stranger = Raw::greeted(&registry);
    for request in [RegistryRequest::KeepAlive, RegistryRequest::Leave] {
        assert_eq!(stranger.ask(request), RegistryReply::NotJoined);
    }
    stranger.send(&Message::Ping { nonce: 77 });
    assert_eq!(stranger.receive(), Some(Message::Pong { nonce: 77 }));
    assert_eq!(witness.who_has("good"), [9]);
}

#[test]
fn peers_come_back_by_themselves_when_the_registry_does() {
    let mut registry = Registry::start(&[]);
    let folder = registry.folder("films");
    write(&folder, "film.mkv", &noise(100_000, "film"));
    let peer = registry.share(&folder, &[]);
    let before = Raw::greeted(&registry).search("film.mkv");
    assert_eq!(before.len(), 1);
    for _ in 0..2 {
        registry.kill();
        eventually("the peer notices", || peer.err().contains("trying again").then_some(()));
        // Changes while the registry is away are not lost.
        write(&folder, "new.txt", b"new");
        registry.restart();
        let sources = eventually("the peer is back", || {
            let sources = Raw::greeted(&registry).search("film.mkv");
            (!sources.is_empty()).then_some(sources)
        });
        assert_eq!(sources, before, "the same peer at the same address");
    }
    eventually("the new file is offered", || {
        (!Raw::greeted(&registry).search("new.txt").is_empty()).then_some(())
    });
    // A peer that is stopped sends LEAVE.
    let mut peer = peer;
    peer.signal(Signal::TERM);
    assert!(exited_with(peer.wait(), 0));
    assert_eq!(Raw::greeted(&registry).search("film.mkv"), []);
    registry.process().signal(Signal::TERM);
    assert!(exited_with(registry.process().wait(), 0));
}

#[test]
fn a_peer_that_was_killed_is_not_offered_for_long() {
    let registry = Registry::start(&["--console", "off"]);
    let folder = registry.folder("films");
    write(&folder, "film.mkv", b"film");
    let peer = registry.share(&folder, &[]);
    let mut asker = Raw::greeted(&registry);
    assert_eq!(asker.search("film.mkv").len(), 1);
    // Killed, not stopped.
    drop(peer);
    eventually("it is forgotten", || asker.search("film.mkv").is_empty().then_some(()));
}

#[test]
fn a_connection_that_says_nothing_is_not_kept() {
    let registry = Registry::start(&["--console", "off"]);
    let mut raw = Raw::dial(&registry);
    let reason = raw.refusal();
    assert!(reason.contains(&format!("within {} seconds", limits::HANDSHAKE_TIMEOUT.as_secs())));
}

#[test]
fn a_closed_terminal_stops_a_registry_and_a_peer_cleanly_unless_they_were_told_to_ignore_it() {
    if support::hangups_are_ignored() {
        return;
    }
    let mut registry = Registry::start(&[]);
    let folder = registry.folder("films");
    write(&folder, "film.mkv", b"film");
    let mut peer = registry.share(&folder, &[]);
    peer.signal(Signal::HUP);
    assert!(exited_with(peer.wait(), 0));
    assert_eq!(Raw::greeted(&registry).search("film.mkv"), [], "it has left");
    registry.process().signal(Signal::HUP);
    assert!(exited_with(registry.process().wait(), 0));

    let mut command = std::process::Command::new("nohup");
    command.args([support::ACERVO, "registry", "--listen", &registry.address()]);
    let mut process = support::share::Process::start(command, registry.dir.path(), "nohup");
    eventually("it listens", || TcpStream::connect(registry.address).ok());
    process.signal(Signal::HUP);
    // It continues, and ends when it is told to.
    assert_eq!(Raw::greeted(&registry).search("film.mkv"), []);
    process.signal(Signal::TERM);
    assert!(exited_with(process.wait(), 0));
}

/// Once unfinished JOINs took all memory for them: an honest peer with many files could never join,
/// and several that tried to complete theirs blocked each other.
#[test]
fn joins_that_are_never_finished_make_room() {
    let registry = Registry::start(&["--console", "off"]);
    let names: Vec<FileName> =
        (0..1024).map(|n| name(&format!("{n:04}{}", "x".repeat(240)))).collect();
    let files = |peer: u64| -> Vec<FileEntry> {
        let content = ContentId([peer as u8; 32]);
        names.iter().map(|name| FileEntry { name: name.clone(), size: 1, content }).collect()
    };
    let part = |raw: &mut Raw, peer: u64, part: u32, last: bool| {
        raw.ask(RegistryRequest::Join {
            peer: PeerId(peer),
            address: at(5000),
            files: files(peer),
            part,
            last,
            secret: peer,
            shares: true,
        })
    };
    // Until the first is told to come later: all are of one IP address, and the youngest gives way
    // to no one.
    let mut started: Vec<Raw> = Vec::new();
    let mut sent = 0;
    'full: for peer in 1..200u64 {
        started.push(Raw::greeted(&registry));
        let raw = started.last_mut().unwrap();
        for number in 0..60 {
            match part(raw, peer, number, false) {
                RegistryReply::JoinOk => sent += 1,
                RegistryReply::Error { retry_after_ms, .. } => {
                    assert!(retry_after_ms.is_some());
                    break 'full;
                }
                reply => panic!("{reply:?}"),
            }
        }
    }
    assert!(sent > 60, "{sent} parts");
    // The oldest goes on to its end.
    let oldest = &mut started[0];
    assert_eq!(part(oldest, 1, 60, true), RegistryReply::JoinOk);
    assert_eq!(oldest.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
}

#[test]
fn an_address_that_joins_again_and_again_makes_room_for_others() {
    let registry = Registry::start(&["--console", "off", "--peers-max", "4"]);
    let from_elsewhere = |peer: u64| {
        let stream = raw::Raw::dial_from(Ipv4Addr::new(127, 0, 0, 2), registry.address).stream;
        let mut raw = Raw { stream, next_id: 0 };
        raw.send(&hello(HelloRole::Share));
        assert!(matches!(raw.receive(), Some(Message::ShareWelcome { .. })));
        let reply = raw.ask(RegistryRequest::Join {
            peer: PeerId(peer),
            address: raw.address(),
            files: vec![],
            part: 0,
            last: true,
            secret: peer,
            shares: false,
        });
        (raw, reply)
    };
    let mut many: Vec<Raw> = (1..=4)
        .map(|peer| {
            let (raw, reply) = from_elsewhere(peer);
            assert_eq!(reply, RegistryReply::JoinOk);
            raw
        })
        .collect();
    let (mut more, reply) = from_elsewhere(5);
    assert!(matches!(reply, RegistryReply::Error { .. }), "not for more of its own: {reply:?}");
    // It may still ask, and others may join.
    assert_eq!(more.search("film.bin"), []);
    let mut other = Raw::greeted(&registry);
    assert_eq!(other.join(10, 5000, vec![]), RegistryReply::JoinOk);
    assert!(many.remove(0).receive().is_none(), "the one that was silent for longest");
    assert!(
        many.iter_mut().all(|raw| raw.ask(RegistryRequest::KeepAlive) == RegistryReply::AliveOk)
    );
    assert_eq!(other.ask(RegistryRequest::KeepAlive), RegistryReply::AliveOk);
}

/// Once as many addresses as a registry dials at once, none of which answered, kept every other
/// JOIN waiting for their time-outs.
#[test]
fn addresses_that_never_answer_make_room_for_one_that_does() {
    let registry = Registry::start(&["--console", "off"]);
    // It accepts connections and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let join_at = |ip: Ipv4Addr, peer: u64, address: SocketAddr| {
        let stream = raw::Raw::dial_from(ip, registry.address).stream;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Raw { stream, next_id: 0 };
        raw.send(&hello(HelloRole::Share));
        assert!(matches!(raw.receive(), Some(Message::ShareWelcome { .. })));
        let body = RegistryRequest::Join {
            peer: PeerId(peer),
            address,
            files: vec![],
            part: 0,
            last: true,
            secret: peer,
            shares: true,
        };
        raw.send(&Message::Registry { id: 1, body });
        raw
    };
    let reply = |raw: &mut Raw| match raw.receive() {
        Some(Message::RegistryReply { body, .. }) => body,
        other => panic!("{other:?}"),
    };
    let address = silent.local_addr().unwrap();
    let mut waiting: Vec<Raw> = (0..limits::ADDRESS_CHECKS_MAX as u64)
        .map(|at| join_at(Ipv4Addr::new(127, 3, 0, at as u8 + 1), at + 10, address))
        .collect();
    let serving = Listener::bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let good = serving.address();
    let options = ServeOptions::default();
    options.peer.store(2, Ordering::SeqCst);
    let _server = PeerServer::start(serving, options).unwrap();
    eventually("an address that answers is checked", || {
        let reply = reply(&mut join_at(Ipv4Addr::new(127, 3, 1, 1), 2, good));
        (reply == RegistryReply::JoinOk).then_some(())
    });
    let given_up = waiting.iter_mut().any(|raw| {
        let reply = reply(raw);
        matches!(reply, RegistryReply::Error { retry_after_ms: Some(_), .. })
    });
    assert!(given_up, "not only when their time was over");
}
