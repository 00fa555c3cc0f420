//! Datagrams, by readiness: each system call moves one whole datagram.

use std::collections::VecDeque;
use std::sync::Arc;

use super::driver::Driver;
use super::errno::error_of;
use super::listener::take_by_id;
use super::sink::Sink;
use super::socket::{Context, Role, Socket, State};
use super::syscall;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind, Payload};

/// The pending receives and sends, oldest first.
#[derive(Default)]
pub(crate) struct Datagrams {
    receives: VecDeque<Operation>,
    sends: VecDeque<Operation>,
}

impl Datagrams {
    pub(crate) fn cancel<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        id: OperationId,
        sink: &mut Sink<'_>,
    ) -> bool {
        let taken = take_by_id(&mut self.receives, id).or_else(|| take_by_id(&mut self.sends, id));
        match taken {
            Some(operation) => {
                socket.finish_cancelled(sink, operation, ErrorKind::Cancelled);
                true
            }
            None => false,
        }
    }

    pub(crate) fn end_all<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        kind: ErrorKind,
        sink: &mut Sink<'_>,
    ) -> usize {
        let count = self.receives.len() + self.sends.len();
        for operation in self.receives.drain(..).chain(self.sends.drain(..)) {
            socket.finish_cancelled(sink, operation, kind);
        }
        count
    }

    pub(crate) fn abandon(&mut self, operations: &mut Vec<Operation>) {
        operations.extend(self.receives.drain(..).chain(self.sends.drain(..)));
    }
}

impl<D: Driver> Socket<D> {
    pub(crate) fn start_datagram(
        self: &Arc<Self>,
        state: &mut State<D>,
        operation: Operation,
        context: &mut Context<'_, '_, D>,
    ) -> Result<(), Rejected> {
        let Role::Datagram(datagrams) = &mut state.role else {
            unreachable!("the caller matched the role")
        };
        if operation.kind() == OperationKind::RecvFrom {
            // Rule 115: nothing can come to a socket without an address.
            let bound = self.socket.local_addr().ok().and_then(|address| address.as_socket());
            if bound.is_none_or(|address| address.port() == 0) {
                let error = Error::new(OperationKind::RecvFrom, ErrorKind::InvalidInput);
                return Err(Rejected::new(error, operation));
            }
            datagrams.receives.push_back(operation);
            self.receive_datagrams(datagrams, context.sink);
            return Ok(());
        }
        if datagrams.sends.is_empty() {
            match self.try_send(&operation) {
                Ok(bytes) => self.finish(context.sink, operation, bytes, None),
                Err(libc::EAGAIN) => datagrams.sends.push_back(operation),
                // Refused in the call: no packet (rules 45, 117).
                Err(errno) => {
                    return Err(Rejected::new(error_of(OperationKind::SendTo, errno), operation));
                }
            }
        } else {
            datagrams.sends.push_back(operation);
        }
        Ok(())
    }

    /// The socket may be readable or writable: moves what can be moved.
    pub(crate) fn datagram_ready(
        &self,
        state: &mut State<D>,
        events: u32,
        context: &mut Context<'_, '_, D>,
    ) {
        let Role::Datagram(datagrams) = &mut state.role else { return };
        if events & libc::EPOLLOUT as u32 != 0 {
            self.send_datagrams(datagrams, context.sink);
        }
        self.receive_datagrams(datagrams, context.sink);
    }

    fn receive_datagrams(&self, datagrams: &mut Datagrams, sink: &mut Sink<'_>) {
        while let Some(operation) = datagrams.receives.front_mut() {
            let Payload::Datagram(buffer, peer) = &mut operation.inner.payload else {
                unreachable!("a datagram receive owns its buffer")
            };
            let received = syscall::recv_datagram(self.raw_fd(), buffer.spare_capacity_mut());
            let (bytes, error) = match received {
                Ok(datagram) => {
                    // SAFETY: the kernel wrote that many bytes at the start of the buffer, which
                    // was cleared when the receive was started.
                    unsafe { buffer.set_len(datagram.bytes) };
                    *peer = datagram.peer.and_then(|address| address.as_socket());
                    let kind = ErrorKind::MessageTruncated;
                    let error = Error::with_raw(OperationKind::RecvFrom, kind, libc::EMSGSIZE);
                    (datagram.bytes, datagram.truncated.then_some(error))
                }
                Err(libc::EAGAIN) => return,
                Err(libc::EINTR) => continue,
                Err(errno) => (0, Some(error_of(OperationKind::RecvFrom, errno))),
            };
            if let Some(operation) = datagrams.receives.pop_front() {
                self.finish(sink, operation, bytes, error);
            }
        }
    }

    fn send_datagrams(&self, datagrams: &mut Datagrams, sink: &mut Sink<'_>) {
        while let Some(operation) = datagrams.sends.front() {
            let (bytes, error) = match self.try_send(operation) {
                Ok(bytes) => (bytes, None),
                Err(libc::EAGAIN) => return,
                Err(errno) => (0, Some(error_of(OperationKind::SendTo, errno))),
            };
            if let Some(operation) = datagrams.sends.pop_front() {
                self.finish(sink, operation, bytes, error);
            }
        }
    }

    fn try_send(&self, operation: &Operation) -> Result<usize, i32> {
        let Payload::DatagramTo(buffer, peer) = &operation.inner.payload else {
            unreachable!("a datagram send owns its buffer")
        };
        let address = peer.map(socket2::SockAddr::from);
        let slices = [syscall::io_slice(buffer.as_slice())];
        loop {
            // SAFETY: the buffer is borrowed for the call.
            match unsafe { syscall::send_gather(self.raw_fd(), &slices, address.as_ref()) } {
                Err(libc::EINTR) => {}
                outcome => return outcome,
            }
        }
    }
}
