//! `acervo gateway` and `acervo kvs`: their flags. What they do is in [`crate::gateway`] and
//! [`super::kvs`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::args::{DEFAULT_GROUP, FormatArgs, parse_listen, parse_server};
use super::units::parse_duration;
use crate::gateway::{GatewayConfig, GatewayError, GatewayThread};
use crate::limits;
use crate::net::LocalPort;
use crate::process::files;
use crate::server::config::ServerConfig;

const DEFAULT_PORT: u16 = 40000;
/// Files that a gateway beside a server opens besides its clients' connections: its clients of the
/// group, each with a connection to every server and an event loop, and its own.
const FILES_BESIDE: usize = limits::GATEWAY_CLIENTS * (2 * limits::SERVERS_MAX + 8) + 16;

/// The flags and arguments of `acervo gateway`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo gateway --port 40000
  acervo gateway --listen 0.0.0.0:40000 --servers 10.0.0.1:10097,10.0.0.2:10097,10.0.0.3:10097

Any number of gateways can serve one group. Nothing is encrypted: keep the port in a private
network. The interface is proto/project.proto; reflection and the standard health service are on.")]
pub struct GatewayArgs {
    /// The port to listen on, at 127.0.0.1; 0 takes a free one, which the log names
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub port: u16,
    /// The whole address to listen on
    #[arg(long, value_name = "IP:PORT", conflicts_with = "port", value_parser = parse_gateway)]
    pub listen: Option<SocketAddr>,
    /// The servers of the group
    #[arg(long, env = "ACERVO_SERVERS", value_name = "A,B,C",
        value_delimiter = ',', value_parser = parse_server,
        default_value = DEFAULT_GROUP)]
    pub servers: Vec<SocketAddr>,
    /// The whole time of one request to the servers; a call's own deadline may be shorter
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// How often a watch of etcd's interface with progress_notify is told how far it is
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub watch_progress_interval: Duration,
}

fn parse_gateway(text: &str) -> Result<SocketAddr, String> {
    parse_listen(text, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT))
}

impl GatewayArgs {
    /// The gateway's configuration from these flags.
    pub fn config(self) -> GatewayConfig {
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port);
        GatewayConfig {
            listen: self.listen.unwrap_or(local),
            servers: self.servers,
            request_timeout: self.timeout,
            watch_progress_interval: self.watch_progress_interval,
            local: None,
            connections_max: limits::GATEWAY_CONNECTIONS_MAX,
        }
    }
}

