//! What happened, for whoever has to understand a failed seed.
//!
//! Runs are deterministic, so the first run of a seed records nothing; a seed that fails is run
//! again with the trace on. Recording shares the lines with the caller, which still has them when
//! the run panicked.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Lines kept of a failed run.
const LINES_MAX: usize = 400;

/// The recorder; clones share the lines.
#[derive(Clone, Default)]
pub struct Trace {
    shared: Option<Rc<RefCell<Lines>>>,
}

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    count: u64,
    digest: u64,
}

impl Trace {
    /// A recorder that records.
    pub fn on() -> Trace {
        Trace { shared: Some(Rc::default()) }
    }

    /// Records a line; `line` is not called when nobody listens.
    pub fn note(&self, now_us: u64, line: impl FnOnce() -> String) {
        let Some(shared) = &self.shared else { return };
        let mut lines = shared.borrow_mut();
        let line = format!("{:>12.6} {}", now_us as f64 / 1e6, line());
        lines.count += 1;
        for byte in line.bytes() {
            lines.digest = (lines.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if lines.last.len() == LINES_MAX {
            lines.last.pop_front();
        }
        lines.last.push_back(line);
    }

    /// The last lines, for a person.
    pub fn tail(&self) -> String {
        let Some(shared) = &self.shared else { return String::new() };
        let lines = shared.borrow();
        let mut text = format!("(the last {} of {} lines)\n", lines.last.len(), lines.count);
        for line in &lines.last {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// (lines, hash of all of them): equal for equal runs.
    pub fn digest(&self) -> (u64, u64) {
        self.shared.as_ref().map_or((0, 0), |shared| {
            let lines = shared.borrow();
            (lines.count, lines.digest)
        })
    }
}
