//! The event loop over real sockets, with a small service whose callbacks are reported to the test.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use acervo::net::{
    BudgetLimits, Buffer, BufferPool, CloseReason, ConnectionId, EventLoop, Listener, LoopConfig,
    Net, SendError, SendLimits, Service, SharedLoop, WakeHandle,
};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};

/// Longer than anything here takes on a loaded machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest run of raw bytes the service takes, and how many at once.
const RAW_MAX: usize = 1 << 20;
const RAW_BUFFERS: usize = 8;

#[derive(Debug)]
enum Event {
    Accepted(ConnectionId),
    Connected(ConnectionId),
    DialFailed(ConnectionId, io::ErrorKind),
    Frame(ConnectionId, Vec<u8>),
    Closed(ConnectionId, String),
    /// The loop was at work at the time it was to be, or later.
    Due,
}

type Command = Box<dyn FnOnce(&mut TestService, &mut Net) + Send>;

/// Reports everything; echoes frames if told to; runs what the test sends it.
struct TestService {
    events: Sender<Event>,
    commands: Receiver<Command>,
    /// Frames to this service are sent back.
    echo: bool,
    /// A frame that begins with this announces as many raw bytes as its next four bytes say, or as
    /// many as a buffer has room for if that is less; they are sent back behind the frame.
    raw_prefix: Option<&'static [u8]>,
    buffers: BufferPool,
    raw_sent: usize,
    /// Every frame pauses its connection.
    pause_after_frame: bool,
    /// Frames are worth an event.
    report_frames: bool,
    queued_bytes_max_seen: usize,
    ticks: usize,
    idle_asked: usize,
    /// When the loop is to be at work.
    due: Option<Instant>,
}

impl TestService {
    fn report(&self, event: Event) {
        // The test may have seen enough and gone.
        let _ = self.events.send(event);
    }
}

impl Service for TestService {
    fn on_accepted(&mut self, _net: &mut Net, id: ConnectionId, _peer: SocketAddr) {
        self.report(Event::Accepted(id));
    }

    fn on_connected(&mut self, _net: &mut Net, id: ConnectionId) {
        self.report(Event::Connected(id));
    }

    fn on_dial_failed(&mut self, _net: &mut Net, id: ConnectionId, error: &io::Error) {
        self.report(Event::DialFailed(id, error.kind()));
    }

    fn on_frame(&mut self, net: &mut Net, id: ConnectionId, body: &[u8]) {
        if self.pause_after_frame {
            net.pause_reading(id);
        }
        if self.report_frames {
            self.report(Event::Frame(id, body.to_vec()));
        }
        if self.echo {
            net.send(id, |out| out.extend(frame(body)));
        }
        if let Some(length) = self.raw_prefix.and_then(|prefix| body.strip_prefix(prefix)) {
            let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
            let buffer = self.buffers.take(length.min(RAW_MAX)).expect("a buffer is free");
            assert!(net.receive_raw(id, buffer));
        }
        self.queued_bytes_max_seen = self.queued_bytes_max_seen.max(net.queued_bytes(id));
    }

    fn on_raw(&mut self, net: &mut Net, id: ConnectionId, buffer: Buffer) {
        net.send_raw(id, Bytes::from_owner(buffer));
    }

    fn on_raw_sent(&mut self, _net: &mut Net, _id: ConnectionId) {
        self.raw_sent += 1;
    }

    fn on_closed(&mut self, _net: &mut Net, id: ConnectionId, reason: &CloseReason) {
        self.report(Event::Closed(id, format!("{reason:?}")));
    }

    fn on_wake(&mut self, net: &mut Net) {
        while let Ok(command) = self.commands.try_recv() {
            command(self, net);
        }
    }

    fn on_tick(&mut self, _net: &mut Net) {
        self.ticks += 1;
    }

    fn before_sleep(&mut self, net: &mut Net) {
        if self.due.take_if(|due| *due <= net.now()).is_some() {
            self.report(Event::Due);
        }
    }

    fn on_idle(&mut self, _net: &mut Net, _id: ConnectionId) -> bool {
        self.idle_asked += 1;
        self.idle_asked > 1
    }

    fn farewell(&mut self, _id: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        frame(reason.to_string().as_bytes())
    }

    fn refusal(&mut self, _peer: SocketAddr) -> Vec<u8> {
        frame(b"no room")
    }
}

struct Harness {
    address: SocketAddr,
    events: Receiver<Event>,
    commands: Sender<Command>,
    wake: WakeHandle,
    thread: Option<JoinHandle<()>>,
}

