//! Serialised job queues: an object whose jobs run in order, one at a time, on any worker.
//!
//! A room, a match, an account: something that many sessions act on. Instead of a lock around it,
//! it lives in a [`JobQueue`], and whoever wants something of it pushes a job, which gets the
//! object to itself. Pushing never waits for a job, jobs run in the order in which they were
//! pushed, and never two at once, so no job needs a lock for the object. (Others call this a
//! strand.)
//!
//! - The thread that pushes never runs the job; a worker does. So a push is safe from inside a job,
//!   also of the same queue, and nobody is caught running what others push.
//! - No lock is held while a job runs.
//! - A queue that has more jobs than a [turn](JobQueueBuilder::jobs_per_turn) gives its worker back
//!   and waits for its next turn behind the other work.
//! - A panic of a job is caught, and the queue's owner decides what it means.
//! - A queue has a [limit](JobQueueBuilder::maximum_jobs).
//!
//! [`JobTimer`] pushes jobs later, or again and again. [`PortScheduler`] brings both to the worker
//! threads of a completion port.

mod builder;
#[cfg(all(test, proactor_model))]
mod models;
mod port;
mod runnable;
#[cfg(test)]
mod tests;
mod timed;
mod timer;

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sync::{Arc, Mutex, MutexGuard, Weak, lock};

pub use builder::{DEFAULT_JOBS_PER_TURN, DEFAULT_MAXIMUM_JOBS, JobQueueBuilder};
pub use port::PortScheduler;
pub use runnable::{Runnable, Scheduler};
pub use timed::{PeriodicTick, TimedJob};
pub use timer::{Alarm, DEFAULT_MAXIMUM_TIMED_JOBS, JobTimer};

/// A job: it gets the object of its queue to itself.
type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// An idle queue keeps room for so many jobs, so that a burst does not hold memory for ever.
const KEPT_JOBS: usize = 256;

/// An object, and the jobs that act on it one at a time.
///
/// It is a handle: clones name the same queue. What was pushed is run also where the last handle
/// is dropped before.
///
/// ```
/// use proactor::service::job_queue::{JobQueue, PortScheduler};
/// use proactor::CompletionPort;
/// use std::sync::Arc;
///
/// struct Room { names: Vec<&'static str> }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let port = Arc::new(CompletionPort::new(1)?);
/// let scheduler = PortScheduler::new(&port, 0);
/// let room = JobQueue::new(scheduler, Room { names: Vec::new() });
///
/// room.push(|room| room.names.push("ann"))?;
/// room.push(|room| room.names.push("bob"))?;
///
/// let (tell, told) = std::sync::mpsc::channel();
/// room.push(move |room| tell.send(room.names.clone()).unwrap())?;
///
/// // A worker of the port runs them.
/// let mut completion = port.dequeue(None)?;
/// assert!(PortScheduler::run(&mut completion));
/// assert_eq!(told.recv()?, ["ann", "bob"]);
/// # Ok(()) }
/// ```
pub struct JobQueue<T> {
    inner: Arc<Inner<T>>,
}

/// A handle that does not keep its queue: for an object that names its own queue, and for timers.
pub struct WeakJobQueue<T> {
    inner: Weak<Inner<T>>,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    scheduler: Arc<dyn Scheduler>,
    on_panic: Box<PanicHook<T>>,
    maximum_jobs: usize,
    jobs_per_turn: usize,
}

struct State<T> {
    jobs: VecDeque<Job<T>>,
    /// The object, unless a job has it.
    object: Option<Box<T>>,
    phase: Phase,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No jobs, and no runnable.
    Idle,
    /// There is exactly one runnable, which was not run yet.
    Scheduled,
    /// A worker runs jobs.
    Running,
}

/// Why a job was not taken. It was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// The queue holds as many jobs as it may: they come faster than they are run.
    Full {
        /// The limit.
        maximum_jobs: usize,
    },
    /// The [`JobTimer`] holds as many jobs as it may.
    TimerFull {
        /// The limit.
        maximum_timed_jobs: usize,
    },
    /// The queue is closed: by its owner, after a panic, or with its port.
    Closed,
}

impl fmt::Display for PushError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { maximum_jobs } => write!(
                formatter,
                "job queue is full: {maximum_jobs} jobs wait, they come faster than they are run"
            ),
            Self::TimerFull { maximum_timed_jobs } => {
                write!(
                    formatter,
                    "job timer is full: {maximum_timed_jobs} jobs wait for their time"
                )
            }
            Self::Closed => formatter.write_str("job queue is closed"),
        }
    }
}

impl std::error::Error for PushError {}

/// A job that panicked, as the queue's owner is told of it.
pub struct JobPanic {
    /// What the job panicked with.
    pub payload: Box<dyn Any + Send>,
}

impl JobPanic {
    /// The message of the panic, where it has one.
    pub fn message(&self) -> &str {
        let string = self.payload.downcast_ref::<String>().map(String::as_str);
        string.or_else(|| self.payload.downcast_ref().copied()).unwrap_or("no message")
    }
}

impl fmt::Debug for JobPanic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("JobPanic").field(&self.message()).finish()
    }
}

