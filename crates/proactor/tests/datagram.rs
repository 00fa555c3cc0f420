//! Datagrams (rules 46, 60, 112 to 118).

mod common;

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use common::*;
use proactor::{CompletionPort, DatagramSocket, ErrorKind, Operation, OperationKind, SendBuffer};
use socket2::{Domain, Socket, Type};

const RECV: OperationKind = OperationKind::RecvFrom;
const SEND: OperationKind = OperationKind::SendTo;

/// A socket on the IPv4 loopback that the test uses itself, with bounded waits.
fn plain() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    socket
}

/// A socket on the IPv4 loopback that is associated with `port` under key 1, and its address.
fn associated(port: &CompletionPort) -> (DatagramSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (port.associate(socket, 1).unwrap(), address)
}

fn recv(socket: &DatagramSocket, bytes: usize) {
    socket.recv_from(Operation::new(), Vec::with_capacity(bytes)).expect("accepted");
}

on_each_backend! {
    /// Rule 112: a receive brings one datagram and says where it came from.
    fn rule_112_a_datagram_comes_with_its_sender(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        assert_eq!(socket.local_address().unwrap(), address);
        recv(&socket, 100);
        assert_quiet(&port);
        let peer = plain();
        peer.send_to(b"one", address).unwrap();
        peer.send_to(b"second", address).unwrap();
        let (bytes, operation) = dequeue_success(&port, RECV);
        assert_eq!((bytes, operation.buffer()), (3, &b"one"[..]));
        assert_eq!(operation.peer_address(), Some(peer.local_addr().unwrap()));
        assert_quiet(&port);
        // The next one has a sender of its own.
        let other = plain();
        other.send_to(b"third", address).unwrap();
        socket.recv_from(operation, Vec::with_capacity(100)).unwrap();
        let (_, operation) = dequeue_success(&port, RECV);
        assert_eq!(operation.buffer(), b"second");
        socket.recv_from(operation, Vec::with_capacity(100)).unwrap();
        let (_, operation) = dequeue_success(&port, RECV);
        assert_eq!(operation.buffer(), b"third");
        assert_eq!(operation.peer_address(), Some(other.local_addr().unwrap()));
    }

    /// Rules 61 and 112: several pending receives take the datagrams in order, one each.
    fn rule_112_receives_take_one_datagram_each(ports: &Ports) {
        const COUNT: usize = 30;
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        for number in 0..COUNT {
            socket
                .recv_from(Operation::with_context(number), Vec::with_capacity(100))
                .unwrap();
        }
        let peer = plain();
        for number in 0..COUNT {
            peer.send_to(&pattern(number as u64, number), address).unwrap();
        }
        for number in 0..COUNT {
            let (bytes, operation) = dequeue_success(&port, RECV);
            assert_eq!((operation.context::<usize>(), bytes), (Some(&number), number));
            assert_eq!(operation.buffer(), pattern(number as u64, number));
        }
        assert_quiet(&port);
    }

    /// Rules 46 and 113: of a datagram that is too long the first part is kept, the packet says so,
    /// and the rest is lost; whether it came before the receive or after it.
    fn rule_113_a_datagram_too_long_is_truncated(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        let peer = plain();
        for pending_before in [true, false] {
            let buffer = Vec::with_capacity(4);
            let capacity = buffer.capacity();
            let message = pattern(1, capacity + 6);
            if pending_before {
                socket.recv_from(Operation::new(), buffer).unwrap();
                assert_quiet(&port);
                peer.send_to(&message, address).unwrap();
            } else {
                peer.send_to(&message, address).unwrap();
                socket.recv_from(Operation::new(), buffer).unwrap();
            }
            let (bytes, operation) = dequeue_failure(&port, RECV, ErrorKind::MessageTruncated);
            assert_eq!((bytes, operation.buffer()), (capacity, &message[..capacity]));
            assert_eq!(operation.peer_address(), Some(peer.local_addr().unwrap()));
            peer.send_to(b"next", address).unwrap();
            socket.recv_from(operation, Vec::with_capacity(16)).unwrap();
            let (_, operation) = dequeue_success(&port, RECV);
            assert_eq!(operation.buffer(), b"next");
        }
    }

    /// Rule 113: a datagram of just the buffer's length is whole.
    fn rule_113_a_datagram_that_just_fits_is_whole(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        let buffer = Vec::with_capacity(32);
        let message = pattern(2, buffer.capacity());
        socket.recv_from(Operation::new(), buffer).unwrap();
        plain().send_to(&message, address).unwrap();
        let (bytes, operation) = dequeue_success(&port, RECV);
        assert_eq!((bytes, operation.buffer()), (message.len(), &message[..]));
    }

    /// Rule 60, for datagrams: a receive without room takes the datagram and says that it was cut.
    fn rule_60_a_zero_length_datagram_receive_takes_the_datagram(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        recv(&socket, 0);
        assert_quiet(&port);
        let peer = plain();
        peer.send_to(b"gone", address).unwrap();
        let (bytes, _) = dequeue_failure(&port, RECV, ErrorKind::MessageTruncated);
        assert_eq!(bytes, 0);
        recv(&socket, 10);
        assert_quiet(&port);
        peer.send_to(b"next", address).unwrap();
        assert_eq!(dequeue_success(&port, RECV).1.buffer(), b"next");
    }

    /// Rule 114: an empty datagram is a success of 0 bytes, and no end of anything.
    fn rule_114_an_empty_datagram_is_a_success(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        let peer = plain();
        recv(&socket, 16);
        peer.send_to(b"", address).unwrap();
        let (bytes, operation) = dequeue_success(&port, RECV);
        assert_eq!((bytes, operation.buffer()), (0, &b""[..]));
        assert_eq!(operation.peer_address(), Some(peer.local_addr().unwrap()));
        recv(&socket, 16);
        peer.send_to(b"more", address).unwrap();
        assert_eq!(dequeue_success(&port, RECV).0, 4);

        // And it can be sent.
        socket.send_to(operation, "", peer.local_addr().unwrap()).unwrap();
        assert_eq!(dequeue_success(&port, SEND).0, 0);
        assert_eq!(peer.recv(&mut [0; 4]).unwrap(), 0);
    }

    /// Rule 115: a socket without a local address has nothing to receive at, until it has one.
    fn rule_115_an_unbound_socket_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let socket = port.associate(UdpSocket::from(socket), 1).unwrap();
        let result = socket.recv_from(Operation::new(), Vec::with_capacity(8));
        refused(result, ErrorKind::InvalidInput);
        assert_quiet(&port);
        // A send gives it one.
        let peer = plain();
        socket.send_to(Operation::new(), "hello", peer.local_addr().unwrap()).unwrap();
        dequeue_success(&port, SEND);
        let mut buffer = [0; 8];
        let (_, from) = peer.recv_from(&mut buffer).unwrap();
        recv(&socket, 8);
        peer.send_to(b"back", from).unwrap();
        assert_eq!(dequeue_success(&port, RECV).1.buffer(), b"back");
    }

    /// Rule 116: on a socket without a peer, a port that nobody has open is not reported: the
    /// receive stays pending.
    fn rule_116_an_unreachable_port_does_not_end_a_receive(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        let dead = plain().local_addr().unwrap();
        recv(&socket, 8);
        for _ in 0..3 {
            socket.send_to(Operation::new(), "anybody?", dead).unwrap();
            dequeue_success(&port, SEND);
        }
        assert_quiet(&port);
        plain().send_to(b"yes", address).unwrap();
        assert_eq!(dequeue_success(&port, RECV).1.buffer(), b"yes");
    }

    /// Rule 116: on a socket with a peer, the peer's absence is told once, to a receive or to a
    /// send, and the socket can be used on.
    fn rule_116_an_absent_peer_is_a_refusal(ports: &Ports) {
        let port = ports.open(1);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(plain().local_addr().unwrap()).unwrap();
        let socket = port.associate(socket, 1).unwrap();
        recv(&socket, 8);
        socket.send_to(Operation::new(), "anybody?", None).unwrap();
        loop {
            let completion = dequeue(&port);
            if let Some(error) = completion.error() {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                break;
            }
            assert_eq!(completion.kind(), SEND);
        }
    }

    /// Rule 117: a datagram that is too long to be sent is refused, nothing is sent, and the next
    /// one goes out.
    fn rule_117_a_datagram_too_long_to_send_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let (socket, _) = associated(&port);
        let peer = plain();
        let address = peer.local_addr().unwrap();
        let operation = Operation::with_context(7_u8);
        let result = socket.send_to(operation, vec![1; 70_000], address);
        let mut operation = refused(result, ErrorKind::MessageTooLong);
        assert_eq!(operation.context::<u8>(), Some(&7));
        assert_eq!(operation.take_send_buffer().unwrap().len(), 70_000);
        assert_quiet(&port);
        socket.send_to(operation, "short", address).unwrap();
        assert_eq!(dequeue_success(&port, SEND).0, 5);
        let mut buffer = [0; 16];
        let (count, _) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"short");
    }

    /// The longest datagram there is goes through in one piece.
    fn the_longest_datagram_goes_through(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        let expected = pattern(3, 65_507);
        recv(&socket, 65_536);
        socket.send_to(Operation::new(), expected.clone(), address).unwrap();
        for completion in dequeue_all(&port, 2) {
            assert_eq!(completion.result(), Ok(65_507));
            let operation = completion.into_operation().unwrap();
            if operation.kind() == RECV {
                assert_same_bytes(operation.buffer(), &expected);
                assert_eq!(operation.peer_address(), Some(address));
            }
        }
    }

    /// Rule 140: a datagram's buffer comes back after the send.
    fn rule_140_the_sent_buffer_comes_back(ports: &Ports) {
        let port = ports.open(1);
        let (socket, _) = associated(&port);
        let peer = plain();
        let buffer = b"mine".to_vec();
        let address = buffer.as_ptr();
        socket.send_to(Operation::new(), buffer, peer.local_addr().unwrap()).unwrap();
        let (_, mut operation) = dequeue_success(&port, SEND);
        match operation.take_send_buffer() {
            Some(SendBuffer::Owned(buffer)) => assert_eq!(buffer.as_ptr(), address),
            other => panic!("{other:?}"),
        }
    }

    /// A socket with a peer sends without an address; one without a peer is refused.
    fn rule_73_a_send_without_any_peer_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let peer = plain();
        let (socket, _) = associated(&port);
        let operation = refused(
            socket.send_to(Operation::new(), "x", None),
            ErrorKind::NotConnected,
        );
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(peer.local_addr().unwrap()).unwrap();
        let connected = port.associate(connected, 2).unwrap();
        connected.send_to(operation, "to the peer", None).unwrap();
        assert_eq!(dequeue_success(&port, SEND).0, 11);
        assert_eq!(peer.recv(&mut [0; 16]).unwrap(), 11);
    }

    /// Rules 78 and 79: datagram receives are cancelled, one or all; what comes later is received.
    fn rule_78_datagram_receives_are_cancelled(ports: &Ports) {
        let port = ports.open(1);
        let (socket, address) = associated(&port);
        let ids: Vec<_> = (0..3)
            .map(|_| socket.recv_from(Operation::new(), Vec::with_capacity(16)).unwrap())
            .collect();
        assert!(socket.cancel(ids[1]));
        let (_, operation) = dequeue_failure(&port, RECV, ErrorKind::Cancelled);
        assert_eq!(operation.id(), ids[1]);
        assert_quiet(&port);
        assert_eq!(socket.cancel_all(), 2);
        for id in [ids[0], ids[2]] {
            let (_, operation) = dequeue_failure(&port, RECV, ErrorKind::Cancelled);
            assert_eq!(operation.id(), id);
        }
        assert_eq!(socket.cancel_all(), 0);
        recv(&socket, 16);
        plain().send_to(b"later", address).unwrap();
        assert_eq!(dequeue_success(&port, RECV).1.buffer(), b"later");
    }

    /// Rule 75: dropping the handle ends pending receives as aborted.
    fn rule_75_closing_ends_datagram_receives(ports: &Ports) {
        let port = ports.open(1);
        let (socket, _) = associated(&port);
        recv(&socket, 8);
        recv(&socket, 8);
        assert_quiet(&port);
        drop(socket);
        for _ in 0..2 {
            dequeue_failure(&port, RECV, ErrorKind::ConnectionAborted);
        }
        assert_quiet(&port);
    }

    /// Rule 63: a source that was set to non-blocking pends as any other.
    fn rule_63_a_non_blocking_socket_pends(ports: &Ports) {
        let port = ports.open(1);
        let socket = plain();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let socket = port.associate(socket, 1).unwrap();
        recv(&socket, 8);
        assert_quiet(&port);
        plain().send_to(b"x", address).unwrap();
        dequeue_success(&port, RECV);
    }

    /// Two sockets of one port talk to each other, many datagrams, in order; on the loopback
    /// nothing is lost as long as the socket's buffer holds what was sent.
    fn two_sockets_of_a_port_talk(ports: &Ports) {
        let port = ports.open(1);
        let (near, near_address) = associated(&port);
        let (far, far_address) = associated(&port);
        for round in 0..500_u64 {
            let message = pattern(round, 1 + round as usize * 3);
            let (sender, receiver, address, from) = if round % 2 == 0 {
                (&near, &far, far_address, near_address)
            } else {
                (&far, &near, near_address, far_address)
            };
            recv(receiver, 2000);
            sender.send_to(Operation::new(), message.clone(), address).unwrap();
            let mut received = false;
            for completion in dequeue_all(&port, 2) {
                assert_eq!(completion.result(), Ok(message.len()));
                let operation = completion.into_operation().unwrap();
                if operation.kind() == RECV {
                    assert_eq!(operation.buffer(), message);
                    assert_eq!(operation.peer_address(), Some(from));
                    received = true;
                }
            }
            assert!(received);
        }
    }

    /// IPv6.
    fn datagrams_on_ipv6(ports: &Ports) {
        let port = ports.open(1);
        let socket = match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(socket) => socket,
            Err(error) => return println!("skipped: no IPv6 loopback: {error}"),
        };
        let peer = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let socket = port.associate(socket, 1).unwrap();
        recv(&socket, 8);
        peer.send_to(b"six", address).unwrap();
        let (_, operation) = dequeue_success(&port, RECV);
        assert_eq!(operation.buffer(), b"six");
        assert_eq!(operation.peer_address(), Some(peer.local_addr().unwrap()));
        // An address of the other family cannot be sent to.
        let wrong = plain().local_addr().unwrap();
        match socket.send_to(operation, "x", wrong) {
            Err(rejected) => assert_ne!(rejected.error().kind(), ErrorKind::Other),
            Ok(_) => assert!(dequeue_within(&port, SEND).error().is_some()),
        }
    }
}
