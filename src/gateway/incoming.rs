//! The gateway's connections: how long they may take to say what they want, and how they end.
//!
//! A connection has a few seconds for the HTTP/2 preface and its settings, and longer for a
//! request. When there is too little for all, one of them gives way (`accounting`). Whether it is
//! to end is looked at whenever it is read *or written*: HTTP/2 reads nothing while it cannot
//! write, so that a client that takes nothing from its socket would otherwise outlive every time
//! and every shortage.
//!
//! A read can bring as many calls as a connection may have, each of which takes some twenty
//! kilobytes before anybody has looked at whether there is a place for it. So only a few reads may
//! be ahead of that ([`Reads`]): else a thousand connections that call at the same moment would be
//! read one after the other, and answered afterwards. Whoever has made the gateway work least is
//! read first (`turns`).
//!
//! Of one connection little is read at once, and nothing more before the calls have taken that:
//! HTTP/2 ends a connection of whose small messages too many wait, and a client that streams many
//! does not know how fast they are taken.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use super::accounting::{Account, AccountLimits, Accounts};
use super::turns::Reads;
use crate::limits;

/// Bytes read from a connection in one turn. HTTP/2 (`h2`) counts what each small frame of data
/// falls short of 256 bytes, until its call has taken it, and ends the connection, with all of its
/// calls, when that comes to half of the connection's window.
const GATEWAY_READ_BYTES_MAX: usize = 2 * 1024;
/// A frame of data with the shortest message of the interface that is not refused: the frame's
/// header, the message's, and a key of one byte.
const SMALLEST_DATA_FRAME_BYTES: usize = 9 + 5 + 3;
const _: () = assert!(
    GATEWAY_READ_BYTES_MAX.div_ceil(SMALLEST_DATA_FRAME_BYTES) * (256 - 8)
        < limits::GATEWAY_CONNECTION_WINDOW_BYTES as usize / 2
);
/// A connection has so long from its HTTP/2 settings to its first request.
const GATEWAY_FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection that the gateway has ended waits for its client to end it too: some round
/// trips of the slowest network, and a fifth of `limits::SHUTDOWN_GRACE`, so that a silent client
/// does not make a stop look like one that left calls without an answer.
const GATEWAY_LINGER: Duration = Duration::from_secs(1);

/// A connection that has been quiet for this long is asked for by the system, and given up when
/// nothing answers for as long again.
const GATEWAY_KEEP_ALIVE_AFTER: Duration = Duration::from_secs(20);
/// A quiet gRPC connection that does not answer a ping within this time is closed.
pub(super) const GATEWAY_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A client that takes nothing from its socket for this long, while the gateway has something to
/// write, is given up: as long as one that does not answer a ping.
const GATEWAY_WRITE_TIMEOUT: Duration = GATEWAY_PING_TIMEOUT;

/// The preface of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// That, and the header of the settings that follow it.
const OPENING_BYTES: usize = PREFACE.len() + 9;
/// Bytes of the head of an HTTP/1.1 request: twice what one of HTTP/2 may have, which names things
/// in fewer. The library takes some hundred kilobytes, which nobody would be charged for.
const GATEWAY_HEAD_BYTES_MAX: usize = 16 * 1024;

/// One client's connection. It counts as long as it is open.
pub(super) struct Connection {
    stream: Arc<TcpStream>,
    /// Bytes received so far, as far as they matter.
    opening_bytes: usize,
    /// They are no preface of HTTP/2.
    is_http1: bool,
    /// Runs until the opening, and then the first request, has come.
    patience: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes nothing of what is to be written, for `write_timeout`.
    blocked: Option<Pin<Box<Sleep>>>,
    write_timeout: Duration,
    reads: Reads,
    /// Its place among those that wait for a turn to read, if it has one.
    read_place: Option<u64>,
    /// Since when it waits for one: time that is the gateway's own.
    waits_since: Option<tokio::time::Instant>,
    /// What it has read last has not been dealt with yet.
    is_ahead: Arc<AtomicBool>,
    /// Runs from our half's end until the client has ended its own half.
    lingering: Option<Pin<Box<Sleep>>>,
    account: Account,
}

