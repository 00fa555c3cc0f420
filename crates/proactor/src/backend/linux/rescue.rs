//! Finding workers that are stuck in a handler, and taking over from them.
//!
//! One that is in the same handler at two looks is stuck: under its lock, which it does not hold
//! while it handles, its packets are moved to the shared queue and its readable sockets are read. If
//! its thread sleeps in the kernel, it is blocked and its slot goes to another worker (rule 40); if
//! it runs, it keeps the slot, but the packets of its sockets are still handled by whoever has one.

use std::time::Duration;

use super::driver::Driver;
use super::engine::Engine;
use super::sink::Sink;
use super::worker::{Local, Worker};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

/// A worker whose thread does not sleep is taken for stuck, and not just for preempted, at so many
/// more looks: before, its packets are taken over, but nobody expects it to happen again.
const SPINNING_LOOKS: u32 = 3;
/// One that was stuck for so many looks is followed by now, and tells nothing about others.
const LONG_LOOKS: u32 = 100;
/// A worker that is in the same handler for so many looks, and serves no source, is gone.
const GONE_LOOKS: u32 = 1000;
/// For so long after a worker was stuck, looks come soon: where handlers block, they do again.
const ALERT: Duration = Duration::from_secs(1);
/// A worker with more packets than this that did not get round to collecting is helped.
const BACKLOG: usize = 4;

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

fn is_in_handler(turn: u64) -> bool {
    turn != 0 && turn.is_multiple_of(2)
}

/// What a look around saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Some other worker does not sleep.
    pub(super) busy: bool,
    /// One is stuck, or may turn out to be, or was a short time ago.
    pub(super) look_soon: bool,
}

impl<D: Driver> Worker<D> {
    /// Whether it dequeued once and then went its own way: found so at an earlier look.
    pub(super) fn is_gone(&self, turn: u64) -> bool {
        self.gone_turn.load(Ordering::Relaxed) == turn
    }

    /// Its thread is back. Returns whether it was gone.
    pub(super) fn comes_back(&self) -> bool {
        self.gone_turn.load(Ordering::Relaxed) != 0
            && self.gone_turn.swap(0, Ordering::Relaxed) != 0
    }
}

impl<D: Driver> Engine<D> {
    /// Whether a worker was found stuck within the last second.
    pub(super) fn is_alert(&self) -> bool {
        self.was_stuck_within(ALERT)
    }

    /// Looks at the others, and takes over from those that are stuck. A busy worker that looks in
    /// passing (not `thoroughly`) does not ask the kernel about each that is in a handler.
    pub(super) fn look_around(
        &self,
        me: &Worker<D>,
        local: &mut Local<D>,
        thoroughly: bool,
    ) -> Seen {
        let alert = self.is_alert();
        let mut seen = Seen { busy: false, look_soon: alert };
        let workers = self.workers();
        for other in workers.iter().flatten() {
            if other.slot.index == me.slot.index {
                continue;
            }
            let turn = other.slot.turn.load(Ordering::Acquire);
            let waits = other.counters.wait_calls.load(Ordering::Relaxed);
            let before = local.sightings.note(other.slot.index, turn, waits);
            if !is_in_handler(turn) {
                seen.busy |= !other.slot.parked.load(Ordering::SeqCst);
                continue;
            }
            if before.repeats > GONE_LOOKS && other.poller.count() == 0 {
                // There is nothing here to take over.
                other.gone_turn.store(turn, Ordering::Relaxed);
                continue;
            }
            seen.busy = true;
            let repeated = before.turn == turn;
            // Where handlers block, one whose thread sleeps is not given a second look.
            let asleep = (repeated || alert || thoroughly)
                && (other.slot.is_given_up() || is_asleep(other.slot.thread_id));
            if repeated || (asleep && alert) {
                if (asleep || before.repeats >= SPINNING_LOOKS) && before.repeats < LONG_LOOKS {
                    self.note_stuck();
                }
                seen.look_soon |= before.repeats < LONG_LOOKS;
                self.rescue(other, turn);
                self.follow(&workers, me, local, other, turn);
            } else {
                let behind = before.wait_calls == waits;
                if behind {
                    self.share_backlog(other);
                }
                // A worker that is busy all the time is in a handler at most looks.
                seen.look_soon |= asleep || behind || !is_in_handler(before.turn);
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
