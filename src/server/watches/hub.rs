//! The state machine of watches: who is shown what next. The rules are in [`watches`](super).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::index::WatchIndex;
use super::quota::WatchQuota;
use super::recent::{Recent, change_bytes, recent_of};
use super::turns::WatchTurns;
use super::{
    CONNECTION_BYTES_MAX, PROCESS_BYTES_MAX, READS_MAX, WatchFrames, WatchInput, WatchKey,
    WatchOutput, WatchPage, WatchRead, WatchReadOf,
};
use crate::limits::{self, PAGE_BYTES_MAX, PAGE_ROWS_MAX, WATCH_CREDIT_BYTES_MAX};
use crate::model::{
    FeedPosition, KeyChange, KeyInterval, PageNext, ReadView, Row, Timestamp, check_key,
};
use crate::net::ConnectionId;
use crate::node::RequestToken;
use crate::storage::feed::ChangesError;
use crate::storage::reads::{PageError, Store};
use crate::storage::recent::{RecentBatch, RecentChange, RecentPart};
use crate::wire::message::{ErrorCode, ErrorReply, Message, Reply, WatchFrame, WatchRequest};

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
}

#[derive(Debug, Default)]
struct WatchingConnection {
    watches: BTreeMap<u64, WatchKey>,
    /// Bytes on their way to it.
    unsent_bytes: usize,
    /// Watches that are stopped because of that.
    stopped: BTreeSet<WatchKey>,
    /// The progress that it was told last.
    told: Timestamp,
}

/// All watches of a server.
pub struct WatchHub {
    store: Store,
    watches: HashMap<WatchKey, Watch>,
    connections: HashMap<ConnectionId, WatchingConnection>,
    /// The watches that wait.
    index: WatchIndex,
    quota: WatchQuota,
    turns: WatchTurns,
    /// The changes up to here were looked up in the index.
    seen: Timestamp,
    last_key: u64,
    unsent_bytes: usize,
    reads: usize,
    outputs: Vec<WatchOutput>,
}

impl WatchHub {
    /// Without watches. `seed` is drawn at random.
    pub fn new(store: Store, seed: u64) -> WatchHub {
        WatchHub {
            store,
            watches: HashMap::new(),
            connections: HashMap::new(),
            index: WatchIndex::new(seed),
            quota: WatchQuota::default(),
            turns: WatchTurns::default(),
            seen: Timestamp::ZERO,
            last_key: 0,
            unsent_bytes: 0,
            reads: 0,
            outputs: Vec::new(),
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
            WatchInput::Progress => self.progress(),
        }
    }

    /// Serves the watches whose turn it is, and gives out what is to be done, in order.
    pub fn flush(&mut self) -> Vec<WatchOutput> {
        // A watch that is served and has more to show has another turn, behind the others.
        while self.unsent_bytes < PROCESS_BYTES_MAX
            && self.reads < READS_MAX
            && let Some(watch) = self.turns.pop()
        {
            self.serve(watch);
        }
        std::mem::take(&mut self.outputs)
    }

    fn reply(&mut self, token: RequestToken, reply: Reply) {
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
        self.turns.push(origin, key);
        self.reply(token, Reply::WatchOk { after });
    }

    fn unwatch(&mut self, token: RequestToken, number: u64) {
        let connection = ConnectionId::from_u64(token.connection);
        let known = self.connections.get_mut(&connection);
        let Some(key) = known.and_then(|known| known.watches.remove(&number)) else {
            return self.invalid(token, format!("there is no watch {number} on this connection"));
        };
        self.forget(key);
        if self.connections.get(&connection).is_some_and(|known| known.watches.is_empty())
            && self.connections.get(&connection).is_some_and(|known| known.unsent_bytes == 0)
        {
            self.connections.remove(&connection);
        }
        self.reply(token, Reply::UnwatchOk {});
    }

    fn closed(&mut self, connection: ConnectionId) {
        let Some(known) = self.connections.remove(&connection) else { return };
        self.unsent_bytes -= known.unsent_bytes;
        known.watches.into_values().for_each(|key| self.forget(key));
    }

