//! Things that a message needs for a short while, kept for the next one: so an idle session holds
//! none of them, and a busy one allocates none.
//!
//! Each thread has a few of its own, taken and given back without a lock. What one thread has too
//! many of goes, half of them at once, to a place that all share, because the thread that sends
//! need not be the one that learns of the completion.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Operation, SendBuffer};

/// Buffers with more room than this are freed, not kept.
const KEPT_BUFFER_BYTES: usize = 66 * 1024;
/// Gather lists and queues with more room than this are freed, not kept.
const KEPT_LIST_ENTRIES: usize = 64;
/// How many of each kind one thread keeps.
const KEPT_LOCALLY: usize = 16;
/// How many of each kind all threads share.
const KEPT_SHARED: usize = 128;

macro_rules! recycler {
    ($kind:ty, $take:ident, $keep:ident) => {
        pub(super) fn $take() -> Option<$kind> {
            LOCAL
                .try_with(|local| {
                    let local = &mut *local.borrow_mut();
                    if local.$keep.is_empty() {
                        let shared = &mut *shared();
                        let from = shared.$keep.len().saturating_sub(KEPT_LOCALLY / 2);
                        local.$keep.extend(shared.$keep.drain(from..));
                    }
                    local.$keep.pop()
                })
                .ok()
                .flatten()
        }

        fn $keep(item: $kind) {
            // A thread that is ending has no place of its own any more: the item is freed.
            let _ = LOCAL.try_with(|local| {
                let local = &mut *local.borrow_mut();
                if local.$keep.len() >= KEPT_LOCALLY {
                    let shared = &mut *shared();
                    let room = KEPT_SHARED.saturating_sub(shared.$keep.len());
                    let from = local.$keep.len() - room.min(KEPT_LOCALLY / 2);
                    shared.$keep.extend(local.$keep.drain(from..));
                }
                if local.$keep.len() < KEPT_LOCALLY {
                    local.$keep.push(item);
                }
            });
        }
    };
}

struct Kept {
    buffers: Vec<Vec<u8>>,
    operations: Vec<Operation>,
    lists: Vec<Vec<SendBuffer>>,
    queues: Vec<VecDeque<SendBuffer>>,
}

impl Kept {
    const fn new() -> Self {
        Self { buffers: Vec::new(), operations: Vec::new(), lists: Vec::new(), queues: Vec::new() }
    }
}

static SHARED: Mutex<Kept> = Mutex::new(Kept::new());

/// Simulated worlds, of which several may run at once, share it too: none may interrupt its holder.
fn shared() -> MutexGuard<'static, Kept> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static LOCAL: RefCell<Kept> = const { RefCell::new(Kept::new()) };
}

recycler!(Vec<u8>, take_kept_buffer, buffers);
recycler!(Operation, take_kept_operation, operations);
recycler!(Vec<SendBuffer>, take_kept_list, lists);
recycler!(VecDeque<SendBuffer>, take_kept_queue, queues);

/// An empty buffer.
pub(super) fn buffer() -> Vec<u8> {
    take_kept_buffer().unwrap_or_default()
}

/// Keeps a buffer for the next message.
pub(super) fn keep_buffer(mut buffer: Vec<u8>) {
    if (1..=KEPT_BUFFER_BYTES).contains(&buffer.capacity()) {
        buffer.clear();
        buffers(buffer);
    }
}

/// An operation without a context.
pub(super) fn operation() -> Operation {
    take_kept_operation().unwrap_or_default()
}

/// Keeps an operation, which carries nothing any more, for the next message.
pub(super) fn keep_operation(operation: Operation) {
    operations(operation);
}

/// An empty gather list.
pub(super) fn list() -> Vec<SendBuffer> {
    take_kept_list().unwrap_or_default()
}

/// Keeps a gather list; what is left in it is freed or kept too.
pub(super) fn keep_list(mut list: Vec<SendBuffer>) {
    list.drain(..).for_each(keep_sent);
    if (1..=KEPT_LIST_ENTRIES).contains(&list.capacity()) {
        lists(list);
    }
}

/// An empty queue.
pub(super) fn queue() -> VecDeque<SendBuffer> {
    take_kept_queue().unwrap_or_default()
}

/// Keeps a queue, which is empty.
pub(super) fn keep_queue(queue: VecDeque<SendBuffer>) {
    debug_assert!(queue.is_empty());
    if (1..=KEPT_LIST_ENTRIES).contains(&queue.capacity()) {
        queues(queue);
    }
}

/// What was sent: a buffer of ours is kept.
pub(super) fn keep_sent(buffer: SendBuffer) {
    if let SendBuffer::Owned(buffer) = buffer {
        keep_buffer(buffer);
    }
}
