//! What others look at of a worker: where it is, whether it counts against the limit, its wake-up.

use std::os::fd::OwnedFd;

use super::syscall;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The part of a worker that others look at: its slot, its wake-up, and how far it is.
#[repr(align(128))]
pub(crate) struct Slot {
    pub(crate) index: usize,
    pub(crate) thread_id: i32,
    /// Even: the thread is outside the library, handling a packet. Odd: it is inside. Changes at
    /// each dequeue, so that a thread that is stuck in one handler can be told.
    pub(crate) turn: AtomicU64,
    pub(super) state: AtomicU8,
    /// The worker sleeps or is about to: whoever gives it work signals `wake`.
    pub(crate) parked: AtomicBool,
    /// It was released for a packet and has not come for it yet. Changes under the queue's lock.
    pub(super) released: AtomicBool,
    /// An eventfd that the worker's wait covers.
    pub(crate) wake: OwnedFd,
    /// Packets that this worker has dequeued; written by the worker only.
    pub(crate) dequeued_packets: AtomicU64,
}

/// No slot: parked, or not counted yet.
pub(super) const FREE: u8 = 0;
/// Counts against the limit (rule 39).
pub(super) const HELD: u8 = 1;
/// In a handler that blocks: does not count (rule 40).
pub(super) const GIVEN_UP: u8 = 2;

impl Slot {
    pub(crate) fn new(index: usize, wake: OwnedFd) -> Self {
        Self {
            index,
            thread_id: syscall::thread_id(),
            turn: AtomicU64::new(1),
            state: AtomicU8::new(FREE),
            parked: AtomicBool::new(false),
            released: AtomicBool::new(false),
            wake,
            dequeued_packets: AtomicU64::new(0),
        }
    }

    /// Whether the worker counts against the limit.
    pub(crate) fn is_held(&self) -> bool {
        self.state.load(Ordering::Acquire) == HELD
    }

    /// Whether the worker gave its slot up because its handler blocks.
    pub(crate) fn is_given_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN_UP
    }
}
