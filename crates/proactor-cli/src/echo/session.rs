//! One connection: what has come and was not sent yet, and how it ends.
//!
//! ```text
//!              end of stream, or drain         all is sent          sent
//!   Echoing ───────────────────────▶ Finishing ──────────▶ Ending ────────▶ Closed
//!      │                                 │                   │   ▲ drain only │
//!      └──── reset, failure ─────────────┴───────────────────┘   └ Lingering ◀┘
//! ```
//!
//! At most one send is in flight. What comes meanwhile is collected, and goes out in one gathered
//! send when the packet of the first has come. Collected chunks hold buffers of the port's pool,
//! and the port reads a connection no further than its receive window: so a client that does not
//! read makes the server stop reading, and memory stays bounded without a line of code here.
//!
//! A session's number in the table is used again only when [`Session::is_over`]: the packets of
//! everything that was started have come, so that no late packet can meet the next session.

use proactor::{Error, ErrorKind, OperationId, PoolBuffer, Rejected, SendBuffer, StreamSocket};

use super::kit::Kit;
use super::order::InOrder;

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
    /// The socket is closed. The packets of what was in flight may still be due.
    Closed,
}

/// What a packet of the receive brings.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Bytes.
    Chunk(PoolBuffer),
    /// The receive is over: the peer's orderly end, or an error.
    End(Option<Error>),
}

/// One connection. It is locked while a packet of its is handled.
#[derive(Debug)]
pub(crate) struct Session {
    stream: Option<StreamSocket>,
    phase: Phase,
    /// The receive in flight. It ends, for this, when its last packet has had its turn.
    receive: Option<OperationId>,
    arrivals: InOrder<Arrival>,
    is_sending: bool,
    is_disconnecting: bool,
    /// The peer has ended its stream, so nothing unread can be left.
    peer_has_ended: bool,
    /// Nothing was discarded since the last look (while lingering).
    is_quiet: bool,
    unsent: Vec<SendBuffer>,
}

impl Session {
    /// A place in the table without a connection.
    pub(crate) const fn vacant() -> Self {
        Self {
            stream: None,
            phase: Phase::Closed,
            receive: None,
            arrivals: InOrder::new(),
            is_sending: false,
            is_disconnecting: false,
            peer_has_ended: false,
            is_quiet: false,
            unsent: Vec::new(),
        }
    }

    /// Whether the connection is closed and no packet of it is due.
    pub(crate) fn is_over(&self) -> bool {
        self.stream.is_none()
            && self.receive.is_none()
            && !self.is_sending
            && !self.is_disconnecting
    }

    /// The client's address, where it has one.
    pub(crate) fn peer(&self) -> Option<String> {
        let address = self.stream.as_ref()?.peer_address().ok()?;
        Some(address.to_string())
    }

    /// Begins with a connection.
    pub(crate) fn open(&mut self, stream: StreamSocket, kit: &mut Kit) {
        debug_assert!(self.is_over() && self.unsent.is_empty(), "{self:?}");
        *self = Self { stream: Some(stream), phase: Phase::Echoing, ..Self::vacant() };
        self.start_receive(kit);
    }

    /// Handles a packet of the receive, and those that waited for it.
    pub(crate) fn received(&mut self, sequence: u64, arrival: Arrival, kit: &mut Kit) {
        let mut turn = self.arrivals.offer(sequence, arrival);
        if turn.is_none() {
            kit.tally.reordered += 1;
        }
        while let Some(arrival) = turn {
            match arrival {
                Arrival::Chunk(chunk) => self.take_chunk(chunk, kit),
                // Nothing comes behind it; a receive that follows begins at 0 again.
                Arrival::End(error) => return self.end_receive(error, kit),
            }
            turn = self.arrivals.next();
        }
    }

    /// Handles the packet of the send.
    pub(crate) fn sent(&mut self, error: Option<Error>, kit: &mut Kit) {
        debug_assert!(self.is_sending);
        self.is_sending = false;
        match error {
            Some(error) => self.fail(error, kit),
            None => self.go_on(kit),
        }
    }

    /// Handles the packet of the disconnect.
    pub(crate) fn disconnected(&mut self, error: Option<Error>, kit: &mut Kit) {
        debug_assert!(self.is_disconnecting);
        self.is_disconnecting = false;
        match error {
            Some(error) => self.fail(error, kit),
            None if self.peer_has_ended => self.close(kit),
            None if self.phase == Phase::Ending => {
                self.phase = Phase::Lingering;
                self.start_receive(kit);
            }
            None => {}
        }
    }