impl Harness {
    fn start(config: LoopConfig) -> Harness {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address();
        let event_loop = EventLoop::new(config, Some(listener)).unwrap();
        let wake = event_loop.wake_handle();
        let (events_in, events) = unbounded();
        let (commands, commands_out) = unbounded();
        let mut service = TestService {
            events: events_in,
            commands: commands_out,
            echo: true,
            raw_prefix: None,
            buffers: BufferPool::new(RAW_MAX, RAW_BUFFERS),
            raw_sent: 0,
            pause_after_frame: false,
            report_frames: false,
            queued_bytes_max_seen: 0,
            ticks: 0,
            idle_asked: 0,
            due: None,
        };
        let thread = std::thread::spawn(move || event_loop.run(&mut service).unwrap());
        Harness { address, events, commands, wake, thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The same, from another address of this machine.
    fn connect_known_from(&self, ip: Ipv4Addr) -> (TcpStream, ConnectionId) {
        let stream = dial_from(ip, self.address);
        match self.next_event() {
            Event::Accepted(id) => (stream, id),
            other => panic!("expected a new connection, got {other:?}"),
        }
    }

    /// Connects and learns the id the loop gave the connection.
    fn connect_known(&self) -> (TcpStream, ConnectionId) {
        let stream = self.connect();
        match self.next_event() {
            Event::Accepted(id) => (stream, id),
            other => panic!("expected a new connection, got {other:?}"),
        }
    }

    fn next_event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event in time")
    }

    /// Runs something on the loop's thread and brings back what it says.
    fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut TestService, &mut Net) -> R + Send + 'static,
    ) -> R {
        let (answer_in, answer) = unbounded();
        self.commands
            .send(Box::new(move |service, net| answer_in.send(question(service, net)).unwrap()))
            .unwrap();
        self.wake.wake();
        answer.recv_timeout(PATIENCE).expect("the loop answers in time")
    }

    fn wait_until(&self, what: &str, mut holds: impl FnMut(&Harness) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::yield_now();
        }
    }

    fn expect_closed(&self, id: ConnectionId, reason_part: &str) {
        match self.next_event() {
            Event::Closed(closed, reason) => {
                assert_eq!(closed, id);
                assert!(reason.contains(reason_part), "{reason}");
            }
            other => panic!("expected the end of {id:?}, got {other:?}"),
        }
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = self.commands.send(Box::new(|_, net| net.exit()));
        self.wake.wake();
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(result, Some(Ok(()))), "the loop ended badly");
        }
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn assert_echo(stream: &mut TcpStream, body: &[u8]) {
    stream.write_all(&frame(body)).unwrap();
    assert_eq!(read_frame(stream).unwrap(), body);
}

fn assert_end(stream: &mut TcpStream) {
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("expected the end, got {other:?}"),
    }
}

/// Room for whole frames of the sizes used here, and no hurry to give up on a slow test machine.
fn config() -> LoopConfig {
    LoopConfig {
        first_frame_bytes_max: 1 << 20,
        close_linger: PATIENCE,
        handshake_timeout: PATIENCE,
        write_stall_timeout: PATIENCE,
        ..LoopConfig::default()
    }
}

#[test]
fn frames_that_arrive_a_byte_at_a_time_are_whole() {
    let harness = Harness::start(config());
    let mut stream = harness.connect();
    stream.set_nodelay(true).unwrap();
    for body in [&b"a"[..], b"hello", &[0; 300]] {
        for byte in frame(body) {
            stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(read_frame(&mut stream).unwrap(), body);
    }
}

#[test]
fn a_large_frame_comes_back_whole() {
    let harness = Harness::start(config());
    let mut stream = harness.connect();
    let body: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 253) as u8).collect();
    let writer = {
        let mut stream = stream.try_clone().unwrap();
        let bytes = frame(&body);
        std::thread::spawn(move || stream.write_all(&bytes).unwrap())
    };
    assert!(read_frame(&mut stream).unwrap() == body);
    writer.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_is_held_back_and_loses_nothing() {
    let limits = SendLimits { pause_bytes: 64 * 1024, max_bytes: 1 << 20 };
    let harness = Harness::start(LoopConfig { send_limits: limits, ..config() });
    let (mut deaf, deaf_id) = harness.connect_known();
    let (mut other, _) = harness.connect_known();

    // Far more than the kernel's buffers take in both directions.
    const FRAMES: usize = 1500;
    const BODY: usize = 32 * 1024;
    let writer = {
        let mut deaf = deaf.try_clone().unwrap();
        std::thread::spawn(move || {
            for i in 0..FRAMES {
                deaf.write_all(&frame(&vec![i as u8; BODY])).unwrap();
            }
        })
    };
    harness.wait_until("the loop stops reading the deaf client", |harness| {
        harness.ask(move |_, net| net.queued_bytes(deaf_id)) >= limits.pause_bytes
    });
    for _ in 0..10 {
        assert_echo(&mut other, b"still served");
    }
    for i in 0..FRAMES {
        assert!(read_frame(&mut deaf).unwrap() == vec![i as u8; BODY], "frame {i}");
    }
    writer.join().unwrap();
    let most = harness.ask(|service, _| service.queued_bytes_max_seen);
    assert!(most <= limits.pause_bytes + BODY + 4, "{most} bytes were queued");
}

#[test]
fn too_much_queued_closes_that_connection_only() {
    let limits = SendLimits { pause_bytes: 1 << 20, max_bytes: 1 << 20 };
    let harness = Harness::start(LoopConfig { send_limits: limits, ..config() });
    let (_deaf, deaf_id) = harness.connect_known();
    let (mut other, _) = harness.connect_known();
    harness.wait_until("the queue overflows", |harness| {
        !harness.ask(move |_, net| net.send_owned(deaf_id, frame(&vec![0; 100_000])))
    });
    harness.expect_closed(deaf_id, "QueueFull");
    assert_echo(&mut other, b"still served");
}

