//! What other threads may do to a thread that waits alertably: queue a routine, set an event.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::ApcQueue;
use crate::error::Error;
use crate::operation::Operation;
use crate::port::CompletionPort;

/// The key of a packet that carries a queued routine.
pub(super) const KEY_QUEUED: usize = 1;
/// The key of a packet that only ends a wait.
pub(super) const KEY_EVENT: usize = 2;

/// A routine from another thread, as it travels in an operation's context.
pub(super) type Queued = Box<dyn FnOnce(&ApcQueue) + Send>;

/// What the queue shares with other threads.
pub(super) struct Shared {
    pub(super) port: CompletionPort,
    /// Routines that other threads have queued and that have not run.
    pub(super) queued_routines: AtomicUsize,
}

/// A handle of an [`ApcQueue`] for other threads. A clone is the same handle. It keeps nothing
/// alive: once the queue is dropped, routines are refused.
#[derive(Clone)]
pub struct ApcHandle {
    pub(super) shared: Arc<Shared>,
}

impl ApcHandle {
    /// Queues `routine` to the queue's thread; it runs there in an alertable wait, in turn with the
    /// completion routines (rule 132). (On Windows: `QueueUserAPC`.)
    ///
    /// How many are queued is the caller's to bound.
    ///
    /// # Errors
    /// [`PortClosed`](crate::ErrorKind::PortClosed) where the queue was dropped. The routine is
    /// dropped then, and also where the queue is dropped before it has run.
    pub fn queue(&self, routine: impl FnOnce(&ApcQueue) + Send + 'static) -> Result<(), Error> {
        let routine: Queued = Box::new(routine);
        // Counted before it can be dequeued, so that the count never wraps.
        self.shared.queued_routines.fetch_add(1, Ordering::SeqCst);
        let operation = Operation::with_context(routine);
        self.shared.port.post(KEY_QUEUED, 0, Some(operation)).map_err(|rejected| {
            self.shared.queued_routines.fetch_sub(1, Ordering::SeqCst);
            rejected.error()
        })
    }
}

impl fmt::Debug for ApcHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApcHandle").finish_non_exhaustive()
    }
}

/// Something to wait for besides routines: any thread sets it, and one [`ApcQueue::wait`] that sees
/// it set takes that back. (On Windows: an auto-reset event.) A clone is the same event.
#[derive(Clone)]
pub struct Event {
    state: Arc<EventState>,
}

struct EventState {
    is_set: AtomicBool,
    shared: Arc<Shared>,
}

impl Event {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let shared = Arc::clone(shared);
        Self { state: Arc::new(EventState { is_set: AtomicBool::new(false), shared }) }
    }

    /// Sets the event, from any thread. Setting it twice is setting it once.
    pub fn set(&self) {
        if !self.state.is_set.swap(true, Ordering::SeqCst) {
            // Refused only where the queue is gone: then nobody waits.
            let _ = self.state.shared.port.post(KEY_EVENT, 0, None);
        }
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.state.is_set.load(Ordering::SeqCst)
    }

    /// Takes the signal, if it is set.
    pub(super) fn take(&self) -> bool {
        self.state.is_set.swap(false, Ordering::SeqCst)
    }

    /// Whether setting it wakes the waits of this queue.
    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.state.shared, shared)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Event").field("is_set", &self.is_set()).finish_non_exhaustive()
    }
}
