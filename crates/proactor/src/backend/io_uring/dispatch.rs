//! Completions of a worker's ring, and whom they are for.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use io_uring::cqueue;

use super::RingDriver;
use crate::backend::linux::sink::Sink;
use crate::backend::linux::socket::{Context, Socket};
use crate::backend::linux::stream::End;

/// What a request was, in the low bits of its user data; the rest is the socket's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Receive = 0,
    Send = 1,
    Wake = 2,
    Epoll = 3,
    Cancel = 4,
    Alarm = 5,
}

const TAG_MASK: u64 = 7;

impl Tag {
    /// User data for a request about `socket`. Its address leaves the low bits free.
    pub(super) fn of(self, socket: &Arc<Socket<RingDriver>>) -> u64 {
        const { assert!(align_of::<Socket<RingDriver>>() > TAG_MASK as usize) };
        Arc::as_ptr(socket) as u64 | self as u64
    }

    /// User data for a request about no socket.
    pub(super) fn alone(self) -> u64 {
        self as u64
    }
}

/// A completion, copied out of the queue.
#[derive(Clone, Copy)]
pub(super) struct Event {
    user_data: u64,
    result: i32,
    flags: u32,
}

impl RingDriver {
    fn collect(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        events.extend(self.ring.completion().map(|entry| Event {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
        events
    }

    /// Acts on every completion that lies ready, as worker `worker` or, while that one is stuck or
    /// goes, as nobody. Returns how many there were.
    pub(super) fn dispatch(&mut self, worker: Option<usize>, sink: &mut Sink<'_>) -> usize {
        let events = self.collect();
        for event in &events {
            match event.user_data & TAG_MASK {
                tag if tag == Tag::Receive as u64 => self.received(event, worker, sink),
                tag if tag == Tag::Send as u64 => self.sent(event, worker, sink),
                tag if tag == Tag::Wake as u64 => self.polled(Tag::Wake, event, worker),
                tag if tag == Tag::Alarm as u64 => self.polled(Tag::Alarm, event, worker),
                tag if tag == Tag::Epoll as u64 => self.polled(Tag::Epoll, event, worker),
                _ => {}
            }
        }
        let count = events.len();
        self.events = events;
        count
    }

    fn received(&mut self, event: &Event, worker: Option<usize>, sink: &mut Sink<'_>) {
        let more = cqueue::more(event.flags);
        let address = (event.user_data & !TAG_MASK) as *const Socket<Self>;
        // SAFETY: the address of an Arc that was forgotten when the request was submitted, and is
        // taken back at its last completion only.
        let mut socket = ManuallyDrop::new(unsafe { Arc::from_raw(address) });
        let buffer = self.filled_buffer(event);
        if !more {
            self.armed -= 1;
        }
        let driver = worker.is_some().then_some(&mut *self);
        let mut context = Context::new(driver, worker, sink);
        match (buffer, event.result) {
            (Some(buffer), _) => socket.received(buffer, more, &mut context),
            // More will come, and this was nothing.
            (None, _) if more => {}
            (None, 0) => socket.receive_ended(Some(End::Orderly), &mut context),
            (None, result) => match -result {
                libc::ENOBUFS => {
                    socket.receive_starved();
                    self.exhausted = true;
                }
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                    socket.receive_ended(None, &mut context);
                }
                errno => socket.receive_failed(errno, &mut context),
            },
        }
        if !more {
            // SAFETY: the request is over, and nothing refers to its share of the socket.
            unsafe { ManuallyDrop::drop(&mut socket) };
        }
    }

    /// The buffer that a completion names, if it carries bytes; an empty one is given back.
    fn filled_buffer(&mut self, event: &Event) -> Option<crate::buffer::PoolBuffer> {
        let index = cqueue::buffer_select(event.flags)?;
        self.buffers.came_back();
        match usize::try_from(event.result) {
            // SAFETY: the kernel has given this buffer up with its completion.
            Ok(count) if count > 0 => Some(unsafe { self.buffers.pool().lend(index, count, None) }),
            _ => {
                self.buffers.pool().give_back(index);
                None
            }
        }
    }

    fn sent(&mut self, event: &Event, worker: Option<usize>, sink: &mut Sink<'_>) {
        let address = (event.user_data & !TAG_MASK) as *const Socket<Self>;
        // SAFETY: as in `received`; a send has exactly one completion.
        let socket = unsafe { Arc::from_raw(address) };
        let driver = worker.is_some().then_some(&mut *self);
        let mut context = Context::new(driver, worker, sink);
        let outcome = usize::try_from(event.result).map_err(|_| -event.result);
        socket.send_completed(outcome, &mut context);
    }

    fn polled(&mut self, tag: Tag, event: &Event, worker: Option<usize>) {
        if tag == Tag::Epoll {
            self.epoll_ready = true;
        }
        if !cqueue::more(event.flags) {
            self.armed -= 1;
            // A full completion queue ends a multishot. While the owner goes, that is the end; a
            // rescuer leaves it to the owner, which is told by a flag.
            if worker.is_some() {
                if let Err(error) = self.arm_poll(tag) {
                    tracing::warn!(%error, "a worker's poll is asked for again in a moment");
                    self.polls_ended.push(tag);
                }
            } else {
                self.polls_ended.push(tag);
            }
        }
    }

    /// Takes every completion and drops what it stood for: nobody is left to be told.
    pub(super) fn discard(&mut self) {
        let events = self.collect();
        for event in &events {
            let last = !cqueue::more(event.flags);
            let tag = event.user_data & TAG_MASK;
            drop(self.filled_buffer(event));
            if tag == Tag::Send as u64 || (tag == Tag::Receive as u64 && last) {
                let address = (event.user_data & !TAG_MASK) as *const Socket<Self>;
                // SAFETY: as in `received`.
                drop(unsafe { Arc::from_raw(address) });
            }
            if last && tag != Tag::Send as u64 && tag != Tag::Cancel as u64 {
                self.armed -= 1;
            }
        }
        self.events = events;
    }
}
