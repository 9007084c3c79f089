//! What a process settles with the system: how it is told to stop, how many connections its limit
//! on open files has room for, the status it exits with, and the commands that it runs.

pub mod exit_status;
pub mod files;
pub mod supervised;

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The signals by which a process is told to stop: SIGINT, SIGTERM, and SIGHUP, which comes when
/// its terminal is closed, unless whoever started it has it ignored, as `nohup` does.
pub fn stop_signals() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether this process was started with a signal ignored. Where the system does not tell it is
/// not.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal - 1) & 1 == 1
}

/// Calls `stop` whenever one of [`stop_signals`] comes.
pub fn watch_signals(stop: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(stop_signals())?;
    let watch = move || {
        for _ in signals.forever() {
            stop();
        }
    };
    thread::Builder::new().name("acervo-signal".into()).spawn(watch).map(drop)
}
