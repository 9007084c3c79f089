//! What can go wrong with a client's request.

use std::net::SocketAddr;
use std::time::Duration;

use crate::limits::{
    KEY_BYTES_MAX, SERVERS_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_KEYS_MAX, VALUE_BYTES_MAX,
};
use crate::wire::message::Effect;

/// Why a client could not be built or a request did not succeed.
///
/// Whatever another attempt on another server can cure has been tried by then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No server of the list could be reached for as long as
    /// [`Timing::reach_timeout`](super::Timing::reach_timeout).
    #[error("no server could be reached ({})", list(servers))]
    Unreachable {
        /// Each server and why.
        servers: Vec<ServerFailure>,
    },
    /// The request's whole time passed. A write may still take effect.
    #[error("no answer within {timeout:?}; last: {last}. A write may still take effect")]
    TimedOut {
        /// The time it had.
        timeout: Duration,
        /// What stood in the way last.
        last: String,
    },
    /// Not enough servers answer to order a write or confirm a linearizable read.
    #[error("{server}: {message}")]
    NoMajority {
        /// Who said so.
        server: SocketAddr,
        /// Its sentence.
        message: String,
    },
    /// A write was ordered and not confirmed in time: the servers that have it, or a majority, could not be reached.
    #[error("{server}: {message}")]
    Unconfirmed {
        /// Who said so.
        server: SocketAddr,
        /// Its sentence.
        message: String,
        /// What it knows of the write's effect: never [`Effect::NotDone`].
        effect: Effect,
    },
    /// A server refused the request for what it is; repeating it will not help.
    #[error("{server}: {message}")]
    Invalid {
        /// Who said so.
        server: SocketAddr,
        /// Its sentence.
        message: String,
    },
    /// A server had already forgotten this write, so nobody can say whether it took effect.
    #[error("{server}: {message}")]
    StaleRequest {
        /// Who said so.
        server: SocketAddr,
        /// Its sentence.
        message: String,
    },
    /// A long read, or the pause before one of its pages, took too long: what it was to show next has been
    /// removed for good meanwhile. Begin it again.
    #[error("{server}: {message}")]
    Expired {
        /// Who said so.
        server: SocketAddr,
        /// Its sentence.
        message: String,
    },
    /// Every server meant was asked once and at least one answered that it cannot serve now. Only
    /// [`Client::submit`](super::Client::submit) and [`Client::status`](super::Client::status) give
    /// up this early.
    #[error("no server could serve the request now; last: {last}")]
    Unavailable {
        /// What stood in the way last.
        last: String,
    },
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
    /// The text is not a session token.
    #[error("'{0}' is not a session token: give what --print-session or session_token() gave")]
    BadSessionToken(String),
    /// The server asked about is not one of the client's.
    #[error("{0} is not one of this client's servers")]
    UnknownServer(SocketAddr),
    /// A client needs servers, each once, and not too many.
    #[error("a client needs 1 to {SERVERS_MAX} different servers, and {0} were given")]
    BadServerList(usize),
    /// The system refused a thread.
    #[error("a thread could not be started: {0}")]
    Thread(String),
}

/// One server and why it could not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFailure {
    /// Its address.
    pub server: SocketAddr,
    /// What happened, in a few words.
    pub reason: String,
}

fn list(servers: &[ServerFailure]) -> String {
    let each = servers.iter().map(|failure| format!("{}: {}", failure.server, failure.reason));
    each.collect::<Vec<_>>().join("; ")
}
