//! What every process with an event loop, a server or a registry, settles with the system: how it is told to
//! stop, and how many connections its limit on open files has room for.

pub mod files;

use std::io;
use std::thread;

use crossbeam_channel::Sender;

use crate::net::WakeHandle;

/// Puts a word into `stop` and wakes the loop when SIGINT or SIGTERM comes.
pub fn watch_signals(stop: Sender<()>, wake: WakeHandle) -> io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let watch = move || {
        for _ in signals.forever() {
            // A stop that was asked for already needs no second word.
            let _ = stop.try_send(());
            wake.wake();
        }
    };
    thread::Builder::new().name("acervo-signal".into()).spawn(watch).map(drop)
}
