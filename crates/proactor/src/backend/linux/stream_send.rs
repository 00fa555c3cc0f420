//! Sending on a stream: operations go out in order, gathered, and each completes once and whole.

use std::cell::Cell;
use std::net::Shutdown;
use std::sync::Arc;

use super::driver::Driver;
use super::errno::error_of;
use super::sink::Sink;
use super::socket::{Context, Role, Socket, State};
use super::stream::{Connection, End, Stream};
use super::syscall::{self, GATHER_LIMIT, IoSlice};
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationKind, Payload};

thread_local! {
    /// A list for gathered sends, empty between them: so that one allocates nothing.
    static SLICES: Cell<Vec<IoSlice>> = const { Cell::new(Vec::new()) };
}

fn length(operation: &Operation) -> usize {
    match &operation.inner.payload {
        Payload::Data(buffer) => buffer.len(),
        Payload::Gather(buffers) => buffers.iter().map(|buffer| buffer.len()).sum(),
        _ => 0,
    }
}

/// Adds what of `operation` is not sent yet to `slices`, as far as there is room.
fn gather(operation: &Operation, slices: &mut Vec<IoSlice>) {
    let mut skip = operation.inner.done_bytes;
    let mut add = |bytes: &[u8]| {
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        if skipped < bytes.len() && slices.len() < GATHER_LIMIT {
            slices.push(syscall::io_slice(&bytes[skipped..]));
        }
    };
    match &operation.inner.payload {
        Payload::Data(buffer) => add(buffer.as_slice()),
        Payload::Gather(buffers) => buffers.iter().for_each(|buffer| add(buffer.as_slice())),
        _ => {}
    }
}

impl Stream {
    /// Collects what is to be sent next. `slices` is empty afterwards where there is nothing.
    ///
    /// The slices point into the operations' buffers: valid while those stay in the queue.
    pub(crate) fn gather_sends(&self, slices: &mut Vec<IoSlice>) -> usize {
        slices.clear();
        let mut operations = 0;
        for operation in self.sends.iter() {
            if operation.kind() != OperationKind::Send || slices.len() >= GATHER_LIMIT {
                break;
            }
            gather(operation, slices);
            operations += 1;
        }
        operations
    }

    /// `count` more bytes are out: finishes the sends that are whole.
    fn sent<D: Driver>(&mut self, socket: &Socket<D>, mut count: usize, sink: &mut Sink<'_>) {
        while let Some(front) = self.sends.front_mut() {
            if front.kind() != OperationKind::Send {
                break;
            }
            let left = length(front) - front.inner.done_bytes;
            let step = left.min(count);
            front.inner.done_bytes += step;
            count -= step;
            if step < left {
                break;
            }
            if let Some(operation) = self.sends.pop_front() {
                let bytes = operation.inner.done_bytes;
                socket.finish(sink, operation, bytes, None);
            }
        }
        assert_eq!(count, 0, "the kernel sent more than it was given");
    }

    /// Finishes empty sends and ends of the stream at the head of the queue.
    fn pass_empty<D: Driver>(&mut self, socket: &Socket<D>, sink: &mut Sink<'_>) {
        while let Some(front) = self.sends.front() {
            let error = match front.kind() {
                OperationKind::Send if length(front) == 0 => None,
                OperationKind::Disconnect => match socket.socket.shutdown(Shutdown::Write) {
                    Ok(()) => None,
                    Err(error) => {
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        let kind = if errno == libc::ENOTCONN {
                            ErrorKind::ConnectionReset
                        } else {
                            super::errno::kind_of(errno)
                        };
                        Some(Error::with_raw(OperationKind::Disconnect, kind, errno))
                    }
                },
                _ => break,
            };
            if let Some(operation) = self.sends.pop_front() {
                socket.finish(sink, operation, 0, error);
            }
        }
    }

