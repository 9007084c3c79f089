//! Shows the progress of hashing and of downloads: as bars on a terminal, as a line now and then
//! elsewhere, or not at all.
//!
//! Rule: everything is written to standard error, so that standard output carries results only.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{
    HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle,
};

use super::fetch::{FetchPhase, FetchProgress, SourceProgress, SourceState};
use super::folder::hash::HashProgress;
use crate::limits;
use crate::logging;
use crate::model::FileName;
use crate::text::{counted, escape, is_dumb_terminal};

/// Sources of one download that have a row of their own.
const SOURCES_SHOWN_MAX: usize = 8;
/// Without a terminal, the progress of a download is printed this often.
const PROGRESS_LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How long chunks have to be arriving before a rate is shown, because the first average is far
/// off.
const RATE_MEASURED_MIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisplayStyle {
    /// Progress bars that are redrawn in place.
    Bars,
    /// A line at most every [`PROGRESS_LINE_INTERVAL`].
    Lines,
    Quiet,
}

impl DisplayStyle {
    /// The style that suits standard error.
    pub fn choose(quiet: bool) -> DisplayStyle {
        match quiet {
            true => DisplayStyle::Quiet,
            // On a terminal that cannot move its cursor, bars would show nothing until the end.
            false if io::stderr().is_terminal() && !is_dumb_terminal() => DisplayStyle::Bars,
            false => DisplayStyle::Lines,
        }
    }
}

/// Writes a line to standard error from another thread: the caller does not wait, even if standard
/// error is a pipe that nobody reads.
pub fn print_line(line: &str) {
    logging::say(line);
}

/// Writes a line above a bar.
fn print_beside(bar: &ProgressBar, line: &str) {
    // If standard error fails there is nowhere to report it.
    bar.suspend(|| drop(writeln!(io::stderr(), "{line}")));
}

/// Shows the progress of hashing a folder. Files that are queued together are one batch: each batch
/// has its own bar, or its own lines.
pub struct HashDisplay {
    style: DisplayStyle,
    state: Mutex<HashState>,
}

#[derive(Default)]
struct HashState {
    bar: Option<ProgressBar>,
    /// When the last line was written, or when the current batch began.
    reported_at: Option<Instant>,
    /// Whether a batch is being hashed.
    is_hashing: bool,
    /// Whether [`HashDisplay::finish`] has been called.
    is_over: bool,
}

