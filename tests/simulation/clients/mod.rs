//! Clients that keep the promises of SPEC A3 and A4 from their side: several requests under way,
//! retries elsewhere under the same identity, timestamps remembered.
//!
//! Beside what a real client knows, each remembers what it truly witnessed, so that every answer is
//! checked when it arrives.

mod answers;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use acervo::model::{
    ClientId, EncodedWrite, LogIndex, OpResult, Operation as _, PageOf, Put, ReadView, RequestId,
    Row, Timestamp, TxnAnswer, WriteOp,
};
use acervo::node::not_to_be_read;
use acervo::node::{Input, ReadCondition, RequestToken};
use acervo::server::get::{ReadRequest, answer_from_log, answer_get, answer_page, answer_txn};
use acervo::wire::message::{
    ErrorCode, GetRequest, PageRequest, PageView, ReadAt, Reply, TxnRequest, WriteRequest,
};
use bytes::Bytes;

use crate::checker::{Verdict, ensure};
use crate::linearizability::Span;
use crate::model::named_keys;
use crate::server::node_id;
use crate::world::{Event, MILLISECOND, World};

/// How a client keeps from reading backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The greatest timestamp of all keys, as the library does.
    Session,
    /// A timestamp a key, as the console does.
    PerKey,
}

pub struct Client {
    pub id: ClientId,
    pub memory: Memory,
    /// How many operations it may still begin by itself.
    pub wishes: usize,
    /// How many it keeps under way.
    pub pipeline: usize,
    /// How many are under way.
    pub under_way: usize,
    /// How long it waits for one server.
    pub patience_us: u64,
    /// What a server said that greeted it, with which its identity begins.
    begun: Option<Timestamp>,
    /// Writes it has thought of, under any identity.
    writes_begun: u64,
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
    Write(WriteRequest),
    Get(GetRequest),
    /// A page of a longer read.
    Page(PageRequest),
    /// A transaction that only reads.
    Txn(TxnRequest),
}

/// A longer read, page by page, each from whichever server.
#[derive(Clone, Debug)]
pub struct Longer {
    /// The whole of it.
    of: PageOf,
    /// As its first page said.
    shows: Option<ReadView>,
    /// What the pages so far had.
    rows: Vec<Row>,
}

/// What it was told in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write is acknowledged.
    Written(Timestamp),
    /// The read found this.
    Found(Option<Bytes>),
    /// The page had so many rows.
    Paged(usize),
    /// The transaction that only reads has read this state.
    Transacted(Timestamp),
    /// It was refused for good: as invalid, as of a version still to come, or as one that is gone.
    Refused(ErrorCode),
}

/// One operation of a client, however many attempts it takes.
pub struct Operation {
    pub client: usize,
    pub question: Question,
    pub began_us: u64,
    /// When answered, and what.
    pub ended: Option<(u64, Outcome)>,
    /// For a read of the newest state, the versions it really saw, deletions included.
    pub versions: Vec<(Bytes, Timestamp)>,
    /// What a transaction that only reads was answered.
    read_txn: Option<TxnAnswer>,
    /// How often it was sent under its identity, if it is a write.
    sent: usize,
    /// It was sent under another identity before.
    renewed: bool,
    /// Errors on the way, and when.
    pub errors: Vec<(u64, ErrorCode)>,
    /// The attempt that counts now.
    current: Option<usize>,
    /// How many attempts there were.
    asked: usize,
    /// The server asked first; the others follow by chance.
    first_server: Option<usize>,
    /// What the client had witnessed of each key when it asked.
    witnessed: BTreeMap<Bytes, Timestamp>,
    /// For a page, what it is a page of.
    longer: Option<Longer>,
}

/// The address that a client writes from: each has a port of its own, and three of them take turns
/// as the origins of what they write.
fn address_of(client: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1 + (client % 3) as u8], 40_000 + client as u16))
}

/// One request to one server.
pub struct Attempt {
    operation: usize,
    server: usize,
    token: RequestToken,
}

impl Question {
    /// The read, if it is one.
    fn read(&self) -> Option<ReadRequest> {
        match self {
            Question::Write(_) => None,
            Question::Get(get) => Some(ReadRequest::Get(get.clone())),
            Question::Page(page) => Some(ReadRequest::Page(page.clone())),
            Question::Txn(txn) => Some(ReadRequest::Txn(txn.clone())),
        }
    }