    /// The connection cannot send any more: every queued send fails, and later ones are refused.
    ///
    /// Also where it is for want of memory only: a send that was started before the program could
    /// know of the failure would leave a hole in the stream.
    fn fail_sends<D: Driver>(&mut self, socket: &Socket<D>, errno: i32, sink: &mut Sink<'_>) {
        self.send_error = Some(error_of(OperationKind::Send, errno));
        if errno == libc::ECONNRESET {
            // Linux tells of a reset once: the receives have to hear of it from here, or they
            // would take it for an orderly end.
            self.reset = true;
        }
        self.end_behind_sends = false;
        while let Some(operation) = self.sends.pop_front() {
            let bytes = operation.inner.done_bytes;
            let error = error_of(operation.kind(), errno);
            socket.finish(sink, operation, bytes, Some(error));
        }
    }
}

impl<D: Driver> Socket<D> {
    pub(crate) fn start_send(
        self: &Arc<Self>,
        state: &mut State<D>,
        operation: Operation,
        context: &mut Context<'_, '_, D>,
    ) -> Result<(), Rejected> {
        let Role::Stream(stream) = &mut state.role else {
            unreachable!("the caller matched the role")
        };
        let refused = match (stream.connection, stream.shut_send, &stream.send_error) {
            (Connection::None | Connection::Connecting, _, _) => Some(ErrorKind::NotConnected),
            (_, true, _) => Some(ErrorKind::ShutDown),
            (_, _, Some(error)) => Some(error.kind()),
            _ => match stream.end {
                Some(End::Failed(error)) if error.kind() == ErrorKind::ConnectionReset => {
                    Some(ErrorKind::ConnectionReset)
                }
                _ => None,
            },
        };
        if let Some(kind) = refused {
            return Err(Rejected::new(Error::new(operation.kind(), kind), operation));
        }
        stream.shut_send = operation.kind() == OperationKind::Disconnect;
        stream.sends.push_back(operation);
        self.continue_sending(state, context);
        Ok(())
    }

    /// Sends what is queued: through the driver on the socket's home, else by a system call.
    pub(crate) fn continue_sending(
        self: &Arc<Self>,
        state: &mut State<D>,
        context: &mut Context<'_, '_, D>,
    ) {
        let Role::Stream(stream) = &mut state.role else { return };
        if stream.sending || !stream.writable || stream.sends.is_empty() {
            return;
        }
        if !D::STREAMS_BY_READINESS
            && let Some(driver) = context.home_driver(state.home.as_ref())
        {
            stream.sending = true;
            driver.queue_send(self);
            return;
        }
        self.send_now(state, context.sink);
    }

    /// Sends by system calls until the queue is empty or the socket takes no more.
    pub(crate) fn send_now(&self, state: &mut State<D>, sink: &mut Sink<'_>) {
        let Role::Stream(stream) = &mut state.role else { return };
        loop {
            stream.pass_empty(self, sink);
            if stream.sends.is_empty() {
                let _ = stream.send_end(self);
                return;
            }
            // One buffer needs no list, and so no allocation.
            let outcome = match stream.sends.front() {
                Some(Operation { inner }) if stream.sends.len() == 1 => match &inner.payload {
                    Payload::Data(buffer) => {
                        let rest = &buffer.as_slice()[inner.done_bytes..];
                        // SAFETY: the buffer is borrowed for the call.
                        unsafe {
                            syscall::send_gather(self.raw_fd(), &[syscall::io_slice(rest)], None)
                        }
                    }
                    _ => self.send_gathered(stream),
                },
                _ => self.send_gathered(stream),
            };
            match outcome {
                Ok(count) => stream.sent(self, count, sink),
                Err(libc::EINTR) => {}
                Err(libc::EAGAIN) => {
                    self.wait_for_room(state, sink);
                    return;
                }
                Err(errno) => {
                    stream.fail_sends(self, errno, sink);
                    return;
                }
            }
        }
    }

    fn send_gathered(&self, stream: &Stream) -> Result<usize, i32> {
        // A thread that is ending has no list of its own any more.
        let mut slices = SLICES.try_with(Cell::take).unwrap_or_default();
        stream.gather_sends(&mut slices);
        // SAFETY: the operations stay in the queue, which is borrowed, for the call.
        let outcome = unsafe { syscall::send_gather(self.raw_fd(), &slices, None) };
        slices.clear();
        let _ = SLICES.try_with(|kept| kept.set(slices));
        outcome
    }

