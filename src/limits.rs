//! Limits that users see, that several parts share, or that stand in a relation to others.
//!
//! Each says what happens when it is reached, and why it has this value. Units come last in the
//! names. Relations between limits are checked when the crate is compiled. A limit with one user
//! stands beside that user. What counts as one origin is said here, too, since limits of every room
//! count by origin.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// What is few of something that is kept for as long as its owner likes: an origin may have as many
/// whatever others have, as long as there are any.
pub const HELD_FEW: usize = 16;

/// Whether an origin that has `own` of something that is kept for as long as its owner likes, and
/// more than few ([`HELD_FEW`]), may have more, where all origins have `all` and may have `most`.
///
/// A sixteenth is for origins with few. Of the rest an origin may have as much as it leaves to
/// others: the first one up to half, the next one half of what is left, and so on, so that however
/// much some have taken, something is left for one more.
pub fn is_within_share(own: usize, all: usize, most: usize) -> bool {
    own < (most - most / 16).saturating_sub(all)
}

/// The origin of an address, which is what quotas count: an IPv4 address in either notation as
/// itself, and of an IPv6 address the first 64 bits.
pub fn origin_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => {
            let prefix = u128::from(ip) & !u128::from(u64::MAX);
            // A connection from this machine itself has no network whose addresses could be had.
            if ip.is_loopback() { ip.into() } else { Ipv6Addr::from(prefix).into() }
        }
    }
}

// ---- data ---------------------------------------------------------------------------------

/// A key of zero bytes or of more than this is refused with `INVALID`.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// The default of `--max-value`; a longer value is refused with `INVALID`.
pub const VALUE_BYTES_MAX_DEFAULT: usize = 1024 * 1024;
/// The most `--max-value` may be set to.
pub const VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a message adds to its key and value: names, numbers, lengths.
pub const MESSAGE_OVERHEAD_BYTES_MAX: usize = 4 * 1024;
/// What a list of keys, or of keys and values, adds to each of them.
pub const PAIR_OVERHEAD_BYTES_MAX: usize = 9;
/// Keys of one write on many keys; more are refused with `INVALID`.
pub const TRANSACTION_KEYS_MAX: usize = 128 * 1024;
/// Bytes of all keys and values of one write; more are refused with `INVALID`. It is one log entry,
/// so that it takes effect as a whole.
pub const TRANSACTION_BYTES_MAX: usize = VALUE_BYTES_MAX + KEY_BYTES_MAX;
/// How deep transactions nest, the outermost one included; a deeper one is refused with `INVALID`.
/// Deeper than anybody writes by hand, and shallow enough for any stack.
pub const TRANSACTION_DEPTH_MAX: usize = 8;
/// Transactions that one is made of, itself included; more are refused with `INVALID`. A session
/// remembers one bit of each.
pub const TRANSACTIONS_WITHIN_MAX: usize = u64::BITS as usize;
/// Comparisons, reads, and removals of ranges of one transaction; more are refused with `INVALID`.
/// Each is a seek at least, while all other writes wait: together a few milliseconds.
pub const TRANSACTION_LOOKS_MAX: usize = 1_000;
/// Rows that the comparisons and removals of ranges of one transaction may look at together, past
/// which it does nothing, and rows that its reads of ranges may look at, which end there.
pub const TRANSACTION_ROWS_MAX: usize = 10_000;
/// Bytes of values that the comparisons of one transaction may read together, past which it does
/// nothing: two values of the longest kind there is. A value is read only if its length does not
/// tell the result.
pub const TRANSACTION_COMPARED_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;
/// Bytes of keys and values in the answer to one transaction. Values that find no room are left
/// out, and lists of rows end.
pub const TRANSACTION_RESULT_BYTES_MAX: usize = 1024 * 1024;
/// Rows in one page of a longer read.
pub const PAGE_ROWS_MAX: usize = 4096;
/// Bytes of rows in one page (one larger row still travels alone).
pub const PAGE_BYTES_MAX: usize = 512 * 1024;
/// Rows of the store looked at for one page; after that many it ends, however few it holds. Rows
/// that are skipped do not count, but each row may be reached by a seek in every run: so it is four
/// for each row that a page may have.
pub const PAGE_VISITS_MAX: usize = 4 * PAGE_ROWS_MAX;
/// How much a watch may be shown before its client says that it has taken it: with as many as are
/// under way at a line of a gigabit in a round trip of two milliseconds.
pub const WATCH_CREDIT_BYTES_MAX: u32 = 256 * 1024;
/// Watches of one connection. A client with more has more connections.
pub const WATCHES_PER_CONNECTION_MAX: usize = 16 * 1024;
/// Bytes of the store looked at for one page: keys, and values that it shows. A page whose rows do
/// not fit together still ends.
pub const PAGE_SCAN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A range removed in one write is looked through for its keys, of each of which the newest row is
/// looked at, up to so many; a longer one is remembered as a range until it has been taken off the
/// disk.
pub const REMOVAL_SCAN_ROWS_MAX: usize = 1024;
/// A range that is removed with its history kept gets a tombstone for each key, so all of them have
/// to be looked through, up to so many rows in one write: as many keys as a write may name. A
/// longer one is refused.
pub const KEPT_REMOVAL_ROWS_MAX: usize = TRANSACTION_KEYS_MAX;
/// Bytes of the keys of these rows, for each that may be looked at: few keys are longer. Each key
/// is in memory three times until it is in the store's: as it was found, in the row of the
/// tombstone, and in that of the change. With what goes with each, such a removal takes some
/// 100 MiB of an applier at most. It is a part of what entries mean.
pub const KEPT_REMOVAL_BYTES_PER_ROW: usize = 128;
/// Ranges remembered so at once; one more is refused with `BUSY`.
pub const RANGE_REMOVALS_MAX: usize = 64;
/// What was removed can still be read by those who began before, or removed it, for this long.
pub const REMOVAL_GRACE: Duration = Duration::from_secs(60);
/// Rows that one piece of garbage collection, a log entry, deletes or reads.
pub const COLLECTION_ROWS_MAX: usize = 1024;
/// Approximate number of bytes that one piece reads. All replicas read them at the same index, from
/// a disk that may be slow, while writes wait. Memory holds one value of them at a time.
pub const COLLECTION_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The most versions of a key that `--history` may keep by number.
pub const HISTORY_VERSIONS_MAX: u32 = 10_000;
/// Time from the end of one compaction of the history to the next, so that keys that are written
/// again and again are compacted once.
pub const HISTORY_COMPACTION_PAUSE: Duration = Duration::from_secs(10);
/// Compaction of the history is late if a version has been due for this long. Then a piece follows
/// the one before as soon as that is applied, and does not wait for a tick: writers that replace
/// 12,000 versions a second would outrun one piece a tick for ever. Longer than the pause, in which
/// timely compaction falls behind as well.
pub const HISTORY_COMPACTION_LATE: Duration = Duration::from_secs(20);
const _: () = assert!(HISTORY_COMPACTION_LATE.as_micros() > HISTORY_COMPACTION_PAUSE.as_micros());
/// Leases that a group may have; one more is refused. Every server holds about 100 bytes of each in
/// memory, a leader as much again of those that it has granted, and a new leader looks at all of
/// them at once, in some tens of milliseconds. An origin has its share of them
/// ([`is_within_share`]).
pub const LEASES_MAX: usize = 256 * 1024;
/// Keys that a lease may have; a put of one more with it is refused. All of them go in one entry of
/// the log, in a tenth of a second's work, as much as of long writes may be under way at once. Long
/// keys count as several (`storage::leases`), so that they take some 25 MiB of memory, too.
pub const LEASE_KEYS_MAX: usize = 16 * 1024;
const _: () = assert!(LEASE_KEYS_MAX <= LONG_WRITE_ROWS_MAX);
/// Servers in a group; the default group has three.
pub const SERVERS_MAX: usize = 9;

// ---- frames and connections ---------------------------------------------------------------

