//! `acervo watch`: prints every change of some keys as it happens, or runs a command for each.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::json;

use super::super::args::Format;
use super::super::at::At;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, print_json};
use super::super::stdout;
use super::flags::{KeyArgs, RangeArgs};
use super::session::{OneShot, Session, Streams, remark};
use crate::client::{KeyRange, Row, Timestamp, Version, WatchEvent, WatchOptions};
use crate::model::{KeyChange, Previous};
use crate::text::escape;

/// Bytes of a value that a command finds in its environment: half of what Linux allows for one
/// string there. A longer one is on its standard input alone.
const ENVIRONMENT_BYTES_MAX: usize = 64 * 1024;

/// The flags and arguments of `acervo watch`.
#[derive(Debug, Args)]
#[command(
    override_usage = "\
acervo watch [OPTIONS] <KEY> [-- COMMAND...]
       acervo watch [OPTIONS] <FROM|..> <TO|..> [-- COMMAND...]
       acervo watch [OPTIONS] --prefix <P> [-- COMMAND...]",
    after_help = "\
Examples:
  acervo watch title
  acervo watch --prefix config/ --format json | jq .value
  acervo watch a z --from '1h ago'            what has changed since then, and what will
  acervo watch --prefix config/ -- systemctl reload app

A line has the version, what happened, the key and the value, separated by tabs: 'put' or 'del';
with --previous also the version and the value that the key had before. Escapes are those of
getrange. Changes come in the order of their versions, each once, also when servers fail. Where
those that were asked for have been removed for good, a line 'reset' comes instead, then a line
'row' for each key with what it has as of that version, then 'reset-end': other keys have no value.
A second 'reset' before that begins anew: the rows before it do not count.

A COMMAND is run for each line, one after the other. Its environment has ACERVO_KIND,
ACERVO_VERSION, ACERVO_KEY and ACERVO_VALUE, written as in lines, and the value is on its standard
input. Values that are more than 64 KiB as text are only there."
)]
pub struct WatchArgs {
    /// The key, or the first of a range; '..' is the first there is
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub key: Option<OsString>,
    /// The last key of a range, included; '..' is the last there is
    #[arg(conflicts_with = "prefix")]
    pub to: Option<OsString>,
    /// Every key that begins with this
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub prefix: Option<OsString>,
    /// Begin with what has changed after a version or a time, instead of now
    #[arg(long, value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub from: Option<At>,
    /// Tell what each key had before
    #[arg(long)]
    pub previous: bool,
    /// End after so many lines, those of a reset included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Run this for each change instead of printing it
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// How keys are given, which servers are asked, and how changes are printed.
    #[command(flatten)]
    pub shared: KeyArgs,
}

impl OneShot for WatchArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let session = Session::new(&self.shared, streams)?;
        let range = match (&self.key, &self.to) {
            (Some(key), None) => {
                let key = session.key(key);
                KeyRange::between(&key, &key)?
            }
            (from, to) => {
                let (from, to, prefix) = (from.clone(), to.clone(), self.prefix.clone());
                RangeArgs { from, to, prefix }.range(&self.shared)?
            }
        };
        let after = self.from.map(|from| from.resolve(jiff::Timestamp::now())).transpose()?;
        let options = WatchOptions { after, previous: self.previous };
        let mut left = self.limit.unwrap_or(u64::MAX);
        let format = session.format();
        let mut watch = session.client.watch(range, options)?;
        loop {
            let Some(event) = watch.next_within(stdout::READER_LOOK_PAUSE) else {
                stdout::end_without_reader();
                continue;
            };
            for line in lines(event?) {
                match self.command.split_first() {
                    Some((program, arguments)) => run(program, arguments, &line)?,
                    None => print(session.out, format, &line, self.previous)?,
                }
                left -= 1;
                if left == 0 {
                    return session.done();
                }
            }
            session.out.flush().map_err(CommandError::Output)?;
        }
    }
}

/// One thing that is printed, or that a command is run for.
struct Line {
    version: Timestamp,
    kind: &'static str,
    key: Option<bytes::Bytes>,
    written: Option<Version>,
    previous: Option<Previous>,
}

