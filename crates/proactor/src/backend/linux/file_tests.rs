//! What every file service has to do, as tests that run against each of them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::file::{Deliver, FileRequest, FileService};
use super::file_operation::check_servable;
use crate::buffer::SendBuffer;
use crate::error::ErrorKind;
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::Completion;

/// Makes a test of each function below, for the service that `$make` creates, which delivers from
/// `$threads` threads.
macro_rules! all {
    ($threads:expr, |$deliver:ident| $make:expr) => {
        file_tests::all! { @each $threads, |$deliver| $make;
            a_write_is_read_back
            reads_end_where_the_file_ends
            nothing_to_move_succeeds
            appends_go_to_the_end
            what_the_file_refuses_fails
            invalid_requests_come_back
            a_large_write_is_whole
            a_cancelled_request_that_was_queued_ends_at_once
            cancelling_a_source_leaves_the_others_alone
            each_request_has_one_packet
            behaves_as_a_vector
            a_packet_without_a_port_is_dropped
            close_gives_no_packets_and_frees_everything
            closing_on_its_own_thread_does_not_hang
            a_panic_in_a_context_does_not_end_the_service
        }
    };
    (@each $threads:expr, |$deliver:ident| $make:expr; $($name:ident)*) => {
        fn service(
            $deliver: std::sync::Weak<dyn $crate::backend::linux::file::Deliver>,
        ) -> std::sync::Arc<dyn $crate::backend::linux::file::FileService> {
            std::sync::Arc::new($make)
        }
        $(#[test]
        fn $name() {
            file_tests::$name(&file_tests::Subject { make: service, threads: $threads });
        })*
    };
}
pub(crate) use all;

const KEY: usize = 77;
const SOURCE: u64 = 5;
/// Long enough for the slowest machine; reached only where a packet is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// The service under test.
pub(crate) struct Subject {
    pub(crate) make: fn(Weak<dyn Deliver>) -> Arc<dyn FileService>,
    /// Threads that deliver.
    pub(crate) threads: usize,
}

/// Stands for the port: keeps packets, and can hold up the service's threads as they deliver.
#[derive(Default)]
pub(crate) struct Port {
    state: Mutex<PortState>,
    changed: Condvar,
}

#[derive(Default)]
struct PortState {
    packets: Vec<Completion>,
    gate_closed: bool,
    at_gate: usize,
}

impl Deliver for Port {
    fn deliver(&self, packet: Completion) {
        let mut state = self.state.lock().unwrap();
        if std::thread::current().name() == Some("proactor-files") {
            state.at_gate += 1;
            self.changed.notify_all();
            state = self.changed.wait_while(state, |state| state.gate_closed).unwrap();
            state.at_gate -= 1;
        }
        state.packets.push(packet);
        self.changed.notify_all();
    }
}

impl Port {
    /// Waits for `count` packets and takes all that there are.
    pub(crate) fn take(&self, count: usize) -> Vec<Completion> {
        self.wait_until(|state| state.packets.len() >= count);
        std::mem::take(&mut self.state.lock().unwrap().packets)
    }

    fn take_one(&self) -> Completion {
        let mut packets = self.take(1);
        assert_eq!(packets.len(), 1, "one request, one packet");
        packets.remove(0)
    }

