//! Connecting and disconnecting (rules 103 to 109).

mod common;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixListener;

use common::*;
use proactor::{CompletionPort, ErrorKind, Operation, OperationKind, StreamSocket};
use socket2::{Domain, SockRef, Socket, Type};

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A listener that answers nobody: its backlog is full. Holds what fills it.
struct Silent {
    address: SocketAddr,
    _listener: Socket,
    _clients: Vec<Socket>,
}

impl Silent {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let clients = (0..8)
            .map(|_| {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                // In progress, and most of them stay so.
                let _ = client.connect(&address.into());
                client
            })
            .collect();
        Self { address, _listener: listener, _clients: clients }
    }
}

/// A stream that a connect of the port has connected, and its peer.
fn connected(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let (listener, address) = listener();
    let stream = StreamSocket::for_peer(port, &address, 1).unwrap();
    stream.connect(Operation::new(), address).unwrap();
    dequeue_success(port, OperationKind::Connect);
    let peer = listener.accept().unwrap().0;
    bound_waits(&peer);
    (stream, peer)
}

on_each_backend! {
    /// Rule 104: a connect's packet has 0 bytes and the socket's key; the connection stands.
    fn rule_104_a_connect_ends_with_zero_bytes(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listener();
        let stream = StreamSocket::for_peer(&port, &address, 42).unwrap();
        assert!(stream.peer_address().is_err());
        let id = stream.connect(Operation::with_context("mine"), address).unwrap();
        let completion = dequeue_within(&port, OperationKind::Connect);
        assert_eq!((completion.key(), completion.result()), (42, Ok(0)));
        assert_eq!(completion.operation_id(), Some(id));
        assert_eq!(completion.operation().unwrap().context::<&str>(), Some(&"mine"));
        let (mut peer, from) = listener.accept().unwrap();
        bound_waits(&peer);
        // Rule 107: every option and address is there at once.
        assert_eq!(stream.peer_address().unwrap(), address);
        assert_eq!(stream.local_address().unwrap(), from);
        stream.set_nodelay(true).unwrap();
        assert!(stream.options().unwrap().tcp_nodelay().unwrap());

        let operation = completion.into_operation().unwrap();
        stream.send(operation, "hello").unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 5), b"hello");
        stream.recv(operation, Vec::with_capacity(8)).unwrap();
        peer.write_all(b"hi").unwrap();
        dequeue_success(&port, OperationKind::Recv);
    }

    /// Rule 104: the same socket, bound to a local address before.
    fn rule_104_a_bound_socket_connects_from_its_address(ports: &Ports) {
        let port = ports.open(1);
        let (listener, address) = listener();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        let stream = port.associate(socket, 1).unwrap();
        stream.connect(Operation::new(), address).unwrap();
        dequeue_success(&port, OperationKind::Connect);
        assert_eq!(listener.accept().unwrap().1, local);
    }

    /// Rule 105: where nobody listens, the connect fails as refused.
    fn rule_105_a_refused_connect_says_so(ports: &Ports) {
        let port = ports.open(1);
        let address = dead_address();
        let stream = StreamSocket::for_peer(&port, &address, 9).unwrap();
        stream.connect(Operation::with_context(1_u8), address).unwrap();
        let completion = dequeue_within(&port, OperationKind::Connect);
        assert_eq!((completion.key(), completion.bytes()), (9, 0));
        let error = completion.error().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        #[cfg(target_os = "linux")]
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
        // ERROR_CONNECTION_REFUSED: the packet's name for WSAECONNREFUSED (rule 105).
        #[cfg(windows)]
        assert_eq!(error.raw_os_error(), Some(1225));
        assert_eq!(completion.operation().unwrap().context::<u8>(), Some(&1));
        // The socket is not connected (rules 65, 73).
        refused(stream.send(Operation::new(), "x"), ErrorKind::NotConnected);
        refused(stream.recv(Operation::new(), Vec::with_capacity(1)), ErrorKind::NotConnected);
        assert_quiet(&port);
    }

    /// Rule 106: after a refusal the same socket may be tried again, more than once.
    fn rule_106_a_refused_socket_can_be_tried_again(ports: &Ports) {
        skip_under_wine!(106, "the second try ends as aborted");
        let port = ports.open(1);
        let address = dead_address();
        let stream = StreamSocket::for_peer(&port, &address, 1).unwrap();
        let mut operation = Operation::new();
        for _ in 0..3 {
            stream.connect(operation, address).unwrap();
            (_, operation) =
                dequeue_failure(&port, OperationKind::Connect, ErrorKind::ConnectionRefused);
        }
        let (listener, address) = listener();
        stream.connect(operation, address).unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Connect);
        let mut peer = listener.accept().unwrap().0;
        bound_waits(&peer);
        stream.send(operation, "after all").unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 9), b"after all");
        stream.recv(operation, Vec::with_capacity(8)).unwrap();
        peer.write_all(b"yes").unwrap();
        assert_eq!(dequeue_success(&port, OperationKind::Recv).0, 3);
    }

    /// Rule 103: a connected socket does not connect again; nor does one that is just connecting.
    fn rule_103_a_connected_socket_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let (stream, _peer) = connected(&port);
        let (_listener, address) = listener();
        let result = stream.connect(Operation::with_context(3_u8), address);
        let operation = refused(result, ErrorKind::AlreadyConnected);
        assert_eq!(operation.context::<u8>(), Some(&3));

        // Connected before it was associated.
        let (stream, _peer) = tcp_pair();
        let stream = port.associate(stream, 1).unwrap();
        let operation = refused(stream.connect(operation, address), ErrorKind::AlreadyConnected);

        let silent = Silent::new();
        let stream = StreamSocket::for_peer(&port, &silent.address, 1).unwrap();
        let id = stream.connect(Operation::new(), silent.address).unwrap();
        refused(stream.connect(operation, silent.address), ErrorKind::AlreadyConnected);
        assert_quiet(&port);
        assert!(stream.cancel(id));
        dequeue_failure(&port, OperationKind::Connect, ErrorKind::Cancelled);
    }

    /// Rule 103: an address of another family is refused.
    fn rule_103_an_address_of_another_family_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let address = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        let stream = StreamSocket::for_peer(&port, &dead_address(), 1).unwrap();
        refused(stream.connect(Operation::new(), address), ErrorKind::InvalidInput);
        assert_quiet(&port);
    }

    /// Rules 65 and 73: while a connect is pending the socket is not connected.
    fn rule_65_a_connecting_socket_is_not_connected(ports: &Ports) {
        let port = ports.open(1);
        let silent = Silent::new();
        let stream = StreamSocket::for_peer(&port, &silent.address, 1).unwrap();
        stream.connect(Operation::new(), silent.address).unwrap();
        refused(stream.recv(Operation::new(), Vec::with_capacity(8)), ErrorKind::NotConnected);
        refused(stream.send(Operation::new(), "x"), ErrorKind::NotConnected);
        refused(stream.disconnect(Operation::new()), ErrorKind::NotConnected);
        assert_quiet(&port);
    }

    /// Rule 108: a pending connect can be cancelled.
    fn rule_108_a_pending_connect_is_cancelled(ports: &Ports) {
        let port = ports.open(1);
        let silent = Silent::new();
        let stream = StreamSocket::for_peer(&port, &silent.address, 1).unwrap();
        let id = stream.connect(Operation::with_context(2_u8), silent.address).unwrap();
        assert_quiet(&port);
        assert!(stream.cancel(id));
        let (bytes, operation) =
            dequeue_failure(&port, OperationKind::Connect, ErrorKind::Cancelled);
        assert_eq!((bytes, operation.context::<u8>()), (0, Some(&2)));
        assert!(!stream.cancel(id));
        assert_quiet(&port);
    }

    /// Rules 74 and 75: dropping the handle ends a pending connect.
    fn rule_75_closing_ends_a_pending_connect(ports: &Ports) {
        let port = ports.open(1);
        let silent = Silent::new();
        let stream = StreamSocket::for_peer(&port, &silent.address, 1).unwrap();
        stream.connect(Operation::new(), silent.address).unwrap();
        assert_quiet(&port);
        drop(stream);
        dequeue_failure(&port, OperationKind::Connect, ErrorKind::ConnectionAborted);
        assert_quiet(&port);
    }

    /// Rule 109: a disconnect ends the sending side: a packet of 0 bytes; the peer sees the end;
    /// this side still receives; sends, another disconnect and a connect are refused.
    fn rule_109_a_disconnect_ends_the_sending_side(ports: &Ports) {
        let port = ports.open(1);
        let (stream, mut peer) = connected(&port);
        stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        stream.disconnect(Operation::with_context(5_u8)).unwrap();
        let (bytes, operation) = dequeue_success(&port, OperationKind::Disconnect);
        assert_eq!((bytes, operation.context::<u8>()), (0, Some(&5)));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        let operation = refused(stream.send(operation, "x"), ErrorKind::ShutDown);
        let operation = refused(stream.disconnect(operation), ErrorKind::ShutDown);
        let (_listener, address) = listener();
        refused(stream.connect(operation, address), ErrorKind::AlreadyConnected);
        peer.write_all(b"still").unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Recv);
        assert_eq!(operation.buffer(), b"still");
        stream.recv(operation, Vec::with_capacity(8)).unwrap();
        drop(peer);
        assert_eq!(dequeue_success(&port, OperationKind::Recv).0, 0);
        assert_quiet(&port);
    }

    /// Rules 69 and 109: a disconnect waits for the sends before it.
    fn rule_109_a_disconnect_comes_behind_the_sends(ports: &Ports) {
        const LENGTH: usize = 1024 * 1024;
        let port = ports.open(1);
        let (stream, mut peer) = connected(&port);
        SockRef::from(&peer).set_recv_buffer_size(16 * 1024).unwrap();
        stream.options().unwrap().set_send_buffer_size(16 * 1024).unwrap();
        let expected = pattern(1, LENGTH);
        stream.send(Operation::new(), expected.clone()).unwrap();
        stream.send(Operation::new(), "tail").unwrap();
        stream.disconnect(Operation::new()).unwrap();
        refused(stream.send(Operation::new(), "late"), ErrorKind::ShutDown);
        let reader = std::thread::spawn(move || read_to_end(&mut peer));
        assert_eq!(dequeue_success(&port, OperationKind::Send).0, LENGTH);
        assert_eq!(dequeue_success(&port, OperationKind::Send).0, 4);
        dequeue_success(&port, OperationKind::Disconnect);
        let (got, error) = reader.join().unwrap();
        assert_eq!(error, None);
        assert_same_bytes(&got[..LENGTH], &expected);
        assert_eq!(&got[LENGTH..], b"tail");
    }

    /// Rule 109: what is not connected cannot be disconnected, nor shut down.
    fn rule_109_a_disconnect_without_connection_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let stream = StreamSocket::for_peer(&port, &dead_address(), 1).unwrap();
        refused(stream.disconnect(Operation::new()), ErrorKind::NotConnected);
        let error = stream.shutdown(Shutdown::Write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert_eq!(error.operation(), OperationKind::Shutdown);
        assert_quiet(&port);
    }

    /// Rule 104 on IPv6.
    fn connects_on_ipv6(ports: &Ports) {
        let port = ports.open(1);
        let listener = match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(listener) => listener,
            Err(error) => return println!("skipped: no IPv6 loopback: {error}"),
        };
        let address = listener.local_addr().unwrap();
        let stream = StreamSocket::for_peer(&port, &address, 1).unwrap();
        stream.connect(Operation::new(), address).unwrap();
        dequeue_success(&port, OperationKind::Connect);
        assert_eq!(listener.accept().unwrap().1, stream.local_address().unwrap());
    }

    /// Rules 104 and 105 on a Unix socket; a path that cannot be an address is refused.
    #[cfg(unix)]
    fn connects_on_a_unix_socket(ports: &Ports) {
        let port = ports.open(1);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let stream = StreamSocket::for_unix(&port, 1).unwrap();
        let too_long = format!("/{}", "x".repeat(200));
        let operation = Operation::with_context(4_u8);
        let operation = refused(stream.connect_unix(operation, too_long), ErrorKind::InvalidInput);
        assert_eq!(operation.context::<u8>(), Some(&4));

        // Nothing there, then a socket at which nobody listens any more.
        stream.connect_unix(operation, &path).unwrap();
        let (_, operation) =
            dequeue_failure(&port, OperationKind::Connect, ErrorKind::ConnectionRefused);
        drop(UnixListener::bind(&path).unwrap());
        stream.connect_unix(operation, &path).unwrap();
        let (_, operation) =
            dequeue_failure(&port, OperationKind::Connect, ErrorKind::ConnectionRefused);

        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        stream.connect_unix(operation, &path).unwrap();
        let (_, operation) = dequeue_success(&port, OperationKind::Connect);
        let mut peer = listener.accept().unwrap().0;
        peer.set_read_timeout(Some(HANG)).unwrap();
        stream.send(operation, "unix").unwrap();
        dequeue_success(&port, OperationKind::Send);
        assert_eq!(read_bytes(&mut peer, 4), b"unix");
        assert!(stream.peer_address().is_err(), "a Unix socket has no internet address");
    }

    /// Connects and accepts of one port, hundreds of them, all at once.
    fn hundreds_of_connects_meet_hundreds_of_accepts(ports: &Ports) {
        const COUNT: usize = 200;
        let port = ports.open(1);
        let (listener, address) = listener();
        let listener = port.associate(listener, 0).unwrap();
        let mut streams = Vec::new();
        for key in 1..=COUNT {
            listener.accept(Operation::new()).unwrap();
            let stream = StreamSocket::for_peer(&port, &address, key).unwrap();
            stream.connect(Operation::new(), address).unwrap();
            streams.push(stream);
        }
        let mut accepted = Vec::new();
        let mut connected = vec![false; COUNT + 1];
        for completion in dequeue_all(&port, 2 * COUNT) {
            assert_eq!(completion.error(), None);
            let key = completion.key();
            if completion.kind() == OperationKind::Accept {
                let mut operation = completion.into_operation().unwrap();
                accepted.push(operation.take_accepted().unwrap().peer_address().unwrap());
            } else {
                assert!(!std::mem::replace(&mut connected[key], true), "{key} came twice");
            }
        }
        let mut locals: Vec<SocketAddr> =
            streams.iter().map(|stream| stream.local_address().unwrap()).collect();
        locals.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(accepted, locals);
    }
}
