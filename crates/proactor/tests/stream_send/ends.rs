//! Sends that fail or are ended: shutdown, reset, cancel, close (rules 17, 70 to 74, 78, 79, 90).

use std::net::Shutdown;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use proactor::{ErrorKind, Operation, OperationKind, StreamSocket};
use socket2::{Domain, Socket, Type};

use crate::common::worker::Worker;
use crate::common::*;

on_each_backend! {
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
