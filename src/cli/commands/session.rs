//! What every command on keys does before and after its request: it makes a client of its flags,
//! takes arguments and standard input apart, prints the answer, and tells its session's token.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::super::args::{Format, RequestArgs};
use super::super::input::ArgumentReader;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, Shape, Shown, print_json, print_rows};
use super::flags::{KeyArgs, ReadArgs};
use crate::client::{Client, ClientBuilder, ClientError, Rows, Version, Written, WrittenMany};
use crate::model::Timestamp;
use crate::text::escape;

/// Where a command reads what is not on its command line, and where it prints.
pub struct Streams<'a> {
    pub stdin: &'a mut dyn BufRead,
    /// Standard output; remarks go to standard error.
    pub out: &'a mut dyn Write,
}

/// A command of the store: its flags as they were typed, and what it does with them.
pub trait OneShot {
    /// Does what was asked for, and prints the answer.
    ///
    /// # Errors
    /// See [`CommandError`].
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError>;

    /// The flags of a command that reads, by which it may or may not need a majority.
    fn read_args(&self) -> Option<&ReadArgs> {
        None
    }
}

/// A client of these servers that is not built yet.
pub(super) fn builder(servers: &[SocketAddr], timeout: Duration) -> ClientBuilder {
    Client::builder(servers.iter().copied()).request_timeout(timeout)
}

/// Prints an answer in the format that was asked for; without a line the text is empty.
pub(super) fn print(
    out: &mut dyn Write,
    request: &RequestArgs,
    line: Option<&dyn Display>,
    object: &impl Serialize,
) -> Result<(), CommandError> {
    match (request.format.get(), line) {
        (Format::Text, Some(line)) => writeln!(out, "{line}"),
        (Format::Text, None) => Ok(()),
        (Format::Json, _) => print_json(out, object),
    }
    .map_err(CommandError::Output)
}

/// Writes a remark to standard error. Where that is closed only the exit status
/// tells.
pub(super) fn remark(remark: &dyn Display) {
    let _ = writeln!(io::stderr(), "acervo: {remark}");
}

