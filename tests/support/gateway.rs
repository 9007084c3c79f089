//! A gateway process in front of a group of servers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{ACERVO, appending, eventually, free_addresses};

/// Dropping it kills it.
pub struct Gateway {
    pub address: SocketAddr,
    child: Option<Child>,
    log: PathBuf,
}

impl Gateway {
    /// Starts a gateway to `servers`, a list as `--servers` takes it, and waits until it listens.
    /// Its log is in `dir`.
    pub fn start(dir: &TempDir, servers: &str, more_flags: &[&str]) -> Gateway {
        let [address] = free_addresses(1)[..] else { unreachable!("one was asked for") };
        Gateway::start_at(address, dir, servers, more_flags)
    }

    /// Starts one that listens there.
    pub fn start_at(
        address: SocketAddr,
        dir: &TempDir,
        servers: &str,
        more_flags: &[&str],
    ) -> Gateway {
        let log = dir.path().join(format!("gateway-{address}.log"));
        let child = Command::new(ACERVO)
            .arg("gateway")
            .args(["--listen", &address.to_string(), "--servers", servers])
            .args(more_flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(appending(&log))
            .spawn()
            .unwrap();
        let gateway = Gateway { address, child: Some(child), log };
        eventually("the gateway listens", || gateway.log().contains("serving gRPC").then_some(()));
        gateway
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the gateway runs").id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the gateway runs");
        eventually("the gateway ends", || child.try_wait().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- log of the gateway at {}\n{}", self.address, self.log());
        }
    }
}
