//! What was found to be damaged, or wrong, and is kept until its server has been rebuilt.
//!
//! Nothing that is set aside takes the place of what was set aside before: a failing disk may damage the
//! blank store that followed a real one, and a crash may make a rebuilding begin again. The older one is
//! then the last good copy.

use std::io;

use super::files::{self, Directory};

/// Stores are called this, the second one `store.damaged.2`, and so on.
const STORES: &str = "store.damaged";
/// Logs are called this, the second one `log.damaged.2`, and so on.
const LOGS: &str = "log.damaged";
/// How many stores, and how many logs, may be set aside. A disk that damages each new one in turn must not fill
/// up with them. A rebuilding that a crash cuts short sets one more aside, so it can be cut short some times.
pub(super) const SET_ASIDE_MAX: usize = 8;

/// Renames the store called `name` to the first name that is free, durably. `false`: none is. Nothing may
/// have the file open.
pub(super) fn set_store_aside(directory: &dyn Directory, name: &str) -> io::Result<bool> {
    let taken = directory.list()?;
    set_aside(directory, name, STORES, &taken)
}

/// Renames the log's directory called `name` to the first name that is free, durably. `false`: none is.
/// Nothing in it may be open.
pub(super) fn set_log_aside(directory: &dyn Directory, name: &str) -> io::Result<bool> {
    let taken = logs(directory)?;
    set_aside(directory, name, LOGS, &taken)
}

/// A store has been rebuilt in its place, from the other servers: removes those that were set aside. Not so when
/// a log was, too: they are all that is left of this server, which may not be admitted yet.
pub(super) fn store_rebuilt(directory: &dyn Directory) -> io::Result<()> {
    match logs(directory)?.is_empty() {
        true => remove_stores(directory),
        false => Ok(()),
    }
}

/// The server needs nothing of what was set aside: removes it.
pub(super) fn remove_all(directory: &dyn Directory) -> io::Result<()> {
    remove_stores(directory)?;
    for log in logs(directory)? {
        // The directory itself stays: a rename takes its place.
        let log = directory.directory(&log)?;
        for name in log.list()? {
            files::remove_if_present(&*log, &name)?;
        }
        log.sync()?;
    }
    Ok(())
}

fn remove_stores(directory: &dyn Directory) -> io::Result<()> {
    let present = directory.list()?;
    for name in names(STORES).filter(|name| present.contains(name)) {
        files::remove_if_present(directory, &name)?;
    }
    Ok(())
}

/// The logs that are set aside. A directory without files was one.
fn logs(directory: &dyn Directory) -> io::Result<Vec<String>> {
    let present = directory.list()?;
    let mut logs = Vec::new();
    for name in names(LOGS).filter(|name| present.contains(name)) {
        if !directory.directory(&name)?.list()?.is_empty() {
            logs.push(name);
        }
    }
    Ok(logs)
}

fn set_aside(
    directory: &dyn Directory,
    name: &str,
    aside: &str,
    taken: &[String],
) -> io::Result<bool> {
    let Some(free) = names(aside).find(|name| !taken.contains(name)) else { return Ok(false) };
    match directory.rename(name, &free) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        moved => {
            moved?;
            directory.sync()?;
        }
    }
    Ok(true)
}

/// In the order in which they are taken.
fn names(first: &str) -> impl Iterator<Item = String> {
    (1..=SET_ASIDE_MAX).map(move |number| match number {
        1 => first.to_owned(),
        _ => format!("{first}.{number}"),
    })
}
