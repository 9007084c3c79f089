//! The flags of the commands on keys: reads, writes, and what they share.

use std::ffi::OsString;

use clap::Args;

use super::args::RequestArgs;
use super::at::At;
use crate::model::{Condition, Timestamp};

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

/// The flags and arguments of `acervo get`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo get title
  acervo get title --serializable         from any one server, without a majority
  acervo get title --at '10m ago'
  acervo get film > film.mkv              a pipe or a file gets the value's bytes and nothing else
  acervo get title --format json --session s1-00061e2b5e4c1a00

A read misses no write that was done before it, unless --serializable or --session is given: then no
majority has to confirm it. On a terminal a value ends with a line end, and what is not printable is
escaped. Exit status 1 and nothing on standard output when there is no such key.")]
pub struct GetArgs {
    /// The key to read
    pub key: OsString,
    /// Print the bytes of the value and nothing else on a terminal, too, unless they have control
    /// characters
    #[arg(long)]
    pub raw: bool,
    /// As of when the read is, and whether a majority confirms it.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// The flags and arguments of `acervo getrange`.
#[derive(Debug, Args)]
#[command(
    override_usage = "\
acervo getrange [OPTIONS] <FROM|..> <TO|..>
       acervo getrange [OPTIONS] --prefix <P>",
    after_help = "\
Examples:
  acervo getrange a z
  acervo getrange --prefix user: | grep Lisboa       every key that begins with 'user:'
  acervo getrange m ..                               from m to the last key there is
  acervo getrange --prefix user: --reverse --limit 10 --keys-only
  acervo getrange --prefix '' --count                how many keys there are
  acervo getrange a z --at 2026-11-20T12:00:00Z --format json

A line has the key, its version and the value, separated by tabs. Bytes that are not printable UTF-8
are escaped (\\xNN, and \\\\ where a backslash would read as an escape), so that a line is a key.
JSON is one object a line; text that is not UTF-8 is in hexadecimal under key_hex or value_hex.

All of it is one state of the store, however long it takes and whatever is written meanwhile.
A range without keys, or whose ends are the wrong way round, is empty: exit status 0."
)]
pub struct GetRangeArgs {
    /// The keys that the command is about.
    #[command(flatten)]
    pub range: RangeArgs,
    /// Print no more than so many keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Begin with the last key
    #[arg(long)]
    pub reverse: bool,
    /// What is printed of each of them.
    #[command(flatten)]
    pub rows: RowsArgs,
    /// As of when the read is, and whether a majority confirms it.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// The flags and arguments of `acervo getall`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo getall title author
  cut -f 1 wanted.tsv | acervo getall --escaped -

One line a key, in the order given, as those of getrange; a key that does not exist has no value,
and the version that was asked for or 0, and is no error.")]
pub struct GetAllArgs {
    /// The keys; '-' reads some from standard input, one a line
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<OsString>,
    /// As of when the read is, and whether a majority confirms it.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// The flags and arguments of `acervo history`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo history title
  acervo history title --at '2h ago'      the versions that there were then
  acervo history title --since '3h ago' --at '1h ago'
  acervo history title --versions-only | tail -n 1       the oldest there is

A line has the version, its time and the value, separated by tabs, the newest first, since that is
how they lie in the store; 'tac' turns lines round. Escapes are those of getrange. One key at a
time: 'getrange --prefix P --keys-only' tells which there are. Exit status 1 when there is no such
key, or nothing of it since then.")]
pub struct HistoryArgs {
    /// The key whose versions are read
    pub key: OsString,
    /// Print no more than the newest so many versions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Print no version older than this
    #[arg(long, value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub since: Option<At>,
    /// Print only the versions, one a line
    #[arg(long)]
    pub versions_only: bool,
    /// Print only how many versions there are
    #[arg(long, conflicts_with = "versions_only")]
    pub count: bool,
    /// As of when the read is, and whether a majority confirms it.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// The flags and arguments of `acervo put`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo put title 'Dom Casmurro'
  acervo put chapter - < chapter.txt
  acervo put title x --format json        also what the key had before
  acervo put lock me --if-absent
  acervo put title x --if-version 1763700000000000

With --if-absent or --if-version the value is written only if there is no such key, or that is its
newest version. Else nothing is written, what there is instead is printed as getall prints it, and
the exit status is 1.")]
pub struct PutArgs {
    /// The key to write
    pub key: OsString,
    /// The value; '-' reads it from standard input, to the last byte
    #[arg(allow_negative_numbers = true)]
    pub value: OsString,
    /// Write only if there is no such key
    #[arg(long, conflicts_with = "if_version")]
    pub if_absent: bool,
    /// Write only if this is the newest version of the key
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(1..))]
    pub if_version: Option<i64>,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

impl PutArgs {
    /// What must hold for the value to be written, if anything must.
    pub fn condition(&self) -> Option<Condition> {
        let version = self.if_version.map(|version| Condition::Version(Timestamp(version)));
        version.or(self.if_absent.then_some(Condition::Absent))
    }
}

/// The flags and arguments of `acervo putall`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo putall title='Dom Casmurro' author=Machado
  acervo putall - < pairs.jsonl
  acervo getrange a z --format json | acervo putall - --servers 10.0.0.1:10097

A pair ends its key at the first '='; a key that has one is written \\x3d with --escaped. On
standard input a pair is a JSON object a line, such as getrange prints:
{\"key\":\"title\",\"value\":\"Dom Casmurro\"}, or with key_hex and value_hex; other fields are
ignored.

All pairs are written at once, at one version, or none: more than fit one write are refused. One
line a pair, separated by tabs: key, new version, old version (0 for none), old value, escaped as
those of getrange.")]
pub struct PutAllArgs {
    /// The pairs; '-' reads some from standard input, as JSON lines
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub pairs: Vec<OsString>,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

/// The flags and arguments of `acervo del`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo del title
  acervo del title --format json          also the newest version it had

Exit status 1 when there was nothing to delete.")]
pub struct DelArgs {
    /// The key to remove
    pub key: OsString,
    /// A version, which is accepted and means nothing to a removal.
    #[command(flatten)]
    pub no_version: NoVersionArgs,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

/// The flags and arguments of `acervo delrange`.
#[derive(Debug, Args)]
#[command(
    override_usage = "\
acervo delrange [OPTIONS] <FROM|..> <TO|..>
       acervo delrange [OPTIONS] --prefix <P>",
    after_help = "\
Examples:
  acervo delrange --prefix user:
  acervo delrange a z > removed.tsv
  acervo delrange m .. --count            how many keys were removed, from m to the last there is

The range is removed at once, however long it is. Then comes one line a key that it had, in key
order, as those of putall: key, version of the deletion, version and value it had. What is not read
within a minute may be gone."
)]
pub struct DelRangeArgs {
    /// The keys that the command is about.
    #[command(flatten)]
    pub range: RangeArgs,
    /// What is printed of each of them.
    #[command(flatten)]
    pub rows: RowsArgs,
    /// A version, which is accepted and means nothing to a removal.
    #[command(flatten)]
    pub no_version: NoVersionArgs,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

/// The flags and arguments of `acervo delall`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo delall title author
  acervo getrange a z | cut -f 1 | acervo delall --escaped -

All keys are removed at once, or none. One line a key, in the order given, as those of putall: key,
version of the deletion, version (0 for none) and value it had.")]
pub struct DelAllArgs {
    /// The keys; '-' reads some from standard input, one a line
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<OsString>,
    /// A version, which is accepted and means nothing to a removal.
    #[command(flatten)]
    pub no_version: NoVersionArgs,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

/// The flags and arguments of `acervo trim`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo trim title

Exit status 1 when there is no such key.")]
pub struct TrimArgs {
    /// The key to remove all but the newest version of
    pub key: OsString,
    /// A version, which is accepted and means nothing to a removal.
    #[command(flatten)]
    pub no_version: NoVersionArgs,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}
