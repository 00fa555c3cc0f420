//! What every file service has to do, and what takes a ring to try.

use std::io::pipe;
use std::os::fd::OwnedFd;

use super::*;
use crate::backend::linux::file_tests::{self, Subject, read_request, set_up, start};

file_tests::all!(1, |deliver| RingFileService::new(deliver));

const SUBJECT: Subject = Subject { make: service, threads: 1 };

/// A pipe is read until it ends: a request that the kernel keeps as long as the test wants.
fn endless() -> (Arc<File>, io::PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    (Arc::new(File::from(OwnedFd::from(reader))), writer)
}

/// Waits until everything that was started before is in the kernel's hands: requests are
/// submitted in order, and this one's packet comes by way of the kernel.
fn wait_for_submission(port: &file_tests::Port, service: &dyn FileService) {
    let zeroes = Arc::new(File::open("/dev/zero").unwrap());
    start(service, read_request(&zeroes, 1, 0));
    assert_eq!(port.take(1)[0].error(), None);
}

#[test]
fn a_request_in_the_kernels_hands_is_cancelled() {
    let (port, service) = set_up(&SUBJECT);
    let (file, _writer) = endless();
    let waiting = start(&*service, read_request(&file, 16, 0));
    wait_for_submission(&port, &*service);
    assert!(service.cancel(5, waiting));
    let packet = port.take(1).remove(0);
    assert_eq!(packet.operation_id(), Some(waiting));
    assert_eq!(packet.error().unwrap().kind(), ErrorKind::Cancelled);
    assert!(!service.cancel(5, waiting), "there is nothing left to cancel");
}

#[test]
fn a_cancelled_request_carries_what_it_had_got() {
    let (port, service) = set_up(&SUBJECT);
    let (file, mut writer) = endless();
    writer.write_all(b"some").unwrap();
    let waiting = start(&*service, read_request(&file, 16, 0));
    wait_for_submission(&port, &*service);
    assert!(service.cancel(5, waiting));
    let packet = port.take(1).remove(0);
    assert_eq!(packet.error().unwrap().kind(), ErrorKind::Cancelled);
    assert_eq!((packet.bytes(), packet.operation().unwrap().buffer()), (4, &b"some"[..]));
}

#[test]
fn more_requests_than_slots_wait_their_turn() {
    let (port, service) = set_up(&SUBJECT);
    let (file, writer) = endless();
    for _ in 0..2 * MAXIMUM_IN_FLIGHT {
        start(&*service, read_request(&file, 16, 0));
    }
    assert_eq!(service.cancel_all(5), 2 * MAXIMUM_IN_FLIGHT);
    let packets = port.take(2 * MAXIMUM_IN_FLIGHT);
    assert!(packets.iter().all(|p| p.error().unwrap().kind() == ErrorKind::Cancelled));
    for _ in 0..2 * MAXIMUM_IN_FLIGHT {
        start(&*service, read_request(&file, 16, 0));
    }
    drop(writer);
    let packets = port.take(2 * MAXIMUM_IN_FLIGHT);
    assert!(packets.iter().all(|p| p.error().unwrap().kind() == ErrorKind::EndOfFile));
}

#[test]
fn close_waits_until_the_kernel_has_let_go() {
    let (port, service) = set_up(&SUBJECT);
    let (file, _writer) = endless();
    for _ in 0..2 * MAXIMUM_IN_FLIGHT {
        start(&*service, read_request(&file, 16, 0));
    }
    service.close();
    assert_eq!(Arc::strong_count(&file), 1, "every request is freed, in flight or queued");
    drop(port);
}
