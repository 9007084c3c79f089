//! The store's command line as a person or a script meets it: one-shot commands, consoles on
//! pseudo-terminals, the load generator, and commands that are pointed at the wrong service.
//!
//! Left out: the share's commands (`tests/share`), and what each operation promises
//! (`tests/scripts`).

mod bench;
mod console;
#[path = "../support/fake_server.rs"]
mod fake_server;
mod lease;
mod lock;
mod one_shot;
#[cfg(feature = "grpc")]
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod transactions;
mod watch;
