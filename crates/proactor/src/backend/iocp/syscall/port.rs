//! The port, and what is the same for every handle that is associated with one.

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::null_mut;

use windows_sys::Win32::Foundation::{ERROR_NOT_FOUND, HANDLE, INVALID_HANDLE_VALUE, WAIT_TIMEOUT};
use windows_sys::Win32::Storage::FileSystem::SetFileCompletionNotificationModes;
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, GetQueuedCompletionStatusEx, OVERLAPPED, OVERLAPPED_ENTRY,
    PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::INFINITE;
use windows_sys::Win32::System::WindowsProgramming::{
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE,
};

use super::{Code, last_error};

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
