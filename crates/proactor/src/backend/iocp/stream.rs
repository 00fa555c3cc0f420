//! A stream socket: its state, connecting, and shutting down. Receiving is in `stream_receive`,
//! sending in `stream_send`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};

use socket2::SockAddr;
use windows_sys::Win32::Networking::WinSock::{AF_INET, AF_INET6, WSAENOTCONN};

use super::code;
use super::overlapped::Outcome;
use super::socket::{Refusal, Role, Socket, State};
use super::syscall;
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::Completion;

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    None,
    Connecting,
    Established,
}

pub(crate) struct Stream {
    pub(crate) connection: Connection,
    /// Receives into the program's buffers that are pending.
    pub(crate) receives: usize,
    /// A continuous receive is under way.
    pub(crate) continuous: bool,
    /// It, while it waits for its consumer or for a free buffer.
    pub(crate) parked: Option<Operation>,
    /// Packets that it has given.
    pub(crate) sequence: u64,
    /// The peer's reset was reported: sticky, for the kernel may say it only once (rule 59).
    pub(crate) reset: Option<Error>,
    /// Sends and disconnects that wait for one that goes out in pieces, or for all before them.
    pub(crate) sends: VecDeque<Operation>,
    /// Sends that the kernel has and that are not known to be done.
    pub(crate) unsettled_sends: usize,
    /// The last one that the kernel has is one piece of a longer send.
    pub(crate) in_pieces: bool,
    shut_receive: bool,
    pub(crate) shut_send: bool,
    /// The end of the stream is to be sent behind the last send, without a packet.
    end_behind_sends: bool,
}

impl Stream {
    pub(crate) fn new(connected: bool) -> Self {
        Self {
            connection: if connected { Connection::Established } else { Connection::None },
            receives: 0,
            continuous: false,
            parked: None,
            sequence: 0,
            reset: None,
            sends: VecDeque::new(),
            unsettled_sends: 0,
            in_pieces: false,
            shut_receive: false,
            shut_send: false,
            end_behind_sends: false,
        }
    }

    /// Why a new receive is refused, if it is.
    pub(crate) fn refuses_receive(&self, kind: OperationKind) -> Option<ErrorKind> {
        match self.connection {
            Connection::None | Connection::Connecting => Some(ErrorKind::NotConnected),
            _ if self.shut_receive => Some(ErrorKind::ShutDown),
            _ if self.continuous => Some(ErrorKind::InvalidInput),
            _ if kind == OperationKind::RecvContinuous && self.receives > 0 => {
                Some(ErrorKind::InvalidInput)
            }
            _ => self.reset.map(|error| error.kind()),
        }
    }

    /// Remembers a reset.
    pub(crate) fn note(&mut self, error: Option<Error>) {
        if let Some(error) = error
            && error.kind() == ErrorKind::ConnectionReset
        {
            self.reset.get_or_insert(error);
        }
    }

    /// Takes out what is not in the kernel's hands.
    pub(crate) fn take_waiting(&mut self) -> Vec<Operation> {
        let mut waiting: Vec<_> = self.sends.drain(..).collect();
        if let Some(operation) = self.parked.take() {
            self.continuous = false;
            waiting.push(operation);
        }
        waiting
    }

    /// Takes out one of these.
    pub(crate) fn take_waiting_one(&mut self, id: OperationId) -> Option<Operation> {
        if self.parked.as_ref().is_some_and(|operation| operation.id() == id) {
            self.continuous = false;
            return self.parked.take();
        }
        let position = self.sends.iter().position(|operation| operation.id() == id)?;
        self.sends.remove(position)
    }

    pub(crate) fn shutdown(
        &mut self,
        socket: &socket2::Socket,
        how: Shutdown,
    ) -> Result<(), Error> {
        if self.connection != Connection::Established {
            return Err(Error::new(OperationKind::Shutdown, ErrorKind::NotConnected));
        }
        if how != Shutdown::Write {
            // Kept here: pending receives stay pending (rule 84), and what comes for them comes.
            self.shut_receive = true;
        }
        if how != Shutdown::Read && !self.shut_send {
            self.shut_send = true;
            self.end_behind_sends = true;
            return self.send_end(socket);
        }
        Ok(())
    }

