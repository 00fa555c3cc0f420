//! Any sequence of calls on a few sockets, with any behaviour of their peers.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use proactor::{
    Completion, CompletionPort, DequeueError, ErrorKind, Operation, OperationId, OperationKind,
    StreamSocket,
};
use proptest::prelude::*;

use crate::common::*;
use crate::{check, length};

/// One thing that a program does to one of a few sockets.
#[derive(Clone, Debug)]
enum Action {
    Recv(usize, usize),
    RecvContinuous(usize),
    Send(usize, usize),
    Disconnect(usize),
    /// Cancels the n-th operation that was started, wherever it is by now.
    Cancel(usize),
    CancelAll(usize),
    Close(usize),
    PeerWrites(usize, usize),
    PeerReads(usize),
    PeerCloses(usize),
    PeerResets(usize),
    StartTimer(u64),
    CancelTimer(usize),
    Post,
    Dequeue(usize),
}

const SOCKETS: usize = 3;

fn action() -> impl Strategy<Value = Action> {
    let socket = || 0..SOCKETS;
    prop_oneof![
        6 => (socket(), prop_oneof![Just(0), 1..100_usize]).prop_map(|(s, n)| Action::Recv(s, n)),
        2 => socket().prop_map(Action::RecvContinuous),
        4 => (socket(), length()).prop_map(|(s, n)| Action::Send(s, n)),
        1 => socket().prop_map(Action::Disconnect),
        3 => (0..40_usize).prop_map(Action::Cancel),
        1 => socket().prop_map(Action::CancelAll),
        1 => socket().prop_map(Action::Close),
        5 => (socket(), 1..500_usize).prop_map(|(s, n)| Action::PeerWrites(s, n)),
        2 => socket().prop_map(Action::PeerReads),
        1 => socket().prop_map(Action::PeerCloses),
        1 => socket().prop_map(Action::PeerResets),
        1 => (0..2_000_u64).prop_map(Action::StartTimer),
        1 => (0..10_usize).prop_map(Action::CancelTimer),
        1 => Just(Action::Post),
        5 => (1..6_usize).prop_map(Action::Dequeue),
    ]
}

on_each_backend! {
    /// Rules 44, 45, 74, 78 and 83: whatever happens to it, an operation that was accepted has
    /// exactly one last packet, and one that was refused has none; what a receive says it got is
    /// what the peer wrote.
    fn each_accepted_operation_has_one_packet(ports: &Ports) {
        let ports = *ports;
        check(96, prop::collection::vec(action(), 1..80), |actions| {
            any_actions(&ports, &actions);
            Ok(())
        });
    }
}

/// One socket, its peer, and what went between them.
struct Conversation {
    stream: Option<StreamSocket>,
    peer: Option<TcpStream>,
    written: Vec<u8>,
    received: Vec<u8>,
}

/// A program that does random things, and keeps the books.
struct Program {
    port: CompletionPort,
    conversations: Vec<Conversation>,
    /// Every operation that was accepted, and the socket it is of.
    started: Vec<(OperationId, usize)>,
    timers: Vec<OperationId>,
    /// What has no last packet yet, and for a receive its room.
    open: HashMap<OperationId, usize>,
    ended: HashSet<OperationId>,
    posts: usize,
}

/// The key of posts and timers.
const NO_SOCKET: usize = usize::MAX;

fn any_actions(ports: &Ports, actions: &[Action]) {
    let mut program = Program {
        port: ports.open(1),
        conversations: Vec::new(),
        started: Vec::new(),
        timers: Vec::new(),
        open: HashMap::new(),
        ended: HashSet::new(),
        posts: 0,
    };
    for key in 0..SOCKETS {
        let (stream, peer) = tcp_pair();
        shrink_buffers(&stream);
        shrink_buffers(&peer);
        peer.set_nonblocking(true).unwrap();
        let stream = Some(program.port.associate(stream, key).unwrap());
        let (written, received) = (Vec::new(), Vec::new());
        program.conversations.push(Conversation { stream, peer: Some(peer), written, received });
    }
    for action in actions {
        program.act(action);
    }
    program.end();
}

