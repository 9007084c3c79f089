//! The state machine of watches: who is shown what next. The rules are in [`watches`](super).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::index::WatchIndex;
use super::on_way::{BytesOnWay, Room};
use super::quota::WatchQuota;
use super::recent::{Recent, RecentByKey, change_bytes};
use super::turns::WatchTurns;
use super::{
    WatchEnd, WatchFrames, WatchInput, WatchKey, WatchLimits, WatchOutput, WatchPage, WatchRead,
    WatchReadOf, does_not_fit,
};
use crate::limits::{self, WATCH_CREDIT_BYTES_MAX};
use crate::model::{
    FeedPosition, KeyChange, KeyInterval, PageNext, ReadView, Row, Timestamp, check_key,
};
use crate::net::ConnectionId;
use crate::node::RequestToken;
use crate::storage::feed::{ChangesError, ChangesLimits};
use crate::storage::reads::{Store, StoreReadError};
use crate::storage::recent::{RecentBatch, RecentChange, RecentPart};
use crate::wire::message::{ErrorCode, ErrorReply, Reply, WatchFrame, WatchRequest};
use crate::wire::watched::EncodedWatchFrame;

/// What a watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WatchState {
    /// It has seen everything up to its position or the hub's, whichever is later, and is in the
    /// index.
    Waiting,
    /// It is behind and has its turn to come.
    InTurn,
    /// It is behind, and is not to be shown anything until its client has taken something.
    Stopped,
    /// A page for it is being read.
    Reading,
}

/// The state of a range that is shown instead of changes that are gone.
#[derive(Clone, Debug)]
struct ResetUnderWay {
    view: ReadView,
    /// The key to continue at.
    from: Bytes,
    /// Nothing of it was shown yet.
    begins: bool,
}

#[derive(Debug)]
struct Watch {
    connection: ConnectionId,
    /// Its number at its client.
    number: u64,
    origin: IpAddr,
    range: KeyInterval,
    tells_previous: bool,
    position: FeedPosition,
    reset: Option<ResetUnderWay>,
    /// What it was shown last is a part of a write, of whose end it is to be told.
    is_within_write: bool,
    /// Negative where a long change was more than was left.
    credit_bytes: i64,
    state: WatchState,
}

impl Watch {
    fn key_bytes(&self) -> usize {
        self.range.from.len() + self.range.to.len()
    }

    /// Everything up to here was shown, where the changes up to `seen` were looked up for those
    /// that wait.
    fn has_come_to(&self, seen: Timestamp) -> Timestamp {
        match (&self.reset, self.state) {
            (Some(_), _) => Timestamp::ZERO,
            (None, WatchState::Waiting) => self.position.up_to.max(seen),
            (None, _) => self.position.up_to,
        }
    }

    /// Whether a change was not shown yet.
    fn is_before(&self, change: &RecentChange) -> bool {
        match change {
            RecentChange::Key(change) => self.position.is_before(change.at, &change.key),
            RecentChange::Range { at, .. } => self.position.up_to < *at,
        }
    }
}

/// What is shown of recent changes up to a time; `None` where only pages of the store can tell, or
/// a page is not enough.
fn encoded(
    changes: &[&RecentChange],
    up_to: Timestamp,
    most: ChangesLimits,
) -> Option<EncodedWatchFrame> {
    let mut shown = Vec::with_capacity(changes.len());
    for change in changes {
        match change {
            RecentChange::Key(change) => shown.push(change.clone()),
            RecentChange::Range { .. } => return None,
        }
    }
    let bytes: usize = shown.iter().map(change_bytes).sum();
    let fits = shown.len() == 1 || (shown.len() <= most.changes && bytes <= most.bytes);
    fits.then(|| encode(WatchFrame::Events { changes: shown, up_to, continues: false }))
}

fn encode(shown: WatchFrame) -> EncodedWatchFrame {
    EncodedWatchFrame::new(shown).unwrap_or_else(|error| does_not_fit(&error))
}

