//! An operation in flight: who owns its memory, and how a packet finds it.
//!
//! The `OVERLAPPED` of an operation lies in the operation's own box. To start one, the box is
//! turned into a raw pointer, a [`Flight`], and from then on it belongs to the kernel: nobody has a
//! reference to it and nothing frees it. The packet brings the address of the `OVERLAPPED` back, and
//! whoever dequeues it makes the box whole again ([`Flight::land`]). So there is no allocation for
//! each operation, no table of addresses to look a packet up in, and no memory that can go while
//! the kernel writes to it (rule 139).
//!
//! Another thread may dequeue the packet before the call that started the operation has returned.
//! That call is made under the lock of the operation's source, with everything stored before;
//! and the packet's owner takes that lock before it lands the operation.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;

use windows_sys::Win32::Foundation::{HANDLE, NTSTATUS, STATUS_PENDING};
use windows_sys::Win32::Networking::WinSock::SOCKADDR_STORAGE;
use windows_sys::Win32::System::IO::{OVERLAPPED, OVERLAPPED_0, OVERLAPPED_0_0};

use super::queue::{Queue, RETRY};
use super::syscall::{self, ACCEPT_ADDRESS_BYTES, Code, Issued};
use crate::error::Error;
use crate::operation::{Inner, Operation, OperationId, OperationKind};
use crate::port::Completion;

/// How often a cancel is tried again that found nothing, although the operation goes on.
///
/// While Wine moves a part of a large send, it does not find that send (`cancel_async` in its
/// `server/async.c`), and afterwards knows nothing of the cancel. Windows may not have written the
/// end of an operation yet whose packet is queued: then this costs a few calls.
const CANCEL_LOOKS: u32 = 20;

/// What an operation has for this backend.
#[derive(Default)]
pub(crate) struct Native {
    overlapped: OVERLAPPED,
    /// Who acts on its packet; `None` where the packet is ready as it is.
    owner: Option<Arc<dyn Owner>>,
    /// The packet, where this library made it.
    ready: Option<Ready>,
    /// Its place in its source's table of what is pending.
    slot: u32,
    /// Its place in the order of its source's calls.
    order: u64,
    /// It was done at once, with so many bytes, and its source queued the packet.
    at_once: Option<u32>,
    /// A send that is known to be done, though its packet is still queued.
    pub(crate) settled: bool,
    /// More calls will follow before it is over: it can be cancelled between them.
    pub(crate) goes_on: bool,
    /// Room that accepts and datagram receives take; kept for the next use of the operation.
    pub(crate) room: Option<Box<Room>>,
}

// SAFETY: the pointers in the OVERLAPPED are the kernel's, or null; everything else is Send.
unsafe impl Send for Native {}

/// Where the kernel writes addresses, and the socket that an accept fills.
pub(crate) struct Room {
    pub(crate) accept_addresses: [u8; 2 * ACCEPT_ADDRESS_BYTES],
    pub(crate) accepted: Option<socket2::Socket>,
    pub(crate) peer: SOCKADDR_STORAGE,
    pub(crate) peer_bytes: i32,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            accept_addresses: [0; 2 * ACCEPT_ADDRESS_BYTES],
            accepted: None,
            peer: SOCKADDR_STORAGE::default(),
            peer_bytes: size_of::<SOCKADDR_STORAGE>() as i32,
        }
    }
}

/// The packet of an operation that is finished, without the operation.
struct Ready {
    key: usize,
    bytes: usize,
    kind: OperationKind,
    error: Option<Error>,
    sequence: u64,
    /// The operation is there to carry the packet only.
    is_carrier: bool,
}

/// How the kernel ended an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// 0, or the Win32 code.
    pub(crate) code: Code,
    pub(crate) status: NTSTATUS,
    pub(crate) bytes: usize,
}

