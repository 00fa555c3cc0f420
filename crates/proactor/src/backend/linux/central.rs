//! The queue that all workers share, the workers that are parked, and the concurrency limit.
//!
//! Order: a worker keeps what it collected itself in a queue of its own, but only while this queue
//! is empty; so everything here is newer than everything there, and popping the own queue first
//! keeps the dequeue order first-in-first-out (rules 33, 35).
//!
//! Posting takes a lock of its own, so that who posts and who dequeues meet only when the queue runs
//! empty or a worker is parked. The two meet without a lost wake because each first says what it
//! did (a packet came; a worker parked) and then looks at what the other said.
//!
//! Slots: a worker holds a slot from the moment it gets a packet until it parks, gives the slot up,
//! or exits. All changes of slots happen under this lock, and only when a worker goes to sleep or
//! wakes; a running worker that finds its next packet touches none of it (rule 37).

use std::collections::VecDeque;

use super::slot::{FREE, GIVEN_UP, HELD, Slot};
use super::syscall;
use crate::operation::OperationKind;
use crate::port::Completion;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) struct Central {
    limit: usize,
    /// Locked inside `shared`, where both are.
    incoming: Mutex<Incoming>,
    shared: Mutex<Shared>,
    /// Mirrors of what the locks guard, for a look without them.
    incoming_len: AtomicUsize,
    /// Posts so far; written under the lock of `incoming`.
    posted: std::sync::atomic::AtomicU64,
    queue_len: AtomicUsize,
    parked_count: AtomicUsize,
    active: AtomicUsize,
    closed: AtomicBool,
    wakes: AtomicU64,
    blocked: AtomicU64,
    /// Packets that came after the close, until somebody who holds no lock drops them.
    too_late: Mutex<Vec<Completion>>,
}

/// The newer part of the queue.
struct Incoming {
    queue: VecDeque<Completion>,
    closed: bool,
}

struct Shared {
    /// The older part of the queue.
    queue: VecDeque<Completion>,
    /// Last in, first out (rule 36).
    parked: Vec<Arc<Slot>>,
    active: usize,
    /// Workers that were released and have not come for their packet yet.
    released: usize,
    closed: bool,
}

/// What came of trying to park.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Park {
    /// The worker is on the stack of parked workers, without a slot.
    Parked,
    /// There is a packet that it may take: it keeps its slot.
    Work,
    /// The port is closed.
    Closed,
}

impl Central {
    pub(crate) fn new(limit: usize) -> Self {
        assert!(limit > 0, "the concurrency limit is resolved before the queue is made");
        Self {
            limit,
            incoming: Mutex::new(Incoming { queue: VecDeque::with_capacity(64), closed: false }),
            shared: Mutex::new(Shared {
                queue: VecDeque::with_capacity(64),
                parked: Vec::with_capacity(16),
                active: 0,
                released: 0,
                closed: false,
            }),
            incoming_len: AtomicUsize::new(0),
            posted: std::sync::atomic::AtomicU64::new(0),
            queue_len: AtomicUsize::new(0),
            parked_count: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            wakes: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            too_late: Mutex::new(Vec::new()),
        }
    }

    fn too_late(&self) -> MutexGuard<'_, Vec<Completion>> {
        self.too_late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts by a packet that came after the close, for who holds no lock to drop.
    pub(super) fn keep_late(&self, packet: Completion) {
        self.too_late().push(packet);
    }

