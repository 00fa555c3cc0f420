//! Runs any program behind a filter as container runtimes install them; see `scripts/container`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::inject::refuse;

/// What Docker's default profile refuses, of the calls that Proactor would make; the last one only in
/// profiles that are older than the call.
const REFUSED: [libc::c_long; 4] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_epoll_pwait2,
];

/// Executes the shell command in `PROACTOR_CONTAINED` in its place.
#[test]
#[ignore = "a tool of scripts/container, not a test"]
fn contained() {
    let command = std::env::var_os("PROACTOR_CONTAINED").expect("a shell command");
    let errno = match std::env::var("PROACTOR_CONTAINED_ERRNO").as_deref() {
        Ok("ENOSYS") => libc::ENOSYS,
        _ => libc::EPERM,
    };
    refuse(&REFUSED, errno).expect("a filter can be installed");
    panic!("{}", Command::new("sh").arg("-c").arg(command).exec());
}
