//! Accepting, by readiness: a connection is taken only for an accept that is pending, and at once
//! belongs to its packet, so no accepted descriptor can be lost.

use std::collections::VecDeque;
use std::sync::Arc;

use super::driver::Driver;
use super::errno::error_of;
use super::sink::Sink;
use super::socket::{Context, Role, Socket, State};
use super::syscall;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::Accepted;

/// The pending accepts, oldest first (rule 99).
#[derive(Default)]
pub(crate) struct Listener {
    accepts: VecDeque<Operation>,
}

impl Listener {
    pub(crate) fn cancel<D: Driver>(
        &mut self,
        socket: &Socket<D>,
        id: OperationId,
        sink: &mut Sink<'_>,
    ) -> bool {
        match take_by_id(&mut self.accepts, id) {
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
        let count = self.accepts.len();
        for operation in self.accepts.drain(..) {
            socket.finish_cancelled(sink, operation, kind);
        }
        count
    }

    pub(crate) fn abandon(&mut self, operations: &mut Vec<Operation>) {
        operations.extend(self.accepts.drain(..));
    }
}

/// Takes the operation that was started under `id` out of a queue.
pub(crate) fn take_by_id(queue: &mut VecDeque<Operation>, id: OperationId) -> Option<Operation> {
    let position = queue.iter().position(|operation| operation.id() == id)?;
    queue.remove(position)
}

/// Whether an `accept4` error is about one connection that is gone, not about the listener: the
/// next one may be fine (rule 102; accept(2) lists them).
fn is_about_one_connection(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
    )
}

impl<D: Driver> Socket<D> {
    pub(crate) fn start_accept(
        self: &Arc<Self>,
        state: &mut State<D>,
        operation: Operation,
        context: &mut Context<'_, '_, D>,
    ) -> Result<(), Rejected> {
        if !self.socket.is_listener().unwrap_or(false) {
            let error = Error::new(OperationKind::Accept, ErrorKind::InvalidInput);
            return Err(Rejected::new(error, operation));
        }
        if let Role::Listener(listener) = &mut state.role {
            listener.accepts.push_back(operation);
        }
        self.listener_ready(state, context);
        Ok(())
    }

    /// Accepts for as long as there are accepts pending and connections waiting.
    pub(crate) fn listener_ready(&self, state: &mut State<D>, context: &mut Context<'_, '_, D>) {
        let Role::Listener(listener) = &mut state.role else { return };
        while !listener.accepts.is_empty() {
            let accepted = syscall::accept(self.raw_fd());
            if let Err(errno) = accepted {
                if errno == libc::EAGAIN {
                    return;
                }
                if is_about_one_connection(errno) {
                    continue;
                }
            }
            let Some(mut operation) = listener.accepts.pop_front() else { return };
            let error = match accepted {
                Ok((socket, address)) => {
                    let accepted = Accepted::new(socket, address.as_socket());
                    operation.inner.payload = Payload::Accepted(Box::new(accepted));
                    None
                }
                Err(errno) => Some(error_of(OperationKind::Accept, errno)),
            };
            self.finish(context.sink, operation, 0, error);
        }
    }
}
