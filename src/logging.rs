//! The process's log: lines on standard error that never hold up the thread that logs, and that an
//! outsider cannot multiply.
//!
//! Two rules, which hold for every line of every kind of process:
//!
//! - **Logging never waits.** A line goes into a bounded queue; one thread writes the queue to
//!   standard error. While nobody reads standard error (a terminal that is held, a full pipe, a
//!   disk that hangs) lines are dropped, counted, and the count is logged once lines can be written
//!   again.
//! - **A line that repeats is gathered.** Each place in the code may write
//!   [`LOG_LINES_PER_SITE_MAX`] lines of one level and target within [`LOG_GATHER_INTERVAL`]; those
//!   beyond are counted, and one line at the end of the interval says how many they were and shows
//!   the last of them. While it goes on, that one line is all. So whoever provokes a warning five
//!   thousand times a second does not fill the disk. LogLines of the levels debug and trace are not
//!   gathered: who turns them on wants them all.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::text::{counted, is_dumb_terminal, sentence};

/// Lines that wait to be written to standard error; further ones are dropped and counted. More than
/// a start or a failure writes at once.
const LOG_QUEUE_LINES_MAX: usize = 8 * 1024;
/// Bytes of the lines that wait; beyond, further lines are dropped and counted, too.
const LOG_QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Lines that one place in the code logs within [`LOG_GATHER_INTERVAL`] as they come: enough to see
/// what it is about; past it they are counted and told of in one line.
const LOG_LINES_PER_SITE_MAX: u32 = 8;
/// How often a summary of withheld lines is logged: six a minute of one place do not bury the
/// rest of the log.
const LOG_GATHER_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes that a summary shows of the last line that was withheld.
const LOG_LINE_SHOWN_BYTES_MAX: usize = 1024;
/// How long a process that ends waits for its last lines to be written: a reader that is there
/// takes them at once.
const LOG_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the writing thread looks for gathered lines that are due when nothing is logged.
const GATHER_LOOK: Duration = Duration::from_secs(1);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// A function that shows one line, which comes without its end.
type Show = Arc<dyn Fn(&str) + Send + Sync>;

/// The function that shows lines while a console uses the terminal that standard error is.
static DIVERSION: Mutex<Option<Show>> = Mutex::new(None);

/// Has lines shown elsewhere until it is dropped.
pub struct Diverted(());

/// Has lines shown by `show` instead of written to standard error, where they would stand in the
/// row of an open question.
pub fn divert(show: impl Fn(&str) + Send + Sync + 'static) -> Diverted {
    *diversion() = Some(Arc::new(show));
    Diverted(())
}

impl Drop for Diverted {
    fn drop(&mut self) {
        // Lines that were logged before are shown before anything else is written to the terminal.
        finish();
        *diversion() = None;
    }
}

fn diversion() -> MutexGuard<'static, Option<Show>> {
    // The value is replaced as a whole, and so is never half changed.
    DIVERSION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The variable that chooses what is logged.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// Logs to standard error from now on: what `RUST_LOG` says, or else `default_level`. Called once,
/// by `main`; a second call does nothing. What `RUST_LOG` has that cannot be meant is said in one
/// sentence, and changes nothing else.
///
/// # Errors
/// The system refused a thread.
pub fn start(default_level: &str) -> io::Result<()> {
    let (lines, queued) = LogLines::new(LOG_QUEUE_LINES_MAX);
    let mut builder = env_logger::Builder::new();
    // A queue is no terminal to the logger, so whether lines are coloured is decided here.
    let plain =
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || is_dumb_terminal();
    if io::stderr().is_terminal() && !plain {
        builder.write_style(env_logger::WriteStyle::Always);
    }
    let (filters, complaint) = chosen(std::env::var_os(FILTER_VARIABLE).as_deref(), default_level);
    builder.parse_filters(&filters);
    builder.target(env_logger::Target::Pipe(Box::new(lines.clone())));
    let logger = Logger { inner: builder.build(), gathered: Mutex::default(), lines };
    if LOGGER.set(logger).is_err() {
        return Ok(());
    }
    let Some(logger) = LOGGER.get() else { return Ok(()) };
    thread::Builder::new()
        .name("acervo-log".to_owned())
        .spawn(move || write_lines(&queued, &logger.lines.shared, &mut io::stderr(), logger))?;
    log::set_max_level(logger.inner.filter());
    // Only a second logger could be refused, and there is none.
    let _ = log::set_logger(logger);
    if let Some(complaint) = complaint {
        say(&complaint);
    }
    Ok(())
}

