//! A program on a pseudo-terminal, with somebody typing.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{PATIENCE, eventually};

/// A terminal and the program on it. Dropping it kills the program.
pub struct Terminal {
    keyboard: File,
    screen: Arc<(Mutex<Vec<u8>>, Condvar)>,
    watching: Option<JoinHandle<()>>,
    /// How much was shown when something was last typed.
    typed_at: usize,
    pub child: Child,
}

impl Terminal {
    /// Runs a program whose standard input, output and error are one terminal.
    pub fn run(command: Command) -> Terminal {
        Terminal::run_on(command, "xterm")
    }

    /// The same on a terminal of this kind, as `TERM` names it.
    pub fn run_on(command: Command, kind: &str) -> Terminal {
        Terminal::open(command, kind, 0)
    }

    /// The same on a terminal of so many columns.
    pub fn run_wide(command: Command, columns: u16) -> Terminal {
        Terminal::open(command, "xterm", columns)
    }

    fn open(mut command: Command, kind: &str, columns: u16) -> Terminal {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        if columns > 0 {
            let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(&master, size).unwrap();
        }
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            Stdio::from(rustix::fs::open(&name, flags, Mode::empty()).unwrap())
        };
        let child = command
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .env("TERM", kind)
            .spawn()
            .unwrap();
        // The command holds the program's side of the terminal: without it the end of the program
        // would not end the terminal.
        drop(command);

        let keyboard = File::from(master);
        let screen = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let mut output = keyboard.try_clone().unwrap();
        let shown = Arc::clone(&screen);
        let watching = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                shown.0.lock().unwrap().extend_from_slice(&piece[..length]);
                shown.1.notify_all();
            }
        });
        Terminal { keyboard, screen, watching: Some(watching), typed_at: 0, child }
    }

    /// Types a line and Enter.
    pub fn type_line(&mut self, line: &str) {
        self.type_keys(format!("{line}\r").as_bytes());
    }

    /// Types something without Enter.
    pub fn type_keys(&mut self, keys: &[u8]) {
        self.typed_at = self.screen.0.lock().unwrap().len();
        self.keyboard.write_all(keys).unwrap();
    }

    /// Waits until the program asks, as a person does, and then types a line and Enter.
    pub fn answer(&mut self, prompt: &str, line: &str) {
        self.wait_for_prompt(prompt);
        self.type_line(line);
    }

    /// Waits until the program asks, since something was last typed.
    pub fn wait_for_prompt(&self, prompt: &str) {
        self.wait_in(self.typed_at, prompt, |shown| shown.ends_with(prompt).then_some(()));
    }

    /// Everything shown so far, escape sequences taken out.
    pub fn text(&self) -> String {
        plain(&self.screen.0.lock().unwrap())
    }

    /// The bytes that were shown so far.
    pub fn raw(&self) -> Vec<u8> {
        self.screen.0.lock().unwrap().clone()
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
    pub fn wait_for<T>(&self, what: &str, check: impl FnMut(&str) -> Option<T>) -> T {
        self.wait_in(0, what, check)
    }

    fn wait_in<T>(&self, from: usize, what: &str, mut check: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut shown = self.screen.0.lock().unwrap();
        loop {
            if let Some(found) = check(&plain(&shown[from..])) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain for {what}; the terminal shows:\n{}",
                plain(&shown)
            );
            shown = self.screen.1.wait_timeout(shown, left).unwrap().0;
        }
    }

    /// Waits until `text` is on the screen at least `times` times.
    pub fn wait_for_text(&self, text: &str, times: usize) {
        self.wait_for(text, |screen| (screen.matches(text).count() >= times).then_some(()));
    }

    /// Whether the terminal is as it is for programs that do not edit lines themselves.
    pub fn is_cooked(&self) -> bool {
        use rustix::termios::{LocalModes, tcgetattr};
        let modes = tcgetattr(&self.keyboard).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Waits until the program has ended by itself and everything it wrote is on the screen.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let status = eventually("the program ends", || self.child.try_wait().unwrap());
        if let Some(watching) = self.watching.take() {
            watching.join().unwrap();
        }
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes escape sequences out and turns carriage returns that rewrite a line into line ends, so
/// that a line that was printed over a prompt stands alone. One that only puts the cursor back
/// behind what is shown is left out.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\x1b' => rest = control_sequence(rest).1,
            '\r' => {
                let moves_right = rest
                    .strip_prefix('\x1b')
                    .is_some_and(|sequence| control_sequence(sequence).0 == Some('C'));
                if !moves_right && !rest.starts_with('\n') {
                    plain.push('\n');
                }
            }
            '\x07' | '\x08' => {}
            c => plain.push(c),
        }
    }
    plain
}

/// The last letter or sign of the control sequence behind an escape, and what follows it.
fn control_sequence(text: &str) -> (Option<char>, &str) {
    let body = text.strip_prefix('[').unwrap_or(text);
    match body.char_indices().find(|(_, c)| ('@'..='~').contains(c)) {
        Some((at, last)) => (Some(last), &body[at + 1..]),
        None => (None, ""),
    }
}
