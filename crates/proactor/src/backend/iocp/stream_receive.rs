//! Receiving on a stream.
//!
//! A receive into the program's buffers goes to the kernel as it is, and each gives one packet. A
//! continuous receive holds no buffer while its connection is idle: it is a receive of zero bytes,
//! whose packet says that something is there (rule 60), and whoever dequeues that packet reads into
//! a buffer of the pool. One buffer for each packet, and then the next zero-byte receive goes to
//! the end of the queue: a connection on which there is always something cannot starve the others.

use std::ptr::NonNull;

use windows_sys::Win32::Networking::WinSock::{WSABUF, WSAEWOULDBLOCK};

use super::code;
use super::overlapped::{Outcome, push_surely};
use super::socket::{Refusal, Role, Socket, State};
use super::syscall;
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationKind, Payload};
use crate::port::Completion;

/// Buffers of one receive that the kernel is given; as with any receive, it may fill fewer.
const SCATTER_LIMIT: usize = 64;
/// The most that one call receives.
const RECEIVE_LIMIT_BYTES: usize = 1 << 30;

/// A receive of nothing, which ends when there is something.
fn nothing() -> WSABUF {
    WSABUF { len: 0, buf: NonNull::dangling().as_ptr() }
}

/// The buffers of a receive, for the kernel to fill.
fn scatter(payload: &mut Payload) -> Vec<WSABUF> {
    let buffers = match payload {
        Payload::Buffer(buffer) => std::slice::from_mut(buffer),
        Payload::Buffers(buffers) => &mut buffers[..],
        _ => unreachable!("a receive owns buffers"),
    };
    let mut left = RECEIVE_LIMIT_BYTES;
    let mut list = Vec::with_capacity(buffers.len().min(SCATTER_LIMIT));
    for buffer in buffers.iter_mut().filter(|buffer| buffer.capacity() > 0) {
        let len = buffer.capacity().min(left);
        if len == 0 || list.len() == SCATTER_LIMIT {
            break;
        }
        left -= len;
        list.push(WSABUF { len: len as u32, buf: buffer.as_mut_ptr() });
    }
    if list.is_empty() {
        list.push(nothing());
    }
    list
}

/// Tells the buffers how much of them the kernel has filled.
fn set_filled(payload: &mut Payload, mut bytes: usize) {
    let buffers = match payload {
        Payload::Buffer(buffer) => std::slice::from_mut(buffer),
        Payload::Buffers(buffers) => &mut buffers[..],
        _ => unreachable!("a receive owns buffers"),
    };
    for buffer in buffers {
        let filled = bytes.min(buffer.capacity());
        // SAFETY: the kernel fills the buffers in order and without holes (rule 62), each from its
        // start and to its capacity before the next.
        unsafe { buffer.set_len(filled) };
        bytes -= filled;
    }
    assert_eq!(bytes, 0, "the kernel received more than there was room for");
}

impl Socket {
    pub(crate) fn start_receive(
        &self,
        state: &mut State,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let Role::Stream(stream) = &mut state.role else {
            unreachable!("the caller matched the role")
        };
        let kind = operation.kind();
        if let Some(reason) = stream.refuses_receive(kind) {
            return Err(Refusal::Call(Error::new(kind, reason), operation));
        }
        if kind == OperationKind::RecvContinuous {
            stream.sequence = 0;
            stream.continuous = true;
            return self
                .arm(state, operation)
                .map_err(|(error, operation)| Refusal::Call(error, operation));
        }
        let raw = self.raw;
        let issued = self.issue(&mut state.pending, operation, false, |flight| {
            // SAFETY: just launched, and no call was made with it.
            let payload = unsafe { &mut flight.inner().payload };
            let receive = |buffers: &[WSABUF]| {
                // SAFETY: the buffers' capacity and the OVERLAPPED are the operation's own: nobody
                // touches them until it lands.
                unsafe { syscall::recv(raw, buffers, flight.overlapped()) }
            };
            match payload {
                // One buffer needs no list, and so no allocation.
                Payload::Buffer(buffer) if buffer.capacity() > 0 => {
                    let len = buffer.capacity().min(RECEIVE_LIMIT_BYTES) as u32;
                    receive(&[WSABUF { len, buf: buffer.as_mut_ptr() }])
                }
                several => receive(&scatter(several)),
            }
        });
        match issued {
            Ok(_) => {
                stream.receives += 1;
                Ok(())
            }
            Err((code, operation)) => {
                let error = code::error_of(kind, code);
                stream.note(Some(error));
                Err(Refusal::Call(error, operation))
            }
        }
    }

