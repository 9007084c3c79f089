//! Watches against a model: every watch is shown exactly the changes of its range, in order, or a
//! state that is right and everything after it.
//!
//! The hub stands on the store of a replica that lags, takes in garbage collection and snapshots of
//! another one, and is told of all that late or early. Pages are read late and in any order, what
//! is sent leaves late, clients give credit late, and the window of recent changes is tiny. The
//! model keeps a copy of the newest state after each write.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use acervo::limits;
use acervo::model::{
    Action, ClientId, Command, Compact, Del, DelRange, GarbageCollection, History, KeyChange,
    KeyInterval, LogEntry, Previous, Put, PutAll, RequestId, SetHistory, StateLimits, Timestamp,
    Trim, WriteOp,
};
use acervo::net::ConnectionId;
use acervo::node::RequestToken;
use acervo::server::watches::{
    WatchEnd, WatchHub, WatchInput, WatchLimits, WatchOutput, WatchRead,
};
use acervo::storage::apply::StateMachine;
use acervo::storage::feed::ChangesLimits;
use acervo::storage::memory::MemoryEngine;
use acervo::storage::snapshot::{MemoryStaging, SnapshotSink};
use acervo::wire::codec;
use acervo::wire::frame::Deframer;
use acervo::wire::message::{Message, Reply, WatchFrame, WatchRequest};
use bytes::Bytes;
use proptest::prelude::*;

/// Of each key its newest version and its value.
type State = BTreeMap<Bytes, (i64, Bytes)>;
/// A time and a key: where a change stands among all.
type Place = (i64, Bytes);

/// A key that is greater than all that are written.
fn last_key() -> Bytes {
    Bytes::from_static(&[0xff; 3])
}

fn keys() -> Vec<Bytes> {
    [&b"\0"[..], b"a", b"a\0", b"b", b"c", b"d", b"d!"].map(Bytes::from_static).into()
}

struct ModelChange {
    place: Place,
    written: Option<Bytes>,
    previous: Option<(i64, Bytes)>,
}

#[derive(Default)]
struct Model {
    states: Vec<(i64, State)>,
    changes: Vec<ModelChange>,
    /// What is not later may be gone.
    horizon: i64,
}

impl Model {
    fn state(&self, at: i64) -> State {
        let state = self.states.iter().rev().find(|(time, _)| *time <= at);
        state.map(|(_, state)| state.clone()).unwrap_or_default()
    }

    fn apply(&mut self, at: i64, op: &WriteOp) {
        let before = self.state(i64::MAX);
        let mut state = before.clone();
        match op {
            WriteOp::Put(Put { key, value, .. }) => {
                state.insert(key.clone(), (at, value.clone()));
            }
            WriteOp::PutAll(PutAll { pairs }) => {
                state.extend(pairs.iter().map(|(k, v)| (k.clone(), (at, v.clone()))));
            }
            WriteOp::Del(Del { key, .. }) => drop(state.remove(key)),
            WriteOp::DelRange(DelRange { from, to, .. }) => {
                state.retain(|key, _| key < from || to < key);
            }
            WriteOp::Trim(_) | WriteOp::SetHistory(_) | WriteOp::Compact(_) => {}
            other => panic!("{other:?}"),
        }
        let mut touched: Vec<&Bytes> = before.keys().chain(state.keys()).collect();
        touched.sort();
        touched.dedup();
        for key in touched {
            let (had, has) = (before.get(key), state.get(key));
            if had != has {
                self.changes.push(ModelChange {
                    place: (at, key.clone()),
                    written: has.map(|(_, value)| value.clone()),
                    previous: had.cloned(),
                });
            }
        }
        self.states.push((at, state));
    }

    /// The first change of a range that comes after a place.
    fn next(&self, range: &KeyInterval, after: &Place) -> Option<&ModelChange> {
        let mut changes = self.changes.iter();
        changes.find(|change| change.place > *after && range.covers(&change.place.1))
    }
}

/// A watch at its client.
struct ClientWatch {
    connection: u64,
    number: u64,
    range: KeyInterval,
    tells_previous: bool,
    /// Everything up to here was shown.
    shown: Place,
    /// The rows of a reset that has begun.
    reset: Option<Vec<(Bytes, i64, Bytes)>>,
    /// How often a reset has begun.
    begun_resets: usize,
    /// The last frame has said that a write's changes go on.
    is_within_a_write: bool,
    untaken_credit: u32,
    has_begun: bool,
    /// The greatest progress that it was told.
    told: i64,
}