/// A frame is a 4-byte big-endian length and that many bytes of MessagePack.
pub const FRAME_HEADER_BYTES: usize = 4;
/// Bytes of a frame before the greeting; a longer one closes the connection.
pub const HELLO_FRAME_BYTES_MAX: usize = 1024;
/// Bytes of a frame between servers; a longer one closes the connection. Room for the longest entry
/// behind a full message of others.
pub const SERVER_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Clients connected to a server at once. One more gets the place of one of the origin that has the
/// most, if its own has fewer (`net::crowd`); otherwise it is sent `REFUSED` and closed.
pub const CONNECTIONS_MAX: usize = 4096;
/// Connections that a server holds beyond [`CONNECTIONS_MAX`]: those of other servers, and
/// newcomers, of which the oldest gives way. So clients cannot keep the group's own servers out.
pub const CONNECTIONS_SPARE: usize = 256;
/// Bytes that the system buffers for sending to one client, as it is asked; Linux takes twice as
/// much, for what it adds to them. By itself it lets a buffer grow to some mebibytes, which no
/// limit of the server counts: with this one, clients that read nothing have two gibibytes at most
/// of the machine's memory in [`CONNECTIONS_MAX`] sockets. Half of what is taken is on the way at
/// once: a client at 100 ms of distance is sent some 2.5 MB a second, one at 1 ms 250.
pub const CLIENT_SOCKET_SEND_BYTES: usize = 256 * 1024;
/// Bytes read from one connection before the others get their turn.
pub const READ_BUDGET_BYTES: usize = 256 * 1024;
/// Requests of one client connection under way at once; past it the loop stops reading from that
/// socket until some are answered.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 1024;
/// Requests of all clients of a server under way at once; past it `BUSY`.
pub const REQUESTS_MAX: usize = 24 * 1024;
/// Requests of each client that are taken whatever others have under way.
pub const REQUESTS_FEW: usize = 2;
/// A value up to this length is always read when it is asked for: that many of them, for all
/// requests that may be under way on a connection, can wait to be sent.
pub const READ_SMALL_BYTES_MAX: usize = 16 * 1024;
/// Bytes that a request may hold while it is under way without being charged to the budget: for all
/// requests that may be under way this is 36 MiB.
pub const REQUEST_SMALL_BYTES_MAX: usize = 1024;
/// The longest reason that is given to someone, or that is believed from someone, when a
/// connection is refused; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 512;
/// Bytes queued for one client that does not read; past it the loop stops reading its requests.
pub const CLIENT_SEND_BYTES_PAUSE: usize = 4 * 1024 * 1024;
/// Bytes queued for one client; past it the connection is closed.
pub const CLIENT_SEND_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes that all accepted connections together may make a process hold: unfinished frames, what is
/// queued for them, and what their requests hold meanwhile; past it those with the most
/// byte-seconds are closed (see `net::budget`). With what is copied on the way, threads, caches and
/// a state machine at work a process stays below 512 MiB.
pub const BUDGET_PROCESS_BYTES_MAX: usize = 160 * 1024 * 1024;
/// Bytes that all connections of one origin may make a process hold, so that one machine leaves
/// room for others.
pub const BUDGET_ORIGIN_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes that one connection may make a process hold; past it it is not read until less is held.
/// Room for a queue that is as long as it may be, and for one request of the longest value.
pub const BUDGET_CONNECTION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes queued for one server on the connection for what may be long; past it replication messages
/// to it are dropped (and resent later by the consensus protocol). What is under way to a server is
/// bounded by [`APPENDS_IN_FLIGHT_MAX`] and [`FORWARD_BYTES_MAX`], and answers to writes that were
/// passed on by what transactions may tell: this is met only with a backlog of very long entries.
pub const SERVER_SEND_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of a frame on the connection between servers for what must not wait; a longer one closes
/// it.
pub const SERVER_CONTROL_FRAME_BYTES_MAX: usize = 4 * 1024;
/// From accept (or dial) to a whole greeting; then the connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From a frame's first byte to its last, the time in which this side does not read apart; then the
/// connection is closed. A frame of the longest value gets through at 70 KB a second.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(120);
/// A client connection with nothing under way and nothing received for this long is closed.
pub const CLIENT_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A connection whose other side takes no byte of what is queued for it for this long is closed.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How deep a message's MessagePack may nest; a deeper one closes the connection. A message without
/// transactions takes 12, and each transaction within another 3 more.
pub const MESSAGE_DEPTH_MAX: usize = 40;
const _: () = assert!(MESSAGE_DEPTH_MAX >= 12 + 3 * (TRANSACTION_DEPTH_MAX + 1));
/// The first buffer of a connection that has something to read; it doubles when it is full.
pub const FRAME_BUFFER_BYTES_MIN: usize = 4 * 1024;
/// The size up to which a connection's read buffer grows for small frames and to which it shrinks
/// after large ones.
pub const FRAME_BUFFER_BYTES_KEEP: usize = 64 * 1024;
/// How often a server sends PING to another one, on the connections that it has dialled.
pub const SERVER_PING_INTERVAL: Duration = Duration::from_millis(200);
/// Without an answer for this long, stalls of this server's loop not counted, the connection to
/// another server is given up and dialled again. Consensus notices silence sooner and by itself;
/// this limit is there because the system tries a cut connection again at ever longer intervals,
/// and a new one gets through at once.
pub const SERVER_SILENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection from another server on which nothing at all comes for this long is closed. Long,
/// because the server that dialled it closes it much sooner, and replaces it.
pub const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Another server that is dialled is to accept the connection within this time; then it is dialled
/// again. It is an election time-out: servers further apart cannot follow each other anyway.
pub const SERVER_DIAL_TIMEOUT: Duration = Duration::from_millis(300);
/// First wait before dialling a server again.
pub const DIAL_BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest wait before dialling a server again.
pub const DIAL_BACKOFF_MAX: Duration = Duration::from_millis(100);

// ---- event loop -----------------------------------------------------------------------------

/// After this long in one stage of an iteration (reading, taking completions, writing) the loop
/// goes on to the next one, and does what is left in the next iteration: so it looks at its sockets
/// again soon, whatever clients send. What a stage does in one step is bounded by the limits on
/// frames.
pub const LOOP_STAGE_TIME: Duration = Duration::from_millis(2);
/// A frame at least this long is decoded on a thread of its own kind and not on the event loop.
pub const LARGE_FRAME_BYTES: usize = 64 * 1024;
/// A large frame is received in pieces of at most this length.
pub const LARGE_FRAME_PIECE_BYTES: usize = 256 * 1024;
/// Connections an event loop has dialled and holds at once; one more fails to be dialled.
pub const DIALLED_CONNECTIONS_MAX: usize = 256;
/// Connections over the limit that are being refused at once; one more is closed without a reason.
pub const REFUSALS_MAX: usize = 64;
/// How long nothing is accepted after the system has refused another socket.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Frames are gathered in pieces of about this size before they are written.
pub const SEND_SEGMENT_BYTES: usize = 64 * 1024;
/// How long a connection is kept after its last frame is written, for the other side to read it.
pub const CLOSE_LINGER: Duration = Duration::from_secs(1);
/// How often deadlines are looked at; they are late by at most this much.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

// ---- queues between threads ---------------------------------------------------------------

/// Jobs waiting for the worker pool; past it a read is refused with `BUSY`.
pub const WORKER_QUEUE_JOBS_MAX: usize = 16 * 1024;
/// Reads that one worker is handed at once.
pub const READS_PER_BATCH_MAX: usize = 64;
/// A machine's clock that is further behind the newest version is mentioned in the log.
pub const CLOCK_BEHIND_WARNING: Duration = Duration::from_secs(10);
/// The group's feature level rises when every server has told for this long that it knows the next
/// one: ten times as long as it takes a server to put right what somebody else has said in its
/// name.
pub const LEVEL_SETTLED: Duration = Duration::from_secs(10);
/// How long a client that is refused with `BUSY` is told to wait, in milliseconds: a queue empties
/// in less.
pub const BUSY_RETRY_AFTER_MS: u32 = 50;

// ---- consensus ----------------------------------------------------------------------------

