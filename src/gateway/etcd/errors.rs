//! etcd's error codes and texts, and what the errors of the client library become.
//!
//! Clients of etcd tell errors apart by their text, byte for byte, so that all of them stand here.
//! What etcd has no word for is said in a sentence of our own, without etcd's prefix.

use tonic::{Code, Status};

use super::super::policy::CallLimits;
use crate::client::{ClientError, Effect};

/// An error that etcd has a text for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum EtcdError {
    KeyEmpty,
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOps,
    DuplicateKey,
    TooLarge,
    InvalidSortOption,
    UserEmpty,
    RoleEmpty,
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    Compacted,
    FutureRevision,
    NoSpace,
    TooManyRequests,
    NoLeader,
    TimedOut,
    Stopped,
    MemberNotFound,
    BadLeaderTransferee,
    RootUserMissing,
    UserNotFound,
    RoleNotFound,
    AuthNotEnabled,
}

impl EtcdError {
    fn told(self) -> (Code, &'static str) {
        use Code::{
            FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted,
            Unavailable,
        };
        match self {
            EtcdError::KeyEmpty => (InvalidArgument, "etcdserver: key is not provided"),
            EtcdError::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
            EtcdError::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
            EtcdError::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
            EtcdError::TooManyOps => {
                (InvalidArgument, "etcdserver: too many operations in txn request")
            }
            EtcdError::DuplicateKey => {
                (InvalidArgument, "etcdserver: duplicate key given in txn request")
            }
            EtcdError::TooLarge => (InvalidArgument, "etcdserver: request is too large"),
            EtcdError::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
            EtcdError::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
            EtcdError::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
            EtcdError::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
            EtcdError::LeaseExists => (FailedPrecondition, "etcdserver: lease already exists"),
            EtcdError::LeaseTtlTooLarge => (OutOfRange, "etcdserver: too large lease TTL"),
            EtcdError::Compacted => {
                (OutOfRange, "etcdserver: mvcc: required revision has been compacted")
            }
            EtcdError::FutureRevision => {
                (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
            }
            EtcdError::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            EtcdError::TooManyRequests => (ResourceExhausted, "etcdserver: too many requests"),
            EtcdError::NoLeader => (Unavailable, "etcdserver: no leader"),
            EtcdError::TimedOut => (Unavailable, "etcdserver: request timed out"),
            EtcdError::Stopped => (Unavailable, "etcdserver: server stopped"),
            EtcdError::MemberNotFound => (NotFound, "etcdserver: member not found"),
            EtcdError::BadLeaderTransferee => {
                (FailedPrecondition, "etcdserver: bad leader transferee")
            }
            EtcdError::RootUserMissing => {
                (FailedPrecondition, "etcdserver: root user does not exist")
            }
            EtcdError::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
            EtcdError::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
            EtcdError::AuthNotEnabled => {
                (FailedPrecondition, "etcdserver: authentication is not enabled")
            }
        }
    }
}

impl EtcdError {
    /// The text that clients of etcd know it by.
    pub(super) fn text(self) -> &'static str {
        self.told().1
    }
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Status {
        let (code, text) = error.told();
        Status::new(code, text)
    }
}

/// What the transport says of a message that is too long for it is OUT_OF_RANGE, which etcd says of
/// revisions and times alone, with its prefix.
pub(in crate::gateway) fn overlong(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange if !status.message().starts_with("etcdserver: ") => {
            EtcdError::TooLarge.into()
        }
        _ => status,
    }
}

/// What a call is told whose request to the group has failed.
pub(super) fn failed(call: &CallLimits, error: &ClientError) -> Status {
    call.late_by_now().unwrap_or_else(|| told(error))
}

