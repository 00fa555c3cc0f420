//! A program that uses every kind of operation, goes on after a failure, and keeps the books.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use proactor::{
    Completion, CompletionPort, DequeueError, Error, ErrorKind, Operation, OperationId, Rejected,
    StreamSocket,
};

use socket2::SockRef;

use crate::common::*;
use crate::inject::Faults;

/// A part of the program: does one thing from its beginning, and stops at the first failure.
type Stage = (&'static str, fn(&mut Program) -> Result<(), Error>);

const STAGES: [Stage; 9] = [
    ("accept", accept),
    ("exchange", exchange),
    ("vectored", vectored),
    ("continuous", continuous),
    ("large", large),
    ("connect", connect_out),
    ("datagrams", datagrams),
    ("files", files),
    ("threads", threads),
];

pub struct Program<'a> {
    port: CompletionPort,
    faults: &'a Faults,
    contexts: DropCount,
    started: usize,
    /// What has no final packet yet.
    open: HashMap<OperationId, &'static str>,
    /// Final packets that nobody has asked for yet.
    ended: HashMap<OperationId, Completion>,
    /// What the continuous receive gave.
    chunks: Vec<u8>,
    posts: usize,
    stage: &'static str,
    key: usize,
}

/// Runs every stage, each again where a fault struck it, `tries` times at most; then everything has
/// to be over and given back. What fails has to fail with the error that was injected.
pub fn run(ports: &Ports, faults: &Faults, tries: usize) {
    let mut port = None;
    for _ in 0..tries {
        match ports.builder().concurrency(2).build() {
            Ok(opened) => {
                port = Some(opened);
                break;
            }
            Err(error) => blame(faults, "open", error),
        }
    }
    let contexts = DropCount::default();
    let mut program = Program {
        port: port.expect("the port opens once the fault is over"),
        faults,
        contexts: contexts.clone(),
        started: 0,
        open: HashMap::new(),
        ended: HashMap::new(),
        chunks: Vec::new(),
        posts: 0,
        stage: "open",
        key: 0,
    };
    for (name, stage) in STAGES {
        program.stage = name;
        let mut left = tries;
        while let Err(error) = stage(&mut program) {
            blame(faults, name, error);
            left -= 1;
            assert!(left > 0, "{name}: goes on failing after the fault: {error:?}");
            program.drain();
        }
        program.drain();
    }
    faults.pause(|| program.expect_quiet());
    let started = program.started;
    program.port.close();
    drop(program);
    assert_eq!(contexts.get(), started, "contexts of operations that were not dropped");
}

/// The portable kind that an injected error has to have (`docs/semantics.md`, section A14).
fn kind_of(errno: i32) -> &'static [ErrorKind] {
    match errno {
        libc::EMFILE | libc::ENFILE => &[ErrorKind::TooManyOpenFiles],
        libc::ENOMEM | libc::ENOBUFS => &[ErrorKind::InsufficientResources],
        libc::ECONNRESET | libc::EPIPE => &[ErrorKind::ConnectionReset],
        libc::ENETUNREACH => &[ErrorKind::NetworkUnreachable],
        libc::EADDRNOTAVAIL => &[ErrorKind::AddressNotAvailable],
        libc::EPERM => &[ErrorKind::PermissionDenied],
        libc::ENOSPC | libc::EIO | libc::EAGAIN => {
            &[ErrorKind::Other, ErrorKind::InsufficientResources]
        }
        _ => &[],
    }
}

#[track_caller]
fn blame(faults: &Faults, stage: &str, error: Error) {
    assert!(faults.injected() > 0, "{stage}: failed without a fault: {error:?}");
    let errors = faults.errors();
    let allowed = errors.iter().any(|errno| kind_of(*errno).contains(&error.kind()));
    assert!(allowed, "{stage}: one of the errors {errors:?} was told as {error:?}");
}

