//! Time: how long a worker may sleep, and timers that are due.

use std::time::{Duration, Instant};

use super::homes::STARVED_TICK;
use super::{Engine, lock};
use crate::backend::linux::driver::Driver;
use crate::backend::linux::sink::Sink;
use crate::backend::linux::worker::{Local, Worker};
use crate::backend::timers::TimerQueue;
use crate::sync::atomic::Ordering;
use crate::sync::now as clock;

impl<D: Driver> Engine<D> {
    /// Nanoseconds since the engine was made.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(clock().saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes that a worker was found stuck.
    pub(crate) fn note_stuck(&self) {
        self.last_stuck.store(self.now().max(1), Ordering::Relaxed);
    }

    /// Whether a worker was found stuck in the last `span`.
    pub(crate) fn was_stuck_within(&self, span: Duration) -> bool {
        let last = self.last_stuck.load(Ordering::Relaxed);
        last != 0 && u128::from(self.now().saturating_sub(last)) < span.as_nanos()
    }

    pub(super) fn longest_sleep(
        &self,
        worker: &Worker<D>,
        deadline: Option<Instant>,
        tick: Option<Duration>,
    ) -> Option<Duration> {
        let mut longest = tick;
        if self.starved_count.load(Ordering::Relaxed) > 0 {
            // Buffers may be given back by threads that do not come here.
            longest = Some(longest.map_or(STARVED_TICK, |longest| longest.min(STARVED_TICK)));
        }
        let mut at_most = |limit: Duration| {
            longest = Some(longest.map_or(limit, |longest| longest.min(limit)));
        };
        let next = self.next_deadline.load(Ordering::SeqCst);
        let keeper = worker.slot.index + 1;
        let timed = next != u64::MAX
            && self
                .timekeeper
                .compare_exchange(0, keeper, Ordering::SeqCst, Ordering::SeqCst)
                .map_or_else(|current| current == keeper || tick.is_some(), |_| true);
        if deadline.is_some() || timed {
            let now = clock();
            if let Some(deadline) = deadline {
                at_most(deadline.saturating_duration_since(now));
            }
            if timed {
                let next = self.epoch + Duration::from_nanos(next);
                at_most(next.saturating_duration_since(now));
            }
        }
        longest
    }

    pub(super) fn stop_keeping_time(&self, worker: &Worker<D>) {
        let keeper = worker.slot.index + 1;
        let _ = self.timekeeper.compare_exchange(keeper, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub(super) fn timer_is_due(&self) -> bool {
        let next = self.next_deadline.load(Ordering::Relaxed);
        next != u64::MAX
            && clock().saturating_duration_since(self.epoch).as_nanos() >= u128::from(next)
    }

    pub(super) fn expire_timers(&self, local: &mut Local<D>) {
        if !self.timer_is_due() {
            return;
        }
        let mut timers = lock(&self.timers);
        let mut sink = Sink::new(&self.central, Some(&mut local.queue));
        timers.pop_expired(clock(), |packet| sink.push(packet));
        self.note_next_deadline(&timers);
    }

    pub(super) fn note_next_deadline(&self, timers: &TimerQueue) {
        // Rounded up to the next nanosecond by `as_nanos` being exact: never early.
        let next = timers.next_deadline().map_or(u64::MAX, |deadline| {
            let nanoseconds = deadline.saturating_duration_since(self.epoch).as_nanos();
            u64::try_from(nanoseconds).unwrap_or(u64::MAX - 1)
        });
        self.next_deadline.store(next, Ordering::SeqCst);
    }

    /// A new earliest deadline: whoever sleeps past it has to know.
    pub(super) fn wake_timekeeper(&self) {
        let workers = self.workers();
        let keeper = self.timekeeper.load(Ordering::SeqCst);
        let chosen = match keeper {
            0 => workers.iter().flatten().find(|w| w.slot.parked.load(Ordering::SeqCst)),
            index => workers.get(index - 1).and_then(Option::as_ref),
        };
        if let Some(worker) = chosen {
            self.central.wake(&worker.slot);
        }
    }
}
