//! A console's real input and output: a terminal with line editing, or a pipe.

use std::collections::HashMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Config, Editor, ExternalPrinter};

use super::{Input, Kind, Screen, Typed};
use crate::text::{LineError, read_line};

/// Opens the process's own input and output and lets `dialogue` run on them: on a terminal that can
/// edit lines, or on whatever there is in its place.
///
/// # Errors
/// Those of the dialogue.
pub fn run<E>(
    dialogue: impl FnOnce(&mut dyn Input, Arc<dyn Screen>, Kind) -> Result<(), E>,
) -> Result<(), E> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        // Fails on terminals that cannot edit lines, which are served as a pipe is.
        if let Ok((mut keyboard, screen)) = open_terminal() {
            return dialogue(&mut keyboard, screen, Kind::Terminal);
        }
    }
    dialogue(&mut Pipe(io::stdin().lock()), Arc::new(Streams), Kind::Pipe)
}

type LineEditor = Editor<(), DefaultHistory>;

fn open_terminal() -> Result<(Keyboard, Arc<dyn Screen>), ReadlineError> {
    let config = Config::builder().auto_add_history(true).build();
    let mut editor = LineEditor::with_config(config)?;
    let printer = editor.create_external_printer()?;
    let keyboard = Keyboard { editor, histories: HashMap::new() };
    Ok((keyboard, Arc::new(Terminal(Mutex::new(printer)))))
}

/// Lines from a terminal, edited. Each question has a history of its own, so that the arrow keys
/// bring back entries at the menu and keys where a key is asked for.
struct Keyboard {
    editor: LineEditor,
    /// By prompt, of which there is a handful.
    histories: HashMap<String, DefaultHistory>,
}

impl Keyboard {
    /// Puts the prompt's history into the editor, or takes it out again.
    fn swap_history(&mut self, prompt: &str) {
        let history = self.histories.entry(prompt.to_owned()).or_default();
        mem::swap(history, self.editor.history_mut());
    }
}

impl Input for Keyboard {
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError> {
        self.swap_history(prompt);
        let typed = self.editor.readline(prompt);
        self.swap_history(prompt);
        match typed {
            Ok(line) if line.len() > crate::limits::INPUT_LINE_BYTES_MAX => Err(LineError::TooLong),
            Ok(line) => Ok(Typed::Line(line)),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            // A resized window interrupts too, and costs the line.
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Ok(Typed::Cancelled),
            Err(ReadlineError::Io(error)) => Err(error.into()),
            Err(other) => Err(io::Error::other(other).into()),
        }
    }
}

/// Lines above the prompt that is being edited.
struct Terminal<P>(Mutex<P>);

impl<P: ExternalPrinter + Send> Screen for Terminal<P> {
    fn event(&self, line: &str) {
        // A terminal that has gone away ends the reading thread, which ends the process.
        let mut printer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = printer.print(format!("{line}\n"));
    }

    fn remark(&self, line: &str) {
        self.event(line);
    }

    /// Not through the printer: that may wait for the next reading, which this thread is to begin.
    fn say(&self, line: &str) {
        let _ = writeln!(io::stdout(), "{line}");
    }
}

/// Lines from anything else.
struct Pipe<R>(R);

impl<R: BufRead> Input for Pipe<R> {
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError> {
        // Standard output is for event lines alone. Without standard error there are no prompts.
        let _ = write!(io::stderr(), "{prompt}");
        Ok(read_line(&mut self.0)?.map_or(Typed::End, Typed::Line))
    }
}

/// Events on standard output, remarks on standard error.
struct Streams;

impl Screen for Streams {
    fn event(&self, line: &str) {
        // When nobody reads any more there is nobody to tell.
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    fn remark(&self, line: &str) {
        let _ = writeln!(io::stderr(), "{line}");
    }

    fn say(&self, line: &str) {
        self.remark(line);
    }
}
