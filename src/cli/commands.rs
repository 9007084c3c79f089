//! The one-shot commands: one request, one answer printed, one exit status.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::args::{Format, HealthArgs, RequestArgs, SetHistoryArgs, StatusArgs};
use super::at::{AtError, time_of};
use super::input::{ArgumentReader, InputError};
use super::key_args::{
    DelAllArgs, DelArgs, DelRangeArgs, GetAllArgs, GetArgs, GetRangeArgs, HistoryArgs, KeyArgs,
    PutAllArgs, PutArgs, RangeArgs, ReadArgs, TrimArgs,
};
use super::output::{Object, Shape, Shown, print_json, print_rows, version_asked};
use super::status;
use super::stdout;
use crate::client::{
    Client, ClientBuilder, ClientError, Condition, ConditionalPut, Conflict, KeyRange, PutOk,
    ReadOptions, Rows, Written, WrittenMany,
};
use crate::limits::{OLDEST_VERSION_TIMEOUT, VERSIONS_LOOKED_AT_MAX};
use crate::model::Timestamp;
use crate::process::exit_status;
use crate::text::{escape, is_printable, unescape};

/// The outcome of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// What was asked for was found, or is done.
    Done,
    /// The key that was asked for does not exist.
    NotFound,
    /// A condition did not hold, and nothing was written.
    Conflict,
    /// The outcome of `status` when no server answered, nobody leads, or disks are full; the table
    /// says why.
    NotWritable,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The request failed, or its arguments cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An argument or a line of standard input cannot be used.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The time or version of `--at` cannot be used.
    #[error(transparent)]
    At(#[from] AtError),
    /// A terminal would take bytes of the value for control sequences.
    #[error(
        "the value has control characters, which a terminal would take for commands: send --raw \
         into a pipe or a file, or leave it out"
    )]
    RawOnTerminal,
    /// The full disks of these servers keep everybody from writing.
    #[error("{}", status::no_room(.0))]
    NoRoom(Vec<String>),
    /// The answer could not be printed.
    #[error("the answer could not be printed: {0}")]
    Output(io::Error),
}

impl CommandOutcome {
    /// The process's exit status.
    pub fn exit_status(self) -> u8 {
        match self {
            CommandOutcome::Done => exit_status::DONE,
            CommandOutcome::NotFound | CommandOutcome::Conflict => exit_status::NOT_FOUND,
            CommandOutcome::NotWritable => exit_status::UNAVAILABLE,
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
                | ClientError::TooManyKeys(_)
                | ClientError::TooManyBytes(_)
                | ClientError::BadSessionToken(_)
                | ClientError::UnknownServer(_)
                | ClientError::BadServerList(_) => exit_status::USAGE,
                ClientError::Unreachable { .. }
                | ClientError::TimedOut { .. }
                | ClientError::NoMajority { .. }
                | ClientError::Unconfirmed { .. }
                | ClientError::PreviousUnread { .. }
                | ClientError::ConflictUnread { .. }
                | ClientError::StaleRequest { .. }
                | ClientError::Expired { .. }
                | ClientError::DiskFull { .. }
                | ClientError::Unavailable { .. }
                | ClientError::Thread(_)
                | ClientError::Ended
                | ClientError::WouldBlock
                | ClientError::Forked(_) => exit_status::UNAVAILABLE,
            },
            CommandError::Input(_) | CommandError::At(_) | CommandError::RawOnTerminal => {
                exit_status::USAGE
            }
            CommandError::NoRoom(_) => exit_status::UNAVAILABLE,
            CommandError::Output(_) => exit_status::FAILED,
        }
    }
}

