//! What can go wrong: one error type that keeps a portable kind and the system's own code.

use std::fmt;
use std::io;

use crate::operation::{Operation, OperationKind};

/// What failed, in terms that are the same on every backend.
///
/// The table of causes is in `docs/semantics.md` (section A14). One failure can have two names on
/// Windows (a call-time Winsock code and a dequeue-time Win32 code); both map to one kind here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ErrorKind {
    /// The operation was cancelled before it did anything (rules 76, 78).
    Cancelled,
    /// The peer reset the connection (rules 58, 59, 71).
    ConnectionReset,
    /// The socket was closed here while the operation was pending (rule 75).
    ConnectionAborted,
    /// Nobody listens at the address (rule 105).
    ConnectionRefused,
    /// The peer did not answer in the time that the system allows.
    TimedOut,
    /// No route to the network.
    NetworkUnreachable,
    /// No route to the host.
    HostUnreachable,
    /// A datagram was longer than the buffer; the first part was kept (rule 113).
    MessageTruncated,
    /// A datagram is too long to be sent; nothing was sent (rule 117).
    MessageTooLong,
    /// The system is out of memory or socket buffers (rule 141).
    InsufficientResources,
    /// The process or the system has no descriptor left.
    TooManyOpenFiles,
    /// The socket is not connected (rule 65).
    NotConnected,
    /// The socket is connected already (rule 103).
    AlreadyConnected,
    /// This side of the connection was shut down before (rules 70, 84).
    ShutDown,
    /// A read at or behind the end of a file (rule 120).
    EndOfFile,
    /// The other end of a pipe is closed (rule 124).
    BrokenPipe,
    /// The address is in use.
    AddressInUse,
    /// The address cannot be used on this machine.
    AddressNotAvailable,
    /// An argument is invalid, or the call does not fit the state of the object (rules 8, 92, 103).
    InvalidInput,
    /// The system or its policy denies the operation.
    PermissionDenied,
    /// The backend or the kernel cannot do this.
    Unsupported,
    /// There is nothing to cancel (rule 80).
    NotFound,
    /// The completion port is closed (rule 20).
    PortClosed,
    /// Anything else; the raw code says what.
    Other,
}

impl ErrorKind {
    /// The kind in one short phrase.
    pub fn description(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::ConnectionReset => "connection reset by the peer",
            Self::ConnectionAborted => "connection closed on this side",
            Self::ConnectionRefused => "connection refused: nobody listens at the address",
            Self::TimedOut => "timed out",
            Self::NetworkUnreachable => "network unreachable",
            Self::HostUnreachable => "host unreachable",
            Self::MessageTruncated => "datagram longer than the buffer",
            Self::MessageTooLong => "datagram too long to be sent",
            Self::InsufficientResources => "out of memory or socket buffers",
            Self::TooManyOpenFiles => "no descriptor left: raise the limit (ulimit -n)",
            Self::NotConnected => "socket is not connected",
            Self::AlreadyConnected => "socket is already connected",
            Self::ShutDown => "this direction was shut down",
            Self::EndOfFile => "end of file",
            Self::BrokenPipe => "broken pipe",
            Self::AddressInUse => "address in use",
            Self::AddressNotAvailable => "address not available on this machine",
            Self::InvalidInput => "invalid argument or state",
            Self::PermissionDenied => "permission denied",
            Self::Unsupported => "not supported",
            Self::NotFound => "nothing to cancel",
            Self::PortClosed => "completion port is closed",
            Self::Other => "operating system error",
        }
    }

    fn to_io(self) -> io::ErrorKind {
        match self {
            Self::ConnectionReset => io::ErrorKind::ConnectionReset,
            Self::ConnectionAborted => io::ErrorKind::ConnectionAborted,
            Self::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            Self::TimedOut => io::ErrorKind::TimedOut,
            Self::NetworkUnreachable => io::ErrorKind::NetworkUnreachable,
            Self::HostUnreachable => io::ErrorKind::HostUnreachable,
            Self::InsufficientResources => io::ErrorKind::OutOfMemory,
            Self::NotConnected => io::ErrorKind::NotConnected,
            Self::ShutDown | Self::BrokenPipe => io::ErrorKind::BrokenPipe,
            Self::EndOfFile => io::ErrorKind::UnexpectedEof,
            Self::AddressInUse => io::ErrorKind::AddrInUse,
            Self::AddressNotAvailable => io::ErrorKind::AddrNotAvailable,
            Self::InvalidInput | Self::AlreadyConnected => io::ErrorKind::InvalidInput,
            Self::PermissionDenied => io::ErrorKind::PermissionDenied,
            Self::Unsupported => io::ErrorKind::Unsupported,
            Self::NotFound => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        }
    }
}

