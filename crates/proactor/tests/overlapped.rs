//! Operations with completion routines, and alertable waits.

mod common;

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use proactor::overlapped::{
    ApcHandle, ApcQueue, Completed, NESTED_WAITS, Routine, StreamSocket, Wake,
};
use proactor::{ErrorKind, Operation, OperationKind};

use common::{
    DropCount, HANG, Ports, QUIET, connect, dead_address, pattern, read_bytes, refused, tcp_pair,
    wait_until,
};

fn open(ports: &Ports) -> ApcQueue {
    ApcQueue::with_builder(ports.builder()).expect("the probed backend opens a queue")
}

/// What routines have been told, in the order in which they ran.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<Told>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    kind: OperationKind,
    bytes: usize,
    error: Option<ErrorKind>,
    contents: Vec<u8>,
}

impl Log {
    fn routine(&self) -> Routine {
        let log = self.clone();
        Routine::new(move |mut completed| {
            let contents = match (completed.take_chunk(), completed.operation()) {
                (Some(chunk), _) => chunk.to_vec(),
                (None, Some(operation)) => operation.buffer().to_vec(),
                (None, None) => Vec::new(),
            };
            log.0.borrow_mut().push(Told {
                kind: completed.kind(),
                bytes: completed.bytes(),
                error: completed.error().map(|error| error.kind()),
                contents,
            });
        })
    }

    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    #[track_caller]
    fn only(&self) -> Told {
        assert_eq!(self.len(), 1, "{:?}", self.0.borrow());
        self.0.borrow_mut().remove(0)
    }
}

/// Waits alertably until the condition holds.
#[track_caller]
fn sleep_until(queue: &ApcQueue, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        let left = deadline.saturating_duration_since(Instant::now());
        assert_ne!(queue.sleep(Some(left)), Ok(Wake::TimedOut), "waited in vain: {what}");
    }
}

