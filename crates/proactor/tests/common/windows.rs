//! What the tests ask Windows, or Wine, for.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{FILETIME, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_DELETE_ON_CLOSE;
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetCurrentThread, GetProcessHandleCount, GetThreadTimes, QueueUserAPC,
};

use super::HANG;

/// The version of Wine that this runs under; `None` on Windows.
pub fn wine_version() -> Option<&'static str> {
    // SAFETY: the name is a C string.
    let ntdll = unsafe { GetModuleHandleA(c"ntdll.dll".as_ptr().cast()) };
    // SAFETY: every process has ntdll, which stays loaded; the name is a C string.
    let function = unsafe { GetProcAddress(ntdll, c"wine_get_version".as_ptr().cast()) }?;
    // SAFETY: Wine documents it as a function without arguments that gives a string.
    let function: extern "C" fn() -> *const std::ffi::c_char =
        unsafe { std::mem::transmute(function) };
    // SAFETY: the string is static.
    unsafe { CStr::from_ptr(function()) }.to_str().ok()
}

/// A file that goes when it is closed, and that can be opened again: the port needs that of a
/// file which was not opened for overlapped I/O.
pub fn temporary_file() -> File {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("proactor-test-{}-{number}", std::process::id());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).custom_flags(FILE_FLAG_DELETE_ON_CLOSE);
    options.open(std::env::temp_dir().join(name)).unwrap()
}

/// How many handles the process has open.
pub fn handle_count() -> usize {
    let mut count = 0;
    // SAFETY: gives a pseudo handle that is always valid.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: the handle is valid, and the count is writable.
    let result = unsafe { GetProcessHandleCount(process, &mut count) };
    assert_ne!(result, 0, "{}", std::io::Error::last_os_error());
    count as usize
}

/// How many threads the process has.
pub fn thread_count() -> usize {
    let mut entry = THREADENTRY32 { dwSize: size_of::<THREADENTRY32>() as u32, ..<_>::default() };
    let mut count = 0;
    // SAFETY: makes a handle, from numbers.
    let snapshot = unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0) };
    assert_ne!(snapshot, INVALID_HANDLE_VALUE, "{}", std::io::Error::last_os_error());
    // SAFETY: the handle was made here and belongs to nobody else.
    let snapshot = unsafe { OwnedHandle::from_raw_handle(snapshot) };
    // SAFETY: the snapshot is open, and the entry says how long it is.
    let mut more = unsafe { Thread32First(snapshot.as_raw_handle(), &mut entry) };
    while more != 0 {
        count += usize::from(entry.th32OwnerProcessID == std::process::id());
        // SAFETY: as above.
        more = unsafe { Thread32Next(snapshot.as_raw_handle(), &mut entry) };
    }
    count
}

/// Queues a routine that does nothing for a thread to run in its next alertable wait.
pub fn queue_routine<T>(thread: &JoinHandle<T>) {
    extern "system" fn nothing(_argument: usize) {}
    // SAFETY: the handle is open, and the routine does nothing. A thread that has ended refuses.
    unsafe { QueueUserAPC(Some(nothing), thread.as_raw_handle(), 0) };
}

/// A thread.
pub struct Task(OwnedHandle);

impl Task {
    /// The calling thread.
    pub fn current() -> Self {
        // SAFETY: gives a pseudo handle that is always valid.
        let this = unsafe { GetCurrentThread() };
        // SAFETY: it is valid for the length of the next call, which makes a real one.
        let this = unsafe { BorrowedHandle::borrow_raw(this) };
        Self(this.try_clone_to_owned().unwrap())
    }

    /// Waits until the thread has used no processor time for a while: it sleeps.
    ///
    /// (Windows tells the state of a thread to debuggers only.)
    pub fn wait_until_asleep(&self) {
        const LOOKS: u32 = 60;
        let deadline = Instant::now() + HANG;
        let mut last = self.used_100ns();
        let mut asleep = 0;
        while asleep < LOOKS {
            assert!(Instant::now() < deadline, "a worker should wait at the port, and does not");
            thread::sleep(Duration::from_millis(1));
            let used = self.used_100ns();
            asleep = if used == last { asleep + 1 } else { 0 };
            last = used;
        }
    }

    fn used_100ns(&self) -> u64 {
        let mut times = [FILETIME::default(); 4];
        let [created, exited, kernel, user] = &mut times;
        // SAFETY: an open handle and four places to write to.
        let result =
            unsafe { GetThreadTimes(self.0.as_raw_handle(), created, exited, kernel, user) };
        assert_ne!(result, 0, "{}", std::io::Error::last_os_error());
        let number =
            |time: &FILETIME| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
        number(kernel) + number(user)
    }
}
