//! How a continuous receive ends: with the stream, a reset, a cancel, a close (rules 57, 58, 75, 78, 84).

use std::io::Write;
use std::net::Shutdown;
use std::sync::{Arc, mpsc};
use std::thread;

use proactor::{ErrorKind, Operation, OperationKind};

use crate::common::*;
use crate::{KIND, check_last, chunk, take_bytes};

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

    /// What comes once a cancel is through stays in the kernel, so that its window closes and the
    /// peer has to wait; the next receive gets it.
    fn a_cancel_ends_the_reading(ports: &Ports) {
        for all in [false, true] {
            let port = ports.open(1);
            let (stream, mut peer) = tcp_pair();
            let look = stream.try_clone().unwrap();
            let stream = port.associate(stream, 1).unwrap();
            let id = stream.recv_continuous(Operation::new()).unwrap();
            peer.write_all(b"before").unwrap();
            assert_eq!(&*chunk(&port), b"before");
            match all {
                false => assert!(stream.cancel(id)),
                true => assert_eq!(stream.cancel_all(), 1),
            }
            let operation = check_last(dequeue_within(&port, KIND), Some(ErrorKind::Cancelled));
            // The thread goes to the kernel, and hears that it reads no more.
            assert_quiet(&port);
            peer.write_all(b"behind").unwrap();
            assert_quiet(&port);
            // `peek` waits for at most as long as the pair's reads do.
            let mut bytes = [0; 8];
            assert_eq!(look.peek(&mut bytes).unwrap(), 6, "it was read ahead");
            stream.recv_continuous(operation).unwrap();
            assert_eq!(&*chunk(&port), b"behind");
        }
    }

    /// The same where another thread cancels, while the one that serves the stream waits; and a
    /// receive that is started right behind the cancel gets its bytes.
    fn a_cancel_from_another_thread_ends_the_reading(ports: &Ports) {
        let port = ports.shared(1);
        let (stream, mut peer) = tcp_pair();
        let look = stream.try_clone().unwrap();
        let stream = port.associate(stream, 1).unwrap();
        let (packets, taken) = mpsc::channel();
        let serving = {
            let port = Arc::clone(&port);
            thread::spawn(move || {
                while let Ok(packet) = port.dequeue(None) {
                    packets.send(packet).unwrap();
                }
            })
        };
        let next = || taken.recv_timeout(HANG).unwrap();
        let mut operation = Operation::new();
        for round in 0..200 {
            let id = stream.recv_continuous(operation).unwrap();
            peer.write_all(b"before").unwrap();
            assert_eq!(&*next().take_chunk().unwrap(), b"before");
            assert!(stream.cancel(id));
            operation = check_last(next(), Some(ErrorKind::Cancelled));
            if round % 2 == 0 {
                let id = stream.recv_continuous(operation).unwrap();
                peer.write_all(b"behind").unwrap();
                assert_eq!(&*next().take_chunk().unwrap(), b"behind");
                assert!(stream.cancel(id));
                operation = check_last(next(), Some(ErrorKind::Cancelled));
            }
        }
        // Until the thread has turned to the kernel after a packet that was posted behind it all.
        let turn = || {
            let handled = || {
                port.post(0, 0, None).unwrap();
                assert_eq!(next().kind(), OperationKind::Post);
                port.counters().wait_calls
            };
            let before = handled();
            wait_until("the thread to turn to the kernel", || handled() > before);
        };
        turn();
        peer.write_all(b"behind").unwrap();
        turn();
        assert_eq!(look.peek(&mut [0; 8]).unwrap(), 6, "it was read ahead");
        port.close();
        serving.join().unwrap();
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
}
