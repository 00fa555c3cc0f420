//! One job that waits for its time: once, or again and again.

use std::fmt;
use std::time::{Duration, Instant};

use super::timer::WeakJobTimer;
use super::{Inner, Job, PushError, WeakJobQueue};
use crate::service::timer_wheel::TimerKey;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, lock};

/// How long a job waits whose queue was full when its time came.
const RETRY: Duration = Duration::from_millis(10);

/// A handle to a job that waits in a [`JobTimer`](super::JobTimer). Dropping it changes nothing.
pub struct TimedJob {
    control: Arc<Control>,
    timer: WeakJobTimer,
}

/// When a periodic job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeriodicTick {
    /// The time that it was due.
    pub due: Instant,
    /// How many were left out before it, because the queue was not done with one.
    pub missed: u64,
}

impl TimedJob {
    pub(super) fn new(control: Arc<Control>, timer: WeakJobTimer) -> Self {
        Self { control, timer }
    }

    /// Cancels the job. `true`: it will not start, or, where it is periodic, not start again; one
    /// that runs already ends by itself. `false`: it was cancelled before, has ended, or, where it
    /// runs only once, has started.
    pub fn cancel(&self) -> bool {
        let cancelled = self.control.cancel();
        if cancelled && let Some(timer) = self.timer.upgrade() {
            timer.forget(&self.control);
        }
        cancelled
    }
}

impl fmt::Debug for TimedJob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.control.is_waiting();
        formatter.debug_struct("TimedJob").field("waiting", &waiting).finish_non_exhaustive()
    }
}

/// What the timer, the job and its handle share.
pub(super) struct Control {
    phase: AtomicU8,
    /// Where the job is in the wheel; changed with the timer's lock held.
    key: Mutex<Option<TimerKey>>,
}

const WAITING: u8 = 0;
/// It has started, has ended, or was cancelled.
const OVER: u8 = 1;

impl Control {
    pub(super) fn new() -> Self {
        Self { phase: AtomicU8::new(WAITING), key: Mutex::new(None) }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == WAITING
    }

    /// Whoever gets `true` decides what becomes of the job: it is started, or cancelled.
    fn claim(&self) -> bool {
        self.phase.swap(OVER, Ordering::SeqCst) == WAITING
    }

    fn cancel(&self) -> bool {
        self.claim()
    }

    pub(super) fn set_key(&self, key: TimerKey) {
        *lock(&self.key) = Some(key);
    }

    pub(super) fn key(&self) -> Option<TimerKey> {
        *lock(&self.key)
    }
}

/// What the timer does when the time has come.
pub(super) trait Timed: Send + Sync {
    /// Pushes the job; gives the time, after `now`, at which it is due again.
    fn fire(&self, now: Instant) -> Option<Instant>;
}

/// A job that is pushed once.
pub(super) struct Once<T> {
    queue: WeakJobQueue<T>,
    /// Taken when the queue accepts it.
    job: Mutex<Option<Job<T>>>,
}

impl<T: Send + 'static> Once<T> {
    pub(super) fn new(
        queue: WeakJobQueue<T>,
        control: Arc<Control>,
        job: impl FnOnce(&mut T) + Send + 'static,
    ) -> Self {
        let job: Job<T> = Box::new(move |object| {
            if control.claim() {
                job(object);
            }
        });
        Self { queue, job: Mutex::new(Some(job)) }
    }
}

impl<T: Send + 'static> Timed for Once<T> {
    fn fire(&self, now: Instant) -> Option<Instant> {
        let queue = self.queue.upgrade()?;
        let job = lock(&self.job).take()?;
        match Inner::push(&queue.inner, job) {
            Ok(()) => None,
            Err((PushError::Full { .. }, job)) => {
                *lock(&self.job) = job;
                Some(now + RETRY)
            }
            // The queue was closed: the job goes with it, as those did that it held.
            Err(_) => None,
        }
    }
}

/// A job that is pushed every period.
pub(super) struct Periodic<T> {
    shared: Arc<PeriodicShared<T>>,
    period: Duration,
    due: Mutex<Instant>,
}

struct PeriodicShared<T> {
    queue: WeakJobQueue<T>,
    control: Arc<Control>,
    /// The queue has it; the next one is left out.
    queued: AtomicBool,
    missed: AtomicU64,
    /// Taken while it runs.
    job: Mutex<Option<PeriodicJob<T>>>,
}

type PeriodicJob<T> = Box<dyn FnMut(&mut T, PeriodicTick) + Send>;

impl<T: Send + 'static> Periodic<T> {
    pub(super) fn new(
        queue: WeakJobQueue<T>,
        control: Arc<Control>,
        first: Instant,
        period: Duration,
        job: impl FnMut(&mut T, PeriodicTick) + Send + 'static,
    ) -> Self {
        let shared = PeriodicShared {
            queue,
            control,
            queued: AtomicBool::new(false),
            missed: AtomicU64::new(0),
            job: Mutex::new(Some(Box::new(job))),
        };
        Self { shared: Arc::new(shared), period, due: Mutex::new(first) }
    }

    /// The latest time that was due, and how many were due before it. Moves on to the next, and
    /// gives it where the clock can name it.
    fn pass(&self, now: Instant) -> (Instant, u64, Option<Instant>) {
        let mut first = lock(&self.due);
        let late = now.saturating_duration_since(*first).as_nanos();
        let passed = u32::try_from(late / self.period.as_nanos()).unwrap_or(u32::MAX);
        let due = *first + self.period * passed;
        let next = due.checked_add(self.period);
        // Where more have passed than are counted here, the next is to come all the same.
        let next = next.map(|next| next.max(now + Duration::from_nanos(1)));
        *first = next.unwrap_or(due);
        (due, u64::from(passed), next)
    }
}

impl<T: Send + 'static> Timed for Periodic<T> {
    fn fire(&self, now: Instant) -> Option<Instant> {
        let queue = self.shared.queue.upgrade()?;
        if queue.is_closed() {
            return None;
        }
        let (due, passed, next) = self.pass(now);
        self.shared.missed.fetch_add(passed, Ordering::Relaxed);
        if self.shared.queued.swap(true, Ordering::SeqCst) {
            self.shared.missed.fetch_add(1, Ordering::Relaxed);
            return next;
        }
        let shared = self.shared.clone();
        let job: Job<T> = Box::new(move |object| shared.run(object, due));
        match Inner::push(&queue.inner, job) {
            Ok(()) => next,
            Err((PushError::Full { .. }, _)) => {
                self.shared.queued.store(false, Ordering::SeqCst);
                self.shared.missed.fetch_add(1, Ordering::Relaxed);
                next
            }
            Err(_) => None,
        }
    }
}

impl<T> PeriodicShared<T> {
    fn run(&self, object: &mut T, due: Instant) {
        let job = lock(&self.job).take();
        let Some(mut job) = job.filter(|_| self.control.is_waiting()) else { return };
        // A job that panics is not run again.
        struct EndOnPanic<'a>(&'a Control);
        impl Drop for EndOnPanic<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.claim();
                }
            }
        }
        let guard = EndOnPanic(&self.control);
        job(object, PeriodicTick { due, missed: self.missed.swap(0, Ordering::Relaxed) });
        drop(guard);
        *lock(&self.job) = Some(job);
        self.queued.store(false, Ordering::SeqCst);
    }
}
