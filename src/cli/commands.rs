//! The one-shot commands: one request, one answer printed, one exit status.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use serde::Serialize;

use super::args::{DelArgs, Format, GetArgs, PutArgs, RequestArgs, SessionArgs, StatusArgs};
use super::status;
use crate::client::{Client, ClientError};
use crate::limits::VALUE_BYTES_MAX;
use crate::text::escape;

/// How a command ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Found, or done.
    Done,
    /// There was no such key.
    NotFound,
    /// `status` and no server answered; the table says why.
    NobodyAnswered,
}

/// How a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The request failed, or its arguments cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The value could not be read from standard input.
    #[error("the value could not be read from standard input: {0}")]
    Input(io::Error),
    /// The answer could not be printed.
    #[error("the answer could not be printed: {0}")]
    Output(io::Error),
}

/// The exit statuses of SPEC B.
pub mod exit_status {
    /// Found, or done.
    pub const DONE: u8 = 0;
    /// Not found.
    pub const NOT_FOUND: u8 = 1;
    /// Anything else that went wrong on this side: a server or a console that could not go on.
    pub const FAILED: u8 = 1;
    /// Used wrongly.
    pub const USAGE: u8 = 2;
    /// No server reached, or no majority.
    pub const UNAVAILABLE: u8 = 3;
}

impl Outcome {
    /// The process's exit status.
    pub fn exit_status(self) -> u8 {
        match self {
            Outcome::Done => exit_status::DONE,
            Outcome::NotFound => exit_status::NOT_FOUND,
            Outcome::NobodyAnswered => exit_status::UNAVAILABLE,
        }
    }
}

impl CommandError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            CommandError::Client(error) => match error {
                ClientError::Invalid { .. }
                | ClientError::KeyEmpty
                | ClientError::KeyTooLong(_)
                | ClientError::ValueTooLong(_)
                | ClientError::BadSessionToken(_)
                | ClientError::UnknownServer(_)
                | ClientError::BadServerList(_) => exit_status::USAGE,
                ClientError::Unreachable { .. }
                | ClientError::TimedOut { .. }
                | ClientError::NoMajority { .. }
                | ClientError::StaleRequest { .. }
                | ClientError::Unavailable { .. }
                | ClientError::Thread(_) => exit_status::UNAVAILABLE,
            },
            CommandError::Input(_) => exit_status::USAGE,
            // Whoever closed a pipe has read what they wanted.
            CommandError::Output(error) if error.kind() == ErrorKind::BrokenPipe => {
                exit_status::DONE
            }
            CommandError::Output(_) => exit_status::FAILED,
        }
    }

    /// Whether it is worth a line.
    pub fn is_quiet(&self) -> bool {
        matches!(self, CommandError::Output(error) if error.kind() == ErrorKind::BrokenPipe)
    }
}

/// What `--format json` prints for one key.
#[derive(Serialize)]
struct KeyJson<'a> {
    key: &'a str,
    found: bool,
    timestamp: i64,
    server: SocketAddr,
}

/// The same, and its value.
#[derive(Serialize)]
struct GotJson<'a> {
    #[serde(flatten)]
    key: KeyJson<'a>,
    #[serde(flatten)]
    value: ValueJson<'a>,
}

/// A value as a JSON string when it is UTF-8, else in hexadecimal under another name.
#[derive(Serialize)]
#[serde(untagged)]
enum ValueJson<'a> {
    Text { value: Option<&'a str> },
    Hex { value_hex: String },
}

impl ValueJson<'_> {
    fn new(value: Option<&[u8]>) -> ValueJson<'_> {
        match value.map(std::str::from_utf8).transpose() {
            Ok(value) => ValueJson::Text { value },
            Err(_) => {
                let bytes = value.unwrap_or_default();
                ValueJson::Hex { value_hex: bytes.iter().map(|b| format!("{b:02x}")).collect() }
            }
        }
    }
}