impl Program<'_> {
    fn operation(&mut self) -> Operation {
        self.started += 1;
        Operation::with_context(self.contexts.token())
    }

    fn key(&mut self) -> usize {
        self.key += 1;
        self.key
    }

    /// Books a call that starts an operation.
    fn book(&mut self, result: Result<OperationId, Rejected>) -> Result<OperationId, Error> {
        let id = result?;
        assert!(self.open.insert(id, self.stage).is_none(), "two operations with one id");
        Ok(id)
    }

    /// The next packet. A dequeue that the system refuses something is tried again.
    fn next(&mut self) -> Completion {
        for _ in 0..100 {
            match self.port.dequeue(Some(HANG)) {
                Ok(completion) => return completion,
                Err(DequeueError::Failed(error)) => blame(self.faults, self.stage, error),
                Err(error) => panic!("{}: {error}; without a packet: {:?}", self.stage, self.open),
            }
        }
        panic!("{}: every dequeue fails", self.stage);
    }

    /// Takes one packet, and keeps it where it is an operation's last one.
    fn take(&mut self) {
        let mut completion = self.next();
        let Some(id) = completion.operation_id() else {
            self.posts = self.posts.checked_sub(1).expect("a post came twice");
            return;
        };
        let stage = self.stage;
        assert!(self.open.contains_key(&id), "{stage}: nobody waits for {completion:?}");
        if completion.more() {
            let chunk = completion.take_chunk().expect("a packet with more to come has bytes");
            self.chunks.extend_from_slice(&chunk);
        } else {
            self.open.remove(&id);
            self.ended.insert(id, completion);
        }
    }

    /// Waits for the last packet of an operation; its error, where it has one, ends the stage.
    fn finish(&mut self, id: OperationId) -> Result<(usize, Operation), Error> {
        while !self.ended.contains_key(&id) {
            self.take();
        }
        let completion = self.ended.remove(&id).expect("it was just there");
        let bytes = completion.result()?;
        Ok((bytes, completion.into_operation().expect("the last packet has the operation")))
    }

    /// Waits until everything that was started is over.
    fn drain(&mut self) {
        while !self.open.is_empty() || self.posts > 0 {
            self.take();
        }
        self.ended.clear();
        self.chunks.clear();
    }

    fn expect_quiet(&self) {
        match self.port.dequeue(Some(Duration::ZERO)) {
            Err(DequeueError::TimedOut) => {}
            other => panic!("a packet too many: {other:?}"),
        }
    }

    /// A connection: one end associated, the other one the test's own.
    fn pair(&mut self) -> Result<(StreamSocket, TcpStream), Error> {
        let (stream, peer) = self.faults.pause(tcp_pair);
        let key = self.key();
        Ok((self.port.associate(stream, key)?, peer))
    }

    /// The peer's message comes in, and goes back.
    fn echo(&mut self, stream: &StreamSocket, peer: &mut TcpStream) -> Result<(), Error> {
        let message = pattern(self.key as u64, 100);
        let operation = self.operation();
        let recv = self.book(stream.recv(operation, Vec::with_capacity(200)))?;
        peer.write_all(&message).unwrap();
        let (count, mut operation) = self.finish(recv)?;
        let bytes = operation.take_buffer().unwrap();
        assert_eq!(count, bytes.len());
        assert_same_bytes(&bytes, &message);
        let send = self.book(stream.send(operation, bytes))?;
        let (count, _) = self.finish(send)?;
        assert_eq!(count, message.len());
        assert_same_bytes(&read_bytes(peer, message.len()), &message);
        Ok(())
    }
}

fn accept(program: &mut Program) -> Result<(), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let key = program.key();
    let listener = program.port.associate(listener, key)?;
    for _ in 0..2 {
        let operation = program.operation();
        let accept = program.book(listener.accept(operation))?;
        let mut peer = program.faults.pause(|| connect(address));
        let (_, mut operation) = program.finish(accept)?;
        let key = program.key();
        let stream = program.port.associate(operation.take_accepted().unwrap(), key)?;
        program.echo(&stream, &mut peer)?;
    }
    // One that is pending as its listener closes.
    let operation = program.operation();
    program.book(listener.accept(operation))?;
    Ok(())
}

