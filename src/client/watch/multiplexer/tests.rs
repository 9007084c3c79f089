//! What holds of many watches on few connections, whatever their servers do, in virtual time.
//!
//! The servers are scripts here: all of them have one log of changes, and each connection is shown
//! what its watches have credit for. Readers take when the test says so. Everything follows from a
//! seed.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use rand::seq::IndexedRandom;

use super::super::following::WatchEvent;
use super::super::link::ASKS_MAX;
use super::super::queue::Taken;
use super::*;
use crate::limits::{CLIENT_MUTE_TIMEOUT, WATCH_CREDIT_BYTES_MAX};
use crate::model::{ClusterId, KeyChange, NodeId, Row, Version};
use crate::wire::message::{ErrorReply, PROTOCOL_VERSION, Welcome};

const MS: Duration = Duration::from_millis(1);

/// What a server knows of a watch.
struct Served {
    range: KeyInterval,
    after: Timestamp,
    credit: i64,
}

struct Connection {
    server: usize,
    watches: BTreeMap<u64, Served>,
    /// Requests that came on it.
    asked: usize,
}

/// How the servers behave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Well,
    /// Refuses each watch, for want of room.
    Busy,
    /// Refuses each watch of keys that begin with an x, for ever.
    RefusesX,
    /// Answers PING and nothing else.
    Mute,
    /// Refuses connections, as where nobody listens.
    Down,
}

struct Reader {
    id: WatchId,
    queue: Arc<EventQueue>,
    taken: Vec<(Timestamp, Bytes)>,
    failed: Option<ClientError>,
}

struct World {
    random: RefCell<StdRng>,
    now: Duration,
    multiplexer: Multiplexer,
    totals: Arc<WatchTotals>,
    manners: Vec<Manner>,
    connections: BTreeMap<LinkId, Connection>,
    dials: usize,
    log: Vec<KeyChange>,
    readers: Vec<Reader>,
    /// The most requests that had been sent on one connection without an answer.
    most_asked: usize,
}

fn one(key: &str) -> KeyInterval {
    KeyInterval { from: Bytes::from(key.to_owned()), to: Bytes::from(key.to_owned()) }
}

fn credit_of(change: &KeyChange) -> i64 {
    let value = change.written.as_ref().map_or(0, |written| written.value.len());
    (64 + change.key.len() + value) as i64
}

impl World {
    fn new(seed: u64, manners: &[Manner]) -> World {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let servers: Arc<[SocketAddr]> = (1..=manners.len() as u16).map(address).collect();
        let totals: Arc<WatchTotals> = Arc::default();
        World {
            random: RefCell::new(StdRng::seed_from_u64(seed)),
            now: Duration::ZERO,
            multiplexer: Multiplexer::new(servers, Timing::default(), seed, Arc::clone(&totals)),
            totals,
            manners: manners.to_vec(),
            connections: BTreeMap::new(),
            dials: 0,
            log: Vec::new(),
            readers: Vec::new(),
            most_asked: 0,
        }
    }

    fn below(&self, end: usize) -> usize {
        self.random.borrow_mut().random_range(0..end)
    }

    fn write(&mut self, key: &str, bytes: usize) {
        let at = Timestamp(self.log.last().map_or(1, |last| last.at.0 + 1));
        let value = Bytes::from(vec![b'v'; bytes]);
        let written = Some(Version { timestamp: at, value, facts: None });
        let key = Bytes::from(key.to_owned());
        self.log.push(KeyChange { at, key, written, previous: None });
    }

    /// A watch of everything that has ever been of these keys.
    fn watch(&mut self, range: KeyInterval) -> usize {
        let id = 1 + self.readers.len() as WatchId;
        let queue = Arc::new(EventQueue::new(Arc::clone(&self.totals)));
        let following = Following::new(Some(Timestamp::ZERO));
        let fed = FedQueue(Arc::clone(&queue));
        let new = NewWatch { queue: fed, range, previous: false, following, seen: None };
        self.readers.push(Reader { id, queue, taken: Vec::new(), failed: None });
        self.multiplexer.order(self.now, WatchOrder::Begin(id, Box::new(new)));
        self.settle();
        self.readers.len() - 1
    }