#[derive(Debug, Default)]
struct WatchingConnection {
    watches: BTreeMap<u64, WatchKey>,
    /// The progress that it was told last of all of them.
    told: Timestamp,
    /// The progress that it was told last but of some, and the numbers of those.
    told_but: (Timestamp, Vec<u64>),
}

/// Ranges that something has changed in, each with that.
type Touched<'a> = BTreeMap<KeyInterval, Vec<&'a RecentChange>>;

/// All watches of a server.
pub struct WatchHub {
    store: Store,
    watches: HashMap<WatchKey, Watch>,
    connections: HashMap<ConnectionId, WatchingConnection>,
    /// The watches that wait.
    index: WatchIndex,
    quota: WatchQuota,
    ways: BytesOnWay,
    limits: WatchLimits,
    turns: WatchTurns,
    /// Those that only the store can serve, and that wait for their turn to be read for.
    read_turns: WatchTurns,
    /// Until none has been in turn for a while.
    recent: Option<RecentByKey>,
    /// Whether any was since the last progress was told.
    recent_is_used: bool,
    /// The changes up to here were looked up in the index.
    seen: Timestamp,
    last_key: u64,
    reads: usize,
    outputs: Vec<WatchOutput>,
    /// Where in the outputs more may be put that goes to a connection.
    open_outputs: HashMap<ConnectionId, usize>,
}

impl WatchHub {
    /// Without watches. `seed` is drawn at random.
    pub fn new(store: Store, seed: u64, limits: WatchLimits) -> WatchHub {
        WatchHub {
            store,
            watches: HashMap::new(),
            connections: HashMap::new(),
            index: WatchIndex::new(seed),
            quota: WatchQuota::default(),
            ways: BytesOnWay::new(limits),
            limits,
            turns: WatchTurns::default(),
            read_turns: WatchTurns::default(),
            recent: None,
            recent_is_used: false,
            seen: Timestamp::ZERO,
            last_key: 0,
            reads: 0,
            outputs: Vec::new(),
            open_outputs: HashMap::new(),
        }
    }

    /// Takes an input in. What follows from it is given out by [`flush`](WatchHub::flush).
    pub fn handle(&mut self, input: WatchInput) {
        match input {
            WatchInput::Watch { token, origin, request } => self.watch(token, origin, request),
            WatchInput::Unwatch { token, watch } => self.unwatch(token, watch),
            WatchInput::Credit { connection, watch, bytes } => {
                self.credit(connection, watch, bytes);
            }
            WatchInput::Closed { connection } => self.closed(connection),
            WatchInput::Applied => self.applied(),
            WatchInput::Read { watch, page } => self.read(watch, page),
            WatchInput::Sent { connection, bytes } => self.sent(connection, bytes),
            WatchInput::CutOff => self.cut_off(),
            WatchInput::Progress => self.progress(),
        }
    }

    /// Serves the watches whose turn it is, and gives out what is to be done, in order. There may
    /// be more to do at once ([`is_behind`](WatchHub::is_behind)).
    pub fn flush(&mut self) -> Vec<WatchOutput> {
        if let Some(recent) = &mut self.recent {
            recent.renew(&self.store);
        }
        let mut looks = 0;
        // A watch that is served and has more to show has another turn, behind the others.
        while looks < self.limits.looks_max
            && let Some(watch) = self.next_in_turn()
        {
            self.serve(watch);
            looks += self.recent.as_mut().map_or(0, RecentByKey::take_looks);
        }
        self.open_outputs.clear();
        std::mem::take(&mut self.outputs)
    }

    /// Whether another [`flush`](WatchHub::flush) would serve somebody.
    pub fn is_behind(&self) -> bool {
        let may_read = self.reads < self.limits.reads_max && !self.read_turns.is_empty();
        may_read || !self.turns.is_empty()
    }

    fn next_in_turn(&mut self) -> Option<WatchKey> {
        let waits_for_store =
            if self.reads < self.limits.reads_max { self.read_turns.pop() } else { None };
        waits_for_store.or_else(|| self.turns.pop())
    }

