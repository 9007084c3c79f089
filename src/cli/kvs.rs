//! `acervo kvs`: a client of the gRPC interface (SPEC B1), which makes one call and prints its
//! replies as they come.

use std::error::Error as _;
use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::stream;
use serde_json::json;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::args::Format;
use super::gateway::{KvsArgs, KvsOperation};
use super::outcome::CommandOutcome;
use super::output::{Object, print_json};
use crate::client::dial::{dial, left};
use crate::gateway::interface::key_value_store_client::KeyValueStoreClient;
use crate::gateway::interface::{
    KeyRange, KeyRequest, KeyValueRequest, KeyValueVersionReply, PREVIOUS_UNREAD, PutReply,
};
use crate::limits;
use crate::process::exit_status;
use crate::text::escape;
use crate::wire::message::HelloRole;

/// When a call of `acervo kvs` has taken so long, or half of its time, it looks whether anything
/// answers where the gateway is.
const KVS_SILENT_AFTER: Duration = Duration::from_secs(5);

/// How long a call that has ended at its own deadline waits for who looks, whose time is over then:
/// a thread has only to be told.
const KVS_LOOK_GRACE: Duration = Duration::from_millis(250);

/// The transport's message for a call whose deadline has passed on this side.
const OWN_DEADLINE: &str = "Timeout expired";
/// The reason when something takes connections and answers nothing.
const SILENT: &str = "connections are taken there, and nothing is answered";

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum KvsError {
    /// The gateway cannot be reached.
    #[error(
        "the gateway at {address} cannot be reached ({reason}): is 'acervo gateway' running there?"
    )]
    Unreachable {
        /// The address at which it was expected.
        address: String,
        /// What the system said, or what was found there.
        reason: String,
    },
    /// A write was sent, or may have been, and nothing came back.
    #[error(
        "the gateway at {address} has not answered ({reason}), so the write may have taken effect: \
         read the key before you write it again"
    )]
    Unanswered {
        /// The address of the gateway.
        address: String,
        /// What the transport said, or that the time was over.
        reason: String,
    },
    /// The gateway answered with an error.
    #[error("{}: {}", code_name(.0.code()), escape(.0.message().as_bytes()))]
    Call(Box<Status>),
    /// The replies could not be printed.
    #[error("the answer could not be printed: {0}")]
    Output(io::Error),
    /// The system refused what the command needs to run.
    #[error("the command cannot start: {0}")]
    System(io::Error),
}

impl From<Status> for KvsError {
    fn from(status: Status) -> KvsError {
        KvsError::Call(Box::new(status))
    }
}

impl KvsError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            KvsError::Unreachable { .. } | KvsError::Unanswered { .. } => exit_status::UNAVAILABLE,
            KvsError::Call(status) => match status.code() {
                Code::InvalidArgument | Code::FailedPrecondition => exit_status::USAGE,
                _ => exit_status::UNAVAILABLE,
            },
            KvsError::Output(_) | KvsError::System(_) => exit_status::FAILED,
        }
    }
}

/// The name of a code, as gRPC writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Makes the call, whose arguments are [checked](KvsArgs::check), and prints its replies.
///
/// # Errors
/// See [`KvsError`].
pub fn run(args: &KvsArgs, out: &mut dyn Write) -> Result<CommandOutcome, KvsError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut printer = Printer {
        out: BufWriter::with_capacity(limits::OUTPUT_BUFFER_BYTES, out),
        format: args.format.get(),
    };
    let runtime = runtime.map_err(KvsError::System)?;
    let until = Instant::now() + args.timeout;
    let called = runtime.block_on(async {
        let mut hung = pin!(hung(args));
        let called = tokio::select! {
            biased;
            called = call(args, &mut printer) => called,
            silent = &mut hung => Err(silent),
        };
        match called {
            // Whoever looks whether the gateway answers has looked by now.
            Err(KvsError::Call(status)) if is_own_deadline(&status) => {
                match timeout(KVS_LOOK_GRACE, hung).await {
                    Ok(silent) => Err(silent),
                    Err(_) => Err(KvsError::Call(status)),
                }
            }
            called => called,
        }
    });
    // Whoever looks whether the gateway answers is waited for no more.
    runtime.shutdown_background();
    let found = match called {
        Err(KvsError::Call(status)) if status.metadata().contains_key(PREVIOUS_UNREAD) => {
            say(status.message());
            true
        }
        Err(KvsError::Call(status)) => return Err(failed(args, status, until)),
        called => called?,
    };
    printer.out.flush().map_err(KvsError::Output)?;
    Ok(if found { CommandOutcome::Done } else { CommandOutcome::NotFound })
}

