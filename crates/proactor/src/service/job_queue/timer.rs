//! Jobs that are pushed later, or again and again.

use std::fmt;
use std::time::{Duration, Instant};

use super::timed::{Control, Once, Periodic, PeriodicTick, Timed, TimedJob};
use super::{JobQueue, PushError};
use crate::service::timer_wheel::TimerWheel;
use crate::sync::{Arc, Mutex, MutexGuard, Weak, lock};

/// How many jobs may wait in a timer, where nothing else is said.
pub const DEFAULT_MAXIMUM_TIMED_JOBS: usize = 1_000_000;

/// The tick of a timer, where nothing else is said.
const DEFAULT_TICK: Duration = Duration::from_millis(1);

/// Makes a [`JobTimer`] be advanced when something is due.
///
/// [`PortScheduler`](super::PortScheduler) does it with the timers of a completion port. `()` does
/// nothing: for a program that calls [`JobTimer::advance`] by itself, from a clock of its own.
pub trait Alarm: Send + Sync + 'static {
    /// Arranges that `timer` is advanced at `deadline`, or soon after. It must not do it at once,
    /// within this call. Earlier arrangements may stay.
    fn set(&self, timer: &JobTimer, deadline: Instant);

    /// What the clock says that deadlines are read on: the system's, unless overridden.
    fn now(&self) -> Instant {
        crate::sync::now()
    }
}

impl Alarm for () {
    fn set(&self, _timer: &JobTimer, _deadline: Instant) {}
}

/// Pushes jobs into job queues when their time has come.
///
/// One timer serves any number of queues, over a [timing wheel](super::super::timer_wheel): a
/// million jobs wait at constant cost. A job is never pushed early. It is a handle: clones name
/// the same timer, and with the last one go the jobs that wait.
///
/// A timer does not keep a queue: where the queue is gone or closed when the time comes, the job
/// is dropped.
///
/// ```
/// use proactor::service::job_queue::{JobQueue, JobTimer, PortScheduler};
/// use proactor::CompletionPort;
/// use std::sync::Arc;
/// use std::time::{Duration, Instant};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let port = Arc::new(CompletionPort::new(1)?);
/// let scheduler = PortScheduler::new(&port, 0);
/// let timer = JobTimer::new(scheduler.clone());
/// let counter = JobQueue::new(scheduler, 0);
///
/// let period = Duration::from_millis(2);
/// let ticks = timer.push_every(&counter, Instant::now() + period, period, |count, tick| {
///     *count += 1 + tick.missed;
/// })?;
///
/// let (tell, told) = std::sync::mpsc::channel();
/// timer.push_after(&counter, Duration::from_millis(20), move |count| tell.send(*count).unwrap())?;
/// let count = loop {
///     PortScheduler::run(&mut port.dequeue(None)?);
///     if let Ok(count) = told.try_recv() {
///         break count;
///     }
/// };
/// assert!(count > 0); // about ten
/// ticks.cancel();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct JobTimer {
    shared: Arc<Shared>,
}

/// A handle that does not keep its timer, for an alarm.
#[derive(Clone)]
pub struct WeakJobTimer {
    shared: Weak<Shared>,
}

struct Shared {
    state: Mutex<State>,
    alarm: Box<dyn Alarm>,
    maximum_timed_jobs: usize,
}

struct State {
    wheel: TimerWheel<Entry>,
    /// For when the alarm is set.
    armed: Option<Instant>,
}

struct Entry {
    job: Box<dyn Timed>,
    control: Arc<Control>,
}

impl JobTimer {
    /// A timer with ticks of 1 ms and room for [`DEFAULT_MAXIMUM_TIMED_JOBS`].
    pub fn new(alarm: impl Alarm) -> Self {
        Self::with_limits(alarm, DEFAULT_TICK, DEFAULT_MAXIMUM_TIMED_JOBS)
    }

    /// A timer with ticks of `tick`, in which at most `maximum_timed_jobs` may wait.
    ///
    /// # Panics
    /// Where `tick` is zero or longer than 584 years.
    pub fn with_limits(alarm: impl Alarm, tick: Duration, maximum_timed_jobs: usize) -> Self {
        Self::starting_at(alarm.now(), alarm, tick, maximum_timed_jobs)
    }

    /// A timer of a program with a clock of its own, whose time starts at `origin`. It looks at no
    /// other clock, unless [`push_after`](Self::push_after) is called.
    ///
    /// # Panics
    /// Where `tick` is zero or longer than 584 years.
    pub fn starting_at(
        origin: Instant,
        alarm: impl Alarm,
        tick: Duration,
        maximum_timed_jobs: usize,
    ) -> Self {
        let state = State { wheel: TimerWheel::new(origin, tick), armed: None };
        let (state, alarm) = (Mutex::new(state), Box::new(alarm));
        Self { shared: Arc::new(Shared { state, alarm, maximum_timed_jobs }) }
    }