    fn reply(&mut self, token: RequestToken, reply: Reply) {
        // What a connection is shown later comes behind the reply.
        self.open_outputs.remove(&ConnectionId::from_u64(token.connection));
        self.outputs.push(WatchOutput::Reply { token, reply });
    }

    fn invalid(&mut self, token: RequestToken, why: String) {
        self.reply(token, Reply::Error(ErrorReply::not_done(ErrorCode::Invalid, why)));
    }

    fn watch(&mut self, token: RequestToken, origin: IpAddr, request: WatchRequest) {
        let WatchRequest { watch: number, range, after, tells_previous, credit_bytes } = request;
        let connection = ConnectionId::from_u64(token.connection);
        for end in [&range.from, &range.to] {
            if let Err(error) = check_key(end) {
                return self.invalid(token, error.to_string());
            }
        }
        if range.from > range.to {
            let why = "the range of a watch ends before it begins".to_owned();
            return self.invalid(token, why);
        }
        if after.is_some_and(|after| after < Timestamp::ZERO) {
            let why = "a watch begins after a version, and those are not negative".to_owned();
            return self.invalid(token, why);
        }
        if credit_bytes == 0 {
            let why = "a watch without credit would be shown nothing".to_owned();
            return self.invalid(token, why);
        }
        let known = self.connections.get(&connection);
        if known.is_some_and(|known| known.watches.contains_key(&number)) {
            return self.invalid(token, format!("there is a watch {number} on this connection"));
        }
        let key_bytes = range.from.len() + range.to.len();
        if let Err(why) = self.quota.add(connection, origin, key_bytes) {
            let code = ErrorCode::Busy { retry_after_ms: limits::BUSY_RETRY_AFTER_MS };
            return self.reply(token, Reply::Error(ErrorReply::not_done(code, why)));
        }
        // Before anything is read, so that what is applied meanwhile is in one of the two.
        self.store.follow(true);
        self.last_key += 1;
        let key = WatchKey(self.last_key);
        let after = after.unwrap_or_else(|| self.store.applied().timestamp);
        let watch = Watch {
            connection,
            number,
            origin,
            range,
            tells_previous,
            position: FeedPosition::after(after),
            reset: None,
            is_within_write: false,
            credit_bytes: i64::from(credit_bytes.min(WATCH_CREDIT_BYTES_MAX)),
            state: WatchState::InTurn,
        };
        self.watches.insert(key, watch);
        self.connections.entry(connection).or_default().watches.insert(number, key);
        self.turns.push(origin, connection, key);
        self.reply(token, Reply::WatchOk { after });
    }

    fn unwatch(&mut self, token: RequestToken, number: u64) {
        let connection = ConnectionId::from_u64(token.connection);
        let known = self.connections.get_mut(&connection);
        let Some(key) = known.and_then(|known| known.watches.remove(&number)) else {
            return self.invalid(token, format!("there is no watch {number} on this connection"));
        };
        self.forget(key);
        if self.connections.get(&connection).is_some_and(|known| known.watches.is_empty()) {
            self.connections.remove(&connection);
        }
        self.reply(token, Reply::UnwatchOk {});
    }

    fn closed(&mut self, connection: ConnectionId) {
        if let Some(known) = self.connections.remove(&connection) {
            known.watches.into_values().for_each(|key| self.forget(key));
        }
        let go_on = self.ways.closed(connection);
        go_on.into_iter().for_each(|key| self.go_on_where_stopped(key));
    }

    /// Ends a watch that its connection does not know any more.
    fn forget(&mut self, key: WatchKey) {
        let Some(watch) = self.watches.remove(&key) else {
            panic!("a connection had {key:?}, which does not exist")
        };
        if watch.state == WatchState::Waiting {
            self.index.remove(&watch.range, key);
        }
        self.turns.remove(key);
        self.read_turns.remove(key);
        self.ways.forget(watch.origin, watch.connection, key);
        self.quota.remove(watch.connection, watch.origin, watch.key_bytes());
        if self.watches.is_empty() {
            self.store.follow(false);
        }
    }

