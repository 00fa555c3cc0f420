//! What a port says about itself: its snapshot.
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::worker::Worker;
use common::*;
use proactor::{
    BatchSizes, CompletionPort, Operation, OperationKind, PortSnapshot, StreamSocket,
    WorkerSnapshot, WorkerState,
};

const MINUTE: Duration = Duration::from_secs(60);

fn workers(snapshot: &PortSnapshot) -> &[WorkerSnapshot] {
    snapshot.workers.as_deref().expect("this port is in user space: it knows its threads")
}

/// Waits until the port's threads are in these states.
#[track_caller]
fn wait_for_states(port: &CompletionPort, expected: &[WorkerState]) {
    wait_until(&format!("threads to be {expected:?}"), || {
        workers(&port.snapshot()).iter().map(|worker| worker.state).eq(expected.iter().copied())
    });
}

fn batches(port: &CompletionPort) -> BatchSizes {
    port.snapshot().batches.expect("this port counts its batches")
}

/// Streams with the keys from 0 on, each with a receive that is pending, and their peers.
fn receiving_pairs(port: &CompletionPort, count: usize) -> Vec<(StreamSocket, TcpStream)> {
    let associate = |key| {
        let (stream, peer) = tcp_pair();
        let stream = port.associate(stream, key).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        (stream, peer)
    };
    (0..count).map(associate).collect()
}

fn send_a_byte_to_each(pairs: &[(StreamSocket, TcpStream)]) {
    for (_, peer) in pairs {
        let mut peer = peer;
        peer.write_all(b"x").unwrap();
    }
}