impl Program {
    fn act(&mut self, action: &Action) {
        match action {
            Action::Recv(socket, room) => {
                let (buffer, operation) = (Vec::with_capacity(*room), Operation::new());
                let capacity = buffer.capacity();
                let result = self.stream(*socket).map(|stream| stream.recv(operation, buffer));
                self.note(*socket, capacity, result);
            }
            Action::RecvContinuous(socket) => {
                let result =
                    self.stream(*socket).map(|stream| stream.recv_continuous(Operation::new()));
                self.note(*socket, 0, result);
            }
            Action::Send(socket, length) => {
                let (bytes, operation) = (pattern(1, *length), Operation::new());
                let result = self.stream(*socket).map(|stream| stream.send(operation, bytes));
                self.note(*socket, *length, result);
            }
            Action::Disconnect(socket) => {
                let result = self.stream(*socket).map(|stream| stream.disconnect(Operation::new()));
                self.note(*socket, 0, result);
            }
            Action::Cancel(number) => {
                if let Some((id, socket)) = self.started.get(*number).copied()
                    && let Some(stream) = self.stream(socket)
                {
                    let accepted = stream.cancel(id);
                    assert!(!(accepted && self.ended.contains(&id)), "cancelled after its end");
                }
            }
            Action::CancelAll(socket) => {
                let count = self.stream(*socket).map(StreamSocket::cancel_all);
                assert!(count.unwrap_or(0) <= self.open.len());
            }
            Action::Close(socket) => self.conversations[*socket].stream = None,
            Action::PeerWrites(socket, length) => {
                let conversation = &mut self.conversations[*socket];
                let seed = conversation.written.len() as u64;
                if let Some(peer) = &mut conversation.peer
                    && let bytes = pattern(seed, *length)
                    && let Ok(count) = peer.write(&bytes)
                {
                    conversation.written.extend_from_slice(&bytes[..count]);
                }
            }
            Action::PeerReads(socket) => {
                let mut bytes = vec![0; 64 * 1024];
                if let Some(peer) = &mut self.conversations[*socket].peer {
                    let _ = peer.read(&mut bytes);
                }
            }
            Action::PeerCloses(socket) => self.conversations[*socket].peer = None,
            Action::PeerResets(socket) => {
                if let Some(peer) = self.conversations[*socket].peer.take() {
                    reset(peer);
                }
            }
            Action::StartTimer(micros) => {
                let delay = Duration::from_micros(*micros);
                let id = self.port.start_timer(NO_SOCKET, delay, Operation::new()).unwrap();
                self.timers.push(id);
                assert_eq!(self.open.insert(id, 0), None);
            }
            Action::CancelTimer(number) => {
                if let Some(id) = self.timers.get(*number) {
                    let accepted = self.port.cancel_timer(*id);
                    assert!(!(accepted && self.ended.contains(id)), "cancelled after its end");
                }
            }
            Action::Post => {
                self.port.post(NO_SOCKET, 0, None).unwrap();
                self.posts += 1;
            }
            Action::Dequeue(count) => {
                for _ in 0..*count {
                    match self.port.dequeue(Some(Duration::ZERO)) {
                        Ok(completion) => self.take(completion),
                        Err(error) => assert_eq!(error, DequeueError::TimedOut),
                    }
                }
            }
        }
    }

    fn stream(&self, socket: usize) -> Option<&StreamSocket> {
        self.conversations[socket].stream.as_ref()
    }

    fn note(
        &mut self,
        socket: usize,
        room: usize,
        result: Option<Result<OperationId, proactor::Rejected>>,
    ) {
        match result {
            Some(Ok(id)) => {
                self.started.push((id, socket));
                assert_eq!(self.open.insert(id, room), None, "two operations with one id");
            }
            Some(Err(rejected)) => {
                let kind = rejected.error().kind();
                let allowed =
                    [ErrorKind::InvalidInput, ErrorKind::ConnectionReset, ErrorKind::ShutDown];
                assert!(allowed.contains(&kind), "{rejected:?}");
            }
            None => {}
        }
    }

