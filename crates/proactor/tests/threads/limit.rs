//! The concurrency limit, and which threads count (rules 38, 39 and 42).

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proactor::{DequeueError, Operation};

use crate::common::worker::{Answer, Worker, spin_until};
use crate::common::*;
use crate::{CloseAtEnd, OneRuns, expect, park, post, take, with_running_handlers};

on_each_backend! {
    /// Rule 38: at the limit a packet stays queued, although a thread waits.
    fn rule_38_limit_gates_waiting_threads(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let one = OneRuns::at(port)?;
            post(port, 1);
            expect(one.idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            // The slot is free when the thread comes back, and it takes the packet itself.
            let taken = take(&one.running, port, Duration::ZERO).wait();
            expect(taken == Ok(1), "the packet was still queued")
        });
    }

    /// Rule 38: at the limit a thread that comes to dequeue waits, although a packet is queued.
    fn rule_38_limit_gates_threads_that_come_new(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let (running, new) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            post(port, 0);
            expect(take(&running, port, HANG).wait() == Ok(0), "the first packet")?;
            post(port, 1);
            let taken = take(&new, port, QUIET).wait();
            expect(taken == Err(DequeueError::TimedOut), "a second thread ran at limit 1")?;
            new.exit();
            let taken = take(&running, port, Duration::ZERO).wait();
            expect(taken == Ok(1), "the packet was still queued")
        });
    }

    /// Rule 38: a slot that becomes free releases a waiting thread at once.
    fn rule_38_a_free_slot_releases_a_waiting_thread(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let one = OneRuns::at(port)?;
            post(port, 1);
            post(port, 2);
            expect(take(&one.running, port, HANG).wait() == Ok(1), "the running thread goes on")?;
            expect(one.idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            one.running.exit();
            expect(one.idle.wait() == Ok(2), "the slot of a thread that ended is free")
        });
    }

    /// Rule 38: whatever comes, no more handlers run at once than the limit says.
    fn rule_38_no_more_handlers_run_than_the_limit_says(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        for limit in [1, 2] {
            with_running_handlers(ports, limit, |port| {
                const PACKETS: usize = 400;
                let running = Arc::new(AtomicUsize::new(0));
                let most = Arc::new(AtomicUsize::new(0));
                let workers: Vec<Worker> = (0..5).map(|_| Worker::spawn()).collect();
                let _close = CloseAtEnd(port);
                let answers: Vec<_> = workers
                    .iter()
                    .map(|worker| {
                        let (port, running, most) =
                            (Arc::clone(port), Arc::clone(&running), Arc::clone(&most));
                        worker.start(move || {
                            let mut taken = 0;
                            while port.dequeue(None).is_ok() {
                                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                                most.fetch_max(now, Ordering::SeqCst);
                                let end = Instant::now() + Duration::from_micros(50);
                                spin_until(|| Instant::now() >= end);
                                taken += 1;
                                running.fetch_sub(1, Ordering::SeqCst);
                            }
                            taken
                        })
                    })
                    .collect();
                for key in 0..PACKETS {
                    post(port, key);
                    if key % 7 == 0 {
                        thread::yield_now();
                    }
                }
                wait_until("all packets to be handled", || {
                    port.counters().dequeued_packets == PACKETS as u64
                        && running.load(Ordering::SeqCst) == 0
                });
                port.close();
                let taken: usize = answers.into_iter().map(Answer::wait).sum();
                assert_eq!(taken, PACKETS);
                expect(most.load(Ordering::SeqCst) <= limit, "more handlers ran than allowed")
            });
        }
    }

    /// Rule 38 for packets of I/O: they stay back at the limit as well, and come afterwards.
    fn rule_38_limit_gates_packets_of_io(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let (stream, mut peer) = tcp_pair();
            let stream = port.associate(stream, 5).unwrap();
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
            let one = OneRuns::at(port)?;
            peer.write_all(b"data").unwrap();
            expect(one.idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            one.running.exit();
            expect(one.idle.wait() == Ok(5), "the receive's packet comes when the slot is free")
        });
    }

    /// Rule 39: a thread that never dequeued is no thread of the port, however busy it is with it.
    fn rule_39_threads_that_never_dequeued_do_not_count(ports: &Ports) {
        let port = ports.shared(1);
        let (poster, taker) = (Worker::spawn(), Worker::spawn());
        for key in 0..20 {
            let answer = take(&taker, &port, HANG);
            let for_poster = Arc::clone(&port);
            poster.run(move || post(&for_poster, key));
            assert_eq!(answer.wait(), Ok(key));
        }
        port.close();
    }

    /// Rule 39: a thread that dequeues from another port gives up its slot in the first.
    fn rule_39_a_call_at_another_port_frees_the_slot(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let other = ports.shared(1);
            let one = OneRuns::at(port)?;
            post(port, 1);
            expect(one.idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            let taken = take(&one.running, &other, Duration::ZERO).wait();
            assert_eq!(taken, Err(DequeueError::TimedOut));
            expect(one.idle.wait() == Ok(1), "the slot at the first port is free")?;

            // And now the thread counts at the other port.
            let second = Worker::spawn();
            post(&other, 2);
            let taken = take(&second, &other, QUIET).wait();
            second.exit();
            expect(
                taken == Err(DequeueError::TimedOut) || other.counters().blocked_threads > 0,
                "the thread does not count at the port that it called last",
            )
        });
    }

    /// Rule 39: a thread that ends gives up its slot.
    fn rule_39_a_thread_that_ends_frees_the_slot(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        let port = ports.shared(1);
        let waiting = Worker::spawn();
        for key in 0..10 {
            let running = Worker::spawn();
            let idle = park(&waiting, &port);
            let first = park(&running, &port);
            post(&port, key);
            assert_eq!(first.wait(), Ok(key));
            post(&port, 100 + key);
            running.exit();
            assert_eq!(idle.wait(), Ok(100 + key));
        }
        port.close();
    }

    /// Rule 42: a thread whose dequeue timed out counts as running again.
    fn rule_42_a_timeout_makes_the_thread_count_again(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let (waiting, running) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&waiting, port);
            let taken = take(&running, port, Duration::from_millis(1)).wait();
            expect(taken == Err(DequeueError::TimedOut), "nothing is queued")?;
            post(port, 1);
            expect(idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            let taken = take(&running, port, Duration::ZERO).wait();
            expect(taken == Ok(1), "the packet was still queued")
        });
    }

    /// Rule 42: it counts also where the limit is reached, so that a thread that comes back has to
    /// wait for it.
    fn rule_42_a_timeout_counts_beyond_the_limit(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let (running, new) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            post(port, 0);
            expect(take(&running, port, HANG).wait() == Ok(0), "the first packet")?;
            post(port, 1);
            let taken = take(&new, port, Duration::from_millis(1)).wait();
            expect(taken == Err(DequeueError::TimedOut), "a second thread ran at limit 1")?;
            // The thread that timed out is the one that runs now.
            let taken = take(&running, port, QUIET).wait();
            expect(taken == Err(DequeueError::TimedOut), "the timeout did not count")?;
            new.exit();
            running.exit();
            let last = Worker::spawn();
            let taken = take(&last, port, HANG).wait();
            expect(taken == Ok(1), "the packet was still queued")
        });
    }
}
