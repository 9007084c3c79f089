//! Standard output of the commands that print an answer.

use std::io::{self, IsTerminal, LineWriter, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::SIGPIPE;
use signal_hook::low_level::emulate_default_handler;

use crate::logging;

/// Standard output, a line at a time on a terminal and elsewhere. [`io::Stdout`] takes writes to a
/// stream that cannot be written for done, and loses what it holds back at the end of the process
/// without a word.
///
/// A pipe whose reader has gone ends the process by SIGPIPE, without a word, as it ends `cat` and
/// `etcdctl`. Status 0 would tell a script with `pipefail` that everything was printed, and any
/// other would be taken for an error of the store.
pub struct StandardOutput(LineWriter<Raw>);

struct Raw;

impl StandardOutput {
    /// The standard output of the process.
    pub fn new() -> StandardOutput {
        StandardOutput(LineWriter::new(Raw))
    }
}

/// How often it is looked, while nothing happens, whether anybody still reads what is printed.
pub(super) const READER_LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Whether a person sees what is printed.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Ends the process as a write would where standard output is a pipe whose reader has gone: for
/// commands that write only when something happens.
pub(super) fn end_without_reader() {
    let output = io::stdout();
    let mut polled = [PollFd::new(&output, PollFlags::empty())];
    // An error is not about the reader, and is met again by the next write.
    let is_ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok();
    if is_ready && polled[0].revents().contains(PollFlags::ERR) {
        end_by_broken_pipe();
    }
}

/// It does not come back, unless the system refuses.
fn end_by_broken_pipe() {
    logging::finish();
    let _ = emulate_default_handler(SIGPIPE);
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        rustix::io::write(io::stdout(), bytes).map_err(|error| {
            if error == Errno::PIPE {
                // If that comes back it is an error like others.
                end_by_broken_pipe();
            }
            match error {
                Errno::BADF => io::Error::other("standard output is closed"),
                error => error.into(),
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
