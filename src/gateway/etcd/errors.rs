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
    MemberNotFound,
    Compacted,
    FutureRevision,
    NoSpace,
    TooManyRequests,
    NoLeader,
    TimedOut,
    BadLeaderTransferee,
    RootUserMissing,
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
            EtcdError::MemberNotFound => (NotFound, "etcdserver: member not found"),
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
            EtcdError::BadLeaderTransferee => {
                (FailedPrecondition, "etcdserver: bad leader transferee")
            }
            EtcdError::RootUserMissing => {
                (FailedPrecondition, "etcdserver: root user does not exist")
            }
            EtcdError::AuthNotEnabled => {
                (FailedPrecondition, "etcdserver: authentication is not enabled")
            }
        }
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
