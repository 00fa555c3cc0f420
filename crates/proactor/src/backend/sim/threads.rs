//! The world's threads, and the baton that they pass on.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::event::{Event, ThreadId};
use super::kernel::{Guard, Kernel, State, Thread};

/// A thread that keeps the baton for so long waits for another one, in real time.
const BATON_LIMIT: Duration = Duration::from_secs(60);

thread_local! {
    /// The worlds that this thread is part of.
    static CURRENT: RefCell<Vec<Membership>> = const { RefCell::new(Vec::new()) };
}

struct Membership {
    kernel: Weak<Kernel>,
    thread: ThreadId,
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.upgrade() {
            kernel.leave(self.thread);
        }
    }
}

/// The world that the calling thread came to last, and which of its threads it is.
pub(super) fn innermost() -> Option<(Arc<Kernel>, ThreadId)> {
    let found = CURRENT.try_with(|current| {
        let current = current.try_borrow().ok()?;
        let one = current.last()?;
        Some((one.kernel.upgrade()?, one.thread))
    });
    found.ok().flatten()
}

impl Kernel {
    /// Makes the calling thread the world's thread `thread`.
    pub(super) fn adopt(self: &Arc<Self>, thread: ThreadId) {
        let membership = Membership { kernel: Arc::downgrade(self), thread };
        CURRENT.with_borrow_mut(|current| {
            current.retain(|one| one.kernel.strong_count() > 0);
            current.push(membership);
        });
    }

    /// Which thread of this world the calling one is.
    pub(crate) fn current(&self) -> Option<ThreadId> {
        let address = std::ptr::from_ref(self);
        CURRENT.with_borrow(|current| {
            let mine = current.iter().find(|one| one.kernel.as_ptr() == address);
            mine.map(|one| one.thread)
        })
    }

    /// Which thread of this world the calling one is; one that is none yet becomes one, and waits
    /// until it is its turn.
    pub(crate) fn enter(self: &Arc<Self>) -> ThreadId {
        if let Some(thread) = self.current() {
            return thread;
        }
        let mut guard = self.lock();
        let name = format!("thread {}", guard.threads.len());
        let thread = guard.new_thread(name);
        guard.arrivals.push(thread);
        self.arrived.notify_all();
        drop(guard);
        self.adopt(thread);
        self.wait_for_baton(self.lock(), thread);
        thread
    }

    /// Waits, in real time, until so many threads of the program's own have come to a port.
    pub(crate) fn expect_threads(&self, count: usize) {
        let mut guard = self.lock();
        while guard.arrivals.len() < count {
            let state = guard.state.take().expect("the state is locked");
            let waited = self.arrived.wait_timeout(state, BATON_LIMIT);
            let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            guard.state = Some(state);
            assert!(!timeout.timed_out(), "the expected threads did not come to a port");
        }
    }

    /// Starts a thread; it runs when it is its turn.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> (ThreadId, JoinHandle<()>) {
        let mut guard = self.lock();
        let thread = guard.new_thread(name.to_owned());
        let at = guard.latency();
        guard.after(at, Event::Resume(thread));
        drop(guard);
        let kernel = Arc::clone(self);
        let handle = std::thread::spawn(move || {
            kernel.adopt(thread);
            drop(kernel.wait_for_baton(kernel.lock(), thread));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            if let Err(panic) = result {
                let text = panic_text(&*panic);
                let mut guard = kernel.lock();
                let name = guard.threads[thread].name.clone();
                guard.monitor.violation(format!("{name} panicked: {text}"));
            }
            // Here, not when the thread-local goes: until then the thread has the baton.
            CURRENT.with_borrow_mut(Vec::pop);
        });
        (thread, handle)
    }

    fn wait_for_baton<'a>(&'a self, mut guard: Guard<'a>, me: ThreadId) -> Guard<'a> {
        let wake = Arc::clone(&guard.threads[me].wake);
        let mut idle_since = (Instant::now(), 0);
        while guard.running != Some(me) {
            let state = guard.state.take().expect("the state is locked");
            let waited = wake.wait_timeout(state, BATON_LIMIT);
            guard.state = Some(waited.unwrap_or_else(PoisonError::into_inner).0);
            if guard.event_count != idle_since.1 {
                idle_since = (Instant::now(), guard.event_count);
            } else if idle_since.0.elapsed() > BATON_LIMIT && me == 0 {
                let holder = guard.running.map(|thread| guard.threads[thread].name.clone());
                panic!("{holder:?} keeps running: it waits for another thread, outside the port");
            }
        }
        guard
    }

    /// The calling thread, which has the baton, waits until an event says that it runs on.
    pub(crate) fn switch<'a>(&'a self, mut guard: Guard<'a>, me: ThreadId) -> Guard<'a> {
        assert_eq!(guard.running, Some(me), "a thread that has the baton gives it up");
        self.work_off(&mut guard, me);
        self.wait_for_baton(guard, me)
    }

    /// A thread ends, or has nothing more to do with this world.
    fn leave(&self, me: ThreadId) {
        let mut guard = self.lock();
        guard.leave_port(me);
        guard.threads[me].is_gone = true;
        if guard.running == Some(me) {
            self.work_off(&mut guard, me);
        }
    }

    /// In a world that may interrupt calls, perhaps lets another thread run before the call of the
    /// calling one returns.
    pub(crate) fn maybe_interrupt<'a>(&'a self, mut guard: Guard<'a>) -> Guard<'a> {
        if !guard.may_interrupt || guard.in_actor {
            return guard;
        }
        let Some(me) = self.current() else { return guard };
        let probability = guard.faults.interrupted_call;
        if guard.running != Some(me) || !guard.strikes(probability) {
            return guard;
        }
        let pause = guard.latency();
        guard.after(pause, Event::Resume(me));
        self.switch(guard, me)
    }

    /// The calling thread sleeps, in virtual time.
    pub(crate) fn sleep(self: &Arc<Self>, time: u64) {
        let me = self.enter();
        let mut guard = self.lock();
        guard.after(time, Event::Resume(me));
        drop(self.switch(guard, me));
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

impl State {
    pub(super) fn new_thread(&mut self, name: String) -> ThreadId {
        self.threads.push(Thread {
            name,
            wake: Arc::new(Condvar::new()),
            is_gone: false,
            generation: 0,
            port: None,
            holds_slot: false,
            room: 0,
            outcome: None,
        });
        self.threads.len() - 1
    }

    pub(crate) fn threads_left(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_gone).count()
    }
}
