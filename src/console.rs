//! Console lines on standard output, written off the request path.
//!
//! [`Console::show`] puts an event into a bounded queue and never waits; a thread of its own turns
//! events into lines. When the queue is full, or holds too many bytes, the event is dropped, and
//! the log says once per burst how many were. A standard output that was closed ends the lines and
//! nothing else. What the lines are is up to the kind of event.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use crate::text::counted;

/// Events that wait to be written; further ones are dropped, and the loss is logged. Some seconds
/// of the busiest server.
const CONSOLE_QUEUE_LINES_MAX: usize = 64 * 1024;
/// Bytes of keys and values of the events that wait; beyond, further ones are dropped, too.
/// Sixty-four of the longest values that a group takes unless it is told otherwise.
const CONSOLE_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a stopping process waits for its last lines to be written: a reader that is there takes
/// them at once.
const CONSOLE_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// An event that is shown as one line, which its [`Display`](fmt::Display) writes without the
/// line's end.
pub trait ConsoleEntry: fmt::Display + Send + 'static {
    /// Bytes that it holds while it waits, about.
    fn weight(&self) -> usize;
}

/// The queue of events of a console. Clones share one queue.
pub struct Console<E> {
    queue: Option<Queue<E>>,
}

struct Queue<E> {
    events: Sender<E>,
    shared: Arc<ConsoleShared>,
}

impl<E> Clone for Console<E> {
    fn clone(&self) -> Console<E> {
        let clone = |queue: &Queue<E>| Queue {
            events: queue.events.clone(),
            shared: Arc::clone(&queue.shared),
        };
        Console { queue: self.queue.as_ref().map(clone) }
    }
}

#[derive(Default)]
struct ConsoleShared {
    /// Sum of the weights of the events queued.
    bytes: AtomicUsize,
    /// Number of events dropped since the log last said so.
    dropped: AtomicU64,
    /// The output has failed, so that no event is queued any more.
    closed: AtomicBool,
}

/// The thread that writes the lines. It ends when every [`Console`] is gone and all is written.
pub struct ConsoleThread {
    thread: JoinHandle<()>,
    /// A channel on which nothing is sent, and which the thread's end closes.
    ended: Receiver<()>,
}

impl ConsoleThread {
    /// Waits until what is queued is written, for at most [`CONSOLE_DRAIN_TIMEOUT`], since nobody
    /// may read the output any more. Every [`Console`] is to be dropped first.
    pub fn join(self) {
        if self.ended.recv_timeout(CONSOLE_DRAIN_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            log::warn!("console: nobody reads standard output, its last lines are lost");
            return;
        }
        // A panic there has been printed already.
        let _ = self.thread.join();
    }
}

impl<E: ConsoleEntry> Console<E> {
    /// A console that shows nothing and costs nothing.
    pub fn off() -> Console<E> {
        Console { queue: None }
    }

    /// A console that writes to `out`.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<(Console<E>, ConsoleThread)> {
        Console::with_queue(out, CONSOLE_QUEUE_LINES_MAX)
    }

    fn with_queue(
        out: impl Write + Send + 'static,
        lines_max: usize,
    ) -> io::Result<(Console<E>, ConsoleThread)> {
        let (events, queued) = bounded(lines_max);
        let shared = Arc::new(ConsoleShared::default());
        let writing = Arc::clone(&shared);
        let (alive, ended) = bounded::<()>(0);
        let thread = thread::Builder::new().name("acervo-console".to_owned()).spawn(move || {
            write_lines(&queued, &writing, out);
            drop(alive);
        })?;
        let thread = ConsoleThread { thread, ended };
        Ok((Console { queue: Some(Queue { events, shared }) }, thread))
    }

    /// Whether an event would be shown, so that a caller need not make one that is not.
    pub fn is_on(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.shared.closed.load(Ordering::Relaxed))
    }

    /// Queues an event, or drops it when the queue is full. It never waits.
    pub fn show(&self, event: E) {
        let Some(Queue { events, shared }) = self.queue.as_ref().filter(|_| self.is_on()) else {
            return;
        };
        let bytes = event.weight();
        let queued = shared.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if queued > CONSOLE_QUEUE_BYTES_MAX || events.try_send(event).is_err() {
            shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_lines<E: ConsoleEntry>(queued: &Receiver<E>, shared: &ConsoleShared, out: impl Write) {
    let mut out = Some(BufWriter::new(out));
    loop {
        let event = match queued.try_recv() {
            Ok(event) => event,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                attempt(&mut out, shared, BufWriter::flush);
                report_dropped(shared);
                match queued.recv() {
                    Ok(event) => event,
                    Err(_) => break,
                }
            }
        };
        shared.bytes.fetch_sub(event.weight(), Ordering::Relaxed);
        attempt(&mut out, shared, |out| writeln!(out, "{event}"));
    }
    attempt(&mut out, shared, BufWriter::flush);
    report_dropped(shared);
}

fn report_dropped(shared: &ConsoleShared) {
    let dropped = shared.dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        log::warn!(
            "console: {} dropped, which came faster than could be written",
            counted(dropped, "line was", "lines were")
        );
    }
}

