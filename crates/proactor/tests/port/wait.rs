//! Waiting at the port: time limits, and what ends a wait (rules 18, 19 and 39).

use std::io::Write;
#[cfg(target_os = "linux")]
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use proactor::{DequeueError, Operation, OperationKind};

use crate::common::worker::Worker;
use crate::common::*;
use crate::empty_slots;

on_each_backend! {
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
        #[cfg(target_os = "linux")]
        {
            // SAFETY: all-zero is a valid sigaction: no flags, so that every wait sees EINTR.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            // SAFETY: the action lives for the call, and its handler does nothing.
            let result = unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
            assert_eq!(result, 0);
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
