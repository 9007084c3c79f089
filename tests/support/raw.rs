//! Connections whose bytes are made by hand, and a well-behaved client beside them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use acervo::client::Client;
use acervo::limits;
use acervo::model::{ClientId, ClusterId, NodeId, Put, RequestId, Timestamp, WriteOp};
use acervo::wire::codec;
use acervo::wire::message::{
    Channel, ErrorCode, GetRequest, Hello, HelloRole, Message, PROTOCOL_VERSION, ReadAt, Reply,
    Request, ServerStatus, WriteRequest,
};
use bytes::Bytes;

use super::{Group, PATIENCE, eventually};

/// A client that puts and gets at one server all the while.
pub struct Witness {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Witness {
    pub fn start(client: Client) -> Witness {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, done) = (stop.clone(), done.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let value = done.load(Ordering::Relaxed).to_string();
                    client.put("witness", &value).unwrap();
                    let got = client.get("witness").unwrap();
                    assert_eq!(got.value(), Some(value.as_bytes()));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let witness = Witness { stop, done, thread };
        witness.goes_on();
        witness
    }

    /// Some more puts and gets succeed.
    pub fn goes_on(&self) {
        let target = self.done.load(Ordering::Relaxed) + 10;
        eventually("another client is served", || {
            assert!(!self.thread.is_finished(), "another client was hurt");
            (self.done.load(Ordering::Relaxed) >= target).then_some(())
        });
    }

    pub fn finish(self) {
        self.goes_on();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// A connection whose bytes are made by hand.
pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    pub fn dial(address: SocketAddr) -> Raw {
        Raw::over(TcpStream::connect(address).unwrap())
    }

    /// From another address of this machine.
    pub fn dial_from(ip: Ipv4Addr, address: SocketAddr) -> Raw {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddr::from((ip, 0))).unwrap();
        connect(&socket, &address).unwrap();
        Raw::over(TcpStream::from(socket))
    }

    pub fn over(stream: TcpStream) -> Raw {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw { stream }
    }

    /// Dials and greets as a client.
    pub fn client(address: SocketAddr) -> Raw {
        Raw::dial(address).greeted()
    }

    /// The same from another address of this machine.
    pub fn client_from(ip: Ipv4Addr, address: SocketAddr) -> Raw {
        Raw::dial_from(ip, address).greeted()
    }

    fn greeted(mut self) -> Raw {
        self.send(&hello(HelloRole::CLIENT));
        assert!(matches!(self.receive(), Some(Message::Welcome(_))));
        self
    }

    /// Dials and greets as server number 3 of the group.
    pub fn third_server(address: SocketAddr, cluster: ClusterId) -> Raw {
        let mut raw = Raw::dial(address);
        let (node, channel) = (NodeId(3), Channel::Bulk);
        raw.send(&hello(HelloRole::Server { cluster, node, incarnation: 9, channel }));
        assert!(matches!(raw.receive(), Some(Message::Welcome(_))));
        raw
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, message: &Message) {
        self.bytes(&frame_of(message));
    }

    /// The next message; `None` at the end of the stream.
    pub fn receive(&mut self) -> Option<Message> {
        let mut header = [0; 4];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return None,
            Err(error) => panic!("nothing came: {error}"),
        }
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        self.stream.read_exact(&mut body).unwrap();
        Some(codec::decode(&body).unwrap())
    }

    /// The connection ends after a REFUSED; its reason.
    pub fn refusal(mut self) -> String {
        match self.receive() {
            Some(Message::Refused { reason }) => {
                assert_eq!(self.receive(), None, "REFUSED is the last word");
                assert!(reason.len() <= limits::REASON_BYTES_MAX && !reason.contains('\n'));
                reason
            }
            other => panic!("not refused but {other:?}"),
        }
    }

    /// The error reply to one request.
    pub fn error(&mut self, body: Request) -> (ErrorCode, String) {
        self.send(&Message::Request { id: 7, body });
        match self.receive() {
            Some(Message::Reply { id: 7, body: Reply::Error(error) }) => {
                (error.code, error.message)
            }
            other => panic!("no error but {other:?}"),
        }
    }

    /// Both sides are still there.
    pub fn assert_alive(&mut self) {
        self.send(&Message::Ping { nonce: 5 });
        assert_eq!(self.receive(), Some(Message::Pong { nonce: 5 }));
    }
}

fn is_end(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe | ConnectionAborted)
}

pub fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

pub fn frame_of(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    codec::encode(message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
    frame
}

pub fn hello(role: HelloRole) -> Message {
    Message::Hello(Hello { protocol: PROTOCOL_VERSION, role })
}

pub fn get(key: &[u8], linearizable: bool) -> Request {
    let (key, read_at) = (Bytes::copy_from_slice(key), ReadAt::Newest { seen: None });
    Request::Get(GetRequest { key, read_at, session: None, linearizable, facts: false })
}

pub fn put(sequence: u64, key: &[u8], value: Vec<u8>) -> Request {
    let request =
        RequestId { client: ClientId(77), sequence, answered_below: 1, begun: Timestamp::ZERO };
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::from(value));
    Request::Write(WriteRequest {
        request,
        op: WriteOp::Put(Put { key, value, tells_previous: false }),
    })
}

pub fn status(address: SocketAddr) -> ServerStatus {
    let mut raw = Raw::client(address);
    raw.send(&Message::Request { id: 1, body: Request::Status });
    match raw.receive() {
        Some(Message::Reply { body: Reply::StatusOk(status), .. }) => *status,
        other => panic!("no status but {other:?}"),
    }
}

pub fn one_server() -> (Group, SocketAddr, Witness) {
    let group = Group::start(1, &["--console", "off"]);
    let witness = Witness::start(group.client());
    let address = group.addresses()[0];
    (group, address, witness)
}