/// The core's clock tick.
pub const TICK: Duration = Duration::from_millis(20);
/// Ticks between a leader's heartbeats.
pub const HEARTBEAT_TICKS: usize = 3;
/// Ticks without a leader before a server asks for votes: between this and twice this.
pub const ELECTION_TICKS: usize = 15;
/// A server that has known no leader for this long is cut off: a watch that has caught up at it is
/// ended, so that its client goes on elsewhere. It is five times the longest wait before a server
/// asks for votes, so that an election ends nobody's watch, nor one that is held again because the
/// votes were split; and a client that watches is left without changes for no longer.
pub const CUT_OFF_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of entries in one replication message (one larger entry still travels alone).
pub const APPEND_BYTES_MAX: u64 = 256 * 1024;
/// Entries of one replication message; a longer list ends the connection.
pub const APPEND_ENTRIES_MAX: usize = 64 * 1024;
/// Replication messages to one server that are not yet answered.
pub const APPENDS_IN_FLIGHT_MAX: usize = 32;
/// Bytes proposed and not yet committed; past it writes wait. It is a second's work of a
/// slow disk: what is proposed last is still committed in time.
pub const UNCOMMITTED_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of keys and values that a server has forwarded to the leader and has no answer about; past
/// it writes wait. One is always forwarded, however long it is. So a leader is not buried
/// in what all servers have for it, and a new one gets no more than this of each.
pub const FORWARD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of entries proposed at once, and then …
pub const PROPOSE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// … or so many writes: the rest waits until the event loop has looked at its sockets.
pub const PROPOSE_WRITES_MAX: usize = 2048;
/// A write is long if applying it looks at more rows than this, one for each of its keys or as many
/// as a removal may scan: that takes several times a disk's sync …
pub const SHORT_WRITE_ROWS_MAX: usize = 512;
/// … and so many rows of long writes in a leader's log may wait to be applied, which is a tenth of
/// a second's work; one longer write still comes alone. As many rows of shorter writes of several
/// keys may wait besides.
pub const LONG_WRITE_ROWS_MAX: usize = 16 * 1024;
/// After a long write that took this long to be applied, which is as much as a disk's slow sync …
pub const LONG_WRITE_REST_FROM: Duration = Duration::from_millis(20);
/// … the next one rests for so many times as long, if others ask for something: they find the way
/// free three times in four …
pub const LONG_WRITE_REST_TIMES: u32 = 3;
/// … and for no longer than this, which is a fraction of the time that a long write may wait for
/// its turn.
pub const LONG_WRITE_REST_MAX: Duration = Duration::from_secs(3);
/// Writes under way at one server, waiting or proposed or forwarded; past it `BUSY`.
pub const PENDING_WRITES_MAX: usize = 16 * 1024;
/// Writes that a leader remembers when it has answered them, so that a copy that comes late is not
/// ordered again: as many as it answers in about a second, within which clients send them. Past it
/// the oldest is forgotten, and its copy is recognised when it is applied.
pub const ANSWERED_WRITES_MAX: usize = 8 * 1024;
/// Bytes of memory of the keys and values of writes under way at one server; past it `BUSY`.
pub const PENDING_WRITE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Memory that each key or value of a decoded request takes besides its bytes: its handle, as many
/// again in a list that has just grown, and its place on the heap.
pub const ELEMENT_OVERHEAD_BYTES: usize = 96;
/// Linearizable reads under way at one server; past it `BUSY`.
pub const PENDING_READS_MAX: usize = 16 * 1024;
/// Questions for the read index that a leader owes one server an answer to; one more is dropped,
/// and asked again by a server that means it. A server asks one for all of its reads that arrive
/// together.
pub const READ_INDEX_REQUESTS_MAX: usize = 4096;
/// Bytes of committed entries handed to the state machine in one piece.
pub const APPLY_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Entries of a leader's log that are not applied; past it PUTs are answered only when they are
/// applied, so that clients cannot run ahead of the state machine …
pub const APPLY_LAG_ENTRIES_MAX: u64 = 4096;
/// … and bytes of entries in its memory: past either, PUTs are answered only when they are applied.
pub const APPLY_LAG_BYTES_MAX: usize = LOG_CACHE_BYTES_MAX + 8 * 1024 * 1024;
/// Bytes of entries a server holds in memory because they are not applied yet. A leader with more
/// refuses writes with `BUSY`; a follower with more that are committed drops replication messages
/// (which the consensus protocol resends later). Else a store that hangs while the log goes on
/// would fill the memory.
pub const UNAPPLIED_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Ranges read from disk for late followers and kept until consensus asks for them again.
pub const FETCHED_RANGES_MAX: usize = 8;
/// Replication messages held back by `--replication-delay`; past it they are dropped (and resent).
pub const DELAYED_APPENDS_MAX: usize = 16 * 1024;
/// Entries kept in memory behind the applied index for followers that are a little late; older
/// ones are read from disk by a worker.
pub const LOG_CACHE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A write or linearizable read that is not committed or confirmed by then fails with
/// `NO_MAJORITY`.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The default of `--in-sync-timeout`.
pub const IN_SYNC_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// Without a report from a log that owes one for this long (from the state machine, for twice as
/// long) a server may not lead: it hands over, and steps down after as long again if nobody is
/// better off. It is what a leader grants a follower before it drops it from the in-sync set, and
/// leaves time for the next leader before `COMMIT_TIMEOUT`.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Replicas compare state hashes every so many entries.
pub const STATE_HASH_EVERY: u64 = 4096;
/// The leader of a group that is just founded waits this long for every server to take part before
/// it orders writes.
pub const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stopping leader waits for another server to take over.
pub const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);
/// A replicated timestamp may be this far ahead of this machine's clock, and so may a time of the
/// log's clock, which began with the group. A machine without a clock of its own starts in 1970;
/// and order would end with the greatest timestamp there can be. Beyond that both go on from what
/// is applied, by little at a time.
pub const TIMESTAMP_LEAP_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
/// How long a stopping server waits for what is under way before it hands over and exits.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long a stopping server waits for its threads, which may wait for a disk that does not
/// answer. What they would still have written was promised to nobody, or is in the log.
pub const STOP_DISK_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of what a node has under way and keeps in memory: the constants of the same names, except
/// in simulations.
#[derive(Clone, Copy, Debug)]
pub struct NodeLimits {
    /// By default [`APPEND_BYTES_MAX`], where the bound is explained.
    pub append_bytes_max: u64,
    /// By default [`APPENDS_IN_FLIGHT_MAX`], where the bound is explained.
    pub appends_in_flight_max: usize,
    /// By default [`UNCOMMITTED_BYTES_MAX`], where the bound is explained.
    pub uncommitted_bytes_max: u64,
    /// By default [`UNAPPLIED_BYTES_MAX`], where the bound is explained.
    pub unapplied_bytes_max: usize,
    /// By default [`APPLY_BYTES_MAX`], where the bound is explained.
    pub apply_bytes_max: u64,
    /// By default [`APPLY_LAG_ENTRIES_MAX`], where the bound is explained.
    pub apply_lag_entries_max: u64,
    /// By default [`APPLY_LAG_BYTES_MAX`], where the bound is explained.
    pub apply_lag_bytes_max: usize,
    /// By default [`LOG_CACHE_BYTES_MAX`], where the bound is explained.
    pub log_cache_bytes_max: usize,
    /// By default [`FETCHED_RANGES_MAX`], where the bound is explained.
    pub fetched_ranges_max: usize,
    /// By default [`PENDING_WRITES_MAX`], where the bound is explained.
    pub pending_writes_max: usize,
    /// By default [`PENDING_WRITE_BYTES_MAX`], where the bound is explained.
    pub pending_write_bytes_max: usize,
    /// By default [`ANSWERED_WRITES_MAX`], where the bound is explained.
    pub answered_writes_max: usize,
    /// By default [`PENDING_READS_MAX`], where the bound is explained.
    pub pending_reads_max: usize,
    /// By default [`DELAYED_APPENDS_MAX`], where the bound is explained.
    pub delayed_appends_max: usize,
    /// By default [`FORWARD_BYTES_MAX`], where the bound is explained.
    pub forward_bytes_max: usize,
    /// By default [`PROPOSE_BYTES_MAX`], where the bound is explained.
    pub propose_bytes_max: usize,
    /// By default [`PROPOSE_WRITES_MAX`], where the bound is explained.
    pub propose_writes_max: usize,
    /// By default [`SHORT_WRITE_ROWS_MAX`], where the bound is explained.
    pub short_write_rows_max: usize,
    /// By default [`LONG_WRITE_ROWS_MAX`], where the bound is explained.
    pub long_write_rows_max: usize,
}

