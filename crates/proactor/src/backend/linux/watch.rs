//! Finding workers that are stuck in a handler, and taking over from them.
//!
//! An idle worker looks at the others at intervals. One that is in the same handler at two looks
//! is stuck: under its lock, which it does not hold while it handles, its packets are moved to the
//! shared queue and its readable sockets are read. If its thread sleeps in the kernel, it is blocked
//! and its slot goes to another worker (rule 40); if it runs, it keeps the slot, but the packets of
//! its sockets are still handled by whoever has one.

use std::time::Duration;

use super::driver::Driver;
use super::engine::Engine;
use super::sink::Sink;
use super::worker::{Local, Worker};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sync::now as clock;

/// The time between two looks while another worker is in a handler.
pub(crate) const TICK: Duration = Duration::from_micros(250);
/// Idle workers that look around at the same time, at most.
const WATCHERS: usize = 2;
/// The tick doubles as many times at most while no worker is in a handler. A tick costs about as much
/// as a message: under light load they would be most of what there is to do.
const SLOWEST: u32 = 3;
/// The same for those that watch in reserve: in calm times, and while workers are found stuck.
const SLOWEST_IN_RESERVE: u32 = 5;
const ALERT_IN_RESERVE: u32 = 2;
/// A worker whose thread does not sleep is taken for stuck, and not just for preempted, at so many
/// more looks: before, its packets are taken over, but nobody expects it to happen again.
const SPINNING_LOOKS: u32 = 3;
/// For so long after a worker was stuck, the tick stays short: where handlers block, they do again.
const ALERT: Duration = Duration::from_secs(1);
/// An idle worker that does not watch makes sure at this interval that others do: the watch passes
/// on to a worker that sleeps, and that one may just be getting work of its own.
const RESERVE_TICK: Duration = Duration::from_millis(10);
/// Ticks without any activity after which nobody looks any more.
const QUIET_TICKS: u32 = if cfg!(all(test, proactor_model)) { 2 } else { 40 };
/// A worker with more packets than this that did not get round to collecting is helped.
const BACKLOG: usize = 4;

/// A worker that is in the same handler for so many looks, and serves no source, is not watched.
const GONE_LOOKS: u32 = 1000;

/// What one worker saw of the others at its last look.
#[derive(Default)]
pub(crate) struct Sightings {
    seen: Vec<Sighting>,
}

/// Where one worker was.
#[derive(Clone, Copy, Default)]
struct Sighting {
    turn: u64,
    wait_calls: u64,
    /// Looks in a row that found it in the same turn.
    repeats: u32,
}

impl Sightings {
    /// Notes where worker `index` is, and returns where it was at the last look.
    fn note(&mut self, index: usize, turn: u64, wait_calls: u64) -> Sighting {
        if self.seen.len() <= index {
            self.seen.resize(index + 1, Sighting::default());
        }
        let before = self.seen[index];
        let repeats = if before.turn == turn { before.repeats.saturating_add(1) } else { 0 };
        self.seen[index] = Sighting { turn, wait_calls, repeats };
        before
    }
}

/// An idle worker's watch over the others.
pub(crate) struct Watch {
    watching: bool,
    /// Looks at the short tick; one worker does, the others are there in case it gets work.
    first: bool,
    quiet_ticks: u32,
    slowness: u32,
}

impl Watch {
    /// Begins to watch, if there are others and too few do.
    pub(crate) fn begin<D: Driver>(engine: &Engine<D>) -> Self {
        let mut watch = Self { watching: false, first: false, quiet_ticks: 0, slowness: 0 };
        watch.begin_again(engine);
        watch
    }

