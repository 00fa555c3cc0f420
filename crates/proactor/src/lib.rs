//! Proactor is a *completion port* for Rust: one queue of finished I/O that any thread serves.
//!
//! Sockets and files are [associated](CompletionPort::associate) with a port under a key. A
//! program starts an [`Operation`] on them (accept, connect, recv, send, read, write) and goes on;
//! when it is done, a [`Completion`] (bytes, key, the operation with its buffers) is queued at the
//! port, and whichever worker thread is free [dequeues](CompletionPort::dequeue) it. Few threads
//! serve many long sessions, and a handler that blocks does not hold up the others.
//!
//! Windows has this in its kernel, and there it is used; here it works the same on Linux, on
//! io_uring, and on epoll where io_uring is not to be had.
//!
//! # Portability
//! The API is the same on Linux and on Windows. Only on Unix are there Unix sockets
//! (`StreamSocket::for_unix`, `StreamSocket::connect_unix`, `Accepted::into_unix_stream`, and
//! association of `UnixStream` and `UnixListener`). What else differs is in `docs/semantics.md`,
//! rule by rule. The Windows port was run under Wine so far, not on Windows itself.
//!
//! ```
//! use std::net::{TcpListener, TcpStream};
//! use std::io::{Read, Write};
//! use proactor::{CompletionPort, Operation, OperationKind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let port = CompletionPort::new(0)?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! let listener = port.associate(listener, 1)?;
//! listener.accept(Operation::new())?;
//!
//! let mut client = TcpStream::connect(address)?;
//! client.write_all(b"hello")?;
//!
//! // The connection is accepted, then its first bytes come: two packets.
//! let mut completion = port.dequeue(None)?;
//! assert_eq!((completion.kind(), completion.key()), (OperationKind::Accept, 1));
//! let mut operation = completion.take_operation().unwrap();
//! let accepted = operation.take_accepted().unwrap();
//! let stream = port.associate(accepted, 2)?;
//! stream.recv(operation, Vec::with_capacity(64))?;
//!
//! let completion = port.dequeue(None)?;
//! assert_eq!((completion.kind(), completion.key()), (OperationKind::Recv, 2));
//! let operation = completion.into_operation().unwrap();
//! assert_eq!(operation.buffer(), b"hello");
//!
//! stream.send(operation, "welcome")?;
//! assert_eq!(port.dequeue(None)?.bytes(), 7);
//! # let mut answer = [0; 7]; client.read_exact(&mut answer)?; assert_eq!(&answer, b"welcome");
//! # Ok(()) }
//! ```
//!
//! # Layers
//! [`CompletionPort`] and the sources at the top; operations and their buffers; and below them a
//! backend for each kind of kernel, behind one written seam (see `docs/architecture.md`). How the
//! port behaves is numbered in `docs/semantics.md`, and the documentation here cites those rules.

#![deny(unsafe_code)]
#![warn(missing_docs)]

/// Whether a planted bug is switched on: never, but in the mutation suite (`docs/testing.md`).
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(proactor_planted_bugs)]
        let on = $crate::planted::is_on($crate::planted::Bug::$bug);
        #[cfg(not(proactor_planted_bugs))]
        let on = false;
        on
    }};
}

#[allow(unsafe_code)]
mod backend;
#[allow(unsafe_code)]
mod buffer;
mod error;
mod operation;
pub mod overlapped;
#[cfg(proactor_planted_bugs)]
#[doc(hidden)]
pub mod planted;
mod port;
pub mod service;
#[cfg(feature = "sim")]
pub mod sim;
// Elsewhere the service layer uses a part of it.
#[cfg_attr(not(target_os = "linux"), allow(unused_imports, dead_code))]
mod sync;

pub use backend::{BackendChoice, BackendDescription, Capability, probe};
pub use buffer::{PoolBuffer, SendBuffer};
pub use error::{AssociateError, DequeueError, Error, ErrorKind, Rejected};
pub use operation::{Operation, OperationId, OperationKind};
pub use port::{
    Accepted, Associate, AssociatedFile, BatchSizes, Builder, Completion, CompletionPort,
    DatagramSocket, ListenSocket, PortCounters, PortSnapshot, StreamSocket, WorkerSnapshot,
    WorkerState,
};

/// The programs of the guide and of the README compile: they are documentation tests.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/guide.md")]
    mod text {}
    #[doc = include_str!("../../../README.md")]
    mod readme {}
    #[doc = include_str!("../../../docs/coming-from-iocp.md")]
    mod coming_from_iocp {}
}
