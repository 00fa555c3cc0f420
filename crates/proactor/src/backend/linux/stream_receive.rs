//! Receiving on a stream, in both ways: a driver hands over buffers that the kernel filled, or the
//! socket is read when it is ready.

use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use super::driver::Driver;
use super::errno::error_of;
use super::queue::LateQueue;
use super::sink::Sink;
use super::socket::{Context, Role, Socket, State};
use super::stream::{Connection, End, Receiving, Stream};
use super::syscall;
use crate::buffer::{Pool, PoolBuffer};
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationKind, Payload};
use crate::port::Completion;

/// What one read of a ready socket gave.
enum Read {
    /// So many bytes; the second is how many there was room for.
    Bytes(usize, usize),
    End(End),
    /// The system had no memory for it; the connection is as it was.
    Refused(Error),
    /// Nothing there.
    Drained,
    /// No buffer to read into.
    Starved,
}

impl Stream {
    /// Queues the packet of a receive that ended, a continuous one with its place in the stream.
    pub(crate) fn finish_receive<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        operation: Operation,
        bytes: usize,
        error: Option<Error>,
        sink: &mut Sink<'_>,
    ) {
        let continuous = operation.kind() == OperationKind::RecvContinuous;
        let mut packet = Completion::finished(socket.key, operation, bytes, error);
        if continuous {
            packet.sequence = self.sequence;
        }
        sink.push(packet);
    }

    /// Gives what was read ahead to the receives that wait, and tells them of the end.
    fn satisfy<D: Driver>(&mut self, socket: &Arc<Socket<D>>, sink: &mut Sink<'_>) {
        while let Some(front) = self.receives.front_mut() {
            if self.ahead.is_empty() {
                let Some(end) = self.end else { return };
                self.finish_at_end(socket, end, sink);
                continue;
            }
            if front.kind() == OperationKind::RecvContinuous {
                let receive = front.id();
                if let Some(buffer) = self.ahead.pop_front() {
                    self.push_chunk(socket, receive, buffer, sink);
                }
                continue;
            }
            let bytes = copy_ahead(socket, &mut self.ahead, &mut front.inner.payload);
            if let Some(operation) = self.receives.pop_front() {
                self.finish_receive(socket, operation, bytes, None, sink);
            }
        }
    }

    /// The oldest receive fails for want of memory, and no other.
    fn refuse_receive<D: Driver>(&mut self, socket: &Socket<D>, error: Error, sink: &mut Sink<'_>) {
        let Some(operation) = self.receives.pop_front() else { return };
        let raw = error.raw_os_error().unwrap_or(0);
        let error = Error::with_raw(operation.kind(), error.kind(), raw);
        self.finish_receive(socket, operation, 0, Some(error), sink);
    }

    fn finish_at_end<D: Driver>(&mut self, socket: &Socket<D>, end: End, sink: &mut Sink<'_>) {
        let Some(operation) = self.receives.pop_front() else { return };
        let error = match end {
            End::Orderly => None,
            End::Failed(error) => Some(Error::with_raw(
                operation.kind(),
                error.kind(),
                error.raw_os_error().unwrap_or(0),
            )),
        };
        self.finish_receive(socket, operation, 0, error, sink);
    }

    fn push_chunk<D: Driver>(
        &mut self,
        socket: &Arc<Socket<D>>,
        receive: crate::operation::OperationId,
        mut buffer: PoolBuffer,
        sink: &mut Sink<'_>,
    ) {
        buffer.set_consumer(Arc::clone(socket) as _);
        sink.push(Completion::chunk(socket.key, receive, self.sequence, buffer));
        self.sequence += 1;
    }

    /// Whether the kernel should be asked for more.
    fn wants_bytes(&self) -> bool {
        self.end.is_none() && !self.receives.is_empty()
    }
}

/// Fills a receive's buffers from what was read ahead, in order, and returns how many bytes.
fn copy_ahead<D: Driver>(
    socket: &Socket<D>,
    ahead: &mut LateQueue<PoolBuffer>,
    payload: &mut Payload,
) -> usize {
    let mut total = 0;
    for buffer in targets(payload) {
        while let Some(front) = ahead.front_mut() {
            let room = buffer.capacity() - buffer.len();
            let count = room.min(front.len());
            buffer.extend_from_slice(&front[..count]);
            front.advance(count);
            total += count;
            if !front.is_empty() {
                break;
            }
            let held_bytes = front.capacity();
            ahead.pop_front();
            // The pause, if one ends here, is noticed by whoever called: it serves the socket.
            socket.release_quietly(held_bytes);
        }
    }
    total
}

