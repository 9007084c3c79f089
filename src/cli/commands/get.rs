//! `acervo get`: the value of one key, newest or as of a time.

use std::ffi::OsString;
use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args;

use super::super::args::Format;
use super::super::at::time_of;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::version_asked;
use super::super::stdout;
use super::flags::ReadArgs;
use super::session::{OneShot, Session, Streams, answer, builder, no_key};
use crate::client::ReadOptions;
use crate::limits::PAGE_ROWS_MAX;
use crate::model::Timestamp;
use crate::text::{escape, is_printable};

/// Time allowed for finding out since when a key has a value, for the remark on a read that found
/// nothing.
const OLDEST_VERSION_TIMEOUT: Duration = Duration::from_secs(1);
/// Likewise, it looks through no more versions of the key than a page has.
const VERSIONS_LOOKED_AT_MAX: u64 = PAGE_ROWS_MAX as u64;

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

impl OneShot for GetArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.read.shared, streams)?;
        let (key, options) = (session.key(&self.key), self.read.options()?);
        let options = ReadOptions { facts: session.format() == Format::Json, ..options };
        let got = session.client.read(&key, options)?;
        let found = got.found.is_some();
        match (session.format(), got.value()) {
            (Format::Text, Some(value)) => print_value(session.out, value, self.raw)?,
            (_, value) => {
                let version = got.timestamp().unwrap_or_else(|| version_asked(options.at));
                let object = answer(&key, found, version, got.server);
                let object = object.facts(got.found.as_ref()).value("value", value);
                session.print(None, &object.at(options.at))?;
            }
        }
        session.found(found, || self.missing(&key, options))
    }

    fn read_args(&self) -> Option<&ReadArgs> {
        Some(&self.read)
    }
}

impl GetArgs {
    /// What there is to say of a key without a value, as of then.
    fn missing(&self, key: &[u8], options: ReadOptions) -> String {
        let at = options.at.filter(|at| *at > Timestamp::ZERO);
        let Some((at, oldest)) = at.and_then(|at| Some((at, oldest(&self.read, key, options)?)))
        else {
            return no_key(key);
        };
        let time = time_of(oldest).unwrap_or_else(|| "-".to_owned());
        format!(
            "the key \"{}\" has nothing as of {at}: its oldest version is {oldest}, of {time}",
            escape(key)
        )
    }
}

/// The oldest version of a key that exists now, if it is found among a bounded number of versions
/// and in a bounded time.
fn oldest(read: &ReadArgs, key: &[u8], options: ReadOptions) -> Option<Timestamp> {
    let deadline = Instant::now() + OLDEST_VERSION_TIMEOUT;
    let request = &read.shared.request;
    let timeout = OLDEST_VERSION_TIMEOUT.min(request.timeout);
    let client = builder(&request.group.servers, timeout).build().ok()?;
    let options = ReadOptions { at: None, ..options };
    let mut rows = client.versions(key, options).ok()?.keys_only().limit(VERSIONS_LOOKED_AT_MAX);
    let versions = rows.try_fold(Vec::new(), |mut versions, row| {
        versions.extend(row.ok()?.timestamp());
        (Instant::now() < deadline).then_some(versions)
    })?;
    let is_whole = (versions.len() as u64) < VERSIONS_LOOKED_AT_MAX;
    versions.last().copied().filter(|_| is_whole)
}

/// Prints a value: into a pipe or a file as it is, to the byte; on a terminal as text that cannot
/// be taken for anything else.
fn print_value(out: &mut dyn Write, value: &[u8], raw: bool) -> Result<(), CommandError> {
    if !stdout::is_terminal() {
        return out.write_all(value).map_err(CommandError::Output);
    }
    if raw {
        let is_text = |character| is_printable(character) || matches!(character, '\n' | '\t');
        let is_harmless = str::from_utf8(value).is_ok_and(|text| text.chars().all(is_text));
        return match is_harmless {
            true => out.write_all(value).map_err(CommandError::Output),
            false => Err(CommandError::RawOnTerminal),
        };
    }
    let mut lines = value.split(|byte| *byte == b'\n');
    lines.try_for_each(|line| writeln!(out, "{}", escape(line))).map_err(CommandError::Output)
}
