//! The servers of a simulated client: a store that all of them have, as far as each has applied it,
//! and how each behaves.
//!
//! They are a state machine: [`Group::take`] takes what the client says to one of them and returns
//! what that says, and when. Time, randomness and the network are the world's.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{MS, TRIP};
use crate::model::{
    ClientId, ClusterId, NodeId, OpResult, Put, ReadView, Timestamp, Version, WriteAnswer, WriteOp,
};
use crate::wire::message::{
    ErrorCode, ErrorReply, GetRequest, Message, PROTOCOL_VERSION, ReadAt, Reply, Request, Welcome,
    WriteRequest,
};

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Is stopped: connections are made by its system, and what comes waits.
    Frozen,
    /// Is down, so that connections are refused.
    Down,
    /// Answers after this long, and PING at once.
    Slow(Duration),
    /// Applies nothing more, and says so of what it has not applied.
    Behind,
    /// Is cut off from the others, and says so after some time.
    CutOff,
    /// Has too much to do, and says for how many milliseconds.
    Busy(u32),
    /// Does what it is asked, and answers with a reply of another kind.
    WrongKind,
    /// Answers what it was not asked.
    WrongId,
    /// Ends each connection on which it is asked for something, which it does or does not do.
    Closing,
    /// Answers nothing but PING, and does what it is asked or does not.
    Mute,
    /// Says each answer twice, one after the other.
    Repeating,
    /// Does what it is asked, and greets once more before it answers.
    Regreeting,
    /// Answers reads with a value that is older than any other. No random test has it: nobody can
    /// tell of a key that is not remembered.
    Stale,
    /// Answers reads from the state before the first write, in which there is no key.
    Blank,
}

pub(super) use Mood::*;

pub(super) const MOODS: [Mood; 15] = [
    Well,
    Frozen,
    Down,
    Slow(Duration::from_millis(200)),
    Behind,
    CutOff,
    Busy(5),
    Busy(u32::MAX),
    WrongKind,
    WrongId,
    Closing,
    Mute,
    Repeating,
    Regreeting,
    Blank,
];

struct Server {
    mood: Mood,
    /// How many entries of the log it has applied.
    applied: usize,
}

/// A write that the group has ordered.
pub(super) struct Entry {
    pub(super) timestamp: Timestamp,
    pub(super) key: Bytes,
    pub(super) value: Option<Bytes>,
}

/// All servers, and what they have together.
pub(super) struct Group {
    servers: Vec<Server>,
    log: Vec<Entry>,
    /// By key, the places of its entries in the log.
    of_key: HashMap<Bytes, Vec<usize>>,
    /// The timestamp of each write that sessions remember.
    sessions: HashMap<(ClientId, u64), Timestamp>,
    known: HashSet<ClientId>,
    /// When sessions were last dropped.
    forgotten_at: Timestamp,
}

/// What a server works with that is not its own.
pub(super) struct Surroundings<'a> {
    pub(super) now: Duration,
    pub(super) random: &'a mut StdRng,
}

impl Surroundings<'_> {
    fn jittered(&mut self, delay: Duration) -> Duration {
        delay.mul_f64(self.random.random_range(0.5..1.5))
    }
}

/// What a server does on its connection.
pub(super) enum Does {
    Says(Box<Message>),
    Ends,
}

