//! Questions that a program asks once, on the keyboard, before it runs.

use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};

use super::{explain_io, invalid};
use crate::text::{LineError, read_line};

/// Why there is no answer, in the language of the questions.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// The input ended before the last question was answered.
    #[error("a entrada terminou antes da última resposta, e nada foi iniciado")]
    Ended,
    /// Whatever is answered, no server of the group could listen here.
    #[error(
        "nenhum servidor do grupo tem um IP desta máquina ({0}): inicie com --servers que tenham um"
    )]
    Foreign(String),
    /// The terminal could not be read or written.
    #[error("o terminal não pôde ser usado: {}", explain_io(.0))]
    Io(#[from] io::Error),
}

/// Checks that `address` could be listened on now.
///
/// # Errors
/// The system's reason why it could not.
pub fn probe(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

/// Checks that an IP is one of this machine. It is checked before the port is asked for, since no
/// port of another machine's IP is of use.
///
/// # Errors
/// A clause that says why it cannot be listened on.
pub fn check_own_ip(
    ip: IpAddr,
    probe: &dyn Fn(SocketAddr) -> io::Result<()>,
) -> Result<IpAddr, String> {
    let any_port = SocketAddr::new(ip, 0);
    probe(any_port).map(|()| ip).map_err(|error| explain_probe(any_port, &error))
}

/// Why an address cannot be listened on, as a clause for a person.
pub fn explain_probe(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => format!("a porta {} já está em uso", address.port()),
        ErrorKind::AddrNotAvailable => format!("{} não é um IP desta máquina", address.ip()),
        _ => format!("não é possível usar {address}: {}", explain_io(error)),
    }
}

/// Repeats a question until its answer can be used, saying why when it cannot. Enter takes the
/// default.
///
/// # Errors
/// The input ended or failed.
pub fn until_valid<T>(
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    question: &str,
    default: &str,
    mut parse: impl FnMut(&str) -> Result<T, String>,
) -> Result<T, QuestionError> {
    loop {
        write!(output, "{question} [{default}]: ")?;
        output.flush()?;
        let why = match read_line(input) {
            Ok(None) => {
                // Ends the question's row, before the error is printed.
                writeln!(output)?;
                return Err(QuestionError::Ended);
            }
            Ok(Some(line)) => {
                let answer = match line.trim() {
                    "" => default,
                    answer => answer,
                };
                match parse(answer) {
                    Ok(value) => return Ok(value),
                    Err(why) => why,
                }
            }
            Err(LineError::Io(error)) => return Err(error.into()),
            Err(LineError::TooLong) => "a resposta é longa demais".to_owned(),
            Err(LineError::NotUtf8) => "a resposta não é texto UTF-8".to_owned(),
        };
        writeln!(output, "{}", invalid(&why))?;
    }
}