    /// Pushes a job at `deadline`. Where the queue is full then, it is tried again every 10 ms.
    ///
    /// # Errors
    /// [`TimerFull`](PushError::TimerFull), [`Closed`](PushError::Closed).
    pub fn push_at<T: Send + 'static>(
        &self,
        queue: &JobQueue<T>,
        deadline: Instant,
        job: impl FnOnce(&mut T) + Send + 'static,
    ) -> Result<TimedJob, PushError> {
        let control = Arc::new(Control::new());
        let once = Once::new(queue.downgrade(), control.clone(), job);
        self.start(queue, deadline, Entry { job: Box::new(once), control })
    }

    /// Pushes a job once `delay` has passed. Otherwise as [`push_at`](Self::push_at).
    ///
    /// # Errors
    /// As [`push_at`](Self::push_at).
    pub fn push_after<T: Send + 'static>(
        &self,
        queue: &JobQueue<T>,
        delay: Duration,
        job: impl FnOnce(&mut T) + Send + 'static,
    ) -> Result<TimedJob, PushError> {
        let now = self.shared.alarm.now();
        // Beyond what the clock can name, a century is for ever.
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        self.push_at(queue, now.checked_add(delay).unwrap_or_else(|| now + century), job)
    }

    /// Pushes a job at `first`, and then every `period`, until it is cancelled, or panics, or its
    /// queue is closed or gone.
    ///
    /// The rate is fixed: the times are `first` and whole periods after it, however long the job
    /// takes. Where the queue is not done with one when the next is due, or is full, that one is
    /// left out; the job is told how many were. So a queue never holds more than one of them.
    ///
    /// # Errors
    /// As [`push_at`](Self::push_at).
    ///
    /// # Panics
    /// Where `period` is zero.
    pub fn push_every<T: Send + 'static>(
        &self,
        queue: &JobQueue<T>,
        first: Instant,
        period: Duration,
        job: impl FnMut(&mut T, PeriodicTick) + Send + 'static,
    ) -> Result<TimedJob, PushError> {
        assert!(!period.is_zero(), "a period is longer than nothing");
        let control = Arc::new(Control::new());
        let periodic = Periodic::new(queue.downgrade(), control.clone(), first, period, job);
        self.start(queue, first, Entry { job: Box::new(periodic), control })
    }

    /// How many jobs wait for their time.
    pub fn len(&self) -> usize {
        self.lock().wheel.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When [`advance`](Self::advance) is to be called next; `None` where no job waits.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lock().wheel.next_deadline()
    }

    /// Pushes all jobs that are due at `now`. The alarm does this; a program calls it only where
    /// it has none. Any thread may call it, also several at once.
    pub fn advance(&self, now: Instant) {
        while let Some(entry) = self.pop(now) {
            if let Some(next) = entry.job.fire(now) {
                debug_assert!(next > now, "a job that is due again at once would never end");
                let mut state = self.lock();
                // Checked under the lock, where a cancel looks for it after it has said so.
                if entry.control.is_waiting() {
                    Self::insert(&mut state, next, entry);
                    continue;
                }
                drop(state);
            }
        }
        let mut state = self.lock();
        // An earlier alarm than the one that is set has nothing to say about it.
        if state.armed.is_some_and(|armed| armed > now) {
            return;
        }
        state.armed = state.wheel.next_deadline();
        let next = state.armed;
        drop(state);
        if let Some(next) = next {
            self.shared.alarm.set(self, next);
        }
    }

    /// A handle that does not keep the timer.
    pub fn downgrade(&self) -> WeakJobTimer {
        WeakJobTimer { shared: Arc::downgrade(&self.shared) }
    }

    fn pop(&self, now: Instant) -> Option<Entry> {
        self.lock().wheel.pop(now)
    }

    fn start<T: Send + 'static>(
        &self,
        queue: &JobQueue<T>,
        deadline: Instant,
        entry: Entry,
    ) -> Result<TimedJob, PushError> {
        if queue.is_closed() {
            return Err(PushError::Closed);
        }
        let maximum_timed_jobs = self.shared.maximum_timed_jobs;
        let handle = TimedJob::new(entry.control.clone(), self.downgrade());
        let mut state = self.lock();
        if state.wheel.len() >= maximum_timed_jobs {
            drop(state);
            return Err(PushError::TimerFull { maximum_timed_jobs });
        }
        Self::insert(&mut state, deadline, entry);
        let next = state.wheel.next_deadline();
        if let Some(next) = next.filter(|next| state.armed.is_none_or(|armed| *next < armed)) {
            state.armed = Some(next);
            drop(state);
            self.shared.alarm.set(self, next);
        }
        Ok(handle)
    }

    fn insert(state: &mut State, deadline: Instant, entry: Entry) {
        let control = entry.control.clone();
        let key = state.wheel.insert(deadline, entry);
        control.set_key(key);
    }

    /// The job was cancelled: takes it out, if it is in.
    pub(super) fn forget(&self, control: &Control) {
        let entry = {
            let mut state = self.lock();
            control.key().and_then(|key| state.wheel.remove(key))
        };
        // What the job owns may do anything when it is dropped, so no lock is held here.
        drop(entry);
    }

    /// No code of the program runs under the lock, so it cannot be left half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

impl WeakJobTimer {
    /// The timer, while there is a handle.
    pub fn upgrade(&self) -> Option<JobTimer> {
        self.shared.upgrade().map(|shared| JobTimer { shared })
    }
}

impl fmt::Debug for JobTimer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JobTimer").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for WeakJobTimer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WeakJobTimer").finish_non_exhaustive()
    }
}
