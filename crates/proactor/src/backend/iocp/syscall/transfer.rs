//! Moving bytes: streams and datagrams.

use std::mem::MaybeUninit;

use socket2::SockAddr;
use windows_sys::Win32::Networking::WinSock::{
    SOCKADDR, SOCKADDR_STORAGE, SOCKET, SOCKET_ERROR, WSABUF, WSARecv, WSARecvFrom, WSASend,
    WSASendTo, recv as winsock_recv,
};
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::{Code, Issued, issued, last_socket_error};

/// Starts to receive. The list of buffers is read within the call (rule 62).
///
/// # Safety
/// The memory that `buffers` names, and `overlapped`, stay valid and unused until the packet is
/// dequeued, or this gives an error.
pub(crate) unsafe fn recv(
    socket: SOCKET,
    buffers: &[WSABUF],
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    let (mut bytes, mut flags) = (0, 0);
    // SAFETY: as the caller promises.
    let result = unsafe {
        WSARecv(
            socket,
            buffers.as_ptr(),
            buffers.len() as u32,
            &mut bytes,
            &mut flags,
            overlapped,
            None,
        )
    };
    issued(result, bytes)
}

/// Receives what is there, without waiting: the socket is in non-blocking mode.
pub(crate) fn recv_now(socket: SOCKET, buffer: &mut [MaybeUninit<u8>]) -> Result<usize, Code> {
    let room = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
    // SAFETY: the buffer is writable for as long as is said, and the call is over when it returns.
    let result = unsafe { winsock_recv(socket, buffer.as_mut_ptr().cast(), room, 0) };
    if result == SOCKET_ERROR { Err(last_socket_error()) } else { Ok(result as usize) }
}

/// Starts to send. The list of buffers is read within the call.
///
/// # Safety
/// The memory that `buffers` names stays valid and unchanged, and `overlapped` valid, until the
/// packet is dequeued, or this gives an error.
pub(crate) unsafe fn send(
    socket: SOCKET,
    buffers: &[WSABUF],
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    let mut bytes = 0;
    // SAFETY: as the caller promises.
    let result = unsafe {
        WSASend(socket, buffers.as_ptr(), buffers.len() as u32, &mut bytes, 0, overlapped, None)
    };
    issued(result, bytes)
}

/// Starts to receive a datagram and its sender's address.
///
/// # Safety
/// The memory that `buffer` names, `peer`, `peer_bytes` and `overlapped` stay valid and unused until
/// the packet is dequeued, or this gives an error.
pub(crate) unsafe fn recv_from(
    socket: SOCKET,
    buffer: WSABUF,
    peer: *mut SOCKADDR_STORAGE,
    peer_bytes: *mut i32,
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    let (mut bytes, mut flags) = (0, 0);
    // SAFETY: as the caller promises.
    let result = unsafe {
        WSARecvFrom(
            socket,
            &buffer,
            1,
            &mut bytes,
            &mut flags,
            peer.cast::<SOCKADDR>(),
            peer_bytes,
            overlapped,
            None,
        )
    };
    issued(result, bytes)
}

/// Starts to send a datagram, to the connected peer where `peer` is `None`.
///
/// # Safety
/// As for [`send`]; the address is read within the call.
pub(crate) unsafe fn send_to(
    socket: SOCKET,
    buffer: WSABUF,
    peer: Option<&SockAddr>,
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    let Some(peer) = peer else {
        // SAFETY: as the caller promises.
        return unsafe { send(socket, &[buffer], overlapped) };
    };
    let mut bytes = 0;
    // SAFETY: as the caller promises.
    let result = unsafe {
        WSASendTo(
            socket,
            &buffer,
            1,
            &mut bytes,
            0,
            peer.as_ptr().cast(),
            peer.len(),
            overlapped,
            None,
        )
    };
    issued(result, bytes)
}