impl Default for NodeLimits {
    fn default() -> NodeLimits {
        NodeLimits {
            append_bytes_max: APPEND_BYTES_MAX,
            appends_in_flight_max: APPENDS_IN_FLIGHT_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            unapplied_bytes_max: UNAPPLIED_BYTES_MAX,
            apply_bytes_max: APPLY_BYTES_MAX,
            apply_lag_entries_max: APPLY_LAG_ENTRIES_MAX,
            apply_lag_bytes_max: APPLY_LAG_BYTES_MAX,
            log_cache_bytes_max: LOG_CACHE_BYTES_MAX,
            fetched_ranges_max: FETCHED_RANGES_MAX,
            pending_writes_max: PENDING_WRITES_MAX,
            pending_write_bytes_max: PENDING_WRITE_BYTES_MAX,
            answered_writes_max: ANSWERED_WRITES_MAX,
            pending_reads_max: PENDING_READS_MAX,
            delayed_appends_max: DELAYED_APPENDS_MAX,
            forward_bytes_max: FORWARD_BYTES_MAX,
            propose_bytes_max: PROPOSE_BYTES_MAX,
            propose_writes_max: PROPOSE_WRITES_MAX,
            short_write_rows_max: SHORT_WRITE_ROWS_MAX,
            long_write_rows_max: LONG_WRITE_ROWS_MAX,
        }
    }
}

// ---- snapshots ----------------------------------------------------------------------------

/// After a transfer to a server has failed, the next one waits this long; twice as long after each
/// further failure …
pub const SNAPSHOT_RETRY_MIN: Duration = Duration::from_millis(200);
/// … and at most this long: each attempt costs the leader a checkpoint and a view of its store.
pub const SNAPSHOT_RETRY_MAX: Duration = Duration::from_secs(10);
/// The leader keeps its log for servers that take in a snapshot up to this size; past it the log is
/// cut, and such a server needs another snapshot. Three minutes of writes at 10 MB/s.
pub const LOG_HELD_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// … and no more than this part of the disk.
pub const LOG_HELD_DISK_PART: u64 = 8;

// ---- replicated sessions ------------------------------------------------------------------

/// A client unheard of for this long is forgotten, by the log's own clock. No request is
/// retried for so long.
pub const SESSION_EXPIRY: Duration = Duration::from_secs(25 * 3600);
/// Clients remembered; past it the one unheard of for longest is forgotten. More than can be
/// connected at once, so that none of those is forgotten while it only waits its turn, nor refused
/// as forgotten when it has just been greeted.
pub const SESSIONS_MAX: usize = 64 * 1024;
/// Replies remembered for one client; past it the oldest are forgotten. The client library keeps
/// fewer writes under way than this.
pub const SESSION_REPLIES_MAX: usize = 2048;
/// Replies remembered for all clients together; past it those of the clients unheard of for longest
/// are forgotten, and their retries refused.
pub const SESSION_REPLIES_TOTAL_MAX: usize = 256 * 1024;

// ---- disk ---------------------------------------------------------------------------------

/// A log segment's size; a new one is started when the current one is full.
pub const LOG_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// A segment is zero-filled this far ahead of the writer, so that a sync need not change the
/// file's size.
pub const LOG_ZERO_FILL_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of log batches written before one sync.
pub const LOG_GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a server keeps of its disk for the end: less on a small disk, an eighth of it. As much
/// again is to be free besides, or writes that add to the store are refused.
pub const DISK_RESERVE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// On a small disk log segments are smaller, since whole ones are deleted: this part of the disk …
pub const LOG_SEGMENT_DISK_PART: u64 = 32;
/// … but no less than this.
pub const LOG_SEGMENT_BYTES_MIN: u64 = 2 * LOG_ZERO_FILL_BYTES;
/// A leader whose disk is full hands over to a server with room. When that fails it leads on, and
/// tries again after so many ticks: each attempt that fails delays removals by about an election
/// time-out.
pub const DISK_HANDOVER_AGAIN_TICKS: u64 = 500;
/// What was applied is sealed at least every so many entries …
pub const SEAL_ENTRIES: u64 = 64 * 1024;
/// … or so many bytes of them …
pub const SEAL_BYTES: u64 = 64 * 1024 * 1024;
/// … or this long after the first of them.
pub const SEAL_INTERVAL: Duration = Duration::from_secs(10);
/// Files of a store that stay open between two reads: to open one anew costs less than to read from
/// it. They are kept free of connections.
pub const STORE_FILES_MAX: usize = 64;
/// From the end of one pass over the store to the beginning of the next. A bit rots once in months;
/// what matters is that it is found before a second server's copy rots, too.
pub const SCRUB_INTERVAL_DEFAULT: Duration = Duration::from_hours(24);
// ---- client library -----------------------------------------------------------------------

/// Time in which a client's connection is to be established, greeting included.
pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Nothing at all received while something is owed, pings included: the connection is given up.
pub const CLIENT_SILENCE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a client sends PING while a server owes it something.
pub const CLIENT_PING_INTERVAL: Duration = Duration::from_secs(1);
/// The default of a client request's whole time, retries included.
pub const CLIENT_REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// With no server reachable at all for this long, a request fails: a person, or a script, hears at
/// once that nobody is there. Who would rather wait for servers that are being started says so
/// (`client::Timing`).
pub const CLIENT_REACH_TIMEOUT: Duration = Duration::from_millis(200);
/// Requests of one client instance under way at once; one more waits.
pub const CLIENT_REQUESTS_MAX: usize = 1024;
/// About how many bytes the writes of one client instance that are under way take in memory, and as
/// many its reads; one that would bring more waits, unless it is alone. Eight of the longest values
/// or transactions, which is more than a group orders at once.
pub const CLIENT_REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that wait to be sent to one server of a client; while a request would bring more it waits
/// where it can be given up. Enough to keep any network busy.
pub const CLIENT_QUEUED_BYTES_PAUSE: usize = 1024 * 1024;
/// A longer request leaves, too, if little waits for its server, and this much or less for all of a
/// client's servers together: three of the longest for servers that take nothing, and one more.
pub const CLIENT_QUEUED_BYTES_MAX: usize = 34 * 1024 * 1024;
/// Wait before a client goes round its servers again: at first …
pub const CLIENT_BACKOFF_MIN: Duration = Duration::from_millis(4);
/// … and at most, doubling in between.
pub const CLIENT_BACKOFF_MAX: Duration = Duration::from_millis(100);
/// A client asks another server, too, when the one asked says nothing for this long, or has not
/// answered a read. Several times what a healthy server takes on a busy machine, and not noticed by
/// a person.
pub const CLIENT_HEDGE_DELAY: Duration = Duration::from_millis(50);
/// A write that is sent twice costs more than a read, so a server has this many times as long to
/// greet …
pub const CLIENT_WRITE_GREETING_FACTOR: u32 = 2;
/// … and one that has greeted keeps a write as long as anything comes of it within so many times as
/// long. On a busy machine the answer to a PING takes its time, and a leader that is frozen is not
/// replaced any sooner.
pub const CLIENT_WRITE_HEDGE_FACTOR: u32 = 6;
/// A server answers within `COMMIT_TIMEOUT`. One that has said nothing but PONG for longer than
/// that may never do: others are asked, too, and asked first from then on.
pub const CLIENT_MUTE_TIMEOUT: Duration = Duration::from_secs(6);
/// A write may have to wait for a server in sync that is late, so its server has this many times as
/// long: longer than the ten seconds of SPEC A7. A copy of it costs next to nothing, since copies
/// meet where the first one waits.
pub const CLIENT_WRITE_MUTE_FACTOR: u32 = 2;
/// With a write a server that is heard counts as slow after this many times the time of a read:
/// longer than an election takes on most machines. Then one write at a time goes to another server,
/// too.
pub const CLIENT_WRITE_SLOW_FACTOR: u32 = 20;
/// What a client sends takes its time on the line, in which the server can say nothing: its
/// connection is given up, and it counts as mute, later by as long as a line of so many bytes a
/// second takes. A slower one counts as none.
pub const CLIENT_LINE_BYTES_PER_S_MIN: usize = 64 * 1024;
/// Another server is asked later by as long as a line of so many bytes a second takes: a long value
/// is sent twice where lines are slower, and where a server has frozen nobody waits long.
pub const CLIENT_LINE_BYTES_PER_S_USUAL: usize = 1024 * 1024;
/// A console, which names each server that it passes over, gives each this many times as long for
/// either.
pub const CLIENT_CONSOLE_HEDGE_FACTOR: u32 = 20;
/// How often a client asks a server that was of no use whether it is back: at first …
pub const CLIENT_PROBE_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// … and in the end, doubling in between. A server is used again this long after it is back.
pub const CLIENT_PROBE_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Who has not greeted in time is given a line end, and so long to answer like a web server, which
/// is then named.
pub const CLIENT_PROVOKED_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest time a client request may be given.
pub const CLIENT_REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Watches of one client instance; one more is refused. Four connections full of them, and half of
/// what a server gives one address.
pub const CLIENT_WATCHES_MAX: usize = 64 * 1024;
/// Connections that carry the watches of a client: one is enough for most. With as many as this,
/// each server may refuse some of the watches and all others still find a place.
pub const CLIENT_WATCH_CONNECTIONS_MAX: usize = 16;
/// Bytes of keys and values that all watches of a client instance may have been shown and not
/// taken: about a hundred watches with all their credit, which a gateway has room for, too. Beyond,
/// those that hold most are ended at the server, and begun again when their readers come back.
pub const CLIENT_WATCH_BYTES_MAX: usize = 24 * 1024 * 1024;
/// Requests handed to `Client::submit` and not yet answered; one more waits.
pub const CLIENT_SUBMITS_MAX: usize = 64;