/// The source of an operation.
pub(crate) trait Owner: Send + Sync {
    /// The packet of one of its operations was dequeued, with `bytes`: takes the operation up, and
    /// says which packet the program gets of it.
    fn finished(self: Arc<Self>, flight: Flight, bytes: u32) -> Option<Completion>;
    /// The port closes: ends everything without packets for the program.
    fn abandon(&self);
}

/// The address of an operation that the kernel, or the port's queue, has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flight(NonNull<Inner>);

// SAFETY: an address; every use of it is unsafe or under the lock that the module describes.
unsafe impl Send for Flight {}

impl Flight {
    /// Lets go of an operation.
    fn launch(operation: Operation) -> Self {
        // SAFETY: a box is never null.
        Self(unsafe { NonNull::new_unchecked(Box::into_raw(operation.inner)) })
    }

    /// Finds the operation of a packet.
    ///
    /// # Safety
    /// The packet is one that a `Flight` was started or posted for, and was dequeued just now.
    pub(crate) unsafe fn of_packet(overlapped: *mut OVERLAPPED) -> Self {
        let offset = offset_of!(Inner, native) + offset_of!(Native, overlapped);
        // SAFETY: the OVERLAPPED lies at that offset in an `Inner`, and the address was made from
        // a pointer to all of that (`overlapped`).
        let inner: *mut Inner = unsafe { overlapped.byte_sub(offset) }.cast();
        // SAFETY: the address of a box.
        Self(unsafe { NonNull::new_unchecked(inner) })
    }

    /// The operation again.
    ///
    /// # Safety
    /// Its packet was dequeued, or there will be none; nobody else lands it; and where it has a
    /// source, that source's lock is held, so the call that started it is over.
    pub(crate) unsafe fn land(self) -> Operation {
        // SAFETY: the pointer came from a box in `launch`, and the caller is the only one to land.
        Operation { inner: unsafe { Box::from_raw(self.0.as_ptr()) } }
    }

    /// What the calls take.
    pub(crate) fn overlapped(self) -> *mut OVERLAPPED {
        // SAFETY: a flight points to a live operation; no reference to it is made.
        unsafe { &raw mut (*self.0.as_ptr()).native.overlapped }
    }

    /// Which operation this is.
    ///
    /// # Safety
    /// It has not landed. (The id does not change while it is in flight.)
    pub(crate) unsafe fn id(self) -> OperationId {
        // SAFETY: alive as the caller promises.
        unsafe { (*self.0.as_ptr()).id }
    }

    /// Everything that it owns, before the kernel has it: to find the addresses that a call takes.
    ///
    /// # Safety
    /// It was launched just now, and no call was made with it.
    pub(crate) unsafe fn inner<'a>(self) -> &'a mut Inner {
        // SAFETY: nobody else knows of it yet.
        unsafe { &mut *self.0.as_ptr() }
    }

    /// Asks the kernel to end it, and notes that it is to end as cancelled, whatever it still
    /// does; `false` where it is over, and its packet says how.
    ///
    /// # Safety
    /// It has not landed, and its source's lock is held.
    pub(crate) unsafe fn cancel(self, handle: HANDLE) -> bool {
        let mut found = syscall::cancel(handle, self.overlapped());
        let mut looks = 0;
        while !found && looks < CANCEL_LOOKS && self.is_pending() {
            std::thread::yield_now();
            found = syscall::cancel(handle, self.overlapped());
            looks += 1;
        }
        // A piece of it may be done and its packet queued, while the operation is not over.
        // SAFETY: alive as the caller promises; the field does not change in flight.
        let goes_on = unsafe { (*self.0.as_ptr()).native.goes_on };
        // SAFETY: alive as the caller promises; the field is touched under the lock only.
        let cancelled = unsafe { &mut (*self.0.as_ptr()).cancelled };
        // One that was cancelled before is not cancelled again (rule 80).
        let takes = found || (goes_on && !*cancelled);
        *cancelled |= takes;
        takes
    }

