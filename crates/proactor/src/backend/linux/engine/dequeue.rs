//! Dequeuing: take what is there, else collect, else park until there may be something.

use std::time::{Duration, Instant};

use super::Engine;
use crate::backend::linux::central::Park;
use crate::backend::linux::driver::{Driver, Wait};
use crate::backend::linux::sink::Sink;
use crate::backend::linux::worker::{Local, Worker};
use crate::error::DequeueError;
use crate::port::Completion;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sync::now as clock;

/// Packets taken from the shared queue in a row before the driver gets a turn, so that a flood of
/// posts does not keep I/O out.
const LONGEST_STREAK: usize = 64;

impl<D: Driver> Engine<D> {
    pub(super) fn dequeue_as(
        &self,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        completions: &mut [Option<Completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, DequeueError> {
        let mut deadline = None;
        loop {
            if self.central.is_closed() {
                return Err(DequeueError::Closed);
            }
            let may_take = self.central.try_hold(&worker.slot);
            if may_take && local.streak < LONGEST_STREAK {
                let count = self.take(local, completions);
                if count > 0 {
                    return Ok(count);
                }
            }
            local.streak = 0;
            self.collect(worker, local, timeout == Some(Duration::ZERO))?;
            if may_take && (!local.queue.is_empty() || self.central.queued() > 0) {
                continue;
            }
            match timeout {
                Some(Duration::ZERO) => return Err(DequeueError::TimedOut),
                Some(timeout) if deadline.is_none() => {
                    // A time beyond the clock's range is for ever.
                    deadline = Some(clock().checked_add(timeout));
                }
                _ => {}
            }
            let deadline = deadline.flatten();
            if deadline.is_some_and(|deadline| clock() >= deadline) {
                return Err(DequeueError::TimedOut);
            }
            self.wait(worker, local, deadline)?;
        }
    }

    pub(super) fn take(
        &self,
        local: &mut Local<D>,
        completions: &mut [Option<Completion>],
    ) -> usize {
        let mut count = 0;
        while count < completions.len()
            && let Some(packet) = local.queue.pop_front()
        {
            completions[count] = Some(packet);
            count += 1;
        }
        if count < completions.len() && self.central.queued() > 0 {
            let before = count;
            count = self.central.take(completions, count);
            local.streak += count - before;
        }
        count
    }

    /// Collects without waiting: what asked to be served, timers, the driver if it has something
    /// to submit or to give (`always`: in any case).
    pub(super) fn collect(
        &self,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        always: bool,
    ) -> Result<(), DequeueError> {
        worker.serve_inbox(local, self);
        self.feed_starved(worker, local);
        self.expire_timers(local);
        let Some(driver) = &local.driver else { return Err(DequeueError::Closed) };
        // Sources that ask to be served again and again must not keep the others' readiness out.
        let unseen = !D::KNOWS_COMPLETIONS && !local.queue.is_empty();
        if always
            || unseen
            || driver.has_sends()
            || driver.has_completions()
            || self.central.queued() > 0
        {
            self.turn(worker, local, Wait::No)?;
        }
        self.look_sometimes(worker, local);
        Ok(())
    }

    pub(super) fn turn(
        &self,
        worker: &Worker<D>,
        local: &mut Local<D>,
        wait: Wait,
    ) -> Result<(), DequeueError> {
        let Local { driver, queue, .. } = local;
        let Some(driver) = driver else { return Err(DequeueError::Closed) };
        let mut sink = Sink::new(&self.central, Some(queue));
        driver
            .turn(wait, &worker.poller, worker.slot.index, &mut sink)
            .map_err(DequeueError::Failed)?;
        worker.counters.note_batch(sink.pushed);
        worker.counters.wait_calls.store(driver.wait_calls(), Ordering::Relaxed);
        Ok(())
    }

    /// Parks the worker until there may be something for it.
    pub(super) fn wait(
        &self,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        deadline: Option<Instant>,
    ) -> Result<(), DequeueError> {
        match self.central.park(&worker.slot, &mut local.queue) {
            Park::Closed => return Err(DequeueError::Closed),
            Park::Work => {
                // Others may have taken it for asleep.
                self.hand_watch_on(worker);
                return Ok(());
            }
            Park::Parked => {}
        }
        self.take_watch(worker);
        let result = self.sleep(worker, local, deadline);
        self.stop_keeping_time(worker);
        self.central.unpark(&worker.slot, !local.queue.is_empty());
        self.hand_watch_on(worker);
        result
    }

    pub(super) fn sleep(
        &self,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        deadline: Option<Instant>,
    ) -> Result<(), DequeueError> {
        loop {
            // `parked` is set: whoever hands something over from now on signals the eventfd.
            if worker.has_inbox() || self.central.is_closed() {
                return Ok(());
            }
            let timeout = self.longest_sleep(worker, deadline, self.time_to_look(worker));
            self.turn(worker, local, Wait::Upto(timeout))?;
            if self.starved_are_due() {
                return Ok(());
            }
            // A packet in the shared queue is for whom it released: not for who happens to wake
            // (rule 36).
            let work = worker.slot.is_held() || !local.queue.is_empty();
            if work || self.timer_is_due() {
                return Ok(());
            }
            if deadline.is_some_and(|deadline| clock() >= deadline) {
                return Ok(());
            }
            self.look_if_due(worker, local);
            if worker.slot.is_held() {
                return Ok(());
            }
        }
    }
}
