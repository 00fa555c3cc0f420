//! The overlapped model: operations that end in a *completion routine* in place of a packet.
//!
//! A thread makes an [`ApcQueue`], opens sockets and files on it, and starts operations with a
//! [`Routine`] each. The routine runs on this very thread, and only while it is in an *alertable
//! wait* ([`ApcQueue::sleep`], [`ApcQueue::wait`]): so routines need no locks, may share state
//! through [`Rc`](std::rc::Rc), and never interrupt the code between two waits. It is how Windows
//! programs served sockets from one thread before completion ports (`WSARecv` with a
//! `lpCompletionRoutine`, `SleepEx`), and still a good way to write a client, a tool or a test.
//! A server for many sessions takes a [`CompletionPort`](crate::CompletionPort).
//!
//! ```
//! use std::io::Write;
//! use std::net::{TcpListener, TcpStream};
//! use proactor::Operation;
//! use proactor::overlapped::{ApcQueue, Routine, Wake};
//!
//! # fn main() -> std::io::Result<()> {
//! let queue = ApcQueue::new()?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut client = TcpStream::connect(listener.local_addr()?)?;
//! let stream = queue.open(listener.accept()?.0)?;
//!
//! let printer = Routine::new(|mut completed| {
//!     let operation = completed.take_operation().expect("a receive ends with its operation");
//!     println!("{} bytes: {:?}", completed.bytes(), operation.buffer());
//! });
//! stream.recv(Operation::new(), Vec::with_capacity(64), &printer)?;
//! client.write_all(b"hello")?;
//! // Nothing has run so far. Now it does.
//! assert_eq!(queue.sleep(None)?, Wake::Routines);
//! # Ok(()) }
//! ```
//!
//! # Threads
//! The queue, its sources and its routines belong to the thread that made the queue: they are not
//! [`Send`], so that "the issuing thread" is always this one. Windows lets any thread start an
//! operation on a socket, and runs the routine on that thread; here a socket is handed to another
//! thread *before* it is opened (an [`Accepted`](crate::Accepted) connection is [`Send`]), and what
//! another thread wants done it [queues](ApcHandle::queue) as a routine.
//!
//! ```compile_fail
//! let queue = proactor::overlapped::ApcQueue::new().unwrap();
//! let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
//! let socket = queue.open(socket).unwrap();
//! std::thread::spawn(move || drop(socket)); // A source stays with its thread.
//! ```
//!
//! # A routine and a port exclude each other
//! A source is opened on a queue or associated with a port, once in its life: the second attempt is
//! refused (rules 8, 130). A port's sources have no method that takes a routine.
//!
//! # Nested waits
//! A routine may wait alertably itself, and further routines run inside that wait (rule 133), up to
//! [`NESTED_WAITS`] deep. A routine is not entered again while it runs: what would enter it waits
//! until it returns.
//!
//! # Ends
//! Cancelling an operation and closing its source still run its routine (rule 131). Dropping the
//! queue, at the latest when its thread ends, cancels what is in flight; routines that have not run
//! are dropped without running, as the routines of a thread that exits are (rule 88).
//!
//! # Cost
//! A [`Routine`] is allocated once, and shared by reference by the operations that it is given to.
//! A round trip that uses its operation, its buffer and its routine again allocates nothing.

mod handle;
mod queue;
mod routine;
mod source;

pub use handle::{ApcHandle, Event};
pub use queue::{ApcQueue, NESTED_WAITS, Wake};
pub use routine::{Completed, Routine};
pub use source::{DatagramSocket, File, ListenSocket, Open, StreamSocket};
