//! Continuous receive: a packet for each buffer, until it ends (rules 44, 57, 58, 78, 84).

mod common;

use std::io::{ErrorKind as IoErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::*;
use proactor::{
    Completion, CompletionPort, DequeueError, ErrorKind, Operation, OperationKind, PoolBuffer,
    StreamSocket,
};
use socket2::SockRef;

const KIND: OperationKind = OperationKind::RecvContinuous;

/// A stream that is associated with `port` under key 1, and its peer.
fn associated(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let (stream, peer) = tcp_pair();
    (port.associate(stream, 1).unwrap(), peer)
}

/// The next packet, which has to bring bytes.
#[track_caller]
fn chunk(port: &CompletionPort) -> PoolBuffer {
    let mut completion = dequeue_within(port, KIND);
    assert!(completion.more() && completion.error().is_none(), "{completion:?}");
    assert!(completion.operation().is_none(), "the operation is in flight still");
    let chunk = completion.take_chunk().expect("a packet that is not the last brings bytes");
    assert!(!chunk.is_empty());
    assert_eq!(completion.bytes(), chunk.len());
    assert!(completion.take_chunk().is_none(), "it was taken");
    chunk
}

/// The last packet, which has to bring the operation and no bytes.
#[track_caller]
fn check_last(mut completion: Completion, error: Option<ErrorKind>) -> Operation {
    assert_eq!(completion.error().map(|error| error.kind()), error, "{completion:?}");
    assert!(!completion.more());
    assert_eq!(completion.bytes(), 0);
    assert!(completion.take_chunk().is_none());
    completion.into_operation().expect("the last packet brings the operation")
}

/// Takes packets until `count` bytes are there.
#[track_caller]
fn take_bytes(port: &CompletionPort, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        bytes.extend_from_slice(&chunk(port));
    }
    assert_eq!(bytes.len(), count, "more came than was sent");
    bytes
}

/// Writes until no more fits, and says how much that was.
fn fill(peer: &TcpStream, mut progress: impl FnMut()) -> usize {
    peer.set_nonblocking(true).unwrap();
    let mut total = 0;
    let mut stalls = 0;
    // Full now may be a moment before the port has read on: it has to be full many times over.
    while stalls < 200 {
        progress();
        match (&*peer).write(&[b'.'; 4096]) {
            Ok(count) => {
                total += count;
                stalls = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), IoErrorKind::WouldBlock);
                stalls += 1;
            }
        }
    }
    peer.set_nonblocking(false).unwrap();
    total
}