/// What becomes of a queue one of whose jobs has panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterPanic {
    /// The next job runs: the object is as it should be, or was repaired.
    Continue,
    /// The queue is closed, and its jobs are dropped.
    Close,
}

type PanicHook<T> = dyn Fn(&mut T, JobPanic) -> AfterPanic + Send + Sync;

impl<T: Send + 'static> JobQueue<T> {
    /// A queue around `object`, with the defaults of [`builder`](Self::builder).
    pub fn new(scheduler: impl Scheduler, object: T) -> Self {
        Self::builder().build(scheduler, object)
    }

    /// A queue to be configured.
    pub fn builder() -> JobQueueBuilder<T> {
        JobQueueBuilder::new()
    }

    /// Adds a job, from any thread and also from inside a job. It runs behind those that were
    /// pushed before; never inside this call.
    ///
    /// # Errors
    /// [`Full`](PushError::Full), [`Closed`](PushError::Closed). The job is dropped.
    pub fn push(&self, job: impl FnOnce(&mut T) + Send + 'static) -> Result<(), PushError> {
        Inner::push(&self.inner, Box::new(job)).map_err(|(error, _job)| error)
    }

    /// How many jobs wait, the one that is running not counted.
    pub fn len(&self) -> usize {
        self.inner.lock().jobs.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes the queue: jobs that wait are dropped, later ones are refused. A job that is running
    /// ends by itself. Closing twice is harmless.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Whether the queue was closed.
    pub fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }

    /// A handle that does not keep the queue.
    pub fn downgrade(&self) -> WeakJobQueue<T> {
        WeakJobQueue { inner: Arc::downgrade(&self.inner) }
    }
}

impl<T> WeakJobQueue<T> {
    /// The queue, while there is a handle, or a job that waits.
    pub fn upgrade(&self) -> Option<JobQueue<T>> {
        self.inner.upgrade().map(|inner| JobQueue { inner })
    }
}

impl<T> Inner<T> {
    /// No code of the program runs under the lock, so it cannot be left half changed.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    fn close(&self) {
        let dropped = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        // What the jobs own may do anything when it is dropped, so no lock is held here.
        drop(dropped);
    }
}

impl<T: Send + 'static> Inner<T> {
    /// A job that is refused comes back, for its caller to drop with no lock held.
    fn push(this: &Arc<Self>, job: Job<T>) -> Result<(), (PushError, Option<Job<T>>)> {
        let mut state = this.lock();
        if state.closed {
            return Err((PushError::Closed, Some(job)));
        }
        if state.jobs.len() >= this.maximum_jobs {
            return Err((PushError::Full { maximum_jobs: this.maximum_jobs }, Some(job)));
        }
        state.jobs.push_back(job);
        if state.phase == Phase::Idle {
            state.phase = Phase::Scheduled;
            drop(state);
            if !this.schedule() {
                return Err((PushError::Closed, None));
            }
        }
        Ok(())
    }

    /// The phase was set to `Scheduled`: makes that true, or closes the queue.
    fn schedule(self: &Arc<Self>) -> bool {
        match self.scheduler.schedule(Runnable::new(self.clone())) {
            Ok(()) => true,
            Err(runnable) => {
                drop(runnable);
                false
            }
        }
    }

    /// Runs one job, and says whether the queue goes on.
    fn run_job(&self, object: &mut T, job: Job<T>) -> AfterPanic {
        let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(object))) else {
            return AfterPanic::Continue;
        };
        let panic = JobPanic { payload };
        let decided = catch_unwind(AssertUnwindSafe(|| (self.on_panic)(object, panic)));
        decided.unwrap_or_else(|payload| {
            let panic = JobPanic { payload };
            tracing::error!(message = panic.message(), "the panic hook of a job queue panicked");
            AfterPanic::Close
        })
    }
}

impl<T: Send + 'static> runnable::Run for Inner<T> {
    fn run(self: Arc<Self>) {
        let mut object = {
            let mut state = self.lock();
            assert_eq!(state.phase, Phase::Scheduled, "there is one runnable at a time");
            state.phase = Phase::Running;
            state.object.take().expect("nobody has the object between two turns")
        };
        let mut jobs_left = self.jobs_per_turn;
        loop {
            let job = {
                let mut state = self.lock();
                match state.jobs.pop_front() {
                    Some(job) if jobs_left > 0 => job,
                    Some(job) => {
                        state.jobs.push_front(job);
                        state.object = Some(object);
                        state.phase = Phase::Scheduled;
                        break;
                    }
                    None => {
                        state.jobs.shrink_to(KEPT_JOBS);
                        state.object = Some(object);
                        state.phase = Phase::Idle;
                        return;
                    }
                }
            };
            jobs_left -= 1;
            if self.run_job(&mut object, job) == AfterPanic::Close {
                self.close();
            }
        }
        self.schedule();
    }

    fn abandon(&self) {
        self.lock().phase = Phase::Idle;
        self.close();
    }
}

impl<T> Clone for JobQueue<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<T> Clone for WeakJobQueue<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<T> fmt::Debug for JobQueue<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.lock();
        formatter
            .debug_struct("JobQueue")
            .field("len", &state.jobs.len())
            .field("closed", &state.closed)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for WeakJobQueue<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WeakJobQueue").finish_non_exhaustive()
    }
}
