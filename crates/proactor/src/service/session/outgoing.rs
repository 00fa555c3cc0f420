//! What waits to be sent of one session, and what is being sent.
//!
//! At most one send is in flight. What is sent meanwhile is collected, and goes out gathered when
//! it has completed. Small payloads are copied together into one buffer; shared ones, and
//! receive buffers, are queued as they are.
//!
//! What only a queue with something in it needs lies in a box of its own, a [`Queue`], which comes
//! from those that are kept for it and goes back there: an idle session has none.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::super::recycle::{self, KEPT_LIST_ENTRIES, Shelf};
use crate::{Completion, SendBuffer, StreamSocket};

/// The buffer that payloads are copied together in is closed when it holds this much.
const OPEN_BUFFER_BYTES: usize = 64 * 1024;
/// One send takes at most about this much, so that its completion tells of progress.
const BATCH_BYTES: usize = 64 * 1024;
/// One send gathers at most so many buffers.
const BATCH_BUFFERS: usize = 64;

pub(super) struct Outgoing {
    /// `None` once the connection is closed here.
    pub(super) stream: Option<StreamSocket>,
    /// `None` where nothing waits and nothing of the queue is in flight.
    queue: Option<Box<Queue>>,
    pub(super) in_flight: bool,
    /// No further send is taken.
    pub(super) refusing: bool,
    /// Packets of sends that were accounted for: the mailbox learns of each a moment later.
    pub(super) completed_sends: u16,
    /// How often the queue has risen over the high mark and fallen to the low one: an odd number
    /// while it is over the mark.
    pub(super) crossings: u32,
    /// When bytes were last taken by the system, or began to wait for it (the runtime's clock).
    pub(super) progress_ms: u64,
    pub(super) sent_bytes: u64,
    pub(super) sent_frames: u64,
}

/// Bytes on their way out, and since when.
#[derive(Default)]
struct Queue {
    /// Behind `closed`: payloads that were copied together.
    open: Vec<u8>,
    closed: VecDeque<SendBuffer>,
    /// Bytes that wait or are in flight.
    queued_bytes: usize,
    /// Bytes of the send in flight.
    flight_bytes: usize,
    /// When it began to fill (the runtime's clock).
    began_ms: u64,
    /// Bytes that the system has taken since.
    moved_bytes: u64,
}

thread_local! {
    // Boxed, because what is kept is what a session points to.
    #[allow(clippy::vec_box)]
    static LOCAL_QUEUES: RefCell<Vec<Box<Queue>>> = const { RefCell::new(Vec::new()) };
}

static QUEUES: Shelf<Box<Queue>> = Shelf::new(&LOCAL_QUEUES);

impl Queue {
    /// Keeps the box, in which nothing waits any more, for the next one.
    fn keep(mut self: Box<Self>) {
        debug_assert!(self.closed.is_empty() && self.open.is_empty());
        let closed = std::mem::take(&mut self.closed);
        if closed.capacity() <= KEPT_LIST_ENTRIES {
            *self = Self { closed, ..Self::default() };
            QUEUES.keep(self);
        }
    }

    /// Appends bytes by copying them.
    fn copy(&mut self, mut bytes: &[u8]) {
        self.queued_bytes += bytes.len();
        while !bytes.is_empty() {
            if self.open.len() >= OPEN_BUFFER_BYTES {
                self.close_open();
            }
            if self.open.capacity() == 0 {
                self.open = recycle::buffer();
            }
            let count = bytes.len().min(OPEN_BUFFER_BYTES - self.open.len());
            self.open.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
        }
    }

    /// Appends a buffer as it is.
    fn take(&mut self, buffer: SendBuffer) {
        self.close_open();
        self.queued_bytes += buffer.len();
        self.closed.push_back(buffer);
    }

    fn close_open(&mut self) {
        if !self.open.is_empty() {
            self.closed.push_back(SendBuffer::Owned(std::mem::take(&mut self.open)));
        }
    }

    /// Takes what goes out next.
    fn take_batch(&mut self) -> Batch {
        if self.closed.is_empty() {
            let buffer = std::mem::take(&mut self.open);
            self.flight_bytes = buffer.len();
            return Batch::One(SendBuffer::Owned(buffer));
        }
        self.close_open();
        let first = self.take_up_to(BATCH_BYTES);
        self.flight_bytes = first.len();
        if self.closed.is_empty() || self.flight_bytes >= BATCH_BYTES {
            return Batch::One(first);
        }
        let mut list = recycle::list();
        list.push(first);
        while self.flight_bytes < BATCH_BYTES
            && list.len() < BATCH_BUFFERS
            && !self.closed.is_empty()
        {
            let buffer = self.take_up_to(BATCH_BYTES - self.flight_bytes);
            self.flight_bytes += buffer.len();
            list.push(buffer);
        }
        if planted!(GatheredForgotten) && list.len() > 2 {
            list.pop();
        }
        Batch::Many(list)
    }