    /// Stops reading, because the server drains. What has been received is still sent.
    pub(crate) fn drain(&mut self) {
        if let (Phase::Echoing, Some(stream), Some(receive)) =
            (self.phase, &self.stream, self.receive)
        {
            // Where there is nothing to cancel, the receive's last packet is queued already.
            stream.cancel(receive);
        }
    }

    /// Closes a session that lingers and has nothing to discard.
    pub(crate) fn close_if_quiet(&mut self, kit: &mut Kit) {
        if self.phase == Phase::Lingering && std::mem::replace(&mut self.is_quiet, true) {
            self.close(kit);
        }
    }

    /// Closes the session, whatever it is doing: the drain's time is up.
    pub(crate) fn cut_off(&mut self, kit: &mut Kit) {
        if self.phase != Phase::Closed {
            kit.tally.cut_off += 1;
            self.close(kit);
        }
    }

    fn start_receive(&mut self, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        self.arrivals = InOrder::new();
        match stream.recv_continuous(kit.take_operation()) {
            Ok(receive) => self.receive = Some(receive),
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn take_chunk(&mut self, chunk: PoolBuffer, kit: &mut Kit) {
        match self.phase {
            Phase::Echoing => {
                kit.tally.bytes_received += chunk.len() as u64;
                if self.is_sending {
                    self.collect(chunk, kit);
                } else {
                    self.send(chunk.into(), kit);
                }
            }
            Phase::Lingering => self.is_quiet = false,
            // Late packets of a session that failed: nobody is there to send to.
            Phase::Finishing | Phase::Ending | Phase::Closed => {}
        }
    }

    fn end_receive(&mut self, error: Option<Error>, kit: &mut Kit) {
        debug_assert!(self.arrivals.is_empty());
        self.receive = None;
        match (self.phase, error) {
            (Phase::Closed, _) => {}
            (Phase::Lingering, _) => self.close(kit),
            (Phase::Echoing, None) => {
                self.peer_has_ended = true;
                self.finish(kit);
            }
            // Only the drain cancels.
            (Phase::Echoing, Some(error)) if error.kind() == ErrorKind::Cancelled => {
                self.finish(kit);
            }
            (_, Some(error)) => self.fail(error, kit),
            (Phase::Finishing | Phase::Ending, None) => {}
        }
    }

    fn finish(&mut self, kit: &mut Kit) {
        self.phase = Phase::Finishing;
        if !self.is_sending {
            self.go_on(kit);
        }
    }

    /// Sends what has been collected, or ends the stream once there is nothing left to send.
    fn go_on(&mut self, kit: &mut Kit) {
        match self.unsent.len() {
            0 if self.phase == Phase::Finishing => self.disconnect(kit),
            0 => {}
            1 => {
                let chunk = self.unsent.pop().expect("there is one");
                kit.keep_gather(std::mem::take(&mut self.unsent));
                self.send(chunk, kit);
            }
            _ => self.send_collected(kit),
        }
    }

    fn collect(&mut self, chunk: PoolBuffer, kit: &mut Kit) {
        if self.unsent.capacity() == 0 {
            self.unsent = kit.take_gather();
        }
        self.unsent.push(chunk.into());
    }

    fn send(&mut self, buffer: SendBuffer, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        match stream.send(kit.take_operation(), buffer) {
            Ok(_) => self.is_sending = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn send_collected(&mut self, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        match stream.send_vectored(kit.take_operation(), std::mem::take(&mut self.unsent)) {
            Ok(_) => self.is_sending = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    fn disconnect(&mut self, kit: &mut Kit) {
        let Some(stream) = &self.stream else { return };
        self.phase = Phase::Ending;
        match stream.disconnect(kit.take_operation()) {
            Ok(_) => self.is_disconnecting = true,
            Err(rejected) => self.refused(rejected, kit),
        }
    }

    /// An operation could not be started: no packet of it comes.
    fn refused(&mut self, rejected: Rejected, kit: &mut Kit) {
        let error = rejected.error();
        kit.keep_operation(rejected.into_operation());
        self.fail(error, kit);
    }

    /// Ends a session that a reset or another error has broken; only the first is counted.
    fn fail(&mut self, error: Error, kit: &mut Kit) {
        match (self.phase, error.kind()) {
            (Phase::Closed, _) => return,
            // Everything is sent: nothing is lost.
            (Phase::Lingering, _) => {}
            (_, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected) => {
                kit.tally.resets += 1;
            }
            _ => {
                kit.tally.failures += 1;
                tracing::debug!(%error, "a session failed");
            }
        }
        self.close(kit);
    }

    /// Closes the socket. What is in flight ends with a packet each, and then the session is over.
    fn close(&mut self, kit: &mut Kit) {
        self.phase = Phase::Closed;
        self.stream = None;
        kit.keep_gather(std::mem::take(&mut self.unsent));
    }
}
