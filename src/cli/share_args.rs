//! The share's commands on the command line: every flag, default and example.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::args::{FormatArgs, Switch, parse_address, parse_listen, parse_server};
use super::units::{parse_duration, parse_rate};
use crate::limits;
use crate::model::FileName;
use crate::text::unescape;

const DEFAULT_REGISTRY: &str = "127.0.0.1:1099";
/// The environment's variable that stands for `--registry` where that is not given.
pub const REGISTRY_VARIABLE: &str = "ACERVO_REGISTRY";

/// The flags and arguments of `acervo registry`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo registry             on a terminal: asks for IP and port
  acervo registry --listen 127.0.0.1:1099
  acervo registry --listen 10.0.0.2:1099 --servers 10.0.0.1:10097,10.0.0.2:10097,10.0.0.3:10097

Peers that were joined come back by themselves when a registry is restarted.")]
pub struct RegistryArgs {
    /// The address to listen on
    #[arg(long, value_name = "IP:PORT", value_parser = parse_registry)]
    pub listen: Option<SocketAddr>,
    /// Keep the index in the store of these servers, so that several registries serve one index
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = parse_server)]
    pub servers: Option<Vec<SocketAddr>>,
    /// A peer unheard of for this long is not offered any more; peers speak up every 5 seconds, so
    /// with less they come and go
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub silence_timeout: Duration,
    /// Whether console lines are written
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub console: Switch,
    /// Threads that answer requests [default: one a processor]
    #[arg(long, value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=limits::WORKERS_MAX as u64))]
    pub workers: Option<u64>,
    /// The most peers that may have joined; the address with the most of them makes room for others
    #[arg(long, value_name = "N", hide = true, default_value_t = limits::CONNECTIONS_MAX as u64,
        value_parser = clap::value_parser!(u64).range(1..=limits::CONNECTIONS_MAX as u64))]
    pub peers_max: u64,
}

/// The flag that names registries.
#[derive(Clone, Debug, Args)]
pub struct RegistriesArgs {
    /// The registry; of several that serve one index, the first that answers is asked
    // The whole path keeps clap from taking each address for an option's value of its own.
    #[arg(long, env = REGISTRY_VARIABLE, value_name = "A[,B,C]", value_parser = parse_registries,
        default_value = DEFAULT_REGISTRY)]
    pub registry: ::std::vec::Vec<SocketAddr>,
}

/// The flags and arguments of `acervo peer`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo peer
  acervo peer --registry 10.0.0.1:1099

Entries are chosen by number or name; Ctrl-D, 'sair', 'exit' or 'quit' leave.")]
pub struct PeerArgs {
    /// The registries that are asked.
    #[command(flatten)]
    pub registries: RegistriesArgs,
    /// The most bytes to send a second, and to receive a second, such as 20MiB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit: Option<u64>,
}

/// The flags and arguments of `acervo share`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo share ~/Films
  acervo share ~/Films --registry 10.0.0.1:1099 --limit 20MiB/s

Shared are the regular files directly in the folder, each as soon as it is hashed, the smallest
first; not hidden ones, unfinished files (.part, .crdownload, .aria2), links, or folders in it: how
many were left out is said, and RUST_LOG=info says which and why.
What was found is kept in the folder as .acervo-share, so that no file is hashed twice.
Ctrl-C stops.")]
pub struct ShareArgs {
    /// The folder to share
    pub dir: PathBuf,
    /// The registries that are asked.
    #[command(flatten)]
    pub registries: RegistriesArgs,
    /// The address to serve on; of port 0, any free one [default: every address, any free port]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_peer)]
    pub listen: Option<SocketAddr>,
    /// The most bytes to send a second, such as 20MiB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit: Option<u64>,
    /// Say nothing but what goes wrong
    #[arg(long)]
    pub quiet: bool,
    /// TCP congestion control by the system's name for it
    #[arg(long, value_name = "NAME", hide = true)]
    pub congestion: Option<String>,
}

/// The flags and arguments of `acervo fetch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo fetch aula.mp4
  acervo fetch aula.mp4 --to ~/Films --limit 20MiB/s
  acervo fetch aula.mp4 --registry 10.0.0.1:1099 --format json --quiet
  acervo fetch --escaped 'a\\xe2\\x80\\xaeb.txt'   a name as 'acervo files' lists it

