//! The file below the engine, in which every block has a checksum that is verified at every read,
//! so that the engine never sees a byte that is not what was written.
//!
//! redb trusts its file. A flipped bit in a value would be served, one in an inner page hides keys,
//! and some damaged pages make it panic. Checksums of rows would find only the first of these. So
//! the check is made below the engine, and covers every page of every kind.
//!
//! ```text
//! file   := group*                         the last group may be shorter
//! group  := checksums | block * 1024       4 KiB each
//! checksums := u32 * 1024, little-endian   CRC-32 of a block's number and bytes; 0: never written
//! block 0 := header (320 bytes) | length u64 | CRC-32 of both | unused
//! ```
//!
//! The checksum covers the block's number, so that a block in the place of another is found, too.
//! The engine sees the blocks as one file without the checksums.
//!
//! Why a power loss does no harm. redb never overwrites a block that its last durable commit refers
//! to, and syncs everything that a commit refers to before it writes the header. Checksums are
//! written with the sync after their blocks. So every block that the durable header refers to was
//! synced together with its checksum, and blocks written since are not used. The header is written
//! in place: its checksum is in the same sector, which a disk writes as a whole. If it were torn
//! all the same, the store would count as damaged and be rebuilt, which is safe. The length of the
//! file is stored with the header, because redb accepts a file that was cut short at the boundary
//! of a region.
//!
//! A write may wait for long, for room on the disk or for a disk that hangs. Meanwhile blocks are
//! read and checked: a writer holds `writing`, and holds the lock that readers need only while it
//! waits for nothing.
//!
//! A read never writes (see [`Reading`]). When redb reads, it may make room in its cache by writing
//! pages of commits that are not durable. Here that is refused, and redb keeps the page in its
//! cache (redb 4.4, `PagedCachedFile::read`: its flush is "best effort", keeps the page, and fails
//! neither the read nor the file). The next write of redb's own makes the room.
//!
//! A read can still wait inside redb (4.4): to begin one takes a lock that is held while the file
//! is extended, and the cache's pages have locks in 131 stripes, of which a writer holds one or
//! two.
//!
//! The first damage that is found is final: every later call fails, because it is not known what
//! else is damaged. A read that the system refuses is not damage, but an error like any other of
//! the disk.
//!
//! What it leaves out: repair, and damage in memory.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    TryLockError,
};

use redb::StorageBackend;

use super::files::DiskFile;

/// The engine's page, which is the unit that has a checksum.
const BLOCK_BYTES: u64 = 4096;
/// Number of blocks whose checksums fill one block.
const GROUP_BLOCKS: u64 = BLOCK_BYTES / 4;
const GROUP_BYTES: u64 = GROUP_BLOCKS * BLOCK_BYTES;
/// Bytes of the header that the engine writes at the start of its file, with one write and in
/// place.
const HEADER_BYTES: usize = 320;
/// The header with the length and the checksum.
const HEADER_SECTOR_BYTES: usize = HEADER_BYTES + 8 + 4;

/// The checksums of a group, as they will be on the disk after the next sync.
struct ChecksumGroup {
    sums: Box<[u32; GROUP_BLOCKS as usize]>,
    /// Blocks that this process has written, or read and verified. Only these can be verified
    /// without the engine: another block may have been written and not synced before a crash, and
    /// not be in use.
    known: Box<[bool; GROUP_BLOCKS as usize]>,
    unwritten: bool,
}

struct FileState {
    /// Read when they are first needed: four bytes for each block of the file.
    groups: Vec<Option<ChecksumGroup>>,
    /// The length of the file as the engine sees it.
    len: u64,
    header: [u8; HEADER_BYTES],
}

/// The damage of a file: one clause, with the position. Set once.
pub(super) type Damage = Arc<OnceLock<String>>;

/// The file below an engine. It can be closed to writes, after which it can still be read and
/// unlocked.
pub(super) struct CheckedFile {
    file: Arc<dyn DiskFile>,
    /// Held by the thread that changes the file; taken before the lock of `state`.
    writing: Mutex<()>,
    /// Never held during a write, which may wait.
    state: RwLock<FileState>,
    closed: AtomicBool,
    damage: Damage,
}