/// Starts a gateway in this process, beside the server that is to be run with `server`. There is
/// none where that is `optional` and its address cannot be listened on.
///
/// # Errors
/// See [`GatewayError`].
pub(super) fn start_beside(
    server: &mut ServerConfig,
    address: SocketAddr,
    optional: bool,
) -> Result<Option<GatewayThread>, GatewayError> {
    let port = LocalPort::new();
    let config = GatewayConfig {
        listen: address,
        servers: server.servers.clone(),
        request_timeout: limits::GATEWAY_REQUEST_TIMEOUT_DEFAULT,
        local: Some((server.listen, port.clone())),
        connections_max: files::room_beside_a_server(limits::GATEWAY_CONNECTIONS_MAX),
        watch_progress_interval: limits::GATEWAY_WATCH_PROGRESS_INTERVAL_DEFAULT,
    };
    let files = config.connections_max + FILES_BESIDE;
    match GatewayThread::start(config) {
        Ok(gateway) => {
            server.local_port = Some(port);
            server.files_beside = files;
            Ok(Some(gateway))
        }
        Err(error @ GatewayError::Listen { .. }) if optional => {
            log::warn!("no gateway is served: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The flags and arguments of `acervo kvs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo kvs put --chave title --valor 'Dom Casmurro'
  acervo kvs get --chave title
  acervo kvs get --chave title --versao 1795219200000000
  acervo kvs getrange --chave a --chave z --format json
  acervo kvs putall --chave a --valor 1 --chave b --valor 2
  acervo kvs del --porta 40001 --chave title

Prints a line for each reply: key, version and value, or of a write key, version, old version and
old value, with tabs between and control characters escaped; or a JSON object with the interface's
names. Exit status 1 when nothing was found. An empty value of exactly the version asked for looks
like none in this interface.")]
pub struct KvsArgs {
    /// The operation to call
    pub operation: KvsOperation,
    /// The port of the gateway
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub porta: u16,
    /// The gateway's host, a name or an IP
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// A key; of a range, both ends
    #[arg(long, value_name = "K", required = true, num_args = 1..)]
    pub chave: Vec<String>,
    /// A value, as many as there are keys
    #[arg(long, value_name = "V", num_args = 1.., allow_negative_numbers = true)]
    pub valor: Vec<String>,
    /// As of a version; the greatest given counts for all keys
    #[arg(long, value_name = "N", num_args = 1.., allow_negative_numbers = true)]
    pub versao: Vec<i64>,
    /// The deadline of the call
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// How the replies are printed.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// The operations of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvsOperation {
    /// Read the value of a key
    Get,
    /// Read every key between two, both included
    Getrange,
    /// Read several keys at once
    Getall,
    /// Write the value of a key
    Put,
    /// Write several keys at one version
    Putall,
    /// Remove every version of a key
    Del,
    /// Remove every key between two, both included
    Delrange,
    /// Remove several keys at once
    Delall,
    /// Remove every version of a key but the newest
    Trim,
}

impl KvsArgs {
    /// Checks that there are as many keys, values and versions as the operation needs.
    ///
    /// # Errors
    /// One sentence for a person.
    pub fn check(&self) -> Result<(), &'static str> {
        use KvsOperation as Op;
        let (keys, values) = (self.chave.len(), self.valor.len());
        match self.operation {
            Op::Get | Op::Put | Op::Del | Op::Trim if keys != 1 => {
                return Err("this operation is on one key: give --chave once");
            }
            Op::Getrange | Op::Delrange if keys != 2 => {
                return Err("a range has two ends: give --chave twice");
            }
            _ => {}
        }
        let writes = matches!(self.operation, Op::Put | Op::Putall);
        if writes && values != keys {
            return Err("every key needs its value: give --valor as often as --chave");
        }
        if !writes && values > 0 {
            return Err("--valor is for put and putall only");
        }
        if writes && !self.versao.is_empty() {
            return Err("a write makes its version by itself: leave --versao out");
        }
        if self.versao.len() > keys {
            return Err("there are more versions than keys: give --versao at most once a key");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::{Cli, CliCommand};
    use super::*;
    use clap::Parser;

    fn kvs(line: &str) -> Result<KvsArgs, String> {
        let words = ["acervo", "kvs"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            CliCommand::Kvs(args) => args.check().map(|()| args).map_err(str::to_owned),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_specification_and_the_limits() {
        let Ok(Cli { command: CliCommand::Gateway(args) }) =
            Cli::try_parse_from(["acervo", "gateway"])
        else {
            panic!("a gateway needs no flags")
        };
        let config = args.config();
        assert_eq!(config.listen, SocketAddr::from(([127, 0, 0, 1], 40000)));
        assert_eq!(config.servers, crate::server::config::DEFAULT_SERVERS);
        assert_eq!(config.request_timeout, limits::GATEWAY_REQUEST_TIMEOUT_DEFAULT);
        let progress = limits::GATEWAY_WATCH_PROGRESS_INTERVAL_DEFAULT;
        assert_eq!(config.watch_progress_interval, progress);
        assert_eq!(kvs("get --chave a").unwrap().porta, 40000);
    }

    #[test]
    fn flags_repeat_or_take_several() {
        for line in
            ["putall --chave a --valor 1 --chave b --valor -2", "putall --chave a b --valor 1 -2"]
        {
            let args = kvs(line).unwrap();
            assert_eq!(
                (args.chave, args.valor),
                (vec!["a".into(), "b".into()], vec!["1".into(), "-2".into()])
            );
        }
        assert_eq!(kvs("get --chave a --versao -1").unwrap().versao, [-1]);
        assert_eq!(kvs("get --porta 40001 --chave a").unwrap().porta, 40001);
    }

    #[test]
    fn what_does_not_fit_the_operation_is_refused() {
        for line in [
            "get",
            "get --chave a b",
            "getrange --chave a",
            "put --chave a",
            "put --chave a --valor 1 2",
            "putall --chave a b --valor 1",
            "get --chave a --valor 1",
            "put --chave a --valor 1 --versao 1",
            "get --chave a --versao 1 2",
            "getall --chave a --versao x",
            "find --chave a",
        ] {
            assert!(kvs(line).is_err(), "{line}");
        }
    }
}
