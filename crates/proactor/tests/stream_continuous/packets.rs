//! What a continuous receive delivers, and beside which others.

use std::io::Write;
use std::thread;

use proactor::{ErrorKind, Operation, OperationKind, StreamSocket};

use crate::common::*;
use crate::{KIND, check_last, chunk, take_bytes};

on_each_backend! {
    /// Each packet has its number in the receive, the last one too; the next receive counts anew.
    fn packets_are_numbered(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let mut operation = Operation::new();
        for _ in 0..2 {
            let id = stream.recv_continuous(operation).unwrap();
            for number in 0..5 {
                peer.write_all(b"x").unwrap();
                assert_eq!(dequeue_within(&port, KIND).sequence(), number);
            }
            assert!(stream.cancel(id));
            let completion = dequeue_within(&port, KIND);
            assert_eq!(completion.sequence(), 5);
            operation = check_last(completion, Some(ErrorKind::Cancelled));
        }
        stream.send(operation, "x").unwrap();
        assert_eq!(dequeue_within(&port, OperationKind::Send).sequence(), 0);
    }

    /// While it is pending, any other receive is refused; and it is, while another is pending.
    fn a_continuous_receive_is_the_only_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let id = stream.recv_continuous(Operation::new()).unwrap();
        let mut buffer = Vec::with_capacity(8);
        buffer.push(1);
        let result = stream.recv(Operation::with_context(1_u8), buffer);
        let mut operation = refused(result, ErrorKind::InvalidInput);
        assert_eq!(operation.context::<u8>(), Some(&1));
        assert!(operation.take_buffer().is_some_and(|buffer| buffer.capacity() >= 8));
        refused(stream.recv(Operation::new(), Vec::new()), ErrorKind::InvalidInput);
        let result = stream.recv_vectored(Operation::new(), vec![Vec::with_capacity(8)]);
        refused(result, ErrorKind::InvalidInput);
        refused(stream.recv_continuous(Operation::new()), ErrorKind::InvalidInput);
        peer.write_all(b"fine").unwrap();
        assert_eq!(&*chunk(&port), b"fine");
        assert!(stream.cancel(id));
        check_last(dequeue_within(&port, KIND), Some(ErrorKind::Cancelled));

        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        refused(stream.recv_continuous(Operation::new()), ErrorKind::InvalidInput);
        peer.write_all(b"also").unwrap();
        dequeue_success(&port, OperationKind::Recv);
        stream.recv_continuous(Operation::new()).unwrap();
        assert_quiet(&port);
    }

    /// Bytes that an earlier receive left behind are delivered first.
    fn what_an_earlier_receive_left_comes_first(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        peer.write_all(b"abcdef").unwrap();
        stream.recv(Operation::new(), Vec::with_capacity(2)).unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Recv);
        assert_eq!(operation.buffer(), b"ab");
        stream.recv_continuous(operation).unwrap();
        assert_eq!(take_bytes(&port, 4), b"cdef");
        peer.write_all(b"g").unwrap();
        assert_eq!(&*chunk(&port), b"g");
    }

    /// A connection on which there is always something to receive does not starve another one.
    fn endless_bytes_on_one_connection_do_not_starve_another(ports: &Ports) {
        const ROUNDS: usize = 20;
        let port = ports.builder().concurrency(1).receive_buffer_bytes(1024).build().unwrap();
        let (flooded, mut flooding_peer) = associated(&port);
        let (quiet, mut quiet_peer) = tcp_pair();
        let quiet = port.associate(quiet, 2).unwrap();
        flooded.recv_continuous(Operation::new()).unwrap();
        quiet.recv_continuous(Operation::new()).unwrap();
        let (tell, stopped) = std::sync::mpsc::channel::<()>();
        let flood = thread::spawn(move || {
            // Ends with the connection, too: the write fails then.
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty)
                && flooding_peer.write_all(&[0; 64 * 1024]).is_ok()
            {}
        });
        for _ in 0..ROUNDS {
            let mut between = 0;
            quiet_peer.write_all(b"x").unwrap();
            while dequeue_within(&port, KIND).key() != 2 {
                between += 1;
                assert!(between < 100_000, "the other connection gets no turn");
            }
        }
        drop(tell);
        drop(flooded);
        flood.join().unwrap();
    }

    /// Hundreds of connections, a few bytes each, round after round: nothing is mixed up.
    fn many_connections_keep_their_bytes_apart(ports: &Ports) {
        const CONNECTIONS: usize = 200;
        let port = ports.open(1);
        let mut peers = Vec::new();
        let streams: Vec<StreamSocket> = (0..CONNECTIONS)
            .map(|key| {
                let (stream, peer) = tcp_pair();
                peers.push(peer);
                let stream = port.associate(stream, key).unwrap();
                stream.recv_continuous(Operation::new()).unwrap();
                stream
            })
            .collect();
        for round in 0..20 {
            for (key, peer) in peers.iter_mut().enumerate() {
                peer.write_all(&pattern((round * 1000 + key) as u64, 1 + key % 50)).unwrap();
            }
            let mut received = vec![Vec::new(); CONNECTIONS];
            let total: usize = (0..CONNECTIONS).map(|key| 1 + key % 50).sum();
            let mut got = 0;
            while got < total {
                let mut completion = dequeue_within(&port, KIND);
                got += completion.bytes();
                received[completion.key()].extend_from_slice(&completion.take_chunk().unwrap());
            }
            for (key, bytes) in received.iter().enumerate() {
                assert_eq!(bytes, &pattern((round * 1000 + key) as u64, 1 + key % 50));
            }
        }
        drop(streams);
        for completion in dequeue_all(&port, CONNECTIONS) {
            check_last(completion, Some(ErrorKind::ConnectionAborted));
        }
        assert_quiet(&port);
    }

    /// Unix streams.
    #[cfg(unix)]
    fn a_continuous_receive_on_a_unix_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = unix_pair();
        let stream = port.associate(stream, 1).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"unix").unwrap();
        assert_eq!(&*chunk(&port), b"unix");
        drop(peer);
        check_last(dequeue_within(&port, KIND), None);
    }
}
