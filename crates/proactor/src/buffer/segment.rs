//! Memory for segments of receive buffers: zeroed, and resident once it is used.
//!
//! On Linux it is mapped for itself. An allocator would hand out memory that was used before, and
//! zero it, so that all of it was resident whether it is needed or not: with buffers of 64 KiB for
//! messages of 64 bytes that is sixteen times as much.

use std::alloc::Layout;
use std::ptr::NonNull;

/// Zeroed memory of this layout; `None` where there is none.
///
/// References: [mmap(2)](https://man7.org/linux/man-pages/man2/mmap.2.html).
#[cfg(target_os = "linux")]
pub(super) fn allocate(layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: a new anonymous mapping, at an address that the kernel chooses.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            layout.size(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED { None } else { NonNull::new(memory.cast()) }
}

/// Gives memory back.
///
/// # Safety
/// It came from [`allocate`] with this layout, and nobody uses it any more.
#[cfg(target_os = "linux")]
pub(super) unsafe fn free(memory: NonNull<u8>, layout: Layout) {
    // SAFETY: a mapping of just this size, as the caller promises.
    let result = unsafe { libc::munmap(memory.as_ptr().cast(), layout.size()) };
    assert_eq!(result, 0, "munmap of a segment of receive buffers");
}

/// Zeroed memory of this layout; `None` where there is none.
#[cfg(not(target_os = "linux"))]
pub(super) fn allocate(layout: Layout) -> Option<NonNull<u8>> {
    assert!(layout.size() > 0, "a segment has bytes");
    // SAFETY: the size is not zero.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    NonNull::new(memory)
}

/// Gives memory back.
///
/// # Safety
/// It came from [`allocate`] with this layout, and nobody uses it any more.
#[cfg(not(target_os = "linux"))]
pub(super) unsafe fn free(memory: NonNull<u8>, layout: Layout) {
    // SAFETY: as the caller promises.
    unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
}
