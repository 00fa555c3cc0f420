//! How far a connection is read ahead of its consumer.

use crate::sync::atomic::{AtomicUsize, Ordering};

const NOT_PAUSED: usize = usize::MAX;

/// Counts the room of receive buffers that were delivered and not given back.
pub(crate) struct Window {
    held_bytes: AtomicUsize,
    /// Reading stopped; whoever makes `held_bytes` fall to this makes it go on. `NOT_PAUSED`: it
    /// did not stop.
    resume_at_bytes: AtomicUsize,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { held_bytes: AtomicUsize::new(0), resume_at_bytes: AtomicUsize::new(NOT_PAUSED) }
    }

    /// Whether any room is held.
    #[cfg(target_os = "linux")]
    pub(crate) fn is_held(&self) -> bool {
        self.held_bytes.load(Ordering::SeqCst) > 0
    }

    /// Counts room as held; `false` when reading has to pause, because that reaches `most_bytes`.
    pub(crate) fn hold(&self, bytes: usize, most_bytes: usize) -> bool {
        let held = self.held_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if held < most_bytes {
            return true;
        }
        let resume_at_bytes = most_bytes / 2;
        self.resume_at_bytes.store(resume_at_bytes, Ordering::SeqCst);
        // Whoever gave back meanwhile may not have seen the pause: then it ends here.
        self.held_bytes.load(Ordering::SeqCst) <= resume_at_bytes && self.end_pause()
    }

    /// Counts room as given back; `true` when a pause ends.
    pub(crate) fn release(&self, bytes: usize) -> bool {
        let held = self.held_bytes.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        let resume_at_bytes = self.resume_at_bytes.load(Ordering::SeqCst);
        resume_at_bytes != NOT_PAUSED && held <= resume_at_bytes && self.end_pause()
    }

    /// Whether reading is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.resume_at_bytes.load(Ordering::SeqCst) != NOT_PAUSED
    }

    /// Ends a pause; `false` where another thread has done so.
    fn end_pause(&self) -> bool {
        self.resume_at_bytes.swap(NOT_PAUSED, Ordering::SeqCst) != NOT_PAUSED
    }
}
