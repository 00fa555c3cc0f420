//! The receive-buffer pool: fixed-size buffers, grown in segments up to a limit.
//!
//! A buffer is in exactly one place: free here, lent to the kernel by a backend, or owned by a
//! [`PoolBuffer`]. An index names a buffer, so that io_uring's buffer ids need no table.

use std::alloc::Layout;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::segment;

/// Buffers in one segment: a pool grows by this many at a time.
pub(crate) const SEGMENT_BUFFERS: usize = 64;
/// One source may hold this part of what is available at most.
const SHARES: usize = 256;
/// io_uring names a provided buffer by 16 bits and a buffer ring holds at most 32,768.
const MAXIMUM_SEGMENTS: usize = 32_768 / SEGMENT_BUFFERS;

/// Told when a receiver is done with bytes that the pool lent, so that reading can go on.
pub(crate) trait Consumer: Send + Sync {
    /// `held_bytes` of buffer room were given back.
    fn released(&self, held_bytes: usize);
}

/// A pool of receive buffers.
pub(crate) struct Pool {
    buffer_bytes: usize,
    maximum_buffers: usize,
    /// Start of each segment; null until it is allocated. Segments are freed with the pool only.
    segments: Box<[AtomicPtr<u8>]>,
    total_buffers: AtomicUsize,
    /// Buffers that can still be had, growth included: noted now and then, not exact.
    available: AtomicUsize,
    free: Mutex<Vec<u16>>,
}

impl Pool {
    /// A pool with buffers of `buffer_bytes`, never more than `maximum_buffers` of them.
    pub(crate) fn new(buffer_bytes: usize, maximum_buffers: usize) -> Arc<Self> {
        assert!(buffer_bytes > 0, "a receive buffer holds at least one byte");
        let segment_count = maximum_buffers.div_ceil(SEGMENT_BUFFERS).clamp(1, MAXIMUM_SEGMENTS);
        Arc::new(Self {
            buffer_bytes,
            maximum_buffers: segment_count * SEGMENT_BUFFERS,
            segments: (0..segment_count).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
            total_buffers: AtomicUsize::new(0),
            available: AtomicUsize::new(segment_count * SEGMENT_BUFFERS),
            free: Mutex::new(Vec::new()),
        })
    }

    /// Bytes that one buffer holds.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Buffers that the pool may have at most.
    #[cfg(any(target_os = "linux", test))]
    pub(crate) fn maximum_buffers(&self) -> usize {
        self.maximum_buffers
    }

    /// Buffers that the pool has allocated.
    pub(crate) fn total_buffers(&self) -> usize {
        self.total_buffers.load(Ordering::Relaxed)
    }

    /// Bytes of the buffers that the pool has allocated.
    #[cfg(target_os = "linux")]
    pub(crate) fn held_bytes(&self) -> usize {
        self.total_buffers() * self.buffer_bytes
    }

    /// Bytes of the buffers that were in receivers' hands when that was last noted.
    #[cfg(target_os = "linux")]
    pub(crate) fn lent_bytes(&self) -> usize {
        let available = self.available.load(Ordering::Relaxed);
        self.maximum_buffers.saturating_sub(available) * self.buffer_bytes
    }

    /// Buffers that nobody has.
    #[cfg(feature = "sim")]
    pub(crate) fn free_buffers(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Moves every free buffer to `into`: one short lock for a whole batch.
    #[cfg(target_os = "linux")]
    pub(crate) fn take_free(&self, into: &mut Vec<u16>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut free);
    }

