//! What the commands on keys take in common: how keys are given, which servers are asked, as of
//! when, and how much of a row is printed.

use std::ffi::{OsStr, OsString};

use clap::Args;

use super::super::args::RequestArgs;
use super::super::at::{At, AtError};
use super::super::output::Shown;
use crate::client::{ClientError, KeyRange, ReadOptions};
use crate::text::unescape;

/// Flags of every command on keys.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// Read keys and values on the command line, and lines of keys, as ranges print them: \xNN is
    /// one byte, \\ a backslash
    #[arg(long)]
    pub escaped: bool,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
    /// Read nothing older than what the command that printed this token had seen, from any server
    /// that has come so far
    #[arg(long, value_name = "TOKEN")]
    pub session: Option<String>,
    /// Print the session token afterwards, on standard error
    #[arg(long)]
    pub print_session: bool,
}

impl KeyArgs {
    /// The bytes of a key or value on the command line.
    pub fn bytes(&self, argument: &OsStr) -> Vec<u8> {
        let bytes = argument.as_encoded_bytes();
        if self.escaped { unescape(bytes) } else { bytes.to_vec() }
    }
}

/// A version, which removals accept and ignore, since they are about every version.
#[derive(Clone, Debug, Args)]
pub struct NoVersionArgs {
    /// Means nothing to a removal and is ignored
    #[arg(long, value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub at: Option<At>,
}

/// Flags of every command that reads.
#[derive(Clone, Debug, Args)]
pub struct ReadArgs {
    /// As of a version or a time: a version number, 2026-11-20T12:00:00Z, '10m ago', now
    #[arg(long, value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub at: Option<At>,
    /// Ask any one server, also without a majority: what it answers may be older than what was
    /// written last
    #[arg(long, conflicts_with = "session")]
    pub serializable: bool,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

impl ReadArgs {
    /// Whether a majority has to confirm the read. What a command has written, the next one reads,
    /// unless it says what else it wants.
    pub fn is_linearizable(&self) -> bool {
        !self.serializable && self.shared.session.is_none()
    }

    /// What is read, where times are relative to now.
    ///
    /// # Errors
    /// `--at` is a time before every version.
    pub fn options(&self) -> Result<ReadOptions, AtError> {
        let now = jiff::Timestamp::now();
        let at = self.at.map(|at| at.resolve(now)).transpose()?;
        Ok(ReadOptions { at, linearizable: self.is_linearizable(), facts: false })
    }
}

/// Which keys a range has.
#[derive(Clone, Debug, Args)]
pub struct RangeArgs {
    /// The first key; '..' is the first there is
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub from: Option<OsString>,
    /// The last key, included; '..' is the last there is
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub to: Option<OsString>,
    /// Every key that begins with this, in the place of a first and a last key
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub prefix: Option<OsString>,
}

impl RangeArgs {
    /// The range that was asked for: '..' is an open end.
    ///
    /// # Errors
    /// A key that no server takes.
    pub fn range(&self, keys: &KeyArgs) -> Result<KeyRange, ClientError> {
        if let Some(prefix) = &self.prefix {
            return KeyRange::prefix(keys.bytes(prefix));
        }
        let end = |end: &Option<OsString>| {
            end.as_ref().filter(|end| *end != "..").map(|end| keys.bytes(end))
        };
        match (end(&self.from), end(&self.to)) {
            (Some(from), Some(to)) => KeyRange::between(from, to),
            (Some(from), None) => KeyRange::starting_at(from),
            (None, Some(to)) => KeyRange::ending_at(to),
            (None, None) => Ok(KeyRange::all()),
        }
    }
}

/// Flags that choose how much is printed of each row.
#[derive(Clone, Copy, Debug, Args)]
pub struct RowsArgs {
    /// Print only the keys, one a line
    #[arg(long)]
    pub keys_only: bool,
    /// Print only how many keys there are
    #[arg(long, conflicts_with = "keys_only")]
    pub count: bool,
}

impl RowsArgs {
    /// How much is printed of each row.
    pub fn shown(self) -> Shown {
        match self {
            RowsArgs { count: true, .. } => Shown::Count,
            RowsArgs { keys_only: true, .. } => Shown::Keys,
            RowsArgs { .. } => Shown::Whole,
        }
    }
}
