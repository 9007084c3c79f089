//! gRPC over HTTP/2 without TLS, as clients of etcd speak it over a raw socket: no more of it than
//! the loads need, and of the messages within only what they look at.
//!
//! Each call is a stream of its own. Nothing that comes is decompressed, since headers tell nothing
//! that is wanted: a call that brings no message has failed.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::Outcome;

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
/// The bytes that the server may send on a connection before it is told that it may send more, and
/// on each call in all.
const WINDOW_BYTES: u32 = 1 << 30;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A message has a byte that says whether it is compressed, and its length, before it.
const MESSAGE_HEAD_BYTES: usize = 5;

/// One connection, all of whose calls are of one method.
pub struct GrpcLine {
    path: &'static str,
    authority: String,
    streams: u32,
    calls: HashMap<u32, GrpcCall>,
    /// Bytes of messages since the server was last told that it may send more.
    received: u32,
}

struct GrpcCall {
    slot: usize,
    /// A message that has not come whole yet, with its head.
    partial: Vec<u8>,
}

impl GrpcLine {
    /// `address` is what the calls name as their authority.
    pub fn new(path: &'static str, address: SocketAddr) -> GrpcLine {
        let authority = address.to_string();
        GrpcLine { path, authority, streams: 0, calls: HashMap::new(), received: 0 }
    }

    /// Appends what opens a connection.
    pub fn greeting(&mut self, out: &mut Vec<u8>) {
        (self.streams, self.received) = (0, 0);
        self.calls.clear();
        out.extend_from_slice(PREFACE);
        // No compression with a memory (1) and no pushes (2): what comes need not be decompressed.
        // A stream begins with all the room that it will ever have (4).
        let mut settings = vec![0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 4];
        settings.extend_from_slice(&WINDOW_BYTES.to_be_bytes());
        http2_frame(FRAME_SETTINGS, 0, 0, &settings, out);
        http2_frame(FRAME_WINDOW, 0, 0, &(WINDOW_BYTES - 65_535).to_be_bytes(), out);
    }

    /// Appends a call with one message. `is_whole`: no other message of it will follow.
    pub fn call(&mut self, slot: usize, message: &[u8], is_whole: bool, out: &mut Vec<u8>) {
        let stream = self.streams * 2 + 1;
        // Method POST and scheme http are in the static table.
        let mut headers = vec![0x83, 0x86];
        if self.streams == 0 {
            kept_header(4, self.path.as_bytes(), &mut headers);
            kept_header(1, self.authority.as_bytes(), &mut headers);
            kept_header(31, b"application/grpc", &mut headers);
            headers.extend_from_slice(b"\x40\x02te\x08trailers");
        } else {
            // The same four, from the dynamic table.
            headers.extend_from_slice(&[0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
        }
        self.streams += 1;
        http2_frame(FRAME_HEADERS, END_HEADERS, stream, &headers, out);
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(message);
        http2_frame(FRAME_DATA, if is_whole { END_STREAM } else { 0 }, stream, &body, out);
        self.calls.insert(stream, GrpcCall { slot, partial: Vec::new() });
    }

    /// Takes one frame from the front of `bytes`, and gives `message` each message that is whole
    /// with it, and the slot of its call. The bytes of the frame, and the slot of the call that has
    /// ended with it; `None` if the frame is not all there. What must be said to it goes to `out`.
    pub fn heard(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        message: &mut dyn FnMut(usize, &[u8]) -> Outcome<()>,
    ) -> Outcome<Option<(usize, Option<usize>)>> {
        let Some((head, rest)) = bytes.split_first_chunk::<9>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let mut is_over = false;
        match kind {
            FRAME_DATA => {
                self.received += length as u32;
                if self.received > WINDOW_BYTES / 2 {
                    http2_frame(FRAME_WINDOW, 0, 0, &self.received.to_be_bytes(), out);
                    self.received = 0;
                }
                if let Some(call) = self.calls.get_mut(&stream) {
                    call.take(body, message)?;
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
        let over = if is_over { self.calls.remove(&stream) } else { None };
        Ok(Some((9 + length, over.map(|call| call.slot))))
    }
}

impl GrpcCall {
    fn take(
        &mut self,
        body: &[u8],
        message: &mut dyn FnMut(usize, &[u8]) -> Outcome<()>,
    ) -> Outcome<()> {
        // What comes whole, as nearly everything does, is not copied.
        let is_copied = !self.partial.is_empty();
        if is_copied {
            self.partial.extend_from_slice(body);
        }
        let mut left = if is_copied { &self.partial[..] } else { body };
        while let Some((head, rest)) = left.split_first_chunk::<MESSAGE_HEAD_BYTES>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let Some(whole) = rest.get(..length) else { break };
            message(self.slot, whole)?;
            left = &rest[length..];
        }
        let taken = if is_copied { self.partial.len() } else { body.len() } - left.len();
        match is_copied {
            true => drop(self.partial.drain(..taken)),
            false => self.partial.extend_from_slice(&body[taken..]),
        }
        Ok(())
    }
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

/// Appends a field of a protobuf message that is bytes, or a message itself.
pub fn protobuf_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a field of a protobuf message that is a number.
pub fn protobuf_number(field: u8, number: u64, out: &mut Vec<u8>) {
    out.push(field << 3);
    varint(number, out);
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// What a field of a protobuf message holds.
#[derive(Clone, Copy, Debug)]
pub enum ProtobufField<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message with their numbers, as far as it can be understood.
pub fn protobuf_fields(mut message: &[u8]) -> impl Iterator<Item = (u64, ProtobufField<'_>)> {
    fn take_varint(message: &mut &[u8]) -> Option<u64> {
        let length = message.iter().position(|byte| byte & 0x80 == 0)? + 1;
        let (digits, rest) = message.split_at(length);
        *message = rest;
        Some(digits.iter().rev().fold(0, |number, digit| number << 7 | u64::from(digit & 0x7f)))
    }
    std::iter::from_fn(move || {
        let tag = take_varint(&mut message)?;
        let number = take_varint(&mut message)?;
        if tag & 7 != 2 {
            return Some((tag >> 3, ProtobufField::Number(number)));
        }
        let (bytes, rest) = message.split_at_checked(number as usize)?;
        message = rest;
        Some((tag >> 3, ProtobufField::Bytes(bytes)))
    })
}

/// The first field of this number that is bytes.
pub fn bytes_of(message: &[u8], wanted: u64) -> Option<&[u8]> {
    protobuf_fields(message).find_map(|(field, found)| match found {
        ProtobufField::Bytes(bytes) if field == wanted => Some(bytes),
        _ => None,
    })
}

/// The first field of this number that is a number; 0 where there is none, as protobuf has it.
pub fn number_of(message: &[u8], wanted: u64) -> u64 {
    let found = protobuf_fields(message).find_map(|(field, found)| match found {
        ProtobufField::Number(number) if field == wanted => Some(number),
        _ => None,
    });
    found.unwrap_or(0)
}
