//! A socket that is associated: what is the same for each kind.
//!
//! Every call that starts or cancels something is made under the lock of the socket's state, and so
//! is the landing of its operations. That makes the starting and the dequeuing thread meet (a
//! packet may come before the call that started its operation has returned), keeps the sends of
//! several threads apart, and sees to it that no call is made on a handle that is closed.
//!
//! Nothing that belongs to the program is dropped under the lock: contexts may hold handles.

use std::io;
use std::net::Shutdown;
use std::os::windows::io::{AsRawSocket, BorrowedSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use socket2::SockRef;
use windows_sys::Win32::Foundation::STATUS_LOCAL_DISCONNECT;
use windows_sys::Win32::Networking::WinSock::SOCKET;

use super::code;
use super::listener::Listener;
use super::overlapped::{Flight, Manner, Outcome, Owner, Pending, push_surely};
use super::port::Port;
use super::stream::Stream;
use super::syscall::{self, Code, Issued};
use crate::backend::BackendSource;
use crate::backend::window::Window;
use crate::buffer::Consumer;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::Completion;

pub(crate) struct Socket {
    me: Weak<Self>,
    pub(crate) port: Arc<Port>,
    pub(crate) key: usize,
    /// Names it in the port's list.
    id: u64,
    pub(crate) raw: SOCKET,
    /// The same, for its options.
    borrowed: BorrowedSocket<'static>,
    pub(crate) family: i32,
    /// The kernel queues no packet for what is done at once.
    skips: bool,
    pub(crate) window: Window,
    state: Mutex<State>,
}

/// What the lock guards.
pub(crate) struct State {
    /// `None`: the last handle is gone.
    pub(crate) socket: Option<socket2::Socket>,
    /// The last handle is gone, or the port is closed: nothing starts any more.
    pub(crate) ended: bool,
    pub(crate) pending: Pending,
    pub(crate) role: Role,
}

/// What the socket can do, and what it needs for that.
pub(crate) enum Role {
    Stream(Stream),
    Listener(Listener),
    Datagram,
}

/// How a start goes wrong.
pub(crate) enum Refusal {
    /// The call is refused (rule 45).
    Call(Error, Operation),
    /// It is accepted, and the packet says what the network or the system has against it.
    Packet(Error, Operation),
}

/// What a source is made of.
pub(crate) struct Parts {
    pub(crate) socket: socket2::Socket,
    pub(crate) role: Role,
    pub(crate) key: usize,
    pub(crate) id: u64,
    pub(crate) family: i32,
    pub(crate) skips: bool,
}

impl Socket {
    pub(crate) fn new(port: Arc<Port>, parts: Parts) -> Arc<Self> {
        let Parts { socket, role, key, id, family, skips } = parts;
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            port,
            key,
            id,
            raw: syscall::raw(&socket),
            // SAFETY: the socket is closed in `close` only, which is called when the last handle
            // goes; and only who holds a handle is lent this (`BackendSource::socket`).
            borrowed: unsafe { BorrowedSocket::borrow_raw(socket.as_raw_socket()) },
            family,
            skips,
            window: Window::new(),
            state: Mutex::new(State {
                socket: Some(socket),
                ended: false,
                pending: Pending::default(),
                role,
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This socket, shared. It is alive: somebody called a method of it through an `Arc`.
    pub(crate) fn shared(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// Gives an operation to the kernel by `call`; see [`Pending::issue`].
    pub(crate) fn issue(
        &self,
        pending: &mut Pending,
        operation: Operation,
        goes_on: bool,
        call: impl FnOnce(Flight) -> Result<Issued, Code>,
    ) -> Result<(Flight, Issued), (Code, Operation)> {
        let Some(owner) = self.shared() else { unreachable!("a start holds the source") };
        let manner = Manner { skips: self.skips, goes_on };
        pending.issue(self.port.queue(), owner, manner, operation, call)
    }

    /// Queues the packet of an operation that ended without one of the kernel's.
    pub(crate) fn push(&self, operation: Operation, bytes: usize, error: Option<Error>) {
        let packet = Completion::finished(self.key, operation, bytes, error);
        push_surely(self.port.queue(), packet);
    }

    /// Why an operation failed, if it did.
    pub(crate) fn error(
        &self,
        ended: bool,
        role: &Role,
        operation: &Operation,
        outcome: Outcome,
    ) -> Option<Error> {
        if outcome.code == 0 {
            return None;
        }
        let operation_kind = operation.kind();
        let mut kind = code::kind_of(operation_kind, outcome.code);
        let ended_here = matches!(kind, ErrorKind::Cancelled | ErrorKind::ConnectionAborted)
            || outcome.status == STATUS_LOCAL_DISCONNECT;
        if ended_here && operation.inner.cancelled {
            kind = ErrorKind::Cancelled;
        } else if ended_here && ended {
            // The kernel has several words for it (rule 75), and accepts have one of their own (76).
            kind = end_kind(role);
        }
        Some(Error::with_raw(operation_kind, kind, outcome.code))
    }

    /// Ends everything: `kind` for what the kernel does not have. Operations that the kernel has
    /// end with packets of its own.
    fn end_all(&self, state: &mut State, kind: ErrorKind) -> usize {
        let mut count = 0;
        for operation in state.role.take_waiting() {
            let bytes = operation.inner.done_bytes;
            let error = Error::new(operation.kind(), kind);
            self.finish_waiting(&state.role, operation, bytes, error);
            count += 1;
        }
        for flight in state.pending.in_order() {
            // SAFETY: it is in the table, so it has not landed; and the lock is held.
            count += usize::from(unsafe { self.cancel_flight(flight) });
        }
        self.pump(state);
        count
    }

    /// The source ends: cancels what the kernel has, the oldest first. (All at once, in no order
    /// that is promised, is what `CancelIoEx` without an operation does.)
    fn cancel_pending(&self, state: &State) {
        if state.socket.is_some() {
            for flight in state.pending.in_order() {
                syscall::cancel(syscall::handle_of(self.raw), flight.overlapped());
            }
        }
    }

    /// Cancels one operation that the kernel has, or had just now.
    ///
    /// # Safety
    /// It has not landed, and the lock is held.
    unsafe fn cancel_flight(&self, flight: Flight) -> bool {
        // SAFETY: as the caller promises.
        unsafe { flight.cancel(syscall::handle_of(self.raw)) }
    }

    /// Queues the packet of an operation that waited here, not in the kernel.
    fn finish_waiting(&self, role: &Role, operation: Operation, bytes: usize, error: Error) {
        let mut packet = Completion::finished(self.key, operation, bytes, Some(error));
        if let (Role::Stream(stream), OperationKind::RecvContinuous) = (role, packet.kind()) {
            packet.sequence = stream.sequence;
        }
        push_surely(self.port.queue(), packet);
    }

    /// Goes on with a continuous receive that had to wait; `false` where there is none.
    pub(crate) fn resume(&self) -> bool {
        let mut state = self.lock();
        !state.ended && self.resume_receiving(&mut state)
    }
}

/// How operations end that are pending when their source closes.
fn end_kind(role: &Role) -> ErrorKind {
    match role {
        Role::Listener(_) => ErrorKind::Cancelled,
        _ => ErrorKind::ConnectionAborted,
    }
}

impl Role {
    /// Takes out what waits here and is not in the kernel's hands.
    fn take_waiting(&mut self) -> Vec<Operation> {
        match self {
            Self::Stream(stream) => stream.take_waiting(),
            _ => Vec::new(),
        }
    }

    /// Takes out one of these.
    fn take_waiting_one(&mut self, id: OperationId) -> Option<Operation> {
        match self {
            Self::Stream(stream) => stream.take_waiting_one(id),
            _ => None,
        }
    }
}

impl Owner for Socket {
    fn finished(self: Arc<Self>, flight: Flight, bytes: u32) -> Option<Completion> {
        let completion = {
            let mut state = self.lock();
            // SAFETY: the packet was dequeued just now, with `bytes`, and the lock is held.
            let outcome = unsafe { flight.outcome(bytes) };
            // SAFETY: as above; each packet is dequeued once, so nobody else lands it.
            let operation = unsafe { state.pending.land(flight) };
            match operation.kind() {
                OperationKind::Recv => Some(self.finish_receive(&mut state, operation, outcome)),
                OperationKind::RecvContinuous => {
                    self.continue_receiving(&mut state, operation, outcome)
                }
                OperationKind::Send => self.finish_send(&mut state, operation, outcome),
                OperationKind::Connect => Some(self.finish_connect(&mut state, operation, outcome)),
                OperationKind::Accept => self.finish_accept(&mut state, operation, outcome),
                OperationKind::RecvFrom | OperationKind::SendTo => {
                    Some(self.finish_datagram(&state, operation, outcome))
                }
                kind => unreachable!("{kind:?} is never given to the kernel"),
            }
        };
        self.port.feed();
        completion
    }

    fn abandon(&self) {
        let waiting = {
            let mut state = self.lock();
            state.ended = true;
            self.cancel_pending(&state);
            state.role.take_waiting()
        };
        drop(waiting);
    }
}

impl Consumer for Socket {
    fn released(&self, held_bytes: usize) {
        if self.window.release(held_bytes) {
            self.resume();
        }
        self.port.feed();
    }
}

impl BackendSource for Socket {
    fn key(&self) -> usize {
        self.key
    }

    fn socket(&self) -> io::Result<SockRef<'_>> {
        Ok(SockRef::from(&self.borrowed))
    }

    fn start(self: Arc<Self>, operation: Operation) -> Result<(), Rejected> {
        let refusal = {
            let mut state = self.lock();
            let kind = operation.kind();
            if state.ended || self.port.queue().is_closed() {
                return Err(Rejected::new(Error::new(kind, ErrorKind::PortClosed), operation));
            }
            let result = match (&state.role, kind) {
                (Role::Stream(_), OperationKind::Recv | OperationKind::RecvContinuous) => {
                    self.start_receive(&mut state, operation)
                }
                (Role::Stream(_), OperationKind::Send | OperationKind::Disconnect) => {
                    self.start_send(&mut state, operation)
                }
                (Role::Stream(_), OperationKind::Connect) => {
                    self.start_connect(&mut state, operation)
                }
                (Role::Listener(_), OperationKind::Accept) => {
                    self.start_accept(&mut state, operation)
                }
                (Role::Datagram, OperationKind::RecvFrom) => {
                    self.start_recv_from(&mut state, operation)
                }
                (Role::Datagram, OperationKind::SendTo) => {
                    self.start_send_to(&mut state, operation)
                }
                _ => Err(Refusal::Call(Error::new(kind, ErrorKind::InvalidInput), operation)),
            };
            if let Err(Refusal::Packet(error, operation)) = result {
                self.push(operation, 0, Some(error));
                return Ok(());
            }
            result
        };
        match refusal {
            Err(Refusal::Call(error, operation)) => Err(Rejected::new(error, operation)),
            _ => Ok(()),
        }
    }

    fn cancel(&self, id: OperationId) -> bool {
        let mut state = self.lock();
        if let Some(operation) = state.role.take_waiting_one(id) {
            let bytes = operation.inner.done_bytes;
            let error = Error::new(operation.kind(), ErrorKind::Cancelled);
            self.finish_waiting(&state.role, operation, bytes, error);
            // What waited behind it, the end of the stream included, may go now.
            self.pump(&mut state);
            return true;
        }
        match state.pending.find(id) {
            // SAFETY: it is in the table, so it has not landed; and the lock is held.
            Some(flight) if state.socket.is_some() => unsafe { self.cancel_flight(flight) },
            _ => false,
        }
    }

    fn cancel_all(&self) -> usize {
        let mut state = self.lock();
        if state.socket.is_none() {
            return 0;
        }
        self.end_all(&mut state, ErrorKind::Cancelled)
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Error> {
        let mut state = self.lock();
        let State { socket: Some(socket), role, .. } = &mut *state else {
            return Err(Error::new(OperationKind::Shutdown, ErrorKind::NotConnected));
        };
        match role {
            Role::Stream(stream) => stream.shutdown(socket, how),
            _ => {
                let outcome = socket.shutdown(how);
                outcome.map_err(|error| code::error_from_io(OperationKind::Shutdown, &error))
            }
        }
    }

    fn close(&self) {
        let socket = {
            let mut state = self.lock();
            let kind = end_kind(&state.role);
            if !state.ended {
                state.ended = true;
                for operation in state.role.take_waiting() {
                    let bytes = operation.inner.done_bytes;
                    let error = Error::new(operation.kind(), kind);
                    self.finish_waiting(&state.role, operation, bytes, error);
                }
            }
            // Closing ends them, too, but in no order, and not with a duplicate open (rule 10).
            self.cancel_pending(&state);
            state.socket.take()
        };
        drop(socket);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.port.forget(self.id);
    }
}
