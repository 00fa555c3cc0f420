//! What happens when the process has no descriptor left. One test, alone in its process, because
//! it lowers the limit of the whole process. Linux only: Windows has no limit on a process's
//! handles that a test could reach.
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::ErrorKind as IoErrorKind;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use common::*;
use proactor::{DequeueError, ErrorKind, Operation, OperationKind};

/// An accept that finds no descriptor fails once, as a packet; the connection stays in the backlog
/// and is accepted when there is one again. Nothing spins and nothing is lost.
#[test]
fn an_accept_without_descriptors_fails_and_keeps_the_connection() {
    let _watchdog = Watchdog::start("descriptor_limit".to_owned());
    for ports in backends() {
        without_descriptors(&ports);
    }
}

fn without_descriptors(ports: &Ports) {
    let port = ports.open(2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = port.associate(listener, 1).unwrap();
    // This thread has what it needs to wait, and the listener works.
    listener.accept(Operation::new()).unwrap();
    let first = connect(address);
    dequeue_success(&port, OperationKind::Accept);
    let client = connect(address);
    let other_client = connect(address);

    let limit = lower_limit();
    let mut fillers = fill_descriptors();
    listener.accept(Operation::with_context(1_u8)).unwrap();
    let (_, mut operation) =
        dequeue_failure(&port, OperationKind::Accept, ErrorKind::TooManyOpenFiles);
    assert_eq!(operation.context::<u8>(), Some(&1));
    assert!(operation.take_accepted().is_none());
    assert_quiet(&port);
    // Again the same, as often as it is tried, and once for each try.
    for _ in 0..3 {
        listener.accept(operation).unwrap();
        (_, operation) = dequeue_failure(&port, OperationKind::Accept, ErrorKind::TooManyOpenFiles);
    }
    assert_quiet(&port);

    // A thread that is new to the port may need a descriptor of its own: it is told, or served.
    thread::scope(|scope| {
        let new_thread = scope.spawn(|| port.dequeue(Some(Duration::from_millis(1))));
        match new_thread.join().unwrap() {
            Err(DequeueError::TimedOut) => {}
            Err(DequeueError::Failed(error)) => {
                assert_eq!(error.kind(), ErrorKind::TooManyOpenFiles);
            }
            other => panic!("{other:?}"),
        }
    });
    // So may a port.
    if let Err(error) = ports.builder().build() {
        assert_eq!(error.kind(), ErrorKind::TooManyOpenFiles);
        assert_eq!(error.operation(), OperationKind::CreatePort);
    }

    fillers.truncate(fillers.len() - 3);
    for expected in [&client, &other_client] {
        listener.accept(operation).unwrap();
        (_, operation) = dequeue_success(&port, OperationKind::Accept);
        let accepted = operation.take_accepted().unwrap();
        assert_eq!(accepted.peer_address(), Some(expected.local_addr().unwrap()));
    }
    drop(fillers);
    set_limit(limit);
    thread::scope(|scope| {
        let new_thread = scope.spawn(|| port.dequeue(Some(Duration::from_millis(1))));
        assert_eq!(new_thread.join().unwrap().unwrap_err(), DequeueError::TimedOut);
    });
    drop(first);
}

/// Opens files until the system refuses.
fn fill_descriptors() -> Vec<File> {
    let mut files = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                assert_ne!(error.kind(), IoErrorKind::NotFound);
                return files;
            }
        }
    }
}

/// Lowers the limit to a few hundred, so that it is reached soon; gives the old one.
fn lower_limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one struct, which is ours.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    assert_eq!(result, 0);
    set_limit(libc::rlimit { rlim_cur: 300, rlim_max: limit.rlim_max });
    limit
}

fn set_limit(limit: libc::rlimit) {
    // SAFETY: setrlimit reads one struct, which is ours.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert_eq!(result, 0);
}