    /// The worker was woken for nothing that it could see: perhaps to watch.
    pub(crate) fn begin_again<D: Driver>(&mut self, engine: &Engine<D>) {
        if self.watching || engine.worker_count() < 2 || engine.quiet.load(Ordering::SeqCst) {
            return;
        }
        if engine.watchers.fetch_add(1, Ordering::SeqCst) < WATCHERS {
            *self = Self { watching: true, first: false, quiet_ticks: 0, slowness: 0 };
            self.try_first(engine);
        } else {
            engine.watchers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn try_first<D: Driver>(&mut self, engine: &Engine<D>) {
        self.first = self.first || !engine.has_first_watcher.swap(true, Ordering::SeqCst);
    }

    /// How long the worker may sleep until it has to look.
    pub(crate) fn tick<D: Driver>(&self, engine: &Engine<D>) -> Option<Duration> {
        if !self.watching {
            let others = engine.worker_count() > 1 && !engine.quiet.load(Ordering::SeqCst);
            return others.then_some(RESERVE_TICK);
        }
        let slowness = match self.first {
            true => self.slowness,
            false if engine.was_stuck_within(ALERT) => ALERT_IN_RESERVE,
            false => SLOWEST_IN_RESERVE,
        };
        Some(TICK * (1 << slowness))
    }

    /// Looks around after a tick in which nothing came.
    pub(crate) fn look<D: Driver>(
        &mut self,
        engine: &Engine<D>,
        me: &Worker<D>,
        local: &mut Local<D>,
    ) {
        if me.poller.take_followed_ready() {
            engine.look_at_followed(me, local);
        }
        if !self.watching {
            self.begin_again(engine);
            return;
        }
        let now = clock();
        if local.last_look.is_some_and(|last| now.duration_since(last) < TICK) {
            // Woken before its time: too soon to tell who is stuck.
            return;
        }
        local.last_look = Some(now);
        self.try_first(engine);
        let seen = engine.look_around(me, local);
        let alert = engine.was_stuck_within(ALERT);
        let stay_short = seen.in_handler || alert;
        self.slowness = if stay_short { 0 } else { (self.slowness + 1).min(SLOWEST) };
        self.quiet_ticks = if seen.active { 0 } else { self.quiet_ticks + 1 };
        if self.quiet_ticks > QUIET_TICKS {
            self.watching = false;
            self.give_up_first(engine);
            engine.quiet.store(true, Ordering::SeqCst);
            engine.watchers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn give_up_first<D: Driver>(&mut self, engine: &Engine<D>) {
        if std::mem::take(&mut self.first) {
            engine.has_first_watcher.store(false, Ordering::SeqCst);
        }
    }

    /// The worker has work: the watch passes to another one if nobody is left.
    pub(crate) fn end<D: Driver>(mut self, engine: &Engine<D>, me: &Worker<D>) {
        self.give_up_first(engine);
        let last = self.watching && engine.watchers.fetch_sub(1, Ordering::SeqCst) == 1;
        let first = !self.watching && engine.quiet.swap(false, Ordering::SeqCst);
        if last || first {
            engine.wake_a_watcher(me);
        }
    }
}

/// What a look around saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Some other worker is in a handler.
    pub(crate) in_handler: bool,
    /// Some other worker has moved since the last look, or is in a handler.
    pub(crate) active: bool,
}

impl<D: Driver> Engine<D> {
    /// Looks around from a busy worker, at most once a tick.
    pub(crate) fn look_sometimes(&self, me: &Worker<D>, local: &mut Local<D>) {
        if self.worker_count() < 2 {
            return;
        }
        if me.poller.take_followed_ready() {
            self.look_at_followed(me, local);
        }
        let now = clock();
        if local.last_look.is_none_or(|last| now.duration_since(last) >= TICK) {
            local.last_look = Some(now);
            self.look_around(me, local);
        }
    }

    fn look_around(&self, me: &Worker<D>, local: &mut Local<D>) -> Seen {
        let mut seen = Seen::default();
        let alert = self.was_stuck_within(ALERT);
        let workers = self.workers();
        for other in workers.iter().flatten() {
            if other.slot.index == me.slot.index {
                continue;
            }
            let turn = other.slot.turn.load(Ordering::Acquire);
            let waits = other.counters.wait_calls.load(Ordering::Relaxed);
            let before = local.sightings.note(other.slot.index, turn, waits);
            let in_handler = turn.is_multiple_of(2);
            if in_handler && before.repeats > GONE_LOOKS && other.poller.count() == 0 {
                // It dequeued once and went its own way; there is nothing here to take over.
                continue;
            }
            seen.in_handler |= in_handler;
            seen.active |= in_handler || before.turn != turn;
            let repeated = before.turn == turn;
            // Where handlers block, one whose thread sleeps is not given a second look.
            let asleep = in_handler
                && (repeated || alert)
                && (other.slot.is_given_up() || is_asleep(other.slot.thread_id));
            if in_handler && (repeated || asleep) {
                if asleep || before.repeats >= SPINNING_LOOKS {
                    self.note_stuck();
                }
                self.rescue(other, turn);
                self.follow(&workers, me, local, other, turn);
            } else if in_handler && before.wait_calls == waits {
                self.share_backlog(other);
            }
        }
        seen
    }

    /// Takes over from a worker that is stuck in the handler of turn `turn`.
    ///
    /// Everything goes through the shared queue, so that the packets of one connection stay in
    /// order: what the worker had collected first, then what comes from the kernel now.
    pub(super) fn rescue(&self, stuck: &Arc<Worker<D>>, turn: u64) {
        let Some(mut local) = stuck.try_lock() else { return };
        if stuck.slot.turn.load(Ordering::Acquire) != turn {
            return;
        }
        let Local { driver, queue, .. } = &mut *local;
        let mut taken = queue.len();
        self.central.prepend(queue);
        stuck.counters.queued_packets.store(queue.len(), Ordering::Relaxed);
        if let Some(driver) = driver {
            let mut sink = Sink::new(&self.central, None);
            taken += driver.rescue(&stuck.poller, &mut sink);
        }
        self.rescues.fetch_add(taken as u64, Ordering::Relaxed);
        drop(local);
        // Only now that its packets stand in their place: whoever is released takes the oldest.
        // The turn is checked again: the handler may have ended while its thread was looked at.
        if stuck.slot.is_held()
            && is_asleep(stuck.slot.thread_id)
            && stuck.slot.turn.load(Ordering::Acquire) == turn
        {
            self.central.give_up(&stuck.slot);
        }
    }

    /// Takes half of the packets of a worker that is behind: it handles, but has not got round to
    /// collecting since the last look.
    fn share_backlog(&self, busy: &Arc<Worker<D>>) {
        let Some(mut local) = busy.try_lock() else { return };
        let count = local.queue.len();
        if count >= BACKLOG {
            let mut half = local.queue.split_off(count - count / 2);
            busy.counters.queued_packets.store(local.queue.len(), Ordering::Relaxed);
            self.rescues.fetch_add(half.len() as u64, Ordering::Relaxed);
            self.central.prepend(&mut half);
        }
    }

    pub(super) fn wake_a_watcher(&self, me: &Worker<D>) {
        for other in self.workers().iter().flatten() {
            if other.slot.index != me.slot.index && other.slot.parked.load(Ordering::SeqCst) {
                self.central.wake(&other.slot);
                return;
            }
        }
    }
}

/// Whether a thread of this process sleeps in the kernel, by the state in its `stat` file (proc(5)).
/// `false` also where that cannot be read: then blocked handlers keep their slots.
#[cfg(not(all(test, proactor_model)))]
fn is_asleep(thread_id: i32) -> bool {
    let mut buffer = [0u8; 512];
    let Ok(mut file) = std::fs::File::open(format!("/proc/self/task/{thread_id}/stat")) else {
        return false;
    };
    let Ok(count) = std::io::Read::read(&mut file, &mut buffer) else { return false };
    // The name in parentheses may hold anything; the state follows the last parenthesis.
    let stat = &buffer[..count];
    let state = stat.iter().rposition(|byte| *byte == b')').and_then(|end| stat.get(end + 2));
    matches!(state, Some(b'S' | b'D'))
}

#[cfg(all(test, proactor_model))]
fn is_asleep(_thread_id: i32) -> bool {
    crate::sync::model::is_asleep()
}
