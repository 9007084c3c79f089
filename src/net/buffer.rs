//! Buffers for raw bytes: a bounded pool of one size, page-aligned, used again.
//!
//! They are for file contents, which are read from sockets and written to disks without a copy in
//! between. Rule: no more than the pool's number exist at once, so that whoever takes one has the
//! memory that it counts.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Alignment in bytes that direct IO needs for memory, on every common system.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// A bounded set of [`Buffer`]s, shared by threads. A buffer comes back when it is dropped,
/// wherever that is.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    buffer_bytes: usize,
    buffers_max: usize,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    free: Vec<AlignedMemory>,
    /// Number of buffers that are taken and not dropped yet.
    out: usize,
}

impl BufferPool {
    /// A pool of at most `buffers_max` buffers of `buffer_bytes` bytes. Memory is taken when a
    /// buffer is first needed.
    pub fn new(buffer_bytes: usize, buffers_max: usize) -> BufferPool {
        let state = Mutex::default();
        BufferPool { shared: Arc::new(PoolShared { buffer_bytes, buffers_max, state }) }
    }

    /// A buffer of `length` bytes, whose content is whatever it held before. `None` when all are in
    /// use, or when `length` is more than a buffer has.
    pub fn take(&self, length: usize) -> Option<Buffer> {
        if length > self.shared.buffer_bytes {
            return None;
        }
        let mut state = self.shared.lock();
        if state.out >= self.shared.buffers_max {
            return None;
        }
        state.out += 1;
        let storage = state.free.pop();
        drop(state);
        let storage = storage.unwrap_or_else(|| AlignedMemory::new(self.shared.buffer_bytes));
        Some(Buffer { storage, length, pool: Arc::clone(&self.shared) })
    }

    /// Number of buffers that could be taken now.
    pub fn available(&self) -> usize {
        self.shared.buffers_max - self.shared.lock().out
    }

    /// Returns the memory of free buffers to the allocator.
    pub fn release_memory(&self) {
        self.shared.lock().free = Vec::new();
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("buffer_bytes", &self.shared.buffer_bytes)
            .field("buffers_max", &self.shared.buffers_max)
            .finish_non_exhaustive()
    }
}

impl PoolShared {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // The state is never left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory with an aligned part: a little more than is needed, and where the part begins. The memory
/// never grows, so it never moves.
#[derive(Default)]
struct AlignedMemory {
    memory: Vec<u8>,
    start: usize,
}

impl AlignedMemory {
    fn new(bytes: usize) -> AlignedMemory {
        let memory = vec![0; bytes + BUFFER_ALIGNMENT];
        // The standard library may decline to say (it does not at run time): then the buffer works,
        // and direct IO from it is refused by the system.
        let start = memory.as_ptr().align_offset(BUFFER_ALIGNMENT);
        AlignedMemory { memory, start: if start < BUFFER_ALIGNMENT { start } else { 0 } }
    }
}

/// A buffer from a [`BufferPool`], which goes back to it when it is dropped.
pub struct Buffer {
    storage: AlignedMemory,
    length: usize,
    pool: Arc<PoolShared>,
}

impl Buffer {
    /// Number of bytes in use, at most the pool's buffer size.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Changes the number of bytes in use; more than the pool's buffer size counts as that.
    pub fn set_len(&mut self, length: usize) {
        self.length = length.min(self.pool.buffer_bytes);
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.storage.memory[self.storage.start..self.storage.start + self.length]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.storage.memory[self.storage.start..self.storage.start + self.length]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let storage = std::mem::take(&mut self.storage);
        let mut state = self.pool.lock();
        state.out -= 1;
        state.free.push(storage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_counted_aligned_and_used_again() {
        let pool = BufferPool::new(10_000, 2);
        assert!(pool.take(10_001).is_none());
        let mut first = pool.take(10_000).unwrap();
        let second = pool.take(5).unwrap();
        assert!(pool.take(1).is_none());
        assert_eq!((pool.available(), second.length()), (0, 5));
        for buffer in [&first, &second] {
            assert_eq!(buffer.as_ref().as_ptr().addr() % BUFFER_ALIGNMENT, 0);
        }
        first.as_mut()[9_999] = 7;
        let address = first.as_ref().as_ptr().addr();
        std::thread::spawn(move || drop(first)).join().unwrap();
        assert_eq!(pool.available(), 1, "one came back");
        let mut again = pool.take(1).unwrap();
        assert_eq!(again.as_ref().as_ptr().addr(), address);
        again.set_len(usize::MAX);
        assert_eq!((again.length(), again.as_ref()[9_999]), (10_000, 7));
        assert!(pool.take(1).is_none());
        drop((again, second));
        assert_eq!(pool.available(), 2);
    }
}