impl ClientWatch {
    fn take(&mut self, model: &Model, applied: i64, frame: WatchFrame) {
        assert!(self.has_begun, "{frame:?} before WATCH_OK");
        self.untaken_credit += frame.credit_bytes();
        match frame {
            WatchFrame::Events { changes, up_to, continues } => {
                assert!(self.reset.is_none(), "events in a reset");
                assert!(!changes.is_empty() || self.is_within_a_write);
                assert!(up_to.0 <= applied);
                let last = changes.last().map(|change| change.at.0);
                for change in changes {
                    self.changed(model, change);
                }
                assert!(!continues || last > Some(up_to.0));
                self.is_within_a_write = continues;
                let next = model.next(&self.range, &self.shown).map(|change| change.place.0);
                if !continues {
                    assert!(next.is_none_or(|next| Some(next) > last && next > up_to.0));
                    self.shown = self.shown.clone().max((up_to.0, last_key()));
                }
            }
            WatchFrame::Reset { rows, at, begins, continues } => {
                assert!(self.shown.0 <= model.horizon, "nothing after {:?} is gone", self.shown);
                assert!(at.0 <= applied);
                if begins {
                    self.begun_resets += 1;
                    self.reset = Some(Vec::new());
                }
                let Some(collected) = &mut self.reset else { panic!("rows of no reset") };
                collected.extend(rows.into_iter().map(|row| {
                    let found = row.found.unwrap();
                    (row.key, found.timestamp.0, found.value)
                }));
                if continues {
                    return;
                }
                let rows = self.reset.take().unwrap();
                let state = model.state(at.0).into_iter();
                let right = state.filter(|(key, _)| self.range.covers(key));
                let right: Vec<_> = right.map(|(key, (at, value))| (key, at, value)).collect();
                assert_eq!(rows, right, "as of {at}");
                self.shown = (at.0, last_key());
            }
        }
    }

    fn changed(&mut self, model: &Model, change: KeyChange) {
        let Some(right) = model.next(&self.range, &self.shown) else {
            panic!("{change:?} after {:?}, where nothing has changed", self.shown)
        };
        let place = (change.at.0, change.key);
        assert_eq!(place, right.place, "after {:?} in {:?}", self.shown, self.range);
        assert_eq!(change.written.map(|version| version.value), right.written);
        let previous = change.previous.map(|previous| match previous {
            Previous::Absent => None,
            Previous::Value { timestamp, value, .. } => Some((timestamp.0, value.unwrap())),
        });
        assert_eq!(previous, self.tells_previous.then(|| right.previous.clone()));
        self.shown = place;
    }
}

struct World {
    hub: WatchHub,
    replica: StateMachine,
    other: StateMachine,
    log: Vec<LogEntry>,
    last: i64,
    sequence: u64,
    history: History,
    model: Model,
    watches: Vec<ClientWatch>,
    numbers: u64,
    reads: Vec<WatchRead>,
    /// What has not left the process yet.
    unsent: VecDeque<(ConnectionId, usize)>,
    reads_max: usize,
    /// How far the replica had come when the hub was told last that it has gone on.
    told: i64,
}

impl World {
    fn new(limits: StateLimits, recent_bytes_max: usize, of_hub: WatchLimits) -> World {
        let mut replica = StateMachine::open(Arc::new(MemoryEngine::new()), limits).unwrap();
        replica.set_recent_bytes_max(recent_bytes_max);
        let other = StateMachine::open(Arc::new(MemoryEngine::new()), limits).unwrap();
        World {
            hub: WatchHub::new(replica.store(), 7, of_hub),
            replica,
            other,
            log: Vec::new(),
            last: 0,
            sequence: 0,
            history: History::All,
            model: Model::default(),
            watches: Vec::new(),
            numbers: 0,
            reads: Vec::new(),
            unsent: VecDeque::new(),
            reads_max: of_hub.reads_max,
            told: 0,
        }
    }