    fn credit(&mut self, connection: ConnectionId, number: u64, bytes: u32) {
        let known = self.connections.get(&connection);
        // It may be about a watch that has just ended.
        let Some(key) = known.and_then(|known| known.watches.get(&number)).copied() else {
            return;
        };
        let Some(watch) = self.watches.get_mut(&key) else { return };
        let most = i64::from(WATCH_CREDIT_BYTES_MAX);
        watch.credit_bytes = most.min(watch.credit_bytes + i64::from(bytes));
        if watch.credit_bytes > 0 && watch.state == WatchState::Stopped {
            self.put_in_turn(key);
        }
    }

    fn sent(&mut self, connection: ConnectionId, bytes: usize) {
        let go_on = self.ways.sent(connection, bytes);
        go_on.into_iter().for_each(|key| self.go_on_where_stopped(key));
    }

    /// There is room again for a watch, which may have gone on already.
    fn go_on_where_stopped(&mut self, key: WatchKey) {
        if self.watches.get(&key).is_some_and(|watch| watch.state == WatchState::Stopped) {
            self.put_in_turn(key);
        }
    }

    /// Has a watch that is not in the index served when it is its turn.
    fn put_in_turn(&mut self, key: WatchKey) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        watch.state = WatchState::InTurn;
        self.turns.push(watch.origin, watch.connection, key);
    }

    /// Takes a watch that waits out of the index, at the position that it has reached.
    fn put_in_turn_from_index(&mut self, key: WatchKey, seen: Timestamp) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        assert_eq!(watch.state, WatchState::Waiting, "{watch:?}");
        self.index.remove(&watch.range, key);
        if watch.position.up_to < seen {
            watch.position = FeedPosition::after(seen);
        }
        self.put_in_turn(key);
    }

    /// Looks up what has changed since the last time.
    fn applied(&mut self) {
        if self.watches.is_empty() {
            return;
        }
        let mut part = self.store.recent_changes(self.seen);
        if let RecentPart::BeginsLater(begins) = part {
            // Who has not come so far by itself has missed something.
            let seen = self.seen;
            let is_behind = |(_, watch): &(&WatchKey, &Watch)| {
                watch.state == WatchState::Waiting && watch.position.up_to.max(seen) < begins
            };
            let mut behind: Vec<WatchKey> =
                self.watches.iter().filter(is_behind).map(|(key, _)| *key).collect();
            behind.sort_unstable();
            behind.into_iter().for_each(|key| self.put_in_turn_from_index(key, seen));
            self.seen = begins;
            part = self.store.recent_changes(begins);
        }
        // A window that has begun anew once more is met next time.
        let RecentPart::Batches(batches) = part else { return };
        self.show_recent(&batches);
    }

    /// Shows what is in some batches to the watches that wait for it.
    fn show_recent(&mut self, batches: &[Arc<RecentBatch>]) {
        let Some(up_to) = batches.last().map(|batch| batch.up_to) else { return };
        let changes = batches.iter().flat_map(|batch| &batch.changes);
        let changes: Vec<&RecentChange> =
            changes.filter(|change| change.at() > self.seen).collect();
        let (mut touched, mut looked_up) = (Touched::new(), 0);
        for write in changes.chunk_by(|one, other| one.at() == other.at()) {
            let at = write[0].at();
            match self.touched_by(write) {
                Some(of_write) => {
                    looked_up += of_write.len();
                    for (range, change) in of_write {
                        touched.entry(range).or_default().push(change);
                    }
                    if looked_up > self.limits.looked_up_max {
                        self.show_touched(std::mem::take(&mut touched), at);
                        looked_up = 0;
                    }
                }
                None => {
                    let before = Timestamp(at.0 - 1);
                    self.show_touched(std::mem::take(&mut touched), before);
                    looked_up = 0;
                    self.put_touched_in_turn(write);
                    self.seen = at;
                }
            }
        }
        self.show_touched(touched, up_to);
    }

    /// The ranges that a write has changed something in, with each change; `None` if they are too
    /// many.
    fn touched_by<'a>(
        &self,
        write: &[&'a RecentChange],
    ) -> Option<Vec<(KeyInterval, &'a RecentChange)>> {
        let mut touched = Vec::new();
        for change in write {
            let (from, to) = ends(change);
            self.index.overlapping(from, to, &mut |range| touched.push((range, *change)));
            if touched.len() > self.limits.looked_up_max {
                return None;
            }
        }
        Some(touched)
    }

    /// Has all watches served in their turn that wait for anything that a write has changed. Each
    /// leaves the index at the first change that meets it.
    fn put_touched_in_turn(&mut self, write: &[&RecentChange]) {
        for change in write {
            let (from, to) = ends(change);
            let mut ranges = Vec::new();
            self.index.overlapping(from, to, &mut |range| ranges.push(range));
            for range in ranges {
                for key in self.index.watches(&range) {
                    self.put_in_turn_from_index(key, self.seen);
                }
            }
        }
    }

    fn show_touched(&mut self, touched: Touched<'_>, up_to: Timestamp) {
        for (range, changes) in touched {
            self.show_range(&range, &changes, up_to);
        }
        self.seen = up_to;
    }

    /// Shows the watches of one range that wait the changes up to a time, or has them served in
    /// their turn.
    fn show_range(&mut self, range: &KeyInterval, changes: &[&RecentChange], up_to: Timestamp) {
        // By how many of the changes a watch has been shown already, which is nearly always none.
        let mut frames: BTreeMap<usize, Option<EncodedWatchFrame>> = BTreeMap::new();
        for key in self.index.watches(range) {
            let Some(watch) = self.watches.get(&key) else { continue };
            let known = changes.partition_point(|change| !watch.is_before(change));
            if known == changes.len() {
                continue;
            }
            let rest = || encoded(&changes[known..], up_to, self.limits.page);
            // One that has come to the middle of a write, which the window had not got yet, is
            // shown the end of that by itself.
            let is_like_others = !watch.tells_previous && !watch.is_within_write;
            let frame = match is_like_others && self.may_show(key) {
                true => frames.entry(known).or_insert_with(rest).as_ref(),
                false => None,
            };
            match (frame, self.watches.get_mut(&key)) {
                (Some(frame), Some(watch)) => {
                    watch.position = FeedPosition::after(up_to);
                    self.send(key, frame);
                }
                _ => self.put_in_turn_from_index(key, self.seen),
            }
        }
    }

    /// Whether a watch may be shown something now.
    fn may_show(&self, key: WatchKey) -> bool {
        self.watches.get(&key).is_some_and(|watch| {
            watch.credit_bytes > 0 && self.ways.room(watch.origin, watch.connection) == Room::Free
        })
    }

    /// Sends changes, after which the watch has a new position.
    fn show_changes(&mut self, key: WatchKey, changes: Vec<KeyChange>, position: FeedPosition) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        let last = changes.last().map(|change| change.at);
        let within = position.within.as_ref().map(|(at, _)| *at);
        // That nothing is left of a write may show only when what comes after it is looked at.
        let continues = within.is_some()
            && match last {
                Some(last) => within == Some(last),
                None => watch.is_within_write,
            };
        let up_to = position.up_to;
        watch.position = position;
        let ends_write = std::mem::replace(&mut watch.is_within_write, continues);
        if !changes.is_empty() || (ends_write && !continues) {
            self.send(key, &encode(WatchFrame::Events { changes, up_to, continues }));
        }
    }

    fn send(&mut self, key: WatchKey, frame: &EncodedWatchFrame) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        watch.credit_bytes -= i64::from(frame.credit_bytes());
        let (origin, connection, number) = (watch.origin, watch.connection, watch.number);
        self.send_to(origin, connection, |frames| frames.add(number, frame));
    }

    /// Adds to what goes to a connection.
    fn send_to(
        &mut self,
        origin: IpAddr,
        connection: ConnectionId,
        add: impl FnOnce(&mut WatchFrames),
    ) {
        // What goes to one connection at once goes in one piece of work.
        let output = *self.open_outputs.entry(connection).or_insert_with(|| {
            let frames = WatchFrames::default();
            self.outputs.push(WatchOutput::Send { connection, frames });
            self.outputs.len() - 1
        });
        let WatchOutput::Send { frames, .. } = &mut self.outputs[output] else {
            panic!("output {output} is no Send to {connection:?}")
        };
        let before = frames.bytes();
        add(frames);
        let bytes = frames.bytes() - before;
        self.ways.add(origin, connection, bytes);
    }

    /// Shows a watch what comes next, or has it read.
    fn serve(&mut self, key: WatchKey) {
        // It may have ended since it got its turn.
        let Some(watch) = self.watches.get_mut(&key) else { return };
        if watch.state != WatchState::InTurn {
            return;
        }
        if watch.credit_bytes <= 0 {
            watch.state = WatchState::Stopped;
            return;
        }
        let (origin, connection) = (watch.origin, watch.connection);
        match self.ways.room(origin, connection) {
            Room::Free => {}
            room => {
                watch.state = WatchState::Stopped;
                return self.ways.stop(origin, connection, key, room);
            }
        }
        if let Some(ResetUnderWay { view, from, .. }) = &watch.reset {
            let range = KeyInterval { from: from.clone(), to: watch.range.to.clone() };
            let rows_max = self.limits.page.changes;
            let of = WatchReadOf::Rows { range, view: *view, rows_max };
            return self.begin_read(key, of);
        }
        self.recent_is_used = true;
        let recent = self.recent.get_or_insert_with(|| {
            let mut recent = RecentByKey::default();
            recent.renew(&self.store);
            recent
        });
        let most = self.limits.page;
        match recent.page(&watch.range, watch.tells_previous, &watch.position, most) {
            Recent::ReadStore => {
                let of = WatchReadOf::Changes {
                    range: watch.range.clone(),
                    tells_previous: watch.tells_previous,
                    after: watch.position.clone(),
                    most,
                };
                self.begin_read(key, of);
            }
            Recent::Changes { changes, position, has_more } => {
                self.show_changes(key, changes, position);
                self.go_on(key, has_more);
            }
        }
    }

    fn begin_read(&mut self, key: WatchKey, of: WatchReadOf) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        if self.reads >= self.limits.reads_max {
            return self.read_turns.push(watch.origin, watch.connection, key);
        }
        watch.state = WatchState::Reading;
        self.reads += 1;
        self.outputs.push(WatchOutput::Read(WatchRead { watch: key, of }));
    }

    /// Has a watch served again, or lets it wait for changes.
    fn go_on(&mut self, key: WatchKey, has_more: bool) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        // Where the window has begun anew just now, it has not come as far as those that wait.
        if has_more || watch.position.up_to < self.seen {
            return self.put_in_turn(key);
        }
        watch.state = WatchState::Waiting;
        self.index.insert(&watch.range, key);
    }

    /// Takes in what was read for a watch.
    fn read(&mut self, key: WatchKey, page: WatchPage) {
        assert!(self.reads > 0, "a page that was not asked for");
        self.reads -= 1;
        if let (Some(recent), WatchPage::Changes(Ok(page))) = (&mut self.recent, &page) {
            recent.learn(&page.changes);
        }
        let Some(watch) = self.watches.get_mut(&key) else { return };
        match page {
            WatchPage::Changes(Ok(page)) => self.show_changes(key, page.changes, page.next),
            WatchPage::Changes(Err(ChangesError::Gone { .. }))
            | WatchPage::Rows(Err(StoreReadError::Expired)) => {
                let view = ReadView::as_of(self.store.applied().timestamp);
                let from = watch.range.from.clone();
                watch.reset = Some(ResetUnderWay { view, from, begins: true });
            }
            WatchPage::Rows(Ok((rows, next))) => self.show_rows(key, rows, next),
            WatchPage::Rows(Err(error @ StoreReadError::Compacted { .. })) => {
                panic!("a page for a watch is refused: {error}")
            }
            WatchPage::Changes(Err(ChangesError::Store(error)))
            | WatchPage::Rows(Err(StoreReadError::Store(error))) => {
                // The thread that has read has reported it, and a damaged store ends the server.
                log::warn!("a watch is stopped: {error}");
                watch.state = WatchState::Stopped;
                return;
            }
        }
        // Whether memory goes on from here is seen when it is its turn.
        self.put_in_turn(key);
    }

    fn show_rows(&mut self, key: WatchKey, rows: Vec<Row>, next: Option<PageNext>) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        let Some(reset) = &mut watch.reset else { panic!("rows for {watch:?}") };
        let (at, begins) = (reset.view.at, reset.begins);
        let continues = next.is_some();
        match next {
            Some(PageNext::From(from)) => (reset.from, reset.begins) = (from, false),
            Some(other) => panic!("a range goes on at {other:?}"),
            None => {
                watch.reset = None;
                watch.position = FeedPosition::after(at);
            }
        }
        self.send(key, &encode(WatchFrame::Reset { rows, at, begins, continues }));
    }

    /// Has the connections closed for which another server may have more than this one.
    fn cut_off(&mut self) {
        let mut caught_up: Vec<ConnectionId> = Vec::new();
        for (connection, known) in &self.connections {
            let states = known.watches.values().filter_map(|key| self.watches.get(key));
            let (mut waits, mut reads) = (false, !self.ways.is_idle(*connection));
            for watch in states {
                match watch.state {
                    WatchState::Waiting => waits = true,
                    WatchState::InTurn | WatchState::Reading => reads = true,
                    // Without credit it would be shown nothing elsewhere, either.
                    WatchState::Stopped => {}
                }
            }
            if waits && !reads {
                caught_up.push(*connection);
            }
        }
        caught_up.sort_unstable();
        let why = WatchEnd::CutOff;
        let close = |connection| WatchOutput::Close { connection, why };
        self.outputs.extend(caught_up.into_iter().map(close));
    }

    /// Tells each connection how far its watches have come.
    fn progress(&mut self) {
        if !std::mem::take(&mut self.recent_is_used) {
            self.recent = None;
        }
        let mut connections: Vec<ConnectionId> = self.connections.keys().copied().collect();
        connections.sort_unstable();
        connections.into_iter().for_each(|connection| self.tell_progress(connection));
        if let Some(connection) = self.ways.heaviest() {
            self.outputs.push(WatchOutput::Close { connection, why: WatchEnd::TooSlow });
        }
    }

    /// Tells a connection how far its watches have come, if they have and it takes what it is sent:
    /// all of them together, and those that are not behind where others are. So one that reads a
    /// long past, or whose client takes nothing, holds up no other.
    fn tell_progress(&mut self, connection: ConnectionId) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        // A watch may begin in the future, and the next one of its connection need not.
        let applied = self.store.applied().timestamp;
        let (mut of_all, newest) = (applied, self.seen.min(applied));
        let (mut behind, mut origin) = (Vec::new(), None);
        for (number, key) in &known.watches {
            let Some(watch) = self.watches.get(key) else { continue };
            let up_to = watch.has_come_to(self.seen);
            of_all = of_all.min(up_to);
            if up_to < newest {
                behind.push(*number);
            }
            origin = Some(watch.origin);
        }
        let Some(origin) = origin.filter(|ip| self.ways.room(*ip, connection) == Room::Free) else {
            return;
        };
        let mut told = Vec::new();
        if known.told < of_all {
            known.told = of_all;
            told.push((of_all, Vec::new()));
        }
        if behind.is_empty() || behind.len() == known.watches.len() {
            known.told_but.1 = Vec::new();
        } else if known.told_but.0 < newest || known.told_but.1 != behind {
            known.told_but = (newest, behind.clone());
            told.push((newest, behind));
        }
        for (up_to, behind) in told {
            self.send_to(origin, connection, |frames| frames.add_progress(up_to, behind));
        }
    }
}

/// The ends of the range that a change is of.
fn ends(change: &RecentChange) -> (&Bytes, &Bytes) {
    match change {
        RecentChange::Key(change) => (&change.key, &change.key),
        RecentChange::Range { range, .. } => (&range.from, &range.to),
    }
}
