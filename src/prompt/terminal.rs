//! A console's real input and output: a terminal with line editing, a terminal without, or a pipe.
//!
//! Rule: an answer that comes while somebody types is shown above the line that is being typed, and
//! no thread that brings one waits for the person. From a pipe, lines of the specification go to
//! standard output and all else to standard error.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, IsTerminal, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::termios::OptionalActions;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Cmd, Config, Editor, ExternalPrinter, KeyCode, KeyEvent, Modifiers};
use signal_hook::consts::{SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::{Input, InputKind, Screen, Typed};
use crate::limits;
use crate::logging;
use crate::text::{LineError, is_dumb_terminal, read_line};

/// How long a console's question is open before answers to earlier ones are shown above it: longer
/// than it takes to read a line that was typed ahead, shorter than anybody notices.
const CONSOLE_PROMPT_PAUSE: Duration = Duration::from_millis(60);
/// Bytes to which a terminal that edits lines by itself cuts each, without its end.
const TERMINAL_LINE_BYTES_MAX: usize = 4095;
/// Lines waiting to be shown above an open question; one more waits. Each request of a console may
/// bring one for each server, and its threads must not wait here for the thread that reads.
const CONSOLE_ABOVE_PROMPT_LINES_MAX: usize =
    2 * limits::CLIENT_SUBMITS_MAX * (limits::SERVERS_MAX + 1);

/// Lines of the console that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the answers could not be printed: {0}")]
pub struct OutputError(#[from] io::Error);

/// Opens the process's own input and output and lets `dialogue` run on them: on a terminal that can
/// edit lines, or on whatever there is in its place.
///
/// # Errors
/// Those of the dialogue; [`OutputError`] when it has ended well and a line was lost on the way.
pub fn run<E: From<OutputError>>(
    dialogue: impl FnOnce(&mut dyn Input, Arc<dyn Screen>, InputKind) -> Result<(), E>,
) -> Result<(), E> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        if let Err(error) = restore_when_ended() {
            log::debug!(
                "a signal that ends this console will leave its terminal as it is: {error}"
            );
        }
        // Opening fails on terminals that cannot edit lines and are not called `dumb`.
        if !is_dumb_terminal()
            && let Ok((mut keyboard, screen)) = open_terminal()
        {
            let _diverted = divert_log(&screen);
            return dialogue(&mut keyboard, screen, InputKind::Terminal);
        }
        let plain = Arc::new(Plain::default());
        let screen: Arc<dyn Screen> = Arc::<Plain>::clone(&plain);
        let _diverted = divert_log(&screen);
        return dialogue(&mut PlainInput(plain), screen, InputKind::Terminal);
    }
    let streams = Arc::new(Streams::default());
    let screen: Arc<dyn Screen> = Arc::<Streams>::clone(&streams);
    let _diverted = divert_log(&screen);
    let mut pipe = Pipe(io::stdin().lock(), Arc::clone(&streams));
    let kind = if io::stdin().is_terminal() { InputKind::Terminal } else { InputKind::Pipe };
    dialogue(&mut pipe, screen, kind)?;
    streams.failure().map_or(Ok(()), |error| Err(OutputError(error).into()))
}

/// Has lines of the log shown as remarks, where log and questions share a terminal.
fn divert_log(screen: &Arc<dyn Screen>) -> Option<logging::Diverted> {
    let screen = Arc::clone(screen);
    let is_shared = io::stdin().is_terminal() && io::stderr().is_terminal();
    is_shared.then(|| logging::divert(move |line| screen.remark(line)))
}

/// Has signals that end this process restore the terminal's settings first, which the line editor
/// has changed.
fn restore_when_ended() -> io::Result<()> {
    let before = rustix::termios::tcgetattr(io::stdin())?;
    let mut signals = Signals::new([SIGTERM, SIGQUIT])?;
    let watch = move || {
        for signal in signals.forever() {
            // Without a terminal there is nothing to put back.
            let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
            let _ = writeln!(io::stdout());
            let _ = emulate_default_handler(signal);
        }
    };
    thread::Builder::new().name("acervo-signal".to_owned()).spawn(watch).map(drop)
}

type LineEditor = Editor<(), DefaultHistory>;

