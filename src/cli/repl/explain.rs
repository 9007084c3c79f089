//! What the console says of a request: the lines of SPEC A6, and remarks in the same language.

use std::fmt;
use std::net::SocketAddr;

use crate::client::{Ask, ClientError, Effect, Event, Timestamp, Version};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::prompt::{explain_reach, explain_reason, is_misdirected};
use crate::text::escape;

/// A report as it is shown: a line of the specification, or a remark.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rendered {
    Event(String),
    Remark(String),
}

pub(super) fn render(ask: &Ask, event: &Event) -> Rendered {
    let name = match ask {
        Ask::Put { .. } => "PUT",
        Ask::Get { .. } => "GET",
    };
    let key = escape(ask.key());
    // A key of which nothing was seen, or found, has the timestamp 0.
    let get_line = |value: &dyn fmt::Display, server: &SocketAddr, timestamps| {
        let [ours, theirs] =
            <[Option<Timestamp>; 2]>::map(timestamps, |timestamp| timestamp.unwrap_or_default());
        Rendered::Event(format!(
            "GET key: {key} value: {value} obtido do servidor {server}, \
             meu timestamp {ours} e do servidor {theirs}"
        ))
    };
    match event {
        Event::PutOk(done) => {
            let value = match ask {
                Ask::Put { value, .. } => escape(value),
                Ask::Get { .. } => escape(b""),
            };
            Rendered::Event(format!(
                "PUT_OK key: {key} value {value} timestamp {} realizada no servidor {}",
                done.timestamp, done.server
            ))
        }
        Event::Got { found, client_timestamp, server } => match found {
            Some(Version { timestamp, value, .. }) => {
                get_line(&escape(value), server, [*client_timestamp, Some(*timestamp)])
            }
            None => get_line(&"NULL", server, [*client_timestamp, None]),
        },
        Event::TryOtherServerOrLater { client_timestamp, timestamp, server } => {
            get_line(&"TRY_OTHER_SERVER_OR_LATER", server, [*client_timestamp, *timestamp])
        }
        Event::Unreachable(failure) => Rendered::Remark(format!(
            "Servidor {} inacessível: {}.",
            failure.server,
            explain_reason(&failure.reason)
        )),
        Event::Failed(error) => {
            Rendered::Remark(format!("{name} key: {key} falhou: {}", explain(error)))
        }
    }
}

/// One sentence in the console's language for the errors its user can do something about.
pub(super) fn explain(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { servers, effect } => {
            let why = match servers.iter().all(|failure| is_misdirected(&failure.reason)) {
                true => {
                    "nenhum destes endereços é de um servidor do acervo; faça INIT com os certos"
                }
                false => "nenhum servidor pôde ser alcançado; tente mais tarde",
            };
            format!("{why}{}.", known(*effect))
        }
        ClientError::TimedOut { timeout, last, effect } => {
            format!("sem resposta em {timeout:?} ({}){}.", explain_last(last), known(*effect))
        }
        ClientError::NoMajority { server, message } => explain_no_majority(*server, message),
        ClientError::Unconfirmed { server, effect: Effect::Done, .. } => {
            format!("o PUT teve efeito, diz {server}, mas nem todos os servidores o confirmaram.")
        }
        ClientError::Unconfirmed { server, effect, message } => {
            let reach = explain_reach(message).map_or(String::new(), |reach| format!(", {reach}"));
            format!(
                "sem confirmação de {server}{reach}{}; leia a chave antes de repetir.",
                known(Some(*effect))
            )
        }
        ClientError::Unavailable { last, effect } => {
            format!("nenhum servidor pôde atender ({}){}.", explain_last(last), known(*effect))
        }
        ClientError::StaleRequest { server, effect, .. } => {
            format!("{server} não conhece mais este cliente{}.", known(Some(*effect)))
        }
        ClientError::DiskFull { .. } => {
            "um disco do grupo está quase cheio e nada foi gravado; libere espaço ou remova chaves."
                .to_owned()
        }
        ClientError::KeyEmpty => "A chave não pode ser vazia.".to_owned(),
        ClientError::KeyTooLong(length) => {
            format!("Uma chave de {length} bytes é longa demais: são no máximo {KEY_BYTES_MAX}.")
        }
        ClientError::ValueTooLong(length) => {
            format!("Um valor de {length} bytes é longo demais: são no máximo {VALUE_BYTES_MAX}.")
        }
        other => format!("\"{other}\"."),
    }
}

