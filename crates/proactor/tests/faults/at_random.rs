//! Many system calls fail, each at random, and sockets move few bytes at a time.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use proactor::{DequeueError, ErrorKind, Operation, OperationKind};

use crate::common::*;
use crate::each_call::{self, alone, is_of_the_library, numbers};
use crate::inject::{self, Answer, Call};
use crate::{on_each_backend, program};

/// More sockets than a submission queue has entries.
const MANY: usize = 700;
/// Programs that run under random failures, on each backend.
const STORMS: u64 = 40;

on_each_backend! {
    /// A call in ten fails, whichever it is; what fails is tried again.
    fn many_calls_may_fail(ports: &Ports) {
        let _alone = alone();
        let mut before = usize::MAX;
        for seed in 0..STORMS {
            let mut random = Random::new(seed);
            let decide = |call: &Call| match each_call::errors_of(call.number) {
                Some(errors) if is_of_the_library(call) && random.below(10) == 0 => {
                    Answer::Fail(errors[random.below(errors.len() as u64) as usize])
                }
                _ => Answer::Pass,
            };
            let outcome =
                inject::run(&numbers(), decide, |faults| program::run(ports, faults, 1000));
            if outcome.is_none() {
                return;
            }
            // What the first run has left is there for the whole process, if anything is.
            let after = descriptor_count();
            assert!(after <= before, "seed {seed}: {after} descriptors, {before} before");
            before = after;
        }
    }

    /// A kernel without `epoll_pwait2` (before Linux 5.11), or a container's filter that is older
    /// than the call.
    fn a_system_may_lack_epoll_pwait2(ports: &Ports) {
        let _alone = alone();
        for errno in [libc::ENOSYS, libc::EPERM] {
            let decide = |_: &Call| Answer::Fail(errno);
            inject::run(&[libc::SYS_epoll_pwait2], decide, |faults| program::run(ports, faults, 1));
        }
    }

    /// A socket may take as few bytes at a time as it likes: they are all there, in order. (A receive
    /// that gives less than there is room for has taken all that there was: epoll(7).)
    fn sockets_may_take_few_bytes_at_a_time(ports: &Ports) {
        let _alone = alone();
        let mut random = Random::new(1);
        let decide = move |call: &Call| send_few(call, &mut random);
        inject::run(&[libc::SYS_sendto], decide, |faults| {
            program::run(ports, faults, 1);
            assert!(faults.injected() > 0 || ports.name() == "io_uring", "nothing was cut");
        });
    }

    /// A receive that fails for want of memory fails alone: the connection goes on, and no byte is
    /// lost.
    fn a_receive_without_memory_leaves_the_connection_as_it_is(ports: &Ports) {
        let _alone = alone();
        let mut seen = 0;
        let decide = move |call: &Call| {
            seen += 1;
            if seen % 2 == 1 && is_of_the_library(call) {
                Answer::Fail([libc::ENOMEM, libc::ENOBUFS][seen / 2 % 2])
            } else {
                Answer::Pass
            }
        };
        // A receive of several buffers: the other calls are the test's too.
        inject::run(&[libc::SYS_recvmsg], decide, |faults| {
            let port = ports.open(1);
            let (stream, mut peer) = tcp_pair();
            let stream = port.associate(stream, 1).unwrap();
            let message = pattern(1, 5000);
            peer.write_all(&message).unwrap();
            let mut got = Vec::new();
            while got.len() < message.len() {
                let buffers = vec![Vec::with_capacity(300), Vec::with_capacity(300)];
                stream.recv_vectored(Operation::new(), buffers).unwrap();
                let completion = dequeue_within(&port, OperationKind::Recv);
                match completion.error() {
                    Some(error) => assert_eq!(error.kind(), ErrorKind::InsufficientResources),
                    None => {
                        let mut operation = completion.into_operation().unwrap();
                        got.extend(operation.take_buffers().unwrap().concat());
                    }
                }
            }
            assert_same_bytes(&got, &message);
            assert!(faults.injected() >= 4 || ports.name() == "io_uring");
        });
    }

    /// More receives and sends than the submission queue holds, while the kernel refuses to take any:
    /// each goes out once it does.
    fn a_full_queue_that_the_kernel_refuses_keeps_what_it_holds(ports: &Ports) {
        let _alone = alone();
        let has_room = raise_descriptors(3 * MANY as u64);
        if ports.name() != "io_uring" || !has_room {
            return println!("skipped: not on io_uring, or too few descriptors");
        }
        let mut seen = 0;
        let decide = move |_: &Call| {
            seen += 1;
            if seen % 4 == 0 { Answer::Pass } else { Answer::Fail(libc::ENOMEM) }
        };
        inject::run(&[libc::SYS_io_uring_enter], decide, |faults| {
            let port = faults.pause(|| {
                let port = ports.open(1);
                assert_quiet(&port);
                port
            });
            let pairs: Vec<_> = (0..MANY).map(|_| unix_pair()).collect();
            let mut ends = Vec::new();
            for (key, (near, mut far)) in pairs.into_iter().enumerate() {
                far.write_all(b"in").unwrap();
                let near = port.associate(near, key).unwrap();
                near.recv(Operation::new(), Vec::with_capacity(10)).unwrap();
                near.send(Operation::new(), b"out".to_vec()).unwrap();
                ends.push((near, far));
            }
            let mut left = 2 * MANY;
            while left > 0 {
                match port.dequeue(Some(HANG)) {
                    Ok(completion) => {
                        completion.result().unwrap();
                        left -= 1;
                    }
                    Err(DequeueError::Failed(error)) => {
                        assert_eq!(error.kind(), ErrorKind::InsufficientResources);
                    }
                    Err(error) => panic!("{error}: {left} packets are missing"),
                }
            }
            for (_, far) in &mut ends {
                assert_eq!(read_bytes(far, 3), b"out");
            }
            faults.stop();
        });
    }

    /// While the kernel says that it has no memory, a dequeue that waits does not spin, and it ends
    /// in time.
    fn a_kernel_without_memory_is_not_asked_all_the_time(ports: &Ports) {
        let _alone = alone();
        if ports.name() != "io_uring" {
            return;
        }
        let calls = Mutex::new(0_u32);
        let count = |_: &Call| {
            *calls.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            Answer::Fail(libc::EAGAIN)
        };
        inject::run(&[libc::SYS_io_uring_enter], count, |faults| {
            let port = faults.pause(|| {
                let port = ports.open(1);
                assert_quiet(&port);
                port
            });
            let start = Instant::now();
            let outcome = port.dequeue(Some(Duration::from_millis(100)));
            assert_eq!(outcome.unwrap_err(), DequeueError::TimedOut);
            // Once for each millisecond, and some at the beginning and the end.
            let most = start.elapsed().as_millis() as u32 + 20;
            let asked = *calls.lock().unwrap();
            assert!(asked <= most, "{asked} calls in {most} ms");
            faults.stop();
        });
    }
}

/// Does a send of the library itself, with fewer bytes than it asks for.
fn send_few(call: &Call, random: &mut Random) -> Answer {
    let [fd, address, length, flags, ..] = call.args;
    if !is_of_the_library(call) || call.args[4] != 0 {
        // A datagram, which has an address, goes whole.
        return Answer::Pass;
    }
    let few = (length as usize).min(1 + random.below(3000) as usize);
    // SAFETY: the range is part of what a thread of this process hands to the kernel; it waits for
    // the answer, so its memory stays as it is.
    let count = unsafe { libc::send(fd as i32, address as *const _, few, flags as i32) };
    match std::io::Error::last_os_error().raw_os_error() {
        Some(errno) if count < 0 => Answer::Fail(errno),
        _ => Answer::Return(count as i64),
    }
}
