//! Files.

use std::os::windows::io::{FromRawHandle, OwnedHandle};

use windows_sys::Wdk::Foundation::{NtQueryObject, ObjectBasicInformation};
use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_OVERLAPPED, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_TYPE_DISK,
    GetFileType, ReOpenFile, ReadFile, WriteFile,
};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::WindowsProgramming::PUBLIC_OBJECT_BASIC_INFORMATION;

use super::{Code, Issued, code_of_status, issued_bool, last_error};

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
