//! The store's protocol, as the clients of a load speak it: one request at a time, never repeated.

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Answer, Protocol};
use crate::limits::{VALUE_BYTES_MAX, client_frame_bytes_max};
use crate::model::{ClientId, PageOf, Put, RequestId, Timestamp};
use crate::wire::codec;
use crate::wire::message::{
    ErrorCode, GetRequest, Hello, HelloRole, Message, PROTOCOL_VERSION, PageRequest, PageView,
    ReadAt, Reply, Request, WriteRequest,
};

/// Keys of one page in a bench of ranges.
const BENCH_PAGE_ROWS: u32 = 1_000;

/// The kinds of requests that a load can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Write a key drawn uniformly.
    Put,
    /// Write one key after the other, so that each has been written after as many requests as there
    /// are keys.
    Fill,
    /// Read a key drawn uniformly, without a minimum timestamp: what is measured is the server, and
    /// not how often a client meets one that lags.
    Get,
    /// Read the newest committed value of a key drawn uniformly.
    GetLinearizable,
    /// Read a page of [`BENCH_PAGE_ROWS`] keys that begins at a key drawn uniformly.
    Range {
        /// Whether the page is to show the newest committed state.
        linearizable: bool,
    },
}

/// The requests of all clients of a load, with sequence numbers and identities of their own.
pub struct StoreProtocol {
    workload: Workload,
    keys: u64,
    next_key: u64,
    value: Bytes,
    /// Each load client is a client of its own to the group.
    first_client: u64,
    /// The last sequence number of each client.
    sequences: Vec<u64>,
    /// The greatest timestamp that a server had applied when it was greeted.
    begun: Timestamp,
}

impl StoreProtocol {
    /// A protocol for `clients` clients that ask for `workload` over `keys` keys (at least one),
    /// with values of `value_bytes`. `random` decides who the clients are to the group: two loads
    /// must not be the same clients.
    pub fn new(
        workload: Workload,
        clients: usize,
        keys: u64,
        value_bytes: usize,
        random: &mut SmallRng,
    ) -> StoreProtocol {
        let letters = (0..value_bytes).map(|_| random.random_range(b'a'..=b'z'));
        StoreProtocol {
            workload,
            keys: keys.max(1),
            next_key: 0,
            value: letters.collect(),
            first_client: random.random(),
            sequences: vec![0; clients],
            begun: Timestamp::ZERO,
        }
    }

    fn key(&mut self, random: &mut SmallRng) -> Bytes {
        let number = match self.workload {
            Workload::Fill => {
                self.next_key = (self.next_key + 1) % self.keys;
                self.next_key
            }
            Workload::Put | Workload::Get | Workload::GetLinearizable => {
                random.random_range(0..self.keys)
            }
            // So that the page is full, if there are as many keys.
            Workload::Range { .. } => {
                let beginnings = self.keys.saturating_sub(u64::from(BENCH_PAGE_ROWS)) + 1;
                random.random_range(0..beginnings)
            }
        };
        name(number)
    }

    fn body(&mut self, client: usize, sequence: u64, random: &mut SmallRng) -> Request {
        let key = self.key(random);
        match self.workload {
            Workload::Put | Workload::Fill => Request::Write(WriteRequest {
                request: RequestId {
                    client: ClientId(self.first_client.wrapping_add(client as u64)),
                    sequence,
                    // One request at a time, never repeated.
                    answered_below: sequence,
                    begun: self.begun,
                },
                op: Put { key, value: self.value.clone(), tells_previous: false }.into(),
            }),
            Workload::Get | Workload::GetLinearizable => Request::Get(GetRequest {
                key,
                read_at: ReadAt::Newest { seen: None },
                session: None,
                linearizable: self.workload == Workload::GetLinearizable,
            }),
            Workload::Range { linearizable } => Request::Page(PageRequest {
                of: PageOf::Range { from: key, to: name(self.keys) },
                view: PageView::First { at: None, session: None, linearizable },
                rows_max: BENCH_PAGE_ROWS,
                keys_only: false,
            }),
        }
    }
}

fn name(number: u64) -> Bytes {
    Bytes::from(format!("bench-{number:08}"))
}

fn encode(message: &Message, out: &mut Vec<u8>) {
    if let Err(error) = codec::encode(message, client_frame_bytes_max(VALUE_BYTES_MAX), out) {
        // Not even the longest key and value are too long for this cap.
        log::error!("a request cannot be sent: {error}");
    }
}

impl Protocol for StoreProtocol {
    fn greeting(&mut self, out: &mut Vec<u8>) -> bool {
        let hello = Hello { protocol: PROTOCOL_VERSION, role: HelloRole::CLIENT };
        encode(&Message::Hello(hello), out);
        true
    }

    fn welcomed(&mut self, frame: &[u8]) -> Result<(), String> {
        match codec::decode(frame) {
            Ok(Message::Welcome(welcome)) => {
                self.begun = self.begun.max(welcome.applied_timestamp);
                Ok(())
            }
            Ok(Message::Refused { reason }) => {
                Err(crate::text::escape(reason.as_bytes()).to_string())
            }
            Ok(_) => Err("it did not answer the greeting".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn request(&mut self, client: usize, random: &mut SmallRng, out: &mut Vec<u8>) {
        self.sequences[client] += 1;
        let id = self.sequences[client];
        let body = self.body(client, id, random);
        encode(&Message::Request { id, body }, out);
    }

    fn answer(&mut self, client: usize, frame: &[u8]) -> Result<Answer, String> {
        let (id, body) = match codec::decode(frame) {
            Ok(Message::Reply { id, body }) => (id, body),
            Ok(Message::Refused { reason }) => {
                return Err(crate::text::escape(reason.as_bytes()).to_string());
            }
            Ok(_) => return Err("it sent something that is not a reply".into()),
            Err(error) => return Err(error.to_string()),
        };
        if id != self.sequences[client] {
            return Err("it answered another question than was asked".into());
        }
        Ok(match body {
            Reply::PageOk { rows, .. } if rows.is_empty() => Answer::Empty,
            Reply::WriteOk(_) | Reply::PageOk { .. } | Reply::StatusOk(_) => Answer::Done,
            Reply::GetOk { found: Some(_), .. } => Answer::Done,
            Reply::GetOk { found: None, .. } => Answer::Empty,
            Reply::TryOtherServerOrLater { .. } => Answer::Failed("TRY_OTHER_SERVER_OR_LATER"),
            Reply::Error(error) => Answer::Failed(code(error.code)),
        })
    }
}

/// The name of a code, as it is sent.
fn code(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::NoMajority => "NO_MAJORITY",
        ErrorCode::Unconfirmed => "UNCONFIRMED",
        ErrorCode::Busy { .. } => "BUSY",
        ErrorCode::ShuttingDown => "SHUTTING_DOWN",
        ErrorCode::Invalid => "INVALID",
        ErrorCode::StaleRequest => "STALE_REQUEST",
        ErrorCode::UnknownSession { .. } => "UNKNOWN_SESSION",
        ErrorCode::Expired => "EXPIRED",
        ErrorCode::DiskFull => "DISK_FULL",
        ErrorCode::Internal => "INTERNAL",
    }
}
