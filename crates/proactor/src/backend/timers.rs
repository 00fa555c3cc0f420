//! Deadlines: a port's timers, in one queue that its backend keeps behind a lock.
//!
//! An index heap over a slab: each timer knows where in the heap it stands, so a cancelled one is
//! taken out at once and leaves nothing behind. Insert, cancel and expiry take O(log n) steps, and
//! allocate only while there are more timers than ever before.

use std::collections::HashMap;
use std::time::Instant;

use crate::operation::{Operation, OperationId};
use crate::port::Completion;

/// Ends the list of free slots.
const NO_SLOT: u32 = u32::MAX;

/// Timers by deadline, and by operation for cancelling.
pub(crate) struct TimerQueue {
    /// A binary heap, the earliest at its root. The order is in the nodes themselves, so that
    /// sifting compares without a look into the slab.
    heap: Vec<Node>,
    slots: Vec<Slot>,
    first_free: u32,
    by_operation: HashMap<OperationId, u32>,
    next_sequence: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    deadline: Instant,
    /// Timers that are due at the same instant expire in the order in which they were started.
    sequence: u64,
    slot: u32,
}

enum Slot {
    Free { next: u32 },
    Used { position: u32, key: usize, operation: Operation },
}

impl TimerQueue {
    /// A queue without timers; allocates nothing.
    pub(crate) fn new() -> Self {
        Self {
            heap: Vec::new(),
            slots: Vec::new(),
            first_free: NO_SLOT,
            by_operation: HashMap::new(),
            next_sequence: 0,
        }
    }

    /// How many timers are pending.
    #[cfg(any(target_os = "linux", test))]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Adds a timer, and says whether it is now the earliest: a thread that waits for the one
    /// before has to wait for less.
    pub(crate) fn insert(&mut self, key: usize, deadline: Instant, operation: Operation) -> bool {
        let position = self.heap.len();
        let id = operation.id();
        let slot = self.take_slot(Slot::Used { position: position as u32, key, operation });
        let before = self.by_operation.insert(id, slot);
        debug_assert!(before.is_none(), "a start of an operation has an id of its own");
        self.heap.push(Node { deadline, sequence: self.next_sequence, slot });
        self.next_sequence += 1;
        self.sift_up(position);
        self.heap[0].slot == slot
    }