/// Accepts connections for ever, so many at once.
pub(super) fn connections(
    listener: TcpListener,
    account_limits: AccountLimits,
) -> impl Stream<Item = io::Result<Connection>> {
    let shared = (Accounts::new(account_limits), Reads::new(limits::GATEWAY_READS_MAX));
    stream::unfold((listener, shared), |(listener, shared)| async move {
        let connection = accept(&listener, &shared.0, &shared.1).await;
        Some((Ok(connection), (listener, shared)))
    })
}

async fn accept(listener: &TcpListener, accounts: &Accounts, reads: &Reads) -> Connection {
    loop {
        let (stream, address): (TcpStream, SocketAddr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no more files: those who have a connection go on meanwhile.
                log::warn!("cannot accept a connection: {error}");
                sleep(limits::ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let Some(account) = accounts.open(address.ip()) else {
            log::warn!("{address} is turned away: every connection there may be is in use");
            continue;
        };
        if let Err(error) = watch_over(&stream) {
            log::debug!("a client at {address} that is gone will be noticed late: {error}");
        }
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!("{address} left at once: {error}");
            continue;
        }
        let stream = Arc::new(stream);
        account.is_of(&stream);
        // It has not been read yet.
        account.waits_for_its_turn(true);
        let patience = Some(Box::pin(sleep(limits::HANDSHAKE_TIMEOUT)));
        return Connection {
            stream,
            opening_bytes: 0,
            is_http1: false,
            patience,
            blocked: None,
            write_timeout: GATEWAY_WRITE_TIMEOUT,
            reads: reads.clone(),
            read_place: None,
            waits_since: None,
            is_ahead: Arc::default(),
            lingering: None,
            account,
        };
    }
}

/// Has the system ask a quiet client's machine whether it is there. HTTP/2 asks clients by itself;
/// HTTP/1.1 does not, and one that has vanished while it waits for a lock would be waited for.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, GATEWAY_KEEP_ALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, GATEWAY_KEEP_ALIVE_AFTER / 2)?;
    Ok(sockopt::set_tcp_keepcnt(stream, 2)?)
}

impl Connected for Connection {
    type ConnectInfo = Account;

    fn connect_info(&self) -> Account {
        self.account.clone()
    }
}

impl Connection {
    /// Why the connection is to end, if it is. Wakes the task when it may have become so.
    fn end(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        if self.account.is_displaced(cx.waker()) {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "it makes room"));
        }
        if self.account.has_called() {
            self.patience = None;
        }
        // Time in which it is not read is the gateway's own.
        let patience = self.patience.as_mut().filter(|_| self.read_place.is_none());
        let timers = [patience, self.blocked.as_mut()];
        let is_late = timers.into_iter().flatten().any(|timer| timer.as_mut().poll(cx).is_ready());
        is_late.then(|| io::ErrorKind::TimedOut.into())
    }

    /// What came of writing, unless the connection is to end.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(_) => self.blocked = None,
            Poll::Pending => {
                let write_timeout = self.write_timeout;
                self.blocked.get_or_insert_with(|| Box::pin(sleep(write_timeout)));
            }
        }
        match self.end(cx) {
            Some(error) => Poll::Ready(Err(error)),
            None => result,
        }
    }

    /// Bytes have come. Returns whether they are too many of the head of a request.
    fn received(&mut self, bytes: &[u8]) -> bool {
        let expected = PREFACE.get(self.opening_bytes..).unwrap_or_default();
        self.is_http1 |= bytes.iter().zip(expected).any(|(came, right)| came != right);
        let head_bytes = self.account.received(bytes.len());
        self.opened(bytes.len());
        self.is_http1 && head_bytes > GATEWAY_HEAD_BYTES_MAX
    }

    /// The first request has its time from the opening on.
    fn opened(&mut self, bytes: usize) {
        if self.opening_bytes >= OPENING_BYTES {
            return;
        }
        self.opening_bytes += bytes;
        if self.opening_bytes >= OPENING_BYTES
            && let Some(patience) = &mut self.patience
        {
            patience.as_mut().reset(tokio::time::Instant::now() + GATEWAY_FIRST_REQUEST_TIMEOUT);
        }
    }
}

