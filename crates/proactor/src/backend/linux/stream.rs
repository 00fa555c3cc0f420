//! A stream socket: its pending operations and what is known of the connection.
//!
//! This file holds the state and what does not move bytes: connect, shut down, cancel, end.
//! Receiving is in `stream_receive`, sending in `stream_send`.

use std::net::Shutdown;
use std::sync::Arc;

use super::driver::Driver;
use super::errno::{error_of, kind_of};
use super::queue::{LateQueue, ShortQueue};
use super::sink::Sink;
use super::socket::{Context, Role, Socket, State};
use super::syscall;
use crate::buffer::PoolBuffer;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind, Payload};

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    None,
    Connecting,
    Established,
}

/// How the stream of received bytes ended. Sticky: Linux reports a reset only once (rule 59).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Orderly,
    Failed(Error),
}

/// What a driver that completes receives itself has asked the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiving {
    /// Nothing.
    No,
    /// Queued with a driver, not submitted.
    Queued,
    /// The kernel has it, from this worker's driver.
    Armed(u32),
    /// The same, and nobody wants what it brings: its worker is to cancel it, unless a receive is
    /// started before it gets to that.
    Unwanted(u32),
    /// The kernel has it, and a cancel is on its way.
    Stopping,
}

pub(crate) struct Stream {
    pub(crate) connection: Connection,
    connect: Option<Operation>,
    /// Pending receives, oldest first. A continuous one is alone here.
    pub(crate) receives: ShortQueue<Operation>,
    /// Bytes that were read ahead of a receive.
    pub(crate) ahead: LateQueue<PoolBuffer>,
    pub(crate) end: Option<End>,
    /// Packets that the continuous receive has given.
    pub(crate) sequence: u64,
    /// Pending sends and disconnects, in the order in which they go out (rule 69).
    pub(crate) sends: ShortQueue<Operation>,
    /// How many of the first sends' buffers the driver's submission points to. They stay where
    /// they are until it has completed.
    pub(crate) pinned: u32,
    /// How many bytes that submission asks to send.
    pub(crate) pinned_bytes: usize,
    /// A send is queued with the driver or submitted.
    pub(crate) sending: bool,
    pub(crate) send_error: Option<Error>,
    /// A send was told that the peer reset the connection.
    pub(crate) reset: bool,
    shut_receive: bool,
    pub(crate) shut_send: bool,
    /// The end of the stream is to be sent behind the last send, without a packet.
    pub(crate) end_behind_sends: bool,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer's end, an error or urgent data was seen coming: a short read does not mean
    /// "drained".
    pub(crate) ending: bool,
    pub(crate) receiving: Receiving,
    /// It was read too far ahead once: from then on one buffer at a time is asked for.
    pub(crate) one_at_a_time: bool,
}

impl Stream {
    pub(crate) fn new(connected: bool) -> Self {
        Self {
            connection: if connected { Connection::Established } else { Connection::None },
            connect: None,
            receives: ShortQueue::new(),
            ahead: LateQueue::new(),
            end: None,
            sequence: 0,
            sends: ShortQueue::new(),
            pinned: 0,
            pinned_bytes: 0,
            sending: false,
            send_error: None,
            reset: false,
            shut_receive: false,
            shut_send: false,
            end_behind_sends: false,
            readable: true,
            writable: true,
            ending: false,
            receiving: Receiving::No,
            one_at_a_time: false,
        }
    }

    /// Notes how the received stream ended.
    pub(crate) fn set_end(&mut self, end: End) {
        let end = match end {
            End::Orderly if self.reset => End::Failed(Error::with_raw(
                OperationKind::Recv,
                ErrorKind::ConnectionReset,
                libc::ECONNRESET,
            )),
            end => end,
        };
        self.end.get_or_insert(end);
    }

    /// Why a new receive is refused, if it is.
    pub(crate) fn refuses_receive(&self, kind: OperationKind) -> Option<ErrorKind> {
        let continuous =
            self.receives.front().is_some_and(|r| r.kind() == OperationKind::RecvContinuous);
        match (self.connection, &self.end) {
            (Connection::None | Connection::Connecting, _) => Some(ErrorKind::NotConnected),
            _ if self.shut_receive => Some(ErrorKind::ShutDown),
            _ if continuous => Some(ErrorKind::InvalidInput),
            _ if kind == OperationKind::RecvContinuous && !self.receives.is_empty() => {
                Some(ErrorKind::InvalidInput)
            }
            (_, Some(End::Failed(error))) if self.ahead.is_empty() => Some(error.kind()),
            _ => None,
        }
    }