    fn end(&mut self, reader: usize) {
        let Reader { id, queue, .. } = &self.readers[reader];
        queue.end();
        self.multiplexer.order(self.now, WatchOrder::End(*id));
        self.settle();
    }

    /// Takes at most so many events.
    fn take(&mut self, reader: usize, most: usize) {
        for _ in 0..most {
            let Reader { id, queue, taken, failed } = &mut self.readers[reader];
            let (next, tells) = queue.take(None);
            if tells {
                self.multiplexer.order(self.now, WatchOrder::Look(*id));
            }
            match next {
                Taken::Next(Some(Ok(WatchEvent::Changed { changes, .. }))) => {
                    taken.extend(changes.into_iter().map(|change| (change.at, change.key)));
                }
                Taken::Next(Some(Err(error))) => *failed = Some(error),
                Taken::Next(None) | Taken::Nothing => break,
                Taken::Next(Some(Ok(other))) => panic!("{other:?}"),
            }
        }
        self.settle();
    }

    fn say(&mut self, link: LinkId, message: &Message) {
        let mut frame = Vec::new();
        codec::encode(message, 1 << 20, &mut frame).unwrap();
        self.multiplexer.frame(self.now, link, &frame[4..]);
    }

    fn break_connection(&mut self, link: LinkId) {
        self.connections.remove(&link);
        self.multiplexer.lost(self.now, link, Loss::Ended);
        self.settle();
    }

    /// Does what the multiplexer wants, until that is nothing.
    fn settle(&mut self) {
        while let Some(output) = self.multiplexer.take_output() {
            match output {
                MultiplexerOutput::Dial { link, server } => {
                    self.dials += 1;
                    if self.manners[server] == Manner::Down {
                        let reason = "connection refused".to_owned();
                        let loss = Loss::Broken { reason, ended: false };
                        self.multiplexer.lost(self.now, link, loss);
                        continue;
                    }
                    let connection = Connection { server, watches: BTreeMap::new(), asked: 0 };
                    self.connections.insert(link, connection);
                    self.multiplexer.connected(link);
                }
                MultiplexerOutput::Send { link, message } => self.serve(link, *message),
                MultiplexerOutput::Close(link) => _ = self.connections.remove(&link),
                MultiplexerOutput::Greeted(_) | MultiplexerOutput::Provoke(_) => {}
            }
        }
        if let Some(at) = self.multiplexer.next_at() {
            assert!(at > self.now, "it is to be called at {at:?}, and it is {:?}", self.now);
        }
    }

    fn serve(&mut self, link: LinkId, message: Message) {
        let Some(connection) = self.connections.get_mut(&link) else { return };
        let manner = self.manners[connection.server];
        match message {
            Message::Hello(_) => {
                let welcome = Message::Welcome(Welcome {
                    protocol: PROTOCOL_VERSION,
                    cluster: ClusterId(7),
                    node: NodeId(1),
                    incarnation: 1,
                    last_index: 0,
                    term: 1,
                    first_leader: None,
                    applied_timestamp: Timestamp::ZERO,
                });
                self.say(link, &welcome);
            }
            Message::Ping { nonce } => self.say(link, &Message::Pong { nonce }),
            Message::WatchCredit { watch, bytes } => {
                let served = connection.watches.get_mut(&watch);
                served.expect("credit is for a watch that has begun").credit += i64::from(bytes);
            }
            Message::Request { .. } if manner == Manner::Mute => connection.asked += 1,
            Message::Request { id, body: Request::Watch(request) } => {
                let is_x = request.range.from.starts_with(b"x");
                let error = |code| Reply::Error(ErrorReply::not_done(code, "it is full".into()));
                let after = request.after.unwrap_or(Timestamp::ZERO);
                let body = match manner {
                    Manner::Busy => error(ErrorCode::Busy { retry_after_ms: 1 }),
                    Manner::RefusesX if is_x => error(ErrorCode::Invalid),
                    _ => {
                        let (range, credit) = (request.range, request.credit_bytes.into());
                        let before = connection
                            .watches
                            .insert(request.watch, Served { range, after, credit });
                        assert!(before.is_none(), "two watches have a number");
                        Reply::WatchOk { after }
                    }
                };
                self.say(link, &Message::Reply { id, body });
            }
            Message::Request { id, body: Request::Unwatch { watch } } => {
                let body = match connection.watches.remove(&watch) {
                    Some(_) => Reply::UnwatchOk {},
                    None => {
                        Reply::Error(ErrorReply::not_done(ErrorCode::Invalid, "no watch".into()))
                    }
                };
                self.say(link, &Message::Reply { id, body });
            }
            other => panic!("{other:?}"),
        }
        let asked = self.connections.get(&link).map_or(0, |connection| connection.asked);
        self.most_asked = self.most_asked.max(asked);
    }