    fn wait_until(&self, condition: impl Fn(&PortState) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        while !condition(&state) {
            let left = deadline.checked_duration_since(Instant::now()).expect("no packet came");
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn set_gate(&self, closed: bool) {
        self.state.lock().unwrap().gate_closed = closed;
        self.changed.notify_all();
    }
}

pub(crate) fn set_up(subject: &Subject) -> (Arc<Port>, Arc<dyn FileService>) {
    let port = Arc::new(Port::default());
    let deliver: Arc<dyn Deliver> = port.clone();
    (port, (subject.make)(Arc::downgrade(&deliver)))
}

fn file() -> Arc<File> {
    Arc::new(tempfile::tempfile().unwrap())
}

fn file_with(content: &[u8]) -> Arc<File> {
    use std::os::unix::fs::FileExt;
    let file = file();
    file.write_all_at(content, 0).unwrap();
    file
}

pub(crate) fn read_request(file: &Arc<File>, capacity: usize, offset: u64) -> FileRequest {
    let buffer = Vec::with_capacity(capacity);
    request(file, OperationKind::ReadAt, Payload::Buffer(buffer), offset)
}

pub(crate) fn write_request(
    file: &Arc<File>,
    bytes: impl Into<SendBuffer>,
    offset: u64,
) -> FileRequest {
    request(file, OperationKind::WriteAt, Payload::Data(bytes.into()), offset)
}

fn request(file: &Arc<File>, kind: OperationKind, payload: Payload, offset: u64) -> FileRequest {
    let mut operation = Operation::new();
    operation.prepare(kind, payload);
    operation.inner.offset = offset;
    FileRequest { file: Arc::clone(file), source: SOURCE, key: KEY, operation }
}

/// Starts a request that must be taken.
pub(crate) fn start(service: &dyn FileService, request: FileRequest) -> OperationId {
    let id = request.operation.id();
    if let Err((error, _)) = service.start(request) {
        panic!("refused: {error}");
    }
    id
}

fn read(port: &Port, service: &dyn FileService, file: &Arc<File>, at: u64) -> Vec<u8> {
    start(service, read_request(file, 64, at));
    let packet = port.take_one();
    assert_eq!((packet.error(), packet.key(), packet.kind()), (None, KEY, OperationKind::ReadAt));
    packet.into_operation().unwrap().take_buffer().unwrap()
}

fn failure(packet: &Completion) -> Option<ErrorKind> {
    packet.error().map(|error| error.kind())
}

/// Holds up every thread of the service, so that further requests stay queued.
fn hold_up(subject: &Subject, port: &Port, service: &dyn FileService, file: &Arc<File>) {
    port.set_gate(true);
    for _ in 0..subject.threads {
        start(service, read_request(file, 0, 0));
    }
    port.wait_until(|state| state.at_gate == subject.threads);
}

pub(crate) fn a_write_is_read_back(subject: &Subject) {
    let (port, service) = set_up(subject);
    let file = file();
    let id = start(&*service, write_request(&file, "hello", 3));
    let packet = port.take_one();
    assert_eq!((packet.key(), packet.bytes(), packet.error()), (KEY, 5, None));
    assert_eq!((packet.kind(), packet.operation_id()), (OperationKind::WriteAt, Some(id)));
    let mut operation = packet.into_operation().unwrap();
    assert_eq!(operation.take_send_buffer().unwrap().as_slice(), b"hello");
    assert_eq!(read(&port, &*service, &file, 0), b"\0\0\0hello");
    service.close();
}

pub(crate) fn reads_end_where_the_file_ends(subject: &Subject) {
    let (port, service) = set_up(subject);
    let file = file_with(b"0123456789");
    assert_eq!(read(&port, &*service, &file, 7), b"789");
    for offset in [10, 11, 1 << 40] {
        start(&*service, read_request(&file, 8, offset));
        let packet = port.take_one();
        assert_eq!((failure(&packet), packet.bytes()), (Some(ErrorKind::EndOfFile), 0));
        assert_eq!(packet.operation().unwrap().buffer(), b"");
    }
    // A file whose size the system does not know beforehand is read to its end all the same.
    let status = Arc::new(File::open("/proc/self/status").unwrap());
    start(&*service, read_request(&status, 64 * 1024, 0));
    let packet = port.take_one();
    assert!(packet.error().is_none() && packet.bytes() > 100);
    assert!(packet.operation().unwrap().buffer().starts_with(b"Name:"));
}

pub(crate) fn nothing_to_move_succeeds(subject: &Subject) {
    let (port, service) = set_up(subject);
    let file = file();
    start(&*service, read_request(&file, 0, 100));
    assert_eq!(port.take_one().result(), Ok(0));
    start(&*service, write_request(&file, "", 100));
    assert_eq!(port.take_one().result(), Ok(0));
    assert_eq!(file.metadata().unwrap().len(), 0, "an empty write extends nothing");
}

pub(crate) fn appends_go_to_the_end(subject: &Subject) {
    use std::io::Seek;
    let (port, service) = set_up(subject);
    let file = file_with(b"begin-");
    for text in ["middle-", "end"] {
        start(&*service, write_request(&file, text, u64::MAX));
        assert_eq!(port.take_one().result(), Ok(text.len()));
    }
    assert_eq!(read(&port, &*service, &file, 0), b"begin-middle-end");
    assert_eq!((&*file).stream_position().unwrap(), 0, "the file's own position is left alone");
}

pub(crate) fn what_the_file_refuses_fails(subject: &Subject) {
    let (port, service) = set_up(subject);
    let named = tempfile::NamedTempFile::new().unwrap();
    let read_only = Arc::new(File::open(named.path()).unwrap());
    start(&*service, write_request(&read_only, "x", 0));
    let packet = port.take_one();
    assert_eq!((failure(&packet), packet.bytes()), (Some(ErrorKind::PermissionDenied), 0));
    let directory = Arc::new(File::open("/").unwrap());
    start(&*service, read_request(&directory, 16, 0));
    let error = port.take_one().error().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
}

pub(crate) fn invalid_requests_come_back(subject: &Subject) {
    let (port, service) = set_up(subject);
    let file = file();
    let wrong_kind = request(&file, OperationKind::Send, Payload::Data("x".into()), 0);
    for request in [
        read_request(&file, 8, u64::MAX),
        read_request(&file, 8, 1 << 63),
        write_request(&file, "x", u64::MAX - 1),
        wrong_kind,
    ] {
        let id = request.operation.id();
        let (error, operation) = service.start(request).expect_err("invalid");
        assert_eq!((error.kind(), operation.id()), (ErrorKind::InvalidInput, id));
    }
    assert!(!service.cancel(SOURCE, Operation::new().id()));
    service.close();
    let (error, _) = service.start(read_request(&file, 8, 0)).expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::PortClosed);
    assert!(port.state.lock().unwrap().packets.is_empty());
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(reader));
    assert_eq!(check_servable(&pipe).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(check_servable(&file).is_ok());
    assert!(check_servable(&File::open("/dev/zero").unwrap()).is_ok());
}

pub(crate) fn a_large_write_is_whole(subject: &Subject) {
    const LEN: usize = 8 * 1024 * 1024;
    let (port, service) = set_up(subject);
    let file = file();
    let content: Vec<u8> = (0..LEN).map(|index| (index / 251) as u8).collect();
    start(&*service, write_request(&file, content.clone(), 1));
    assert_eq!(port.take_one().result(), Ok(LEN));
    start(&*service, read_request(&file, LEN, 1));
    let packet = port.take_one();
    assert_eq!(packet.result(), Ok(LEN));
    assert!(packet.operation().unwrap().buffer() == content);
}

pub(crate) fn a_cancelled_request_that_was_queued_ends_at_once(subject: &Subject) {
    let (port, service) = set_up(subject);
    let file = file();
    hold_up(subject, &port, &*service, &file);
    let id = start(&*service, write_request(&file, "never", 0));
    assert!(!service.cancel(SOURCE + 1, id), "an operation is found at its own source only");
    assert!(service.cancel(SOURCE, id));
    let packet = port.take_one();
    assert_eq!((packet.operation_id(), packet.bytes()), (Some(id), 0));
    assert_eq!(failure(&packet), Some(ErrorKind::Cancelled));
    assert!(!service.cancel(SOURCE, id), "its packet is queued already");
    port.set_gate(false);
    port.take(subject.threads);
    assert_eq!(file.metadata().unwrap().len(), 0);
}

pub(crate) fn cancelling_a_source_leaves_the_others_alone(subject: &Subject) {
    let (port, service) = set_up(subject);
    let file = file();
    hold_up(subject, &port, &*service, &file);
    for index in 0..10 {
        let mut request = write_request(&file, "x", index);
        request.source = index % 2;
        start(&*service, request);
    }
    assert_eq!(service.cancel_all(1), 5);
    assert_eq!(service.cancel_all(1), 0);
    assert!(port.take(5).iter().all(|packet| failure(packet) == Some(ErrorKind::Cancelled)));
    port.set_gate(false);
    let packets = port.take(5 + subject.threads);
    assert!(packets.iter().all(|packet| packet.error().is_none()));
    assert_eq!(file.metadata().unwrap().len(), 9);
}

/// Several threads start requests and cancel some of them, while their packets are taken.
pub(crate) fn each_request_has_one_packet(subject: &Subject) {
    const THREADS: usize = 4;
    const REQUESTS: usize = 500;
    let (port, service) = set_up(subject);
    let file = file_with(&[7; 4096]);
    let mut started = HashMap::new();
    std::thread::scope(|scope| {
        let starter = || {
            let mut ids = Vec::new();
            for index in 0..REQUESTS {
                let id = match index % 2 {
                    0 => start(&*service, read_request(&file, 4096, 0)),
                    _ => start(&*service, write_request(&file, vec![7; 4096], 0)),
                };
                ids.push(id);
                if index % 5 == 0 {
                    service.cancel(SOURCE, ids[index / 2]);
                }
            }
            ids
        };
        let starters: Vec<_> = (0..THREADS).map(|_| scope.spawn(starter)).collect();
        for starter in starters {
            started.extend(starter.join().unwrap().into_iter().map(|id| (id, 0)));
        }
    });
    assert_eq!(started.len(), THREADS * REQUESTS);
    for packet in port.take(THREADS * REQUESTS) {
        *started.get_mut(&packet.operation_id().unwrap()).expect("a packet of ours") += 1;
        let whole = packet.bytes() == 4096 && packet.error().is_none();
        assert!(whole || failure(&packet) == Some(ErrorKind::Cancelled), "{packet:?}");
        let bytes = packet.bytes();
        assert!(
            packet.kind() == OperationKind::WriteAt
                || packet.operation().unwrap().buffer() == &[7; 4096][..bytes]
        );
    }
    service.close();
    assert!(port.state.lock().unwrap().packets.is_empty(), "no packet came twice");
    assert!(started.values().all(|packets| *packets == 1));
}

/// Reads and writes of any size at any offset, against a vector.
pub(crate) fn behaves_as_a_vector(subject: &Subject) {
    let (port, service) = set_up(subject);
    let step = (any::<bool>(), 0_usize..3000, prop_oneof![4 => 0_u64..6000, 1 => Just(u64::MAX)]);
    let steps = prop::collection::vec(step, 1..40);
    proptest!(ProptestConfig::with_cases(64), |(steps in steps)| {
        let (file, mut model) = (file(), Vec::<u8>::new());
        for (number, (is_write, len, offset)) in steps.into_iter().enumerate() {
            if is_write {
                start(&*service, write_request(&file, vec![number as u8; len], offset));
                prop_assert_eq!(port.take_one().result(), Ok(len));
                let at = if offset == u64::MAX { model.len() } else { offset as usize };
                if len > 0 {
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].fill(number as u8);
                }
            } else if offset != u64::MAX {
                let request = read_request(&file, len, offset);
                start(&*service, request);
                let packet = port.take_one();
                let expected = &model[model.len().min(offset as usize)..];
                // A vector may have more capacity than was asked for.
                let buffer = packet.operation().unwrap().buffer();
                prop_assert_eq!(buffer, &expected[..buffer.len()]);
                prop_assert!(buffer.len() >= len.min(expected.len()));
                let at_end = len > 0 && expected.is_empty();
                prop_assert_eq!(failure(&packet), at_end.then_some(ErrorKind::EndOfFile));
            }
        }
    });
}

