//! The io_uring backend: a ring for each worker, with deferred task work.
//!
//! Streams are received by multishot receives into buffers of the pool, never into memory of an
//! operation, and sent by submissions that complete at once (`MSG_DONTWAIT`): one that finds no
//! room waits on the worker's epoll set. So the only requests that stay in the kernel point at the
//! pool, and another thread can take over from a worker that is stuck (`docs/architecture.md`).
//! Accepts, connects and datagrams wait on the epoll set too, which the ring polls.

mod dispatch;
pub(crate) mod file;
pub(crate) mod probe;
mod provided;
mod refusal;

use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use crate::backend::linux::driver::{Driver, Wait};
use crate::backend::linux::errno::error_from_io;
use crate::backend::linux::file::{Deliver, FileService};
use crate::backend::linux::poller::Poller;
use crate::backend::linux::sink::Sink;
use crate::backend::linux::socket::{Socket, SourceKind};
use crate::backend::linux::syscall::IoSlice;
use crate::buffer::Pool;
use crate::error::{Error, ErrorKind};
use crate::operation::OperationKind;
use crate::port::Config;
use dispatch::{Event, Tag};
use probe::probe_once;
use provided::{GROUP, ProvidedBuffers};

const SUBMISSIONS: u32 = 512;
const COMPLETIONS: u32 = 4096;
/// How often a full submission queue is offered to the kernel before that counts as a failure.
const FULL_QUEUE_TRIES: usize = 1000;
/// `IORING_ENTER_GETEVENTS`: runs the deferred task work, also without waiting.
const GET_EVENTS: u32 = 1;

pub(crate) struct RingDriver {
    /// Dropped by hand: after what the kernel holds, before the buffers.
    ring: ManuallyDrop<IoUring>,
    buffers: ManuallyDrop<ProvidedBuffers>,
    receives: Vec<Arc<Socket<Self>>>,
    stops: Vec<Arc<Socket<Self>>>,
    sends: Vec<Arc<Socket<Self>>>,
    /// Headers and slices of the gathered sends that are being submitted.
    #[expect(clippy::vec_box, reason = "a header stays where it is while the list grows")]
    gathers: Vec<Box<Gather>>,
    gathers_used: usize,
    events: Vec<Event>,
    /// Requests that the kernel holds: receives, and the three polls.
    armed: usize,
    /// The epoll set has events.
    epoll_ready: bool,
    /// The kernel ran out of buffers since the last refill.
    exhausted: bool,
    /// Polls that ended while another thread collected: the owner asks for them again.
    polls_ended: Vec<Tag>,
    /// The worker's eventfd, and its alarm.
    wakes: [RawFd; 2],
    epoll: RawFd,
    wait_calls: u64,
}

/// Memory that a gathered send's submission points to.
struct Gather {
    header: libc::msghdr,
    slices: Vec<IoSlice>,
}

// SAFETY: the raw pointers in the gathers point into operations that are pinned while they are in
// use, which is within one call of `turn`.
unsafe impl Send for RingDriver {}

impl Driver for RingDriver {
    const STREAMS_BY_READINESS: bool = false;
    const KNOWS_COMPLETIONS: bool = true;

    fn open(config: &Config, poller: &Poller<Self>, wakes: [RawFd; 2]) -> Result<Self, Error> {
        let to_error = |error| error_from_io(OperationKind::Dequeue, &error);
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .setup_clamp();
        if probe_once().features.taskrun_flag {
            builder.setup_taskrun_flag();
        }
        let ring = builder.build(SUBMISSIONS).map_err(to_error)?;
        let pool = Pool::new(config.receive_buffer_bytes, config.maximum_receive_buffers);
        let buffers = ProvidedBuffers::register(&ring, pool).map_err(to_error)?;
        let mut driver = Self {
            ring: ManuallyDrop::new(ring),
            buffers: ManuallyDrop::new(buffers),
            receives: Vec::new(),
            stops: Vec::new(),
            sends: Vec::new(),
            gathers: Vec::new(),
            gathers_used: 0,
            events: Vec::new(),
            armed: 0,
            epoll_ready: true,
            exhausted: false,
            polls_ended: Vec::new(),
            wakes,
            epoll: poller.epoll_fd(),
            wait_calls: 0,
        };
        for tag in [Tag::Wake, Tag::Alarm, Tag::Epoll] {
            driver.arm_poll(tag)?;
        }
        Ok(driver)
    }

