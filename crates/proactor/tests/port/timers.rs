//! Timers of a port (rule 80).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proactor::{ErrorKind, Operation, OperationKind};

use crate::common::worker::Worker;
use crate::common::*;

on_each_backend! {
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
}