    /// The first buffer, or its first `most_bytes` where it can be divided.
    fn take_up_to(&mut self, most_bytes: usize) -> SendBuffer {
        match self.closed.front_mut() {
            Some(SendBuffer::Shared(bytes)) if bytes.len() > most_bytes => {
                SendBuffer::Shared(bytes.split_to(most_bytes))
            }
            _ => self.closed.pop_front().expect("the caller looked"),
        }
    }
}

/// What was to be sent and is not. It must go without a lock of the session: a payload may have an
/// owner of the program's (`Bytes::from_owner`), who calls the session when it is dropped.
#[derive(Default)]
pub(super) struct Discarded(VecDeque<SendBuffer>);

/// What one send takes.
pub(super) enum Batch {
    One(SendBuffer),
    Many(Vec<SendBuffer>),
}

impl Outgoing {
    pub(super) fn new(stream: StreamSocket) -> Self {
        Self {
            stream: Some(stream),
            queue: None,
            in_flight: false,
            refusing: false,
            completed_sends: 0,
            crossings: 0,
            progress_ms: 0,
            sent_bytes: 0,
            sent_frames: 0,
        }
    }

    /// Whether the queue was over the high mark, and not at the low one since.
    pub(super) fn is_over_mark(&self) -> bool {
        self.crossings % 2 == 1
    }

    /// Bytes that wait or are in flight.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.queued_bytes)
    }

    /// Since when there is a queue, and how many bytes of it the system has taken since; `None`
    /// where there is none.
    pub(super) fn moved(&self) -> Option<(u64, u64)> {
        self.queue.as_ref().map(|queue| (queue.began_ms, queue.moved_bytes))
    }

    /// A queue begins that was empty.
    pub(super) fn begin_queue(&mut self, now_ms: u64) {
        self.progress_ms = now_ms;
        self.open_queue().began_ms = now_ms;
    }

    fn open_queue(&mut self) -> &mut Queue {
        self.queue.get_or_insert_with(|| QUEUES.take().unwrap_or_default())
    }

    /// Queues bytes by copying them.
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.open_queue().copy(bytes);
        }
    }

    /// Queues a buffer as it is, without a copy.
    pub(super) fn take(&mut self, buffer: SendBuffer) {
        if !buffer.is_empty() {
            self.open_queue().take(buffer);
        }
    }

    /// Whether something waits that is not in flight.
    pub(super) fn is_waiting(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.queued_bytes > queue.flight_bytes)
    }

    /// Takes what goes out next, at least one byte. It is in flight from now on.
    pub(super) fn take_batch(&mut self) -> Batch {
        debug_assert!(!self.in_flight && self.is_waiting());
        self.in_flight = true;
        self.open_queue().take_batch()
    }

    /// Something is in flight from now on that is none of the queue.
    pub(super) fn begin_flight(&mut self) {
        debug_assert!(!self.in_flight);
        self.in_flight = true;
    }

    /// The send in flight has ended, well or not; `moved_bytes` of it went out.
    pub(super) fn flight_ended(&mut self, moved_bytes: usize) {
        debug_assert!(self.in_flight);
        self.in_flight = false;
        self.sent_bytes += moved_bytes as u64;
        if let Some(queue) = &mut self.queue {
            queue.moved_bytes += moved_bytes as u64;
            queue.queued_bytes -= std::mem::take(&mut queue.flight_bytes);
        }
        self.close_queue();
    }

    /// Takes out what waits, to be dropped without the lock. What is in flight stays.
    pub(super) fn discard(&mut self, discarded: &mut Discarded) {
        if let Some(queue) = &mut self.queue {
            recycle::keep_buffer(std::mem::take(&mut queue.open));
            discarded.0.append(&mut queue.closed);
            queue.queued_bytes = queue.flight_bytes;
        }
        self.close_queue();
    }

    /// Gives up an empty queue.
    fn close_queue(&mut self) {
        if let Some(queue) = self.queue.take_if(|queue| queue.queued_bytes == 0) {
            queue.keep();
        }
    }
}

/// Keeps what a finished send brings back.
pub(super) fn reclaim(completion: Completion) {
    let Some(mut operation) = completion.into_operation() else { return };
    if let Some(buffer) = operation.take_send_buffer() {
        recycle::keep_sent(buffer);
    }
    if let Some(list) = operation.take_send_buffers() {
        recycle::keep_list(list);
    }
    recycle::keep_operation(operation);
}
