//! Receiving on a stream into the caller's buffers (rules 56 to 66, 84, 85).

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use common::*;
use proactor::{CompletionPort, ErrorKind, Operation, OperationKind, StreamSocket};
use socket2::{Domain, Socket, Type};

fn recv(stream: &StreamSocket, bytes: usize) {
    stream.recv(Operation::new(), Vec::with_capacity(bytes)).expect("the receive is accepted");
}

#[track_caller]
fn expect_bytes(port: &CompletionPort, expected: &[u8]) {
    let (bytes, operation) = dequeue_success(port, OperationKind::Recv);
    assert_eq!(operation.buffer(), expected);
    assert_eq!(bytes, expected.len());
}

on_each_backend! {
    /// Rule 56: a receive ends with what is there, and does not wait to fill its buffer.
    fn rule_56_a_receive_does_not_wait_to_fill_its_buffer(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        recv(&stream, 4096);
        assert_quiet(&port);
        peer.write_all(b"abc").unwrap();
        expect_bytes(&port, b"abc");
        assert_quiet(&port);
    }

    /// Rule 56: what does not fit comes with the next receive, also where it is there already.
    fn rule_56_the_rest_comes_with_the_next_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        peer.write_all(b"abcdefghij").unwrap();
        for expected in [&b"abcd"[..], b"efgh", b"ij"] {
            recv(&stream, 4);
            expect_bytes(&port, expected);
        }
        recv(&stream, 4);
        assert_quiet(&port);
        peer.write_all(b"k").unwrap();
        expect_bytes(&port, b"k");
    }

    /// Rule 139: the operation gives back the very buffer that it took, emptied before, filled from
    /// the start, never grown.
    fn rule_139_the_buffer_comes_back(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let mut buffer = Vec::with_capacity(16);
        buffer.extend_from_slice(b"old contents");
        let (address, capacity) = (buffer.as_ptr() as usize, buffer.capacity());
        stream.recv(Operation::new(), buffer).unwrap();
        peer.write_all(&pattern(1, 100)).unwrap();
        let (bytes, mut operation) = dequeue_success(&port, OperationKind::Recv);
        let buffer = operation.take_buffer().unwrap();
        assert_eq!(bytes, capacity);
        assert_eq!(buffer, &pattern(1, 100)[..capacity]);
        assert_eq!((buffer.as_ptr() as usize, buffer.capacity()), (address, capacity));
    }

    /// A buffer of more than the port reads at once is filled in turns, and nothing is lost.
    fn a_large_buffer_gets_the_stream_in_order(ports: &Ports) {
        const LENGTH: usize = 3 * 1024 * 1024;
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let expected = pattern(2, LENGTH);
        let to_send = expected.clone();
        let writer = std::thread::spawn(move || peer.write_all(&to_send).map(|()| peer));
        let mut got = Vec::with_capacity(LENGTH);
        let mut operation = Operation::new();
        let mut buffer = Vec::with_capacity(1024 * 1024);
        while got.len() < LENGTH {
            stream.recv(operation, buffer).unwrap();
            let bytes;
            (bytes, operation) = dequeue_success(&port, OperationKind::Recv);
            buffer = operation.take_buffer().unwrap();
            assert!(bytes > 0 && bytes == buffer.len());
            got.extend_from_slice(&buffer);
        }
        writer.join().unwrap().unwrap();
        assert_same_bytes(&got, &expected);
    }

    /// Rules 57 and 85: the peer's end of the stream is a success of 0 bytes, behind the data, now
    /// and every time after.
    fn rule_57_the_end_of_the_stream_is_zero_bytes(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        recv(&stream, 8);
        peer.write_all(b"last").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        expect_bytes(&port, b"last");
        for _ in 0..3 {
            recv(&stream, 8);
            expect_bytes(&port, b"");
        }
        // The other direction is open still.
        stream.send(Operation::new(), "bye").unwrap();
        dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 3), b"bye");
    }

    /// Rule 85: the peer's end of the stream ends a pending receive, and every one behind it.
    fn rule_85_the_end_of_the_stream_ends_every_pending_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        for _ in 0..3 {
            recv(&stream, 8);
        }
        assert_quiet(&port);
        drop(peer);
        for _ in 0..3 {
            expect_bytes(&port, b"");
        }
        assert_quiet(&port);
    }

    /// Rule 58: the peer's reset fails a pending receive, and every one behind it.
    fn rule_58_a_reset_fails_every_pending_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        for _ in 0..3 {
            recv(&stream, 8);
        }
        assert_quiet(&port);
        reset(peer);
        for _ in 0..3 {
            let (bytes, _) =
                dequeue_failure(&port, OperationKind::Recv, ErrorKind::ConnectionReset);
            assert_eq!(bytes, 0);
        }
        assert_quiet(&port);
    }

    /// Rule 59: a receive that is started after a reset was reported is refused; and again, though
    /// the system says it once only.
    fn rule_59_a_receive_after_the_reset_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        recv(&stream, 8);
        reset(peer);
        dequeue_failure(&port, OperationKind::Recv, ErrorKind::ConnectionReset);
        for _ in 0..3 {
            let result = stream.recv(Operation::with_context(1_u8), Vec::with_capacity(8));
            let operation = refused(result, ErrorKind::ConnectionReset);
            assert_eq!(operation.context::<u8>(), Some(&1));
        }
        assert_quiet(&port);
    }

    /// Rules 58 and 59: a reset is never told as an orderly end, whatever came before it and
    /// however the receives are started.
    fn rule_59_a_reset_is_never_an_orderly_end(ports: &Ports) {
        skip_under_wine!(59, "a receive after the reset sees an orderly end");
        let port = ports.open(1);
        for pending_before in [false, true] {
            let (stream, mut peer) = associated(&port);
            if pending_before {
                recv(&stream, 2);
            }
            peer.write_all(b"abcde").unwrap();
            reset(peer);
            let mut got = 0;
            loop {
                if !(pending_before && got == 0) {
                    match stream.recv(Operation::new(), Vec::with_capacity(2)) {
                        Ok(_) => {}
                        Err(rejected) => {
                            assert_eq!(rejected.error().kind(), ErrorKind::ConnectionReset);
                            break;
                        }
                    }
                }
                let completion = dequeue_within(&port, OperationKind::Recv);
                match completion.result() {
                    Ok(bytes) => {
                        assert_ne!(bytes, 0, "a reset was told as the end of the stream");
                        got += bytes;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                        break;
                    }
                }
            }
            assert!(got <= 5);
        }
    }

    /// Rule 60: a zero-length receive waits for data, takes nothing of it, and needs no buffer.
    fn rule_60_a_zero_length_receive_waits_and_takes_nothing(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        recv(&stream, 0);
        assert_quiet(&port);
        peer.write_all(b"abc").unwrap();
        expect_bytes(&port, b"");
        // The data is there still: another one ends at once, and so does a real one.
        recv(&stream, 0);
        expect_bytes(&port, b"");
        recv(&stream, 8);
        expect_bytes(&port, b"abc");
        // And now there is nothing again.
        recv(&stream, 0);
        assert_quiet(&port);
        peer.write_all(b"d").unwrap();
        expect_bytes(&port, b"");
        recv(&stream, 8);
        expect_bytes(&port, b"d");
    }

    /// Rule 60: a zero-length receive sees data that a receive with a small buffer left behind.
    fn rule_60_a_zero_length_receive_sees_what_is_left(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        peer.write_all(b"abc").unwrap();
        recv(&stream, 1);
        expect_bytes(&port, b"a");
        recv(&stream, 0);
        expect_bytes(&port, b"");
        recv(&stream, 8);
        expect_bytes(&port, b"bc");
    }

    /// Rule 60: the end of the stream ends a zero-length receive, and a reset fails it.
    fn rule_60_the_end_ends_a_zero_length_receive(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        recv(&stream, 0);
        assert_quiet(&port);
        drop(peer);
        expect_bytes(&port, b"");
        recv(&stream, 8);
        expect_bytes(&port, b"");

        let (stream, peer) = associated(&port);
        recv(&stream, 0);
        assert_quiet(&port);
        reset(peer);
        let completion = dequeue_within(&port, OperationKind::Recv);
        // It may be told here or, as nothing is consumed, with the next receive.
        if let Some(error) = completion.error() {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        } else {
            recv(&stream, 8);
            dequeue_failure(&port, OperationKind::Recv, ErrorKind::ConnectionReset);
        }
    }

    /// Rules 60 and 61: a zero-length receive keeps its place among others.
    fn rule_60_a_zero_length_receive_keeps_its_place(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let first = stream.recv(Operation::new(), Vec::new()).unwrap();
        let second = stream.recv(Operation::new(), Vec::with_capacity(2)).unwrap();
        let third = stream.recv(Operation::new(), Vec::new()).unwrap();
        let fourth = stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        assert_quiet(&port);
        peer.write_all(b"abcde").unwrap();
        for (id, expected) in [(first, &b""[..]), (second, b"ab"), (third, b""), (fourth, b"cde")] {
            let (_, operation) = dequeue_success(&port, OperationKind::Recv);
            assert_eq!((operation.id(), operation.buffer()), (id, expected));
        }
    }

    /// Rule 61: several pending receives are filled in the order of the calls.
    fn rule_61_receives_are_filled_in_the_order_of_the_calls(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let ids: Vec<_> = (0..3)
            .map(|_| stream.recv(Operation::new(), Vec::with_capacity(4)).unwrap())
            .collect();
        assert_quiet(&port);
        peer.write_all(b"0123456789").unwrap();
        for (id, expected) in ids.into_iter().zip([&b"0123"[..], b"4567", b"89"]) {
            let (bytes, operation) = dequeue_success(&port, OperationKind::Recv);
            assert_eq!((operation.id(), bytes), (id, expected.len()));
            assert_eq!(operation.buffer(), expected);
        }
        assert_quiet(&port);
    }

    /// Rule 61: many pending receives, bytes one by one.
    fn rule_61_many_pending_receives(ports: &Ports) {
        const COUNT: usize = 500;
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        for number in 0..COUNT {
            let operation = Operation::with_context(number);
            stream.recv(operation, Vec::with_capacity(1 + number % 3)).unwrap();
        }
        let sent = pattern(3, 3 * COUNT);
        let mut received = Vec::new();
        for (number, byte) in sent.iter().enumerate().take(COUNT) {
            peer.write_all(&[*byte]).unwrap();
            if number % 5 == 0 {
                // Some come alone, some in groups.
                while let Ok(completion) = port.dequeue(Some(Duration::ZERO)) {
                    received.push(completion.into_operation().unwrap());
                }
            }
        }
        peer.write_all(&sent[COUNT..]).unwrap();
        while received.len() < COUNT {
            received.push(dequeue_success(&port, OperationKind::Recv).1);
        }
        let mut all = Vec::new();
        for (number, operation) in received.iter().enumerate() {
            assert_eq!(operation.context::<usize>(), Some(&number));
            assert!(!operation.buffer().is_empty());
            all.extend_from_slice(operation.buffer());
        }
        assert_same_bytes(&all, &sent[..all.len()]);
    }

    /// Rule 62: a receive into several buffers fills them in order, without holes.
    fn rule_62_several_buffers_are_filled_without_holes(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let mut buffers: Vec<Vec<u8>> = [3, 0, 1, 5, 4].map(Vec::with_capacity).into();
        buffers[0].push(b'?');
        let capacities: Vec<usize> = buffers.iter().map(Vec::capacity).collect();
        stream.recv_vectored(Operation::new(), buffers).unwrap();
        peer.write_all(b"abcdefgh").unwrap();
        let (bytes, mut operation) = dequeue_success(&port, OperationKind::Recv);
        assert_eq!(bytes, 8);
        let buffers = operation.take_buffers().unwrap();
        assert_eq!(buffers.iter().map(Vec::capacity).collect::<Vec<_>>(), capacities);
        assert_eq!(buffers.concat(), b"abcdefgh");
        let mut partly_filled = false;
        for buffer in &buffers {
            assert!(!partly_filled || buffer.is_empty(), "a hole: {buffers:?}");
            partly_filled |= buffer.len() < buffer.capacity();
        }
        assert_eq!(buffers[0], b"abc");
    }

    /// Rules 60 and 62: several buffers without any room are a zero-length receive; no buffer at
    /// all is refused.
    fn rule_62_no_buffers_are_refused(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let result = stream.recv_vectored(Operation::with_context(1_u8), Vec::new());
        let operation = refused(result, ErrorKind::InvalidInput);
        assert_eq!(operation.context::<u8>(), Some(&1));
        stream.recv_vectored(operation, vec![Vec::new(), Vec::new()]).unwrap();
        assert_quiet(&port);
        peer.write_all(b"x").unwrap();
        let (bytes, mut operation) = dequeue_success(&port, OperationKind::Recv);
        assert_eq!(bytes, 0);
        assert_eq!(operation.take_buffers().unwrap().len(), 2);
        recv(&stream, 4);
        expect_bytes(&port, b"x");
    }

    /// Rule 63: the source's own mode does not matter: non-blocking, and a receive timeout.
    fn rule_63_the_sources_mode_and_timeouts_do_not_apply(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        stream.set_nonblocking(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        let stream = port.associate(stream, 1).unwrap();
        recv(&stream, 8);
        assert_quiet(&port);
        peer.write_all(b"late").unwrap();
        expect_bytes(&port, b"late");
    }

    /// Rule 65: a receive on a socket that is not connected is refused.
    fn rule_65_a_receive_without_connection_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let stream = port.associate(socket, 1).unwrap();
        refused(stream.recv(Operation::new(), Vec::with_capacity(8)), ErrorKind::NotConnected);
        refused(stream.recv(Operation::new(), Vec::new()), ErrorKind::NotConnected);
        let result = stream.recv_vectored(Operation::new(), vec![Vec::with_capacity(8)]);
        refused(result, ErrorKind::NotConnected);
        refused(stream.recv_continuous(Operation::new()), ErrorKind::NotConnected);
        assert_quiet(&port);
    }

    /// Rule 84: shutting down the receiving side leaves a pending receive pending: later data
    /// completes it. New ones are refused.
    fn rule_84_a_pending_receive_outlives_a_shutdown(ports: &Ports) {
        for how in [Shutdown::Read, Shutdown::Both] {
            let port = ports.open(1);
            let (stream, mut peer) = associated(&port);
            recv(&stream, 8);
            stream.shutdown(how).unwrap();
            refused(stream.recv(Operation::new(), Vec::with_capacity(8)), ErrorKind::ShutDown);
            assert_quiet(&port);
            peer.write_all(b"later").unwrap();
            expect_bytes(&port, b"later");
            refused(stream.recv(Operation::new(), Vec::with_capacity(8)), ErrorKind::ShutDown);
            assert_quiet(&port);
        }
    }

    /// Rule 84: the same, where the peer ends the stream.
    fn rule_84_the_peers_end_completes_a_receive_after_shutdown(ports: &Ports) {
        let port = ports.open(1);
        let (stream, peer) = associated(&port);
        recv(&stream, 8);
        stream.shutdown(Shutdown::Both).unwrap();
        assert_quiet(&port);
        drop(peer);
        expect_bytes(&port, b"");
    }

    /// Rule 50: a shutdown queues no packet.
    fn rule_50_a_shutdown_queues_no_packet(ports: &Ports) {
        let port = ports.open(1);
        let (stream, _peer) = associated(&port);
        stream.shutdown(Shutdown::Write).unwrap();
        stream.shutdown(Shutdown::Read).unwrap();
        assert_quiet(&port);
    }

    /// Unix streams receive the same way: data, end of stream, zero length.
    #[cfg(unix)]
    fn receives_on_a_unix_stream(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = unix_pair();
        let stream = port.associate(stream, 1).unwrap();
        recv(&stream, 0);
        recv(&stream, 3);
        assert_quiet(&port);
        peer.write_all(b"abcde").unwrap();
        expect_bytes(&port, b"");
        expect_bytes(&port, b"abc");
        recv(&stream, 8);
        expect_bytes(&port, b"de");
        recv(&stream, 8);
        drop(peer);
        expect_bytes(&port, b"");
    }

    /// IPv6.
    fn receives_on_ipv6(ports: &Ports) {
        let port = ports.open(1);
        let Some((stream, mut peer)) = tcp_pair_v6() else { return };
        let stream = port.associate(stream, 1).unwrap();
        assert!(stream.local_address().unwrap().is_ipv6());
        assert_eq!(stream.peer_address().unwrap(), peer.local_addr().unwrap());
        recv(&stream, 8);
        peer.write_all(b"six").unwrap();
        expect_bytes(&port, b"six");
    }

    /// Data that came before the association is received after it.
    fn data_from_before_the_association_is_received(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        peer.write_all(b"early").unwrap();
        drop(peer);
        let stream = port.associate(stream, 1).unwrap();
        recv(&stream, 3);
        expect_bytes(&port, b"ear");
        recv(&stream, 8);
        expect_bytes(&port, b"ly");
        recv(&stream, 8);
        expect_bytes(&port, b"");
    }

    /// Urgent data ends one receive early; what lies behind it comes without the peer's doing more.
    #[cfg(target_os = "linux")]
    fn urgent_data_hides_nothing_behind_it(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        peer.write_all(b"before").unwrap();
        socket2::SockRef::from(&peer).send_out_of_band(b"!").unwrap();
        peer.write_all(b"behind").unwrap();
        // All of it is there, and the port has been told of it.
        assert_quiet(&port);
        let mut got = Vec::new();
        while got.len() < 12 {
            recv(&stream, 100);
            let (_, operation) = dequeue_success(&port, OperationKind::Recv);
            got.extend_from_slice(operation.buffer());
        }
        assert_eq!(got, b"beforebehind");
    }

    /// One operation serves a whole conversation: one packet for each start, each with another id.
    fn one_operation_serves_a_conversation(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = associated(&port);
        let mut operation = Operation::with_context(0_usize);
        let mut buffer = Vec::with_capacity(64);
        let mut last_id = operation.id();
        for round in 1..=1_000 {
            peer.write_all(&pattern(round as u64, 1 + round % 60)).unwrap();
            let id = stream.recv(operation, buffer).unwrap();
            assert_ne!(id, last_id);
            last_id = id;
            (_, operation) = dequeue_success(&port, OperationKind::Recv);
            buffer = operation.take_buffer().unwrap();
            assert_eq!(buffer, pattern(round as u64, 1 + round % 60));
            *operation.context_mut::<usize>().unwrap() += 1;
        }
        assert_eq!(operation.context::<usize>(), Some(&1_000));
    }
}
