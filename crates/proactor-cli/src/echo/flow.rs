//! The course of one connection: what has come and was not sent yet, and how it ends. It is the same
//! on a port and with completion routines.
//!
//! ```text
//!              end of stream, or drain         all is sent          sent
//!   Echoing ───────────────────────▶ Finishing ──────────▶ Ending ────────▶ Closed
//!      │                                 │                   │   ▲ drain only │
//!      └──── reset, failure ─────────────┴───────────────────┘   └ Lingering ◀┘
//! ```
//!
//! At most one send is in flight. What comes meanwhile is collected, and goes out in one gathered
//! send when the first has ended. Collected chunks hold receive buffers of the pool, and a connection
//! is read no further than its receive window: so a client that does not read makes the server stop
//! reading, and memory stays bounded without a line of code here.

use proactor::{
    Error, ErrorKind, Operation, OperationId, PoolBuffer, Rejected, SendBuffer, StreamSocket,
};

use super::kit::Kit;

/// A socket of a session.
pub(super) trait Stream {
    /// What each operation is started with, beside itself.
    type With;

    fn recv_continuous(
        &self,
        operation: Operation,
        with: &Self::With,
    ) -> Result<OperationId, Rejected>;

    fn send(
        &self,
        operation: Operation,
        buffer: SendBuffer,
        with: &Self::With,
    ) -> Result<OperationId, Rejected>;

    fn send_vectored(
        &self,
        operation: Operation,
        buffers: Vec<SendBuffer>,
        with: &Self::With,
    ) -> Result<OperationId, Rejected>;

    fn disconnect(&self, operation: Operation, with: &Self::With) -> Result<OperationId, Rejected>;

    fn cancel(&self, operation: OperationId);
}

/// On a port an operation needs nothing more.
impl Stream for StreamSocket {
    type With = ();

    fn recv_continuous(&self, operation: Operation, (): &()) -> Result<OperationId, Rejected> {
        self.recv_continuous(operation)
    }

    fn send(
        &self,
        operation: Operation,
        buffer: SendBuffer,
        (): &(),
    ) -> Result<OperationId, Rejected> {
        self.send(operation, buffer)
    }

    fn send_vectored(
        &self,
        operation: Operation,
        buffers: Vec<SendBuffer>,
        (): &(),
    ) -> Result<OperationId, Rejected> {
        self.send_vectored(operation, buffers)
    }

    fn disconnect(&self, operation: Operation, (): &()) -> Result<OperationId, Rejected> {
        self.disconnect(operation)
    }

    fn cancel(&self, operation: OperationId) {
        // Where there is nothing to cancel, the operation's last packet is queued already.
        self.cancel(operation);
    }
}

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
    /// The socket is closed. What was in flight may still have to end.
    Closed,
}

/// A connection, and what is in flight on it.
#[derive(Debug)]
pub(super) struct Flow<S> {
    stream: Option<S>,
    phase: Phase,
    /// The receive in flight.
    receive: Option<OperationId>,
    is_sending: bool,
    is_disconnecting: bool,
    /// The peer has ended its stream, so nothing unread can be left.
    peer_has_ended: bool,
    /// Nothing was discarded since the last look (while lingering).
    is_quiet: bool,
    unsent: Vec<SendBuffer>,
}

impl<S> Flow<S> {
    /// No connection.
    pub(super) const fn vacant() -> Self {
        Self {
            stream: None,
            phase: Phase::Closed,
            receive: None,
            is_sending: false,
            is_disconnecting: false,
            peer_has_ended: false,
            is_quiet: false,
            unsent: Vec::new(),
        }
    }

    /// Whether the connection is closed and nothing is in flight.
    pub(super) fn is_over(&self) -> bool {
        self.stream.is_none()
            && self.receive.is_none()
            && !self.is_sending
            && !self.is_disconnecting
    }

    /// Whether what comes is sent back.
    pub(super) fn is_echoing(&self) -> bool {
        self.phase == Phase::Echoing
    }

    /// The connection, until it is closed.
    pub(super) fn stream(&self) -> Option<&S> {
        self.stream.as_ref()
    }
}

impl<S: Stream> Flow<S> {
    /// Begins with a connection.
    pub(super) fn open(&mut self, stream: S, with: &S::With, kit: &mut Kit) {
        debug_assert!(self.is_over() && self.unsent.is_empty());
        *self = Self { stream: Some(stream), phase: Phase::Echoing, ..Self::vacant() };
        self.start_receive(with, kit);
    }

