//! Files on a ring of their own, which one thread of the library submits to and reaps.
//!
//! A completion on a worker's ring could not be taken over while that worker is stuck in a
//! handler; this thread runs none, and hands each packet to the port as it comes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use crate::backend::linux::errno;
use crate::backend::linux::file::{Deliver, FileRequest, FileService};
use crate::backend::linux::file_operation::{
    Direction, Outcome, Threads, Transfer, deliver, discard, take_matching,
};
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationId};

/// Requests that the kernel works on at once; the rest waits in a queue.
const MAXIMUM_IN_FLIGHT: usize = 256;
/// Room for a request and a cancel of each slot between two submissions.
const SUBMISSION_ENTRIES: u32 = 512;
const COMPLETION_ENTRIES: u32 = 1024;

/// Marks the completion of the read of the eventfd. Requests have a slot in the lower half and its
/// generation in the upper one, and never reach these.
const WAKE: u64 = u64::MAX;
/// Marks the completion of a cancel, which says nothing that its target's does not.
const CANCEL: u64 = u64::MAX - 1;

/// The file service of the io_uring backend.
///
/// Its ring, its eventfd and its thread come with the first request. Where the system refuses one
/// of them, [`start`](FileService::start) gives the error back with the operation, and the next
/// start tries again. Dropping the service closes it.
///
/// # Cancelling
/// A request that is queued ends at once: its packet is delivered by the thread that cancels, so
/// no lock that [`Deliver::deliver`] takes may be held then. One that the kernel works on is
/// cancelled there; its packet comes when the kernel has let go of it, with its result where it
/// had succeeded. Both count as found, as on Windows (rule 78).
pub(crate) struct RingFileService {
    shared: Arc<Shared>,
}

struct Shared {
    deliver: Weak<dyn Deliver>,
    state: Mutex<State>,
    threads: Threads,
}

struct State {
    queue: VecDeque<Transfer>,
    /// Requests that the kernel works on: memory that it may write to. Only the service's thread
    /// takes one out, when its completion has come.
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    /// What is to be cancelled in the kernel, as the completion will name it.
    cancels: Vec<u64>,
    /// The eventfd that wakes the thread; `None` until that is started.
    wake: Option<Arc<File>>,
    /// The thread waits in the kernel, or is about to, and does not look at the queue again.
    asleep: bool,
    closed: bool,
}

/// One place in the kernel's hands.
struct Slot {
    /// Changes with each request, so that a late cancel cannot hit the next one.
    generation: u32,
    transfer: Option<Transfer>,
}

impl RingFileService {
    /// A service without a ring and a thread, until the first request.
    pub(crate) fn new(deliver: Weak<dyn Deliver>) -> Self {
        let state = State {
            queue: VecDeque::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            cancels: Vec::new(),
            wake: None,
            asleep: false,
            closed: false,
        };
        let shared = Shared { deliver, state: Mutex::new(state), threads: Threads::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Cancels what matches, and says how much that was.
    fn cancel_matching(&self, source: u64, operation: Option<OperationId>) -> usize {
        let mut state = self.shared.lock();
        let queued = take_matching(&mut state.queue, source, operation);
        let in_flight = state.cancel_in_flight(|transfer| transfer.matches(source, operation));
        if in_flight > 0 {
            state.wake();
        }
        drop(state);
        let found = queued.len() + in_flight;
        for transfer in queued {
            deliver(&self.shared.deliver, transfer.finish_cancelled());
        }
        found
    }
}

impl FileService for RingFileService {
    fn start(&self, request: FileRequest) -> Result<(), (Error, Operation)> {
        let transfer = Transfer::new(request)?;
        let mut state = self.shared.lock();
        let refusal = if state.closed {
            Err(Error::new(transfer.kind(), ErrorKind::PortClosed))
        } else if state.wake.is_none() {
            Server::start(&self.shared, &mut state)
                .map_err(|error| errno::error_from_io(transfer.kind(), &error))
        } else {
            Ok(())
        };
        if let Err(error) = refusal {
            return Err((error, transfer.into_operation()));
        }
        state.queue.push_back(transfer);
        state.wake();
        Ok(())
    }

    fn cancel(&self, source: u64, operation: OperationId) -> bool {
        self.cancel_matching(source, Some(operation)) > 0
    }

    fn cancel_all(&self, source: u64) -> usize {
        self.cancel_matching(source, None)
    }

    fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let queued = std::mem::take(&mut state.queue);
        state.cancel_in_flight(|_| true);
        // Also where the thread is awake: it ends once the read of the eventfd has completed.
        state.asleep = true;
        state.wake();
        drop(state);
        // Outside of the lock: the operations carry contexts of the program.
        queued.into_iter().for_each(discard);
        self.shared.threads.join();
    }
}

impl Drop for RingFileService {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes the thread look at the queue and the cancels, where it would not do so by itself.
    fn wake(&mut self) {
        if let Some(eventfd) = &self.wake
            && self.asleep
        {
            self.asleep = false;
            // Fails only where the counter is full, and then the wake is pending anyway.
            drop((&**eventfd).write(&1_u64.to_ne_bytes()));
        }
    }