/// Writes to the output, if there is one; after the first failure there is none.
fn attempt<W: Write>(
    out: &mut Option<BufWriter<W>>,
    shared: &ConsoleShared,
    write: impl FnOnce(&mut BufWriter<W>) -> io::Result<()>,
) {
    let Some(writer) = out else { return };
    if let Err(error) = write(writer) {
        log::warn!("console: standard output failed ({error}), no more lines are written");
        shared.closed.store(true, Ordering::Relaxed);
        // Taken apart, because dropping it would try to write once more.
        let _ = out.take().map(BufWriter::into_parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A number on a line, as heavy as wanted.
    struct Number {
        number: usize,
        weight: usize,
    }

    impl fmt::Display for Number {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "number {}", self.number)
        }
    }

    impl ConsoleEntry for Number {
        fn weight(&self) -> usize {
            self.weight
        }
    }

    /// An output that can be held up and looked at.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn event(number: usize) -> Number {
        Number { number, weight: 1 }
    }

    #[test]
    fn lines_come_out_in_order_and_whole() {
        let output = Output::default();
        let (console, thread) = Console::start(output.clone()).unwrap();
        (0..1000).for_each(|number| console.show(event(number)));
        drop(console);
        thread.join();
        let expected: String = (0..1000).map(|number| format!("number {number}\n")).collect();
        assert_eq!(String::from_utf8(output.0.lock().unwrap().clone()).unwrap(), expected);
    }

    #[test]
    fn a_full_queue_drops_and_never_waits() {
        let output = Output::default();
        // While the output is held up the thread can have taken one event and a buffer's worth.
        let held = output.0.lock().unwrap();
        let (console, thread) = Console::with_queue(output.clone(), 4).unwrap();
        (0..100_000).for_each(|number| console.show(event(number)));
        drop(held);
        drop(console);
        thread.join();
        let lines = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        assert!((4..100_000).contains(&lines.lines().count()));
    }

    #[test]
    fn a_queue_with_too_many_bytes_drops_too() {
        let output = Output::default();
        let held = output.0.lock().unwrap();
        let (console, thread) = Console::start(output.clone()).unwrap();
        for number in 0..100 {
            console.show(Number { number, weight: CONSOLE_QUEUE_BYTES_MAX / 4 });
        }
        drop(held);
        drop(console);
        thread.join();
        let count = output.0.lock().unwrap().iter().filter(|byte| **byte == b'\n').count();
        assert!((3..100).contains(&count), "{count}");
    }

    /// An output whose reader has gone.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_output_ends_the_lines_and_nothing_else() {
        let (console, thread) = Console::start(Closed).unwrap();
        while console.is_on() {
            console.show(event(1));
            thread::yield_now();
        }
        console.show(event(2));
        drop(console);
        thread.join();
    }

    #[test]
    fn off_shows_nothing() {
        let console = Console::<Number>::off();
        assert!(!console.is_on());
        console.show(event(1));
    }
}