// ---- gateway ------------------------------------------------------------------------------

/// Connections of gRPC clients to a gateway; one more takes the place of another, or is closed at
/// once.
pub const GATEWAY_CONNECTIONS_MAX: usize = 1024;
/// Calls of one gRPC connection under way at once; HTTP/2 makes the client wait with one more.
pub const GATEWAY_CALLS_PER_CONNECTION_MAX: u32 = 128;
/// What a call takes up beside its messages, as measured: its task, and buffers that are made
/// before anything has come.
pub const GATEWAY_CALL_BYTES: usize = 20 * 1024;
/// Reads from connections of a gateway whose calls have not begun yet, if each brings
/// [`GATEWAY_CALLS_PER_CONNECTION_MAX`] calls of about twenty kilobytes, ten megabytes in all; more
/// if they bring less.
/// Whoever is next waits for these, some milliseconds each, and one processor deals with no more of
/// them at once.
pub const GATEWAY_READS_MAX: usize = 4;
/// Calls of all connections under way at once, streams that are not read to their end included,
/// beside one call a connection, which there is always room for. A connection gets another one
/// while it, and its origin, has fewer than are left: an origin may have half of them, and nobody
/// all. Else it is refused with `RESOURCE_EXHAUSTED`.
pub const GATEWAY_CALLS_MAX: usize = 1024;
/// Requests of a gateway to the group under way at once; one more call waits.
pub const GATEWAY_REQUESTS_MAX: usize = 128;
/// Clients of a gateway: one for reads and for writes of one key, one for writes of several, and
/// one for long writes.
pub const GATEWAY_CLIENTS: usize = 3;
/// Calls of health and reflection under way, watches included, beside all others and beside one a
/// connection.
pub const GATEWAY_AUXILIARY_CALLS_MAX: usize = 1024;
/// Watches and leases kept alive of etcd's interface, a stream each for as long as their client
/// runs, of all connections beside one a connection. A stream has any number of watches.
pub const GATEWAY_STREAMS_MAX: usize = 256;
/// A longer gRPC message is refused, as gRPC servers do by default.
pub const GATEWAY_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A longer JSON request to a gateway is refused: four thirds of etcd's longest message,
/// for keys and values in base64, and as much as half of that again for the names around them.
#[cfg(feature = "grpc")]
pub const GATEWAY_JSON_BYTES_MAX: usize = GATEWAY_MESSAGE_BYTES_MAX;
/// Bytes that calls of all connections make a gateway hold: requests, twice, since they are sent
/// on, and answers that have not been read. One connection, or one origin, may have half of it;
/// past that `RESOURCE_EXHAUSTED`. With what connections have of their own and with HTTP/2's
/// buffers the process stays below 512 MiB, where servers have the default `--max-value`. A longer
/// one adds what is on its way from them: an answer for each server and each of the clients, and a
/// few that are being taken apart or put together.
pub const GATEWAY_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Bytes of these that every connection may have whatever others do: many small requests and
/// answers.
pub const GATEWAY_CONNECTION_BYTES: usize = 32 * 1024;
/// Bytes that a gRPC client may send on all its calls before the gateway has taken them. They are
/// not charged to anybody, so all connections together must not have more than a process can hold.
pub const GATEWAY_CONNECTION_WINDOW_BYTES: u32 = 64 * 1024;
/// The default of the whole time a gateway gives its servers for one request; a call's own deadline
/// may be shorter.
pub const GATEWAY_REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
/// How often a watch of etcd's interface that asks for it is told how far it is, unless configured
/// otherwise: as often as etcd does.
#[cfg(feature = "grpc")]
pub const GATEWAY_WATCH_PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_mins(10);

// ---- commands -----------------------------------------------------------------------------

/// Bytes of one line typed or piped into a console; a longer one is refused.
pub const INPUT_LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a GET at a console waits for a PUT of the same key that was typed before it: longer
/// than a PUT takes when a server has just died, and no longer, since whoever shows a server that
/// is late reads while a PUT waits for it.
pub const CONSOLE_GET_HELD_MAX: Duration = Duration::from_secs(3);
/// Bytes of rows that a command gathers before it prints them.
pub const OUTPUT_BUFFER_BYTES: usize = 64 * 1024;
/// The longest duration a flag may give.
pub const FLAG_DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// Worker threads `--workers` may ask for.
pub const WORKERS_MAX: usize = 256;
/// How long `acervo cluster` waits for its servers to stop before it kills them.
pub const CLUSTER_STOP_TIMEOUT: Duration = Duration::from_secs(15);

// ---- measuring ------------------------------------------------------------------------------

