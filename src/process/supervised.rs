//! A command that this process has started and answers for, with the processes that it starts
//! itself.
//!
//! It gets a process group of its own, so that what it has started can be told to stop with it.
//! Where standard input is a terminal it stays in this process's group instead: a terminal lets
//! only the group in the foreground read, and a command that may ask its user something has to be
//! in that. Then signals reach the command alone, and those that the terminal makes of keys reach
//! it without help.

use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use signal_hook::consts::SIGINT;

use super::exit_status;

/// A command that runs.
pub struct Supervised {
    child: Child,
    pid: Pid,
    has_own_group: bool,
    /// Its end, once that has been asked for and told.
    ended: Option<ExitStatus>,
}

impl Supervised {
    /// Starts the command, in a process group of its own unless standard input is a terminal.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn start(mut command: Command) -> io::Result<Supervised> {
        let has_own_group = !io::stdin().is_terminal();
        if has_own_group {
            command.process_group(0);
        }
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Supervised { child, pid, has_own_group, ended: None })
    }

    /// How it has ended, if it has. A SIGCHLD that comes later tells of a later end.
    ///
    /// # Errors
    /// Those of [`Child::try_wait`].
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Whether anything of it is left, as far as can be known: the command, or what it has started.
    pub fn is_left(&self) -> bool {
        match self.has_own_group {
            true => test_kill_process_group(self.pid) != Err(Errno::SRCH),
            false => self.ended.is_none(),
        }
    }

    /// Passes on a signal that has come to this process.
    pub fn pass_on(&self, signal: i32) {
        // Of a key of the terminal the command has learnt by itself.
        if signal == SIGINT && !self.has_own_group {
            return;
        }
        if let Some(signal) = Signal::from_named_raw(signal) {
            self.signal(signal);
        }
    }

    /// Asks it to stop, with all that it has started.
    pub fn stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it, with all that it has started.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // Whoever has ended already need not be told; and when the command has been waited for,
        // its number may be another's.
        let _ = match (self.has_own_group, self.ended) {
            (true, _) => kill_process_group(self.pid, signal),
            (false, None) => kill_process(self.pid, signal),
            (false, Some(_)) => Ok(()),
        };
    }
}

/// A status as shells have it: the command's own, or that of the signal that has ended it.
pub fn status_of(ended: ExitStatus) -> u8 {
    let own = ended.code().and_then(|code| u8::try_from(code).ok());
    own.or_else(|| ended.signal().map(status_of_signal)).unwrap_or(exit_status::FAILED)
}

/// The status of a process that a signal has ended.
pub fn status_of_signal(signal: i32) -> u8 {
    // Signals have smaller numbers than 128.
    u8::try_from(signal)
        .map_or(exit_status::FAILED, |signal| exit_status::SIGNALLED.saturating_add(signal))
}