/// What is logged, in the words of env_logger, and what is wrong with what was asked for.
fn chosen(asked: Option<&OsStr>, default_level: &str) -> (String, Option<String>) {
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
        return (default_level.to_owned(), None);
    };
    let wrong = |why: String| {
        let asked = sentence(&asked.to_string_lossy());
        let said = format!(
            "acervo: {FILTER_VARIABLE}={asked} is not used, as {why}; the log has the level \
             {default_level}"
        );
        (default_level.to_owned(), Some(said))
    };
    let Some(filters) = asked.to_str() else { return wrong("it is not UTF-8".to_owned()) };
    if let Err(error) = env_filter::Builder::new().try_parse(filters) {
        let error = error.to_string();
        let why = error.strip_prefix("error parsing logger filter: ").unwrap_or(&error);
        return wrong(sentence(why));
    }
    // The name of a part of a program without a level stands for all that it logs. One of which
    // nothing is known is more often a level that was mistyped, with which nothing would be logged.
    let mut names = filters.split('/').next().unwrap_or_default().split(',').map(str::trim);
    let is_strange = |name: &&str| {
        let is_known = name.contains('=') || name.contains("::") || *name == "acervo";
        !name.is_empty() && !is_known && name.parse::<LevelFilter>().is_err()
    };
    match names.find(is_strange) {
        None => (filters.to_owned(), None),
        Some(name) => {
            let name = sentence(name);
            let said = format!(
                "acervo: {FILTER_VARIABLE} has {name}, which is no level (off, error, warn, info, \
                 debug, trace); for all that a crate of this name logs, write {name}=trace"
            );
            (format!("{default_level},{filters}"), Some(said))
        }
    }
}

/// Writes one line to standard error, behind everything that was logged before.
pub fn say(line: &str) {
    match LOGGER.get() {
        Some(logger) => logger.lines.push(format!("{line}\n").into_bytes()),
        // Without standard error the exit status has to say it alone.
        None => drop(writeln!(io::stderr(), "{line}")),
    }
}

/// Waits until what was logged is written, for at most [`LOG_DRAIN_TIMEOUT`], since nobody may read
/// standard error.
pub fn finish() {
    if let Some(logger) = LOGGER.get() {
        logger.lines.drain(LOG_DRAIN_TIMEOUT);
    }
}

// ---- the queue and its thread ----------------------------------------------------------------

enum Item {
    Line(Vec<u8>),
    /// A marker whose sender is dropped when everything before it is written.
    Drain(Sender<()>),
}

/// The sending half of the queue. Clones share it.
#[derive(Clone)]
struct LogLines {
    queue: Sender<Item>,
    shared: Arc<LogShared>,
}

#[derive(Default)]
struct LogShared {
    /// Sum of the bytes of the lines queued.
    bytes: AtomicUsize,
    /// Number of lines dropped since the log last said so.
    dropped: AtomicU64,
}

impl LogLines {
    fn new(lines_max: usize) -> (LogLines, Receiver<Item>) {
        let (queue, queued) = bounded(lines_max);
        (LogLines { queue, shared: Arc::default() }, queued)
    }

