//! Datagrams: each receive and each send is one overlapped call.

use std::ptr::NonNull;

use socket2::SockAddr;
use windows_sys::Win32::Networking::WinSock::{SOCKADDR_STORAGE, WSABUF, WSAEMSGSIZE};

use super::code;
use super::overlapped::{Outcome, Room};
use super::socket::{Refusal, Socket, State};
use super::syscall::{self, Issued};
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationKind, Payload};
use crate::port::Completion;

impl Socket {
    pub(crate) fn start_recv_from(
        &self,
        state: &mut State,
        mut operation: Operation,
    ) -> Result<(), Refusal> {
        let State { socket: Some(socket), pending, .. } = state else {
            unreachable!("the caller checked that it is open")
        };
        // Rule 115: nothing can come to a socket without an address.
        let bound = socket.local_addr().ok().and_then(|address| address.as_socket());
        if bound.is_none_or(|address| address.port() == 0) {
            let error = Error::new(OperationKind::RecvFrom, ErrorKind::InvalidInput);
            return Err(Refusal::Call(error, operation));
        }
        let room = operation.inner.native.room.get_or_insert_with(Box::<Room>::default);
        room.peer_bytes = size_of::<SOCKADDR_STORAGE>() as i32;
        let raw = self.raw;
        let issued = self.issue(pending, operation, false, |flight| {
            // SAFETY: just launched, and no call was made with it.
            let inner = unsafe { flight.inner() };
            let (Payload::Datagram(buffer, _), Some(room)) =
                (&mut inner.payload, &mut inner.native.room)
            else {
                unreachable!("a datagram receive owns a buffer and has room")
            };
            let len = u32::try_from(buffer.capacity()).unwrap_or(u32::MAX);
            let buffer = WSABUF { len, buf: buffer.as_mut_ptr() };
            let (peer, peer_bytes) = (&raw mut room.peer, &raw mut room.peer_bytes);
            // SAFETY: the buffer, the room and the OVERLAPPED are the operation's own.
            match unsafe { syscall::recv_from(raw, buffer, peer, peer_bytes, flight.overlapped()) }
            {
                // A datagram that was cut at once: a failure that has a packet (rule 46).
                Err(WSAEMSGSIZE) => Ok(Issued::Pending),
                issued => issued,
            }
        });
        refuse(OperationKind::RecvFrom, issued.map(drop))
    }

    pub(crate) fn start_send_to(
        &self,
        state: &mut State,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let State { socket: Some(socket), pending, .. } = state else {
            unreachable!("the caller checked that it is open")
        };
        let Payload::DatagramTo(buffer, peer) = &operation.inner.payload else {
            unreachable!("a datagram send owns its buffer")
        };
        let refused = if peer.is_none() && socket.peer_addr().is_err() {
            Some(ErrorKind::NotConnected)
        } else if buffer.len() > self.longest_datagram() {
            // Asked here: where the kernel finds it out, Wine queues a packet as well (rule 117).
            Some(ErrorKind::MessageTooLong)
        } else {
            None
        };
        if let Some(reason) = refused {
            let error = Error::new(OperationKind::SendTo, reason);
            return Err(Refusal::Call(error, operation));
        }
        let raw = self.raw;
        let issued = self.issue(pending, operation, false, |flight| {
            // SAFETY: just launched, and no call was made with it.
            let Payload::DatagramTo(buffer, peer) = (unsafe { &flight.inner().payload }) else {
                unreachable!("a datagram send owns its buffer")
            };
            let bytes = buffer.as_slice();
            let buf = if bytes.is_empty() {
                NonNull::dangling().as_ptr()
            } else {
                bytes.as_ptr().cast_mut()
            };
            let list = WSABUF { len: bytes.len() as u32, buf };
            let peer = peer.map(SockAddr::from);
            // SAFETY: the buffer and the OVERLAPPED are the operation's own.
            unsafe { syscall::send_to(raw, list, peer.as_ref(), flight.overlapped()) }
        });
        refuse(OperationKind::SendTo, issued.map(drop))
    }

    fn longest_datagram(&self) -> usize {
        // What IP and UDP leave room for, where the provider does not say.
        const LONGEST_BYTES: u32 = 65_535 - 8;
        let longest = syscall::longest_datagram(self.raw).unwrap_or(LONGEST_BYTES);
        longest.min(LONGEST_BYTES) as usize
    }

    pub(crate) fn finish_datagram(
        &self,
        state: &State,
        mut operation: Operation,
        outcome: Outcome,
    ) -> Completion {
        let error = self.error(state.ended, &state.role, &operation, outcome);
        let mut bytes = outcome.bytes;
        let inner = &mut *operation.inner;
        if let Payload::Datagram(buffer, peer) = &mut inner.payload {
            // A datagram that was cut has filled the buffer.
            bytes = bytes.min(buffer.capacity());
            // SAFETY: the kernel has written that many bytes from the start of the buffer.
            unsafe { buffer.set_len(bytes) };
            let arrived = error.is_none_or(|error| error.kind() == ErrorKind::MessageTruncated);
            *peer = match &inner.native.room {
                // SAFETY: the kernel has written so many bytes of the storage.
                Some(room) if arrived => unsafe {
                    syscall::address((&raw const room.peer).cast(), room.peer_bytes)
                },
                _ => None,
            };
        }
        Completion::finished(self.key, operation, bytes, error)
    }
}

/// A wrong call is refused in the call, and a send always; what the network says to a receive comes
/// as a packet.
fn refuse(
    kind: OperationKind,
    issued: Result<(), (syscall::Code, Operation)>,
) -> Result<(), Refusal> {
    issued.map_err(|(code, operation)| {
        let error = code::error_of(kind, code);
        if kind == OperationKind::SendTo || error.kind() == ErrorKind::InvalidInput {
            Refusal::Call(error, operation)
        } else {
            Refusal::Packet(error, operation)
        }
    })
}
