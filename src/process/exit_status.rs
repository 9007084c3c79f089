//! The exit statuses of all commands, so that a script can tell their failures apart.
//!
//! `docs/commands.md` documents them: what has a number here keeps it.

/// The command has found what was asked for, or has done it.
pub const DONE: u8 = 0;
/// What the command names is not there, or not as it asks; nothing else ends with this status.
pub const NOT_FOUND: u8 = 1;
/// The command line or its input cannot be used, or the group refuses what it asks for.
pub const USAGE: u8 = 2;
/// No server was reached, or there is no majority, or disks are full.
pub const UNAVAILABLE: u8 = 3;
/// Anything else that went wrong on this side: an answer that cannot be written, a server or a
/// console that could not go on.
pub const FAILED: u8 = 4;
/// The lock or the leadership under which a command ran was lost.
pub const LOST: u8 = 5;
/// As shells: a command that was to be run is there and cannot be run.
pub const NOT_EXECUTABLE: u8 = 126;
/// As shells: there is no such command.
pub const NO_COMMAND: u8 = 127;
/// As shells: what is added to the number of the signal that has ended a process.
pub const SIGNALLED: u8 = 128;
