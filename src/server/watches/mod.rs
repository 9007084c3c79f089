//! Watches: clients are shown every change of a range of keys, in order, each once.
//!
//! The [`hub`] is a state machine without sockets, clocks and disks: it takes [`WatchInput`]s and
//! returns [`WatchOutput`]s. A thread of its own drives it (`server::threads::watcher`), beside the
//! event loop and the applier, and the simulator does.
//!
//! Rule: what a watch has been shown is all changes of its range after where it began, up to its
//! position, in order; or, from a `RESET` on, a state and all changes after that. The position is
//! kept in the hub, and nothing else of what a watch is to see: that is in the store, and the
//! latest changes in the window beside it (`storage::feed`), whose handover is exact.
//!
//! - *A watch that waits* has seen everything that the hub has met, and is in the [`index`]. What
//!   has changed since the last time is looked up there once, key by key; so watches of other keys
//!   cost a change nothing but that look-up, and an idle watch costs its keys and half a kilobyte.
//!   What is found is encoded once for all watches of one range that have seen as much.
//! - *A watch that is behind* is in turn: what it is to see next is taken from the window, if that
//!   reaches back to its position, and read from the store by another thread otherwise, a page at a
//!   time and one at once. Origins take turns, within an origin its clients, and within a client
//!   its watches. A slow disk holds up none that memory can serve.
//! - *A watch that tells what was before* is never shown anything while it waits: of each change
//!   that it meets it has its turn, and what the key had before is read from the store for the
//!   first such watch and lies beside the change for all others.
//! - *A client that does not read* stops its watches and nothing else. A watch may be shown so much
//!   as its client has given it credit for; a connection may have so many bytes on their way, an
//!   origin, and the process ([`WatchLimits`]). Beyond, a watch keeps its position, and no memory.
//!   Where the process has too much on its way, the connection that it waits for longest is closed.
//!   A value that a thousand watches are shown is in memory once: long values go out from where
//!   they lie.
//! - *A long write* of more keys than are looked up at once has the watches that it meets served in
//!   their turn, and costs others nothing.
//! - *What is gone* (removed for good, or compacted, at or after the position) is answered by the
//!   state of the range, page by page, as of a version, whose page is refused if it takes so long
//!   that the state is gone meanwhile; then it begins anew.
//! - *The removal of a long range* is no list of keys: its watches read it from the store.
//! - *A server that lags* shows what it has applied. A watch that begins after a version which it
//!   has not reached waits like any other, and is shown nothing before that. When a snapshot takes
//!   the place of the store, the window begins anew behind all positions, so that the watches read
//!   on in the new store, whose changes are the group's as those of the old one were.
//! - *A server that is cut off* from the group, as the core knows, has the connections closed whose
//!   watches have caught up: another server may have more for their clients, who go on there. Those
//!   that still have something to read from its store read on. A client that comes back, because
//!   all servers are cut off, stays until the event loop says so again, some seconds later.
//! - *A server whose state is in doubt* shows nothing more: the event loop, which knows it, closes
//!   the connections that are to be shown something.
//!
//! What a watch may take of a server is in [`quota`].

mod hub;
mod index;
mod on_way;
mod quota;
mod recent;
mod turns;

use std::net::IpAddr;

use bytes::Bytes;

pub use self::hub::WatchHub;
use crate::limits;
use crate::model::{FeedPosition, KeyInterval, PageNext, PageOf, ReadView, Row, Timestamp};
use crate::net::ConnectionId;
use crate::node::RequestToken;
use crate::storage::feed::{ChangesError, ChangesLimits, ChangesPage};
use crate::storage::reads::{PageLimits, Store, StoreReadError};
use crate::wire::codec::{self, CodecError};
use crate::wire::message::{Message, Reply, WatchRequest};
use crate::wire::watched::EncodedWatchFrame;

/// The bounds of what a hub does and holds at once; tests have smaller ones.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    /// Bytes that may be on their way to one connection, from the hub to its socket.
    pub connection_bytes_max: usize,
    /// Bytes that may be on their way to all connections of an origin: half of what there is, so
    /// that one cannot take it all.
    pub origin_bytes_max: usize,
    /// Bytes that may be on their way to all connections. Long values count for each that is shown
    /// them, though they are in memory once.
    pub process_bytes_max: usize,
    /// A connection to which less is on its way may be shown more, however full the process is: so
    /// those who take what they are shown go on beside any number of those who do not. That holds
    /// for an origin up to [`FEW_CONNECTIONS`] times as much, and takes no more memory, for all
    /// connections together, than the process may have besides.
    pub few_bytes_max: usize,
    /// Pages that are read from the store at once. Each has at most
    /// [`limits::PAGE_BYTES_MAX`](crate::limits::PAGE_BYTES_MAX) and one value.
    pub reads_max: usize,
    /// Changes and the ranges that have each, which are put together before anybody is shown them:
    /// a mebibyte. Of a write that alone has more all watches are served in their turn.
    pub looked_up_max: usize,
    /// Recent changes that are looked at for watches in turn before other inputs are taken in: some
    /// ten milliseconds.
    pub looks_max: usize,
    /// What a watch is shown in one frame at most, of changes and of the rows of a reset.
    pub page: ChangesLimits,
}

impl WatchLimits {
    /// Those of this release.
    pub const DEFAULT: WatchLimits = WatchLimits {
        connection_bytes_max: 1024 * 1024,
        origin_bytes_max: 32 * 1024 * 1024,
        process_bytes_max: 64 * 1024 * 1024,
        few_bytes_max: 16 * 1024,
        reads_max: 4,
        looked_up_max: 64 * 1024,
        looks_max: 100_000,
        page: ChangesLimits::DEFAULT,
    };
}

