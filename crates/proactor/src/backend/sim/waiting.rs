//! What threads wait for that is no packet: a condition, a lock, the end of a thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use super::event::{Event, ThreadId};
use super::kernel::{Kernel, MICROSECOND, MILLISECOND, SECOND, State};
use super::threads::innermost;
use crate::backend::{JoinThread, ThreadBody, VirtualCondition};

pub(crate) type ConditionId = usize;

/// How many worlds there are in which threads are interrupted.
static INTERRUPTING: AtomicUsize = AtomicUsize::new(0);

/// Counts a world in which threads are interrupted.
pub(super) fn interrupting_begins() {
    INTERRUPTING.fetch_add(1, Ordering::Relaxed);
}

/// Such a world is gone.
pub(super) fn interrupting_ends() {
    INTERRUPTING.fetch_sub(1, Ordering::Relaxed);
}

/// Locks for a thread of a world that may interrupt it, before it has the lock or while it has it;
/// `None` for any other thread, which just waits.
pub(crate) fn lock_in_world<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    if INTERRUPTING.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let (kernel, me) = innermost()?;
    if !kernel.may_be_interrupted(me) {
        return None;
    }
    kernel.maybe_preempt(me);
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            // Whoever has it was interrupted, and has to run first.
            Err(TryLockError::WouldBlock) => kernel.give_way(me),
        }
    }
}

impl Kernel {
    /// Whether the calling thread is one that can be interrupted just now.
    fn may_be_interrupted(&self, me: ThreadId) -> bool {
        let guard = self.lock();
        guard.may_interrupt && !guard.in_actor && guard.running == Some(me)
    }

    /// Perhaps lets other threads run before the calling one takes a lock; now and then for long.
    fn maybe_preempt(&self, me: ThreadId) {
        let mut guard = self.lock();
        let probability = guard.faults.preempted;
        if !guard.strikes(probability) {
            return;
        }
        let stalled = guard.faults.stalled_worker;
        let time = if guard.strikes(stalled) {
            guard.random.time(MILLISECOND, 5 * SECOND)
        } else {
            guard.random.time(100, 20 * MICROSECOND)
        };
        guard.after(time, Event::Resume(me));
        drop(self.switch(guard, me));
    }

    /// Lets others run.
    fn give_way(&self, me: ThreadId) {
        let mut guard = self.lock();
        let time = guard.random.time(100, 20 * MICROSECOND);
        guard.after(time, Event::Resume(me));
        drop(self.switch(guard, me));
    }

    /// Starts a thread for a layer above, and says how to join it in the world's time.
    pub(crate) fn spawn_joinable(self: &Arc<Self>, name: &str, body: ThreadBody) -> JoinThread {
        let (thread, handle) = self.spawn(name, body);
        let kernel = Arc::clone(self);
        Box::new(move || {
            let mut step = 10 * MICROSECOND;
            while !kernel.lock().threads[thread].is_gone {
                kernel.sleep(step);
                step = (2 * step).min(10 * MILLISECOND);
            }
            handle.join()
        })
    }
}

/// A condition of a world.
pub(crate) struct Condition {
    kernel: Arc<Kernel>,
    id: ConditionId,
}

impl Condition {
    pub(crate) fn new(kernel: &Arc<Kernel>) -> Self {
        let mut guard = kernel.lock();
        guard.conditions.push(Vec::new());
        Self { kernel: Arc::clone(kernel), id: guard.conditions.len() - 1 }
    }
}

impl VirtualCondition for Condition {
    fn wait(&self, timeout: Option<Duration>) {
        let me = self.kernel.enter();
        let mut guard = self.kernel.lock();
        guard.threads[me].generation += 1;
        let generation = guard.threads[me].generation;
        guard.conditions[self.id].push(me);
        if let Some(timeout) = timeout {
            let time = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            let late = time.saturating_add(guard.random.time(0, 50 * MICROSECOND));
            guard.after(late, Event::ConditionTimesOut(self.id, me, generation));
        }
        drop(self.kernel.switch(guard, me));
    }

    fn notify_all(&self) {
        let mut guard = self.kernel.lock();
        let waiting = std::mem::take(&mut guard.conditions[self.id]);
        waiting.into_iter().for_each(|thread| guard.soon(Event::Resume(thread)));
    }
}

impl State {
    /// A wait for a condition has lasted long enough.
    pub(super) fn condition_times_out(
        &mut self,
        condition: ConditionId,
        thread: ThreadId,
        generation: u64,
    ) {
        let waiting = &mut self.conditions[condition];
        let Some(place) = waiting.iter().position(|one| *one == thread) else { return };
        if self.threads[thread].generation == generation {
            waiting.remove(place);
            self.after(0, Event::Resume(thread));
        }
    }

    /// Nothing is to come: who waits for a condition waits in vain.
    pub(super) fn forget_conditions(&mut self) {
        self.conditions.iter_mut().for_each(Vec::clear);
    }
}
