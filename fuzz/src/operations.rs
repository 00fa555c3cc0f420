//! Random sequences of operations on a real port: what bytes mean as a program, and the books that
//! tell whether the port kept its promises.
//!
//! Each accepted operation gives exactly one last packet, under its key, and none after it; what
//! receives say they got, put together in the order in which they were started, is the beginning of
//! what the peer wrote, and what the peer got is what sends say went out; a cancel finds nothing that
//! has ended; at the end nothing is pending, and every context was dropped.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proactor::{
    AssociatedFile, BackendChoice, Completion, CompletionPort, DatagramSocket, DequeueError,
    ErrorKind, ListenSocket, Operation, OperationId, OperationKind, Rejected, StreamSocket,
};

/// Whoever waits longer for a packet waits for one that was lost.
const HANG: Duration = Duration::from_secs(10);
const STREAMS: usize = 4;
/// Steps of one program at most.
const STEPS: usize = 200;
const LENGTHS: [usize; 8] = [0, 1, 7, 100, 1000, 5000, 70_000, 300_000];
const LISTENER: usize = 100;
const DATAGRAMS: usize = 101;
const FILE: usize = 102;
const OTHERS: usize = 103;

/// The fuzzer's bytes, one after the other; zeros behind their end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    fn length(&mut self) -> usize {
        LENGTHS[self.below(LENGTHS.len())]
    }
}

/// Counts contexts that are alive.
struct Token(Arc<AtomicUsize>);

impl Token {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(alive))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What one packet of a receive gave, and its sequence number.
type Piece = (u64, Vec<u8>);

/// A connection, its other end, and what went either way.
#[derive(Default)]
struct Stream {
    near: Option<StreamSocket>,
    far: Option<UnixStream>,
    started: Vec<OperationId>,
    /// Receives in the order in which they were started, with what each gave, by sequence number.
    receives: Vec<(OperationId, Vec<Piece>)>,
    /// Sends in that order, and what went out of each once it is known.
    sends: Vec<(OperationId, Vec<u8>)>,
    written: Vec<u8>,
    read: Vec<u8>,
}

struct Program {
    port: CompletionPort,
    alive: Arc<AtomicUsize>,
    streams: Vec<Stream>,
    listener: Option<(ListenSocket, std::net::SocketAddr)>,
    datagrams: Option<(DatagramSocket, std::net::SocketAddr)>,
    file: Option<AssociatedFile>,
    /// Operations of everything but streams.
    started: Vec<OperationId>,
    timers: Vec<OperationId>,
    /// What has no last packet yet, and its key.
    open: HashMap<OperationId, usize>,
    ended: HashSet<OperationId>,
    /// Chunks that are still to come of continuous receives whose last packet came first: packets
    /// that several threads have collected pass each other (rule 35).
    late: HashMap<OperationId, u64>,
    posts: usize,
}

/// Runs what `data` says on a port of `backend`.
///
/// # Panics
/// Where the port did not keep its promises.
pub fn run(backend: BackendChoice, data: &[u8]) {
    let mut input = Input(data);
    let setting = input.byte();
    let builder = CompletionPort::builder()
        .backend(backend)
        .concurrency(1 + usize::from(setting & 3))
        .receive_buffer_bytes([64, 500, 4096, 64 * 1024][usize::from(setting >> 2 & 3)])
        .receive_window_bytes([1, 2000, 64 * 1024, 256 * 1024][usize::from(setting >> 4 & 3)])
        .maximum_receive_buffers(64);
    let alive = Arc::new(AtomicUsize::new(0));
    let mut program = Program {
        port: builder.build().expect("the caller has probed the backend"),
        alive: Arc::clone(&alive),
        streams: (0..STREAMS).map(|_| Stream::default()).collect(),
        listener: None,
        datagrams: None,
        file: None,
        started: Vec::new(),
        timers: Vec::new(),
        open: HashMap::new(),
        ended: HashSet::new(),
        late: HashMap::new(),
        posts: 0,
    };
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        program.step(&mut input);
    }
    if input.byte() & 1 == 1 {
        // Everything is dropped with the port.
        program.port.close();
        let Program { streams, listener, datagrams, file, port, .. } = program;
        drop((streams, listener, datagrams, file, port));
    } else {
        program.end();
    }
    assert_eq!(alive.load(Ordering::SeqCst), 0, "contexts that were never dropped");
}

