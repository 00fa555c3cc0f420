//! Overlapped operations: what is started on an associated source, and comes back in a packet.
//!
//! One file per family holds the methods that start its operations. An [`Operation`] owns its
//! buffers and its context from the start until its completion is dequeued, so nothing that the
//! kernel or the library still uses can be freed or changed by safe code (rules 139, 140).

mod accept;
mod cancel;
mod connect;
mod datagram;
mod file;
mod recv;
mod send;

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer::SendBuffer;
use crate::port::Accepted;

/// Which operation a packet or an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum OperationKind {
    /// Not started yet.
    Idle,
    /// Creating a completion port.
    CreatePort,
    /// Associating a source with a port.
    Associate,
    /// Dequeuing.
    Dequeue,
    /// Accepting a connection.
    Accept,
    /// Connecting to a peer.
    Connect,
    /// Receiving on a stream into the caller's buffers.
    Recv,
    /// Receiving on a stream into the port's buffers until stopped.
    RecvContinuous,
    /// Sending on a stream.
    Send,
    /// Ending the sending side of a stream.
    Disconnect,
    /// Shutting down a direction of a stream.
    Shutdown,
    /// Receiving a datagram.
    RecvFrom,
    /// Sending a datagram.
    SendTo,
    /// Reading from a file at an offset.
    ReadAt,
    /// Writing to a file at an offset.
    WriteAt,
    /// A timer.
    Timer,
    /// A packet that the program posted.
    Post,
    /// A request to cancel.
    Cancel,
}

impl OperationKind {
    /// The operation's name, as error messages use it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::CreatePort => "create port",
            Self::Associate => "associate",
            Self::Dequeue => "dequeue",
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Recv => "recv",
            Self::RecvContinuous => "recv (continuous)",
            Self::Send => "send",
            Self::Disconnect => "disconnect",
            Self::Shutdown => "shutdown",
            Self::RecvFrom => "recv_from",
            Self::SendTo => "send_to",
            Self::ReadAt => "read_at",
            Self::WriteAt => "write_at",
            Self::Timer => "timer",
            Self::Post => "post",
            Self::Cancel => "cancel",
        }
    }
}

/// Names one start of one operation, for cancelling it and for recognising its packet.
///
/// An operation that is started again has another id, so a late cancel cannot hit the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OperationId {
    object: u64,
    start: u64,
}

/// An overlapped operation: owns buffers and context while it is in flight, and is reused for the
/// next one, so that a steady state allocates nothing.
///
/// ```
/// use proactor::Operation;
/// let mut operation = Operation::with_context(String::from("login"));
/// assert_eq!(operation.context::<String>().unwrap(), "login");
/// ```
pub struct Operation {
    pub(crate) inner: Box<Inner>,
}

/// What an operation carries; filled in when it is started.
pub(crate) struct Inner {
    pub(crate) id: OperationId,
    pub(crate) kind: OperationKind,
    /// Bytes moved so far: a stream send is resumed from here until it is whole (rule 67).
    pub(crate) done_bytes: usize,
    /// It was cancelled while the kernel was reading its buffers: it ends when that is over.
    pub(crate) cancelled: bool,
    /// Where in the file to read or write; `u64::MAX` appends (rule 121).
    pub(crate) offset: u64,
    pub(crate) payload: Payload,
    pub(crate) context: Option<Box<dyn Any + Send>>,
    /// What the kernel and the backend keep in it while it is in flight.
    #[cfg(windows)]
    pub(crate) native: crate::backend::iocp::Native,
}

/// The buffers and other things that an operation owns while it is in flight.
pub(crate) enum Payload {
    None,
    /// Receive or read into the vector's capacity, from its start.
    Buffer(Vec<u8>),
    /// Receive into several vectors in order, each to its capacity.
    Buffers(Vec<Vec<u8>>),
    /// Send or write one buffer.
    Data(SendBuffer),
    /// Send several buffers in order.
    Gather(Vec<SendBuffer>),
    /// The accepted connection.
    Accepted(Box<Accepted>),
    /// Connect to this address.
    Address(Box<socket2::SockAddr>),
    /// A received datagram and where it came from.
    Datagram(Vec<u8>, Option<SocketAddr>),
    /// A datagram to send, and where to; `None` is the connected peer.
    DatagramTo(SendBuffer, Option<SocketAddr>),
}

static NEXT_OBJECT: AtomicU64 = AtomicU64::new(1);