    fn file_service(_config: &Config, deliver: Weak<dyn Deliver>) -> Arc<dyn FileService> {
        Arc::new(file::RingFileService::new(deliver))
    }

    fn first_interest(kind: SourceKind) -> u32 {
        let interest = match kind {
            // Only while a connect or a send waits.
            SourceKind::Stream => return 0,
            SourceKind::Listener => libc::EPOLLIN,
            SourceKind::Datagram => libc::EPOLLIN | libc::EPOLLOUT,
        };
        (interest | libc::EPOLLET) as u32
    }

    fn pool(&self) -> &Arc<Pool> {
        self.buffers.pool()
    }

    fn queue_receive(&mut self, socket: &Arc<Socket<Self>>) {
        self.receives.push(Arc::clone(socket));
    }

    fn queue_stop(&mut self, socket: &Arc<Socket<Self>>) {
        self.stops.push(Arc::clone(socket));
    }

    fn queue_send(&mut self, socket: &Arc<Socket<Self>>) {
        self.sends.push(Arc::clone(socket));
    }

    fn has_sends(&self) -> bool {
        !self.sends.is_empty()
    }

    fn has_completions(&self) -> bool {
        // SAFETY: the worker's lock is held, so nobody else looks at or moves the queue's ends.
        let completions = unsafe { self.ring.completion_shared() };
        // SAFETY: as above.
        let submissions = unsafe { self.ring.submission_shared() };
        !completions.is_empty() || submissions.taskrun()
    }

    fn turn(
        &mut self,
        wait: Wait,
        poller: &Poller<Self>,
        worker: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        self.buffers.refill(std::mem::take(&mut self.exhausted));
        while let Some(&tag) = self.polls_ended.last() {
            self.arm_poll(tag)?;
            self.polls_ended.pop();
        }
        self.submit_stops()?;
        self.submit_receives(worker)?;
        self.submit_sends(sink)?;
        // What was finished without the kernel needs no waiting for.
        let wait = if sink.has_local() || self.epoll_ready { Wait::No } else { wait };
        self.enter(wait)?;
        self.dispatch(Some(worker), sink);
        if self.epoll_ready {
            // The ring tells of it once: where the look fails it is still to be done.
            poller.poll_ready(Some(self), Some(worker), sink)?;
            self.epoll_ready = false;
        }
        Ok(())
    }

    fn rescue(&mut self, poller: &Poller<Self>, sink: &mut Sink<'_>) -> usize {
        // The queue of completions is memory: reading it needs no call into the owner's ring, and
        // without one no deferred work of the owner's can run.
        let mut taken = self.dispatch(None, sink);
        for socket in std::mem::take(&mut self.sends) {
            taken += 1;
            socket.send_not_begun(sink);
        }
        let polled = poller.poll_ready(None, None, sink);
        // SAFETY: the worker's lock is held, so nobody else looks at or moves the queue's ends.
        if unsafe { self.ring.submission_shared() }.cq_overflow() {
            // The kernel keeps completions back that came before what the sockets hold now.
            return taken;
        }
        let readable = polled.and_then(|count| {
            taken += count;
            poller.readable_streams()
        });
        match readable {
            Ok(sockets) => {
                for socket in sockets {
                    taken += usize::from(socket.read_for_home(sink));
                }
            }
            Err(error) => tracing::warn!(%error, "a stuck worker's sockets cannot be read"),
        }
        taken
    }

