//! The far end of a connection, in the hands of a test.

use std::net::SocketAddr;
use std::sync::Arc;

use super::event::{EndpointId, Event};
use super::kernel::{Kernel, State};
use crate::error::ErrorKind;

/// A connection that a test holds the far end of: a client that does as it likes.
///
/// Its calls never wait. An actor that used it is woken when it can go on.
/// Dropping it closes the connection: in order, or with a reset where bytes were left unread.
pub struct Peer {
    kernel: Arc<Kernel>,
    endpoint: EndpointId,
    actor: Option<usize>,
}

/// Why a [`Peer`] can do nothing at the moment, or any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// Not yet: still connecting, nothing to read, no room to write.
    WouldBlock,
    /// The connect failed.
    NotConnected(ErrorKind),
    /// The connection was reset.
    Reset,
}

impl Peer {
    pub(crate) fn connect(kernel: &Arc<Kernel>, address: SocketAddr) -> Self {
        let mut guard = kernel.lock();
        let local = guard.free_address(&address);
        let endpoint = guard.new_endpoint(local);
        guard.begin_connect(endpoint, address);
        drop(guard);
        Self { kernel: Arc::clone(kernel), endpoint, actor: None }
    }

    /// Lets the actor of this number be woken when the peer can go on.
    pub(crate) fn belongs_to(&mut self, actor: usize) {
        if self.actor != Some(actor) {
            self.actor = Some(actor);
            self.kernel.lock().endpoint(self.endpoint).set_actor(actor);
        }
    }

    /// The address of this end: what the server sees as its peer's.
    pub fn local_address(&self) -> SocketAddr {
        self.kernel.lock().endpoints[self.endpoint].local
    }

    /// How the connection is: `Ok` where it stands.
    ///
    /// # Errors
    /// [`WouldBlock`](PeerError::WouldBlock) while it is being connected, and the others.
    pub fn state(&self) -> Result<(), PeerError> {
        let guard = self.kernel.lock();
        let this = &guard.endpoints[self.endpoint];
        match (this.connect_error, this.is_reset) {
            (Some(kind), _) => Err(PeerError::NotConnected(kind)),
            (None, true) => Err(PeerError::Reset),
            (None, false) if !this.is_established() => Err(PeerError::WouldBlock),
            (None, false) => Ok(()),
        }
    }

    /// Writes as much as there is room for.
    ///
    /// # Errors
    /// As [`state`](Self::state); without any room [`WouldBlock`](PeerError::WouldBlock).
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, PeerError> {
        self.state()?;
        let mut guard = self.kernel.lock();
        let Some(far) = guard.endpoints[self.endpoint].peer else {
            return Err(PeerError::WouldBlock);
        };
        if guard.endpoints[far].is_closed {
            guard.reset(self.endpoint);
            return Err(PeerError::Reset);
        }
        let most = guard.endpoints[far].room().min(bytes.len());
        if most == 0 {
            return if bytes.is_empty() { Ok(0) } else { Err(PeerError::WouldBlock) };
        }
        let (short_write, reset) = (guard.faults.short_write, guard.faults.reset);
        if guard.strikes(reset) {
            let count = guard.random.part_of(most);
            guard.soon(Event::Reset(far));
            return Ok(Self::give(&mut guard, far, &bytes[..count]));
        }
        let count = if guard.strikes(short_write) { guard.random.part_of(most) } else { most };
        Ok(Self::give(&mut guard, far, &bytes[..count]))
    }

    fn give(state: &mut State, far: EndpointId, bytes: &[u8]) -> usize {
        state.endpoint(far).inbound.extend(bytes);
        state.monitor.bytes_given(far, bytes);
        state.wake_reader(far);
        bytes.len()
    }

    /// Reads what is there, at most `most` bytes; 0 bytes are the orderly end of the stream.
    ///
    /// # Errors
    /// As [`state`](Self::state); where nothing is there [`WouldBlock`](PeerError::WouldBlock).
    pub fn read(&mut self, most: usize) -> Result<Vec<u8>, PeerError> {
        self.state()?;
        let mut guard = self.kernel.lock();
        let this = &guard.endpoints[self.endpoint];
        if this.inbound.is_empty() {
            if this.inbound_ends {
                guard.monitor.peer_saw_end(self.endpoint);
                return Ok(Vec::new());
            }
            return Err(PeerError::WouldBlock);
        }
        let (bytes, _) = guard.take_inbound(self.endpoint, most.max(1));
        guard.monitor.bytes_taken(self.endpoint, &bytes);
        Ok(bytes)
    }

    /// Ends the sending side: the server sees the orderly end of its stream.
    pub fn shutdown(&mut self) {
        let mut guard = self.kernel.lock();
        if let Some(far) = guard.endpoints[self.endpoint].peer {
            guard.monitor.flow_ended(far);
        }
        guard.send_end(self.endpoint);
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        self.kernel.lock().reset(self.endpoint);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kernel.lock().close_endpoint(self.endpoint);
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Peer").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