/// Why nobody has ordered a PUT, of which nothing was done.
fn explain_no_majority(server: SocketAddr, message: &str) -> String {
    let reach = explain_reach(message);
    let reach = reach.map_or(String::new(), |reach| format!(": {reach}"));
    let first =
        message.split_once("it begins with ").and_then(|(_, rest)| rest.split_once(", which"));
    if let Some((first, _)) = first {
        return format!(
            "o grupo ainda não começou{reach}, mas falta {first}, com que ele começa, e nada foi \
             feito; inicie-o e tente de novo."
        );
    }
    if message.contains("has not begun") || message.contains("no leader can be elected") {
        return format!(
            "o grupo não pode eleger um líder{reach}, e nada foi feito; o que falta diz 'acervo \
             status'."
        );
    }
    if message.contains("no leader took") {
        return format!(
            "nenhum líder aceitou o PUT a tempo{reach}, e nada foi feito; tente de novo."
        );
    }
    format!("sem maioria{reach}, diz {server}, e nada foi feito; inicie os outros e tente de novo.")
}

/// The clause that says what is known of a PUT's effect.
fn known(effect: Option<Effect>) -> &'static str {
    match effect {
        None => "",
        Some(Effect::NotDone) => "; nada foi gravado",
        Some(Effect::MayBeDone) => "; o PUT pode ter tido efeito",
        Some(Effect::Done) => "; o PUT teve efeito",
    }
}

