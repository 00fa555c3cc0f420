//! `proactor echo`, run as a program: the port and the overlapped model on each backend of this
//! machine, threads, and readiness loops with all that they can wait with.

mod drain;
mod echoing;
mod limits;
// Under Wine it is the machine that is measured; `scripts/windows` puts a load on a server itself.
#[cfg(not(windows))]
mod loaded;
// It names backends of Linux, and reads what it says of a process.
#[cfg(target_os = "linux")]
mod models;
mod refusals;
mod support;

/// Makes a test of each function for each kind of server. A backend that is not to be had is
/// skipped, and the test says why.
macro_rules! on_each_server {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        #[cfg(not(windows))]
        $crate::servers!([$($(#[$attribute])* $name),*] io_uring, epoll, overlapped_io_uring,
            overlapped_epoll, alternating, threads, readiness, poll, select);
        #[cfg(windows)]
        $crate::servers!([$($(#[$attribute])* $name),*] iocp, overlapped_iocp, alternating,
            threads, readiness);
    };
}
pub(crate) use on_each_server;

macro_rules! servers {
    ($names:tt $($server:ident),*) => { $($crate::server!($server $names);)* };
}
pub(crate) use servers;

macro_rules! server {
    ($server:ident [$($(#[$attribute:meta])* $name:ident),*]) => {
        mod $server {
            $($(#[$attribute])* #[test] fn $name() {
                crate::support::run(stringify!($server), super::$name);
            })*
        }
    };
}
pub(crate) use server;

#[cfg(windows)]
#[test]
fn loaded() {
    println!("skipped on Windows: echo under load: scripts/windows does it once, for all");
}
