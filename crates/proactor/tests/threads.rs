//! Threads at the port: release order, the concurrency limit, blocked and spinning handlers
//! (rules 35 to 42).
//!
//! The test's own thread never dequeues, so it is no thread of the port. A [`Worker`] between two
//! pieces of work spins, so to the port it is in a handler and runs.

mod common;

use std::io::Write;
use std::net::TcpStream;
#[cfg(target_os = "linux")]
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::worker::{Answer, Worker, spin_until};
use common::*;
use proactor::{CompletionPort, DequeueError, Operation, OperationKind, StreamSocket};

type Taken = Result<usize, DequeueError>;

/// Dequeues on a worker; the answer is the packet's key.
fn take(worker: &Worker, port: &Arc<CompletionPort>, timeout: Duration) -> Answer<Taken> {
    let port = Arc::clone(port);
    worker.start(move || port.dequeue(Some(timeout)).map(|completion| completion.key()))
}

/// The same, and returns once the worker waits.
fn park(worker: &Worker, port: &Arc<CompletionPort>) -> Answer<Taken> {
    let port = Arc::clone(port);
    worker.park(move || port.dequeue(Some(HANG)).map(|completion| completion.key()))
}

fn post(port: &CompletionPort, key: usize) {
    port.post(key, 0, None).unwrap();
}

fn expect(condition: bool, what: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what.to_owned()) }
}

/// Closes the port at the end of a scenario, also where that ends early: declared behind the
/// workers, it goes before them, so that none of them waits any more when it is joined.
struct CloseAtEnd<'a>(&'a CompletionPort);

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs a scenario in which no handler blocks, on a port with this limit.
///
/// A handler that spins keeps its slot. But where the machine is so busy that the spinning thread
/// gets no processor for a while, the port may take it for blocked, and rightly so for all that can
/// be seen from outside. Such a run proves nothing and is repeated.
#[track_caller]
fn with_running_handlers(
    ports: &Ports,
    concurrency: usize,
    scenario: impl Fn(&Arc<CompletionPort>) -> Result<(), String>,
) {
    let mut last = String::new();
    for _ in 0..20 {
        let port = ports.shared(concurrency);
        let outcome = scenario(&port);
        let taken_for_blocked = port.counters().blocked_threads;
        port.close();
        match outcome {
            Ok(()) => return,
            Err(what) if taken_for_blocked == 0 => panic!("{what}"),
            Err(what) => last = what,
        }
        println!("repeated: a running thread was taken for blocked ({last})");
    }
    panic!("20 runs in which running threads were taken for blocked; last: {last}");
}

