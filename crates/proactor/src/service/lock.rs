//! Locking without a thought of poisoning: no callback of the program runs under a lock of this
//! layer, so a panic cannot leave what they guard half changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. In a simulated world that interrupts its threads this is where it does.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(feature = "sim")]
    if let Some(guard) = crate::backend::sim::lock_in_world(mutex) {
        return guard;
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