impl Operation {
    /// A new operation without a context.
    pub fn new() -> Self {
        let object = NEXT_OBJECT.fetch_add(1, Ordering::Relaxed);
        Self {
            inner: Box::new(Inner {
                id: OperationId { object, start: 0 },
                kind: OperationKind::Idle,
                done_bytes: 0,
                cancelled: false,
                offset: 0,
                payload: Payload::None,
                context: None,
                #[cfg(windows)]
                native: Default::default(),
            }),
        }
    }

    /// A new operation that carries `context` to whoever dequeues its packet.
    pub fn with_context<C: Any + Send>(context: C) -> Self {
        let mut operation = Self::new();
        operation.set_context(context);
        operation
    }

    /// What was last started with this operation, [`OperationKind::Idle`] before the first start.
    pub fn kind(&self) -> OperationKind {
        self.inner.kind
    }

    /// The id of the last start.
    pub fn id(&self) -> OperationId {
        self.inner.id
    }

    /// Puts a context in, and gives up the one that was there.
    pub fn set_context<C: Any + Send>(&mut self, context: C) {
        self.inner.context = Some(Box::new(context));
    }

    /// The context, if it is of type `C`.
    pub fn context<C: Any + Send>(&self) -> Option<&C> {
        self.inner.context.as_ref()?.downcast_ref()
    }

    /// The context to change, if it is of type `C`.
    pub fn context_mut<C: Any + Send>(&mut self) -> Option<&mut C> {
        self.inner.context.as_mut()?.downcast_mut()
    }

    /// Takes the context out, if it is of type `C`.
    pub fn take_context<C: Any + Send>(&mut self) -> Option<Box<C>> {
        match self.inner.context.take()?.downcast() {
            Ok(context) => Some(context),
            Err(other) => {
                self.inner.context = Some(other);
                None
            }
        }
    }

    /// The bytes of a finished receive, datagram or file read; empty for other operations.
    pub fn buffer(&self) -> &[u8] {
        match &self.inner.payload {
            Payload::Buffer(buffer) | Payload::Datagram(buffer, _) => buffer,
            _ => &[],
        }
    }

    /// Takes the buffer of a receive, datagram or file read out of the operation.
    ///
    /// Its length is the number of bytes received. `None` for other operations.
    pub fn take_buffer(&mut self) -> Option<Vec<u8>> {
        match &mut self.inner.payload {
            Payload::Buffer(buffer) | Payload::Datagram(buffer, _) => Some(std::mem::take(buffer)),
            _ => None,
        }
    }

    /// Takes the buffers of a receive into several buffers out of the operation.
    pub fn take_buffers(&mut self) -> Option<Vec<Vec<u8>>> {
        match &mut self.inner.payload {
            Payload::Buffers(buffers) => Some(std::mem::take(buffers)),
            _ => None,
        }
    }

    /// Takes the buffer of a send, datagram send or file write out of the operation.
    pub fn take_send_buffer(&mut self) -> Option<SendBuffer> {
        match std::mem::replace(&mut self.inner.payload, Payload::None) {
            Payload::Data(buffer) | Payload::DatagramTo(buffer, _) => Some(buffer),
            other => {
                self.inner.payload = other;
                None
            }
        }
    }

    /// Takes the buffers of a gathered send out of the operation.
    ///
    /// The vector itself can be filled again and reused, so that a steady state allocates nothing.
    pub fn take_send_buffers(&mut self) -> Option<Vec<SendBuffer>> {
        match &mut self.inner.payload {
            Payload::Gather(buffers) => Some(std::mem::take(buffers)),
            _ => None,
        }
    }

    /// Takes the connection that an accept brought. Dropping it unread closes it.
    pub fn take_accepted(&mut self) -> Option<Accepted> {
        match std::mem::replace(&mut self.inner.payload, Payload::None) {
            Payload::Accepted(accepted) => Some(*accepted),
            other => {
                self.inner.payload = other;
                None
            }
        }
    }

    /// Where a received datagram came from.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match &self.inner.payload {
            Payload::Datagram(_, peer) => *peer,
            _ => None,
        }
    }

    /// Makes the operation ready for a start: a new id, the kind, and what it owns.
    ///
    /// What an earlier start left in it (a sent buffer, an unclaimed connection) is dropped here.
    pub(crate) fn prepare(&mut self, kind: OperationKind, payload: Payload) -> OperationId {
        let inner = &mut *self.inner;
        inner.id.start += u64::from(!planted!(OperationIdReused));
        inner.kind = kind;
        if !planted!(DoneBytesKept) {
            inner.done_bytes = 0;
        }
        inner.cancelled = false;
        inner.payload = payload;
        inner.id
    }
}

impl Default for Operation {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Operation")
            .field("id", &self.inner.id)
            .field("kind", &self.inner.kind)
            .finish_non_exhaustive()
    }
}