/// Ends when the gateway hangs: it is found out before the call's own time is over, and looked for
/// once, so that a pager that stops the printing ends nothing.
async fn hung(args: &KvsArgs) -> KvsError {
    let patience = KVS_SILENT_AFTER.min(args.timeout / 2);
    tokio::time::sleep(patience).await;
    let (host, port, until) = (args.host.clone(), args.porta, Instant::now() + patience);
    let found = tokio::task::spawn_blocking(move || found_at(&host, port, until)).await;
    match found {
        Ok(ListenerKind::Silent) => silent(args),
        Ok(ListenerKind::Http2OrNobody | ListenerKind::Stranger(_)) | Err(_) => {
            std::future::pending().await
        }
    }
}

/// The error when nothing is answered at the gateway's address.
fn silent(args: &KvsArgs) -> KvsError {
    let (address, reason) = (address(args), SILENT.to_owned());
    match is_write(args) {
        true => KvsError::Unanswered { address, reason },
        false => KvsError::Unreachable { address, reason },
    }
}

fn is_write(args: &KvsArgs) -> bool {
    use KvsOperation as Op;
    !matches!(args.operation, Op::Get | Op::Getrange | Op::Getall)
}

fn is_own_deadline(status: &Status) -> bool {
    status.code() == Code::Cancelled && status.message() == OWN_DEADLINE
}

/// The error that a failed call means.
fn failed(args: &KvsArgs, status: Box<Status>, until: Instant) -> KvsError {
    // No gateway's word, but this side's of what came in its place.
    let is_broken = match status.code() {
        Code::Internal | Code::Unknown | Code::Unavailable => status.source().is_some(),
        Code::Cancelled => true,
        _ => false,
    };
    if !is_broken {
        return KvsError::Call(status);
    }
    let reason = escape(status.message().as_bytes()).to_string();
    let address = address(args);
    if is_own_deadline(&status) {
        return match is_write(args) {
            true => KvsError::Unanswered { address, reason },
            false => KvsError::from(Status::deadline_exceeded("the time of the call is over")),
        };
    }
    match found_at(&args.host, args.porta, until) {
        ListenerKind::Stranger(name) => KvsError::Unreachable {
            address,
            reason: format!("found there: {name}, which does not speak gRPC"),
        },
        ListenerKind::Silent => silent(args),
        ListenerKind::Http2OrNobody if is_write(args) => KvsError::Unanswered { address, reason },
        ListenerKind::Http2OrNobody => {
            KvsError::Unreachable { address, reason: format!("it broke off: {reason}") }
        }
    }
}