    /// Ends a watch that its connection does not know any more.
    fn forget(&mut self, key: WatchKey) {
        let Some(watch) = self.watches.remove(&key) else {
            panic!("a connection had {key:?}, which does not exist")
        };
        if watch.state == WatchState::Waiting {
            self.index.remove(&watch.range, key);
        }
        if let Some(known) = self.connections.get_mut(&watch.connection) {
            known.stopped.remove(&key);
        }
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
        // Those of a connection that is gone were taken back.
        let Some(known) = self.connections.get_mut(&connection) else { return };
        assert!(known.unsent_bytes >= bytes, "{bytes} sent of {}", known.unsent_bytes);
        known.unsent_bytes -= bytes;
        self.unsent_bytes -= bytes;
        if known.unsent_bytes < CONNECTION_BYTES_MAX {
            let stopped = std::mem::take(&mut known.stopped);
            stopped.into_iter().for_each(|key| self.put_in_turn(key));
        }
        let known = self.connections.get(&connection);
        if known.is_some_and(|known| known.watches.is_empty() && known.unsent_bytes == 0) {
            self.connections.remove(&connection);
        }
    }

    /// Has a watch that is not in the index served when it is its turn.
    fn put_in_turn(&mut self, key: WatchKey) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        watch.state = WatchState::InTurn;
        self.turns.push(watch.origin, key);
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
        for batch in &batches {
            self.applied_batch(batch);
        }
    }

    fn applied_batch(&mut self, batch: &Arc<RecentBatch>) {
        let before = self.seen.max(batch.after);
        let mut touched: BTreeMap<WatchKey, Vec<&RecentChange>> = BTreeMap::new();
        for change in batch.changes.iter().filter(|change| change.at() > before) {
            let (from, to) = match change {
                RecentChange::Key(change) => (&change.key, &change.key),
                RecentChange::Range { range, .. } => (&range.from, &range.to),
            };
            self.index.overlapping(from, to, &mut |key| {
                touched.entry(key).or_default().push(change);
            });
        }
        for (key, changes) in touched {
            self.show_batch(key, &changes, (before, batch.up_to));
        }
        self.seen = batch.up_to;
    }

    /// Shows a watch that waits what of a batch it is to see, or has it served in its turn.
    fn show_batch(
        &mut self,
        key: WatchKey,
        changes: &[&RecentChange],
        (before, up_to): (Timestamp, Timestamp),
    ) {
        let Some(watch) = self.watches.get(&key) else { return };
        let mut shown = Vec::new();
        let mut bytes = 0;
        for change in changes {
            match change {
                RecentChange::Key(change) => {
                    if watch.position.is_before(change.at, &change.key) {
                        bytes += change_bytes(change);
                        shown.push(change.clone());
                    }
                }
                RecentChange::Range { at, .. } if *at <= watch.position.up_to => {}
                RecentChange::Range { .. } => return self.put_in_turn_from_index(key, before),
            }
        }
        if shown.is_empty() {
            return;
        }
        let fits = shown.len() <= PAGE_ROWS_MAX && (shown.len() == 1 || bytes <= PAGE_BYTES_MAX);
        if watch.tells_previous || !fits || !self.may_show(key) {
            return self.put_in_turn_from_index(key, before);
        }
        self.show_changes(key, shown, FeedPosition::after(up_to));
    }

    /// Whether a watch may be shown something now.
    fn may_show(&self, key: WatchKey) -> bool {
        let Some(watch) = self.watches.get(&key) else { return false };
        let known = self.connections.get(&watch.connection);
        watch.credit_bytes > 0
            && self.unsent_bytes < PROCESS_BYTES_MAX
            && known.is_some_and(|known| known.unsent_bytes < CONNECTION_BYTES_MAX)
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
            self.send(key, WatchFrame::Events { changes, up_to, continues });
        }
    }

    fn send(&mut self, key: WatchKey, body: WatchFrame) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        watch.credit_bytes -= i64::from(body.credit_bytes());
        let (connection, number) = (watch.connection, watch.number);
        self.send_message(connection, &Message::Watched { watch: number, body });
    }

    fn send_message(&mut self, connection: ConnectionId, message: &Message) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        // What goes to one connection at once goes in one piece of work.
        let is_next = matches!(
            self.outputs.last(),
            Some(WatchOutput::Send { connection: last, .. }) if *last == connection
        );
        if !is_next {
            let frames = WatchFrames::default();
            self.outputs.push(WatchOutput::Send { connection, frames });
        }
        if let Some(WatchOutput::Send { frames, .. }) = self.outputs.last_mut() {
            let bytes = frames.add(message);
            known.unsent_bytes += bytes;
            self.unsent_bytes += bytes;
        }
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
        let Some(known) = self.connections.get_mut(&watch.connection) else { return };
        if known.unsent_bytes >= CONNECTION_BYTES_MAX {
            watch.state = WatchState::Stopped;
            known.stopped.insert(key);
            return;
        }
        if let Some(ResetUnderWay { view, from, .. }) = &watch.reset {
            let range = KeyInterval { from: from.clone(), to: watch.range.to.clone() };
            let of = WatchReadOf::Rows { range, view: *view };
            return self.begin_read(key, of);
        }
        match recent_of(&self.store, &watch.range, watch.tells_previous, &watch.position) {
            Recent::ReadStore => {
                let of = WatchReadOf::Changes {
                    range: watch.range.clone(),
                    tells_previous: watch.tells_previous,
                    after: watch.position.clone(),
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
        if let Some(watch) = self.watches.get_mut(&key) {
            watch.state = WatchState::Reading;
            self.reads += 1;
            self.outputs.push(WatchOutput::Read(WatchRead { watch: key, of }));
        }
    }

    /// Has a watch served again, or lets it wait for changes.
    fn go_on(&mut self, key: WatchKey, has_more: bool) {
        if has_more {
            return self.put_in_turn(key);
        }
        if let Some(watch) = self.watches.get_mut(&key) {
            watch.state = WatchState::Waiting;
            self.index.insert(&watch.range, key);
        }
    }

    /// Takes in what was read for a watch.
    fn read(&mut self, key: WatchKey, page: WatchPage) {
        assert!(self.reads > 0, "a page that was not asked for");
        self.reads -= 1;
        let Some(watch) = self.watches.get_mut(&key) else { return };
        match page {
            WatchPage::Changes(Ok(page)) => self.show_changes(key, page.changes, page.next),
            WatchPage::Changes(Err(ChangesError::Gone { .. }))
            | WatchPage::Rows(Err(PageError::Expired)) => {
                let view = ReadView::as_of(self.store.applied().timestamp);
                let from = watch.range.from.clone();
                watch.reset = Some(ResetUnderWay { view, from, begins: true });
            }
            WatchPage::Rows(Ok((rows, next))) => self.show_rows(key, rows, next),
            WatchPage::Changes(Err(ChangesError::Store(error)))
            | WatchPage::Rows(Err(PageError::Store(error))) => {
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
        self.send(key, WatchFrame::Reset { rows, at, begins, continues });
    }

    /// Tells each connection how far its watches have come, if they have and it takes what it is
    /// sent.
    fn progress(&mut self) {
        let mut reached: HashMap<ConnectionId, Timestamp> = HashMap::new();
        for watch in self.watches.values() {
            let up_to = match (&watch.reset, watch.state) {
                (Some(_), _) => Timestamp::ZERO,
                (None, WatchState::Waiting) => watch.position.up_to.max(self.seen),
                (None, _) => watch.position.up_to,
            };
            let least = reached.entry(watch.connection).or_insert(up_to);
            *least = up_to.min(*least);
        }
        let mut reached: Vec<_> = reached.into_iter().collect();
        reached.sort_unstable();
        for (connection, up_to) in reached {
            let Some(known) = self.connections.get_mut(&connection) else { continue };
            if known.told < up_to && known.unsent_bytes == 0 {
                known.told = up_to;
                self.send_message(connection, &Message::WatchProgress { up_to });
            }
        }
    }
}
