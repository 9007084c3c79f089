//! `acervo del`, `delrange` and `delall`.

use std::ffi::OsString;

use clap::Args;

use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::Shown;
use super::flags::{KeyArgs, NoVersionArgs, RangeArgs, RowsArgs};
use super::session::{OneShot, Session, Streams, answer_with_previous, no_key};

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

impl OneShot for DelArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.shared, streams)?;
        let key = session.key(&self.key);
        let removed = session.client.del(&key);
        let Some(done) = session.previous_told(removed)? else {
            return Ok(CommandOutcome::Done);
        };
        session.print_done(done.timestamp, &answer_with_previous(&key, &done))?;
        session.found(done.previous.is_some(), || no_key(&key))
    }
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

impl OneShot for DelRangeArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let session = Session::new(&self.shared, streams)?;
        let done = session.client.del_scan(self.range.range(&self.shared)?)?;
        session.print_written(done, self.rows.shown())
    }
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

impl OneShot for DelAllArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.shared, streams)?;
        let keys = session.arguments().keys(&self.keys)?;
        let done = session.client.del_all(keys)?;
        session.print_written(done, Shown::Whole)
    }
}
