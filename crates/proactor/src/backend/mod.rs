//! The seam between the port and the kernel, and the choice of a backend.
//!
//! # What a backend supplies
//! A backend is a [`Backend`] (one per port) that makes [`BackendSource`]s (one per associated
//! socket or file). The seam is cut at *operations and packets*, not at readiness, so that each
//! kind of kernel fits it:
//!
//! | | `io_uring` | `epoll` | `iocp`, the native Windows port | simulated |
//! |---|---|---|---|---|
//! | queue, release order, concurrency limit | `linux` | `linux` | the kernel | a scheduler driven by a seed |
//! | stream receives | multishot, into the pool | readiness, then `recv` | `WSARecv` | simulated |
//! | stream sends | batched submissions | `sendmsg` at once | `WSASend` | simulated |
//! | accept, connect, datagrams | readiness | readiness | `AcceptEx`, `ConnectEx`, ... | simulated |
//! | files | a ring of their own | a bounded pool of threads | overlapped files | simulated |
//!
//! Whatever the backend does, it keeps these promises; the tests hold each backend to them:
//!
//! 1. `start` either takes the operation, and then exactly one final packet with it is queued
//!    (rules 44, 45), or gives it back whole in the error and queues nothing.
//! 2. An operation's state is complete before any system call that can finish it, because another
//!    thread may dequeue its packet before that call has returned.
//! 3. No memory of an operation is in use by the kernel once its packet can be dequeued.
//! 4. A cancelled operation that had succeeded carries what it got.
//! 5. `close` of a source ends everything that is pending on it, each with a packet
//!    ([`ConnectionAborted`](crate::ErrorKind::ConnectionAborted) for stream and datagram
//!    operations, rule 75; [`Cancelled`](crate::ErrorKind::Cancelled) for accepts and files, rule
//!    76). Packets that are queued already keep their results (rule 77).
//! 6. `close` of the port wakes every waiter, frees what is in flight, and leaves no descriptor
//!    and no thread behind.
//!
//! Backends are found by probing, never by a version number, and each can be forced at run time.

