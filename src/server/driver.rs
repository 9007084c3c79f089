//! The core as the event loop drives it: the time that it is given, and what it wants done.
//!
//! Rule: all inputs of one iteration of the loop are given the same time, and what follows from
//! them is worked out once, before the loop sleeps. The outputs are carried out by the service.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::node::core::Node;
use crate::node::{Input, Now, Output};

/// The core, with its outputs that are not carried out yet.
pub(super) struct CoreDriver {
    node: Node,
    outputs: Vec<Output>,
    started: Instant,
    /// The time as it is given to the core, and the loop's time for which it was made.
    now: (Instant, Now),
}

impl CoreDriver {
    /// A core whose monotonic time begins now.
    pub fn new(node: Node) -> CoreDriver {
        let started = Instant::now();
        CoreDriver { node, outputs: Vec::new(), started, now: (started, now_at(started, started)) }
    }

    /// What may be asked of the core.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The time of this iteration, as the core is given it.
    pub fn now(&mut self, loop_now: Instant) -> Now {
        if self.now.0 != loop_now {
            self.now = (loop_now, now_at(loop_now, self.started));
        }
        self.now.1
    }

    /// How long this server has been running.
    pub fn uptime(&self, loop_now: Instant) -> Duration {
        loop_now.saturating_duration_since(self.started)
    }

    /// Gives the core an input.
    pub fn input(&mut self, loop_now: Instant, input: Input) {
        let now = self.now(loop_now);
        self.node.handle(now, input, &mut self.outputs);
    }

    /// Has the core work out what follows from the inputs since the last call.
    pub fn flush(&mut self, loop_now: Instant) {
        let now = self.now(loop_now);
        self.node.flush(now, &mut self.outputs);
    }

    /// When [`CoreDriver::flush`] is to be called even if there is no input.
    pub fn flush_due(&self) -> Option<Instant> {
        let due_us = self.node.flush_due_us();
        due_us.map(|due_us| self.started + Duration::from_micros(due_us))
    }

    /// Takes the outputs, to be carried out in order, if there are any. Carrying them out may give
    /// the core inputs, and so lead to further outputs.
    pub fn take_outputs(&mut self) -> Option<Vec<Output>> {
        (!self.outputs.is_empty()).then(|| std::mem::take(&mut self.outputs))
    }

    /// Gives back the emptied list of outputs, whose memory is used again.
    pub fn reuse(&mut self, mut outputs: Vec<Output>) {
        outputs.append(&mut self.outputs);
        self.outputs = outputs;
    }
}

fn now_at(monotonic: Instant, started: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        monotonic_us: monotonic.saturating_duration_since(started).as_micros() as u64,
        // A clock beyond the year 294,000 is a broken one.
        wall_us: i64::try_from(wall.as_micros()).unwrap_or(0),
    }
}
