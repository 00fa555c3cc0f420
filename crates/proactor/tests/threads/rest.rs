//! Threads at a port at which nothing happens.

use std::thread;
use std::time::{Duration, Instant};

use proactor::{DequeueError, Operation};

use crate::common::worker::Worker;
use crate::common::*;
use crate::park;

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
            thread::sleep(Duration::from_millis(1));
            since.elapsed() > Duration::from_millis(150)
        });
        port.close();
        for answer in answers {
            assert_eq!(answer.wait(), Err(DequeueError::Closed));
        }
    }
}