/// The failure of one operation: which operation, a portable kind, and the raw system code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Error {
    operation: OperationKind,
    kind: ErrorKind,
    raw_os_error: i32,
    /// The likely cause, in words, where more is known than the kind says.
    cause: Option<&'static String>,
}

impl Error {
    /// An error that this library found itself: there is no system code.
    pub(crate) const fn new(operation: OperationKind, kind: ErrorKind) -> Self {
        Self { operation, kind, raw_os_error: 0, cause: None }
    }

    /// An error that the system reported, with the kind that the backend maps it to.
    pub(crate) const fn with_raw(
        operation: OperationKind,
        kind: ErrorKind,
        raw_os_error: i32,
    ) -> Self {
        Self { operation, kind, raw_os_error, cause: None }
    }

    /// The same error, with its likely cause.
    pub(crate) const fn with_cause(self, cause: &'static String) -> Self {
        Self { cause: Some(cause), ..self }
    }

    /// What failed, portably.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Which operation failed.
    pub const fn operation(&self) -> OperationKind {
        self.operation
    }

    /// The system's own code, or `None` where this library found the error: `errno` on Linux; on
    /// Windows a Winsock code where the call failed (10054) and a Win32 code where the packet did
    /// (64), which are two names of one failure and map to one [`kind`](Self::kind).
    pub const fn raw_os_error(&self) -> Option<i32> {
        if self.raw_os_error == 0 { None } else { Some(self.raw_os_error) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.operation.name(), self.kind.description())?;
        if let Some(code) = self.raw_os_error() {
            write!(formatter, " ({})", io::Error::from_raw_os_error(code))?;
        }
        match self.cause {
            Some(cause) => write!(formatter, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Error")
            .field("operation", &self.operation)
            .field("kind", &self.kind)
            .field("raw_os_error", &self.raw_os_error())
            .finish()
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(error.kind.to_io(), error)
    }
}

/// An operation that was refused when it was started: no packet comes, and everything that was
/// handed in comes back (rule 45).
pub struct Rejected {
    error: Error,
    operation: Operation,
}

impl Rejected {
    pub(crate) fn new(error: Error, operation: Operation) -> Self {
        Self { error, operation }
    }

    /// Why it was refused.
    pub fn error(&self) -> Error {
        self.error
    }

    /// The operation, with its buffers and its context, as it was handed in.
    pub fn into_operation(self) -> Operation {
        self.operation
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(formatter)
    }
}

impl fmt::Debug for Rejected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Rejected").field("error", &self.error).finish_non_exhaustive()
    }
}

impl std::error::Error for Rejected {}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        rejected.error
    }
}

impl From<Rejected> for io::Error {
    fn from(rejected: Rejected) -> Self {
        rejected.error.into()
    }
}

/// A source that could not be associated: the error, and the source as it was handed in.
pub struct AssociateError<S> {
    error: Error,
    source: S,
}

impl<S> AssociateError<S> {
    pub(crate) fn new(error: Error, source: S) -> Self {
        Self { error, source }
    }

    /// Why the association was refused.
    pub fn error(&self) -> Error {
        self.error
    }

    /// The source, still open and unchanged in ownership.
    pub fn into_source(self) -> S {
        self.source
    }
}

impl<S> fmt::Display for AssociateError<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(formatter)
    }
}

impl<S> fmt::Debug for AssociateError<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AssociateError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<S> std::error::Error for AssociateError<S> {}

impl<S> From<AssociateError<S>> for Error {
    fn from(refused: AssociateError<S>) -> Self {
        refused.error
    }
}

impl<S> From<AssociateError<S>> for io::Error {
    fn from(refused: AssociateError<S>) -> Self {
        refused.error.into()
    }
}

/// Why a dequeue gave no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DequeueError {
    /// The time was up and no packet had come (rules 15, 18, 26).
    TimedOut,
    /// The port is closed (rules 15, 20, 30).
    Closed,
    /// The system refused this thread what it needs to wait (for example a descriptor).
    Failed(Error),
}

impl fmt::Display for DequeueError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => formatter.write_str("dequeue: timed out"),
            Self::Closed => formatter.write_str("dequeue: the completion port is closed"),
            Self::Failed(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for DequeueError {}

impl From<DequeueError> for io::Error {
    fn from(error: DequeueError) -> Self {
        match error {
            DequeueError::TimedOut => io::Error::new(io::ErrorKind::TimedOut, error),
            DequeueError::Closed => io::Error::other(error),
            DequeueError::Failed(error) => error.into(),
        }
    }
}