impl Group {
    pub(super) fn new(moods: &[Mood]) -> Group {
        Group {
            servers: moods.iter().map(|mood| Server { mood: *mood, applied: 0 }).collect(),
            log: Vec::new(),
            of_key: HashMap::new(),
            sessions: HashMap::new(),
            known: HashSet::new(),
            forgotten_at: Timestamp::ZERO,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    pub(super) fn mood(&self, server: usize) -> Mood {
        self.servers[server].mood
    }

    pub(super) fn set_mood(&mut self, server: usize, mood: Mood) {
        self.servers[server].mood = mood;
    }

    /// How many entries of the log a server has applied.
    pub(super) fn applied(&self, server: usize) -> usize {
        self.servers[server].applied
    }

    /// Every write there was, in order.
    pub(super) fn log(&self) -> &[Entry] {
        &self.log
    }

    /// That of a write now.
    pub(super) fn timestamp(&self, now: Duration) -> Timestamp {
        let last = self.log.last().map_or(0, |entry| entry.timestamp.0);
        Timestamp((1_000_000 + now.as_micros() as i64).max(last + 1))
    }

    /// Another client writes a key that nobody here reads.
    pub(super) fn write_elsewhere(&mut self, now: Duration) -> Timestamp {
        let (timestamp, key) = (self.timestamp(now), Bytes::from("elsewhere"));
        self.log.push(Entry { timestamp, key, value: None });
        timestamp
    }

    pub(super) fn forget(&mut self, now: Duration) {
        self.forgotten_at = self.timestamp(now);
        self.sessions.clear();
        self.known.clear();
    }

    /// A server that runs has something from the client. Returns what it does, and how much later.
    pub(super) fn take(
        &mut self,
        world: &mut Surroundings<'_>,
        server: usize,
        message: Message,
    ) -> Vec<(Duration, Does)> {
        let delay = world.jittered(TRIP);
        let mood = self.servers[server].mood;
        match (mood, message) {
            (Down, _) | (_, Message::Pong { .. }) => Vec::new(),
            (_, Message::Hello(_)) => vec![(delay, Does::Says(Box::new(self.welcome(server))))],
            (_, Message::Ping { nonce }) => {
                vec![(delay, Does::Says(Box::new(Message::Pong { nonce })))]
            }
            (Closing | Mute, Message::Request { body, .. }) => {
                if world.random.random_ratio(1, 2) {
                    self.answer(world, server, body);
                }
                if mood == Closing { vec![(delay, Does::Ends)] } else { Vec::new() }
            }
            (_, Message::Request { id, body }) => self.reply(world, delay, server, id, body),
            (_, other) => panic!("a client says {other:?}"),
        }
    }

    fn reply(
        &mut self,
        world: &mut Surroundings<'_>,
        delay: Duration,
        server: usize,
        id: u64,
        body: Request,
    ) -> Vec<(Duration, Does)> {
        let mood = self.servers[server].mood;
        let error =
            |code, message: &str| Reply::Error(ErrorReply::not_done(code, message.to_owned()));
        let (delay, body) = match mood {
            Slow(slow) => (world.jittered(slow), self.answer(world, server, body)),
            CutOff => (50 * MS, error(ErrorCode::NoMajority, "1 of 3")),
            Busy(retry_after_ms) => (delay, error(ErrorCode::Busy { retry_after_ms }, "full")),
            WrongKind => {
                self.answer(world, server, body);
                let (rows, view) = (Vec::new(), ReadView::as_of(Timestamp(1)));
                (delay, Reply::PageOk { rows, view, next: None })
            }
            Stale if matches!(body, Request::Get(_)) => {
                let (timestamp, value) = (Timestamp(1), Bytes::from("old"));
                let found = Some(Version { timestamp, value, facts: None });
                (delay, Reply::GetOk { found, as_of: timestamp })
            }
            Blank if matches!(body, Request::Get(_)) => {
                (delay, Reply::GetOk { found: None, as_of: Timestamp(1) })
            }
            _ => (delay, self.answer(world, server, body)),
        };
        let id = if mood == WrongId { id + 1000 } else { id };
        let message = Message::Reply { id, body };
        let before = match mood {
            Repeating => Some(message.clone()),
            Regreeting => Some(self.welcome(server)),
            _ => None,
        };
        before
            .into_iter()
            .chain([message])
            .map(|said| (delay, Does::Says(Box::new(said))))
            .collect()
    }

    fn welcome(&self, server: usize) -> Message {
        let applied = self.log[..self.servers[server].applied].last();
        Message::Welcome(Welcome {
            protocol: PROTOCOL_VERSION,
            cluster: ClusterId(7),
            node: NodeId(1 + server as u64),
            incarnation: 1,
            last_index: 0,
            term: 1,
            first_leader: None,
            applied_timestamp: applied.map(|entry| entry.timestamp).unwrap_or_default(),
        })
    }

    fn answer(&mut self, world: &mut Surroundings<'_>, server: usize, request: Request) -> Reply {
        if self.servers[server].mood != Behind {
            // It may be a little behind.
            let behind = if world.random.random_ratio(1, 4) { 1 } else { 0 };
            let newest = self.log.len().saturating_sub(behind);
            self.servers[server].applied = newest.max(self.servers[server].applied);
        }
        match request {
            Request::Write(write) => self.write(world.now, write),
            Request::Get(get) => self.get(server, &get),
            Request::Status => {
                // Of use is whoever says that it is busy, too; that needs no status to be made up.
                let code = ErrorCode::Busy { retry_after_ms: 5 };
                Reply::Error(ErrorReply::not_done(code, "here".to_owned()))
            }
            Request::Page(_)
            | Request::Txn(_)
            | Request::Watch(_)
            | Request::Unwatch { .. }
            | Request::Leases(_) => {
                panic!("nobody asks for pages, transactions, watches or leases here")
            }
        }
    }

    fn write(&mut self, now: Duration, write: WriteRequest) -> Reply {
        let WriteRequest { request, op, .. } = write;
        let (client, sequence) = (request.client, request.sequence);
        let timestamp = self.timestamp(now);
        let known = self.sessions.get(&(client, sequence)).copied();
        let is_unknown = !self.known.contains(&client) && request.begun < self.forgotten_at;
        if known.is_none() && is_unknown {
            let code = ErrorCode::UnknownSession { begin_anew_at: timestamp };
            return Reply::Error(ErrorReply::not_done(code, "who?".to_owned()));
        }
        let timestamp = known.unwrap_or(timestamp);
        if known.is_none() {
            self.known.insert(client);
            self.sessions.insert((client, sequence), timestamp);
            let (key, value) = match &op {
                WriteOp::Put(Put { key, value, .. }) => (key.clone(), Some(value.clone())),
                _ => (Bytes::new(), None),
            };
            self.of_key.entry(key.clone()).or_default().push(self.log.len());
            self.log.push(Entry { timestamp, key, value });
        }
        Reply::WriteOk(WriteAnswer { timestamp, result: OpResult::Done, previous: None, txn: None })
    }

    fn get(&self, server: usize, get: &GetRequest) -> Reply {
        let log = match get.linearizable {
            true => &self.log[..],
            false => &self.log[..self.servers[server].applied],
        };
        let as_of = log.last().map(|entry| entry.timestamp).unwrap_or_default();
        let (at, seen, wanted) = match get.read_at {
            ReadAt::Newest { seen } => (Timestamp(i64::MAX), seen, get.session),
            ReadAt::Version(at) => (at, None, get.session.max(Some(at))),
        };
        let of_key = self.of_key.get(&get.key).map_or(&[][..], |places| &places[..]);
        let version = of_key.iter().rev().filter_map(|place| log.get(*place));
        let version = version.into_iter().find(|entry| entry.timestamp <= at);
        let timestamp = version.map(|entry| entry.timestamp);
        if Some(as_of) < wanted || timestamp < seen {
            return Reply::TryOtherServerOrLater { timestamp, applied: as_of };
        }
        let found = version.and_then(|Entry { timestamp, value, .. }| {
            Some(Version { timestamp: *timestamp, value: value.clone()?, facts: None })
        });
        Reply::GetOk { found, as_of }
    }
}
