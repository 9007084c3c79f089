//! Requests whose answers come later, for a console that stays usable meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;

use super::attempts::Verdict;
use super::call::Retry;
use super::error::{ClientError, ServerFailure};
use super::reads::Read;
use super::sequence::Gate;
use super::{Client, PutOk, check_key, check_value};
use crate::model::Timestamp;

/// A request of the interactive console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Store a new newest version of a key.
    Put {
        /// The key, of 1 to 4,096 bytes.
        key: Bytes,
        /// The value that is stored; it may be empty.
        value: Bytes,
    },
    /// Read the newest value.
    Get {
        /// The key, of 1 to 4,096 bytes.
        key: Bytes,
    },
}

impl Ask {
    /// The key that it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            Ask::Put { key, .. } | Ask::Get { key } => key,
        }
    }
}

/// What became of an [`Ask`]: any number of [`Event::Unreachable`], then one of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A server could not be reached; another is tried, if there is one.
    Unreachable(ServerFailure),
    /// The PUT is done.
    PutOk(PutOk),
    /// The GET is answered.
    Got {
        /// The value; `None` when the key does not exist.
        value: Option<Bytes>,
        /// The last timestamp this client had seen for the key, as it was sent.
        client_timestamp: Timestamp,
        /// The server's; zero when the key does not exist.
        timestamp: Timestamp,
        /// The server that answered.
        server: SocketAddr,
    },
    /// The server that was asked has not caught up with this client.
    TryOtherServerOrLater {
        /// The last timestamp this client had seen for the key, as it was sent.
        client_timestamp: Timestamp,
        /// The server's for the key; zero for none.
        timestamp: Timestamp,
        /// The server that has not caught up.
        server: SocketAddr,
    },
    /// No server that was asked has answered it.
    Failed(ClientError),
}

impl Client {
    /// Asks one server, chosen at random, and reports through `report` on another thread. A refusal
    /// is reported, not retried; only a server that cannot be reached, or is leaving, makes the
    /// request go to the next one, and each server is asked at most once.
    ///
    /// Returns at once unless [`limits::CLIENT_SUBMITS_MAX`](crate::limits::CLIENT_SUBMITS_MAX)
    /// requests are waiting for their answers; then it waits for one of them.
    ///
    /// # Errors
    /// A key or value no server takes, too many requests for the whole request time, or no thread.
    pub fn submit(
        &self,
        ask: Ask,
        mut report: impl FnMut(Event) + Send + 'static,
    ) -> Result<(), ClientError> {
        match &ask {
            Ask::Put { key, value } => check_key(key).and_then(|_| check_value(value)).map(drop)?,
            Ask::Get { key } => check_key(key).map(drop)?,
        }
        let permit = Gate::enter(Arc::clone(&self.inner.submits), self.inner.deadline())
            .ok_or_else(|| self.inner.timed_out("earlier requests are not answered"))?;
        let client = self.clone();
        let asking = move || {
            let event = client.ask(ask, &mut report).unwrap_or_else(Event::Failed);
            report(event);
            drop(permit);
        };
        let started = thread::Builder::new().name("acervo-client-ask".to_owned()).spawn(asking);
        started.map(drop).map_err(|error| ClientError::Thread(error.to_string()))
    }

    fn ask(&self, ask: Ask, report: &mut impl FnMut(Event)) -> Result<Event, ClientError> {
        let mut unreachable = |failure: &ServerFailure| report(Event::Unreachable(failure.clone()));
        let retry = Retry::Console(&mut unreachable);
        let key = match ask {
            Ask::Put { key, value } => {
                return self.inner.put(key, value, retry).map(Event::PutOk);
            }
            Ask::Get { key } => key,
        };
        self.inner.read(key, false, retry, |server, sent, read| {
            let client_timestamp = sent.key;
            Verdict::Done(match read {
                Read::Answer { value, timestamp } => {
                    Event::Got { value, client_timestamp, timestamp, server }
                }
                Read::Behind { timestamp } => {
                    Event::TryOtherServerOrLater { client_timestamp, timestamp, server }
                }
            })
        })
    }
}
