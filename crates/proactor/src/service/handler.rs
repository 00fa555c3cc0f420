//! What a program does for its sessions.

use std::any::Any;
use std::error::Error as StdError;

use super::error::DisconnectReason;
use super::session::Session;
use crate::PoolBuffer;

/// What a callback returns: an error ends the session, in order, with
/// [`DisconnectReason::Handler`].
pub type HandlerResult = Result<(), Box<dyn StdError + Send + Sync>>;

/// What happens when the peer has ended its side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterEnd {
    /// What is queued is sent, then the session ends.
    Disconnect,
    /// The session goes on sending until it is disconnected here.
    KeepSending,
}

/// The program's side of one session: its state, and what to do when something happens.
///
/// A service makes one for each session. The callbacks of a session run one at a time, on whichever
/// worker thread is free, with `&mut self`: state in the handler needs no lock. [`connected`] comes
/// first, [`disconnected`] last, and each comes once. No lock of the library is held, so a callback
/// may do whatever it likes with this session and others, and may block.
///
/// A callback that panics ends its session and nothing else; `disconnected` is still called.
///
/// [`connected`]: SessionHandler::connected
/// [`disconnected`]: SessionHandler::disconnected
#[allow(unused_variables)]
pub trait SessionHandler: Send + 'static {
    /// The connection stands, and the filter of the service, where it has one, is ready: a TLS
    /// handshake is done. Nothing is received before this has returned. Where a filter never comes
    /// to be ready, no callback is called, not even [`disconnected`](Self::disconnected).
    ///
    /// # Errors
    /// Any error ends the session.
    fn connected(&mut self, session: &Session) -> HandlerResult {
        Ok(())
    }

    /// A frame has come. `frame` is its payload, in place: copy what is to be kept.
    ///
    /// # Errors
    /// Any error ends the session.
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult;

    /// A frame has come with nothing behind it, in a receive buffer of the port: the buffer itself,
    /// cut to the frame's payload, to be sent on without a copy
    /// ([`Session::send_buffer`](super::Session::send_buffer)). Called in place of
    /// [`received`](Self::received), to which it hands the bytes unless it is implemented.
    ///
    /// A buffer that is kept counts against the session's receive window
    /// ([`Builder::receive_window_bytes`](crate::Builder::receive_window_bytes)), all of it, however
    /// few bytes of it are used: who keeps many is sent no more.
    ///
    /// # Errors
    /// Any error ends the session.
    fn received_buffer(&mut self, session: &Session, frame: PoolBuffer) -> HandlerResult {
        self.received(session, &frame)
    }

    /// The system has taken `bytes` more bytes, heads of frames included. That does not mean that
    /// the peer has them.
    fn sent(&mut self, session: &Session, bytes: usize) {}

    /// More bytes than the high water mark wait to be sent. Until there are fewer than the low
    /// water mark the session receives nothing, unless
    /// [`WaterMarks::pause_receiving`](super::WaterMarks::pause_receiving) says otherwise.
    fn high_water(&mut self, session: &Session) {}

    /// The queue has fallen to the low water mark. Comes after each `high_water`, unless the session
    /// ends before.
    fn low_water(&mut self, session: &Session) {}

    /// Nothing was sent for the time of [`Timeouts::heartbeat`](super::Timeouts::heartbeat): the
    /// moment to send something that keeps the connection alive.
    fn heartbeat(&mut self, session: &Session) {}

    /// What [`Session::notify`] was called with.
    ///
    /// # Errors
    /// Any error ends the session.
    fn notified(&mut self, session: &Session, message: Box<dyn Any + Send>) -> HandlerResult {
        Ok(())
    }

    /// The peer has ended its side, and everything it sent was received. What is sent from in here
    /// still goes out.
    fn peer_ended(&mut self, session: &Session) -> AfterEnd {
        AfterEnd::Disconnect
    }

    /// The service is draining: no new sessions, and this one will be disconnected at the deadline.
    /// The moment to say good-bye.
    fn draining(&mut self, session: &Session) {}

    /// The session is over: nothing comes after this, and nothing can be sent any more.
    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {}
}