    fn retire(&mut self, sink: &mut Sink<'_>) {
        for socket in std::mem::take(&mut self.receives) {
            socket.receive_not_begun();
        }
        for socket in std::mem::take(&mut self.sends) {
            socket.send_not_begun(sink);
        }
        self.stops.clear();
        self.quiesce(|driver| {
            driver.dispatch(None, sink);
        });
    }

    fn wait_calls(&self) -> u64 {
        self.wait_calls
    }
}

impl RingDriver {
    /// How many entries fit into the submission queue, at least one: submits where it is full.
    ///
    /// # Errors
    /// The kernel takes none of them.
    fn room(&mut self) -> Result<usize, Error> {
        for _ in 0..FULL_QUEUE_TRIES {
            let (capacity, length) = {
                let submissions = self.ring.submission();
                (submissions.capacity(), submissions.len())
            };
            if length < capacity {
                return Ok(capacity - length);
            }
            self.call(Wait::No)?;
        }
        Err(Error::new(OperationKind::Dequeue, ErrorKind::InsufficientResources))
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<(), Error> {
        self.room()?;
        self.push_into_room(entry);
        Ok(())
    }

    /// There is [`room`](Self::room).
    fn push_into_room(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points to (a gather, a pool's buffer group, a descriptor) lives
        // until its completion: see where it is made.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("who pushes has asked for room");
    }

    /// Polls what wakes the worker, or the epoll set, by edges, until told otherwise.
    fn arm_poll(&mut self, tag: Tag) -> Result<(), Error> {
        let fd = match tag {
            Tag::Wake => self.wakes[0],
            Tag::Alarm => self.wakes[1],
            _ => self.epoll,
        };
        let flags = libc::POLLIN as u32;
        let entry = opcode::PollAdd::new(Fd(fd), flags).multi(true).build();
        self.push(&entry.user_data(tag.alone()))?;
        self.armed += 1;
        Ok(())
    }

    fn submit_stops(&mut self) -> Result<(), Error> {
        while !self.stops.is_empty() {
            let count = self.room()?.min(self.stops.len());
            let mut stops = std::mem::take(&mut self.stops);
            for socket in stops.drain(..count) {
                let receive = Tag::Receive.of(&socket);
                let entry = opcode::AsyncCancel::new(receive).build();
                self.push_into_room(&entry.user_data(Tag::Cancel.alone()));
            }
            self.stops = stops;
        }
        Ok(())
    }

    /// Where the kernel takes no more, what is left stays queued.
    fn submit_receives(&mut self, worker: usize) -> Result<(), Error> {
        while !self.receives.is_empty() {
            let count = self.room()?.min(self.receives.len());
            self.submit_some_receives(count, worker);
        }
        Ok(())
    }

    fn submit_some_receives(&mut self, count: usize, worker: usize) {
        let mut receives = std::mem::take(&mut self.receives);
        for socket in receives.drain(..count) {
            let Some(one_at_a_time) = socket.begin_receive(worker) else { continue };
            let fd = Fd(socket.raw_fd());
            let entry = if one_at_a_time {
                let room = u32::try_from(self.pool().buffer_bytes()).unwrap_or(u32::MAX);
                opcode::Recv::new(fd, std::ptr::null_mut(), room)
                    .buf_group(GROUP)
                    .build()
                    .flags(Flags::BUFFER_SELECT)
            } else {
                opcode::RecvMulti::new(fd, GROUP).build()
            };
            // The request keeps the socket, and so its descriptor, until its last completion.
            let receive = Tag::Receive.of(&socket);
            std::mem::forget(socket);
            self.push_into_room(&entry.user_data(receive));
            self.armed += 1;
        }
        self.receives = receives;
    }

    /// As [`submit_receives`](Self::submit_receives).
    fn submit_sends(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        while !self.sends.is_empty() {
            let count = self.room()?.min(self.sends.len());
            self.submit_some_sends(count, sink);
        }
        Ok(())
    }

    fn submit_some_sends(&mut self, count: usize, sink: &mut Sink<'_>) {
        let mut sends = std::mem::take(&mut self.sends);
        if self.ring.submission().is_empty() {
            // Nothing that waits to be submitted points at them any more.
            self.gathers_used = 0;
        }
        for socket in sends.drain(..count) {
            if self.gathers.len() == self.gathers_used {
                // SAFETY: all-zero is a valid msghdr.
                let header = unsafe { std::mem::zeroed() };
                self.gathers.push(Box::new(Gather { header, slices: Vec::new() }));
            }
            let gather = &mut *self.gathers[self.gathers_used];
            if !socket.pin_sends(&mut gather.slices, sink) {
                continue;
            }
            let fd = Fd(socket.raw_fd());
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // The bytes are pinned in the socket's queue until the completion, which comes within
            // the call that submits: a send that must not wait is finished then.
            let entry = if let [only] = gather.slices[..] {
                let length = u32::try_from(only.iov_len).unwrap_or(u32::MAX);
                opcode::Send::new(fd, only.iov_base.cast(), length).flags(flags).build()
            } else {
                gather.header.msg_iov = gather.slices.as_mut_ptr();
                gather.header.msg_iovlen = gather.slices.len();
                self.gathers_used += 1;
                opcode::SendMsg::new(fd, &raw const gather.header).flags(flags as u32).build()
            };
            let send = Tag::Send.of(&socket);
            std::mem::forget(socket);
            self.push_into_room(&entry.user_data(send));
        }
        self.sends = sends;
    }

    /// Submits, runs the deferred work, and waits if asked to and nothing is there.
    fn enter(&mut self, wait: Wait) -> Result<(), Error> {
        let (idle, nothing_to_run) = {
            let idle = self.ring.completion().is_empty();
            let submissions = self.ring.submission();
            (idle, submissions.is_empty() && !submissions.taskrun())
        };
        if !idle && nothing_to_run {
            return Ok(());
        }
        self.call(if idle { wait } else { Wait::No })
    }

    /// `io_uring_enter(2)`.
    fn call(&mut self, wait: Wait) -> Result<(), Error> {
        self.wait_calls += 1;
        let length = self.ring.submission().len();
        let submitter = self.ring.submitter();
        let outcome = match wait {
            Wait::No => {
                let count = u32::try_from(length).unwrap_or(u32::MAX);
                // SAFETY: no argument is passed; what is submitted was pushed soundly.
                unsafe { submitter.enter::<libc::sigset_t>(count, 0, GET_EVENTS, None) }
            }
            Wait::Upto(None) => submitter.submit_and_wait(1),
            Wait::Upto(Some(timeout)) => {
                let spec = timespec(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&spec))
            }
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is up; a signal; completions have to be collected first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                Some(libc::EAGAIN) => {
                    if wait != Wait::No {
                        // No memory for now. It was to wait, and must not spin until there is some.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                }
                _ => Err(error_from_io(OperationKind::Dequeue, &error)),
            },
        }
    }

    /// Cancels everything that the kernel holds and waits until it has let go, calling `collect`
    /// in between. Returns whether it has.
    fn quiesce(&mut self, mut collect: impl FnMut(&mut Self)) -> bool {
        collect(self);
        for _ in 0..1000 {
            if self.armed == 0 {
                return true;
            }
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            let asked = self
                .push(&cancel.user_data(Tag::Cancel.alone()))
                .and_then(|()| self.call(Wait::Upto(Some(Duration::from_millis(10)))));
            collect(self);
            if let Err(error) = asked {
                tracing::error!(%error, "a ring cannot be emptied");
                return false;
            }
        }
        self.armed == 0
    }
}

fn timespec(timeout: Duration) -> Timespec {
    Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos())
}

impl Drop for RingDriver {
    fn drop(&mut self) {
        let empty = self.quiesce(|driver| driver.discard());
        // SAFETY: neither is used again. The ring goes first: the kernel reads the buffer ring
        // until then.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        if empty {
            // SAFETY: as above; no request is left that could write to a buffer.
            unsafe { ManuallyDrop::drop(&mut self.buffers) };
        }
        // Else the buffers are never freed: the kernel may still write to them.
    }
}
