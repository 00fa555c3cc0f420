//! Creating a port and associating sources with it (rules 1 to 9).

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use proactor::{DequeueError, ErrorKind, Operation, OperationKind};
use socket2::{Domain, Socket, Type};

use crate::common::*;

on_each_backend! {
    /// Rule 1: a new port has no packet and no source.
    fn rule_1_a_new_port_is_empty(ports: &Ports) {
        let port = ports.open(3);
        assert_eq!(port.concurrency(), 3);
        assert_eq!(port.dequeue(Some(Duration::ZERO)).unwrap_err(), DequeueError::TimedOut);
        assert_eq!(port.counters().dequeued_packets, 0);
    }

    /// Rule 2: concurrency 0 means one thread per processor.
    fn rule_2_concurrency_zero_is_one_per_processor(ports: &Ports) {
        let usable = thread::available_parallelism().unwrap().get();
        // SAFETY: sysconf only reads a number.
        #[cfg(target_os = "linux")]
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as usize;
        #[cfg(windows)]
        let online = usable;
        let concurrency = ports.open(0).concurrency();
        assert!(concurrency == usable || concurrency == online, "{concurrency}");
    }

    /// Rule 2: any limit is accepted, also one that is there to mean "none".
    fn rule_2_a_huge_concurrency_is_accepted(ports: &Ports) {
        for limit in [u32::MAX as usize, usize::MAX] {
            let port = ports.open(limit);
            assert!(port.concurrency() >= 1024);
            port.post(1, 2, None).unwrap();
            assert_eq!(dequeue(&port).bytes(), 2);
        }
    }

    /// Rules 3 and 4: a port takes any number of sources, each under its own key.
    fn rule_4_sources_of_one_port_have_keys_of_their_own(ports: &Ports) {
        let port = ports.open(1);
        let mut pairs = Vec::new();
        for key in [0, 7, 7, usize::MAX] {
            let (stream, peer) = tcp_pair();
            let stream = port.associate(stream, key).unwrap();
            assert_eq!(stream.key(), key);
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
            pairs.push((stream, peer));
        }
        for (stream, peer) in &mut pairs {
            peer.write_all(b"x").unwrap();
            let completion = dequeue_within(&port, OperationKind::Recv);
            assert_eq!(completion.key(), stream.key());
        }
    }

    /// Rule 6: a socket that is not a stream is refused as one, and comes back usable.
    fn rule_6_a_datagram_socket_is_not_a_stream(ports: &Ports) {
        let port = ports.open(1);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let refused = port.associate(socket, 1).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        assert_eq!(refused.error().operation(), OperationKind::Associate);
        assert_eq!(refused.into_source().r#type().unwrap(), Type::DGRAM);
    }

    /// Rule 8: a socket is associated once: not again under the same key, nor another, nor with
    /// another port. What was refused comes back, and what is associated goes on working.
    fn rule_8_a_socket_is_associated_once(ports: &Ports) {
        let port = ports.open(1);
        let other_port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let mut duplicate = stream.try_clone().unwrap();
        let stream = port.associate(stream, 5).unwrap();
        for (target, key) in [(&port, 5), (&port, 6), (&other_port, 5), (&other_port, 6)] {
            let refused = target.associate(duplicate, key).unwrap_err();
            assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
            duplicate = refused.into_source();
        }
        duplicate.write_all(b"still open").unwrap();
        assert_eq!(read_bytes(&mut peer, 10), b"still open");
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        peer.write_all(b"works").unwrap();
        assert_eq!(dequeue_within(&port, OperationKind::Recv).key(), 5);
    }

    /// Rule 8, for the other kinds of source.
    fn rule_8_listeners_datagram_sockets_and_files_are_associated_once(ports: &Ports) {
        let port = ports.open(1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let duplicate = listener.try_clone().unwrap();
        let _listener = port.associate(listener, 1).unwrap();
        let refused = port.associate(duplicate, 1).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        refused.into_source().local_addr().unwrap();

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let duplicate = socket.try_clone().unwrap();
        let _socket = port.associate(socket, 1).unwrap();
        let refused = port.associate(duplicate, 1).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
        refused.into_source().local_addr().unwrap();
    }

    /// Rule 8: once a source is closed, nothing of it is remembered: a new socket that the system
    /// gives the same numbers can be associated.
    fn rule_8_a_closed_source_leaves_no_trace(ports: &Ports) {
        let port = ports.open(1);
        for round in 0..100 {
            let (stream, peer) = tcp_pair();
            drop(port.associate(stream, round).unwrap());
            drop(peer);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            drop(port.associate(socket, round).unwrap());
        }
    }

    /// Rule 9: a clone of a handle is the same source: its operations carry the same key.
    fn rule_9_clones_share_source_and_key(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = tcp_pair();
        let stream = port.associate(stream, 44).unwrap();
        let clone = stream.clone();
        assert_eq!(clone.key(), 44);
        clone.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        stream.send(Operation::new(), "ping").unwrap();
        assert_eq!(dequeue_within(&port, OperationKind::Send).key(), 44);
        assert_eq!(read_bytes(&mut peer, 4), b"ping");
        peer.write_all(b"pong").unwrap();
        let completion = dequeue_within(&port, OperationKind::Recv);
        assert_eq!((completion.key(), completion.bytes()), (44, 4));
    }
}
