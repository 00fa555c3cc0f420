//! The raw calls: thin functions over the documented interface, with errors as codes.
//!
//! An *overlapped* call comes back in one of three ways, and the difference decides who queues the
//! packet: done at once, pending, or refused (rules 44, 45). [`Issued`] and `Err` say which.

use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::windows::io::{AsRawHandle, AsRawSocket, FromRawHandle, OwnedHandle};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use socket2::{SockAddr, SockAddrStorage};
use windows_sys::Wdk::Foundation::{NtQueryObject, ObjectBasicInformation};
use windows_sys::Win32::Foundation::{
    ERROR_IO_PENDING, ERROR_NOT_FOUND, GetLastError, HANDLE, INVALID_HANDLE_VALUE, NTSTATUS,
    RtlNtStatusToDosError, WAIT_TIMEOUT,
};
use windows_sys::Win32::Networking::WinSock::{
    LPFN_ACCEPTEX, LPFN_CONNECTEX, LPFN_GETACCEPTEXSOCKADDRS, SIO_GET_EXTENSION_FUNCTION_POINTER,
    SIO_UDP_CONNRESET, SO_ACCEPTCONN, SO_MAX_MSG_SIZE, SO_PROTOCOL_INFOW, SO_UPDATE_ACCEPT_CONTEXT,
    SO_UPDATE_CONNECT_CONTEXT, SOCKADDR, SOCKADDR_STORAGE, SOCKET, SOCKET_ERROR, SOL_SOCKET,
    WSA_IO_PENDING, WSABUF, WSAEOPNOTSUPP, WSAGetLastError, WSAID_ACCEPTEX, WSAID_CONNECTEX,
    WSAID_GETACCEPTEXSOCKADDRS, WSAIoctl, WSAPROTOCOL_INFOW, WSARecv, WSARecvFrom, WSASend,
    WSASendTo, getsockopt, recv as winsock_recv, setsockopt,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_OVERLAPPED, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_TYPE_DISK,
    GetFileType, ReOpenFile, ReadFile, SetFileCompletionNotificationModes, WriteFile,
};
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, GetQueuedCompletionStatusEx, OVERLAPPED, OVERLAPPED_ENTRY,
    PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::{
    CREATE_WAITABLE_TIMER_HIGH_RESOLUTION, CreateWaitableTimerExW, INFINITE, SetWaitableTimer,
    TIMER_ALL_ACCESS, WaitForSingleObject,
};
use windows_sys::Win32::System::WindowsProgramming::{
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE,
    PUBLIC_OBJECT_BASIC_INFORMATION,
};

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

// The port.

/// A new completion port.
pub(crate) fn create_port(concurrency: u32) -> Result<OwnedHandle, Code> {
    // SAFETY: creates an object, from no handle.
    let handle =
        unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, null_mut(), 0, concurrency) };
    if handle.is_null() {
        return Err(last_error());
    }
    // SAFETY: the handle was created here and belongs to nobody else.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Associates a handle with a port. Packets name their operation, which knows its source: the
/// kernel's key is not used.
pub(crate) fn associate(port: &OwnedHandle, handle: HANDLE) -> Result<(), Code> {
    // SAFETY: the port is open; a handle that is not is refused.
    let result = unsafe { CreateIoCompletionPort(handle, port.as_raw_handle(), 0, 0) };
    if result.is_null() { Err(last_error()) } else { Ok(()) }
}

/// How packets of a handle are to be queued. Nobody waits on the handle itself.
pub(crate) fn set_notification_modes(handle: HANDLE, skip_on_success: bool) -> Result<(), Code> {
    let mut modes = FILE_SKIP_SET_EVENT_ON_HANDLE;
    if skip_on_success {
        modes |= FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;
    }
    // SAFETY: changes modes of an open handle.
    let result = unsafe { SetFileCompletionNotificationModes(handle, modes as u8) };
    if result == 0 { Err(last_error()) } else { Ok(()) }
}

