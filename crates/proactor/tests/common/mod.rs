//! What the tests share: a port on each backend, connected sockets, waits that end.
//!
//! A test waits for a packet or a condition, never for a length of time; every wait is bounded by
//! [`HANG`], so that a lost packet is a failure and not a test run that never ends.

// Each test binary uses its part of this.
#![allow(dead_code)]

#[cfg(windows)]
pub mod windows;
pub mod worker;

use std::io::{ErrorKind as IoErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proactor::{
    BackendChoice, Builder, Completion, CompletionPort, DequeueError, ErrorKind, Operation,
    OperationId, OperationKind, Rejected, StreamSocket,
};
use socket2::SockRef;

/// Far more than anything here takes on a busy machine: who waits longer hangs.
pub const HANG: Duration = Duration::from_secs(10);
/// How long a port is watched for a packet that must not come. A packet that is late can only
/// let a wrong port pass, never fail a right one.
pub const QUIET: Duration = Duration::from_millis(30);
/// A test that takes longer is ended with its name, where it hangs in something without a bound.
const TEST_LIMIT: Duration = Duration::from_secs(150);

/// Declares tests that run on each backend of the system: as `io_uring::name` and `epoll::name` on
/// Linux; as `iocp::name` on Windows, and as `iocp_skip::name` with
/// `FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`.
#[macro_export]
macro_rules! on_each_backend {
    ($($(#[$attribute:meta])* fn $name:ident($ports:ident: &Ports) $body:block)+) => {
        $($(#[$attribute])* fn $name($ports: &$crate::common::Ports) $body)+

        #[cfg(target_os = "linux")]
        mod io_uring {
            $($(#[$attribute])* #[test] fn $name() {
                $crate::common::run($crate::common::IO_URING, stringify!($name), super::$name);
            })+
        }

        #[cfg(target_os = "linux")]
        mod epoll {
            $($(#[$attribute])* #[test] fn $name() {
                $crate::common::run($crate::common::EPOLL, stringify!($name), super::$name);
            })+
        }

        #[cfg(windows)]
        mod iocp {
            $($(#[$attribute])* #[test] fn $name() {
                $crate::common::run($crate::common::IOCP, stringify!($name), super::$name);
            })+
        }

        #[cfg(windows)]
        mod iocp_skip {
            $($(#[$attribute])* #[test] fn $name() {
                $crate::common::run($crate::common::IOCP_SKIP, stringify!($name), super::$name);
            })+
        }
    };
}

/// Opens ports on the backend that a test runs on.
#[derive(Clone, Copy)]
pub struct Ports {
    choice: BackendChoice,
    skips: bool,
}

pub const IO_URING: Ports = Ports { choice: BackendChoice::IoUring, skips: false };
pub const EPOLL: Ports = Ports { choice: BackendChoice::Epoll, skips: false };
pub const IOCP: Ports = Ports { choice: BackendChoice::Iocp, skips: false };
/// With `FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`.
pub const IOCP_SKIP: Ports = Ports { choice: BackendChoice::Iocp, skips: true };

impl Ports {
    /// A builder that is set to this backend.
    pub fn builder(&self) -> Builder {
        let builder = CompletionPort::builder().backend(self.choice);
        builder.skip_completion_port_on_success(self.skips)
    }

    /// A port with this concurrency limit and every other option at its default.
    pub fn open(&self, concurrency: usize) -> CompletionPort {
        self.builder().concurrency(concurrency).build().expect("the probed backend opens a port")
    }

    /// The same, to be shared by threads.
    pub fn shared(&self, concurrency: usize) -> Arc<CompletionPort> {
        Arc::new(self.open(concurrency))
    }

    pub fn name(&self) -> &'static str {
        backend_name(self.choice)
    }
}

fn backend_name(choice: BackendChoice) -> &'static str {
    match choice {
        BackendChoice::IoUring => "io_uring",
        BackendChoice::Iocp => "iocp",
        _ => "epoll",
    }
}

/// The backends that the tests run on: those that this machine has, less what `PROACTOR_BACKEND`
/// rules out.
pub fn backends() -> Vec<Ports> {
    let all = if cfg!(windows) { [IOCP, IOCP_SKIP] } else { [IO_URING, EPOLL] };
    all.into_iter().filter(|ports| is_wanted(ports.choice)).collect()
}

fn is_wanted(choice: BackendChoice) -> bool {
    let name = backend_name(choice);
    match std::env::var("PROACTOR_BACKEND") {
        Ok(wanted) if wanted != name && wanted != "auto" && !wanted.is_empty() => {
            println!("skipped on {name}: PROACTOR_BACKEND is {wanted}");
            return false;
        }
        _ => {}
    }
    match proactor::probe(choice) {
        Ok(_) => true,
        Err(error) if choice == BackendChoice::IoUring => {
            println!("skipped on {name}: {error}");
            false
        }
        Err(error) => panic!("{name} is always there, but the probe says: {error}"),
    }
}

/// Runs one test on one backend, or says why not.
pub fn run(ports: Ports, test_name: &'static str, test: fn(&Ports)) {
    if is_wanted(ports.choice) {
        let _watchdog = Watchdog::start(format!("{}::{test_name}", ports.name()));
        test(&ports);
    }
}

/// Ends a test under Wine, which does not keep the rule; on Windows the test goes on. Such tests
/// are listed in `docs/semantics.md`.
#[macro_export]
macro_rules! skip_under_wine {
    ($rule:literal, $reason:literal) => {
        #[cfg(windows)]
        if let Some(version) = $crate::common::windows::wine_version() {
            println!("skipped under Wine {version}: rule {}: {}", $rule, $reason);
            return;
        }
    };
}

/// Ends the process, with the test's name, where a test hangs in something that has no bound.
pub struct Watchdog {
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    pub fn start(test_name: String) -> Self {
        let (alive, gone) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if gone.recv_timeout(TEST_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test_name} hangs: no end after {TEST_LIMIT:?}");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

// Packets.

/// The next packet, whatever it is.
#[track_caller]
pub fn dequeue(port: &CompletionPort) -> Completion {
    match port.dequeue(Some(HANG)) {
        Ok(completion) => completion,
        Err(error) => panic!("a packet should have come: {error}"),
    }
}

/// The next packet, which has to be of this kind.
#[track_caller]
pub fn dequeue_within(port: &CompletionPort, kind: OperationKind) -> Completion {
    let completion = dequeue(port);
    assert_eq!(completion.kind(), kind, "the next packet: {completion:?}");
    completion
}

/// The next packet: a success of this kind. Gives its bytes and its operation.
#[track_caller]
pub fn dequeue_success(port: &CompletionPort, kind: OperationKind) -> (usize, Operation) {
    let completion = dequeue_within(port, kind);
    assert_eq!(completion.error(), None, "{completion:?}");
    let bytes = completion.bytes();
    (bytes, completion.into_operation().expect("a final packet carries its operation"))
}

/// The next packet: a failure of this kind for this reason. Gives its bytes and its operation.
#[track_caller]
pub fn dequeue_failure(
    port: &CompletionPort,
    kind: OperationKind,
    reason: ErrorKind,
) -> (usize, Operation) {
    let completion = dequeue_within(port, kind);
    assert_eq!(completion.error().map(|error| error.kind()), Some(reason), "{completion:?}");
    let bytes = completion.bytes();
    (bytes, completion.into_operation().expect("a final packet carries its operation"))
}

/// `count` packets, in the order in which they come.
#[track_caller]
pub fn dequeue_all(port: &CompletionPort, count: usize) -> Vec<Completion> {
    (0..count).map(|_| dequeue(port)).collect()
}

/// No packet is queued and none comes.
#[track_caller]
pub fn assert_quiet(port: &CompletionPort) {
    match port.dequeue(Some(QUIET)) {
        Err(DequeueError::TimedOut) => {}
        other => panic!("no packet should have come: {other:?}"),
    }
}

/// The call was refused for this reason; gives the operation that came back.
#[track_caller]
pub fn refused(result: Result<OperationId, Rejected>, reason: ErrorKind) -> Operation {
    match result {
        Ok(id) => panic!("the call should have been refused with {reason:?}, started {id:?}"),
        Err(rejected) => {
            assert_eq!(rejected.error().kind(), reason, "{rejected:?}");
            rejected.into_operation()
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

// Sockets.

/// A connected TCP pair on the IPv4 loopback: one end for the port, one for the test, whose reads
/// and writes are bounded.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    tcp_pair_on(Ipv4Addr::LOCALHOST.into()).expect("the IPv4 loopback is there")
}

/// A stream that is associated with `port` under key 1, and its peer.
pub fn associated(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let (stream, peer) = tcp_pair();
    (port.associate(stream, 1).unwrap(), peer)
}

/// The same, with kernel buffers of a few KiB: a send of [`TOO_MUCH`] has to wait for the peer.
pub fn associated_with_small_buffers(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let (stream, peer) = tcp_pair();
    shrink_buffers(&stream);
    shrink_buffers(&peer);
    (port.associate(stream, 1).unwrap(), peer)
}

/// Far more bytes than two sockets with small buffers hold.
pub const TOO_MUCH: usize = 1024 * 1024;

/// A connected TCP pair on the IPv6 loopback, where there is one.
pub fn tcp_pair_v6() -> Option<(TcpStream, TcpStream)> {
    match tcp_pair_on(Ipv6Addr::LOCALHOST.into()) {
        Ok(pair) => Some(pair),
        Err(error) => {
            println!("skipped: no IPv6 loopback: {error}");
            None
        }
    }
}

fn tcp_pair_on(address: IpAddr) -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((address, 0))?;
    let peer = TcpStream::connect(listener.local_addr()?)?;
    let (stream, from) = listener.accept()?;
    assert_eq!(from, peer.local_addr()?, "a stranger connected to the test");
    stream.set_nodelay(true)?;
    peer.set_nodelay(true)?;
    bound_waits(&peer);
    Ok((stream, peer))
}

/// A connected pair of Unix streams.
#[cfg(unix)]
pub fn unix_pair() -> (UnixStream, UnixStream) {
    let (stream, peer) = UnixStream::pair().expect("a Unix pair");
    peer.set_read_timeout(Some(HANG)).unwrap();
    peer.set_write_timeout(Some(HANG)).unwrap();
    (stream, peer)
}

/// Bounds the blocking reads and writes of a stream that the test itself uses.
pub fn bound_waits(stream: &TcpStream) {
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
}

/// A connected stream to `address`, with bounded waits.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the listener is there");
    stream.set_nodelay(true).unwrap();
    bound_waits(&stream);
    stream
}

/// Closes a stream so that its peer sees a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Makes a stream's kernel buffers small, so that a send of a few hundred KiB has to wait.
pub fn shrink_buffers(stream: &TcpStream) {
    SockRef::from(stream).set_send_buffer_size(16 * 1024).unwrap();
    SockRef::from(stream).set_recv_buffer_size(16 * 1024).unwrap();
}

/// Reads `count` bytes.
#[track_caller]
pub fn read_bytes(stream: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("the bytes come");
    bytes
}

/// Reads to the end of the stream; says how it ended.
pub fn read_to_end(stream: &mut impl Read) -> (Vec<u8>, Option<IoErrorKind>) {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (bytes, None),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == IoErrorKind::Interrupted => {}
            Err(error) => return (bytes, Some(error.kind())),
        }
    }
}

/// An address of the IPv4 loopback at which nobody listens.
pub fn dead_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

// Contents.

/// Bytes that differ from their neighbours, and from those of another seed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Compares long contents without printing them.
#[track_caller]
pub fn assert_same_bytes(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "length");
    if let Some(at) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("byte {at} of {} differs: {:#x}, expected {:#x}", got.len(), got[at], expected[at]);
    }
}

/// Small numbers without a pattern, for tests that vary their timing.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// Counts what was dropped: a context that tells.
#[derive(Clone, Default)]
pub struct DropCount(Arc<AtomicUsize>);

impl DropCount {
    /// One more thing whose drop is counted.
    pub fn token(&self) -> DropToken {
        DropToken(Arc::clone(&self.0))
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

pub struct DropToken(Arc<AtomicUsize>);

impl Drop for DropToken {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A file without a name that anybody could find, for reading and writing.
pub fn temporary_file() -> std::fs::File {
    #[cfg(unix)]
    return tempfile::tempfile().unwrap();
    #[cfg(windows)]
    return windows::temporary_file();
}

/// How many descriptors, on Windows handles, the process has open.
pub fn descriptor_count() -> usize {
    #[cfg(target_os = "linux")]
    return proc_self_count("fd");
    #[cfg(windows)]
    return windows::handle_count();
}

/// Raises the limit on descriptors as far as the system lets it, and says whether it is enough.
#[cfg(target_os = "linux")]
pub fn raise_descriptors(wanted: u64) -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one struct, which is ours.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max.min(wanted.max(limit.rlim_cur));
    // SAFETY: reads one struct, which is ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    limit.rlim_cur >= wanted
}

/// The same; there is no such limit to raise here.
#[cfg(windows)]
pub fn raise_descriptors(_wanted: u64) -> bool {
    false
}

/// How many threads the process has.
pub fn thread_count() -> usize {
    #[cfg(target_os = "linux")]
    return proc_self_count("task");
    #[cfg(windows)]
    return windows::thread_count();
}

/// How many entries a directory of `/proc/self` has.
#[cfg(target_os = "linux")]
fn proc_self_count(directory: &str) -> usize {
    // The listing has a descriptor of its own, which is the same for every count.
    std::fs::read_dir(format!("/proc/self/{directory}")).expect("/proc is mounted").count()
}
