//! The questions that `acervo registry` asks when it is started on a terminal without `--listen`.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;

use super::DEFAULT_REGISTRY;
use crate::prompt::questions::{QuestionError, check_own_ip, explain_probe, until_valid};
use crate::prompt::{parse_ip, parse_port};

/// Asks for IP and port, and offers the defaults. `probe` tests whether an address can be listened
/// on.
///
/// # Errors
/// The input has ended or failed.
pub fn ask(
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    probe: &dyn Fn(SocketAddr) -> io::Result<()>,
) -> Result<SocketAddr, QuestionError> {
    let default = DEFAULT_REGISTRY;
    let ip = default.ip().to_string();
    let ip = until_valid(input, output, "IP do registro", &ip, |answer| {
        check_own_ip(parse_ip(answer)?, probe)
    })?;
    let port = default.port().to_string();
    until_valid(input, output, "Porta do registro", &port, |answer| {
        let address = SocketAddr::new(ip, parse_port(answer)?);
        probe(address).map(|()| address).map_err(|error| explain_probe(address, &error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn dialogue(lines: &str) -> (Result<SocketAddr, QuestionError>, String) {
        let mut output = Vec::new();
        let probe = |address: SocketAddr| match (address.ip().to_string().as_str(), address.port())
        {
            ("8.8.8.8", _) => Err(ErrorKind::AddrNotAvailable.into()),
            (_, 2000) => Err(ErrorKind::AddrInUse.into()),
            _ => Ok(()),
        };
        let answer = ask(&mut lines.as_bytes(), &mut output, &probe);
        (answer, String::from_utf8(output).unwrap())
    }

    #[test]
    fn enter_takes_the_defaults() {
        let (address, output) = dialogue("\n\n");
        assert_eq!(address.unwrap(), DEFAULT_REGISTRY);
        assert_eq!(output, "IP do registro [127.0.0.1]: Porta do registro [1099]: ");
    }

    #[test]
    fn an_invalid_answer_is_explained_and_asked_for_again() {
        let (address, output) = dialogue("here\n8.8.8.8\n10.0.0.1\n0\n2000\n2001\n");
        assert_eq!(address.unwrap(), "10.0.0.1:2001".parse().unwrap());
        let reasons: Vec<_> = output
            .split("Resposta inválida: ")
            .skip(1)
            .map(|rest| rest.lines().next().unwrap())
            .collect();
        assert_eq!(
            reasons,
            [
                "\"here\" não é um IP.",
                "8.8.8.8 não é um IP desta máquina.",
                "\"0\" não é uma porta (1 a 65535).",
                "a porta 2000 já está em uso."
            ]
        );
        assert!(matches!(dialogue("\n").0, Err(QuestionError::Ended)));
    }
}
