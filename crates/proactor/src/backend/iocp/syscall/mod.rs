//! The raw calls: thin functions over the documented interface, with errors as codes.
//!
//! An *overlapped* call comes back in one of three ways, and the difference decides who queues the
//! packet: done at once, pending, or refused (rules 44, 45). [`Issued`] and `Err` say which.
//!
//! The counts that an overlapped call is given room for (`lpNumberOfBytesRecvd` and its kin, and
//! `lpFlags`) are written within the call or not at all: what ends later says so in its packet. So
//! they lie on the stack.

mod connection;
mod file;
mod port;
mod socket;
mod timer;
mod transfer;

use windows_sys::Win32::Foundation::{
    ERROR_IO_PENDING, GetLastError, NTSTATUS, RtlNtStatusToDosError,
};
use windows_sys::Win32::Networking::WinSock::{SOCKET_ERROR, WSA_IO_PENDING, WSAGetLastError};

pub(crate) use connection::{ACCEPT_ADDRESS_BYTES, accept, connect, peer_of_accept};
pub(crate) use file::{is_disk_file, read, reopen_overlapped, write};
pub(crate) use port::{associate, cancel, create_port, dequeue, post, set_notification_modes};
pub(crate) use socket::{
    address, handle_of, listens, longest_datagram, protocol, raw, set_report_unreachable,
    update_accept_context, update_connect_context,
};
pub(crate) use timer::{create_timer, set_timer, wait_for_timer};
pub(crate) use transfer::{recv, recv_from, recv_now, send, send_to};

/// A code of Winsock or of Win32.
pub(crate) type Code = i32;

/// What an overlapped call that was not refused says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Issued {
    /// Done, with so many bytes. A packet comes all the same, unless the source skips it.
    Done(u32),
    /// It goes on; a packet comes.
    Pending,
}

fn last_error() -> Code {
    // SAFETY: reads a value of this thread.
    unsafe { GetLastError() as Code }
}

fn last_socket_error() -> Code {
    // SAFETY: reads a value of this thread.
    unsafe { WSAGetLastError() }
}

/// The outcome of an overlapped socket call that gives 0 or `SOCKET_ERROR`.
fn issued(result: i32, bytes: u32) -> Result<Issued, Code> {
    if result != SOCKET_ERROR {
        return Ok(Issued::Done(bytes));
    }
    match last_socket_error() {
        WSA_IO_PENDING => Ok(Issued::Pending),
        code => Err(code),
    }
}

/// The outcome of an overlapped call that gives a BOOL.
fn issued_bool(result: i32, bytes: u32) -> Result<Issued, Code> {
    if result != 0 {
        return Ok(Issued::Done(bytes));
    }
    match last_error() {
        code if code == ERROR_IO_PENDING as Code => Ok(Issued::Pending),
        code => Err(code),
    }
}

/// The Win32 code of a status, as `GetQueuedCompletionStatus` would have it; 0 for a success.
pub(crate) fn code_of_status(status: NTSTATUS) -> Code {
    if status >= 0 {
        return 0;
    }
    // SAFETY: maps one number to another.
    unsafe { RtlNtStatusToDosError(status) as Code }
}
