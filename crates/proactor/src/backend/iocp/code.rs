//! Winsock and Win32 codes as portable kinds (`docs/semantics.md`, section A14).
//!
//! One failure has two names: the call that starts an operation fails with a Winsock code, its
//! packet with a Win32 code. Both stand in one row.

use std::io;

use windows_sys::Win32::Foundation as win32;
use windows_sys::Win32::Networking::WinSock as winsock;

use super::syscall::Code;
use crate::error::{Error, ErrorKind};
use crate::operation::OperationKind;

/// The codes of each kind: of Winsock, then of Win32.
const KINDS: &[(ErrorKind, &[i32], &[u32])] = &[
    (ErrorKind::Cancelled, &[], &[win32::ERROR_OPERATION_ABORTED]),
    (
        ErrorKind::ConnectionReset,
        &[winsock::WSAECONNRESET, winsock::WSAENETRESET],
        &[win32::ERROR_NETNAME_DELETED],
    ),
    (
        ErrorKind::ConnectionAborted,
        &[winsock::WSAECONNABORTED],
        // The last one is what a closed handle gives where the kernel has no other word for it.
        &[win32::ERROR_CONNECTION_ABORTED, win32::ERROR_HANDLES_CLOSED],
    ),
    (
        ErrorKind::ConnectionRefused,
        &[winsock::WSAECONNREFUSED],
        &[win32::ERROR_CONNECTION_REFUSED, win32::ERROR_PORT_UNREACHABLE],
    ),
    (
        ErrorKind::TimedOut,
        &[winsock::WSAETIMEDOUT],
        &[win32::ERROR_SEM_TIMEOUT, win32::ERROR_TIMEOUT],
    ),
    (
        ErrorKind::NetworkUnreachable,
        &[winsock::WSAENETUNREACH, winsock::WSAENETDOWN],
        &[win32::ERROR_NETWORK_UNREACHABLE],
    ),
    (
        ErrorKind::HostUnreachable,
        &[winsock::WSAEHOSTUNREACH, winsock::WSAEHOSTDOWN],
        &[win32::ERROR_HOST_UNREACHABLE],
    ),
    (
        ErrorKind::InsufficientResources,
        &[winsock::WSAENOBUFS],
        &[
            win32::ERROR_NO_SYSTEM_RESOURCES,
            win32::ERROR_NOT_ENOUGH_MEMORY,
            win32::ERROR_OUTOFMEMORY,
            win32::ERROR_WORKING_SET_QUOTA,
            win32::ERROR_NOT_ENOUGH_QUOTA,
            win32::ERROR_COMMITMENT_LIMIT,
            win32::ERROR_INVALID_USER_BUFFER,
        ],
    ),
    (ErrorKind::TooManyOpenFiles, &[winsock::WSAEMFILE], &[win32::ERROR_TOO_MANY_OPEN_FILES]),
    (
        ErrorKind::NotConnected,
        &[winsock::WSAENOTCONN, winsock::WSAEDESTADDRREQ],
        &[win32::ERROR_UNEXP_NET_ERR, win32::ERROR_NOT_CONNECTED, win32::ERROR_CONNECTION_INVALID],
    ),
    (
        ErrorKind::AlreadyConnected,
        &[winsock::WSAEISCONN, winsock::WSAEALREADY],
        &[win32::ERROR_CONNECTION_ACTIVE],
    ),
    (ErrorKind::ShutDown, &[winsock::WSAESHUTDOWN], &[win32::ERROR_GRACEFUL_DISCONNECT]),
    (ErrorKind::EndOfFile, &[], &[win32::ERROR_HANDLE_EOF]),
    (
        ErrorKind::BrokenPipe,
        &[],
        &[win32::ERROR_BROKEN_PIPE, win32::ERROR_NO_DATA, win32::ERROR_PIPE_NOT_CONNECTED],
    ),
    (
        ErrorKind::AddressInUse,
        &[winsock::WSAEADDRINUSE],
        &[win32::ERROR_ADDRESS_ALREADY_ASSOCIATED],
    ),
    (
        ErrorKind::AddressNotAvailable,
        &[winsock::WSAEADDRNOTAVAIL],
        &[win32::ERROR_INVALID_NETNAME, win32::ERROR_INCORRECT_ADDRESS],
    ),
    (
        ErrorKind::InvalidInput,
        &[
            winsock::WSAEINVAL,
            winsock::WSAEFAULT,
            winsock::WSAENOTSOCK,
            winsock::WSAEBADF,
            winsock::WSAEAFNOSUPPORT,
        ],
        &[win32::ERROR_INVALID_PARAMETER, win32::ERROR_INVALID_HANDLE, win32::ERROR_NEGATIVE_SEEK],
    ),
    (
        ErrorKind::PermissionDenied,
        &[winsock::WSAEACCES],
        &[
            win32::ERROR_ACCESS_DENIED,
            win32::ERROR_WRITE_PROTECT,
            win32::ERROR_SHARING_VIOLATION,
            win32::ERROR_LOCK_VIOLATION,
        ],
    ),
    (
        ErrorKind::Unsupported,
        &[winsock::WSAEOPNOTSUPP],
        &[
            win32::ERROR_NOT_SUPPORTED,
            win32::ERROR_INVALID_FUNCTION,
            win32::ERROR_CALL_NOT_IMPLEMENTED,
        ],
    ),
    (ErrorKind::NotFound, &[], &[win32::ERROR_NOT_FOUND]),
    (ErrorKind::PortClosed, &[], &[win32::ERROR_ABANDONED_WAIT_0]),
];

