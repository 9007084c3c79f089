//! What a command comes to, and the exit status that says so.

use std::io;
use std::time::Duration;

use super::at::AtError;
use super::input::InputError;
use super::txn::TxnInputError;
use crate::client::{ClientError, LeaseId, Timestamp};
use crate::process::exit_status;

/// The outcome of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// What was asked for was found, or is done.
    Done,
    /// The key that was asked for does not exist.
    NotFound,
    /// A condition did not hold, and nothing was written.
    Conflict,
    /// A command that was run has ended with this status.
    Ended(u8),
    /// A comparison of a transaction did not hold, and its branch for that was done.
    Else,
    /// The outcome of `status` when no server answered, nobody leads, or disks are full; the table
    /// says why.
    NotWritable,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The request failed, or its arguments cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No majority confirmed a read, of which one server might have told.
    #[error("{0}; --serializable reads what one server has, without a majority")]
    NotConfirmed(ClientError),
    /// An argument or a line of standard input cannot be used.
    #[error(transparent)]
    Input(#[from] InputError),
    /// What was read is no transaction.
    #[error(transparent)]
    Txn(#[from] TxnInputError),
    /// The time or version of `--at` cannot be used.
    #[error(transparent)]
    At(#[from] AtError),
    /// A terminal would take bytes of the value for control sequences.
    #[error(
        "the value has control characters, which a terminal would take for commands: send --raw \
         into a pipe or a file, or leave it out"
    )]
    RawOnTerminal,
    /// Full disks keep everybody from writing, says this sentence.
    #[error("{0}")]
    NoRoom(String),
    /// The command that is to be run cannot be.
    #[error("the command cannot be run: {0}")]
    NotRun(io::Error),
    /// No server has answered for as long as the lease lives without being kept alive.
    #[error(
        "lease {lease} was not kept alive for its whole TTL of {ttl:?}, and may have ended: {error}"
    )]
    NotKeptAlive { lease: LeaseId, ttl: Duration, error: ClientError },
    /// A copy from etcd or to it has ended.
    #[cfg(feature = "grpc")]
    #[error(transparent)]
    Migration(crate::migration::MigrationError),
    /// The answer could not be printed.
    #[error("the answer could not be printed: {0}")]
    Output(io::Error),
    /// The answer to a write that is done could not be printed.
    #[error("the write is done, with version {0}; the answer could not be printed: {1}")]
    DoneUnprinted(Timestamp, io::Error),
}

impl CommandOutcome {
    /// The process's exit status.
    pub fn exit_status(self) -> u8 {
        match self {
            CommandOutcome::Done => exit_status::DONE,
            CommandOutcome::NotFound | CommandOutcome::Conflict | CommandOutcome::Else => {
                exit_status::NOT_FOUND
            }
            CommandOutcome::NotWritable => exit_status::UNAVAILABLE,
            CommandOutcome::Ended(status) => status,
        }
    }
}

impl CommandError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            CommandError::Client(ClientError::NotANumber(_) | ClientError::SumTooGreat { .. }) => {
                exit_status::NOT_FOUND
            }
            CommandError::Client(ClientError::ContenderGone(_)) => exit_status::LOST,
            CommandError::Client(error) if error.is_of_the_request() => exit_status::USAGE,
            CommandError::Client(_)
            | CommandError::NotConfirmed(_)
            | CommandError::NotKeptAlive { .. }
            | CommandError::NoRoom(_) => exit_status::UNAVAILABLE,
            #[cfg(feature = "grpc")]
            CommandError::Migration(_) => exit_status::UNAVAILABLE,
            CommandError::Input(_)
            | CommandError::Txn(_)
            | CommandError::At(_)
            | CommandError::RawOnTerminal => exit_status::USAGE,
            CommandError::NotRun(error) if error.kind() == io::ErrorKind::NotFound => {
                exit_status::NO_COMMAND
            }
            CommandError::NotRun(_) => exit_status::NOT_EXECUTABLE,
            CommandError::Output(_) | CommandError::DoneUnprinted(..) => exit_status::FAILED,
        }
    }
}
