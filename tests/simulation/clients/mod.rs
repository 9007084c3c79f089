//! Clients that keep the promises of SPEC A3 and A4 from their side: several requests under way,
//! retries elsewhere under the same identity, timestamps remembered.
//!
//! Beside what a real client knows, each remembers what it truly witnessed, so that every answer is
//! checked when it arrives.

mod answers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use acervo::command::WriteOp;
use acervo::node::{Input, RequestToken};
use acervo::types::{ClientId, LogIndex, RequestId, Timestamp};
use acervo::wire::message::{ErrorCode, GetRequest, PageOf, PageRequest, Reply, Row, WriteRequest};
use bytes::Bytes;

use crate::checker::Verdict;
use crate::linearizability::Span;
use crate::world::{Event, MILLISECOND, World};

/// How a client keeps from reading backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The greatest timestamp of all keys, as the library does.
    Session,
    /// A timestamp a key, as the console does.
    PerKey,
}

/// One client.
pub struct Client {
    /// Its identity.
    pub id: ClientId,
    /// How it remembers.
    pub memory: Memory,
    /// How many operations it may still begin by itself.
    pub wishes: usize,
    /// How many it keeps under way.
    pub pipeline: usize,
    /// How many are under way.
    pub under_way: usize,
    /// How long it waits for one server.
    pub patience_us: u64,
    next_sequence: u64,
    unanswered: BTreeSet<u64>,
    seen: BTreeMap<Bytes, Timestamp>,
    /// For [`Memory::PerKey`], where a key was seen absent: that state's upper bound.
    absent: BTreeMap<Bytes, Timestamp>,
    session: Timestamp,
    witnessed: BTreeMap<Bytes, Timestamp>,
    /// Counts this client's connections to each server.
    connections: Vec<u64>,
}

/// What a client asks.
#[derive(Clone, Debug)]
pub enum Question {
    /// A write.
    Write(WriteRequest),
    /// A read of a key.
    Get(GetRequest),
    /// A page of a range or of keys: at first the first one, then the one that is asked for now.
    Page(PageRequest),
}

/// What it was told in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write is acknowledged.
    Written(Timestamp),
    /// The read found this.
    Found(Option<Bytes>),
    /// All pages of the read have come.
    Listed,
    /// What the rest of the pages should show has been purged meanwhile.
    Expired,
}

/// One operation of a client, however many attempts it takes.
pub struct Operation {
    /// Whose.
    pub client: usize,
    /// What.
    pub question: Question,
    /// The same as it was at first.
    first: Question,
    /// When first asked.
    pub began_us: u64,
    /// When answered, and what.
    pub ended: Option<(u64, Outcome)>,
    /// For a read of the newest state, when each key it showed had really last changed.
    pub versions: Vec<(Bytes, Timestamp)>,
    /// The rows of the pages so far.
    pub rows: Vec<Row>,
    /// For a read, as asked first: of which version, if not of the newest, and whether it is
    /// linearizable.
    pub asked: (Option<Timestamp>, bool),
    /// Errors on the way, and when.
    pub errors: Vec<(u64, ErrorCode)>,
    /// The attempt that counts now.
    current: Option<usize>,
    /// The server asked first; the others follow by chance.
    first_server: Option<usize>,
    /// What the client had witnessed of every key when it asked.
    witnessed: BTreeMap<Bytes, Timestamp>,
}

/// One request to one server.
pub struct Attempt {
    operation: usize,
    server: usize,
    token: RequestToken,
}

/// The keys of all clients, in order. Some are each other's beginnings.
const KEYS: [&str; 6] = ["key-0", "key-00", "key-1", "key-2", "key-3", "key-4"];

/// All of them, as bytes.
pub fn keys() -> impl Iterator<Item = Bytes> {
    KEYS.iter().map(|key| Bytes::from_static(key.as_bytes()))
}

impl Question {
    /// Whether the answer shows the key.
    pub fn shows(&self, key: &Bytes) -> bool {
        match self {
            Question::Write(_) => false,
            Question::Get(get) => get.key == key,
            Question::Page(page) => match &page.of {
                PageOf::Range { from, to } => from <= key && key <= to,
                PageOf::Keys { keys } => keys.contains(key),
                PageOf::Versions { key: of } => of == key,
            },
        }
    }
}

