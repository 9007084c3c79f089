//! Dialogues with a person: consoles with a menu, and questions at the start of a program.
//!
//! A console knows [`Input`] and [`Screen`] only; [`run`] gives it the real ones. Questions that are
//! asked once, before anything runs, are in [`questions`]. The dialogue is in Portuguese, as the lines of
//! the specification are.

pub mod questions;
mod terminal;

use std::fmt;
use std::net::IpAddr;

use crate::text::{LineError, escape};

pub use self::terminal::run;

/// One thing that was typed.
#[derive(Debug)]
pub enum Typed {
    /// A line, without its end.
    Line(String),
    /// Ctrl-C: whatever was being asked for is dropped.
    Cancelled,
    /// Ctrl-D, or the end of a pipe.
    End,
}

/// Where lines come from.
pub trait Input {
    /// Shows `prompt` and waits for what is typed.
    ///
    /// # Errors
    /// The input failed, or the line cannot be used.
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError>;
}

/// Where lines go, from any thread.
pub trait Screen: Send + Sync {
    /// A line of the specification.
    fn event(&self, line: &str);
    /// A remark from another thread than the one that reads.
    fn remark(&self, line: &str);
    /// A remark from the thread that reads, between two readings.
    fn say(&self, line: &str);
}

/// What a dialogue runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody types, and sees answers whenever they come.
    Terminal,
    /// Lines come from a pipe or a file, and may end before the answers have come.
    Pipe,
}

/// Why something was not finished.
#[derive(Debug)]
pub enum Stop {
    /// Back to the menu.
    Cancelled,
    /// Out.
    Leave,
    /// The input failed.
    Failed(LineError),
}

/// Asks until the answer can be used, saying why when it cannot.
///
/// # Errors
/// See [`Stop`].
pub fn ask<T>(
    input: &mut dyn Input,
    screen: &dyn Screen,
    prompt: &str,
    mut parse: impl FnMut(&str) -> Result<T, String>,
) -> Result<T, Stop> {
    loop {
        let why = match input.read_line(prompt) {
            Ok(Typed::Line(line)) => match parse(&line) {
                Ok(value) => return Ok(value),
                Err(why) => why,
            },
            Ok(Typed::Cancelled) => return Err(Stop::Cancelled),
            Ok(Typed::End) => return Err(Stop::Leave),
            Err(LineError::TooLong) => "A linha é longa demais.".to_owned(),
            Err(LineError::NotUtf8) => "A linha não é texto UTF-8.".to_owned(),
            Err(error @ LineError::Io(_)) => return Err(Stop::Failed(error)),
        };
        screen.say(&why);
    }
}

/// As [`ask`], for a short answer; Enter takes the default.
///
/// # Errors
/// See [`Stop`].
pub fn ask_or<T: fmt::Display + Clone>(
    input: &mut dyn Input,
    screen: &dyn Screen,
    question: &str,
    default: &T,
    mut parse: impl FnMut(&str) -> Result<T, String>,
) -> Result<T, Stop> {
    ask(input, screen, &format!("{question} [{default}]: "), |line| match line.trim() {
        "" => Ok(default.clone()),
        answer => parse(answer),
    })
}

/// Reads an IP, or says in one clause why it is none.
///
/// # Errors
/// The clause.
pub fn parse_ip(answer: &str) -> Result<IpAddr, String> {
    answer.parse().map_err(|_| format!("\"{}\" não é um IP", escape(answer.as_bytes())))
}

/// Reads a port, or says in one clause why it is none.
///
/// # Errors
/// The clause.
pub fn parse_port(answer: &str) -> Result<u16, String> {
    let port = answer.parse().ok().filter(|port| *port != 0);
    let why = || format!("\"{}\" não é uma porta (1 a 65535)", escape(answer.as_bytes()));
    port.ok_or_else(why)
}

/// Why a server cannot be reached, in the language of the dialogue. The client library tells it in English; what nobody
/// has translated, or another program has said, is quoted, so that a line is in one language.
pub fn explain_reason(reason: &str) -> String {
    let known = match reason {
        "connection refused" => "conexão recusada",
        "the connection broke" => "a conexão caiu",
        "timed out" => "sem resposta a tempo",
        "the server closed the connection" | "it closed the connection" => "ele fechou a conexão",
        "it does not answer like a registry" => "não responde como um registro",
        "connected, but the server did not greet in time" => "ele aceita a conexão e não responde",
        _ => match reason.strip_prefix("no answer within ") {
            Some(time) => return format!("sem resposta em {time}"),
            None => return format!("\"{reason}\""),
        },
    };
    known.to_owned()
}

/// What a person is told of an answer that cannot be used.
pub fn invalid(why: &str) -> String {
    format!("Resposta inválida: {why}.")
}
