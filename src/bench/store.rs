//! The store's protocol, as the clients of a load speak it: no request is ever repeated.

use std::collections::BTreeSet;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::zipfian::KeyChooser;
use super::{Answer, Distribution, Mix, OpKind, Protocol};
use crate::limits::{VALUE_BYTES_MAX, client_frame_bytes_max};
use crate::model::{ClientId, PageOf, Put, RequestId, Timestamp};
use crate::wire::codec;
use crate::wire::message::{
    ErrorCode, GetRequest, Hello, HelloRole, Message, PROTOCOL_VERSION, PageRequest, PageView,
    ReadAt, Reply, Request, WriteRequest,
};

/// Keys of one page in a bench of ranges.
const BENCH_PAGE_ROWS: u32 = 1_000;
/// The most keys of a scan within a mix: YCSB's `maxscanlength` in its workload E.
const SCAN_ROWS_MAX: u32 = 100;
/// A key behind those of all numbers.
const KEYS_END: &[u8] = b"bench-:";

/// What the requests of a load are about.
#[derive(Clone, Copy, Debug)]
pub struct StoreLoad {
    /// The kinds of requests.
    pub mix: Mix,
    /// Whether a majority confirms reads.
    pub linearizable: bool,
    /// How a request's key is drawn.
    pub distribution: Distribution,
    /// Number of keys there are at the beginning, at least one.
    pub keys: u64,
    /// Bytes of a written value.
    pub value_bytes: usize,
}

/// The operation of a slot.
#[derive(Clone, Default)]
struct StoreSlot {
    /// The id of its message, which is no other slot's of this client.
    id: u64,
    kind: Option<OpKind>,
    /// The sequence of its write, while that is under way.
    sequence: Option<u64>,
    /// The key that it inserts.
    inserts: Option<u64>,
    /// The key that it reads, to write it afterwards.
    reads_first: Option<Bytes>,
    /// The key to be written in the second half of its operation, now that it was read.
    second_half: Option<Bytes>,
}

struct StoreClient {
    slots: Vec<StoreSlot>,
    /// Messages that it has sent.
    messages: u64,
    /// The sequence number of its last write.
    sequence: u64,
    /// Sequence numbers of its writes under way.
    writes: BTreeSet<u64>,
}

/// The keys that a load inserts, one after the other.
struct Inserts {
    next: u64,
    /// Those that are under way.
    under_way: BTreeSet<u64>,
}

impl Inserts {
    /// The number of the first key that may not be there yet. (One whose insert has failed counts
    /// as there: it may be.)
    fn settled(&self) -> u64 {
        self.under_way.first().copied().unwrap_or(self.next)
    }
}

/// The requests of all clients of a load, with sequence numbers and identities of their own.
pub struct StoreProtocol {
    load: StoreLoad,
    chooser: KeyChooser,
    next_filled: u64,
    inserts: Inserts,
    value: Bytes,
    /// Each load client is a client of its own to the group.
    first_client: u64,
    clients: Vec<StoreClient>,
    /// The greatest timestamp that a server had applied when it was greeted.
    begun: Timestamp,
}

impl StoreProtocol {
    /// A protocol for `clients` clients that may each have `pipeline` requests under way. `random`
    /// decides who the clients are to the group: two loads must not be the same clients.
    pub fn new(
        load: StoreLoad,
        clients: usize,
        pipeline: usize,
        random: &mut SmallRng,
    ) -> StoreProtocol {
        assert!(load.keys > 0 && pipeline > 0, "{load:?}, {pipeline} deep");
        let letters = (0..load.value_bytes).map(|_| random.random_range(b'a'..=b'z'));
        let client = || StoreClient {
            slots: vec![StoreSlot::default(); pipeline],
            messages: 0,
            sequence: 0,
            writes: BTreeSet::new(),
        };
        StoreProtocol {
            chooser: KeyChooser::new(load.distribution, places(&load)),
            next_filled: 0,
            inserts: Inserts { next: load.keys, under_way: BTreeSet::new() },
            value: letters.collect(),
            first_client: random.random(),
            clients: (0..clients).map(|_| client()).collect(),
            begun: Timestamp::ZERO,
            load,
        }
    }