#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "linux")]
mod io_uring;
#[cfg(windows)]
pub(crate) mod iocp;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(feature = "sim")]
pub(crate) mod sim;
#[cfg(any(target_os = "linux", windows, feature = "sim"))]
mod timers;
#[cfg(any(target_os = "linux", windows))]
mod window;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::error::{DequeueError, Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::{Completion, Config, PortCounters, PortSnapshot};

/// A completion port of one kind of kernel. Every method may be called from any thread.
pub(crate) trait Backend: Send + Sync {
    /// Which backend this is, with which features.
    fn describe(&self) -> &BackendDescription;
    /// The concurrency limit in force, never 0.
    fn concurrency(&self) -> usize;
    /// What the port has done so far.
    fn counters(&self) -> PortCounters;
    /// How the port is doing now, as far as the backend knows: what it cannot tell is `None`.
    fn snapshot(&self) -> PortSnapshot {
        PortSnapshot::with_counters(self.concurrency(), self.counters())
    }
    /// What the port's clock says: the system's, except in a simulated world.
    fn now(&self) -> Instant {
        Instant::now()
    }
    /// A random number: the system's, except in a simulated world, whose seed it follows from.
    fn random(&self) -> u64 {
        // Each hasher of the standard library has keys of its own.
        RandomState::new().hash_one(0)
    }
    /// Starts a thread that serves this port, and says how to join it.
    fn spawn(&self, name: String, body: ThreadBody) -> io::Result<JoinThread> {
        let thread = std::thread::Builder::new().name(name).spawn(body)?;
        Ok(Box::new(move || thread.join()))
    }
    /// The calling thread pauses.
    fn pause(&self, time: Duration) {
        std::thread::park_timeout(time);
    }
    /// A condition to wait for in the world's time; `None`: the system's time is meant, and a
    /// `Condvar` does.
    fn condition(&self) -> Option<Box<dyn VirtualCondition>> {
        None
    }
    /// A socket that listens at `address`, for [`associate`](Self::associate).
    fn open_listener(&self, address: &SocketAddr, backlog: u32) -> io::Result<RawSource> {
        let domain = Domain::for_address(*address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        // On Unix a restarted server can bind while connections of the last one linger.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.bind(&(*address).into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(RawSource::Listener(socket))
    }
    /// A new, unconnected stream socket for [`associate`](Self::associate), of the family of
    /// `peer`.
    fn open_stream(&self, peer: &SocketAddr) -> io::Result<RawSource> {
        let domain = Domain::for_address(*peer);
        Ok(RawSource::Stream(Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?))
    }
    /// Takes a source in, or gives it back.
    fn associate(
        self: Arc<Self>,
        source: RawSource,
        key: usize,
    ) -> Result<Arc<dyn BackendSource>, (Error, RawSource)>;
    /// Fills `completions` from the front, waiting for the first; at least one on success.
    fn dequeue(
        &self,
        completions: &mut [Option<Completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, DequeueError>;
    /// Queues a packet.
    fn post(&self, packet: Completion) -> Result<(), Rejected>;
    /// Queues a packet with this operation at `deadline`.
    fn start_timer(
        &self,
        key: usize,
        deadline: Instant,
        operation: Operation,
    ) -> Result<(), Rejected>;
    /// Ends a timer before its time, with a packet; `false` where there is none.
    fn cancel_timer(&self, timer: OperationId) -> bool;
    /// The calling thread gives up its slot; `false` where it has none.
    fn enter_blocking(&self) -> bool;
    /// The calling thread takes its slot again.
    fn leave_blocking(&self);
    /// Closes the port. May be called more than once.
    fn close(&self);
}

/// An associated source. Every method may be called from any thread.
pub(crate) trait BackendSource: Send + Sync {
    /// The key of its packets.
    fn key(&self) -> usize;
    /// The socket, for its options; an error for a file.
    fn socket(&self) -> io::Result<SockRef<'_>>;
    /// The address that the socket is bound to.
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket()?.local_addr()?.as_socket().ok_or_else(no_internet_address)
    }
    /// The address of the connected peer.
    fn peer_address(&self) -> io::Result<SocketAddr> {
        self.socket()?.peer_addr()?.as_socket().ok_or_else(no_internet_address)
    }
    /// Turns Nagle's delay off or on.
    fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.socket()?.set_tcp_nodelay(nodelay)
    }
    /// From now on closing it resets the connection, whatever was sent.
    fn reset_on_close(&self) -> io::Result<()> {
        self.socket()?.set_linger(Some(Duration::ZERO))
    }
    /// Starts a prepared operation.
    fn start(self: Arc<Self>, operation: Operation) -> Result<(), Rejected>;
    /// Cancels one operation; `false` where it is not pending.
    fn cancel(&self, operation: OperationId) -> bool;
    /// Cancels everything that is pending, and says how much that was.
    fn cancel_all(&self) -> usize;
    /// Shuts a direction down.
    fn shutdown(&self, how: Shutdown) -> Result<(), Error>;
    /// The last handle is gone: close the source.
    fn close(&self);
}

/// What a thread does.
pub(crate) type ThreadBody = Box<dyn FnOnce() + Send>;
/// Waits for the end of a thread.
pub(crate) type JoinThread = Box<dyn FnOnce() -> std::thread::Result<()> + Send>;

/// What threads of a simulated world wait for that is no packet. A thread that holds no lock of the
/// waiters' and has looked at what it waits for misses no notice.
pub(crate) trait VirtualCondition: Send + Sync {
    /// Waits for a notice, or for this time.
    fn wait(&self, timeout: Option<Duration>);
    /// Wakes all that wait.
    fn notify_all(&self);
}

fn no_internet_address() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the socket has no internet address")
}

/// A source as the public layer hands it to a backend.
pub(crate) enum RawSource {
    /// A stream socket, connected or not.
    Stream(Socket),
    /// A stream socket that was connected, even if the peer has reset it since.
    Connected(Socket),
    Listener(Socket),
    Datagram(Socket),
    File(std::fs::File),
    /// A source of a simulated world.
    #[cfg(feature = "sim")]
    Simulated(sim::SimulatedSource),
}

/// Which backend to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendChoice {
    /// On Linux io_uring where it is to be had with every feature needed, else epoll; on Windows
    /// the native port.
    #[default]
    Automatic,
    /// io_uring, or an error. Linux only.
    IoUring,
    /// epoll. Linux only.
    Epoll,
    /// The native completion port of Windows. Windows only.
    Iocp,
}

impl BackendChoice {
    /// Reads a name as `PROACTOR_BACKEND` has it: `auto`, `io_uring`, `epoll` or `iocp`. Every name
    /// is known on every system; [`probe`] and [`Builder::build`](crate::Builder::build) say which
    /// are to be had.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for any other name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "auto" | "" => Ok(Self::Automatic),
            "io_uring" => Ok(Self::IoUring),
            "epoll" => Ok(Self::Epoll),
            "iocp" => Ok(Self::Iocp),
            _ => Err(Error::new(OperationKind::CreatePort, ErrorKind::InvalidInput)),
        }
    }
}

