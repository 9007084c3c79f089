//! A scripted server on port 0: speaks the protocol, decides nothing by itself.
//!
//! The script is a closure called with each request, in order of arrival, and a [`Link`] to answer
//! on, now or later, in any order. Everything received is kept for assertions.

#![allow(dead_code, reason = "each test binary uses its own part of what is shared")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use acervo::model::{
    ClusterId, Facts, NodeId, OpResult, Previous, Timestamp, Version, WriteAnswer,
};
use acervo::wire::message::{
    ErrorCode, ErrorReply, Message, PROTOCOL_VERSION, Reply, Request, Welcome,
};

/// The server. Stops when dropped.
pub struct FakeServer {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
}

/// What a server does by itself.
pub struct FakeOptions {
    pub answers_pings: bool,
    /// The group that it says to belong to.
    pub cluster: u64,
}

impl Default for FakeOptions {
    fn default() -> FakeOptions {
        FakeOptions { answers_pings: true, cluster: 7 }
    }
}

type Script = dyn Fn(u64, Request, &Link) + Send + Sync;

pub struct Shared {
    script: Box<Script>,
    pub heard: Mutex<Heard>,
    /// Notified of everything that is heard.
    pub changed: Condvar,
    options: FakeOptions,
    port: u16,
    stopped: AtomicBool,
}

#[derive(Default)]
pub struct Heard {
    pub requests: Vec<Request>,
    pub pings: usize,
    pub pongs: Vec<u64>,
    pub connections: Vec<TcpStream>,
}

/// Answers on one connection.
#[derive(Clone)]
pub struct Link(pub Arc<Mutex<TcpStream>>);

impl Link {
    pub fn reply(&self, id: u64, body: Reply) {
        self.send(&Message::Reply { id, body });
    }

    /// Returns whether it was sent: a client that has gone away is no failure of the script.
    pub fn send(&self, message: &Message) -> bool {
        let body = rmp_serde::to_vec(message).unwrap();
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend(body);
        self.0.lock().unwrap().write_all(&frame).is_ok()
    }
}

impl FakeServer {
    pub fn start(script: impl Fn(u64, Request, &Link) + Send + Sync + 'static) -> FakeServer {
        FakeServer::start_with(FakeOptions::default(), script)
    }

    /// Answers what the script answers, and no PING.
    pub fn start_silent(
        script: impl Fn(u64, Request, &Link) + Send + Sync + 'static,
    ) -> FakeServer {
        FakeServer::start_with(FakeOptions { answers_pings: false, ..Default::default() }, script)
    }

    pub fn start_with(
        options: FakeOptions,
        script: impl Fn(u64, Request, &Link) + Send + Sync + 'static,
    ) -> FakeServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            heard: Mutex::default(),
            changed: Condvar::new(),
            options,
            port: address.port(),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let serving = Arc::clone(&accepting);
                serving.heard.lock().unwrap().connections.push(stream.try_clone().unwrap());
                thread::spawn(move || serving.serve(stream));
            }
        });
        FakeServer { address, shared }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.heard.lock().unwrap().requests.clone()
    }

    /// Breaks every connection; new ones are still taken.
    pub fn break_connections(&self) {
        for stream in &self.shared.heard.lock().unwrap().connections {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.break_connections();
        // Wakes the accepting thread, which then closes its socket.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    /// The timestamp of the last write that it says to have applied: another one at each server.
    pub fn applied(&self) -> Timestamp {
        Timestamp(i64::from(self.port))
    }

    fn serve(&self, stream: TcpStream) {
        let mut reading = stream.try_clone().unwrap();
        let link = Link(Arc::new(Mutex::new(stream)));
        while let Some(message) = read_message(&mut reading) {
            match message {
                Message::Hello(hello) => {
                    assert_eq!(hello.protocol, PROTOCOL_VERSION);
                    link.send(&Message::Welcome(Welcome {
                        protocol: PROTOCOL_VERSION,
                        cluster: ClusterId(self.options.cluster),
                        node: NodeId(1),
                        incarnation: 1,
                        last_index: 0,
                        term: 1,
                        first_leader: None,
                        applied_timestamp: self.applied(),
                    }));
                }
                Message::Request { id, body } => {
                    self.heard.lock().unwrap().requests.push(body.clone());
                    self.changed.notify_all();
                    (self.script)(id, body, &link);
                }
                Message::Ping { nonce } => {
                    self.heard.lock().unwrap().pings += 1;
                    self.changed.notify_all();
                    if self.options.answers_pings {
                        link.send(&Message::Pong { nonce });
                    }
                }
                Message::Pong { nonce } => {
                    self.heard.lock().unwrap().pongs.push(nonce);
                    self.changed.notify_all();
                }
                Message::WatchCredit { .. } => {}
                other => panic!("a client sent {other:?}"),
            }
        }
    }
}

fn read_message(stream: &mut TcpStream) -> Option<Message> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).ok()?;
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(rmp_serde::from_slice(&body).unwrap())
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn put_ok(timestamp: i64) -> Reply {
    write_ok(timestamp, None)
}

/// With what was before, if that was asked for: its version, 0 for nothing, and its value.
pub fn write_ok(timestamp: i64, previous: Option<(i64, &'static str)>) -> Reply {
    let previous = previous.map(|(timestamp, value)| match timestamp {
        0 => Previous::Absent,
        _ => {
            let timestamp = Timestamp(timestamp);
            let facts = Facts::following(None, timestamp);
            Previous::Value { timestamp, facts, value: Some(value.into()) }
        }
    });
    let timestamp = Timestamp(timestamp);
    Reply::WriteOk(WriteAnswer { timestamp, result: OpResult::Done, previous, txn: None })
}

/// The state that it comes from has gone on since, past whatever a client may have seen elsewhere.
pub fn value(value: &'static str, timestamp: i64) -> Reply {
    let value = value.into();
    let found = Version { timestamp: Timestamp(timestamp), value, facts: None };
    Reply::GetOk { found: Some(found), as_of: Timestamp(timestamp + 1_000) }
}

pub fn missing(as_of: i64) -> Reply {
    Reply::GetOk { found: None, as_of: Timestamp(as_of) }
}

pub fn error(code: ErrorCode, message: &str) -> Reply {
    Reply::Error(ErrorReply::not_done(code, message.to_owned()))
}

pub fn busy(message: &str, retry_after_ms: u32) -> Reply {
    error(ErrorCode::Busy { retry_after_ms }, message)
}
