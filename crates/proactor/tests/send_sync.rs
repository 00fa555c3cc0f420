//! Which types may cross threads, checked when this compiles.

use proactor::{
    Accepted, AssociateError, AssociatedFile, BackendChoice, BackendDescription, Builder,
    Capability, Completion, CompletionPort, DatagramSocket, DequeueError, Error, ErrorKind,
    ListenSocket, Operation, OperationId, OperationKind, PoolBuffer, PortCounters, Rejected,
    SendBuffer, StreamSocket,
};

use proactor::overlapped::{self, ApcHandle, ApcQueue, Event, Routine};

fn assert_send<T: Send>() {}
fn assert_sync<T: Sync>() {}
fn assert_static<T: 'static>() {}

/// Rule 39 and the port's promise: any thread may submit, dequeue, cancel, post and close.
#[test]
fn the_port_and_its_sources_are_shared_by_threads() {
    assert_send::<CompletionPort>();
    assert_sync::<CompletionPort>();
    assert_static::<CompletionPort>();
    assert_send::<ListenSocket>();
    assert_sync::<ListenSocket>();
    assert_send::<StreamSocket>();
    assert_sync::<StreamSocket>();
    assert_send::<DatagramSocket>();
    assert_sync::<DatagramSocket>();
    assert_send::<AssociatedFile>();
    assert_sync::<AssociatedFile>();
    assert_send::<Builder>();
    assert_sync::<Builder>();
}

/// A packet and what it carries may be handled by another thread than the one that dequeued it.
#[test]
fn packets_move_between_threads() {
    assert_send::<Completion>();
    assert_static::<Completion>();
    assert_send::<Operation>();
    assert_static::<Operation>();
    assert_send::<Rejected>();
    assert_send::<Accepted>();
    assert_sync::<Accepted>();
    assert_send::<PoolBuffer>();
    assert_sync::<PoolBuffer>();
    assert_static::<PoolBuffer>();
    assert_send::<SendBuffer>();
    assert_sync::<SendBuffer>();
}

/// Rule 126: a queue of completion routines and its sources stay on their thread. The call compiles
/// only where the type has one implementation of the trait, and so only where it is not `Send`.
#[test]
fn routines_stay_on_their_thread() {
    trait AmbiguousIfSend<A> {
        fn check() {}
    }
    impl<T: ?Sized> AmbiguousIfSend<()> for T {}
    impl<T: ?Sized + Send> AmbiguousIfSend<u8> for T {}

    <ApcQueue as AmbiguousIfSend<_>>::check();
    <Routine as AmbiguousIfSend<_>>::check();
    <overlapped::ListenSocket as AmbiguousIfSend<_>>::check();
    <overlapped::StreamSocket as AmbiguousIfSend<_>>::check();
    <overlapped::DatagramSocket as AmbiguousIfSend<_>>::check();
    <overlapped::File as AmbiguousIfSend<_>>::check();
    // What other threads have of it.
    assert_send::<ApcHandle>();
    assert_sync::<ApcHandle>();
    assert_send::<Event>();
    assert_sync::<Event>();
}

/// Plain values.
#[test]
fn values_are_send_and_sync() {
    assert_send::<OperationId>();
    assert_sync::<OperationId>();
    assert_send::<OperationKind>();
    assert_sync::<OperationKind>();
    assert_send::<Error>();
    assert_sync::<Error>();
    assert_send::<ErrorKind>();
    assert_sync::<ErrorKind>();
    assert_send::<DequeueError>();
    assert_sync::<DequeueError>();
    assert_send::<AssociateError<std::net::TcpStream>>();
    assert_sync::<AssociateError<std::net::TcpStream>>();
    assert_send::<PortCounters>();
    assert_send::<proactor::PortSnapshot>();
    assert_sync::<proactor::PortSnapshot>();
    assert_sync::<PortCounters>();
    assert_send::<BackendChoice>();
    assert_sync::<BackendChoice>();
    assert_send::<BackendDescription>();
    assert_sync::<BackendDescription>();
    assert_send::<Capability>();
    assert_sync::<Capability>();
}

/// An error becomes a boxed error of any thread, as most programs pass them on.
#[test]
fn errors_can_be_boxed() {
    fn is_error<E: std::error::Error + Send + 'static>() {}
    is_error::<Error>();
    is_error::<DequeueError>();
    is_error::<Rejected>();
    is_error::<AssociateError<std::net::TcpStream>>();
}

/// The size of what moves with each packet stays small.
#[test]
fn an_operation_is_one_pointer() {
    assert_eq!(size_of::<Operation>(), size_of::<usize>());
}
