//! Keeps damaged or refuted data aside until its server has been rebuilt.
//!
//! Data that is set aside never replaces data that was set aside before: a failing disk may damage
//! the blank store that followed a real one, and a crash may make a rebuild start again. The older
//! data is then the last good copy.

use std::io;

use super::files::{self, Directory};

/// The name of a store that is set aside; the second one is `store.damaged.2`, and so on.
const STORES: &str = "store.damaged";
/// The name of a log that is set aside; the second one is `log.damaged.2`, and so on.
const LOGS: &str = "log.damaged";
/// The number of stores, and of logs, that may be set aside. A disk that damages each new one must
/// not fill up with them. A rebuild that a crash interrupts sets one more aside, so some
/// interruptions are allowed.
pub(super) const SET_ASIDE_MAX: usize = 8;

/// Renames the store called `name` to the first free name, durably. Returns false if none is free.
/// No file of it may be open.
pub(super) fn set_store_aside(directory: &dyn Directory, name: &str) -> io::Result<bool> {
    set_aside(directory, name, STORES)
}

/// Renames the log's directory called `name` to the first free name, durably. Returns false if none
/// is free. No file in it may be open.
pub(super) fn set_log_aside(directory: &dyn Directory, name: &str) -> io::Result<bool> {
    set_aside(directory, name, LOGS)
}

/// Removes the stores that were set aside, because a store has been rebuilt from the other servers.
/// Keeps them if a log was set aside, too: they are the last data of this server, which may not be
/// an eligible voter yet.
pub(super) fn store_rebuilt(directory: &dyn Directory) -> io::Result<()> {
    let present = directory.list()?;
    match numbered(LOGS).any(|log| present.contains(&log)) {
        true => Ok(()),
        false => remove(directory, STORES),
    }
}

/// Removes everything that was set aside, because the server does not need it any more.
pub(super) fn remove_all(directory: &dyn Directory) -> io::Result<()> {
    remove(directory, STORES)?;
    remove(directory, LOGS)
}

fn remove(directory: &dyn Directory, aside: &str) -> io::Result<()> {
    numbered(aside).try_for_each(|name| files::remove_directory_if_present(directory, &name))
}

fn set_aside(directory: &dyn Directory, name: &str, aside: &str) -> io::Result<bool> {
    let present = directory.list()?;
    let Some(free) = numbered(aside).find(|name| !present.contains(name)) else { return Ok(false) };
    match directory.rename(name, &free) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        moved => {
            moved?;
            directory.sync()?;
        }
    }
    Ok(true)
}

/// The possible names, in the order in which they are used.
pub(super) fn numbered(first: &str) -> impl Iterator<Item = String> {
    (1..=SET_ASIDE_MAX).map(move |number| match number {
        1 => first.to_owned(),
        _ => format!("{first}.{number}"),
    })
}