fn told(error: &ClientError) -> Status {
    let message = error.to_string();
    match error {
        // Whatever has retry policies ask again would have them write again.
        _ if error.effect() == Effect::Done => Status::unknown(message),
        ClientError::StaleRequest { .. } => Status::unknown(message),
        ClientError::KeyEmpty => EtcdError::KeyEmpty.into(),
        ClientError::ValueTooLong(_) | ClientError::TooManyBytes(_) => EtcdError::TooLarge.into(),
        // Of what the client library lets through, a server refuses a value by its own limit.
        ClientError::Invalid { message, .. } if message.contains("--max-value") => {
            EtcdError::TooLarge.into()
        }
        ClientError::NoLease => EtcdError::LeaseNotFound.into(),
        ClientError::LeaseExists(_) => EtcdError::LeaseExists.into(),
        ClientError::Compacted { .. } => EtcdError::Compacted.into(),
        _ if error.is_of_the_request() => Status::invalid_argument(message),
        ClientError::NoMajority { .. } | ClientError::Unavailable { .. } => {
            EtcdError::NoLeader.into()
        }
        ClientError::Unreachable { .. } if error.effect() == Effect::NotDone => {
            EtcdError::NoLeader.into()
        }
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Unconfirmed { .. } => EtcdError::TimedOut.into(),
        ClientError::DiskFull { .. } => EtcdError::NoSpace.into(),
        ClientError::NoRoom(_) => no_room(),
        ClientError::TooManyWatches => EtcdError::TooManyRequests.into(),
        ClientError::LeaseFull | ClientError::TooManyLeases | ClientError::Thread(_) => {
            Status::resource_exhausted(message)
        }
        ClientError::Expired { .. } => Status::aborted(message),
        // Nothing but another process helps.
        _ => Status::internal(message),
    }
}

/// What a call is told whose answer the gateway has no room for.
pub(super) fn no_room() -> Status {
    Status::resource_exhausted(
        "the answer is longer than this gateway has room for now: ask for less with a limit, or \
         for keys only",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn errors_of_the_group_have_etcds_words_and_only_what_passes_is_unavailable() {
        let server = ([127, 0, 0, 1], 1).into();
        let message = || "a sentence".to_owned();
        let timed_out = |effect| ClientError::TimedOut {
            timeout: Duration::from_secs(1),
            last: message(),
            effect,
        };
        let unreachable = |effect| ClientError::Unreachable { servers: Vec::new(), effect };
        let too_long = "the value has 2 bytes, or start the servers with a greater --max-value";
        let maybe = Effect::MayBeDone;
        let table = [
            (ClientError::NoMajority { server, message: message() }, "etcdserver: no leader"),
            (unreachable(None), "etcdserver: no leader"),
            (unreachable(Some(maybe)), "etcdserver: request timed out"),
            (timed_out(None), "etcdserver: request timed out"),
            (
                ClientError::Unconfirmed { server, message: message(), effect: maybe },
                "etcdserver: request timed out",
            ),
            (
                ClientError::DiskFull { server, message: message() },
                "etcdserver: mvcc: database space exceeded",
            ),
            (ClientError::NoLease, "etcdserver: requested lease not found"),
            (ClientError::LeaseExists(7), "etcdserver: lease already exists"),
            (ClientError::KeyEmpty, "etcdserver: key is not provided"),
            (ClientError::ValueTooLong(9), "etcdserver: request is too large"),
            (
                ClientError::Invalid { server, message: too_long.to_owned() },
                "etcdserver: request is too large",
            ),
        ];
        for (error, text) in table {
            assert_eq!(told(&error).message(), text, "{error:?}");
        }
        let lasting = [
            ClientError::KeyTooLong(9),
            ClientError::TxnTooLong,
            ClientError::InvalidTxn(message()),
            ClientError::LeaseFull,
            ClientError::TooManyLeases,
            ClientError::NoRoom(9),
            ClientError::DiskFull { server, message: message() },
            ClientError::Ended,
            timed_out(Some(Effect::Done)),
        ];
        for error in lasting {
            assert_ne!(told(&error).code(), Code::Unavailable, "{error:?}");
        }
    }

    #[test]
    fn only_the_transport_is_out_of_range_without_etcds_prefix() {
        let long = overlong(Status::out_of_range("message length too large"));
        assert_eq!(long.code(), Code::InvalidArgument);
        assert_eq!(long.message(), "etcdserver: request is too large");
        let future = overlong(EtcdError::FutureRevision.into());
        assert_eq!(future.code(), Code::OutOfRange);
    }
}