fn exchange(program: &mut Program) -> Result<(), Error> {
    let (stream, mut peer) = program.pair()?;
    for _ in 0..3 {
        program.echo(&stream, &mut peer)?;
    }
    let operation = program.operation();
    let cancelled = program.book(stream.recv(operation, Vec::with_capacity(10)))?;
    assert!(stream.cancel(cancelled));
    let error = program.finish(cancelled).expect_err("it was cancelled");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    program.echo(&stream, &mut peer)
}

fn vectored(program: &mut Program) -> Result<(), Error> {
    let (stream, mut peer) = program.pair()?;
    let message = pattern(7, 3000);
    let buffers = vec![Vec::with_capacity(1000), Vec::with_capacity(0), Vec::with_capacity(4000)];
    let operation = program.operation();
    let recv = program.book(stream.recv_vectored(operation, buffers))?;
    peer.write_all(&message).unwrap();
    let (_, mut operation) = program.finish(recv)?;
    let mut got = operation.take_buffers().unwrap().concat();
    while got.len() < message.len() {
        let rest = program.book(stream.recv(operation, Vec::with_capacity(4000)))?;
        (_, operation) = program.finish(rest)?;
        got.extend(operation.take_buffer().unwrap());
    }
    assert_same_bytes(&got, &message);
    let pieces = message.chunks(700).map(|piece| piece.to_vec().into()).collect();
    let send = program.book(stream.send_vectored(operation, pieces))?;
    assert_eq!(program.finish(send)?.0, message.len());
    assert_same_bytes(&read_bytes(&mut peer, message.len()), &message);
    Ok(())
}

fn continuous(program: &mut Program) -> Result<(), Error> {
    let (stream, mut peer) = program.pair()?;
    let operation = program.operation();
    let recv = program.book(stream.recv_continuous(operation))?;
    let message = pattern(9, 30_000);
    for piece in message.chunks(10_000) {
        peer.write_all(piece).unwrap();
        let before = program.chunks.len();
        while program.chunks.len() < before + piece.len() && program.open.contains_key(&recv) {
            program.take();
        }
    }
    peer.shutdown(Shutdown::Write).unwrap();
    program.finish(recv)?;
    assert_same_bytes(&program.chunks, &message);
    Ok(())
}

/// More than fits: the send has to wait for room again and again.
fn large(program: &mut Program) -> Result<(), Error> {
    // Not TCP, whose timers would make it long.
    let (stream, mut peer) = unix_pair();
    SockRef::from(&stream).set_send_buffer_size(16 * 1024).unwrap();
    let key = program.key();
    let stream = program.port.associate(stream, key)?;
    let message = pattern(11, 400_000);
    thread::scope(|scope| {
        let reader = program.faults.pause(|| {
            scope.spawn(move || {
                let mut got = Vec::new();
                // Where the send failed its stream ends early, or is reset.
                let _ = peer.read_to_end(&mut got);
                got
            })
        });
        let operation = program.operation();
        let halves = message.split_at(150_000);
        let first = program.book(stream.send(operation, halves.0.to_vec()));
        let operation = program.operation();
        let second = first.and_then(|first| {
            Ok((first, program.book(stream.send(operation, halves.1.to_vec()))?))
        });
        let sent = second.and_then(|(first, second)| {
            program.finish(first)?;
            program.finish(second)
        });
        let failed = sent.as_ref().err().copied();
        drop((stream, sent));
        // What the kernel holds of the socket ends inside a dequeue.
        program.drain();
        program.faults.pause(|| {
            while !reader.is_finished() {
                let _ = program.port.dequeue(Some(Duration::from_millis(1)));
            }
        });
        let got = reader.join().unwrap();
        assert_same_bytes(&got, &message[..got.len()]);
        match failed {
            Some(error) => Err(error),
            None => {
                assert_eq!(got.len(), message.len());
                Ok(())
            }
        }
    })
}