    fn push(&mut self, action: Action) -> i64 {
        self.last += 10;
        let command =
            Command { timestamp: Timestamp(self.last), clock_us: self.last as u64, action };
        let index = self.log.len() as u64 + 1;
        self.log.push(LogEntry { term: 1, index, data: command.encode() });
        self.last
    }

    fn write(&mut self, op: WriteOp) {
        self.sequence += 1;
        let request = RequestId {
            client: ClientId(1),
            sequence: self.sequence,
            answered_below: self.sequence,
            begun: Timestamp::ZERO,
        };
        if let WriteOp::SetHistory(SetHistory { history }) = &op {
            self.history = *history;
        }
        let at = self.push(Action::Write { request, op: op.clone() });
        self.model.apply(at, &op);
    }

    fn collect(&mut self, age: i64, kind: CollectionKind, rows_max: u32) {
        let until = (self.last - age).max(0);
        let (as_of_us, bytes_max) = (until as u64, limits::COLLECTION_BYTES_MAX);
        let piece = match kind {
            CollectionKind::History => {
                let history = self.history;
                GarbageCollection::History { history, as_of_us, rows_max, bytes_max }
            }
            CollectionKind::Compacted => {
                GarbageCollection::Compacted { as_of_us, rows_max, bytes_max }
            }
            CollectionKind::Removed => {
                GarbageCollection::Removed { before_us: as_of_us, rows_max, bytes_max }
            }
        };
        self.model.horizon = self.model.horizon.max(until);
        self.push(Action::GarbageCollection(piece));
    }

    /// Has the replica apply some of what it lags, as one batch.
    fn apply(&mut self, count: usize) {
        let applied = self.replica.applied().index as usize;
        let until = (applied + count).min(self.log.len());
        self.replica.apply(&self.log[applied..until]).unwrap();
    }

    /// A snapshot of a replica that has applied everything takes the place of the store.
    fn install(&mut self) {
        let applied = self.other.applied().index as usize;
        self.other.apply(&self.log[applied..]).unwrap();
        let mut source = self.other.begin_snapshot().unwrap();
        let mut sink = SnapshotSink::create(MemoryStaging::new(), source.point()).unwrap();
        while let Some(chunk) = source.next_chunk(100).unwrap() {
            sink.push(&chunk).unwrap();
        }
        self.replica.install(sink.finish().unwrap()).unwrap();
    }

    fn handle(&mut self, input: WatchInput) {
        if matches!(input, WatchInput::Applied) {
            self.told = self.replica.applied().timestamp.0;
        }
        self.hub.handle(input);
        let mut closed = Vec::new();
        loop {
            for output in self.hub.flush() {
                match output {
                    WatchOutput::Reply { token, reply } => self.replied(token, reply),
                    WatchOutput::Read(read) => self.reads.push(read),
                    WatchOutput::Send { connection, frames } => {
                        self.unsent.push_back((connection, frames.bytes()));
                        self.show(connection, &frames.into_pieces().concat());
                    }
                    WatchOutput::Close { connection, why } => {
                        if why == WatchEnd::CutOff {
                            self.may_be_cut_off(connection);
                        }
                        closed.push(connection);
                    }
                }
            }
            if !self.hub.is_behind() {
                break;
            }
        }
        assert!(self.reads.len() <= self.reads_max, "{} reads at once", self.reads.len());
        closed.into_iter().for_each(|connection| self.closed(connection.to_u64()));
    }

    /// Whether a watch has been shown everything that the hub knows of.
    fn is_whole(&self, watch: &ClientWatch) -> bool {
        let next = self.model.next(&watch.range, &watch.shown);
        watch.has_begun && watch.reset.is_none() && next.is_none_or(|next| next.place.0 > self.told)
    }

    /// A connection may be closed because the server is cut off: it has got all that was sent, and
    /// a watch of it waits for more than there is.
    fn may_be_cut_off(&self, connection: ConnectionId) {
        assert!(self.unsent.iter().all(|(sent, bytes)| *sent != connection || *bytes == 0));
        let mut watches = self.watches.iter();
        let waits =
            watches.any(|watch| watch.connection == connection.to_u64() && self.is_whole(watch));
        assert!(waits, "nothing of {connection:?} has caught up");
    }