/// Does what `acervo get` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn get(args: &GetArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let client = key_client(&args.read.shared)?;
    let (key, options) = (argument(&args.key, &args.read.shared), options(&args.read)?);
    let got = client.read(&key, options)?;
    let found = got.value.is_some();
    match (args.read.shared.request.format.get(), got.value.as_deref()) {
        (Format::Text, Some(value)) => print_value(out, value, args.raw)?,
        (Format::Text, None) => Ok(()),
        (Format::Json, value) => {
            let version = if found { got.timestamp } else { version_asked(options.at) };
            let object = answer(&key, found, version, got.server);
            print_json(out, &object.value("value", value).at(options.at))
        }
    }
    .map_err(CommandError::Output)?;
    print_session(&args.read.shared, &client);
    if let (false, Some(at)) = (found, options.at.filter(|at| *at > Timestamp::ZERO))
        && let Some(oldest) = oldest(&args.read, &key, options)
    {
        let key = escape(&key);
        let time = time_of(oldest).unwrap_or_else(|| "-".to_owned());
        let _ = writeln!(
            io::stderr(),
            "acervo: the key \"{key}\" has nothing as of {at}: its oldest version is {oldest}, of \
             {time}"
        );
        return Ok(CommandOutcome::NotFound);
    }
    Ok(found_or_say(found, &key))
}

/// The oldest version of a key that exists now, if that is known. No more versions are looked at,
/// and for no longer, than is worth it for a remark.
fn oldest(read: &ReadArgs, key: &[u8], options: ReadOptions) -> Option<Timestamp> {
    let deadline = Instant::now() + OLDEST_VERSION_TIMEOUT;
    let RequestArgs { group, timeout, .. } = &read.shared.request;
    let client = builder(&group.servers, OLDEST_VERSION_TIMEOUT.min(*timeout)).build().ok()?;
    let options = ReadOptions { at: None, ..options };
    let mut rows = client.versions(key, options).ok()?.keys_only().limit(VERSIONS_LOOKED_AT_MAX);
    let versions = rows.try_fold(Vec::new(), |mut versions, row| {
        versions.push(row.ok()?.timestamp);
        (Instant::now() < deadline).then_some(versions)
    })?;
    let is_whole = (versions.len() as u64) < VERSIONS_LOOKED_AT_MAX;
    versions.last().copied().filter(|_| is_whole)
}

/// Prints a value: into a pipe or a file as it is, to the byte; on a terminal as text that cannot
/// be taken for anything else.
fn print_value(
    out: &mut dyn Write,
    value: &[u8],
    raw: bool,
) -> Result<io::Result<()>, CommandError> {
    if !stdout::is_terminal() {
        return Ok(out.write_all(value));
    }
    if raw {
        let is_text = |character| is_printable(character) || matches!(character, '\n' | '\t');
        let is_harmless = str::from_utf8(value).is_ok_and(|text| text.chars().all(is_text));
        return if is_harmless {
            Ok(out.write_all(value))
        } else {
            Err(CommandError::RawOnTerminal)
        };
    }
    let mut lines = value.split(|byte| *byte == b'\n');
    Ok(lines.try_for_each(|line| writeln!(out, "{}", escape(line))))
}

/// Does what `acervo getrange` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn get_range(args: &GetRangeArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let shared = &args.read.shared;
    let client = key_client(shared)?;
    let options = options(&args.read)?;
    let range = key_range(&args.range, shared)?;
    let range = if args.reverse { range.reversed() } else { range };
    let rows = limited(client.scan(range, options), args.limit);
    let shown = Shown::of(args.rows);
    print_rows(out, shared.request.format.get(), Shape::Read { at: options.at }, shown, rows)?;
    print_session(shared, &client);
    Ok(CommandOutcome::Done)
}

/// Does what `acervo getall` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn get_all(
    args: &GetAllArgs,
    stdin: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let shared = &args.read.shared;
    let client = key_client(shared)?;
    let keys = ArgumentReader::new(stdin, shared.escaped).keys(&args.keys)?;
    let options = options(&args.read)?;
    let rows = client.get_all(keys, options)?;
    print_rows(
        out,
        shared.request.format.get(),
        Shape::Read { at: options.at },
        Shown::Whole,
        rows,
    )?;
    print_session(shared, &client);
    Ok(CommandOutcome::Done)
}

