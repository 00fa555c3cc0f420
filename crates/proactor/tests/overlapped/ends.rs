//! What becomes of routines that have not run when their queue goes (rule 88).

use std::cell::RefCell;
use std::io::Read;
use std::thread;
use std::time::Duration;

use proactor::overlapped::{ApcQueue, Routine, StreamSocket, Wake};
use proactor::{ErrorKind, Operation};

use crate::common::{DropCount, refused, tcp_pair};
use crate::{Log, open};

on_each_backend! {
    fn rule_88_routines_that_have_not_run_go_with_the_queue(ports: &Ports) {
        let dropped = DropCount::default();
        let queue = open(ports);
        let (stream, mut peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        let routine = {
            // It owns its source: only the queue can end that.
            let (stream, token) = (stream.clone(), dropped.token());
            Routine::new(move |_| {
                let _ = (&stream, &token);
                panic!("it must not run");
            })
        };
        stream.recv(Operation::new(), Vec::with_capacity(16), &routine).unwrap();
        queue.start_timer(Duration::ZERO, Operation::new(), &routine).unwrap();
        let token = dropped.token();
        let handle = queue.handle();
        handle.queue(move |_| panic!("it must not run: {}", size_of_val(&token))).unwrap();
        drop((stream, routine));
        assert_eq!(dropped.get(), 0);
        drop(queue);
        assert_eq!(dropped.get(), 2);
        assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)), "the connection is closed");
        let error = handle.queue(|_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PortClosed);
    }

    fn rule_88_a_thread_that_ends_takes_its_operations_with_it(ports: &Ports) {
        let ports = *ports;
        let (stream, mut peer) = tcp_pair();
        let dropped = DropCount::default();
        let token = dropped.token();
        let thread = thread::spawn(move || {
            let queue = open(&ports);
            let stream = queue.open(stream).unwrap();
            let routine = Routine::new(move |_| panic!("not run: {}", size_of_val(&token)));
            stream.recv(Operation::new(), Vec::with_capacity(16), &routine).unwrap();
            queue.sleep(Some(Duration::ZERO)).unwrap()
        });
        assert_eq!(thread.join().unwrap(), Wake::TimedOut);
        assert_eq!(dropped.get(), 1);
        assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)), "the connection is closed");
    }

    fn rule_88_a_queue_may_live_in_a_thread_local(ports: &Ports) {
        thread_local! {
            static QUEUE: RefCell<Option<(ApcQueue, StreamSocket)>> = const { RefCell::new(None) };
        }
        let ports = *ports;
        let (stream, mut peer) = tcp_pair();
        let dropped = DropCount::default();
        let token = dropped.token();
        let thread = thread::spawn(move || {
            // In place before the library's own, and so dropped after them.
            QUEUE.with_borrow_mut(|slot| {
                let queue = open(&ports);
                let stream = queue.open(stream).unwrap();
                let routine = Routine::new(move |_| panic!("not run: {}", size_of_val(&token)));
                stream.recv(Operation::new(), Vec::with_capacity(16), &routine).unwrap();
                assert_eq!(queue.sleep(Some(Duration::ZERO)), Ok(Wake::TimedOut));
                *slot = Some((queue, stream));
            });
        });
        thread.join().unwrap();
        assert_eq!(dropped.get(), 1);
        assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)), "the connection is closed");
    }

    fn a_source_outlives_its_queue_and_refuses(ports: &Ports) {
        let queue = open(ports);
        let (stream, _peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        drop(queue);
        let routine = Log::default().routine();
        let operation = Operation::with_context(5_u8);
        let result = stream.recv(operation, Vec::with_capacity(16), &routine);
        assert_eq!(refused(result, ErrorKind::PortClosed).context::<u8>(), Some(&5));
    }
}