impl World {
    /// Adds a client.
    pub fn add_client(&mut self, memory: Memory, pipeline: usize, patience_us: u64) -> usize {
        self.clients.push(Client {
            id: ClientId(self.rng.next_u64()),
            memory,
            wishes: 0,
            pipeline,
            under_way: 0,
            patience_us,
            next_sequence: 1,
            unanswered: BTreeSet::new(),
            seen: BTreeMap::new(),
            absent: BTreeMap::new(),
            session: Timestamp::ZERO,
            witnessed: BTreeMap::new(),
            connections: vec![0; self.servers.len()],
        });
        self.clients.len() - 1
    }

    /// Begins a write; `server` is asked first when given.
    pub fn write(
        &mut self,
        client: usize,
        server: Option<usize>,
        op: WriteOp,
        previous: bool,
    ) -> usize {
        let state = &mut self.clients[client];
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        state.unanswered.insert(sequence);
        let answered_below = *state.unanswered.first().unwrap_or(&sequence);
        let request = RequestId { client: state.id, sequence, answered_below };
        self.begin(client, server, Question::Write(WriteRequest { request, op, previous }))
    }

    /// Begins a PUT of text.
    pub fn put(&mut self, client: usize, server: Option<usize>, key: &str, value: &str) -> usize {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
        self.write(client, server, WriteOp::Put { key, value }, false)
    }

    /// Begins a read.
    pub fn read(
        &mut self,
        client: usize,
        server: Option<usize>,
        key: Bytes,
        linearizable: bool,
    ) -> usize {
        let state = &self.clients[client];
        let timestamp = state.seen.get(&key).copied().unwrap_or_default();
        let session = match state.memory {
            Memory::Session => state.session,
            Memory::PerKey => state.absent.get(&key).copied().unwrap_or_default(),
        };
        let at = Timestamp::ZERO;
        let get = GetRequest { key, timestamp, session, linearizable, at };
        self.begin(client, server, Question::Get(get))
    }

    /// Begins a read as of a version that the client knows of.
    fn read_at(&mut self, client: usize, key: Bytes, at: Timestamp) -> usize {
        let session = self.clients[client].session;
        let (timestamp, linearizable) = (Timestamp::ZERO, false);
        let get = GetRequest { key, timestamp, session, linearizable, at };
        self.begin(client, None, Question::Get(get))
    }

    /// Begins a read of several keys; `at` 0 is the newest state.
    fn list(&mut self, client: usize, of: PageOf, at: Timestamp, linearizable: bool) -> usize {
        let session = self.clients[client].session;
        let rows_max = self.rng.range(1..=4) as u32;
        let seen = Timestamp::ZERO;
        let page = PageRequest { of, at, seen, session, linearizable, rows_max };
        self.begin(client, None, Question::Page(page))
    }

    fn begin(&mut self, client: usize, server: Option<usize>, question: Question) -> usize {
        let state = &mut self.clients[client];
        state.under_way += 1;
        let witnessed = state.witnessed.clone();
        let (at, linearizable) = match &question {
            Question::Write(_) => (Timestamp::ZERO, false),
            Question::Get(get) => (get.at, get.linearizable),
            Question::Page(page) => (page.at, page.linearizable),
        };
        self.operations.push(Operation {
            client,
            first: question.clone(),
            question,
            began_us: self.now_us,
            ended: None,
            versions: Vec::new(),
            rows: Vec::new(),
            asked: ((at > Timestamp::ZERO).then_some(at), linearizable),
            errors: Vec::new(),
            current: None,
            first_server: server,
            witnessed,
        });
        let operation = self.operations.len() - 1;
        self.send_attempt(operation);
        operation
    }

    /// Asks a server: the first one as told, then any other than the last (if there is another).
    pub fn send_attempt(&mut self, operation: usize) {
        let asked = &self.operations[operation];
        if asked.ended.is_some() {
            return;
        }
        let (client, current, first_server) = (asked.client, asked.current, asked.first_server);
        let server = match (current, first_server) {
            (None, Some(first)) => first,
            (None, None) => self.rng.index(self.servers.len()),
            (Some(last), _) => self.other_than(self.attempts[last].server),
        };
        let connection = ((client as u64) << 40)
            | ((server as u64) << 32)
            | self.clients[client].connections[server];
        let attempt = self.attempts.len();
        let token = RequestToken { connection, request: attempt as u64 };
        self.attempts.push(Attempt { operation, server, token });
        self.operations[operation].current = Some(attempt);
        let delay_us = self.client_delay_us();
        self.after(delay_us, Event::Arrive { attempt });
        let patience_us = self.clients[client].patience_us;
        self.after(patience_us, Event::Abandon { attempt });
    }

    fn client_delay_us(&mut self) -> u64 {
        match self.rng.chance(20) {
            true => self.rng.range(MILLISECOND..=30 * MILLISECOND),
            false => self.rng.range(30..=400),
        }
    }

