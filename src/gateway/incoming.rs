//! The gateway's connections: how many, how long they may take to say what they want, and which of them gives way
//! when there are too many.
//!
//! A connection is a newcomer until its first request has come. A newcomer has a few seconds for the HTTP/2 preface
//! and its settings, and longer for a request. When all places are taken the oldest newcomer gives way to the next
//! connection, of the address that has the most of them ([`Crowd`]); if there is none, a connection of an address
//! with many gives way to one of an address with few; and if there is none, the one that has had no call
//! under way for longest, which costs its client another dial.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::limits;
use crate::net::{ConnectionId, Crowd};

/// The preface of HTTP/2, and the header of the settings that follow it.
const OPENING_BYTES: usize = 24 + 9;

/// One client's connection. It counts as long as it is open.
pub(super) struct Connection {
    stream: TcpStream,
    /// Bytes received so far, as far as they matter.
    opening_bytes: usize,
    /// Runs until the opening, and then the first request, has come.
    patience: Option<Pin<Box<Sleep>>>,
    /// Runs from our half's end until the client has ended its own half.
    lingering: Option<Pin<Box<Sleep>>>,
    peer: Peer,
}

/// Whose connection a call came over; among the extensions of its request. Clones are the same connection.
#[derive(Clone)]
pub(super) struct Peer(Arc<Standing>);

/// What the lobby and the calls know of a connection.
struct Standing {
    id: ConnectionId,
    /// A request has come.
    has_called: AtomicBool,
    /// It is to make room.
    is_displaced: AtomicBool,
    /// Wakes the connection's task.
    waker: AtomicWaker,
    lobby: Lobby,
}

/// Every connection that is open, and which of them is to make room.
#[derive(Clone, Default)]
pub(super) struct Lobby(Arc<Mutex<Crowding>>);

#[derive(Default)]
struct Crowding {
    crowd: Crowd,
    members: HashMap<ConnectionId, Member>,
    last_id: u64,
}

struct Member {
    standing: Weak<Standing>,
    /// How many calls are under way; while any is, it is not idle.
    calls: usize,
    /// When the last of them ended.
    idle_since: Instant,
}

impl Lobby {
    fn crowding(&self) -> MutexGuard<'_, Crowding> {
        // Its methods leave it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in, if there is room or can be made: by one that has been idle for `idle_min`, too.
    fn enter(&self, ip: IpAddr, connections_max: usize, idle_min: Duration) -> Option<Peer> {
        let mut crowding = self.crowding();
        // Woken without the lock: whoever lets go of a connection as the last one takes it.
        let mut displaced = None;
        if crowding.members.len() >= connections_max {
            displaced = Some(crowding.make_room(ip, idle_min)?);
        }
        crowding.last_id += 1;
        let id = ConnectionId::from_u64(crowding.last_id);
        let standing = Arc::new(Standing {
            id,
            has_called: AtomicBool::new(false),
            is_displaced: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            lobby: self.clone(),
        });
        crowding.crowd.came(id, ip);
        let member =
            Member { standing: Arc::downgrade(&standing), calls: 0, idle_since: Instant::now() };
        crowding.members.insert(id, member);
        drop(crowding);
        if let Some(standing) = displaced.as_ref().and_then(Weak::upgrade) {
            standing.is_displaced.store(true, Ordering::Release);
            standing.waker.wake();
        }
        Some(Peer(standing))
    }
}

impl Crowding {
    /// Has a connection make room for one from `ip`. Its place is free at once; its task is for the caller to wake.
    fn make_room(&mut self, ip: IpAddr, idle_min: Duration) -> Option<Weak<Standing>> {
        let idle = |(id, member): (&ConnectionId, &Member)| {
            let is_idle = member.calls == 0 && member.idle_since.elapsed() >= idle_min;
            is_idle.then_some((member.idle_since, *id))
        };
        let longest_idle = || self.members.iter().filter_map(idle).min().map(|(_, id)| id);
        let of_many = || {
            let silent = |id: &ConnectionId| {
                self.members.get(id).map(|member| (member.calls > 0, member.idle_since))
            };
            self.crowd.settled_to_go(ip).min_by_key(silent)
        };
        let victim = self.crowd.newcomer_to_go().or_else(of_many).or_else(longest_idle)?;
        self.crowd.forget(victim);
        self.members.remove(&victim).map(|member| member.standing)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut crowding = self.lobby.crowding();
        crowding.crowd.forget(self.id);
        crowding.members.remove(&self.id);
    }
}

