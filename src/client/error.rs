//! What can go wrong with a client's request.

use std::net::SocketAddr;
use std::time::Duration;

use super::contender::NAME_BYTES_MAX;
use crate::limits::{
    CLIENT_WATCHES_MAX, KEPT_REMOVAL_BYTES_PER_ROW, KEPT_REMOVAL_ROWS_MAX, KEY_BYTES_MAX,
    SERVERS_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_COMPARED_BYTES_MAX, TRANSACTION_KEYS_MAX,
    TRANSACTION_ROWS_MAX, VALUE_BYTES_MAX,
};
use crate::model::{Effect, Timestamp};

/// Why a client could not be built or a request did not succeed.
///
/// Whatever another attempt on another server can cure has been tried by then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No server of the list could be reached for as long as
    /// [`Timing::reach_timeout`](super::Timing::reach_timeout).
    #[error("no server could be reached ({}){}", list(servers), known(*effect))]
    Unreachable {
        /// Each server and why.
        servers: Vec<ServerFailure>,
        /// What is known of a write's effect; `None` for a read.
        effect: Option<Effect>,
    },
    /// The request's whole time passed.
    #[error("no answer within {timeout:?}; last: {last}{}", known(*effect))]
    TimedOut {
        /// The time it had.
        timeout: Duration,
        /// What stood in the way last.
        last: String,
        /// What is known of a write's effect; `None` for a read.
        effect: Option<Effect>,
    },
    /// Not enough servers answer to order a write or confirm a linearizable read.
    #[error("{server}: {message}")]
    NoMajority {
        /// The server whose answer this is.
        server: SocketAddr,
        /// The server's sentence, escaped so that a terminal can show it.
        message: String,
    },
    /// A write was ordered and not confirmed in time: the servers that have it, or a majority,
    /// could not be reached.
    #[error("{server}: {message}")]
    Unconfirmed {
        /// The server whose answer this is.
        server: SocketAddr,
        /// The server's sentence, escaped so that a terminal can show it.
        message: String,
        /// What it knows of the write's effect: never [`Effect::NotDone`].
        effect: Effect,
    },
    /// A server refused the request for what it is; repeating it will not help.
    #[error("{server}: {message}")]
    Invalid {
        /// The server whose answer this is.
        server: SocketAddr,
        /// The server's sentence, escaped so that a terminal can show it.
        message: String,
    },
    /// A server had already forgotten this write, so nobody can say whether it took effect.
    #[error("{server}: {message}")]
    StaleRequest {
        /// The server whose answer this is.
        server: SocketAddr,
        /// The server's sentence, escaped so that a terminal can show it.
        message: String,
        /// What is known of the write's effect.
        effect: Effect,
    },
    /// A long read, or the pause before one of its pages, took too long: what it was to show next
    /// has been removed for good meanwhile. Begin it again.
    #[error("{server}: {message}")]
    Expired {
        /// The server whose answer this is.
        server: SocketAddr,
        /// The server's sentence, escaped so that a terminal can show it.
        message: String,
    },
    /// The read was one as of an earlier version than the one from which on reads are answered
    /// ([`Client::compact`](super::Client::compact)). No server answers it any more.
    #[error("{server}: {message}")]
    Compacted {
        /// The server whose answer this is.
        server: SocketAddr,
        /// The earliest version as of which reads go on.
        version: Timestamp,
        /// The server's sentence, escaped so that a terminal can show it.
        message: String,
    },
    /// A disk of the group is nearly full, so the write was refused. Removals and reads go on.
    #[error("{server}: {message}")]
    DiskFull {
        /// The server whose answer this is.
        server: SocketAddr,
        /// The server's sentence, escaped so that a terminal can show it.
        message: String,
    },
    /// Each target server was asked once and at least one answered that it cannot serve now. Only
    /// [`Client::submit`](super::Client::submit) and [`Client::status`](super::Client::status) give
    /// up this early.
    #[error("no server could serve the request now; last: {last}{}", known(*effect))]
    Unavailable {
        /// What stood in the way last.
        last: String,
        /// What is known of a write's effect; `None` for a read.
        effect: Option<Effect>,
    },
    /// The write is done, but what it replaced or removed, which was asked for as well, could not
    /// be read.
    #[error(
        "the write is done, with version {timestamp}; what was there before could not be read: \
         {why}"
    )]
    PreviousUnread {
        /// The version that the write made.
        timestamp: Timestamp,
        /// Why the read of it failed.
        why: Box<ClientError>,
    },
    /// The condition of a write did not hold and nothing was written, but the value that the key
    /// has instead, which was asked for as well, could not be read.
    #[error(
        "nothing was written: the key has version {newest}; its value could not be read: {why}"
    )]
    ConflictUnread {
        /// The newest version of the key when the write was tried.
        newest: Timestamp,
        /// Why the read of it failed.
        why: Box<ClientError>,
    },
    /// A transaction is done, but what its operations have answered cannot be told, or not all of
    /// it.
    #[error(
        "the transaction is done, with version {timestamp}, by its branch '{}'; what its \
         operations have answered could not be read: {why}",
        if *succeeded { "then" } else { "else" }
    )]
    ResultsUnread {
        /// The version that its writes made.
        timestamp: Timestamp,
        /// Whether every comparison held.
        succeeded: bool,
        /// Why the read of its results failed.
        why: Box<ClientError>,
    },
    /// No group carries out this transaction, whatever its store has; the sentence says why.
    #[error("{0}")]
    InvalidTxn(String),
    /// The ranges that a transaction compares or removes have more keys than it may look through.
    #[error(
        "nothing was done: the transaction would have to look through more than \
         {TRANSACTION_ROWS_MAX} keys ({KEPT_REMOVAL_ROWS_MAX} in ranges that it deletes keeping \
         history), or {TRANSACTION_COMPARED_BYTES_MAX} bytes of values: name fewer of them"
    )]
    TxnTooLong,
    /// A range that was to be deleted with its history kept has more keys than one write may look
    /// through, those included that were removed and have not left the disk.
    #[error(
        "nothing was done: of a range with more than {KEPT_REMOVAL_ROWS_MAX} keys, or {} bytes of \
         keys, the history cannot be kept: delete it in parts",
        KEPT_REMOVAL_ROWS_MAX * KEPT_REMOVAL_BYTES_PER_ROW
    )]
    RangeTooLong,
    /// The value that is to be added to is not a number.
    #[error(
        "nothing was written: the key's value, of version {0}, is not a whole number that can be \
         added to"
    )]
    NotANumber(Timestamp),
    /// The sum does not fit into 64 bits.
    #[error("nothing was written: {number} and {by} make a number that is too great")]
    SumTooGreat {
        /// The number that the key has.
        number: i64,
        /// What was to be added.
        by: i64,
    },
    /// What a read was answered with was not kept, because there is no room for it
    /// ([`Client::with_room`](super::Client::with_room)).
    #[error("there is no room for an answer of {0} bytes")]
    NoRoom(usize),
    /// Keys have at least one byte.
    #[error("a key cannot be empty")]
    KeyEmpty,
    /// The key is longer than any server takes.
    #[error("a key of {0} bytes is too long: at most {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    /// The value is longer than any server takes.
    #[error("a value of {0} bytes is too long: at most {VALUE_BYTES_MAX}")]
    ValueTooLong(usize),
    /// More keys than one write, or one question, can name.
    #[error(
        "{0} keys are too many at once: at most {TRANSACTION_KEYS_MAX}, make it several requests"
    )]
    TooManyKeys(usize),
    /// More bytes than one write can have.
    #[error(
        "{0} bytes are too many at once: at most {TRANSACTION_BYTES_MAX}, make it several writes"
    )]
    TooManyBytes(usize),
    /// No lease can have this time, or this id; says the sentence.
    #[error("{0}")]
    InvalidLease(String),
    /// A lease of this id was asked for, and there is one.
    #[error("there is a lease {0}: revoke it, or name another id or none")]
    LeaseExists(u64),
    /// A lease that was named has ended, or was never granted. Nothing was written.
    #[error("there is no such lease (any more): nothing was written")]
    NoLease,
    /// A lease would have more keys than a lease may have. Nothing was written.
    #[error("the lease has as many keys as a lease may have: nothing was written")]
    LeaseFull,
    /// The group has as many leases as it may have.
    #[error("the group has as many leases as it may have: no other was granted")]
    TooManyLeases,
    /// A lock or an election has a name of at least one byte.
    #[error("the name of a lock or an election cannot be empty")]
    NameEmpty,
    /// The name leaves no room for what its keys have behind it.
    #[error("a lock's or election's name of {0} bytes is too long: at most {NAME_BYTES_MAX}")]
    NameTooLong(usize),
    /// Others have the lock, or lead, or are before this one, and its time is over. Its key is
    /// being taken away again.
    #[error("'{name}' is taken{}: this one has left the queue", waited(*wait))]
    StillTaken {
        /// The name, escaped so that a terminal can show it.
        name: String,
        /// How long it has waited for its turn.
        wait: Duration,
    },
    /// A lock or leadership is lost, or its place in the queue: its key is not there any more.
    #[error("'{0}' is lost: its lease may have ended, or somebody has deleted its key")]
    ContenderGone(String),
    /// The text is not a session token.
    #[error("'{0}' is not a session token: give what --print-session or session_token() gave")]
    BadSessionToken(String),
    /// The server asked about is not one of the client's.
    #[error("{0} is not one of this client's servers")]
    UnknownServer(SocketAddr),
    /// A client needs servers, each once, and not too many.
    #[error("a client needs 1 to {SERVERS_MAX} servers, each named once, and the list has {0}")]
    BadServerList(usize),
    /// The system refused the client's thread, or what it needs.
    #[error("a thread could not be started: {0}")]
    Thread(String),
    /// The client watches as many ranges as a client may.
    #[error("a client may have {CLIENT_WATCHES_MAX} watches: end one, or watch a longer range")]
    TooManyWatches,
    /// The client's thread has ended, which it does only when the system fails it or it panics. A
    /// client never gets another one: build a new client.
    #[error("the client's thread has ended")]
    Ended,
    /// The call was made on the thread that brings the client's answers, which cannot wait for
    /// them.
    #[error("a blocking call was made on the client's own thread, which delivers its answer")]
    WouldBlock,
    /// The process was forked after the client had started its thread, which the child does not
    /// have: build a new client there.
    #[error("the client belongs to process {0}, from which this one was forked")]
    Forked(u32),
}