    /// Each watch of a connection is shown what comes next, a few changes a frame.
    fn show(&mut self, link: LinkId) {
        let numbers: Vec<u64> = match self.connections.get(&link) {
            Some(connection) => connection.watches.keys().copied().collect(),
            None => return,
        };
        for number in numbers {
            let most = 1 + self.below(5);
            let Some(connection) = self.connections.get_mut(&link) else { return };
            let Some(served) = connection.watches.get_mut(&number) else { continue };
            if served.credit <= 0 {
                continue;
            }
            let new = self.log.iter().filter(|change| change.at > served.after);
            let changes: Vec<KeyChange> =
                new.filter(|change| served.range.covers(&change.key)).take(most).cloned().collect();
            let Some(up_to) = changes.last().map(|last| last.at) else { continue };
            served.after = up_to;
            served.credit -= changes.iter().map(credit_of).sum::<i64>();
            let body = WatchFrame::Events { changes, up_to, continues: false };
            self.say(link, &Message::Watched { watch: number, body });
            self.settle();
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            let next = self.multiplexer.next_at().map_or(until, |at| at.min(until));
            self.now = next;
            self.multiplexer.poll(self.now);
            self.settle();
        }
    }

    fn links(&self) -> Vec<LinkId> {
        self.connections.keys().copied().collect()
    }

    /// Everybody takes until nothing comes any more.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.pass(20 * MS);
            self.links().into_iter().for_each(|link| self.show(link));
            (0..self.readers.len()).for_each(|reader| self.take(reader, usize::MAX));
            if (0..self.readers.len()).all(|reader| self.has_all(reader)) {
                return;
            }
        }
        panic!("something does not come");
    }

    fn has_all(&self, reader: usize) -> bool {
        self.readers[reader].taken.len() >= self.wanted(reader).len()
    }

    fn wanted(&self, reader: usize) -> Vec<(Timestamp, Bytes)> {
        let key = Bytes::from(format!("k{}", reader % 5));
        let of_key = self.log.iter().filter(|change| change.key == key);
        of_key.map(|change| (change.at, change.key.clone())).collect()
    }
}

#[test]
fn whatever_servers_do_each_watch_is_told_each_change_once_and_in_order() {
    for seed in 0..200 {
        let mut world = World::new(seed, &[Manner::Well; 3]);
        for step in 0..400 {
            let reader = world.below(world.readers.len().max(1));
            match world.below(100) {
                0..10 if world.readers.len() < 12 => {
                    let key = format!("k{}", world.readers.len() % 5);
                    world.watch(one(&key));
                }
                0..40 => {
                    let (key, bytes) = (format!("k{}", world.below(6)), world.below(60_000));
                    world.write(&key, bytes);
                }
                40..60 if !world.readers.is_empty() => {
                    let most = world.below(6);
                    world.take(reader, most);
                }
                60..80 => world.links().into_iter().for_each(|link| world.show(link)),
                80..84 => {
                    let links = world.links();
                    let chosen = links.choose(&mut *world.random.borrow_mut()).copied();
                    if let Some(link) = chosen {
                        world.break_connection(link);
                    }
                }
                84..88 => {
                    let server = world.below(3);
                    let manners = [Manner::Well, Manner::Busy, Manner::Mute, Manner::Down];
                    world.manners[server] = manners[world.below(4)];
                }
                _ => {
                    let time = MS * world.below(2_000) as u32;
                    world.pass(time);
                }
            }
            world.settle();
            assert!(world.connections.len() <= CLIENT_WATCH_CONNECTIONS_MAX, "{seed}, {step}");
        }
        world.manners = vec![Manner::Well; 3];
        world.finish();
        for reader in 0..world.readers.len() {
            assert_eq!(world.readers[reader].taken, world.wanted(reader), "seed {seed}");
        }
        assert_eq!(world.totals.held_bytes(), 0, "all was taken");
    }
}