on_each_backend! {
    fn a_new_port_has_nothing_to_show(ports: &Ports) {
        let port = ports.open(3);
        let snapshot = port.snapshot();
        assert_eq!(snapshot.concurrency, 3);
        assert_eq!(snapshot.counters, port.counters());
        assert_eq!((snapshot.queued_packets, snapshot.posted_packets), (Some(0), Some(0)));
        assert_eq!((snapshot.active_threads, snapshot.pending_timers), (Some(0), Some(0)));
        assert_eq!(snapshot.batches, Some(BatchSizes::default()));
        assert_eq!(snapshot.lent_pool_bytes, Some(0));
        assert!(workers(&snapshot).is_empty());
    }

    fn posts_and_timers_are_counted(ports: &Ports) {
        let port = ports.open(1);
        for key in 0..5 {
            port.post(key, 0, None).unwrap();
        }
        let timer = port.start_timer(9, MINUTE, Operation::new()).unwrap();
        let snapshot = port.snapshot();
        assert_eq!((snapshot.queued_packets, snapshot.posted_packets), (Some(5), Some(5)));
        assert_eq!(snapshot.pending_timers, Some(1));
        dequeue_all(&port, 3);
        let snapshot = port.snapshot();
        assert_eq!((snapshot.queued_packets, snapshot.posted_packets), (Some(2), Some(5)));
        assert_eq!(snapshot.counters.dequeued_packets, 3);
        assert!(port.cancel_timer(timer));
        let snapshot = port.snapshot();
        // The cancelled timer's packet is queued, and is no post.
        assert_eq!((snapshot.queued_packets, snapshot.posted_packets), (Some(3), Some(5)));
        assert_eq!(snapshot.pending_timers, Some(0));
    }

    /// Rules 39 and 40, as seen from outside.
    fn a_thread_runs_waits_and_blocks(ports: &Ports) {
        let port = ports.shared(1);
        let worker = Worker::spawn();
        let dequeue_one = |port: &Arc<CompletionPort>| {
            let port = Arc::clone(port);
            move || port.dequeue(None).map(|packet| packet.key()).map_err(drop)
        };
        let waiting = worker.park(dequeue_one(&port));
        wait_for_states(&port, &[WorkerState::Waiting]);
        assert_eq!(port.snapshot().active_threads, Some(0));
        port.post(1, 0, None).unwrap();
        assert_eq!(waiting.wait(), Ok(1));
        wait_for_states(&port, &[WorkerState::Running]);
        let snapshot = port.snapshot();
        assert_eq!(snapshot.active_threads, Some(1));
        let [seen] = workers(&snapshot) else { panic!("{snapshot:?}") };
        assert_eq!((seen.index, seen.dequeued_packets, seen.queued_packets), (0, 1, 0));
        assert_ne!(seen.thread_id, Some(std::process::id()), "it is not the first thread");
        let task = format!("/proc/self/task/{}", seen.thread_id.unwrap());
        assert!(std::path::Path::new(&task).exists());

        let (go_on, wait) = mpsc::channel::<()>();
        let blocking = {
            let port = Arc::clone(&port);
            worker.start(move || port.blocking(|| wait.recv()).is_err())
        };
        wait_for_states(&port, &[WorkerState::Blocked]);
        assert_eq!(port.snapshot().active_threads, Some(0));
        drop(go_on);
        assert!(blocking.wait());
        wait_for_states(&port, &[WorkerState::Running]);
        port.close();
    }

    /// Rule 40: a handler that blocks without saying so is found, and shown.
    fn a_handler_that_blocks_is_shown_as_blocked(ports: &Ports) {
        let port = ports.shared(1);
        let (worker, spare) = (Worker::spawn(), Worker::spawn());
        let (go_on, wait) = mpsc::channel::<()>();
        let blocked = {
            let port = Arc::clone(&port);
            worker.start(move || {
                let packet = port.dequeue(None).map_err(drop);
                let _ = wait.recv();
                packet.map(|packet| packet.key())
            })
        };
        wait_until("the thread", || workers(&port.snapshot()).len() == 1);
        port.post(1, 0, None).unwrap();
        wait_until("the handler", || port.counters().dequeued_packets == 1);
        let freed = {
            let port = Arc::clone(&port);
            spare.start(move || port.dequeue(None).map(|packet| packet.key()).map_err(drop))
        };
        wait_for_states(&port, &[WorkerState::Blocked, WorkerState::Waiting]);
        assert!(port.snapshot().counters.blocked_threads > 0);
        drop(go_on);
        assert_eq!(blocked.wait(), Ok(1));
        port.post(2, 0, None).unwrap();
        assert_eq!(freed.wait(), Ok(2));
        port.close();
    }

    /// What one look at the kernel brought is one batch, whatever queue it went to.
    fn batches_add_up(ports: &Ports) {
        const STREAMS: usize = 12;
        let port = ports.open(1);
        let pairs = receiving_pairs(&port, STREAMS);
        for round in 1..=3 {
            send_a_byte_to_each(&pairs);
            for _ in 0..STREAMS {
                let packet = dequeue_within(&port, OperationKind::Recv);
                let stream = &pairs[packet.key()].0;
                stream.recv(packet.into_operation().unwrap(), Vec::with_capacity(8)).unwrap();
            }
            // A packet that was there at the start of the receive is in no batch.
            let sizes = batches(&port);
            assert!(sizes.packets <= (round * STREAMS) as u64, "{sizes:?}");
            assert!(sizes.count() <= sizes.packets && sizes.count() > 0, "{sizes:?}");
        }
        assert_eq!(port.snapshot().queued_packets, Some(0));
        assert_eq!(workers(&port.snapshot())[0].sources, STREAMS);
    }

    /// Packets that a thread has collected for itself are queued too, until it dequeues them.
    fn what_a_thread_has_collected_counts_as_queued(ports: &Ports) {
        const STREAMS: usize = 8;
        let port = ports.open(1);
        let pairs = receiving_pairs(&port, STREAMS);
        assert_quiet(&port);
        send_a_byte_to_each(&pairs);
        let mut seen = 0;
        for taken in 1..=STREAMS {
            dequeue_within(&port, OperationKind::Recv);
            let queued = port.snapshot().queued_packets.unwrap();
            assert!(queued + taken <= STREAMS, "{queued} are queued after {taken}");
            seen += queued;
        }
        assert!(seen > 0, "no packet was ever queued");
        assert_eq!(port.snapshot().queued_packets, Some(0));
    }

    fn buffers_in_a_handler_s_hands_are_shown(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        let mut kept = Vec::new();
        wait_until("lent buffers to be noted", || {
            peer.write_all(b"some bytes").unwrap();
            kept.extend(dequeue_within(&port, OperationKind::RecvContinuous).take_chunk());
            port.snapshot().lent_pool_bytes > Some(0)
        });
        assert!(port.snapshot().lent_pool_bytes <= Some(port.counters().pool_bytes));
    }

    /// A thread that has gone is not shown, and what it did stays in the sums.
    fn a_thread_that_goes_leaves_its_counts(ports: &Ports) {
        let port = ports.shared(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        let worker = Worker::spawn();
        let answer = {
            let port = Arc::clone(&port);
            worker.park(move || port.dequeue(None).map(|packet| packet.bytes()).map_err(drop))
        };
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        peer.write_all(b"four").unwrap();
        assert_eq!(answer.wait(), Ok(4));
        let before = port.snapshot();
        assert_eq!(workers(&before).len(), 1);
        worker.exit();
        let after = port.snapshot();
        assert!(workers(&after).is_empty());
        assert_eq!(after.counters.dequeued_packets, 1);
        assert!(after.batches.unwrap().packets >= before.batches.unwrap().packets);
        port.close();
        assert!(workers(&port.snapshot()).is_empty());
    }

    /// Looking takes nothing away and holds nobody up, from however many threads.
    fn looking_does_not_disturb(ports: &Ports) {
        const PACKETS: usize = 20_000;
        let port = ports.shared(2);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| while port.dequeue(None).is_ok() {});
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !done.load(Ordering::Relaxed) {
                        let snapshot = port.snapshot();
                        assert!(snapshot.counters.dequeued_packets >= last, "{snapshot:?}");
                        assert!(snapshot.active_threads <= Some(3), "{snapshot:?}");
                        assert!(snapshot.posted_packets <= Some(PACKETS as u64), "{snapshot:?}");
                        last = snapshot.counters.dequeued_packets;
                    }
                });
            }
            for key in 0..PACKETS {
                port.post(key, 0, None).unwrap();
            }
            wait_until("all packets", || port.counters().dequeued_packets == PACKETS as u64);
            assert_eq!(port.snapshot().posted_packets, Some(PACKETS as u64));
            done.store(true, Ordering::Relaxed);
            port.close();
        });
    }
}
