//! What a dequeue gives, of one packet and of several (rules 15 and 16, 24 to 31).

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use proactor::{DequeueError, ErrorKind, Operation, OperationKind};

use crate::common::worker::Worker;
use crate::common::*;
use crate::empty_slots;

on_each_backend! {
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
}
