//! How many connections fit the system's limit on open files.
//!
//! Rule: however many connections there are, a process can open its own files, such as the next
//! segment of a server's log. So the limit is first raised as far as the system allows, and
//! connections get what it leaves after those files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::{self, CONNECTIONS_MAX, CONNECTIONS_SPARE, REFUSALS_MAX};
use crate::text::counted;

/// Files that a process keeps free of connections: its log, its store, what it dials, refusals.
/// While a snapshot takes the place of a store there are two; then the places that are kept for
/// servers help out.
const FILES_RESERVED: usize = limits::STORE_FILES_MAX + 48;
/// With room for fewer connections than this a server does not start.
const CONNECTIONS_MIN: usize = 3 * limits::SERVERS_MAX;

/// The system allows fewer open files than this process needs to serve anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of {0} open files leaves no room for connections: \
     raise it to {least} or more (ulimit -n)",
    least = FILES_RESERVED + CONNECTIONS_MIN
)]
pub struct TooFewFiles(pub u64);

/// The numbers of connections that the limit on open files has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRoom {
    /// The most accepted connections.
    pub accepted_max: usize,
    /// The most of them that may be clients.
    pub clients_max: usize,
    /// The most further connections that are being refused at once.
    pub refused_max: usize,
}

/// Raises the limit on open files if that is possible and needed, and returns what fits it, beside
/// so many files that something else in this process opens.
///
/// # Errors
/// Not even the group's own servers would fit.
pub fn room(beside: usize) -> Result<ConnectionRoom, TooFewFiles> {
    let reserved = FILES_RESERVED + beside;
    let wanted = (reserved + CONNECTIONS_MAX + CONNECTIONS_SPARE + REFUSALS_MAX) as u64;
    let files = raise(wanted).saturating_sub(beside as u64);
    let room = fit(files).ok_or(TooFewFiles(files))?;
    if room.clients_max < CONNECTIONS_MAX {
        log::warn!(
            "the limit of {files} open files leaves room for {}: raise it to {wanted} \
             (ulimit -n) for {CONNECTIONS_MAX}",
            counted(room.clients_max as u64, "client", "clients")
        );
    }
    Ok(room)
}

/// How many connections, up to `max`, something may serve that stands beside a server in the same
/// process: where the limit on open files is low, an eighth of it.
#[cfg(feature = "grpc")]
pub fn room_beside_a_server(max: usize) -> usize {
    let wanted = FILES_RESERVED + CONNECTIONS_MAX + CONNECTIONS_SPARE + REFUSALS_MAX + max;
    let files = raise(wanted as u64);
    max.min(usize::try_from(files / 8).unwrap_or(usize::MAX))
}

/// How many connections, up to `max`, a process may serve that needs as many files again for what
/// it does itself. Raises the limit on open files if that is possible and needed.
///
/// # Errors
/// There is room for next to none.
pub fn half_room(max: usize) -> Result<usize, TooFewFiles> {
    let files = raise((FILES_RESERVED + 2 * max + REFUSALS_MAX) as u64);
    let room = fit(files).ok_or(TooFewFiles(files))?;
    Ok(max.min(room.accepted_max / 2))
}

/// Raises the limit on open files up to `wanted`, as far as the system allows, and returns the
/// limit.
fn raise(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // The system reports an unlimited number as `None`.
    let files = current.unwrap_or(u64::MAX);
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if files >= raised {
        return files;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => raised,
        Err(error) => {
            log::warn!("cannot raise the limit of {files} open files: {error}");
            files
        }
    }
}

/// Shares `files` out: the reserve first, then connections, whose last part is kept from clients.
fn fit(files: u64) -> Option<ConnectionRoom> {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let left = files.saturating_sub(FILES_RESERVED);
    if left < CONNECTIONS_MIN {
        return None;
    }
    let refused_max = REFUSALS_MAX.min(left / 8);
    let accepted_max = (left - refused_max).min(CONNECTIONS_MAX + CONNECTIONS_SPARE);
    let spare = CONNECTIONS_SPARE.min(accepted_max / 2);
    Some(ConnectionRoom { accepted_max, clients_max: accepted_max - spare, refused_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_a_large_limit_and_nothing_more_is_taken() {
        let all = ConnectionRoom {
            accepted_max: CONNECTIONS_MAX + CONNECTIONS_SPARE,
            clients_max: CONNECTIONS_MAX,
            refused_max: REFUSALS_MAX,
        };
        assert_eq!(fit(u64::MAX), Some(all));
        let least = FILES_RESERVED + CONNECTIONS_MAX + CONNECTIONS_SPARE + REFUSALS_MAX;
        assert_eq!(fit(least as u64), Some(all));
    }

    #[test]
    fn a_small_limit_is_shared_out_and_never_exceeded() {
        let least = FILES_RESERVED + CONNECTIONS_MIN;
        assert_eq!(fit(0), None);
        assert_eq!(fit(least as u64 - 1), None);
        for files in least..2 * least {
            let room = fit(files as u64).unwrap();
            assert!(FILES_RESERVED + room.accepted_max + room.refused_max <= files, "{room:?}");
            assert!(room.clients_max > 0 && room.clients_max < room.accepted_max, "{room:?}");
        }
    }
}
