//! The CPU device: aligned memory and a pool of threads.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Cache lines and the widest vectors are 64 bytes.
const ALIGN: usize = 64;

/// A block of zeroed memory that programs read and write through raw slices.
///
/// A running program or a copy holds the blocks that it uses; a second one panics. Within a program the plan
/// gives every launch disjoint ranges (checked when the program is compiled).
pub struct Memory {
    /// The allocation, and its first byte at a multiple of `ALIGN`.
    allocation: NonNull<u8>,
    start: NonNull<u8>,
    bytes: usize,
    layout: Layout,
    held: AtomicBool,
    version: AtomicU64,
}

// SAFETY: the block is plain memory, and `held` allows one user at a time.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Blocks held by one program or copy until this is dropped.
pub(crate) struct Hold<'a>(&'a [Arc<Memory>]);

impl<'a> Hold<'a> {
    /// # Panics
    /// When one of the blocks is held already, or stands in the list twice.
    #[track_caller]
    pub fn new(blocks: &'a [Arc<Memory>]) -> Self {
        for (i, block) in blocks.iter().enumerate() {
            if block.held.swap(true, Ordering::Acquire) {
                drop(Hold(&blocks[..i]));
                panic!("two programs or copies use the same memory at the same time");
            }
        }
        Hold(blocks)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|block| block.held.store(false, Ordering::Release));
    }
}

impl Memory {
    /// Allocates `bytes` zeroed bytes, aligned to 64.
    pub(crate) fn zeroed(bytes: usize) -> Result<Self> {
        let out_of_memory = || {
            Error::new(format!("not enough memory for a block of {bytes} bytes"))
                .hint("lower the batch size or the image size")
        };
        let bytes = bytes.max(ALIGN);
        // With a larger alignment the allocator would write all zeros itself. Without, it returns zero pages
        // of the system, which cost neither time nor memory until they are used.
        let size = bytes.checked_add(ALIGN).ok_or_else(out_of_memory)?;
        let layout = Layout::from_size_align(size, 1).map_err(|_| out_of_memory())?;
        // SAFETY: the layout has a size above zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        let gap = allocation.as_ptr().addr().next_multiple_of(ALIGN) - allocation.as_ptr().addr();
        // SAFETY: the gap is below `ALIGN`, and that much was asked for beyond `bytes`.
        let start = unsafe { allocation.add(gap) };
        Ok(Memory {
            allocation,
            start,
            bytes,
            layout,
            held: AtomicBool::new(false),
            version: AtomicU64::new(0),
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of writes: see [`Memory::bump_version`].
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Counts a write; every writer calls it while it holds the block.
    pub(crate) fn bump_version(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Pointer to `bytes` bytes from `offset` on.
    ///
    /// # Panics
    /// When the range leaves the block.
    #[track_caller]
    pub(crate) fn range(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.bytes()),
            "range {offset}+{bytes} outside a block of {} bytes",
            self.bytes()
        );
        // SAFETY: the range was checked just now.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

thread_local! {
    /// Of the threads of a device's pool, where all its products run.
    static ROUNDS_FACTORS: Cell<bool> = const { Cell::new(false) };
}

/// Whether products on this thread round their factors to bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn rounds_factors() -> bool {
    ROUNDS_FACTORS.get()
}

/// Whether this processor has instructions that multiply bf16 numbers.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return pulp::x86::V4::is_available() && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The CPU device: a pool of threads.
pub struct Cpu {
    pool: rayon::ThreadPool,
    /// Products round their factors to bf16.
    pub(super) rounds: bool,
}

impl Cpu {
    /// Starts `threads` threads, 1 to 1024; `None`: one per core, or as many as RAYON_NUM_THREADS says.
    ///
    /// # Errors
    /// Another number, or the system refuses to start the threads.
    pub fn open(threads: Option<usize>) -> Result<Self> {
        Ok(Cpu { pool: super::threads::pool(threads)?, rounds: false })
    }

    /// Has the factors of this device's products rounded to bf16, which the processor must [have](has_bf16).
    pub(crate) fn round_factors(&mut self) {
        self.pool.broadcast(|_| ROUNDS_FACTORS.set(true));
        self.rounds = true;
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` so that parallel iterators in it use this device's threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_of_the_size_that_was_asked_for() {
        for bytes in [0, 1, 64, 1000, 1 << 20] {
            let memory = Memory::zeroed(bytes).unwrap();
            assert_eq!(memory.bytes(), bytes.max(ALIGN));
            let start = memory.range(0, memory.bytes());
            assert!(start.addr().is_multiple_of(ALIGN), "{bytes} bytes at {start:?}");
            // SAFETY: the range was checked just now.
            let all = unsafe { std::slice::from_raw_parts_mut(start, memory.bytes()) };
            assert!(all.iter().all(|&b| b == 0), "{bytes} bytes");
            all.fill(0xff); // into the last byte, for sanitisers and the allocator's own checks
        }
        assert!(Memory::zeroed(usize::MAX).is_err() && Memory::zeroed(usize::MAX / 2 + 1).is_err());
    }
}
