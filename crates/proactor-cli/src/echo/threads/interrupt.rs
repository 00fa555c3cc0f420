//! Waking a thread that is blocked in a read, so that it notices the drain.
//!
//! Nothing else does it well on Unix: to shut the reading side down makes Linux stop its window
//! updates, and reset the connection when more bytes come; and a time limit on every read would
//! wake thousands of idle threads for nothing. So a signal does it. The call that it meets fails
//! with EINTR. A thread that is just about to read misses it: so it is sent until it was noticed.
//!
//! References: signal(7), "Interruption of system calls and library functions by signal handlers";
//! pthread_kill(3).

#[cfg(unix)]
pub(super) use unix::{interrupt, prepare};

#[cfg(unix)]
mod unix {
    use std::io;
    use std::os::unix::thread::JoinHandleExt;
    use std::ptr;
    use std::thread::JoinHandle;

    /// Programs ignore it unless they ask for it, so that a stray one harms nobody.
    const SIGNAL: libc::c_int = libc::SIGURG;

    extern "C" fn do_nothing(_signal: libc::c_int) {}

    /// Makes the signal interrupt calls.
    pub(in super::super) fn prepare() -> io::Result<()> {
        let handler: extern "C" fn(libc::c_int) = do_nothing;
        // SAFETY: all zeros are a valid `sigaction`: no flags (so calls are not restarted), and no
        // signals that are held back meanwhile.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: the action lives for the call; its handler does nothing, which is safe in one.
        let result = unsafe { libc::sigaction(SIGNAL, &action, ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Interrupts the call that the thread is in.
    pub(in super::super) fn interrupt(thread: &JoinHandle<()>) {
        // SAFETY: a thread that is neither joined nor detached keeps its identifier, also where it
        // has ended, and whoever holds the handle has done neither.
        let error = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL) };
        if error != 0 {
            tracing::debug!(error, "a thread could not be interrupted");
        }
    }
}

/// Elsewhere reads have a time limit, and threads look by themselves.
#[cfg(not(unix))]
pub(super) fn prepare() -> std::io::Result<()> {
    Ok(())
}

/// As above.
#[cfg(not(unix))]
pub(super) fn interrupt(_thread: &std::thread::JoinHandle<()>) {}
