//! The commands on the store: one request, one answer printed, one exit status.
//!
//! A command is one thing: its flags and what it does with them are a struct and its [`OneShot`],
//! in the file of its kind, and [`StoreCommand`] lists it with its name and the line of help.
//! `flags` has what several commands take, `session` what all of them do before and after.

mod compact;
mod del;
mod flags;
mod get;
mod get_range;
mod held;
mod history;
mod incr;
mod lease;
mod lock;
#[cfg(feature = "grpc")]
mod migrate;
mod observe;
mod put;
mod session;
mod status;
mod trim;
mod txn;
mod watch;

use clap::Subcommand;

use self::flags::ReadArgs;
use self::session::OneShot;
pub use self::session::Streams;
use super::outcome::{CommandError, CommandOutcome};
use crate::client::ClientError;

/// Declares the one list of commands: the variants of [`StoreCommand`], whose doc comments are
/// their help. One behind `["feature"]` is there where the feature is.
macro_rules! commands {
    ($($(#[$help:meta])* $([$feature:literal])? $name:ident($arguments:ty),)+) => {
        /// A command on the store, as it was typed.
        #[derive(Debug, Subcommand)]
        pub enum StoreCommand {
            $($(#[cfg(feature = $feature)])? $(#[$help])* $name($arguments),)+
        }

        impl StoreCommand {
            fn command(&self) -> &dyn OneShot {
                match self {
                    $($(#[cfg(feature = $feature)])? StoreCommand::$name(command) => command,)+
                }
            }
        }
    };
}

commands! {
    /// Print the value of a key, and nothing else
    Get(get::GetArgs),
    /// Print every key of a range, with its version and value
    #[command(name = "getrange")]
    GetRange(get_range::GetRangeArgs),
    /// Print several keys, all of one moment
    #[command(name = "getall")]
    GetAll(get_range::GetAllArgs),
    /// Print every version of a key, with its time
    History(history::HistoryArgs),
    /// Store a value under a key and print the version it made
    #[command(alias = "set")]
    Put(put::PutArgs),
    /// Store several keys at once, or none
    #[command(name = "putall")]
    PutAll(put::PutAllArgs),
    /// Delete a key and print the version of the deletion
    #[command(alias = "rm")]
    Del(del::DelArgs),
    /// Delete every key of a range at once
    #[command(name = "delrange")]
    DelRange(del::DelRangeArgs),
    /// Delete several keys at once, or none
    #[command(name = "delall")]
    DelAll(del::DelAllArgs),
    /// Delete every version of a key but the newest, and print that version
    Trim(trim::TrimArgs),
    /// Add to the number that a key has and print the sum
    Incr(incr::IncrArgs),
    /// Carry out a transaction: comparisons, and operations for when they hold or not
    Txn(txn::TxnArgs),
    /// Change how long the group keeps old versions, and print the version of the change
    SetHistory(history::SetHistoryArgs),
    /// End reads as of versions before one, and print the version of the change
    Compact(compact::CompactArgs),
    /// Print every change of some keys as it happens, or run a command for each
    Watch(watch::WatchArgs),
    /// Grant, keep alive, revoke and show leases, with whose end keys go
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Wait for a lock, and hold it while a command runs, or until stopped
    Lock(lock::LockArgs),
    /// Wait to become the leader, and lead while a command runs, or until stopped
    Elect(lock::ElectArgs),
    /// Print who leads, now and whenever that changes
    Observe(observe::ObserveArgs),
    /// Copy the keys of an etcd into the group, and follow it
    ["grpc"] Import(migrate::ImportArgs),
    /// Copy the keys of the group into an etcd, and follow it
    ["grpc"] Export(migrate::ExportArgs),
    /// Describe every server of the group
    Status(status::StatusArgs),
    /// Check that the group can be read and written, for scripts and load balancers
    Health(status::HealthArgs),
    /// Print every key there is, or that begins so
    #[command(hide = true)]
    Ls(get_range::LsArgs),
}

impl StoreCommand {
    /// Does what was typed, and prints the answer.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        match self.command().run(streams) {
            Err(CommandError::Client(error @ ClientError::NoMajority { .. }))
                if self.command().read_args().is_some_and(ReadArgs::is_linearizable) =>
            {
                Err(CommandError::NotConfirmed(error))
            }
            other => other,
        }
    }
}