/// The portable kind of a code, for `operation`: a few codes say another thing for some.
pub(crate) fn kind_of(operation: OperationKind, code: Code) -> ErrorKind {
    let is = |winsock: i32, win32: u32| code == winsock || code == win32 as i32;
    match operation {
        OperationKind::RecvFrom if is(winsock::WSAEMSGSIZE, win32::ERROR_MORE_DATA) => {
            ErrorKind::MessageTruncated
        }
        OperationKind::SendTo if is(winsock::WSAEMSGSIZE, win32::ERROR_INVALID_USER_BUFFER) => {
            ErrorKind::MessageTooLong
        }
        // A datagram socket has no connection to reset: nobody is at the peer's port (rule 116).
        OperationKind::RecvFrom | OperationKind::SendTo
            if is(winsock::WSAECONNRESET, win32::ERROR_NETNAME_DELETED) =>
        {
            ErrorKind::ConnectionRefused
        }
        // The sending side was not shut down here, or the call would not have been made: the peer
        // is gone.
        OperationKind::Send | OperationKind::Disconnect | OperationKind::Shutdown
            if is(winsock::WSAESHUTDOWN, win32::ERROR_PIPE_NOT_CONNECTED)
                || is(winsock::WSAENOTCONN, win32::ERROR_BROKEN_PIPE) =>
        {
            ErrorKind::ConnectionReset
        }
        _ => KINDS
            .iter()
            .find(|(_, winsock, win32)| {
                winsock.contains(&code) || win32.iter().any(|&other| other as i32 == code)
            })
            .map_or(ErrorKind::Other, |(kind, ..)| *kind),
    }
}

/// The error of `operation` for a code.
pub(crate) fn error_of(operation: OperationKind, code: Code) -> Error {
    Error::with_raw(operation, kind_of(operation, code), code)
}

/// The error of `operation` for what the standard library or a crate reported.
pub(crate) fn error_from_io(operation: OperationKind, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(code) => error_of(operation, code),
        None => Error::new(operation, ErrorKind::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_a_failure_are_one_kind() {
        use OperationKind::{Accept, Connect, ReadAt, Recv, RecvFrom, Send, SendTo};
        for (operation, at_the_call, at_the_dequeue, kind) in [
            (Recv, 10054, 64, ErrorKind::ConnectionReset),
            (Send, 10054, 64, ErrorKind::ConnectionReset),
            (Recv, 10053, 1236, ErrorKind::ConnectionAborted),
            (Connect, 10061, 1225, ErrorKind::ConnectionRefused),
            (Connect, 10060, 121, ErrorKind::TimedOut),
            (Connect, 10051, 1231, ErrorKind::NetworkUnreachable),
            (Connect, 10065, 1232, ErrorKind::HostUnreachable),
            (RecvFrom, 10054, 1234, ErrorKind::ConnectionRefused),
            (RecvFrom, 10040, 234, ErrorKind::MessageTruncated),
            (SendTo, 10040, 1784, ErrorKind::MessageTooLong),
            (Recv, 10055, 1450, ErrorKind::InsufficientResources),
            (Recv, 10057, 59, ErrorKind::NotConnected),
            (Accept, 995, 995, ErrorKind::Cancelled),
            (ReadAt, 38, 38, ErrorKind::EndOfFile),
            (ReadAt, 5, 5, ErrorKind::PermissionDenied),
            (Accept, 10022, 87, ErrorKind::InvalidInput),
            (Accept, 10024, 4, ErrorKind::TooManyOpenFiles),
        ] {
            assert_eq!(kind_of(operation, at_the_call), kind, "{at_the_call}");
            assert_eq!(kind_of(operation, at_the_dequeue), kind, "{at_the_dequeue}");
        }
        assert_eq!(kind_of(Recv, 31_999), ErrorKind::Other);
    }

    #[test]
    fn no_code_has_two_kinds() {
        let mut codes: Vec<i32> = KINDS
            .iter()
            .flat_map(|(_, winsock, win32)| {
                winsock.iter().copied().chain(win32.iter().map(|&code| code as i32))
            })
            .collect();
        let before = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), before);
    }
}
