//! System calls that fail on purpose: a seccomp filter hands them to a supervisor in the same
//! process, which lets each one pass or answers it with an error.
//!
//! The filter is on one thread and those that it starts, and nothing of the kernel or the machine is
//! changed. No privilege is needed, and no tracer: it works in containers too, as long as nobody
//! else supervises them in the same way.
//!
//! References: [seccomp_unotify(2)](https://man7.org/linux/man-pages/man2/seccomp_unotify.2.html).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub number: libc::c_long,
    pub args: [u64; 6],
}

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// The kernel does it, as if nobody had looked.
    Pass,
    /// It fails, and the kernel does nothing.
    Fail(i32),
    /// It was done already, and returns this.
    Return(i64),
}

/// What the body of a run shares with its supervisor.
#[derive(Clone, Default)]
pub struct Faults {
    paused: Arc<AtomicBool>,
    injected: Arc<AtomicUsize>,
    errors: Arc<Mutex<Vec<i32>>>,
}

impl Faults {
    /// Runs what is the test's own business: calls pass meanwhile.
    pub fn pause<R>(&self, act: impl FnOnce() -> R) -> R {
        let before = self.paused.swap(true, Ordering::SeqCst);
        let result = act();
        self.paused.store(before, Ordering::SeqCst);
        result
    }

    /// From now on everything passes.
    pub fn stop(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    /// How many calls did not pass.
    pub fn injected(&self) -> usize {
        self.injected.load(Ordering::SeqCst)
    }

    /// The errors that they failed with.
    pub fn errors(&self) -> Vec<i32> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_error(&self, errno: i32) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if !errors.contains(&errno) {
            errors.push(errno);
        }
    }
}

/// Runs `body` on a thread of its own, of which the calls `numbers` are decided by `decide`. `None`,
/// with the reason printed, where this machine does not allow it.
pub fn run<R: Send>(
    numbers: &[libc::c_long],
    decide: impl FnMut(&Call) -> Answer + Send,
    body: impl FnOnce(&Faults) -> R + Send,
) -> Option<R> {
    let faults = Faults::default();
    let (send_listener, listener) = mpsc::channel::<io::Result<OwnedFd>>();
    let stop = event().expect("an eventfd of the test's own");
    let mut decide = decide;
    thread::scope(|scope| {
        let (stop, faults) = (&stop, &faults);
        // Started before the filter is there, so it is not under it.
        let supervisor = scope.spawn(move || match listener.recv() {
            Ok(Ok(listener)) => {
                wake_quickly(&listener);
                supervise(&listener, stop, faults, &mut decide);
                true
            }
            Ok(Err(error)) => {
                println!("skipped: system calls cannot be supervised here: {error}");
                false
            }
            Err(_) => false,
        });
        let numbers = numbers.to_vec();
        let inner = faults.clone();
        let supervised = scope.spawn(move || {
            let listener = install(&numbers, libc::SECCOMP_RET_USER_NOTIF);
            let installed = listener.is_ok();
            send_listener.send(listener).expect("the supervisor waits for it");
            installed.then(|| body(&inner))
        });
        let outcome = supervised.join();
        signal(stop);
        supervisor.join().unwrap();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// From now on these calls fail with `errno` in the calling thread, in all that it starts, and in
/// the program that it executes.
pub fn refuse(numbers: &[libc::c_long], errno: i32) -> io::Result<()> {
    install(numbers, libc::SECCOMP_RET_ERRNO | errno as u32).map(drop)
}

/// Installs a filter on the calling thread. Gives the descriptor to answer with, where there is one.
fn install(numbers: &[libc::c_long], action: u32) -> io::Result<OwnedFd> {
    let instruction =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    // The number of the call is the first word of what a filter sees (`struct seccomp_data`).
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (position, number) in numbers.iter().enumerate() {
        let to_action = numbers.len() - position;
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.push(instruction(equal, *number as u32, to_action as u8, 0));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let supervised = action == libc::SECCOMP_RET_USER_NOTIF;
    let flags = if supervised { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    // SAFETY: takes numbers only, and changes the calling thread alone.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_usize, 0_usize, 0_usize, 0_usize) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let set = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: the kernel copies the program, which lives for the call; of the calling thread alone.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const filter) };
    match RawFd::try_from(result) {
        // SAFETY: the descriptor was opened by the call and belongs to nobody else.
        Ok(listener) if listener >= 0 && supervised => unsafe {
            Ok(OwnedFd::from_raw_fd(listener))
        },
        Ok(0) => event(),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks the kernel (Linux 6.6) to hand the processor over between the two threads; without it the
/// answers take longer on a busy machine.
fn wake_quickly(listener: &OwnedFd) {
    /// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`, linux/seccomp.h.
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: takes a number.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP);
    }
}

/// Answers calls until told to stop.
fn supervise(
    listener: &OwnedFd,
    stop: &OwnedFd,
    faults: &Faults,
    decide: &mut (dyn FnMut(&Call) -> Answer + Send),
) {
    loop {
        let mut polls = [listener, stop].map(|descriptor| libc::pollfd {
            fd: descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two entries, which live for the call.
        let count = unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
        if count < 0 {
            continue;
        }
        if polls[0].revents & libc::POLLIN != 0 {
            answer_one(listener, faults, decide);
        } else if polls[1].revents != 0 {
            return;
        }
    }
}

fn answer_one(
    listener: &OwnedFd,
    faults: &Faults,
    decide: &mut (dyn FnMut(&Call) -> Answer + Send),
) {
    let mut request = MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the kernel fills the zeroed structure, as it asks for.
    let received = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, request.as_mut_ptr())
    };
    if received != 0 {
        // The thread was interrupted, and its call is tried again.
        return;
    }
    // SAFETY: zeros, and over them what the kernel wrote: numbers only.
    let request = unsafe { request.assume_init() };
    let call = Call { number: request.data.nr.into(), args: request.data.args };
    let answer = if faults.paused.load(Ordering::SeqCst) { Answer::Pass } else { decide(&call) };
    // SAFETY: all-zero is a valid response.
    let mut response: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
    response.id = request.id;
    match answer {
        Answer::Pass => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        Answer::Fail(errno) => {
            response.error = -errno;
            faults.note_error(errno);
            faults.injected.fetch_add(1, Ordering::SeqCst);
        }
        Answer::Return(value) => {
            response.val = value;
            faults.injected.fetch_add(1, Ordering::SeqCst);
        }
    }
    // SAFETY: the kernel reads the response. Where the thread is gone meanwhile, nothing is to do.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response)
    };
}

fn event() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was opened here and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn signal(event: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: eight bytes of a live local.
    let written = unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
    assert_eq!(written, 8);
}
