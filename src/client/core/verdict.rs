//! What an answer means for the call that it is to.
//!
//! What the reply to a request is worth is the exchange's own affair; what a server says instead of
//! an answer means the same for all of them, and is judged here.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::error::ClientError;
use crate::model::{Effect, Timestamp};
use crate::wire::message::{ErrorCode, ErrorReply};

/// What an answer means for its request.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::client) enum Verdict<T> {
    /// That is the answer.
    Done(T),
    /// The answer was overtaken: the same server once more.
    Again,
    /// Another server, or this one later, may do better.
    Other(String),
    /// Another server may do better, or this one, but not before this long.
    OtherAfter(Duration, String),
    /// This server is of no use now.
    Gone(String),
    /// So says this server, which may be cut off from the others.
    NoMajority(ClientError),
    /// The call ends with this error, which no other server or time can cure.
    Fail(ClientError),
    /// The servers do not know the write's client. Under another identity, which begins with this
    /// time, it can be made again if no copy of it has had an effect.
    Forgotten { error: ClientError, begun: Timestamp },
}

impl<T> Verdict<T> {
    /// The same about an answer of which `keep` makes something else.
    pub(in crate::client) fn map<U>(self, keep: impl FnOnce(T) -> U) -> Verdict<U> {
        match self {
            Verdict::Done(answer) => Verdict::Done(keep(answer)),
            Verdict::Again => Verdict::Again,
            Verdict::Other(why) => Verdict::Other(why),
            Verdict::OtherAfter(after, why) => Verdict::OtherAfter(after, why),
            Verdict::Gone(why) => Verdict::Gone(why),
            Verdict::NoMajority(error) => Verdict::NoMajority(error),
            Verdict::Fail(error) => Verdict::Fail(error),
            Verdict::Forgotten { error, begun } => Verdict::Forgotten { error, begun },
        }
    }
}

/// What an `ERROR` reply means, the same for every request.
pub(in crate::client) fn judge_error<T>(server: SocketAddr, error: ErrorReply) -> Verdict<T> {
    // What a server says is shown to people, so it is cut and made fit for a terminal.
    let message = crate::text::sentence(&error.message);
    match error.code {
        ErrorCode::NoMajority => Verdict::NoMajority(ClientError::NoMajority { server, message }),
        ErrorCode::Unconfirmed => {
            let effect = error.effect;
            let unconfirmed = ClientError::Unconfirmed { server, message, effect };
            match effect {
                Effect::Done => Verdict::Fail(unconfirmed),
                // Another server may reach the majority that confirms it.
                Effect::NotDone | Effect::MayBeDone => Verdict::NoMajority(unconfirmed),
            }
        }
        ErrorCode::Invalid => Verdict::Fail(ClientError::Invalid { server, message }),
        // It was applied long ago, if it ever was.
        ErrorCode::StaleRequest => {
            let effect = error.effect.max(Effect::MayBeDone);
            Verdict::Fail(ClientError::StaleRequest { server, message, effect })
        }
        ErrorCode::UnknownSession { begin_anew_at } => {
            let effect = error.effect;
            let error = ClientError::StaleRequest { server, message, effect };
            Verdict::Forgotten { error, begun: begin_anew_at }
        }
        ErrorCode::DiskFull => Verdict::Fail(ClientError::DiskFull { server, message }),
        ErrorCode::Compacted { version } => {
            Verdict::Fail(ClientError::Compacted { server, version, message })
        }
        ErrorCode::Expired => Verdict::Fail(ClientError::Expired { server, message }),
        ErrorCode::Busy { retry_after_ms } => {
            let after = Duration::from_millis(u64::from(retry_after_ms));
            Verdict::OtherAfter(after, format!("{server}: {message}"))
        }
        ErrorCode::ShuttingDown | ErrorCode::Internal => Verdict::Gone(message),
    }
}

/// What a reply of the wrong kind means.
pub(in crate::client) fn judge_unexpected<T>() -> Verdict<T> {
    Verdict::Gone("it answered another question than was asked".to_owned())
}