on_each_backend! {
    /// A packet for each buffer of bytes, all of one operation, until the orderly end.
    fn rule_57_a_continuous_receive_ends_with_the_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let id = stream.recv_continuous(Operation::with_context("mine")).unwrap();
        assert_quiet(&port);
        for message in [&b"first"[..], b"second", b"third"] {
            peer.write_all(message).unwrap();
            let completion = dequeue_within(&port, KIND);
            assert_eq!((completion.key(), completion.result()), (1, Ok(message.len())));
            assert_eq!(completion.operation_id(), Some(id));
            assert!(completion.more());
        }
        assert_quiet(&port);
        drop(peer);
        let completion = dequeue_within(&port, KIND);
        assert_eq!((completion.key(), completion.operation_id()), (1, Some(id)));
        let operation = check_last(completion, None);
        assert_eq!(operation.context::<&str>(), Some(&"mine"));
        assert_quiet(&port);
        // And so does the next one.
        stream.recv_continuous(operation).unwrap();
        check_last(dequeue_within(&port, KIND), None);
    }

    /// Each packet has its number in the receive, the last one too; the next receive counts anew.
    fn packets_are_numbered(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let mut operation = Operation::new();
        for _ in 0..2 {
            let id = stream.recv_continuous(operation).unwrap();
            for number in 0..5 {
                peer.write_all(b"x").unwrap();
                assert_eq!(dequeue_within(&port, KIND).sequence(), number);
            }
            assert!(stream.cancel(id));
            let completion = dequeue_within(&port, KIND);
            assert_eq!(completion.sequence(), 5);
            operation = check_last(completion, Some(ErrorKind::Cancelled));
        }
        stream.send(operation, "x").unwrap();
        assert_eq!(dequeue_within(&port, OperationKind::Send).sequence(), 0);
    }

    /// Bytes that came just before the end are delivered before it.
    fn rule_57_the_last_bytes_come_before_the_end(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let expected = pattern(1, 100_000);
        let to_send = expected.clone();
        let writer = thread::spawn(move || {
            peer.write_all(&to_send).unwrap();
            drop(peer);
        });
        stream.recv_continuous(Operation::new()).unwrap();
        assert_same_bytes(&take_bytes(&port, expected.len()), &expected);
        check_last(dequeue_within(&port, KIND), None);
        writer.join().unwrap();
    }

    /// Rule 58: a reset ends it with the reason, and later receives are refused (rule 59).
    fn rule_58_a_reset_ends_a_continuous_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"data").unwrap();
        assert_eq!(&*chunk(&port), b"data");
        reset(peer);
        let completion = dequeue_within(&port, KIND);
        let operation = check_last(completion, Some(ErrorKind::ConnectionReset));
        let operation = refused(stream.recv_continuous(operation), ErrorKind::ConnectionReset);
        refused(stream.recv(operation, Vec::with_capacity(8)), ErrorKind::ConnectionReset);
        assert_quiet(&port);
    }

    /// Rule 78: a cancel ends it; what comes later goes to the next receive.
    fn rule_78_a_cancel_ends_a_continuous_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let id = stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"one").unwrap();
        assert_eq!(&*chunk(&port), b"one");
        assert!(stream.cancel(id));
        let operation = check_last(dequeue_within(&port, KIND), Some(ErrorKind::Cancelled));
        assert!(!stream.cancel(id), "it has ended");
        peer.write_all(b"two").unwrap();
        assert_quiet(&port);
        stream.recv(operation, Vec::with_capacity(8)).unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Recv);
        assert_eq!(operation.buffer(), b"two");
        stream.recv_continuous(operation).unwrap();
        peer.write_all(b"three").unwrap();
        assert_eq!(&*chunk(&port), b"three");
    }

    /// Rule 78: a cancel in the middle of a flow loses no byte, repeats none, and keeps the order.
    fn rule_78_a_cancel_loses_no_bytes(ports: &Ports) {
        const LENGTH: usize = 2_000_000;
        // Small buffers make many packets, and so many cancels among them.
        let port = ports.builder().receive_buffer_bytes(4096).build().unwrap();
        let (stream, mut peer) = associated(&port);
        let expected = pattern(2, LENGTH);
        let to_send = expected.clone();
        let writer = thread::spawn(move || peer.write_all(&to_send).map(|()| peer));
        let mut got = Vec::with_capacity(LENGTH);
        let mut random = Random::new(3);
        let mut operation = Operation::new();
        let mut cancels = 0;
        while got.len() < LENGTH {
            let id = stream.recv_continuous(operation).unwrap();
            let chunks = random.below(6);
            let mut seen = 0;
            operation = loop {
                if seen == chunks || got.len() == LENGTH {
                    stream.cancel(id);
                    cancels += 1;
                }
                seen += 1;
                let mut completion = dequeue_within(&port, KIND);
                if !completion.more() {
                    break check_last(completion, Some(ErrorKind::Cancelled));
                }
                got.extend_from_slice(&completion.take_chunk().unwrap());
            };
            // A plain receive in between.
            if got.len() < LENGTH && random.below(2) == 0 {
                stream.recv(operation, Vec::with_capacity(1000)).unwrap();
                (_, operation) = dequeue_success(&port, OperationKind::Recv);
                got.extend_from_slice(operation.buffer());
            }
        }
        assert!(cancels > 5);
        assert_same_bytes(&got, &expected);
        writer.join().unwrap().unwrap();
        assert_quiet(&port);
    }

    /// While it is pending, any other receive is refused; and it is, while another is pending.
    fn a_continuous_receive_is_the_only_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let id = stream.recv_continuous(Operation::new()).unwrap();
        let mut buffer = Vec::with_capacity(8);
        buffer.push(1);
        let result = stream.recv(Operation::with_context(1_u8), buffer);
        let mut operation = refused(result, ErrorKind::InvalidInput);
        assert_eq!(operation.context::<u8>(), Some(&1));
        assert!(operation.take_buffer().is_some_and(|buffer| buffer.capacity() >= 8));
        refused(stream.recv(Operation::new(), Vec::new()), ErrorKind::InvalidInput);
        let result = stream.recv_vectored(Operation::new(), vec![Vec::with_capacity(8)]);
        refused(result, ErrorKind::InvalidInput);
        refused(stream.recv_continuous(Operation::new()), ErrorKind::InvalidInput);
        peer.write_all(b"fine").unwrap();
        assert_eq!(&*chunk(&port), b"fine");
        assert!(stream.cancel(id));
        check_last(dequeue_within(&port, KIND), Some(ErrorKind::Cancelled));

        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        refused(stream.recv_continuous(Operation::new()), ErrorKind::InvalidInput);
        peer.write_all(b"also").unwrap();
        dequeue_success(&port, OperationKind::Recv);
        stream.recv_continuous(Operation::new()).unwrap();
        assert_quiet(&port);
    }

    /// Bytes that an earlier receive left behind are delivered first.
    fn what_an_earlier_receive_left_comes_first(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        peer.write_all(b"abcdef").unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(2)).unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Recv);
        assert_eq!(operation.buffer(), b"ab");
        stream.recv_continuous(operation).unwrap();
        assert_eq!(take_bytes(&port, 4), b"cdef");
        peer.write_all(b"g").unwrap();
        assert_eq!(&*chunk(&port), b"g");
    }

    /// No packet brings more than one buffer of the pool holds.
    fn a_chunk_is_at_most_one_buffer(ports: &Ports) {
        for buffer_bytes in [64, 1024] {
            let port = ports.builder().receive_buffer_bytes(buffer_bytes).build().unwrap();
            let (stream, mut peer) = associated(&port);
            let expected = pattern(4, 10 * buffer_bytes + 3);
            peer.write_all(&expected).unwrap();
            stream.recv_continuous(Operation::new()).unwrap();
            let mut got = Vec::new();
            while got.len() < expected.len() {
                let chunk = chunk(&port);
                assert!(chunk.len() <= buffer_bytes);
                got.extend_from_slice(&chunk);
            }
            assert_same_bytes(&got, &expected);
        }
    }

    /// While the consumer keeps its buffers, the connection is read no further than the window;
    /// once it gives them back, the rest comes.
    fn a_consumer_that_stops_stops_the_peer(ports: &Ports) {
        const WINDOW: usize = 64 * 1024;
        let port = ports
            .builder()
            .receive_buffer_bytes(4096)
            .receive_window_bytes(WINDOW)
            .build()
            .unwrap();
        let (stream, peer) = tcp_pair();
        shrink_buffers(&stream);
        shrink_buffers(&peer);
        let stream = port.associate(stream, 1).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        for _ in 0..3 {
            let mut held = Vec::new();
            let sent = fill(&peer, || {
                while let Ok(mut completion) = port.dequeue(Some(Duration::ZERO)) {
                    held.push(completion.take_chunk().expect("no end yet"));
                }
            });
            let delivered: usize = held.iter().map(|chunk| chunk.len()).sum();
            assert!(held.len() * 4096 <= 2 * WINDOW, "{} buffers are out", held.len());
            assert!(delivered <= sent);
            // Everything comes once the consumer goes on.
            drop(held);
            let mut rest = sent - delivered;
            while rest > 0 {
                rest = rest.checked_sub(chunk(&port).len()).expect("more came than was sent");
            }
        }
    }

    /// A consumer that keeps one packet's bytes does not stop the stream.
    fn a_kept_buffer_does_not_stop_the_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"kept").unwrap();
        let kept = chunk(&port);
        for round in 0..300 {
            let message = pattern(round, 1000);
            peer.write_all(&message).unwrap();
            assert_same_bytes(&take_bytes(&port, 1000), &message);
        }
        assert_eq!(&*kept, b"kept", "the buffer was used again while it was lent");
    }

    /// Where every buffer of the pool is out, connections wait, and go on when one is given back.
    fn an_exhausted_pool_makes_connections_wait(ports: &Ports) {
        const CONNECTIONS: usize = 40;
        const BUFFERS: usize = 64;
        let port = ports
            .builder()
            .receive_buffer_bytes(64)
            .maximum_receive_buffers(BUFFERS)
            .build()
            .unwrap();
        let mut peers = Vec::new();
        let streams: Vec<StreamSocket> = (0..CONNECTIONS)
            .map(|key| {
                let (stream, peer) = tcp_pair();
                peers.push(peer);
                port.associate(stream, key).unwrap()
            })
            .collect();
        for stream in &streams {
            stream.recv_continuous(Operation::new()).unwrap();
        }
        // Five buffers for each connection: three times what the pool has.
        for (key, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&pattern(key as u64, 320)).unwrap();
        }
        let mut held: Vec<Completion> = Vec::new();
        let mut received = vec![Vec::new(); CONNECTIONS];
        let mut total = 0;
        while total < CONNECTIONS * 320 {
            match port.dequeue(Some(QUIET)) {
                Ok(completion) => {
                    assert_eq!(completion.error(), None, "{completion:?}");
                    held.push(completion);
                    assert!(held.len() <= BUFFERS, "more buffers than the pool has");
                }
                Err(DequeueError::TimedOut) => {
                    assert!(!held.is_empty(), "no packet, although every buffer is free");
                    for mut completion in held.drain(..) {
                        let chunk = completion.take_chunk().unwrap();
                        received[completion.key()].extend_from_slice(&chunk);
                        total += chunk.len();
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        for (key, bytes) in received.iter().enumerate() {
            assert_same_bytes(bytes, &pattern(key as u64, 320));
        }
    }

    /// Delivered bytes outlive the receive, the socket and the port.
    fn delivered_bytes_outlive_the_port(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"0123456789").unwrap();
        let mut kept = chunk(&port);
        drop(stream);
        check_last(dequeue_within(&port, KIND), Some(ErrorKind::ConnectionAborted));
        drop(port);
        kept[0] = b'x';
        kept.advance(0);
        kept.truncate(8);
        kept.advance(1);
        let bytes = thread::spawn(move || kept.to_vec()).join().unwrap();
        assert_eq!(bytes, b"1234567");
    }

    /// Rule 75: closing the handle ends it as aborted; what was delivered before stays.
    fn rule_75_closing_ends_a_continuous_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, _peer) = associated(&port);
        stream.recv_continuous(Operation::with_context(8_u8)).unwrap();
        assert_quiet(&port);
        drop(stream);
        let completion = dequeue_within(&port, KIND);
        let operation = check_last(completion, Some(ErrorKind::ConnectionAborted));
        assert_eq!(operation.context::<u8>(), Some(&8));
        assert_quiet(&port);
    }

    /// Rule 84: shutting down the receiving side leaves a pending continuous receive pending.
    fn rule_84_a_continuous_receive_outlives_a_shutdown(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        assert_quiet(&port);
        stream.shutdown(Shutdown::Read).unwrap();
        assert_quiet(&port);
        peer.write_all(b"later").unwrap();
        assert_eq!(&*chunk(&port), b"later");
        drop(peer);
        let operation = check_last(dequeue_within(&port, KIND), None);
        refused(stream.recv_continuous(operation), ErrorKind::ShutDown);
    }

    /// A connection on which there is always something to receive does not starve another one.
    fn endless_bytes_on_one_connection_do_not_starve_another(ports: &Ports) {
        const ROUNDS: usize = 20;
        let port = ports.builder().concurrency(1).receive_buffer_bytes(1024).build().unwrap();
        let (flooded, mut flooding_peer) = associated(&port);
        let (quiet, mut quiet_peer) = tcp_pair();
        let quiet = port.associate(quiet, 2).unwrap();
        flooded.recv_continuous(Operation::new()).unwrap();
        quiet.recv_continuous(Operation::new()).unwrap();
        let (tell, stopped) = std::sync::mpsc::channel::<()>();
        let flood = thread::spawn(move || {
            // Ends with the connection, too: the write fails then.
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty)
                && flooding_peer.write_all(&[0; 64 * 1024]).is_ok()
            {}
        });
        for _ in 0..ROUNDS {
            let mut between = 0;
            quiet_peer.write_all(b"x").unwrap();
            while dequeue_within(&port, KIND).key() != 2 {
                between += 1;
                assert!(between < 100_000, "the other connection gets no turn");
            }
        }
        drop(tell);
        drop(flooded);
        flood.join().unwrap();
    }

    /// Hundreds of connections, a few bytes each, round after round: nothing is mixed up.
    fn many_connections_keep_their_bytes_apart(ports: &Ports) {
        const CONNECTIONS: usize = 200;
        let port = ports.open(1);
        let mut peers = Vec::new();
        let streams: Vec<StreamSocket> = (0..CONNECTIONS)
            .map(|key| {
                let (stream, peer) = tcp_pair();
                peers.push(peer);
                let stream = port.associate(stream, key).unwrap();
                stream.recv_continuous(Operation::new()).unwrap();
                stream
            })
            .collect();
        for round in 0..20 {
            for (key, peer) in peers.iter_mut().enumerate() {
                peer.write_all(&pattern((round * 1000 + key) as u64, 1 + key % 50)).unwrap();
            }
            let mut received = vec![Vec::new(); CONNECTIONS];
            let total: usize = (0..CONNECTIONS).map(|key| 1 + key % 50).sum();
            let mut got = 0;
            while got < total {
                let mut completion = dequeue_within(&port, KIND);
                got += completion.bytes();
                received[completion.key()].extend_from_slice(&completion.take_chunk().unwrap());
            }
            for (key, bytes) in received.iter().enumerate() {
                assert_eq!(bytes, &pattern((round * 1000 + key) as u64, 1 + key % 50));
            }
        }
        drop(streams);
        for completion in dequeue_all(&port, CONNECTIONS) {
            check_last(completion, Some(ErrorKind::ConnectionAborted));
        }
        assert_quiet(&port);
    }

    /// Unix streams.
    #[cfg(unix)]
    fn a_continuous_receive_on_a_unix_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = unix_pair();
        let stream = port.associate(stream, 1).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"unix").unwrap();
        assert_eq!(&*chunk(&port), b"unix");
        drop(peer);
        check_last(dequeue_within(&port, KIND), None);
    }

    /// A packet that is dropped unread gives its buffer back: the stream goes on for ever.
    fn unread_packets_give_their_buffers_back(ports: &Ports) {
        let port = ports
            .builder()
            .receive_buffer_bytes(256)
            .maximum_receive_buffers(64)
            .receive_window_bytes(2048)
            .build()
            .unwrap();
        let (stream, mut peer) = associated(&port);
        SockRef::from(&peer).set_tcp_nodelay(true).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        let writer = thread::spawn(move || {
            for _ in 0..1_000 {
                peer.write_all(&[1; 256]).unwrap();
            }
        });
        let mut got = 0;
        while got < 256_000 {
            let completion = dequeue_within(&port, KIND);
            assert!(completion.more(), "{completion:?}");
            got += completion.bytes();
        }
        writer.join().unwrap();
        check_last(dequeue_within(&port, KIND), None);
    }
}
