//! Closing the port (rules 20 and 21).

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use proactor::{DequeueError, ErrorKind, Operation};

use crate::common::worker::Worker;
use crate::common::*;
use crate::empty_slots;

on_each_backend! {
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
}
