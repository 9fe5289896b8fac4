//! The bytes of one request in one piece of memory, as they come.
//!
//! One [`Filler`] appends, and whoever has the [`Block`] reads what is there: a
//! byte is copied into it once, and answers to readers and writes to the disk are
//! slices of it. Its memory counts until nobody holds any of it.

use std::alloc::{Layout, handle_alloc_error};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::chunk_map::CHUNK_BYTES;
use super::lock;
use crate::admission::{Permit, PrioritySemaphore};

/// What blocks are aligned to: the largest block of a disk that direct I/O must keep to.
pub(super) const ALIGNMENT: usize = 4096;

/// Memory of a block: pages of its own, which go back to the kernel with it. From the
/// allocator, whose arenas keep what they once had, they took twice the budget.
#[derive(Debug)]
struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is the buffer's own.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Buffer {
        let Some(len) = NonZeroUsize::new(bytes) else { unreachable!("a block has a chunk") };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new pages, wherever the kernel has room.
        let start = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) };
        let Ok(start) = start else {
            let page = Layout::new::<u8>();
            handle_alloc_error(Layout::from_size_align(bytes, 1).unwrap_or(page))
        };
        Buffer { start: start.cast(), bytes }
    }

    fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and given back once. It cannot fail but for
        // want of memory to note it in; then the pages stay, and harm nobody.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

/// Buffers that are not in use, beside those that are within the budget for memory. As
/// fast as they come back they are wanted again: without them each byte that is fetched
/// would cost page faults. What nobody wanted for a while is given back.
#[derive(Debug)]
pub(super) struct Pool {
    free: Mutex<Free>,
    memory: Arc<PrioritySemaphore>,
    bytes_max: u64,
}

#[derive(Debug, Default)]
struct Free {
    /// The one that came last is used first: the processor may still have it.
    buffers: Vec<Buffer>,
    bytes: u64,
    /// The least that `bytes` was since the last trim.
    idle_bytes: u64,
}

impl Free {
    fn take(&mut self, bytes: usize) -> Option<Buffer> {
        let at = self.buffers.iter().rposition(|buffer| buffer.len() == bytes)?;
        self.bytes -= bytes as u64;
        self.idle_bytes = self.idle_bytes.min(self.bytes);
        Some(self.buffers.remove(at))
    }

    /// Takes the oldest out until no more than `bytes` are left.
    fn shrink_to(&mut self, bytes: u64) -> Vec<Buffer> {
        let mut left = self.bytes;
        let too_many = self.buffers.iter().take_while(|buffer| {
            let is_one = left > bytes;
            left -= if is_one { buffer.len() as u64 } else { 0 };
            is_one
        });
        let too_many = too_many.count();
        self.bytes = left;
        self.idle_bytes = self.idle_bytes.min(left);
        self.buffers.drain(..too_many).collect()
    }
}

impl Pool {
    /// Those of `memory`, with at most `bytes_max` in use and not.
    pub(super) fn new(memory: Arc<PrioritySemaphore>, bytes_max: u64) -> Arc<Self> {
        Arc::new(Pool { free: Mutex::default(), memory, bytes_max })
    }

    /// What a block of `bytes` takes: a chunk, two, four and so on, so that few buffers
    /// go back to the kernel for want of one of another size.
    pub(super) fn rounded(bytes: u64) -> u64 {
        bytes.max(CHUNK_BYTES).next_power_of_two()
    }

    /// An empty block for `bytes`, whose memory is `permit`'s.
    pub(super) fn block(self: &Arc<Self>, bytes: u64, permit: Permit) -> Filler {
        self.make(bytes, Some(permit))
    }

    /// An empty block for an answer of `bytes` from the disk, whose number is bounded
    /// by that of the reads.
    pub(super) fn answer(self: &Arc<Self>, bytes: u64) -> Filler {
        self.make(bytes, None)
    }

    fn make(self: &Arc<Self>, bytes: u64, permit: Option<Permit>) -> Filler {
        let bytes = Self::rounded(bytes) as usize;
        let (buffer, unwanted) = {
            let used = self.memory.used(); // With this one's.
            let mut free = lock(&self.free);
            let buffer = free.take(bytes);
            (buffer, free.shrink_to(self.bytes_max.saturating_sub(used)))
        };
        drop(unwanted); // After the lock: the kernel takes its time for it.
        Filler(Arc::new(Block {
            buffer: ManuallyDrop::new(buffer.unwrap_or_else(|| Buffer::new(bytes))),
            filled: AtomicUsize::new(0),
            pool: self.clone(),
            _permit: permit,
        }))
    }

    fn give_back(&self, buffer: Buffer) {
        let mut free = lock(&self.free);
        free.bytes += buffer.len() as u64;
        free.buffers.push(buffer);
    }

    /// Gives back what nobody has wanted since the last time.
    pub(super) fn trim(&self) {
        let mut free = lock(&self.free);
        let wanted = free.bytes - free.idle_bytes;
        let idle = free.shrink_to(wanted);
        free.idle_bytes = free.bytes;
        drop(free);
        drop(idle);
    }
}

/// Bytes that have come, and room for those that follow them.
#[derive(Debug)]
pub(super) struct Block {
    buffer: ManuallyDrop<Buffer>,
    /// Bytes that are there and never change again.
    filled: AtomicUsize,
    pool: Arc<Pool>,
    _permit: Option<Permit>,
}

// SAFETY: below `filled` the memory is only read; behind that only the one filler
// writes, and it makes what it wrote known with `filled`.
unsafe impl Sync for Block {}

impl Block {
    /// Bytes that are there.
    pub(super) fn filled(&self) -> usize {
        self.filled.load(Ordering::Acquire)
    }

