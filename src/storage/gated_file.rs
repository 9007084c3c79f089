//! A file for tests whose writes can be made to wait.

use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex};

use super::files::DiskFile;

/// A file whose writes wait while its gate is closed, as on a disk without room.
pub(super) struct GatedFile {
    inner: File,
    /// Whether the gate is closed, and the number of writes that wait.
    gate: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl GatedFile {
    pub fn new(inner: File) -> GatedFile {
        GatedFile { inner, gate: Mutex::default(), changed: Condvar::new() }
    }

    pub fn shut(&self, shut: bool) {
        self.gate.lock().unwrap().0 = shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.1 += 1;
        self.changed.notify_all();
        let mut gate = self.changed.wait_while(gate, |gate| gate.0).unwrap();
        gate.1 -= 1;
    }

    pub fn until_somebody_waits(&self) {
        let gate = self.gate.lock().unwrap();
        drop(self.changed.wait_while(gate, |gate| gate.1 == 0).unwrap());
    }
}

impl DiskFile for GatedFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }

    fn used_bytes(&self) -> io::Result<u64> {
        self.inner.used_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        DiskFile::read_at(&self.inner, buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.pass();
        DiskFile::write_all_at(&self.inner, bytes, offset)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.pass();
        DiskFile::set_len(&self.inner, len_bytes)
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.inner.allocate(len_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        DiskFile::sync_data(&self.inner)
    }

    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }
}
