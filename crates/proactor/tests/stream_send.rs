//! Sending on a stream (rules 17, 67 to 73, 90).

mod common;

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::worker::Worker;
use common::*;
use proactor::{CompletionPort, ErrorKind, Operation, OperationKind, SendBuffer, StreamSocket};
use socket2::{Domain, Socket, Type};

/// A stream that is associated with `port` under key 1, and its peer.
fn associated(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let (stream, peer) = tcp_pair();
    (port.associate(stream, 1).unwrap(), peer)
}

/// The same, with kernel buffers of a few KiB: a send of `TOO_MUCH` has to wait for the peer.
fn associated_with_small_buffers(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let (stream, peer) = tcp_pair();
    shrink_buffers(&stream);
    shrink_buffers(&peer);
    (port.associate(stream, 1).unwrap(), peer)
}

/// Far more than two sockets with small buffers hold.
const TOO_MUCH: usize = 1024 * 1024;

on_each_backend! {
    /// Rule 67: a send has one packet, with the whole length, however long the peer takes.
    fn rule_67_a_send_comes_back_whole(ports: &Ports) {
        const LENGTH: usize = 8 * 1024 * 1024;
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        let expected = pattern(1, LENGTH);
        stream.send(Operation::new(), expected.clone()).unwrap();
        assert_quiet(&port);
        let reader = thread::spawn(move || read_bytes(&mut peer, LENGTH));
        let (bytes, _) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, LENGTH);
        assert_same_bytes(&reader.join().unwrap(), &expected);
        assert_quiet(&port);
    }

    /// Rule 67: a gathered send is one send: all buffers, in order, one packet.
    fn rule_67_a_gathered_send_comes_back_whole(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        // Lengths on both sides of what the system takes at once, some of them empty.
        let lengths = [1, 0, 70_000, 5, 0, 300_000, 16_384, 1, 0];
        let buffers: Vec<SendBuffer> = lengths
            .iter()
            .enumerate()
            .map(|(seed, &length)| pattern(seed as u64 + 10, length).into())
            .collect();
        let expected: Vec<u8> = buffers.iter().flat_map(|b| b.as_slice().to_vec()).collect();
        stream.send_vectored(Operation::new(), buffers).unwrap();
        let total = expected.len();
        let reader = thread::spawn(move || read_bytes(&mut peer, total));
        let (bytes, mut operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, total);
        assert_same_bytes(&reader.join().unwrap(), &expected);
        let buffers = operation.take_send_buffers().unwrap();
        assert_eq!(buffers.iter().map(SendBuffer::len).collect::<Vec<_>>(), lengths);
    }

    /// Rule 67: more buffers than the system takes in one call.
    fn rule_67_thousands_of_buffers_are_one_send(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let expected = pattern(2, 5_000);
        let buffers = expected.chunks(1).map(|byte| byte.to_vec().into()).collect();
        stream.send_vectored(Operation::new(), buffers).unwrap();
        let (bytes, _) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 5_000);
        assert_same_bytes(&read_bytes(&mut peer, 5_000), &expected);
    }

    /// No buffers are no send; buffers without bytes are one, of 0 bytes.
    fn rule_67_empty_sends(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let result = stream.send_vectored(Operation::with_context(1_u8), Vec::new());
        let operation = refused(result, ErrorKind::InvalidInput);
        assert_eq!(operation.context::<u8>(), Some(&1));
        stream.send(operation, "").unwrap();
        let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 0);
        stream.send_vectored(operation, vec!["".into(), Vec::new().into()]).unwrap();
        let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 0);
        stream.send(operation, "x").unwrap();
        dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 1), b"x");
    }

    /// Every kind of buffer is sent, and comes back.
    fn rule_140_every_kind_of_buffer_comes_back(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let owned = b"owned".to_vec();
        let owned_address = owned.as_ptr();
        let shared = Bytes::from(b"shared".to_vec());
        let array: Arc<[u8]> = Arc::from(&b"array"[..]);
        let buffers: Vec<SendBuffer> = vec![
            "static".into(),
            b"bytes".into(),
            b"slice"[..].into(),
            owned.into(),
            String::from("string").into(),
            shared.clone().into(),
            array.into(),
        ];
        let expected: Vec<u8> = buffers.iter().flat_map(|b| b.as_slice().to_vec()).collect();
        let mut operation = Operation::new();
        let mut count = 0;
        for buffer in buffers {
            let length = buffer.len();
            stream.send(operation, buffer).unwrap();
            let bytes;
            (bytes, operation) = dequeue_success(&port, OperationKind::Send);
            assert_eq!(bytes, length);
            let buffer = operation.take_send_buffer().expect("the buffer comes back");
            assert_eq!(buffer.len(), length);
            if let SendBuffer::Owned(bytes) = buffer && bytes == b"owned" {
                assert_eq!(bytes.as_ptr(), owned_address, "the bytes were copied");
            }
            count += length;
        }
        assert_eq!(read_bytes(&mut peer, count), expected);
    }

    /// A buffer that a continuous receive delivered is sent on as it is.
    fn a_received_buffer_can_be_sent_on(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        let mut operation = Operation::new();
        for round in 0..50 {
            let message = pattern(round, 1 + round as usize * 7);
            peer.write_all(&message).unwrap();
            let mut got = 0;
            while got < message.len() {
                let mut completion = dequeue_within(&port, OperationKind::RecvContinuous);
                let chunk = completion.take_chunk().unwrap();
                got += chunk.len();
                stream.send(operation, chunk).unwrap();
                (_, operation) = dequeue_success(&port, OperationKind::Send);
                assert!(matches!(operation.take_send_buffer(), Some(SendBuffer::Pool(_))));
            }
            assert_same_bytes(&read_bytes(&mut peer, message.len()), &message);
        }
    }

    /// Rule 69: sends go out in the order of the calls, also behind one that waits for room.
    fn rule_69_sends_keep_the_order_of_the_calls(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        let lengths = [10, TOO_MUCH, 3, 0, 50_000, 1, TOO_MUCH, 2];
        let mut expected = Vec::new();
        for (number, &length) in lengths.iter().enumerate() {
            let message = pattern(number as u64 + 20, length);
            expected.extend_from_slice(&message);
            stream.send(Operation::with_context(number), message).unwrap();
        }
        let total = expected.len();
        let reader = thread::spawn(move || read_bytes(&mut peer, total));
        for (number, &length) in lengths.iter().enumerate() {
            let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
            assert_eq!((operation.context::<usize>(), bytes), (Some(&number), length));
        }
        assert_same_bytes(&reader.join().unwrap(), &expected);
        assert_quiet(&port);
    }

    /// Rule 69: thousands of small sends at once.
    fn rule_69_thousands_of_sends_in_flight(ports: &Ports) {
        const COUNT: usize = 5_000;
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let expected: Vec<u8> = (0..COUNT).flat_map(|n| pattern(n as u64, 1 + n % 90)).collect();
        let total = expected.len();
        let reader = thread::spawn(move || read_bytes(&mut peer, total));
        for number in 0..COUNT {
            let message = pattern(number as u64, 1 + number % 90);
            stream.send(Operation::with_context(number), message).unwrap();
        }
        for number in 0..COUNT {
            let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
            assert_eq!((operation.context::<usize>(), bytes), (Some(&number), 1 + number % 90));
        }
        assert_same_bytes(&reader.join().unwrap(), &expected);
    }

    /// Rule 70: after a shutdown of the sending side, sends are refused; what was sent before
    /// still goes out, and the end of the stream behind it.
    fn rule_70_a_send_after_shutdown_is_refused(ports: &Ports) {
        for how in [Shutdown::Write, Shutdown::Both] {
            let port = ports.open(1);
            let (stream, mut peer) = associated_with_small_buffers(&port);
            let expected = pattern(3, TOO_MUCH);
            stream.send(Operation::new(), expected.clone()).unwrap();
            stream.shutdown(how).unwrap();
            let result = stream.send(Operation::with_context(1_u8), "late");
            let mut operation = refused(result, ErrorKind::ShutDown);
            assert_eq!(operation.context::<u8>(), Some(&1));
            assert_eq!(operation.take_send_buffer().unwrap().as_slice(), b"late");
            let result = stream.send_vectored(operation, vec!["late".into()]);
            refused(result, ErrorKind::ShutDown);
            let reader = thread::spawn(move || read_to_end(&mut peer));
            let (bytes, _) = dequeue_success(&port, OperationKind::Send);
            assert_eq!(bytes, TOO_MUCH);
            let (got, error) = reader.join().unwrap();
            assert_eq!(error, None);
            assert_same_bytes(&got, &expected);
        }
    }

    /// Rule 71: the peer's reset fails a send that waits, and those behind it.
    fn rule_71_a_reset_fails_every_pending_send(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated_with_small_buffers(&port);
        for _ in 0..3 {
            stream.send(Operation::new(), vec![1; TOO_MUCH]).unwrap();
        }
        assert_quiet(&port);
        reset(peer);
        for number in 0..3 {
            let (bytes, mut operation) =
                dequeue_failure(&port, OperationKind::Send, ErrorKind::ConnectionReset);
            assert!(bytes < TOO_MUCH && (number == 0 || bytes == 0));
            assert_eq!(operation.take_send_buffer().unwrap().len(), TOO_MUCH);
        }
        assert_quiet(&port);
    }

    /// Rule 71: once a reset was reported, to a send or to a receive, sends are refused.
    fn rule_71_a_send_after_the_reset_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        reset(peer);
        dequeue_failure(&port, OperationKind::Recv, ErrorKind::ConnectionReset);
        for _ in 0..3 {
            refused(stream.send(Operation::new(), "x"), ErrorKind::ConnectionReset);
        }

        let (stream, peer) = associated_with_small_buffers(&port);
        stream.send(Operation::new(), vec![1; TOO_MUCH]).unwrap();
        assert_quiet(&port);
        reset(peer);
        dequeue_failure(&port, OperationKind::Send, ErrorKind::ConnectionReset);
        for _ in 0..3 {
            refused(stream.send(Operation::new(), "x"), ErrorKind::ConnectionReset);
        }
        assert_quiet(&port);
    }

    /// Rule 71: a peer that has closed answers with a reset; sends end in it, with no signal and
    /// no other error.
    fn rule_71_sends_to_a_closed_peer_end_in_a_reset(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        drop(peer);
        let mut operation = Operation::new();
        let failure = loop {
            match stream.send(operation, "anybody there?") {
                Err(rejected) => break rejected.error(),
                Ok(_) => {
                    let completion = dequeue_within(&port, OperationKind::Send);
                    if let Some(error) = completion.error() {
                        break error;
                    }
                    operation = completion.into_operation().unwrap();
                }
            }
        };
        assert_eq!(failure.kind(), ErrorKind::ConnectionReset);
        assert_eq!(failure.operation(), OperationKind::Send);
    }

    /// Rule 73: a send on a socket that is not connected is refused.
    fn rule_73_a_send_without_connection_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let stream = port.associate(socket, 1).unwrap();
        refused(stream.send(Operation::new(), "x"), ErrorKind::NotConnected);
        let result = stream.send_vectored(Operation::new(), vec!["x".into()]);
        refused(result, ErrorKind::NotConnected);
        assert_quiet(&port);
    }

    /// Rules 17 and 78: a send that is cancelled half way says how much of it went out, and that
    /// is what the peer gets.
    fn rule_17_a_cancelled_send_says_how_much_went_out(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        let expected = pattern(4, TOO_MUCH);
        let id = stream.send(Operation::new(), expected.clone()).unwrap();
        assert_quiet(&port);
        assert!(stream.cancel(id));
        let (bytes, mut operation) =
            dequeue_failure(&port, OperationKind::Send, ErrorKind::Cancelled);
        assert!(bytes > 0 && bytes < TOO_MUCH, "{bytes}");
        assert_eq!(operation.take_send_buffer().unwrap().len(), TOO_MUCH);
        drop(stream);
        let (got, _) = read_to_end(&mut peer);
        assert_same_bytes(&got, &expected[..bytes]);
    }

    /// Rule 78: a send that is cancelled in the queue sends nothing, and the others keep order.
    fn rule_78_a_send_cancelled_in_the_queue_sends_nothing(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        let first = pattern(5, TOO_MUCH);
        stream.send(Operation::with_context(1_u8), first.clone()).unwrap();
        let queued = stream.send(Operation::with_context(2_u8), pattern(6, 1000)).unwrap();
        stream.send(Operation::with_context(3_u8), "third").unwrap();
        assert_quiet(&port);
        assert!(stream.cancel(queued));
        let (bytes, operation) =
            dequeue_failure(&port, OperationKind::Send, ErrorKind::Cancelled);
        assert_eq!((bytes, operation.context::<u8>()), (0, Some(&2)));
        let reader = thread::spawn(move || read_bytes(&mut peer, TOO_MUCH + 5));
        for (context, length) in [(1_u8, TOO_MUCH), (3, 5)] {
            let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
            assert_eq!((operation.context::<u8>(), bytes), (Some(&context), length));
        }
        let got = reader.join().unwrap();
        assert_same_bytes(&got[..TOO_MUCH], &first);
        assert_eq!(&got[TOO_MUCH..], b"third");
    }

    /// Rules 17, 75 and 90: when the socket is closed under its sends, each has its packet, and
    /// together they say what the peer gets.
    fn rule_90_sends_pending_at_close_say_what_went_out(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        let messages = [pattern(7, 100), pattern(8, TOO_MUCH), pattern(9, 100)];
        for message in &messages {
            stream.send(Operation::new(), message.clone()).unwrap();
        }
        let (first, _) = dequeue_success(&port, OperationKind::Send);
        assert_quiet(&port);
        drop(stream);
        let mut sent = first;
        for _ in 0..2 {
            let (bytes, _) =
                dequeue_failure(&port, OperationKind::Send, ErrorKind::ConnectionAborted);
            sent += bytes;
        }
        let (got, _) = read_to_end(&mut peer);
        assert_same_bytes(&got, &messages.concat()[..sent]);
        assert_quiet(&port);
    }

    /// A response that is sent just before the handle is dropped: its packet tells the truth about
    /// what the peer gets.
    fn rule_74_a_send_just_before_the_close_tells_the_truth(ports: &Ports) {
        let port = ports.open(1);
        for _ in 0..50 {
            let (stream, mut peer) = associated(&port);
            stream.send(Operation::new(), "response").unwrap();
            drop(stream);
            let completion = dequeue_within(&port, OperationKind::Send);
            let (got, _) = read_to_end(&mut peer);
            match completion.result() {
                Ok(bytes) => assert_eq!((bytes, &got[..]), (8, &b"response"[..])),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
                    assert_eq!(completion.bytes(), got.len());
                }
            }
        }
    }

    /// Rules 78, 79 and 83: a cancel that comes while sends are being submitted, on another thread,
    /// ends them all: nobody waits for a peer that never reads.
    fn rule_79_a_cancel_meets_sends_that_are_being_submitted(ports: &Ports) {
        sends_are_ended_meanwhile(ports, |stream| {
            stream.as_ref().expect("it is open").cancel_all();
        });
    }

    /// Rules 74 and 83: so does a close; and the peer sees the end.
    fn rule_74_a_close_meets_sends_that_are_being_submitted(ports: &Ports) {
        sends_are_ended_meanwhile(ports, |stream| drop(stream.take()));
    }

    /// Both directions at once, more than fits anywhere: neither waits for the other.
    fn both_directions_flow_at_once(ports: &Ports) {
        const LENGTH: usize = 4 * 1024 * 1024;
        let port = ports.open(1);
        let (near, far) = tcp_pair();
        shrink_buffers(&near);
        shrink_buffers(&far);
        let streams = [port.associate(near, 0).unwrap(), port.associate(far, 1).unwrap()];
        for (seed, stream) in streams.iter().enumerate() {
            stream.send(Operation::new(), pattern(seed as u64, LENGTH)).unwrap();
            stream.recv(Operation::new(), Vec::with_capacity(30_000)).unwrap();
        }
        let mut got = [Vec::new(), Vec::new()];
        let mut sent = 0;
        while sent < 2 || got.iter().any(|bytes| bytes.len() < LENGTH) {
            let completion = dequeue(&port);
            assert_eq!(completion.error(), None);
            let key = completion.key();
            match completion.kind() {
                OperationKind::Send => {
                    assert_eq!(completion.bytes(), LENGTH);
                    sent += 1;
                }
                _ => {
                    let mut operation = completion.into_operation().unwrap();
                    let buffer = operation.take_buffer().unwrap();
                    got[key].extend_from_slice(&buffer);
                    if got[key].len() < LENGTH {
                        streams[key].recv(operation, buffer).unwrap();
                    }
                }
            }
        }
        assert_same_bytes(&got[0], &pattern(1, LENGTH));
        assert_same_bytes(&got[1], &pattern(0, LENGTH));
    }

    /// Unix streams send the same way: whole, in order, and a closed peer is a reset.
    #[cfg(unix)]
    fn sends_on_a_unix_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = unix_pair();
        let stream = port.associate(stream, 1).unwrap();
        let expected = pattern(11, TOO_MUCH * 2);
        let (front, back) = expected.split_at(TOO_MUCH + 5);
        stream.send(Operation::new(), front.to_vec()).unwrap();
        stream.send(Operation::new(), back.to_vec()).unwrap();
        let reader = thread::spawn(move || read_bytes(&mut peer, TOO_MUCH * 2));
        assert_eq!(dequeue_success(&port, OperationKind::Send).0, front.len());
        assert_eq!(dequeue_success(&port, OperationKind::Send).0, back.len());
        assert_same_bytes(&reader.join().unwrap(), &expected);
        // The reader's end is closed now.
        match stream.send(Operation::new(), "x") {
            Err(rejected) => assert_eq!(rejected.error().kind(), ErrorKind::ConnectionReset),
            Ok(_) => {
                dequeue_failure(&port, OperationKind::Send, ErrorKind::ConnectionReset);
            }
        }
    }

    /// IPv6.
    fn sends_on_ipv6(ports: &Ports) {
        let port = ports.open(1);
        let Some((stream, mut peer)) = tcp_pair_v6() else { return };
        let stream = port.associate(stream, 1).unwrap();
        stream.send(Operation::new(), "six").unwrap();
        dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 3), b"six");
    }

    /// Rule 68: success means that the system has the bytes, not that the peer took them.
    fn rule_68_success_does_not_wait_for_the_peer(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        stream.send(Operation::new(), "small").unwrap();
        let (bytes, _) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 5, "nobody has read");
        peer.set_nonblocking(true).unwrap();
        let mut buffer = [0; 8];
        wait_until("the bytes to arrive", || match (&peer).read(&mut buffer) {
            Ok(count) => count == 5,
            Err(error) => {
                assert_eq!(error.kind(), IoErrorKind::WouldBlock);
                false
            }
        });
        (&peer).write_all(b"done").unwrap();
    }
}