#[test]
fn try_send_refuses_instead_of_closing() {
    let limits = SendLimits { pause_bytes: 1 << 20, max_bytes: 1000 };
    let harness = Harness::start(LoopConfig { send_limits: limits, ..config() });
    let (mut stream, id) = harness.connect_known();
    // With their headers: 504 bytes, 1008 in all, 908, 1004, 913.
    let results = harness.ask(move |_, net| {
        [500, 500, 400, 92, 1]
            .map(|count| net.try_send(id, |out| out.extend(frame(&vec![b'x'; count]))))
    });
    assert_eq!(results, [Ok(()), Err(SendError::Full), Ok(()), Err(SendError::Full), Ok(())]);
    for length in [500, 400, 1] {
        assert_eq!(read_frame(&mut stream).unwrap().len(), length);
    }
    harness.ask(move |_, net| net.close(id));
    harness.expect_closed(id, "Local");
    assert_eq!(harness.ask(move |_, net| net.try_send(id, |_| {})), Err(SendError::Gone));
}

#[test]
fn a_stalled_reader_is_disconnected() {
    let harness =
        Harness::start(LoopConfig { write_stall_timeout: Duration::from_millis(50), ..config() });
    let (_deaf, deaf_id) = harness.connect_known();
    harness.ask(move |_, net| net.send_owned(deaf_id, vec![0; 24 << 20]));
    harness.expect_closed(deaf_id, "WriteStalled");
}

#[test]
fn too_much_for_all_together_closes_who_has_read_nothing_for_longest() {
    const EACH: usize = 24 << 20;
    let harness = Harness::start(LoopConfig { budget: budget(EACH + EACH / 2), ..config() });
    // More than the system takes for a connection that nobody reads.
    let (_deaf, deaf_id) = harness.connect_known();
    harness.ask(move |_, net| assert!(net.send_owned(deaf_id, vec![0; EACH])));
    let (_quiet, quiet_id) = harness.connect_known();
    harness.ask(move |_, net| assert!(net.send_owned(quiet_id, frame(&[0; 16]))));
    // The system takes a little more for a while, and then no more: who has stood longest is sure
    // only then.
    let stands = |id| {
        harness.wait_until("nothing more is taken", |harness| {
            harness.ask(move |_, net| net.write_stall(id)) >= Duration::from_millis(20)
        });
    };
    stands(deaf_id);
    let (_late, late_id) = harness.connect_known();
    harness.ask(move |_, net| assert!(net.send_owned(late_id, vec![0; EACH])));
    harness.expect_closed(deaf_id, "Evicted");
    stands(late_id);
    // The rest fits: nobody else is closed, and there is room for another.
    let (_next, next_id) = harness.connect_known();
    harness.ask(move |_, net| assert!(net.send_owned(next_id, vec![0; EACH])));
    harness.expect_closed(late_id, "Evicted");
    let (mut other, _) = harness.connect_known();
    assert_echo(&mut other, b"still served");
    let waiting = harness.ask(move |_, net| [quiet_id, next_id].map(|id| net.peer_address(id)));
    assert!(waiting.iter().all(Option::is_some), "{waiting:?}");
}

/// So much for all, and no limit beside it.
fn budget(process_bytes_max: usize) -> BudgetLimits {
    BudgetLimits {
        connection_bytes_max: process_bytes_max,
        origin_bytes_max: process_bytes_max,
        process_bytes_max,
    }
}

#[test]
fn unfinished_frames_are_counted_and_those_that_stand_go() {
    const MAX: usize = 8 << 20;
    const EACH: usize = 900_000;
    let harness = Harness::start(LoopConfig { budget: budget(MAX), ..config() });
    let mut sender = harness.connect();
    let cut = frame(&[7; 1 << 20]);
    // Far more than may be held, none of them ever whole.
    let floods: Vec<TcpStream> = (0..4 * MAX / EACH)
        .map(|_| {
            let mut stream = harness.connect();
            // It may have been closed by then.
            let _ = stream.write_all(&cut[..EACH]);
            // As large, and whole: whoever is done with its frame is not in the way.
            assert_echo(&mut sender, &cut[4..EACH]);
            let held = harness.ask(|_, net| net.budget_bytes());
            assert!(held <= MAX + (1 << 20), "{held} bytes are held");
            stream
        })
        .collect();
    let evicted = || {
        let events = harness.events.try_iter();
        events.filter(|event| matches!(event, Event::Closed(_, why) if why.contains("Evicted")))
    };
    assert!(evicted().count() >= floods.len() / 2);
    drop(floods);
    harness.wait_until("what they held is given back", |harness| {
        harness.ask(|_, net| net.budget_bytes()) == 0
    });
    assert_echo(&mut sender, b"still served");
}

#[test]
fn one_origins_flood_does_not_take_the_room_of_another() {
    const MAX: usize = 8 << 20;
    let limits = BudgetLimits { origin_bytes_max: MAX / 2, ..budget(MAX) };
    let harness = Harness::start(LoopConfig { budget: limits, ..config() });
    let cut = frame(&[7; 1 << 20]);
    // Another machine, as far as anybody can tell, with unfinished frames of its own. It was here
    // first.
    let from = |last: u8| {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        );
        let socket = socket.unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        rustix::net::connect(&socket, &harness.address).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&cut[..900_000]);
        stream
    };
    let slow: Vec<TcpStream> = (0..3).map(|_| from(2)).collect();
    harness.wait_until("it is counted", |harness| {
        harness.ask(|_, net| net.budget_bytes()) >= 2_700_000
    });
    let floods: Vec<TcpStream> = (0..20).map(|_| from(3)).collect();
    for stream in slow {
        let mut rest = stream;
        rest.set_read_timeout(Some(PATIENCE)).unwrap();
        rest.write_all(&cut[900_000..]).unwrap();
        assert!(read_frame(&mut rest).unwrap() == cut[4..]);
    }
    drop(floods);
}

