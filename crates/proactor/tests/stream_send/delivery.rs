//! Sends that succeed: whole, in order, of every kind of buffer (rules 67 to 69, 140).

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use proactor::{ErrorKind, Operation, OperationKind, SendBuffer};

use crate::common::*;

on_each_backend! {
    /// Rule 67: a send has one packet, with the whole length, however long the peer takes.
    fn rule_67_a_send_comes_back_whole(ports: &Ports) {
        const LENGTH: usize = 8 * 1024 * 1024;
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        let expected = pattern(1, LENGTH);
        stream.send(Operation::new(), expected.clone()).unwrap();
        assert_quiet(&port);
        let reader = thread::spawn(move || read_bytes(&mut peer, LENGTH));
        let (bytes, _) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, LENGTH);
        assert_same_bytes(&reader.join().unwrap(), &expected);
        assert_quiet(&port);
    }

    /// Rule 67: a gathered send is one send: all buffers, in order, one packet.
    fn rule_67_a_gathered_send_comes_back_whole(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        // Lengths on both sides of what the system takes at once, some of them empty.
        let lengths = [1, 0, 70_000, 5, 0, 300_000, 16_384, 1, 0];
        let buffers: Vec<SendBuffer> = lengths
            .iter()
            .enumerate()
            .map(|(seed, &length)| pattern(seed as u64 + 10, length).into())
            .collect();
        let expected: Vec<u8> = buffers.iter().flat_map(|b| b.as_slice().to_vec()).collect();
        stream.send_vectored(Operation::new(), buffers).unwrap();
        let total = expected.len();
        let reader = thread::spawn(move || read_bytes(&mut peer, total));
        let (bytes, mut operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, total);
        assert_same_bytes(&reader.join().unwrap(), &expected);
        let buffers = operation.take_send_buffers().unwrap();
        assert_eq!(buffers.iter().map(SendBuffer::len).collect::<Vec<_>>(), lengths);
    }

    /// Rule 67: more buffers than the system takes in one call.
    fn rule_67_thousands_of_buffers_are_one_send(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let expected = pattern(2, 5_000);
        let buffers = expected.chunks(1).map(|byte| byte.to_vec().into()).collect();
        stream.send_vectored(Operation::new(), buffers).unwrap();
        let (bytes, _) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 5_000);
        assert_same_bytes(&read_bytes(&mut peer, 5_000), &expected);
    }

    /// No buffers are no send; buffers without bytes are one, of 0 bytes.
    fn rule_67_empty_sends(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let result = stream.send_vectored(Operation::with_context(1_u8), Vec::new());
        let operation = refused(result, ErrorKind::InvalidInput);
        assert_eq!(operation.context::<u8>(), Some(&1));
        stream.send(operation, "").unwrap();
        let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 0);
        stream.send_vectored(operation, vec!["".into(), Vec::new().into()]).unwrap();
        let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 0);
        stream.send(operation, "x").unwrap();
        dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 1), b"x");
    }

    /// Every kind of buffer is sent, and comes back.
    fn rule_140_every_kind_of_buffer_comes_back(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let owned = b"owned".to_vec();
        let owned_address = owned.as_ptr();
        let shared = Bytes::from(b"shared".to_vec());
        let array: Arc<[u8]> = Arc::from(&b"array"[..]);
        let buffers: Vec<SendBuffer> = vec![
            "static".into(),
            b"bytes".into(),
            b"slice"[..].into(),
            owned.into(),
            String::from("string").into(),
            shared.clone().into(),
            array.into(),
        ];
        let expected: Vec<u8> = buffers.iter().flat_map(|b| b.as_slice().to_vec()).collect();
        let mut operation = Operation::new();
        let mut count = 0;
        for buffer in buffers {
            let length = buffer.len();
            stream.send(operation, buffer).unwrap();
            let bytes;
            (bytes, operation) = dequeue_success(&port, OperationKind::Send);
            assert_eq!(bytes, length);
            let buffer = operation.take_send_buffer().expect("the buffer comes back");
            assert_eq!(buffer.len(), length);
            if let SendBuffer::Owned(bytes) = buffer && bytes == b"owned" {
                assert_eq!(bytes.as_ptr(), owned_address, "the bytes were copied");
            }
            count += length;
        }
        assert_eq!(read_bytes(&mut peer, count), expected);
    }

    /// A buffer that a continuous receive delivered is sent on as it is.
    fn a_received_buffer_can_be_sent_on(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        stream.recv_continuous(Operation::new()).unwrap();
        let mut operation = Operation::new();
        for round in 0..50 {
            let message = pattern(round, 1 + round as usize * 7);
            peer.write_all(&message).unwrap();
            let mut got = 0;
            while got < message.len() {
                let mut completion = dequeue_within(&port, OperationKind::RecvContinuous);
                let chunk = completion.take_chunk().unwrap();
                got += chunk.len();
                stream.send(operation, chunk).unwrap();
                (_, operation) = dequeue_success(&port, OperationKind::Send);
                assert!(matches!(operation.take_send_buffer(), Some(SendBuffer::Pool(_))));
            }
            assert_same_bytes(&read_bytes(&mut peer, message.len()), &message);
        }
    }

    /// Rule 69: sends go out in the order of the calls, also behind one that waits for room.
    fn rule_69_sends_keep_the_order_of_the_calls(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated_with_small_buffers(&port);
        let lengths = [10, TOO_MUCH, 3, 0, 50_000, 1, TOO_MUCH, 2];
        let mut expected = Vec::new();
        for (number, &length) in lengths.iter().enumerate() {
            let message = pattern(number as u64 + 20, length);
            expected.extend_from_slice(&message);
            stream.send(Operation::with_context(number), message).unwrap();
        }
        let total = expected.len();
        let reader = thread::spawn(move || read_bytes(&mut peer, total));
        for (number, &length) in lengths.iter().enumerate() {
            let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
            assert_eq!((operation.context::<usize>(), bytes), (Some(&number), length));
        }
        assert_same_bytes(&reader.join().unwrap(), &expected);
        assert_quiet(&port);
    }

    /// Rule 69: thousands of small sends at once.
    fn rule_69_thousands_of_sends_in_flight(ports: &Ports) {
        const COUNT: usize = 5_000;
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let expected: Vec<u8> = (0..COUNT).flat_map(|n| pattern(n as u64, 1 + n % 90)).collect();
        let total = expected.len();
        let reader = thread::spawn(move || read_bytes(&mut peer, total));
        for number in 0..COUNT {
            let message = pattern(number as u64, 1 + number % 90);
            stream.send(Operation::with_context(number), message).unwrap();
        }
        for number in 0..COUNT {
            let (bytes, operation) = dequeue_success(&port, OperationKind::Send);
            assert_eq!((operation.context::<usize>(), bytes), (Some(&number), 1 + number % 90));
        }
        assert_same_bytes(&reader.join().unwrap(), &expected);
    }

    /// Both directions at once, more than fits anywhere: neither waits for the other.
    fn both_directions_flow_at_once(ports: &Ports) {
        const LENGTH: usize = 4 * 1024 * 1024;
        let port = ports.open(1);
        let (near, far) = tcp_pair();
        shrink_buffers(&near);
        shrink_buffers(&far);
        let streams = [port.associate(near, 0).unwrap(), port.associate(far, 1).unwrap()];
        for (seed, stream) in streams.iter().enumerate() {
            stream.send(Operation::new(), pattern(seed as u64, LENGTH)).unwrap();
            stream.recv(Operation::new(), Vec::with_capacity(30_000)).unwrap();
        }
        let mut got = [Vec::new(), Vec::new()];
        let mut sent = 0;
        while sent < 2 || got.iter().any(|bytes| bytes.len() < LENGTH) {
            let completion = dequeue(&port);
            assert_eq!(completion.error(), None);
            let key = completion.key();
            match completion.kind() {
                OperationKind::Send => {
                    assert_eq!(completion.bytes(), LENGTH);
                    sent += 1;
                }
                _ => {
                    let mut operation = completion.into_operation().unwrap();
                    let buffer = operation.take_buffer().unwrap();
                    got[key].extend_from_slice(&buffer);
                    if got[key].len() < LENGTH {
                        streams[key].recv(operation, buffer).unwrap();
                    }
                }
            }
        }
        assert_same_bytes(&got[0], &pattern(1, LENGTH));
        assert_same_bytes(&got[1], &pattern(0, LENGTH));
    }

    /// Unix streams send the same way: whole, in order, and a closed peer is a reset.
    #[cfg(unix)]
    fn sends_on_a_unix_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = unix_pair();
        let stream = port.associate(stream, 1).unwrap();
        let expected = pattern(11, TOO_MUCH * 2);
        let (front, back) = expected.split_at(TOO_MUCH + 5);
        stream.send(Operation::new(), front.to_vec()).unwrap();
        stream.send(Operation::new(), back.to_vec()).unwrap();
        let reader = thread::spawn(move || read_bytes(&mut peer, TOO_MUCH * 2));
        assert_eq!(dequeue_success(&port, OperationKind::Send).0, front.len());
        assert_eq!(dequeue_success(&port, OperationKind::Send).0, back.len());
        assert_same_bytes(&reader.join().unwrap(), &expected);
        // The reader's end is closed now.
        match stream.send(Operation::new(), "x") {
            Err(rejected) => assert_eq!(rejected.error().kind(), ErrorKind::ConnectionReset),
            Ok(_) => {
                dequeue_failure(&port, OperationKind::Send, ErrorKind::ConnectionReset);
            }
        }
    }

    /// IPv6.
    fn sends_on_ipv6(ports: &Ports) {
        let port = ports.open(1);
        let Some((stream, mut peer)) = tcp_pair_v6() else { return };
        let stream = port.associate(stream, 1).unwrap();
        stream.send(Operation::new(), "six").unwrap();
        dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 3), b"six");
    }

    /// Rule 68: success means that the system has the bytes, not that the peer took them.
    fn rule_68_success_does_not_wait_for_the_peer(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        stream.send(Operation::new(), "small").unwrap();
        let (bytes, _) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(bytes, 5, "nobody has read");
        peer.set_nonblocking(true).unwrap();
        let mut buffer = [0; 8];
        wait_until("the bytes to arrive", || match (&peer).read(&mut buffer) {
            Ok(count) => count == 5,
            Err(error) => {
                assert_eq!(error.kind(), IoErrorKind::WouldBlock);
                false
            }
        });
        (&peer).write_all(b"done").unwrap();
    }
}