    pub(crate) fn finish_receive(
        &self,
        state: &mut State,
        mut operation: Operation,
        outcome: Outcome,
    ) -> Completion {
        let mut error = self.error(state.ended, &state.role, &operation, outcome);
        let Role::Stream(stream) = &mut state.role else { unreachable!("only streams receive") };
        stream.receives -= 1;
        stream.note(error);
        if error.is_none() && outcome.bytes == 0 {
            // An end after a reset is none (rule 59).
            error = stream.reset;
        }
        set_filled(&mut operation.inner.payload, outcome.bytes);
        Completion::finished(self.key, operation, outcome.bytes, error)
    }

    /// Waits for the next bytes of a continuous receive, or for room.
    fn arm(&self, state: &mut State, operation: Operation) -> Result<(), (Error, Operation)> {
        let Role::Stream(stream) = &mut state.role else { unreachable!("only streams receive") };
        if self.window.is_paused() {
            stream.parked = Some(operation);
            return Ok(());
        }
        let raw = self.raw;
        let issued = self.issue(&mut state.pending, operation, true, |flight| {
            // SAFETY: no memory but the OVERLAPPED, which is the operation's own.
            unsafe { syscall::recv(raw, &[nothing()], flight.overlapped()) }
        });
        match issued {
            Ok(_) => Ok(()),
            Err((code, operation)) => {
                stream.continuous = false;
                let error = code::error_of(OperationKind::RecvContinuous, code);
                stream.note(Some(error));
                Err((error, operation))
            }
        }
    }

    /// The same for one that goes on: where it is refused, that ends it, with a packet.
    fn arm_again(&self, state: &mut State, operation: Operation) {
        if let Err((error, operation)) = self.arm(state, operation) {
            let packet = self.last_packet(state, operation, Some(error));
            push_surely(self.port.queue(), packet);
        }
    }

    /// The last packet of a continuous receive.
    fn last_packet(
        &self,
        state: &mut State,
        operation: Operation,
        error: Option<Error>,
    ) -> Completion {
        let Role::Stream(stream) = &mut state.role else { unreachable!("only streams receive") };
        stream.continuous = false;
        stream.note(error);
        let error = error.or(stream.reset);
        let mut packet = Completion::finished(self.key, operation, 0, error);
        packet.sequence = stream.sequence;
        packet
    }

    /// The zero-byte receive of a continuous receive has ended: reads one buffer.
    pub(crate) fn continue_receiving(
        &self,
        state: &mut State,
        operation: Operation,
        outcome: Outcome,
    ) -> Option<Completion> {
        let mut error = self.error(state.ended, &state.role, &operation, outcome);
        if error.is_none() && operation.inner.cancelled {
            error = Some(Error::new(operation.kind(), ErrorKind::Cancelled));
        } else if error.is_none() && state.ended {
            error = Some(Error::new(operation.kind(), ErrorKind::ConnectionAborted));
        }
        if error.is_some() {
            return Some(self.last_packet(state, operation, error));
        }
        let pool = self.port.pool();
        let Some(index) = pool.take() else {
            if let Role::Stream(stream) = &mut state.role {
                stream.parked = Some(operation);
            }
            self.port.starve(self.shared());
            return None;
        };
        // SAFETY: the index was taken from the pool just now.
        let mut buffer = unsafe { pool.lend(index, pool.buffer_bytes(), None) };
        match syscall::recv_now(self.raw, buffer.as_uninit()) {
            Ok(0) => Some(self.last_packet(state, operation, None)),
            Ok(count) => {
                buffer.truncate(count);
                let most_bytes = pool.window_bytes(self.port.config().receive_window_bytes);
                self.window.hold(buffer.capacity(), most_bytes);
                let Role::Stream(stream) = &mut state.role else {
                    unreachable!("only streams receive")
                };
                let sequence = stream.sequence;
                stream.sequence += 1;
                if let Some(shared) = self.shared() {
                    buffer.set_consumer(shared);
                }
                let chunk = Completion::chunk(self.key, operation.id(), sequence, buffer);
                self.arm_again(state, operation);
                Some(chunk)
            }
            Err(WSAEWOULDBLOCK) => {
                self.arm_again(state, operation);
                None
            }
            Err(code) => {
                let error = code::error_of(OperationKind::RecvContinuous, code);
                Some(self.last_packet(state, operation, Some(error)))
            }
        }
    }

    /// There is room again: goes on, if it waited for that.
    pub(crate) fn resume_receiving(&self, state: &mut State) -> bool {
        let Role::Stream(stream) = &mut state.role else { return false };
        if self.window.is_paused() {
            return false;
        }
        let Some(operation) = stream.parked.take() else { return false };
        self.arm_again(state, operation);
        true
    }
}
