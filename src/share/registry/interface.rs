//! The parameters of a registry, and the lines of its console.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::console;
use crate::model::FileName;
use crate::text::escape;

/// The parameters of [`run`](super::run).
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The address to listen on; port 0 takes any free port.
    pub listen: SocketAddr,
    /// Whether the lines of SPEC C1 are written to standard output.
    pub console: bool,
    /// The number of threads that ask the directory.
    pub workers: usize,
    /// The time without a message after which a peer counts as dead. The directory has to use the
    /// same.
    pub silence_timeout: Duration,
    /// The most peers that may have joined. Fewer if the system allows fewer open files.
    pub peers_max: usize,
}

/// An event that has a console line in SPEC C1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// A peer has joined, with these files in the order in which it sent them.
    Joined { address: SocketAddr, names: Vec<FileName> },
    /// A peer has searched for a name.
    Searched {
        /// The address at which it serves if it has joined, else the one it connects from.
        address: SocketAddr,
        name: FileName,
    },
}

impl fmt::Display for RegistryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryEvent::Joined { address, names } => {
                write!(f, "Peer {address} adicionado com arquivos {}.", spaced(names))
            }
            RegistryEvent::Searched { address, name } => {
                write!(f, "Peer {address} solicitou arquivo {}.", escape(name.as_str().as_bytes()))
            }
        }
    }
}

impl console::ConsoleEntry for RegistryEvent {
    fn weight(&self) -> usize {
        const EACH: usize = size_of::<FileName>();
        match self {
            RegistryEvent::Joined { names, .. } => {
                names.iter().map(|name| name.as_str().len() + EACH).sum()
            }
            RegistryEvent::Searched { name, .. } => name.as_str().len() + EACH,
        }
    }
}

/// File names as SPEC C shows them in one line: escaped, with one space between them.
pub fn spaced<'a>(names: impl IntoIterator<Item = &'a FileName> + Clone) -> impl fmt::Display {
    let mut line = String::new();
    for name in names {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&escape(name.as_str().as_bytes()).to_string());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_lines_are_those_of_the_specification() {
        let address: SocketAddr = "10.0.0.1:8776".parse().unwrap();
        let name = |name: &str| FileName::new(name).unwrap();
        let joined = |names: Vec<FileName>| RegistryEvent::Joined { address, names }.to_string();
        assert_eq!(
            joined(vec![name("aula.mp4"), name("ação.txt")]),
            "Peer 10.0.0.1:8776 adicionado com arquivos aula.mp4 ação.txt."
        );
        assert_eq!(joined(vec![]), "Peer 10.0.0.1:8776 adicionado com arquivos .");
        assert_eq!(
            RegistryEvent::Searched { address, name: name("a\u{202e}b") }.to_string(),
            r"Peer 10.0.0.1:8776 solicitou arquivo a\xe2\x80\xaeb."
        );
    }
}
