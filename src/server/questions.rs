//! What `acervo server` asks on the keyboard when it is started on a terminal without flags.
//!
//! Four questions, in the order of SPEC A1: own IP, own port, the leader's IP, the leader's port.
//! Each offers a default and is asked again, with the reason, until the answer is one of the group.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr};

use crate::prompt::questions::{self, QuestionError, check_own_ip, explain_probe};
use crate::prompt::{parse_ip, parse_port};

/// The addresses that were given, both of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The address on which this server listens.
    pub listen: SocketAddr,
    /// The address of the server that leads first.
    pub leader: SocketAddr,
}

/// Asks the four questions. `probe` tells whether an address can be listened on.
///
/// # Errors
/// The input ended or failed.
pub fn ask(
    group: &[SocketAddr],
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    probe: &dyn Fn(SocketAddr) -> io::Result<()>,
) -> Result<Answers, QuestionError> {
    let free = |address: &&SocketAddr| probe(**address).is_ok();
    let first = group.iter().find(free).or(group.first()).copied();
    // A checked group is never empty.
    let Some(own) = first else { return Err(QuestionError::Ended) };
    let leader = group.first().copied().unwrap_or(own);
    // No answer could be used, and the question would be asked for ever.
    if !group.iter().any(|server| check_own_ip(server.ip(), probe).is_ok()) {
        let group: Vec<_> = group.iter().map(SocketAddr::to_string).collect();
        return Err(QuestionError::Foreign(group.join(", ")));
    }
    let mut questions = Questions { group, input, output };

    let ip = questions.ip("IP deste servidor", own.ip(), &|ip| check_own_ip(ip, probe))?;
    let port = match group.iter().filter(|server| server.ip() == ip).find(free) {
        Some(server) => server.port(),
        None => own.port(),
    };
    let listen = questions.address("Porta deste servidor", ip, port, &|address| {
        probe(address).map_err(|error| explain_probe(address, &error))
    })?;
    let ip = questions.ip("IP do líder", leader.ip(), &Ok)?;
    let default = group.iter().find(|server| server.ip() == ip).unwrap_or(&leader);
    let leader = questions.address("Porta do líder", ip, default.port(), &|_| Ok(()))?;
    Ok(Answers { listen, leader })
}

struct Questions<'a> {
    group: &'a [SocketAddr],
    input: &'a mut dyn BufRead,
    output: &'a mut dyn Write,
}