thread_local! {
    static IS_READING: Cell<bool> = const { Cell::new(false) };
}

/// While it exists, this thread reads from an engine, and writes by the engine on this thread are
/// refused: they would wait for other writes that wait for room. The thread must not write to an
/// engine meanwhile.
pub(super) struct Reading {
    /// Whether the thread was reading already.
    outer: bool,
    /// Makes the type `!Send`: it must stay on its thread.
    thread: PhantomData<*const ()>,
}

impl Reading {
    pub fn begin() -> Reading {
        Reading { outer: IS_READING.replace(true), thread: PhantomData }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        IS_READING.set(self.outer);
    }
}

/// The handle by which the engine uses the file.
#[derive(Debug)]
pub(super) struct Backend(pub Arc<CheckedFile>);

/// The position in the file of the engine's byte `offset`.
fn position(offset: u64) -> u64 {
    let group = offset / GROUP_BYTES;
    (group + 1) * BLOCK_BYTES + offset
}

fn sums_position(group: u64) -> u64 {
    group * (GROUP_BYTES + BLOCK_BYTES)
}

fn file_len(len: u64) -> u64 {
    len + len.div_ceil(GROUP_BYTES) * BLOCK_BYTES
}

/// The length that the engine sees in a file of this length; `None` if no such file is ever made.
fn engine_len(file_len: u64) -> Option<u64> {
    let (groups, rest) =
        (file_len / (GROUP_BYTES + BLOCK_BYTES), file_len % (GROUP_BYTES + BLOCK_BYTES));
    let whole = groups * GROUP_BYTES;
    match rest {
        0 => Some(whole),
        _ if rest > BLOCK_BYTES && rest.is_multiple_of(BLOCK_BYTES) => {
            Some(whole + rest - BLOCK_BYTES)
        }
        _ => None,
    }
}

fn block_sum(block: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block.to_le_bytes());
    hasher.update(bytes);
    // Zero means a block that was never written.
    hasher.finalize().max(1)
}

impl CheckedFile {
    /// Takes over an open file, which may be empty. The caller has locked it, so the engine's own
    /// locks are not needed.
    pub fn open(file: Arc<dyn DiskFile>, damage: Damage) -> io::Result<CheckedFile> {
        let found = file.len_bytes()?;
        let state = FileState { groups: Vec::new(), len: 0, header: [0; HEADER_BYTES] };
        let (writing, state) = (Mutex::new(()), RwLock::new(state));
        let checked = CheckedFile { file, writing, state, closed: AtomicBool::new(false), damage };
        let Some(len) = engine_len(found) else {
            return Err(checked.damaged(format!("no store is {found} bytes long")));
        };
        checked.write_state().set_len(len);
        if len > 0 {
            let (header, len_then) = checked.read_header()?;
            if len < len_then {
                let detail = format!("of at least {len_then} bytes it has {len} left");
                return Err(checked.damaged(detail));
            }
            checked.write_state().header = header;
        }
        Ok(checked)
    }

    /// Closes the file to writes.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// The number of blocks in the file.
    pub fn blocks(&self) -> u64 {
        self.read_state().len / BLOCK_BYTES
    }

    /// Reads `count` blocks from `first` on from the disk, and compares them with their checksums
    /// as far as they are known. The blocks of the checksums are compared as well. Returns false,
    /// and reads nothing, if a write is under way, which may wait for long.
    pub fn verify(&self, first: u64, count: u64) -> io::Result<bool> {
        self.check_sound()?;
        // Held while the file is read, so that nothing is written meanwhile.
        let _writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let state = self.read_state();
        let end = first.saturating_add(count).min(state.len / BLOCK_BYTES);
        if first == 0 && end > 0 {
            self.read_header()?;
        }
        let mut block = first.max(1);
        while block < end {
            let group = block / GROUP_BLOCKS;
            let until = end.min((group + 1) * GROUP_BLOCKS);
            if let Some(loaded) = state.groups.get(group as usize).and_then(Option::as_ref) {
                self.verify_group(loaded, group, block..until)?;
            }
            block = until;
        }
        Ok(true)
    }