    /// Drops packets that came after the close. Call it without any lock held.
    pub(crate) fn drop_late(&self) {
        if self.is_closed() {
            let late = std::mem::take(&mut *self.too_late());
            drop(late);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Packets in this queue, by a look without the lock.
    pub(crate) fn queued(&self) -> usize {
        self.queue_len.load(Ordering::Relaxed) + self.incoming_len.load(Ordering::SeqCst)
    }

    /// Packets that were posted.
    pub(crate) fn posted(&self) -> u64 {
        self.posted.load(Ordering::Relaxed)
    }

    /// Workers that hold a slot.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Times that a parked worker was woken, and that a blocked one lost its slot.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.wakes.load(Ordering::Relaxed), self.blocked.load(Ordering::Relaxed))
    }

    /// Whether the number of workers that hold a slot is within the limit.
    pub(crate) fn within_limit(&self) -> bool {
        self.active.load(Ordering::Relaxed) <= self.limit
    }

    /// Queues a packet, and releases a parked worker for it where the limit allows. Gives the
    /// packet back where the port is closed.
    #[expect(
        clippy::result_large_err,
        reason = "the packet itself comes back; a box would allocate"
    )]
    pub(crate) fn push(&self, packet: Completion) -> Result<(), Completion> {
        let mut incoming = self.lock_incoming();
        if incoming.closed {
            return Err(packet);
        }
        if packet.kind() == OperationKind::Post {
            self.posted.store(self.posted.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        incoming.queue.push_back(packet);
        self.incoming_len.store(incoming.queue.len(), Ordering::SeqCst);
        drop(incoming);
        self.look_for_parked();
        Ok(())
    }

    /// Puts what a worker had collected, and another is to handle, before everything that is
    /// queued: it is older (rule 35). Where the port is closed the packets stay where they are.
    pub(crate) fn prepend(&self, packets: &mut VecDeque<Completion>) {
        let mut shared = self.lock();
        if !shared.closed && !packets.is_empty() {
            Self::push_front(&mut shared, packets);
            self.release_parked(&mut shared);
            self.mirror(&shared);
        }
    }

    fn push_front(shared: &mut Shared, packets: &mut VecDeque<Completion>) {
        while let Some(packet) = packets.pop_back() {
            shared.queue.push_front(packet);
        }
    }

    /// After a packet was queued: releases workers, if any is parked.
    fn look_for_parked(&self) {
        if self.parked_count.load(Ordering::SeqCst) > 0 {
            let mut shared = self.lock();
            self.release_parked(&mut shared);
            self.mirror(&shared);
        }
    }

    /// Takes packets, oldest first, until `completions` is full from `filled` on; returns how many
    /// entries are filled then.
    pub(crate) fn take(&self, completions: &mut [Option<Completion>], mut filled: usize) -> usize {
        let mut shared = self.lock();
        while filled < completions.len() {
            if shared.queue.is_empty() {
                let mut incoming = self.lock_incoming();
                std::mem::swap(&mut shared.queue, &mut incoming.queue);
                self.incoming_len.store(0, Ordering::SeqCst);
            }
            let Some(packet) = shared.queue.pop_front() else { break };
            completions[filled] = Some(packet);
            filled += 1;
        }
        self.mirror(&shared);
        filled
    }

    /// Gives `slot` a place against the limit, where there is one; returns whether it has one now.
    pub(crate) fn try_hold(&self, slot: &Slot) -> bool {
        if slot.is_held() {
            return self.within_limit();
        }
        let mut shared = self.lock();
        let may = !slot.is_held() && shared.active < self.limit;
        if may {
            self.hold(&mut shared, slot);
        }
        may || (slot.is_held() && shared.active <= self.limit)
    }

    /// Counts a worker in whatever the limit says: it resumes after a block (rule 41) or returns
    /// from a dequeue without a packet (rule 42).
    pub(crate) fn hold_beyond_limit(&self, slot: &Slot) {
        if !slot.is_held() {
            let mut shared = self.lock();
            if !slot.is_held() {
                self.hold(&mut shared, slot);
            }
        }
    }

    /// Parks a worker: it gives up its slot, and puts what it has collected and may not handle
    /// into this queue.
    pub(crate) fn park(&self, slot: &Arc<Slot>, collected: &mut VecDeque<Completion>) -> Park {
        slot.parked.store(true, Ordering::SeqCst);
        let mut shared = self.lock();
        if shared.closed {
            slot.parked.store(false, Ordering::SeqCst);
            return Park::Closed;
        }
        self.free(&mut shared, slot);
        Self::push_front(&mut shared, collected);
        shared.parked.push(Arc::clone(slot));
        self.mirror(&shared);
        // Looked at after `parked_count` was set: who queues a packet from now on sees it.
        if self.queued() > 0 && shared.active < self.limit {
            // A running thread takes the next packet itself, ahead of those parked (rule 37).
            shared.parked.pop();
            self.hold(&mut shared, slot);
            // What it had collected may be more than it takes; one packet is spoken for.
            shared.released += 1;
            self.release_parked(&mut shared);
            shared.released -= 1;
            self.mirror(&shared);
            slot.parked.store(false, Ordering::SeqCst);
            return Park::Work;
        }
        Park::Parked
    }

    /// Takes a worker off the stack of parked ones. It holds a slot afterwards if it was granted
    /// one, or if `wants_slot` and the limit allows.
    pub(crate) fn unpark(&self, slot: &Slot, wants_slot: bool) {
        let mut shared = self.lock();
        slot.parked.store(false, Ordering::SeqCst);
        if let Some(position) =
            shared.parked.iter().rposition(|other| std::ptr::eq(Arc::as_ptr(other), slot))
        {
            shared.parked.remove(position);
        }
        self.arrive(&mut shared, slot);
        if wants_slot && !slot.is_held() && shared.active < self.limit {
            self.hold(&mut shared, slot);
        }
        self.mirror(&shared);
    }

    /// A worker that was released comes for its packet, or leaves.
    fn arrive(&self, shared: &mut Shared, slot: &Slot) {
        if slot.released.swap(false, Ordering::Relaxed) {
            shared.released -= 1;
        }
    }

    /// A worker is blocked in its handler: its slot goes to a parked one, if there is work.
    /// Returns whether it held a slot.
    pub(crate) fn give_up(&self, slot: &Slot) -> bool {
        let mut shared = self.lock();
        if slot.state.load(Ordering::Acquire) != HELD {
            return false;
        }
        slot.state.store(GIVEN_UP, Ordering::Release);
        shared.active -= 1;
        self.blocked.fetch_add(1, Ordering::Relaxed);
        self.release_parked(&mut shared);
        self.mirror(&shared);
        true
    }

    /// A worker leaves the port for good, or for another port (rule 39).
    pub(crate) fn leave(&self, slot: &Slot) {
        let mut shared = self.lock();
        self.free(&mut shared, slot);
        self.arrive(&mut shared, slot);
        // Not by index: that may be another worker's by now.
        shared.parked.retain(|other| !std::ptr::eq(Arc::as_ptr(other), slot));
        self.release_parked(&mut shared);
        self.mirror(&shared);
    }

    /// Signals a parked worker's eventfd, where it is parked.
    pub(crate) fn wake(&self, slot: &Slot) {
        if slot.parked.load(Ordering::SeqCst) {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            syscall::eventfd_signal(&slot.wake);
        }
    }

    /// Closes the queue and wakes every parked worker. Returns the packets that were queued, for
    /// the caller to drop outside every lock; `None` where it was closed before.
    pub(crate) fn close(&self) -> Option<VecDeque<Completion>> {
        let mut shared = self.lock();
        if shared.closed {
            return None;
        }
        shared.closed = true;
        self.closed.store(true, Ordering::SeqCst);
        let mut packets = std::mem::take(&mut shared.queue);
        let mut incoming = self.lock_incoming();
        incoming.closed = true;
        packets.append(&mut incoming.queue);
        self.incoming_len.store(0, Ordering::SeqCst);
        drop(incoming);
        self.mirror(&shared);
        for slot in &shared.parked {
            syscall::eventfd_signal(&slot.wake);
        }
        Some(packets)
    }

    /// Releases parked workers, last in first out, while there are packets for which nobody was
    /// released yet, and slots.
    fn release_parked(&self, shared: &mut Shared) {
        let room = self.limit.saturating_sub(shared.active);
        let packets = shared.queue.len() + self.incoming_len.load(Ordering::SeqCst);
        for _ in 0..room.min(packets.saturating_sub(shared.released)) {
            let Some(slot) = shared.parked.pop() else { break };
            slot.released.store(true, Ordering::Relaxed);
            shared.released += 1;
            self.hold(shared, &slot);
            self.wake(&slot);
        }
    }

    fn hold(&self, shared: &mut Shared, slot: &Slot) {
        debug_assert!(!slot.is_held());
        slot.state.store(HELD, Ordering::Release);
        shared.active += 1;
        self.active.store(shared.active, Ordering::Release);
    }

    fn free(&self, shared: &mut Shared, slot: &Slot) {
        if slot.state.swap(FREE, Ordering::AcqRel) == HELD {
            shared.active -= 1;
        }
    }

    fn mirror(&self, shared: &Shared) {
        self.queue_len.store(shared.queue.len(), Ordering::Relaxed);
        self.parked_count.store(shared.parked.len(), Ordering::SeqCst);
        self.active.store(shared.active, Ordering::Release);
    }
}