    /// A client gives an attempt up and, if it was the one that counts, tries elsewhere.
    pub fn abandon(&mut self, attempt: usize) {
        let operation = self.attempts[attempt].operation;
        if self.operations[operation].current == Some(attempt) {
            self.retry_later(operation, 20 * MILLISECOND);
        }
    }

    fn retry_later(&mut self, operation: usize, delay_us_max: u64) {
        let delay_us = self.rng.range(delay_us_max / 10..=delay_us_max);
        self.after(delay_us, Event::Retry { operation });
    }

    /// A client's connection to a server breaks. The core is not told: it answers all the same, and
    /// its driver throws the answer away.
    pub fn reset_connection(&mut self, client: usize, server: usize) {
        let generation = self.clients[client].connections[server];
        let connection = ((client as u64) << 40) | ((server as u64) << 32) | generation;
        self.clients[client].connections[server] += 1;
        let Some(process) = &mut self.servers[server].process else { return };
        let cut: Vec<usize> = process
            .open_attempts
            .iter()
            .copied()
            .filter(|attempt| self.attempts[*attempt].token.connection == connection)
            .collect();
        process.open_attempts.retain(|attempt| !cut.contains(attempt));
        for attempt in cut {
            self.queue_abandon(attempt);
        }
    }

    fn queue_abandon(&mut self, attempt: usize) {
        let delay_us = self.rng.range(30..=3 * MILLISECOND);
        self.after(delay_us, Event::Abandon { attempt });
    }

    // ---- at the server ------------------------------------------------------------------------

