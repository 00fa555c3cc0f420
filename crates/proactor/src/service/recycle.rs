//! Things that a message needs for a short while, kept for the next one: so an idle session holds
//! none of them, and a busy one allocates none.
//!
//! Each thread has a few of its own, taken and given back without a lock. What one thread has too
//! many of goes, half of them at once, to a place that all share, because the thread that sends
//! need not be the one that learns of the completion.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::LocalKey;

use crate::{Operation, SendBuffer};

/// Buffers with more room than this are freed, not kept.
const KEPT_BUFFER_BYTES: usize = 66 * 1024;
/// Gather lists and queues with more room than this are freed, not kept.
pub(super) const KEPT_LIST_ENTRIES: usize = 64;
/// How many of each kind one thread keeps.
const KEPT_LOCALLY: usize = 16;
/// How many of each kind all threads share.
const KEPT_SHARED: usize = 128;

/// Things of one kind that are kept: a few for each thread, and a few that all share.
pub(super) struct Shelf<T: 'static> {
    local: &'static LocalKey<RefCell<Vec<T>>>,
    shared: Mutex<Vec<T>>,
}

impl<T> Shelf<T> {
    pub(super) const fn new(local: &'static LocalKey<RefCell<Vec<T>>>) -> Self {
        Self { local, shared: Mutex::new(Vec::new()) }
    }

    /// Simulated worlds, of which several may run at once, share it too: none may interrupt its
    /// holder.
    fn shared(&self) -> MutexGuard<'_, Vec<T>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that was kept, if there is one.
    pub(super) fn take(&self) -> Option<T> {
        self.local
            .try_with(|local| {
                let local = &mut *local.borrow_mut();
                if local.is_empty() {
                    let shared = &mut *self.shared();
                    let from = shared.len().saturating_sub(KEPT_LOCALLY / 2);
                    local.extend(shared.drain(from..));
                }
                local.pop()
            })
            .ok()
            .flatten()
    }

    /// Keeps `item` for the next one who needs one, or frees it.
    pub(super) fn keep(&self, item: T) {
        // A thread that is ending has no place of its own any more: the item is freed.
        let _ = self.local.try_with(|local| {
            let local = &mut *local.borrow_mut();
            if local.len() >= KEPT_LOCALLY {
                let shared = &mut *self.shared();
                let room = KEPT_SHARED.saturating_sub(shared.len());
                let from = local.len() - room.min(KEPT_LOCALLY / 2);
                shared.extend(local.drain(from..));
            }
            if local.len() < KEPT_LOCALLY {
                local.push(item);
            }
        });
    }
}

thread_local! {
    static LOCAL_BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static LOCAL_OPERATIONS: RefCell<Vec<Operation>> = const { RefCell::new(Vec::new()) };
    static LOCAL_LISTS: RefCell<Vec<Vec<SendBuffer>>> = const { RefCell::new(Vec::new()) };
}

static BUFFERS: Shelf<Vec<u8>> = Shelf::new(&LOCAL_BUFFERS);
static OPERATIONS: Shelf<Operation> = Shelf::new(&LOCAL_OPERATIONS);
static LISTS: Shelf<Vec<SendBuffer>> = Shelf::new(&LOCAL_LISTS);

/// An empty buffer.
pub(super) fn buffer() -> Vec<u8> {
    BUFFERS.take().unwrap_or_default()
}

/// Keeps a buffer for the next message.
pub(super) fn keep_buffer(mut buffer: Vec<u8>) {
    if (1..=KEPT_BUFFER_BYTES).contains(&buffer.capacity()) {
        buffer.clear();
        BUFFERS.keep(buffer);
    }
}

/// An operation without a context.
pub(super) fn operation() -> Operation {
    OPERATIONS.take().unwrap_or_default()
}

/// Keeps an operation, which carries nothing any more, for the next message.
pub(super) fn keep_operation(operation: Operation) {
    OPERATIONS.keep(operation);
}

/// An empty gather list.
pub(super) fn list() -> Vec<SendBuffer> {
    LISTS.take().unwrap_or_default()
}

/// Keeps a gather list; what is left in it is freed or kept too.
pub(super) fn keep_list(mut list: Vec<SendBuffer>) {
    list.drain(..).for_each(keep_sent);
    if (1..=KEPT_LIST_ENTRIES).contains(&list.capacity()) {
        LISTS.keep(list);
    }
}

/// What was sent: a buffer of ours is kept.
pub(super) fn keep_sent(buffer: SendBuffer) {
    if let SendBuffer::Owned(buffer) = buffer {
        keep_buffer(buffer);
    }
}