impl Program {
    /// One step, on this thread or on one that comes and goes.
    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        if what & 0xc0 == 0xc0 {
            thread::scope(|scope| {
                scope.spawn(|| self.act(what & 0x3f, input)).join().unwrap();
            });
        } else {
            self.act(what & 0x3f, input);
        }
    }

    fn act(&mut self, what: u8, input: &mut Input<'_>) {
        let at = input.below(STREAMS);
        match what % 32 {
            0 => self.pair(at),
            1 | 2 => {
                let room = input.length();
                self.start(at, Way::In, |near, operation| {
                    near.recv(operation, Vec::with_capacity(room))
                });
            }
            3 => {
                let rooms = [input.length(), input.length(), input.length()];
                let buffers = rooms.map(Vec::with_capacity).to_vec();
                self.start(at, Way::In, |near, operation| near.recv_vectored(operation, buffers));
            }
            4 | 5 => self.start(at, Way::In, |near, operation| near.recv_continuous(operation)),
            6 | 7 => {
                let bytes = noise(at, input.length());
                self.start(at, Way::Out, |near, operation| near.send(operation, bytes));
            }
            8 => {
                let pieces = (0..3).map(|_| noise(at, input.length()).into()).collect();
                self.start(at, Way::Out, |near, operation| near.send_vectored(operation, pieces));
            }
            9 => self.start(at, Way::Out, |near, operation| near.disconnect(operation)),
            10 => {
                let how =
                    [std::net::Shutdown::Read, std::net::Shutdown::Write, std::net::Shutdown::Both]
                        [input.below(3)];
                if let Some(near) = &self.streams[at].near {
                    let _ = near.shutdown(how);
                }
            }
            11 | 12 => self.cancel(at, input.below(8)),
            13 => {
                if let Some(near) = &self.streams[at].near {
                    assert!(near.cancel_all() <= self.open.len());
                }
            }
            14 => drop(self.streams[at].near.take()),
            15 => self.drop_while_dequeuing(at),
            16 | 17 => self.far_writes(at, input.length()),
            18 => self.far_reads(at),
            19 => self.far_closes(at),
            20 => self.listen_or_accept(),
            21 => self.connect(),
            22 => self.datagram(input),
            23 => self.file(input),
            24 => {
                let delay = Duration::from_micros(input.byte().into());
                let operation = self.operation();
                let timer = self.port.start_timer(OTHERS, delay, operation);
                let id = self.book(OTHERS, timer);
                self.timers.extend(id);
            }
            25 => {
                if let Some(&timer) = self.timers.get(input.below(8)) {
                    let found = self.port.cancel_timer(timer);
                    assert!(!(found && self.ended.contains(&timer)), "cancelled after its end");
                }
            }
            26 => {
                self.port.post(OTHERS, 1, None).expect("the port is open");
                self.posts += 1;
            }
            27 => self.dequeue_many(1 + input.below(16)),
            28 => self.port.blocking(thread::yield_now),
            29 => self.close_others(at),
            _ => self.dequeue(1 + input.below(8)),
        }
    }

    fn operation(&self) -> Operation {
        Operation::with_context(Token::new(&self.alive))
    }

    /// Books a call that starts an operation.
    fn book(&mut self, key: usize, result: Result<OperationId, Rejected>) -> Option<OperationId> {
        match result {
            Ok(id) => {
                assert_eq!(self.open.insert(id, key), None, "two operations with one id");
                Some(id)
            }
            Err(rejected) => {
                let kind = rejected.error().kind();
                let allowed = [
                    ErrorKind::InvalidInput,
                    ErrorKind::ConnectionReset,
                    ErrorKind::ShutDown,
                    ErrorKind::NotConnected,
                    ErrorKind::AlreadyConnected,
                ];
                assert!(allowed.contains(&kind), "{rejected:?}");
                None
            }
        }
    }

    fn start(
        &mut self,
        at: usize,
        way: Way,
        start: impl FnOnce(&StreamSocket, Operation) -> Result<OperationId, Rejected>,
    ) {
        let operation = self.operation();
        let Some(near) = &self.streams[at].near else { return };
        let result = start(near, operation);
        let Some(id) = self.book(at, result) else { return };
        let stream = &mut self.streams[at];
        stream.started.push(id);
        match way {
            Way::In => stream.receives.push((id, Vec::new())),
            Way::Out => stream.sends.push((id, Vec::new())),
        }
    }

    /// A new connection in the place of an old one, which has to be over.
    fn pair(&mut self, at: usize) {
        if self.streams[at].near.is_some() {
            return;
        }
        while self.open.values().any(|&key| key == at) || !self.late.is_empty() {
            self.take_one();
        }
        self.streams[at].check();
        let (near, far) = UnixStream::pair().expect("a Unix pair");
        far.set_nonblocking(true).unwrap();
        let near = self.port.associate(near, at).expect("a new socket is associated");
        self.streams[at] = Stream { near: Some(near), far: Some(far), ..Stream::default() };
    }

    fn cancel(&mut self, at: usize, which: usize) {
        let stream = &self.streams[at];
        if let (Some(near), Some(id)) = (&stream.near, stream.started.iter().rev().nth(which)) {
            let found = near.cancel(*id);
            assert!(!(found && self.ended.contains(id)), "cancelled after its end");
        }
    }

    /// The last handle goes on a thread that is no worker, while this one collects.
    fn drop_while_dequeuing(&mut self, at: usize) {
        let Some(near) = self.streams[at].near.take() else { return };
        thread::scope(|scope| {
            let dropping = scope.spawn(|| drop(near));
            self.dequeue(4);
            // Also of its thread nothing is to be left, as a look for leaks follows.
            dropping.join().unwrap();
        });
    }

    fn far_writes(&mut self, at: usize, length: usize) {
        let stream = &mut self.streams[at];
        let Some(far) = &mut stream.far else { return };
        let bytes = noise(stream.written.len(), length);
        if let Ok(count) = far.write(&bytes) {
            stream.written.extend_from_slice(&bytes[..count]);
        }
    }

    fn far_reads(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let mut chunk = vec![0; 64 * 1024];
        if let Some(far) = &mut stream.far
            && let Ok(count) = far.read(&mut chunk)
        {
            stream.read.extend_from_slice(&chunk[..count]);
        }
    }

    fn far_closes(&mut self, at: usize) {
        self.streams[at].far = None;
    }

    fn listen_or_accept(&mut self) {
        if self.listener.is_none() {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
            let address = listener.local_addr().unwrap();
            let listener = self.port.associate(listener, LISTENER).expect("it is associated");
            self.listener = Some((listener, address));
        }
        let operation = self.operation();
        if let Some((listener, _)) = &self.listener {
            let accept = listener.accept(operation);
            let id = self.book(LISTENER, accept);
            self.started.extend(id);
        }
    }

    /// A client connects and resets, or the port itself connects.
    fn connect(&mut self) {
        let Some(address) = self.listener.as_ref().map(|listener| listener.1) else { return };
        let operation = self.operation();
        if let Ok(stream) = StreamSocket::for_peer(&self.port, &address, OTHERS) {
            // No ports are to be left in TIME_WAIT.
            let _ = stream.options().map(|socket| socket.set_linger(Some(Duration::ZERO)));
            let connect = stream.connect(operation, address);
            let id = self.book(OTHERS, connect);
            self.started.extend(id);
        }
    }

    fn datagram(&mut self, input: &mut Input<'_>) {
        if self.datagrams.is_none() {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a datagram socket");
            let address = socket.local_addr().unwrap();
            let socket = self.port.associate(socket, DATAGRAMS).expect("it is associated");
            self.datagrams = Some((socket, address));
        }
        let operation = self.operation();
        let Some((socket, address)) = &self.datagrams else { return };
        let length = LENGTHS[input.below(6)];
        let result = if input.byte() & 1 == 0 {
            socket.recv_from(operation, Vec::with_capacity(length))
        } else {
            // To itself.
            socket.send_to(operation, noise(0, length), *address)
        };
        let id = self.book(DATAGRAMS, result);
        self.started.extend(id);
    }

    fn file(&mut self, input: &mut Input<'_>) {
        if self.file.is_none() {
            let file = memory_file();
            self.file = Some(self.port.associate(file, FILE).expect("it is associated"));
        }
        let operation = self.operation();
        let Some(file) = &self.file else { return };
        let (offset, length) = (u64::from(input.byte()) * 100, input.length());
        let result = if input.byte() & 1 == 0 {
            file.read_at(operation, Vec::with_capacity(length), offset)
        } else {
            file.write_at(operation, noise(0, length), offset)
        };
        let id = self.book(FILE, result);
        self.started.extend(id);
    }

    fn close_others(&mut self, which: usize) {
        match which {
            0 => self.listener = None,
            1 => self.datagrams = None,
            2 => self.file = None,
            _ => {
                if let (Some((socket, _)), Some(&id)) = (&self.datagrams, self.started.last()) {
                    let found = socket.cancel(id);
                    assert!(!(found && self.ended.contains(&id)), "cancelled after its end");
                }
            }
        }
    }

    fn dequeue(&mut self, count: usize) {
        for _ in 0..count {
            match self.port.dequeue(Some(Duration::ZERO)) {
                Ok(completion) => self.take(completion),
                Err(error) => assert_eq!(error, DequeueError::TimedOut),
            }
        }
    }

    fn dequeue_many(&mut self, count: usize) {
        let mut completions: Vec<_> = (0..count).map(|_| None).collect();
        match self.port.dequeue_many(&mut completions, Some(Duration::ZERO)) {
            Ok(taken) => {
                assert!(completions[..taken].iter().all(Option::is_some));
                assert!(completions[taken..].iter().all(Option::is_none));
                completions.into_iter().flatten().for_each(|completion| self.take(completion));
            }
            Err(error) => assert_eq!(error, DequeueError::TimedOut),
        }
    }

    fn take_one(&mut self) {
        match self.port.dequeue(Some(HANG)) {
            Ok(completion) => self.take(completion),
            Err(error) => panic!("{error}; without a packet: {:?}, {:?}", self.open, self.late),
        }
    }

    /// Books one packet.
    fn take(&mut self, mut completion: Completion) {
        if completion.kind() == OperationKind::Post {
            assert_eq!((completion.key(), completion.bytes()), (OTHERS, 1));
            self.posts = self.posts.checked_sub(1).expect("a post came twice");
            return;
        }
        let id = completion.operation_id().expect("only posts have no id");
        let key = completion.key();
        let sequence = completion.sequence();
        if completion.more() {
            if let Some(missing) = self.late.get_mut(&id) {
                *missing -= 1;
                if *missing == 0 {
                    self.late.remove(&id);
                }
            } else {
                assert_eq!(self.open.get(&id), Some(&key), "nobody waits for {completion:?}");
            }
            let chunk = completion.take_chunk().expect("more to come: there are bytes");
            self.streams[key].note_received(id, sequence, chunk.to_vec());
            return;
        }
        assert_eq!(self.open.remove(&id), Some(key), "nobody waits for {completion:?}");
        self.ended.insert(id);
        if completion.kind() == OperationKind::RecvContinuous {
            let receive = self.streams[key].receives.iter().find(|receive| receive.0 == id);
            let came = receive.map_or(0, |receive| receive.1.len()) as u64;
            assert!(came <= sequence, "more chunks than there are: {completion:?}");
            if came < sequence {
                self.late.insert(id, sequence - came);
            }
        }
        if let Some(error) = completion.error() {
            let allowed = [
                ErrorKind::Cancelled,
                ErrorKind::ConnectionAborted,
                ErrorKind::ConnectionReset,
                ErrorKind::ConnectionRefused,
                ErrorKind::ShutDown,
                ErrorKind::EndOfFile,
                ErrorKind::MessageTruncated,
            ];
            assert!(allowed.contains(&error.kind()), "{completion:?}");
        }
        let bytes = completion.bytes();
        let mut operation = completion.into_operation().expect("the last packet has the operation");
        assert_eq!(operation.id(), id);
        if key >= STREAMS {
            return;
        }
        match operation.kind() {
            OperationKind::Recv => {
                let got = match operation.take_buffer() {
                    Some(buffer) => buffer,
                    None => operation.take_buffers().expect("a receive has buffers").concat(),
                };
                assert_eq!(got.len(), bytes);
                self.streams[key].note_received(id, sequence, got);
            }
            OperationKind::Send => {
                let mut sent = match operation.take_send_buffer() {
                    Some(buffer) => buffer.as_ref().to_vec(),
                    None => {
                        let buffers = operation.take_send_buffers().expect("a send has buffers");
                        buffers.iter().flat_map(|buffer| buffer.as_ref().to_vec()).collect()
                    }
                };
                assert!(bytes <= sent.len());
                sent.truncate(bytes);
                let sends = &mut self.streams[key].sends;
                let send = sends.iter_mut().find(|send| send.0 == id);
                send.expect("it was started on this stream").1 = sent;
            }
            _ => {}
        }
    }

    /// Closes everything and takes what is left.
    fn end(mut self) {
        self.listener = None;
        self.datagrams = None;
        self.file = None;
        for stream in &mut self.streams {
            stream.near = None;
        }
        for timer in std::mem::take(&mut self.timers) {
            self.port.cancel_timer(timer);
        }
        while !self.open.is_empty() || !self.late.is_empty() || self.posts > 0 {
            self.take_one();
        }
        match self.port.dequeue(Some(Duration::ZERO)) {
            Err(DequeueError::TimedOut) => {}
            other => panic!("a packet too many: {other:?}"),
        }
        for stream in &mut self.streams {
            stream.expect_end(&self.port);
            stream.check();
        }
    }
}