impl Peer {
    /// A call begins. Returns how many others of this connection are under way.
    pub(super) fn call_begins(&self) -> usize {
        let mut crowding = self.0.lobby.crowding();
        let Crowding { crowd, members, .. } = &mut *crowding;
        if !self.0.has_called.swap(true, Ordering::AcqRel) && members.contains_key(&self.0.id) {
            crowd.settled(self.0.id);
        }
        let Some(member) = members.get_mut(&self.0.id) else { return 0 };
        member.calls += 1;
        member.calls - 1
    }

    /// A call that has begun is over.
    pub(super) fn call_ends(&self) {
        if let Some(member) = self.0.lobby.crowding().members.get_mut(&self.0.id) {
            member.calls = member.calls.saturating_sub(1);
            member.idle_since = Instant::now();
        }
    }
}

/// Accepts connections for ever, so many at once.
pub(super) fn connections(
    listener: TcpListener,
    connections_max: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, Lobby::default()), move |(listener, lobby)| async move {
        let connection = accept(&listener, &lobby, connections_max).await;
        Some((Ok(connection), (listener, lobby)))
    })
}

async fn accept(listener: &TcpListener, lobby: &Lobby, connections_max: usize) -> Connection {
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
        let entered = lobby.enter(address.ip(), connections_max, limits::GATEWAY_IDLE_MIN);
        let Some(peer) = entered else {
            log::warn!("{address} is turned away: {connections_max} others have calls under way");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!("{address} left at once: {error}");
            continue;
        }
        let patience = Some(Box::pin(sleep(limits::HANDSHAKE_TIMEOUT)));
        return Connection { stream, opening_bytes: 0, patience, lingering: None, peer };
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Connection {
    /// Why the connection is to end, if it is. Wakes the task when it may have become so.
    fn end(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        let standing = &self.peer.0;
        standing.waker.register(cx.waker());
        if standing.is_displaced.load(Ordering::Acquire) {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "it makes room"));
        }
        if standing.has_called.load(Ordering::Acquire) {
            self.patience = None;
        }
        let late = self.patience.as_mut()?.as_mut().poll(cx).is_ready();
        late.then(|| io::ErrorKind::TimedOut.into())
    }

    /// So many bytes have come.
    fn received(&mut self, bytes: usize) {
        if self.opening_bytes >= OPENING_BYTES {
            return;
        }
        self.opening_bytes += bytes;
        if self.opening_bytes >= OPENING_BYTES
            && let Some(patience) = &mut self.patience
        {
            patience
                .as_mut()
                .reset(tokio::time::Instant::now() + limits::GATEWAY_FIRST_REQUEST_TIMEOUT);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.received(buffer.filled().len() - filled);
        match self.end(cx) {
            Some(error) => Poll::Ready(Err(error)),
            None => read,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_displaced(peer: &Peer) -> bool {
        peer.0.is_displaced.load(Ordering::Relaxed)
    }

    #[test]
    fn newcomers_give_way_then_those_of_many_and_then_the_idle() {
        let lobby = Lobby::default();
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let enter = |ip| lobby.enter(ip, 4, Duration::MAX);
        let [silent, busy, idle, idler] = [0; 4].map(|_| enter(here).unwrap());
        for peer in [&busy, &idle, &idler] {
            assert_eq!(peer.call_begins(), 0);
        }
        assert_eq!(busy.call_begins(), 1);
        // Who has not called gives way, also to one of the same address.
        let new = enter(here).unwrap();
        assert!(is_displaced(&silent) && !is_displaced(&busy));
        drop(silent);
        assert_eq!(lobby.crowding().members.len(), 4, "its place was free before it went");
        new.call_begins();
        assert!(enter(here).is_none(), "all have calls under way");
        // One of another address has a right to a place, as long as it has fewer.
        idle.call_ends();
        let other = enter(there).unwrap();
        assert!(is_displaced(&idle), "it has no call under way");
        other.call_begins();
        let second = enter(there).unwrap();
        assert_eq!([&busy, &idler, &new].iter().filter(|peer| is_displaced(peer)).count(), 1);
        second.call_begins();
        assert!(enter(there).is_none(), "each has two");
        // Who has been idle for long gives way to anybody.
        second.call_ends();
        assert!(enter(here).is_none(), "it may be about to call again");
        assert!(lobby.enter(here, 4, Duration::ZERO).is_some() && is_displaced(&second));
    }
}
