//! A simulated kernel, for tests of servers: every schedule and every fault, from a seed (feature
//! `sim`).
//!
//! A [`World`] has listeners, connections, datagrams, files and a clock of its own. A port that is
//! opened in it ([`World::port`]) behaves as any other, and which operation completes next, how many
//! bytes it moves, when time passes and which worker runs follow from the world's seed. The same
//! seed gives the same run, to the byte; minutes of the world's time take milliseconds.
//!
//! ```
//! use std::time::Duration;
//! use proactor::sim::{Faults, World};
//! use proactor::{Operation, OperationKind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let world = World::new(7, Faults { short_read: 0.5, ..Faults::NONE });
//! let port = world.port().concurrency(1).build()?;
//! let listener = port.associate(world.listen("127.0.0.1:7000".parse()?)?, 1)?;
//! listener.accept(Operation::new())?;
//!
//! let mut client = world.connect("127.0.0.1:7000".parse()?);
//! let mut completion = port.dequeue(Some(Duration::from_secs(60)))?;
//! assert_eq!(completion.kind(), OperationKind::Accept);
//! let mut operation = completion.take_operation().unwrap();
//! let stream = port.associate(operation.take_accepted().unwrap(), 2)?;
//!
//! client.write(b"hello").unwrap();
//! stream.recv(operation, Vec::with_capacity(64))?;
//! let operation = port.dequeue(None)?.into_operation().unwrap();
//! assert!(b"hello".starts_with(operation.buffer()));
//! # drop((client, stream, listener, operation, port));
//! assert_eq!(world.finish().violations, [""; 0]);
//! # Ok(()) }
//! ```
//!
//! # Services
//! The server layer runs here as it is: a [`Runtime`](crate::service::Runtime) on a port of a world
//! has its threads, its clock and its waits there.
//!
//! ```
//! use std::time::Duration;
//! use proactor::service::framing::Lines;
//! use proactor::service::{HandlerResult, Runtime, ServerService, Session, SessionHandler};
//! use proactor::sim::{Faults, World};
//!
//! struct Echo;
//!
//! impl SessionHandler for Echo {
//!     fn received(&mut self, session: &Session, line: &[u8]) -> HandlerResult {
//!         session.send(line)?;
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! for seed in 0..100 {
//!     let world = World::new(seed, Faults { short_read: 0.5, delay: 0.1, ..Faults::NONE });
//!     let runtime = Runtime::builder().port(world.port()).threads(3).build()?;
//!     let server = ServerService::builder(|_session| Echo)
//!         .listen("127.0.0.1:7000")
//!         .framing(Lines::new())
//!         .start_on(&runtime)?;
//!     let mut client = world.connect("127.0.0.1:7000".parse()?);
//!     assert!(world.run_until(Duration::from_secs(60), || client.write(b"hello\n").is_ok()));
//!     let mut answer = Vec::new();
//!     assert!(world.run_until(Duration::from_secs(60), || {
//!         answer.extend(client.read(100).unwrap_or_default());
//!         answer == b"hello\n"
//!     }));
//!     drop(client);
//!     assert_eq!(server.stop(Duration::from_secs(10)).left, 0);
//!     drop((server, runtime));
//!     assert_eq!(world.finish().violations, [""; 0]);
//! }
//! # Ok(()) }
//! ```
//!
//! Drop services and runtimes before [`World::finish`]. Deadlines of the program's own are read on
//! the port's clock ([`CompletionPort::now`](crate::CompletionPort::now)).
//!
//! # Threads
//! The thread that made the world and those that it starts with [`World::spawn`] run one at a time.
//! A thread hands over where it waits: in a dequeue, at the end of a
//! [`blocking`](crate::CompletionPort::blocking) section, in [`World::sleep`] and
//! [`World::run_for`]. Between two of these a handler runs whole, so it may hold the program's own
//! locks there as it likes; it must not hold one across such a call that another handler takes. In
//! a world that [may interrupt](World::may_interrupt) calls, a thread also hands over in the calls
//! that start operations, post and cancel: a packet can then be handled before the call that
//! started it has returned.
//!
//! Clients can be threads too, but [actors](World::actor) are cheaper.
//!
//! # What is checked
//! In every run, whatever the program: each accepted operation gives one final packet, and none is
//! over before its time; bytes arrive as they were sent, in order, before the end of the stream;
//! packets are dequeued first in, first out; the thread that began to wait last is released first,
//! and never beyond the limit; nothing waits that could go on; what has a limit stays within it; at
//! the end nothing is left. [`World::finish`] tells what did not hold.

#[doc(hidden)]
pub mod scenario;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::backend::sim::{ActorBody, Kernel, SimulatedSource};
pub use crate::backend::sim::{Faults, Next, Peer, PeerError, Random};
use crate::port::Builder;

mod sources;
pub use sources::{SimDatagramSocket, SimFile, SimListener};

/// A simulated kernel and its network. Clones are the same world.
#[derive(Clone)]
pub struct World {
    kernel: Arc<Kernel>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// How a run went.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// What did not hold, the first ones.
    pub violations: Vec<String>,
    /// Tells runs apart: the same for the same seed and program.
    pub trace_hash: u64,
    /// The last lines of what happened, or all.
    pub trace: Vec<String>,
    /// Lines of the whole trace.
    pub trace_lines: u64,
    /// Operations that were accepted.
    pub operations: u64,
    /// Packets that were dequeued.
    pub packets: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// The world's time at the end.
    pub time: Duration,
}

impl World {
    /// A world that follows from `seed`, with these faults. The calling thread is its first
    /// thread.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self::with_options(seed, faults, false, false)
    }

    /// A world in which another thread may run before a call that starts an operation, posts or
    /// cancels has returned: for programs that hold no lock across such calls.
    pub fn may_interrupt(seed: u64, faults: Faults) -> Self {
        Self::with_options(seed, faults, true, false)
    }

    pub(crate) fn with_options(seed: u64, faults: Faults, interrupt: bool, full: bool) -> Self {
        Self { kernel: Kernel::new(seed, faults, interrupt, full), threads: Arc::default() }
    }

    pub(crate) fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// A builder of ports in this world. A concurrency of 0 means 2 there: a world has that many
    /// processors.
    pub fn port(&self) -> Builder {
        Builder::new().world(self)
    }

    /// A listener at `address`, with a backlog of 128; port 0 lets the world choose.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse).
    pub fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        self.listen_with_backlog(address, 128)
    }

    /// A listener whose backlog holds so many connections; see [`listen`](Self::listen).
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse).
    pub fn listen_with_backlog(
        &self,
        address: SocketAddr,
        backlog: usize,
    ) -> io::Result<SimListener> {
        SimListener::bind(&self.kernel, address, backlog)
    }

    /// A datagram socket at `address`; port 0 lets the world choose.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse).
    pub fn bind_datagram(&self, address: SocketAddr) -> io::Result<SimDatagramSocket> {
        SimDatagramSocket::bind(&self.kernel, address)
    }

    /// A file of `length` zeros.
    pub fn file(&self, length: usize) -> SimFile {
        SimFile::new(&self.kernel, length)
    }

    /// Connects to `address` as a client.
    pub fn connect(&self, address: SocketAddr) -> Peer {
        Peer::connect(&self.kernel, address)
    }

    /// Starts a thread of the world.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) {
        let (_, thread) = self.kernel.spawn(name, body);
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Waits, in real time and at most a minute, until so many threads that the program started
    /// itself have come to a port: so it does not matter which of them is the quicker one.
    ///
    /// # Panics
    /// Where they do not come.
    pub fn expect_threads(&self, count: usize) {
        self.kernel.expect_threads(count);
    }

    /// Adds something that acts now and then: a client, a clock, a fault of the test's own. It
    /// runs on whichever thread gives way, and must not wait. `body` gets the actor's hand, which
    /// it passes to the peers that should wake it ([`Hand::watch`]).
    pub fn actor(&self, mut body: impl FnMut(&Hand) -> Next + Send + 'static) {
        let shared = Arc::new(Mutex::new(Hand(usize::MAX)));
        let inner = Arc::clone(&shared);
        let act: ActorBody = Box::new(move || {
            let hand = Hand(inner.lock().unwrap_or_else(PoisonError::into_inner).0);
            body(&hand)
        });
        let mut guard = self.kernel.lock();
        let index = guard.new_actor(act);
        shared.lock().unwrap_or_else(PoisonError::into_inner).0 = index;
    }

    /// The world's time since it began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.kernel.lock().now)
    }

    /// Random numbers that follow from the seed, for the test's own choices.
    pub fn random(&self) -> Random {
        Random::new(self.kernel.lock().random.bits())
    }

    /// The calling thread sleeps in the world's time.
    pub fn sleep(&self, time: Duration) {
        self.kernel.sleep(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Lets the others run for so long, in the world's time.
    pub fn run_for(&self, time: Duration) {
        self.sleep(time);
    }

    /// Lets the others run until `condition` holds, or for `limit` at most; `false` where it never
    /// held. It is looked at now and then.
    pub fn run_until(&self, limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
        let end = self.now().saturating_add(limit);
        let mut step = Duration::from_micros(100);
        while !condition() {
            if self.now() >= end {
                return false;
            }
            self.check_progress();
            self.sleep(step);
            step = (step * 2).min(Duration::from_millis(50));
        }
        true
    }

    /// Reports a stream that waits though it could go on.
    fn check_progress(&self) {
        let mut guard = self.kernel.lock();
        if guard.monitor.violations.is_empty()
            && let Some(stall) = guard.find_stall()
        {
            guard.monitor.violation(stall);
        }
    }

    /// From now on nothing goes wrong.
    pub fn stop_faults(&self) {
        let mut guard = self.kernel.lock();
        guard.faults_on = false;
        guard.note(format_args!("no more faults"));
    }

    /// Notes something in the trace.
    pub fn note(&self, text: impl fmt::Display) {
        self.kernel.lock().note(format_args!("{text}"));
    }

    /// Reports that something does not hold that should.
    pub fn violation(&self, text: impl Into<String>) {
        self.kernel.lock().monitor.violation(text.into());
    }

    /// Whether everything has held so far.
    pub fn is_sound(&self) -> bool {
        self.kernel.lock().monitor.violations.is_empty()
    }

    /// Operations that are pending.
    pub fn pending_operations(&self) -> usize {
        self.kernel.lock().monitor.pending_count()
    }

    /// Actors that are not done.
    pub fn actors_left(&self) -> usize {
        self.kernel.lock().actors_left()
    }

    /// Ends the world: its ports are closed, its threads have to return, and nothing may be left.
    /// To be called by the thread that made it, when the program has dropped what it had.
    pub fn finish(self) -> Report {
        let mut guard = self.kernel.lock();
        let pending = guard.monitor.pending();
        if !pending.is_empty() {
            let (count, first) = (pending.len(), &pending[0]);
            let text = format!("{count} operations are pending at the end, such as {first}");
            guard.monitor.violation(text);
        }
        let queued = guard.monitor.queued_count();
        if queued > 0 {
            guard.monitor.violation(format!("{queued} packets are left in a queue at the end"));
        }
        for port in 0..guard.ports.len() {
            guard.close_port(port);
        }
        drop(guard);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(|e| e.into_inner()));
        let ended =
            self.run_until(Duration::from_secs(600), || self.kernel.lock().threads_left() <= 1);
        if ended {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        } else {
            self.violation("a thread did not end with its port");
        }
        self.report()
    }

    fn report(&self) -> Report {
        let mut guard = self.kernel.lock();
        guard.check_leaks();
        let totals = guard.monitor.totals;
        Report {
            violations: guard.monitor.violations.clone(),
            trace_hash: guard.trace.hash(),
            trace: guard.trace.kept(),
            trace_lines: guard.trace.lines,
            operations: totals.operations,
            packets: totals.packets,
            bytes: totals.bytes,
            time: Duration::from_nanos(guard.now),
        }
    }
}

/// Names an actor, for the peers that should wake it.
#[derive(Debug)]
pub struct Hand(usize);

impl Hand {
    /// Has `peer` wake this actor whenever it can go on.
    pub fn watch(&self, peer: &mut Peer) {
        peer.belongs_to(self.0);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("World").finish_non_exhaustive()
    }
}

/// The sources know which kind they are.
pub(crate) type Raw = SimulatedSource;