/// What a stream's operation moves.
enum Way {
    In,
    Out,
}

impl Stream {
    fn note_received(&mut self, id: OperationId, sequence: u64, bytes: Vec<u8>) {
        let receive = self.receives.iter_mut().find(|receive| receive.0 == id);
        receive.expect("it was started on this stream").1.push((sequence, bytes));
    }

    /// The other end of a closed stream gets the rest, and its end.
    fn expect_end(&mut self, port: &CompletionPort) {
        let Some(far) = &mut self.far else { return };
        let mut chunk = vec![0; 64 * 1024];
        let deadline = Instant::now() + HANG;
        loop {
            match far.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => self.read.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            // What the kernel still holds of the socket ends inside a dequeue.
            assert_eq!(port.dequeue(Some(Duration::ZERO)).unwrap_err(), DequeueError::TimedOut);
            assert!(Instant::now() < deadline, "the socket was closed, but its peer sees no end");
        }
    }

    /// Everything that came out went in.
    fn check(&mut self) {
        let mut received = Vec::new();
        for (_, pieces) in &mut self.receives {
            pieces.sort_by_key(|piece| piece.0);
            pieces.iter().for_each(|piece| received.extend_from_slice(&piece.1));
        }
        assert!(self.written.starts_with(&received), "bytes that the peer did not write");
        let sent: Vec<u8> = self.sends.iter().flat_map(|send| send.1.iter().copied()).collect();
        assert!(sent.starts_with(&self.read), "bytes that no send was told of");
    }
}

/// Bytes that differ from their neighbours.
fn noise(seed: usize, length: usize) -> Vec<u8> {
    (seed..seed + length).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

/// A file without a name.
fn memory_file() -> std::fs::File {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: the name ends with a zero.
    let descriptor = unsafe { libc::memfd_create(c"proactor-fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was made here and belongs to nobody else.
    unsafe { OwnedFd::from_raw_fd(descriptor) }.into()
}
