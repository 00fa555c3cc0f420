//! Timer objects.

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::null;

use windows_sys::Win32::System::Threading::{
    CREATE_WAITABLE_TIMER_HIGH_RESOLUTION, CreateWaitableTimerExW, INFINITE, SetWaitableTimer,
    TIMER_ALL_ACCESS, WaitForSingleObject,
};

use super::{Code, last_error};

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
