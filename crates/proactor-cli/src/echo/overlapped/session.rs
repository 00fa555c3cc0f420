//! One connection with completion routines: what each routine's operation means to its course
//! ([`Flow`]).
//!
//! What is missing is what several threads need on a port: the lock, and putting packets in order.

use proactor::overlapped::{Completed, Routine, StreamSocket};
use proactor::{Operation, OperationId, OperationKind, Rejected, SendBuffer};

use crate::echo::flow::{Flow, Stream};
use crate::echo::kit::Kit;
use crate::echo::stall::Handler;

/// Each operation is started with the session's routine.
impl Stream for StreamSocket {
    type With = Routine;

    fn recv_continuous(
        &self,
        operation: Operation,
        routine: &Routine,
    ) -> Result<OperationId, Rejected> {
        self.recv_continuous(operation, routine)
    }

    fn send(
        &self,
        operation: Operation,
        buffer: SendBuffer,
        routine: &Routine,
    ) -> Result<OperationId, Rejected> {
        self.send(operation, buffer, routine)
    }

    fn send_vectored(
        &self,
        operation: Operation,
        buffers: Vec<SendBuffer>,
        routine: &Routine,
    ) -> Result<OperationId, Rejected> {
        self.send_vectored(operation, buffers, routine)
    }

    fn disconnect(&self, operation: Operation, routine: &Routine) -> Result<OperationId, Rejected> {
        self.disconnect(operation, routine)
    }

    fn cancel(&self, operation: OperationId) {
        // Where there is nothing to cancel, the operation's routine is queued already.
        self.cancel(operation);
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    flow: Flow<StreamSocket>,
}

impl Session {
    /// No connection yet.
    pub(super) fn vacant() -> Self {
        Self { flow: Flow::vacant() }
    }

    /// Begins with a connection: starts the receive that goes on until the end.
    pub(super) fn open(&mut self, stream: StreamSocket, routine: &Routine, kit: &mut Kit) {
        self.flow.open(stream, routine, kit);
    }

    /// Whether the connection is closed and no routine is due.
    pub(super) fn is_over(&self) -> bool {
        self.flow.is_over()
    }

    /// The session's routine: something of it has ended.
    pub(super) fn completed(
        &mut self,
        mut completed: Completed<'_>,
        handler: Handler,
        kit: &mut Kit,
    ) {
        let routine = completed.routine();
        let error = completed.error();
        if let Some(operation) = completed.take_operation() {
            kit.keep_operation(operation);
        }
        match completed.kind() {
            OperationKind::RecvContinuous => match completed.take_chunk() {
                Some(chunk) => {
                    if self.flow.is_echoing() {
                        handler.handle(&chunk);
                    }
                    self.flow.received(chunk, routine, kit);
                }
                None => self.flow.receive_ended(error, routine, kit),
            },
            OperationKind::Send => {
                kit.tally.bytes_sent += completed.bytes() as u64;
                self.flow.sent(error, routine, kit);
            }
            OperationKind::Disconnect => self.flow.disconnected(error, routine, kit),
            kind => unreachable!("no {} is ever started here", kind.name()),
        }
    }

    /// Stops reading, because the server drains. What has been received is still sent.
    pub(super) fn drain(&mut self) {
        self.flow.drain();
    }

    /// Closes a session that lingers and has nothing to discard.
    pub(super) fn close_if_quiet(&mut self, kit: &mut Kit) {
        self.flow.close_if_quiet(kit);
    }

    /// Closes the session, whatever it is doing: the drain's time is up.
    pub(super) fn cut_off(&mut self, kit: &mut Kit) {
        self.flow.cut_off(kit);
    }
}