const _: () = {
    assert!(CLIENT_REQUESTS_MAX <= REQUESTS_PER_CONNECTION_MAX);
    assert!(CLIENT_SUBMITS_MAX <= CLIENT_REQUESTS_MAX);
    assert!(CLIENT_REQUEST_BYTES_MAX >= 4 * TRANSACTION_BYTES_MAX);
    // Beside three servers that take nothing, the longest request leaves for another one.
    assert!(CLIENT_QUEUED_BYTES_MAX >= 4 * TRANSACTION_BYTES_MAX);
    assert!(CONSOLE_GET_HELD_MAX.as_millis() > IN_SYNC_TIMEOUT_DEFAULT.as_millis());
    assert!(GATEWAY_REQUESTS_MAX <= CLIENT_REQUESTS_MAX);
    assert!(GATEWAY_MESSAGE_BYTES_MAX > VALUE_BYTES_MAX_DEFAULT + KEY_BYTES_MAX);
    // The longest message, and the largest transaction with what its items take up, fit into one
    // connection's half.
    assert!(GATEWAY_BYTES_MAX / 2 > 2 * TRANSACTION_BYTES_MAX + 150 * TRANSACTION_KEYS_MAX);
    // All that a gateway can be made to hold: what is charged, what connections have of their own,
    // calls under way, calls that have not begun, the answers that its clients receive and the one
    // that each takes apart, what waits to be sent by them, also of calls that were given up, and
    // what the watches of one of them have been shown and not taken.
    assert!(
        GATEWAY_BYTES_MAX
            + GATEWAY_CONNECTIONS_MAX
                * (GATEWAY_CONNECTION_BYTES + GATEWAY_CONNECTION_WINDOW_BYTES as usize)
            + GATEWAY_CALL_BYTES
                * (GATEWAY_CALLS_MAX
                    + GATEWAY_AUXILIARY_CALLS_MAX
                    + GATEWAY_STREAMS_MAX
                    + 3 * GATEWAY_CONNECTIONS_MAX
                    + GATEWAY_READS_MAX * GATEWAY_CALLS_PER_CONNECTION_MAX as usize)
            + GATEWAY_CLIENTS * (SERVERS_MAX + 2) * (VALUE_BYTES_MAX_DEFAULT + PAGE_BYTES_MAX)
            + GATEWAY_CLIENTS * (CLIENT_QUEUED_BYTES_MAX + SERVERS_MAX * CLIENT_QUEUED_BYTES_PAUSE)
            + CLIENT_WATCH_BYTES_MAX
            < 512 * 1024 * 1024
    );
    assert!(COMMIT_TIMEOUT.as_millis() < GATEWAY_REQUEST_TIMEOUT_DEFAULT.as_millis());
    assert!(INPUT_LINE_BYTES_MAX > VALUE_BYTES_MAX);
    assert!(CLUSTER_STOP_TIMEOUT.as_millis() > 2 * SHUTDOWN_GRACE.as_millis());
    assert!(CLIENT_REQUESTS_MAX < SESSION_REPLIES_MAX);
    // A session outlives every request, and whatever of it may still be under way between servers.
    assert!(
        CLIENT_REQUEST_TIMEOUT_MAX.as_secs() + 4 * COMMIT_TIMEOUT.as_secs()
            < SESSION_EXPIRY.as_secs()
    );
    assert!(SESSION_REPLIES_MAX < SESSION_REPLIES_TOTAL_MAX);
    assert!(SERVERS_MAX * CONNECTIONS_MAX < SESSIONS_MAX);
    assert!(READ_BUDGET_BYTES >= FRAME_BUFFER_BYTES_KEEP);
    assert!(SWEEP_INTERVAL.as_millis() < HANDSHAKE_TIMEOUT.as_millis());
    assert!(DIAL_BACKOFF_MIN.as_millis() <= DIAL_BACKOFF_MAX.as_millis());
    assert!(FRAME_BUFFER_BYTES_MIN <= FRAME_BUFFER_BYTES_KEEP);
    assert!(FRAME_BUFFER_BYTES_KEEP <= LARGE_FRAME_PIECE_BYTES);
    assert!(HELLO_FRAME_BYTES_MAX < LARGE_FRAME_BYTES);
    // Whatever a client reads, its answers fit its queue: what waits when it stops being read, a
    // small answer to everything under way, and the one large answer that is always allowed.
    assert!(
        CLIENT_SEND_BYTES_PAUSE
            + REQUESTS_PER_CONNECTION_MAX * READ_SMALL_BYTES_MAX
            + client_frame_bytes_max(VALUE_BYTES_MAX)
            < CLIENT_SEND_BYTES_MAX
    );
    assert!(
        (REQUESTS_MAX + REQUESTS_FEW * (CONNECTIONS_MAX + CONNECTIONS_SPARE))
            * REQUEST_SMALL_BYTES_MAX
            <= 36 * 1024 * 1024
    );
    // Nobody who is alone can be too much for all of an origin, nor one origin for all; and the
    // longest read, which is in memory twice, and the longest request fit what requests of a
    // connection may hold.
    assert!(BUDGET_CONNECTION_BYTES_MAX < BUDGET_ORIGIN_BYTES_MAX * 3 / 4);
    assert!(BUDGET_ORIGIN_BYTES_MAX < BUDGET_PROCESS_BYTES_MAX);
    assert!(CLIENT_SEND_BYTES_MAX < BUDGET_CONNECTION_BYTES_MAX);
    assert!(2 * (VALUE_BYTES_MAX + KEY_BYTES_MAX) < BUDGET_CONNECTION_BYTES_MAX / 2);
    assert!(REASON_BYTES_MAX <= HELLO_FRAME_BYTES_MAX / 2);
    assert!(REQUESTS_MAX > PENDING_WRITES_MAX);
    assert!(PENDING_WRITE_BYTES_MAX > VALUE_BYTES_MAX + KEY_BYTES_MAX);
    assert!(VALUE_BYTES_MAX_DEFAULT <= VALUE_BYTES_MAX);
    assert!(TRANSACTION_BYTES_MAX <= VALUE_BYTES_MAX + KEY_BYTES_MAX);
    // The largest entry fits a peer frame even behind a full batch of others.
    assert!(
        client_frame_bytes_max(VALUE_BYTES_MAX)
            + MESSAGE_OVERHEAD_BYTES_MAX
            + APPEND_BYTES_MAX as usize
            <= SERVER_FRAME_BYTES_MAX
    );
    assert!((VALUE_BYTES_MAX + KEY_BYTES_MAX) as u64 <= LOG_SEGMENT_BYTES / 2);
    assert!(SNAPSHOT_RETRY_MIN.as_millis() <= SNAPSHOT_RETRY_MAX.as_millis());
    assert!(LOG_HELD_BYTES_MAX >= 4 * LOG_SEGMENT_BYTES);
    assert!(LOG_GROUP_BYTES_MAX as u64 <= LOG_SEGMENT_BYTES / 4);
    assert!(APPEND_BYTES_MAX <= UNCOMMITTED_BYTES_MAX);
    // What is usually under way to a server fits its queue, in front of the longest frame.
    assert!(
        APPENDS_IN_FLIGHT_MAX * APPEND_BYTES_MAX as usize
            + FORWARD_BYTES_MAX
            + SERVER_FRAME_BYTES_MAX
            <= SERVER_SEND_BYTES_MAX
    );
    assert!(SERVER_CONTROL_FRAME_BYTES_MAX < LARGE_FRAME_BYTES);
    // The consensus library counts eight bytes and more for an entry that is not empty.
    assert!(APPEND_ENTRIES_MAX * 8 >= APPEND_BYTES_MAX as usize);
    assert!(UNCOMMITTED_BYTES_MAX as usize <= UNAPPLIED_BYTES_MAX);
    assert!(ELECTION_TICKS > 2 * HEARTBEAT_TICKS);
    assert!(CUT_OFF_TIMEOUT.as_millis() >= 5 * 2 * ELECTION_TICKS as u128 * TICK.as_millis());
    assert!(SERVER_PING_INTERVAL.as_millis() * 3 < SERVER_SILENCE_TIMEOUT.as_millis());
    // Another server is asked before the connection to a silent one is given up.
    assert!(
        CLIENT_HEDGE_DELAY.as_millis() * (CLIENT_CONSOLE_HEDGE_FACTOR as u128)
            < CLIENT_CONNECT_TIMEOUT.as_millis()
    );
    assert!(CLIENT_CONNECT_TIMEOUT.as_millis() < CLIENT_SILENCE_TIMEOUT.as_millis());
    assert!(SERVER_SILENCE_TIMEOUT.as_millis() < SERVER_IDLE_TIMEOUT.as_millis());
    assert!(SERVER_PING_INTERVAL.as_millis() >= TICK.as_millis());
    assert!(SERVER_DIAL_TIMEOUT.as_millis() >= ELECTION_TICKS as u128 * TICK.as_millis());
    assert!(CLIENT_PING_INTERVAL.as_millis() * 2 < CLIENT_SILENCE_TIMEOUT.as_millis());
    assert!(2 * STALL_TIMEOUT.as_millis() < COMMIT_TIMEOUT.as_millis());
    assert!(BOOTSTRAP_TIMEOUT.as_millis() < COMMIT_TIMEOUT.as_millis());
    assert!(COMMIT_TIMEOUT.as_millis() < CLIENT_REQUEST_TIMEOUT_DEFAULT.as_millis());
    assert!(COMMIT_TIMEOUT.as_millis() < CLIENT_MUTE_TIMEOUT.as_millis());
    assert!(
        CLIENT_MUTE_TIMEOUT.as_millis() * (CLIENT_WRITE_MUTE_FACTOR as u128)
            < GATEWAY_REQUEST_TIMEOUT_DEFAULT.as_millis()
    );
};

/// The frame cap on a client connection for a given `--max-value`; a write on as many keys as are
/// allowed fits, too.
pub const fn client_frame_bytes_max(value_bytes_max: usize) -> usize {
    value_bytes_max
        + KEY_BYTES_MAX
        + MESSAGE_OVERHEAD_BYTES_MAX
        + TRANSACTION_KEYS_MAX * PAIR_OVERHEAD_BYTES_MAX
}

// ---- registry and shared folders ----------------------------------------------------------