/// A worker starts sends to a peer that reads nothing, and serves the port, while this thread ends
/// them by `end`: each has its packet then.
fn sends_are_ended_meanwhile(ports: &Ports, end: fn(&mut Option<StreamSocket>)) {
    const SENDS: usize = 60;
    let port = ports.shared(2);
    let worker = Worker::spawn();
    let mut random = Random::new(5);
    for round in 0..250 {
        let (near, peer) = tcp_pair();
        shrink_buffers(&near);
        shrink_buffers(&peer);
        let for_port = Arc::clone(&port);
        // The worker is the one that serves the stream, so what it starts is submitted by it.
        let mut stream = Some(worker.run(move || {
            assert!(for_port.dequeue(Some(Duration::ZERO)).is_err(), "a packet too many");
            for_port.associate(near, round).unwrap()
        }));
        let (for_port, clone) = (Arc::clone(&port), stream.clone().unwrap());
        let (tell_started, started) = mpsc::channel();
        let lengths: Vec<usize> = (0..SENDS).map(|_| 1 + random.below(4_000) as usize).collect();
        let packets = worker.start(move || {
            for length in lengths {
                clone.send(Operation::new(), vec![7; length]).unwrap();
            }
            drop(clone);
            tell_started.send(()).unwrap();
            (0..SENDS).filter(|_| dequeue(&for_port).error().is_some()).count()
        });
        started.recv_timeout(HANG).expect("the sends are started");
        for _ in 0..random.below(3_000) {
            std::hint::spin_loop();
        }
        end(&mut stream);
        packets.wait();
        drop(stream);
        drop(peer);
    }
    port.close();
}
