//! The one-shot commands, in front of three servers: a process for each step, which reads what the
//! one before has left.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use acervo::cli::at::time_of;
use acervo::model::Timestamp;
use acervo::text::parse_hex;
use bytes::Bytes;
use serde_json::Value;

use crate::language::{Asked, Op};
use crate::run::{Answer, BackEnd, Left, Row, shown_lines};

use crate::servers::{BEHIND_TIMEOUT, Servers};
use crate::shell;
use crate::support::ACERVO;

/// What a process can be given as one argument, with room for its escapes.
const ARGUMENT_BYTES_MAX: usize = 16 * 1024;

pub struct Commands<'a> {
    servers: &'a Servers,
    /// What was seen last, as a token.
    session: Option<String>,
}

impl<'a> Commands<'a> {
    pub fn new(servers: &'a Servers) -> Commands<'a> {
        Commands { servers, session: None }
    }
}

impl Commands<'_> {
    /// The flags by which a command goes on from what the one before it has seen.
    fn flags(&self) -> Vec<String> {
        let mut flags =
            vec!["--print-session".to_owned(), "--servers".into(), self.servers.group.list()];
        if let Some(token) = self.session.clone() {
            flags.extend(["--session".to_owned(), token]);
        }
        flags
    }
}

impl BackEnd for Commands<'_> {
    fn name(&self) -> &'static str {
        "commands"
    }

    fn ask(&mut self, op: &Op) -> Answer {
        let (answer, token) = ask(op, &self.flags());
        self.session = token.or(self.session.take());
        answer
    }

    fn transact(&mut self, text: &str) -> Answer {
        let (status, out, err) =
            with_input(Command::new(ACERVO).arg("txn").args(self.flags()), text.as_bytes());
        self.session = token(&err).or(self.session.take());
        match status {
            // The branch says which of them it is to be.
            0 | 1 if out.starts_with(["then", "else"][status as usize]) => {
                Answer::Lines(shown_lines(&out))
            }
            2 | 3 => Answer::Error(err),
            other => Answer::Error(format!("exit status {other}: {out}{err}")),
        }
    }

    fn ask_behind(&mut self, op: &Op) -> Answer {
        let behind = self.servers.behind.expect("the servers were started with one behind");
        let timeout = format!("{}s", BEHIND_TIMEOUT.as_secs());
        let servers = ["--servers".to_owned(), behind.to_string()];
        let more = ["--serializable".to_owned(), "--timeout".into(), timeout];
        ask(op, &[servers.as_slice(), &more].concat()).0
    }

    fn shell(&mut self, line: &str) -> Result<Left, String> {
        shell::run(line, &self.servers.group.list(), None)
    }

    fn placeholder(
        &self,
        name: &str,
        version: &dyn Fn(&str) -> Result<i64, String>,
    ) -> Option<String> {
        match name {
            "servers" => Some(self.servers.group.list()),
            "nobody" => Some(self.servers.nobody.to_string()),
            "alone" => Some(self.servers.alone().to_string()),
            _ => {
                let version = version(name.strip_prefix("time of ")?).ok()?;
                time_of(Timestamp(version))
            }
        }
    }
}

/// Runs a command; its answer, and the token of what it has seen if it printed one.
fn ask(op: &Op, flags: &[String]) -> (Answer, Option<String>) {
    let at = match op.at() {
        Ok(at) => at,
        Err(error) => return (Answer::Error(error), None),
    };
    let (name, arguments, input) = line(op);
    let mut command = Command::new(ACERVO);
    command.args([name, "--escaped", "--format", "json"]).args(flags);
    if let Some(at) = at {
        command.args(["--at", &at.to_string()]);
    }
    let (status, objects, err) = with_input(command.arg("--").args(arguments), &input);
    let token = token(&err);
    let Some(rows) = objects.lines().map(|line| row(op, line)).collect::<Option<Vec<Row>>>() else {
        return (Answer::Error(format!("it printed no answer: {objects}")), token);
    };
    // Not found is status 1, of the commands that are about one key.
    let is_missing = matches!(op, Op::Get(_) | Op::Del(_) | Op::Trim(_))
        && rows.iter().all(|row| row.held.is_none());
    let answer = match status {
        0 if !is_missing => Answer::Rows(rows),
        1 if is_missing => Answer::Rows(rows),
        2 | 3 => Answer::Error(err),
        other => Answer::Error(format!("exit status {other}: {err}")),
    };
    (answer, token)
}

