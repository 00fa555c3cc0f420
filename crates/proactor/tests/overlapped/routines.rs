//! When routines run, what they are told, and in which order (rules 126, 128 to 132).

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use proactor::overlapped::{Completed, Routine, StreamSocket, Wake};
use proactor::{ErrorKind, Operation};

use crate::common::{DropCount, HANG, dead_address, tcp_pair};
use crate::{Log, assert_quiet, common, open, sleep_until};

on_each_backend! {
    fn rule_126_a_routine_runs_on_its_thread_in_an_alertable_wait(ports: &Ports) {
        let queue = open(ports);
        let (stream, mut peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        let ran_on = Rc::new(Cell::new(None));
        let routine = {
            let ran_on = Rc::clone(&ran_on);
            Routine::new(move |_| ran_on.set(Some(thread::current().id())))
        };
        stream.recv(Operation::new(), Vec::with_capacity(16), &routine).unwrap();
        peer.write_all(b"now").unwrap();
        // Neither a plain wait of this thread nor an alertable wait of another one runs it; that
        // one ends with a routine of its own.
        let ports = *ports;
        let elsewhere = thread::spawn(move || {
            let queue = open(&ports);
            queue.handle().queue(|_| {}).unwrap();
            queue.sleep(Some(HANG)).unwrap()
        });
        assert_eq!(elsewhere.join().unwrap(), Wake::Routines);
        assert_eq!(ran_on.get(), None);
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert_eq!(ran_on.get(), Some(thread::current().id()));
        assert_quiet(&queue);
    }

    fn rule_128_a_routine_never_runs_inside_the_start(ports: &Ports) {
        let queue = open(ports);
        let (stream, mut peer) = tcp_pair();
        peer.write_all(b"waiting already").unwrap();
        let stream = queue.open(stream).unwrap();
        let log = Log::default();
        stream.send(Operation::new(), "at once", &log.routine()).unwrap();
        assert_eq!(log.len(), 0, "a send that is done at once");
        sleep_until(&queue, "the send ends", || log.len() == 1);
        // The first receive may have to be collected; the second finds its bytes at hand.
        for _ in 0..2 {
            let before = log.len();
            stream.recv(Operation::new(), Vec::with_capacity(7), &log.routine()).unwrap();
            assert_eq!(log.len(), before, "a receive that finds bytes");
            sleep_until(&queue, "the receive ends", || log.len() == before + 1);
        }
        assert_eq!(log.0.borrow()[1].contents, b"waiting");
        assert_eq!(log.0.borrow()[2].contents, b" alread");
    }

    fn rule_129_a_routine_is_told_error_bytes_and_operation(ports: &Ports) {
        let queue = open(ports);
        let dropped = DropCount::default();
        let told = Rc::new(RefCell::new(Vec::new()));
        let routine = {
            let told = Rc::clone(&told);
            Routine::new(move |mut completed: Completed<'_>| {
                // The operation is dropped right here, in its routine.
                let operation = completed.take_operation().unwrap();
                told.borrow_mut().push((
                    completed.result().map_err(|error| error.kind()),
                    operation.id() == completed.operation_id().unwrap_or(operation.id()),
                    operation.context::<common::DropToken>().is_some(),
                ));
            })
        };
        let (stream, mut peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        peer.write_all(b"12345").unwrap();
        let operation = Operation::with_context(dropped.token());
        stream.recv(operation, Vec::with_capacity(16), &routine).unwrap();
        sleep_until(&queue, "the receive ends", || told.borrow().len() == 1);
        assert_eq!(dropped.get(), 1);
        let client = StreamSocket::for_peer(&queue, &dead_address()).unwrap();
        let operation = Operation::with_context(dropped.token());
        client.connect(operation, dead_address(), &routine).unwrap();
        sleep_until(&queue, "the connect fails", || told.borrow().len() == 2);
        assert_eq!(dropped.get(), 2);
        let expected = [(Ok(5), true, true), (Err(ErrorKind::ConnectionRefused), true, true)];
        assert_eq!(*told.borrow(), expected);
    }

    fn rule_130_a_routine_and_a_port_exclude_each_other(ports: &Ports) {
        let queue = open(ports);
        let port = ports.open(1);
        let (stream, _peer) = tcp_pair();
        let duplicate = stream.try_clone().unwrap();
        let _associated = port.associate(stream, 1).unwrap();
        let refused = queue.open(duplicate).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        assert!(refused.into_source().peer_addr().is_ok(), "it comes back as it was");

        let (stream, _other_peer) = tcp_pair();
        let duplicate = stream.try_clone().unwrap();
        let again = stream.try_clone().unwrap();
        let _opened = queue.open(stream).unwrap();
        let refused = port.associate(duplicate, 1).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        let refused = open(ports).open(again).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
    }

    fn rule_131_a_cancelled_operation_runs_its_routine(ports: &Ports) {
        let queue = open(ports);
        let log = Log::default();
        let (stream, _peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        let id = stream.recv(Operation::new(), Vec::with_capacity(16), &log.routine()).unwrap();
        assert!(stream.cancel(id));
        assert_eq!(log.len(), 0);
        sleep_until(&queue, "the cancelled receive ends", || log.len() == 1);
        assert_eq!(log.only().error, Some(ErrorKind::Cancelled));
        assert!(!stream.cancel(id));
        stream.recv(Operation::new(), Vec::with_capacity(16), &log.routine()).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(16), &log.routine()).unwrap();
        assert_eq!(stream.cancel_all(), 2);
        sleep_until(&queue, "both end", || log.len() == 2);
    }

    fn rule_131_closing_runs_the_routines(ports: &Ports) {
        let queue = open(ports);
        let log = Log::default();
        let (stream, mut peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(16), &log.routine()).unwrap();
        drop(stream);
        sleep_until(&queue, "the receive ends", || log.len() == 1);
        assert_eq!(log.only().error, Some(ErrorKind::ConnectionAborted));
        assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)), "the connection is closed");

        let listener = queue.open(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        listener.accept(Operation::new(), &log.routine()).unwrap();
        drop(listener);
        sleep_until(&queue, "the accept ends", || log.len() == 1);
        assert_eq!(log.only().error, Some(ErrorKind::Cancelled));
    }

    fn rule_132_routines_run_in_the_order_in_which_they_were_queued(ports: &Ports) {
        let queue = open(ports);
        let (sender, order) = mpsc::channel();
        let handle = queue.handle();
        for number in 0..500 {
            let sender = sender.clone();
            handle.queue(move |_| sender.send(number).unwrap()).unwrap();
        }
        sleep_until(&queue, "all run", || true);
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert!(order.try_iter().eq(0..500));
        // A stream's receives are filled, and told, in the order of the calls.
        let (stream, mut peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        let log = Log::default();
        for _ in 0..4 {
            stream.recv(Operation::new(), Vec::with_capacity(1), &log.routine()).unwrap();
        }
        peer.write_all(b"abcd").unwrap();
        sleep_until(&queue, "all four end", || log.len() == 4);
        let contents: Vec<u8> =
            log.0.borrow().iter().flat_map(|told| told.contents.clone()).collect();
        assert_eq!(contents, b"abcd");
    }

    fn a_panic_leaves_the_other_routines_queued(ports: &Ports) {
        let queue = open(ports);
        let (sender, ran) = mpsc::channel();
        let handle = queue.handle();
        handle.queue(|_| panic!("on purpose")).unwrap();
        for _ in 0..3 {
            let sender = sender.clone();
            handle.queue(move |_| sender.send(()).unwrap()).unwrap();
        }
        let result = catch_unwind(AssertUnwindSafe(|| queue.sleep(Some(HANG))));
        assert!(result.is_err());
        assert_eq!(ran.try_iter().count(), 0);
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert_eq!(ran.try_iter().count(), 3);
    }
}