/// A frame to or from a registry is at most this long; a longer one closes the connection.
pub const REGISTRY_FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Peers a registry knows at once; one more is refused.
pub const REGISTRY_PEERS_MAX: usize = 8 * 1024;
/// Files one peer may offer; a peer with more offers the first of them, by name.
pub const FILES_PER_PEER_MAX: usize = 64 * 1024;
/// Files of all peers of a registry, each counted as often as it is offered; past it JOIN and
/// UPDATE are refused.
pub const REGISTRY_FILES_MAX: usize = 1024 * 1024;
/// Bytes of memory that a registry's index of files takes; past it JOIN and UPDATE are refused. So
/// many files with names of 32 bytes fit, and fewer with longer ones.
pub const REGISTRY_INDEX_BYTES_MAX: usize = 320 * 1024 * 1024;
/// Peers that may join from one IP address: a quarter, so that nobody alone takes a registry from
/// all others.
pub const REGISTRY_PEERS_PER_ORIGIN_MAX: usize = REGISTRY_PEERS_MAX / 4;
/// Files that the peers of one origin may offer together; past it a JOIN or an UPDATE is refused.
pub const REGISTRY_FILES_PER_ORIGIN_MAX: usize = REGISTRY_FILES_MAX / 4;
/// Within this time an address that is not the IP of the peer's own connection has to answer its
/// registry: a round trip to anywhere, and a lost packet.
pub const ADDRESS_CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses that a registry checks at once, of all peers; one more JOIN is told to come later.
pub const ADDRESS_CHECKS_MAX: usize = 64;
/// Addresses that it checks for one IP address in [`ADDRESS_CHECKS_PERIOD`], so that a registry is
/// of no use for searching a network for open ports.
pub const ADDRESS_CHECKS_PER_ORIGIN_MAX: usize = 8;
/// As long as a peer repeats a JOIN, so that several peers behind one address have their turns.
pub const ADDRESS_CHECKS_PERIOD: Duration = Duration::from_secs(8);
/// The retry hint for a JOIN under an id whose connection is alive.
pub const JOINED_ELSEWHERE_RETRY_AFTER_MS: u32 = 500;
/// What a file takes in a registry's index besides the bytes of its name: its place in three
/// ordered maps that may be half empty, and its name's own place.
pub const INDEX_FILE_BYTES: usize = 288;
/// Bytes that accepted connections may make a registry hold, which is less than
/// [`BUDGET_PROCESS_BYTES_MAX`], since its index is in memory, too. JOINs that are on their way
/// count here; half of it is for them.
pub const REGISTRY_BUDGET_PROCESS_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes that the connections of one origin may make a registry hold.
pub const REGISTRY_BUDGET_ORIGIN_BYTES_MAX: usize = 112 * 1024 * 1024;
/// Files in one part of a JOIN or in one UPDATE, as a peer sends them.
pub const FILES_PER_FRAME: usize = 1024;
/// Sources in one answer; of more than these, the ones of the most offered contents.
pub const SOURCES_PER_ANSWER_MAX: usize = 1024;
/// Rows in a page of peers or files.
pub const LIST_ROWS_MAX: usize = 512;
/// Of one name, this many contents are listed among the files, the most offered first.
pub const CONTENTS_PER_NAME_LISTED_MAX: usize = 16;
/// Offers looked at for one page of files; then the page ends.
pub const PAGE_OFFERS_MAX: usize = 16 * 1024;
/// Bytes of one entry of a JOIN or an answer besides the file's name, at most.
const FILE_ENTRY_BYTES_MAX: usize = 128;
/// The default of `acervo registry --silence-timeout`: a peer unheard of for longer is not offered
/// any more.
pub const REGISTRY_SILENCE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Files, of three rows each, that a registry writes into the store at once.
pub const STORE_FILES_PER_WRITE: usize = 1024;
/// The whole time of one of its requests to the store.
pub const STORE_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a registry looks for peers that have fallen silent.
pub const REGISTRY_EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often a peer tells its registry that it is alive.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// A registry, or a peer asked for a name, that has not answered by then is given up.
pub const REGISTRY_CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A registry that has not answered a question for so long is frozen, or far away: the next one is
/// asked as well.
pub const REGISTRY_HEDGE_AFTER: Duration = Duration::from_millis(500);
/// A registry has kept a peer when it knew it for so long after its JOIN: a peer that it takes for
/// dead sooner is one that it never took in.
pub const MEMBERSHIP_SETTLED_AFTER: Duration = REGISTRY_SILENCE_TIMEOUT_DEFAULT;
/// First wait before a peer joins again where it was not kept …
pub const REJOIN_BACKOFF_MIN: Duration = Duration::from_millis(200);
/// … and the longest: each JOIN tells the whole list of files.
pub const REJOIN_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// For a JOIN it has so much more for each file: a registry may have to write them all into its
/// store.
pub const JOIN_TIME_PER_FILE: Duration = Duration::from_millis(1);
/// How long a stopping peer waits for its registry to hear that it leaves.
pub const MEMBER_STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// First wait before a peer dials its registry again …
pub const REGISTRY_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// … and the longest.
pub const REGISTRY_BACKOFF_MAX: Duration = Duration::from_secs(3);
/// First wait before a registry is asked again that has no room just now, however soon it says to
/// come again; the waits grow.
pub const REGISTRY_RETRY_MIN: Duration = Duration::from_millis(BUSY_RETRY_AFTER_MS as u64);
/// How often a shared folder is looked at for files that came, changed or went.
pub const FOLDER_RESCAN_INTERVAL: Duration = Duration::from_secs(2);
/// How often whoever waits for a download looks whether to stop.
pub const STOP_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The default of `acervo fetch --patience`: with nobody who gives anything for this long it gives
/// up.
pub const FETCH_PATIENCE_DEFAULT: Duration = Duration::from_secs(30);
/// Registries a peer may be given.
pub const REGISTRIES_MAX: usize = SERVERS_MAX;
/// How often a fetching process asks the registry for further sources.
pub const SOURCES_REFRESH_INTERVAL: Duration = Duration::from_secs(2);

const _: () = {
    assert!(REGISTRY_FILES_MAX * (INDEX_FILE_BYTES + 32) <= REGISTRY_INDEX_BYTES_MAX);
    // The longest JOIN there is may be held for a connection, an origin and all.
    assert!(
        FILES_PER_PEER_MAX * (FILE_NAME_BYTES_MAX + ELEMENT_OVERHEAD_BYTES)
            <= BUDGET_CONNECTION_BYTES_MAX / 2
    );
    assert!(BUDGET_CONNECTION_BYTES_MAX < REGISTRY_BUDGET_ORIGIN_BYTES_MAX);
    assert!(REGISTRY_BUDGET_ORIGIN_BYTES_MAX < REGISTRY_BUDGET_PROCESS_BYTES_MAX);
    assert!(CLOSE_LINGER.as_millis() < MEMBER_STOP_TIMEOUT.as_millis());
    assert!(FILES_PER_PEER_MAX <= REGISTRY_FILES_PER_ORIGIN_MAX);
    assert!(ADDRESS_CHECKS_MAX <= DIALLED_CONNECTIONS_MAX);
    assert!(ADDRESS_CHECK_TIMEOUT.as_millis() < REGISTRY_CALL_TIMEOUT.as_millis());
    let entry = FILE_NAME_BYTES_MAX + FILE_ENTRY_BYTES_MAX;
    // Three keys, and their values.
    assert!(3 * STORE_FILES_PER_WRITE * (entry + 256) < TRANSACTION_BYTES_MAX);
    assert!(3 * STORE_FILES_PER_WRITE <= TRANSACTION_KEYS_MAX);
    assert!(STORE_REQUEST_TIMEOUT.as_millis() < REGISTRY_CALL_TIMEOUT.as_millis());
    assert!(FILES_PER_FRAME * entry < REGISTRY_FRAME_BYTES_MAX);
    assert!(SOURCES_PER_ANSWER_MAX * entry < REGISTRY_FRAME_BYTES_MAX);
    assert!((LIST_ROWS_MAX + CONTENTS_PER_NAME_LISTED_MAX) * entry < REGISTRY_FRAME_BYTES_MAX);
    assert!(3 * KEEP_ALIVE_INTERVAL.as_millis() < REGISTRY_SILENCE_TIMEOUT_DEFAULT.as_millis());
};

// ---- share --------------------------------------------------------------------------------