fn targets(payload: &mut Payload) -> &mut [Vec<u8>] {
    match payload {
        Payload::Buffer(buffer) => std::slice::from_mut(buffer),
        Payload::Buffers(buffers) => buffers,
        _ => &mut [],
    }
}

impl<D: Driver> Socket<D> {
    pub(crate) fn start_receive(
        self: &Arc<Self>,
        state: &mut State<D>,
        operation: Operation,
        context: &mut Context<'_, '_, D>,
    ) -> Result<(), Rejected> {
        let Role::Stream(stream) = &mut state.role else {
            unreachable!("the caller matched the role")
        };
        if let Some(kind) = stream.refuses_receive(operation.kind()) {
            return Err(Rejected::new(Error::new(operation.kind(), kind), operation));
        }
        if operation.kind() == OperationKind::RecvContinuous {
            stream.sequence = 0;
        }
        stream.receives.push_back(operation);
        self.continue_receiving(state, context);
        Ok(())
    }

    /// Satisfies receives from what is there, and sees to it that more comes.
    pub(crate) fn continue_receiving(
        self: &Arc<Self>,
        state: &mut State<D>,
        context: &mut Context<'_, '_, D>,
    ) {
        let Role::Stream(stream) = &mut state.role else { return };
        stream.satisfy(self, context.sink);
        if D::STREAMS_BY_READINESS {
            self.read_ready(stream, context);
            return;
        }
        if let Receiving::Unwanted(worker) = stream.receiving {
            match stream.wants_bytes() {
                true => stream.receiving = Receiving::Armed(worker),
                false => self.end_receiving(stream, worker, context),
            }
        }
        if !stream.wants_bytes() || stream.receiving != Receiving::No || self.is_paused() {
            return;
        }
        if let Some(driver) = context.home_driver(state.home.as_ref()) {
            stream.receiving = Receiving::Queued;
            driver.queue_receive(self);
        } else {
            self.attend(state);
        }
    }

    /// The driver's receive delivered a buffer (`more`: and goes on).
    pub(crate) fn received(
        self: &Arc<Self>,
        buffer: PoolBuffer,
        more: bool,
        context: &mut Context<'_, '_, D>,
    ) {
        let mut state = self.lock();
        let state = &mut *state;
        let held_bytes = buffer.capacity();
        let Role::Stream(stream) = &mut state.role else { return };
        if !more {
            stream.receiving = Receiving::No;
        }
        if state.closed {
            return;
        }
        let within_window = self.hold(held_bytes, buffer.pool());
        match stream.receives.front() {
            // The usual case, without a detour through the queue.
            Some(front)
                if front.kind() == OperationKind::RecvContinuous && stream.ahead.is_empty() =>
            {
                let receive = front.id();
                stream.push_chunk(self, receive, buffer, context.sink);
            }
            _ => {
                stream.ahead.push_back(buffer);
                stream.satisfy(self, context.sink);
            }
        }
        if !within_window {
            self.stop_receiving(state, context);
        } else if !more {
            self.continue_receiving(state, context);
        }
    }

    /// The driver's receive ended without a buffer, for good (`Some`) or to be asked again.
    pub(crate) fn receive_ended(
        self: &Arc<Self>,
        end: Option<End>,
        context: &mut Context<'_, '_, D>,
    ) {
        let mut state = self.lock();
        let closed = state.closed;
        let Role::Stream(stream) = &mut state.role else { return };
        stream.receiving = Receiving::No;
        if closed {
            return;
        }
        if let Some(end) = end {
            stream.set_end(end);
        }
        self.continue_receiving(&mut state, context);
    }

    /// The driver's receive failed.
    pub(crate) fn receive_failed(self: &Arc<Self>, errno: i32, context: &mut Context<'_, '_, D>) {
        let error = error_of(OperationKind::Recv, errno);
        if error.kind() != ErrorKind::InsufficientResources {
            return self.receive_ended(Some(End::Failed(error)), context);
        }
        let mut state = self.lock();
        if let Role::Stream(stream) = &mut state.role {
            stream.refuse_receive(self, error, context.sink);
        }
        drop(state);
        self.receive_ended(None, context);
    }