/// Does what `acervo history` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn history(args: &HistoryArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let shared = &args.read.shared;
    let client = key_client(shared)?;
    let key = argument(&args.key, shared);
    let rows = limited(client.versions(&key, options(&args.read)?)?, args.limit);
    let since = args.since.map(|since| since.resolve(jiff::Timestamp::now())).transpose()?;
    let shown = match (args.count, args.versions_only) {
        (true, _) => Shown::Count,
        (false, true) => Shown::Keys,
        (false, false) => Shown::Whole,
    };
    let shape = Shape::History { since };
    let found = print_rows(out, shared.request.format.get(), shape, shown, rows)?;
    print_session(shared, &client);
    if let (0, Some(since)) = (found, since) {
        let _ = writeln!(
            io::stderr(),
            "acervo: the key \"{}\" has no version since {since}",
            escape(&key)
        );
        return Ok(CommandOutcome::NotFound);
    }
    Ok(found_or_say(found > 0, &key))
}

/// Does what `acervo put` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn put(
    args: &PutArgs,
    stdin: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let client = key_client(&args.shared)?;
    let key = argument(&args.key, &args.shared);
    let value = ArgumentReader::new(stdin, args.shared.escaped).value(&args.value)?;
    if let Some(condition) = args.condition() {
        return put_if(&args.shared, &client, (&key, &value), condition, out);
    }
    match args.shared.request.format.get() {
        Format::Text => writeln!(out, "{}", client.put(&key, value)?.timestamp),
        Format::Json => {
            let Some(done) =
                previous_told(client.replace(&key, value), &args.shared, &client, out)?
            else {
                return Ok(CommandOutcome::Done);
            };
            let found = done.previous.is_some();
            print_json(out, &with_previous(answer(&key, found, done.timestamp, done.server), &done))
        }
    }
    .map_err(CommandError::Output)?;
    print_session(&args.shared, &client);
    Ok(CommandOutcome::Done)
}

/// Does what `acervo put` asks for under a condition, and prints the answer.
fn put_if(
    shared: &KeyArgs,
    client: &Client,
    (key, value): (&[u8], &[u8]),
    condition: Condition,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let object = |stored| Object::default().bytes("key", key).flag("stored", stored);
    let format = shared.request.format.get();
    let outcome = match client.put_if(key, value, condition)? {
        ConditionalPut::Stored(PutOk { timestamp, server }) => {
            match format {
                Format::Text => writeln!(out, "{timestamp}"),
                Format::Json => {
                    let object = object(true).timestamp("timestamp", timestamp);
                    print_json(out, &object.text("server", Some(server.to_string())))
                }
            }
            .map_err(CommandError::Output)?;
            CommandOutcome::Done
        }
        ConditionalPut::Conflict(Conflict { found, server, .. }) => {
            let version = found.as_ref().map_or(Timestamp::ZERO, |found| found.timestamp);
            let value = found.as_ref().map(|found| &found.value[..]);
            let shown = escape(key);
            match format {
                Format::Text => {
                    writeln!(out, "{shown}\t{version}\t{}", escape(value.unwrap_or_default()))
                }
                Format::Json => {
                    let object = object(false).timestamp("old_timestamp", version);
                    let object = object.value("old_value", value);
                    print_json(out, &object.text("server", Some(server.to_string())))
                }
            }
            .map_err(CommandError::Output)?;
            let has = match found {
                Some(_) => format!("the key \"{shown}\" has version {version}"),
                None => format!("there is no key \"{shown}\""),
            };
            // Without standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "acervo: {has}: nothing was written");
            CommandOutcome::Conflict
        }
    };
    print_session(shared, client);
    Ok(outcome)
}

/// Does what `acervo putall` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn put_all(
    args: &PutAllArgs,
    stdin: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let client = key_client(&args.shared)?;
    let pairs = ArgumentReader::new(stdin, args.shared.escaped).pairs(&args.pairs)?;
    print_written(&args.shared, &client, client.put_all(pairs)?, Shown::Whole, out)
}

/// Does what `acervo del` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn del(args: &DelArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let client = key_client(&args.shared)?;
    let key = argument(&args.key, &args.shared);
    let Some(done) = previous_told(client.del(&key), &args.shared, &client, out)? else {
        return Ok(CommandOutcome::Done);
    };
    let found = done.previous.is_some();
    match args.shared.request.format.get() {
        Format::Text => writeln!(out, "{}", done.timestamp),
        Format::Json => {
            print_json(out, &with_previous(answer(&key, found, done.timestamp, done.server), &done))
        }
    }
    .map_err(CommandError::Output)?;
    print_session(&args.shared, &client);
    Ok(found_or_say(found, &key))
}

