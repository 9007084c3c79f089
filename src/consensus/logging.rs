//! Passes raft-rs's own log lines on to the `log` crate: errors as errors, all else at a lower
//! level.
//!
//! What raft-rs logs as information is detail to an operator, who reads the notices of the core
//! (`node::Notice`) instead.

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

const TARGET: &str = "acervo::consensus::raft";

struct Bridge;

fn lowered(level: Level) -> log::Level {
    match level {
        Level::Critical | Level::Error => log::Level::Error,
        Level::Warning | Level::Info => log::Level::Debug,
        Level::Debug | Level::Trace => log::Level::Trace,
    }
}

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        use std::fmt::Write;
        write!(self.0, ", {key}: {value}").map_err(|_| slog::Error::Other)
    }
}

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, context: &OwnedKVList) -> Result<(), Never> {
        let level = lowered(record.level());
        if log::log_enabled!(target: TARGET, level) {
            let mut fields = Fields(String::new());
            // A line without its fields is better than no line.
            let _ = record.kv().serialize(record, &mut fields);
            let _ = context.serialize(record, &mut fields);
            log::log!(target: TARGET, level, "{}{}", record.msg(), fields.0);
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        log::log_enabled!(target: TARGET, lowered(level))
    }
}

/// A logger for one consensus instance.
pub(super) fn logger() -> Logger {
    Logger::root(Bridge.fuse(), o!())
}
