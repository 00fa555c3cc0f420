//! Which backend a port is on.

use std::io::Read;

use proactor::{BackendChoice, CompletionPort, ErrorKind, Operation, OperationKind};

use crate::common::*;

on_each_backend! {
    /// A port on a forced backend is on that backend, and says so.
    fn a_port_names_its_backend(ports: &Ports) {
        let port = ports.open(1);
        assert_eq!(port.backend().name(), ports.name());
        assert_eq!(port.backend().degraded, None, "a forced backend is not a fallback");
        let missing = port.backend().capabilities.iter().find(|c| c.required && !c.available);
        assert_eq!(missing, None, "a required capability is missing, yet the port opened");
    }
}

/// The names of `PROACTOR_BACKEND`.
#[test]
fn a_backend_is_chosen_by_name() {
    assert_eq!(BackendChoice::from_name("auto"), Ok(BackendChoice::Automatic));
    assert_eq!(BackendChoice::from_name("io_uring"), Ok(BackendChoice::IoUring));
    assert_eq!(BackendChoice::from_name("epoll"), Ok(BackendChoice::Epoll));
    assert_eq!(BackendChoice::from_name("iocp"), Ok(BackendChoice::Iocp));
    let error = BackendChoice::from_name("kqueue").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// Every name is known on every system; the refusal of another system's backend says what it is.
#[test]
fn a_backend_of_another_system_is_refused_with_its_cause() {
    let (others, system): (&[BackendChoice], &str) = if cfg!(windows) {
        (&[BackendChoice::IoUring, BackendChoice::Epoll], "Linux")
    } else {
        (&[BackendChoice::Iocp], "Windows")
    };
    for &other in others {
        let refused = CompletionPort::builder().backend(other).build().unwrap_err();
        for error in [proactor::probe(other).unwrap_err(), refused] {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(system), "{error}");
        }
    }
}

/// A port without any choice opens, on whatever this machine has.
#[test]
fn a_port_opens_without_any_choice() {
    let port = CompletionPort::new(0).unwrap();
    let names: &[&str] = if cfg!(windows) { &["iocp"] } else { &["io_uring", "epoll"] };
    assert!(names.contains(&port.backend().name()));
    assert!(!port.backend().to_string().is_empty());
    let mut byte = [0];
    let (stream, mut peer) = tcp_pair();
    let stream = port.associate(stream, 1).unwrap();
    stream.send(Operation::new(), "x").unwrap();
    assert_eq!(dequeue_within(&port, OperationKind::Send).bytes(), 1);
    peer.read_exact(&mut byte).unwrap();
}
