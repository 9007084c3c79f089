//! Connections between two event loops of one process, without a port of the system's.
//!
//! They are pairs of sockets: to both loops such a connection is like any other, with the same
//! frames, limits and back-pressure, and it costs less than one over loopback. A loop that
//! [listens](super::EventLoop::listen_local) on a [`LocalPort`] takes in what is dialled there as
//! it accepts others, with the loopback address as that of the other end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::net::UnixStream;

use super::wake::WakeHandle;

/// Connections that a loop has not taken in yet. A process has few loops, each of which dials
/// again only when a connection has ended.
const LOCAL_CONNECTIONS_WAITING_MAX: usize = 64;

/// The address of the other end of a connection within the process.
pub(super) const LOCAL_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A port within the process: one loop listens on it, others dial it. It outlives the loop, so that
/// a server that begins anew listens on it again. Clones are the same port.
#[derive(Clone, Debug, Default)]
pub struct LocalPort(Arc<Mutex<Option<Listening>>>);

/// The loop that listens, and what it is to take in.
#[derive(Debug)]
struct Listening {
    waiting: Vec<UnixStream>,
    wake: WakeHandle,
}

impl LocalPort {
    /// A port on which nobody listens yet.
    #[cfg(any(test, feature = "grpc"))]
    pub fn new() -> LocalPort {
        LocalPort::default()
    }

    /// Connects. The loop that listens takes the other end in with its next iteration.
    ///
    /// # Errors
    /// No loop listens, or it has many to take in, or the system has no file left.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut state = self.lock();
        let Some(Listening { waiting, wake }) = &mut *state else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        if waiting.len() >= LOCAL_CONNECTIONS_WAITING_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        waiting.push(theirs);
        wake.wake();
        Ok(ours)
    }

    /// From now on the loop that this wakes listens, in the place of any other.
    pub(super) fn listen(&self, wake: WakeHandle) {
        *self.lock() = Some(Listening { waiting: Vec::new(), wake });
    }

    /// Takes all that wait.
    pub(super) fn take(&self) -> Vec<UnixStream> {
        self.lock().as_mut().map(|state| std::mem::take(&mut state.waiting)).unwrap_or_default()
    }

    /// Nobody listens any more; what waits is closed.
    pub(super) fn close(&self) {
        self.lock().take();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Listening>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::super::{CloseReason, ConnectionId, EventLoop, LoopConfig, Net, Service};
    use super::*;

    /// Greets the other loop, or answers what comes, and ends after an answer.
    struct Greeter {
        port: Option<LocalPort>,
        told: mpsc::Sender<(SocketAddr, Vec<u8>)>,
        peer: SocketAddr,
    }

    const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

    fn frame(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32).to_be_bytes()[..], body].concat()
    }

    impl Service for Greeter {
        fn on_start(&mut self, net: &mut Net) {
            if let Some(port) = &self.port {
                net.dial_local(port, ELSEWHERE);
            }
        }

        fn on_connected(&mut self, net: &mut Net, id: ConnectionId) {
            net.send_owned(id, frame(b"question"));
        }

        fn on_accepted(&mut self, _: &mut Net, _: ConnectionId, peer: SocketAddr) {
            self.peer = peer;
        }

        fn on_frame(&mut self, net: &mut Net, id: ConnectionId, body: &[u8]) {
            self.told.send((self.peer, body.to_vec())).unwrap();
            if self.port.is_none() {
                net.send_owned(id, frame(b"answer"));
            }
            net.close_after_flush(id);
            net.exit();
        }

        fn on_closed(&mut self, _: &mut Net, _: ConnectionId, _: &CloseReason) {}
    }

    #[test]
    fn two_loops_of_a_process_exchange_frames_without_a_port() {
        let (told, heard) = mpsc::channel();
        let port = LocalPort::new();
        let early = port.connect().unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::ConnectionRefused, "nobody listens yet");
        let mut server = EventLoop::new(LoopConfig::default(), None).unwrap();
        server.listen_local(port.clone());
        let client = EventLoop::new(LoopConfig::default(), None).unwrap();
        let greeter = |port| Greeter { port, told: told.clone(), peer: ELSEWHERE };
        let (mut answering, mut asking) = (greeter(None), greeter(Some(port.clone())));
        let server = thread::spawn(move || server.run(&mut answering).unwrap());
        client.run(&mut asking).unwrap();
        server.join().unwrap();
        assert_eq!(heard.recv().unwrap(), (LOCAL_PEER, b"question".to_vec()));
        assert_eq!(heard.recv().unwrap(), (ELSEWHERE, b"answer".to_vec()));
        let late = port.connect().unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::ConnectionRefused, "the loop has ended");
    }

    #[test]
    fn a_loop_that_takes_nothing_in_is_not_given_ever_more() {
        let mut idle = EventLoop::new(LoopConfig::default(), None).unwrap();
        let port = LocalPort::new();
        idle.listen_local(port.clone());
        let ends: Vec<_> = (0..LOCAL_CONNECTIONS_WAITING_MAX)
            .map(|_| port.connect().expect("there is room"))
            .collect();
        assert_eq!(port.connect().unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        drop(ends);
    }
}
