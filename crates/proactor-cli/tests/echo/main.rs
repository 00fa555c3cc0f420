//! `proactor echo`, run as a program, on each backend of this machine.

mod drain;
mod echoing;
mod limits;
mod refusals;
mod support;

/// Makes a test of each function for each backend. A backend that is not to be had is skipped, and
/// the test says why.
macro_rules! on_each_backend {
    ($($name:ident),* $(,)?) => {
        mod io_uring {
            $(#[test] fn $name() { crate::support::run("io_uring", super::$name); })*
        }
        mod epoll {
            $(#[test] fn $name() { crate::support::run("epoll", super::$name); })*
        }
    };
}
pub(crate) use on_each_backend;
