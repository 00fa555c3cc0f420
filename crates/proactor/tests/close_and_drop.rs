//! What happens when a source, a port or a thread goes (rules 10, 13, 21, 74 to 77, 86, 88).

mod common;

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::worker::Worker;
use common::*;
use proactor::{CompletionPort, DequeueError, ErrorKind, Operation, OperationKind, StreamSocket};

const RECV: OperationKind = OperationKind::Recv;

fn associated(port: &CompletionPort, key: usize) -> (StreamSocket, TcpStream) {
    let (stream, peer) = tcp_pair();
    (port.associate(stream, key).unwrap(), peer)
}

/// Sees the end of the connection, orderly or not, behind any data.
#[track_caller]
fn expect_closed(peer: &mut TcpStream) {
    match read_to_end(peer).1 {
        None | Some(IoErrorKind::ConnectionReset | IoErrorKind::BrokenPipe) => {}
        Some(error) => panic!("the connection should be closed, but: {error}"),
    }
}

on_each_backend! {
    /// Rule 10: dropping one of several clones ends nothing; only the last one closes.
    fn rule_10_only_the_last_clone_closes(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port, 3);
        let clone = stream.clone();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        drop(stream);
        assert_quiet(&port);
        peer.write_all(b"alive").unwrap();
        let (_, operation) = dequeue_success(&port, RECV);
        assert_eq!(operation.buffer(), b"alive");
        clone.recv(operation, Vec::with_capacity(8)).unwrap();
        drop(clone);
        dequeue_failure(&port, RECV, ErrorKind::ConnectionAborted);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the peer sees the end of the stream");
    }

    /// Rules 74 and 75: each pending receive of a source that closes has its packet, as aborted,
    /// with its key, its context and its buffer.
    fn rule_75_pending_receives_are_aborted(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port, 75);
        for number in 0..3_u8 {
            stream.recv(Operation::with_context(number), Vec::with_capacity(10)).unwrap();
        }
        assert_quiet(&port);
        drop(stream);
        for number in 0..3_u8 {
            let completion = dequeue_within(&port, RECV);
            assert_eq!((completion.key(), completion.bytes()), (75, 0));
            assert_eq!(completion.error().unwrap().kind(), ErrorKind::ConnectionAborted);
            let mut operation = completion.into_operation().unwrap();
            assert_eq!(operation.context::<u8>(), Some(&number));
            assert!(operation.take_buffer().unwrap().capacity() >= 10);
        }
        assert_quiet(&port);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }

    /// Rules 74 and 75: the same for receives that the kernel never saw, because nobody dequeued
    /// in between.
    fn rule_75_receives_that_never_ran_are_aborted(ports: &Ports) {
        let port = ports.open(1);
        for _ in 0..20 {
            let (stream, mut peer) = associated(&port, 1);
            stream.recv(Operation::new(), Vec::with_capacity(10)).unwrap();
            stream.recv(Operation::new(), Vec::new()).unwrap();
            drop(stream);
            for _ in 0..2 {
                dequeue_failure(&port, RECV, ErrorKind::ConnectionAborted);
            }
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
        assert_quiet(&port);
    }

    /// Rule 74: a thread that waits at the port gets the packets of a source that another closes.
    fn rule_74_a_waiting_thread_gets_the_packets_of_a_close(ports: &Ports) {
        let port = ports.shared(1);
        let worker = Worker::spawn();
        for _ in 0..10 {
            let (stream, mut peer) = associated(&port, 1);
            let answer = worker.park({
                let port = Arc::clone(&port);
                move || port.dequeue(None).map(|c| c.error().map(|error| error.kind()))
            });
            stream.recv(Operation::new(), Vec::with_capacity(10)).unwrap();
            drop(stream);
            assert_eq!(answer.wait(), Ok(Some(ErrorKind::ConnectionAborted)));
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
        port.close();
    }

    /// Rule 77: a packet that is queued when its source closes keeps its result.
    fn rule_77_a_queued_packet_survives_the_close(ports: &Ports) {
        let port = ports.open(1);
        let (stream, _peer) = associated(&port, 1);
        let first = stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        assert!(stream.cancel(first));
        drop(stream);
        dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        dequeue_failure(&port, RECV, ErrorKind::ConnectionAborted);
        assert_quiet(&port);
    }

    /// Rule 77: a receive that is done with bytes keeps them, although its source closes before the
    /// packet is dequeued.
    fn rule_77_received_bytes_survive_the_close(ports: &Ports) {
        let port = ports.open(1);
        for _ in 0..20 {
            let (streams, mut peers): (Vec<_>, Vec<_>) =
                (0..4).map(|key| associated(&port, key)).unzip();
            for stream in &streams {
                stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
            }
            for peer in &mut peers {
                peer.write_all(b"data").unwrap();
            }
            // One is dequeued; the others are done as well by now, or are ended by the close.
            let first = dequeue_within(&port, RECV);
            assert_eq!(first.result(), Ok(4));
            drop(streams);
            for completion in dequeue_all(&port, 3) {
                let bytes = completion.operation().unwrap().buffer();
                match completion.result() {
                    Ok(count) => assert_eq!((count, bytes), (4, &b"data"[..])),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
                        assert_eq!((completion.bytes(), bytes), (0, &b""[..]));
                    }
                }
            }
            assert_quiet(&port);
        }
    }

    /// Rule 86: a source that is set to close hard resets its peer, and aborts its own operations.
    fn rule_86_an_abortive_close_resets_the_peer(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port, 1);
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        assert_quiet(&port);
        stream.options().unwrap().set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        dequeue_failure(&port, RECV, ErrorKind::ConnectionAborted);
        skip_under_wine!(59, "a read after the reset sees an orderly end");
        let error = peer.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), IoErrorKind::ConnectionReset);
    }

    /// A source that nothing is pending on closes at once: the peer sees it, without any dequeue.
    fn an_idle_source_closes_at_once(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port, 1);
        drop(stream);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(port.associate(listener, 1).unwrap());
        assert!(TcpStream::connect(address).is_err());
    }

    /// Rules 13 and 21: dropping the port frees every operation in flight, of every kind, without a
    /// packet; the sources stay, and refuse new ones.
    fn rule_21_dropping_the_port_frees_what_is_in_flight(ports: &Ports) {
        let drops = DropCount::default();
        let port = ports.open(1);
        let operation = || Operation::with_context(drops.token());
        let (near, mut peer) = tcp_pair();
        shrink_buffers(&near);
        let stream = port.associate(near, 1).unwrap();
        let (continuous, _continuous_peer) = associated(&port, 2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = port.associate(listener, 3).unwrap();
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        let datagram = port.associate(datagram, 4).unwrap();
        let file = port.associate(temporary_file(), 5).unwrap();

        stream.recv(operation(), Vec::with_capacity(8)).unwrap();
        stream.recv(operation(), Vec::new()).unwrap();
        stream.send(operation(), vec![0; 8 * 1024 * 1024]).unwrap();
        stream.send(operation(), "behind it").unwrap();
        continuous.recv_continuous(operation()).unwrap();
        listener.accept(operation()).unwrap();
        datagram.recv_from(operation(), Vec::with_capacity(8)).unwrap();
        port.start_timer(6, Duration::from_secs(3600), operation()).unwrap();
        assert_quiet(&port);
        file.write_at(operation(), "not dequeued", 0).unwrap();
        port.post(7, 0, Some(operation())).unwrap();
        assert_eq!(drops.get(), 0);
        drop(port);
        wait_until("ten contexts to be freed", || drops.get() == 10);

        refused(stream.recv(Operation::new(), Vec::with_capacity(8)), ErrorKind::PortClosed);
        refused(stream.send(Operation::new(), "x"), ErrorKind::PortClosed);
        refused(stream.disconnect(Operation::new()), ErrorKind::PortClosed);
        refused(continuous.recv_continuous(Operation::new()), ErrorKind::PortClosed);
        refused(listener.accept(Operation::new()), ErrorKind::PortClosed);
        let result = datagram.recv_from(Operation::new(), Vec::with_capacity(8));
        refused(result, ErrorKind::PortClosed);
        refused(file.read_at(Operation::new(), Vec::with_capacity(8), 0), ErrorKind::PortClosed);
        assert!(!stream.cancel(Operation::new().id()));
        assert_eq!(stream.cancel_all(), 0);
        assert_eq!(stream.key(), 1);
        drop((stream, continuous, listener, datagram, file));
        expect_closed(&mut peer);
    }

    /// Rule 21: a connection that was accepted and not dequeued is closed with the port.
    fn rule_21_an_accepted_connection_in_the_queue_is_closed(ports: &Ports) {
        let port = ports.open(1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = port.associate(listener, 1).unwrap();
        for _ in 0..4 {
            listener.accept(Operation::new()).unwrap();
        }
        let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(address)).collect();
        drop(dequeue_within(&port, OperationKind::Accept));
        drop(listener);
        drop(port);
        for client in &mut clients {
            expect_closed(client);
        }
    }

    /// Dropping sources after their port, in any order, closes them.
    fn sources_that_outlive_their_port_close_when_dropped(ports: &Ports) {
        let port = ports.open(1);
        let (first, mut first_peer) = associated(&port, 1);
        let (second, mut second_peer) = associated(&port, 2);
        first.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        second.recv_continuous(Operation::new()).unwrap();
        assert_quiet(&port);
        let clone = second.clone();
        drop(first);
        drop(port);
        drop(second);
        drop(clone);
        expect_closed(&mut first_peer);
        expect_closed(&mut second_peer);
    }

    /// A port may close while others start, dequeue, post, cancel and close sources: everybody gets
    /// an answer, and every operation is freed once.
    fn rule_20_a_port_closes_under_load(ports: &Ports) {
        for round in 0..8 {
            let port = ports.shared(2);
            let drops = DropCount::default();
            let stop = Arc::new(AtomicBool::new(false));
            let (streams, peers): (Vec<_>, Vec<_>) =
                (0..8).map(|key| associated(&port, key)).unzip();
            let streams = Arc::new(streams);
            let threads: Vec<_> = (0..4)
                .map(|index| {
                    let (port, streams) = (Arc::clone(&port), Arc::clone(&streams));
                    let (drops, stop) = (drops.clone(), Arc::clone(&stop));
                    thread::spawn(move || {
                        load(index, &port, &streams, &drops, &stop)
                    })
                })
                .collect();
            let mut random = Random::new(round);
            let wait = 50 + random.below(400);
            wait_until("some traffic", || port.counters().dequeued_packets > wait);
            port.close();
            stop.store(true, Ordering::SeqCst);
            let started: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
            drop(streams);
            drop(port);
            wait_until("every context to be freed", || drops.get() == started);
            drop(peers);
        }
    }

    /// Rule 88: an operation outlives the thread that started it, be it a worker or not, and
    /// whatever the operation waits for.
    fn rule_88_operations_outlive_the_thread_that_started_them(ports: &Ports) {
        const LENGTH: usize = 1024 * 1024;
        for as_worker in [false, true] {
            let port = ports.shared(2);
            let (near, mut peer) = tcp_pair();
            shrink_buffers(&near);
            shrink_buffers(&peer);
            let stream = Arc::new(port.associate(near, 1).unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let listener = port.associate(listener, 2).unwrap();
            let (continuous, mut continuous_peer) = associated(&port, 3);

            let worker = Worker::spawn();
            let expected = pattern(1, LENGTH);
            let (for_worker, to_send) = (Arc::clone(&port), expected.clone());
            let for_stream = Arc::clone(&stream);
            let (listener, continuous) = worker.run(move || {
                let (port, stream) = (for_worker, for_stream);
                if as_worker {
                    // Now the thread is one of the port's, and what it starts is its own.
                    assert!(port.dequeue(Some(Duration::ZERO)).is_err());
                }
                stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
                stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
                stream.send(Operation::new(), to_send).unwrap();
                listener.accept(Operation::new()).unwrap();
                continuous.recv_continuous(Operation::new()).unwrap();
                port.start_timer(4, Duration::from_millis(1), Operation::new()).unwrap();
                if as_worker {
                    // And the kernel has it.
                    dequeue_within(&port, OperationKind::Timer);
                    assert!(port.dequeue(Some(Duration::ZERO)).is_err());
                }
                (listener, continuous)
            });
            worker.exit();

            if !as_worker {
                dequeue_within(&port, OperationKind::Timer);
            }
            assert_quiet(&port);
            peer.write_all(b"12345678more").unwrap();
            assert_eq!(dequeue_success(&port, RECV).1.buffer(), b"12345678");
            assert_eq!(dequeue_success(&port, RECV).1.buffer(), b"more");
            let reader = thread::spawn(move || read_bytes(&mut peer, LENGTH));
            assert_eq!(dequeue_success(&port, OperationKind::Send).0, LENGTH);
            assert_same_bytes(&reader.join().unwrap(), &expected);
            let _client = connect(address);
            dequeue_success(&port, OperationKind::Accept);
            continuous_peer.write_all(b"still").unwrap();
            let mut completion = dequeue_within(&port, OperationKind::RecvContinuous);
            assert_eq!(&*completion.take_chunk().unwrap(), b"still");
            assert_quiet(&port);
            drop((listener, continuous, stream));
        }
    }

    /// Rule 88: the sockets that a thread served are served by others when it ends, also where
    /// packets were ready for it.
    fn rule_88_the_sockets_of_a_thread_that_ends_are_served_by_others(ports: &Ports) {
        const SOCKETS: usize = 10;
        let port = ports.shared(2);
        let (streams, mut peers): (Vec<_>, Vec<_>) =
            (0..SOCKETS).map(|key| associated(&port, key)).unzip();
        for stream in &streams {
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        }
        let streams = Arc::new(streams);
        for _ in 0..10 {
            let worker = Worker::spawn();
            for peer in &mut peers {
                peer.write_all(b"one").unwrap();
            }
            // The thread serves a few, and goes while more are ready for it.
            let (for_worker, for_streams) = (Arc::clone(&port), Arc::clone(&streams));
            let served = worker.run(move || serve(&for_worker, &for_streams, 3));
            worker.exit();
            let rest = serve(&port, &streams, SOCKETS - 3);
            let mut keys = [served, rest].concat();
            keys.sort_unstable();
            assert_eq!(keys, (0..SOCKETS).collect::<Vec<_>>());
        }
        assert_quiet(&port);
    }

    /// Rule 13: the handles of a port's sources do not keep it open.
    fn rule_13_sources_do_not_keep_the_port_open(ports: &Ports) {
        let port = ports.shared(1);
        let (stream, _peer) = associated(&port, 1);
        let worker = Worker::spawn();
        let answer = worker.park({
            let port = Arc::clone(&port);
            move || {
                let error = port.dequeue(None).unwrap_err();
                drop(port);
                error
            }
        });
        port.close();
        assert_eq!(answer.wait(), DequeueError::Closed);
        worker.exit();
        drop(port);
        refused(stream.recv(Operation::new(), Vec::new()), ErrorKind::PortClosed);
    }
}

/// Serves `count` messages, starts the next receive of each, and says whose they were.
fn serve(port: &CompletionPort, streams: &[StreamSocket], count: usize) -> Vec<usize> {
    (0..count)
        .map(|_| {
            let completion = dequeue_within(port, RECV);
            assert_eq!(completion.result(), Ok(3));
            let key = completion.key();
            let operation = completion.into_operation().unwrap();
            streams[key].recv(operation, Vec::with_capacity(8)).unwrap();
            key
        })
        .collect()
}

/// What one thread does to a port that is about to close. Says how many contexts it made.
fn load(
    index: u64,
    port: &CompletionPort,
    streams: &[StreamSocket],
    drops: &DropCount,
    stop: &AtomicBool,
) -> usize {
    let mut random = Random::new(index + 100);
    let mut started = 0;
    while !stop.load(Ordering::SeqCst) {
        let stream = &streams[random.below(streams.len() as u64) as usize];
        let operation = Operation::with_context(drops.token());
        started += 1;
        match random.below(6) {
            0 => drop(stream.recv(operation, Vec::with_capacity(64))),
            1 => drop(stream.send(operation, vec![0; random.below(5_000) as usize])),
            2 => drop(port.post(1, 1, Some(operation))),
            3 => {
                let delay = Duration::from_micros(random.below(500));
                drop(port.start_timer(2, delay, operation));
            }
            4 => {
                if let Ok(id) = stream.recv(operation, Vec::with_capacity(64)) {
                    stream.cancel(id);
                }
            }
            _ => {
                drop(operation);
                stream.cancel_all();
            }
        }
        for _ in 0..random.below(3) {
            match port.dequeue(Some(Duration::from_micros(random.below(200)))) {
                Ok(_) | Err(DequeueError::TimedOut) => {}
                Err(DequeueError::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    started
}
