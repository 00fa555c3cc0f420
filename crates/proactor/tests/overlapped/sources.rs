//! Each kind of source with completion routines (rule 138).

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use proactor::overlapped::{Routine, StreamSocket};
use proactor::{ErrorKind, Operation, OperationKind};

use crate::common::{HANG, pattern, read_bytes, tcp_pair};
use crate::{Log, common, open, sleep_until};

on_each_backend! {
    fn rule_138_a_routine_starts_the_next_operation_on_its_socket(ports: &Ports) {
        const BYTES: usize = 1 << 20;
        let queue = open(ports);
        let (stream, peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        let is_over = Rc::new(Cell::new(false));
        let echo = {
            let (stream, is_over) = (stream.clone(), Rc::clone(&is_over));
            Routine::new(move |mut completed| {
                let routine = completed.routine();
                let mut operation = completed.take_operation().unwrap();
                match completed.kind() {
                    OperationKind::Recv if completed.bytes() > 0 => {
                        let bytes = operation.take_buffer().unwrap();
                        stream.send(operation, bytes, routine).unwrap();
                    }
                    OperationKind::Send => {
                        let buffer = Vec::with_capacity(10_000);
                        stream.recv(operation, buffer, routine).unwrap();
                    }
                    _ => is_over.set(true),
                }
            })
        };
        stream.recv(Operation::new(), Vec::with_capacity(10_000), &echo).unwrap();
        let client = thread::spawn(move || {
            let (mut writer, mut reader) = (peer.try_clone().unwrap(), peer);
            let writer = thread::spawn(move || {
                writer.write_all(&pattern(1, BYTES)).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let bytes = read_bytes(&mut reader, BYTES);
            writer.join().unwrap();
            bytes
        });
        sleep_until(&queue, "the peer ends its side", || is_over.get());
        common::assert_same_bytes(&client.join().unwrap(), &pattern(1, BYTES));
    }

    fn continuous_receives_run_the_routine_for_each_buffer(ports: &Ports) {
        const BYTES: usize = 300_000;
        let queue = open(ports);
        let (stream, mut peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        let log = Log::default();
        stream.recv_continuous(Operation::new(), &log.routine()).unwrap();
        let writer = thread::spawn(move || peer.write_all(&pattern(2, BYTES)).unwrap());
        let is_over = || log.0.borrow().last().is_some_and(|told| told.bytes == 0);
        sleep_until(&queue, "the stream ends", is_over);
        writer.join().unwrap();
        let all: Vec<u8> = log.0.borrow().iter().flat_map(|told| told.contents.clone()).collect();
        common::assert_same_bytes(&all, &pattern(2, BYTES));
    }

    fn connects_and_accepts(ports: &Ports) {
        let queue = open(ports);
        let listener = queue.open(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let address = listener.local_address().unwrap();
        let streams = Rc::new(RefCell::new(Vec::new()));
        let accepted = {
            let streams = Rc::clone(&streams);
            Routine::once(move |mut completed| {
                let accepted = completed.take_operation().unwrap().take_accepted().unwrap();
                streams.borrow_mut().push(completed.queue().open(accepted).unwrap());
            })
        };
        listener.accept(Operation::new(), &accepted).unwrap();
        let log = Log::default();
        let client = StreamSocket::for_peer(&queue, &address).unwrap();
        client.connect(Operation::new(), address, &log.routine()).unwrap();
        sleep_until(&queue, "both ends", || log.len() == 1 && streams.borrow().len() == 1);
        assert_eq!((log.0.borrow()[0].kind, log.0.borrow()[0].error), (OperationKind::Connect, None));
        assert_eq!(client.peer_address().unwrap(), address);
        let server = streams.borrow_mut().pop().unwrap();
        server.send_vectored(Operation::new(), vec!["he".into(), "llo".into()], &log.routine()).unwrap();
        server.disconnect(Operation::new(), &log.routine()).unwrap();
        sleep_until(&queue, "send and end", || log.len() == 3);
        let buffers = vec![Vec::with_capacity(3), Vec::with_capacity(3)];
        client.recv_vectored(Operation::new(), buffers, &log.routine()).unwrap();
        sleep_until(&queue, "the receive", || log.len() == 4);
        assert_eq!(log.0.borrow()[3].bytes, 5);
    }

    fn datagrams(ports: &Ports) {
        let queue = open(ports);
        let log = Log::default();
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (a, b) = (queue.open(bind()).unwrap(), queue.open(bind()).unwrap());
        let from = a.local_address().unwrap();
        let peer: Rc<Cell<Option<SocketAddr>>> = Rc::default();
        let received = {
            let peer = Rc::clone(&peer);
            Routine::once(move |completed| peer.set(completed.operation().unwrap().peer_address()))
        };
        b.recv_from(Operation::new(), Vec::with_capacity(100), &received).unwrap();
        a.send_to(Operation::new(), "datagram", b.local_address().unwrap(), &log.routine()).unwrap();
        sleep_until(&queue, "it arrives", || log.len() == 1 && peer.get().is_some());
        assert_eq!((log.only().bytes, peer.get()), (8, Some(from)));
    }

    fn files(ports: &Ports) {
        let queue = open(ports);
        let log = Log::default();
        let directory = tempfile::tempdir().unwrap();
        let mut options = std::fs::File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(directory.path().join("file")).unwrap();
        let file = queue.open(file).unwrap();
        file.write_at(Operation::new(), "0123456789", 5, &log.routine()).unwrap();
        sleep_until(&queue, "the write", || log.len() == 1);
        assert_eq!(log.only().bytes, 10);
        file.read_at(Operation::new(), Vec::with_capacity(4), 7, &log.routine()).unwrap();
        sleep_until(&queue, "the read", || log.len() == 1);
        assert_eq!(log.only().contents, b"2345");
        file.read_at(Operation::new(), Vec::with_capacity(4), 99, &log.routine()).unwrap();
        sleep_until(&queue, "the end", || log.len() == 1);
        assert_eq!(log.only().error, Some(ErrorKind::EndOfFile));
    }

    fn timers(ports: &Ports) {
        let queue = open(ports);
        let log = Log::default();
        let begin = Instant::now();
        let delay = Duration::from_millis(20);
        queue.start_timer(delay, Operation::new(), &log.routine()).unwrap();
        let far = queue.start_timer(HANG * 100, Operation::new(), &log.routine()).unwrap();
        sleep_until(&queue, "the timer", || log.len() == 1);
        assert!(begin.elapsed() >= delay);
        let told = log.only();
        assert_eq!((told.kind, told.error), (OperationKind::Timer, None));
        assert!(queue.cancel_timer(far));
        sleep_until(&queue, "the other one", || log.len() == 1);
        assert_eq!(log.only().error, Some(ErrorKind::Cancelled));
        assert!(!queue.cancel_timer(far));
    }
}
