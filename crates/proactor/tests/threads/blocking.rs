//! Handlers that block, and blocking sections (rules 40 and 41).

#[cfg(target_os = "linux")]
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use proactor::DequeueError;

use crate::common::worker::{Answer, Worker, spin_until};
use crate::common::*;
use crate::{CloseAtEnd, OneRuns, expect, park, post, take, with_running_handlers};

on_each_backend! {
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
            let one = OneRuns::at(port)?;
            let for_worker = Arc::clone(port);
            one.running.run(move || {
                assert_eq!(for_worker.blocking(|| for_worker.blocking(|| 2)), 2);
                let unwound = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    for_worker.blocking(|| std::panic::resume_unwind(Box::new("on purpose")))
                }));
                assert!(unwound.is_err());
            });
            post(port, 1);
            expect(one.idle.within(QUIET).is_none(), "the thread does not count again")?;
            let taken = take(&one.running, port, Duration::ZERO).wait();
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
}
