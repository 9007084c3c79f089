//! A blocking connection to a registry, and paged lists read over it.
//!
//! A connection carries one request at a time. Each request has a deadline, within which a request
//! that the registry has no room for is repeated with growing pauses. [`RegistryClient::ask_any`]
//! asks several registries and takes the first answer.
//!
//! Rule: a registry is not trusted. An answer of the wrong kind, an endless list and a frame that
//! is too long end the connection with an error.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rand::Rng;

use crate::client::dial::{dial, left};
use crate::client::greeting::{Failure, NO_GREETING, NOT_IN_TIME, REFUSED, TIMED_OUT};
use crate::client::transport::MessageReader;
use crate::limits;
use crate::net::backoff::Backoff;
use crate::text::sentence;
use crate::wire::codec;
use crate::wire::message::{HelloRole, Message};
use crate::wire::share::{RegistryReply, RegistryRequest};

/// How long a JOIN is repeated over one connection while its id counts as taken: the other
/// connection may be the same peer's, which has just ended.
const ID_TAKEN_RETRY_FOR: Duration = Duration::from_secs(3);
/// How long a whole list may take to arrive, in addition to
/// [`JOIN_TIME_PER_FILE`](limits::JOIN_TIME_PER_FILE) for each row that has come.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a registry has not answered a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryCallError {
    /// No connection came about, or the other side does not send WELCOME.
    #[error("registry {address} cannot be reached: {reason}")]
    Unreachable {
        address: SocketAddr,
        /// The cause as a clause without a final stop.
        reason: String,
    },
    /// The connection was accepted, but no complete answer arrived.
    #[error("registry {address} was reached, but does not answer: {reason}")]
    Unanswered {
        address: SocketAddr,
        /// The cause as a clause without a final stop.
        reason: String,
    },
    /// The registry answered with an error. The connection can be used further.
    #[error("registry {address} says: {message}")]
    Declined {
        address: SocketAddr,
        /// The registry's sentence, escaped for a terminal.
        message: String,
    },
    /// The registry answered REFUSED, after which it closes the connection.
    #[error("{address} refuses: {reason}")]
    Refused {
        address: SocketAddr,
        /// The registry's sentence, escaped for a terminal.
        reason: String,
    },
    /// Another live connection has joined at this registry under the same peer id.
    #[error(
        "another connection has joined at {0} under this peer's id: if this folder is shared \
         twice, stop one of them"
    )]
    IdTaken(SocketAddr),
    /// The answer violates the protocol.
    #[error(
        "{address} does not answer as a registry does: {reason}; check the address, or ask another \
         registry"
    )]
    Wrong {
        address: SocketAddr,
        /// The violation as a clause, escaped for a terminal.
        reason: String,
    },
    /// The list of registries is empty.
    #[error("no registry was named")]
    Nobody,
    /// The membership that was to ask is shutting down.
    #[error("this peer is stopping")]
    Stopping,
    /// The registry does not know this peer, or has forgotten it.
    #[error("the registry {0} does not know this peer")]
    NotJoined(SocketAddr),
    /// The registry accepted a JOIN and did not know the peer moments later.
    #[error(
        "the registry {0} took this peer in and did not know it soon after: if there are several \
         behind that address, they have to share a store"
    )]
    Forgotten(SocketAddr),
}

/// A connection with at most one request outstanding.
pub struct RegistryClient {
    address: SocketAddr,
    stream: TcpStream,
    reader: MessageReader,
    next_id: u64,
}