    /// Whether the kernel has not said yet how it ended.
    fn is_pending(self) -> bool {
        // SAFETY: a flight points to a live operation; no reference to it is made.
        let status = unsafe { &raw const (*self.0.as_ptr()).native.overlapped.Internal };
        // SAFETY: alive and aligned; the kernel may write to it at this moment, so it is volatile.
        (unsafe { status.read_volatile() }) as NTSTATUS == STATUS_PENDING
    }

    /// Notes that a send is done, though its packet is still to come.
    ///
    /// # Safety
    /// It has not landed, and its source's lock is held.
    pub(crate) unsafe fn set_settled(self) {
        // SAFETY: alive as the caller promises; the field is touched under the lock only.
        unsafe { (*self.0.as_ptr()).native.settled = true };
    }

    /// Where in a file it reads or writes.
    ///
    /// # Safety
    /// It was launched just now, and no call was made with it.
    pub(crate) unsafe fn set_offset(self, offset: u64) {
        let parts = OVERLAPPED_0_0 { Offset: offset as u32, OffsetHigh: (offset >> 32) as u32 };
        // SAFETY: nobody else knows of it yet.
        unsafe { (*self.overlapped()).Anonymous = OVERLAPPED_0 { Anonymous: parts } };
    }

    /// Who acts on the packet. It is taken out: the operation holds its source only in flight.
    ///
    /// # Safety
    /// The packet was dequeued just now.
    pub(crate) unsafe fn take_owner(self) -> Option<Arc<dyn Owner>> {
        // SAFETY: the thread that started the operation stored this before and does not touch it
        // again; the kernel does not know of it.
        unsafe { (*self.0.as_ptr()).native.owner.take() }
    }

    /// What the kernel says of it.
    ///
    /// # Safety
    /// The packet was dequeued just now, with `bytes`, and its source's lock is held.
    pub(crate) unsafe fn outcome(self, bytes: u32) -> Outcome {
        // SAFETY: the kernel is done with it, and so is the call that started it.
        let native = unsafe { &mut (*self.0.as_ptr()).native };
        if let Some(bytes) = native.at_once.take() {
            return Outcome { code: 0, status: 0, bytes: bytes as usize };
        }
        let status = native.overlapped.Internal as NTSTATUS;
        Outcome { code: syscall::code_of_status(status), status, bytes: bytes as usize }
    }
}

/// Queues a packet that is ready: a post, a timer, what was found without the kernel. It comes back
/// in the error where the kernel has no memory for it.
pub(crate) fn push(queue: &Queue, completion: Completion) -> Result<(), (Code, Completion)> {
    let Completion { key, bytes, kind, error, operation, chunk, receive, sequence } = completion;
    assert!(chunk.is_none() && receive.is_none(), "a chunk is handed out, never queued");
    let is_carrier = operation.is_none();
    if is_carrier && kind == OperationKind::Post && u32::try_from(bytes).is_ok() {
        let posted = queue.post(bytes as u32, key, std::ptr::null());
        return posted.map_err(|code| (code, Completion::posted(key, bytes, None)));
    }
    let mut operation = operation.unwrap_or_default();
    operation.inner.native.ready = Some(Ready { key, bytes, kind, error, sequence, is_carrier });
    let flight = Flight::launch(operation);
    queue.count_in();
    queue.post(0, 0, flight.overlapped()).map_err(|code| {
        queue.count_out();
        // SAFETY: nothing was queued, so there will be no packet, and it has no source.
        let operation = unsafe { flight.land() };
        (code, unpack(operation).unwrap_or_else(|_| unreachable!("made ready just now")))
    })
}

/// The packet that an operation carries; the operation itself where it carries none.
pub(crate) fn unpack(mut operation: Operation) -> Result<Completion, Operation> {
    let Some(ready) = operation.inner.native.ready.take() else { return Err(operation) };
    let Ready { key, bytes, kind, error, sequence, is_carrier } = ready;
    let operation = if is_carrier { None } else { Some(operation) };
    Ok(Completion { key, bytes, kind, error, operation, chunk: None, receive: None, sequence })
}

