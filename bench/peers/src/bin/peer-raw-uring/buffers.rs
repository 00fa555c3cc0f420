//! The ring of provided buffers that multishot receives take from.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// Extra bytes between buffers, so that the first cache lines of all of them
/// do not fall into the same cache sets.
const STAGGER_BYTES: usize = 192;
const PAGE_BYTES: usize = 4096;

/// A received piece of a stream: part of one provided buffer.
#[derive(Debug)]
pub struct Chunk {
    buffer: u16,
    start: u32,
    length: u32,
}

impl Chunk {
    /// Takes `count` sent bytes off the front.
    pub fn advance(&mut self, count: u32) {
        assert!(count <= self.length, "more was sent than there was");
        self.start += count;
        self.length -= count;
    }

    /// Whether all of it has been sent.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// Buffers shared with the kernel. A buffer is either in the ring, where the
/// kernel may write to it, or out in a [`Chunk`].
pub struct BufferRing {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    count: u16,
    buffer_bytes: usize,
    /// Buffers that are out in chunks.
    out: u16,
    /// Our tail; the kernel sees it when published.
    tail: u16,
    published: u16,
}

impl BufferRing {
    /// Allocates and registers `count` buffers, a power of two. They live as
    /// long as the process, which ends by a signal.
    pub fn new(
        submitter: &Submitter<'_>,
        group: u16,
        count: u16,
        buffer_bytes: usize,
    ) -> io::Result<Self> {
        assert!(count.is_power_of_two());
        let entries_bytes = usize::from(count) * size_of::<BufRingEntry>();
        let memory_bytes = usize::from(count) * (buffer_bytes + STAGGER_BYTES);
        let mut ring = Self {
            entries: allocate(entries_bytes).cast(),
            memory: allocate(memory_bytes),
            count,
            buffer_bytes,
            out: 0,
            tail: 0,
            published: 0,
        };
        // SAFETY: the entries are page-aligned, zeroed and never freed.
        unsafe {
            submitter.register_buf_ring_with_flags(ring.entries as u64, count, group, 0)?;
        }
        for buffer in 0..count {
            ring.put(buffer);
        }
        ring.publish();
        Ok(ring)
    }

    /// The first `length` bytes of a buffer that the kernel has filled.
    pub fn take(&mut self, buffer: u16, length: u32) -> Chunk {
        self.out += 1;
        Chunk { buffer, start: 0, length }
    }

    /// Whether no chunk is out, so that nothing more will be given back.
    pub fn all_home(&self) -> bool {
        self.out == 0
    }

    /// The bytes of a chunk.
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        assert!((chunk.start + chunk.length) as usize <= self.buffer_bytes);
        // SAFETY: the range is inside the chunk's buffer, which the kernel
        // does not write to until it is given back.
        unsafe {
            let start = self.buffer(chunk.buffer).add(chunk.start as usize);
            slice::from_raw_parts(start, chunk.length as usize)
        }
    }

    /// Puts a chunk's buffer back; the kernel sees it at the next
    /// [`publish`](Self::publish).
    pub fn give_back(&mut self, chunk: Chunk) {
        self.out -= 1;
        self.put(chunk.buffer);
    }

    fn put(&mut self, buffer: u16) {
        let address = self.buffer(buffer) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is below `count`. The kernel does not read the
        // entry before the tail has passed it; the fields written here do not
        // include the tail, which shares memory with the first entry.
        unsafe {
            let entry = &mut *self.entries.add(index);
            entry.set_addr(address);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was put back; true if there was anything.
    pub fn publish(&mut self) -> bool {
        let any = self.published != self.tail;
        if any {
            // SAFETY: the tail is valid for the ring's life, aligned, and
            // written by this thread only.
            unsafe {
                let tail = BufRingEntry::tail(self.entries).cast_mut();
                AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
            }
            self.published = self.tail;
        }
        any
    }

    fn buffer(&self, index: u16) -> *mut u8 {
        assert!(index < self.count);
        let offset = usize::from(index) * (self.buffer_bytes + STAGGER_BYTES);
        // SAFETY: the offset is inside the allocation.
        unsafe { self.memory.add(offset) }
    }
}

fn allocate(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a size that memory can hold");
    // SAFETY: the size is not zero.
    let pointer = unsafe { alloc_zeroed(layout) };
    if pointer.is_null() {
        handle_alloc_error(layout);
    }
    pointer
}
