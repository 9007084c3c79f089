//! What the clients of Redis, ZooKeeper and etcd say: each system's own protocol over a raw socket,
//! no more of it than the load needs. (Acervo's is the library's.)

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use acervo::bench::{Answer, OpKind};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::Outcome;
use crate::driver::{Dialect, Heard, frame};
use crate::grpc::{GrpcLine, bytes_of, protobuf_bytes, protobuf_number};

/// The requests of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerOp {
    /// Write one key after the other, which was not there before.
    Fill,
    /// Write a key drawn uniformly, durable on every server that the system waits for.
    Put,
    /// Read a key drawn uniformly from the server at hand.
    Get,
    /// Read the newest committed value of one.
    GetLinearizable,
}

/// What all dialects draw alike.
pub struct Draw {
    pub op: PeerOp,
    pub keys: u64,
    pub value: Vec<u8>,
    next: u64,
}

impl Draw {
    pub fn new(op: PeerOp, keys: u64, value_bytes: usize) -> Draw {
        let value = (0..value_bytes).map(|at| b'a' + (at * 7 % 26) as u8).collect();
        Draw { op, keys, value, next: 0 }
    }

    fn writes(&self) -> bool {
        matches!(self.op, PeerOp::Fill | PeerOp::Put)
    }

    fn key(&mut self, random: &mut SmallRng) -> String {
        let number = match self.op {
            PeerOp::Fill => {
                self.next += 1;
                self.next - 1
            }
            _ => random.random_range(0..self.keys),
        };
        format!("bench-{number:08}")
    }

    /// A read's answer, by whether the key was found.
    fn read(&self, is_found: bool) -> Answer {
        if is_found { Answer::Done(OpKind::Read) } else { Answer::Empty(OpKind::Read) }
    }
}

const WRITTEN: Answer = Answer::Done(OpKind::Update);

/// Redis (RESP2). A write is SET and WAIT for both replicas, together; its answer is the second's.
pub struct Redis {
    draw: Draw,
    /// What each client waits for, in order.
    waiting: Vec<VecDeque<RedisCall>>,
}

#[derive(Clone)]
struct RedisCall {
    slot: usize,
    answers_left: u8,
    has_failed: bool,
}

impl Redis {
    pub fn new(draw: Draw, clients: usize) -> Redis {
        Redis { draw, waiting: vec![VecDeque::new(); clients] }
    }
}