    /// Marks what matches in the kernel's hands, each once, and says how much that was.
    fn cancel_in_flight(&mut self, matches: impl Fn(&Transfer) -> bool) -> usize {
        let mut found = 0;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(transfer) = &mut slot.transfer
                && !transfer.is_cancelled()
                && matches(transfer)
            {
                transfer.set_cancelled();
                self.cancels.push(user_data(slot.generation, index));
                found += 1;
            }
        }
        found
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// Puts a transfer where the kernel may use its memory; `None` where every slot is taken.
    fn take_queued(&mut self) -> Option<usize> {
        if self.queue.is_empty() || self.in_flight() == MAXIMUM_IN_FLIGHT {
            return None;
        }
        let transfer = self.queue.pop_front();
        let index = self.free_slots.pop().map_or(self.slots.len(), |index| index as usize);
        if index == self.slots.len() {
            self.slots.push(Slot { generation: 0, transfer });
        } else {
            self.slots[index].transfer = transfer;
        }
        Some(index)
    }

    /// Takes the transfer out of a slot of which the kernel has let go.
    fn release(&mut self, index: usize) -> Transfer {
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        self.free_slots.push(index as u32);
        slot.transfer.take().expect("a slot in flight holds its transfer")
    }

    /// The submission for the next piece of a slot's transfer; `None` where nothing is left.
    fn next_entry(&mut self, index: usize) -> Option<Entry> {
        let slot = &mut self.slots[index];
        let transfer = slot.transfer.as_mut().expect("a slot in flight holds its transfer");
        let piece = transfer.next_piece()?;
        let file = types::Fd(transfer.descriptor());
        let entry = match piece.direction {
            Direction::Read => {
                opcode::Read::new(file, piece.address, piece.len_bytes).offset(piece.offset).build()
            }
            Direction::Write => opcode::Write::new(file, piece.address, piece.len_bytes)
                .offset(piece.offset)
                .rw_flags(if piece.append { libc::RWF_APPEND } else { 0 })
                .build(),
        };
        Some(entry.user_data(user_data(slot.generation, index)))
    }
}

fn user_data(generation: u32, index: usize) -> u64 {
    // An index is below MAXIMUM_IN_FLIGHT, so this is never one of the marks.
    u64::from(generation) << 32 | index as u64
}

/// What the service's thread holds.
struct Server {
    shared: Arc<Shared>,
    ring: IoUring,
    wake: Arc<File>,
    /// Where the kernel puts the eventfd's counter while `wake_armed`.
    wake_count: Box<u64>,
    wake_armed: bool,
    /// Completions between reaping and the lock.
    reaped: Vec<(u64, i32)>,
    /// Ended requests between the lock and their delivery.
    finished: Vec<(Transfer, Outcome)>,
}

impl Server {
    /// Sets up ring and eventfd and starts the thread.
    fn start(shared: &Arc<Shared>, state: &mut State) -> io::Result<()> {
        let wake = Arc::new(eventfd()?);
        let server = Server {
            shared: Arc::clone(shared),
            ring: set_up_ring()?,
            wake: Arc::clone(&wake),
            wake_count: Box::new(0),
            wake_armed: false,
            reaped: Vec::with_capacity(COMPLETION_ENTRIES as usize),
            finished: Vec::with_capacity(MAXIMUM_IN_FLIGHT),
        };
        let thread = std::thread::Builder::new().name("proactor-files".into());
        let handle = thread.spawn(move || {
            server.shared.threads.enter();
            server.serve();
        })?;
        shared.threads.add(handle);
        state.wake = Some(wake);
        Ok(())
    }

