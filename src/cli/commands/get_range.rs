//! `acervo getrange` and `getall`, and `ls`, which nobody is told of.

use std::ffi::OsString;

use clap::Args;

use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Shape, Shown};
use super::flags::{RangeArgs, ReadArgs, RowsArgs};
use super::session::{OneShot, Session, Streams};

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

impl OneShot for GetRangeArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.read.shared, streams)?;
        let (options, range) = (self.read.options()?, self.range.range(&self.read.shared)?);
        let range = if self.reverse { range.reversed() } else { range };
        let rows = session.client.scan(range, options).limit(self.limit.unwrap_or(u64::MAX));
        session.print_rows(Shape::Read { at: options.at }, self.rows.shown(), rows)?;
        session.done()
    }

    fn read_args(&self) -> Option<&ReadArgs> {
        Some(&self.read)
    }
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

impl OneShot for GetAllArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.read.shared, streams)?;
        let keys = session.arguments().keys(&self.keys)?;
        let options = self.read.options()?;
        let rows = session.client.get_all(keys, options)?;
        session.print_rows(Shape::Read { at: options.at }, Shown::Whole, rows)?;
        session.done()
    }

    fn read_args(&self) -> Option<&ReadArgs> {
        Some(&self.read)
    }
}

/// The flags and arguments of `acervo ls`: for whoever types it.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Every key that begins with this
    #[arg(default_value = "")]
    pub prefix: OsString,
    /// As of when the read is, and whether a majority confirms it.
    #[command(flatten)]
    pub read: ReadArgs,
}

impl OneShot for LsArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let range = RangeArgs { from: None, to: None, prefix: Some(self.prefix.clone()) };
        let rows = RowsArgs { keys_only: true, count: false };
        let read = self.read.clone();
        GetRangeArgs { range, limit: None, reverse: false, rows, read }.run(streams)
    }

    fn read_args(&self) -> Option<&ReadArgs> {
        Some(&self.read)
    }
}