on_each_backend! {
    /// Rule 36: the thread that came last is released first.
    fn rule_36_waiting_threads_are_released_last_in_first_out(ports: &Ports) {
        skip_under_wine!(36, "it releases the thread that has waited longest");
        let port = ports.shared(4);
        let workers: Vec<Worker> = (0..4).map(|_| Worker::spawn()).collect();
        for round in 0..3 {
            let mut waiting: Vec<Answer<Taken>> =
                workers.iter().map(|worker| park(worker, &port)).collect();
            for key in 0..4 {
                post(&port, round * 10 + key);
                let last = waiting.pop().unwrap();
                assert_eq!(last.wait(), Ok(round * 10 + key), "another thread was released");
            }
        }
        port.close();
    }

    /// Rule 36: a thread that comes back is the last one again, so one thread serves a trickle of
    /// packets and the others stay cold.
    fn rule_36_a_thread_that_returns_is_the_next_to_be_released(ports: &Ports) {
        skip_under_wine!(36, "it releases the thread that has waited longest");
        let port = ports.shared(3);
        let workers: Vec<Worker> = (0..3).map(|_| Worker::spawn()).collect();
        let cold: Vec<_> = workers[..2].iter().map(|worker| park(worker, &port)).collect();
        for key in 0..10 {
            let warm = park(&workers[2], &port);
            post(&port, key);
            assert_eq!(warm.wait(), Ok(key));
        }
        port.close();
        for answer in cold {
            assert_eq!(answer.wait(), Err(DequeueError::Closed));
        }
    }

    /// Rule 36: a thread whose wait timed out is no longer in the order, and a packet is not lost
    /// on it.
    fn rule_36_a_thread_that_timed_out_is_not_released(ports: &Ports) {
        let port = ports.shared(3);
        let (first, second) = (Worker::spawn(), Worker::spawn());
        for round in 0..20 {
            let waiting = park(&first, &port);
            let gone = take(&second, &port, Duration::from_millis(1)).wait();
            assert_eq!(gone, Err(DequeueError::TimedOut));
            post(&port, round);
            assert_eq!(waiting.wait(), Ok(round));
        }
        port.close();
    }

    /// Rule 37: a running thread that dequeues takes the next packet, ahead of those that wait.
    fn rule_37_a_running_thread_takes_the_next_packet(ports: &Ports) {
        skip_under_wine!(36, "it releases the thread that has waited longest");
        with_running_handlers(ports, 1, |port| {
            let (waiting, running) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&waiting, port);
            let first = park(&running, port);
            post(port, 0);
            expect(first.wait() == Ok(0), "the last to wait is released")?;
            for key in 1..=20 {
                post(port, key);
            }
            for key in 1..=20 {
                let taken = take(&running, port, Duration::ZERO).wait();
                expect(taken == Ok(key), "the running thread takes the next packet")?;
            }
            expect(idle.within(Duration::ZERO).is_none(), "the waiting thread was released")
        });
    }

    /// Rule 38: at the limit a packet stays queued, although a thread waits.
    fn rule_38_limit_gates_waiting_threads(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let (waiting, running) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&waiting, port);
            let first = park(&running, port);
            post(port, 0);
            expect(first.wait() == Ok(0), "the last to wait is released")?;
            post(port, 1);
            expect(idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            // The slot is free when the thread comes back, and it takes the packet itself.
            let taken = take(&running, port, Duration::ZERO).wait();
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
            let (waiting, running) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&waiting, port);
            let first = park(&running, port);
            post(port, 0);
            expect(first.wait() == Ok(0), "the last to wait is released")?;
            post(port, 1);
            post(port, 2);
            expect(take(&running, port, HANG).wait() == Ok(1), "the running thread goes on")?;
            expect(idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            running.exit();
            expect(idle.wait() == Ok(2), "the slot of a thread that ended is free")
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
            let (waiting, running) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&waiting, port);
            let first = park(&running, port);
            post(port, 0);
            expect(first.wait() == Ok(0), "the last to wait is released")?;
            peer.write_all(b"data").unwrap();
            expect(idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            running.exit();
            expect(idle.wait() == Ok(5), "the receive's packet comes when the slot is free")
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
            let (waiting, running) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&waiting, port);
            let first = park(&running, port);
            post(port, 0);
            expect(first.wait() == Ok(0), "the last to wait is released")?;
            post(port, 1);
            expect(idle.within(QUIET).is_none(), "a second thread was released at limit 1")?;
            let taken = take(&running, &other, Duration::ZERO).wait();
            assert_eq!(taken, Err(DequeueError::TimedOut));
            expect(idle.wait() == Ok(1), "the slot at the first port is free")?;

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

    /// Rule 40: a handler that blocks gives up its slot, without saying so.
    fn rule_40_a_blocked_handler_is_found(ports: &Ports) {
        skip_under_wine!(36, "it releases the thread that has waited longest");
        let port = ports.shared(1);
        let (waiting, blocking) = (Worker::spawn(), Worker::spawn());
        let idle = park(&waiting, &port);
        let (release, released) = mpsc::channel::<()>();
        let for_worker = Arc::clone(&port);
        let blocked = blocking.park(move || {
            let key = for_worker.dequeue(Some(HANG)).map(|completion| completion.key());
            released.recv_timeout(HANG).expect("the other thread gets its packet");
            key
        });
        post(&port, 0);
        post(&port, 1);
        assert_eq!(idle.wait(), Ok(1));
        // On Windows the kernel frees the slot, and tells nobody.
        #[cfg(target_os = "linux")]
        assert!(port.counters().blocked_threads > 0);
        release.send(()).unwrap();
        assert_eq!(blocked.wait(), Ok(0));
        port.close();
    }

    /// Rule 40: one blocked handler after the other; each time one more thread is released.
    fn rule_40_several_blocked_handlers_are_found(ports: &Ports) {
        const BLOCKED: usize = 4;
        let port = ports.shared(1);
        let started = Arc::new(AtomicUsize::new(0));
        let (tell_all, all_told) = mpsc::channel::<()>();
        let all_told = Arc::new(Mutex::new(all_told));
        let workers: Vec<Worker> = (0..=BLOCKED).map(|_| Worker::spawn()).collect();
        let answers: Vec<_> = workers
            .iter()
            .map(|worker| {
                let (port, started, all_told) =
                    (Arc::clone(&port), Arc::clone(&started), Arc::clone(&all_told));
                worker.park(move || {
                    let completion = port.dequeue(Some(HANG)).unwrap();
                    if started.fetch_add(1, Ordering::SeqCst) < BLOCKED {
                        // Blocks in the mutex or in the channel, until the last one is there.
                        let _ = all_told.lock().unwrap().recv_timeout(HANG);
                    }
                    completion.key()
                })
            })
            .collect();
        for key in 0..=BLOCKED {
            post(&port, key);
        }
        wait_until("every packet to be taken", || started.load(Ordering::SeqCst) == BLOCKED + 1);
        drop(tell_all);
        let mut keys: Vec<usize> = answers.into_iter().map(Answer::wait).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..=BLOCKED).collect::<Vec<_>>());
        port.close();
    }

    /// Rule 40: inside a blocking section the slot is free at once. The section spins here, so
    /// nothing but the section itself can tell.
    // On Windows the kernel frees the slot of a thread that blocks; one that spins keeps it.
    #[cfg(target_os = "linux")]
    fn rule_40_a_blocking_section_frees_the_slot(ports: &Ports) {
        let port = ports.shared(1);
        let (waiting, blocking) = (Worker::spawn(), Worker::spawn());
        let idle = park(&waiting, &port);
        let first = park(&blocking, &port);
        post(&port, 0);
        assert_eq!(first.wait(), Ok(0));
        post(&port, 1);
        let done = Arc::new(AtomicBool::new(false));
        let section = {
            let (port, done) = (Arc::clone(&port), Arc::clone(&done));
            blocking.start(move || {
                port.blocking(|| {
                    spin_until(|| done.load(Ordering::SeqCst));
                    "from the section"
                })
            })
        };
        assert_eq!(idle.wait(), Ok(1));
        done.store(true, Ordering::SeqCst);
        assert_eq!(section.wait(), "from the section");
        port.close();
    }

    /// Rule 40: a thread that comes new during a blocking section takes the free slot.
    // On Windows the kernel frees the slot of a thread that blocks; one that spins keeps it.
    #[cfg(target_os = "linux")]
    fn rule_40_a_new_thread_takes_the_slot_of_a_blocking_section(ports: &Ports) {
        let port = ports.shared(1);
        let (new, blocking) = (Worker::spawn(), Worker::spawn());
        post(&port, 0);
        assert_eq!(take(&blocking, &port, HANG).wait(), Ok(0));
        let done = Arc::new(AtomicBool::new(false));
        let section = {
            let (port, done) = (Arc::clone(&port), Arc::clone(&done));
            blocking.start(move || port.blocking(|| spin_until(|| done.load(Ordering::SeqCst))))
        };
        post(&port, 1);
        assert_eq!(take(&new, &port, HANG).wait(), Ok(1));
        done.store(true, Ordering::SeqCst);
        section.wait();
        port.close();
    }

    /// Rule 40: blocking sections can be nested, can be used by any thread, and end where the
    /// section panics: the thread counts again afterwards.
    // On Windows the kernel frees the slot of a thread that blocks; one that spins keeps it.
    #[cfg(target_os = "linux")]
    fn rule_40_blocking_sections_nest_and_unwind(ports: &Ports) {
        let port = ports.shared(1);
        assert_eq!(port.blocking(|| 1), 1, "not a thread of the port");
        with_running_handlers(ports, 1, |port| {
            let (waiting, running) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&waiting, port);
            let first = park(&running, port);
            post(port, 0);
            expect(first.wait() == Ok(0), "the last to wait is released")?;
            let for_worker = Arc::clone(port);
            running.run(move || {
                assert_eq!(for_worker.blocking(|| for_worker.blocking(|| 2)), 2);
                let unwound = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    for_worker.blocking(|| std::panic::resume_unwind(Box::new("on purpose")))
                }));
                assert!(unwound.is_err());
            });
            post(port, 1);
            expect(idle.within(QUIET).is_none(), "the thread does not count again")?;
            let taken = take(&running, port, Duration::ZERO).wait();
            expect(taken == Ok(1), "the packet was still queued")
        });
    }

    /// Rule 40: a handler that blocks gives up one slot, not the limit.
    fn rule_40_a_blocked_handler_frees_one_slot(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let workers: Vec<Worker> = (0..3).map(|_| Worker::spawn()).collect();
            let _close = CloseAtEnd(port);
            let idle = park(&workers[0], port);
            let second = park(&workers[1], port);
            let first = park(&workers[2], port);
            post(port, 0);
            expect(first.wait() == Ok(0), "the last to wait is released")?;
            let done = Arc::new(AtomicBool::new(false));
            let section = {
                let (port, done) = (Arc::clone(port), Arc::clone(&done));
                workers[2].start(move || {
                    port.blocking(|| spin_until(|| done.load(Ordering::SeqCst)));
                })
            };
            post(port, 1);
            post(port, 2);
            let released = second.wait();
            let surplus = idle.within(QUIET);
            done.store(true, Ordering::SeqCst);
            section.wait();
            expect(released == Ok(1), "the free slot releases the next thread")?;
            expect(surplus.is_none(), "one blocked handler released two threads")
        });
    }

    /// Rule 41: a thread that comes out of a blocking section runs on, even above the limit; until
    /// fewer run, nobody is released.
    fn rule_41_a_resumed_thread_may_exceed_the_limit(ports: &Ports) {
        skip_under_wine!(38, "it has no concurrency limit");
        with_running_handlers(ports, 1, |port| {
            let (second, first) = (Worker::spawn(), Worker::spawn());
            let _close = CloseAtEnd(port);
            let idle = park(&second, port);
            let taken = park(&first, port);
            post(port, 0);
            expect(taken.wait() == Ok(0), "the last to wait is released")?;
            post(port, 1);
            let for_worker = Arc::clone(port);
            let resumed =
                first.start(move || for_worker.blocking(|| idle.wait())).wait();
            expect(resumed == Ok(1), "the section released the other thread")?;
            // Two run now. The one that comes back makes it one: still no slot for it.
            post(port, 2);
            let taken = take(&second, port, QUIET).wait();
            expect(taken == Err(DequeueError::TimedOut), "a thread ran above the limit")?;
            // Its timeout made it a running thread again (rule 42): it has to go.
            second.exit();
            let taken = take(&first, port, Duration::ZERO).wait();
            expect(taken == Ok(2), "the packet was still queued")
        });
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

    /// Rule 40 and beyond it: a handler that spins keeps its slot, but not the sockets that its
    /// thread serves: where the limit allows one more thread, that one serves them.
    fn a_spinning_handler_does_not_hold_up_other_sockets(ports: &Ports) {
        others_are_served(ports, 2, |done| spin_until(|| done.load(Ordering::SeqCst)));
    }

    /// Rule 40: a handler that blocks does not hold up the sockets that its thread serves, even at
    /// limit 1.
    fn rule_40_a_blocked_handler_does_not_hold_up_other_sockets(ports: &Ports) {
        others_are_served(ports, 1, |done| {
            let deadline = Instant::now() + HANG;
            while !done.load(Ordering::SeqCst) {
                assert!(Instant::now() < deadline, "the others are not served");
                thread::sleep(Duration::from_millis(20));
            }
        });
    }

    /// What a handler has started goes out although the handler then blocks: the replies to other
    /// clients are not held back.
    fn rule_40_what_a_blocked_handler_started_goes_out(ports: &Ports) {
        let port = ports.shared(1);
        let (first, mut first_peer) = tcp_pair();
        let first = port.associate(first, 0).unwrap();
        let (second, mut second_peer) = tcp_pair();
        let second = Arc::new(port.associate(second, 1).unwrap());
        let workers: Vec<Worker> = (0..2).map(|_| Worker::spawn()).collect();
        first.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let answers: Vec<_> = workers
            .iter()
            .map(|worker| {
                let (port, second, released) =
                    (Arc::clone(&port), Arc::clone(&second), Arc::clone(&released));
                worker.park(move || {
                    while let Ok(completion) = port.dequeue(None) {
                        if completion.kind() == OperationKind::Recv {
                            second.send(Operation::new(), "reply").unwrap();
                            let released = released.lock().unwrap();
                            released.recv_timeout(HANG).expect("the reply goes out");
                        }
                    }
                })
            })
            .collect();
        first_peer.write_all(b"go").unwrap();
        assert_eq!(read_bytes(&mut second_peer, 5), b"reply");
        release.send(()).unwrap();
        port.close();
        answers.into_iter().for_each(Answer::wait);
    }

    /// Nor does it hold up the ends of other connections, orderly or not.
    fn a_blocked_handler_does_not_hold_up_the_ends_of_others(ports: &Ports) {
        const SOCKETS: usize = 8;
        let port = ports.shared(1);
        let (streams, mut peers): (Vec<StreamSocket>, Vec<TcpStream>) = (0..SOCKETS)
            .map(|key| {
                let (stream, peer) = tcp_pair();
                (port.associate(stream, key).unwrap(), peer)
            })
            .unzip();
        for stream in &streams {
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        }
        let ends = Arc::new(AtomicUsize::new(0));
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let workers: Vec<Worker> = (0..2).map(|_| Worker::spawn()).collect();
        let answers: Vec<_> = workers
            .iter()
            .map(|worker| {
                let (port, ends, released) =
                    (Arc::clone(&port), Arc::clone(&ends), Arc::clone(&released));
                worker.start(move || {
                    while let Ok(completion) = port.dequeue(None) {
                        if completion.bytes() > 0 {
                            let released = released.lock().unwrap();
                            released.recv_timeout(HANG).expect("the others end");
                        } else {
                            ends.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        let mut blocker = peers.remove(0);
        blocker.write_all(b"block").unwrap();
        wait_until("the handler to be busy", || released.try_lock().is_err());
        for (index, peer) in peers.into_iter().enumerate() {
            if index % 2 == 0 { drop(peer) } else { reset(peer) }
        }
        wait_until("the ends", || ends.load(Ordering::SeqCst) == SOCKETS - 1);
        release.send(()).unwrap();
        port.close();
        answers.into_iter().for_each(Answer::wait);
    }

    /// A port at which nothing happens costs nothing: threads that wait do not go round in circles.
    fn threads_that_wait_do_not_spin(ports: &Ports) {
        let port = ports.shared(2);
        let (stream, _peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        let workers: Vec<Worker> = (0..3).map(|_| Worker::spawn()).collect();
        let answers: Vec<_> = workers.iter().map(|worker| park(worker, &port)).collect();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        let mut last = port.counters().wait_calls;
        let mut since = Instant::now();
        wait_until("the port to come to rest", || {
            let now = port.counters().wait_calls;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            thread::sleep(Duration::from_millis(1));
            since.elapsed() > Duration::from_millis(150)
        });
        port.close();
        for answer in answers {
            assert_eq!(answer.wait(), Err(DequeueError::Closed));
        }
    }
}

/// Two threads serve eight sockets. The handler of socket 0 is busy, in the way of `wait`, until
/// the messages of all the others are handled.
fn others_are_served(ports: &Ports, concurrency: usize, wait: fn(&AtomicBool)) {
    const SOCKETS: usize = 8;
    let port = ports.shared(concurrency);
    let (streams, mut peers): (Vec<StreamSocket>, Vec<TcpStream>) = (0..SOCKETS)
        .map(|key| {
            let (stream, peer) = tcp_pair();
            (port.associate(stream, key).unwrap(), peer)
        })
        .unzip();
    let streams = Arc::new(streams);
    for stream in streams.iter() {
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
    }
    let handled = Arc::new(AtomicUsize::new(0));
    let busy = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicBool::new(false));
    let workers: Vec<Worker> = (0..2).map(|_| Worker::spawn()).collect();
    let answers: Vec<_> = workers
        .iter()
        .map(|worker| {
            let (port, streams) = (Arc::clone(&port), Arc::clone(&streams));
            let (handled, busy, done) =
                (Arc::clone(&handled), Arc::clone(&busy), Arc::clone(&done));
            worker.start(move || {
                while let Ok(completion) = port.dequeue(None) {
                    let key = completion.key();
                    let operation = completion.into_operation().unwrap();
                    let stay = operation.buffer() == b"stay";
                    // The next receive stands before the handler begins its work.
                    streams[key].recv(operation, Vec::with_capacity(8)).unwrap();
                    if stay {
                        busy.store(true, Ordering::SeqCst);
                        wait(&done);
                    }
                    handled.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for round in 0..3 {
        // Every socket is served once, so each has found the thread that serves it.
        handled.store(0, Ordering::SeqCst);
        for peer in &mut peers {
            peer.write_all(b"hi").unwrap();
        }
        wait_until("a first message of each", || handled.load(Ordering::SeqCst) == SOCKETS);

        handled.store(0, Ordering::SeqCst);
        peers[round].write_all(b"stay").unwrap();
        wait_until("the handler to be busy", || busy.load(Ordering::SeqCst));
        for (key, peer) in peers.iter_mut().enumerate() {
            if key != round {
                peer.write_all(b"hi").unwrap();
            }
        }
        wait_until("the others to be served", || handled.load(Ordering::SeqCst) == SOCKETS - 1);
        // Its own next message too: it has a receive pending.
        peers[round].write_all(b"hi").unwrap();
        wait_until("the busy socket's next message", || handled.load(Ordering::SeqCst) == SOCKETS);
        done.store(true, Ordering::SeqCst);
        wait_until("the busy handler to end", || handled.load(Ordering::SeqCst) == SOCKETS + 1);
        done.store(false, Ordering::SeqCst);
        busy.store(false, Ordering::SeqCst);
    }
    port.close();
    answers.into_iter().for_each(Answer::wait);
}
