//! The buffers of a continuous receive: their size, the window, the pool.

use std::io::{ErrorKind as IoErrorKind, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use proactor::{Completion, DequeueError, ErrorKind, Operation, StreamSocket};
use socket2::SockRef;

use crate::common::*;
use crate::{KIND, check_last, chunk, take_bytes};

/// Writes until no more fits, and says how much that was.
fn fill(peer: &TcpStream, mut progress: impl FnMut()) -> usize {
    peer.set_nonblocking(true).unwrap();
    let mut total = 0;
    let mut stalls = 0;
    // Full now may be a moment before the port has read on: it has to be full many times over.
    while stalls < 200 {
        progress();
        match (&*peer).write(&[b'.'; 4096]) {
            Ok(count) => {
                total += count;
                stalls = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), IoErrorKind::WouldBlock);
                stalls += 1;
            }
        }
    }
    peer.set_nonblocking(false).unwrap();
    total
}

on_each_backend! {
    /// No packet brings more than one buffer of the pool holds.
    fn a_chunk_is_at_most_one_buffer(ports: &Ports) {
        for buffer_bytes in [64, 1024] {
            let port = ports.builder().receive_buffer_bytes(buffer_bytes).build().unwrap();
            let (stream, mut peer) = associated(&port);
            let expected = pattern(4, 10 * buffer_bytes + 3);
            peer.write_all(&expected).unwrap();
            stream.recv_continuous(Operation::new()).unwrap();
            let mut got = Vec::new();
            while got.len() < expected.len() {
                let chunk = chunk(&port);
                assert!(chunk.len() <= buffer_bytes);
                got.extend_from_slice(&chunk);
            }
            assert_same_bytes(&got, &expected);
        }
    }

    /// While the consumer keeps its buffers, the connection is read no further than the window;
    /// once it gives them back, the rest comes.
    fn a_consumer_that_stops_stops_the_peer(ports: &Ports) {
        const WINDOW: usize = 64 * 1024;
        let port = ports
            .builder()
            .receive_buffer_bytes(4096)
            .receive_window_bytes(WINDOW)
            .build()
            .unwrap();
        let (stream, peer) = tcp_pair();
        shrink_buffers(&stream);
        shrink_buffers(&peer);
        let stream = port.associate(stream, 1).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        for _ in 0..3 {
            let mut held = Vec::new();
            let sent = fill(&peer, || {
                while let Ok(mut completion) = port.dequeue(Some(Duration::ZERO)) {
                    held.push(completion.take_chunk().expect("no end yet"));
                }
            });
            let delivered: usize = held.iter().map(|chunk| chunk.len()).sum();
            assert!(held.len() * 4096 <= 2 * WINDOW, "{} buffers are out", held.len());
            assert!(delivered <= sent);
            // Everything comes once the consumer goes on.
            drop(held);
            let mut rest = sent - delivered;
            while rest > 0 {
                rest = rest.checked_sub(chunk(&port).len()).expect("more came than was sent");
            }
        }
    }

    /// A consumer that keeps one packet's bytes does not stop the stream.
    fn a_kept_buffer_does_not_stop_the_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"kept").unwrap();
        let kept = chunk(&port);
        for round in 0..300 {
            let message = pattern(round, 1000);
            peer.write_all(&message).unwrap();
            assert_same_bytes(&take_bytes(&port, 1000), &message);
        }
        assert_eq!(&*kept, b"kept", "the buffer was used again while it was lent");
    }

    /// Where every buffer of the pool is out, connections wait, and go on when one is given back.
    fn an_exhausted_pool_makes_connections_wait(ports: &Ports) {
        const CONNECTIONS: usize = 40;
        const BUFFERS: usize = 64;
        let port = ports
            .builder()
            .receive_buffer_bytes(64)
            .maximum_receive_buffers(BUFFERS)
            .build()
            .unwrap();
        let mut peers = Vec::new();
        let streams: Vec<StreamSocket> = (0..CONNECTIONS)
            .map(|key| {
                let (stream, peer) = tcp_pair();
                peers.push(peer);
                port.associate(stream, key).unwrap()
            })
            .collect();
        for stream in &streams {
            stream.recv_continuous(Operation::new()).unwrap();
        }
        // Five buffers for each connection: three times what the pool has.
        for (key, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&pattern(key as u64, 320)).unwrap();
        }
        let mut held: Vec<Completion> = Vec::new();
        let mut received = vec![Vec::new(); CONNECTIONS];
        let mut total = 0;
        while total < CONNECTIONS * 320 {
            match port.dequeue(Some(QUIET)) {
                Ok(completion) => {
                    assert_eq!(completion.error(), None, "{completion:?}");
                    held.push(completion);
                    assert!(held.len() <= BUFFERS, "more buffers than the pool has");
                }
                Err(DequeueError::TimedOut) => {
                    assert!(!held.is_empty(), "no packet, although every buffer is free");
                    for mut completion in held.drain(..) {
                        let chunk = completion.take_chunk().unwrap();
                        received[completion.key()].extend_from_slice(&chunk);
                        total += chunk.len();
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        for (key, bytes) in received.iter().enumerate() {
            assert_same_bytes(bytes, &pattern(key as u64, 320));
        }
    }

    /// A continuous receive that is cancelled while it waits for a free buffer leaves the next buffer
    /// to another one that waits.
    fn a_cancelled_receive_leaves_its_place_for_a_buffer(ports: &Ports) {
        const BUFFERS: usize = 64;
        for cancelled in 0..2 {
            let builder = ports.builder().concurrency(1).receive_buffer_bytes(64);
            let port = builder.maximum_receive_buffers(BUFFERS).build().unwrap();
            // One connection for each buffer: a window may be as small as that.
            let hoarders: Vec<_> = (0..BUFFERS).map(|_| associated(&port)).collect();
            let mut held = Vec::new();
            for (stream, peer) in &hoarders {
                stream.recv_continuous(Operation::new()).unwrap();
                (&mut &*peer).write_all(b"x").unwrap();
                held.push(chunk(&port));
            }
            let mut waiting = Vec::new();
            for key in [2, 3] {
                let (stream, mut peer) = tcp_pair();
                let stream = port.associate(stream, key).unwrap();
                let id = stream.recv_continuous(Operation::new()).unwrap();
                peer.write_all(b"late").unwrap();
                assert_quiet(&port);
                waiting.push((stream, peer, id));
            }
            let (stream, _peer, id) = waiting.remove(cancelled);
            assert!(stream.cancel(id));
            let completion = dequeue_within(&port, KIND);
            assert_eq!(completion.key(), stream.key());
            check_last(completion, Some(ErrorKind::Cancelled));
            // One buffer comes back, and no other: it has to reach the one that still waits.
            held.pop();
            let completion = dequeue_within(&port, KIND);
            assert_eq!((completion.key(), completion.bytes()), (waiting[0].0.key(), 4));
        }
    }

    /// Delivered bytes outlive the receive, the socket and the port.
    fn delivered_bytes_outlive_the_port(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        peer.write_all(b"0123456789").unwrap();
        let mut kept = chunk(&port);
        drop(stream);
        check_last(dequeue_within(&port, KIND), Some(ErrorKind::ConnectionAborted));
        drop(port);
        kept[0] = b'x';
        kept.advance(0);
        kept.truncate(8);
        kept.advance(1);
        let bytes = thread::spawn(move || kept.to_vec()).join().unwrap();
        assert_eq!(bytes, b"1234567");
    }

    /// A packet that is dropped unread gives its buffer back: the stream goes on for ever.
    fn unread_packets_give_their_buffers_back(ports: &Ports) {
        let port = ports
            .builder()
            .receive_buffer_bytes(256)
            .maximum_receive_buffers(64)
            .receive_window_bytes(2048)
            .build()
            .unwrap();
        let (stream, mut peer) = associated(&port);
        SockRef::from(&peer).set_tcp_nodelay(true).unwrap();
        stream.recv_continuous(Operation::new()).unwrap();
        let writer = thread::spawn(move || {
            for _ in 0..1_000 {
                peer.write_all(&[1; 256]).unwrap();
            }
        });
        let mut got = 0;
        while got < 256_000 {
            let completion = dequeue_within(&port, KIND);
            assert!(completion.more(), "{completion:?}");
            got += completion.bytes();
        }
        writer.join().unwrap();
        check_last(dequeue_within(&port, KIND), None);
    }
}