#[test]
fn what_requests_hold_counts_until_it_is_released() {
    const MAX: usize = 1 << 20;
    let harness = Harness::start(LoopConfig { budget: budget(MAX), ..config() });
    let (stream, id) = harness.connect_known();
    let (mut other, other_id) = harness.connect_known();
    let held = harness.ask(move |_, net| {
        (net.try_hold(id, MAX / 2), net.try_hold(other_id, 1), net.budget_bytes())
    });
    assert_eq!(held, (true, false, MAX / 2), "half is for requests");
    drop(stream);
    harness.expect_closed(id, "Remote");
    assert!(!harness.ask(move |_, net| net.try_hold(other_id, 1)), "the request is still there");
    harness.ask(move |_, net| net.release(id, MAX / 2));
    assert!(harness.ask(move |_, net| net.try_hold(other_id, 1)));
    assert_echo(&mut other, b"still served");
}

#[test]
fn a_frame_that_trickles_in_ends_its_connection_and_one_that_is_held_back_does_not() {
    let timing = LoopConfig {
        frame_timeout: Duration::from_millis(50),
        sweep_interval: Duration::from_millis(10),
        ..config()
    };
    let harness = Harness::start(timing);
    let trickle = || {
        let (mut slow, id) = harness.connect_known();
        // Quick frames are no matter, however many.
        (0..3).for_each(|_| assert_echo(&mut slow, b"quick"));
        let whole = frame(&[7; 1 << 20]);
        let mut bytes = whole.iter();
        let reason = loop {
            match harness.events.try_recv() {
                Ok(Event::Closed(closed, reason)) => {
                    assert_eq!(closed, id);
                    break reason;
                }
                Ok(other) => panic!("nothing else happens, and this did: {other:?}"),
                Err(_) => {
                    // The connection may be closed by now.
                    let _ = slow.write_all(&[*bytes.next().expect("it is not whole by then")]);
                    harness.ask(|_, _| ());
                }
            }
        };
        assert!(reason.contains("FrameSlow"), "{reason}");
        let said = String::from_utf8(read_frame(&mut slow).unwrap()).unwrap();
        assert!(said.starts_with("a frame was begun and not whole after"), "{said}");
    };
    let (mut held, held_id) = harness.connect_known();
    held.write_all(&frame(b"one")).unwrap();
    assert_eq!(read_frame(&mut held).unwrap(), b"one");
    let rest = frame(b"two");
    harness.ask(move |_, net| net.pause_reading(held_id));
    held.write_all(&rest[..5]).unwrap();
    // Twice the time passes.
    trickle();
    trickle();
    harness.ask(move |_, net| net.resume_reading(held_id));
    held.write_all(&rest[5..]).unwrap();
    assert_eq!(read_frame(&mut held).unwrap(), b"two");
}

#[test]
fn a_flood_does_not_starve_the_others() {
    let harness = Harness::start(LoopConfig { read_budget_bytes: 8 * 1024, ..config() });
    let mut floods = Vec::new();
    let stop = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let mut stream = harness.connect();
        let stop = Arc::clone(&stop);
        let mut reader = stream.try_clone().unwrap();
        floods.push(std::thread::spawn(move || {
            let flood = frame(&[1; 100]).repeat(1000);
            while stop.load(Ordering::SeqCst) == 0 {
                stream.write_all(&flood).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
        }));
        floods.push(std::thread::spawn(move || {
            let mut nowhere = vec![0; 1 << 16];
            // Ends with the connection, one way or another.
            while matches!(reader.read(&mut nowhere), Ok(read) if read > 0) {}
        }));
    }
    let mut quiet = harness.connect();
    for i in 0..100u32 {
        assert_echo(&mut quiet, &i.to_be_bytes());
    }
    stop.store(1, Ordering::SeqCst);
    for thread in floods {
        thread.join().unwrap();
    }
}

#[test]
fn a_garbage_length_ends_that_connection_only() {
    let harness = Harness::start(LoopConfig { first_frame_bytes_max: 1000, ..config() });
    let (mut other, _) = harness.connect_known();
    for (garbage, said) in [(b"GET / HTTP/1.1\r\n\r\n", "announces"), (&[0; 18], "empty")] {
        let (mut bad, bad_id) = harness.connect_known();
        bad.write_all(garbage).unwrap();
        let farewell = String::from_utf8(read_frame(&mut bad).unwrap()).unwrap();
        assert!(farewell.contains(said), "{farewell}");
        assert_end(&mut bad);
        harness.expect_closed(bad_id, "Frame");
    }
    assert_echo(&mut other, b"still served");
}

#[test]
fn the_frame_cap_can_be_raised_for_one_connection() {
    let harness = Harness::start(LoopConfig { first_frame_bytes_max: 10, ..config() });
    let (mut trusted, id) = harness.connect_known();
    harness.ask(move |_, net| net.set_frame_cap(id, 100));
    assert_echo(&mut trusted, &[7; 100]);
    let (mut stranger, stranger_id) = harness.connect_known();
    stranger.write_all(&frame(&[7; 11])).unwrap();
    harness.expect_closed(stranger_id, "TooLong { announced: 11, cap: 10 }");
}