#[test]
fn all_watches_are_on_one_connection_which_ends_after_the_last() {
    let mut world = World::new(1, &[Manner::Well; 3]);
    (0..1_000).for_each(|number| _ = world.watch(one(&format!("k{}", number % 5))));
    world.pass(Duration::from_secs(60));
    assert_eq!((world.dials, world.connections.len()), (1, 1));
    assert_eq!(world.connections.values().next().unwrap().watches.len(), 1_000);
    (1..1_000).for_each(|reader| world.end(reader));
    world.pass(Duration::from_secs(60));
    assert_eq!(world.connections.values().next().unwrap().watches.len(), 1);
    world.end(0);
    world.pass(Duration::from_secs(60));
    assert!(world.connections.is_empty());
    assert_eq!(world.multiplexer.next_at(), None, "nothing is to be done any more");
}

/// They begin anew at another server, and no server is asked for all of them at once.
#[test]
fn a_lost_connection_moves_all_its_watches() {
    let mut world = World::new(2, &[Manner::Well; 3]);
    let readers: Vec<usize> =
        (0..1_000).map(|number| world.watch(one(&format!("k{}", number % 5)))).collect();
    let first = world.links()[0];
    let server = world.connections[&first].server;
    world.manners[server] = Manner::Down;
    world.break_connection(first);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.connections.len(), 1);
    let connection = world.connections.values().next().unwrap();
    assert_ne!(connection.server, server);
    assert_eq!(connection.watches.len(), 1_000);
    (0..5).for_each(|key| world.write(&format!("k{key}"), 10));
    world.finish();
    assert!(readers.iter().all(|reader| world.readers[*reader].taken.len() == 1));
}

#[test]
fn a_server_that_begins_no_watch_is_asked_a_few_and_left() {
    let mut world = World::new(3, &[Manner::Mute, Manner::Down, Manner::Down]);
    (0..1_000).for_each(|_| _ = world.watch(one("k1")));
    world.pass(Duration::from_secs(5));
    assert_eq!(world.most_asked, ASKS_MAX);
    world.manners[1] = Manner::Well;
    world.pass(2 * CLIENT_MUTE_TIMEOUT);
    let well = world.connections.values().find(|connection| connection.server == 1);
    assert_eq!(well.expect("the second server is asked").watches.len(), 1_000);
}

#[test]
fn what_a_server_refuses_one_watch_ends_no_other() {
    let mut world = World::new(4, &[Manner::RefusesX; 3]);
    let well = world.watch(one("k1"));
    let refused = world.watch(one("x"));
    world.write("k1", 10);
    world.links().into_iter().for_each(|link| world.show(link));
    world.take(well, 10);
    world.take(refused, 10);
    assert_eq!(world.readers[well].taken.len(), 1);
    assert!(matches!(world.readers[refused].failed, Some(ClientError::Invalid { .. })));
    // One that is refused for want of room goes elsewhere, and the others stay.
    let server = world.connections.values().next().unwrap().server;
    world.manners[server] = Manner::Busy;
    let late = world.watch(one("k3"));
    world.write("k3", 10);
    world.pass(Duration::from_secs(1));
    world.links().into_iter().for_each(|link| world.show(link));
    world.take(late, 10);
    assert_eq!(world.readers[late].taken.len(), 1);
    assert_eq!(world.connections.len(), 2);
    assert!(
        world.connections.values().any(|kept| kept.server == server && !kept.watches.is_empty())
    );
}