/// The last obstacle of a request, in the console's language: an address and what is wrong with it,
/// or a reason of this client.
fn explain_last(last: &str) -> String {
    let (server, rest) = last.split_once([' ', ':']).unwrap_or((last, ""));
    let server = server.trim_end_matches(':');
    let rest = rest.trim_start_matches([':', ' ']);
    if server.parse::<SocketAddr>().is_err() {
        return match last {
            "earlier requests are not answered" => "pedidos anteriores esperam resposta",
            "too many requests of this client are under way" => "há pedidos demais em andamento",
            "an earlier write of this client is not answered" => "um PUT anterior espera resposta",
            _ => "nenhum respondeu",
        }
        .to_owned();
    }
    let explained = match rest {
        "had not answered yet" => "ainda não respondeu".to_owned(),
        "has not yet applied what this client has seen" => {
            "ainda não tem o que este cliente já viu".to_owned()
        }
        _ => explain_reason(rest),
    };
    // A server's own sentence is in English.
    match (explained.starts_with('"'), explain_reach(rest)) {
        (true, Some(reach)) => format!("{server} não pode atender agora: {reach}"),
        (true, None) => format!("{server} não pode atender agora"),
        (false, _) => format!("{server}: {explained}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::client::{PutOk, ServerFailure};

    #[test]
    fn a_put_that_fails_says_what_is_known_of_its_effect_in_one_language() {
        let server: SocketAddr = "127.0.0.1:10098".parse().unwrap();
        let put = Ask::Put { key: "k".into(), value: "v".into() };
        let silent = ServerFailure { server, reason: "no answer within 200ms".to_owned() };
        let message = "no majority: 1 of 3 servers answer".to_owned();
        let last = format!("{server}: this server is stopping: ask another one");
        for (effect, known) in [
            (Effect::NotDone, "nada foi gravado"),
            (Effect::MayBeDone, "o PUT pode ter tido efeito"),
            (Effect::Done, "o PUT teve efeito"),
        ] {
            let timeout = Duration::from_secs(60);
            for error in [
                ClientError::Unreachable { servers: vec![silent.clone()], effect: Some(effect) },
                ClientError::Unavailable { last: last.clone(), effect: Some(effect) },
                ClientError::TimedOut { timeout, last: last.clone(), effect: Some(effect) },
                ClientError::StaleRequest { server, message: message.clone(), effect },
            ] {
                let Rendered::Remark(line) = render(&put, &Event::Failed(error.clone())) else {
                    panic!("{error} is a remark")
                };
                assert!(line.contains(known), "{line}");
                assert!(!line.contains('"'), "{line}");
            }
        }
        let reason = "found there: a web server; expected: a server of an acervo store".to_owned();
        let servers = vec![ServerFailure { server, reason }];
        let line = explain(&ClientError::Unreachable { servers, effect: Some(Effect::NotDone) });
        assert!(line.contains("nenhum destes endereços é de um servidor do acervo"), "{line}");
        let unconfirmed = ClientError::Unconfirmed { server, message, effect: Effect::MayBeDone };
        assert_eq!(
            explain(&unconfirmed),
            "sem confirmação de 127.0.0.1:10098, 1 de 3 servidores responde; o PUT pode ter tido \
             efeito; leia a chave antes de repetir."
        );
        let no_majority = |message: &str| {
            explain(&ClientError::NoMajority { server, message: message.to_owned() })
        };
        for (message, said) in [
            (
                "no majority: 1 of 3 servers answer and 2 are needed: nothing was done; start the \
                 others",
                "sem maioria: 1 de 3 servidores responde, diz 127.0.0.1:10098, e nada foi feito; \
                 inicie os outros e tente de novo.",
            ),
            (
                "nothing was done: 2 of 3 servers answer, but the group has not begun, because it \
                 begins with 127.0.0.1:9, which has not been up: start that one",
                "o grupo ainda não começou: 2 de 3 servidores respondem, mas falta 127.0.0.1:9, \
                 com que ele começa, e nada foi feito; inicie-o e tente de novo.",
            ),
            (
                "no leader took the write in time although 3 of 3 servers answer: nothing was \
                 done; try again",
                "nenhum líder aceitou o PUT a tempo: 3 de 3 servidores respondem, e nada foi \
                 feito; tente de novo.",
            ),
        ] {
            assert_eq!(no_majority(message), said);
        }
    }

    #[test]
    fn the_lines_of_the_specification_whole() {
        let server: SocketAddr = "127.0.0.1:10098".parse().unwrap();
        let put = Ask::Put { key: "k\n".into(), value: "v".into() };
        let get = Ask::Get { key: "k".into() };
        let timestamp = Timestamp(9);
        let event = |line: &str| Rendered::Event(line.to_owned());
        assert_eq!(
            render(&put, &Event::PutOk(PutOk { timestamp, server })),
            event(r"PUT_OK key: k\x0a value v timestamp 9 realizada no servidor 127.0.0.1:10098")
        );
        let client_timestamp = Some(Timestamp(5));
        let found = Some(Version { timestamp, value: Bytes::from("v"), facts: None });
        assert_eq!(
            render(&get, &Event::Got { found, client_timestamp, server }),
            event(
                "GET key: k value: v obtido do servidor 127.0.0.1:10098, \
                 meu timestamp 5 e do servidor 9"
            )
        );
        let none = Event::Got { found: None, client_timestamp, server };
        assert_eq!(
            render(&get, &none),
            event(
                "GET key: k value: NULL obtido do servidor 127.0.0.1:10098, \
                 meu timestamp 5 e do servidor 0"
            )
        );
        let timestamp = Some(Timestamp(3));
        assert_eq!(
            render(&get, &Event::TryOtherServerOrLater { client_timestamp, timestamp, server }),
            event(
                "GET key: k value: TRY_OTHER_SERVER_OR_LATER obtido do servidor \
                 127.0.0.1:10098, meu timestamp 5 e do servidor 3"
            )
        );
        let failure = ServerFailure { server, reason: "connection refused".to_owned() };
        assert_eq!(
            render(&get, &Event::Unreachable(failure)),
            Rendered::Remark("Servidor 127.0.0.1:10098 inacessível: conexão recusada.".to_owned())
        );
    }
}
