//! Sending on a stream.
//!
//! A send goes to the kernel as it is, also while others are pending there: the kernel keeps their
//! order (rule 69). Only what does not fit into one call goes out in pieces, and what is started
//! meanwhile waits behind it here; so does a disconnect, until everything before it is out.

use std::ptr::NonNull;

use windows_sys::Win32::Networking::WinSock::WSABUF;

use super::code;
use super::overlapped::{Outcome, push_surely};
use super::socket::{Refusal, Role, Socket, State};
use super::stream::{Connection, shut_write};
use super::syscall::{self, Issued};
use crate::error::{Error, ErrorKind};
use crate::operation::{Inner, Operation, OperationKind, Payload};
use crate::port::Completion;

/// Buffers that one call is given at most.
const GATHER_LIMIT: usize = 512;
/// Bytes that one call is given at most.
const PIECE_BYTES: usize = 1 << 30;

fn buffers(payload: &Payload) -> &[crate::buffer::SendBuffer] {
    match payload {
        Payload::Data(buffer) => std::slice::from_ref(buffer),
        Payload::Gather(buffers) => buffers,
        _ => unreachable!("a send owns buffers"),
    }
}

fn left_bytes(inner: &Inner) -> usize {
    buffers(&inner.payload).iter().map(|buffer| buffer.len()).sum::<usize>() - inner.done_bytes
}

/// The next piece of a send, as far as one call takes it.
fn next_piece(inner: &Inner) -> Vec<WSABUF> {
    let mut skip = inner.done_bytes;
    let mut room = PIECE_BYTES;
    let mut list = Vec::new();
    for buffer in buffers(&inner.payload) {
        let bytes = buffer.as_slice();
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        let len = (bytes.len() - skipped).min(room);
        if list.len() == GATHER_LIMIT || room == 0 {
            break;
        }
        if len > 0 {
            room -= len;
            list.push(WSABUF { len: len as u32, buf: bytes[skipped..].as_ptr().cast_mut() });
        }
    }
    list
}

/// Hands the next piece of a send to `call`, and says whether it is all that is left.
fn with_piece<R>(inner: &Inner, call: impl FnOnce(&[WSABUF], bool) -> R) -> R {
    // One buffer needs no list, and so no allocation.
    if let Payload::Data(buffer) = &inner.payload
        && buffer.len() - inner.done_bytes <= PIECE_BYTES
    {
        let rest = &buffer.as_slice()[inner.done_bytes..];
        return call(&[WSABUF { len: rest.len() as u32, buf: rest.as_ptr().cast_mut() }], true);
    }
    let mut list = next_piece(inner);
    let piece_bytes: usize = list.iter().map(|buffer| buffer.len as usize).sum();
    if list.is_empty() {
        list.push(WSABUF { len: 0, buf: NonNull::dangling().as_ptr() });
    }
    call(&list, piece_bytes == left_bytes(inner))
}

impl Socket {
    pub(crate) fn start_send(
        &self,
        state: &mut State,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let Role::Stream(stream) = &mut state.role else {
            unreachable!("the caller matched the role")
        };
        let kind = operation.kind();
        let refused = match (stream.connection, stream.shut_send, stream.reset) {
            (Connection::None | Connection::Connecting, ..) => Some(ErrorKind::NotConnected),
            (_, true, _) => Some(ErrorKind::ShutDown),
            (.., Some(error)) => Some(error.kind()),
            _ => None,
        };
        if let Some(reason) = refused {
            return Err(Refusal::Call(Error::new(kind, reason), operation));
        }
        if kind == OperationKind::Disconnect {
            stream.shut_send = true;
            stream.sends.push_back(operation);
            self.pump(state);
            return Ok(());
        }
        if stream.in_pieces || !stream.sends.is_empty() {
            stream.sends.push_back(operation);
            return Ok(());
        }
        self.issue_send(state, operation)
            .map_err(|(error, operation)| Refusal::Call(error, operation))
    }

