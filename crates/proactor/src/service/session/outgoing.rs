//! What waits to be sent of one session, and what is being sent.
//!
//! At most one send is in flight. What is sent meanwhile is collected, and goes out gathered when
//! it has completed. Small payloads are copied together into one buffer; large and shared ones are
//! queued by reference.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::recycle;
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
    /// Behind `closed`: payloads that were copied together.
    open: Vec<u8>,
    closed: VecDeque<SendBuffer>,
    /// Bytes that wait or are in flight.
    pub(super) queued_bytes: usize,
    /// Bytes of the send in flight.
    flight_bytes: usize,
    pub(super) in_flight: bool,
    /// No further send is taken.
    pub(super) refusing: bool,
    /// How often the queue has risen over the high mark and fallen to the low one: an odd number
    /// while it is over the mark.
    pub(super) crossings: u32,
    /// When a queue that was empty began to fill (the runtime's clock).
    pub(super) began_ms: u64,
    /// When bytes were last taken by the system.
    pub(super) progress_ms: u64,
    /// Bytes that the system has taken since the queue was last empty.
    pub(super) moved_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) sent_frames: u64,
}

/// What one send takes.
pub(super) enum Batch {
    One(SendBuffer),
    Many(Vec<SendBuffer>),
}

impl Outgoing {
    pub(super) fn new(stream: StreamSocket) -> Self {
        Self {
            stream: Some(stream),
            open: Vec::new(),
            closed: VecDeque::new(),
            queued_bytes: 0,
            flight_bytes: 0,
            in_flight: false,
            refusing: false,
            crossings: 0,
            began_ms: 0,
            progress_ms: 0,
            moved_bytes: 0,
            sent_bytes: 0,
            sent_frames: 0,
        }
    }

    /// Whether the queue was over the high mark, and not at the low one since.
    pub(super) fn is_over_mark(&self) -> bool {
        self.crossings % 2 == 1
    }

    /// Queues bytes by copying them.
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.open.len() >= OPEN_BUFFER_BYTES {
                self.close_open();
            }
            if self.open.capacity() == 0 {
                self.open = recycle::buffer();
            }
            let count = rest.len().min(OPEN_BUFFER_BYTES - self.open.len());
            self.open.extend_from_slice(&rest[..count]);
            rest = &rest[count..];
        }
        self.queued_bytes += bytes.len();
    }

    /// Queues bytes by reference.
    pub(super) fn share(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.close_open();
        self.queued_bytes += bytes.len();
        self.push(SendBuffer::Shared(bytes));
    }

    fn close_open(&mut self) {
        if !self.open.is_empty() {
            let buffer = std::mem::take(&mut self.open);
            self.push(SendBuffer::Owned(buffer));
        }
    }

    fn push(&mut self, buffer: SendBuffer) {
        if self.closed.capacity() == 0 {
            self.closed = recycle::queue();
        }
        self.closed.push_back(buffer);
    }

    /// Whether something waits that is not in flight.
    pub(super) fn is_waiting(&self) -> bool {
        self.queued_bytes > self.flight_bytes
    }

    /// Takes what goes out next, at least one byte. It is in flight from now on.
    pub(super) fn take_batch(&mut self) -> Batch {
        debug_assert!(!self.in_flight && self.is_waiting());
        self.in_flight = true;
        if self.closed.is_empty() {
            let buffer = std::mem::take(&mut self.open);
            self.flight_bytes = buffer.len();
            return Batch::One(SendBuffer::Owned(buffer));
        }
        self.close_open();
        let first = self.take_up_to(BATCH_BYTES);
        self.flight_bytes = first.len();
        if self.closed.is_empty() || self.flight_bytes >= BATCH_BYTES {
            self.give_memory_back();
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
        self.give_memory_back();
        Batch::Many(list)
    }

    /// Something is in flight from now on that is none of the queue.
    pub(super) fn begin_flight(&mut self) {
        debug_assert!(!self.in_flight);
        self.in_flight = true;
        self.flight_bytes = 0;
    }

    /// The first queued buffer, or its first `most_bytes` where it can be divided.
    fn take_up_to(&mut self, most_bytes: usize) -> SendBuffer {
        match self.closed.front_mut() {
            Some(SendBuffer::Shared(bytes)) if bytes.len() > most_bytes => {
                SendBuffer::Shared(bytes.split_to(most_bytes))
            }
            _ => self.closed.pop_front().expect("the caller looked"),
        }
    }

    fn give_memory_back(&mut self) {
        if self.closed.is_empty() {
            recycle::keep_queue(std::mem::take(&mut self.closed));
        }
    }

    /// The send in flight has ended, well or not.
    pub(super) fn flight_ended(&mut self) {
        debug_assert!(self.in_flight);
        self.in_flight = false;
        self.queued_bytes -= self.flight_bytes;
        self.flight_bytes = 0;
    }

    /// Drops what waits. What is in flight stays.
    pub(super) fn discard(&mut self) {
        recycle::keep_buffer(std::mem::take(&mut self.open));
        self.closed = VecDeque::new();
        self.queued_bytes = self.flight_bytes;
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
