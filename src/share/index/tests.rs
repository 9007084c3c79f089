//! The index against a model of lists, and its limits.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::share::seeds::{Replay, random_seed};

fn name(number: u8) -> FileName {
    FileName::new(&format!("file-{number}.bin")).unwrap()
}

fn content(number: u8) -> ContentId {
    ContentId([number; 32])
}

fn address(number: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1000 + number as u16))
}

fn entry((of, what): (u8, u8)) -> FileEntry {
    // The size follows from the content.
    FileEntry { name: name(of), size: u64::from(what) * 10, content: content(what) }
}

/// Peers of even and of odd numbers come from two IP addresses.
fn place(number: u64) -> PeerEndpoint {
    let origin = IpAddr::from([10, 0, 0, number as u8 % 2]);
    PeerEndpoint { address: address(number), origin, key: 0 }
}

const FILE_BYTES: usize = limits::INDEX_FILE_BYTES + "file-0.bin".len();

const SMALL: IndexLimits = IndexLimits {
    peers_max: 3,
    files_per_peer_max: 5,
    files_max: 9,
    bytes_max: 8 * FILE_BYTES,
    bytes_per_origin_max: 8 * FILE_BYTES,
    peers_per_origin_max: 2,
    files_per_origin_max: 7,
    fetching_per_peer_max: 2,
};

#[derive(Clone, Debug)]
enum IndexStep {
    Join(Member, Vec<(u8, u8)>),
    Update(Member, Vec<(u8, u8)>, Vec<u8>),
    Fetching(Member, u8),
    Fetched(Member, u8),
    Heartbeat(Member),
    Leave(Member),
    Pass(u64),
    Expire,
}

fn step() -> impl Strategy<Value = IndexStep> {
    let files = || prop::collection::vec((0..5u8, 0..3u8), 0..7);
    let member =
        || (0..5u64, 0..2u64).prop_map(|(peer, session)| Member { peer: PeerId(peer), session });
    prop_oneof![
        3 => (member(), files()).prop_map(|(peer, files)| IndexStep::Join(peer, files)),
        3 => (member(), files(), prop::collection::vec(0..5u8, 0..3))
            .prop_map(|(peer, added, removed)| IndexStep::Update(peer, added, removed)),
        2 => (member(), 0..4u8).prop_map(|(peer, what)| IndexStep::Fetching(peer, what)),
        1 => (member(), 0..4u8).prop_map(|(peer, what)| IndexStep::Fetched(peer, what)),
        1 => member().prop_map(IndexStep::Heartbeat),
        1 => member().prop_map(IndexStep::Leave),
        1 => (0..40u64).prop_map(IndexStep::Pass),
        1 => Just(IndexStep::Expire),
    ]
}

/// A model of the index: lists that are searched from end to end.
#[derive(Default)]
struct Model {
    peers: BTreeMap<u64, ModelPeer>,
}

#[derive(Clone, Default)]
struct ModelPeer {
    session: u64,
    last_seen: u64,
    files: BTreeMap<u8, u8>,
    fetching: Vec<u8>,
}

impl Model {
    /// Whether a peer may have these files in place of its own. `raw` counts a name that is given
    /// twice as two, as the index does.
    fn fits(&self, peer: u64, kept: usize, raw: usize) -> bool {
        let others: usize =
            self.peers.iter().filter(|(id, _)| **id != peer).map(|(_, p)| p.files.len()).sum();
        let all = others + kept + raw;
        let alike: Vec<_> =
            self.peers.iter().filter(|(id, _)| **id != peer && **id % 2 == peer % 2).collect();
        let alike_files: usize = alike.iter().map(|(_, p)| p.files.len()).sum();
        alike.len() < SMALL.peers_per_origin_max
            && alike_files + kept + raw <= SMALL.files_per_origin_max
            && kept + raw <= SMALL.files_per_peer_max
            && all <= SMALL.files_max
            && all * FILE_BYTES <= SMALL.bytes_max
    }

    fn member(&mut self, member: Member) -> Option<&mut ModelPeer> {
        self.peers.get_mut(&member.peer.0).filter(|peer| peer.session == member.session)
    }

