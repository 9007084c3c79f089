//! What every process with an event loop, a server or a registry, settles with the system: how it is told to
//! stop, and how many connections its limit on open files has room for.

pub mod files;

use std::io;
use std::thread;

/// Calls `stop` whenever SIGINT or SIGTERM comes.
pub fn watch_signals(stop: impl Fn() + Send + 'static) -> io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let watch = move || {
        for _ in signals.forever() {
            stop();
        }
    };
    thread::Builder::new().name("acervo-signal".into()).spawn(watch).map(drop)
}
