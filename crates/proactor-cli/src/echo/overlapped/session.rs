//! One connection: what has come and was not sent yet, and how it ends.
//!
//! The states are those of the port's sessions. What is missing is what several threads need there:
//! the lock, and putting packets in order.

use proactor::overlapped::{Completed, Routine, StreamSocket};
use proactor::{Error, ErrorKind, OperationId, OperationKind, PoolBuffer, Rejected, SendBuffer};

use crate::echo::kit::Kit;
use crate::echo::stall::Handler;

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What comes is sent back.
    Echoing,
    /// Nothing comes any more; what has come is being sent.
    Finishing,
    /// Everything is sent, and the end of the stream is on its way.
    Ending,
    /// The server is ending, and the client is not: what it still sends is discarded, because
    /// closing with unread bytes would reset the connection and might lose what was sent.
    Lingering,
    /// The socket is closed. Routines of what was in flight may still run.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    stream: Option<StreamSocket>,
    phase: Phase,
    receive: Option<OperationId>,
    /// Sends and disconnects in flight: at most one.
    is_sending: bool,
    peer_has_ended: bool,
    /// Nothing was discarded since the last look (while lingering).
    is_quiet: bool,
    unsent: Vec<SendBuffer>,
}

impl Session {
    /// A session of this connection.
    pub(super) fn new(stream: StreamSocket) -> Self {
        Self {
            stream: Some(stream),
            phase: Phase::Echoing,
            receive: None,
            is_sending: false,
            peer_has_ended: false,
            is_quiet: false,
            unsent: Vec::new(),
        }
    }

    /// Whether the connection is closed and no routine is due.
    pub(super) fn is_over(&self) -> bool {
        self.stream.is_none() && self.receive.is_none() && !self.is_sending
    }

    /// Starts the receive that goes on until the end.
    pub(super) fn start_receive(&mut self, routine: &Routine, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        match stream.recv_continuous(kit.take_operation(), routine) {
            Ok(receive) => self.receive = Some(receive),
            Err(rejected) => self.refused(rejected, kit),
        }
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
                Some(chunk) => self.received(chunk, routine, handler, kit),
                None => self.receive_ended(error, routine, kit),
            },
            OperationKind::Send => {
                kit.tally.bytes_sent += completed.bytes() as u64;
                self.is_sending = false;
                match error {
                    Some(error) => self.fail(error, kit),
                    None => self.go_on(routine, kit),
                }
            }
            OperationKind::Disconnect => {
                self.is_sending = false;
                self.disconnected(error, routine, kit);
            }
            kind => unreachable!("no {} is ever started here", kind.name()),
        }
    }

    fn received(&mut self, chunk: PoolBuffer, routine: &Routine, handler: Handler, kit: &mut Kit) {
        match self.phase {
            Phase::Echoing => {
                kit.tally.bytes_received += chunk.len() as u64;
                handler.handle(&chunk);
                if self.is_sending {
                    self.collect(chunk, kit);
                } else {
                    self.send(chunk.into(), routine, kit);
                }
            }
            Phase::Lingering => self.is_quiet = false,
            Phase::Finishing | Phase::Ending | Phase::Closed => {}
        }
    }

    fn receive_ended(&mut self, error: Option<Error>, routine: &Routine, kit: &mut Kit) {
        self.receive = None;
        match (self.phase, error) {
            (Phase::Closed, _) => {}
            (Phase::Lingering, _) => self.close(kit),
            (Phase::Echoing, None) => {
                self.peer_has_ended = true;
                self.finish(routine, kit);
            }
            // Only the drain cancels.
            (Phase::Echoing, Some(error)) if error.kind() == ErrorKind::Cancelled => {
                self.finish(routine, kit);
            }
            (_, Some(error)) => self.fail(error, kit),
            (Phase::Finishing | Phase::Ending, None) => {}
        }
    }

    fn disconnected(&mut self, error: Option<Error>, routine: &Routine, kit: &mut Kit) {
        match error {
            Some(error) => self.fail(error, kit),
            None if self.peer_has_ended => self.close(kit),
            None if self.phase == Phase::Ending => {
                self.phase = Phase::Lingering;
                self.start_receive(routine, kit);
            }
            None => {}
        }
    }

    fn finish(&mut self, routine: &Routine, kit: &mut Kit) {
        self.phase = Phase::Finishing;
        if !self.is_sending {
            self.go_on(routine, kit);
        }
    }

    /// Sends what has been collected, or ends the stream once there is nothing left to send.
    fn go_on(&mut self, routine: &Routine, kit: &mut Kit) {
        match self.unsent.len() {
            0 if self.phase == Phase::Finishing => self.disconnect(routine, kit),
            0 => {}
            1 => {
                let chunk = self.unsent.pop().expect("there is one");
                kit.keep_gather(std::mem::take(&mut self.unsent));
                self.send(chunk, routine, kit);
            }
            _ => self.send_collected(routine, kit),
        }
    }

    /// Keeps a chunk for the next send. The receive window bounds how many there are: a client that
    /// does not read is not read.
    fn collect(&mut self, chunk: PoolBuffer, kit: &mut Kit) {
        if self.unsent.capacity() == 0 {
            self.unsent = kit.take_gather();
        }
        self.unsent.push(chunk.into());
    }

    fn send(&mut self, buffer: SendBuffer, routine: &Routine, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        match stream.send(kit.take_operation(), buffer, routine) {
            Ok(_) => self.is_sending = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn send_collected(&mut self, routine: &Routine, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        let unsent = std::mem::take(&mut self.unsent);
        match stream.send_vectored(kit.take_operation(), unsent, routine) {
            Ok(_) => self.is_sending = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn disconnect(&mut self, routine: &Routine, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        self.phase = Phase::Ending;
        match stream.disconnect(kit.take_operation(), routine) {
            Ok(_) => self.is_sending = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    /// An operation could not be started: its routine never runs.
    fn refused(&mut self, rejected: Rejected, kit: &mut Kit) {
        let error = rejected.error();
        kit.keep_operation(rejected.into_operation());
        self.fail(error, kit);
    }

    /// Ends a session that a reset or another error has broken; only the first is counted.
    fn fail(&mut self, error: Error, kit: &mut Kit) {
        match self.phase {
            Phase::Closed => return,
            // Everything is sent: nothing is lost.
            Phase::Lingering => {}
            _ => kit.tally.count_failure(&error.into()),
        }
        self.close(kit);
    }

    /// Stops reading, because the server drains. What has been received is still sent.
    pub(super) fn drain(&mut self) {
        if let (Phase::Echoing, Some(stream), Some(receive)) =
            (self.phase, &self.stream, self.receive)
        {
            // Where there is nothing to cancel, its last routine is queued already.
            stream.cancel(receive);
        }
    }

    /// Closes a session that lingers and has nothing to discard.
    pub(super) fn close_if_quiet(&mut self, kit: &mut Kit) {
        if self.phase == Phase::Lingering && std::mem::replace(&mut self.is_quiet, true) {
            self.close(kit);
        }
    }

    /// Closes the session, whatever it is doing: the drain's time is up.
    pub(super) fn cut_off(&mut self, kit: &mut Kit) {
        if self.phase != Phase::Closed {
            kit.tally.cut_off += 1;
            self.close(kit);
        }
    }

    /// Closes the socket. What is in flight still ends in the routine, and then the session is over.
    fn close(&mut self, kit: &mut Kit) {
        self.phase = Phase::Closed;
        self.stream = None;
        kit.keep_gather(std::mem::take(&mut self.unsent));
    }
}