impl HashDisplay {
    /// Shows nothing until there is something to hash.
    pub fn new(style: DisplayStyle) -> HashDisplay {
        HashDisplay { style, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, HashState> {
        // Every state of it can be shown, so a poisoned lock does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the current progress. May be called from any thread.
    pub fn show(&self, progress: HashProgress) {
        let mut state = self.state();
        if self.style == DisplayStyle::Quiet || state.is_over {
            return;
        }
        let now = Instant::now();
        if !std::mem::replace(&mut state.is_hashing, !progress.is_done())
            && state.reported_at.is_some()
        {
            // Of later batches only those that take long are reported.
            state.reported_at = Some(now);
        }
        match self.style {
            DisplayStyle::Quiet => {}
            DisplayStyle::Bars => {
                let bar = state.bar.get_or_insert_with(|| new_bar(progress.bytes));
                bar.set_length(progress.bytes);
                let left =
                    counted(progress.files.saturating_sub(progress.files_done), "file", "files");
                let speed = rate(bar.per_sec());
                draw_row(bar, "hashing ", progress.bytes_done, &format!("{speed}, {left} left"));
                state.reported_at = Some(now);
                if progress.is_done()
                    && let Some(bar) = state.bar.take()
                {
                    bar.finish_and_clear();
                }
            }
            DisplayStyle::Lines => {
                let is_due = |at: Instant| now.duration_since(at) >= PROGRESS_LINE_INTERVAL;
                let is_first = state.reported_at.is_none();
                if is_first || state.reported_at.is_some_and(is_due) {
                    state.reported_at = Some(now);
                    if !progress.is_done() {
                        print_line(&hashing_line(&progress, is_first));
                    }
                }
            }
        }
    }

    /// Writes a line above what is shown.
    pub fn print_line(&self, line: &str) {
        match &self.state().bar {
            Some(bar) => print_beside(bar, line),
            None => print_line(line),
        }
    }

    /// Removes what is shown and ignores any further progress.
    pub fn finish(&self) {
        let mut state = self.state();
        state.is_over = true;
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// The text of a progress line; the first line of a batch says what there is to hash.
fn hashing_line(progress: &HashProgress, is_first: bool) -> String {
    let HashProgress { files, files_done, bytes, bytes_done } = *progress;
    let size = HumanBytes(bytes);
    match (bytes_done * 100).checked_div(bytes) {
        Some(percent) if !is_first => {
            let left = counted(files.saturating_sub(files_done), "file", "files");
            format!("hashing {left}: {percent} % of {size}")
        }
        _ => format!("hashing {}, {size}", counted(files, "file", "files")),
    }
}

impl Drop for HashDisplay {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Shows the progress of a download and of each of its sources.
pub struct FetchDisplay {
    style: DisplayStyle,
    name: String,
    bars: MultiProgress,
    whole: ProgressBar,
    sources: Vec<ProgressBar>,
    reported_at: Option<Instant>,
    phase: Option<FetchPhase>,
    /// Whether it has been reported that no source is left.
    has_reported_waiting: bool,
    /// Whether it has been reported that all sources are busy.
    has_reported_busy: bool,
    /// Since when the download has been receiving chunks.
    fetching_since: Option<Instant>,
}

impl FetchDisplay {
    /// `size` is the file's length in bytes.
    pub fn new(style_of: DisplayStyle, name: &FileName, size: u64) -> FetchDisplay {
        let target = match style_of {
            DisplayStyle::Bars => ProgressDrawTarget::stderr(),
            DisplayStyle::Lines | DisplayStyle::Quiet => ProgressDrawTarget::hidden(),
        };
        let bars = MultiProgress::with_draw_target(target);
        let whole = bars.add(ProgressBar::new(size).with_style(style(TEXT_ALONE)));
        FetchDisplay {
            style: style_of,
            name: escape(name.as_str().as_bytes()).to_string(),
            bars,
            whole,
            sources: Vec::new(),
            reported_at: None,
            phase: None,
            has_reported_waiting: false,
            has_reported_busy: false,
            fetching_since: None,
        }
    }

    /// Shows the current progress. To be called a few times a second.
    pub fn show(&mut self, progress: &FetchProgress, now: Instant) {
        let is_fetching = progress.phase == FetchPhase::Fetching;
        let since = self.fetching_since.filter(|_| is_fetching).unwrap_or(now);
        self.fetching_since = is_fetching.then_some(since);
        let mut progress = progress.clone();
        if now.duration_since(since) < RATE_MEASURED_MIN {
            // The rate is not known yet: NaN keeps it from being shown.
            progress.rate_bytes_per_s = f64::NAN;
            progress.sources.iter_mut().for_each(|source| source.rate_bytes_per_s = f64::NAN);
        }
        let progress = &progress;
        match self.style {
            DisplayStyle::Quiet => {}
            DisplayStyle::Bars => self.draw(progress),
            DisplayStyle::Lines => self.print_if_due(progress, now),
        }
    }

    pub fn finish(&mut self) {
        self.sources.iter().for_each(ProgressBar::finish_and_clear);
        self.whole.finish_and_clear();
    }

    fn draw(&mut self, progress: &FetchProgress) {
        draw_row(&self.whole, "", progress.done_bytes, &state(progress));
        let shown = progress.sources.len().min(SOURCES_SHOWN_MAX);
        while self.sources.len() < shown {
            let bar = self.bars.add(ProgressBar::new_spinner());
            bar.set_style(style("  {wide_msg}"));
            self.sources.push(bar);
        }
        for (bar, source) in self.sources.iter().zip(&progress.sources) {
            bar.set_message(source_line(source));
        }
        if let Some(last) = self.sources.last()
            && progress.sources.len() > shown
        {
            let more = progress.sources.len() - shown + 1;
            last.set_message(format!("and {} more", counted(more as u64, "source", "sources")));
        }
    }

    fn print_if_due(&mut self, progress: &FetchProgress, now: Instant) {
        const EVERY: Duration = PROGRESS_LINE_INTERVAL;
        let new_phase = self.phase != Some(progress.phase);
        // Reported once, since a source that is dialled again and again comes and goes.
        let new_wait = progress.waits_for_a_source() && !self.has_reported_waiting;
        self.has_reported_waiting |= new_wait;
        let new_busy = progress.is_put_off() && !self.has_reported_busy;
        self.has_reported_busy |= new_busy;
        let is_news = new_phase || new_wait || new_busy;
        if !is_news && self.reported_at.is_some_and(|at| now.duration_since(at) < EVERY) {
            return;
        }
        self.phase = Some(progress.phase);
        self.reported_at = Some(now);
        if progress.phase == FetchPhase::Ended {
            return;
        }
        let percent = (progress.done_bytes * 100).checked_div(progress.size).unwrap_or(100);
        let size = HumanBytes(progress.size);
        print_line(&format!("{}: {percent} % of {size}, {}", self.name, state(progress)));
    }
}

/// Describes in a few words what a download is doing.
fn state(progress: &FetchProgress) -> String {
    if progress.waits_for_a_source() {
        return "no source left, waiting for one".to_owned();
    }
    if progress.is_put_off() {
        let there = progress.sources.iter().filter(|source| !is_lost(source)).count() as u64;
        return format!("waiting for its turn, {}", counted(there, "busy source", "busy sources"));
    }
    match progress.phase {
        FetchPhase::Preparing => "making room".to_owned(),
        FetchPhase::Asking => "asking for the chunk hashes".to_owned(),
        // What has come is there only if the check is that of a whole file.
        FetchPhase::Checking if progress.fetched_bytes > 0 => {
            "checking the whole file, which another program may have changed".to_owned()
        }
        FetchPhase::Checking => "checking what is there already".to_owned(),
        FetchPhase::Fetching => {
            let active = progress.sources.iter().filter(|source| !is_lost(source)).count() as u64;
            let active = counted(active, "source", "sources");
            if progress.rate_bytes_per_s.is_nan() {
                return active;
            }
            let mut line = rate(progress.rate_bytes_per_s);
            let left = progress.size.saturating_sub(progress.done_bytes) as f64;
            let seconds = left / progress.rate_bytes_per_s;
            // Without a rate there is no estimate.
            if seconds.is_finite() && seconds < limits::FLAG_DURATION_MAX.as_secs_f64() {
                let left = HumanDuration(Duration::from_secs_f64(seconds.ceil()));
                // Writing into a String cannot fail.
                let _ = write!(line, ", {left:#} left");
            }
            let _ = write!(line, ", {active}");
            line
        }
        FetchPhase::Finishing => "writing the rest to the disk".to_owned(),
        FetchPhase::Ended => "done".to_owned(),
    }
}

fn is_lost(source: &SourceProgress) -> bool {
    matches!(source.state, SourceState::Lost(_))
}

fn source_line(source: &SourceProgress) -> String {
    let (address, given) = (source.address, HumanBytes(source.given_bytes));
    match &source.state {
        SourceState::Connecting => format!("{address}  connecting"),
        SourceState::Idle => format!("{address}  {given}  waiting"),
        SourceState::Busy => format!("{address}  {given}  busy with others"),
        SourceState::Active if source.rate_bytes_per_s.is_nan() => format!("{address}  {given}"),
        SourceState::Active => format!("{address}  {given}  {}", rate(source.rate_bytes_per_s)),
        // The reason may contain the peer's own words.
        SourceState::Lost(why) => format!("{address}  {given}  lost: {}", escape(why.as_bytes())),
    }
}

/// Formats a rate in bytes a second for people.
pub fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", HumanBytes(bytes_per_s.max(0.0) as u64))
}

fn new_bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    bar.with_style(style(TEXT_ALONE))
}

/// The style of a row in which no bar fits, and of a new one, which has no text to draw yet.
const TEXT_ALONE: &str = "{wide_msg}";

/// Draws a row as wide as the terminal: title, bar, bytes done of all bytes, and `more`.
fn draw_row(bar: &ProgressBar, title: &str, done_bytes: u64, more: &str) {
    let bytes = format!("{}/{}", HumanBytes(done_bytes), HumanBytes(bar.length().unwrap_or(0)));
    let (has_bar, text) = lay_out(title, &format!("{bytes}, {more}"), columns());
    // The text first, since each of these may draw the row.
    bar.set_message(text);
    bar.set_style(style(if has_bar { "{prefix}[{wide_bar}] {msg}" } else { TEXT_ALONE }));
    bar.set_prefix(title.to_owned());
    bar.set_position(done_bytes);
}

/// Decides whether a bar fits beside a row's text, and shortens the text if not even that fits. A
/// row wider than the terminal would wrap, and its first line would stay when it is redrawn.
fn lay_out(title: &str, text: &str, columns: usize) -> (bool, String) {
    let taken = title.chars().count() + "[] ".len() + text.chars().count();
    if taken + BAR_COLUMNS_MIN <= columns {
        return (true, text.to_owned());
    }
    let mut text = format!("{title}{text}");
    while text.chars().count() > columns
        && let Some(end) = text.rfind(", ")
    {
        text.truncate(end);
    }
    (false, text)
}

/// Narrowest bar that still shows progress.
const BAR_COLUMNS_MIN: usize = 10;

/// The width of the terminal, or 80 if it is unknown, the width of classic terminals.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(80)
}

// The templates are constants of this file; a wrong one falls back to a plain bar.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PeerId;

    fn source(state: SourceState) -> SourceProgress {
        SourceProgress {
            peer: PeerId(1),
            address: "10.0.0.1:5000".parse().unwrap(),
            state,
            given_bytes: 3 << 20,
            rate_bytes_per_s: 2048.0,
        }
    }

    fn progress(rate_bytes_per_s: f64) -> FetchProgress {
        FetchProgress {
            phase: FetchPhase::Fetching,
            size: 10 << 20,
            done_bytes: 4 << 20,
            kept_bytes: 0,
            fetched_bytes: 4 << 20,
            rate_bytes_per_s,
            longest_stall: Duration::ZERO,
            sources: vec![source(SourceState::Active), source(SourceState::Lost("x".to_owned()))],
        }
    }

    #[test]
    fn a_progress_line_has_the_rate_the_time_left_and_the_sources() {
        let rate = (2 << 20) as f64;
        assert_eq!(state(&progress(rate)), "2.00 MiB/s, 3s left, 1 source");
        assert_eq!(state(&progress(0.0)), "0 B/s, 1 source");
        assert_eq!(state(&progress(f64::NAN)), "1 source", "before there is a rate");
        // The display once showed "0 B/s, 0 sources" for half a minute.
        let mut alone = progress(0.0);
        alone.sources.remove(0);
        assert_eq!(state(&alone), "no source left, waiting for one");
        alone.phase = FetchPhase::Checking;
        let whole = "checking the whole file, which another program may have changed";
        assert_eq!(state(&alone), whole, "it needs none for that");
        alone.fetched_bytes = 0;
        assert_eq!(state(&alone), "checking what is there already");
    }

    #[test]
    fn a_row_too_narrow_for_a_bar_has_none_and_a_text_too_long_is_cut_between_parts() {
        let text = "12.00 MiB/200.00 MiB, 60.00 MiB/s, 3s left, 1 source";
        assert_eq!(lay_out("", text, 80), (true, text.to_owned()));
        assert_eq!(lay_out("", text, text.len()), (false, text.to_owned()));
        for (columns, shown) in [
            (40, "12.00 MiB/200.00 MiB, 60.00 MiB/s"),
            (30, "12.00 MiB/200.00 MiB"),
            (10, "12.00 MiB/200.00 MiB"),
        ] {
            assert_eq!(lay_out("", text, columns), (false, shown.to_owned()));
        }
        let (has_bar, text) =
            lay_out("hashing ", "1.00 GiB/3.00 GiB, 2.00 GiB/s, 3 files left", 40);
        assert_eq!((has_bar, &text[..]), (false, "hashing 1.00 GiB/3.00 GiB, 2.00 GiB/s"));
    }

    #[test]
    fn no_rate_is_shown_before_one_is_measured() {
        let name = FileName::new("film.mkv").unwrap();
        let mut display = FetchDisplay::new(DisplayStyle::Lines, &name, 10 << 20);
        let (start, progress) = (Instant::now(), progress((2 << 20) as f64));
        display.show(&progress, start);
        assert_eq!(display.fetching_since, Some(start));
        display.show(&FetchProgress { phase: FetchPhase::Asking, ..progress.clone() }, start);
        assert_eq!(display.fetching_since, None, "what is measured begins anew with the phase");
    }

    #[test]
    fn only_one_is_singular() {
        let hashing = |files, files_done, bytes_done, is_first| {
            hashing_line(&HashProgress { files, files_done, bytes: 200, bytes_done }, is_first)
        };
        assert_eq!(hashing(1, 0, 0, true), "hashing 1 file, 200 B");
        assert_eq!(hashing(2, 0, 0, true), "hashing 2 files, 200 B");
        assert_eq!(hashing(2, 1, 50, false), "hashing 1 file: 25 % of 200 B");
        assert_eq!(hashing(3, 1, 50, false), "hashing 2 files: 25 % of 200 B");
    }

    #[test]
    fn a_sources_row_has_its_bytes_and_its_refusal_is_escaped() {
        assert_eq!(
            source_line(&source(SourceState::Active)),
            "10.0.0.1:5000  3.00 MiB  2.00 KiB/s"
        );
        assert_eq!(
            source_line(&source(SourceState::Lost("\x1b[2J".to_owned()))),
            r"10.0.0.1:5000  3.00 MiB  lost: \x1b[2J"
        );
    }
}
