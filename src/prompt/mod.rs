//! Dialogues with a person: consoles with a menu, and questions at the start of a program.
//!
//! A console knows [`Input`] and [`Screen`] only; [`run`] gives it the real ones. Questions that
//! are asked once, before anything runs, are in [`questions`]. The dialogue is in Portuguese, as
//! the lines of the specification are.

pub mod questions;
#[cfg(test)]
pub(crate) mod script;
mod terminal;

use std::fmt;
use std::io;
use std::net::IpAddr;

use crate::client::greeting::{
    FOUND_THERE, NO_GREETING, NOT_GREETED, NOT_IN_TIME, REFUSED, TIMED_OUT,
};
use crate::text::{LineError, counted, escape};

pub use self::terminal::{OutputError, run};

/// The outcome of one reading of a line.
#[derive(Debug)]
pub enum Typed {
    /// A line was typed; its end is left out.
    Line(String),
    /// Ctrl-C was typed: what was being asked for is dropped.
    Cancelled,
    /// Ctrl-D was typed, or a pipe has ended.
    End,
}

/// The source of lines that a person types, or that come from a pipe.
pub trait Input {
    /// Shows `prompt` and waits for what is typed.
    ///
    /// # Errors
    /// The input failed, or the line cannot be used.
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError>;
}

/// The output of a console, which any thread may use.
pub trait Screen: Send + Sync {
    /// Shows a line of the specification.
    fn event(&self, line: &str);
    /// Shows a remark from another thread than the one that reads.
    fn remark(&self, line: &str);
    /// Shows a remark from the thread that reads, between two readings.
    fn say(&self, line: &str);
}

/// Whether a person types in a dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Somebody types, sees answers whenever they come, and need not wait for those that they leave
    /// behind.
    Terminal,
    /// Lines come from a pipe or a file, and may end before the answers have come.
    Pipe,
}

