//! A worker's alarm: a timer that any thread may set, and that ends that worker's sleep.
//!
//! A worker that goes to sleep says how long at most. Who finds out later that it should wake
//! sooner could wake it at once; the alarm lets it sleep until then, and costs nothing more when it
//! was set in vain and is cleared again.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::syscall;
use crate::sync::atomic::{AtomicBool, Ordering};

/// A timerfd that the worker's wait covers.
pub(crate) struct Alarm {
    timer: OwnedFd,
    /// It was set, and neither cleared nor noticed since.
    pending: AtomicBool,
}

impl Alarm {
    pub(crate) fn new() -> Result<Self, i32> {
        Ok(Self { timer: syscall::timer()?, pending: AtomicBool::new(false) })
    }

    /// The descriptor, for the worker's wait.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Ends the worker's sleep in `after`, instead of when it was set for before.
    pub(crate) fn set(&self, after: Duration) {
        self.pending.store(true, Ordering::SeqCst);
        syscall::timer_set(&self.timer, Some(after));
    }

    /// Makes sure that it does not ring.
    pub(crate) fn clear(&self) {
        if self.pending.swap(false, Ordering::SeqCst) {
            syscall::timer_set(&self.timer, None);
        }
    }

    /// It has done what it was set for.
    pub(crate) fn noticed(&self) {
        self.pending.store(false, Ordering::SeqCst);
    }
}
