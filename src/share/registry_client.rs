//! One blocking connection to a registry: a question, then its answer.

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

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryCallError {
    /// It cannot be reached, or who listens there does not greet as a registry does.
    #[error("registry {address} cannot be reached: {reason}")]
    Unreachable {
        /// Who.
        address: SocketAddr,
        /// Why, in a few words.
        reason: String,
    },
    /// It was reached, and no whole answer came from it.
    #[error("registry {address} was reached, but does not answer: {reason}")]
    Unanswered {
        /// Where the registry is that took the connection.
        address: SocketAddr,
        /// Why, in a few words.
        reason: String,
    },
    /// It answers, and says no.
    #[error("registry {address} says: {message}")]
    Declined {
        /// Who.
        address: SocketAddr,
        /// Its sentence, escaped.
        message: String,
    },
    /// It refuses the connection, which it ends with that.
    #[error("{address} refuses: {reason}")]
    Refused {
        /// Who.
        address: SocketAddr,
        /// Its sentence, escaped.
        reason: String,
    },
    /// Somebody else has joined there under this peer's id, and is alive.
    #[error(
        "another connection has joined at {0} under this peer's id: if this folder is shared twice, stop one of them"
    )]
    IdTaken(SocketAddr),
    /// It was reached, and what it says is not what a registry says.
    #[error(
        "{address} does not answer as a registry does: {reason}; check the address, or ask another registry"
    )]
    Wrong {
        /// Who.
        address: SocketAddr,
        /// What is wrong with it, escaped.
        reason: String,
    },
    /// There is nobody to ask.
    #[error("no registry was named")]
    Nobody,
    /// The one who asks is stopping.
    #[error("this peer is stopping")]
    Stopping,
    /// The registry does not know this peer, or not any more.
    #[error("the registry {0} does not know this peer")]
    NotJoined(SocketAddr),
    /// It took this peer in, and did not know it a moment later.
    #[error(
        "the registry {0} took this peer in and did not know it soon after: if there are several behind that \
         address, they have to share a store"
    )]
    Forgotten(SocketAddr),
}

/// A connection with one question under way at most.
pub struct RegistryClient {
    address: SocketAddr,
    stream: TcpStream,
    reader: MessageReader,
    next_id: u64,
}

impl RegistryClient {
    /// Dials and greets before `deadline`.
    ///
    /// # Errors
    /// [`RegistryCallError::Unreachable`], [`RegistryCallError::Unanswered`], [`RegistryCallError::Refused`].
    pub fn open(
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<RegistryClient, RegistryCallError> {
        let deadline = deadline.min(Instant::now() + limits::CLIENT_CONNECT_TIMEOUT);
        let dialled = dial(address, HelloRole::Share, deadline);
        let (stream, mut reader, _) =
            dialled.map_err(|failure| match failure.reason.strip_prefix(REFUSED) {
                Some(reason) => RegistryCallError::Refused { address, reason: reason.to_owned() },
                None if failure.reason == NO_GREETING => unanswered(address, NOT_IN_TIME),
                None => unreachable(address, failure),
            })?;
        reader.set_frame_bytes_max(limits::REGISTRY_FRAME_BYTES_MAX);
        Ok(RegistryClient { address, stream, reader, next_id: 1 })
    }

    /// As [`RegistryClient::open`], to the first of several that can be reached.
    ///
    /// # Errors
    /// What was wrong with the last one.
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

    /// Asks the first of several registries that answers, and gives its connection as well. The next one is asked
    /// when one has failed, or has not answered for [`REGISTRY_HEDGE_AFTER`](limits::REGISTRY_HEDGE_AFTER): so one that
    /// hangs costs no more than that, whether it was reached or not.
    ///
    /// # Errors
    /// What one of them said that was reached; else what was wrong with the last one.
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
                    // Another one may have been sooner.
                    let _ = answer.send(asked);
                };
                // It ends with its answer, or at the deadline.
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

    /// Who is at the other end.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks. What the registry has no room for at the moment is asked again, until `deadline`.
    ///
    /// # Errors
    /// See [`RegistryCallError`]. After [`RegistryCallError::Unanswered`], [`RegistryCallError::Refused`] and [`RegistryCallError::Wrong`] the
    /// connection is of no more use.
    pub fn ask(
        &mut self,
        body: &RegistryRequest,
        deadline: Instant,
    ) -> Result<RegistryReply, RegistryCallError> {
        self.ask_reporting(body, deadline, &mut |_| {})
    }

    /// As [`RegistryClient::ask`]; `tell` is called with the first refusal that is waited for.
    ///
    /// # Errors
    /// As there.
    pub fn ask_reporting(
        &mut self,
        body: &RegistryRequest,
        deadline: Instant,
        tell: &mut dyn FnMut(RegistryCallError),
    ) -> Result<RegistryReply, RegistryCallError> {
        let began = Instant::now();
        let (min, max) = (limits::REGISTRY_RETRY_MIN, limits::REGISTRY_BACKOFF_MAX);
        let mut floor = Backoff::new(min, max);
        let mut is_told = false;
        // However soon a registry says to come again.
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
                    if began.elapsed() + pause >= limits::ID_TAKEN_WAIT {
                        return Err(RegistryCallError::IdTaken(self.address));
                    }
                    thread::sleep(pause);
                }
                RegistryReply::Error { message, retry_after_ms } => {
                    let declined = RegistryCallError::Declined {
                        address: self.address,
                        message: sentence(&message),
                    };
                    let pause = pause(retry_after_ms);
                    if retry_after_ms == 0 || Instant::now() + pause >= deadline {
                        return Err(declined);
                    }
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

    /// Whether the other side has closed the connection. Never waits.
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

    /// Sends a question and reads until its answer has come.
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

    /// What it says is not what a registry says.
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

/// Whether this is an answer to that.
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

/// A list that a registry tells in pages, as far as it has come: it ends, whatever the registry says.
pub struct PagedList<K> {
    /// Where the next page begins.
    after: Option<K>,
    rows: usize,
    rows_max: usize,
    /// For how long the registry has been waited for.
    waited: Duration,
}

impl<K: Ord + Clone> PagedList<K> {
    /// Of no more rows than a registry keeps.
    pub fn new(rows_max: usize) -> PagedList<K> {
        PagedList { after: None, rows: 0, rows_max, waited: Duration::ZERO }
    }

    /// Asks the first of several registries that answers for the first page; the next ones are to come over the same
    /// connection.
    ///
    /// # Errors
    /// As [`RegistryClient::ask_any`].
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

    /// Asks for the next page, with where it is to begin; pages of few rows have less time for each.
    ///
    /// # Errors
    /// See [`RegistryCallError`].
    pub fn next_page(
        &mut self,
        line: &mut RegistryClient,
        request: impl FnOnce(Option<K>) -> RegistryRequest,
    ) -> Result<RegistryReply, RegistryCallError> {
        let rows = u32::try_from(self.rows).unwrap_or(u32::MAX);
        let patience = limits::LIST_PATIENCE + limits::JOIN_TIME_PER_FILE * rows;
        let left = patience.saturating_sub(self.waited).min(limits::REGISTRY_CALL_TIMEOUT);
        let began = Instant::now();
        let asked = line.ask(&request(self.after.clone()), began + left);
        self.waited += began.elapsed();
        asked
    }

    /// Takes note of a page by its keys; whether there is another one.
    ///
    /// # Errors
    /// The page does not go on where the one before has ended, or there are too many.
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
            // Of one name there may be several contents, all on one page.
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