    /// The socket takes no more: its home's epoll set tells when it does again.
    pub(crate) fn wait_for_room(&self, state: &mut State<D>, sink: &mut Sink<'_>) {
        let Role::Stream(stream) = &mut state.role else { return };
        stream.writable = false;
        let interest = (libc::EPOLLOUT | libc::EPOLLET) as u32;
        if let Err(errno) = self.watch(state, interest)
            && let Role::Stream(stream) = &mut state.role
        {
            // Nobody would hear of room.
            stream.fail_sends(self, errno, sink);
        }
    }

    /// The driver is about to submit a send: collects its bytes and pins them. `false` where there
    /// is nothing to submit.
    pub(crate) fn pin_sends(&self, slices: &mut Vec<IoSlice>, sink: &mut Sink<'_>) -> bool {
        let mut state = self.lock();
        let Role::Stream(stream) = &mut state.role else { return false };
        stream.pass_empty(self, sink);
        if stream.sends.is_empty() {
            stream.sending = false;
            let _ = stream.send_end(self);
            return false;
        }
        stream.pinned = stream.gather_sends(slices) as u32;
        stream.pinned_bytes = slices.iter().map(|slice| slice.iov_len).sum();
        true
    }

    /// The driver goes, or another worker takes over, and the send was not submitted.
    pub(crate) fn send_not_begun(&self, sink: &mut Sink<'_>) {
        let mut state = self.lock();
        let closed = state.closed;
        let Role::Stream(stream) = &mut state.role else { return };
        stream.sending = false;
        stream.pinned = 0;
        if !closed {
            self.send_now(&mut state, sink);
        }
    }

    /// The driver's send has completed.
    pub(crate) fn send_completed(
        self: &Arc<Self>,
        outcome: Result<usize, i32>,
        context: &mut Context<'_, '_, D>,
    ) {
        let mut state = self.lock();
        let closed = state.closed;
        let Role::Stream(stream) = &mut state.role else { return };
        let wanted = stream.pinned_bytes;
        let pinned = std::mem::take(&mut stream.pinned);
        stream.sending = false;
        let before = stream.sends.len();
        if let Ok(count) = outcome {
            stream.sent(self, count, context.sink);
        }
        let left = (pinned as usize).saturating_sub(before - stream.sends.len());
        self.end_cancelled(stream, left, context.sink);
        match outcome {
            _ if closed => self.end_unsent(&mut state, context.sink),
            Ok(count) if count < wanted => self.wait_for_room(&mut state, context.sink),
            Ok(_) => self.finish_sending(&mut state, context),
            Err(libc::EINTR) => self.continue_sending(&mut state, context),
            Err(libc::EAGAIN) => self.wait_for_room(&mut state, context.sink),
            Err(errno) => stream.fail_sends(self, errno, context.sink),
        }
    }

    /// Ends those of the first `pinned` sends that were cancelled while the kernel read them.
    fn end_cancelled(&self, stream: &mut Stream, pinned: usize, sink: &mut Sink<'_>) {
        let mut position = 0;
        for _ in 0..pinned {
            if stream.sends.get_mut(position).is_some_and(|send| !send.inner.cancelled) {
                position += 1;
            } else if let Some(operation) = stream.sends.remove(position) {
                self.finish_cancelled(sink, operation, ErrorKind::Cancelled);
            }
        }
    }

    fn finish_sending(self: &Arc<Self>, state: &mut State<D>, context: &mut Context<'_, '_, D>) {
        let Role::Stream(stream) = &mut state.role else { return };
        if stream.sends.is_empty() {
            let _ = stream.send_end(self);
        } else {
            self.continue_sending(state, context);
        }
    }

    /// The socket was closed while the kernel was reading these.
    fn end_unsent(&self, state: &mut State<D>, sink: &mut Sink<'_>) {
        let Role::Stream(stream) = &mut state.role else { return };
        for operation in stream.sends.drain_from(0) {
            self.finish_cancelled(sink, operation, ErrorKind::ConnectionAborted);
        }
    }
}
