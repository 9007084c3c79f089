//! Binding the address that a process listens on, with an error for each reason why that fails.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpListener;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another socket listens on it.
    #[error("the address {0} is in use; choose another port, or stop the program that has it")]
    InUse(SocketAddr),
    /// The IP is not one of this machine's.
    #[error("{0} is not an address of this machine; choose one that is")]
    NotHere(SocketAddr),
    /// The port is reserved for the system's administrator.
    #[error("not allowed to listen on {0}; choose a port above 1023")]
    Denied(SocketAddr),
    /// The system refused for another reason.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// The address that was asked for.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
}

/// A bound address. Connections wait in the system's queue until an
/// [`EventLoop`](super::EventLoop) serves it.
#[derive(Debug)]
pub struct Listener {
    pub(super) inner: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`; port 0 takes any free port. A port whose last user is gone is free at
    /// once, even while old connections of it fade out.
    pub fn bind(address: SocketAddr) -> Result<Listener, ListenError> {
        let classify = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse(address),
            io::ErrorKind::AddrNotAvailable => ListenError::NotHere(address),
            io::ErrorKind::PermissionDenied => ListenError::Denied(address),
            _ => ListenError::Other { address, source },
        };
        // On Unix this sets SO_REUSEADDR.
        let inner = TcpListener::bind(address).map_err(classify)?;
        let address = inner.local_addr().map_err(classify)?;
        Ok(Listener { inner, address })
    }

    /// The address, with the port the system chose when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_address_is_in_use() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(first.address().port(), 0);
        match Listener::bind(first.address()) {
            Err(ListenError::InUse(address)) => assert_eq!(address, first.address()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn says_that_an_address_is_not_here() {
        // 192.0.2.0/24 is set aside for documentation: no machine has it.
        let result = Listener::bind("192.0.2.1:0".parse().unwrap());
        assert!(matches!(result, Err(ListenError::NotHere(_))), "{result:?}");
    }
}