    fn apply(&mut self, step: &IndexStep, now: u64) -> bool {
        match step {
            IndexStep::Join(member, files) => {
                let Member { peer, session } = member;
                let room = self.peers.contains_key(&peer.0) || self.peers.len() < SMALL.peers_max;
                if !room || !self.fits(peer.0, 0, files.len()) {
                    return false;
                }
                let known = self.peers.entry(peer.0).or_default();
                known.session = *session;
                known.last_seen = now;
                known.files = files.iter().copied().collect();
            }
            IndexStep::Update(member, added, removed) => {
                let Some(known) = self.member(*member) else { return true };
                let mut files = known.files.clone();
                files.retain(|name, _| {
                    !removed.contains(name) && !added.iter().any(|(new, _)| new == name)
                });
                if !self.fits(member.peer.0, files.len(), added.len()) {
                    return false;
                }
                files.extend(added.iter().copied());
                let known = self.member(*member).unwrap();
                known.files = files;
                known.last_seen = now;
            }
            IndexStep::Fetching(member, what) => {
                let Some(known) = self.member(*member) else { return true };
                if !known.fetching.contains(what) {
                    if known.fetching.len() >= SMALL.fetching_per_peer_max {
                        return false;
                    }
                    known.fetching.push(*what);
                }
                known.last_seen = now;
            }
            IndexStep::Fetched(member, what) => {
                let Some(known) = self.member(*member) else { return true };
                known.fetching.retain(|fetching| fetching != what);
                known.last_seen = now;
            }
            IndexStep::Heartbeat(member) => {
                if let Some(known) = self.member(*member) {
                    known.last_seen = now;
                }
            }
            IndexStep::Leave(member) => {
                if self.member(*member).is_some() {
                    self.peers.remove(&member.peer.0);
                }
            }
            IndexStep::Pass(_) => {}
            IndexStep::Expire => self.peers.retain(|_, peer| now - peer.last_seen <= 30),
        }
        true
    }

    fn search(&self, name: u8) -> Vec<(u64, u8)> {
        let mut found: Vec<(u64, u8)> =
            self.peers.iter().filter_map(|(id, p)| Some((*id, *p.files.get(&name)?))).collect();
        let all = found.clone();
        let offers = |what: u8| all.iter().filter(|(_, other)| *other == what).count();
        found.sort_by_key(|(peer, what)| (std::cmp::Reverse(offers(*what)), *what, *peer));
        found
    }

    fn sources_of(&self, what: u8) -> Vec<u64> {
        let whole = |p: &ModelPeer| p.files.values().any(|has| *has == what);
        let have = self.peers.iter().filter(|(_, p)| whole(p));
        let fetch = self.peers.iter().filter(|(_, p)| !whole(p) && p.fetching.contains(&what));
        have.chain(fetch).map(|(id, _)| *id).collect()
    }
}

fn apply(index: &mut Index, step: &IndexStep, at: u64) -> bool {
    let now = Duration::from_secs(at);
    let entries = |files: &[(u8, u8)]| files.iter().copied().map(entry).collect::<Vec<_>>();
    let names = |names: &[u8]| names.iter().copied().map(name).collect::<Vec<_>>();
    match step {
        IndexStep::Join(member, files) => {
            index.join(*member, place(member.peer.0), entries(files), now).is_ok()
        }
        IndexStep::Update(member, added, removed) => {
            index.update(*member, entries(added), &names(removed), now).is_ok()
        }
        IndexStep::Fetching(member, what) => {
            index.fetching(*member, content(*what), u64::from(*what) * 10, now).is_ok()
        }
        IndexStep::Fetched(member, what) => {
            index.fetched(*member, content(*what), now);
            true
        }
        IndexStep::Heartbeat(member) => {
            index.heartbeat(*member, now);
            true
        }
        IndexStep::Leave(member) => {
            index.leave(*member);
            true
        }
        IndexStep::Pass(_) => true,
        IndexStep::Expire => {
            index.expire(now, Duration::from_secs(30));
            true
        }
    }
}