    /// A request arrives at its server.
    pub fn arrive(&mut self, attempt: usize) -> Verdict {
        let Attempt { operation, server, token } = self.attempts[attempt];
        if self.servers[server].paused_until_us > self.now_us {
            let until_us = self.servers[server].paused_until_us;
            self.at(until_us, Event::Arrive { attempt });
            return Ok(());
        }
        let asked = &self.operations[operation];
        let client = asked.client;
        let question = asked.question.clone();
        let cut = u64::from(token.connection as u32) != self.clients[client].connections[server];
        let Some(process) = self.servers[server].process.as_mut().filter(|_| !cut) else {
            self.queue_abandon(attempt);
            return Ok(());
        };
        process.open_attempts.insert(attempt);
        match question {
            Question::Write(write) => {
                process.owed.insert(token, self.now_us);
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000 + client as u16));
                self.input(server, Input::Write { token, client: address, write })
            }
            Question::Get(GetRequest { linearizable: true, .. })
            | Question::Page(PageRequest { linearizable: true, .. }) => {
                process.owed.insert(token, self.now_us);
                self.input(server, Input::Read { token })
            }
            Question::Get(_) | Question::Page(_) => {
                self.start_get(server, attempt);
                Ok(())
            }
        }
    }

    /// A worker takes up a read.
    pub fn start_get(&mut self, server: usize, attempt: usize) {
        let state = &self.servers[server];
        let Some(process) = &state.process else { return };
        let applied = process.machine.point().timestamp.max(Timestamp::FIRST);
        let life = state.life;
        let delay_us = self.rng.range(5..=200);
        self.after(delay_us, Event::Get { server, life, attempt, applied });
    }

    /// The worker answers it.
    pub fn get(&mut self, server: usize, attempt: usize, applied: Timestamp) -> Verdict {
        let operation = &self.operations[self.attempts[attempt].operation];
        let Some(process) = &self.servers[server].process else { return Ok(()) };
        let reply = match &operation.question {
            Question::Write(_) => return Ok(()),
            Question::Get(request) => process.get(request, applied),
            Question::Page(request) => process.page(request, applied),
        };
        let read_at = process.machine.point().index;
        self.reply(server, attempt, reply, read_at);
        Ok(())
    }

    /// An answer leaves for the client.
    pub fn reply(&mut self, server: usize, attempt: usize, reply: Reply, read_at: LogIndex) {
        let open = self.servers[server]
            .process
            .as_mut()
            .is_some_and(|process| process.open_attempts.remove(&attempt));
        if open {
            let delay_us = self.client_delay_us();
            self.after(delay_us, Event::Answer { attempt, reply, read_at });
        }
    }

    /// A client thinks of something to do.
    pub fn think(&mut self, client: usize) {
        let state = &mut self.clients[client];
        if state.wishes == 0 {
            return;
        }
        if state.under_way < state.pipeline {
            state.wishes -= 1;
            let id = state.next_sequence;
            let value = Bytes::from(format!("{client}/{id}"));
            match self.rng.below(100) {
                0..55 => self.wish_to_write(client, value),
                55..100 => self.wish_to_read(client),
                _ => unreachable!("a number below 100"),
            }
        }
        let delay_us = self.rng.range(MILLISECOND..=100 * MILLISECOND);
        self.after(delay_us, Event::Think { client });
    }

    fn any_key(&mut self) -> Bytes {
        Bytes::from_static(self.rng.pick(&KEYS).as_bytes())
    }

    fn some_keys(&mut self) -> Vec<Bytes> {
        (0..self.rng.range(1..=3)).map(|_| self.any_key()).collect()
    }

    fn wish_to_write(&mut self, client: usize, value: Bytes) {
        let (mut previous, key) = (true, self.any_key());
        let op = match self.rng.below(55) {
            0..28 => {
                previous = self.rng.chance(300);
                WriteOp::Put { key, value }
            }
            28..35 => {
                let value = |number| Bytes::from([&value[..], b".", &[b'0' + number]].concat());
                let pairs = self.some_keys().into_iter().zip((0..).map(value)).collect();
                WriteOp::PutAll { pairs }
            }
            35..42 => WriteOp::Del { key },
            42..46 => WriteOp::DelAll { keys: self.some_keys() },
            // Now and then the wrong way round: then nothing is between them.
            46..49 => WriteOp::DelRange { from: key, to: self.any_key() },
            49..54 => WriteOp::Trim { key },
            _ => WriteOp::Mark,
        };
        self.write(client, None, op, previous);
    }

    fn wish_to_read(&mut self, client: usize) {
        let key = self.any_key();
        let state = &self.clients[client];
        let known: Vec<Timestamp> = state.seen.values().copied().chain([state.session]).collect();
        let past = self.rng.pick(&known);
        // Between two versions, too; never past what somebody has applied.
        let past = Timestamp(past.0 - self.rng.below(2) as i64);
        let at = if self.rng.chance(300) && past.0 > 0 { past } else { Timestamp::ZERO };
        match self.rng.below(45) {
            0..32 if at > Timestamp::ZERO => self.read_at(client, key, at),
            0..20 => self.read(client, None, key, false),
            20..32 => self.read(client, None, key, true),
            roll => {
                let of = match self.rng.chance(600) {
                    true => PageOf::Range { from: key, to: self.any_key() },
                    false => PageOf::Keys { keys: self.some_keys() },
                };
                self.list(client, of, at, at == Timestamp::ZERO && roll >= 39)
            }
        };
    }

    /// What took place, for the check against real time: the newest versions that writes changed, and
    /// those that linearizable reads were shown.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for operation in &self.operations {
            let ended_us = operation.ended.as_ref().map(|(at_us, _)| *at_us);
            let began_us = operation.began_us;
            let span = |key: &Bytes, version, write| Span {
                key: key.clone(),
                began_us,
                ended_us,
                version,
                write,
            };
            match &operation.question {
                Question::Write(write) => {
                    let RequestId { client, sequence, .. } = write.request;
                    let Some(version) = self.checker.written(client, sequence) else { continue };
                    let changed = self.checker.changed_by(version);
                    spans.extend(changed.map(|key| span(key, version, true)));
                }
                _ if operation.asked.1 && ended_us.is_some() => {
                    let shown = &operation.versions;
                    spans.extend(shown.iter().map(|(key, version)| span(key, *version, false)));
                }
                _ => {}
            }
        }
        spans
    }

    /// Whether an operation was answered.
    pub fn ended(&self, operation: usize) -> bool {
        self.operations[operation].ended.is_some()
    }

    /// What a client was told in the end.
    pub fn outcome(&self, operation: usize) -> Option<&Outcome> {
        self.operations[operation].ended.as_ref().map(|(_, outcome)| outcome)
    }
}

impl Client {
    fn learn(&mut self, key: &Bytes, timestamp: Timestamp, as_of: Timestamp) {
        let seen = self.seen.entry(key.clone()).or_default();
        *seen = timestamp.max(*seen);
        self.session = self.session.max(as_of);
    }

    /// The key was not there in a state no newer than `as_of`.
    fn miss(&mut self, key: &Bytes, as_of: Timestamp) {
        let absent = self.absent.entry(key.clone()).or_default();
        *absent = as_of.max(*absent);
        self.session = self.session.max(as_of);
    }

    fn witness(&mut self, key: &Bytes, version: Timestamp) {
        let witnessed = self.witnessed.entry(key.clone()).or_default();
        *witnessed = version.max(*witnessed);
    }
}