    /// Whether it names a key that cannot exist, or breaks another rule.
    fn is_invalid(&self) -> bool {
        match self {
            Question::Write(WriteRequest { op, .. }) => {
                named_keys(op).iter().any(Bytes::is_empty) || op.check().is_err()
            }
            read => read.read().is_some_and(|read| read.check().is_err()),
        }
    }
}

impl World {
    pub fn add_client(&mut self, memory: Memory, pipeline: usize, patience_us: u64) -> usize {
        self.clients.push(Client {
            id: ClientId(self.rng.next_u64()),
            memory,
            wishes: 0,
            pipeline,
            under_way: 0,
            patience_us,
            begun: None,
            writes_begun: 0,
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
    pub fn write(&mut self, client: usize, server: Option<usize>, op: WriteOp) -> usize {
        let state = &mut self.clients[client];
        state.writes_begun += 1;
        // Its number is drawn when it is sent.
        let begun = Timestamp::ZERO;
        let request = RequestId { client: state.id, sequence: 0, answered_below: 0, begun };
        self.begin(client, server, Question::Write(WriteRequest { request, op }))
    }

    /// Begins a PUT of text.
    pub fn put(&mut self, client: usize, server: Option<usize>, key: &str, value: &str) -> usize {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
        self.write(client, server, WriteOp::Put(Put { key, value, tells_previous: false }))
    }

    pub fn read(
        &mut self,
        client: usize,
        server: Option<usize>,
        key: Bytes,
        linearizable: bool,
    ) -> usize {
        let state = &self.clients[client];
        let read_at = ReadAt::Newest { seen: state.seen.get(&key).copied() };
        let session = match state.memory {
            Memory::Session => Some(state.session),
            Memory::PerKey => state.absent.get(&key).copied(),
        };
        let facts = self.rng.chance(500);
        let get = GetRequest { key, read_at, session, linearizable, facts };
        self.begin(client, server, Question::Get(get))
    }

    fn begin(&mut self, client: usize, server: Option<usize>, question: Question) -> usize {
        let operation = self.plan(client, server, question);
        self.send_attempt(operation);
        operation
    }

    /// An operation that is still to be asked.
    fn plan(&mut self, client: usize, server: Option<usize>, question: Question) -> usize {
        let state = &mut self.clients[client];
        state.under_way += 1;
        let witnessed = state.witnessed.clone();
        self.operations.push(Operation {
            client,
            question,
            began_us: self.now_us,
            ended: None,
            versions: Vec::new(),
            read_txn: None,
            sent: 0,
            renewed: false,
            errors: Vec::new(),
            current: None,
            asked: 0,
            first_server: server,
            witnessed,
            longer: None,
        });
        self.operations.len() - 1
    }

    /// Asks a server: the first one as told, then any other than the last (if there is another).
    pub fn send_attempt(&mut self, operation: usize) {
        let asked = &self.operations[operation];
        if asked.ended.is_some() {
            return;
        }
        let (client, current, first_server) = (asked.client, asked.current, asked.first_server);
        if !self.is_numbered(operation) {
            self.after(5 * MILLISECOND, Event::Retry { operation });
            return;
        }
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
        self.operations[operation].asked += 1;
        let delay_us = self.client_delay_us();
        self.after(delay_us, Event::Arrive { attempt });
        let patience_us = self.clients[client].patience_us;
        self.after(patience_us, Event::Abandon { attempt });
    }

    /// Numbers a write that is sent for the first time. False when it has to wait, since no server
    /// has greeted its client.
    fn is_numbered(&mut self, operation: usize) -> bool {
        let asked = &mut self.operations[operation];
        let client = asked.client;
        let Question::Write(write) = &mut asked.question else { return true };
        if write.request.sequence > 0 {
            asked.sent += 1;
            return true;
        }
        // Another process goes on.
        if self.setup.short_sessions && self.rng.chance(20) {
            self.begin_anew(client, self.clients[client].id, None);
        }
        let Some(begun) = self.clients[client].begun.or_else(|| self.greeted()) else {
            return false;
        };
        let state = &mut self.clients[client];
        state.begun = Some(begun);
        let asked = &mut self.operations[operation];
        let Question::Write(write) = &mut asked.question else { return true };
        asked.sent += 1;
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        state.unanswered.insert(sequence);
        let answered_below = *state.unanswered.first().unwrap_or(&sequence);
        write.request = RequestId { client: state.id, sequence, answered_below, begun };
        true
    }

    /// Some server, which may lag, says how far it has come.
    fn greeted(&mut self) -> Option<Timestamp> {
        let server = self.rng.index(self.servers.len());
        let process = self.servers[server].process.as_ref()?;
        Some(process.node.applied_point().timestamp)
    }

    /// The servers do not know this client: it is another one from now on.
    fn begin_anew(&mut self, client: usize, id: ClientId, begun: Option<Timestamp>) {
        let fresh = ClientId(self.rng.next_u64());
        let state = &mut self.clients[client];
        if state.id == id {
            state.id = fresh;
            (state.begun, state.next_sequence) = (begun, 1);
            state.unanswered.clear();
        }
    }

    /// A write under this identity is over.
    fn wrote(&mut self, client: usize, request: RequestId) {
        let state = &mut self.clients[client];
        if state.id == request.client {
            state.unanswered.remove(&request.sequence);
        }
    }

    /// A copy of a write that was answered stays behind in the network.
    fn leave_copy(&mut self, client: usize, write: &WriteRequest) {
        let often = self.setup.late_copies * if write.request.sequence == 1 { 3 } else { 1 };
        if often > 0 && self.rng.chance(often) {
            let delay_us = self.rng.pick(&[MILLISECOND, 100 * MILLISECOND, 5000 * MILLISECOND]);
            let delay_us = self.rng.range(1..=delay_us);
            self.after(delay_us, Event::LateCopy { client, write: write.clone() });
        }
    }

    /// It arrives. Nobody waits for its answer.
    pub fn late_copy(&mut self, client: usize, write: WriteRequest) -> Verdict {
        let server = self.rng.index(self.servers.len());
        let copy = u64::MAX - self.copies;
        self.copies += 1;
        let is_paused = self.servers[server].paused_until_us > self.now_us;
        let process = self.servers[server].process.as_mut().filter(|_| !is_paused);
        let Some(process) = process else { return Ok(()) };
        let token = RequestToken { connection: u64::MAX, request: copy };
        process.owed.insert(token, self.now_us);
        let address = address_of(client);
        let WriteRequest { request, op } = write;
        let write = EncodedWrite::new(request, op);
        self.input(server, Input::Write { token, client: address, write })
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
                let address = address_of(client);
                let WriteRequest { request, op } = write;
                let write = EncodedWrite::new(request, op);
                self.input(server, Input::Write { token, client: address, write })
            }
            Question::Get(_) | Question::Page(_) | Question::Txn(_) => {
                let Some(read) = question.read() else { return Ok(()) };
                if let Err(refusal) = read.check() {
                    self.reply(server, attempt, Reply::Error(refusal), 0);
                } else if let Some(distrust) = process.node.distrust() {
                    self.reply(server, attempt, not_to_be_read(distrust), 0);
                } else if let Some((index, answered)) = answer_from_log(&process.node, &read) {
                    self.reply(server, attempt, answered.reply, index);
                } else {
                    let soon = read.wanted().filter(|wanted| process.node.reaches_soon(*wanted));
                    let condition = match (read.is_linearizable(), soon) {
                        (true, _) => ReadCondition::Linearizable,
                        (false, Some(wanted)) => ReadCondition::Applied(wanted),
                        (false, None) => return self.start_get(server, attempt),
                    };
                    process.owed.insert(token, self.now_us);
                    self.input(server, Input::Read { token, condition })?;
                }
                Ok(())
            }
        }
    }

    /// A worker takes up a read.
    pub fn start_get(&mut self, server: usize, attempt: usize) -> Verdict {
        let state = &self.servers[server];
        let distrust = state.process.as_ref().and_then(|process| process.node.distrust());
        ensure!(
            distrust.is_none() && !state.refuted,
            "{} answers a read from a state that is not to be read: {distrust:?}",
            node_id(server)
        );
        let life = self.servers[server].life;
        let delay_us = self.rng.range(5..=200);
        self.after(delay_us, Event::Get { server, life, attempt });
        Ok(())
    }

    /// The worker answers it.
    pub fn get(&mut self, server: usize, attempt: usize) -> Verdict {
        let operation = &self.operations[self.attempts[attempt].operation];
        let Some(process) = &self.servers[server].process else { return Ok(()) };
        if let Some(distrust) = process.node.distrust() {
            self.reply(server, attempt, not_to_be_read(distrust), 0);
            return Ok(());
        }
        let store = process.machine.store();
        let answered = match &operation.question {
            Question::Get(get) => answer_get(&store, get),
            Question::Page(page) => answer_page(&store, page, self.setup.page_limits),
            Question::Txn(txn) => answer_txn(&store, txn, usize::MAX),
            Question::Write(_) => return Ok(()),
        };
        let read_at = process.machine.point().index;
        self.reply(server, attempt, answered.reply, read_at);
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

    /// What took place, for the check against real time: writes that were applied and linearizable
    /// reads that were answered, once for each of their keys.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        // Nobody waits for the end of a lease.
        for (name, keys, version) in &self.checker.model.lease_ends {
            let (began_us, ended_us) = (self.checker.leases.over_us(*name), None);
            let (version, write) = (*version, true);
            for key in keys {
                spans.push(Span { key: Some(key.clone()), began_us, ended_us, version, write });
            }
        }
        for operation in &self.operations {
            let began_us = operation.began_us;
            // What was refused may have taken effect before, and a copy of it may yet.
            let ended = operation.ended.as_ref();
            let ended = ended.filter(|(_, outcome)| !matches!(outcome, Outcome::Refused(_)));
            let ended_us = ended.map(|(at_us, _)| *at_us);
            let mut span = |key: Option<&Bytes>, version: Timestamp, write: bool| {
                spans.push(Span { key: key.cloned(), began_us, ended_us, version, write });
            };
            match &operation.question {
                Question::Write(write) => {
                    let RequestId { client, sequence, .. } = write.request;
                    let Some(written) = self.checker.written(client, sequence) else { continue };
                    written.keys.iter().for_each(|key| span(Some(key), written.timestamp, true));
                    // A condition that did not hold is a linearizable read. Who has no answer has
                    // read nothing.
                    if let Some((key, version)) =
                        written.looked_at.as_ref().filter(|_| ended.is_some())
                    {
                        span(Some(key), *version, false);
                    }
                    if written.keys.is_empty() {
                        span(None, written.timestamp, true);
                    }
                }
                Question::Get(GetRequest { linearizable: true, .. })
                | Question::Page(PageRequest {
                    view: PageView::First { linearizable: true, .. },
                    ..
                }) => {
                    let versions = operation.versions.iter();
                    versions.for_each(|(key, version)| span(Some(key), *version, false));
                }
                Question::Txn(TxnRequest { linearizable: true, .. }) => {
                    let versions = operation.versions.iter();
                    versions.for_each(|(key, version)| span(Some(key), *version, false));
                    if let Some((_, Outcome::Transacted(as_of))) = ended {
                        span(None, *as_of, false);
                    }
                }
                Question::Get(_) | Question::Page(_) | Question::Txn(_) => {}
            }
        }
        spans
    }

    /// What a write has come to that was answered: its version, and its result.
    pub fn came_to(&self, operation: usize) -> Option<(Timestamp, OpResult)> {
        let operation = &self.operations[operation];
        let (Question::Write(write), Some((_, Outcome::Written(_)))) =
            (&operation.question, &operation.ended)
        else {
            return None;
        };
        let RequestId { client, sequence, .. } = write.request;
        let written = self.checker.written(client, sequence)?;
        Some((written.timestamp, written.result))
    }

    /// The answer to a transaction that only reads.
    pub fn txn_answer(&self, operation: usize) -> TxnAnswer {
        match &self.operations[operation].read_txn {
            Some(answer) => answer.clone(),
            None => panic!("operation {operation} is no transaction that has read"),
        }
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

    fn saw_nothing(&mut self, key: &Bytes, as_of: Timestamp) {
        let absent = self.absent.entry(key.clone()).or_default();
        *absent = as_of.max(*absent);
    }

    fn witness(&mut self, key: &Bytes, version: Timestamp) {
        let witnessed = self.witnessed.entry(key.clone()).or_default();
        *witnessed = version.max(*witnessed);
    }
}