    /// The driver's receive found no buffer: it is asked again when there is one.
    pub(crate) fn receive_starved(self: &Arc<Self>) {
        let mut state = self.lock();
        if let Role::Stream(stream) = &mut state.role {
            stream.receiving = Receiving::No;
            self.engine.starve(Arc::clone(self));
        }
    }

    /// Reading has run too far ahead: asks the driver to stop, and for less from now on.
    fn stop_receiving(self: &Arc<Self>, state: &mut State<D>, context: &mut Context<'_, '_, D>) {
        let Role::Stream(stream) = &mut state.role else { return };
        stream.one_at_a_time = true;
        if let Receiving::Armed(worker) = stream.receiving
            && let Some(driver) = context.driver_of(worker as usize)
        {
            stream.receiving = Receiving::Stopping;
            driver.queue_stop(self);
        }
    }

    /// The driver is about to ask the kernel, as worker `worker`. `None`: nothing is wanted any
    /// more; else whether to ask for one buffer only.
    pub(crate) fn begin_receive(&self, worker: usize) -> Option<bool> {
        let mut state = self.lock();
        let closed = state.closed;
        let Role::Stream(stream) = &mut state.role else { return None };
        if closed || !stream.wants_bytes() || self.is_paused() {
            stream.receiving = Receiving::No;
            return None;
        }
        stream.receiving = Receiving::Armed(worker as u32);
        Some(stream.one_at_a_time)
    }

    /// The driver goes and has not asked the kernel.
    pub(crate) fn receive_not_begun(&self) {
        if let Role::Stream(stream) = &mut self.lock().role {
            stream.receiving = Receiving::No;
        }
    }

    /// The socket is closed: makes the kernel let go of it, and tells the peer at once where the
    /// descriptor stays open for a while.
    pub(crate) fn stop_reading(&self, state: &mut State<D>, context: &mut Context<'_, '_, D>) {
        let Role::Stream(stream) = &mut state.role else { return };
        let stays_open = stream.receiving != Receiving::No
            || stream.sending
            || self.is_attending()
            || self.holds_bytes();
        if stays_open && stream.connection == Connection::Established {
            // Others hold the socket: a request in the kernel, an inbox, buffers in the user's
            // hands. An abortive close (rule 86) resets, any other ends in order.
            if self.socket.linger().is_ok_and(|linger| linger == Some(Duration::ZERO)) {
                syscall::dissolve(self.raw_fd());
            } else {
                let _ = self.socket.shutdown(Shutdown::Both);
            }
            stream.connection = Connection::None;
        }
        let (Receiving::Armed(worker) | Receiving::Unwanted(worker)) = stream.receiving else {
            return;
        };
        self.end_receiving(stream, worker, context);
        if stream.receiving != Receiving::Stopping {
            self.attend(state);
        }
    }

    /// After a cancel: where no receive is left the kernel stops reading, so that what comes from now
    /// on stays with it, and the peer has to wait.
    pub(crate) fn stop_unwanted(&self, state: &mut State<D>, context: &mut Context<'_, '_, D>) {
        let Role::Stream(stream) = &mut state.role else { return };
        let Receiving::Armed(worker) = stream.receiving else { return };
        if stream.receives.is_empty() {
            self.end_receiving(stream, worker, context);
            if stream.receiving != Receiving::Stopping {
                stream.receiving = Receiving::Unwanted(worker);
                self.attend(state);
            }
        }
    }

    /// Cancels the receive that worker `worker` has in the kernel, where that is the one that acts.
    fn end_receiving(&self, stream: &mut Stream, worker: u32, context: &mut Context<'_, '_, D>) {
        if let (Some(driver), Some(shared)) = (context.driver_of(worker as usize), self.shared()) {
            stream.receiving = Receiving::Stopping;
            driver.queue_stop(&shared);
        }
    }