pub(crate) fn a_packet_without_a_port_is_dropped(subject: &Subject) {
    let (port, service) = set_up(subject);
    let file = file();
    drop(port);
    let context = Arc::new(());
    let mut request = write_request(&file, "written", 0);
    request.operation.set_context(Arc::clone(&context));
    start(&*service, request);
    service.close();
    assert_eq!(Arc::strong_count(&context), 1);
}

pub(crate) fn close_gives_no_packets_and_frees_everything(subject: &Subject) {
    const REQUESTS: usize = 600;
    let (port, service) = set_up(subject);
    let file = file();
    let context = Arc::new(());
    for index in 0..REQUESTS {
        let mut request = write_request(&file, vec![1; 64 * 1024], (index as u64) << 16);
        request.operation.set_context(Arc::clone(&context));
        start(&*service, request);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| service.close());
        scope.spawn(|| service.close());
    });
    let packets = std::mem::take(&mut port.state.lock().unwrap().packets);
    assert_eq!(Arc::strong_count(&context), 1 + packets.len(), "what has no packet is freed");
    assert_eq!(Arc::strong_count(&file), 1, "no request keeps the file open");
    service.close();
    drop(service);
    assert!(port.state.lock().unwrap().packets.is_empty());
}

pub(crate) fn closing_on_its_own_thread_does_not_hang(subject: &Subject) {
    /// Closes the service from the thread that delivers, as the last holder of a port would.
    #[derive(Default)]
    struct Closer {
        service: Mutex<Option<Arc<dyn FileService>>>,
        port: Port,
    }
    impl Deliver for Closer {
        fn deliver(&self, packet: Completion) {
            let service = self.service.lock().unwrap().take();
            if let Some(service) = &service {
                service.close();
            }
            drop(service);
            self.port.deliver(packet);
        }
    }
    let closer = Arc::new(Closer::default());
    let deliver: Arc<dyn Deliver> = closer.clone();
    let service = (subject.make)(Arc::downgrade(&deliver));
    *closer.service.lock().unwrap() = Some(Arc::clone(&service));
    start(&*service, read_request(&file(), 0, 0));
    assert_eq!(closer.port.take_one().result(), Ok(0));
    let refused = service.start(read_request(&file(), 0, 0));
    assert_eq!(refused.err().unwrap().0.kind(), ErrorKind::PortClosed);
    drop(service);
}

pub(crate) fn a_panic_in_a_context_does_not_end_the_service(subject: &Subject) {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("a context that panics as it is dropped");
        }
    }
    /// Drops packets with a bomb in it, keeps the others.
    #[derive(Default)]
    struct Defuser(Port);
    impl Deliver for Defuser {
        fn deliver(&self, packet: Completion) {
            if packet.operation().unwrap().context::<Bomb>().is_none() {
                self.0.deliver(packet);
            }
        }
    }
    let defuser = Arc::new(Defuser::default());
    let deliver: Arc<dyn Deliver> = defuser.clone();
    let service = (subject.make)(Arc::downgrade(&deliver));
    for _ in 0..subject.threads {
        let mut request = read_request(&file(), 0, 0);
        request.operation.set_context(Bomb);
        start(&*service, request);
    }
    start(&*service, read_request(&file(), 0, 0));
    assert_eq!(defuser.0.take_one().result(), Ok(0));
    service.close();
}
