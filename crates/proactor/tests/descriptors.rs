//! A port leaves no descriptor and no thread behind (rules 21, 74). One test, alone in its
//! process, because it counts what the whole process has open.

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::*;
use proactor::{CompletionPort, Operation, OperationKind, StreamSocket};

/// Rules 21 and 74: after a port and its sources are gone, in any state and in either order, the
/// process has as many descriptors and threads as before.
#[test]
fn rule_21_no_descriptor_and_no_thread_is_left() {
    let _watchdog = Watchdog::start("descriptors".to_owned());
    for ports in backends() {
        // What a first port sets up for the whole process may stay.
        for order in 0..3 {
            use_a_port(&ports, order);
        }
        let descriptors = descriptor_count();
        let threads = thread_count();
        for round in 0..30 {
            use_a_port(&ports, round % 3);
        }
        wait_until("threads to end", || thread_count() <= threads);
        wait_until("descriptors to be closed", || descriptor_count() <= descriptors);
        drop_sources_on_a_port_that_stays(&ports);
    }
}

/// Uses everything that a port has, and leaves in the middle of it.
fn use_a_port(ports: &Ports, order: usize) {
    let port = ports.shared(2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = port.associate(listener, 1).unwrap();
    let datagram = port.associate(UdpSocket::bind("127.0.0.1:0").unwrap(), 2).unwrap();
    let file = port.associate(temporary_file(), 3).unwrap();

    let mut clients = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..4 {
        listener.accept(Operation::new()).unwrap();
        clients.push(connect(address));
        let (_, mut operation) = dequeue_success(&port, OperationKind::Accept);
        streams.push(port.associate(operation.take_accepted().unwrap(), 4).unwrap());
    }
    // Two that are accepted and never taken out of the queue, two that wait in the backlog.
    for _ in 0..2 {
        listener.accept(Operation::new()).unwrap();
    }
    for _ in 0..4 {
        clients.push(connect(address));
    }
    streams[0].recv(Operation::new(), Vec::with_capacity(8)).unwrap();
    streams[1].recv_continuous(Operation::new()).unwrap();
    streams[2].send(Operation::new(), vec![0; 8 * 1024 * 1024]).unwrap();
    datagram.recv_from(Operation::new(), Vec::with_capacity(8)).unwrap();
    file.write_at(Operation::new(), "file", 0).unwrap();
    port.start_timer(5, Duration::from_secs(3600), Operation::new()).unwrap();
    let connecting = StreamSocket::for_peer(&port, &address, 6).unwrap();
    connecting.connect(Operation::new(), address).unwrap();
    // A socket that is refused is given back, and closed by its owner.
    let (twice, _peer) = tcp_pair();
    let duplicate = twice.try_clone().unwrap();
    let _twice = port.associate(twice, 7).unwrap();
    assert!(port.associate(duplicate, 7).is_err());

    let workers: Vec<_> = (0..3)
        .map(|_| {
            let port = Arc::clone(&port);
            thread::spawn(move || {
                let mut kept = Vec::new();
                while let Ok(mut completion) = port.dequeue(None) {
                    kept.push(completion.take_operation());
                    if kept.len() > 3 {
                        // This thread leaves before the port does.
                        break;
                    }
                }
            })
        })
        .collect();
    clients[1].write_all(b"chunk").unwrap();
    clients[3].write_all(b"nobody reads this").unwrap();
    wait_until("some packets", || port.counters().dequeued_packets > 8);
    match order {
        0 => {
            port.close();
            join(workers);
            drop((listener, datagram, file, streams, connecting, port));
        }
        1 => {
            drop((listener, datagram, file, streams, connecting));
            port.close();
            join(workers);
            drop(port);
        }
        _ => {
            port.close();
            join(workers);
            drop(port);
            drop((listener, datagram, file, streams, connecting));
        }
    }
}

fn join(workers: Vec<thread::JoinHandle<()>>) {
    for worker in workers {
        worker.join().unwrap();
    }
}

/// Sources come and go while the port stays: each takes its descriptor with it, whether or not
/// anybody dequeues.
fn drop_sources_on_a_port_that_stays(ports: &Ports) {
    let port = ports.open(1);
    open_and_drop(&port, 3);
    let before = descriptor_count();
    open_and_drop(&port, 100);
    wait_until("descriptors to be closed", || descriptor_count() <= before);
}

fn open_and_drop(port: &CompletionPort, count: usize) {
    for number in 0..count {
        let (stream, mut peer): (TcpStream, TcpStream) = tcp_pair();
        let stream = port.associate(stream, number).unwrap();
        if number % 3 > 0 {
            stream.recv(Operation::new(), Vec::with_capacity(8)).unwrap();
        }
        if number % 3 > 1 {
            peer.write_all(b"data").unwrap();
            dequeue_success(port, OperationKind::Recv);
        }
        drop(stream);
        if number % 3 == 1 {
            assert!(dequeue(port).error().is_some());
        }
        let file = temporary_file();
        drop(port.associate(file, number).unwrap());
    }
}