    /// The key of an operation that inserts none.
    fn draw_key(&mut self, random: &mut SmallRng) -> Bytes {
        if self.load.mix == Mix::Fill {
            self.next_filled = (self.next_filled + 1) % self.load.keys;
            return key_name(self.next_filled);
        }
        // Popular keys would move if zipfian ones were drawn over a number that grows.
        let keys = match self.load.distribution {
            Distribution::Latest => self.inserts.settled(),
            Distribution::Uniform | Distribution::Zipfian => places(&self.load),
        };
        key_name(self.chooser.draw(keys, random))
    }

    fn draw_kind(&self, random: &mut SmallRng) -> OpKind {
        let kinds = self.load.mix.kinds();
        let mut left = if kinds.len() == 1 { 0 } else { random.random_range(0..100) };
        for (kind, percent) in kinds {
            if left < *percent {
                return *kind;
            }
            left -= percent;
        }
        unreachable!("the percentages of {:?} are 100 together", self.load.mix)
    }

    fn write(&mut self, client: usize, slot: usize, key: Bytes) -> Request {
        let begun = self.begun;
        let state = &mut self.clients[client];
        state.sequence += 1;
        let sequence = state.sequence;
        state.writes.insert(sequence);
        state.slots[slot].sequence = Some(sequence);
        Request::Write(WriteRequest {
            request: RequestId {
                client: ClientId(self.first_client.wrapping_add(client as u64)),
                sequence,
                // Never repeated: what has failed is answered, too.
                answered_below: state.writes.first().copied().unwrap_or(sequence),
                begun,
            },
            op: Put { key, value: self.value.clone(), tells_previous: false }.into(),
        })
    }

    fn read(&self, key: Bytes) -> Request {
        Request::Get(GetRequest {
            key,
            read_at: ReadAt::Newest { seen: None },
            session: None,
            linearizable: self.load.linearizable,
            facts: false,
        })
    }

    fn scan(&self, from: Bytes, rows_max: u32) -> Request {
        let linearizable = self.load.linearizable;
        Request::Page(PageRequest {
            of: PageOf::Range { from, to: Bytes::from_static(KEYS_END) },
            view: PageView::First { at: None, session: None, linearizable },
            rows_max,
            keys_only: false,
        })
    }

    fn body(&mut self, client: usize, slot: usize, random: &mut SmallRng) -> Request {
        if let Some(key) = self.clients[client].slots[slot].second_half.take() {
            return self.write(client, slot, key);
        }
        // If that is still under way, its connection was lost.
        self.settle(client, slot);
        let kind = self.draw_kind(random);
        self.clients[client].slots[slot].kind = Some(kind);
        match kind {
            OpKind::Update => {
                let key = self.draw_key(random);
                self.write(client, slot, key)
            }
            OpKind::Insert => {
                let number = self.inserts.next;
                self.inserts.next += 1;
                self.inserts.under_way.insert(number);
                self.clients[client].slots[slot].inserts = Some(number);
                self.write(client, slot, key_name(number))
            }
            OpKind::Read => {
                let key = self.draw_key(random);
                self.read(key)
            }
            OpKind::ReadModifyWrite => {
                let key = self.draw_key(random);
                self.clients[client].slots[slot].reads_first = Some(key.clone());
                self.read(key)
            }
            OpKind::Scan => {
                let from = self.draw_key(random);
                let rows_max = match self.load.mix {
                    Mix::Range => BENCH_PAGE_ROWS,
                    _ => random.random_range(1..=SCAN_ROWS_MAX),
                };
                self.scan(from, rows_max)
            }
        }
    }

    /// Ends the operation of a slot.
    fn settle(&mut self, client: usize, slot: usize) {
        let state = &mut self.clients[client];
        let slot = &mut state.slots[slot];
        slot.reads_first = None;
        if let Some(sequence) = slot.sequence.take() {
            state.writes.remove(&sequence);
        }
        if let Some(number) = slot.inserts.take() {
            self.inserts.under_way.remove(&number);
        }
    }
}

/// Number of keys at which an operation may begin: a page of a range is to be full, if there are as
/// many keys.
fn places(load: &StoreLoad) -> u64 {
    match load.mix {
        Mix::Range => load.keys.saturating_sub(u64::from(BENCH_PAGE_ROWS)) + 1,
        _ => load.keys.max(1),
    }
}

