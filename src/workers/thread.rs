//! A thread that is waited for until a deadline, and given up after it.
//!
//! Threads that work on a disk may never end when the disk hangs, and the process that ends must
//! not wait for them for ever. The standard library joins a thread without a deadline.

use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// Why a thread did not end cleanly.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShutDownError {
    /// It panicked, where panics unwind.
    #[error("thread {0} panicked")]
    Panicked(String),
    /// It was still busy at the deadline.
    #[error("a thread did not end in time")]
    Late,
}

/// A thread with its end.
pub struct DeadlineThread {
    handle: JoinHandle<()>,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
}

impl DeadlineThread {
    /// Starts a thread of this name.
    ///
    /// # Errors
    /// The system did not start it.
    pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<DeadlineThread> {
        let (end, ended) = bounded(0);
        let run = move || {
            let _end: Sender<()> = end;
            run();
        };
        let handle = Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(DeadlineThread { handle, ended })
    }

    /// Waits for the thread until `deadline`. One that has not ended by then is abandoned.
    ///
    /// # Errors
    /// It had panicked, or was still busy at the deadline.
    pub fn finish(self, deadline: Instant) -> Result<(), ShutDownError> {
        if self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(ShutDownError::Late);
        }
        let name = self.handle.thread().name().unwrap_or_default().to_owned();
        self.handle.join().map_err(|_| ShutDownError::Panicked(name))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_hangs_is_given_up_and_one_that_ends_is_not() {
        let (release, released) = bounded::<()>(0);
        let hanging = DeadlineThread::spawn("hangs", move || {
            let _ = released.recv();
        })
        .unwrap();
        assert_eq!(hanging.finish(Instant::now()), Err(ShutDownError::Late));
        drop(release);
        let soon = || Instant::now() + Duration::from_secs(60);
        assert_eq!(DeadlineThread::spawn("ends", || {}).unwrap().finish(soon()), Ok(()));
        let panics = DeadlineThread::spawn("panics", || panic!("this panic is part of the test"));
        let panicked = Err(ShutDownError::Panicked("panics".to_owned()));
        assert_eq!(panics.unwrap().finish(soon()), panicked);
    }
}
