//! The loop that puts a load on any system: raw sockets, one connection a client, one thread.
//!
//! What a system's clients say is a [`Dialect`]. Everything else, from when a request is due to how
//! it is counted, is one code for all, that of [`acervo::bench::Generator`], so that the load costs
//! each system the same. There is no second try: a lost connection ends the run.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use acervo::bench::{Answer, Ask, Generator, GeneratorTurn, Measured, Pace, Plan, Protocol};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::Outcome;

const READ_BYTES: usize = 64 * 1024;
/// How often the loop looks whether its time is over.
const TICK: Duration = Duration::from_millis(5);
/// The same of an open load, whose requests are due at their times; the system waits no shorter.
const OPEN_TICK: Duration = Duration::from_millis(1);
/// How long a system may take to accept a connection and to answer the greeting, on a machine that
/// others keep busy.
const GREETING_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a load that is counted in requests may go on without an answer: ZooKeeper 3.8 is known
/// to rest for 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// What came from a system, as its dialect understands it.
pub enum Heard {
    /// An answer to the request of this slot.
    Answer(usize, Answer),
    /// Something that no request waits for.
    Nothing,
}

/// What the clients of one system say, on one connection each.
pub trait Dialect {
    /// Appends what opens a connection. `false`: requests may be sent at once.
    fn greeting(&mut self, client: usize, out: &mut Vec<u8>) -> bool;

    /// Understands what answers the greeting, from the front of `bytes`: the bytes that it took, or
    /// `None` if they are not all there. What must be said to it goes to `out`.
    fn welcomed(
        &mut self,
        client: usize,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Outcome<Option<usize>>;

    /// Appends the next request of this slot.
    fn request(&mut self, client: usize, slot: usize, random: &mut SmallRng, out: &mut Vec<u8>);

    /// Understands what comes first in `bytes`, as [`Dialect::welcomed`] does.
    fn heard(
        &mut self,
        client: usize,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Outcome<Option<(usize, Heard)>>;
}

/// A frame after its length in four bytes, if it is all there; and the bytes of both.
pub fn frame(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    Some((rest.get(..length)?, 4 + length))
}

/// The dialect of systems for which the library's own generator has a protocol: Acervo, and the
/// floor.
pub struct Framed<P>(pub P);

impl<P: Protocol> Dialect for Framed<P> {
    fn greeting(&mut self, _client: usize, out: &mut Vec<u8>) -> bool {
        self.0.greeting(out)
    }

    fn welcomed(
        &mut self,
        _client: usize,
        bytes: &[u8],
        _out: &mut Vec<u8>,
    ) -> Outcome<Option<usize>> {
        let Some((frame, taken)) = frame(bytes) else { return Ok(None) };
        self.0.welcomed(frame)?;
        Ok(Some(taken))
    }

    fn request(&mut self, client: usize, slot: usize, random: &mut SmallRng, out: &mut Vec<u8>) {
        self.0.request(client, slot, random, out);
    }

    fn heard(
        &mut self,
        client: usize,
        bytes: &[u8],
        _out: &mut Vec<u8>,
    ) -> Outcome<Option<(usize, Heard)>> {
        let Some((frame, taken)) = frame(bytes) else { return Ok(None) };
        let (slot, answer) = self.0.answer(client, frame)?;
        Ok(Some((taken, Heard::Answer(slot, answer))))
    }
}

struct Line {
    stream: TcpStream,
    /// What has come and is not understood yet.
    partial: Vec<u8>,
    /// What could not be written yet, from `written` on.
    out: Vec<u8>,
    written: usize,
}

impl Line {
    /// Connects and greets. All clients do so before the first is answered: a system that makes
    /// each a session of its own can do so together.
    fn greet(
        address: SocketAddr,
        client: usize,
        dialect: &mut dyn Dialect,
    ) -> Outcome<(std::net::TcpStream, bool)> {
        let mut stream = std::net::TcpStream::connect_timeout(&address, GREETING_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GREETING_TIMEOUT))?;
        let mut out = Vec::new();
        let is_answered = dialect.greeting(client, &mut out);
        stream.write_all(&out)?;
        Ok((stream, is_answered))
    }

    /// Waits for the answer to a greeting that `is_answered`.
    fn open(
        mut stream: std::net::TcpStream,
        is_answered: bool,
        client: usize,
        dialect: &mut dyn Dialect,
    ) -> Outcome<Line> {
        let (mut out, mut partial) = (Vec::new(), Vec::new());
        if is_answered {
            let taken = loop {
                if let Some(taken) = dialect.welcomed(client, &partial, &mut out)? {
                    break taken;
                }
                let mut piece = [0; 4096];
                let read = stream.read(&mut piece);
                match read.map_err(|error| format!("a greeting is not answered: {error}"))? {
                    0 => return Err("a greeting is answered by closing the connection".into()),
                    length => partial.extend_from_slice(&piece[..length]),
                }
            };
            partial.drain(..taken);
        }
        stream.set_nonblocking(true)?;
        Ok(Line { stream: TcpStream::from_std(stream), partial, out, written: 0 })
    }

    /// Writes as much as the socket takes. The rest goes when it takes more.
    fn flush(&mut self) -> Outcome<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }
}

