//! The console lines of a server, which SPEC A6 gives exactly. Keys and values are escaped by
//! [`text::escape`](crate::text::escape).

use std::fmt;

use crate::console::ConsoleEntry;
use crate::node::{ConsoleEvent, GetAnswer};
use crate::text::escape;

/// The console of a server: lines of [`ConsoleEvent`]s on standard output.
pub type ServerConsole = crate::console::Console<ConsoleEvent>;

impl ConsoleEntry for ConsoleEvent {
    fn weight(&self) -> usize {
        match self {
            ConsoleEvent::Put { key, value, .. }
            | ConsoleEvent::Forwarding { key, value }
            | ConsoleEvent::Replication { key, value, .. } => key.len() + value.len(),
            ConsoleEvent::PutOk { key, .. } => key.len(),
            ConsoleEvent::Get { key, answer, .. } => match answer {
                GetAnswer::Value(value) => key.len() + value.len(),
                GetAnswer::Null | GetAnswer::TryOtherServerOrLater => key.len(),
            },
        }
    }
}

impl fmt::Display for ConsoleEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConsoleEvent::Put { client, key, value } => {
                write!(f, "Cliente {client} PUT key:{} value:{}.", escape(key), escape(value))
            }
            ConsoleEvent::Forwarding { key, value } => {
                write!(f, "Encaminhando PUT key:{} value:{}", escape(key), escape(value))
            }
            ConsoleEvent::Replication { key, value, timestamp } => {
                let (key, value) = (escape(key), escape(value));
                write!(f, "REPLICATION key:{key} value:{value} ts:{timestamp}.")
            }
            ConsoleEvent::PutOk { client, key, timestamp } => {
                let key = escape(key);
                write!(f, "Enviando PUT_OK ao Cliente {client} da key:{key} ts:{timestamp}.")
            }
            ConsoleEvent::Get { client, key, client_timestamp, key_timestamp, answer } => {
                let [seen, ours] = [client_timestamp, key_timestamp]
                    .map(|timestamp| timestamp.unwrap_or_default());
                write!(
                    f,
                    "Cliente {client} GET key:{} ts:{seen}. Meu ts é {ours}, portanto devolvendo ",
                    escape(key)
                )?;
                match answer {
                    GetAnswer::Value(value) => escape(value).fmt(f),
                    GetAnswer::Null => f.write_str("NULL"),
                    GetAnswer::TryOtherServerOrLater => f.write_str("TRY_OTHER_SERVER_OR_LATER"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use bytes::Bytes;
    use std::net::SocketAddr;

    fn client() -> SocketAddr {
        "127.0.0.1:51234".parse().unwrap()
    }

    fn line(event: ConsoleEvent) -> String {
        event.to_string()
    }

    fn get(answer: GetAnswer, seen: Option<i64>, ours: Option<i64>) -> ConsoleEvent {
        ConsoleEvent::Get {
            client: client(),
            key: "k".into(),
            client_timestamp: seen.map(Timestamp),
            key_timestamp: ours.map(Timestamp),
            answer,
        }
    }

    #[test]
    fn each_line_whole() {
        let (key, value) = (Bytes::from("título"), Bytes::from("Dom Casmurro"));
        let timestamp = Timestamp(1_700_000_000_000_001);
        assert_eq!(
            line(ConsoleEvent::Put { client: client(), key: key.clone(), value: value.clone() }),
            "Cliente 127.0.0.1:51234 PUT key:título value:Dom Casmurro."
        );
        assert_eq!(
            line(ConsoleEvent::Forwarding { key: key.clone(), value: value.clone() }),
            "Encaminhando PUT key:título value:Dom Casmurro"
        );
        assert_eq!(
            line(ConsoleEvent::Replication { key: key.clone(), value, timestamp }),
            "REPLICATION key:título value:Dom Casmurro ts:1700000000000001."
        );
        assert_eq!(
            line(ConsoleEvent::PutOk { client: client(), key, timestamp }),
            "Enviando PUT_OK ao Cliente 127.0.0.1:51234 da key:título ts:1700000000000001."
        );
        assert_eq!(
            line(get(GetAnswer::Value("v".into()), Some(5), Some(9))),
            "Cliente 127.0.0.1:51234 GET key:k ts:5. Meu ts é 9, portanto devolvendo v"
        );
        assert_eq!(
            line(get(GetAnswer::Null, None, None)),
            "Cliente 127.0.0.1:51234 GET key:k ts:0. Meu ts é 0, portanto devolvendo NULL"
        );
        assert_eq!(
            line(get(GetAnswer::TryOtherServerOrLater, Some(9), Some(5))),
            "Cliente 127.0.0.1:51234 GET key:k ts:9. Meu ts é 5, portanto devolvendo \
             TRY_OTHER_SERVER_OR_LATER"
        );
    }

    #[test]
    fn what_is_not_printable_is_escaped() {
        let event = ConsoleEvent::Forwarding {
            key: Bytes::from_static(b"a\nb"),
            value: Bytes::from_static(b"\xff\x1b[2J"),
        };
        assert_eq!(line(event), r"Encaminhando PUT key:a\x0ab value:\xff\x1b[2J");
    }
}