/// No routine is queued and none comes.
#[track_caller]
fn assert_quiet(queue: &ApcQueue) {
    assert_eq!(queue.sleep(Some(QUIET)), Ok(Wake::TimedOut), "no routine should have run");
}

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
        // Neither a plain wait of this thread nor an alertable wait of another one runs it.
        let ports = *ports;
        let elsewhere = thread::spawn(move || open(&ports).sleep(Some(QUIET)).unwrap());
        assert_eq!(elsewhere.join().unwrap(), Wake::TimedOut);
        assert_eq!(ran_on.get(), None);
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert_eq!(ran_on.get(), Some(thread::current().id()));
        assert_quiet(&queue);
    }

    fn rule_127_a_wait_ends_once_all_that_were_queued_have_run(ports: &Ports) {
        const ROUTINES: usize = 5000;
        let queue = open(ports);
        let handle = queue.handle();
        let (count, counted) = mpsc::channel();
        for _ in 0..ROUTINES {
            let count = count.clone();
            handle.queue(move |_| count.send(()).unwrap()).unwrap();
        }
        assert_eq!(queue.sleep(None), Ok(Wake::Routines));
        assert_eq!(counted.try_iter().count(), ROUTINES);
        assert_eq!(queue.sleep(Some(Duration::ZERO)), Ok(Wake::TimedOut));
    }

    fn rule_127_completions_of_several_sockets_run_in_one_wait(ports: &Ports) {
        let queue = open(ports);
        let log = Log::default();
        let pairs: Vec<_> = (0..20).map(|_| tcp_pair()).map(|(stream, peer)| {
            (queue.open(stream).unwrap(), peer)
        }).collect();
        // Sends on fresh connections are done at once, and queued by the next wait.
        for (stream, _) in &pairs {
            stream.send(Operation::new(), "bytes", &log.routine()).unwrap();
        }
        assert_eq!(log.len(), 0);
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        sleep_until(&queue, "every send ends", || log.len() == 20);
        assert_quiet(&queue);
    }

    fn rule_127_an_elapsed_timeout_is_told_from_a_wake(ports: &Ports) {
        let queue = open(ports);
        let begin = Instant::now();
        assert_eq!(queue.sleep(Some(Duration::from_millis(20))), Ok(Wake::TimedOut));
        assert!(begin.elapsed() >= Duration::from_millis(20));
        queue.handle().queue(|_| {}).unwrap();
        assert_eq!(queue.sleep(Some(Duration::ZERO)), Ok(Wake::Routines));
        assert_eq!(queue.sleep(Some(Duration::ZERO)), Ok(Wake::TimedOut));
    }

    fn rule_127_peers_that_send_and_send_do_not_hold_a_wait(ports: &Ports) {
        let queue = open(ports);
        let handle = queue.handle();
        // A routine that queues itself again and again: there is always one more.
        fn again(handle: ApcHandle) -> impl FnOnce(&ApcQueue) + Send {
            move |_| {
                let next: Box<dyn FnOnce(&ApcQueue) + Send> = Box::new(again(handle.clone()));
                handle.queue(next).unwrap();
            }
        }
        for _ in 0..100 {
            handle.queue(again(handle.clone())).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(queue.sleep(None), Ok(Wake::Routines));
        }
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

    fn rule_133_a_wait_inside_a_routine_runs_further_ones(ports: &Ports) {
        let queue = open(ports);
        let order = Rc::new(RefCell::new(Vec::new()));
        let routine = |name: &'static str, waits: bool| {
            let order = Rc::clone(&order);
            Routine::new(move |completed| {
                order.borrow_mut().push(name);
                if waits {
                    assert_eq!(completed.queue().sleep(Some(HANG)), Ok(Wake::Routines));
                    order.borrow_mut().push("outer returns");
                }
            })
        };
        let now = Duration::ZERO;
        queue.start_timer(now, Operation::new(), &routine("outer", true)).unwrap();
        queue
            .start_timer(Duration::from_millis(1), Operation::new(), &routine("inner", false))
            .unwrap();
        sleep_until(&queue, "both have run", || order.borrow().len() == 3);
        assert_eq!(*order.borrow(), ["outer", "inner", "outer returns"]);
    }

    fn rule_133_a_routine_is_not_entered_again_while_it_runs(ports: &Ports) {
        let queue = open(ports);
        let (stream, mut peer) = tcp_pair();
        let stream = queue.open(stream).unwrap();
        peer.write_all(b"abc").unwrap();
        let depth = Rc::new(Cell::new(0));
        let told = Rc::new(RefCell::new(Vec::new()));
        let routine = {
            let (depth, told) = (Rc::clone(&depth), Rc::clone(&told));
            Routine::new(move |completed| {
                assert_eq!(depth.replace(1), 0, "it is running already");
                told.borrow_mut().extend_from_slice(completed.operation().unwrap().buffer());
                if told.borrow().len() == 1 {
                    // The others are done, but they end in this very routine.
                    assert_eq!(completed.queue().sleep(Some(QUIET)), Ok(Wake::TimedOut));
                    assert_eq!(told.borrow().len(), 1);
                }
                depth.set(0);
            })
        };
        for _ in 0..3 {
            stream.recv(Operation::new(), Vec::with_capacity(1), &routine).unwrap();
        }
        sleep_until(&queue, "all three end", || told.borrow().len() == 3);
        assert_eq!(*told.borrow(), b"abc");
    }

    fn rule_133_what_a_routine_queues_runs_in_the_same_wait(ports: &Ports) {
        let queue = open(ports);
        let (sender, order) = mpsc::channel();
        let handle = queue.handle();
        let inner = handle.clone();
        handle
            .queue(move |_| {
                let second = sender.clone();
                inner.queue(move |_| second.send("second").unwrap()).unwrap();
                sender.send("first").unwrap();
            })
            .unwrap();
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert!(order.try_iter().eq(["first", "second"]));
    }

    fn rule_133_waits_are_not_nested_without_end(ports: &Ports) {
        let queue = open(ports);
        let refused_at = Rc::new(Cell::new(None));
        // A timer whose routine starts the next one and waits for it, inside `depth` waits.
        fn nest(queue: &ApcQueue, depth: usize, refused_at: &Rc<Cell<Option<usize>>>) {
            if refused_at.get().is_some() {
                return;
            }
            let refused_below = Rc::clone(refused_at);
            let routine = Routine::once(move |completed| {
                nest(completed.queue(), depth + 1, &refused_below);
            });
            queue.start_timer(Duration::ZERO, Operation::new(), &routine).unwrap();
            match queue.sleep(Some(HANG)) {
                Ok(wake) => assert_eq!(wake, Wake::Routines),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput);
                    refused_at.set(Some(depth));
                }
            }
        }
        nest(&queue, 0, &refused_at);
        assert_eq!(refused_at.get(), Some(NESTED_WAITS));
        // Back outside, waits are as they were.
        queue.handle().queue(|_| {}).unwrap();
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
    }

    fn rule_134_an_event_that_is_set_ends_the_wait_before_routines(ports: &Ports) {
        let queue = open(ports);
        let event = queue.event();
        let (sender, ran) = mpsc::channel();
        queue.handle().queue(move |_| sender.send(()).unwrap()).unwrap();
        event.set();
        event.set();
        assert_eq!(queue.wait(&event, Some(HANG)), Ok(Wake::Signalled));
        assert!(ran.try_recv().is_err(), "the routine stays queued");
        assert_eq!(queue.wait(&event, Some(HANG)), Ok(Wake::Routines));
        assert!(ran.try_recv().is_ok());
        assert_eq!(queue.wait(&event, Some(QUIET)), Ok(Wake::TimedOut), "it was taken back");
    }

    fn rule_134_an_event_that_is_set_meanwhile_ends_the_wait(ports: &Ports) {
        let queue = open(ports);
        let event = queue.event();
        let setter = {
            let event = event.clone();
            thread::spawn(move || {
                thread::sleep(QUIET);
                event.set();
            })
        };
        assert_eq!(queue.wait(&event, Some(HANG)), Ok(Wake::Signalled));
        setter.join().unwrap();
        assert!(!event.is_set());
        // A plain sleep is not ended by it.
        event.set();
        assert_eq!(queue.sleep(Some(QUIET)), Ok(Wake::TimedOut));
        let stranger = open(ports).event();
        let error = queue.wait(&stranger, Some(HANG)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

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

    fn a_routine_from_another_thread_wakes_the_wait(ports: &Ports) {
        let queue = open(ports);
        let handle = queue.handle();
        let (sender, ran_on) = mpsc::channel();
        let other = thread::spawn(move || {
            thread::sleep(QUIET);
            handle.queue(move |_| sender.send(thread::current().id()).unwrap()).unwrap();
        });
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert_eq!(ran_on.recv().unwrap(), thread::current().id());
        other.join().unwrap();
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

    fn a_port_and_a_queue_share_a_thread(ports: &Ports) {
        let queue = open(ports);
        let port = ports.open(1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = connect(listener.local_addr().unwrap());
        let stream = queue.open(listener.accept().unwrap().0).unwrap();
        let log = Log::default();
        for round in 0..20 {
            port.post(7, round, None).unwrap();
            client.write_all(&[round as u8]).unwrap();
            stream.recv(Operation::new(), Vec::with_capacity(1), &log.routine()).unwrap();
            sleep_until(&queue, "the receive", || log.len() == round + 1);
            assert_eq!(common::dequeue(&port).bytes(), round);
        }
        wait_until("all are told", || log.len() == 20);
    }
}