    pub(crate) fn cancel<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        id: OperationId,
        sink: &mut Sink<'_>,
    ) -> bool {
        if self.connect.as_ref().is_some_and(|connect| connect.id() == id) {
            self.end_connect(socket, ErrorKind::Cancelled, sink);
            return true;
        }
        let receive = self.receives.iter().position(|operation| operation.id() == id);
        if let Some(operation) = receive.and_then(|position| self.receives.remove(position)) {
            self.finish_receive_cancelled(socket, operation, ErrorKind::Cancelled, sink);
            return true;
        }
        let Some(position) = self.sends.iter().position(|operation| operation.id() == id) else {
            return false;
        };
        if position < self.pinned as usize {
            // The kernel is reading it: it ends, so or so, when that is over (rule 78).
            if let Some(operation) = self.sends.get_mut(position) {
                operation.inner.cancelled = true;
            }
        } else if let Some(operation) = self.sends.remove(position) {
            socket.finish_cancelled(sink, operation, ErrorKind::Cancelled);
        }
        true
    }

    /// Ends everything that is pending, and says how much that was.
    pub(crate) fn end_all<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        kind: ErrorKind,
        sink: &mut Sink<'_>,
    ) -> usize {
        let connecting = usize::from(self.connect.is_some());
        let count = connecting + self.receives.len() + self.sends.len();
        self.end_connect(socket, kind, sink);
        while let Some(operation) = self.receives.pop_front() {
            self.finish_receive_cancelled(socket, operation, kind, sink);
        }
        for operation in self.sends.drain_from(self.pinned as usize) {
            socket.finish_cancelled(sink, operation, kind);
        }
        // These end when the kernel has let go of them.
        self.sends.iter_mut().for_each(|operation| operation.inner.cancelled = true);
        count
    }

    fn finish_receive_cancelled<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        operation: Operation,
        kind: ErrorKind,
        sink: &mut Sink<'_>,
    ) {
        let error = Error::new(operation.kind(), kind);
        self.finish_receive(socket, operation, 0, Some(error), sink);
    }

    pub(crate) fn end_connect<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        kind: ErrorKind,
        sink: &mut Sink<'_>,
    ) {
        if let Some(operation) = self.connect.take() {
            self.connection = Connection::None;
            // The attempt ends with it, so that the socket can be tried again.
            syscall::dissolve(socket.raw_fd());
            socket.finish_cancelled(sink, operation, kind);
        }
    }

    /// Drops what was read ahead.
    pub(crate) fn discard(&mut self) {
        self.ahead.clear();
    }

    /// The port closes. Sends that the kernel is reading stay until its driver has let go.
    pub(crate) fn abandon(&mut self, operations: &mut Vec<Operation>) {
        operations.extend(self.connect.take());
        operations.extend(self.receives.drain_from(0));
        operations.extend(self.sends.drain_from(self.pinned as usize));
        self.discard();
    }

    pub(crate) fn shutdown<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        how: Shutdown,
    ) -> Result<(), Error> {
        let error = |kind| Err(Error::new(OperationKind::Shutdown, kind));
        if self.connection != Connection::Established {
            return error(ErrorKind::NotConnected);
        }
        if how != Shutdown::Write {
            // Not passed on: the kernel would end the pending receives (rule 84).
            self.shut_receive = true;
        }
        if how != Shutdown::Read && !self.shut_send {
            self.shut_send = true;
            self.end_behind_sends = true;
            return self.send_end(socket);
        }
        Ok(())
    }

    /// Sends the end of the stream, if it is asked for and everything before it is out.
    pub(crate) fn send_end<D: Driver>(&mut self, socket: &Socket<D>) -> Result<(), Error> {
        if !self.end_behind_sends || !self.sends.is_empty() {
            return Ok(());
        }
        self.end_behind_sends = false;
        socket.socket.shutdown(Shutdown::Write).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            match errno {
                // Connected before, and not now: the peer reset it.
                libc::ENOTCONN => Error::new(OperationKind::Shutdown, ErrorKind::ConnectionReset),
                _ => error_of(OperationKind::Shutdown, errno),
            }
        })
    }
}

