//! The completion port itself: create, associate, dequeue, post, timers, close.

mod common;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
#[cfg(target_os = "linux")]
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::worker::Worker;
use common::*;
use proactor::{BackendChoice, CompletionPort, DequeueError, ErrorKind, Operation, OperationKind};
use socket2::{Domain, Socket, Type};

fn empty_slots(count: usize) -> Vec<Option<proactor::Completion>> {
    (0..count).map(|_| None).collect()
}

on_each_backend! {
    /// Rule 1: a new port has no packet and no source.
    fn rule_1_a_new_port_is_empty(ports: &Ports) {
        let port = ports.open(3);
        assert_eq!(port.concurrency(), 3);
        assert_eq!(port.dequeue(Some(Duration::ZERO)).unwrap_err(), DequeueError::TimedOut);
        assert_eq!(port.counters().dequeued_packets, 0);
    }

    /// A port on a forced backend is on that backend, and says so.
    fn a_port_names_its_backend(ports: &Ports) {
        let port = ports.open(1);
        assert_eq!(port.backend().name(), ports.name());
        assert_eq!(port.backend().degraded, None, "a forced backend is not a fallback");
        let missing = port.backend().capabilities.iter().find(|c| c.required && !c.available);
        assert_eq!(missing, None, "a required capability is missing, yet the port opened");
    }

    /// Rule 2: concurrency 0 means one thread per processor.
    fn rule_2_concurrency_zero_is_one_per_processor(ports: &Ports) {
        let usable = thread::available_parallelism().unwrap().get();
        // SAFETY: sysconf only reads a number.
        #[cfg(target_os = "linux")]
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as usize;
        #[cfg(windows)]
        let online = usable;
        let concurrency = ports.open(0).concurrency();
        assert!(concurrency == usable || concurrency == online, "{concurrency}");
    }

    /// Rule 2: any limit is accepted, also one that is there to mean "none".
    fn rule_2_a_huge_concurrency_is_accepted(ports: &Ports) {
        for limit in [u32::MAX as usize, usize::MAX] {
            let port = ports.open(limit);
            assert!(port.concurrency() >= 1024);
            port.post(1, 2, None).unwrap();
            assert_eq!(dequeue(&port).bytes(), 2);
        }
    }

    /// Rules 3 and 4: a port takes any number of sources, each under its own key.
    fn rule_4_sources_of_one_port_have_keys_of_their_own(ports: &Ports) {
        let port = ports.open(1);
        let mut pairs = Vec::new();
        for key in [0, 7, 7, usize::MAX] {
            let (stream, peer) = tcp_pair();
            let stream = port.associate(stream, key).unwrap();
            assert_eq!(stream.key(), key);
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
            pairs.push((stream, peer));
        }
        for (stream, peer) in &mut pairs {
            peer.write_all(b"x").unwrap();
            let completion = dequeue_within(&port, OperationKind::Recv);
            assert_eq!(completion.key(), stream.key());
        }
    }

    /// Rule 6: a socket that is not a stream is refused as one, and comes back usable.
    fn rule_6_a_datagram_socket_is_not_a_stream(ports: &Ports) {
        let port = ports.open(1);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let refused = port.associate(socket, 1).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        assert_eq!(refused.error().operation(), OperationKind::Associate);
        assert_eq!(refused.into_source().r#type().unwrap(), Type::DGRAM);
    }

    /// Rule 8: a socket is associated once: not again under the same key, nor another, nor with
    /// another port. What was refused comes back, and what is associated goes on working.
    fn rule_8_a_socket_is_associated_once(ports: &Ports) {
        let port = ports.open(1);
        let other_port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let mut duplicate = stream.try_clone().unwrap();
        let stream = port.associate(stream, 5).unwrap();
        for (target, key) in [(&port, 5), (&port, 6), (&other_port, 5), (&other_port, 6)] {
            let refused = target.associate(duplicate, key).unwrap_err();
            assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
            duplicate = refused.into_source();
        }
        duplicate.write_all(b"still open").unwrap();
        assert_eq!(read_bytes(&mut peer, 10), b"still open");
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        peer.write_all(b"works").unwrap();
        assert_eq!(dequeue_within(&port, OperationKind::Recv).key(), 5);
    }

    /// Rule 8, for the other kinds of source.
    fn rule_8_listeners_datagram_sockets_and_files_are_associated_once(ports: &Ports) {
        let port = ports.open(1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let duplicate = listener.try_clone().unwrap();
        let _listener = port.associate(listener, 1).unwrap();
        let refused = port.associate(duplicate, 1).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        refused.into_source().local_addr().unwrap();

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let duplicate = socket.try_clone().unwrap();
        let _socket = port.associate(socket, 1).unwrap();
        let refused = port.associate(duplicate, 1).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        refused.into_source().local_addr().unwrap();
    }

    /// Rule 8: once a source is closed, nothing of it is remembered: a new socket that the system
    /// gives the same numbers can be associated.
    fn rule_8_a_closed_source_leaves_no_trace(ports: &Ports) {
        let port = ports.open(1);
        for round in 0..100 {
            let (stream, peer) = tcp_pair();
            drop(port.associate(stream, round).unwrap());
            drop(peer);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            drop(port.associate(socket, round).unwrap());
        }
    }

    /// Rule 9: a clone of a handle is the same source: its operations carry the same key.
    fn rule_9_clones_share_source_and_key(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 44).unwrap();
        let clone = stream.clone();
        assert_eq!(clone.key(), 44);
        clone.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        stream.send(Operation::new(), "ping").unwrap();
        assert_eq!(dequeue_within(&port, OperationKind::Send).key(), 44);
        assert_eq!(read_bytes(&mut peer, 4), b"ping");
        peer.write_all(b"pong").unwrap();
        let completion = dequeue_within(&port, OperationKind::Recv);
        assert_eq!((completion.key(), completion.bytes()), (44, 4));
    }

    /// Rules 15 and 18: a poll of an empty port says so at once.
    fn rule_15_a_poll_of_an_empty_port_times_out(ports: &Ports) {
        let port = ports.open(1);
        let error = port.dequeue(Some(Duration::ZERO)).unwrap_err();
        assert_eq!(error, DequeueError::TimedOut);
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::TimedOut);
    }

    /// Rule 15: the packet of a success says the bytes, the key, and no error.
    fn rule_15_a_success_says_bytes_and_key(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 3).unwrap();
        let id = stream.recv(Operation::with_context(11_u8), Vec::with_capacity(16)).unwrap();
        peer.write_all(b"12345").unwrap();
        let completion = dequeue_within(&port, OperationKind::Recv);
        assert_eq!(completion.result(), Ok(5));
        assert_eq!(completion.key(), 3);
        assert_eq!(completion.operation_id(), Some(id));
        assert!(!completion.more());
        assert_eq!(completion.operation().unwrap().buffer(), b"12345");
        assert_eq!(completion.operation().unwrap().context::<u8>(), Some(&11));
    }

    /// Rules 15, 16 and 25: the packet of a failure is a packet, with the key, the bytes moved, the
    /// operation and the reason; also where several are taken at once.
    fn rule_16_a_failed_operation_is_a_packet(ports: &Ports) {
        let port = ports.open(1);
        let (stream, _peer) = tcp_pair();
        let stream = port.associate(stream, 9).unwrap();
        for mode in 0..2 {
            let context = format!("context {mode}");
            let id = stream.recv(Operation::with_context(context), Vec::with_capacity(8)).unwrap();
            assert!(stream.cancel(id));
            let mut slots = empty_slots(4);
            let completion = if mode == 0 {
                dequeue(&port)
            } else {
                assert_eq!(port.dequeue_many(&mut slots, Some(HANG)), Ok(1));
                slots[0].take().expect("the packet stands in the first entry")
            };
            assert_eq!((completion.key(), completion.bytes()), (9, 0));
            let error = completion.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            assert_eq!(error.operation(), OperationKind::Recv);
            assert_eq!(completion.operation_id(), Some(id));
            let operation = completion.into_operation().unwrap();
            assert_eq!(operation.context::<String>().unwrap(), &format!("context {mode}"));
        }
    }

    /// Rule 18: a timeout never ends early, also one below a millisecond.
    fn rule_18_a_timeout_never_ends_early(ports: &Ports) {
        let port = ports.open(1);
        for micros in [1, 50, 300, 999, 1_000, 1_001, 1_500, 3_100, 10_000, 50_000] {
            let timeout = Duration::from_micros(micros);
            let start = Instant::now();
            let outcome = port.dequeue(Some(timeout));
            let waited = start.elapsed();
            assert_eq!(outcome.unwrap_err(), DequeueError::TimedOut);
            assert!(waited >= timeout, "asked for {timeout:?}, waited {waited:?}");

            let start = Instant::now();
            let outcome = port.dequeue_many(&mut empty_slots(2), Some(timeout));
            assert_eq!(outcome, Err(DequeueError::TimedOut));
            assert!(start.elapsed() >= timeout);
        }
    }

    /// Rule 18: a timeout does not end early for the last of several threads either, where others
    /// come, go, and get packets meanwhile.
    fn rule_18_a_timeout_is_kept_while_others_get_packets(ports: &Ports) {
        let port = ports.shared(4);
        let stop = Arc::new(AtomicBool::new(false));
        let busy = {
            let (port, stop) = (Arc::clone(&port), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Two at a time: the waiting thread is woken for some of them.
                    port.post(1, 1, None).unwrap();
                    port.post(1, 1, None).unwrap();
                    while port.dequeue(Some(Duration::from_micros(200))).is_ok() {}
                }
            })
        };
        for _ in 0..20 {
            let timeout = Duration::from_millis(3);
            let start = Instant::now();
            if port.dequeue(Some(timeout)).is_err() {
                assert!(start.elapsed() >= timeout, "ended after {:?}", start.elapsed());
            }
        }
        stop.store(true, Ordering::Relaxed);
        busy.join().unwrap();
    }

    /// Rule 18: a poll sees I/O that is ready, so a program may poll only.
    fn rule_18_polling_alone_brings_io(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        peer.write_all(b"data").unwrap();
        let mut packet = None;
        wait_until("the packet of a receive", || {
            packet = port.dequeue(Some(Duration::ZERO)).ok();
            packet.is_some()
        });
        assert_eq!(packet.unwrap().bytes(), 4);
    }

    /// Rule 18: no timeout means no timeout; a packet ends the wait.
    fn rule_18_a_wait_without_timeout_ends_with_a_packet(ports: &Ports) {
        let port = ports.shared(1);
        let worker = Worker::spawn();
        let answer = worker.park({
            let port = Arc::clone(&port);
            move || port.dequeue(None).map(|completion| completion.key())
        });
        assert_eq!(answer.within(QUIET), None);
        port.post(8, 0, None).unwrap();
        assert_eq!(answer.wait(), Ok(8));
    }

    /// Rule 18: the longest timeout there is does not overflow.
    fn rule_18_the_longest_timeout_waits(ports: &Ports) {
        let port = ports.shared(1);
        let worker = Worker::spawn();
        for timeout in [Duration::MAX, Duration::from_secs(u64::from(u32::MAX) * 1000)] {
            let answer = worker.park({
                let port = Arc::clone(&port);
                move || port.dequeue(Some(timeout)).map(|completion| completion.key())
            });
            assert_eq!(answer.within(QUIET), None);
            port.post(8, 0, None).unwrap();
            assert_eq!(answer.wait(), Ok(8));
        }
    }

    /// Rule 19: a wait at the port is not ended by anything else that is delivered to the thread;
    /// on Linux a signal, on Windows a queued routine.
    fn rule_19_a_signal_does_not_end_the_wait(ports: &Ports) {
        #[cfg(target_os = "linux")]
        extern "C" fn nothing(_signal: libc::c_int) {}
        // SAFETY: the handler does nothing. Without SA_RESTART every wait of the thread sees EINTR.
        #[cfg(target_os = "linux")]
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
        }
        let port = ports.shared(1);
        let (tell, told) = mpsc::channel();
        let waiter = {
            let port = Arc::clone(&port);
            thread::spawn(move || {
                let start = Instant::now();
                let timeout = Duration::from_millis(60);
                let outcome = port.dequeue(Some(timeout));
                assert_eq!(outcome.unwrap_err(), DequeueError::TimedOut);
                assert!(start.elapsed() >= timeout, "ended after {:?}", start.elapsed());
                tell.send(()).unwrap();
                port.dequeue(Some(HANG)).map(|completion| completion.key())
            })
        };
        let signal = || {
            // SAFETY: the thread is not joined yet, so its handle is valid.
            #[cfg(target_os = "linux")]
            unsafe {
                libc::pthread_kill(waiter.as_pthread_t(), libc::SIGUSR1);
            }
            #[cfg(windows)]
            windows::queue_routine(&waiter);
        };
        // All through the first wait, and some of the second.
        while told.recv_timeout(Duration::from_millis(2)).is_err() {
            assert!(!waiter.is_finished(), "the wait was ended");
            signal();
        }
        for _ in 0..20 {
            signal();
            thread::yield_now();
        }
        port.post(4, 0, None).unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(4));
    }

    /// Rules 15, 20 and 30: closing the port ends every wait, whichever way a thread waits.
    fn rule_20_close_ends_every_wait(ports: &Ports) {
        let port = ports.shared(2);
        let workers: Vec<Worker> = (0..6).map(|_| Worker::spawn()).collect();
        let answers: Vec<_> = workers
            .iter()
            .enumerate()
            .map(|(index, worker)| {
                let port = Arc::clone(&port);
                worker.park(move || match index % 3 {
                    0 => port.dequeue(None).map(|_| 1),
                    1 => port.dequeue(Some(Duration::from_secs(3600))).map(|_| 1),
                    _ => port.dequeue_many(&mut empty_slots(4), None),
                })
            })
            .collect();
        port.close();
        for answer in answers {
            assert_eq!(answer.wait(), Err(DequeueError::Closed));
        }
    }

    /// Rule 20: whatever is called on a closed port says that it is closed, and gives back what
    /// was handed in. Closing again is harmless.
    fn rule_20_a_closed_port_refuses_everything(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        port.post(1, 1, None).unwrap();
        port.close();
        port.close();
        assert_eq!(port.dequeue(None).unwrap_err(), DequeueError::Closed);
        assert_eq!(port.dequeue(Some(Duration::ZERO)).unwrap_err(), DequeueError::Closed);
        assert_eq!(port.dequeue_many(&mut empty_slots(1), None), Err(DequeueError::Closed));

        let rejected = port.post(1, 1, Some(Operation::with_context(5_u8))).unwrap_err();
        assert_eq!(rejected.error().kind(), ErrorKind::PortClosed);
        assert_eq!(rejected.into_operation().context::<u8>(), Some(&5));

        let timer = port.start_timer(1, Duration::ZERO, Operation::with_context(6_u8));
        let operation = refused(timer, ErrorKind::PortClosed);
        assert_eq!(operation.context::<u8>(), Some(&6));

        let associated = port.associate(stream, 1).unwrap_err();
        assert_eq!(associated.error().kind(), ErrorKind::PortClosed);
        associated.into_source().write_all(b"usable").unwrap();
        assert_eq!(read_bytes(&mut peer, 6), b"usable");
        assert_eq!(port.blocking(|| 12), 12, "a blocking section just runs");
    }

    /// Rule 21: packets that are still queued when the port closes are freed, with what they carry.
    fn rule_21_queued_packets_are_freed_with_the_port(ports: &Ports) {
        let drops = DropCount::default();
        let port = ports.open(1);
        for _ in 0..10 {
            port.post(1, 1, Some(Operation::with_context(drops.token()))).unwrap();
        }
        let later = Duration::from_secs(3600);
        port.start_timer(1, later, Operation::with_context(drops.token())).unwrap();
        assert_eq!(drops.get(), 0);
        drop(port);
        wait_until("eleven contexts to be freed", || drops.get() == 11);
    }

    /// Rule 24: several are taken at once, oldest first, as many as fit, without waiting for more.
    fn rule_24_dequeue_many_takes_what_is_there(ports: &Ports) {
        let port = ports.open(1);
        for key in 0..3 {
            port.post(key, 0, None).unwrap();
        }
        let mut slots = empty_slots(2);
        assert_eq!(port.dequeue_many(&mut slots, None), Ok(2));
        assert_eq!(slots.iter().flatten().map(|c| c.key()).collect::<Vec<_>>(), [0, 1]);
        let mut slots = empty_slots(8);
        assert_eq!(port.dequeue_many(&mut slots, None), Ok(1), "one is there: no wait for more");
        assert_eq!(slots.iter().flatten().map(|c| c.key()).collect::<Vec<_>>(), [2]);
    }

    /// Rule 26: where none came in time, none is written.
    fn rule_26_dequeue_many_leaves_the_entries_alone_at_a_timeout(ports: &Ports) {
        let port = ports.open(1);
        port.post(1, 0, None).unwrap();
        let mut slots = empty_slots(3);
        assert_eq!(port.dequeue_many(&mut slots, None), Ok(1));
        assert_eq!(
            port.dequeue_many(&mut slots, Some(Duration::ZERO)),
            Err(DequeueError::TimedOut)
        );
        assert_eq!(slots[0].as_ref().map(|c| c.key()), Some(1), "an entry was overwritten");
        assert!(slots[1].is_none() && slots[2].is_none());
    }

    /// Rule 27: what one call has taken, no other gets; nothing is lost between them.
    fn rule_27_a_packet_is_taken_once(ports: &Ports) {
        const PACKETS: usize = 3_000;
        let port = ports.shared(4);
        let workers: Vec<Worker> = (0..3).map(|_| Worker::spawn()).collect();
        let answers: Vec<_> = workers
            .iter()
            .enumerate()
            .map(|(index, worker)| {
                let port = Arc::clone(&port);
                worker.park(move || {
                    let mut taken = Vec::new();
                    let mut slots = empty_slots(1 + index * 5);
                    while port.dequeue_many(&mut slots, None).is_ok() {
                        taken.extend(slots.iter_mut().map_while(Option::take).map(|c| c.key()));
                    }
                    taken
                })
            })
            .collect();
        for key in 0..PACKETS {
            port.post(key, 0, None).unwrap();
        }
        wait_until("all packets to be taken", || {
            port.counters().dequeued_packets == PACKETS as u64
        });
        port.close();
        let mut all = Vec::new();
        for answer in answers {
            let taken = answer.wait();
            assert!(taken.is_sorted(), "one thread saw packets out of order");
            all.extend(taken);
        }
        assert_eq!(all.len(), PACKETS);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), PACKETS, "a packet came twice");
    }

    /// Rule 31: there is no call without room for a packet.
    fn rule_31_dequeue_many_without_room_panics(ports: &Ports) {
        let port = ports.open(1);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = port.dequeue_many(&mut [], Some(Duration::ZERO));
        }));
        assert!(outcome.is_err());
        port.post(1, 0, None).unwrap();
        assert_eq!(dequeue(&port).key(), 1, "the port is as it was");
    }

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

    /// A post wakes a thread that waits for I/O.
    fn a_post_wakes_a_thread_that_waits_for_io(ports: &Ports) {
        let port = ports.shared(1);
        let (stream, _peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        let worker = Worker::spawn();
        for round in 0..10 {
            let answer = worker.park({
                let port = Arc::clone(&port);
                move || port.dequeue(None).map(|completion| completion.key())
            });
            port.post(100 + round, 0, None).unwrap();
            assert_eq!(answer.wait(), Ok(100 + round));
        }
        port.close();
    }

    /// An operation that another thread starts is served by a thread that waits already.
    fn an_operation_started_elsewhere_is_served_by_a_waiting_thread(ports: &Ports) {
        let port = ports.shared(1);
        let worker = Worker::spawn();
        for round in 0..5 {
            let answer = worker.park({
                let port = Arc::clone(&port);
                move || port.dequeue(None).map(|c| (c.key(), c.bytes()))
            });
            let (stream, mut peer) = tcp_pair();
            let stream = port.associate(stream, round).unwrap();
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
            peer.write_all(b"abc").unwrap();
            assert_eq!(answer.wait(), Ok((round, 3)));
        }
    }

    /// A timer's packet comes after its delay, never before.
    fn a_timer_never_fires_early(ports: &Ports) {
        let port = ports.open(1);
        for micros in [0, 1, 400, 999, 1_000, 1_700, 5_000, 30_000] {
            let delay = Duration::from_micros(micros);
            let start = Instant::now();
            let id = port.start_timer(6, delay, Operation::with_context(micros)).unwrap();
            let completion = dequeue_within(&port, OperationKind::Timer);
            assert!(start.elapsed() >= delay, "{delay:?} took {:?}", start.elapsed());
            assert_eq!((completion.key(), completion.result()), (6, Ok(0)));
            assert_eq!(completion.operation_id(), Some(id));
            assert_eq!(completion.operation().unwrap().context::<u64>(), Some(&micros));
        }
        let start = Instant::now();
        port.start_timer_at(6, start, Operation::new()).unwrap();
        dequeue_within(&port, OperationKind::Timer);
        if let Some(past) = start.checked_sub(Duration::from_secs(1)) {
            port.start_timer_at(6, past, Operation::new()).unwrap();
            dequeue_within(&port, OperationKind::Timer);
        }
    }

    /// Timers fire in the order of their deadlines, not of their starts.
    fn timers_fire_in_the_order_of_their_deadlines(ports: &Ports) {
        let port = ports.open(1);
        let start = Instant::now();
        for key in [5, 1, 4, 2, 3, 0] {
            let deadline = start + Duration::from_millis(4 * key as u64);
            port.start_timer_at(key, deadline, Operation::new()).unwrap();
        }
        let keys: Vec<usize> = dequeue_all(&port, 6).iter().map(|c| c.key()).collect();
        assert_eq!(keys, [0, 1, 2, 3, 4, 5]);
    }

    /// Rules 78 and 80, for timers: one packet, with the reason; nothing to cancel afterwards.
    fn rule_80_a_timer_is_cancelled_once(ports: &Ports) {
        let port = ports.open(1);
        let hour = Duration::from_secs(3600);
        let kept = port.start_timer(1, hour, Operation::new()).unwrap();
        let id = port.start_timer(2, hour, Operation::with_context("mine")).unwrap();
        assert!(port.cancel_timer(id));
        assert!(!port.cancel_timer(id), "its packet is queued");
        let (_, operation) = dequeue_failure(&port, OperationKind::Timer, ErrorKind::Cancelled);
        assert_eq!(operation.context::<&str>(), Some(&"mine"));
        assert!(!port.cancel_timer(id), "its packet was dequeued");
        assert_quiet(&port);

        // An operation that is started again has another id.
        let again = port.start_timer(2, Duration::ZERO, operation).unwrap();
        assert!(!port.cancel_timer(id), "a late cancel hits the wrong start");
        let completion = dequeue_within(&port, OperationKind::Timer);
        assert_eq!(completion.operation_id(), Some(again));
        assert!(!port.cancel_timer(again), "it has expired");
        assert!(port.cancel_timer(kept));
        dequeue_failure(&port, OperationKind::Timer, ErrorKind::Cancelled);
    }

    /// A thread that waits already wakes for a timer that is started after it, and for one that is
    /// due before the one it waits for.
    fn a_new_timer_wakes_a_waiting_thread(ports: &Ports) {
        let port = ports.shared(1);
        let worker = Worker::spawn();
        port.start_timer(1, Duration::from_secs(3600), Operation::new()).unwrap();
        for delay in [0, 1, 20] {
            let answer = worker.park({
                let port = Arc::clone(&port);
                move || port.dequeue(None).map(|completion| completion.key())
            });
            port.start_timer(2, Duration::from_millis(delay), Operation::new()).unwrap();
            assert_eq!(answer.wait(), Ok(2));
        }
    }

    /// Many timers give one packet each, and none before its time, also where others are due.
    fn many_timers_give_one_packet_each(ports: &Ports) {
        const TIMERS: usize = 2_000;
        let port = ports.open(1);
        let mut random = Random::new(1);
        let mut deadlines = Vec::new();
        let mut cancelled = 0;
        for key in 0..TIMERS {
            let deadline = Instant::now() + Duration::from_micros(random.below(30_000));
            let id = port.start_timer_at(key, deadline, Operation::new()).unwrap();
            deadlines.push(deadline);
            if random.below(4) == 0 {
                cancelled += usize::from(port.cancel_timer(id));
            }
        }
        let mut seen = HashSet::new();
        let mut said_cancelled = 0;
        for _ in 0..TIMERS {
            let completion = dequeue_within(&port, OperationKind::Timer);
            let key = completion.key();
            assert!(seen.insert(key), "timer {key} fired twice");
            match completion.error() {
                Some(_) => said_cancelled += 1,
                None => assert!(Instant::now() >= deadlines[key], "timer {key} fired early"),
            }
        }
        assert_eq!(said_cancelled, cancelled);
        assert_quiet(&port);
    }

    /// The longest delay there is does not overflow.
    fn a_timer_with_the_longest_delay_waits(ports: &Ports) {
        let port = ports.open(1);
        let id = port.start_timer(1, Duration::MAX, Operation::new()).unwrap();
        assert_quiet(&port);
        assert!(port.cancel_timer(id));
        dequeue_failure(&port, OperationKind::Timer, ErrorKind::Cancelled);
    }

    /// The timer of a port keeps a poller informed: a poll after the deadline brings it.
    fn polling_alone_brings_timers(ports: &Ports) {
        let port = ports.open(1);
        port.start_timer(1, Duration::from_millis(2), Operation::new()).unwrap();
        wait_until("the timer's packet", || port.dequeue(Some(Duration::ZERO)).is_ok());
    }

    /// Rule 39: a thread can serve two ports in turn; each keeps its packets.
    fn rule_39_one_thread_can_serve_two_ports_in_turn(ports: &Ports) {
        let (first, second) = (ports.open(1), ports.open(1));
        let (stream, mut peer) = tcp_pair();
        let stream = first.associate(stream, 1).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        for round in 0..20 {
            first.post(round, 1, None).unwrap();
            second.post(round, 2, None).unwrap();
            assert_eq!(dequeue(&second).bytes(), 2);
            assert_eq!(dequeue(&first).bytes(), 1);
        }
        assert_quiet(&second);
        peer.write_all(b"abc").unwrap();
        assert_eq!(dequeue_within(&first, OperationKind::Recv).bytes(), 3);
        assert_quiet(&second);
    }
}