    /// Gives a send, or its next piece, to the kernel.
    fn issue_send(
        &self,
        state: &mut State,
        operation: Operation,
    ) -> Result<(), (Error, Operation)> {
        let Role::Stream(stream) = &mut state.role else { unreachable!("only streams send") };
        let one_piece = with_piece(&operation.inner, |_, is_all| is_all);
        let raw = self.raw;
        let issued = self.issue(&mut state.pending, operation, !one_piece, |flight| {
            // SAFETY: just launched, and no call was made with it.
            let inner = unsafe { &*flight.inner() };
            // SAFETY: the buffers and the OVERLAPPED are the operation's own.
            with_piece(inner, |list, _| unsafe { syscall::send(raw, list, flight.overlapped()) })
        });
        match issued {
            Ok((flight, issued)) => {
                stream.in_pieces = !one_piece;
                if matches!(issued, Issued::Done(_)) && one_piece {
                    // SAFETY: it lands under the lock, which is held.
                    unsafe { flight.set_settled() };
                } else {
                    stream.unsettled_sends += 1;
                }
                Ok(())
            }
            Err((code, operation)) => {
                let error = code::error_of(OperationKind::Send, code);
                stream.note(Some(error));
                Err((error, operation))
            }
        }
    }

    pub(crate) fn finish_send(
        &self,
        state: &mut State,
        mut operation: Operation,
        outcome: Outcome,
    ) -> Option<Completion> {
        let mut error = self.error(state.ended, &state.role, &operation, outcome);
        let Role::Stream(stream) = &mut state.role else { unreachable!("only streams send") };
        if !operation.inner.native.settled {
            stream.unsettled_sends -= 1;
        }
        stream.note(error);
        let goes_on = operation.inner.native.goes_on;
        if goes_on {
            stream.in_pieces = false;
        }
        let left = left_bytes(&operation.inner);
        assert!(outcome.bytes <= left, "the kernel sent more than it was given");
        operation.inner.done_bytes += outcome.bytes;
        if error.is_none() && outcome.bytes < left {
            if operation.inner.cancelled {
                error = Some(Error::new(OperationKind::Send, ErrorKind::Cancelled));
            } else if state.ended {
                error = Some(Error::new(OperationKind::Send, ErrorKind::ConnectionAborted));
            } else if !goes_on {
                // The kernel takes an overlapped send whole (rule 67), and calls it well where the
                // peer resets between its parts (seen under Wine: a peer that goes with bytes
                // unread). What came behind this one may be on its way, so the rest cannot be.
                error = Some(Error::new(OperationKind::Send, ErrorKind::ConnectionReset));
                stream.note(error);
            } else {
                match self.issue_send(state, operation) {
                    Ok(()) => return None,
                    Err((reason, unsent)) => {
                        error = Some(reason);
                        operation = unsent;
                    }
                }
            }
        }
        self.pump(state);
        let bytes = operation.inner.done_bytes;
        Some(Completion::finished(self.key, operation, bytes, error))
    }

    /// Goes on with the sends that wait here, as far as that can be.
    pub(crate) fn pump(&self, state: &mut State) {
        if state.ended {
            return;
        }
        loop {
            let State { socket: Some(socket), role: Role::Stream(stream), .. } = &mut *state else {
                return;
            };
            let Some(front) = stream.sends.front() else {
                if let Err(error) = stream.send_end(socket) {
                    tracing::debug!(%error, "the end of a stream could not be sent");
                }
                return;
            };
            let is_disconnect = front.kind() == OperationKind::Disconnect;
            if stream.in_pieces || (is_disconnect && stream.unsettled_sends > 0) {
                return;
            }
            let Some(operation) = stream.sends.pop_front() else { return };
            if is_disconnect {
                let error = shut_write(socket, OperationKind::Disconnect).err();
                self.push(operation, 0, error);
            } else if let Err((error, operation)) = self.issue_send(state, operation) {
                let bytes = operation.inner.done_bytes;
                let packet = Completion::finished(self.key, operation, bytes, Some(error));
                push_surely(self.port.queue(), packet);
            }
        }
    }
}