fn open_terminal() -> Result<(Keyboard, Arc<dyn Screen>), ReadlineError> {
    // A bracketed paste would become one line with line ends in it. Without it what is pasted is
    // typed, and every line end of it is Enter. What was typed ahead stays in the editor's buffer
    // from one question to the next only with the editor's feature `buffer-redux`.
    let config = Config::builder().auto_add_history(true).bracketed_paste(false).build();
    let mut editor = LineEditor::with_config(config)?;
    // There is nothing to complete, and a value that is pasted may have tabs.
    editor.bind_sequence(KeyEvent(KeyCode::Tab, Modifiers::NONE), Cmd::Insert(1, "\t".to_owned()));
    let mut printer = editor.create_external_printer()?;
    let lines = Arc::new(PendingLines::default());
    let waiting = Arc::clone(&lines);
    // Ends with the process.
    thread::Builder::new().name("acervo-screen".to_owned()).spawn(move || {
        let mut open_since_long = 0;
        loop {
            let line = waiting.next_below_prompt(&mut open_since_long);
            // A terminal that has gone away ends the reading thread, which ends the process.
            let _ = printer.print(format!("{line}\n"));
        }
    })?;
    let keyboard = Keyboard { editor, histories: HashMap::new(), lines: Arc::clone(&lines) };
    Ok((keyboard, Arc::new(Terminal(lines))))
}

/// Lines that wait to be shown while somebody types.
///
/// The editor shows a line above its prompt only when nothing is left to be read, and whoever hands
/// it a second one waits meanwhile. With many lines typed ahead the threads that bring answers
/// would wait for the reading thread, and that thread for them, once as many requests are under way
/// as may be. So nobody waits for the editor but a thread of its own, and it only once a question
/// has been open for [`CONSOLE_PROMPT_PAUSE`]: before and after each reading the reading thread
/// itself writes what has come.
///
/// The queue holds more lines than requests can be under way, so that their threads never wait for
/// room in it.
#[derive(Default)]
struct PendingLines {
    state: Mutex<PendingLinesState>,
    changed: Condvar,
}

#[derive(Default)]
struct PendingLinesState {
    queue: VecDeque<String>,
    /// Whether the editor is reading a line.
    is_reading: bool,
    /// Number of lines that the editor has begun to read.
    readings: u64,
}

impl PendingLines {
    fn state(&self) -> MutexGuard<'_, PendingLinesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, line: &str) {
        let is_full = |state: &mut PendingLinesState| {
            state.is_reading && state.queue.len() >= CONSOLE_ABOVE_PROMPT_LINES_MAX
        };
        let waited = self.changed.wait_while(self.state(), is_full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.queue.push_back(line.to_owned());
        if !state.is_reading {
            state.write_all();
        }
        self.changed.notify_all();
    }

    fn begin_reading(&self) {
        let mut state = self.state();
        state.write_all();
        (state.is_reading, state.readings) = (true, state.readings + 1);
        self.changed.notify_all();
    }

    fn end_reading(&self) {
        let mut state = self.state();
        state.is_reading = false;
        state.write_all();
        self.changed.notify_all();
    }

    /// Waits for a line that has come to a question which is still open after a moment, and to
    /// which nothing has been typed. The editor shows a line that it was handed only when it next
    /// has nothing to read, and never if the dialogue ends before: so none is handed over in the
    /// middle of a paste, as far as the terminal still holds it.
    /// `open_since_long` is the number of the reading that has been open for that moment, from one
    /// call to the next.
    fn next_below_prompt(&self, open_since_long: &mut u64) -> String {
        let mut state = self.state();
        loop {
            let readings = state.readings;
            if state.is_reading && readings == *open_since_long && !state.queue.is_empty() {
                if !is_typed_ahead()
                    && let Some(line) = state.queue.pop_front()
                {
                    self.changed.notify_all();
                    return line;
                }
                *open_since_long = 0;
            }
            state = if !state.is_reading || state.queue.is_empty() {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                let still =
                    |state: &mut PendingLinesState| state.is_reading && state.readings == readings;
                let waited = self.changed.wait_timeout_while(state, CONSOLE_PROMPT_PAUSE, still);
                let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
                if result.timed_out() {
                    *open_since_long = readings;
                }
                state
            };
        }
    }
}

/// Whether the terminal holds something that the editor has not read yet.
fn is_typed_ahead() -> bool {
    rustix::io::ioctl_fionread(io::stdin()).is_ok_and(|bytes| bytes > 0)
}

impl PendingLinesState {
    fn write_all(&mut self) {
        let mut out = io::stdout().lock();
        for line in self.queue.drain(..) {
            let _ = writeln!(out, "{line}");
        }
    }
}

/// Lines from a terminal, edited. Each question has a history of its own, so that the arrow keys
/// bring back entries at the menu and keys where a key is asked for.
struct Keyboard {
    editor: LineEditor,
    /// The history of each prompt, of which there are few.
    histories: HashMap<String, DefaultHistory>,
    lines: Arc<PendingLines>,
}

