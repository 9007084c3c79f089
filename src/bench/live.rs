//! The line on a terminal that tells once a second how a load goes.
//!
//! It is written by a thread of its own, which the generator never waits for: a terminal that is
//! held (Ctrl-S) must not hold the load. What it cannot take is left out.

use std::io::{self, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::tally::WindowFigures;

/// Goes to the beginning of the line and empties it.
const CLEAR: &str = "\r\x1b[K";

/// See the module. Dropping it waits until what was shown is cleared, or the terminal is gone.
pub struct LiveLine {
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl LiveLine {
    /// A line on standard error, which should be a terminal.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start() -> io::Result<LiveLine> {
        // One line waits: an older one is of no interest.
        let (lines, shown) = sync_channel::<String>(1);
        let writer = std::thread::Builder::new().name("live line".to_owned()).spawn(move || {
            for line in shown {
                let mut terminal = io::stderr().lock();
                if terminal.write_all(line.as_bytes()).and_then(|()| terminal.flush()).is_err() {
                    return;
                }
            }
        })?;
        Ok(LiveLine { lines: Some(lines), writer: Some(writer) })
    }

    /// Shows these figures in place of those before.
    pub fn show(&self, figures: &WindowFigures) {
        if let Some(lines) = &self.lines {
            // A full channel means a terminal that takes nothing at the moment.
            let _ = lines.try_send(format!("{CLEAR}{}", line(figures)));
        }
    }

    /// Empties the line, when the load is over and may wait for the terminal.
    pub fn clear(&self) {
        if let Some(lines) = &self.lines {
            let _ = lines.send(CLEAR.to_owned());
        }
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The figures of a second, as a line.
fn line(figures: &WindowFigures) -> String {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let mut line = format!(
        "{:.0} a second   p50 {:.2} ms   p99 {:.2} ms   failed {}",
        figures.operations_per_s,
        ms(figures.p50),
        ms(figures.p99),
        figures.failures
    );
    if figures.behind > 0 {
        line.push_str(&format!("   due and not sent {}", figures.behind));
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_line_tells_of_what_waits_only_if_something_does() {
        let figures = WindowFigures {
            operations_per_s: 20_400.4,
            p50: Duration::from_micros(1_500),
            p99: Duration::from_micros(7_840),
            failures: 2,
            behind: 0,
        };
        assert_eq!(line(&figures), "20400 a second   p50 1.50 ms   p99 7.84 ms   failed 2");
        let behind = WindowFigures { behind: 300, ..figures };
        assert!(line(&behind).ends_with("failed 2   due and not sent 300"));
    }
}