/// Queues a packet.
pub(crate) fn post(
    port: &OwnedHandle,
    bytes: u32,
    key: usize,
    overlapped: *const OVERLAPPED,
) -> Result<(), Code> {
    // SAFETY: the kernel passes the three values on and follows none of them (rule 32).
    let result =
        unsafe { PostQueuedCompletionStatus(port.as_raw_handle(), bytes, key, overlapped) };
    if result == 0 { Err(last_error()) } else { Ok(()) }
}

/// Waits for packets; 0 of them at a timeout. `None` waits for ever.
pub(crate) fn dequeue(
    port: &OwnedHandle,
    entries: &mut [OVERLAPPED_ENTRY],
    timeout_ms: Option<u32>,
) -> Result<usize, Code> {
    let mut count = 0;
    // SAFETY: the entries are writable, and as many as is said.
    let result = unsafe {
        GetQueuedCompletionStatusEx(
            port.as_raw_handle(),
            entries.as_mut_ptr(),
            entries.len() as u32,
            &mut count,
            timeout_ms.unwrap_or(INFINITE),
            0,
        )
    };
    if result != 0 {
        return Ok(count as usize);
    }
    match last_error() {
        code if code == WAIT_TIMEOUT as Code => Ok(0),
        code => Err(code),
    }
}

/// Asks to cancel one operation, or every one where `overlapped` is null; `false` where there is
/// none to cancel.
pub(crate) fn cancel(handle: HANDLE, overlapped: *const OVERLAPPED) -> bool {
    // SAFETY: the pointer is compared with those of pending operations and not followed.
    let result = unsafe { CancelIoEx(handle, overlapped) };
    if result != 0 {
        return true;
    }
    let code = last_error();
    if code != ERROR_NOT_FOUND as Code {
        tracing::debug!(code, "CancelIoEx");
    }
    false
}

// Sockets.

/// Reads an option of fixed size.
fn option<T: Copy>(socket: SOCKET, name: i32) -> Result<T, Code> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as i32;
    // SAFETY: the value is writable for as long as is said.
    let result =
        unsafe { getsockopt(socket, SOL_SOCKET, name, value.as_mut_ptr().cast(), &mut length) };
    if result == SOCKET_ERROR {
        return Err(last_socket_error());
    }
    // SAFETY: T is one of the plain structures of this file, for which zeros are a value too.
    Ok(unsafe { value.assume_init() })
}

/// What the socket was made from: its family, its type, and what its provider can do.
pub(crate) fn protocol(socket: SOCKET) -> Result<WSAPROTOCOL_INFOW, Code> {
    option(socket, SO_PROTOCOL_INFOW)
}

/// The longest datagram that can be sent.
pub(crate) fn longest_datagram(socket: SOCKET) -> Result<u32, Code> {
    option(socket, SO_MAX_MSG_SIZE)
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
    // SAFETY: the types are those of the functions that the ids name.
    let functions = unsafe {
        AcceptFunctions {
            accept: extension(listener, &WSAID_ACCEPTEX)?,
            addresses: extension(listener, &WSAID_GETACCEPTEXSOCKADDRS)?,
        }
    };
    Ok(ACCEPT_FUNCTIONS.get_or_init(|| functions))
}

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
    // SAFETY: the lengths are those that AcceptEx was called with; the results point into `output`.
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
        address(peer.cast_const(), peer_bytes)
    }
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
    // SAFETY: so many bytes are readable, and writable in the storage.
    let result = unsafe {
        SockAddr::try_init(|storage, length| {
            std::ptr::copy_nonoverlapping(address.cast::<u8>(), storage.cast::<u8>(), bytes);
            *length = bytes as i32;
            Ok(())
        })
    };
    result.ok()?.1.as_socket()
}

/// Whether a socket listens.
pub(crate) fn listens(socket: SOCKET) -> bool {
    option::<i32>(socket, SO_ACCEPTCONN).is_ok_and(|listens| listens != 0)
}

/// Room for one address in the output of [`accept`]: 16 bytes more than the longest.
pub(crate) const ACCEPT_ADDRESS_BYTES: usize = size_of::<SOCKADDR_STORAGE>() + 16;

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

/// The handle of a socket, as calls that are not about sockets take it.
pub(crate) fn handle_of(socket: SOCKET) -> HANDLE {
    socket as HANDLE
}