/// Does what `acervo delrange` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn del_range(args: &DelRangeArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let client = key_client(&args.shared)?;
    let done = client.del_scan(key_range(&args.range, &args.shared)?)?;
    print_written(&args.shared, &client, done, Shown::of(args.rows), out)
}

/// Does what `acervo delall` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn del_all(
    args: &DelAllArgs,
    stdin: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let client = key_client(&args.shared)?;
    let keys = ArgumentReader::new(stdin, args.shared.escaped).keys(&args.keys)?;
    print_written(&args.shared, &client, client.del_all(keys)?, Shown::Whole, out)
}

/// Does what `acervo set-history` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn set_history(
    args: &SetHistoryArgs,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let version = client(&args.request, None)?.set_history(args.history)?;
    match args.request.format.get() {
        Format::Text => writeln!(out, "{version}"),
        Format::Json => print_json(out, &serde_json::json!({ "version": version.0 })),
    }
    .map_err(CommandError::Output)?;
    Ok(CommandOutcome::Done)
}

/// Does what `acervo trim` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn trim(args: &TrimArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let client = key_client(&args.shared)?;
    let key = argument(&args.key, &args.shared);
    let Some(done) = previous_told(client.trim(&key), &args.shared, &client, out)? else {
        return Ok(CommandOutcome::Done);
    };
    let kept = done.previous.as_ref();
    let version = kept.map_or(Timestamp::ZERO, |kept| kept.timestamp);
    match (args.shared.request.format.get(), kept) {
        (Format::Text, Some(_)) => writeln!(out, "{version}"),
        (Format::Text, None) => Ok(()),
        (Format::Json, kept) => {
            let object = answer(&key, kept.is_some(), version, done.server);
            print_json(out, &object.value("value", kept.map(|kept| &kept.value[..])))
        }
    }
    .map_err(CommandError::Output)?;
    print_session(&args.shared, &client);
    Ok(found_or_say(kept.is_some(), &key))
}

/// The outcome of a write on one key, of which what there was before is to be printed. Where that
/// could not be read, the write's version is printed here, with the reason on standard error, and
/// `None` is returned.
fn previous_told(
    written: Result<Written, ClientError>,
    shared: &KeyArgs,
    client: &Client,
    out: &mut dyn Write,
) -> Result<Option<Written>, CommandError> {
    match written {
        Err(error @ ClientError::PreviousUnread { timestamp, .. }) => {
            say(&error);
            match shared.request.format.get() {
                Format::Text => writeln!(out, "{timestamp}"),
                Format::Json => print_json(out, &serde_json::json!({ "timestamp": timestamp.0 })),
            }
            .map_err(CommandError::Output)?;
            print_session(shared, client);
            Ok(None)
        }
        written => Ok(Some(written?)),
    }
}

/// Writes an error to standard error; where that is closed, the exit status alone tells of it.
fn say(error: &ClientError) {
    let _ = writeln!(io::stderr(), "acervo: {error}");
}

fn print_written(
    shared: &KeyArgs,
    client: &Client,
    done: WrittenMany,
    shown: Shown,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    // Told first, since the write is done, whatever becomes of the printing.
    print_session(shared, client);
    let shape = Shape::Before { timestamp: done.timestamp };
    match print_rows(out, shared.request.format.get(), shape, shown, done.rows) {
        Err(CommandError::Client(why)) => {
            say(&ClientError::PreviousUnread { timestamp: done.timestamp, why: Box::new(why) });
        }
        printed => drop(printed?),
    }
    Ok(CommandOutcome::Done)
}

/// The JSON object that every command prints for one key.
fn answer(key: &[u8], found: bool, timestamp: Timestamp, server: SocketAddr) -> Object<'_> {
    let object = Object::default().bytes("key", key).flag("found", found);
    object.timestamp("timestamp", timestamp).text("server", Some(server.to_string()))
}

