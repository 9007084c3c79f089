//! `acervo txn`: a transaction from a file or standard input, and what came of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;

use clap::Args;
use serde_json::json;

use super::super::args::Format;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, print_json};
use super::super::txn::{self, TxnInputError, branch};
use super::flags::KeyArgs;
use super::session::{OneShot, Session, Streams, of_done, remark};
use crate::client::{ClientError, Txn};

/// The flags and arguments of `acervo txn`.
#[derive(Debug, Args)]
#[command(
    mut_arg("escaped", |escaped| escaped.hide(true)),
    after_help = "\
Examples:
  acervo txn move.txn
  printf 'if lock is absent\\nthen put lock me\\nelse get lock\\n' | acervo txn
  acervo txn --check move.txn --format json      the same transaction as JSON

A transaction is three sections, each of which may be left out:
  if
    version of account:ana = 1795224871548738
    account:bia exists
  then
    put account:ana 90
    put account:bia 110
  else
    get account:ana

If every comparison of 'if' holds the operations of 'then' are done, and else those of 'else': as
one write, with one version, all or none, each seeing those before it. A key may be written once.

Comparisons, one a line:
  version of KEYS = N     so, too, created, count and lease; a missing key has 0
  value of KEYS = V       never holds for a missing key
  KEY exists              KEY is absent
with one of = != < >. KEYS are a key, or a range, every key of which must compare so: prefix P, or
A to B, where an end that is open is .. without quotes.

Operations, one a line:
  get KEY
  getrange RANGE [limit N] [reverse] [keys only|count only]
  put KEY VALUE [with lease N] [telling previous]
  del KEY [keeping history] [telling previous]
  delrange RANGE [keeping history] [telling previous]
  if ... then ... else ... end                   a transaction inside
Words are quoted as in a shell: 'a b', \"a b\", a\\ b; \\xNN is a byte, but not in single quotes.
From # on the line is a comment. The first line of a section may stand behind its word.

What begins with { is read as JSON, as --check --format json prints it:
  {\"if\":[{\"key\":\"lock\",\"fact\":\"created\",\"relation\":\"=\",\"number\":0}],
   \"then\":[{\"op\":\"put\",\"key\":\"lock\",\"value\":\"me\"}],
   \"else\":[{\"op\":\"get\",\"key\":\"lock\"}]}
Comparisons have a key, or from and to (null for an open end), or a prefix; a fact, a relation and a
number or value. Operations are get, getrange (limit, reverse, keys_only, count_only), put, del,
delrange (keep_history, tell_previous) and txn.

The first line of the answer is the branch, 'then' or 'else', and the version. Then comes a line
for each operation, separated by tabs: its name, key, version, and value; of put and del, if they
tell it, the version and value there was before. A range has a line a key, and one with its count;
a transaction inside has its branch, and its own lines indented.
Exit status 0 when 'then' was done, 1 when 'else' was."
)]
pub struct TxnArgs {
    /// The file with the transaction; '-' is standard input
    #[arg(default_value = "-")]
    pub file: OsString,
    /// Print the transaction as it was understood, and ask nobody
    #[arg(long)]
    pub check: bool,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

impl OneShot for TxnArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let transaction = self.read(streams)?;
        let format = self.shared.request.format.get();
        if self.check {
            let printed = match format {
                Format::Text => streams.out.write_all(txn::print(&transaction).as_bytes()),
                Format::Json => print_json(streams.out, &txn::object_of(&transaction)),
            };
            return printed.map(|()| CommandOutcome::Done).map_err(CommandError::Output);
        }
        let mut session = Session::new(&self.shared, streams)?;
        let succeeded = match session.client.txn(transaction.clone()) {
            Ok(done) => {
                let printed = match format {
                    Format::Text => txn::print_answer(session.out, &transaction, &done),
                    Format::Json => {
                        print_json(session.out, &txn::answer_object(&transaction, &done))
                    }
                };
                let of_txn = |error| of_done(done.timestamp, CommandError::Output(error));
                printed.map_err(of_txn)?;
                done.succeeded
            }
            // It is done, and its branch and version are what a script needs most.
            Err(error @ ClientError::ResultsUnread { timestamp, succeeded, .. }) => {
                remark(&error);
                let line = format_args!("{}\t{timestamp}", branch(succeeded));
                let object = Object::default().with("branch", json!(branch(succeeded)));
                session.print_answer(
                    timestamp,
                    &line,
                    &object.timestamp("timestamp", timestamp),
                )?;
                succeeded
            }
            Err(error) => return Err(error.into()),
        };
        session.done().map(|_| if succeeded { CommandOutcome::Done } else { CommandOutcome::Else })
    }
}

impl TxnArgs {
    fn read(&self, streams: &mut Streams<'_>) -> Result<Txn, CommandError> {
        let read = match self.file == OsStr::new("-") {
            true => txn::read(&mut *streams.stdin),
            false => match File::open(&self.file) {
                Ok(mut file) => txn::read(&mut file),
                Err(error) => Err(TxnInputError::Io(error)),
            },
        };
        Ok(read?)
    }
}
