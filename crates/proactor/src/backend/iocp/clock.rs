//! Timers: the kernel's port has none, so a thread of the port's own waits for the next deadline
//! and queues the packets of what is due.
//!
//! The thread starts with the first timer and ends with the port. It sleeps on a timer object of
//! the kernel, which whoever starts an earlier timer sets anew: so it wakes for deadlines only, as
//! exactly as the system can.

use std::os::windows::io::OwnedHandle;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::code;
use super::overlapped::push_surely;
use super::queue::Queue;
use super::syscall;
use crate::backend::timers::TimerQueue;
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::Completion;

pub(crate) struct Clock {
    queue: Arc<Queue>,
    state: Mutex<State>,
}

struct State {
    timers: TimerQueue,
    thread: Option<Thread>,
    stopped: bool,
}

struct Thread {
    alarm: Arc<Alarm>,
    handle: JoinHandle<()>,
}

/// What wakes the thread.
struct Alarm {
    timer: OwnedHandle,
    stop: AtomicBool,
}

impl Alarm {
    /// Wakes the thread at `deadline`, not before.
    fn set(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let delay_100ns = i64::try_from(left.as_nanos().div_ceil(100)).unwrap_or(i64::MAX);
        if let Err(code) = syscall::set_timer(&self.timer, delay_100ns) {
            tracing::error!(code, "SetWaitableTimer: timers may be late");
        }
    }
}

impl Clock {
    pub(crate) fn new(queue: Arc<Queue>) -> Arc<Self> {
        let state = State { timers: TimerQueue::new(), thread: None, stopped: false };
        Arc::new(Self { queue, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a timer.
    pub(crate) fn start(
        self: &Arc<Self>,
        key: usize,
        deadline: Instant,
        operation: Operation,
    ) -> Result<(), (Error, Operation)> {
        let mut state = self.lock();
        if state.stopped {
            drop(state);
            return Err((Error::new(OperationKind::Timer, ErrorKind::PortClosed), operation));
        }
        let thread = match &mut state.thread {
            Some(thread) => thread,
            none => match self.spawn() {
                Ok(thread) => none.insert(thread),
                Err(error) => return Err((error, operation)),
            },
        };
        let alarm = Arc::clone(&thread.alarm);
        if state.timers.insert(key, deadline, operation) {
            alarm.set(deadline);
        }
        Ok(())
    }

    /// Takes a timer out before its time.
    pub(crate) fn cancel(&self, timer: OperationId) -> Option<(usize, Operation)> {
        self.lock().timers.cancel(timer)
    }

    fn spawn(self: &Arc<Self>) -> Result<Thread, Error> {
        let timer =
            syscall::create_timer().map_err(|code| code::error_of(OperationKind::Timer, code))?;
        let alarm = Arc::new(Alarm { timer, stop: AtomicBool::new(false) });
        let (clock, its_alarm) = (Arc::clone(self), Arc::clone(&alarm));
        let handle = std::thread::Builder::new()
            .name("proactor-timers".to_owned())
            .spawn(move || clock.run(&its_alarm))
            .map_err(|error| code::error_from_io(OperationKind::Timer, &error))?;
        Ok(Thread { alarm, handle })
    }

    fn run(&self, alarm: &Alarm) {
        loop {
            syscall::wait_for_timer(&alarm.timer);
            if alarm.stop.load(Ordering::SeqCst) {
                return;
            }
            let mut state = self.lock();
            let queue = &self.queue;
            let push = |packet: Completion| push_surely(queue, packet);
            state.timers.pop_expired(Instant::now(), push);
            if let Some(deadline) = state.timers.next_deadline() {
                alarm.set(deadline);
            }
        }
    }

    /// Ends the thread. The operations are for the caller to drop.
    pub(crate) fn stop(&self) -> Vec<Operation> {
        let (operations, thread) = {
            let mut state = self.lock();
            state.stopped = true;
            (state.timers.drain(), state.thread.take())
        };
        if let Some(Thread { alarm, handle }) = thread {
            alarm.stop.store(true, Ordering::SeqCst);
            alarm.set(Instant::now());
            // A panic would have been reported where it happened.
            drop(handle.join());
        }
        operations
    }
}