    /// The server is cut off: where nothing is under way, no watch is left that has caught up and
    /// may be shown something.
    fn cut_off(&mut self) {
        let is_under_way = !self.reads.is_empty() || !self.unsent.is_empty();
        self.handle(WatchInput::CutOff);
        for watch in &self.watches {
            let waits = self.is_whole(watch) && watch.untaken_credit == 0;
            assert!(is_under_way || !waits, "{:?} waits for ever", watch.range);
        }
    }

    /// A connection ends, and its watches with it.
    fn closed(&mut self, connection: u64) {
        self.watches.retain(|watch| watch.connection != connection);
        // Ids of connections are not used twice, but here.
        self.unsent.retain(|(sent, _)| sent.to_u64() != connection);
        let connection = ConnectionId::from_u64(connection);
        self.handle(WatchInput::Closed { connection });
    }

    fn replied(&mut self, token: RequestToken, reply: Reply) {
        let watch = self.watches.iter_mut().find(|watch| watch.number == token.request);
        match (reply, watch) {
            (Reply::WatchOk { after }, Some(watch)) => {
                watch.has_begun = true;
                watch.shown = (after.0, last_key());
            }
            (Reply::UnwatchOk {}, _) => {}
            (reply, _) => panic!("{reply:?}"),
        }
    }

