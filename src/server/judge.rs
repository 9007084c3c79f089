//! Makes verdicts durable: that this server's store, or all of its data, must not be used again.
//!
//! A server that leads hands over as soon as it has a verdict about its own data, and answers
//! nothing from them any more. Invariant: it ends only when the verdict is durable, or cannot be
//! made so in [`PATIENCE`]. A kill at any moment after that leaves a directory whose next start
//! sets aside what was refuted, before anything is read from it. A thread is started for each
//! verdict, of which a server has two at the most: the queues of the threads that write may be
//! full, or their ends may be what the verdict is about.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::threads::Report;
use crate::limits;
use crate::net::WakeHandle;
use crate::storage::datadir::{DataDirError, Untrusted};

/// How long a server waits for a verdict to be durable. A disk that has not taken it in by then may
/// never do so, and what is to be set aside may be on another one that does.
const PATIENCE: Duration = limits::STOP_DISK_TIMEOUT;

/// Makes a verdict durable, which waits for the disk.
pub(super) type SetDown = dyn Fn(Untrusted) -> Result<(), DataDirError> + Send + Sync;

/// The threads that make verdicts durable.
pub(super) struct Judge {
    set_down: Arc<SetDown>,
    patience: Duration,
    /// When the first verdict was reached.
    since: Option<Instant>,
    reports: Sender<Report>,
    wake: WakeHandle,
    /// The threads, each with a channel that is disconnected when it ends.
    threads: Vec<(JoinHandle<()>, Receiver<()>)>,
}

impl Judge {
    /// Begins without a verdict, and so without a thread.
    pub fn new(set_down: Arc<SetDown>, reports: Sender<Report>, wake: WakeHandle) -> Judge {
        Judge { set_down, patience: PATIENCE, since: None, reports, wake, threads: Vec::new() }
    }

    /// Begins to make a verdict durable. The outcome comes as [`Report::VerdictSetDown`].
    pub fn set_down(&mut self, now: Instant, untrusted: Untrusted) -> io::Result<()> {
        self.since.get_or_insert(now);
        let (set_down, reports, wake) =
            (self.set_down.clone(), self.reports.clone(), self.wake.clone());
        let (end, ended) = bounded(0);
        let run = move || {
            let _end: Sender<()> = end;
            let done = set_down(untrusted).map_err(|error| error.to_string());
            // Nobody listens only when the event loop has ended.
            let _ = reports.send(Report::VerdictSetDown(done));
            wake.wake();
        };
        let thread = thread::Builder::new().name("acervo-verdict".into()).spawn(run)?;
        self.threads.push((thread, ended));
        Ok(())
    }