/// A file's name is at most this long, as every file system of today has it; a longer one is
/// refused.
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// What files are cut into: a whole subtree of BLAKE3's tree.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// A larger file is not shared: its list of chunk hashes would take more than 32 MiB of memory.
pub const FILE_BYTES_MAX: u64 = 1 << 40;
/// Between peers a longer frame closes the connection.
pub const SHARE_FRAME_BYTES_MAX: usize = 256 * 1024;
/// What a peer asks fits a greeting's frame; a longer one closes the connection.
pub const SHARE_REQUEST_BYTES_MAX: usize = HELLO_FRAME_BYTES_MAX;
/// Chunk hashes in one frame; the rest is asked for again.
pub const HASHES_PER_FRAME_MAX: usize = 4096;
/// Runs of chunks in one frame; the rest goes into further frames.
pub const RUNS_PER_FRAME_MAX: usize = 4096;
/// How often a peer tells of new chunks, and looks after its transfers.
pub const SHARE_TICK: Duration = Duration::from_millis(100);
/// The same for a peer that keeps to a rate: what it sends goes in pieces of a tick's worth.
pub const PACED_TICK: Duration = Duration::from_millis(10);
/// The least that goes at once under a rate.
pub const PACED_PIECE_BYTES_MIN: usize = 4 * 1024;
/// Connections a peer serves. For one more the one gives way that has had no chunk under way for
/// longest, of the IP that has most; when all have one, it is told `REFUSED`.
pub const SHARE_CONNECTIONS_MAX: usize = 256;
/// Buffers for whole chunks, in MiB of memory, for all quick peers that are served …
pub const UPLOAD_CHUNKS_MAX: usize = 32;
/// … and for one of them.
pub const UPLOAD_CHUNKS_PER_PEER_MAX: usize = 3;
/// What a chunk is cut into for peers that are new or slow, or find no buffer for a whole one. Each
/// connection has a buffer of this size to itself, 16 MiB in all: so nobody waits for memory that
/// another one's slow line holds.
pub const UPLOAD_SLICE_BYTES: usize = 64 * 1024;
/// Whoever keeps its peer waiting for this long over a chunk is slow.
pub const UPLOAD_SLOW_AFTER: Duration = Duration::from_millis(500);
/// Who has had no turn for this long is denied with `BUSY`: before it takes the serving side for
/// silent.
pub const UPLOAD_WAIT_MAX: Duration = Duration::from_secs(1);
/// Chunks one peer has asked for and not got; one more is denied with `BUSY`.
pub const CHUNK_REQUESTS_PER_PEER_MAX: usize = 64;
/// Contents one peer watches; one more is denied with `BUSY`.
pub const WATCHES_PER_PEER_MAX: usize = 16;
/// A peer that asks for nothing for this long is disconnected.
pub const SHARE_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Chunks of one download that have arrived and are being checked or stored; past it no further one
/// is received, so that a slow disk slows the sources. Besides them each source in use may have a
/// chunk under way: a buffer of its own, so that no number of slow sources keeps a fast one
/// waiting.
pub const DOWNLOAD_CHUNKS_MAX: usize = 8;
/// A source that is not there and greeted by then makes room for another.
pub const SOURCE_DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Sources of one download in use at once, and so the buffers of chunks on their way, in MiB.
pub const SOURCES_MAX: usize = 32;
/// Sources of one download that it knows of: as many as an answer of a registry may name. Those in
/// use are a random sample of them, and whoever fails is replaced. Past it one that has failed is
/// forgotten for each new one.
pub const SOURCES_KNOWN_MAX: usize = SOURCES_PER_ANSWER_MAX;
/// A source is asked for as many chunks as it gives in this time, and one more …
pub const REQUEST_AHEAD: Duration = Duration::from_millis(500);
/// … and at most.
pub const REQUESTS_AHEAD_MAX: usize = 16;
/// Requests that a source has not answered, those called off included; past it the source is left.
pub const ANSWERS_OWED_MAX: usize = 4 * REQUESTS_AHEAD_MAX;
/// A source that owes a chunk and gives no byte for this long is left, when another can take over.
pub const SOURCE_SILENCE_MAX: Duration = Duration::from_millis(1500);
/// A source that has owed a chunk for this long is left when it gives less than `SOURCE_RATE_MIN`.
pub const LONE_SOURCE_SLOW_AFTER: Duration = Duration::from_secs(30);
/// In bytes a second.
pub const SOURCE_RATE_MIN: u64 = 1024;
/// Most that one turn of a loop of the share counts as time, and so against anybody's silence: ten
/// ticks, which a loaded machine may take. Beyond it the process did not run.
pub const SHARE_TURN_MAX: Duration = Duration::from_secs(1);
/// A source that was lost or fell silent is dialled again after this, doubling …
pub const SOURCE_AWAY_MIN: Duration = Duration::from_secs(1);
/// … up to this.
pub const SOURCE_AWAY_MAX: Duration = Duration::from_secs(30);
/// A download of which something has come ends when all sources have said for this long that they
/// have the content no more: some looks of a peer at its folder, after which a file that was
/// renamed is offered again.
pub const SOURCES_GONE_AFTER: Duration = Duration::from_secs(10);
const _: () = assert!(SOURCES_GONE_AFTER.as_millis() >= 4 * FOLDER_RESCAN_INTERVAL.as_millis());
/// A chunk that one source has owed for this long is asked of a second one that can be expected to
/// be quicker.
pub const CHUNK_OVERDUE: Duration = Duration::from_secs(5);
/// A source that gives next to nothing for this long of a chunk that should have come in half the
/// time lets it lie: another one is asked, too, in the end of a download. More than a pause of a
/// line, less than anybody waits for.
pub const CHUNK_STALLED: Duration = Duration::from_millis(500);
/// An address is dialled no sooner again than after this, whoever is said to be there.
pub const SOURCE_REDIAL_MIN: Duration = Duration::from_secs(1);
/// Bytes that were not checked yet are progress for so many times a download's patience after the
/// last chunk that was good: long enough for a lone source of 7 KB/s, with the patience that is the
/// default.
pub const UNCHECKED_PATIENCE: u32 = 4;
/// How often a downloading side that is told of new chunks, and asks for none, says that it is
/// there.
pub const SHARE_PING_INTERVAL: Duration = Duration::from_secs(30);

const _: () = {
    assert!(CHUNK_BYTES.is_power_of_two() && CHUNK_BYTES >= 1024);
    // 34 bytes a hash and up to 18 a run.
    assert!(HASHES_PER_FRAME_MAX * 34 + MESSAGE_OVERHEAD_BYTES_MAX <= SHARE_FRAME_BYTES_MAX);
    // Each full page of hashes is a whole subtree.
    assert!(HASHES_PER_FRAME_MAX.is_power_of_two());
    assert!(RUNS_PER_FRAME_MAX * 19 + MESSAGE_OVERHEAD_BYTES_MAX <= SHARE_FRAME_BYTES_MAX);
    assert!(UPLOAD_CHUNKS_PER_PEER_MAX < UPLOAD_CHUNKS_MAX);
    assert!(UPLOAD_SLICE_BYTES <= CHUNK_BYTES);
    assert!(
        UPLOAD_WAIT_MAX.as_millis() + 2 * SHARE_TICK.as_millis() < SOURCE_SILENCE_MAX.as_millis()
    );
    assert!(ANSWERS_OWED_MAX <= CHUNK_REQUESTS_PER_PEER_MAX);
    assert!(2 * SOURCES_MAX <= DIALLED_CONNECTIONS_MAX);
    assert!(SOURCE_SILENCE_MAX.as_millis() + 10 * SHARE_TICK.as_millis() <= 3000);
    assert!(SHARE_PING_INTERVAL.as_millis() * 2 < SHARE_IDLE_TIMEOUT.as_millis());
    // More than a loop ever sleeps.
    assert!(2 * REGISTRY_EXPIRY_INTERVAL.as_millis() <= SHARE_TURN_MAX.as_millis());
    assert!(2 * SHARE_TICK.as_millis() <= SHARE_TURN_MAX.as_millis());
    assert!(CLOSE_LINGER.as_millis() <= SHARE_TURN_MAX.as_millis());
    assert!((UPLOAD_CHUNKS_PER_PEER_MAX + 1) * CHUNK_BYTES <= CLIENT_SEND_BYTES_PAUSE);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_leaves_to_others_as_much_as_it_has_and_a_few_to_anybody() {
        let (most, mut all) = (1_600, 0);
        let mut has = Vec::new();
        for _ in 0..100 {
            let may_have = |own: usize| {
                let all = all + own;
                all < most && (own < HELD_FEW || is_within_share(own, all, most))
            };
            let own = (0..).find(|own| !may_have(*own)).unwrap();
            all += own;
            has.push(own);
        }
        assert_eq!(has[..4], [750, 375, 188, 94]);
        assert!(has[..12].iter().all(|own| *own >= HELD_FEW), "{has:?}");
        assert!(all <= most && has[99] == 0, "in the end nothing is left");
    }

    #[test]
    fn a_network_of_ipv6_is_one_origin_and_mapped_addresses_are_what_they_map() {
        let origin = |text: &str| origin_of(text.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:2"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), IpAddr::from([10, 0, 0, 1]));
    }
}