    /// Some of the bytes that are there.
    ///
    /// # Panics
    /// If they are not.
    pub(super) fn get(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.filled(), "{range:?} is not there");
        // SAFETY: everything below `filled` was written, lies in the one buffer
        // that lives as long as the block, and is not written again.
        unsafe { slice::from_raw_parts(self.buffer.start.as_ptr().add(range.start), range.len()) }
    }

    /// The same, held for as long as they are wanted.
    ///
    /// # Panics
    /// If they are not there.
    pub(super) fn slice(self: &Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.filled(), "{range:?} is not there");
        Bytes::from_owner(Slice { block: self.clone(), range })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: nobody uses it after this.
        let buffer = unsafe { ManuallyDrop::take(&mut self.buffer) };
        self.pool.give_back(buffer);
    }
}

/// The right to append to a block. There is one.
#[derive(Debug)]
pub(super) struct Filler(Arc<Block>);

impl Filler {
    /// The block, for those who read it.
    pub(super) fn block(&self) -> &Arc<Block> {
        &self.0
    }

    /// Appends `bytes`, as far as there is room for them.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let block = &self.0;
        let filled = block.filled.load(Ordering::Relaxed);
        let bytes = &bytes[..bytes.len().min(block.buffer.len() - filled)];
        // SAFETY: they fit behind `filled`, where nobody reads and only this one
        // filler writes, which is borrowed for it.
        unsafe {
            let end = block.buffer.start.as_ptr().add(filled);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), end, bytes.len());
        }
        block.filled.store(filled + bytes.len(), Ordering::Release);
    }

    /// Appends what one read of `file` at `offset` gives: `bytes` of it at most, and as
    /// many as there is room for. Returns how many.
    pub(super) fn read(&mut self, file: &File, offset: u64, bytes: usize) -> io::Result<usize> {
        let block = &self.0;
        let filled = block.filled.load(Ordering::Relaxed);
        let bytes = bytes.min(block.buffer.len() - filled);
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: they fit behind `filled`, where nobody reads and only this one
        // filler writes, which is borrowed for it; the descriptor is open.
        let read = unsafe {
            let end = block.buffer.start.as_ptr().add(filled);
            libc::pread(file.as_raw_fd(), end.cast(), bytes, offset)
        };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        block.filled.store(filled + read, Ordering::Release);
        Ok(read)
    }
}

struct Slice {
    block: Arc<Block>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self.block.get(self.range.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Class;

    const CHUNK: usize = CHUNK_BYTES as usize;

    fn permit(memory: &Arc<PrioritySemaphore>, bytes: u64) -> Permit {
        memory.try_acquire(Class::Demand, Pool::rounded(bytes)).unwrap()
    }

    #[test]
    fn what_came_can_be_read_while_more_comes_and_counts_until_the_last_slice() {
        let memory = PrioritySemaphore::new([1 << 20; 3]);
        let pool = Pool::new(memory.clone(), 1 << 20);
        let mut filler = pool.block(7, permit(&memory, 7));
        let block = filler.block().clone();
        assert_eq!(block.filled(), 0);
        filler.append(b"abc");
        let first = block.slice(0..3);
        let reader = std::thread::spawn({
            let block = block.clone();
            move || {
                while block.filled() < 7 {
                    std::thread::yield_now();
                }
                block.get(0..7).to_vec()
            }
        });
        filler.append(b"defg");
        assert_eq!(reader.join().unwrap(), b"abcdefg");
        assert_eq!((&first[..], block.get(2..5)), (&b"abc"[..], &b"cde"[..]));
        drop((filler, block));
        assert_eq!(memory.used(), CHUNK_BYTES);
        drop(first);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    #[should_panic(expected = "is not there")]
    fn what_has_not_come_cannot_be_read() {
        let memory = PrioritySemaphore::new([1 << 20; 3]);
        let mut filler = Pool::new(memory.clone(), 0).block(7, permit(&memory, 7));
        filler.append(b"abc");
        filler.block().get(0..4);
    }

    #[test]
    fn no_more_is_taken_than_there_is_room_for() {
        let memory = PrioritySemaphore::new([1 << 20; 3]);
        let mut filler = Pool::new(memory.clone(), 0).block(1, permit(&memory, 1));
        filler.append(&vec![1; CHUNK - 1]);
        filler.append(&[2, 3, 4]);
        assert_eq!(filler.block().filled(), CHUNK);
        assert_eq!(filler.block().get(CHUNK - 2..CHUNK), [1, 2]);
    }

    #[test]
    fn buffers_are_used_again_within_the_budget_and_given_back_when_idle() {
        let memory = PrioritySemaphore::new([4 * CHUNK_BYTES; 3]);
        let pool = Pool::new(memory.clone(), 4 * CHUNK_BYTES);
        let block = |chunks: u64| {
            let bytes = chunks * CHUNK_BYTES;
            pool.block(bytes, permit(&memory, bytes))
        };
        let free_chunks = || lock(&pool.free).bytes / CHUNK_BYTES;
        let first = block(1);
        let start = first.block().buffer.start;
        drop(first);
        let again = block(1);
        assert_eq!(again.block().buffer.start, start);
        let others = [block(1), block(1)];
        drop(others);
        assert_eq!(free_chunks(), 2);
        let large = block(2);
        assert_eq!(free_chunks(), 1, "3 chunks in use, and 1 more may be");
        pool.trim();
        assert_eq!(free_chunks(), 1, "it came this moment");
        pool.trim();
        assert_eq!(free_chunks(), 0);
        drop((again, large));
        assert_eq!((free_chunks(), memory.used()), (3, 0));
        pool.trim();
        drop(block(2));
        pool.trim();
        assert_eq!(free_chunks(), 2, "the other one was wanted meanwhile");
    }
}
