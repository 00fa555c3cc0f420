//! The kernel's completion port: queueing, dequeuing, and how many operations are out.

use std::os::windows::io::OwnedHandle;
use std::ptr::addr_of;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::IO::{OVERLAPPED, OVERLAPPED_ENTRY};

use super::syscall::{self, Code};

/// A completion port of the kernel.
pub(crate) struct Queue {
    handle: OwnedHandle,
    closed: AtomicBool,
    /// Operations that the kernel or the queue has: as long as there is one, somebody has to
    /// dequeue.
    in_flight: AtomicUsize,
    /// Threads that wait, or are about to.
    waiting: AtomicUsize,
}

/// Its address is the packet that wakes a thread after the port was closed.
static WAKE: u8 = 0;

/// Before a packet is tried again for which the kernel had no memory.
pub(crate) const RETRY: Duration = Duration::from_millis(1);

impl Queue {
    /// A port on which at most `concurrency` threads run.
    pub(crate) fn new(concurrency: u32) -> Result<Self, Code> {
        Ok(Self {
            handle: syscall::create_port(concurrency)?,
            closed: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Lets the kernel queue packets of a handle here.
    pub(crate) fn associate(&self, handle: HANDLE) -> Result<(), Code> {
        syscall::associate(&self.handle, handle)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Marks it closed; `false` where it was.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    /// One more operation is on its way to the kernel or to the queue. Counted before the call, so
    /// that who closes the port cannot miss it.
    pub(crate) fn count_in(&self) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    /// An operation has landed.
    pub(crate) fn count_out(&self) {
        let before = self.in_flight.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "more operations landed than were in flight");
    }

    /// How many operations are out.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Queues a packet.
    pub(crate) fn post(
        &self,
        bytes: u32,
        key: usize,
        overlapped: *const OVERLAPPED,
    ) -> Result<(), Code> {
        syscall::post(&self.handle, bytes, key, overlapped)
    }

    /// Queues the packet of an operation that is done, and of which nobody could be told that its
    /// packet is lost: waits where the kernel is out of memory.
    pub(crate) fn post_surely(&self, bytes: u32, overlapped: *const OVERLAPPED) {
        while let Err(code) = self.post(bytes, 0, overlapped) {
            tracing::warn!(code, "PostQueuedCompletionStatus: tried again");
            std::thread::sleep(RETRY);
        }
    }

    /// Waits for packets, as a thread of the program: `None` where the port is closed.
    pub(crate) fn wait(
        &self,
        entries: &mut [OVERLAPPED_ENTRY],
        timeout_ms: Option<u32>,
    ) -> Option<Result<usize, Code>> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let result = if self.is_closed() {
            None
        } else {
            Some(syscall::dequeue(&self.handle, entries, timeout_ms))
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Takes what is queued, for whoever empties a closed port.
    pub(crate) fn drain(
        &self,
        entries: &mut [OVERLAPPED_ENTRY],
        timeout_ms: u32,
    ) -> Result<usize, Code> {
        syscall::dequeue(&self.handle, entries, Some(timeout_ms))
    }

    /// After the port was closed: wakes one of the threads that wait, which wakes the next.
    ///
    /// Closing the handle would end all waits at once, but then nobody could dequeue what the
    /// kernel still has; and a handle that is closed under a thread which is about to use it may
    /// name another port by then.
    pub(crate) fn wake_waiting(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.post_surely(0, wake_packet());
        }
    }
}

fn wake_packet() -> *mut OVERLAPPED {
    addr_of!(WAKE).cast_mut().cast()
}

/// Whether a packet is there only to wake a thread.
pub(crate) fn is_wake(entry: &OVERLAPPED_ENTRY) -> bool {
    entry.lpOverlapped == wake_packet()
}
