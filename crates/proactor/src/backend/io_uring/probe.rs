//! What this kernel's io_uring can do, found by doing it: a version number says nothing about
//! backports, filters and switches.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::squeue::Entry;
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode};

use super::refusal;
use crate::backend::Capability;

/// What was found.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// Every feature that is looked for, found or not, in a fixed order.
    pub(crate) capabilities: Vec<Capability>,
    /// Whether every required one is there.
    pub(crate) usable: bool,
    /// Where one is not: the call, the error and the likely cause.
    pub(crate) refusal: Option<String>,
    pub(crate) features: Features,
}

/// The features that the backend can do without, and uses where they are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// `IORING_SETUP_TASKRUN_FLAG`
    pub(crate) taskrun_flag: bool,
    /// `IORING_SETUP_NO_SQARRAY`
    pub(crate) no_sqarray: bool,
    /// `IORING_REGISTER_RING_FDS`
    pub(crate) registered_ring: bool,
    /// `IORING_RECVSEND_BUNDLE` on receives
    pub(crate) recv_bundle: bool,
}

/// A feature, and how to find out whether it is there.
struct Check {
    name: &'static str,
    required: bool,
    purpose: &'static str,
    run: fn(&mut Bench) -> Result<(), String>,
    note: fn(&mut Features),
}

const CHECKS: [Check; 11] = [
    required("IORING_SETUP_DEFER_TASKRUN", "completions wait for their own thread", |_| Ok(())),
    required("IORING_FEAT_NODROP", "no completion is lost in a burst", |bench| {
        feature(bench.ring.params().is_feature_nodrop())
    }),
    required("IORING_FEAT_EXT_ARG", "waiting with a timeout", |bench| {
        feature(bench.ring.params().is_feature_ext_arg())
    }),
    required("IORING_REGISTER_PBUF_RING", "receive buffers of the port", Bench::register_buffers),
    required("IORING_RECV_MULTISHOT", "one submission for many receives", Bench::recv_multishot),
    required("IORING_POLL_ADD_MULTI", "being woken by other threads", Bench::poll_multishot),
    required("IORING_ASYNC_CANCEL_ANY", "ending everything on close", Bench::cancel_everything),
    Check {
        name: "IORING_SETUP_TASKRUN_FLAG",
        required: false,
        purpose: "seeing pending completions without a system call",
        run: |_| set_up_with(Builder::setup_taskrun_flag),
        note: |features| features.taskrun_flag = true,
    },
    Check {
        name: "IORING_SETUP_NO_SQARRAY",
        required: false,
        purpose: "one indirection less for each submission",
        run: |_| set_up_with(Builder::setup_no_sqarray),
        note: |features| features.no_sqarray = true,
    },
    Check {
        name: "IORING_REGISTER_RING_FDS",
        required: false,
        purpose: "no look-up of the ring's descriptor for each system call",
        run: Bench::register_ring,
        note: |features| features.registered_ring = true,
    },
    Check {
        name: "IORING_RECVSEND_BUNDLE",
        required: false,
        purpose: "one completion for several receive buffers",
        run: Bench::recv_bundle,
        note: |features| features.recv_bundle = true,
    },
];

const fn required(
    name: &'static str,
    purpose: &'static str,
    run: fn(&mut Bench) -> Result<(), String>,
) -> Check {
    Check { name, required: true, purpose, run, note: |_| {} }
}

fn feature(is_there: bool) -> Result<(), String> {
    if is_there { Ok(()) } else { Err("io_uring_setup does not report it".into()) }
}

/// What [`probe`] finds, looked for once in the life of the process.
pub(crate) fn probe_once() -> &'static Probe {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    PROBE.get_or_init(probe)
}

/// Looks at everything anew: sets up three rings and moves a few bytes, in about a millisecond.
pub(crate) fn probe() -> Probe {
    let mut probe = Probe {
        capabilities: Vec::with_capacity(CHECKS.len()),
        usable: true,
        refusal: None,
        features: Features::default(),
    };
    match Bench::new() {
        Ok(mut bench) => CHECKS.iter().for_each(|check| probe.run(check, &mut bench)),
        Err(why) => {
            probe.refusal = Some(why);
            CHECKS.iter().for_each(|check| probe.skip(check));
        }
    }
    probe.usable = probe.refusal.is_none();
    probe
}

impl Probe {
    fn run(&mut self, check: &Check, bench: &mut Bench) {
        if self.refusal.is_some() {
            return self.skip(check);
        }
        match (check.run)(bench) {
            Ok(()) => {
                (check.note)(&mut self.features);
                self.add(check, true, check.purpose.into());
            }
            Err(why) => {
                if check.required {
                    self.refusal = Some(format!("{}: {why}", check.name));
                }
                self.add(check, false, format!("{} ({why})", check.purpose));
            }
        }
    }

