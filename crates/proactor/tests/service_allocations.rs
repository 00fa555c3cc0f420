//! The server layer in a steady state allocates nothing, a broadcast copies its payload once, and an
//! idle session is small. In a test
//! binary of its own, and one test, because the allocator counts for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proactor::service::framing::{LengthPrefixed, RawBytes};
use proactor::service::{HandlerResult, Runtime, ServerService, Session, SessionHandler};
use proactor::{BackendChoice, Builder, CompletionPort, Operation, PoolBuffer, StreamSocket};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE_BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: by the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE_BYTES.fetch_add(size as i64 - layout.size() as i64, Ordering::Relaxed);
        // SAFETY: by the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HANG: Duration = Duration::from_secs(20);
const ROUNDS: usize = 2_000;
const IDLE_SESSIONS: usize = 400;
/// Less than the limit of a session's queue.
const BROADCAST_BYTES: usize = 900_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Echo {
    Copies,
    SendsOn,
}

impl SessionHandler for Echo {
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        Ok(session.send(frame)?)
    }
    fn received_buffer(&mut self, session: &Session, frame: PoolBuffer) -> HandlerResult {
        match self {
            Self::Copies => self.received(session, &frame),
            Self::SendsOn => Ok(session.send_buffer(frame)?),
        }
    }
}

fn builders() -> Vec<(&'static str, Builder)> {
    let backends = [("io_uring", BackendChoice::IoUring), ("epoll", BackendChoice::Epoll)];
    backends
        .into_iter()
        .filter(|(name, choice)| match proactor::probe(*choice) {
            Ok(_) => true,
            Err(error) => {
                println!("skipped on {name}: {error}");
                false
            }
        })
        .map(|(name, choice)| (name, CompletionPort::builder().backend(choice)))
        .collect()
}

fn connect(address: std::net::SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(HANG)).unwrap();
    client
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

/// Allocations of `ROUNDS` round trips of `length` bytes, after as many to get into a steady state.
fn allocations_of_echo(runtime: &Runtime, length: usize, echo: Echo) -> u64 {
    let server = ServerService::builder(move |_| echo)
        .listen("127.0.0.1:0")
        .framing(LengthPrefixed::u32())
        .start_on(runtime)
        .unwrap();
    let mut client = connect(server.local_address().unwrap());
    let mut message = (length as u32).to_be_bytes().to_vec();
    message.resize(length + 4, 7);
    let mut answer = vec![0; message.len()];
    let mut round_trips = || {
        for _ in 0..ROUNDS {
            client.write_all(&message).unwrap();
            client.read_exact(&mut answer).unwrap();
        }
    };
    round_trips();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    round_trips();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// Bytes of memory for each idle connection on the bare port.
fn bytes_at_port(builder: &Builder) -> i64 {
    let port = builder.clone().concurrency(1).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pair = || -> (StreamSocket, TcpStream) {
        let client = connect(address);
        let stream = port.associate(listener.accept().unwrap().0, 1).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        (stream, client)
    };
    let _ = port.dequeue(Some(Duration::ZERO));
    let first = pair();
    let _ = port.dequeue(Some(Duration::ZERO));
    let mut pairs = Vec::with_capacity(IDLE_SESSIONS);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    pairs.extend((0..IDLE_SESSIONS).map(|_| pair()));
    let _ = port.dequeue(Some(Duration::from_millis(1)));
    let bytes = LIVE_BYTES.load(Ordering::Relaxed) - before;
    drop(first);
    bytes / IDLE_SESSIONS as i64
}

/// Bytes of memory for each idle session that has said something.
fn bytes_at_service(runtime: &Runtime) -> i64 {
    let server = ServerService::builder(|_| Echo::Copies)
        .listen("127.0.0.1:0")
        .framing(RawBytes::new())
        .start_on(runtime)
        .unwrap();
    let address = server.local_address().unwrap();
    let talk = || {
        let mut client = connect(address);
        client.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        client
    };
    let first = talk();
    let mut clients = Vec::with_capacity(IDLE_SESSIONS);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    clients.extend((0..IDLE_SESSIONS).map(|_| talk()));
    // The packets of the last sends.
    wait_until(|| server.handle().snapshot().queued_bytes == 0);
    let bytes = LIVE_BYTES.load(Ordering::Relaxed) - before;
    drop(first);
    bytes / IDLE_SESSIONS as i64
}

/// Bytes of memory that a broadcast takes while it waits for readers that do not read.
fn bytes_of_broadcast(runtime: &Runtime, payload: &[u8], sessions: usize) -> i64 {
    let server = ServerService::builder(|_| Echo::Copies)
        .listen("127.0.0.1:0")
        .framing(LengthPrefixed::u32().with_maximum_frame_bytes(payload.len() + 4))
        .start_on(runtime)
        .unwrap();
    let address = server.local_address().unwrap();
    let clients: Vec<_> = (0..sessions).map(|_| connect(address)).collect();
    wait_until(|| server.handle().session_count() == sessions);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    assert_eq!(server.handle().broadcast(payload).unwrap(), sessions);
    let bytes = LIVE_BYTES.load(Ordering::Relaxed) - before;
    drop(clients);
    bytes
}

#[test]
fn a_steady_state_allocates_nothing_and_an_idle_session_is_small() {
    for (name, builder) in builders() {
        let runtime =
            Runtime::builder().port(builder.clone()).concurrency(1).threads(1).build().unwrap();
        for length in [0, 64, 4096, 60_000] {
            for echo in [Echo::Copies, Echo::SendsOn] {
                let allocations = allocations_of_echo(&runtime, length, echo);
                assert_eq!(allocations, 0, "{length} bytes, {echo:?}, {name}");
            }
        }
        let payload = vec![7; BROADCAST_BYTES];
        let broadcast = bytes_of_broadcast(&runtime, &payload, 40);
        println!("{name}: {broadcast} bytes for a broadcast of {BROADCAST_BYTES} to 40 sessions");
        assert!(broadcast < 2 * BROADCAST_BYTES as i64, "copied: {broadcast} bytes, {name}");
        let at_port = bytes_at_port(&builder);
        let at_service = bytes_at_service(&runtime);
        println!("{name}: {at_port} bytes at the port, {at_service} as a session");
        assert!(at_service - at_port <= 1024, "{at_service} against {at_port}, {name}");
    }
}
