//! One server of the floor.
//!
//! All frames of a direction have one length, so frames are counted and never parsed. The floor
//! runs for seconds under a bench of ours: anything unexpected ends the process with a panic.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::FRAME_BYTES;

/// An answer on the wire: a header and eight bytes.
const ANSWER: [u8; 12] = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
const PREPARED_BYTES: u64 = 64 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;
const LISTENER: Token = Token(usize::MAX);

/// Runs a server with the arguments that follow [`ARGUMENT`](super::ARGUMENT): the log's path, how
/// its file is taken, and for a leader how many followers it needs and their addresses. Does not
/// return.
pub fn serve(mut arguments: impl Iterator<Item = OsString>) -> ! {
    let path = arguments.next().expect("the log's path");
    let prepared = arguments.next().expect("how the file is taken") == "prepared";
    let mut log = Log::create(File::create(path).expect("the log is created"), prepared);
    let mut words = arguments.map(|word| word.into_string().expect("UTF-8"));
    let needed = words.next().map(|needed| needed.parse().expect("a number of followers"));
    let followers = words.map(|address| address.parse().expect("an address")).collect();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("the listener has an address"));
    listener.set_nonblocking(true).expect("the listener does not block");
    Server::new(listener, followers, needed.unwrap_or(0)).run(&mut log)
}

struct Log {
    file: File,
    prepared: bool,
    position: u64,
}

impl Log {
    fn create(mut file: File, prepared: bool) -> Log {
        if prepared {
            let zeros = vec![0; 1024 * 1024];
            for _ in 0..PREPARED_BYTES / zeros.len() as u64 {
                file.write_all(&zeros).expect("the log is prepared");
            }
            file.sync_all().expect("the log is synced");
            file.rewind().expect("the log is rewound");
        }
        Log { file, prepared, position: 0 }
    }

    fn make_durable(&mut self, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        if self.prepared && self.position > PREPARED_BYTES {
            self.file.seek(SeekFrom::Start(0)).expect("the log starts over");
            self.position = bytes.len() as u64;
        }
        self.file.write_all(bytes).expect("the log is written");
        self.file.sync_data().expect("the log is synced");
    }
}

struct Connection {
    stream: TcpStream,
    /// Bytes of an incomplete frame that have come.
    partial: usize,
    /// Answers to be written.
    out: Vec<u8>,
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    /// The followers first, then who connected.
    connections: Vec<Option<Connection>>,
    followers: usize,
    needed: usize,
    /// Frames each follower has acknowledged.
    acknowledged: Vec<u64>,
    /// Frames made durable here and answered.
    durable: u64,
    answered: u64,
    /// Whose frame comes next, in order.
    waiting: VecDeque<usize>,
}

impl Server {
    fn new(listener: std::net::TcpListener, followers: Vec<SocketAddr>, needed: usize) -> Server {
        let mut server = Server {
            poll: Poll::new().expect("a readiness system"),
            listener: TcpListener::from_std(listener),
            connections: Vec::new(),
            followers: followers.len(),
            needed,
            acknowledged: vec![0; followers.len()],
            durable: 0,
            answered: 0,
            waiting: VecDeque::new(),
        };
        let registry = server.poll.registry();
        registry
            .register(&mut server.listener, LISTENER, Interest::READABLE)
            .expect("the listener is registered");
        for address in followers {
            let stream = std::net::TcpStream::connect(address).expect("a follower listens");
            stream.set_nonblocking(true).expect("the connection does not block");
            server.adopt(TcpStream::from_std(stream));
        }
        server
    }

    fn adopt(&mut self, mut stream: TcpStream) {
        stream.set_nodelay(true).expect("small frames leave at once");
        self.poll
            .registry()
            .register(&mut stream, Token(self.connections.len()), Interest::READABLE)
            .expect("the connection is registered");
        self.connections.push(Some(Connection { stream, partial: 0, out: Vec::new() }));
    }

    fn run(mut self, log: &mut Log) -> ! {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BYTES];
        let mut batch = Vec::new();
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.expect("the readiness system works"),
            }
            for event in &events {
                match event.token() {
                    LISTENER => {
                        while let Ok((stream, _)) = self.listener.accept() {
                            self.adopt(stream);
                        }
                    }
                    Token(at) => self.read(at, &mut buffer, &mut batch),
                }
            }
            if !batch.is_empty() {
                for follower in 0..self.followers {
                    self.queue(follower, &batch);
                    self.flush(follower);
                }
                log.make_durable(&batch);
                self.durable += (batch.len() / FRAME_BYTES) as u64;
                batch.clear();
            }
            self.answer();
        }
    }

    /// Reads what has come; whole requests go to `batch`.
    fn read(&mut self, at: usize, buffer: &mut [u8], batch: &mut Vec<u8>) {
        let is_follower = at < self.followers;
        let frame_bytes = if is_follower { ANSWER.len() } else { FRAME_BYTES };
        loop {
            let Some(connection) = &mut self.connections[at] else { return };
            match connection.stream.read(buffer) {
                Ok(received) if received > 0 => {
                    connection.partial += received;
                    let frames = connection.partial / frame_bytes;
                    connection.partial %= frame_bytes;
                    if is_follower {
                        self.acknowledged[at] += frames as u64;
                    } else {
                        // Every frame has the same bytes: those of an incomplete one need not be
                        // kept.
                        batch.resize(batch.len() + frames * FRAME_BYTES, b'v');
                        self.waiting.extend(std::iter::repeat_n(at, frames));
                    }
                    if received < buffer.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    assert!(!is_follower, "a follower is gone");
                    self.connections[at] = None;
                    return;
                }
            }
        }
    }

    /// Answers what this disk and enough followers have.
    fn answer(&mut self) {
        let mut have = self.acknowledged.clone();
        have.sort_unstable_by(|one, other| other.cmp(one));
        let agreed = match self.needed {
            0 => self.durable,
            needed => have[needed - 1].min(self.durable),
        };
        let from = self.answered;
        let mut touched = Vec::new();
        while self.answered < agreed {
            let to = self.waiting.pop_front().expect("one waits for each frame");
            self.queue(to, &ANSWER);
            touched.push(to);
            self.answered += 1;
        }
        if from < agreed {
            touched.sort_unstable();
            touched.dedup();
            for to in touched {
                self.flush(to);
            }
        }
    }

    fn queue(&mut self, at: usize, bytes: &[u8]) {
        if let Some(connection) = &mut self.connections[at] {
            connection.out.extend_from_slice(bytes);
        }
    }

    /// Writes all of it. The load is closed and small, so a socket always takes everything; if one
    /// ever did not, the floor would be wrong, and stops.
    fn flush(&mut self, at: usize) {
        if let Some(connection) = &mut self.connections[at] {
            match connection.stream.write(&connection.out) {
                Ok(written) => assert_eq!(written, connection.out.len(), "a socket is full"),
                // Its end has come, or comes with the next read.
                Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "a socket is full"),
            }
            connection.out.clear();
        }
    }
}
