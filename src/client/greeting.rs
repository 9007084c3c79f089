//! How a connection begins: what is said, what may be answered, and the words for what goes wrong.
//!
//! Pure: whoever dials (`client::driver`, `client::dial`) sends and receives.

use std::io;

use crate::wire::frame::FrameError;
use crate::wire::message::{Hello, HelloRole, Message, PROTOCOL_VERSION, Welcome};

/// Why a connection could not be made or is no more.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// For a person, in a few words.
    pub(crate) reason: String,
    /// The connection ended, as idle ones do, without any sign that the server is unwell.
    pub(super) ended: bool,
}

impl Failure {
    pub(crate) fn new(reason: impl Into<String>) -> Failure {
        Failure { reason: reason.into(), ended: false }
    }

    pub(crate) fn io(error: &io::Error) -> Failure {
        Failure { reason: describe(error), ended: is_end(error) }
    }
}

/// Whether an error of a socket says no more than that its connection has ended.
pub(super) fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

// The console in Portuguese (`cli::repl::explain`, `prompt`) knows these sentences by their
// beginnings, and its tests hold them: who changes one changes both.

/// Why a server that was dialled is of no use.
pub(crate) const NO_GREETING: &str = "connected, but the server did not greet in time";
/// Why a server that was reached is of no use: nothing came, or pieces of an answer without an end.
pub(crate) const NOT_IN_TIME: &str = "no whole answer came in time";
/// What [`describe`] makes of a time-out.
pub(crate) const TIMED_OUT: &str = "timed out";
/// Why a server that was dialled is of no use; what was expected follows.
pub(crate) const NOT_GREETED: &str = "the connection was closed without a greeting: is it";
/// The same; who was found follows.
pub(crate) const FOUND_THERE: &str = "found there: ";
/// The same; the server's own reason follows.
pub(crate) const REFUSED: &str = "refused: ";

/// The first message of a connection, from the side that dials.
pub(super) fn hello(role: HelloRole) -> Message {
    Message::Hello(Hello { protocol: PROTOCOL_VERSION, role })
}

/// Who is looked for.
fn expected(role: HelloRole) -> &'static str {
    match role {
        HelloRole::Share => "an acervo registry or peer",
        HelloRole::Client { .. } | HelloRole::Server { .. } => "a server of an acervo store",
    }
}

/// The connection was closed before the greeting.
pub(super) fn not_greeted(role: HelloRole) -> Failure {
    Failure::new(format!("{NOT_GREETED} {}?", expected(role)))
}

/// Names what answered a greeting with something that is no message, or no frame.
pub(super) fn stranger(error: Option<&FrameError>, role: HelloRole) -> Failure {
    let first = match error {
        // What was taken for a length.
        Some(FrameError::TooLong { announced, .. }) => {
            u32::try_from(*announced).unwrap_or_default().to_be_bytes()
        }
        _ => [0; 4],
    };
    Failure::new(found_there(first, role))
}

/// Names whoever begins with these bytes.
pub(super) fn found_there(first: [u8; 4], role: HelloRole) -> String {
    let expected = expected(role);
    let found = match &first {
        // A gateway answers over HTTP/1.1, too.
        b"HTTP" => "a web server, or an acervo gateway",
        // Some web servers answer a request without a header by an error without one.
        b"<!DO" | b"<!do" | b"<htm" | b"<HTM" => "a web server",
        // HTTP/2 begins with the settings of the connection, whose length has three bytes.
        [0, _, _, 4] => "HTTP/2, as an acervo gateway speaks",
        b"SSH-" => "an SSH server",
        _ => "something that does not speak Acervo's protocol",
    };
    format!("{FOUND_THERE}{found}; expected: {expected}")
}

/// What a store's server says in answer to HELLO.
pub(super) fn welcomed(message: Message) -> Result<Welcome, Failure> {
    match message {
        Message::Welcome(welcome) => check_protocol(welcome.protocol).map(|()| welcome),
        Message::Refused { reason } => Err(refused(&reason)),
        _ => Err(Failure::new("the server's first message is no greeting")),
    }
}

/// Checks what a registry or a peer of a share says in answer to HELLO.
pub(super) fn welcomed_to_share(message: Message) -> Result<(), Failure> {
    match message {
        Message::ShareWelcome { protocol, .. } => check_protocol(protocol),
        message => welcomed(message).and(Err(Failure::new("a store's server answers there"))),
    }
}

fn check_protocol(protocol: u32) -> Result<(), Failure> {
    if protocol == PROTOCOL_VERSION {
        return Ok(());
    }
    let ours = format!("the server speaks protocol {protocol}, this client {PROTOCOL_VERSION}");
    Err(Failure::new(ours))
}

/// What a server says is shown to people, so it is cut and made fit for a terminal.
pub(crate) fn refused(reason: &str) -> Failure {
    Failure::new(format!("{REFUSED}{}", crate::text::sentence(reason)))
}

/// The common errors in plain words, the same on every system; the rest in the system's.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ if is_end(error) => "the connection broke".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TIMED_OUT.to_owned(),
        _ => error.to_string(),
    }
}
