//! The program where the system refuses it something: io_uring, memory, threads.
#![cfg(target_os = "linux")]

#[path = "../../proactor/tests/faults/inject.rs"]
#[allow(dead_code)]
mod inject;
#[path = "echo/support.rs"]
#[allow(dead_code)]
mod support;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use support::{Server, round_trip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_proactor");
const IO_URING: [libc::c_long; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// A command that runs behind something that `prepare` does to its process.
fn prepared(
    args: &[&str],
    prepare: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_remove("PROACTOR_BACKEND");
    // SAFETY: what is prepared are system calls on the new process, with a little memory of its own.
    unsafe { command.pre_exec(prepare) };
    command
}

fn text(bytes: &[u8]) -> String {
    // A table breaks its lines anywhere.
    String::from_utf8_lossy(bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Starts an echo server and sees that it serves; gives its first line.
fn serves(command: Command) -> String {
    let server = Server::spawn(command);
    for seed in 0..5 {
        round_trip(&mut server.connect(), seed, 300_000);
    }
    let first_line = server.first_line.clone();
    let totals = server.stop().totals();
    assert_eq!((&totals["sessions"], &totals["failures"]), (&5.into(), &0.into()), "{totals}");
    first_line
}

const ECHO: [&str; 4] = ["echo", "--listen", "127.0.0.1:0", "--json"];

#[test]
fn behind_a_containers_filter_epoll_serves_and_the_cause_is_named() {
    for (errno, cause) in [
        (libc::EPERM, "io_uring_setup: EPERM: blocked by a seccomp filter"),
        (libc::ENOSYS, "io_uring_setup: ENOSYS: hidden by a seccomp filter"),
    ] {
        let contained = |args: &[&str]| prepared(args, move || inject::refuse(&IO_URING, errno));
        let first_line = serves(contained(&ECHO));
        assert!(first_line.contains("| epoll; ") && first_line.contains(cause), "{first_line}");

        let doctor = contained(&["doctor"]).output().unwrap();
        assert!(doctor.status.success(), "{doctor:?}");
        let table = text(&doctor.stdout);
        assert!(table.contains("would use epoll") && table.contains(cause), "{table}");

        let forced = contained(&["echo", "--backend", "io_uring"]).output().unwrap();
        assert_eq!(forced.status.code(), Some(1), "{forced:?}");
        let message = text(&forced.stderr);
        assert!(message.contains("io_uring is not to be had") && message.contains(cause));
    }
}

/// An older container's filter knows neither io_uring nor `epoll_pwait2`.
#[test]
fn behind_an_old_filter_epoll_serves() {
    let calls = [&IO_URING[..], &[libc::SYS_epoll_pwait2]].concat();
    serves(prepared(&ECHO, move || inject::refuse(&calls, libc::EPERM)));
}

/// Kernels before 5.12 charge rings to this limit; here it must not matter, or be named.
#[test]
fn little_memory_may_be_locked() {
    for bytes in [0, 8 * 1024, 64 * 1024] {
        serves(prepared(&ECHO, move || limit(libc::RLIMIT_MEMLOCK, bytes)));
    }
}

/// Where there is little address space, the pools of receive buffers grow no further.
#[test]
fn little_address_space_is_enough() {
    for mebibytes in [128, 512] {
        serves(prepared(&ECHO, move || limit(libc::RLIMIT_AS, mebibytes * 1024 * 1024)));
    }
}

/// Without threads the server says so, and ends.
#[test]
fn a_server_without_threads_says_so() {
    for backend in [&[][..], &["--backend", "epoll"]] {
        let refused = [libc::SYS_clone, libc::SYS_clone3];
        let args = [&ECHO[..], backend].concat();
        let outcome = prepared(&args, move || inject::refuse(&refused, libc::EAGAIN)).output();
        let outcome = outcome.unwrap();
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        let message = text(&outcome.stderr);
        assert!(message.contains("cannot start") && !message.contains("panicked"), "{message}");
    }
}

fn limit(resource: libc::__rlimit_resource_t, bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: reads one struct, which is ours.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
