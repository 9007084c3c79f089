//! A program on a pseudo-terminal, with somebody typing.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::PATIENCE;

/// A terminal and the program on it. Dropping it kills the program.
pub struct Terminal {
    keyboard: File,
    screen: Arc<(Mutex<Vec<u8>>, Condvar)>,
    pub child: Child,
}

impl Terminal {
    /// Runs a program whose standard input, output and error are one terminal.
    pub fn run(mut command: Command) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY;
            Stdio::from(rustix::fs::open(&name, flags, Mode::empty()).unwrap())
        };
        let child = command
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .env("TERM", "xterm")
            .spawn()
            .unwrap();
        // The command holds the program's side of the terminal: without it the end of the program
        // would not end the terminal.
        drop(command);

        let keyboard = File::from(master);
        let screen = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let mut output = keyboard.try_clone().unwrap();
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                shown.0.lock().unwrap().extend_from_slice(&piece[..length]);
                shown.1.notify_all();
            }
        });
        Terminal { keyboard, screen, child }
    }

    /// Types a line and Enter.
    pub fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    /// Types something without Enter.
    pub fn type_keys(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Everything shown so far, escape sequences taken out.
    pub fn text(&self) -> String {
        plain(&self.screen.0.lock().unwrap())
    }

    /// The lines shown so far that satisfy `wanted`, whole.
    pub fn lines(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let text = self.text();
        text.lines().map(str::trim_end).filter(|line| wanted(line)).map(str::to_owned).collect()
    }

    /// Waits until the screen shows something; what `check` makes of all of it.
    ///
    /// # Panics
    /// Panics with the whole screen when it does not in time.
    pub fn wait_for<T>(&self, what: &str, mut check: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut shown = self.screen.0.lock().unwrap();
        loop {
            let text = plain(&shown);
            if let Some(found) = check(&text) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; the terminal shows:\n{text}");
            shown = self.screen.1.wait_timeout(shown, left).unwrap().0;
        }
    }

    /// Waits until `text` is on the screen at least `times` times.
    pub fn wait_for_text(&self, text: &str, times: usize) {
        self.wait_for(text, |screen| (screen.matches(text).count() >= times).then_some(()));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes escape sequences out and turns carriage returns that rewrite a line into line ends, so that
/// a line that was printed over a prompt stands alone.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                if chars.next_if_eq(&'[').is_some() {
                    // Control sequence: parameters, then one final letter or sign.
                    while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                }
                chars.next();
            }
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    plain.push('\n');
                }
            }
            '\x07' | '\x08' => {}
            c => plain.push(c),
        }
    }
    plain
}
