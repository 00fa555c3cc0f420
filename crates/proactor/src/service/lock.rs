//! Locking without a thought of poisoning: no callback of the program runs under a lock of this
//! layer, so a panic cannot leave what they guard half changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