    /// Once a required feature is missing nothing that needs it can be tried.
    fn skip(&mut self, check: &Check) {
        let why = self.refusal.as_deref().unwrap_or_default();
        self.add(check, false, format!("{} (not tried: {why})", check.purpose));
    }

    fn add(&mut self, check: &Check, available: bool, detail: String) {
        let Check { name, required, .. } = *check;
        self.capabilities.push(Capability { name, available, required, detail });
    }
}

/// Buffers that the kernel is lent, and how long each is.
const BUFFERS: u16 = 8;
const BUFFER_BYTES: usize = 64;
/// The kernel wants a buffer ring to start a page; the buffers lie behind it.
const PAGE_BYTES: usize = 4096;

const RECV: u64 = 1;
const POLL: u64 = 2;
const CANCEL: u64 = 3;

/// A ring as a worker has it, with things to try on it.
struct Bench {
    ring: IoUring,
    memory: Area,
    near: UnixStream,
    far: UnixStream,
    eventfd: File,
    /// Requests of which the last completion has not come.
    pending: usize,
}

#[repr(C, align(4096))]
struct Page([u8; 2 * PAGE_BYTES]);

/// Memory that the kernel may write to until it was seen to be done with it.
struct Area(*mut Page);

type Outcome = (u64, i32, u32);

impl Bench {
    fn new() -> Result<Self, String> {
        let ring = worker_ring().build(8).map_err(|error| refused(&error))?;
        let (near, far) = UnixStream::pair().map_err(|e| refusal::of_call("socketpair", &e))?;
        let eventfd = eventfd().map_err(|error| refusal::of_call("eventfd", &error))?;
        let memory = Area(Box::into_raw(Box::new(Page([0; 2 * PAGE_BYTES]))));
        Ok(Self { ring, memory, near, far, eventfd, pending: 0 })
    }