    /// Takes one free buffer, growing the pool where none is free; `None` at the limit, or where the
    /// system has no memory.
    pub(crate) fn take(&self) -> Option<u16> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.is_empty() {
            self.grow_into(&mut free);
        }
        let taken = free.pop();
        self.note_available(free.len());
        taken
    }

    /// Notes how many of the buffers that exist are not in a receiver's hands.
    pub(crate) fn note_available(&self, idle_buffers: usize) {
        let growth = self.maximum_buffers - self.total_buffers.load(Ordering::Relaxed);
        self.available.store(growth + idle_buffers, Ordering::Relaxed);
    }

    /// How far one source may be read ahead, of `most_bytes`, as long as the pool is this full: the
    /// fuller it is, the less, down to one buffer. So readers that do not read cannot take the
    /// pool from those that do.
    pub(crate) fn window_bytes(&self, most_bytes: usize) -> usize {
        let share = self.available.load(Ordering::Relaxed) / SHARES;
        most_bytes.min(share.max(1) * self.buffer_bytes)
    }

    /// Adds a segment of buffers to `into`; `false` at the limit, or where the system has no memory.
    #[cfg(target_os = "linux")]
    pub(crate) fn grow(&self, into: &mut Vec<u16>) -> bool {
        // The lock makes growing one at a time; `into` is the caller's.
        let _free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        self.grow_into(into)
    }

    fn grow_into(&self, into: &mut Vec<u16>) -> bool {
        let total = self.total_buffers.load(Ordering::Relaxed);
        if total >= self.maximum_buffers {
            return false;
        }
        let layout = self.segment_layout();
        // Who finds no buffer waits for one and tries again: the program need not end for it.
        let Some(memory) = segment::allocate(layout) else { return false };
        self.segments[total / SEGMENT_BUFFERS].store(memory.as_ptr(), Ordering::Release);
        self.total_buffers.store(total + SEGMENT_BUFFERS, Ordering::Release);
        // Lowest index on top: a warm buffer is taken before a cold one.
        into.extend((total..total + SEGMENT_BUFFERS).rev().map(|index| index as u16));
        true
    }

    /// Where buffer `index` starts.
    pub(crate) fn address(&self, index: u16) -> NonNull<u8> {
        let index = usize::from(index);
        let segment = self.segments[index / SEGMENT_BUFFERS].load(Ordering::Acquire);
        assert!(!segment.is_null(), "buffer {index} was never allocated");
        // SAFETY: the segment holds SEGMENT_BUFFERS buffers of `buffer_bytes`, and the offset is
        // inside it.
        let start = unsafe { segment.add(index % SEGMENT_BUFFERS * self.buffer_bytes) };
        // SAFETY: inside an allocation, so not null.
        unsafe { NonNull::new_unchecked(start) }
    }

    /// Gives a buffer back that no `PoolBuffer` stands for (an empty completion, for example).
    pub(crate) fn give_back(&self, index: u16) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(index);
    }

    /// Hands buffer `index`, of which the first `len` bytes are filled, to a receiver.
    ///
    /// # Safety
    /// The caller owns buffer `index`: it is neither free, nor lent to the kernel, nor the subject
    /// of another `PoolBuffer`.
    pub(crate) unsafe fn lend(
        self: &Arc<Self>,
        index: u16,
        len: usize,
        consumer: Option<Arc<dyn Consumer>>,
    ) -> PoolBuffer {
        assert!(len <= self.buffer_bytes, "the kernel filled more than the buffer holds");
        PoolBuffer { pool: Arc::clone(self), address: self.address(index), len, index, consumer }
    }

    fn segment_layout(&self) -> Layout {
        Layout::from_size_align(self.buffer_bytes * SEGMENT_BUFFERS, 16)
            .expect("a segment of receive buffers fits in the address space")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let layout = self.segment_layout();
        for segment in &self.segments {
            if let Some(memory) = NonNull::new(segment.load(Ordering::Acquire)) {
                // SAFETY: allocated in `grow_into` with this layout. Every `PoolBuffer` and every
                // backend that lends buffers to the kernel holds the pool, so nobody uses it now.
                unsafe { segment::free(memory, layout) };
            }
        }
    }
}

/// Bytes that a continuous receive delivered, in a buffer of the port's pool.
///
/// Dropping it gives the buffer back. While a receiver keeps buffers, at most a bounded number of
/// bytes more is read from its connection, so a consumer that stops makes the peer stop
/// ([`Builder::receive_window_bytes`](crate::Builder::receive_window_bytes)).
pub struct PoolBuffer {
    pool: Arc<Pool>,
    consumer: Option<Arc<dyn Consumer>>,
    address: NonNull<u8>,
    len: usize,
    index: u16,
}