const _: () = assert!(
    WatchLimits::DEFAULT.few_bytes_max * limits::CONNECTIONS_MAX
        <= WatchLimits::DEFAULT.process_bytes_max
);

/// Connections of an origin whose [`WatchLimits::few_bytes_max`] count, however many it has.
const FEW_CONNECTIONS: usize = 32;

/// What a piece of frames counts for at least, which has work and memory of its own.
const SEND_BYTES_MIN: usize = 1024;

/// A watch's number in the hub, which is not given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchKey(u64);

/// What the hub is told.
#[derive(Debug)]
pub enum WatchInput {
    /// A client begins a watch.
    Watch { token: RequestToken, origin: IpAddr, request: WatchRequest },
    /// A client ends one.
    Unwatch { token: RequestToken, watch: u64 },
    /// A client has taken what it was shown.
    Credit { connection: ConnectionId, watch: u64, bytes: u32 },
    /// A client is gone.
    Closed { connection: ConnectionId },
    /// The state machine has gone on, or a snapshot has taken its place.
    Applied,
    /// A page was read.
    Read { watch: WatchKey, page: WatchPage },
    /// What was on its way to a connection has left the process, or is lost with its connection.
    Sent { connection: ConnectionId, bytes: usize },
    /// No leader has been known for a while, so that nothing new comes to this server. Said again
    /// and again as long as that lasts.
    CutOff,
    /// It is time to tell clients how far their watches have come.
    Progress,
}

/// What the hub wants done, in order.
#[derive(Debug)]
pub enum WatchOutput {
    Reply {
        token: RequestToken,
        reply: Reply,
    },
    /// What watches are shown. When it has been sent, the hub is told so.
    Send {
        connection: ConnectionId,
        frames: WatchFrames,
    },
    /// A page is to be read, on a thread that may wait for a disk.
    Read(WatchRead),
    /// A connection is to be closed. That is told the hub as every end of a connection.
    Close {
        connection: ConnectionId,
        why: WatchEnd,
    },
}

/// The reason why the hub has a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// Its client takes what it is shown so slowly that it keeps all others waiting.
    TooSlow,
    /// It has been shown what there is, and nothing more comes to this server.
    CutOff,
}

/// Frames that go to one connection, in order.
#[derive(Debug, Default)]
pub struct WatchFrames {
    /// Whole frames, with long values where they lie in memory.
    pieces: Vec<Bytes>,
    /// Whole frames behind them.
    last: Vec<u8>,
    bytes: usize,
}

impl WatchFrames {
    /// Adds the frame of a watch.
    fn add(&mut self, watch: u64, frame: &EncodedWatchFrame) {
        let before = self.last.len();
        let rest = frame.put(watch, &mut self.last).unwrap_or_else(|error| does_not_fit(&error));
        let mut bytes = self.last.len() - before;
        if !rest.is_empty() {
            self.end_piece();
            bytes += rest.iter().map(Bytes::len).sum::<usize>();
            self.pieces.extend(rest.iter().cloned());
        }
        self.bytes += bytes;
    }

    /// Adds what the watches of the connection are told, but for those behind.
    fn add_progress(&mut self, up_to: Timestamp, behind: Vec<u64>) {
        let before = self.last.len();
        let message = Message::WatchProgress { up_to, behind };
        codec::encode(&message, limits::SERVER_FRAME_BYTES_MAX, &mut self.last)
            .unwrap_or_else(|error| does_not_fit(&error));
        self.bytes += self.last.len() - before;
    }

    fn end_piece(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push(std::mem::take(&mut self.last).into());
        }
    }

    /// What they count for until they have left.
    pub fn bytes(&self) -> usize {
        if self.bytes == 0 { 0 } else { self.bytes.max(SEND_BYTES_MIN) }
    }

    pub fn into_pieces(mut self) -> Vec<Bytes> {
        self.end_piece();
        self.pieces
    }
}

/// It has a page, or one change with its values, for which a frame has room.
fn does_not_fit(error: &CodecError) -> ! {
    panic!("what a watch is shown does not fit a frame: {error}")
}

/// A page that a watch is to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRead {
    pub watch: WatchKey,
    pub of: WatchReadOf,
}

/// What is read for a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchReadOf {
    /// The changes of a range after a position.
    Changes { range: KeyInterval, tells_previous: bool, after: FeedPosition, most: ChangesLimits },
    /// The keys of a range, as of a version.
    Rows { range: KeyInterval, view: ReadView, rows_max: usize },
}

impl WatchReadOf {
    /// Reads the page, which a disk may hold up.
    pub fn read(self, store: &Store) -> WatchPage {
        match self {
            WatchReadOf::Changes { range, tells_previous, after, most } => {
                WatchPage::Changes(store.changes(&range, tells_previous, &after, most))
            }
            WatchReadOf::Rows { range, view, rows_max } => {
                let of = PageOf::Range { from: range.from, to: range.to };
                let most = PageLimits { rows: rows_max, ..PageLimits::default() };
                let page = store.page_for_watch(&of, view, most);
                WatchPage::Rows(page.map(|page| (page.rows, page.next)))
            }
        }
    }
}

/// What came of a [`WatchRead`].
#[derive(Debug)]
pub enum WatchPage {
    Changes(Result<ChangesPage, ChangesError>),
    Rows(Result<(Vec<Row>, Option<PageNext>), StoreReadError>),
}
