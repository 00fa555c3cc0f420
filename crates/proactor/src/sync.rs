//! What the threads of a port meet in: locks, atomics, the clock, the sleep in the kernel.
//!
//! In every normal build these are the standard library's, under other names. In the model tests
//! (`--cfg proactor_model`, see `docs/testing.md`) they are shuttle's: a scheduler then decides at
//! each of them which thread goes on, so that rare interleavings are tried in their thousands. The
//! cfg is internal; no published build sets it.

pub(crate) use std::sync::{Arc, OnceLock, PoisonError, TryLockError, Weak};

#[cfg(not(all(test, proactor_model)))]
mod real {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, atomic};
    pub(crate) use std::thread_local;
    use std::time::Instant;

    /// Locks. No callback of the program's runs under these locks: none can be poisoned. In a
    /// simulated world that interrupts its threads this is where it does.
    pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        #[cfg(feature = "sim")]
        if let Some(guard) = crate::backend::sim::lock_in_world(mutex) {
            return guard;
        }
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the clock says.
    #[inline]
    pub(crate) fn now() -> Instant {
        Instant::now()
    }
}
#[cfg(not(all(test, proactor_model)))]
pub(crate) use real::*;

#[cfg(all(test, proactor_model))]
pub(crate) mod model;
#[cfg(all(test, proactor_model))]
pub(crate) use model::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, atomic, lock, now, thread_local,
};