#[test]
fn whoever_takes_nothing_stops_only_itself() {
    let mut world = World::new(5, &[Manner::Well]);
    let (slow, quick) = (world.watch(one("k0")), world.watch(one("k0")));
    for _ in 0..100 {
        world.write("k0", 20_000);
        world.links().into_iter().for_each(|link| world.show(link));
        world.take(quick, 10);
    }
    assert_eq!(world.readers[quick].taken.len(), 100);
    let most = WATCH_CREDIT_BYTES_MAX as usize + 5 * 21_000;
    assert!(world.totals.held_bytes() <= most, "{}", world.totals.held_bytes());
    world.take(slow, usize::MAX);
    assert!(world.readers[slow].taken.len() < 100, "it had more than its credit");
    for _ in 0..100 {
        world.links().into_iter().for_each(|link| world.show(link));
        world.take(slow, usize::MAX);
    }
    assert_eq!(world.readers[slow].taken.len(), 100);
}

/// It begins anew when it is ended, so it is waited for longer, and not for ever.
#[test]
fn a_reset_whose_reader_stands_still_is_ended_at_the_server_and_begins_anew_when_it_is_back() {
    let mut world = World::new(10, &[Manner::Well]);
    let slow = world.watch(one("k0"));
    world.watch(one("k1"));
    let link = world.links()[0];
    let show = |world: &mut World, begins| {
        let value = Bytes::from(vec![b'v'; 100_000]);
        let found = Some(Version { timestamp: Timestamp(1), value, facts: None });
        let rows = vec![Row { key: "k0".into(), found }];
        let body = WatchFrame::Reset { rows, at: Timestamp(9), begins, continues: true };
        world.say(link, &Message::Watched { watch: 1, body });
        world.settle();
    };
    let take = |world: &mut World| {
        let (next, tells) = world.readers[slow].queue.take(None);
        assert!(matches!(next, Taken::Next(Some(Ok(WatchEvent::Reset { .. })))));
        if tells {
            world.multiplexer.order(world.now, WatchOrder::Look(world.readers[slow].id));
            world.settle();
        }
    };
    let served = |world: &World| world.connections[&link].watches.len();
    (0..3).for_each(|frame| show(&mut world, frame == 0));
    world.pass(RESET_STALL_TIMEOUT - MS);
    // It has taken something in time.
    take(&mut world);
    show(&mut world, false);
    world.pass(RESET_STALL_TIMEOUT - MS);
    assert_eq!(served(&world), 2);
    world.pass(2 * MS);
    assert_eq!(served(&world), 1, "it is waited for");
    (0..3).for_each(|_| take(&mut world));
    let (_, tells) = world.readers[slow].queue.take(None);
    assert!(!tells, "it was told when the last was taken");
    world.pass(MS);
    assert_eq!(served(&world), 2);
    assert_eq!(world.connections[&link].watches.values().last().unwrap().after, Timestamp::ZERO);
}

#[test]
fn progress_is_of_all_watches_of_a_connection_but_of_those_that_the_server_names() {
    let mut world = World::new(11, &[Manner::Well]);
    let (slow, idle) = (world.watch(one("k0")), world.watch(one("k1")));
    let link = world.links()[0];
    let up_to = |world: &World, reader: usize| world.readers[reader].queue.up_to();
    world.say(link, &Message::WatchProgress { up_to: Timestamp(7), behind: vec![1] });
    let told = [up_to(&world, slow), up_to(&world, idle)];
    assert_eq!(told, [Some(Timestamp::ZERO), Some(Timestamp(7))]);
    world.say(link, &Message::WatchProgress { up_to: Timestamp(5), behind: Vec::new() });
    let told = [up_to(&world, slow), up_to(&world, idle)];
    assert_eq!(told, [Some(Timestamp(5)), Some(Timestamp(7))]);
}

