//! `acervo del`, `delrange` and `delall`.

use std::ffi::OsString;

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, Shown};
use super::flags::{KeyArgs, NoVersionArgs, RangeArgs, RowsArgs};
use super::put::parse_version;
use super::session::{OneShot, Session, Streams, answer_with_previous, no_key, remark};
use crate::client::{ClientError, Comparison, Timestamp, Txn, TxnDone, TxnOp, TxnOutput, Written};

/// The flags and arguments of `acervo del`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo del title
  acervo del title --format json          also the newest version it had
  acervo del title --if-version 1763700000000000
  acervo del title --keep-history         reads as of an earlier time still find it

With --if-version the key is deleted only if that is its newest version. Else nothing is deleted,
and what there is instead is printed as getall prints it. Exit status 1 when nothing was deleted.")]
pub struct DelArgs {
    /// The key to remove
    pub key: OsString,
    /// Delete only if this is the newest version of the key
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub if_version: Option<Timestamp>,
    /// Keep older versions, for reads as of a time before the deletion
    #[arg(long)]
    pub keep_history: bool,
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
        if let Some(version) = self.if_version {
            return del_if(session, &key, version, self.keep_history);
        }
        let removed = match self.keep_history {
            true => session.client.del_keeping_history(&key),
            false => session.client.del(&key),
        };
        let Some(done) = session.previous_told(removed)? else {
            return Ok(CommandOutcome::Done);
        };
        session.print_done(done.timestamp, &answer_with_previous(&key, &done))?;
        session.found(done.previous.is_some(), || no_key(&key))
    }
}

fn del_if(
    mut session: Session<'_>,
    key: &[u8],
    version: Timestamp,
    keeps_history: bool,
) -> Result<CommandOutcome, CommandError> {
    let key_bytes = Bytes::copy_from_slice(key);
    let removal = TxnOp::Del { key: key_bytes, keeps_history, tells_previous: true };
    let txn =
        Txn::when(Comparison::version(key).equals(version)).then(removal).or_else(TxnOp::get(key));
    let object = Object::default().bytes("key", key);
    let TxnDone { timestamp, succeeded, results, server } = match session.client.txn(txn) {
        // Which of both it was is known, and no more.
        Err(error @ ClientError::ResultsUnread { timestamp, succeeded, .. }) => {
            remark(&error);
            let object = object.with("deleted", json!(succeeded));
            if !succeeded {
                return session.done().map(|_| CommandOutcome::Conflict);
            }
            session.print_done(timestamp, &object.timestamp("timestamp", timestamp))?;
            return session.done();
        }
        done => done?,
    };
    let previous = results.into_iter().find_map(|result| match result {
        TxnOutput::Del { previous: found } | TxnOutput::Get(found) => found,
        _ => None,
    });
    if !succeeded {
        let object = object.with("deleted", json!(false));
        return session.conflict(key, previous.as_ref(), server, object);
    }
    let done = Written { timestamp, previous, server };
    session.print_done(timestamp, &answer_with_previous(key, &done))?;
    session.done()
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
  acervo delrange --prefix user: --keep-history       reads as of an earlier time still find them

The range is removed at once, however long it is. Then comes one line a key that it had, in key
order, as those of putall: key, version of the deletion, version and value it had. What is not read
within a minute may be gone. With --keep-history, which stays, a range of more than 131072 keys is
refused."
)]
pub struct DelRangeArgs {
    /// The keys that the command is about.
    #[command(flatten)]
    pub range: RangeArgs,
    /// Keep older versions, for reads as of a time before the deletion
    #[arg(long)]
    pub keep_history: bool,
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
        let range = self.range.range(&self.shared)?;
        let done = match self.keep_history {
            true => session.client.del_scan_keeping_history(range),
            false => session.client.del_scan(range),
        }?;
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