fn compare(index: &Index, model: &Model, now: u64) -> Result<(), TestCaseError> {
    let (peers, more) = index.peers(None, Duration::from_secs(now));
    prop_assert!(!more);
    let expected: Vec<PeerSummary> = model
        .peers
        .iter()
        .map(|(id, peer)| PeerSummary {
            peer: PeerId(*id),
            address: address(*id),
            files: peer.files.len() as u64,
            bytes: peer.files.values().map(|what| u64::from(*what) * 10).sum(),
            silent_ms: (now - peer.last_seen) * 1000,
        })
        .collect();
    prop_assert_eq!(peers, expected);
    let mut rows = Vec::new();
    for of in 0..5 {
        let found: Vec<(u64, u8)> = index
            .search(&name(of), 1)
            .into_iter()
            .map(|source| (source.peer.0, source.content.0[0]))
            .collect();
        let expected = model.search(of);
        prop_assert_eq!(&found, &expected, "search for {}", of);
        for (_, what) in expected {
            let row = (name(of), content(what));
            match rows.last_mut() {
                Some((last, count)) if *last == row => *count += 1,
                _ => rows.push((row, 1)),
            }
        }
    }
    let (files, more) = index.files(None);
    let listed: Vec<_> =
        files.into_iter().map(|row| ((row.file.name, row.file.content), row.peers)).collect();
    prop_assert_eq!(listed, rows);
    prop_assert!(!more);
    for what in 0..4 {
        let sources = index.sources_of(content(what), 1);
        let found: Vec<u64> = sources.iter().map(|source| source.peer.0).collect();
        prop_assert_eq!(found, model.sources_of(what), "content {}", what);
        prop_assert!(sources.iter().all(|source| source.size == u64::from(what) * 10));
    }
    let count: usize = model.peers.values().map(|peer| peer.files.len()).sum();
    prop_assert_eq!(index.file_count(), count);
    prop_assert_eq!(index.memory_bytes, count * FILE_BYTES);
    Ok(())
}