/// The kinds of programs that may listen where a gateway was expected.
enum ListenerKind {
    /// Something that speaks HTTP/2, or nothing any more: it may have taken a call.
    Http2OrNobody,
    /// Something else, which cannot have taken a call.
    Stranger(&'static str),
    /// Something that answers nothing, and may be a gateway that hangs.
    Silent,
}

fn found_at(host: &str, port: u16, until: Instant) -> ListenerKind {
    let resolved = (host, port).to_socket_addrs();
    let Some(address) = resolved.ok().and_then(|mut addresses| addresses.next()) else {
        return ListenerKind::Http2OrNobody;
    };
    let Ok(Ok(mut stream)) = left(until).map(|left| TcpStream::connect_timeout(&address, left))
    else {
        return ListenerKind::Http2OrNobody;
    };
    let mut first_bytes = || -> io::Result<[u8; 4]> {
        // A gateway that is flooded may take long to answer.
        stream.set_read_timeout(Some(left(until)?))?;
        // The preface of HTTP/2, and empty settings.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
        let mut first = [0; 4];
        stream.read_exact(&mut first)?;
        Ok(first)
    };
    match first_bytes().as_ref() {
        // HTTP/2 begins with a SETTINGS frame, whose length has three bytes.
        Ok([0, _, _, 4]) => return ListenerKind::Http2OrNobody,
        Ok(b"HTTP") => return ListenerKind::Stranger("a web server"),
        Ok(b"SSH-") => return ListenerKind::Stranger("an SSH server"),
        // A store, a registry or a peer would have closed the connection by now.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            return ListenerKind::Silent;
        }
        _ => {}
    }
    for (role, name) in [
        (HelloRole::CLIENT, "a server of an acervo store"),
        (HelloRole::Share, "an acervo registry or a peer of a share"),
    ] {
        if dial(address, role, until).is_ok() {
            return ListenerKind::Stranger(name);
        }
    }
    ListenerKind::Stranger("something")
}

/// Writes a remark to standard error, if there is one.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "acervo: {}", escape(message.as_bytes()));
}

/// Writes to standard error why what there was before a write is missing from its answer, if it is.
fn say_unread(metadata: &MetadataMap) -> bool {
    let why = metadata.get(PREVIOUS_UNREAD);
    if let Some(why) = why {
        let why = why.to_str().unwrap_or("the gateway does not say why");
        say(&format!("the write is done; what was there before could not be read: {why}"));
    }
    why.is_some()
}

struct Printer<'a> {
    out: BufWriter<&'a mut dyn Write>,
    format: Format,
}

impl Printer<'_> {
    fn print(&mut self, line: &dyn Display, object: Object) -> Result<(), KvsError> {
        match self.format {
            Format::Text => writeln!(self.out, "{line}"),
            Format::Json => print_json(&mut self.out, &object),
        }
        .map_err(KvsError::Output)
    }

    fn value(&mut self, reply: &KeyValueVersionReply) -> Result<(), KvsError> {
        let KeyValueVersionReply { key, val, ver } = reply;
        let object = Object::default().with("key", json!(key)).with("val", json!(val));
        let [key, val] = [key, val].map(|text| escape(text.as_bytes()));
        self.print(&format_args!("{key}\t{ver}\t{val}"), object.with("ver", json!(ver)))
    }

    fn put(&mut self, reply: &PutReply) -> Result<(), KvsError> {
        let PutReply { key, old_val, old_ver, ver } = reply;
        let object = Object::default().with("key", json!(key)).with("old_val", json!(old_val));
        let object = object.with("old_ver", json!(old_ver)).with("ver", json!(ver));
        let [key, val] = [key, old_val].map(|text| escape(text.as_bytes()));
        self.print(&format_args!("{key}\t{ver}\t{old_ver}\t{val}"), object)
    }
}