    /// Queues a line, or drops it when the queue is full. It never waits.
    fn push(&self, line: Vec<u8>) {
        let bytes = line.len();
        let queued = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if queued > LOG_QUEUE_BYTES_MAX || self.queue.try_send(Item::Line(line)).is_err() {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn drain(&self, timeout: Duration) {
        let (written, done) = bounded(0);
        if self.queue.send_timeout(Item::Drain(written), timeout).is_ok() {
            // Both outcomes mean that there is nothing more to wait for.
            let _ = done.recv_timeout(timeout);
        }
    }
}

/// The logger formats a record as a whole and writes it with one call, so a call is a line.
impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(queued: &Receiver<Item>, shared: &LogShared, out: &mut dyn Write, logger: &Logger) {
    loop {
        let item = match queued.recv_timeout(GATHER_LOOK) {
            Ok(item) => item,
            Err(RecvTimeoutError::Timeout) => {
                logger.log_gathered(Instant::now(), LOG_GATHER_INTERVAL);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match item {
            Item::Line(line) => {
                shared.bytes.fetch_sub(line.len(), Ordering::Relaxed);
                // Taken out of its lock: showing may wait, and the console may end meanwhile.
                let show = diversion().clone();
                match show {
                    Some(show) => show(String::from_utf8_lossy(&line).trim_end_matches('\n')),
                    // A standard error that was closed takes no lines, and there is nowhere to say
                    // so.
                    None => drop(out.write_all(&line)),
                }
            }
            Item::Drain(written) => {
                // The process ends: what was withheld is logged now, before the marker.
                if logger.log_gathered(Instant::now(), Duration::ZERO) > 0 {
                    let again = logger.lines.queue.try_send(Item::Drain(written));
                    debug_assert!(again.is_ok() || queued.is_full());
                }
            }
        }
        let dropped = shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            log::warn!(
                "{} dropped: standard error was not read as fast as the log was written",
                counted(dropped, "log line was", "log lines were")
            );
        }
    }
}

// ---- gathering -------------------------------------------------------------------------------

struct Logger {
    inner: env_logger::Logger,
    gathered: Mutex<Gathered>,
    lines: LogLines,
}

/// A place in the code that logs, and what it logs there: many warnings of one place must not hide
/// an error of the same place, nor those of one target another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Site {
    file: &'static str,
    line: u32,
    level: Level,
    target: String,
}

/// The lines of the present interval, by the place that logs them.
#[derive(Default)]
struct Gathered {
    sites: HashMap<Site, Burst>,
}

#[derive(Debug)]
struct Burst {
    since: Instant,
    /// Number of lines that were written as they came.
    written: u32,
    /// Number of lines that were withheld since the last summary.
    withheld: u64,
    last: String,
    /// Lines were withheld in the interval before, so that in this one all are.
    goes_on: bool,
}

/// The lines of one place that were withheld in one interval.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    level: Level,
    target: String,
    count: u64,
    last: String,
}

impl Gathered {
    /// Whether a line of `site` is to be written as it is.
    fn admit(&mut self, site: &Site, now: Instant) -> bool {
        let burst = self.sites.entry(site.clone()).or_insert_with(|| Burst {
            since: now,
            written: 0,
            withheld: 0,
            last: String::new(),
            goes_on: false,
        });
        if burst.goes_on || burst.written >= LOG_LINES_PER_SITE_MAX {
            burst.withheld += 1;
            return false;
        }
        burst.written += 1;
        true
    }

    /// Keeps the text of a line that was not admitted.
    fn keep(&mut self, site: &Site, last: String) {
        if let Some(burst) = self.sites.get_mut(site) {
            burst.last = last;
        }
    }

    /// Takes the summaries of intervals that are over.
    fn take_due(&mut self, now: Instant, interval: Duration) -> Vec<Summary> {
        let mut due = Vec::new();
        self.sites.retain(|site, burst| {
            if now.saturating_duration_since(burst.since) < interval {
                return true;
            }
            if burst.withheld == 0 {
                return false;
            }
            due.push(Summary {
                level: site.level,
                target: site.target.clone(),
                count: burst.withheld,
                last: std::mem::take(&mut burst.last),
            });
            (burst.since, burst.withheld, burst.goes_on) = (now, 0, true);
            true
        });
        due
    }
}

impl Logger {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        // A count that a panic has left behind is off by one line at most.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the summaries that are due, and returns their number.
    fn log_gathered(&self, now: Instant, interval: Duration) -> usize {
        let due = self.gathered().take_due(now, interval);
        for Summary { level, target, count, last } in &due {
            let seconds = interval.as_secs();
            let within = match seconds {
                0 => String::new(),
                seconds => format!(" in {}", counted(seconds, "second", "seconds")),
            };
            self.inner.log(
                &Record::builder()
                    .level(*level)
                    .target(target)
                    .args(format_args!("{count} more like this{within}, the last of them: {last}"))
                    .build(),
            );
        }
        due.len()
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.inner.matches(record) {
            return;
        }
        let level = record.level();
        if let Some((file, line)) = record.file_static().zip(record.line())
            && level <= Level::Info
        {
            let site = Site { file, line, level, target: record.target().to_owned() };
            if !self.gathered().admit(&site, Instant::now()) {
                let line = record.args().to_string();
                let shown = line.floor_char_boundary(LOG_LINE_SHOWN_BYTES_MAX);
                self.gathered().keep(&site, line[..shown].to_owned());
                return;
            }
        }
        self.inner.log(record);
    }