/// The names of `PROACTOR_BACKEND`.
#[test]
fn a_backend_is_chosen_by_name() {
    assert_eq!(BackendChoice::from_name("auto"), Ok(BackendChoice::Automatic));
    assert_eq!(BackendChoice::from_name("io_uring"), Ok(BackendChoice::IoUring));
    assert_eq!(BackendChoice::from_name("epoll"), Ok(BackendChoice::Epoll));
    assert_eq!(BackendChoice::from_name("iocp"), Ok(BackendChoice::Iocp));
    let error = BackendChoice::from_name("kqueue").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// Every name is known on every system; the refusal of another system's backend says what it is.
#[test]
fn a_backend_of_another_system_is_refused_with_its_cause() {
    let (others, system): (&[BackendChoice], &str) = if cfg!(windows) {
        (&[BackendChoice::IoUring, BackendChoice::Epoll], "Linux")
    } else {
        (&[BackendChoice::Iocp], "Windows")
    };
    for &other in others {
        let refused = CompletionPort::builder().backend(other).build().unwrap_err();
        for error in [proactor::probe(other).unwrap_err(), refused] {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(system), "{error}");
        }
    }
}

/// A port without any choice opens, on whatever this machine has.
#[test]
fn a_port_opens_without_any_choice() {
    let port = CompletionPort::new(0).unwrap();
    let names: &[&str] = if cfg!(windows) { &["iocp"] } else { &["io_uring", "epoll"] };
    assert!(names.contains(&port.backend().name()));
    assert!(!port.backend().to_string().is_empty());
    let mut byte = [0];
    let (stream, mut peer) = tcp_pair();
    let stream = port.associate(stream, 1).unwrap();
    stream.send(Operation::new(), "x").unwrap();
    assert_eq!(dequeue_within(&port, OperationKind::Send).bytes(), 1);
    peer.read_exact(&mut byte).unwrap();
}