    fn verify_group(
        &self,
        group: &ChecksumGroup,
        at: u64,
        blocks: std::ops::Range<u64>,
    ) -> io::Result<()> {
        let stored = if group.unwritten { None } else { Some(self.read_sums(at)?) };
        let mut bytes = [0; BLOCK_BYTES as usize];
        for block in blocks {
            let within = (block % GROUP_BLOCKS) as usize;
            if !group.known[within] {
                continue;
            }
            self.read_at(&mut bytes, position(block * BLOCK_BYTES), block)?;
            let sum = group.sums[within];
            if block_sum(block, &bytes) != sum {
                return Err(self.damaged_block(block));
            }
            if stored.as_ref().is_some_and(|stored| stored[within] != sum) {
                return Err(self.damaged(format!("the checksum of block {block} has changed")));
            }
        }
        Ok(())
    }

    fn read_state(&self) -> RwLockReadGuard<'_, FileState> {
        // No method leaves the state inconsistent where it can panic, so a poisoned lock is
        // ignored.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, FileState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_sound(&self) -> io::Result<()> {
        self.damage.get().map_or(Ok(()), |detail| Err(io::Error::other(detail.clone())))
    }

    fn check_open(&self) -> io::Result<()> {
        self.check_sound()?;
        if self.closed.load(Ordering::Acquire) {
            return Err(io::Error::other("the store is closed"));
        }
        Ok(())
    }

    fn damaged(&self, detail: String) -> io::Error {
        io::Error::other(self.damage.get_or_init(|| detail).clone())
    }

    fn damaged_block(&self, block: u64) -> io::Error {
        let at = position(block * BLOCK_BYTES);
        self.damaged(format!("the block at byte {at} does not match its checksum"))
    }

    /// A block that cannot be read is not damaged: the storage may be unreachable for a while, for
    /// all servers at once, and its contents be sound.
    fn read_at(&self, out: &mut [u8], at: u64, block: u64) -> io::Result<()> {
        match self.file.read_at(out, at) {
            Ok(read) if read == out.len() => Ok(()),
            Ok(_) => Err(self.damaged(format!("block {block} lies behind the end of the file"))),
            Err(error) => {
                let detail = format!("block {block} at byte {at} cannot be read: {error}");
                Err(io::Error::new(error.kind(), detail))
            }
        }
    }

    fn read_header(&self) -> io::Result<([u8; HEADER_BYTES], u64)> {
        let mut sector = [0; HEADER_SECTOR_BYTES];
        self.read_at(&mut sector, position(0), 0)?;
        let Some((summed, sum)) = sector.split_last_chunk::<4>() else {
            return Err(self.damaged_block(0));
        };
        let (Some(header), Some(len)) = (summed.first_chunk(), summed.last_chunk()) else {
            return Err(self.damaged_block(0));
        };
        if block_sum(0, summed) != u32::from_le_bytes(*sum) {
            return Err(self.damaged_block(0));
        }
        Ok((*header, u64::from_le_bytes(*len)))
    }

    /// Writes the header together with the length of the file. The caller holds `writing`.
    fn write_header(&self, header: [u8; HEADER_BYTES], len: u64) -> io::Result<()> {
        let mut sector = Vec::with_capacity(HEADER_SECTOR_BYTES);
        sector.extend_from_slice(&header);
        sector.extend_from_slice(&len.to_le_bytes());
        sector.extend_from_slice(&block_sum(0, &sector).to_le_bytes());
        self.file.write_all_at(&sector, position(0))?;
        self.write_state().header = header;
        Ok(())
    }

    /// Writes the checksums of a group, unless they are on the disk. The caller holds `writing`.
    fn write_sums(&self, group: usize) -> io::Result<()> {
        let sums = {
            let state = self.read_state();
            let unwritten = state.groups[group].as_ref().filter(|group| group.unwritten);
            unwritten.map(|group| group.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect())
        };
        let Some(sums): Option<Vec<u8>> = sums else { return Ok(()) };
        self.file.write_all_at(&sums, sums_position(group as u64))?;
        if let Some(group) = &mut self.write_state().groups[group] {
            group.unwritten = false;
        }
        Ok(())
    }

    fn read_sums(&self, group: u64) -> io::Result<Box<[u32; GROUP_BLOCKS as usize]>> {
        let mut bytes = [0; BLOCK_BYTES as usize];
        self.read_at(&mut bytes, sums_position(group), group * GROUP_BLOCKS)?;
        let mut sums = Box::new([0; GROUP_BLOCKS as usize]);
        for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *sum = u32::from_le_bytes(*bytes);
        }
        Ok(sums)
    }

    /// Compares blocks that were just read with their checksums.
    fn check_blocks(&self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let blocks = || (first..).zip(bytes.chunks_exact(BLOCK_BYTES as usize));
        let all_known = {
            let state = self.read_state();
            let mut all_known = true;
            for (block, bytes) in blocks() {
                match state.known_sum(block) {
                    Some(sum) if block_sum(block, bytes) == sum => {}
                    Some(_) => return Err(self.damaged_block(block)),
                    None => all_known = false,
                }
            }
            all_known
        };
        if all_known {
            return Ok(());
        }
        // Some block is read for the first time in this process.
        let mut state = self.write_state();
        for (block, bytes) in blocks() {
            let group = self.loaded(&mut state, block / GROUP_BLOCKS)?;
            let within = (block % GROUP_BLOCKS) as usize;
            if block_sum(block, bytes) != group.sums[within] {
                return Err(self.damaged_block(block));
            }
            group.known[within] = true;
        }
        Ok(())
    }

    fn loaded<'a>(
        &self,
        state: &'a mut FileState,
        group: u64,
    ) -> io::Result<&'a mut ChecksumGroup> {
        let at = group as usize;
        if at >= state.groups.len() {
            let block = group * GROUP_BLOCKS;
            return Err(self.damaged(format!("block {block} lies behind the end of the file")));
        }
        let slot = &mut state.groups[at];
        if slot.is_none() {
            let sums = self.read_sums(group)?;
            let known = Box::new([false; GROUP_BLOCKS as usize]);
            *slot = Some(ChecksumGroup { sums, known, unwritten: false });
        }
        slot.as_mut().ok_or_else(|| io::Error::other("a group of checksums is not there"))
    }
}

