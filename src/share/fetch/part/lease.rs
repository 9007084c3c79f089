//! Whether anybody has a file open for writing, and keeping it so that nobody has.
//!
//! A read lease (`fcntl(2)`, `F_SETLEASE`) is given only while no descriptor of the file may write and no shared mapping
//! of it can, and while it is held whoever opens the file for writing waits. Those who read are in nobody's way.
//! The system waits for the holder for 45 seconds, and then lets the other one in: so it has to be looked at again
//! before anything is built on it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// `F_SETSIG` of Linux, on every architecture, which the crate does not name.
const F_SETSIG: libc::c_int = 10;

/// Nobody else has the file open for writing. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease(Arc<File>);

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// Somebody has the file open for writing.
    Writers,
    /// The file system knows none, or the file is another user's.
    Unsupported,
}

impl Lease {
    /// Takes a lease on a file that is open for reading alone.
    pub fn take(file: &Arc<File>) -> Result<Lease, NoLease> {
        // Whoever waits for it is told of by a signal that does nothing by itself, rather than by one that ends us.
        let asked = fcntl(file, F_SETSIG, libc::SIGURG)
            .and_then(|_| fcntl(file, libc::F_SETLEASE, libc::c_int::from(libc::F_RDLCK as i16)));
        match asked {
            Ok(_) => Ok(Lease(Arc::clone(file))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_remote(file) => {
                Err(NoLease::Writers)
            }
            Err(_) => Err(NoLease::Unsupported),
        }
    }

    /// Whether nobody waits for it to be given back, or has been let in.
    pub fn is_whole(&self) -> bool {
        fcntl(&self.0, libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_RDLCK as libc::c_int)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = fcntl(&self.0, libc::F_SETLEASE, libc::F_UNLCK as libc::c_int) {
            log::debug!("a lease was gone: {error}");
        }
    }
}

/// Whether the file is on another machine. Where that one grants no leases, some file systems answer as if somebody had
/// the file open for writing, and go on so for ever.
fn is_remote(file: &File) -> bool {
    // CIFS, SMB 2, SMB and NFS, as `statfs(2)` has them.
    const REMOTE: [u32; 4] = [0xff53_4d42, 0xfe53_4d42, 0x517b, 0x6969];
    // The field is of another width on some architectures; the numbers have 32 bits.
    rustix::fs::fstatfs(file).is_ok_and(|stat| REMOTE.contains(&(stat.f_type as u32)))
}

/// The one call to the system that no crate of ours offers without `unsafe`.
#[allow(unsafe_code)]
fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the commands that are used here take a number and touch no memory of this process, and the descriptor is
    // open for as long as the file is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_lease_is_for_files_that_nobody_writes_and_keeps_writers_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writer = File::create(&path).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        assert_eq!(Lease::take(&file).unwrap_err(), NoLease::Writers);
        drop(writer);
        let reader = File::open(&path).unwrap();
        let lease = Lease::take(&file).unwrap();
        assert!(lease.is_whole());
        // Whoever does not wait is told so.
        let mut options = File::options();
        let refused = options.write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(!lease.is_whole(), "somebody has asked for it");
        drop((lease, reader));
        File::options().write(true).open(&path).unwrap();
    }
}