    /// Sends the end of the stream, if it is asked for and everything before it is out.
    pub(crate) fn send_end(&mut self, socket: &socket2::Socket) -> Result<(), Error> {
        if !self.end_behind_sends || self.unsettled_sends > 0 || !self.sends.is_empty() {
            return Ok(());
        }
        self.end_behind_sends = false;
        shut_write(socket, OperationKind::Shutdown)
    }
}

/// Ends the sending side of a connection.
pub(crate) fn shut_write(socket: &socket2::Socket, operation: OperationKind) -> Result<(), Error> {
    socket.shutdown(Shutdown::Write).map_err(|error| match error.raw_os_error() {
        // Connected before, and not now: the peer reset it.
        Some(code @ WSAENOTCONN) => Error::with_raw(operation, ErrorKind::ConnectionReset, code),
        _ => code::error_from_io(operation, &error),
    })
}

impl Socket {
    pub(crate) fn start_connect(
        &self,
        state: &mut State,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let State { socket: Some(socket), pending, role: Role::Stream(stream), .. } = state else {
            unreachable!("the caller matched the role of an open socket")
        };
        let refuse = |kind, operation| {
            Err(Refusal::Call(Error::new(OperationKind::Connect, kind), operation))
        };
        if stream.connection != Connection::None {
            return refuse(ErrorKind::AlreadyConnected, operation);
        }
        let Payload::Address(address) = &operation.inner.payload else {
            unreachable!("a connect owns its address")
        };
        if i32::from(address.family()) != self.family {
            return refuse(ErrorKind::InvalidInput, operation);
        }
        // ConnectEx takes a bound socket only (rule 103).
        if let Err(error) = bind_if_unbound(socket, self.family) {
            let error = code::error_from_io(OperationKind::Connect, &error);
            return Err(Refusal::Packet(error, operation));
        }
        let raw = self.raw;
        let issued = self.issue(pending, operation, false, |flight| {
            // SAFETY: just launched, and no call was made with it.
            let Payload::Address(address) = (unsafe { &flight.inner().payload }) else {
                unreachable!("a connect owns its address")
            };
            // SAFETY: the OVERLAPPED is the operation's own.
            unsafe { syscall::connect(raw, address, flight.overlapped()) }
        });
        match issued {
            Ok(_) => {
                stream.connection = Connection::Connecting;
                Ok(())
            }
            Err((code, operation)) => {
                let error = code::error_of(OperationKind::Connect, code);
                // A wrong call is refused in the call; what the network says comes as a packet.
                Err(match error.kind() {
                    ErrorKind::InvalidInput
                    | ErrorKind::AlreadyConnected
                    | ErrorKind::Unsupported => Refusal::Call(error, operation),
                    _ => Refusal::Packet(error, operation),
                })
            }
        }
    }

    pub(crate) fn finish_connect(
        &self,
        state: &mut State,
        operation: Operation,
        outcome: Outcome,
    ) -> Completion {
        let mut error = self.error(state.ended, &state.role, &operation, outcome);
        let Role::Stream(stream) = &mut state.role else { unreachable!("only streams connect") };
        if error.is_none()
            && state.socket.is_some()
            && let Err(code) = syscall::update_connect_context(self.raw)
        {
            // The connection is gone already.
            error = Some(code::error_of(OperationKind::Connect, code));
        }
        stream.connection =
            if error.is_none() { Connection::Established } else { Connection::None };
        Completion::finished(self.key, operation, 0, error)
    }
}

fn bind_if_unbound(socket: &socket2::Socket, family: i32) -> std::io::Result<()> {
    let local = socket.local_addr().ok().and_then(|address| address.as_socket());
    if local.is_some_and(|address| address.port() != 0) {
        return Ok(());
    }
    let any: SocketAddr = match family as u16 {
        AF_INET => (Ipv4Addr::UNSPECIFIED, 0).into(),
        AF_INET6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
        _ => return Ok(()),
    };
    socket.bind(&SockAddr::from(any))
}