    fn show(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let applied = self.replica.applied().timestamp.0;
        let mut deframer = Deframer::new(limits::SERVER_FRAME_BYTES_MAX);
        deframer.push(bytes);
        while let Some(body) = deframer.next_frame().unwrap() {
            match codec::decode(body).unwrap() {
                Message::Watched { watch: number, body } => {
                    let watch = self.watches.iter_mut().find(|watch| watch.number == number);
                    let Some(watch) = watch else { panic!("{number} has ended: {body:?}") };
                    assert_eq!(watch.connection, connection.to_u64());
                    watch.take(&self.model, applied, body);
                }
                Message::WatchProgress { up_to, behind } => {
                    let is_told = |watch: &&mut ClientWatch| {
                        watch.connection == connection.to_u64() && !behind.contains(&watch.number)
                    };
                    for watch in self.watches.iter_mut().filter(is_told) {
                        let next = self.model.next(&watch.range, &watch.shown);
                        let is_whole = next.is_none_or(|next| next.place.0 > up_to.0);
                        assert!(is_whole && watch.reset.is_none(), "{up_to}");
                        watch.told = watch.told.max(up_to.0);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn watch(&mut self, connection: u64, range: KeyInterval, after: Option<i64>, previous: bool) {
        self.numbers += 1;
        let number = self.numbers;
        self.watches.push(ClientWatch {
            connection,
            number,
            range: range.clone(),
            tells_previous: previous,
            shown: (0, Bytes::new()),
            reset: None,
            begun_resets: 0,
            is_within_a_write: false,
            untaken_credit: 0,
            has_begun: false,
            told: 0,
        });
        let request = WatchRequest {
            watch: number,
            range,
            after: after.map(Timestamp),
            tells_previous: previous,
            credit_bytes: 200,
        };
        let origin = IpAddr::V4(Ipv4Addr::new(10, 0, 0, connection as u8 / 2));
        let token = RequestToken { connection, request: number };
        self.handle(WatchInput::Watch { token, origin, request });
    }

    fn read(&mut self, which: usize) {
        if self.reads.is_empty() {
            return;
        }
        let WatchRead { watch, of } = self.reads.remove(which % self.reads.len());
        let page = of.read(&self.replica.store());
        self.handle(WatchInput::Read { watch, page });
    }

    fn sent(&mut self) {
        if let Some((connection, bytes)) = self.unsent.pop_front() {
            self.handle(WatchInput::Sent { connection, bytes });
        }
    }

    fn credit(&mut self, which: usize) {
        if self.watches.is_empty() {
            return;
        }
        let which = which % self.watches.len();
        let watch = &mut self.watches[which];
        let bytes = std::mem::take(&mut watch.untaken_credit);
        let (connection, watch) = (ConnectionId::from_u64(watch.connection), watch.number);
        if bytes > 0 {
            self.handle(WatchInput::Credit { connection, watch, bytes });
        }
    }

    fn end(&mut self, which: usize, closes: bool) {
        if self.watches.is_empty() {
            return;
        }
        let which = which % self.watches.len();
        let connection = self.watches[which].connection;
        if closes {
            return self.closed(connection);
        }
        let watch = self.watches.remove(which).number;
        self.numbers += 1;
        let token = RequestToken { connection, request: self.numbers };
        self.handle(WatchInput::Unwatch { token, watch });
    }

    /// Whatever is under way comes to its end, and nothing is missing.
    fn settle(&mut self) {
        self.apply(usize::MAX / 2);
        self.handle(WatchInput::Applied);
        for round in 0.. {
            let before = (self.reads.len(), self.unsent.len());
            (0..self.reads.len()).for_each(|_| self.read(0));
            (0..self.unsent.len()).for_each(|_| self.sent());
            (0..self.watches.len()).for_each(|which| self.credit(which));
            if before == (0, 0) && self.reads.is_empty() && self.unsent.is_empty() {
                break;
            }
            assert!(round < 10_000, "the watches come to no end");
        }
        for watch in &self.watches {
            let next = self.model.next(&watch.range, &watch.shown);
            let missing = next.map(|change| &change.place);
            assert_eq!(missing, None, "of {:?} after {:?}", watch.range, watch.shown);
            assert!(watch.reset.is_none() && !watch.is_within_a_write);
        }
        self.handle(WatchInput::Progress);
        (0..self.unsent.len()).for_each(|_| self.sent());
    }
}

#[derive(Clone, Copy, Debug)]
enum CollectionKind {
    Removed,
    History,
    Compacted,
}

const ALL_KINDS: [CollectionKind; 3] =
    [CollectionKind::Removed, CollectionKind::History, CollectionKind::Compacted];

#[derive(Clone, Debug)]
enum Step {
    Write(WriteOp),
    Collect { age: i64, kind: CollectionKind, rows_max: u32 },
    Apply { count: usize, is_told: bool },
    Install { is_told: bool },
    Tell,
    Watch { connection: u64, range: KeyInterval, after: Option<usize>, previous: bool },
    End { which: usize, closes: bool },
    Read(usize),
    Sent,
    Credit(usize),
    Progress,
    CutOff,
    Settle,
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(keys())
}

fn range() -> impl Strategy<Value = KeyInterval> {
    (key(), key()).prop_map(|(a, b)| KeyInterval { from: a.clone().min(b.clone()), to: a.max(b) })
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![4 => Just(1), 1 => Just(150), 1 => Just(12_000)]
        .prop_map(|bytes| Bytes::from(vec![b'v'; bytes]))
}

fn op() -> impl Strategy<Value = WriteOp> {
    let history = prop_oneof![
        Just(History::All),
        Just(History::For { age_us: 1 }),
        Just(History::Versions { count: 2 }),
    ];
    prop_oneof![
        8 => (key(), value())
            .prop_map(|(key, value)| WriteOp::Put(Put { key, value, tells_previous: false })),
        2 => prop::collection::vec((key(), value()), 0..5)
            .prop_map(|pairs| WriteOp::PutAll(PutAll { pairs })),
        3 => (key(), any::<bool>()).prop_map(|(key, keeps_history)| {
            WriteOp::Del(Del { key, tells_previous: false, keeps_history })
        }),
        1 => key().prop_map(|key| WriteOp::Trim(Trim { key, tells_previous: false })),
        2 => (range(), any::<bool>()).prop_map(|(KeyInterval { from, to }, keeps_history)| {
            WriteOp::DelRange(DelRange { from, to, keeps_history })
        }),
        1 => history.prop_map(|history| WriteOp::SetHistory(SetHistory { history })),
        1 => (1..1_500i64).prop_map(|version| Compact { version: Timestamp(version) }.into()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let after = prop::option::of(0..1_000usize);
    prop_oneof![
        12 => op().prop_map(Step::Write),
        3 => (0..200i64, prop::sample::select(&ALL_KINDS[..]), 0..6u32)
            .prop_map(|(age, kind, rows_max)| Step::Collect { age, kind, rows_max }),
        8 => (1..5usize, any::<bool>())
            .prop_map(|(count, is_told)| Step::Apply { count, is_told }),
        1 => any::<bool>().prop_map(|is_told| Step::Install { is_told }),
        2 => Just(Step::Tell),
        4 => (0..4u64, range(), after, any::<bool>()).prop_map(
            |(connection, range, after, previous)| Step::Watch {
                connection,
                range,
                after,
                previous
            }
        ),
        1 => (any::<usize>(), any::<bool>())
            .prop_map(|(which, closes)| Step::End { which, closes }),
        6 => any::<usize>().prop_map(Step::Read),
        4 => Just(Step::Sent),
        4 => any::<usize>().prop_map(Step::Credit),
        1 => Just(Step::Progress),
        1 => Just(Step::CutOff),
        1 => Just(Step::Settle),
    ]
}

/// Bounds so small that all of them are met.
fn hub_limits() -> impl Strategy<Value = WatchLimits> {
    let bytes = || prop_oneof![Just(2_000usize), Just(20_000), Just(1 << 20)];
    let few = || prop_oneof![1..4usize, Just(1_000)];
    let page = (few(), bytes(), few());
    let on_way = (bytes(), bytes(), bytes(), prop_oneof![Just(0), Just(500), Just(16 << 10)]);
    (on_way, 1..4usize, few(), few(), page).prop_map(
        |(on_way, reads_max, looked_up_max, looks_max, page)| WatchLimits {
            connection_bytes_max: on_way.0,
            origin_bytes_max: on_way.1,
            process_bytes_max: on_way.2,
            few_bytes_max: on_way.3,
            reads_max,
            looked_up_max,
            looks_max,
            page: ChangesLimits { changes: page.0, bytes: page.1, visits: page.2 },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_watch_is_shown_what_the_model_has(
        removal_scan_rows_max in 0..4u32,
        recent_bytes_max in prop_oneof![Just(0), Just(600), Just(1_500), Just(1 << 20)],
        of_hub in hub_limits(),
        // In short histories a watch begins after the last write.
        steps in prop_oneof![
            prop::collection::vec(step(), 1..12),
            prop::collection::vec(step(), 1..150),
        ],
    ) {
        let limits = StateLimits {
            removal_scan_rows_max,
            removal_grace_us: 0,
            range_removals_max: 1_000,
            ..StateLimits::default()
        };
        let mut world = World::new(limits, recent_bytes_max, of_hub);
        for step in steps {
            match step {
                Step::Write(op) => world.write(op),
                Step::Collect { age, kind, rows_max } => world.collect(age, kind, rows_max),
                Step::Apply { count, is_told } => {
                    world.apply(count);
                    if is_told {
                        world.handle(WatchInput::Applied);
                    }
                }
                Step::Install { is_told } => {
                    world.install();
                    if is_told {
                        world.handle(WatchInput::Applied);
                    }
                }
                Step::Tell => world.handle(WatchInput::Applied),
                Step::Watch { connection, range, after, previous } => {
                    // Also one that the replica has not reached.
                    let after = after.map(|after| after as i64 * (world.last + 30) / 1_000);
                    let after = after.filter(|after| *after <= world.last);
                    world.watch(connection, range, after, previous);
                }
                Step::End { which, closes } => world.end(which, closes),
                Step::Read(which) => world.read(which),
                Step::Sent => world.sent(),
                Step::Credit(which) => world.credit(which),
                Step::Progress => world.handle(WatchInput::Progress),
                Step::CutOff => world.cut_off(),
                Step::Settle => world.settle(),
            }
        }
        world.settle();
    }
}

/// Nobody follows before it, so that nothing of this is in the window of recent changes.
#[test]
fn the_first_watch_is_shown_what_was_applied_before_it() {
    let mut world = World::new(StateLimits::default(), 1 << 20, WatchLimits::DEFAULT);
    let (key, value) = (Bytes::from("b"), Bytes::from("v"));
    world.write(WriteOp::Put(Put { key, value, tells_previous: false }));
    world.apply(1);
    world.watch(0, KeyInterval { from: Bytes::from("a"), to: last_key() }, Some(0), false);
    world.settle();
}

/// One without credit held back what all others of its connection were told, for as long as its
/// client liked.
#[test]
fn a_watch_that_is_behind_holds_back_the_progress_of_no_other() {
    let mut world = World::new(StateLimits::default(), 1 << 20, WatchLimits::DEFAULT);
    world.watch(0, of_one("slow"), None, false);
    world.watch(0, of_one("idle"), None, false);
    for _ in 0..3 {
        for _ in 0..3 {
            world.write(put("slow", 1_000));
            world.apply(1);
            world.handle(WatchInput::Applied);
        }
        world.handle(WatchInput::Progress);
        let [slow, idle] = &world.watches[..] else { panic!("two watches") };
        assert!(slow.told < world.last, "it was not shown all");
        assert_eq!(idle.told, world.last);
    }
    world.settle();
    assert_eq!(world.watches[0].told, world.last, "it has caught up");
}

/// A reset is read so slowly that what it shows is gone between two of its pages.
#[test]
fn a_reset_whose_state_is_gone_begins_anew() {
    let limits = StateLimits { removal_grace_us: 0, ..StateLimits::default() };
    let page = ChangesLimits { changes: 1, ..ChangesLimits::DEFAULT };
    let mut world = World::new(limits, 0, WatchLimits { page, ..WatchLimits::DEFAULT });
    let put = |key: &'static str| {
        WriteOp::Put(Put { key: key.into(), value: "v".into(), tells_previous: false })
    };
    let del = |key: &'static str| {
        WriteOp::Del(Del { key: key.into(), tells_previous: false, keeps_history: false })
    };
    ["a", "b", "c", "d"].map(put).into_iter().for_each(|op| world.write(op));
    world.write(del("d"));
    world.write(put("d"));
    world.collect(0, CollectionKind::Removed, 10);
    world.apply(usize::MAX / 2);
    world.watch(0, KeyInterval { from: Bytes::from("a"), to: last_key() }, Some(0), false);
    world.read(0);
    world.read(0);
    let rows = |world: &World| world.watches[0].reset.as_ref().map(Vec::len);
    assert_eq!((rows(&world), world.watches[0].begun_resets), (Some(1), 1));
    world.write(del("b"));
    world.write(put("c"));
    world.collect(0, CollectionKind::Removed, 10);
    world.apply(usize::MAX / 2);
    world.settle();
    assert_eq!((rows(&world), world.watches[0].begun_resets), (None, 2));
}

fn put(key: &str, value_bytes: usize) -> WriteOp {
    let (key, value) =
        (Bytes::copy_from_slice(key.as_bytes()), Bytes::from(vec![b'v'; value_bytes]));
    WriteOp::Put(Put { key, value, tells_previous: false })
}

fn of_one(key: &'static str) -> KeyInterval {
    KeyInterval { from: key.into(), to: key.into() }
}

/// Two watches resume from what only the store has, of which one page is read at a time, and the
/// disk does not answer. Those that memory can serve are shown what they are to see.
#[test]
fn a_disk_that_is_slow_holds_up_no_watch_that_memory_can_serve() {
    let of_hub = WatchLimits { reads_max: 1, ..WatchLimits::DEFAULT };
    let mut world = World::new(StateLimits::default(), 1 << 20, of_hub);
    world.write(put("a", 1));
    world.write(put("b", 1));
    world.apply(2);
    let begins = world.last;
    world.watch(0, of_one("a"), Some(0), false);
    world.watch(1, of_one("b"), Some(0), false);
    assert_eq!(world.reads.len(), 1, "the other one waits for its turn to read");
    world.watch(2, of_one("c"), None, false);
    world.write(put("c", 1));
    world.apply(1);
    world.handle(WatchInput::Applied);
    world.watch(3, of_one("c"), Some(begins), false);
    let shown = |world: &World, which: usize| world.watches[which].shown.0;
    assert_eq!(shown(&world, 2), world.last, "it waited for this");
    assert_eq!(shown(&world, 3), world.last, "it resumes within what memory has");
    assert_eq!((shown(&world, 0), shown(&world, 1), world.reads.len()), (0, 0, 1));
    world.settle();
    assert_eq!((shown(&world, 0), shown(&world, 1)), (world.last, world.last));
}

/// A hundred clients resume at once from what memory has. Some are served at a time, and what
/// others ask meanwhile is not behind all of them.
#[test]
fn clients_that_resume_at_once_are_served_in_pieces() {
    let of_hub = WatchLimits { looks_max: 12, ..WatchLimits::DEFAULT };
    let mut world = World::new(StateLimits::default(), 1 << 20, of_hub);
    world.watch(0, of_one("z"), None, false);
    ["a", "b", "c", "d"].map(|key| put(key, 1)).into_iter().for_each(|op| world.write(op));
    world.apply(4);
    world.handle(WatchInput::Applied);
    for number in 100..200 {
        let request = WatchRequest {
            watch: number,
            range: KeyInterval { from: "a".into(), to: "d".into() },
            after: Some(Timestamp(1)),
            tells_previous: false,
            credit_bytes: 1_000,
        };
        let token = RequestToken { connection: number, request: number };
        let origin = IpAddr::V4(Ipv4Addr::LOCALHOST);
        world.hub.handle(WatchInput::Watch { token, origin, request });
    }
    let (mut served, mut flushes) = (0, 0);
    while world.hub.is_behind() {
        flushes += 1;
        let token = RequestToken { connection: 0, request: flushes };
        world.hub.handle(WatchInput::Unwatch { token, watch: 77 });
        let outputs = world.hub.flush();
        let is_answer = |output: &WatchOutput| match output {
            WatchOutput::Reply { token: answered, .. } => *answered == token,
            _ => false,
        };
        assert!(outputs.iter().any(is_answer), "who asks meanwhile waits for the others");
        let sends = outputs.iter().filter(|output| matches!(output, WatchOutput::Send { .. }));
        let at_once = sends.count();
        assert!(at_once <= 4, "{at_once} at once");
        served += at_once;
    }
    assert_eq!(served, 100);
}

/// A thousand watches tell what was before, each of a range of its own: a write had a page of the
/// store read for each.
#[test]
fn what_was_before_a_change_is_read_once_for_all_watches() {
    let of_hub = WatchLimits { reads_max: 1, ..WatchLimits::DEFAULT };
    let mut world = World::new(StateLimits::default(), 1 << 20, of_hub);
    world.write(put("k", 5));
    world.apply(1);
    for number in 0..200 {
        let from = Bytes::from(format!("a{number}"));
        world.watch(number % 10, KeyInterval { from, to: last_key() }, None, true);
    }
    world.settle();
    for bytes in [7, 3_000] {
        world.write(put("k", bytes));
        world.apply(1);
        world.handle(WatchInput::Applied);
        world.read(0);
        assert!(world.reads.is_empty(), "another page is read");
        assert!(world.watches.iter().all(|watch| watch.shown.0 == world.last));
        world.settle();
    }
}

/// The clients of one address read nothing, and have as much on their way as an address may have.
/// Those of another one are shown everything.
#[test]
fn clients_of_one_address_that_read_nothing_stop_nobody_of_another() {
    let of_hub = WatchLimits { origin_bytes_max: 8_000, ..WatchLimits::DEFAULT };
    let mut world = World::new(StateLimits::default(), 1 << 20, of_hub);
    let all = || KeyInterval { from: "a".into(), to: last_key() };
    // The first two have one address, and the third has another.
    (0..3).for_each(|connection| world.watch(connection, all(), None, false));
    for _ in 0..40 {
        world.write(put("k", 1_000));
        world.apply(1);
        world.handle(WatchInput::Applied);
        // All have credit, and the third takes what is sent.
        (0..3).for_each(|which| world.credit(which));
        let of_third = |(to, _): &(ConnectionId, usize)| to.to_u64() == 2;
        let (sent, unsent): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut world.unsent).into_iter().partition(of_third);
        world.unsent = unsent;
        for (connection, bytes) in sent {
            world.handle(WatchInput::Sent { connection, bytes });
        }
    }
    let shown = |world: &World, which: usize| world.watches[which].shown.0;
    assert_eq!(shown(&world, 2), world.last);
    assert!(shown(&world, 0) < world.last && shown(&world, 1) < world.last);
    let unsent: usize = world.unsent.iter().map(|(_, bytes)| bytes).sum();
    // Of the frame that fills the account some is beyond it.
    assert!((8_000..12_000).contains(&unsent), "{unsent}");
    world.settle();
    assert_eq!(shown(&world, 0), world.last);
}
