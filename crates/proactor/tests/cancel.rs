//! Cancelling (rules 78 to 83).

mod common;

use std::io::{Read, Write};
use std::sync::Arc;

use common::worker::Worker;
use common::*;
use proactor::{ErrorKind, Operation, OperationId, OperationKind, StreamSocket};

const RECV: OperationKind = OperationKind::Recv;

fn recv(stream: &StreamSocket) -> OperationId {
    stream.recv(Operation::new(), Vec::with_capacity(8)).expect("accepted")
}

on_each_backend! {
    /// Rule 78: the one operation that is named ends as cancelled; the others stay, in order.
    fn rule_78_one_operation_is_cancelled(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let ids = [recv(&stream), recv(&stream), recv(&stream)];
        assert!(stream.cancel(ids[1]));
        let (bytes, operation) = dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        assert_eq!((bytes, operation.id()), (0, ids[1]));
        assert_quiet(&port);
        peer.write_all(&pattern(1, 16)).unwrap();
        for id in [ids[0], ids[2]] {
            let (bytes, operation) = dequeue_success(&port, RECV);
            assert_eq!((bytes, operation.id()), (8, id));
        }
    }

    /// Rule 78: the same where the operation has waited in the kernel for a while.
    fn rule_78_an_operation_that_waits_in_the_kernel_is_cancelled(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        for _ in 0..20 {
            let id = recv(&stream);
            assert_eq!(port.dequeue(Some(std::time::Duration::ZERO)).ok().map(|c| c.key()), None);
            assert!(stream.cancel(id));
            let (_, operation) = dequeue_failure(&port, RECV, ErrorKind::Cancelled);
            assert_eq!(operation.id(), id);
        }
        assert_quiet(&port);
        recv(&stream);
        peer.write_all(b"intact").unwrap();
        assert_eq!(dequeue_success(&port, RECV).1.buffer(), b"intact");
    }

    /// Rule 78: another thread than the one that started the operation, or that waits for it, can
    /// cancel; the one that waits gets the packet.
    fn rule_78_any_thread_can_cancel(ports: &Ports) {
        let port = ports.shared(1);
        let (stream, _peer) = associated(&port);
        let stream = Arc::new(stream);
        let (waiter, starter) = (Worker::spawn(), Worker::spawn());
        for _ in 0..5 {
            let answer = waiter.park({
                let port = Arc::clone(&port);
                move || port.dequeue(None).map(|c| c.error().map(|error| error.kind()))
            });
            let for_starter = Arc::clone(&stream);
            let id = starter.run(move || recv(&for_starter));
            assert!(stream.cancel(id));
            assert_eq!(answer.wait(), Ok(Some(ErrorKind::Cancelled)));
        }
        port.close();
    }

    /// Rule 79: all of a source's operations are cancelled, of every kind, whoever started them;
    /// and no others.
    fn rule_79_all_operations_of_a_source_are_cancelled(ports: &Ports) {
        let port = ports.open(1);
        let (near, peer) = tcp_pair();
        shrink_buffers(&near);
        shrink_buffers(&peer);
        let stream = Arc::new(port.associate(near, 1).unwrap());
        let (other, mut other_peer) = associated(&port);
        let starter = Worker::spawn();
        let other_id = recv(&other);
        let mut expected = vec![recv(&stream), recv(&stream)];
        let for_starter = Arc::clone(&stream);
        expected.push(starter.run(move || recv(&for_starter)));
        for _ in 0..2 {
            expected.push(stream.send(Operation::new(), vec![0; 1024 * 1024]).unwrap());
        }
        assert_quiet(&port);
        assert_eq!(stream.cancel_all(), 5);
        let mut cancelled = Vec::new();
        for completion in dequeue_all(&port, 5) {
            assert_eq!(completion.error().unwrap().kind(), ErrorKind::Cancelled);
            cancelled.push(completion.operation_id().unwrap());
        }
        for id in expected {
            assert!(cancelled.contains(&id));
        }
        assert_eq!(stream.cancel_all(), 0);
        assert_quiet(&port);
        other_peer.write_all(b"x").unwrap();
        assert_eq!(dequeue_success(&port, RECV).1.id(), other_id);
    }

    /// Rule 80: nothing to cancel: an operation that ended, whether or not its packet was dequeued;
    /// one that was cancelled before; one of another source; none at all.
    fn rule_80_there_is_nothing_to_cancel(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let (other, _other_peer) = associated(&port);
        assert_eq!(stream.cancel_all(), 0);
        assert!(!stream.cancel(Operation::new().id()));

        let foreign = recv(&other);
        assert!(!stream.cancel(foreign), "another source's operation");
        assert_quiet(&port);

        let cancelled = recv(&stream);
        assert!(stream.cancel(cancelled));
        assert!(!stream.cancel(cancelled), "its packet is queued");
        assert_eq!(stream.cancel_all(), 0, "its packet is queued");
        dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        assert!(!stream.cancel(cancelled), "its packet was dequeued");

        let done = recv(&stream);
        peer.write_all(b"x").unwrap();
        let (_, operation) = dequeue_success(&port, RECV);
        assert!(!stream.cancel(done));

        // A restarted operation is another one: a late cancel of the first start misses it.
        let again = stream.recv(operation, Vec::with_capacity(8)).unwrap();
        assert!(!stream.cancel(done));
        assert!(stream.cancel(again));
        dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        assert_quiet(&port);
    }

    /// Rules 83 and 139: a cancelled operation comes back with its buffer and its context.
    fn rule_83_a_cancelled_operation_comes_back_whole(ports: &Ports) {
        let port = ports.open(1);
        let (stream, _peer) = associated(&port);
        let buffer = Vec::with_capacity(100);
        let (address, capacity) = (buffer.as_ptr() as usize, buffer.capacity());
        let id = stream.recv(Operation::with_context("mine"), buffer).unwrap();
        assert_quiet(&port);
        assert!(stream.cancel(id));
        let (_, mut operation) = dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        let buffer = operation.take_buffer().unwrap();
        assert_eq!((buffer.as_ptr() as usize, buffer.capacity()), (address, capacity));
        assert!(buffer.is_empty());
        assert_eq!(operation.context::<&str>(), Some(&"mine"));

        let buffers = vec![Vec::with_capacity(3), Vec::with_capacity(5)];
        let id = stream.recv_vectored(operation, buffers).unwrap();
        assert!(stream.cancel(id));
        let (_, mut operation) = dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        assert_eq!(operation.take_buffers().unwrap().len(), 2);
    }

    /// Rule 78: bytes that come while a receive is being cancelled are in its packet, or in the
    /// next receive's; never nowhere.
    fn rule_78_a_cancel_never_loses_bytes(ports: &Ports) {
        const ROUNDS: usize = 500;
        let port = ports.open(2);
        let (stream, mut peer) = associated(&port);
        let stream = Arc::new(stream);
        let canceller = Worker::spawn();
        let expected = pattern(2, ROUNDS);
        let mut random = Random::new(7);
        let mut got = Vec::new();
        let mut operation = Operation::new();
        let mut buffer = Vec::with_capacity(8);
        for &byte in &expected {
            let id = stream.recv(operation, buffer).unwrap();
            let for_canceller = Arc::clone(&stream);
            let spin = random.below(300);
            let cancelled = canceller.start(move || {
                for _ in 0..spin {
                    std::hint::spin_loop();
                }
                for_canceller.cancel(id)
            });
            peer.write_all(&[byte]).unwrap();
            let completion = dequeue_within(&port, RECV);
            let failed = completion.error();
            operation = completion.into_operation().unwrap();
            buffer = operation.take_buffer().unwrap();
            got.extend_from_slice(&buffer);
            if let Some(error) = failed {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                assert!(buffer.is_empty(), "a cancelled receive that took bytes");
                stream.recv(operation, buffer).unwrap();
                (_, operation) = dequeue_success(&port, RECV);
                buffer = operation.take_buffer().unwrap();
                got.extend_from_slice(&buffer);
            }
            cancelled.wait();
        }
        assert_same_bytes(&got, &expected);
        assert_quiet(&port);
    }

    /// Rule 80: a cancel that says there was something leads to exactly one packet; one that says
    /// there was nothing does not change the operation's packet.
    fn rule_80_the_answer_of_a_cancel_is_true(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let mut random = Random::new(9);
        for _ in 0..200 {
            let id = recv(&stream);
            let data = random.below(2) == 0;
            if data {
                peer.write_all(b"x").unwrap();
            }
            let accepted = stream.cancel(id);
            assert!(accepted || data, "it was pending for sure");
            let completion = dequeue_within(&port, RECV);
            assert_eq!(completion.operation_id(), Some(id));
            if !accepted {
                assert_eq!(completion.error(), None, "it said that there was nothing to cancel");
            }
            if data && completion.error().is_some() {
                recv(&stream);
                assert_eq!(dequeue_success(&port, RECV).0, 1);
            }
        }
        assert_quiet(&port);
    }

    /// Rules 17 and 78: a large send is cancelled also at the moment at which it goes on, because the
    /// peer has read some of it.
    fn rule_78_a_cancel_meets_a_send_that_goes_on(ports: &Ports) {
        const READ_BYTES: usize = 32 * 1024;
        let port = ports.open(1);
        let reader = Worker::spawn();
        let mut random = Random::new(3);
        for _ in 0..150 {
            let (stream, mut peer) = associated_with_small_buffers(&port);
            let id = stream.send(Operation::new(), vec![7; TOO_MUCH]).unwrap();
            let reading = reader.start(move || {
                // Less may come, where the cancel is early: then to the end.
                let _ = peer.read_exact(&mut [0; READ_BYTES]);
                peer
            });
            for _ in 0..random.below(30_000) {
                std::hint::spin_loop();
            }
            assert!(stream.cancel(id), "more is left of it than the peer reads");
            let (bytes, operation) =
                dequeue_failure(&port, OperationKind::Send, ErrorKind::Cancelled);
            assert_eq!(operation.id(), id);
            assert!(bytes < TOO_MUCH);
            drop(stream);
            reading.wait();
        }
    }

    /// Rule 82: cancelling an accepted connection's operations does not touch the listener's.
    fn rule_82_an_accepted_socket_does_not_cancel_the_listeners_accepts(ports: &Ports) {
        let port = ports.open(1);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = port.associate(listener, 1).unwrap();
        listener.accept(Operation::new()).unwrap();
        let _first = connect(address);
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        let stream = port.associate(operation.take_accepted().unwrap(), 2).unwrap();
        listener.accept(operation).unwrap();
        recv(&stream);
        assert_eq!(stream.cancel_all(), 1);
        dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        assert_quiet(&port);
        let _second = connect(address);
        dequeue_success(&port, OperationKind::Accept);
    }

    /// Rules 44 and 79: cancelling thousands at once gives a packet for each.
    fn rule_79_thousands_of_operations_are_cancelled(ports: &Ports) {
        const SOCKETS: usize = 50;
        const EACH: usize = 40;
        let port = ports.open(1);
        let pairs: Vec<_> = (0..SOCKETS).map(|_| associated(&port)).collect();
        for (stream, _) in &pairs {
            for _ in 0..EACH {
                recv(stream);
            }
        }
        assert_quiet(&port);
        for (stream, _) in &pairs {
            assert_eq!(stream.cancel_all(), EACH);
        }
        for _ in 0..SOCKETS * EACH {
            dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        }
        assert_quiet(&port);
    }
}
