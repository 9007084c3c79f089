//! A counting wire between a gateway and its servers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::support::free_addresses;

/// Passes connections on to servers and counts what the servers say. Its threads end with their
/// connections, or with the test's process.
pub struct Proxy {
    pub addresses: Vec<SocketAddr>,
    said: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start(servers: &[SocketAddr]) -> Proxy {
        let said = Arc::new(AtomicU64::new(0));
        let addresses = free_addresses(servers.len());
        for (address, server) in addresses.iter().zip(servers) {
            let (listener, server) = (TcpListener::bind(address).unwrap(), *server);
            let said = Arc::clone(&said);
            thread::spawn(move || {
                for client in listener.incoming().map_while(Result::ok) {
                    let Ok(server) = TcpStream::connect(server) else { continue };
                    let pairs = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    let (said, unheard) = (Arc::clone(&said), Arc::default());
                    thread::spawn(move || pass(server, client, &said));
                    thread::spawn(move || pass(pairs.0, pairs.1, &unheard));
                }
            });
        }
        Proxy { addresses, said }
    }

    /// The value of `--servers`.
    pub fn list(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(|a| a.to_string()).collect();
        addresses.join(",")
    }

    /// Bytes the servers have said.
    pub fn said(&self) -> u64 {
        self.said.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        count.fetch_add(length as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
