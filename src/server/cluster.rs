//! `acervo cluster`: a whole group under one terminal, each server a real process of this same
//! executable.
//!
//! Every child's standard input is a pipe whose other end only this process holds, and the child
//! stops when it ends (`--stop-on-stdin-end`). So the children stop with this process however it
//! dies, and closing the pipes is also how they are asked to stop. They are in process groups of
//! their own: a Ctrl-C at the terminal reaches only this process, which then stops them in order.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;

use super::config::data_dir_under;
use crate::limits::CLUSTER_STOP_TIMEOUT;
use crate::process;
use crate::text::counted;

/// Bytes of a child's line that are held in memory; a longer line is passed on in pieces.
const CLUSTER_LINE_BYTES_MAX: usize = 64 * 1024;

/// A group, as `acervo cluster` starts it.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The executable that each server runs.
    pub program: PathBuf,
    /// The servers of the group, of which the first leads first.
    pub servers: Vec<SocketAddr>,
    /// Where each server gets a data directory of its own.
    pub data_root: PathBuf,
    /// Flags that every server is given as they are.
    pub flags: Vec<OsString>,
    /// Flags that the first server is given besides.
    pub first_flags: Vec<OsString>,
    /// Flags that the last server is given besides.
    pub last_flags: Vec<OsString>,
}

/// Why a cluster ended, if it was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Signals could not be watched.
    #[error("signals could not be watched: {0}")]
    Signals(io::Error),
    /// A server or a thread for it could not be started.
    #[error("the server on {server} could not be started: {error}")]
    Start {
        /// The address of the server.
        server: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Every server has ended by itself.
    #[error("all servers of the cluster have ended by themselves; their lines above say why")]
    AllEnded,
}

/// Runs the group until it is [told to stop](process::stop_signals), or until no server is left.
///
/// # Errors
/// See [`ClusterError`]; the servers that did start have been stopped.
pub fn run(config: &ClusterConfig) -> Result<(), ClusterError> {
    // Before the first child is started, so that the end of none is missed.
    let signals = watch_signals().map_err(ClusterError::Signals)?;
    let mut members = Members { running: Vec::new(), printing: Vec::new() };
    let result = members.start_all(config).and_then(|()| members.supervise(&signals));
    members.stop(&signals);
    result
}

