//! A round trip in a steady state allocates nothing. In a test binary of its own, because the
//! allocator counts for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proactor::overlapped::{ApcQueue, Routine, Wake};
use proactor::{BackendChoice, CompletionPort, Operation, OperationKind, SendBuffer, StreamSocket};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: by the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: by the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HANG: Duration = Duration::from_secs(10);
const ROUNDS: usize = 2_000;

fn pair(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(HANG)).unwrap();
    (port.associate(listener.accept().unwrap().0, 1).unwrap(), client)
}

/// One message there and back: the client writes, the port's thread echoes, the client reads.
fn round_trip(client: &mut TcpStream, serve: impl FnOnce()) {
    client.write_all(&[7; 100]).unwrap();
    serve();
    client.read_exact(&mut [0; 100]).unwrap();
}

/// Allocations of `rounds` rounds, after as many to get into a steady state.
fn count(mut round: impl FnMut()) -> u64 {
    (0..ROUNDS).for_each(|_| round());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..ROUNDS).for_each(|_| round());
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn echo_continuously(port: &CompletionPort) -> u64 {
    let (stream, mut client) = pair(port);
    stream.recv_continuous(Operation::new()).unwrap();
    let mut send = Some(Operation::new());
    let allocations = count(|| {
        round_trip(&mut client, || {
            let chunk = port.dequeue(Some(HANG)).unwrap().take_chunk().unwrap();
            stream.send(send.take().unwrap(), chunk).unwrap();
            let completion = port.dequeue(Some(HANG)).unwrap();
            assert_eq!(completion.kind(), OperationKind::Send);
            send = completion.into_operation();
        });
    });
    drop(client);
    allocations
}

fn echo_from_callers_buffers(port: &CompletionPort) -> u64 {
    let (stream, mut client) = pair(port);
    let mut idle = Some((Operation::new(), Vec::with_capacity(4096)));
    count(|| {
        round_trip(&mut client, || {
            let (operation, buffer) = idle.take().unwrap();
            stream.recv(operation, buffer).unwrap();
            let mut operation = port.dequeue(Some(HANG)).unwrap().into_operation().unwrap();
            let buffer = operation.take_buffer().unwrap();
            stream.send(operation, buffer).unwrap();
            let mut operation = port.dequeue(Some(HANG)).unwrap().into_operation().unwrap();
            let Some(SendBuffer::Owned(buffer)) = operation.take_send_buffer() else {
                panic!("the buffer comes back as it went in");
            };
            idle = Some((operation, buffer));
        });
    })
}

/// The same with a completion routine, which starts the next operation itself.
fn echo_with_routine(queue: &ApcQueue) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(HANG)).unwrap();
    let stream = queue.open(listener.accept().unwrap().0).unwrap();
    let sent = Rc::new(Cell::new(0));
    let routine = {
        let (stream, sent) = (stream.clone(), Rc::clone(&sent));
        Routine::new(move |mut completed| {
            let routine = completed.routine();
            let mut operation = completed.take_operation().unwrap();
            if completed.kind() == OperationKind::Recv {
                let buffer = operation.take_buffer().unwrap();
                stream.send(operation, buffer, routine).unwrap();
            } else {
                let Some(SendBuffer::Owned(buffer)) = operation.take_send_buffer() else {
                    panic!("the buffer comes back as it went in");
                };
                sent.set(sent.get() + 1);
                stream.recv(operation, buffer, routine).unwrap();
            }
        })
    };
    stream.recv(Operation::new(), Vec::with_capacity(4096), &routine).unwrap();
    count(|| {
        round_trip(&mut client, || {
            let before = sent.get();
            while sent.get() == before {
                assert_eq!(queue.sleep(Some(HANG)).unwrap(), Wake::Routines);
            }
        });
    })
}

fn posts(port: &CompletionPort) -> u64 {
    let mut operation = Some(Operation::new());
    count(|| {
        port.post(1, 2, operation.take()).unwrap();
        operation = port.dequeue(Some(HANG)).unwrap().into_operation();
    })
}

#[test]
fn a_round_trip_allocates_nothing() {
    for choice in [BackendChoice::IoUring, BackendChoice::Epoll] {
        let port = match CompletionPort::builder().backend(choice).concurrency(1).build() {
            Ok(port) => port,
            Err(error) => {
                println!("skipped on {choice:?}: {error}");
                continue;
            }
        };
        assert_eq!(echo_continuously(&port), 0, "continuous receive, {choice:?}");
        // The first connection's end is still to come.
        while port.dequeue(Some(Duration::ZERO)).is_ok() {}
        assert_eq!(echo_from_callers_buffers(&port), 0, "receive and send, {choice:?}");
        assert_eq!(posts(&port), 0, "posts, {choice:?}");
        let queue = ApcQueue::with_builder(CompletionPort::builder().backend(choice)).unwrap();
        assert_eq!(echo_with_routine(&queue), 0, "completion routines, {choice:?}");
    }
}
