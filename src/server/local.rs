//! A whole group inside one process, for the tests of programs that use a group.
//!
//! The servers are the real ones: each has its event loop, its threads, its port and its data
//! directory, syncs what it acknowledges, and talks to the others over sockets. Left out are the
//! process of its own, signals and the console.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::config::{ServerConfig, data_dir_under};
use super::{OpenedServer, ServerError, Stopper, serve};
use crate::limits;
use crate::net::Listener;
use crate::node::config::AckPolicy;
use crate::process::files;

/// Worker threads of each server: tests ask for little at once.
const WORKERS: usize = 2;

/// A group of three servers in this process, on free ports of the loopback interface.
///
/// It is for tests, of this crate and of programs that use it: nothing has to be installed or
/// started before, and any number of groups run side by side. Dropping it stops the servers.
///
/// ```
/// use acervo::Client;
/// use acervo::LocalGroup;
///
/// let dir = tempfile::tempdir()?;
/// let group = LocalGroup::start(dir.path())?;
/// let client = Client::connect(group.servers())?;
/// client.put("title", "Quincas Borba")?;
/// assert!(client.get("title")?.value().is_some());
/// group.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LocalGroup {
    members: Vec<LocalServer>,
}

#[derive(Debug)]
struct LocalServer {
    address: SocketAddr,
    stopper: Stopper,
    thread: JoinHandle<Result<(), ServerError>>,
}

impl LocalGroup {
    /// Starts the servers, each with a data directory of its own below `dir`. They listen when this
    /// returns; the first write waits for them to have met.
    ///
    /// The ports are free ones, so that a group started again in the same folder is another group
    /// and finds none of the data.
    ///
    /// # Errors
    /// A data directory cannot be written, or the system has no port, file or thread to give. No
    /// server is left running.
    pub fn start(dir: impl AsRef<Path>) -> Result<LocalGroup, ServerError> {
        let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        // All ports are taken before any server is told of them: nobody else can take one in
        // between.
        let mut listeners =
            [Listener::bind(any_port)?, Listener::bind(any_port)?, Listener::bind(any_port)?];
        listeners.sort_by_key(Listener::address);
        let servers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
        let mut group = LocalGroup { members: Vec::new() };
        for listener in listeners {
            group.members.push(LocalServer::start(
                config(dir.as_ref(), listener.address(), &servers),
                listener,
            )?);
        }
        Ok(group)
    }

    /// The addresses on which the servers listen.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.address).collect()
    }

    /// Stops the servers, which answer what they have taken first, and waits for them.
    ///
    /// # Errors
    /// The first of those that had stopped by themselves.
    pub fn stop(mut self) -> Result<(), ServerError> {
        self.stop_all()
    }

    fn stop_all(&mut self) -> Result<(), ServerError> {
        for member in &self.members {
            member.stopper.stop();
        }
        let ended: Vec<_> = self.members.drain(..).map(LocalServer::wait).collect();
        ended.into_iter().collect()
    }
}

impl Drop for LocalGroup {
    fn drop(&mut self) {
        if let Err(error) = self.stop_all() {
            log::error!("{error}");
        }
    }
}

impl LocalServer {
    fn start(config: ServerConfig, listener: Listener) -> Result<LocalServer, ServerError> {
        let address = config.listen;
        let (room, stopper) = (files::room(0)?, Stopper::new());
        let server = OpenedServer::open(config.clone(), listener, room, stopper.clone())?;
        let serving = stopper.clone();
        let thread = thread::Builder::new()
            .name(format!("acervo-{}", address.port()))
            .spawn(move || serve(server, config, room, &serving))
            .map_err(ServerError::Thread)?;
        Ok(LocalServer { address, stopper, thread })
    }

    fn wait(self) -> Result<(), ServerError> {
        let panicked = |_| Err(ServerError::Broken("its thread panicked".to_owned()));
        self.thread.join().unwrap_or_else(panicked)
    }
}

pub(super) fn config(root: &Path, listen: SocketAddr, servers: &[SocketAddr]) -> ServerConfig {
    ServerConfig {
        listen,
        servers: servers.to_vec(),
        leader: servers[0],
        data_dir: data_dir_under(root, listen),
        ack: AckPolicy::All,
        in_sync_timeout: limits::IN_SYNC_TIMEOUT_DEFAULT,
        replication_delay: Duration::ZERO,
        history: None,
        scrub_interval: limits::SCRUB_INTERVAL_DEFAULT,
        value_bytes_max: limits::VALUE_BYTES_MAX_DEFAULT,
        console: false,
        sync: true,
        workers: WORKERS,
        local_port: None,
        files_beside: 0,
        stop_on_stdin_end: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;

    #[test]
    fn groups_side_by_side_know_nothing_of_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let groups = [0, 1].map(|_| LocalGroup::start(dir.path()).unwrap());
        let clients = groups.each_ref().map(|group| Client::connect(group.servers()).unwrap());
        clients[0].put("k", "v").unwrap();
        assert_eq!(clients[1].get_linearizable("k").unwrap().found, None);
        for group in groups {
            let servers = group.servers();
            group.stop().unwrap();
            for server in servers {
                // Nobody has the port any more.
                Listener::bind(server).unwrap();
            }
        }
    }

    #[test]
    fn a_folder_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = LocalGroup::start(file.path()).unwrap_err();
        let path = file.path().to_str().unwrap();
        assert!(error.to_string().contains(path), "{error}");
    }
}