    fn register_buffers(&mut self) -> Result<(), String> {
        let base = self.memory.0.cast::<u8>();
        for index in 0..BUFFERS {
            let at = usize::from(index);
            // SAFETY: the ring's entries fill less than the first page of the area.
            let entry = unsafe { base.cast::<BufRingEntry>().add(at) };
            // SAFETY: zeros are an entry, and the kernel does not know of the area yet.
            let entry = unsafe { &mut *entry };
            // The second page has the buffers.
            entry.set_addr(base.wrapping_add(PAGE_BYTES + at * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(index);
        }
        // SAFETY: the area starts a page and stays until the ring is gone or, where a request is
        // not known to have ended, for ever.
        unsafe { self.ring.submitter().register_buf_ring_with_flags(base as u64, BUFFERS, 0, 0) }
            .map_err(|error| refusal::of_call("io_uring_register", &error))?;
        // SAFETY: the area starts with the ring's first entry, whose spare field is the tail.
        let tail = unsafe { BufRingEntry::tail(base.cast()) };
        // SAFETY: it is aligned, lives as long as the area, and the kernel reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(BUFFERS, Ordering::Release);
        Ok(())
    }

    /// Two messages for one submission, each in a buffer of the ring, with more to come.
    fn recv_multishot(&mut self) -> Result<(), String> {
        let recv = opcode::RecvMulti::new(Fd(self.near.as_raw_fd()), 0).build();
        self.push(recv.user_data(RECV))?;
        for message in [&b"one"[..], b"three"] {
            self.send(message)?;
            let (_, result, flags) = self.next_of(RECV, "recv")?;
            let buffer = cqueue::buffer_select(flags);
            if result != message.len() as i32 || buffer.is_none() || !cqueue::more(flags) {
                return Err(unexpected("recv", result, flags));
            }
        }
        Ok(())
    }

    /// Two signals for one submission.
    fn poll_multishot(&mut self) -> Result<(), String> {
        let poll = opcode::PollAdd::new(Fd(self.eventfd.as_raw_fd()), libc::POLLIN as u32);
        self.push(poll.multi(true).build().user_data(POLL))?;
        for _ in 0..2 {
            let signalled = (&self.eventfd).write(&1_u64.to_ne_bytes());
            signalled.map_err(|error| refusal::of_call("eventfd", &error))?;
            let (_, result, flags) = self.next_of(POLL, "poll")?;
            if result & i32::from(libc::POLLIN) == 0 || !cqueue::more(flags) {
                return Err(unexpected("poll", result, flags));
            }
            let drained = (&self.eventfd).read(&mut [0; 8]);
            drained.map_err(|error| refusal::of_call("eventfd", &error))?;
        }
        Ok(())
    }

    /// Ends both of the above with one request.
    fn cancel_everything(&mut self) -> Result<(), String> {
        let everything = CancelBuilder::any().all();
        self.push(opcode::AsyncCancel2::new(everything).build().user_data(CANCEL))?;
        while self.pending > 0 {
            let (user_data, result, flags) = self.next("cancel")?;
            let expected = if user_data == CANCEL { 2 } else { -libc::ECANCELED };
            if result != expected {
                return Err(unexpected("cancel", result, flags));
            }
        }
        Ok(())
    }

    fn register_ring(&mut self) -> Result<(), String> {
        let mut submitter = self.ring.submitter();
        let registered = submitter.register_ring_fd();
        registered.map_err(|error| refusal::of_call("io_uring_register", &error))?;
        let entered = submitter.submit();
        let unregistered = submitter.unregister_ring_fd();
        entered
            .and(unregistered.map(|()| 0))
            .map(drop)
            .map_err(|error| refusal::of_call("io_uring_enter", &error))
    }

    /// More than one buffer holds, in one completion.
    fn recv_bundle(&mut self) -> Result<(), String> {
        let message = [7; BUFFER_BYTES + BUFFER_BYTES / 2];
        self.send(&message)?;
        let recv = opcode::RecvBundle::new(Fd(self.near.as_raw_fd()), 0).build();
        self.push(recv.user_data(RECV))?;
        let (_, result, flags) = self.next_of(RECV, "recv")?;
        if result == message.len() as i32 { Ok(()) } else { Err(unexpected("recv", result, flags)) }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), String> {
        self.far.write_all(message).map_err(|error| refusal::of_call("send", &error))
    }

    fn push(&mut self, entry: Entry) -> Result<(), String> {
        // SAFETY: the entries name descriptors of the bench and buffers of the area, which is
        // freed only once every request was seen to end.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| String::from("the submission queue is full"))?;
        self.pending += 1;
        Ok(())
    }

    /// The next completion, which must be of `user_data`.
    fn next_of(&mut self, user_data: u64, call: &str) -> Result<Outcome, String> {
        let outcome = self.next(call)?;
        if outcome.0 == user_data {
            Ok(outcome)
        } else {
            Err(unexpected(call, outcome.1, outcome.2))
        }
    }

    /// The next completion. Everything that is tried completes at once or never.
    fn next(&mut self, call: &str) -> Result<Outcome, String> {
        let timeout = Timespec::new().nsec(100_000_000);
        let arguments = SubmitArgs::new().timespec(&timeout);
        loop {
            if let Some(completion) = self.ring.completion().next() {
                let flags = completion.flags();
                if !cqueue::more(flags) {
                    self.pending -= 1;
                }
                return Ok((completion.user_data(), completion.result(), flags));
            }
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => {
                    return Err(format!("{call}: no completion within 100 ms"));
                }
                Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                    return Err(refusal::of_call("io_uring_enter", &error));
                }
                _ => {}
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The fields are dropped after this: the registration must go before the memory.
        drop(self.ring.submitter().unregister_buf_ring(0));
        if self.pending == 0 {
            // SAFETY: allocated as this box in `new`; no request is pending and no buffer ring is
            // registered, so the kernel does not use it.
            drop(unsafe { Box::from_raw(self.memory.0) });
        }
        // Else two pages are leaked: the ring ends its requests some time after it was closed.
    }
}

fn unexpected(call: &str, result: i32, flags: u32) -> String {
    if result < 0 {
        return refusal::of_errno(call, -result);
    }
    format!("{call}: unexpected completion (result {result}, flags {flags:#x})")
}

/// The flags that each worker's ring has.
fn worker_ring() -> Builder {
    let mut builder = IoUring::builder();
    builder.setup_defer_taskrun().setup_single_issuer().setup_submit_all().setup_cqsize(32);
    builder
}

/// Whether a worker's ring can have one flag more.
fn set_up_with(flag: fn(&mut Builder) -> &mut Builder) -> Result<(), String> {
    let mut builder = worker_ring();
    let built = flag(&mut builder).build(8);
    built.map(drop).map_err(|error| refusal::of_call("io_uring_setup", &error))
}

/// Why there is no ring as the workers need it.
fn refused(error: &io::Error) -> String {
    let plain_works = || IoUring::new(8).is_ok();
    if error.raw_os_error() == Some(libc::EINVAL) && plain_works() {
        return "io_uring_setup: EINVAL: the kernel has io_uring, but not IORING_SETUP_DEFER_TASKRUN \
                (Linux 6.1)"
            .into();
    }
    refusal::of_setup(error)
}

/// References: [eventfd(2)](https://man7.org/linux/man-pages/man2/eventfd.2.html).
fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is passed.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

#[cfg(test)]
mod tests;
