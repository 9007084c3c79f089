//! Standard output of the commands that print an answer.

use std::io::{self, IsTerminal, LineWriter, Write};

use rustix::io::Errno;

/// Standard output, a line at a time on a terminal and elsewhere. [`io::Stdout`] takes writes to a stream that cannot be
/// written for done, and loses what it holds back at the end of the process without a word.
pub struct StandardOutput(LineWriter<Raw>);

struct Raw;

impl StandardOutput {
    /// The process's.
    #[expect(clippy::new_without_default, reason = "there is only one of it")]
    pub fn new() -> StandardOutput {
        StandardOutput(LineWriter::new(Raw))
    }
}

/// Whether a person sees what is printed.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
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
        rustix::io::write(io::stdout(), bytes).map_err(|error| match error {
            Errno::BADF => io::Error::other("standard output is closed"),
            error => error.into(),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
