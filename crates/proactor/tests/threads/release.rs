//! In which order waiting threads are released (rules 36 and 37).

use std::time::Duration;

use proactor::DequeueError;

use crate::common::worker::{Answer, Worker};
use crate::{OneRuns, Taken, expect, park, post, take, with_running_handlers};

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
            let one = OneRuns::at(port)?;
            for key in 1..=20 {
                post(port, key);
            }
            for key in 1..=20 {
                let taken = take(&one.running, port, Duration::ZERO).wait();
                expect(taken == Ok(key), "the running thread takes the next packet")?;
            }
            expect(one.idle.within(Duration::ZERO).is_none(), "the waiting thread was released")
        });
    }
}
