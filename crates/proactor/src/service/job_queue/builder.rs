//! What can be set of a job queue.

use std::collections::VecDeque;

use super::{AfterPanic, Inner, JobPanic, JobQueue, PanicHook, Phase, Scheduler, State};
use crate::sync::{Arc, Mutex};

/// How many jobs may wait in a queue, where nothing else is said.
pub const DEFAULT_MAXIMUM_JOBS: usize = 65_536;

/// How many jobs run in a turn, where nothing else is said.
pub const DEFAULT_JOBS_PER_TURN: usize = 64;

/// Configures a [`JobQueue`].
///
/// ```
/// use proactor::service::job_queue::{AfterPanic, JobQueue, Runnable};
/// let nowhere = |runnable: Runnable| Err(runnable);
/// let queue = JobQueue::builder()
///     .maximum_jobs(1024)
///     .jobs_per_turn(16)
///     .on_panic(|count: &mut u32, panic| {
///         eprintln!("job {count}: {}", panic.message());
///         AfterPanic::Continue
///     })
///     .build(nowhere, 0);
/// # drop(queue);
/// ```
pub struct JobQueueBuilder<T> {
    maximum_jobs: usize,
    jobs_per_turn: usize,
    on_panic: Box<PanicHook<T>>,
}

impl<T: Send + 'static> JobQueueBuilder<T> {
    pub(super) fn new() -> Self {
        Self {
            maximum_jobs: DEFAULT_MAXIMUM_JOBS,
            jobs_per_turn: DEFAULT_JOBS_PER_TURN,
            on_panic: Box::new(|_, panic| {
                tracing::error!(message = panic.message(), "a job panicked: its queue is closed");
                AfterPanic::Close
            }),
        }
    }

    /// How many jobs may wait; a further one is refused. [`DEFAULT_MAXIMUM_JOBS`] unless said.
    ///
    /// # Panics
    /// Where it is 0.
    pub fn maximum_jobs(mut self, maximum_jobs: usize) -> Self {
        assert!(maximum_jobs > 0, "a job queue takes at least one job");
        self.maximum_jobs = maximum_jobs;
        self
    }

    /// How many jobs run in a turn; then the worker turns to other packets, and the queue waits
    /// for its next turn behind them. [`DEFAULT_JOBS_PER_TURN`] unless said.
    ///
    /// # Panics
    /// Where it is 0.
    pub fn jobs_per_turn(mut self, jobs_per_turn: usize) -> Self {
        assert!(jobs_per_turn > 0, "a turn has at least one job");
        self.jobs_per_turn = jobs_per_turn;
        self
    }

    /// Decides what a panic of a job means. The job may have left the object half changed; `hook`
    /// gets it, to repair it or to tell others. Unless said, the panic is reported through
    /// `tracing` and the queue is closed. A hook that panics itself closes the queue.
    pub fn on_panic(
        mut self,
        hook: impl Fn(&mut T, JobPanic) -> AfterPanic + Send + Sync + 'static,
    ) -> Self {
        self.on_panic = Box::new(hook);
        self
    }

    /// The queue, with its object, and what brings it onto worker threads.
    pub fn build(self, scheduler: impl Scheduler, object: T) -> JobQueue<T> {
        self.build_shared(Arc::new(scheduler), object)
    }

    /// As [`build`](Self::build), with a scheduler that many queues share.
    pub fn build_shared(self, scheduler: Arc<dyn Scheduler>, object: T) -> JobQueue<T> {
        let state = State {
            jobs: VecDeque::new(),
            object: Some(Box::new(object)),
            phase: Phase::Idle,
            closed: false,
        };
        let inner = Inner {
            state: Mutex::new(state),
            scheduler,
            on_panic: self.on_panic,
            maximum_jobs: self.maximum_jobs,
            jobs_per_turn: self.jobs_per_turn,
        };
        JobQueue { inner: Arc::new(inner) }
    }
}
