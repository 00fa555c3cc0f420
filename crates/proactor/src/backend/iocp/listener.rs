//! Accepting: each accept of the program is an `AcceptEx` with a socket of its own, so as many are
//! outstanding as the program has started, and a connection is there at once for the oldest of
//! them (rule 99).

use socket2::{Domain, Protocol, Type};
use windows_sys::Win32::Networking::WinSock::{AF_INET, AF_INET6, WSAECONNRESET};

use super::code;
use super::overlapped::{Outcome, Room};
use super::socket::{Refusal, Role, Socket, State};
use super::syscall;
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationKind, Payload};
use crate::port::{Accepted, Completion};

/// How often an accept is tried again at once, where the connection it was to have is reset.
const RESET_LIMIT: usize = 64;

/// What is known of a listening socket.
#[derive(Default)]
pub(crate) struct Listener {
    /// It was seen to listen, and it never stops.
    listens: bool,
}

impl Socket {
    pub(crate) fn start_accept(
        &self,
        state: &mut State,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let Role::Listener(listener) = &mut state.role else {
            unreachable!("the caller matched the role")
        };
        listener.listens = listener.listens || syscall::listens(self.raw);
        if !listener.listens {
            let error = Error::new(OperationKind::Accept, ErrorKind::InvalidInput);
            return Err(Refusal::Call(error, operation));
        }
        self.issue_accept(state, operation)
    }

    fn issue_accept(&self, state: &mut State, mut operation: Operation) -> Result<(), Refusal> {
        let raw = self.raw;
        for _ in 0..RESET_LIMIT {
            let accepted = match new_socket(self.family) {
                Ok(accepted) => accepted,
                Err(error) => {
                    // A lack of handles ends this accept; the connection stays in the backlog.
                    let error = code::error_from_io(OperationKind::Accept, &error);
                    return Err(Refusal::Packet(error, operation));
                }
            };
            let accepted_raw = syscall::raw(&accepted);
            let room = operation.inner.native.room.get_or_insert_with(Box::<Room>::default);
            room.accepted = Some(accepted);
            let issued = self.issue(&mut state.pending, operation, false, |flight| {
                // SAFETY: just launched, and no call was made with it.
                let room = unsafe { &mut flight.inner().native.room };
                let Some(room) = room else { unreachable!("made just now") };
                let output = room.accept_addresses.as_mut_ptr();
                // SAFETY: the room and the OVERLAPPED are the operation's own.
                unsafe { syscall::accept(raw, accepted_raw, output, flight.overlapped()) }
            });
            let (code, mut refused) = match issued {
                Ok(_) => return Ok(()),
                Err(refused) => refused,
            };
            if let Some(room) = &mut refused.inner.native.room {
                room.accepted = None;
            }
            operation = refused;
            let error = code::error_of(OperationKind::Accept, code);
            if !is_about_one_connection(&error) {
                return Err(match error.kind() {
                    ErrorKind::InvalidInput | ErrorKind::Unsupported => {
                        Refusal::Call(error, operation)
                    }
                    _ => Refusal::Packet(error, operation),
                });
            }
        }
        let error = code::error_of(OperationKind::Accept, WSAECONNRESET);
        Err(Refusal::Packet(error, operation))
    }

    pub(crate) fn finish_accept(
        &self,
        state: &mut State,
        mut operation: Operation,
        outcome: Outcome,
    ) -> Option<Completion> {
        let error = self.error(state.ended, &state.role, &operation, outcome);
        let accepted = operation.inner.native.room.as_mut().and_then(|room| {
            let accepted = room.accepted.take()?;
            Some((accepted, syscall::peer_of_accept(&room.accept_addresses)))
        });
        let Some(error) = error else {
            let Some((accepted, peer)) = accepted else {
                unreachable!("an accept in flight has a socket")
            };
            // Where the listener is closed by now, the connection only sends and receives.
            if state.socket.is_some()
                && let Err(code) = syscall::update_accept_context(syscall::raw(&accepted), self.raw)
            {
                tracing::debug!(code, "SO_UPDATE_ACCEPT_CONTEXT");
            }
            let accepted = Accepted::new(accepted, peer);
            operation.inner.payload = Payload::Accepted(Box::new(accepted));
            return Some(Completion::finished(self.key, operation, 0, None));
        };
        drop(accepted);
        if is_about_one_connection(&error) && !state.ended && !operation.inner.cancelled {
            return match self.issue_accept(state, operation) {
                Ok(()) => None,
                Err(Refusal::Call(error, operation) | Refusal::Packet(error, operation)) => {
                    Some(Completion::finished(self.key, operation, 0, Some(error)))
                }
            };
        }
        Some(Completion::finished(self.key, operation, 0, Some(error)))
    }
}

/// Whether an accept failed for a connection that is gone, not for the listener: the next one may be
/// fine (rule 102).
fn is_about_one_connection(error: &Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | NotConnected)
}

/// A socket for an accept to fill.
fn new_socket(family: i32) -> std::io::Result<socket2::Socket> {
    let protocol = matches!(family as u16, AF_INET | AF_INET6).then_some(Protocol::TCP);
    socket2::Socket::new(Domain::from(family), Type::STREAM, protocol)
}