fn key_name(number: u64) -> Bytes {
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

    fn request(&mut self, client: usize, slot: usize, random: &mut SmallRng, out: &mut Vec<u8>) {
        let body = self.body(client, slot, random);
        let state = &mut self.clients[client];
        state.messages += 1;
        let id = state.messages * state.slots.len() as u64 + slot as u64;
        state.slots[slot].id = id;
        encode(&Message::Request { id, body }, out);
    }

    fn answer(&mut self, client: usize, frame: &[u8]) -> Result<(usize, Answer), String> {
        let (id, body) = match codec::decode(frame) {
            Ok(Message::Reply { id, body }) => (id, body),
            Ok(Message::Refused { reason }) => {
                return Err(crate::text::escape(reason.as_bytes()).to_string());
            }
            Ok(_) => return Err("it sent something that is not a reply".into()),
            Err(error) => return Err(error.to_string()),
        };
        let state = &self.clients[client];
        // There are at most `limits::REQUESTS_PER_CONNECTION_MAX` slots.
        let slot = (id % state.slots.len() as u64) as usize;
        let Some(kind) = state.slots[slot].kind.filter(|_| state.slots[slot].id == id) else {
            return Err("it answered another question than was asked".into());
        };
        let answer = match body {
            Reply::PageOk { rows, .. } if rows.is_empty() => Answer::Empty(kind),
            Reply::GetOk { .. } if state.slots[slot].reads_first.is_some() => Answer::Half,
            Reply::GetOk { found: None, .. } => Answer::Empty(kind),
            Reply::WriteOk(_)
            | Reply::PageOk { .. }
            | Reply::TxnOk { .. }
            | Reply::WatchOk { .. }
            | Reply::UnwatchOk {}
            | Reply::StatusOk(_)
            | Reply::LeasesOk(_)
            | Reply::GetOk { found: Some(_), .. } => Answer::Done(kind),
            Reply::TryOtherServerOrLater { .. } => Answer::Failed("TRY_OTHER_SERVER_OR_LATER"),
            Reply::Error(error) => Answer::Failed(code(error.code)),
        };
        if answer == Answer::Half {
            let slot = &mut self.clients[client].slots[slot];
            slot.second_half = slot.reads_first.take();
        } else {
            self.settle(client, slot);
        }
        Ok((slot, answer))
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
        ErrorCode::Compacted { .. } => "COMPACTED",
        ErrorCode::DiskFull => "DISK_FULL",
        ErrorCode::Internal => "INTERNAL",
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::limits::FRAME_HEADER_BYTES;
    use crate::model::{Effect, WriteOp};
    use crate::wire::message::ErrorReply;

    struct Talk {
        protocol: StoreProtocol,
        random: SmallRng,
    }

    impl Talk {
        fn new(mix: Mix, keys: u64, pipeline: usize) -> Talk {
            let mut random = SmallRng::seed_from_u64(1);
            let distribution = mix.distribution();
            let load = StoreLoad { mix, linearizable: false, distribution, keys, value_bytes: 3 };
            Talk { protocol: StoreProtocol::new(load, 1, pipeline, &mut random), random }
        }

        fn ask(&mut self, slot: usize) -> (u64, Request) {
            let mut frame = Vec::new();
            self.protocol.request(0, slot, &mut self.random, &mut frame);
            match codec::decode(&frame[FRAME_HEADER_BYTES..]) {
                Ok(Message::Request { id, body }) => (id, body),
                other => panic!("a request is sent, not {other:?}"),
            }
        }

        fn answer(&mut self, id: u64, body: Reply) -> Result<(usize, Answer), String> {
            let mut frame = Vec::new();
            encode(&Message::Reply { id, body }, &mut frame);
            self.protocol.answer(0, &frame[FRAME_HEADER_BYTES..])
        }
    }

    fn not_found() -> Reply {
        Reply::GetOk { found: None, as_of: Timestamp::ZERO }
    }

    fn refused() -> Reply {
        let busy = ErrorCode::Busy { retry_after_ms: 0 };
        Reply::Error(ErrorReply { code: busy, message: String::new(), effect: Effect::NotDone })
    }

    /// The sequence and the key of a PUT.
    #[track_caller]
    fn put(request: Request) -> (RequestId, Bytes) {
        match request {
            Request::Write(WriteRequest { request, op: WriteOp::Put(put) }) => (request, put.key),
            other => panic!("it puts, and does not ask {other:?}"),
        }
    }

    #[test]
    fn a_fill_starts_with_distinct_keys() {
        let mut talk = Talk::new(Mix::Fill, 100, 1);
        let keys: BTreeSet<Bytes> = (0..100).map(|_| put(talk.ask(0).1).1).collect();
        assert_eq!(keys.len(), 100);
    }

    #[test]
    fn slots_are_told_apart_by_their_messages() {
        let mut talk = Talk::new(Mix::Get, 100, 3);
        let ids: Vec<u64> = [2, 0, 1].map(|slot| talk.ask(slot).0).to_vec();
        assert_eq!(talk.answer(ids[1], not_found()), Ok((0, Answer::Empty(OpKind::Read))));
        assert_eq!(talk.answer(ids[0], refused()), Ok((2, Answer::Failed("BUSY"))));
        assert!(talk.answer(ids[2] + 3, not_found()).is_err(), "nobody has asked that");
    }

    #[test]
    fn a_write_names_the_oldest_that_is_under_way() {
        let mut talk = Talk::new(Mix::Put, 100, 3);
        let sent: Vec<(u64, Request)> = (0..3).map(|slot| talk.ask(slot)).collect();
        for (_, request) in &sent {
            assert_eq!(put(request.clone()).0.answered_below, 1);
        }
        // The second is answered, the first has lost its connection and its slot asks anew.
        talk.answer(sent[1].0, refused()).unwrap();
        let (request, _) = put(talk.ask(0).1);
        assert_eq!((request.sequence, request.answered_below), (4, 3));
    }

    #[test]
    fn a_read_modify_write_reads_and_writes_one_key() {
        let mut talk = Talk::new(Mix::YcsbF, 100, 1);
        let mut both = 0;
        for _ in 0..50 {
            let (id, request) = talk.ask(0);
            let Request::Get(get) = request else { panic!("it reads first, not {request:?}") };
            let (_, answer) = talk.answer(id, not_found()).unwrap();
            if answer == Answer::Half {
                let (id, request) = talk.ask(0);
                assert_eq!(put(request).1, get.key);
                talk.answer(id, refused()).unwrap();
                both += 1;
            }
        }
        assert!((10..40).contains(&both), "{both} of 50");
    }

    #[test]
    fn a_read_modify_write_that_fails_half_way_has_no_second_half() {
        let mut talk = Talk::new(Mix::YcsbF, 100, 1);
        for _ in 0..50 {
            // Refused, or its connection lost.
            let (id, request) = talk.ask(0);
            assert!(matches!(request, Request::Get(_)), "{request:?}");
            if id % 2 == 0 {
                talk.answer(id, refused()).unwrap();
            }
        }
    }

    #[test]
    fn inserted_keys_are_new_and_read_when_they_are_there() {
        let mut talk = Talk::new(Mix::YcsbD, 10, 1);
        let (mut newest, mut inserted, mut reached) = (10, 0, 0);
        for _ in 0..2_000 {
            let (id, request) = talk.ask(0);
            match request {
                Request::Get(get) => {
                    assert!(get.key < key_name(newest), "{:?} is not there yet", get.key);
                    reached += u64::from(get.key >= key_name(10));
                    talk.answer(id, not_found()).unwrap();
                }
                request => {
                    assert_eq!(put(request).1, key_name(newest));
                    newest += 1;
                    inserted += 1;
                    talk.answer(id, refused()).unwrap();
                }
            }
        }
        assert!((50..200).contains(&inserted), "{inserted} of 2000");
        assert!(reached > 1_000, "{reached} reads of what was inserted");
    }

    #[test]
    fn scans_are_short_and_begin_at_keys_that_are_there() {
        let mut talk = Talk::new(Mix::YcsbE, 1_000, 1);
        let mut lengths = BTreeSet::new();
        for _ in 0..1_000 {
            if let (_, Request::Page(page)) = talk.ask(0) {
                let PageOf::Range { from, to } = page.of else { panic!("{:?}", page.of) };
                assert!(from < key_name(1_000) && to > key_name(99_999_999));
                lengths.insert(page.rows_max);
            }
        }
        assert_eq!((lengths.first(), lengths.last()), (Some(&1), Some(&SCAN_ROWS_MAX)));
    }
}
