//! Buffers that an operation can own, and the pool that continuous receives are fed from.

mod pool;
mod segment;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use pool::PoolBuffer;
pub(crate) use pool::{Consumer, Pool};

/// Bytes to send or to write: owned or shared, never borrowed, because the operation keeps them
/// until its completion is dequeued (rule 140).
pub enum SendBuffer {
    /// Bytes that live as long as the program.
    Static(&'static [u8]),
    /// Bytes of the caller, given back in the completion.
    Owned(Vec<u8>),
    /// Bytes shared by reference: one copy for any number of sends.
    Shared(Bytes),
    /// What a continuous receive delivered, sent on without a copy.
    Pool(PoolBuffer),
}

impl SendBuffer {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
            Self::Pool(bytes) => bytes,
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AsRef<[u8]> for SendBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for SendBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Static(_) => "Static",
            Self::Owned(_) => "Owned",
            Self::Shared(_) => "Shared",
            Self::Pool(_) => "Pool",
        };
        write!(formatter, "SendBuffer::{name}({} bytes)", self.len())
    }
}

impl From<Vec<u8>> for SendBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}

impl From<Bytes> for SendBuffer {
    fn from(bytes: Bytes) -> Self {
        Self::Shared(bytes)
    }
}

impl From<PoolBuffer> for SendBuffer {
    fn from(bytes: PoolBuffer) -> Self {
        Self::Pool(bytes)
    }
}

impl From<&'static [u8]> for SendBuffer {
    fn from(bytes: &'static [u8]) -> Self {
        Self::Static(bytes)
    }
}

impl<const N: usize> From<&'static [u8; N]> for SendBuffer {
    fn from(bytes: &'static [u8; N]) -> Self {
        Self::Static(bytes)
    }
}

impl From<&'static str> for SendBuffer {
    fn from(text: &'static str) -> Self {
        Self::Static(text.as_bytes())
    }
}

impl From<String> for SendBuffer {
    fn from(text: String) -> Self {
        Self::Owned(text.into_bytes())
    }
}

impl From<Arc<[u8]>> for SendBuffer {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::Shared(Bytes::from_owner(bytes))
    }
}