/// Puts a load on the systems' servers; client n has its connection to `addresses[n % their
/// number]`. `began` is called when measuring begins.
pub fn run(
    plan: &Plan,
    addresses: &[SocketAddr],
    dialect: &mut dyn Dialect,
    mut began: impl FnMut(),
) -> Outcome<Measured> {
    assert_eq!(plan.targets.len(), 1, "to the generator each client has one connection");
    let mut poll = Poll::new()?;
    let mut greeted = Vec::new();
    for client in 0..plan.clients {
        greeted.push(Line::greet(addresses[client % addresses.len()], client, dialect)?);
    }
    let mut lines = Vec::new();
    for (client, (stream, is_answered)) in greeted.into_iter().enumerate() {
        let mut line = Line::open(stream, is_answered, client, dialect)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut line.stream, Token(client), interest)?;
        lines.push(line);
    }
    let mut load = PeerLoad {
        generator: Generator::new(plan, Instant::now())?,
        random: SmallRng::seed_from_u64(plan.seed),
        dialect,
        lines,
        dirty: Vec::new(),
        heard_at: Instant::now(),
    };
    let now = Instant::now();
    let ups = (0..plan.clients).map(|client| load.generator.connection_up(client, 0, now));
    if ups.last() == Some(GeneratorTurn::BeginsToMeasure) {
        began();
    }
    let tick = if plan.pace == Pace::Closed { TICK } else { OPEN_TICK };
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        load.send()?;
        match load.generator.turn(Instant::now()) {
            GeneratorTurn::Running => {}
            GeneratorTurn::BeginsToMeasure => began(),
            GeneratorTurn::Over => return Ok(load.generator.finish()),
        }
        match poll.poll(&mut events, Some(tick)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            load.take(event.token().0, &mut buffer)?;
        }
        if load.generator.is_counted_in_requests() && load.heard_at.elapsed() > SILENCE_MAX {
            return Err("it does not answer any more".into());
        }
    }
}

struct PeerLoad<'a> {
    generator: Generator,
    random: SmallRng,
    dialect: &'a mut dyn Dialect,
    lines: Vec<Line>,
    /// Lines with something to write.
    dirty: Vec<usize>,
    heard_at: Instant,
}

impl PeerLoad<'_> {
    /// Sends everything that is due.
    fn send(&mut self) -> Outcome<()> {
        let now = Instant::now();
        while let Some(Ask { client, slot, .. }) = self.generator.next(now, &mut self.random) {
            let out = &mut self.lines[client].out;
            self.dialect.request(client, slot, &mut self.random, out);
            self.dirty.push(client);
        }
        for client in std::mem::take(&mut self.dirty) {
            self.lines[client].flush()?;
        }
        Ok(())
    }

    /// Reads what a client's connection has, and counts it.
    fn take(&mut self, client: usize, buffer: &mut [u8]) -> Outcome<()> {
        let line = &mut self.lines[client];
        line.flush()?;
        loop {
            let length = match line.stream.read(buffer) {
                Ok(0) => return Err("a server closes its connection".into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.heard_at = Instant::now();
            // What is whole is understood where it was read to.
            let is_whole = line.partial.is_empty();
            if !is_whole {
                line.partial.extend_from_slice(&buffer[..length]);
            }
            let bytes = if is_whole { &buffer[..length] } else { &line.partial[..] };
            let mut taken = 0;
            while taken < bytes.len() {
                let heard = self.dialect.heard(client, &bytes[taken..], &mut line.out)?;
                let Some((length, heard)) = heard else { break };
                taken += length;
                if let Heard::Answer(slot, answer) = heard {
                    self.generator.answered(client, slot, &answer, self.heard_at);
                }
            }
            if is_whole {
                line.partial.extend_from_slice(&buffer[taken..length]);
            } else {
                line.partial.drain(..taken);
            }
            if !line.out.is_empty() {
                self.dirty.push(client);
            }
            if length < buffer.len() {
                return Ok(());
            }
        }
    }
}