impl<D: Driver> Socket<D> {
    pub(crate) fn start_connect(
        self: &Arc<Self>,
        state: &mut State<D>,
        operation: Operation,
        context: &mut Context<'_, '_, D>,
    ) -> Result<(), Rejected> {
        let Role::Stream(stream) = &mut state.role else {
            unreachable!("the caller matched the role")
        };
        if stream.connection != Connection::None {
            let error = Error::new(OperationKind::Connect, ErrorKind::AlreadyConnected);
            return Err(Rejected::new(error, operation));
        }
        let Payload::Address(address) = &operation.inner.payload else {
            unreachable!("a connect owns its address")
        };
        match syscall::connect(&self.socket, address) {
            Ok(true) => {
                stream.connection = Connection::Established;
                self.finish(context.sink, operation, 0, None);
                Ok(())
            }
            Ok(false) => {
                stream.connection = Connection::Connecting;
                stream.connect = Some(operation);
                let interest = (libc::EPOLLOUT | libc::EPOLLET) as u32;
                if let Err(errno) = self.watch(state, interest) {
                    let Role::Stream(stream) = &mut state.role else { return Ok(()) };
                    stream.connection = Connection::None;
                    if let Some(operation) = stream.connect.take() {
                        let error = error_of(OperationKind::Connect, errno);
                        return Err(Rejected::new(error, operation));
                    }
                }
                Ok(())
            }
            // A wrong call is refused in the call; what the network says comes as a packet.
            Err(errno @ (libc::EINVAL | libc::EAFNOSUPPORT | libc::EISCONN | libc::EALREADY)) => {
                Err(Rejected::new(error_of(OperationKind::Connect, errno), operation))
            }
            Err(errno) => {
                let error = error_of(OperationKind::Connect, errno);
                self.finish(context.sink, operation, 0, Some(error));
                Ok(())
            }
        }
    }

    /// Events of its home's epoll set.
    pub(crate) fn stream_ready(
        self: &Arc<Self>,
        state: &mut State<D>,
        events: u32,
        context: &mut Context<'_, '_, D>,
    ) {
        let Role::Stream(stream) = &mut state.role else { return };
        if stream.connection == Connection::Connecting {
            self.finish_connect(stream, context.sink);
        }
        let ending = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;
        if events & (libc::EPOLLIN as u32 | ending) != 0 {
            stream.readable = true;
            stream.ending |= events & (ending | libc::EPOLLPRI as u32) != 0;
        }
        if events & (libc::EPOLLOUT as u32 | ending) != 0 {
            stream.writable = true;
        }
        self.serve_stream(state, context);
    }

    fn finish_connect(&self, stream: &mut Stream, sink: &mut Sink<'_>) {
        let error = match self.socket.take_error() {
            Ok(None) if self.socket.peer_addr().is_ok() => None,
            // Still under way: an event of before the connect.
            Ok(None) => return,
            Ok(Some(error)) | Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Some(error_of(OperationKind::Connect, errno))
            }
        };
        let Some(operation) = stream.connect.take() else { return };
        stream.connection = match error {
            None => Connection::Established,
            Some(_) => {
                // Without it the next attempt would be told of this one's failure (rule 106).
                syscall::dissolve(self.raw_fd());
                Connection::None
            }
        };
        self.finish(sink, operation, 0, error);
    }

    /// Does whatever the state calls for: arms or stops receives, sends what is queued.
    pub(crate) fn serve_stream(
        self: &Arc<Self>,
        state: &mut State<D>,
        context: &mut Context<'_, '_, D>,
    ) {
        let Role::Stream(stream) = &state.role else { return };
        if state.closed {
            self.stop_reading(state, context);
            return;
        }
        if stream.connection == Connection::Connecting {
            let interest = (libc::EPOLLOUT | libc::EPOLLET) as u32;
            if let Err(errno) = self.watch(state, interest)
                && let Role::Stream(stream) = &mut state.role
            {
                // Nobody would hear how it goes on.
                stream.end_connect(self, kind_of(errno), context.sink);
            }
            return;
        }
        if !stream.writable && !stream.sends.is_empty() {
            // At a new home, the wait for room has to be taken up again.
            self.wait_for_room(state, context.sink);
        }
        self.continue_receiving(state, context);
        self.continue_sending(state, context);
    }
}