impl FileState {
    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.groups.resize_with(len.div_ceil(GROUP_BYTES) as usize, || None);
        let blocks_left = len % GROUP_BYTES / BLOCK_BYTES;
        if blocks_left > 0
            && let Some(Some(last)) = self.groups.last_mut()
        {
            // The blocks after the end count as never written.
            last.sums[blocks_left as usize..].fill(0);
            last.known[blocks_left as usize..].fill(false);
            last.unwritten = true;
        }
    }

    fn known_sum(&self, block: u64) -> Option<u32> {
        let group = self.groups.get((block / GROUP_BLOCKS) as usize)?.as_ref()?;
        let within = (block % GROUP_BLOCKS) as usize;
        group.known[within].then_some(group.sums[within])
    }
}

/// Cuts a range of the engine's bytes at the ends of groups: (offset, length).
fn runs(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let end = offset + len as u64;
    let mut next = offset;
    std::iter::from_fn(move || {
        let from = next;
        next = end.min((from / GROUP_BYTES + 1) * GROUP_BYTES);
        (from < end).then_some((from, (next - from) as usize))
    })
}

fn is_whole_blocks(offset: u64, len: usize) -> bool {
    offset > 0 && offset.is_multiple_of(BLOCK_BYTES) && (len as u64).is_multiple_of(BLOCK_BYTES)
}