/// Why a question has no answer.
#[derive(Debug)]
pub enum Stop {
    /// The user has cancelled it, and goes back to the menu.
    Cancelled,
    /// The user leaves the console, or its input has ended.
    Leave,
    /// The terminal or the pipe could not be read.
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
            Err(LineError::TooLong) => "A linha é longa demais, e nada dela foi usado.".to_owned(),
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

/// Reads an IP.
///
/// # Errors
/// A clause that says why it is none.
pub fn parse_ip(answer: &str) -> Result<IpAddr, String> {
    answer.parse().map_err(|_| format!("\"{}\" não é um IP", escape(answer.as_bytes())))
}

/// Reads a port, from 1 to 65535.
///
/// # Errors
/// A clause that says why it is none.
pub fn parse_port(answer: &str) -> Result<u16, String> {
    let port = answer.parse().ok().filter(|port| *port != 0);
    let why = || format!("\"{}\" não é uma porta (1 a 65535)", escape(answer.as_bytes()));
    port.ok_or_else(why)
}

/// Why a server cannot be reached, in the language of the dialogue. The client library tells it in
/// English; what nobody has translated, as what the system says, is quoted, so that a line is in
/// one language.
pub fn explain_reason(reason: &str) -> String {
    let known = match reason {
        "connection refused" => "conexão recusada",
        "the connection broke" => "a conexão caiu",
        TIMED_OUT => "sem resposta a tempo",
        NOT_IN_TIME => "nenhuma resposta completa chegou a tempo",
        "the server closed the connection" | "it closed the connection" => "ele fechou a conexão",
        "it does not answer like a registry" => "ele não responde como um registro",
        "the connection takes nothing more" => "ele não lê mais",
        "the server's first message is no greeting" => "ele não fala o protocolo do acervo",
        "it answered another question than was asked" => "ele respondeu a outra pergunta",
        "this server is stopping: ask another one" => "ele está parando",
        NO_GREETING => "ele aceita a conexão e não responde",
        _ => return explain_parts(reason).unwrap_or_else(|| format!("\"{reason}\"")),
    };
    known.to_owned()
}

/// Explains reasons that are made of several parts.
fn explain_parts(reason: &str) -> Option<String> {
    if let Some(time) = reason.strip_prefix("no answer within ") {
        return Some(format!("sem resposta em {time}"));
    }
    if let Some(time) = reason.strip_prefix("nothing heard for ") {
        return Some(format!("nada se ouviu dele em {time}"));
    }
    if reason.starts_with("it belongs to group ") {
        return Some("ele é de outro grupo de servidores".to_owned());
    }
    if reason.starts_with("the server speaks protocol ") {
        return Some("ele fala outra versão do protocolo".to_owned());
    }
    if reason.starts_with("this server cannot ") {
        return Some("ele não consegue ler os seus dados".to_owned());
    }
    if let Some(expected) = reason.strip_prefix(NOT_GREETED) {
        let expected = explain_expected(expected.trim().trim_end_matches('?'));
        return Some(format!("a conexão foi fechada sem resposta: é mesmo {expected}?"));
    }
    if let Some(found) = reason.strip_prefix(FOUND_THERE) {
        let (found, expected) = found.split_once("; expected: ")?;
        let found = match found {
            "a web server" => "um servidor web",
            "a web server, or an acervo gateway" => "um servidor web, ou o gateway do acervo",
            "an SSH server" => "um servidor SSH",
            _ if found.starts_with("HTTP/2") => "um servidor HTTP/2, como o gateway do acervo",
            _ => "algo que não fala o protocolo do acervo",
        };
        return Some(format!("ali responde {found}, e não {}", explain_expected(expected)));
    }
    let refusal = reason.strip_prefix(REFUSED)?;
    let why = if refusal.starts_with("this is a registry or a peer") {
        "ali responde um registro ou um peer, e não um servidor do acervo"
    } else if refusal.starts_with("this is a peer") {
        "ali responde um peer, e não um registro"
    } else if refusal.starts_with("this is a server of a store") {
        "ali responde um servidor do acervo, e não um registro"
    } else if refusal.starts_with("this server has no room") {
        "ele não tem lugar para mais uma conexão"
    } else {
        "ele recusou a conexão"
    };
    Some(why.to_owned())
}

fn explain_expected(expected: &str) -> &str {
    match expected {
        "a server of an acervo store" => "um servidor do acervo",
        "an acervo registry or peer" => "um registro ou peer do acervo",
        other => other,
    }
}

/// How many servers answer, where a server's sentence says it: `1 of 3 servers answer`.
pub fn explain_reach(message: &str) -> Option<String> {
    let words: Vec<&str> = message.split(|c: char| !c.is_alphanumeric()).collect();
    words.windows(5).find_map(|window| {
        let [answering, "of", all, "server" | "servers", "answer" | "answers"] = window else {
            return None;
        };
        let (answering, all): (u64, u64) = (answering.parse().ok()?, all.parse().ok()?);
        let verb = if answering == 1 { "responde" } else { "respondem" };
        Some(format!("{answering} de {} {verb}", counted(all, "servidor", "servidores")))
    })
}

/// An error of the system in the console's language; one that is not known here by its number.
pub fn explain_io(error: &io::Error) -> String {
    let known = match error.kind() {
        io::ErrorKind::NotFound => "não existe",
        io::ErrorKind::NotADirectory => "não é uma pasta",
        io::ErrorKind::PermissionDenied => "sem permissão",
        io::ErrorKind::ReadOnlyFilesystem => "o disco é só de leitura",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "o disco está cheio",
        _ => match error.raw_os_error() {
            Some(code) => return format!("erro {code} do sistema"),
            None => "erro do sistema",
        },
    };
    known.to_owned()
}

/// Whether a reason says that somebody else listens where a server was expected, so that waiting is
/// of no use.
pub fn is_misdirected(reason: &str) -> bool {
    reason.starts_with(FOUND_THERE)
        || reason.strip_prefix(REFUSED).is_some_and(|refusal| refusal.starts_with("this is a "))
}

/// The line for an answer that cannot be used, from a clause that says why.
pub fn invalid(why: &str) -> String {
    format!("Resposta inválida: {why}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_console_says_of_a_server_is_in_one_language() {
        let servers = "expected: a server of an acervo store";
        let registry = "expected: an acervo registry or peer";
        for (reason, said) in [
            ("connection refused".to_owned(), "conexão recusada"),
            (NO_GREETING.to_owned(), "ele aceita a conexão e não responde"),
            (
                format!("{FOUND_THERE}a web server; {servers}"),
                "ali responde um servidor web, e não um servidor do acervo",
            ),
            (
                format!("{FOUND_THERE}a web server, or an acervo gateway; {servers}"),
                "ali responde um servidor web, ou o gateway do acervo, e não um servidor do acervo",
            ),
            (
                format!("{FOUND_THERE}HTTP/2, as an acervo gateway speaks; {registry}"),
                "ali responde um servidor HTTP/2, como o gateway do acervo, e não um registro ou \
                 peer do acervo",
            ),
            (
                format!("{NOT_GREETED} an acervo registry or peer?"),
                "a conexão foi fechada sem resposta: é mesmo um registro ou peer do acervo?",
            ),
            (
                format!(
                    "{REFUSED}this is a registry or a peer of a share and not a store: ask an \
                     acervo server"
                ),
                "ali responde um registro ou um peer, e não um servidor do acervo",
            ),
            (format!("{REFUSED}anything"), "ele recusou a conexão"),
            ("no answer within 200ms".to_owned(), "sem resposta em 200ms"),
            ("No route to host (os error 113)".to_owned(), "\"No route to host (os error 113)\""),
        ] {
            assert_eq!(explain_reason(&reason), said);
        }
        assert!(is_misdirected(&format!("{FOUND_THERE}a web server; {servers}")));
        assert!(!is_misdirected(NO_GREETING));
    }
}
