//! A provided-buffer ring: receive buffers of the pool that are lent to the kernel.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::buffer::Pool;

/// The only buffer group of a worker's ring.
pub(crate) const GROUP: u16 = 0;
/// Buffers in the kernel's hands to begin with. The kernel fills them first-in-first-out, so few of
/// them stay warm in the processor's caches; where they run out, their number doubles.
const FIRST_LENT: usize = 16;

pub(crate) struct ProvidedBuffers {
    pool: Arc<Pool>,
    entries: NonNull<BufRingEntry>,
    count: u16,
    tail: u16,
    /// Buffers in the kernel's hands: published and not come back yet.
    lent: usize,
    /// How many should be there after each refill.
    target: usize,
    /// Not lent; the one that was used last is on top.
    free: Vec<u16>,
}

// SAFETY: the entries are owned by this value, like a Box, and only touched through it.
unsafe impl Send for ProvidedBuffers {}

impl ProvidedBuffers {
    /// Registers a buffer ring with `ring` and lends it the first buffers.
    pub(crate) fn register(ring: &IoUring, pool: Arc<Pool>) -> std::io::Result<Self> {
        let count = pool.maximum_buffers().next_power_of_two().min(32_768);
        let layout = Self::layout(count);
        // SAFETY: the layout is not empty: a pool has at least one segment of buffers.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(entries) = NonNull::new(memory.cast::<BufRingEntry>()) else {
            handle_alloc_error(layout)
        };
        let count = u16::try_from(count).unwrap_or(32_768);
        let mut buffers =
            Self { pool, entries, count, tail: 0, lent: 0, target: FIRST_LENT, free: Vec::new() };
        let address = entries.as_ptr() as u64;
        // SAFETY: the entries are page-aligned, live until `self` is dropped, and the driver drops
        // `self` only after its ring.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0)? };
        buffers.refill(false);
        Ok(buffers)
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Lends the kernel buffers again in the place of those that it filled; where it has run out
    /// (`exhausted`), twice as many from now on.
    pub(crate) fn refill(&mut self, exhausted: bool) {
        self.pool.take_free(&mut self.free);
        if exhausted {
            self.target = (self.target * 2).min(usize::from(self.count));
        }
        let before = self.tail;
        while self.lent < self.target {
            match self.free.pop() {
                Some(index) => self.publish(index),
                None if self.pool.grow(&mut self.free) => {}
                None => break,
            }
        }
        self.pool.note_available(self.lent + self.free.len());
        if self.tail == before {
            return;
        }
        // SAFETY: `entries` starts a registered buffer ring.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is a live, aligned u16 that the kernel reads atomically.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
    }

    fn publish(&mut self, index: u16) {
        assert!(self.lent < usize::from(self.count), "more buffers lent than there are");
        let position = usize::from(self.tail & (self.count - 1));
        // SAFETY: `position` is below `count`, the number of entries.
        let entry = unsafe { self.entries.as_ptr().add(position) };
        // SAFETY: the kernel does not read an entry before the tail is moved past it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.pool.address(index).as_ptr() as u64);
        entry.set_len(u32::try_from(self.pool.buffer_bytes()).unwrap_or(u32::MAX));
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
    }

    /// The kernel has filled a buffer and given it back to this side.
    pub(crate) fn came_back(&mut self) {
        assert!(self.lent > 0, "the kernel gave back a buffer that it did not have");
        self.lent -= 1;
    }

    fn layout(count: usize) -> Layout {
        Layout::from_size_align(count * size_of::<BufRingEntry>(), 4096)
            .expect("a buffer ring fits in the address space")
    }
}

impl Drop for ProvidedBuffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with this layout; the ring that it was registered with
        // is gone (see there).
        unsafe { dealloc(self.entries.as_ptr().cast(), Self::layout(usize::from(self.count))) };
    }
}
