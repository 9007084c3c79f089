//! What several commands take: the servers that are asked, how answers are printed, addresses.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::units::parse_duration;
use crate::limits;
use crate::server::config::DEFAULT_SERVERS;

/// The servers of a group when nobody names any, as `DEFAULT_SERVERS`.
pub(super) const DEFAULT_GROUP: &str = "127.0.0.1:10097,127.0.0.1:10098,127.0.0.1:10099";

/// The servers that a client can ask.
#[derive(Clone, Debug, Args)]
pub struct GroupArgs {
    /// The servers of the group
    #[arg(long, env = "ACERVO_SERVERS", value_name = "A,B,C",
        value_delimiter = ',', value_parser = parse_server,
        default_value = DEFAULT_GROUP)]
    pub servers: Vec<SocketAddr>,
}

/// Flags of every command that asks a server.
#[derive(Clone, Debug, Args)]
pub struct RequestArgs {
    /// The servers that can be asked.
    #[command(flatten)]
    pub group: GroupArgs,
    /// The whole time of the request, retries included
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Whether the answer is text or JSON.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Flags that choose between text and JSON.
#[derive(Clone, Copy, Debug, Args)]
pub struct FormatArgs {
    /// How to print the answer
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// The same as --format json
    #[arg(long, overrides_with = "format")]
    json: bool,
}

impl FormatArgs {
    /// The format that the two flags together ask for.
    pub fn get(self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

/// The formats of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people and pipes.
    Text,
    /// JSON objects, one a line.
    Json,
}

/// A flag's value that is `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// The value is `on`.
    On,
    /// The value is `off`.
    Off,
}

impl Switch {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        if self == Switch::On { "on" } else { "off" }
    }
}

/// The address of a server of a store.
pub(super) fn parse_server(text: &str) -> Result<SocketAddr, String> {
    parse_address(text, DEFAULT_SERVERS[0])
}

/// An address that can be dialled. Whoever wrote none is shown an example of the kind that is
/// meant.
pub(super) fn parse_address(text: &str, example: SocketAddr) -> Result<SocketAddr, String> {
    match parse_listen(text, example)? {
        address if address.port() == 0 => Err(format!("write IP:PORT, such as {example}")),
        address => Ok(address),
    }
}

/// An address to listen on, whose port 0 stands for any free one.
pub(super) fn parse_listen(text: &str, example: SocketAddr) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| format!("write IP:PORT, such as {example}"))
}

/// One worker a processor.
pub fn default_workers() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    processors.min(limits::WORKERS_MAX)
}