    /// A chunk has come.
    pub(super) fn received(&mut self, chunk: PoolBuffer, with: &S::With, kit: &mut Kit) {
        match self.phase {
            Phase::Echoing => {
                kit.tally.bytes_received += chunk.len() as u64;
                if self.is_sending {
                    self.collect(chunk, kit);
                } else {
                    self.send(chunk.into(), with, kit);
                }
            }
            Phase::Lingering => self.is_quiet = false,
            // Of a session that failed: nobody is there to send to.
            Phase::Finishing | Phase::Ending | Phase::Closed => {}
        }
    }

    /// The receive has ended: with the peer's stream, or with an error.
    pub(super) fn receive_ended(&mut self, error: Option<Error>, with: &S::With, kit: &mut Kit) {
        self.receive = None;
        match (self.phase, error) {
            (Phase::Closed, _) => {}
            (Phase::Lingering, _) => self.close(kit),
            (Phase::Echoing, None) => {
                self.peer_has_ended = true;
                self.finish(with, kit);
            }
            // Only the drain cancels.
            (Phase::Echoing, Some(error)) if error.kind() == ErrorKind::Cancelled => {
                self.finish(with, kit);
            }
            (_, Some(error)) => self.fail(error, kit),
            (Phase::Finishing | Phase::Ending, None) => {}
        }
    }

    /// The send has ended.
    pub(super) fn sent(&mut self, error: Option<Error>, with: &S::With, kit: &mut Kit) {
        debug_assert!(self.is_sending);
        self.is_sending = false;
        match error {
            Some(error) => self.fail(error, kit),
            None => self.go_on(with, kit),
        }
    }

    /// The end of the stream was sent. Where the client has not ended its own, a receive is started
    /// for what it still sends.
    pub(super) fn disconnected(&mut self, error: Option<Error>, with: &S::With, kit: &mut Kit) {
        debug_assert!(self.is_disconnecting);
        self.is_disconnecting = false;
        match error {
            Some(error) => self.fail(error, kit),
            None if self.peer_has_ended => self.close(kit),
            None if self.phase == Phase::Ending => {
                self.phase = Phase::Lingering;
                self.start_receive(with, kit);
            }
            None => {}
        }
    }

    fn start_receive(&mut self, with: &S::With, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        match stream.recv_continuous(kit.take_operation(), with) {
            Ok(receive) => self.receive = Some(receive),
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn finish(&mut self, with: &S::With, kit: &mut Kit) {
        self.phase = Phase::Finishing;
        if !self.is_sending {
            self.go_on(with, kit);
        }
    }

    /// Sends what has been collected, or ends the stream once there is nothing left to send.
    fn go_on(&mut self, with: &S::With, kit: &mut Kit) {
        match self.unsent.len() {
            0 if self.phase == Phase::Finishing => self.disconnect(with, kit),
            0 => {}
            1 => {
                let chunk = self.unsent.pop().expect("there is one");
                kit.keep_gather(std::mem::take(&mut self.unsent));
                self.send(chunk, with, kit);
            }
            _ => self.send_collected(with, kit),
        }
    }

    fn collect(&mut self, chunk: PoolBuffer, kit: &mut Kit) {
        if self.unsent.capacity() == 0 {
            self.unsent = kit.take_gather();
        }
        self.unsent.push(chunk.into());
    }

    fn send(&mut self, buffer: SendBuffer, with: &S::With, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        match stream.send(kit.take_operation(), buffer, with) {
            Ok(_) => self.is_sending = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn send_collected(&mut self, with: &S::With, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        let unsent = std::mem::take(&mut self.unsent);
        match stream.send_vectored(kit.take_operation(), unsent, with) {
            Ok(_) => self.is_sending = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn disconnect(&mut self, with: &S::With, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        self.phase = Phase::Ending;
        match stream.disconnect(kit.take_operation(), with) {
            Ok(_) => self.is_disconnecting = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    /// An operation could not be started: nothing of it comes.
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

    /// Closes the socket. What is in flight still ends, and then the session is over.
    fn close(&mut self, kit: &mut Kit) {
        self.phase = Phase::Closed;
        self.stream = None;
        kit.keep_gather(std::mem::take(&mut self.unsent));
    }
}
