//! Alertable waits: what ends them, waits inside routines, events (rules 127, 133 and 134).

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use proactor::overlapped::{ApcHandle, ApcQueue, NESTED_WAITS, Routine, Wake};
use proactor::{ErrorKind, Operation, OperationKind};

use crate::common::worker::Task;
use crate::common::{HANG, QUIET, connect, tcp_pair, wait_until};
use crate::{Log, assert_quiet, common, open, sleep_until};

on_each_backend! {
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
        let again = queue.wait(&event, Some(Duration::ZERO));
        assert_eq!(again, Ok(Wake::TimedOut), "it was taken back");
    }

    fn rule_134_an_event_that_is_set_meanwhile_ends_the_wait(ports: &Ports) {
        let queue = open(ports);
        let event = queue.event();
        let setter = {
            let (event, waiter) = (event.clone(), Task::current());
            thread::spawn(move || {
                waiter.wait_until_asleep();
                event.set();
            })
        };
        assert_eq!(queue.wait(&event, Some(HANG)), Ok(Wake::Signalled));
        setter.join().unwrap();
        assert!(!event.is_set());
        // A plain sleep is not ended by it, but by a timer that is due later.
        event.set();
        let (log, delay) = (Log::default(), Duration::from_millis(1));
        queue.start_timer(delay, Operation::new(), &log.routine()).unwrap();
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert_eq!(log.only().kind, OperationKind::Timer);
        let stranger = open(ports).event();
        let error = queue.wait(&stranger, Some(HANG)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    fn a_routine_from_another_thread_wakes_the_wait(ports: &Ports) {
        let queue = open(ports);
        let handle = queue.handle();
        let (sender, ran_on) = mpsc::channel();
        let waiter = Task::current();
        let other = thread::spawn(move || {
            waiter.wait_until_asleep();
            handle.queue(move |_| sender.send(thread::current().id()).unwrap()).unwrap();
        });
        assert_eq!(queue.sleep(Some(HANG)), Ok(Wake::Routines));
        assert_eq!(ran_on.recv().unwrap(), thread::current().id());
        other.join().unwrap();
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
