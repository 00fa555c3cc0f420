//! Threads at a port at which little happens, or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proactor::{DequeueError, Operation};

use crate::common::worker::Worker;
use crate::common::*;
use crate::{park, post};

on_each_backend! {
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
            // The pace of the looks only: what goes round in circles never rests that long.
            thread::sleep(Duration::from_millis(1));
            since.elapsed() > Duration::from_millis(150)
        });
        port.close();
        for answer in answers {
            assert_eq!(answer.wait(), Err(DequeueError::Closed));
        }
    }

    /// Four threads for packets that come one at a time: one handles each, another looks once
    /// whether it is done with it. On a busy machine a thread may look stuck, and be looked at more
    /// often: then it is tried again.
    fn a_packet_at_a_time_wakes_few_threads(ports: &Ports) {
        const PACKETS: u64 = 10;
        let port = ports.shared(2);
        let handled = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (port, handled) = (Arc::clone(&port), Arc::clone(&handled));
                thread::spawn(move || {
                    while port.dequeue(None).is_ok() {
                        handled.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        wait_until("a packet to take three waits at most", || {
            let before = port.counters().wait_calls;
            for _ in 0..PACKETS {
                let count = handled.load(Ordering::SeqCst);
                post(&port, 1);
                wait_until("the packet", || handled.load(Ordering::SeqCst) > count);
                // So long is the time between two packets.
                thread::sleep(Duration::from_millis(20));
            }
            port.counters().wait_calls - before <= 3 * PACKETS
        });
        port.close();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
