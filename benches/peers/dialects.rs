//! What the clients of Redis, ZooKeeper and etcd say: each system's own protocol over a raw socket,
//! no more of it than the load needs. (Acervo's is the library's.)

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use acervo::bench::{Answer, OpKind};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::Outcome;
use crate::driver::{Dialect, Heard, frame};

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

/// etcd (gRPC: HTTP/2 without TLS). Each call is a stream of its own; a call that brings no message
/// has failed, so that the trailers with its status need not be decompressed.
pub struct Etcd {
    draw: Draw,
    address: SocketAddr,
    lines: Vec<EtcdLine>,
}

#[derive(Default)]
struct EtcdLine {
    streams: u32,
    calls: HashMap<u32, EtcdCall>,
    /// Bytes of messages since the server was last told that it may send more.
    received: u32,
}

struct EtcdCall {
    slot: usize,
    /// A message has come; whether it has a key.
    message: Option<bool>,
}

const FRAME_DATA: u8 = 0;
const FRAME_HEADERS: u8 = 1;
const FRAME_RESET: u8 = 3;
const FRAME_SETTINGS: u8 = 4;
const FRAME_PING: u8 = 6;
const FRAME_GOAWAY: u8 = 7;
const FRAME_WINDOW: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// The bytes that the server may send on a connection before it is told that it may send more.
const WINDOW_BYTES: u32 = 1 << 30;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Etcd {
    /// `address` is what the calls name as their authority.
    pub fn new(draw: Draw, clients: usize, address: SocketAddr) -> Etcd {
        // A stream begins with a window of 64 KiB, and nothing here waits for more of it.
        assert!(draw.value.len() <= 16 * 1024, "etcd is asked for short values");
        Etcd { draw, address, lines: (0..clients).map(|_| EtcdLine::default()).collect() }
    }

    fn message(&mut self, random: &mut SmallRng) -> Vec<u8> {
        let key = self.draw.key(random);
        let mut message = Vec::with_capacity(self.draw.value.len() + 32);
        protobuf_bytes(1, key.as_bytes(), &mut message);
        match self.draw.op {
            PeerOp::Fill | PeerOp::Put => protobuf_bytes(2, &self.draw.value, &mut message),
            // `serializable`: from this server's own state.
            PeerOp::Get => message.extend_from_slice(&[7 << 3, 1]),
            PeerOp::GetLinearizable => {}
        }
        message
    }
}

fn protobuf_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

/// Whether the fields of a message have this one, which has bytes.
fn has_field(mut message: &[u8], wanted: u64) -> bool {
    fn varint(message: &mut &[u8]) -> Option<u64> {
        let length = message.iter().position(|byte| byte & 0x80 == 0)? + 1;
        let (digits, rest) = message.split_at(length);
        *message = rest;
        Some(digits.iter().rev().fold(0, |number, digit| number << 7 | u64::from(digit & 0x7f)))
    }
    while let Some(tag) = varint(&mut message) {
        if tag == wanted << 3 | 2 {
            return true;
        }
        let Some(number) = varint(&mut message) else { return false };
        if tag & 7 == 2 {
            // Fields of bytes are skipped, those of numbers have been read.
            message = message.get(number as usize..).unwrap_or_default();
        }
    }
    false
}

fn http2_frame(kind: u8, flags: u8, stream: u32, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(body);
}

/// A header with a name of the static table, kept in the dynamic one.
fn kept_header(name: u8, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x40 | name, value.len() as u8]);
    out.extend_from_slice(value);
}

impl Dialect for Etcd {
    fn greeting(&mut self, client: usize, out: &mut Vec<u8>) -> bool {
        self.lines[client] = EtcdLine::default();
        out.extend_from_slice(PREFACE);
        // No compression with a memory (1) and no pushes (2): what comes need not be decompressed.
        http2_frame(FRAME_SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], out);
        http2_frame(FRAME_WINDOW, 0, 0, &(WINDOW_BYTES - 65_535).to_be_bytes(), out);
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
        let path: &[u8] = match self.draw.writes() {
            true => b"/etcdserverpb.KV/Put",
            false => b"/etcdserverpb.KV/Range",
        };
        let line = &mut self.lines[client];
        let stream = line.streams * 2 + 1;
        // Method POST and scheme http are in the static table.
        let mut headers = vec![0x83, 0x86];
        if line.streams == 0 {
            kept_header(4, path, &mut headers);
            kept_header(1, self.address.to_string().as_bytes(), &mut headers);
            kept_header(31, b"application/grpc", &mut headers);
            headers.extend_from_slice(b"\x40\x02te\x08trailers");
        } else {
            // The same four, from the dynamic table.
            headers.extend_from_slice(&[0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
        }
        line.streams += 1;
        http2_frame(FRAME_HEADERS, END_HEADERS, stream, &headers, out);
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(&message);
        http2_frame(FRAME_DATA, END_STREAM, stream, &body, out);
        line.calls.insert(stream, EtcdCall { slot, message: None });
    }

    fn heard(
        &mut self,
        client: usize,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Outcome<Option<(usize, Heard)>> {
        let Some((head, rest)) = bytes.split_first_chunk::<9>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let line = &mut self.lines[client];
        let mut is_over = false;
        match kind {
            FRAME_DATA => {
                line.received += length as u32;
                if line.received > WINDOW_BYTES / 2 {
                    http2_frame(FRAME_WINDOW, 0, 0, &line.received.to_be_bytes(), out);
                    line.received = 0;
                }
                if let Some(call) = line.calls.get_mut(&stream)
                    && call.message.is_none()
                    && length >= 5
                {
                    // After the mark and the length of the message; `kvs` is field 2.
                    call.message = Some(has_field(&body[5..], 2));
                }
                is_over = flags & END_STREAM != 0;
            }
            FRAME_HEADERS => is_over = flags & END_STREAM != 0,
            FRAME_RESET => is_over = true,
            FRAME_SETTINGS if flags & ACK == 0 => http2_frame(FRAME_SETTINGS, ACK, 0, &[], out),
            FRAME_PING if flags & ACK == 0 => http2_frame(FRAME_PING, ACK, 0, body, out),
            FRAME_GOAWAY => return Err("etcd ends the connection".into()),
            _ => {}
        }
        let over = if is_over { line.calls.remove(&stream) } else { None };
        let heard = match over {
            Some(EtcdCall { slot, message }) => {
                let answer = match message {
                    None => Answer::Failed("GRPC"),
                    Some(_) if self.draw.writes() => WRITTEN,
                    Some(is_found) => self.draw.read(is_found),
                };
                Heard::Answer(slot, answer)
            }
            None => Heard::Nothing,
        };
        Ok(Some((9 + length, heard)))
    }
}
