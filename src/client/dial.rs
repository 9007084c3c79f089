//! Connections that block, for dialogues of one question at a time: the share's and those of
//! commands.
//!
//! The calls of a client do not come here (`client::driver`).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::greeting::{self, Failure, NO_GREETING, describe, is_end};
use super::transport::{self, MessageReader, TransportError};
use crate::limits::{CLIENT_PROVOKED_TIMEOUT, HELLO_FRAME_BYTES_MAX};
use crate::wire::message::HelloRole;

/// Connects to a server and greets it before `deadline`; after it, whoever has said nothing gets
/// [`CLIENT_PROVOKED_TIMEOUT`] more to show that it is a web server. The connection refuses frames
/// longer than a greeting until its caller raises the cap.
pub(crate) fn dial(
    server: SocketAddr,
    role: HelloRole,
    deadline: Instant,
) -> Result<(TcpStream, MessageReader), Failure> {
    let io_failure = |error: io::Error| Failure::io(&error);
    let timeout = left(deadline).map_err(io_failure)?;
    let stream = TcpStream::connect_timeout(&server, timeout).map_err(io_failure)?;
    stream.set_nodelay(true).map_err(io_failure)?;
    stream.set_write_timeout(Some(timeout)).map_err(io_failure)?;
    let mut reader = MessageReader::new(HELLO_FRAME_BYTES_MAX);
    greet(&stream, &mut reader, role, deadline)?;
    Ok((stream, reader))
}

/// Says HELLO and waits for the WELCOME, or the SHARE_WELCOME.
fn greet(
    stream: &TcpStream,
    reader: &mut MessageReader,
    role: HelloRole,
    deadline: Instant,
) -> Result<(), Failure> {
    let mut frame = Vec::new();
    transport::encode(&greeting::hello(role), &mut frame)
        .map_err(|error| Failure::new(error.to_string()))?;
    let mut exchange = || -> io::Result<Result<(), Failure>> {
        let mut stream = stream;
        stream.write_all(&frame)?;
        loop {
            match reader.next_message() {
                Ok(Some(message)) => {
                    return Ok(match role {
                        HelloRole::Share => greeting::welcomed_to_share(message),
                        HelloRole::Client { .. } | HelloRole::Server { .. } => {
                            greeting::welcomed(message).map(drop)
                        }
                    });
                }
                Ok(None) => {}
                Err(TransportError::Frame(error)) => {
                    return Ok(Err(greeting::stranger(Some(&error), role)));
                }
                Err(TransportError::Message(_)) => return Ok(Err(greeting::stranger(None, role))),
            }
            stream.set_read_timeout(Some(left(deadline)?))?;
            match reader.fill(&mut stream) {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    exchange().unwrap_or_else(|error| {
        Err(match error.kind() {
            _ if is_timeout(&error) => {
                Failure::new(provoked(stream, role).unwrap_or_else(|| NO_GREETING.to_owned()))
            }
            _ if is_end(&error) => greeting::not_greeted(role),
            _ => Failure::new(describe(&error)),
        })
    })
}

/// Names a web server that has not answered a greeting in time: it waits for the end of a line,
/// which is sent to it here.
fn provoked(mut stream: &TcpStream, role: HelloRole) -> Option<String> {
    stream.write_all(b"\r\n\r\n").ok()?;
    stream.set_read_timeout(Some(CLIENT_PROVOKED_TIMEOUT)).ok()?;
    let mut first = [0; 4];
    stream.read_exact(&mut first).ok()?;
    Some(greeting::found_there(first, role))
}

/// The time until `deadline`, or the error a socket would give when it has passed.
pub(crate) fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