fn resp(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

impl Dialect for Redis {
    fn greeting(&mut self, _client: usize, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn welcomed(&mut self, _: usize, _: &[u8], _: &mut Vec<u8>) -> Outcome<Option<usize>> {
        Ok(Some(0))
    }

    fn request(&mut self, client: usize, slot: usize, random: &mut SmallRng, out: &mut Vec<u8>) {
        let key = self.draw.key(random);
        let answers_left = if self.draw.writes() {
            resp(&[b"SET", key.as_bytes(), &self.draw.value], out);
            resp(&[b"WAIT", b"2", b"5000"], out);
            2
        } else {
            resp(&[b"GET", key.as_bytes()], out);
            1
        };
        self.waiting[client].push_back(RedisCall { slot, answers_left, has_failed: false });
    }

    fn heard(
        &mut self,
        client: usize,
        bytes: &[u8],
        _out: &mut Vec<u8>,
    ) -> Outcome<Option<(usize, Heard)>> {
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let (line, mut taken) = (&bytes[..end], end + 2);
        let number = || -> Outcome<i64> { Ok(std::str::from_utf8(&line[1..])?.parse()?) };
        let Some(call) = self.waiting[client].front_mut() else {
            return Err("Redis answers what nobody asked".into());
        };
        let answer = match line.first() {
            Some(b'+') => None,
            Some(b':') if number()? >= 2 => Some(WRITTEN),
            Some(b':') => Some(Answer::Failed("TOO_FEW_REPLICAS")),
            Some(b'$') => match number()? {
                length @ 0.. => {
                    taken += length as usize + 2;
                    if bytes.len() < taken {
                        return Ok(None);
                    }
                    Some(self.draw.read(true))
                }
                _ => Some(self.draw.read(false)),
            },
            Some(b'-') => Some(Answer::Failed("REFUSED")),
            _ => return Err(format!("Redis says {}", line.escape_ascii()).into()),
        };
        call.answers_left -= 1;
        // A SET that is refused is still followed by the answer to its WAIT.
        call.has_failed |= matches!(answer, Some(Answer::Failed(_)));
        if call.answers_left > 0 {
            return Ok(Some((taken, Heard::Nothing)));
        }
        let answer = answer.filter(|_| !call.has_failed).unwrap_or(Answer::Failed("REFUSED"));
        let slot = call.slot;
        self.waiting[client].pop_front();
        Ok(Some((taken, Heard::Answer(slot, answer))))
    }
}

/// ZooKeeper (jute). A linearizable read is `sync` and `getData`, sent together.
pub struct ZooKeeper {
    draw: Draw,
    /// Slots of a client.
    pipeline: i32,
    /// Requests that each client has sent.
    sent: Vec<i32>,
}

/// Marks the transaction ids of `sync`, whose answers nobody waits for.
const SYNC_XID: i32 = 1 << 30;
/// An error of ZooKeeper: the node is not there.
const NO_NODE: i32 = -101;

impl ZooKeeper {
    pub fn new(draw: Draw, clients: usize, pipeline: usize) -> ZooKeeper {
        ZooKeeper { draw, pipeline: pipeline as i32, sent: vec![0; clients] }
    }
}

fn jute_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn jute_request(xid: i32, operation: i32, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(8 + body.len() as u32).to_be_bytes());
    out.extend_from_slice(&xid.to_be_bytes());
    out.extend_from_slice(&operation.to_be_bytes());
    out.extend_from_slice(body);
}

impl Dialect for ZooKeeper {
    fn greeting(&mut self, _client: usize, out: &mut Vec<u8>) -> bool {
        // Protocol version, last transaction seen, session time-out, session, password, read-only.
        let mut body = Vec::new();
        body.extend_from_slice(&0_i32.to_be_bytes());
        body.extend_from_slice(&0_i64.to_be_bytes());
        body.extend_from_slice(&30_000_i32.to_be_bytes());
        body.extend_from_slice(&0_i64.to_be_bytes());
        jute_bytes(&[0; 16], &mut body);
        body.push(0);
        jute_bytes(&body, out);
        true
    }

    fn welcomed(
        &mut self,
        _client: usize,
        bytes: &[u8],
        _out: &mut Vec<u8>,
    ) -> Outcome<Option<usize>> {
        let Some((frame, taken)) = frame(bytes) else { return Ok(None) };
        match frame.get(4..8) {
            Some(timeout) if timeout != [0; 4] => Ok(Some(taken)),
            _ => Err("ZooKeeper refuses the session".into()),
        }
    }

    fn request(&mut self, client: usize, slot: usize, random: &mut SmallRng, out: &mut Vec<u8>) {
        self.sent[client] += 1;
        let xid = self.sent[client] * self.pipeline + slot as i32;
        assert!(xid < SYNC_XID, "a run is not as long");
        let mut body = Vec::new();
        let path = format!("/{}", self.draw.key(random));
        jute_bytes(path.as_bytes(), &mut body);
        match self.draw.op {
            PeerOp::Fill => {
                jute_bytes(&self.draw.value, &mut body);
                // One entry in the access list: everything, for the world, anyone.
                body.extend_from_slice(&1_i32.to_be_bytes());
                body.extend_from_slice(&31_i32.to_be_bytes());
                jute_bytes(b"world", &mut body);
                jute_bytes(b"anyone", &mut body);
                body.extend_from_slice(&0_i32.to_be_bytes());
                jute_request(xid, 1, &body, out);
            }
            PeerOp::Put => {
                jute_bytes(&self.draw.value, &mut body);
                body.extend_from_slice(&(-1_i32).to_be_bytes());
                jute_request(xid, 5, &body, out);
            }
            PeerOp::Get | PeerOp::GetLinearizable => {
                if self.draw.op == PeerOp::GetLinearizable {
                    jute_request(xid | SYNC_XID, 9, &body, out);
                }
                body.push(0);
                jute_request(xid, 4, &body, out);
            }
        }
    }

    fn heard(
        &mut self,
        _client: usize,
        bytes: &[u8],
        _out: &mut Vec<u8>,
    ) -> Outcome<Option<(usize, Heard)>> {
        let Some((frame, taken)) = frame(bytes) else { return Ok(None) };
        let number = |at: usize| -> Outcome<i32> {
            let bytes = frame.get(at..at + 4).ok_or("ZooKeeper sends a short answer")?;
            Ok(i32::from_be_bytes(bytes.try_into()?))
        };
        let (xid, error) = (number(0)?, number(12)?);
        if xid < 0 || xid & SYNC_XID != 0 {
            return Ok(Some((taken, Heard::Nothing)));
        }
        let answer = match error {
            0 if self.draw.writes() => WRITTEN,
            0 => self.draw.read(true),
            NO_NODE if !self.draw.writes() => self.draw.read(false),
            _ => Answer::Failed("ERROR"),
        };
        let slot = (xid % self.pipeline) as usize;
        Ok(Some((taken, Heard::Answer(slot, answer))))
    }
}

/// etcd (gRPC). Each request is a call of its own.
pub struct Etcd {
    draw: Draw,
    clients: Vec<EtcdClient>,
}

struct EtcdClient {
    line: GrpcLine,
    /// Slots whose call has brought a message; whether it has a key.
    messages: HashMap<usize, bool>,
}

impl Etcd {
    /// `address` is what the calls name as their authority.
    pub fn new(draw: Draw, clients: usize, address: SocketAddr) -> Etcd {
        // A message goes in one frame, and nothing here waits for room on a stream.
        assert!(draw.value.len() <= 15 * 1024, "etcd is asked for short values");
        let path = match draw.writes() {
            true => "/etcdserverpb.KV/Put",
            false => "/etcdserverpb.KV/Range",
        };
        let client = || EtcdClient { line: GrpcLine::new(path, address), messages: HashMap::new() };
        Etcd { draw, clients: (0..clients).map(|_| client()).collect() }
    }

    fn message(&mut self, random: &mut SmallRng) -> Vec<u8> {
        let key = self.draw.key(random);
        let mut message = Vec::with_capacity(self.draw.value.len() + 32);
        protobuf_bytes(1, key.as_bytes(), &mut message);
        match self.draw.op {
            PeerOp::Fill | PeerOp::Put => protobuf_bytes(2, &self.draw.value, &mut message),
            // `serializable`: from this server's own state.
            PeerOp::Get => protobuf_number(7, 1, &mut message),
            PeerOp::GetLinearizable => {}
        }
        message
    }
}

impl Dialect for Etcd {
    fn greeting(&mut self, client: usize, out: &mut Vec<u8>) -> bool {
        self.clients[client].line.greeting(out);
        true
    }

    fn welcomed(
        &mut self,
        client: usize,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Outcome<Option<usize>> {
        Ok(self.heard(client, bytes, out)?.map(|(taken, _)| taken))
    }

    fn request(&mut self, client: usize, slot: usize, random: &mut SmallRng, out: &mut Vec<u8>) {
        let message = self.message(random);
        self.clients[client].line.call(slot, &message, true, out);
    }

    fn heard(
        &mut self,
        client: usize,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Outcome<Option<(usize, Heard)>> {
        let EtcdClient { line, messages } = &mut self.clients[client];
        let heard = line.heard(bytes, out, &mut |slot, message| {
            // The field of keys and values in the answer to a read.
            messages.insert(slot, bytes_of(message, 2).is_some());
            Ok(())
        })?;
        let Some((taken, over)) = heard else { return Ok(None) };
        let heard = over.map(|slot| match self.clients[client].messages.remove(&slot) {
            None => Heard::Answer(slot, Answer::Failed("GRPC")),
            Some(_) if self.draw.writes() => Heard::Answer(slot, WRITTEN),
            Some(is_found) => Heard::Answer(slot, self.draw.read(is_found)),
        });
        Ok(Some((taken, heard.unwrap_or(Heard::Nothing))))
    }
}
