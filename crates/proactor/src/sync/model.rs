//! The scheduler's locks and atomics, and the part of the kernel that threads sleep in.
//!
//! Descriptors are real: eventfds are written to, epoll sets are read, sockets carry bytes. Only
//! the sleep is the scheduler's. A thread that would wait in `epoll_wait` looks at its set without
//! waiting, and if that is empty it sleeps until anything at all happens in this kernel, then
//! looks again. So a wake-up that was lost shows as a deadlock, which shuttle reports with the
//! schedule that leads to it.
//!
//! Time stands still, except that a wait whose timeout is at most [`EXPIRES_WITHIN`] ends by it,
//! and moves the clock on by that much. A longer wait never ends by itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool as PlainBool, AtomicU64 as PlainU64, Ordering};
use std::time::{Duration, Instant};

use shuttle::rand::Rng;
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, atomic};
pub(crate) use shuttle::thread_local;

/// The longest wait that ends by its timeout.
pub(crate) const EXPIRES_WITHIN: Duration = Duration::from_secs(3600);

struct Kernel {
    lock: Mutex<()>,
    happened: Condvar,
    /// Nanoseconds that have passed.
    clock: PlainU64,
    /// Threads in a handler may be found asleep.
    may_sleep: PlainBool,
}

shuttle::lazy_static! {
    static ref KERNEL: Kernel = Kernel {
        lock: Mutex::new(()),
        happened: Condvar::new(),
        clock: PlainU64::new(0),
        may_sleep: PlainBool::new(false),
    };
}

/// Locks, poisoned or not.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What the model's clock says.
pub(crate) fn now() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    start + Duration::from_nanos(KERNEL.clock.load(Ordering::Relaxed))
}

/// Does something in the kernel that may wake whoever sleeps in it.
pub(crate) fn happen<R>(act: impl FnOnce() -> R) -> R {
    let guard = KERNEL.lock.lock().expect("a model that fails ends");
    let result = act();
    KERNEL.happened.notify_all();
    drop(guard);
    result
}

/// Lets `time` go by, and then does something.
pub(crate) fn pass(time: Duration, act: impl FnOnce()) {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    KERNEL.clock.fetch_add(nanoseconds, Ordering::Relaxed);
    act();
}

/// Waits until `poll`, which does not wait, has events or an error.
pub(crate) fn wait(
    timeout: Option<Duration>,
    mut poll: impl FnMut() -> Result<usize, i32>,
) -> Result<usize, i32> {
    let expires = timeout.filter(|timeout| *timeout <= EXPIRES_WITHIN);
    if expires.is_some() {
        // The others may do anything meanwhile.
        shuttle::thread::yield_now();
    }
    let mut guard = KERNEL.lock.lock().expect("a model that fails ends");
    loop {
        let outcome = poll();
        if outcome != Ok(0) {
            return outcome;
        }
        if let Some(passed) = expires {
            let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
            KERNEL.clock.fetch_add(passed, Ordering::Relaxed);
            return Ok(0);
        }
        guard = KERNEL.happened.wait(guard).expect("a model that fails ends");
    }
}

/// From now on, in this schedule, a thread in a handler may be found asleep.
pub(crate) fn let_threads_sleep() {
    KERNEL.may_sleep.store(true, Ordering::Relaxed);
}

/// Whether a thread is found asleep: if it may be, as the scheduler likes.
pub(crate) fn is_asleep() -> bool {
    KERNEL.may_sleep.load(Ordering::Relaxed) && shuttle::rand::thread_rng().r#gen()
}
