//! Posts, and the one queue of all packets (rules 32 to 35).

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proactor::{DequeueError, Operation, OperationKind};

use crate::common::*;

on_each_backend! {
    /// Rule 32: what is posted comes back as it is.
    fn rule_32_a_post_comes_back_verbatim(ports: &Ports) {
        let port = ports.open(1);
        for (key, bytes) in [(0, 0), (usize::MAX, usize::MAX), (3, 0xffff_ffff), (1 << 63, 1)] {
            port.post(key, bytes, None).unwrap();
            let completion = dequeue_within(&port, OperationKind::Post);
            assert_eq!((completion.key(), completion.result()), (key, Ok(bytes)));
            assert_eq!(completion.operation_id(), None);
            assert!(completion.into_operation().is_none());
        }
        port.post(1, 2, Some(Operation::with_context(vec![1, 2, 3]))).unwrap();
        let completion = dequeue_within(&port, OperationKind::Post);
        let operation = completion.into_operation().unwrap();
        assert_eq!(operation.context::<Vec<i32>>().unwrap(), &[1, 2, 3]);
        assert_eq!(operation.kind(), OperationKind::Idle, "a post is no start");
    }

    /// Rule 32: posting a finished operation on leaves its buffer in it.
    fn rule_32_a_posted_operation_keeps_its_payload(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        peer.write_all(b"payload").unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Recv);
        let id = operation.id();
        port.post(2, 7, Some(operation)).unwrap();
        let completion = dequeue_within(&port, OperationKind::Post);
        assert_eq!(completion.operation_id(), Some(id));
        assert_eq!(completion.into_operation().unwrap().take_buffer().unwrap(), b"payload");
    }

    /// Rule 32: a program can post from inside a handler, and what it posts comes after what is
    /// queued.
    fn rule_32_a_handler_can_post(ports: &Ports) {
        let port = ports.open(1);
        port.post(1, 0, None).unwrap();
        port.post(2, 0, None).unwrap();
        let first = dequeue(&port);
        port.post(first.key() + 10, 0, None).unwrap();
        let rest = dequeue_all(&port, 2);
        assert_eq!(rest.iter().map(|c| c.key()).collect::<Vec<_>>(), [2, 11]);
    }

    /// Rules 33 and 35: one queue, first in first out.
    fn rule_35_packets_are_dequeued_in_the_order_queued(ports: &Ports) {
        let port = ports.open(1);
        for key in 0..1_000 {
            port.post(key, 0, None).unwrap();
        }
        for key in 0..1_000 {
            assert_eq!(dequeue(&port).key(), key);
        }
        assert_eq!(port.counters().dequeued_packets, 1_000);
    }

    /// Rule 35: posts of several threads keep each thread's order.
    fn rule_35_posts_of_several_threads_keep_each_threads_order(ports: &Ports) {
        const EACH: usize = 2_000;
        let port = ports.open(1);
        thread::scope(|scope| {
            for poster in 0..3 {
                let port = &port;
                scope.spawn(move || {
                    for number in 0..EACH {
                        port.post(poster, number, None).unwrap();
                    }
                });
            }
            let mut next = [0; 3];
            for _ in 0..3 * EACH {
                let completion = dequeue(&port);
                assert_eq!(completion.bytes(), next[completion.key()]);
                next[completion.key()] += 1;
            }
        });
        assert_quiet(&port);
    }

    /// Rule 33: what a thread's I/O has finished before it posts is queued before.
    fn rule_33_io_that_finished_before_a_post_comes_before_it(ports: &Ports) {
        skip_under_wine!(33, "its server finishes I/O later than it happens");
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        for _ in 0..20 {
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
            assert_eq!(port.dequeue(Some(Duration::ZERO)).unwrap_err(), DequeueError::TimedOut);
            peer.write_all(b"x").unwrap();
            port.post(2, 0, None).unwrap();
            dequeue_within(&port, OperationKind::Recv);
            dequeue_within(&port, OperationKind::Post);
        }
    }

    /// Rule 33: packets of I/O and posts share one queue, so a program that keeps it full of posts
    /// still gets its I/O.
    fn rule_33_posts_do_not_hold_up_io(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        port.post(2, 0, None).unwrap();
        port.post(2, 0, None).unwrap();
        peer.write_all(b"x").unwrap();
        let deadline = Instant::now() + HANG;
        loop {
            let completion = dequeue(&port);
            if completion.kind() == OperationKind::Recv {
                break;
            }
            port.post(2, 0, None).unwrap();
            assert!(Instant::now() < deadline, "posts starve the receive");
        }
    }

    /// Rule 33: nor does I/O that never ends hold up a post.
    fn rule_33_io_does_not_hold_up_posts(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flood = {
            let (mut peer, stop) = (peer.try_clone().unwrap(), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if peer.write_all(&[7; 4096]).is_err() {
                        break;
                    }
                }
            })
        };
        stream.recv_continuous(Operation::new()).unwrap();
        for _ in 0..100 {
            dequeue_within(&port, OperationKind::RecvContinuous);
        }
        port.post(2, 0, None).unwrap();
        let deadline = Instant::now() + HANG;
        while dequeue(&port).kind() != OperationKind::Post {
            assert!(Instant::now() < deadline, "I/O starves the post");
        }
        stop.store(true, Ordering::Relaxed);
        drop(stream);
        drop(peer);
        drop(port);
        flood.join().unwrap();
    }
}
