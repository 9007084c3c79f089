//! `acervo put`, with and without a condition, and `putall`.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use super::super::args::Format;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, Shown};
use super::flags::KeyArgs;
use super::lease::parse_lease;
use super::session::{OneShot, Session, Streams, answer_with_previous, remark};
use crate::client::{
    ClientError, Condition, ConditionalPut, Conflict, LeaseId, PutOk, PutSequentialOk,
};
use crate::model::Timestamp;
use crate::text::escape;

/// The flags and arguments of `acervo put`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo put title 'Dom Casmurro'
  acervo put chapter - < chapter.txt
  acervo put title x --format json        also what the key had before
  acervo put lock me --if-absent
  acervo put title x --if-version 1763700000000000
  acervo put --sequential queue/ wash     makes queue/00001763700000000000, say, and prints that
  acervo put workers/7 alive --lease 1763700000000000

With --if-absent or --if-version the value is written only if there is no such key, or that is its
newest version. Else nothing is written, what there is instead is printed as getall prints it, and
the exit status is 1.
With --sequential the value gets a key of its own, KEY with the value's version behind it in 20
digits, and that key is printed: such keys are in the order in which they were written, whoever
wrote them.")]
pub struct PutArgs {
    /// The key to write, or its beginning with --sequential
    pub key: OsString,
    /// The value; '-' reads it from standard input, to the last byte
    #[arg(allow_negative_numbers = true)]
    pub value: OsString,
    /// Write only if there is no such key
    #[arg(long, conflicts_with = "if_version")]
    pub if_absent: bool,
    /// Write only if this is the newest version of the key
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub if_version: Option<Timestamp>,
    /// Make a new key: KEY with the value's version behind it, in 20 digits
    #[arg(long, conflicts_with_all = ["if_absent", "if_version", "lease"])]
    pub sequential: bool,
    /// Delete the key when this lease ends
    #[arg(long, value_name = "ID", value_parser = parse_lease)]
    #[arg(conflicts_with_all = ["if_absent", "if_version"])]
    pub lease: Option<LeaseId>,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

impl OneShot for PutArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.shared, streams)?;
        let key = session.key(&self.key);
        let value = session.arguments().value(&self.value)?;
        if self.sequential {
            return put_sequential(session, &key, &value);
        }
        if let Some(condition) = self.condition() {
            return put_if(session, &key, &value, condition);
        }
        if let Some(lease) = self.lease {
            return put_with_lease(session, &key, &value, lease);
        }
        match session.format() {
            Format::Text => {
                let version = session.client.put(&key, value)?.timestamp;
                session.print_done(version, &())?;
            }
            Format::Json => {
                let written = session.client.replace(&key, value);
                let Some(done) = session.previous_told(written)? else {
                    return Ok(CommandOutcome::Done);
                };
                session.print_done(done.timestamp, &answer_with_previous(&key, &done))?;
            }
        }
        session.done()
    }
}

impl PutArgs {
    /// What must hold for the value to be written, if anything must.
    fn condition(&self) -> Option<Condition> {
        let version = self.if_version.map(Condition::Version);
        version.or(self.if_absent.then_some(Condition::Absent))
    }
}

pub(super) fn parse_version(text: &str) -> Result<Timestamp, String> {
    let version = text.parse().ok().filter(|version| *version > 0).map(Timestamp);
    version.ok_or_else(|| "write a version number, such as getall prints".to_owned())
}

fn put_sequential(
    mut session: Session<'_>,
    prefix: &[u8],
    value: &[u8],
) -> Result<CommandOutcome, CommandError> {
    let PutSequentialOk { key, timestamp, server } =
        session.client.put_sequential(prefix, value)?;
    let object = Object::default().bytes("key", &key).timestamp("timestamp", timestamp);
    let object = object.with("server", json!(server));
    session.print_answer(timestamp, &escape(&key), &object)?;
    session.done()
}

fn put_with_lease(
    mut session: Session<'_>,
    key: &[u8],
    value: &[u8],
    lease: LeaseId,
) -> Result<CommandOutcome, CommandError> {
    let PutOk { timestamp, server } = match session.client.put_with_lease(key, value, lease) {
        Err(error @ (ClientError::NoLease | ClientError::LeaseFull)) => {
            remark(&format_args!("lease {lease}: {error}"));
            return session.done().map(|_| CommandOutcome::Conflict);
        }
        done => done?,
    };
    let object = Object::default().bytes("key", key).timestamp("timestamp", timestamp);
    let object = object.with("lease", json!(lease.0)).with("server", json!(server));
    session.print_done(timestamp, &object)?;
    session.done()
}

fn put_if(
    mut session: Session<'_>,
    key: &[u8],
    value: &[u8],
    condition: Condition,
) -> Result<CommandOutcome, CommandError> {
    let object = |stored| Object::default().bytes("key", key).with("stored", json!(stored));
    match session.client.put_if(key, value, condition)? {
        ConditionalPut::Stored(PutOk { timestamp, server }) => {
            let object = object(true).timestamp("timestamp", timestamp);
            session.print_done(timestamp, &object.with("server", json!(server)))?;
            session.done()
        }
        ConditionalPut::Conflict(Conflict { found, server, .. }) => {
            session.conflict(key, found.as_ref(), server, object(false))
        }
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

impl OneShot for PutAllArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.shared, streams)?;
        let pairs = session.arguments().pairs(&self.pairs)?;
        let done = session.client.put_all(pairs)?;
        session.print_written(done, Shown::Whole)
    }
}
