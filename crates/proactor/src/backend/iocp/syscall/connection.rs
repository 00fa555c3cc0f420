//! Accepting and connecting: the extension functions of a socket's provider.

use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use socket2::SockAddr;
use windows_sys::Win32::Networking::WinSock::{
    LPFN_ACCEPTEX, LPFN_CONNECTEX, LPFN_GETACCEPTEXSOCKADDRS, SIO_GET_EXTENSION_FUNCTION_POINTER,
    SOCKADDR_STORAGE, SOCKET, SOCKET_ERROR, WSAEOPNOTSUPP, WSAID_ACCEPTEX, WSAID_CONNECTEX,
    WSAID_GETACCEPTEXSOCKADDRS, WSAIoctl,
};
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::{Code, Issued, address, issued_bool, last_socket_error};

/// Loads an extension function of the socket's provider.
///
/// # Safety
/// `F` is an optional function pointer of the signature that `id` names.
unsafe fn extension<F: Copy>(socket: SOCKET, id: &windows_sys::core::GUID) -> Result<F, Code> {
    assert_eq!(size_of::<F>(), size_of::<*const c_void>(), "an optional function pointer");
    let mut function = MaybeUninit::<F>::zeroed();
    let mut returned = 0;
    // SAFETY: the input is a GUID and the output has the size of a pointer.
    let result = unsafe {
        WSAIoctl(
            socket,
            SIO_GET_EXTENSION_FUNCTION_POINTER,
            std::ptr::from_ref(id).cast(),
            size_of_val(id) as u32,
            function.as_mut_ptr().cast(),
            size_of::<F>() as u32,
            &mut returned,
            null_mut(),
            None,
        )
    };
    if result == SOCKET_ERROR {
        return Err(last_socket_error());
    }
    // SAFETY: a null pointer is `None`; anything else is the function, as the caller promises.
    Ok(unsafe { function.assume_init() })
}

/// The extension functions for accepting.
struct AcceptFunctions {
    accept: LPFN_ACCEPTEX,
    addresses: LPFN_GETACCEPTEXSOCKADDRS,
}

static ACCEPT_FUNCTIONS: OnceLock<AcceptFunctions> = OnceLock::new();

fn accept_functions(listener: SOCKET) -> Result<&'static AcceptFunctions, Code> {
    if let Some(functions) = ACCEPT_FUNCTIONS.get() {
        return Ok(functions);
    }
    // SAFETY: the type is that of AcceptEx.
    let accept = unsafe { extension(listener, &WSAID_ACCEPTEX) }?;
    // SAFETY: the type is that of GetAcceptExSockaddrs.
    let addresses = unsafe { extension(listener, &WSAID_GETACCEPTEXSOCKADDRS) }?;
    Ok(ACCEPT_FUNCTIONS.get_or_init(|| AcceptFunctions { accept, addresses }))
}

/// Room for one address in the output of [`accept`]: 16 bytes more than the longest.
pub(crate) const ACCEPT_ADDRESS_BYTES: usize = size_of::<SOCKADDR_STORAGE>() + 16;

/// Starts to accept a connection into `accepted`.
///
/// # Safety
/// `output` has room for two addresses of [`ACCEPT_ADDRESS_BYTES`], and it and `overlapped` stay
/// valid and unused until the packet is dequeued, or this gives an error.
pub(crate) unsafe fn accept(
    listener: SOCKET,
    accepted: SOCKET,
    output: *mut u8,
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    let Some(function) = accept_functions(listener)?.accept else { return Err(WSAEOPNOTSUPP) };
    let mut bytes = 0;
    let length = ACCEPT_ADDRESS_BYTES as u32;
    // SAFETY: as the caller promises.
    let result = unsafe {
        function(listener, accepted, output.cast(), 0, length, length, &mut bytes, overlapped)
    };
    issued_bool(result, bytes)
}

/// Where an accepted connection comes from, by what `AcceptEx` has written.
pub(crate) fn peer_of_accept(output: &[u8; 2 * ACCEPT_ADDRESS_BYTES]) -> Option<SocketAddr> {
    let function = ACCEPT_FUNCTIONS.get()?.addresses?;
    let (mut local, mut peer) = (null_mut(), null_mut());
    let (mut local_bytes, mut peer_bytes) = (0, 0);
    let length = ACCEPT_ADDRESS_BYTES as u32;
    // SAFETY: the lengths are those that AcceptEx was called with, and the places are writable.
    unsafe {
        function(
            output.as_ptr().cast(),
            0,
            length,
            length,
            &mut local,
            &mut local_bytes,
            &mut peer,
            &mut peer_bytes,
        );
    }
    // SAFETY: the results point into `output`, and each is as long as is said.
    unsafe { address(peer.cast_const(), peer_bytes) }
}

/// Starts to connect a bound socket.
///
/// # Safety
/// `overlapped` stays valid until the packet is dequeued, or this gives an error.
pub(crate) unsafe fn connect(
    socket: SOCKET,
    address: &SockAddr,
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    static FUNCTION: OnceLock<LPFN_CONNECTEX> = OnceLock::new();
    let function = match FUNCTION.get() {
        Some(function) => *function,
        None => {
            // SAFETY: the type is that of ConnectEx.
            let function = unsafe { extension(socket, &WSAID_CONNECTEX) }?;
            *FUNCTION.get_or_init(|| function)
        }
    };
    let Some(function) = function else { return Err(WSAEOPNOTSUPP) };
    let mut bytes = 0;
    // SAFETY: as the caller promises; the address is read within the call.
    let result = unsafe {
        function(socket, address.as_ptr().cast(), address.len(), null(), 0, &mut bytes, overlapped)
    };
    issued_bool(result, bytes)
}