/// It has no place there that it does not use.
#[test]
fn a_watch_whose_reader_has_gone_away_is_ended_at_the_server_and_goes_on_when_it_is_back() {
    let mut world = World::new(9, &[Manner::Well]);
    let (slow, quick) = (world.watch(one("k0")), world.watch(one("k1")));
    (0..30).for_each(|_| world.write("k0", 20_000));
    for _ in 0..30 {
        world.links().into_iter().for_each(|link| world.show(link));
    }
    let served = |world: &World| world.connections.values().next().unwrap().watches.len();
    world.pass(STALL_TIMEOUT / 2);
    assert_eq!(served(&world), 2);
    world.pass(STALL_TIMEOUT);
    assert_eq!(served(&world), 1, "it is waited for");
    for _ in 0..30 {
        world.take(slow, usize::MAX);
        world.links().into_iter().for_each(|link| world.show(link));
    }
    world.take(slow, usize::MAX);
    assert_eq!(world.readers[slow].taken.len(), 30);
    assert_eq!(served(&world), 2);
    assert!(world.readers[quick].taken.is_empty());
}

/// Each may have a quarter of a mebibyte, and all together no more than there is room for.
#[test]
fn a_thousand_readers_that_take_nothing_hold_no_more_than_there_is_room_for() {
    let mut world = World::new(6, &[Manner::Well]);
    (0..1_000).for_each(|_| _ = world.watch(one("k0")));
    for _ in 0..20 {
        world.write("k0", 50_000);
        world.links().into_iter().for_each(|link| world.show(link));
        assert!(
            world.totals.held_bytes() <= CLIENT_WATCH_BYTES_MAX,
            "{}",
            world.totals.held_bytes()
        );
    }
    let carried = world.connections.values().next().unwrap().watches.len();
    assert!(carried < 1_000, "some are parked");
    for reader in 0..1_000 {
        for _ in 0..100 {
            world.take(reader, usize::MAX);
            world.links().into_iter().for_each(|link| world.show(link));
            if world.readers[reader].taken.len() == 20 {
                break;
            }
        }
        let taken: Vec<_> = world.readers[reader].taken.iter().map(|(at, _)| at.0).collect();
        assert_eq!(taken, (1..=20).collect::<Vec<_>>(), "reader {reader}");
        world.end(reader);
    }
    assert_eq!(world.totals.held_bytes(), 0);
}

#[test]
fn a_server_that_lies_about_watches_loses_its_connection_and_no_watch_is_lost() {
    let lies: [fn(&mut World, LinkId); 3] = [
        // A watch that there is not.
        |world, link| {
            let body =
                WatchFrame::Events { changes: Vec::new(), up_to: Timestamp(9), continues: false };
            world.say(link, &Message::Watched { watch: 77, body });
        },
        // An answer to what was not asked.
        |world, link| {
            let body = Reply::WatchOk { after: Timestamp(9) };
            world.say(link, &Message::Reply { id: 77, body });
        },
        // A key that is not watched.
        |world, link| {
            let (at, key) = (Timestamp(9), Bytes::from("other"));
            let changes = vec![KeyChange { at, key, written: None, previous: None }];
            let body = WatchFrame::Events { changes, up_to: at, continues: false };
            world.say(link, &Message::Watched { watch: 1, body });
        },
    ];
    for lie in lies {
        let mut world = World::new(7, &[Manner::Well; 2]);
        let readers = [world.watch(one("k0")), world.watch(one("k1"))];
        let link = world.links()[0];
        lie(&mut world, link);
        world.settle();
        assert!(!world.connections.contains_key(&link), "the connection is kept");
        world.write("k0", 1);
        world.write("k1", 1);
        world.finish();
        assert!(readers.iter().all(|reader| world.readers[*reader].taken.len() == 1));
    }
}

/// More than one connection may carry.
#[test]
fn watches_beyond_what_a_connection_carries_have_another_one() {
    let mut world = World::new(8, &[Manner::Well; 3]);
    (0..WATCHES_PER_CONNECTION_MAX).for_each(|_| _ = world.watch(one("k0")));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.connections.len(), 1);
    (0..10).for_each(|_| _ = world.watch(one("k0")));
    world.pass(Duration::from_secs(1));
    let carried: Vec<usize> =
        world.connections.values().map(|connection| connection.watches.len()).collect();
    assert_eq!(carried, [WATCHES_PER_CONNECTION_MAX, 10]);
}
