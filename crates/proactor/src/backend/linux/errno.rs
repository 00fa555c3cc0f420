//! Linux error numbers as portable kinds (`docs/semantics.md`, section A14).

use std::io;

use crate::error::{Error, ErrorKind};
use crate::operation::OperationKind;

/// The portable kind of an `errno`.
pub(crate) fn kind_of(errno: i32) -> ErrorKind {
    match errno {
        libc::ECANCELED => ErrorKind::Cancelled,
        // A send on a connection that the peer reset says EPIPE once the reset itself was reported.
        libc::ECONNRESET | libc::EPIPE => ErrorKind::ConnectionReset,
        libc::ECONNABORTED => ErrorKind::ConnectionAborted,
        libc::ECONNREFUSED => ErrorKind::ConnectionRefused,
        libc::ETIMEDOUT => ErrorKind::TimedOut,
        libc::ENETUNREACH | libc::ENETDOWN => ErrorKind::NetworkUnreachable,
        libc::EHOSTUNREACH | libc::EHOSTDOWN => ErrorKind::HostUnreachable,
        libc::EMSGSIZE => ErrorKind::MessageTooLong,
        // A socket has no disk to fill: ENOSPC is epoll's limit, fs.epoll.max_user_watches.
        libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC => ErrorKind::InsufficientResources,
        libc::EMFILE | libc::ENFILE => ErrorKind::TooManyOpenFiles,
        libc::ENOTCONN | libc::EDESTADDRREQ => ErrorKind::NotConnected,
        libc::EISCONN | libc::EALREADY => ErrorKind::AlreadyConnected,
        libc::EADDRINUSE => ErrorKind::AddressInUse,
        libc::EADDRNOTAVAIL => ErrorKind::AddressNotAvailable,
        libc::EACCES | libc::EPERM => ErrorKind::PermissionDenied,
        libc::EINVAL | libc::EBADF | libc::ENOTSOCK | libc::EAFNOSUPPORT | libc::EFBIG => {
            ErrorKind::InvalidInput
        }
        // A Unix socket path at which nobody listens.
        libc::ENOENT => ErrorKind::ConnectionRefused,
        libc::EOPNOTSUPP | libc::ENOSYS => ErrorKind::Unsupported,
        _ => ErrorKind::Other,
    }
}

/// The error of `operation` for an `errno`.
pub(crate) fn error_of(operation: OperationKind, errno: i32) -> Error {
    Error::with_raw(operation, kind_of(errno), errno)
}

/// The error of `operation` for what the standard library or a crate reported.
pub(crate) fn error_from_io(operation: OperationKind, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno) => error_of(operation, errno),
        None => Error::new(operation, ErrorKind::Other),
    }
}
