//! One connection on a port: its packets in order, and its course ([`Flow`]).
//!
//! A session's number in the table is used again only when [`Session::is_over`]: the packets of
//! everything that was started have come, so that no late packet can meet the next session.

use proactor::{Error, PoolBuffer, StreamSocket};

use super::flow::Flow;
use super::kit::Kit;
use super::order::InOrder;

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
    flow: Flow<StreamSocket>,
    /// The packets of the receive in flight. It ends, for the flow, when its last one has had its
    /// turn.
    arrivals: InOrder<Arrival>,
}

impl Session {
    /// A place in the table without a connection.
    pub(crate) const fn vacant() -> Self {
        Self { flow: Flow::vacant(), arrivals: InOrder::new() }
    }

    /// Whether the connection is closed and no packet of it is due.
    pub(crate) fn is_over(&self) -> bool {
        self.flow.is_over()
    }

    /// The client's address, where it has one.
    pub(crate) fn peer(&self) -> Option<String> {
        let address = self.flow.stream()?.peer_address().ok()?;
        Some(address.to_string())
    }

    /// Begins with a connection.
    pub(crate) fn open(&mut self, stream: StreamSocket, kit: &mut Kit) {
        self.arrivals = InOrder::new();
        self.flow.open(stream, &(), kit);
    }

    /// Handles a packet of the receive, and those that waited for it.
    pub(crate) fn received(&mut self, sequence: u64, arrival: Arrival, kit: &mut Kit) {
        let mut turn = self.arrivals.offer(sequence, arrival);
        if turn.is_none() {
            kit.tally.reordered += 1;
        }
        while let Some(arrival) = turn {
            match arrival {
                Arrival::Chunk(chunk) => self.flow.received(chunk, &(), kit),
                Arrival::End(error) => {
                    // Nothing comes behind it; a receive that follows begins at 0 again.
                    debug_assert!(self.arrivals.is_empty());
                    self.arrivals = InOrder::new();
                    return self.flow.receive_ended(error, &(), kit);
                }
            }
            turn = self.arrivals.next();
        }
    }

    /// Handles the packet of the send.
    pub(crate) fn sent(&mut self, error: Option<Error>, kit: &mut Kit) {
        self.flow.sent(error, &(), kit);
    }

    /// Handles the packet of the disconnect.
    pub(crate) fn disconnected(&mut self, error: Option<Error>, kit: &mut Kit) {
        self.flow.disconnected(error, &(), kit);
    }

    /// Stops reading, because the server drains. What has been received is still sent.
    pub(crate) fn drain(&mut self) {
        self.flow.drain();
    }

    /// Closes a session that lingers and has nothing to discard.
    pub(crate) fn close_if_quiet(&mut self, kit: &mut Kit) {
        self.flow.close_if_quiet(kit);
    }

    /// Closes the session, whatever it is doing: the drain's time is up.
    pub(crate) fn cut_off(&mut self, kit: &mut Kit) {
        self.flow.cut_off(kit);
    }
}