/// A socket's handle.
pub(crate) fn raw(socket: &socket2::Socket) -> SOCKET {
    socket.as_raw_socket() as SOCKET
}

// Files.

/// Whether the handle is of a file on a disk, not a pipe or a console.
pub(crate) fn is_disk_file(handle: HANDLE) -> bool {
    // SAFETY: asks for a property of an open handle.
    unsafe { GetFileType(handle) == FILE_TYPE_DISK }
}

/// Opens the same file again, for overlapped I/O and with the access that `handle` has.
pub(crate) fn reopen_overlapped(handle: HANDLE) -> Result<OwnedHandle, Code> {
    let mut information = PUBLIC_OBJECT_BASIC_INFORMATION::default();
    let mut returned = 0;
    // SAFETY: the information is writable and of the size that is said.
    let status = unsafe {
        NtQueryObject(
            handle,
            ObjectBasicInformation,
            (&raw mut information).cast(),
            size_of_val(&information) as u32,
            &mut returned,
        )
    };
    if status < 0 {
        return Err(code_of_status(status));
    }
    let share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    // SAFETY: opens a handle from one that is open.
    let reopened =
        unsafe { ReOpenFile(handle, information.GrantedAccess, share, FILE_FLAG_OVERLAPPED) };
    if reopened == INVALID_HANDLE_VALUE {
        return Err(last_error());
    }
    // SAFETY: the handle was opened here and belongs to nobody else.
    Ok(unsafe { OwnedHandle::from_raw_handle(reopened) })
}

/// Starts to read from a file, at the offset in `overlapped`.
///
/// # Safety
/// `bytes` bytes from `buffer`, and `overlapped`, stay valid and unused until the packet is
/// dequeued, or this gives an error.
pub(crate) unsafe fn read(
    file: HANDLE,
    buffer: *mut u8,
    bytes: u32,
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    let mut moved = 0;
    // SAFETY: as the caller promises.
    let result = unsafe { ReadFile(file, buffer, bytes, &mut moved, overlapped) };
    issued_bool(result, moved)
}

/// Starts to write to a file, at the offset in `overlapped`.
///
/// # Safety
/// `bytes` bytes from `buffer` stay valid and unchanged, and `overlapped` valid, until the packet is
/// dequeued, or this gives an error.
pub(crate) unsafe fn write(
    file: HANDLE,
    buffer: *const u8,
    bytes: u32,
    overlapped: *mut OVERLAPPED,
) -> Result<Issued, Code> {
    let mut moved = 0;
    // SAFETY: as the caller promises.
    let result = unsafe { WriteFile(file, buffer, bytes, &mut moved, overlapped) };
    issued_bool(result, moved)
}

// Timers.

/// A timer object that wakes one thread, as exact as the system has it.
pub(crate) fn create_timer() -> Result<OwnedHandle, Code> {
    let create = |flags| {
        // SAFETY: creates an object without a name.
        unsafe { CreateWaitableTimerExW(null(), null(), flags, TIMER_ALL_ACCESS) }
    };
    // Before Windows 10 1803 there is no high resolution.
    let mut handle = create(CREATE_WAITABLE_TIMER_HIGH_RESOLUTION);
    if handle.is_null() {
        handle = create(0);
    }
    if handle.is_null() {
        return Err(last_error());
    }
    // SAFETY: the handle was created here and belongs to nobody else.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Sets a timer to be signalled after `delay_100ns` hundreds of nanoseconds.
pub(crate) fn set_timer(timer: &OwnedHandle, delay_100ns: i64) -> Result<(), Code> {
    let due = -delay_100ns.max(0);
    // SAFETY: the time is read within the call; there is no routine.
    let result = unsafe { SetWaitableTimer(timer.as_raw_handle(), &due, 0, None, null(), 0) };
    if result == 0 { Err(last_error()) } else { Ok(()) }
}

/// Waits until a timer is signalled.
pub(crate) fn wait_for_timer(timer: &OwnedHandle) {
    // SAFETY: waits on an open handle.
    unsafe { WaitForSingleObject(timer.as_raw_handle(), INFINITE) };
}