    fn flush(&self) {
        self.lines.drain(LOG_DRAIN_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(line: u32, level: Level, target: &str) -> Site {
        Site { file: "a.rs", line, level, target: target.to_owned() }
    }

    fn admitted(gathered: &mut Gathered, site: &Site, count: u32, now: Instant) -> u32 {
        let admit = |n: &u32| {
            let admitted = gathered.admit(site, now);
            if !admitted {
                gathered.keep(site, format!("line {n}"));
            }
            admitted
        };
        (0..count).filter(admit).count() as u32
    }

    #[test]
    fn a_flood_is_one_line_an_interval_and_others_are_not_touched() {
        let (start, interval) = (Instant::now(), Duration::from_secs(10));
        let mut gathered = Gathered::default();
        let flooding = site(1, Level::Info, "t");
        assert_eq!(admitted(&mut gathered, &flooding, 5_000, start), LOG_LINES_PER_SITE_MAX);
        // Another place, a graver line of the same place, and another target of it.
        assert_eq!(admitted(&mut gathered, &site(2, Level::Info, "t"), 3, start), 3);
        assert_eq!(admitted(&mut gathered, &site(1, Level::Error, "t"), 1, start), 1);
        assert_eq!(admitted(&mut gathered, &site(1, Level::Info, "u"), 1, start), 1);
        assert_eq!(gathered.take_due(start + interval / 2, interval), []);
        for round in 1..4 {
            let now = start + round * interval;
            let due = gathered.take_due(now, interval);
            let withheld = if round == 1 { 5_000 - LOG_LINES_PER_SITE_MAX } else { 700 };
            assert_eq!(due.len(), 1);
            assert_eq!(due[0].count, u64::from(withheld));
            assert_eq!(admitted(&mut gathered, &flooding, 700, now), 0, "it goes on");
        }
        assert_eq!(gathered.take_due(start + 4 * interval, interval)[0].last, "line 699");
        // A quiet interval later it is as if nothing had been.
        assert_eq!(gathered.take_due(start + 5 * interval, interval), []);
        assert!(gathered.sites.is_empty());
        assert_eq!(admitted(&mut gathered, &flooding, 3, start + 6 * interval), 3);
    }

    #[test]
    fn what_rust_log_cannot_mean_is_said_and_the_default_stays() {
        let chosen = |asked: &str| chosen(Some(OsStr::new(asked)), "warn");
        for good in ["debug", "OFF", "acervo", "acervo=debug", "warn, raft=info", "a::b", "info/x"]
        {
            assert_eq!(chosen(good), (good.to_owned(), None));
        }
        assert_eq!(chosen(""), ("warn".to_owned(), None));
        for (bad, why) in [
            ("acervo=inof", "invalid logging spec 'inof'"),
            ("a=b=c", "invalid logging spec 'a=b=c'"),
            ("info/a/b", "too many"),
        ] {
            let (filters, said) = chosen(bad);
            let said = said.expect(bad);
            assert!(filters == "warn" && said.contains(why) && said.contains(bad), "{said}");
        }
        let (filters, said) = chosen("inof");
        assert_eq!(filters, "warn,inof", "a name is honoured, and hides nothing");
        assert!(said.is_some_and(|said| said.contains("has inof, which is no level")));
    }

    #[test]
    fn a_full_queue_drops_counts_and_never_waits() {
        let (lines, queued) = LogLines::new(3);
        (0..10).for_each(|n| lines.push(vec![n]));
        assert_eq!(lines.shared.dropped.load(Ordering::Relaxed), 7);
        assert_eq!(queued.len(), 3);
        let (lines, queued) = LogLines::new(100);
        (0..8).for_each(|_| lines.push(vec![b'x'; LOG_QUEUE_BYTES_MAX / 4]));
        assert_eq!((queued.len(), lines.shared.dropped.load(Ordering::Relaxed)), (4, 4));
        // Nobody takes anything, and this ends all the same.
        lines.drain(Duration::from_millis(1));
    }
}
