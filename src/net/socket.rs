//! The sockets of connections: of TCP, and pairs of sockets within this process.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

/// One end of a connection.
#[derive(Debug)]
pub(super) enum Socket {
    /// To another process, or to any port.
    Tcp(TcpStream),
    /// To another event loop of this process (`local`).
    Local(UnixStream),
}

impl Socket {
    /// Has the system send small frames at once. A socket that refuses is already broken, which
    /// reading will show.
    pub(super) fn disable_nagle(&self) {
        if let Socket::Tcp(stream) = self
            && let Err(error) = stream.set_nodelay(true)
        {
            log::debug!("setting TCP_NODELAY: {error}");
        }
    }

    /// Chooses the congestion control, where there is one.
    pub(super) fn set_congestion(&self, congestion: &str) {
        if let Socket::Tcp(stream) = self
            && let Err(error) = rustix::net::sockopt::set_tcp_congestion(stream, congestion)
        {
            log::debug!("choosing congestion control {congestion}: {error}");
        }
    }

    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Socket::Tcp(stream) => stream.take_error(),
            Socket::Local(stream) => stream.take_error(),
        }
    }

    /// What has come of dialling it.
    pub(super) fn dialled(&self) -> io::Result<()> {
        match (self.take_error()?, self) {
            (Some(error), _) => Err(error),
            (None, Socket::Local(_)) => Ok(()),
            // Dialling a free port of one's own machine can, rarely, connect a socket to itself.
            (None, Socket::Tcp(stream)) if stream.peer_addr()? == stream.local_addr()? => {
                Err(io::ErrorKind::ConnectionRefused.into())
            }
            (None, Socket::Tcp(_)) => Ok(()),
        }
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Local(stream) => stream.shutdown(how),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Socket::Tcp(stream) => stream,
            Socket::Local(stream) => stream,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Local(stream) => stream.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(out),
            Socket::Local(stream) => stream.read(out),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Local(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write_vectored(pieces),
            Socket::Local(stream) => stream.write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Socket {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.source().register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}