// SAFETY: a PoolBuffer is the only owner of its buffer's bytes, like a Vec<u8>; `pool` and
// `consumer` are Send and Sync.
unsafe impl Send for PoolBuffer {}
// SAFETY: shared access only reads the bytes.
unsafe impl Sync for PoolBuffer {}

impl PoolBuffer {
    /// Forgets the first `count` bytes, for example because they were parsed.
    ///
    /// # Panics
    /// Where `count` is more than the length.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "advance past the end of a PoolBuffer");
        // SAFETY: stays inside the buffer by the assertion above.
        self.address = unsafe { self.address.add(count) };
        self.len -= count;
    }

    /// Bytes of the pool's buffer that these bytes keep in use.
    pub(crate) fn capacity(&self) -> usize {
        self.pool.buffer_bytes()
    }

    /// The pool that it is a buffer of.
    #[cfg(target_os = "linux")]
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Who is to be told when the buffer is given back.
    pub(crate) fn set_consumer(&mut self, consumer: Arc<dyn Consumer>) {
        self.consumer = Some(consumer);
    }

    /// The bytes, to be written by a system call.
    pub(crate) fn as_uninit(&mut self) -> &mut [std::mem::MaybeUninit<u8>] {
        // SAFETY: as in `deref_mut`; initialised bytes are valid as uninitialised ones, and the
        // callers only let the kernel write to them.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr().cast(), self.len) }
    }

    /// Keeps only the first `len` bytes; does nothing where there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for PoolBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `address` lie in a live segment (the pool is held), were
        // initialised (zeroed at allocation, then written by the kernel), and are owned by self.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}

impl DerefMut for PoolBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for PoolBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for PoolBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PoolBuffer({} bytes)", self.len)
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        if planted!(PoolLeak) && self.address != self.pool.address(self.index) {
            return;
        }
        self.pool.give_back(self.index);
        if planted!(PoolDoubleFree) {
            self.pool.give_back(self.index);
        }
        if planted!(ConsumerNotTold) {
            return;
        }
        if let Some(consumer) = self.consumer.take() {
            consumer.released(self.pool.buffer_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit_and_takes_buffers_back() {
        let pool = Pool::new(256, 100);
        assert_eq!(pool.maximum_buffers(), 128);
        let taken: Vec<u16> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken.len(), 128);
        let mut sorted = taken.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 128, "no buffer is handed out twice");
        for index in taken {
            // SAFETY: the index was just taken from the pool.
            drop(unsafe { pool.lend(index, 256, None) });
        }
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), 128);
    }

    /// A buffer of which a few bytes are used costs a page, not all of it.
    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_was_never_filled_is_not_resident() {
        const PAGE: usize = 4096;
        let pool = Pool::new(64 * 1024, SEGMENT_BUFFERS);
        let mut buffers = Vec::new();
        while let Some(index) = pool.take() {
            // SAFETY: the index was just taken from the pool.
            let mut buffer = unsafe { pool.lend(index, 64, None) };
            buffer[0] = 1;
            buffers.push(buffer);
        }
        let segment = pool.segments[0].load(Ordering::Acquire);
        let first_page = segment.wrapping_add(segment.align_offset(PAGE));
        let mut resident = vec![0_u8; (SEGMENT_BUFFERS - 1) * 64 * 1024 / PAGE];
        // SAFETY: the pages lie within the segment, and there is a byte for each of them.
        let result = unsafe {
            libc::mincore(first_page.cast(), resident.len() * PAGE, resident.as_mut_ptr())
        };
        assert_eq!(result, 0);
        let pages = resident.iter().filter(|page| **page & 1 != 0).count();
        // Those of the bytes that were written.
        assert!(pages <= SEGMENT_BUFFERS, "{pages} of {} pages", resident.len());
    }

    #[test]
    fn a_buffer_outlives_every_other_holder_of_the_pool() {
        let pool = Pool::new(64, 64);
        let index = pool.take().unwrap();
        // SAFETY: the index was just taken from the pool.
        let mut buffer = unsafe { pool.lend(index, 64, None) };
        drop(pool);
        buffer.fill(7);
        buffer.advance(60);
        assert_eq!(&*buffer, [7, 7, 7, 7]);
    }
}
