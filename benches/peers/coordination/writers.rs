//! Clients of Acervo and of etcd that write one after the other, each its own writes: who they are,
//! and the frames around what they say.

use std::net::SocketAddr;

use acervo::bench::{Answer, OpKind, Protocol};
use acervo::client::{ClientId, Timestamp};
use acervo::limits::{VALUE_BYTES_MAX, client_frame_bytes_max};
use acervo::model::{RequestId, WriteAnswer, WriteOp};
use acervo::wire::codec;
use acervo::wire::message::{
    ErrorCode, Hello, HelloRole, Message, PROTOCOL_VERSION, Reply, Request, WriteRequest,
};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::Outcome;
use crate::driver::{Dialect, Heard};
use crate::grpc::GrpcLine;

pub const WRITTEN: Answer = Answer::Done(OpKind::Update);

/// What clients of Acervo write.
pub trait AcervoOps {
    /// The next write of a client, whose last one was answered.
    fn op(&mut self, client: usize) -> WriteOp;

    /// Whether its write has taken effect.
    fn learn(&mut self, client: usize, answer: &WriteAnswer) -> Answer;
}

/// The clients of a load of writes, with one under way each.
pub struct AcervoWriters<O> {
    ops: O,
    /// Each client is one of its own to the group.
    first_client: u64,
    /// The sequence number of each client's last write.
    sequences: Vec<u64>,
    /// The greatest timestamp that a server had applied when it was greeted.
    begun: Timestamp,
}

impl<O: AcervoOps> AcervoWriters<O> {
    pub fn new(ops: O, clients: usize) -> AcervoWriters<O> {
        let first_client = rand::rng().random();
        AcervoWriters { ops, first_client, sequences: vec![0; clients], begun: Timestamp::ZERO }
    }
}

/// Appends a message, which is short, as a frame.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    let encoded = codec::encode(message, client_frame_bytes_max(VALUE_BYTES_MAX), out);
    encoded.expect("a short message fits a frame");
}

/// Appends the first frame of a client.
pub fn encode_greeting(out: &mut Vec<u8>) {
    let hello = Hello { protocol: PROTOCOL_VERSION, role: HelloRole::CLIENT };
    encode(&Message::Hello(hello), out);
}

impl<O: AcervoOps> Protocol for AcervoWriters<O> {
    fn greeting(&mut self, out: &mut Vec<u8>) -> bool {
        encode_greeting(out);
        true
    }

    fn welcomed(&mut self, frame: &[u8]) -> Result<(), String> {
        match codec::decode(frame) {
            Ok(Message::Welcome(welcome)) => {
                self.begun = self.begun.max(welcome.applied_timestamp);
                Ok(())
            }
            other => Err(format!("the greeting is answered with {other:?}")),
        }
    }

    fn request(&mut self, client: usize, slot: usize, _: &mut SmallRng, out: &mut Vec<u8>) {
        assert_eq!(slot, 0, "a client writes one after the other");
        let op = self.ops.op(client);
        self.sequences[client] += 1;
        let sequence = self.sequences[client];
        let client = ClientId(self.first_client.wrapping_add(client as u64));
        let request = RequestId { client, sequence, answered_below: sequence, begun: self.begun };
        let body = Request::Write(WriteRequest { request, op });
        encode(&Message::Request { id: sequence, body }, out);
    }

    fn answer(&mut self, client: usize, frame: &[u8]) -> Result<(usize, Answer), String> {
        match codec::decode(frame) {
            Ok(Message::Reply { id, body }) if id == self.sequences[client] => {
                let answer = match body {
                    Reply::WriteOk(answer) => self.ops.learn(client, &answer),
                    Reply::Error(error) => match error.code {
                        ErrorCode::Busy { .. } => Answer::Failed("BUSY"),
                        _ => Answer::Failed("ERROR"),
                    },
                    _ => Answer::Failed("NO_WRITE"),
                };
                Ok((0, answer))
            }
            other => Err(format!("a write is answered with {other:?}")),
        }
    }
}

/// What clients of etcd ask for.
pub trait EtcdCalls {
    /// The method that all of them call.
    fn path(&self) -> &'static str;

    /// The next request of a client, whose last one was answered.
    fn message(&mut self, client: usize) -> Vec<u8>;

    /// Whether its request has taken effect.
    fn learn(&mut self, client: usize, message: &[u8]) -> Answer;
}

/// The same clients as those of [`AcervoWriters`] in etcd's words.
pub struct EtcdWriters<C> {
    calls: C,
    clients: Vec<EtcdWriter>,
}

struct EtcdWriter {
    line: GrpcLine,
    /// What the message of the call under way has come to.
    answer: Option<Answer>,
}

impl<C: EtcdCalls> EtcdWriters<C> {
    pub fn new(calls: C, clients: usize, address: SocketAddr) -> EtcdWriters<C> {
        let path = calls.path();
        let client = || EtcdWriter { line: GrpcLine::new(path, address), answer: None };
        EtcdWriters { calls, clients: (0..clients).map(|_| client()).collect() }
    }
}

impl<C: EtcdCalls> Dialect for EtcdWriters<C> {
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

    fn request(&mut self, client: usize, slot: usize, _: &mut SmallRng, out: &mut Vec<u8>) {
        assert_eq!(slot, 0, "a client asks one after the other");
        let message = self.calls.message(client);
        self.clients[client].line.call(slot, &message, true, out);
    }

    fn heard(
        &mut self,
        client: usize,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Outcome<Option<(usize, Heard)>> {
        let EtcdWriter { line, answer } = &mut self.clients[client];
        let heard = line.heard(bytes, out, &mut |_, message| {
            *answer = Some(self.calls.learn(client, message));
            Ok(())
        })?;
        let Some((taken, over)) = heard else { return Ok(None) };
        let heard = match over {
            Some(slot) => Heard::Answer(slot, answer.take().unwrap_or(Answer::Failed("GRPC"))),
            None => Heard::Nothing,
        };
        Ok(Some((taken, heard)))
    }
}