#[test]
fn a_stale_id_does_not_reach_the_next_connection_of_its_slot() {
    let harness = Harness::start(config());
    let (first, first_id) = harness.connect_known();
    drop(first);
    harness.expect_closed(first_id, "Remote");
    let (mut second, second_id) = harness.connect_known();
    assert_eq!(first_id.to_u64() as u32, second_id.to_u64() as u32, "the slot is used again");
    assert_ne!(first_id, second_id);
    let sent = harness.ask(move |_, net| {
        let sent = net.send(first_id, |out| out.extend(frame(b"for the first")));
        net.pause_reading(first_id);
        net.set_deadline(first_id, Some(net.now()));
        net.close_after_flush(first_id);
        net.close(first_id);
        (sent, net.queued_bytes(first_id), net.peer_address(first_id))
    });
    assert_eq!(sent, (false, 0, None));
    assert_echo(&mut second, b"for the second");
}

#[test]
fn every_wake_from_another_thread_is_heard() {
    let harness = Harness::start(config());
    let ran = Arc::new(AtomicUsize::new(0));
    const THREADS: usize = 4;
    const EACH: usize = 5_000;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let ran = Arc::clone(&ran);
                    let count: Command = Box::new(move |_, _| {
                        ran.fetch_add(1, Ordering::SeqCst);
                    });
                    harness.commands.send(count).unwrap();
                    harness.wake.wake();
                }
            });
        }
    });
    harness.wait_until("every command has run", |_| ran.load(Ordering::SeqCst) == THREADS * EACH);
}