/// The token that a command has printed beside.
fn token(err: &str) -> Option<String> {
    err.lines().find(|line| line.starts_with("s1-")).map(str::to_owned)
}

/// Runs a command on what it reads: its exit status, what it printed, and what it said beside.
fn with_input(command: &mut Command, input: &[u8]) -> (i32, String, String) {
    let mut child = command
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads what a command does not ask for.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let status = output.status.code().expect("it ended by itself");
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (status, out, err)
}

/// The name of a command, its arguments, and what it reads.
fn line(op: &Op) -> (&'static str, Vec<String>, Vec<u8>) {
    let keys = |asked: &[Asked]| asked.iter().map(|asked| escaped(&asked.key)).collect::<Vec<_>>();
    let range = |from: &Asked, to: &Asked| vec![escaped(&from.key), escaped(&to.key)];
    let nothing = Vec::new();
    match op {
        Op::Get(one) => ("get", vec![escaped(&one.key)], nothing),
        Op::GetRange(from, to) => ("getrange", range(from, to), nothing),
        Op::GetAll(asked) => ("getall", keys(asked), nothing),
        Op::Put(key, value) if value.len() > ARGUMENT_BYTES_MAX => {
            ("put", vec![escaped(key), "-".into()], value.to_vec())
        }
        Op::Put(key, value) => ("put", vec![escaped(key), escaped(value)], nothing),
        Op::PutAll(pairs) if pairs.iter().any(|(_, value)| value.len() > ARGUMENT_BYTES_MAX) => {
            let line = |(key, value): &(Bytes, Bytes)| {
                format!("{{\"key_hex\":\"{}\",\"value_hex\":\"{}\"}}\n", hex(key), hex(value))
            };
            ("putall", vec!["-".into()], pairs.iter().map(line).collect::<String>().into())
        }
        Op::PutAll(pairs) => {
            let pair =
                |(key, value): &(Bytes, Bytes)| format!("{}={}", escaped(key), escaped(value));
            ("putall", pairs.iter().map(pair).collect(), nothing)
        }
        Op::Del(one) => ("del", vec![escaped(&one.key)], nothing),
        Op::DelRange(from, to) => ("delrange", range(from, to), nothing),
        Op::DelAll(asked) => ("delall", keys(asked), nothing),
        Op::Trim(one) => ("trim", vec![escaped(&one.key)], nothing),
    }
}

/// With nothing in it that a shell, a pair or a flag could be made of.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").unwrap(),
        }
        text
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A printed object as a row, if it is one.
fn row(op: &Op, line: &str) -> Option<Row> {
    let object: Value = serde_json::from_str(line).ok()?;
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    let bytes = |name: &str| -> Option<Bytes> {
        match (text(name), text(&format!("{name}_hex"))) {
            (Some(text), None) => Some(Bytes::copy_from_slice(text.as_bytes())),
            (None, Some(hex)) => parse_hex(hex).map(Bytes::from),
            _ => None,
        }
    };
    let number = |name: &str| object.get(name).and_then(Value::as_i64);
    let (value, version) =
        if op.tells_the_past() { ("old_value", "old_timestamp") } else { ("value", "timestamp") };
    let version = number(version)?;
    let held = bytes(value).map(|value| (value, version));
    let nothing_at = held.is_none().then(|| number("at").unwrap_or(version));
    let new = number("timestamp").filter(|_| op.makes_a_version());
    Some(Row { key: bytes("key")?, held, nothing_at, new })
}
