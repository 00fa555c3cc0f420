//! Who looks after the workers that are busy, and when.
//!
//! While a worker is busy and another one sleeps, one of those that sleep has the *watch*: it looks
//! at the busy ones when the look is due, and takes over from those that are stuck (`rescue`).
//! While all sleep nobody has it, and nobody wakes to look.
//!
//! Nobody is woken to take the watch. A worker that leaves its sleep gives it to one that sleeps on
//! and sets that one's alarm: where all sleep again when it rings, that is the end of it, and the
//! next worker that gets work sets it anew. So requests that come one at a time cost a look for
//! each two milliseconds at most, and no more than one for each request.
//!
//! *A worker that sleeps while another is busy implies a watcher*, because whoever goes to sleep
//! first says so (`parked`) and then looks whether anybody has the watch; and whoever wakes, or gives
//! the watch away, first says so and then looks for who sleeps.

use std::time::Duration;

use super::driver::Driver;
use super::engine::Engine;
use super::worker::{Local, Worker};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::now as clock;

/// The time between two looks while a worker is stuck or may be, or was within the last second; and
/// between the looks of a worker that is busy itself.
pub(super) const TICK: Duration = Duration::from_micros(250);
/// The same in calm times.
const CALM_TICK: Duration = Duration::from_millis(2);
/// The time to the first look where a worker was stuck within the last second.
const ALERT_TICK: Duration = Duration::from_micros(100);

pub(crate) struct Watch {
    /// Who has the watch: its index + 1; 0: nobody.
    watcher: AtomicUsize,
    /// When it is to look, in nanoseconds since the engine's epoch.
    due: AtomicU64,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { watcher: AtomicUsize::new(0), due: AtomicU64::new(0) }
    }

    fn is_with<D: Driver>(&self, me: &Worker<D>) -> bool {
        self.watcher.load(Ordering::SeqCst) == mark(me)
    }

    /// Passes the watch from `from` to `to`, if `from` has it.
    fn pass(&self, from: usize, to: usize) -> bool {
        self.watcher.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

fn mark<D: Driver>(worker: &Worker<D>) -> usize {
    worker.slot.index + 1
}

impl<D: Driver> Worker<D> {
    fn sleeps(&self) -> bool {
        self.slot.parked.load(Ordering::SeqCst)
    }

    /// Whether there may be something to look after.
    fn is_busy(&self) -> bool {
        !self.sleeps() && !self.is_gone(self.slot.turn.load(Ordering::Acquire))
    }
}

impl<D: Driver> Engine<D> {
    /// `me` does not sleep any more, or is new: one that sleeps has the watch from now on.
    pub(super) fn hand_watch_on(&self, me: &Worker<D>) {
        let mut from = self.watch.watcher.load(Ordering::SeqCst);
        let arranged = if from == 0 { self.worker_count() < 2 } else { from != mark(me) };
        if arranged {
            return;
        }
        if from != 0 {
            me.alarm.clear();
        }
        let workers = self.workers();
        loop {
            // Those that came last serve fewer sources, if any: they are woken least.
            let mut asleep = workers.iter().rev().flatten().filter(|worker| worker.sleeps());
            let next = asleep.find(|worker| worker.slot.index != me.slot.index);
            let to = next.map_or(0, |worker| mark(worker));
            if from == to {
                return;
            }
            let first_look = self.set_due();
            if !self.watch.pass(from, to) {
                // Somebody else has arranged it meanwhile.
                return;
            }
            // Looked at once more: who wakes and saw somebody else have the watch leaves it to us.
            if let Some(next) = next
                && next.sleeps()
            {
                next.alarm.set(first_look);
                return;
            }
            from = to;
        }
    }

    /// `me` is about to sleep: it takes the watch if nobody has it and somebody is busy.
    pub(super) fn take_watch(&self, me: &Worker<D>) {
        if self.worker_count() > 1
            && self.watch.watcher.load(Ordering::SeqCst) == 0
            && self.is_any_busy_but(me)
        {
            self.set_due();
            self.watch.pass(0, mark(me));
        }
    }

    /// The next look is the first one of a watch. Returns in how long that is.
    fn set_due(&self) -> Duration {
        let first_look = if self.is_alert() { ALERT_TICK } else { CALM_TICK };
        self.set_due_in(first_look);
        first_look
    }

    fn set_due_in(&self, wait: Duration) {
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.watch.due.store(self.now().saturating_add(wait), Ordering::SeqCst);
    }

    fn is_any_busy_but(&self, me: &Worker<D>) -> bool {
        let workers = self.workers();
        workers.iter().flatten().any(|other| other.slot.index != me.slot.index && other.is_busy())
    }

    /// How long `me` may sleep until it has to look, if it has the watch.
    pub(super) fn time_to_look(&self, me: &Worker<D>) -> Option<Duration> {
        self.watch.is_with(me).then(|| {
            let due = self.watch.due.load(Ordering::SeqCst);
            Duration::from_nanos(due.saturating_sub(self.now()))
        })
    }

    /// Looks around, if that is up to `me` and due, and says when to look next.
    pub(super) fn look_if_due(&self, me: &Worker<D>, local: &mut Local<D>) {
        if me.poller.take_followed_ready() {
            self.look_at_followed(me, local);
        }
        if self.time_to_look(me) != Some(Duration::ZERO) {
            return;
        }
        me.alarm.noticed();
        local.last_look = Some(clock());
        let seen = self.look_around(me, local, true);
        if seen.busy {
            self.set_due_in(if seen.look_soon { TICK } else { CALM_TICK });
        } else if self.watch.pass(mark(me), 0) {
            // Who has woken meanwhile saw that the watch was kept.
            self.take_watch(me);
        }
    }

    /// Looks around from a busy worker, at most once a tick.
    pub(super) fn look_sometimes(&self, me: &Worker<D>, local: &mut Local<D>) {
        if self.worker_count() < 2 {
            return;
        }
        if me.poller.take_followed_ready() {
            self.look_at_followed(me, local);
        }
        let now = clock();
        if local.last_look.is_none_or(|last| now.duration_since(last) >= TICK) {
            local.last_look = Some(now);
            self.look_around(me, local, false);
        }
    }
}