fn connect_out(program: &mut Program) -> Result<(), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let key = program.key();
    let stream = StreamSocket::for_peer(&program.port, &address, key).map_err(system_error)?;
    let operation = program.operation();
    let connect = program.book(stream.connect(operation, address))?;
    program.finish(connect)?;
    let (mut peer, _) = program.faults.pause(|| listener.accept()).unwrap();
    bound_waits(&peer);
    program.echo(&stream, &mut peer)
}

fn datagrams(program: &mut Program) -> Result<(), Error> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(HANG)).unwrap();
    let address = socket.local_addr().unwrap();
    let key = program.key();
    let socket = program.port.associate(socket, key)?;
    for early in [true, false] {
        if early {
            peer.send_to(b"question", address).unwrap();
        }
        let operation = program.operation();
        let recv = program.book(socket.recv_from(operation, Vec::with_capacity(100)))?;
        if !early {
            peer.send_to(b"question", address).unwrap();
        }
        let (_, operation) = program.finish(recv)?;
        assert_eq!(operation.buffer(), b"question");
        let to = operation.peer_address().unwrap();
        let send = program.book(socket.send_to(operation, b"answer".to_vec(), to))?;
        program.finish(send)?;
        let mut answer = [0; 20];
        assert_eq!(peer.recv(&mut answer).unwrap(), 6);
        assert_eq!(&answer[..6], b"answer");
    }
    Ok(())
}

fn files(program: &mut Program) -> Result<(), Error> {
    let file = program.faults.pause(temporary_file);
    let key = program.key();
    let file = program.port.associate(file, key)?;
    let bytes = pattern(13, 10_000);
    let operation = program.operation();
    let write = program.book(file.write_at(operation, bytes.clone(), 100))?;
    let (count, operation) = program.finish(write)?;
    assert_eq!(count, bytes.len());
    let read = program.book(file.read_at(operation, Vec::with_capacity(20_000), 100))?;
    let (_, operation) = program.finish(read)?;
    assert_same_bytes(operation.buffer(), &bytes);
    Ok(())
}

/// Timers, posts, and a second thread that dequeues and goes again.
fn threads(program: &mut Program) -> Result<(), Error> {
    let operation = program.operation();
    let timer = program.port.start_timer(1, Duration::from_micros(300), operation);
    let timer = program.book(timer)?;
    program.finish(timer)?;
    let (stream, mut peer) = program.pair()?;
    let operation = program.operation();
    let recv = program.book(stream.recv(operation, Vec::with_capacity(10)))?;
    let port = &program.port;
    let faults = program.faults;
    let second = thread::scope(|scope| {
        let spawned = faults.pause(|| {
            scope.spawn(|| {
                // Its first dequeue makes it a worker, and may be refused.
                let outcome = port.dequeue(Some(Duration::ZERO));
                (outcome, port.post(2, 3, None).is_ok())
            })
        });
        spawned.join().unwrap()
    });
    program.posts += usize::from(second.1);
    match second.0 {
        Ok(packet) => panic!("nothing was there: {packet:?}"),
        Err(DequeueError::Failed(error)) => blame(faults, "threads", error),
        Err(error) => assert_eq!(error, DequeueError::TimedOut),
    }
    peer.write_all(b"hello").unwrap();
    let (_, operation) = program.finish(recv)?;
    assert_eq!(operation.buffer(), b"hello");
    Ok(())
}

/// What the library reports as an `io::Error`, as its own error again.
fn system_error(error: std::io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => *error,
        None => panic!("a socket of the test's own: {error}"),
    }
}