/// Reads from a connection that is shared with its account.
fn poll_read(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        match stream.try_read(buffer.initialize_unfilled()) {
            Ok(bytes) => {
                buffer.advance(bytes);
                return Poll::Ready(Ok(()));
            }
            // It was not ready after all, and is waited for anew.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Writes to one likewise.
fn poll_write(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    write: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match write(stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reads.leave(self.read_place);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.end(cx) {
            return Poll::Ready(Err(error));
        }
        let Connection {
            stream, reads, read_place, is_ahead, account, waits_since, patience, ..
        } = &mut *self;
        // Without a turn: who has nothing to read is in nobody's way.
        if read_place.is_none() && stream.poll_read_ready(cx).is_pending() {
            account.waits_for_its_turn(false);
            return Poll::Pending;
        }
        let may_read = reads.take(read_place, account.usage(), is_ahead, cx.waker());
        account.waits_for_its_turn(!may_read);
        if !may_read {
            waits_since.get_or_insert_with(tokio::time::Instant::now);
            return Poll::Pending;
        }
        if let (Some(since), Some(patience)) = (waits_since.take(), patience) {
            let deadline = patience.deadline() + since.elapsed();
            patience.as_mut().reset(deadline);
        }
        let most = buffer.remaining().min(GATEWAY_READ_BYTES_MAX);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        let read = poll_read(stream, cx, &mut part);
        let bytes = part.filled().len();
        match bytes {
            0 => reads.give_back(),
            _ => {
                account.usage().add(bytes);
                reads.pass_on(bytes, is_ahead);
            }
        }
        let begin = buffer.filled().len();
        buffer.advance(bytes);
        if self.received(&buffer.filled()[begin..]) {
            let error = "the head of a request is too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        if read.is_pending()
            && let Some(error) = self.end(cx)
        {
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = poll_write(&self.stream, cx, |stream| stream.try_write(bytes));
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = poll_write(&self.stream, cx, |stream| stream.try_write_vectored(pieces));
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has nothing to flush, so this says nothing about whether its client reads.
        match self.end(cx) {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Ends our half and reads on until the client has ended its own, or for
    /// [`GATEWAY_LINGER`]. A socket that is closed with unread bytes resets its connection,
    /// and a reset takes from the client what it had received and not read yet: the end of a
    /// stream.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Connection { stream, lingering, .. } = &mut *self;
        let lingering = match lingering {
            Some(lingering) => lingering,
            None => {
                match rustix::net::shutdown(&**stream, Shutdown::Write) {
                    // The client has gone.
                    Ok(()) | Err(Errno::NOTCONN) => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
                lingering.insert(Box::pin(sleep(GATEWAY_LINGER)))
            }
        };
        // Before anything is read, so that a client that goes on sending does not put it off.
        if lingering.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut discarded = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(poll_read(stream, cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::accounting::Pool;
    use super::super::accounting::tests::AMPLE;
    use super::*;

    /// A connection whose client reads nothing, written to until it takes no more.
    async fn blocked(accounts: &Accounts, write_timeout: Duration) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connection = accept(&listener, accounts, &Reads::new(1)).await;
        connection.write_timeout = write_timeout;
        drop(connection.account.begin(Pool::Store));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let piece = [0; 1 << 16];
        while Pin::new(&mut connection).poll_write(&mut cx, &piece).is_ready() {
            tokio::task::yield_now().await;
        }
        (connection, client)
    }

    /// What a write ends with.
    async fn write(connection: &mut Connection) -> io::ErrorKind {
        loop {
            let write =
                |cx: &mut Context<'_>| Pin::new(&mut *connection).poll_write(cx, &[0; 1 << 16]);
            // The system may have found room for a little more.
            if let Err(error) = std::future::poll_fn(write).await {
                return error.kind();
            }
        }
    }

    #[test]
    fn who_reads_nothing_gives_way_and_is_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limits = AccountLimits { connections_max: 1, stalled_min: Duration::ZERO, ..AMPLE };
            let accounts = Accounts::new(limits);
            let (mut connection, _client) = blocked(&accounts, Duration::from_secs(3600)).await;
            let newcomer = async {
                tokio::task::yield_now().await;
                accounts.open([127, 0, 0, 1].into()).unwrap()
            };
            let (ended, _account) = tokio::join!(write(&mut connection), newcomer);
            assert_eq!(ended, io::ErrorKind::ConnectionAborted);

            let accounts = Accounts::new(AMPLE);
            let (mut connection, _client) = blocked(&accounts, Duration::from_millis(1)).await;
            assert_eq!(write(&mut connection).await, io::ErrorKind::TimedOut);
        });
    }
}