/// Whether a reply means that the key was found. Where several keys were asked for, "not there" is
/// an answer, too.
async fn call(args: &KvsArgs, printer: &mut Printer<'_>) -> Result<bool, KvsError> {
    use KvsOperation as Op;
    let client = &mut connect(args).await?;
    // A write that says which version it removes ignores it, as the interface wants.
    let keys: Vec<KeyRequest> = args
        .chave
        .iter()
        .enumerate()
        .map(|(at, key)| KeyRequest { key: key.clone(), ver: args.versao.get(at).copied() })
        .collect();
    let one = || keys.first().cloned().unwrap_or_default();
    let range = || KeyRange { fr: keys.first().cloned(), to: keys.get(1).cloned() };
    let pairs = || {
        let pairs = args.chave.iter().zip(&args.valor);
        pairs
            .map(|(key, val)| KeyValueRequest { key: key.clone(), val: val.clone() })
            .collect::<Vec<_>>()
    };
    let asked = args.versao.iter().copied().max().filter(|ver| *ver > 0);
    Ok(match args.operation {
        Op::Get | Op::Del | Op::Trim => {
            let request = with_deadline(args, one());
            let (reply, asked) = match args.operation {
                Op::Get => (client.get(request).await, asked),
                Op::Del => (client.del(request).await, None),
                _ => (client.trim(request).await, None),
            };
            let reply = reply?;
            if say_unread(reply.metadata()) {
                return Ok(true);
            }
            let reply = reply.into_inner();
            printer.value(&reply)?;
            is_found(&reply, asked)
        }
        Op::Getrange => {
            values(client.get_range(with_deadline(args, range())).await?, printer).await?;
            true
        }
        Op::Delrange => {
            values(client.del_range(with_deadline(args, range())).await?, printer).await?;
            true
        }
        Op::Getall => {
            let request = with_deadline(args, stream::iter(keys));
            values(client.get_all(request).await?, printer).await?;
            true
        }
        Op::Delall => {
            let request = with_deadline(args, stream::iter(keys));
            values(client.del_all(request).await?, printer).await?;
            true
        }
        Op::Put => {
            let pair = pairs().into_iter().next().unwrap_or_default();
            let reply = client.put(with_deadline(args, pair)).await?;
            say_unread(reply.metadata());
            printer.put(reply.get_ref())?;
            true
        }
        Op::Putall => {
            let request = with_deadline(args, stream::iter(pairs()));
            let mut replies = client.put_all(request).await?.into_inner();
            while let Some(reply) = replies.message().await? {
                printer.put(&reply)?;
            }
            true
        }
    })
}

fn address(args: &KvsArgs) -> String {
    // An IPv6 address stands in brackets before a port.
    let host = if args.host.contains(':') { format!("[{}]", args.host) } else { args.host.clone() };
    format!("{host}:{}", args.porta)
}

async fn connect(args: &KvsArgs) -> Result<KeyValueStoreClient<Channel>, KvsError> {
    let address = address(args);
    let unreachable = |error: tonic::transport::Error| {
        // The outermost says only that it is a transport error.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        KvsError::Unreachable { address: address.clone(), reason: cause.to_string() }
    };
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .map_err(unreachable)?
        .connect_timeout(limits::CLIENT_CONNECT_TIMEOUT.min(args.timeout))
        .connect()
        .await
        .map_err(unreachable)?;
    // Servers may have been started with a greater --max-value than a gRPC message has by default.
    let bytes_max = limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX);
    Ok(KeyValueStoreClient::new(channel).max_decoding_message_size(bytes_max))
}

fn with_deadline<T>(args: &KvsArgs, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(args.timeout);
    request
}

/// Prints the replies of a stream as they come.
async fn values(
    replies: tonic::Response<Streaming<KeyValueVersionReply>>,
    printer: &mut Printer<'_>,
) -> Result<(), KvsError> {
    let mut replies = replies.into_inner();
    while let Some(reply) = replies.message().await? {
        printer.value(&reply)?;
    }
    Ok(())
}

/// Whether a reply stands for nothing, as the interface tells it: an empty value at version 0, or
/// at the one asked for.
fn is_found(reply: &KeyValueVersionReply, asked: Option<i64>) -> bool {
    !reply.val.is_empty() || (reply.ver != 0 && Some(reply.ver) != asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_repeating_cannot_make_right_is_a_mistake_of_whoever_asks() {
        let exit = |code| KvsError::from(Status::new(code, "why")).exit_status();
        assert_eq!(exit(Code::InvalidArgument), exit_status::USAGE);
        for code in [Code::ResourceExhausted, Code::Unavailable, Code::Unknown, Code::Aborted] {
            assert_eq!(exit(code), exit_status::UNAVAILABLE, "{code}");
        }
    }
}
