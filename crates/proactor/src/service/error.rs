//! Why a session ended, why a send was refused, why a service did not start.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::filter::FilterError;
use super::framing::FrameError;
use crate::Error;

/// Which time limit of a session was over. Their lengths are in [`Timeouts`](super::Timeouts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Timeout {
    /// The peer connected and did not send its first frame, or the handler did not say that the
    /// handshake is done.
    Handshake,
    /// Nothing was received.
    Idle,
    /// A frame was begun and not completed.
    Read,
    /// Bytes wait to be sent and none could be.
    Write,
    /// A connection that was to be opened did not come to stand.
    Connect,
}

impl fmt::Display for Timeout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Handshake => "no handshake in time",
            Self::Idle => "nothing received in time",
            Self::Read => "a frame was begun and not completed in time",
            Self::Write => "the peer takes no bytes",
            Self::Connect => "no connection in time",
        })
    }
}

/// Why a session ended: the first cause, where there are several.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// [`Session::disconnect`](super::Session::disconnect) was called.
    Local,
    /// [`Session::abort`](super::Session::abort) was called.
    Aborted,
    /// The peer ended the stream in order.
    PeerEnded,
    /// The connection failed: reset by the peer, no route any more, and the like.
    Failed(Error),
    /// The bytes that the peer sent are no frame, or too long a one.
    Frame(FrameError),
    /// The filter of the service ended the session: a TLS handshake failed, for example, or the
    /// connection was cut off.
    Filter(FilterError),
    /// A time limit was over.
    TimedOut(Timeout),
    /// The peer moved fewer bytes in a second than the minimum
    /// ([`TransferRate`](super::TransferRate)).
    SlowPeer,
    /// More bytes waited to be sent than the limit allows
    /// ([`Overflow::Disconnect`](super::Overflow)).
    QueueFull,
    /// The handler returned this error.
    Handler(Arc<dyn std::error::Error + Send + Sync>),
    /// A callback of the handler panicked.
    Panicked,
    /// The service stopped.
    ServiceStopped,
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => formatter.write_str("disconnected on this side"),
            Self::Aborted => formatter.write_str("aborted on this side"),
            Self::PeerEnded => formatter.write_str("the peer ended the connection"),
            Self::Failed(error) => error.fmt(formatter),
            Self::Frame(error) => write!(formatter, "the peer sent what is no frame: {error}"),
            Self::Filter(error) => error.fmt(formatter),
            Self::TimedOut(timeout) => timeout.fmt(formatter),
            Self::SlowPeer => formatter.write_str("the peer is slower than the minimum rate"),
            Self::QueueFull => formatter.write_str("too many bytes wait to be sent"),
            Self::Handler(error) => write!(formatter, "the handler failed: {error}"),
            Self::Panicked => formatter.write_str("the handler panicked"),
            Self::ServiceStopped => formatter.write_str("the service stopped"),
        }
    }
}

/// Why a send was refused. Nothing of it was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The session has ended, or is ending.
    Closed,
    /// The session's limit of queued bytes would be exceeded.
    SessionFull,
    /// The service's limit of queued bytes would be exceeded.
    ServiceFull,
    /// The payload cannot be made a frame.
    Frame(FrameError),
}

impl fmt::Display for SendError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("send: the session has ended"),
            Self::SessionFull => {
                formatter.write_str("send: the session's queue is full: the peer does not read")
            }
            Self::ServiceFull => {
                formatter.write_str("send: the queues of all sessions together are full")
            }
            Self::Frame(error) => write!(formatter, "send: {error}"),
        }
    }
}

impl std::error::Error for SendError {}

impl From<FrameError> for SendError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match error {
            SendError::Closed => io::ErrorKind::NotConnected,
            SendError::SessionFull | SendError::ServiceFull => io::ErrorKind::WouldBlock,
            SendError::Frame(_) => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

/// Why a message of [`Session::notify`](super::Session::notify) was refused. It is given back.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotifyError<M> {
    /// The session has ended.
    Closed(M),
    /// As many messages as [`Limits::notifications`](super::Limits::notifications) allows wait for
    /// the session's handler: it is told more than it can handle, or a callback blocks.
    Full(M),
}

impl<M> NotifyError<M> {
    /// The message.
    pub fn into_message(self) -> M {
        match self {
            Self::Closed(message) | Self::Full(message) => message,
        }
    }
}

/// Says what happened; the message may be of any type, and is left out.
impl<M> fmt::Debug for NotifyError<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Closed(_) => "Closed(..)",
            Self::Full(_) => "Full(..)",
        })
    }
}

impl<M> fmt::Display for NotifyError<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Closed(_) => "notify: the session has ended",
            Self::Full(_) => "notify: too many messages wait for the session's handler",
        })
    }
}

impl<M> std::error::Error for NotifyError<M> {}

/// Why a service or a runtime did not start: what was tried, and the system's or the port's error.
#[derive(Debug)]
pub struct StartError {
    tried: String,
    source: io::Error,
}

impl StartError {
    pub(super) fn new(tried: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { tried: tried.into(), source: source.into() }
    }

    /// The error as the system or the port gave it.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.tried, self.source)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        io::Error::new(error.source.kind(), error)
    }
}
