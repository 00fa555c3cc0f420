//! Each system call of the program fails once, with each error that it is known to give.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::common::*;
use crate::inject::{self, Answer, Call};
use crate::{on_each_backend, program};

/// A call, its name, and how it fails.
type Fault = (libc::c_long, &'static str, &'static [i32]);

const FAULTS: &[Fault] = &[
    (
        libc::SYS_accept4,
        "accept4",
        &[
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EPERM,
            libc::ECONNABORTED,
            libc::EPROTO,
            libc::EINTR,
        ],
    ),
    (libc::SYS_clone3, "clone3", &[libc::EAGAIN]),
    (libc::SYS_clone, "clone", &[libc::EAGAIN]),
    (libc::SYS_connect, "connect", &[libc::EADDRNOTAVAIL, libc::ENETUNREACH, libc::EPERM]),
    (libc::SYS_epoll_create1, "epoll_create1", &[libc::EMFILE, libc::ENFILE, libc::ENOMEM]),
    (libc::SYS_epoll_ctl, "epoll_ctl", &[libc::ENOMEM, libc::ENOSPC]),
    (libc::SYS_epoll_pwait2, "epoll_pwait2", &[libc::EINTR, libc::ENOSYS, libc::EPERM]),
    (libc::SYS_eventfd2, "eventfd2", &[libc::EMFILE, libc::ENFILE, libc::ENOMEM]),
    (
        libc::SYS_io_uring_enter,
        "io_uring_enter",
        &[libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ENOMEM],
    ),
    (libc::SYS_io_uring_register, "io_uring_register", &[libc::ENOMEM]),
    (libc::SYS_io_uring_setup, "io_uring_setup", &[libc::ENOMEM, libc::EMFILE, libc::EPERM]),
    (libc::SYS_mmap, "mmap", &[libc::ENOMEM]),
    (libc::SYS_timerfd_create, "timerfd_create", &[libc::EMFILE, libc::ENFILE, libc::ENOMEM]),
    (libc::SYS_pread64, "pread64", &[libc::EIO, libc::EINTR]),
    (libc::SYS_pwrite64, "pwrite64", &[libc::EIO, libc::ENOSPC, libc::EINTR]),
    (libc::SYS_recvfrom, "recvfrom", &[libc::ENOMEM, libc::ENOBUFS, libc::ECONNRESET, libc::EINTR]),
    (libc::SYS_recvmsg, "recvmsg", &[libc::ENOMEM, libc::ENOBUFS, libc::EINTR]),
    (libc::SYS_sendmsg, "sendmsg", &[libc::ENOMEM, libc::ENOBUFS, libc::EPIPE, libc::EINTR]),
    (libc::SYS_sendto, "sendto", &[libc::ENOMEM, libc::ENOBUFS, libc::ECONNRESET, libc::EINTR]),
];

/// A segment of a pool, or memory of a ring: what the allocator and threads map is not ours.
const LARGE_MAPPING_BYTES: u64 = 1 << 20;

/// Descriptors and threads are counted, and those of other tests would be in the way.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn numbers() -> Vec<libc::c_long> {
    FAULTS.iter().map(|(number, ..)| *number).collect()
}

/// How a call is known to fail, if it is one of those.
pub fn errors_of(number: libc::c_long) -> Option<&'static [i32]> {
    FAULTS.iter().find(|fault| fault.0 == number).map(|fault| fault.2)
}

/// Whether the library makes this call, and not the test or the language's runtime.
pub fn is_of_the_library(call: &Call) -> bool {
    let (number, args) = (call.number, &call.args);
    let does_not_wait = |flags: u64| flags & libc::MSG_DONTWAIT as u64 != 0;
    match number {
        libc::SYS_sendto | libc::SYS_recvfrom => does_not_wait(args[3]),
        libc::SYS_sendmsg | libc::SYS_recvmsg => does_not_wait(args[2]),
        libc::SYS_mmap => {
            let flags = args[3] as i32;
            let shared = flags & libc::MAP_SHARED != 0;
            let other = libc::MAP_STACK | libc::MAP_NORESERVE;
            shared || (args[1] >= LARGE_MAPPING_BYTES && flags & other == 0)
        }
        _ => true,
    }
}

/// How often the program makes each call, where nothing fails.
fn count(ports: &Ports) -> Option<BTreeMap<libc::c_long, usize>> {
    let mut counts = BTreeMap::new();
    let decide = |call: &Call| {
        if is_of_the_library(call) {
            *counts.entry(call.number).or_insert(0) += 1;
        }
        Answer::Pass
    };
    inject::run(&numbers(), decide, |faults| program::run(ports, faults, 1))?;
    Some(counts)
}

/// Runs the program with the `nth` call of a kind failing; whether there was one.
fn fail_one(ports: &Ports, fault: &Fault, nth: usize, errno: i32) -> bool {
    let mut seen = 0;
    let mut struck = false;
    let decide = |call: &Call| {
        if call.number == fault.0 && is_of_the_library(call) {
            seen += 1;
            if seen == nth {
                struck = true;
                return Answer::Fail(errno);
            }
        }
        Answer::Pass
    };
    inject::run(&[fault.0], decide, |faults| program::run(ports, faults, 2));
    struck
}

fn each_call(ports: &Ports) {
    let _alone = alone();
    let Some(counts) = count(ports) else { return };
    let mut before = descriptor_count();
    let mut failures = Vec::new();
    let mut runs = 0;
    for fault in FAULTS {
        let Some(&count) = counts.get(&fault.0) else { continue };
        let mut struck = 0;
        for nth in 1..=count {
            // The first ones fail in every way, the others in one each.
            let ways = if nth <= 2 { fault.2 } else { &fault.2[nth % fault.2.len()..][..1] };
            for &errno in ways {
                runs += 1;
                let outcome = catch_unwind(AssertUnwindSafe(|| fail_one(ports, fault, nth, errno)));
                let call = format!("{}, {nth} of {count}, error {errno}", fault.1);
                match outcome {
                    Ok(hit) => struck += usize::from(hit),
                    Err(_) => failures.push(call.clone()),
                }
                let after = descriptor_count();
                if after > before {
                    failures.push(format!("{call}: {after} descriptors, {before} before"));
                }
                before = after;
            }
        }
        println!("{}: {count} calls, {struck} failures injected", fault.1);
    }
    println!("{runs} runs");
    assert!(failures.is_empty(), "{failures:#?}");
}

on_each_backend! {
    /// Whichever call fails, and however: each accepted operation has one packet, what fails says
    /// why, the next try succeeds, every byte is right, and nothing is left.
    fn any_call_may_fail_once(ports: &Ports) {
        each_call(ports);
    }
}