impl Keyboard {
    /// Exchanges the prompt's history with that of the editor.
    fn swap_history(&mut self, prompt: &str) {
        let history = self.histories.entry(prompt.to_owned()).or_default();
        mem::swap(history, self.editor.history_mut());
    }
}

impl Input for Keyboard {
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError> {
        self.swap_history(prompt);
        self.lines.begin_reading();
        let typed = self.editor.readline(prompt);
        self.lines.end_reading();
        self.swap_history(prompt);
        match typed {
            Ok(line) if line.len() > crate::limits::INPUT_LINE_BYTES_MAX => Err(LineError::TooLong),
            Ok(line) => Ok(Typed::Line(line)),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            // A resized window interrupts too, and costs the line.
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Ok(Typed::Cancelled),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(LineError::NotUtf8)
            }
            Err(ReadlineError::Io(error)) => Err(error.into()),
            Err(other) => Err(io::Error::other(other).into()),
        }
    }
}

/// Shows lines above the prompt that is being edited.
struct Terminal(Arc<PendingLines>);

impl Screen for Terminal {
    fn event(&self, line: &str) {
        self.0.show(line);
    }

    fn remark(&self, line: &str) {
        self.0.show(line);
    }

    fn say(&self, line: &str) {
        self.0.show(line);
    }
}

/// Reads lines from a pipe or a file.
struct Pipe<R>(R, Arc<Streams>);

impl<R: BufRead> Input for Pipe<R> {
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError> {
        // Standard output is for event lines alone. Without standard error there are no prompts.
        let _ = write!(io::stderr(), "{prompt}");
        self.1.set_row_open(io::stdin().is_terminal() && io::stderr().is_terminal());
        let line = read_line(&mut self.0);
        self.1.set_row_open(false);
        Ok(line?.map_or(Typed::End, Typed::Line))
    }
}

/// Writes lines of the specification to standard output and remarks to standard error.
#[derive(Default)]
struct Streams(Mutex<StreamsState>);

#[derive(Default)]
struct StreamsState {
    /// A question stands on the terminal, whose row is to be ended before a line is written.
    is_row_open: bool,
    /// Why the first line that was lost could not be written.
    failure: Option<io::Error>,
}

impl Streams {
    fn state(&self) -> MutexGuard<'_, StreamsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_row_open(&self, is_row_open: bool) {
        self.state().is_row_open = is_row_open;
    }

    fn failure(&self) -> Option<io::Error> {
        self.state().failure.take()
    }
}

impl StreamsState {
    fn end_row(&mut self) {
        if mem::take(&mut self.is_row_open) {
            let _ = writeln!(io::stderr());
        }
    }
}

impl Screen for Streams {
    fn event(&self, line: &str) {
        let mut state = self.state();
        state.end_row();
        let mut out = io::stdout().lock();
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            // A reader that closes the pipe has read what it wanted.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                state.failure.get_or_insert(error);
            }
            _ => {}
        }
    }

    fn remark(&self, line: &str) {
        self.state().end_row();
        let _ = writeln!(io::stderr(), "{line}");
    }

    fn say(&self, line: &str) {
        self.remark(line);
    }
}

/// A terminal that cannot edit lines. A line that comes while a question is open ends its row, and
/// the question is asked again below.
#[derive(Default)]
struct Plain {
    /// The question that is being answered.
    prompt: Mutex<Option<String>>,
}

impl Plain {
    fn prompt(&self) -> MutexGuard<'_, Option<String>> {
        self.prompt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, line: &str) {
        let prompt = self.prompt();
        let mut out = io::stdout().lock();
        // A terminal that has gone away ends the reading thread, which ends the process.
        let _ = match prompt.as_deref() {
            Some(prompt) => write!(out, "\n{line}\n{prompt}"),
            None => writeln!(out, "{line}"),
        }
        .and_then(|()| out.flush());
    }
}

impl Screen for Plain {
    fn event(&self, line: &str) {
        self.show(line);
    }

    fn remark(&self, line: &str) {
        self.show(line);
    }

    fn say(&self, line: &str) {
        self.show(line);
    }
}

struct PlainInput(Arc<Plain>);

impl Input for PlainInput {
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError> {
        {
            let mut open = self.0.prompt();
            let mut out = io::stdout().lock();
            let _ = write!(out, "{prompt}").and_then(|()| out.flush());
            *open = Some(prompt.to_owned());
        }
        let line = read_line(&mut io::stdin().lock());
        *self.0.prompt() = None;
        match line? {
            // The terminal itself cuts off what is longer, and does not say so.
            Some(line) if line.len() >= TERMINAL_LINE_BYTES_MAX => Err(LineError::TooLong),
            line => Ok(line.map_or(Typed::End, Typed::Line)),
        }
    }
}
