//! What brings a job queue onto a worker thread.

use std::fmt;

use crate::sync::Arc;

/// Brings job queues onto worker threads.
///
/// [`PortScheduler`](super::PortScheduler) does it with the packets of a completion port. Any
/// function that takes a [`Runnable`] is a scheduler too, for a port of threads of another kind and
/// for tests.
pub trait Scheduler: Send + Sync + 'static {
    /// Arranges that `runnable` is [run](Runnable::run) soon, once, on some worker thread, behind
    /// what that thread has to do already. It must not run it itself: the caller may be in the
    /// middle of a job.
    ///
    /// # Errors
    /// The runnable, where it will never be run: the port is closed.
    fn schedule(&self, runnable: Runnable) -> Result<(), Runnable>;
}

impl<F> Scheduler for F
where
    F: Fn(Runnable) -> Result<(), Runnable> + Send + Sync + 'static,
{
    fn schedule(&self, runnable: Runnable) -> Result<(), Runnable> {
        self(runnable)
    }
}

/// A job queue that has jobs, and waits for a worker thread to run some of them.
///
/// Where it is dropped without having been run, its queue is closed: its jobs could never run.
#[must_use = "dropping it closes its job queue"]
pub struct Runnable {
    queue: Option<Arc<dyn Run>>,
}

/// A job queue, whatever its object is.
pub(super) trait Run: Send + Sync {
    /// Runs jobs, as many as a turn has.
    fn run(self: Arc<Self>);
    /// Nobody will run them.
    fn abandon(&self);
}

impl Runnable {
    pub(super) fn new(queue: Arc<dyn Run>) -> Self {
        Self { queue: Some(queue) }
    }

    /// Runs jobs of the queue on this thread, as many as a turn has at most; then the queue
    /// schedules itself again, if it has more. A panic of a job does not come through.
    pub fn run(mut self) {
        if let Some(queue) = self.queue.take() {
            queue.run();
        }
    }
}

impl Drop for Runnable {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.abandon();
        }
    }
}

impl fmt::Debug for Runnable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Runnable").finish_non_exhaustive()
    }
}