    /// Books one packet.
    fn take(&mut self, mut completion: Completion) {
        if completion.kind() == OperationKind::Post {
            self.posts = self.posts.checked_sub(1).expect("a post came twice");
            return;
        }
        let id = completion.operation_id().expect("only posts have no id");
        assert!(self.open.contains_key(&id), "a packet of an operation that ended: {completion:?}");
        let key = completion.key();
        if completion.more() {
            let chunk = completion.take_chunk().unwrap();
            self.conversations[key].received.extend_from_slice(&chunk);
            return;
        }
        let room = self.open.remove(&id).unwrap();
        self.ended.insert(id);
        let (bytes, error) = (completion.bytes(), completion.error());
        let operation = completion.into_operation().expect("the last packet has the operation");
        assert_eq!(operation.id(), id);
        assert!(bytes <= room);
        match operation.kind() {
            OperationKind::Recv => {
                assert_eq!(operation.buffer().len(), bytes);
                assert!(error.is_none() || bytes == 0);
                self.conversations[key].received.extend_from_slice(operation.buffer());
            }
            OperationKind::Send if error.is_none() => assert_eq!(bytes, room, "a partial send"),
            _ => {}
        }
        if let Some(error) = error {
            let allowed = [
                ErrorKind::Cancelled,
                ErrorKind::ConnectionAborted,
                ErrorKind::ConnectionReset,
                ErrorKind::ShutDown,
            ];
            assert!(allowed.contains(&error.kind()), "{error}");
        }
    }

    /// Closes everything and takes what is left: every operation ends, and nothing comes twice.
    fn end(mut self) {
        for conversation in &mut self.conversations {
            conversation.stream = None;
        }
        for id in self.timers.clone() {
            self.port.cancel_timer(id);
        }
        while !self.open.is_empty() || self.posts > 0 {
            match self.port.dequeue(Some(HANG)) {
                Ok(completion) => self.take(completion),
                Err(error) => panic!("{error}; without a packet: {:?}", self.open),
            }
        }
        match self.port.dequeue(Some(Duration::from_millis(1))) {
            Err(DequeueError::TimedOut) => {}
            other => panic!("a packet too many: {other:?}"),
        }
        for (key, conversation) in self.conversations.iter_mut().enumerate() {
            let got = &conversation.received;
            assert!(got.len() <= conversation.written.len(), "socket {key} made bytes up");
            assert_same_bytes(got, &conversation.written[..got.len()]);
            if let Some(peer) = &mut conversation.peer {
                expect_end(&self.port, peer);
            }
        }
    }
}

/// The peer of a closed socket sees the end, behind what was sent.
fn expect_end(port: &CompletionPort, peer: &mut TcpStream) {
    peer.set_nonblocking(true).unwrap();
    let mut chunk = vec![0; 64 * 1024];
    let deadline = Instant::now() + HANG;
    loop {
        match peer.read(&mut chunk) {
            Ok(0) => return,
            Err(error) if error.kind() == IoErrorKind::ConnectionReset => return,
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), IoErrorKind::WouldBlock),
        }
        // What the kernel still holds of the socket ends inside a dequeue.
        assert_eq!(port.dequeue(Some(Duration::ZERO)).unwrap_err(), DequeueError::TimedOut);
        assert!(
            Instant::now() < deadline,
            "the socket was closed, but its peer sees no end: {}",
            connection_states(peer)
        );
    }
}

/// Both ends of a connection, as `/proc/net/tcp` has them, where there is one.
fn connection_states(peer: &TcpStream) -> String {
    let port = format!(":{:04X} ", peer.local_addr().unwrap().port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    table.lines().filter(|line| line.contains(&port)).map(|line| format!("\n{line}")).collect()
}