/// One server and why it could not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFailure {
    /// The address that was dialled.
    pub server: SocketAddr,
    /// What happened, in a few words.
    pub reason: String,
}

impl ClientError {
    /// What is known of the effect of a write that ended with this error. Of a read it is
    /// [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        match self {
            ClientError::TimedOut { effect, .. }
            | ClientError::Unreachable { effect, .. }
            | ClientError::Unavailable { effect, .. } => effect.unwrap_or_default(),
            ClientError::Unconfirmed { effect, .. } | ClientError::StaleRequest { effect, .. } => {
                *effect
            }
            ClientError::PreviousUnread { .. } | ClientError::ResultsUnread { .. } => Effect::Done,
            // It may have been sent before.
            ClientError::Ended => Effect::MayBeDone,
            _ => Effect::NotDone,
        }
    }

    /// Whether it is the request, or how the client was set up, that cannot be used: no time and no
    /// server makes that right.
    pub fn is_of_the_request(&self) -> bool {
        matches!(
            self,
            ClientError::Invalid { .. }
                | ClientError::Compacted { .. }
                | ClientError::KeyEmpty
                | ClientError::KeyTooLong(_)
                | ClientError::ValueTooLong(_)
                | ClientError::TooManyKeys(_)
                | ClientError::TooManyBytes(_)
                | ClientError::InvalidTxn(_)
                | ClientError::TxnTooLong
                | ClientError::RangeTooLong
                | ClientError::InvalidLease(_)
                | ClientError::NameEmpty
                | ClientError::NameTooLong(_)
                | ClientError::BadSessionToken(_)
                | ClientError::UnknownServer(_)
                | ClientError::BadServerList(_)
        )
    }

    /// The error of a read that had to write a barrier, which changes nothing: what became of the
    /// barrier is not reported to the caller.
    pub(super) fn of_read(self) -> ClientError {
        let unfinished = "no majority confirmed in time which state that was: try again";
        match self {
            ClientError::TimedOut { timeout, last, .. } => {
                ClientError::TimedOut { timeout, last, effect: None }
            }
            ClientError::Unreachable { servers, .. } => {
                ClientError::Unreachable { servers, effect: None }
            }
            ClientError::Unavailable { last, .. } => {
                ClientError::Unavailable { last, effect: None }
            }
            ClientError::Unconfirmed { server, .. } | ClientError::StaleRequest { server, .. } => {
                ClientError::NoMajority { server, message: unfinished.to_owned() }
            }
            other => other,
        }
    }

    /// The error of a write, given the effect that all its attempts together have had as far as is
    /// known; `None` for a read.
    pub(super) fn of_write(mut self, known: Option<Effect>) -> ClientError {
        match &mut self {
            ClientError::TimedOut { effect, .. }
            | ClientError::Unreachable { effect, .. }
            | ClientError::Unavailable { effect, .. } => *effect = known,
            ClientError::Unconfirmed { effect, .. } | ClientError::StaleRequest { effect, .. } => {
                *effect = known.unwrap_or_default().max(*effect)
            }
            // One server's word of its own attempt is not all that there is to know.
            ClientError::NoMajority { server, message }
            | ClientError::DiskFull { server, message }
            | ClientError::Expired { server, message }
            | ClientError::Invalid { server, message } => {
                if let Some(effect) = known.filter(|effect| *effect > Effect::NotDone) {
                    let message = format!(
                        "another attempt was not answered, so the write may have taken effect: \
                         read the key before you write it again (this server says of its own \
                         attempt: {message})"
                    );
                    return ClientError::Unconfirmed { server: *server, message, effect };
                }
            }
            _ => {}
        }
        self
    }
}

/// What a sentence says of a write's effect.
fn known(effect: Option<Effect>) -> &'static str {
    match effect {
        None => "",
        Some(Effect::NotDone) => ". Nothing was written",
        Some(Effect::MayBeDone) => ". The write may have taken effect",
        Some(Effect::Done) => ". The write has taken effect",
    }
}

/// What a sentence says of the time that was waited, if any was.
fn waited(wait: Duration) -> String {
    if wait.is_zero() { String::new() } else { format!(", also after {wait:?}") }
}

fn list(servers: &[ServerFailure]) -> String {
    let each = servers.iter().map(|failure| format!("{}: {}", failure.server, failure.reason));
    each.collect::<Vec<_>>().join("; ")
}