Every peer that has the file gives a part of it. What is stopped half-way goes on where it was when
the same command is given again.
Exit status: 0 fetched, 1 nobody has it, 2 usage, 3 no registry or no peer reached, 4 it could not
be stored.")]
pub struct FetchArgs {
    /// The file's name, with its extension
    pub name: OsString,
    /// Read the name escaped, as `acervo files` shows it: \xNN is a byte
    #[arg(long)]
    pub escaped: bool,
    /// The folder to put it in, which is made if it is not there
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub to: PathBuf,
    /// Which of several contents of that name, by its BLAKE3 hash or the first 8 or more digits of
    /// it [default: the one at most IP addresses]
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    pub content: Option<String>,
    /// The registries that are asked.
    #[command(flatten)]
    pub registries: RegistriesArgs,
    /// The address to serve on what has arrived [default: every address, any free port]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_peer)]
    pub listen: Option<SocketAddr>,
    /// The most bytes to receive a second, and to send a second, such as 20MiB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit: Option<u64>,
    /// Give up when no peer has given anything for this long, also when all say that they have it
    /// no more: without this, that ends it in some seconds [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub patience: Option<Duration>,
    /// Show no progress bar and no warnings
    #[arg(long)]
    pub quiet: bool,
    /// Whether the answer is text or JSON.
    #[command(flatten)]
    pub format: FormatArgs,
    /// TCP congestion control by the system's name for it
    #[arg(long, value_name = "NAME", hide = true)]
    pub congestion: Option<String>,
}

/// `acervo peers` and `acervo files`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo peers
  acervo files --format json

Exit status 3 when no registry answers.")]
pub struct ListArgs {
    /// The registries that are asked.
    #[command(flatten)]
    pub registries: RegistriesArgs,
    /// Whether the answer is text or JSON.
    #[command(flatten)]
    pub format: FormatArgs,
}

impl RegistriesArgs {
    /// Whether these are what the environment names.
    pub fn are_from_environment(&self) -> bool {
        let named = std::env::var(REGISTRY_VARIABLE).ok();
        let named = named.and_then(|named| parse_registries(&named).ok());
        named.is_some_and(|named| named == self.registry)
    }

    /// The address to serve on by default: every address, of the kind that the registry has.
    pub fn anywhere(&self) -> SocketAddr {
        let ip = match self.registry.first() {
            Some(SocketAddr::V6(_)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            Some(SocketAddr::V4(_)) | None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        SocketAddr::new(ip, 0)
    }
}

fn parse_registry(text: &str) -> Result<SocketAddr, String> {
    parse_address(text, crate::share::registry::DEFAULT_REGISTRY)
}

/// Registries, each named once and no more than a peer may be given.
fn parse_registries(text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut registries = Vec::new();
    for address in text.split(',') {
        let address = parse_registry(address)?;
        if registries.contains(&address) {
            return Err(format!("{address} is named twice"));
        }
        registries.push(address);
    }
    match registries.len() {
        ..=limits::REGISTRIES_MAX => Ok(registries),
        count => Err(format!("name at most {} registries, not {count}", limits::REGISTRIES_MAX)),
    }
}

fn parse_peer(text: &str) -> Result<SocketAddr, String> {
    parse_listen(text, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000))
}

impl FetchArgs {
    /// The name of the file to fetch.
    ///
    /// # Errors
    /// One sentence for a person.
    pub fn file_name(&self) -> Result<FileName, String> {
        let given = self.name.as_encoded_bytes();
        let name = if self.escaped { unescape(given) } else { given.to_vec() };
        let name = String::from_utf8(name).map_err(|_| "a file name is UTF-8 text".to_owned())?;
        FileName::new(&name).map_err(|error| match self.escaped || unescape(given) == given {
            true => error.to_string(),
            false => format!("{error}; --escaped reads it as 'acervo files' shows it"),
        })
    }
}

const HASH_DIGITS_MIN: usize = 8;
const HASH_DIGITS_MAX: usize = 64;

/// The beginning of a hash, in lower case.
fn parse_hash(text: &str) -> Result<String, String> {
    let length = (HASH_DIGITS_MIN..=HASH_DIGITS_MAX).contains(&text.len());
    if length && text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("write {HASH_DIGITS_MIN} to {HASH_DIGITS_MAX} hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_registries_as_a_peer_may_be_given_each_once() {
        let list = |count: usize| {
            let addresses: Vec<_> =
                (0..count).map(|at| format!("10.0.0.1:{}", 1099 + at)).collect();
            addresses.join(",")
        };
        assert_eq!(parse_registries(&list(limits::REGISTRIES_MAX)).unwrap().len(), 9);
        assert!(
            parse_registries(&list(limits::REGISTRIES_MAX + 1)).unwrap_err().contains("at most 9")
        );
        assert!(parse_registries("10.0.0.1:1,10.0.0.1:1").unwrap_err().contains("twice"));
        for text in ["", "10.0.0.1:1,", "10.0.0.1:0", "registry"] {
            let example = "write IP:PORT, such as 127.0.0.1:1099";
            assert_eq!(parse_registries(text), Err(example.to_owned()), "{text}");
        }
    }
}