#[test]
fn the_index_answers_as_lists_that_are_walked_through_would() {
    let seed = random_seed();
    let _replay = Replay(seed);
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(
        Config { failure_persistence: None, ..Config::default() },
        TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes),
    );
    let result = runner.run(&prop::collection::vec(step(), 0..60), |steps| {
        let (mut index, mut model, mut now) = (Index::new(SMALL), Model::default(), 0);
        for step in &steps {
            if let IndexStep::Pass(seconds) = step {
                now += seconds;
            }
            let taken = apply(&mut index, step, now);
            prop_assert_eq!(taken, model.apply(step, now), "{:?}", step);
            compare(&index, &model, now)?;
        }
        // Nothing is left of those that are removed.
        index.expire(Duration::MAX, Duration::ZERO);
        prop_assert!(index.contents.is_empty() && index.names.is_empty());
        prop_assert_eq!(index.memory_bytes, 0);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn pages_go_through_everything_once() {
    let mut index = Index::new(IndexLimits::default());
    let peers = limits::LIST_ROWS_MAX as u64 + 7;
    for peer in 0..peers {
        let own = FileEntry { name: name_of(peer), size: 1, content: ContentId([1; 32]) };
        let shared = FileEntry { name: name(0), size: 2, content: content(peer as u8) };
        let member = Member { peer: PeerId(peer), session: 0 };
        index.join(member, place(peer), vec![own, shared], Duration::ZERO).unwrap();
    }
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let (page, more) = index.peers(after, Duration::ZERO);
        after = page.last().map(|peer| peer.peer);
        seen.extend(page.into_iter().map(|peer| peer.peer.0));
        if !more {
            break;
        }
    }
    assert_eq!(seen, (0..peers).collect::<Vec<_>>());

    let (mut after, mut names, mut pages) = (None, Vec::new(), 0);
    loop {
        let (page, more) = index.files(after.as_ref());
        pages += 1;
        after = page.last().map(|row| row.file.name.clone());
        names.extend(page.into_iter().map(|row| row.file.name));
        if !more {
            break;
        }
    }
    let of_many = names.iter().filter(|listed| **listed == name(0)).count();
    assert_eq!(of_many, limits::CONTENTS_PER_NAME_LISTED_MAX);
    assert_eq!(names.len() - of_many, peers as usize);
    assert!(names.is_sorted() && pages > 1);
}

fn name_of(peer: u64) -> FileName {
    FileName::new(&format!("of-peer-{peer}")).unwrap()
}

/// Once four IP addresses with a quarter each filled the index and kept everyone else out.
#[test]
fn the_origin_with_most_files_makes_room_for_one_with_fewer() {
    let limits = IndexLimits {
        peers_max: 100,
        files_per_peer_max: 100,
        files_max: 100,
        bytes_max: 12 * FILE_BYTES,
        peers_per_origin_max: 100,
        files_per_origin_max: 100,
        bytes_per_origin_max: 3 * FILE_BYTES,
        fetching_per_peer_max: 1,
    };
    let mut index = Index::new(limits);
    let at = |origin: u8| PeerEndpoint {
        address: address(u64::from(origin)),
        origin: IpAddr::from([10, 0, origin, 1]),
        key: 0,
    };
    let files = |count: u8| (0..count).map(|of| entry((of, of))).collect::<Vec<_>>();
    let member = |peer: u64| Member { peer: PeerId(peer), session: peer };
    let join = |index: &mut Index, peer: u64, origin: u8, count: u8| {
        index.join(member(peer), at(origin), files(count), Duration::ZERO)
    };
    assert_eq!(join(&mut index, 1, 1, 4), Err(IndexError::BytesOfOrigin));
    for origin in 1..=4 {
        join(&mut index, u64::from(origin), origin, 1).unwrap();
        join(&mut index, u64::from(origin) + 10, origin, 2).unwrap();
    }
    // A fifth gets the space that the heaviest takes beyond what the fifth itself would.
    assert_eq!(join(&mut index, 5, 5, 2), Err(IndexError::Files));
    let forgotten = index.make_room(PeerId(5), at(5).origin, &files(2));
    assert_eq!(forgotten.len(), 1, "{forgotten:?}");
    assert!(forgotten[0].0.0 > 10, "the one with most files");
    join(&mut index, 5, 5, 2).unwrap();
    // A removed peer takes space from no one.
    let gone = forgotten[0].0.0;
    assert_eq!(join(&mut index, gone, gone as u8 - 10, 2), Err(IndexError::Files));
    assert_eq!(index.make_room(PeerId(gone), at(gone as u8 - 10).origin, &files(2)), []);
    // A light one gets space as long as it is lighter than another.
    let mut room = |peer: u64, origin: u8| {
        if join(&mut index, peer, origin, 1).is_err() {
            assert!(!index.make_room(PeerId(peer), at(origin).origin, &files(1)).is_empty());
            join(&mut index, peer, origin, 1).unwrap();
        }
    };
    (20..26).for_each(|origin| room(u64::from(origin), origin));
    // No one is removed for more files than one IP address may have.
    let before = index.file_count();
    assert_eq!(index.make_room(PeerId(99), at(99).origin, &files(100)), []);
    assert_eq!(index.file_count(), before);
}

/// Once two thousand peers of one IP address were nearly all that an answer named.
#[test]
fn an_answer_has_few_sources_of_one_origin_and_one_of_an_address() {
    let mut index = Index::new(IndexLimits::default());
    let honest = SocketAddr::from(([10, 0, 0, 3], 7000));
    let addresses = (0..600u16).map(|number| match number {
        0 => honest,
        1..300 => SocketAddr::from(([10, 0, 0, 1], number)),
        _ => SocketAddr::from(([10, 0, 0, 2], 80)),
    });
    for (peer, address) in (0..).zip(addresses) {
        let member = Member { peer: PeerId(peer), session: 0 };
        let place = PeerEndpoint { address, origin: address.ip(), key: 0 };
        let files = if peer % 2 == 0 { vec![entry((0, 1))] } else { vec![] };
        index.join(member, place, files, Duration::ZERO).unwrap();
        assert_eq!(index.fetching(member, content(1), 10, Duration::ZERO), Ok(true));
    }
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        for sources in [index.search(&name(0), seed), index.sources_of(content(1), seed)] {
            let of = |ip: u8| {
                let ip = IpAddr::from([10, 0, 0, ip]);
                sources.iter().filter(|source| source.address.ip() == ip).count()
            };
            assert!((1..=2 * sample::SOURCES_PER_ORIGIN_MAX).contains(&of(1)));
            assert!((1..=2).contains(&of(2)) && of(3) == 1, "{sources:?}");
            seen.extend(sources.into_iter().map(|source| source.address));
        }
    }
    assert!(seen.len() > 200, "whoever asks again hears of others: {}", seen.len());
}

/// Once seventy contents that one IP address announced under a name hid the content of three
/// others.
#[test]
fn many_contents_of_one_origin_hide_no_content_of_several_origins() {
    let source = |ip: u8, port: u16, what| Source {
        peer: PeerId(u64::from(port)),
        address: ([10, 0, 0, ip], port).into(),
        size: 1,
        content: content(what),
    };
    let false_ones = (1..=70).flat_map(|what| (1..=16).map(move |port| source(9, port, what)));
    let honest: Vec<Source> = (1..=3).map(|ip| source(ip, 5000, 200)).collect();
    let found = most_offered_first(false_ones.chain(honest.clone()).collect(), 1);
    assert_eq!(found.len(), limits::SOURCES_PER_ANSWER_MAX);
    assert!(found[..3].iter().all(|source| honest.contains(source)));
}