/// One feature that a backend uses where the machine offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capability {
    /// The feature's name, as the kernel's documentation has it.
    pub name: &'static str,
    /// Whether it is there and used.
    pub available: bool,
    /// Whether the backend cannot do without it.
    pub required: bool,
    /// What it is for; where it is missing, why, and what would change that.
    pub detail: String,
}

/// Which backend a port uses or would use, and why.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackendDescription {
    /// `io_uring`, `epoll` or `iocp`.
    pub name: &'static str,
    /// What was probed, whether it is used, and why not.
    pub capabilities: Vec<Capability>,
    /// Where a better backend was refused: the call, the error and the likely cause.
    pub degraded: Option<String>,
    /// What was probed of the backend that was refused.
    pub refused_capabilities: Vec<Capability>,
}

impl BackendDescription {
    /// `io_uring`, `epoll` or `iocp`.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl fmt::Display for BackendDescription {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)?;
        let used: Vec<&str> =
            self.capabilities.iter().filter(|c| c.available).map(|c| c.name).collect();
        if !used.is_empty() {
            write!(formatter, " ({})", used.join(", "))?;
        }
        for missing in self.capabilities.iter().filter(|c| !c.available) {
            write!(formatter, "; without {}: {}", missing.name, missing.detail)?;
        }
        match &self.degraded {
            Some(reason) => write!(formatter, "; {reason}"),
            None => Ok(()),
        }
    }
}

/// Looks at what this machine offers, and says what a port created with `choice` would use.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) where a forced backend is not to be had; the error
/// names the call that was refused, or the system that the backend belongs to.
pub fn probe(choice: BackendChoice) -> Result<BackendDescription, Error> {
    #[cfg(target_os = "linux")]
    match choice {
        BackendChoice::Iocp => Err(of_another_system(&IOCP_CAUSE, "iocp", "Windows")),
        _ => linux::probe(choice),
    }
    #[cfg(windows)]
    match choice {
        BackendChoice::IoUring => Err(of_another_system(&IO_URING_CAUSE, "io_uring", "Linux")),
        BackendChoice::Epoll => Err(of_another_system(&EPOLL_CAUSE, "epoll", "Linux")),
        _ => Ok(iocp::describe()),
    }
    #[cfg(not(any(target_os = "linux", windows)))]
    {
        let _ = choice;
        Err(Error::new(OperationKind::CreatePort, ErrorKind::Unsupported))
    }
}

#[cfg(target_os = "linux")]
static IOCP_CAUSE: OnceLock<String> = OnceLock::new();
#[cfg(windows)]
static IO_URING_CAUSE: OnceLock<String> = OnceLock::new();
#[cfg(windows)]
static EPOLL_CAUSE: OnceLock<String> = OnceLock::new();

/// The refusal of a backend that this system does not have.
#[cfg(any(target_os = "linux", windows))]
fn of_another_system(cause: &'static OnceLock<String>, backend: &str, system: &str) -> Error {
    let cause = cause.get_or_init(|| {
        let here = std::env::consts::OS;
        format!("the {backend} backend belongs to {system}, and this program runs on {here}")
    });
    Error::new(OperationKind::CreatePort, ErrorKind::Unsupported).with_cause(cause)
}

/// Opens a port as `config` says.
pub(crate) fn open(config: &Config) -> Result<Arc<dyn Backend>, Error> {
    #[cfg(feature = "sim")]
    if let Some(world) = &config.world {
        return Ok(sim::open(world, config));
    }
    let choice = match config.backend {
        Some(choice) => choice,
        None => match std::env::var("PROACTOR_BACKEND") {
            Ok(name) => BackendChoice::from_name(&name).map_err(|error| {
                static CAUSE: OnceLock<String> = OnceLock::new();
                error.with_cause(CAUSE.get_or_init(|| {
                    format!("PROACTOR_BACKEND={name}: it takes auto, io_uring, epoll or iocp")
                }))
            })?,
            Err(_) => BackendChoice::Automatic,
        },
    };
    #[cfg(target_os = "linux")]
    match choice {
        BackendChoice::Iocp => Err(of_another_system(&IOCP_CAUSE, "iocp", "Windows")),
        _ => linux::open(choice, config),
    }
    #[cfg(windows)]
    {
        probe(choice)?;
        iocp::open(config)
    }
    #[cfg(not(any(target_os = "linux", windows)))]
    {
        let _ = choice;
        Err(Error::new(OperationKind::CreatePort, ErrorKind::Unsupported))
    }
}