/// Has SIGCHLD and the signals that stop a process sent to a channel. A signal that finds it full
/// loses nothing: whoever takes from it looks at all children, and stops at the first signal that
/// asks for it.
fn watch_signals() -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new(process::stop_signals().into_iter().chain([SIGCHLD]))?;
    let (sender, receiver): (Sender<i32>, _) = bounded(64);
    thread::Builder::new().name("acervo-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

struct Members {
    running: Vec<(SocketAddr, Child)>,
    printing: Vec<thread::JoinHandle<()>>,
}

impl Members {
    fn start_all(&mut self, config: &ClusterConfig) -> Result<(), ClusterError> {
        for server in &config.servers {
            self.start(config, *server)
                .map_err(|error| ClusterError::Start { server: *server, error })?;
        }
        Ok(())
    }

    fn start(&mut self, config: &ClusterConfig, server: SocketAddr) -> io::Result<()> {
        let names: Vec<_> = config.servers.iter().map(SocketAddr::to_string).collect();
        let leader = config.servers.first().unwrap_or(&server);
        let if_it_is = |one: Option<&SocketAddr>, flags| match one == Some(&server) {
            true => flags,
            false => &[][..],
        };
        let first_flags = if_it_is(config.servers.first(), &config.first_flags[..]);
        let last_flags = if_it_is(config.servers.last(), &config.last_flags[..]);
        let mut child = Command::new(&config.program)
            .arg("server")
            .args(["--listen", &server.to_string(), "--leader", &leader.to_string()])
            .args(["--servers", &names.join(",")])
            .arg("--data-dir")
            .arg(data_dir_under(&config.data_root, server))
            .arg("--stop-on-stdin-end")
            .args(&config.flags)
            .args(first_flags)
            .args(last_flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        self.running.push((server, child));
        if let Some(pipe) = stdout {
            self.print(server, pipe, io::stdout())?;
        }
        if let Some(pipe) = stderr {
            self.print(server, pipe, io::stderr())?;
        }
        Ok(())
    }

    /// Passes a child's lines on, on a thread of their own, each behind the server's port.
    fn print(
        &mut self,
        server: SocketAddr,
        pipe: impl Read + Send + 'static,
        out: impl Write + Send + 'static,
    ) -> io::Result<()> {
        let prefix = format!("{} | ", server.port());
        let name = format!("acervo-lines-{}", server.port());
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || pass_lines(BufReader::new(pipe), out, &prefix))?;
        self.printing.push(thread);
        Ok(())
    }

    /// Returns when asked to stop, or with an error when no child is left.
    fn supervise(&mut self, signals: &Receiver<i32>) -> Result<(), ClusterError> {
        loop {
            let ended = self.take_ended();
            for (at, (server, status)) in ended.iter().enumerate() {
                // Those that ended at the same time, and are named next, count as going on.
                let left = (self.running.len() + ended.len() - 1 - at) as u64;
                let left = counted(left, "goes on", "go on");
                log::warn!("the server on {server} ended by itself ({status}); {left}");
            }
            if self.running.is_empty() {
                return Err(ClusterError::AllEnded);
            }
            match signals.recv() {
                Ok(SIGCHLD) => {}
                // A signal that stops, or the end of the thread that watches for signals.
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }

    fn take_ended(&mut self) -> Vec<(SocketAddr, ExitStatus)> {
        let mut ended = Vec::new();
        self.running.retain_mut(|(server, child)| match child.try_wait() {
            Ok(Some(status)) => {
                ended.push((*server, status));
                false
            }
            // An error means that it cannot be waited for; stopping will kill it.
            Ok(None) | Err(_) => true,
        });
        ended
    }

    /// Asks every child to stop, waits for them, and kills those that do not, or all of them at a
    /// second signal.
    fn stop(mut self, signals: &Receiver<i32>) {
        for (_, child) in &mut self.running {
            drop(child.stdin.take());
        }
        let deadline = Instant::now() + CLUSTER_STOP_TIMEOUT;
        loop {
            self.take_ended();
            if self.running.is_empty() {
                break;
            }
            match signals.recv_deadline(deadline) {
                Ok(SIGCHLD) => {}
                Ok(_) | Err(_) => break,
            }
        }
        for (server, mut child) in self.running {
            log::warn!("the server on {server} did not stop in time and is killed");
            // Both fail only when it has ended meanwhile.
            let _ = child.kill();
            let _ = child.wait();
        }
        for thread in self.printing {
            let _ = thread.join();
        }
    }
}

/// Copies lines, each written at once behind `prefix`, until the input ends. When the output is
/// gone the rest is read and thrown away, so that the child is never held up by it.
fn pass_lines(mut input: impl BufRead, mut out: impl Write, prefix: &str) {
    let mut line = Vec::new();
    let mut gone = false;
    loop {
        line.clear();
        line.extend_from_slice(prefix.as_bytes());
        let mut bounded = (&mut input).take(CLUSTER_LINE_BYTES_MAX as u64);
        match bounded.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        gone = gone || out.write_all(&line).and_then(|()| out.flush()).is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_prefixed_and_long_ones_cut() {
        let long = "x".repeat(CLUSTER_LINE_BYTES_MAX + 1);
        let input = format!("one\n\n{long}\nlast");
        let mut out = Vec::new();
        pass_lines(input.as_bytes(), &mut out, "10097 | ");
        let expected = format!(
            "10097 | one\n10097 | \n10097 | {}\n10097 | x\n10097 | last\n",
            &long[..CLUSTER_LINE_BYTES_MAX]
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