/// One command on keys, from its flags to its answer.
pub(super) struct Session<'a> {
    pub(super) client: Client,
    pub(super) out: &'a mut dyn Write,
    stdin: &'a mut dyn BufRead,
    shared: &'a KeyArgs,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        shared: &'a KeyArgs,
        streams: &'a mut Streams<'_>,
    ) -> Result<Session<'a>, ClientError> {
        let mut builder = builder(&shared.request.group.servers, shared.request.timeout);
        if let Some(token) = &shared.session {
            builder = builder.session(token);
        }
        let Streams { stdin, out } = streams;
        Ok(Session { client: builder.build()?, out: *out, stdin: *stdin, shared })
    }

    pub(super) fn format(&self) -> Format {
        self.shared.request.format.get()
    }

    pub(super) fn key(&self, argument: &OsStr) -> Vec<u8> {
        self.shared.bytes(argument)
    }

    /// Reads arguments, and standard input where they say so.
    pub(super) fn arguments(&mut self) -> ArgumentReader<'_> {
        ArgumentReader::new(self.stdin, self.shared.escaped)
    }

    /// Prints an answer, as [`print`].
    pub(super) fn print(
        &mut self,
        line: Option<&dyn Display>,
        object: &impl Serialize,
    ) -> Result<(), CommandError> {
        print(self.out, &self.shared.request, line, object)
    }

    /// As [`Session::print`], the answer to a write that is done with this version.
    pub(super) fn print_done(
        &mut self,
        version: Timestamp,
        object: &impl Serialize,
    ) -> Result<(), CommandError> {
        self.print_answer(version, &version, object)
    }

    /// Prints the answer to a write that is done with this version and has more to say than that.
    pub(super) fn print_answer(
        &mut self,
        version: Timestamp,
        line: &dyn Display,
        object: &impl Serialize,
    ) -> Result<(), CommandError> {
        self.print(Some(line), object).map_err(|error| of_done(version, error))
    }

    /// Prints rows as they come. How many had a value.
    pub(super) fn print_rows(
        &mut self,
        shape: Shape,
        shown: Shown,
        rows: Rows,
    ) -> Result<u64, CommandError> {
        let format = self.format();
        print_rows(self.out, format, shape, shown, rows)
    }

    /// Prints what a write on many keys replaced or removed.
    pub(super) fn print_written(
        mut self,
        done: WrittenMany,
        shown: Shown,
    ) -> Result<CommandOutcome, CommandError> {
        // Told first, since the write is done, whatever becomes of the printing.
        self.tell_token();
        match self.print_rows(Shape::Before { timestamp: done.timestamp }, shown, done.rows) {
            Err(CommandError::Client(why)) => {
                let (timestamp, why) = (done.timestamp, Box::new(why));
                remark(&ClientError::PreviousUnread { timestamp, why });
            }
            printed => drop(printed.map_err(|error| of_done(done.timestamp, error))?),
        }
        Ok(CommandOutcome::Done)
    }

    /// The outcome of a write on one key, of which what there was before is to be printed. Where
    /// that could not be read, the write's version is printed here, with the reason on standard
    /// error, and `None` is returned.
    pub(super) fn previous_told(
        &mut self,
        written: Result<Written, ClientError>,
    ) -> Result<Option<Written>, CommandError> {
        match written {
            Err(error @ ClientError::PreviousUnread { timestamp, .. }) => {
                remark(&error);
                self.print_done(timestamp, &Object::default().timestamp("timestamp", timestamp))?;
                self.tell_token();
                Ok(None)
            }
            written => Ok(Some(written?)),
        }
    }

    /// Prints what a key has where a condition wanted something else of it, so that nothing was
    /// written, and ends the command. The object is added to.
    pub(super) fn conflict(
        mut self,
        key: &[u8],
        found: Option<&Version>,
        server: SocketAddr,
        object: Object,
    ) -> Result<CommandOutcome, CommandError> {
        let version = found.map_or(Timestamp::ZERO, |found| found.timestamp);
        let value = found.map(|found| &found.value[..]);
        let shown = escape(key);
        let line = format_args!("{shown}\t{version}\t{}", escape(value.unwrap_or_default()));
        let object = object.timestamp("old_timestamp", version);
        let object = object.value("old_value", value).with("server", json!(server));
        self.print(Some(&line), &object)?;
        match found {
            Some(_) => {
                remark(&format_args!(
                    "the key \"{shown}\" has version {version}: nothing was written"
                ));
            }
            None => remark(&format_args!("there is no key \"{shown}\": nothing was written")),
        }
        self.tell_token();
        Ok(CommandOutcome::Conflict)
    }

    fn tell_token(&self) {
        if self.shared.print_session {
            // Without standard error there is nowhere to say that it is missing.
            let _ = writeln!(io::stderr(), "{}", self.client.session_token());
        }
    }

    /// Ends the command whose answer is printed.
    pub(super) fn done(self) -> Result<CommandOutcome, CommandError> {
        self.tell_token();
        Ok(CommandOutcome::Done)
    }

    /// As [`Session::done`], and says so where what was asked for is not there: the key, or what
    /// `missing` says of it.
    pub(super) fn found(
        self,
        found: bool,
        missing: impl FnOnce() -> String,
    ) -> Result<CommandOutcome, CommandError> {
        self.tell_token();
        if found {
            return Ok(CommandOutcome::Done);
        }
        remark(&missing());
        Ok(CommandOutcome::NotFound)
    }
}

/// The error of a write that is done, with this version, and whose answer could not be printed.
pub(super) fn of_done(version: Timestamp, error: CommandError) -> CommandError {
    match error {
        CommandError::Output(error) => CommandError::DoneUnprinted(version, error),
        other => other,
    }
}

/// The remark for a key that is missing.
pub(super) fn no_key(key: &[u8]) -> String {
    format!("there is no key \"{}\"", escape(key))
}

/// The JSON object that every command prints for one key.
pub(super) fn answer(key: &[u8], found: bool, timestamp: Timestamp, server: SocketAddr) -> Object {
    let object = Object::default().bytes("key", key).with("found", json!(found));
    object.timestamp("timestamp", timestamp).with("server", json!(server))
}

/// The JSON object of a write on one key that tells what the key had.
pub(super) fn answer_with_previous(key: &[u8], done: &Written) -> Object {
    let previous = done.previous.as_ref();
    let object = answer(key, previous.is_some(), done.timestamp, done.server);
    let version = previous.map_or(Timestamp::ZERO, |previous| previous.timestamp);
    object.timestamp("old_timestamp", version).value("old_value", previous.map(|v| &v.value[..]))
}
