//! Waiting for a change of a state, in the time of the port's world.

use std::time::Duration;

use crate::CompletionPort;
use crate::backend::VirtualCondition;
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, lock};

/// A condition variable, of the system or of a simulated world.
pub(super) struct Changed {
    system: Condvar,
    simulated: Option<Box<dyn VirtualCondition>>,
}

impl Changed {
    pub(super) fn new(port: &CompletionPort) -> Self {
        Self { system: Condvar::new(), simulated: port.condition() }
    }

    /// Waits for a notice, or for this time; `guard` is one of `mutex`, which is free meanwhile.
    pub(super) fn wait<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, T> {
        if let Some(simulated) = &self.simulated {
            // Nobody else runs in the world until this thread waits.
            drop(guard);
            simulated.wait(timeout);
            return lock(mutex);
        }
        match timeout {
            Some(timeout) => {
                let waited = self.system.wait_timeout(guard, timeout);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.system.wait(guard).unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(super) fn notify_all(&self) {
        match &self.simulated {
            Some(simulated) => simulated.notify_all(),
            None => self.system.notify_all(),
        }
    }
}
