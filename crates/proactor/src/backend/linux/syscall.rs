//! The raw system calls of both Linux backends, one thin function each. Errors are `errno` values.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{SockAddr, SockAddrStorage, Socket};

/// Buffers that one gathered call carries at most (`UIO_MAXIOV` is 1,024; this many fit in a
/// function's frame, and more gain nothing).
pub(crate) const GATHER_LIMIT: usize = 64;

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(result: libc::c_int) -> Result<libc::c_int, i32> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn check_len(result: isize) -> Result<usize, i32> {
    usize::try_from(result).map_err(|_| last_errno())
}

/// `epoll_create1(2)`.
pub(crate) fn epoll_create() -> Result<OwnedFd, i32> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the descriptor was opened here and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `eventfd(2)`, non-blocking.
pub(crate) fn eventfd() -> Result<OwnedFd, i32> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the descriptor was opened here and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd: wakes whoever polls it. Fails only when the counter is full, and then
/// the wake is pending anyway.
pub(crate) fn eventfd_signal(fd: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight bytes are read from a live local.
    let signal = || unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
    #[cfg(all(test, proactor_model))]
    crate::sync::model::happen(signal);
    #[cfg(not(all(test, proactor_model)))]
    signal();
}

/// `timerfd_create(2)` on the clock of `Instant`, not set.
#[cfg(not(all(test, proactor_model)))]
pub(crate) fn timer() -> Result<OwnedFd, i32> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
    // SAFETY: the descriptor was opened here and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// In the models a timer is an eventfd, and rings as soon as it is set.
#[cfg(all(test, proactor_model))]
pub(crate) use eventfd as timer;

/// `timerfd_settime(2)`: whoever polls the timer is woken once in `after`, or (`None`) not at all.
#[cfg(not(all(test, proactor_model)))]
pub(crate) fn timer_set(timer: &OwnedFd, after: Option<Duration>) {
    // Zero would mean never.
    let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let value = libc::timespec {
        tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: after.subsec_nanos().into(),
    };
    let spec = libc::itimerspec { it_interval: zero, it_value: value };
    // SAFETY: `spec` lives for the call, and nothing is written back. It cannot fail: the descriptor
    // is a timer, and the time is in range.
    unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) };
}

#[cfg(all(test, proactor_model))]
pub(crate) fn timer_set(timer: &OwnedFd, after: Option<Duration>) {
    if let Some(after) = after {
        crate::sync::model::pass(after, || eventfd_signal(timer));
    }
}

/// `epoll_ctl(2)` with one of `EPOLL_CTL_ADD`, `_MOD`, `_DEL`.
pub(crate) fn epoll_control(
    epoll: &OwnedFd,
    what: libc::c_int,
    fd: RawFd,
    interest: u32,
    token: u64,
) -> Result<(), i32> {
    let mut event = libc::epoll_event { events: interest, u64: token };
    // SAFETY: `event` lives for the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), what, fd, &mut event) }).map(drop)
}

/// `epoll_pwait2(2)`, with a timeout in nanoseconds; on kernels without it, and behind filters that
/// refuse it, `epoll_wait(2)`, rounded up. `None` waits for ever. An interrupted wait gives 0 events.
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> Result<usize, i32> {
    #[cfg(all(test, proactor_model))]
    if timeout != Some(Duration::ZERO) {
        let poll = || epoll_wait(epoll, events, Some(Duration::ZERO));
        return crate::sync::model::wait(timeout, poll);
    }
    let spec = timeout.map(|timeout| libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let spec_pointer = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let room = i32::try_from(events.len()).unwrap_or(i32::MAX);
    // SAFETY: the kernel writes at most `room` events into `events`, and reads `spec`, which lives
    // for the call; no signal mask is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.as_raw_fd(),
            events.as_mut_ptr(),
            room,
            spec_pointer,
            std::ptr::null::<libc::sigset_t>(),
            8usize,
        )
    };
    match check_len(result as isize) {
        // A look that does not wait has to see what is there: a ring is told of it once.
        Err(libc::EINTR) if timeout == Some(Duration::ZERO) => epoll_wait(epoll, events, timeout),
        Err(libc::EINTR) => Ok(0),
        // The call gives no EPERM: that is a filter of an older container, which does not know it.
        Err(libc::ENOSYS | libc::EPERM) => epoll_wait_milliseconds(epoll, events, timeout),
        other => other,
    }
}

fn epoll_wait_milliseconds(
    epoll: &OwnedFd,
    events: &mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> Result<usize, i32> {
    let timeout_ms = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    let room = i32::try_from(events.len()).unwrap_or(i32::MAX);
    // SAFETY: the kernel writes at most `room` events into `events`.
    let result =
        unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), room, timeout_ms) };
    match check_len(result as isize) {
        Err(libc::EINTR) if timeout_ms == 0 => epoll_wait_milliseconds(epoll, events, timeout),
        Err(libc::EINTR) => Ok(0),
        other => other,
    }
}

/// One part of a gathered send: valid while the bytes it was made of are borrowed or pinned.
pub(crate) type IoSlice = libc::iovec;

/// The kernel's view of `bytes`.
pub(crate) fn io_slice(bytes: &[u8]) -> IoSlice {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// `sendmsg(2)` of `slices`, without blocking and without SIGPIPE.
///
/// # Safety
/// Every slice points to bytes that stay valid and unchanged during the call.
pub(crate) unsafe fn send_gather(
    fd: RawFd,
    slices: &[IoSlice],
    address: Option<&SockAddr>,
) -> Result<usize, i32> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if let ([only], None) = (slices, address) {
        // SAFETY: by the caller's promise.
        return check_len(unsafe { libc::send(fd, only.iov_base, only.iov_len, flags) });
    }
    // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = slices.as_ptr().cast_mut();
    header.msg_iovlen = slices.len();
    if let Some(address) = address {
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = address.len();
    }
    // SAFETY: header, slices and address live for the call; the bytes by the caller's promise.
    check_len(unsafe { libc::sendmsg(fd, &header, flags) })
}