impl RegistryClient {
    /// Connects and exchanges HELLO and WELCOME. It takes no longer than until `deadline` or
    /// [`CLIENT_CONNECT_TIMEOUT`](limits::CLIENT_CONNECT_TIMEOUT), whichever is sooner.
    ///
    /// # Errors
    /// `Unreachable`, `Unanswered` or `Refused`.
    pub fn open(
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<RegistryClient, RegistryCallError> {
        let deadline = deadline.min(Instant::now() + limits::CLIENT_CONNECT_TIMEOUT);
        let dialled = dial(address, HelloRole::Share, deadline);
        let (stream, mut reader) =
            dialled.map_err(|failure| match failure.reason.strip_prefix(REFUSED) {
                Some(reason) => RegistryCallError::Refused { address, reason: reason.to_owned() },
                None if failure.reason == NO_GREETING => unanswered(address, NOT_IN_TIME),
                None => unreachable(address, failure),
            })?;
        reader.set_frame_bytes_max(limits::REGISTRY_FRAME_BYTES_MAX);
        Ok(RegistryClient { address, stream, reader, next_id: 1 })
    }

    /// Opens a connection to the first of several registries that accepts one.
    ///
    /// # Errors
    /// The error of the last registry that was tried, or `Nobody` for an empty list.
    pub fn open_any(
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> Result<RegistryClient, RegistryCallError> {
        let mut last = None;
        for address in addresses {
            match RegistryClient::open(*address, deadline) {
                Ok(line) => return Ok(line),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(RegistryCallError::Nobody))
    }

    /// Sends a request to several registries and returns the first answer with its connection. The
    /// next registry is asked when one fails or has not answered for
    /// [`REGISTRY_HEDGE_AFTER`](limits::REGISTRY_HEDGE_AFTER), so a registry that hangs delays the
    /// answer by no more than that.
    ///
    /// # Errors
    /// The error of a registry that was reached, if there is one, else that of the last one.
    pub fn ask_any(
        addresses: &[SocketAddr],
        body: &RegistryRequest,
        deadline: Instant,
    ) -> Result<(RegistryClient, RegistryReply), RegistryCallError> {
        let (answer, answered) = bounded(addresses.len().max(1));
        let mut addresses = addresses.iter();
        let (mut under_way, mut failed) = (0, RegistryCallError::Nobody);
        loop {
            if let Some(address) = addresses.next() {
                let (address, body, answer) = (*address, body.clone(), answer.clone());
                let ask = move || {
                    let asked = RegistryClient::open(address, deadline).and_then(|mut line| {
                        let reply = line.ask(&body, deadline)?;
                        Ok((line, reply))
                    });
                    // The receiver is gone if another registry was faster.
                    let _ = answer.send(asked);
                };
                // The thread ends with its answer or at the deadline.
                match thread::Builder::new().name("share-ask".to_owned()).spawn(ask) {
                    Ok(_) => under_way += 1,
                    Err(error) => failed = unreachable(address, Failure::io(&error)),
                }
            }
            let is_last = addresses.as_slice().is_empty();
            if under_way == 0 && is_last {
                return Err(failed);
            }
            let result = match is_last {
                true => answered.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => answered.recv_timeout(limits::REGISTRY_HEDGE_AFTER),
            };
            match result {
                Ok(Ok(answered)) => return Ok(answered),
                Ok(Err(error)) => {
                    under_way -= 1;
                    let none_was_reached = matches!(
                        failed,
                        RegistryCallError::Unreachable { .. } | RegistryCallError::Nobody
                    );
                    if none_was_reached || !matches!(error, RegistryCallError::Unreachable { .. }) {
                        failed = error;
                    }
                }
                Err(_) => {}
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and waits for its answer. While the registry answers that it has no room,
    /// the request is repeated until `deadline`.
    ///
    /// # Errors
    /// After `Unanswered`, `Refused` and `Wrong` the connection must not be used further.
    pub fn ask(
        &mut self,
        body: &RegistryRequest,
        deadline: Instant,
    ) -> Result<RegistryReply, RegistryCallError> {
        self.ask_reporting(body, deadline, &mut |_| {})
    }

    /// Like [`RegistryClient::ask`], and calls `tell` with the first refusal after which it waits.
    ///
    /// # Errors
    /// Those of [`RegistryClient::ask`].
    pub fn ask_reporting(
        &mut self,
        body: &RegistryRequest,
        deadline: Instant,
        tell: &mut dyn FnMut(RegistryCallError),
    ) -> Result<RegistryReply, RegistryCallError> {
        // A registry that has refused a later part has dropped those before it: all of them have to
        // be sent again.
        let is_repeatable = !matches!(body, RegistryRequest::Join { part: 1.., .. });
        let began = Instant::now();
        let (min, max) = (limits::REGISTRY_RETRY_MIN, limits::REGISTRY_BACKOFF_MAX);
        let mut floor = Backoff::new(min, max);
        let mut is_told = false;
        // At least our own back-off, however soon the registry asks us to come again.
        let mut pause = |retry_after_ms: u32| {
            let told = Duration::from_millis(u64::from(retry_after_ms));
            told.max(floor.next_wait(rand::rng().next_u64()))
        };
        loop {
            let reply = self.exchange(body.clone(), deadline)?;
            match reply {
                RegistryReply::NotJoined if !matches!(body, RegistryRequest::Join { .. }) => {
                    return Err(RegistryCallError::NotJoined(self.address));
                }
                RegistryReply::IdTaken { retry_after_ms }
                    if matches!(body, RegistryRequest::Join { .. }) =>
                {
                    let pause = pause(retry_after_ms);
                    if !is_repeatable || began.elapsed() + pause >= ID_TAKEN_RETRY_FOR {
                        return Err(RegistryCallError::IdTaken(self.address));
                    }
                    thread::sleep(pause);
                }
                RegistryReply::Error { message, retry_after_ms } => {
                    let declined = RegistryCallError::Declined {
                        address: self.address,
                        message: sentence(&message),
                    };
                    let Some(pause) = retry_after_ms
                        .filter(|_| is_repeatable)
                        .map(&mut pause)
                        .filter(|pause| Instant::now() + *pause < deadline)
                    else {
                        return Err(declined);
                    };
                    if !std::mem::replace(&mut is_told, true) {
                        tell(declined);
                    }
                    thread::sleep(pause);
                }
                reply if answers(body, &reply) => return Ok(reply),
                _ => return Err(self.wrong("it answers another question than it was asked")),
            }
        }
    }

    /// Whether the other side has closed the connection. Does not block.
    pub fn is_closed(&self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| {
            let looked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            looked
        });
        match looked {
            Ok(received) => received == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Sends one request and reads until the answer with its id has arrived.
    fn exchange(
        &mut self,
        body: RegistryRequest,
        deadline: Instant,
    ) -> Result<RegistryReply, RegistryCallError> {
        let address = self.address;
        let io_failure = |error: io::Error| unanswered_io(address, &error);
        let id = self.next_id;
        self.next_id += 1;
        self.send(&Message::Registry { id, body }, deadline)?;
        loop {
            loop {
                let message = match self.reader.next_message() {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(error) => return Err(self.wrong(&error.to_string())),
                };
                match message {
                    Message::RegistryReply { id: of, body } if of == id => return Ok(body),
                    Message::Ping { nonce } => self.send(&Message::Pong { nonce }, deadline)?,
                    Message::Pong { .. } => {}
                    Message::Refused { reason } => {
                        return Err(RegistryCallError::Refused {
                            address,
                            reason: sentence(&reason),
                        });
                    }
                    _ => return Err(self.wrong("it says what nobody has asked")),
                }
            }
            let left = left(deadline).map_err(io_failure)?;
            self.stream.set_read_timeout(Some(left)).map_err(io_failure)?;
            match self.reader.fill(&mut &self.stream) {
                Ok(0) => return Err(unanswered(address, "it closed the connection")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_failure(error)),
            }
        }
    }

    /// The error for an answer that violates the protocol.
    pub fn wrong(&self, reason: &str) -> RegistryCallError {
        RegistryCallError::Wrong { address: self.address, reason: sentence(reason) }
    }

    fn send(&mut self, message: &Message, deadline: Instant) -> Result<(), RegistryCallError> {
        let address = self.address;
        let mut frame = Vec::new();
        codec::encode(message, limits::REGISTRY_FRAME_BYTES_MAX, &mut frame)
            .map_err(|error| unreachable(address, Failure::new(error.to_string())))?;
        let io_failure = |error: io::Error| unanswered_io(address, &error);
        let left = left(deadline).map_err(io_failure)?;
        self.stream.set_write_timeout(Some(left)).map_err(io_failure)?;
        self.stream.write_all(&frame).map_err(io_failure)
    }
}

/// Whether a reply is of the kind that the request asks for.
fn answers(request: &RegistryRequest, reply: &RegistryReply) -> bool {
    match request {
        RegistryRequest::Join { .. } => matches!(reply, RegistryReply::JoinOk),
        RegistryRequest::Search { .. } | RegistryRequest::SearchContent { .. } => {
            matches!(reply, RegistryReply::Sources(_))
        }
        RegistryRequest::Update { .. }
        | RegistryRequest::Fetching { .. }
        | RegistryRequest::Fetched { .. } => matches!(reply, RegistryReply::UpdateOk),
        RegistryRequest::KeepAlive => matches!(reply, RegistryReply::AliveOk),
        RegistryRequest::Leave => matches!(reply, RegistryReply::LeaveOk),
        RegistryRequest::Peers { .. } => matches!(reply, RegistryReply::Peers { .. }),
        RegistryRequest::Files { .. } => matches!(reply, RegistryReply::Files { .. }),
    }
}

/// Reads a list that a registry sends in pages. It ends after a bounded number of rows and a
/// bounded time, whatever the registry sends.
pub struct PageReader<K> {
    /// The last key of the previous page, after which the next page begins.
    after: Option<K>,
    rows: usize,
    rows_max: usize,
    /// Time spent waiting for the registry, without the caller's own time between pages.
    waited: Duration,
}

impl<K: Ord + Clone> PageReader<K> {
    /// `rows_max` is the number of rows that a registry keeps at most.
    pub fn new(rows_max: usize) -> PageReader<K> {
        PageReader { after: None, rows: 0, rows_max, waited: Duration::ZERO }
    }

    /// Requests the first page from several registries. The further pages have to be read over the
    /// connection that it returns.
    ///
    /// # Errors
    /// Those of [`RegistryClient::ask_any`].
    pub fn first_page(
        &mut self,
        addresses: &[SocketAddr],
        request: impl FnOnce(Option<K>) -> RegistryRequest,
    ) -> Result<(RegistryClient, RegistryReply), RegistryCallError> {
        let began = Instant::now();
        let asked = RegistryClient::ask_any(
            addresses,
            &request(None),
            began + limits::REGISTRY_CALL_TIMEOUT,
        );
        self.waited += began.elapsed();
        asked
    }

    /// Requests the next page. The time allowed grows with the number of rows received, so a
    /// registry that sends pages of few rows is given up early.
    ///
    /// # Errors
    /// Those of [`RegistryClient::ask`].
    pub fn next_page(
        &mut self,
        line: &mut RegistryClient,
        request: impl FnOnce(Option<K>) -> RegistryRequest,
    ) -> Result<RegistryReply, RegistryCallError> {
        let rows = u32::try_from(self.rows).unwrap_or(u32::MAX);
        let patience = LIST_TIMEOUT + limits::JOIN_TIME_PER_FILE * rows;
        let left = patience.saturating_sub(self.waited).min(limits::REGISTRY_CALL_TIMEOUT);
        let began = Instant::now();
        let asked = line.ask(&request(self.after.clone()), began + left);
        self.waited += began.elapsed();
        asked
    }

    /// Records the keys of a page and returns whether another page follows.
    ///
    /// # Errors
    /// `Wrong`, if the keys do not continue where the previous page ended, if the page is empty
    /// although more are said to follow, or if the list has more rows than a registry keeps.
    pub fn has_next<'a>(
        &mut self,
        line: &RegistryClient,
        page: impl Iterator<Item = &'a K>,
        more: bool,
    ) -> Result<bool, RegistryCallError>
    where
        K: 'a,
    {
        let mut last: Option<&K> = None;
        let mut rows = 0;
        for key in page {
            // One name may occur several times, once for each content, but only within one page.
            let is_in_order = match (last, &self.after) {
                (Some(last), _) => key >= last,
                (None, after) => after.as_ref().is_none_or(|after| key > after),
            };
            if !is_in_order {
                return Err(
                    line.wrong("a page of its list does not go on where the last one ended")
                );
            }
            last = Some(key);
            rows += 1;
        }
        if more && rows == 0 {
            return Err(line.wrong("a page of its list is empty, and it says that more follow"));
        }
        self.rows += rows;
        if self.rows > self.rows_max {
            let max = self.rows_max;
            return Err(line.wrong(&format!("it lists more than the {max} that a registry keeps")));
        }
        self.after = last.cloned().or(self.after.take());
        Ok(more)
    }
}

fn unreachable(address: SocketAddr, failure: Failure) -> RegistryCallError {
    RegistryCallError::Unreachable { address, reason: failure.reason }
}

fn unanswered(address: SocketAddr, reason: &str) -> RegistryCallError {
    RegistryCallError::Unanswered { address, reason: reason.to_owned() }
}

fn unanswered_io(address: SocketAddr, error: &io::Error) -> RegistryCallError {
    match Failure::io(error).reason {
        reason if reason == TIMED_OUT => unanswered(address, NOT_IN_TIME),
        reason => unanswered(address, &reason),
    }
}