    /// A rescuer found the socket readable while its home is stuck: reads it without its driver.
    /// The home's receive sees an end later, too, and finds it known. Returns whether a packet came
    /// of it.
    pub(crate) fn read_for_home(self: &Arc<Self>, sink: &mut Sink<'_>) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        let Role::Stream(stream) = &mut state.role else { return false };
        if !stream.wants_bytes() || !stream.ahead.is_empty() || self.is_paused() {
            return false;
        }
        // Not its home's pool: that one is all in the kernel's hands.
        match self.read_into_pool(&self.engine.pool) {
            Ok(buffer) => {
                self.hold(buffer.capacity(), buffer.pool());
                stream.ahead.push_back(buffer);
            }
            Err(Read::End(end)) => stream.set_end(end),
            Err(_) => return false,
        }
        stream.satisfy(self, sink);
        true
    }

    fn read_into_pool(&self, pool: &Arc<Pool>) -> Result<PoolBuffer, Read> {
        let Some(index) = pool.take() else { return Err(Read::Starved) };
        // SAFETY: the index was taken from the pool just now.
        let mut buffer = unsafe { pool.lend(index, pool.buffer_bytes(), None) };
        match read_once(syscall::recv(self.raw_fd(), buffer.as_uninit(), 0), buffer.len()) {
            Read::Bytes(count, _) => {
                buffer.truncate(count);
                Ok(buffer)
            }
            other => Err(other),
        }
    }

    /// Reads a ready socket into the receives that wait, until it is drained, they are satisfied,
    /// or too much was read ahead.
    fn read_ready(self: &Arc<Self>, stream: &mut Stream, context: &mut Context<'_, '_, D>) {
        while stream.readable && stream.wants_bytes() && !self.is_paused() {
            let Some(front) = stream.receives.front_mut() else { return };
            let read = if front.kind() == OperationKind::RecvContinuous {
                let receive = front.id();
                let pool = match &context.driver {
                    Some(driver) => driver.pool(),
                    None => &self.engine.pool,
                };
                match self.read_into_pool(pool) {
                    Ok(buffer) => {
                        let (count, room) = (buffer.len(), buffer.capacity());
                        self.hold(room, pool);
                        stream.push_chunk(self, receive, buffer, context.sink);
                        Read::Bytes(count, room)
                    }
                    Err(read) => read,
                }
            } else {
                self.read_into_operation(stream, context.sink)
            };
            match read {
                // Less than there was room for: the socket is drained, unless its end is due.
                Read::Bytes(count, room) => stream.readable = stream.ending || count == room,
                Read::End(end) => {
                    stream.set_end(end);
                    stream.satisfy(self, context.sink);
                }
                Read::Refused(error) => stream.refuse_receive(self, error, context.sink),
                Read::Drained => stream.readable = false,
                Read::Starved => {
                    self.engine.starve(Arc::clone(self));
                    return;
                }
            }
        }
    }

    fn read_into_operation(&self, stream: &mut Stream, sink: &mut Sink<'_>) -> Read {
        let Some(mut operation) = stream.receives.pop_front() else { return Read::Drained };
        let buffers = targets(&mut operation.inner.payload);
        let room: usize = buffers.iter().map(Vec::capacity).sum();
        let read = match buffers {
            _ if room == 0 => {
                let mut byte = [std::mem::MaybeUninit::uninit()];
                let peeked = syscall::recv(self.raw_fd(), &mut byte, libc::MSG_PEEK);
                match read_once(peeked, 1) {
                    // Consumes nothing (rule 60).
                    Read::Bytes(..) => Read::Bytes(0, 0),
                    other => other,
                }
            }
            [buffer] => {
                let received = syscall::recv(self.raw_fd(), buffer.spare_capacity_mut(), 0);
                if let Ok(count) = received {
                    // SAFETY: the kernel wrote `count` bytes from the start of the buffer, which
                    // was cleared when the receive was started.
                    unsafe { buffer.set_len(count) };
                }
                read_once(received, room)
            }
            several => read_once(syscall::recv_scatter(self.raw_fd(), several), room),
        };
        match read {
            Read::Bytes(count, _) => {
                stream.finish_receive(self, operation, count, None, sink);
            }
            _ => stream.receives.push_front(operation),
        }
        read
    }
}

fn read_once(outcome: Result<usize, i32>, room: usize) -> Read {
    match outcome {
        Ok(0) => Read::End(End::Orderly),
        Ok(count) => Read::Bytes(count, room),
        Err(libc::EAGAIN) => Read::Drained,
        Err(errno) => match error_of(OperationKind::Recv, errno) {
            error if error.kind() == ErrorKind::InsufficientResources => Read::Refused(error),
            error => Read::End(End::Failed(error)),
        },
    }
}