    /// Whether the first verdict is older than [`PATIENCE`], so that its durability is not waited
    /// for any more.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.patience)
    }

    /// Waits until `deadline` for the threads. Returns whether all have ended.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        for (thread, ended) in self.threads {
            if ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
                return false;
            }
            if thread.join().is_err() {
                log::error!("a thread that sets a verdict down panicked");
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::Client;
    use crate::model::{ClusterId, Timestamp};
    use crate::net::Listener;
    use crate::process::files;
    use crate::server::work::{PoolCompletion, PoolJob, ReadJob};
    use crate::server::{OpenedServer, Stopper, local};
    use crate::wire::codec;
    use crate::wire::message::{
        ErrorCode, GetRequest, Hello, HelloRole, Message, PROTOCOL_VERSION, Reply, Request,
    };
    use crate::workers::pool::Pool;

    /// How long anything here may take before a test gives up.
    const DEADLINE: Duration = Duration::from_secs(60);
    /// More long values than a client's queue, its grants and two sockets hold.
    const READS: u64 = 64;

    fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(done) = attempt() {
                return done;
            }
            assert!(began.elapsed() < DEADLINE, "{what}: not in time");
            thread::yield_now();
        }
    }

    fn send(stream: &mut TcpStream, message: &Message) {
        let mut frame = Vec::new();
        codec::encode(message, limits::PEER_FRAME_BYTES_MAX, &mut frame).unwrap();
        stream.write_all(&frame).unwrap();
    }

    fn receive(stream: &mut TcpStream) -> Message {
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        stream.read_exact(&mut body).unwrap();
        codec::decode(&body).unwrap()
    }

    /// Opens so many servers of a group of three. Their disks take no verdict in before the sender
    /// is dropped.
    fn open(
        dir: &Path,
        count: usize,
        patience: Duration,
    ) -> (Vec<OpenedServer>, Vec<Stopper>, Sender<()>) {
        let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let mut listeners = [(); 3].map(|()| Listener::bind(any_port).unwrap());
        listeners.sort_by_key(Listener::address);
        let addresses = listeners.each_ref().map(Listener::address);
        let stoppers: Vec<Stopper> = (0..count).map(|_| Stopper::new()).collect();
        let (answer, answered) = bounded::<()>(0);
        let open = |(listener, stopper): (Listener, &Stopper)| {
            let config = local::config(dir, listener.address(), &addresses);
            let room = files::room().unwrap();
            let mut server = OpenedServer::open(config, listener, room, stopper.clone()).unwrap();
            let answered = answered.clone();
            server.service.parts.judge.patience = patience;
            server.service.parts.judge.set_down = Arc::new(move |_| {
                let _ = answered.recv();
                Ok(())
            });
            server
        };
        let servers = listeners.into_iter().zip(&stoppers).map(open).collect();
        (servers, stoppers, answer)
    }

    /// Tells a server that its store is damaged, which it is not.
    fn accuser(server: &OpenedServer) -> impl FnOnce() + use<> {
        let judge = &server.service.parts.judge;
        let (reports, wake) = (judge.reports.clone(), judge.wake.clone());
        move || {
            reports.send(Report::StoreDamaged("a test says so".to_owned())).unwrap();
            wake.wake();
        }
    }

    fn greet(server: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (protocol, cluster, role) = (PROTOCOL_VERSION, ClusterId(0), HelloRole::Client);
        send(&mut stream, &Message::Hello(Hello { protocol, cluster, role }));
        assert!(matches!(receive(&mut stream), Message::Welcome(_)));
        stream
    }

    /// Once the leader led on for as long as the disk did not answer, and reads that waited for
    /// room for their values were answered from what was not to be read.
    #[test]
    fn while_the_disk_does_not_take_a_verdict_in_others_lead_and_no_read_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (servers, stoppers, answer) = open(dir.path(), 3, 10 * DEADLINE);
        let addresses = servers[0].service.parts.config.servers.clone();
        let mut accusers: Vec<_> = servers.iter().map(accuser).collect();
        let threads: Vec<_> = servers
            .into_iter()
            .map(|server| thread::spawn(move || server.run().map_err(|error| error.to_string())))
            .collect();

        let client = Client::connect(addresses.clone()).unwrap();
        client.put("k", vec![7; limits::VALUE_BYTES_MAX_DEFAULT]).unwrap();
        let leader = eventually("one leads", || {
            let leader = client.status(addresses[0]).ok()?.leader?;
            addresses.iter().position(|address| address.to_string() == leader)
        });
        let own = Client::connect([addresses[leader]]).unwrap();
        own.get_linearizable("k").unwrap();
        let mut reader = greet(addresses[leader]);
        (0..READS).for_each(|id| get(&mut reader, id));
        let first = receive(&mut reader);
        assert!(matches!(first, Message::Reply { body: Reply::GetOk { .. }, .. }));

        accusers.remove(leader)();
        eventually("another one leads", || {
            let next = client.status(addresses[(leader + 1) % 3]).ok()?.leader?;
            (next != addresses[leader].to_string()).then_some(())
        });
        assert!(!threads[leader].is_finished(), "it ends before its verdict is durable");
        let mut refused = 0;
        for _ in 1..READS {
            match receive(&mut reader) {
                // It was on its way already.
                Message::Reply { body: Reply::GetOk { .. }, .. } if refused == 0 => {}
                Message::Reply { body: Reply::Error(error), .. } => {
                    assert_eq!(error.code, ErrorCode::Internal, "{}", error.message);
                    refused += 1;
                }
                _ => panic!("it is read after {refused} refusals"),
            }
        }
        assert!(refused > 0, "reads that were held are answered");
        drop(answer);
        let others = stoppers.iter().enumerate().filter(|(at, _)| *at != leader);
        others.for_each(|(_, stopper)| stopper.stop());
        for (at, thread) in threads.into_iter().enumerate() {
            assert_eq!(thread.join().unwrap(), Ok(at == leader), "only that one is to start again");
        }
    }

    fn get(reader: &mut TcpStream, id: u64) {
        let (key, none) = (Bytes::from_static(b"k"), Timestamp::ZERO);
        let (timestamp, session, at) = (none, none, none);
        let get = GetRequest { key, timestamp, session, linearizable: false, at };
        send(reader, &Message::Request { id, body: Request::Get(get) });
    }

    /// A read that a worker has begun before the verdict, and ends after it.
    #[test]
    fn a_read_that_is_running_when_the_state_is_refuted_is_not_answered_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut servers, _stoppers, answer) = open(dir.path(), 1, 10 * DEADLINE);
        let mut server = servers.remove(0);
        let address = server.service.parts.config.listen;
        let wake = server.service.parts.judge.wake.clone();
        let (begun, begins) = bounded::<()>(0);
        let (end, ends) = bounded::<()>(0);
        let make_worker = |_| {
            let (begun, ends) = (begun.clone(), ends.clone());
            move |job| {
                let PoolJob::Read(ReadJob { token, budget_bytes, .. }) = job else {
                    panic!("{job:?}")
                };
                begun.send(()).unwrap();
                ends.recv().unwrap();
                let (value, timestamp) = (Some(Bytes::from_static(b"wrong")), Timestamp(1));
                let body = Reply::GetOk { value, timestamp, as_of: timestamp };
                let mut frame = Vec::new();
                let reply = Message::Reply { id: token.request, body };
                codec::encode(&reply, limits::PEER_FRAME_BYTES_MAX, &mut frame).unwrap();
                PoolCompletion::Reply { token, budget_bytes, frame }
            }
        };
        server.service.parts.pool =
            Pool::start("acervo-test", 1, 8, move || wake.wake(), make_worker).unwrap();
        let accuse = accuser(&server);
        let thread = thread::spawn(move || server.run().map_err(|error| error.to_string()));
        let mut reader = greet(address);
        let mut read = |accuse: Option<Box<dyn FnOnce()>>| {
            get(&mut reader, 7);
            begins.recv_timeout(DEADLINE).unwrap();
            // What is reported comes before what is completed later.
            accuse.into_iter().for_each(|accuse| accuse());
            end.send(()).unwrap();
            receive(&mut reader)
        };
        assert!(matches!(read(None), Message::Reply { body: Reply::GetOk { .. }, .. }));
        let Message::Reply { body: Reply::Error(error), .. } = read(Some(Box::new(accuse))) else {
            panic!("it is answered from what is not to be read");
        };
        assert_eq!(error.code, ErrorCode::Internal, "{}", error.message);
        drop(answer);
        assert_eq!(thread.join().unwrap(), Ok(true), "it is to start again");
    }

    #[test]
    fn a_verdict_that_the_disk_does_not_take_in_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (mut servers, _stoppers, answer) = open(dir.path(), 1, Duration::ZERO);
        let server = servers.remove(0);
        let address = server.service.parts.config.listen;
        let accuse = accuser(&server);
        let thread = thread::spawn(move || server.run().map_err(|error| error.to_string()));
        let mut witness = greet(address);
        accuse();
        witness.read_to_end(&mut Vec::new()).unwrap();
        drop(answer);
        assert_eq!(thread.join().unwrap(), Ok(true), "it is to start again");
    }
}
