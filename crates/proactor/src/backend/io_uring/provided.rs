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
/// With fewer buffers than this in the kernel's hands the pool grows.
const LOW: usize = 16;

pub(crate) struct ProvidedBuffers {
    pool: Arc<Pool>,
    entries: NonNull<BufRingEntry>,
    count: u16,
    tail: u16,
    /// Buffers in the kernel's hands: published and not come back yet.
    lent: usize,
    /// Scratch for what the pool gives.
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
            Self { pool, entries, count, tail: 0, lent: 0, free: Vec::with_capacity(1024) };
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

    /// Lends the kernel what was given back to the pool; where that is too little, or the kernel
    /// has run out (`exhausted`), the pool grows first.
    pub(crate) fn refill(&mut self, exhausted: bool) {
        self.pool.take_free(&mut self.free);
        if exhausted {
            // As many again, so that a rising load runs out a few times only.
            let wanted = self.pool.total_buffers().max(1);
            while self.free.len() < wanted && self.pool.grow(&mut self.free) {}
        } else if self.lent + self.free.len() < LOW {
            self.pool.grow(&mut self.free);
        }
        self.pool.note_available(self.lent + self.free.len());
        if self.free.is_empty() {
            return;
        }
        while let Some(index) = self.free.pop() {
            self.publish(index);
        }
        // SAFETY: `entries` starts a registered buffer ring.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is a live, aligned u16 that the kernel reads atomically.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
    }

    fn publish(&mut self, index: u16) {
        assert!(self.lent < usize::from(self.count), "more buffers lent than there are");
        let position = usize::from(self.tail & (self.count - 1));
        // SAFETY: `position` is below `count`, the number of entries. The kernel does not read an
        // entry before the tail is moved past it.
        let entry = unsafe { &mut *self.entries.as_ptr().add(position) };
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