/// Queues a packet that nobody could be told is lost: waits where the kernel is out of memory.
pub(crate) fn push_surely(queue: &Queue, mut completion: Completion) {
    while let Err((code, refused)) = push(queue, completion) {
        tracing::warn!(code, "PostQueuedCompletionStatus: tried again");
        std::thread::sleep(RETRY);
        completion = refused;
    }
}

/// How an operation is given to the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// The kernel queues no packet for what is done at once; this library does.
    pub(crate) skips: bool,
    /// More calls will follow before the operation is over.
    pub(crate) goes_on: bool,
}

/// What a source has in flight.
#[derive(Default)]
pub(crate) struct Pending {
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    next_order: u64,
}

impl Pending {
    /// All of them, in the order in which they were given to the kernel.
    pub(crate) fn in_order(&self) -> Vec<Flight> {
        let mut flights: Vec<Flight> = self.iter().collect();
        // SAFETY: what is in the table has not landed, and the order does not change in flight.
        flights.sort_unstable_by_key(|flight| unsafe { (*flight.0.as_ptr()).native.order });
        flights
    }

    fn iter(&self) -> impl Iterator<Item = Flight> + '_ {
        self.flights.iter().flatten().copied()
    }

    /// The one that was started under `id`.
    pub(crate) fn find(&self, id: OperationId) -> Option<Flight> {
        // SAFETY: what is in the table has not landed.
        self.iter().find(|flight| unsafe { flight.id() } == id)
    }

    /// Gives an operation to the kernel by `call`, with everything about it stored before.
    ///
    /// `owner` acts on its packet. An error means that the call was refused, and gives the
    /// operation back.
    pub(crate) fn issue(
        &mut self,
        queue: &Queue,
        owner: Arc<dyn Owner>,
        manner: Manner,
        mut operation: Operation,
        call: impl FnOnce(Flight) -> Result<Issued, Code>,
    ) -> Result<(Flight, Issued), (Code, Operation)> {
        let slot = self.free.pop().unwrap_or(self.flights.len() as u32);
        let native = &mut operation.inner.native;
        native.overlapped = OVERLAPPED::default();
        native.owner = Some(owner);
        native.slot = slot;
        native.order = self.next_order;
        self.next_order += 1;
        native.at_once = None;
        native.settled = false;
        native.goes_on = manner.goes_on;
        let flight = Flight::launch(operation);
        if slot as usize == self.flights.len() {
            self.flights.push(None);
        }
        self.flights[slot as usize] = Some(flight);
        queue.count_in();
        match call(flight) {
            Ok(issued) => {
                if let (Issued::Done(bytes), true) = (issued, manner.skips) {
                    // SAFETY: no packet is queued for it yet, and its source is locked.
                    unsafe { (*flight.0.as_ptr()).native.at_once = Some(bytes) };
                    queue.post_surely(bytes, flight.overlapped());
                }
                Ok((flight, issued))
            }
            Err(code) => {
                queue.count_out();
                // SAFETY: the call was refused: there will be no packet (rule 45).
                let operation = unsafe { self.land(flight) };
                Err((code, operation))
            }
        }
    }

    /// Takes an operation out of the table.
    ///
    /// # Safety
    /// As for [`Flight::land`]; it was issued here.
    pub(crate) unsafe fn land(&mut self, flight: Flight) -> Operation {
        // SAFETY: as the caller promises.
        let mut operation = unsafe { flight.land() };
        let native = &mut operation.inner.native;
        native.owner = None;
        let slot = native.slot;
        let entry = self.flights[slot as usize].take();
        assert!(entry == Some(flight), "a packet names an operation that is pending");
        self.free.push(slot);
        operation
    }
}
