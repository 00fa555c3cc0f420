//! What a worker counts, and a look at all of it.
//!
//! The counts order nothing, and so they are the standard library's atomics also in the model tests:
//! there is nothing to try at them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::driver::Driver;
use super::engine::Engine;
use super::slot::Slot;
use super::worker::Worker;
use crate::port::{BatchSizes, PortSnapshot, WorkerSnapshot, WorkerState};
use crate::sync::Arc;

/// One worker's counts, on cache lines of their own.
///
/// All but `queued_packets` are written by the worker's thread only, so that counting is a plain
/// load and store; others read them.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct WorkerCounters {
    /// System calls that submitted or waited.
    pub(crate) wait_calls: AtomicU64,
    /// Packets in its own queue, as it was when the worker's lock was last let go of.
    pub(crate) queued_packets: AtomicUsize,
    batched_packets: AtomicU64,
    batches: [AtomicU64; BatchSizes::SIZES],
}

impl WorkerCounters {
    /// Counts the packets that one look at the kernel brought.
    pub(crate) fn note_batch(&self, packets: usize) {
        if packets > 0 {
            increase(&self.batched_packets, packets as u64);
            increase(&self.batches[BatchSizes::entry(packets)], 1);
        }
    }

    /// The batches so far.
    pub(crate) fn batches(&self) -> BatchSizes {
        let packets = self.batched_packets.load(Ordering::Relaxed);
        let mut sizes = BatchSizes { packets, ..BatchSizes::default() };
        for (count, batches) in sizes.by_size.iter_mut().zip(&self.batches) {
            *count = batches.load(Ordering::Relaxed);
        }
        sizes
    }
}

/// Adds to a count that one thread writes.
fn increase(count: &AtomicU64, by: u64) {
    count.store(count.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

impl Slot {
    /// What the worker's thread is doing.
    fn worker_state(&self) -> WorkerState {
        let in_handler = self.turn.load(Ordering::Acquire).is_multiple_of(2);
        if in_handler && self.is_given_up() {
            WorkerState::Blocked
        } else if !in_handler && (self.parked.load(Ordering::Acquire) || !self.is_held()) {
            WorkerState::Waiting
        } else {
            WorkerState::Running
        }
    }
}

impl<D: Driver> Worker<D> {
    fn snapshot(&self) -> WorkerSnapshot {
        WorkerSnapshot {
            index: self.slot.index,
            thread_id: u32::try_from(self.slot.thread_id).ok(),
            state: self.slot.worker_state(),
            dequeued_packets: self.slot.dequeued_packets.load(Ordering::Relaxed),
            queued_packets: self.counters.queued_packets.load(Ordering::Relaxed),
            sources: self.poller.count(),
            wait_calls: self.counters.wait_calls.load(Ordering::Relaxed),
            batches: self.counters.batches(),
        }
    }
}

impl<D: Driver> Engine<D> {
    /// Looks at the port. It takes the lock of the table of workers, for reading, and that of the
    /// timers: no lock that a busy worker takes for a packet.
    pub(super) fn snapshot_now(&self) -> PortSnapshot {
        let counters = crate::backend::Backend::counters(self);
        let mut snapshot = PortSnapshot::with_counters(self.central.limit(), counters);
        let table = self.workers();
        let mut batches = self.past_batches();
        let mut lent_bytes = self.pool.lent_bytes();
        let mut queued = self.central.queued();
        let mut workers = Vec::with_capacity(self.worker_count());
        for worker in table.iter().flatten() {
            let worker_now = Worker::snapshot(worker);
            lent_bytes += worker.pool.lent_bytes();
            queued += worker_now.queued_packets;
            batches.add(&worker_now.batches);
            workers.push(worker_now);
        }
        drop(table);
        snapshot.queued_packets = Some(queued);
        snapshot.posted_packets = Some(self.central.posted());
        snapshot.pending_timers = Some(self.pending_timers());
        snapshot.active_threads = Some(self.central.active());
        snapshot.batches = Some(batches);
        snapshot.lent_pool_bytes = Some(lent_bytes as u64);
        snapshot.workers = Some(workers);
        snapshot
    }
}

/// A worker that goes leaves its counts to the port.
pub(super) fn inherit<D: Driver>(past: &mut BatchSizes, worker: &Arc<Worker<D>>) {
    past.add(&worker.counters.batches());
}
