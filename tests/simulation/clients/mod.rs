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
use acervo::wire::message::{ErrorCode, GetRequest, Reply, WriteRequest};
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
    /// A read.
    Get(GetRequest),
}

/// What it was told in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write is acknowledged.
    Written(Timestamp),
    /// The read found this.
    Found(Option<Bytes>),
}

/// One operation of a client, however many attempts it takes.
pub struct Operation {
    /// Whose.
    pub client: usize,
    /// What.
    pub question: Question,
    /// When first asked.
    pub began_us: u64,
    /// When answered, and what.
    pub ended: Option<(u64, Outcome)>,
    /// For a read, the version it really saw.
    pub version: Timestamp,
    /// Errors on the way, and when.
    pub errors: Vec<(u64, ErrorCode)>,
    /// The attempt that counts now.
    current: Option<usize>,
    /// The server asked first; the others follow by chance.
    first_server: Option<usize>,
    /// What the client had witnessed of the key when it asked.
    witnessed: Timestamp,
}

/// One request to one server.
pub struct Attempt {
    operation: usize,
    server: usize,
    token: RequestToken,
}

impl Question {
    /// The key it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            Question::Write(write) => write.op.key(),
            Question::Get(get) => &get.key,
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
    pub fn write(&mut self, client: usize, server: Option<usize>, op: WriteOp) -> usize {
        let state = &mut self.clients[client];
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        state.unanswered.insert(sequence);
        let answered_below = *state.unanswered.first().unwrap_or(&sequence);
        let request = RequestId { client: state.id, sequence, answered_below };
        self.begin(client, server, Question::Write(WriteRequest { request, op }))
    }

    /// Begins a PUT of text.
    pub fn put(&mut self, client: usize, server: Option<usize>, key: &str, value: &str) -> usize {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
        self.write(client, server, WriteOp::Put { key, value })
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
        self.begin(
            client,
            server,
            Question::Get(GetRequest { key, timestamp, session, linearizable }),
        )
    }

    fn begin(&mut self, client: usize, server: Option<usize>, question: Question) -> usize {
        let state = &mut self.clients[client];
        state.under_way += 1;
        let witnessed = state.witnessed.get(question.key()).copied().unwrap_or_default();
        self.operations.push(Operation {
            client,
            question,
            began_us: self.now_us,
            ended: None,
            version: Timestamp::ZERO,
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
            Question::Get(get) if get.linearizable => {
                process.owed.insert(token, self.now_us);
                self.input(server, Input::Read { token })
            }
            Question::Get(_) => {
                self.start_get(server, attempt);
                Ok(())
            }
        }
    }

    /// A worker takes up a read.
    pub fn start_get(&mut self, server: usize, attempt: usize) {
        let state = &self.servers[server];
        let Some(process) = &state.process else { return };
        let applied = process.machine.point().timestamp;
        let life = state.life;
        let delay_us = self.rng.range(5..=200);
        self.after(delay_us, Event::Get { server, life, attempt, applied });
    }

    /// The worker answers it.
    pub fn get(&mut self, server: usize, attempt: usize, applied: Timestamp) -> Verdict {
        let operation = &self.operations[self.attempts[attempt].operation];
        let (Question::Get(request), Some(process)) =
            (&operation.question, &self.servers[server].process)
        else {
            return Ok(());
        };
        let reply = process.get(request, applied);
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
            let key = Bytes::from(format!("key-{}", self.rng.below(5)));
            match self.rng.below(100) {
                0..45 => {
                    let value = Bytes::from(format!("{client}/{id}"));
                    self.write(client, None, WriteOp::Put { key, value });
                }
                45..55 => {
                    self.write(client, None, WriteOp::Del { key });
                }
                roll => {
                    self.read(client, None, key, roll >= 80);
                }
            }
        }
        let delay_us = self.rng.range(MILLISECOND..=100 * MILLISECOND);
        self.after(delay_us, Event::Think { client });
    }

    /// What took place, for the check against real time: writes that were applied and linearizable
    /// reads that were answered.
    pub fn spans(&self) -> Vec<Span> {
        let span = |operation: &Operation| {
            let ended_us = operation.ended.as_ref().map(|(at_us, _)| *at_us);
            let (version, write) = match &operation.question {
                Question::Write(write) => {
                    let request = write.request;
                    (self.checker.written(request.client, request.sequence)?.timestamp, true)
                }
                Question::Get(get) if get.linearizable && ended_us.is_some() => {
                    (operation.version, false)
                }
                Question::Get(_) => return None,
            };
            let key = operation.question.key().clone();
            Some(Span { key, began_us: operation.began_us, ended_us, version, write })
        };
        self.operations.iter().filter_map(span).collect()
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

    fn witness(&mut self, key: &Bytes, version: Timestamp) {
        let witnessed = self.witnessed.entry(key.clone()).or_default();
        *witnessed = version.max(*witnessed);
    }
}
