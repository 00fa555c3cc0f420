//! Files at explicit offsets (rules 119 to 123).

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
#[cfg(unix)]
use std::os::fd::OwnedFd;
#[cfg(windows)]
use std::os::windows::io::OwnedHandle;
use std::sync::Arc;

use common::worker::Worker;
use common::*;
use proactor::{AssociatedFile, CompletionPort, ErrorKind, Operation, OperationKind, SendBuffer};

const READ: OperationKind = OperationKind::ReadAt;
const WRITE: OperationKind = OperationKind::WriteAt;
const DENIED: ErrorKind = ErrorKind::PermissionDenied;

/// A file with these contents, associated under key 1, and another handle to look at it.
fn associated(port: &CompletionPort, contents: &[u8]) -> (AssociatedFile, File) {
    let mut file = temporary_file();
    file.write_all(contents).unwrap();
    let view = file.try_clone().unwrap();
    (port.associate(file, 1).unwrap(), view)
}

fn contents(mut view: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    view.seek(SeekFrom::Start(0)).unwrap();
    view.read_to_end(&mut bytes).unwrap();
    bytes
}

on_each_backend! {
    /// Rule 119: a read begins at the offset that is given, and moves no file pointer.
    fn rule_119_a_read_begins_at_its_offset(ports: &Ports) {
        let port = ports.open(1);
        let (file, mut view) = associated(&port, b"0123456789");
        view.seek(SeekFrom::Start(7)).unwrap();
        let mut operation = Operation::with_context("mine");
        for (offset, expected) in [(2, &b"234"[..]), (2, b"234"), (0, b"012"), (5, b"567")] {
            let id = file.read_at(operation, vec![b'?'; 3], offset).unwrap();
            let completion = dequeue_within(&port, READ);
            assert_eq!((completion.key(), completion.operation_id()), (1, Some(id)));
            operation = completion.into_operation().unwrap();
            assert!(operation.buffer().starts_with(expected));
        }
        assert_eq!(operation.context::<&str>(), Some(&"mine"));
        assert_eq!(view.stream_position().unwrap(), 7);
    }

    /// Rule 119: a write goes to the offset that is given, wherever the file pointer stands.
    fn rule_119_a_write_goes_to_its_offset(ports: &Ports) {
        let port = ports.open(1);
        let (file, mut view) = associated(&port, b"0123456789");
        view.seek(SeekFrom::Start(1)).unwrap();
        file.write_at(Operation::new(), "abc", 4).unwrap();
        let (bytes, mut operation) = dequeue_success(&port, WRITE);
        assert_eq!(bytes, 3);
        assert_eq!(operation.take_send_buffer().unwrap().as_slice(), b"abc");
        assert_eq!(view.stream_position().unwrap(), 1);
        assert_eq!(contents(&view), b"0123abc789");
    }

    /// Rule 120: where the file ends before the buffer does, the read is short; at the end and
    /// behind it, it fails as a packet.
    fn rule_120_a_read_at_the_end_fails(ports: &Ports) {
        let port = ports.open(1);
        let (file, _view) = associated(&port, b"0123456789");
        file.read_at(Operation::new(), Vec::with_capacity(64), 6).unwrap();
        let (bytes, operation) = dequeue_success(&port, READ);
        assert_eq!((bytes, operation.buffer()), (4, &b"6789"[..]));
        let mut operation = operation;
        for offset in [10, 11, 1 << 40, i64::MAX as u64 - 64] {
            file.read_at(operation, Vec::with_capacity(64), offset).unwrap();
            let bytes;
            (bytes, operation) = dequeue_failure(&port, READ, ErrorKind::EndOfFile);
            assert_eq!((bytes, operation.buffer()), (0, &b""[..]));
        }
        assert_quiet(&port);
    }

    /// An offset that no file can have gives one packet with an error, or is refused.
    fn an_impossible_offset_is_an_error(ports: &Ports) {
        let port = ports.open(1);
        let (file, view) = associated(&port, b"0123456789");
        for offset in [u64::MAX - 1, 1 << 63] {
            if file.read_at(Operation::new(), Vec::with_capacity(8), offset).is_ok() {
                assert!(dequeue_within(&port, READ).error().is_some());
            }
            if file.write_at(Operation::new(), "x", offset).is_ok() {
                assert!(dequeue_within(&port, WRITE).error().is_some());
            }
        }
        assert_quiet(&port);
        assert_eq!(contents(&view), b"0123456789");
    }

    /// Rule 121: a write behind the end extends the file; the offset of all ones appends.
    fn rule_121_writes_extend_and_append(ports: &Ports) {
        let port = ports.open(1);
        let (file, view) = associated(&port, b"01234");
        file.write_at(Operation::new(), "ab", 8).unwrap();
        assert_eq!(dequeue_success(&port, WRITE).0, 2);
        assert_eq!(contents(&view), b"01234\0\0\0ab");
        for _ in 0..2 {
            file.write_at(Operation::new(), "cd", u64::MAX).unwrap();
            assert_eq!(dequeue_success(&port, WRITE).0, 2);
        }
        assert_eq!(contents(&view), b"01234\0\0\0abcdcd");
        // Appending is that one write's affair.
        file.write_at(Operation::new(), "X", 0).unwrap();
        dequeue_success(&port, WRITE);
        assert_eq!(contents(&view), b"X1234\0\0\0abcdcd");
    }

    /// Rule 121: appends that are in flight together do not overwrite each other.
    fn rule_121_appends_in_flight_together_all_arrive(ports: &Ports) {
        const COUNT: usize = 100;
        let port = ports.open(1);
        let (file, view) = associated(&port, b"");
        for number in 0..COUNT {
            file.write_at(Operation::new(), vec![number as u8; 10], u64::MAX).unwrap();
        }
        for _ in 0..COUNT {
            assert_eq!(dequeue_success(&port, WRITE).0, 10);
        }
        let all = contents(&view);
        assert_eq!(all.len(), COUNT * 10);
        let mut numbers: Vec<u8> = all
            .chunks(10)
            .map(|chunk| {
                assert!(chunk.iter().all(|byte| *byte == chunk[0]), "two appends were mixed");
                chunk[0]
            })
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..COUNT as u8).collect::<Vec<_>>());
    }

    /// Rule 122: a read without room is a success of 0 bytes, with a packet, also at the end.
    fn rule_122_a_zero_length_read_succeeds(ports: &Ports) {
        let port = ports.open(1);
        let (file, _view) = associated(&port, b"0123456789");
        for offset in [0, 5, 10, 1000] {
            file.read_at(Operation::new(), Vec::new(), offset).unwrap();
            assert_eq!(dequeue_success(&port, READ).0, 0);
        }
        file.write_at(Operation::new(), "", 3).unwrap();
        assert_eq!(dequeue_success(&port, WRITE).0, 0);
        assert_quiet(&port);
    }

    /// Rule 44: one packet for each operation, many in flight on one file, everything correct.
    fn rule_44_many_operations_on_one_file(ports: &Ports) {
        const BLOCK: usize = 4096;
        const BLOCKS: usize = 200;
        let port = ports.open(1);
        let (file, view) = associated(&port, b"");
        for number in 0..BLOCKS {
            let operation = Operation::with_context(number);
            let block = pattern(number as u64, BLOCK);
            file.write_at(operation, block, (number * BLOCK) as u64).unwrap();
        }
        // Each block is read back as soon as it is written.
        let (mut written, mut read) = (vec![false; BLOCKS], vec![false; BLOCKS]);
        for completion in (0..2 * BLOCKS).map(|_| dequeue(&port)) {
            assert_eq!(completion.result(), Ok(BLOCK));
            let kind = completion.kind();
            let operation = completion.into_operation().unwrap();
            let number = *operation.context::<usize>().unwrap();
            let seen = if kind == WRITE { &mut written } else { &mut read };
            assert!(!std::mem::replace(&mut seen[number], true), "{number} came twice");
            if kind == WRITE {
                let buffer = Vec::with_capacity(BLOCK);
                file.read_at(operation, buffer, (number * BLOCK) as u64).unwrap();
            } else {
                assert_same_bytes(operation.buffer(), &pattern(number as u64, BLOCK));
            }
        }
        assert_quiet(&port);
        assert_eq!(view.metadata().unwrap().len(), (BLOCK * BLOCKS) as u64);
    }

    /// A large write and a large read are whole.
    fn a_large_file_is_written_and_read_whole(ports: &Ports) {
        const LENGTH: usize = 20 * 1024 * 1024;
        let port = ports.open(1);
        let (file, view) = associated(&port, b"");
        let expected = pattern(5, LENGTH);
        file.write_at(Operation::new(), expected.clone(), 0).unwrap();
        let (bytes, mut operation) = dequeue_success(&port, WRITE);
        assert_eq!(bytes, LENGTH);
        assert!(matches!(operation.take_send_buffer(), Some(SendBuffer::Owned(_))));
        assert_same_bytes(&contents(&view), &expected);
        file.read_at(operation, Vec::with_capacity(LENGTH), 0).unwrap();
        let (bytes, operation) = dequeue_success(&port, READ);
        assert_eq!(bytes, LENGTH);
        assert_same_bytes(operation.buffer(), &expected);
    }

    /// A file that may not be written says so in the packet, with the system's code; and so does
    /// one that may not be read.
    fn a_file_opened_for_reading_cannot_be_written(ports: &Ports) {
        let port = ports.open(1);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"contents").unwrap();
        let read_only = port.associate(File::open(&path).unwrap(), 1).unwrap();
        #[cfg(target_os = "linux")]
        let code = libc::EBADF;
        #[cfg(windows)]
        let code = 5; // ERROR_ACCESS_DENIED
        read_only.write_at(Operation::new(), "x", 0).unwrap();
        let completion = dequeue_within(&port, WRITE);
        let error = completion.error().unwrap();
        assert_eq!((error.kind(), error.raw_os_error()), (DENIED, Some(code)));
        let write_only = OpenOptions::new().write(true).open(&path).unwrap();
        let write_only = port.associate(write_only, 1).unwrap();
        write_only.read_at(Operation::new(), Vec::with_capacity(8), 0).unwrap();
        let completion = dequeue_within(&port, READ);
        let error = completion.error().unwrap();
        assert_eq!((error.kind(), error.raw_os_error()), (DENIED, Some(code)));
        assert_eq!(std::fs::read(&path).unwrap(), b"contents");
    }

    /// Rules 6 and 124: what has no offsets (a pipe, a socket, a directory) is refused as a file,
    /// and comes back.
    fn rule_6_a_file_without_offsets_is_refused(ports: &Ports) {
        let port = ports.open(1);
        let (pipe, _writer) = std::io::pipe().unwrap();
        #[cfg(unix)]
        let files: [File; 3] = {
            let (socket, _) = unix_pair();
            [OwnedFd::from(pipe).into(), OwnedFd::from(socket).into(), File::open("/").unwrap()]
        };
        // On Windows a socket is no file, and a directory is not opened as one.
        #[cfg(windows)]
        let files: [File; 1] = [OwnedHandle::from(pipe).into()];
        for file in files {
            let refused = port.associate(file, 1).unwrap_err();
            assert_eq!(refused.error().kind(), ErrorKind::InvalidInput);
            let file = refused.into_source();
            #[cfg(unix)]
            file.metadata().unwrap();
            #[cfg(windows)]
            file.try_clone().unwrap();
        }
        // A device that is like a file is served as one.
        #[cfg(unix)]
        {
            let zero = port.associate(File::open("/dev/zero").unwrap(), 1).unwrap();
            zero.read_at(Operation::new(), vec![1; 10], 12_345).unwrap();
            assert_eq!(dequeue_success(&port, READ).1.buffer(), [0; 10]);
        }
    }

    /// Packets of files come to a thread that waits already, and to one that polls.
    fn file_packets_wake_a_waiting_thread(ports: &Ports) {
        let port = ports.shared(1);
        let (file, _view) = associated(&port, b"0123456789");
        let worker = Worker::spawn();
        let answer = worker.park({
            let port = Arc::clone(&port);
            move || port.dequeue(None).map(|completion| completion.bytes())
        });
        file.read_at(Operation::new(), Vec::with_capacity(16), 0).unwrap();
        assert_eq!(answer.wait(), Ok(10));
        worker.exit();
        file.read_at(Operation::new(), Vec::with_capacity(16), 5).unwrap();
        wait_until("a poll to bring the packet", || {
            port.dequeue(Some(std::time::Duration::ZERO)).is_ok_and(|c| c.bytes() == 5)
        });
    }

    /// Rules 76 and 77: dropping the handle with operations in flight: each has its packet, done or
    /// cancelled, and what it says it did it did.
    fn rule_76_closing_a_file_ends_its_operations(ports: &Ports) {
        const COUNT: usize = 200;
        let port = ports.open(1);
        let (file, view) = associated(&port, &[0; COUNT]);
        for number in 0..COUNT {
            let operation = Operation::with_context(number);
            file.write_at(operation, vec![1], number as u64).unwrap();
        }
        drop(file);
        let mut said = vec![None; COUNT];
        for completion in dequeue_all(&port, COUNT) {
            let number = *completion.operation().unwrap().context::<usize>().unwrap();
            assert_eq!(said[number], None, "{number} came twice");
            said[number] = Some(completion.error().map(|error| error.kind()));
        }
        assert_quiet(&port);
        for (number, (said, byte)) in said.into_iter().zip(contents(&view)).enumerate() {
            match said.unwrap() {
                None => assert_eq!(byte, 1, "{number} said done"),
                Some(kind) => {
                    assert_eq!(kind, ErrorKind::Cancelled);
                    assert_eq!(byte, 0, "{number} said cancelled");
                }
            }
        }
    }

    /// Rules 78 and 79: cancelling gives each operation its one packet, whatever it did.
    fn rule_78_cancelled_file_operations_have_one_packet_each(ports: &Ports) {
        const COUNT: usize = 100;
        let port = ports.open(1);
        let (file, _view) = associated(&port, &[7; COUNT]);
        let ids: Vec<_> = (0..COUNT)
            .map(|offset| {
                file.read_at(Operation::new(), Vec::with_capacity(1), offset as u64).unwrap()
            })
            .collect();
        for id in &ids[..COUNT / 2] {
            file.cancel(*id);
        }
        assert!(file.cancel_all() <= COUNT);
        for completion in dequeue_all(&port, COUNT) {
            match completion.result() {
                Ok(bytes) => assert!(bytes > 0),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
            }
        }
        assert_quiet(&port);
        assert_eq!(file.cancel_all(), 0);
        assert!(!file.cancel(ids[0]));
    }
}
