//! A busy handler does not hold up the other sockets of its thread (rule 40).

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use proactor::{Operation, OperationKind, StreamSocket};

use crate::common::worker::{Answer, Worker, spin_until};
use crate::common::*;

on_each_backend! {
    /// Rule 40 and beyond it: a handler that spins keeps its slot, but not the sockets that its
    /// thread serves: where the limit allows one more thread, that one serves them.
    fn a_spinning_handler_does_not_hold_up_other_sockets(ports: &Ports) {
        others_are_served(ports, 2, |gate| spin_until(|| gate.is_open()));
    }

    /// Rule 40: a handler that blocks does not hold up the sockets that its thread serves, even at
    /// limit 1.
    fn rule_40_a_blocked_handler_does_not_hold_up_other_sockets(ports: &Ports) {
        others_are_served(ports, 1, Gate::wait);
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
}

/// What a busy handler waits for.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn is_open(&self) -> bool {
        // Without waiting: to the port the thread runs.
        self.is_open.try_lock().is_ok_and(|is_open| *is_open)
    }

    fn set(&self, is_open: bool) {
        *self.is_open.lock().unwrap() = is_open;
        self.changed.notify_all();
    }

    /// Blocks the thread until it is open.
    fn wait(&self) {
        let is_open = self.is_open.lock().unwrap();
        let waited = self.changed.wait_timeout_while(is_open, HANG, |is_open| !*is_open);
        assert!(!waited.unwrap().1.timed_out(), "the others are not served");
    }
}

/// Two threads serve eight sockets. The handler of socket 0 is busy, in the way of `wait`, until
/// the messages of all the others are handled.
fn others_are_served(ports: &Ports, concurrency: usize, wait: fn(&Gate)) {
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
    let gate = Arc::new(Gate::default());
    let workers: Vec<Worker> = (0..2).map(|_| Worker::spawn()).collect();
    let answers: Vec<_> = workers
        .iter()
        .map(|worker| {
            let (port, streams) = (Arc::clone(&port), Arc::clone(&streams));
            let (handled, busy, gate) =
                (Arc::clone(&handled), Arc::clone(&busy), Arc::clone(&gate));
            worker.start(move || {
                while let Ok(completion) = port.dequeue(None) {
                    let key = completion.key();
                    let operation = completion.into_operation().unwrap();
                    let stay = operation.buffer() == b"stay";
                    // The next receive stands before the handler begins its work.
                    streams[key].recv(operation, Vec::with_capacity(8)).unwrap();
                    if stay {
                        busy.store(true, Ordering::SeqCst);
                        wait(&gate);
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
        gate.set(true);
        wait_until("the busy handler to end", || handled.load(Ordering::SeqCst) == SOCKETS + 1);
        gate.set(false);
        busy.store(false, Ordering::SeqCst);
    }
    port.close();
    answers.into_iter().for_each(Answer::wait);
}