#[test]
fn dialling_a_closed_port_reports_the_failure() {
    let harness = Harness::start(config());
    // The near end of a connection: a port that is taken, so that nobody comes to listen on it.
    let (stream, _) = harness.connect_known();
    let closed = stream.local_addr().unwrap();
    let id = harness.ask(move |_, net| net.dial(closed));
    match harness.next_event() {
        Event::DialFailed(failed, kind) => {
            assert_eq!((failed, kind), (id, io::ErrorKind::ConnectionRefused));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(harness.ask(|_, net| net.dialled_connections()), 0);
}

#[test]
fn a_dial_over_the_cap_fails_under_an_id_of_its_own() {
    let harness = Harness::start(LoopConfig { dialled_max: 0, ..config() });
    let address = harness.address;
    let ids = harness.ask(move |_, net| [net.dial(address), net.dial(address)]);
    assert_ne!(ids[0], ids[1]);
    for id in ids {
        match harness.next_event() {
            Event::DialFailed(failed, kind) => {
                assert_eq!((failed, kind), (id, io::ErrorKind::QuotaExceeded));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_sent_while_dialling_arrives_first() {
    let harness = Harness::start(config());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let id = harness.ask(move |service, net| {
        service.echo = false;
        service.report_frames = true;
        let id = net.dial(address);
        net.send(id, |out| out.extend(frame(b"hello")));
        id
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_frame(&mut stream).unwrap(), b"hello");
    assert!(matches!(harness.next_event(), Event::Connected(connected) if connected == id));
    stream.write_all(&frame(b"welcome")).unwrap();
    match harness.next_event() {
        Event::Frame(from, body) => assert_eq!((from, &body[..]), (id, &b"welcome"[..])),
        other => panic!("{other:?}"),
    }
    drop(stream);
    harness.expect_closed(id, "Remote");
}

#[test]
fn frames_buffered_behind_a_pause_come_after_the_resume() {
    let harness = Harness::start(config());
    let (mut stream, id) = harness.connect_known();
    harness.ask(|service, _| {
        service.echo = false;
        service.pause_after_frame = true;
        service.report_frames = true;
    });
    let frames: Vec<u8> = (0..5u8).flat_map(|i| frame(&[i])).collect();
    stream.write_all(&frames).unwrap();
    for i in 0..5u8 {
        match harness.next_event() {
            Event::Frame(from, body) => assert_eq!((from, body), (id, vec![i])),
            other => panic!("{other:?}"),
        }
        // Two questions are two iterations: a frame that came in spite of the pause would show.
        harness.ask(|_, _| {});
        harness.ask(|_, _| {});
        assert!(harness.events.is_empty());
        harness.ask(move |_, net| net.resume_reading(id));
    }
    drop(stream);
    harness.expect_closed(id, "Remote");
}

fn dial_from(ip: Ipv4Addr, address: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((ip, 0))).unwrap();
    connect(&socket, &address).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn whoever_has_not_greeted_gives_way_to_whoever_comes() {
    let harness = Harness::start(LoopConfig { accepted_max: 7, ..config() });
    let (mut greeted, greeted_id) = harness.connect_known();
    harness.ask(move |_, net| net.greeted(greeted_id));
    let (mut server, _) = harness.connect_known_from(Ipv4Addr::new(127, 0, 0, 2));
    let mut silent: Vec<_> = (0..5).map(|_| harness.connect_known()).collect();
    for _ in 0..20 {
        let (mut oldest, oldest_id) = silent.remove(0);
        silent.push(harness.connect_known());
        harness.expect_closed(oldest_id, "Displaced");
        assert_end(&mut oldest);
    }
    assert_echo(&mut server, b"I was only slow");
    assert_echo(&mut greeted, b"still served");
}

#[test]
fn an_address_that_has_most_places_makes_room_for_others_and_not_for_itself() {
    let harness = Harness::start(LoopConfig { accepted_max: 4, ..config() });
    let settled = |(mut stream, id): (TcpStream, ConnectionId)| {
        harness.ask(move |_, net| net.greeted(id));
        assert_echo(&mut stream, b"hello");
        (stream, id)
    };
    let mut many: Vec<_> = (0..4).map(|_| settled(harness.connect_known())).collect();
    assert_echo(&mut many[0].0, b"not the one that was silent for longest");
    let mut more = harness.connect();
    assert_eq!(read_frame(&mut more).unwrap(), b"no room");
    let few = Ipv4Addr::new(127, 0, 0, 2);
    let mut others = Vec::new();
    for gone in [1, 1] {
        let (mut stream, id) = many.remove(gone);
        others.push(settled(harness.connect_known_from(few)));
        harness.expect_closed(id, "Displaced");
        assert_end(&mut stream);
    }
    let mut more = dial_from(few, harness.address);
    assert_eq!(read_frame(&mut more).unwrap(), b"no room");
    for (stream, _) in many.iter_mut().chain(&mut others) {
        assert_echo(stream, b"still served");
    }
}

#[test]
fn one_connection_too_many_is_told_so() {
    let harness = Harness::start(LoopConfig { accepted_max: 2, ..config() });
    let (mut first, first_id) = harness.connect_known();
    let (second, second_id) = harness.connect_known();
    harness.ask(move |_, net| [first_id, second_id].map(|id| net.greeted(id)));
    let mut third = harness.connect();
    // Unread input must not turn the refusal into a reset.
    third.write_all(&frame(b"hello, I am the third")).unwrap();
    assert_eq!(read_frame(&mut third).unwrap(), b"no room");
    assert_end(&mut third);
    assert_echo(&mut first, b"still served");
    assert_eq!(harness.ask(|_, net| net.accepted_connections()), 2);
    drop(second);
    harness.expect_closed(second_id, "Remote");
    let (mut fourth, fourth_id) = harness.connect_known();
    assert_ne!(fourth_id, first_id);
    assert_echo(&mut fourth, b"room again");
}

#[test]
fn silence_instead_of_a_greeting_ends_at_the_deadline() {
    let harness = Harness::start(config());
    let (mut greeted, greeted_id) = harness.connect_known();
    harness.ask(move |_, net| net.greeted(greeted_id));
    let (mut silent, silent_id) = harness.connect_known();
    harness.ask(move |_, net| net.set_deadline(silent_id, Some(net.now())));
    harness.expect_closed(silent_id, "Deadline");
    assert_eq!(read_frame(&mut silent).unwrap(), b"not done in the time allowed");
    assert_end(&mut silent);
    assert_echo(&mut greeted, b"still served");
}

#[test]
fn a_new_connection_has_the_handshakes_deadline() {
    let harness =
        Harness::start(LoopConfig { handshake_timeout: Duration::from_millis(50), ..config() });
    let (mut silent, silent_id) = harness.connect_known();
    assert_eq!(read_frame(&mut silent).unwrap(), b"not done in the time allowed");
    assert_end(&mut silent);
    harness.expect_closed(silent_id, "Deadline");
}

/// Holds up whoever calls until the machine's clock has gone on by so much.
fn pass(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

/// A process that was stopped ended every connection when it went on: nobody had been heard in
/// time.
#[test]
fn time_in_which_the_loop_did_not_run_counts_against_nobody() {
    let harness = Harness::start(LoopConfig {
        handshake_timeout: Duration::from_millis(50),
        sweep_interval: Duration::from_millis(10),
        close_linger: Duration::ZERO,
        // No test takes the tens of thousands of turns that make up the deadline.
        turn_max: Some(Duration::from_micros(1)),
        ..config()
    });
    let (mut waiting, _) = harness.connect_known();
    harness.ask(|_, _| pass(Duration::from_millis(60)));
    assert_echo(&mut waiting, b"still served");
}

#[test]
fn an_idle_connection_is_asked_about_and_then_closed() {
    let harness =
        Harness::start(LoopConfig { sweep_interval: Duration::from_millis(10), ..config() });
    let (mut stream, id) = harness.connect_known();
    assert_echo(&mut stream, b"hello");
    harness.ask(move |_, net| {
        net.greeted(id);
        net.set_idle_timeout(id, Some(Duration::from_millis(20)));
    });
    harness.expect_closed(id, "Idle");
    assert_eq!(harness.ask(|service, _| service.idle_asked), 2, "spared once");
    assert_end(&mut stream);
}

#[test]
fn a_client_that_vanishes_with_answers_owed_costs_one_connection() {
    let harness = Harness::start(config());
    let (mut other, _) = harness.connect_known();
    for _ in 0..5 {
        let (mut rude, rude_id) = harness.connect_known();
        rude.write_all(&frame(&[1; 1000]).repeat(100)).unwrap();
        // Closing with unread input, of which there is some now, resets the connection.
        rude.read_exact(&mut [0; 4]).unwrap();
        drop(rude);
        match harness.next_event() {
            Event::Closed(id, _) => assert_eq!(id, rude_id),
            other => panic!("{other:?}"),
        }
        assert_echo(&mut other, b"still served");
    }
}

#[test]
fn the_last_word_is_heard_even_by_someone_who_keeps_talking() {
    let harness = Harness::start(config());
    let (mut stream, id) = harness.connect_known();
    harness.ask(move |_, net| net.pause_reading(id));
    stream.write_all(&frame(&[1; 60_000])).unwrap();
    let last_word = vec![b'w'; 500_000];
    let sent = last_word.clone();
    let more = harness.ask(move |_, net| {
        net.send(id, |out| out.extend(frame(&sent)));
        net.close_after_flush(id);
        net.send(id, |out| out.push(0))
    });
    assert!(!more, "nothing goes behind the last word");
    stream.write_all(&[2; 60_000]).unwrap();
    assert!(read_frame(&mut stream).unwrap() == last_word);
    assert_end(&mut stream);
    harness.expect_closed(id, "Local");
}

#[test]
fn leaving_the_loop_writes_what_is_queued() {
    let harness = Harness::start(config());
    let (mut stream, id) = harness.connect_known();
    let (mut idle, _) = harness.connect_known();
    harness.ask(move |_, net| {
        net.send_owned(id, frame(&vec![5; 2 << 20]));
        net.exit();
    });
    assert!(read_frame(&mut stream).unwrap() == vec![5; 2 << 20]);
    assert_end(&mut stream);
    assert_end(&mut idle);
}

#[test]
fn nobody_is_accepted_after_accepting_stopped() {
    let harness = Harness::start(config());
    let (mut stream, _) = harness.connect_known();
    harness.ask(|_, net| net.stop_accepting());
    // Refused, unless someone else has taken the port already.
    drop(TcpStream::connect(harness.address));
    assert_echo(&mut stream, b"still served");
    assert_eq!(harness.ask(|_, net| net.accepted_connections()), 1);
    assert!(harness.events.is_empty());
}

#[test]
fn ticks_come_without_any_traffic() {
    let harness =
        Harness::start(LoopConfig { tick_interval: Some(Duration::from_millis(1)), ..config() });
    harness.wait_until("ten ticks", |harness| harness.ask(|service, _| service.ticks) >= 10);
}

/// A download that was stopped for longer than its patience gave up as soon as it went on.
#[test]
fn time_in_which_the_loop_does_not_run_does_not_count() {
    let (stop, turn_max) = (Duration::from_millis(50), Duration::from_millis(5));
    let harness = Harness::start(LoopConfig { turn_max: Some(turn_max), ..config() });
    let begun = Instant::now();
    let before = harness.ask(move |_, net| {
        // The process is stopped, as far as the loop can tell.
        pass(stop);
        net.now()
    });
    let counted = harness.ask(|_, net| net.now()) - before;
    let passed = begun.elapsed();
    assert!(passed - counted >= stop - turn_max, "{counted:?} of {passed:?}");
}

/// A frame that announces raw bytes, and the bytes.
fn raw_message(bytes: &[u8]) -> Vec<u8> {
    let mut message = raw_header(bytes.len() as u32);
    message.extend_from_slice(bytes);
    message
}

fn raw_header(length: u32) -> Vec<u8> {
    frame(&[b"raw", &length.to_be_bytes()[..]].concat())
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 7 + seed) % 251) as u8).collect()
}

fn raw_harness() -> Harness {
    let harness = Harness::start(config());
    harness.ask(|service, _| service.raw_prefix = Some(b"raw"));
    harness
}

#[test]
fn raw_bytes_between_frames_come_whole_wherever_they_are_cut() {
    let harness = raw_harness();
    let mut stream = harness.connect();
    stream.set_nodelay(true).unwrap();
    // What looks like a frame, or like an unacceptable one, is none of that.
    let bodies = [raw_message(b"x"), vec![0xff; 9], pattern(37, 3), Vec::new()];
    let mut sent = frame(b"before");
    bodies.iter().for_each(|body| sent.extend(raw_message(body)));
    sent.extend(frame(b"after"));
    for pieces in [1, 2, 3, 7, 16, sent.len()] {
        for piece in sent.chunks(pieces) {
            stream.write_all(piece).unwrap();
        }
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).unwrap();
        assert_eq!(received, sent, "in pieces of {pieces}");
    }
    harness.wait_until("the service was told of everything sent", |harness| {
        harness.ask(|service, _| service.raw_sent) == 6 * 3
    });
}

#[test]
fn raw_bytes_of_a_buffers_length_pass_through_unbuffered() {
    let harness = raw_harness();
    let (mut stream, id) = harness.connect_known();
    let writer = {
        let mut stream = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            for seed in 0..40 {
                stream.write_all(&raw_message(&pattern(RAW_MAX, seed))).unwrap();
            }
        })
    };
    for seed in 0..40 {
        assert_eq!(read_frame(&mut stream).unwrap().len(), 7);
        let mut received = vec![0; RAW_MAX];
        stream.read_exact(&mut received).unwrap();
        assert!(received == pattern(RAW_MAX, seed), "run {seed}");
    }
    writer.join().unwrap();
    assert_echo(&mut stream, b"frames go on");
    let received = harness.ask(move |_, net| net.received_bytes(id));
    assert_eq!(received as usize, 40 * (RAW_MAX + 4 + 7) + 4 + b"frames go on".len());
}

#[test]
fn a_connection_that_ends_within_raw_bytes_gives_its_buffer_back() {
    let harness = raw_harness();
    for _ in 0..2 * RAW_BUFFERS {
        let (mut stream, id) = harness.connect_known();
        stream.write_all(&raw_header(1000)).unwrap();
        stream.write_all(&[1; 999]).unwrap();
        assert_eq!(read_frame(&mut stream).unwrap().len(), 7);
        harness.wait_until("all but the last byte have come", |harness| {
            harness.ask(move |_, net| net.received_bytes(id)) == 11 + 999
        });
        assert_eq!(harness.ask(|service, _| service.buffers.available()), RAW_BUFFERS - 1);
        drop(stream);
        harness.expect_closed(id, "Remote");
        assert_eq!(harness.ask(|service, _| service.buffers.available()), RAW_BUFFERS);
    }
}

#[test]
fn raw_bytes_beyond_the_announced_length_are_frames_again_and_judged_as_such() {
    let harness = raw_harness();
    let (mut stream, id) = harness.connect_known();
    stream.write_all(&raw_message(&[9; 100])).unwrap();
    // One byte too many: it becomes the first of a frame's header.
    stream.write_all(&[0xff]).unwrap();
    stream.write_all(&frame(b"out of step")).unwrap();
    harness.expect_closed(id, "TooLong");
}

#[test]
fn a_hostile_raw_length_takes_no_more_than_the_service_gives() {
    let harness = raw_harness();
    let (mut stream, id) = harness.connect_known();
    stream.write_all(&raw_header(u32::MAX)).unwrap();
    let body = pattern(RAW_MAX, 5);
    stream.write_all(&body).unwrap();
    assert_eq!(read_frame(&mut stream).unwrap(), raw_header(u32::MAX)[4..]);
    let mut received = vec![0; RAW_MAX];
    stream.read_exact(&mut received).unwrap();
    assert!(received == body);
    // While the raw bytes of one announcement are awaited there is no second buffer to be had.
    stream.write_all(&raw_header(10)).unwrap();
    assert_eq!(read_frame(&mut stream).unwrap().len(), 7);
    let taken = harness.ask(move |service, net| {
        let buffer = service.buffers.take(1).unwrap();
        net.receive_raw(id, buffer)
    });
    assert!(!taken);
}

#[test]
fn one_source_of_raw_bytes_does_not_keep_the_loop_from_others() {
    let harness = raw_harness();
    let mut loud = harness.connect();
    let mut other = harness.connect();
    let stop = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (mut loud, stop) = (loud.try_clone().unwrap(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let message = raw_message(&pattern(RAW_MAX, 1));
            while stop.load(Ordering::Relaxed) == 0 {
                loud.write_all(&message).unwrap();
            }
            loud.shutdown(Shutdown::Write).unwrap();
        })
    };
    let passed = Arc::new(AtomicUsize::new(0));
    let reader = {
        let passed = Arc::clone(&passed);
        std::thread::spawn(move || {
            let mut buffer = vec![0; RAW_MAX];
            while let Ok(received @ 1..) = loud.read(&mut buffer) {
                passed.fetch_add(received, Ordering::Relaxed);
            }
        })
    };
    let mut echoes = 0;
    while echoes < 50 || passed.load(Ordering::Relaxed) < 64 * RAW_MAX {
        assert_echo(&mut other, b"still served");
        echoes += 1;
    }
    stop.store(1, Ordering::Relaxed);
    writer.join().unwrap();
    reader.join().unwrap();
}

/// A client's caller sends its own request while the loop's thread sleeps.
#[test]
fn another_thread_works_with_a_shared_loop_while_that_sleeps() {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address();
    // By itself it wakes for nothing.
    let sweep_interval = Duration::from_secs(3600);
    let config = LoopConfig { tick_interval: None, sweep_interval, ..LoopConfig::default() };
    let event_loop = EventLoop::new(config, Some(listener)).unwrap();
    let (events_in, events) = unbounded();
    let (_commands, commands_out) = unbounded();
    let service = TestService {
        events: events_in,
        commands: commands_out,
        echo: false,
        raw_prefix: None,
        buffers: BufferPool::new(RAW_MAX, RAW_BUFFERS),
        raw_sent: 0,
        pause_after_frame: false,
        report_frames: true,
        queued_bytes_max_seen: 0,
        ticks: 0,
        idle_asked: 0,
        due: None,
    };
    let shared = Arc::new(SharedLoop::new(event_loop, service));
    let running = Arc::clone(&shared);
    let thread = std::thread::spawn(move || running.run().unwrap());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let Ok(Event::Accepted(id)) = events.recv_timeout(PATIENCE) else { panic!("not accepted") };
    let deadline = Instant::now() + PATIENCE;
    // It is refused for as long as the loop itself is at work.
    let work = |work: &mut dyn FnMut(&mut TestService, &mut Net)| {
        while shared.try_with(|service, net| work(service, net)).is_none() {
            assert!(Instant::now() < deadline, "the loop never sleeps");
            std::thread::yield_now();
        }
    };
    work(&mut |_, net| assert!(net.send(id, |out| out.extend(frame(b"from another thread")))));
    let mut received = vec![0; frame(b"from another thread").len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, frame(b"from another thread"));
    // What is due earlier than the loop would wake by itself wakes it.
    let due = Instant::now() + Duration::from_millis(20);
    work(&mut |service, net| {
        service.due = Some(due);
        net.set_alarm(Some(due));
    });
    assert!(matches!(events.recv_timeout(PATIENCE), Ok(Event::Due)), "the alarm wakes nobody");
    work(&mut |_, net| net.exit());
    thread.join().unwrap();
}
