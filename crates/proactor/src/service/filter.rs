//! Filters: what lies between the bytes of a connection and the frames of its session.
//!
//! A filter turns what was received into what is cut into frames, and what is sent into bytes for
//! the wire; it may also exchange messages of its own with the peer. TLS is one (module `tls`, with
//! the feature of that name). A service without one pays nothing for it.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// Makes the filters of a service's sessions. Shared by all of them.
pub trait FilterFactory: Send + Sync + 'static {
    /// A filter for one connection, before anything was received or sent.
    ///
    /// # Errors
    /// The session ends at once with that error.
    fn filter(&self) -> Result<Box<dyn Filter>, FilterError>;
}

/// The filter of one session.
///
/// Its methods are called one at a time, by whichever thread receives or sends just then. What it
/// keeps of what a peer sent is its own to bound.
pub trait Filter: Send {
    /// Takes all of `received`, bytes as they came, and appends to `plain` what the session is to
    /// receive.
    ///
    /// # Errors
    /// The session ends; what the filter has to send is sent before.
    fn receive(&mut self, received: &[u8], plain: &mut Vec<u8>) -> Result<(), FilterError>;

    /// Whether its own protocol has begun, so that the session can send: only then is
    /// [`connected`](super::SessionHandler::connected) called. Once `true` it stays so.
    fn is_ready(&self) -> bool;

    /// Whether the peer has said, in the filter's own protocol, that nothing more comes. Then the
    /// peer has ended the stream, whatever the connection still brings; a connection that ends
    /// before was cut off.
    fn has_ended(&self) -> bool;

    /// Appends to `wire` what sends all of `plain`. Only called when it is ready.
    ///
    /// # Errors
    /// The session ends.
    fn send(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), FilterError>;

    /// Whether it has something of its own to send.
    fn wants_to_send(&self) -> bool;

    /// Appends to `wire` what it has of its own to send.
    fn take_output(&mut self, wire: &mut Vec<u8>);

    /// The session sends nothing more: the moment to say so to the peer.
    fn end(&mut self);

    /// What it knows of the connection, for
    /// [`Session::filter_information`](super::Session::filter_information).
    fn information(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
}

/// Why a filter ended its session.
#[derive(Clone)]
pub struct FilterError(Arc<dyn StdError + Send + Sync>);

impl FilterError {
    /// An error of a filter, for a cause or for a sentence.
    pub fn new(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(cause.into().into())
    }

    /// The connection ended and the peer had not said, in the filter's own protocol, that it
    /// would: somebody may have cut off the rest.
    pub(super) fn cut_off() -> Self {
        Self::new("the connection was cut off: the peer did not say that it ends")
    }

    /// The cause.
    pub fn cause(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Display for FilterError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Debug for FilterError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("FilterError").field(&self.0).finish()
    }
}

impl StdError for FilterError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// In place of a filter that could not be made: never ready.
pub(super) struct NoFilter;

impl Filter for NoFilter {
    fn receive(&mut self, _received: &[u8], _plain: &mut Vec<u8>) -> Result<(), FilterError> {
        Ok(())
    }
    fn is_ready(&self) -> bool {
        false
    }
    fn has_ended(&self) -> bool {
        false
    }
    fn send(&mut self, _plain: &[u8], _wire: &mut Vec<u8>) -> Result<(), FilterError> {
        Ok(())
    }
    fn wants_to_send(&self) -> bool {
        false
    }
    fn take_output(&mut self, _wire: &mut Vec<u8>) {}
    fn end(&mut self) {}
}
