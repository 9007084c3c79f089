//! Requests whose answers come later, for a console that stays usable meanwhile.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use bytes::Bytes;

use super::call::is_driver;
use super::core::{Report, Retry, Verdict};
use super::error::{ClientError, ServerFailure};
use super::reads::{Read, ReadOptions};
use super::sync::{lock, wait};
use super::{Client, PutOk, check_key, check_value};
use crate::model::{Timestamp, Version};

/// Lets so many through at once; one more waits.
pub(super) struct Gate {
    under_way: Mutex<usize>,
    max: usize,
    freed: Condvar,
}

/// Leave to go on; given back when dropped.
struct Permit(Arc<Gate>);

impl Gate {
    pub(super) fn new(max: usize) -> Gate {
        Gate { under_way: Mutex::new(0), max, freed: Condvar::new() }
    }

    /// Waits for a permit until `deadline`. The client's thread must not wait, so it always gets
    /// one. It asks only from within the last report of a request, and that request gives its own
    /// permit back right after.
    fn enter(self: &Arc<Gate>, deadline: Instant) -> Option<Permit> {
        let mut under_way = lock(&self.under_way);
        while *under_way >= self.max && !is_driver() {
            let left = deadline.checked_duration_since(Instant::now())?;
            under_way = wait(&self.freed, under_way, left);
        }
        *under_way += 1;
        drop(under_way);
        Some(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *lock(&self.0.under_way) -= 1;
        self.0.freed.notify_one();
    }
}

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
        /// The value with its version; `None` when the key does not exist.
        found: Option<Version>,
        /// The greatest version of the key that this client had seen when it asked.
        client_timestamp: Option<Timestamp>,
        /// The server that answered.
        server: SocketAddr,
    },
    /// The server that was asked has not caught up with this client.
    TryOtherServerOrLater {
        /// The greatest version of the key that this client had seen when it asked.
        client_timestamp: Option<Timestamp>,
        /// The version that the server has of the key.
        timestamp: Option<Timestamp>,
        /// The server that has not caught up.
        server: SocketAddr,
    },
    /// No server that was asked has answered it.
    Failed(ClientError),
}

impl Client {
    /// Asks one server, chosen at random, and reports through `report` on the client's own thread,
    /// which it must not block. A refusal is reported, not retried; only a server that cannot be
    /// reached, or is leaving, makes the request go to the next one, and each server is asked at
    /// most once.
    ///
    /// Returns at once unless 64 requests (`CLIENT_SUBMITS_MAX`) are waiting for their answers;
    /// then it waits for one of them.
    ///
    /// # Errors
    /// A key or value no server takes, too many requests for the whole request time, or no thread.
    pub fn submit(
        &self,
        ask: Ask,
        report: impl FnMut(Event) + Send + 'static,
    ) -> Result<(), ClientError> {
        match &ask {
            Ask::Put { key, value } => check_key(key).and_then(|_| check_value(value)).map(drop)?,
            Ask::Get { key } => check_key(key).map(drop)?,
        }
        let timeout = self.inner.request_timeout;
        let Some(permit) = self.inner.submits.enter(Instant::now() + timeout) else {
            let last = "earlier requests are not answered".to_owned();
            return Err(ClientError::TimedOut { timeout, last, effect: None });
        };
        let client = self.clone();
        self.inner.driver.spawn(async move {
            let report = Arc::new(Mutex::new(report));
            let unreachable = Arc::clone(&report);
            let passed_over: Report =
                Arc::new(move |failure| lock(&unreachable)(Event::Unreachable(failure)));
            let event = client.ask(ask, passed_over).await.unwrap_or_else(Event::Failed);
            lock(&report)(event);
            // What the caller has put into it may begin the next request.
            drop(report);
            drop(permit);
        })
    }

    async fn ask(&self, ask: Ask, passed_over: Report) -> Result<Event, ClientError> {
        let retry = Retry::Console(passed_over);
        let key = match ask {
            Ask::Put { key, value } => {
                return self.put_with(key, value, retry).await.map(Event::PutOk);
            }
            Ask::Get { key } => key,
        };
        let take = |server, sent: super::seen::Floors, read| {
            let client_timestamp = sent.key;
            Verdict::Done(match read {
                Read::Answer(found) => Event::Got { found, client_timestamp, server },
                Read::Behind { timestamp } => {
                    Event::TryOtherServerOrLater { client_timestamp, timestamp, server }
                }
            })
        };
        self.read_with(key, ReadOptions::default(), retry, take).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_more_than_the_gate_allows_waits() {
        let soon = || Instant::now() + Duration::from_secs(60);
        let gate = Arc::new(Gate::new(1));
        let permit = gate.enter(soon()).unwrap();
        assert!(gate.enter(Instant::now()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter(soon()).is_some());
            drop(permit);
            assert!(waiting.join().unwrap());
        });
        assert!(gate.enter(Instant::now()).is_some());
    }
}
