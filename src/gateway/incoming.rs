//! The gateway's connections: how many, and how long they may stay silent before they have said what
//! they are.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::limits;

/// One client's connection. It counts as long as it is open.
pub(super) struct Connection {
    stream: TcpStream,
    /// Runs until the first byte has come.
    handshake: Option<Pin<Box<Sleep>>>,
    /// Runs from our half's end until the client has ended its own half.
    lingering: Option<Pin<Box<Sleep>>>,
    _room: OwnedSemaphorePermit,
}

/// Accepts connections for ever, within [`limits::GATEWAY_CONNECTIONS_MAX`].
pub(super) fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(limits::GATEWAY_CONNECTIONS_MAX));
    stream::unfold((listener, room), |(listener, room)| async {
        let connection = accept(&listener, &room).await;
        Some((Ok(connection), (listener, room)))
    })
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Connection {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no more files: those who have a connection go on meanwhile.
                log::warn!("cannot accept a connection: {error}");
                sleep(limits::ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            let most = limits::GATEWAY_CONNECTIONS_MAX;
            log::warn!("{peer} is turned away: {most} connections are open");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!("{peer} left at once: {error}");
            continue;
        }
        let handshake = Some(Box::pin(sleep(limits::HANDSHAKE_TIMEOUT)));
        return Connection { stream, handshake, lingering: None, _room: permit };
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match (&read, &mut self.handshake) {
            (Poll::Ready(_), handshake) => *handshake = None,
            (Poll::Pending, Some(handshake)) => {
                if handshake.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            (Poll::Pending, None) => {}
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
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends our half and reads on until the client has ended its own, or for
    /// [`limits::GATEWAY_LINGER`]. A socket that is closed with unread bytes resets its connection,
    /// and a reset takes from the client what it had received and not read yet: the end of a stream.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Connection { stream, lingering, .. } = &mut *self;
        let lingering = match lingering {
            Some(lingering) => lingering,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                lingering.insert(Box::pin(sleep(limits::GATEWAY_LINGER)))
            }
        };
        // Before anything is read, so that a client that goes on sending does not put it off.
        if lingering.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut discarded = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
