//! `proactor echo`, run as a program, on each backend of this machine.

mod drain;
mod echoing;
mod limits;
mod refusals;
mod support;

/// Makes a test of each function for each backend. A backend that is not to be had is skipped, and
/// the test says why.
macro_rules! on_each_backend {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        #[cfg(not(windows))]
        mod io_uring {
            $($(#[$attribute])* #[test] fn $name() {
                crate::support::run("io_uring", super::$name);
            })*
        }
        #[cfg(not(windows))]
        mod epoll {
            $($(#[$attribute])* #[test] fn $name() {
                crate::support::run("epoll", super::$name);
            })*
        }
        #[cfg(windows)]
        mod iocp {
            $($(#[$attribute])* #[test] fn $name() {
                crate::support::run("iocp", super::$name);
            })*
        }
    };
}
pub(crate) use on_each_backend;