fn with_previous<'a>(object: Object<'a>, done: &'a Written) -> Object<'a> {
    let previous = done.previous.as_ref();
    let version = previous.map_or(Timestamp::ZERO, |previous| previous.timestamp);
    let value = previous.map(|previous| &previous.value[..]);
    object.timestamp("old_timestamp", version).value("old_value", value)
}

/// Does what `acervo status` asks for, and prints the answer.
///
/// # Errors
/// See [`CommandError`].
pub fn status(args: &StatusArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let rows = status::ask_all(&client(&args.request, None)?);
    match args.request.format.get() {
        Format::Text => status::print_table(out, &rows),
        Format::Json => print_json(out, &status::json(&rows)),
    }
    .map_err(CommandError::Output)?;
    Ok(match status::is_led(&rows) && status::full_disks(&rows).is_empty() {
        true => CommandOutcome::Done,
        false => CommandOutcome::NotWritable,
    })
}

/// Checks for `acervo health` that a majority confirms a read, of a key that need not exist, and
/// that there is room for writes.
///
/// # Errors
/// See [`CommandError`].
pub fn health(args: &HealthArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let client = builder(&args.group.servers, args.timeout).build()?;
    // A range, since servers show every GET on their consoles.
    let anything = ReadOptions { linearizable: true, ..ReadOptions::default() };
    client.range("health", "health", anything)?.keys_only().next().transpose()?;
    let full = status::full_disks(&status::ask_all(&client));
    if !full.is_empty() {
        return Err(CommandError::NoRoom(full));
    }
    writeln!(out, "healthy").map_err(CommandError::Output)?;
    Ok(CommandOutcome::Done)
}

fn key_client(shared: &KeyArgs) -> Result<Client, ClientError> {
    client(&shared.request, shared.session.as_ref())
}

fn client(request: &RequestArgs, session: Option<&String>) -> Result<Client, ClientError> {
    let builder = builder(&request.group.servers, request.timeout);
    match session {
        Some(token) => builder.session(token).build(),
        None => builder.build(),
    }
}

fn builder(servers: &[SocketAddr], timeout: Duration) -> ClientBuilder {
    Client::builder(servers.iter().copied()).request_timeout(timeout)
}

fn argument(argument: &OsStr, shared: &KeyArgs) -> Vec<u8> {
    let bytes = argument.as_encoded_bytes();
    if shared.escaped { unescape(bytes) } else { bytes.to_vec() }
}

/// The range that was asked for: '..' is an open end.
fn key_range(args: &RangeArgs, shared: &KeyArgs) -> Result<KeyRange, ClientError> {
    if let Some(prefix) = &args.prefix {
        return KeyRange::prefix(argument(prefix, shared));
    }
    let end = |end: &Option<OsString>| {
        end.as_ref().filter(|end| *end != "..").map(|end| argument(end, shared))
    };
    match (end(&args.from), end(&args.to)) {
        (Some(from), Some(to)) => KeyRange::between(from, to),
        (Some(from), None) => KeyRange::starting_at(from),
        (None, Some(to)) => KeyRange::ending_at(to),
        (None, None) => Ok(KeyRange::all()),
    }
}

fn limited(rows: Rows, limit: Option<u64>) -> Rows {
    match limit {
        Some(limit) => rows.limit(limit),
        None => rows,
    }
}

fn options(read: &ReadArgs) -> Result<ReadOptions, CommandError> {
    let now = jiff::Timestamp::now();
    let at = read.at.map(|at| at.resolve(now)).transpose()?;
    Ok(ReadOptions { at, linearizable: read.is_linearizable() })
}

fn print_session(shared: &KeyArgs, client: &Client) {
    if shared.print_session {
        // Without standard error there is nowhere to say that it is missing.
        let _ = writeln!(io::stderr(), "{}", client.session_token());
    }
}

fn found_or_say(found: bool, key: &[u8]) -> CommandOutcome {
    if found {
        return CommandOutcome::Done;
    }
    let _ = writeln!(io::stderr(), "acervo: there is no key \"{}\"", escape(key));
    CommandOutcome::NotFound
}