    /// When the earliest timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.heap.first().map(|node| node.deadline)
    }

    /// Takes out every timer that is due at `now`, and gives their packets to `out`: by deadline,
    /// then in the order in which they were started.
    pub(crate) fn pop_expired(&mut self, now: Instant, mut out: impl FnMut(Completion)) {
        let now =
            if planted!(TimerEarly) { now + std::time::Duration::from_millis(1) } else { now };
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let (key, operation) = self.remove(0);
            out(Completion::finished(key, operation, 0, None));
            if planted!(TimerOnlyFirst) {
                self.heap.clear();
            }
        }
    }

    /// Takes a timer out before its time; `None` where it has expired or never was.
    pub(crate) fn cancel(&mut self, timer: OperationId) -> Option<(usize, Operation)> {
        let slot = *self.by_operation.get(&timer)?;
        let Slot::Used { position, .. } = &self.slots[slot as usize] else {
            unreachable!("the index names timers that are pending");
        };
        if planted!(TimerLeak) {
            return None;
        }
        Some(self.remove(*position as usize))
    }

    /// Takes everything out, in no order, and frees the queue's memory.
    ///
    /// The operations are for the caller to drop once its lock is free: their contexts are the
    /// program's, and may do anything when they are dropped.
    pub(crate) fn drain(&mut self) -> Vec<Operation> {
        let emptied = std::mem::replace(self, Self::new());
        self.next_sequence = emptied.next_sequence;
        let pending = emptied.slots.into_iter().filter_map(|slot| match slot {
            Slot::Used { operation, .. } => Some(operation),
            Slot::Free { .. } => None,
        });
        pending.collect()
    }

    fn take_slot(&mut self, content: Slot) -> u32 {
        if self.first_free == NO_SLOT {
            assert!(self.slots.len() < NO_SLOT as usize, "a port holds less than 2^32 timers");
            self.slots.push(content);
            return (self.slots.len() - 1) as u32;
        }
        let slot = self.first_free;
        let Slot::Free { next } = self.slots[slot as usize] else {
            unreachable!("the free list names free slots");
        };
        self.first_free = next;
        self.slots[slot as usize] = content;
        slot
    }

    /// Takes the timer at `position` of the heap out of heap, slab and index.
    fn remove(&mut self, position: usize) -> (usize, Operation) {
        let node = self.heap.swap_remove(position);
        if position < self.heap.len() && planted!(TimerHeapDisorder) {
            self.place(position);
        } else if position < self.heap.len() {
            // The former last one stands here now: it may belong above as well as below.
            self.place(position);
            self.sift_up(position);
            self.sift_down(position);
        }
        let free = Slot::Free { next: self.first_free };
        let content = std::mem::replace(&mut self.slots[node.slot as usize], free);
        self.first_free = node.slot;
        let Slot::Used { key, operation, .. } = content else {
            unreachable!("the heap names timers that are pending");
        };
        self.by_operation.remove(&operation.id());
        (key, operation)
    }

    fn sift_up(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent] <= self.heap[position] {
                return;
            }
            self.swap(position, parent);
            position = parent;
        }
    }

    fn sift_down(&mut self, mut position: usize) {
        loop {
            let mut child = 2 * position + 1;
            if child >= self.heap.len() {
                return;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1] < self.heap[child] {
                child += 1;
            }
            if self.heap[position] <= self.heap[child] {
                return;
            }
            self.swap(position, child);
            position = child;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.place(one);
        self.place(other);
    }

    /// Tells the timer at `index` of the heap where it stands.
    fn place(&mut self, index: usize) {
        match &mut self.slots[self.heap[index].slot as usize] {
            Slot::Used { position, .. } => *position = index as u32,
            Slot::Free { .. } => unreachable!("the heap names timers that are pending"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::operation::{OperationKind, Payload};

    fn timer() -> Operation {
        let mut operation = Operation::new();
        operation.prepare(OperationKind::Timer, Payload::None);
        operation
    }

    fn expired_keys(queue: &mut TimerQueue, now: Instant) -> Vec<usize> {
        let mut keys = Vec::new();
        queue.pop_expired(now, |packet| {
            assert_eq!((packet.bytes(), packet.error()), (0, None));
            assert_eq!(packet.kind(), OperationKind::Timer);
            assert!(packet.operation().is_some());
            keys.push(packet.key());
        });
        keys
    }

    #[test]
    fn timers_expire_by_deadline_and_then_in_the_order_of_their_start() {
        let mut queue = TimerQueue::new();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(queue.insert(1, at(20), timer()));
        assert!(!queue.insert(2, at(20), timer()), "an equal deadline is not earlier");
        assert!(queue.insert(3, at(10), timer()));
        assert!(!queue.insert(4, at(30), timer()));
        assert_eq!(queue.next_deadline(), Some(at(10)));
        assert_eq!(expired_keys(&mut queue, at(9)), []);
        assert_eq!(expired_keys(&mut queue, at(20)), [3, 1, 2]);
        assert_eq!(queue.len(), 1);
        assert_eq!(expired_keys(&mut queue, at(100)), [4]);
        assert_eq!(queue.next_deadline(), None);
    }

    #[test]
    fn a_cancelled_timer_is_gone_and_leaves_nothing_behind() {
        let mut queue = TimerQueue::new();
        let start = Instant::now();
        assert!(queue.insert(1, start, timer()));
        for round in 0..10_000 {
            let operation = timer();
            let id = operation.id();
            queue.insert(2, start + Duration::from_secs(round), operation);
            let (key, operation) = queue.cancel(id).expect("the timer is pending");
            assert_eq!((key, operation.id()), (2, id));
            assert!(queue.cancel(id).is_none(), "it can be cancelled once");
        }
        assert_eq!(queue.len(), 1);
        assert!(queue.heap.capacity() <= 8 && queue.slots.len() <= 2, "memory does not grow");
        assert_eq!(expired_keys(&mut queue, start), [1]);
    }

    #[test]
    fn drain_gives_every_operation_back() {
        let mut queue = TimerQueue::new();
        let start = Instant::now();
        let cancelled = timer();
        let id = cancelled.id();
        queue.insert(0, start, cancelled);
        for key in 0..10 {
            queue.insert(key, start, timer());
        }
        queue.cancel(id);
        assert_eq!(queue.drain().len(), 10);
        assert_eq!((queue.len(), queue.next_deadline()), (0, None));
        assert!(queue.insert(7, start, timer()));
        assert_eq!(expired_keys(&mut queue, start), [7]);
    }

    #[test]
    fn a_million_timers_expire_in_order() {
        // Without optimisation a million takes more than ten seconds, nearly all in the test.
        const TIMERS: usize = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
        let mut queue = TimerQueue::new();
        let start = Instant::now();
        for index in 0..TIMERS {
            // Any odd factor visits each residue once: all deadlines differ, in a scattered order.
            let delay_us = index.wrapping_mul(0x9E37_79B1) % (1 << 20);
            queue.insert(delay_us, start + Duration::from_micros(delay_us as u64), timer());
        }
        assert_eq!(queue.len(), TIMERS);
        let keys = expired_keys(&mut queue, start + Duration::from_secs(10));
        assert_eq!(keys.len(), TIMERS);
        assert!(keys.is_sorted());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { delay_ms: u64 },
        Cancel { pick: usize },
        Expire { advance_ms: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..50).prop_map(|delay_ms| Step::Insert { delay_ms }),
            2 => any::<usize>().prop_map(|pick| Step::Cancel { pick }),
            1 => (0_u64..20).prop_map(|advance_ms| Step::Expire { advance_ms }),
        ]
    }

    proptest! {
        /// The model is a list in the order of the starts, sorted (stably) by deadline.
        #[test]
        fn behaves_as_a_sorted_list(steps in prop::collection::vec(step(), 1..300)) {
            let mut queue = TimerQueue::new();
            let mut model: Vec<(Instant, usize, OperationId)> = Vec::new();
            let mut now = Instant::now();
            for (key, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert { delay_ms } => {
                        let (operation, deadline) = (timer(), now + Duration::from_millis(delay_ms));
                        let earliest = model.iter().all(|(other, ..)| deadline < *other);
                        model.push((deadline, key, operation.id()));
                        prop_assert_eq!(queue.insert(key, deadline, operation), earliest);
                    }
                    Step::Cancel { pick } if !model.is_empty() => {
                        let (_, key, id) = model.remove(pick % model.len());
                        let cancelled = queue.cancel(id).map(|(key, operation)| (key, operation.id()));
                        prop_assert_eq!(cancelled, Some((key, id)));
                        prop_assert!(queue.cancel(id).is_none());
                    }
                    Step::Cancel { .. } => {}
                    Step::Expire { advance_ms } => {
                        now += Duration::from_millis(advance_ms);
                        model.sort_by_key(|(deadline, ..)| *deadline);
                        let due = model.partition_point(|(deadline, ..)| *deadline <= now);
                        let keys: Vec<usize> = model.drain(..due).map(|(_, key, _)| key).collect();
                        prop_assert_eq!(expired_keys(&mut queue, now), keys);
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                let next = model.iter().map(|(deadline, ..)| *deadline).min();
                prop_assert_eq!(queue.next_deadline(), next);
            }
            prop_assert_eq!(queue.drain().len(), model.len());
        }
    }
}