    /// What the thread does until the service is closed and the kernel has let go of everything.
    fn serve(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            self.reaped.extend(self.ring.completion().map(|c| (c.user_data(), c.result())));
            let mut state = shared.lock();
            self.take_completions(&mut state);
            self.submit_cancels(&mut state);
            self.submit_queued(&mut state);
            let closed = state.closed;
            if !closed && !self.wake_armed {
                self.arm_wake();
            }
            if closed && state.in_flight() == 0 && !self.wake_armed && self.finished.is_empty() {
                return;
            }
            // While packets are delivered more requests may come: look again before waiting.
            state.asleep = self.finished.is_empty();
            drop(state);
            if self.finished.is_empty() {
                self.wait();
            } else {
                self.settle(closed);
            }
        }
    }

    /// Notes what the kernel has done, and goes on with what is not whole.
    fn take_completions(&mut self, state: &mut State) {
        for at in 0..self.reaped.len() {
            let (user_data, result) = self.reaped[at];
            match user_data {
                WAKE => self.wake_armed = false,
                CANCEL => {}
                _ => self.take_completion(state, user_data as u32 as usize, result),
            }
        }
        self.reaped.clear();
    }

    fn take_completion(&mut self, state: &mut State, index: usize, result: i32) {
        let transfer = state.slots[index].transfer.as_mut();
        let transfer = transfer.expect("a completion names a slot in flight");
        match transfer.record(usize::try_from(result).map_err(|_| -result)) {
            Some(outcome) => self.finished.push((state.release(index), outcome)),
            None => self.submit_slot(state, index),
        }
    }

    fn submit_cancels(&mut self, state: &mut State) {
        while let Some(target) = state.cancels.pop() {
            let slot = &state.slots[target as u32 as usize];
            if slot.generation == (target >> 32) as u32 && slot.transfer.is_some() {
                self.push(opcode::AsyncCancel::new(target).build().user_data(CANCEL));
            }
        }
    }

    fn submit_queued(&mut self, state: &mut State) {
        while let Some(index) = state.take_queued() {
            self.submit_slot(state, index);
        }
    }

    fn submit_slot(&mut self, state: &mut State, index: usize) {
        match state.next_entry(index) {
            Some(entry) => self.push(entry),
            None => self.finished.push((state.release(index), Ok(()))),
        }
    }

    fn arm_wake(&mut self) {
        let address = (&raw mut *self.wake_count).cast::<u8>();
        let read = opcode::Read::new(types::Fd(self.wake.as_raw_fd()), address, 8);
        self.push(read.build().user_data(WAKE));
        self.wake_armed = true;
    }

    fn push(&mut self, entry: Entry) {
        // SAFETY: what the entry points to lives until its completion is reaped: a transfer's
        // memory in its slot, `wake_count` and both files in `self` or in the slot, and the thread
        // does not end before the last completion. Nothing else uses that memory meanwhile.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit(0);
        }
    }

    fn wait(&mut self) {
        self.submit(1);
    }

    fn submit(&mut self, wait_for: usize) {
        let Err(error) = self.ring.submit_and_wait(wait_for) else { return };
        match error.raw_os_error() {
            // Interrupted by a signal, or the completions have to be reaped first.
            Some(libc::EINTR | libc::EBUSY) => {}
            // Out of memory for now. The requests are in the kernel's hands or in ours, and stay
            // there; leave the processor to whoever may free some.
            _ => {
                tracing::warn!(%error, "io_uring_enter of the file service");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Delivers what is finished, outside of the lock.
    fn settle(&mut self, closed: bool) {
        for (transfer, outcome) in self.finished.drain(..) {
            if closed {
                discard(transfer);
            } else {
                deliver(&self.shared.deliver, transfer.finish(outcome));
            }
        }
    }
}

/// A ring whose completions need no interrupt: its thread enters the kernel to reap them. Without
/// that flag (before Linux 5.19) a plain one.
fn set_up_ring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETION_ENTRIES);
    let cooperative = builder.clone().setup_coop_taskrun().build(SUBMISSION_ENTRIES);
    match cooperative {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            builder.build(SUBMISSION_ENTRIES)
        }
        other => other,
    }
}

/// An eventfd that blocks: a read on the ring then waits, where it would fail at once otherwise.
///
/// References: [eventfd(2)](https://man7.org/linux/man-pages/man2/eventfd.2.html).
fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is passed.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

#[cfg(test)]
mod tests;