/// `recv(2)` into uninitialised room, without blocking. Returns how many bytes were written.
pub(crate) fn recv(fd: RawFd, room: &mut [MaybeUninit<u8>], flags: i32) -> Result<usize, i32> {
    loop {
        // SAFETY: the kernel writes at most `room.len()` bytes into `room`.
        let result = check_len(unsafe {
            libc::recv(fd, room.as_mut_ptr().cast(), room.len(), flags | libc::MSG_DONTWAIT)
        });
        if result != Err(libc::EINTR) {
            return result;
        }
    }
}

/// What `recvmsg(2)` gave for a datagram.
pub(crate) struct Datagram {
    pub(crate) bytes: usize,
    pub(crate) truncated: bool,
    pub(crate) peer: Option<SockAddr>,
}

/// `recvmsg(2)` of one datagram, without blocking.
pub(crate) fn recv_datagram(fd: RawFd, room: &mut [MaybeUninit<u8>]) -> Result<Datagram, i32> {
    let mut slice = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let mut outcome = Err(libc::EIO);
    let receive = |storage: *mut SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_name = storage.cast();
        header.msg_namelen = size_of::<SockAddrStorage>() as libc::socklen_t;
        header.msg_iov = &mut slice;
        header.msg_iovlen = 1;
        // SAFETY: the header and the storage live for the call and the storage is as long as is
        // said; `slice` covers `room`, which is borrowed for the call.
        outcome = check_len(unsafe { libc::recvmsg(fd, &mut header, libc::MSG_DONTWAIT) })
            .map(|bytes| (bytes, header.msg_flags & libc::MSG_TRUNC != 0));
        // SAFETY: `try_init` passes a place for the length, which is its own.
        unsafe { *length = header.msg_namelen };
        Ok(())
    };
    // SAFETY: the kernel has written an address of the length that is stored, or none and zeros
    // stand there.
    let address = unsafe { SockAddr::try_init(receive) };
    let (bytes, truncated) = outcome?;
    Ok(Datagram { bytes, truncated, peer: address.ok().map(|((), address)| address) })
}

/// `accept4(2)`: the new connection is blocking and closed on exec.
pub(crate) fn accept(listener: RawFd) -> Result<(Socket, SockAddr), i32> {
    let mut errno = libc::EIO;
    let take = |storage: *mut SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: `try_init` passes a storage and the place of its length, for the call.
        let fd = unsafe { libc::accept4(listener, storage.cast(), length, libc::SOCK_CLOEXEC) };
        let fd = check(fd).map_err(|code| {
            errno = code;
            io::Error::from_raw_os_error(code)
        })?;
        // SAFETY: the descriptor was opened here and belongs to nobody else.
        Ok(unsafe { Socket::from_raw_fd(fd) })
    };
    // SAFETY: where the call succeeds, the kernel has written an address and its length.
    let accepted = unsafe { SockAddr::try_init(take) };
    accepted.map_err(|_| errno)
}

/// `connect(2)` without blocking: `Ok(true)` where the connection stands at once, `Ok(false)` where
/// it is under way.
pub(crate) fn connect(socket: &Socket, address: &SockAddr) -> Result<bool, i32> {
    let to_errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    // The descriptor blocks otherwise: with O_NONBLOCK io_uring would refuse to wait for data.
    socket.set_nonblocking(true).map_err(to_errno)?;
    let outcome = socket.connect(address).map_err(to_errno);
    socket.set_nonblocking(false).map_err(to_errno)?;
    match outcome {
        Ok(()) => Ok(true),
        Err(libc::EINPROGRESS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The inode of a socket: the same for every duplicate, and of no other socket while it is open.
pub(crate) fn inode(fd: BorrowedFd<'_>) -> Result<u64, i32> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills `status`, which is read only on success.
    check(unsafe { libc::fstat(fd.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: filled by the successful call above.
    Ok(unsafe { status.assume_init() }.st_ino)
}

/// The calling thread's kernel id.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() }
}

/// `recvmsg(2)` into the spare capacity of several buffers, in order, without blocking; their
/// lengths are set to what came.
pub(crate) fn recv_scatter(fd: RawFd, buffers: &mut [Vec<u8>]) -> Result<usize, i32> {
    let mut slices: Vec<libc::iovec> = buffers
        .iter_mut()
        .filter(|buffer| buffer.capacity() > 0)
        .take(1024)
        .map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.capacity(),
        })
        .collect();
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = slices.as_mut_ptr();
    header.msg_iovlen = slices.len();
    let count = loop {
        // SAFETY: each slice covers the whole capacity of a vector that is borrowed for the call.
        match check_len(unsafe { libc::recvmsg(fd, &mut header, libc::MSG_DONTWAIT) }) {
            Err(libc::EINTR) => {}
            outcome => break outcome?,
        }
    };
    let mut left = count;
    for buffer in buffers {
        let step = left.min(buffer.capacity());
        // SAFETY: the kernel fills the buffers in order without holes, so the first `step` bytes
        // of this one are written.
        unsafe { buffer.set_len(step) };
        left -= step;
    }
    Ok(count)
}

/// Ends a connect that is under way, by `connect(2)` to no address (AF_UNSPEC): best effort.
pub(crate) fn dissolve(fd: RawFd) {
    // SAFETY: all-zero is a valid sockaddr of family AF_UNSPEC.
    let address: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `address` lives for the call and has the stated length.
    unsafe { libc::connect(fd, &address, length) };
}