impl Questions<'_> {
    fn ip(
        &mut self,
        question: &str,
        default: IpAddr,
        check: &dyn Fn(IpAddr) -> Result<IpAddr, String>,
    ) -> Result<IpAddr, QuestionError> {
        let ips: BTreeSet<String> =
            self.group.iter().map(|server| server.ip().to_string()).collect();
        self.until_valid(question, &default.to_string(), |group, answer| {
            let ip = parse_ip(answer)?;
            if group.iter().any(|server| server.ip() == ip) {
                return check(ip);
            }
            let ips = ips.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            Err(format!("nenhum servidor do grupo tem o IP {ip}; há: {ips}"))
        })
    }

    fn address(
        &mut self,
        question: &str,
        ip: IpAddr,
        default: u16,
        check: &dyn Fn(SocketAddr) -> Result<(), String>,
    ) -> Result<SocketAddr, QuestionError> {
        self.until_valid(question, &default.to_string(), |group, answer| {
            let address = SocketAddr::new(ip, parse_port(answer)?);
            if !group.contains(&address) {
                let group: Vec<_> = group.iter().map(SocketAddr::to_string).collect();
                let group = group.join(", ");
                return Err(format!("{address} não é um servidor do grupo; são: {group}"));
            }
            check(address).map(|()| address)
        })
    }

    /// Repeats a question until its answer can be used, saying why when it cannot.
    fn until_valid<T>(
        &mut self,
        question: &str,
        default: &str,
        mut parse: impl FnMut(&[SocketAddr], &str) -> Result<T, String>,
    ) -> Result<T, QuestionError> {
        questions::until_valid(self.input, self.output, question, default, |answer| {
            parse(self.group, answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::questions::probe;
    use crate::server::config::DEFAULT_SERVERS;
    use std::io::ErrorKind;
    use std::net::TcpListener;

    /// Answers with `lines` where `taken` ports are in use; gives the answers and the dialogue.
    fn dialogue(lines: &str, taken: &[u16]) -> (Result<Answers, QuestionError>, String) {
        let mut output = Vec::new();
        let probe = |address: SocketAddr| match taken.contains(&address.port()) {
            true => Err(ErrorKind::AddrInUse.into()),
            false => Ok(()),
        };
        let answers = ask(&DEFAULT_SERVERS, &mut lines.as_bytes(), &mut output, &probe);
        (answers, String::from_utf8(output).unwrap())
    }

    fn answers(listen: u16, leader: u16) -> Answers {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Answers { listen: address(listen), leader: address(leader) }
    }

    #[test]
    fn enter_takes_the_defaults_in_the_order_of_the_questions() {
        let (given, output) = dialogue("\n\n\n\n", &[]);
        assert_eq!(given.unwrap(), answers(10097, 10097));
        assert_eq!(
            output,
            "IP deste servidor [127.0.0.1]: Porta deste servidor [10097]: \
             IP do líder [127.0.0.1]: Porta do líder [10097]: "
        );
    }

    #[test]
    fn a_group_without_an_ip_of_this_machine_is_not_asked_about() {
        let mut output = Vec::new();
        let probe = |_: SocketAddr| Err(ErrorKind::AddrNotAvailable.into());
        let given = ask(&DEFAULT_SERVERS, &mut "\n\n\n\n".as_bytes(), &mut output, &probe);
        assert!(matches!(given, Err(QuestionError::Foreign(_))), "{given:?}");
        assert!(output.is_empty());
    }

    #[test]
    fn the_first_free_port_is_offered() {
        let (given, output) = dialogue("\n\n\n\n", &[10097]);
        assert_eq!(given.unwrap(), answers(10098, 10097));
        assert!(output.contains("Porta deste servidor [10098]: "));
    }

    #[test]
    fn an_invalid_answer_is_explained_and_asked_for_again() {
        let (given, output) = dialogue(
            "localhost\n10.0.0.9\n127.0.0.1\nport\n0\n70000\n10097\n5000\n10099\n\n10100\n10098\n",
            &[10097],
        );
        assert_eq!(given.unwrap(), answers(10099, 10098));
        let reasons: Vec<_> = output
            .split("Resposta inválida: ")
            .skip(1)
            .map(|rest| rest.lines().next().unwrap())
            .collect();
        assert_eq!(
            reasons,
            [
                "\"localhost\" não é um IP.",
                "nenhum servidor do grupo tem o IP 10.0.0.9; há: 127.0.0.1.",
                "\"port\" não é uma porta (1 a 65535).",
                "\"0\" não é uma porta (1 a 65535).",
                "\"70000\" não é uma porta (1 a 65535).",
                "a porta 10097 já está em uso.",
                "127.0.0.1:5000 não é um servidor do grupo; são: 127.0.0.1:10097, \
                 127.0.0.1:10098, 127.0.0.1:10099.",
                "127.0.0.1:10100 não é um servidor do grupo; são: 127.0.0.1:10097, \
                 127.0.0.1:10098, 127.0.0.1:10099.",
            ]
        );
    }

    #[test]
    fn a_leader_whose_port_is_in_use_is_fine() {
        let (given, _) = dialogue("\n10098\n\n10097\n", &[10097]);
        assert_eq!(given.unwrap(), answers(10098, 10097));
    }

    #[test]
    fn the_end_of_the_input_ends_it() {
        let (given, _) = dialogue("\n10098\n", &[]);
        assert!(matches!(given, Err(QuestionError::Ended)));
    }

    #[test]
    fn a_port_that_is_taken_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(probe(address).unwrap_err().kind(), ErrorKind::AddrInUse);
    }
}