/// `acervo put`.
///
/// # Errors
/// See [`CommandError`].
pub fn put(
    args: &PutArgs,
    input: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<Outcome, CommandError> {
    let client = client(&args.request, Some(&args.session))?;
    let value = match args.value.as_encoded_bytes() {
        b"-" => read_value(input)?,
        value => value.to_vec(),
    };
    let done = client.put(&args.key, value)?;
    match args.request.format {
        Format::Text => writeln!(out, "{}", done.timestamp),
        Format::Json => {
            let (timestamp, server) = (done.timestamp.0, done.server);
            print_json(out, &KeyJson { key: &args.key, found: true, timestamp, server })
        }
    }
    .map_err(CommandError::Output)?;
    print_session(&args.session, &client);
    Ok(Outcome::Done)
}

/// `acervo get`.
///
/// # Errors
/// See [`CommandError`].
pub fn get(args: &GetArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let client = client(&args.request, Some(&args.session))?;
    let got = if args.linearizable {
        client.get_linearizable(&args.key)?
    } else {
        client.get(&args.key)?
    };
    let found = got.value.is_some();
    match (args.request.format, &got.value) {
        (Format::Text, Some(value)) => out.write_all(value).and_then(|()| out.write_all(b"\n")),
        (Format::Text, None) => Ok(()),
        (Format::Json, value) => {
            let (timestamp, server) = (got.timestamp.0, got.server);
            let key = KeyJson { key: &args.key, found, timestamp, server };
            print_json(out, &GotJson { key, value: ValueJson::new(value.as_deref()) })
        }
    }
    .map_err(CommandError::Output)?;
    print_session(&args.session, &client);
    Ok(found_or_say(found, &args.key))
}

/// `acervo del`.
///
/// # Errors
/// See [`CommandError`].
pub fn del(args: &DelArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let client = client(&args.request, Some(&args.session))?;
    let done = client.del(&args.key)?;
    match args.request.format {
        Format::Text => writeln!(out, "{}", done.timestamp),
        Format::Json => {
            let (found, timestamp, server) = (done.existed, done.timestamp.0, done.server);
            print_json(out, &KeyJson { key: &args.key, found, timestamp, server })
        }
    }
    .map_err(CommandError::Output)?;
    print_session(&args.session, &client);
    Ok(found_or_say(done.existed, &args.key))
}

/// `acervo status`.
///
/// # Errors
/// See [`CommandError`].
pub fn status(args: &StatusArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let rows = status::ask_all(&client(&args.request, None)?);
    match args.request.format {
        Format::Text => status::print_table(out, &rows),
        Format::Json => print_json(out, &status::json(&rows)),
    }
    .map_err(CommandError::Output)?;
    let answered = rows.iter().any(|row| row.status.is_ok());
    Ok(if answered { Outcome::Done } else { Outcome::NobodyAnswered })
}

fn client(request: &RequestArgs, session: Option<&SessionArgs>) -> Result<Client, ClientError> {
    let builder = Client::builder(request.servers.iter().copied()).request_timeout(request.timeout);
    match session.and_then(|session| session.session.as_ref()) {
        Some(token) => builder.session(token).build(),
        None => builder.build(),
    }
}

/// Reads to the end, but no more than tells that it is too long.
fn read_value(input: &mut dyn Read) -> Result<Vec<u8>, CommandError> {
    let mut value = Vec::new();
    let bound = VALUE_BYTES_MAX as u64 + 1;
    input.take(bound).read_to_end(&mut value).map_err(CommandError::Input)?;
    Ok(value)
}

pub(super) fn print_json(out: &mut dyn Write, object: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, object)?;
    out.write_all(b"\n")
}

fn print_session(session: &SessionArgs, client: &Client) {
    if session.print_session {
        // Without standard error there is nowhere to say that it is missing.
        let _ = writeln!(io::stderr(), "{}", client.session_token());
    }
}

fn found_or_say(found: bool, key: &str) -> Outcome {
    if found {
        return Outcome::Done;
    }
    let _ = writeln!(io::stderr(), "acervo: there is no key \"{}\"", escape(key.as_bytes()));
    Outcome::NotFound
}
