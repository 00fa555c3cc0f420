//! Accepting connections (rules 76, 91 to 102).

mod common;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use common::worker::Worker;
use common::*;
use proactor::{CompletionPort, ErrorKind, ListenSocket, Operation, OperationKind};
use socket2::{Domain, Socket, Type};

/// A listener on the IPv4 loopback, associated with `port`.
fn listen(port: &CompletionPort, key: usize) -> (ListenSocket, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (port.associate(listener, key).unwrap(), address)
}

on_each_backend! {
    /// Rules 91 and 94: an accept's packet comes with the connection, before any data, under the
    /// listener's key.
    fn rule_91_an_accept_comes_under_the_listeners_key(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 125);
        assert_eq!(listener.local_address().unwrap(), address);
        let id = listener.accept(Operation::with_context("mine")).unwrap();
        assert_quiet(&port);
        let client = connect(address);
        let completion = dequeue_within(&port, OperationKind::Accept);
        assert_eq!((completion.key(), completion.result()), (125, Ok(0)));
        assert_eq!(completion.operation_id(), Some(id));
        let mut operation = completion.into_operation().unwrap();
        assert_eq!(operation.context::<&str>(), Some(&"mine"));
        let accepted = operation.take_accepted().unwrap();
        assert_eq!(accepted.peer_address(), Some(client.local_addr().unwrap()));
        assert!(operation.take_accepted().is_none(), "it was taken");
        assert_quiet(&port);
    }

    /// Rule 91: the connection gets a key of its own, at this port or another.
    fn rule_91_an_accepted_connection_has_its_own_key_and_port(ports: &Ports) {
        let (port, other) = (ports.open(1), ports.open(1));
        let (listener, address) = listen(&port, 1);
        for (target, key) in [(&port, 2), (&other, 3)] {
            let mut client = connect(address);
            listener.accept(Operation::new()).unwrap();
            let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
            let stream = target.associate(operation.take_accepted().unwrap(), key).unwrap();
            stream.recv(operation, Vec::with_capacity(8)).unwrap();
            client.write_all(b"hello").unwrap();
            let completion = dequeue_within(target, OperationKind::Recv);
            assert_eq!((completion.key(), completion.bytes()), (key, 5));
        }
    }

    /// Rule 94: a connection that was there before the accept is accepted.
    fn rule_94_a_waiting_connection_is_accepted(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        let clients: Vec<TcpStream> = (0..3).map(|_| connect(address)).collect();
        for client in &clients {
            listener.accept(Operation::new()).unwrap();
            let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
            let accepted = operation.take_accepted().unwrap();
            assert_eq!(accepted.peer_address(), Some(client.local_addr().unwrap()));
        }
    }

    /// No connection is accepted without an accept: the next one waits for the next accept.
    fn one_accept_takes_one_connection(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        listener.accept(Operation::new()).unwrap();
        let first = connect(address);
        let second = connect(address);
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        let accepted = operation.take_accepted().unwrap();
        assert_eq!(accepted.peer_address(), Some(first.local_addr().unwrap()));
        assert_quiet(&port);
        listener.accept(operation).unwrap();
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        let accepted = operation.take_accepted().unwrap();
        assert_eq!(accepted.peer_address(), Some(second.local_addr().unwrap()));
    }

    /// Rule 99: several accepts may be pending; the oldest gets the first connection.
    fn rule_99_the_oldest_accept_gets_the_first_connection(ports: &Ports) {
        const COUNT: usize = 20;
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        for number in 0..COUNT {
            listener.accept(Operation::with_context(number)).unwrap();
        }
        let clients: Vec<TcpStream> = (0..COUNT).map(|_| connect(address)).collect();
        for (number, client) in clients.iter().enumerate() {
            let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
            assert_eq!(operation.context::<usize>(), Some(&number));
            let accepted = operation.take_accepted().unwrap();
            assert_eq!(accepted.peer_address(), Some(client.local_addr().unwrap()));
        }
        assert_quiet(&port);
    }

    /// Rule 92: a socket that does not listen accepts nothing.
    fn rule_92_a_socket_that_does_not_listen_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let listener = port.associate(TcpListener::from(socket), 1).unwrap();
        let operation = Operation::with_context(4_u8);
        let operation = refused(listener.accept(operation), ErrorKind::InvalidInput);
        assert_eq!(operation.context::<u8>(), Some(&4));
        assert_quiet(&port);
    }

    /// Rules 78 and 98: a cancelled accept says so; the others stay, and no connection is lost.
    fn rule_98_a_cancelled_accept_leaves_the_others(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        let first = listener.accept(Operation::with_context(1_u8)).unwrap();
        listener.accept(Operation::with_context(2_u8)).unwrap();
        assert!(listener.cancel(first));
        let (_, mut operation) =
            dequeue_failure(&port, OperationKind::Accept, ErrorKind::Cancelled);
        assert_eq!(operation.context::<u8>(), Some(&1));
        assert!(operation.take_accepted().is_none());
        let client = connect(address);
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        assert_eq!(operation.context::<u8>(), Some(&2));
        let accepted = operation.take_accepted().unwrap();
        assert_eq!(accepted.peer_address(), Some(client.local_addr().unwrap()));
    }

    /// Rule 78: a cancel that comes with the connection loses nothing: the packet carries it, or
    /// the next accept gets it.
    fn rule_78_a_cancel_never_loses_a_connection(ports: &Ports) {
        let port = ports.shared(2);
        let (listener, address) = listen(&port, 1);
        let listener = Arc::new(listener);
        let canceller = Worker::spawn();
        let mut operation = Operation::new();
        for _ in 0..100 {
            let id = listener.accept(operation).unwrap();
            let for_canceller = Arc::clone(&listener);
            let cancelled = canceller.start(move || for_canceller.cancel(id));
            let mut client = connect(address);
            let completion = dequeue_within(&port, OperationKind::Accept);
            let error = completion.error();
            operation = completion.into_operation().unwrap();
            if let Some(error) = error {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                assert!(operation.take_accepted().is_none());
                listener.accept(operation).unwrap();
                (_, operation) = dequeue_success(&port, OperationKind::Accept);
            }
            let accepted = operation.take_accepted().expect("a success brings a connection");
            assert_eq!(accepted.peer_address(), Some(client.local_addr().unwrap()));
            accepted.into_tcp_stream().write_all(b"x").unwrap();
            assert_eq!(read_bytes(&mut client, 1), b"x");
            cancelled.wait();
        }
        assert_quiet(&port);
    }

    /// Rule 76: when the listener goes, each pending accept ends as cancelled.
    fn rule_76_dropping_the_listener_cancels_its_accepts(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 77);
        for number in 0..3_u8 {
            listener.accept(Operation::with_context(number)).unwrap();
        }
        drop(listener);
        for number in 0..3_u8 {
            let completion = dequeue_within(&port, OperationKind::Accept);
            assert_eq!((completion.key(), completion.bytes()), (77, 0));
            assert_eq!(completion.error().unwrap().kind(), ErrorKind::Cancelled);
            assert_eq!(completion.operation().unwrap().context::<u8>(), Some(&number));
        }
        assert_quiet(&port);
        assert!(TcpStream::connect(address).is_err(), "the listener is still open");
    }

    /// A connection that nobody takes out of the packet is closed with it.
    fn an_untaken_connection_is_closed_with_its_operation(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        listener.accept(Operation::new()).unwrap();
        let mut client = connect(address);
        drop(dequeue_within(&port, OperationKind::Accept));
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        // The same where the operation is started again.
        listener.accept(Operation::new()).unwrap();
        let mut client = connect(address);
        let (_, operation) = dequeue_success(&port, OperationKind::Accept);
        listener.accept(operation).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    /// Rule 100: an accepted socket is complete: addresses, options, shutdown, all at once.
    fn rule_100_an_accepted_socket_is_complete(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        listener.accept(Operation::new()).unwrap();
        let mut client = connect(address);
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        let accepted = operation.take_accepted().unwrap();
        accepted.set_nodelay(true).unwrap();
        let socket = accepted.into_socket();
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.local_addr().unwrap().as_socket(), Some(address));
        let peer = socket.peer_addr().unwrap().as_socket();
        assert_eq!(peer, Some(client.local_addr().unwrap()));
        // As the standard library has it: blocking, and not inherited by other programs.
        #[cfg(target_os = "linux")]
        {
            assert!(!socket.nonblocking().unwrap());
            // SAFETY: fcntl with F_GETFD only reads a flag of a descriptor that is open.
            let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    /// An accepted connection can be handed to code that knows nothing of the port.
    fn an_accepted_connection_becomes_a_plain_stream(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        listener.accept(Operation::new()).unwrap();
        let mut client = connect(address);
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        let mut stream = operation.take_accepted().unwrap().into_tcp_stream();
        bound_waits(&stream);
        client.write_all(b"plain").unwrap();
        assert_eq!(read_bytes(&mut stream, 5), b"plain");
    }

    /// A listener whose source was set to non-blocking behaves the same (rule 63, for accepts).
    fn rule_63_an_accept_on_a_non_blocking_listener_pends(ports: &Ports) {
        let port = ports.open(1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = port.associate(listener, 1).unwrap();
        listener.accept(Operation::new()).unwrap();
        assert_quiet(&port);
        let _client = connect(address);
        dequeue_success(&port, OperationKind::Accept);
    }

    /// IPv6.
    fn accepts_on_ipv6(ports: &Ports) {
        let port = ports.open(1);
        let listener = match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(listener) => listener,
            Err(error) => return println!("skipped: no IPv6 loopback: {error}"),
        };
        let address = listener.local_addr().unwrap();
        let listener = port.associate(listener, 1).unwrap();
        listener.accept(Operation::new()).unwrap();
        let client = connect(address);
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        let accepted = operation.take_accepted().unwrap();
        assert_eq!(accepted.peer_address(), Some(client.local_addr().unwrap()));
    }

    /// Unix sockets have no internet address, and otherwise work the same.
    #[cfg(unix)]
    fn accepts_on_a_unix_socket(ports: &Ports) {
        let port = ports.open(1);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listener");
        let listener = port.associate(UnixListener::bind(&path).unwrap(), 6).unwrap();
        assert!(listener.local_address().is_err());
        listener.accept(Operation::new()).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(HANG)).unwrap();
        let completion = dequeue_within(&port, OperationKind::Accept);
        assert_eq!(completion.key(), 6);
        let accepted = completion.into_operation().unwrap().take_accepted().unwrap();
        assert_eq!(accepted.peer_address(), None);
        accepted.into_unix_stream().write_all(b"unix").unwrap();
        assert_eq!(read_bytes(&mut client, 4), b"unix");
    }

    /// A burst of connections is accepted by one operation that is used again and again, while
    /// more come, and each connection comes once.
    fn one_operation_accepts_a_burst(ports: &Ports) {
        const COUNT: usize = 300;
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        let clients = std::thread::spawn(move || {
            (0..COUNT).map(|_| connect(address)).collect::<Vec<_>>()
        });
        let mut accepted = Vec::new();
        listener.accept(Operation::new()).unwrap();
        for _ in 0..COUNT {
            let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
            accepted.push(operation.take_accepted().unwrap().peer_address().unwrap());
            listener.accept(operation).unwrap();
        }
        let mut expected: Vec<SocketAddr> =
            clients.join().unwrap().iter().map(|c| c.local_addr().unwrap()).collect();
        expected.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(accepted, expected);
    }

    /// Rule 102: a connection that its peer resets before it is accepted does not end the
    /// listener: the next one is accepted.
    fn rule_102_a_connection_reset_in_the_backlog_harms_nobody(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listen(&port, 1);
        reset(connect(address));
        let client = connect(address);
        let mut operation = Operation::new();
        loop {
            listener.accept(operation).unwrap();
            let completion = dequeue_within(&port, OperationKind::Accept);
            let failed = completion.error().is_some();
            operation = completion.into_operation().unwrap();
            let accepted = operation.take_accepted();
            assert_eq!(failed, accepted.is_none());
            if accepted.and_then(|a| a.peer_address()) == Some(client.local_addr().unwrap()) {
                break;
            }
        }
    }

    /// The options of a listener are reached through its handle.
    fn options_are_the_sockets(ports: &Ports) {
        let port = ports.open(1);
        let (listener, _) = listen(&port, 1);
        listener.options().unwrap().set_reuse_address(true).unwrap();
        assert!(listener.options().unwrap().reuse_address().unwrap());
        #[cfg(target_os = "linux")]
        assert!(listener.options().unwrap().is_listener().unwrap());
    }
}