fn not_in_blocks(offset: u64, len: usize) -> io::Error {
    io::Error::other(format!("the engine asks for {len} bytes at {offset}, which are not blocks"))
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.check_sound()?;
        Ok(self.0.read_state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = &self.0;
        file.check_sound()?;
        if offset == 0 && out.len() <= HEADER_BYTES {
            let (header, _) = file.read_header()?;
            out.copy_from_slice(&header[..out.len()]);
            return Ok(());
        }
        if !is_whole_blocks(offset, out.len()) {
            return Err(not_in_blocks(offset, out.len()));
        }
        let mut rest = &mut *out;
        for (offset, len) in runs(offset, rest.len()) {
            let (run, behind) = rest.split_at_mut(len);
            file.read_at(run, position(offset), offset / BLOCK_BYTES)?;
            rest = behind;
        }
        file.check_blocks(offset / BLOCK_BYTES, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let file = &self.0;
        file.check_open()?;
        let _writing = file.writing();
        let (len_before, header) = {
            let state = file.read_state();
            (state.len, state.header)
        };
        if len < len_before {
            // The length in the header on the disk must never exceed that of the file.
            file.write_header(header, len)?;
            file.file.sync_data()?;
        }
        file.file.set_len(file_len(len))?;
        file.write_state().set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let file = &self.0;
        file.check_open()?;
        {
            let _writing = file.writing();
            let groups = file.read_state().groups.len();
            (0..groups).try_for_each(|group| file.write_sums(group))?;
        }
        file.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if IS_READING.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let file = &self.0;
        file.check_open()?;
        if offset == 0
            && let Ok(header) = data.try_into()
        {
            let _writing = file.writing();
            let len = file.read_state().len;
            return file.write_header(header, len);
        }
        if !is_whole_blocks(offset, data.len()) {
            return Err(not_in_blocks(offset, data.len()));
        }
        let first = offset / BLOCK_BYTES;
        let blocks = data.chunks_exact(BLOCK_BYTES as usize);
        let sums: Vec<u32> =
            (first..).zip(blocks).map(|(block, bytes)| block_sum(block, bytes)).collect();
        let _writing = file.writing();
        let mut rest = data;
        for (offset, len) in runs(offset, data.len()) {
            let (run, behind) = rest.split_at(len);
            file.loaded(&mut file.write_state(), offset / GROUP_BYTES)?;
            file.file.write_all_at(run, position(offset))?;
            rest = behind;
        }
        let mut state = file.write_state();
        for (block, sum) in (first..).zip(sums) {
            let group = file.loaded(&mut state, block / GROUP_BLOCKS)?;
            let within = (block % GROUP_BLOCKS) as usize;
            (group.sums[within], group.known[within]) = (sum, true);
            group.unwritten = true;
        }
        Ok(())
    }
}

impl std::fmt::Debug for CheckedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckedFile").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::gated_file::GatedFile;

    fn open(path: &std::path::Path) -> Result<Backend, String> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        let file =
            CheckedFile::open(Arc::new(file), Damage::default()).map_err(|e| e.to_string())?;
        Ok(Backend(Arc::new(file)))
    }

    fn bytes(block: u64, salt: u8) -> Vec<u8> {
        (0..BLOCK_BYTES).map(|at| (at as u8) ^ (block as u8) ^ salt).collect()
    }

    #[test]
    fn lengths_come_back_and_others_are_none() {
        for blocks in [0, 1, 2, 1023, 1024, 1025, 2048, 2049, 5000] {
            let len = blocks * BLOCK_BYTES;
            assert_eq!(engine_len(file_len(len)), Some(len));
            assert_eq!(engine_len(file_len(len) + 1), None);
        }
        assert_eq!(engine_len(BLOCK_BYTES), None, "checksums of nothing");
    }

    #[test]
    fn what_is_written_is_read_across_groups_and_after_opening_again() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("file");
        let file = open(&path).unwrap();
        let len = (GROUP_BLOCKS + 9) * BLOCK_BYTES;
        file.set_len(len).unwrap();
        let header = [7; HEADER_BYTES];
        file.write(0, &header).unwrap();
        let from = GROUP_BLOCKS - 3;
        let data: Vec<u8> = (from..from + 8).flat_map(|block| bytes(block, 1)).collect();
        file.write(from * BLOCK_BYTES, &data).unwrap();
        file.sync_data().unwrap();
        for file in [file, open(&path).unwrap()] {
            assert_eq!(file.len().unwrap(), len);
            let (mut found, mut found_header) = (vec![0; data.len()], [0; HEADER_BYTES]);
            file.read(from * BLOCK_BYTES, &mut found).unwrap();
            file.read(0, &mut found_header).unwrap();
            assert_eq!((found, found_header), (data.clone(), header));
            assert!(file.0.verify(0, u64::MAX).unwrap());
        }
    }

    #[test]
    fn a_block_in_anothers_place_and_one_never_written_are_damage() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("file");
        let mut found = vec![0; BLOCK_BYTES as usize];
        for damage in [true, false] {
            let file = open(&path).unwrap();
            file.set_len(8 * BLOCK_BYTES).unwrap();
            file.write(0, &[7; HEADER_BYTES]).unwrap();
            file.write(BLOCK_BYTES, &bytes(1, 0)).unwrap();
            file.write(2 * BLOCK_BYTES, &bytes(2, 0)).unwrap();
            file.sync_data().unwrap();
            if damage {
                file.0.file.write_all_at(&bytes(2, 0), position(BLOCK_BYTES)).unwrap();
                assert!(file.0.verify(0, u64::MAX).is_err());
                assert!(
                    file.read(2 * BLOCK_BYTES, &mut found).is_err(),
                    "the first damage is kept"
                );
            } else {
                assert!(file.read(3 * BLOCK_BYTES, &mut found).is_err());
            }
            let error = open(&path).unwrap().read(BLOCK_BYTES, &mut found);
            assert_eq!(error.is_err(), damage);
        }
    }

    #[test]
    fn a_file_that_was_made_shorter_and_longer_again_has_new_blocks_behind() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("file");
        let file = open(&path).unwrap();
        file.set_len(8 * BLOCK_BYTES).unwrap();
        file.write(0, &[7; HEADER_BYTES]).unwrap();
        file.write(5 * BLOCK_BYTES, &bytes(5, 0)).unwrap();
        file.sync_data().unwrap();
        file.set_len(4 * BLOCK_BYTES).unwrap();
        file.set_len(8 * BLOCK_BYTES).unwrap();
        assert!(file.0.verify(0, u64::MAX).unwrap());
        file.write(6 * BLOCK_BYTES, &bytes(6, 0)).unwrap();
        file.sync_data().unwrap();
        assert!(file.0.verify(0, u64::MAX).unwrap());
        open(&path).unwrap();
        // Shorter than it said of itself last.
        file.0.file.set_len(file_len(3 * BLOCK_BYTES)).unwrap();
        assert!(open(&path).unwrap_err().contains("bytes it has"));
    }

    #[test]
    fn blocks_are_read_while_a_write_waits() {
        const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);
        let changes: [fn(&Backend) -> io::Result<()>; 5] = [
            |file| file.write(3 * BLOCK_BYTES, &bytes(3, 1)),
            |file| file.write(0, &[8; HEADER_BYTES]),
            |file| file.set_len(9 * BLOCK_BYTES),
            |file| file.set_len(7 * BLOCK_BYTES),
            |file| file.sync_data(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let gated = Arc::new(GatedFile::new(tempfile::tempfile().unwrap()));
            let file = CheckedFile::open(gated.clone(), Damage::default()).unwrap();
            let file = Arc::new(Backend(Arc::new(file)));
            file.set_len(8 * BLOCK_BYTES).unwrap();
            file.write(0, &[7; HEADER_BYTES]).unwrap();
            file.write(BLOCK_BYTES, &bytes(1, 0)).unwrap();
            gated.shut(true);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| change(&file));
                gated.until_somebody_waits();
                let (done, read) = std::sync::mpsc::channel();
                let reading = file.clone();
                scope.spawn(move || {
                    let mut found = vec![0; BLOCK_BYTES as usize];
                    let outcome = reading.read(BLOCK_BYTES, &mut found);
                    let verified = reading.0.verify(0, u64::MAX);
                    let _ = done.send((outcome.is_ok(), found, verified.ok()));
                });
                let read = read.recv_timeout(DEADLINE);
                gated.shut(false);
                writer.join().unwrap().unwrap();
                assert_eq!(read, Ok((true, bytes(1, 0), Some(false))), "during change {number}");
            });
            file.sync_data().unwrap();
            assert!(file.0.verify(0, u64::MAX).unwrap());
        }
    }
}
