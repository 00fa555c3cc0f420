//! A socket's handle, options and addresses.

use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::windows::io::AsRawSocket;
use std::ptr::{null, null_mut};

use socket2::{SockAddr, SockAddrStorage};
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::{
    SIO_UDP_CONNRESET, SO_ACCEPTCONN, SO_MAX_MSG_SIZE, SO_PROTOCOL_INFOW, SO_UPDATE_ACCEPT_CONTEXT,
    SO_UPDATE_CONNECT_CONTEXT, SOCKADDR, SOCKET, SOCKET_ERROR, SOL_SOCKET, WSAIoctl,
    WSAPROTOCOL_INFOW, getsockopt, setsockopt,
};

use super::{Code, last_socket_error};

/// The handle of a socket, as calls that are not about sockets take it.
pub(crate) fn handle_of(socket: SOCKET) -> HANDLE {
    socket as HANDLE
}

/// A socket's handle.
pub(crate) fn raw(socket: &socket2::Socket) -> SOCKET {
    socket.as_raw_socket() as SOCKET
}

/// Reads an option of fixed size.
///
/// # Safety
/// `T` is what Winsock documents the option's value to be, and any bytes are a value of it.
unsafe fn option<T: Copy>(socket: SOCKET, name: i32) -> Result<T, Code> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as i32;
    // SAFETY: the value is writable for as long as is said.
    let result =
        unsafe { getsockopt(socket, SOL_SOCKET, name, value.as_mut_ptr().cast(), &mut length) };
    if result == SOCKET_ERROR {
        return Err(last_socket_error());
    }
    // SAFETY: zeros, and over them what Winsock wrote: a value, as the caller promises.
    Ok(unsafe { value.assume_init() })
}

/// What the socket was made from: its family, its type, and what its provider can do.
pub(crate) fn protocol(socket: SOCKET) -> Result<WSAPROTOCOL_INFOW, Code> {
    // SAFETY: the option's value is this structure of numbers.
    unsafe { option(socket, SO_PROTOCOL_INFOW) }
}

/// The longest datagram that can be sent.
pub(crate) fn longest_datagram(socket: SOCKET) -> Result<u32, Code> {
    // SAFETY: the option's value is a number.
    unsafe { option(socket, SO_MAX_MSG_SIZE) }
}

/// Gives an accepted socket the properties of its listener, so that every call works on it.
pub(crate) fn update_accept_context(accepted: SOCKET, listener: SOCKET) -> Result<(), Code> {
    // SAFETY: the option's value is a socket handle, of the size that is said.
    let result = unsafe {
        setsockopt(
            accepted,
            SOL_SOCKET,
            SO_UPDATE_ACCEPT_CONTEXT,
            (&raw const listener).cast(),
            size_of::<SOCKET>() as i32,
        )
    };
    if result == SOCKET_ERROR { Err(last_socket_error()) } else { Ok(()) }
}

/// Makes every call work on a socket that `ConnectEx` has connected.
pub(crate) fn update_connect_context(socket: SOCKET) -> Result<(), Code> {
    // SAFETY: this option has no value.
    let result = unsafe { setsockopt(socket, SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, null(), 0) };
    if result == SOCKET_ERROR { Err(last_socket_error()) } else { Ok(()) }
}

/// Whether a port unreachable message of the peer's host fails the next receive (rule 116).
pub(crate) fn set_report_unreachable(socket: SOCKET, report: bool) -> Result<(), Code> {
    let value = i32::from(report);
    let mut returned = 0;
    // SAFETY: the input is a BOOL that lives for the call; there is no output.
    let result = unsafe {
        WSAIoctl(
            socket,
            SIO_UDP_CONNRESET,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
            null_mut(),
            0,
            &mut returned,
            null_mut(),
            None,
        )
    };
    if result == SOCKET_ERROR { Err(last_socket_error()) } else { Ok(()) }
}

/// Whether a socket listens.
pub(crate) fn listens(socket: SOCKET) -> bool {
    // SAFETY: the option's value is a BOOL, which is a number.
    unsafe { option::<i32>(socket, SO_ACCEPTCONN) }.is_ok_and(|listens| listens != 0)
}

/// An internet address as the kernel has written it; `None` for any other.
///
/// # Safety
/// `address` is null, or points to `bytes` readable bytes.
pub(crate) unsafe fn address(address: *const SOCKADDR, bytes: i32) -> Option<SocketAddr> {
    if address.is_null() || bytes < size_of::<SOCKADDR>() as i32 {
        return None;
    }
    let bytes = (bytes as usize).min(size_of::<SockAddrStorage>());
    let copy = |storage: *mut SockAddrStorage, length: *mut i32| {
        // SAFETY: so many bytes are readable, as the caller promises, and writable in the storage.
        unsafe { address.cast::<u8>().copy_to_nonoverlapping(storage.cast(), bytes) };
        // SAFETY: `try_init` passes the place of the length.
        unsafe { *length = bytes as i32 };
        Ok(())
    };
    // SAFETY: an address of the length that is stored stands there, with zeros behind it.
    unsafe { SockAddr::try_init(copy) }.ok()?.1.as_socket()
}