impl Line {
    fn is_change(&self) -> bool {
        matches!(self.kind, "put" | "del")
    }
}

fn lines(event: WatchEvent) -> Vec<Line> {
    let of = |version, kind| Line { version, kind, key: None, written: None, previous: None };
    match event {
        WatchEvent::Changed { changes, .. } => {
            let of_change = |KeyChange { at, key, written, previous }| Line {
                version: at,
                kind: if written.is_some() { "put" } else { "del" },
                key: Some(key),
                written,
                previous,
            };
            changes.into_iter().map(of_change).collect()
        }
        WatchEvent::Reset { version, rows, begins, continues } => {
            let begin = begins.then(|| of(version, "reset"));
            let of_row = |Row { key, found }| {
                let version = found.as_ref().map_or(version, |found| found.timestamp);
                Line { key: Some(key), written: found, ..of(version, "row") }
            };
            let end = (!continues).then(|| of(version, "reset-end"));
            begin.into_iter().chain(rows.into_iter().map(of_row)).chain(end).collect()
        }
    }
}

fn print(
    out: &mut dyn Write,
    format: Format,
    line: &Line,
    previous: bool,
) -> Result<(), CommandError> {
    match format {
        Format::Text => print_text(out, line, previous),
        Format::Json => print_json(out, &object(line, previous)),
    }
    .map_err(CommandError::Output)
}

/// What a key had before: its version and its value.
fn before(line: &Line) -> (Timestamp, Option<&[u8]>) {
    match &line.previous {
        Some(Previous::Value { timestamp, value, .. }) => (*timestamp, value.as_deref()),
        Some(Previous::Absent) | None => (Timestamp::ZERO, None),
    }
}

fn print_text(out: &mut dyn Write, line: &Line, previous: bool) -> io::Result<()> {
    write!(out, "{}\t{}", line.version, line.kind)?;
    if let Some(key) = &line.key {
        let value = line.written.as_ref().map_or(&[][..], |version| &version.value);
        write!(out, "\t{}\t{}", escape(key), escape(value))?;
        if previous && line.is_change() {
            let (version, value) = before(line);
            write!(out, "\t{version}\t{}", escape(value.unwrap_or_default()))?;
        }
    }
    writeln!(out)
}

fn object(line: &Line, previous: bool) -> Object {
    let object = Object::default().with("kind", json!(line.kind));
    let object = object.timestamp("timestamp", line.version);
    let Some(key) = &line.key else { return object };
    let written = line.written.as_ref();
    let object = object.bytes("key", key).facts(written);
    let object = object.value("value", written.map(|version| &version.value[..]));
    match previous && line.is_change() {
        true => {
            let (version, value) = before(line);
            object.timestamp("old_timestamp", version).value("old_value", value)
        }
        false => object,
    }
}

/// Runs a command for a line, and waits for its end. How it ends is its own affair, and is said.
fn run(program: &OsString, arguments: &[OsString], line: &Line) -> Result<(), CommandError> {
    let value = line.written.as_ref().map_or(&[][..], |version| &version.value);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("ACERVO_KIND", line.kind)
        .env("ACERVO_VERSION", line.version.to_string())
        .env("ACERVO_KEY", escape(line.key.as_deref().unwrap_or_default()).to_string())
        .env_remove("ACERVO_VALUE")
        .stdin(Stdio::piped());
    // Bytes that are no text take four times their number.
    let shown = escape(&value[..value.len().min(ENVIRONMENT_BYTES_MAX)]).to_string();
    if value.len() <= ENVIRONMENT_BYTES_MAX && shown.len() <= ENVIRONMENT_BYTES_MAX {
        command.env("ACERVO_VALUE", shown);
    }
    let mut child = command.spawn().map_err(CommandError::NotRun)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command need not read it.
        let _ = stdin.write_all(value);
    }
    let ended = child.wait().map_err(CommandError::NotRun)?;
    if !ended.success() {
        remark(&format!("the command for version {} has failed: {ended}", line.version));
    }
    Ok(())
}
